//! What a virtio disk says of itself: its features and its configuration, by the options of the device and of the node.

use sluice_tests::qtest::machine::QtestMachine;

use super::process::SLUICE;
use super::virtio::{EVENT_IDX, INDIRECT_DESC, VERSION_1, Virtio, common};
use super::virtio_commands::{RING_RESET, SLOT, feature};

/// All that is offered, by option.
#[test]
fn exactly_these_features_are_offered() {
    use feature::{
        BLK_SIZE, CONFIG_WCE, DISCARD, FLUSH, GEOMETRY, MQ, RO, SEG_MAX, SIZE_MAX, TOPOLOGY,
        WRITE_ZEROES,
    };
    let usual = SIZE_MAX | SEG_MAX | GEOMETRY | BLK_SIZE | FLUSH | TOPOLOGY | CONFIG_WCE;
    let usual = usual | DISCARD | WRITE_ZEROES;
    let usual = usual | INDIRECT_DESC | EVENT_IDX | VERSION_1 | RING_RESET;
    for (more, without, with) in [
        ("", 0, 0),
        (",num-queues=2", 0, MQ),
        (",discard=off", DISCARD, 0),
        (",write-zeroes=off", WRITE_ZEROES, 0),
        (",config-wce=off", CONFIG_WCE, 0),
        (",write-cache=off", 0, 0),
        (",config-wce=off,write-cache=off", CONFIG_WCE | FLUSH, 0),
        (",event_idx=off", EVENT_IDX, 0),
        (",indirect_desc=off", INDIRECT_DESC, 0),
        (",queue_reset=off", RING_RESET, 0),
        (",iommu_platform=on", 0, 1 << 33),
    ] {
        assert_eq!(offered(more, ""), usual & !without | with, "{more}");
    }
    let read_only = usual & !(DISCARD | WRITE_ZEROES) | RO;
    assert_eq!(offered("", ",read-only=on"), read_only);
}

fn with_null_disk(more: &str, node: &str) -> Virtio {
    let directory = tempfile::tempdir().unwrap();
    let machine = QtestMachine::start(
        SLUICE,
        [
            "-blockdev",
            &format!("null-co,node-name=disk,size=4M{node}"),
            "-device",
            &format!("virtio-blk-pci,drive=disk,addr={SLOT}.0{more}"),
        ],
    )
    .unwrap();
    let must = if more.contains("iommu_platform") {
        1 << 33
    } else {
        0
    };
    Virtio::over(machine, directory, SLOT, must, false)
}

fn offered(more: &str, node: &str) -> u64 {
    let mut virtio = with_null_disk(more, node);
    let (common, qtest) = (virtio.common, &mut virtio.machine.qtest);
    let words = [0_u32, 1, 2].map(|word| {
        qtest
            .write32(common + common::FEATURE_SELECT, word)
            .unwrap();
        u64::from(qtest.read32(common + common::FEATURE).unwrap())
    });
    assert_eq!(words[2], 0);
    virtio.end();
    words[0] | words[1] << 32
}

/// The fields of the configuration, each where and as wide as virtio 1.2 has it (section 5.2.4).
#[test]
fn the_configuration_tells_what_the_options_say() {
    /// A field: its name, where it is, its bytes, and what it says.
    type Field = (&'static str, u64, u64, u64);
    let cases: [(&str, &[Field]); 3] = [
        (
            "",
            &[
                ("capacity", 0, 8, 8192),
                ("size_max", 8, 4, 65536),
                ("seg_max", 12, 4, 254),
                ("cylinders", 16, 2, 8),
                ("heads", 18, 1, 16),
                ("sectors", 19, 1, 63),
                ("blk_size", 20, 4, 512),
                ("physical_block_exp", 24, 1, 0),
                ("alignment_offset", 25, 1, 0),
                ("min_io_size", 26, 2, 1),
                ("opt_io_size", 28, 4, 0),
                ("writeback", 32, 1, 1),
                ("num_queues", 34, 2, 1),
                ("max_discard_sectors", 36, 4, 4_194_303),
                ("max_discard_seg", 40, 4, 32),
                ("discard_sector_alignment", 44, 4, 1),
                ("max_write_zeroes_sectors", 48, 4, 4_194_303),
                ("max_write_zeroes_seg", 52, 4, 32),
                ("write_zeroes_may_unmap", 56, 1, 1),
            ],
        ),
        (
            ",physical_block_size=4096,opt_io_size=65536,cyls=5,heads=4,secs=3,max-discard-sectors=100,\
             max-write-zeroes-sectors=200,num-queues=2,queue-size=64,write-cache=off",
            &[
                ("capacity", 0, 8, 8192),
                ("seg_max", 12, 4, 62),
                ("cylinders", 16, 2, 5),
                ("heads", 18, 1, 4),
                ("sectors", 19, 1, 3),
                ("blk_size", 20, 4, 512),
                ("physical_block_exp", 24, 1, 3),
                ("min_io_size", 26, 2, 8),
                ("opt_io_size", 28, 4, 128),
                ("writeback", 32, 1, 0),
                ("num_queues", 34, 2, 2),
                ("max_discard_sectors", 36, 4, 100),
                ("discard_sector_alignment", 44, 4, 8),
                ("max_write_zeroes_sectors", 48, 4, 200),
            ],
        ),
        (
            ",logical_block_size=4096,physical_block_size=8192,min_io_size=16384,queue-size=256,seg-max-adjust=off,\
             discard_granularity=16384",
            &[
                ("seg_max", 12, 4, 126),
                ("blk_size", 20, 4, 4096),
                ("physical_block_exp", 24, 1, 1),
                ("min_io_size", 26, 2, 4),
                ("discard_sector_alignment", 44, 4, 32),
            ],
        ),
    ];
    for (more, fields) in cases {
        let mut virtio = with_null_disk(more, "");
        for (name, offset, width, expected) in fields {
            let (at, qtest) = (virtio.config + offset, &mut virtio.machine.qtest);
            let value = match width {
                1 => qtest.read8(at).unwrap().into(),
                2 => qtest.read16(at).unwrap().into(),
                4 => qtest.read32(at).unwrap().into(),
                _ => qtest.read64(at).unwrap(),
            };
            assert_eq!(value, *expected, "{name} with {more:?}");
        }
        virtio.end();
    }
}
