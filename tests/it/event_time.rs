//! Event time as a program sees it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use highwater::connect::{ReadStatus, SplitReader};
use highwater::prelude::*;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Operator;

use crate::failure::Faults;
use crate::support::{
    Background, Random, Scratch, assert_same, quiet_panics, run, seed, throttle, wait_until,
};

const RECORDS: u64 = 20_000;

#[test]
fn the_watermark_moves_on_and_no_record_of_an_ordered_source_is_behind_it() {
    for workers in 1..=3 {
        let scratch = Scratch::new();
        let collect = Collect::new();
        let sink = collect.clone();
        run(scratch.config(workers), move |job| {
            let numbers = Generator::new(RECORDS, |i| i).paced(0, 100_000);
            job.source_with("numbers", numbers, EventTime::monotonic(|n: &u64| *n as i64))
                .key_by(|n| n % 11)
                .process("see", Value::<i64>::new("last"), |_, n, last, out| {
                    let watermark = out.watermark();
                    let before = last.set(watermark).unwrap_or(i64::MIN);
                    assert!(watermark >= before, "it went back from {before} to {watermark}");
                    assert!(watermark < n as i64, "record {n} is late at {watermark}");
                    out.emit((n, watermark));
                })
                .sink("out", sink.clone());
            Ok(())
        })
        .unwrap();
        let seen = collect.handle().committed();
        assert_same(0..RECORDS, seen.iter().map(|(n, _)| *n));
        let largest = seen.iter().map(|(_, watermark)| *watermark).max().unwrap();
        assert!(largest > RECORDS as i64 / 2, "it has moved: {largest}");
    }
}

#[test]
fn at_the_end_of_input_event_time_is_at_its_end() {
    for workers in 1..=2 {
        let scratch = Scratch::new();
        let frontiers: Arc<Mutex<Vec<Vec<i64>>>> = Arc::new(Mutex::new(vec![Vec::new(); workers]));
        let seen = Arc::clone(&frontiers);
        run(scratch.config(workers), move |job| {
            let (seen, worker) = (Arc::clone(&seen), job.worker().0);
            let numbers = Generator::new(RECORDS, |i| i).paced(0, 100_000);
            job.source_with("numbers", numbers, EventTime::monotonic(|n: &u64| *n as i64))
                .rebalance()
                .through_timely(move |stream| {
                    stream.unary_frontier::<_, _, _, _>(Pipeline, "see", move |_, _| {
                        move |(input, frontier), output| {
                            input.for_each(|time, data| output.session(&time).give_container(data));
                            let frontier = frontier.frontier();
                            if let Some(event) = frontier.iter().map(|time| time.event).min() {
                                seen.lock().unwrap()[worker].push(event);
                            }
                        }
                    })
                })
                .sink("out", Discard::new());
            Ok(())
        })
        .unwrap();
        for events in frontiers.lock().unwrap().iter() {
            assert!(events.is_sorted(), "event time never goes back");
            assert_eq!(events.last(), Some(&i64::MAX), "and comes to its end");
            assert!(events.iter().any(|event| (1..RECORDS as i64).contains(event)));
        }
    }
}

#[test]
fn a_source_that_has_caught_up_moves_event_time_on_before_the_interval_is_over() {
    let scratch = Scratch::new();
    let collect = Collect::new();
    let sink = collect.clone();
    let mut config = scratch.config(2);
    config.watermark_interval = Duration::from_secs(12);
    // Five seconds long.
    let records = 250;
    run(config, move |job| {
        let numbers = Generator::new(records, |i| i).paced(0, 50);
        job.source_with("numbers", numbers, EventTime::monotonic(|n: &u64| *n as i64))
            .key_by(|_| ())
            .process("see", Value::<()>::new("none"), |(), _, _, out| out.emit(out.watermark()))
            .sink("out", sink.clone());
        Ok(())
    })
    .unwrap();
    let seen = collect.handle().committed();
    assert_eq!(seen.len() as u64, records);
    let largest = *seen.iter().max().unwrap();
    assert!(largest > records as i64 / 2, "it came to {largest}");
}

/// A source that says nothing until it is told to end.
#[derive(Clone)]
struct Quiet {
    end: Arc<AtomicBool>,
}

impl Source for Quiet {
    type Record = u64;
    type Split = ();
    type Reader = Self;
    fn splits(&mut self, _: usize) -> Result<Vec<()>, ConnectError> {
        Ok(vec![()])
    }
    fn open(&mut self, (): ()) -> Result<Self, ConnectError> {
        Ok(self.clone())
    }
}

impl SplitReader for Quiet {
    type Record = u64;
    type Split = ();
    fn read(&mut self, _: &mut Vec<u64>, _: usize) -> Result<ReadStatus, ConnectError> {
        if self.end.load(Ordering::Relaxed) {
            return Ok(ReadStatus::Finished);
        }
        Ok(ReadStatus::Wait(Duration::from_millis(1)))
    }
    fn split(&self) {}
}

/// Unites a quiet source with one of numbers, and returns how far event time came while the quiet one said nothing.
fn beside_a_quiet_source(workers: usize, idle_timeout: Option<Duration>) -> i64 {
    let scratch = Scratch::new();
    let collect = Collect::<i64>::new();
    let quiet = Quiet { end: Arc::default() };
    let (sink, source) = (collect.clone(), quiet.clone());
    let job = Background::start(scratch.config(workers), move |job| {
        let strategy = || match idle_timeout {
            Some(timeout) => WatermarkStrategy::monotonic().with_idle_timeout(timeout),
            None => WatermarkStrategy::monotonic(),
        };
        let numbers = Generator::new(RECORDS, |i| i).paced(0, 40_000);
        let timestamp = |n: &u64| *n as i64;
        let numbers = job.source_with("numbers", numbers, EventTime::new(strategy(), timestamp));
        job.source_with("quiet", source.clone(), EventTime::new(strategy(), timestamp))
            .union(numbers)
            .key_by(|n| n % 3)
            .process("see", Value::<u64>::new("none"), |_, _, _, out| out.emit(out.watermark()))
            .sink("out", sink.clone());
        Ok(())
    });
    wait_until("all numbers are committed", || {
        collect.handle().committed().len() as u64 == RECORDS
    });
    let reached = *collect.handle().committed().iter().max().unwrap();
    quiet.end.store(true, Ordering::Relaxed);
    job.end().unwrap();
    reached
}

#[test]
fn a_source_that_is_idle_does_not_hold_event_time_back() {
    for workers in 1..=2 {
        let reached = beside_a_quiet_source(workers, Some(Duration::from_millis(30)));
        assert!(reached > 1_000, "it came to {reached}");
    }
}

#[test]
fn without_an_idle_timeout_a_quiet_source_does_hold_it_back() {
    assert_eq!(beside_a_quiet_source(2, None), i64::MIN);
}

#[test]
fn a_split_that_is_idle_does_not_hold_back_the_others_of_its_source() {
    let scratch = Scratch::new();
    let directory = scratch.path("input");
    std::fs::create_dir(&directory).unwrap();
    let lines: String = (0..200_000).map(|n| format!("{n}\n")).collect();
    std::fs::write(directory.join("long"), lines).unwrap();
    // A file without a line is at its end at once.
    std::fs::write(directory.join("empty"), "").unwrap();
    let collect = Collect::<i64>::new();
    let sink = collect.clone();
    let pattern = directory.join("*").display().to_string();
    run(scratch.config(2), move |job| {
        let timestamp = |line: &String| line.parse().unwrap();
        job.source_with("lines", Files::glob(&pattern), EventTime::monotonic(timestamp))
            .key_by(|line| line.len() as u64)
            .process("see", Value::<u64>::new("none"), |_, _, _, out| out.emit(out.watermark()))
            .sink("out", sink.clone());
        Ok(())
    })
    .unwrap();
    assert!(*collect.handle().committed().iter().max().unwrap() > 0);
}

#[test]
fn late_records_are_delivered() {
    let scratch = Scratch::new();
    let collect = Collect::new();
    let sink = collect.clone();
    // Every hundredth record is from the distant past.
    let timestamp = |n: &u64| if n % 100 == 99 { 1 } else { *n as i64 };
    run(scratch.config(2), move |job| {
        let numbers = Generator::new(RECORDS, |i| i).paced(0, 100_000);
        job.source_with("numbers", numbers, EventTime::monotonic(timestamp))
            .key_by(|n| n % 5)
            .process("see", Value::<u64>::new("none"), move |_, n, _, out| {
                out.emit((n, out.watermark() >= timestamp(&n)));
            })
            .sink("out", sink.clone());
        Ok(())
    })
    .unwrap();
    let seen = collect.handle().committed();
    assert_same(0..RECORDS, seen.iter().map(|(n, _)| *n));
    let late: Vec<u64> = seen.iter().filter(|(_, late)| *late).map(|(n, _)| *n).collect();
    assert!(late.len() > 100, "{} were late", late.len());
    assert!(late.iter().all(|n| n % 100 == 99));
}

/// I9
#[test]
fn event_time_never_goes_back_across_restores_at_any_parallelism() {
    quiet_panics();
    let seed = seed();
    let mut random = Random::new(seed);
    let scratch = Scratch::new();
    let collect = Collect::new();
    let records = 60_000;
    for workers in [2, 3, 1, 2] {
        let last = workers == 2 && !collect.handle().committed().is_empty();
        let places: Vec<u64> = (0..3).map(|_| 200 + random.below(4_000)).collect();
        let (sink, faults) = (collect.clone(), Faults::at(places));
        let planted = faults.clone();
        let job = Background::start(scratch.config(workers), move |job| {
            let faults = faults.clone();
            // Out of order within a split, by less than the strategy allows.
            let numbers = Generator::new(records, |i| i);
            let strategy = WatermarkStrategy::bounded(Duration::from_millis(64));
            let event_time = EventTime::new(strategy, |n: &u64| (*n ^ 63) as i64);
            job.source_with("numbers", numbers, event_time)
                .inspect(throttle(25))
                .key_by(|n| n % 7)
                .process("see", Value::<i64>::new("last"), move |_, n, last, out| {
                    faults.pass();
                    let watermark = out.watermark();
                    // What the key saw before is in the state that is restored.
                    let before = last.set(watermark).unwrap_or(i64::MIN);
                    out.emit((n, watermark >= before, watermark));
                })
                .sink("out", sink.clone());
            Ok(())
        });
        if last {
            job.end().unwrap();
        } else {
            wait_until("it has failed three times", || planted.happened() == 3);
            job.wait_for_more_checkpoints(2);
            job.handle.stop();
            job.end().unwrap();
        }
    }
    let seen = collect.handle().committed();
    assert_same(0..records, seen.iter().map(|(n, _, _)| *n));
    let back = seen.iter().filter(|(_, forward, _)| !forward).count();
    assert_eq!(back, 0, "event time went back");
    assert!(seen.iter().any(|(_, _, watermark)| *watermark > records as i64 / 2));
}
