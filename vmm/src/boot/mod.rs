//! Getting a kernel into guest memory, by either of two protocols, with everything it is told.
//!
//! [`BootImages::open`] looks at the files once, so that a bad one is refused before the machine is
//! built. [`BootImages::load`] writes guest memory, at start and again at every reset, on the main
//! thread with no vCPU running; it keeps the files open, so that a reset boots what was started.
//!
//! ```text
//!   0x0500  segment descriptors      0x9000..0xf000  page tables (64-bit entry)
//!   0x6000  PVH start info, map      0x20000         command line
//!   0x7000  zero page (64-bit entry) 0x100000        kernel; initrd at the top of low RAM
//! ```

mod elf;
mod linux;
pub mod registers;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::machine::config::BootConfig;
use crate::memory::{GuestRam, HIGH_MEMORY_START, MemoryLayout};

/// Where the command line goes, and how much room there is, the closing zero included.
const COMMAND_LINE: Range<u64> = 0x2_0000..0x3_0000;
/// The longest command line x86 Linux takes (`COMMAND_LINE_SIZE`), the closing zero included; a
/// bzImage may say less in its header.
const LINUX_COMMAND_LINE: usize = 2048;

const PAGE: u64 = 4096;
/// Kernel memory is zeroed in pieces of this many bytes.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// Why nothing can be booted. Every message names the file or the option.
#[derive(Debug, Error)]
pub enum BootError {
    /// A file cannot be read.
    #[error("cannot read the {what} '{path}': {source}")]
    File {
        /// "kernel" or "initrd".
        what: &'static str,
        /// As given.
        path: PathBuf,
        /// The host's answer.
        source: std::io::Error,
    },
    /// The kernel is neither a bzImage nor an ELF image.
    #[error("'{0}' is not a kernel: it is neither a bzImage nor an x86-64 ELF image")]
    NotAKernel(PathBuf),
    /// The ELF image has no entry that could be used.
    #[error(
        "the kernel '{0}' is an ELF image without a PVH entry: build it with CONFIG_PVH=y, or \
         boot its bzImage"
    )]
    NoPvhEntry(PathBuf),
    /// The bzImage has no 64-bit entry.
    #[error("the kernel '{0}' has no 64-bit entry: only 64-bit bzImages boot")]
    No64BitEntry(PathBuf),
    /// The image is not all there.
    #[error("the kernel '{path}' is cut off: it has {length} bytes of {needed}")]
    CutOff {
        /// As given.
        path: PathBuf,
        /// Bytes of the file.
        length: u64,
        /// Bytes that its headers speak of.
        needed: u64,
    },
    /// The image contradicts itself.
    #[error("the kernel '{path}' is damaged: {source}")]
    Damaged {
        /// As given.
        path: PathBuf,
        /// What the loader said.
        source: linux_loader::loader::Error,
    },
    /// Guest memory is too small.
    #[error(
        "the {what} '{path}' does not fit into guest memory: it needs RAM up to {needed:#x}, and \
         RAM below 4 GiB ends at {end:#x} (give more with -m)"
    )]
    TooSmall {
        /// "kernel" or "initrd".
        what: &'static str,
        /// As given.
        path: PathBuf,
        /// Address behind the last byte it needs.
        needed: u64,
        /// Address behind the last byte there is.
        end: u64,
    },
    /// The command line is too long.
    #[error("the kernel command line (--append) has {length} bytes; this kernel takes {limit}")]
    CommandLine {
        /// Bytes given.
        length: usize,
        /// Bytes the kernel takes.
        limit: usize,
    },
    /// The command line holds a zero byte.
    #[error("the kernel command line (--append) holds a zero byte")]
    CommandLineZero,
    /// Guest memory cannot be written where it should be RAM.
    #[error("boot structures cannot be written to guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// The boot parameters do not fit.
    #[error("boot parameters cannot be written to guest memory: {0}")]
    Configurator(#[from] linux_loader::configurator::Error),
}

/// How the first vCPU enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Linux's 64-bit boot protocol (Documentation/arch/x86/boot.rst): paging on, `rsi` holds the
    /// address of the zero page.
    Long {
        /// Instruction pointer.
        rip: GuestAddress,
        /// The zero page.
        zero_page: GuestAddress,
    },
    /// PVH (Xen's "x86/HVM direct boot ABI"): 32-bit protected mode without paging, `ebx` holds the
    /// address of the start info.
    Pvh {
        /// Instruction pointer.
        eip: GuestAddress,
        /// The start info.
        start_info: GuestAddress,
    },
}

/// The two kinds of kernel image.
enum Kind {
    BzImage(Box<linux::Header>),
    Elf,
}

/// The files to boot from, open and looked at.
pub struct BootImages {
    kernel: File,
    kernel_path: PathBuf,
    kind: Kind,
    initrd: Option<(File, PathBuf)>,
    command_line: Vec<u8>,
    /// Memory that an earlier load filled: zeroed by the next one, for a kernel expects zeroes
    /// behind its image.
    used: Option<Range<u64>>,
}

/// What is written besides the kernel: the same for both protocols.
struct Extras {
    initrd: Option<Range<u64>>,
    rsdp: GuestAddress,
    layout: MemoryLayout,
}

/// Where the images go in guest memory.
struct Places {
    /// Address behind all that the kernel needs.
    kernel_end: u64,
    initrd: Option<Range<u64>>,
}

impl BootImages {
    /// Opens the files of `config` and checks that they are what they should be.
    ///
    /// # Errors
    /// [`BootError`], naming the file.
    pub fn open(config: &BootConfig) -> Result<Self, BootError> {
        let mut kernel = open("kernel", &config.kernel)?;
        let kind = recognise(&mut kernel, &config.kernel)?;
        let initrd = match &config.initrd {
            Some(path) => Some((open("initrd", path)?, path.clone())),
            None => None,
        };
        let limit = match &kind {
            Kind::BzImage(header) => header.command_line_limit(),
            Kind::Elf => LINUX_COMMAND_LINE - 1,
        };
        let command_line = config.append.as_bytes().to_vec();
        if command_line.contains(&0) {
            return Err(BootError::CommandLineZero);
        }
        if command_line.len() > limit {
            return Err(BootError::CommandLine {
                length: command_line.len(),
                limit,
            });
        }
        Ok(Self {
            kernel,
            kernel_path: config.kernel.clone(),
            kind,
            initrd,
            command_line,
            used: None,
        })
    }

    /// Writes kernel, initrd and everything the kernel is told into `ram`.
    ///
    /// # Errors
    /// [`BootError`], naming the file or the option.
    pub fn load(
        &mut self,
        ram: &GuestRam,
        layout: MemoryLayout,
        rsdp: GuestAddress,
    ) -> Result<Entry, BootError> {
        if let Some(used) = self.used.take() {
            zero(ram, used)?;
        }
        self.load_command_line(ram)?;
        let places = self.places(layout)?;
        self.used = Some(HIGH_MEMORY_START..places.kernel_end);
        if let (Some((file, _)), Some(range)) = (&mut self.initrd, &places.initrd) {
            let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            ram.read_exact_volatile_from(GuestAddress(range.start), file, length)?;
        }
        let extras = Extras {
            initrd: places.initrd,
            rsdp,
            layout,
        };
        registers::write_descriptors(ram, matches!(self.kind, Kind::BzImage(_)))?;
        match &self.kind {
            Kind::BzImage(header) => {
                linux::load_kernel(&mut self.kernel, &self.kernel_path, ram)?;
                registers::write_page_tables(ram)?;
                linux::write_zero_page(header, &extras, ram)
            }
            Kind::Elf => elf::load(&mut self.kernel, &self.kernel_path, &extras, ram),
        }
    }

    /// Checks that memory laid out as `layout` has room for kernel and initrd.
    ///
    /// # Errors
    /// [`BootError::TooSmall`] and [`BootError::File`].
    pub fn check_room(&mut self, layout: MemoryLayout) -> Result<(), BootError> {
        self.places(layout).map(drop)
    }

    /// Where kernel and initrd go.
    fn places(&mut self, layout: MemoryLayout) -> Result<Places, BootError> {
        let (kernel_end, initrd_limit) = match &self.kind {
            Kind::BzImage(header) => (header.memory_end(), header.initrd_limit()),
            Kind::Elf => {
                let end = elf::memory_end(&mut self.kernel, &self.kernel_path)?;
                (end, u64::from(u32::MAX))
            }
        };
        if kernel_end > layout.low_end() {
            return Err(BootError::TooSmall {
                what: "kernel",
                path: self.kernel_path.clone(),
                needed: kernel_end,
                end: layout.low_end(),
            });
        }
        let initrd = self.place_initrd(layout, kernel_end, initrd_limit)?;
        Ok(Places { kernel_end, initrd })
    }

    fn load_command_line(&self, ram: &GuestRam) -> Result<(), BootError> {
        let mut bytes = self.command_line.clone();
        bytes.push(0);
        Ok(ram.write_slice(&bytes, GuestAddress(COMMAND_LINE.start))?)
    }

    /// The initrd goes to the top of low RAM, at page granularity, below `limit` (inclusive).
    fn place_initrd(
        &mut self,
        layout: MemoryLayout,
        kernel_end: u64,
        limit: u64,
    ) -> Result<Option<Range<u64>>, BootError> {
        let Some((file, path)) = &mut self.initrd else {
            return Ok(None);
        };
        let failed = |source| BootError::File {
            what: "initrd",
            path: path.clone(),
            source,
        };
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        file.rewind().map_err(failed)?;
        let top = layout.low_end().min(limit.saturating_add(1));
        let start = top.checked_sub(size).map(|start| start - start % PAGE);
        let Some(start) = start.filter(|start| *start >= kernel_end) else {
            return Err(BootError::TooSmall {
                what: "initrd",
                path: path.clone(),
                needed: kernel_end.saturating_add(size).next_multiple_of(PAGE),
                end: top,
            });
        };
        Ok(Some(start..start + size))
    }
}

fn open(what: &'static str, path: &Path) -> Result<File, BootError> {
    let failed = |source| BootError::File {
        what,
        path: path.to_owned(),
        source,
    };
    // Opening a pipe that nobody writes to would never end otherwise.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(failed(std::io::ErrorKind::IsADirectory.into()));
    }
    if !metadata.is_file() {
        return Err(failed(std::io::Error::other("it is not a regular file")));
    }
    Ok(file)
}

/// Tells the kinds of kernel apart by their magic numbers.
fn recognise(kernel: &mut File, path: &Path) -> Result<Kind, BootError> {
    let failed = |source| BootError::File {
        what: "kernel",
        path: path.to_owned(),
        source,
    };
    let mut head = Vec::new();
    kernel.rewind().map_err(failed)?;
    Read::take(&mut *kernel, PAGE)
        .read_to_end(&mut head)
        .map_err(failed)?;
    if elf::is_elf(&head) {
        elf::check(kernel, path)?;
        return Ok(Kind::Elf);
    }
    let Some(header) = linux::Header::find(&head) else {
        return Err(BootError::NotAKernel(path.to_owned()));
    };
    if !header.has_64_bit_entry() {
        return Err(BootError::No64BitEntry(path.to_owned()));
    }
    check_length(kernel, path, header.file_length())?;
    Ok(Kind::BzImage(Box::new(header)))
}

/// Refuses a file of less than `needed` bytes.
fn check_length(kernel: &File, path: &Path, needed: u64) -> Result<(), BootError> {
    let length = kernel.metadata().map_err(|source| BootError::File {
        what: "kernel",
        path: path.to_owned(),
        source,
    });
    match length?.len() {
        length if length < needed => Err(BootError::CutOff {
            path: path.to_owned(),
            length,
            needed,
        }),
        _ => Ok(()),
    }
}

fn zero(ram: &GuestRam, range: Range<u64>) -> Result<(), BootError> {
    let end = range.end.min(ram.last_addr().0 + 1);
    let mut at = range.start;
    while at < end {
        let length = usize::try_from(end - at)
            .unwrap_or(usize::MAX)
            .min(ZEROES.len());
        ram.write_slice(&ZEROES[..length], GuestAddress(at))?;
        at += length as u64;
    }
    Ok(())
}
