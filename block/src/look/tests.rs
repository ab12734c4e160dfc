use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt as _;
use serde_json::json;
use sluice_aio::{Clock, EventLoop, LoopConfig};

use super::*;
use crate::driver::{BlockFuture, Driver, Role};
use crate::event::{BlockEvent, EventSink};
use crate::graph::Graph;
use crate::node::Owner;

/// Whether and how often media have been asked.
#[derive(Debug, Default)]
struct Asked {
    times: AtomicUsize,
    /// They answer one question each time this is notified.
    answers: Event,
}

/// A protocol whose file system may hang.
#[derive(Debug)]
struct Medium(Arc<Asked>);

impl Driver for Medium {
    fn format_name(&self) -> &'static str {
        "medium"
    }

    fn size(&self) -> u64 {
        1 << 20
    }

    fn actual_size(&self) -> BlockFuture<'_, Option<u64>> {
        let times = self.0.times.fetch_add(1, Ordering::SeqCst) as u64 + 1;
        let answer = self.0.answers.listen();
        BlockFuture::new(async move {
            answer.await;
            Ok(Some(times))
        })
    }
}

/// A node above another.
#[derive(Debug)]
struct Above(Edge);

impl Driver for Above {
    fn format_name(&self) -> &'static str {
        "above"
    }

    fn filtered(&self) -> Option<&Edge> {
        Some(&self.0)
    }
}

fn node(name: &str, driver: impl Driver + 'static) -> Arc<Node> {
    Node::new(name.to_owned(), Box::new(driver), false, Owner::Monitor)
}

struct Silence;

impl EventSink for Silence {
    fn emit(&self, _event: BlockEvent) {}
}

async fn settle() {
    for _ in 0..20 {
        current::yield_now().await;
    }
}

/// Runs `test` on a clock that only it moves, with a medium, a node of it and one above that.
fn run<F: Future<Output = ()> + 'static>(
    test: impl FnOnce(Clock, Arc<Asked>, Arc<Node>, Arc<Node>) -> F + 'static,
) {
    let clock = Clock::manual();
    let config = LoopConfig {
        clock: clock.clone(),
        ..LoopConfig::default()
    };
    let asked = Arc::new(Asked::default());
    let medium = node("medium", Medium(Arc::clone(&asked)));
    let above = node("above", Above(Edge::new(Role::File, Arc::clone(&medium))));
    let mut event_loop = EventLoop::new("main", &config).unwrap();
    event_loop
        .run_until(async move { test(clock, asked, medium, above).await })
        .unwrap();
}

#[test]
fn queries_share_one_look_and_leave_nothing_behind() {
    run(|_, asked, medium, above| async move {
        let queries: Vec<_> = (0..10)
            .map(|_| current::spawn_local(look_at([Arc::clone(&above), Arc::clone(&medium)])))
            .collect();
        settle().await;
        assert_eq!(asked.times.load(Ordering::SeqCst), 1);
        asked.answers.notify(usize::MAX);
        for query in queries {
            query.await.unwrap();
        }
        assert_eq!(above.actual_size(), Some(1));
        assert_eq!(medium.actual_size(), Some(1));
        // Later ones do not go by what was so once.
        let again = current::spawn_local(look_at([Arc::clone(&above)]));
        settle().await;
        asked.answers.notify(usize::MAX);
        again.await.unwrap();
        assert_eq!(above.actual_size(), Some(2));
        assert_eq!(Arc::strong_count(&above), 1);
    });
}

#[test]
fn a_query_does_without_what_a_file_system_does_not_say() {
    run(|clock, asked, medium, above| async move {
        let healthy = node(
            "healthy",
            crate::driver::null::Null::co(&serde_json::from_value(json!({})).unwrap()).unwrap(),
        );
        let nodes = [&above, &medium, &healthy].map(Arc::clone);
        let known = current::spawn_local(look_at(nodes.clone()));
        settle().await;
        asked.answers.notify(usize::MAX);
        known.await.unwrap();
        assert_eq!(above.actual_size(), Some(1));

        let mut query = current::spawn_local(look_at(nodes.clone()));
        settle().await;
        assert!((&mut query).now_or_never().is_none());
        clock.advance(PATIENCE);
        query.await.unwrap();
        assert_eq!(healthy.actual_size(), Some(0));
        assert_eq!((above.actual_size(), medium.actual_size()), (None, None));
        // The next ones do not wait, nor ask.
        for _ in 0..10 {
            look_at(nodes.clone()).await;
        }
        assert_eq!(asked.times.load(Ordering::SeqCst), 2);
        assert_eq!(above.actual_size(), None);
        // Neither does one that comes from another node, which nobody has asked yet.
        let other = node("other", Above(Edge::new(Role::File, Arc::clone(&medium))));
        look_at([Arc::clone(&other)]).await;
        assert_eq!(other.actual_size(), None);

        asked.answers.notify(usize::MAX);
        settle().await;
        assert_eq!(medium.actual_size(), Some(2));
        assert_eq!(above.actual_size(), Some(2));
        let query = current::spawn_local(look_at([other]));
        settle().await;
        asked.answers.notify(usize::MAX);
        query.await.unwrap();
        assert_eq!(medium.actual_size(), Some(3));
    });
}

#[test]
fn files_are_asked_how_much_they_take() {
    let mut event_loop = EventLoop::new("main", &LoopConfig::default()).unwrap();
    event_loop
        .run_until(async {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("image");
            std::fs::write(&path, vec![1; 65536]).unwrap();
            let graph = Graph::new(Arc::new(Silence), Clock::real());
            let options = json!({"driver": "raw", "node-name": "disk",
                                 "file": {"driver": "file", "filename": path}});
            let options = serde_json::from_value(options).unwrap();
            let node = graph.add_node(&options).await.unwrap();
            assert_eq!(node.actual_size(), None);
            look_at([Arc::clone(&node)]).await;
            assert!(node.actual_size().is_some_and(|size| size >= 65536));
        })
        .unwrap();
}
