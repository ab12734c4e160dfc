//! The conversation: lines in, lines out.
//!
//! Of the two tasks of a client one takes commands and carries them out, the other sends what is to be said:
//! answers, and word of interrupts, which come when they like. What a command does to an interrupt
//! line is told before its answer.

use std::io;
use std::sync::Arc;

use event_listener::Event;
use futures_util::future::{self, Either};
use parking_lot::Mutex;
use sluice_aio::current;

use super::command::Failure;
use super::log::Log;
use super::{QtestLog, Target, command};
use crate::chardev::{Attachment, Endpoint, Input, Output, Stream};

/// The longest line: the data of the largest write, in hexadecimal, fit.
const LINE_LIMIT: usize = 1 << 30;
const READ_SIZE: usize = 64 * 1024;

/// Starts to serve `target` on `endpoint`, one client after the other. Call it in a task of the main
/// context.
pub fn serve(endpoint: Endpoint, attachment: Attachment, log: &QtestLog, target: Target) {
    let log = Arc::new(Log::open(log));
    match endpoint {
        Endpoint::Null => {}
        Endpoint::Connected(stream) => {
            let serving = async move {
                session(stream, &target, &log, &attachment).await;
            };
            current::spawn_local(serving).detach();
        }
        Endpoint::Listening(listener) => {
            let serving = async move {
                loop {
                    match listener.accept() {
                        Ok(Some(stream)) => session(stream, &target, &log, &attachment).await,
                        Ok(None) => {
                            if let Err(error) = current::readable(&listener).await {
                                tracing::warn!(%error, "no qtest clients from here on");
                                return;
                            }
                        }
                        Err(error) => {
                            tracing::warn!(%error, "no qtest clients from here on");
                            return;
                        }
                    }
                }
            };
            current::spawn_local(serving).detach();
        }
    }
}

/// What is to be sent.
#[derive(Default)]
struct Outbound {
    bytes: Mutex<Vec<u8>>,
    /// Something was added, or taken.
    changed: Event,
}

impl Outbound {
    fn push(&self, line: &str) {
        let mut bytes = self.bytes.lock();
        bytes.extend_from_slice(line.as_bytes());
        bytes.push(b'\n');
        drop(bytes);
        self.changed.notify(usize::MAX);
    }

    /// Sends what there is and what comes, until the client is gone.
    async fn send(&self, output: &Output) -> io::Result<()> {
        loop {
            let changed = self.changed.listen();
            let bytes = std::mem::take(&mut *self.bytes.lock());
            if bytes.is_empty() {
                changed.await;
                continue;
            }
            output.write_all(&bytes).await?;
            self.changed.notify(usize::MAX);
        }
    }

    /// Waits until all has been taken to be sent.
    async fn taken(&self) {
        loop {
            let changed = self.changed.listen();
            if self.bytes.lock().is_empty() {
                return;
            }
            changed.await;
        }
    }
}

/// Serves one client until it goes.
async fn session(stream: Stream, target: &Target, log: &Arc<Log>, attachment: &Attachment) {
    let _client = attachment.client();
    let outbound = Arc::new(Outbound::default());
    log.opened();
    let (told, logged) = (Arc::clone(&outbound), Arc::clone(log));
    target.interrupts.listen(move |gsi, level| {
        let verb = if level { "raise" } else { "lower" };
        let line = format!("IRQ {verb} {gsi}");
        logged.sent(&line);
        told.push(&line);
    });
    let ended = {
        let sending = std::pin::pin!(outbound.send(&stream.output));
        let commands = std::pin::pin!(converse(&stream.input, target, &outbound, log));
        match future::select(commands, sending).await {
            Either::Left((ended, _)) | Either::Right((ended, _)) => ended,
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "the qtest client is gone");
    }
    target.interrupts.intercept(false);
    target.interrupts.listen(|_, _| {});
    log.closed();
}

async fn converse(
    input: &Input,
    target: &Target,
    outbound: &Outbound,
    log: &Log,
) -> io::Result<()> {
    let mut pending = Vec::new();
    // How much of it is known to hold no line end.
    let mut searched = 0;
    let mut bytes = vec![0; READ_SIZE];
    loop {
        let mut descriptors = Vec::new();
        match input.read(&mut bytes, &mut descriptors).await? {
            0 => return Ok(()),
            length => pending.extend(&bytes[..length]),
        }
        let mut begin = 0;
        while let Some(length) = pending[begin.max(searched)..]
            .iter()
            .position(|byte| *byte == b'\n')
        {
            let end = begin.max(searched) + length;
            let line = String::from_utf8_lossy(&pending[begin..end]).into_owned();
            begin = end + 1;
            log.received(line.trim_end_matches('\r'));
            let done = command::parse(&line).and_then(|command| target.execute(command));
            let answer = match done {
                Ok(result) if result.is_empty() => "OK".to_owned(),
                Ok(result) => format!("OK {result}"),
                Err(Failure::Failed(reason)) => format!("FAIL {reason}"),
                Err(Failure::Invalid(reason)) => format!("ERR {reason}"),
            };
            // What the command made an interrupt line do stands there already.
            log.sent(&answer);
            outbound.push(&answer);
            outbound.taken().await;
        }
        pending.drain(..begin);
        searched = pending.len();
        if pending.len() > LINE_LIMIT {
            return Err(io::Error::other("a line without end"));
        }
    }
}
