//! A monitor for people: lines of text in, text out (`--mon mode=readline`).
//!
//! It has no line editing of its own: a terminal or `rlwrap` has. Neither does it show what is typed, unless it comes by
//! a pipe on standard input: what is written then reads as in QEMU. What it does is
//! [`human-monitor-command`](super::commands)'s.

use std::collections::VecDeque;
use std::sync::Arc;

use super::LINE_END;
use super::commands::{self, Monitor, Show};
use super::outbox::Outbox;
use super::session::PROTOCOL_VERSION;

/// What asks for a command, as in QEMU.
const PROMPT: &str = "(qemu) ";
/// The longest line (QEMU: 4095 characters); the rest of a longer one is dropped.
const LONGEST_LINE: usize = 4095;

/// One conversation.
pub(super) struct Console {
    monitor: Arc<Monitor>,
    outbox: Arc<Outbox>,
    lines: VecDeque<String>,
    /// Each line is shown after its prompt.
    echo: bool,
    /// The beginning of a line.
    pending: Vec<u8>,
}

impl Console {
    /// Begins a conversation with a greeting and a prompt; with `echo` each line is shown.
    pub(super) fn new(monitor: Arc<Monitor>, outbox: Arc<Outbox>, echo: bool) -> Self {
        let version = PROTOCOL_VERSION;
        let greeting =
            format!("QEMU {version} monitor - type 'help' for more information{LINE_END}{PROMPT}");
        outbox.reply(greeting.into());
        Self {
            monitor,
            outbox,
            lines: VecDeque::new(),
            echo,
            pending: Vec::new(),
        }
    }

    /// Takes what was typed.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\r' => {}
                b'\n' => {
                    let line = String::from_utf8_lossy(&self.pending).into_owned();
                    self.lines.push_back(line);
                    self.pending.clear();
                }
                byte if self.pending.len() < LONGEST_LINE => self.pending.push(*byte),
                _ => {}
            }
        }
    }

    /// Executes the next line; false if there is none.
    pub(super) async fn step(&mut self) -> bool {
        let Some(line) = self.lines.pop_front() else {
            return false;
        };
        if self.echo {
            self.outbox.reply(format!("{line}{LINE_END}").into());
        }
        let mut text = commands::human_line(&self.monitor, &line, Show::Answer).await;
        // There is nothing more to ask for.
        if !matches!(line.trim(), "quit" | "q") {
            text.push_str(PROMPT);
        }
        if !text.is_empty() {
            self.outbox.reply(text.into());
        }
        true
    }
}
