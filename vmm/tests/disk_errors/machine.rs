//! A machine without vCPUs, its image, and both of its sockets.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::process::Machine;
use sluice_tests::qmp::{Qmp, QmpError};
use tempfile::TempDir;

/// How long anything may take. Nothing depends on it but the end of a test that hangs.
pub const LIMIT: Duration = Duration::from_secs(60);
pub const SECTOR: usize = 512;
const SIZE: u64 = 1 << 20;
const SLUICE: &str = env!("CARGO_BIN_EXE_sluice");

/// An image of zeroes and the options of the node `faulty` above it, which has these rules.
pub fn image_with_blkdebug(rules: &Value) -> (TempDir, PathBuf, String) {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk.img");
    File::create(&image).unwrap().set_len(SIZE).unwrap();
    let node = json!({
        "driver": "blkdebug", "node-name": "faulty", "inject-error": rules,
        "image": {"driver": "raw", "file": {"driver": "file", "filename": image}},
    });
    (directory, image, node.to_string())
}

/// What a sector of an image is filled with; none if it is as it was made.
pub fn pattern_at(image: &Path, sector: u64) -> Option<u8> {
    let mut bytes = [0; SECTOR];
    let file = File::open(image).unwrap();
    file.read_exact_at(&mut bytes, sector * SECTOR as u64)
        .unwrap();
    assert!(
        bytes.iter().all(|byte| *byte == bytes[0]),
        "torn: {bytes:?}"
    );
    (bytes[0] != 0).then_some(bytes[0])
}

/// A qtest session.
pub struct Qtest {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Qtest {
    fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let answers = BufReader::new(stream.try_clone().unwrap());
        Self { stream, answers }
    }

    /// Sends a command; returns what its answer says.
    #[track_caller]
    pub fn ask(&mut self, command: &str) -> String {
        writeln!(self.stream, "{command}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let answer = line.trim_end().strip_prefix("OK");
        answer
            .unwrap_or_else(|| panic!("{command}: {line}"))
            .trim()
            .to_owned()
    }

    /// The same for a command that is answered with a number.
    #[track_caller]
    pub fn number(&mut self, command: &str) -> u64 {
        let answer = self.ask(command);
        u64::from_str_radix(answer.trim_start_matches("0x"), 16).unwrap()
    }
}

pub struct Vm {
    pub qtest: Qtest,
    process: Machine,
    qmp: Qmp,
    directory: TempDir,
}

impl Vm {
    pub fn start(directory: TempDir, arguments: &[&str]) -> Self {
        Self::start_by(&[SLUICE.to_owned()], directory, arguments)
    }

    /// With an image in a small file system of its own without any room left; none, with the
    /// reason printed, where that can't be had.
    pub fn start_on_full_disk(arguments: &[&str]) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let small = directory.path().join("small");
        fs::create_dir(&small).unwrap();
        let small = small.to_str().unwrap();
        let mount = format!(
            "mount -t tmpfs -o size=256k none '{small}' && truncate -s {SIZE} '{small}/disk.img'"
        );
        // It ends with an error: there is no more room.
        let fill = format!("cat /dev/zero > '{small}/ballast' 2>/dev/null");
        let namespace: &[&str] = if rustix::process::geteuid().is_root() {
            &["unshare", "--mount"]
        } else {
            &["unshare", "--mount", "--map-root-user"]
        };
        let probe = Command::new(namespace[0])
            .args(&namespace[1..])
            .args(["sh", "-c", &mount])
            .output();
        if !probe.as_ref().is_ok_and(|output| output.status.success()) {
            println!("SKIPPED: no mount namespace can be made here: {probe:?}");
            return None;
        }
        let script = format!("{mount} && {{ {fill}; exec \"$0\" \"$@\"; }}");
        let command: Vec<_> = namespace
            .iter()
            .chain(&["sh", "-c", &script, SLUICE])
            .map(|word| (*word).to_owned())
            .collect();
        let node = format!("driver=file,node-name=faulty,filename={small}/disk.img");
        let mut all = vec!["--blockdev", &node];
        all.extend(arguments);
        Some(Self::start_by(&command, directory, &all))
    }

    fn start_by(command: &[String], directory: TempDir, arguments: &[&str]) -> Self {
        let path = |name: &str| directory.path().join(name);
        let mut all = command[1..].to_vec();
        all.extend(
            [
                "--accel",
                "qtest",
                "--qtest-log",
                "none",
                "--serial",
                "none",
                "-m",
                "64",
            ]
            .map(str::to_owned),
        );
        let qtest = format!("unix:{},server=on", path("qtest").display());
        all.extend(["--qtest".to_owned(), qtest]);
        all.extend([
            "--qmp".to_owned(),
            format!("unix:{}", path("qmp").display()),
        ]);
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        let process = Machine::start(&command[0], &all).unwrap();
        let connected = Qmp::connect(&path("qmp"), LIMIT);
        let mut qmp = connected.unwrap_or_else(|error| panic!("{error}\n{}", process.output()));
        qmp.hold_to_schema().unwrap();
        Self {
            qtest: Qtest::connect(&path("qtest")),
            process,
            qmp,
            directory,
        }
    }

    /// Another client of the machine.
    pub fn connect(&self) -> Qmp {
        Qmp::connect(&self.directory.path().join("qmp"), LIMIT).unwrap()
    }

    /// A file as the machine sees it.
    pub fn inside(&self, name: &str) -> PathBuf {
        let root = format!("/proc/{}/root", self.process.pid());
        PathBuf::from(format!("{root}{}/{name}", self.directory.path().display()))
    }

    #[track_caller]
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        let answer = self.qmp.execute(command, arguments);
        answer.unwrap_or_else(|error| panic!("{error}"))
    }

    /// The text with which a command is refused.
    #[track_caller]
    pub fn refusal(&mut self, command: &str, arguments: &Value) -> String {
        match self.qmp.execute(command, arguments) {
            Err(QmpError::Refused { desc, .. }) => desc,
            other => panic!("{command} should be refused: {other:?}"),
        }
    }

    /// Waits for an event and returns its data.
    #[track_caller]
    pub fn wait_event(&mut self, name: &str) -> Value {
        let event = self
            .qmp
            .wait_event(name, LIMIT, |event| event.event == name);
        event.unwrap_or_else(|error| panic!("{error}")).data
    }

    /// Ends the machine; it must end orderly.
    #[track_caller]
    pub fn quit(self) {
        self.quit_and_tell();
    }

    /// The same. Returns what it has said on its standard error.
    #[track_caller]
    pub fn quit_and_tell(mut self) -> String {
        self.execute("quit", &json!({}));
        let status = self.process.wait_end(LIMIT).unwrap();
        assert_eq!(status.code(), Some(0), "{}", self.process.output());
        self.process.messages()
    }
}
