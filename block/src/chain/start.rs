//! The commands `block-stream` and `block-commit`. The checks, their order and their texts are those of
//! QEMU's commands.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;
use serde::Deserialize;
use sluice_aio::AioContext;

use super::claimed::{Base, Claimed};
use super::job::{BASE_ROLE, Chain, ChainJob, CommitTop, Direction};
use super::walk::Walk;
use crate::driver::copy_on_read::CopyOnRead;
use crate::driver::{Driver, Edge, FrozenChain, Role};
use crate::error::{BlockError, Result};
use crate::graph::Graph;
use crate::graph::bitmaps::below_implicit_filters;
use crate::graph::parent::Parent;
use crate::graph::transaction::Transaction;
use crate::graph::undo::Undo;
use crate::job::{JobDriver, JobKind, JobOptions, OnError};
use crate::mirror::ActiveCommit;
use crate::node::Node;
use crate::parting::Parting;
use crate::permission::Permissions;

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
    /// What the image is to name as its backing file afterwards; no format here has a place for it.
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
    /// What the image above is to name as its backing file afterwards; no format here has a place for it.
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

fn refused(text: impl Into<String>) -> BlockError {
    BlockError::Refused(text.into())
}

/// A name that would be lost is not taken.
fn no_backing_file(image: &Node) -> BlockError {
    let name = image.name();
    refused(format!(
        "Parameter 'backing-file' can't be heeded: no image in the chain of '{name}' has a place for the name of its \
         backing file; leave it out"
    ))
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
    if arguments.backing_file.is_some() {
        return Err(no_backing_file(&unfiltered(Arc::clone(&node))));
    }
    let layer = unfiltered(Arc::clone(&node));
    let lowest = match count {
        0 => Arc::clone(&layer),
        count => unfiltered(Arc::clone(&chain[count - 1])),
    };
    let setup = Setup {
        options: JobOptions::asked_for(
            &node,
            arguments.job_id.as_deref(),
            arguments.speed,
            arguments.auto_finalize,
            arguments.auto_dismiss,
        )?,
        kind: JobKind::Stream,
        filter_name: arguments.filter_node_name.as_deref(),
        written: Arc::clone(&layer),
        least_size: None,
        lowest: Arc::clone(&lowest),
        below: Arc::clone(&node),
        nodes: chain.into_iter().take(count).collect(),
        role: None,
    };
    let work = ChainWork {
        walk: Walk {
            top: node,
            lowest,
            with_top: false,
        },
        direction: Direction::Stream { layer, base },
        on_error: arguments.on_error,
        parting: Arc::default(),
    };
    setup.start(graph, main, work).await
}

/// Pushes the data of upper images down; a disk whose topmost image is among them goes over to the base when
/// the job is completed. `main` is where the job runs if no loop serves the disk.
///
/// Call it from a task that holds no token of the disk. On an error nothing has changed.
///
/// # Errors
/// What QEMU refuses, with its texts and its class for an unknown device; and an image without a backing
/// image.
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
    // Whatever else stands against it: whoever has the disk is to be named.
    root.check_not_blocked()?;
    let chain = root.backing_chain();
    if chain.is_empty() {
        return Err(refused(format!(
            "'{device}' has no backing image, so there is nothing to commit to"
        ))
        .into());
    }
    // Where in the chain it is; none if it is the disk's own.
    let (top, place_of_top) = if let Some(name) = &arguments.top_node {
        let top = graph.node(name)?;
        if is_own_layer(&root, &top) {
            (top, None)
        } else {
            let place = place(&chain, &top);
            let place = place
                .ok_or_else(|| refused(format!("'{name}' is not in this backing file chain")))?;
            (Arc::clone(&chain[place]), Some(place))
        }
    } else if let Some(file) = &arguments.top
        && root.info().filename != *file
    {
        let place = place_of_file(&chain, file)?;
        (Arc::clone(&chain[place]), Some(place))
    } else {
        (Arc::clone(&root), None)
    };
    let base = if let Some(name) = &arguments.base_node {
        let base = graph.node(name)?;
        if is_own_layer(&root, &base) {
            return Err(refused("cannot commit an image into itself").into());
        }
        let place = place(&chain, &base);
        place.ok_or_else(|| refused(format!("'{name}' is not in this backing file chain")))?
    } else if let Some(file) = &arguments.base {
        place_of_file(&chain, file)?
    } else {
        chain.len() - 1
    };
    let between = place_of_top.map_or(0, |top| top + 1);
    if base < between {
        return Err(refused("cannot commit an image into itself").into());
    }
    let has_writer = top.access().used.contains(Permissions::WRITE);
    if arguments.backing_file.is_some() {
        let what = match place_of_top {
            None => Some("is the active layer"),
            Some(_) if has_writer => Some("has a writer on it"),
            Some(_) => None,
        };
        if let Some(what) = what {
            let text = format!("'backing-file' specified, but 'top' {what}");
            return Err(refused(text).into());
        }
        // What stands on the top is what would name the base.
        return Err(no_backing_file(&top).into());
    }
    let base_node = unfiltered(Arc::clone(&chain[base]));
    let lowest = match base {
        0 => unfiltered(Arc::clone(&top)),
        base => unfiltered(Arc::clone(&chain[base - 1])),
    };
    let is_active = place_of_top.is_none() || has_writer;
    let setup = Setup {
        options: JobOptions::asked_for(
            &root,
            arguments.job_id.as_deref(),
            arguments.speed,
            arguments.auto_finalize,
            arguments.auto_dismiss,
        )?,
        kind: JobKind::Commit,
        filter_name: arguments.filter_node_name.as_deref(),
        written: Arc::clone(&base_node),
        least_size: Some(top.len()),
        lowest: Arc::clone(&lowest),
        below: Arc::clone(&top),
        nodes: chain[between..=base].to_vec(),
        role: Some(match is_active {
            true => ActiveCommit::BASE_ROLE,
            false => BASE_ROLE,
        }),
    };
    let on_error = arguments.on_error;
    if is_active {
        let work = ActiveCommit::new(graph, &top, &base_node, lowest, on_error)?;
        return Ok(setup.start(graph, main, work).await?);
    }
    let work = ChainWork {
        walk: Walk {
            top,
            lowest,
            with_top: true,
        },
        direction: Direction::Commit { base: base_node },
        on_error,
        parting: Arc::default(),
    };
    Ok(setup.start(graph, main, work).await?)
}

/// Whether a node is the disk's topmost image, or one of the filters that `root` has above it.
fn is_own_layer(root: &Arc<Node>, node: &Arc<Node>) -> bool {
    let below = |above: &Arc<Node>| {
        let edge = above.driver().filtered();
        edge.filter(|_| above.driver().is_filter()).map(Edge::node)
    };
    let mut layer = std::iter::successors(Some(Arc::clone(root)), below);
    layer.any(|own| Arc::ptr_eq(&own, node))
}

/// What a job on a chain does, made before anything is touched.
pub(crate) trait Work {
    /// The filter that is put above `below`.
    fn filter(&self, below: &Arc<Node>) -> Box<dyn Driver>;

    /// The job under that filter, which holds what was claimed.
    fn job(self, claimed: &Arc<Claimed>) -> Box<dyn JobDriver>;
}

/// Work that is done once through the image.
struct ChainWork {
    walk: Walk,
    direction: Direction,
    on_error: OnError,
    parting: Arc<Parting>,
}

impl Work for ChainWork {
    fn filter(&self, below: &Arc<Node>) -> Box<dyn Driver> {
        match &self.direction {
            Direction::Stream { .. } => {
                let lowest = Arc::clone(&self.walk.lowest);
                let parting = Arc::clone(&self.parting);
                Box::new(CopyOnRead::of_job(below, lowest, parting))
            }
            Direction::Commit { .. } => {
                Box::new(CommitTop(Edge::new(Role::Filtered, Arc::clone(below))))
            }
        }
    }

    fn job(self, claimed: &Arc<Claimed>) -> Box<dyn JobDriver> {
        let chain = Chain {
            direction: self.direction,
            walk: self.walk,
            claimed: Arc::clone(claimed),
            parting: self.parting,
        };
        Box::new(ChainJob {
            chain: Arc::new(chain),
            on_error: self.on_error,
            changed: AtomicBool::new(false),
            left: AtomicBool::new(false),
        })
    }
}

/// A job about to be made.
struct Setup<'a> {
    options: JobOptions,
    kind: JobKind,
    filter_name: Option<&'a str>,
    /// What the filter is put above.
    below: Arc<Node>,
    /// The lowest image that is copied; the chain down to it stays as it is.
    lowest: Arc<Node>,
    /// The node that is written to.
    written: Arc<Node>,
    /// If it is shorter, it grows.
    least_size: Option<u64>,
    /// The other nodes that the job has to itself.
    nodes: Vec<Arc<Node>>,
    /// What the node that is written to is to the job, if the job writes to it by itself.
    role: Option<&'static str>,
}

impl Setup<'_> {
    async fn start(self, graph: &Arc<Graph>, main: &AioContext, work: impl Work) -> Result<()> {
        let Self {
            options,
            kind,
            filter_name,
            below,
            lowest,
            written,
            least_size,
            nodes,
            role,
        } = self;
        let blocker = kind.named(options.id.as_str());
        let mut own = vec![Arc::clone(&below)];
        for node in nodes.iter().chain([&written]) {
            if !own.iter().any(|known| Arc::ptr_eq(known, node)) {
                own.push(Arc::clone(node));
            }
        }
        let mut claim = Undo::new(graph);
        for node in &own {
            // At once: the section may have to wait, as for requests that another job has left behind.
            claim.block(node, &blocker)?;
        }
        let section = graph.drain(&written, &format!("start of a {kind}")).await;
        // What goes wrong from here on is undone inside the section.
        let mut undo = claim;
        graph.check_has(&below, below.name())?;
        let frozen = FrozenChain::new(&below, &lowest);
        let frozen = frozen.ok_or_else(|| refused("the backing chain has changed meanwhile"))?;
        let mut read_only = None;
        if written.is_read_only() {
            graph.set_read_only(&written, false)?;
            let node = Arc::clone(&written);
            undo.push(move |graph| {
                if let Err(error) = graph.set_read_only(&node, true) {
                    tracing::debug!(node = node.name(), %error, "an image stays writable");
                }
            });
            read_only = Some(Arc::clone(&written));
        }
        if let Some(size) = least_size
            && written.len() < size
        {
            written.resize(size).await?;
        }
        let driver = work.filter(&below);
        let filter = undo.insert_filter(filter_name, &below, driver, &blocker)?;
        let home = graph.home_of_job(&filter, main);
        let base = role.map(|role| Base {
            node: Arc::clone(&written),
            role,
        });
        let claimed = Arc::new(Claimed {
            graph: Arc::clone(graph),
            filter,
            below,
            base,
            frozen: Mutex::new(Some(frozen)),
            blocked: own,
            read_only: Mutex::new(read_only),
        });
        let job = work.job(&claimed);
        let attach = |change: &mut Transaction<'_>, job: &Parent| claimed.attach(change, job);
        let job = undo.create_job(options, job, home, attach)?;
        job.start();
        drop(section);
        job.begun().await;
        Ok(())
    }
}
