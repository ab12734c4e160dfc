//! A client of the qtest protocol: registers poked one by one, memory written by hand, interrupts heard of, the
//! guest's clock moved.
//!
//! [`Qtest`] is the protocol; [`machine::QtestMachine`] starts the program as QEMU's own tests do, with the test
//! listening, and has a monitor as well; [`pci`] finds functions and maps their BARs. Blocking; a command's answer
//! is waited for, and interrupts told meanwhile are kept.

pub mod machine;
pub mod pci;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long an answer may take. Nothing depends on it but the end of a test that hangs.
const ANSWER: Duration = Duration::from_secs(60);

/// What can go wrong with a command.
#[derive(Debug, thiserror::Error)]
pub enum QtestError {
    /// The socket failed, or no answer came in time.
    #[error("qtest: {command}: {error}")]
    Io {
        /// The command.
        command: String,
        /// Why.
        error: io::Error,
    },
    /// The other side refused.
    #[error("qtest: {command}: {answer}")]
    Refused {
        /// The command.
        command: String,
        /// The whole answer.
        answer: String,
    },
}

/// A level change that was told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The input of the interrupt controller.
    pub irq: u32,
    /// Its new level.
    pub level: bool,
}

/// A session.
#[derive(Debug)]
pub struct Qtest {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
    levels: BTreeMap<u32, bool>,
    changes: Vec<Change>,
}

/// Commands whose answer is a number, and those that have a value to write.
macro_rules! accesses {
    ($($read:ident $write:ident $type:ty, $in:literal $out:literal $what:literal;)*) => {
        $(
            #[doc = concat!("Reads a ", $what, ".")]
            ///
            /// # Errors
            /// [`QtestError`].
            pub fn $read(&mut self, at: u64) -> Result<$type, QtestError> {
                self.narrow(&format!(concat!($in, " {:#x}"), at))
            }

            #[doc = concat!("Writes a ", $what, ".")]
            ///
            /// # Errors
            /// [`QtestError`].
            pub fn $write(&mut self, at: u64, value: $type) -> Result<(), QtestError> {
                self.ask(&format!(concat!($out, " {:#x} {:#x}"), at, value)).map(drop)
            }
        )*
    };
}

impl Qtest {
    /// A session on a connected stream.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(ANSWER))?;
        let answers = BufReader::new(stream.try_clone()?);
        Ok(Self {
            stream,
            answers,
            levels: BTreeMap::new(),
            changes: Vec::new(),
        })
    }

    /// Sends a command; returns the whole line of its answer.
    ///
    /// # Errors
    /// [`QtestError::Io`].
    pub fn raw(&mut self, command: &str) -> Result<String, QtestError> {
        let failed = |error| QtestError::Io {
            command: command.to_owned(),
            error,
        };
        self.stream
            .write_all(format!("{command}\n").as_bytes())
            .map_err(failed)?;
        loop {
            let line = self.line().map_err(failed)?;
            match change(&line) {
                Some(change) => self.note(change),
                None => return Ok(line),
            }
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    fn note(&mut self, change: Change) {
        self.levels.insert(change.irq, change.level);
        self.changes.push(change);
    }

    /// Sends a command that must succeed; returns what its answer says behind `OK`.
    ///
    /// # Errors
    /// [`QtestError`].
    pub fn ask(&mut self, command: &str) -> Result<String, QtestError> {
        let answer = self.raw(command)?;
        match answer.strip_prefix("OK") {
            Some(rest) => Ok(rest.trim_start().to_owned()),
            None => Err(QtestError::Refused {
                command: command.to_owned(),
                answer,
            }),
        }
    }

    /// The same for a command that is answered with a number.
    ///
    /// # Errors
    /// [`QtestError`].
    pub fn number(&mut self, command: &str) -> Result<u64, QtestError> {
        let answer = self.ask(command)?;
        let number = match answer.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => answer.parse(),
        };
        number.map_err(|_| QtestError::Refused {
            command: command.to_owned(),
            answer,
        })
    }

    accesses! {
        in8 out8 u8, "inb" "outb" "byte from a port, or to one";
        in16 out16 u16, "inw" "outw" "word from a port, or to one";
        in32 out32 u32, "inl" "outl" "doubleword from a port, or to one";
        read8 write8 u8, "readb" "writeb" "byte of memory or of a register there";
        read16 write16 u16, "readw" "writew" "word of memory or of a register there";
        read32 write32 u32, "readl" "writel" "doubleword of memory or of a register there";
        read64 write64 u64, "readq" "writeq" "quadword of memory or of a register there";
    }

    /// The answer to a read of a certain width.
    fn narrow<T: TryFrom<u64>>(&mut self, command: &str) -> Result<T, QtestError> {
        let number = self.number(command)?;
        T::try_from(number).map_err(|_| QtestError::Refused {
            command: command.to_owned(),
            answer: format!("{number:#x} is too wide"),
        })
    }

    /// Reads memory.
    ///
    /// # Errors
    /// [`QtestError`].
    pub fn read(&mut self, at: u64, length: usize) -> Result<Vec<u8>, QtestError> {
        let command = format!("read {at:#x} {length:#x}");
        let answer = self.ask(&command)?;
        let digits = answer.trim_start_matches("0x").as_bytes();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let bytes: Option<Vec<_>> = digits.chunks(2).map(byte).collect();
        bytes.ok_or(QtestError::Refused { command, answer })
    }

    /// Writes memory.
    ///
    /// # Errors
    /// [`QtestError`].
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), QtestError> {
        let mut command = format!("write {at:#x} {:#x} 0x", bytes.len());
        for byte in bytes {
            // Writing to a string does not fail.
            let _ = write!(command, "{byte:02x}");
        }
        self.ask(&command).map(drop)
    }

    /// Has interrupts told from now on.
    ///
    /// # Errors
    /// [`QtestError`].
    pub fn intercept_interrupts(&mut self) -> Result<(), QtestError> {
        self.ask("irq_intercept_in ioapic").map(drop)
    }

    /// The level of an interrupt, as far as it was told: by all that had happened when this was asked.
    ///
    /// # Errors
    /// [`QtestError`].
    pub fn interrupt(&mut self, irq: u32) -> Result<bool, QtestError> {
        // Any command with an answer brings what was told before.
        self.ask("endianness")?;
        Ok(self.levels.get(&irq).copied().unwrap_or(false))
    }

    /// The level changes told since this was last called.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Waits for a level change without asking for anything.
    ///
    /// # Errors
    /// [`QtestError::Io`].
    pub fn wait_change(&mut self) -> Result<Change, QtestError> {
        if !self.changes.is_empty() {
            return Ok(self.changes.remove(0));
        }
        let failed = |error| QtestError::Io {
            command: "(an interrupt)".to_owned(),
            error,
        };
        let line = self.line().map_err(failed)?;
        let Some(change) = change(&line) else {
            return Err(QtestError::Refused {
                command: "(an interrupt)".to_owned(),
                answer: line,
            });
        };
        self.levels.insert(change.irq, change.level);
        Ok(change)
    }

    /// Moves the guest's clock by so many nanoseconds; returns what it shows then.
    ///
    /// # Errors
    /// [`QtestError`].
    pub fn clock_step(&mut self, nanos: u64) -> Result<u64, QtestError> {
        self.number(&format!("clock_step {nanos}"))
    }
}

/// The level change that a line tells of; none: it tells of none.
fn change(line: &str) -> Option<Change> {
    let (verb, irq) = line.strip_prefix("IRQ ")?.split_once(' ')?;
    Some(Change {
        irq: irq.parse().ok()?,
        level: verb == "raise",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts_between_answers_are_kept() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let other_side = std::thread::spawn(move || {
            let mut commands = BufReader::new(theirs.try_clone().unwrap());
            let mut command = String::new();
            for answer in [
                "IRQ raise 14\nOK 0x0050\n",
                "FAIL no\n",
                "IRQ lower 14\nOK 0x0a0b\n",
            ] {
                command.clear();
                commands.read_line(&mut command).unwrap();
                (&theirs).write_all(answer.as_bytes()).unwrap();
            }
        });
        let mut qtest = Qtest::new(ours).unwrap();
        assert_eq!(qtest.in8(0x1f7).unwrap(), 0x50);
        let raised = Change {
            irq: 14,
            level: true,
        };
        assert_eq!(qtest.take_changes(), [raised]);
        assert!(
            qtest
                .ask("bogus")
                .unwrap_err()
                .to_string()
                .contains("FAIL no")
        );
        assert_eq!(qtest.read(0, 2).unwrap(), [0x0a, 0x0b]);
        assert!(!qtest.take_changes()[0].level);
        other_side.join().unwrap();
        qtest.ask("x").unwrap_err();
    }
}
