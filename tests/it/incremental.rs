//! Incremental checkpoints: they write what has changed, name the older parts that hold the rest, and restore to the same.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use highwater::config::{JobConfig, OnCancel, RestartStrategy, RestoreFrom};
use highwater::format::Extent;
use highwater::format::manifest::{Manifest, SectionSummary};
use highwater::prelude::*;
use highwater::state_reader::StateReader;
use highwater::storage::job_store::JobStoreError;

use crate::support::{
    Background, Scratch, assert_same, files_below, quiet_panics, run, running_counts, throttle,
    wait_until,
};

/// Keys that are there from the first records on.
const KEYS: u64 = 30_000;
/// Keys that are counted again and again after that.
const HOT: u64 = 40;
const RECORDS: u64 = KEYS + 200_000;

fn key(index: u64) -> u64 {
    if index < KEYS { index } else { index % HOT * 701 }
}

pub fn never() -> Arc<AtomicBool> {
    Arc::default()
}

/// Counts by key; forgets a key that was counted a thousand times. Slow once the keys are there.
pub fn count(
    records_a_ms: u32,
    sink: Collect<(u64, u64)>,
    panics: Arc<AtomicBool>,
) -> impl Fn(&Job<'_>) -> highwater::Result<()> {
    move |job| {
        let panics = Arc::clone(&panics);
        let mut throttle = throttle(records_a_ms);
        job.source("numbers", Generator::new(RECORDS, |i| i))
            .inspect(move |index| {
                if *index >= KEYS {
                    throttle(index);
                }
                if panics.swap(false, Ordering::Relaxed) {
                    panic!("planted");
                }
            })
            .key_by(|index| key(*index))
            .process("count", Value::<u64>::new("count"), |key, _, count, out| {
                let now = count.or_insert_with(|| 0);
                *now += 1;
                out.emit((*key, *now));
                if *now == 1000 {
                    count.take();
                }
            })
            .sink("out", sink.clone());
        Ok(())
    }
}

/// What comes out of all of it.
pub fn expected() -> Vec<(u64, u64)> {
    running_counts(RECORDS, key).into_iter().map(|(key, n)| (key, (n - 1) % 1000 + 1)).collect()
}

pub fn config(scratch: &Scratch, workers: usize) -> JobConfig {
    let mut config = scratch.config(workers);
    config.checkpoints.incremental_bytes_min = 0;
    config
}

fn newest(scratch: &Scratch) -> Manifest {
    let store = scratch.store();
    store.load(store.newest().unwrap().unwrap()).unwrap()
}

/// The sections of the counts, one a worker.
fn counts(manifest: &Manifest) -> impl Iterator<Item = &SectionSummary> {
    let sections = manifest.parts.iter().flat_map(|part| &part.sections);
    sections.filter(|section| section.header.state.as_str() == "count")
}

/// Whether it holds few of the entries.
fn few_changed(manifest: &Manifest) -> bool {
    counts(manifest).map(|section| section.entries).sum::<u64>() < KEYS / 10
}

fn layers(manifest: &Manifest) -> usize {
    manifest.parts.iter().map(|part| part.layers.len()).sum()
}

/// Waits until the newest checkpoint is one of this attempt or a later one, and in layers.
pub fn wait_for_layers(scratch: &Scratch, job: &Background, attempt: u64) -> Manifest {
    job.wait_for_checkpoints(1);
    wait_until("a checkpoint is in layers", || {
        assert!(!job.is_finished(), "the job has ended");
        let found = scratch.store().newest().ok().flatten();
        // It may have been retired since it was listed.
        let manifest = found.and_then(|epoch| scratch.store().load(epoch).ok());
        manifest.is_some_and(|m| m.attempt.0 >= attempt && layers(&m) > 0 && few_changed(&m))
    });
    newest_retained(scratch, job)
}

/// The newest manifest, though the job goes on.
fn newest_retained(scratch: &Scratch, job: &Background) -> Manifest {
    let found = Mutex::new(None);
    wait_until("a manifest is read before it is retired", || {
        assert!(!job.is_finished(), "the job has ended");
        let epoch = scratch.store().newest().unwrap().unwrap();
        *found.lock().unwrap() = scratch.store().load(epoch).ok();
        found.lock().unwrap().is_some()
    });
    found.into_inner().unwrap().unwrap()
}

#[test]
fn a_job_in_layers_survives_panics_and_rescales_and_goes_on_in_layers() {
    quiet_panics();
    let scratch = Scratch::new();
    let collect = Collect::new();
    let panics = never();
    let build = count(8, collect.clone(), Arc::clone(&panics));
    let job = Background::start(config(&scratch, 2), build);
    let first = wait_for_layers(&scratch, &job, 1);
    assert!(counts(&first).all(|section| section.extent != Extent::Whole), "{first:?}");
    panics.store(true, Ordering::Relaxed);
    // After the panic the job builds on what it has restored.
    let second = wait_for_layers(&scratch, &job, 2);
    let reused = |layer: &highwater::format::manifest::LayerRef| layer.attempt.0 == 1;
    assert!(second.parts.iter().all(|part| part.layers.iter().any(reused)), "{second:?}");
    job.handle.stop();
    job.end().unwrap();
    scratch.assert_directory_is_the_reachable_set();
    for workers in [3, 1] {
        let before = newest(&scratch);
        let job = Background::start(config(&scratch, workers), count(8, collect.clone(), never()));
        let after = wait_for_layers(&scratch, &job, before.attempt.0 + 1);
        assert_eq!(after.parallelism as usize, workers);
        let old = |layer: &highwater::format::manifest::LayerRef| layer.attempt <= before.attempt;
        assert!(after.parts.iter().all(|part| part.layers.iter().any(old)), "{after:?}");
        job.handle.stop();
        job.end().unwrap();
        scratch.assert_directory_is_the_reachable_set();
    }
    let job = Background::start(config(&scratch, 2), count(1000, collect.clone(), never()));
    job.end().unwrap();
    assert_same(expected(), collect.handle().committed());
    scratch.assert_directory_is_the_reachable_set();
}

#[test]
fn what_a_reader_finds_in_layers_is_the_state() {
    let scratch = Scratch::new();
    let collect = Collect::new();
    let mut config = config(&scratch, 2);
    config.checkpoints.retained = 1000;
    let job = Background::start(config, count(8, collect.clone(), never()));
    wait_for_layers(&scratch, &job, 1);
    job.wait_for_checkpoints(5);
    job.handle.stop();
    job.end().unwrap();
    let manifest = newest(&scratch);
    assert!(layers(&manifest) > 0);
    let mut found = BTreeMap::new();
    let path =
        scratch.checkpoints().join(format!("{}/chk/{}", crate::support::JOB, manifest.epoch));
    let reader = StateReader::open(path).unwrap();
    let entries = reader
        .for_each("count", "count", |key: u64, count: u64| {
            assert_eq!(found.insert(key, count), None, "{key} is there twice");
        })
        .unwrap();
    // The last checkpoint has seen all that was committed.
    let mut wanted = BTreeMap::new();
    for (key, count) in collect.handle().committed() {
        let last = wanted.entry(key).or_insert((0, 0));
        last.0 += 1;
        last.1 = last.0 % 1000;
        assert!(count > 0);
    }
    let wanted: BTreeMap<u64, u64> =
        wanted.into_iter().map(|(key, (_, n))| (key, n)).filter(|(_, n)| *n > 0).collect();
    assert_eq!(entries, wanted.len() as u64);
    assert_eq!(found, wanted);
    scratch.assert_directory_is_the_reachable_set();
}

#[test]
fn a_checkpoint_that_is_deleted_while_the_job_runs_takes_nothing_from_later_ones() {
    let scratch = Scratch::new();
    let collect = Collect::new();
    let job = Background::start(config(&scratch, 2), count(8, collect.clone(), never()));
    let mut deleted = 0;
    while deleted < 5 {
        let manifest = wait_for_layers(&scratch, &job, 1);
        // As `highwater checkpoints delete` does. It may have been retired by now.
        if scratch.store().delete(manifest.epoch).is_ok() {
            deleted += 1;
            job.wait_for_more_checkpoints(2);
        }
    }
    job.handle.stop();
    job.end().unwrap();
    scratch.assert_directory_is_the_reachable_set();
    let job = Background::start(config(&scratch, 2), count(1000, collect.clone(), never()));
    job.end().unwrap();
    assert_same(expected(), collect.handle().committed());
    scratch.assert_directory_is_the_reachable_set();
}

#[test]
fn shared_files_that_are_lost_cost_checkpoints_and_not_the_job() {
    let scratch = Scratch::new();
    let collect = Collect::new();
    let job = Background::start(config(&scratch, 2), count(8, collect.clone(), never()));
    wait_for_layers(&scratch, &job, 1);
    for file in files_below(&scratch.checkpoints().join(format!("{}/shared", crate::support::JOB)))
    {
        // Retired meanwhile, perhaps.
        let _ = fs::remove_file(file);
    }
    // Everything is written again when building on what was lost has failed for a while.
    wait_until("checkpoints are complete again", || {
        assert!(!job.is_finished(), "the job has ended");
        scratch.store().verify(None).is_ok_and(|r| r.is_clean() && !r.checkpoints.is_empty())
    });
    job.handle.stop();
    job.end().unwrap();
    let job = Background::start(config(&scratch, 1), count(1000, collect.clone(), never()));
    job.end().unwrap();
    assert_same(expected(), collect.handle().committed());
    scratch.assert_directory_is_the_reachable_set();
}

#[test]
fn a_savepoint_of_a_job_in_layers_stands_alone_and_so_does_the_first_checkpoint_after_it() {
    let scratch = Scratch::new();
    let collect = Collect::new();
    let job = Background::start(config(&scratch, 3), count(8, collect.clone(), never()));
    wait_for_layers(&scratch, &job, 1);
    let savepoint = scratch.path("savepoint");
    job.handle.stop_with_savepoint(&savepoint, false).unwrap();
    job.end().unwrap();
    scratch.assert_directory_is_the_reachable_set();
    let committed = collect.handle().committed().len();
    fs::remove_dir_all(scratch.checkpoints()).unwrap();

    let other = Scratch::new();
    let mut config = config(&other, 2);
    config.restore.from = RestoreFrom::Checkpoint(savepoint.display().to_string());
    config.restart = RestartStrategy::None;
    config.checkpoints.interval = Some(Duration::from_millis(5));
    let job = Background::start(config, count(8, collect.clone(), never()));
    wait_for_layers(&other, &job, 1);
    fs::remove_dir_all(&savepoint).unwrap();
    job.handle.stop();
    job.end().unwrap();
    let job = Background::start(self::config(&other, 2), count(1000, collect.clone(), never()));
    job.end().unwrap();
    assert!(collect.handle().committed().len() > committed);
    assert_same(expected(), collect.handle().committed());
    other.assert_directory_is_the_reachable_set();
}

#[test]
fn switched_off_every_checkpoint_stands_alone() {
    let scratch = Scratch::new();
    let collect = Collect::new();
    let mut config = config(&scratch, 2);
    config.checkpoints.incremental = false;
    let job = Background::start(config, count(8, collect.clone(), never()));
    job.wait_for_checkpoints(5);
    job.handle.stop();
    job.end().unwrap();
    assert_eq!(layers(&newest(&scratch)), 0);
    assert!(!scratch.checkpoints().join(format!("{}/shared", crate::support::JOB)).exists());
    scratch.assert_directory_is_the_reachable_set();
}

/// Pins the newest checkpoint of the running job that is in layers.
fn pin_one(scratch: &Scratch, job: &Background) -> Manifest {
    loop {
        let manifest = wait_for_layers(scratch, job, 1);
        match scratch.store().pin(manifest.epoch) {
            Ok(_) => return manifest,
            // It has been retired since, or is about to be.
            Err(JobStoreError::NotPinned { .. } | JobStoreError::NoSuchCheckpoint { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_pinned_checkpoint_outlives_retention_with_its_layers_restores_and_goes_once_unpinned() {
    let scratch = Scratch::new();
    let config = config(&scratch, 2);
    let job = Background::start(config.clone(), count(8, Collect::new(), never()));
    let pinned = pin_one(&scratch, &job);
    job.wait_for_more_checkpoints(20);
    job.handle.stop();
    job.end().unwrap();
    let store = scratch.store();
    let newest = store.newest().unwrap().unwrap();
    // One is retained: what came between is gone.
    assert_eq!(store.valid_epochs().unwrap(), [pinned.epoch, newest].into());
    assert!(layers(&pinned) > 0);
    for blob in pinned.blobs() {
        assert!(scratch.checkpoints().join(blob).is_file(), "{blob}");
    }
    scratch.assert_directory_is_the_reachable_set();

    let path = format!("{}/chk/{}", crate::support::JOB, pinned.epoch);
    let mut counted = 0;
    StateReader::open(scratch.checkpoints().join(path))
        .unwrap()
        .for_each("count", "count", |_: u64, _: u64| counted += 1)
        .unwrap();
    assert!(counted >= KEYS - HOT, "only {counted} keys are there");
    let collect = Collect::new();
    let mut from_pinned = config.clone();
    from_pinned.restore.from = RestoreFrom::Checkpoint(pinned.epoch.to_string());
    let job = Background::start(from_pinned, count(8, collect.clone(), never()));
    job.wait_for_checkpoints(5);
    assert!(store.valid_epochs().unwrap().contains(&pinned.epoch), "it is pinned still");
    assert!(store.unpin(pinned.epoch).unwrap());
    wait_until("the checkpoint is retired", || {
        assert!(!job.is_finished(), "the job has ended");
        !store.valid_epochs().unwrap().contains(&pinned.epoch)
    });
    job.handle.stop();
    job.end().unwrap();
    assert_eq!(store.valid_epochs().unwrap().len(), 1);
    scratch.assert_directory_is_the_reachable_set();

    // Of each key the last ones, all of them and each once: from the checkpoint's own transaction on.
    run(config, count(1000, collect.clone(), never())).unwrap();
    let by_key = |records: Vec<(u64, u64)>| {
        let mut keys: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for (key, count) in records {
            keys.entry(key).or_default().push(count);
        }
        keys
    };
    let (mut found, mut before) = (by_key(collect.handle().committed()), 0);
    for (key, mut wanted) in by_key(expected()) {
        let mut since = found.remove(&key).unwrap_or_default();
        before += wanted.drain(..wanted.len() - since.len()).count() as u64;
        wanted.sort_unstable();
        since.sort_unstable();
        assert_eq!(since, wanted, "key {key}");
    }
    assert!(found.is_empty(), "{found:?}");
    assert!(before > KEYS / 2, "it has started anew: only {before} records came before");
    scratch.assert_directory_is_the_reachable_set();
}

#[test]
fn a_cancelled_job_that_deletes_its_checkpoints_leaves_the_pinned_one_whole() {
    let scratch = Scratch::new();
    let mut config = config(&scratch, 2);
    config.checkpoints.on_cancel = OnCancel::Delete;
    let job = Background::start(config, count(8, Collect::new(), never()));
    let pinned = pin_one(&scratch, &job);
    job.wait_for_more_checkpoints(3);
    job.handle.cancel();
    job.end().unwrap();
    let store = scratch.store();
    assert_eq!(store.valid_epochs().unwrap(), [pinned.epoch].into());
    assert_eq!(store.load(pinned.epoch).unwrap(), pinned);
    scratch.assert_directory_is_the_reachable_set();
}
