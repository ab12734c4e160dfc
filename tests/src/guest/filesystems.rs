//! File systems that are made, stressed and checked by the guest while the operator mirrors their
//! disks to and fro, drains them and stops the machine.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    lab::{Guest, Lab, PATIENCE},
    script::command_line,
};
use crate::qmp::Qmp;

/// Size of each disk in bytes.
const DISK: u64 = 24 << 20;

/// Where on the control disk the operator tells the guest to stop, in bytes; in front of it is the guest's
/// script.
const ORDERS: u64 = 64 << 10;

/// Sections per phase of a job.
const SECTIONS: usize = 6;

/// Rounds of stress write some files, copy, rename and remove them, and keep sums of what is there; until the
/// operator stops them. Then both file systems must be clean, and hold what was written last.
const SCRIPT: &str = r"
set -e
cd /tmp
begin() {
    mke2fs $1 >/dev/null
    mkdir $2
    mount -t ext4 $1 $2
}
stopped() {
    dd if=/dev/vdb bs=512 skip=128 count=1 iflag=direct 2>/dev/null | grep -q stop
}
round() {
    name=r$(($2 % 4))
    at=/tmp/$1/$name
    rm -rf $at
    mkdir $at
    head -c 300000 /dev/urandom >$at/a
    cp $at/a $at/b
    file=0
    while [ $file -lt 20 ]; do
        echo $1 $2 $file >$at/f$file
        file=$((file + 1))
    done
    rm $at/f3 $at/f7
    mv $at/b $at/c
    cd $at
    sha256sum * >/tmp/sums.$1.$name
    cd /tmp
    sync
}
stress() {
    number=0
    until stopped; do
        number=$((number + 1))
        round $1 $number
        echo $1 round $number.
    done
}
set +f
begin /dev/sda ide
begin /dev/vda virtio
echo queues: $(ls /sys/block/vda/mq | wc -l).
stress ide &
ide=$!
stress virtio &
virtio=$!
wait $ide
wait $virtio
for name in ide virtio; do
    umount $name
done
echo 3 >/proc/sys/vm/drop_caches
e2fsck -fn /dev/sda
e2fsck -fn /dev/vda
mount -t ext4 -o ro /dev/sda ide
mount -t ext4 -o ro /dev/vda virtio
for sums in sums.*; do
    path=${sums#sums.}
    cd /tmp/${path%.*}/${path#*.}
    sha256sum -c /tmp/$sums >/dev/null
    echo verified $path.
done
";

/// A disk of the story: its device, its two images, and how the guest calls it.
struct Disk {
    device: &'static str,
    images: [&'static str; 2],
    name: &'static str,
}

const DISKS: [Disk; 2] = [
    Disk {
        device: "hd",
        images: ["ide-a", "ide-b"],
        name: "ide",
    },
    Disk {
        device: "vd",
        images: ["virtio-a", "virtio-b"],
        name: "virtio",
    },
];

/// An IDE disk and a virtio disk with two queues on two threads, both under load, are mirrored to another
/// image and back, in a guest with two processors.
pub fn survive_mirrors_and_drains(lab: &Lab<'_>) -> Result<()> {
    let control = control_disk(lab)?;
    let arguments = arguments(lab, &control)?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let run = format!("head -c {ORDERS} /dev/vdb | tr -d '\\0' >/tmp/script; sh /tmp/script");
    let line = command_line(&run, "sluice.wait=/dev/sda,/dev/vda,/dev/vdb");
    let (mut guest, mut qmp) = lab.start_controlled(&line, &arguments)?;
    guest.wait("queues: 2.")?;
    both_go_on(&mut guest)?;
    for target in [1, 0] {
        for disk in &DISKS {
            let job = json!({
                "job-id": disk.device, "device": disk.device, "sync": "full",
                "target": disk.images[target],
            });
            qmp.execute("blockdev-mirror", &job)?;
        }
        disturb(&mut qmp)?;
        for disk in &DISKS {
            qmp.wait_job_event("BLOCK_JOB_READY", disk.device, PATIENCE)?;
        }
        both_go_on(&mut guest)?;
        disturb(&mut qmp)?;
        for disk in &DISKS {
            qmp.execute("block-job-complete", &json!({"device": disk.device}))?;
        }
        for disk in &DISKS {
            let end = qmp.wait_job_event("BLOCK_JOB_COMPLETED", disk.device, PATIENCE)?;
            ensure!(end.data["error"].is_null(), "the job failed: {}", end.data);
            let now = root_of(&mut qmp, disk.device)?;
            let wanted = disk.images[target];
            ensure!(now == wanted, "{} is on {now}, not on {wanted}", disk.name);
        }
        both_go_on(&mut guest)?;
    }
    let orders = File::options().write(true).open(&control)?;
    orders.write_all_at(b"stop", ORDERS)?;
    let console = guest.finish_script()?;
    for disk in &DISKS {
        for round in 0..4 {
            let line = format!("verified {}.r{round}.", disk.name);
            ensure!(console.contains(&line), "no line {line:?}\n{console}");
        }
    }
    Ok(())
}

/// Makes the disk with the guest's script.
fn control_disk(lab: &Lab<'_>) -> Result<std::path::PathBuf> {
    let mut content = SCRIPT.as_bytes().to_vec();
    ensure!(content.len() as u64 <= ORDERS, "the script is too long");
    content.resize(usize::try_from(2 * ORDERS)?, 0);
    lab.image("control.img", &content)
}

fn arguments(lab: &Lab<'_>, control: &Path) -> Result<Vec<String>> {
    let mut words: Vec<String> = ["--smp", "2", "--object", "iothread,id=io0"]
        .map(str::to_owned)
        .to_vec();
    words.extend(["--object", "iothread,id=io1"].map(str::to_owned));
    for name in DISKS.iter().flat_map(|disk| disk.images) {
        let path = lab.path(&format!("{name}.img"));
        File::create_new(&path)?.set_len(DISK)?;
        let node = json!({
            "driver": "raw", "node-name": name, "discard": "unmap",
            "file": {"driver": "file", "filename": path, "discard": "unmap"},
        });
        words.extend(["--blockdev".to_owned(), node.to_string()]);
    }
    let virtio = json!({
        "driver": "virtio-blk-pci", "drive": "virtio-a", "id": "vd", "num-queues": 2,
        "iothread-vq-mapping": [{"iothread": "io0"}, {"iothread": "io1"}],
    });
    let control = format!("if=none,id=control,format=raw,file={}", control.display());
    words.extend(["--device", "ide-hd,drive=ide-a,id=hd", "--device"].map(str::to_owned));
    words.push(virtio.to_string());
    words.extend(["--drive".to_owned(), control]);
    // The guest's names follow the devices' order.
    words.extend(["--device", "virtio-blk-pci,drive=control"].map(str::to_owned));
    Ok(words)
}

/// Waits until stress has come further on both disks.
fn both_go_on(guest: &mut Guest) -> Result<()> {
    for disk in &DISKS {
        guest.wait(&format!("{} round ", disk.name))?;
    }
    Ok(())
}

/// Opens sections around both disks, also such as stop the machine.
fn disturb(qmp: &mut Qmp) -> Result<()> {
    for _ in 0..SECTIONS {
        for disk in &DISKS {
            // Each change of a disk's group is made in a section; this limit is none.
            for iops in [1_000_000, 0] {
                let limits = json!({
                    "id": disk.device, "bps": 0, "bps_rd": 0, "bps_wr": 0,
                    "iops": iops, "iops_rd": 0, "iops_wr": 0,
                });
                qmp.execute("block_set_io_throttle", &limits)?;
            }
        }
        qmp.execute("stop", &json!({}))?;
        qmp.execute("cont", &json!({}))?;
    }
    Ok(())
}

/// The node that a disk stands on now.
fn root_of(qmp: &mut Qmp, device: &str) -> Result<String> {
    let disks = qmp.execute("query-block", &json!({}))?;
    let disk = disks.as_array().into_iter().flatten();
    let disk = disk.clone().find(|disk| disk["device"] == device);
    let name = disk.and_then(|disk| disk["inserted"]["node-name"].as_str());
    name.map(str::to_owned)
        .with_context(|| format!("no disk {device} in {}", Value::clone(&disks)))
}
