//! The pure parts: names, the speed limit, the error policy, progress.

use std::time::Duration;

use proptest::prelude::*;
use rustix::io::Errno;

use crate::event::{ErrorAction, IoOperation};
use crate::job::policy::IgnoredErrors;
use crate::job::*;

const MS: Duration = Duration::from_millis(1);

#[test]
fn names_begin_with_a_letter_and_hold_letters_digits_and_three_signs() {
    for good in ["a", "Z", "job0", "a-b.c_d", "drive-virtio-disk0"] {
        assert_eq!(JobId::new(good).unwrap().as_str(), good);
    }
    for bad in [
        "", "0a", "-a", "_", "#block12", "a b", "a/b", "ä", "aä", "a\0",
    ] {
        let error = JobId::new(bad).unwrap_err();
        assert_eq!(error.to_string(), format!("Invalid job ID '{bad}'"));
    }
}

#[test]
fn the_operators_name_comes_first_then_the_backends() {
    let choose = |explicit, backend| JobId::choose(explicit, backend).map(|id| id.to_string());
    assert_eq!(choose(Some("a"), Some("b")), Ok("a".to_owned()));
    assert_eq!(choose(None, Some("b")), Ok("b".to_owned()));
    for none in [None, Some("")] {
        let error = choose(None, none).unwrap_err();
        assert_eq!(error, CreateError::IdRequired);
        assert_eq!(
            error.to_string(),
            "Invalid job ID ''; an explicit 'job-id' is required here"
        );
    }
    assert_eq!(
        choose(Some(""), Some("b")),
        Err(CreateError::InvalidId { id: String::new() })
    );
}

#[test]
fn a_transfer_passes_and_delays_what_follows() {
    let mut rate = RateLimit::new(1000, Duration::ZERO);
    assert_eq!(rate.delay(Duration::ZERO), Duration::ZERO);
    rate.charge(350, Duration::ZERO);
    assert_eq!(rate.delay(Duration::ZERO), 350 * MS);
    assert_eq!(rate.delay(200 * MS), 150 * MS);
    assert_eq!(rate.delay(350 * MS), Duration::ZERO);
    // What is not paid yet adds up.
    rate.charge(50, 340 * MS);
    assert_eq!(rate.delay(340 * MS), 60 * MS);
}

#[test]
fn what_comes_a_little_late_is_not_late_for_ever() {
    let mut rate = RateLimit::new(1000, Duration::ZERO);
    rate.charge(100, Duration::ZERO);
    rate.charge(100, 103 * MS);
    assert_eq!(rate.delay(103 * MS), 97 * MS);
    // But a limit that was not used is not saved up.
    rate.charge(100, 5000 * MS);
    assert_eq!(rate.delay(5000 * MS), 90 * MS);
}

#[test]
fn who_does_not_use_the_limit_up_is_behind() {
    let mut rate = RateLimit::new(1000, Duration::ZERO);
    rate.charge(100, Duration::ZERO);
    assert_eq!(rate.until_behind(Duration::ZERO), 105 * MS);
    assert_eq!(rate.until_behind(104 * MS), MS);
    assert_eq!(rate.until_behind(105 * MS), Duration::ZERO);
    rate.charge(6, 105 * MS);
    assert_eq!(rate.until_behind(105 * MS), 6 * MS);
    // What is credited is used up in the end.
    rate.charge(6, 5000 * MS);
    assert_eq!(rate.until_behind(5000 * MS), MS);
    // Nobody is behind no limit.
    rate.set_speed(0, 5000 * MS);
    assert_eq!(rate.until_behind(9000 * MS), Duration::MAX);
}

#[test]
fn without_a_limit_nothing_waits_and_a_new_limit_begins_without_debt() {
    let mut rate = RateLimit::new(0, Duration::ZERO);
    rate.charge(u64::MAX, Duration::ZERO);
    assert_eq!(rate.delay(Duration::ZERO), Duration::ZERO);
    rate.set_speed(1, Duration::ZERO);
    assert_eq!(rate.delay(Duration::ZERO), Duration::ZERO);
    rate.charge(3, Duration::ZERO);
    assert_eq!(rate.delay(Duration::ZERO), 3000 * MS);
    rate.charge(u64::MAX, Duration::ZERO);
    assert!(rate.delay(Duration::ZERO) > Duration::from_secs(1 << 20));
    rate.set_speed(0, Duration::ZERO);
    assert_eq!(rate.delay(Duration::ZERO), Duration::ZERO);
}

proptest! {
    /// Transfers that wait as they are told, and come a little late, keep to the speed, give or take the last one and what
    /// ten milliseconds allow.
    #[test]
    fn the_average_speed_is_kept(
        speed in 10_u64..1 << 30,
        transfers in prop::collection::vec((1_u64..1 << 26, 0_u64..50_000), 1..50),
    ) {
        let mut rate = RateLimit::new(speed, Duration::ZERO);
        let (mut now, mut total) = (Duration::ZERO, 0);
        for (size, late) in &transfers {
            now += rate.delay(now) + Duration::from_micros(*late);
            let allowed = u128::from(speed) * (now + 10 * MS).as_nanos();
            prop_assert!(u128::from(total) * 1_000_000_000 <= allowed);
            rate.charge(*size, now);
            total += size;
        }
    }

    /// And do not fall behind it, if each takes longer to pay than it is late.
    #[test]
    fn the_speed_is_reached(
        speed in 10_u64..1 << 30,
        transfers in prop::collection::vec((1_u64..1 << 26, 0_u64..10_000), 1..50),
    ) {
        let mut rate = RateLimit::new(speed, Duration::ZERO);
        let (mut now, mut total) = (Duration::ZERO, 0);
        for (size, late) in &transfers {
            now += rate.delay(now) + Duration::from_micros(*late);
            let size = size + speed / 100 + 1;
            rate.charge(size, now);
            total += size;
        }
        now += rate.delay(now);
        // Each price is rounded up.
        let needed = now - Duration::from_nanos(transfers.len() as u64);
        prop_assert!(needed.as_nanos() * u128::from(speed) <= u128::from(total) * 1_000_000_000);
    }
}

#[test]
fn the_policy_decides_by_the_kind_of_error() {
    use ErrorAction::{Ignore, Report, Stop};
    let table = [
        (OnError::Report, Report, Report),
        (OnError::Ignore, Ignore, Ignore),
        (OnError::Enospc, Report, Stop),
        (OnError::Stop, Stop, Stop),
        (OnError::Auto, Report, Stop),
    ];
    for (policy, on_io, on_nospace) in table {
        assert_eq!(policy.action(Errno::IO), on_io, "{policy:?}");
        assert_eq!(policy.action(Errno::NOSPC), on_nospace, "{policy:?}");
    }
    let names = ["report", "ignore", "enospc", "stop", "auto"];
    for (name, (policy, ..)) in names.into_iter().zip(table) {
        assert_eq!(
            serde_json::from_value::<OnError>(name.into()).unwrap(),
            policy
        );
    }
    assert!(serde_json::from_value::<OnError>("Stop".into()).is_err());
}

#[test]
fn ignored_errors_wait_longer_each_time_and_shortly_after_a_success() {
    let mut ignored = IgnoredErrors::default();
    let waits: Vec<_> = (0..9).map(|_| ignored.next_wait().as_millis()).collect();
    assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
    for _ in 0..100 {
        assert_eq!(ignored.next_wait(), IgnoredErrors::LONGEST_WAIT);
    }
    ignored.reset();
    assert_eq!(ignored.next_wait(), IgnoredErrors::FIRST_WAIT);
}

#[test]
fn one_event_per_second_and_direction_gets_through() {
    let mut ignored = IgnoredErrors::default();
    assert!(ignored.admit_event(IoOperation::Write, Duration::ZERO));
    assert!(!ignored.admit_event(IoOperation::Write, 999 * MS));
    assert!(ignored.admit_event(IoOperation::Read, 999 * MS));
    assert!(ignored.admit_event(IoOperation::Write, 1000 * MS));
    assert!(!ignored.admit_event(IoOperation::Read, 1500 * MS));
}

#[test]
fn the_total_is_what_is_done_and_what_is_left() {
    let progress = Progress::default();
    progress.set_remaining(100);
    progress.add_done(30);
    progress.set_remaining(70);
    progress.add_remaining(5);
    assert_eq!((progress.current(), progress.total()), (30, 105));
}

#[test]
fn errors_speak_the_c_librarys_words() {
    assert_eq!(JobError::Errno(Errno::IO).to_string(), "Input/output error");
    assert_eq!(
        JobError::Errno(Errno::NOSPC).to_string(),
        "No space left on device"
    );
    assert_eq!(JobError::Cancelled.to_string(), "Operation canceled");
    let from_kernel = JobError::from(std::io::Error::from(Errno::IO));
    assert_eq!(from_kernel, JobError::Errno(Errno::IO));
    let other = JobError::from(std::io::Error::other("the reason"));
    assert_eq!(other.to_string(), "the reason");
}
