//! A running machine of the demo: the process, its control socket, and the guest's log as far as
//! it has been read.

use std::{
    fs::File,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use sluice_writer::{SECTOR_SIZE, record::LogReader};

use super::{
    Options, PATIENCE, Report,
    disks::{self, DiskKind, Images},
    pivot::Pivot,
    verdict,
};
use crate::{
    check::{
        console::Statements,
        history::{DiskHistory, History},
    },
    process::{Machine, Mark},
    qmp::{Qmp, QmpError},
};

/// How often the log is looked at while waiting for the guest.
const LOOK: Duration = Duration::from_millis(20);

/// How long one attempt to reach the control socket may take before the machine is asked whether
/// it still runs.
const CONNECT: Duration = Duration::from_secs(1);

/// How long a machine may take to end when something has gone wrong.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How often a long wait says that it is still waiting.
const NEWS: Duration = Duration::from_secs(10);

/// "For a while" in acknowledged writes.
pub const A_WHILE: u64 = 25;

/// "A moment" in acknowledged writes: for use while a disk is held, for a guest's kernel gives an
/// IDE disk up after 30 s.
pub const A_MOMENT: u64 = 10;

/// The machine and all that is known of it.
pub struct Session {
    pub(super) options: Options,
    pub(super) images: Images,
    pub(super) qmp: Qmp,
    pub(super) history: History,
    /// How many pivots each disk has had.
    pub(super) generations: [usize; 2],
    machine: Machine,
    log: LogReader,
    started: Instant,
}

impl Session {
    /// Makes the images and starts the machine.
    pub fn start(options: &Options) -> Result<Self> {
        let images = Images::create(options).context("cannot make the disk images")?;
        let program = options.sluice.display().to_string();
        let console = options.console.as_ref().map(File::create).transpose();
        let console = console.context("cannot make the copy of the console")?;
        let arguments = disks::arguments(options, &images);
        let mut machine = Machine::start_copying(&program, arguments, console)?;
        let qmp = connect(&mut machine, &images)?;
        let log = LogReader::new(File::open(images.log())?);
        let sectors = usize::try_from(options.disk_bytes)? / SECTOR_SIZE;
        Ok(Self {
            options: options.clone(),
            images,
            qmp,
            history: History::new(&[sectors, sectors]),
            generations: [0, 0],
            machine,
            log,
            started: Instant::now(),
        })
    }

    /// Tells the user, if asked to, what happens.
    pub fn say(&self, what: &str) {
        if self.options.verbose {
            eprintln!("[{:7.2}] {what}", self.started.elapsed().as_secs_f64());
        }
    }

    /// The end of what the machine printed, for an error message. A machine that is about to end, as one does
    /// whose jobs were cancelled, gets the time to say why.
    pub fn output(&mut self) -> String {
        let _goes_on = self.machine.wait_end(LAST_WORDS);
        self.machine.output()
    }

    /// Reads what has been added to the guest's log.
    pub fn read_log(&mut self) -> Result<()> {
        let records = self
            .log
            .poll()
            .context("cannot read the log disk's image")?;
        Ok(self.history.absorb(&records)?)
    }

    /// One disk's part of the log, as far as it has been read.
    pub fn disk(&self, disk: DiskKind) -> &DiskHistory {
        self.history.disk(disk.number())
    }

    /// Waits until the guest has had `more` acknowledgements of `disk` than the log shows now.
    pub fn wait_acknowledged(&mut self, disk: DiskKind, more: u64) -> Result<()> {
        self.read_log()?;
        let wanted = self.disk(disk).acknowledged_writes() + more;
        let deadline = Instant::now() + PATIENCE;
        let mut next_word = Instant::now() + NEWS;
        while self.disk(disk).acknowledged_writes() < wanted {
            if let Some(status) = self.machine.try_status()? {
                bail!("the machine ended ({status})");
            }
            if Instant::now() > deadline {
                let name = disk.name();
                bail!(
                    "the guest's log shows fewer than {more} new writes to the {name} disk\n{}",
                    self.machine.standstill()
                );
            }
            if Instant::now() > next_word {
                next_word += NEWS;
                let left = wanted - self.disk(disk).acknowledged_writes();
                self.say(&format!(
                    "waiting for {left} more writes to the {} disk",
                    disk.name()
                ));
            }
            std::thread::sleep(LOOK);
            self.read_log()?;
        }
        Ok(())
    }

    /// Waits for the guest to boot and write to both disks.
    pub fn wait_for_writer(&mut self) -> Result<()> {
        let mark = self
            .machine
            .wait_console("writer: started", Mark::default(), PATIENCE)?;
        self.say("the guest's writer has started");
        self.machine.wait_console("writer: t=", mark, PATIENCE)?;
        for disk in DiskKind::ALL {
            self.wait_acknowledged(disk, A_WHILE)?;
        }
        self.say("the guest writes to both disks");
        Ok(())
    }

    /// Lets the guest go on for a while.
    pub fn let_the_guest_write(&mut self) -> Result<()> {
        for disk in DiskKind::ALL {
            self.wait_acknowledged(disk, 4 * A_WHILE)?;
        }
        Ok(())
    }

    /// Issues a command.
    pub fn command(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        self.say(&format!("QMP {command} {arguments}"));
        Ok(self.qmp.execute(command, arguments)?)
    }

    /// Gives `disk` a new, empty image, and returns its generation and path.
    pub fn new_target(&mut self, disk: DiskKind) -> Result<(usize, PathBuf)> {
        let generation = self.generations[disk.number()] + 1;
        let path = self
            .images
            .create_target(disk, generation)
            .with_context(|| format!("cannot make a target image for the {} disk", disk.name()))?;
        Ok((generation, path))
    }

    /// Stops the writer, waits for the guest to power off, and judges.
    pub fn finish(mut self, pivots: Vec<Pivot>) -> Result<Report> {
        self.read_log()?;
        self.say("stopping the writer");
        let mark = self.machine.mark();
        self.machine.type_line("stop")?;
        self.machine
            .wait_console("writer: verdict", mark, PATIENCE)?;
        self.machine
            .wait_console("sluice-guest: kernel-errors", mark, PATIENCE)?;
        let status = self.machine.wait_end(PATIENCE)?;
        self.say(&format!("the machine ended: {status}"));
        self.read_log()?;
        let statements = Statements::read(&self.machine.console());
        let report = verdict::judge(&self, pivots, &statements, status)?;
        self.say("checked");
        if self.options.verbose && !report.is_good() {
            eprintln!("{}", self.machine.output());
        }
        Ok(report)
    }
}

/// Connects to the control socket, which appears soon unless the machine ends first.
fn connect(machine: &mut Machine, images: &Images) -> Result<Qmp> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Qmp::connect(&images.socket(), CONNECT) {
            Ok(qmp) => return Ok(qmp),
            Err(QmpError::Timeout { .. }) if Instant::now() < deadline => {}
            Err(error) => bail!("{error}\n{}", machine.output()),
        }
        if machine.try_status()?.is_some() {
            let status = machine.wait_end(PATIENCE)?;
            bail!("the machine ended at once ({status})\n{}", machine.output());
        }
    }
}
