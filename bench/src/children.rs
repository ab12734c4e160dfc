//! Programs that are measured from outside: what they print, and the processor time they took.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Runs `command` to its end; returns what it printed, and the seconds that all its threads computed.
///
/// Taken from the kernel's accounting of children: what a program says of itself leaves out the
/// ring's workers, in which the reads of some file systems happen.
///
/// # Errors
/// It can't be run, or fails.
pub fn run(command: &mut Command) -> Result<(Vec<u8>, f64)> {
    let name = command.get_program().to_string_lossy().into_owned();
    let before = processor_time()?;
    let output = command.output();
    let output = output.with_context(|| format!("can't run {name}"))?;
    ensure!(
        output.status.success(),
        "{name} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok((output.stdout, processor_time()? - before))
}

/// Seconds that ended children have computed, their kernel threads' time included.
fn processor_time() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    ticks(&text)
        .map(|ticks| ticks / TICKS_PER_SECOND)
        .context("can't read /proc/self/stat")
}

/// The unit of times in `/proc`: USER_HZ, which is 100 on every x86 Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// The fields `cutime` and `cstime`, the 16th and 17th, added up; see proc_pid_stat(5).
fn ticks(stat: &str) -> Option<f64> {
    // The second field, the program's name, may contain anything but ends at the last parenthesis.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(13);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_children_is_found_behind_any_name() {
        let stat = "1 (a) 9 (b) S 4 5 6 7 8 9 10 11 12 13 14 15 160 170 18 19 20";
        assert_eq!(ticks(stat), Some(330.0));
        assert_eq!(ticks("1 (a) S 4"), None);
    }

    #[test]
    fn a_program_that_fails_is_an_error_with_its_words() {
        let mut command = Command::new("sh");
        let error = run(command.args(["-c", "echo out of luck >&2; false"])).unwrap_err();
        assert!(error.to_string().contains("out of luck"), "{error}");
        assert!(run(&mut Command::new("/nonexistent/fio")).is_err());
    }

    #[test]
    fn what_a_program_computes_is_counted() {
        let mut command = Command::new("sh");
        let busy = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo $i";
        let (output, computed) = run(command.args(["-c", busy])).unwrap();
        assert_eq!(output, b"300000\n");
        assert!(computed > 0.0);
    }
}
