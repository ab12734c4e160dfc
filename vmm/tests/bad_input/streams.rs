//! Byte streams that are not QMP: every fault has one error reply, and the stream goes on after it.

use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use crate::harness::{LIMIT, Scene, Vm};

/// The protocol's limits.
const MOST_BYTES: usize = 64 << 20;
const DEEPEST: usize = 1024;
const MOST_TOKENS: usize = 2 << 20;
/// The byte that says: forget what came before.
const RESET: &[u8] = &[0xff];

/// A client that sends bytes.
pub struct Raw {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Raw {
    /// Connects and, if `negotiated`, gets over the greeting.
    pub fn connect(vm: &Vm, negotiated: bool) -> Self {
        let stream = vm.connect_raw();
        let lines = BufReader::new(stream.try_clone().unwrap());
        let mut raw = Self { stream, lines };
        assert!(raw.line()["QMP"].is_object());
        if negotiated {
            raw.send(br#"{"execute":"qmp_capabilities"}"#);
            assert_eq!(raw.line()["return"], json!({}));
        }
        raw
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line);
        assert_ne!(read.unwrap(), 0, "the connection was closed");
        serde_json::from_str(&line).unwrap()
    }

    /// Sends `bytes`, and a command after them; what comes before its reply must be one error.
    #[track_caller]
    fn error_of(&mut self, bytes: &[u8]) -> String {
        self.send(bytes);
        self.send(b"\n");
        self.error_before_reply()
    }

    #[track_caller]
    fn error_before_reply(&mut self) -> String {
        self.send(br#"{"execute":"query-name","id":"after"}"#);
        let error = self.line();
        let text = error["error"]["desc"].as_str();
        let text = text
            .unwrap_or_else(|| panic!("no error: {error}"))
            .to_owned();
        let reply = self.line();
        assert_eq!(reply["id"], "after", "{text}, then {reply}");
        assert!(reply["return"].is_object(), "{reply}");
        text
    }
}

#[test]
fn malformed_messages_have_one_error_each() {
    let scene = Scene::new();
    let mut vm = Vm::start(&scene);
    let mut raw = Raw::connect(&vm, true);
    let cases: &[(&[u8], &str)] = &[
        (br#"{"execute":}"#, "JSON parse error"),
        (br#"{"execute" "query-name"}"#, "JSON parse error"),
        (br#"{'execute':'query-name',}"#, "JSON parse error"),
        (b"{\"execute\":\"query\x01name\"}", "JSON parse error"),
        (br#"{"execute":"query-name"]"#, "JSON parse error"),
        (br"]", "JSON parse error"),
        (br"tru", "JSON parse error"),
        (br"\x00", "JSON parse error"),
        (br#""a string""#, "must be a JSON object"),
        (br"[1, 2]", "must be a JSON object"),
        (br"17", "must be a JSON object"),
        (br"{}", "lacks member 'execute'"),
        (br#"{"execute":17}"#, "'execute' must be a string"),
        (
            br#"{"execute":"query-name","arguments":[]}"#,
            "'arguments' must be an object",
        ),
        (
            br#"{"execute":"query-name","extra":1}"#,
            "'extra' is unexpected",
        ),
        (
            br#"{"execute":"query-name","execute":"stop"}"#,
            "duplicate key",
        ),
    ];
    for (bytes, words) in cases {
        let error = raw.error_of(bytes);
        let sent = String::from_utf8_lossy(bytes);
        assert!(error.contains(words), "{sent}: {error}");
    }
    vm.check_disks();
    drop(raw);
    vm.quit();
}

/// A message that nobody ends would swallow whatever follows; the reset byte gets out of it.
#[test]
fn a_client_that_lost_its_place_finds_it_again() {
    let scene = Scene::new();
    let vm = Vm::start(&scene);
    let mut raw = Raw::connect(&vm, true);
    for unfinished in [
        &br#"{"execute":"query-name","arguments":{"#[..],
        br#"{"execute":"que"#,
        br#"[[[[[[[["#,
        br#"{"a":"\"#,
    ] {
        raw.send(unfinished);
        raw.send(RESET);
        let error = raw.error_before_reply();
        assert!(error.contains("JSON"), "{error}");
    }
    drop(raw);
    vm.quit();
}

#[test]
fn garbage_harms_nobody() {
    let scene = Scene::new();
    let mut vm = Vm::start(&scene);
    let mut raw = Raw::connect(&vm, true);
    // Deterministic, and every byte value often.
    let mut state = 1_u32;
    let garbage: Vec<u8> = (0..256 << 10)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .collect();
    // Errors come back meanwhile, and must be read: nobody answers a client that does not listen.
    let mut lines = BufReader::new(raw.stream.try_clone().unwrap());
    let reader = std::thread::spawn(move || {
        let mut errors = 0;
        loop {
            let mut line = String::new();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "closed");
            let message: Value = serde_json::from_str(&line).unwrap();
            if message["id"] == "after" {
                return errors;
            }
            assert!(message["error"].is_object(), "{message}");
            errors += 1;
        }
    });
    raw.send(&garbage);
    raw.send(RESET);
    raw.send(b"\n");
    raw.send(br#"{"execute":"query-name","id":"after"}"#);
    assert!(reader.join().unwrap() > 0);
    vm.check_disks();
    vm.quit();
}

#[test]
fn too_large_a_message_is_refused_and_the_next_one_served() {
    let scene = Scene::new();
    let mut vm = Vm::start(&scene);
    let mut raw = Raw::connect(&vm, true);
    raw.send(br#"{"execute":"query-name","id":""#);
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..=MOST_BYTES / piece.len() {
        raw.send(&piece);
    }
    let error = raw.error_of(br#""}"#);
    assert!(error.contains("size limit exceeded"), "{error}");
    drop(raw);
    vm.check_disks();
    vm.quit();
}

#[test]
fn a_message_of_too_many_tokens_is_refused_and_one_of_the_most_is_read() {
    /// `[[],0,0,…]`: two brackets, two more, and a comma and a number each.
    fn list(tokens: usize) -> Vec<u8> {
        let mut message = b"[[]".to_vec();
        message.extend(b",0".repeat((tokens - 4) / 2));
        message.push(b']');
        message
    }
    let scene = Scene::new();
    let mut vm = Vm::start(&scene);
    let mut raw = Raw::connect(&vm, true);
    let error = raw.error_of(&list(MOST_TOKENS + 2));
    assert!(error.contains("token count limit exceeded"), "{error}");
    let error = raw.error_of(&list(4 * MOST_TOKENS));
    assert!(error.contains("token count limit exceeded"), "{error}");
    let error = raw.error_of(&list(MOST_TOKENS));
    assert!(error.contains("must be a JSON object"), "{error}");
    drop(raw);
    vm.check_disks();
    vm.quit();
}

#[test]
fn too_deep_a_message_is_refused_and_the_deepest_is_read() {
    let scene = Scene::new();
    let vm = Vm::start(&scene);
    let mut raw = Raw::connect(&vm, true);
    let nested = |levels: usize| {
        let mut message = b"[".repeat(levels);
        message.extend(b"]".repeat(levels));
        message
    };
    let error = raw.error_of(&nested(DEEPEST + 1));
    assert!(error.contains("nesting depth limit exceeded"), "{error}");
    let error = raw.error_of(&nested(100_000));
    assert!(error.contains("nesting depth limit exceeded"), "{error}");
    let error = raw.error_of(&nested(DEEPEST));
    assert!(error.contains("must be a JSON object"), "{error}");
    drop(raw);
    vm.quit();
}

#[test]
fn nothing_goes_before_the_negotiation() {
    let scene = Scene::new();
    let mut vm = Vm::start(&scene);
    let mut raw = Raw::connect(&vm, false);
    for command in ["query-status", "quit", "stop"] {
        raw.send(json!({"execute": command}).to_string().as_bytes());
        let reply = raw.line();
        assert_eq!(reply["error"]["class"], "CommandNotFound", "{reply}");
    }
    let status = vm.execute("query-status", &json!({}));
    assert_eq!(status["status"], "running");
    vm.quit();
}

/// Half a message, half a connection: what was complete is answered, the rest is nobody's loss.
#[test]
fn a_client_that_stops_in_the_middle_of_a_message() {
    let scene = Scene::new();
    let mut vm = Vm::start(&scene);
    let mut raw = Raw::connect(&vm, true);
    raw.send(br#"{"execute":"query-name","id":1}{"execute":"quit"#);
    raw.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(raw.line()["id"], 1);
    drop(raw);
    for _ in 0..50 {
        drop(Raw::connect(&vm, false));
    }
    vm.check_disks();
    vm.quit();
}

/// Events pile up for a client that does not read; it finds all of them, in order.
#[test]
fn thousands_of_unread_events_are_kept_in_order() {
    const ROUNDS: usize = 2000;
    let scene = Scene::new();
    let mut vm = Vm::start(&scene);
    let sleeper = vm.connect();
    let mut lazy = Raw::connect(&vm, true);
    for _ in 0..ROUNDS {
        vm.execute("stop", &json!({}));
        vm.execute("cont", &json!({}));
    }
    for round in 0..ROUNDS {
        for name in ["STOP", "RESUME"] {
            assert_eq!(lazy.line()["event"], name, "in round {round}");
        }
    }
    let last = sleeper.wait_event("the last event", LIMIT, |event| event.event == "RESUME");
    last.unwrap();
    vm.check_disks();
    vm.quit();
}
