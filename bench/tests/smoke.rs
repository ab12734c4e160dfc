//! Every benchmark runs to its end and says something; how fast is not looked at.
#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole crate is a test"
)]

use std::process::Command;

use serde_json::Value;

fn run(arguments: &[&str]) -> std::process::Output {
    let program = env!("CARGO_BIN_EXE_sluice-bench");
    Command::new(program).args(arguments).output().unwrap()
}

#[test]
fn every_benchmark_gives_figures() {
    let output = run(&["--smoke", "--json"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let benchmarks = [
        "gate",
        "allocations",
        "wake",
        "spans",
        "random-read",
        "filter",
        "format",
        "drain",
        "mirror",
        "live",
    ];
    for benchmark in benchmarks {
        // What should not be there need not be.
        let of_it = |row: &&Value| row["benchmark"] == benchmark && row["unit"] != "late";
        let of_it = rows.iter().filter(of_it);
        let figures: Vec<f64> = of_it.map(|row| row["ours"].as_f64().unwrap()).collect();
        assert!(!figures.is_empty(), "{benchmark}: {figures:?}");
        let positive = figures.iter().all(|figure| *figure > 0.0);
        assert!(
            positive || matches!(benchmark, "allocations" | "spans" | "mirror"),
            "{benchmark}: {figures:?}"
        );
    }
}

#[test]
fn one_benchmark_can_be_run_alone_as_a_table() {
    let output = run(&["gate", "--smoke"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(
        text.lines().skip(1).all(|line| line.contains("atomic")),
        "{text}"
    );
}
