"""Each command of the schema, called at least once with arguments that are good. Part of run.py's suite."""

import asyncio
import copy
import unittest

from run import MIB, QmpTest, event, events_until, status_is
from truth import Untrue

SIZE = 2 * MIB


class EveryCommand(QmpTest):
    arguments = (
        *("-object", "iothread,id=io0", "-uuid", "00112233-4455-6677-8899-aabbccddeeff"),
        *("-drive", "file=source.img,format=raw,if=none,id=disk", "-device", "ide-hd,drive=disk,id=front"),
        *("-drive", "file=cd.img,format=raw,if=none,id=cd", "-device", "ide-cd,drive=cd,id=tray"),
    )

    def prepare(self) -> None:
        for name in ("source.img", "cd.img", "other.img", "node.img", "plugged.img"):
            self.machine.image(name, SIZE, 0x5A)
        self.asked: set[str] = set()

    async def ask(self, command: str, **arguments):
        """Underscores in members' names stand for dashes, as QMP's own have few; those in commands' names stay."""
        self.asked.add(command)
        members = {name.rstrip("_").replace("_", "-"): value for name, value in arguments.items()}
        return await self.client.execute(command, members)

    def file(self, name: str) -> dict:
        return {"driver": "file", "filename": f"{name}.img"}

    async def test_each_is_called_and_succeeds(self) -> None:
        self.asked.add("qmp_capabilities")  # by connecting
        self.machine.drive()
        await self.queries()
        await self.descriptors()
        await self.objects()
        await self.nodes()
        await self.bitmaps()
        await self.disks()
        await self.media()
        await self.mirrors()
        await self.job_verbs()
        await self.backups()
        await self.breakpoints()
        await self.machine_verbs()
        unasked = self.client.schema.of_kind("command") - self.asked
        self.assertEqual(unasked, set(), "announced, and called by no test")
        self.assertEqual(self.asked - self.client.schema.of_kind("command"), set(), "called, and not announced")

    async def queries(self) -> None:
        for name in ("version", "commands", "status", "name", "uuid", "kvm", "cpus-fast", "chardev", "qmp-schema", "iothreads",
                     "fdsets", "block", "jobs", "block-jobs"):
            await self.ask(f"query-{name}")
        await self.ask("query-machines", compat_props=True)
        await self.ask("query-blockstats")
        await self.ask("query-blockstats", query_nodes=True)
        await self.ask("query-named-block-nodes", flat=True)
        for name in ("x-debug-query-block-graph", "x-query-block-drains", "x-query-exit-times", "x-query-iothread-stats"):
            await self.ask(name)
        await self.ask("qom-list-types", implements="device", abstract=True)
        await self.ask("device-list-properties", typename="virtio-blk-pci")
        await self.ask("qom-list-properties", typename="ide-hd")
        await self.ask("qom-list", path="/machine/peripheral")
        self.assertEqual(await self.ask("qom-get", path="/machine/peripheral/front", property="drive"), "disk")
        await self.ask("human-monitor-command", command_line="info block")

    async def descriptors(self) -> None:
        with open(self.machine.directory / "node.img", "r+b") as image:
            self.client.send_fd_scm(image.fileno())
            await self.ask("getfd", fdname="mine")
            await self.ask("closefd", fdname="mine")
            self.client.send_fd_scm(image.fileno())
            added = await self.ask("add-fd", opaque="an image")
        (fdset,) = await self.ask("query-fdsets")
        self.assertEqual(fdset["fds"], [{"fd": added["fd"], "opaque": "an image"}])
        await self.ask("remove-fd", fdset_id=added["fdset-id"], fd=added["fd"])

    async def objects(self) -> None:
        await self.ask("object-add", qom_type="throttle-group", id="group", x_bps_total=MIB)
        await self.ask("qom-set", path="/objects/group", property="limits", value={"iops-read": 100})
        limits = await self.ask("qom-get", path="/objects/group", property="limits")
        self.assertEqual((limits["bps-total"], limits["iops-read"]), (MIB, 100))
        await self.ask("object-del", id="group")

    async def nodes(self) -> None:
        await self.ask("blockdev-add", driver="raw", node_name="node", file=self.file("node"))
        changed = {"driver": "raw", "node-name": "node", "file": self.file("node"), "detect-zeroes": "on"}
        await self.ask("blockdev-reopen", options=[changed])
        await self.ask("block_resize", node_name="node", size=SIZE + 512)
        await self.ask("x-blockdev-set-iothread", node_name="node", iothread="io0")
        await self.ask("x-blockdev-set-iothread", node_name="node", iothread=None)
        await self.ask("blockdev-del", node_name="node")

    async def bitmaps(self) -> None:
        one = {"node": "disk", "name": "one"}
        await self.ask("block-dirty-bitmap-add", **one, granularity=65536, persistent=False)
        for verb in ("disable", "enable", "clear"):
            await self.ask(f"block-dirty-bitmap-{verb}", **one)
        await self.ask("transaction", actions=[
            {"type": "block-dirty-bitmap-add", "data": {"node": "disk", "name": "two"}},
            {"type": "block-dirty-bitmap-clear", "data": one},
        ], properties={"completion-mode": "individual"})
        await self.ask("block-dirty-bitmap-merge", node="disk", target="one", bitmaps=["two", {"node": "disk", "name": "two"}])
        hash_of_none = (await self.ask("x-debug-block-dirty-bitmap-sha256", **one))["sha256"]
        self.assertEqual(len(hash_of_none), 64)
        (disk,) = [disk for disk in await self.ask("query-block") if disk["device"] == "disk"]
        self.assertEqual(sorted(bitmap["name"] for bitmap in disk["inserted"]["dirty-bitmaps"]), ["one", "two"])
        for name in ("one", "two"):
            await self.ask("block-dirty-bitmap-remove", node="disk", name=name)

    async def disks(self) -> None:
        rates = {name: 0 for name in ("bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")}
        throttle = {"id": "front", "bps": 64 * MIB, "bps_max": 65 * MIB, **rates}
        self.asked.add("block_set_io_throttle")
        await self.client.execute("block_set_io_throttle", throttle)
        (disk,) = [disk for disk in await self.ask("query-block") if disk["device"] == "disk"]
        self.assertEqual((disk["inserted"]["bps"], disk["inserted"]["bps_max"]), (64 * MIB, 65 * MIB))
        await self.ask("block-latency-histogram-set", id="front", boundaries=[1000, 1000000])
        (stats,) = [disk for disk in await self.ask("query-blockstats") if disk["device"] == "disk"]
        self.assertEqual(stats["stats"]["rd_latency_histogram"]["bins"], [0, 0, 0])
        await self.ask("blockdev-add", **self.file("plugged"), node_name="plugged")
        await self.ask("device_add", driver="virtio-blk-pci", id="hot", drive="plugged")
        await self.ask("device_del", id="hot")

    async def media(self) -> None:
        await self.ask("blockdev-open-tray", id="tray")
        await self.ask("blockdev-remove-medium", id="tray")
        await self.ask("blockdev-add", driver="raw", node_name="disc", read_only=True, file=self.file("other"))
        await self.ask("blockdev-insert-medium", id="tray", node_name="disc")
        await self.ask("blockdev-close-tray", id="tray")
        moved = await event(self.client, "DEVICE_TRAY_MOVED")
        self.assertEqual(moved["data"], {"device": "cd", "id": "tray", "tray-open": True})
        await self.ask("blockdev-change-medium", id="tray", filename="cd.img", format="raw", read_only_mode="read-only")
        await self.ask("eject", id="tray")

    async def target(self, name: str) -> str:
        self.machine.image(f"{name}.img", SIZE)
        await self.ask("blockdev-add", driver="raw", node_name=name, file=self.file(name))
        return name

    async def mirrors(self) -> None:
        manual = {"auto_finalize": False, "auto_dismiss": False}
        target = await self.target("m1")
        await self.ask("blockdev-mirror", device="disk", target=target, sync="full", job_id="job", speed=1, **manual)
        (running,) = await self.ask("query-block-jobs")
        self.assertEqual((running["type"], running["x-copy-mode"]), ("mirror", "background"))
        await self.ask("block-job-pause", device="job")
        await self.ask("block-job-resume", device="job")
        await self.ask("block-job-change", id="job", type="mirror", copy_mode="write-blocking")
        await self.ask("block-job-set-speed", device="job", speed=0)
        await event(self.client, "BLOCK_JOB_READY")
        await self.ask("block-job-complete", device="job")
        await event(self.client, "BLOCK_JOB_PENDING")
        await self.ask("block-job-finalize", id="job")
        completed = await event(self.client, "BLOCK_JOB_COMPLETED")
        self.assertIn("x-pivot-pause-us", completed["data"])
        await self.ended()
        await self.ask("block-job-dismiss", id="job")

    async def ended(self) -> None:
        while [job["status"] for job in await self.ask("query-jobs")] != ["concluded"]:
            await asyncio.sleep(0.005)

    async def job_verbs(self) -> None:
        path = self.machine.image("m2.img", SIZE)
        manual = {"auto_finalize": False, "auto_dismiss": False}
        await self.ask("drive-mirror", device="disk", target=str(path), sync="full", mode="existing", format="raw", unmap=False,
                       job_id="job", speed=1, **manual)
        await self.ask("job-pause", id="job")
        await self.ask("job-resume", id="job")
        await self.ask("block-job-set-speed", device="job", speed=0)
        await event(self.client, "BLOCK_JOB_READY")
        await self.ask("job-complete", id="job")
        await event(self.client, "BLOCK_JOB_PENDING")
        await self.ask("job-finalize", id="job")
        await self.ended()
        await self.ask("job-dismiss", id="job")
        await self.ask("blockdev-mirror", device="disk", target=await self.target("m3"), sync="none", job_id="group")
        await event(self.client, "BLOCK_JOB_READY")
        await self.ask("x-block-job-complete-group", devices=["group"])
        await event(self.client, "BLOCK_JOB_COMPLETED")

    async def backups(self) -> None:
        target = await self.target("b1")
        await self.ask("blockdev-backup", device="disk", target=target, sync="full", job_id="b1", speed=1, x_perf={"max-workers": 2})
        await self.ask("job-cancel", id="b1")
        await event(self.client, "BLOCK_JOB_CANCELLED")
        path = self.machine.image("b2.img", SIZE)
        await self.ask("drive-backup", device="disk", target=str(path), sync="full", mode="existing", job_id="b2", speed=1)
        await self.ask("block-job-cancel", device="b2", force=True)
        await events_until(self.client, status_is("b2", "null"), "end of the backup")

    async def breakpoints(self) -> None:
        await self.ask("blockdev-add", driver="blkdebug", node_name="held", image={"driver": "null-co", "size": SIZE})
        await self.ask("x-debug-break", node_name="held", event="write_aio", tag="here")
        await self.ask("human-monitor-command", command_line='qemu-io held "aio_write 0 512"')
        await self.ask("x-debug-wait-break", node_name="held", tag="here")
        await self.ask("x-debug-resume", node_name="held", tag="here", errno=5)

    async def machine_verbs(self) -> None:
        for command, heard in (("stop", "STOP"), ("cont", "RESUME"), ("system_powerdown", "POWERDOWN"), ("system_reset", "RESET")):
            await self.ask(command)
            await event(self.client, heard)
        await self.ask("quit")
        await event(self.client, "SHUTDOWN")
        self.assertEqual(await self.machine.exit_status(), 0)


class Truth(QmpTest):
    """The checker itself: with a schema that says something else than the machine does, it fails."""

    def ret_type(self, command: str) -> dict:
        entries = self.client.schema.entries
        return entries[entries[command]["ret-type"]]

    def member(self, command: str, name: str) -> dict:
        (member,) = [member for member in self.ret_type(command)["members"] if member["name"] == name]
        return member

    async def lies(self, expected: str, change) -> None:
        """The schema is changed, and so the answer to `query-status` is against it."""
        entries = self.client.schema.entries
        self.client.schema.entries = copy.deepcopy(entries)
        change()
        with self.assertRaises(Untrue) as caught:
            await self.client.execute("query-status")
        self.assertIn(expected, str(caught.exception))
        self.client.schema.entries = entries
        self.client.untrue.clear()

    async def test_a_reply_against_the_schema_is_noticed(self) -> None:
        members = lambda: self.ret_type("query-status")["members"]
        more = {"name": "more", "type": "str"}
        words = lambda: self.client.schema.entries[self.member("query-status", "status")["type"]]
        await self.lies("member 'status' is unexpected", lambda: members().remove(self.member("query-status", "status")))
        await self.lies("member 'more' is missing", lambda: members().append(more))
        await self.lies("True is not int", lambda: self.member("query-status", "running").update(type="int"))
        await self.lies("'running' is not one of", lambda: words().update(members=[{"name": "paused"}]))
        await self.lies("is not in the schema", lambda: self.client.schema.entries.pop("query-status"))
        # With the real one nothing is wrong.
        await self.client.execute("query-status")
        self.client.check_all()

    async def test_an_event_against_the_schema_is_noticed(self) -> None:
        await self.client.execute("stop")
        await event(self.client, "STOP")
        self.client.check_all()
        del self.client.schema.entries["RESUME"]
        await self.client.execute("cont")
        await event(self.client, "RESUME")
        with self.assertRaises(Untrue) as caught:
            self.client.check_all()
        self.assertIn("RESUME", str(caught.exception))
        self.client.untrue.clear()

    async def test_the_answers_of_clients_without_words_are_held_against_it(self) -> None:
        for untrue in ({"return": {}, "error": {}}, {"error": {"class": "Other", "desc": "x"}}, {"more": 1}):
            with self.assertRaises(Untrue):
                self.client.schema.check_envelope(untrue)

    async def test_nothing_is_announced_that_can_only_fail(self) -> None:
        commands = self.client.schema.of_kind("command")
        for command, arguments in (
            ("block-stream", {"device": "node"}),
            ("block-commit", {"device": "node"}),
            ("blockdev-snapshot", {"node": "node", "overlay": "overlay"}),
            ("blockdev-snapshot-sync", {"node-name": "node", "snapshot-file": "x.img", "snapshot-node-name": "new"}),
        ):
            self.assertNotIn(command, commands)
            await self.client.execute("blockdev-add", {"driver": "null-co", "node-name": "node"})
            await self.client.execute("blockdev-add", {"driver": "null-co", "node-name": "overlay"})
            kind, words = await self.refused(command, arguments)
            self.assertEqual(kind, "GenericError")
            self.assertIn("backing image", words)
            for name in ("node", "overlay"):
                await self.client.execute("blockdev-del", {"node-name": name})
        for command, argument, value in (
            ("blockdev-backup", "compress", True),
            ("blockdev-backup", "discard-source", True),
            ("drive-backup", "compress", True),
        ):
            entries = self.client.schema.entries
            members = entries[entries[command]["arg-type"]]["members"]
            self.assertNotIn(argument, [member["name"] for member in members])
            needed = {member["name"]: self.some(member["type"]) for member in members if "default" not in member}
            kind, words = await self.refused(command, {**needed, argument: value})
            self.assertEqual((kind, words), ("GenericError", f"Parameter '{argument}' is unexpected"))

    def some(self, kind: str):
        """Some value of that type."""
        entry = self.client.schema.entries[kind]
        return entry["values"][0] if entry["meta-type"] == "enum" else "x"


def load(loader: unittest.TestLoader) -> unittest.TestSuite:
    return unittest.TestSuite(loader.loadTestsFromTestCase(case) for case in (EveryCommand, Truth))
