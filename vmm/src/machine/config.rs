//! What a machine shall be: the typed outcome of the command line, and all the builder reads.

use std::num::NonZeroU8;
use std::path::PathBuf;

/// One MiB in bytes.
pub const MIB: u64 = 1 << 20;

/// A machine as the user asked for it.
#[derive(Debug, Clone)]
pub struct MachineConfig {
    /// `--name`: how management tools call the machine.
    pub name: Option<String>,
    /// `--accel`: what runs the guest.
    pub accelerator: AcceleratorConfig,
    /// `-m`: guest memory in bytes.
    pub memory: u64,
    /// `--smp`: number of vCPUs.
    pub cpus: NonZeroU8,
    /// `--kernel`, `--initrd`, `--append`. A qtest machine needs none.
    pub boot: Option<BootConfig>,
    /// `--serial`: where the first serial port leads.
    pub serial: SerialConfig,
    /// `--no-reboot`: a reset ends the process.
    pub no_reboot: bool,
    /// `-S`: the vCPUs wait for QMP's `cont`.
    pub start_paused: bool,
    /// `--device isa-debug-exit`.
    pub debug_exit: Option<DebugExitConfig>,
}

impl MachineConfig {
    /// Guest memory when the command line does not say.
    pub const DEFAULT_MEMORY: u64 = 256 * MIB;
}

impl Default for MachineConfig {
    /// A KVM machine of one vCPU that has nothing to boot yet.
    fn default() -> Self {
        Self {
            name: None,
            accelerator: AcceleratorConfig::Kvm,
            memory: Self::DEFAULT_MEMORY,
            cpus: NonZeroU8::MIN,
            boot: None,
            serial: SerialConfig::Stdio,
            no_reboot: false,
            start_paused: false,
            debug_exit: None,
        }
    }
}

/// What runs the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AcceleratorConfig {
    /// `/dev/kvm`.
    Kvm,
    /// Nobody: the qtest protocol drives the devices.
    Qtest(QtestConfig),
}

/// `--qtest unix:PATH[,server=on]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QtestConfig {
    /// The Unix socket.
    pub path: PathBuf,
    /// Listen on it and wait for the test, instead of connecting to a listening test.
    pub server: bool,
}

/// What the guest boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootConfig {
    /// A bzImage, or an ELF image with a PVH entry.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub append: String,
}

/// Where a serial port leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialConfig {
    /// `stdio`: this process's terminal, or its pipes.
    Stdio,
    /// `file:PATH`: output into a file, which is emptied first; no input.
    File(PathBuf),
    /// `null`: a port that leads nowhere.
    Null,
    /// `none`: no port.
    None,
}

/// `--device isa-debug-exit,iobase=…,iosize=…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DebugExitConfig {
    /// First port.
    pub iobase: u16,
    /// Number of ports.
    pub iosize: u16,
}

impl Default for DebugExitConfig {
    /// QEMU's defaults.
    fn default() -> Self {
        Self {
            iobase: 0x501,
            iosize: 2,
        }
    }
}
