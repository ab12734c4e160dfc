//! The contract of the process with a test that starts it: arguments, sockets, log, exit status.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::qmp::Qmp;
use sluice_tests::qtest::machine::QtestMachine;

pub const SLUICE: &str = env!("CARGO_BIN_EXE_sluice");

/// The program under test: where cargo built it, unless this runs on another host than cargo.
pub fn program() -> String {
    std::env::var("SLUICE_PROGRAM").unwrap_or_else(|_| SLUICE.to_owned())
}

const LIMIT: Duration = Duration::from_secs(60);

fn start(arguments: &[&str]) -> QtestMachine {
    QtestMachine::start(SLUICE, arguments).unwrap()
}

/// What libqtest does with every machine, also with one that has nothing.
#[test]
fn machines_answer_on_both_sockets_and_end_with_zero() {
    for arguments in [
        &[
            "-machine",
            "pc",
            "-nodefaults",
            "-vga",
            "none",
            "-net",
            "none",
        ][..],
        &["-machine", "none", "-nodefaults"],
        &[
            "-M",
            "pc",
            "-S",
            "-no-shutdown",
            "-global",
            "ide-hd.serial=x",
        ],
    ] {
        let mut machine = start(arguments);
        let status = machine.qmp.execute("query-status", &json!({})).unwrap();
        let expected = if arguments.contains(&"-S") {
            "prelaunch"
        } else {
            "running"
        };
        assert_eq!(status["status"], expected);
        let machines = machine.qmp.execute("query-machines", &json!({})).unwrap();
        assert_eq!(machines[0]["alias"], "pc");
        assert_eq!(
            machine.qtest.raw("bogus").unwrap(),
            "FAIL Unknown command 'bogus'"
        );
        assert_eq!(machine.qtest.raw("clock_set 400").unwrap(), "OK 400");
        assert_eq!(machine.qtest.raw("clock_set 400").unwrap(), "OK 400");
        assert_eq!(machine.end().unwrap(), Some(0), "{arguments:?}");
    }
}

/// A client may have asked for the end before it sends the signal.
#[test]
fn a_signal_after_quit_changes_nothing() {
    let mut machine = start(&[]);
    machine.qmp.execute("quit", &json!({})).unwrap();
    // The process may have ended before the signal comes.
    let status = machine.end();
    assert!(matches!(status, Ok(Some(0)) | Err(_)), "{status:?}");
}

#[test]
fn a_machine_without_buses_has_no_functions_and_no_disks() {
    let mut machine = start(&["-machine", "none"]);
    machine.qtest.out32(0xcf8, 0x8000_0000).unwrap();
    assert_eq!(machine.qtest.in32(0xcfc).unwrap(), u32::MAX);
    assert_eq!(machine.qtest.in8(0x1f7).unwrap(), 0xff);
    // Memory is there, and so is the block layer.
    machine.qtest.write32(0x1000, 0x1234_5678).unwrap();
    assert_eq!(machine.qtest.read16(0x1002).unwrap(), 0x1234);
    let node = json!({"driver": "null-co", "node-name": "n"});
    machine.qmp.execute("blockdev-add", &node).unwrap();
    let cpus = machine.qmp.execute("query-cpus-fast", &json!({})).unwrap();
    assert_eq!(cpus, json!([]));
    assert_eq!(machine.end().unwrap(), Some(0));
}

#[test]
fn memory_is_counted_by_the_configuration_interface() {
    for (arguments, bytes) in [(&[][..], 128_u64 << 20), (&["-m", "3G"], 3 << 30)] {
        let mut machine = start(arguments);
        machine.qtest.out16(0x510, 3).unwrap();
        let read: Vec<_> = (0..8).map(|_| machine.qtest.in8(0x511).unwrap()).collect();
        assert_eq!(u64::from_le_bytes(read.try_into().unwrap()), bytes);
        machine.end().unwrap();
    }
}

/// Sends and drops what comes, and returns the lines of the log without their times.
#[test]
fn traffic_is_logged_in_qemus_form() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    for to_file in [false, true] {
        let path = directory.path().join(format!("qtest{to_file}"));
        let listener = UnixListener::bind(&path).unwrap();
        let mut command = Command::new(SLUICE);
        command
            .args(["-accel", "qtest", "-machine", "none"])
            .args(["-qtest", &format!("unix:{}", path.display())])
            .args(["-monitor", "null"])
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        if to_file {
            command.args(["-qtest-log", log.to_str().unwrap()]);
        }
        let mut child = command.spawn().unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut answers = BufReader::new(stream.try_clone().unwrap());
        let mut answer = String::new();
        for line in [
            "irq_intercept_in ioapic",
            "set_irq_in ioapic unnamed-gpio-in 3 1",
            "nonsense",
        ] {
            writeln!(stream, "{line}").unwrap();
            answer.clear();
            answers.read_line(&mut answer).unwrap();
        }
        // The answer to the second command came after word of the interrupt.
        answers.read_line(&mut answer).unwrap();
        drop((stream, answers));
        // The end of the connection is logged before that of the process.
        let pid = child.id().to_string();
        let log_now = || std::fs::read_to_string(&log).unwrap_or_default();
        while to_file && !log_now().contains("CLOSED") {
            std::thread::yield_now();
        }
        let text = if to_file {
            log_now()
        } else {
            let mut lines = BufReader::new(child.stderr.take().unwrap());
            let mut text = String::new();
            while !text.contains("CLOSED") {
                assert_ne!(lines.read_line(&mut text).unwrap(), 0, "{text}");
            }
            text
        };
        assert!(Command::new("kill").arg(&pid).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(0));
        let lines: Vec<_> = text.lines().map(without_time).collect();
        let expected = [
            "[I ] OPENED",
            "[R +] irq_intercept_in ioapic",
            "[S +] OK",
            "[R +] set_irq_in ioapic unnamed-gpio-in 3 1",
            "[S +] IRQ raise 3",
            "[S +] OK",
            "[R +] nonsense",
            "[S +] FAIL Unknown command 'nonsense'",
            "[I +] CLOSED",
        ];
        assert_eq!(lines, expected, "{text}");
    }
}

/// `[R +0.123456] x` as `[R +] x`.
fn without_time(line: &str) -> String {
    let (head, rest) = line.split_once(']').unwrap();
    let kind = head.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    let digits = &head[kind.len()..];
    let (seconds, fraction) = digits.split_once('.').unwrap();
    assert!(!seconds.is_empty() && fraction.len() == 6, "{line}");
    format!("{kind}]{rest}")
}

/// Word of an interrupt comes by itself, not with the next answer.
#[test]
fn interrupts_are_told_at_once() {
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(1 << 20).unwrap();
    let drive = format!("file={},format=raw,if=ide", disk.path().display());
    let mut machine = start(&["-drive", &drive]);
    machine.qtest.intercept_interrupts().unwrap();
    for (port, value) in [
        (0x1f2, 1),
        (0x1f3, 0),
        (0x1f4, 0),
        (0x1f5, 0),
        (0x1f6, 0xe0),
    ] {
        machine.qtest.out8(port, value).unwrap();
    }
    machine.qtest.out8(0x1f7, 0x20).unwrap();
    let change = machine.qtest.wait_change().unwrap();
    assert_eq!((change.irq, change.level), (14, true));
    machine.end().unwrap();
}

/// A descriptor that the process is started with, as QEMU's Python library hands one over.
#[test]
fn an_inherited_socket_is_a_character_device() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (qtest, qtest_theirs) = UnixStream::pair().unwrap();
    let mut command = Command::new(SLUICE);
    command
        .args(["-accel", "qtest", "-machine", "none", "-qtest", "chardev:q"])
        .args(["-qtest-log", "none", "-mon", "chardev=m,mode=control"]);
    for (id, socket) in [("m", &theirs), ("q", &qtest_theirs)] {
        let number = socket.as_raw_fd();
        command.args(["-chardev", &format!("socket,id={id},fd={number}")]);
    }
    let kept = [theirs.as_raw_fd(), qtest_theirs.as_raw_fd()];
    #[expect(unsafe_code, reason = "descriptors are left open across exec")]
    // SAFETY: between fork and exec only fcntl is called, which is safe to call there.
    unsafe {
        command.pre_exec(move || {
            for number in kept {
                // SAFETY: the parent's sockets, which the child has as well.
                let borrowed = std::os::fd::BorrowedFd::borrow_raw(number);
                rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::empty())?;
            }
            Ok(())
        });
    }
    let mut child = command.spawn().unwrap();
    drop((theirs, qtest_theirs));
    let mut qmp = Qmp::over(ours, LIMIT).unwrap();
    let chardevs = qmp.execute("query-chardev", &json!({})).unwrap();
    assert_eq!(chardevs[0]["label"], "m");
    assert_eq!(chardevs[0]["frontend-open"], true);
    let mut answers = BufReader::new(qtest.try_clone().unwrap());
    (&qtest).write_all(b"endianness\r\n").unwrap();
    let mut line = String::new();
    answers.read_line(&mut line).unwrap();
    assert_eq!(line, "OK little\n");
    qmp.execute("quit", &json!({})).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    line.clear();
    assert_eq!(
        answers.read_line(&mut line).unwrap(),
        0,
        "closed at the end"
    );
}

/// A standard stream is a monitor, and a machine that it was given to does not use it for its serial port.
#[test]
fn standard_input_and_output_are_a_monitor() {
    let mut child = Command::new(SLUICE)
        .args(["-accel", "qtest", "-machine", "none", "-qmp", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut next = || {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        serde_json::from_str::<Value>(&line).unwrap()
    };
    assert!(next()["QMP"].is_object());
    for command in ["qmp_capabilities", "quit"] {
        writeln!(input, "{{'execute': '{command}'}}").unwrap();
        assert_eq!(next()["return"], json!({}));
    }
    assert_eq!(next()["event"], "SHUTDOWN");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// A machine whose socket is to be connected to is not built before; a signal ends the wait.
#[test]
fn a_machine_waits_for_its_monitor() {
    let directory = tempfile::tempdir().unwrap();
    let (path, image) = (
        directory.path().join("qmp"),
        directory.path().join("late.img"),
    );
    let chardev = format!("socket,id=m,path={},server=on", path.display());
    let node = format!("file,node-name=n,filename={}", image.display());
    let spawn = || {
        let child = Command::new(SLUICE)
            .args([
                "-accel",
                "qtest",
                "-chardev",
                &chardev,
                "-mon",
                "m,mode=control",
            ])
            .args(["-blockdev", &node])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        while !path.exists() {
            std::thread::yield_now();
        }
        child
    };
    // The image is made when the process has been waiting: it would have ended without it.
    let mut child = spawn();
    std::fs::write(&image, vec![0; 512]).unwrap();
    let mut qmp = Qmp::connect(&path, LIMIT).unwrap();
    let nodes = qmp.execute("query-named-block-nodes", &json!({})).unwrap();
    assert_eq!(nodes[0]["node-name"], "n");
    qmp.execute("quit", &json!({})).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));

    let child = spawn();
    let pid = child.id().to_string();
    assert!(Command::new("kill").arg(pid).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(!path.exists());
}

#[test]
fn monitors_of_all_kinds_are_served_at_once() {
    let port = {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    };
    let directory = tempfile::tempdir().unwrap();
    let (lines, control) = (
        directory.path().join("lines"),
        directory.path().join("control"),
    );
    let mut machine = start(&[
        "-qmp",
        &format!("tcp:127.0.0.1:{port}"),
        "-monitor",
        &format!("unix:{}", lines.display()),
        "-qmp-pretty",
        &format!("unix:{}", control.display()),
    ]);
    // The answer comes when all of them listen.
    machine.qmp.execute("query-status", &json!({})).unwrap();
    let mut tcp = BufReader::new(TcpStream::connect(("127.0.0.1", port)).unwrap());
    let mut greeting = String::new();
    tcp.read_line(&mut greeting).unwrap();
    assert!(greeting.starts_with("{\"QMP\""), "{greeting}");
    let mut people = UnixStream::connect(&lines).unwrap();
    people.write_all(b"info status\n").unwrap();
    let mut text = String::new();
    while !text.contains("VM status: running") {
        let mut bytes = [0; 64];
        let count = people.read(&mut bytes).unwrap();
        text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
    let mut pretty = BufReader::new(UnixStream::connect(&control).unwrap());
    let mut first = String::new();
    pretty.read_line(&mut first).unwrap();
    assert_eq!(first, "{\r\n", "over several lines");
    machine.end().unwrap();
}

/// Events carry the guest's time, which stands still.
#[test]
fn events_are_stamped_by_the_guests_clock() {
    let mut machine = start(&[]);
    machine.qtest.clock_step(2_000_003_000).unwrap();
    machine.qmp.execute("stop", &json!({})).unwrap();
    let stop = machine
        .qmp
        .wait_event("STOP", LIMIT, |event| event.event == "STOP")
        .unwrap();
    assert_eq!(
        (stop.timestamp.seconds, stop.timestamp.microseconds),
        (2, 3)
    );
    machine.end().unwrap();
}

#[test]
fn no_shutdown_leaves_the_process_to_its_operator() {
    let mut machine = start(&["-no-shutdown"]);
    machine.qtest.out16(0x604, 0x3400).unwrap();
    let ended = machine
        .qmp
        .wait_event("SHUTDOWN", LIMIT, |event| event.event == "SHUTDOWN");
    assert_eq!(ended.unwrap().data["guest"], true);
    let status = machine.qmp.execute("query-status", &json!({})).unwrap();
    assert_eq!(status, json!({"running": false, "status": "shutdown"}));
    machine.qmp.execute("cont", &json!({})).unwrap_err();
    assert_eq!(machine.end().unwrap(), Some(0));
}
