//! Random jobs in a simulated machine: dataflows that nobody has thought of, with faults of all kinds, against an oracle
//! that interprets them record by record.
//!
//! Many more seeds: `HIGHWATER_SEEDS=100000 cargo test --release --test sim_jobs`.

use std::collections::BTreeMap;

use highwater::testing::each_seed_on_all_cores;
use highwater::testing::jobs::RandomJob;

const PAST: &str = include_str!("sim_seeds.txt");

#[test]
fn random_jobs_commit_what_follows_from_their_sources() {
    if std::env::var_os("HIGHWATER_LOG").is_some() {
        // It may be there already.
        let _ = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).try_init();
    }
    let name = "random_jobs_commit_what_follows_from_their_sources";
    each_seed_on_all_cores(name, 1000, PAST, |seed| {
        let job = RandomJob::draw(seed);
        job.check(&job.simulate());
    });
}

#[test]
fn one_seed_of_a_random_job_gives_one_trace() {
    each_seed_on_all_cores("one_seed_of_a_random_job_gives_one_trace", 60, PAST, |seed| {
        let run = || {
            let job = RandomJob::draw(seed);
            (format!("{job:?}"), job.simulate().trace)
        };
        assert_eq!(run(), run());
    });
}

/// Without this, a generator that draws nothing would look like a runtime that survives everything.
#[test]
fn the_seeds_draw_every_kind_of_node_and_faults_where_it_hurts() {
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 0..200 {
        let job = RandomJob::draw(seed);
        for kind in job.kinds() {
            *kinds.entry(kind).or_default() += 1;
        }
        let outcome = job.simulate();
        let mut see = |what, count: usize| *seen.entry(what).or_default() += count as u64;
        let crashes =
            |text: &str| outcome.crashes.iter().filter(|crash| crash.contains(text)).count();
        see("crashes", outcome.crashes.len());
        see("crashes while a job is built", crashes("while the job is built"));
        see("crashes before a commit", crashes("before a commit"));
        see("crashes after a commit", crashes("after a commit"));
        see("frozen processes", crashes("frozen"));
        see("two crashes in a row", usize::from(outcome.crashes.len() > 1));
        see("restarts in place", outcome.restarts as usize);
        see("complete checkpoints", outcome.checkpoints);
        see("aborted checkpoints", outcome.aborted as usize);
        see("records in channel logs", outcome.in_flight_records as usize);
        for kind in [
            "panic:",
            "stop:",
            "storage-error:",
            "commit-error:",
            "late-control:",
            "repeated-control:",
        ] {
            see(kind, outcome.faults.iter().filter(|fault| fault.starts_with(kind)).count());
        }
        let drained = outcome.faults.iter().filter(|fault| fault.contains("drain: true"));
        see("stops that drain", drained.count());
        see("savepoints", outcome.savepoints);
        see("bytes from local copies", outcome.restored.local as usize);
        let local = outcome.faults.iter().filter(|fault| fault.starts_with("local-disk:"));
        see("faults of the local disk", local.count());
        for restore in &outcome.restores {
            see("restores of layers", usize::from(restore.layers > 0));
            see("restores from savepoints", usize::from(restore.savepoint));
            let moved = restore.savepoint && restore.workers_before != restore.workers;
            see("those at another parallelism than theirs", usize::from(moved));
            let (before, workers) = (restore.workers_before, restore.workers);
            let records = restore.in_flight.values().sum::<u64>() as usize;
            let looping = restore.in_flight.iter().filter(|(name, _)| name.starts_with("loop"));
            see("restores with more workers", usize::from(before < workers));
            see("restores with fewer workers", usize::from(before > workers));
            see("records restored into channels", records);
            see("those at another parallelism", if before == workers { 0 } else { records });
            see("those in loops", looping.map(|(_, records)| *records as usize).sum());
        }
    }
    println!("{kinds:?}\n{seen:?}");
    for kind in [
        "source",
        "map",
        "filter",
        "flat_map",
        "keyed",
        "join of two",
        "join of three",
        "union",
        "rebalance",
        "broadcast",
        "route",
        "beside a broadcast",
        "union list",
        "lists and maps",
        "reducing and aggregating",
        "event timers",
        "processing timers",
        "operator list",
        "loop",
        "loop in a loop",
        "join in a loop",
        "sink",
        "slow operator",
        "fat records",
    ] {
        assert!(kinds.get(kind).is_some_and(|count| *count >= 5), "{kind}: {kinds:?}");
    }
    for (what, count) in &seen {
        assert!(*count >= 5, "only {count} {what}: {seen:?}");
    }
    assert!(seen["complete checkpoints"] > 1_000 && seen["crashes"] > 150, "{seen:?}");
    assert!(seen["records in channel logs"] > 1_000, "{seen:?}");
}

/// RocksDB is rarely drawn, so this looks for the seeds that do.
#[cfg(feature = "rocksdb")]
#[test]
fn some_jobs_move_between_rocksdb_and_the_heap() {
    use highwater::config::StateBackendKind::{Heap, RocksDb};
    let (mut of_files, mut to_heap, mut from_savepoints) = (0, 0, 0);
    for job in (0..2_000).map(RandomJob::draw).filter(RandomJob::may_use_rocksdb) {
        let outcome = job.simulate();
        job.check(&outcome);
        for restore in &outcome.restores {
            let files = restore.files > 0 && !restore.savepoint;
            of_files += u64::from(files && restore.backend == RocksDb);
            to_heap += u64::from(files && restore.backend == Heap);
            from_savepoints += u64::from(restore.savepoint);
        }
        if of_files >= 4 && to_heap >= 2 && from_savepoints >= 1 {
            return;
        }
    }
    panic!("{of_files} restores of files, {to_heap} to the heap, {from_savepoints} of savepoints");
}
