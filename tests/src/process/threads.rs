//! What the threads of a process are doing, for the report of one that does not get on: whether a
//! guest's processor runs in circles, or everybody sleeps and somebody has missed a wake-up.

use std::{collections::BTreeMap, fmt::Write as _, fs, thread::sleep, time::Duration};

/// Stands in a [`report`] if a thread spends its time in the guest: the guest's own code goes round.
/// A guest that waits for something that the process owes it would sleep.
pub const CIRCLES: &str = "runs in circles in the guest";

/// How long a [`report`] watches.
const WATCHED: Duration = Duration::from_secs(2);

/// The share of that time, in percent, from which on a thread runs its guest in circles. An idle guest
/// takes one or two; one that goes round has to share the processors with other guests' threads, and
/// was seen with 51.
const CIRCLES_PERCENT: u64 = 25;

/// Where fields lie in `/proc/PID/task/TID/stat` behind the parenthesis that ends the name
/// (proc_pid_stat(5), whose fields count from 1 and begin with the process's number and name).
mod field {
    pub const STATE: usize = 3;
    pub const USER_TICKS: usize = 14;
    pub const SYSTEM_TICKS: usize = 15;
    pub const GUEST_TICKS: usize = 43;
    /// The first one behind the name.
    pub const FIRST: usize = 3;
}

/// One thread at one moment.
#[derive(Debug, PartialEq, Eq)]
struct Thread {
    name: String,
    /// One letter: R for running, S for sleeping, D for waiting for a disk.
    state: String,
    /// Clock ticks of the system spent in the process, in its kernel, and in its guest (which are
    /// in the first number too).
    user: u64,
    system: u64,
    guest: u64,
}

/// Reads the words of a `stat` file. None if it is not one.
fn parse(stat: &str) -> Option<Thread> {
    let (front, rest) = stat.rsplit_once(')')?;
    let (_number, name) = front.split_once('(')?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    let word = |number: usize| words.get(number - field::FIRST).copied();
    let ticks = |number| word(number)?.parse().ok();
    Some(Thread {
        name: name.to_owned(),
        state: word(field::STATE)?.to_owned(),
        user: ticks(field::USER_TICKS)?,
        system: ticks(field::SYSTEM_TICKS)?,
        guest: ticks(field::GUEST_TICKS)?,
    })
}

/// The threads of process `pid` by their numbers, the first one first. What can't be read is left out: the process may
/// be ending.
fn threads(pid: u32) -> BTreeMap<u32, Thread> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let threads = tasks.flatten().filter_map(|task| {
        let number = task.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(task.path().join("stat")).ok()?;
        Some((number, parse(&stat)?))
    });
    threads.collect()
}

/// A line for each thread of process `pid`, with a title, and [`CIRCLES`] for those that do that.
/// Takes two seconds.
pub fn report(pid: u32) -> String {
    let before = threads(pid);
    sleep(WATCHED);
    let after = threads(pid);
    let ticks = rustix::param::clock_ticks_per_second() * WATCHED.as_secs();
    let mut report =
        "--- threads: name, state, ticks (all, kernel, guest), % in guest, sleeps in\n".to_owned();
    for (number, thread) in after {
        let sleeps = fs::read_to_string(format!("/proc/{pid}/task/{number}/wchan"));
        let percent = before.get(&number).map_or(0, |before| {
            thread.guest.saturating_sub(before.guest) * 100 / ticks.max(1)
        });
        let Thread {
            name,
            state,
            user,
            system,
            guest,
        } = &thread;
        let sleeps = sleeps.unwrap_or_default();
        let _infallible = writeln!(
            report,
            "{name:<16} {state} {user:>8} {system:>8} {guest:>8} {percent:>3}% {sleeps}"
        );
        if percent >= CIRCLES_PERCENT {
            let _infallible = writeln!(report, "{name} {CIRCLES}");
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::{Thread, parse, report};

    #[test]
    fn a_name_may_hold_anything() {
        let mut words = vec!["0"; 50];
        for (number, word) in [(3, "R"), (14, "7"), (15, "8"), (43, "6")] {
            words[number - 3] = word;
        }
        let thread = parse(&format!("12 (vcpu) (0) {}", words.join(" "))).unwrap();
        let wanted = Thread {
            name: "vcpu) (0".to_owned(),
            state: "R".to_owned(),
            user: 7,
            system: 8,
            guest: 6,
        };
        assert_eq!(thread, wanted);
        assert_eq!(parse("12 (short) R 1"), None);
    }

    #[test]
    fn this_process_has_this_thread() {
        let comm = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
        let report = report(std::process::id());
        assert!(report.contains(comm.trim()), "{report}");
        assert!(!report.contains(super::CIRCLES), "{report}");
        assert!(super::report(0).lines().count() == 1);
    }
}
