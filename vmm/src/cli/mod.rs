//! The command line: QEMU's words, one dash or two.
//!
//! [`parse`] turns the process's arguments into a [`CommandLine`], which the machine builder and
//! the QMP server work from, or into a [`Refusal`] that names the option, what is wrong with it and
//! the remedy. Runs once, in the main thread, before anything is opened.

mod absent;
mod arguments;
mod chardevs;
mod dashes;
mod device;
mod disks;
mod error;
mod globals;
mod help;
mod ide;
pub mod keyval;
mod media;
mod options;
mod places;
mod plugged;
#[cfg(test)]
mod tests;
mod throttling;
mod virtio;

pub use chardevs::MonitorConfig;
pub use error::CliError;
pub use plugged::{DeviceReader, PropertyError};

use std::ffi::OsString;
use std::fmt;
use std::num::NonZeroU8;
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches};

use crate::chardev::{Backend, ChardevConfig};
use crate::exit::ExitStatus;
use crate::machine::config::{
    AcceleratorConfig, BootConfig, MIB, MachineConfig, MachineKind, QtestConfig, SerialConfig,
};
use crate::machine::models::device_kind;
use crate::qmp::MonitorMode;
use crate::qmp::input::parse_size;
use crate::qmp::schema::{self, Shape};
use crate::qtest::QtestLog;
use crate::storage::StorageConfig;
use arguments::Arguments;
use chardevs::Chardevs;
use options::{
    AccelKind, AccelOptions, DisplayOptions, IdeKind, MachineOptions, MemoryOptions, SmpOptions,
};

/// The most virtual CPUs: the APIC ids of 8 bits less the broadcast address.
const MAX_CPUS: u64 = 254;
/// The least memory that holds the firmware tables below 1 MiB and a kernel above.
const MIN_MEMORY: u64 = 2 * MIB;

/// Everything the user asked for.
#[derive(Clone, Debug)]
pub struct CommandLine {
    /// The machine without its disks.
    pub machine: MachineConfig,
    /// Which PIIX carries the IDE channels.
    pub piix: PiixModel,
    /// I/O threads, nodes and disks.
    pub storage: StorageConfig,
    /// `--chardev`, and those that short forms make.
    pub chardevs: Vec<ChardevConfig>,
    /// `--mon`, `--qmp`, `--monitor`: who is at which of them.
    pub monitors: Vec<MonitorConfig>,
    /// Reads the devices that come later.
    pub devices: DeviceReader,
    /// What the user should know, though nothing is wrong; a line each.
    pub warnings: Vec<String>,
}

impl CommandLine {
    /// Whether programs talk to this one by its standard input and output, in messages: QMP or the qtest protocol.
    #[must_use]
    pub fn speaks_on_stdio(&self) -> bool {
        let qtest = match &self.machine.accelerator {
            AcceleratorConfig::Qtest(config) => config.chardev.as_ref(),
            AcceleratorConfig::Kvm => None,
        };
        let is_spoken_on = |id: &String| {
            let is_control = |monitor: &MonitorConfig| {
                monitor.chardev == *id && monitor.mode != MonitorMode::Readline
            };
            qtest == Some(id) || self.monitors.iter().any(is_control)
        };
        let mut chardevs = self.chardevs.iter();
        chardevs.any(|chardev| chardev.backend == Backend::Stdio && is_spoken_on(&chardev.id))
    }
}

/// `--machine pc,ide=…`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum PiixModel {
    /// PCI device 8086:7010.
    #[default]
    Piix3,
    /// PCI device 8086:7111.
    Piix4,
}

/// Why there is no [`CommandLine`].
#[derive(Debug)]
pub enum Refusal {
    /// `--help` or `--version`: the text that was asked for.
    Information(String),
    /// The arguments can't be used.
    Usage(String),
}

impl Refusal {
    /// How the process should end.
    pub const fn status(&self) -> ExitStatus {
        match self {
            Self::Information(_) => ExitStatus::Success,
            Self::Usage(_) => ExitStatus::Usage,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Information(text) => f.write_str(text.trim_end()),
            Self::Usage(text) => write!(f, "sluice: {}", text.trim_end()),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<CliError> for Refusal {
    fn from(error: CliError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<clap::Error> for Refusal {
    fn from(error: clap::Error) -> Self {
        let text = error.render().to_string();
        if error.use_stderr() {
            Self::Usage(one_line(&text))
        } else {
            Self::Information(text)
        }
    }
}

/// What clap says over several lines (the mistake, a tip, usage, a pointer to the help) in one.
fn one_line(text: &str) -> String {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let lines = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty());
    let parts: Vec<_> = lines.collect();
    format!("{} (try --help)", parts.join("; "))
}

/// What a `--device` of that kind takes; none if there is no such kind.
pub fn device_shape(driver: &str) -> Option<Shape> {
    match device_kind(driver) {
        "ide-cd" => Some(schema::shape_of::<ide::IdeCdOptions>()),
        "ide-hd" => Some(schema::shape_of::<ide::IdeDiskOptions>()),
        "virtio-blk-pci" => Some(schema::shape_of::<virtio::VirtioBlkOptions>()),
        "isa-debug-exit" => Some(schema::shape_of::<options::DebugExitOptions>()),
        _ => None,
    }
}

/// Parses `arguments`, the process's arguments without the program's name.
///
/// # Errors
/// A [`Refusal`], to be printed (to standard output if it is information, else to standard error)
/// before the process ends with [`Refusal::status`].
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<CommandLine, Refusal> {
    let mut command = Arguments::command().after_help(help_footer());
    command.build();
    let mut normal = vec![OsString::from("sluice")];
    normal.extend(dashes::double_dashes(&command, arguments));
    let matches = command.try_get_matches_from(normal)?;
    let arguments = Arguments::from_arg_matches(&matches)?;
    if let Some(text) = help::asked_for(&arguments) {
        return Err(Refusal::Information(text));
    }
    interpret(arguments).map_err(Refusal::from)
}

fn help_footer() -> String {
    format!("{}\n\n{}", arguments::EXAMPLES, ExitStatus::table())
}

fn interpret(arguments: Arguments) -> Result<CommandLine, CliError> {
    absent::check(&arguments.absent)?;
    let cpus = cpus(arguments.smp.as_deref())?;
    let machine_options = match &arguments.machine {
        Some(text) => options::parse("--machine", text, Some("type"))?,
        None => MachineOptions::default(),
    };
    let devices = disks::parse(&arguments, machine_options.kind, cpus)?;
    for text in &arguments.display {
        options::parse::<DisplayOptions>("--display", text, Some("type"))?;
    }
    let chardevs = chardevs::parse(&arguments)?;
    let boot = boot(&arguments)?;
    let accelerator = accelerator(&arguments, &machine_options, &chardevs)?;
    let machine = MachineConfig {
        kind: machine_options.kind,
        memory: memory(arguments.memory.as_deref(), &accelerator)?,
        cpus,
        boot,
        serial: serial(&arguments, &accelerator, &chardevs)?,
        accelerator,
        uuid: uuid(arguments.uuid)?,
        name: arguments.name,
        no_reboot: arguments.no_reboot,
        no_shutdown: arguments.no_shutdown,
        start_paused: arguments.start_paused,
        debug_exit: devices.debug_exit,
    };
    Ok(CommandLine {
        piix: match machine_options.ide {
            IdeKind::Piix3 => PiixModel::Piix3,
            IdeKind::Piix4 => PiixModel::Piix4,
        },
        storage: devices.storage,
        chardevs: chardevs.chardevs,
        monitors: chardevs.monitors,
        warnings: devices.warnings,
        devices: devices.reader,
        machine,
    })
}

/// Checks the notation (RFC 9562 §4).
fn uuid(text: Option<String>) -> Result<Option<String>, CliError> {
    const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];
    let Some(text) = text else {
        return Ok(None);
    };
    let lengths = text.split('-').map(str::len);
    let is_hex = |byte: u8| byte == b'-' || byte.is_ascii_hexdigit();
    if lengths.eq(GROUPS) && text.bytes().all(is_hex) {
        return Ok(Some(text.to_ascii_lowercase()));
    }
    let problem = "failed to parse UUID string: wrong format";
    let remedy = "write 8-4-4-4-12 hexadecimal digits";
    Err(CliError::new("--uuid", text, problem, remedy))
}

fn memory(text: Option<&str>, accelerator: &AcceleratorConfig) -> Result<u64, CliError> {
    const REMEDY: &str = "write 512M or 2G; a bare number counts MiB; at least 2M";
    let Some(text) = text else {
        return Ok(match accelerator {
            AcceleratorConfig::Kvm => MachineConfig::DEFAULT_MEMORY,
            AcceleratorConfig::Qtest(_) => MachineConfig::DEFAULT_QTEST_MEMORY,
        });
    };
    let options: MemoryOptions = options::parse("-m", text, Some("size"))?;
    let refuse = || {
        let problem = format!("'{}' is not a usable memory size", options.size);
        CliError::new("-m", text, problem, REMEDY)
    };
    let bare = options.size.bytes().all(|b| b.is_ascii_digit());
    let size = parse_size(&options.size).ok_or_else(refuse)?;
    let bytes = if bare {
        size.checked_mul(MIB)
    } else {
        Some(size)
    };
    bytes
        .filter(|bytes| *bytes >= MIN_MEMORY && bytes.is_multiple_of(MIB))
        .ok_or_else(refuse)
}

fn cpus(text: Option<&str>) -> Result<NonZeroU8, CliError> {
    let Some(text) = text else {
        return Ok(NonZeroU8::MIN);
    };
    let options: SmpOptions = options::parse("--smp", text, Some("cpus"))?;
    u8::try_from(options.cpus)
        .ok()
        .filter(|_| options.cpus <= MAX_CPUS)
        .and_then(NonZeroU8::new)
        .ok_or_else(|| {
            let problem = format!("Invalid SMP CPUs {}", options.cpus);
            let remedy = format!("give a number from 1 to {MAX_CPUS}");
            CliError::new("--smp", text, problem, remedy)
        })
}

fn boot(arguments: &Arguments) -> Result<Option<BootConfig>, CliError> {
    let Some(kernel) = arguments.kernel.clone() else {
        if arguments.initrd.is_some() {
            return Err(CliError::bare(
                "--initrd",
                "only allowed with --kernel",
                "name the kernel as well",
            ));
        }
        if arguments.append.is_some() {
            return Err(CliError::bare(
                "--append",
                "only allowed with --kernel",
                "name the kernel as well",
            ));
        }
        return Ok(None);
    };
    Ok(Some(BootConfig {
        kernel,
        initrd: arguments.initrd.clone(),
        append: arguments.append.clone().unwrap_or_default(),
    }))
}

fn accelerator(
    arguments: &Arguments,
    machine: &MachineOptions,
    chardevs: &Chardevs,
) -> Result<AcceleratorConfig, CliError> {
    let mut kind = None;
    for text in &arguments.accel {
        let AccelOptions { accel } = options::parse("--accel", text, Some("accel"))?;
        if kind.replace(accel).is_some_and(|before| before != accel) {
            let problem = "contradicts the --accel before it";
            return Err(CliError::new("--accel", text, problem, "name one"));
        }
    }
    let kind = kind.or(machine.accel);
    let kind = match (kind, machine.kind) {
        (Some(kind), MachineKind::Pc) => kind,
        (None, MachineKind::Pc) => AccelKind::default(),
        // There is nothing that could run.
        (_, MachineKind::None) => AccelKind::Qtest,
    };
    match (kind, arguments.qtest.as_deref()) {
        (AccelKind::Kvm, None) => {
            if arguments.kernel.is_none() {
                let problem = "there is nothing to boot";
                let remedy = "name a kernel, as in --kernel bzImage; --help shows examples";
                return Err(CliError::bare("--kernel", problem, remedy));
            }
            Ok(AcceleratorConfig::Kvm)
        }
        (AccelKind::Kvm, Some(text)) => Err(CliError::new(
            "--qtest",
            text,
            "a machine run by KVM can't be driven by qtest",
            "add --accel qtest",
        )),
        (AccelKind::Qtest, _) if chardevs.qtest.is_none() && chardevs.monitors.is_empty() => {
            Err(CliError::bare(
                "--accel qtest",
                "nobody would drive the machine",
                "add --qtest unix:PATH,server=on, or a monitor",
            ))
        }
        (AccelKind::Qtest, _) => Ok(AcceleratorConfig::Qtest(QtestConfig {
            chardev: chardevs.qtest.clone(),
            log: match arguments.qtest_log.as_deref() {
                None => QtestLog::Stderr,
                Some("none") => QtestLog::None,
                Some(path) => QtestLog::File(PathBuf::from(path)),
            },
        })),
    }
}

fn serial(
    arguments: &Arguments,
    accelerator: &AcceleratorConfig,
    chardevs: &Chardevs,
) -> Result<SerialConfig, CliError> {
    match arguments.serial.as_deref() {
        None if arguments.nodefaults => Ok(SerialConfig::None),
        None if chardevs.use_stdio() || *accelerator != AcceleratorConfig::Kvm => {
            Ok(SerialConfig::Null)
        }
        Some("stdio") if chardevs.use_stdio() => Err(CliError::new(
            "--serial",
            "stdio",
            "cannot use stdio by multiple character devices",
            "there is one standard input",
        )),
        None | Some("stdio") => Ok(SerialConfig::Stdio),
        Some("null") => Ok(SerialConfig::Null),
        Some("none") => Ok(SerialConfig::None),
        Some(other) => match other.strip_prefix("file:") {
            Some(path) if !path.is_empty() => Ok(SerialConfig::File(PathBuf::from(path))),
            _ => Err(CliError::new(
                "--serial",
                other,
                format!("'{other}' is not a place for a serial port"),
                "write stdio, null, none or file:PATH",
            )),
        },
    }
}
