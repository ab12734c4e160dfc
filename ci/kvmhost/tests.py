#!/usr/bin/env python3
"""Tests of ci/kvm-host: ``python3 ci/kvmhost/tests.py``. Both ways are tested, on any machine.

The direct way needs no KVM for what is tested here; commands inside an emulated host take a second or two each.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
KVM_HOST = ROOT / "ci/kvm-host"
STATES = ROOT / ".cache/kvm-host"


def start(way, *words, **popen):
    """Starts ci/kvm-host on one of the two ways."""
    return subprocess.Popen([KVM_HOST, "--host", way, *map(str, words)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, **popen)


def run(way, *words):
    """Runs ci/kvm-host to its end: exit code, stdout, stderr."""
    child = start(way, *words)
    out, err = child.communicate()
    return child.returncode, out, err


def living(mark):
    """Processes of this machine, zombies excepted, whose environment or arguments hold ``mark``."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            text = (directory / "environ").read_bytes() + (directory / "cmdline").read_bytes()
            state = (directory / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
        except OSError:
            continue
        if mark.encode() in text and state != "Z" and int(directory.name) != os.getpid():
            found.append((int(directory.name), text[-200:]))
    return found


def wait_for(condition, what):
    """Waits until ``condition()`` holds; a minute is far more than anything here takes."""
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"never: {what}")
        time.sleep(0.02)


class BothWays:
    """What holds whichever way the command goes."""

    way = ""

    def test_output_and_exit_code_are_the_commands(self):
        code, out, err = run(self.way, "sh", "-c", "echo to out; echo to err >&2; exit 7")
        self.assertEqual((code, out), (7, "to out\n"))
        self.assertIn("to err\n", err)

    def test_words_arrive_unchanged(self):
        words = ["a b", "", "$HOME", "it's", 'say "x"', "*", "\\n", "--file"]
        _, out, _ = run(self.way, "sh", "-c", 'for word; do printf "[%s]\\n" "$word"; done', "sh", *words)
        self.assertEqual(out, "".join(f"[{word}]\n" for word in words))

    def test_variables_arrive(self):
        _, out, _ = run(self.way, "--env", "NAME=it's a value", "sh", "-c", 'echo "$NAME $KVM_HOST"')
        self.assertEqual(out, f"it's a value {self.way}\n")

    def test_missing_command_is_127(self):
        self.assertEqual(run(self.way, "no-such-command")[0], 127)

    def test_death_by_a_signal_shows(self):
        self.assertEqual(run(self.way, "sh", "-c", "kill -9 $$")[0], 128 + signal.SIGKILL)

    def test_files_go_in_and_out_and_stay_sparse(self):
        with tempfile.TemporaryDirectory() as scratch:
            scratch = Path(scratch)
            (scratch / "tree/sub").mkdir(parents=True)
            (scratch / "tree/sub/small").write_text("small\n")
            with open(scratch / "sparse.img", "wb") as image:
                image.truncate(256 << 20)
                image.seek(100 << 20)
                image.write(b"in the middle")
            script = ("cat tree/sub/small; mkdir out/made; cp renamed/disk out/made/disk; "
                      "printf end | dd of=out/made/disk bs=1 seek=268435453 conv=notrunc 2>/dev/null; exit 3")
            code, out, _ = run(self.way, "--file", scratch / "tree", "--file", f"{scratch}/sparse.img:renamed/disk",
                               "--out", scratch / "back", "sh", "-c", script)
            self.assertEqual((code, out), (3, "small\n"))
            disk = scratch / "back/made/disk"
            self.assertEqual(disk.stat().st_size, 256 << 20)
            self.assertLess(disk.stat().st_blocks * 512, 1 << 20)
            with open(disk, "rb") as image:
                image.seek(100 << 20)
                self.assertEqual(image.read(13), b"in the middle")
                image.seek(-3, os.SEEK_END)
                self.assertEqual(image.read(), b"end")
            with open(scratch / "sparse.img", "rb") as image:
                image.seek(-3, os.SEEK_END)
                self.assertEqual(image.read(), bytes(3), "the original was written to")

    def test_time_limit_is_124_and_keeps_the_files(self):
        with tempfile.TemporaryDirectory() as scratch:
            # Long enough for a first boot of the emulated host on a busy machine.
            run(self.way, "true")
            code, _, err = run(self.way, "--timeout", 10, "--out", scratch, "sh", "-c",
                               "echo kept > out/file; sync; sleep 1000")
            self.assertEqual(code, 124)
            self.assertIn("time limit", err)
            self.assertEqual((Path(scratch) / "file").read_text(), "kept\n")

    def test_what_the_command_left_running_does_not_hold_it(self):
        code, out, _ = run(self.way, "sh", "-c", "sleep 1000 & echo done")
        self.assertEqual((code, out), (0, "done\n"))

    def end_leaves_nothing(self, number):
        """Sends the signal to a run whose command has started children."""
        mark = f"SLUICE_TEST_MARK={os.getpid()}-{self.id()}"
        child = start(self.way, "--env", mark, "sh", "-c", "sleep 1000 & setsid sleep 1000 & echo up; wait",
                      env={**os.environ, **dict([mark.split("=", 1)])})
        self.assertEqual(child.stdout.readline(), "up\n")
        self.assertGreaterEqual(len(living(mark)), 2)
        child.send_signal(number)
        child.wait()
        wait_for(lambda: not living(mark), f"an end of {living(mark)}")
        child.stdout.close()
        child.stderr.close()
        return child.returncode

    def test_term_leaves_no_process(self):
        self.assertEqual(self.end_leaves_nothing(signal.SIGTERM), 128 + signal.SIGTERM)

    def test_int_leaves_no_process(self):
        self.assertEqual(self.end_leaves_nothing(signal.SIGINT), 128 + signal.SIGINT)

    def test_kill_leaves_no_process(self):
        self.assertEqual(self.end_leaves_nothing(signal.SIGKILL), -signal.SIGKILL)

    def test_a_reader_that_leaves_ends_it(self):
        child = start(self.way, "sh", "-c", "yes")
        child.stdout.readline()
        child.stdout.close()
        child.stderr.close()
        self.assertNotEqual(child.wait(), 0)

    def test_a_missing_file_is_named(self):
        code, _, err = run(self.way, "--file", "/no/such/file", "true")
        self.assertEqual(code, 125)
        self.assertIn("/no/such/file", err)

    def test_a_destination_outside_is_refused(self):
        for destination in ("../x", "/x"):
            code, _, err = run(self.way, "--file", f"{__file__}:{destination}", "true")
            self.assertEqual(code, 125)
            self.assertIn(destination, err)


class Direct(BothWays, unittest.TestCase):
    """On this machine."""

    way = "direct"


class Emulated(BothWays, unittest.TestCase):
    """In an emulated host."""

    way = "emulated"

    def test_there_is_kvm_with_nested_paging(self):
        code, out, _ = run(self.way, "sh", "-c", "test -c /dev/kvm && cat /sys/module/kvm_amd/parameters/npt")
        self.assertEqual((code, out), (0, "Y\n"))

    def test_a_broken_saved_host_is_replaced(self):
        run(self.way, "true")
        for state in STATES.glob("state-*"):
            # Another name first: a run beside this one may be reading it.
            broken = state.with_name(state.name + ".partial")
            broken.write_bytes(b"nonsense")
            broken.rename(state)
        code, out, err = run(self.way, "echo", "alive")
        self.assertEqual((code, out), (0, "alive\n"))
        self.assertIn("booting", err)

    def test_a_panic_of_the_host_is_125(self):
        code, _, err = run(self.way, "sh", "-c", "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger; sleep 100")
        self.assertEqual(code, 125)
        self.assertIn("broke down", err)

    def test_a_panic_of_the_host_is_survived_with_a_second_attempt(self):
        script = "echo alive; echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger; sleep 100"
        code, out, err = run(self.way, "--attempts", "2", "sh", "-c", script)
        self.assertEqual((code, out), (125, "alive\nalive\n"))
        self.assertEqual(err.count("once more"), 1)

    def test_a_failing_command_is_not_run_again(self):
        code, out, _ = run(self.way, "--attempts", "2", "sh", "-c", "echo alive; exit 3")
        self.assertEqual((code, out), (3, "alive\n"))

    def test_random_numbers_and_time_are_fresh(self):
        script = "head -c 16 /dev/urandom | xxd -p; date +%s"
        first, second = (run(self.way, "sh", "-c", script)[1].split() for _ in range(2))
        self.assertNotEqual(first[0], second[0])
        self.assertLess(abs(int(second[1]) - time.time()), 120)

    def test_a_reopened_stdout_works(self):
        _, out, _ = run(self.way, "sh", "-c", "echo one; echo two >/dev/stdout")
        self.assertEqual(out, "one\ntwo\n")


if __name__ == "__main__":
    sys.exit(unittest.main())
