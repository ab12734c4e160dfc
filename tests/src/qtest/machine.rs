//! The program, started as QEMU's own tests start it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{Qtest, QtestError};
use crate::process::{Machine, MachineError};
use crate::qmp::{Qmp, QmpError};

/// How long the program may take to connect or to end.
const LIMIT: Duration = Duration::from_secs(60);

/// How often a socket that nobody has connected to is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The process.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The monitor.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// The protocol.
    #[error(transparent)]
    Qtest(#[from] QtestError),
    /// The test's side of the sockets.
    #[error("sockets: {0}")]
    Io(#[from] io::Error),
    /// The program did not connect.
    #[error("nobody connected to {socket}:\n{output}")]
    Unconnected {
        /// Which socket.
        socket: &'static str,
        /// What the program printed.
        output: String,
    },
}

/// A machine without CPUs, with a test where they would be and a monitor.
pub struct QtestMachine {
    /// The registers, memory, interrupts and clock.
    pub qtest: Qtest,
    /// The monitor.
    pub qmp: Qmp,
    process: Machine,
    _directory: TempDir,
}

impl QtestMachine {
    /// Starts `program` with libqtest's arguments and these. It connects to the test.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start<S: AsRef<OsStr>>(
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Self, StartError> {
        let directory = tempfile::tempdir()?;
        let (qtest, qmp) = (directory.path().join("qtest"), directory.path().join("qmp"));
        let listen = |path| {
            let listener = UnixListener::bind(path)?;
            listener.set_nonblocking(true)?;
            Ok::<_, io::Error>(listener)
        };
        let (qtest_listener, qmp_listener) = (listen(&qtest)?, listen(&qmp)?);
        let fixed = [
            "-qtest".to_owned(),
            format!("unix:{}", qtest.display()),
            "-qtest-log".to_owned(),
            "/dev/null".to_owned(),
            "-chardev".to_owned(),
            format!("socket,path={},id=char0", qmp.display()),
            "-mon".to_owned(),
            "chardev=char0,mode=control".to_owned(),
            "-display".to_owned(),
            "none".to_owned(),
            "-audio".to_owned(),
            "none".to_owned(),
        ];
        let own = arguments.into_iter().map(|word| word.as_ref().to_owned());
        let all = fixed.iter().map(Into::into).chain(own);
        let all = all.chain(["-accel", "qtest"].map(Into::into));
        let mut process = Machine::start(program, all.collect::<Vec<std::ffi::OsString>>())?;
        let qtest_stream = accept(&qtest_listener, "qtest", &mut process)?;
        let qmp_stream = accept(&qmp_listener, "qmp", &mut process)?;
        let mut qtest = Qtest::new(qtest_stream)?;
        qtest.ask("endianness")?;
        let mut qmp = Qmp::over(qmp_stream, LIMIT)?;
        qmp.hold_to_schema()?;
        Ok(Self {
            qtest,
            qmp,
            process,
            _directory: directory,
        })
    }

    /// Ends it by SIGTERM; returns its exit status, which is none if a signal ended it.
    ///
    /// # Errors
    /// It does not end.
    pub fn end(mut self) -> Result<Option<i32>, StartError> {
        self.process.signal(rustix::process::Signal::TERM)?;
        Ok(self.process.wait_end(LIMIT)?.code())
    }

    /// The process's number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it printed to standard error.
    #[must_use]
    pub fn messages(&self) -> String {
        self.process.messages()
    }
}

fn accept(
    listener: &UnixListener,
    socket: &'static str,
    process: &mut Machine,
) -> Result<UnixStream, StartError> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
            Err(_) if Instant::now() < deadline && process.try_status()?.is_none() => {
                std::thread::sleep(POLL);
            }
            Err(_) => {
                return Err(StartError::Unconnected {
                    socket,
                    output: process.output(),
                });
            }
        }
    }
}
