//! A request in steady state allocates nothing, from the guest's access to the interrupt.

use super::bench::*;
use crate::allocations::{assert_none_in_steady_state, during};
use crate::bus::PioDevice as _;

const READ: u8 = 0x20;
const WRITE: u8 = 0x30;
const READ_MULTIPLE: u8 = 0xc4;
const READ_DMA: u8 = 0xc8;
const WRITE_DMA: u8 = 0xca;
const DATA_SET_MANAGEMENT: u8 = 0x06;
const FLUSH: u8 = 0xe7;

impl Bench {
    /// What is allocated until the channel is not busy any more.
    fn allocations_until_ready(&mut self) -> u64 {
        during(|| self.turn_until_ready())
    }

    fn counted_dma(&mut self, command: u8) -> u64 {
        let allocated = during(|| self.start_dma(command)) + self.allocations_until_ready();
        assert_eq!(self.inb(STATUS), DRDY | DSC);
        allocated
    }
}

#[test]
fn dma_allocates_nothing() {
    for command in [READ_DMA, WRITE_DMA] {
        let mut bench = Bench::new();
        // More regions than a request has in place: as many as pages of a 64 KiB transfer.
        let table: Vec<_> = (0..16u32)
            .map(|page| {
                let last = if page == 15 { EOT } else { 0 };
                (BUFFER + page * 0x2000, 0x1000 | last)
            })
            .collect();
        assert_none_in_steady_state(&format!("command {command:#x}"), || {
            bench.set_table(&table);
            bench.address28(64, 128);
            bench.counted_dma(command)
        });
    }
}

#[test]
fn the_data_register_allocates_nothing() {
    let mut bench = Bench::new();
    let mut block = [0; 16 * SECTOR];
    assert_none_in_steady_state("READ SECTORS", || {
        bench.address28(7, 2);
        let mut allocated = during(|| bench.outb(COMMAND, READ));
        for lba in [7, 8] {
            allocated += bench.allocations_until_ready();
            let sector = &mut block[..SECTOR];
            allocated += during(|| bench.ide.read_string(DATA, 2, sector));
            assert_eq!(*sector, stamp(lba));
        }
        allocated
    });
    assert_none_in_steady_state("READ MULTIPLE", || {
        bench.address28(16, 16);
        let mut allocated = during(|| bench.outb(COMMAND, READ_MULTIPLE));
        allocated += bench.allocations_until_ready();
        allocated + during(|| bench.ide.read_string(DATA, 2, &mut block))
    });
    assert_none_in_steady_state("WRITE SECTORS", || {
        bench.address28(7, 2);
        let mut allocated = during(|| bench.outb(COMMAND, WRITE));
        for _ in 0..2 {
            let sector = &block[..SECTOR];
            allocated += during(|| bench.ide.write_string(DATA, 2, sector));
            allocated += bench.allocations_until_ready();
        }
        assert_eq!(bench.inb(STATUS), DRDY | DSC);
        allocated
    });
}

#[test]
fn flushes_and_trims_allocate_nothing() {
    let mut bench = Bench::new();
    assert_none_in_steady_state("FLUSH CACHE", || {
        let allocated = during(|| bench.outb(COMMAND, FLUSH));
        allocated + bench.allocations_until_ready()
    });
    let ranges: Vec<u8> = (0..8u64)
        .flat_map(|range| ((range * 64) | (8 << 48)).to_le_bytes())
        .collect();
    assert_none_in_steady_state("DATA SET MANAGEMENT", || {
        bench.fill_memory(BUFFER, &ranges);
        bench.set_table(&[(BUFFER, 0x200 | EOT)]);
        bench.address48(0, 1);
        bench.outb(FEATURES, 1);
        bench.counted_dma(DATA_SET_MANAGEMENT)
    });
}

#[test]
fn a_parked_request_allocates_nothing_of_its_own() {
    let mut bench = Bench::new();
    bench.set_table(&[(BUFFER, 0x200 | EOT)]);
    let gate = bench.disks[0].backend.gate().clone();
    assert_none_in_steady_state("a write in a section", || {
        let section = gate.close("test");
        bench.set_table(&[(BUFFER, 0x200 | EOT)]);
        bench.address28(64, 1);
        let mut allocated = during(|| bench.start_dma(WRITE_DMA));
        allocated += during(|| bench.turn_until(|bench| bench.stats().parked_now));
        // The section is the operator's.
        drop(section);
        allocated + bench.allocations_until_ready()
    });
}
