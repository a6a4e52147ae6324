//! Whole jobs whose state is in RocksDB and larger than the memory it may take: crashes, rescaling, savepoints.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use highwater::config::{JobConfig, RestartStrategy, RestoreFrom, RocksProfile, StateBackendKind};
use highwater::format::record::{CheckpointOutcome, CheckpointRecord, SavepointFormat};
use highwater::prelude::*;
use highwater::state_reader::StateReader;

use crate::support::{
    Background, Scratch, assert_same, files_below, history, quiet_panics, run, running_counts,
    source_texts, throttle, wait_until,
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

/// Counts by key, in a value and, of some keys, by digit in a map; with a list of the last ones; panics once at a record, if told.
fn count(
    records_a_ms: u32,
    panics_at: Option<u64>,
    sink: Collect<(u64, u64)>,
) -> impl Fn(&Job<'_>) -> highwater::Result<()> {
    let armed = Arc::new(AtomicBool::new(true));
    move |job| {
        let armed = Arc::clone(&armed);
        let states =
            (Value::<u64>::new("count"), List::<u64>::new("last"), Map::<u64, u64>::new("digits"));
        job.source("numbers", Generator::new(RECORDS, |i| i))
            .inspect(throttle(records_a_ms))
            .key_by(|n| key(*n))
            .process("count", states, move |key, n, (count, last, digits), out| {
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
                if key.is_multiple_of(16) {
                    let digit = digits.get(&(n / 2 % 10)).copied().unwrap_or(0);
                    digits.insert(n / 2 % 10, digit + 1);
                    let all: u64 = digits.iter().map(|(_, times)| *times).sum();
                    assert_eq!(all, *count.or_default(), "the map of {key} at {n}");
                }
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
    let complete = |record: &CheckpointRecord| record.outcome == CheckpointOutcome::Complete;
    let history = history(&scratch);
    let transfers = |attempt: u64| {
        let records = history.iter().filter(|r| complete(r) && r.attempt.0 == attempt);
        records.flat_map(|record| &record.workers).map(|worker| worker.files).collect::<Vec<_>>()
    };
    for attempt in [1, 2] {
        let transfers = transfers(attempt);
        let reused: u64 = transfers.iter().map(|files| u64::from(files.reused)).sum();
        let uploaded: u64 = transfers.iter().map(|files| u64::from(files.uploaded)).sum();
        assert!(reused > 0 && uploaded > 0, "attempt {attempt}: {reused} reused, {uploaded} not");
    }
}

/// Runs the job until it has taken some checkpoints, and ends it with a savepoint.
fn until_savepoint(scratch: &Scratch, config: JobConfig, sink: Collect<(u64, u64)>) -> PathBuf {
    let to = scratch.path(&format!("savepoint-{}", config.workers));
    let job = Background::start(config, count(5, None, sink));
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

#[test]
fn a_native_savepoint_is_linked_files_that_move_and_are_restored_at_any_parallelism_and_on_the_heap()
 {
    use StateBackendKind::{Heap, RocksDb};
    let scratch = Scratch::new();
    let (to, moved) = (scratch.path("native"), scratch.path("moved"));
    let sink = Collect::new();
    let job = Background::start(on(RocksDb, &scratch, 2), count(10, None, sink.clone()));
    wait_until("files are in a checkpoint", || {
        files_below(&scratch.checkpoints()).iter().any(is_table)
    });
    let info = job.handle.stop_with_savepoint_as(&to, false, SavepointFormat::Native).unwrap();
    job.end().unwrap();
    let tables: Vec<PathBuf> = files_below(&to).into_iter().filter(|file| is_table(file)).collect();
    assert!(info.native_files > tables.len() as u64 && !tables.is_empty(), "{info:?}");
    let names = |file: &PathBuf| std::fs::metadata(file).unwrap().nlink();
    assert!(tables.iter().all(|file| names(file) == 2), "they are the checkpoint's own files");
    nothing_is_left(&scratch);
    std::fs::remove_dir_all(scratch.checkpoints()).unwrap();
    std::fs::rename(&to, &moved).unwrap();
    let read = |files: Vec<PathBuf>| files.iter().map(|f| std::fs::read(f).unwrap()).collect();
    let before: Vec<Vec<u8>> = read(files_below(&moved));
    for (backend, workers) in [(RocksDb, 3), (RocksDb, 1), (Heap, 2)] {
        let other = Scratch::new();
        let mut config = on(backend, &other, workers);
        config.restart = RestartStrategy::None;
        config.restore.from = RestoreFrom::Checkpoint(moved.display().to_string());
        let rest = Collect::new();
        let records_a_ms = if workers == 1 { 5 } else { 1_000 };
        let job = Background::start(config, count(records_a_ms, None, rest.clone()));
        // With one worker there is no doubt about who has heard of it.
        if workers == 1 {
            job.wait_for_checkpoints(1);
            let to = other.path("canonical");
            let canonical = job.handle.savepoint_as(&to, SavepointFormat::Canonical).unwrap();
            assert_eq!(canonical.native_files, 0);
            assert!(!files_below(&to).iter().any(is_table));
            job.handle.stop();
            job.end().unwrap();
            continue;
        }
        job.end().unwrap();
        assert!(rest.handle().committed().len() < RECORDS as usize, "it did not start anew");
        let all = [sink.handle().committed(), rest.handle().committed()].concat();
        let found: BTreeSet<(u64, u64)> = all.into_iter().collect();
        assert_same(running_counts(RECORDS, key), found);
        nothing_is_left(&other);
    }
    assert!(before == read(files_below(&moved)), "a savepoint is never changed");
}

/// Runs the job until it has read so many records and taken some more checkpoints, and stops it.
fn until_checkpoints(config: JobConfig, records: u64, sink: Collect<(u64, u64)>) {
    // Every column family has a write buffer, of which a mebibyte does not hold many.
    let is_single = config.workers == 1;
    let records_a_ms = if records > 0 { 50 } else { 5 };
    let job = Background::start(config, count(records_a_ms, None, sink));
    wait_until("so many are read", || job.handle.counters().source_records() >= records);
    job.wait_for_checkpoints(2);
    if let Some(memory) = job.handle.counters().state_memory().filter(|_| is_single) {
        assert_eq!(memory.budget_bytes, 1 << 20);
        assert!(memory.used_bytes <= memory.budget_bytes / 100 * 115, "{memory:?}");
    }
    job.handle.stop();
    job.end().unwrap();
}

#[test]
fn files_are_taken_over_and_clipped_at_any_parallelism_and_read_by_the_heap() {
    use StateBackendKind::{Heap, RocksDb};
    let scratch = Scratch::new();
    let sink = Collect::new();
    let steps = [(RocksDb, 1), (RocksDb, 4), (RocksDb, 3), (Heap, 2), (RocksDb, 8), (RocksDb, 1)];
    // At first enough for every later worker to have files.
    for ((backend, workers), records) in steps.into_iter().zip([70_000, 0, 0, 0, 0, 0]) {
        until_checkpoints(on(backend, &scratch, workers), records, sink.clone());
        let newest = scratch.store().newest().unwrap().unwrap();
        let manifest = scratch.store().load(newest).unwrap();
        let with_files = manifest.parts.iter().filter(|part| !part.natives.is_empty()).count();
        assert_eq!(with_files, if backend == RocksDb { workers } else { 0 });
        let checkpoint =
            scratch.checkpoints().join(crate::support::JOB).join(format!("chk/{newest}"));
        let reader = StateReader::open(checkpoint).unwrap();
        let mut counts = BTreeMap::new();
        let read = reader.for_each("count", "count", |key: u64, count: u64| {
            assert_eq!(counts.insert(key, count), None);
        });
        assert_eq!(read.unwrap(), counts.len() as u64);
        let last: BTreeMap<u64, u64> = sink.handle().committed().into_iter().fold(
            BTreeMap::new(),
            |mut last, (key, count)| {
                let most = last.entry(key).or_insert(count);
                *most = count.max(*most);
                last
            },
        );
        assert_eq!(counts, last, "the final checkpoint is what came out");
        scratch.assert_directory_is_the_reachable_set();
    }
    run(on(RocksDb, &scratch, 2), count(1_000, None, sink.clone())).unwrap();
    assert_same(running_counts(RECORDS, key), sink.handle().committed());
    nothing_is_left(&scratch);
}

#[test]
fn a_damaged_or_missing_file_is_refused_by_its_name() {
    for cut in [false, true] {
        let scratch = Scratch::new();
        let config = on(StateBackendKind::RocksDb, &scratch, 1);
        let job = Background::start(config.clone(), count(10, None, Collect::new()));
        wait_until("files are in the checkpoint", || {
            let record = job.handle.counters().checkpoints().completed.len();
            record > 2 && files_below(&scratch.checkpoints()).iter().any(is_table)
        });
        job.handle.stop();
        job.end().unwrap();
        let epoch = scratch.store().newest().unwrap().unwrap();
        let manifest = scratch.store().load(epoch).unwrap();
        let files = manifest.parts.iter().flat_map(|part| &part.natives).flat_map(|n| &n.files);
        let file = files.clone().find(|file| file.name.ends_with(".sst")).expect("a table");
        let path = scratch.checkpoints().join(&file.path);
        if cut {
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes[1..]).unwrap();
        } else {
            std::fs::remove_file(&path).unwrap();
        }
        let mut config = config;
        config.restart = RestartStrategy::None;
        let refused = run(config, count(1_000, None, Collect::new())).unwrap_err();
        let text = format!("{refused} {}", source_texts(&refused));
        let name = file.path.rsplit_once('/').unwrap().1;
        assert!(text.contains(name), "{text} does not name {name}");
    }
}

fn is_table(path: impl AsRef<Path>) -> bool {
    path.as_ref().extension().is_some_and(|extension| extension == "sst")
}
