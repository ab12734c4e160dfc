"""The command on this very machine, whose KVM is backed by hardware.

A keeper process stands between us and the command. It sees the end of its pipe when we are gone, however
we went, and ends everything that the command started.
"""

import os
import select
import shlex
import signal
import subprocess

from . import files, process
from .common import EXIT_FAILURE, EXIT_SIGNAL_BASE, OUT


def run(options, directory, report):
    """Runs the command with a copy of the files; returns its exit code."""
    work = directory / "files"
    files.stage(options.files, work, private=True)
    report.step("files copied")
    environment = {**os.environ, **dict(options.env), "KVM_HOST": "direct", "PATH": f"{work}:{os.environ['PATH']}"}
    watched, held = os.pipe()
    keeper = os.fork()
    if keeper == 0:
        os.close(held)
        _keep(options.command, work, environment, watched)
    os.close(watched)
    try:
        _, status = os.waitpid(keeper, 0)
        keeper = None
        report.step("command ended")
        return os.waitstatus_to_exitcode(status)
    finally:
        os.close(held)
        if keeper is not None:
            os.waitpid(keeper, 0)
        if options.out:
            files.collect(work / OUT, options.out)


def _keep(command, work, environment, watched):
    """The keeper: runs the command, leaves with its exit code, and nothing of it stays. Does not return."""
    code = EXIT_FAILURE
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        process.adopt_orphans()
        # By a shell, so that a missing command ends with the same code and words as on the other way.
        child = subprocess.Popen(["/bin/sh", "-c", shlex.join(command)], cwd=work, env=environment,
                                 stdin=subprocess.DEVNULL, preexec_fn=_default_signals)
        ended = os.pidfd_open(child.pid)
        ready, _, _ = select.select([watched, ended], [], [])
        if ended in ready:
            code = child.wait()
            code = code if code >= 0 else EXIT_SIGNAL_BASE - code
    finally:
        process.end_children()
        os._exit(code)


def _default_signals():
    """What is ignored would stay ignored in the command."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
