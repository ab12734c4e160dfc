//! Getting a vCPU's thread out of the kernel: a real-time signal, and the flag that KVM looks at
//! before it enters the guest.
//!
//! The signal alone would be lost if it came just before `KVM_RUN`; the flag alone would not
//! interrupt a guest that runs. So the handler, which runs on the vCPU's thread, sets the flag:
//! whichever comes first, the next `KVM_RUN` returns at once.
#![expect(
    unsafe_code,
    reason = "a signal handler, and a flag in memory shared with the kernel"
)]

use std::cell::Cell;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::sync::OnceLock;
use std::thread::JoinHandle;

use kvm_bindings::kvm_run;
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// The flag of this thread's vCPU; null on every other thread.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

fn signal() -> c_int {
    SIGRTMIN()
}

extern "C" fn on_kick(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    // Reading a thread-local without destructor or lazy initialisation is safe in a handler.
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: `Kickable` put the pointer there and takes it away before the mapping ends; it is
        // this thread's, so nobody else writes it meanwhile. The kernel reads it in `KVM_RUN` only.
        unsafe { flag.write_volatile(1) };
    }
}

/// Installs the handler, once per process.
///
/// # Errors
/// What the kernel says.
pub(super) fn install() -> std::io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED
        .get_or_init(|| register_signal_handler(signal(), on_kick).map_err(|error| error.errno()));
    installed.map_err(std::io::Error::from_raw_os_error)
}

/// Marks the present thread as one that runs a vCPU, as long as it lives.
pub(super) struct Kickable {
    flag: *mut u8,
}

impl Kickable {
    /// From now on a kick makes the `KVM_RUN` of the vCPU with this `run` structure return.
    ///
    /// # Safety
    /// `run` points to the vCPU's mapping, which outlives the result; this thread alone runs the
    /// vCPU.
    pub(super) unsafe fn new(run: *mut kvm_run) -> Self {
        // SAFETY: the caller promises that `run` is valid.
        let flag = unsafe { &raw mut (*run).immediate_exit };
        IMMEDIATE_EXIT.set(flag);
        Self { flag }
    }

    /// Forgets the kicks so far. The caller looks at what they may have been about *after* this.
    pub(super) fn clear(&self) {
        // SAFETY: the mapping lives, by the promise given to `new`.
        unsafe { self.flag.write_volatile(0) };
    }

    /// Kicks the present thread itself: its next `KVM_RUN` only completes what is half done.
    pub(super) fn set(&self) {
        // SAFETY: as above.
        unsafe { self.flag.write_volatile(1) };
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}

/// Makes the `KVM_RUN` of `thread` return.
pub(super) fn kick<T>(thread: &JoinHandle<T>) {
    // SAFETY: the handle has not been joined, so the thread's identity is still its own; the handler
    // is installed before any vCPU thread starts.
    let failed = unsafe { libc::pthread_kill(thread.as_pthread_t(), signal()) };
    if failed != 0 && failed != libc::ESRCH {
        tracing::error!(errno = failed, "a vCPU thread cannot be signalled");
    }
}
