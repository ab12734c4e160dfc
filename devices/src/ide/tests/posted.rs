//! Posted writes: what may be, and that nobody sees that they were.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use sluice_block::driver::DebugEvent;

use super::bench::*;
use crate::bus::PioDevice;
use crate::ide::IdeController;
use crate::pci::{BarIndex, PciFunction};
use crate::posted::PostedWrites;

/// Where the tests put the bus master's window.
const BASE: u16 = 0xc000;
const READ_DMA: u8 = 0xc8;

/// A queue that a test fills by itself.
#[derive(Default)]
pub(super) struct Posted {
    zones: Mutex<Vec<RangeInclusive<u16>>>,
    queue: Mutex<VecDeque<(u16, Vec<u8>)>>,
    controller: OnceLock<Weak<IdeController>>,
}

impl Posted {
    /// What is flushed goes to `controller`.
    pub(super) fn connect(&self, controller: &Arc<IdeController>) {
        self.controller.set(Arc::downgrade(controller)).unwrap();
    }

    /// A store of the guest's, which is queued.
    fn store(&self, port: u16, data: &[u8]) {
        let last = port + u16::try_from(data.len()).unwrap() - 1;
        let zones = self.zones.lock();
        let is_posted = |zone: &RangeInclusive<u16>| zone.contains(&port) && zone.contains(&last);
        assert!(zones.iter().any(is_posted), "{port:#x} is not posted");
        self.queue.lock().push_back((port, data.to_vec()));
    }

    fn ports(&self) -> Vec<u16> {
        self.zones.lock().iter().cloned().flatten().collect()
    }
}

impl PostedWrites for Posted {
    fn attach(&self, ports: RangeInclusive<u16>) {
        self.zones.lock().push(ports);
    }

    fn detach(&self, ports: RangeInclusive<u16>) {
        self.zones.lock().retain(|zone| *zone != ports);
    }

    fn flush(&self) {
        let queued = std::mem::take(&mut *self.queue.lock());
        let controller = self.controller.get().and_then(Weak::upgrade);
        for ((port, data), controller) in queued.into_iter().zip(std::iter::repeat(controller)) {
            write(&controller.unwrap(), port, &data);
        }
    }
}

/// A store that comes to the controller.
fn write(controller: &IdeController, port: u16, data: &[u8]) {
    match port.checked_sub(BASE) {
        Some(offset) => controller.bar_write(BarIndex::BAR4, offset.into(), data),
        None => controller.write(port, data),
    }
}

fn placed() -> Bench {
    let bench = Bench::new();
    bench.ide.bar_placed(BarIndex::BAR4, Some(BASE.into()));
    bench
}

#[test]
fn the_window_of_the_bus_master_takes_its_ports_along() {
    let bench = placed();
    let window = BASE..BASE + 0x10;
    let of_it = |bench: &Bench| {
        let ports = bench.posted.ports();
        ports.iter().filter(|port| window.contains(port)).count()
    };
    assert_eq!(of_it(&bench), 2 * 5);
    bench.ide.bar_placed(BarIndex::BAR4, Some(0xd000));
    assert_eq!(of_it(&bench), 0);
    assert_eq!(
        bench
            .posted
            .ports()
            .iter()
            .filter(|port| **port >= 0xd000)
            .count(),
        2 * 5
    );
    bench.ide.bar_placed(BarIndex::BAR4, None);
    let legacy: Vec<u16> = (0x1f1..=0x1f6).chain(0x171..=0x176).collect();
    assert_eq!(bench.posted.ports(), legacy);
    // Nor may a window that reaches beyond the last port.
    bench.ide.bar_placed(BarIndex::BAR4, Some(0xfff8));
    assert_eq!(bench.posted.ports().len(), legacy.len() + 5);
}

/// What a guest and an operator see of what goes on: states, interrupt, commands, requests.
fn seen(bench: &Bench) -> impl PartialEq + std::fmt::Debug + use<> {
    (
        (bench.status(), bench.bm_read(BM_STATUS) & ACTIVE),
        (bench.is_interrupted(), bench.lines[0].edges()),
        bench.drive_stats().commands,
        bench.disks[0].backend.gate().in_flight(),
    )
}

/// Whatever is written to a posted port, in whatever state: no request, no command, no interrupt, and the state stays.
#[test]
fn what_is_posted_starts_nothing_and_moves_nothing() {
    type Prepare = fn(&Bench);
    let states: [(&str, Prepare); 4] = [
        ("idle", |_| {}),
        ("interrupted", |bench| {
            bench.outb(COMMAND, 0x00);
            assert!(bench.is_interrupted());
        }),
        ("waiting for the bus master", |bench| {
            bench.outb(COMMAND, READ_DMA);
        }),
        ("busy", |bench| bench.start_dma(READ_DMA)),
    ];
    for (state, prepare) in states {
        let mut bench = placed();
        bench.address28(8, 1);
        bench.set_table(&[(BUFFER, 0x200 | EOT)]);
        prepare(&bench);
        let before = seen(&bench);
        for port in bench.posted.ports() {
            // All but the other device, which has a status of its own: none.
            for value in (0..=0xff).filter(|value| port & 7 != 6 || value & SLAVE == 0) {
                write(&bench.ide, port, &[value]);
                assert_eq!(seen(&bench), before, "{state}: {value:#x} to {port:#x}");
            }
        }
        bench.quiesce();
    }
}

/// A register that is written while the drive is busy does not take the write; whether it was queued meanwhile makes no
/// difference.
#[test]
fn what_was_posted_to_a_busy_drive_is_lost_as_ever() {
    let mut bench = placed();
    bench.hold(DebugEvent::ReadAio);
    bench.address28(8, 2);
    bench.set_table(&[(BUFFER, 0x400 | EOT)]);
    bench.start_dma(READ_DMA);
    bench.wait_held();
    bench.posted.store(COUNT, &[0x77]);
    bench.release();
    bench.turn_until(|bench| bench.lines[0].is_high());
    assert_eq!(bench.inb(COUNT), 0);
    bench.posted.flush();
    assert_eq!(bench.inb(COUNT), 0);
}

/// A machine reset leaves nothing behind of what was stored before it.
#[test]
fn what_was_posted_before_a_reset_does_not_outlive_it() {
    let mut bench = placed();
    bench.posted.store(COUNT, &[0x77]);
    bench.posted.store(BASE + 4, &0x1234_5678_u32.to_le_bytes());
    let resetting = bench.ide.reset();
    bench.run(resetting);
    bench.posted.flush();
    assert_eq!(bench.inb(COUNT), 0x01, "the signature");
    let mut table = [0xff; 4];
    bench.ide.bar_read(BarIndex::BAR4, BM_TABLE, &mut table);
    assert_eq!(table, [0; 4]);
}
