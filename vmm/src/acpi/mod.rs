//! The ACPI tables: enough for interrupt routing, the PCI bus and what is plugged into it, the clock,
//! the serial port, the power button and switching off (ACPI specification 6.5).
//!
//! [`write_tables`] puts them into the BIOS area of guest memory, at machine build and at every
//! reset, on the main thread with no vCPU running.

mod dsdt;
mod fixed;
mod hotplug;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::{ACPI_TABLES, GuestRam};

/// Who made the tables, as they tell it.
const OEM_ID: [u8; 6] = *b"SLUICE";
const OEM_TABLE_ID: [u8; 8] = *b"SLUICEVM";
const OEM_REVISION: u32 = 1;

/// Tables are aligned to this; the FACS has to be aligned to 64 bytes (§5.2.10).
const ALIGNMENT: u64 = 64;

/// What the tables describe.
#[derive(Debug, Clone, Copy)]
pub struct Platform {
    /// Number of vCPUs; their APIC ids count from 0.
    pub cpus: u8,
    /// There is a serial port.
    pub serial: bool,
}

/// Why the tables could not be written.
#[derive(Debug, Error)]
pub enum AcpiError {
    /// They do not fit their area.
    #[error("the ACPI tables need more than their {area} bytes")]
    Room {
        /// Bytes there are.
        area: u64,
    },
    /// Guest memory does not reach so far.
    #[error("the ACPI tables cannot be written to guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Lays tables one behind the other.
struct Writer<'a> {
    ram: &'a GuestRam,
    next: u64,
}

impl Writer<'_> {
    /// Writes `table` and returns its address.
    fn put(&mut self, table: &dyn Aml) -> Result<u64, AcpiError> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let address = self.next;
        let end = address + u64::try_from(bytes.len()).unwrap_or(u64::MAX / 2);
        if end > ACPI_TABLES.end {
            return Err(AcpiError::Room {
                area: ACPI_TABLES.end - ACPI_TABLES.start,
            });
        }
        self.ram.write_slice(&bytes, GuestAddress(address))?;
        self.next = end.next_multiple_of(ALIGNMENT);
        Ok(address)
    }
}

/// Writes all tables and returns the address of the root pointer (RSDP), which is the start of
/// [`ACPI_TABLES`], where a guest that is not told finds it too.
///
/// # Errors
/// [`AcpiError`].
pub fn write_tables(ram: &GuestRam, platform: Platform) -> Result<GuestAddress, AcpiError> {
    let rsdp = ACPI_TABLES.start;
    let rsdp_size = u64::try_from(Rsdp::len()).unwrap_or(ALIGNMENT);
    let mut writer = Writer {
        ram,
        next: (rsdp + rsdp_size).next_multiple_of(ALIGNMENT),
    };

    let dsdt = writer.put(&dsdt::dsdt(platform))?;
    let facs = writer.put(&acpi_tables::facs::FACS::new())?;
    let fadt = writer.put(&fixed::fadt(dsdt, facs))?;
    let madt = writer.put(&fixed::madt(platform))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = writer.put(&xsdt)?;

    Writer { ram, next: rsdp }.put(&Rsdp::new(OEM_ID, xsdt))?;
    Ok(GuestAddress(rsdp))
}

#[cfg(test)]
mod tests;
