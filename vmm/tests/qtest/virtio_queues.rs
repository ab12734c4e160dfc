//! Several queues of a virtio disk, by each way to serve them and each kind of ring: in drained sections, and taken back
//! there and while the host has a request, one by one and all together.

use super::virtio::{EVENT_IDX, IN, INDIRECT_DESC, OUT, SECTOR};
use super::virtio_commands::*;

const QUEUES: u16 = 3;

/// Who serves the queues.
const SERVED: [&str; 4] = [
    "",
    ",iothread=io0",
    ",iothread-vq-mapping.0.iothread=io0,iothread-vq-mapping.1.iothread=io1",
    ",iothread-vq-mapping.0.iothread=io0,iothread-vq-mapping.0.vqs.0=1,\
     iothread-vq-mapping.1.iothread=io1,iothread-vq-mapping.1.vqs.0=0,iothread-vq-mapping.1.vqs.1=2",
];
const RINGS: [u64; 4] = [0, INDIRECT_DESC, EVENT_IDX, INDIRECT_DESC | EVENT_IDX];

/// Not heard of before so many completions more.
const FAR: u16 = 1000;

fn start(served: &str, ring: u64) -> Disk {
    let more = format!(",num-queues={QUEUES}{served}");
    let features = feature::MQ | RING_RESET | ring;
    let mut disk = Disk::with_queues((SLOT, 19), &more, features, true, QUEUES);
    for queue in 0..QUEUES {
        disk.virtio.select(queue);
        read_one(&mut disk, ring);
    }
    disk
}

/// Each way to serve the queues with each kind of ring.
fn each(mut play: impl FnMut(&mut Disk, u64, &str)) {
    for served in SERVED {
        for ring in RINGS {
            let mut disk = start(served, ring);
            play(&mut disk, ring, &format!("{served:?}, ring {ring:#x}"));
            disk.end();
        }
    }
}

/// Asks to hear of the completion that comes after `more` others.
fn hear_of(disk: &mut Disk, ring: u64, more: u16) {
    if ring & EVENT_IDX != 0 {
        let event = disk.virtio.made.wrapping_add(more);
        let at = disk.virtio.used_event();
        disk.virtio.machine.qtest.write16(at, event).unwrap();
    }
}

fn message(disk: &mut Disk) -> u32 {
    let vector = u64::from(disk.virtio.queue) + 1;
    disk.virtio.take_message(vector)
}

/// Waits for the message of the selected queue.
fn wait_message(disk: &mut Disk, what: &str) {
    let expected = u32::from(disk.virtio.queue) + 2;
    loop {
        match message(disk) {
            0 => {}
            message => break assert_eq!(message, expected, "{what}"),
        }
    }
}

/// The selected queue serves a request and tells of it.
fn read_one(disk: &mut Disk, ring: u64) {
    hear_of(disk, ring, 0);
    let (status, data) = disk.virtio.request(IN, 1, &[0; SECTOR]);
    assert_eq!((status, data), (OK, stamp(1).to_vec()));
    wait_message(disk, "a read");
}

/// The selected queue's own sector of a round.
fn sector(disk: &Disk, round: u64) -> u64 {
    100 * (round + 1) + u64::from(disk.virtio.queue)
}

/// Gives a write of the queue's own sector and a read of it; returns where the answers will be.
fn write_and_read(disk: &mut Disk, round: u64) -> [u64; 2] {
    let own = sector(disk, round);
    let write = disk.virtio.submit(OUT, own, &[WRITTEN; SECTOR], true);
    let read = disk.virtio.submit(IN, own + 50, &[0; SECTOR], true);
    [write, read]
}

/// Nothing has come of what the selected queue was given: `used` requests are over.
fn expect_nothing(disk: &mut Disk, round: u64, buffers: [u64; 2], used: u16, what: &str) {
    assert_eq!(disk.used(), used, "{what}");
    for buffer in buffers {
        assert_eq!(disk.virtio.answer(buffer, 0).0, UNANSWERED, "{what}");
    }
    let own = sector(disk, round);
    assert_eq!(disk.on_disk(own, 1), stamp(own), "{what}");
    assert_eq!(message(disk), 0, "{what}");
}

/// Waits for both requests of the selected queue.
fn expect_done(disk: &mut Disk, round: u64, [write, read]: [u64; 2], what: &str) {
    disk.virtio.wait_used();
    let own = sector(disk, round);
    assert_eq!(disk.virtio.answer(write, 0).0, OK, "{what}");
    let (status, data) = disk.virtio.answer(read, SECTOR);
    assert_eq!((status, data), (OK, stamp(own + 50).to_vec()), "{what}");
    assert_eq!(disk.on_disk(own, 1), [WRITTEN; SECTOR], "{what}");
}

/// A reset that does not end, as long as the host has a request.
fn begin_waiting_reset(disk: &mut Disk, reset: Reset, what: &str) {
    disk.begin_reset(reset);
    for _ in 0..3 {
        disk.execute("query-status", &serde_json::json!({}));
        assert!(!disk.is_reset(reset), "{what}");
    }
}

/// A write of the selected queue that the host has, and holds.
struct TakenUp {
    sector: u64,
    buffer: u64,
    /// What the queue had used before.
    used: u16,
}

impl TakenUp {
    fn begin(disk: &mut Disk, round: u64) -> Self {
        disk.hold("disk", "write_aio");
        let (used, sector) = (disk.used(), sector(disk, round));
        let buffer = disk.virtio.submit(OUT, sector, &[WRITTEN; SECTOR], true);
        disk.wait_held("disk");
        Self {
            sector,
            buffer,
            used,
        }
    }

    /// It is done, and nobody hears of it.
    fn end_reset(self, disk: &mut Disk, reset: Reset, what: &str) {
        disk.let_go("disk");
        while !disk.is_reset(reset) {}
        assert_eq!(disk.on_disk(self.sector, 1), [WRITTEN; SECTOR], "{what}");
        assert_eq!(disk.used(), self.used, "{what}");
        assert_eq!(disk.virtio.answer(self.buffer, 0).0, UNANSWERED, "{what}");
        assert_eq!(message(disk), 0, "{what}");
    }
}

/// Gives each queue two requests in a section, which nothing comes of.
fn give_in_a_section(disk: &mut Disk, ring: u64, round: u64, what: &str) -> Vec<([u64; 2], u16)> {
    let mut given = Vec::new();
    for queue in 0..QUEUES {
        disk.virtio.select(queue);
        // Of the second one. The last queue's driver does not want to hear of anything.
        hear_of(disk, ring, if queue + 1 == QUEUES { FAR } else { 1 });
        let used = disk.used();
        given.push((write_and_read(disk, round), used));
    }
    for _ in 0..3 {
        disk.execute("query-status", &serde_json::json!({}));
        for (queue, (buffers, used)) in (0..QUEUES).zip(&given) {
            disk.virtio.select(queue);
            expect_nothing(disk, round, *buffers, *used, what);
        }
    }
    given
}

#[test]
fn no_queue_is_served_in_a_section_and_each_after_it() {
    each(|disk, ring, what| {
        for round in 0..2 {
            let stop = disk.begin_section();
            let given = give_in_a_section(disk, ring, round, what);
            disk.end_section(stop);
            for (queue, (buffers, _)) in (0..QUEUES).zip(given) {
                disk.virtio.select(queue);
                expect_done(disk, round, buffers, what);
                if ring & EVENT_IDX != 0 && queue + 1 == QUEUES {
                    // Commands of the monitor go through a loop; the interrupt would have come before the next one.
                    hear_of(disk, ring, 0);
                    assert_eq!(message(disk), 0, "{what}");
                } else {
                    wait_message(disk, what);
                }
            }
        }
    });
}

/// One queue is reset in a section: what it was given is gone, at once, and what the others were given is done.
#[test]
fn a_queue_is_taken_back_in_a_section_and_the_others_are_not() {
    each(|disk, ring, what| {
        for taken in 0..QUEUES {
            let round = u64::from(taken);
            let stop = disk.begin_section();
            let given = give_in_a_section(disk, ring, round, what);
            disk.virtio.select(taken);
            disk.begin_reset(Reset::Queue);
            while !disk.is_reset(Reset::Queue) {}
            disk.end_section(stop);
            for (queue, (buffers, used)) in (0..QUEUES).zip(given) {
                disk.virtio.select(queue);
                if queue == taken {
                    expect_nothing(disk, round, buffers, used, what);
                    disk.virtio.enable_queue(true);
                } else {
                    expect_done(disk, round, buffers, what);
                    message(disk);
                }
            }
            for queue in 0..QUEUES {
                disk.virtio.select(queue);
                read_one(disk, ring);
            }
        }
    });
}

#[test]
fn all_queues_are_taken_back_with_their_device_in_a_section() {
    each(|disk, ring, what| {
        for round in 0..2 {
            let stop = disk.begin_section();
            let given = give_in_a_section(disk, ring, round, what);
            disk.begin_reset(Reset::Device);
            while !disk.is_reset(Reset::Device) {}
            disk.end_section(stop);
            for (queue, (buffers, used)) in (0..QUEUES).zip(given) {
                disk.virtio.select(queue);
                expect_nothing(disk, round, buffers, used, what);
            }
            disk.virtio.bring_up(true);
            for queue in 0..QUEUES {
                disk.virtio.select(queue);
                read_one(disk, ring);
            }
        }
    });
}

/// A queue whose request the host has is reset when the host is done, in a section and outside. The others are
/// served meanwhile, if there is no section.
#[test]
fn a_queue_is_reset_when_the_host_has_done_its_request() {
    each(|disk, ring, what| {
        for taken in 0..QUEUES {
            for drained in [false, true] {
                let what = format!("{what}, queue {taken}, drained {drained}");
                let round = 2 * u64::from(taken) + u64::from(drained);
                disk.virtio.select(taken);
                let taken_up = TakenUp::begin(disk, round);
                let stop = drained.then(|| disk.begin_stop());
                let given = drained.then(|| {
                    let other = (taken + 1) % QUEUES;
                    disk.virtio.select(other);
                    let given = (write_and_read(disk, round), disk.used());
                    disk.virtio.select(taken);
                    given
                });
                begin_waiting_reset(disk, Reset::Queue, &what);
                for other in (0..QUEUES).filter(|other| *other != taken) {
                    disk.virtio.select(other);
                    match given {
                        None => read_one(disk, ring),
                        Some((buffers, used)) if other == (taken + 1) % QUEUES => {
                            expect_nothing(disk, round, buffers, used, &what);
                        }
                        Some(_) => {}
                    }
                }
                disk.virtio.select(taken);
                taken_up.end_reset(disk, Reset::Queue, &what);
                if let Some(stop) = stop {
                    disk.end_stop(stop);
                }
                if let Some((buffers, _)) = given {
                    disk.virtio.select((taken + 1) % QUEUES);
                    expect_done(disk, round, buffers, &what);
                    message(disk);
                    disk.virtio.select(taken);
                }
                disk.virtio.enable_queue(true);
                for queue in 0..QUEUES {
                    disk.virtio.select(queue);
                    read_one(disk, ring);
                }
            }
        }
    });
}

/// The same of the device: its status says so when the last queue has settled.
#[test]
fn a_device_is_reset_when_the_host_has_done_the_requests_of_its_queues() {
    each(|disk, ring, what| {
        for held in 0..QUEUES {
            for drained in [false, true] {
                let what = format!("{what}, queue {held}, drained {drained}");
                let round = 2 * u64::from(held) + u64::from(drained);
                disk.virtio.select(held);
                let taken_up = TakenUp::begin(disk, round);
                let stop = drained.then(|| disk.begin_stop());
                begin_waiting_reset(disk, Reset::Device, &what);
                taken_up.end_reset(disk, Reset::Device, &what);
                if let Some(stop) = stop {
                    disk.end_stop(stop);
                }
                disk.virtio.bring_up(true);
                for queue in 0..QUEUES {
                    disk.virtio.select(queue);
                    read_one(disk, ring);
                }
            }
        }
    });
}
