//! All the ways in which state can be kept, together: backends, local copies, incremental checkpoints, barriers that overtake.
//! Each pair of them is in one of the jobs, which panic and go on, and are rescaled in between. What comes out is compared with
//! what an independent computation says.

use std::time::Duration;

use highwater::config::{JobConfig, RocksProfile, StateBackendKind};
use highwater::format::manifest::Manifest;
use highwater::job::Job;

use crate::rescale::{Case, End, Pieces, end_job};
use crate::support::{Background, Random, Scratch, quiet_panics, run, seed, wait_until};

/// In each two columns are all four pairs, whichever columns are turned round.
const ALL_PAIRS: [[bool; 4]; 5] = [
    [false, false, false, false],
    [false, true, true, true],
    [true, false, true, true],
    [true, true, false, true],
    [true, true, true, false],
];

/// How a job keeps its state.
#[derive(Clone, Copy, Debug)]
struct Ways {
    rocksdb: bool,
    copies: bool,
    incremental: bool,
    unaligned: bool,
    max_parallelism: u16,
    retained: u32,
    writer_threads: usize,
    concurrent: u32,
}

impl Ways {
    fn draw([rocksdb, copies, incremental, unaligned]: [bool; 4], random: &mut Random) -> Self {
        Self {
            rocksdb: rocksdb && cfg!(feature = "rocksdb"),
            copies,
            incremental,
            unaligned,
            max_parallelism: [13, 128, 32_768][random.below(3) as usize],
            retained: 1 + random.below(3) as u32,
            writer_threads: 1 + random.below(3) as usize,
            concurrent: 1 + random.below(2) as u32,
        }
    }

    fn config(self, scratch: &Scratch) -> JobConfig {
        let mut config = scratch.config(1);
        config.max_parallelism = self.max_parallelism;
        config.flow.in_flight_bytes_max = 16 << 10;
        if self.rocksdb {
            config.state.backend = StateBackendKind::RocksDb;
        }
        config.state.rocksdb.memory_bytes = 1 << 20;
        config.state.rocksdb.profile = RocksProfile::LowMemory;
        config.state.rocksdb.directory = Some(scratch.path("running"));
        let checkpoints = &mut config.checkpoints;
        checkpoints.alignment_timeout = self.unaligned.then_some(Duration::ZERO);
        checkpoints.inline_bytes_max = 0;
        checkpoints.incremental = self.incremental;
        checkpoints.incremental_bytes_min = 0;
        checkpoints.local_recovery = self.copies.then(|| scratch.path("copies"));
        checkpoints.retained = self.retained;
        checkpoints.writer_threads = self.writer_threads;
        checkpoints.concurrent_max = self.concurrent;
        config
    }

    /// Whether a checkpoint is of the kind that was asked for: files of the backend, older parts, or neither.
    fn made(self, manifest: &Manifest) -> bool {
        let files = manifest.parts.iter().any(|part| !part.natives.is_empty());
        let layers = manifest.parts.iter().any(|part| !part.layers.is_empty());
        match (self.incremental, self.rocksdb) {
            (true, true) => files,
            (true, false) => layers && !files,
            (false, _) => !files && !layers,
        }
    }
}

/// The newest checkpoint, unless it is retired just now.
fn newest(scratch: &Scratch) -> Option<Manifest> {
    let store = scratch.store();
    store.load(store.newest().ok()??).ok()
}

/// Runs a job until it has such checkpoints, has panicked, and has some more; then ends it.
#[track_caller]
fn through_a_panic(ways: Ways, job: &Background, scratch: &Scratch, case: &Case) {
    let counters = job.handle.counters();
    let wait = |complete: usize| {
        wait_until("there are checkpoints of this kind", || {
            assert!(!job.is_finished(), "the job has ended");
            let checkpoints = counters.checkpoints();
            let in_flight = checkpoints.in_flight_records > 0;
            assert!(ways.unaligned || !in_flight, "records were overtaken");
            checkpoints.completed.len() >= complete
                && (in_flight || !ways.unaligned)
                && newest(scratch).is_some_and(|manifest| ways.made(&manifest))
        });
    };
    wait(2);
    let before = counters.restored_bytes();
    case.fail.store(true, std::sync::atomic::Ordering::SeqCst);
    wait_until("the job has restarted", || counters.restarts() > 0);
    wait(counters.checkpoints().completed.len() + 2);
    let now = counters.restored_bytes();
    let (local, store) = (now.local - before.local, now.store - before.store);
    assert_eq!(local > 0, ways.copies, "{local} bytes of local copies, {store} of the store");
    assert!(ways.copies || store > 0, "nothing was restored");
    assert_eq!(counters.restarts(), 1);
}

#[track_caller]
fn check(ways: Ways, runs: &[(usize, End)], last: usize) {
    use std::sync::atomic::Ordering::SeqCst;
    let scratch = Scratch::new();
    let mut config = ways.config(&scratch);
    let case = Case::new(Pieces::ALL);
    case.per_millisecond.store(if ways.unaligned { 4 } else { 20 }, SeqCst);
    let (shared, groups) = (case.clone(), ways.max_parallelism);
    let build = move |job: &Job<'_>| {
        shared.build(job, groups);
        Ok(())
    };
    for (number, (workers, end)) in runs.iter().enumerate() {
        config.workers = *workers;
        let job = Background::start(config.clone(), build.clone());
        through_a_panic(ways, &job, &scratch, &case);
        let to = scratch.path(&format!("savepoint-{number}"));
        config.restore.from = end_job(job, *end, &case, to);
    }
    case.per_millisecond.store(0, SeqCst);
    case.numbers.draw(400);
    case.rules.draw(40);
    case.last.store(true, SeqCst);
    config.workers = last;
    run(config, build).unwrap();
    case.check(last);
    scratch.assert_directory_is_the_reachable_set();
}

#[test]
fn every_pair_of_ways_to_keep_state_goes_through_panics_and_other_parallelisms() {
    quiet_panics();
    let mut random = Random::new(seed());
    let turned: [bool; 4] = std::array::from_fn(|_| random.below(2) == 1);
    for row in ALL_PAIRS {
        let ways = Ways::draw(std::array::from_fn(|at| row[at] != turned[at]), &mut random);
        let mut workers = || 1 + random.below(5) as usize;
        let [first, second, last] = std::array::from_fn(|_| workers());
        let ends = [End::Cancel, End::Stop, End::Savepoint];
        let mut end = || ends[random.below(3) as usize];
        let runs = [(first, end()), (second, end())];
        println!("{ways:?}, {runs:?}, then {last}");
        check(ways, &runs, last);
    }
}
