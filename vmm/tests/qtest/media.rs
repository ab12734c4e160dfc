//! A CD-ROM drive between its guest, which pokes registers, and its operator, who speaks QMP.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::qmp::Qmp;

use super::Machine;

/// How long anything may take. Nothing depends on it but the end of a test that hangs.
const LIMIT: Duration = Duration::from_secs(60);

const BLOCK: usize = 2048;

const TEST_UNIT_READY: &[u8] = &[0x00];
const REQUEST_SENSE: &[u8] = &[0x03, 0, 0, 0, 18];
const LOAD: &[u8] = &[0x1b, 0, 0, 0, 3];
const LOCK: &[u8] = &[0x1e, 0, 0, 0, 1];
const UNLOCK: &[u8] = &[0x1e, 0, 0, 0, 0];
const READ_BLOCK_1: &[u8] = &[0x28, 0, 0, 0, 0, 1, 0, 0, 1];
const POLL_MEDIA_EVENT: &[u8] = &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8];

const EJECT_REQUEST: u8 = 1;

/// The drive that `--cdrom` makes: master of the secondary channel.
impl Machine {
    fn out8(&mut self, port: u16, value: u8) {
        assert_eq!(self.ask(&format!("outb {port:#x} {value:#x}")), "OK");
    }

    fn in16(&mut self, instruction: &str, port: u16) -> u16 {
        let answer = self.ask(&format!("{instruction} {port:#x}"));
        let digits = answer.strip_prefix("OK 0x").unwrap();
        u16::from_str_radix(digits, 16).unwrap()
    }

    fn in8(&mut self, port: u16) -> u8 {
        self.in16("inb", port).to_le_bytes()[0]
    }

    /// Does a packet command whose data comes in one block. `None`: it failed.
    fn packet(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        const BUSY: u8 = 0x80;
        const DATA_REQUEST: u8 = 0x08;
        const ERROR: u8 = 0x01;
        for (port, value) in [
            (0x176, 0),
            (0x171, 0),
            (0x174, 0xfe),
            (0x175, 0xff),
            (0x177, 0xa0),
        ] {
            self.out8(port, value);
        }
        let mut bytes = packet.to_vec();
        bytes.resize(12, 0);
        for word in bytes.chunks(2) {
            let word = u16::from_le_bytes([word[0], word[1]]);
            assert_eq!(self.ask(&format!("outw 0x170 {word:#x}")), "OK");
        }
        let mut data = Vec::new();
        loop {
            let status = self.in8(0x376);
            if status & BUSY != 0 {
                continue;
            }
            if status & DATA_REQUEST == 0 {
                return (status & ERROR == 0).then_some(data);
            }
            let length = u16::from_le_bytes([self.in8(0x174), self.in8(0x175)]);
            for _ in 0..length.div_ceil(2) {
                data.extend(self.in16("inw", 0x170).to_le_bytes());
            }
        }
    }

    /// Sense key, code and qualifier of a command that must fail.
    fn sense_of(&mut self, packet: &[u8]) -> (u8, u8, u8) {
        assert_eq!(self.packet(packet), None);
        let data = self.packet(REQUEST_SENSE).unwrap();
        (data[2], data[12], data[13])
    }
}

/// An image of 16 blocks of one byte.
fn disc(directory: &Path, name: &str, byte: u8) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, vec![byte; 16 * BLOCK]).unwrap();
    path
}

fn execute(qmp: &mut Qmp, command: &str, arguments: &Value) -> Value {
    qmp.execute(command, arguments).unwrap()
}

fn assert_tray_moved(qmp: &Qmp, open: bool) {
    let moved = qmp.wait_event("DEVICE_TRAY_MOVED", LIMIT, |event| {
        event.event == "DEVICE_TRAY_MOVED"
    });
    assert_eq!(moved.unwrap().data["tray-open"], open);
}

#[test]
fn guest_and_operator_share_a_tray() {
    let directory = tempfile::tempdir().unwrap();
    let first = disc(directory.path(), "first.iso", 0x11);
    let second = disc(directory.path(), "second.iso", 0x22);
    let socket = directory.path().join("qmp.sock");
    let mut machine = Machine::start(&[
        "-qmp",
        &format!("unix:{},server=on,wait=off", socket.display()),
        "-cdrom",
        first.to_str().unwrap(),
    ]);
    // The socket is there when the machine is.
    assert_eq!(machine.ask("endianness"), "OK little");
    let mut qmp = Qmp::connect(&socket, LIMIT).unwrap();
    assert_eq!(machine.packet(READ_BLOCK_1), Some(vec![0x11; BLOCK]));

    // A locked tray: the guest is asked.
    machine.packet(LOCK).unwrap();
    let drive = json!({"device": "ide1-cd0"});
    qmp.execute("eject", &drive).unwrap_err();
    assert_eq!(machine.packet(POLL_MEDIA_EVENT).unwrap()[4], EJECT_REQUEST);
    machine.packet(UNLOCK).unwrap();

    // Another medium, which the guest is told of in two steps.
    let change = json!({"device": "ide1-cd0", "filename": second, "format": "raw"});
    execute(&mut qmp, "blockdev-change-medium", &change);
    assert_tray_moved(&qmp, true);
    assert_tray_moved(&qmp, false);
    assert_eq!(machine.sense_of(READ_BLOCK_1), (2, 0x3a, 0));
    assert_eq!(machine.sense_of(READ_BLOCK_1), (6, 0x28, 0));
    assert_eq!(machine.packet(READ_BLOCK_1), Some(vec![0x22; BLOCK]));

    // None.
    execute(&mut qmp, "eject", &drive);
    assert_tray_moved(&qmp, true);
    assert_eq!(machine.sense_of(TEST_UNIT_READY), (2, 0x3a, 2));
    machine.packet(LOAD).unwrap();
    assert_tray_moved(&qmp, false);
    assert_eq!(machine.sense_of(TEST_UNIT_READY), (2, 0x3a, 1));
    let disks = execute(&mut qmp, "query-block", &json!({}));
    assert_eq!(disks[0]["tray_open"], false);
    assert!(disks[0].get("inserted").is_none());
    machine.child.kill().unwrap();
    machine.end();
}
