//! Reads of a disc whose policy is to stop the machine: the packet stays, and is done when it goes on.

use std::sync::Arc;

use sluice_block::backend::ErrorPolicy;
use sluice_block::job::OnError;

use super::*;

/// A drive whose errors stop the machine, of a disc that can't be read once.
fn stopping() -> Bench {
    let bench = cd_with(r#""inject-error": [{ "event": "read_aio", "once": true }],"#);
    let policy = ErrorPolicy::new(OnError::Stop, OnError::Stop);
    bench.disks[0].backend.set_policy(policy);
    bench
}

fn wait_halted(bench: &mut Bench) {
    bench.wait(|bench| bench.disks[0].backend.halted() == 1);
    bench.quiesce();
    assert_eq!(bench.status(), BSY | DRDY);
    assert!(!bench.is_interrupted());
}

#[test]
fn a_packet_by_dma_is_done_when_the_machine_goes_on() {
    let mut bench = stopping();
    bench.set_table(&[(BUFFER, 0x1000 | EOT)]);
    bench.start_packet_dma(&read_10(50, 2));
    wait_halted(&mut bench);
    assert_eq!(bench.memory_at(BUFFER, BLOCK), [0; BLOCK]);
    bench.disks[0].backend.resume();
    bench.wait_ready();
    assert_eq!(bench.inb(STATUS), DRDY | DSC);
    assert_eq!(bench.memory_at(BUFFER, 2 * BLOCK), blocks(50, 2));
}

#[test]
fn a_packet_through_the_data_register_is_done_when_the_machine_goes_on() {
    let mut bench = stopping();
    bench.send_packet(0, 2048, &read_10(5, 2));
    wait_halted(&mut bench);
    bench.disks[0].backend.resume();
    bench.wait_ready();
    assert_eq!(bench.take_packet_block(), block(5));
    bench.wait_ready();
    assert_eq!(bench.take_packet_block(), block(6));
    bench.wait_ready();
    assert_eq!(bench.inb(STATUS), DRDY | DSC);
}

/// Neither the software reset nor the device's own waits for the machine, and what was kept is gone.
#[test]
fn a_reset_drops_the_packet() {
    let resets: [fn(&Bench); 2] = [
        |bench| {
            bench.outb(CONTROL, 4);
            bench.outb(CONTROL, 0);
        },
        |bench| bench.outb(COMMAND, 0x08),
    ];
    for reset in resets {
        let mut bench = stopping();
        bench.set_table(&[(BUFFER, 0x800 | EOT)]);
        bench.start_packet_dma(&read_10(50, 1));
        wait_halted(&mut bench);
        reset(&bench);
        bench.wait(|bench| bench.status() & BSY == 0);
        let backend = Arc::clone(&bench.disks[0].backend);
        assert_eq!(backend.halted(), 0);
        backend.resume();
        bench.quiesce();
        assert_eq!(bench.memory_at(BUFFER, BLOCK), [0; BLOCK]);
    }
}
