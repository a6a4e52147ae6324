//! One suite for every operator: whatever happens to the job, what the operator emits is what a naive program finds.
//!
//! Under the simulator, with one to four workers, changed at each start (so that state and timers move), kills at any turn,
//! panics, storage and commit errors, and stops; on empty input; and in real threads on each backend.

#![allow(dead_code, reason = "a test program uses what it needs")]

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use highwater::config::{JobConfig, RestartStrategy, StateBackendKind};
use highwater::ids::Name;
use highwater::job::{JobHandle, execute};
use highwater::prelude::*;
use highwater::testing::{FaultSink, Random, Simulation, Trickle, each_seed, fewer};

/// Seeds of the simulator for each case.
pub const SEEDS: u64 = 40;

/// A record of the suite's input: its event time, the split it is from and its place there, and random numbers.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Event {
    /// Event time. Units: milliseconds.
    pub time: i64,
    pub split: u64,
    pub index: u64,
    /// Small: below the case's number of keys.
    pub key: u64,
    /// Any.
    pub value: u64,
}

type Build<O> = Arc<dyn for<'s> Fn(Stream<'s, Event>) -> Stream<'s, O> + Send + Sync>;
type Check<O> = Arc<dyn Fn(&[Event], Vec<O>) -> Result<(), String> + Send + Sync>;

/// An operator under test, the input it gets, and what its output is held to.
pub struct Case<O: Record> {
    name: &'static str,
    seeds: u64,
    keys: u64,
    records: u64,
    step_ms: u64,
    disorder_ms: u64,
    bound_ms: u64,
    build: Build<O>,
    check: Check<O>,
}

/// The suite for an operator: `build` puts it behind the input, and `oracle` says what comes out, from the whole input (in no
/// order that means anything). The results are compared as multisets.
pub fn case<O: Record + Sync + Debug + Ord>(
    name: &'static str,
    build: impl for<'s> Fn(Stream<'s, Event>) -> Stream<'s, O> + Send + Sync + 'static,
    oracle: impl Fn(&[Event]) -> Vec<O> + Send + Sync + 'static,
) -> Case<O> {
    checked_case(name, build, move |input, output| same(oracle(input), output))
}

/// As [`case`], for operators whose output is not one multiset: `check` gets the input and what was committed.
pub fn checked_case<O: Record + Sync + Debug>(
    name: &'static str,
    build: impl for<'s> Fn(Stream<'s, Event>) -> Stream<'s, O> + Send + Sync + 'static,
    check: impl Fn(&[Event], Vec<O>) -> Result<(), String> + Send + Sync + 'static,
) -> Case<O> {
    Case {
        name,
        seeds: SEEDS,
        keys: 5,
        records: 60,
        step_ms: 20,
        disorder_ms: 0,
        bound_ms: 0,
        build: Arc::new(build),
        check: Arc::new(check),
    }
}

/// Says what is lost and what is there too often, of two multisets.
pub fn same<O: Debug + Ord>(mut expected: Vec<O>, mut found: Vec<O>) -> Result<(), String> {
    expected.sort();
    found.sort();
    let (mut lost, mut doubled) = (Vec::new(), Vec::new());
    let (mut left, mut right) = (expected.into_iter().peekable(), found.into_iter().peekable());
    loop {
        match (left.peek(), right.peek()) {
            (None, None) => break,
            (Some(_), None) => lost.extend(left.by_ref()),
            (None, Some(_)) => doubled.extend(right.by_ref()),
            (Some(one), Some(other)) => match one.cmp(other) {
                std::cmp::Ordering::Less => lost.extend(left.next()),
                std::cmp::Ordering::Greater => doubled.extend(right.next()),
                std::cmp::Ordering::Equal => drop((left.next(), right.next())),
            },
        }
    }
    if lost.is_empty() && doubled.is_empty() {
        return Ok(());
    }
    Err(format!("LOSS {} DUP {}; lost {lost:?}; too many {doubled:?}", lost.len(), doubled.len()))
}

impl<O: Record + Sync + Debug> Case<O> {
    /// Seeds of the simulator: fewer for operators that take long.
    pub fn seeds(mut self, seeds: u64) -> Self {
        self.seeds = seeds;
        self
    }

    /// Different keys.
    pub fn keys(mut self, keys: u64) -> Self {
        self.keys = keys;
        self
    }

    /// Records of each of up to three splits, at the most.
    pub fn records(mut self, records: u64) -> Self {
        self.records = records;
        self
    }

    /// Event time between two records of a split, at the most.
    pub fn step_ms(mut self, step: u64) -> Self {
        self.step_ms = step;
        self
    }

    /// Records come up to `disorder` too late in their split, and watermarks allow for it: none of them is late.
    pub fn out_of_order(mut self, disorder: u64) -> Self {
        self.disorder_ms = disorder;
        self.bound_ms = disorder;
        self
    }

    /// Records come up to `disorder` too late, and watermarks allow for a part of it: some of them are late.
    pub fn late(mut self, disorder: u64, allowed: u64) -> Self {
        self.disorder_ms = disorder;
        self.bound_ms = allowed;
        self
    }

    fn input(&self, seed: u64, records: u64) -> Input {
        let mut random = Random::new(seed).fork(77);
        Input {
            seed,
            splits: random.between(1, 3),
            records,
            keys: self.keys,
            step_ms: self.step_ms,
            disorder_ms: self.disorder_ms,
        }
    }

    /// Runs all of the suite.
    ///
    /// # Panics
    /// If the operator does not conform.
    pub fn run(self) {
        self.on_empty_input();
        self.under_the_simulator();
        self.in_threads();
    }

    fn on_empty_input(&self) {
        let committed = self.simulated(1, self.input(1, 0), false);
        (self.check)(&[], committed).unwrap_or_else(|why| panic!("{}, no input: {why}", self.name));
    }

    fn under_the_simulator(&self) {
        each_seed(self.name, self.seeds, "", |seed| {
            let records = Random::new(seed).fork(78).scaled(1, self.records);
            let input = self.input(seed, fewer(records));
            let all = input.all();
            let committed = self.simulated(seed, input, true);
            (self.check)(&all, committed).unwrap_or_else(|why| panic!("{}: {why}", self.name));
        });
    }

    fn simulated(&self, seed: u64, input: Input, faults: bool) -> Vec<O> {
        let sink = Collect::new();
        let collected = sink.handle();
        let (build, bound) = (Arc::clone(&self.build), Duration::from_millis(self.bound_ms));
        let simulation = if faults {
            Simulation::new(seed)
                .workers(1..=4)
                .crashes(2)
                .panics(1)
                .stops(1)
                .storage_errors(0.02)
                .commit_errors(0.05)
        } else {
            Simulation::new(seed).workers(1..=2)
        };
        let outcome = simulation.run(move |job| {
            let source =
                Trickle::new(seed, input.splits, input.records, move |s, i| input.event(s, i));
            let strategy = WatermarkStrategy::bounded(bound);
            let events =
                job.source_with("events", source, EventTime::new(strategy, |e: &Event| e.time));
            build(events).sink("out", FaultSink::new(sink.clone()));
            Ok(())
        });
        outcome.write_trace();
        outcome.check();
        collected.committed()
    }

    fn in_threads(&self) {
        for (workers, backend) in [1, 3].into_iter().flat_map(|n| backends().map(move |b| (n, b))) {
            let input = self.input(11, 200);
            let mut config = JobConfig::new(Name::new("conformance").expect("a constant name"));
            config.workers = workers;
            config.checkpoints.interval = Some(Duration::from_millis(5));
            config.restart = RestartStrategy::FixedDelay { attempts: 2, delay: Duration::ZERO };
            config.state.backend = backend;
            let sink = Collect::new();
            let collected = sink.handle();
            let (build, bound) = (Arc::clone(&self.build), Duration::from_millis(self.bound_ms));
            let handle = JobHandle::default();
            execute(config, &handle, move |job| {
                let source =
                    Trickle::new(11, input.splits, input.records, move |s, i| input.event(s, i));
                let strategy = WatermarkStrategy::bounded(bound);
                let time = EventTime::new(strategy, |e: &Event| e.time);
                build(job.source_with("events", source, time)).sink("out", sink.clone());
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{}, {workers} workers: {error}", self.name));
            assert!(!handle.counters().checkpoints().completed.is_empty(), "{}", self.name);
            (self.check)(&input.all(), collected.committed()).unwrap_or_else(|why| {
                panic!("{}, {workers} workers, {backend:?}: {why}", self.name)
            });
        }
    }
}

fn backends() -> impl Iterator<Item = StateBackendKind> + Clone {
    let mut all = vec![StateBackendKind::Heap];
    if cfg!(feature = "rocksdb") {
        all.push(StateBackendKind::RocksDb);
    }
    all.into_iter()
}

/// Makes records that follow from their place.
#[derive(Clone, Copy, Debug)]
struct Input {
    seed: u64,
    splits: u64,
    records: u64,
    keys: u64,
    step_ms: u64,
    disorder_ms: u64,
}

impl Input {
    fn event(self, split: u64, index: u64) -> Event {
        let mut random = Random::new(self.seed).fork(split << 32 | index);
        // Without disorder a split's time grows: each record has its place in a step of its own.
        let base = index * self.step_ms + random.below(self.step_ms.max(1));
        let back = random.below(self.disorder_ms + 1);
        Event {
            time: base as i64 - back as i64,
            split,
            index,
            key: random.below(self.keys),
            value: random.next(),
        }
    }

    /// The records in threads, where one sequence is read in parts: record `n` is of split `n % splits`.
    fn numbered(self, n: u64) -> Event {
        self.event(n % self.splits, n / self.splits)
    }

    fn all(self) -> Vec<Event> {
        (0..self.splits * self.records).map(|n| self.numbered(n)).collect()
    }
}
