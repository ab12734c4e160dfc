//! Tests of the configuration space against the rules of chapter 6.

use proptest::prelude::*;

use super::*;
use crate::pci::layout::{CapabilityId, InterruptPin, class};
use crate::pci::testing::{RecordedLine, SlowLine};

fn identity() -> Identity {
    Identity {
        vendor: 0x8086,
        device: 0x7010,
        revision: 3,
        class: class::IDE,
    }
}

fn space() -> PciConfig {
    ConfigBuilder::new(identity())
        .bar(BarIndex::BAR0, BarKind::Memory64, 0x4000)
        .unwrap()
        .bar(BarIndex::BAR4, BarKind::Io, 16)
        .unwrap()
        .interrupt_pin(InterruptPin::A)
        .build()
}

#[test]
fn identity_is_read_only_and_in_its_place() {
    let config = space();
    assert_eq!(config.read_u32(0), 0x7010_8086);
    assert_eq!(config.read_u32(8), 0x0101_8003);
    config.write(0, &[0xff; 4]);
    config.write(8, &[0; 4]);
    assert_eq!(config.read_u32(0), 0x7010_8086);
    assert_eq!(config.read_u32(8), 0x0101_8003);
}

#[test]
fn all_ones_tell_a_bars_size() {
    let config = space();
    config.write(0x10, &[0xff; 4]);
    config.write(0x14, &[0xff; 4]);
    config.write(0x20, &[0xff; 4]);
    assert_eq!(config.read_u32(0x10), 0xffff_c004);
    assert_eq!(config.read_u32(0x14), 0xffff_ffff);
    assert_eq!(config.read_u32(0x20), 0xffff_fff1);
    config.write(0x18, &[0xff; 4]);
    assert_eq!(
        config.read_u32(0x18),
        0,
        "a BAR that is not there reads as zero"
    );
}

#[test]
fn a_bar_answers_only_when_enabled() {
    let config = space();
    config.write(0x20, &0xc000_u32.to_le_bytes());
    assert_eq!(config.bar_place(BarIndex::BAR4), None);
    let change = config.write(offset::COMMAND, &[1, 0]);
    assert_eq!(change, ConfigChange::BARS);
    assert_eq!(config.bar_place(BarIndex::BAR4), Some(0xc000));
    assert_eq!(config.bar_place(BarIndex::BAR0), None);
    assert_eq!(
        config.write(offset::COMMAND, &[5, 0]),
        ConfigChange::BUS_MASTER
    );
    assert!(config.is_bus_master());
}

#[test]
fn bars_do_not_overlap() {
    let builder = ConfigBuilder::new(identity()).bar(BarIndex::BAR0, BarKind::Memory64, 4096);
    assert!(
        builder
            .unwrap()
            .bar(BarIndex::BAR1, BarKind::Io, 16)
            .is_err()
    );
    let builder = ConfigBuilder::new(identity());
    assert!(
        builder
            .bar(BarIndex::BAR5, BarKind::Memory64, 4096)
            .is_err()
    );
}

#[test]
fn capabilities_form_a_list() {
    let mut builder = ConfigBuilder::new(identity());
    let first = builder
        .capability(CapabilityId::MsiX, &[0; 10], &[0, 0xc0])
        .unwrap();
    let second = builder
        .capability(CapabilityId::Vendor, &[1, 2, 3], &[])
        .unwrap();
    assert!(
        builder
            .capability(CapabilityId::Vendor, &[0; 200], &[])
            .is_err()
    );
    let config = builder.build();
    assert_ne!(
        config.read_u16(offset::STATUS) & Status::CAPABILITIES.bits(),
        0
    );
    assert_eq!(usize::from(config.read_u8(offset::CAPABILITIES)), first);
    assert_eq!(config.read_u8(first), CapabilityId::MsiX as u8);
    assert_eq!(usize::from(config.read_u8(first + 1)), second);
    assert_eq!(config.read_u8(second + 1), 0);
    assert_eq!(second % 4, 0);
    config.write(first + 2, &[0xff; 2]);
    assert_eq!(config.read_u16(first + 2), 0xc000);
}

#[test]
fn intx_obeys_the_disable_bit() {
    let mut config = space();
    let line = RecordedLine::new();
    config.connect_intx(line.clone(), 10);
    assert_eq!(config.read_u8(offset::INTERRUPT_LINE), 10);
    config.update_intx(|| true);
    assert!(line.level());
    config.write(offset::COMMAND, &Command::INTX_DISABLE.bits().to_le_bytes());
    assert!(!line.level());
    assert_ne!(
        config.read_u16(offset::STATUS) & Status::INTERRUPT.bits(),
        0
    );
    config.write(offset::COMMAND, &[0, 0]);
    assert!(line.level());
    config.update_intx(|| false);
    assert!(!line.level());
    assert_eq!(
        config.read_u16(offset::STATUS) & Status::INTERRUPT.bits(),
        0
    );
}

/// The system call that raises the line wakes a processor of the guest's, whose accesses must not wait for that call's
/// end.
#[test]
fn registers_answer_while_the_line_is_being_raised() {
    let mut config = space();
    let (line, holder) = SlowLine::new();
    config.connect_intx(line, 10);
    let pending = holder.answer_meanwhile(
        || config.update_intx(|| true),
        || {
            config.write(offset::COMMAND, &Command::IO.bits().to_le_bytes());
            config.update_intx(|| true);
            config.read_u16(offset::STATUS) & Status::INTERRUPT.bits()
        },
    );
    assert_ne!(pending, 0);
    assert_eq!(config.command(), Command::IO);
}

#[test]
fn the_line_follows_whoever_changes_it() {
    const THREADS: usize = 4;
    const EACH: usize = 500;
    let mut config = space();
    let line = RecordedLine::new();
    config.connect_intx(line.clone(), 10);
    let disable = [Command::INTX_DISABLE, Command::empty()].map(|command| command.bits());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for turn in 0..EACH {
                    config.update_intx(|| turn % 3 != 0);
                    config.write(offset::COMMAND, &disable[turn % 2].to_le_bytes());
                }
            });
        }
    });
    config.update_intx(|| false);
    assert!(!line.level());
    config.write(offset::COMMAND, &disable[1].to_le_bytes());
    config.update_intx(|| true);
    assert!(line.level());
}

#[test]
fn reset_restores_everything_but_the_firmwares_line_number() {
    let mut config = space();
    let line = RecordedLine::new();
    config.connect_intx(line.clone(), 11);
    config.update_intx(|| true);
    config.write(0x20, &0xc000_u32.to_le_bytes());
    config.write(offset::COMMAND, &[7, 0]);
    config.write(offset::INTERRUPT_LINE, &[3]);
    config.reset();
    assert!(!line.level());
    assert_eq!(config.command(), Command::empty());
    assert_eq!(config.read_u32(0x20), 1);
    assert_eq!(config.read_u8(offset::INTERRUPT_LINE), 11);
}

proptest! {
    /// Whatever is written in whatever widths: read-only bits stay, and BARs sit on multiples of
    /// their size.
    #[test]
    fn writes_never_touch_read_only_bits(writes in prop::collection::vec((0_usize..260, any::<[u8; 4]>(), 1_usize..=4), 0..64)) {
        let config = space();
        for (offset, data, len) in writes {
            config.write(offset, &data[..len]);
            prop_assert_eq!(config.read_u32(0), 0x7010_8086);
            prop_assert_eq!(config.read_u32(0x10) & 0x3fff, 4);
            prop_assert_eq!(config.read_u32(0x20) & 0xf, 1);
            prop_assert_eq!(config.read_u16(offset::COMMAND) & !Command::all().bits(), 0);
            for bar in BarIndex::ALL {
                if let (Some((_, size)), Some(place)) = (config.bar(bar), config.bar_place(bar)) {
                    prop_assert_eq!(place % size, 0);
                }
            }
        }
    }
}
