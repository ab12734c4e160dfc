"""Guests of a machine without CPUs, who write to their disk by its registers, over the qtest socket. Part of run.py's suite."""

import socket

SECTOR = 512


class Qtest:
    """The test's end of the socket, for lines that are answered by one line."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self.lines = connection.makefile("r", encoding="ascii", newline="\n")

    def ask(self, command: str) -> int:
        """The number in the answer, or 0."""
        self.connection.sendall(command.encode() + b"\n")
        while True:
            line = self.lines.readline()
            if not line:
                raise EOFError(f"the machine has ended before {command}")
            if not line.startswith("IRQ "):
                break
        ok, *value = line.split()
        assert ok == "OK", f"{command}: {line}"
        return int(value[0], 0) if value else 0

    def memory(self, address: int, data: bytes) -> None:
        self.ask(f"write {address:#x} {len(data):#x} 0x{data.hex()}")

    def configure(self, function: int, register: int, value: int | None = None) -> int:
        """Reads or writes a register of a PCI function, given as SLOT * 8 + FUNCTION."""
        self.ask(f"outl 0xcf8 {0x80000000 | function << 8 | register:#x}")
        return self.ask("inl 0xcfc") if value is None else self.ask(f"outl 0xcfc {value:#x}")


class IdeGuest:
    """The primary master, by DMA."""

    FUNCTION, PORTS = 1 << 3 | 1, 0xC000
    TABLE, BUFFER = 0x100000, 0x200000

    def __init__(self, qtest: Qtest):
        self.qtest = qtest
        qtest.configure(self.FUNCTION, 0x20, self.PORTS)
        qtest.configure(self.FUNCTION, 0x04, 7)

    def begin_write(self, sector: int, byte: int) -> None:
        ask = self.qtest.ask
        self.qtest.memory(self.BUFFER, bytes([byte]) * SECTOR)
        self.qtest.memory(self.TABLE, self.BUFFER.to_bytes(4, "little") + (1 << 31 | SECTOR).to_bytes(4, "little"))
        ask(f"outl {self.PORTS + 4:#x} {self.TABLE:#x}")
        for port, value in ((0x1F6, 0xE0), (0x1F2, 1), (0x1F3, sector), (0x1F4, 0), (0x1F5, 0), (0x1F7, 0xCA), (self.PORTS, 1)):
            ask(f"outb {port:#x} {value:#x}")

    def has_ended(self) -> bool:
        drive, transfer = self.qtest.ask("inb 0x3f6"), self.qtest.ask(f"inb {self.PORTS + 2:#x}")
        if drive & 0x80 or transfer & 1:
            return False
        assert not drive & 1, "the guest saw an error"
        return True

    def reset(self) -> None:
        """SRST."""
        self.qtest.ask("outb 0x3f6 4")
        self.qtest.ask("outb 0x3f6 0")


class VirtioGuest:
    """A disk in slot 5, with a ring for one request."""

    FUNCTION, MEMORY = 5 << 3, 0xE0000000
    DESCRIPTORS, AVAILABLE, USED, REQUEST = 0x300000, 0x304000, 0x308000, 0x310000

    def __init__(self, qtest: Qtest):
        self.qtest = qtest
        places = {}
        at = qtest.configure(self.FUNCTION, 0x34) & 0xFF
        while at:
            head = qtest.configure(self.FUNCTION, at)
            if head & 0xFF == 0x09:
                bar, offset = (qtest.configure(self.FUNCTION, at + more) for more in (4, 8))
                places.setdefault(head >> 24, (bar & 0xFF, offset))
            at = head >> 8 & 0xFF
        for bar in {bar for bar, _ in places.values()}:
            qtest.configure(self.FUNCTION, 0x10 + 4 * bar, self.MEMORY + (bar << 20))
        qtest.configure(self.FUNCTION, 0x04, 7)
        self.common, self.doorbell = (self.MEMORY + (bar << 20) + offset for bar, offset in (places[1], places[2]))
        self.status(1 | 2)
        for half, features in enumerate((0, 1)):
            qtest.ask(f"writel {self.common + 8:#x} {half}")
            qtest.ask(f"writel {self.common + 12:#x} {features}")
        self.status(1 | 2 | 8)
        qtest.ask(f"writew {self.common + 24:#x} 8")
        for register, address in ((32, self.DESCRIPTORS), (40, self.AVAILABLE), (48, self.USED)):
            qtest.ask(f"writeq {self.common + register:#x} {address:#x}")
        qtest.ask(f"writew {self.common + 28:#x} 1")
        self.status(1 | 2 | 4 | 8)

    def status(self, value: int) -> None:
        self.qtest.ask(f"writeb {self.common + 20:#x} {value}")

    def begin_write(self, sector: int, byte: int) -> None:
        data, answer = self.REQUEST + 0x1000, self.REQUEST + 0x2000
        header = (1).to_bytes(8, "little") + sector.to_bytes(8, "little")
        self.qtest.memory(self.REQUEST, header)
        self.qtest.memory(data, bytes([byte]) * SECTOR)
        self.qtest.memory(answer, b"\xff")
        ring = b""
        for index, (address, length, flags) in enumerate(((self.REQUEST, 16, 1), (data, SECTOR, 1), (answer, 1, 2))):
            ring += address.to_bytes(8, "little") + length.to_bytes(4, "little")
            ring += flags.to_bytes(2, "little") + (index + 1).to_bytes(2, "little")
        self.qtest.memory(self.DESCRIPTORS, ring)
        self.qtest.memory(self.AVAILABLE, bytes((0, 0, 1, 0, 0, 0)))
        self.qtest.ask(f"writew {self.doorbell:#x} 0")

    def has_ended(self) -> bool:
        if self.qtest.ask(f"readw {self.USED + 2:#x}") == 0:
            return False
        assert self.qtest.ask(f"readb {self.REQUEST + 0x2000:#x}") == 0, "the guest saw an error"
        return True

    def reset(self) -> None:
        """Status 0."""
        self.status(0)


GUESTS = {"ide": IdeGuest, "virtio": VirtioGuest}
