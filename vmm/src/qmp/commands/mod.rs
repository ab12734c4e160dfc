//! The commands: a table from name to function, and the functions by subject.
//!
//! A command is an `async fn(Arc<Monitor>, Arguments) -> Result<Reply, QmpError>`. Its arguments are
//! read by [`crate::qmp::input`], so a command's type is its whole syntax. Commands run in the main
//! context and must not block it.

mod backup;
mod bitmaps;
mod block;
mod chain;
mod debug;
mod descriptors;
mod devices;
mod drains;
mod exits;
mod general;
mod graph;
mod human;
mod jobs;
mod latency;
mod loops;
mod machine;
mod media;
mod mirror;
mod objects;
mod qom;
mod records;
mod stats;
mod throttle;
mod transaction;

use std::future::Future;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sluice_aio::AioContext;
use sluice_block::Graph;

use super::descriptors::Descriptors;
use super::error::QmpError;
use super::input::{self, Scalars};
use super::schema::{self, Shape};
use super::session::{self, AfterReply};
use crate::chardev::Chardevs;
use crate::console::Printer;
use crate::control::{LocalFuture, VmControl};
use crate::iothreads::IoThreads;
pub use devices::Devices;
pub use human::QemuIo;
pub(super) use human::{Show, human_line};

/// All that commands work on.
#[derive(Clone)]
pub struct Monitor {
    /// Nodes, backends and jobs.
    pub graph: Arc<Graph>,
    /// The machine.
    pub vm: Arc<dyn VmControl>,
    /// The I/O threads.
    pub iothreads: Arc<IoThreads>,
    /// The devices that the guest sees; none on a machine without buses.
    pub devices: Option<Arc<Devices>>,
    /// The character devices.
    pub chardevs: Arc<Chardevs>,
    /// What the client that asks has sent along; each client gets its own.
    pub descriptors: Arc<Descriptors>,
    /// Requests made by hand.
    pub qemu_io: Arc<QemuIo>,
    /// Where they say what they have to say.
    pub printer: Arc<Printer>,
    /// The loop that the monitor itself runs in; jobs on disks without an I/O thread run there.
    pub main: AioContext,
}

/// One command.
pub(super) struct Command {
    name: &'static str,
    arguments: fn() -> Shape,
    reply: fn() -> Shape,
    run: fn(Arc<Monitor>, Value) -> LocalFuture<'static, Result<Value, QmpError>>,
    after_reply: Option<AfterReply>,
    out_of_band: bool,
    /// Whether clients are told of it. Commands that can't do anything here yet are not: they are there to say so, and
    /// what does it instead.
    announced: bool,
}

/// Whether there are drivers with backing images: tests have some, in memory.
pub(super) const CHAINS: bool = cfg!(feature = "test-hooks");

/// Builds the table: `"name" => function`; for commands of which a part must wait until the
/// client has the reply, `"name" => function, then function`; `"name" => function => oob` for those that wait
/// for nothing, and may overtake others; and `"name" => function => chains` for those that need [`CHAINS`].
macro_rules! commands {
    ($($name:literal => $run:path $(, then $after:path)? $(=> $kind:ident)?;)*) => {
        const COMMANDS: &[Command] = &[$(Command {
            name: $name,
            arguments: || arguments_of($run),
            reply: || reply_of($run),
            run: |monitor, arguments| Box::pin(invoke(monitor, arguments, $run)),
            after_reply: commands!(@after $($after)?),
            out_of_band: commands!(@is_oob $($kind)?),
            announced: commands!(@is_announced $($kind)?),
        }),*];
    };
    (@is_oob oob) => { true };
    (@is_oob $($other:ident)?) => { false };
    (@is_announced chains) => { CHAINS };
    (@is_announced $($other:ident)?) => { true };
    (@after) => { None };
    (@after $after:path) => { Some($after) };
}

commands! {
    "add-fd" => descriptors::add_fd;
    "block-commit" => chain::block_commit => chains;
    "block-dirty-bitmap-add" => bitmaps::add;
    "block-dirty-bitmap-clear" => bitmaps::clear;
    "block-dirty-bitmap-disable" => bitmaps::disable;
    "block-dirty-bitmap-enable" => bitmaps::enable;
    "block-dirty-bitmap-merge" => bitmaps::merge;
    "block-dirty-bitmap-remove" => bitmaps::remove;
    "block-job-cancel" => jobs::block_job_cancel => oob;
    "block-job-change" => jobs::block_job_change;
    "block-job-complete" => jobs::block_job_complete;
    "block-job-dismiss" => jobs::block_job_dismiss;
    "block-job-finalize" => jobs::block_job_finalize;
    "block-job-pause" => jobs::block_job_pause;
    "block-job-resume" => jobs::block_job_resume;
    "block-job-set-speed" => jobs::block_job_set_speed;
    "block-latency-histogram-set" => latency::block_latency_histogram_set;
    "block-stream" => chain::block_stream => chains;
    "block_resize" => graph::block_resize;
    "block_set_io_throttle" => throttle::block_set_io_throttle;
    "blockdev-add" => block::blockdev_add;
    "blockdev-backup" => backup::blockdev_backup;
    "blockdev-change-medium" => media::blockdev_change_medium;
    "blockdev-close-tray" => media::blockdev_close_tray;
    "blockdev-del" => block::blockdev_del;
    "blockdev-insert-medium" => media::blockdev_insert_medium;
    "blockdev-mirror" => mirror::blockdev_mirror;
    "blockdev-open-tray" => media::blockdev_open_tray;
    "blockdev-remove-medium" => media::blockdev_remove_medium;
    "blockdev-reopen" => graph::blockdev_reopen;
    "blockdev-snapshot" => graph::blockdev_snapshot => chains;
    "blockdev-snapshot-sync" => graph::blockdev_snapshot_sync => chains;
    "closefd" => descriptors::closefd;
    "cont" => general::cont;
    "device-list-properties" => qom::device_list_properties;
    "device_add" => devices::device_add;
    "device_del" => devices::device_del;
    "drive-backup" => backup::drive_backup;
    "drive-mirror" => mirror::drive_mirror;
    "eject" => media::eject;
    "getfd" => descriptors::getfd;
    "human-monitor-command" => human::human_monitor_command;
    "job-cancel" => jobs::job_cancel => oob;
    "job-complete" => jobs::job_complete;
    "job-dismiss" => jobs::job_dismiss;
    "job-finalize" => jobs::job_finalize;
    "job-pause" => jobs::job_pause;
    "job-resume" => jobs::job_resume;
    "object-add" => objects::object_add;
    "object-del" => objects::object_del;
    "qom-get" => objects::qom_get;
    "qom-list" => qom::qom_list;
    "qom-list-properties" => qom::qom_list_properties;
    "qom-list-types" => qom::qom_list_types;
    "qom-set" => objects::qom_set;
    "query-block" => block::query_block;
    "query-block-jobs" => jobs::query_block_jobs => oob;
    "query-blockstats" => stats::query_blockstats;
    "query-chardev" => machine::query_chardev;
    "query-commands" => general::query_commands;
    "query-cpus-fast" => machine::query_cpus_fast;
    "query-fdsets" => descriptors::query_fdsets;
    "query-iothreads" => objects::query_iothreads;
    "query-jobs" => jobs::query_jobs => oob;
    "query-kvm" => general::query_kvm;
    "query-machines" => machine::query_machines;
    "query-name" => general::query_name;
    "query-named-block-nodes" => block::query_named_block_nodes;
    "query-qmp-schema" => general::query_qmp_schema;
    "query-status" => general::query_status => oob;
    "query-uuid" => machine::query_uuid;
    "query-version" => general::query_version;
    "quit" => general::quit, then general::after_quit;
    "remove-fd" => descriptors::remove_fd;
    "stop" => general::stop;
    "system_powerdown" => general::system_powerdown;
    "system_reset" => general::system_reset;
    "transaction" => transaction::transaction;
    "x-block-job-complete-group" => jobs::complete_group;
    "x-blockdev-set-iothread" => graph::set_iothread;
    "x-debug-block-dirty-bitmap-sha256" => bitmaps::sha256;
    "x-debug-break" => debug::set_break;
    "x-debug-query-block-graph" => graph::query_block_graph;
    "x-debug-resume" => debug::resume => oob;
    "x-debug-wait-break" => debug::wait_break;
    "x-query-block-drains" => drains::query_block_drains => oob;
    "x-query-exit-times" => exits::query_exit_times;
    "x-query-iothread-stats" => loops::query_iothread_stats;
}

/// A command as the schema tells of it.
pub(super) struct Described {
    pub(super) name: &'static str,
    pub(super) arguments: Shape,
    pub(super) reply: Shape,
    pub(super) out_of_band: bool,
}

/// All commands that clients are told of, that of the negotiation among them.
pub(super) fn described() -> impl Iterator<Item = Described> {
    let negotiation = Described {
        name: session::NEGOTIATION,
        arguments: schema::shape_of::<session::NegotiationArguments>(),
        reply: Shape::Object(Vec::new()),
        out_of_band: false,
    };
    let others = announced().map(|command| Described {
        name: command.name,
        arguments: (command.arguments)(),
        reply: (command.reply)(),
        out_of_band: command.out_of_band,
    });
    std::iter::once(negotiation).chain(others)
}

/// The shapes of arguments that are read in several steps, by the newtypes that stand for them, and of records that
/// are part of themselves.
pub(super) fn named_shape(name: &str) -> Option<Shape> {
    mirror::named_shape(name)
        .or_else(|| backup::named_shape(name))
        .or_else(|| bitmaps::named_shape(name))
        .or_else(|| devices::named_shape(name))
        .or_else(|| graph::named_shape(name))
        .or_else(|| records::named_shape(name))
        .or_else(|| stats::named_shape(name))
        .or_else(|| transaction::named_shape(name))
}

/// What a command's arguments are read from.
fn arguments_of<A: DeserializeOwned, F>(_: impl FnOnce(Arc<Monitor>, A) -> F) -> Shape {
    schema::shape_of::<A>()
}

/// What a command's reply is written from.
fn reply_of<A, R, F>(_: impl FnOnce(Arc<Monitor>, A) -> F) -> Shape
where
    R: JsonSchema,
    F: Future<Output = Result<R, QmpError>>,
{
    schema::shape_of_reply::<R>()
}

/// The names in the table, of commands that clients are told of.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    announced().map(|command| command.name)
}

fn announced() -> impl Iterator<Item = &'static Command> {
    COMMANDS.iter().filter(|command| command.announced)
}

impl Monitor {
    /// The same for another client.
    pub(super) fn for_client(&self) -> Arc<Self> {
        Arc::new(Self {
            descriptors: Arc::default(),
            ..self.clone()
        })
    }
}

impl Command {
    /// The command of that name.
    pub(super) fn find(name: &str) -> Option<&'static Self> {
        COMMANDS.iter().find(|command| command.name == name)
    }

    /// Executes it.
    pub(super) async fn run(
        &self,
        monitor: Arc<Monitor>,
        arguments: Value,
    ) -> Result<Value, QmpError> {
        (self.run)(monitor, arguments).await
    }

    /// Whether it waits for nothing, so that it may overtake other commands.
    pub(super) fn is_allowed_out_of_band(&self) -> bool {
        self.out_of_band
    }

    /// Whether it changes nothing, so that nobody misses its end when the client is gone.
    pub(super) fn only_asks(&self) -> bool {
        const PREFIXES: [&str; 4] = ["query-", "x-query-", "x-debug-query-", "x-debug-wait-"];
        PREFIXES.iter().any(|prefix| self.name.starts_with(prefix))
    }

    /// What it does after the reply.
    pub(super) fn after_reply(&self) -> Option<AfterReply> {
        self.after_reply
    }
}

async fn invoke<A, R, F>(
    monitor: Arc<Monitor>,
    arguments: Value,
    function: impl FnOnce(Arc<Monitor>, A) -> F,
) -> Result<Value, QmpError>
where
    A: DeserializeOwned,
    R: Serialize,
    F: Future<Output = Result<R, QmpError>>,
{
    let arguments = input::from_value(arguments, Scalars::Typed)?;
    let reply = function(monitor, arguments).await?;
    serde_json::to_value(reply).map_err(|error| QmpError::generic(error.to_string()))
}

/// The arguments of a command that takes none.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoArguments {}

/// The reply of a command that has nothing to tell: `{}`.
#[derive(Debug, JsonSchema, Serialize)]
pub(super) struct Done {}
