//! The gate against a model so simple that it is obviously right, on random histories.
//!
//! The model knows no wakers, so a second property is checked beside it: whoever would get on if it
//! were polled *has been woken* since it was last polled. Nobody sleeps for ever.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug)]
enum Op {
    Enter,
    TryEnter,
    PollWaiter(usize),
    DropWaiter(usize),
    DropToken(usize),
    Close,
    Open(usize),
    WatchOpened,
    WatchIdle,
    PollWatchers,
    Destroy,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => Just(Op::Enter),
        2 => Just(Op::TryEnter),
        8 => (0usize..8).prop_map(Op::PollWaiter),
        2 => (0usize..8).prop_map(Op::DropWaiter),
        4 => (0usize..8).prop_map(Op::DropToken),
        3 => Just(Op::Close),
        4 => (0usize..8).prop_map(Op::Open),
        1 => Just(Op::WatchOpened),
        1 => Just(Op::WatchIdle),
        2 => Just(Op::PollWatchers),
    ]
}

/// Most histories end with the gate's destruction, some go on after it.
fn history() -> impl Strategy<Value = Vec<Op>> {
    let ops = || prop::collection::vec(op(), 0..80);
    (ops(), prop::option::of(ops())).prop_map(|(mut history, after)| {
        if let Some(after) = after {
            history.push(Op::Destroy);
            history.extend(after);
        }
        history
    })
}

struct Pair {
    gate: Gate,
    sections: Vec<Closed>,
    tokens: Vec<Token>,
    /// In order of arrival: this *is* the model's queue.
    queue: Vec<Driven<Enter>>,
    opened: Vec<Driven<Opened>>,
    idle: Vec<Driven<WaitIdle>>,
    destroyed: bool,
    /// A section has taken the head's turn, and nobody has started since.
    passed_over: bool,
    /// It has had its turn again, which the next section leaves it.
    head_stands: bool,
}

impl Pair {
    fn is_open(&self) -> bool {
        self.sections.is_empty() && !self.destroyed
    }

    fn admits_newcomers(&self) -> bool {
        self.is_open() && self.queue.is_empty()
    }

    fn in_flight(&self) -> usize {
        let granted = if self.is_open() {
            self.queue.len()
        } else {
            usize::from(self.head_stands)
        };
        self.tokens.len() + granted
    }

    fn head_may_start(&self) -> bool {
        !self.queue.is_empty() && (self.is_open() || self.head_stands)
    }

    /// A request has left the queue; the head has started if `started`.
    fn left_queue(&mut self, index: usize, started: bool) {
        self.head_stands &= index != 0;
        self.passed_over &= !started && !self.queue.is_empty();
    }

    fn close(&mut self) {
        if self.is_open() && !self.queue.is_empty() {
            self.head_stands = self.passed_over;
            self.passed_over = true;
        }
        self.sections.push(self.gate.close("model"));
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Enter => {
                let admits = self.admits_newcomers();
                let mut waiter = Driven::new(self.gate.enter());
                match waiter.poll() {
                    Poll::Ready(Ok(token)) => {
                        assert!(admits);
                        self.tokens.push(token);
                    }
                    Poll::Ready(Err(Cancelled)) => assert!(self.destroyed),
                    Poll::Pending => {
                        assert!(!admits && !self.destroyed);
                        self.queue.push(waiter);
                    }
                }
            }
            Op::TryEnter => {
                let admits = self.admits_newcomers();
                let token = self.gate.try_enter();
                assert_eq!(token.is_some(), admits);
                self.tokens.extend(token);
            }
            Op::PollWaiter(index) if index < self.queue.len() => {
                let may_start = index == 0 && self.head_may_start();
                match self.queue[index].poll() {
                    Poll::Ready(Ok(token)) => {
                        assert!(may_start);
                        drop(self.queue.remove(index));
                        self.left_queue(index, true);
                        self.tokens.push(token);
                    }
                    Poll::Ready(Err(Cancelled)) => {
                        assert!(self.destroyed);
                        drop(self.queue.remove(index));
                    }
                    Poll::Pending => {
                        assert!(!may_start && !self.destroyed);
                        self.queue[index].wakes.0.store(0, Ordering::SeqCst);
                    }
                }
            }
            Op::DropWaiter(index) if index < self.queue.len() => {
                drop(self.queue.remove(index));
                self.left_queue(index, false);
            }
            Op::DropToken(index) if index < self.tokens.len() => {
                drop(self.tokens.swap_remove(index));
            }
            Op::Close => self.close(),
            Op::Open(index) if index < self.sections.len() => {
                drop(self.sections.swap_remove(index));
                self.head_stands &= !self.sections.is_empty();
            }
            Op::WatchOpened => self.opened.push(Driven::new(self.gate.opened())),
            Op::WatchIdle => self.idle.push(Driven::new(self.gate.wait_idle())),
            Op::PollWatchers => self.poll_watchers(),
            Op::Destroy => {
                self.gate.destroy();
                self.destroyed = true;
                self.head_stands = false;
            }
            // The history names somebody who is not there.
            Op::PollWaiter(_) | Op::DropWaiter(_) | Op::DropToken(_) | Op::Open(_) => {}
        }
    }

    fn poll_watchers(&mut self) {
        let (admits, destroyed) = (self.admits_newcomers(), self.destroyed);
        self.opened.retain_mut(|watcher| {
            watcher.wakes.0.store(0, Ordering::SeqCst);
            let poll = watcher.poll();
            let expected = if destroyed {
                Poll::Ready(Err(Cancelled))
            } else if admits {
                Poll::Ready(Ok(()))
            } else {
                Poll::Pending
            };
            assert_eq!(poll, expected);
            poll.is_pending()
        });
        let busy = self.in_flight() > 0;
        self.idle.retain_mut(|watcher| {
            watcher.wakes.0.store(0, Ordering::SeqCst);
            assert_eq!(watcher.is_pending(), busy);
            busy
        });
    }

    fn check(&self) {
        assert_eq!(self.gate.in_flight(), self.in_flight());
        assert_eq!(self.gate.parked(), self.queue.len());
        assert_eq!(self.gate.is_closed(), !self.sections.is_empty());
        if let Some(head) = self.queue.first() {
            let may_start = self.head_may_start();
            assert!(!may_start || head.wakes.count() > 0, "the head sleeps");
        }
        for waiter in &self.queue {
            assert!(
                !self.destroyed || waiter.wakes.count() > 0,
                "parked for ever"
            );
        }
    }

    /// As [`Pair::check`], for the watchers that have been polled at least once.
    fn check_watchers(&self, opened: usize, idle: usize) {
        for watcher in &self.opened[..opened.min(self.opened.len())] {
            let ready = self.admits_newcomers() || self.destroyed;
            assert!(!ready || watcher.wakes.count() > 0, "open, and nobody told");
        }
        for watcher in &self.idle[..idle.min(self.idle.len())] {
            let ready = self.in_flight() == 0;
            assert!(!ready || watcher.wakes.count() > 0, "idle, and nobody told");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_histories_agree_with_the_model(history in history()) {
        let mut pair = Pair {
            gate: gate(),
            sections: Vec::new(),
            tokens: Vec::new(),
            queue: Vec::new(),
            opened: Vec::new(),
            idle: Vec::new(),
            destroyed: false,
            passed_over: false,
            head_stands: false,
        };
        let (mut opened, mut idle) = (0, 0);
        for op in history {
            pair.apply(op);
            if matches!(op, Op::PollWatchers) {
                (opened, idle) = (pair.opened.len(), pair.idle.len());
            }
            pair.check();
            pair.check_watchers(opened, idle);
        }
    }
}
