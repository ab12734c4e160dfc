//! bzImages, entered at their 64-bit entry (Linux, Documentation/arch/x86/boot.rst).

use std::fs::File;
use std::path::Path;

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{ByteValued, GuestAddress};

use super::{BootError, COMMAND_LINE, Entry, Extras, LINUX_COMMAND_LINE};
use crate::memory::{GuestRam, HIGH_MEMORY_START};

/// Where the zero page goes.
const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// Offset of the setup header in the image and in the zero page.
const HEADER_OFFSET: usize = 0x1f1;
/// Unit of `setup_sects`, in bytes, and what its zero stands for.
const SETUP_SECTOR: u64 = 512;
const SETUP_DEFAULT: u8 = 4;
/// Unit of `syssize`, in bytes.
const PARAGRAPH: u64 = 16;
/// "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
/// The first protocol version with `init_size` and, soon after, `xloadflags`: 2.12.
const PROTOCOL_2_12: u16 = 0x020c;
/// `loadflags`: the kernel belongs above 1 MiB.
const LOADED_HIGH: u8 = 1 << 0;
/// `xloadflags`: there is a 64-bit entry at 0x200 of the protected-mode part.
const KERNEL_64: u16 = 1 << 0;
const ENTRY_64: u64 = 0x200;
/// `type_of_loader` of a loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;

/// The setup header of a bzImage.
pub(super) struct Header(setup_header);

impl Header {
    /// The header in the first bytes of a file; none when this is no bzImage.
    pub(super) fn find(head: &[u8]) -> Option<Self> {
        let bytes = head.get(HEADER_OFFSET..HEADER_OFFSET + size_of::<setup_header>())?;
        let mut header = setup_header::default();
        header.as_mut_slice().copy_from_slice(bytes);
        let (magic, version, flags) = (header.header, header.version, header.loadflags);
        let fits = magic == HEADER_MAGIC && version >= PROTOCOL_2_12 && flags & LOADED_HIGH != 0;
        fits.then_some(Self(header))
    }

    /// Bytes of the whole image: boot sector, setup and protected-mode part.
    pub(super) fn file_length(&self) -> u64 {
        let (setup, paragraphs) = (self.0.setup_sects, self.0.syssize);
        let setup = if setup == 0 { SETUP_DEFAULT } else { setup };
        (u64::from(setup) + 1) * SETUP_SECTOR + u64::from(paragraphs) * PARAGRAPH
    }

    pub(super) fn has_64_bit_entry(&self) -> bool {
        let flags = self.0.xloadflags;
        flags & KERNEL_64 != 0
    }

    /// Bytes of command line, without the closing zero.
    pub(super) fn command_line_limit(&self) -> usize {
        let limit = usize::try_from(self.0.cmdline_size).unwrap_or(usize::MAX);
        // Our own room for it is larger than any kernel's.
        if limit == 0 {
            LINUX_COMMAND_LINE - 1
        } else {
            limit.min(COMMAND_LINE_ROOM)
        }
    }

    /// Address behind all that the kernel needs before it looks at the memory map.
    pub(super) fn memory_end(&self) -> u64 {
        HIGH_MEMORY_START + u64::from(self.0.init_size)
    }

    /// The last address an initrd may have.
    pub(super) fn initrd_limit(&self) -> u64 {
        u64::from(self.0.initrd_addr_max)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "64 KiB less one")]
const COMMAND_LINE_ROOM: usize = (COMMAND_LINE.end - COMMAND_LINE.start - 1) as usize;

/// Loads the protected-mode part to 1 MiB.
pub(super) fn load_kernel(kernel: &mut File, path: &Path, ram: &GuestRam) -> Result<(), BootError> {
    let at = Some(GuestAddress(HIGH_MEMORY_START));
    let loaded = BzImage::load(ram, at, kernel, at);
    loaded.map(drop).map_err(|source| BootError::Damaged {
        path: path.to_owned(),
        source,
    })
}

/// Writes the zero page: the kernel's own header, filled in, and the memory map.
pub(super) fn write_zero_page(
    header: &Header,
    extras: &Extras,
    ram: &GuestRam,
) -> Result<Entry, BootError> {
    // Everything here lies below 4 GiB.
    let low = |address: u64| u32::try_from(address).unwrap_or(u32::MAX);
    let mut params = boot_params {
        hdr: header.0,
        ..boot_params::default()
    };
    params.acpi_rsdp_addr = extras.rsdp.0;
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.code32_start = low(HIGH_MEMORY_START);
    params.hdr.cmd_line_ptr = low(COMMAND_LINE.start);
    if let Some(initrd) = &extras.initrd {
        params.hdr.ramdisk_image = low(initrd.start);
        params.hdr.ramdisk_size = low(initrd.end - initrd.start);
    }
    let mut table = params.e820_table;
    let mut entries = 0;
    for (slot, entry) in table.iter_mut().zip(extras.layout.guest_map()) {
        *slot = boot_e820_entry {
            addr: entry.range.start,
            size: entry.range.end - entry.range.start,
            r#type: entry.kind as u32,
        };
        entries += 1;
    }
    params.e820_table = table;
    params.e820_entries = entries;
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&params, ZERO_PAGE), ram)?;
    let rip = GuestAddress(HIGH_MEMORY_START + ENTRY_64);
    Ok(Entry::Long {
        rip,
        zero_page: ZERO_PAGE,
    })
}
