"""The emulated KVM host: QEMU's TCG with AMD-V, Debian's kernel, and an initramfs that loads KVM.

Everything a command needs comes on disks and goes over three virtio-serial ports: its stdout, its stderr, and
"control", on which the host says ``ready``, is told ``go TIME SEED``, and says ``exit STATUS`` or ``error TEXT``.
"""

import fcntl
import hashlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from . import process, reseed
from .common import CACHE, ROOT, HostError, forget_older, tool

sys.path.insert(0, str(ROOT / "resources/guest/lib"))
# pylint: disable=wrong-import-position  # the path has to be set first
import cpio
import modules
import packages

QEMU = "qemu-system-x86_64"
KERNEL_META = "linux-image-cloud-amd64"
INIT = Path(__file__).with_name("init")
# Before a machine may be saved, and after it goes on: see init.
MODULES_BEFORE = ("kvm_amd", "virtio_pci", "virtio_console", "loop", "xfs")
MODULES_AFTER = ("virtio_blk",)
# The emulated processor cannot be attacked through its caches, and guarding against it costs time.
# A processor of the host that goes round in circles for two minutes (a soft lockup is twice the threshold) ends the
# host, so that it can be tried again: the emulation was seen to do that.
KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet panic=-1 mitigations=off audit=0 tsc=reliable clocksource=tsc softlockup_panic=1 watchdog_thresh=60"
)
PORTS = ("stdout", "stderr", "control")
NULL_DISK = {"driver": "null-co", "size": 1 << 20, "read-zeroes": True}


def _say(text):
    print(f"kvm-host: {text}", file=sys.stderr, flush=True)


class Kit:
    """What the machine boots: a kernel and an initramfs, made when missing or stale.

    Any recent kernel will do: apt is asked only when none is here, resources/guest/build brings newer ones.
    """

    def __init__(self):
        try:
            stock = ROOT / ".cache/guest/packages"
            with _locked(CACHE / "kit.lock"):
                kernel = packages.newest_cached(stock, "linux-image-*-cloud-amd64_*") or packages.fetch(
                    packages.kernel_package(KERNEL_META, stock), "linux-image-*-cloud-amd64_*", stock, _say)
                busybox = packages.newest_cached(stock, "busybox-static_*") or packages.fetch(
                    "busybox-static", "busybox-static_*", stock, _say)
                modules.index(kernel)
                self.kernel = next((kernel / "boot").glob("vmlinuz-*"))
                sources = (INIT, Path(cpio.__file__), Path(modules.__file__), Path(reseed.__file__))
                self.key = _digest(kernel.name, busybox.name, *MODULES_BEFORE, "", *MODULES_AFTER,
                                   *(path.read_text() for path in sources))
                self.initramfs = CACHE / f"initramfs-{self.key}.cpio"
                if not self.initramfs.exists():
                    self._make(kernel, busybox / "bin/busybox")
        except (packages.PackageError, modules.ModuleError) as error:
            raise HostError(str(error)) from error

    def _make(self, kernel, busybox):
        partial = self.initramfs.with_suffix(".partial")
        with open(partial, "wb") as out:
            archive = cpio.Archive(out)
            for name in ("dev", "proc", "sys", "tmp", "work", "tools", "run", "etc"):
                archive.directory(name)
            archive.character_device("dev/console", 5, 1)
            archive.file("init", INIT.read_bytes(), 0o755)
            archive.file("bin/busybox", busybox.read_bytes(), 0o755)
            archive.file("bin/reseed", reseed.program(), 0o755)
            for name in tool(busybox, "--list", problem="cannot run busybox").split():
                if name != "busybox":
                    archive.symlink(f"bin/{name}", "busybox")
            archive.file("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")
            archive.file("etc/group", b"root:x:0:\nkvm:x:107:\n")
            loaded = []
            for stage, wanted in (("before", MODULES_BEFORE), ("after", MODULES_AFTER)):
                fresh = [path for path in modules.closure(kernel, wanted) if path not in loaded]
                loaded += fresh
                for path in fresh:
                    archive.file(f"modules/{path.name}", path.read_bytes())
                archive.file(f"modules/{stage}", "".join(f"{path.name}\n" for path in fresh).encode())
            archive.close()
        partial.rename(self.initramfs)
        forget_older(self.initramfs, "initramfs-*.cpio")


@contextmanager
def _locked(path):
    """Holds a lock file for the length of a ``with`` block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest(*texts):
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _disk(path, read_only):
    # The disk is thrown away: nothing needs to survive a crash of the machine below.
    return {"driver": "raw", "read-only": read_only,
            "file": {"driver": "file", "filename": str(path), "read-only": read_only,
                     "discard": "unmap", "cache": {"direct": False, "no-flush": True}}}


class Machine:
    """A QEMU process with one of these hosts in it; ends when its maker does."""

    def __init__(self, kit, directory, *, cpus, memory, work=None, tools=None, state=None):
        self.console = directory / "console.log"
        ends = {}
        self.ports = {}
        for name in (*PORTS, "qmp"):
            self.ports[name], ends[name] = socket.socketpair()
        command = [
            QEMU, "-M", "q35,usb=off", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off",
            "-smp", str(cpus), "-m", str(memory),
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-name", "sluice-kvm-host",
            "-kernel", str(kit.kernel), "-initrd", str(kit.initramfs), "-append", KERNEL_ARGUMENTS,
            "-chardev", _key_value("file", id="console", path=self.console), "-serial", "chardev:console",
            "-chardev", f"socket,id=qmp,fd={ends['qmp'].fileno()}", "-mon", "chardev=qmp,mode=control",
            "-device", "virtio-serial-pci,addr=4",
        ]
        for name in PORTS:
            command += ["-chardev", f"socket,id={name},fd={ends[name].fileno()}",
                        "-device", f"virtserialport,chardev={name},name={name}"]
        for address, (name, disk) in enumerate((("work", _disk(work, False) if work else NULL_DISK),
                                                ("tools", _disk(tools, True) if tools else NULL_DISK)), 5):
            command += ["-blockdev", json.dumps({**disk, "node-name": name}),
                        "-device", f"virtio-blk-pci,drive={name},addr={address}"]
        if state:
            command += ["-incoming", f"file:{state}"]
        parent = os.getpid()
        self._errors = tempfile.TemporaryFile()
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=self._errors, stderr=self._errors,
                pass_fds=[end.fileno() for end in ends.values()], start_new_session=True,
                preexec_fn=lambda: process.die_with_parent(parent))
        except FileNotFoundError as error:
            raise HostError(f"{QEMU} is not here; run ci/install-deps") from error
        finally:
            for end in ends.values():
                end.close()

    def go(self):
        """Tells the host the time and a random seed, and with that to run its command."""
        self.ports["control"].sendall(f"go {int(time.time())} {secrets.token_hex(32)}\n".encode())

    def end(self):
        """Kills the machine if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for port in self.ports.values():
            port.close()

    def last_words(self):
        """What QEMU and the host's kernel said last, for the text of an error."""
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").splitlines()[-5:]
        if self.console.exists():
            text = self.console.read_text(errors="replace")
            said += re.sub(r"\x1b\S*|\r", "", text).strip().splitlines()[-40:]
        return "\n".join(said) or "(it said nothing)"

    def save(self, path):
        """Waits until the host is ready, saves it to ``path`` and ends it."""
        with self.ports["control"].makefile("r") as control:
            if control.readline() != "ready\n":
                raise HostError(f"the emulated KVM host did not come up:\n{self.last_words()}")
        with self.ports["qmp"].makefile("rw") as monitor:
            monitor.readline()
            for command in ({"execute": "qmp_capabilities"},
                            {"execute": "migrate-set-capabilities", "arguments": {
                                "capabilities": [{"capability": "events", "state": True}]}},
                            {"execute": "migrate", "arguments": {"uri": f"file:{path}"}}):
                print(json.dumps(command), file=monitor, flush=True)
            for line in monitor:
                answer = json.loads(line)
                status = answer.get("data", {}).get("status") if answer.get("event") == "MIGRATION" else None
                if "error" in answer or status == "failed":
                    raise HostError(f"QEMU cannot save the emulated KVM host: {line.strip()}")
                if status == "completed":
                    return
        raise HostError(f"the emulated KVM host ended while it was saved:\n{self.last_words()}")


def _key_value(kind, **values):
    """QEMU's key=value form; a comma in a value is doubled."""
    return ",".join([kind, *(f"{key}={str(value).replace(',', ',,')}" for key, value in values.items())])


def saved_state(kit, directory, *, cpus, memory):
    """Path of a saved host that only needs to be told to go; made now if there is none."""
    version = tool(QEMU, "--version", problem="cannot run QEMU").splitlines()[0]
    key = _digest(kit.key, Path(__file__).read_text(), version, str(cpus), str(memory))
    path = CACHE / f"state-{key}"
    with _locked(CACHE / "state.lock"):
        if path.exists():
            return path
        _say("booting the emulated KVM host once, to start from there in future")
        partial = path.with_suffix(".partial")
        machine = Machine(kit, directory, cpus=cpus, memory=memory)
        try:
            machine.save(partial)
        finally:
            machine.end()
        partial.rename(path)
        forget_older(path, "state-*")
    return path
