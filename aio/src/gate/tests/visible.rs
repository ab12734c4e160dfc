//! Rule 12: visible.

use super::*;

#[test]
fn sections_and_waits_are_visible() {
    let clock = Clock::manual();
    let gate = Gate::new("disk", clock.clone());
    let mirror = gate.close("mirror");
    clock.advance(Duration::from_millis(2));
    let snapshot = gate.close("snapshot");
    let mut first = parked(&gate);
    clock.advance(Duration::from_millis(3));
    let second = parked(&gate);
    let stats = gate.stats();
    let holders: Vec<_> = stats.holders.iter().map(|h| (&*h.name, h.since)).collect();
    let since = Duration::from_millis(2);
    assert_eq!(holders, [("mirror", Duration::ZERO), ("snapshot", since)]);
    assert_eq!((stats.parked_now, stats.in_flight), (2, 0));
    assert_eq!(gate.waiting(), (2, Duration::from_millis(3)));

    drop(mirror);
    assert_eq!(gate.stats().holders.len(), 1);
    drop(snapshot);
    drop(entered(first.poll_if_woken()));
    drop(second);
    let stats = gate.stats();
    assert_eq!(stats.sections, 2);
    assert_eq!(stats.longest_section, Duration::from_millis(5));
    let times: Vec<_> = stats.section_times.buckets().collect();
    assert_eq!(times, [(4096, 1), (8192, 1)], "3 ms and 5 ms");
    assert_eq!((stats.parked, stats.abandoned), (2, 1));
    assert_eq!(stats.longest_wait, Duration::from_millis(3));
    assert_eq!(stats.wait_times.buckets().collect::<Vec<_>>(), [(4096, 1)]);
    assert!(stats.holders.is_empty());
}

#[test]
fn a_drain_says_how_long_it_waits_and_for_what() {
    struct Device;
    impl Describe for Device {
        fn in_flight(&self, gate: &Gate) -> Vec<String> {
            // It may use the gate.
            vec![format!("one of {} writes", gate.stats().in_flight)]
        }
    }

    let clock = Clock::manual();
    let gate = Gate::new("disk", clock.clone());
    let device: Arc<dyn Describe> = Arc::new(Device);
    gate.add_describer(Arc::downgrade(&device));
    let token = gate.try_enter().unwrap();
    clock.advance(Duration::from_millis(1));
    let section = gate.close("test");
    let mut idle = Driven::new(gate.wait_idle());
    assert_eq!(gate.stats().awaited_since, None);
    assert!(idle.is_pending());
    clock.advance(Duration::from_millis(3));
    assert!(idle.is_pending());
    let stats = gate.stats();
    assert_eq!(stats.in_flight, 1);
    assert_eq!(stats.awaited_since, Some(Duration::from_millis(1)));
    assert_eq!(gate.describe_in_flight(), ["one of 1 writes"]);
    let mut parked = parked(&gate);
    let mut opened = Driven::new(gate.opened());
    assert!(opened.is_pending());
    clock.advance(Duration::from_millis(1));
    let stats = gate.stats();
    assert_eq!((stats.parked_now, stats.unserved_now), (1, 1));
    assert_eq!(stats.longest_wait_now, Duration::from_millis(1));
    drop(token);
    assert!(idle.poll_if_woken().is_ready());
    let stats = gate.stats();
    assert_eq!(stats.awaited_since, None);
    assert_eq!(stats.longest_drain, Duration::from_millis(4));
    let times: Vec<_> = stats.drain_times.buckets().collect();
    assert_eq!(times, [(4096, 1)]);
    // One who finds nothing in flight has not waited; one who gives up has not been served.
    assert!(Driven::new(gate.wait_idle()).poll().is_ready());
    let running = gate.enter_ignoring_sections();
    let mut given_up = Driven::new(gate.wait_idle());
    assert!(given_up.is_pending());
    drop(given_up);
    drop(running);
    assert_eq!(gate.stats().drain_times, stats.drain_times);
    drop(section);
    drop(entered(parked.poll_if_woken()));
    drop(device);
    assert!(gate.describe_in_flight().is_empty());
}
