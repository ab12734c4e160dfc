"""The program ``reseed`` of the emulated host: has its kernel draw a new random seed from all that it was told.

What is written to /dev/urandom is used only when the kernel reseeds by itself, up to a minute later, and until then
each machine that goes on from one saved state draws the same numbers. The way out is an ioctl, which busybox has no
applet for, and which must not cost a compiler: so the program is written out here, instruction by instruction.
"""

import struct

# Where the file is loaded; anything above the kernel's lowest address for mappings.
BASE = 0x400000
EHDR, PHDR = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ")
ET_EXEC, EM_X86_64, EV_CURRENT = 2, 62, 1
PT_LOAD, PF_X, PF_R = 1, 1, 4
PAGE = 0x1000
# The kernel's numbers (asm/unistd_64.h, linux/random.h: _IO('R', 0x07)).
SYS_OPEN, SYS_IOCTL, SYS_EXIT = 2, 16, 60
RNDRESEEDCRNG = 0x5207
DEVICE = b"/dev/urandom\0"


def _move(register, value):
    """mov r32, imm32, for a register by its number: 0 is eax, 6 esi, 7 edi."""
    return bytes([0xB8 + register]) + struct.pack("<I", value)


def program():
    """The program as an ELF file; its exit status is the error of the ioctl, 0 if there was none."""
    eax, esi, edi = 0, 6, 7
    syscall, move_edi_eax, negate_edi = b"\x0f\x05", b"\x89\xc7", b"\xf7\xdf"
    start = EHDR.size + PHDR.size
    code = b"".join((
        _move(eax, SYS_OPEN), _move(edi, BASE + start), _move(esi, 0), syscall,
        move_edi_eax, _move(esi, RNDRESEEDCRNG), _move(eax, SYS_IOCTL), syscall,
        move_edi_eax, negate_edi, _move(eax, SYS_EXIT), syscall,
    ))
    size = start + len(DEVICE) + len(code)
    ident = b"\x7fELF" + bytes([2, 1, EV_CURRENT])
    header = EHDR.pack(ident, ET_EXEC, EM_X86_64, EV_CURRENT, BASE + start + len(DEVICE), EHDR.size, 0, 0,
                       EHDR.size, PHDR.size, 1, 0, 0, 0)
    segment = PHDR.pack(PT_LOAD, PF_R | PF_X, 0, BASE, BASE, size, size, PAGE)
    return header + segment + DEVICE + code
