//! The register file of the transport: what the driver wrote, and what it reads back.
//!
//! State without effects; [`super::VirtioPci`] holds it under its lock and acts on what changed.

use std::task::Waker;

use super::layout::{NO_VECTOR, common};
use crate::virtio::{RingFeatures, Settling, Status};

/// One queue's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueRegisters {
    pub(super) max_size: u16,
    pub(super) size: u16,
    /// Descriptor table, driver area, device area.
    pub(super) addresses: [u64; 3],
    pub(super) enabled: bool,
    /// The device serves it.
    pub(super) running: bool,
    /// A queue reset has not settled yet.
    pub(super) resetting: bool,
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            addresses: [0; 3],
            enabled: false,
            running: false,
            resetting: false,
        }
    }

    /// Back to what a reset leaves.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }
}

/// The registers of a device.
pub(super) struct Registers {
    pub(super) status: Status,
    /// A reset that the driver asked for is not finished: requests are still in flight.
    pub(super) resetting: bool,
    /// Held for queues that are being reset alone: the device's reset does not end before theirs.
    pub(super) reset_awaits_queues: Option<Settling>,
    /// The machine has ended: writes have no effect any more.
    pub(super) retired: bool,
    /// Who waits for the end of a reset.
    pub(super) reset_waiters: Vec<Waker>,
    pub(super) offered: u64,
    pub(super) accepted: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    pub(super) queues: Vec<QueueRegisters>,
}

/// A write that has effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// None, or not a register.
    Nothing,
    /// `device_status` was written.
    Status(u8),
    /// `config_msix_vector` was written.
    ConfigVector(u16),
    /// `queue_msix_vector` of this queue was written.
    QueueVector(usize, u16),
    /// `queue_enable` of this queue went up.
    Enabled(usize),
    /// `queue_reset` of this queue was written.
    ResetQueue(usize),
}

/// The words of a 64-bit field, by which feature bits are selected.
fn word(features: u64, select: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

fn set_word(field: &mut u64, select: u32, value: u32) {
    match select {
        0 => *field = (*field & !u64::from(u32::MAX)) | u64::from(value),
        1 => *field = (*field & u64::from(u32::MAX)) | u64::from(value) << 32,
        _ => {}
    }
}

impl Registers {
    pub(super) fn new(offered: u64, queue_sizes: &[u16]) -> Self {
        Self {
            status: Status::empty(),
            resetting: false,
            reset_awaits_queues: None,
            retired: false,
            reset_waiters: Vec::new(),
            offered,
            accepted: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            queues: queue_sizes
                .iter()
                .copied()
                .map(QueueRegisters::new)
                .collect(),
        }
    }

    /// What a finished device reset leaves.
    pub(super) fn reset(&mut self) {
        self.status = Status::empty();
        self.resetting = false;
        self.accepted = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
        self.queues.iter_mut().for_each(QueueRegisters::reset);
    }

    /// What a finished reset of one queue leaves. Returns what a reset of the device that waits for it has promised,
    /// to be dropped once the lock is released.
    #[must_use]
    pub(super) fn reset_queue(&mut self, index: usize) -> Option<Settling> {
        self.queues[index].reset();
        if self.is_resetting_queues() {
            return None;
        }
        self.reset_awaits_queues.take()
    }

    /// Whether a queue that is being reset alone has not settled yet.
    pub(super) fn is_resetting_queues(&self) -> bool {
        self.queues.iter().any(|queue| queue.resetting)
    }

    /// Number of the selected queue, if there is such a queue.
    fn selected(&self) -> Option<usize> {
        let index = usize::from(self.queue_select);
        (index < self.queues.len()).then_some(index)
    }

    /// Whether the driver's features are ones that the device can work with.
    pub(super) fn features_are_acceptable(&self) -> bool {
        // Whoever is offered ACCESS_PLATFORM has to take it (VIRTIO 1.2, section 6.1).
        let must = (RingFeatures::VERSION_1 | RingFeatures::ACCESS_PLATFORM).bits() & self.offered;
        self.accepted & !self.offered == 0 && self.accepted & must == must
    }

    pub(super) fn has(&self, feature: RingFeatures) -> bool {
        self.accepted & feature.bits() != 0
    }

    /// The structure as the driver reads it. Registers of a queue that does not exist read as zero.
    pub(super) fn image(
        &self,
        generation: u8,
        config_vector: u16,
        queue_vector: impl FnOnce(usize) -> u16,
    ) -> [u8; common::LEN] {
        let mut image = [0; common::LEN];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        let offered = word(self.offered, self.device_feature_select);
        let accepted = word(self.accepted, self.driver_feature_select);
        put(
            common::DEVICE_FEATURE_SELECT,
            &self.device_feature_select.to_le_bytes(),
        );
        put(common::DEVICE_FEATURE, &offered.to_le_bytes());
        put(
            common::DRIVER_FEATURE_SELECT,
            &self.driver_feature_select.to_le_bytes(),
        );
        put(common::DRIVER_FEATURE, &accepted.to_le_bytes());
        put(common::CONFIG_MSIX_VECTOR, &config_vector.to_le_bytes());
        // The transport refuses more queues than fit the doorbells.
        let count = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        put(common::NUM_QUEUES, &count.to_le_bytes());
        put(common::DEVICE_STATUS, &[self.status.bits()]);
        put(common::CONFIG_GENERATION, &[generation]);
        put(common::QUEUE_SELECT, &self.queue_select.to_le_bytes());
        let Some(index) = self.selected() else {
            put(common::QUEUE_MSIX_VECTOR, &NO_VECTOR.to_le_bytes());
            return image;
        };
        let queue = &self.queues[index];
        put(common::QUEUE_SIZE, &queue.size.to_le_bytes());
        put(
            common::QUEUE_MSIX_VECTOR,
            &queue_vector(index).to_le_bytes(),
        );
        put(
            common::QUEUE_ENABLE,
            &u16::from(queue.enabled).to_le_bytes(),
        );
        put(common::QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
        put(common::QUEUE_NOTIFY_DATA, &self.queue_select.to_le_bytes());
        put(
            common::QUEUE_RESET,
            &u16::from(queue.resetting).to_le_bytes(),
        );
        let areas = [
            common::QUEUE_DESC,
            common::QUEUE_DRIVER,
            common::QUEUE_DEVICE,
        ];
        for (at, address) in areas.into_iter().zip(queue.addresses) {
            put(at, &address.to_le_bytes());
        }
        image
    }

    /// Takes a write of the whole width of a register, or of half a 64-bit one (section 4.1.3.1);
    /// others are ignored, and so are all writes while a reset goes on and after the end.
    pub(super) fn write(&mut self, offset: usize, data: &[u8]) -> Effect {
        if self.resetting || self.retired {
            return Effect::Nothing;
        }
        match *data {
            [value] if offset == common::DEVICE_STATUS => Effect::Status(value),
            [a, b] => self.write_u16(offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => {
                self.write_u32(offset, u32::from_le_bytes([a, b, c, d]));
                Effect::Nothing
            }
            [_, _, _, _, _, _, _, _] => {
                let (low, high) = data.split_at(4);
                self.write(offset, low);
                self.write(offset + 4, high)
            }
            _ => Effect::Nothing,
        }
    }

    fn write_u16(&mut self, offset: usize, value: u16) -> Effect {
        match (offset, self.selected()) {
            (common::CONFIG_MSIX_VECTOR, _) => return Effect::ConfigVector(value),
            (common::QUEUE_SELECT, _) => self.queue_select = value,
            (common::QUEUE_SIZE, Some(index)) if !self.queues[index].enabled => {
                self.queues[index].size = value;
            }
            (common::QUEUE_MSIX_VECTOR, Some(index)) => return Effect::QueueVector(index, value),
            (common::QUEUE_ENABLE, Some(index)) if value == 1 => {
                let queue = &mut self.queues[index];
                if !queue.enabled && !queue.resetting {
                    queue.enabled = true;
                    return Effect::Enabled(index);
                }
            }
            (common::QUEUE_RESET, Some(index))
                if value == 1 && self.has(RingFeatures::RING_RESET) =>
            {
                return Effect::ResetQueue(index);
            }
            _ => {}
        }
        Effect::Nothing
    }

    fn write_u32(&mut self, offset: usize, value: u32) {
        let features_open = !self.status.contains(Status::FEATURES_OK);
        match offset {
            common::DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            common::DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            common::DRIVER_FEATURE if features_open => {
                set_word(&mut self.accepted, self.driver_feature_select, value);
            }
            common::QUEUE_DESC..common::QUEUE_NOTIFY_DATA if offset.is_multiple_of(4) => {
                let half = if offset.is_multiple_of(8) { 0 } else { 1 };
                let area = (offset - common::QUEUE_DESC) / 8;
                if let Some(index) = self.selected().filter(|&index| !self.queues[index].enabled) {
                    set_word(&mut self.queues[index].addresses[area], half, value);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
