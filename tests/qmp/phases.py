"""What an operator or a guest asks of a disk that has a job, in every phase of that job: the table in docs/jobs.md is
read, and each of its cells is played with a machine of its own. Part of run.py's suite.
"""

import asyncio
import unittest

from qemu.qmp import ExecuteError
from run import MIB, PATIENCE, ROOT, QmpTest, event, events_until

SIZE = 2 * MIB
# What a cell may say.
NOW, REFUSED, WAITS = "now", "refused", "waits"


def table() -> tuple[list[str], dict[str, list[str]]]:
    """The phases, and for each action what happens in each of them."""
    lines = iter((ROOT / "docs" / "jobs.md").read_text().splitlines())
    for line in lines:
        if line.startswith("| action |"):
            break
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    phases = [cell.strip("`") for cell in cells[1:]]
    next(lines)
    rows = {}
    for line in lines:
        if not line.startswith("|"):
            break
        action, *answers = [cell.strip() for cell in line.strip().strip("|").split("|")]
        rows[action] = answers
    return phases, rows


class Phases(QmpTest):
    """The disk `disk` is an IDE disk or a virtio disk, its job is `job`, the job's target `target`."""

    DRIVES = {
        "ide": [
            *("-drive", "file=source.img,format=raw,if=none,id=disk"),
            *("-device", "ide-hd,drive=disk,id=front"),
        ],
        "virtio": [
            *("-object", "iothread,id=io0"),
            *("-drive", "file=source.img,format=raw,if=none,id=disk"),
            *("-device", "virtio-blk-pci,drive=disk,id=front,iothread=io0,addr=5"),
        ],
    }
    arguments = ()
    # After this many seconds an action counts as one that hangs.
    patience = PATIENCE

    def prepare(self) -> None:
        self.machine.image("source.img", SIZE, 0x5A)
        self.machine.arguments += self.DRIVES[self.bus]

    async def node(self) -> str:
        (disk,) = [disk for disk in await self.client.execute("query-block") if disk["device"] == "disk"]
        return disk["inserted"]["node-name"]

    # The phases.

    async def begin(self, kind: str, **more) -> None:
        self.machine.image("target.img", SIZE)
        file = {"driver": "raw", "file": {"driver": "file", "filename": "target.img"}}
        await self.client.execute("blockdev-add", {"driver": "blkdebug", "node-name": "target", "image": file})
        arguments = {"device": "disk", "target": "target", "sync": "full", "job-id": "job", "auto-dismiss": False}
        await self.client.execute(f"blockdev-{kind}", {**arguments, **more})

    async def state(self, state: str) -> None:
        while (await self.client.execute("query-jobs"))[0]["status"] != state:
            await asyncio.sleep(0.005)

    async def reach(self, kind: str, phase: str) -> None:
        if phase in ("running", "paused"):
            await self.begin(kind, speed=1)
            if phase == "paused":
                await self.client.execute("job-pause", {"id": "job"})
        elif phase in ("ready", "standby"):
            await self.begin(kind)
            await event(self.client, "BLOCK_JOB_READY")
            if phase == "standby":
                await self.client.execute("job-pause", {"id": "job"})
        elif phase == "pending":
            await self.begin(kind, **{"auto-finalize": False})
            await self.complete(kind)
            await event(self.client, "BLOCK_JOB_PENDING")
        elif phase == "pivoting":
            await self.begin(kind)
            held = {"node-name": "target", "event": "pivot_clean", "tag": "pivot"}
            await self.client.execute("x-debug-break", held)
            await self.complete(kind)
            await self.client.execute("x-debug-wait-break", {"node-name": "target", "tag": "pivot"})
            return
        else:
            await self.begin(kind)
            await self.complete(kind)
        await self.state(phase)

    async def complete(self, kind: str) -> None:
        if kind == "mirror":
            await event(self.client, "BLOCK_JOB_READY")
            await self.client.execute("job-complete", {"id": "job"})

    # The actions. Each raises if it is refused.

    async def system_reset(self, client) -> None:
        await client.execute("system_reset")

    async def stop_and_cont(self, client) -> None:
        await client.execute("stop")
        await client.execute("cont")

    async def quit(self, client) -> None:
        await client.execute("quit")
        assert await self.machine.exit_status() == 0

    async def block_resize(self, client) -> None:
        await client.execute("block_resize", {"node-name": await self.node(), "size": SIZE + 512})

    async def second_job(self, client) -> None:
        self.machine.image("second.img", SIZE)
        file = {"driver": "file", "filename": "second.img", "node-name": "second"}
        await client.execute("blockdev-add", file)
        arguments = {"device": await self.node(), "target": "second", "sync": "full", "job-id": "second"}
        await client.execute("blockdev-backup", arguments)

    async def change_target(self, client) -> None:
        await client.execute("block_resize", {"node-name": "target", "size": SIZE + 512})

    async def unplug(self, client) -> None:
        if self.bus == "ide":
            with self.assertRaises(ExecuteError) as caught:
                await client.execute("device_del", {"id": "front"})
            self.assertIn("Bus 'ide.0' does not support hotplugging", str(caught.exception))
            return
        (job,) = await client.execute("query-jobs")
        await client.execute("device_del", {"id": "front"})
        self.machine.drive()
        self.machine.qtest.sendall(b"outl 0xae08 0x20\n")
        deleted = {"device": "front", "path": "/machine/peripheral/front"}
        is_gone = lambda found: found["event"] == "DEVICE_DELETED" and found["data"] == deleted
        await events_until(client, is_gone, "DEVICE_DELETED")
        assert await client.execute("query-block") == []
        (left,) = await client.execute("query-jobs")
        assert (left["id"], left["status"]) == (job["id"], job["status"]), left

    async def plug(self, client) -> None:
        self.machine.image("other.img", SIZE)
        file = {"driver": "file", "filename": "other.img", "node-name": "other"}
        await client.execute("blockdev-add", file)
        await client.execute("device_add", {"driver": "virtio-blk-pci", "drive": "other"})

    async def dirty_bitmap(self, client) -> None:
        await client.execute("block-dirty-bitmap-add", {"node": "disk", "name": "b"})

    async def transaction(self, client) -> None:
        add = {"node": "disk", "name": "b"}
        await client.execute("transaction", {"actions": [{"type": "block-dirty-bitmap-add", "data": add}]})

    ACTIONS = {
        "guest or operator resets the machine (`system_reset`)": system_reset,
        "`stop`, `cont`": stop_and_cont,
        "`quit`, the guest's power-off": quit,
        "`block_resize` of the disk": block_resize,
        "a second job on the disk": second_job,
        "`block_resize` of the target": change_target,
        "`device_del` of the disk, and its guest ejects it (virtio; an IDE disk stays)": unplug,
        "`device_add` of another disk": plug,
        "`block-dirty-bitmap-add` to the disk": dirty_bitmap,
        "`transaction` about the disk": transaction,
    }

    async def play(self, kind: str, phase: str, action: str, answer: str) -> None:
        if phase != "pivoting":
            self.assertNotEqual(answer, WAITS, "there is no pivot that it could wait for")
        await self.reach(kind, phase)
        other = await self.another()
        acting = asyncio.create_task(self.ACTIONS[action](self, other))
        if phase == "pivoting":
            if answer == WAITS:
                # Others are answered meanwhile, and it is not.
                for _ in range(20):
                    await self.client.execute("query-status")
                    await asyncio.sleep(0.005)
                self.assertFalse(acting.done(), "it did not wait for the pivot")
            elif action.startswith("`quit`"):
                raise AssertionError("the program may not end inside a pivot")
            else:
                await self.end_of(acting, answer)
            await self.client.execute("x-debug-resume", {"node-name": "target", "tag": "pivot"})
        await self.end_of(acting, answer)

    async def end_of(self, acting: asyncio.Task, answer: str) -> None:
        if answer != REFUSED:
            await asyncio.wait_for(acting, self.patience)
            return
        with self.assertRaises(ExecuteError) as caught:
            await asyncio.wait_for(acting, self.patience)
        self.assertIn("is busy", str(caught.exception))


def phases_of(kind: str) -> set[str]:
    only_mirrors = {"ready", "standby", "pivoting"}
    return set(table()[0]) - (only_mirrors if kind == "backup" else set())


class WrongCells(Phases):
    """Cells that say something else than the table does."""

    bus = "ide"
    # None of these waits for anything that comes.
    patience = 3

    # For what a cell says, in which phases, and what it says then.
    WRONG = (
        (NOW, "running", REFUSED),
        (REFUSED, "running", NOW),
        (NOW, "running", WAITS),
        (NOW, "pivoting", WAITS),
        (NOW, "pivoting", REFUSED),
        (REFUSED, "pivoting", NOW),
        (WAITS, "pivoting", NOW),
        (WAITS, "pivoting", REFUSED),
    )

    async def is_noticed(self, phase: str, action: str, wrong: str) -> None:
        with self.assertRaises((AssertionError, ExecuteError, asyncio.TimeoutError)):
            await self.play("mirror", phase, action, wrong)

    @classmethod
    def load(cls, phases: list[str], rows: dict[str, list[str]]) -> unittest.TestSuite:
        """A test for each of them, with the first action that the table says something else of."""
        suite = unittest.TestSuite()
        for right, phase, wrong in cls.WRONG:
            place = phases.index(phase)
            # The end of the program is no action that could be asked about in the middle of a pivot.
            found = [name for name, answers in rows.items() if answers[place] == right and "quit" not in name]

            async def test(self, phase=phase, action=found[0], wrong=wrong):
                await self.is_noticed(phase, action, wrong)

            name = f"test that it is noticed if {found[0]} while a mirror is {phase} were not {right} but {wrong}"
            suite.addTest(type("WrongCells", (cls,), {name: test})(name))
        return suite


def load(loader: unittest.TestLoader) -> unittest.TestSuite:
    """A test for each cell, each kind of job and each kind of disk."""
    suite = unittest.TestSuite()
    phases, rows = table()
    assert set(rows) == set(Phases.ACTIONS), "the table and the tests name different actions"
    suite.addTest(WrongCells.load(phases, rows))
    for bus in Phases.DRIVES:
        for kind in ("backup", "mirror"):
            for action, answers in rows.items():
                for phase, answer in zip(phases, answers, strict=True):
                    if phase not in phases_of(kind):
                        continue
                    assert answer in (NOW, REFUSED, WAITS), f"{action} × {phase}: {answer}"

                    async def test(self, kind=kind, phase=phase, action=action, answer=answer):
                        await self.play(kind, phase, action, answer)

                    name = f"test {action} while a {kind} is {phase}: {answer} ({bus})"
                    case = type("Phases", (Phases,), {"bus": bus, name: test})
                    suite.addTest(case(name))
    return suite
