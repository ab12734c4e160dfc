//! The IDE port space: a disk's registers and bus master, with sections, held requests and resets in between.

use sluice_devices::ide::DriveKind;

use crate::input::Input;
use crate::ports::{Pc, SRST, port};
use crate::world::SECTOR;

/// READ DMA EXT and WRITE DMA EXT differ from the commands of 28 bits by the width alone: these are the codes that are
/// given with a table and a start of the bus master.
const DMA_COMMANDS: [u8; 6] = [0xc8, 0xca, 0x25, 0x35, 0x3d, 0x06];
const DATA_SET_MANAGEMENT: u8 = 0x06;
const TRIM: u8 = 1;
/// Where [`Pc::roomy_table`] begins.
const BUFFER: u64 = 0x1_0000;

/// A port of the controller: mostly those of the primary channel's command block.
fn port(byte: u8) -> u16 {
    match byte % 16 {
        at @ 0..=7 => 0x1f0 + u16::from(at),
        8..=10 => port::CONTROL,
        11 => port::COMMAND,
        12 => 0x170 + u16::from(byte >> 5),
        13 => 0x376,
        // The neighbours that only a wide access from below reaches.
        14 => 0x1f8,
        _ => 0x3f7,
    }
}

fn step(pc: &mut Pc, kind: u8, input: &mut Input<'_>) {
    match kind {
        0 => {
            let width = input.width();
            pc.read(port(input.u8()), width, &mut [0; 4][..width]);
        }
        1 => {
            let width = input.width();
            let port = port(input.u8());
            pc.write(port, width, &input.array::<4>()[..width]);
        }
        2 => {
            let (lba, count, command) = (input.u16(), input.u8(), input.u8());
            pc.command(u32::from(lba) % 0x180, count, command);
        }
        3 => pc.bus_master(input),
        4 => pc.table(input),
        5 => {
            let command = DMA_COMMANDS[usize::from(input.u8()) % DMA_COMMANDS.len()];
            let (lba, count) = (input.u16(), input.u8());
            pc.out(port::FEATURES, TRIM);
            pc.command(u32::from(lba) % 0x180, count, command);
            pc.start_bus_master(input.u8() & 8);
        }
        6 => {
            // A block, or part of one, or more.
            let bytes = 2 * usize::from(input.u16() % 0x2100);
            pc.read(port::DATA, 2, &mut vec![0; bytes]);
        }
        7 => {
            let bytes = 2 * usize::from(input.u16() % 0x2100);
            pc.write(port::DATA, 2, &vec![input.u8(); bytes]);
        }
        8 => {
            // A TRIM of ranges on the disk and beyond.
            let mut payload = vec![0; SECTOR];
            for entry in payload
                .chunks_exact_mut(8)
                .take(usize::from(input.u8() % 65))
            {
                let (lba, count) = (u64::from(input.u16() % 0x120), u64::from(input.u8()));
                entry.copy_from_slice(&(lba | count << 48).to_le_bytes());
            }
            pc.roomy_table();
            pc.world.poke(BUFFER, &payload);
            pc.out(port::FEATURES, TRIM);
            pc.command(0, 1, DATA_SET_MANAGEMENT);
            pc.start_bus_master(0);
        }
        9 => pc.world.turns(),
        10 => pc.world.drain(usize::from(input.u8() % 3)),
        11 => pc.world.undrain(usize::from(input.u8() % 3)),
        12 => pc.world.hold(usize::from(input.u8() % 2), input.u8()),
        13 => pc.world.release(),
        14 => pc.set_pci_command(input.u8()),
        15 => pc.machine_reset(),
        16 => pc.software_reset(),
        17 => pc.out(port::CONTROL, input.u8() & !SRST),
        18 => pc.roomy_table(),
        19 => {
            let address = u64::from(input.u32());
            pc.world.poke(address, input.bytes(64));
        }
        20 => pc.world.fail(usize::from(input.u8() % 2), input.u8()),
        21 => pc
            .world
            .stop_on_errors(usize::from(input.u8() % 2), input.flag()),
        22 => pc.world.resume(),
        _ => pc.world.turns(),
    }
}

/// Takes the steps of an input; panics when something does not hold.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut pc = Pc::new(DriveKind::Disk);
    while let Some(kind) = input.step() {
        step(&mut pc, kind, &mut input);
        pc.check();
    }
    pc.end();
}
