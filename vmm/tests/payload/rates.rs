//! How fast a processor without an operating system reads by IDE and by virtio: a measurement, which no test judges.
//! `ci/bench payload` runs it.
//!
//! One guest reads the same 64 KiB again and again, each read after the interrupt of the one before: by Ultra DMA with the
//! port accesses of Linux's driver, in its order (libata of 6.1: 13 reads and 13 writes), or by a virtio queue with one
//! store to the doorbell and one message. Nothing but this is measured, so the difference is what the exits cost.
//!
//! Between them it reads a port that is nobody's, as often as the driver reads registers for a command. What that takes no
//! controller can save, however fast it is: KVM hands over each read of a port.

use std::io::Read as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::image::{Code, LOAD_ADDRESS, port};
use crate::{sluice, told};

/// Bytes of a read.
const READ: u32 = 64 << 10;
/// IDE, virtio, and what stands for IDE's register reads.
const KINDS: usize = 3;
/// Reads between two looks at the clock.
const READS: u32 = 256;
/// How often either disk is measured; the first time is not counted.
const TURNS: usize = 25;
/// Register reads of a command.
const PORT_READS: usize = 13;
/// A port of no device.
const NOBODYS: u16 = 0x2f0;
/// The least share of virtio's rate that IDE is to reach.
const WANTED: f64 = 0.6;

/// Where things lie in the guest's memory. All of it is zero at first.
pub(crate) mod place {
    pub(crate) const GDT: u32 = 0x20_0000;
    pub(crate) const GDT_POINTER: u32 = 0x20_0100;
    pub(crate) const IDT_POINTER: u32 = 0x20_0108;
    /// Not zero: an interrupt has come.
    pub(crate) const FLAG: u32 = 0x20_0200;
    pub(crate) const IDT: u32 = 0x20_1000;
    pub(crate) const PRDS: u32 = 0x21_0000;
    pub(crate) const DESCRIPTORS: u32 = 0x22_0000;
    pub(crate) const AVAILABLE: u32 = 0x22_1000;
    pub(crate) const USED: u32 = 0x22_2000;
    pub(crate) const HEADER: u32 = 0x22_3000;
    pub(crate) const STATUS: u32 = 0x22_3100;
    pub(crate) const STACK: u32 = 0x30_0000;
    pub(crate) const DATA: u32 = 0x40_0000;
}

/// The interrupt controllers' registers.
const LOCAL_APIC: u32 = 0xfee0_0000;
const APIC_END_OF_INTERRUPT: u32 = LOCAL_APIC + 0xb0;
const APIC_SPURIOUS: u32 = LOCAL_APIC + 0xf0;
const IO_APIC_INDEX: u32 = 0xfec0_0000;
const IO_APIC_DATA: u32 = IO_APIC_INDEX + 0x10;
/// The I/O APIC's entry of the primary IDE channel's interrupt.
const IO_APIC_IDE: u32 = 0x10 + 2 * 14;
/// The one vector that both disks use.
const VECTOR: u32 = 0x40;

/// Configuration space, as the address port wants it, of the IDE function and of the first virtio function.
const IDE: u32 = 0x8000_0900;
const VIRTIO: u32 = 0x8000_1000;
const PCI_COMMAND: u32 = 0x04;
const BAR1: u32 = 0x14;
const BAR4: u32 = 0x20;
/// The first capability of a virtio function is MSI-X.
const MSIX: u32 = 0x40;
const MSIX_ENABLE: u32 = 1 << 31;

/// Where the windows are put.
const BUS_MASTER: u16 = 0xd000;
const MSIX_TABLE: u32 = 0xf000_0000;
const COMMON: u32 = 0xf010_0000;
pub(crate) const DOORBELL: u32 = COMMON + 0x3000;

const CODE_SEGMENT: u32 = 0x08;
const DATA_SEGMENT: u8 = 0x10;

impl Code {
    /// `mov dword [address], value`
    pub(crate) fn store32(self, address: u32, value: u32) -> Self {
        self.bytes(&[0xc7, 0x05])
            .bytes(&address.to_le_bytes())
            .bytes(&value.to_le_bytes())
    }

    /// `mov word [address], value`
    pub(crate) fn store16(self, address: u32, value: u16) -> Self {
        self.bytes(&[0x66, 0xc7, 0x05])
            .bytes(&address.to_le_bytes())
            .bytes(&value.to_le_bytes())
    }

    /// `mov byte [address], value`
    fn store8(self, address: u32, value: u8) -> Self {
        self.bytes(&[0xc6, 0x05])
            .bytes(&address.to_le_bytes())
            .bytes(&[value])
    }

    fn config32(self, register: u32, value: u32) -> Self {
        self.out32(port::PCI_ADDRESS, register)
            .out32(port::PCI_DATA, value)
    }

    /// Where the next instruction lies.
    pub(crate) fn here(&self) -> u32 {
        LOAD_ADDRESS + u32::try_from(self.instructions().len()).unwrap()
    }

    /// `mov ebx, count; again: …; dec ebx; jnz again`
    fn repeat(self, count: u32, body: &Self) -> Self {
        const JUMP: i32 = 6;
        let back = i32::try_from(body.instructions().len()).unwrap() + 1 + JUMP;
        self.bytes(&[0xbb])
            .bytes(&count.to_le_bytes())
            .bytes(body.instructions())
            .bytes(&[0x4b, 0x0f, 0x85])
            .bytes(&(-back).to_le_bytes())
    }

    /// Sleeps until an interrupt has come, and forgets it.
    fn wait(self) -> Self {
        // again: cli; cmp dword [FLAG], 0; jne done; sti; hlt; jmp again; done:
        self.bytes(&[0xfa, 0x83, 0x3d])
            .bytes(&place::FLAG.to_le_bytes())
            .bytes(&[0x00, 0x75, 0x04, 0xfb, 0xf4, 0xeb, 0xf2])
            .store32(place::FLAG, 0)
    }
}

/// Segments, interrupts, and a handler that sets the flag.
pub(crate) fn machine() -> Code {
    // Over the handler.
    let handler = Code::new()
        .store32(place::FLAG, 1)
        .store32(APIC_END_OF_INTERRUPT, 0)
        // retf 4, which leaves interrupts off, for iret, which KVM without hardware does not emulate.
        .bytes(&[0xca, 0x04, 0x00]);
    let length = u8::try_from(handler.instructions().len()).unwrap();
    let code = Code::new().bytes(&[0xeb, length]);
    let entry = code.here();
    let code = code.bytes(handler.instructions());
    let code = code
        .store32(place::GDT + 8, 0x0000_ffff)
        .store32(place::GDT + 12, 0x00cf_9a00)
        .store32(place::GDT + 16, 0x0000_ffff)
        .store32(place::GDT + 20, 0x00cf_9200)
        .store16(place::GDT_POINTER, 0x17)
        .store32(place::GDT_POINTER + 2, place::GDT)
        .bytes(&[0x0f, 0x01, 0x15]) // lgdt
        .bytes(&place::GDT_POINTER.to_le_bytes());
    // jmp CODE_SEGMENT:next
    let next = code.here() + 7;
    let code = code
        .bytes(&[0xea])
        .bytes(&next.to_le_bytes())
        .bytes(&[8, 0])
        .bytes(&[0x66, 0xb8, DATA_SEGMENT, 0x00]) // mov ax, …; mov ds, ax; es; ss
        .bytes(&[0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0])
        .bytes(&[0xbc]) // mov esp, …
        .bytes(&place::STACK.to_le_bytes());
    let gate = place::IDT + 8 * VECTOR;
    code.store32(gate, CODE_SEGMENT << 16 | entry & 0xffff)
        .store32(gate + 4, entry & 0xffff_0000 | 0x8e00)
        .store16(place::IDT_POINTER, 0x7ff)
        .store32(place::IDT_POINTER + 2, place::IDT)
        .bytes(&[0x0f, 0x01, 0x1d]) // lidt
        .bytes(&place::IDT_POINTER.to_le_bytes())
        // The old controllers are silenced.
        .out8(0x21, 0xff)
        .out8(0xa1, 0xff)
        .store32(APIC_SPURIOUS, 0x1ff)
        .store32(IO_APIC_INDEX, IO_APIC_IDE + 1)
        .store32(IO_APIC_DATA, 0)
        .store32(IO_APIC_INDEX, IO_APIC_IDE)
        .store32(IO_APIC_DATA, VECTOR)
}

fn ide_set_up(code: Code) -> Code {
    code.config32(IDE + BAR4, u32::from(BUS_MASTER) | 1)
        .config32(IDE + PCI_COMMAND, 5)
        .store32(place::PRDS, place::DATA)
        .store32(place::PRDS + 4, 1 << 31)
}

/// A read by Ultra DMA.
fn ide_read() -> Code {
    const TABLE: u16 = BUS_MASTER + 4;
    const BM_STATUS: u16 = BUS_MASTER + 2;
    const ALTERNATE: u16 = 0x3f6;
    const STATUS: u16 = 0x1f7;
    Code::new()
        // Is it idle? Select it.
        .in8(STATUS)
        .out8(0x1f6, 0xa0)
        .in8(ALTERNATE)
        .in8(STATUS)
        // 128 sectors from 0.
        .out8(0x1f1, 0)
        .out8(0x1f2, 128)
        .out8(0x1f3, 0)
        .out8(0x1f4, 0)
        .out8(0x1f5, 0)
        .out8(0x1f6, 0xe0)
        .in8(STATUS)
        .out32(TABLE, place::PRDS)
        .in8(BUS_MASTER)
        .out8(BUS_MASTER, 8)
        .out8(STATUS, 0xc8)
        .in8(ALTERNATE)
        .in8(BUS_MASTER)
        .out8(BUS_MASTER, 9)
        .wait()
        // Was it this drive? Stop, look, acknowledge.
        .in8(BM_STATUS)
        .in8(BUS_MASTER)
        .out8(BUS_MASTER, 8)
        .in8(ALTERNATE)
        .in8(ALTERNATE)
        .in8(STATUS)
        .in8(BM_STATUS)
        .out8(BM_STATUS, 4)
}

/// As many port reads as a command takes, and nothing else.
fn port_reads() -> Code {
    (0..PORT_READS).fold(Code::new(), |code, _| code.in8(NOBODYS))
}

pub(crate) fn virtio_set_up(code: Code) -> Code {
    const NEXT: u32 = 1;
    const WRITE: u32 = 2;
    let code = code
        .config32(VIRTIO + BAR1, MSIX_TABLE)
        .config32(VIRTIO + BAR4, COMMON)
        .config32(VIRTIO + BAR4 + 4, 0)
        .config32(VIRTIO + PCI_COMMAND, 6)
        .store32(MSIX_TABLE, LOCAL_APIC)
        .store32(MSIX_TABLE + 4, 0)
        .store32(MSIX_TABLE + 8, VECTOR)
        .store32(MSIX_TABLE + 12, 0)
        .config32(VIRTIO + MSIX, MSIX_ENABLE)
        // Status, features (VERSION_1), the queue, status.
        .store8(COMMON + 20, 0)
        .store8(COMMON + 20, 3)
        .store32(COMMON + 8, 1)
        .store32(COMMON + 12, 1)
        .store8(COMMON + 20, 11)
        .store16(COMMON + 22, 0)
        .store16(COMMON + 24, 16)
        .store16(COMMON + 26, 0)
        .store32(COMMON + 32, place::DESCRIPTORS)
        .store32(COMMON + 40, place::AVAILABLE)
        .store32(COMMON + 48, place::USED)
        .store16(COMMON + 28, 1)
        .store8(COMMON + 20, 15);
    // A read of sector 0, all zeroes, and its three descriptors; each entry of the available ring is descriptor 0.
    let parts = [
        (place::HEADER, 16, 1 << 16 | NEXT),
        (place::DATA, READ, 2 << 16 | NEXT | WRITE),
        (place::STATUS, 1, WRITE),
    ];
    (place::DESCRIPTORS..).step_by(16).zip(parts).fold(
        code,
        |code, (at, (address, length, flags))| {
            code.store32(at, address)
                .store32(at + 8, length)
                .store32(at + 12, flags)
        },
    )
}

/// A read by the queue.
fn virtio_read() -> Code {
    // inc word [AVAILABLE + 2]
    Code::new()
        .bytes(&[0x66, 0xff, 0x05])
        .bytes(&(place::AVAILABLE + 2).to_le_bytes())
        .store16(DOORBELL, 0)
        .wait()
}

/// The guest: it tells of the end of each turn of so many reads, or port reads in their place, and at the end the virtio status and the drive's error.
fn payload(turns: usize, reads: u32) -> Code {
    let turn = |code: Code, read: &Code| code.repeat(reads, read).print(".");
    let code = virtio_set_up(ide_set_up(machine())).store8(place::STATUS, 0xff);
    let code = (0..turns).fold(code.print("."), |code, _| {
        let code = turn(turn(code, &ide_read()), &virtio_read());
        turn(code, &port_reads())
    });
    // mov al, [STATUS]
    code.bytes(&[0xa0])
        .bytes(&place::STATUS.to_le_bytes())
        .out_al(port::SERIAL)
        .in8(0x1f7)
        .out_al(port::SERIAL)
        .power_off()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The guest's program and its two disks, with more options for both.
fn machine_with(directory: &Path, payload: &Code, options: &str) -> Command {
    let kernel = directory.join("payload");
    std::fs::write(&kernel, payload.image()).unwrap();
    let disks = ["ide", "virtio"].map(|name| {
        let path = directory.join(name);
        std::fs::write(&path, vec![0x5a; 1 << 20]).unwrap();
        path.display().to_string()
    });
    let [ide, virtio] = disks;
    let drives = [
        "--object".to_owned(),
        "iothread,id=io0".to_owned(),
        "--drive".to_owned(),
        format!("file={ide},format=raw,if=ide{options}"),
        "--drive".to_owned(),
        format!("file={virtio},format=raw,if=none,id=fast{options}"),
        "--device".to_owned(),
        "virtio-blk-pci,drive=fast,iothread=io0".to_owned(),
    ];
    sluice(&kernel, &drives.each_ref().map(String::as_str))
}

fn measure(directory: &Path, what: &str, options: &str) -> String {
    let mut child = machine_with(directory, &payload(TURNS, READS), options)
        .spawn()
        .unwrap();
    let mut console = child.stdout.take().unwrap();
    let mut byte = [0];
    let mut began = None;
    let mut seconds = Vec::new();
    while seconds.len() < KINDS * TURNS && console.read(&mut byte).unwrap() == 1 {
        let now = Instant::now();
        if let Some(before) = began.replace(now) {
            seconds.push(now.duration_since(before).as_secs_f64());
        }
    }
    let mut rest = Vec::new();
    console.read_to_end(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), rest),
        (Some(0), vec![0x00, 0x50]),
        "{:?}",
        told(&output)
    );
    // Seconds of one read, or of what stands for it.
    let times = |first: usize| -> Vec<f64> {
        let turns = seconds.iter().skip(KINDS + first).step_by(KINDS);
        turns.map(|seconds| seconds / f64::from(READS)).collect()
    };
    let [ide, virtio, ports] = [times(0), times(1), times(2)];
    let ports: Vec<f64> = ports
        .iter()
        .zip(&virtio)
        .map(|(ports, virtio)| ports + virtio)
        .collect();
    let row = |what: &str, ide: f64, virtio: f64, judged: bool| {
        let [rate, reference] =
            [ide, virtio].map(|time| f64::from(READ) / f64::from(1 << 20) / time);
        let ratio = virtio / ide;
        let verdict = match judged {
            true if ratio >= WANTED => format!(">= {WANTED}x met"),
            true => format!(">= {WANTED}x MISSED"),
            false => String::new(),
        };
        format!("{what:57} MiB/s {rate:>11.1} {reference:>11.1} {ratio:>6.2}   {verdict}")
    };
    [
        row(what, median(ide.clone()), median(virtio.clone()), true),
        // On a busy machine the only figures that come again.
        row(
            "  the ninth tenth of the turns",
            best(ide),
            best(virtio.clone()),
            true,
        ),
        row(
            "  virtio and 13 port reads: the most that IDE could reach",
            best(ports),
            best(virtio),
            false,
        ),
    ]
    .join("\n")
}

/// The time that one turn in ten undercuts: the console's way to us now and then lets one turn look long and the next short.
fn best(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 10]
}

#[test]
#[ignore = "a measurement: ci/bench payload"]
#[expect(clippy::print_stdout, reason = "what it is for")]
fn of_ide_and_virtio() {
    // Not in memory: the one is to read past the page cache.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let rows = [
        ("IDE against virtio, 64 KiB reads, no operating system", ""),
        ("  past the page cache (cache=none)", ",cache=none"),
    ];
    for (what, options) in rows {
        println!("{}", measure(directory.path(), what, options));
    }
}

/// A doorbell wakes the queue's thread, its message and the IDE channel's line wake the processor from its sleep,
/// and the bytes are where the guest wants them: on a real processor, without an operating system.
#[test]
fn doorbells_and_interrupts_reach_a_processor() {
    let directory = tempfile::tempdir().unwrap();
    // What was read last is told of too; before each turn it is wiped.
    let told_of = |code: Code| {
        code.bytes(&[0xa0]) // mov al, [DATA + READ - 1]
            .bytes(&(place::DATA + READ - 1).to_le_bytes())
            .out_al(port::SERIAL)
            .store8(place::DATA + READ - 1, 0)
    };
    let code = virtio_set_up(ide_set_up(machine())).store8(place::STATUS, 0xff);
    let code = told_of(code.store8(place::DATA + READ - 1, 1));
    let code = told_of(code.repeat(3, &ide_read()));
    let code = told_of(code.repeat(3, &virtio_read()));
    let output = machine_with(directory.path(), &code.power_off(), "")
        .output()
        .unwrap();
    assert_eq!(
        (output.status.code(), output.stdout.as_slice()),
        (Some(0), &[1, 0x5a, 0x5a][..]),
        "{:?}",
        told(&output)
    );
}
