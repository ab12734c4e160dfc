//! A disk that grows and shrinks under its guest. ATA has no way to tell of it: the guest learns it when it asks.

use std::sync::Arc;

use sluice_block::driver::DebugEvent;

use super::bench::*;
use crate::ide::channel::{Channel, Wiring};
use crate::ide::controller::configuration_space;
use crate::ide::core::{Core, Unit};
use crate::ide::disk::Disk;
use crate::ide::regs::Register;
use crate::ide::{DriveConfig, IdeVariant};

const IDENTIFY: u8 = 0xec;
const READ: u8 = 0x20;
const READ_EXT: u8 = 0x24;
const READ_MULTIPLE: u8 = 0xc4;
const READ_DMA: u8 = 0xc8;
const VERIFY: u8 = 0x40;
const INITIALIZE_PARAMETERS: u8 = 0x91;
const READ_NATIVE_MAX: u8 = 0xf8;
const DATA_SET_MANAGEMENT: u8 = 0x06;
const ABORTED: u8 = DRDY | ERR;

impl Bench {
    /// What the operator does to the first disk.
    fn resize(&mut self, sectors: u64) {
        let graph = self.graph();
        let node = Arc::clone(&self.disks[0].node);
        self.run(async move { graph.resize(&node, sectors * SECTOR as u64).await })
            .unwrap();
    }

    fn identify(&mut self) -> Vec<u16> {
        self.outb(DEVICE, LBA);
        assert_eq!(self.simple(IDENTIFY) & ERR, 0);
        let words = self.read_block(1);
        let words = words.chunks(2);
        words
            .map(|word| u16::from_le_bytes([word[0], word[1]]))
            .collect()
    }

    /// Whether these sectors can be read, by a command for each way to say where.
    fn reaches(&mut self, lba: u32) -> bool {
        self.address28(lba, 1);
        let verified = self.simple(VERIFY) & ERR == 0;
        self.address28(lba, 1);
        let read = self.simple(READ) & ERR == 0;
        if read {
            self.read_block(1);
        }
        self.address48(lba.into(), 1);
        let long = self.simple(READ_EXT) & ERR == 0;
        if long {
            self.read_block(1);
        }
        assert_eq!((read, long), (verified, verified), "sector {lba}");
        verified
    }
}

fn number(words: &[u16]) -> u64 {
    let digits = words.iter().rev();
    digits.fold(0, |number, word| number << 16 | u64::from(*word))
}

/// Words 60, 61 and 100 to 103 (ATA/ATAPI-6, section 8.15).
fn capacities(words: &[u16]) -> [u64; 2] {
    [number(&words[60..62]), number(&words[100..104])]
}

#[test]
fn a_disk_that_grows_shows_it_and_can_be_read_to_its_end() {
    let mut bench = Bench::new();
    let words = bench.identify();
    assert_eq!(capacities(&words), [SECTORS; 2]);
    assert!(!bench.reaches(4096));
    bench.resize(3 * SECTORS);
    let words = bench.identify();
    assert_eq!(capacities(&words), [3 * SECTORS; 2]);
    // 12288 sectors are 12 cylinders of 16 heads and 63 sectors, and a rest.
    assert_eq!((words[1], words[54]), (12, 12));
    assert_eq!(number(&words[57..59]), 12 * 16 * 63);
    assert!(bench.reaches(4096) && bench.reaches(12287));
    assert!(!bench.reaches(12288));
    bench.outb(DEVICE, LBA);
    assert_eq!(bench.simple(READ_NATIVE_MAX), DRDY | DSC);
    assert_eq!((bench.inb(LBA_LOW), bench.inb(LBA_MID)), (0xff, 0x2f));
    // Cylinder 11, head 0, sector 1: beyond the old translation.
    bench.outb(DEVICE, 0);
    bench.outb(COUNT, 1);
    bench.outb(LBA_LOW, 1);
    bench.outb(LBA_MID, 11);
    bench.outb(LBA_HIGH, 0);
    assert_eq!(bench.simple(READ), DRDY | DSC | DRQ);
    assert_eq!(bench.read_block(1), [0; SECTOR]);
}

#[test]
fn a_disk_that_shrinks_refuses_what_it_had() {
    let mut bench = Bench::new();
    assert!(bench.reaches(4095));
    bench.resize(1024);
    assert_eq!(capacities(&bench.identify()), [1024; 2]);
    assert!(bench.reaches(1023));
    assert!(!bench.reaches(1024) && !bench.reaches(4095));
    bench.address28(1023, 2);
    bench.set_table(&[(BUFFER, EOT | 1024)]);
    bench.start_dma(READ_DMA);
    bench.wait_ready();
    assert_eq!(bench.status(), ABORTED);
}

#[test]
fn a_translation_that_was_asked_for_keeps_its_heads_and_sectors() {
    let mut bench = Bench::new();
    // 4 heads, 32 sectors.
    bench.outb(DEVICE, 3);
    bench.outb(COUNT, 32);
    assert_eq!(bench.simple(INITIALIZE_PARAMETERS), DRDY | DSC);
    bench.resize(2 * SECTORS);
    let words = bench.identify();
    assert_eq!(words[54..57], [64, 4, 32]);
    assert_eq!(number(&words[57..59]), 2 * SECTORS);
    assert_eq!(words[1], 8, "the native one");
}

/// A transfer of several blocks is measured again with each of them.
#[test]
fn a_read_under_way_ends_where_the_disk_ends_now() {
    let mut bench = Bench::new();
    bench.address28(1008, 48);
    assert_eq!(bench.simple(READ_MULTIPLE), DRDY | DSC | DRQ);
    let first = bench.read_block(16);
    assert_eq!(first[..SECTOR], stamp(1008));
    bench.wait_ready();
    bench.resize(1024);
    // This one had been read before.
    bench.read_block(16);
    bench.wait_ready();
    assert_eq!(bench.status(), ABORTED);
}

/// A request that waited for the resize and reaches beyond the new end fails; it is not cut.
#[test]
fn a_parked_request_beyond_the_new_end_fails() {
    let mut bench = Bench::new();
    let section = bench.drain();
    bench.address28(4000, 1);
    bench.outb(COMMAND, READ);
    bench.wait_parked();
    bench.resize(1024);
    assert_eq!(bench.status() & BSY, BSY);
    drop(section);
    bench.wait_ready();
    assert_eq!(bench.status(), ABORTED);
}

/// The ranges of a TRIM are held against the disk as it is when they are discarded.
#[test]
fn a_parked_trim_is_held_against_the_new_end() {
    let start = |bench: &mut Bench, sector: u64| {
        bench.fill_memory(BUFFER, &[0; 512]);
        bench.fill_memory(BUFFER, &(sector | 8 << 48).to_le_bytes());
        bench.set_table(&[(BUFFER, 0x200 | EOT)]);
        bench.address48(0, 1);
        bench.outb(FEATURES, 1);
        bench.start_dma(DATA_SET_MANAGEMENT);
        bench.wait_parked();
    };
    let mut bench = Bench::new();
    let section = bench.drain();
    start(&mut bench, 4000);
    bench.resize(1024);
    drop(section);
    bench.wait_ready();
    assert_eq!(bench.status(), ABORTED);
    // A range that the device has refused: the block layer has not been asked.
    assert_eq!(bench.disks[0].invalid(), [0, 0, 1]);

    let mut bench = Bench::new();
    let section = bench.drain();
    start(&mut bench, SECTORS);
    bench.resize(2 * SECTORS);
    drop(section);
    bench.wait_ready();
    assert_eq!(bench.status(), DRDY | DSC, "it is there now");
}

/// A disk may be resized after its size was read for the core and before its channel is told of resizes.
#[test]
fn a_channel_begins_with_the_size_of_now() {
    let bench = Bench::new();
    let config = DriveConfig::new(Arc::clone(&bench.disks[0].backend));
    let mut disk = Disk::new(&config, 1).unwrap();
    disk.sectors = 8;
    let core = Core::new([Some(Unit::Disk(disk)), None]);
    let context = bench.context();
    let memory = Arc::clone(&bench.memory);
    let space = configuration_space(IdeVariant::Piix3).unwrap();
    let channel = Channel::new(
        core,
        Wiring {
            line: bench.lines[0].clone(),
            posted: bench.posted.clone(),
        },
        [Some(&config), None],
        &context,
        memory,
        Arc::new(space),
    );
    let aborted = channel.access(|core| {
        core.write(Register::Device, LBA);
        core.write(Register::Count, 1);
        core.write(Register::LbaLow, 100);
        core.write(Register::StatusCommand, VERIFY);
        core.alternate_status() & ERR != 0
    });
    assert!(!aborted, "sector 100 is there");
}

/// What runs is let finish on the disk that it was meant for.
#[test]
fn a_request_that_runs_is_waited_for() {
    let mut bench = Bench::new();
    bench.hold(DebugEvent::ReadAio);
    bench.address28(7, 1);
    bench.outb(COMMAND, READ);
    bench.wait_held();
    let (graph, node) = (bench.graph(), Arc::clone(&bench.disks[0].node));
    bench.context().spawn(move || async move {
        graph.resize(&node, SECTOR as u64).await.unwrap();
    });
    bench.idle_turns();
    let disk = |bench: &Bench| bench.disks[0].backend.clone();
    assert!(disk(&bench).gate().is_closed());
    assert_eq!(disk(&bench).len(), SECTORS * SECTOR as u64);
    bench.release();
    bench.wait_ready();
    assert_eq!(bench.read_block(1), stamp(7));
    bench.wait(|bench| disk(bench).len() == SECTOR as u64 && !disk(bench).gate().is_closed());
    assert_eq!(capacities(&bench.identify()), [1; 2]);
}
