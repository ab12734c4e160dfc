//! What the tests have in common: a directory with images, a start that fails, a machine that runs.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::process::Machine;
use sluice_tests::qmp::{Qmp, QmpError};

use crate::ide::{IdeDisk, Qtest};

/// The binary under test.
pub const SLUICE: &str = env!("CARGO_BIN_EXE_sluice");

/// How long anything may take. Nothing depends on it but the end of a test that hangs.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Size of the images that are disks, in bytes.
pub const SIZE: u64 = 4 << 20;

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// Exit statuses as `--help` lists them.
pub mod status {
    pub const SUCCESS: i32 = 0;
    pub const USAGE: i32 = 2;
    pub const BOOT_IMAGE: i32 = 4;
    pub const NO_KVM: i32 = 6;
    pub const SETUP: i32 = 8;
}

/// The user that owns nothing, for tests that run as root, whom no permission stops.
const NOBODY: &str = "65534";

/// A directory of its own for each test.
pub struct Scene {
    directory: tempfile::TempDir,
}

impl Scene {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { directory }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A file of zeroes.
    pub fn file(&self, name: &str, size: u64) -> String {
        let file = File::create(self.path(name)).unwrap();
        file.set_len(size).unwrap();
        self.text(name)
    }

    /// A disk image without any zero byte: nothing of it can be skipped.
    pub fn image(&self, name: &str) -> String {
        fs::write(self.path(name), pattern(SIZE)).unwrap();
        self.text(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).unwrap();
        self.text(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// The command that runs the binary as somebody whom permissions stop: as it is, unless this is
    /// root, who then needs `setpriv`. None, with the reason printed, if there is none.
    pub fn unprivileged(&self) -> Option<Vec<String>> {
        if !rustix::process::geteuid().is_root() {
            return Some(vec![SLUICE.to_owned()]);
        }
        if Command::new("setpriv").arg("--version").output().is_err() {
            println!("SKIPPED: this is root, whom no permission stops, and there is no setpriv");
            return None;
        }
        fs::set_permissions(self.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // The build directory may be closed to others.
        let copy = self.path("sluice");
        fs::hard_link(SLUICE, &copy)
            .or_else(|_| fs::copy(SLUICE, &copy).map(drop))
            .unwrap();
        let user = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
        let mut command = vec!["setpriv".to_owned()];
        command.extend(user);
        command.extend(["--clear-groups".to_owned(), self.text("sluice")]);
        Some(command)
    }
}

/// The command that runs the binary in a mount namespace of its own, after the shell command
/// `mount`: what it mounts is seen by nobody else and goes with the process. None, with the reason
/// printed, where that can't be had.
pub fn with_mount(mount: &str) -> Option<Vec<String>> {
    let namespace: &[&str] = if rustix::process::geteuid().is_root() {
        &["unshare", "--mount"]
    } else {
        &["unshare", "--mount", "--map-root-user"]
    };
    let probe = Command::new(namespace[0])
        .args(&namespace[1..])
        .args(["sh", "-c", mount])
        .output();
    match probe {
        Ok(output) if output.status.success() => {}
        other => {
            println!("SKIPPED: no mount namespace can be made here: {other:?}");
            return None;
        }
    }
    let script = format!("{mount} && exec \"$0\" \"$@\"");
    let shell = ["sh", "-c", &script, SLUICE];
    let words = namespace.iter().chain(&shell);
    Some(words.map(|word| (*word).to_owned()).collect())
}

/// `size` bytes that depend on their place, none of them zero.
pub fn pattern(size: u64) -> Vec<u8> {
    (0..size)
        .map(|at| u8::try_from(1 + (at / 4096 + at % 251) % 255).unwrap())
        .collect()
}

/// How a start failed.
#[derive(Debug)]
pub struct Refusal {
    pub status: i32,
    pub line: String,
}

impl Refusal {
    /// Checks status and words.
    #[track_caller]
    pub fn expect(&self, status: i32, words: &[&str]) {
        assert_eq!(self.status, status, "{}", self.line);
        expect_words(&self.line, words);
    }
}

#[track_caller]
pub fn expect_words(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "'{word}' is not in: {text}");
    }
}

/// Runs `command`, which must end by itself with exactly one line on standard error.
#[track_caller]
pub fn refusal_of<S: AsRef<OsStr>>(command: &[S]) -> Refusal {
    let words: Vec<_> = command.iter().map(AsRef::as_ref).collect();
    let program = words[0].to_str().unwrap();
    let mut child = Machine::start(program, &words[1..]).unwrap();
    let status = child
        .wait_end(LIMIT)
        .unwrap_or_else(|error| panic!("{words:?}: {error}"));
    let said = child.messages();
    assert_eq!(child.console(), "", "{words:?}: printed to standard output");
    assert_eq!(said.lines().count(), 1, "{words:?}: not one line: {said:?}");
    assert!(said.starts_with("sluice: "), "{words:?}: {said}");
    Refusal {
        status: status
            .code()
            .unwrap_or_else(|| panic!("{words:?}: {status}")),
        line: said.trim_end().to_owned(),
    }
}

/// Arguments of a machine without vCPUs whose sockets lie in `scene`.
pub fn qtest_arguments(scene: &Scene) -> Vec<String> {
    let socket = format!("unix:{},server=on", scene.text("qtest"));
    [
        "--accel",
        "qtest",
        "--qtest",
        &socket,
        "--qtest-log",
        "none",
        "--serial",
        "none",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Starts such a machine with `arguments`, which it must refuse.
#[track_caller]
pub fn refusal(scene: &Scene, arguments: &[&str]) -> Refusal {
    let mut command = vec![SLUICE.to_owned()];
    command.extend(qtest_arguments(scene));
    command.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    let refusal = refusal_of(&command);
    assert!(!scene.path("qtest").exists(), "left its socket behind");
    refusal
}

/// A machine without vCPUs, with two IDE disks: `disk`, which things are done to, and `other`,
/// which must not notice.
pub struct Vm {
    pub process: Machine,
    pub qmp: Qmp,
    pub disk: IdeDisk,
    pub other: IdeDisk,
    qtest: Qtest,
    qmp_path: PathBuf,
    writes: u8,
}

/// Members of answers that change by themselves.
const MOVING: [&str; 6] = [
    "actual-size",
    "busy",
    "len",
    "offset",
    "current-progress",
    "total-progress",
];

/// All that queries tell of disks, nodes and jobs.
#[derive(Debug, PartialEq)]
pub struct Picture(Vec<Value>);

impl Vm {
    /// The images are `disk.img` and `other.img`.
    pub fn start(scene: &Scene) -> Self {
        Self::start_with(scene, &[SLUICE.to_owned()], &[])
    }

    /// As [`Self::start`], by `command` and with more `arguments`.
    pub fn start_with(scene: &Scene, command: &[String], arguments: &[&str]) -> Self {
        let disk = scene.image("disk.img");
        let other = scene.image("other.img");
        let drive = |file: &str, id: &str, bus: u8| {
            format!("file={file},format=raw,if=ide,id={id},bus={bus},unit=0,discard=unmap")
        };
        let disks = [
            ["--drive".to_owned(), drive(&disk, "disk", 0)],
            ["--drive".to_owned(), drive(&other, "other", 1)],
        ];
        let qmp_path = scene.path("qmp");
        let mut all = command[1..].to_vec();
        all.extend(qtest_arguments(scene));
        all.extend(["--qmp".to_owned(), format!("unix:{}", qmp_path.display())]);
        all.extend(disks.into_iter().flatten());
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        let process = Machine::start(&command[0], &all).unwrap();
        let connected = Qmp::connect(&qmp_path, LIMIT);
        let mut qmp = connected.unwrap_or_else(|error| panic!("{error}\n{}", process.output()));
        qmp.hold_to_schema().unwrap();
        let qtest = Qtest::connect(&scene.path("qtest"));
        Self {
            process,
            qmp,
            disk: IdeDisk::on_channel(0, disk),
            other: IdeDisk::on_channel(1, other),
            qtest,
            qmp_path,
            writes: 0,
        }
    }

    /// Another client.
    pub fn connect(&self) -> Qmp {
        let mut qmp = Qmp::connect(&self.qmp_path, LIMIT).unwrap();
        qmp.hold_to_schema().unwrap();
        qmp
    }

    /// A client that has not even greeted.
    pub fn connect_raw(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.qmp_path).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// A client that has asked for something, and does not wait for the answer.
    pub fn ask(&self, command: &str, arguments: &Value) -> UnixStream {
        let mut stream = self.connect_raw();
        let greeted = json!({"execute": "qmp_capabilities"});
        let asked = json!({"execute": command, "arguments": arguments});
        write!(stream, "{greeted}\n{asked}\n").unwrap();
        stream
    }

    #[track_caller]
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        self.qmp
            .execute(command, arguments)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn picture(&mut self) -> Picture {
        let queries = [
            "query-status",
            "query-block",
            "query-named-block-nodes",
            "query-block-jobs",
            "query-jobs",
            "query-iothreads",
        ];
        let answers = queries.map(|query| {
            let mut answer = self.execute(query, &json!({}));
            forget_what_moves(&mut answer);
            answer
        });
        Picture(answers.to_vec())
    }

    /// Checks that `command` is refused, that nothing has changed, and that both disks work.
    /// Returns class and text of the error.
    #[track_caller]
    pub fn refused(&mut self, command: &str, arguments: &Value) -> (String, String) {
        let before = self.picture();
        let error = match self.qmp.execute(command, arguments) {
            Err(QmpError::Refused { class, desc, .. }) => (class, desc),
            other => panic!("{command} {arguments} should be refused: {other:?}"),
        };
        assert!(!error.1.contains('\n'), "not one line: {}", error.1);
        assert_eq!(before, self.picture(), "{command} {arguments}: {}", error.1);
        self.check_disks();
        error
    }

    /// As [`Self::refused`], with class `GenericError` and these `words` in the text.
    #[track_caller]
    pub fn refused_with(&mut self, command: &str, arguments: &Value, words: &[&str]) {
        let (class, text) = self.refused(command, arguments);
        assert_eq!(class, "GenericError", "{text}");
        expect_words(&text, words);
    }

    /// Writes a sector of both disks and finds it in the disk and in its image.
    #[track_caller]
    pub fn check_disks(&mut self) {
        for disk in [self.disk.clone(), self.other.clone()] {
            self.check_disk(&disk);
        }
    }

    #[track_caller]
    pub fn check_disk(&mut self, disk: &IdeDisk) {
        self.writes = self.writes.wrapping_add(1);
        let data = [self.writes; SECTOR];
        let sector = u8::MAX - self.writes % 64;
        disk.write(&mut self.qtest, sector, &data);
        assert_eq!(disk.read(&mut self.qtest, sector), data);
        let mut stored = [0; SECTOR];
        File::open(&disk.image)
            .unwrap()
            .read_exact_at(&mut stored, u64::from(sector) * SECTOR as u64)
            .unwrap();
        assert_eq!(stored, data, "not in {}", disk.image);
    }

    /// Waits for the job event `name` of `job`.
    #[track_caller]
    pub fn wait_job(&mut self, name: &str, job: &str) -> Value {
        let event = self.qmp.wait_job_event(name, job, LIMIT);
        event.unwrap_or_else(|error| panic!("{error}")).data
    }

    /// Ends the machine; it must end orderly, saying nothing.
    #[track_caller]
    pub fn quit(self) {
        assert_eq!(self.end(), "");
    }

    /// The same of a machine that had one thing to tell, in these words.
    pub fn quit_having_told(self, words: &[&str]) {
        let messages = self.end();
        assert_eq!(messages.lines().count(), 1, "{messages}");
        expect_words(&messages, words);
    }

    fn end(mut self) -> String {
        self.execute("quit", &json!({}));
        let status = self.process.wait_end(LIMIT).unwrap();
        assert_eq!(status.code(), Some(status::SUCCESS));
        self.process.messages().clone()
    }
}

/// Takes out of an answer what changes by itself: how much room a file takes, how far a job is.
fn forget_what_moves(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|name, _| !MOVING.contains(&name.as_str()));
            members.values_mut().for_each(forget_what_moves);
        }
        Value::Array(elements) => elements.iter_mut().for_each(forget_what_moves),
        _ => {}
    }
}
