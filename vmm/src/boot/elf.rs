//! ELF kernels, entered by PVH (Xen, docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{Elf, KernelLoader};
use linux_loader::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::GuestAddress;

use super::{BootError, COMMAND_LINE, Entry, Extras, check_length};
use crate::memory::GuestRam;

const START_INFO: GuestAddress = GuestAddress(0x6000);
const MODULES: GuestAddress = GuestAddress(0x6100);
const MEMORY_MAP: GuestAddress = GuestAddress(0x6200);
/// The start info with a memory map.
const START_INFO_VERSION: u32 = 1;

const MAGIC: &[u8] = b"\x7fELF";
/// Offsets and values of the ELF header (System V ABI, chapter 4): a 64-bit, little-endian
/// image for x86-64.
const CLASS_OFFSET: usize = 4;
const CLASS_64: u8 = 2;
const DATA_OFFSET: usize = 5;
const DATA_LITTLE_ENDIAN: u8 = 1;
const MACHINE_OFFSET: usize = 18;
const MACHINE_X86_64: [u8; 2] = [62, 0];
const PROGRAM_HEADERS_OFFSET: usize = 32;
const PROGRAM_HEADER_COUNT_OFFSET: usize = 56;
const HEADER_LENGTH: usize = 64;
const PROGRAM_HEADER_LENGTH: usize = 56;
/// Program header: type, place in the file, physical address, sizes in file and memory.
const KIND_LOAD: u32 = 1;
const KIND_NOTE: u32 = 4;
/// A note: sizes of name and descriptor, type; then both, each padded to words.
const NOTE_HEADER_LENGTH: usize = 12;
const NOTE_PADDING: usize = 4;
/// The note that names the entry (Xen, public/elfnote.h: `XEN_ELFNOTE_PHYS32_ENTRY`).
const PVH_NOTE_TYPE: u32 = 18;
const PVH_NOTE_NAME: &[u8] = b"Xen\0";
/// The most of a note segment that is searched, in bytes; a kernel's has a few hundred.
const NOTES_LIMIT: u64 = 1 << 20;
const FILE_OFFSET: usize = 8;
const PHYSICAL_OFFSET: usize = 24;
const FILE_SIZE_OFFSET: usize = 32;
const MEMORY_SIZE_OFFSET: usize = 40;

/// Whether a file beginning like this claims to be ELF.
pub(super) fn is_elf(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// The few fields of a program header that matter before loading.
struct Segment {
    kind: u32,
    file_start: u64,
    /// Behind its last byte in the file.
    file_end: Option<u64>,
    /// Behind its last byte in memory.
    end: Option<u64>,
}

fn word(bytes: &[u8], offset: usize) -> u64 {
    let mut word = [0; 8];
    if let Some(source) = bytes.get(offset..offset + 8) {
        word.copy_from_slice(source);
    }
    u64::from_le_bytes(word)
}

fn segments(kernel: &mut File, path: &Path) -> Result<Vec<Segment>, BootError> {
    let not_a_kernel = |_| BootError::NotAKernel(path.to_owned());
    let mut header = [0; HEADER_LENGTH];
    kernel.rewind().map_err(not_a_kernel)?;
    kernel.read_exact(&mut header).map_err(not_a_kernel)?;
    let wanted = header[CLASS_OFFSET] == CLASS_64
        && header[DATA_OFFSET] == DATA_LITTLE_ENDIAN
        && header[MACHINE_OFFSET..].starts_with(&MACHINE_X86_64);
    if !wanted {
        return Err(BootError::NotAKernel(path.to_owned()));
    }
    let [low, high] = [
        header[PROGRAM_HEADER_COUNT_OFFSET],
        header[PROGRAM_HEADER_COUNT_OFFSET + 1],
    ];
    let count = u16::from_le_bytes([low, high]);
    let start = SeekFrom::Start(word(&header, PROGRAM_HEADERS_OFFSET));
    kernel.seek(start).map_err(not_a_kernel)?;
    let mut segments = Vec::new();
    for _ in 0..count {
        let mut program_header = [0; PROGRAM_HEADER_LENGTH];
        kernel
            .read_exact(&mut program_header)
            .map_err(not_a_kernel)?;
        let physical = word(&program_header, PHYSICAL_OFFSET);
        segments.push(Segment {
            kind: u32::from_le_bytes([
                program_header[0],
                program_header[1],
                program_header[2],
                program_header[3],
            ]),
            file_start: word(&program_header, FILE_OFFSET),
            file_end: word(&program_header, FILE_OFFSET)
                .checked_add(word(&program_header, FILE_SIZE_OFFSET)),
            end: physical.checked_add(word(&program_header, MEMORY_SIZE_OFFSET)),
        });
    }
    Ok(segments)
}

/// Checks all that can be checked before there is guest memory.
pub(super) fn check(kernel: &mut File, path: &Path) -> Result<(), BootError> {
    let segments = segments(kernel, path)?;
    if !segments.iter().any(|segment| segment.kind == KIND_LOAD) {
        return Err(BootError::NotAKernel(path.to_owned()));
    }
    let ends = segments.iter().map(|segment| segment.file_end);
    let needed = ends.map(|end| end.unwrap_or(u64::MAX)).max();
    check_length(kernel, path, needed.unwrap_or_default())?;
    for segment in segments.iter().filter(|segment| segment.kind == KIND_NOTE) {
        let notes = read_notes(kernel, segment);
        if has_pvh_entry(&notes.map_err(|_| BootError::NotAKernel(path.to_owned()))?) {
            return Ok(());
        }
    }
    Err(BootError::NoPvhEntry(path.to_owned()))
}

fn read_notes(kernel: &mut File, segment: &Segment) -> io::Result<Vec<u8>> {
    let length = segment
        .file_end
        .unwrap_or_default()
        .saturating_sub(segment.file_start);
    kernel.seek(SeekFrom::Start(segment.file_start))?;
    let mut notes = Vec::new();
    kernel
        .take(length.min(NOTES_LIMIT))
        .read_to_end(&mut notes)?;
    Ok(notes)
}

/// Whether one of the notes (System V ABI, chapter 5) is that of the PVH entry.
fn has_pvh_entry(mut notes: &[u8]) -> bool {
    let word = |bytes: &[u8], index: usize| {
        let word = bytes.get(index * 4..)?.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*word))
    };
    let padded = |length: u32| {
        let length = usize::try_from(length).ok()?;
        length.checked_next_multiple_of(NOTE_PADDING)
    };
    let next = || {
        let (name, descriptor, kind) = (word(notes, 0)?, word(notes, 1)?, word(notes, 2)?);
        let rest = notes.get(NOTE_HEADER_LENGTH..)?;
        let is_pvh = kind == PVH_NOTE_TYPE && rest.starts_with(PVH_NOTE_NAME);
        let length = padded(name)?.checked_add(padded(descriptor)?)?;
        notes = rest.get(length..).unwrap_or_default();
        Some(is_pvh)
    };
    std::iter::from_fn(next).any(|is_pvh| is_pvh)
}

/// Address behind the last byte of the loaded kernel, its zeroed data included.
pub(super) fn memory_end(kernel: &mut File, path: &Path) -> Result<u64, BootError> {
    let segments = segments(kernel, path)?;
    let loads = segments.iter().filter(|segment| segment.kind == KIND_LOAD);
    // A segment that wraps around fits nowhere.
    let end = loads.map(|segment| segment.end.unwrap_or(u64::MAX)).max();
    end.ok_or_else(|| BootError::NotAKernel(path.to_owned()))
}

/// Loads the kernel and writes the start info.
pub(super) fn load(
    kernel: &mut File,
    path: &Path,
    extras: &Extras,
    ram: &GuestRam,
) -> Result<Entry, BootError> {
    let loaded = Elf::load(ram, None, kernel, None).map_err(|source| BootError::Damaged {
        path: path.to_owned(),
        source,
    })?;
    let PvhBootCapability::PvhEntryPresent(eip) = loaded.pvh_boot_cap else {
        return Err(BootError::NoPvhEntry(path.to_owned()));
    };
    write_start_info(extras, ram)?;
    Ok(Entry::Pvh {
        eip,
        start_info: START_INFO,
    })
}

fn write_start_info(extras: &Extras, ram: &GuestRam) -> Result<(), BootError> {
    let map: Vec<_> = extras
        .layout
        .guest_map()
        .into_iter()
        .map(|entry| hvm_memmap_table_entry {
            addr: entry.range.start,
            size: entry.range.end - entry.range.start,
            type_: entry.kind as u32,
            reserved: 0,
        })
        .collect();
    let modules: Vec<_> = extras
        .initrd
        .iter()
        .map(|initrd| hvm_modlist_entry {
            paddr: initrd.start,
            size: initrd.end - initrd.start,
            ..hvm_modlist_entry::default()
        })
        .collect();
    let start_info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: START_INFO_VERSION,
        nr_modules: u32::try_from(modules.len()).unwrap_or(0),
        modlist_paddr: if modules.is_empty() { 0 } else { MODULES.0 },
        cmdline_paddr: COMMAND_LINE.start,
        rsdp_paddr: extras.rsdp.0,
        memmap_paddr: MEMORY_MAP.0,
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        ..hvm_start_info::default()
    };
    let mut params = BootParams::new(&start_info, START_INFO);
    params.set_sections(&map, MEMORY_MAP);
    if !modules.is_empty() {
        params.set_modules(&modules, MODULES);
    }
    Ok(PvhBootConfigurator::write_bootparams(&params, ram)?)
}
