//! What a machine shall be: the typed outcome of the command line, and all the builder reads.

use std::num::NonZeroU8;
use std::path::PathBuf;

use serde::Deserialize;

use crate::qtest::QtestLog;

/// One MiB in bytes.
pub const MIB: u64 = 1 << 20;

/// A machine as the user asked for it.
#[derive(Debug, Clone)]
pub struct MachineConfig {
    /// `--machine`: which devices the board has.
    pub kind: MachineKind,
    /// `--name`: how management tools call the machine.
    pub name: Option<String>,
    /// `--uuid`, in its usual notation.
    pub uuid: Option<String>,
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
    /// `--no-shutdown`: a guest that switches off leaves the process running.
    pub no_shutdown: bool,
    /// `-S`: the vCPUs wait for QMP's `cont`.
    pub start_paused: bool,
    /// `--device isa-debug-exit`.
    pub debug_exit: Option<DebugExitConfig>,
}

impl MachineConfig {
    /// Guest memory when the command line does not say.
    pub const DEFAULT_MEMORY: u64 = 256 * MIB;
    /// The same for a machine that runs no guest: what QEMU's tests expect.
    pub const DEFAULT_QTEST_MEMORY: u64 = 128 * MIB;

    /// The UUID as a number; zero without one.
    #[must_use]
    pub fn uuid_number(&self) -> u128 {
        let digits = self.uuid.as_deref().unwrap_or_default().replace('-', "");
        u128::from_str_radix(&digits, 16).unwrap_or(0)
    }
}

impl Default for MachineConfig {
    /// A KVM machine of one vCPU that has nothing to boot yet.
    fn default() -> Self {
        Self {
            kind: MachineKind::Pc,
            name: None,
            uuid: None,
            accelerator: AcceleratorConfig::Kvm,
            memory: Self::DEFAULT_MEMORY,
            cpus: NonZeroU8::MIN,
            boot: None,
            serial: SerialConfig::Stdio,
            no_reboot: false,
            no_shutdown: false,
            start_paused: false,
            debug_exit: None,
        }
    }
}

/// The machine types.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum MachineKind {
    /// A PC like QEMU's `pc`: i440FX-like host bridge, PIIX.
    #[default]
    #[serde(alias = "pc-i440fx-10.0")]
    Pc,
    /// Memory, and nothing else: neither buses nor processors.
    None,
}

impl MachineKind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Pc, Self::None];

    /// The name that does not change with the version it is compatible with.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pc => "pc-i440fx-10.0",
            Self::None => "none",
        }
    }

    /// A shorter name for it.
    #[must_use]
    pub const fn alias(self) -> Option<&'static str> {
        match self {
            Self::Pc => Some("pc"),
            Self::None => None,
        }
    }

    /// The most CPUs it can have.
    #[must_use]
    pub const fn most_cpus(self) -> u32 {
        match self {
            // The APIC ids of 8 bits less the broadcast address.
            Self::Pc => 254,
            Self::None => 1,
        }
    }

    /// What it is, for people.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::Pc => "PC with a host bridge like the i440FX's, PIIX IDE and PCI",
            Self::None => "empty machine",
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

/// `--qtest`, `--qtest-log`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QtestConfig {
    /// The character device that the test is at; none: nobody drives the devices.
    pub chardev: Option<String>,
    /// Where the traffic is logged.
    pub log: QtestLog,
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
