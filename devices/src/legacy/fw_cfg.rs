//! The firmware configuration interface of QEMU's PCs, by ports (docs/specs/fw_cfg.rst): what qtest's clients
//! read the size of memory from. No files, no DMA.

use parking_lot::Mutex;

use crate::bus::PioDevice;

/// Which item is read: the keys that are known here.
mod key {
    pub const SIGNATURE: u16 = 0x00;
    pub const ID: u16 = 0x01;
    pub const UUID: u16 = 0x02;
    pub const RAM_SIZE: u16 = 0x03;
    pub const CPUS: u16 = 0x05;
    pub const MAX_CPUS: u16 = 0x0f;
    pub const FILE_DIRECTORY: u16 = 0x19;
    /// It says whether the item is to be written, which none can be.
    pub const WRITE: u16 = 0x4000;
}

const SIGNATURE: &[u8; 4] = b"QEMU";
/// What the device can do (bit 0: the ports; bit 1 would be DMA).
const FEATURES: u32 = 1;
/// Number of files; big endian, unlike the rest.
const FILES: u32 = 0;

/// The selected item and how far it was read.
#[derive(Debug, Default)]
struct State {
    key: u16,
    offset: usize,
}

/// The device. Read-only; any thread.
#[derive(Debug)]
pub struct FwCfg {
    memory: u64,
    cpus: u16,
    uuid: [u8; 16],
    state: Mutex<State>,
}

impl FwCfg {
    /// The port that an item is selected with.
    pub const SELECTOR: u16 = 0x510;
    /// The port that its bytes are read from, one after the other.
    pub const DATA: u16 = 0x511;

    /// For a machine with so many bytes of memory, and CPUs, and this UUID; zero for none.
    #[must_use]
    pub fn new(memory: u64, cpus: u8, uuid: u128) -> Self {
        Self {
            memory,
            cpus: cpus.into(),
            uuid: uuid.to_be_bytes(),
            state: Mutex::default(),
        }
    }

    /// The byte at `offset` of an item; zero behind its end.
    fn byte(&self, key: u16, offset: usize) -> u8 {
        let at = |bytes: &[u8]| bytes.get(offset).copied().unwrap_or(0);
        match key & !key::WRITE {
            key::SIGNATURE => at(SIGNATURE),
            key::ID => at(&FEATURES.to_le_bytes()),
            key::UUID => at(&self.uuid),
            key::RAM_SIZE => at(&self.memory.to_le_bytes()),
            key::CPUS | key::MAX_CPUS => at(&self.cpus.to_le_bytes()),
            key::FILE_DIRECTORY => at(&FILES.to_be_bytes()),
            _ => 0,
        }
    }
}

impl PioDevice for FwCfg {
    fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0);
        if port == Self::DATA
            && let Some(first) = data.first_mut()
        {
            let mut state = self.state.lock();
            *first = self.byte(state.key, state.offset);
            state.offset = state.offset.saturating_add(1);
        }
    }

    fn write(&self, port: u16, data: &[u8]) {
        if port == Self::SELECTOR
            && let Ok(key) = data.try_into().map(u16::from_le_bytes)
        {
            *self.state.lock() = State { key, offset: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item<const N: usize>(device: &FwCfg, key: u16) -> [u8; N] {
        device.write(FwCfg::SELECTOR, &key.to_le_bytes());
        std::array::from_fn(|_| {
            let mut byte = [0];
            device.read(FwCfg::DATA, &mut byte);
            byte[0]
        })
    }

    #[test]
    fn items_are_read_byte_by_byte_from_their_beginning() {
        let device = FwCfg::new(0x1_2345_0000, 3, 0x11 << 120 | 0x22);
        assert_eq!(&item::<4>(&device, key::SIGNATURE), SIGNATURE);
        assert_eq!(
            u64::from_le_bytes(item(&device, key::RAM_SIZE)),
            0x1_2345_0000
        );
        assert_eq!(
            u64::from_le_bytes(item(&device, key::RAM_SIZE)),
            0x1_2345_0000
        );
        assert_eq!(item(&device, key::CPUS), [3, 0, 0]);
        let uuid: [u8; 17] = item(&device, key::UUID);
        assert_eq!((uuid[0], uuid[15], uuid[16]), (0x11, 0x22, 0));
        assert_eq!(item(&device, 0x8003), [0]);
        // A byte is no key, and a key is not read back.
        device.write(FwCfg::SELECTOR, &[0]);
        let mut selector = [0xff; 2];
        device.read(FwCfg::SELECTOR, &mut selector);
        assert_eq!(selector, [0, 0]);
    }
}
