"""Takes the ELF kernel out of a bzImage, and checks that it can be started by PVH.

The layout is that of the Linux x86 boot protocol (Documentation/arch/x86/boot.rst): the setup
header says how many 512-byte sectors the real-mode part takes and where in the protected-mode
part the compressed payload lies; the payload ends with its own uncompressed length, four bytes,
little endian.
"""

import bz2
import lzma
import struct
import subprocess
import zlib

SECTOR = 512
SETUP_SECTS = 0x1F1
BOOT_FLAG = 0x1FE
HEADER_MAGIC = 0x202
PROTOCOL_VERSION = 0x206
PAYLOAD_OFFSET = 0x248
PAYLOAD_LENGTH = 0x24C
PAYLOAD_SINCE = 0x0208
DEFAULT_SETUP_SECTS = 4

PT_NOTE = 4
# Xen's note of the 32-bit entry point, by which PVH starts a kernel (xen/include/public/elfnote.h).
NOTE_NAME_XEN = b"Xen\0"
NOTE_PHYS32_ENTRY = 18


class KernelError(Exception):
    """The file is not a kernel that can be used here; the text says what is wrong."""


# zlib's window bits for a stream with gzip's header.
GZIP_FORMAT = 31


def _by_program(*command):
    def decompress(data):
        try:
            run = subprocess.run(command, input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        except FileNotFoundError as error:
            raise KernelError(f"{command[0]} is not here to decompress it: run ci/install-deps") from error
        # Bytes after the compressed stream make these programs complain: judge by what came out.
        if not run.stdout:
            raise KernelError(f"{command[0]}: {run.stderr.decode(errors='replace').strip()}")
        return run.stdout
    return decompress


def _xz(data):
    return lzma.LZMADecompressor().decompress(data)


DECOMPRESSORS = (
    (b"\x1f\x8b", lambda data: zlib.decompressobj(GZIP_FORMAT).decompress(data)),
    (b"\xfd7zXZ\0", _xz),
    (b"\x5d\0\0", _xz),
    (b"BZh", lambda data: bz2.BZ2Decompressor().decompress(data)),
    (b"\x28\xb5\x2f\xfd", _by_program("zstd", "-dcq")),
    (b"\x02\x21\x4c\x18", _by_program("lz4", "-dcq")),
    (b"\x04\x22\x4d\x18", _by_program("lz4", "-dcq")),
)


def extract(bzimage):
    """The ELF kernel inside ``bzimage`` (bytes), as bytes."""
    if len(bzimage) < 0x264 or bzimage[HEADER_MAGIC:HEADER_MAGIC + 4] != b"HdrS":
        raise KernelError("not a bzImage: no setup header")
    version, = struct.unpack_from("<H", bzimage, PROTOCOL_VERSION)
    if version < PAYLOAD_SINCE:
        raise KernelError(f"boot protocol {version >> 8}.{version & 0xFF} does not say where the kernel is")
    sectors = bzimage[SETUP_SECTS] or DEFAULT_SETUP_SECTS
    offset, length = struct.unpack_from("<II", bzimage, PAYLOAD_OFFSET)
    start = (sectors + 1) * SECTOR + offset
    payload = bzimage[start:start + length]
    if len(payload) != length or length < 8:
        raise KernelError("the bzImage is cut short")
    wanted, = struct.unpack_from("<I", payload, length - 4)
    for magic, decompress in DECOMPRESSORS:
        if payload.startswith(magic):
            try:
                kernel = decompress(payload[:-4])
            except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
                raise KernelError(f"the payload is damaged: {error}") from error
            break
    else:
        raise KernelError(f"unknown compression, payload starts with {payload[:6].hex()}")
    if len(kernel) != wanted:
        raise KernelError(f"decompressed to {len(kernel)} bytes, the image promises {wanted}")
    return kernel


def pvh_entry(elf):
    """Physical address of the PVH entry point of the 64-bit ELF file ``elf`` (bytes)."""
    if len(elf) < 0x40 or elf[:6] != b"\x7fELF\x02\x01":
        raise KernelError("not a little-endian 64-bit ELF file")
    table, = struct.unpack_from("<Q", elf, 0x20)
    size, count = struct.unpack_from("<HH", elf, 0x36)
    for index in range(count):
        try:
            kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", elf, table + index * size)
        except struct.error as error:
            raise KernelError("the ELF file is cut short") from error
        if kind != PT_NOTE:
            continue
        position, end = offset, min(offset + length, len(elf))
        while position + 12 <= end:
            name_length, value_length, note = struct.unpack_from("<III", elf, position)
            name = position + 12
            value = name + (name_length + 3 & ~3)
            if elf[name:name + name_length] == NOTE_NAME_XEN and note == NOTE_PHYS32_ENTRY:
                return int.from_bytes(elf[value:value + value_length], "little")
            position = value + (value_length + 3 & ~3)
    raise KernelError("the kernel has no PVH note")
