//! The fixed ACPI hardware (ACPI 6.5 §4.8): event and control registers, the power button, the
//! soft-off state and the power management timer.
//!
//! The timer counts 32 bits and does not interrupt when its top bit changes (`TMR_STS` stays
//! clear): guests use it as a clock source, which reads it, not as a source of interrupts.

use std::sync::Arc;

use bitflags::bitflags;
use parking_lot::Mutex;

use super::{MachineRequest, MachineRequests};
use crate::bus::PioDevice;
use crate::clock::Clock;
use crate::irq::IrqLine;
use crate::reset::{ResetHook, Resetting, settled};

bitflags! {
    /// Bits of the status and of the enable register (ACPI 6.5 §4.8.3.1).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Events: u16 {
        /// The timer's top bit changed. Never set here.
        const TIMER = 1 << 0;
        /// The firmware wants the global lock. Never set here.
        const GLOBAL_LOCK = 1 << 5;
        /// The power button was pressed.
        const POWER_BUTTON = 1 << 8;
        /// The sleep button was pressed. Never set here.
        const SLEEP_BUTTON = 1 << 9;
        /// The clock's alarm. Never set here.
        const RTC = 1 << 10;
    }

    /// Bits of the control register (ACPI 6.5 §4.8.3.2.1) besides the sleep type.
    #[derive(Debug, Clone, Copy)]
    struct Control: u16 {
        /// Events interrupt as SCI: always so here, there is no firmware that would handle them.
        const SCI_ENABLED = 1 << 0;
        /// Enter the sleep state that the sleep type names; reads as zero.
        const SLEEP = 1 << 13;
    }
}

/// The sleep type of soft-off; the DSDT's `\_S5` names it.
pub const SLEEP_TYPE_S5: u8 = 5;

/// Where the sleep type stands in the control register.
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_TYPE_MASK: u16 = 0b111 << SLEEP_TYPE_SHIFT;

/// Ticks of the timer per second (ACPI 6.5 §4.8.2.1).
const TIMER_HZ: u128 = 3_579_545;
const NANOSECONDS: u128 = 1_000_000_000;

const STATUS: u16 = 0;
const ENABLE: u16 = 2;
const CONTROL: u16 = 4;
const TIMER: u16 = 8;

struct Registers {
    status: Events,
    enable: Events,
    control: u16,
}

impl Registers {
    const POWER_ON: Self = Self {
        status: Events::empty(),
        enable: Events::empty(),
        control: Control::SCI_ENABLED.bits(),
    };
}

/// The register block: event registers at +0, control at +4, timer at +8.
pub struct PmBlock {
    registers: Mutex<Registers>,
    sci: Arc<dyn IrqLine>,
    clock: Arc<dyn Clock>,
    machine: Arc<dyn MachineRequests>,
}

impl PmBlock {
    /// First port of the block.
    pub const BASE: u16 = 0x600;
    /// Last port of the block.
    pub const LAST: u16 = Self::BASE + 0xb;
    /// The event registers: status and enable, 2 bytes each.
    pub const EVENT_PORT: u16 = Self::BASE + STATUS;
    /// Bytes of the event registers.
    pub const EVENT_LENGTH: u8 = 4;
    /// The control register.
    pub const CONTROL_PORT: u16 = Self::BASE + CONTROL;
    /// Bytes of the control register.
    pub const CONTROL_LENGTH: u8 = 2;
    /// The timer.
    pub const TIMER_PORT: u16 = Self::BASE + TIMER;
    /// Bytes of the timer.
    pub const TIMER_LENGTH: u8 = 4;

    /// A block whose events drive `sci`, a level-triggered line.
    #[must_use]
    pub fn new(
        sci: Arc<dyn IrqLine>,
        clock: Arc<dyn Clock>,
        machine: Arc<dyn MachineRequests>,
    ) -> Self {
        Self {
            registers: Mutex::new(Registers::POWER_ON),
            sci,
            clock,
            machine,
        }
    }

    /// Presses the power button: the guest's operating system should shut down. Any thread.
    pub fn press_power_button(&self) {
        let mut registers = self.registers.lock();
        registers.status |= Events::POWER_BUTTON;
        self.update_sci(&registers);
    }

    fn update_sci(&self, registers: &Registers) {
        self.sci.set(registers.status.intersects(registers.enable));
    }

    fn timer(&self) -> u32 {
        let ticks = u128::from(self.clock.monotonic_ns()) * TIMER_HZ / NANOSECONDS;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the timer wraps at 32 bits"
        )]
        let ticks = ticks as u32;
        ticks
    }

    fn write_word(&self, offset: u16, value: u16) {
        let mut registers = self.registers.lock();
        match offset {
            // A one clears the event.
            STATUS => registers.status.remove(Events::from_bits_truncate(value)),
            ENABLE => registers.enable = Events::from_bits_truncate(value),
            CONTROL => {
                let sleep = value & Control::SLEEP.bits() != 0;
                registers.control = (value & !Control::SLEEP.bits()) | Control::SCI_ENABLED.bits();
                let sleep_type = (value & SLEEP_TYPE_MASK) >> SLEEP_TYPE_SHIFT;
                if sleep && sleep_type == u16::from(SLEEP_TYPE_S5) {
                    self.machine.raise(MachineRequest::PowerOff);
                }
            }
            _ => {}
        }
        self.update_sci(&registers);
    }
}

impl PioDevice for PmBlock {
    fn read(&self, port: u16, data: &mut [u8]) {
        let mut block = [0; 12];
        {
            let registers = self.registers.lock();
            block[0..2].copy_from_slice(&registers.status.bits().to_le_bytes());
            block[2..4].copy_from_slice(&registers.enable.bits().to_le_bytes());
            block[4..6].copy_from_slice(&registers.control.to_le_bytes());
        }
        block[8..12].copy_from_slice(&self.timer().to_le_bytes());
        let start = usize::from(port.saturating_sub(Self::BASE));
        data.fill(0);
        for (to, from) in data.iter_mut().zip(block.iter().skip(start)) {
            *to = *from;
        }
    }

    fn write(&self, port: u16, data: &[u8]) {
        let offset = port.saturating_sub(Self::BASE);
        match data {
            // A byte store changes its half of the register; the other half of the status
            // register must see zeroes, which clear nothing.
            [byte] => {
                let high = offset % 2 == 1;
                let word = offset - offset % 2;
                let value = u16::from(*byte) << if high { 8 } else { 0 };
                let kept = if high { 0x00ff } else { 0xff00 };
                let old = match word {
                    ENABLE => self.registers.lock().enable.bits(),
                    CONTROL => self.registers.lock().control,
                    _ => 0,
                };
                self.write_word(word, (old & kept) | value);
            }
            _ => {
                for (word, bytes) in (offset..).step_by(2).zip(data.chunks_exact(2)) {
                    self.write_word(word, u16::from_le_bytes([bytes[0], bytes[1]]));
                }
            }
        }
    }
}

impl ResetHook for PmBlock {
    fn reset(self: Arc<Self>) -> Resetting {
        let mut registers = self.registers.lock();
        *registers = Registers::POWER_ON;
        self.update_sci(&registers);
        drop(registers);
        settled()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::legacy::testing::{Line, Recorder};

    #[derive(Default)]
    struct ManualClock(AtomicU64);

    impl Clock for ManualClock {
        fn monotonic_ns(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }

        fn unix_seconds(&self) -> i64 {
            0
        }
    }

    struct Rig {
        block: Arc<PmBlock>,
        sci: Arc<Line>,
        clock: Arc<ManualClock>,
        machine: Arc<Recorder>,
    }

    fn rig() -> Rig {
        let sci = Arc::new(Line::default());
        let clock = Arc::new(ManualClock::default());
        let machine = Arc::new(Recorder::default());
        let block = Arc::new(PmBlock::new(sci.clone(), clock.clone(), machine.clone()));
        Rig {
            block,
            sci,
            clock,
            machine,
        }
    }

    fn read16(block: &PmBlock, port: u16) -> u16 {
        let mut data = [0; 2];
        block.read(port, &mut data);
        u16::from_le_bytes(data)
    }

    #[test]
    fn power_button_interrupts_until_it_is_acknowledged() {
        let rig = rig();
        rig.block.press_power_button();
        assert!(!rig.sci.level(), "not enabled yet");
        rig.block
            .write(PmBlock::EVENT_PORT + 2, &0x0100_u16.to_le_bytes());
        assert!(rig.sci.level());
        assert_eq!(read16(&rig.block, PmBlock::EVENT_PORT), 0x0100);
        rig.block.write(PmBlock::EVENT_PORT, &[0xff]);
        assert!(rig.sci.level(), "the low byte holds another event");
        rig.block
            .write(PmBlock::EVENT_PORT, &0x0100_u16.to_le_bytes());
        assert!(!rig.sci.level());
        assert_eq!(read16(&rig.block, PmBlock::EVENT_PORT), 0);
    }

    #[test]
    fn only_soft_off_switches_off() {
        let rig = rig();
        let sleep = |kind: u16| (1 << 13) | (kind << SLEEP_TYPE_SHIFT);
        rig.block
            .write(PmBlock::CONTROL_PORT, &sleep(1).to_le_bytes());
        rig.block.write(
            PmBlock::CONTROL_PORT,
            &(5_u16 << SLEEP_TYPE_SHIFT).to_le_bytes(),
        );
        assert!(rig.machine.0.lock().is_empty());
        rig.block
            .write(PmBlock::CONTROL_PORT, &sleep(5).to_le_bytes());
        assert_eq!(*rig.machine.0.lock(), [MachineRequest::PowerOff]);
        assert_eq!(read16(&rig.block, PmBlock::CONTROL_PORT) & (1 << 13), 0);
    }

    #[test]
    fn soft_off_by_single_bytes() {
        let rig = rig();
        rig.block.write(
            PmBlock::CONTROL_PORT + 1,
            &[(SLEEP_TYPE_S5 << 2) | (1 << 5)],
        );
        assert_eq!(*rig.machine.0.lock(), [MachineRequest::PowerOff]);
    }

    #[test]
    fn timer_counts_at_its_rate_and_wraps() {
        let rig = rig();
        let read = || {
            let mut data = [0; 4];
            rig.block.read(PmBlock::TIMER_PORT, &mut data);
            u32::from_le_bytes(data)
        };
        rig.clock.0.store(2_000_000_000, Ordering::Relaxed);
        assert_eq!(read(), 2 * 3_579_545);
        // 1200 s: just past 2^32 ticks.
        rig.clock.0.store(1_200_000_000_000, Ordering::Relaxed);
        assert_eq!(u64::from(read()), 1200 * 3_579_545 - (1 << 32));
    }

    #[test]
    fn reset_clears_events_and_line() {
        let rig = rig();
        rig.block
            .write(PmBlock::EVENT_PORT + 2, &0x0100_u16.to_le_bytes());
        rig.block.press_power_button();
        assert!(rig.sci.level());
        drop(Arc::clone(&rig.block).reset());
        assert!(!rig.sci.level());
        assert_eq!(read16(&rig.block, PmBlock::EVENT_PORT + 2), 0);
    }
}
