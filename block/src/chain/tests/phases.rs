//! What may be asked of a disk while a job on its chain runs, phase by phase and under the guest's writes: as
//! `docs/jobs.md` says.

use super::homes::Guest;
use super::*;
use crate::graph::{BitmapAction, BitmapAdd};
use crate::job::tests::page::table;
use crate::transaction::{Action, CompletionMode, transact};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Stream,
    Commit,
    ActiveCommit,
}

/// All phases in which a job stays; see [`Kind::has`].
pub(super) const PHASES: [JobState; 6] = [
    JobState::Running,
    JobState::Paused,
    JobState::Ready,
    JobState::Standby,
    JobState::Pending,
    JobState::Concluded,
];

impl Kind {
    /// As the page calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Commit => "commit",
            Self::ActiveCommit => "active commit",
        }
    }

    pub(super) const ALL: [Self; 3] = [Self::Stream, Self::Commit, Self::ActiveCommit];

    pub(super) fn has(self, phase: JobState) -> bool {
        self == Self::ActiveCommit || !matches!(phase, JobState::Ready | JobState::Standby)
    }
}

const OTHER_CHILD: &str = "blockdev-reopen` of the disk with another child";

const DELETE_TARGET: &str = "blockdev-del` of the target (when a mirror has ended the disk has it)";

/// The actions of the table that are a matter of the graph.
const PLAYED: [&str; 9] = [
    "block_resize` of the disk",
    "a second job on the disk",
    "block_resize` of the target",
    "blockdev-reopen` of the disk with other options",
    OTHER_CHILD,
    "blockdev-snapshot` of the disk",
    DELETE_TARGET,
    "block-dirty-bitmap-add` to the disk",
    "transaction` about the disk",
];

impl Bench {
    /// Brings a job to a phase in which it stays.
    pub(super) async fn reach(&self, kind: Kind, phase: JobState, guest: &Guest) -> Arc<Job> {
        let all = json!({"speed": 1, "auto-finalize": false});
        let job = match kind {
            Kind::Stream => self.stream(&all).await.unwrap(),
            Kind::Commit => {
                let all = with(all, &json!({"top-node": "image2", "base-node": "image1"}));
                self.commit(&all).await.unwrap()
            }
            Kind::ActiveCommit => {
                let debug = self.debug();
                let debug = debug.as_blkdebug().unwrap();
                debug.set_break(DebugEvent::ReadAio, "copy").unwrap();
                let job = self.commit(&all).await.unwrap();
                debug.wait_break("copy").await.unwrap();
                // All may be one copy. So that something is left to be done after it:
                guest.goes_on().await;
                debug.resume("copy").unwrap();
                job
            }
        };
        wait_for(&job, JobState::Running).await;
        if phase == JobState::Running {
            return job;
        }
        if phase == JobState::Paused {
            job.pause().unwrap();
            wait_for(&job, phase).await;
            return job;
        }
        job.set_speed(0).unwrap();
        if kind == Kind::ActiveCommit {
            wait_for(&job, JobState::Ready).await;
            match phase {
                JobState::Ready => return job,
                JobState::Standby => job.pause().unwrap(),
                _ => job.complete().unwrap(),
            }
        }
        if phase == JobState::Concluded {
            wait_for(&job, JobState::Pending).await;
            job.finalize().unwrap();
        }
        wait_for(&job, phase).await;
        job
    }

    /// From a phase to the job's good end.
    pub(super) async fn finish(&self, job: &Arc<Job>, kind: Kind, phase: JobState) {
        if phase != JobState::Concluded {
            if phase != JobState::Pending {
                job.set_speed(0).unwrap();
            }
            if matches!(phase, JobState::Paused | JobState::Standby) {
                job.resume().unwrap();
            }
            if kind == Kind::ActiveCommit && phase != JobState::Pending {
                wait_for(job, JobState::Ready).await;
                job.complete().unwrap();
            }
            wait_for(job, JobState::Pending).await;
            job.finalize().unwrap();
        }
        assert_eq!(end(job).await, None, "{kind:?} {phase}");
    }

    /// Nobody holds anything any more, and the chain is what the job has made of it.
    pub(super) fn check_shortened(&self, kind: Kind) {
        self.check_idle();
        let chain: &[&str] = match kind {
            Kind::Stream => &[],
            Kind::Commit => &["image1", "image0"],
            Kind::ActiveCommit => &[],
        };
        assert_eq!(self.chain(), chain, "{kind:?}");
        let root = match kind {
            Kind::ActiveCommit => "image0",
            _ => "debug",
        };
        assert_eq!(self.disk.node().unwrap().name(), root);
    }

    /// What an operator asks in the table, as far as it is a matter of the graph. The job's images are `image1` and
    /// those above it, and to all but an intermediate commit those below.
    async fn act(&self, action: &str, kind: Kind) -> crate::error::Result<()> {
        let graph = &self.graph;
        let add: BitmapAdd = serde_json::from_value(json!({"node": "disk", "name": "b"})).unwrap();
        let add = BitmapAction::Add(add);
        let size = (SIZE + CLUSTER) as u64;
        // The image that the job writes to, or what is left of it.
        let target = match kind {
            Kind::Stream => "image3",
            Kind::Commit => "image1",
            Kind::ActiveCommit => "image0",
        };
        let target = graph.node(target).unwrap();
        match action {
            "block_resize` of the disk" => {
                let root = self.disk.node().unwrap();
                graph.resize(&root, size).await
            }
            "block_resize` of the target" => {
                if target.is_read_only() {
                    // When all is over that is what refuses it.
                    graph.set_read_only(&target, false).unwrap();
                }
                graph.resize(&target, size).await
            }
            "a second job on the disk" => {
                let node = serde_json::from_value(
                    json!({"driver": "null-co", "node-name": "copy", "size": SIZE}),
                );
                graph.add_node(&node.unwrap()).await.unwrap();
                let common = json!({
                    "device": "disk", "job-id": "second", "sync": "full", "speed": 1
                });
                let second = crate::backup::BlockdevBackup {
                    common: serde_json::from_value(common).unwrap(),
                    target: "copy".to_owned(),
                };
                crate::backup::blockdev_backup(graph, &second, &current::context()).await
            }
            "blockdev-reopen` of the disk with other options" => {
                let options = json!({
                    "driver": "blkdebug", "node-name": "debug", "image": "image3", "detect-zeroes": "on"
                });
                graph
                    .reopen(&[serde_json::from_value(options).unwrap()])
                    .await
            }
            OTHER_CHILD => {
                let child = graph.add_overlay("child", SIZE, None).unwrap();
                drop(child);
                let options = json!({"driver": "blkdebug", "node-name": "debug", "image": "child"});
                graph
                    .reopen(&[serde_json::from_value(options).unwrap()])
                    .await
            }
            "blockdev-snapshot` of the disk" => {
                let overlay = graph.add_overlay("over", SIZE, None).unwrap();
                let root = self.disk.node().unwrap();
                graph.snapshot(&root, &overlay).await.map(drop)
            }
            DELETE_TARGET => graph.del_node(target.name()),
            "block-dirty-bitmap-add` to the disk" => graph.change_bitmap(&add),
            "transaction` about the disk" => {
                let actions = [Action::Bitmap(add)];
                let main = current::context();
                transact(graph, &actions, CompletionMode::Individual, &main).await
            }
            _ => panic!("{action}"),
        }
    }
}

#[test]
fn what_may_be_asked_meanwhile_is_published() {
    let (columns, rows) = table("action");
    let (_, own) = table("job: action");
    for kind in Kind::ALL {
        for phase in PHASES.into_iter().filter(|phase| kind.has(*phase)) {
            let column = columns.iter().position(|name| *name == phase.name());
            let column = column.unwrap();
            for action in PLAYED {
                let of_all = rows.iter().find(|(name, _)| name == action);
                // What is said of this kind alone.
                let own = own.iter().find(|(name, _)| {
                    name.strip_prefix(kind.name()).is_some_and(|rest| {
                        rest.trim_start_matches(": ").trim_start_matches('`') == action
                    })
                });
                let row = own.or(of_all);
                let answer = row.unwrap().1[column].clone();
                run_in(
                    column % 2 == 0,
                    Clock::real(),
                    32,
                    move |bench| async move {
                        bench.play(kind, phase, action, &answer).await;
                    },
                );
            }
        }
    }
}

impl Bench {
    async fn play(&self, kind: Kind, phase: JobState, action: &str, answer: &str) {
        let guest = Guest::boot(self).await;
        let job = self.reach(kind, phase, &guest).await;
        guest.goes_on().await;
        let done = self.act(action, kind).await;
        guest.goes_on().await;
        let text = format!("{kind:?}, {action} when {phase}: {done:?}");
        let ended = phase == JobState::Concluded;
        // It has other bytes.
        let changed = action == OTHER_CHILD && done.is_ok();
        match (answer, done) {
            ("now", Ok(())) => {}
            ("refused", Err(error)) => {
                let why: &[&str] = if ended {
                    &["in use", "conflict"]
                } else {
                    &["is busy"]
                };
                let error = error.to_string();
                assert!(why.iter().any(|why| error.contains(why)), "{text}");
            }
            (answer, _) => panic!("not {answer}: {text}"),
        }
        drop(job.cancel(true));
        end(&job).await;
        let memory = guest.shut_down().await;
        if !changed {
            assert!(self.shown().await == memory, "{text}");
        }
    }
}
