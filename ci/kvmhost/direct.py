"""The command on this very machine, whose KVM is backed by hardware."""

import os
import shlex
import signal
import subprocess

from . import files, process
from .common import EXIT_SIGNAL_BASE, OUT


def run(options, directory, report):
    """Runs the command with a copy of the files; returns its exit code."""
    work = directory / "files"
    files.stage(options.files, work, private=True)
    report.step("files copied")
    environment = {**os.environ, **dict(options.env), "KVM_HOST": "direct", "PATH": f"{work}:{os.environ['PATH']}"}
    process.adopt_orphans()
    parent = os.getpid()
    try:
        # By a shell, so that a missing command ends with the same code and words as on the other way.
        child = subprocess.Popen(["/bin/sh", "-c", shlex.join(options.command)], cwd=work, env=environment,
                                 stdin=subprocess.DEVNULL, start_new_session=True,
                                 preexec_fn=lambda: process.die_with_parent(parent))
        status = child.wait()
        report.step(f"command ended with {status}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        process.end_children()
        if options.out:
            files.collect(work / OUT, options.out)
    return status if status >= 0 else EXIT_SIGNAL_BASE - status
