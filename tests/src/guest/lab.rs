//! A case's workplace: images to give to machines, and machines that run Linux.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use sluice_writer::prng::Prng;

use super::Options;
use crate::{
    process::{Machine, Mark},
    qmp::Qmp,
};

/// How long a guest may take for anything. Generous: the host may be emulated, and busy.
pub const PATIENCE: Duration = Duration::from_secs(150);

/// What the guest says when its drivers are loaded.
pub const INIT_REACHED: &str = "sluice-guest: init reached";

/// Where a case works.
pub struct Lab<'a> {
    /// What to run.
    pub options: &'a Options,
    /// The case's own directory.
    pub directory: PathBuf,
}

impl Lab<'_> {
    /// The path of a file of the case.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Makes an image of random bytes.
    pub fn random_image(&self, name: &str, bytes: usize, seed: u64) -> Result<PathBuf> {
        let mut prng = Prng::from_parts(&[seed]);
        let mut content = vec![0; bytes];
        for word in content.chunks_exact_mut(8) {
            word.copy_from_slice(&prng.next_u64().to_le_bytes());
        }
        self.image(name, &content)
    }

    /// Makes an image that holds `content`.
    pub fn image(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        let path = self.path(name);
        std::fs::write(&path, content).with_context(|| format!("cannot make {name}"))?;
        Ok(path)
    }

    /// Copies the root file system, leaving its holes holes.
    pub fn root_image(&self) -> Result<PathBuf> {
        const BLOCK: usize = 64 << 10;
        let path = self.path("root.img");
        let content = std::fs::read(&self.options.root)
            .with_context(|| format!("cannot read {}", self.options.root.display()))?;
        let file = File::create_new(&path)?;
        file.set_len(content.len() as u64)?;
        for (number, block) in content.chunks(BLOCK).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                let offset = (number * BLOCK) as u64;
                std::os::unix::fs::FileExt::write_all_at(&file, block, offset)?;
            }
        }
        Ok(path)
    }

    /// Starts a machine with the packaged kernel.
    pub fn start(&self, command_line: &str, arguments: &[&str]) -> Result<Guest> {
        self.start_kernel(&self.options.bzimage, command_line, arguments)
    }

    /// Starts a machine with this kernel.
    pub fn start_kernel(
        &self,
        kernel: &Path,
        command_line: &str,
        arguments: &[&str],
    ) -> Result<Guest> {
        let text = |path: &Path| path.display().to_string();
        let mut all = ["--kernel", &text(kernel), "--append", command_line]
            .map(str::to_owned)
            .to_vec();
        all.extend(["--initrd".to_owned(), text(&self.options.initrd)]);
        all.extend(arguments.iter().map(|word| (*word).to_owned()));
        let machine = Machine::start(&text(&self.options.sluice), all)?;
        Ok(Guest {
            machine,
            mark: Mark::default(),
        })
    }

    /// Starts a machine with a control socket and connects to it.
    pub fn start_controlled(&self, command_line: &str, arguments: &[&str]) -> Result<(Guest, Qmp)> {
        let socket = self.path("qmp.sock");
        let option = format!("unix:{},server=on,wait=off", socket.display());
        let mut all = vec!["--qmp", &option];
        all.extend(arguments);
        let guest = self.start(command_line, &all)?;
        let qmp = Qmp::connect(&socket, PATIENCE)
            .with_context(|| format!("no control socket\n{}", guest.machine.output()))?;
        Ok((guest, qmp))
    }
}

/// A machine in which Linux runs, and how far its console has been read.
pub struct Guest {
    machine: Machine,
    mark: Mark,
}

impl Guest {
    /// Waits for these words on the console, behind all that has been waited for before.
    pub fn wait(&mut self, words: &str) -> Result<()> {
        self.mark = self.machine.wait_console(words, self.mark, PATIENCE)?;
        Ok(())
    }

    /// Types a line at the console.
    pub fn type_line(&mut self, line: &str) -> Result<()> {
        Ok(self.machine.type_line(line)?)
    }

    /// Waits for the end of the process, which must have this exit status.
    pub fn ends_with(&mut self, wanted: i32) -> Result<()> {
        let status = self.machine.wait_end(PATIENCE)?;
        if status.code() != Some(wanted) {
            bail!(
                "ended with {status}, not with {wanted}\n{}",
                self.machine.output()
            );
        }
        Ok(())
    }

    /// Waits for a script to end well, without a complaint of the kernel about disks, and for the
    /// power-off. Returns what it printed.
    pub fn finish_script(&mut self) -> Result<String> {
        self.ends_with(0)?;
        let console = self.machine.console().replace('\r', "");
        for line in ["sluice-guest: exit 0\n", "sluice-guest: kernel-errors 0\n"] {
            ensure!(
                console.contains(line),
                "no line {line:?}\n{}",
                self.machine.output()
            );
        }
        Ok(console)
    }

    /// What is on the console.
    pub fn console(&self) -> String {
        self.machine.console().replace('\r', "")
    }

    /// What `sluice` itself said.
    pub fn messages(&self) -> String {
        self.machine.messages()
    }

    /// Waits until nothing comes from the console for `quiet`.
    pub fn wait_silence(&self, quiet: Duration) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let before = self.machine.mark();
            std::thread::sleep(quiet);
            if self.machine.mark() == before {
                return Ok(());
            }
        }
        bail!("the guest does not fall silent\n{}", self.machine.output())
    }
}

/// The text of the line behind `key`, up to its end.
pub fn value_of<'a>(console: &'a str, key: &str) -> Result<&'a str> {
    console
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .map(str::trim)
        .with_context(|| format!("the guest did not print {key:?}:\n{console}"))
}

/// The SHA-256 of a file as the host's own program computes it.
pub fn sha256(path: &Path) -> Result<String> {
    let output = Command::new("sha256sum").arg(path).output();
    let output = output.context("cannot run sha256sum")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let sum = text.split_whitespace().next().map(str::to_owned);
    sum.with_context(|| format!("sha256sum says nothing about {}", path.display()))
}

/// Whether two files hold the same.
pub fn same_content(one: &Path, other: &Path) -> io::Result<bool> {
    Ok(std::fs::read(one)? == std::fs::read(other)?)
}
