//! A client of the daemon's export that writes: the NBD protocol as far as that needs it.
//!
//! Source: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>, "Newstyle negotiation" and
//! "Transmission phase" with simple replies.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{BLOCK, Offsets, Span};

/// "NBDMAGIC", of the server's greeting.
const GREETING: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT", of the greeting and of each option.
const OPTION: u64 = 0x4948_4156_454f_5054;
/// Both sides speak the fixed newstyle, and send no zeroes after the export's size.
const FIXED_NEWSTYLE_NO_ZEROES: u32 = 3;
/// The option that names the export and begins the transmission.
const OPT_EXPORT_NAME: u32 = 1;
/// Begins each request.
const REQUEST: u32 = 0x2560_9513;
/// Begins each simple reply.
const SIMPLE_REPLY: u32 = 0x6744_6698;
/// The command that writes.
const CMD_WRITE: u16 = 1;
/// The command that says good-bye; it has no reply.
const CMD_DISC: u16 = 2;

/// A connection, before and after its thread has it.
struct Connection {
    stream: UnixStream,
    size: u64,
}

impl Connection {
    fn open(socket: &Path, export: &str) -> Result<Self> {
        let stream = UnixStream::connect(socket).context("can't reach the export")?;
        let mut connection = Self { stream, size: 0 };
        ensure!(connection.u64()? == GREETING, "not an NBD server");
        ensure!(connection.u64()? == OPTION, "an oldstyle NBD server");
        connection.take::<2>()?;
        let mut answer = FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes().to_vec();
        answer.extend(OPTION.to_be_bytes());
        answer.extend(OPT_EXPORT_NAME.to_be_bytes());
        answer.extend(u32::try_from(export.len())?.to_be_bytes());
        answer.extend(export.as_bytes());
        connection.stream.write_all(&answer)?;
        connection.size = connection.u64().context("no such export")?;
        connection.take::<2>()?;
        Ok(connection)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.take()?))
    }

    fn request(&mut self, command: u16, cookie: u64, offset: u64, data: &[u8]) -> Result<()> {
        let mut message = REQUEST.to_be_bytes().to_vec();
        message.extend([0; 2]);
        message.extend(command.to_be_bytes());
        message.extend(cookie.to_be_bytes());
        message.extend(offset.to_be_bytes());
        message.extend(u32::try_from(data.len())?.to_be_bytes());
        message.extend(data);
        Ok(self.stream.write_all(&message)?)
    }

    /// Waits for a reply; returns its cookie.
    fn reply(&mut self) -> Result<u64> {
        ensure!(self.u32()? == SIMPLE_REPLY, "not a simple reply");
        let error = self.u32()?;
        ensure!(error == 0, "the server answers error {error}");
        self.u64()
    }

    /// Keeps `depth` writes on their way until `over`, or until the instant `last`; returns them in the order of
    /// their ends.
    fn write(mut self, depth: usize, over: &AtomicBool, last: Instant) -> Result<Vec<Span>> {
        let data = vec![0xa5; usize::try_from(BLOCK)?];
        let mut offsets = Offsets::below(self.size);
        let mut began = vec![Instant::now(); depth];
        for cookie in 0..depth {
            self.request(CMD_WRITE, cookie as u64, offsets.next(), &data)?;
        }
        let (mut spans, mut running) = (Vec::new(), depth);
        while running > 0 {
            let cookie = self.reply()?;
            let ended = Instant::now();
            let slot = usize::try_from(cookie).ok();
            let slot = slot.and_then(|slot| began.get_mut(slot));
            let slot = slot.context("a reply to nothing")?;
            let began = std::mem::replace(slot, ended);
            spans.push(Span { began, ended });
            match over.load(Ordering::Relaxed) || ended >= last {
                true => running -= 1,
                false => self.request(CMD_WRITE, cookie, offsets.next(), &data)?,
            }
        }
        self.request(CMD_DISC, 0, 0, &[])?;
        Ok(spans)
    }
}

/// A thread that writes to an export.
pub(super) struct Client {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Span>>>,
}

impl Client {
    /// Connects, and keeps `depth` writes on their way from then on, until the instant `last` at most.
    pub(super) fn start(socket: &Path, export: &str, depth: usize, last: Instant) -> Result<Self> {
        let connection = Connection::open(socket, export)?;
        let over = Arc::<AtomicBool>::default();
        let until = Arc::clone(&over);
        let thread = std::thread::spawn(move || connection.write(depth, &until, last));
        Ok(Self { over, thread })
    }

    /// Ends it; returns what it wrote, in the order of the ends.
    pub(super) fn stop(self) -> Result<Vec<Span>> {
        self.over.store(true, Ordering::Relaxed);
        let ended = self.thread.join();
        ended.map_err(|_| anyhow!("the client panicked"))?
    }
}
