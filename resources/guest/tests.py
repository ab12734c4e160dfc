#!/usr/bin/env python3
"""Tests of the guest recipe's own parts: ``python3 resources/guest/tests.py``. Needs no network."""

import io
import lzma
import struct
import subprocess
import sys
import tempfile
import unittest
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "lib"))
sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position  # the path has to be set first
import cpio
import modules
import packages
import vmlinux


def elf(note=vmlinux.NOTE_PHYS32_ENTRY):
    """A 64-bit ELF file with one note, which says 0x1234."""
    notes = struct.pack("<III", 4, 4, 99) + b"GNU\0" + bytes(4)
    notes += struct.pack("<III", 4, 8, note) + b"Xen\0" + struct.pack("<Q", 0x1234)
    header = bytearray(0x40)
    header[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", header, 0x20, 0x40)
    struct.pack_into("<HH", header, 0x36, 56, 1)
    program = struct.pack("<IIQQQQQQ", vmlinux.PT_NOTE, 0, 0x40 + 56, 0, 0, len(notes), len(notes), 4)
    return bytes(header) + program + notes


def bzimage(payload, kernel_length):
    """A bzImage of one setup sector around a compressed payload."""
    payload += struct.pack("<I", kernel_length)
    image = bytearray(2 * vmlinux.SECTOR)
    image[vmlinux.SETUP_SECTS] = 1
    image[vmlinux.HEADER_MAGIC:vmlinux.HEADER_MAGIC + 4] = b"HdrS"
    struct.pack_into("<H", image, vmlinux.PROTOCOL_VERSION, 0x020F)
    struct.pack_into("<II", image, vmlinux.PAYLOAD_OFFSET, 16, len(payload))
    return bytes(image) + bytes(16) + payload


def gzip_stream(data):
    """``data`` as a gzip stream."""
    compressor = zlib.compressobj(wbits=vmlinux.GZIP_FORMAT)
    return compressor.compress(data) + compressor.flush()


class Vmlinux(unittest.TestCase):
    """The kernel inside a bzImage."""

    def test_every_compression_gives_the_kernel_back(self):
        kernel = elf() + bytes(5000)
        streams = {
            "gzip": gzip_stream(kernel),
            "xz": lzma.compress(kernel, check=lzma.CHECK_CRC32),
            "zstd": subprocess.run(["zstd", "-cq"], input=kernel, stdout=subprocess.PIPE, check=True).stdout,
            "lz4": subprocess.run(["lz4", "-lcq"], input=kernel, stdout=subprocess.PIPE, check=True).stdout,
        }
        for name, stream in streams.items():
            with self.subTest(name):
                self.assertEqual(vmlinux.extract(bzimage(stream, len(kernel))), kernel)

    def test_what_is_no_kernel_is_refused(self):
        kernel = elf()
        whole = bzimage(gzip_stream(kernel), len(kernel))
        for name, data in {
                "empty": b"",
                "text": b"not a kernel " * 1000,
                "cut short": whole[:-10],
                "wrong length": bzimage(gzip_stream(kernel), len(kernel) + 1),
                "damaged": bzimage(gzip_stream(kernel)[:12] + b"\xff" * 40, len(kernel)),
                "unknown compression": bzimage(b"\0" * 64, 64),
        }.items():
            with self.subTest(name), self.assertRaises(vmlinux.KernelError):
                vmlinux.extract(data)

    def test_pvh_entry_is_that_of_the_note(self):
        self.assertEqual(vmlinux.pvh_entry(elf()), 0x1234)

    def test_a_kernel_without_the_note_is_refused(self):
        for data in (elf(note=17), elf()[:0x50], b"\x7fELF", b""):
            with self.assertRaises(vmlinux.KernelError):
                vmlinux.pvh_entry(data)


class Cpio(unittest.TestCase):
    """Initramfs archives."""

    def test_cpio_reads_back_what_was_written(self):
        with tempfile.TemporaryDirectory() as scratch:
            tree = Path(scratch) / "tree"
            (tree / "a/b").mkdir(parents=True)
            (tree / "a/b/file").write_bytes(b"contents")
            (tree / "a/program").write_bytes(b"#!/bin/sh\n")
            (tree / "a/program").chmod(0o755)
            (tree / "link").symlink_to("a/b/file")
            out = io.BytesIO()
            archive = cpio.Archive(out)
            archive.character_device("dev/console", 5, 1)
            archive.tree(tree)
            archive.close()
            listed = subprocess.run(["cpio", "-itv", "--quiet"], input=out.getvalue(),
                                    stdout=subprocess.PIPE, check=True).stdout.decode()
            lines = [(line.split()[0], line.split(None, 8)[-1]) for line in listed.splitlines()]
            self.assertIn(("-rwxr-xr-x", "a/program"), lines)
            self.assertIn(("lrwxrwxrwx", "link -> a/b/file"), lines)
            self.assertTrue(any(mode == "crw-------" for mode, _ in lines))
            self.assertEqual(len(lines), len(set(lines)), "an entry twice")
            read = subprocess.run(["cpio", "-i", "--quiet", "--to-stdout", "a/b/file"], input=out.getvalue(),
                                  stdout=subprocess.PIPE, check=True).stdout
            self.assertEqual(read, b"contents")


class Packages(unittest.TestCase):
    """What is said when something cannot be had."""

    def test_an_unknown_package_is_named(self):
        with tempfile.TemporaryDirectory() as scratch:
            with self.assertRaisesRegex(packages.PackageError, "no-such-package"):
                packages.fetch("no-such-package", "no-such-package_*", Path(scratch), lambda _: None)

    def test_the_newest_cached_version_serves_when_apt_cannot(self):
        with tempfile.TemporaryDirectory() as scratch:
            for version in ("9.1", "10.2", "11.0"):
                (Path(scratch) / f"no-such-package_{version}").mkdir()
                if version != "11.0":
                    (Path(scratch) / f"no-such-package_{version}/.complete").touch()
            said = []
            found = packages.fetch("no-such-package", "no-such-package_*", Path(scratch), said.append)
            self.assertEqual(found.name, "no-such-package_10.2")
            self.assertEqual(len(said), 1)

    def test_a_directory_without_modules_is_refused(self):
        with tempfile.TemporaryDirectory() as scratch, self.assertRaises(modules.ModuleError):
            modules.release(Path(scratch))


if __name__ == "__main__":
    unittest.main()
