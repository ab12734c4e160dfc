//! [`Backend`]: what a device or an export holds of the block graph.
//!
//! A request *enters* first, which is where it is postponed while its disk is drained, and then
//! does its operations with the token it got; a compound request (a TRIM of many ranges) enters
//! once. Only after entering does it look at the graph, because the root may have been swapped
//! while it waited.
//!
//! A device's requests go through [`Request`], which knows what to do about errors. The operations
//! of [`Backend`] itself are for those who want to know of an error whatever the device's policy
//! is.

mod device;
mod halted;
mod medium;
mod policy;
mod reading;
mod request;
mod size;
mod stats;
#[cfg(test)]
mod tests;
mod throttle;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use sluice_aio::gate::{Enter, Opened};
use sluice_aio::{AioContext, Clock, Gate, IoBuffer, Token};

use crate::driver::RequestFlags;
use crate::error::{BlockError, Result};
use crate::event::{EventSink, IoOperation};
use crate::home::Home;
use crate::job::IoStatus;
use crate::node::Node;
use crate::permission::{Access, Permissions};
pub use device::DeviceName;
use halted::Halted;
use medium::Removable;
pub use medium::{RemovableDevice, Tray};
pub use policy::ErrorPolicy;
pub use request::{Request, Submitter};
pub use size::SizeWatcher;
use size::ToldSize;
pub use stats::{Account, BackendStats, Counters, Latencies};
use throttle::Throttling;
pub(crate) use throttle::Unlimited;

impl Account {
    /// Which of the two policies such a request's errors come under.
    fn direction(self) -> IoOperation {
        match self {
            Self::Read => IoOperation::Read,
            Self::Write | Self::Flush | Self::Unmap => IoOperation::Write,
        }
    }
}

/// See the [module](self). Any thread may hold it; requests run in the loop that polls them.
pub struct Backend {
    name: String,
    root: ArcSwapOption<Node>,
    gate: Gate,
    /// The gate of operators' tools, which sections close too, but no machine that stands still.
    tools: Gate,
    clock: Clock,
    /// What its device does with a medium.
    access: Access,
    removable: Mutex<Removable>,
    size: ToldSize,
    stats: BackendStats,
    throttling: Arc<Throttling>,
    /// Whether a write may end before it is durable.
    write_cache: AtomicBool,
    policy: ArcSwap<ErrorPolicy>,
    status: Mutex<IoStatus>,
    halted: Halted,
    next_sequence: AtomicU64,
    next_submitter: AtomicU64,
    events: Arc<dyn EventSink>,
    device: Mutex<Option<DeviceName>>,
    home: Mutex<Option<Home>>,
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend")
            .field("name", &self.name)
            .field("gate", &self.gate)
            .finish_non_exhaustive()
    }
}

impl Backend {
    pub(crate) fn new(
        name: &str,
        root: Option<Arc<Node>>,
        access: Access,
        clock: Clock,
        events: Arc<dyn EventSink>,
    ) -> Arc<Self> {
        let removable = match root {
            Some(_) => Removable::default(),
            None => Removable::without_device(),
        };
        Arc::new(Self {
            name: name.to_owned(),
            gate: Gate::new(name, clock.clone()),
            tools: Gate::new(format!("{name} (by hand)"), clock.clone()),
            clock,
            size: ToldSize::new(root.as_ref().map_or(0, |root| root.len())),
            root: ArcSwapOption::from(root),
            access,
            removable: Mutex::new(removable),
            stats: BackendStats::default(),
            throttling: Arc::default(),
            write_cache: AtomicBool::new(true),
            policy: ArcSwap::default(),
            status: Mutex::default(),
            halted: Halted::default(),
            next_sequence: AtomicU64::new(0),
            next_submitter: AtomicU64::new(0),
            events,
            device: Mutex::default(),
            home: Mutex::default(),
        })
    }

    /// The backend's name: the drive's id, or made up from its device.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device that holds it, if it has a name.
    #[must_use]
    pub fn device(&self) -> Option<DeviceName> {
        self.device.lock().clone()
    }

    /// Whether a command that names a device means this one's.
    #[must_use]
    pub fn is_of_device(&self, name: &str) -> bool {
        let device = self.device.lock();
        device.as_ref().is_some_and(|device| device.is(name))
    }

    /// Says which device holds it.
    pub fn set_device(&self, device: impl Into<DeviceName>) {
        *self.device.lock() = Some(device.into());
    }

    /// The loop that serves the device; none until the device has said so.
    #[must_use]
    pub fn context(&self) -> Option<AioContext> {
        self.home().map(|home| home.context().clone())
    }

    /// The same with what keeps the loop's thread, for whoever works there longer than the device is there.
    pub(crate) fn home(&self) -> Option<Home> {
        self.home.lock().clone()
    }

    /// Says which loop serves the device: jobs on this disk will run there.
    pub fn set_context(&self, context: &AioContext) {
        self.set_home(context.into());
    }

    /// The same for a loop whose thread those jobs have to keep.
    pub fn set_home(&self, home: Home) {
        let before = self.home.lock().replace(home);
        // The last reference to a thread ends it, which nobody should wait for under a lock.
        drop(before);
    }

    /// The device has gone: nobody needs its loop for this disk any more but who works there already.
    pub fn leave_home(&self) {
        let before = self.home.lock().take();
        drop(before);
    }

    /// The gate that holds the requests of this disk's device.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// All gates that requests to this disk come through: the device's, and that of operators' tools.
    #[must_use]
    pub fn gates(&self) -> [&Gate; 2] {
        [&self.gate, &self.tools]
    }

    /// The root node now; none without a medium, and after the backend was removed.
    #[must_use]
    pub fn node(&self) -> Option<Arc<Node>> {
        self.root.load_full()
    }

    pub(crate) fn set_root(&self, root: Option<Arc<Node>>) {
        self.root.store(root);
    }

    /// Size in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.node().map_or(0, |node| node.len())
    }

    /// Whether there is no medium, or one without bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether writes are refused, whatever the medium allows. It is so from the beginning.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        !self.access.used.contains(Permissions::WRITE)
    }

    /// What its device does with a medium.
    pub(crate) fn access(&self) -> Access {
        self.access
    }

    /// Whether a write may end before it is durable (write-back). It is so at first.
    #[must_use]
    pub fn write_cache(&self) -> bool {
        self.write_cache.load(Ordering::Relaxed)
    }

    /// Turns write-back on or off, from the next write on. Off, every write is durable when it
    /// ends (write-through).
    pub fn set_write_cache(&self, on: bool) {
        self.write_cache.store(on, Ordering::Relaxed);
    }

    fn write_flags(&self) -> RequestFlags {
        if self.write_cache() {
            RequestFlags::empty()
        } else {
            RequestFlags::FUA
        }
    }

    /// Says what is to be done about errors.
    pub fn set_policy(&self, policy: ErrorPolicy) {
        self.policy.store(Arc::new(policy));
    }

    fn policy(&self) -> ErrorPolicy {
        **self.policy.load()
    }

    /// Whether an error has stopped the machine; none if the policy never does that.
    #[must_use]
    pub fn io_status(&self) -> Option<IoStatus> {
        self.policy().has_status().then(|| *self.status.lock())
    }

    /// Of several errors the first counts.
    fn note_status(&self, status: IoStatus) {
        let mut present = self.status.lock();
        if *present == IoStatus::Ok {
            *present = status;
        }
    }

    /// How many requests wait for the machine to go on.
    #[must_use]
    pub fn halted(&self) -> usize {
        self.halted.len()
    }

    /// The machine stands still: no request of the device begins until [`resume`](Self::resume).
    pub fn stop(&self) {
        self.halted.stop(&self.gate);
    }

    /// The machine goes on: what an error had halted is done again, before anything newer.
    pub fn resume(&self) {
        *self.status.lock() = IoStatus::Ok;
        self.halted.resume(&self.gate);
    }

    /// Cancels what is parked, halted or held up by limits; nothing enters any more.
    pub(crate) fn destroy(&self) {
        self.gates().into_iter().for_each(Gate::destroy);
        self.throttling.close();
        // Each finds the gate destroyed.
        self.halted.resume(&self.gate);
    }

    /// What the guest has asked so far.
    #[must_use]
    pub fn stats(&self) -> &BackendStats {
        &self.stats
    }

    /// Waits for the right to have a request in flight; parks while the disk is drained.
    #[must_use = "futures do nothing unless polled"]
    pub fn enter(&self) -> Enter {
        self.gate.enter()
    }

    /// The same for an operator's tool, which works on the disk of a machine that stands still, too.
    #[must_use = "futures do nothing unless polled"]
    pub fn enter_as_tool(&self) -> Enter {
        self.tools.enter()
    }

    /// As [`enter`](Self::enter) without waiting, for a source with a queue of its own.
    #[must_use]
    pub fn try_enter(&self) -> Option<Token> {
        self.gate.try_enter()
    }

    /// Waits until it is worth to [`try_enter`](Self::try_enter) again.
    #[must_use = "futures do nothing unless polled"]
    pub fn opened(&self) -> Opened {
        self.gate.opened()
    }

    /// Enters although the disk may be drained: what a device without postponing does.
    ///
    /// Exists for the negative control only; see the feature `test-hooks`.
    #[cfg(any(test, feature = "test-hooks"))]
    #[must_use = "dropping the token ends the request"]
    pub fn enter_ignoring_sections(&self) -> Token {
        self.gate.enter_ignoring_sections()
    }

    /// Reads `buffer.len()` bytes from byte `offset`.
    ///
    /// # Errors
    /// No medium, out of range, or the medium's.
    pub async fn read(&self, token: &Token, offset: u64, buffer: IoBuffer) -> Result<()> {
        let bytes = buffer.len() as u64;
        let timer = Timer::start(self, Account::Read, bytes);
        if self.throttling.limits() {
            let turn = self.root_in_turn(token, Account::Read, bytes, || false);
            if let Err(error) = turn.await {
                return timer.ended(Err(error));
            }
        }
        timer.ended(match self.begin_read(token, offset, buffer) {
            Ok(reading) => reading.await,
            Err(error) => Err(error),
        })
    }

    /// Writes `buffer` at byte `offset`.
    ///
    /// # Errors
    /// As [`Backend::read`], and a read-only disk.
    pub async fn write(&self, token: &Token, offset: u64, buffer: IoBuffer) -> Result<()> {
        let node = self.writable_root_for(token)?;
        let timer = self.admit(Account::Write, buffer.len() as u64).await?;
        timer.ended(node.write(offset, buffer, self.write_flags()).await)
    }

    /// Makes `len` bytes from `offset` zeroes; with `unmap` they may become a hole.
    ///
    /// # Errors
    /// As [`Backend::write`].
    pub async fn write_zeroes(
        &self,
        token: &Token,
        offset: u64,
        len: u64,
        unmap: bool,
    ) -> Result<()> {
        let mut flags = self.write_flags();
        flags.set(RequestFlags::MAY_UNMAP, unmap);
        let node = self.writable_root_for(token)?;
        let timer = self.admit(Account::Write, len).await?;
        timer.ended(node.write_zeroes(offset, len, flags).await)
    }

    /// Gives up the contents of `len` bytes from `offset`.
    ///
    /// # Errors
    /// As [`Backend::write`].
    pub async fn discard(&self, token: &Token, offset: u64, len: u64) -> Result<()> {
        let node = self.writable_root_for(token)?;
        let timer = self.admit(Account::Unmap, len).await?;
        timer.ended(node.discard(offset, len).await)
    }

    /// Makes everything durable that ended before this call.
    ///
    /// # Errors
    /// No medium, or the medium's.
    pub async fn flush(&self, token: &Token) -> Result<()> {
        let node = self.root_for(token)?;
        let timer = self.admit(Account::Flush, 0).await?;
        timer.ended(node.flush().await)
    }

    /// The root for a request that changes it.
    fn writable_root_for(&self, token: &Token) -> Result<Arc<Node>> {
        let node = self.root_for(token)?;
        if self.is_read_only() {
            return Err(BlockError::ReadOnly(node.name().to_owned()));
        }
        Ok(node)
    }

    /// The root, once a request's turn has come that somebody else counts; it waits no longer than
    /// `given_up` lets it, and not at all for a medium that is not there.
    async fn root_in_turn(
        &self,
        token: &Token,
        kind: Account,
        bytes: u64,
        given_up: impl Fn() -> bool,
    ) -> Result<Arc<Node>> {
        let root = match kind {
            Account::Read | Account::Flush => self.root_for(token)?,
            Account::Write | Account::Unmap => self.writable_root_for(token)?,
        };
        self.throttling.admit(kind, bytes, given_up).await?;
        Ok(root)
    }

    fn root_for(&self, token: &Token) -> Result<Arc<Node>> {
        self.on_root(token, Arc::clone)
    }

    /// Makes a call with the root of a request that has entered.
    ///
    /// # Errors
    /// No medium.
    fn on_root<T>(&self, token: &Token, call: impl FnOnce(&Arc<Node>) -> T) -> Result<T> {
        debug_assert!(
            self.gates().into_iter().any(|gate| token.is_of(gate)),
            "a request entered another disk's gate"
        );
        match &*self.root.load() {
            Some(root) => Ok(call(root)),
            None => Err(std::io::Error::from_raw_os_error(libc::ENOMEDIUM).into()),
        }
    }

    /// Counts a request that the device has refused by itself, such as one beyond the disk's end.
    pub fn account_invalid(&self, kind: Account) {
        self.stats.invalid(kind, self.clock.now());
    }

    /// For how long no request has ended; none if there has been none.
    #[must_use]
    pub fn idle_time(&self) -> Option<Duration> {
        self.stats.idle_since(self.clock.now())
    }

    /// Waits until the disk's limits let a request go, which is timed from now on.
    ///
    /// # Errors
    /// Cancelled; it has been counted then.
    async fn admit(&self, kind: Account, bytes: u64) -> Result<Timer<'_>> {
        let timer = Timer::start(self, kind, bytes);
        match self.throttling.admit(kind, bytes, || false).await {
            Ok(()) => Ok(timer),
            Err(cancelled) => {
                timer.failed(&cancelled);
                Err(cancelled)
            }
        }
    }
}

/// A request that will be counted.
struct Timer<'a> {
    backend: &'a Backend,
    kind: Account,
    bytes: u64,
    began: Duration,
}

impl<'a> Timer<'a> {
    /// It begins now.
    fn start(backend: &'a Backend, kind: Account, bytes: u64) -> Self {
        Self {
            backend,
            kind,
            bytes,
            began: backend.clock.now_in_step(),
        }
    }

    /// Counts the request by its result, which is passed on.
    fn ended(&self, result: Result<()>) -> Result<()> {
        match &result {
            Ok(()) => self.done(),
            Err(error) => self.failed(error),
        }
        result
    }

    /// Counts the request, which has succeeded.
    fn done(&self) {
        let Self { backend, kind, .. } = *self;
        let now = backend.clock.now_in_step();
        backend.stats.done(kind, self.bytes, self.began, now);
    }

    /// Counts the request, which has failed.
    fn failed(&self, error: &BlockError) {
        let Self { backend, kind, .. } = *self;
        let now = backend.clock.now_in_step();
        backend.stats.failed(kind, error, self.began, now);
    }
}
