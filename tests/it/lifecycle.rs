//! Stopping, cancelling, and going on with another number of workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use highwater::config::{JobConfig, OnCancel};
use highwater::prelude::*;

use crate::support::{Background, Scratch, assert_same, running_counts, throttle, wait_until};

const KEYS: u64 = 61;

/// A job that counts `records`, slowly enough to be stopped.
fn count(records: u64, sink: Collect<(u64, u64)>) -> impl Fn(&Job<'_>) -> highwater::Result<()> {
    move |job| {
        job.source("numbers", Generator::new(records, |i| i))
            .inspect(throttle(25))
            .key_by(|n| n % KEYS)
            .process("count", Value::<u64>::new("count"), |key, _, count, out| {
                *count.or_default() += 1;
                out.emit((*key, *count.or_default()));
            })
            .sink("out", sink.clone());
        Ok(())
    }
}

fn start(config: JobConfig, records: u64, collect: &Collect<(u64, u64)>) -> Background {
    Background::start(config, count(records, collect.clone()))
}

#[test]
fn a_stopped_job_has_committed_what_it_read_and_goes_on_with_any_number_of_workers() {
    let records = 40_000;
    let scratch = Scratch::new();
    let collect = Collect::new();
    let mut before = 0;
    for workers in [1, 3, 2, 1] {
        let job = start(scratch.config(workers), records, &collect);
        let last = workers == 1 && before > 0;
        if last {
            job.end().unwrap();
        } else {
            job.wait_for_checkpoints(3);
            job.handle.stop();
            job.end().unwrap();
            let committed = collect.handle().committed().len() as u64;
            assert!(committed > before, "what was read is committed");
            assert!(committed < records, "the job was stopped before its end");
            before = committed;
        }
        scratch.assert_directory_is_the_reachable_set();
    }
    assert_same(running_counts(records, |n| n % KEYS), collect.handle().committed());
}

#[test]
fn a_job_that_is_at_its_end_ends_again_at_once_and_adds_nothing() {
    let scratch = Scratch::new();
    let collect = Collect::new();
    for workers in [2, 1, 3] {
        start(scratch.config(workers), 5_000, &collect).end().unwrap();
        assert_same(running_counts(5_000, |n| n % KEYS), collect.handle().committed());
        scratch.assert_directory_is_the_reachable_set();
    }
}

#[test]
fn a_cancelled_job_goes_on_from_its_last_checkpoint() {
    let records = 30_000;
    let scratch = Scratch::new();
    let collect = Collect::new();
    let job = start(scratch.config(2), records, &collect);
    job.wait_for_checkpoints(3);
    job.handle.cancel();
    job.end().unwrap();
    assert!((collect.handle().committed().len() as u64) < records);
    scratch.assert_directory_is_the_reachable_set();
    assert!(!scratch.store().valid_epochs().unwrap().is_empty());
    start(scratch.config(3), records, &collect).end().unwrap();
    assert_same(running_counts(records, |n| n % KEYS), collect.handle().committed());
    scratch.assert_directory_is_the_reachable_set();
}

#[test]
fn a_cancelled_job_may_delete_its_checkpoints_and_then_starts_anew() {
    let scratch = Scratch::new();
    let mut config = scratch.config(2);
    config.checkpoints.on_cancel = OnCancel::Delete;
    config.checkpoints.inline_bytes_max = 0;
    let job = start(config, 30_000, &Collect::new());
    job.wait_for_checkpoints(3);
    job.handle.cancel();
    job.end().unwrap();
    scratch.assert_directory_is_the_reachable_set();
    let store = scratch.store();
    assert!(store.valid_epochs().unwrap().is_empty());
    assert_eq!(store.record_of_job().unwrap().first_completed, None);
    let collect = Collect::new();
    start(scratch.config(1), 3_000, &collect).end().unwrap();
    assert_same(running_counts(3_000, |n| n % KEYS), collect.handle().committed());
}

#[test]
fn a_cancelled_job_that_waits_for_its_restart_ends_at_once() {
    crate::support::quiet_panics();
    let scratch = Scratch::new();
    let mut config = scratch.config(1);
    config.restart = highwater::config::RestartStrategy::FixedDelay {
        attempts: 1,
        delay: std::time::Duration::from_secs(3600),
    };
    let job = Background::start(config, |job| {
        job.source("numbers", Generator::new(10, |i| i))
            .map(|n| if n == 5 { panic!("planted") } else { n })
            .sink("out", Collect::new());
        Ok(())
    });
    wait_until("the job waits for its restart", || job.handle.counters().restarts() == 1);
    job.handle.cancel();
    job.end().unwrap();
}

#[test]
fn a_job_without_a_checkpoint_directory_restarts_from_checkpoints_in_memory() {
    crate::support::quiet_panics();
    let scratch = Scratch::new();
    let mut config = scratch.config(2);
    config.checkpoints.directory = None;
    let collect = Collect::new();
    let (sink, faults) = (collect.clone(), crate::failure::Faults::at([10_000]));
    let replayed = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&replayed);
    crate::support::run(config, move |job| {
        let (faults, seen) = (faults.clone(), Arc::clone(&seen));
        job.source("numbers", Generator::new(20_000, |i| i).paced(0, 100_000))
            .inspect(move |_| {
                seen.fetch_add(1, Ordering::Relaxed);
                faults.pass();
            })
            .key_by(|n| n % KEYS)
            .process("count", Value::<u64>::new("count"), |key, _, count, out| {
                *count.or_default() += 1;
                out.emit((*key, *count.or_default()));
            })
            .sink("out", sink.clone());
        Ok(())
    })
    .unwrap();
    assert_same(running_counts(20_000, |n| n % KEYS), collect.handle().committed());
    let replayed = replayed.load(Ordering::Relaxed) - 20_000;
    assert!(replayed < 10_000, "it did not begin again from the start: {replayed}");
    assert!(!scratch.checkpoints().exists());
}
