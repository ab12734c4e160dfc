//! The checks at the end of a run, when the machine is off and nobody writes any more.

use std::process::ExitStatus;

use anyhow::Result;

use super::{
    Report, Scenario,
    disks::DiskKind,
    pivot::{Evidence, Held, Pivot, Window},
    report::{Check, Row},
    session::Session,
};
use crate::check::{
    console::Statements,
    history::{History, WriteState},
    image::{Digest, Image},
    judge::{self, Findings, LogState},
};

/// How many findings a line of the report shows.
const SHOWN: usize = 3;

/// Checks everything that can be checked.
pub fn judge(
    session: &Session,
    pivots: Vec<Pivot>,
    statements: &Statements,
    status: ExitStatus,
) -> Result<Report> {
    let scenario = session.options.scenario;
    let mut checks = vec![
        Check::that(
            "the machine powered off by itself",
            status.success(),
            status.to_string(),
        ),
        Check::that(
            "the guest's log is complete",
            session.history.is_complete(),
            "it is not",
        ),
    ];
    let mode = statements.ide_mode.as_deref().unwrap_or("none");
    checks.push(Check::that(
        "the guest's driver uses UDMA on the IDE disk",
        mode.starts_with("UDMA"),
        format!("it uses {mode}"),
    ));
    let mut rows = Vec::new();
    for pivot in pivots {
        let mut own = match scenario {
            Scenario::Negative => lost_in_the_window(session, &pivot)?,
            Scenario::Demo | Scenario::Quick | Scenario::Twin => sound_pivot(session, &pivot)?,
        };
        own.push(statistics(&pivot));
        let number = pivot.disk.number();
        let before = pivot.before.disk(number).acknowledged_writes();
        let after = session.history.disk(number).acknowledged_writes() - before;
        let is_good = own.iter().all(|check| check.wrong.is_none());
        rows.push(Row::new(pivot, after, is_good));
        checks.extend(own);
    }
    if scenario == Scenario::Negative {
        let noticed = statements
            .verdict
            .as_deref()
            .is_some_and(|verdict| verdict.contains("FAIL"));
        let what = "the guest's own read-back noticed it too";
        checks.push(Check::that(what, noticed, statements.summary()));
        checks.push(Check::that(
            "the guest's kernel noticed nothing",
            statements.kernel_errors == Some(0),
            statements.summary(),
        ));
    } else {
        for disk in DiskKind::ALL {
            checks.push(last_image(session, disk)?);
        }
        checks.push(Check::new(
            "the guest saw no error and read everything back",
            trouble(statements),
        ));
    }
    Ok(Report::new(
        scenario,
        session.options.disk_bytes,
        rows,
        checks,
    ))
}

fn trouble(statements: &Statements) -> Option<String> {
    (!statements.is_good()).then(|| {
        let mut text = statements.summary();
        for line in statements.complaints.iter().take(SHOWN) {
            text += &format!("\n          {line}");
        }
        text
    })
}

/// The checks of a pivot at which nothing may be lost.
fn sound_pivot(session: &Session, pivot: &Pivot) -> Result<Vec<Check>> {
    let disk = pivot.disk;
    let (from, to) = (pivot.generation, pivot.generation + 1);
    let source = Image::open(&session.images.of(disk, from))?;
    let target = Image::open(&session.images.of(disk, to))?;
    let (old, new) = (file_name(&source), file_name(&target));
    let mut checks = Vec::new();

    let digest = match &pivot.evidence {
        Evidence::Compared(comparison) => {
            let sectors = comparison.listed.iter().take(SHOWN).map(u64::to_string);
            let sectors = sectors.collect::<Vec<_>>().join(", ");
            checks.push(Check::that(
                format!("at the pivot, {new} equalled {old} in every sector"),
                comparison.differing == 0,
                format!("{} sectors differed: {sectors}", comparison.differing),
            ));
            comparison.digest
        }
        Evidence::Undisturbed { source } | Evidence::Window { source, .. } => *source,
    };
    if let Some(held) = &pivot.held {
        checks.push(frozen(disk, held));
    }
    session.say(&format!("checking {old}: unchanged since the pivot?"));
    checks.push(unchanged(&source, digest)?);
    session.say(&format!("checking {old}: all acknowledged writes there?"));
    let now = session.history.disk(disk.number());
    let findings = judge::acknowledged_writes(
        &source,
        pivot.before.disk(disk.number()),
        now,
        LogState::Complete,
    )?;
    let what = format!("{old} holds every write acknowledged before the pivot");
    checks.push(Check::new(what, describe(&findings)));
    session.say(&format!("checking {new} against {old}"));
    let findings = judge::only_newer_writes(&source, &target)?;
    let what = format!("{new} differs from {old} by newer writes only");
    checks.push(Check::new(what, describe(&findings)));
    Ok(checks)
}

/// While the section was held, this disk stood still and the other went on.
fn frozen(disk: DiskKind, held: &Held) -> Check {
    let acknowledged = held.end.acknowledged_writes() - held.begin.acknowledged_writes();
    let (name, other, count) = (disk.name(), disk.other().name(), held.other_acknowledged);
    Check::that(
        format!("while {name} was held, none of its writes was acknowledged; {other} did {count}"),
        acknowledged == 0 && held.other_acknowledged > 0,
        format!("{acknowledged} writes to {name} were acknowledged"),
    )
}

fn unchanged(source: &Image, then: Digest) -> Result<Check> {
    let now = source.digest()?;
    let what = format!("{} is unchanged since the pivot", file_name(source));
    Ok(Check::that(
        what,
        now == then,
        format!("its hash is {now}, it was {then}"),
    ))
}

/// The disk in force at the end holds everything.
fn last_image(session: &Session, disk: DiskKind) -> Result<Check> {
    let history = session.history.disk(disk.number());
    let generation = session.generations[disk.number()];
    let image = Image::open(&session.images.of(disk, generation))?;
    session.say(&format!(
        "checking {}: all acknowledged writes there?",
        file_name(&image)
    ));
    let findings = judge::acknowledged_writes(&image, history, history, LogState::Complete)?;
    let what = format!(
        "{} holds all {} acknowledged writes at the end, and nothing else",
        file_name(&image),
        history.acknowledged_writes()
    );
    let wrong = match (history.failed_writes(), history.pending_writes()) {
        (0, 0) => describe(&findings),
        (failed, pending) => Some(format!(
            "{failed} writes failed, {pending} are unaccounted for"
        )),
    };
    Ok(Check::new(what, wrong))
}

/// The checks of the pivot that must have lost writes.
fn lost_in_the_window(session: &Session, pivot: &Pivot) -> Result<Vec<Check>> {
    let number = pivot.disk.number();
    let history = session.history.disk(number);
    let new = Image::open(&session.images.of(pivot.disk, pivot.generation + 1))?;
    let old = Image::open(&session.images.of(pivot.disk, pivot.generation))?;
    let window = window_writes(pivot, &session.history);
    let lost: Vec<_> = judge::lost_writes(&new, history)?;
    let proven: Vec<_> = lost
        .iter()
        .filter(|(seq, _)| window.contains(seq))
        .collect();
    let mut what = format!(
        "of {} writes acknowledged while the window was held open, {} are not on {}",
        window.len(),
        proven.len(),
        file_name(&new)
    );
    for (seq, sectors) in proven.iter().take(SHOWN) {
        if let Some(write) = history.write(*seq) {
            let end = write.first + write.sectors - 1;
            let first = write.first;
            what += &format!("\n          write {seq}: {sectors} of sectors {first} to {end} lost");
        }
    }
    let findings = judge::only_newer_writes(&old, &new)?;
    Ok(vec![
        Check::that(
            "the guest could write while the window was held open",
            matches!(
                pivot.evidence,
                Evidence::Window {
                    window: Window::Open,
                    ..
                }
            ) && !window.is_empty(),
            "no write was acknowledged",
        ),
        Check::that(
            what,
            !proven.is_empty(),
            "the check did not notice the loss",
        ),
        Check::that(
            format!(
                "{} is behind {} in {} sectors",
                file_name(&new),
                file_name(&old),
                findings.count()
            ),
            !findings.is_empty(),
            "the comparison of the images did not notice the loss",
        ),
    ])
}

/// The writes that were acknowledged between the begin and the end of the hold.
fn window_writes(pivot: &Pivot, history: &History) -> Vec<u64> {
    let Some(held) = &pivot.held else {
        return Vec::new();
    };
    let is_done =
        |state: Option<WriteState>| matches!(state, Some(WriteState::Acknowledged { .. }));
    let writes = history.disk(pivot.disk.number()).writes();
    writes
        .map(|(seq, _)| seq)
        .filter(|seq| {
            is_done(held.end.write(*seq).map(|write| write.state))
                && !is_done(held.begin.write(*seq).map(|write| write.state))
        })
        .collect()
}

/// The job told how long it held the disk and what it postponed.
fn statistics(pivot: &Pivot) -> Check {
    let told = pivot.pause.is_some() && pivot.postponed.is_some() && pivot.longest_wait.is_some();
    let what = format!(
        "the {} job told its pause and its postponed requests",
        pivot.disk.name()
    );
    Check::that(what, told, "BLOCK_JOB_COMPLETED lacks them")
}

fn describe(findings: &Findings) -> Option<String> {
    (!findings.is_empty()).then(|| {
        let mut text = format!("{} sectors are wrong", findings.count());
        for violation in findings.listed().iter().take(SHOWN) {
            text += &format!("\n          {violation}");
        }
        text
    })
}

fn file_name(image: &Image) -> String {
    image
        .path()
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
