//! Mirrors from one plain file to another, which the kernel copies, of an IDE disk and of a virtio disk in an I/O thread at
//! the same time, while both are written to. Nothing can be held on such nodes: the speed limit sees to it that the guest is
//! quick enough.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use serde_json::json;
use sluice_tests::sharing;
use tempfile::TempDir;

use super::two_disks::{Disk, FILLER, Guest, SECTOR, SECTORS};
use super::writer::{APART, CLUSTER, Writer};

/// The node of a plain file.
fn root(disk: Disk) -> &'static str {
    match disk {
        Disk::Ide => "ide-plain",
        Disk::Virtio => "virtio-plain",
    }
}

fn path(directory: &TempDir, name: &str) -> String {
    directory.path().join(name).to_str().unwrap().to_owned()
}

/// Images of the same content as the usual ones, and targets full of something else.
fn start(directory: &TempDir) -> Writer {
    let nodes = Disk::BOTH.map(|disk| {
        let image = path(directory, root(disk));
        let file = File::create(&image).unwrap();
        file.write_all_at(&vec![0x11; 1 << 20], 0).unwrap();
        file.set_len(SECTORS * SECTOR as u64).unwrap();
        format!(
            "file,node-name={},discard=unmap,filename={image}",
            root(disk)
        )
    });
    let more = nodes.each_ref().map(|node| ("-blockdev", node.as_str()));
    let mut writer = Writer::on(Guest::start_with(&more, root), root);
    for disk in Disk::BOTH {
        let target = path(directory, &disk.copy());
        let size = SECTOR * usize::try_from(SECTORS).unwrap();
        fs::write(&target, vec![FILLER; size]).unwrap();
        let node = json!({"driver": "file", "node-name": disk.copy(), "filename": target, "discard": "unmap"});
        writer.guest.execute("blockdev-add", &node);
    }
    writer
}

fn write_to_both(writer: &mut Writer) {
    for disk in Disk::BOTH {
        // Where the first copy begins, and elsewhere.
        writer.write(disk, 3);
        writer.write_some(disk);
    }
}

#[test]
fn what_the_kernel_copies_under_writes_is_the_disk() {
    for mode in ["background", "write-blocking", "automatic"] {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = start(&directory);
        for disk in Disk::BOTH {
            let more = json!({
                "device": root(disk), "copy-mode": mode, "speed": 1, "buf-size": 1 << 20
            });
            writer.guest.begin_mirror(disk, &more).unwrap();
        }
        for round in 0..3 {
            write_to_both(&mut writer);
            for disk in Disk::BOTH {
                writer.trim(disk, APART + round * 2 * CLUSTER, 192);
                writer.guest.flush(disk);
            }
        }
        for disk in Disk::BOTH {
            let faster = json!({"device": disk.name(), "speed": 0});
            writer.guest.execute("block-job-set-speed", &faster);
        }
        loop {
            write_to_both(&mut writer);
            let jobs = writer.guest.execute("query-block-jobs", &json!({}));
            if jobs
                .as_array()
                .unwrap()
                .iter()
                .all(|job| job["ready"] == true)
            {
                break;
            }
        }
        for disk in Disk::BOTH {
            write_to_both(&mut writer);
            writer.trim(disk, APART + CLUSTER, 192);
            let job = json!({"device": disk.name()});
            writer.guest.execute("block-job-complete", &job);
            let other = Disk::BOTH.into_iter().find(|other| *other != disk).unwrap();
            writer.write_some(other);
            writer.guest.wait_completed(disk);
            assert!(writer.guest.roots().contains(&disk.copy()));
            let (source, target) = (path(&directory, root(disk)), path(&directory, &disk.copy()));
            let expected = writer.expected(disk);
            for image in [&source, &target] {
                writer.assert_image(disk, image, &expected);
            }
            writer.assert_disk(disk, &target);
        }
        writer.guest.end();
    }
}

/// The disk and its copy lie in the same blocks, all of them.
fn assert_shared(source: &str, target: &str) {
    let [one, other] = [source, target].map(|image| File::open(image).unwrap());
    let (allocated, shared) = sharing::allocated_and_shared(&one, &other).unwrap();
    assert!(shared >= 1 << 20, "{shared} bytes");
    assert_eq!(shared, allocated, "{source}, {target}");
}

/// In the data, twice, and in the hole.
fn write_here_and_there(writer: &mut Writer, disk: Disk) {
    for sector in [3, APART, SECTORS - 1] {
        writer.write(disk, sector);
    }
}

/// Where the file system can share blocks it makes the copy of them. What is written to the disk meanwhile is in the copy; what
/// is written later, wherever the disk is then, is in none of the other images.
#[test]
fn images_that_share_blocks_stay_images_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    if !sharing::is_to_be_had(directory.path()).unwrap() {
        return;
    }
    let mut writer = start(&directory);
    for disk in Disk::BOTH {
        let source = path(&directory, root(disk));
        let [copy, pivoted] =
            ["copy", "pivoted"].map(|name| path(&directory, &format!("{}-{name}", root(disk))));
        let job = json!({"device": disk.name()});
        let mirror = |writer: &mut Writer, target: &str, node: &str| {
            let arguments = json!({
                "device": root(disk), "target": target, "format": "raw", "sync": "full",
                "job-id": disk.name(), "node-name": node,
            });
            writer.guest.execute("drive-mirror", &arguments);
            write_here_and_there(writer, disk);
            writer.guest.wait_job(disk, "BLOCK_JOB_READY");
            write_here_and_there(writer, disk);
        };

        mirror(&mut writer, &copy, &format!("{}-old", root(disk)));
        writer.guest.execute("block-job-cancel", &job);
        writer.guest.wait_completed(disk);
        let copied = writer.expected(disk);
        writer.assert_image(disk, &source, &copied);
        writer.assert_image(disk, &copy, &copied);
        assert_shared(&source, &copy);
        write_here_and_there(&mut writer, disk);
        let written = writer.expected(disk);
        writer.assert_image(disk, &source, &written);
        writer.assert_image(disk, &copy, &copied);

        mirror(&mut writer, &pivoted, &format!("{}-new", root(disk)));
        writer.guest.execute("block-job-complete", &job);
        writer.guest.wait_completed(disk);
        let left = writer.expected(disk);
        writer.assert_image(disk, &source, &left);
        writer.assert_image(disk, &pivoted, &left);
        assert_shared(&source, &pivoted);
        write_here_and_there(&mut writer, disk);
        let written = writer.expected(disk);
        writer.assert_image(disk, &pivoted, &written);
        writer.assert_image(disk, &source, &left);
        writer.assert_image(disk, &copy, &copied);
    }
    writer.guest.end();
}
