//! The gate on real threads: many devices, some sections, random delays and cancellations.
//!
//! Checked: nobody is inside a section; no request is lost or runs twice; one device's requests
//! start in the order in which they were submitted; at the end nothing is left over.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::thread;

use super::*;

const DEVICES: u64 = 4;
const CLOSERS: u64 = 2;
const REQUESTS: usize = 4000;

/// Marsaglia's xorshift: enough to shuffle with, and its seed is printed on failure.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn dawdle(&mut self) {
        for _ in 0..self.below(4) {
            thread::yield_now();
        }
    }
}

/// Wakes a thread that waits in [`Parker::wait`].
struct Parker {
    thread: thread::Thread,
    woken: AtomicBool,
}

impl Parker {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            thread: thread::current(),
            woken: AtomicBool::new(true),
        })
    }

    fn wait(&self) {
        while !self.woken.swap(false, Ordering::SeqCst) {
            thread::park();
        }
    }
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

fn block_on<F: Future + Unpin>(mut future: F) -> F::Output {
    let parker = Parker::new();
    let waker = Waker::from(Arc::clone(&parker));
    loop {
        parker.wait();
        if let Poll::Ready(value) = Pin::new(&mut future).poll(&mut Context::from_waker(&waker)) {
            return value;
        }
    }
}

struct World {
    gate: Gate,
    /// Requests that are running.
    inside: AtomicUsize,
    /// Sections that are drained.
    exclusive: AtomicUsize,
    ran: AtomicUsize,
    cancelled: AtomicUsize,
    devices_left: AtomicUsize,
}

impl World {
    fn run_request(&self, random: &mut Random) {
        self.inside.fetch_add(1, Ordering::SeqCst);
        assert_eq!(self.exclusive.load(Ordering::SeqCst), 0, "inside a section");
        random.dawdle();
        assert_eq!(self.exclusive.load(Ordering::SeqCst), 0, "inside a section");
        self.ran.fetch_add(1, Ordering::SeqCst);
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    /// Keeps up to eight requests going, submitted in order; drops some of them unstarted.
    fn device(&self, mut random: Random) {
        let parker = Parker::new();
        let waker = Waker::from(Arc::clone(&parker));
        let mut context = Context::from_waker(&waker);
        let mut queue: VecDeque<Enter> = VecDeque::new();
        let mut submitted = 0;
        loop {
            while submitted < REQUESTS && queue.len() < 8 && random.below(3) > 0 {
                let mut request = self.gate.enter();
                submitted += 1;
                match Pin::new(&mut request).poll(&mut context) {
                    Poll::Ready(token) => {
                        assert!(queue.is_empty(), "overtook {} others", queue.len());
                        self.run_request(&mut random);
                        drop(token.unwrap());
                    }
                    Poll::Pending => queue.push_back(request),
                }
            }
            if queue.is_empty() && submitted == REQUESTS {
                break;
            }
            if !queue.is_empty() && random.below(16) == 0 {
                let victim = usize::try_from(random.below(queue.len() as u64)).unwrap();
                drop(queue.remove(victim));
                self.cancelled.fetch_add(1, Ordering::SeqCst);
            } else if let Some(head) = queue.front_mut() {
                match Pin::new(head).poll(&mut context) {
                    Poll::Ready(token) => {
                        drop(queue.pop_front());
                        self.run_request(&mut random);
                        drop(token.unwrap());
                    }
                    Poll::Pending => parker.wait(),
                }
                // The one behind the head must never be ahead of it.
                let mut behind = queue.iter_mut().skip(1);
                if let Some(behind) = behind.next() {
                    assert!(Pin::new(behind).poll(&mut context).is_pending());
                }
            }
        }
        self.devices_left.fetch_sub(1, Ordering::SeqCst);
    }

    fn closer(&self, mut random: Random) {
        while self.devices_left.load(Ordering::SeqCst) > 0 {
            let section = self.gate.close("stress");
            block_on(self.gate.wait_idle());
            self.exclusive.fetch_add(1, Ordering::SeqCst);
            for _ in 0..=random.below(4) {
                assert_eq!(self.inside.load(Ordering::SeqCst), 0, "not drained");
                thread::yield_now();
            }
            self.exclusive.fetch_sub(1, Ordering::SeqCst);
            drop(section);
            random.dawdle();
        }
    }

    /// A source with its own queue beside them.
    fn ring(&self, mut random: Random) {
        for _ in 0..REQUESTS {
            let token = loop {
                match self.gate.try_enter() {
                    Some(token) => break token,
                    None => block_on(self.gate.opened()).unwrap(),
                }
            };
            self.run_request(&mut random);
            drop(token);
        }
        self.devices_left.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn threads_never_meet_inside_a_section() {
    let seed = std::process::id();
    println!("seed {seed}");
    let random = |stream: u64| Random((u64::from(seed) << 16 | stream) + 1);
    let world = World {
        gate: gate(),
        inside: AtomicUsize::new(0),
        exclusive: AtomicUsize::new(0),
        ran: AtomicUsize::new(0),
        cancelled: AtomicUsize::new(0),
        devices_left: AtomicUsize::new(usize::try_from(DEVICES).unwrap() + 1),
    };
    thread::scope(|scope| {
        for stream in 0..DEVICES {
            let world = &world;
            scope.spawn(move || world.device(random(stream)));
        }
        for stream in DEVICES..DEVICES + CLOSERS {
            let world = &world;
            scope.spawn(move || world.closer(random(stream)));
        }
        scope.spawn(|| world.ring(random(99)));
    });
    let (ran, cancelled) = (world.ran.into_inner(), world.cancelled.into_inner());
    let expected = (usize::try_from(DEVICES).unwrap() + 1) * REQUESTS;
    assert_eq!(ran + cancelled, expected, "{cancelled} cancelled");
    let stats = world.gate.stats();
    assert_eq!((stats.in_flight, stats.parked_now), (0, 0));
    assert_eq!(stats.abandoned, cancelled as u64);
    assert!(stats.parked > 0 && stats.sections > 0);
}
