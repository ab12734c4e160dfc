//! What a guest's writes cost it, as an operator sees it.

use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::qmp::Qmp;

use super::Machine;

/// How long anything may take. Nothing depends on it but the end of a test that hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// How many writes to a function were timed.
fn count(qmp: &mut Qmp, address: &str) -> u64 {
    let functions = qmp.execute("x-query-exit-times", &json!({})).unwrap();
    let is_it = |function: &&Value| function["address"] == address;
    let function = functions.as_array().unwrap().iter().find(is_it).unwrap();
    // The devices' clock stands still here.
    assert_eq!(function["longest-write-ns"], 0);
    let buckets = function["write-times-ns"].as_array().unwrap();
    buckets
        .iter()
        .map(|bucket| bucket["count"].as_u64().unwrap())
        .sum()
}

#[test]
fn writes_to_the_ide_ports_and_to_its_bus_master_are_counted() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("qmp.sock");
    let listen = format!("unix:{},server=on,wait=off", socket.display());
    let mut machine = Machine::start(&["-qmp", &listen]);
    // The socket is there when the machine is.
    assert_eq!(machine.ask("endianness"), "OK little");
    let mut qmp = Qmp::connect(&socket, LIMIT).unwrap();
    assert_eq!(count(&mut qmp, "01.1"), 0);
    machine.ask("outb 0x1f2 1");
    machine.ask("outb 0x376 0");
    machine.ask("inb 0x1f7");
    assert_eq!(count(&mut qmp, "01.1"), 2);
    // BAR 4, with I/O space enabled.
    let base = 0xc000_u32;
    machine.ask("outl 0xcf8 0x80000920");
    machine.ask(&format!("outl 0xcfc {base:#x}"));
    machine.ask("outl 0xcf8 0x80000904");
    machine.ask("outw 0xcfc 5");
    machine.ask(&format!("outl {:#x} 0x1000", base + 4));
    assert_eq!(machine.ask(&format!("inl {:#x}", base + 4)), "OK 0x1000");
    assert_eq!(count(&mut qmp, "01.1"), 3);
    assert_eq!(count(&mut qmp, "00.0"), 0);
    machine.child.kill().unwrap();
    machine.end();
}
