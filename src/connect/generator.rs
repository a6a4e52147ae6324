//! A source of records made from their index. Exactly-once, and the same records in every run.
//!
//! # Splits
//! With S workers, split *s* owns the indices *i* with *i* mod S = *s*, in ascending order. A
//! split's position is its next index and, when paced, the moment its schedule began.
//!
//! # Pace
//! A paced generator emits the indices below `load` at full speed, and then keeps a schedule of R
//! records a second over all splits: index *i* is due at `t0 + (i - load) / R`, where `t0` is the
//! wall clock when the split first reached the paced part. It is an open loop: whoever is behind
//! emits at full speed until the schedule is caught up with, and `t0` survives failures as part of
//! the position, so that the delay of a failure shows in the latencies that are measured from the
//! due times.
//!
//! # Cost
//! A read is one tight loop over the user's function; the clock is read once a batch, and only when
//! paced.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{ConnectError, ReadStatus, Record, Source, SplitReader};

/// A reader that is on schedule asks to be read again no sooner than this: a wake-up per record
/// would cost more than the record.
const WAIT_MIN: Duration = Duration::from_micros(500);

const MICROS_PER_SECOND: u64 = 1_000_000;

/// Above this, products in microseconds would not fit.
const PER_SECOND_MAX: u64 = 1_000_000_000_000;

/// Makes the record of an index. Implemented by [`ByIndex`] and [`ByDueTime`].
pub trait Generate: Clone + Send + 'static {
    /// What is made.
    type Record: Record;

    /// Makes the record of `index`. `due` gives the time it is due in Unix microseconds, and 0 for
    /// an index that is on no schedule.
    fn generate(&self, index: u64, due: impl FnOnce(u64) -> u64) -> Self::Record;
}

/// Makes records by a function of the index.
#[derive(Clone, Copy, Debug)]
pub struct ByIndex<F>(F);

impl<D: Record, F: Fn(u64) -> D + Clone + Send + 'static> Generate for ByIndex<F> {
    type Record = D;

    #[inline]
    fn generate(&self, index: u64, _: impl FnOnce(u64) -> u64) -> D {
        (self.0)(index)
    }
}

/// Makes records by a function of the index and the time it is due, in Unix microseconds.
#[derive(Clone, Copy, Debug)]
pub struct ByDueTime<F>(F);

impl<D: Record, F: Fn(u64, u64) -> D + Clone + Send + 'static> Generate for ByDueTime<F> {
    type Record = D;

    #[inline]
    fn generate(&self, index: u64, due: impl FnOnce(u64) -> u64) -> D {
        (self.0)(index, due(index))
    }
}

/// What tells the time: Unix microseconds.
type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

#[derive(Clone, Copy, Debug)]
struct Pace {
    load: u64,
    per_second: u64,
}

/// A source of records made from their index. See the module for splits and pace.
#[derive(Clone)]
pub struct Generator<G> {
    records: u64,
    generate: G,
    pace: Option<Pace>,
    clock: Clock,
}

impl<G: fmt::Debug> fmt::Debug for Generator<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generator")
            .field("records", &self.records)
            .field("generate", &self.generate)
            .field("pace", &self.pace)
            .finish_non_exhaustive()
    }
}

impl<F> Generator<ByIndex<F>> {
    /// A source of `f(0)`, ..., `f(records - 1)`. `f` must be a pure function, or replay gives
    /// other records.
    #[must_use]
    pub fn new<D: Record>(records: u64, f: F) -> Self
    where
        F: Fn(u64) -> D + Clone + Send + 'static,
    {
        Self { records, generate: ByIndex(f), pace: None, clock: Arc::new(unix_micros) }
    }

    /// A source of `f(0)`, `f(1)`, ... without an end.
    #[must_use]
    pub fn unbounded<D: Record>(f: F) -> Self
    where
        F: Fn(u64) -> D + Clone + Send + 'static,
    {
        Self::new(u64::MAX, f)
    }

    /// Sets the pace: the indices below `load` at full speed, then `per_second` records a second
    /// over all splits. The rate is taken as the nearest in 1 to 10^12.
    #[must_use]
    pub fn paced(mut self, load: u64, per_second: u64) -> Self {
        self.pace = Some(Pace::new(load, per_second));
        self
    }
}

impl<F> Generator<ByDueTime<F>> {
    /// A paced source of `f(index, due)`, where `due` is the time the index is due in Unix
    /// microseconds, and 0 for the indices below `load`. So a sink can tell the latency of a
    /// record.
    ///
    /// `records` may be `u64::MAX`: without an end. The rate is taken as the nearest in 1 to 10^12.
    #[must_use]
    pub fn scheduled<D: Record>(records: u64, load: u64, per_second: u64, f: F) -> Self
    where
        F: Fn(u64, u64) -> D + Clone + Send + 'static,
    {
        let pace = Some(Pace::new(load, per_second));
        Self { records, generate: ByDueTime(f), pace, clock: Arc::new(unix_micros) }
    }
}

impl<G> Generator<G> {
    /// Sets what tells the time, in Unix microseconds: for simulations. Only a paced generator
    /// asks.
    #[must_use]
    pub fn clock(mut self, clock: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }
}

/// A split of a [`Generator`], with its position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GeneratorSplit {
    /// The next index.
    next: u64,
    /// How far apart the split's indices are.
    stride: u64,
    /// When the paced part was first reached, in Unix microseconds.
    start_unix_micros: Option<u64>,
}

impl GeneratorSplit {
    /// The next index.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }
}

impl<G: Generate> Source for Generator<G> {
    type Record = G::Record;
    type Split = GeneratorSplit;
    type Reader = GeneratorReader<G>;

    fn splits(&mut self, parallelism: usize) -> Result<Vec<GeneratorSplit>, ConnectError> {
        let stride = parallelism.max(1) as u64;
        let split = |next| GeneratorSplit { next, stride, start_unix_micros: None };
        Ok((0..stride).map(split).collect())
    }

    fn open(&mut self, split: GeneratorSplit) -> Result<GeneratorReader<G>, ConnectError> {
        if split.stride == 0 {
            return Err(ConnectError::new("the split of a generator has stride 0: it is damaged"));
        }
        Ok(GeneratorReader { generator: self.clone(), split })
    }
}

/// Reads a split of a [`Generator`].
#[derive(Clone, Debug)]
pub struct GeneratorReader<G> {
    generator: Generator<G>,
    split: GeneratorSplit,
}

impl<G: Generate> GeneratorReader<G> {
    /// Emits the split's indices below `end`, at most `records_max`, due as `due` says.
    fn emit(
        &mut self,
        batch: &mut Vec<G::Record>,
        records_max: usize,
        end: u64,
        due: impl Fn(u64) -> u64,
    ) {
        let GeneratorSplit { next, stride, .. } = self.split;
        if next >= end {
            return;
        }
        let left = (end - next - 1) / stride + 1;
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(records_max);
        let generate = &self.generator.generate;
        // No index overflows: the last one is below `end`.
        batch.extend((0..count).map(|k| generate.generate(next + k as u64 * stride, &due)));
        self.split.next = next.saturating_add((count as u64).saturating_mul(stride));
    }

    /// Emits what is due of the paced part.
    fn emit_due(
        &mut self,
        batch: &mut Vec<G::Record>,
        records_max: usize,
        pace: Pace,
    ) -> ReadStatus {
        let now = (self.generator.clock)();
        let start = *self.split.start_unix_micros.get_or_insert(now);
        // A clock that was set back to before the start makes nothing due but the first index.
        let elapsed = now.saturating_sub(start);
        let end = pace.load.saturating_add(pace.due_records(elapsed)).min(self.generator.records);
        let before = batch.len();
        self.emit(batch, records_max, end, |index| {
            start.saturating_add(pace.due_micros(index - pace.load))
        });
        if self.split.next >= self.generator.records {
            ReadStatus::Finished
        } else if self.split.next < end && batch.len() - before == records_max {
            ReadStatus::More
        } else {
            let next_due = pace.due_micros(self.split.next - pace.load);
            let wait = Duration::from_micros(next_due.saturating_sub(elapsed));
            ReadStatus::Wait(wait.max(WAIT_MIN))
        }
    }
}

impl<G: Generate> SplitReader for GeneratorReader<G> {
    type Record = G::Record;
    type Split = GeneratorSplit;

    fn read(
        &mut self,
        batch: &mut Vec<G::Record>,
        records_max: usize,
    ) -> Result<ReadStatus, ConnectError> {
        let records = self.generator.records;
        if self.split.next >= records {
            return Ok(ReadStatus::Finished);
        }
        match self.generator.pace {
            Some(pace) if self.split.next >= pace.load => {
                return Ok(self.emit_due(batch, records_max, pace));
            }
            Some(pace) => self.emit(batch, records_max, pace.load.min(records), |_| 0),
            None => self.emit(batch, records_max, records, |_| 0),
        }
        let finished = self.split.next >= records;
        Ok(if finished { ReadStatus::Finished } else { ReadStatus::More })
    }

    fn split(&self) -> GeneratorSplit {
        self.split.clone()
    }
}

impl Pace {
    fn new(load: u64, per_second: u64) -> Self {
        Self { load, per_second: per_second.clamp(1, PER_SECOND_MAX) }
    }

    /// When the `n`th record of the paced part is due, in microseconds after the start. In two
    /// steps, since `n * 1_000_000` may not fit and a division of 128 bits a record would be slow.
    #[inline]
    fn due_micros(self, n: u64) -> u64 {
        let (seconds, rest) = (n / self.per_second, n % self.per_second);
        let micros = rest * MICROS_PER_SECOND / self.per_second;
        seconds.saturating_mul(MICROS_PER_SECOND).saturating_add(micros)
    }

    /// How many records of the paced part are due `elapsed` microseconds after the start: those
    /// with `due_micros(n) <= elapsed`.
    fn due_records(self, elapsed: u64) -> u64 {
        let product = (u128::from(elapsed) + 1) * u128::from(self.per_second) - 1;
        u64::try_from(product / u128::from(MICROS_PER_SECOND)).unwrap_or(u64::MAX).saturating_add(1)
    }
}

/// The wall clock in Unix microseconds.
fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::{Generator, Pace, WAIT_MIN};
    use crate::connect::conformance::replays;
    use crate::connect::{ReadStatus, Source, SplitReader};

    #[test]
    fn the_splits_share_the_indices_and_replay_from_every_position() {
        for (records, parallelism) in [(0, 1), (1, 2), (20, 1), (20, 3)] {
            let mut read = replays(|| Generator::new(records, |index| index), parallelism);
            read.sort_unstable();
            assert_eq!(read, (0..records).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_generator_without_an_end_goes_on_to_the_last_index() {
        let mut source = Generator::unbounded(|index| index);
        let mut split = source.splits(4).unwrap().remove(1);
        split.next = u64::MAX - 6;
        let mut reader = source.open(split).unwrap();
        let mut batch = Vec::new();
        assert_eq!(reader.read(&mut batch, 1_000).unwrap(), ReadStatus::Finished);
        assert_eq!(batch, [u64::MAX - 6, u64::MAX - 2]);
        assert_eq!(reader.read(&mut batch, 1_000).unwrap(), ReadStatus::Finished);
    }

    #[test]
    fn the_load_goes_out_at_once_and_the_rest_when_it_is_due() {
        let time = Arc::new(AtomicU64::new(5_000_000));
        let clock = Arc::clone(&time);
        let mut source = Generator::scheduled(100, 10, 1_000, |index, due| (index, due))
            .clock(move || clock.load(Ordering::Relaxed));
        let split = source.splits(2).unwrap().remove(1);
        let mut reader = source.open(split).unwrap();
        let mut batch = Vec::new();

        assert_eq!(reader.read(&mut batch, 100).unwrap(), ReadStatus::More);
        assert_eq!(batch, [(1, 0), (3, 0), (5, 0), (7, 0), (9, 0)]);

        // The schedule of this split begins now; its first index is due 1 ms later.
        batch.clear();
        let wait = ReadStatus::Wait(Duration::from_millis(1));
        assert_eq!(reader.read(&mut batch, 100).unwrap(), wait);
        assert!(batch.is_empty());

        // A restored split keeps the schedule, and what is overdue comes at full speed.
        time.store(5_010_000, Ordering::Relaxed);
        let mut reader = source.open(reader.split()).unwrap();
        assert_eq!(reader.read(&mut batch, 3).unwrap(), ReadStatus::More);
        assert_eq!(batch, [(11, 5_001_000), (13, 5_003_000), (15, 5_005_000)]);
        batch.clear();
        assert_eq!(reader.read(&mut batch, 100).unwrap(), wait);
        assert_eq!(batch, [(17, 5_007_000), (19, 5_009_000)]);

        time.store(9_000_000, Ordering::Relaxed);
        batch.clear();
        assert_eq!(reader.read(&mut batch, 100).unwrap(), ReadStatus::Finished);
        assert_eq!(batch.last(), Some(&(99, 5_089_000)));
    }

    #[test]
    fn a_clock_that_is_set_back_delays_and_loses_nothing() {
        let time = Arc::new(AtomicU64::new(1_000_000));
        let clock = Arc::clone(&time);
        let mut source = Generator::new(4, |index| index)
            .paced(0, 1_000_000)
            .clock(move || clock.load(Ordering::Relaxed));
        let split = source.splits(1).unwrap().remove(0);
        let mut reader = source.open(split).unwrap();
        let mut batch = Vec::new();
        assert_eq!(reader.read(&mut batch, 9).unwrap(), ReadStatus::Wait(WAIT_MIN));
        time.store(0, Ordering::Relaxed);
        assert_eq!(reader.read(&mut batch, 9).unwrap(), ReadStatus::Wait(WAIT_MIN));
        time.store(2_000_000, Ordering::Relaxed);
        assert_eq!(reader.read(&mut batch, 9).unwrap(), ReadStatus::Finished);
        assert_eq!(batch, [0, 1, 2, 3]);
    }

    #[test]
    fn as_many_records_are_due_as_have_a_due_time_that_has_come() {
        for per_second in [1, 3, 999, 1_000_000, 1_500_000, 7_000_001] {
            let pace = Pace::new(0, per_second);
            for elapsed in (0..50).chain(999_990..1_000_010) {
                let due = pace.due_records(elapsed);
                assert!(pace.due_micros(due - 1) <= elapsed, "{per_second} {elapsed}");
                assert!(pace.due_micros(due) > elapsed, "{per_second} {elapsed}");
            }
        }
        assert_eq!(Pace::new(0, u64::MAX).due_micros(u64::MAX), u64::MAX / 1_000_000);
    }
}
