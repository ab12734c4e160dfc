//! A machine that has stopped stands still: whatever its guest had asked for, no request touches an image until `cont`.

use serde_json::{Value, json};

use super::two_disks::{Disk, Guest, LIMIT, SECTOR};

/// What the guest writes last before the machine stops.
const WRITTEN: [u8; SECTOR] = [0x7e; SECTOR];
/// How often something is asked that goes through the loops which would serve a request.
const ROUNDS: usize = 50;

/// A guest with a write to each disk parked at its gate, in the drained section of a mirror whose target hangs.
fn with_parked_writes() -> Guest {
    let mut guest = Guest::start();
    for disk in Disk::BOTH {
        guest.add_target(disk, &json!({}));
        guest.mirror(disk, "background");
        guest.hold(disk, "pivot_clean");
        guest.execute("block-job-complete", &json!({"device": disk.name()}));
        guest.wait_held(disk);
        guest.begin_write(disk, 0, &WRITTEN);
    }
    // The virtio disk's loop has seen the doorbell when its queue waits for the gate.
    while waiting(&mut guest, Disk::Virtio) == 0 || waiting(&mut guest, Disk::Ide) == 0 {}
    guest
}

/// The gate of that disk.
fn gate(guest: &mut Guest, disk: Disk) -> Value {
    let drains = guest.execute("x-query-block-drains", &json!({}));
    let drains = drains.as_array().unwrap().iter();
    let mut disks = drains.filter(|drain| drain.get("device").is_some());
    let index = Disk::BOTH.iter().position(|other| *other == disk);
    disks.nth(index.unwrap()).unwrap().clone()
}

/// Requests and queues that wait for the gate.
fn waiting(guest: &mut Guest, disk: Disk) -> u64 {
    let gate = gate(guest, disk);
    let counts = ["parked", "unserved"].map(|count| gate[count].as_u64().unwrap());
    counts.into_iter().sum()
}

/// The images of both disks, and their copies if there are some.
fn names(copies: &[Disk]) -> Vec<String> {
    let own = Disk::BOTH.map(|disk| disk.name().to_owned());
    own.into_iter()
        .chain(copies.iter().map(|disk| disk.copy()))
        .collect()
}

fn images(guest: &Guest, copies: &[Disk]) -> Vec<Vec<u8>> {
    let names = names(copies);
    names.iter().map(|name| guest.bytes(name)).collect()
}

/// Nothing of the guest's has begun, however long the section has been over.
fn assert_at_rest(guest: &mut Guest, before: &[Vec<u8>], copies: &[Disk]) {
    for _ in 0..ROUNDS {
        guest.execute("query-status", &json!({}));
        for disk in Disk::BOTH {
            assert!(
                !guest.has_ended(disk),
                "{disk:?}: a request of a guest that stands still"
            );
        }
    }
    assert!(images(guest, copies) == before, "an image has changed");
}

/// The section is over only after `stop` has answered, which does not wait for it: its target hangs.
#[test]
fn what_is_parked_when_the_machine_stops_begins_when_it_goes_on() {
    let mut guest = with_parked_writes();
    guest.execute("stop", &json!({}));
    let stopped = guest
        .machine
        .qmp
        .wait_event("STOP", LIMIT, |event| event.event == "STOP");
    stopped.unwrap();
    let before = images(&guest, &Disk::BOTH);
    for disk in Disk::BOTH {
        guest.let_go(disk);
        guest.wait_completed(disk);
    }
    assert_at_rest(&mut guest, &before, &Disk::BOTH);
    for disk in Disk::BOTH {
        let holders = &gate(&mut guest, disk)["holders"];
        assert_eq!(holders[0]["name"], "stopped machine");
        assert_eq!(holders.as_array().unwrap().len(), 1);
    }
    guest.execute("cont", &json!({}));
    for disk in Disk::BOTH {
        guest.wait(disk);
        assert!(guest.bytes(&disk.copy())[..SECTOR] == WRITTEN);
    }
    guest.end();
}

/// What comes while the machine stands still waits as well, and an operator's own requests do not.
#[test]
fn what_comes_to_a_stopped_machine_waits_and_its_operator_works() {
    let mut guest = Guest::start();
    guest.execute("stop", &json!({}));
    let before = images(&guest, &[]);
    for disk in Disk::BOTH {
        guest.begin_write(disk, 0, &WRITTEN);
    }
    assert_at_rest(&mut guest, &before, &[]);
    for disk in Disk::BOTH {
        let line = format!("qemu-io -d dev-{} \"write -P 0x71 512 512\"", disk.name());
        let said = guest.execute(
            "human-monitor-command",
            &json!({"command-line": line, "x-output": true}),
        );
        assert!(said.as_str().unwrap().contains("wrote 512/512"), "{said}");
    }
    guest.execute("cont", &json!({}));
    for disk in Disk::BOTH {
        guest.wait(disk);
        let bytes = guest.bytes(disk.name());
        assert!(bytes[..SECTOR] == WRITTEN && bytes[SECTOR..2 * SECTOR] == [0x71; SECTOR]);
    }
    guest.end();
}

/// What was parked is cancelled when the machine ends before it goes on.
#[test]
fn what_is_parked_when_a_stopped_machine_ends_is_not_done() {
    let mut guest = with_parked_writes();
    guest.execute("stop", &json!({}));
    let before = images(&guest, &Disk::BOTH);
    for disk in Disk::BOTH {
        guest.let_go(disk);
        guest.wait_completed(disk);
    }
    guest.execute("quit", &json!({}));
    let directory = guest.end_and_keep();
    for (name, before) in names(&Disk::BOTH).iter().zip(before) {
        assert!(
            std::fs::read(directory.path().join(name)).unwrap() == before,
            "{name}"
        );
    }
}
