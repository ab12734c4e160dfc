//! The life of a device: status, start and end of its queues, resets.
//!
//! What a driver's writes to the common configuration bring about. Everything here runs under the
//! register lock, on vCPU threads; a reset that finds requests in flight ends later, on the thread
//! that settles the last of them.

use std::future::poll_fn;
use std::sync::{Arc, Weak};
use std::task::Poll;

use super::registers::{Effect, Registers};
use super::{VirtioPci, layout};
use crate::virtio::ring::checked_queue;
use crate::virtio::{ActiveQueue, RingFeatures, Settling, Status};

impl VirtioPci {
    pub(super) fn write_common(&self, offset: u64, data: &[u8]) {
        let Ok(offset) = usize::try_from(offset) else {
            return;
        };
        let mut registers = self.registers.lock();
        // Dropped after the lock: the last one may finish a reset, which takes it.
        let _settling: Option<Settling> = match registers.write(offset, data) {
            Effect::Nothing => None,
            Effect::Status(0) => self.begin_reset(&mut registers),
            Effect::Status(value) => {
                self.raise_status(&mut registers, Status::from_bits_truncate(value));
                None
            }
            Effect::ConfigVector(vector) => {
                self.vectors.set_config(vector, &self.msix);
                None
            }
            Effect::QueueVector(queue, vector) => {
                self.vectors.set_queue(queue, vector, &self.msix);
                None
            }
            Effect::Enabled(index) => {
                if registers.status.contains(Status::DRIVER_OK) {
                    self.start(&mut registers, index);
                }
                None
            }
            Effect::ResetQueue(index) => self.begin_queue_reset(&mut registers, index),
        };
        drop(registers);
    }

    /// The driver sets status bits; it cannot clear any but by a reset.
    fn raise_status(&self, registers: &mut Registers, requested: Status) {
        let mut new = requested - registers.status - Status::NEEDS_RESET;
        if new.contains(Status::FEATURES_OK) && !registers.features_are_acceptable() {
            new.remove(Status::FEATURES_OK);
        }
        if !(registers.status | new).contains(Status::FEATURES_OK) {
            new.remove(Status::DRIVER_OK);
        }
        registers.status |= new;
        if new.contains(Status::DRIVER_OK) {
            for index in 0..registers.queues.len() {
                if registers.queues[index].enabled {
                    self.start(registers, index);
                }
            }
        }
    }

    /// Hands a queue to the device, or declares the device broken if the driver set it up wrongly.
    fn start(&self, registers: &mut Registers, index: usize) {
        let event_idx = registers.has(RingFeatures::EVENT_IDX);
        let features = registers.accepted;
        let (Some(this), Ok(number)) = (self.this.upgrade(), u16::try_from(index)) else {
            return;
        };
        let queue = &mut registers.queues[index];
        let checked = checked_queue(
            queue.max_size,
            queue.size,
            queue.addresses,
            event_idx,
            &self.memory,
        );
        match checked {
            Ok(checked) => {
                queue.running = true;
                self.device.start_queue(ActiveQueue {
                    index: number,
                    queue: checked,
                    memory: Arc::clone(&self.memory),
                    kick: Arc::clone(&self.kicks[index]),
                    features,
                    interrupts: this,
                });
            }
            Err(error) => self.break_device(registers, &error),
        }
    }

    pub(super) fn break_device(&self, registers: &mut Registers, reason: &dyn std::error::Error) {
        if registers.status.contains(Status::NEEDS_RESET) || registers.resetting {
            return;
        }
        tracing::warn!(%reason, "virtio: the driver broke the device, which needs a reset");
        registers.status |= Status::NEEDS_RESET;
        if registers.status.contains(Status::DRIVER_OK) {
            self.vectors.raise_config(&self.msix, &self.pci);
        }
    }

    /// Begins a device reset. The result is to be dropped once the lock is released.
    #[must_use]
    fn begin_reset(&self, registers: &mut Registers) -> Option<Settling> {
        if registers.resetting {
            return None;
        }
        registers.resetting = true;
        let this = Weak::clone(&self.this);
        let settling = Settling::new(move || {
            if let Some(this) = this.upgrade() {
                this.finish_reset();
            }
        });
        for (index, queue) in (0_u16..).zip(&mut registers.queues) {
            if std::mem::take(&mut queue.running) {
                self.device.stop_queue(index, settling.clone());
            }
        }
        if registers.is_resetting_queues() {
            registers.reset_awaits_queues = Some(settling.clone());
        }
        Some(settling)
    }

    /// Nothing of the old life is in flight any more.
    fn finish_reset(&self) {
        let mut registers = self.registers.lock();
        registers.reset();
        self.device.reset();
        self.vectors.reset(&self.msix, &self.pci);
        let waiters = std::mem::take(&mut registers.reset_waiters);
        drop(registers);
        for waiter in waiters {
            waiter.wake();
        }
    }

    /// Begins the reset of one queue (section 4.1.4.3.2.1). The result as in [`Self::begin_reset`].
    #[must_use]
    fn begin_queue_reset(&self, registers: &mut Registers, index: usize) -> Option<Settling> {
        let queue = &mut registers.queues[index];
        if queue.resetting {
            return None;
        }
        queue.resetting = true;
        queue.enabled = false;
        let this = Weak::clone(&self.this);
        let settling = Settling::new(move || {
            if let Some(this) = this.upgrade() {
                this.finish_queue_reset(index);
            }
        });
        if std::mem::take(&mut queue.running)
            && let Ok(number) = u16::try_from(index)
        {
            self.device.stop_queue(number, settling.clone());
        }
        Some(settling)
    }

    /// Nothing of the queue's old life is in flight any more.
    fn finish_queue_reset(&self, index: usize) {
        let mut registers = self.registers.lock();
        self.vectors.set_queue(index, layout::NO_VECTOR, &self.msix);
        // Dropped after the lock, as in `write_common`.
        let _device: Option<Settling> = registers.reset_queue(index);
        drop(registers);
    }

    /// The driver can bring nothing about any more.
    pub(super) fn close(&self) {
        self.registers.lock().retired = true;
    }

    /// Ends what is in flight and brings the device to its power-on state. Begins at once; resolves
    /// when it is there.
    pub(super) fn settle(self: Arc<Self>) -> impl Future<Output = ()> {
        let settling = {
            let mut registers = self.registers.lock();
            self.begin_reset(&mut registers)
        };
        drop(settling);
        poll_fn(move |cx| {
            let mut registers = self.registers.lock();
            if registers.resetting {
                registers.reset_waiters.push(cx.waker().clone());
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
    }
}
