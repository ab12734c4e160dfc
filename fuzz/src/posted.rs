//! Stores that a host has queued: they come to the IDE controller before anything else looks at it.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use sluice_devices::bus::PioDevice as _;
use sluice_devices::ide::IdeController;
use sluice_devices::pci::{BarIndex, PciFunction as _};
use sluice_devices::posted::PostedWrites;

use crate::ports::BM_BASE;

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Queue {
    zones: Mutex<Vec<RangeInclusive<u16>>>,
    stores: Mutex<VecDeque<(u16, u8)>>,
    controller: OnceLock<Weak<IdeController>>,
}

impl Queue {
    /// What is flushed goes to `controller`.
    pub(crate) fn connect(&self, controller: &Arc<IdeController>) {
        self.controller.set(Arc::downgrade(controller)).unwrap();
    }

    /// A port of those whose stores may be queued.
    pub(crate) fn port(&self, choice: u8) -> u16 {
        let zones = self.zones.lock().unwrap();
        let ports: Vec<u16> = zones.iter().cloned().flatten().collect();
        ports[usize::from(choice) % ports.len()]
    }

    /// A store of the guest's.
    pub(crate) fn store(&self, port: u16, byte: u8) {
        self.stores.lock().unwrap().push_back((port, byte));
    }
}

impl PostedWrites for Queue {
    fn attach(&self, ports: RangeInclusive<u16>) {
        self.zones.lock().unwrap().push(ports);
    }

    fn detach(&self, ports: RangeInclusive<u16>) {
        self.zones.lock().unwrap().retain(|zone| *zone != ports);
    }

    fn flush(&self) {
        let stores = std::mem::take(&mut *self.stores.lock().unwrap());
        let controller = self.controller.get().and_then(Weak::upgrade);
        for (port, byte) in stores {
            let controller = controller.as_ref().unwrap();
            match port.checked_sub(BM_BASE) {
                Some(at) => controller.bar_write(BarIndex::BAR4, at.into(), &[byte]),
                None => controller.write(port, &[byte]),
            }
        }
    }
}
