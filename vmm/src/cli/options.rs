//! What the values of structured options mean.
//!
//! Each option's value is key=value text or JSON, read into one of these types by
//! [`crate::qmp::input`]; unknown keys are refused by name.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sluice_block::driver::throttle::ThrottleLimits;
use sluice_block::io::DetectZeroes;
use sluice_block::job::OnError;

use super::error::CliError;
use super::keyval;
use crate::machine::config::MachineKind;
use crate::qmp::input::{self, Scalars};
use crate::qmp::json;

/// A structured value that is not typed yet, and how its scalars are written.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) option: &'static str,
    /// As it was typed, for error messages.
    pub(super) text: String,
    pub(super) value: Value,
    pub(super) scalars: Scalars,
}

impl Raw {
    /// Splits `text` into keys and values: JSON if it starts with `{`, else key=value pairs.
    pub(super) fn parse(
        option: &'static str,
        text: &str,
        implied_key: Option<&str>,
    ) -> Result<Self, CliError> {
        let (value, scalars) = if text.trim_start().starts_with('{') {
            let value = json::parse(text.as_bytes()).map_err(|error| {
                let remedy = "a value that starts with '{' must be one JSON object";
                CliError::new(option, text, error.to_string(), remedy)
            })?;
            (value, Scalars::Typed)
        } else {
            let value = keyval::parse(text, implied_key).map_err(|error| {
                let remedy = "write key=value pairs separated by commas, and ',,' for a comma";
                CliError::new(option, text, error.to_string(), remedy)
            })?;
            (value, Scalars::Text)
        };
        Ok(Self {
            option,
            text: text.to_owned(),
            value,
            scalars,
        })
    }

    /// Removes the text under `key`, which says what kind of thing the rest describes.
    pub(super) fn take_kind(&mut self, key: &str, example: &str) -> Result<String, CliError> {
        match self.value.as_object_mut().and_then(|o| o.remove(key)) {
            Some(Value::String(kind)) => Ok(kind),
            Some(_) => Err(self.error(
                format!("Invalid parameter type for '{key}', expected: string"),
                example,
            )),
            None => Err(self.error(format!("Parameter '{key}' is missing"), example)),
        }
    }

    /// Shows `text` in error messages instead of the part that was parsed.
    pub(super) fn with_text(mut self, text: &str) -> Self {
        text.clone_into(&mut self.text);
        self
    }

    /// Gives the keys and values their types.
    pub(super) fn typed<T: DeserializeOwned>(self) -> Result<T, CliError> {
        input::from_value(self.value, self.scalars)
            .map_err(|error| CliError::input(self.option, &self.text, &error))
    }

    pub(super) fn error(&self, problem: impl Into<String>, remedy: impl Into<String>) -> CliError {
        CliError::new(self.option, self.text.as_str(), problem, remedy)
    }
}

/// Parses the value of `option` into a `T`.
pub(super) fn parse<T: DeserializeOwned>(
    option: &'static str,
    text: &str,
    implied_key: Option<&str>,
) -> Result<T, CliError> {
    Raw::parse(option, text, implied_key)?.typed()
}

/// `-m`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MemoryOptions {
    /// Kept as text: a bare number counts MiB here, unlike everywhere else.
    pub(super) size: String,
}

/// `--smp`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SmpOptions {
    pub(super) cpus: u64,
}

/// `--accel`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AccelOptions {
    pub(super) accel: AccelKind,
}

/// What runs the guest.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub(super) enum AccelKind {
    #[default]
    Kvm,
    Qtest,
}

/// `--machine`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MachineOptions {
    #[serde(rename = "type", default)]
    pub(super) kind: MachineKind,
    #[serde(default)]
    pub(super) ide: IdeKind,
    pub(super) accel: Option<AccelKind>,
}

/// The PCI function that the IDE channels belong to.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub(super) enum IdeKind {
    #[default]
    Piix3,
    Piix4,
}

/// `--display`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DisplayOptions {
    #[serde(rename = "type")]
    #[expect(
        dead_code,
        reason = "there is one display type; reading it is checking it"
    )]
    pub(super) kind: DisplayKind,
}

/// The display types.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum DisplayKind {
    None,
}

/// `--drive`: a node, its file and a device in one.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct DriveOptions {
    #[serde(alias = "driver")]
    pub(super) format: Option<DriveFormat>,
    #[serde(rename = "if")]
    pub(super) interface: DriveInterface,
    pub(super) id: Option<String>,
    pub(super) index: Option<u8>,
    pub(super) bus: Option<u8>,
    pub(super) unit: Option<u8>,
    pub(super) media: DriveMedia,
    #[serde(alias = "read-only")]
    pub(super) readonly: bool,
    pub(super) auto_read_only: Option<bool>,
    pub(super) cache: CacheMode,
    pub(super) aio: Option<AioMode>,
    pub(super) discard: DiscardMode,
    pub(super) detect_zeroes: DetectZeroes,
    pub(super) copy_on_read: bool,
    pub(super) rerror: Option<OnError>,
    pub(super) werror: Option<OnError>,
    pub(super) node_name: Option<String>,
    pub(super) serial: Option<String>,
    pub(super) throttling: ThrottleLimits,
    #[serde(rename = "throttling.group")]
    pub(super) throttling_group: Option<String>,
}

/// Image formats of `--drive`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub(super) enum DriveFormat {
    Raw,
}

impl DriveFormat {
    /// What the option takes.
    pub(super) const NAMES: [&'static str; 1] = ["raw"];
}

/// Which device `--drive` makes.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub(super) enum DriveInterface {
    #[default]
    Ide,
    Virtio,
    None,
}

/// What is in the drive.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub(super) enum DriveMedia {
    #[default]
    Disk,
    /// Never written to.
    Cdrom,
}

impl DriveOptions {
    /// Whether the guest may not write.
    pub(super) fn is_read_only(&self) -> bool {
        self.readonly || self.media == DriveMedia::Cdrom
    }
}

/// How the host caches the image, in `--drive`'s words.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub(super) enum CacheMode {
    #[default]
    Writeback,
    None,
    Writethrough,
    Directsync,
    Unsafe,
}

impl CacheMode {
    /// Whether the host's page cache is bypassed.
    pub(super) const fn direct(self) -> bool {
        matches!(self, Self::None | Self::Directsync)
    }

    /// Whether the guest's flushes are ignored.
    pub(super) const fn no_flush(self) -> bool {
        matches!(self, Self::Unsafe)
    }

    /// Whether the guest sees a volatile write cache, which it must flush.
    pub(super) const fn write_cache(self) -> bool {
        !matches!(self, Self::Writethrough | Self::Directsync)
    }
}

/// Which engine does the file I/O.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub(super) enum AioMode {
    Threads,
    IoUring,
}

impl AioMode {
    /// The name in a node's options.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Threads => "threads",
            Self::IoUring => "io_uring",
        }
    }
}

/// What becomes of the guest's discards.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub(super) enum DiscardMode {
    #[default]
    #[serde(alias = "off")]
    Ignore,
    #[serde(alias = "on")]
    Unmap,
}

impl DiscardMode {
    /// The name in a node's options.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ignore => "ignore",
            Self::Unmap => "unmap",
        }
    }
}

/// `--device isa-debug-exit`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct DebugExitOptions {
    pub(super) iobase: Option<u16>,
    pub(super) iosize: Option<u16>,
}
