//! Windows, held to the suite that all operators are.

use std::collections::BTreeMap;
use std::time::Duration;

use highwater::prelude::*;
use highwater_operators::{AllWindows, Count, KeyedWindows, Sum, Window, Windows};

use conformance::{Event, case, checked_case, same};

mod conformance;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Key, start and end of a window, and what is in it.
type Result = (u64, i64, i64, u128);

/// All windows that have a record, by their definition.
fn naive(events: &[Event], size: i64, slide: i64, offset: i64) -> Vec<Result> {
    let mut all: BTreeMap<(u64, i64), u128> = BTreeMap::new();
    for event in events {
        for start in event.time - size + 1..=event.time {
            if (start - offset).rem_euclid(slide) == 0 {
                *all.entry((event.key, start)).or_default() += u128::from(event.value);
            }
        }
    }
    all.into_iter().map(|((key, start), sum)| (key, start, start + size, sum)).collect()
}

fn sums(events: Stream<'_, Event>, windows: Windows) -> Stream<'_, Result> {
    events
        .key_by(|event| event.key)
        .map_values(|_, event| (event.time, event.value))
        .window(windows, |(time, _)| *time)
        .aggregate("sums", SumOfSecond)
        .map(|(key, window, sum)| (key, window.start, window.end, sum))
}

/// The sum of the second of two.
#[derive(Clone, Copy)]
struct SumOfSecond;

impl highwater_operators::Aggregate for SumOfSecond {
    type Input = (i64, u64);
    type State = <Sum<u64> as highwater_operators::Aggregate>::State;
    type Output = u128;
    fn create(&self, (_, first): (i64, u64)) -> Self::State {
        Sum::new().create(first)
    }
    fn add(&self, state: &mut Self::State, (_, input): (i64, u64)) {
        Sum::new().add(state, input);
    }
    fn merge(&self, state: &mut Self::State, other: Self::State) {
        Sum::<u64>::new().merge(state, other);
    }
    fn result(&self, state: &Self::State) -> u128 {
        Sum::<u64>::new().result(state)
    }
}

#[test]
fn tumbling_windows() {
    case(
        "tumbling_windows",
        |events| sums(events, Windows::tumbling(ms(50)).offset(7)),
        |events| naive(events, 50, 50, 7),
    )
    .out_of_order(30)
    .run();
}

#[test]
fn sliding_windows_of_few_panes() {
    case(
        "sliding_windows_of_few_panes",
        |events| sums(events, Windows::sliding(ms(75), ms(50))),
        |events| naive(events, 75, 50, 0),
    )
    .out_of_order(30)
    .run();
}

#[test]
fn sliding_windows_of_many_panes() {
    case(
        "sliding_windows_of_many_panes",
        |events| sums(events, Windows::sliding(ms(300), ms(10))),
        |events| naive(events, 300, 10, 0),
    )
    .out_of_order(25)
    .run();
}

#[test]
fn windows_with_gaps_between_them() {
    case(
        "windows_with_gaps_between_them",
        |events| sums(events, Windows::sliding(ms(20), ms(50))),
        |events| naive(events, 20, 50, 0),
    )
    .run();
}

#[test]
fn sessions() {
    case(
        "sessions",
        |events| sums(events, Windows::session(ms(60))),
        |events| {
            let mut by_key: BTreeMap<u64, Vec<(i64, u64)>> = BTreeMap::new();
            for event in events {
                by_key.entry(event.key).or_default().push((event.time, event.value));
            }
            let mut all = Vec::new();
            for (key, mut records) in by_key {
                records.sort_unstable();
                let mut sessions: Vec<Result> = Vec::new();
                for (time, value) in records {
                    match sessions.last_mut() {
                        Some((_, _, end, sum)) if time <= *end => {
                            *end = time + 60;
                            *sum += u128::from(value);
                        }
                        _ => sessions.push((key, time, time + 60, value.into())),
                    }
                }
                all.extend(sessions);
            }
            all
        },
    )
    .out_of_order(50)
    .run();
}

#[test]
fn windows_of_all_keys_are_added_up_in_two_steps() {
    case(
        "windows_of_all_keys_are_added_up_in_two_steps",
        |events| {
            events
                .map(|event| (event.time, event.value))
                .window_all(Windows::sliding(ms(100), ms(40)), |(time, _)| *time)
                .aggregate("all", SumOfSecond)
                .map(|(window, sum)| (0, window.start, window.end, sum))
        },
        |events| {
            let events: Vec<Event> =
                events.iter().map(|event| Event { key: 0, ..*event }).collect();
            naive(&events, 100, 40, 0)
        },
    )
    .out_of_order(30)
    .run();
}

/// Every record is in a result or in the second stream, and never in both.
#[test]
fn late_records_go_another_way_and_none_is_lost() {
    checked_case(
        "late_records_go_another_way_and_none_is_lost",
        |events| {
            let (counts, late) = events
                .key_by(|event| event.key)
                .window(Windows::tumbling(ms(50)), |event| event.time)
                .aggregate_or_late("counts", Count::new());
            let counts = counts.map(|(key, window, count)| (key, window, count, None));
            counts.union(late.map(|(key, event)| {
                let start = event.time - event.time.rem_euclid(50);
                (key, Window { start, end: start + 50 }, 1, Some(event))
            }))
        },
        |events, found| {
            let mut expected: BTreeMap<(u64, i64), u64> = BTreeMap::new();
            for event in events {
                *expected.entry((event.key, event.time.div_euclid(50) * 50)).or_default() += 1;
            }
            let mut counts: BTreeMap<(u64, i64), u64> = BTreeMap::new();
            let mut results = Vec::new();
            for (key, window, count, late) in found {
                *counts.entry((key, window.start)).or_default() += count;
                match late {
                    Some(event) if !events.contains(&event) => {
                        return Err(format!("{event:?} is none of the input"));
                    }
                    Some(_) => {}
                    None => results.push((key, window.start)),
                }
            }
            let windows = results.len();
            results.sort_unstable();
            results.dedup();
            if results.len() < windows {
                return Err("a window has two results".to_owned());
            }
            same(expected.into_iter().collect(), counts.into_iter().collect())
        },
    )
    .late(120, 20)
    .run();
}

/// With as much lateness as there is disorder, the last result of each window is that of all its records.
#[test]
fn allowed_lateness_corrects_results() {
    checked_case(
        "allowed_lateness_corrects_results",
        |events| {
            events
                .key_by(|event| event.key)
                .window(Windows::sliding(ms(60), ms(30)), |event| event.time)
                .allowed_lateness(ms(1_000_000))
                .aggregate("counts", Count::new())
                .map(|(key, window, count)| (key, window.start, count))
        },
        |events, found| {
            let mut last: BTreeMap<(u64, i64), u64> = BTreeMap::new();
            for (key, start, count) in found {
                // Results of one key and window come in order, and each counts one more or is the first.
                let before = last.insert((key, start), count);
                if before.is_some_and(|before| count != before + 1) {
                    return Err(format!("key {key}, window {start}: {before:?}, then {count}"));
                }
            }
            let unit = |event: &Event| Event { value: 1, ..*event };
            let events: Vec<Event> = events.iter().map(unit).collect();
            let expected = naive(&events, 60, 30, 0);
            let expected = expected.into_iter().map(|(k, start, _, n)| ((k, start), n as u64));
            same(expected.collect(), last.into_iter().collect())
        },
    )
    .late(120, 20)
    .run();
}

#[test]
fn windows_of_processing_time_count_every_record_once() {
    checked_case(
        "windows_of_processing_time_count_every_record_once",
        |events| {
            events
                .key_by(|event| event.key)
                .window_by_processing_time(Windows::tumbling(ms(7)))
                .aggregate("counts", Count::new())
        },
        |events, found| {
            let mut expected: BTreeMap<u64, u64> = BTreeMap::new();
            events.iter().for_each(|event| *expected.entry(event.key).or_default() += 1);
            let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
            for (key, window, count) in found {
                *counts.entry(key).or_default() += count;
                if window.end - window.start != 7 || window.start % 7 != 0 {
                    return Err(format!("{window:?}"));
                }
            }
            same(expected.into_iter().collect(), counts.into_iter().collect())
        },
    )
    .run();
}
