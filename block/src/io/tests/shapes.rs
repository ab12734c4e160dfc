//! What comes to the driver for which request, and what comes back.

use sluice_aio::IoBuffer;

use super::{Call, Disk, Recipe, blocks_of, initial, run};
use crate::driver::{Allocation, Limits, RequestFlags};
use crate::io::{DetectZeroes, IoPolicy};
use crate::options::Discard;

const BLOCK: u64 = 4096;

fn disk(limits: Limits) -> Disk {
    let disk = Recipe::new(1 << 19, limits).make();
    disk.set_bytes(|bytes| {
        bytes
            .iter_mut()
            .enumerate()
            .for_each(|(at, byte)| *byte = initial(at));
    });
    disk
}

fn expected(range: std::ops::Range<usize>) -> Vec<u8> {
    range.map(initial).collect()
}

#[test]
fn without_limits_a_request_goes_as_it_is() {
    run(|| async {
        let disk = disk(Limits::default());
        disk.read(3, 1000).await.unwrap();
        disk.write(5, &[1; 77]).await.unwrap();
        disk.node
            .write_zeroes(1, 9, RequestFlags::empty())
            .await
            .unwrap();
        disk.node.discard(2, 9).await.unwrap();
        let calls: [Call; 4] = [
            ("read", 3, 1000),
            ("write", 5, 77),
            ("zero", 1, 9),
            ("discard", 2, 9),
        ];
        assert_eq!(disk.calls(), calls);
    });
}

#[test]
fn a_read_is_widened_and_cut_back() {
    run(|| async {
        let disk = disk(blocks_of(4096));
        assert_eq!(disk.read(512, 512).await.unwrap(), expected(512..1024));
        assert_eq!(disk.calls(), [("read", 0, BLOCK)]);
        assert_eq!(disk.read(4096, 8192).await.unwrap(), expected(4096..12288));
        assert_eq!(disk.calls(), [("read", BLOCK, 2 * BLOCK)]);
        // Of a long one only the ends are copied.
        let long = 256 << 10;
        assert_eq!(
            disk.read(100, long).await.unwrap(),
            expected(100..100 + long)
        );
        let middle = (long as u64 + 100) / BLOCK * BLOCK - BLOCK;
        let calls: [Call; 3] = [
            ("read", 0, BLOCK),
            ("read", BLOCK, middle),
            ("read", BLOCK + middle, BLOCK),
        ];
        assert_eq!(disk.calls(), calls);
    });
}

#[test]
fn a_write_keeps_the_bytes_around_it() {
    run(|| async {
        let disk = disk(blocks_of(4096));
        for (offset, len) in [
            (512, 512),
            (4095, 2),
            (1, 4095),
            (100, 256 << 10),
            (0, 4096),
        ] {
            let mut model = disk.bytes();
            model[offset..offset + len].fill(0xee);
            disk.write(offset as u64, &vec![0xee; len]).await.unwrap();
            assert!(disk.bytes() == model, "{offset}+{len}");
        }
    });
}

#[test]
fn the_last_block_may_be_a_part_of_one() {
    run(|| async {
        let size = 3 * 4096 + 512;
        let disk = Recipe::new(size, blocks_of(4096)).make();
        let last = size as u64 - 1;
        disk.write(last, &[7]).await.unwrap();
        assert_eq!(
            disk.calls(),
            [("read", 3 * BLOCK, 512), ("write", 3 * BLOCK, 512)]
        );
        assert_eq!(disk.read(last, 1).await.unwrap(), [7]);
        disk.write(3 * BLOCK, &[9; 512]).await.unwrap();
        assert!(disk.write(last, &[1, 2]).await.is_err(), "beyond the end");
        let zeroes = RequestFlags::empty();
        disk.node
            .write_zeroes(0, size as u64, zeroes)
            .await
            .unwrap();
        assert!(disk.bytes().iter().all(|byte| *byte == 0));
    });
}

#[test]
fn long_requests_are_split() {
    run(|| async {
        let disk = disk(Limits {
            request_alignment: 512,
            max_transfer: Some(10_000),
            ..Limits::default()
        });
        let data: Vec<_> = (0..40_000).map(|index| initial(index + 13)).collect();
        disk.write(700, &data).await.unwrap();
        assert_eq!(disk.read(700, data.len()).await.unwrap(), data);
        // The driver itself refuses what is longer.
        let longest = disk.calls().into_iter().map(|(_, _, len)| len).max();
        assert_eq!(longest, Some(9728));
    });
}

#[test]
fn zeroes_are_cut_to_the_drivers_blocks() {
    run(|| async {
        let disk = disk(Limits {
            request_alignment: 512,
            write_zeroes_alignment: 4096,
            max_write_zeroes: Some(10_000),
            ..Limits::default()
        });
        let mut model = disk.bytes();
        model[100..30_100].fill(0);
        disk.node
            .write_zeroes(100, 30_000, RequestFlags::MAY_UNMAP)
            .await
            .unwrap();
        assert!(disk.bytes() == model);
        let zeroed: Vec<_> = disk
            .calls()
            .into_iter()
            .filter(|(name, ..)| *name == "zero")
            .collect();
        let calls: [Call; 5] = [
            ("zero", 512, 3584),
            ("zero", 4096, 8192),
            ("zero", 12_288, 8192),
            ("zero", 20_480, 8192),
            ("zero", 28_672, 1024),
        ];
        assert_eq!(zeroed, calls);
    });
}

#[test]
fn a_driver_that_cannot_zero_is_given_zeroes_in_bounded_pieces() {
    run(|| async {
        let size = 5 << 20;
        let mut recipe = Recipe::new(size, Limits::default());
        recipe.zeroes = false;
        let disk = recipe.make();
        disk.node
            .write_zeroes(0, size as u64, RequestFlags::FUA)
            .await
            .unwrap();
        assert!(disk.bytes().iter().all(|byte| *byte == 0));
        let calls = disk.calls_with_flags();
        let writes: Vec<_> = calls
            .iter()
            .filter(|((name, ..), _)| *name == "write")
            .collect();
        assert_eq!(writes.len(), 5);
        assert!(writes.iter().all(|((.., len), _)| *len <= 1 << 20));
        assert_eq!(calls.last().unwrap().0, ("flush", 0, 0));
    });
}

#[test]
fn discards_leave_parts_of_blocks_alone() {
    run(|| async {
        let disk = disk(Limits {
            request_alignment: 512,
            discard_alignment: 4096,
            max_discard: Some(8192),
            ..Limits::default()
        });
        disk.node.discard(100, 400).await.unwrap();
        assert_eq!(disk.calls(), []);
        disk.node.discard(100, 20_000).await.unwrap();
        let calls: [Call; 4] = [
            ("discard", 512, 3584),
            ("discard", 4096, 8192),
            ("discard", 12_288, 4096),
            ("discard", 16_384, 3584),
        ];
        assert_eq!(disk.calls(), calls);
    });
}

#[test]
fn the_policy_decides_about_holes() {
    run(|| async {
        let disk = disk(Limits::default());
        disk.node
            .set_policy(IoPolicy::new(Discard::Ignore, DetectZeroes::Off).unwrap());
        disk.node.discard(0, 4096).await.unwrap();
        assert_eq!(disk.calls(), []);
        let may_unmap = RequestFlags::MAY_UNMAP;
        disk.node.write_zeroes(0, 4096, may_unmap).await.unwrap();
        let plain = (("zero", 0, 4096), RequestFlags::empty());
        assert_eq!(disk.calls_with_flags(), [plain]);
        disk.node
            .set_policy(IoPolicy::new(Discard::Unmap, DetectZeroes::Off).unwrap());
        disk.node.discard(0, 4096).await.unwrap();
        disk.node.write_zeroes(0, 4096, may_unmap).await.unwrap();
        let holes = [
            (("discard", 0, 4096), RequestFlags::empty()),
            (("zero", 0, 4096), may_unmap),
        ];
        assert_eq!(disk.calls_with_flags(), holes);
    });
}

#[test]
fn zeroes_are_detected_where_that_is_asked_for() {
    run(|| async {
        let disk = disk(Limits::default());
        let write = async |detect, last| {
            disk.node
                .set_policy(IoPolicy::new(Discard::Unmap, detect).unwrap());
            let buffer = IoBuffer::alloc(5000);
            buffer.copy_from_slice(4999, &[last]);
            disk.node
                .write(512, buffer, RequestFlags::FUA)
                .await
                .unwrap();
            disk.calls_with_flags()
        };
        let data = (("write", 512, 5000), RequestFlags::empty());
        let zero = (("zero", 512, 5000), RequestFlags::empty());
        let hole = (("zero", 512, 5000), RequestFlags::MAY_UNMAP);
        let flush = (("flush", 0, 0), RequestFlags::empty());
        assert_eq!(write(DetectZeroes::Off, 0).await, [data, flush]);
        assert_eq!(write(DetectZeroes::On, 0).await, [zero, flush]);
        assert_eq!(write(DetectZeroes::On, 1).await, [data, flush]);
        assert_eq!(write(DetectZeroes::Unmap, 0).await, [hole, flush]);
        assert_eq!(write(DetectZeroes::Unmap, 1).await, [data, flush]);
    });
}

#[test]
fn detecting_holes_needs_discards() {
    let refused = IoPolicy::new(Discard::Ignore, DetectZeroes::Unmap).unwrap_err();
    let text = "setting detect-zeroes to unmap is not allowed without setting discard operation \
                to unmap";
    assert_eq!(refused.to_string(), text);
}

#[test]
fn status_never_calls_data_zero() {
    run(|| async {
        let disk = Recipe::new(8192, blocks_of(4096)).make();
        // The driver's answers are finer than its blocks.
        disk.set_bytes(|bytes| bytes[..1024].fill(0));
        disk.set_bytes(|bytes| bytes[4096..6144].fill(0));
        for at in 0..8192 {
            let status = disk.node.block_status(at, 8192 - at).await.unwrap();
            assert!(
                status.len > 0 && at + status.len <= 8192,
                "{at}: {status:?}"
            );
            if status.allocation == Allocation::Zero {
                let start = usize::try_from(at).unwrap();
                let end = start + usize::try_from(status.len).unwrap();
                assert!(
                    disk.bytes()[start..end].iter().all(|byte| *byte == 0),
                    "{at}"
                );
            }
        }
        let status = disk.node.block_status(512, 100).await.unwrap();
        assert_eq!((status.allocation, status.len), (Allocation::Zero, 100));
    });
}
