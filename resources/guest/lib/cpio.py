"""Writes initramfs archives ("newc" cpio) without root and without traces of the machine.

Everything belongs to root and has the time stamp 0, so equal contents give equal archives;
format: Documentation/driver-api/early-userspace/buffer-format.rst of Linux.
"""

import os
import stat
from pathlib import Path


class Archive:
    """An initramfs being written to the binary file ``out``."""

    def __init__(self, out):
        self._out = out
        self._inode = 0
        self._directories = set()

    def _entry(self, name, mode, data=b"", device=(0, 0)):
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._out.write(header + encoded + bytes(-(len(header) + len(encoded)) % 4))
        self._out.write(data + bytes(-len(data) % 4))

    def directory(self, name, mode=0o755):
        """A directory, with those above it; once only."""
        path = Path(name)
        for part in [*reversed(path.parents), path]:
            text = str(part)
            if text not in (".", "/") and text not in self._directories:
                self._directories.add(text)
                self._entry(text, stat.S_IFDIR | mode)

    def file(self, name, data, mode=0o644):
        """A regular file with the contents ``data``."""
        self.directory(Path(name).parent)
        self._entry(name, stat.S_IFREG | mode, data)

    def symlink(self, name, target):
        """A symbolic link to ``target``."""
        self.directory(Path(name).parent)
        self._entry(name, stat.S_IFLNK | 0o777, os.fsencode(target))

    def character_device(self, name, major, minor, mode=0o600):
        """A character device node."""
        self.directory(Path(name).parent)
        self._entry(name, stat.S_IFCHR | mode, device=(major, minor))

    def tree(self, root):
        """Everything below the directory ``root``, in the order of names."""
        for directory, names, files in os.walk(root):
            names.sort()
            for name in sorted(names + files):
                path = Path(directory) / name
                inside = str(path.relative_to(root))
                if path.is_symlink():
                    self.symlink(inside, os.readlink(path))
                elif path.is_dir():
                    self.directory(inside)
                else:
                    mode = 0o755 if os.access(path, os.X_OK) else 0o644
                    self.file(inside, path.read_bytes(), mode)

    def close(self):
        """Ends the archive; the file stays open."""
        self._inode = 0
        self._entry("TRAILER!!!", 0)
