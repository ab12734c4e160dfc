//! A virtio disk whose queues are served by different threads, between an operator's drained
//! sections and the guest's resets.

use std::time::Instant;

use serde_json::{Value, json};

use crate::machine::{LIMIT, Vm, image_with_blkdebug, pattern_at};
use crate::virtio::Virtio;

/// Three queues; 0 and 2 are one thread's, 1 is another's.
const DEVICE: &str = r#"{"driver": "virtio-blk-pci", "drive": "faulty", "id": "d0", "addr": "5",
    "num-queues": 3, "iothread-vq-mapping": [{"iothread": "a", "vqs": [2, 0]}, {"iothread": "b", "vqs": [1]}]}"#;

fn start() -> (Vm, std::path::PathBuf, Vec<Virtio>) {
    let (directory, image, node) = image_with_blkdebug(&json!([]));
    let arguments = [
        "--object",
        "iothread,id=a",
        "--object",
        "iothread,id=b",
        "--blockdev",
        &node,
        "--device",
        DEVICE,
    ];
    let mut vm = Vm::start(directory, &arguments);
    let queues = Virtio::bring_up_queues(&mut vm.qtest, 5, 3);
    assert_eq!(queues[0].queues(&mut vm.qtest), 3);
    (vm, image, queues)
}

/// An order to `blkdebug`.
fn tell(vm: &mut Vm, command: &str) {
    let line = format!("qemu-io faulty \"{command}\"");
    let said = vm.execute(
        "human-monitor-command",
        &json!({"command-line": line, "x-output": true}),
    );
    assert_eq!(said, "", "{command}");
}

/// What the disk has in flight and who drains it, once that is so.
fn wait_drains(vm: &mut Vm, so: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let drains = vm.execute("x-query-block-drains", &json!({}));
        let disk = drains.as_array().unwrap().iter();
        let disk = disk.clone().find(|element| element["device"] == "d0");
        let disk = disk.unwrap().clone();
        if so(&disk) {
            return disk;
        }
        assert!(began.elapsed() < LIMIT, "not so: {disk}");
    }
}

#[test]
fn a_section_waits_for_a_request_of_any_queue_and_stops_all() {
    let (mut vm, image, mut queues) = start();
    for held in 0..queues.len() {
        let sector = 10 + held as u64;
        tell(&mut vm, "break write_aio held");
        queues[held].begin_write(&mut vm.qtest, sector, 0x11);
        queues[held].kick(&mut vm.qtest);
        tell(&mut vm, "wait_break held");
        // The section of the resize waits for it.
        let mut operator = vm.connect();
        let resizing = std::thread::spawn(move || {
            let size = json!({"node-name": "faulty", "size": 2 << 20});
            operator.execute("block_resize", &size).map(drop)
        });
        let drains = wait_drains(&mut vm, |disk| disk["awaited-ns"].is_u64());
        let expected = format!("virtio-blk queue {held}: 1 in flight");
        assert_eq!(drains["requests"], json!([expected]));
        // Nothing is popped from any queue now.
        for queue in &mut queues {
            queue.begin_write(&mut vm.qtest, sector + 10, 0x22);
            queue.kick(&mut vm.qtest);
        }
        let drains = wait_drains(&mut vm, |disk| disk["unserved"] == 3);
        assert_eq!(
            (&drains["in-flight"], &drains["parked"]),
            (&json!(1), &json!(0))
        );
        assert_eq!(pattern_at(&image, sector + 10), None);
        tell(&mut vm, "resume held");
        resizing.join().unwrap().unwrap();
        for (number, queue) in queues.iter().enumerate() {
            let made = 1 + held as u64 + u64::from(number <= held);
            queue.wait_used(&mut vm.qtest, made);
        }
        assert_eq!(pattern_at(&image, sector), Some(0x11));
        assert_eq!(pattern_at(&image, sector + 10), Some(0x22));
    }
    vm.quit();
}

#[test]
fn a_reset_waits_for_what_every_queue_has_in_flight() {
    let (mut vm, image, mut queues) = start();
    for (queue, tag) in [(0, "first"), (1, "second")] {
        tell(&mut vm, &format!("break write_aio {tag}"));
        queues[queue].begin_write(&mut vm.qtest, 10 + queue as u64, 0x33);
        queues[queue].kick(&mut vm.qtest);
        tell(&mut vm, &format!("wait_break {tag}"));
    }
    queues[0].begin_reset(&mut vm.qtest);
    tell(&mut vm, "resume first");
    wait_drains(&mut vm, |disk| disk["in-flight"] == 1);
    assert!(
        !queues[0].is_reset(&mut vm.qtest),
        "the other queue is not at rest"
    );
    tell(&mut vm, "resume second");
    queues[0].wait_reset(&mut vm.qtest);
    for queue in [0, 1] {
        assert_eq!(pattern_at(&image, 10 + queue as u64), Some(0x33));
        assert_eq!(queues[queue].used(&mut vm.qtest), 0);
    }
    vm.quit();
}
