//! Whole jobs whose state is in RocksDB and larger than the memory it may take: crashes, rescaling, savepoints.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use highwater::config::{JobConfig, RestartStrategy, RestoreFrom, RocksProfile, StateBackendKind};
use highwater::prelude::*;

use crate::support::{
    Background, Scratch, assert_same, files_below, quiet_panics, run, running_counts, throttle,
};

const RECORDS: u64 = 120_000;
const KEYS: u64 = 40_000;

fn key(n: u64) -> u64 {
    // Half of the records are of a few hot keys.
    if n.is_multiple_of(2) { n % 100 } else { n.wrapping_mul(7_919) % KEYS }
}

fn on(backend: StateBackendKind, scratch: &Scratch, workers: usize) -> JobConfig {
    let mut config = scratch.config(workers);
    config.state.backend = backend;
    config.state.rocksdb.memory_bytes = 1 << 20;
    config.state.rocksdb.profile = RocksProfile::LowMemory;
    config.state.rocksdb.directory = Some(scratch.path("running"));
    config.checkpoints.retained = 2;
    config
}

/// Counts by key, in a value and in a map beside it; panics once at a record, if told.
fn count(
    records_a_ms: u32,
    panics_at: Option<u64>,
    sink: Collect<(u64, u64)>,
) -> impl Fn(&Job<'_>) -> highwater::Result<()> {
    let armed = Arc::new(AtomicBool::new(true));
    move |job| {
        let armed = Arc::clone(&armed);
        let states = (Value::<u64>::new("count"), List::<u64>::new("last"));
        job.source("numbers", Generator::new(RECORDS, |i| i))
            .inspect(throttle(records_a_ms))
            .key_by(|n| key(*n))
            .process("count", states, move |key, n, (count, last), out| {
                if panics_at == Some(n) && armed.swap(false, Ordering::Relaxed) {
                    panic!("planted");
                }
                *count.or_default() += 1;
                last.append(n);
                if last.iter().count() > 3 {
                    let elements = last.take();
                    last.replace(elements.into_iter().skip(2));
                }
                assert!(last.iter().all(|n| self::key(*n) == *key));
                out.emit((*key, *count.or_default()));
            })
            .sink("out", sink.clone());
        Ok(())
    }
}

fn nothing_is_left(scratch: &Scratch) {
    let left = files_below(&scratch.path("running"));
    assert!(left.is_empty(), "left behind: {left:?}");
    scratch.assert_directory_is_the_reachable_set();
}

#[test]
fn a_job_that_crashes_goes_on_from_the_files_of_its_checkpoint() {
    quiet_panics();
    let scratch = Scratch::new();
    let config = on(StateBackendKind::RocksDb, &scratch, 2);
    let collect = Collect::new();
    run(config, count(200, Some(90_001), collect.clone())).unwrap();
    assert_same(running_counts(RECORDS, key), collect.handle().committed());
    nothing_is_left(&scratch);
}

/// Runs the job until it has taken some checkpoints, and ends it with a savepoint.
fn until_savepoint(scratch: &Scratch, config: JobConfig, sink: Collect<(u64, u64)>) -> PathBuf {
    let to = scratch.path(&format!("savepoint-{}", config.workers));
    let job = Background::start(config, count(40, None, sink));
    job.wait_for_checkpoints(3);
    job.handle.stop_with_savepoint(&to, false).unwrap();
    job.end().unwrap();
    to
}

#[test]
fn savepoints_move_between_backends_and_parallelisms() {
    use StateBackendKind::{Heap, RocksDb};
    let collect = Collect::new();
    let mut found = Vec::new();
    let mut from = None;
    for (backend, workers) in [(Heap, 2), (RocksDb, 3), (RocksDb, 1), (Heap, 2), (RocksDb, 2)] {
        let scratch = Scratch::new();
        let mut config = on(backend, &scratch, workers);
        config.restart = RestartStrategy::None;
        if let Some((savepoint, _)) = &from {
            let path: &PathBuf = savepoint;
            config.restore.from = RestoreFrom::Checkpoint(path.display().to_string());
        }
        let sink = Collect::new();
        let savepoint = until_savepoint(&scratch, config, sink.clone());
        found.extend(sink.handle().committed());
        nothing_is_left(&scratch);
        from = Some((savepoint, scratch));
    }
    let scratch = Scratch::new();
    let mut config = on(RocksDb, &scratch, 3);
    config.restart = RestartStrategy::None;
    let path = from.as_ref().unwrap().0.display().to_string();
    config.restore.from = RestoreFrom::Checkpoint(path);
    run(config, count(1_000, None, collect.clone())).unwrap();
    found.extend(collect.handle().committed());
    // What a sink had pending at a savepoint comes out once more, in the next job's. A record that state had lost or held
    // twice would show in the counts behind it.
    let found: BTreeSet<(u64, u64)> = found.into_iter().collect();
    assert_same(running_counts(RECORDS, key), found);
}
