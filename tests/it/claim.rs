//! Whose a restored checkpoint is: the user's, so that nothing builds on it and nothing deletes it; or the job's.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use highwater::config::{ClaimMode, JobConfig, RestartStrategy, RestoreFrom, StateBackendKind};
use highwater::format::manifest::Manifest;
use highwater::ids::Epoch;
use highwater::prelude::*;

use crate::support::{
    Background, JOB, Scratch, assert_same, files_below, quiet_panics, run, running_counts,
    throttle, wait_until,
};

/// Keys that are there from the first records on; some of them are counted again and again after that.
const KEYS: u64 = 2_000;
const RECORDS: u64 = KEYS + 8_000;

fn key(index: u64) -> u64 {
    if index < KEYS { index } else { index % 40 * 31 }
}

fn backends() -> Vec<StateBackendKind> {
    let mut backends = vec![StateBackendKind::Heap];
    if cfg!(feature = "rocksdb") {
        backends.push(StateBackendKind::RocksDb);
    }
    backends
}

/// A job that counts by key, and its ways in and out.
#[derive(Clone, Default)]
struct Counting {
    sink: Collect<(u64, u64)>,
    passed: Arc<AtomicU64>,
    panics: Arc<AtomicBool>,
}

impl Counting {
    /// Slow once the keys are there.
    fn build(&self, records_a_ms: u32) -> impl Fn(&Job<'_>) -> highwater::Result<()> + use<> {
        let all = self.clone();
        move |job| {
            let Self { sink, passed, panics } = all.clone();
            let mut throttle = throttle(records_a_ms);
            job.source("numbers", Generator::new(RECORDS, |i| i))
                .inspect(move |index| {
                    passed.fetch_add(1, Ordering::Relaxed);
                    if *index >= KEYS {
                        throttle(index);
                    }
                    if panics.swap(false, Ordering::Relaxed) {
                        panic!("planted");
                    }
                })
                .key_by(|index| key(*index))
                .process("count", Value::<Vec<u64>>::new("count"), |key, _, count, out| {
                    // So large that RocksDB keeps it in files.
                    let count = count.or_insert_with(|| vec![0; 300]);
                    count[0] += 1;
                    out.emit((*key, count[0]));
                })
                .sink("out", sink);
            Ok(())
        }
    }

    /// A job that runs midway.
    fn midway(&self, config: &JobConfig) -> Background {
        let job = Background::start(config.clone(), self.build(4));
        wait_until("all keys are there", || {
            assert!(!job.is_finished(), "the job has ended");
            self.passed.load(Ordering::Relaxed) > KEYS + 200
        });
        job
    }

    /// Runs to the end; then each record was counted once in all runs.
    fn finish(&self, mut config: JobConfig) {
        config.restore.from = RestoreFrom::Newest;
        run(config, self.build(10_000)).unwrap();
        assert_same(running_counts(RECORDS, key), self.sink.handle().committed());
    }
}

fn on(backend: StateBackendKind, scratch: &Scratch, workers: usize) -> JobConfig {
    let mut config = scratch.config(workers);
    config.state.backend = backend;
    config.state.rocksdb.directory = Some(scratch.path("running"));
    config.checkpoints.incremental_bytes_min = 0;
    config.checkpoints.inline_bytes_max = 0;
    config
}

/// A job that was stopped midway, with one checkpoint: of few files, so that RocksDB has no reason to compact them at once.
fn stopped(backend: StateBackendKind, counting: &Counting) -> Scratch {
    let scratch = Scratch::new();
    let mut config = on(backend, &scratch, 2);
    config.checkpoints.interval = None;
    let job = counting.midway(&config);
    job.handle.stop();
    job.end().unwrap();
    scratch
}

fn newest(scratch: &Scratch) -> Epoch {
    scratch.store().newest().unwrap().unwrap()
}

fn path_of(scratch: &Scratch, epoch: Epoch) -> PathBuf {
    scratch.checkpoints().join(format!("{JOB}/chk/{epoch}"))
}

/// The files of earlier attempts that a checkpoint needs.
fn of_earlier_attempts(manifest: &Manifest) -> Vec<&str> {
    let mine = format!("/{}-", manifest.attempt);
    manifest.blobs().filter(|blob| !blob.contains(&mine)).collect()
}

/// Goes on from a checkpoint in a directory where all checkpoints are kept, until there are some. Returns the first one.
fn first_own(scratch: &Scratch, mut config: JobConfig, counting: &Counting) -> Manifest {
    config.checkpoints.retained = 1000;
    config.restart = RestartStrategy::None;
    let before = newest(scratch);
    let job = Background::start(config, counting.build(4));
    job.wait_for_checkpoints(2);
    job.handle.stop();
    job.end().unwrap();
    let store = scratch.store();
    let first = store.valid_epochs().unwrap().into_iter().find(|epoch| *epoch > before).unwrap();
    store.load(first).unwrap()
}

#[test]
fn in_the_own_directory_the_first_checkpoint_builds_on_what_is_claimed_and_else_on_nothing() {
    for backend in backends() {
        for (claim_mode, builds_on) in [(ClaimMode::NoClaim, false), (ClaimMode::Claim, true)] {
            let counting = Counting::default();
            let scratch = stopped(backend, &counting);
            let given = newest(&scratch);
            let mut config = on(backend, &scratch, 2);
            config.restore.claim_mode = claim_mode;
            // By its number or its path: that is the same one.
            let path = path_of(&scratch, given).display().to_string();
            let which = if builds_on { path } else { given.to_string() };
            config.restore.from = RestoreFrom::Checkpoint(which);
            let first = first_own(&scratch, config.clone(), &counting);
            let earlier = of_earlier_attempts(&first);
            assert_eq!(!earlier.is_empty(), builds_on, "{backend:?} {claim_mode:?}: {earlier:?}");
            let natives = first.parts.iter().flat_map(|part| &part.natives).count();
            let files =
                if backend == StateBackendKind::RocksDb { natives } else { first.blobs().count() };
            assert!(files > 0, "files are what this is about");
            assert!(scratch.store().claimed().unwrap().claimed.is_empty());
            // It stands alone, so the given one may go; otherwise what they share stays.
            scratch.store().delete(given).unwrap();
            counting.finish(config);
            scratch.assert_directory_is_the_reachable_set();
        }
    }
}

#[test]
fn what_is_not_claimed_may_be_deleted_once_a_checkpoint_is_complete() {
    quiet_panics();
    for backend in backends() {
        let counting = Counting::default();
        let old = stopped(backend, &counting);
        let before = files_below(&old.checkpoints());
        let given = newest(&old);
        let other = Scratch::new();
        let mut config = on(backend, &other, 3);
        config.restore.from = RestoreFrom::Checkpoint(path_of(&old, given).display().to_string());
        let job = Background::start(config.clone(), counting.build(4));
        job.wait_for_checkpoints(1);
        assert_eq!(files_below(&old.checkpoints()), before, "nothing of it is deleted");
        fs::remove_dir_all(old.checkpoints()).unwrap();
        counting.panics.store(true, Ordering::Relaxed);
        wait_until("the attempt has failed", || !counting.panics.load(Ordering::Relaxed));
        job.wait_for_more_checkpoints(2);
        job.handle.stop();
        job.end().unwrap();
        counting.finish(config);
        other.assert_directory_is_the_reachable_set();
    }
}

/// Restores what is at `path` and claims it; the only checkpoint is the one at the end. Looks before and after that.
fn claimed(backend: StateBackendKind, path: &Path, counting: &Counting) -> Scratch {
    let other = Scratch::new();
    let mut config = on(backend, &other, 3);
    config.checkpoints.interval = None;
    config.restore.from = RestoreFrom::Checkpoint(path.display().to_string());
    config.restore.claim_mode = ClaimMode::Claim;
    let job = Background::start(config.clone(), counting.build(4));
    wait_until("it is taken over", || {
        assert!(!job.is_finished(), "the job has ended");
        other.checkpoints().exists() && !other.store().claimed().unwrap().claimed.is_empty()
    });
    assert!(path.join("manifest").exists(), "nothing stems from it yet");
    job.handle.stop();
    job.end().unwrap();
    assert!(!path.exists(), "left: {:?}", files_below(path));
    let first = other.store().load(newest(&other)).unwrap();
    assert_eq!(of_earlier_attempts(&first), Vec::<&str>::new());
    other.assert_directory_is_the_reachable_set();

    // The same command goes on from what stems from it; and so does any other.
    let sent = counting.sink.handle().committed().len();
    let job = Background::start(config.clone(), counting.build(4));
    wait_until("the attempt has begun", || other.store().claimed().unwrap().claimed.len() == 1);
    job.handle.stop();
    job.end().unwrap();
    assert!(counting.sink.handle().committed().len() >= sent);
    counting.finish(config);
    other.assert_directory_is_the_reachable_set();
    other
}

#[test]
fn a_claimed_checkpoint_of_another_directory_goes_with_the_files_that_only_it_needs() {
    for backend in backends() {
        let counting = Counting::default();
        let old = stopped(backend, &counting);
        let given = newest(&old);
        claimed(backend, &path_of(&old, given), &counting);
        assert!(old.store().valid_epochs().unwrap().is_empty());
        old.assert_directory_is_the_reachable_set();
    }
}

#[test]
fn a_claimed_savepoint_goes() {
    for backend in backends() {
        let counting = Counting::default();
        let scratch = Scratch::new();
        let to = scratch.path("savepoint");
        let job = counting.midway(&on(backend, &scratch, 2));
        job.handle.stop_with_savepoint(&to, false).unwrap();
        job.end().unwrap();
        let before = files_below(&scratch.checkpoints());
        claimed(backend, &to, &counting);
        assert_eq!(files_below(&scratch.checkpoints()), before);
    }
}

#[test]
fn a_claim_without_a_directory_or_over_a_damaged_record_is_refused_and_nothing_is_deleted() {
    let counting = Counting::default();
    let old = stopped(StateBackendKind::Heap, &counting);
    let before = files_below(&old.checkpoints());
    let other = Scratch::new();
    let mut config = on(StateBackendKind::Heap, &other, 2);
    let path = path_of(&old, newest(&old));
    config.restore.from = RestoreFrom::Checkpoint(path.display().to_string());
    config.restore.claim_mode = ClaimMode::Claim;
    let refused = |config: &JobConfig, says: &str| {
        let error = run(config.clone(), counting.build(4)).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    };
    fs::create_dir_all(other.checkpoints().join(JOB)).unwrap();
    fs::write(other.checkpoints().join(JOB).join("claimed"), b"nonsense").unwrap();
    refused(&config, "claimed is damaged");
    config.checkpoints.directory = None;
    refused(&config, "needs a checkpoint directory");
    assert_eq!(files_below(&old.checkpoints()), before);
}
