//! The same with real threads: a vCPU that adds and kicks, an IOThread that serves, a main loop that drains.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sluice_aio::{EventLoop, IoThread, LoopConfig};
use vm_memory::{Bytes, GuestAddress};

use super::bench::{Bench, OK, SECTOR, Slot, add, stamp};
use crate::virtio::RingFeatures;
use crate::virtio::blk::layout::request_type;
use crate::virtio::testing::{Driver, Guest, RING_LEN};

const REQUESTS: u16 = 2000;
/// A test that waits in vain fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether the driver has to ring, by the event index that the device left behind the used ring (VIRTIO 1.2, section
/// 2.7.10) for the chain that was just added.
fn must_kick(driver: &Driver<'_>, added: u16) -> bool {
    std::sync::atomic::fence(Ordering::SeqCst);
    let at = driver.areas()[2] + 4 + 8 * u64::from(RING_LEN);
    let event: u16 = driver
        .guest
        .memory
        .load(GuestAddress(at), Ordering::SeqCst)
        .unwrap();
    event == added.wrapping_sub(1)
}

/// One request at a time, ringing only when the device asks for it, as Linux does.
fn drive(guest: &Guest) {
    let mut driver = guest.bring_up(RingFeatures::EVENT_IDX, 0, 1).remove(0);
    for number in 0..REQUESTS {
        let sector = u64::from(number % 64);
        add(&mut driver, Slot(0), request_type::IN, sector, SECTOR);
        if must_kick(&driver, number + 1) {
            driver.kick();
        }
        let began = Instant::now();
        while driver.take_used().is_none() {
            assert!(began.elapsed() < PATIENCE, "request {number} was lost");
            std::thread::yield_now();
        }
        assert_eq!(Slot(0).status(guest), OK);
        assert_eq!(Slot(0).read_data(guest, SECTOR), stamp(sector));
    }
}

#[test]
fn no_kick_is_lost_under_continuous_sections() {
    let iothread = IoThread::spawn("io0", LoopConfig::default()).unwrap();
    let event_loop = EventLoop::new("main", &LoopConfig::default()).unwrap();
    let (mut bench, guest) = Bench::served_by(event_loop, iothread.context().clone(), "", |_| {});
    let finished = Arc::new(AtomicBool::new(false));
    let mut sections = 0;
    std::thread::scope(|scope| {
        let done = Arc::clone(&finished);
        let guest = &guest;
        let vcpu = scope.spawn(move || {
            /// Says so also when an assertion fails.
            struct Finish(Arc<AtomicBool>);
            impl Drop for Finish {
                fn drop(&mut self) {
                    self.0.store(true, Ordering::SeqCst);
                }
            }
            let _finish = Finish(done);
            drive(guest);
        });
        while !finished.load(Ordering::SeqCst) {
            let section = bench.drain();
            assert_eq!(bench.backend.gate().in_flight(), 0);
            sections += 1;
            drop(section);
        }
        vcpu.join().unwrap();
    });
    assert!(sections > 0);
    guest.set_status(crate::virtio::Status::empty());
    let began = Instant::now();
    while !guest.status().is_empty() {
        assert!(began.elapsed() < PATIENCE, "the reset was lost");
        std::thread::yield_now();
    }
}
