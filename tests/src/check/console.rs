//! What the guest said on its serial console.

/// The guest's own statements, as far as they have come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statements {
    /// The writer's verdict line, without its prefix.
    pub verdict: Option<String>,
    /// The exit status of the writer.
    pub exit: Option<i32>,
    /// The transfer mode that the guest's kernel chose for the IDE disk.
    pub ide_mode: Option<String>,
    /// How many errors of disks the guest's kernel logged.
    pub kernel_errors: Option<u64>,
    /// Lines that report trouble: the writer's errors and mismatches, the kernel's complaints.
    pub complaints: Vec<String>,
}

/// Words of kernel messages that mean that a disk did not do what it was told. The guest's own
/// count covers the time while its messages are kept off the console; these cover the rest.
const KERNEL_TROUBLE: [&str; 6] = [
    "I/O error",
    "failed command",
    "lost interrupt",
    "frozen",
    "Kernel panic",
    "blocked for more",
];

impl Statements {
    /// Reads the console's text.
    #[must_use]
    pub fn read(console: &str) -> Self {
        let mut statements = Self::default();
        for line in console.lines().map(str::trim_end) {
            if let Some(rest) = after(line, "writer: verdict ") {
                statements.verdict = Some(rest.to_owned());
            } else if let Some(rest) = after(line, "sluice-guest: exit ") {
                statements.exit = rest.parse().ok();
            } else if let Some(rest) = after(line, "sluice-guest: ide-mode ") {
                statements.ide_mode = Some(rest.to_owned());
            } else if let Some(rest) = after(line, "sluice-guest: kernel-errors ") {
                statements.kernel_errors = rest.parse().ok();
            }
            let is_writer_trouble =
                line.contains("writer: ERROR") || line.contains("writer: MISMATCH");
            if is_writer_trouble || KERNEL_TROUBLE.iter().any(|words| line.contains(words)) {
                statements.complaints.push(line.to_owned());
            }
        }
        statements
    }

    /// Whether the guest said everything it says at the end, and all of it is good.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.verdict
            .as_deref()
            .is_some_and(|verdict| verdict.starts_with("ok "))
            && self.exit == Some(0)
            && self.kernel_errors == Some(0)
            && self.complaints.is_empty()
    }

    /// Says in a few words what is bad or missing.
    #[must_use]
    pub fn summary(&self) -> String {
        let verdict = self.verdict.as_deref().unwrap_or("missing");
        let number = |number: Option<i64>| number.map_or("missing".to_owned(), |n| n.to_string());
        let exit = number(self.exit.map(i64::from));
        let errors = number(
            self.kernel_errors
                .and_then(|count| i64::try_from(count).ok()),
        );
        format!("writer's verdict {verdict}; exit status {exit}; kernel errors {errors}")
    }
}

fn after<'a>(line: &'a str, words: &str) -> Option<&'a str> {
    line.find(words).map(|at| &line[at + words.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "sluice-guest: init reached\r\n\
        writer: t=1 ide=5 virtio=7 errors=0 mismatches=0\r\n\
        writer: verdict ok operations=12 verified=3 errors=0 mismatches=0 log=complete\r\n\
        sluice-guest: exit 0\r\nsluice-guest: kernel-errors 0\r\n";

    #[test]
    fn a_good_end_is_good() {
        assert!(Statements::read(GOOD).is_good());
    }

    #[test]
    fn anything_missing_or_bad_is_not() {
        for (good, bad) in [
            ("verdict ok", "verdict FAIL"),
            ("writer: verdict ok", "writer: verd"),
            ("exit 0", "exit 1"),
            ("exit 0", ""),
            ("kernel-errors 0", "kernel-errors 2"),
            ("kernel-errors 0", ""),
            (
                "init reached",
                "[1.0] blk_update_request: I/O error, dev sda",
            ),
            (
                "init reached",
                "writer: ERROR ide: write of 8 at 8: Input/output error",
            ),
            ("init reached", "ata1.00: failed command: WRITE DMA"),
        ] {
            assert!(GOOD.contains(good));
            let statements = Statements::read(&GOOD.replace(good, bad));
            assert!(!statements.is_good(), "{bad}: {}", statements.summary());
        }
    }
}
