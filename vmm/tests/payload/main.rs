//! Payload tests: the real binary runs guests of a few instructions on this host's `/dev/kvm`.
//!
//! They need no kernel and no fast KVM: also one in software runs them. A host without `/dev/kvm`
//! fails them with the message of `sluice` that says so. `ci/guest-tests payloads` takes the test
//! program and the real binary to a host with KVM and names the latter in `SLUICE_PROGRAM`.
#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole crate is a test"
)]

mod image;
mod lifecycle;
mod monitor;
mod posted;
mod rates;
mod sections;
mod terminal;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use image::{Code, port};

/// The program under test: where cargo built it, unless this runs on another host than cargo.
fn program() -> OsString {
    std::env::var_os("SLUICE_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_sluice").into())
}

fn sluice(kernel: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command
        .arg("--kernel")
        .arg(kernel)
        .args(["--serial", "stdio"])
        .args(["--device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Starts the payload `code`, whose image goes into `directory`.
fn start_in(directory: &tempfile::TempDir, code: &Code, arguments: &[&str]) -> Child {
    let kernel = code.write(directory);
    sluice(&kernel, arguments)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap()
}

fn start(code: &Code, arguments: &[&str]) -> (Child, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    (start_in(&directory, code, arguments), directory)
}

fn run(code: &Code, arguments: &[&str]) -> Output {
    let (child, _directory) = start(code, arguments);
    child.wait_with_output().unwrap()
}

/// Status, what the guest printed, what `sluice` said.
fn told(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn debug_exit_port_gives_the_status() {
    for value in [0, 0x21, 0x7f] {
        let output = run(&Code::new().out8(port::DEBUG_EXIT, value).halt(), &[]);
        let status = i32::from(value) * 2 + 1;
        assert_eq!(told(&output), (Some(status), String::new(), String::new()));
    }
}

#[test]
fn power_off_is_success_and_what_was_printed_arrives() {
    let output = run(&Code::new().print("hello\n").power_off(), &[]);
    assert_eq!(told(&output), (Some(0), "hello\n".into(), String::new()));
}

#[test]
fn two_vcpus_power_off_too() {
    let output = run(&Code::new().print("two").power_off(), &["--smp", "2"]);
    assert_eq!(told(&output), (Some(0), "two".into(), String::new()));
}

#[test]
fn no_reboot_ends_on_either_kind_of_reset() {
    let resets = [(port::RESET_CONTROL, 6), (port::KEYBOARD_COMMAND, 0xfe)];
    for (port, value) in resets {
        let code = Code::new().print("once").out8(port, value).halt();
        let (status, printed, said) = told(&run(&code, &["--no-reboot"]));
        assert_eq!((status, printed.as_str()), (Some(0), "once"));
        assert!(said.contains("--no-reboot"), "{said}");
    }
}

/// The clock's memory outlives a reset: the payload finds there that it has run before. What it
/// stored over its own code is gone.
#[test]
fn reset_boots_again_from_the_loaded_image() {
    let spoil = [0xc6, 0x05, 0x00, 0x00, 0x10, 0x00, 0xf4]; // mov byte [0x100000], hlt
    let first_run = Code::new()
        .out8(port::CMOS_DATA, 1)
        .bytes(&spoil)
        .out8(port::RESET_CONTROL, 6)
        .halt();
    let code = Code::new()
        .print("boot ")
        .out8(port::CMOS_INDEX, 0x40)
        .in8(port::CMOS_DATA)
        .unless_al(1, &first_run)
        .power_off();
    for cpus in ["1", "2"] {
        let output = run(&code, &["--smp", cpus]);
        assert_eq!(told(&output), (Some(0), "boot boot ".into(), String::new()));
    }
}

#[test]
fn triple_fault_has_its_status_and_line() {
    // mov ax, 0xfff8; mov ds, ax: a segment that does not exist, and no handler for any fault.
    let bad_segment = [0x66, 0xb8, 0xf8, 0xff, 0x8e, 0xd8];
    let (status, _, said) = told(&run(&Code::new().bytes(&bad_segment).halt(), &[]));
    assert_eq!(status, Some(12), "{said}");
    assert!(said.contains("triple fault"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn panic_port_has_its_status_and_line() {
    let (status, _, said) = told(&run(&Code::new().out8(port::PANIC, 1).halt(), &[]));
    assert_eq!(status, Some(10), "{said}");
    assert!(said.contains("panicked"), "{said}");
}

#[test]
fn start_info_leads_to_the_command_line() {
    let print_command_line = [
        0x8b, 0x73, 0x18, // mov esi, [ebx + 24]
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xac, // lodsb
        0x84, 0xc0, // test al, al
        0x74, 0x03, // jz +3
        0xee, // out dx, al
        0xeb, 0xf8, // jmp lodsb
    ];
    let code = Code::new().bytes(&print_command_line).power_off();
    let output = run(&code, &["--append", "root=/dev/sda quiet"]);
    assert_eq!(
        told(&output),
        (Some(0), "root=/dev/sda quiet".into(), String::new())
    );
}

#[test]
fn pci_bus_has_its_host_bridge() {
    let code = Code::new()
        .out32(port::PCI_ADDRESS, 0x8000_0000)
        .in32(port::PCI_DATA)
        .out_al(port::SERIAL)
        .power_off();
    let output = run(&code, &[]);
    assert_eq!((output.status.code(), output.stdout), (Some(0), vec![0x86]));
}

/// `wait: in al, 0x3fd; test al, 1; jz wait`
const WAIT_FOR_INPUT: [u8; 9] = [0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7];

#[test]
fn input_reaches_the_guest() {
    let code = Code::new()
        .bytes(&WAIT_FOR_INPUT)
        .in8(port::SERIAL)
        .out_al(port::SERIAL)
        .power_off();
    let (mut child, _directory) = start(&code, &[]);
    child.stdin.take().unwrap().write_all(b"Z").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(told(&output), (Some(0), "Z".into(), String::new()));
}

#[test]
fn signal_ends_a_guest_that_halts_or_spins() {
    let spin = Code::new().print("up").bytes(&[0xeb, 0xfe]);
    for code in [Code::new().print("up").halt(), spin] {
        let (mut child, _directory) = start(&code, &[]);
        let mut up = [0; 2];
        child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
        let pid = child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        let (status, _, said) = told(&child.wait_with_output().unwrap());
        assert_eq!(status, Some(0));
        assert!(said.contains("SIGTERM"), "{said}");
    }
}

#[test]
fn bad_kernels_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let image = Code::new().power_off().image();
    let mut other_machine = image.clone();
    other_machine[18] = 0xb7;
    let mut without_note = image.clone();
    without_note[64 + 56] = 0;
    let mut far_away = image.clone();
    far_away[64 + 24..64 + 32].copy_from_slice(&0xbfff_f000_u64.to_le_bytes());
    let mut wraps = image.clone();
    wraps[64 + 24..64 + 32].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut old = vec![0; 4096];
    old[0x202..0x206].copy_from_slice(b"HdrS");
    let cases = [
        (directory.path().join("absent"), "No such file"),
        (directory.path().to_owned(), "directory"),
        (put("empty", b""), "not a kernel"),
        (put("text", b"#!/bin/sh\n"), "not a kernel"),
        (put("old", &old), "not a kernel"),
        (put("cut", &image[..40]), "not a kernel"),
        (put("no-code", &image[..200]), "cut off"),
        (put("arm", &other_machine), "not a kernel"),
        (put("no-pvh", &without_note), "PVH"),
        (put("far", &far_away), "-m"),
        (put("wraps", &wraps), "-m"),
    ];
    for (path, reason) in cases {
        let (status, _, said) = told(&sluice(&path, &[]).output().unwrap());
        let name = path.file_name().unwrap().to_string_lossy();
        assert_eq!(status, Some(4), "{name}: {said}");
        assert!(
            said.contains(reason) && said.contains(&*name),
            "{name}: {said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn initrd_and_command_line_are_checked() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = Code::new().power_off().write(&directory);
    let big = directory.path().join("big");
    std::fs::File::create(&big)
        .unwrap()
        .set_len(512 << 20)
        .unwrap();
    let big = big.to_str().unwrap();
    let long = "x".repeat(2048);
    let cases = [
        (["--initrd", "/absent"], "/absent"),
        (["--initrd", big], "-m"),
        (["--append", &long], "2047"),
    ];
    for (arguments, reason) in cases {
        let (status, _, said) = told(&sluice(&kernel, &arguments).output().unwrap());
        assert_eq!(status, Some(4), "{said}");
        assert!(said.contains(reason), "{said}");
    }
}

#[test]
fn memory_that_cannot_be_had_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = Code::new().power_off().write(&directory);
    let (status, _, said) = told(&sluice(&kernel, &["-m", "100000T"]).output().unwrap());
    assert_eq!(status, Some(8), "{said}");
    assert!(said.contains("-m"), "{said}");
}
