//! The machine's PCI bus: configuration mechanism #1 and the windows of the BARs.
//!
//! [`PciBus`] is a port device (0xcf8 to 0xcff) for vCPU threads and a [`ResetHook`] for the
//! machine. Lookups of functions take no lock; moving a BAR, adding a function and taking one away
//! take a lock that guards the address spaces' tables, never held over I/O. A function may therefore
//! still be called once, on another thread, shortly after it was taken away.
//!
//! Source: PCI Local Bus Specification 3.0, section 3.2.2.3.2.

mod window;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use self::window::BarWindow;
use super::{Address, BarAllocator, BarIndex, BarKind, ConfigChange, PciError, PciFunction};
use crate::bus::{BusError, FLOATING, MmioBus, PioBus, PioDevice};
use crate::clock::Clock;
use crate::exits::ExitTimes;
use crate::reset::{ResetHook, Resetting};

/// The ports of configuration mechanism #1.
pub const CONFIG_PORTS: RangeInclusive<u16> = CONFIG_ADDRESS..=0xcff;
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

/// The bits of CONFIG_ADDRESS that exist: enable, bus, device, function, register. The two lowest, which
/// are zero on the bus, choose a byte together with the data port, as in QEMU: clients of qtest address bytes
/// by them alone.
const ADDRESS_MASK: u32 = 0x80ff_ffff;
/// CONFIG_ADDRESS: the data ports are configuration accesses.
const ADDRESS_ENABLE: u32 = 1 << 31;

const SLOTS: usize = Address::DEVICES as usize * Address::FUNCTIONS as usize;

/// A function on the bus and what the machine did with its BARs.
struct Slot {
    address: Address,
    function: Arc<dyn PciFunction>,
    /// Windows in force.
    placed: Mutex<[Option<Window>; BarIndex::COUNT]>,
    /// How long writes to its windows take.
    exits: Arc<ExitTimes>,
}

/// A window in one of the address spaces.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Window {
    Io(RangeInclusive<u16>),
    Memory(RangeInclusive<u64>),
}

/// The root bus.
pub struct PciBus {
    address: AtomicU32,
    slots: [ArcSwapOption<Slot>; SLOTS],
    pio: Arc<PioBus>,
    mmio: Arc<MmioBus>,
    clock: Arc<dyn Clock>,
    /// The windows that BARs are assigned from, as they are when all is free; none: they are the guest's to
    /// assign. Held to move windows, and to change what is on the bus.
    moving: Mutex<Option<BarAllocator>>,
}

impl PciBus {
    /// An empty bus whose functions' BARs go into the given address spaces; `clock` tells how long
    /// writes to them take. Whoever makes it puts it at its ports, [`CONFIG_PORTS`].
    pub fn new(pio: Arc<PioBus>, mmio: Arc<MmioBus>, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            address: AtomicU32::new(0),
            slots: std::array::from_fn(|_| ArcSwapOption::empty()),
            pio,
            mmio,
            clock,
            moving: Mutex::new(None),
        })
    }

    /// Adds a function, at machine build or while the guest runs. Returns what times writes to its
    /// BARs, for a function that answers elsewhere too. Any thread.
    ///
    /// # Errors
    /// [`PciError::SlotTaken`].
    pub fn add(
        &self,
        address: Address,
        function: Arc<dyn PciFunction>,
    ) -> Result<Arc<ExitTimes>, PciError> {
        let exits = Arc::new(ExitTimes::new(Arc::clone(&self.clock)));
        let slot = Slot {
            address,
            function,
            placed: Mutex::default(),
            exits: Arc::clone(&exits),
        };
        let _moving = self.moving.lock();
        let place = &self.slots[slot_index(address)];
        if place.load().is_some() {
            return Err(PciError::SlotTaken(address));
        }
        place.store(Some(Arc::new(slot)));
        Ok(exits)
    }

    /// Takes a function off the bus: when this returns it answers nowhere any more, and its BARs and
    /// doorbells are gone. What it has in flight is the caller's to end, by
    /// [`PciFunction::retire`]. None if there is no function. Never waits; any thread.
    pub fn remove(&self, address: Address) -> Option<Arc<dyn PciFunction>> {
        let slot = {
            let _moving = self.moving.lock();
            let slot = self.slots[slot_index(address)].swap(None)?;
            for bar in BarIndex::ALL {
                self.take_away(&slot, bar, None);
            }
            slot
        };
        // A BAR that lay under one of its windows answers now.
        self.move_windows();
        Some(Arc::clone(&slot.function))
    }

    /// The first device number at or above `from` without a function 0.
    pub fn free_device(&self, from: u8) -> Result<u8, PciError> {
        (from..Address::DEVICES)
            .find(|&device| self.present(Address::new(device, 0)).is_none())
            .ok_or(PciError::BusFull)
    }

    /// Gives every BAR an address, as firmware would, now and at each reset; decoding stays for the
    /// guest to enable. `allocator` has all of its windows free.
    pub fn assign_bars(&self, allocator: BarAllocator) -> Result<(), PciError> {
        let mut moving = self.moving.lock();
        self.place_bars(allocator.clone())?;
        *moving = Some(allocator);
        Ok(())
    }

    fn place_bars(&self, mut allocator: BarAllocator) -> Result<(), PciError> {
        for slot in self.functions() {
            let config = slot.function.config();
            for bar in BarIndex::ALL {
                if let Some((kind, size)) = config.bar(bar) {
                    config.place_bar(bar, allocator.allocate(kind, size)?);
                }
            }
        }
        Ok(())
    }

    /// Ends all functions for good, see [`PciFunction::retire`]. Main loop's thread.
    pub async fn retire(&self) {
        for slot in self.functions() {
            slot.function.retire().await;
        }
    }

    /// What is on the bus now.
    fn functions(&self) -> Vec<Arc<Slot>> {
        self.slots
            .iter()
            .filter_map(ArcSwapOption::load_full)
            .collect()
    }

    /// How long writes to the functions' BARs have taken, by function, and to what else is timed
    /// with them. Any thread.
    pub fn exit_times(&self) -> Vec<(Address, Arc<ExitTimes>)> {
        let slots = self.functions().into_iter();
        slots
            .map(|slot| (slot.address, Arc::clone(&slot.exits)))
            .collect()
    }

    /// A configuration read: `data` is all ones where no function is. Any thread.
    pub fn config_read(&self, address: Address, offset: usize, data: &mut [u8]) {
        match self.present(address) {
            Some(slot) => slot.function.read_config(offset, data),
            None => data.fill(FLOATING),
        }
    }

    /// A configuration write, followed by the moves of BARs that it implies. Any thread.
    pub fn config_write(&self, address: Address, offset: usize, data: &[u8]) {
        let Some(slot) = self.present(address) else {
            return;
        };
        let change = slot.function.write_config(offset, data);
        if change.contains(ConfigChange::BARS) {
            self.move_windows();
        }
    }

    /// The slot of an existing function.
    fn present(&self, address: Address) -> Option<Arc<Slot>> {
        self.slots[slot_index(address)].load_full()
    }

    /// Makes the windows follow the BARs of all functions: first what moved is taken away, then
    /// what is missing is put up. A BAR that overlaps another claim stays silent until the other
    /// goes, and is tried again every time.
    fn move_windows(&self) {
        let _moving = self.moving.lock();
        let functions = self.functions();
        for slot in &functions {
            for bar in BarIndex::ALL {
                let wanted = wanted_window(slot.function.as_ref(), bar);
                self.take_away(slot, bar, wanted.as_ref());
            }
        }
        for slot in &functions {
            for bar in BarIndex::ALL {
                self.put_up(slot, bar);
            }
        }
    }

    /// Takes a BAR's window away unless it is the one that is `wanted`.
    fn take_away(&self, slot: &Slot, bar: BarIndex, wanted: Option<&Window>) {
        let mut placed = slot.placed.lock();
        let Some(window) = placed[bar.index()].take_if(|window| wanted != Some(&*window)) else {
            return;
        };
        let removed = match window {
            Window::Io(ports) => self.pio.remove(ports).err(),
            Window::Memory(range) => self.mmio.remove(range).err(),
        };
        if let Some(error) = removed {
            tracing::error!(function = %slot.address, bar = bar.index(), %error, "a BAR was lost");
        }
        slot.function.bar_placed(bar, None);
    }

    fn put_up(&self, slot: &Slot, bar: BarIndex) {
        let Some(window) = wanted_window(slot.function.as_ref(), bar) else {
            return;
        };
        let mut placed = slot.placed.lock();
        if placed[bar.index()].is_some() {
            return;
        }
        match self.insert(slot, bar, &window) {
            Ok(base) => {
                placed[bar.index()] = Some(window);
                slot.function.bar_placed(bar, Some(base));
            }
            Err(error) => {
                let (function, bar) = (slot.address, bar.index());
                // No warning: a guest could fill the host's log with it.
                tracing::debug!(%function, bar, %error, "a BAR cannot answer");
            }
        }
    }

    fn insert(&self, slot: &Slot, bar: BarIndex, window: &Window) -> Result<u64, BusError> {
        let function = Arc::clone(&slot.function);
        match window {
            Window::Io(ports) => {
                let base = u64::from(*ports.start());
                let device = Arc::new(BarWindow {
                    function,
                    bar,
                    exits: Arc::clone(&slot.exits),
                    range: range_u64(ports),
                });
                self.pio.insert(ports.clone(), device).map(|()| base)
            }
            Window::Memory(range) => {
                let device = Arc::new(BarWindow {
                    function,
                    bar,
                    exits: Arc::clone(&slot.exits),
                    range: range.clone(),
                });
                self.mmio
                    .insert(range.clone(), device)
                    .map(|()| *range.start())
            }
        }
    }

    /// What the data ports address now; `None` when configuration accesses are off or go to another
    /// bus.
    fn selected(&self) -> Option<(Address, usize)> {
        let selector = self.address.load(Ordering::Acquire);
        let [register, device_function, bus, _] = selector.to_le_bytes();
        let address = Address::new(device_function >> 3, device_function);
        (selector & ADDRESS_ENABLE != 0 && bus == 0).then_some((address, usize::from(register)))
    }
}

fn slot_index(address: Address) -> usize {
    usize::from(address.device()) * usize::from(Address::FUNCTIONS)
        + usize::from(address.function())
}

fn range_u64(ports: &RangeInclusive<u16>) -> RangeInclusive<u64> {
    u64::from(*ports.start())..=u64::from(*ports.end())
}

/// Where a BAR says it answers.
fn wanted_window(function: &dyn PciFunction, bar: BarIndex) -> Option<Window> {
    let config = function.config();
    let (kind, size) = config.bar(bar)?;
    let first = config.bar_place(bar)?;
    let last = first.checked_add(size - 1)?;
    Some(match kind {
        BarKind::Io => Window::Io(u16::try_from(first).ok()?..=u16::try_from(last).ok()?),
        BarKind::Memory32 | BarKind::Memory64 => Window::Memory(first..=last),
    })
}

/// The part of an access to `place` that stays within its aligned doubleword: offset in it and
/// length.
fn within_doubleword(place: usize, len: usize) -> (usize, usize) {
    let lane = place & LANES;
    (lane, len.min(LANES + 1 - lane))
}

/// The bits of a place that say where in its doubleword it is.
const LANES: usize = 3;

impl PciBus {
    /// Where an access of `len` bytes to a data port goes, and how many of them.
    fn target(&self, port: u16, len: usize) -> Option<(Address, usize, usize)> {
        let (address, register) = self.selected()?;
        let offset = register | (usize::from(port) & LANES);
        let (_, len) = within_doubleword(offset, len);
        Some((address, offset, len))
    }
}

impl PioDevice for PciBus {
    fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(FLOATING);
        if port < CONFIG_DATA {
            let (lane, len) = within_doubleword(port.into(), data.len());
            let bytes = self.address.load(Ordering::Acquire).to_le_bytes();
            data[..len].copy_from_slice(&bytes[lane..lane + len]);
        } else if let Some((address, offset, len)) = self.target(port, data.len()) {
            self.config_read(address, offset, &mut data[..len]);
        }
    }

    fn write(&self, port: u16, data: &[u8]) {
        if port < CONFIG_DATA {
            // CONFIG_ADDRESS is a doubleword register: narrower writes go to whatever ports lie
            // under it, none here.
            if let (CONFIG_ADDRESS, Ok(bytes)) = (port, data.try_into()) {
                self.address
                    .store(u32::from_le_bytes(bytes) & ADDRESS_MASK, Ordering::Release);
            }
        } else if let Some((address, offset, len)) = self.target(port, data.len()) {
            self.config_write(address, offset, &data[..len]);
        }
    }
}

impl ResetHook for PciBus {
    /// Resets the functions one after the other, then the configuration spaces and CONFIG_ADDRESS,
    /// and assigns the BARs as at machine build.
    fn reset(self: Arc<Self>) -> Resetting {
        Box::pin(async move {
            for slot in self.functions() {
                slot.function.reset().await;
            }
            {
                let moving = self.moving.lock();
                for slot in self.functions() {
                    slot.function.config().reset();
                }
                if let Some(Err(error)) = moving.clone().map(|windows| self.place_bars(windows)) {
                    tracing::warn!(%error, "a BAR is left for the guest to assign");
                }
            }
            self.address.store(0, Ordering::Release);
            self.move_windows();
        })
    }
}

#[cfg(test)]
mod tests;
