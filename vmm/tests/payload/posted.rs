//! Writes that KVM queues (coalesced ports), on a real processor: the guest must not be able to tell.

use crate::image::{Code, port};
use crate::{run, told};

const COUNT: u16 = 0x1f2;
const LBA_LOW: u16 = 0x1f3;
const DEVICE: u16 = 0x1f6;
const COMMAND: u16 = 0x1f7;

/// The IDE controller's BAR 4 and command register, as the address port wants them.
const BUS_MASTER_BAR: u32 = 0x8000_0920;
const PCI_COMMAND: u32 = 0x8000_0904;
/// Two windows for it, and the table register in them.
const WINDOWS: [u16; 2] = [0xd000, 0xe000];
const TABLE: u16 = 4;

/// Tells the byte in AL.
fn tell(code: Code) -> Code {
    code.out_al(port::SERIAL)
}

/// Runs `code` with an IDE disk, and returns what it told.
fn told_by(code: Code) -> Vec<u8> {
    told_by_processors(code, 1)
}

/// The same with so many processors, of which the first runs it.
fn told_by_processors(code: Code, processors: u8) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let drive = format!("file={},format=raw,if=ide", disk.display());
    let processors = processors.to_string();
    let arguments = ["--drive", &drive, "--smp", &processors];
    let output = run(&code.power_off(), &arguments);
    assert_eq!(output.status.code(), Some(0), "{:?}", told(&output));
    output.stdout
}

fn select(code: Code) -> Code {
    code.out8(DEVICE, 0xa0)
}

#[test]
fn what_was_written_last_is_what_is_read() {
    let code = select(Code::new())
        .out8(COUNT, 1)
        .out8(COUNT, 2)
        .out8(LBA_LOW, 3)
        .out8(COUNT, 4);
    // Two registers by one store.
    let code = tell(tell(code.in8(COUNT)).in8(LBA_LOW)).out16(COUNT, 0x0605);
    assert_eq!(
        told_by(tell(tell(code.in8(COUNT)).in8(LBA_LOW))),
        [4, 3, 5, 6]
    );
}

/// Many times as many as the host's queue takes.
#[test]
fn more_than_fits_loses_nothing() {
    // mov ecx, 1000; next: mov al, cl; out dx, al; loop next
    let code = select(Code::new())
        .port(COUNT)
        .bytes(&[0xb9, 0xe8, 0x03, 0x00, 0x00])
        .bytes(&[0x88, 0xc8, 0xee, 0xe2, 0xfb]);
    assert_eq!(told_by(tell(code.in8(COUNT))), [1]);
}

/// A string of outputs.
#[test]
fn a_string_is_in_order_too() {
    // mov esi, 0x100000; mov ecx, 16; cld; rep outsb: the first bytes of the payload itself.
    let code = select(Code::new())
        .port(COUNT)
        .bytes(&[0xbe, 0x00, 0x00, 0x10, 0x00, 0xb9, 0x10, 0x00, 0x00, 0x00])
        .bytes(&[0xfc, 0xf3, 0x6e]);
    let sixteenth = code.instructions()[15];
    assert_eq!(told_by(tell(code.in8(COUNT))), [sixteenth]);
}

/// The registers that are written before a command, one after the other, are those that it runs with.
#[test]
fn a_command_finds_what_was_written_before_it() {
    // SET FEATURES with a subcommand that there is not, then with one that there is: enable the write cache.
    let features = |code: Code, value: u8| code.out8(0x1f1, value).out8(COMMAND, 0xef).in8(COMMAND);
    let code = tell(features(tell(features(select(Code::new()), 0x99)), 0x02));
    assert_eq!(told_by(code), [0x41, 0x50]);
}

#[test]
fn the_bus_masters_registers_move_with_their_window() {
    let mut code = Code::new()
        .out32(port::PCI_ADDRESS, PCI_COMMAND)
        .out32(port::PCI_DATA, 5);
    for (window, address) in WINDOWS.into_iter().zip([0x1000, 0x2000]) {
        code = code
            .out32(port::PCI_ADDRESS, BUS_MASTER_BAR)
            .out32(port::PCI_DATA, u32::from(window) | 1)
            .out32(window + TABLE, address);
    }
    // The store to where the window was is nobody's.
    code = code.out32(WINDOWS[0] + TABLE, 0x3000);
    for window in WINDOWS {
        // shr eax, 8: the byte that tells.
        code = tell(
            code.in32(window + TABLE)
                .bytes(&[0xc1, 0xe8, 0x08])
                .port(port::SERIAL),
        );
    }
    assert_eq!(told_by(code), [0xff, 0x20]);
}

/// Where the second processor begins, and the page that its start names.
const SECOND_PROCESSOR: u32 = 0x8000;
/// What the second one has written last, and what the first one has seen of it.
const WRITTEN: u32 = 0x9000;
const SEEN: u32 = 0x9001;

/// Stores a byte in memory.
pub(crate) fn store8(code: Code, at: u32, value: u8) -> Code {
    // mov byte [at], value
    code.bytes(&[0xc6, 0x05])
        .bytes(&at.to_le_bytes())
        .bytes(&[value])
}

/// Stores a doubleword in memory, or in a register there.
fn store32(code: Code, at: u32, value: u32) -> Code {
    // mov dword [at], value
    code.bytes(&[0xc7, 0x05])
        .bytes(&at.to_le_bytes())
        .bytes(&value.to_le_bytes())
}

/// Starts processor 1 with these instructions of real mode (Intel SDM volume 3, section 9.4.4).
pub(crate) fn start_second(mut code: Code, instructions: &[u8]) -> Code {
    const COMMAND_HIGH: u32 = 0xfee0_0310;
    const COMMAND_LOW: u32 = 0xfee0_0300;
    const PROCESSOR_1: u32 = 1 << 24;
    const INIT: u32 = 0x4500;
    const START_UP: u32 = 0x4600 | SECOND_PROCESSOR >> 12;
    for (at, byte) in (SECOND_PROCESSOR..).zip(instructions) {
        code = store8(code, at, *byte);
    }
    for command in [INIT, START_UP] {
        code = store32(code, COMMAND_HIGH, PROCESSOR_1);
        code = store32(code, COMMAND_LOW, command);
    }
    code
}

/// What one processor has written before it says so is what the other one reads.
#[test]
fn a_write_of_one_processor_comes_before_a_read_of_the_other() {
    let writer = [
        0x31, 0xc0, // xor ax, ax
        0x8e, 0xd8, // mov ds, ax
        0xba, 0xf2, 0x01, // mov dx, COUNT
        0xb1, 0x01, // mov cl, 1
        0x88, 0xc8, // next: mov al, cl
        0xee, // out dx, al
        0x88, 0x0e, 0x00, 0x90, // mov [WRITTEN], cl
        0x38, 0x0e, 0x01, 0x90, // wait: cmp [SEEN], cl
        0x75, 0xfa, // jne wait
        0xfe, 0xc1, // inc cl
        0x75, 0xef, // jnz next
        0xfa, 0xf4, // cli; hlt
    ];
    let mut code = select(Code::new());
    code = store8(store8(code, WRITTEN, 0), SEEN, 0);
    code = start_second(code, &writer).bytes(&[
        0x31, 0xdb, // xor ebx, ebx
        0xb1, 0x01, // mov cl, 1
        0x66, 0xba, 0xf2, 0x01, // mov dx, COUNT
        0x38, 0x0d, 0x00, 0x90, 0x00, 0x00, // next: cmp [WRITTEN], cl
        0x75, 0xf8, // jne next
        0xec, // in al, dx
        0x28, 0xc8, // sub al, cl
        0x08, 0xc3, // or bl, al
        0x88, 0x0d, 0x01, 0x90, 0x00, 0x00, // mov [SEEN], cl
        0xfe, 0xc1, // inc cl
        0x75, 0xe9, // jnz next
        0x88, 0xd8, // mov al, bl
    ]);
    assert_eq!(told_by_processors(tell(code), 2), [0]);
}
