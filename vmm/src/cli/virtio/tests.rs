//! Tests of a virtio disk's properties.

use super::super::tests::{BLOCKDEV, refused, with_kernel};
use crate::storage::{Attachment, DiskConfig, VirtioBlkProperties, VirtioDiskConfig};

const THREADS: &str = "--object iothread,id=a --object iothread,id=b";

/// The disk of this `--device virtio-blk-pci`, on a machine with these further options.
fn disk(more: &str, properties: &str) -> (DiskConfig, VirtioDiskConfig) {
    let line = format!("{more} {BLOCKDEV} --device {}", device(properties));
    let mut disks = with_kernel(&line).storage.disks;
    assert_eq!(disks.len(), 1, "{line}");
    let disk = disks.remove(0);
    match disk.attachment.clone() {
        Attachment::VirtioPci(device) => (disk, device),
        other => panic!("{line}: {other:?}"),
    }
}

/// A JSON object if it begins like one.
fn device(properties: &str) -> String {
    if let Some(members) = properties.strip_prefix('{') {
        format!(r#"{{"driver":"virtio-blk-pci","drive":"d0",{members}"#)
    } else {
        format!("virtio-blk-pci,drive=d0{properties}")
    }
}

fn threads(more: &str, properties: &str) -> Vec<String> {
    disk(&format!("{THREADS} {more}"), properties).1.iothreads
}

#[test]
fn there_is_a_queue_for_each_processor_unless_a_number_is_given() {
    assert_eq!(disk("", "").1.num_queues, 1);
    assert_eq!(disk("--smp 3", "").1.num_queues, 3);
    assert_eq!(disk("--smp 3", ",num-queues=2").1.num_queues, 2);
    let drive = with_kernel("--smp 4 --drive file=v,if=virtio");
    let Attachment::VirtioPci(device) = &drive.storage.disks[0].attachment else {
        panic!("{:?}", drive.storage);
    };
    assert_eq!(device.num_queues, 4);
}

#[test]
fn queues_are_shared_among_threads() {
    assert!(threads("", "").is_empty(), "the main loop");
    assert_eq!(threads("", ",iothread=b"), ["b"]);
    let evenly = ",num-queues=4,iothread-vq-mapping.0.iothread=b,iothread-vq-mapping.1.iothread=a";
    assert_eq!(threads("", evenly), ["b", "a"]);
    let json = r#"{"num-queues":3,"iothread-vq-mapping":[{"iothread":"a","vqs":[2,0]},{"iothread":"b","vqs":[1]}]}"#;
    assert_eq!(threads("", json), ["a", "b", "a"]);
    let by_processors =
        r#"{"iothread-vq-mapping":[{"iothread":"a","vqs":[0]},{"iothread":"b","vqs":[1]}]}"#;
    assert_eq!(threads("--smp 2", by_processors), ["a", "b"]);
    assert!(threads("", r#"{"iothread-vq-mapping":[]}"#).is_empty());
}

#[test]
fn mappings_that_cannot_be_are_refused_in_qemus_words() {
    let both = r#"{"iothread":"a","iothread-vq-mapping":[{"iothread":"b"}]}"#;
    let cases = [
        (",iothread=c", "Cannot find iothread 'c'"),
        (
            both,
            "iothread and iothread-vq-mapping properties cannot be set at the same time",
        ),
        (
            r#"{"iothread-vq-mapping":[{"iothread":"c"}]}"#,
            "IOThread \"c\" object does not exist",
        ),
        (
            r#"{"num-queues":2,"iothread-vq-mapping":[{"iothread":"a"},{"iothread":"a"}]}"#,
            "duplicate IOThread name \"a\" in iothread-vq-mapping",
        ),
        (
            r#"{"num-queues":2,"iothread-vq-mapping":[{"iothread":"a","vqs":[0]},{"iothread":"b"}]}"#,
            "either all items in iothread-vq-mapping must have vqs or none of them must have it",
        ),
        (
            r#"{"num-queues":2,"iothread-vq-mapping":[{"iothread":"a","vqs":[2]}]}"#,
            "vq index 2 for IOThread \"a\" must be less than num_queues 2 in iothread-vq-mapping",
        ),
        (
            r#"{"num-queues":2,"iothread-vq-mapping":[{"iothread":"a","vqs":[0]},{"iothread":"b","vqs":[0]}]}"#,
            "cannot assign vq 0 to IOThread \"b\" because it is already assigned",
        ),
        (
            r#"{"num-queues":2,"iothread-vq-mapping":[{"iothread":"a","vqs":[0]}]}"#,
            "missing vq 1 IOThread assignment in iothread-vq-mapping",
        ),
    ];
    for (properties, problem) in cases {
        let line = format!(
            "--kernel k {THREADS} {BLOCKDEV} --device {}",
            device(properties)
        );
        let text = refused(&line);
        assert!(text.contains(problem), "{line}: {text}");
    }
}

#[test]
fn properties_have_qemus_names_and_defaults() {
    let (usual_disk, usual) = disk("", "");
    assert_eq!(usual.properties, VirtioBlkProperties::default());
    assert!(!usual_disk.share_rw && usual_disk.write_cache);
    let (disk, device) = disk(
        "",
        ",queue-size=128,seg-max-adjust=off,logical_block_size=4k,min_io_size=8k,opt_io_size=64k,\
         discard_granularity=1M,cyls=100,heads=16,secs=63,config-wce=off,discard=off,\
         write-zeroes=off,max-discard-sectors=8,max-write-zeroes-sectors=16,event_idx=off,\
         indirect_desc=off,queue_reset=off,iommu_platform=on,vectors=0,disable-legacy=on,\
         disable-modern=off,request-merging=off,bootindex=1,share-rw=on,write-cache=off",
    );
    assert!(disk.share_rw && !disk.write_cache);
    let expected = VirtioBlkProperties {
        queue_size: 128,
        seg_max_adjust: false,
        logical_block_size: 4096,
        physical_block_size: 4096,
        min_io_size: 8192,
        opt_io_size: 64 << 10,
        discard_granularity: Some(1 << 20),
        geometry: Some((100, 16, 63)),
        config_wce: false,
        discard: false,
        write_zeroes: false,
        max_discard_sectors: Some(8),
        max_write_zeroes_sectors: Some(16),
        event_idx: false,
        indirect_desc: false,
        queue_reset: false,
        iommu_platform: true,
        vectors: Some(0),
    };
    assert_eq!(device.properties, expected);
}

#[test]
fn a_granularity_that_is_not_reported_is_a_block() {
    let (_, device) = disk(
        "",
        ",discard_granularity=1M,report-discard-granularity=off,logical_block_size=1k",
    );
    assert_eq!(device.properties.discard_granularity, Some(1024));
}

#[test]
fn what_there_is_not_is_refused() {
    for (properties, problem) in [
        (",num-queues=0", "num-queues property must be larger than 0"),
        (",disable-legacy=off", "disable-legacy=off is not supported"),
        (",disable-modern=on", "disable-modern=on is not supported"),
        (",packed=on", "packed=on is not supported"),
    ] {
        let text = refused(&format!(
            "--kernel k {BLOCKDEV} --device {}",
            device(properties)
        ));
        assert!(text.contains(problem), "{properties}: {text}");
    }
    let text = refused("--kernel k --device virtio-blk-pci");
    assert!(text.contains("drive property not set"), "{text}");
}
