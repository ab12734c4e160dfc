//! Disks that are taken away at every moment: nothing of theirs stays behind.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use sluice_aio::{GuestRam, current};
use sluice_block::backend::ErrorPolicy;
use sluice_block::driver::DebugEvent;
use sluice_block::job::OnError;
use vm_memory::{Bytes, GuestAddress};

use super::bench::{Bench, SECTOR, Slot, UNTOUCHED, add_write, stamp};
use crate::pci::PciFunction;
use crate::virtio::testing::{Driver, Guest};
use crate::virtio::{RingFeatures, Status, VirtioPci};

/// A function that is off its bus, and what is left of its guest.
struct Leaving {
    function: Weak<VirtioPci>,
    memory: Arc<GuestRam>,
    gone: Rc<Cell<bool>>,
}

impl Leaving {
    /// Begins to take the function away: nobody has it but what is in flight.
    fn begin(bench: &mut Bench, guest: Guest) -> Self {
        let retiring = guest.function.retire();
        let leaving = Self {
            function: Arc::downgrade(&guest.function),
            memory: Arc::clone(&guest.memory),
            gone: Rc::default(),
        };
        drop(guest);
        let gone = Rc::clone(&leaving.gone);
        let retired = async move {
            current::spawn_local(async move {
                retiring.await;
                gone.set(true);
            })
            .detach();
        };
        bench.event_loop.run_until(retired).unwrap();
        leaving
    }

    fn end(&self, bench: &mut Bench) {
        let gone = Rc::clone(&self.gone);
        bench.until("the end of the function", || gone.get());
        bench.quiesce();
        assert!(self.function.upgrade().is_none(), "somebody still has it");
        let (graph, backend) = (Arc::clone(&bench.graph), Arc::clone(&bench.backend));
        let removing = async move { graph.remove_backend(&backend).await };
        bench.event_loop.run_until(removing).unwrap();
        bench.quiesce();
    }

    /// How many requests were answered, and what the status of the first is.
    fn answers(&self, used: u64) -> (u16, u8) {
        let status = GuestAddress(Slot(0).status_address());
        let status: u8 = self.memory.read_obj(status).unwrap();
        let index: u16 = self.memory.read_obj(GuestAddress(used + 2)).unwrap();
        (index, status)
    }
}

/// The used ring of the first queue.
fn used() -> u64 {
    Driver::areas_of(0)[2]
}

#[test]
fn what_waits_in_a_section_goes_with_its_disk() {
    let (mut bench, guest) = Bench::new();
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    let section = bench.drain();
    add_write(&mut driver, Slot(0), 5, &[5; SECTOR]);
    driver.kick();
    bench.quiesce();
    // The section is open until all is over.
    let leaving = Leaving::begin(&mut bench, guest);
    leaving.end(&mut bench);
    drop(section);
    bench.quiesce();
    assert_eq!(bench.sector(5), stamp(5));
    assert_eq!(leaving.answers(used()), (0, UNTOUCHED));
}

#[test]
fn what_is_in_flight_ends_before_its_device_and_nobody_is_told() {
    let (mut bench, guest) = Bench::new();
    let msi = Arc::clone(&guest.msi);
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    bench.hold(DebugEvent::WriteAio);
    add_write(&mut driver, Slot(0), 5, &[5; SECTOR]);
    driver.kick();
    bench.wait_held();
    add_write(&mut driver, Slot(1), 6, &[6; SECTOR]);
    let leaving = Leaving::begin(&mut bench, guest);
    bench.quiesce_beside(1);
    assert!(!leaving.gone.get(), "a write is in flight");
    bench.release();
    leaving.end(&mut bench);
    assert_eq!(bench.sector(5), [5; SECTOR], "what was begun has ended");
    assert_eq!(bench.sector(6), stamp(6), "what came later has not begun");
    assert_eq!(leaving.answers(used()), (0, UNTOUCHED));
    assert_eq!((msi.sent(), msi.vectors()), (Vec::new(), 0));
}

#[test]
fn a_disk_that_resets_can_be_taken_away() {
    let (mut bench, guest) = Bench::new();
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    bench.hold(DebugEvent::WriteAio);
    add_write(&mut driver, Slot(0), 5, &[5; SECTOR]);
    driver.kick();
    bench.wait_held();
    guest.set_status(Status::empty());
    let leaving = Leaving::begin(&mut bench, guest);
    bench.quiesce_beside(1);
    assert!(!leaving.gone.get(), "a write is in flight");
    bench.release();
    leaving.end(&mut bench);
    assert_eq!(leaving.answers(used()), (0, UNTOUCHED));
}

#[test]
fn what_an_error_has_halted_goes_with_its_disk() {
    let fails = r#""inject-error": [{"event": "none", "iotype": "write", "once": true}],"#;
    let (mut bench, guest) = Bench::with(fails, |_| {});
    let policy = ErrorPolicy::new(OnError::Stop, OnError::Stop);
    bench.backend.set_policy(policy);
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    add_write(&mut driver, Slot(0), 5, &[5; SECTOR]);
    driver.kick();
    let backend = Arc::clone(&bench.backend);
    bench.until("a halted write", || backend.halted() == 1);
    let leaving = Leaving::begin(&mut bench, guest);
    leaving.end(&mut bench);
    backend.resume();
    bench.quiesce();
    assert_eq!((backend.halted(), bench.sector(5)), (0, stamp(5)));
    assert_eq!(leaving.answers(used()), (0, UNTOUCHED));
}
