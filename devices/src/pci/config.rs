//! The configuration space of one function.
//!
//! A space is 256 bytes, a mask of the bits that software can write and a mask of those it clears
//! by writing ones: the whole of BAR sizing, partial writes and read-only registers follows from
//! the masks. What has effects beyond the bytes is little and is here too: INTx (level, status bit,
//! disable bit) and a lock-free view of the command register.
//!
//! Made by a device model with [`ConfigBuilder`]; accessed from vCPU threads;
//! [`PciConfig::update_intx`] from any.

mod builder;

pub use builder::{ConfigBuilder, Identity};

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::bar::{Bar, BarIndex, BarKind};
use super::layout::{CONFIG_SPACE_LEN, Command, Status, offset};
use crate::irq::{IrqLine, LineChanges, Wire};

bitflags::bitflags! {
    /// What a write of configuration space changed.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ConfigChange: u8 {
        /// A BAR's register, or whether BARs answer at all.
        const BARS = 1 << 0;
        /// The bus master bit.
        const BUS_MASTER = 1 << 1;
        /// A register behind the header: capabilities and device-specific ones.
        const DEVICE_SPECIFIC = 1 << 2;
    }
}

type Bytes = [u8; CONFIG_SPACE_LEN];

/// The bytes and what guards them.
struct Registers {
    bytes: Bytes,
    /// The pending state of INTx, before the disable bit.
    intx: bool,
    /// What the line has gone through, carried out when the lock is released.
    line: LineChanges,
}

/// Configuration space with its BARs and its INTx.
pub struct PciConfig {
    registers: Mutex<Registers>,
    /// The command register again, for the data path.
    command: AtomicU16,
    writable: Bytes,
    clear_by_one: Bytes,
    /// The bytes after power-on.
    power_on: Bytes,
    bars: [Option<Bar>; BarIndex::COUNT],
    line: Option<Wire>,
}

impl PciConfig {
    /// Reads `data.len()` bytes at `offset`; beyond the end: all ones.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        let registers = self.registers.lock();
        match registers
            .bytes
            .get(offset..offset.saturating_add(data.len()))
        {
            Some(bytes) => data.copy_from_slice(bytes),
            None => data.fill(0xff),
        }
    }

    /// Reads a byte.
    pub fn read_u8(&self, offset: usize) -> u8 {
        let mut bytes = [0; 1];
        self.read(offset, &mut bytes);
        bytes[0]
    }

    /// Reads a little-endian 16-bit register.
    pub fn read_u16(&self, offset: usize) -> u16 {
        let mut bytes = [0; 2];
        self.read(offset, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Reads a little-endian 32-bit register.
    pub fn read_u32(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// A write by software: only writable bits change. Beyond the end: no effect. Returns what
    /// changed.
    pub fn write(&self, offset: usize, data: &[u8]) -> ConfigChange {
        let mut registers = self.registers.lock();
        let range = offset..offset.saturating_add(data.len());
        if range.end > CONFIG_SPACE_LEN {
            return ConfigChange::empty();
        }
        let before = registers.bytes;
        for (at, &value) in range.clone().zip(data) {
            let writable = self.writable[at];
            let kept = registers.bytes[at] & !(value & self.clear_by_one[at]);
            registers.bytes[at] = (kept & !writable) | (value & writable);
        }
        let change = self.after_change(&mut registers, &before, range.end);
        self.follow(registers);
        change
    }

    /// Recomputes what follows from the bytes.
    fn after_change(&self, registers: &mut Registers, before: &Bytes, end: usize) -> ConfigChange {
        let mut change = ConfigChange::empty();
        let old = command_of(before);
        let new = command_of(&registers.bytes);
        self.command.store(new.bits(), Ordering::Release);
        let bars = offset::BAR0..offset::BAR0 + 4 * BarIndex::COUNT;
        let decode = Command::IO | Command::MEMORY;
        if (old ^ new).intersects(decode) || before[bars.clone()] != registers.bytes[bars] {
            change |= ConfigChange::BARS;
        }
        if (old ^ new).contains(Command::BUS_MASTER) {
            change |= ConfigChange::BUS_MASTER;
        }
        if end > offset::DEVICE_SPECIFIC {
            change |= ConfigChange::DEVICE_SPECIFIC;
        }
        drive_intx(registers);
        change
    }

    /// Changes bytes from the device's or the machine's side, past the masks.
    pub fn set(&self, offset: usize, data: &[u8]) {
        let mut registers = self.registers.lock();
        let before = registers.bytes;
        let end = offset.saturating_add(data.len());
        if let Some(bytes) = registers.bytes.get_mut(offset..end) {
            bytes.copy_from_slice(data);
            self.after_change(&mut registers, &before, end);
            self.follow(registers);
        }
    }

    /// The command register; takes no lock.
    pub fn command(&self) -> Command {
        Command::from_bits_truncate(self.command.load(Ordering::Acquire))
    }

    /// Whether the function may access memory on its own; takes no lock.
    pub fn is_bus_master(&self) -> bool {
        self.command().contains(Command::BUS_MASTER)
    }

    /// Connects INTx to an interrupt line and tells software its number (`line_number`, the
    /// interrupt line register, which a reset keeps as firmware would set it again).
    pub fn connect_intx(&mut self, line: Arc<dyn IrqLine>, line_number: u8) {
        self.power_on[offset::INTERRUPT_LINE] = line_number;
        self.registers.get_mut().bytes[offset::INTERRUPT_LINE] = line_number;
        self.line = Some(Wire::new(line));
    }

    /// Evaluates `pending` under the lock that orders INTx changes, and then, without that lock, drives the line
    /// accordingly: of two racing calls the later one sees the state that both left. Honours the
    /// disable bit.
    pub fn update_intx(&self, pending: impl FnOnce() -> bool) {
        let mut registers = self.registers.lock();
        registers.intx = pending();
        drive_intx(&mut registers);
        self.follow(registers);
    }

    /// Releases the registers, and carries out what the line has gone through. Driving it is a system call that wakes a
    /// processor, which then asks for these registers.
    fn follow(&self, registers: MutexGuard<'_, Registers>) {
        let changes = registers.line;
        drop(registers);
        if let Some(line) = &self.line {
            line.follow(changes);
        }
    }

    /// Kind and size in bytes of a BAR.
    pub fn bar(&self, bar: BarIndex) -> Option<(BarKind, u64)> {
        self.bars[bar.index()].map(|bar| (bar.kind, bar.size))
    }

    /// Where a BAR answers now; `None` if it does not.
    pub fn bar_place(&self, index: BarIndex) -> Option<u64> {
        let bar = self.bars[index.index()]?;
        if !self.command().contains(bar.kind.enable()) {
            return None;
        }
        bar.place(self.bar_register(index, bar))
    }

    /// The raw value of a BAR.
    fn bar_register(&self, index: BarIndex, bar: Bar) -> u64 {
        let low = u64::from(self.read_u32(index.offset()));
        match (bar.kind, index.next()) {
            (BarKind::Memory64, Some(high)) => low | u64::from(self.read_u32(high.offset())) << 32,
            _ => low,
        }
    }

    /// Writes the address of a BAR as software would; enables nothing.
    pub(super) fn place_bar(&self, index: BarIndex, address: u64) {
        if let Some(bar) = self.bars[index.index()] {
            let bytes = address.to_le_bytes();
            self.write(index.offset(), &bytes[..4 * bar.kind.registers()]);
        }
    }

    /// Back to the power-on values.
    pub fn reset(&self) {
        let mut registers = self.registers.lock();
        let before = registers.bytes;
        registers.bytes = self.power_on;
        registers.intx = false;
        self.after_change(&mut registers, &before, 0);
        self.follow(registers);
    }
}

/// Status bit and line follow the pending state and the disable bit.
fn drive_intx(registers: &mut Registers) {
    let mut status = status_of(&registers.bytes);
    status.set(Status::INTERRUPT, registers.intx);
    registers.bytes[offset::STATUS..offset::STATUS + 2]
        .copy_from_slice(&status.bits().to_le_bytes());
    let disabled = command_of(&registers.bytes).contains(Command::INTX_DISABLE);
    if registers.line.level() != (registers.intx && !disabled) {
        registers.line.flip();
    }
}

fn command_of(bytes: &Bytes) -> Command {
    Command::from_bits_truncate(u16::from_le_bytes([
        bytes[offset::COMMAND],
        bytes[offset::COMMAND + 1],
    ]))
}

fn status_of(bytes: &Bytes) -> Status {
    Status::from_bits_retain(u16::from_le_bytes([
        bytes[offset::STATUS],
        bytes[offset::STATUS + 1],
    ]))
}

#[cfg(test)]
mod tests;
