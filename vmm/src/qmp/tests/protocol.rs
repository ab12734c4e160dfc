//! The protocol itself: negotiation, errors, events, clients that misbehave.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_aio::Clock;
use sluice_block::event::{ErrorAction, IoOperation};
use sluice_block::{BlockEvent, EventSink};

use super::harness::{Client, run, run_with_clock};
use crate::control::Cause;
use crate::qmp::outbox::OVERFLOW;

#[test]
fn greeting_then_negotiation_then_commands() {
    run(|world| {
        let mut client = Client::connect(&world.socket);
        let greeting = client.message().unwrap();
        assert_eq!(greeting["QMP"]["capabilities"], json!(["oob"]));
        let (class, desc) = client.fails("query-status", json!({}));
        assert_eq!(class, "CommandNotFound");
        assert_eq!(
            desc,
            "Expecting capabilities negotiation with 'qmp_capabilities'"
        );
        let (class, _) = client.fails("no-such-command", json!({}));
        assert_eq!(class, "CommandNotFound");
        client.generic("qmp_capabilities", json!({"enable": ["fly"]}));
        client.ok("qmp_capabilities", json!({"enable": []}));
        let (class, desc) = client.fails("qmp_capabilities", json!({}));
        assert_eq!(class, "CommandNotFound");
        assert_eq!(
            desc,
            "Capabilities negotiation is already complete, command ignored"
        );
        let status = client.ok("query-status", json!({}));
        assert_eq!(status, json!({"running": true, "status": "running"}));
    });
}

#[test]
fn replies_are_qemus_bytes() {
    run(|world| {
        let mut client = Client::connect(&world.socket);
        client.send(b"{'execute':'qmp_capabilities'}{'execute':'qmp_capabilities','id':[1,1e-7]}");
        client.send("{'execute':'query-name','id':'é'}".as_bytes());
        client.stream.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        client.stream.read_to_string(&mut text).unwrap();
        let lines: Vec<_> = text.split_terminator("\r\n").collect();
        let package = concat!("sluice-", env!("CARGO_PKG_VERSION"));
        let greeting = format!(
            r#"{{"QMP": {{"version": {{"qemu": {{"micro": 0, "minor": 0, "major": 10}}, "package": "{package}"}}, "capabilities": ["oob"]}}}}"#
        );
        let again = r#"{"id": [1, 9.9999999999999995e-08], "error": {"class": "CommandNotFound", "desc": "Capabilities negotiation is already complete, command ignored"}}"#;
        let expected = [
            greeting.as_str(),
            r#"{"return": {}}"#,
            again,
            r#"{"return": {"name": "fake"}, "id": "\u00E9"}"#,
        ];
        assert_eq!(lines, expected);
    });
}

#[test]
fn the_id_comes_back_whatever_it_is() {
    run(|world| {
        let mut client = world.client();
        for id in [
            json!(1),
            json!("a"),
            json!({"b": [null]}),
            json!(null),
            json!(1.5),
        ] {
            let reply = client.execute(&json!({"execute": "query-name", "id": id}));
            assert_eq!(reply, json!({"return": {"name": "fake"}, "id": id}));
            let reply = client.execute(&json!({"execute": "x", "id": id}));
            assert_eq!(reply["id"], id);
            let reply = client.execute(&json!({"execute": 1, "id": id}));
            assert_eq!(reply["id"], id);
        }
        assert!(
            client
                .execute(&json!({"execute": "query-name"}))
                .get("id")
                .is_none()
        );
    });
}

// The texts were seen from qemu-storage-daemon 10.0.2, with which `vmm::bad_input::words` compares them.
#[test]
fn malformed_requests_are_refused_with_qemus_words() {
    run(|world| {
        let mut client = world.client();
        let cases: &[(&[u8], &str)] = &[
            (b"[]", "QMP input must be a JSON object"),
            (b"1 ", "QMP input must be a JSON object"),
            (b"{}", "QMP input lacks member 'execute'"),
            (
                b"{'execute':1}",
                "QMP input member 'execute' must be a string",
            ),
            (
                b"{'execute':'stop','arguments':[]}",
                "QMP input member 'arguments' must be an object",
            ),
            (
                b"{'execute':'stop','x':1}",
                "QMP input member 'x' is unexpected",
            ),
            (
                b"{'exec-oob':'stop'}",
                "QMP input member 'exec-oob' is unexpected",
            ),
            // Of several mistakes the same one is told of.
            (
                b"{'execute':1,'x':1,'arguments':1}",
                "QMP input member 'x' is unexpected",
            ),
            (
                b"{'arguments':1,'execute':1}",
                "QMP input member 'execute' must be a string",
            ),
            (
                b"{'arguments':1}",
                "QMP input member 'arguments' must be an object",
            ),
            (
                b"{'execute':'qmp_capabilities','arguments':{'x':1}}",
                "Parameter 'x' is unexpected",
            ),
            (
                b"{'execute':'stop','arguments':{'x':1}}",
                "Parameter 'x' is unexpected",
            ),
            (
                b"{'execute':'blockdev-del','arguments':{}}",
                "Parameter 'node-name' is missing",
            ),
            (
                b"{'execute':'blockdev-del','arguments':{'node-name':1}}",
                "Invalid parameter type for 'node-name', expected: string",
            ),
            (
                b"{'execute': stop}",
                "JSON parse error, invalid keyword 'stop'",
            ),
            (b"}", "JSON parse error, expecting value"),
            (b"{'execute': \xff", "JSON parse error, stray '\\xff'"),
        ];
        for (bytes, expected) in cases {
            client.send(bytes);
            let expected = json!({"error": {"class": "GenericError", "desc": expected}});
            assert_eq!(client.reply(), expected, "for {}", bytes.escape_ascii());
        }
        let (class, desc) = client.fails("frobnicate", json!({}));
        assert_eq!(class, "CommandNotFound");
        assert_eq!(desc, "The command frobnicate has not been found");
        // The session has survived all that.
        client.ok("query-status", json!({}));
    });
}

#[test]
fn an_oversized_message_is_refused_and_the_next_is_understood() {
    run(|world| {
        let mut client = world.client();
        client.send(&[b"[".repeat(1025), b"]".repeat(1025)].concat());
        assert_eq!(
            client.reply()["error"]["desc"],
            "JSON nesting depth limit exceeded"
        );
        client.send(b"{'execute':'");
        let megabyte = vec![b'x'; 1 << 20];
        for _ in 0..=64 {
            client.send(&megabyte);
        }
        client.send(b"'}");
        assert_eq!(
            client.reply()["error"]["desc"],
            "JSON token size limit exceeded"
        );
        client.ok("query-status", json!({}));
    });
}

#[test]
fn every_command_is_listed_and_every_listed_one_is_there() {
    run(|world| {
        let mut client = world.client();
        let commands = client.ok("query-commands", json!({}));
        let names: Vec<_> = commands
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap())
            .collect();
        for name in ["qmp_capabilities", "drive-mirror", "query-commands", "quit"] {
            assert!(names.contains(&name), "{name}");
        }
        let mut sorted = names.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), names.len(), "no name twice");
        for name in names {
            // An argument that no command has: the command is found, and does nothing.
            let (_, desc) = client.fails(name, json!({"driver": "x", "no-such-argument": 1}));
            assert!(!desc.contains("has not been found"), "{name}: {desc}");
        }
    });
}

#[test]
fn verbs_reach_the_machine_and_events_all_clients() {
    run(|world| {
        let mut client = world.client();
        let mut watcher = world.client();
        let mut silent = Client::connect(&world.socket);
        client.ok("stop", json!({}));
        let status = client.ok("query-status", json!({}));
        assert_eq!(status, json!({"running": false, "status": "paused"}));
        let refused = client.generic("system_powerdown", json!({}));
        assert!(refused.contains("'paused'"), "{refused}");
        client.ok("cont", json!({}));
        client.ok("system_powerdown", json!({}));
        client.ok("system_reset", json!({}));
        for client in [&mut client, &mut watcher] {
            for name in ["STOP", "RESUME", "POWERDOWN", "RESET"] {
                let event = client.event();
                assert_eq!(event["event"], name);
                assert!(event["timestamp"]["seconds"].as_i64().unwrap() > 0);
                assert!(event["timestamp"]["microseconds"].as_i64().unwrap() < 1_000_000);
            }
        }
        // A session that has not negotiated gets no events.
        silent.greet();
        client.ok("stop", json!({}));
        assert_eq!(silent.event()["event"], "STOP");
    });
}

#[test]
fn an_event_comes_before_the_reply_of_the_command_that_caused_it() {
    run(|world| {
        let mut client = world.client();
        client.send(b"{'execute':'stop'}");
        assert_eq!(client.message().unwrap()["event"], "STOP");
        assert_eq!(client.message().unwrap(), json!({"return": {}}));
    });
}

#[test]
fn quit_is_answered_before_it_is_done() {
    run(|world| {
        let mut client = world.client();
        client.send(b"{'execute':'quit','id':7}");
        assert_eq!(client.message().unwrap(), json!({"return": {}, "id": 7}));
        let event = client.message().unwrap();
        assert_eq!(event["event"], "SHUTDOWN");
        assert_eq!(
            event["data"],
            json!({"guest": false, "reason": "host-qmp-quit"})
        );
        assert_eq!(world.quit_cause(), Some(Cause::HostQmpQuit));
    });
}

#[test]
fn general_queries() {
    run(|world| {
        let mut client = world.client();
        let version = client.ok("query-version", json!({}));
        assert_eq!(
            version["qemu"],
            json!({"major": 10, "minor": 0, "micro": 0})
        );
        assert!(version["package"].as_str().unwrap().starts_with("sluice-"));
        let kvm = client.ok("query-kvm", json!({}));
        assert_eq!(kvm, json!({"enabled": false, "present": true}));
        assert_eq!(client.ok("query-iothreads", json!({})), json!([]));
    });
}

#[test]
fn throttle_groups_come_and_go() {
    run(|world| {
        let mut client = world.client();
        let group =
            |limits: Value| json!({"qom-type": "throttle-group", "id": "g", "limits": limits});
        let refused = client.generic("object-add", group(json!({"bps-total": 1, "bps-read": 1})));
        assert_eq!(
            refused,
            "bps/iops/max total values and read/write values cannot be used at the same time"
        );
        client.ok("object-add", group(json!({"bps-total": 1000})));
        let taken = "attempt to add duplicate property 'g' to object (type 'container')";
        assert_eq!(client.generic("object-add", group(json!({}))), taken);
        let thread = json!({"qom-type": "iothread", "id": "g"});
        assert_eq!(
            client.generic("object-add", thread),
            taken,
            "one name for all kinds"
        );
        let node = json!({"driver": "throttle", "node-name": "t", "throttle-group": "g",
                          "file": {"driver": "null-aio", "size": 4096}});
        client.ok("blockdev-add", node);
        let refused = client.generic("object-del", json!({"id": "g"}));
        assert_eq!(refused, "object 'g' is in use, can not be deleted");
        let limits = json!({"path": "/objects/g", "property": "limits"});
        assert_eq!(client.ok("qom-get", limits.clone())["bps-total"], 1000);
        let set = |value: Value| json!({"path": "g", "property": "limits", "value": value});
        client.ok("qom-set", set(json!({"iops-total": 7})));
        let now = client.ok("qom-get", limits.clone());
        assert_eq!(
            (&now["bps-total"], &now["iops-total"]),
            (&json!(1000), &json!(7))
        );
        let refused = client.generic("qom-set", set(json!({"iops-total-max": 1})));
        assert_eq!(refused, "bps_max/iops_max cannot be lower than bps/iops");
        assert_eq!(client.ok("qom-get", limits), now, "nothing changed");
        client.ok("blockdev-del", json!({"node-name": "t"}));
        client.ok("object-del", json!({"id": "g"}));
        assert_eq!(
            client.generic("object-del", json!({"id": "g"})),
            "object 'g' not found"
        );
    });
}

#[test]
fn iothreads_come_and_go() {
    run(|world| {
        let mut client = world.client();
        client.ok("object-add", json!({"qom-type": "iothread", "id": "io0"}));
        let duplicate = client.generic("object-add", json!({"qom-type": "iothread", "id": "io0"}));
        assert!(duplicate.contains("'io0'"), "{duplicate}");
        let threads = client.ok("query-iothreads", json!({}));
        assert_eq!(threads[0]["id"], "io0");
        assert!(threads[0]["thread-id"].as_u64().unwrap() > 0);
        let refused = client.generic("object-add", json!({"qom-type": "secret", "id": "s"}));
        assert_eq!(
            refused,
            "Parameter 'qom-type' does not accept value 'secret'"
        );
        let refused = client.generic("object-add", json!({"qom-type": "iothread", "id": "0 x"}));
        assert_eq!(refused, "Parameter 'id' expects an identifier");
        client.ok("object-del", json!({"id": "io0"}));
        assert_eq!(
            client.generic("object-del", json!({"id": "io0"})),
            "object 'io0' not found"
        );
        assert_eq!(client.ok("query-iothreads", json!({})), json!([]));
    });
}

#[test]
fn iothreads_have_properties() {
    run(|world| {
        let mut client = world.client();
        let thread = |id: &str, more: Value| {
            let mut options = json!({"qom-type": "iothread", "id": id});
            let members = options.as_object_mut().unwrap();
            members.extend(more.as_object().unwrap().clone());
            options
        };
        client.ok("object-add", thread("io0", json!({})));
        let given = json!({"poll-max-ns": 5000, "poll-grow": 3, "poll-shrink": 4,
                           "aio-max-batch": 8, "thread-pool-min": 1, "thread-pool-max": 2});
        client.ok("object-add", thread("io1", given));
        let told = client.ok("query-iothreads", json!({}));
        let figures = |index: usize| {
            ["poll-max-ns", "poll-grow", "poll-shrink", "aio-max-batch"]
                .map(|name| told[index][name].as_u64().unwrap())
        };
        assert_eq!(figures(0), [0, 0, 0, 0], "no polling unless asked for");
        assert_eq!(figures(1), [5000, 3, 4, 8]);

        let refused = client.generic("object-add", thread("io2", json!({"poll-grow": -1})));
        assert_eq!(
            refused,
            "poll-grow value must be in range [0, 9223372036854775807]"
        );
        let refused = client.generic("object-add", thread("io2", json!({"thread-pool-max": 0})));
        assert_eq!(refused, "bad thread-pool-min/thread-pool-max values");
        let refused = client.generic("object-add", thread("io2", json!({"poll-weight": 1})));
        assert_eq!(refused, "Parameter 'poll-weight' is unexpected");

        let path = "/objects/io1";
        let get = |property: &str| json!({"path": path, "property": property});
        let set = |property: &str, value: Value| json!({"path": path, "property": property, "value": value});
        client.ok("qom-set", set("poll-max-ns", json!(0)));
        assert_eq!(client.ok("qom-get", get("poll-max-ns")), 0);
        assert_eq!(client.ok("qom-get", get("thread-pool-max")), 2);
        let refused = client.generic("qom-set", set("poll-max-ns", json!(-5)));
        assert_eq!(
            refused,
            "poll-max-ns value must be in range [0, 9223372036854775807]"
        );
        let refused = client.generic("qom-set", set("poll-max-ns", json!("1")));
        assert_eq!(
            refused,
            "Invalid parameter type for 'poll-max-ns', expected: integer"
        );
        client.ok("qom-set", set("aio-max-batch", json!(1)));
        assert_eq!(
            client.ok("query-iothreads", json!({}))[1]["aio-max-batch"],
            1
        );
        let until_workers = |count: usize| {
            let present = || {
                let tasks = std::fs::read_dir("/proc/self/task").unwrap();
                let name = |task: std::io::Result<std::fs::DirEntry>| {
                    std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
                };
                tasks
                    .filter_map(name)
                    .filter(|name| name == "wrk:io1\n")
                    .count()
            };
            while present() != count {
                std::thread::yield_now();
            }
        };
        client.ok("qom-set", set("thread-pool-max", json!(5)));
        client.ok("qom-set", set("thread-pool-min", json!(4)));
        until_workers(4);
        let refused = client.generic("qom-set", set("thread-pool-max", json!(3)));
        assert_eq!(refused, "bad thread-pool-min/thread-pool-max values");
        assert_eq!(client.ok("qom-get", get("thread-pool-max")), 5);
        client.ok("qom-set", set("thread-pool-min", json!(1)));
        client.ok("qom-set", set("thread-pool-max", json!(1)));
        until_workers(1);
        let refused = client.generic("qom-get", get("speed"));
        assert_eq!(refused, "Property 'iothread.speed' not found");
        for id in ["io0", "io1"] {
            client.ok("object-del", json!({"id": id}));
        }
    });
}

#[test]
fn loops_tell_what_they_have_done() {
    run(|world| {
        let mut client = world.client();
        client.ok("object-add", json!({"qom-type": "iothread", "id": "io0"}));
        let loops = client.ok("x-query-iothread-stats", json!({}));
        let [main, thread] = loops.as_array().unwrap().as_slice() else {
            panic!("{loops}");
        };
        assert_eq!(
            (&main["id"], &thread["id"]),
            (&json!("main"), &json!("io0"))
        );
        for name in ["turns", "tasks", "fd-dispatches"] {
            assert!(main[name].as_u64().unwrap() > 0, "{name}");
        }
        // Nobody has read a file yet.
        assert_eq!(thread["thread-operations"], 0);
        let again = client.ok("x-query-iothread-stats", json!({}));
        let turns = |loops: &Value| loops[0]["turns"].as_u64().unwrap();
        assert!(turns(&again) > turns(&loops));
        client.ok("object-del", json!({"id": "io0"}));
    });
}

#[test]
fn a_client_that_disconnects_takes_nothing_with_it() {
    run(|world| {
        let mut staying = world.client();
        for rude in [&b"{'execute':"[..], b"{'execute':'stop'}", b""] {
            let mut client = world.client();
            client.send(rude);
            drop(client);
        }
        staying.ok("cont", json!({}));
        let status = staying.ok("query-status", json!({}));
        assert_eq!(status["running"], true);
    });
}

#[test]
fn a_client_that_does_not_read_is_not_served_without_bound() {
    run(|world| {
        let mut client = world.client();
        client.stream.set_nonblocking(true).unwrap();
        let request = b"{'execute':'query-commands'}";
        let mut sent = 0_usize;
        // Each reply is 50 times as long as its request: if the server went on, its queue would
        // grow until memory ends. It stops reading instead, and so the writes come to a stop.
        const ENDLESS: usize = 100_000;
        let mut stuck = 0;
        while stuck < 50 && sent < ENDLESS {
            match (&client.stream).write(request) {
                Ok(count) if count == request.len() => {
                    sent += 1;
                    stuck = 0;
                }
                Ok(count) => panic!("{count} bytes of a request were taken"),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    stuck += 1;
                    // Lets the server's thread run; what is asserted does not depend on it.
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(
            sent < ENDLESS,
            "the server reads on although nobody takes its replies"
        );
        client.stream.set_nonblocking(false).unwrap();
        for _ in 0..sent {
            assert!(client.reply()["return"].is_array());
        }
    });
}

#[test]
fn a_client_that_lets_events_pile_up_is_closed_and_others_are_not() {
    run(|world| {
        let mut slow = world.client();
        let mut other = world.client();
        let reason = "x".repeat(100_000);
        let rounds = OVERFLOW / reason.len() + 20;
        for round in 0..rounds {
            let event = BlockEvent::BlockIoError {
                // Each about another device, so that they are not limited.
                qom_path: format!("/machine/{round}"),
                device: String::new(),
                node_name: None,
                operation: IoOperation::Read,
                action: ErrorAction::Report,
                nospace: None,
                reason: reason.clone(),
            };
            EventSink::emit(&*world.events, event);
            assert_eq!(other.event()["event"], "BLOCK_IO_ERROR");
        }
        other.ok("query-status", json!({}));
        let mut seen = 0;
        while slow.message().is_some() {
            seen += 1;
        }
        assert!(
            seen < rounds,
            "all {seen} events were kept for a client that did not read"
        );
    });
}

#[test]
fn a_flood_of_io_errors_is_limited_to_the_first_and_the_last() {
    run_with_clock(Clock::manual(), |world| {
        let mut client = world.client();
        let emit = |path: &str, reason: &str| {
            EventSink::emit(
                &*world.events,
                BlockEvent::BlockIoError {
                    qom_path: path.into(),
                    device: "d".into(),
                    node_name: None,
                    operation: IoOperation::Write,
                    action: ErrorAction::Report,
                    nospace: None,
                    reason: reason.into(),
                },
            );
        };
        for reason in ["1", "2", "3"] {
            emit("/a", reason);
        }
        emit("/b", "4");
        assert_eq!(client.event()["data"]["reason"], "1");
        assert_eq!(
            client.event()["data"]["reason"],
            "4",
            "another device is not affected"
        );
        // The period's timer has been set when this is answered.
        client.ok("query-status", json!({}));
        world.advance(Duration::from_secs(1));
        assert_eq!(client.event()["data"]["reason"], "3");
        emit("/a", "5");
        emit("/b", "6");
        assert_eq!(
            client.event()["data"]["reason"],
            "6",
            "the last period of /a still runs"
        );
        client.ok("query-status", json!({}));
        world.advance(Duration::from_secs(1));
        assert_eq!(client.event()["data"]["reason"], "5");
    });
}

#[test]
fn what_was_asked_before_the_client_finished_is_answered() {
    run(|world| {
        let mut client = Client::connect(&world.socket);
        client.send(b"{'execute':'qmp_capabilities'}{'execute':'query-status'}");
        client.stream.shutdown(Shutdown::Write).unwrap();
        let messages: Vec<Value> = std::iter::from_fn(|| client.message()).collect();
        assert_eq!(messages.len(), 3, "{messages:?}");
        assert_eq!(messages[2]["return"]["status"], "running");
    });
}

#[test]
fn more_clients_than_there_is_room_for_wait_their_turn() {
    run(|world| {
        const MORE_THAN_FIT: usize = 70;
        let mut clients: Vec<_> = (0..MORE_THAN_FIT)
            .map(|_| Client::connect(&world.socket))
            .collect();
        // Each is served in the end, because those before it leave.
        for mut client in clients.drain(..) {
            client.greet();
        }
        for _ in 0..3 * MORE_THAN_FIT {
            drop(Client::connect(&world.socket));
        }
        world.client().ok("query-status", json!({}));
    });
}
