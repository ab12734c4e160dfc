//! The operator's verbs on a machine that really runs.

use std::io::Read;
use std::process::Child;

use crate::image::{Code, port};
use crate::monitor::Monitor;
use crate::{start_in, told};

/// A machine with a control socket.
fn start(code: &Code, arguments: &[&str]) -> (Child, Monitor, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp.sock");
    let socket = format!("unix:{},server=on,wait=off", path.display());
    let mut all = vec!["--qmp", &socket];
    all.extend(arguments);
    let child = start_in(&directory, code, &all);
    let monitor = Monitor::connect(&path);
    (child, monitor, directory)
}

/// Reads exactly `text` from the guest's serial port.
fn expect_text(child: &mut Child, text: &str) {
    let mut got = vec![0; text.len()];
    child.stdout.as_mut().unwrap().read_exact(&mut got).unwrap();
    assert_eq!(String::from_utf8_lossy(&got), text);
}

#[test]
fn stopped_machine_is_reset_and_runs_when_it_is_let() {
    let (mut child, mut monitor, _directory) = start(&Code::new().print("boot ").halt(), &[]);
    expect_text(&mut child, "boot ");
    monitor.execute("stop");
    monitor.event("STOP");
    assert_eq!(monitor.status(), "paused");
    monitor.execute("stop");
    monitor.execute("system_reset");
    let reset = monitor.event("RESET");
    assert_eq!(
        (reset["guest"].as_bool(), reset["reason"].as_str()),
        (Some(false), Some("host-qmp-system-reset"))
    );
    assert_eq!(monitor.status(), "paused");
    monitor.execute("cont");
    monitor.event("RESUME");
    expect_text(&mut child, "boot ");
    monitor.execute("system_reset");
    monitor.event("RESET");
    expect_text(&mut child, "boot ");
    monitor.execute("quit");
    assert_eq!(monitor.event("SHUTDOWN")["reason"], "host-qmp-quit");
    let output = child.wait_with_output().unwrap();
    // Nothing more: the machine did not boot while it was stopped.
    assert_eq!(told(&output), (Some(0), String::new(), String::new()));
}

#[test]
fn spinning_vcpus_stop_and_go_on() {
    // The second vCPU waits to be started; the first counts in memory for ever.
    let count = [0xff, 0x05, 0x00, 0x00, 0x20, 0x00, 0xeb, 0xf8]; // inc dword [0x200000]; jmp
    let code = Code::new().print("up").bytes(&count);
    let (mut child, mut monitor, _directory) = start(&code, &["--smp", "2"]);
    expect_text(&mut child, "up");
    for _ in 0..50 {
        monitor.execute("stop");
        monitor.event("STOP");
        monitor.execute("cont");
        monitor.event("RESUME");
    }
    monitor.execute("quit");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn machine_that_starts_stopped_waits() {
    let code = Code::new().print("ran").power_off();
    let (child, mut monitor, _directory) = start(&code, &["-S"]);
    assert_eq!(monitor.status(), "prelaunch");
    monitor.execute("cont");
    monitor.event("RESUME");
    assert_eq!(monitor.event("SHUTDOWN")["reason"], "guest-shutdown");
    let output = child.wait_with_output().unwrap();
    assert_eq!(told(&output), (Some(0), "ran".into(), String::new()));
}

/// The payload polls the power button's status bit and switches off when it sees it.
#[test]
fn power_button_reaches_the_guest() {
    let poll = [
        0x66, 0xba, 0x00, 0x06, // mov dx, 0x600
        0x66, 0xed, // in ax, dx
        0xf6, 0xc4, 0x01, // test ah, 1
        0x74, 0xf5, // jz
    ];
    let code = Code::new().print("up").bytes(&poll).power_off();
    let (mut child, mut monitor, _directory) = start(&code, &[]);
    expect_text(&mut child, "up");
    monitor.execute("system_powerdown");
    monitor.event("POWERDOWN");
    assert_eq!(monitor.event("SHUTDOWN")["guest"], true);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn events_tell_why_the_machine_ended() {
    let cases = [
        (
            Code::new().out8(port::RESET_CONTROL, 6),
            vec!["SHUTDOWN"],
            "guest-reset",
            0,
        ),
        (
            Code::new().out8(port::PANIC, 1),
            vec!["GUEST_PANICKED", "SHUTDOWN"],
            "guest-panic",
            10,
        ),
    ];
    for (code, events, reason, status) in cases {
        let (child, mut monitor, _directory) = start(&code.halt(), &["-S", "--no-reboot"]);
        monitor.execute("cont");
        monitor.event("RESUME");
        let data: Vec<_> = events.iter().map(|name| monitor.event(name)).collect();
        assert_eq!(data.last().unwrap()["reason"], reason);
        assert_eq!(
            child.wait_with_output().unwrap().status.code(),
            Some(status)
        );
    }
}
