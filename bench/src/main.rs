//! `sluice-bench`: runs benchmarks, prints their figures, and ends with 1 if a target is missed.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use sluice_bench::allocations::Counting;
use sluice_bench::report::{Sink, heading};
use sluice_bench::timing::Effort;
use sluice_bench::{block, daemon, gate, live, mirror, random_read, reads, wake};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Measures Sluice beside what it is held against.
#[derive(Debug, Parser)]
#[command(name = "sluice-bench", version)]
struct Arguments {
    /// What to measure; everything if nothing is named.
    names: Vec<Name>,

    /// Print a JSON array of the rows instead of a table.
    #[arg(long)]
    json: bool,

    /// Measure next to nothing and judge nothing: only show that the benchmarks work.
    #[arg(long)]
    smoke: bool,

    /// What is measured from outside: read FILE at DEPTH for MILLISECONDS, and say how often.
    #[arg(long, hide = true, num_args = 3, value_names = ["FILE", "DEPTH", "MILLISECONDS"])]
    reads: Option<Vec<String>>,

    /// What is measured from outside: mirror SOURCE to TARGET by WAY, and say what it took.
    #[arg(long, hide = true, num_args = 3, value_names = ["SOURCE", "TARGET", "WAY"])]
    mirror: Option<Vec<String>>,

    /// What is measured from outside: mirror a null node of BYTES for a moment, and say what that took.
    #[arg(long, hide = true, value_name = "BYTES")]
    huge: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// All of the event loops: gate, allocations, wake, spans and random-read.
    Aio,
    /// Entering and leaving a gate.
    Gate,
    /// Heap allocations of a request.
    Allocations,
    /// Random reads of a file and of the null node, beside fio.
    RandomRead,
    /// Waking a loop from another thread.
    Wake,
    /// What spans cost that nobody listens to.
    Spans,
    /// All of the block layer: filter, format and drain.
    Block,
    /// What a filter adds to a request.
    Filter,
    /// A format over a file, beside the bare engine.
    Format,
    /// Drained sections of quiet and of busy disks.
    Drain,
    /// Full mirrors, beside qemu-storage-daemon and cp.
    Mirror,
    /// What a mirror costs a guest that writes, beside qemu-storage-daemon.
    Live,
}

const AIO: [Name; 5] = [
    Name::Gate,
    Name::Allocations,
    Name::Wake,
    Name::Spans,
    Name::RandomRead,
];
const BLOCK: [Name; 3] = [Name::Filter, Name::Format, Name::Drain];

impl Name {
    /// Measures it, and gives its rows to `report`, those of the long benchmarks one by one.
    fn measure(self, effort: Effort, report: Sink<'_>) -> Result<()> {
        let rows = match self {
            Self::Aio | Self::Block => Vec::new(),
            Self::Gate => gate::measure(effort)?,
            Self::Allocations => random_read::allocations(effort)?,
            Self::RandomRead => random_read::measure(effort)?,
            Self::Wake => wake::measure(effort)?,
            Self::Spans => random_read::spans(effort)?,
            Self::Filter => block::filter(effort)?,
            Self::Format => block::format(effort)?,
            Self::Drain => block::drain(effort)?,
            Self::Mirror => return mirror::measure(effort, report),
            Self::Live => return live::measure(effort, report),
        };
        rows.into_iter().for_each(report);
        Ok(())
    }
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some([file, depth, milliseconds]) = arguments.reads.as_deref() {
        let reads = reads::read(file.as_ref(), depth.parse()?, milliseconds.parse()?)?;
        println!("{}", serde_json::to_string(&reads)?);
        return Ok(ExitCode::SUCCESS);
    }
    if let Some([source, target, way]) = arguments.mirror.as_deref() {
        let way = mirror::Way::named(way).context("no such way")?;
        let report = mirror::ours::mirror(source.as_ref(), target.as_ref(), way)?;
        println!("{}", serde_json::to_string(&report)?);
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(size) = arguments.huge {
        let report = mirror::ours::huge(size)?;
        println!("{}", serde_json::to_string(&report)?);
        return Ok(ExitCode::SUCCESS);
    }
    let effort = if arguments.smoke {
        Effort::Smoke
    } else {
        Effort::Full
    };
    let asked = |name| arguments.names.is_empty() || arguments.names.contains(&name);
    let groups = [(Name::Aio, &AIO[..]), (Name::Block, &BLOCK[..])];
    let chosen = groups.into_iter().flat_map(|(group, members)| {
        let members = members.iter().copied();
        members.filter(move |name| asked(group) || asked(*name))
    });
    let alone = [Name::Mirror, Name::Live]
        .into_iter()
        .filter(|name| asked(*name));
    let chosen: Vec<Name> = chosen.chain(alone).collect();
    if effort == Effort::Full && chosen.contains(&Name::RandomRead) && !reads::fio_is_installed() {
        anyhow::bail!("fio is needed to compare with; ci/install-deps --bench installs it");
    }
    let needs_daemon = |name: &Name| matches!(name, Name::Mirror | Name::Live);
    if effort == Effort::Full && chosen.iter().any(needs_daemon) && !daemon::is_installed() {
        anyhow::bail!(
            "qemu-storage-daemon is needed to compare with; ci/install-deps --bench installs it"
        );
    }
    if !arguments.json {
        println!("{}", heading());
    }
    let mut rows = Vec::new();
    for name in chosen {
        name.measure(effort, &mut |row| {
            if !arguments.json {
                println!("{}", row.line());
            }
            rows.push(row);
        })?;
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    }
    let missed = rows.iter().filter(|row| row.met() == Some(false)).count();
    if effort == Effort::Smoke || missed == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("{missed} of {} figures missed their targets", rows.len());
    Ok(ExitCode::FAILURE)
}
