//! Nexmark on Highwater: the results are those that other programs have found, at every parallelism, on each backend, with barriers
//! that overtake and with those that do not, and through crashes.

#![allow(clippy::unwrap_used, reason = "what is not as expected fails the test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use highwater::config::{CheckpointMode, JobConfig, RestartStrategy, StateBackendKind};
use highwater::ids::Name;
use highwater::job::{JobHandle, execute};
use highwater::prelude::*;

#[path = "../examples/nexmark/events.rs"]
mod events;
#[path = "../examples/nexmark/queries.rs"]
#[expect(dead_code, reason = "the program reads its events in another way")]
mod queries;

const RECORDS: u64 = 100_000;

/// Results of the first hundred thousand events, found by Flink and by a naive program: query, how many, digest.
const RESULTS: [(&str, u64, u64); 7] = [
    ("q0", 100_000, 0x6015_c250_a11f_8de8),
    ("q1", 92_000, 0x67ad_57fc_1a53_acb1),
    ("q2", 373, 0x44ec_e76f_ba53_6a3c),
    ("q3", 506, 0x2aa1_37d6_8844_754b),
    ("q5", 12, 0x5a24_85fe_0da8_8904),
    ("q7", 1, 0x9653_d088_2be4_9c75),
    ("q8", 925, 0xb924_6430_886d_f83f),
];

fn run(query: &'static str, config: JobConfig, crashes: bool) -> (u64, u64, u64) {
    let sink = Discard::counting(|digest: &u64| *digest);
    let totals = sink.handle();
    let handle = JobHandle::default();
    let crashed = Arc::new(AtomicBool::new(!crashes));
    let seen = handle.clone();
    execute(config, &handle, move |job| {
        let (crashed, seen) = (Arc::clone(&crashed), seen.clone());
        let source = Generator::new(RECORDS, events::Event::generate);
        // Slow enough for checkpoints to fall in between.
        let source = if crashes { source.paced(0, 200_000) } else { source };
        let time = EventTime::monotonic(events::Event::time);
        let events = job.source_with("events", source, time).inspect(move |_| {
            if !crashed.load(Ordering::SeqCst)
                && seen.counters().checkpoints().completed.len() > 3
                && !crashed.swap(true, Ordering::SeqCst)
            {
                panic!("the test's own panic");
            }
        });
        queries::digests(query, events).unwrap().sink("results", sink.clone());
        Ok(())
    })
    .unwrap();
    let (count, digest) = totals.totals();
    (count, digest, handle.counters().restarts())
}

fn config(workers: usize) -> JobConfig {
    let mut config = JobConfig::new(Name::new("nexmark").unwrap());
    config.workers = workers;
    config.checkpoints.interval = Some(Duration::from_millis(10));
    config.restart = RestartStrategy::FixedDelay { attempts: 3, delay: Duration::ZERO };
    config
}

fn backends() -> Vec<StateBackendKind> {
    let mut all = vec![StateBackendKind::Heap];
    if cfg!(feature = "rocksdb") {
        all.push(StateBackendKind::RocksDb);
    }
    all
}

#[test]
fn the_queries_have_the_published_results_at_any_parallelism_and_in_every_mode() {
    for (query, count, digest) in RESULTS {
        let modes = [None, Some(Duration::ZERO), Some(Duration::from_millis(200))];
        let mut drawn = 0;
        for workers in [1, 2, 4] {
            for backend in backends() {
                let mut config = config(workers);
                // Each query has each mode on some of these.
                config.checkpoints.alignment_timeout = modes[drawn % modes.len()];
                drawn += 1;
                config.state.backend = backend;
                let what = format!("{query}, {workers} workers, {backend:?}");
                assert_eq!(run(query, config, false), (count, digest, 0), "{what}");
            }
        }
        let mut config = config(2);
        config.checkpoints.interval = None;
        assert_eq!(run(query, config, false), (count, digest, 0), "{query} without checkpoints");
    }
}

#[test]
fn the_queries_have_the_published_results_through_a_crash() {
    for (query, count, digest) in RESULTS {
        for backend in backends() {
            let mut config = config(3);
            config.state.backend = backend;
            config.checkpoints.mode = CheckpointMode::ExactlyOnce;
            assert_eq!(run(query, config, true), (count, digest, 1), "{query}, {backend:?}");
        }
    }
}
