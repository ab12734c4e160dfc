//! Tests of IDE drives' properties.

use super::super::tests::{BLOCKDEV, refused, with_kernel};
use crate::storage::{DiskConfig, IdeProperties};

/// The disk of this `--device ide-hd`.
fn disk(properties: &str) -> DiskConfig {
    let line = format!("{BLOCKDEV} --device ide-hd,drive=d0{properties}");
    let mut disks = with_kernel(&line).storage.disks;
    assert_eq!(disks.len(), 1, "{line}");
    disks.remove(0)
}

#[test]
fn properties_have_qemus_names() {
    let all = disk(
        ",model=M-1,ver=2.0,wwn=0x5000c50012345678,rotation_rate=7200,physical_block_size=4096,\
         logical_block_size=512,discard_granularity=512,cyls=1024,heads=16,secs=63,serial=S,write-cache=off,share-rw=on",
    );
    let expected = IdeProperties {
        model: Some("M-1".into()),
        version: Some("2.0".into()),
        wwn: 0x5000_c500_1234_5678,
        rotation_rate: 7200,
        physical_block_size: Some(4096),
        geometry: Some((1024, 16, 63)),
        discard: true,
    };
    assert_eq!(all.ide, expected);
    assert!(!all.write_cache && all.share_rw);
    assert_eq!(all.serial.as_deref(), Some("S"));
    assert_eq!(disk("").ide, IdeProperties::default());
    assert!(!disk(",discard_granularity=0").ide.discard);
    assert_eq!(disk(",version=7").ide.version.as_deref(), Some("7"));
}

#[test]
fn a_cd_rom_drive_has_texts_and_a_name() {
    let parsed = with_kernel("--device ide-cd,model=DISC,ver=9,wwn=1,bootindex=0,write-cache=on");
    let drive = &parsed.storage.disks[0].ide;
    assert_eq!(drive.model.as_deref(), Some("DISC"));
    assert_eq!((drive.version.as_deref(), drive.wwn), (Some("9"), 1));
}

#[test]
fn what_only_firmware_would_heed_is_taken() {
    for translation in ["auto", "none", "lba", "large", "rechs"] {
        let plain = disk(&format!(
            ",bootindex=1,bios-chs-trans={translation},min_io_size=4096,opt_io_size=0"
        ));
        assert_eq!(plain.ide, IdeProperties::default());
    }
}

#[test]
fn what_no_ide_disk_has_is_refused_in_qemus_words() {
    for (properties, problem) in [
        (
            ",logical_block_size=4096",
            "logical_block_size must be 512 for IDE",
        ),
        (
            ",discard_granularity=4096",
            "discard_granularity must be 512 for ide",
        ),
        (",heads=16,secs=63", "cyls must be between 1 and 65535"),
        (",cyls=1,heads=17,secs=63", "heads must be between 1 and 16"),
        (",cyls=1,heads=1", "secs must be between 1 and 255"),
        (",bios-chs-trans=best", "bios-chs-trans"),
        (",wwn=x", "wwn"),
    ] {
        let error = refused(&format!("{BLOCKDEV} --device ide-hd,drive=d0{properties}"));
        assert!(error.contains(problem), "{properties}: {error}");
    }
    let error = refused("--device ide-hd");
    assert!(error.contains("No drive specified"), "{error}");
}
