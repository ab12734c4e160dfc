//! A disk whose size the operator changes while Linux uses it.

use std::io;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    lab::{Lab, value_of},
    script::command_line,
};

/// Sizes of the disk: first, grown, shrunk; in bytes.
const SIZES: [u64; 3] = [8 << 20, 16 << 20, 4 << 20];

/// What `/sys/block/…/size` counts, in bytes.
const SECTOR: u64 = 512;

/// What the guest writes to the last sector of the grown disk.
const AT_THE_END: &str = "written-where-there-was-nothing";

/// Linux hears of each size by a configuration change interrupt, writes where the disk has grown, and is
/// refused beyond the end of the shrunk one.
pub fn virtio_follows(lab: &Lab<'_>) -> Result<()> {
    let [first, grown, shrunk] = SIZES.map(|size| size / SECTOR);
    let image = lab.random_image("disk.img", usize::try_from(SIZES[0])?, 3)?;
    let drive = format!("if=none,id=disk,format=raw,file={}", image.display());
    let last = grown - 1;
    let script = format!(
        "is() {{ until [ $(cat /sys/block/vda/size) = $1 ]; do usleep 50000; done; echo size $1.; }}; \
         is {first}; \
         is {grown}; echo {AT_THE_END} | dd of=/dev/vda bs={SECTOR} seek={last} conv=sync,notrunc,fsync && \
         echo 3 >/proc/sys/vm/drop_caches; \
         echo found: $(dd if=/dev/vda bs={SECTOR} skip={last} count=1); echo written.; \
         is {shrunk}; dd if=/dev/vda of=/dev/null bs={SECTOR} skip={last} count=1 2>&1; \
         echo read: $(dd if=/dev/vda bs={SECTOR} skip={last} count=1 2>/dev/null | wc -c); \
         echo whole: $(dd if=/dev/vda bs=64k | wc -c)"
    );
    let arguments = [
        "--object",
        "iothread,id=io0",
        "--drive",
        &drive,
        "--device",
        "virtio-blk-pci,drive=disk,iothread=io0",
    ];
    let line = command_line(&script, "sluice.wait=/dev/vda");
    let (mut guest, mut qmp) = lab.start_controlled(&line, &arguments)?;
    let mut resize = |size: u64| -> Result<()> {
        qmp.execute("block_resize", &json!({"device": "disk", "size": size}))?;
        let now = std::fs::metadata(&image)?.len();
        ensure!(now == size, "the host's file has {now} bytes, not {size}");
        Ok(())
    };
    guest.wait(&format!("size {first}."))?;
    resize(SIZES[1])?;
    guest.wait(&format!("size {grown}."))?;
    guest.wait("written.")?;
    let written = read_at(&image, last * SECTOR)?;
    ensure!(
        written.starts_with(AT_THE_END.as_bytes()),
        "the host's file lacks what the guest wrote behind the old end"
    );
    resize(SIZES[2])?;
    let console = guest.finish_script()?;
    let found = value_of(&console, "found:")?;
    ensure!(found == AT_THE_END, "the guest read {found:?} back");
    let beyond = value_of(&console, "read:")?;
    ensure!(beyond == "0", "{beyond} bytes read beyond the end");
    let whole = value_of(&console, "whole:")?;
    ensure!(
        whole == SIZES[2].to_string(),
        "the guest reads {whole} bytes of {}",
        SIZES[2]
    );
    Ok(())
}

fn read_at(image: &std::path::Path, offset: u64) -> io::Result<Vec<u8>> {
    let mut sector = vec![0; 512];
    let file = std::fs::File::open(image)?;
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut sector, offset)?;
    Ok(sector)
}
