//! Tiny guests: a few machine instructions in an ELF image with a PVH entry.

use std::path::PathBuf;

/// Where the image is loaded and entered.
pub(crate) const LOAD_ADDRESS: u32 = 0x10_0000;
const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// Name size, descriptor size, type, "Xen\0", descriptor.
const NOTE: usize = 20;
const NOTE_TYPE_PHYS32_ENTRY: u32 = 18;

/// The ports of the machine, as the payloads know them.
pub(crate) mod port {
    pub(crate) const CMOS_INDEX: u16 = 0x70;
    pub(crate) const CMOS_DATA: u16 = 0x71;
    pub(crate) const KEYBOARD_COMMAND: u16 = 0x64;
    pub(crate) const DEBUG_EXIT: u16 = 0xf4;
    pub(crate) const SERIAL: u16 = 0x3f8;
    pub(crate) const PANIC: u16 = 0x505;
    pub(crate) const PM_CONTROL: u16 = 0x604;
    pub(crate) const PCI_ADDRESS: u16 = 0xcf8;
    pub(crate) const RESET_CONTROL: u16 = 0xcf9;
    pub(crate) const PCI_DATA: u16 = 0xcfc;
}

/// Soft-off: sleep type 5, sleep enable.
const SOFT_OFF: u16 = (5 << 10) | (1 << 13);

/// An assembler for the dozen instructions the payloads need (32-bit protected mode).
#[derive(Default)]
pub(crate) struct Code(Vec<u8>);

impl Code {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// `mov dx, port`
    pub(crate) fn port(self, port: u16) -> Self {
        self.bytes(&[0x66, 0xba]).bytes(&port.to_le_bytes())
    }

    /// `mov al, value; out dx, al`
    pub(crate) fn out8(self, port: u16, value: u8) -> Self {
        self.port(port).bytes(&[0xb0, value, 0xee])
    }

    /// `mov ax, value; out dx, ax`
    pub(crate) fn out16(self, port: u16, value: u16) -> Self {
        self.port(port)
            .bytes(&[0x66, 0xb8])
            .bytes(&value.to_le_bytes())
            .bytes(&[0x66, 0xef])
    }

    /// `mov eax, value; out dx, eax`
    pub(crate) fn out32(self, port: u16, value: u32) -> Self {
        self.port(port)
            .bytes(&[0xb8])
            .bytes(&value.to_le_bytes())
            .bytes(&[0xef])
    }

    /// `in al, dx`
    pub(crate) fn in8(self, port: u16) -> Self {
        self.port(port).bytes(&[0xec])
    }

    /// `in eax, dx`
    pub(crate) fn in32(self, port: u16) -> Self {
        self.port(port).bytes(&[0xed])
    }

    /// `out dx, al`
    pub(crate) fn out_al(self, port: u16) -> Self {
        self.port(port).bytes(&[0xee])
    }

    /// `cmp al, value; je +then.len(); ...`: runs `otherwise` unless `al` is `value`.
    pub(crate) fn unless_al(self, value: u8, otherwise: &Self) -> Self {
        let length = u8::try_from(otherwise.0.len()).unwrap();
        assert!(length < 0x80);
        self.bytes(&[0x3c, value, 0x74, length]).bytes(&otherwise.0)
    }

    pub(crate) fn print(self, text: &str) -> Self {
        text.bytes()
            .fold(self, |code, byte| code.out8(port::SERIAL, byte))
    }

    pub(crate) fn power_off(self) -> Self {
        self.out16(port::PM_CONTROL, SOFT_OFF).halt()
    }

    /// `cli; hlt; jmp -3`
    pub(crate) fn halt(self) -> Self {
        self.bytes(&[0xfa, 0xf4, 0xeb, 0xfd])
    }

    /// The instructions, as they lie at the image's beginning.
    pub(crate) fn instructions(&self) -> &[u8] {
        &self.0
    }

    /// The ELF image.
    pub(crate) fn image(&self) -> Vec<u8> {
        let code_offset = ELF_HEADER + 2 * PROGRAM_HEADER + NOTE;
        let note_offset = ELF_HEADER + 2 * PROGRAM_HEADER;
        let quad = |value: usize| u64::try_from(value).unwrap().to_le_bytes();
        let mut image = Vec::new();
        image.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        // An executable for x86-64, version 1.
        image.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        image.extend(u64::from(LOAD_ADDRESS).to_le_bytes());
        image.extend(quad(ELF_HEADER));
        image.extend([0; 12]);
        image.extend([64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(image.len(), ELF_HEADER);
        for (kind, offset, address, length) in [
            (1_u32, code_offset, LOAD_ADDRESS, self.0.len()),
            (4, note_offset, 0, NOTE),
        ] {
            image.extend(kind.to_le_bytes());
            image.extend([7, 0, 0, 0]);
            image.extend(quad(offset));
            image.extend(u64::from(address).to_le_bytes());
            image.extend(u64::from(address).to_le_bytes());
            image.extend(quad(length));
            image.extend(quad(length));
            image.extend(quad(4));
        }
        for word in [4_u32, 4, NOTE_TYPE_PHYS32_ENTRY] {
            image.extend(word.to_le_bytes());
        }
        image.extend(b"Xen\0");
        image.extend(LOAD_ADDRESS.to_le_bytes());
        assert_eq!(image.len(), code_offset);
        image.extend(&self.0);
        image
    }

    /// Writes the image into `directory`.
    pub(crate) fn write(&self, directory: &tempfile::TempDir) -> PathBuf {
        let path = directory.path().join("payload");
        std::fs::write(&path, self.image()).unwrap();
        path
    }
}
