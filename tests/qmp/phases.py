"""What an operator or a guest asks of a disk that has a job, in every phase of that job: the table in docs/jobs.md is
read, and each of its cells is played with a machine of its own, whose guest has a write on its way. Part of run.py's suite.
"""

import asyncio
import unittest

from guest import GUESTS, SECTOR, Qtest
from qemu.qmp import ExecuteError, QMPError
from run import MIB, PATIENCE, ROOT, QmpTest, event, events_until

SIZE = 2 * MIB
# What the disk holds before, and what the guest writes to which sector.
OLD, RECORD, PLACE = 0x5A, 0xC3, 200
# What a cell may say.
NOW, REFUSED, WAITS, REFUSED_LATER = "now", "refused", "waits", "waits, refused"
# The phases in which something hangs until the test lets it go on, which an action may wait for.
HANGING = ("beginning", "waiting", "pivoting", "aborting")
# Those in which the guest's requests wait, too.
HOLDING = ("beginning", "pivoting")


def table() -> tuple[list[str], dict[str, list[str]]]:
    """The phases, and for each action what happens in each of them."""
    return rows_of("action")


def rows_of(first: str) -> tuple[list[str], dict[str, list[str]]]:
    """The table whose first column has that head."""
    lines = iter((ROOT / "docs" / "jobs.md").read_text().splitlines())
    for line in lines:
        if line.startswith(f"| {first} |"):
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

    # `held` is where the guest's writes to the first image can be held.
    DRIVE = ("-drive", "file.driver=blkdebug,file.node-name=held,file.image.driver=file,file.image.filename=source.img,format=raw,if=none,id=disk")
    DRIVES = {
        "ide": [*DRIVE, "-device", "ide-hd,drive=disk,id=front"],
        "virtio": [
            *("-object", "iothread,id=io0", *DRIVE),
            *("-device", "virtio-blk-pci,drive=disk,id=front,iothread=io0,addr=5"),
        ],
        "cd": [*DRIVE, "-device", "ide-cd,drive=disk,id=front"],
    }
    arguments = ()
    # Where the guest's writes can be held, by what the disk stands on, and where else.
    holders = {"target": "target"}
    holder = "held"
    # Which node can hold the pivot, and which a job that is cancelled, by its writes.
    pivot = hanging = "target"
    # Kinds of jobs that are completed by a command, and the job's target.
    completed = ("mirror",)
    target = "target"
    # What an image can be resized to.
    larger = SIZE + SECTOR
    # After this many seconds an action counts as one that hangs.
    patience = PATIENCE

    def prepare(self) -> None:
        self.machine.image("source.img", SIZE, OLD)
        self.machine.arguments += self.DRIVES[self.bus]

    async def asyncSetUp(self) -> None:
        await super().asyncSetUp()
        self.machine.drive()
        self.qtest = Qtest(self.machine.qtest)
        self.guest = GUESTS[self.bus](self.qtest) if self.bus in GUESTS else None

    async def node(self) -> str:
        (disk,) = [disk for disk in await self.client.execute("query-block") if disk["device"] == "disk"]
        return disk["inserted"]["node-name"]

    # The phases.

    async def add_target(self, name: str) -> dict:
        """Arguments of a job called like that onto a new node, the job `job` onto `target`."""
        self.machine.image(f"{name}.img", SIZE)
        file = {"driver": "raw", "file": {"driver": "file", "filename": f"{name}.img"}}
        await self.client.execute("blockdev-add", {"driver": "blkdebug", "node-name": name, "image": file})
        job = "job" if name == "target" else name
        return {"device": "disk", "target": name, "sync": "full", "job-id": job, "auto-dismiss": False}

    async def prepare_job(self, kind: str) -> tuple[str, dict]:
        """The command that begins the job, and its arguments."""
        return f"blockdev-{kind}", await self.add_target("target")

    async def begin(self, kind: str, **more) -> None:
        command, arguments = await self.prepare_job(kind)
        await self.client.execute(command, {**arguments, **more})

    async def hold(self, node: str, event: str) -> None:
        """Has the node hold the next of these; `let_phase_go` lets it go on."""
        self.held = {"node-name": node, "tag": "phase"}
        await self.client.execute("x-debug-break", {**self.held, "event": event})

    async def wait_held(self) -> None:
        await self.client.execute("x-debug-wait-break", self.held)

    async def let_phase_go(self) -> None:
        try:
            await self.client.execute("x-debug-resume", self.held)
        except (EOFError, OSError, QMPError):
            # It has ended without that.
            assert await self.machine.exit_status() == 0

    async def hang_read(self) -> None:
        """A read of the guest's disk, which the guest knows nothing of."""
        await self.hold(self.holder, "read_aio")
        await self.client.execute("human-monitor-command", {"command-line": 'qemu-io -d front "aio_read 0 512"'})
        await self.wait_held()

    async def begin_slowly(self, kind: str) -> None:
        """The section in which the job is begun waits for a read of the disk."""
        command, arguments = await self.prepare_job(kind)
        await self.hang_read()
        self.beginning = asyncio.create_task((await self.another()).execute(command, arguments))
        while not any(disk["holders"] for disk in await self.client.execute("x-query-block-drains")):
            await asyncio.sleep(0.005)
        self.assertEqual(await self.client.execute("query-jobs"), [])

    async def begin_group(self) -> None:
        """The job is one of two backups that succeed together; the target of the other hangs."""
        first, other = await self.add_target("target"), await self.add_target("slow")
        self.machine.image("another.img", SIZE)
        await self.client.execute("blockdev-add", {"driver": "file", "filename": "another.img", "node-name": "another"})
        await self.hold("slow", "write_aio")
        backups = [{"type": "blockdev-backup", "data": data} for data in (first, {**other, "device": "another"})]
        together = {"actions": backups, "properties": {"completion-mode": "grouped"}}
        await self.client.execute("transaction", together)

    async def cancel_hanging(self, kind: str) -> None:
        """The job was cancelled, and waits for its target, which hangs."""
        command, arguments = await self.prepare_job(kind)
        await self.hold(self.hanging, "write_aio")
        await self.client.execute(command, arguments)
        await self.wait_held()
        await self.client.execute("job-cancel", {"id": "job"})

    async def state(self, state: str) -> None:
        while (await self.client.execute("query-jobs"))[0]["status"] != state:
            await asyncio.sleep(0.005)

    async def reach(self, kind: str, phase: str) -> None:
        if phase == "beginning":
            await self.begin_slowly(kind)
            return
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
            await self.hold(self.pivot, "pivot_clean")
            await self.complete(kind)
            await self.wait_held()
            return
        elif phase == "waiting":
            await self.begin_group()
        elif phase == "aborting":
            await self.cancel_hanging(kind)
        else:
            await self.begin(kind)
            await self.complete(kind)
        await self.state(phase)

    async def complete(self, kind: str) -> None:
        if kind in self.completed:
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
        await client.execute("block_resize", {"node-name": await self.node(), "size": self.larger})

    async def second_job(self, client) -> None:
        self.machine.image("second.img", SIZE)
        file = {"driver": "file", "filename": "second.img", "node-name": "second"}
        await client.execute("blockdev-add", file)
        arguments = {"device": await self.node(), "target": "second", "sync": "full", "job-id": "second"}
        await client.execute("blockdev-backup", arguments)

    async def change_target(self, client) -> None:
        await client.execute("block_resize", {"node-name": self.target, "size": self.larger})

    async def unplug(self, client) -> None:
        if self.bus == "ide":
            with self.assertRaises(ExecuteError) as caught:
                await client.execute("device_del", {"id": "front"})
            self.assertIn("Bus 'ide.0' does not support hotplugging", str(caught.exception))
            return
        before = await client.execute("query-jobs")
        await client.execute("device_del", {"id": "front"})
        self.qtest.ask("outl 0xae08 0x20")
        deleted = {"device": "front", "path": "/machine/peripheral/front"}
        is_gone = lambda found: found["event"] == "DEVICE_DELETED" and found["data"] == deleted
        await events_until(client, is_gone, "DEVICE_DELETED")
        assert await client.execute("query-block") == []
        left = await client.execute("query-jobs")
        names = lambda jobs: [(job["id"], job["status"]) for job in jobs]
        # One that is beginning begins before the disk is gone, or not at all.
        assert names(left) == names(before) or before == [], left

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

    async def throttle(self, client) -> None:
        """Limits that slow nothing down, and none any more. Who sets them is answered when they hold."""
        limited = {"bps": 1 << 40, **{name: 0 for name in ("bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")}}
        for limits in (limited, {**limited, "bps": 0}):
            await client.execute("block_set_io_throttle", {"id": "front", **limits})
            (disk,) = [disk for disk in await client.execute("query-block") if "front" in disk["qdev"]]
            self.assertEqual(disk["inserted"]["bps"], limits["bps"])

    async def guest_resets_machine(self, client) -> None:
        self.qtest.ask("outb 0xcf9 6")
        assert (await event(client, "RESET"))["data"] == {"guest": True, "reason": "guest-reset"}

    async def guest_resets_disk(self, client) -> None:
        self.guest.reset()

    async def power_off(self, client) -> None:
        self.qtest.ask("outw 0x604 0x3400")
        assert await self.machine.exit_status() == 0

    async def eject(self, client) -> None:
        await client.execute("eject", {"device": "disk"})

    async def reopen(self, client, window: dict = {}, **more) -> None:
        """Reopens what the disk stands on, of which the job's end has made the target."""
        node = await self.node()
        if node == "target":
            await self.reopen_target(client, window, **more)
            return
        file = {"driver": "blkdebug", "image": {"driver": "file", "filename": "source.img"}}
        options = {"driver": "raw", "file": more.pop("child", file), **window}
        await client.execute("blockdev-reopen", {"options": [{"node-name": node, **options, **more}]})

    async def reopen_target(self, client, window: dict = {}, below: str | None = None, **more) -> None:
        """The same of the target; `below` is to be the child of the node below it."""
        file = below or {"driver": "file", "filename": "target.img"}
        options = {"driver": "blkdebug", "image": more.pop("child", {"driver": "raw", "file": file, **window})}
        await client.execute("blockdev-reopen", {"options": [{"node-name": "target", **options, **more}]})

    async def all_or_none(self, reopens) -> None:
        """Each is refused, for which the first speaks, or none."""
        refusals, count = [], 0
        for reopen in reopens:
            count += 1
            try:
                await reopen
            except ExecuteError as refused:
                refusals.append(refused)
        self.assertIn(len(refusals), (0, count), refusals)
        if refusals:
            raise refusals[0]

    # Other options of the same image, and windows that are others.
    SERVED = (
        {"detect-zeroes": "on"}, {"discard": "unmap", "detect-zeroes": "unmap"}, {"cache": {"direct": True}}, {"cache": {"no-flush": True}}, {},
    )
    WINDOWS = ({"offset": SECTOR}, {"size": SIZE - SECTOR}, {"offset": SECTOR, "size": SIZE - 2 * SECTOR})

    async def reopen_with_options(self, client) -> None:
        for options in self.SERVED:
            try:
                await self.reopen(client, **options)
            except ExecuteError as refused:
                # It has waited for a pivot, after which nobody needs the drive's node.
                if "Failed to find node" not in str(refused):
                    raise

    async def another_image(self, client, value: int) -> None:
        self.machine.image("other.img", SIZE, value)
        await client.execute("blockdev-add", {"driver": "file", "filename": "other.img", "node-name": "other"})

    async def reopen_with_child(self, client) -> None:
        await self.another_image(client, OLD)
        await self.reopen(client, child="other")

    async def reopen_elsewhere(self, client) -> None:
        await self.all_or_none(self.reopen(client, window) for window in self.WINDOWS)

    async def reopen_target_elsewhere(self, client) -> None:
        await self.all_or_none(self.reopen_target(client, window) for window in self.WINDOWS)

    async def reopen_below_target(self, client) -> None:
        await self.another_image(client, OLD)
        await self.reopen_target(client, below="other")

    async def snapshot(self, client) -> None:
        await client.execute("blockdev-add", {"driver": "null-co", "size": SIZE, "node-name": "overlay"})
        try:
            await client.execute("blockdev-snapshot", {"node": await self.node(), "overlay": "overlay"})
        except ExecuteError as refused:
            # No driver does, or it is as above; it is not for the job that this is refused.
            if not any(reason in str(refused) for reason in ("does not support backing images", "Failed to find node")):
                raise

    async def delete_target(self, client) -> None:
        has_it = await self.node() == "target"
        try:
            await client.execute("blockdev-del", {"node-name": "target"})
        except ExecuteError as refused:
            if not has_it or "is in use" not in str(refused):
                raise

    ACTIONS = {
        "an operator resets the machine (`system_reset`)": system_reset,
        "the guest resets the machine (port 0xcf9)": guest_resets_machine,
        "the guest resets its disk (SRST, virtio status 0)": guest_resets_disk,
        "`stop`, `cont`": stop_and_cont,
        "`quit`": quit,
        "the guest's power-off": power_off,
        "`block_resize` of the disk": block_resize,
        "a second job on the disk": second_job,
        "`block_resize` of the target": change_target,
        "`device_del` of the disk, and its guest ejects it (virtio; an IDE disk stays)": unplug,
        "`device_add` of another disk": plug,
        "`eject` of a CD-ROM's medium": eject,
        "`blockdev-reopen` of the disk with other options": reopen_with_options,
        "`blockdev-reopen` of the disk with another child": reopen_with_child,
        "`blockdev-reopen` of the disk with another offset or size": reopen_elsewhere,
        "`blockdev-reopen` of the target with another offset or size": reopen_target_elsewhere,
        "`blockdev-reopen` of a node below the target with another child": reopen_below_target,
        "`blockdev-snapshot` of the disk": snapshot,
        "`blockdev-del` of the target (when a mirror has ended the disk has it)": delete_target,
        "`block-dirty-bitmap-add` to the disk": dirty_bitmap,
        "`transaction` about the disk": transaction,
        "`block_set_io_throttle` of the disk: limits, and none any more": throttle,
    }
    # What comes of the guest's write: it may be cancelled, or the machine ends.
    RESETS = (system_reset, guest_resets_machine, guest_resets_disk)
    ENDS = (quit, power_off)

    def is_gone(self, act) -> bool:
        """Whether the guest has no disk any more."""
        return act is Phases.unplug and self.bus == "virtio"

    def is_nothing(self, act, _kind: str, _phase: str) -> bool:
        """What an action waits for does not concern this disk."""
        return act is Phases.unplug and self.bus == "ide"

    async def begin_write(self, phase: str) -> str | None:
        """The guest begins to write; returns the node that holds it, if none of the pivot's section does."""
        if not self.guest:
            return None
        holder = self.holders.get(await self.node(), self.holder)
        if phase in HOLDING:
            self.guest.begin_write(PLACE, RECORD)
            return None
        await self.client.execute("x-debug-break", {"node-name": holder, "event": "write_aio", "tag": "guest"})
        self.guest.begin_write(PLACE, RECORD)
        await self.client.execute("x-debug-wait-break", {"node-name": holder, "tag": "guest"})
        return holder

    async def let_go(self, holder: str | None) -> None:
        if holder:
            try:
                await self.client.execute("x-debug-resume", {"node-name": holder, "tag": "guest"})
            except (EOFError, OSError, QMPError):
                # The machine does not wait for what its guest has on the way.
                await self.machine.exit_status()

    async def play(self, kind: str, phase: str, action: str, answer: str) -> None:
        if phase not in HANGING:
            self.assertNotIn(answer, (WAITS, REFUSED_LATER), "there is nothing that it could wait for")
        await self.reach(kind, phase)
        other = await self.another()
        holder = await self.begin_write(phase)
        act = self.ACTIONS[action]
        if self.is_nothing(act, kind, phase):
            answer = NOW
        acting = asyncio.create_task(getattr(self, act.__name__)(other))
        if phase not in HOLDING:
            # Anything may wait for what the guest has on its way.
            await self.let_go(holder)
        if phase in HANGING:
            if answer in (WAITS, REFUSED_LATER):
                await self.waits(acting, phase)
            elif phase != "aborting" or act not in self.ENDS:
                # The end of the program waits for the target for a while.
                await self.end_of(acting, phase, answer)
            if phase == "aborting" and act not in self.ENDS:
                self.assertEqual((await self.client.execute("query-jobs"))[0]["status"], phase)
            if phase != "pivoting" or act not in self.ENDS:
                await self.let_phase_go()
        await self.end_of(acting, phase, answer)
        if phase == "beginning":
            await self.has_begun(act)
        if self.guest:
            await self.check(kind, phase, act)

    async def waits(self, acting: asyncio.Task, phase: str) -> None:
        """Others are answered meanwhile, and it is not. A job that can't rest holds nobody for long."""
        shown = []
        while phase == "aborting" and not shown:
            drains = await self.client.execute("x-query-block-drains")
            shown = [held["job"] for one in drains if not one["drained"] for held in one["held-up"]]
            self.assertLessEqual(set(shown), {"job"})
            self.assertFalse(acting.done(), "it did not wait")
        for _ in range(20):
            await self.client.execute("query-status")
            await asyncio.sleep(0.005)
        self.assertFalse(acting.done(), "it did not wait")

    async def has_begun(self, act) -> None:
        """The command that was to begin the job is answered, if anybody is still there."""
        try:
            await asyncio.wait_for(self.beginning, self.patience)
        except ExecuteError as refused:
            reasons = {Phases.unplug: "Cannot find device='disk'"}
            reason = reasons.get(act, "while the machine shuts down")
            assert (self.is_gone(act) or act in self.ENDS) and reason in str(refused), refused
        except (EOFError, OSError, QMPError):
            assert act in self.ENDS

    def may_be_there(self, act, phase: str, old: int) -> set[bytes]:
        """What the guest's sector may hold, which held `old` before."""
        record = {bytes([RECORD]) * SECTOR}
        # What is on its way ends before the disk goes; what a section holds goes with it.
        if act in self.RESETS or act in self.ENDS or (self.is_gone(act) and phase in HOLDING):
            record.add(bytes([old]) * SECTOR)
        return record

    async def wait_for_guest(self, act) -> None:
        """Until its write has ended, if it does."""
        if act not in self.RESETS and act not in self.ENDS and not self.is_gone(act):
            while not self.guest.has_ended():
                await asyncio.sleep(0.001)

    async def check(self, kind: str, phase: str, act) -> None:
        """What the guest was told is true of the images, and the job does what it began to do."""
        record = self.may_be_there(act, phase, OLD)
        await self.wait_for_guest(act)
        if self.is_gone(act) and phase == "beginning" and await self.client.execute("query-jobs") == []:
            self.assertIn(self.sector("source"), record)
            return
        if act not in self.ENDS:
            await self.finish(kind, phase)
        if act in (Phases.reopen_with_child, Phases.reopen_below_target):
            # The write was on its way before the disk got another image, if it did.
            self.assertEqual((self.machine.directory / "other.img").read_bytes(), bytes([OLD]) * SIZE)
        at = slice(PLACE * SECTOR, (PLACE + 1) * SECTOR)
        images = [(self.machine.directory / f"{name}.img").read_bytes() for name in ("source", "target")]
        source, target = [image[at] for image in images]
        if phase == "aborting" or (act in self.ENDS and phase in HOLDING):
            # Up to the swap the disk is the source.
            self.assertIn(source, record)
        elif act in self.ENDS:
            self.assertTrue({source, target} & record)
        elif kind == "backup":
            self.assertIn(source, record)
            self.assertEqual(images[1][:SIZE], bytes([OLD]) * SIZE)
        else:
            self.assertIn(target, record)
            if phase not in ("pivoting", "concluded"):
                self.assertEqual(source, target)

    def sector(self, image: str) -> bytes:
        """What the image holds where the guest writes."""
        return (self.machine.directory / f"{image}.img").read_bytes()[PLACE * SECTOR:(PLACE + 1) * SECTOR]

    async def finish(self, kind: str, phase: str) -> None:
        """Brings the job to its end."""
        execute = self.client.execute
        steps = {
            "paused": "job-resume", "standby": "job-resume", "ready": "job-complete", "pending": "job-finalize",
        }
        await self.ignoring_refusals("block-job-set-speed", {"device": "job", "speed": 0})
        while True:
            jobs = {job["id"]: job for job in await execute("query-jobs")}
            status = jobs["job"]["status"]
            if status == "concluded":
                cancelled = "Operation canceled" if phase == "aborting" else None
                self.assertEqual(jobs["job"].get("error"), cancelled)
                return
            if status in steps:
                # A drained section may be the cause of a pause, or end it.
                await self.ignoring_refusals(steps[status], {"id": "job"})
            await asyncio.sleep(0.005)

    async def ignoring_refusals(self, command: str, arguments: dict) -> None:
        try:
            await self.client.execute(command, arguments)
        except ExecuteError:
            pass

    async def end_of(self, acting: asyncio.Task, phase: str, answer: str) -> None:
        if answer not in (REFUSED, REFUSED_LATER):
            await asyncio.wait_for(acting, self.patience)
            return
        with self.assertRaises(ExecuteError) as caught:
            await asyncio.wait_for(acting, self.patience)
        # When the job has ended it is the disk that has the image.
        reasons = ("is busy",) if phase != "concluded" else ("in use", "conflict", "read-only")
        self.assertTrue(any(reason in str(caught.exception) for reason in reasons), caught.exception)

    @classmethod
    def cell(cls, bus: str, kind: str, phase: str, action: str, answer: str) -> unittest.TestCase:
        """The test of one cell."""

        async def test(self):
            await self.play(kind, phase, action, answer)

        name = f"test {action} while {with_article(kind)} is {phase}: {answer} ({bus})"
        return type(cls.__name__, (cls,), {"bus": bus, name: test})(name)


def with_article(kind: str) -> str:
    return f"{'an' if kind[0] == 'a' else 'a'} {kind}"


def check_answer(action: str, phase: str, answer: str) -> None:
    assert answer in (NOW, REFUSED, WAITS, REFUSED_LATER), f"{action} × {phase}: {answer}"


def phases_of(kind: str) -> set[str]:
    # Mirrors succeed together by a command of test hooks alone.
    others = {"backup": {"ready", "standby", "pivoting"}, "mirror": {"waiting"}}
    return set(table()[0]) - others[kind]


class Created(Phases):
    """Why the table has no column `created`."""

    bus = "ide"

    async def states(self, client, last: str) -> list[str]:
        """Those of the job, up to the first of these."""
        states = []
        while last not in states:
            change = (await event(client, "JOB_STATUS_CHANGE"))["data"]
            states += [change["status"]] if change["id"] == "job" else []
        return states

    async def test_a_job_that_is_created_begins_or_is_gone_as_its_next_step(self) -> None:
        for abort, states in ((True, ["created", "null"]), (False, ["created", "running"])):
            command, data = await self.prepare_job("backup")
            actions = [{"type": command, "data": data}, *([{"type": "abort", "data": {}}] if abort else [])]
            await self.hang_read()
            beginning = asyncio.create_task((await self.another()).execute("transaction", {"actions": actions}))
            while not any(disk["holders"] for disk in await self.client.execute("x-query-block-drains")):
                await asyncio.sleep(0.005)
            # It isn't even that as long as the transaction waits.
            self.assertEqual(await self.client.execute("query-jobs"), [])
            watching = await self.another()
            await self.let_phase_go()
            await asyncio.wait([beginning])
            if abort:
                self.assertIn("Transaction aborted", str(beginning.exception()))
            self.assertEqual(await self.states(watching, states[-1]), states)
            if abort:
                await self.client.execute("blockdev-del", {"node-name": "target"})


    async def test_targets_are_as_they_were_when_the_program_ends_before_the_job_begins(self) -> None:
        _, data = await self.prepare_job("backup")
        precious, new = (self.machine.directory / name for name in ("precious", "new"))
        precious.write_bytes(b"data")
        self.machine.image("another.img", SIZE)
        await self.client.execute("blockdev-add", {"driver": "file", "filename": "another.img", "node-name": "another"})
        backups = ((data["device"], new), ("another", precious))
        actions = [
            {"type": "drive-backup", "data": {"device": device, "target": str(path), "sync": "full", "job-id": path.name}}
            for device, path in backups
        ]
        await self.hang_read()
        beginning = asyncio.create_task((await self.another()).execute("transaction", {"actions": actions}))
        while not any(disk["holders"] for disk in await self.client.execute("x-query-block-drains")):
            await asyncio.sleep(0.005)
        self.assertEqual((new.exists(), precious.read_bytes()[:4]), (True, b"data"))
        await self.client.execute("quit")
        await self.let_phase_go()
        await asyncio.wait([beginning])
        self.assertIsNotNone(beginning.exception())
        self.assertEqual(await self.machine.exit_status(), 0)
        self.assertEqual((new.exists(), precious.read_bytes()), (False, b"data"))


class WrongCells(Phases):
    """Cells that say something else than the table does."""

    bus = "ide"
    kind = "mirror"
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
        (NOW, "beginning", WAITS),
        (REFUSED, "beginning", NOW),
        (WAITS, "beginning", NOW),
        (WAITS, "beginning", REFUSED_LATER),
        (REFUSED_LATER, "beginning", WAITS),
        (REFUSED_LATER, "beginning", REFUSED),
        (NOW, "aborting", WAITS),
        (NOW, "aborting", REFUSED),
        (REFUSED, "aborting", NOW),
        (WAITS, "aborting", NOW),
        (WAITS, "aborting", REFUSED),
        (NOW, "waiting", WAITS),
        (NOW, "waiting", REFUSED),
        (REFUSED, "waiting", NOW),
    )

    @classmethod
    def one(cls, kind: str, phase: str, action: str, right: str, wrong: str) -> unittest.TestCase:
        """The test of one such cell."""

        async def test(self):
            with self.assertRaises((AssertionError, ExecuteError, asyncio.TimeoutError)):
                await self.play(kind, phase, action, wrong)

        name = f"test that it is noticed if {action} while {with_article(kind)} is {phase} were not {right} but {wrong}"
        return type(cls.__name__, (cls,), {name: test})(name)

    @classmethod
    def load(cls, phases: list[str], rows: dict[str, list[str]]) -> unittest.TestSuite:
        """A test for each of them, with the first action that the table says something else of."""
        suite = unittest.TestSuite()
        for right, phase, wrong in cls.WRONG:
            place = phases.index(phase)
            # The end of the program is no action that could be asked about in the middle of a pivot.
            found = [name for name, answers in rows.items() if answers[place] == right and cls.ACTIONS[name] not in (*cls.ENDS, cls.eject)]
            kind = "backup" if phase == "waiting" else cls.kind
            suite.addTest(cls.one(kind, phase, found[0], right, wrong))
        return suite


def load(loader: unittest.TestLoader) -> unittest.TestSuite:
    """A test for each cell, each kind of job and each kind of disk."""
    suite = unittest.TestSuite()
    phases, rows = table()
    assert set(rows) == set(Phases.ACTIONS), "the table and the tests name different actions"
    suite.addTest(WrongCells.load(phases, rows))
    suite.addTest(loader.loadTestsFromTestCase(Created))
    for bus in Phases.DRIVES:
        for kind in ("backup", "mirror"):
            for action, answers in rows.items():
                if (bus == "cd") != (Phases.ACTIONS[action] is Phases.eject):
                    continue
                for phase, answer in zip(phases, answers, strict=True):
                    if phase not in phases_of(kind):
                        continue
                    check_answer(action, phase, answer)
                    suite.addTest(Phases.cell(bus, kind, phase, action, answer))
    return suite
