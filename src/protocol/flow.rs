//! How much data moves at once: the release quantum of a channel, and the in-flight budget of a
//! pair of workers.
//!
//! Both measure how fast the user's code is, and turn a time that the user configures into an
//! amount:
//!
//! | amount      | of what                                     | so that                            |
//! |-------------|---------------------------------------------|------------------------------------|
//! | [`Quantum`] | records that a channel releases in a step   | a step takes about `step_target`   |
//! | [`Budget`]  | bytes sent to a worker and not yet released | they take about `in_flight_target` |
//!
//! # Rules of the quantum (one observation a step)
//! | observation                                 | next quantum                                            |
//! |---------------------------------------------|---------------------------------------------------------|
//! | more than twice the target                  | what would have taken the target                        |
//! | less than half, and the quantum was used up | what would have taken the target, at most twice as much |
//! | else                                        | the same                                                |
//!
//! # Rules of the budget (any number of observations)
//! | since the last observation                | next budget                              |
//! |-------------------------------------------|------------------------------------------|
//! | the consumer had work all the time        | follows the measured rate of consumption |
//! | sources stopped, yet the consumer ran dry | twice as much                            |
//! | the consumer ran dry, sources not stopped | the same: it only lacked input           |
//!
//! # Invariants
//!   * A quantum lies between 1 and its maximum: a channel always makes progress.
//!   * A budget lies between [`BUDGET_BYTES_MIN`] and the configured maximum (which wins if it is
//!     less): a source may always send something, and memory is bounded.

use std::time::Duration;

use crate::config::FlowConfig;

/// The largest release quantum, in records. At the 16 ns that a cheap record costs, about a
/// millisecond.
pub const QUANTUM_RECORDS_MAX: usize = 65_536;

/// The least budget: a few records. A consumer that takes 10 ms for each then has little more in
/// its queue than what it works on; one record may always be sent, however large.
pub const BUDGET_BYTES_MIN: u64 = 1 << 10;

/// The budget before anything is measured.
const BUDGET_BYTES_FIRST: u64 = 64 << 10;

/// Busy time that is measured before the rate is taken from it. Shorter spans measure the
/// scheduler.
const RATE_SPAN_MIN: Duration = Duration::from_millis(5);

/// How many records a channel releases in one step.
#[derive(Clone, Debug)]
pub struct Quantum {
    target: Duration,
    records: usize,
    records_max: usize,
}

impl Quantum {
    /// A quantum that keeps a step near `target`, between 1 and `records_max` records. It begins
    /// with 1, since the first record may cost 10 ms, and a thousand of them would stop the worker
    /// for 10 s; from there, ten cheap steps reach a thousand.
    #[must_use]
    pub fn new(target: Duration, records_max: usize) -> Self {
        Self { target, records: 1, records_max: records_max.max(1) }
    }

    /// The number of records to release in the next step.
    #[must_use]
    pub fn records(&self) -> usize {
        self.records
    }

    /// Takes in that a step with `released` records took `elapsed`.
    pub fn observe(&mut self, released: usize, elapsed: Duration) {
        if released == 0 {
            return;
        }
        let (elapsed, target) = (elapsed.as_nanos().max(1), self.target.as_nanos());
        let in_target = (released as u128).saturating_mul(target) / elapsed;
        let in_target = usize::try_from(in_target).unwrap_or(usize::MAX);
        let next = if elapsed > target.saturating_mul(2) {
            in_target.min(self.records)
        } else if elapsed < target / 2 && released >= self.records {
            in_target.min(self.records.saturating_mul(2))
        } else {
            return;
        };
        self.records = next.clamp(1, self.records_max);
    }
}

/// How many bytes one worker may have sent to another that the other has not yet released to its
/// operators.
#[derive(Clone, Debug)]
pub struct Budget {
    target: Duration,
    bytes_max: u64,
    /// Rate of consumption in bytes a second: a moving average over busy time with the target as
    /// time constant.
    rate: f64,
    /// Busy time that is not in `rate` yet, and the bytes consumed in it.
    busy: Duration,
    busy_bytes: u64,
    /// When the last observation was, and whether it left something to consume.
    last: Option<(Duration, bool)>,
}

impl Budget {
    /// The budget of a pair of workers that have not exchanged anything.
    #[must_use]
    pub fn new(config: &FlowConfig) -> Self {
        let target = config.in_flight_target.max(Duration::from_millis(1));
        Self {
            target,
            bytes_max: config.in_flight_bytes_max.max(1),
            rate: BUDGET_BYTES_FIRST as f64 / target.as_secs_f64(),
            busy: Duration::ZERO,
            busy_bytes: 0,
            last: None,
        }
    }

    /// The budget now. A source may send while less than this is outstanding.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let bytes = (self.rate * self.target.as_secs_f64()) as u64;
        bytes.max(BUDGET_BYTES_MIN).min(self.bytes_max)
    }

    /// Takes in what happened since the last observation.
    ///
    /// `consumed_bytes` were released by the receiver. `outstanding_bytes` are sent and not
    /// released at `now`. `stopped`: a source waited at some time because the budget was used up.
    pub fn observe(
        &mut self,
        consumed_bytes: u64,
        outstanding_bytes: u64,
        stopped: bool,
        now: Duration,
    ) {
        let had_work = outstanding_bytes > 0;
        let Some((before, had_work_before)) = self.last.replace((now, had_work)) else { return };
        if had_work && had_work_before {
            self.busy = self.busy.saturating_add(now.saturating_sub(before));
            self.busy_bytes = self.busy_bytes.saturating_add(consumed_bytes);
            self.measure();
        } else if stopped && !had_work {
            // The budget itself starved the consumer: from nothing measured, only a larger one
            // tells its speed.
            self.forget_span();
            self.rate = 2.0 * self.bytes() as f64 / self.target.as_secs_f64();
        }
    }

    fn measure(&mut self) {
        if self.busy < RATE_SPAN_MIN {
            return;
        }
        let span = self.busy.as_secs_f64();
        let weight = span / (span + self.target.as_secs_f64());
        self.rate += weight * (self.busy_bytes as f64 / span - self.rate);
        self.forget_span();
    }

    fn forget_span(&mut self) {
        self.busy = Duration::ZERO;
        self.busy_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_millis(5);

    /// Runs `steps` full steps of records that cost `cost` each; returns how long the last took.
    fn run(quantum: &mut Quantum, steps: usize, cost: Duration) -> Duration {
        let mut elapsed = Duration::ZERO;
        for _ in 0..steps {
            elapsed = cost * u32::try_from(quantum.records()).unwrap();
            quantum.observe(quantum.records(), elapsed);
        }
        elapsed
    }

    #[test]
    fn the_quantum_brings_a_step_near_the_target_whatever_a_record_costs() {
        for cost in [100, 1_000, 10_000, 100_000, 1_000_000].map(Duration::from_nanos) {
            let mut quantum = Quantum::new(TARGET, QUANTUM_RECORDS_MAX);
            let elapsed = run(&mut quantum, 20, cost);
            assert!((TARGET / 2..=TARGET * 2).contains(&elapsed), "{cost:?}: {elapsed:?}");
        }
    }

    #[test]
    fn the_quantum_stays_between_one_and_its_maximum() {
        let mut quantum = Quantum::new(TARGET, 1000);
        assert_eq!(quantum.records(), 1);
        run(&mut quantum, 50, Duration::ZERO);
        assert_eq!(quantum.records(), 1000);
        run(&mut quantum, 1, Duration::from_secs(3600));
        assert_eq!(quantum.records(), 1);
        assert_eq!(Quantum::new(TARGET, 0).records(), 1);
    }

    #[test]
    fn the_quantum_falls_at_once_when_records_become_slow() {
        let mut quantum = Quantum::new(TARGET, QUANTUM_RECORDS_MAX);
        run(&mut quantum, 20, Duration::from_nanos(50));
        assert_eq!(quantum.records(), QUANTUM_RECORDS_MAX);
        run(&mut quantum, 1, Duration::from_millis(10));
        assert_eq!(quantum.records(), 1, "after a single slow step");
        quantum.observe(1, Duration::from_millis(10));
        assert_eq!(quantum.records(), 1);
    }

    #[test]
    fn the_quantum_at_most_doubles_and_only_when_it_was_the_limit() {
        let mut quantum = Quantum::new(TARGET, QUANTUM_RECORDS_MAX);
        run(&mut quantum, 5, Duration::ZERO);
        assert_eq!(quantum.records(), 32);
        quantum.observe(31, Duration::ZERO);
        quantum.observe(0, Duration::from_secs(1));
        assert_eq!(quantum.records(), 32);
    }

    fn config() -> FlowConfig {
        FlowConfig {
            in_flight_target: Duration::from_millis(200),
            in_flight_bytes_max: 32 << 20,
            step_target: TARGET,
        }
    }

    /// A consumer of `rate` bytes a second with its queue never empty, observed every 10 ms for
    /// `time`.
    fn consume(budget: &mut Budget, clock: &mut Duration, rate: u64, time: Duration) {
        let end = *clock + time;
        while *clock < end {
            *clock += Duration::from_millis(10);
            budget.observe(rate / 100, 1, false, *clock);
        }
    }

    #[test]
    fn the_budget_stands_for_the_target_time_of_a_busy_consumer() {
        let mut clock = Duration::ZERO;
        let mut budget = Budget::new(&config());
        consume(&mut budget, &mut clock, 50_000_000, Duration::from_secs(3));
        let bytes = budget.bytes();
        assert!((9_500_000..=10_100_000).contains(&bytes), "0.2 s of 50 MB/s: {bytes}");
        consume(&mut budget, &mut clock, 500_000, Duration::from_secs(3));
        let bytes = budget.bytes();
        assert!((99_000..=110_000).contains(&bytes), "0.2 s of 0.5 MB/s: {bytes}");
    }

    #[test]
    fn the_budget_stays_between_one_batch_and_the_ceiling() {
        let mut clock = Duration::ZERO;
        let mut budget = Budget::new(&config());
        consume(&mut budget, &mut clock, 0, Duration::from_secs(60));
        assert_eq!(budget.bytes(), BUDGET_BYTES_MIN);
        consume(&mut budget, &mut clock, u64::MAX / 2, Duration::from_secs(1));
        assert_eq!(budget.bytes(), 32 << 20);
        let tiny = FlowConfig { in_flight_bytes_max: 100, ..config() };
        assert_eq!(Budget::new(&tiny).bytes(), 100, "the ceiling wins over the least batch");
    }

    #[test]
    fn a_consumer_that_lacks_input_does_not_shrink_the_budget() {
        let mut clock = Duration::ZERO;
        let mut budget = Budget::new(&config());
        consume(&mut budget, &mut clock, 50_000_000, Duration::from_secs(3));
        let before = budget.bytes();
        for _ in 0..10_000 {
            clock += Duration::from_millis(10);
            budget.observe(100, 0, false, clock);
        }
        // An hour of silence, then a little that is still queued.
        clock += Duration::from_secs(3600);
        budget.observe(10, 5, false, clock);
        assert_eq!(budget.bytes(), before);
    }

    #[test]
    fn a_budget_that_starves_its_consumer_doubles_each_time() {
        let mut budget = Budget::new(&config());
        let first = budget.bytes();
        let mut clock = Duration::ZERO;
        budget.observe(0, 0, false, clock);
        for _ in 0..5 {
            clock += Duration::from_millis(1);
            budget.observe(budget.bytes(), 0, true, clock);
        }
        let grown = budget.bytes();
        assert!((31 * first..=32 * first).contains(&grown), "{grown}");
        for _ in 0..50 {
            clock += Duration::from_millis(1);
            budget.observe(1, 0, true, clock);
        }
        assert_eq!(budget.bytes(), 32 << 20);
    }

    #[test]
    fn the_budget_recovers_from_the_least_within_a_second() {
        // A pause of the consumer (its process was stopped) has shrunk the budget; now it is fast
        // again.
        let mut clock = Duration::ZERO;
        let mut budget = Budget::new(&config());
        consume(&mut budget, &mut clock, 0, Duration::from_secs(60));
        consume(&mut budget, &mut clock, 50_000_000, Duration::from_secs(1));
        assert!(budget.bytes() > 9_000_000, "{}", budget.bytes());
    }
}
