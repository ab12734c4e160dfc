//! All vCPUs of a machine and their threads: start, stop, reset, end.
//!
//! ```text
//!            park()                 reset()                    run()
//!  running ----------> stopping --> parked --> parked, reset ----------> running
//!                                      \---- end() ----> ended
//! ```
//!
//! [`Vcpus`] is the handle of the main thread (and of devices that want the machine stopped). A vCPU
//! thread looks at the wanted state between two exits, and parks on a condition variable when it
//! shall not run. Whoever wants something changes the wanted state first, sets the attention flag,
//! and kicks then; a vCPU forgets kicks first and looks at the flag then. So no wish is overlooked.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use parking_lot::{Condvar, Mutex};

use super::cpuid::Model;
use super::kick::{self, Kickable};
use super::posted::KvmPostedWrites;
use super::vcpu::Vcpu;
use super::{Buses, KvmError, KvmVm, Refused, VcpuFailure};
use crate::boot::Entry;

/// Hears of vCPUs that cannot go on. Called on the vCPU's thread, which then parks.
pub type FailureSink = Arc<dyn Fn(VcpuFailure) + Send + Sync>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Run,
    Park,
    End,
}

struct State {
    wanted: Wanted,
    /// By vCPU: its thread, as the host numbers it; 0 until that has begun.
    threads: Vec<u32>,
    /// vCPUs whose threads have not ended.
    alive: usize,
    parked: usize,
    /// Number of resets asked for, and where the last one enters the kernel.
    resets: usize,
    entry: Option<Entry>,
    /// vCPUs that have done the last reset.
    reset_done: usize,
    reset_failure: Option<KvmError>,
}

struct Shared {
    state: Mutex<State>,
    /// Set while something but running is wanted.
    attention: AtomicBool,
    /// For vCPUs: the wanted state changed.
    wish: Condvar,
    /// For the controller: a vCPU did what was wanted.
    done: Condvar,
}

/// The controller's handle; clones refer to the same vCPUs. Any thread but the vCPUs' own may wait
/// on it.
#[derive(Clone)]
pub struct Vcpus {
    shared: Arc<Shared>,
}

/// The threads; ended and joined when dropped.
pub struct VcpuSet {
    handle: Vcpus,
    threads: Vec<JoinHandle<()>>,
}

impl Vcpus {
    /// A handle of vCPUs that are to be started.
    fn new(count: usize) -> Self {
        let state = State {
            wanted: Wanted::Park,
            threads: vec![0; count],
            alive: count,
            parked: 0,
            resets: 0,
            entry: None,
            reset_done: 0,
            reset_failure: None,
        };
        let shared = Shared {
            state: Mutex::new(state),
            attention: AtomicBool::new(true),
            wish: Condvar::new(),
            done: Condvar::new(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The threads that run, by vCPU, as the host numbers them.
    #[must_use]
    pub fn threads(&self) -> Vec<u32> {
        self.shared.state.lock().threads.clone()
    }

    /// Asks every vCPU to park when it comes by; does not wait and does not kick. For devices: the
    /// calling vCPU will not run guest code again before [`VcpuSet::run`].
    pub fn request_park(&self) {
        let mut state = self.shared.state.lock();
        if state.wanted == Wanted::Run {
            state.wanted = Wanted::Park;
        }
        self.shared.attention.store(true, Ordering::SeqCst);
    }

    fn set(&self, wanted: Wanted) {
        let mut state = self.shared.state.lock();
        state.wanted = wanted;
        self.shared
            .attention
            .store(wanted != Wanted::Run, Ordering::SeqCst);
        self.shared.wish.notify_all();
    }
}

impl VcpuSet {
    /// Makes `count` vCPUs and their threads, `vcpu0` and so on. They are parked, and not yet fit
    /// to run: [`VcpuSet::reset`] first.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn start(
        vm: &KvmVm,
        count: u8,
        buses: &Buses,
        posted: &Arc<KvmPostedWrites>,
        failure: &FailureSink,
    ) -> Result<Self, KvmError> {
        let limit = vm.kvm().get_max_vcpus();
        if usize::from(count) > limit {
            return Err(KvmError::TooManyVcpus {
                asked: count.into(),
                limit,
            });
        }
        kick::install().map_err(|source| KvmError::Thread { vcpu: 0, source })?;
        let model = Model::new(vm, count)?;
        let mut vcpus = Vec::new();
        for number in 0..count {
            let fd = vm.fd().create_vcpu(number.into()).refused("make a vCPU")?;
            if number == 0 {
                posted.begin(&fd);
            }
            let (buses, posted) = (buses.clone(), Arc::clone(posted));
            vcpus.push(Vcpu::new(number, fd, &model.of(number), buses, posted)?);
        }
        let handle = Vcpus::new(vcpus.len());
        let mut set = Self {
            handle: handle.clone(),
            threads: Vec::new(),
        };
        for vcpu in vcpus {
            let number = vcpu.number();
            let shared = Arc::clone(&handle.shared);
            let failure = Arc::clone(failure);
            let thread = Builder::new()
                .name(format!("vcpu{number}"))
                .spawn(move || vcpu_thread(vcpu, &shared, &failure));
            match thread {
                Ok(thread) => set.threads.push(thread),
                Err(source) => {
                    // Those that never started count as gone.
                    set.handle.shared.state.lock().alive = set.threads.len();
                    return Err(KvmError::Thread {
                        vcpu: number,
                        source,
                    });
                }
            }
        }
        Ok(set)
    }

    /// The handle for devices.
    #[must_use]
    pub fn handle(&self) -> Vcpus {
        self.handle.clone()
    }

    /// Stops all vCPUs, and returns when none runs guest code or device code. That takes as long
    /// as the longest access to a device, which never waits for I/O.
    pub fn park(&self) {
        self.handle.set(Wanted::Park);
        self.kick();
        let shared = &self.handle.shared;
        let mut state = shared.state.lock();
        while state.parked < state.alive {
            shared.done.wait(&mut state);
        }
    }

    /// Lets the vCPUs run.
    pub fn run(&self) {
        self.handle.set(Wanted::Run);
    }

    /// Puts all vCPUs, which are parked, to where `entry` wants them.
    ///
    /// # Errors
    /// What KVM said to the first that failed.
    pub fn reset(&self, entry: Entry) -> Result<(), KvmError> {
        let shared = &self.handle.shared;
        let mut state = shared.state.lock();
        state.resets += 1;
        state.reset_done = 0;
        state.entry = Some(entry);
        shared.wish.notify_all();
        while state.reset_done < state.alive {
            shared.done.wait(&mut state);
        }
        state.reset_failure.take().map_or(Ok(()), Err)
    }

    fn kick(&self) {
        for thread in &self.threads {
            kick::kick(thread);
        }
    }
}

impl Drop for VcpuSet {
    fn drop(&mut self) {
        self.handle.set(Wanted::End);
        self.kick();
        for thread in self.threads.drain(..) {
            // A panic was reported by the thread itself.
            let _ = thread.join();
        }
    }
}

/// The life of a vCPU's thread.
fn vcpu_thread(mut vcpu: Vcpu, shared: &Shared, failure: &FailureSink) {
    let number = vcpu.number();
    if let Some(thread) = shared.state.lock().threads.get_mut(usize::from(number)) {
        *thread = rustix::thread::gettid()
            .as_raw_nonzero()
            .get()
            .unsigned_abs();
    }
    let lived = catch_unwind(AssertUnwindSafe(|| run(&mut vcpu, shared, failure)));
    {
        let mut state = shared.state.lock();
        state.alive -= 1;
        shared.done.notify_all();
    }
    if lived.is_err() {
        failure(VcpuFailure::Defect { vcpu: number });
    }
}

fn run(vcpu: &mut Vcpu, shared: &Shared, failure: &FailureSink) {
    let run_structure = vcpu.run_structure();
    // SAFETY: the structure is mapped as long as `vcpu` lives, which outlives `kick`; this thread
    // owns the vCPU.
    #[expect(unsafe_code, reason = "the flag is shared with the kernel")]
    let kick = unsafe { Kickable::new(run_structure) };
    let mut resets = 0;
    loop {
        kick.clear();
        if shared.attention.load(Ordering::SeqCst) && !rest(vcpu, shared, &kick, &mut resets) {
            return;
        }
        if let Err(reason) = vcpu.run_once() {
            // Park before anybody can ask for something else: a broken vCPU must not spin.
            let mut state = shared.state.lock();
            if state.wanted == Wanted::Run {
                state.wanted = Wanted::Park;
            }
            shared.attention.store(true, Ordering::SeqCst);
            drop(state);
            failure(reason);
        }
    }
}

/// Does what is wanted until that is running again (true) or ending (false).
fn rest(vcpu: &mut Vcpu, shared: &Shared, kick: &Kickable, resets: &mut usize) -> bool {
    let mut state = shared.state.lock();
    state.parked += 1;
    shared.done.notify_all();
    let run_again = loop {
        if *resets != state.resets {
            *resets = state.resets;
            if let Some(entry) = state.entry {
                drop(state);
                let outcome = vcpu.reset(entry, kick);
                state = shared.state.lock();
                if let Err(error) = outcome {
                    state.reset_failure.get_or_insert(error);
                }
                state.reset_done += 1;
                shared.done.notify_all();
            }
            continue;
        }
        match state.wanted {
            Wanted::Run => break true,
            Wanted::End => break false,
            Wanted::Park => shared.wish.wait(&mut state),
        }
    };
    state.parked -= 1;
    drop(state);
    vcpu.tell_of_stop();
    run_again
}
