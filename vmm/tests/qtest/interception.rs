//! Interrupts that a client asks to be told of.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use sluice_tests::process::Machine;
use sluice_tests::qtest::{Change, Qtest};

use super::process::SLUICE;

/// How long anything may take. Nothing depends on it but the end of a test that hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// The machine listens, for one client after the other.
fn connect(path: &Path) -> Qtest {
    let began = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Qtest::new(stream).unwrap(),
            Err(error) => assert!(began.elapsed() < LIMIT, "nobody listens: {error}"),
        }
    }
}

/// Has the drive interrupt, and takes the interrupt.
fn interrupt(qtest: &mut Qtest) -> Vec<Change> {
    // NOP, which every drive aborts.
    qtest.out8(0x1f7, 0).unwrap();
    qtest.in8(0x1f7).unwrap();
    qtest.take_changes()
}

const TOLD: [Change; 2] = [
    Change {
        irq: 14,
        level: true,
    },
    Change {
        irq: 14,
        level: false,
    },
];

#[test]
fn it_ends_with_the_client_that_asked_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qtest");
    let listen = format!("unix:{},server=on", path.display());
    let mut process = Machine::start(
        SLUICE,
        [
            "-accel",
            "qtest",
            "-qtest-log",
            "none",
            "-serial",
            "none",
            "-qtest",
            &listen,
            "-blockdev",
            "null-co,node-name=disk,size=1M",
            "-device",
            "ide-hd,drive=disk,id=d0",
        ],
    )
    .unwrap();
    for client in 0..3 {
        let mut qtest = connect(&path);
        let refused = qtest.raw("irq_intercept_out ioapic").unwrap();
        assert_eq!(refused, "FAIL No intercepts installed", "client {client}");
        // A disk has nothing of its own to intercept, whatever the list's name.
        for command in [
            "irq_intercept_in d0",
            "irq_intercept_out d0",
            "irq_intercept_out /machine/peripheral/d0 sysbus-irq",
        ] {
            let refused = qtest.raw(command).unwrap();
            assert_eq!(refused, "FAIL No intercepts installed", "{command}");
        }
        assert_eq!(interrupt(&mut qtest), [], "client {client}");
        qtest.intercept_interrupts().unwrap();
        assert_eq!(interrupt(&mut qtest), TOLD, "client {client}");
        // Where something is intercepted this is, with a name or without.
        assert_eq!(qtest.raw("irq_intercept_out ioapic").unwrap(), "OK");
        assert_eq!(qtest.raw("irq_intercept_out ioapic any").unwrap(), "OK");
        let other = qtest.raw("irq_intercept_out d0 any").unwrap();
        assert_eq!(other, "FAIL IRQ intercept already enabled");
        let unknown = qtest.raw("irq_intercept_out nobody any").unwrap();
        assert_eq!(unknown, "FAIL Unknown device");
        // It goes with a line that is high, which is nobody's to be told of.
        qtest.out8(0x1f7, 0).unwrap();
        if client == 1 {
            // In the middle of a command.
            drop(qtest.raw("in").unwrap());
        }
    }
    process.signal(rustix::process::Signal::TERM).unwrap();
    assert_eq!(process.wait_end(LIMIT).unwrap().code(), Some(0));
}
