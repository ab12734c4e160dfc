//! Plugging and unplugging on the PCI bus, as the guest sees it: the registers that the tables' methods
//! read and write, with the layout of QEMU's PIIX4 boards (`docs/specs/acpi_pci_hotplug.rst` there).
//!
//! | offset | name  | read | written |
//! |---|---|---|---|
//! | 0x00 | up | slots that were plugged since it was read last | |
//! | 0x04 | down | slots that the guest is asked to let go of | |
//! | 0x08 | eject | 0 | the guest has let go of these slots |
//! | 0x0c | removable | slots that devices can be taken out of | |
//! | 0x10 | bus | 0 | which bus the others are about: there is one |
//!
//! A bit stands for a slot. A device leaves only when the guest writes the eject register, or at a reset
//! of the machine, after which the guest has hold of nothing.

use std::ops::Range;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use super::{GeneralEvents, GpeBlock};
use crate::bus::PioDevice;
use crate::pci::Address;
use crate::reset::{ResetHook, Resetting, settled};

/// Takes out what is in a slot.
pub trait Ejector: Send + Sync {
    /// Has what is in the slot answer nowhere any more, and its end begin. Empty slots stay empty. Any
    /// thread; never waits.
    fn eject(&self, slot: u8);

    /// Ready when all that was ejected has come to its end: none of it touches the guest's memory any more.
    fn ejected(&self) -> Resetting;
}

/// The registers.
const UP: u16 = 0x00;
const DOWN: u16 = 0x04;
const EJECT: u16 = 0x08;
const REMOVABLE: u16 = 0x0c;
/// The bits of an offset that say which byte of a register it is.
const LANES: u16 = 3;

#[derive(Default)]
struct Slots {
    up: u32,
    down: u32,
}

/// The registers, and what the operator asks of the guest through them.
pub struct PciHotplug {
    slots: Mutex<Slots>,
    gpe: Arc<GpeBlock>,
    ejector: OnceLock<Weak<dyn Ejector>>,
}

impl PciHotplug {
    /// First port of the registers.
    pub const BASE: u16 = 0xae00;
    /// Bytes of the registers.
    pub const LENGTH: u8 = 0x14;
    /// Last port of the registers.
    pub const LAST: u16 = Self::BASE + Self::LENGTH as u16 - 1;
    /// Where the eject register is.
    pub const EJECT: u16 = Self::BASE + EJECT;
    /// Slots that a device can be plugged into: all but those of the bridges.
    pub const SLOTS: Range<u8> = 2..Address::DEVICES;

    /// Registers whose changes are told by `gpe`.
    #[must_use]
    pub fn new(gpe: Arc<GpeBlock>) -> Arc<Self> {
        Arc::new(Self {
            slots: Mutex::default(),
            gpe,
            ejector: OnceLock::new(),
        })
    }

    /// Says who takes devices out. Once, before the guest runs.
    pub fn connect(&self, ejector: Weak<dyn Ejector>) {
        // There is one.
        let _ = self.ejector.set(ejector);
    }

    /// Tells the guest that something was plugged in. Any thread.
    pub fn plugged(&self, slot: u8) {
        self.slots.lock().up |= bit(slot);
        self.gpe.raise(GeneralEvents::PCI_HOTPLUG);
    }

    /// Asks the guest to let go of what is in a slot; asked again, it is told again. Any thread.
    pub fn request_unplug(&self, slot: u8) {
        self.slots.lock().down |= bit(slot);
        self.gpe.raise(GeneralEvents::PCI_HOTPLUG);
    }

    fn read_register(&self, register: u16) -> u32 {
        let mut slots = self.slots.lock();
        match register {
            UP => std::mem::take(&mut slots.up),
            DOWN => slots.down,
            REMOVABLE => Self::SLOTS.fold(0, |mask, slot| mask | bit(slot)),
            _ => 0,
        }
    }

    fn ejector(&self) -> Option<Arc<dyn Ejector>> {
        self.ejector.get().and_then(Weak::upgrade)
    }

    fn eject(&self, ejected: u32) {
        {
            let mut slots = self.slots.lock();
            slots.up &= !ejected;
            slots.down &= !ejected;
        }
        if let Some(ejector) = self.ejector() {
            Self::SLOTS
                .filter(|slot| ejected & bit(*slot) != 0)
                .for_each(|slot| ejector.eject(slot));
        }
    }
}

const fn bit(slot: u8) -> u32 {
    // Slots are numbered with 5 bits.
    1 << (slot % Address::DEVICES)
}

impl PioDevice for PciHotplug {
    fn read(&self, port: u16, data: &mut [u8]) {
        let offset = port.saturating_sub(Self::BASE);
        // Reading a part of a register is reading it.
        let register = self.read_register(offset & !LANES).to_le_bytes();
        data.fill(0);
        let lane = usize::from(offset & LANES);
        for (to, from) in data.iter_mut().zip(register.iter().skip(lane)) {
            *to = *from;
        }
    }

    fn write(&self, port: u16, data: &[u8]) {
        let offset = port.saturating_sub(Self::BASE);
        if offset & !LANES != EJECT {
            return;
        }
        let mut written = [0; 4];
        let lane = usize::from(offset & LANES);
        for (to, from) in written.iter_mut().skip(lane).zip(data) {
            *to = *from;
        }
        self.eject(u32::from_le_bytes(written));
    }
}

impl ResetHook for PciHotplug {
    /// Takes out what the guest was asked to let go of, and waits until all that was taken out has ended.
    fn reset(self: Arc<Self>) -> Resetting {
        let pending = {
            let mut slots = self.slots.lock();
            // A guest that begins anew finds what there is by itself.
            slots.up = 0;
            slots.down
        };
        self.eject(pending);
        self.ejector()
            .map_or_else(settled, |ejector| ejector.ejected())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::legacy::testing::Line;

    /// Remembers what it was to take out, and does not come to its end by itself.
    #[derive(Default)]
    struct Hand(Mutex<Vec<u8>>, Arc<AtomicBool>);

    impl Ejector for Hand {
        fn eject(&self, slot: u8) {
            self.0.lock().push(slot);
        }

        fn ejected(&self) -> Resetting {
            let ended = Arc::clone(&self.1);
            let poll = move |_: &mut Context<'_>| match ended.load(Ordering::Relaxed) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            };
            Box::pin(std::future::poll_fn(poll))
        }
    }

    struct Rig {
        block: Arc<PciHotplug>,
        gpe: Arc<GpeBlock>,
        sci: Arc<Line>,
        hand: Arc<Hand>,
    }

    fn rig() -> Rig {
        let sci = Arc::new(Line::default());
        let gpe = Arc::new(GpeBlock::new(sci.clone()));
        gpe.write(GpeBlock::BASE + 2, &[0x02]);
        let block = PciHotplug::new(Arc::clone(&gpe));
        let hand = Arc::new(Hand::default());
        let ejector: Weak<Hand> = Arc::downgrade(&hand);
        block.connect(ejector);
        Rig {
            block,
            gpe,
            sci,
            hand,
        }
    }

    fn read(block: &PciHotplug, offset: u16) -> u32 {
        let mut data = [0; 4];
        block.read(PciHotplug::BASE + offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_guest_hears_once_of_what_was_plugged_in() {
        let rig = rig();
        rig.block.plugged(5);
        rig.block.plugged(31);
        assert!(rig.sci.level());
        assert_eq!(read(&rig.block, 0), 1 << 5 | 1 << 31);
        assert_eq!(read(&rig.block, 0), 0);
        assert_eq!(read(&rig.block, 0xc), !0b11);
    }

    #[test]
    fn nothing_is_taken_out_before_the_guest_ejects_it() {
        let rig = rig();
        rig.block.request_unplug(6);
        rig.gpe.write(GpeBlock::BASE, &[0x02]);
        assert!(!rig.sci.level());
        rig.block.request_unplug(6);
        assert!(rig.sci.level(), "it is told again");
        assert_eq!(read(&rig.block, 4), 1 << 6);
        assert_eq!(read(&rig.block, 4), 1 << 6, "until it is done");
        assert!(rig.hand.0.lock().is_empty());
        rig.block
            .write(PciHotplug::EJECT, &(1_u32 << 6).to_le_bytes());
        assert_eq!(*rig.hand.0.lock(), [6]);
        assert_eq!(read(&rig.block, 4), 0);
    }

    #[test]
    fn bridges_stay_and_a_part_of_the_register_is_its_slots() {
        let rig = rig();
        rig.block.write(PciHotplug::EJECT, &0b111_u32.to_le_bytes());
        rig.block.write(PciHotplug::EJECT + 1, &[0x81]);
        rig.block.write(PciHotplug::BASE, &u32::MAX.to_le_bytes());
        rig.block
            .write(PciHotplug::LAST - 3, &u32::MAX.to_le_bytes());
        assert_eq!(*rig.hand.0.lock(), [2, 8, 15]);
    }

    #[test]
    fn a_reset_completes_what_the_guest_was_asked_for_and_waits() {
        let rig = rig();
        rig.block.plugged(4);
        rig.block.request_unplug(7);
        let mut resetting = Arc::clone(&rig.block).reset();
        assert_eq!(*rig.hand.0.lock(), [7]);
        assert_eq!((read(&rig.block, 0), read(&rig.block, 4)), (0, 0));
        let mut context = Context::from_waker(Waker::noop());
        assert!(resetting.as_mut().poll(&mut context).is_pending());
        rig.hand.1.store(true, Ordering::Relaxed);
        assert!(resetting.as_mut().poll(&mut context).is_ready());
    }
}
