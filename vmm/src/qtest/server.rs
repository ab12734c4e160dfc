//! The socket: lines in, lines out.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use parking_lot::Mutex;
use sluice_aio::current;

use super::{Target, command};
use crate::machine::config::QtestConfig;
use crate::qmp::{self, SocketError};

/// The longest line: the data of the largest write, in hexadecimal, fit.
const LINE_LIMIT: usize = 1 << 30;
const READ_SIZE: usize = 64 * 1024;

/// Starts to serve `target` as `config` says. Call it in a task of the main context, before the
/// machine runs: a test that listens is connected to when this returns.
///
/// # Errors
/// [`SocketError`], which names the path.
pub fn serve(config: &QtestConfig, target: Target) -> Result<(), SocketError> {
    if !config.server {
        let stream = qmp::connect(&config.path)?;
        current::spawn_local(async move { session(stream, &target).await }).detach();
        return Ok(());
    }
    let (listener, file) = qmp::listen(&config.path)?;
    current::spawn_local(async move {
        // Removed when the loop ends.
        let _file = file;
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    if let Err(error) = stream.set_nonblocking(true) {
                        tracing::warn!(%error, "a qtest client cannot be served");
                        continue;
                    }
                    session(stream, &target).await;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if let Err(error) = current::readable(&listener).await {
                        tracing::warn!(%error, "no qtest clients from here on");
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(%error, "no qtest clients from here on");
                    return;
                }
            }
        }
    })
    .detach();
    Ok(())
}

/// Serves one client until it goes.
async fn session(stream: UnixStream, target: &Target) {
    let outbound = Arc::new(Mutex::new(Vec::new()));
    let lines = Arc::clone(&outbound);
    target.interrupts.listen(move |gsi, level| {
        let verb = if level { "raise" } else { "lower" };
        lines
            .lock()
            .extend(format!("IRQ {verb} {gsi}\n").into_bytes());
    });
    if let Err(error) = converse(&stream, target, &outbound).await {
        tracing::debug!(%error, "the qtest client is gone");
    }
    target.interrupts.intercept(false);
}

async fn converse(
    mut stream: &UnixStream,
    target: &Target,
    outbound: &Mutex<Vec<u8>>,
) -> io::Result<()> {
    let mut pending = Vec::new();
    let mut bytes = vec![0; READ_SIZE];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(length) => pending.extend(&bytes[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                current::readable(&stream).await?;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let answer = command::parse(&String::from_utf8_lossy(&line))
                .and_then(|command| target.execute(command));
            let line = match answer {
                Ok(result) if result.is_empty() => "OK\n".to_owned(),
                Ok(result) => format!("OK {result}\n"),
                Err(reason) => format!("FAIL {reason}\n"),
            };
            // What the command made an interrupt line do stands there already.
            outbound.lock().extend(line.into_bytes());
            let answers = std::mem::take(&mut *outbound.lock());
            send(stream, &answers).await?;
        }
        if pending.len() > LINE_LIMIT {
            return Err(io::Error::other("a line without end"));
        }
    }
}

async fn send(mut stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                current::writable(&stream).await?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
