//! What the tests share: directories, configurations, the oracle, and the check of the checkpoint directory.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use highwater::Error;
use highwater::config::{JobConfig, RestartStrategy};
use highwater::format::record::CheckpointRecord;
use highwater::ids::Name;
use highwater::job::{Job, JobHandle, execute};
use highwater::storage::{JobStore, LocalStorage};

/// The name of the job in every test that has only one.
pub const JOB: &str = "job";

/// A wait that takes longer than this is a failure: nothing here takes a tenth of it.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// The directories of one test.
pub struct Scratch {
    root: tempfile::TempDir,
}

impl Scratch {
    pub fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.root.path().join(below)
    }

    pub fn checkpoints(&self) -> PathBuf {
        self.path("checkpoints")
    }

    /// A job of `workers` that takes a checkpoint every 10 ms, and restarts at once.
    pub fn config(&self, workers: usize) -> JobConfig {
        let mut config = JobConfig::new(Name::new(JOB).unwrap());
        config.workers = workers;
        config.checkpoints.directory = Some(self.checkpoints());
        config.checkpoints.interval = Some(Duration::from_millis(10));
        config.restart =
            RestartStrategy::FixedDelay { attempts: 100, delay: Duration::from_millis(1) };
        config
    }

    pub fn store(&self) -> JobStore {
        store_in(&self.checkpoints())
    }

    /// Every file below the checkpoint directory is one that the job needs, and every byte of it is sound.
    pub fn assert_directory_is_the_reachable_set(&self) {
        assert_directory_is_the_reachable_set(&self.checkpoints());
    }
}

pub fn store_in(directory: &Path) -> JobStore {
    let storage = LocalStorage::open_existing(directory).unwrap();
    JobStore::new(Arc::new(storage), Name::new(JOB).unwrap())
}

pub fn assert_directory_is_the_reachable_set(directory: &Path) {
    let store = store_in(directory);
    let unreachable = store.unreachable().unwrap();
    assert!(unreachable.is_empty(), "left over: {unreachable:?}");
    if !store.valid_epochs().unwrap().is_empty() {
        let report = store.verify(None).unwrap();
        assert!(report.is_clean(), "{:?}", report.problems);
        assert!(report.unreferenced.is_empty(), "{:?}", report.unreferenced);
    }
    // The store does not list temporary files, and knows nothing of foreign ones.
    let reachable = store.reachable().unwrap();
    for file in files_below(directory) {
        let name = file.strip_prefix(directory).unwrap().to_str().unwrap().to_owned();
        assert!(reachable.iter().any(|path| path.as_str() == name), "{name} is left over");
    }
}

/// All files below a directory, in ascending order.
pub fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let Ok(entries) = std::fs::read_dir(directory) else { return files };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// How two multisets differ.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference<T> {
    /// Records that were expected and are not there, or not as often.
    pub loss: Vec<(T, u64)>,
    /// Records that are there more often than expected, or were not expected at all.
    pub dup: Vec<(T, u64)>,
}

pub fn difference<T: Ord + Clone>(
    expected: impl IntoIterator<Item = T>,
    found: impl IntoIterator<Item = T>,
) -> Difference<T> {
    let mut balance: BTreeMap<T, i64> = BTreeMap::new();
    for record in expected {
        *balance.entry(record).or_default() += 1;
    }
    for record in found {
        *balance.entry(record).or_default() -= 1;
    }
    let mut difference = Difference { loss: Vec::new(), dup: Vec::new() };
    for (record, count) in balance {
        match count {
            0 => {}
            1.. => difference.loss.push((record, count.unsigned_abs())),
            _ => difference.dup.push((record, count.unsigned_abs())),
        }
    }
    difference
}

/// Asserts that two multisets are equal, and says how many records are lost and how many are there twice.
#[track_caller]
pub fn assert_same<T: Ord + Clone + Debug>(
    expected: impl IntoIterator<Item = T>,
    found: impl IntoIterator<Item = T>,
) {
    let Difference { loss, dup } = difference(expected, found);
    let count = |records: &[(T, u64)]| records.iter().map(|(_, count)| count).sum::<u64>();
    assert!(
        loss.is_empty() && dup.is_empty(),
        "LOSS {} DUP {}; first lost {:?}, first doubled {:?}",
        count(&loss),
        count(&dup),
        loss.first(),
        dup.first()
    );
}

/// What a running count by `key` gives for the indices `0..records`: every key with each of its counts.
pub fn running_counts(records: u64, key: impl Fn(u64) -> u64) -> Vec<(u64, u64)> {
    let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
    (0..records)
        .map(|index| {
            let count = counts.entry(key(index)).or_default();
            *count += 1;
            (key(index), *count)
        })
        .collect()
}

/// How long a job may take to its end. One that never ends has to name its test.
const END_MAX: Duration = Duration::from_secs(300);

/// Waits until `met` holds.
#[track_caller]
pub fn wait_until(what: &str, met: impl FnMut() -> bool) {
    wait_at_most(WAIT_MAX, || format!("waited too long until {what}"), met);
}

#[track_caller]
fn wait_at_most(limit: Duration, why: impl Fn() -> String, mut met: impl FnMut() -> bool) {
    let start = Instant::now();
    while !met() {
        assert!(start.elapsed() < limit, "{}", why());
        std::thread::sleep(Duration::from_millis(1)); // Poll: until the condition holds.
    }
}

/// A job that runs on a thread of its own.
pub struct Background {
    pub handle: JobHandle,
    thread: std::thread::JoinHandle<Result<(), Error>>,
}

impl Background {
    pub fn start(
        config: JobConfig,
        build: impl Fn(&Job<'_>) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Self {
        let handle = JobHandle::default();
        let thread = {
            let handle = handle.clone();
            std::thread::spawn(move || execute(config, &handle, build))
        };
        Self { handle, thread }
    }

    /// Waits until this many checkpoints are complete.
    #[track_caller]
    pub fn wait_for_checkpoints(&self, count: usize) {
        wait_until("checkpoints are complete", || {
            assert!(!self.thread.is_finished(), "the job has ended");
            self.handle.counters().checkpoints().completed.len() >= count
        });
    }

    /// Waits until so many more are complete. One of them may have begun before.
    #[track_caller]
    pub fn wait_for_more_checkpoints(&self, count: usize) {
        let before = self.handle.counters().checkpoints().completed.len();
        self.wait_for_checkpoints(before + count);
    }

    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn end(self) -> Result<(), Error> {
        let why = || format!("the job does not end: {:?}", self.handle.counters());
        wait_at_most(END_MAX, why, || self.thread.is_finished());
        self.thread.join().unwrap()
    }
}

/// Runs a job to its end.
pub fn run(
    config: JobConfig,
    build: impl Fn(&Job<'_>) -> Result<(), Error> + Send + Sync + 'static,
) -> Result<(), Error> {
    execute(config, &JobHandle::default(), build)
}

/// What became of the checkpoints of the job.
pub fn history(scratch: &Scratch) -> Vec<CheckpointRecord> {
    scratch.store().history().unwrap()
}

/// A generator of numbers that needs no dependency: the same seed gives the same numbers.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// The seed of a test that draws: `HIGHWATER_TEST_SEED`, or another one each time. It is printed.
pub fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let given = std::env::var("HIGHWATER_TEST_SEED").ok().map(|text| text.parse().unwrap());
    let seed = given.unwrap_or_else(|| std::hash::RandomState::new().build_hasher().finish());
    println!("HIGHWATER_TEST_SEED={seed}");
    seed
}

/// Keeps panics that a test has planted out of its output.
pub fn quiet_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info.payload_as_str().is_some_and(|text| text.starts_with("planted")) {
                before(info);
            }
        }));
    });
}

/// What its causes say, one behind the other.
pub fn source_texts(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

/// Lets so many records pass in a millisecond, so that a job of some thousand can be stopped midway. Unlike a paced
/// source it does not catch up after a restart.
pub fn throttle<T>(records: u32) -> impl FnMut(&T) + 'static {
    let mut passed = 0;
    move |_| {
        passed += 1;
        if passed == records {
            passed = 0;
            // Poll: the condition is looked at again.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
