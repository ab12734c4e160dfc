#!/usr/bin/env python3
"""Drives the real program over its QMP socket with the public client `qemu.qmp`, unchanged.

Usage: tests/qmp/run.py [unittest options]

The machine is run by qtest, so no KVM is needed. The program is $SLUICE_BINARY, or else the debug
build, which is made first, with the features that $SLUICE_FEATURES names. Ends with 1 if a test failed.
"""

import asyncio
import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

try:
    from qemu.qmp import ExecuteError
except ImportError:
    sys.exit("tests/qmp: the client is missing: python3 -m pip install qemu.qmp==0.0.6 (or run ci/install-deps)")

from truth import Client

ROOT = Path(__file__).resolve().parent.parent.parent
TARGET = "x86_64-unknown-linux-gnu"
MIB = 1 << 20
# A test that hangs fails after this many seconds.
PATIENCE = 60


def build() -> Path:
    """Builds the program and returns its path."""
    features = os.environ.get("SLUICE_FEATURES", "")
    command = ["cargo", "build", "--quiet", "--locked", "--package", "sluice-vmm", "--bin", "sluice", "--features", features]
    subprocess.run(command, cwd=ROOT, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return target / TARGET / "debug" / "sluice"


BINARY = Path(os.environ["SLUICE_BINARY"]) if "SLUICE_BINARY" in os.environ else build()


class Machine:
    """A running program in a directory of its own."""

    def __init__(self, *arguments: str):
        self.directory = Path(tempfile.mkdtemp(prefix="sluice-qmp-"))
        self.socket = self.directory / "qmp"
        self.arguments = [
            *(str(BINARY), "-accel", "qtest", "-qtest", "unix:qtest,server=on", "-qtest-log", "none", "-nodefaults", "-name", "tested"),
            *("-qmp", "unix:qmp,server=on,wait=off"),
            *arguments,
        ]
        self.process: subprocess.Popen | None = None
        self.qtest: socket.socket | None = None

    def image(self, name: str, size: int, byte: int = 0) -> Path:
        path = self.directory / name
        path.write_bytes(bytes([byte]) * size)
        return path

    async def start(self, inherited: tuple[int, ...] = (), stdio: socket.socket | None = None) -> None:
        """Starts it with these descriptors, and with that socket for standard input and output."""
        with open(self.directory / "log", "wb") as log:
            self.process = subprocess.Popen(
                self.arguments, cwd=self.directory, stdin=stdio, stdout=stdio or log, stderr=log, pass_fds=inherited
            )
        while not self.is_listening():
            self.drive()
            if self.process.poll() is not None:
                raise AssertionError(f"the program ended with {self.process.returncode}: {self.log()}")
            await asyncio.sleep(0.01)

    def drive(self) -> None:
        """Takes the test's place at the qtest socket, which the program may wait for."""
        if self.qtest:
            return
        driver = socket.socket(socket.AF_UNIX)
        try:
            driver.connect(str(self.directory / "qtest"))
            self.qtest = driver
        except OSError:
            driver.close()

    def is_listening(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
            return True

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    async def client(self, name: str = "test") -> Client:
        client = Client(name)
        await client.connect(str(self.socket))
        return client

    async def exit_status(self) -> int:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, lambda: self.process.wait(PATIENCE))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.qtest:
            self.qtest.close()
            self.qtest = None

    def clean_up(self) -> None:
        if self.process and self.process.poll() is None:
            self.kill()
        if self.qtest:
            self.qtest.close()
        shutil.rmtree(self.directory)


class Terminal:
    """A program with a terminal of its own, as a person has it."""

    def __init__(self, *arguments: str, directory: Path):
        ours, theirs = pty.openpty()
        try:
            self.process = subprocess.Popen(
                arguments, cwd=directory, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
                env={**os.environ, "HOME": str(directory), "TERM": "dumb"},
            )
        finally:
            os.close(theirs)
        self.terminal = ours
        self.unread = ""

    def read_until(self, end: str | None) -> str:
        """What is printed up to `end`, and with it; without one all until the program's end."""
        deadline = time.monotonic() + PATIENCE
        while end is None or end not in self.unread:
            ready, _, _ = select.select([self.terminal], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise AssertionError(f"no {end!r} after {self.unread!r}")
            try:
                self.unread += os.read(self.terminal, 4096).decode()
            except OSError:  # EIO: nobody has the other side any more
                if end is None:
                    break
                raise AssertionError(f"the program ended before {end!r}, with {self.unread!r}") from None
        length = len(self.unread) if end is None else self.unread.index(end) + len(end)
        text, self.unread = self.unread[:length], self.unread[length:]
        return text

    def enter(self, line: str, answer: str | None) -> str:
        os.write(self.terminal, f"{line}\n".encode())
        return self.read_until(answer)

    def clean_up(self) -> None:
        if self.process.poll() is None:
            # The program, and what it has started.
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.terminal)


async def events_until(client: Client, wanted, name: str) -> list[dict]:
    """All events up to the first one for which `wanted` holds."""
    seen = []
    while True:
        try:
            event = await asyncio.wait_for(client.events.get(), PATIENCE)
        except asyncio.TimeoutError:
            raise AssertionError(f"no {name} after {seen}") from None
        seen.append(event)
        if wanted(event):
            return seen


async def event(client: Client, name: str) -> dict:
    return (await events_until(client, lambda event: event["event"] == name, name))[-1]


def status_is(job: str, status: str):
    return lambda event: event["event"] == "JOB_STATUS_CHANGE" and event["data"] == {"id": job, "status": status}


class QmpTest(unittest.IsolatedAsyncioTestCase):
    """One machine for each test."""

    arguments: tuple[str, ...] = ()

    async def asyncSetUp(self) -> None:
        # The loop is in debug mode here and would report every test that takes its time.
        asyncio.get_running_loop().slow_callback_duration = PATIENCE
        self.machine = Machine(*self.arguments)
        self.addCleanup(self.machine.clean_up)
        self.prepare()
        await self.machine.start()
        self.clients: list[Client] = []
        self.client = await self.another()

    def prepare(self) -> None:
        """Makes the images that the machine is started with."""

    async def another(self) -> Client:
        client = await self.machine.client()
        self.clients.append(client)
        return client

    async def asyncTearDown(self) -> None:
        for client in self.clients:
            try:
                await client.disconnect()
            except (EOFError, OSError):
                pass  # the machine has ended
            client.check_all()

    async def refused(self, command: str, arguments: dict | None = None) -> tuple[str, str]:
        with self.assertRaises(ExecuteError) as caught:
            await self.client.execute(command, arguments)
        return caught.exception.error_class, str(caught.exception)


class Control(QmpTest):
    arguments = ("-object", "iothread,id=io0")

    async def test_what_the_machine_is(self) -> None:
        self.assertEqual(await self.client.execute("query-name"), {"name": "tested"})
        self.assertEqual(await self.client.execute("query-kvm"), {"enabled": False, "present": True})
        version = await self.client.execute("query-version")
        self.assertIn("sluice", version["package"])
        threads = await self.client.execute("query-iothreads")
        self.assertEqual([thread["id"] for thread in threads], ["io0"])
        # The kernel knows the thread by this number.
        names = Path(f"/proc/{self.machine.process.pid}/task/{threads[0]['thread-id']}/comm").read_text()
        self.assertEqual(names.strip(), "io0")

    async def test_every_command_can_be_asked_for(self) -> None:
        names = {command["name"] for command in await self.client.execute("query-commands")}
        self.assertLessEqual(
            {"qmp_capabilities", "query-status", "stop", "cont", "quit", "blockdev-add", "blockdev-del",
             "drive-mirror", "blockdev-mirror", "block-job-complete", "query-jobs", "query-block"},
            names,
        )

    async def shell(self, option: str, lines: tuple[str, ...]) -> str:
        """What the public client's shell prints. Unlike a person's, its lines come from a pipe."""
        shell = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "qemu.qmp.qmp_shell", option, str(self.machine.socket)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "HOME": str(self.machine.directory)},
        )
        output, _ = await asyncio.wait_for(shell.communicate("".join(f"{line}\n" for line in lines).encode()), PATIENCE)
        text = output.decode()
        self.assertEqual(shell.returncode, 0, text)
        return text

    async def test_the_shell_of_the_public_client(self) -> None:
        lines = (
            "query-status",
            "blockdev-add driver=null-co node-name=n size=1048576",
            'blockdev-reopen options=[{"driver":"null-co","node-name":"n","size":1048576,"read-only":true}]',
            "query-named-block-nodes",
            "blockdev-del node-name=m",
        )
        text = await self.shell("-v", lines)
        self.assertIn("running", text)
        self.assertIn("Failed to find node with node-name='m'", text)
        (node,) = await self.client.execute("query-named-block-nodes")
        self.assertEqual((node["node-name"], node["ro"]), ("n", True), text)

    async def test_the_shell_for_people(self) -> None:
        """With -H its lines are those of the human monitor, whose help it reads first."""
        lines = ("info status", "info block-jobs", "block_job_cancel nobody", "stop", "info status")
        text = await self.shell("-H", lines)
        for expected in (
            "Welcome to the HMP shell!", "VM status: running", "No active jobs", "Error: Block job 'nobody' not found",
            "VM status: paused",
        ):
            self.assertIn(expected, text)

    async def test_stop_and_cont_with_their_events(self) -> None:
        watcher = await self.another()
        await self.client.execute("stop")
        self.assertEqual(await self.client.execute("query-status"), {"running": False, "status": "paused"})
        await self.client.execute("cont")
        self.assertEqual(await self.client.execute("query-status"), {"running": True, "status": "running"})
        for client in (self.client, watcher):
            await event(client, "STOP")
            await event(client, "RESUME")

    async def test_reset_is_an_event(self) -> None:
        await self.client.execute("system_reset")
        reset = await event(self.client, "RESET")
        self.assertEqual(reset["data"], {"guest": False, "reason": "host-qmp-system-reset"})

    async def test_quit_ends_the_process_and_leaves_no_socket(self) -> None:
        await self.client.execute("quit")
        shutdown = await event(self.client, "SHUTDOWN")
        self.assertEqual(shutdown["data"], {"guest": False, "reason": "host-qmp-quit"})
        self.assertEqual(await self.machine.exit_status(), 0)
        self.assertFalse(self.machine.socket.exists())

    async def test_a_signal_ends_the_process_in_order(self) -> None:
        self.machine.process.send_signal(signal.SIGTERM)
        shutdown = await event(self.client, "SHUTDOWN")
        self.assertEqual(shutdown["data"]["reason"], "host-signal")
        self.assertEqual(await self.machine.exit_status(), 0)
        self.assertFalse(self.machine.socket.exists())

    async def test_errors_have_class_and_words(self) -> None:
        self.assertEqual(
            await self.refused("no-such-command"),
            ("CommandNotFound", "The command no-such-command has not been found"),
        )
        self.assertEqual(await self.refused("stop", {"x": 1}), ("GenericError", "Parameter 'x' is unexpected"))
        self.assertEqual(
            await self.refused("block-job-cancel", {"device": "j"}),
            ("DeviceNotActive", "Block job 'j' not found"),
        )


class IoThreads(QmpTest):
    arguments = (
        *("-object", "iothread,id=io0", "-object", "iothread,id=idle"),
        *("-blockdev", "null-co,node-name=null,read-zeroes=on"),
        *("-device", "virtio-blk-pci,id=disk,drive=null,iothread=io0"),
    )

    async def ids(self) -> list[str]:
        return [thread["id"] for thread in await self.client.execute("query-iothreads")]

    async def test_a_thread_that_a_disk_uses_stays(self) -> None:
        kind, text = await self.refused("object-del", {"id": "io0"})
        self.assertEqual((kind, text), ("GenericError", "object 'io0' is in use, can not be deleted"))
        await self.client.execute("object-del", {"id": "idle"})
        self.assertEqual(await self.ids(), ["io0"])
        # The disk is served as before.
        command = {"command-line": 'qemu-io -d disk "read -P 0 0 4096"', "x-output": True}
        answer = await self.client.execute("human-monitor-command", command)
        self.assertTrue(answer.startswith("read 4096/4096 bytes at offset 0"), answer)


class RawSocket(QmpTest):
    """What no proper client would send."""

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        connection.connect(str(self.machine.socket))
        self.addCleanup(connection.close)
        return connection

    def lines(self, connection: socket.socket, count: int) -> list[dict]:
        received = b""
        while received.count(b"\r\n") < count:
            received += connection.recv(65536)
        said = [json.loads(line) for line in received.split(b"\r\n")[:count]]
        for message in said:
            if "event" in message:
                self.client.schema.check_event(message)
            elif "QMP" not in message:
                self.client.schema.check_envelope(message)
        return said

    def talk(self, request: bytes, replies: int) -> list[dict]:
        connection = self.connect()
        connection.sendall(b"{'execute':'qmp_capabilities'}" + request)
        return self.lines(connection, 2 + replies)[2:]

    async def test_malformed_and_oversized_json(self) -> None:
        for request, expected in (
            (b"{'execute': oops}", "JSON parse error, invalid keyword 'oops'"),
            (b"[" * 2000 + b"]" * 2000, "JSON nesting depth limit exceeded"),
            (b"{'execute':'\n", "JSON parse error, stray ''\n'"),
            (b"{'execute':\xff", "JSON parse error, stray '\\xff'"),
            (b"}", "JSON parse error, expecting value"),
            (b"[]", "QMP input must be a JSON object"),
        ):
            with self.subTest(request=request[:20]):
                error, status = self.talk(request + b"{'execute':'query-status','id':1}", 2)
                self.assertEqual(error["error"], {"class": "GenericError", "desc": expected})
                self.assertEqual(status["id"], 1)

    async def test_a_message_that_is_too_large(self) -> None:
        connection = self.connect()
        connection.sendall(b"{'execute':'qmp_capabilities'}{'execute':'")
        for _ in range(65):
            connection.sendall(b"x" * MIB)
        connection.sendall(b"'}{'execute':'query-status'}")
        _, _, error, status = self.lines(connection, 4)
        self.assertEqual(error["error"]["desc"], "JSON token size limit exceeded")
        self.assertEqual(status["return"]["status"], "running")

    async def test_clients_that_vanish(self) -> None:
        for _ in range(100):
            connection = self.connect()
            connection.sendall(b"{'execute':'qmp_capabilities'}{'execute':'query-comm")
            connection.close()
        self.assertEqual((await self.client.execute("query-status"))["running"], True)


class Nodes(QmpTest):
    def file_node(self, name: str, path: Path) -> dict:
        return {"driver": "raw", "node-name": name, "file": {"driver": "file", "filename": str(path)}}

    async def test_nodes_come_and_go(self) -> None:
        path = self.machine.image("a.img", MIB)
        await self.client.execute("blockdev-add", self.file_node("a", path))
        nodes = {node["node-name"]: node for node in await self.client.execute("query-named-block-nodes")}
        self.assertEqual(nodes["a"]["image"]["virtual-size"], MIB)
        self.assertEqual(nodes["a"]["drv"], "raw")
        await self.client.execute("blockdev-del", {"node-name": "a"})
        self.assertEqual(await self.client.execute("query-named-block-nodes"), [])

    async def test_bad_images_are_named(self) -> None:
        directory = self.machine.directory / "directory"
        directory.mkdir()
        for path, expected in (
            (self.machine.directory / "missing", "No such file or directory"),
            (directory, str(directory)),
        ):
            kind, text = await self.refused("blockdev-add", self.file_node("a", path))
            self.assertEqual(kind, "GenericError")
            self.assertIn("Could not open", text)
            self.assertIn(str(path), text)
            self.assertIn(expected, text)
        self.assertEqual((await self.client.execute("query-status"))["running"], True)

    async def test_bad_arguments_are_named(self) -> None:
        for arguments, expected in (
            ({}, "Parameter 'driver' is missing"),
            ({"driver": "qcow9", "node-name": "a"}, "Parameter 'driver' does not accept value 'qcow9'"),
            ({"driver": "null-co"}, "'node-name' must be specified for the root node"),
            ({"driver": "null-co", "node-name": "a", "sise": 1}, "Parameter 'sise' is unexpected"),
            (
                {"driver": "null-co", "node-name": "a", "size": "1"},
                "Invalid parameter type for 'size', expected: integer",
            ),
            (
                {"driver": "raw", "node-name": "a", "file": {"driver": "file"}},
                "Parameter 'file.filename' is missing",
            ),
        ):
            self.assertEqual(await self.refused("blockdev-add", arguments), ("GenericError", expected))


class Mirrors(QmpTest):
    """The IDE disk of a machine is mirrored; its backend is `disk`."""

    SIZE = 4 * MIB

    def prepare(self) -> None:
        self.source = self.machine.image("source.img", self.SIZE, 0x5A)
        self.machine.arguments += ["-drive", "file=source.img,format=raw,if=ide,id=disk"]

    async def add_target(self, name: str = "target", size: int = SIZE) -> Path:
        path = self.machine.image(f"{name}.img", size)
        file = {"driver": "file", "filename": str(path)}
        await self.client.execute("blockdev-add", {"driver": "raw", "node-name": name, "file": file})
        return path

    async def inserted(self) -> str:
        (disk,) = [disk for disk in await self.client.execute("query-block") if disk["device"] == "disk"]
        return disk["inserted"]["image"]["filename"]

    async def test_blockdev_mirror_pivots(self) -> None:
        target = await self.add_target()
        watcher = await self.another()
        await self.client.execute(
            "blockdev-mirror", {"device": "disk", "target": "target", "sync": "full", "job-id": "job"}
        )
        ready = await event(self.client, "BLOCK_JOB_READY")
        self.assertEqual(ready["data"]["device"], "job")
        self.assertEqual((await self.client.execute("query-block-jobs"))[0]["ready"], True)
        self.assertEqual(await self.inserted(), str(self.source.name))
        await self.client.execute("block-job-complete", {"device": "job"})
        story = await events_until(watcher, status_is("job", "null"), "end of the job")
        states = [e["data"]["status"] for e in story if e["event"] == "JOB_STATUS_CHANGE"]
        rests = ("paused", "standby")
        without_rests = [state for i, state in enumerate(states)
                         if state not in rests and not (i and states[i - 1] in rests)]
        self.assertEqual(
            without_rests, ["created", "running", "ready", "waiting", "pending", "concluded", "null"], states
        )
        (completed,) = [e for e in story if e["event"] == "BLOCK_JOB_COMPLETED"]
        self.assertNotIn("error", completed["data"])
        self.assertEqual(completed["data"]["offset"], completed["data"]["len"])
        self.assertEqual(await self.inserted(), str(target))
        self.assertEqual(target.read_bytes(), self.source.read_bytes())
        self.assertEqual(await self.client.execute("query-jobs"), [])

    async def test_drive_mirror_and_cancel_keeps_the_source(self) -> None:
        target = self.machine.directory / "copy.img"
        await self.client.execute(
            "drive-mirror", {"device": "disk", "target": str(target), "sync": "full", "format": "raw"}
        )
        # Without a job-id the job has the disk's name.
        self.assertEqual((await event(self.client, "BLOCK_JOB_READY"))["data"]["device"], "disk")
        await self.client.execute("block-job-cancel", {"device": "disk"})
        await event(self.client, "BLOCK_JOB_COMPLETED")
        self.assertEqual(await self.inserted(), str(self.source.name))
        self.assertEqual(target.read_bytes(), self.source.read_bytes())

    async def test_a_forced_cancel(self) -> None:
        await self.add_target()
        await self.client.execute(
            "blockdev-mirror", {"device": "disk", "target": "target", "sync": "full", "job-id": "job", "speed": 1}
        )
        await self.client.execute("block-job-cancel", {"device": "job", "force": True})
        await event(self.client, "BLOCK_JOB_CANCELLED")
        await self.client.execute("blockdev-del", {"node-name": "target"})

    async def test_manual_finalize_and_dismiss(self) -> None:
        await self.add_target()
        await self.client.execute(
            "blockdev-mirror",
            {"device": "disk", "target": "target", "sync": "full", "job-id": "job",
             "auto-finalize": False, "auto-dismiss": False},
        )
        await event(self.client, "BLOCK_JOB_READY")
        await self.client.execute("job-complete", {"id": "job"})
        pending = await event(self.client, "BLOCK_JOB_PENDING")
        self.assertEqual(pending["data"], {"type": "mirror", "id": "job"})
        self.assertEqual(await self.inserted(), str(self.source.name))
        await self.client.execute("job-finalize", {"id": "job"})
        await events_until(self.client, status_is("job", "concluded"), "conclusion")
        self.assertEqual((await self.client.execute("query-jobs"))[0]["status"], "concluded")
        await self.client.execute("job-dismiss", {"id": "job"})
        self.assertEqual(await self.client.execute("query-jobs"), [])

    async def test_sync_none_is_ready_at_once(self) -> None:
        target = await self.add_target()
        await self.client.execute(
            "blockdev-mirror", {"device": "disk", "target": "target", "sync": "none", "job-id": "job"}
        )
        await event(self.client, "BLOCK_JOB_READY")
        self.assertEqual(target.read_bytes(), bytes(self.SIZE))
        await self.client.execute("job-cancel", {"id": "job"})
        await event(self.client, "BLOCK_JOB_CANCELLED")

    async def test_the_job_survives_its_client(self) -> None:
        await self.add_target()
        starter = await self.another()
        await starter.execute(
            "blockdev-mirror", {"device": "disk", "target": "target", "sync": "full", "job-id": "job", "speed": 1}
        )
        self.clients.remove(starter)
        await starter.disconnect()
        self.assertEqual((await self.client.execute("query-jobs"))[0]["id"], "job")
        await self.client.execute("block-job-set-speed", {"device": "job", "speed": 0})
        await event(self.client, "BLOCK_JOB_READY")
        await self.client.execute("block-job-complete", {"device": "job"})
        await event(self.client, "BLOCK_JOB_COMPLETED")

    async def test_mirrors_that_make_no_sense(self) -> None:
        await self.add_target()
        await self.add_target("small", MIB)
        (root,) = [
            disk["inserted"]["node-name"] for disk in await self.client.execute("query-block")
            if disk["device"] == "disk"
        ]
        for arguments, expected in (
            ({"device": "none", "target": "target"}, "Cannot find device='none' nor node-name='none'"),
            ({"device": "disk", "target": "none"}, "Cannot find device='none' nor node-name='none'"),
            ({"device": "disk", "target": "small"}, "different sizes"),
            ({"device": "disk", "target": root}, "itself"),
        ):
            kind, text = await self.refused("blockdev-mirror", {**arguments, "sync": "full", "job-id": "job"})
            self.assertEqual(kind, "GenericError")
            self.assertIn(expected, text)
        await self.copies_that_touch_no_file()
        # The source's own file as the target: neither truncated nor copied onto.
        await self.refused("drive-mirror", {"device": "disk", "target": str(self.source), "sync": "full"})
        self.assertEqual(self.source.read_bytes(), bytes([0x5A]) * self.SIZE)
        self.assertEqual(await self.client.execute("query-jobs"), [])

    async def copies_that_touch_no_file(self) -> None:
        """Whatever is found to be wrong, and however late."""
        await self.client.execute("blockdev-add", {"driver": "null-co", "node-name": "huge", "size": 1 << 50})
        before = await self.client.execute("query-named-block-nodes")
        content = bytes([7]) * (2 * self.SIZE)
        precious, new = (self.source.parent / name for name in ("precious", "new"))
        for command, extra, expected in (
            ("drive-mirror", {"node-name": "target"}, "Duplicate nodes"),
            ("drive-mirror", {"node-name": "1"}, "Invalid node-name"),
            ("drive-mirror", {"node-name": "good", "replaces": "small"}, "small"),
            ("drive-mirror", {"device": "huge", "granularity": 512}, "granularity"),
            ("drive-backup", {"filter-node-name": "target"}, "Duplicate nodes"),
            ("drive-backup", {"filter-node-name": "1"}, "Invalid node-name"),
            ("drive-backup", {"x-perf": {"min-cluster-size": 1 << 40}}, "min-cluster-size too large: 1099511627776 > 2147483648"),
        ):
            for path in (precious, new):
                precious.write_bytes(content)
                arguments = {"device": "disk", "target": str(path), "sync": "full", "job-id": "job", **extra}
                _, text = await self.refused(command, arguments)
                self.assertIn(expected, text)
                self.assertEqual(precious.read_bytes(), content, text)
                self.assertFalse(new.exists(), text)
        for later, expected in (
            ({"type": "abort", "data": {}}, "aborted"),
            ({"type": "block-dirty-bitmap-remove", "data": {"node": "disk", "name": "none"}}, "'none'"),
            ({"type": "blockdev-backup", "data": {"device": "disk", "target": "target", "sync": "full"}}, "busy"),
        ):
            for path in (precious, new):
                for old in (content, content[:512]):
                    precious.write_bytes(old)
                    backup = {"device": "disk", "target": str(path), "sync": "full", "job-id": "job"}
                    actions = [{"type": "drive-backup", "data": backup}, later]
                    _, text = await self.refused("transaction", {"actions": actions})
                    self.assertIn(expected, text)
                    self.assertEqual(precious.read_bytes(), old, text)
                    self.assertFalse(new.exists(), text)
        self.assertEqual(await self.client.execute("query-named-block-nodes"), before)
        for command in ("drive-mirror", "drive-backup"):
            for name, protocol in (("nbd:localhost:10809", "nbd"), ('json:{"driver":"nbd"}', "json")):
                for mode in ("absolute-paths", "existing"):
                    arguments = {"device": "disk", "target": name, "sync": "full", "job-id": "job", "mode": mode}
                    _, text = await self.refused(command, arguments)
                    self.assertTrue(text.startswith(f"Unknown protocol '{protocol}'; "), text)
        await self.client.execute("blockdev-del", {"node-name": "huge"})

    async def test_quit_in_the_middle_of_a_mirror(self) -> None:
        await self.add_target()
        await self.client.execute(
            "blockdev-mirror", {"device": "disk", "target": "target", "sync": "full", "job-id": "job", "speed": 1}
        )
        await self.client.execute("quit")
        await event(self.client, "SHUTDOWN")
        self.assertEqual(await self.machine.exit_status(), 0)
        self.assertEqual(self.source.read_bytes(), bytes([0x5A]) * self.SIZE)


class Start(unittest.TestCase):
    """Command lines that can't work: one line that names the thing, and an exit status for it."""

    USAGE = 2
    SETUP = 8

    def setUp(self) -> None:
        self.machine = Machine()
        self.addCleanup(self.machine.clean_up)

    def fails(self, *arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [*self.machine.arguments, *arguments],
            cwd=self.machine.directory, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )
        return done.returncode, done.stderr

    def check(self, status: int, *expected: str, arguments: tuple[str, ...]) -> None:
        code, text = self.fails(*arguments)
        self.assertEqual(code, status, text)
        for part in expected:
            self.assertIn(part, text)
        self.assertNotIn("panicked", text)

    def test_unknown_and_contradictory_options(self) -> None:
        self.check(self.USAGE, "--frobnicate", arguments=("--frobnicate",))
        self.check(self.USAGE, "'wibble' is unexpected", arguments=("-drive", "file=x,wibble=1"))
        self.check(self.USAGE, "iothread 'io9'", "--object iothread,id=io9", arguments=(
            "-blockdev", "null-co,node-name=n", "-device", "virtio-blk-pci,drive=n,iothread=io9"))
        self.check(self.USAGE, "IDE bus 0, unit 0", arguments=(
            "-drive", "file=x,index=0", "-drive", "file=y,index=0"))

    def test_images_that_cannot_be_used(self) -> None:
        self.check(self.SETUP, "missing.img", "No such file", arguments=("-drive", "file=missing.img"))
        (self.machine.directory / "d").mkdir()
        self.check(self.SETUP, "'d'", arguments=("-drive", "file=d"))
        self.machine.image("small.img", 100)
        self.check(self.SETUP, "small.img", "100 bytes", arguments=("-drive", "file=small.img"))
        self.machine.image("odd.img", 513)
        self.check(self.SETUP, "odd.img", "513 bytes", arguments=("-drive", "file=odd.img"))
        self.machine.image("twice.img", MIB)
        twice = ("-drive", "file=twice.img")
        self.check(self.SETUP, "twice.img", "another node", arguments=twice * 2)

    def test_more_memory_than_there_is(self) -> None:
        self.check(self.SETUP, "guest memory", "-m", arguments=("-m", "100000G"))

    def test_two_devices_on_one_slot(self) -> None:
        self.check(self.USAGE, "PCI: slot 5 function 0", arguments=(
            "-blockdev", "null-co,node-name=a", "-device", "virtio-blk-pci,drive=a,addr=5",
            "-blockdev", "null-co,node-name=b", "-device", "virtio-blk-pci,drive=b,addr=5"))

    def test_a_path_that_is_taken(self) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.machine.socket))
            listener.listen()
            self.check(self.SETUP, "qmp", "taken", arguments=())
            # Its owner is still there.
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(self.machine.socket))

    def test_two_machines_on_one_path(self) -> None:
        """The second is a client, of a monitor: each would answer the other's answers for ever."""
        asyncio.run(self.machine.start())
        second = [
            *(str(BINARY), "-accel", "qtest", "-nodefaults", "-qmp", "unix:qmp", "-qmp", "unix:own"),
        ]
        directory = self.machine.directory
        with open(directory / "second", "wb") as log:
            process = subprocess.Popen(second, cwd=directory, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + PATIENCE
            while "a monitor itself" not in (directory / "second").read_text():
                self.assertIsNone(process.poll(), (directory / "second").read_text())
                self.assertLess(time.monotonic(), deadline, "no word of the first machine's monitor")
                time.sleep(0.01)
        finally:
            process.terminate()
            process.wait(PATIENCE)
        self.assertTrue(self.machine.is_listening())

    def test_a_path_that_is_no_socket(self) -> None:
        self.machine.socket.write_text("precious")
        self.check(self.SETUP, "qmp", "not a socket", arguments=())
        self.assertEqual(self.machine.socket.read_text(), "precious")

    def test_help_and_version(self) -> None:
        for option, expected in (("--help", "Examples:"), ("-version", "sluice ")):
            done = subprocess.run([str(BINARY), option], capture_output=True, text=True, timeout=PATIENCE, check=False)
            self.assertEqual(done.returncode, 0)
            self.assertIn(expected, done.stdout)


class Places(unittest.IsolatedAsyncioTestCase):
    """The client by other ways than the path of a socket."""

    async def asyncSetUp(self) -> None:
        # As in QmpTest.
        asyncio.get_running_loop().slow_callback_duration = PATIENCE

    def machine(self, *arguments: str) -> Machine:
        machine = Machine(*arguments)
        self.addCleanup(machine.clean_up)
        return machine

    async def check(self, client: Client) -> None:
        """The machine answers, says what happens, and refuses in the usual way."""
        self.addAsyncCleanup(client.disconnect)
        self.assertEqual((await client.execute("query-status"))["status"], "running")
        await client.execute("stop")
        await event(client, "STOP")
        with self.assertRaises(ExecuteError):
            await client.execute("no-such-command")

    async def test_by_tcp(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        machine = self.machine("-qmp", f"tcp:127.0.0.1:{port},server=on,wait=off")
        await machine.start()
        client = Client("tcp")
        await client.connect(("127.0.0.1", port))
        await self.check(client)

    async def test_by_an_inherited_socket(self) -> None:
        ours, theirs = socket.socketpair()
        machine = self.machine("-chardev", f"socket,id=inherited,fd={theirs.fileno()}", "-mon", "inherited,mode=control")
        await machine.start(inherited=(theirs.fileno(),))
        theirs.close()
        client = Client("inherited")
        await client.connect(ours)
        await self.check(client)

    async def test_by_standard_input_and_output(self) -> None:
        """The client has no pipes, so both are a socket."""
        ours, theirs = socket.socketpair()
        machine = self.machine("-qmp", "stdio")
        await machine.start(stdio=theirs)
        theirs.close()
        client = Client("stdio")
        await client.connect(ours)
        await self.check(client)


class Outgoing(unittest.TestCase):
    def test_the_wrapper_of_the_public_client_starts_the_machine(self) -> None:
        """It listens itself, and says `-qmp unix:PATH` to the machine."""
        with tempfile.TemporaryDirectory(prefix="sluice-qmp-") as directory:
            wrapper = Terminal(
                *(str(Path(sys.executable).with_name("qmp-shell-wrap")), "-v"),
                *(str(BINARY), "-accel", "qtest", "-nodefaults", "-name", "wrapped"),
                directory=Path(directory),
            )
            try:
                greeting = wrapper.read_until("(QEMU) ")
                self.assertIn("Connected", greeting)
                self.assertIn('"name": "wrapped"', wrapper.enter("query-name", "(QEMU) "))
                self.assertIn('"status": "running"', wrapper.enter("query-status", "(QEMU) "))
                # The machine is at the wrapper's socket, and has none of its own.
                answer = wrapper.enter("query-chardev", "(QEMU) ")
                self.assertRegex(answer, r'"filename": "unix:qmp-shell-wrap-\d+"')
                self.assertIn('{"return": {}}', wrapper.enter("quit", "(QEMU) "))
                # Ctrl-D.
                wrapper.enter("\x04", None)
                # The client ends with an error of its own if it has heard that the machine is gone by then.
                self.assertIn(wrapper.process.wait(PATIENCE), (0, 1))
                self.assertEqual([path.name for path in Path(directory).iterdir() if path.is_socket()], [])
            finally:
                wrapper.clean_up()

    def test_the_machine_connects_to_a_listening_client(self) -> None:
        machine = Machine("-qmp", "unix:out,server=off")
        self.addCleanup(machine.clean_up)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.settimeout(PATIENCE)
            listener.bind(str(machine.directory / "out"))
            listener.listen()
            asyncio.run(machine.start())
            connection, _ = listener.accept()
            with connection, connection.makefile("rw") as stream:
                self.assertIn("QMP", json.loads(stream.readline()))
                print(json.dumps({"execute": "qmp_capabilities"}), file=stream, flush=True)
                self.assertEqual(json.loads(stream.readline()), {"return": {}})

    def test_nobody_listens(self) -> None:
        machine = Machine("-qmp", "unix:nobody,server=off")
        self.addCleanup(machine.clean_up)
        done = subprocess.run(
            machine.arguments, cwd=machine.directory, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        self.assertEqual(done.returncode, Start.SETUP, done.stderr)
        self.assertIn("nobody", done.stderr)


class StaleSocket(unittest.IsolatedAsyncioTestCase):
    async def test_the_socket_of_a_killed_machine_is_taken_over(self) -> None:
        machine = Machine()
        self.addCleanup(machine.clean_up)
        await machine.start()
        machine.kill()
        self.assertTrue(machine.socket.exists())
        (machine.directory / "qtest").unlink(missing_ok=True)
        await machine.start()
        client = await machine.client()
        self.assertEqual((await client.execute("query-status"))["running"], True)
        await client.disconnect()


def load_tests(loader: unittest.TestLoader, tests: unittest.TestSuite, _pattern) -> unittest.TestSuite:
    sys.modules.setdefault("run", sys.modules[__name__])
    import chain_phases
    import commands
    import phases

    tests.addTest(commands.load(loader))
    tests.addTest(phases.load(loader))
    tests.addTest(loader.loadTestsFromTestCase(chain_phases.Elsewhere))
    return tests


if __name__ == "__main__":
    unittest.main(verbosity=2)
