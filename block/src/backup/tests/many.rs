//! A thousand jobs at once, and names that clash.

use serde_json::json;

use super::bench::*;
use crate::job::JobState;

const JOBS: usize = 1000;

#[test]
fn a_thousand_jobs_run_side_by_side() {
    run_both(|bench| async move {
        for number in 0..JOBS {
            for side in ["source", "target"] {
                let name = format!("{side}{number}");
                let node = json!({"driver": "null-co", "node-name": name, "size": 1 << 20});
                let node = serde_json::from_value(node).unwrap();
                bench.graph.add_node(&node).await.unwrap();
            }
        }
        let start = |number: usize, id: String, sync: &'static str| {
            let more = json!({"job-id": id, "auto-dismiss": true});
            let common = arguments(&format!("source{number}"), sync, &more);
            let target = format!("target{number}");
            let bench = &bench;
            async move { bench.start(common, &target).await }
        };
        for number in 0..JOBS {
            start(number, format!("job{number}"), "none").await.unwrap();
        }
        let jobs = bench.graph.jobs().jobs();
        assert_eq!(jobs.len(), JOBS);
        assert_eq!(bench.graph.jobs().query_block_jobs().len(), JOBS);
        for job in &jobs {
            job.pause().unwrap();
        }
        for job in &jobs {
            wait_for(job, JobState::Paused).await;
            job.resume().unwrap();
        }
        for job in &jobs {
            job.cancel(true).unwrap();
        }
        for job in &jobs {
            job.concluded().await;
        }
        assert!(bench.graph.jobs().jobs().is_empty());
        bench.check_clean();
        // Names and nodes are free again, and a job that ends by itself does.
        for number in 0..JOBS {
            start(number, format!("job{number}"), "full").await.unwrap();
        }
        for job in bench.graph.jobs().jobs() {
            job.concluded().await;
            assert_eq!(job.info().error, None);
        }
        bench.check_clean();
    });
}

#[test]
fn of_two_jobs_with_one_name_the_second_is_refused() {
    run(|bench| async move {
        bench.disk("disk").await;
        bench.disk("other").await;
        for name in ["target", "second"] {
            bench.target(name).await;
        }
        let job = bench.backup("none", &json!({})).await;
        let before = bench.graph.picture();
        let again = arguments("other-disk", "full", &json!({}));
        let error = bench.start(again, "second").await.unwrap_err();
        assert_eq!(error.to_string(), "Job ID 'job0' already in use");
        assert_eq!(bench.graph.picture(), before);
        wait_for(&job, JobState::Running).await;
        job.cancel(true).unwrap();
        end(&job).await;
        // It is not dismissed yet, and keeps its name.
        let again = arguments("other-disk", "full", &json!({}));
        let error = bench.start(again.clone(), "second").await.unwrap_err();
        assert_eq!(error.to_string(), "Job ID 'job0' already in use");
        job.dismiss().unwrap();
        bench.start(again, "second").await.unwrap();
        assert_eq!(end(&bench.job("job0")).await, None);
        bench.check_clean();
    });
}
