//! `--device ide-hd` and `--device ide-cd`: their properties.
//!
//! Names, defaults and refusals are QEMU's. What only the drive itself can judge, such as the length of its texts,
//! is refused where it is made.

#[cfg(test)]
mod tests;

use serde::Deserialize;
use sluice_block::job::OnError;

use super::error::CliError;
use crate::storage::IdeProperties;

const DEVICE: &str = "--device";

/// Bytes of a sector, which an IDE disk is addressed by.
const SECTOR: u32 = 512;

/// `--device ide-hd`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct IdeDiskOptions {
    pub(super) drive: Option<String>,
    pub(super) id: Option<String>,
    pub(super) bus: Option<String>,
    pub(super) unit: Option<u8>,
    pub(super) serial: Option<String>,
    pub(super) write_cache: Option<bool>,
    pub(super) rerror: Option<OnError>,
    pub(super) werror: Option<OnError>,
    pub(super) share_rw: bool,
    model: Option<String>,
    #[serde(alias = "version")]
    ver: Option<String>,
    wwn: u64,
    #[serde(rename = "rotation_rate")]
    rotation_rate: u16,
    #[serde(rename = "logical_block_size")]
    logical_block_size: Option<u32>,
    #[serde(rename = "physical_block_size")]
    physical_block_size: Option<u32>,
    #[serde(rename = "discard_granularity")]
    discard_granularity: Option<u32>,
    cyls: Option<u16>,
    heads: Option<u8>,
    secs: Option<u8>,
    /// Taken for scripts: an ATA disk has no place for it.
    #[serde(rename = "min_io_size")]
    min_io_size: Option<u32>,
    /// The same.
    #[serde(rename = "opt_io_size")]
    opt_io_size: Option<u32>,
    /// Taken for scripts: there is no firmware that would translate addresses.
    bios_chs_trans: Option<Translation>,
    /// Taken for scripts: there is no firmware that would look for a disk to boot from.
    bootindex: Option<i32>,
    #[cfg(feature = "test-hooks")]
    pub(super) x_postpone: Option<bool>,
}

/// How a BIOS would translate addresses.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Translation {
    Auto,
    None,
    Lba,
    Large,
    Rechs,
}

/// `--device ide-cd`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct IdeCdOptions {
    pub(super) drive: Option<String>,
    pub(super) id: Option<String>,
    pub(super) bus: Option<String>,
    pub(super) unit: Option<u8>,
    pub(super) serial: Option<String>,
    pub(super) rerror: Option<OnError>,
    pub(super) werror: Option<OnError>,
    pub(super) share_rw: bool,
    model: Option<String>,
    #[serde(alias = "version")]
    ver: Option<String>,
    wwn: u64,
    /// Taken for scripts: nothing is ever written.
    write_cache: Option<bool>,
    /// Taken for scripts: there is no firmware that would look for a disk to boot from.
    bootindex: Option<i32>,
}

impl IdeDiskOptions {
    /// What the drive is to say of itself.
    pub(super) fn properties(&self, text: &str) -> Result<IdeProperties, CliError> {
        if let Some(size) = self.logical_block_size.filter(|size| *size != SECTOR) {
            let problem = "logical_block_size must be 512 for IDE";
            let remedy = format!("leave it out; {size} bytes can be the physical_block_size");
            return Err(CliError::new(DEVICE, text, problem, remedy));
        }
        let discard = match self.discard_granularity {
            None | Some(SECTOR) => true,
            Some(0) => false,
            Some(_) => {
                let problem = "discard_granularity must be 512 for ide";
                let remedy = "leave it out, or write 0 to offer no TRIM";
                return Err(CliError::new(DEVICE, text, problem, remedy));
            }
        };
        Ok(IdeProperties {
            model: self.model.clone(),
            version: self.ver.clone(),
            wwn: self.wwn,
            rotation_rate: self.rotation_rate,
            physical_block_size: self.physical_block_size,
            geometry: self.geometry(text)?,
            discard,
        })
    }

    /// Cylinders, heads and sectors: all of them or none.
    fn geometry(&self, text: &str) -> Result<Option<(u16, u8, u8)>, CliError> {
        const MOST_HEADS: u8 = 16;
        let (cyls, heads, secs) = match (self.cyls, self.heads, self.secs) {
            (None, None, None) => return Ok(None),
            (cyls, heads, secs) => (
                cyls.unwrap_or_default(),
                heads.unwrap_or_default(),
                secs.unwrap_or_default(),
            ),
        };
        let problem = if cyls == 0 {
            "cyls must be between 1 and 65535"
        } else if !(1..=MOST_HEADS).contains(&heads) {
            "heads must be between 1 and 16"
        } else if secs == 0 {
            "secs must be between 1 and 255"
        } else {
            return Ok(Some((cyls, heads, secs)));
        };
        Err(CliError::new(
            DEVICE,
            text,
            problem,
            "give all of cyls, heads and secs, or none",
        ))
    }
}

impl IdeCdOptions {
    /// What the drive is to say of itself.
    pub(super) fn properties(&self) -> IdeProperties {
        IdeProperties {
            model: self.model.clone(),
            version: self.ver.clone(),
            wwn: self.wwn,
            ..IdeProperties::default()
        }
    }
}
