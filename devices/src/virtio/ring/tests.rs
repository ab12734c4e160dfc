//! Tests of the ring against well-behaved and hostile drivers.

use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;
use vm_memory::Bytes;

use super::*;
use crate::virtio::testing::{INDIRECT, NEXT, WRITE};

const DESCRIPTORS: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const SIZE: u16 = 8;

fn memory() -> Arc<GuestRam> {
    Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap())
}

fn ring_with(memory: &Arc<GuestRam>, event_idx: bool) -> Ring {
    let queue = checked_queue(SIZE, SIZE, [DESCRIPTORS, AVAIL, USED], event_idx, memory).unwrap();
    Ring::new(queue, Arc::clone(memory), RingFeatures::INDIRECT_DESC)
}

fn ring(memory: &Arc<GuestRam>) -> Ring {
    ring_with(memory, false)
}

fn describe(memory: &GuestRam, table: u64, index: u64, addr: u64, len: u32, flags: u16, next: u16) {
    let descriptor = Descriptor::new(addr, len, flags, next);
    memory
        .write_obj(descriptor, GuestAddress(table + 16 * index))
        .unwrap();
}

fn offer(memory: &GuestRam, heads: &[u16]) {
    for (slot, head) in (0..).zip(heads) {
        memory
            .write_obj(*head, GuestAddress(AVAIL + 4 + 2 * slot))
            .unwrap();
    }
    let count = u16::try_from(heads.len()).unwrap();
    memory.write_obj(count, GuestAddress(AVAIL + 2)).unwrap();
}

#[test]
fn a_chain_is_read_once_and_in_order() {
    let memory = memory();
    describe(&memory, DESCRIPTORS, 3, 0x5000, 16, NEXT, 5);
    describe(&memory, DESCRIPTORS, 5, 0x6000, 512, NEXT | WRITE, 1);
    describe(&memory, DESCRIPTORS, 1, 0x7000, 1, WRITE, 0);
    offer(&memory, &[3]);
    let mut ring = ring(&memory);
    let chain = ring.pop().unwrap().unwrap();
    assert_eq!(chain.head, 3);
    assert_eq!(chain.readable.as_slice(), [(GuestAddress(0x5000), 16)]);
    assert_eq!(
        chain.writable.as_slice(),
        [(GuestAddress(0x6000), 512), (GuestAddress(0x7000), 1)]
    );
    assert!(ring.pop().unwrap().is_none());
    ring.push(3, 513).unwrap();
    let used: [u32; 2] = [
        memory.read_obj(GuestAddress(USED + 4)).unwrap(),
        memory.read_obj(GuestAddress(USED + 8)).unwrap(),
    ];
    assert_eq!(used, [3, 513]);
}

#[test]
fn an_indirect_table_is_followed_once() {
    let memory = memory();
    describe(&memory, DESCRIPTORS, 0, TABLE, 32, INDIRECT, 0);
    describe(&memory, TABLE, 0, 0x5000, 16, NEXT, 1);
    describe(&memory, TABLE, 1, 0x6000, 1, WRITE, 0);
    offer(&memory, &[0]);
    let chain = ring(&memory).pop().unwrap().unwrap();
    assert_eq!((chain.readable.len(), chain.writable.len()), (1, 1));
    // A table in a table, at its beginning and behind.
    describe(&memory, TABLE, 0, TABLE, 32, INDIRECT, 0);
    assert!(matches!(ring(&memory).pop(), Err(RingError::Endless(0))));
    describe(&memory, TABLE, 0, 0x5000, 16, NEXT, 1);
    describe(&memory, TABLE, 1, TABLE, 32, INDIRECT, 0);
    assert!(matches!(ring(&memory).pop(), Err(RingError::Endless(0))));
}

#[test]
fn a_table_that_was_not_negotiated_is_an_error() {
    let memory = memory();
    describe(&memory, DESCRIPTORS, 0, 0x5000, 16, NEXT, 1);
    describe(&memory, DESCRIPTORS, 1, TABLE, 16, INDIRECT, 0);
    describe(&memory, TABLE, 0, 0x6000, 1, WRITE, 0);
    offer(&memory, &[0]);
    let chain = ring(&memory).pop().unwrap().unwrap();
    assert_eq!((chain.readable.len(), chain.writable.len()), (1, 1));
    let queue = checked_queue(SIZE, SIZE, [DESCRIPTORS, AVAIL, USED], false, &memory).unwrap();
    let others = RingFeatures::all() - RingFeatures::INDIRECT_DESC;
    let mut ring = Ring::new(queue, Arc::clone(&memory), others);
    assert!(matches!(ring.pop(), Err(RingError::Table(0))));
}

#[test]
fn broken_chains_are_errors() {
    type Lay = fn(&GuestRam);
    let cases: [(&str, Lay); 9] = [
        ("a chain that goes on behind its table", |m| {
            describe(m, DESCRIPTORS, 0, TABLE, 16, INDIRECT | NEXT, 1);
            describe(m, DESCRIPTORS, 1, 0x6000, 1, WRITE, 0);
            describe(m, TABLE, 0, 0x5000, 16, 0, 0);
        }),
        ("a loop", |m| {
            describe(m, DESCRIPTORS, 0, 0x5000, 16, NEXT, 0);
        }),
        ("a next out of the table", |m| {
            describe(m, DESCRIPTORS, 0, 0x5000, 16, NEXT, SIZE);
        }),
        ("readable behind writable", |m| {
            describe(m, DESCRIPTORS, 0, 0x5000, 16, NEXT | WRITE, 1);
            describe(m, DESCRIPTORS, 1, 0x5000, 16, 0, 0);
        }),
        ("a length beyond 4 GiB", |m| {
            describe(m, DESCRIPTORS, 0, 0x5000, u32::MAX, NEXT, 1);
            describe(m, DESCRIPTORS, 1, 0x5000, u32::MAX, 0, 0);
        }),
        ("an empty indirect table", |m| {
            describe(m, DESCRIPTORS, 0, TABLE, 0, INDIRECT, 0);
        }),
        ("half a descriptor", |m| {
            describe(m, DESCRIPTORS, 0, TABLE, 24, INDIRECT, 0);
        }),
        ("an indirect table that is no memory", |m| {
            describe(m, DESCRIPTORS, 0, u64::MAX - 15, 32, INDIRECT, 0);
        }),
        ("an indirect table longer than the queue", |m| {
            for index in 0..u64::from(SIZE) + 1 {
                let next = u16::try_from(index + 1).unwrap();
                let flags = if index == u64::from(SIZE) { 0 } else { NEXT };
                describe(m, TABLE, index, 0x5000, 1, flags, next);
            }
            describe(
                m,
                DESCRIPTORS,
                0,
                TABLE,
                16 * (u32::from(SIZE) + 1),
                INDIRECT,
                0,
            );
        }),
    ];
    for (name, lay) in cases {
        let memory = memory();
        lay(&memory);
        offer(&memory, &[0]);
        assert!(ring(&memory).pop().is_err(), "{name}");
    }
}

/// As many descriptors as the queue has are read, and not one more, whether the chain loops or is only long.
#[test]
fn no_more_descriptors_are_read_than_the_queue_has() {
    let chain = |table: u64, last: u16| {
        let memory = memory();
        for index in 0..2 * SIZE {
            let (flags, next) = if index == last {
                (0, 0)
            } else {
                (NEXT, index + 1)
            };
            describe(&memory, table, index.into(), 0x5000, 1, flags, next);
        }
        memory
    };
    let end = |memory: &Arc<GuestRam>| {
        offer(memory, &[0]);
        match ring(memory).pop() {
            Ok(chain) => Ok(chain.unwrap().readable.len()),
            Err(RingError::TooLong {
                head: 0,
                descriptors,
            }) => Err(descriptors),
            Err(error) => panic!("{error}"),
        }
    };
    let whole = SIZE.into();
    assert_eq!(end(&chain(DESCRIPTORS, SIZE - 1)), Ok(whole));
    let memory = chain(DESCRIPTORS, SIZE);
    describe(
        &memory,
        DESCRIPTORS,
        u64::from(SIZE) - 1,
        0x5000,
        1,
        NEXT,
        2,
    );
    assert_eq!(end(&memory), Err(SIZE), "a loop");
    for (last, expected) in [(SIZE - 1, Ok(whole)), (SIZE, Err(SIZE))] {
        let memory = chain(TABLE, last);
        let table = 16 * (u32::from(last) + 1);
        describe(&memory, DESCRIPTORS, 0, TABLE, table, INDIRECT, 0);
        assert_eq!(end(&memory), expected, "a table of {}", last + 1);
    }
}

#[test]
fn bad_indices_and_reuse_are_errors() {
    let memory = memory();
    describe(&memory, DESCRIPTORS, 0, 0x5000, 16, 0, 0);
    offer(&memory, &[SIZE]);
    assert!(matches!(ring(&memory).pop(), Err(RingError::Endless(SIZE))));

    memory.write_obj(SIZE + 1, GuestAddress(AVAIL + 2)).unwrap();
    assert!(matches!(ring(&memory).pop(), Err(RingError::Ring(_))));

    offer(&memory, &[0; SIZE as usize]);
    let mut ring = ring(&memory);
    for _ in 0..SIZE {
        ring.pop().unwrap().unwrap();
    }
    memory.write_obj(SIZE + 1, GuestAddress(AVAIL + 2)).unwrap();
    assert!(matches!(ring.pop(), Err(RingError::Overcommitted)));
}

#[test]
fn queues_that_cannot_be_are_refused() {
    let memory = memory();
    let good = [DESCRIPTORS, AVAIL, USED];
    let cases = [
        (0, good),
        (3, good),
        (16, good),
        (SIZE, [DESCRIPTORS + 8, AVAIL, USED]),
        (SIZE, [DESCRIPTORS, AVAIL + 1, USED]),
        (SIZE, [DESCRIPTORS, AVAIL, USED + 2]),
        (SIZE, [0x10_0000, AVAIL, USED]),
        (SIZE, [DESCRIPTORS, 0, USED]),
        (SIZE, [DESCRIPTORS, 0x10000 - 20, USED]),
        (SIZE, [DESCRIPTORS, AVAIL, 0x10000 - 68]),
        (SIZE, [u64::MAX - 15, AVAIL, USED]),
    ];
    assert!(checked_queue(SIZE, SIZE, good, true, &memory).is_ok());
    for (size, addresses) in cases {
        let refused = checked_queue(SIZE, size, addresses, true, &memory);
        assert!(refused.is_err(), "{size} {addresses:x?}");
    }
}

#[test]
fn interrupts_are_wanted_as_the_flag_says() {
    let memory = memory();
    let mut ring = ring(&memory);
    ring.push(0, 0).unwrap();
    assert!(ring.wants_interrupt().unwrap());
    memory
        .write_obj(AVAIL_NO_INTERRUPT, GuestAddress(AVAIL))
        .unwrap();
    ring.push(0, 0).unwrap();
    assert!(!ring.wants_interrupt().unwrap());
}

#[test]
fn interrupts_are_wanted_as_the_event_index_says() {
    let memory = memory();
    let mut ring = ring_with(&memory, true);
    let event = GuestAddress(AVAIL + 4 + 2 * u64::from(SIZE));
    memory.write_obj(2_u16, event).unwrap();
    let mut wanted = Vec::new();
    for _ in 0..4 {
        ring.push(0, 0).unwrap();
        wanted.push(ring.wants_interrupt().unwrap());
    }
    assert_eq!(wanted, [false, false, true, false]);
    memory.write_obj(5_u16, event).unwrap();
    for _ in 0..4 {
        ring.push(0, 0).unwrap();
    }
    assert!(
        ring.wants_interrupt().unwrap(),
        "the event lies within the batch"
    );
}

#[test]
fn enabling_kicks_tells_of_chains_that_came_meanwhile() {
    for event_idx in [false, true] {
        let memory = memory();
        let mut ring = ring_with(&memory, event_idx);
        ring.disable_kicks().unwrap();
        assert!(!ring.enable_kicks().unwrap());
        describe(&memory, DESCRIPTORS, 0, 0x5000, 16, 0, 0);
        offer(&memory, &[0]);
        assert!(ring.enable_kicks().unwrap());
    }
}

proptest! {
    /// Any bytes whatever as ring: no panic, and every chain that is taken keeps the rules.
    #[test]
    fn random_rings_do_no_harm(
        bytes in prop::collection::vec(any::<u8>(), 16 * SIZE as usize),
        heads in prop::collection::vec(0_u16..10, 1..=8),
    ) {
        let memory = memory();
        memory.write_slice(&bytes, GuestAddress(DESCRIPTORS)).unwrap();
        // Small numbers make chains that hang together more often than random ones do.
        for index in 0..u64::from(SIZE) {
            let at = GuestAddress(DESCRIPTORS + 16 * index + 12);
            let flags: u16 = memory.read_obj(at).unwrap();
            let next: u16 = memory.read_obj(GuestAddress(at.0 + 2)).unwrap();
            memory.write_obj(flags % 8, at).unwrap();
            memory.write_obj(next % 10, GuestAddress(at.0 + 2)).unwrap();
        }
        offer(&memory, &heads);
        let mut ring = ring(&memory);
        while let Ok(Some(chain)) = ring.pop() {
            prop_assert!(chain.head < SIZE);
            prop_assert!(!chain.readable.is_empty() || !chain.writable.is_empty());
            prop_assert!(chain.readable.len() + chain.writable.len() <= usize::from(SIZE));
        }
    }
}
