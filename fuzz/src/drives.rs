//! Disks and CD-ROM drives in all four places of an IDE controller, driven at once, with stores that the host queues and
//! disks that are resized.

use sluice_devices::ide::DriveKind;
use sluice_devices::posted::PostedWrites as _;

use crate::input::Input;
use crate::ports::{CHANNELS, DEVICE_1, PACKET, PLACES, Pc, SRST, port};
use crate::world::SECTORS;

const DMA_COMMANDS: [u8; 8] = [0xc8, 0xca, 0x25, 0x35, 0x3d, 0xc8, 0xca, 0x06];
const TRIM: u8 = 1;
/// Where [`Pc::roomy_table`] begins.
const BUFFER: u64 = 0x1_0000;
/// PIO reads and writes, FLUSH, IDENTIFY, SET FEATURES, SET MULTIPLE, DIAGNOSTIC, DEVICE RESET, READ NATIVE MAX.
const COMMANDS: [u8; 16] = [
    0x20, 0x30, 0xc4, 0xc5, 0x24, 0x34, 0x29, 0x39, 0xe7, 0xec, 0xa1, 0xef, 0xc6, 0x90, 0x08, 0xf8,
];
/// What a CD driver asks of a disc, READ (10) first.
const OPCODES: [u8; 8] = [0x28, 0x28, 0xbe, 0x25, 0x43, 0x1b, 0x1e, 0x03];

fn channel(input: &mut Input<'_>) -> usize {
    usize::from(input.u8()) % CHANNELS
}

fn place(input: &mut Input<'_>) -> usize {
    usize::from(input.u8()) % PLACES
}

fn disk(pc: &Pc, input: &mut Input<'_>) -> usize {
    usize::from(input.u8()) % pc.world.disks.len()
}

/// A packet, and perhaps a start of the bus master.
fn give_packet(pc: &mut Pc, place: usize, input: &mut Input<'_>) {
    let channel = place / 2;
    let (opcode, first, count) = (input.u8(), input.u8() % 70, input.u8() % 66);
    let [low, high] = input.u16().to_le_bytes();
    let dma = input.u8() & 1;
    let device = if place.is_multiple_of(2) { 0 } else { DEVICE_1 };
    for (register, value) in [
        (port::DEVICE, device),
        (port::FEATURES, dma),
        (port::LBA_MID, low),
        (port::LBA_HIGH, high),
        (port::COMMAND, PACKET),
    ] {
        pc.out(port::of(channel, register), value);
    }
    let opcode = OPCODES[usize::from(opcode) % OPCODES.len()];
    let packet = [opcode, 0, 0, 0, first, first, 0, 0, count, 0x10, 0, 0];
    pc.write(port::of(channel, port::DATA), 2, &packet);
    if dma != 0 {
        pc.roomy_table();
        pc.start_bus_master_of(channel, 8);
    }
}

fn step(pc: &mut Pc, kind: u8, input: &mut Input<'_>) {
    match kind {
        0 | 1 => {
            let channel = channel(input);
            let (register, width) = (input.u8() % 9, input.width());
            let at = match register {
                8 => port::CONTROL,
                register => port::DATA + u16::from(register),
            };
            let at = port::of(channel, at);
            if kind == 0 {
                pc.read(at, width, &mut [0; 4][..width]);
            } else {
                pc.write(at, width, &input.array::<4>()[..width]);
            }
        }
        2 | 3 => {
            let (place, lba, count) = (place(input), input.u16(), input.u8());
            let mut command = input.u8();
            if kind == 3 {
                command = COMMANDS[usize::from(command) % COMMANDS.len()];
            }
            pc.command_at(place, u32::from(lba) % 0x180, count, command);
        }
        4 => {
            let (place, lba, count) = (place(input), input.u16(), input.u8());
            let command = DMA_COMMANDS[usize::from(input.u8()) % DMA_COMMANDS.len()];
            pc.out(port::of(place / 2, port::FEATURES), TRIM);
            pc.command_at(place, u32::from(lba) % 0x180, count, command);
            pc.start_bus_master_of(place / 2, input.u8() & 8);
        }
        5 => {
            let place = place(input);
            give_packet(pc, place, input);
        }
        6 | 7 => {
            let at = port::of(channel(input), port::DATA);
            let bytes = 2 * usize::from(input.u16() % 0x2100);
            if kind == 6 {
                pc.read(at, 2, &mut vec![0; bytes]);
            } else {
                pc.write(at, 2, &vec![input.u8(); bytes]);
            }
        }
        8 => pc.world.turns(),
        9 => {
            let disk = disk(pc, input);
            pc.world.drain(disk);
        }
        10 => {
            let disk = disk(pc, input);
            pc.world.undrain(disk);
        }
        11 => {
            let disk = disk(pc, input);
            pc.world.hold(disk, input.u8());
        }
        12 => pc.world.release(),
        13 => pc.software_reset_of(channel(input)),
        14 => {
            let at = port::of(channel(input), port::CONTROL);
            pc.out(at, input.u8() & !SRST);
        }
        15 => pc.machine_reset(),
        16 => pc.bus_master(input),
        17 => pc.table(input),
        18 => pc.roomy_table(),
        19 => {
            let disk = disk(pc, input);
            pc.world.fail(disk, input.u8());
        }
        20 => {
            let disk = disk(pc, input);
            pc.world.stop_on_errors(disk, input.flag());
        }
        21 => pc.world.resume(),
        22 => {
            let (disk, sectors) = (disk(pc, input), u64::from(input.u16()));
            pc.world.resize(disk, sectors % (2 * SECTORS));
        }
        23 | 24 => {
            // Several at once are what a ring of stores is about.
            for _ in 0..=input.u8() % 8 {
                let (choice, byte) = (input.u8(), input.u8());
                pc.post(pc.posted.port(choice), byte);
            }
        }
        25 => pc.posted.flush(),
        26 => {
            let disk = disk(pc, input);
            pc.world.eject(disk, input.flag());
        }
        27 => {
            let disk = disk(pc, input);
            pc.world.insert(disk);
        }
        28 => pc.set_pci_command(input.u8()),
        29 => pc
            .world
            .poke(BUFFER + u64::from(input.u16()), input.bytes(64)),
        _ => pc.world.turns(),
    }
}

/// What the bits of a byte put into a place.
fn drive(bits: u8) -> Option<DriveKind> {
    match bits % 4 {
        0 => None,
        1 => Some(DriveKind::CdRom),
        _ => Some(DriveKind::Disk),
    }
}

/// Takes the steps of an input, whose first byte says which drives there are; panics when something does not hold.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let drives = input.u8();
    // There is always one.
    let mut kinds = [0, 2, 4, 6].map(|bit| drive(drives >> bit));
    kinds[0] = kinds[0].or(Some(DriveKind::Disk));
    let mut pc = Pc::with(kinds);
    while let Some(kind) = input.step() {
        step(&mut pc, kind, &mut input);
        pc.check();
    }
    pc.end();
}
