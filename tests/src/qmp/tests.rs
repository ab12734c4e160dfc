//! The client against a scripted server.

use std::{io::Read, os::unix::net::UnixListener};

use super::*;

const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;
const LIMIT: Duration = Duration::from_secs(20);

/// Serves one connection: greets, then for each command name it reads sends what `answer` says.
fn server(
    answer: impl Fn(&Value) -> String + Send + 'static,
) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(GREETING.as_bytes()).unwrap();
        let input = stream.try_clone().unwrap();
        for request in serde_json::Deserializer::from_reader(input).into_iter::<Value>() {
            let Ok(request) = request else { return };
            if stream.write_all(answer(&request).as_bytes()).is_err() {
                return;
            }
        }
    });
    (dir, path)
}

fn ok(request: &Value) -> String {
    json!({"return": {"echo": request["execute"]}, "id": request["id"]}).to_string()
}

fn event(name: &str, device: &str) -> String {
    let timestamp = json!({"seconds": 1, "microseconds": 2});
    json!({"event": name, "data": {"device": device}, "timestamp": timestamp}).to_string()
}

#[test]
fn commands_and_events_are_told_apart() {
    let (_dir, path) = server(|request| {
        event("JOB", "a") + &ok(request) + "\r\n" + &event("JOB", &request["id"].to_string())
    });
    let mut qmp = Qmp::connect(&path, LIMIT).unwrap();
    let reply = qmp.execute("query-status", &json!({})).unwrap();
    assert_eq!(reply, json!({"echo": "query-status"}));
    // The second command's event, past those that came before it.
    assert_eq!(
        qmp.wait_job_event("JOB", "2", LIMIT)
            .unwrap()
            .timestamp
            .microseconds,
        2
    );
    let rest: Vec<_> = qmp
        .events()
        .iter()
        .map(|event| event.text("device").to_owned())
        .collect();
    assert_eq!(rest, ["a", "1", "a"]);
}

#[test]
fn a_refusal_has_class_and_text() {
    let (_dir, path) = server(|request| match request["execute"].as_str() {
        Some("qmp_capabilities") => ok(request),
        _ => {
            let error = json!({"class": "DeviceNotActive", "desc": "Block job 'x' not found"});
            json!({"error": error, "id": request["id"]}).to_string()
        }
    });
    let mut qmp = Qmp::connect(&path, LIMIT).unwrap();
    let error = qmp
        .execute("block-job-complete", &json!({"device": "x"}))
        .unwrap_err();
    assert_eq!(error.class(), Some("DeviceNotActive"));
    assert_eq!(
        error.to_string(),
        "block-job-complete: DeviceNotActive: Block job 'x' not found"
    );
}

#[test]
fn a_wait_that_is_over_says_what_came_instead() {
    let (_dir, path) = server(|request| ok(request) + &event("STOP", "d"));
    let qmp = Qmp::connect(&path, LIMIT).unwrap();
    qmp.wait_event("STOP", LIMIT, |event| event.event == "STOP")
        .unwrap();
    let error = qmp
        .wait_event("RESUME", Duration::from_millis(1), |event| {
            event.event == "RESUME"
        })
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "no RESUME within 0 s; last heard: no events"
    );
}

#[test]
fn an_ended_connection_is_noticed_by_every_wait() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(GREETING.as_bytes()).unwrap();
        let mut request = [0; 16];
        stream.read_exact(&mut request).unwrap();
    });
    let error = Qmp::connect(&path, LIMIT).err().unwrap();
    assert!(matches!(error, QmpError::Lost(_)), "{error}");
    server.join().unwrap();
}

#[test]
fn a_missing_socket_is_a_timeout_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nowhere");
    let error = Qmp::connect(&path, Duration::ZERO).err().unwrap();
    assert!(error.to_string().contains("nowhere"), "{error}");
}
