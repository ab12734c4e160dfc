"""What both ways of running a command share: errors, paths, exit codes, the run's directory."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / ".cache/kvm-host"

# As timeout(1) and container runners have it; everything else is the command's own.
EXIT_TIMEOUT = 124
EXIT_FAILURE = 125
EXIT_SIGNAL_BASE = 128

# Files of one kind that stay in the cache.
KEPT = 4

# Where a command leaves what --out brings back, in its working directory.
OUT = "out"


class HostError(Exception):
    """There is no KVM host for the command, or it broke; the text says why."""


class TimeLimit(Exception):
    """The time limit passed before the command ended."""


class Interrupted(Exception):
    """A signal asked for the end; ``args[0]`` is its number."""


def system_environment(**more):
    """Our environment with the directories of the system's programs on PATH."""
    return {**os.environ, "PATH": f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin", **more}


def tool(*command, problem, cwd=None):
    """Runs a helper program to its end and returns its output; ``problem`` starts the error's text."""
    try:
        run = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True, errors="replace", check=False, cwd=cwd,
                             env=system_environment(LC_ALL="C"))
    except FileNotFoundError as error:
        raise HostError(f"{problem}: {command[0]} is not here; run ci/install-deps") from error
    if run.returncode != 0:
        raise HostError(f"{problem}: {' '.join(map(str, command))} ended with {run.returncode}: {run.stdout.strip()}")
    return run.stdout


def forget_older(newest, pattern):
    """Keeps the cache beside ``newest`` small: a few of each kind serve the sizes and branches in use."""
    found = sorted(newest.parent.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in found[KEPT:]:
        old.unlink(missing_ok=True)


class RunDirectory:
    """A directory of this run, removed at its end; those of runs that were killed are swept up first."""

    def __init__(self, keep):
        self._keep = keep
        runs = CACHE / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        self.path = runs / str(os.getpid())
        with open(runs / "lock", "w", encoding="ascii") as sweep:
            fcntl.flock(sweep, fcntl.LOCK_EX)
            for old in runs.iterdir():
                if old.is_dir() and not _locked(old):
                    shutil.rmtree(old, ignore_errors=True)
            self.path.mkdir()
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def __enter__(self):
        return self.path

    def __exit__(self, *_):
        if self._keep:
            kept = CACHE / f"kept-{self.path.name}"
            shutil.rmtree(kept, ignore_errors=True)
            self.path.rename(kept)
            print(f"kvm-host: kept {kept}", file=sys.stderr)
        else:
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _locked(directory):
    """Whether a living run holds ``directory``."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
