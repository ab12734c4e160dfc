//! Every request, its checks, and the configuration.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sluice_block::backend::Account;
use sluice_block::driver::DebugEvent;

use super::bench::{
    Bench, IO_ERROR, OK, SECTOR, SECTORS, Slot, UNSUPPORTED, add, add_indirect, add_write, run,
    stamp,
};
use crate::virtio::blk::SEG_MAX;
use crate::virtio::blk::layout::{Features, config, request_type};
use crate::virtio::blk::request::MAX_TRANSFER;
use crate::virtio::pci::layout::Structure;
use crate::virtio::testing::{Driver, Guest, INDIRECT, MEMORY_LEN, RING_LEN};
use crate::virtio::{Geometry, RingFeatures, Status, VirtioBlk, VirtioBlkConfig, VirtioError};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

fn up(guest: &Guest) -> Driver<'_> {
    guest
        .bring_up(
            RingFeatures::empty(),
            Features::all().bits() & guest.offered(),
            1,
        )
        .remove(0)
}

/// A discard or write zeroes segment.
fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [
        &sector.to_le_bytes()[..],
        &sectors.to_le_bytes(),
        &flags.to_le_bytes(),
    ]
    .concat()
}

fn run_segments(
    bench: &mut Bench,
    driver: &mut Driver<'_>,
    kind: u32,
    segments: &[Vec<u8>],
) -> (u8, u32) {
    let data = segments.concat();
    Slot(0).write_data(driver.guest, &data);
    run(bench, driver, kind, 0, data.len())
}

/// Requests of that kind that did not get as far as the disk.
fn invalid(bench: &Bench, kind: Account) -> u64 {
    let counters = bench.backend.stats().of(kind);
    assert_eq!(counters.failed.load(Ordering::Relaxed), 0);
    counters.invalid.load(Ordering::Relaxed)
}

#[test]
fn reads_and_writes_move_the_disks_data() {
    let (mut bench, guest) = Bench::new();
    let mut driver = up(&guest);
    assert_eq!(
        run(&mut bench, &mut driver, request_type::IN, 7, 2 * SECTOR),
        (OK, 1025)
    );
    assert_eq!(
        Slot(0).read_data(&guest, 2 * SECTOR),
        [stamp(7), stamp(8)].concat()
    );
    Slot(0).write_data(&guest, &[0x5a; SECTOR]);
    assert_eq!(
        run(&mut bench, &mut driver, request_type::OUT, 9, SECTOR),
        (OK, 1)
    );
    assert_eq!(bench.sector(9), [0x5a; SECTOR]);
    assert_eq!((bench.sector(8), bench.sector(10)), (stamp(8), stamp(10)));
    assert_eq!(
        run(&mut bench, &mut driver, request_type::FLUSH, 0, 0),
        (OK, 1)
    );
}

#[test]
fn data_may_be_scattered_and_indirect() {
    let (mut bench, guest) = Bench::new();
    let mut drivers = guest.bring_up(RingFeatures::INDIRECT_DESC, 0, 1);
    let driver = &mut drivers[0];
    let slot = Slot(0);
    slot.write_header(&guest, request_type::IN, 3);
    let table = 0x8_0000;
    let parts = [
        (slot.header(), 5, 1),
        (slot.header() + 5, 11, 1),
        (slot.data(), 100, 3),
        (slot.data() + 0x400, 412, 3),
        (slot.status_address(), 1, 2),
    ];
    for ((index, next), (address, len, flags)) in (0..).zip(1..).zip(parts) {
        let at = GuestAddress(table + 16 * index);
        guest
            .memory
            .write_obj(Descriptor::new(address, len, flags, next), at)
            .unwrap();
    }
    driver.write_descriptor(5, Descriptor::new(table, 16 * 5, INDIRECT, 0));
    driver.offer(5);
    driver.kick();
    let mut used = None;
    bench.until("the indirect read", || {
        used = driver.take_used();
        used.is_some()
    });
    assert_eq!(used, Some((5, 513)));
    let data = slot.read_data(&guest, 0x400 + 412);
    assert_eq!([&data[..100], &data[0x400..]].concat(), stamp(3));
}

#[test]
fn the_serial_number_is_padded_or_cut() {
    let (mut bench, guest) = Bench::new();
    let mut driver = up(&guest);
    Slot(0).write_data(&guest, &[9; 32]);
    assert_eq!(
        run(&mut bench, &mut driver, request_type::GET_ID, 0, 24),
        (OK, 20)
    );
    let mut expected = b"bench".to_vec();
    expected.resize(20, 0);
    // What the identification does not fill is not the device's to touch.
    expected.resize(24, 9);
    assert_eq!(Slot(0).read_data(&guest, 24), expected);
    assert_eq!(
        run(&mut bench, &mut driver, request_type::GET_ID, 0, 3),
        (OK, 4)
    );
    assert_eq!(Slot(0).read_data(&guest, 3), *b"ben");
}

#[test]
fn a_read_only_answers_for_what_it_wrote() {
    let (mut bench, guest) = Bench::new();
    let mut driver = up(&guest);
    let slot = Slot(0);
    slot.write_header(&guest, request_type::FLUSH, 0);
    driver.add(&slot.buffers(SECTOR, true));
    driver.kick();
    bench.until("the flush", || driver.used_index() == 1);
    assert_eq!(
        (slot.status(&guest), driver.take_used()),
        (OK, Some((0, 0)))
    );
}

/// A chain that names the same memory over and over: neither it nor the disk bounds the transfer.
#[test]
fn a_transfer_beyond_the_limit_fails() {
    let memory = u32::try_from(MEMORY_LEN).unwrap();
    let whole = u32::try_from(MAX_TRANSFER).unwrap() / memory;
    let disk = 2 * MAX_TRANSFER as u64;
    for (more, expected) in [(0, OK), (512, IO_ERROR)] {
        let (mut bench, guest) = Bench::grown_to(disk);
        let mut driver = up(&guest);
        let slot = Slot(0);
        slot.write_header(&guest, request_type::OUT, 0);
        let mut buffers = vec![(slot.header(), 16, false)];
        buffers.extend((0..whole).map(|_| (0, memory, false)));
        buffers.extend((more > 0).then_some((0, more, false)));
        buffers.push((slot.status_address(), 1, true));
        driver.add(&buffers);
        driver.kick();
        bench.until("the write", || driver.used_index() == 1);
        assert_eq!(slot.status(&guest), expected, "{more}");
        let untouched = bench.sector(8) == stamp(8);
        assert_eq!(untouched, expected == IO_ERROR);
    }
}

#[test]
fn what_is_not_on_the_disk_fails() {
    let (mut bench, guest) = Bench::new();
    let mut driver = up(&guest);
    let cases = [
        (request_type::IN, SECTORS, SECTOR),
        (request_type::IN, SECTORS - 1, 2 * SECTOR),
        (request_type::OUT, u64::MAX, SECTOR),
        (request_type::OUT, u64::MAX / 512, SECTOR),
        (request_type::IN, 0, 511),
        (request_type::OUT, 0, 1),
    ];
    for (kind, sector, len) in cases {
        let (status, written) = run(&mut bench, &mut driver, kind, sector, len);
        assert_eq!(status, IO_ERROR, "{kind} {sector} {len}");
        assert_eq!(written, u32::from(kind == request_type::OUT));
    }
    assert_eq!(bench.sector(0), stamp(0));
    assert_eq!(invalid(&bench, Account::Read), 3);
    assert_eq!(invalid(&bench, Account::Write), 3);
    for kind in [2, 10, 14, u32::MAX] {
        assert_eq!(run(&mut bench, &mut driver, kind, 0, 0), (UNSUPPORTED, 1));
    }
}

#[test]
fn errors_of_the_medium_reach_the_guest() {
    let rules =
        r#""inject-error": [{"event": "read_aio", "once": true}, {"event": "flush_to_disk"}],"#;
    let (mut bench, guest) = Bench::with(rules, |_| {});
    let mut driver = up(&guest);
    assert_eq!(
        run(&mut bench, &mut driver, request_type::IN, 0, SECTOR),
        (IO_ERROR, 0)
    );
    assert_eq!(
        run(&mut bench, &mut driver, request_type::IN, 0, SECTOR),
        (OK, 513)
    );
    assert_eq!(
        run(&mut bench, &mut driver, request_type::FLUSH, 0, 0),
        (IO_ERROR, 1)
    );
}

#[test]
fn discards_and_zeroes_reach_the_file() {
    let (mut bench, guest) = Bench::new();
    let mut driver = up(&guest);
    let ranges = [segment(8, 8, 0), segment(64, 16, 0)];
    let result = run_segments(&mut bench, &mut driver, request_type::DISCARD, &ranges);
    assert_eq!(result, (OK, 1));
    for (sector, zero) in [
        (7, false),
        (8, true),
        (15, true),
        (16, false),
        (64, true),
        (79, true),
    ] {
        let expected = if zero { vec![0; SECTOR] } else { stamp(sector) };
        assert_eq!(bench.sector(sector), expected, "sector {sector}");
    }
    for (flags, sector) in [(0, 101), (1, 201)] {
        let ranges = [segment(sector, 3, flags)];
        let result = run_segments(&mut bench, &mut driver, request_type::WRITE_ZEROES, &ranges);
        assert_eq!(result, (OK, 1));
        assert_eq!(bench.sector(sector + 2), [0; SECTOR]);
        assert_eq!(bench.sector(sector + 3), stamp(sector + 3));
    }
}

#[test]
fn wrong_segments_change_nothing() {
    let (mut bench, guest) = Bench::new();
    let mut driver = up(&guest);
    let (discard, zeroes) = (request_type::DISCARD, request_type::WRITE_ZEROES);
    let good = segment(0, 8, 0);
    let cases = [
        (discard, vec![segment(0, 8, 1)], UNSUPPORTED),
        (zeroes, vec![segment(0, 8, 2)], UNSUPPORTED),
        (discard, vec![vec![0; 15]], UNSUPPORTED),
        (discard, vec![], UNSUPPORTED),
        (discard, vec![good.clone(); 33], UNSUPPORTED),
        (zeroes, vec![good.clone(), segment(SECTORS, 1, 0)], IO_ERROR),
        (
            discard,
            vec![good.clone(), segment(0, u32::MAX, 0)],
            IO_ERROR,
        ),
        (discard, vec![segment(u64::MAX, 1, 0)], IO_ERROR),
    ];
    for (kind, segments, expected) in cases {
        let (status, _) = run_segments(&mut bench, &mut driver, kind, &segments);
        assert_eq!(status, expected, "{kind} {segments:?}");
    }
    assert_eq!(invalid(&bench, Account::Write), 1);
    assert_eq!(invalid(&bench, Account::Unmap), 2);
    assert_eq!(bench.sector(0), stamp(0));
}

#[test]
fn requests_that_were_not_negotiated_are_unsupported() {
    let (mut bench, guest) = Bench::new();
    let mut driver = guest
        .bring_up(RingFeatures::empty(), Features::FLUSH.bits(), 1)
        .remove(0);
    for kind in [request_type::DISCARD, request_type::WRITE_ZEROES] {
        let (status, _) = run_segments(&mut bench, &mut driver, kind, &[segment(0, 8, 0)]);
        assert_eq!(status, UNSUPPORTED);
    }
    assert_eq!(bench.sector(0), stamp(0));
}

#[test]
fn a_read_only_disk_refuses_to_change() {
    let (mut bench, guest) = Bench::with(r#""read-only": true,"#, |_| {});
    let offered = Features::from_bits_truncate(guest.offered());
    assert!(offered.contains(Features::RO));
    assert!(!offered.intersects(Features::DISCARD | Features::WRITE_ZEROES));
    let mut driver = up(&guest);
    assert_eq!(
        run(&mut bench, &mut driver, request_type::OUT, 0, SECTOR),
        (IO_ERROR, 1)
    );
    assert_eq!(
        run(&mut bench, &mut driver, request_type::IN, 0, SECTOR),
        (OK, 513)
    );
    assert_eq!(bench.sector(0), stamp(0));
}

/// Whether a write waits for a flush.
fn write_flushes(bench: &mut Bench, driver: &mut Driver<'_>) -> bool {
    bench.hold(DebugEvent::FlushToDisk);
    let held = Arc::new(AtomicBool::new(false));
    let (node, saw) = (Arc::clone(&bench.node), Arc::clone(&held));
    bench.event_loop.context().spawn(move || async move {
        // An error means that nobody came before the breakpoint was removed.
        let arrived = node.as_blkdebug().unwrap().wait_break("held").await;
        saw.store(arrived.is_ok(), Ordering::SeqCst);
    });
    let before = driver.used_index();
    add_write(driver, Slot(1), 1, &[1; SECTOR]);
    driver.kick();
    bench.until("the write or its flush", || {
        held.load(Ordering::SeqCst) || driver.used_index() != before
    });
    let flushes = held.load(Ordering::SeqCst);
    assert_eq!(driver.used_index() == before, flushes);
    if flushes {
        bench.release();
    } else {
        let disk = bench.node.as_blkdebug().unwrap();
        disk.remove_break("held").unwrap();
    }
    bench.until("the write", || driver.take_used().is_some());
    assert_eq!(Slot(1).status(driver.guest), OK);
    flushes
}

#[test]
fn writes_are_durable_for_a_driver_that_never_flushes() {
    let (mut bench, guest) = Bench::new();
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    assert!(write_flushes(&mut bench, &mut driver));
}

#[test]
fn the_write_cache_follows_the_configuration() {
    let (mut bench, guest) = Bench::new();
    let mut driver = up(&guest);
    let field = config::WRITEBACK as u64;
    assert!(!write_flushes(&mut bench, &mut driver));
    guest.write(Structure::Device, field, &[0]);
    assert!(write_flushes(&mut bench, &mut driver));
    guest.write(Structure::Device, field, &[1]);
    assert!(!write_flushes(&mut bench, &mut driver));
}

#[test]
fn without_a_write_cache_the_driver_has_to_switch_it_on() {
    let (mut bench, guest) = Bench::with("", |settings| settings.write_cache = false);
    let structure = Structure::Device;
    let field = config::WRITEBACK as u64;
    assert_eq!(guest.read(structure, field), [0]);
    let mut driver = up(&guest);
    assert!(write_flushes(&mut bench, &mut driver));
    guest.write(structure, field, &[1]);
    assert!(!write_flushes(&mut bench, &mut driver));
    guest.set_status(Status::empty());
    bench.until("the reset", || guest.status().is_empty());
    assert_eq!(guest.read(structure, field), [0]);
    let mut driver = guest
        .bring_up(RingFeatures::empty(), Features::FLUSH.bits(), 1)
        .remove(0);
    assert!(write_flushes(&mut bench, &mut driver));
}

#[test]
fn the_configuration_tells_the_disk() {
    let (bench, guest) = Bench::with("", |settings| {
        settings.num_queues = 2;
        settings.logical_block_size = 1024;
        settings.physical_block_size = 4096;
        settings.opt_io_size = 64 << 10;
        settings.max_discard_sectors = 128;
        settings.max_write_zeroes_sectors = 64;
    });
    let structure = Structure::Device;
    let field32 = |at: usize| u32::from_le_bytes(guest.read(structure, at as u64));
    let field16 = |at: usize| u16::from_le_bytes(guest.read(structure, at as u64));
    let capacity = u64::from_le_bytes(guest.read(structure, config::CAPACITY as u64));
    assert_eq!(capacity, SECTORS);
    assert_eq!(field32(config::SEG_MAX), 6);
    assert_eq!(field32(config::SIZE_MAX), 2 << 20);
    assert_eq!(field32(config::BLK_SIZE), 1024);
    assert_eq!(
        guest.read(structure, config::PHYSICAL_BLOCK_EXP as u64),
        [2]
    );
    assert_eq!(field16(config::MIN_IO_SIZE), 4, "a physical block");
    assert_eq!(field32(config::OPT_IO_SIZE), 64);
    assert_eq!(
        guest.read(structure, config::CYLINDERS as u64),
        [2, 0, 16, 63]
    );
    assert_eq!(field16(config::NUM_QUEUES), 2);
    assert_eq!(field32(config::MAX_DISCARD_SECTORS), 128);
    assert_eq!(field32(config::DISCARD_SECTOR_ALIGNMENT), 8);
    assert_eq!(field32(config::MAX_WRITE_ZEROES_SECTORS), 64);
    assert_eq!(guest.read(structure, config::WRITEBACK as u64), [1]);
    assert_eq!(guest.read(structure, 60), [0; 4], "beyond the end");
    guest.write(structure, 0, &[0xff; 8]);
    guest.write(structure, config::WRITEBACK as u64, &[0]);
    assert_eq!(field32(config::CAPACITY), u32::try_from(SECTORS).unwrap());
    assert_eq!(
        guest.read(structure, config::WRITEBACK as u64),
        [1],
        "not without CONFIG_WCE being negotiated"
    );
    assert_eq!(bench.backend.len(), SECTORS * SECTOR as u64);
}

#[test]
fn the_configuration_says_what_was_asked_for() {
    let (_bench, guest) = Bench::with("", |settings| {
        settings.queue_size = 256;
        settings.seg_max_adjust = false;
        settings.min_io_size = 8192;
        settings.discard_granularity = Some(64 << 10);
        settings.geometry = Some(Geometry {
            cylinders: 300,
            heads: 4,
            sectors: 17,
        });
        settings.config_wce = false;
        settings.write_cache = false;
    });
    let structure = Structure::Device;
    let field32 = |at: usize| u32::from_le_bytes(guest.read(structure, at as u64));
    assert_eq!(field32(config::SEG_MAX), u32::from(SEG_MAX));
    assert_eq!(
        guest.read(structure, config::MIN_IO_SIZE as u64),
        16_u16.to_le_bytes()
    );
    assert_eq!(field32(config::DISCARD_SECTOR_ALIGNMENT), 128);
    assert_eq!(
        guest.read(structure, config::CYLINDERS as u64),
        [44, 1, 4, 17]
    );
    let cache = (Features::FLUSH | Features::CONFIG_WCE).bits();
    assert_eq!(guest.offered() & cache, 0, "there is no cache to flush");
}

#[test]
fn a_range_beyond_the_limit_fails() {
    for (kind, within) in [
        (request_type::DISCARD, 128),
        (request_type::WRITE_ZEROES, 64),
    ] {
        let (mut bench, guest) = Bench::with("", |settings| {
            settings.max_discard_sectors = 128;
            settings.max_write_zeroes_sectors = 64;
        });
        let mut driver = up(&guest);
        for (sectors, status) in [(within, OK), (within + 1, IO_ERROR)] {
            let ranges = [segment(0, sectors, 0)];
            let answer = run_segments(&mut bench, &mut driver, kind, &ranges);
            assert_eq!(answer.0, status, "{kind}: {sectors} sectors");
        }
    }
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let (bench, _guest) = Bench::new();
    let settings = || VirtioBlkConfig::new(bench.backend.clone(), bench.event_loop.context());
    let refused = |change: fn(&mut VirtioBlkConfig)| {
        let mut settings = settings();
        change(&mut settings);
        VirtioBlk::new(settings).err()
    };
    assert!(matches!(
        refused(|s| s.num_queues = 0),
        Some(VirtioError::QueueCount(0))
    ));
    assert!(matches!(
        refused(|s| s.contexts.clear()),
        Some(VirtioError::QueueCount(0))
    ));
    assert!(matches!(
        refused(|s| s.queue_size = 2),
        Some(VirtioError::QueueSize(2))
    ));
    assert!(matches!(
        refused(|s| s.queue_size = 100),
        Some(VirtioError::QueueSize(100))
    ));
    assert!(matches!(
        refused(|s| s.logical_block_size = 256),
        Some(VirtioError::BlockSize(256))
    ));
    assert!(matches!(
        refused(|s| s.logical_block_size = 4096),
        Some(VirtioError::BlockSize(512))
    ));
    assert!(matches!(
        refused(|s| s.serial = "x".repeat(21)),
        Some(VirtioError::Serial(_))
    ));
    assert!(refused(|s| s.serial = "x".repeat(20)).is_none());
    let text = |change| refused(change).unwrap().to_string();
    assert_eq!(
        text(|s| s.max_discard_sectors = 0),
        "invalid max-discard-sectors property (0), must be between 1 and 4194303"
    );
    assert_eq!(
        text(|s| s.max_write_zeroes_sectors = 1 << 22),
        "invalid max-write-zeroes-sectors property (4194304), must be between 1 and 4194303"
    );
    assert_eq!(
        text(|s| s.opt_io_size = 1000),
        "opt_io_size must be a multiple of logical_block_size"
    );
    assert_eq!(
        text(|s| s.min_io_size = 512 << 16),
        "min_io_size must not exceed 65535 logical blocks, but is 33554432 bytes"
    );
    let none = Geometry {
        cylinders: 1,
        heads: 0,
        sectors: 1,
    };
    let mut flat = settings();
    flat.geometry = Some(none);
    assert!(matches!(
        VirtioBlk::new(flat).err(),
        Some(VirtioError::Geometry(found)) if found == none
    ));
}

#[test]
fn a_batch_makes_one_interrupt() {
    let (mut bench, guest) = Bench::new();
    let mut driver = up(&guest);
    for slot in 0..4 {
        // Serial numbers are answered without I/O, so that all four end in one turn.
        let len = 0;
        add(&mut driver, Slot(slot), request_type::GET_ID, 0, len);
    }
    driver.kick();
    bench.until("four answers", || driver.used_index() == 4);
    bench.quiesce();
    assert_eq!(guest.interrupts(0), 1);
}

/// As many requests as the ring has room for: one system call hands them to the kernel, one message
/// tells the driver.
#[test]
fn a_batch_is_submitted_at_once() {
    let (mut bench, guest) = Bench::new();
    let mut driver = guest.bring_up(RingFeatures::INDIRECT_DESC, 0, 1).remove(0);
    // What is new to the loop comes first.
    let slot = Slot(0);
    add_indirect(&mut driver, slot, request_type::IN, 0, SECTOR);
    driver.kick();
    bench.until("a read", || driver.take_used().is_some());
    bench.quiesce();
    let before = bench.event_loop.context().stats();
    let interrupts = guest.interrupts(0);
    for index in 0..RING_LEN {
        let (slot, sector) = (Slot(u64::from(index)), u64::from(3 * index));
        add_indirect(&mut driver, slot, request_type::IN, sector, SECTOR);
    }
    driver.kick();
    bench.until("all reads", || driver.used_index() == RING_LEN + 1);
    bench.quiesce();
    for index in 0..u64::from(RING_LEN) {
        assert_eq!(Slot(index).read_data(&guest, SECTOR), stamp(3 * index));
    }
    let after = bench.event_loop.context().stats();
    let operations = after.operations - before.operations;
    assert_eq!(
        (after.batches - before.batches, operations),
        (1, u64::from(RING_LEN))
    );
    assert_eq!(guest.interrupts(0) - interrupts, 1);
}

#[test]
fn a_full_ring_is_served_and_kicks_are_wanted_again() {
    let (mut bench, guest) = Bench::new();
    let mut driver = guest.bring_up(RingFeatures::INDIRECT_DESC, 0, 1).remove(0);
    for index in 0..RING_LEN {
        let slot = Slot(u64::from(index));
        add_indirect(&mut driver, slot, request_type::GET_ID, 0, 0);
    }
    driver.kick();
    bench.until("all answers", || driver.used_index() == RING_LEN);
    bench.quiesce();
    assert!(driver.kicks_are_wanted());
}

#[test]
fn interrupts_obey_the_event_index() {
    let (mut bench, guest) = Bench::new();
    let mut driver = guest.bring_up(RingFeatures::EVENT_IDX, 0, 1).remove(0);
    driver.set_used_event(2);
    for (count, interrupts) in [(1, 0), (2, 0), (3, 1), (4, 1)] {
        run(&mut bench, &mut driver, request_type::GET_ID, 0, 0);
        bench.quiesce();
        assert_eq!(
            (driver.used_index(), guest.interrupts(0)),
            (count, interrupts)
        );
    }
}

#[test]
fn queues_have_their_own_interrupts() {
    let (mut bench, guest) = Bench::with("", |settings| settings.num_queues = 2);
    let mut drivers = guest.bring_up(RingFeatures::empty(), Features::MQ.bits(), 2);
    run(&mut bench, &mut drivers[1], request_type::IN, 5, SECTOR);
    bench.quiesce();
    assert_eq!((guest.interrupts(0), guest.interrupts(1)), (0, 1));
}
