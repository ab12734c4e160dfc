//! Commands out of band: who may send them, what they overtake, and what happens to what they overtake.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::harness::{Client, World, run};
use crate::qmp::schema::schema;

/// A client that may send commands out of band.
fn client(world: &World) -> Client {
    let mut client = Client::connect(&world.socket);
    client.message().unwrap();
    client.ok("qmp_capabilities", json!({"enable": ["oob"]}));
    client
}

fn send(client: &mut Client, message: &Value) {
    client.send(message.to_string().as_bytes());
}

/// The `id` of the next reply.
fn next_id(client: &mut Client) -> Value {
    client.message().unwrap()["id"].clone()
}

/// What a command waits for until somebody opens it for writing.
struct Pipe(PathBuf);

impl Pipe {
    fn new(world: &World) -> Self {
        let path = world.directory.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }

    /// Lets the command go on.
    fn open(&self) {
        File::options().write(true).open(&self.0).unwrap();
    }
}

/// Sends a command that lasts until the pipe is opened; it makes the node `id`.
fn send_one_that_waits(client: &mut Client, id: &str, pipe: &Pipe) {
    let arguments = json!({
        "driver": "blkdebug", "node-name": id, "config": pipe.path(), "image": {"driver": "null-co"}
    });
    send(
        client,
        &json!({"execute": "blockdev-add", "id": id, "arguments": arguments}),
    );
}

fn send_out_of_band(client: &mut Client, id: &str) {
    send(client, &json!({"exec-oob": "query-jobs", "id": id}));
}

#[test]
fn only_who_has_negotiated_it_may_send_them() {
    run(|world| {
        let mut plain = world.client();
        send(&mut plain, &json!({"exec-oob": "query-jobs"}));
        let refused = plain.message().unwrap();
        let text = "QMP input member 'exec-oob' is unexpected";
        assert_eq!(refused["error"]["desc"], text);

        let mut client = Client::connect(&world.socket);
        client.message().unwrap();
        client.generic(
            "qmp_capabilities",
            json!({"enable": ["oob", "cap-does-not-exist"]}),
        );
        // That has enabled nothing.
        let (class, _) = client.fails("query-jobs", json!({}));
        assert_eq!(class, "CommandNotFound");
        client.ok("qmp_capabilities", json!({"enable": ["oob"]}));
        for (message, class, desc) in [
            (
                json!({"exec-oob": "query-cpus-fast"}),
                "GenericError",
                "The command query-cpus-fast does not support OOB",
            ),
            (
                json!({"exec-oob": "migrate-pause"}),
                "CommandNotFound",
                "The command migrate-pause has not been found",
            ),
            (
                json!({"exec-oob": "qmp_capabilities"}),
                "GenericError",
                "The command qmp_capabilities does not support OOB",
            ),
            (
                json!({"exec-oob": 1}),
                "GenericError",
                "QMP input member 'exec-oob' must be a string",
            ),
            (
                json!({"exec-oob": "query-jobs", "arguments": []}),
                "GenericError",
                "QMP input member 'arguments' must be an object",
            ),
            (
                json!({"exec-oob": "job-cancel", "arguments": {}}),
                "GenericError",
                "Parameter 'id' is missing",
            ),
        ] {
            let reply = client.execute(&message);
            assert_eq!(reply["error"], json!({"class": class, "desc": desc}));
        }
        let both = json!({"exec-oob": "query-jobs", "execute": "query-jobs"});
        let clash = client.execute(&both)["error"]["desc"].clone();
        assert!(clash.as_str().unwrap().contains("clashes with"), "{clash}");
    });
}

#[test]
fn the_schema_says_which_they_are() {
    run(|world| {
        let mut client = client(world);
        let mut allowed = Vec::new();
        for entry in schema() {
            let entry = serde_json::to_value(entry).unwrap();
            if entry["meta-type"] != "command" {
                continue;
            }
            let arguments = json!({"x-nonesuch": 1});
            let reply = client.execute(&json!({"exec-oob": entry["name"], "arguments": arguments}));
            let said = reply["error"]["desc"].as_str().unwrap();
            let refused =
                said.ends_with("does not support OOB") || said.ends_with("not been found");
            assert_eq!(
                entry["allow-oob"] == true,
                !refused,
                "{}: {said}",
                entry["name"]
            );
            if !refused {
                allowed.push(entry["name"].clone());
            }
        }
        assert_eq!(
            Value::from(allowed),
            json!([
                "block-job-cancel",
                "job-cancel",
                "query-block-jobs",
                "query-jobs",
                "query-status",
                "x-debug-resume",
                "x-query-block-drains"
            ])
        );
    });
}

#[test]
fn they_overtake_what_runs_and_what_waits() {
    run(|world| {
        let (mut client, pipe) = (client(world), Pipe::new(world));
        send_one_that_waits(&mut client, "slow", &pipe);
        send(
            &mut client,
            &json!({"execute": "query-name", "id": "quick"}),
        );
        send_out_of_band(&mut client, "oob-1");
        assert_eq!(next_id(&mut client), "oob-1");
        send_out_of_band(&mut client, "oob-2");
        assert_eq!(next_id(&mut client), "oob-2");
        pipe.open();
        assert_eq!(next_id(&mut client), "slow");
        assert_eq!(next_id(&mut client), "quick");
        // What is no command takes its turn.
        send_one_that_waits(&mut client, "slow-2", &pipe);
        send(&mut client, &json!({"id": "error"}));
        client.send(b"]");
        send_out_of_band(&mut client, "oob-3");
        assert_eq!(next_id(&mut client), "oob-3");
        pipe.open();
        assert_eq!(next_id(&mut client), "slow-2");
        assert_eq!(next_id(&mut client), "error");
        let garbage = client.message().unwrap();
        assert!(
            garbage["error"]["desc"]
                .as_str()
                .unwrap()
                .starts_with("JSON parse error")
        );
    });
}

#[test]
fn they_overtake_no_more_than_may_wait() {
    run(|world| {
        let (mut client, pipe) = (client(world), Pipe::new(world));
        send_one_that_waits(&mut client, "slow", &pipe);
        let waiting: Vec<_> = (0..8).map(|number| format!("waits-{number}")).collect();
        for id in &waiting[..7] {
            send(&mut client, &json!({"execute": "query-name", "id": id}));
        }
        send_out_of_band(&mut client, "in-time");
        assert_eq!(next_id(&mut client), "in-time");
        // One more, and nothing is read until there is room again.
        send(
            &mut client,
            &json!({"execute": "query-name", "id": waiting[7]}),
        );
        send_out_of_band(&mut client, "late");
        pipe.open();
        assert_eq!(next_id(&mut client), "slow");
        let mut rest: Vec<_> = (0..9).map(|_| next_id(&mut client)).collect();
        let late = rest.iter().position(|id| *id == "late").unwrap();
        rest.remove(late);
        assert_eq!(rest, waiting);
    });
}

#[test]
fn without_it_commands_take_their_turns() {
    run(|world| {
        let (mut client, pipe) = (world.client(), Pipe::new(world));
        send_one_that_waits(&mut client, "slow", &pipe);
        for id in 0..20 {
            send(&mut client, &json!({"execute": "query-name", "id": id}));
        }
        send_out_of_band(&mut client, "refused");
        pipe.open();
        assert_eq!(next_id(&mut client), "slow");
        for id in 0..20 {
            assert_eq!(next_id(&mut client), id);
        }
        assert_eq!(next_id(&mut client), "refused");
    });
}

#[test]
fn a_client_that_vanishes_leaves_its_command_whole() {
    run(|world| {
        for oob in [true, false] {
            let pipe = Pipe::new(world);
            let mut vanishing = if oob { client(world) } else { world.client() };
            let id = format!("node-{oob}");
            send_one_that_waits(&mut vanishing, &id, &pipe);
            send(&mut vanishing, &json!({"execute": "query-name"}));
            drop(vanishing);
            let mut other = world.client();
            assert!(world.graph.node(&id).is_err(), "it waits");
            pipe.open();
            // The command ends as if its client were there.
            while world.graph.node(&id).is_err() {
                other.ok("query-name", json!({}));
            }
            other.ok("blockdev-del", json!({"node-name": id}));
            std::fs::remove_file(pipe.path()).unwrap();
        }
    });
}
