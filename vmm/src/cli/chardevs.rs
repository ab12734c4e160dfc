//! `--chardev`, and the options that stand on character devices: `--mon`, `--qmp`, `--qmp-pretty`,
//! `--monitor`, `--qtest`, whose short forms make one each.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::Deserialize;

use super::arguments::Arguments;
use super::error::CliError;
use super::options::Raw;
use crate::chardev::{Backend, ChardevConfig, SocketAddress, SocketConfig, SocketEnd};
use crate::qmp::MonitorMode;

const CHARDEV: &str = "--chardev";
const MON: &str = "--mon";
const QTEST: &str = "--qtest";

/// The name of `--qtest`'s character device, as in QEMU.
const QTEST_ID: &str = "qtest";
/// What the character devices of the short forms are called, as in QEMU, with a number.
const COMPATIBLE: &str = "compat_monitor";

const CHARDEV_EXAMPLE: &str = "known backends: null, socket, stdio; for example --chardev \
                               socket,id=m0,path=/run/vm.qmp,server=on,wait=off";
const PLACE_EXAMPLE: &str = "write unix:PATH, tcp:HOST:PORT, stdio, null, none or chardev:ID";

/// What fits `sockaddr_un.sun_path` with its final NUL (unix(7)).
const LONGEST_PATH: usize = 107;

/// A monitor that the user asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MonitorConfig {
    /// The name of its character device.
    pub chardev: String,
    /// How it speaks.
    pub mode: MonitorMode,
}

/// All character devices, and who stands on them.
#[derive(Debug, Default)]
pub(super) struct Chardevs {
    pub(super) chardevs: Vec<ChardevConfig>,
    pub(super) monitors: Vec<MonitorConfig>,
    /// The one of the qtest protocol.
    pub(super) qtest: Option<String>,
    used: BTreeSet<String>,
}

/// Reads all of these options.
pub(super) fn parse(arguments: &Arguments) -> Result<Chardevs, CliError> {
    let mut all = Chardevs::default();
    for text in &arguments.chardev {
        all.chardev(text)?;
    }
    if let Some(text) = &arguments.qtest {
        all.qtest(text)?;
    }
    let lines = MonitorMode::Control { pretty: false };
    let pretty = MonitorMode::Control { pretty: true };
    for text in &arguments.qmp {
        all.monitor("--qmp", text, lines)?;
    }
    for text in &arguments.qmp_pretty {
        all.monitor("--qmp-pretty", text, pretty)?;
    }
    for text in &arguments.monitor {
        all.monitor("--monitor", text, MonitorMode::Readline)?;
    }
    for text in &arguments.mon {
        all.mon(text)?;
    }
    Ok(all)
}

impl Chardevs {
    /// Whether standard input and output are one's.
    pub(super) fn use_stdio(&self) -> bool {
        let mut backends = self.chardevs.iter().map(|chardev| &chardev.backend);
        backends.any(|backend| *backend == Backend::Stdio)
    }

    fn add(
        &mut self,
        option: &'static str,
        text: &str,
        id: String,
        backend: Backend,
    ) -> Result<(), CliError> {
        if self.chardevs.iter().any(|known| known.id == id) {
            let problem = format!("Chardev with id '{id}' already exists");
            return Err(CliError::new(option, text, problem, "give each its own id"));
        }
        let clash = self
            .chardevs
            .iter()
            .any(|known| clashes(&known.backend, &backend));
        if clash {
            let (problem, remedy) = match backend {
                Backend::Stdio => (
                    "cannot use stdio by multiple character devices",
                    "there is one standard input",
                ),
                _ => (
                    "the path is used by another socket option",
                    "give each socket its own path",
                ),
            };
            return Err(CliError::new(option, text, problem, remedy));
        }
        self.chardevs.push(ChardevConfig {
            option,
            id,
            backend,
        });
        Ok(())
    }

    /// Marks a declared one as used.
    fn claim(&mut self, option: &'static str, text: &str, id: &str) -> Result<(), CliError> {
        if !self.chardevs.iter().any(|known| known.id == id) {
            let problem = format!("chardev \"{id}\" not found");
            let remedy = format!("declare it: --chardev socket,id={id},path=...");
            return Err(CliError::new(option, text, problem, remedy));
        }
        if !self.used.insert(id.to_owned()) {
            let problem = format!("Device '{id}' is in use");
            let remedy = "one monitor for each character device";
            return Err(CliError::new(option, text, problem, remedy));
        }
        Ok(())
    }

    fn chardev(&mut self, text: &str) -> Result<(), CliError> {
        let text_now = with_long_flags(text);
        let mut raw = Raw::parse(CHARDEV, &text_now, Some("backend"))?.with_text(text);
        let kind = raw.take_kind("backend", CHARDEV_EXAMPLE)?;
        let (id, backend) = match kind.as_str() {
            "null" => (raw.typed::<PlainOptions>()?.id, Backend::Null),
            "stdio" => (raw.typed::<PlainOptions>()?.id, Backend::Stdio),
            "socket" => {
                let options: SocketOptions = raw.typed()?;
                let id = options.id.clone();
                (id, options.backend(CHARDEV, text, SocketEnd::Client, None)?)
            }
            _ => {
                let problem = format!("'{kind}' is not a valid char driver name");
                return Err(raw.error(problem, CHARDEV_EXAMPLE));
            }
        };
        let Some(id) = id else {
            let problem = "Parameter 'id' is missing";
            return Err(CliError::new(CHARDEV, text, problem, CHARDEV_EXAMPLE));
        };
        super::disks::check_id(CHARDEV, text, "id", &id)?;
        self.add(CHARDEV, text, id, backend)
    }

    fn mon(&mut self, text: &str) -> Result<(), CliError> {
        let options: MonOptions = Raw::parse(MON, text, Some("chardev"))?.typed()?;
        let pretty = options.pretty.unwrap_or(false);
        let mode = match options.mode {
            MonMode::Control => MonitorMode::Control { pretty },
            MonMode::Readline if pretty => {
                let problem = "'pretty' is not compatible with HMP monitors";
                return Err(CliError::new(MON, text, problem, "leave it out"));
            }
            MonMode::Readline => MonitorMode::Readline,
        };
        self.claim(MON, text, &options.chardev)?;
        self.monitors.push(MonitorConfig {
            chardev: options.chardev,
            mode,
        });
        Ok(())
    }

    /// A monitor by one of the short forms.
    fn monitor(
        &mut self,
        option: &'static str,
        text: &str,
        mode: MonitorMode,
    ) -> Result<(), CliError> {
        if text == "none" {
            return Ok(());
        }
        let default_end = match mode {
            MonitorMode::Control { .. } => SocketEnd::Found,
            // Two monitors for people that meet would go on answering each other.
            MonitorMode::Readline => SocketEnd::Server,
        };
        let number = self.monitors.len();
        let id = format!("{COMPATIBLE}{number}");
        let chardev = self.place(option, text, id, default_end)?;
        self.monitors.push(MonitorConfig { chardev, mode });
        Ok(())
    }

    fn qtest(&mut self, text: &str) -> Result<(), CliError> {
        if text != "none" {
            let id = QTEST_ID.to_owned();
            let id = self.place(QTEST, text, id, SocketEnd::Client)?;
            self.qtest = Some(id);
        }
        Ok(())
    }

    /// The character device that a short form names or makes; a socket that does not say which end it is, is
    /// `default_end`.
    fn place(
        &mut self,
        option: &'static str,
        text: &str,
        id: String,
        default_end: SocketEnd,
    ) -> Result<String, CliError> {
        if let Some(named) = text.strip_prefix("chardev:") {
            self.claim(option, text, named)?;
            return Ok(named.to_owned());
        }
        let backend = short_form(option, text, default_end)?;
        self.add(option, text, id.clone(), backend)?;
        self.claim(option, text, &id)?;
        Ok(id)
    }
}

fn clashes(known: &Backend, new: &Backend) -> bool {
    match (known, new) {
        (Backend::Stdio, Backend::Stdio) => true,
        (Backend::Socket(known), Backend::Socket(new)) => match (&known.address, &new.address) {
            (SocketAddress::Unix(known), SocketAddress::Unix(new)) => known == new,
            _ => false,
        },
        _ => false,
    }
}

fn short_form(
    option: &'static str,
    text: &str,
    default_end: SocketEnd,
) -> Result<Backend, CliError> {
    match text {
        "stdio" => return Ok(Backend::Stdio),
        "null" => return Ok(Backend::Null),
        _ => {}
    }
    let long = with_long_flags(text);
    if let Some(address) = long.strip_prefix("unix:") {
        let raw = Raw::parse(option, address, Some("path"))?.with_text(text);
        let options: SocketOptions = raw.typed()?;
        return options.backend(option, text, default_end, None);
    }
    if let Some(address) = long.strip_prefix("tcp:") {
        let (place, rest) = address.split_once(',').unwrap_or((address, ""));
        let refuse = |problem: String| CliError::new(option, text, problem, PLACE_EXAMPLE);
        let (host, port) = place
            .rsplit_once(':')
            .ok_or_else(|| refuse(format!("'{place}' is not HOST:PORT")))?;
        let port = port
            .parse()
            .map_err(|_| refuse(format!("'{port}' is not a port number")))?;
        let options: SocketOptions = Raw::parse(option, rest, None)?.with_text(text).typed()?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let host = if host.is_empty() { LOOPBACK } else { host };
        return options.backend(option, text, default_end, Some((host.to_owned(), port)));
    }
    let problem = format!("'{text}' is not a place that is known here");
    Err(CliError::new(option, text, problem, PLACE_EXAMPLE))
}

/// An absent host means this one.
const LOOPBACK: &str = "127.0.0.1";

/// The flags of old, `server`, `nowait` and `nodelay`, in their long form.
fn with_long_flags(text: &str) -> String {
    if text.trim_start().starts_with('{') {
        return text.to_owned();
    }
    let pieces = text.split(',').map(|piece| match piece {
        "server" => "server=on",
        "nowait" => "wait=off",
        "nodelay" => "nodelay=on",
        other => other,
    });
    pieces.collect::<Vec<_>>().join(",")
}

/// `--chardev null` and `stdio`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct PlainOptions {
    id: Option<String>,
    /// Ctrl-C and its kind end the process in any case.
    #[expect(
        dead_code,
        reason = "accepted as QEMU does; the terminal's settings stay"
    )]
    signal: Option<bool>,
    #[expect(dead_code, reason = "accepted as QEMU does; nobody shares it")]
    mux: Option<bool>,
}

/// `--chardev socket`, and what follows `unix:` and `tcp:`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct SocketOptions {
    id: Option<String>,
    path: Option<String>,
    fd: Option<RawFd>,
    host: Option<String>,
    port: Option<u16>,
    server: Option<bool>,
    wait: Option<bool>,
    /// TCP connections never delay.
    #[expect(dead_code, reason = "accepted as QEMU does; this is so in any case")]
    nodelay: Option<bool>,
}

impl SocketOptions {
    fn backend(
        self,
        option: &'static str,
        text: &str,
        default_end: SocketEnd,
        place: Option<(String, u16)>,
    ) -> Result<Backend, CliError> {
        let refuse =
            |problem: &str, remedy: &str| Err(CliError::new(option, text, problem, remedy));
        let inet = match (place, self.host, self.port) {
            (None, host, Some(port)) => Some((host.unwrap_or_else(|| LOOPBACK.to_owned()), port)),
            (place, ..) => place,
        };
        let address = match (self.path, inet, self.fd) {
            (Some(path), None, None) => {
                if path.is_empty() {
                    return refuse("the path is missing", "write unix:PATH");
                }
                if path.len() > LONGEST_PATH {
                    let problem = format!("the path is longer than {LONGEST_PATH} bytes");
                    return refuse(&problem, "use a shorter path");
                }
                SocketAddress::Unix(PathBuf::from(path))
            }
            (None, Some((host, port)), None) => SocketAddress::Inet { host, port },
            (None, None, Some(number)) => SocketAddress::Descriptor(number),
            (None, None, None) => {
                return refuse("Parameter 'path' is missing", "write unix:PATH");
            }
            _ => {
                return refuse(
                    "a socket has one address",
                    "give path, or host and port, or fd",
                );
            }
        };
        // An inherited socket tells itself whether it listens.
        let is_inherited = matches!(address, SocketAddress::Descriptor(_));
        let is_file = matches!(address, SocketAddress::Unix(_));
        let end = match (self.server, default_end) {
            (Some(true), _) => SocketEnd::Server,
            (Some(false), _) => SocketEnd::Client,
            (None, _) if is_inherited => SocketEnd::Client,
            // Only a file shows whether somebody listens without being asked; and who waits, listens.
            (None, SocketEnd::Found) if self.wait.is_some() || !is_file => SocketEnd::Server,
            (None, end) => end,
        };
        if self.wait == Some(true) && end == SocketEnd::Client {
            let remedy = "leave it out, or add server=on";
            return refuse("'wait' option is incompatible with client sockets", remedy);
        }
        // The short forms differ from QEMU in this: nearly every use of theirs listens and does not wait.
        let is_short = option != CHARDEV;
        Ok(Backend::Socket(SocketConfig {
            address,
            end,
            wait: self.wait.unwrap_or(end == SocketEnd::Server && !is_short),
        }))
    }
}

/// `--mon`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MonOptions {
    chardev: String,
    #[serde(default)]
    mode: MonMode,
    pretty: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum MonMode {
    Control,
    #[default]
    Readline,
}
