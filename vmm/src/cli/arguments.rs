//! The options as clap sees them: names, help texts, which take a value.
//!
//! Values are kept as text here; [`super::options`] gives them their meaning.

use std::path::PathBuf;

use clap::{ArgAction, Parser};

/// Shown below the options by `--help`.
pub(super) const EXAMPLES: &str = "\
Values are key=value pairs separated by commas (a comma inside a value is written twice; dots go
down one level: file.driver=file), or JSON if they start with '{'. Sizes take k, M, G or T. Options
with one dash and with two mean the same.

Examples:
  Boot a kernel with its console on this terminal (leave with Ctrl-A x):
    sluice --kernel bzImage --initrd initrd.img --append console=ttyS0 -m 512M --smp 2

  Add an IDE disk:
    sluice ... --drive file=disk.img,format=raw,if=ide

  Add a virtio disk that a thread of its own serves:
    sluice ... --object iothread,id=io0 \\
      --blockdev file,node-name=f0,filename=disk.img --blockdev raw,node-name=d0,file=f0 \\
      --device virtio-blk-pci,drive=d0,iothread=io0

  Open a control socket, to mirror a disk while the guest runs:
    sluice ... --qmp unix:/run/vm.qmp";

/// A small virtual machine monitor for Linux/KVM whose disks can be mirrored and switched over
/// live, without losing a write.
#[derive(Debug, Parser)]
#[command(
    name = "sluice",
    version,
    override_usage = "sluice --kernel FILE [OPTIONS]",
    max_term_width = 100,
    disable_help_flag = true,
    disable_version_flag = true
)]
pub struct Arguments {
    /// Linux kernel to boot: a bzImage, or an ELF vmlinux with a PVH entry
    #[arg(long, value_name = "FILE", help_heading = "What to boot")]
    pub kernel: Option<PathBuf>,

    /// Initial RAM disk for the kernel
    #[arg(long, value_name = "FILE", help_heading = "What to boot")]
    pub initrd: Option<PathBuf>,

    /// The kernel's command line, as one argument
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        help_heading = "What to boot"
    )]
    pub append: Option<String>,

    /// Guest memory: 512M, 2G, size=1G; a bare number counts MiB [default: 256M]
    #[arg(
        short = 'm',
        long,
        alias = "m",
        value_name = "[size=]SIZE",
        help_heading = "The machine"
    )]
    pub memory: Option<String>,

    /// Number of virtual CPUs [default: 1]
    #[arg(long, value_name = "[cpus=]N", help_heading = "The machine")]
    pub smp: Option<String>,

    /// Machine type and its properties: pc, pc,ide=piix4, or none: no devices; help lists them
    /// [default: pc,ide=piix3]
    #[arg(
        short = 'M',
        long,
        alias = "M",
        value_name = "[type=]TYPE[,ide=piix3|piix4][,accel=kvm|qtest]",
        help_heading = "The machine"
    )]
    pub machine: Option<String>,

    /// What runs the guest: kvm, or qtest (no CPUs; a test drives the devices) [default: kvm]
    #[arg(long, value_name = "kvm|qtest", help_heading = "The machine")]
    pub accel: Vec<String>,

    /// Name of the machine, for query-name and the logs
    #[arg(long, value_name = "NAME", help_heading = "The machine")]
    pub name: Option<String>,

    /// UUID of the machine, for query-uuid
    #[arg(long, value_name = "UUID", help_heading = "The machine")]
    pub uuid: Option<String>,

    /// Build the machine but do not start its CPUs; QMP 'cont' starts them
    #[arg(short = 'S', long = "S", action = ArgAction::SetTrue, overrides_with = "start_paused", help_heading = "The machine")]
    pub start_paused: bool,

    /// End when the guest resets, instead of starting it again
    #[arg(long, action = ArgAction::SetTrue, overrides_with = "no_reboot", help_heading = "The machine")]
    pub no_reboot: bool,

    /// Stay when the guest switches off; QMP 'quit' ends the process then
    #[arg(long, action = ArgAction::SetTrue, overrides_with = "no_shutdown", help_heading = "The machine")]
    pub no_shutdown: bool,

    /// Leave out the devices nobody asked for (the first serial port)
    #[arg(long, action = ArgAction::SetTrue, overrides_with = "nodefaults", help_heading = "The machine")]
    pub nodefaults: bool,

    /// Where the first serial port goes: stdio, null, none or file:PATH [default: stdio, or null with
    /// --accel qtest or if something else uses stdio]
    #[arg(long, value_name = "WHERE", help_heading = "The machine")]
    pub serial: Option<String>,

    /// Accepted for compatibility; there is no display
    #[arg(long, value_name = "none", help_heading = "The machine")]
    pub display: Vec<String>,

    /// A disk in one go (repeatable): file=PATH, format=raw, if=ide|virtio|none, id=NAME, index=N or
    /// bus=N and unit=N, readonly=on|off, serial=TEXT,
    /// cache=writeback|none|writethrough|directsync|unsafe, aio=threads|io_uring,
    /// discard=ignore|unmap, detect-zeroes=off|on|unmap, and what to do about errors:
    /// rerror=report|ignore|stop, werror=report|ignore|stop|enospc
    #[arg(long, value_name = "OPTIONS", help_heading = "Disks")]
    pub drive: Vec<String>,

    /// Image of the disc in the CD-ROM drive on bus 1, unit 0:
    /// short for --drive if=ide,index=2,media=cdrom,file=FILE
    #[arg(long, value_name = "FILE", help_heading = "Disks")]
    pub cdrom: Option<String>,

    /// A node of the block graph: DRIVER,node-name=NAME,... (repeatable)
    #[arg(long, value_name = "OPTIONS", help_heading = "Disks")]
    pub blockdev: Vec<String>,

    /// A device (repeatable): virtio-blk-pci,drive=NODE[,iothread=ID] or
    /// ide-hd,drive=NODE[,bus=ide.0,unit=0], each with id=, serial=, write-cache=on|off, rerror=,
    /// werror=; or ide-cd[,drive=NODE][,bus=ide.1,unit=0], which may be empty
    #[arg(long, value_name = "OPTIONS", help_heading = "Disks")]
    pub device: Vec<String>,

    /// A helper object (repeatable): iothread,id=ID, a thread that serves disks, or
    /// throttle-group,id=ID,limits.bps-total=N,..., limits for nodes of the driver throttle
    #[arg(long, value_name = "OPTIONS", help_heading = "Disks")]
    pub object: Vec<String>,

    /// What a property of a kind of device is where its --device does not say (repeatable)
    #[arg(long, value_name = "DRIVER.PROPERTY=VALUE", help_heading = "Disks")]
    pub global: Vec<String>,

    /// Serve QMP, the control protocol, there (repeatable): unix:PATH, tcp:HOST:PORT, each with
    /// server=on|off and wait=on|off, stdio or chardev:ID
    #[arg(long, value_name = "PLACE", help_heading = "Control")]
    pub qmp: Vec<String>,

    /// The same, with messages over several lines (repeatable)
    #[arg(long, value_name = "PLACE", help_heading = "Control")]
    pub qmp_pretty: Vec<String>,

    /// A monitor for people, in such a place (repeatable); none: none
    #[arg(long, value_name = "PLACE|none", help_heading = "Control")]
    pub monitor: Vec<String>,

    /// A character device (repeatable): socket,id=ID with path=PATH, or host= and port=, or fd=N, and
    /// server=on|off, wait=on|off; or stdio,id=ID; or null,id=ID
    #[arg(long, value_name = "OPTIONS", help_heading = "Control")]
    pub chardev: Vec<String>,

    /// A monitor on a character device (repeatable): QMP with mode=control, text with mode=readline
    #[arg(
        long,
        value_name = "[chardev=]ID[,mode=control|readline][,pretty=on|off]",
        help_heading = "Control"
    )]
    pub mon: Vec<String>,

    /// Speak the qtest protocol there; needs --accel qtest
    #[arg(long, value_name = "PLACE", help_heading = "Control")]
    pub qtest: Option<String>,

    /// Log the qtest protocol's traffic there [default: standard error]
    #[arg(long, value_name = "FILE|none", help_heading = "Control")]
    pub qtest_log: Option<String>,

    #[command(flatten)]
    pub absent: AbsentArguments,

    /// Print this help
    #[arg(short = 'h', long, alias = "h", action = ArgAction::Help, help_heading = "Information")]
    help: Option<bool>,

    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version, help_heading = "Information")]
    version: Option<bool>,
}

/// Options of QEMU that scripts give to switch off what does not exist here.
#[derive(Debug, clap::Args)]
pub struct AbsentArguments {
    /// No sound: none
    #[arg(long, value_name = "none", help_heading = "Accepted for compatibility")]
    pub audio: Vec<String>,

    /// No sound: none,id=ID
    #[arg(long, value_name = "none", help_heading = "Accepted for compatibility")]
    pub audiodev: Vec<String>,

    /// No graphics: none
    #[arg(long, value_name = "none", help_heading = "Accepted for compatibility")]
    pub vga: Vec<String>,

    /// No network: none
    #[arg(long, value_name = "none", help_heading = "Accepted for compatibility")]
    pub net: Vec<String>,

    /// No network: none
    #[arg(long, value_name = "none", help_heading = "Accepted for compatibility")]
    pub nic: Vec<String>,

    /// No parallel port: none
    #[arg(long, value_name = "none", help_heading = "Accepted for compatibility")]
    pub parallel: Vec<String>,

    /// Without effect: SLUICE_LOG says what is logged
    #[arg(
        long,
        value_name = "EVENTS",
        help_heading = "Accepted for compatibility"
    )]
    pub trace: Vec<String>,

    /// Without effect: there is no display
    #[arg(long, action = ArgAction::SetTrue, overrides_with = "nographic", help_heading = "Accepted for compatibility")]
    pub nographic: bool,

    /// Without effect: no file is read
    #[arg(long, action = ArgAction::SetTrue, overrides_with = "no_user_config", help_heading = "Accepted for compatibility")]
    pub no_user_config: bool,
}
