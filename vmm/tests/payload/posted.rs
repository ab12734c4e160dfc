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
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let drive = format!("file={},format=raw,if=ide", disk.display());
    let output = run(&code.power_off(), &["--drive", &drive]);
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
