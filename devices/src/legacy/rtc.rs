//! The MC146818 clock with its CMOS memory (Motorola MC146818A datasheet), ports 0x70 and 0x71.
//!
//! The guest reads the host's wall clock in UTC, plus whatever offset it set itself. There is no
//! interrupt: neither the alarm nor the periodic rate does anything, and the ACPI tables claim no
//! interrupt for the clock, so that a guest does not wait for one.

use std::sync::Arc;

use bitflags::bitflags;
use parking_lot::Mutex;

use crate::bus::PioDevice;
use crate::clock::Clock;

const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const DAY_OF_WEEK: u8 = 0x06;
const DAY_OF_MONTH: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;

/// Register A after power-on: 32768 Hz time base, 1024 Hz rate; never in the middle of an update.
const TIME_BASE: u8 = 0x26;
/// Register D: memory and time are valid.
const VALID: u8 = 0x80;
/// Bytes of memory, registers included.
const SIZE: usize = 128;

bitflags! {
    /// Register B.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Mode: u8 {
        /// Daylight saving: not done.
        const DAYLIGHT = 1 << 0;
        /// Hours count to 24, not to 12.
        const HOURS_24 = 1 << 1;
        /// Binary, not decimal digits.
        const BINARY = 1 << 2;
        /// The guest is setting the time: the clock stands still.
        const SET = 1 << 7;
        /// Square wave and interrupt enables, kept but without effect.
        const INTERRUPTS = 0b0111_1000;
    }
}

/// A calendar date and time of day, UTC, proleptic Gregorian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Civil {
    year: i64,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
    /// 1 is Sunday.
    weekday: u8,
}

const DAY: i64 = 86_400;

/// Days from 1970-01-01 to the first of `month` (1 to 12) of `year`.
fn days_to_month(year: i64, month: u8) -> i64 {
    // Count years from March, so that the leap day is the last of its year.
    let (year, month) = if month <= 2 {
        (year - 1, i64::from(month) + 9)
    } else {
        (year, i64::from(month) - 3)
    };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // Months from March have 31, 30, 31, 30, 31 days, twice over: 153 days in five of them.
    let days_in_year = (153 * month + 2) / 5;
    // 719468 days lie between 0000-03-01 and 1970-01-01.
    365 * year + leap_days + days_in_year - 719_468
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "remainders of small positive moduli"
)]
fn civil_from_unix(seconds: i64) -> Civil {
    let days = seconds.div_euclid(DAY);
    let time = seconds.rem_euclid(DAY);
    // Guess the year from the mean length of 365.2425 days, then correct.
    let mut year = 1970 + (days * 400).div_euclid(146_097);
    while days_to_month(year, 1) > days {
        year -= 1;
    }
    while days_to_month(year + 1, 1) <= days {
        year += 1;
    }
    let mut month = 12;
    while days_to_month(year, month) > days {
        month -= 1;
    }
    Civil {
        year,
        month,
        day: (days - days_to_month(year, month) + 1) as u8,
        hour: (time / 3600) as u8,
        minute: (time / 60 % 60) as u8,
        second: (time % 60) as u8,
        // 1970-01-01 was a Thursday, the fifth day.
        weekday: ((days + 4).rem_euclid(7) + 1) as u8,
    }
}

fn unix_from_civil(civil: &Civil) -> i64 {
    let days = days_to_month(civil.year, civil.month.clamp(1, 12)) + i64::from(civil.day) - 1;
    days * DAY
        + i64::from(civil.hour) * 3600
        + i64::from(civil.minute) * 60
        + i64::from(civil.second)
}

struct State {
    index: u8,
    mode: Mode,
    /// What the guest stored; the time registers only while it is setting the time.
    memory: [u8; SIZE],
    /// Guest's time less the host's, in seconds.
    offset: i64,
}

/// The clock and its memory.
pub struct CmosRtc {
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
}

impl CmosRtc {
    /// Selects the register.
    pub const INDEX_PORT: u16 = 0x70;
    /// Reads or writes the selected register.
    pub const DATA_PORT: u16 = 0x71;
    /// The byte that holds the century; the ACPI tables name it.
    pub const CENTURY: u8 = 0x32;

    /// A clock that follows `clock`'s wall-clock time.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let state = State {
            index: 0,
            mode: Mode::HOURS_24,
            memory: [0; SIZE],
            offset: 0,
        };
        Self {
            state: Mutex::new(state),
            clock,
        }
    }

    fn now(&self, state: &State) -> Civil {
        civil_from_unix(self.clock.unix_seconds().saturating_add(state.offset))
    }

    fn read_register(&self, state: &State) -> u8 {
        let frozen = state.mode.contains(Mode::SET);
        match state.index {
            SECONDS
            | MINUTES
            | HOURS
            | DAY_OF_WEEK
            | DAY_OF_MONTH
            | MONTH
            | YEAR
            | Self::CENTURY
                if !frozen =>
            {
                encode(&self.now(state), state.index, state.mode)
            }
            REGISTER_A => TIME_BASE,
            REGISTER_B => state.mode.bits(),
            REGISTER_C => 0,
            REGISTER_D => VALID,
            index => state.memory[usize::from(index)],
        }
    }

    fn write_register(&self, state: &mut State, value: u8) {
        match state.index {
            REGISTER_B => {
                let mode = Mode::from_bits_truncate(value);
                let was_setting = state.mode.contains(Mode::SET);
                if mode.contains(Mode::SET) && !was_setting {
                    let now = self.now(state);
                    for index in TIME_REGISTERS {
                        state.memory[usize::from(index)] = encode(&now, index, mode);
                    }
                }
                if was_setting && !mode.contains(Mode::SET) {
                    let set = decode(&state.memory, mode);
                    state.offset = unix_from_civil(&set).saturating_sub(self.clock.unix_seconds());
                }
                state.mode = mode;
            }
            REGISTER_A | REGISTER_C | REGISTER_D => {}
            // Alarms are memory like any other: nothing compares them.
            SECONDS_ALARM | MINUTES_ALARM | HOURS_ALARM => {
                state.memory[usize::from(state.index)] = value;
            }
            index if TIME_REGISTERS.contains(&index) => {
                state.memory[usize::from(index)] = value;
                // Set on the fly: the other registers keep running.
                if !state.mode.contains(Mode::SET) {
                    let now = self.now(state);
                    for other in TIME_REGISTERS.into_iter().filter(|other| *other != index) {
                        state.memory[usize::from(other)] = encode(&now, other, state.mode);
                    }
                    let set = decode(&state.memory, state.mode);
                    state.offset = unix_from_civil(&set).saturating_sub(self.clock.unix_seconds());
                }
            }
            index => state.memory[usize::from(index)] = value,
        }
    }
}

const TIME_REGISTERS: [u8; 8] = [
    SECONDS,
    MINUTES,
    HOURS,
    DAY_OF_WEEK,
    DAY_OF_MONTH,
    MONTH,
    YEAR,
    CmosRtc::CENTURY,
];

/// Bit of the hours register that means afternoon, when hours count to 12.
const AFTERNOON: u8 = 0x80;

fn to_digits(value: u8, mode: Mode) -> u8 {
    if mode.contains(Mode::BINARY) {
        value
    } else {
        ((value / 10) << 4) | (value % 10)
    }
}

fn from_digits(value: u8, mode: Mode) -> u8 {
    if mode.contains(Mode::BINARY) {
        value
    } else {
        (value >> 4) * 10 + (value & 0xf)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "remainders of 100 fit")]
fn encode(now: &Civil, index: u8, mode: Mode) -> u8 {
    match index {
        SECONDS => to_digits(now.second, mode),
        MINUTES => to_digits(now.minute, mode),
        HOURS if mode.contains(Mode::HOURS_24) => to_digits(now.hour, mode),
        HOURS => {
            let afternoon = if now.hour >= 12 { AFTERNOON } else { 0 };
            to_digits((now.hour + 11) % 12 + 1, mode) | afternoon
        }
        DAY_OF_WEEK => to_digits(now.weekday, mode),
        DAY_OF_MONTH => to_digits(now.day, mode),
        MONTH => to_digits(now.month, mode),
        YEAR => to_digits(now.year.rem_euclid(100) as u8, mode),
        _ => to_digits(now.year.div_euclid(100).rem_euclid(100) as u8, mode),
    }
}

fn decode(memory: &[u8; SIZE], mode: Mode) -> Civil {
    let field = |index: u8| from_digits(memory[usize::from(index)], mode);
    let hours = memory[usize::from(HOURS)];
    let hour = if mode.contains(Mode::HOURS_24) {
        from_digits(hours, mode)
    } else {
        from_digits(hours & !AFTERNOON, mode) % 12 + if hours & AFTERNOON == 0 { 0 } else { 12 }
    };
    Civil {
        year: i64::from(field(CmosRtc::CENTURY)) * 100 + i64::from(field(YEAR)),
        month: field(MONTH),
        day: field(DAY_OF_MONTH),
        hour,
        minute: field(MINUTES),
        second: field(SECONDS),
        weekday: field(DAY_OF_WEEK),
    }
}

impl PioDevice for CmosRtc {
    fn read(&self, port: u16, data: &mut [u8]) {
        let state = self.state.lock();
        let value = if port == Self::DATA_PORT {
            self.read_register(&state)
        } else {
            0xff
        };
        data.fill(0xff);
        if let Some(first) = data.first_mut() {
            *first = value;
        }
    }

    fn write(&self, port: u16, data: &[u8]) {
        let Some(value) = data.first() else { return };
        let mut state = self.state.lock();
        if port == Self::INDEX_PORT {
            // The top bit masks the NMI, which nothing here sends.
            state.index = value & 0x7f;
        } else {
            self.write_register(&mut state, *value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    struct WallClock(AtomicI64);

    impl Clock for WallClock {
        fn monotonic_ns(&self) -> u64 {
            0
        }

        fn unix_seconds(&self) -> i64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    fn rtc_at(seconds: i64) -> (CmosRtc, Arc<WallClock>) {
        let clock = Arc::new(WallClock(AtomicI64::new(seconds)));
        (CmosRtc::new(clock.clone()), clock)
    }

    fn get(rtc: &CmosRtc, index: u8) -> u8 {
        rtc.write(CmosRtc::INDEX_PORT, &[index]);
        let mut data = [0];
        rtc.read(CmosRtc::DATA_PORT, &mut data);
        data[0]
    }

    fn put(rtc: &CmosRtc, index: u8, value: u8) {
        rtc.write(CmosRtc::INDEX_PORT, &[index]);
        rtc.write(CmosRtc::DATA_PORT, &[value]);
    }

    #[test]
    fn calendar_agrees_with_known_dates() {
        let cases = [
            (0, (1970, 1, 1, 5)),
            (951_782_400, (2000, 2, 29, 3)),
            (951_868_800, (2000, 3, 1, 4)),
            (4_107_542_400, (2100, 3, 1, 2)),
            (4_107_456_000, (2100, 2, 28, 1)),
            (-86_400, (1969, 12, 31, 4)),
            (1_795_392_000, (2026, 11, 23, 2)),
        ];
        for (seconds, (year, month, day, weekday)) in cases {
            let civil = civil_from_unix(seconds);
            assert_eq!(
                (civil.year, civil.month, civil.day, civil.weekday),
                (year, month, day, weekday),
                "{seconds}"
            );
            assert_eq!(unix_from_civil(&civil), seconds);
        }
    }

    #[test]
    fn calendar_is_the_inverse_of_itself_for_a_century() {
        for day in 0..40_000 {
            let seconds = day * DAY + day % DAY;
            assert_eq!(unix_from_civil(&civil_from_unix(seconds)), seconds);
        }
    }

    #[test]
    fn time_is_shown_in_decimal_digits() {
        // 2026-11-23 17:45:59
        let (rtc, _) = rtc_at(1_795_392_000 + 17 * 3600 + 45 * 60 + 59);
        let shown = TIME_REGISTERS.map(|index| get(&rtc, index));
        assert_eq!(shown, [0x59, 0x45, 0x17, 0x02, 0x23, 0x11, 0x26, 0x20]);
        put(&rtc, REGISTER_B, (Mode::BINARY | Mode::HOURS_24).bits());
        assert_eq!(get(&rtc, HOURS), 17);
        put(&rtc, REGISTER_B, 0);
        assert_eq!(get(&rtc, HOURS), 0x05 | AFTERNOON);
    }

    #[test]
    fn time_set_by_the_guest_runs_on_from_there() {
        let (rtc, clock) = rtc_at(1_000);
        put(&rtc, REGISTER_B, (Mode::SET | Mode::HOURS_24).bits());
        for (index, value) in TIME_REGISTERS
            .into_iter()
            .zip([0x58, 0x59, 0x23, 0x05, 0x31, 0x12, 0x99, 0x19])
        {
            put(&rtc, index, value);
        }
        clock.0.store(2_000, Ordering::Relaxed);
        assert_eq!(get(&rtc, SECONDS), 0x58, "stands still while being set");
        put(&rtc, REGISTER_B, Mode::HOURS_24.bits());
        clock.0.store(2_002, Ordering::Relaxed);
        let shown = TIME_REGISTERS.map(|index| get(&rtc, index));
        assert_eq!(shown, [0, 0, 0, 0x07, 0x01, 0x01, 0x00, 0x20]);
    }

    #[test]
    fn memory_keeps_what_is_stored_and_reads_as_valid() {
        let (rtc, _) = rtc_at(0);
        put(&rtc, 0x40, 0xa5);
        assert_eq!(get(&rtc, 0x40), 0xa5);
        assert_eq!(get(&rtc, 0x40 | 0x80), 0xa5);
        assert_eq!(get(&rtc, REGISTER_D), VALID);
        assert_eq!(get(&rtc, REGISTER_A) & 0x80, 0);
    }

    #[test]
    fn nonsense_dates_do_not_harm() {
        let (rtc, _) = rtc_at(0);
        put(&rtc, REGISTER_B, Mode::SET.bits());
        for index in TIME_REGISTERS {
            put(&rtc, index, 0xff);
        }
        put(&rtc, REGISTER_B, 0);
        let _ = TIME_REGISTERS.map(|index| get(&rtc, index));
    }
}
