//! The interrupt line and the threads that drive it.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::Duration;

use parking_lot::Mutex;

use super::bench::*;
use crate::ide::channel::{Channel, Wiring};
use crate::ide::controller::configuration_space;
use crate::ide::core::{Core, Unit};
use crate::ide::disk::Disk;
use crate::ide::regs::Register;
use crate::ide::{DriveConfig, IdeVariant};
use crate::irq::IrqLine;

/// Longer than any step takes: a test that waits in vain fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(30);

/// A command that every device aborts at once, with an interrupt.
const NOP: u8 = 0x00;

/// A line whose rise takes until it is let go.
struct SlowLine {
    rising: SyncSender<()>,
    go_on: Mutex<Receiver<()>>,
}

impl IrqLine for SlowLine {
    fn set(&self, level: bool) {
        if level {
            self.rising.send(()).unwrap();
            self.go_on.lock().recv_timeout(PATIENCE).unwrap();
        }
    }
}

/// The system call that raises the line wakes a processor of the guest's, whose first access must not wait for that
/// call's end.
#[test]
fn registers_answer_while_the_line_is_being_raised() {
    let bench = Bench::new();
    let config = DriveConfig::new(Arc::clone(&bench.disks[0].backend));
    let disk = Disk::new(&config, 1).unwrap();
    let core = Core::new([Some(Unit::Disk(disk)), None]);
    let (rising, has_begun) = mpsc::sync_channel(1);
    let (let_go, go_on) = mpsc::sync_channel(1);
    let line = Arc::new(SlowLine {
        rising,
        go_on: Mutex::new(go_on),
    });
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
    std::thread::scope(|scope| {
        scope.spawn(|| channel.access(|core| core.write(Register::StatusCommand, NOP)));
        has_begun.recv_timeout(PATIENCE).unwrap();
        let (answer, answered) = mpsc::sync_channel(1);
        let channel = &channel;
        scope.spawn(move || {
            answer
                .send(channel.access(|core| core.alternate_status()))
                .unwrap();
        });
        let answer = answered.recv_timeout(PATIENCE);
        let_go.send(()).unwrap();
        assert_eq!(answer, Ok(DRDY | ERR));
    });
}
