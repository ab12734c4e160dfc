//! What a guest reads from its disks is what the host's files hold, and the other way round.

use std::path::Path;

use anyhow::{Result, ensure};

use super::{
    lab::{Lab, same_content, sha256, value_of},
    script::command_line,
};

/// Size of the disks that are read and written whole, in bytes.
const DISK: usize = 8 << 20;

/// Prints the negotiated transfer mode of the first channel's first disk.
const MODE: &str = "echo mode: $(cat /sys/class/ata_device/dev1.0/xfer_mode)";

/// What the guest writes last to its root file system.
const MOTTO: &str = "nothing-written-is-lost";

/// A file's content begins at a multiple of this, in bytes: ext4's smallest block.
const FS_BLOCK: usize = 1024;

fn drive(path: &Path, more: &str) -> String {
    format!("file={},format=raw,{more}", path.display())
}

/// The default machine's controller is a PIIX3, which has no Ultra DMA.
pub fn root_on_ide_by_mwdma(lab: &Lab<'_>) -> Result<()> {
    let console = boot_from_root(lab, "ide", "/dev/sda", MODE)?;
    let mode = value_of(&console, "mode:")?;
    ensure!(mode == "XFER_MW_DMA_2", "the disk uses {mode}");
    Ok(())
}

/// The same root file system, seen by the other driver.
pub fn root_on_virtio(lab: &Lab<'_>) -> Result<()> {
    boot_from_root(lab, "virtio", "/dev/vda", "true").map(|_console| ())
}

/// Boots from the disk and writes a file, which must come back from the disk as it was, and be in
/// the host's file in the end. Returns the console.
fn boot_from_root(lab: &Lab<'_>, interface: &str, device: &str, then: &str) -> Result<String> {
    let image = lab.root_image()?;
    let root = drive(&image, &format!("if={interface}"));
    let script = format!(
        "{then}; seq 200000 >/numbers; echo wrote: $(sha256sum </numbers); \
         sync; echo 3 >/proc/sys/vm/drop_caches; \
         echo found: $(sha256sum </numbers); printf {MOTTO} >/motto"
    );
    let line = command_line(&script, &format!("root={device} sluice.switch-root"));
    let mut guest = lab.start(&line, &["--drive", &root])?;
    guest.wait(&format!("sluice-guest: root reached on {device}"))?;
    let console = guest.finish_script()?;
    let (wrote, found) = (value_of(&console, "wrote:")?, value_of(&console, "found:")?);
    ensure!(wrote == found, "wrote {wrote}, found {found}");
    let arrived = holds_motto(&image)?;
    ensure!(arrived, "the host's file lacks what the guest wrote last");
    Ok(console)
}

/// Whether a file with what the guest writes last is in the image.
fn holds_motto(image: &Path) -> Result<bool> {
    let content = std::fs::read(image)?;
    let mut blocks = content.chunks_exact(FS_BLOCK);
    Ok(blocks.any(|block| block.starts_with(MOTTO.as_bytes())))
}

/// The first channel's disk is copied to the second channel's.
pub fn ide_copies_by_udma(lab: &Lab<'_>) -> Result<()> {
    let source = lab.random_image("source.img", DISK, 1)?;
    let target = lab.image("target.img", &vec![0x55; DISK])?;
    let arguments = [
        "--machine",
        "pc,ide=piix4",
        "--drive",
        &drive(&source, "if=ide,index=0"),
        "--drive",
        &drive(&target, "if=ide,index=2"),
    ];
    // The kernel looks at both channels at once: which disk is sda is a matter of luck.
    let find = "at() { for b in /sys/block/sd*; do case $(readlink $b) in \
                */ata$1/*) echo /dev/${b##*/};; esac; done; }; from=$(at 1); to=$(at 2)";
    let wait = "/dev/sda,/dev/sdb";
    let console = copy(lab, find, wait, &arguments, [&source, &target])?;
    let mode = value_of(&console, "mode:")?;
    ensure!(mode.starts_with("XFER_UDMA_"), "the disk uses {mode}");
    Ok(())
}

/// One disk is copied to the other, each served by a thread of its own.
pub fn virtio_copies(lab: &Lab<'_>) -> Result<()> {
    let source = lab.random_image("source.img", DISK, 2)?;
    let target = lab.image("target.img", &vec![0x55; DISK])?;
    let arguments = [
        "--smp",
        "2",
        "--object",
        "iothread,id=io0",
        "--object",
        "iothread,id=io1",
        "--drive",
        &drive(&source, "if=none,id=source"),
        "--drive",
        &drive(&target, "if=none,id=target"),
        "--device",
        "virtio-blk-pci,drive=source,iothread=io0",
        "--device",
        "virtio-blk-pci,drive=target,iothread=io1",
    ];
    let names = "from=/dev/vda; to=/dev/vdb";
    let wait = "/dev/vda,/dev/vdb";
    copy(lab, names, wait, &arguments, [&source, &target]).map(|_console| ())
}

/// Disks with a queue for each processor, each queue served by another thread; with more properties
/// for them.
pub fn queues_copy(lab: &Lab<'_>, properties: &str) -> Result<()> {
    let source = lab.random_image("source.img", DISK / 4, 4)?;
    let target = lab.image("target.img", &vec![0x55; DISK / 4])?;
    let device = |drive: &str| {
        format!(
            r#"{{"driver":"virtio-blk-pci","drive":"{drive}"{properties},
                "iothread-vq-mapping":[{{"iothread":"io0","vqs":[0]}},{{"iothread":"io1","vqs":[1]}}]}}"#
        )
    };
    let arguments = [
        "--smp",
        "2",
        "--object",
        "iothread,id=io0",
        "--object",
        "iothread,id=io1",
        "--drive",
        &drive(&source, "if=none,id=source"),
        "--drive",
        &drive(&target, "if=none,id=target"),
        "--device",
        &device("source"),
        "--device",
        &device("target"),
    ];
    // Both processors read, each by its own queue.
    let names = "from=/dev/vda; to=/dev/vdb; echo queues: $(ls /sys/block/vda/mq | wc -l); \
                 for cpu in 1 2; do taskset $cpu dd if=$from of=/dev/null bs=256k iflag=direct; done; \
                 echo interrupts: $(grep -c virtio /proc/interrupts) $(grep virtio /proc/interrupts | grep -c MSI)";
    let wait = "/dev/vda,/dev/vdb";
    let console = copy(lab, names, wait, &arguments, [&source, &target])?;
    let queues = value_of(&console, "queues:")?;
    ensure!(queues == "2", "the guest uses {queues} queues");
    let interrupts = value_of(&console, "interrupts:")?;
    let by_message = !interrupts.ends_with(" 0");
    let wanted = properties.is_empty();
    ensure!(by_message == wanted, "lines and messages: {interrupts}");
    Ok(())
}

/// One root file system is on IDE and another on virtio; files go from one to the other and back.
pub fn both_at_once(lab: &Lab<'_>) -> Result<()> {
    let ide = lab.root_image()?;
    let virtio = lab.path("other.img");
    std::fs::copy(&ide, &virtio)?;
    let script = format!(
        "mount -t ext4 /dev/vda /mnt && seq 200000 >/numbers && seq 300000 >/mnt/numbers && \
         (cp /numbers /mnt/copy & cp /mnt/numbers /copy; wait) && sync && \
         echo 3 >/proc/sys/vm/drop_caches && \
         cmp /numbers /mnt/copy && cmp /mnt/numbers /copy && echo same: both && \
         printf {MOTTO} >/mnt/motto && umount /mnt"
    );
    let more = "root=/dev/sda sluice.switch-root sluice.wait=/dev/vda";
    let arguments = [
        "--object",
        "iothread,id=io0",
        "--drive",
        &drive(&ide, "if=ide"),
        "--drive",
        &drive(&virtio, "if=none,id=other"),
        "--device",
        "virtio-blk-pci,drive=other,iothread=io0",
    ];
    let mut guest = lab.start(&command_line(&script, more), &arguments)?;
    guest.wait("sluice-guest: root reached on /dev/sda")?;
    let console = guest.finish_script()?;
    value_of(&console, "same:")?;
    ensure!(
        holds_motto(&virtio)?,
        "the host's file lacks what the guest wrote last"
    );
    Ok(())
}

/// A guest reads from a CD-ROM what the host's file holds, and cannot write to it.
pub fn cd_rom(lab: &Lab<'_>) -> Result<()> {
    let medium = lab.random_image("medium.iso", DISK, 5)?;
    let wanted = sha256(&medium)?;
    let script = "echo sectors: $(cat /sys/block/sr0/size); echo read: $(sha256sum </dev/sr0); \
                  dd if=/dev/zero of=/dev/sr0 bs=2048 count=1 2>/dev/null && echo written: yes; true";
    let line = command_line(script, "sluice.wait=/dev/sr0");
    let medium_text = medium.display().to_string();
    let console = lab
        .start(&line, &["--cdrom", &medium_text])?
        .finish_script()?;
    let sectors = value_of(&console, "sectors:")?;
    ensure!(
        sectors == (DISK / 512).to_string(),
        "it has {sectors} sectors"
    );
    let sum = value_of(&console, "read:")?;
    ensure!(sum.starts_with(&wanted), "read {sum}, not {wanted}");
    ensure!(!console.contains("written:"), "the guest wrote to a CD-ROM");
    ensure!(sha256(&medium)? == wanted, "the medium changed");
    Ok(())
}

/// The guest, once it has the devices of `wait`, tells the sum of what it reads from the first
/// disk, copies that to the second, and reads it back from there. The host's files must agree.
/// `names` is the shell command that sets `from` and `to`.
fn copy(
    lab: &Lab<'_>,
    names: &str,
    wait: &str,
    arguments: &[&str],
    [source, target]: [&Path; 2],
) -> Result<String> {
    let script = format!(
        "{names}; {MODE}; \
         echo read: $(sha256sum <$from); \
         dd if=$from of=$to bs=64k conv=fsync; \
         echo 3 >/proc/sys/vm/drop_caches; \
         echo back: $(dd if=$to bs=64k | sha256sum)",
    );
    let wanted = sha256(source)?;
    let line = command_line(&script, &format!("sluice.wait={wait}"));
    let console = lab.start(&line, arguments)?.finish_script()?;
    for key in ["read:", "back:"] {
        let sum = value_of(&console, key)?;
        ensure!(sum.starts_with(&wanted), "{key} {sum}, not {wanted}");
    }
    ensure!(sha256(source)? == wanted, "the disk that was read changed");
    let same = same_content(source, target)?;
    ensure!(same, "the host's file does not hold what the guest wrote");
    Ok(console)
}
