//! A client of the control socket, just enough for these tests.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

pub(crate) struct Monitor {
    lines: BufReader<UnixStream>,
    stream: UnixStream,
    /// Names of the events so far that nobody asked for.
    events: Vec<Value>,
}

impl Monitor {
    /// Connects to the socket, whose server may not be up yet.
    pub(crate) fn connect(path: &Path) -> Self {
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(_) => std::thread::yield_now(),
            }
        };
        let lines = BufReader::new(stream.try_clone().unwrap());
        let mut monitor = Self {
            lines,
            stream,
            events: Vec::new(),
        };
        assert!(monitor.message()["QMP"].is_object());
        monitor.execute("qmp_capabilities");
        monitor
    }

    fn message(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    /// Executes a command without arguments and returns what it returns.
    pub(crate) fn execute(&mut self, command: &str) -> Value {
        self.execute_with(command, &json!({}))
    }

    /// The same with arguments.
    pub(crate) fn execute_with(&mut self, command: &str, arguments: &Value) -> Value {
        // In one piece: the machine may end by the command before anything more could be sent.
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        self.stream.write_all(line.as_bytes()).unwrap();
        loop {
            let message = self.message();
            match message.get("return") {
                Some(result) => return result.clone(),
                None if message.get("event").is_some() => self.events.push(message),
                None => panic!("{command}: {message}"),
            }
        }
    }

    /// Waits for the next event, which has to be this one, and returns its data.
    pub(crate) fn event(&mut self, name: &str) -> Value {
        let event = if self.events.is_empty() {
            self.message()
        } else {
            self.events.remove(0)
        };
        assert_eq!(event["event"], name, "{event}");
        event["data"].clone()
    }

    pub(crate) fn status(&mut self) -> String {
        self.execute("query-status")["status"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}
