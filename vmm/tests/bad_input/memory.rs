//! More memory than there is.

use std::fs;

use crate::harness::{SLUICE, Scene, qtest_arguments, refusal, refusal_of, status};

#[test]
fn more_than_the_host_can_ever_have_is_refused_at_the_start() {
    let scene = Scene::new();
    // More than any address space.
    let absurd = refusal(&scene, &["-m", "1048576T"]);
    absurd.expect(status::SETUP, &["-m", "1152921504606846976 bytes"]);

    // More than the host has. One told to promise everything (1) does.
    let policy = fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap();
    if policy.trim() == "1" {
        println!("SKIPPED in part: this host promises any amount (vm.overcommit_memory=1)");
        return;
    }
    let much = refusal(&scene, &["-m", "10T"]);
    much.expect(
        status::SETUP,
        &["-m", "10995116277760 bytes", "Cannot allocate memory"],
    );
}

#[test]
fn more_than_this_process_may_have_is_refused_at_the_start() {
    let scene = Scene::new();
    let limited = r#"ulimit -v 2000000; exec "$0" "$@""#;
    let mut command = ["sh", "-c", limited, SLUICE].map(str::to_owned).to_vec();
    command.extend(qtest_arguments(&scene));
    command.extend(["-m", "3G"].map(str::to_owned));
    let refused = refusal_of(&command);
    refused.expect(
        status::SETUP,
        &["-m", "3221225472 bytes", "Cannot allocate memory"],
    );
}

#[test]
fn amounts_that_are_none_are_refused_as_usage() {
    let scene = Scene::new();
    for amount in [
        "0",
        "1",
        "1023K",
        "-5",
        "lots",
        "3.7.1G",
        "99999999999999999999",
        "",
    ] {
        let refused = refusal(&scene, &["-m", amount]);
        refused.expect(status::USAGE, &[amount]);
    }
}
