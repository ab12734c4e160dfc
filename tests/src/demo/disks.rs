//! The disks of the demo, their images, and the command line that attaches them.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use sluice_writer::prng::Prng;

use super::{Options, Scenario};

/// Random and sparse stretches of a fresh disk alternate at this length in bytes.
const STRETCH: u64 = 4 << 20;

/// Size of the log disk in bytes: some two million records.
const LOG_BYTES: u64 = 64 << 20;

/// Memory of the guest in MiB.
pub const GUEST_MEMORY: u32 = 512;

/// A disk under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskKind {
    /// On the IDE controller, served by the main loop.
    Ide,
    /// On virtio, served by an iothread.
    Virtio,
}

impl DiskKind {
    /// Both, in the order of the writer's list.
    pub const ALL: [Self; 2] = [Self::Ide, Self::Virtio];

    /// Number in the writer's list and in the log.
    pub const fn number(self) -> usize {
        match self {
            Self::Ide => 0,
            Self::Virtio => 1,
        }
    }

    /// Name in tables and file names.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ide => "ide",
            Self::Virtio => "virtio",
        }
    }

    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::Ide => Self::Virtio,
            Self::Virtio => Self::Ide,
        }
    }
}

/// The image files of a run.
#[derive(Clone, Debug)]
pub struct Images {
    work: PathBuf,
    disk_bytes: u64,
}

impl Images {
    /// Makes the original images, partly random and partly sparse, and the log.
    ///
    /// # Errors
    /// A file can't be made.
    pub fn create(options: &Options) -> io::Result<Self> {
        let images = Self {
            work: options.work.clone(),
            disk_bytes: options.disk_bytes,
        };
        for disk in DiskKind::ALL {
            let file = File::create_new(images.of(disk, 0))?;
            file.set_len(images.disk_bytes)?;
            let mut prng = Prng::from_parts(&[options.seed, disk.number() as u64]);
            let mut stretch = vec![0; usize::try_from(STRETCH).unwrap_or(usize::MAX)];
            for offset in (0..images.disk_bytes).step_by(usize::try_from(2 * STRETCH).unwrap_or(1))
            {
                for word in stretch.chunks_exact_mut(8) {
                    word.copy_from_slice(&prng.next_u64().to_le_bytes());
                }
                let rest = usize::try_from(images.disk_bytes - offset).unwrap_or(usize::MAX);
                file.write_all_at(&stretch[..stretch.len().min(rest)], offset)?;
            }
        }
        File::create_new(images.log())?.set_len(LOG_BYTES)?;
        Ok(images)
    }

    /// Makes an empty target image: the `generation`th of `disk`.
    ///
    /// # Errors
    /// It can't be made.
    pub fn create_target(&self, disk: DiskKind, generation: usize) -> io::Result<PathBuf> {
        let path = self.of(disk, generation);
        File::create_new(&path)?.set_len(self.disk_bytes)?;
        Ok(path)
    }

    /// The image that `disk` has after `generation` pivots.
    pub fn of(&self, disk: DiskKind, generation: usize) -> PathBuf {
        self.work.join(format!("{}-{generation}.img", disk.name()))
    }

    /// The log disk's image.
    pub fn log(&self) -> PathBuf {
        self.work.join("log.img")
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.work.join("qmp.sock")
    }
}

/// The command line of `sluice` for this run.
pub fn arguments(options: &Options, images: &Images) -> Vec<String> {
    let ide = images.of(DiskKind::Ide, 0);
    let virtio = images.of(DiskKind::Virtio, 0);
    let ide_device = match options.scenario {
        Scenario::Negative => "ide-hd,drive=ide,bus=ide.0,unit=0,x-postpone=off",
        Scenario::Demo | Scenario::Quick | Scenario::Twin => "ide-hd,drive=ide,bus=ide.0,unit=0",
    };
    let mut arguments: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
    add(&[
        "--accel",
        "kvm",
        "--machine",
        "pc,ide=piix4",
        "-m",
        &GUEST_MEMORY.to_string(),
        "--smp",
        "2",
        "--no-reboot",
    ]);
    add(&[
        "--kernel",
        &text(&options.kernel),
        "--initrd",
        &text(&options.initrd),
    ]);
    add(&["--append", &kernel_command_line(options)]);
    add(&["--object", "iothread,id=io0", "--object", "iothread,id=io1"]);
    add(&[
        "--drive",
        &format!("if=none,id=ide,format=raw,file={}", text(&ide)),
    ]);
    add(&["--device", ide_device]);
    for (node, path, iothread) in [("virtio", &virtio, "io0"), ("log", &images.log(), "io1")] {
        let path = text(path);
        add(&[
            "--blockdev",
            &format!("driver=file,node-name={node}-file,filename={path}"),
        ]);
        add(&[
            "--blockdev",
            &format!("driver=raw,node-name={node},file={node}-file"),
        ]);
        add(&[
            "--device",
            &format!("virtio-blk-pci,drive={node},iothread={iothread}"),
        ]);
    }
    add(&[
        "--qmp",
        &format!("unix:{},server=on,wait=off", text(&images.socket())),
    ]);
    add(&["--serial", "stdio"]);
    arguments
}

fn kernel_command_line(options: &Options) -> String {
    let Options { rate, seed, .. } = options;
    format!(
        "console=ttyS0 quiet panic=-1 sluice.run=writer sluice.wait=/dev/sda,/dev/vda,/dev/vdb \
         sluice.args=--disk,ide=/dev/sda,--disk,virtio=/dev/vda,--log,/dev/vdb,\
         --rate,{rate},--seed,{seed}"
    )
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
