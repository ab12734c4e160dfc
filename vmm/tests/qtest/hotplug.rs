//! Disks that are plugged in and taken away while the machine is there, register by register: what the guest is
//! told, that nothing goes without its consent, and that nothing stays of what has gone.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::qmp::{Event, Qmp, QmpError};
use sluice_tests::qtest::machine::QtestMachine;
use sluice_tests::qtest::pci::{Allocator, Function, register};
use tempfile::TempDir;

use super::process::SLUICE;
use super::virtio::{IN, OUT, SECTOR, USED, Virtio, common};

/// How long an event may take. Nothing depends on it but the end of a test that hangs.
const LIMIT: Duration = Duration::from_secs(60);

const SIZE: usize = 1 << 20;
const SLOT: u8 = 6;

/// The registers by which a guest hears of slots, and those of the event.
const UP: u64 = 0xae00;
const DOWN: u64 = 0xae04;
const EJECT: u64 = 0xae08;
const GPE_STATUS: u64 = 0xafe0;
const GPE_ENABLE: u64 = 0xafe2;
const PCI_EVENT: u8 = 1 << 1;
const SCI: u32 = 9;

/// Vendor and device of a virtio disk, and what an empty slot reads as.
const VIRTIO_BLK: u32 = 0x1042_1af4;
const NOTHING: u32 = u32::MAX;

/// A machine with the nodes `disk` and `target`, whose requests can be held, and an I/O thread.
struct Rig {
    machine: QtestMachine,
    directory: TempDir,
}

impl Rig {
    fn start(more: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut arguments = vec!["-object".to_owned(), "iothread,id=io0".to_owned()];
        for name in ["disk", "target"] {
            let path = directory.path().join(name);
            fs::write(&path, vec![0; SIZE]).unwrap();
            let node = json!({
                "driver": "blkdebug", "node-name": name,
                "image": {"driver": "raw", "file": {"driver": "file", "filename": path}},
            });
            arguments.extend(["-blockdev".to_owned(), node.to_string()]);
        }
        arguments.extend(more.iter().map(|word| (*word).to_owned()));
        let machine = QtestMachine::start(SLUICE, arguments).unwrap();
        Self { machine, directory }
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        self.machine.qmp.execute(command, arguments).unwrap()
    }

    /// The class and text of a refusal.
    fn refusal(&mut self, command: &str, arguments: &Value) -> (String, String) {
        refusal(&mut self.machine, command, arguments)
    }

    /// Plugs the node `disk` in and brings it up as a driver does.
    fn plug(mut self, iothread: bool) -> Virtio {
        let mut device = json!({
            "driver": "virtio-blk-pci", "id": "hot", "drive": "disk",
            "addr": format!("{SLOT:x}"), "num-queues": 1,
        });
        if iothread {
            device["iothread"] = "io0".into();
        }
        self.execute("device_add", &device);
        Virtio::over(self.machine, self.directory, SLOT, 0, false)
    }
}

fn refusal(machine: &mut QtestMachine, command: &str, arguments: &Value) -> (String, String) {
    match machine.qmp.execute(command, arguments) {
        Err(error @ QmpError::Refused { .. }) => {
            let class = error.class().unwrap().to_owned();
            (class, error.to_string())
        }
        other => panic!("{command} {arguments}: {other:?}"),
    }
}

fn id(machine: &mut QtestMachine) -> u32 {
    let function = Function::new(SLOT, 0);
    function.read(&mut machine.qtest, register::ID).unwrap()
}

/// What a guest writes that has let go of the slot.
fn eject(machine: &mut QtestMachine) {
    machine.qtest.out32(EJECT, 1 << SLOT).unwrap();
}

fn is_gone(event: &Event) -> bool {
    event.event == "DEVICE_DELETED" && event.data["device"] == "hot"
}

fn wait_gone(machine: &QtestMachine) {
    let path = "/machine/peripheral/hot";
    let event = machine.qmp.wait_event("its end", LIMIT, is_gone).unwrap();
    assert_eq!(event.data, json!({"device": "hot", "path": path}));
    let part = json!({"path": format!("{path}/virtio-backend")});
    let of_part = |event: &Event| event.event == "DEVICE_DELETED" && event.data == part;
    machine
        .qmp
        .wait_event("its part's", LIMIT, of_part)
        .unwrap();
}

fn is_there(machine: &QtestMachine) -> bool {
    !machine.qmp.events().iter().any(is_gone)
}

/// Holds the next `event` at a node, waits for it, or lets it go.
fn hold(machine: &mut QtestMachine, command: &str, node: &str, event: &str) {
    let mut arguments = json!({"node-name": node, "tag": "held"});
    if command == "x-debug-break" {
        arguments["event"] = event.into();
    }
    machine.qmp.execute(command, &arguments).unwrap();
}

fn names(machine: &mut QtestMachine, command: &str, member: &str) -> Vec<String> {
    let found = machine.qmp.execute(command, &json!({})).unwrap();
    let one = |record: &Value| record[member].as_str().unwrap_or_default().to_owned();
    found.as_array().unwrap().iter().map(one).collect()
}

fn sector(virtio: &Virtio, image: &str, sector: u64) -> Vec<u8> {
    let file = fs::File::open(virtio.directory.path().join(image)).unwrap();
    let mut bytes = vec![0; SECTOR];
    file.read_exact_at(&mut bytes, sector * SECTOR as u64)
        .unwrap();
    bytes
}

/// What QEMU's own tests do: a drive is plugged in, used, and ejected without a word of the tables.
#[test]
fn a_drive_comes_and_goes() {
    let drive =
        "if=none,id=drive1,file=null-co://,file.read-zeroes=on,format=raw,serial=from-drive";
    let others = names(
        &mut Rig::start(&[]).machine,
        "query-named-block-nodes",
        "node-name",
    );
    let mut rig = Rig::start(&["-drive", drive]);
    rig.machine.qtest.intercept_interrupts().unwrap();
    rig.machine.qtest.out8(GPE_ENABLE, PCI_EVENT).unwrap();
    assert_eq!(id(&mut rig.machine), NOTHING);
    let device = json!({"driver": "virtio-blk-pci", "id": "hot", "addr": "6.0", "drive": "drive1"});
    rig.execute("device_add", &device);
    let machine = &mut rig.machine;
    assert_eq!(id(machine), VIRTIO_BLK);
    assert!(machine.qtest.interrupt(SCI).unwrap());
    assert_eq!(machine.qtest.in8(GPE_STATUS).unwrap(), PCI_EVENT);
    machine.qtest.out8(GPE_STATUS, PCI_EVENT).unwrap();
    assert!(!machine.qtest.interrupt(SCI).unwrap());
    assert_eq!(machine.qtest.in32(UP).unwrap(), 1 << SLOT);
    let listed = rig.execute("qom-list", &json!({"path": "/machine/peripheral"}));
    let child = json!({"name": "hot", "type": "child<virtio-blk-pci>"});
    assert!(listed.as_array().unwrap().contains(&child), "{listed}");
    let got = rig.execute(
        "qom-get",
        &json!({"path": "/machine/peripheral/hot", "property": "drive"}),
    );
    assert_eq!(got, "drive1");
    let mut virtio = Virtio::over(rig.machine, rig.directory, SLOT, 0, false);
    assert_eq!(virtio.request(IN, 0, &[7; SECTOR]), (0, vec![0; SECTOR]));
    let (status, serial) = virtio.request(8, 0, &[0; 20]);
    assert_eq!((status, &serial[..10]), (0, b"from-drive".as_slice()));
    let machine = &mut virtio.machine;
    let taken = refusal(
        machine,
        "device_add",
        &json!({"driver": "virtio-blk-pci", "drive": "drive1"}),
    );
    assert!(
        taken
            .1
            .ends_with("Drive 'drive1' is already in use by another device"),
        "{taken:?}"
    );
    machine
        .qmp
        .execute("device_del", &json!({"id": "hot"}))
        .unwrap();
    assert!(machine.qtest.interrupt(SCI).unwrap());
    assert_eq!(machine.qtest.in32(DOWN).unwrap(), 1 << SLOT);
    eject(machine);
    assert_eq!(id(machine), NOTHING, "at once");
    wait_gone(machine);
    assert_eq!(machine.qtest.in32(DOWN).unwrap(), 0);
    // The drive was the device's, and so were its nodes.
    assert!(names(machine, "query-block", "device").is_empty());
    assert_eq!(
        names(machine, "query-named-block-nodes", "node-name"),
        others
    );
    let gone = refusal(machine, "device_add", &device);
    let text = "Property 'virtio-blk-device.drive' can't find value 'drive1'";
    assert!(gone.1.ends_with(text), "{gone:?}");
}

#[test]
fn nothing_goes_without_the_guests_consent() {
    let mut virtio = Rig::start(&[]).plug(false);
    for _ in 0..2 {
        virtio
            .machine
            .qmp
            .execute("device_del", &json!({"id": "hot"}))
            .unwrap();
        assert_eq!(virtio.request(OUT, 3, &[3; SECTOR]).0, 0);
        let gpe = virtio.machine.qtest.in8(GPE_STATUS).unwrap();
        assert_eq!(gpe, PCI_EVENT, "the guest is asked again");
        virtio.machine.qtest.out8(GPE_STATUS, PCI_EVENT).unwrap();
    }
    let machine = &mut virtio.machine;
    assert_eq!(id(machine), VIRTIO_BLK);
    assert!(is_there(machine));
    // A guest that begins anew has hold of nothing.
    machine.qmp.execute("system_reset", &json!({})).unwrap();
    assert_eq!(id(machine), NOTHING);
    wait_gone(machine);
    // A node of blockdev-add stays, and can be given to another device in the same place.
    assert!(names(machine, "query-named-block-nodes", "node-name").contains(&"disk".to_owned()));
    let mut virtio = Rig {
        machine: virtio.machine,
        directory: virtio.directory,
    }
    .plug(true);
    assert_eq!(virtio.request(IN, 3, &[0; SECTOR]), (0, vec![3; SECTOR]));
}

#[test]
fn what_is_in_flight_ends_before_its_device() {
    for iothread in [false, true] {
        let mut virtio = Rig::start(&[]).plug(iothread);
        hold(&mut virtio.machine, "x-debug-break", "disk", "write_aio");
        virtio.submit(OUT, 5, &[5; SECTOR], true);
        hold(&mut virtio.machine, "x-debug-wait-break", "disk", "");
        let registers = virtio.common;
        let machine = &mut virtio.machine;
        machine
            .qmp
            .execute("device_del", &json!({"id": "hot"}))
            .unwrap();
        eject(machine);
        assert_eq!(id(machine), NOTHING);
        let at = registers + common::STATUS;
        assert_eq!(
            machine.qtest.read8(at).unwrap(),
            0xff,
            "its windows are gone"
        );
        let again = refusal(machine, "device_del", &json!({"id": "hot"}));
        assert_eq!(again.0, "GenericError");
        assert!(
            again
                .1
                .ends_with("Device hot is already in the process of unplug"),
            "{again:?}"
        );
        let taken = json!({"driver": "virtio-blk-pci", "id": "hot", "drive": "target"});
        let taken = refusal(machine, "device_add", &taken);
        assert!(taken.1.ends_with("Duplicate device ID 'hot'"), "{taken:?}");
        // The disk has its request as long as it runs.
        assert_eq!(names(machine, "query-block", "device"), ["hot"]);
        assert!(is_there(machine));
        hold(machine, "x-debug-resume", "disk", "");
        wait_gone(machine);
        assert!(names(machine, "query-block", "device").is_empty());
        assert_eq!(machine.qtest.read16(USED + 2).unwrap(), 0, "nobody is told");
        assert_eq!(sector(&virtio, "disk", 5), [5; SECTOR]);
    }
}

#[test]
fn what_is_parked_in_a_section_does_not_survive_its_device() {
    for iothread in [false, true] {
        let mut virtio = Rig::start(&[]).plug(iothread);
        let machine = &mut virtio.machine;
        let mirror = json!({"device": "hot", "target": "target", "sync": "full", "job-id": "job"});
        machine.qmp.execute("blockdev-mirror", &mirror).unwrap();
        machine
            .qmp
            .wait_job_event("BLOCK_JOB_READY", "job", LIMIT)
            .unwrap();
        hold(machine, "x-debug-break", "target", "pivot_clean");
        machine
            .qmp
            .execute("block-job-complete", &json!({"device": "job"}))
            .unwrap();
        hold(machine, "x-debug-wait-break", "target", "");
        // The section is open: the guest's write waits for its end.
        virtio.submit(OUT, 5, &[5; SECTOR], true);
        let machine = &mut virtio.machine;
        machine
            .qmp
            .execute("device_del", &json!({"id": "hot"}))
            .unwrap();
        eject(machine);
        wait_gone(machine);
        // The device went, and the job goes on to its end.
        hold(machine, "x-debug-resume", "target", "");
        let completed = machine
            .qmp
            .wait_job_event("BLOCK_JOB_COMPLETED", "job", LIMIT)
            .unwrap();
        assert!(completed.data.get("error").is_none(), "{completed:?}");
        assert_eq!(machine.qtest.read16(USED + 2).unwrap(), 0);
        for image in ["disk", "target"] {
            assert_eq!(sector(&virtio, image, 5), [0; SECTOR], "{image}");
        }
        let machine = &mut virtio.machine;
        assert!(names(machine, "query-block", "device").is_empty());
        machine
            .qmp
            .execute("object-del", &json!({"id": "io0"}))
            .unwrap();
    }
}

#[test]
fn a_device_that_resets_can_be_ejected() {
    let mut virtio = Rig::start(&[]).plug(true);
    hold(&mut virtio.machine, "x-debug-break", "disk", "write_aio");
    virtio.submit(OUT, 5, &[5; SECTOR], true);
    hold(&mut virtio.machine, "x-debug-wait-break", "disk", "");
    let at = virtio.common + common::STATUS;
    let machine = &mut virtio.machine;
    machine.qtest.write8(at, 0).unwrap();
    assert_ne!(machine.qtest.read8(at).unwrap(), 0, "it has not settled");
    // Of its own accord: nobody has asked for it.
    eject(machine);
    assert_eq!(id(machine), NOTHING);
    assert!(is_there(machine));
    hold(machine, "x-debug-resume", "disk", "");
    wait_gone(machine);
}

#[test]
fn a_reset_waits_for_what_was_ejected() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("operator");
    let monitor = format!("unix:{},server=on,wait=off", socket.display());
    let mut virtio = Rig::start(&["-qmp", &monitor]).plug(true);
    let mut operator = Qmp::connect(&socket, LIMIT).unwrap();
    hold(&mut virtio.machine, "x-debug-break", "disk", "read_aio");
    virtio.submit(IN, 5, &[7; SECTOR], true);
    hold(&mut virtio.machine, "x-debug-wait-break", "disk", "");
    let machine = &mut virtio.machine;
    eject(machine);
    // The read may still write to the guest's memory, which the next guest would have.
    let resetting =
        std::thread::spawn(move || operator.execute("system_reset", &json!({})).unwrap());
    for _ in 0..20 {
        names(machine, "query-block", "device");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(
        machine.qmp.events().is_empty(),
        "{:?}",
        machine.qmp.events()
    );
    hold(machine, "x-debug-resume", "disk", "");
    resetting.join().unwrap();
    let is_reset = |event: &Event| event.event == "RESET";
    machine
        .qmp
        .wait_event("the reset", LIMIT, is_reset)
        .unwrap();
    wait_gone(machine);
}

#[test]
fn an_iothread_is_in_use_until_its_last_device_and_job_have_gone() {
    let mut virtio = Rig::start(&[]).plug(true);
    let machine = &mut virtio.machine;
    let in_use = "object 'io0' is in use, can not be deleted";
    let job = json!({
        "device": "hot", "target": "target", "sync": "full", "job-id": "job", "speed": 1,
    });
    machine.qmp.execute("blockdev-mirror", &job).unwrap();
    let refused = refusal(machine, "object-del", &json!({"id": "io0"}));
    assert!(refused.1.ends_with(in_use), "{refused:?}");
    eject(machine);
    wait_gone(machine);
    // The job goes home, and the thread is free.
    let deletion = json!({"id": "io0"});
    while let Err(error) = machine.qmp.execute("object-del", &deletion) {
        let text = error.to_string();
        assert!(text.contains(in_use), "{text}");
    }
    machine
        .qmp
        .execute("job-cancel", &json!({"id": "job"}))
        .unwrap();
    machine
        .qmp
        .wait_job_event("BLOCK_JOB_CANCELLED", "job", LIMIT)
        .unwrap();
}

#[test]
fn refusals_are_qemus() {
    let mut rig = Rig::start(&[
        "-drive",
        "if=ide,id=ide,file=null-co://,format=raw",
        "-device",
        "ide-cd,id=cd,bus=ide.1",
        "-drive",
        "if=none,id=empty",
        "-global",
        "virtio-blk-pci.queue-size=128",
    ]);
    let virtio = |more: Value| {
        let mut device = json!({"driver": "virtio-blk-pci", "drive": "disk"});
        device
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        device
    };
    for (arguments, text) in [
        (json!({"drive": "disk"}), "Parameter 'driver' is missing"),
        (
            json!({"driver": "vga"}),
            "'vga' is not a valid device model name",
        ),
        (
            json!({"driver": "ide-hd", "drive": "disk"}),
            "Bus 'ide.0' does not support hotplugging",
        ),
        (
            json!({"driver": "ide-cd", "bus": "ide.1"}),
            "Bus 'ide.1' does not support hotplugging",
        ),
        (
            json!({"driver": "isa-debug-exit"}),
            "Bus 'isa.0' does not support hotplugging",
        ),
        (virtio(json!({"bus": "pci.1"})), "Bus 'pci.1' not found"),
        (
            virtio(json!({"bus": "ide.0"})),
            "Device 'virtio-blk-pci' can't go on IDE bus",
        ),
        (
            virtio(json!({"nonesuch": 1})),
            "Property 'virtio-blk-pci.nonesuch' not found",
        ),
        (
            virtio(json!({"addr": "99"})),
            "Property 'virtio-blk-pci.addr' doesn't take value '99'",
        ),
        (
            virtio(json!({"addr": "1.0"})),
            "PCI: slot 1 function 0 not available for virtio-blk-pci",
        ),
        (
            virtio(json!({"addr": "6.1"})),
            "PCI: single function device can't be populated in function 6.1",
        ),
        (virtio(json!({"id": "cd"})), "Duplicate device ID 'cd'"),
        (
            virtio(json!({"id": "1x"})),
            "Parameter 'id' expects an identifier",
        ),
        (
            virtio(json!({"drive": "nonesuch"})),
            "Property 'virtio-blk-device.drive' can't find value 'nonesuch'",
        ),
        (
            virtio(json!({"drive": "ide"})),
            "Drive 'ide' is already in use by another device",
        ),
        (
            virtio(json!({"drive": "empty"})),
            "Device needs media, but drive is empty",
        ),
        (
            json!({"driver": "virtio-blk-pci"}),
            "drive property not set",
        ),
        (
            virtio(json!({"iothread": "io9"})),
            "Cannot find iothread 'io9'",
        ),
        (
            virtio(json!({"num-queues": "2"})),
            "Invalid parameter type for 'num-queues', expected: integer",
        ),
    ] {
        let (class, said) = rig.refusal("device_add", &arguments);
        assert!(said.ends_with(text), "{said}");
        assert_eq!(class, "GenericError");
    }
    for (id, class, text) in [
        (
            "cd",
            "GenericError",
            "Bus 'ide.1' does not support hotplugging",
        ),
        (
            "/machine/peripheral/cd",
            "GenericError",
            "Bus 'ide.1' does not support hotplugging",
        ),
        ("hot", "DeviceNotFound", "Device 'hot' not found"),
    ] {
        let said = rig.refusal("device_del", &json!({"id": id}));
        assert!(said.0 == class && said.1.ends_with(text), "{said:?}");
    }
    // Nothing was left behind by any of these; and what --global says holds for those that come later.
    rig.execute(
        "device_add",
        &virtio(json!({"id": "hot", "queue-size": 64})),
    );
    rig.execute(
        "device_add",
        &json!({"driver": "virtio-blk-pci", "drive": "target"}),
    );
    let same = rig.refusal("device_add", &virtio(json!({"id": "second"})));
    assert!(same.1.contains("disk"), "{same:?}");
    let machine = &mut rig.machine;
    let mut allocator = Allocator::default();
    for (slot, queue_size) in [(2, 64), (3, 128)] {
        let function = Function::new(slot, 0);
        let qtest = &mut machine.qtest;
        let bar = function
            .map(qtest, &mut allocator, 4)
            .unwrap()
            .unwrap()
            .base();
        function.set_command(qtest, 2).unwrap();
        assert_eq!(qtest.read16(bar + common::QUEUE_SIZE).unwrap(), queue_size);
    }
}

/// A drive's node goes with its device, or else with the job that has it.
#[test]
fn a_drives_node_stays_for_its_job() {
    let nodes = |machine: &mut QtestMachine| names(machine, "query-named-block-nodes", "node-name");
    let others = nodes(&mut Rig::start(&[]).machine);
    let size = format!("size={SIZE}");
    let drive =
        format!("if=none,id=drive1,file=null-co://,file.{size},file.read-zeroes=on,format=raw");
    let mut rig = Rig::start(&["-drive", &drive]);
    let device = json!({"driver": "virtio-blk-pci", "id": "hot", "drive": "drive1", "addr": "6"});
    rig.execute("device_add", &device);
    let mirror = json!({
        "device": "drive1", "target": "target", "sync": "full", "job-id": "job", "speed": 1,
    });
    rig.execute("blockdev-mirror", &mirror);
    let machine = &mut rig.machine;
    eject(machine);
    wait_gone(machine);
    assert!(nodes(machine).len() > others.len());
    rig.execute("block-job-set-speed", &json!({"device": "job", "speed": 0}));
    let machine = &mut rig.machine;
    machine
        .qmp
        .wait_job_event("BLOCK_JOB_READY", "job", LIMIT)
        .unwrap();
    rig.execute("block-job-complete", &json!({"device": "job"}));
    let machine = &mut rig.machine;
    let ended = machine
        .qmp
        .wait_job_event("BLOCK_JOB_COMPLETED", "job", LIMIT);
    assert!(ended.unwrap().data.get("error").is_none());
    let dismissed = |event: &Event| event.data == json!({"id": "job", "status": "null"});
    machine
        .qmp
        .wait_event("the job's end", LIMIT, dismissed)
        .unwrap();
    assert_eq!(nodes(machine), others);
}

/// What waits for the turn of its disk's limits goes with the device: nobody waits for a clock that stands still.
#[test]
fn what_waits_for_its_limits_goes_with_its_device() {
    let drive =
        "if=none,id=slow,file=null-co://,file.read-zeroes=on,format=raw,throttling.iops-read=1";
    let mut rig = Rig::start(&["-drive", drive]);
    let device = json!({
        "driver": "virtio-blk-pci", "id": "hot", "drive": "slow", "addr": "6", "num-queues": 2,
        "iothread-vq-mapping": [{"iothread": "io0"}],
    });
    rig.execute("device_add", &device);
    let mut virtio = Virtio::over(rig.machine, rig.directory, SLOT, 0, false);
    assert_eq!(virtio.request(IN, 0, &[7; SECTOR]), (0, vec![0; SECTOR]));
    virtio.submit(IN, 0, &[7; SECTOR], true);
    virtio.submit(IN, 0, &[7; SECTOR], true);
    let machine = &mut virtio.machine;
    let in_flight = |machine: &mut QtestMachine| {
        let all = machine
            .qmp
            .execute("x-query-block-drains", &json!({}))
            .unwrap();
        let mut disks = all.as_array().unwrap().iter();
        let disk = disks.find(|one| one["device"] == "slow").unwrap();
        disk["in-flight"].as_u64().unwrap()
    };
    while in_flight(machine) < 2 {}
    eject(machine);
    wait_gone(machine);
    assert_eq!(machine.qtest.read16(USED + 2).unwrap(), 1);
    let deleted = json!({"id": "io0"});
    machine.qmp.execute("object-del", &deleted).unwrap();
}

/// A device that comes and goes leaves no descriptor behind.
#[test]
fn a_hundred_devices_leave_nothing_behind() {
    let mut rig = Rig::start(&[]);
    let device = json!({
        "driver": "virtio-blk-pci", "id": "hot", "drive": "disk", "addr": "6", "iothread": "io0",
    });
    let mut counts = Vec::new();
    for _ in 0..100 {
        rig.execute("device_add", &device);
        rig.execute("device_del", &json!({"id": "/machine/peripheral/hot"}));
        eject(&mut rig.machine);
        wait_gone(&rig.machine);
        let open = format!("/proc/{}/fd", rig.machine.pid());
        counts.push(fs::read_dir(open).unwrap().count());
    }
    assert_eq!(counts.first(), counts.last(), "{counts:?}");
}
