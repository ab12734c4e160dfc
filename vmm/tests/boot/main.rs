//! What guest memory holds when a bzImage is about to be entered (Linux,
//! Documentation/arch/x86/boot.rst and zero-page.rst), byte by byte and without KVM.
#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole crate is a test"
)]

use std::path::{Path, PathBuf};

use sluice_vmm::boot::{BootError, BootImages, Entry};
use sluice_vmm::machine::config::BootConfig;
use sluice_vmm::memory::{GuestRam, MemoryLayout};
use vm_memory::{ByteValued, Bytes, GuestAddress};

const MIB: u64 = 1 << 20;
const KERNEL: u64 = MIB;
const INIT_SIZE: u32 = 3 << 20;
const RSDP: GuestAddress = GuestAddress(0xe_0000);
/// Bytes of boot sector and setup in front of the protected-mode part.
const SETUP: usize = 1024;

/// Offsets of fields in the setup header, and in the zero page where they are the same.
mod field {
    pub(crate) const ACPI_RSDP: u64 = 0x70;
    pub(crate) const E820_ENTRIES: u64 = 0x1e8;
    pub(crate) const SETUP_SECTORS: usize = 0x1f1;
    pub(crate) const SYSTEM_SIZE: usize = 0x1f4;
    pub(crate) const MAGIC: usize = 0x202;
    pub(crate) const VERSION: usize = 0x206;
    pub(crate) const LOADER: u64 = 0x210;
    pub(crate) const LOAD_FLAGS: usize = 0x211;
    pub(crate) const CODE32_START: usize = 0x214;
    pub(crate) const RAMDISK: u64 = 0x218;
    pub(crate) const RAMDISK_SIZE: u64 = 0x21c;
    pub(crate) const COMMAND_LINE: u64 = 0x228;
    pub(crate) const INITRD_MAX: usize = 0x22c;
    pub(crate) const EXTENDED_FLAGS: usize = 0x236;
    pub(crate) const COMMAND_LINE_SIZE: usize = 0x238;
    pub(crate) const INIT_SIZE: usize = 0x260;
    pub(crate) const E820_TABLE: u64 = 0x2d0;
}

/// A bzImage whose protected-mode part is 4 KiB of 0xcc.
fn image(initrd_max: u32) -> Vec<u8> {
    let mut image = vec![0; SETUP];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(field::SETUP_SECTORS, &[1]);
    put(field::SYSTEM_SIZE, &(4096_u32 / 16).to_le_bytes());
    put(field::MAGIC, b"HdrS");
    put(field::VERSION, &0x020f_u16.to_le_bytes());
    put(field::LOAD_FLAGS, &[1]);
    put(field::CODE32_START, &0x10_0000_u32.to_le_bytes());
    put(field::INITRD_MAX, &initrd_max.to_le_bytes());
    put(field::EXTENDED_FLAGS, &1_u16.to_le_bytes());
    put(field::COMMAND_LINE_SIZE, &2047_u32.to_le_bytes());
    put(field::INIT_SIZE, &INIT_SIZE.to_le_bytes());
    image.resize(SETUP + 4096, 0xcc);
    image
}

struct Rig {
    directory: tempfile::TempDir,
    layout: MemoryLayout,
    ram: GuestRam,
}

impl Rig {
    fn new(memory: u64) -> Self {
        let layout = MemoryLayout::new(memory).unwrap();
        let ram = layout.map().unwrap();
        Self {
            directory: tempfile::tempdir().unwrap(),
            layout,
            ram,
        }
    }

    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn open(&self, kernel: &Path, initrd: Option<PathBuf>) -> Result<BootImages, BootError> {
        BootImages::open(&BootConfig {
            kernel: kernel.to_owned(),
            initrd,
            append: "console=ttyS0 quiet".to_owned(),
        })
    }

    fn load(&self, images: &mut BootImages) -> Result<Entry, BootError> {
        images.load(&self.ram, self.layout, RSDP)
    }

    fn get<T: ByteValued>(&self, address: u64) -> T {
        self.ram.read_obj(GuestAddress(address)).unwrap()
    }
}

fn zero_page(entry: Entry) -> u64 {
    match entry {
        Entry::Long { rip, zero_page } => {
            assert_eq!(rip.0, KERNEL + 0x200);
            zero_page.0
        }
        Entry::Pvh { .. } => panic!("a bzImage is not entered by PVH"),
    }
}

#[test]
fn zero_page_tells_all_the_kernel_needs() {
    let rig = Rig::new(64 * MIB);
    let kernel = rig.put("bzImage", &image(0x7fff_ffff));
    let initrd = rig.put("initrd", &[0x5a; 5000]);
    let mut images = rig.open(&kernel, Some(initrd)).unwrap();
    let page = zero_page(rig.load(&mut images).unwrap());

    assert_eq!(rig.get::<u64>(page + field::ACPI_RSDP), RSDP.0);
    assert_eq!(rig.get::<u8>(page + field::LOADER), 0xff);
    let command_line = u64::from(rig.get::<u32>(page + field::COMMAND_LINE));
    let mut text = [0; 20];
    rig.ram
        .read_slice(&mut text, GuestAddress(command_line))
        .unwrap();
    assert_eq!(&text, b"console=ttyS0 quiet\0");

    // At the top of memory, on a page.
    let ramdisk = u64::from(rig.get::<u32>(page + field::RAMDISK));
    assert_eq!(ramdisk, 64 * MIB - 8192);
    assert_eq!(rig.get::<u32>(page + field::RAMDISK_SIZE), 5000);
    assert_eq!(rig.get::<u8>(ramdisk + 4999), 0x5a);

    assert_eq!(rig.get::<u8>(KERNEL), 0xcc);
    let entries = u64::from(rig.get::<u8>(page + field::E820_ENTRIES));
    let map: Vec<(u64, u64, u32)> = (0..entries)
        .map(|index| page + field::E820_TABLE + 20 * index)
        .map(|at| (rig.get(at), rig.get(at + 8), rig.get(at + 16)))
        .collect();
    let expected = [
        (0, 0x9_fc00, 1),
        (0x9_fc00, 0x400, 2),
        (0xe_0000, 0x2_0000, 2),
        (MIB, 63 * MIB, 1),
    ];
    assert_eq!(map, expected);
}

#[test]
fn initrd_stays_below_the_kernels_limit() {
    let rig = Rig::new(64 * MIB);
    let kernel = rig.put("bzImage", &image(0x00ff_ffff));
    let initrd = rig.put("initrd", &[1; 4096]);
    let mut images = rig.open(&kernel, Some(initrd)).unwrap();
    let page = zero_page(rig.load(&mut images).unwrap());
    assert_eq!(
        u64::from(rig.get::<u32>(page + field::RAMDISK)),
        16 * MIB - 4096
    );
}

#[test]
fn second_load_starts_from_clean_memory() {
    let rig = Rig::new(64 * MIB);
    let kernel = rig.put("bzImage", &image(0x7fff_ffff));
    let mut images = rig.open(&kernel, None).unwrap();
    let first = rig.load(&mut images).unwrap();
    let spoilt = [KERNEL, KERNEL + 4096, KERNEL + u64::from(INIT_SIZE) - 1];
    for address in spoilt {
        rig.ram.write_obj(0x77_u8, GuestAddress(address)).unwrap();
    }
    // The file is not needed any more: the machine boots what it was started with.
    std::fs::remove_file(&kernel).unwrap();
    assert_eq!(rig.load(&mut images).unwrap(), first);
    assert_eq!(spoilt.map(|address| rig.get::<u8>(address)), [0xcc, 0, 0]);
}

#[test]
fn kernel_needs_its_working_room() {
    let rig = Rig::new(4 * MIB - 4096);
    let kernel = rig.put("bzImage", &image(0x7fff_ffff));
    let mut images = rig.open(&kernel, None).unwrap();
    assert!(matches!(
        rig.load(&mut images),
        Err(BootError::TooSmall { what: "kernel", .. })
    ));
}
