//! The jobs whose checkpoints are the fixtures of `tests/fixtures`: the generator (`examples/make_fixtures.rs`) and the test that
//! restores them share them. Nothing here may change what a checkpoint of them holds: a fixture of version 1 is restored by
//! these jobs for ever. New jobs come with a new version.
//!
//! # Why a fixture does not depend on when its checkpoint was taken
//! Sources stop at a position that the job says ([`Gate`]) and the checkpoint is taken when all that they have read is
//! processed; or it is the first checkpoint of its job, so that it holds all output until then, pending.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use highwater::config::{JobConfig, RestartStrategy};
#[cfg(feature = "rocksdb")]
use highwater::config::{RocksProfile, StateBackendKind};
use highwater::connect::{ReadStatus, SplitReader};
use highwater::ids::Name;
use highwater::prelude::*;

/// The name of the jobs.
pub const JOB: &str = "job";
/// Where the file is that a fixture has a position in, from the root of the repository: a checkpoint holds the path as given.
pub const LINES: &str = "tests/fixtures/v1/lines.txt";
/// Number of workers that take the checkpoints, and so of splits.
pub const WORKERS: usize = 2;
/// Keys of the numbers: even, so that all records of a key are of one split, and in order.
pub const KEYS: u64 = 34;

/// Records of [`all_states`].
pub const RECORDS: u64 = 600;
/// How many of them are read before the savepoint.
pub const RECORDS_BEFORE: u64 = 200;
/// How long an event-time timer of [`all_states`] waits. Units: milliseconds, which are records.
pub const WINDOW: u64 = 50;
/// Words of [`all_states`], and how many of them are read before the savepoint.
pub const WORDS: u64 = 90;
pub const WORDS_BEFORE: u64 = 30;
/// Lines of [`all_states`], and how many of them are read before the savepoint.
pub const LINES_ALL: u64 = 12;
pub const LINES_BEFORE: u64 = 6;
/// How long a processing-time timer of [`all_states`] waits: longer than taking the savepoint takes. Units: milliseconds.
const ALARM_MS: i64 = 20_000;

/// How large a job of [`layers`] is.
#[derive(Clone, Copy)]
pub struct Size {
    /// Keys of the first checkpoint: even.
    pub keys: u64,
    /// What is kept for each besides counts. Units: bytes.
    pub pad: usize,
}

/// Keys enough that few of them change from one checkpoint to the next.
pub const ON_HEAP: Size = Size { keys: 2_000, pad: 2 };
/// Bytes enough that RocksDB writes files.
#[cfg(feature = "rocksdb")]
pub const ON_ROCKSDB: Size = Size { keys: 400, pad: 8 << 10 };

impl Size {
    /// How many records are read at the end of each phase.
    pub fn phases(self) -> [u64; 3] {
        [self.keys, self.keys + 80, self.keys + 160]
    }

    /// All records.
    pub fn records(self) -> u64 {
        2 * self.keys + 400
    }

    /// The key of a record: first all keys, then few of them, then few others, and all again. Odd if the record's number is.
    pub fn key(self, n: u64) -> u64 {
        let [first, second, third] = self.phases();
        if n < first {
            n
        } else if n < second {
            (n - first) % 16
        } else if n < third {
            (n - second) % 16 + 100
        } else {
            n % (self.keys + 50)
        }
    }

    /// Whether a record removes its key, after it was counted.
    pub fn removes(self, n: u64) -> bool {
        let [first, second, _] = self.phases();
        (first..second).contains(&n) && self.key(n).is_multiple_of(4)
    }
}

/// Records of [`in_flight`].
pub const IN_FLIGHT_RECORDS: u64 = 4_000;

/// What comes out: of what, and its numbers.
pub type Row = (String, Vec<u64>);

pub fn row<const N: usize>(what: &str, numbers: [u64; N]) -> Row {
    (what.to_owned(), numbers.to_vec())
}

/// Lets sources read so far and no further in each phase.
#[derive(Clone, Default)]
pub struct Gate {
    phase: Arc<AtomicUsize>,
    read: Arc<AtomicU64>,
    is_restored: bool,
}

impl Gate {
    /// A gate in its first phase. That of a job that goes on lets nothing pass then, and everything in its second.
    pub fn new(is_restored: bool) -> Self {
        Self { is_restored, ..Self::default() }
    }

    /// Begins the next phase.
    pub fn next(&self) {
        self.phase.fetch_add(1, Ordering::SeqCst);
    }

    /// Number of records that have passed, of all sources.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::SeqCst)
    }

    /// A source of which each split has read so many records at the end of each phase.
    fn hold<S>(&self, source: S, limits: &[u64]) -> Held<S> {
        Held { source, gate: self.clone(), limits: limits.to_vec() }
    }

    fn limit(&self, limits: &[u64]) -> u64 {
        match self.phase.load(Ordering::SeqCst) {
            0 if self.is_restored => 0,
            _ if self.is_restored => u64::MAX,
            phase => limits.get(phase).copied().unwrap_or(u64::MAX),
        }
    }
}

/// A source behind a [`Gate`]. Its splits are those of the source.
struct Held<S> {
    source: S,
    gate: Gate,
    limits: Vec<u64>,
}

struct HeldReader<R> {
    reader: R,
    gate: Gate,
    limits: Vec<u64>,
    read: u64,
}

impl<S: Source> Source for Held<S> {
    type Record = S::Record;
    type Split = S::Split;
    type Reader = HeldReader<S::Reader>;

    fn splits(&mut self, parallelism: usize) -> Result<Vec<S::Split>, ConnectError> {
        self.source.splits(parallelism)
    }

    fn open(&mut self, split: S::Split) -> Result<Self::Reader, ConnectError> {
        let (gate, limits) = (self.gate.clone(), self.limits.clone());
        Ok(HeldReader { reader: self.source.open(split)?, gate, limits, read: 0 })
    }
}

impl<R: SplitReader> SplitReader for HeldReader<R> {
    type Record = R::Record;
    type Split = R::Split;

    fn read(
        &mut self,
        batch: &mut Vec<R::Record>,
        records_max: usize,
    ) -> Result<ReadStatus, ConnectError> {
        let rest = self.gate.limit(&self.limits).saturating_sub(self.read);
        if rest == 0 {
            return Ok(ReadStatus::Wait(Duration::from_millis(1)));
        }
        let before = batch.len();
        let rest = usize::try_from(rest).unwrap_or(usize::MAX);
        let status = self.reader.read(batch, records_max.min(rest))?;
        let count = (batch.len() - before) as u64;
        self.read += count;
        self.gate.read.fetch_add(count, Ordering::SeqCst);
        Ok(status)
    }

    fn split(&self) -> R::Split {
        self.reader.split()
    }
}

/// A mean: what an aggregating state is declared with.
pub struct Mean;

impl AggregateFunction for Mean {
    type Input = u64;
    type Accumulator = (u64, u64);
    type Output = u64;

    fn create(&self) -> (u64, u64) {
        (0, 0)
    }
    fn add(&self, accumulator: &mut (u64, u64), input: u64) {
        self.merge(accumulator, (input, 1));
    }
    fn merge(&self, accumulator: &mut (u64, u64), (sum, count): (u64, u64)) {
        accumulator.0 += sum;
        accumulator.1 += count;
    }
    fn result(&self, (sum, count): &(u64, u64)) -> u64 {
        sum / count
    }
}

/// A configuration with which these jobs are run in `checkpoints`; without an interval.
pub fn config(checkpoints: &Path, workers: usize) -> JobConfig {
    let mut config = JobConfig::new(Name::new(JOB).expect("it is a name"));
    config.workers = workers;
    config.checkpoints.directory = Some(checkpoints.to_owned());
    config.checkpoints.interval = None;
    config.restart = RestartStrategy::None;
    config
}

/// The same with state in RocksDB, whose running files are in `running`.
#[cfg(feature = "rocksdb")]
pub fn on_rocksdb(mut config: JobConfig, running: &Path) -> JobConfig {
    config.state.backend = StateBackendKind::RocksDb;
    config.state.rocksdb.memory_bytes = 1 << 20;
    config.state.rocksdb.profile = RocksProfile::LowMemory;
    config.state.rocksdb.directory = Some(running.to_owned());
    config
}

/// All kinds of state, and positions in three kinds of sources. `alarms` counts the processing-time timers that fired.
pub fn all_states(job: &Job<'_>, gate: &Gate, alarms: &Arc<AtomicU64>, sink: Collect<Row>) {
    let half = WORKERS as u64;
    let numbers = gate.hold(Generator::new(RECORDS, |n| n), &[RECORDS_BEFORE / half]);
    let numbers = job.source_with("numbers", numbers, EventTime::monotonic(|n| *n as i64));

    let century = Duration::from_secs(100 * 365 * 24 * 3600);
    let states = (
        List::<u64>::new("numbers").ttl(century),
        Map::<u64, u64>::new("digits"),
        Reducing::new("greatest", |greatest: &mut u64, n| *greatest = n.max(*greatest)),
        Aggregating::new("mean", Mean),
    );
    let kinds = numbers.clone().key_by(|n| n % KEYS).process(
        "kinds",
        states,
        |key, n, (numbers, digits, greatest, mean), out| {
            numbers.append(n);
            let digit = digits.get(&(n % 10)).copied().unwrap_or(0) + 1;
            digits.insert(n % 10, digit);
            greatest.add(n);
            mean.add(n);
            let greatest = greatest.get().copied().unwrap_or(0);
            let numbers = numbers.iter().count() as u64;
            out.emit(row("kinds", [*key, numbers, digit, greatest, mean.get().unwrap_or(0)]));
        },
    );

    let alarms = Arc::clone(alarms);
    let timers = numbers.clone().key_by(|n| n % KEYS).process_with_timers(
        "timers",
        (Map::<i64, u64>::new("counts"), Value::<bool>::new("alarm")),
        |_, n, (counts, alarm), context| {
            // Long enough that some wait at every position.
            let end = (n - n % WINDOW + 3 * WINDOW - 1) as i64;
            let count = counts.get(&end).copied().unwrap_or(0);
            counts.insert(end, count + 1);
            context.register_event_timer(end);
            context.register_event_timer(end + 7);
            context.delete_event_timer(end + 7);
            if alarm.set(true).is_none() {
                context.register_processing_timer(context.now() + ALARM_MS);
            }
        },
        move |key, timer, (counts, _), context| {
            if timer.domain == TimeDomain::ProcessingTime {
                alarms.fetch_add(1, Ordering::SeqCst);
                context.emit(row("alarm", [*key]));
            } else {
                let count = counts.remove(&timer.time).unwrap_or(0);
                context.emit(row("window", [*key, timer.time as u64, count]));
            }
        },
    );

    let lists = (OperatorList::<u64>::new("list"), UnionList::<u64>::new("union"));
    let lists = numbers.clone().route(|n, _| *n as usize).process(
        "lists",
        lists,
        |n, (list, union), out| {
            if n >= RECORDS_BEFORE {
                list.take().into_iter().for_each(|n| out.emit(row("list", [n])));
                union.take().into_iter().for_each(|n| out.emit(row("union", [n])));
            } else if n % 3 == 0 {
                list.append(n);
                union.append(n);
            }
        },
    );

    let lines = job.source("lines", gate.hold(Files::lines([LINES]), &[LINES_BEFORE]));
    let rules = numbers.connect_broadcast(lines).process(
        "rules",
        Broadcast::<String, u64>::new("rules"),
        |n, rules, out| {
            if n >= RECORDS_BEFORE {
                let rule = rules.get(&line(n % LINES_BEFORE)).copied().unwrap_or(u64::MAX);
                out.emit(row("rule", [n, rule]));
            }
        },
        |line, rules, out| {
            rules.insert(line.clone(), rule(&line));
            out.emit(row(&line, []));
        },
    );

    let words = Collection::new((0..WORDS).map(word).collect());
    let words = job.source("words", gate.hold(words, &[WORDS_BEFORE / half]));
    let words = words.key_by(String::clone).process(
        "word-counts",
        Value::<u64>::new("count"),
        |word, _, count, out| {
            *count.or_default() += 1;
            out.emit(row(word, [*count.or_default()]));
        },
    );
    kinds.union(timers).union(lists).union(rules).union(words).sink("out", sink);
}

/// A line of the file.
pub fn line(number: u64) -> String {
    format!("rule {number}")
}

/// What a broadcast state keeps for a line.
pub fn rule(line: &str) -> u64 {
    line.bytes().map(u64::from).sum()
}

/// A word of the collection.
pub fn word(number: u64) -> String {
    format!("word {}", number % 7)
}

/// Counts by key, and by key and digit; of which checkpoints in layers are taken.
pub fn layers(job: &Job<'_>, gate: &Gate, size: Size, sink: Collect<Row>) {
    let limits = size.phases().map(|records| records / WORKERS as u64);
    let states =
        (Value::<u64>::new("count"), Map::<u64, u64>::new("digits"), Value::<String>::new("pad"));
    job.source("numbers", gate.hold(Generator::new(size.records(), |n| n), &limits))
        .key_by(move |n| size.key(*n))
        .process("count", states, move |key, n, (count, digits, pad), out| {
            *count.or_default() += 1;
            let digit = digits.get(&(n % 10)).copied().unwrap_or(0) + 1;
            digits.insert(n % 10, digit);
            let before = pad.set("x".repeat(size.pad)).map_or(0, |pad| pad.len() as u64);
            out.emit(row("count", [*key, *count.or_default(), digit, before]));
            if size.removes(n) {
                count.take();
                digits.clear();
                pad.take();
            }
        })
        .sink("out", sink);
}

/// Counts by key, as slowly as the caller wants it: `pass` is called for each record.
pub fn in_flight(job: &Job<'_>, mut pass: impl FnMut() + 'static, sink: Collect<Row>) {
    job.source("numbers", Generator::new(IN_FLIGHT_RECORDS, |n| n))
        .key_by(|n| n % KEYS)
        .process("count", Value::<u64>::new("count"), move |key, _, count, out| {
            pass();
            *count.or_default() += 1;
            out.emit(row("count", [*key, *count.or_default()]));
        })
        .sink("out", sink);
}
