//! The machine without vCPUs: the real binary, spoken to in the qtest protocol.
#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole crate is a test"
)]

mod backup_errors;
#[cfg(feature = "test-hooks")]
mod chains;
mod exits;
mod frozen;
mod groups;
mod hostile;
mod hotplug;
mod ide;
mod ide_commands;
mod ide_drives;
mod ide_packets;
mod ide_resets;
mod in_kernel;
mod interception;
mod jobs;
mod media;
mod mirror;
mod mirror_automatic;
mod mirror_policies;
mod printing;
mod process;
mod rough;
mod scenarios;
mod small_disk;
mod stop;
mod two_disks;
mod virtio;
mod virtio_commands;
mod virtio_features;
mod virtio_queues;
mod writer;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Output, Stdio};

/// A machine and the test's end of its socket. The test listens, as libqtest does.
struct Machine {
    child: Child,
    answers: BufReader<UnixStream>,
    stream: UnixStream,
    _directory: tempfile::TempDir,
}

impl Machine {
    fn start(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qtest.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_sluice"))
            .args([
                "-accel",
                "qtest",
                "-serial",
                "null",
                "-qtest-log",
                "none",
                "-m",
                "64",
            ])
            .args(["-qtest", &format!("unix:{}", path.display())])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (stream, _) = listener.accept().unwrap();
        let answers = BufReader::new(stream.try_clone().unwrap());
        Self {
            child,
            answers,
            stream,
            _directory: directory,
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Sends a command; returns the interrupts told before the answer, and the answer.
    fn command(&mut self, command: &str) -> (Vec<String>, String) {
        writeln!(self.stream, "{command}").unwrap();
        let mut interrupts = Vec::new();
        loop {
            let line = self.line();
            if !line.starts_with("IRQ ") {
                return (interrupts, line);
            }
            interrupts.push(line);
        }
    }

    fn ask(&mut self, command: &str) -> String {
        self.command(command).1
    }

    /// Gives the IDE master the command READ SECTORS for sector 1, by LBA; returns the interrupts
    /// that came with the answers.
    fn read_sector_1(&mut self) -> Vec<String> {
        for (port, value) in [
            (0x1f2, 1),
            (0x1f3, 1),
            (0x1f4, 0),
            (0x1f5, 0),
            (0x1f6, 0xe0),
        ] {
            assert_eq!(self.ask(&format!("outb {port:#x} {value:#x}")), "OK");
        }
        let (interrupts, answer) = self.command("outb 0x1f7 0x20");
        assert_eq!(answer, "OK");
        interrupts
    }

    fn end(self) -> Output {
        drop((self.stream, self.answers));
        self.child.wait_with_output().unwrap()
    }
}

#[test]
fn pci_bus_is_there_without_a_cpu() {
    let mut machine = Machine::start(&[]);
    assert_eq!(machine.ask("endianness"), "OK little");
    assert_eq!(machine.ask("outl 0xcf8 0x80000000"), "OK");
    assert_eq!(machine.ask("inl 0xcfc"), "OK 0x12378086");
    assert_eq!(machine.ask("outl 0xcf8 0x80000900"), "OK");
    assert_eq!(machine.ask("inw 0xcfe"), "OK 0x7010");
    assert_eq!(machine.ask("outw 0x604 0x3400"), "OK");
    let output = machine.end();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn devices_go_by_the_clock_of_the_test() {
    let mut machine = Machine::start(&[]);
    assert_eq!(machine.ask("inl 0x608"), "OK 0x0000");
    assert_eq!(machine.ask("clock_step 1000000000"), "OK 1000000000");
    assert_eq!(machine.ask("inl 0x608"), "OK 0x369e99");
    assert_eq!(machine.ask("inl 0x608"), "OK 0x369e99");
    machine.child.kill().unwrap();
    machine.end();
}

#[test]
fn ide_disk_answers_and_its_interrupt_is_told() {
    let disk = tempfile::NamedTempFile::new().unwrap();
    let mut sectors = vec![0; 1 << 20];
    sectors[512..514].copy_from_slice(&[0x5a, 0xa5]);
    std::fs::write(disk.path(), &sectors).unwrap();
    let drive = format!("file={},format=raw,if=ide", disk.path().display());
    let mut machine = Machine::start(&["-drive", &drive]);
    assert_eq!(machine.ask("irq_intercept_in ioapic"), "OK");
    let mut interrupts = machine.read_sector_1();
    // The disk is read meanwhile: a command with an answer lets the interrupt through.
    while interrupts.is_empty() {
        interrupts = machine.command("inb 0x3f6").0;
    }
    assert_eq!(interrupts, ["IRQ raise 14"]);
    let (interrupts, status) = machine.command("inb 0x1f7");
    assert_eq!(
        (interrupts.as_slice(), status.as_str()),
        (&["IRQ lower 14".to_owned()][..], "OK 0x0058")
    );
    assert_eq!(machine.ask("inw 0x1f0"), "OK 0xa55a");
    machine.child.kill().unwrap();
    machine.end();
}

/// One read a second: the second one waits for the test's clock, and the guest sees a busy drive.
#[test]
fn throttled_disk_goes_by_the_clock_of_the_test() {
    let node = "throttle,node-name=t,throttle-group=g,file.driver=null-co,file.read-zeroes=on";
    let mut machine = Machine::start(&[
        "-object",
        "throttle-group,id=g,limits.iops-read=1",
        "-blockdev",
        node,
        "-device",
        "ide-hd,drive=t",
    ]);
    assert_eq!(machine.ask("irq_intercept_in ioapic"), "OK");
    let mut interrupts = machine.read_sector_1();
    while interrupts.is_empty() {
        interrupts = machine.command("inb 0x3f6").0;
    }
    // Reading the status and the data makes the drive ready for the next command.
    assert_eq!(machine.ask("inb 0x1f7"), "OK 0x0058");
    for _ in 0..256 {
        assert_eq!(machine.ask("inw 0x1f0"), "OK 0x0000");
    }
    let interrupts = machine.read_sector_1();
    assert!(interrupts.is_empty(), "{interrupts:?}");
    // A tenth of a second of the rate is had in advance.
    assert_eq!(machine.ask("clock_step 899999999"), "OK 899999999");
    for _ in 0..100 {
        let (interrupts, status) = machine.command("inb 0x3f6");
        assert!(interrupts.is_empty(), "{interrupts:?}");
        assert_eq!(status, "OK 0x00c0", "busy");
    }
    let (mut interrupts, answer) = machine.command("clock_step 1");
    assert_eq!(answer, "OK 900000000");
    while interrupts.is_empty() {
        interrupts = machine.command("inb 0x3f6").0;
    }
    assert_eq!(interrupts, ["IRQ raise 14"]);
    machine.child.kill().unwrap();
    machine.end();
}

#[test]
fn signal_ends_it_in_order() {
    let machine = Machine::start(&[]);
    let pid = machine.child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(
        machine.child.wait_with_output().unwrap().status.code(),
        Some(0)
    );
}

#[test]
fn socket_that_nobody_listens_on_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(["-accel", "qtest", "-qtest", "unix:/nonexistent/qtest.sock"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(8), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/qtest.sock"));
}
