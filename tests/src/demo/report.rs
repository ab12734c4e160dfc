//! What a run found, as the user sees it.

use std::{fmt, time::Duration};

use super::{
    Scenario,
    disks::DiskKind,
    pivot::{Evidence, Pivot},
};

/// One thing that was checked.
#[derive(Clone, Debug)]
pub struct Check {
    /// What should be.
    pub what: String,
    /// What is wrong, if it is not.
    pub wrong: Option<String>,
}

impl Check {
    /// A check that is good if `wrong` is `None`.
    pub fn new(what: impl Into<String>, wrong: Option<String>) -> Self {
        Self {
            what: what.into(),
            wrong,
        }
    }

    /// A check of a condition, with what to say if it does not hold.
    pub fn that(what: impl Into<String>, holds: bool, otherwise: impl Into<String>) -> Self {
        Self::new(what, (!holds).then(|| otherwise.into()))
    }
}

/// A row of the table.
#[derive(Clone, Debug)]
pub struct Row {
    pivot: Pivot,
    acknowledged_after: u64,
    is_good: bool,
}

impl Row {
    /// A row for `pivot`; `acknowledged_after` are the writes acknowledged from then to the end.
    pub const fn new(pivot: Pivot, acknowledged_after: u64, is_good: bool) -> Self {
        Self {
            pivot,
            acknowledged_after,
            is_good,
        }
    }
}

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Report {
    scenario: Scenario,
    disk_bytes: u64,
    rows: Vec<Row>,
    checks: Vec<Check>,
}

impl Report {
    /// Puts a report together.
    pub const fn new(
        scenario: Scenario,
        disk_bytes: u64,
        rows: Vec<Row>,
        checks: Vec<Check>,
    ) -> Self {
        Self {
            scenario,
            disk_bytes,
            rows,
            checks,
        }
    }

    /// Whether every check is good.
    #[must_use]
    pub fn is_good(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.wrong.is_none())
    }

    /// The checks that are not good.
    pub fn failures(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| check.wrong.is_some())
    }
}

const HEADINGS: [&str; 10] = [
    "disk",
    "size",
    "command",
    "to ready",
    "pivot pause",
    "postponed",
    "longest wait",
    "acked before",
    "after",
    "verdict",
];

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = vec![HEADINGS.map(str::to_owned)];
        lines.extend(self.rows.iter().map(|row| cells(row, self.disk_bytes)));
        let width = |column: usize| {
            lines
                .iter()
                .map(|line| line[column].len())
                .max()
                .unwrap_or_default()
        };
        let widths: Vec<_> = (0..HEADINGS.len()).map(width).collect();
        for line in &lines {
            let cells: Vec<_> = line
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            writeln!(f, "{}", cells.join("  ").trim_end())?;
        }
        if self.rows.iter().any(|row| row.pivot.held.is_some()) {
            writeln!(
                f,
                "* held on purpose; the pivot pause does not count that time"
            )?;
        }
        if self
            .rows
            .iter()
            .any(|row| row.pivot.disk == DiskKind::Virtio)
        {
            writeln!(
                f,
                "  a virtio disk's ring is its queue: it waits as a whole and counts as one"
            )?;
        }
        writeln!(f)?;
        for Check { what, wrong } in &self.checks {
            match wrong {
                None => writeln!(f, "  ok    {what}")?,
                Some(wrong) => writeln!(f, "  FAIL  {what}: {wrong}")?,
            }
        }
        let name = match self.scenario {
            Scenario::Demo => "demo",
            Scenario::Quick => "quick",
            Scenario::Twin => "twin",
            Scenario::Negative => "negative",
        };
        let failed = self.failures().count();
        let passed = self.checks.len() - failed;
        let verdict = match (self.is_good(), self.scenario) {
            (true, Scenario::Negative) => "ok, without postponing writes were lost, and noticed",
            (true, _) => "ok, nothing was lost",
            (false, _) => "FAIL",
        };
        write!(f, "\n{name}: {passed} passed, {failed} failed: {verdict}")
    }
}

fn cells(row: &Row, disk_bytes: u64) -> [String; 10] {
    let Row {
        pivot,
        acknowledged_after,
        is_good,
    } = row;
    let unknown = || "?".to_owned();
    let pause = pivot.pause.map_or_else(unknown, milliseconds);
    let star = if pivot.held.is_some() { "*" } else { "" };
    let acknowledged = pivot.before.disk(pivot.disk.number()).acknowledged_writes();
    let what = match pivot.evidence {
        Evidence::Undisturbed { .. } => "",
        Evidence::Compared(_) => " (compared)",
        Evidence::Window { .. } => " (window)",
    };
    [
        pivot.disk.name().to_owned(),
        format!("{} MiB", disk_bytes >> 20),
        format!("{}{what}", pivot.command),
        format!("{:.1} s", pivot.ready_after.as_secs_f64()),
        pause,
        pivot
            .postponed
            .map_or_else(unknown, |count| count.to_string()),
        format!(
            "{}{star}",
            pivot.longest_wait.map_or_else(unknown, milliseconds)
        ),
        acknowledged.to_string(),
        acknowledged_after.to_string(),
        if *is_good { "ok" } else { "FAIL" }.to_owned(),
    ]
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}
