//! The console on a terminal: raw mode, the escape key, and the terminal as it was afterwards.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};

use crate::image::{Code, port};
use crate::sluice;

/// Prints "up", then sends back whatever is typed.
fn echo() -> Code {
    // wait: in al, 0x3fd; test al, 1; jz wait; in al, 0x3f8; out 0x3f8, al; jmp wait
    let echo = [
        0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7, 0x66, 0xba, 0xf8, 0x03, 0xec, 0xee,
        0xeb, 0xef,
    ];
    Code::new().print("up").bytes(&echo)
}

struct Terminal {
    /// Our end.
    keyboard: File,
    /// The program's end.
    line: OwnedFd,
}

impl Terminal {
    fn open() -> Self {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let name = ptsname(&keyboard, Vec::new()).unwrap();
        let line = open(
            name.as_c_str(),
            OFlags::RDWR | OFlags::NOCTTY,
            Mode::empty(),
        )
        .unwrap();
        Self {
            keyboard: keyboard.into(),
            line,
        }
    }

    fn settings(&self) -> Termios {
        tcgetattr(&self.line).unwrap()
    }

    fn is_raw(&self) -> bool {
        !self
            .settings()
            .local_modes
            .intersects(LocalModes::ICANON | LocalModes::ISIG)
    }

    fn stdio(&self) -> Stdio {
        Stdio::from(self.line.try_clone().unwrap())
    }

    fn start(&self, directory: &tempfile::TempDir) -> Child {
        let kernel = echo().write(directory);
        let mut command = sluice(&kernel, &[]);
        command
            .stdin(self.stdio())
            .stdout(self.stdio())
            .stderr(self.stdio())
            .spawn()
            .unwrap()
    }

    fn expect(&mut self, text: &str) {
        let mut got = vec![0; text.len()];
        self.keyboard.read_exact(&mut got).unwrap();
        assert_eq!(String::from_utf8_lossy(&got), text);
    }
}

#[test]
fn every_key_reaches_the_guest_and_escape_x_ends() {
    let directory = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::open();
    let mut child = terminal.start(&directory);
    terminal.expect("up");
    assert!(terminal.is_raw());
    terminal.keyboard.write_all(b"a\x03\x1a\x01\x01").unwrap();
    terminal.expect("a\x03\x1a\x01");
    terminal.keyboard.write_all(b"\x01h").unwrap();
    terminal.expect("\r\nCtrl-A h");
    terminal.keyboard.write_all(b"\x01x").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!terminal.is_raw());
}

#[test]
fn terminal_is_restored_after_a_signal() {
    let directory = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::open();
    let mut child = terminal.start(&directory);
    terminal.expect("up");
    assert!(terminal.is_raw());
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!terminal.is_raw());
}

#[test]
fn terminal_is_restored_after_a_failure() {
    let directory = tempfile::tempdir().unwrap();
    let terminal = Terminal::open();
    let kernel = Code::new().out8(port::PANIC, 1).halt().write(&directory);
    let mut command = sluice(&kernel, &[]);
    let mut child = command
        .stdin(terminal.stdio())
        .stdout(terminal.stdio())
        .stderr(terminal.stdio())
        .spawn()
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(10));
    assert!(!terminal.is_raw());
}
