"""The tools disk: QEMU and Python of this machine, with all they need, for use in the emulated host.

Made by reading what is installed (ldd, the firmware directories), kept in the cache, and made anew when one of the
programs changes.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from .common import CACHE, ROOT, HostError, forget_older, tool

QEMU_REQUIRED = ("qemu-system-x86_64",)
QEMU_WELCOME = ("qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon")
FIRMWARE = ("/usr/share/seabios", "/usr/share/qemu")
FIRMWARE_SUFFIXES = (".bin", ".rom")
FIRMWARE_LIMIT = 1 << 20
PYTHON = Path("/usr/bin/python3")
PYTHON_LEFT_OUT = ("test", "idlelib", "tkinter", "ensurepip", "turtledemo", "lib2to3", "config-*", "pydoc_data")
VENV = ROOT / ".cache/venv"
# Headroom for the file system's own tables, and the least size that makes a sound ext4.
OVERHEAD = 1.15
SMALLEST = 64 << 20


def _programs(names, required):
    found = []
    for name in names:
        path = shutil.which(name)
        if path:
            found.append(Path(path).resolve())
        elif required:
            raise HostError(f"{name} is not here; run ci/install-deps")
    return found


def _inputs(with_qemu, with_python):
    """The files whose change makes the disk stale."""
    inputs = [Path(__file__)]
    if with_qemu:
        inputs += _programs(QEMU_REQUIRED, True) + _programs(QEMU_WELCOME, False)
    if with_python:
        inputs += [PYTHON.resolve(), *VENV.glob("lib/python3*/site-packages/qemu_qmp-*.dist-info/METADATA")]
    return inputs


def disk(with_qemu, with_python):
    """Path of the tools disk that was asked for, or None when none was."""
    if not (with_qemu or with_python):
        return None
    stamps = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in _inputs(with_qemu, with_python)]
    key = hashlib.sha256(json.dumps([with_qemu, with_python, stamps]).encode()).hexdigest()[:16]
    path = CACHE / f"tools-{key}.ext4"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="tools-", dir=CACHE) as scratch:
            tree = Path(scratch) / "tree"
            (tree / "usr/bin").mkdir(parents=True)
            if with_qemu:
                _add_qemu(tree)
            if with_python:
                _add_python(tree)
            make_ext4(Path(scratch) / "disk", tree, space=0, label="tools")
            os.rename(Path(scratch) / "disk", path)
        forget_older(path, "tools-*.ext4")
    return path


def _add_with_libraries(tree, program, destination):
    """Copies a program and the shared libraries it loads, each to the place where it will be looked for."""
    target = tree / destination
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(program, target)
    _add_libraries(tree, program)


def _add_libraries(tree, program):
    listed = tool("ldd", program, problem=f"cannot tell the libraries of {program}")
    for path in re.findall(r"(/\S+) \(0x", listed):
        # /lib is a link to /usr/lib on every Debian since 12: follow links of directories, not of the file's name.
        place = Path(os.path.realpath(os.path.dirname(path))) / os.path.basename(path)
        target = tree / place.relative_to("/")
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    # The loader's name is fixed in every program.
    loader = tree / "usr/lib64/ld-linux-x86-64.so.2"
    if not loader.exists():
        loader.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("/lib64/ld-linux-x86-64.so.2", loader)


def _add_qemu(tree):
    for program in _programs(QEMU_REQUIRED, True) + _programs(QEMU_WELCOME, False):
        _add_with_libraries(tree, program, Path("usr/bin") / program.name)
    for directory in map(Path, FIRMWARE):
        if not directory.is_dir():
            continue
        for path in directory.iterdir():
            if path.suffix in FIRMWARE_SUFFIXES and path.is_file() and path.stat().st_size <= FIRMWARE_LIMIT:
                target = tree / path.relative_to("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)


def _add_python(tree):
    program = PYTHON.resolve()
    _add_with_libraries(tree, program, Path("usr/bin") / program.name)
    (tree / "usr/bin/python3").symlink_to(program.name)
    library = Path("/usr/lib") / program.name
    shutil.copytree(library, tree / library.relative_to("/"), dirs_exist_ok=True, symlinks=False,
                    ignore_dangling_symlinks=True, ignore=shutil.ignore_patterns(*PYTHON_LEFT_OUT))
    for extension in (library / "lib-dynload").glob("*.so"):
        _add_libraries(tree, extension)
    packages = list(VENV.glob("lib/python3*/site-packages/qemu"))
    if not packages:
        raise HostError("no QMP client in .cache/venv; run ci/install-deps")
    shutil.copytree(packages[0], tree / "usr/lib/python3/dist-packages/qemu")


def make_ext4(path, tree, space, label):
    """Makes ``path`` an ext4 image, sparse, with the files of ``tree`` and ``space`` bytes to spare."""
    content = 0
    for directory, _, names in os.walk(tree):
        content += 4096
        for name in names:
            # What is to be written in holes counts as well.
            content += ((Path(directory) / name).lstat().st_size + 4095) & ~4095
    size = max(int(content * OVERHEAD), SMALLEST) + space
    # No journal: a crash of the emulated machine is repaired well enough, and its disk writes are slow.
    tool("mke2fs", "-q", "-t", "ext4", "-L", label, "-m", "0", "-O", "^has_journal",
         "-E", "root_owner=0:0,lazy_itable_init=1,nodiscard", "-d", tree, path, f"{size >> 10}k",
         problem=f"cannot make the {label} disk")
