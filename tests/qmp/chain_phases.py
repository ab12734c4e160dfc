"""The cells of the action × phase table in docs/jobs.md for jobs on a backing chain: streams, and commits of both kinds. Their
images are in memory, which takes a program with test hooks: chains.py's suite.
"""

import asyncio
import unittest

from guest import SECTOR
from phases import OLD, PLACE, RECORD, SIZE, Phases, WrongCells, check_answer, rows_of, table

# What the middle image holds, which hides all of the lowest.
LAYER = 0x6B
# What images in memory can grow by.
CLUSTER = 4096
KINDS = ("stream", "commit", "active commit")


def differing() -> dict[tuple[str, str], list[str]]:
    """What is said of one kind of job alone, by that kind and the action."""
    _, rows = rows_of("job: action")
    return {tuple(name.split(": ", 1)): answers for name, answers in rows.items()}


class ChainPhases(Phases):
    """The disk stands on `disk`, which can hold the guest's writes, over `layer2` (empty), over `layer1` (all `LAYER`), over
    `base`, which is a file of `OLD`.
    """

    NODES = (
        *("-blockdev", "driver=blkdebug,node-name=below,image.driver=file,image.filename=source.img"),
        *("-blockdev", "driver=raw,node-name=base,file=below", "-blockdev", "driver=blkdebug,node-name=disk,image=base"),
    )
    DRIVES = {
        "ide": [*NODES, "-device", "ide-hd,drive=disk,id=front"],
        "virtio": [
            *("-object", "iothread,id=io0", *NODES),
            *("-device", "virtio-blk-pci,drive=disk,id=front,iothread=io0,addr=5"),
        ],
        "cd": [*NODES, "-device", "ide-cd,drive=disk,id=front"],
    }
    holders = {"base": "below"}
    holder, pivot, hanging = "disk", "below", "below"
    completed = ("active commit",)
    larger = SIZE + CLUSTER

    COMMANDS = {
        "stream": ("block-stream", {}),
        "commit": ("block-commit", {"top-node": "layer1", "base-node": "base"}),
        "active commit": ("block-commit", {}),
    }

    def is_nothing(self, act, kind: str, phase: str) -> bool:
        # The images that it leaves go back to the main loop, for which their job has to rest.
        moves = act is Phases.reopen_with_child and (kind, phase) == ("commit", "aborting")
        return super().is_nothing(act, kind, phase) or (moves and self.bus == "ide")

    async def node(self) -> str:
        (disk,) = await self.client.execute("query-block")
        return disk["inserted"]["node-name"]

    @property
    def target(self) -> str:
        return "layer2" if self.kind == "stream" else "base"

    async def copy(self, source: str, target: str) -> None:
        await self.client.execute("blockdev-backup", {"device": source, "target": target, "sync": "full", "job-id": "copy"})
        await self.alone()

    async def alone(self) -> None:
        """Until there is no job but the one that is tested."""
        while any(job["id"] != "job" for job in await self.client.execute("query-jobs")):
            await asyncio.sleep(0.005)

    async def stack_up(self) -> None:
        execute = self.client.execute
        self.machine.image("layer.img", SIZE, LAYER)
        await execute("blockdev-add", {"driver": "file", "filename": "layer.img", "node-name": "layer"})
        for below, layer in (("base", "layer1"), ("layer1", "layer2")):
            await execute("blockdev-add", {"driver": "x-overlay", "node-name": layer, "size": SIZE})
            if layer == "layer1":
                await self.copy("layer", layer)
            await execute("blockdev-snapshot", {"node": below, "overlay": layer})
        await execute("blockdev-del", {"node-name": "layer"})

    async def prepare_job(self, kind: str) -> tuple[str, dict]:
        self.kind = kind
        await self.stack_up()
        command, where = self.COMMANDS[kind]
        return command, {"device": "disk", "job-id": "job", "auto-dismiss": False, **where}

    # The actions that are others with these images.

    async def eject(self, client) -> None:
        await client.execute("eject", {"id": "front"})

    async def reopen(self, client, window: dict = {}, **more) -> None:
        # Only the lowest image has an offset, and all that is in it shows through those above.
        node = "base" if window else await self.node()
        options = {"driver": "raw", "file": "below"} if node == "base" else {"driver": "blkdebug", "image": "layer2"}
        if "child" in more:
            options["file" if node == "base" else "image"] = more.pop("child")
        await client.execute("blockdev-reopen", {"options": [{"node-name": node, **options, **window, **more}]})

    async def reopen_target(self, client, window: dict) -> None:
        await self.reopen(client, window)

    async def reopen_below_target(self, client) -> None:
        # What the base of a commit holds at its end.
        await self.another_image(client, LAYER)
        options = {"node-name": "below", "driver": "blkdebug", "image": "other"}
        await client.execute("blockdev-reopen", {"options": [options]})

    async def snapshot(self, client) -> None:
        await client.execute("blockdev-add", {"driver": "x-overlay", "size": SIZE, "node-name": "overlay"})
        await client.execute("blockdev-snapshot", {"node": await self.node(), "overlay": "overlay"})

    async def delete_target(self, client) -> None:
        await client.execute("blockdev-del", {"node-name": self.target})

    # What came of it.

    async def size(self, name: str) -> int:
        nodes = await self.client.execute("query-named-block-nodes", {"flat": True})
        (size,) = [node["image"]["virtual-size"] for node in nodes if node["node-name"] == name]
        return size

    async def shown(self, phase: str, top: str) -> bytes:
        """What the job has left the disk on holds, of which `top` is the highest image."""
        if self.kind == "active commit" and phase != "aborting":
            return (self.machine.directory / "source.img").read_bytes()
        self.machine.image("shown.img", await self.size(top))
        await self.client.execute("blockdev-add", {"driver": "file", "filename": "shown.img", "node-name": "shown"})
        await self.copy(top, "shown")
        return (self.machine.directory / "shown.img").read_bytes()

    async def check(self, kind: str, phase: str, act) -> None:
        await self.wait_for_guest(act)
        source = self.machine.directory / "source.img"
        may_be = {"stream": {OLD}, "commit": {OLD, LAYER}, "active commit": {OLD, LAYER, RECORD}}[kind]
        if act in self.ENDS:
            # What is in memory is gone. Nobody has written to the file what was not to be there.
            self.assertLessEqual(set(source.read_bytes()), may_be)
            return
        await self.finish(kind, phase)
        await self.alone()
        # Where the disk gets another image at once, a guest's write that a section holds goes there.
        moved = phase == "beginning" and kind == "commit"
        records, top = self.may_be_there(act, phase, LAYER), "layer2"
        if act is Phases.reopen_with_child:
            other = (self.machine.directory / "other.img").read_bytes()
            self.assertEqual(set(other), {OLD, RECORD} if moved else {OLD})
            records = {bytes([LAYER]) * SECTOR} if moved else records
        elif act is Phases.snapshot and moved:
            top = "overlay"
        shown = (await self.shown(phase, top))[:SIZE]
        self.assertIn(shown[PLACE * SECTOR:(PLACE + 1) * SECTOR], records)
        self.assertEqual({*shown[:PLACE * SECTOR], *shown[(PLACE + 1) * SECTOR:]}, {LAYER})
        if phase == "aborting":
            self.assertLessEqual(set(source.read_bytes()), may_be)
        else:
            self.assertEqual(set(source.read_bytes()[:PLACE * SECTOR]), {OLD if kind == "stream" else LAYER})


class WrongChainCells(WrongCells, ChainPhases):
    """As that says, of these jobs."""

    kind = "active commit"
    # A group of them takes other commands.
    WRONG = tuple(cell for cell in WrongCells.WRONG if cell[1] != "waiting")


def answers_of(kind: str, action: str, rows: dict[str, list[str]]) -> list[str]:
    return differing().get((kind, action), rows[action])


def has(kind: str, phase: str) -> bool:
    """A stream's layers are in memory, where nothing hangs."""
    never = {"stream": {"ready", "standby", "pivoting", "aborting"}, "commit": {"ready", "standby", "pivoting"}}
    return phase not in {"waiting", *never.get(kind, ())}


def load(suite: unittest.TestSuite) -> None:
    """Adds a test for each cell, each kind of job and each kind of disk."""
    phases, rows = table()
    for kind, action in differing():
        assert kind in KINDS and action in rows, f"{kind}: {action}: nothing that differs"
    suite.addTest(WrongChainCells.load(phases, rows))
    for (kind, action), answers in differing().items():
        # What differs is something else than what is said of other jobs.
        place = phases.index("concluded" if kind == "active commit" else "running")
        if answers[place] != rows[action][place]:
            suite.addTest(WrongChainCells.one(kind, phases[place], action, answers[place], rows[action][place]))
    for bus in ChainPhases.DRIVES:
        for kind in KINDS:
            for action in rows:
                if (bus == "cd") != (Phases.ACTIONS[action] is Phases.eject):
                    continue
                for phase, answer in zip(phases, answers_of(kind, action, rows), strict=True):
                    if has(kind, phase):
                        check_answer(action, phase, answer)
                        suite.addTest(ChainPhases.cell(bus, kind, phase, action, answer))


class Elsewhere(unittest.TestCase):
    """In place of all of it, where the program has no images in memory."""

    @unittest.skip("streams and commits need images in memory: tests/qmp/chains.py, ci/test's suite 'phases with test hooks', plays them")
    def test_actions_while_a_chain_is_shortened(self) -> None:
        """See the reason."""
