//! A client that sends much leaves the loop to others, guests among them.

use std::io::{ErrorKind, Read};
use std::sync::{Arc, Barrier, mpsc};

use parking_lot::Mutex;
use serde_json::{Value, json};
use sluice_aio::{LoopConfig, current};

use super::harness::{World, run};
use crate::qmp::control::TURN;

/// A command with as much space in it.
fn spacious(command: &str, space: usize) -> Vec<u8> {
    let space = " ".repeat(space);
    format!("{{\"execute\": {space}\"{command}\"}}").into_bytes()
}

/// Keeps all worker threads of the server's loop, of which the test itself has one, until the returned end is dropped.
fn keep_workers(world: &World) -> mpsc::Sender<()> {
    let others = LoopConfig::default().thread_pool_max - 1;
    let (keep, kept) = mpsc::channel::<()>();
    let all_there = Arc::new(Barrier::new(others + 1));
    let kept = Arc::new(Mutex::new(kept));
    for _ in 0..others {
        let (all_there, kept) = (Arc::clone(&all_there), Arc::clone(&kept));
        let keep_one = move || {
            all_there.wait();
            // The end of the channel.
            let _ = kept.lock().recv();
        };
        world.main.spawn(|| async {
            current::blocking(keep_one).await.unwrap();
        });
    }
    all_there.wait();
    keep
}

#[test]
fn a_long_message_is_parsed_beside_the_loop() {
    run(|world| {
        let (mut long, mut other) = (world.client(), world.client());
        let kept = keep_workers(world);
        long.send(&spacious("query-name", TURN));
        long.send(br#"{"execute": "query-version"}"#);
        for _ in 0..100 {
            other.ok("query-status", json!({}));
        }
        long.stream.set_nonblocking(true).unwrap();
        let nothing = long.stream.read(&mut [0; 1]);
        assert_eq!(nothing.unwrap_err().kind(), ErrorKind::WouldBlock);
        long.stream.set_nonblocking(false).unwrap();
        drop(kept);
        let name = json!({"return": {"name": "fake"}});
        assert_eq!(long.reply(), name, "in the order in which they came");
        assert!(long.reply()["return"]["qemu"].is_object());
    });
}

#[test]
fn a_client_that_sends_fast_lets_others_have_their_turns() {
    run(|world| {
        // Whichever of them the loop comes to first.
        let mut before = world.client();
        let mut fast = world.client();
        let mut after = world.client();
        let (go_on, held) = mpsc::channel::<()>();
        let (is_held, begins) = mpsc::channel();
        let hold_loop = move || async move {
            is_held.send(()).unwrap();
            let _ = held.recv();
        };
        world.main.spawn(hold_loop);
        begins.recv().unwrap();
        // All of it is there at once when the loop goes on.
        fast.send(&[b' '; TURN]);
        fast.send(br#"{"execute": "system_powerdown"}"#);
        for other in [&mut before, &mut after] {
            other.send(br#"{"execute": "query-status"}"#);
        }
        drop(go_on);
        for other in [&mut before, &mut after] {
            other.reply();
            assert_eq!(other.events_so_far(), &[] as &[Value]);
            assert_eq!(other.event()["event"], "POWERDOWN");
        }
        assert_eq!(fast.reply(), json!({"return": {}}));
    });
}
