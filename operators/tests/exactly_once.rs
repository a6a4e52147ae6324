//! The operators against naive oracles: any number of workers, a panic in between, a rescale over a stop.

#![allow(clippy::unwrap_used, reason = "what is not as expected fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use highwater::config::{JobConfig, RestartStrategy};
use highwater::ids::Name;
use highwater::job::{JobHandle, execute};
use highwater::prelude::*;
use highwater_operators::{Average, Count, Dedup, Max, Min, RunningAggregate, Sum, net};

const RECORDS: u64 = 30_000;
const KEYS: u64 = 700;

fn config(workers: usize) -> JobConfig {
    let mut config = JobConfig::new(Name::new("operators").unwrap());
    config.workers = workers;
    config.checkpoints.interval = Some(Duration::from_millis(5));
    config.restart = RestartStrategy::FixedDelay { attempts: 2, delay: Duration::ZERO };
    config
}

/// Key, then a value that is different for every record.
fn record(index: u64) -> (u64, i64) {
    let mixed = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed % KEYS, (mixed >> 20) as i64 - (1 << 43))
}

/// Panics once, late in the input and after a checkpoint is complete.
#[derive(Clone)]
struct Fuse {
    handle: JobHandle,
    blown: Arc<AtomicBool>,
}

impl Fuse {
    fn new(handle: &JobHandle) -> Self {
        Self { handle: handle.clone(), blown: Arc::default() }
    }

    fn pass(&self, index: u64) {
        let late = index > RECORDS / 3;
        if late
            && !self.blown.load(Ordering::SeqCst)
            && !self.handle.counters().checkpoints().completed.is_empty()
            && !self.blown.swap(true, Ordering::SeqCst)
        {
            panic!("the test's own panic");
        }
    }

    fn is_blown(&self) -> bool {
        self.blown.load(Ordering::SeqCst)
    }
}

/// Runs a job whose source is slow enough for checkpoints to fall in between.
fn run<O: Record + Sync>(
    workers: usize,
    with_panic: bool,
    build: impl for<'s> Fn(Stream<'s, (u64, i64)>) -> Stream<'s, O> + Send + Sync + 'static,
) -> Vec<O> {
    let handle = JobHandle::default();
    let fuse = with_panic.then(|| Fuse::new(&handle));
    let collect = Collect::new();
    let seen = collect.handle();
    let job_fuse = fuse.clone();
    execute(config(workers), &handle, move |job| {
        let fuse = job_fuse.clone();
        let numbers = job
            .source("numbers", Generator::new(RECORDS, |index| index).paced(0, 60_000))
            .map(move |index| {
                if let Some(fuse) = &fuse {
                    fuse.pass(index);
                }
                record(index)
            });
        build(numbers).sink("out", collect.clone());
        Ok(())
    })
    .unwrap();
    assert_eq!(handle.counters().restarts(), u64::from(with_panic));
    assert!(fuse.is_none_or(|fuse| fuse.is_blown()));
    assert!(handle.counters().checkpoints().completed.len() > 1);
    seen.committed()
}

fn by_key() -> BTreeMap<u64, Vec<i64>> {
    let mut all: BTreeMap<u64, Vec<i64>> = BTreeMap::new();
    for (key, value) in (0..RECORDS).map(record) {
        all.entry(key).or_default().push(value);
    }
    all
}

#[test]
fn each_key_is_emitted_once_with_any_number_of_workers_and_a_panic_in_between() {
    for (workers, with_panic) in [(1, false), (2, true), (3, true)] {
        let emitted = run(workers, with_panic, |numbers| numbers.dedup("once", |(key, _)| *key));
        let inputs: BTreeSet<(u64, i64)> = (0..RECORDS).map(record).collect();
        assert!(emitted.iter().all(|record| inputs.contains(record)));
        let mut keys: Vec<u64> = emitted.iter().map(|(key, _)| *key).collect();
        keys.sort_unstable();
        assert_eq!(keys, (0..KEYS).collect::<Vec<_>>(), "{workers} workers");
        if workers == 1 {
            let mut seen = BTreeSet::new();
            let firsts = (0..RECORDS).map(record).filter(|(key, _)| seen.insert(*key));
            assert_eq!(emitted, firsts.collect::<Vec<_>>(), "in the order of the source");
        }
    }
}

#[test]
fn a_running_sum_has_one_result_for_each_record_and_ends_with_the_sum() {
    for (workers, with_panic) in [(1, true), (3, true)] {
        let emitted = run(workers, with_panic, |numbers| {
            // The prefix sums of ones are the same in every order.
            numbers.into_keyed(|(key, _)| (key, 1_u64)).aggregate("sum", Sum::new())
        });
        let mut results: BTreeMap<u64, Vec<u128>> = BTreeMap::new();
        for (key, sum) in emitted {
            results.entry(key).or_default().push(sum);
        }
        let expected: BTreeMap<u64, Vec<u128>> = by_key()
            .into_iter()
            .map(|(key, values)| (key, (1..=values.len() as u128).collect()))
            .collect();
        assert_eq!(results, expected, "{workers} workers");
    }
}

#[test]
fn all_aggregates_end_with_what_a_naive_fold_gives() {
    let emitted = run(2, true, |numbers| {
        let keyed = numbers.into_keyed(|record| record);
        let count =
            keyed.clone().aggregate("count", Count::new()).map(|(k, n)| (k, 0, i128::from(n)));
        let sum = keyed.clone().aggregate("sum", Sum::new()).map(|(k, n)| (k, 1, n));
        let min = keyed.clone().aggregate("min", Min::new()).map(|(k, n)| (k, 2, i128::from(n)));
        let max = keyed.clone().aggregate("max", Max::new()).map(|(k, n)| (k, 3, i128::from(n)));
        let mean = keyed.aggregate("mean", Average::new()).map(|(k, n)| (k, 4, n as i128));
        count.union(sum).union(min).union(max).union(mean)
    });
    assert_eq!(emitted.len() as u64, 5 * RECORDS);
    // Results of one key and aggregate leave in order, so the last one is that of all records.
    let last: BTreeMap<(u64, u8), i128> =
        emitted.into_iter().map(|(key, kind, result)| ((key, kind), result)).collect();
    for (key, values) in by_key() {
        let sum: i128 = values.iter().copied().map(i128::from).sum();
        assert_eq!(last[&(key, 0)], values.len() as i128);
        assert_eq!(last[&(key, 1)], sum);
        assert_eq!(last[&(key, 2)], i128::from(*values.iter().min().unwrap()));
        assert_eq!(last[&(key, 3)], i128::from(*values.iter().max().unwrap()));
        assert_eq!(last[&(key, 4)], (sum as f64 / values.len() as f64) as i128);
    }
}

#[test]
fn adding_new_results_and_taking_old_ones_away_leaves_the_current_one_of_each_key() {
    let emitted = run(3, true, |numbers| {
        numbers.into_keyed(|record| record).aggregate_changes("max", Max::new())
    });
    assert!(emitted.iter().any(|change| !change.is_insert()), "results change");
    let expected: BTreeMap<(u64, i64), i64> = by_key()
        .into_iter()
        .map(|(key, values)| ((key, *values.iter().max().unwrap()), 1))
        .collect();
    assert_eq!(net(emitted), expected);
}

#[test]
fn what_was_seen_is_remembered_over_stops_with_other_numbers_of_workers() {
    let directory = tempfile::tempdir().unwrap();
    let collect = Collect::new();
    let seen = collect.handle();
    let mut runs = 0;
    for workers in [2, 3, 1] {
        let mut config = config(workers);
        config.checkpoints.directory = Some(directory.path().to_owned());
        let handle = JobHandle::default();
        let last = workers == 1;
        let (stopper, collect) = (handle.clone(), collect.clone());
        execute(config, &handle, move |job| {
            let (stopper, collect) = (stopper.clone(), collect.clone());
            let start = stopper.counters().source_records();
            job.source("numbers", Generator::new(RECORDS, record).paced(0, 60_000))
                .inspect(move |_| {
                    let read = stopper.counters().source_records() - start;
                    if !last && read > RECORDS / 4 {
                        stopper.stop();
                    }
                })
                .dedup("once", |(key, _)| *key)
                .into_keyed(|record| record)
                .aggregate("count", Count::new())
                .sink("out", collect);
            Ok(())
        })
        .unwrap();
        runs += u64::from(handle.counters().source_records() < RECORDS);
    }
    assert_eq!(runs, 3, "each run read a part");
    let mut emitted = seen.committed();
    emitted.sort_unstable();
    assert_eq!(emitted, (0..KEYS).map(|key| (key, 1)).collect::<Vec<_>>());
}

/// Timestamps that go up by about 1 ms a record, out of order by up to 40 ms, and now and then very late.
fn event(index: u64) -> (u64, i64) {
    let mixed = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let late = if mixed.is_multiple_of(97) { 400 } else { (mixed % 40) as i64 };
    (mixed % 50, index as i64 - late)
}

#[test]
fn within_a_bound_no_two_records_are_emitted_unless_the_second_was_late() {
    const WITHIN: i64 = 120;
    const EVENTS: u64 = 20_000;
    for workers in [1, 2, 3] {
        let collect = Collect::new();
        let seen = collect.handle();
        let handle = JobHandle::default();
        execute(config(workers), &handle, move |job| {
            let strategy = WatermarkStrategy::bounded(Duration::from_millis(40));
            let time = EventTime::new(strategy, |(_, at): &(u64, i64)| *at);
            job.source_with("events", Generator::new(EVENTS, event).paced(0, 50_000), time)
                .dedup_within(
                    "near",
                    Duration::from_millis(WITHIN as u64),
                    |(_, at)| *at,
                    |(key, _)| *key,
                )
                .sink("out", collect.clone());
            Ok(())
        })
        .unwrap();
        let mut emitted: BTreeMap<u64, Vec<i64>> = BTreeMap::new();
        for (key, at) in seen.committed() {
            emitted.entry(key).or_default().push(at);
        }
        assert_eq!(emitted.len(), 50, "no key is lost");
        let late: BTreeSet<(u64, i64)> = (0..EVENTS)
            .map(|index| (index, event(index)))
            .filter(|(index, (_, at))| *index as i64 - at > 40)
            .map(|(_, event)| event)
            .collect();
        assert!(!late.is_empty());
        for (key, times) in &emitted {
            for (index, second) in times.iter().enumerate() {
                let near =
                    times[..index].iter().any(|first| first.abs_diff(*second) <= WITHIN as u64);
                assert!(
                    !near || late.contains(&(*key, *second)),
                    "key {key}: {second} of {times:?}"
                );
            }
        }
        // Every record that is not emitted is near one that is.
        for (key, at) in (0..EVENTS).map(event) {
            let near = emitted[&key].iter().any(|kept| kept.abs_diff(at) <= WITHIN as u64);
            assert!(near, "{key} {at} is lost");
        }
    }
}

#[test]
fn nothing_comes_of_nothing() {
    let collect = Collect::<(u64, u64)>::new();
    let seen = collect.handle();
    execute(config(2), &JobHandle::default(), move |job| {
        job.source("empty", Collection::new(Vec::<(u64, i64)>::new()))
            .dedup("once", |(key, _)| *key)
            .dedup_within("near", Duration::from_millis(1), |(_, at)| *at, |(key, _)| *key)
            .into_keyed(|record| record)
            .aggregate("count", Count::new())
            .sink("out", collect.clone());
        Ok(())
    })
    .unwrap();
    assert_eq!(seen.committed(), []);
}
