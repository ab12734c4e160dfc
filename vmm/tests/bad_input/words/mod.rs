//! What bad messages are answered: the program and QEMU, side by side.
//!
//! Each table (`*.txt`: a message a line, `<0a>` is the byte 0x0a) is sent to the program and to QEMU as it is installed,
//! which has the same nodes, bitmaps and jobs; answers must be the same in class, text and id, but for differences that
//! [`known`] has a reason for. These are printed, and what no longer differs must leave its list. A QEMU that is missing is a failure. The tables were made with
//! qemu-storage-daemon and qemu-system-x86_64 10.0.2.

mod generated;
mod known;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluice_tests::process::Machine;

use crate::harness::{LIMIT, SLUICE, Scene, qtest_arguments};

/// How often is looked whether something has come about.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What ends the answers to a message: the answer to a command that there is not, with this id.
const LAST: &str = "last";

/// An answer, as far as it is compared.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Answer {
    /// The class of an error, or "return".
    class: String,
    text: String,
    id: Option<Value>,
}

/// Who is asked.
struct Peer {
    process: Machine,
    socket: PathBuf,
    _scene: Scene,
}

/// Whose words the program's are compared with.
#[derive(Clone, Copy)]
enum Reference {
    StorageDaemon,
    /// For commands that only a machine has.
    Machine,
}

impl Peer {
    fn start(program: &str, arguments: impl FnOnce(&Scene) -> Vec<String>) -> Self {
        let scene = Scene::new();
        let process = Machine::start(program, arguments(&scene)).unwrap_or_else(|error| {
            panic!("{program} (ci/install-deps installs it) can't be run: {error}")
        });
        let socket = scene.path("qmp");
        let peer = Self {
            process,
            socket,
            _scene: scene,
        };
        peer.talk();
        peer
    }

    fn sluice() -> Self {
        Self::start(SLUICE, |scene| {
            let mut arguments = qtest_arguments(scene);
            let monitor = format!("unix:{},server=on,wait=off", scene.text("qmp"));
            arguments.extend(["-qmp".to_owned(), monitor, "-nodefaults".to_owned()]);
            arguments
        })
    }

    fn reference(which: Reference) -> Self {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        match which {
            Reference::StorageDaemon => Self::start("qemu-storage-daemon", |scene| {
                let socket = format!("socket,id=c,path={},server=on,wait=off", scene.text("qmp"));
                texts(&["--chardev", &socket, "--monitor", "chardev=c"])
            }),
            Reference::Machine => Self::start("qemu-system-x86_64", |scene| {
                let monitor = format!("unix:{},server=on,wait=off", scene.text("qmp"));
                let nothing = ["-machine", "none", "-nodefaults", "-display", "none"];
                texts(&[&nothing[..], &["-qmp", &monitor]].concat())
            }),
        }
    }

    /// A client that was greeted.
    fn talk(&self) -> Talk {
        let deadline = Instant::now() + LIMIT;
        let stream = loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => break stream,
                Err(error) => {
                    let said = self.process.output();
                    assert!(Instant::now() < deadline, "no monitor: {error}\n{said}");
                    std::thread::sleep(LOOK_EVERY);
                }
            }
        };
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut talk = Talk {
            lines: BufReader::new(stream),
        };
        talk.line();
        talk
    }

    /// The answers to `message`, of a client of its own.
    fn ask(&self, message: &[u8], negotiates: bool) -> Vec<Answer> {
        let mut talk = self.talk();
        if negotiates {
            talk.negotiate();
        }
        talk.ask(message)
    }
}

/// A client.
struct Talk {
    lines: BufReader<UnixStream>,
}

impl Talk {
    fn line(&mut self) -> Vec<u8> {
        let mut line = Vec::new();
        self.lines.read_until(b'\n', &mut line).unwrap();
        assert!(!line.is_empty(), "the connection was closed");
        line
    }

    fn say(&mut self, bytes: &[u8]) {
        self.lines.get_mut().write_all(bytes).unwrap();
    }

    fn negotiate(&mut self) {
        assert_eq!(
            self.ask(br#"{"execute": "qmp_capabilities"}"#)[0].class,
            "return"
        );
    }

    /// The answers that come before that to a last command.
    fn ask(&mut self, message: &[u8]) -> Vec<Answer> {
        let last = json!({"execute": "x-nonesuch", "id": LAST}).to_string();
        self.say(&[message, b"\n", last.as_bytes(), b"\n"].concat());
        let mut answers = Vec::new();
        loop {
            let line = self.line();
            // There are numbers that QEMU's are not JSON with.
            let answer: Value = serde_json::from_slice(&line)
                .unwrap_or_else(|_| json!({"return": String::from_utf8_lossy(&line)}));
            if answer["id"] == LAST {
                return answers;
            }
            if answer.get("event").is_none() {
                answers.push(Answer::read(&answer));
            }
        }
    }

    /// What a command returns.
    fn execute(&mut self, command: &str) -> Value {
        self.say(format!("{}\n", json!({"execute": command})).as_bytes());
        loop {
            let answer: Value = serde_json::from_slice(&self.line()).unwrap();
            if let Some(value) = answer.get("return") {
                return value.clone();
            }
            assert!(answer.get("event").is_some(), "{command}: {answer}");
        }
    }
}

impl Answer {
    fn read(answer: &Value) -> Self {
        let id = answer.get("id").cloned();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        match answer.get("error") {
            Some(error) => Self {
                class: text(&error["class"]),
                text: text(&error["desc"]),
                id,
            },
            None => Self {
                class: "return".to_owned(),
                // Of what a command returns, nothing is compared but what is no JSON.
                text: text(&answer["return"]),
                id,
            },
        }
    }
}

/// Both, with the same setup.
struct Pair {
    ours: Peer,
    theirs: Peer,
}

impl Pair {
    fn start(reference: Reference, setup: &[Value]) -> Self {
        let pair = Self {
            ours: Peer::sluice(),
            theirs: Peer::reference(reference),
        };
        for message in setup {
            for peer in [&pair.ours, &pair.theirs] {
                let answers = peer.ask(message.to_string().as_bytes(), true);
                assert_eq!(answers[0].class, "return", "{message}: {answers:?}");
            }
        }
        pair
    }

    /// Waits until the jobs of both have these states.
    fn wait_for_jobs(&self, expected: &[(&str, &str)]) {
        let expected: BTreeSet<_> = expected.iter().copied().collect();
        for peer in [&self.ours, &self.theirs] {
            let mut talk = peer.talk();
            talk.negotiate();
            let deadline = Instant::now() + LIMIT;
            loop {
                let jobs = talk.execute("query-jobs");
                let jobs = jobs.as_array().unwrap();
                let text = |job: &Value, member: &str| job[member].as_str().unwrap().to_owned();
                let states = jobs
                    .iter()
                    .map(|job| (text(job, "id"), text(job, "status")));
                let states: BTreeSet<_> = states.collect();
                if expected
                    .iter()
                    .all(|(id, state)| states.contains(&((*id).to_owned(), (*state).to_owned())))
                {
                    break;
                }
                assert!(Instant::now() < deadline, "jobs are {states:?}");
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }
}

/// What came of comparisons.
#[derive(Default)]
struct Findings {
    compared: usize,
    /// Differences with a reason: how many, and one of them.
    known: BTreeMap<&'static str, (usize, String)>,
    unknown: Vec<String>,
}

impl Findings {
    fn compare(&mut self, message: &[u8], ours: &[Answer], theirs: &[Answer]) {
        self.compared += 1;
        let exception = known::exception(message);
        if ours == theirs && exception.is_none() {
            return;
        }
        let reason = if ours == theirs {
            None
        } else {
            exception.or_else(|| known::reason(ours, theirs))
        };
        let message = message.escape_ascii().to_string();
        let difference = format!("{message}\n   ours: {ours:?}\n   QEMU's: {theirs:?}");
        match reason {
            Some(reason) => {
                let (times, _) = self.known.entry(reason).or_insert((0, difference));
                *times += 1;
            }
            None => self.unknown.push(difference),
        }
    }

    /// Prints the known differences, and fails for others.
    fn judge(self) {
        println!("{} messages compared", self.compared);
        for (reason, (times, example)) in &self.known {
            println!("known, {times} times: {reason}, as in {example}");
        }
        assert!(
            self.unknown.is_empty(),
            "{} answers differ from QEMU's:\n{}",
            self.unknown.len(),
            self.unknown.join("\n")
        );
    }
}

/// The messages of a table.
fn messages(table: &str) -> Vec<Vec<u8>> {
    let line = |line: &str| {
        let mut bytes = Vec::new();
        let mut rest = line;
        while let Some((before, after)) = rest.split_once('<') {
            let (code, after) = after.split_once('>').unwrap();
            bytes.extend_from_slice(before.as_bytes());
            bytes.push(u8::from_str_radix(code, 16).unwrap());
            rest = after;
        }
        bytes.extend_from_slice(rest.as_bytes());
        bytes
    };
    table.lines().map(line).collect()
}

fn compare_all(pair: &Pair, table: &str, negotiates: bool) {
    let mut findings = Findings::default();
    for message in messages(table) {
        let ours = pair.ours.ask(&message, negotiates);
        let theirs = pair.theirs.ask(&message, negotiates);
        findings.compare(&message, &ours, &theirs);
    }
    findings.judge();
}

fn command(name: &str, arguments: &Value) -> Value {
    json!({"execute": name, "arguments": arguments})
}

fn disk(name: &str, size: u32) -> Value {
    command(
        "blockdev-add",
        &json!({"driver": "null-co", "node-name": name, "size": size}),
    )
}

/// Nodes and bitmaps that messages are about.
fn nodes() -> Vec<Value> {
    let mut setup: Vec<_> = ["n0", "n1", "n2", "f0"]
        .map(|name| disk(name, 1 << 20))
        .into();
    setup.push(command(
        "blockdev-add",
        &json!({"driver": "raw", "node-name": "r0", "file": "f0"}),
    ));
    setup.extend(["b0", "b1"].map(|name| {
        command(
            "block-dirty-bitmap-add",
            &json!({"node": "n0", "name": name}),
        )
    }));
    setup
}

#[test]
fn what_is_not_json() {
    let pair = Pair::start(Reference::StorageDaemon, &[]);
    compare_all(&pair, include_str!("parser.txt"), true);
    let mut findings = Findings::default();
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        for depth in [1024, 1025, 1100] {
            let message = [open.repeat(depth), "1".to_owned(), close.repeat(depth)].concat();
            let [ours, theirs] =
                [&pair.ours, &pair.theirs].map(|peer| peer.ask(message.as_bytes(), true));
            findings.compare(message.as_bytes(), &ours, &theirs);
        }
    }
    findings.judge();
}

#[test]
fn what_is_no_request() {
    let pair = Pair::start(Reference::StorageDaemon, &[]);
    compare_all(&pair, include_str!("requests.txt"), true);
    compare_all(&pair, include_str!("negotiation.txt"), false);
}

#[test]
fn arguments() {
    let pair = Pair::start(Reference::StorageDaemon, &nodes());
    compare_all(&pair, include_str!("arguments.txt"), true);
    compare_all(&pair, include_str!("bitmaps.txt"), true);
    compare_all(&pair, include_str!("transactions.txt"), true);
}

#[test]
fn commands_of_a_machine() {
    let pair = Pair::start(Reference::Machine, &nodes());
    compare_all(&pair, include_str!("system.txt"), true);
}

#[test]
fn jobs_that_are_not_there_or_in_another_state() {
    let mut setup: Vec<_> = (0..12).map(|n| disk(&format!("n{n}"), 4 << 20)).collect();
    for (kind, id, node, more) in [
        ("mirror", "ready", 0, json!({})),
        ("mirror", "slow", 2, json!({"speed": 1})),
        ("backup", "done", 4, json!({"auto-dismiss": false})),
        (
            "backup",
            "pend",
            6,
            json!({"auto-finalize": false, "auto-dismiss": false}),
        ),
        ("backup", "sb", 8, json!({"speed": 1})),
    ] {
        let mut arguments = json!({"job-id": id, "device": format!("n{node}"),
                                   "target": format!("n{}", node + 1), "sync": "full"});
        let more = more.as_object().unwrap().clone();
        arguments.as_object_mut().unwrap().extend(more);
        setup.push(command(&format!("blockdev-{kind}"), &arguments));
    }
    let pair = Pair::start(Reference::StorageDaemon, &setup);
    compare_all(&pair, include_str!("unknown_jobs.txt"), true);
    pair.wait_for_jobs(&[
        ("ready", "ready"),
        ("slow", "running"),
        ("done", "concluded"),
        ("pend", "pending"),
        ("sb", "running"),
    ]);
    compare_all(&pair, include_str!("jobs.txt"), true);
}

#[test]
fn every_argument_of_every_command_of_another_type() {
    for reference in [Reference::StorageDaemon, Reference::Machine] {
        let pair = Pair::start(reference, &[]);
        generated::compare_all(&pair);
    }
}
