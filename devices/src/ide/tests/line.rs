//! The interrupt line and the threads that drive it.

use std::sync::Arc;

use super::bench::*;
use crate::ide::channel::{Channel, Wiring};
use crate::ide::controller::configuration_space;
use crate::ide::core::{Core, Unit};
use crate::ide::disk::Disk;
use crate::ide::regs::Register;
use crate::ide::{DriveConfig, IdeVariant};
use crate::pci::testing::SlowLine;

/// A command that every device aborts at once, with an interrupt.
const NOP: u8 = 0x00;

/// The system call that raises the line wakes a processor of the guest's, whose first access must not wait for that
/// call's end.
#[test]
fn registers_answer_while_the_line_is_being_raised() {
    let bench = Bench::new();
    let config = DriveConfig::new(Arc::clone(&bench.disks[0].backend));
    let disk = Disk::new(&config, 1).unwrap();
    let core = Core::new([Some(Unit::Disk(disk)), None]);
    let (line, holder) = SlowLine::new();
    let channel = Channel::new(
        core,
        Wiring {
            line,
            posted: bench.posted.clone(),
        },
        [Some(&config), None],
        &bench.context(),
        Arc::clone(&bench.memory),
        Arc::new(configuration_space(IdeVariant::Piix3).unwrap()),
    );
    let answer = holder.answer_meanwhile(
        || channel.access(|core| core.write(Register::StatusCommand, NOP)),
        || channel.access(|core| core.alternate_status()),
    );
    assert_eq!(answer, DRDY | ERR);
}
