//! The command line: QEMU's words, one dash or two.
//!
//! [`parse`] turns the process's arguments into a [`CommandLine`], which the machine builder and
//! the QMP server work from, or into a [`Refusal`] that names the option, what is wrong with it and
//! the remedy. Runs once, in the main thread, before anything is opened.

mod arguments;
mod dashes;
mod disks;
mod error;
mod ide;
pub mod keyval;
mod media;
mod options;
mod places;
#[cfg(test)]
mod tests;
mod throttling;
mod virtio;

pub use error::CliError;

use std::ffi::OsString;
use std::fmt;
use std::num::NonZeroU8;
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches};

use crate::exit::ExitStatus;
use crate::machine::config::{
    AcceleratorConfig, BootConfig, MIB, MachineConfig, QtestConfig, SerialConfig,
};
use crate::qmp::input::parse_size;
use crate::storage::StorageConfig;
use arguments::Arguments;
use options::{
    AccelKind, AccelOptions, DisplayOptions, IdeKind, MachineOptions, MemoryOptions, SmpOptions,
    SocketOptions,
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
    /// `--qmp`: where to serve QMP.
    pub qmp: Vec<QmpSocket>,
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

/// `--qmp unix:PATH[,server=on|off]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct QmpSocket {
    /// The Unix socket.
    pub path: PathBuf,
    /// Listen on it; otherwise connect to whoever listens there, once.
    pub server: bool,
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
    interpret(arguments).map_err(Refusal::from)
}

fn help_footer() -> String {
    format!("{}\n\n{}", arguments::EXAMPLES, ExitStatus::table())
}

fn interpret(arguments: Arguments) -> Result<CommandLine, CliError> {
    let cpus = cpus(arguments.smp.as_deref())?;
    let devices = disks::parse(&arguments, cpus)?;
    let machine_options = match &arguments.machine {
        Some(text) => options::parse("--machine", text, Some("type"))?,
        None => MachineOptions::default(),
    };
    if let Some(text) = &arguments.display {
        options::parse::<DisplayOptions>("--display", text, Some("type"))?;
    }
    let qmp = arguments.qmp.iter().map(|text| qmp_socket(text));
    let boot = boot(&arguments)?;
    let machine = MachineConfig {
        accelerator: accelerator(&arguments)?,
        memory: memory(arguments.memory.as_deref())?,
        cpus,
        boot,
        serial: serial(arguments.serial.as_deref(), arguments.nodefaults)?,
        name: arguments.name,
        no_reboot: arguments.no_reboot,
        start_paused: arguments.start_paused,
        debug_exit: devices.debug_exit,
    };
    let command_line = CommandLine {
        piix: match machine_options.ide {
            IdeKind::Piix3 => PiixModel::Piix3,
            IdeKind::Piix4 => PiixModel::Piix4,
        },
        storage: devices.storage,
        qmp: qmp.collect::<Result<_, _>>()?,
        machine,
    };
    check_sockets(&command_line)?;
    Ok(command_line)
}

fn memory(text: Option<&str>) -> Result<u64, CliError> {
    const REMEDY: &str = "write 512M or 2G; a bare number counts MiB; at least 2M";
    let Some(text) = text else {
        return Ok(MachineConfig::DEFAULT_MEMORY);
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

fn accelerator(arguments: &Arguments) -> Result<AcceleratorConfig, CliError> {
    let kind = match &arguments.accel {
        Some(text) => options::parse::<AccelOptions>("--accel", text, Some("accel"))?.accel,
        None => AccelKind::default(),
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
        (AccelKind::Qtest, None) => Err(CliError::bare(
            "--accel qtest",
            "nobody would drive the machine",
            "add --qtest unix:PATH,server=on",
        )),
        (AccelKind::Qtest, Some(text)) => {
            let (path, options) = socket("--qtest", text)?;
            let server = options.server.unwrap_or(false);
            if let Some(wait) = options.wait
                && wait != server
            {
                let problem = format!("wait={} is not implemented", on_off(wait));
                let remedy = "leave it out: a listening machine waits for its test";
                return Err(CliError::new("--qtest", text, problem, remedy));
            }
            Ok(AcceleratorConfig::Qtest(QtestConfig { path, server }))
        }
    }
}

fn qmp_socket(text: &str) -> Result<QmpSocket, CliError> {
    let (path, options) = socket("--qmp", text)?;
    if options.wait == Some(true) {
        let problem = "wait=on is not implemented";
        let remedy = "use wait=off, and -S to start the CPUs by 'cont'";
        return Err(CliError::new("--qmp", text, problem, remedy));
    }
    Ok(QmpSocket {
        path,
        server: options.server.unwrap_or(true),
    })
}

/// Splits `unix:PATH,key=value...`.
fn socket(option: &'static str, text: &str) -> Result<(PathBuf, SocketOptions), CliError> {
    /// What fits `sockaddr_un.sun_path` with its final NUL (unix(7)).
    const LONGEST_PATH: usize = 107;
    let remedy = "write unix:PATH";
    let Some(address) = text.strip_prefix("unix:") else {
        let problem = "only Unix sockets are supported";
        return Err(CliError::new(option, text, problem, remedy));
    };
    let options = options::Raw::parse(option, address, Some("path"))?.with_text(text);
    let options: SocketOptions = options.typed()?;
    if options.path.is_empty() {
        return Err(CliError::new(option, text, "the path is missing", remedy));
    }
    if options.path.len() > LONGEST_PATH {
        let problem = format!("the path is longer than {LONGEST_PATH} bytes");
        return Err(CliError::new(option, text, problem, "use a shorter path"));
    }
    Ok((PathBuf::from(&options.path), options))
}

const fn on_off(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

fn serial(text: Option<&str>, nodefaults: bool) -> Result<SerialConfig, CliError> {
    match text {
        None if nodefaults => Ok(SerialConfig::None),
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

/// Refuses one path for two sockets.
fn check_sockets(command_line: &CommandLine) -> Result<(), CliError> {
    let mut paths = std::collections::BTreeSet::new();
    if let AcceleratorConfig::Qtest(qtest) = &command_line.machine.accelerator {
        paths.insert(&qtest.path);
    }
    for socket in &command_line.qmp {
        if !paths.insert(&socket.path) {
            let text = format!("unix:{}", socket.path.display());
            let problem = "the path is used by another socket option";
            return Err(CliError::new(
                "--qmp",
                text,
                problem,
                "give each socket its own path",
            ));
        }
    }
    Ok(())
}
