//! Local copies of what checkpoints are made of: a restore reads them if they are what the manifest says, else the checkpoint
//! directory; and it does not matter which.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use highwater::config::JobConfig;
use highwater::prelude::*;
use highwater::storage::local_copy::RestoredBytes;

use crate::incremental::{config as in_layers, count, expected, never, wait_for_layers};
use crate::support::{Background, JOB, Scratch, assert_same, files_below, quiet_panics, run};

/// Does something to a copy, by its number.
type Damage = fn(usize, &PathBuf);

/// A job in layers, none of whose parts is inside a manifest, with local copies.
fn config(scratch: &Scratch, workers: usize) -> JobConfig {
    let mut config = in_layers(scratch, workers);
    config.checkpoints.inline_bytes_max = 0;
    config.checkpoints.local_recovery = Some(scratch.path("copies"));
    config
}

fn copies(scratch: &Scratch) -> Vec<PathBuf> {
    files_below(&scratch.path("copies"))
}

/// Each copy is one of a blob that the job needs, and of this job.
fn assert_copies_are_of_what_is_reachable(scratch: &Scratch) {
    scratch.assert_directory_is_the_reachable_set();
    let store = scratch.store();
    let created = store.record_of_job().unwrap().created_unix_ms;
    let reachable: BTreeSet<String> =
        store.reachable().unwrap().iter().map(ToString::to_string).collect();
    for copy in copies(scratch) {
        let path = copy.strip_prefix(scratch.path("copies")).unwrap().to_str().unwrap();
        let mut pieces = path.splitn(3, '/');
        assert_eq!(pieces.next(), Some(JOB), "{path}");
        assert!(pieces.next().unwrap().starts_with(&format!("{created}-")), "{path}");
        let blob = format!("{JOB}/{}", pieces.next().unwrap());
        assert!(reachable.contains(&blob), "{path} is left over");
        assert_eq!(fs::read(&copy).unwrap(), fs::read(scratch.checkpoints().join(blob)).unwrap());
    }
}

/// Runs the job until it is in layers, and stops it.
fn until_in_layers(scratch: &Scratch, workers: usize, sink: &Collect<(u64, u64)>) {
    let job = Background::start(config(scratch, workers), count(8, sink.clone(), never()));
    wait_for_layers(scratch, &job, 1);
    job.handle.stop();
    job.end().unwrap();
    assert_copies_are_of_what_is_reachable(scratch);
    assert!(copies(scratch).len() > workers, "{:?}", copies(scratch));
}

/// Runs the job to its end. Returns what its start has read from where.
fn to_the_end(scratch: &Scratch, workers: usize, sink: &Collect<(u64, u64)>) -> RestoredBytes {
    let job = Background::start(config(scratch, workers), count(1000, sink.clone(), never()));
    let handle = job.handle.clone();
    job.end().unwrap();
    assert_eq!(handle.counters().restarts(), 0);
    assert_same(expected(), sink.handle().committed());
    assert_copies_are_of_what_is_reachable(scratch);
    let restored = handle.counters().restored_bytes();
    let record = scratch.store().restores().unwrap().pop().unwrap();
    assert_eq!((record.local_bytes, record.store_bytes), (restored.local, restored.store));
    restored
}

#[test]
fn a_panic_is_recovered_from_local_copies_alone() {
    quiet_panics();
    let scratch = Scratch::new();
    let collect = Collect::new();
    let panics = never();
    let build = count(8, collect.clone(), Arc::clone(&panics));
    let job = Background::start(config(&scratch, 2), build);
    wait_for_layers(&scratch, &job, 1);
    assert_eq!(job.handle.counters().restored_bytes(), RestoredBytes::default());
    panics.store(true, Ordering::Relaxed);
    wait_for_layers(&scratch, &job, 2);
    let restored = job.handle.counters().restored_bytes();
    assert!(restored.local > 0 && restored.store == 0, "{restored:?}");
    job.handle.stop();
    job.end().unwrap();
    assert_copies_are_of_what_is_reachable(&scratch);
    let restores = scratch.store().restores().unwrap();
    let [record] = &restores[..] else { panic!("{restores:?}") };
    assert_eq!((record.attempt.0, record.process), (2, 0));
    assert_eq!((record.local_bytes, record.store_bytes), (restored.local, restored.store));
    let restored = to_the_end(&scratch, 2, &collect);
    assert!(restored.local > 0 && restored.store == 0, "{restored:?}");
}

#[test]
fn without_local_recovery_everything_comes_from_the_checkpoint_directory() {
    let scratch = Scratch::new();
    let collect = Collect::new();
    until_in_layers(&scratch, 2, &collect);
    let mut config = config(&scratch, 2);
    config.checkpoints.local_recovery = None;
    let job = Background::start(config, count(1000, collect.clone(), never()));
    let handle = job.handle.clone();
    job.end().unwrap();
    let restored = handle.counters().restored_bytes();
    assert!(restored.local == 0 && restored.store > 0, "{restored:?}");
    assert_same(expected(), collect.handle().committed());
    scratch.assert_directory_is_the_reachable_set();
}

#[test]
fn copies_that_are_damaged_or_missing_are_read_from_the_checkpoint_directory() {
    let damages: [(&str, Damage); 3] = [
        ("all are gone", |_, copy| fs::remove_file(copy).unwrap()),
        ("a byte of each is another one", |_, copy| {
            let mut bytes = fs::read(copy).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(copy, bytes).unwrap();
        }),
        ("some are cut off, gone or well", |index, copy| match index % 3 {
            0 => fs::write(copy, &fs::read(copy).unwrap()[1..]).unwrap(),
            1 => fs::remove_file(copy).unwrap(),
            _ => {}
        }),
    ];
    for (what, damage) in damages {
        let scratch = Scratch::new();
        let collect = Collect::new();
        until_in_layers(&scratch, 2, &collect);
        let copies = copies(&scratch);
        copies.iter().enumerate().for_each(|(index, copy)| damage(index, copy));
        let restored = to_the_end(&scratch, 2, &collect);
        assert!(restored.store > 0, "{what}: {restored:?}");
        assert_eq!(restored.local > 0, what.ends_with("well"), "{what}: {restored:?}");
    }
}

#[test]
fn a_rescaled_job_reads_what_is_not_local_from_the_checkpoint_directory() {
    let scratch = Scratch::new();
    let collect = Collect::new();
    until_in_layers(&scratch, 2, &collect);
    // As if worker 1 had been on another machine.
    let of_worker_1 = |copy: &&PathBuf| copy.to_str().unwrap().ends_with("-1.part");
    let elsewhere: Vec<PathBuf> = copies(&scratch).iter().filter(of_worker_1).cloned().collect();
    assert!(!elsewhere.is_empty());
    elsewhere.iter().for_each(|copy| fs::remove_file(copy).unwrap());
    let restored = to_the_end(&scratch, 3, &collect);
    assert!(restored.local > 0 && restored.store > 0, "{restored:?}");
}

#[test]
fn a_job_that_begins_anew_finds_no_copies_of_the_one_before() {
    let scratch = Scratch::new();
    until_in_layers(&scratch, 2, &Collect::new());
    let before = copies(&scratch);
    // The same attempt and the same epochs come again.
    fs::remove_dir_all(scratch.checkpoints()).unwrap();
    let collect = Collect::new();
    until_in_layers(&scratch, 2, &collect);
    assert!(before.iter().all(|copy| !copy.exists()));
    let restored = to_the_end(&scratch, 2, &collect);
    assert!(restored.local > 0 && restored.store == 0, "{restored:?}");
}

#[test]
fn a_local_directory_that_cannot_be_made_costs_the_copies_and_not_the_job() {
    let scratch = Scratch::new();
    fs::write(scratch.path("copies"), "no directory").unwrap();
    let collect = Collect::new();
    run(config(&scratch, 2), count(1000, collect.clone(), never())).unwrap();
    assert_same(expected(), collect.handle().committed());
    scratch.assert_directory_is_the_reachable_set();
}

#[test]
fn local_copies_inside_the_checkpoint_directory_are_refused() {
    let scratch = Scratch::new();
    let mut config = config(&scratch, 1);
    config.checkpoints.local_recovery = Some(scratch.checkpoints().join("copies"));
    let error = run(config, count(1000, Collect::new(), never())).unwrap_err();
    assert!(error.to_string().contains("lie in each other"), "{error}");
    assert!(!scratch.checkpoints().exists());
}

#[cfg(feature = "rocksdb")]
#[test]
fn files_of_rocksdb_are_fetched_from_local_copies() {
    use highwater::config::StateBackendKind;
    quiet_panics();
    let scratch = Scratch::new();
    let mut config = config(&scratch, 2);
    config.state.backend = StateBackendKind::RocksDb;
    config.state.rocksdb.memory_bytes = 1 << 20;
    config.state.rocksdb.directory = Some(scratch.path("running"));
    let collect = Collect::new();
    let panics = never();
    let job = Background::start(config, count(200, collect.clone(), Arc::clone(&panics)));
    job.wait_for_checkpoints(3);
    panics.store(true, Ordering::Relaxed);
    let handle = job.handle.clone();
    job.end().unwrap();
    assert_eq!(handle.counters().restarts(), 1);
    let restored = handle.counters().restored_bytes();
    assert!(restored.local > 0 && restored.store == 0, "{restored:?}");
    assert_same(expected(), collect.handle().committed());
    assert_copies_are_of_what_is_reachable(&scratch);
}
