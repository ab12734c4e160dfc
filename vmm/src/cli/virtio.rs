//! `--device virtio-blk-pci`: its properties, and which I/O thread serves which of its queues.
//!
//! Names, defaults and refusals are QEMU's. What only the device itself can judge, such as its block
//! sizes, is refused where the disk is made.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::num::NonZeroU8;

use serde::Deserialize;
use sluice_block::job::OnError;

use super::error::CliError;
use crate::storage::{IoThreadConfig, PciAddress, VirtioBlkProperties, VirtioDiskConfig};

const DEVICE: &str = "--device";

/// `--device virtio-blk-pci`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct VirtioBlkOptions {
    pub(super) drive: Option<String>,
    pub(super) id: Option<String>,
    pub(super) serial: Option<String>,
    pub(super) bus: Option<String>,
    pub(super) addr: Option<String>,
    pub(super) write_cache: Option<bool>,
    pub(super) rerror: Option<OnError>,
    pub(super) werror: Option<OnError>,
    pub(super) share_rw: bool,
    iothread: Option<String>,
    iothread_vq_mapping: Vec<QueueMapping>,
    num_queues: Option<u16>,
    queue_size: Option<u16>,
    seg_max_adjust: Option<bool>,
    #[serde(rename = "logical_block_size")]
    logical_block_size: Option<u32>,
    #[serde(rename = "physical_block_size")]
    physical_block_size: Option<u32>,
    #[serde(rename = "min_io_size")]
    min_io_size: u32,
    #[serde(rename = "opt_io_size")]
    opt_io_size: u32,
    #[serde(rename = "discard_granularity")]
    discard_granularity: Option<u32>,
    report_discard_granularity: Option<bool>,
    cyls: Option<u16>,
    heads: Option<u8>,
    secs: Option<u8>,
    config_wce: Option<bool>,
    discard: Option<bool>,
    write_zeroes: Option<bool>,
    max_discard_sectors: Option<u32>,
    max_write_zeroes_sectors: Option<u32>,
    #[serde(rename = "event_idx")]
    event_idx: Option<bool>,
    #[serde(rename = "indirect_desc")]
    indirect_desc: Option<bool>,
    #[serde(rename = "queue_reset")]
    queue_reset: Option<bool>,
    #[serde(rename = "iommu_platform")]
    iommu_platform: bool,
    packed: bool,
    vectors: Option<u32>,
    disable_legacy: OnOffAuto,
    disable_modern: bool,
    /// Taken for scripts: requests that are adjacent are never merged.
    request_merging: Option<bool>,
    /// Taken for scripts: there is no firmware that would look for a disk to boot from.
    bootindex: Option<i32>,
}

/// QEMU's `OnOffAuto`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum OnOffAuto {
    #[default]
    Auto,
    On,
    Off,
}

/// An item of `iothread-vq-mapping`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct QueueMapping {
    iothread: String,
    #[serde(default)]
    vqs: Vec<u16>,
}

/// A virtio disk without a word about its queues, on a machine with so many processors: one queue
/// each.
pub(super) fn plain(cpus: NonZeroU8) -> VirtioDiskConfig {
    VirtioDiskConfig {
        iothreads: Vec::new(),
        address: None,
        num_queues: u16::from(cpus.get()),
        properties: VirtioBlkProperties::default(),
    }
}

impl VirtioBlkOptions {
    /// What the options ask for, on a machine with so many processors and these I/O threads.
    pub(super) fn device(
        &self,
        text: &str,
        cpus: NonZeroU8,
        iothreads: &[IoThreadConfig],
        address: Option<PciAddress>,
    ) -> Result<VirtioDiskConfig, CliError> {
        self.check_transport(text)?;
        let usual = plain(cpus);
        let num_queues = self.num_queues.unwrap_or(usual.num_queues);
        if num_queues == 0 {
            let problem = "num-queues property must be larger than 0";
            let remedy = "leave it out for one queue each CPU";
            return Err(CliError::new(DEVICE, text, problem, remedy));
        }
        Ok(VirtioDiskConfig {
            iothreads: self.threads(text, num_queues, iothreads)?,
            address,
            num_queues,
            properties: self.properties(&usual.properties),
        })
    }

    /// Refuses kinds of devices and rings that do not exist here.
    fn check_transport(&self, text: &str) -> Result<(), CliError> {
        let (problem, remedy) = if self.disable_legacy == OnOffAuto::Off {
            let problem = "disable-legacy=off is not supported: there are modern devices only";
            (problem, "leave it out")
        } else if self.disable_modern {
            let problem = "disable-modern=on is not supported: there are modern devices only";
            (problem, "leave it out")
        } else if self.packed {
            let problem = "packed=on is not supported: there are split virtqueues only";
            (problem, "leave it out")
        } else {
            return Ok(());
        };
        Err(CliError::new(DEVICE, text, problem, remedy))
    }

    fn properties(&self, usual: &VirtioBlkProperties) -> VirtioBlkProperties {
        let logical = self.logical_block_size.unwrap_or(usual.logical_block_size);
        let granularity = if self.report_discard_granularity.unwrap_or(true) {
            self.discard_granularity
        } else {
            Some(logical)
        };
        let geometry = match (self.cyls, self.heads, self.secs) {
            (None, None, None) => None,
            (cyls, heads, secs) => Some((
                cyls.unwrap_or_default(),
                heads.unwrap_or_default(),
                secs.unwrap_or_default(),
            )),
        };
        VirtioBlkProperties {
            queue_size: self.queue_size.unwrap_or(usual.queue_size),
            seg_max_adjust: self.seg_max_adjust.unwrap_or(usual.seg_max_adjust),
            logical_block_size: logical,
            physical_block_size: self.physical_block_size.unwrap_or(logical),
            min_io_size: self.min_io_size,
            opt_io_size: self.opt_io_size,
            discard_granularity: granularity,
            geometry,
            config_wce: self.config_wce.unwrap_or(usual.config_wce),
            discard: self.discard.unwrap_or(usual.discard),
            write_zeroes: self.write_zeroes.unwrap_or(usual.write_zeroes),
            max_discard_sectors: self.max_discard_sectors,
            max_write_zeroes_sectors: self.max_write_zeroes_sectors,
            event_idx: self.event_idx.unwrap_or(usual.event_idx),
            indirect_desc: self.indirect_desc.unwrap_or(usual.indirect_desc),
            queue_reset: self.queue_reset.unwrap_or(usual.queue_reset),
            iommu_platform: self.iommu_platform,
            vectors: self.vectors,
        }
    }

    /// The threads of the queues: queue N has that at N modulo their number.
    fn threads(
        &self,
        text: &str,
        num_queues: u16,
        known: &[IoThreadConfig],
    ) -> Result<Vec<String>, CliError> {
        let refuse =
            |problem: String, remedy: &str| Err(CliError::new(DEVICE, text, problem, remedy));
        let exists = |id: &str| known.iter().any(|thread| thread.id == id);
        if let Some(id) = &self.iothread {
            if !self.iothread_vq_mapping.is_empty() {
                let problem =
                    "iothread and iothread-vq-mapping properties cannot be set at the same time";
                return refuse(problem.to_owned(), "use one or the other");
            }
            if !exists(id) {
                let problem = format!("Cannot find iothread '{id}'");
                return refuse(problem, &format!("declare it: --object iothread,id={id}"));
            }
            return Ok(vec![id.clone()]);
        }
        let mut names = BTreeSet::new();
        let mut queues: Vec<Option<&str>> = vec![None; usize::from(num_queues)];
        let by_queue = self
            .iothread_vq_mapping
            .iter()
            .any(|item| !item.vqs.is_empty());
        for item in &self.iothread_vq_mapping {
            let name = item.iothread.as_str();
            if !exists(name) {
                let problem = format!("IOThread \"{name}\" object does not exist");
                return refuse(problem, &format!("declare it: --object iothread,id={name}"));
            }
            if !names.insert(name) {
                let problem = format!("duplicate IOThread name \"{name}\" in iothread-vq-mapping");
                return refuse(problem, "give all its queues in one item");
            }
            if item.vqs.is_empty() == by_queue {
                let problem = "either all items in iothread-vq-mapping must have vqs or none of \
                               them must have it";
                return refuse(
                    problem.to_owned(),
                    "leave vqs out to share the queues evenly",
                );
            }
            for queue in &item.vqs {
                match queues.get_mut(usize::from(*queue)) {
                    None => {
                        let problem = format!(
                            "vq index {queue} for IOThread \"{name}\" must be less than \
                             num_queues {num_queues} in iothread-vq-mapping"
                        );
                        return refuse(problem, "give num-queues, or another index");
                    }
                    Some(Some(_)) => {
                        let problem = format!(
                            "cannot assign vq {queue} to IOThread \"{name}\" because it is \
                             already assigned"
                        );
                        return refuse(problem, "a queue is served by one thread");
                    }
                    Some(free) => *free = Some(name),
                }
            }
        }
        if !by_queue {
            let items = self.iothread_vq_mapping.iter();
            return Ok(items.map(|item| item.iothread.clone()).collect());
        }
        match queues.iter().position(Option::is_none) {
            None => Ok(queues.into_iter().flatten().map(str::to_owned).collect()),
            Some(queue) => {
                let problem =
                    format!("missing vq {queue} IOThread assignment in iothread-vq-mapping");
                refuse(problem, "each queue of num-queues needs a thread")
            }
        }
    }
}
