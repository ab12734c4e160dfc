"""The command in an emulated KVM host: disks made, output relayed, exit code and files brought back."""

import os
import selectors
import shlex
import sys

from . import files, tools
from .common import OUT, HostError, tool
from .machine import Kit, Machine, saved_state

CHUNK = 1 << 16
GUEST_PATH = "/work/files:/bin:/usr/sbin:/usr/bin"


class NotStarted(HostError):
    """The machine ended before the command had started, so it can be tried again."""


def run(options, directory, report):
    """Runs the command; returns its exit code."""
    kit = Kit()
    state = None
    if not options.cold:
        state = saved_state(kit, directory, cpus=options.cpus, memory=options.memory)
    report.step("kernel, initramfs and saved machine are there")
    tools_disk = tools.disk(options.with_qemu, options.with_python)
    disk = directory / "work.ext4"
    _make_work_disk(disk, directory / "tree", options)
    report.step("disks made")
    clean = False
    try:
        try:
            status = _run_machine(kit, directory, disk, tools_disk, state, options, report)
        except NotStarted as error:
            if state is None:
                raise
            print(f"kvm-host: the saved machine does not go on, booting ({error.args[0].splitlines()[-1]})", file=sys.stderr)
            state.unlink(missing_ok=True)
            status = _run_machine(kit, directory, disk, tools_disk, None, options, report)
        clean = True
        return status
    finally:
        if options.out:
            _bring_back(disk, directory, options.out, clean)
            report.step("files brought back")


def _run_machine(kit, directory, disk, tools_disk, state, options, report):
    """Runs the command in a machine that goes on from ``state`` or boots; returns its exit code."""
    machine = Machine(kit, directory, cpus=options.cpus, memory=options.memory, work=disk, tools=tools_disk, state=state)
    try:
        machine.go()
        return _relay(machine, report)
    finally:
        machine.end()
        report.step("machine ended")


def _make_work_disk(disk, tree, options):
    files.stage(options.files, tree / "files", private=False)
    exports = {"KVM_HOST": "emulated", "PATH": GUEST_PATH, "HOME": "/tmp", "TMPDIR": "/tmp", "LC_ALL": "C.UTF-8",
               **dict(options.env)}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in exports.items()]
    (tree / "command").write_text("\n".join([*lines, shlex.join(options.command), ""]))
    tools.make_ext4(disk, tree, space=options.size, label="work")


def _relay(machine, report):
    """Passes the machine's output on until it ends; returns the command's exit code."""
    outputs = {"stdout": 1, "stderr": 2}
    control = b""
    started = False
    answer = None
    with selectors.DefaultSelector() as selector:
        for name in (*outputs, "control"):
            selector.register(machine.ports[name], selectors.EVENT_READ, name)
        while selector.get_map():
            for key, _ in selector.select():
                data = _receive(key.fileobj)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.data in outputs:
                    _write_all(outputs[key.data], data)
                else:
                    *lines, control = (control + data).split(b"\n")
                    for line in lines:
                        word, _, rest = line.decode(errors="replace").partition(" ")
                        if word == "ready":
                            report.step("host booted")
                        elif word == "started":
                            started = True
                            report.step("command started")
                        elif word in ("exit", "error"):
                            answer = word, rest
                            report.step(f"command ended: {line.decode(errors='replace')}")
    machine.process.wait()
    if answer is None:
        raise (HostError if started else NotStarted)(f"the emulated KVM host broke down:\n{machine.last_words()}")
    if answer[0] == "error":
        raise HostError(f"in the emulated KVM host: {answer[1]}")
    return int(answer[1])


def _receive(port):
    try:
        return port.recv(CHUNK)
    except ConnectionResetError:
        return b""


def _write_all(descriptor, data):
    while data:
        data = data[os.write(descriptor, data):]


def _bring_back(disk, directory, target, clean):
    if not clean:
        # Killed in the middle: repair what can be, as any machine does after a crash. Its exit code
        # says that it repaired something, which is no failure.
        files.tool_succeeds("e2fsck", "-fy", disk)
    back = directory / "back"
    back.mkdir()
    # Relative, since debugfs has no way to quote every path.
    tool("debugfs", "-R", f"rdump /files/{OUT} {back.name}", disk, cwd=directory, problem="cannot read the work disk")
    files.dig_holes(back)
    files.collect(back / OUT, target)
