//! Whole jobs with timers and all kinds of state in a simulated machine, from seeds: crashes at any step, restarts with
//! other numbers of workers, storage that fails. What was committed is compared with what follows from the source alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use highwater::config::CheckpointMode;
use highwater::prelude::*;
use highwater::testing::{FaultSink, Outcome, Random, Simulation, Trickle, each_seed, point};
use serde::{Deserialize, Serialize};

/// Seeds that failed once: the name of the test, the seed, and what was wrong.
const PAST: &str = "";

/// A record of the source. Within a split event time grows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Input {
    split: u64,
    index: u64,
    key: u64,
    time: i64,
}

/// What the source of one run gives.
#[derive(Clone, Copy, Debug)]
struct Shape {
    seed: u64,
    splits: u64,
    records: u64,
    keys: u64,
}

impl Shape {
    fn draw(random: &mut Random) -> Self {
        let splits = random.between(1, 5);
        let records = random.scaled(20, 250) / splits + 1;
        Self { seed: random.next(), splits, records, keys: random.scaled(1, 30) }
    }

    fn record(self, split: u64, index: u64) -> Input {
        let mut random = Random::new(self.seed).fork(split << 32 | index);
        let time = (index * 10 + random.below(10)) as i64;
        Input { split, index, key: random.below(self.keys), time }
    }

    fn all(self) -> impl Iterator<Item = Input> {
        (0..self.splits)
            .flat_map(move |split| (0..self.records).map(move |index| self.record(split, index)))
    }

    fn source(self) -> Trickle<Input> {
        Trickle::new(self.seed, self.splits, self.records, move |split, index| {
            self.record(split, index)
        })
    }
}

/// Draws a shape and a way of going wrong, and runs the job that `build` makes of it.
fn run<F>(seed: u64, build: F) -> (Shape, Outcome)
where
    F: Fn(&Job<'_>, Shape) + Send + Sync + 'static,
{
    let mut random = Random::new(seed).fork(100);
    let shape = Shape::draw(&mut random);
    let simulation = Simulation::new(seed)
        .crashes(random.below(5) as u32)
        .panics(random.pick(&[0, 0, 1, 2]))
        .stops(random.pick(&[0, 0, 0, 1, 2]))
        .varied_state(true)
        .config(|config| config.checkpoints.mode = CheckpointMode::ExactlyOnce);
    let simulation = match random.below(4) {
        0 => simulation.storage_errors(random.pick(&[0.005, 0.05])),
        1 => simulation.commit_errors(random.pick(&[0.02, 0.2])),
        _ => simulation,
    };
    let outcome = simulation.run(move |job| {
        build(job, shape);
        Ok(())
    });
    outcome.write_trace();
    outcome.check();
    (shape, outcome)
}

/// Compares what was committed with what should have been: LOSS and DUP apart.
fn compare<T: Ord + Clone + Debug>(
    expected: impl IntoIterator<Item = T>,
    committed: impl IntoIterator<Item = T>,
) {
    let mut balance: BTreeMap<T, i64> = BTreeMap::new();
    for record in expected {
        *balance.entry(record).or_default() += 1;
    }
    for record in committed {
        *balance.entry(record).or_default() -= 1;
    }
    let lost: Vec<_> = balance.iter().filter(|(_, count)| **count > 0).take(5).collect();
    let doubled: Vec<_> = balance.iter().filter(|(_, count)| **count < 0).take(5).collect();
    assert!(lost.is_empty() && doubled.is_empty(), "LOSS: {lost:?}; DUP: {doubled:?}");
}

type Window = (u64, i64, Vec<(u64, u64)>);

/// The last moment of the window that a time is in.
fn window_end(time: i64, length: i64) -> i64 {
    time - time % length + length - 1
}

/// Windows by hand: every record is in the one window of its key, every window fires once, in order, and what it emits is
/// late for nobody. A second timer of each window is deleted again before it fires.
fn windows(seed: u64) -> (usize, Outcome) {
    let target = Collect::<Window>::new();
    let seen = target.handle();
    let length = Random::new(seed).fork(101).scaled(5, 300) as i64;
    let (shape, outcome) = run(seed, move |job, shape| {
        let time = EventTime::monotonic(|input: &Input| input.time);
        job.source_with("numbers", shape.source(), time)
            .key_by(|input| input.key)
            .process_with_timers(
                "windows",
                (Value::<BTreeMap<i64, Vec<(u64, u64)>>>::new("open"), Value::<i64>::new("fired")),
                move |_, input: Input, (open, fired), context| {
                    point("record");
                    let end = window_end(input.time, length);
                    assert!(input.time > context.watermark(), "late: {input:?}");
                    let last = fired.get().copied().unwrap_or(i64::MIN);
                    assert!(last < end, "window {end} is open when {last} has fired");
                    let ids = open.or_default().entry(end).or_default();
                    if ids.is_empty() {
                        context.register_event_timer(end + 3);
                    }
                    ids.push((input.split, input.index));
                    context.register_event_timer(end);
                },
                |key, timer, (open, fired), context| {
                    point("timer");
                    assert_eq!(timer.domain, TimeDomain::EventTime);
                    assert!(timer.time <= context.watermark(), "{timer:?} is too early");
                    let last = fired.set(timer.time).unwrap_or(i64::MIN);
                    assert!(last < timer.time, "{timer:?} after {last}");
                    context.delete_event_timer(timer.time + 3);
                    let ids = open.or_default().remove(&timer.time);
                    let ids = ids.expect("a timer that was deleted does not fire");
                    if open.or_default().is_empty() {
                        open.take();
                    }
                    context.emit((*key, timer.time, ids));
                },
            )
            .key_by(|(key, end, _)| key ^ *end as u64)
            .process("after", Value::<u64>::new("none"), |_, window: Window, _, out| {
                assert!(out.watermark() < window.1, "{} is late at {}", window.1, out.watermark());
                out.emit(window);
            })
            .sink("out", FaultSink::new(target.clone()));
    });
    let mut expected: BTreeMap<(u64, i64), BTreeSet<(u64, u64)>> = BTreeMap::new();
    for input in shape.all() {
        let window = (input.key, window_end(input.time, length));
        expected.entry(window).or_default().insert((input.split, input.index));
    }
    let expected = expected.into_iter().map(|((key, end), ids)| (key, end, Vec::from_iter(ids)));
    let committed = seen.committed().into_iter().map(|(key, end, mut ids)| {
        ids.sort_unstable();
        (key, end, ids)
    });
    compare(expected, committed);
    (seen.committed().len(), outcome)
}

/// What became of a processing-time timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Fate {
    Registered,
    Fired,
    /// It had not fired at the end of input.
    Left,
}

/// Timers of the simulated clock: each fires once or is left at the end of input, and never before its time.
fn alarms(seed: u64) -> (usize, Outcome) {
    let target = Collect::<(u64, i64, Fate)>::new();
    let seen = target.handle();
    let delay = Random::new(seed).fork(102).scaled(1, 60);
    let (_, outcome) = run(seed, move |job, shape| {
        job.source("numbers", shape.source())
            .key_by(|input| input.key)
            .process_with_timers(
                "alarms",
                Value::<BTreeSet<i64>>::new("pending"),
                move |key, input: Input, pending, context| {
                    point("record");
                    let time = context.now() + (input.index % delay) as i64;
                    context.register_processing_timer(time);
                    if pending.or_default().insert(time) {
                        context.emit((*key, time, Fate::Registered));
                    }
                    context.register_event_timer(i64::MAX);
                },
                |key, timer, pending, context| {
                    point("timer");
                    match timer.domain {
                        TimeDomain::ProcessingTime => {
                            assert!(timer.time <= context.now(), "{timer:?} is too early");
                            let was_pending = pending.or_default().remove(&timer.time);
                            assert!(was_pending, "{timer:?} fires a second time");
                            context.emit((*key, timer.time, Fate::Fired));
                        }
                        TimeDomain::EventTime => {
                            assert_eq!(context.watermark(), i64::MAX);
                            for time in pending.take().unwrap_or_default() {
                                context.emit((*key, time, Fate::Left));
                            }
                        }
                    }
                },
            )
            .sink("out", FaultSink::new(target.clone()));
    });
    let of = |fates: &'static [Fate]| {
        let committed = seen.committed().into_iter();
        committed.filter(|(.., fate)| fates.contains(fate)).map(|(key, time, _)| (key, time))
    };
    compare(of(&[Fate::Registered]), of(&[Fate::Fired, Fate::Left]));
    (of(&[Fate::Fired]).count(), outcome)
}

/// What all kinds of state say after a record: elements of the list, entries of the map, the least index, and the sum.
type Kinds = (u64, (u64, u64), usize, usize, u64, u64);

struct Sum;

impl AggregateFunction for Sum {
    type Input = u64;
    type Accumulator = u64;
    type Output = u64;

    fn create(&self) -> u64 {
        0
    }
    fn add(&self, accumulator: &mut u64, input: u64) {
        *accumulator += input;
    }
    fn merge(&self, accumulator: &mut u64, other: u64) {
        *accumulator += other;
    }
    fn result(&self, accumulator: &u64) -> u64 {
        *accumulator
    }
}

/// All kinds of state of a key are of the same records: each record is in all of them once.
fn kinds(seed: u64) -> (usize, Outcome) {
    let target = Collect::<Kinds>::new();
    let seen = target.handle();
    let (shape, outcome) = run(seed, move |job, shape| {
        let states = (
            List::<(u64, u64)>::new("list"),
            Map::<u64, u64>::new("map"),
            Reducing::new("least", |least: &mut u64, index| *least = index.min(*least)),
            Aggregating::new("sum", Sum),
        );
        job.source("numbers", shape.source())
            .key_by(|input| input.key)
            .process("kinds", states, |key, input: Input, (list, map, least, sum), out| {
                point("record");
                let id = (input.split, input.index);
                assert!(list.iter().all(|other| *other != id), "{id:?} comes a second time");
                list.append(id);
                let next = map.get(&input.split).copied().unwrap_or(0);
                assert!(next <= input.index, "the order of a split");
                map.insert(input.split, input.index + 1);
                least.add(input.index);
                sum.add(input.index);
                let expected: u64 = list.iter().map(|(_, index)| index).sum();
                assert_eq!(sum.get(), Some(expected), "two states of one key");
                let least = least.get().copied().unwrap_or(u64::MAX);
                let lengths = (list.iter().count(), map.iter().count());
                out.emit((*key, id, lengths.0, lengths.1, least, expected));
            })
            .sink("out", FaultSink::new(target.clone()));
    });
    let committed = seen.committed();
    let ids = shape.all().map(|input| (input.key, (input.split, input.index)));
    compare(ids, committed.iter().map(|row| (row.0, row.1)));
    // By the length of its list, the row of a key says what all rows up to it must come to.
    let mut rows = committed.clone();
    rows.sort_by_key(|row| (row.0, row.2));
    let (mut key, mut splits, mut least, mut sum, mut length) =
        (None, BTreeSet::new(), u64::MAX, 0, 0);
    for row in rows {
        if key.replace(row.0) != Some(row.0) {
            (splits, least, sum, length) = (BTreeSet::new(), u64::MAX, 0, 0);
        }
        splits.insert(row.1.0);
        least = least.min(row.1.1);
        sum += row.1.1;
        length += 1;
        assert_eq!((row.2, row.3, row.4, row.5), (length, splits.len(), least, sum), "{row:?}");
    }
    (committed.len(), outcome)
}

/// Sessions of simulated time: a count that expires. What it counts is since the last pause that was as long as its time
/// to live, by the times that the records themselves say they were counted at.
fn expiry(seed: u64) -> (usize, Outcome) {
    let target = Collect::<(u64, (u64, u64), i64, u64)>::new();
    let seen = target.handle();
    let ttl = Random::new(seed).fork(103).scaled(1, 100) as i64;
    let (shape, outcome) = run(seed, move |job, shape| {
        let time = std::time::Duration::from_millis(ttl as u64);
        let states = (Value::<u64>::new("count").ttl(time), Value::<u64>::new("all"));
        job.source("numbers", shape.source())
            .key_by(|input| input.key)
            .process_with_timers(
                "expiry",
                states,
                |key, input: Input, (count, all), context| {
                    point("record");
                    *all.or_default() += 1;
                    *count.or_default() += 1;
                    assert!(count.get() <= all.get());
                    let id = (input.split, input.index);
                    context.emit((*key, id, context.now(), *count.or_default()));
                },
                |_, _, _, _| {},
            )
            .sink("out", FaultSink::new(target.clone()));
    });
    let committed = seen.committed();
    let ids = shape.all().map(|input| (input.key, (input.split, input.index)));
    compare(ids, committed.iter().map(|row| (row.0, row.1)));
    // The clock never goes back, so the records of a key were counted in the order of their times. Those of one time are
    // counted one after the other, unless nothing lives even that long.
    let mut expired = 0;
    let mut keys: BTreeMap<u64, Vec<(i64, u64)>> = BTreeMap::new();
    for (key, _, at, count) in &committed {
        keys.entry(*key).or_default().push((*at, *count));
    }
    for rows in keys.values_mut() {
        rows.sort_unstable();
        let mut last: Option<(i64, u64)> = None;
        for (at, count) in rows {
            let lives = last.is_some_and(|(before, _)| *at < before + ttl);
            let expected = last.filter(|_| lives).map_or(1, |(_, count)| count + 1);
            assert_eq!(*count, expected, "at {at} after {last:?}, ttl {ttl}");
            expired += usize::from(last.is_some() && !lives);
            last = Some((*at, *count));
        }
    }
    (expired, outcome)
}

/// Records go round a loop, and wait for the watermark each time.
fn rounds(seed: u64) -> (usize, Outcome) {
    type Going = (Input, u64);
    let target = Collect::<(u64, u64)>::new();
    let seen = target.handle();
    let (shape, outcome) = run(seed, move |job, shape| {
        let time = EventTime::monotonic(|input: &Input| input.time);
        job.source_with("numbers", shape.source(), time)
            .map(|input| {
                let rounds = input.index % 3;
                (input, rounds)
            })
            .iterate("rounds", |head| {
                let waited = head.key_by(|(input, _)| input.key).process_with_timers(
                    "wait",
                    Map::<i64, Vec<Going>>::new("waiting"),
                    |_, going: Going, waiting, context| {
                        point("record");
                        // What goes round is late.
                        let time = going.0.time.max(context.watermark()).saturating_add(7);
                        let mut there = waiting.get(&time).cloned().unwrap_or_default();
                        there.push(going);
                        waiting.insert(time, there);
                        context.register_event_timer(time);
                    },
                    |_, timer, waiting, context| {
                        point("timer");
                        for going in waiting.remove(&timer.time).unwrap_or_default() {
                            context.emit(going);
                        }
                    },
                );
                let again = waited.clone().filter(|(_, left)| *left > 0);
                let again = again.map(|(input, left)| (input, left - 1));
                (again, waited.filter(|(_, left)| *left == 0))
            })
            .map(|(input, _)| (input.split, input.index))
            .sink("out", FaultSink::new(target.clone()));
    });
    compare(shape.all().map(|input| (input.split, input.index)), seen.committed());
    (seen.committed().len(), outcome)
}

#[test]
fn records_that_wait_for_timers_in_a_loop_leave_it_once() {
    each_seed("records_that_wait_for_timers_in_a_loop_leave_it_once", 120, PAST, |seed| {
        rounds(seed);
    });
}

#[test]
fn all_kinds_of_state_hold_every_record_once() {
    each_seed("all_kinds_of_state_hold_every_record_once", 120, PAST, |seed| {
        kinds(seed);
    });
}

#[test]
fn state_expires_by_the_simulated_clock_through_crashes() {
    let expired: usize = (0..20).map(|seed| expiry(seed).0).sum();
    assert!(expired > 100, "{expired} values have expired");
    each_seed("state_expires_by_the_simulated_clock_through_crashes", 120, PAST, |seed| {
        expiry(seed);
    });
}

#[test]
fn every_window_fires_once_with_all_of_its_records() {
    let (mut fired, mut crashes) = (0, 0);
    for seed in 0..20 {
        let (windows, outcome) = windows(seed);
        fired += windows;
        crashes += outcome.crashes.len() + outcome.restarts as usize;
    }
    assert!(fired > 200 && crashes > 10, "{fired} windows, {crashes} crashes");
    each_seed("every_window_fires_once_with_all_of_its_records", 120, PAST, |seed| {
        windows(seed);
    });
}

#[test]
fn every_processing_time_timer_fires_once_or_is_left_at_the_end_of_input() {
    let (mut fired, mut crashes) = (0, 0);
    for seed in 0..20 {
        let (timers, outcome) = alarms(seed);
        fired += timers;
        crashes += outcome.crashes.len() + outcome.restarts as usize;
    }
    assert!(fired > 200 && crashes > 10, "{fired} timers, {crashes} crashes");
    each_seed(
        "every_processing_time_timer_fires_once_or_is_left_at_the_end_of_input",
        120,
        PAST,
        |seed| {
            alarms(seed);
        },
    );
}

#[test]
fn one_seed_gives_one_trace_with_every_kind_of_state() {
    for seed in 0..25 {
        for job in [windows, alarms, kinds, expiry, rounds] {
            assert_eq!(job(seed).1.trace, job(seed).1.trace, "seed {seed}");
        }
    }
}
