//! A machine under test: the real binary as a child process, its serial console on its standard
//! input and output.
//!
//! Two threads collect what the child prints; whoever owns the [`Machine`] waits for text on the
//! console, types lines into it, and waits for the end. Dropping it kills the child and reaps it,
//! so a failed test leaves nothing behind; and should the owner die without dropping, the kernel
//! kills the child.
#![expect(
    unsafe_code,
    reason = "the child asks the kernel to die with its parent, before exec"
)]

use std::{
    ffi::OsStr,
    fmt::Write as _,
    fs::File,
    io::{self, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::process::{Signal, set_parent_process_death_signal};

pub mod threads;

/// How often a child that closed its console is asked whether it has ended.
const POLL: Duration = Duration::from_millis(5);

/// How much of the console an error message shows, in lines.
const SHOWN_LINES: usize = 25;

/// A wait for the machine that failed.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The program could not be started or fed.
    #[error("{program}: {error}")]
    Io {
        /// The program.
        program: String,
        /// Why.
        error: io::Error,
    },
    /// Nothing came in time.
    #[error("no {what} within {seconds} s\n{output}")]
    Timeout {
        /// What had been waited for.
        what: String,
        /// For how long.
        seconds: u64,
        /// The end of what the machine printed.
        output: String,
    },
    /// The machine ended first.
    #[error("the machine ended ({status}) without {what}\n{output}")]
    Ended {
        /// What had been waited for.
        what: String,
        /// How it ended.
        status: String,
        /// The end of what it printed.
        output: String,
    },
}

#[derive(Default)]
struct Text {
    text: String,
    closed: bool,
}

/// A growing text, written by a collector thread.
#[derive(Default)]
struct Collected {
    text: Mutex<Text>,
    changed: Condvar,
}

impl Collected {
    fn lock(&self) -> MutexGuard<'_, Text> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads `input` to its end, copying it to `copy` as it comes.
    fn collect(&self, mut input: impl Read, mut copy: Option<File>) {
        let mut bytes = [0; 4096];
        loop {
            match input.read(&mut bytes) {
                Ok(0) => break,
                Ok(count) => {
                    if copy
                        .as_mut()
                        .is_some_and(|file| file.write_all(&bytes[..count]).is_err())
                    {
                        // The copy is a help for humans; a full disk must not end the test.
                        copy = None;
                    }
                    self.lock()
                        .text
                        .push_str(&String::from_utf8_lossy(&bytes[..count]));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
            self.changed.notify_all();
        }
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

/// A running machine.
pub struct Machine {
    program: String,
    child: Child,
    stdin: Option<ChildStdin>,
    console: Arc<Collected>,
    messages: Arc<Collected>,
    collectors: Vec<JoinHandle<()>>,
    started: Instant,
    status: Option<ExitStatus>,
}

/// A place in the console's text: waiting begins there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark(usize);

impl Machine {
    /// Starts `program`. To be called from a thread that outlives the machine: the child dies with
    /// that thread.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start<S: AsRef<OsStr>>(
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Self, MachineError> {
        Self::start_copying(program, arguments, None)
    }

    /// As [`Self::start`], and copies the console to a file as it grows, for somebody to read
    /// after the test was killed.
    ///
    /// # Errors
    /// As there.
    pub fn start_copying<S: AsRef<OsStr>>(
        program: &str,
        arguments: impl IntoIterator<Item = S>,
        copy: Option<File>,
    ) -> Result<Self, MachineError> {
        let fail = |error| MachineError::Io {
            program: program.to_owned(),
            error,
        };
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // SAFETY: between fork and exec this makes one system call, prctl, and touches no memory.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let started = Instant::now();
        let mut child = command.spawn().map_err(fail)?;
        let console = Arc::new(Collected::default());
        let messages = Arc::new(Collected::default());
        let mut collectors = Vec::new();
        if let Some(output) = child.stdout.take() {
            let console = Arc::clone(&console);
            collectors.push(std::thread::spawn(move || console.collect(output, copy)));
        }
        if let Some(output) = child.stderr.take() {
            let messages = Arc::clone(&messages);
            collectors.push(std::thread::spawn(move || messages.collect(output, None)));
        }
        let stdin = child.stdin.take();
        let program = program.to_owned();
        let status = None;
        Ok(Self {
            program,
            child,
            stdin,
            console,
            messages,
            collectors,
            started,
            status,
        })
    }

    /// Sends the process a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<(), MachineError> {
        let pid = i32::try_from(self.pid())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        let sent = match pid {
            Some(pid) => rustix::process::kill_process(pid, signal).map_err(io::Error::from),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        sent.map_err(|error| MachineError::Io {
            program: self.program.clone(),
            error,
        })
    }

    /// The process's number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// When it was started.
    #[must_use]
    pub const fn started(&self) -> Instant {
        self.started
    }

    /// All of the console's text so far.
    #[must_use]
    pub fn console(&self) -> String {
        self.console.lock().text.clone()
    }

    /// What the program itself said (standard error) so far.
    #[must_use]
    pub fn messages(&self) -> String {
        self.messages.lock().text.clone()
    }

    /// The present end of the console's text.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark(self.console.lock().text.len())
    }

    /// Waits until `words` stand on the console after `from`, and returns the place behind them.
    ///
    /// # Errors
    /// They did not come in time, or the console was closed before.
    pub fn wait_console(
        &mut self,
        words: &str,
        from: Mark,
        limit: Duration,
    ) -> Result<Mark, MachineError> {
        let deadline = Instant::now() + limit;
        let mut text = self.console.lock();
        loop {
            if let Some(at) = text.text[from.0..].find(words) {
                return Ok(Mark(from.0 + at + words.len()));
            }
            if text.closed {
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(text);
                return Err(self.timeout(&format!("{words:?} on the console"), limit));
            }
            let waited = self.console.changed.wait_timeout(text, left);
            text = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(text);
        let status = match self.wait_end(deadline.saturating_duration_since(Instant::now())) {
            Ok(status) => status.to_string(),
            Err(_) => "console closed".to_owned(),
        };
        let what = format!("{words:?} on the console");
        Err(MachineError::Ended {
            what,
            status,
            output: self.output(),
        })
    }

    /// Types a line into the console.
    ///
    /// # Errors
    /// The machine does not take it.
    pub fn type_line(&mut self, line: &str) -> Result<(), MachineError> {
        let Some(stdin) = &mut self.stdin else {
            return Ok(());
        };
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .map_err(|error| MachineError::Io {
                program: self.program.clone(),
                error,
            })
    }

    /// Waits for the process to end and for all of its output.
    ///
    /// # Errors
    /// It did not end in time.
    pub fn wait_end(&mut self, limit: Duration) -> Result<ExitStatus, MachineError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.try_status()? {
                for collector in self.collectors.drain(..) {
                    let _panicked = collector.join();
                }
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(self.timeout("end of the process", limit));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Whether, and how, the process has ended.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn try_status(&mut self) -> Result<Option<ExitStatus>, MachineError> {
        if self.status.is_none() {
            self.status = self.child.try_wait().map_err(|error| MachineError::Io {
                program: self.program.clone(),
                error,
            })?;
        }
        Ok(self.status)
    }

    /// Whether the process ended by a signal; false while it runs.
    #[must_use]
    pub fn was_killed(&self) -> bool {
        self.status.is_some_and(|status| status.signal().is_some())
    }

    fn timeout(&self, what: &str, limit: Duration) -> MachineError {
        MachineError::Timeout {
            what: what.to_owned(),
            seconds: limit.as_secs(),
            output: self.standstill(),
        }
    }

    /// [`Self::output`] and what the threads do, for an error message about a machine that runs but
    /// does not get on. Takes two seconds.
    #[must_use]
    pub fn standstill(&self) -> String {
        self.output() + &threads::report(self.pid())
    }

    /// The end of the console and of the program's own messages, for an error message.
    #[must_use]
    pub fn output(&self) -> String {
        let mut output = String::new();
        for (title, text) in [("console", self.console()), ("messages", self.messages())] {
            let lines: Vec<_> = text.lines().collect();
            let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
            let _infallible = writeln!(output, "--- {title}, last {} lines", shown.len());
            for line in shown {
                let _infallible = writeln!(output, "{}", line.trim_end());
            }
        }
        output
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.status.is_none() {
            // Both fail only if it has ended by itself.
            let _ended = self.child.kill();
            let _ended = self.child.wait();
        }
        for collector in self.collectors.drain(..) {
            let _panicked = collector.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Machine {
        Machine::start("/bin/sh", ["-c", script]).unwrap()
    }

    #[test]
    fn waits_for_words_types_and_waits_for_the_end() {
        let mut machine = shell("echo one; read line; echo got $line; echo oops >&2; exit 3");
        let mark = machine.wait_console("one", Mark::default(), LIMIT).unwrap();
        machine.type_line("two").unwrap();
        machine.wait_console("got two", mark, LIMIT).unwrap();
        assert_eq!(machine.wait_end(LIMIT).unwrap().code(), Some(3));
        assert_eq!(machine.messages(), "oops\n");
        assert!(!machine.was_killed());
    }

    #[test]
    fn an_early_end_is_told_with_the_output() {
        let mut machine = shell("echo bad luck; exit 1");
        let error = machine
            .wait_console("good", Mark::default(), LIMIT)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("bad luck") && error.contains("exit status: 1"),
            "{error}"
        );
    }

    #[test]
    fn a_timeout_says_what_it_waited_for() {
        let mut machine = shell("exec sleep 1000");
        let error = machine.wait_end(Duration::ZERO).unwrap_err().to_string();
        assert!(
            error.starts_with("no end of the process within 0 s"),
            "{error}"
        );
        assert!(error.contains("--- threads"), "{error}");
    }

    #[test]
    fn dropping_kills() {
        let machine = shell("exec sleep 1000");
        let process = format!("/proc/{}", machine.pid());
        drop(machine);
        assert!(!std::path::Path::new(&process).exists());
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Machine::start("/nowhere/sluice", [""]).err().unwrap();
        assert!(error.to_string().contains("/nowhere/sluice"));
    }
}
