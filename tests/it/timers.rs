//! Timers as a program sees them: each fires once, whatever happens to the job.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use highwater::config::CheckpointMode;
use highwater::prelude::*;

use crate::failure::Faults;
use crate::support::{
    Background, Scratch, assert_same, quiet_panics, run, running_counts, throttle, wait_until,
};

const RECORDS: u64 = 30_000;
const KEYS: u64 = 7;
/// Units: milliseconds of event time, which are records.
const WINDOW: u64 = 50;

/// Counts the records of each key in windows of event time.
fn windows<'scope>(
    numbers: Stream<'scope, u64>,
    faults: Faults,
) -> Stream<'scope, (u64, i64, u64)> {
    let on_fire = faults.clone();
    numbers.key_by(|n| n % KEYS).process_with_timers(
        "windows",
        Map::<i64, u64>::new("counts"),
        move |_, n, counts, context| {
            faults.pass();
            let end = (n - n % WINDOW + WINDOW - 1) as i64;
            let count = counts.get(&end).copied().unwrap_or(0);
            counts.insert(end, count + 1);
            context.register_event_timer(end);
        },
        move |key, timer, counts, context| {
            on_fire.pass();
            let count = counts.remove(&timer.time).expect("a window that fires has records");
            context.emit((*key, timer.time, count));
        },
    )
}

fn expected_windows() -> Vec<(u64, i64, u64)> {
    let mut counts = BTreeMap::new();
    for n in 0..RECORDS {
        let end = (n - n % WINDOW + WINDOW - 1) as i64;
        *counts.entry((n % KEYS, end)).or_insert(0) += 1;
    }
    counts.into_iter().map(|((key, end), count)| (key, end, count)).collect()
}

#[test]
fn a_panic_in_either_function_costs_and_doubles_no_timer() {
    quiet_panics();
    for workers in 1..=3 {
        let scratch = Scratch::new();
        let collect = Collect::new();
        let (sink, faults) = (collect.clone(), Faults::at([RECORDS / 3, RECORDS * 2 / 3]));
        let planted = faults.clone();
        run(scratch.config(workers), move |job| {
            let numbers = Generator::new(RECORDS, |i| i).paced(0, 200_000);
            let numbers = job.source_with("numbers", numbers, EventTime::monotonic(|n| *n as i64));
            windows(numbers, faults.clone()).sink("out", sink.clone());
            Ok(())
        })
        .unwrap();
        assert_eq!(planted.happened(), 2);
        assert_same(expected_windows(), collect.handle().committed());
        scratch.assert_directory_is_the_reachable_set();
    }
}

#[test]
fn at_least_once_no_timer_is_lost() {
    quiet_panics();
    let scratch = Scratch::new();
    let mut config = scratch.config(2);
    config.checkpoints.mode = CheckpointMode::AtLeastOnce;
    let collect = Collect::new();
    let (sink, faults) = (collect.clone(), Faults::at([RECORDS / 3, RECORDS * 2 / 3]));
    let planted = faults.clone();
    run(config, move |job| {
        let numbers = Generator::new(RECORDS, |i| i).paced(0, 200_000);
        let numbers = job.source_with("numbers", numbers, EventTime::monotonic(|n| *n as i64));
        windows(numbers, faults.clone()).sink("out", sink.clone());
        Ok(())
    })
    .unwrap();
    assert_eq!(planted.happened(), 2);
    let fired: BTreeSet<(u64, i64)> =
        collect.handle().committed().iter().map(|(key, end, _)| (*key, *end)).collect();
    assert_same(expected_windows().iter().map(|(key, end, _)| (*key, *end)), fired);
}

#[test]
fn timers_fire_once_when_a_job_goes_on_with_one_three_and_two_workers() {
    let scratch = Scratch::new();
    let collect = Collect::new();
    for workers in [1, 3, 2] {
        let sink = collect.clone();
        let job = Background::start(scratch.config(workers), move |job| {
            let numbers = Generator::new(RECORDS, |i| i);
            let numbers = job.source_with("numbers", numbers, EventTime::monotonic(|n| *n as i64));
            windows(numbers.inspect(throttle(10)), Faults::at([])).sink("out", sink.clone());
            Ok(())
        });
        if workers == 2 {
            job.end().unwrap();
        } else {
            job.wait_for_more_checkpoints(4);
            job.handle.stop();
            job.end().unwrap();
        }
    }
    assert_same(expected_windows(), collect.handle().committed());
    scratch.assert_directory_is_the_reachable_set();
}

/// Every key waits a little of processing time after its first record.
fn alarms<'scope>(
    numbers: Stream<'scope, u64>,
    wait: i64,
    fired: Arc<AtomicU64>,
) -> Stream<'scope, (u64, u64)> {
    numbers.key_by(|n| *n).process_with_timers(
        "alarms",
        Value::<u64>::new("count"),
        move |_, _, count, context| {
            *count.or_default() += 1;
            context.register_processing_timer(context.now() + wait);
        },
        move |key, timer, count, context| {
            assert_eq!(timer.domain, TimeDomain::ProcessingTime);
            assert!(timer.time <= context.now());
            fired.fetch_add(1, Ordering::Relaxed);
            context.emit((*key, count.take().unwrap_or(0)));
        },
    )
}

/// A source of some numbers that ends when it is told to.
#[derive(Clone)]
struct Held {
    records: u64,
    end: Arc<AtomicBool>,
}

impl Source for Held {
    type Record = u64;
    type Split = u64;
    type Reader = HeldReader;
    fn splits(&mut self, _: usize) -> Result<Vec<u64>, ConnectError> {
        Ok(vec![0])
    }
    fn open(&mut self, next: u64) -> Result<HeldReader, ConnectError> {
        Ok(HeldReader { from: self.clone(), next })
    }
}

struct HeldReader {
    from: Held,
    next: u64,
}

impl highwater::connect::SplitReader for HeldReader {
    type Record = u64;
    type Split = u64;
    fn read(
        &mut self,
        batch: &mut Vec<u64>,
        _: usize,
    ) -> Result<highwater::connect::ReadStatus, ConnectError> {
        use highwater::connect::ReadStatus;
        if self.next < self.from.records {
            batch.push(self.next);
            self.next += 1;
            return Ok(ReadStatus::More);
        }
        if self.from.end.load(Ordering::Relaxed) {
            return Ok(ReadStatus::Finished);
        }
        Ok(ReadStatus::Wait(Duration::from_millis(1)))
    }
    fn split(&self) -> u64 {
        self.next
    }
}

#[test]
fn processing_time_timers_fire_while_no_record_comes_and_wake_the_worker() {
    for workers in 1..=2 {
        let scratch = Scratch::new();
        let collect = Collect::new();
        let source = Held { records: 100, end: Arc::default() };
        let (sink, from, fired) = (collect.clone(), source.clone(), Arc::new(AtomicU64::new(0)));
        let count = Arc::clone(&fired);
        let job = Background::start(scratch.config(workers), move |job| {
            let numbers = job.source("numbers", from.clone());
            alarms(numbers, 20, Arc::clone(&count)).sink("out", sink.clone());
            Ok(())
        });
        wait_until("all have fired and are committed", || {
            collect.handle().committed().len() == 100
        });
        source.end.store(true, Ordering::Relaxed);
        job.end().unwrap();
        assert_eq!(fired.load(Ordering::Relaxed), 100);
        assert_same((0..100).map(|n| (n, 1)), collect.handle().committed());
    }
}

#[test]
fn overdue_processing_time_timers_fire_at_once_after_a_restore_at_another_parallelism() {
    let scratch = Scratch::new();
    let collect = Collect::new();
    let source = Held { records: 100, end: Arc::default() };
    let start = |workers, wait: i64| {
        let (sink, from) = (collect.clone(), source.clone());
        Background::start(scratch.config(workers), move |job| {
            let numbers = job.source("numbers", from.clone());
            alarms(numbers, wait, Arc::default()).sink("out", sink.clone());
            Ok(())
        })
    };
    // They are due while the job is down, or right after its stop.
    let job = start(1, 300);
    wait_until("all records are read", || job.handle.counters().source_records() == 100);
    job.wait_for_more_checkpoints(2);
    job.handle.stop();
    job.end().unwrap();
    let job = start(3, 0);
    wait_until("all have fired and are committed", || collect.handle().committed().len() >= 100);
    source.end.store(true, Ordering::Relaxed);
    job.end().unwrap();
    assert_same((0..100).map(|n| (n, 1)), collect.handle().committed());
}

#[test]
fn a_processing_time_timer_far_ahead_does_not_keep_the_job_alive_and_is_not_fired() {
    let scratch = Scratch::new();
    let (collect, fired) = (Collect::new(), Arc::new(AtomicU64::new(0)));
    let (sink, count) = (collect.clone(), Arc::clone(&fired));
    run(scratch.config(2), move |job| {
        let numbers = job.source("numbers", Generator::new(1_000, |i| i));
        alarms(numbers, 3_600_000, Arc::clone(&count)).sink("out", sink.clone());
        Ok(())
    })
    .unwrap();
    assert_eq!(fired.load(Ordering::Relaxed), 0);
    assert_eq!(collect.handle().committed(), []);
}

#[test]
fn a_burst_of_timers_at_the_end_of_input_fires_in_steps_and_is_committed_whole() {
    let scratch = Scratch::new();
    let collect = Collect::new();
    let sink = collect.clone();
    run(scratch.config(2), move |job| {
        job.source("numbers", Generator::new(RECORDS, |i| i))
            .key_by(|n| *n)
            .process_with_timers(
                "last",
                Value::<u64>::new("count"),
                |_, _, count, context| {
                    *count.or_default() += 1;
                    context.register_event_timer(i64::MAX);
                    context.register_event_timer(i64::MAX - 1);
                    context.delete_event_timer(i64::MAX - 1);
                },
                |key, timer, count, context| {
                    assert_eq!(timer.time, i64::MAX);
                    let count = count.take();
                    context.emit((*key, count));
                    // A timer that a timer registers fires too.
                    if count.is_some() && *key == 1 {
                        context.register_event_timer(5);
                        context.register_event_timer(i64::MAX);
                        context.delete_event_timer(5);
                    }
                },
            )
            .sink("out", sink.clone());
        Ok(())
    })
    .unwrap();
    let expected = (0..RECORDS).map(|n| (n, Some(1))).chain([(1, None)]);
    assert_same(expected, collect.handle().committed());
}

#[test]
fn a_name_that_timers_are_kept_under_is_refused_for_a_state() {
    let scratch = Scratch::new();
    let error = run(scratch.config(1), |job| {
        job.source("numbers", Generator::new(10, |i| i))
            .key_by(|n| *n)
            .process_with_timers(
                "operator",
                Value::<u64>::new("event-timers"),
                |_, _, _, _| {},
                |key, _, _, context| context.emit(*key),
            )
            .sink("out", Discard::new());
        Ok(())
    });
    let text = error.unwrap_err().to_string();
    assert!(text.contains("event-timers is used twice"), "{text}");
}

#[test]
fn records_of_an_operator_with_timers_are_counted_once_without_any_timer() {
    quiet_panics();
    let scratch = Scratch::new();
    let collect = Collect::new();
    let (sink, faults) = (collect.clone(), Faults::at([RECORDS / 2]));
    run(scratch.config(2), move |job| {
        let faults = faults.clone();
        job.source("numbers", Generator::new(RECORDS, |i| i).paced(0, 200_000))
            .key_by(|n| n % KEYS)
            .process_with_timers(
                "count",
                Value::<u64>::new("count"),
                move |key, _, count, context| {
                    faults.pass();
                    *count.or_default() += 1;
                    context.emit((*key, *count.or_default()));
                },
                |_, _, _, _| {},
            )
            .sink("out", sink.clone());
        Ok(())
    })
    .unwrap();
    assert_same(running_counts(RECORDS, |n| n % KEYS), collect.handle().committed());
}
