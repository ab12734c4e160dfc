//! Where the process prints what requests by hand say, and that nobody waits for a reader who does not come.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::qmp::Qmp;
use tempfile::TempDir;

use crate::process::SLUICE;

const LIMIT: Duration = Duration::from_secs(60);
/// What a request by hand says on a node of that size.
const SAID: &str = "1 MiB\n";
const ARGUMENTS: [&str; 6] = [
    "-accel",
    "qtest",
    "-display",
    "none",
    "-blockdev",
    "null-co,node-name=n,size=1M",
];

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(SLUICE);
    command.args(ARGUMENTS).args(arguments);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn by_hand(more: &Value) -> Value {
    let mut arguments = json!({"command-line": "qemu-io n length"});
    let members = arguments.as_object_mut().unwrap();
    members.extend(more.as_object().unwrap().clone());
    arguments
}

/// Starts it with QMP on a socket.
fn start(directory: &TempDir, arguments: &[&str]) -> (Child, Qmp) {
    let path = directory.path().join("qmp");
    let place = format!("unix:{},server=on,wait=off", path.display());
    let child = command(arguments).args(["-qmp", &place]).spawn().unwrap();
    let qmp = Qmp::connect(&path, LIMIT).unwrap();
    (child, qmp)
}

fn read_all(mut from: impl Read) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn requests_by_hand_print_to_standard_output_before_they_are_answered() {
    for serial in [&["-machine", "none"][..], &["-serial", "stdio"]] {
        let directory = tempfile::tempdir().unwrap();
        let (mut child, mut qmp) = start(&directory, serial);
        let mut output = child.stdout.take().unwrap();
        rustix::io::ioctl_fionbio(&output, true).unwrap();
        for _ in 0..3 {
            let answer = qmp.execute("human-monitor-command", &by_hand(&json!({})));
            assert_eq!(answer.unwrap(), "");
            let mut read = [0; 100];
            let count = output.read(&mut read).unwrap();
            assert_eq!(&read[..count], SAID.as_bytes());
        }
        let asked = by_hand(&json!({"x-output": true}));
        let answer = qmp.execute("human-monitor-command", &asked);
        assert_eq!(answer.unwrap(), "1 MiB\r\n");
        qmp.execute("quit", &json!({})).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
    }
}

/// Makes a pipe full that nobody reads.
fn fill(output: &ChildStdout) {
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(output));
    let mut writer = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    let error = loop {
        if let Err(error) = writer.write_all(&[b'x'; 4096]) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

#[test]
fn standard_output_that_nobody_reads_holds_nobody() {
    for is_there in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let (mut child, mut qmp) = start(&directory, &["-machine", "none"]);
        let output = child.stdout.take().unwrap();
        let output = is_there.then(|| {
            fill(&output);
            output
        });
        for _ in 0..3 {
            let answer = qmp.execute("human-monitor-command", &by_hand(&json!({})));
            assert_eq!(answer.unwrap(), "");
        }
        qmp.execute("quit", &json!({})).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
        drop(output);
        let log = read_all(child.stderr.take().unwrap());
        let words = if is_there {
            "were lost"
        } else {
            "lost from here on"
        };
        assert!(log.contains(words), "{log}");
    }
}

#[test]
fn messages_on_standard_output_are_not_broken_by_text() {
    let mut child = command(&["-machine", "none", "-qmp", "stdio"])
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let by_hand = json!({"execute": "human-monitor-command", "arguments": by_hand(&json!({}))});
    write!(
        input,
        "{{'execute': 'qmp_capabilities'}}{by_hand}{{'execute': 'quit'}}"
    )
    .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let messages: Vec<Value> = output
        .lines()
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect();
    assert_eq!(messages[2]["return"], "");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let log = read_all(child.stderr.take().unwrap());
    assert!(log.contains(SAID), "{log}");
}

/// So does the qtest protocol.
#[test]
fn answers_of_qtest_on_standard_output_are_not_broken_by_text() {
    let directory = tempfile::tempdir().unwrap();
    let (mut child, mut qmp) = start(&directory, &["-machine", "none", "-qtest", "stdio"]);
    let answer = qmp.execute("human-monitor-command", &by_hand(&json!({})));
    assert_eq!(answer.unwrap(), "");
    qmp.execute("quit", &json!({})).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let log = read_all(child.stderr.take().unwrap());
    assert!(log.contains(SAID), "{log}");
    assert_eq!(read_all(child.stdout.take().unwrap()), "");
}

/// A transcript reads like QEMU's: what came by the pipe is shown after the prompt.
#[test]
fn a_monitor_on_a_pipe_shows_what_comes() {
    let mut child = command(&["-machine", "none", "-monitor", "stdio"])
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input
        .write_all(b"info status\n\nfoo\nqemu-io n length\nquit\n")
        .unwrap();
    let transcript = read_all(child.stdout.take().unwrap());
    let (_, lines) = transcript.split_once("\r\n").unwrap();
    assert_eq!(
        lines,
        "(qemu) info status\r\nVM status: running\r\n(qemu) \r\n(qemu) foo\r\n\
         unknown command: 'foo'\r\n(qemu) qemu-io n length\r\n1 MiB\r\n(qemu) quit\r\n"
    );
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// Who types at a socket sees it already.
#[test]
fn a_monitor_on_a_socket_shows_nothing_twice() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("monitor");
    let place = format!("unix:{},server=on,wait=off", path.display());
    let (mut child, mut qmp) = start(&directory, &["-machine", "none", "-monitor", &place]);
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"info status\n").unwrap();
    let mut lines = BufReader::new(&stream).lines();
    lines.next().unwrap().unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "(qemu) VM status: running");
    qmp.execute("quit", &json!({})).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
