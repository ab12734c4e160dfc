//! The commands `block-stream` and `block-commit`. The checks, their order and their texts are those of
//! QEMU's commands.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;
use serde::Deserialize;
use sluice_aio::AioContext;

use super::job::{BASE_ROLE, ChainJob, CommitTop, Direction, FILTER_ROLE};
use super::walk::Walk;
use crate::driver::{Driver, Edge, FrozenChain, Role};
use crate::error::{BlockError, Result};
use crate::graph::Graph;
use crate::graph::bitmaps::below_implicit_filters;
use crate::graph::parent::Parent;
use crate::home::Home;
use crate::job::{CreateError, JobId, JobOptions, OnError};
use crate::node::Node;
use crate::permission::{Access, Permissions};

/// Arguments of `block-stream`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BlockStream {
    /// The job's name; the device's if not given.
    #[serde(default)]
    pub job_id: Option<String>,
    /// The image that gets the data: a device or a node.
    pub device: String,
    /// The file name of the image that stays below.
    #[serde(default)]
    pub base: Option<String>,
    /// The node of that image.
    #[serde(default)]
    pub base_node: Option<String>,
    /// The lowest image whose data is pulled up.
    #[serde(default)]
    pub bottom: Option<String>,
    /// What the image names as its backing file afterwards; none here has one in it.
    #[serde(default)]
    pub backing_file: Option<String>,
    /// Bytes per second; 0: no limit.
    #[serde(default)]
    pub speed: i64,
    /// What to do when an image can't be read, or written to.
    #[serde(default)]
    pub on_error: OnError,
    /// A name for the filter; made up if not given.
    #[serde(default)]
    pub filter_node_name: Option<String>,
    /// Finish without `job-finalize`.
    #[serde(default)]
    pub auto_finalize: Option<bool>,
    /// Go away without `job-dismiss`.
    #[serde(default)]
    pub auto_dismiss: Option<bool>,
}

/// Arguments of `block-commit`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BlockCommit {
    /// The job's name; the device's if not given.
    #[serde(default)]
    pub job_id: Option<String>,
    /// The disk whose chain it is: a device or a node.
    pub device: String,
    /// The node of the image that gets the data; the lowest if not given.
    #[serde(default)]
    pub base_node: Option<String>,
    /// Its file name.
    #[serde(default)]
    pub base: Option<String>,
    /// The node of the topmost image whose data is pushed down.
    #[serde(default)]
    pub top_node: Option<String>,
    /// Its file name.
    #[serde(default)]
    pub top: Option<String>,
    /// What the image above names as its backing file afterwards; none here has one in it.
    #[serde(default)]
    pub backing_file: Option<String>,
    /// Bytes per second; 0: no limit.
    #[serde(default)]
    pub speed: i64,
    /// What to do when an image can't be read, or written to.
    #[serde(default)]
    pub on_error: OnError,
    /// A name for the filter; made up if not given.
    #[serde(default)]
    pub filter_node_name: Option<String>,
    /// Finish without `job-finalize`.
    #[serde(default)]
    pub auto_finalize: Option<bool>,
    /// Go away without `job-dismiss`.
    #[serde(default)]
    pub auto_dismiss: Option<bool>,
}

/// Why a commit did not begin.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// No such device or node: an error of a class of its own, by which clients find out that there
    /// is the command.
    #[error("Device '{0}' not found")]
    DeviceNotFound(String),
    /// Anything else.
    #[error(transparent)]
    Other(#[from] BlockError),
}

/// All is shared but the size, which stays.
const FILTER_ACCESS: Access = Access {
    used: Permissions::empty(),
    shared: Permissions::RESIZE.complement(),
};

/// What is written there is what those above show already.
const BASE_ACCESS: Access = Access {
    used: Permissions::CONSISTENT_READ.union(Permissions::WRITE),
    shared: Permissions::CONSISTENT_READ.union(Permissions::WRITE_UNCHANGED),
};

fn refused(text: impl Into<String>) -> BlockError {
    BlockError::Refused(text.into())
}

/// The node below all filters.
fn unfiltered(mut node: Arc<Node>) -> Arc<Node> {
    while node.driver().is_filter() {
        let Some(below) = node.driver().filtered().map(Edge::node) else {
            break;
        };
        node = below;
    }
    node
}

/// The place in `chain` of the node of that name, filters above it passed over.
fn place(chain: &[Arc<Node>], node: &Arc<Node>) -> Option<usize> {
    chain.iter().position(|image| {
        Arc::ptr_eq(image, node) || Arc::ptr_eq(&unfiltered(Arc::clone(image)), node)
    })
}

/// The place in `chain` of the image with that file name.
fn place_of_file(chain: &[Arc<Node>], file: &str) -> Result<usize> {
    let found = chain.iter().position(|image| image.info().filename == file);
    found.ok_or_else(|| refused(format!("Can't find '{file}' in the backing chain")))
}

/// Pulls the data of lower images up; `main` is where the job runs if no loop serves the disk.
///
/// Call it from a task that holds no token of the disk. On an error nothing has changed.
///
/// # Errors
/// What QEMU refuses, with its texts; and an image without a backing image.
pub async fn block_stream(
    graph: &Arc<Graph>,
    arguments: &BlockStream,
    main: &AioContext,
) -> Result<()> {
    let BlockStream {
        base,
        base_node,
        bottom,
        ..
    } = arguments;
    let both = |one: &str, other: &str| {
        refused(format!(
            "'{one}' and '{other}' cannot be specified at the same time"
        ))
    };
    if base.is_some() && base_node.is_some() {
        return Err(both("base", "base-node"));
    }
    if base.is_some() && bottom.is_some() {
        return Err(both("base", "bottom"));
    }
    if bottom.is_some() && base_node.is_some() {
        return Err(both("bottom", "base-node"));
    }
    let node = graph.device_or_node(&arguments.device)?;
    node.check_not_blocked()?;
    let chain = node.backing_chain();
    if chain.is_empty() {
        return Err(refused(format!(
            "'{}' has no backing image, so there is nothing to stream",
            arguments.device
        )));
    }
    // How many images are pulled up.
    let count = if let Some(file) = base {
        place_of_file(&chain, file)?
    } else if let Some(name) = base_node {
        let base = graph.node(name)?;
        place(&chain, &base).ok_or_else(|| {
            let device = &arguments.device;
            refused(format!(
                "Node '{name}' is not a backing image of '{device}'"
            ))
        })?
    } else if let Some(name) = bottom {
        let bottom = graph.node(name)?;
        if bottom.driver().is_filter() {
            return Err(refused(format!(
                "Node '{name}' is a filter, use a non-filter node as 'bottom'"
            )));
        }
        let place = place(&chain, &bottom).ok_or_else(|| {
            let device = &arguments.device;
            refused(format!(
                "Node '{name}' is not in a chain starting from '{device}'"
            ))
        })?;
        place + 1
    } else {
        chain.len()
    };
    let base = chain.get(count).cloned();
    if arguments.backing_file.is_some() && base.is_none() {
        return Err(refused(
            "backing file specified, but streaming the entire chain",
        ));
    }
    let layer = unfiltered(Arc::clone(&node));
    let lowest = match count {
        0 => Arc::clone(&layer),
        count => unfiltered(Arc::clone(&chain[count - 1])),
    };
    let setup = Setup {
        options: options(
            &node,
            arguments.job_id.as_deref(),
            arguments.speed,
            (arguments.auto_finalize, arguments.auto_dismiss),
        )?,
        filter_name: arguments.filter_node_name.as_deref(),
        walk: Walk {
            top: Arc::clone(&node),
            lowest,
            with_top: false,
            on_error: arguments.on_error,
        },
        below: node,
        direction: Direction::Stream { layer, base },
        nodes: chain.into_iter().take(count).collect(),
    };
    setup.start(graph, main).await
}

/// Pushes the data of upper images down; `main` is where the job runs if no loop serves the disk.
///
/// Call it from a task that holds no token of the disk. On an error nothing has changed.
///
/// # Errors
/// What QEMU refuses, with its texts and its class for an unknown device; an image without a backing
/// image; and the topmost image of a disk, which the guest writes to.
pub async fn block_commit(
    graph: &Arc<Graph>,
    arguments: &BlockCommit,
    main: &AioContext,
) -> std::result::Result<(), CommitError> {
    let device = &arguments.device;
    let root = graph.device_or_node(device).map_err(|error| match error {
        BlockError::NoMedium(_) => CommitError::Other(error),
        _ => CommitError::DeviceNotFound(device.clone()),
    })?;
    let both =
        |one: &str, other: &str| refused(format!("'{one}' and '{other}' are mutually exclusive"));
    if arguments.top_node.is_some() && arguments.top.is_some() {
        return Err(both("top-node", "top").into());
    }
    if arguments.base_node.is_some() && arguments.base.is_some() {
        return Err(both("base-node", "base").into());
    }
    let root = below_implicit_filters(root);
    let chain = root.backing_chain();
    if chain.is_empty() {
        return Err(refused(format!(
            "'{device}' has no backing image, so there is nothing to commit to"
        ))
        .into());
    }
    let top =
        if let Some(name) = &arguments.top_node {
            let top = graph.node(name)?;
            if Arc::ptr_eq(&top, &root) || Arc::ptr_eq(&top, &unfiltered(Arc::clone(&root))) {
                None
            } else {
                let place = place(&chain, &top);
                Some(place.ok_or_else(|| {
                    refused(format!("'{name}' is not in this backing file chain"))
                })?)
            }
        } else if let Some(file) = &arguments.top {
            match root.info().filename == *file {
                true => None,
                false => Some(place_of_file(&chain, file)?),
            }
        } else {
            None
        };
    let Some(top) = top else {
        return Err(refused(format!(
            "'{device}' is written to by its guest, and such an image can't be committed yet; put a \
             snapshot above it and commit it by 'top-node'"
        ))
        .into());
    };
    let base = if let Some(name) = &arguments.base_node {
        let base = graph.node(name)?;
        let place = place(&chain, &base);
        place.ok_or_else(|| refused(format!("'{name}' is not in this backing file chain")))?
    } else if let Some(file) = &arguments.base {
        place_of_file(&chain, file)?
    } else {
        chain.len() - 1
    };
    if base <= top {
        return Err(refused("cannot commit an image into itself").into());
    }
    let below = Arc::clone(&chain[top]);
    let base_node = unfiltered(Arc::clone(&chain[base]));
    let setup = Setup {
        options: options(
            &root,
            arguments.job_id.as_deref(),
            arguments.speed,
            (arguments.auto_finalize, arguments.auto_dismiss),
        )?,
        filter_name: arguments.filter_node_name.as_deref(),
        walk: Walk {
            top: Arc::clone(&below),
            lowest: unfiltered(Arc::clone(&chain[base - 1])),
            with_top: true,
            on_error: arguments.on_error,
        },
        below,
        direction: Direction::Commit { base: base_node },
        nodes: chain[top + 1..=base].to_vec(),
    };
    Ok(setup.start(graph, main).await?)
}

fn options(
    node: &Node,
    job_id: Option<&str>,
    speed: i64,
    (auto_finalize, auto_dismiss): (Option<bool>, Option<bool>),
) -> Result<JobOptions> {
    let as_text = |error: CreateError| refused(error.to_string());
    let backends = node.backends();
    let backend = backends.first().map(|backend| backend.name());
    let id = JobId::choose(job_id, backend).map_err(as_text)?;
    let mut options = JobOptions::new(id).with_speed(speed).map_err(as_text)?;
    options.auto_finalize = auto_finalize.unwrap_or(true);
    options.auto_dismiss = auto_dismiss.unwrap_or(true);
    Ok(options)
}

/// A job about to be made.
struct Setup<'a> {
    options: JobOptions,
    filter_name: Option<&'a str>,
    walk: Walk,
    /// What the filter is put above.
    below: Arc<Node>,
    direction: Direction,
    /// The other nodes that the job has to itself.
    nodes: Vec<Arc<Node>>,
}

impl Setup<'_> {
    async fn start(self, graph: &Arc<Graph>, main: &AioContext) -> Result<()> {
        let Self {
            options,
            filter_name,
            walk,
            below,
            direction,
            nodes,
        } = self;
        let kind = direction.kind().name();
        let blocker = format!("{kind} '{}'", options.id);
        let written = Arc::clone(direction.written());
        let section = graph.drain(&written, &format!("start of a {kind}")).await;
        let mut undo = Undo::new(graph);
        let mut own = vec![Arc::clone(&below)];
        for node in nodes.iter().chain([&written]) {
            if !own.iter().any(|known| Arc::ptr_eq(known, node)) {
                own.push(Arc::clone(node));
            }
        }
        for node in own {
            node.block(&blocker)?;
            undo.blocked.push(node);
        }
        let frozen = FrozenChain::new(&below, &walk.lowest);
        let frozen = frozen.ok_or_else(|| refused("the backing chain has changed meanwhile"))?;
        if written.is_read_only() {
            graph.set_read_only(&written, false)?;
            undo.read_only = Some(Arc::clone(&written));
        }
        if let Direction::Commit { base } = &direction
            && base.len() < walk.top.len()
        {
            base.resize(walk.top.len()).await?;
        }
        let driver: Box<dyn Driver> = match &direction {
            Direction::Stream { .. } => {
                let lowest = Arc::clone(&walk.lowest);
                let filter = crate::driver::copy_on_read::CopyOnRead::of_job(&below, lowest);
                Box::new(filter)
            }
            Direction::Commit { .. } => {
                Box::new(CommitTop(Edge::new(Role::Filtered, Arc::clone(&below))))
            }
        };
        let filter = graph.insert_filter(filter_name, &below, driver)?;
        undo.filter = Some((Arc::clone(&filter), Arc::clone(&below)));
        filter.block(&blocker)?;
        let home = home(graph, &filter, main);
        let is_commit = matches!(direction, Direction::Commit { .. });
        let job = ChainJob {
            graph: Arc::clone(graph),
            direction,
            walk,
            filter: Arc::clone(&filter),
            below,
            frozen: Mutex::new(Some(frozen)),
            blocked: undo.blocked.clone(),
            was_read_only: undo.read_only.is_some(),
            changed: AtomicBool::new(false),
        };
        let job = graph.jobs().create(options, Box::new(job), home);
        let job = job.map_err(|error| refused(error.to_string()))?;
        let mut change = graph.transaction();
        change.attach(&filter, Parent::job(&job), FILTER_ROLE, FILTER_ACCESS);
        if is_commit {
            change.attach(&written, Parent::job(&job), BASE_ROLE, BASE_ACCESS);
        }
        if let Err(error) = change.commit() {
            job.discard();
            return Err(error);
        }
        undo.forget();
        job.start();
        drop(section);
        Ok(())
    }
}

/// Where the job runs: where a device of the disk is served, or the node is at home.
fn home(graph: &Graph, filter: &Arc<Node>, main: &AioContext) -> Home {
    let above = graph.backends_above(filter);
    let context = above.first().and_then(|backend| backend.context());
    let of_device = context.map(|context| Home::from(&context));
    of_device
        .or_else(|| filter.home())
        .unwrap_or_else(|| main.into())
}

/// What was done so far, which is undone if the rest fails.
struct Undo<'a> {
    graph: &'a Graph,
    blocked: Vec<Arc<Node>>,
    read_only: Option<Arc<Node>>,
    filter: Option<(Arc<Node>, Arc<Node>)>,
}

impl<'a> Undo<'a> {
    fn new(graph: &'a Graph) -> Self {
        Self {
            graph,
            blocked: Vec::new(),
            read_only: None,
            filter: None,
        }
    }

    fn forget(mut self) {
        self.blocked.clear();
        self.read_only = None;
        self.filter = None;
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Some((filter, below)) = self.filter.take() {
            if let Err(error) = self.graph.replace_node(&filter, &below) {
                tracing::error!(%error, "the job's filter can't be taken out");
            }
            self.graph.remove_if_unused(&filter);
        }
        if let Some(node) = self.read_only.take()
            && let Err(error) = self.graph.set_read_only(&node, true)
        {
            tracing::debug!(node = node.name(), %error, "an image stays writable");
        }
        for node in self.blocked.drain(..) {
            node.unblock();
        }
    }
}
