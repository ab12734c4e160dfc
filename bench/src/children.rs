//! Programs that are measured from outside: what they print, and the processor time they took.

#![expect(unsafe_code, reason = "no crate we use has getrusage(2)")]

use std::mem::MaybeUninit;
use std::process::Command;
use std::time::Duration;

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
    let before = processor_time();
    let output = command.output();
    let output = output.with_context(|| format!("can't run {name}"))?;
    ensure!(
        output.status.success(),
        "{name} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok((output.stdout, processor_time() - before))
}

/// Seconds that ended children have computed, their kernel threads' time included.
pub(crate) fn processor_time() -> f64 {
    let mut usage = MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: the pointer is to memory of the right size, which the kernel fills; it knows this value.
    let answer = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()) };
    assert_eq!(answer, 0, "getrusage(2) fails only for wrong arguments");
    // SAFETY: the kernel has filled it.
    let usage = unsafe { usage.assume_init() };
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn seconds(time: libc::timeval) -> f64 {
    let whole = |number: i64| u64::try_from(number).unwrap_or(0);
    (Duration::from_secs(whole(time.tv_sec)) + Duration::from_micros(whole(time.tv_usec)))
        .as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

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
