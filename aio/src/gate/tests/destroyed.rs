//! Rule 10: cancelled, not lost.

use super::*;

#[test]
fn destroying_cancels_what_is_parked_and_who_comes_later() {
    let gate = gate();
    let inside = gate.try_enter().unwrap();
    let section = gate.close("test");
    let mut waiters = [parked(&gate), parked(&gate)];
    let mut opened = Driven::new(gate.opened());
    assert!(opened.is_pending());
    gate.destroy();
    gate.destroy();
    for waiter in &mut waiters {
        assert!(matches!(
            waiter.poll_if_woken(),
            Poll::Ready(Err(Cancelled))
        ));
    }
    assert_eq!(opened.poll_if_woken(), Poll::Ready(Err(Cancelled)));
    drop(section);
    assert!(gate.try_enter().is_none());
    assert!(matches!(
        Driven::new(gate.enter()).poll(),
        Poll::Ready(Err(Cancelled))
    ));
    assert_eq!(
        Driven::new(gate.opened()).poll(),
        Poll::Ready(Err(Cancelled))
    );
    // Who is inside may finish, and can be waited for.
    let mut idle = Driven::new(gate.wait_idle());
    assert!(idle.is_pending());
    drop(inside);
    assert!(idle.poll_if_woken().is_ready());
    assert_eq!((gate.parked(), gate.in_flight()), (0, 0));
}

#[test]
fn destroying_an_open_gate_takes_grants_back() {
    let gate = gate();
    let section = gate.close("test");
    let mut waiter = parked(&gate);
    drop(section);
    assert_eq!(gate.in_flight(), 1);
    gate.destroy();
    assert_eq!(gate.in_flight(), 0);
    assert!(matches!(
        waiter.poll_if_woken(),
        Poll::Ready(Err(Cancelled))
    ));
}

#[test]
fn ending_a_section_of_a_destroyed_gate_grants_nothing() {
    let gate = gate();
    let section = gate.close("test");
    let mut waiter = parked(&gate);
    gate.destroy();
    drop(section);
    assert_eq!(gate.in_flight(), 0);
    assert!(matches!(waiter.poll(), Poll::Ready(Err(Cancelled))));
}
