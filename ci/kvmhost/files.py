"""Files into the command's working directory and back out of it."""

import os
import shutil
from pathlib import Path, PurePosixPath

from .common import OUT, HostError, tool


class Passed:
    """One ``--file SOURCE[:DESTINATION]``."""

    def __init__(self, text):
        source, _, destination = text.partition(":")
        self.source = Path(source)
        self.destination = PurePosixPath(destination or self.source.name)
        if not self.source.exists():
            raise HostError(f"--file {text}: no file {source}")
        if self.destination.is_absolute() or ".." in self.destination.parts or not self.destination.parts:
            raise HostError(f"--file {text}: {destination} is not a path inside the working directory")


def apparent_size(path):
    """Bytes that ``path`` and everything below it would take without holes."""
    if path.is_file():
        return path.stat().st_size
    return sum((Path(directory) / name).lstat().st_size
               for directory, _, names in os.walk(path) for name in names)


def stage(passed, directory, *, private):
    """Puts the files into ``directory``.

    Sparse files stay sparse. Unless ``private``, hard links serve where they can: then nobody may
    write to the staged files.
    """
    (directory / OUT).mkdir(parents=True)
    for entry in passed:
        target = directory / entry.destination
        target.parent.mkdir(parents=True, exist_ok=True)
        source = entry.source.resolve()
        if not private:
            link = tool_succeeds("cp", "-rlT", source, target)
            if link:
                continue
        # --reflink shares the blocks where the file system can; --sparse keeps holes elsewhere.
        tool("cp", "-rT", "--preserve=mode", "--reflink=auto", "--sparse=auto", source, target,
             problem=f"cannot pass {entry.source}")


def tool_succeeds(*command):
    """Whether the helper program succeeded; what it says does not matter."""
    try:
        tool(*command, problem="")
    except HostError:
        return False
    return True


def collect(left, target):
    """Moves what the command left in the directory ``left`` to ``target``, which is made if missing."""
    target.mkdir(parents=True, exist_ok=True)
    if not left.is_dir():
        return
    for path in sorted(left.iterdir()):
        destination = target / path.name
        if destination.is_dir() and not destination.is_symlink():
            shutil.rmtree(destination)
        elif destination.exists() or destination.is_symlink():
            destination.unlink()
        shutil.move(path, destination)


def dig_holes(directory):
    """Makes the blocks of zeroes in large files below ``directory`` holes again."""
    for parent, _, names in os.walk(directory):
        for name in names:
            path = Path(parent) / name
            if path.is_file() and not path.is_symlink() and path.stat().st_size >= 1 << 20:
                tool("fallocate", "--dig-holes", path, problem=f"cannot make {name} sparse")
