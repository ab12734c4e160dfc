//! Drivers that break the rules: the device asks for a reset, harms nobody, and works after it.

use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::bench::{Bench, OK, SECTOR, SECTORS, Slot, add, run, stamp};
use crate::virtio::blk::layout::request_type;
use crate::virtio::testing::{Buffer, Driver, Guest, MEMORY_LEN, NEXT, RING_LEN, WRITE};
use crate::virtio::{RingFeatures, Status};

fn bring_up(guest: &Guest) -> Driver<'_> {
    guest.use_msix();
    guest.common(
        crate::virtio::pci::layout::common::CONFIG_MSIX_VECTOR,
        &[0, 0],
    );
    guest.bring_up(RingFeatures::empty(), 0, 1).remove(0)
}

/// The device is broken, has said so once, and can be used after a reset.
fn broken_until_reset(bench: &mut Bench, guest: &Guest, what: &str) {
    bench.until(what, || guest.status().contains(Status::NEEDS_RESET));
    bench.quiesce();
    let told = guest
        .msi
        .sent()
        .iter()
        .filter(|(_, data)| *data == 0)
        .count();
    assert_eq!(told, 1, "{what}");
    guest.set_status(Status::empty());
    bench.until("the reset", || guest.status().is_empty());
    let mut driver = bring_up(guest);
    assert_eq!(
        run(bench, &mut driver, request_type::IN, 1, SECTOR).0,
        OK,
        "{what}"
    );
    assert_eq!(Slot(0).read_data(guest, SECTOR), stamp(1));
}

#[test]
fn a_table_that_was_not_negotiated_breaks_the_device() {
    let (mut bench, guest) = Bench::new();
    let mut driver = bring_up(&guest);
    let slot = Slot(0);
    slot.write_header(&guest, request_type::IN, 1);
    let table = 0x8_0000;
    let sector = u32::try_from(SECTOR).unwrap();
    let parts = [
        (slot.header(), 16, NEXT),
        (slot.data(), sector, NEXT | WRITE),
        (slot.status_address(), 1, WRITE),
    ];
    for ((index, next), (address, len, flags)) in (0..).zip(1..).zip(parts) {
        let descriptor = Descriptor::new(address, len, flags, next);
        let at = GuestAddress(table + 16 * index);
        guest.memory.write_obj(descriptor, at).unwrap();
    }
    driver.add_table(table, 48);
    driver.kick();
    broken_until_reset(&mut bench, &guest, "a table that was not negotiated");
}

#[test]
fn malformed_requests_break_the_device() {
    let slot = Slot(0);
    let memory_end = MEMORY_LEN as u64;
    let (header, status) = (slot.header(), slot.status_address());
    let cases: [(&str, Vec<Buffer>); 7] = [
        (
            "a short header",
            vec![(header, 15, false), (status, 1, true)],
        ),
        ("no header", vec![(status, 1, true)]),
        ("no status", vec![(header, 16, false)]),
        (
            "an empty status",
            vec![(header, 16, false), (status, 0, true)],
        ),
        (
            "a header out of memory",
            vec![(memory_end - 8, 16, false), (status, 1, true)],
        ),
        (
            "data out of memory",
            vec![
                (header, 16, false),
                (memory_end, 512, true),
                (status, 1, true),
            ],
        ),
        (
            "an address that overflows",
            vec![
                (header, 16, false),
                (u64::MAX - 100, 512, true),
                (status, 1, true),
            ],
        ),
    ];
    for (what, buffers) in cases {
        let (mut bench, guest) = Bench::new();
        let mut driver = bring_up(&guest);
        slot.write_header(&guest, request_type::IN, 0);
        driver.add(&buffers);
        driver.kick();
        broken_until_reset(&mut bench, &guest, what);
    }
}

#[test]
fn broken_rings_break_the_device() {
    type Lay = fn(&mut Driver<'_>);
    let cases: [(&str, Lay); 3] = [
        ("a loop", |driver| {
            driver.write_descriptor(0, Descriptor::new(0x10_0000, 16, NEXT, 0));
            driver.offer(0);
        }),
        ("a head out of the table", |driver| driver.offer(RING_LEN)),
        ("an index that jumps", |driver| {
            let index = GuestAddress(driver.areas()[1] + 2);
            driver.guest.memory.write_obj(RING_LEN + 1, index).unwrap();
        }),
    ];
    for (what, lay) in cases {
        let (mut bench, guest) = Bench::new();
        let mut driver = bring_up(&guest);
        lay(&mut driver);
        driver.kick();
        broken_until_reset(&mut bench, &guest, what);
    }
}

/// Asking for no doorbells, which is written into the used ring, makes a request available then, and asking for them
/// takes it back: who looked until there is nothing more would look for ever.
#[test]
fn a_ring_that_the_looking_itself_fills_breaks_the_device() {
    let (mut bench, guest) = Bench::new();
    let mut driver = bring_up(&guest);
    guest.set_status(Status::empty());
    bench.until("the reset", || guest.status().is_empty());
    guest.common(
        crate::virtio::pci::layout::common::CONFIG_MSIX_VECTOR,
        &[0, 0],
    );
    guest.negotiate(RingFeatures::VERSION_1.bits());
    add(&mut driver, Slot(0), request_type::IN, 3, SECTOR);
    // The available index is the used ring's flags, and its first entry, zero, the used index.
    let [descriptors, _, used] = driver.areas();
    driver.place([descriptors, used - 2, used]);
    guest.set_status(Status::DRIVER_OK);
    driver.kick();
    broken_until_reset(&mut bench, &guest, "an index that goes back");
}

#[test]
fn good_requests_before_a_bad_one_are_not_answered_into_a_broken_ring() {
    let (mut bench, guest) = Bench::new();
    let mut driver = bring_up(&guest);
    add(&mut driver, Slot(1), request_type::IN, 3, SECTOR);
    driver.offer(RING_LEN);
    driver.kick();
    bench.until("the breakdown", || {
        guest.status().contains(Status::NEEDS_RESET)
    });
    bench.until("the read", || bench_idle(&guest, &driver));
    assert_eq!(driver.used_index(), 0);
    broken_until_reset(&mut bench, &guest, "a bad head behind a good one");
}

/// The ring stays as it is while the device is broken.
fn bench_idle(guest: &Guest, driver: &Driver<'_>) -> bool {
    guest.status().contains(Status::NEEDS_RESET) && driver.used_index() == 0
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Random descriptors, headers and heads: no panic, no hang, nothing outside of the disk's
    /// first sectors that were aimed at changes, and a reset brings the disk back.
    #[test]
    fn random_rings_do_no_harm(
        descriptors in prop::collection::vec((0_u64..0x40, 0_u32..0x600, 0_u16..8, 0_u16..9), 8),
        kinds in prop::collection::vec((0_u32..15, 0_u64..8), 4),
        heads in prop::collection::vec(0_u16..9, 1..8),
    ) {
        let (mut bench, guest) = Bench::new();
        let mut driver = bring_up(&guest);
        for (slot, (kind, sector)) in (0..).zip(kinds) {
            Slot(slot).write_header(&guest, kind, sector);
        }
        for (index, (page, len, flags, next)) in (0..).zip(descriptors) {
            let address = Slot(page % 4).header() + page * 0x40;
            driver.write_descriptor(index, Descriptor::new(address, len, flags, next));
        }
        for head in heads {
            driver.offer(head);
            driver.kick();
            bench.quiesce();
        }
        guest.set_status(Status::empty());
        bench.until("the reset", || guest.status().is_empty());
        let mut driver = bring_up(&guest);
        prop_assert_eq!(run(&mut bench, &mut driver, request_type::IN, SECTORS - 1, SECTOR).0, OK);
        prop_assert_eq!(Slot(0).read_data(&guest, SECTOR), stamp(SECTORS - 1));
    }
}
