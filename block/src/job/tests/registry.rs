//! Jobs by name, what queries tell, and the end of everything.

use std::sync::Arc;

use futures_util::future::join;
use serde_json::json;
use sluice_aio::{EventLoop, IoThread, LoopConfig, current};

use super::support::{Script, ScriptedDriver, Step, World, manual, options};
use crate::event::tests::EventLog;
use crate::job::*;

fn scripted() -> Box<dyn JobDriver> {
    Box::new(ScriptedDriver(Arc::new(Script::default())))
}

#[test]
fn a_name_is_taken_until_its_job_is_gone() {
    let mut world = World::new();
    let fake = world.start_with(manual("job"), true);
    let taken = |world: &World, ended: bool| {
        let error = world
            .registry
            .create(options("job"), scripted(), &world.home())
            .unwrap_err();
        assert_eq!(error.to_string(), "Job ID 'job' already in use");
        let way_out = crate::BlockError::from(error).way_out();
        let expected = match ended {
            true => {
                "the job of that name has ended: let it go by 'job-dismiss', or choose another 'job-id'"
            }
            false => "choose another 'job-id', or wait until the job of that name is gone",
        };
        assert_eq!(way_out, Some(expected));
    };
    world.events();
    taken(&world, false);
    assert!(
        world.events().is_empty(),
        "nobody hears of the job that was refused"
    );
    fake.act(&mut world, [Step::Return(Ok(()))]);
    fake.job.finalize().unwrap();
    world.rest();
    taken(&world, true);
    fake.job.dismiss().unwrap();
    world.create("job");
}

#[test]
fn a_name_that_is_held_is_nobody_elses() {
    let world = World::new();
    let held = world.registry.hold(&options("job").id).unwrap();
    assert!(world.registry.get("job").is_none());
    let error = world
        .registry
        .create(options("job"), scripted(), &world.home())
        .unwrap_err();
    assert_eq!(error.to_string(), "Job ID 'job' already in use");
    assert!(world.registry.hold(&options("job").id).is_err());
    world.create("other");
    drop(held);
    world.create("job");
    assert!(world.registry.hold(&options("job").id).is_err());
}

#[test]
fn who_hears_that_a_job_is_gone_may_use_its_name() {
    /// Creates a job of the same name as soon as the first is gone.
    struct Successor(
        parking_lot::Mutex<Option<JobRegistry>>,
        parking_lot::Mutex<Vec<bool>>,
    );
    impl crate::event::EventSink for Successor {
        fn emit(&self, event: crate::event::BlockEvent) {
            use crate::event::BlockEvent::JobStatusChange;
            if let JobStatusChange {
                status: JobState::Null,
                id,
            } = event
            {
                let registry = self.0.lock();
                let free = registry
                    .as_ref()
                    .is_some_and(|registry| registry.get(&id).is_none());
                self.1.lock().push(free);
            }
        }
    }
    let world = World::new();
    let sink = Arc::new(Successor(
        parking_lot::Mutex::default(),
        parking_lot::Mutex::default(),
    ));
    let registry = JobRegistry::new(Arc::clone(&sink) as Arc<_>);
    *sink.0.lock() = Some(registry.clone());
    let job = registry
        .create(options("job"), scripted(), &world.home())
        .unwrap();
    job.lock().state = JobState::Concluded;
    job.dismiss().unwrap();
    assert_eq!(*sink.1.lock(), [true]);
    sink.0.lock().take();
}

#[test]
fn unknown_names_have_a_text_and_class_per_family() {
    let world = World::new();
    let error = world.registry.find_block_job("x").unwrap_err();
    assert_eq!(error.to_string(), "Block job 'x' not found");
    assert_eq!(error.class(), ErrorClass::DeviceNotActive);
    let error = world.registry.find_job("x").unwrap_err();
    assert_eq!(error.to_string(), "Job not found");
    assert_eq!(error.class(), ErrorClass::Generic);
}

#[test]
fn queries_have_the_members_of_the_protocol() {
    let mut world = World::new();
    let fake = world.start("job");
    fake.job.progress().add_done(3);
    fake.job.progress().set_remaining(4);
    let expected = json!({
        "type": "mirror", "device": "job", "len": 7, "offset": 3, "busy": false, "paused": false,
        "speed": 0, "io-status": "ok", "ready": false, "status": "running",
        "auto-finalize": true, "auto-dismiss": true, "actively-synced": false,
    });
    assert_eq!(
        serde_json::to_value(world.registry.query_block_jobs()).unwrap(),
        json!([expected])
    );
    let expected = json!({
        "id": "job", "type": "mirror", "status": "running", "current-progress": 3,
        "total-progress": 7,
    });
    assert_eq!(
        serde_json::to_value(world.registry.query_jobs()).unwrap(),
        json!([expected])
    );
    fake.act(&mut world, [Step::Ready]);
    assert!(fake.job.block_job_info().ready);
    fake.job.pause().unwrap();
    world.rest();
    let info = fake.job.block_job_info();
    assert!(info.ready && info.paused && !info.busy);
}

#[test]
fn shutting_down_ends_jobs_in_every_state() {
    let mut world = World::new();
    let created = world.create("created").job;
    world.start("running");
    world.start("paused").job.pause().unwrap();
    world.start("ready").act(&mut world, [Step::Ready]);
    world
        .start_with(manual("pending"), true)
        .act(&mut world, [Step::Return(Ok(()))]);
    let concluded = world.start_with(manual("concluded"), true);
    concluded.act(
        &mut world,
        [Step::Return(Err(JobError::Failed("x".to_owned())))],
    );
    world.start_with(manual("manual"), true);
    world.rest();
    let states: Vec<_> = world
        .registry
        .jobs()
        .iter()
        .map(|job| job.state().name())
        .collect();
    assert_eq!(
        states,
        [
            "created",
            "running",
            "paused",
            "ready",
            "pending",
            "concluded",
            "running"
        ]
    );
    let registry = world.registry.clone();
    world
        .event_loop
        .run_until(async move {
            // Its creator has yet to say what becomes of it.
            let discards = async move {
                current::yield_now().await;
                created.discard();
            };
            join(registry.shut_down(), discards).await
        })
        .unwrap();
    assert!(world.registry.jobs().is_empty());
    let error = world
        .registry
        .create(options("late"), scripted(), &world.home())
        .unwrap_err();
    assert_eq!(
        error,
        CreateError::ShuttingDown {
            id: "late".to_owned()
        }
    );
}

#[test]
fn commands_reach_a_job_in_another_thread() {
    let thread = IoThread::spawn("io0", LoopConfig::default()).unwrap();
    let mut main = EventLoop::new("main", &LoopConfig::default()).unwrap();
    let registry = JobRegistry::new(Arc::new(EventLog::default()));
    for round in 0..200 {
        let id = JobId::new(&format!("job{round}")).unwrap();
        let job = registry
            .create(JobOptions::new(id), scripted(), thread.context())
            .unwrap();
        job.start();
        main.run_until(async move {
            let quiesced = job.quiesce();
            job.wait_idle().await;
            job.pause().unwrap();
            drop(quiesced);
            job.resume().unwrap();
            job.cancel(true).unwrap();
            job.concluded().await;
        })
        .unwrap();
    }
    assert!(registry.jobs().is_empty());
}

#[test]
fn a_thousand_jobs() {
    let mut world = World::new();
    for index in 0..1000 {
        world.create(&format!("job{index}")).job.start();
    }
    assert_eq!(world.registry.query_block_jobs().len(), 1000);
    let registry = world.registry.clone();
    world
        .event_loop
        .run_until(async move { registry.shut_down().await })
        .unwrap();
    assert!(world.registry.jobs().is_empty());
}

#[test]
fn a_job_does_not_outlive_its_loop() {
    let mut world = World::new();
    world.start("running");
    world.start("paused").job.pause().unwrap();
    world.create("created");
    world
        .start_with(manual("pending"), true)
        .act(&mut world, [Step::Return(Ok(()))]);
    world.events();
    let pending = world.registry.get("pending").unwrap();
    let (registry, home, log) = (world.registry.clone(), world.home(), world.log());
    drop(world);
    assert_eq!(
        pending.info().error.as_deref(),
        Some("The job was interrupted")
    );
    pending.dismiss().unwrap();
    assert!(registry.jobs().is_empty());
    log.take();
    let job = registry.create(options("late"), scripted(), &home).unwrap();
    assert_eq!(job.state(), JobState::Null);
}

#[test]
fn a_driver_that_panics_fails_its_job_only() {
    struct Panics;
    impl JobDriver for Panics {
        fn kind(&self) -> JobKind {
            JobKind::Mirror
        }
        fn run<'a>(
            &'a self,
            _: &'a JobContext,
        ) -> futures_util::future::BoxFuture<'a, Result<(), JobError>> {
            Box::pin(async { panic!("a mistake in the driver") })
        }
    }
    let mut world = World::new();
    let job = world
        .registry
        .create(options("job"), Box::new(Panics), &world.home())
        .unwrap();
    let other = world.start("other");
    world.events();
    job.start();
    world.rest();
    assert_eq!(
        world.events(),
        [
            "running",
            "aborting",
            "COMPLETED: The job was interrupted",
            "concluded",
            "null"
        ]
    );
    assert_eq!(other.job.state(), JobState::Running);
}
