//! The two address spaces a guest's CPU reaches devices through: I/O ports and memory-mapped
//! registers.
//!
//! The machine builder puts devices on the buses; PCI functions move their BARs while the guest
//! runs; vCPU threads (or the qtest server) look devices up on every exit. A lookup takes no lock:
//! it reads an immutable snapshot that writers replace. A device therefore may still be called
//! once, on another thread, shortly after [`PioBus::remove`] returned; devices tolerate that.
//!
//! An access belongs to the device that claims its *first* address. Widths are the device's
//! business, because hardware differs: a 4 byte read of an IDE data port is two words, a 4 byte
//! read of 0xcf8 is one register.

use std::fmt::Debug;
use std::ops::RangeInclusive;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use thiserror::Error;

/// What an access returns when nobody answers: a floating bus reads all ones.
pub const FLOATING: u8 = 0xff;

/// A device in the I/O port space. Called on vCPU threads; must not wait for I/O.
pub trait PioDevice: Send + Sync {
    /// Reads `data.len()` (1, 2 or 4) bytes at the absolute `port` into `data`, little endian.
    fn read(&self, port: u16, data: &mut [u8]);

    /// Writes `data.len()` (1, 2 or 4) bytes, little endian, to the absolute `port`.
    fn write(&self, port: u16, data: &[u8]);

    /// Serves a string input (`rep ins`): `data` is a whole number of accesses of `width` bytes
    /// to the same port. Worth overriding where one lock can cover all of them.
    fn read_string(&self, port: u16, width: usize, data: &mut [u8]) {
        for access in data.chunks_exact_mut(width.max(1)) {
            self.read(port, access);
        }
    }

    /// Serves a string output (`rep outs`), the counterpart of [`PioDevice::read_string`].
    fn write_string(&self, port: u16, width: usize, data: &[u8]) {
        for access in data.chunks_exact(width.max(1)) {
            self.write(port, access);
        }
    }
}

/// A device with memory-mapped registers. Called on vCPU threads; must not wait for I/O.
pub trait MmioDevice: Send + Sync {
    /// Reads `data.len()` (1 to 8) bytes at the absolute guest-physical `address`.
    fn read(&self, address: u64, data: &mut [u8]);

    /// Writes `data.len()` (1 to 8) bytes to the absolute guest-physical `address`.
    fn write(&self, address: u64, data: &[u8]);
}

/// Why a range could not be put on, or taken off, a bus.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// The range has no address in it.
    #[error("the address range {first:#x}..={last:#x} is empty")]
    Empty {
        /// First address asked for.
        first: u64,
        /// Last address asked for.
        last: u64,
    },
    /// Another device claims part of the range.
    #[error(
        "the addresses {first:#x}..={last:#x} overlap {other_first:#x}..={other_last:#x}, \
         which another device claims"
    )]
    Overlap {
        /// First address asked for.
        first: u64,
        /// Last address asked for.
        last: u64,
        /// First address of the device that is there.
        other_first: u64,
        /// Last address of the device that is there.
        other_last: u64,
    },
    /// Nobody claims exactly this range.
    #[error("no device claims the addresses {first:#x}..={last:#x}")]
    NotFound {
        /// First address asked for.
        first: u64,
        /// Last address asked for.
        last: u64,
    },
}

/// An address of either space.
trait Address: Copy + Ord + Into<u64> + Debug + Send + Sync + 'static {}
impl Address for u16 {}
impl Address for u64 {}

struct Entry<A, D: ?Sized> {
    first: A,
    last: A,
    device: Arc<D>,
}

impl<A: Copy, D: ?Sized> Clone for Entry<A, D> {
    fn clone(&self) -> Self {
        Self {
            first: self.first,
            last: self.last,
            device: Arc::clone(&self.device),
        }
    }
}

/// The sorted table under both buses.
struct Table<A, D: ?Sized> {
    /// Sorted by first address, without overlaps.
    entries: ArcSwap<Vec<Entry<A, D>>>,
    /// Held by whoever replaces the snapshot.
    change: Mutex<()>,
}

impl<A: Address, D: ?Sized> Table<A, D> {
    fn new() -> Self {
        Self {
            entries: ArcSwap::from_pointee(Vec::new()),
            change: Mutex::new(()),
        }
    }

    fn insert(&self, range: &RangeInclusive<A>, device: Arc<D>) -> Result<(), BusError> {
        let (first, last) = (*range.start(), *range.end());
        if range.is_empty() {
            return Err(BusError::Empty {
                first: first.into(),
                last: last.into(),
            });
        }
        let _change = self.change.lock();
        let mut entries = Vec::clone(&self.entries.load());
        let at = entries.partition_point(|entry| entry.last < first);
        if let Some(other) = entries.get(at).filter(|entry| entry.first <= last) {
            return Err(BusError::Overlap {
                first: first.into(),
                last: last.into(),
                other_first: other.first.into(),
                other_last: other.last.into(),
            });
        }
        entries.insert(
            at,
            Entry {
                first,
                last,
                device,
            },
        );
        self.entries.store(Arc::new(entries));
        Ok(())
    }

    fn remove(&self, range: &RangeInclusive<A>) -> Result<Arc<D>, BusError> {
        let (first, last) = (*range.start(), *range.end());
        let _change = self.change.lock();
        let mut entries = Vec::clone(&self.entries.load());
        let Some(at) = entries
            .iter()
            .position(|entry| entry.first == first && entry.last == last)
        else {
            return Err(BusError::NotFound {
                first: first.into(),
                last: last.into(),
            });
        };
        let removed = entries.remove(at);
        self.entries.store(Arc::new(entries));
        Ok(removed.device)
    }

    /// Runs `access` on the device that claims `address`; false when nobody does.
    fn with(&self, address: A, access: impl FnOnce(&D)) -> bool {
        let entries = self.entries.load();
        let at = entries.partition_point(|entry| entry.last < address);
        match entries.get(at) {
            Some(entry) if entry.first <= address => {
                access(&entry.device);
                true
            }
            _ => false,
        }
    }
}

/// The I/O port space of a machine. Any thread.
pub struct PioBus(Table<u16, dyn PioDevice>);

impl PioBus {
    /// An empty port space.
    #[must_use]
    pub fn new() -> Self {
        Self(Table::new())
    }

    /// Gives the ports of `range` to `device`.
    ///
    /// # Errors
    /// [`BusError::Empty`], or [`BusError::Overlap`] when a port is taken.
    pub fn insert(
        &self,
        range: RangeInclusive<u16>,
        device: Arc<dyn PioDevice>,
    ) -> Result<(), BusError> {
        self.0.insert(&range, device)
    }

    /// Takes back exactly the `range` of an earlier [`PioBus::insert`].
    ///
    /// # Errors
    /// [`BusError::NotFound`] when no device was inserted with this range.
    pub fn remove(&self, range: RangeInclusive<u16>) -> Result<Arc<dyn PioDevice>, BusError> {
        self.0.remove(&range)
    }

    /// Reads a port. Nobody there: returns false and `data` is all ones.
    pub fn read(&self, port: u16, data: &mut [u8]) -> bool {
        let width = data.len();
        self.read_string(port, width, data)
    }

    /// Writes a port. Nobody there: returns false.
    pub fn write(&self, port: u16, data: &[u8]) -> bool {
        self.0.with(port, |device| device.write(port, data))
    }

    /// Reads a port several times, `width` bytes each, as `rep ins` does.
    pub fn read_string(&self, port: u16, width: usize, data: &mut [u8]) -> bool {
        data.fill(FLOATING);
        self.0.with(port, |device| {
            if data.len() == width {
                device.read(port, data);
            } else {
                device.read_string(port, width, data);
            }
        })
    }

    /// Writes a port several times, `width` bytes each, as `rep outs` does.
    pub fn write_string(&self, port: u16, width: usize, data: &[u8]) -> bool {
        self.0.with(port, |device| {
            if data.len() == width {
                device.write(port, data);
            } else {
                device.write_string(port, width, data);
            }
        })
    }
}

impl Default for PioBus {
    fn default() -> Self {
        Self::new()
    }
}

/// The memory-mapped register space of a machine (guest-physical addresses that are not RAM).
/// Any thread.
pub struct MmioBus(Table<u64, dyn MmioDevice>);

impl MmioBus {
    /// An empty register space.
    #[must_use]
    pub fn new() -> Self {
        Self(Table::new())
    }

    /// Gives the addresses of `range` to `device`.
    ///
    /// # Errors
    /// [`BusError::Empty`], or [`BusError::Overlap`] when an address is taken.
    pub fn insert(
        &self,
        range: RangeInclusive<u64>,
        device: Arc<dyn MmioDevice>,
    ) -> Result<(), BusError> {
        self.0.insert(&range, device)
    }

    /// Takes back exactly the `range` of an earlier [`MmioBus::insert`].
    ///
    /// # Errors
    /// [`BusError::NotFound`] when no device was inserted with this range.
    pub fn remove(&self, range: RangeInclusive<u64>) -> Result<Arc<dyn MmioDevice>, BusError> {
        self.0.remove(&range)
    }

    /// Reads an address. Nobody there: returns false and `data` is all ones.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        data.fill(FLOATING);
        self.0.with(address, |device| device.read(address, data))
    }

    /// Writes an address. Nobody there: returns false.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        self.0.with(address, |device| device.write(address, data))
    }
}

impl Default for MmioBus {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with the low byte of the port and keeps what was written.
    #[derive(Default)]
    struct Echo(Mutex<Vec<(u16, Vec<u8>)>>);

    impl PioDevice for Echo {
        fn read(&self, port: u16, data: &mut [u8]) {
            data.fill(port.to_le_bytes()[0]);
        }

        fn write(&self, port: u16, data: &[u8]) {
            self.0.lock().push((port, data.to_vec()));
        }
    }

    #[test]
    fn access_reaches_the_owner_of_the_first_port() {
        let bus = PioBus::new();
        let (low, high) = (Arc::new(Echo::default()), Arc::new(Echo::default()));
        bus.insert(0x1f0..=0x1f7, low.clone()).unwrap();
        bus.insert(0x3f6..=0x3f6, high.clone()).unwrap();

        let mut data = [0; 2];
        assert!(bus.read(0x1f7, &mut data));
        assert_eq!(data, [0xf7; 2]);
        assert!(bus.write(0x3f6, &[4]));
        assert_eq!(*high.0.lock(), [(0x3f6, vec![4])]);
        assert!(low.0.lock().is_empty());
    }

    #[test]
    fn empty_space_reads_all_ones_and_says_so() {
        let bus = PioBus::new();
        bus.insert(0x10..=0x1f, Arc::new(Echo::default())).unwrap();
        for port in [0x0f, 0x20, 0xffff] {
            let mut data = [0; 4];
            assert!(!bus.read(port, &mut data));
            assert_eq!(data, [FLOATING; 4]);
            assert!(!bus.write(port, &[0]));
        }
    }

    #[test]
    fn ranges_may_touch_but_not_overlap() {
        let bus = PioBus::new();
        let echo = Arc::new(Echo::default());
        bus.insert(0x20..=0x2f, echo.clone()).unwrap();
        bus.insert(0x30..=0x30, echo.clone()).unwrap();
        bus.insert(0x1f..=0x1f, echo.clone()).unwrap();
        bus.insert(0xffff..=0xffff, echo.clone()).unwrap();
        for range in [0x10..=0x20, 0x2f..=0x40, 0x22..=0x23, 0x00..=0xfff] {
            let refused = bus.insert(range, echo.clone());
            assert!(
                matches!(refused, Err(BusError::Overlap { .. })),
                "{refused:?}"
            );
        }
        #[expect(
            clippy::reversed_empty_ranges,
            reason = "an empty range is what is tested"
        )]
        let empty = 5..=4;
        assert_eq!(
            bus.insert(empty, echo),
            Err(BusError::Empty { first: 5, last: 4 })
        );
    }

    #[test]
    fn removed_range_is_free_again() {
        let bus = PioBus::new();
        let echo = Arc::new(Echo::default());
        bus.insert(0xc000..=0xc00f, echo.clone()).unwrap();
        assert!(matches!(
            bus.remove(0xc000..=0xc00e),
            Err(BusError::NotFound { .. })
        ));
        assert!(bus.remove(0xc000..=0xc00f).is_ok());
        assert!(!bus.write(0xc000, &[0]));
        bus.insert(0xc008..=0xc017, echo).unwrap();
    }

    #[test]
    fn string_access_is_split_by_width() {
        let bus = PioBus::new();
        let echo = Arc::new(Echo::default());
        bus.insert(0x1f0..=0x1f0, echo.clone()).unwrap();
        assert!(bus.write_string(0x1f0, 2, &[1, 2, 3, 4]));
        assert_eq!(*echo.0.lock(), [(0x1f0, vec![1, 2]), (0x1f0, vec![3, 4])]);
        let mut data = [0; 6];
        assert!(bus.read_string(0x1f0, 2, &mut data));
        assert_eq!(data, [0xf0; 6]);
    }

    /// Keeps the last store.
    #[derive(Default)]
    struct Register(Mutex<Vec<u8>>);

    impl MmioDevice for Register {
        fn read(&self, address: u64, data: &mut [u8]) {
            data.copy_from_slice(&address.to_le_bytes()[..data.len()]);
        }

        fn write(&self, _address: u64, data: &[u8]) {
            *self.0.lock() = data.to_vec();
        }
    }

    #[test]
    fn memory_bus_covers_the_top_of_the_address_space() {
        let bus = MmioBus::new();
        let register = Arc::new(Register::default());
        bus.insert(u64::MAX - 0xfff..=u64::MAX, register.clone())
            .unwrap();
        let mut data = [0; 8];
        assert!(bus.read(u64::MAX, &mut data));
        assert_eq!(data, [0xff; 8]);
        assert!(bus.write(u64::MAX - 7, &[7; 8]));
        assert_eq!(*register.0.lock(), [7; 8]);
        assert!(!bus.read(0xfee0_0000, &mut data));
    }
}
