//! Packets and half-done transfers of a CD-ROM drive, with sections, resets and an operator at the tray in between.

use sluice_devices::ide::DriveKind;

use crate::input::Input;
use crate::ports::{PACKET, Pc, port};

/// Bytes of a packet.
const PACKET_LEN: usize = 12;
/// Operation codes that a CD driver uses: most packets begin with one of them.
const OPCODES: [u8; 19] = [
    0x00, 0x03, 0x12, 0x1a, 0x1b, 0x1e, 0x25, 0x28, 0x2b, 0x43, 0x46, 0x4a, 0x51, 0x5a, 0xa8, 0xad,
    0xbb, 0xbd, 0xbe,
];
/// Commands other than PACKET that the drive has, or answers by its signature.
const COMMANDS: [u8; 8] = [0x08, 0x20, 0x90, 0xa1, 0xe7, 0xec, 0xef, 0xa0];

fn give_packet(pc: &mut Pc, features: u8, limit: u16, packet: &[u8]) {
    let [low, high] = limit.to_le_bytes();
    pc.out(port::DEVICE, 0);
    pc.out(port::FEATURES, features);
    pc.out(port::LBA_MID, low);
    pc.out(port::LBA_HIGH, high);
    pc.out(port::COMMAND, PACKET);
    pc.write(port::DATA, 2, packet);
}

fn step(pc: &mut Pc, kind: u8, input: &mut Input<'_>) {
    match kind {
        0..=2 => {
            let features = input.u8() % 4;
            let limit = input.u16();
            let mut packet = input.array::<PACKET_LEN>();
            if kind != 0 {
                packet[0] = OPCODES[usize::from(packet[0]) % OPCODES.len()];
            }
            if kind == 2 {
                // A READ (10) that may be good.
                let (first, count) = (packet[5], packet[8]);
                packet = [0x28, 0, 0, 0, 0, first % 70, 0, 0, count % 66, 0, 0, 0];
            }
            give_packet(pc, features, limit, &packet);
        }
        3 => {
            let bytes = 2 * usize::from(input.u16() % 0x9000);
            pc.read(port::DATA, 2, &mut vec![0; bytes]);
        }
        4 => pc.start_bus_master(input.u8() & 8),
        5 => pc.stop_bus_master(),
        6 => pc.table(input),
        7 => pc.roomy_table(),
        8 => {
            let command = COMMANDS[usize::from(input.u8()) % COMMANDS.len()];
            pc.out(port::FEATURES, input.u8());
            pc.out(port::COMMAND, command);
        }
        9 => {
            let at = 0x1f0 + u16::from(input.u8() % 8);
            pc.write(at, 1, &[input.u8()]);
        }
        10 => {
            let at = 0x1f0 + u16::from(input.u8() % 8);
            let width = input.width();
            pc.read(at, width, &mut [0; 4][..width]);
        }
        11 => pc.software_reset(),
        12 => pc.machine_reset(),
        13 => pc.world.drain(0),
        14 => pc.world.undrain(0),
        15 => pc.world.turns(),
        16 => pc.world.hold(0, 0),
        17 => pc.world.release(),
        18 => pc.world.eject(0, input.flag()),
        19 => pc.world.insert(0),
        20 => operate(pc, input),
        21 => pc.set_pci_command(input.u8()),
        22 => pc.world.fail(0, 0),
        23 => pc.world.stop_on_errors(0, input.flag()),
        24 => pc.world.resume(),
        _ => pc.world.turns(),
    }
}

/// The operator at the tray itself.
fn operate(pc: &Pc, input: &mut Input<'_>) {
    let Some(device) = pc.world.disks[0].backend.removable_device() else {
        return;
    };
    if input.flag() {
        device.request_eject(input.flag());
    } else {
        device.move_tray(input.flag());
    }
}

/// Takes the steps of an input; panics when something does not hold.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut pc = Pc::new(DriveKind::CdRom);
    while let Some(kind) = input.step() {
        step(&mut pc, kind, &mut input);
        pc.check();
    }
    assert!(pc.world.disks[0].is_untouched(), "a disc was written");
    pc.end();
}
