//! Checkpoints whose barriers overtake records, on real threads: jobs are stopped and killed while checkpoints hold what
//! was on its way, and go on from those, at the same and at other parallelisms.
//!
//! Every record says what it is, and every operator looks. Loss, duplicates and disorder are counted apart. Every test
//! asserts that what was restored held records on their way: without that, it would test nothing.

mod chains;
mod channels;
mod loops;
mod phases;
mod rescale;
mod shapes;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use highwater::config::{JobConfig, RestartStrategy};
use highwater::format::{SectionHeader, SectionKind};
use highwater::ids::{Epoch, Name};
use highwater::prelude::*;
use highwater::protocol::key_groups::{key_group, owner};
use highwater::state::hash::stable_hash;
use highwater::storage::JobStore;
use serde::{Deserialize, Serialize};

use crate::support::{Background, JOB, Scratch, assert_same, run, store_in, wait_until};

/// Keys of each source: prime, so that every split has records of every key; few, so that logs hold several of each.
const KEYS: u64 = 17;

/// A record that says what it is, so that one that was torn, mixed with another or led astray is seen at once.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Item {
    source: u8,
    index: u64,
    key: u64,
    /// Makes the record as long as the test wants it.
    pad: String,
    check: u32,
}

impl Item {
    fn new(source: u8, index: u64, key: u64, pad: usize) -> Self {
        let letter = char::from(b'a' + (index % 26) as u8);
        let pad = String::from_iter(std::iter::repeat_n(letter, pad));
        let check = Self::checksum(source, index, key, &pad);
        Self { source, index, key, pad, check }
    }

    fn checksum(source: u8, index: u64, key: u64, pad: &str) -> u32 {
        let mut header = [source; 17];
        header[1..9].copy_from_slice(&index.to_le_bytes());
        header[9..].copy_from_slice(&key.to_le_bytes());
        crc32c::crc32c_append(crc32c::crc32c(&header), pad.as_bytes())
    }

    fn id(&self) -> Id {
        (self.source, self.index)
    }
}

/// Which source, and which of its records.
type Id = (u8, u64);

/// What must not happen, counted.
#[derive(Debug, Default)]
struct Tally {
    /// Records that were looked at.
    seen: AtomicU64,
    torn: AtomicU64,
    misrouted: AtomicU64,
    disorder: AtomicU64,
}

impl Tally {
    fn look(&self, item: &Item) {
        self.seen.fetch_add(1, Ordering::Relaxed);
        if Item::checksum(item.source, item.index, item.key, &item.pad) != item.check {
            self.torn.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn astray(&self) {
        self.misrouted.fetch_add(1, Ordering::Relaxed);
    }

    fn disordered(&self) {
        self.disorder.fetch_add(1, Ordering::Relaxed);
    }

    #[track_caller]
    fn assert_clean(&self) {
        let [torn, misrouted, disorder] =
            [&self.torn, &self.misrouted, &self.disorder].map(|count| count.load(Ordering::SeqCst));
        assert_eq!(
            (torn, misrouted, disorder),
            (0, 0, 0),
            "TORN {torn} MISROUTED {misrouted} DISORDER {disorder}"
        );
        assert!(self.seen.load(Ordering::SeqCst) > 0, "nothing was looked at");
    }
}

/// Sources without an end, until the test draws a line behind what they have emitted.
#[derive(Clone)]
struct Numbers {
    source: u8,
    keys: u64,
    pad: fn(u64) -> usize,
    /// Where the source ends.
    end: Arc<AtomicU64>,
    /// One more than the highest index that was emitted.
    reached: Arc<AtomicU64>,
}

impl Numbers {
    fn new(source: u8, keys: u64) -> Self {
        let (end, reached) = (Arc::new(AtomicU64::new(u64::MAX)), Arc::default());
        Self { source, keys, pad: |_| 16, end, reached }
    }

    fn read<'scope>(&self, job: &Job<'scope>) -> Stream<'scope, Item> {
        job.source(&format!("source-{}", self.source), self.generator())
    }

    fn read_with<'scope>(&self, job: &Job<'scope>, times: EventTime<Item>) -> Stream<'scope, Item> {
        job.source_with(&format!("source-{}", self.source), self.generator(), times)
    }

    fn generator(&self) -> impl Source<Record = Item> + use<> {
        let Self { source, keys, pad, .. } = *self;
        let reached = Arc::clone(&self.reached);
        let generate = move |index| {
            reached.fetch_max(index + 1, Ordering::Relaxed);
            Item::new(source, index, index % keys, pad(index))
        };
        let end = self.end.load(Ordering::SeqCst);
        Generator::new(end, generate)
    }

    /// The next attempt reads so many records more than were ever read, and then ends.
    fn draw_line(&self, more: u64) {
        self.end.store(self.reached.load(Ordering::SeqCst) + more, Ordering::SeqCst);
    }

    fn ids(&self) -> impl Iterator<Item = Id> + use<> {
        let source = self.source;
        (0..self.end.load(Ordering::SeqCst)).map(move |index| (source, index))
    }
}

/// Makes operators slow, as long as the test wants it, and lets one of them fail.
#[derive(Clone, Default)]
struct Slowness {
    /// How many records pass in a millisecond, at each place on each worker; 0: any number.
    per_millisecond: Arc<AtomicU64>,
    fail: Arc<AtomicBool>,
}

impl Slowness {
    fn set(&self, per_millisecond: u64) {
        self.per_millisecond.store(per_millisecond, Ordering::SeqCst);
    }

    /// The next record that passes anywhere panics.
    fn fail(&self) {
        self.fail.store(true, Ordering::SeqCst);
    }

    /// A place that records pass, so many times as slowly as others.
    fn place(&self, times: u32) -> impl FnMut() + use<> {
        let Self { per_millisecond, fail } = self.clone();
        let mut passed = 0;
        move || {
            if fail.load(Ordering::Relaxed) && fail.swap(false, Ordering::SeqCst) {
                panic!("planted");
            }
            passed += 1;
            let limit = per_millisecond.load(Ordering::Relaxed);
            if limit > 0 && passed >= limit {
                passed = 0;
                // Fault: a slow operator.
                std::thread::sleep(Duration::from_millis(1) * times);
            }
        }
    }
}

/// What a keyed operator has seen of a key: the last index of each split of each source.
type LastSeen = BTreeMap<Id, u64>;

/// Everything that a job of these tests shares with its test, over all attempts and runs.
#[derive(Clone)]
struct Case {
    sources: Vec<Numbers>,
    /// Number of workers of the first run, and so of splits.
    splits: u64,
    slow: Slowness,
    tally: Arc<Tally>,
    sink: Collect<Id>,
    /// For each attempt: what the checkpoint that it was restored from holds of each channel. Units: records.
    restored: Arc<Mutex<Vec<BTreeMap<String, u64>>>>,
}

impl Case {
    /// `sources` of so many keys each, first run by so many workers.
    fn new(sources: u8, keys: u64, splits: usize) -> Self {
        Self {
            sources: (0..sources).map(|source| Numbers::new(source, keys)).collect(),
            splits: splits as u64,
            slow: Slowness::default(),
            tally: Arc::default(),
            sink: Collect::new(),
            restored: Arc::default(),
        }
    }

    fn read<'scope>(&self, job: &Job<'scope>, source: usize) -> Stream<'scope, Item> {
        let tally = Arc::clone(&self.tally);
        self.sources[source].read(job).inspect(move |item| tally.look(item))
    }

    /// Looks at every record, slowly if the test wants it.
    fn look<'scope>(&self, stream: Stream<'scope, Item>) -> Stream<'scope, Item> {
        let (tally, mut pass) = (Arc::clone(&self.tally), self.slow.place(2));
        stream.inspect(move |item| {
            tally.look(item);
            pass();
        })
    }

    /// A keyed operator that looks at every record, whether it belongs here, and whether it is the next one of its key
    /// and its split.
    fn in_order<'scope>(
        &self,
        name: &str,
        stream: KeyedStream<'scope, u64, Item>,
        job: &Job<'scope>,
    ) -> Stream<'scope, Item> {
        let (tally, mut pass) = (Arc::clone(&self.tally), self.slow.place(1));
        let keys = self.sources[0].keys;
        let splits = self.splits;
        let step = least_common_multiple(keys, splits);
        let (worker, peers) = job.worker();
        let max_parallelism = JobConfig::new(Name::new(JOB).unwrap()).max_parallelism;
        stream.process(name, Value::<LastSeen>::new("last"), move |key, item, last, out| {
            tally.look(&item);
            pass();
            let group = key_group(stable_hash(key), max_parallelism);
            if owner(group, max_parallelism, peers) != worker || item.key != *key % keys {
                tally.astray();
            }
            let place = (item.source, item.index % splits);
            let before = last.or_default().insert(place, item.index);
            if before.map_or(item.index >= step, |before| item.index != before + step) {
                tally.disordered();
            }
            out.emit(item);
        })
    }

    /// The end of the job.
    fn sink(&self, stream: Stream<'_, Item>) {
        let tally = Arc::clone(&self.tally);
        stream
            .map(move |item| {
                tally.look(&item);
                item.id()
            })
            .sink("out", self.sink.clone());
    }

    /// To be called when a job is built: keeps what the checkpoint that it is restored from has logged.
    fn note_restore(&self, job: &Job<'_>, directory: &Path) {
        if job.worker().0 == 0 && newest(directory) > 0 {
            self.restored.lock().unwrap().push(logged(directory));
        }
    }

    /// For each attempt that was restored: records that were on their way.
    fn restored_records(&self) -> Vec<u64> {
        self.restored.lock().unwrap().iter().map(|logs| logs.values().sum()).collect()
    }

    /// Asserts that every record came out once, and none was torn, astray or out of order.
    #[track_caller]
    fn assert_exactly_once(&self) {
        self.tally.assert_clean();
        let expected = self.sources.iter().flat_map(Numbers::ids);
        assert_same(expected, self.sink.handle().committed());
    }

    fn draw_line(&self, more: u64) {
        for source in &self.sources {
            source.draw_line(more);
        }
    }

    /// Runs a job slowly until its newest checkpoint holds records on their way, and ends it there: by a failure, or by
    /// a cancel. Returns what that checkpoint holds.
    #[track_caller]
    fn run_into_backlog(
        &self,
        config: &JobConfig,
        per_millisecond: u64,
        fail: bool,
        build: impl Fn(&Job<'_>) -> highwater::Result<()> + Clone + Send + Sync + 'static,
    ) -> BTreeMap<String, u64> {
        let directory = config.checkpoints.directory.clone().unwrap();
        // A checkpoint may complete between the look and the end that has nothing: then once more, from there.
        for _ in 0..20 {
            let before = newest(&directory);
            self.slow.set(per_millisecond);
            let job = Background::start(config.clone(), build.clone());
            let counters = job.handle.counters();
            wait_until("a checkpoint holds records on their way", || {
                assert!(!job.is_finished(), "the job has ended");
                let checkpoints = counters.checkpoints();
                checkpoints.in_flight_records > 0 && checkpoints.completed.len() >= 2
            });
            if fail {
                self.slow.fail();
            } else {
                job.handle.cancel();
            }
            let ended = job.end();
            assert_eq!(ended.is_err(), fail, "{ended:?}");
            assert!(newest(&directory) > before);
            let logs = logged(&directory);
            if logs.values().sum::<u64>() > 0 {
                self.slow.set(0);
                return logs;
            }
        }
        panic!("no checkpoint held records on their way in 20 runs");
    }

    /// Runs a job to its end, at full speed, with so many records more from each source.
    #[track_caller]
    fn run_to_the_end(
        &self,
        config: JobConfig,
        more: u64,
        build: impl Fn(&Job<'_>) -> highwater::Result<()> + Send + Sync + 'static,
    ) {
        self.slow.set(0);
        self.draw_line(more);
        run(config, build).unwrap();
    }
}

/// A job whose barriers overtake at once, whose channels are short, and which is not restarted.
fn unaligned(scratch: &Scratch, workers: usize) -> JobConfig {
    let mut config = scratch.config(workers);
    config.checkpoints.alignment_timeout = Some(Duration::ZERO);
    config.checkpoints.interval = Some(Duration::from_millis(5));
    config.flow.in_flight_bytes_max = 16 << 10;
    config.restart = RestartStrategy::None;
    config
}

/// The number of the newest checkpoint; 0 without one.
fn newest(directory: &Path) -> u64 {
    if !directory.join(JOB).exists() {
        return 0;
    }
    store_in(directory).newest().unwrap().map_or(0, |epoch| epoch.0)
}

/// What the newest checkpoint holds of each channel. Units: records.
fn logged(directory: &Path) -> BTreeMap<String, u64> {
    let store = store_in(directory);
    store.newest().unwrap().map(|epoch| logged_by(&store, epoch)).unwrap_or_default()
}

/// What a checkpoint holds of each channel. Units: records.
fn logged_by(store: &JobStore, epoch: Epoch) -> BTreeMap<String, u64> {
    let mut logs = BTreeMap::new();
    let parts = store.load(epoch).unwrap().parts;
    for section in parts.into_iter().flat_map(|part| part.sections) {
        let SectionHeader { operator, state, kind, .. } = section.header;
        if kind == SectionKind::ChannelLog && state.as_str() == "in-flight" {
            *logs.entry(operator.to_string()).or_default() += section.entries;
        }
    }
    logs
}

fn least_common_multiple(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}
