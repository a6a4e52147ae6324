//! Triggers, evictors, calendars and joins of windows, held to the suite that all operators are.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::time::Duration;

use highwater::prelude::*;
use highwater_operators::{Count, KeyedWindows, Trigger, Window, WindowJoin, Windows};

use conformance::{Event, case, checked_case, same};

mod conformance;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn counted(events: &[Event], group: impl Fn(&Event) -> (u64, i64)) -> BTreeMap<(u64, i64), u64> {
    let mut all = BTreeMap::new();
    events.iter().for_each(|event| *all.entry(group(event)).or_default() += 1);
    all
}

/// Every seven records of a key are a package, and what is left at the end is one.
#[test]
fn a_global_window_that_purges_gives_packages_of_so_many_records() {
    checked_case(
        "a_global_window_that_purges_gives_packages_of_so_many_records",
        |events| {
            let seven = NonZeroU64::new(7).expect("it is seven");
            events
                .key_by(|event| event.key)
                .window(Windows::global(), |event| event.time)
                .trigger(Trigger::at_end().every_records(seven).purging())
                .process("packages", |key, _, records, out| {
                    let places: Vec<u64> = records.iter().map(|event| event.index).collect();
                    out.emit((*key, records.len() as u64, places));
                })
        },
        |events, packages| {
            let mut sizes: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
            let mut places: Vec<(u64, u64)> = Vec::new();
            for (key, size, inside) in packages {
                sizes.entry(key).or_default().push(size);
                places.extend(inside.into_iter().map(|place| (key, place)));
            }
            let mut expected: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
            for ((key, _), count) in counted(events, |event| (event.key, 0)) {
                let sizes = expected.entry(key).or_default();
                sizes.extend(std::iter::repeat_n(7, count as usize / 7));
                sizes.extend(Some(count % 7).filter(|rest| *rest > 0));
            }
            let all = events.iter().map(|event| (event.key, event.index)).collect();
            same(all, places)?;
            same(expected.into_iter().collect(), sizes.into_iter().collect())
        },
    )
    .run();
}

/// Early results grow, and the last one is that of the whole window.
fn grows_to(
    expected: BTreeMap<(u64, i64), u64>,
    found: Vec<(u64, Window, u64)>,
) -> Result<(), String> {
    let mut last: BTreeMap<(u64, i64), u64> = BTreeMap::new();
    for (key, window, count) in found {
        if last.insert((key, window.start), count).is_some_and(|before| before > count) {
            return Err(format!("{window:?} of {key} has shrunk"));
        }
    }
    same(expected.into_iter().collect(), last.into_iter().collect())
}

#[test]
fn early_results_by_event_time_and_by_the_clock_grow_to_the_last_one() {
    for by_clock in [false, true] {
        let name = match by_clock {
            true => "early_results_by_the_clock",
            false => "early_results_by_event_time",
        };
        checked_case(
            name,
            move |events| {
                let trigger = match by_clock {
                    true => Trigger::at_end().every_processing_time(ms(3)),
                    false => Trigger::at_end().every(ms(30)),
                };
                events
                    .key_by(|event| event.key)
                    .window(Windows::sliding(ms(400), ms(200)), |event| event.time)
                    .trigger(trigger)
                    .aggregate("counts", Count::new())
            },
            |events, found| {
                let mut expected = counted(events, |e| (e.key, e.time.div_euclid(200) * 200));
                for (window, count) in
                    counted(events, |e| (e.key, e.time.div_euclid(200) * 200 - 200))
                {
                    *expected.entry(window).or_default() += count;
                }
                grows_to(expected, found)
            },
        )
        .out_of_order(40)
        .run();
    }
}

#[test]
fn sessions_with_early_results_are_merged_as_those_without() {
    checked_case(
        "sessions_with_early_results_are_merged_as_those_without",
        |events| {
            let keyed = events.key_by(|event| event.key);
            let sessions = Windows::session(ms(60));
            let plain = keyed
                .clone()
                .window(sessions.clone(), |event| event.time)
                .aggregate("plain", Count::new())
                .map(|(key, window, count)| (false, key, window, count));
            let early = keyed
                .window(sessions, |event| event.time)
                .trigger(Trigger::at_end().every(ms(40)))
                .aggregate("early", Count::new())
                .map(|(key, window, count)| (true, key, window, count));
            plain.union(early)
        },
        |events, found| {
            let of = |wanted| {
                let of = move |(early, key, window, count): &(bool, u64, Window, u64)| {
                    (*early == wanted).then_some((*key, window.end, *count))
                };
                found.iter().filter_map(of).collect::<Vec<_>>()
            };
            let (plain, early) = (of(false), of(true));
            let total: u64 = plain.iter().map(|(.., count)| count).sum();
            if total != events.len() as u64 {
                return Err(format!("{total} of {} records", events.len()));
            }
            // Of one key the last result with each end is that of the whole session; more of them were early.
            let lost: Vec<_> = plain.iter().filter(|result| !early.contains(result)).collect();
            if lost.is_empty() { Ok(()) } else { Err(format!("lost: {lost:?}")) }
        },
    )
    .out_of_order(50)
    .run();
}

/// Each record with the two of its key before it, whatever came how.
#[test]
fn an_evictor_leaves_what_later_results_need() {
    checked_case(
        "an_evictor_leaves_what_later_results_need",
        |events| {
            events
                .key_by(|event| event.key)
                .window_by_processing_time(Windows::global())
                .trigger(Trigger::at_end().every_records(NonZeroU64::MIN))
                .process_evicting(
                    "last-three",
                    |records: &mut Vec<Event>| {
                        records.drain(..records.len().saturating_sub(3));
                    },
                    |key, _, records, out| out.emit((*key, records)),
                )
        },
        |events, found| {
            let per_key = counted(events, |event| (event.key, 0));
            let mut lengths: BTreeMap<(u64, i64), Vec<usize>> = BTreeMap::new();
            let mut last: BTreeMap<u64, Vec<Event>> = BTreeMap::new();
            for (key, records) in found {
                lengths.entry((key, 0)).or_default().push(records.len());
                // The end of the input gives the last result again.
                let before = last.insert(key, records.clone()).unwrap_or_default();
                let again = before == records;
                if !again && !before.is_empty() {
                    let kept = &before[before.len().saturating_sub(2)..];
                    if !records.starts_with(kept) {
                        return Err(format!("{before:?}, then {records:?}"));
                    }
                }
            }
            let expected = per_key.into_iter().map(|(key, count)| {
                let count = count as usize;
                let mut lengths: Vec<usize> = (1..=count).map(|n| n.min(3)).collect();
                lengths.push(count.min(3));
                (key, lengths)
            });
            same(expected.collect(), lengths.into_iter().collect())
        },
    )
    .run();
}

/// Windows of 30 and 70 ms in turn.
fn uneven(time: i64) -> Window {
    let start = time.div_euclid(100) * 100;
    if time - start < 30 {
        Window { start, end: start + 30 }
    } else {
        Window { start: start + 30, end: start + 100 }
    }
}

#[test]
fn windows_by_a_calendar() {
    case(
        "windows_by_a_calendar",
        |events| {
            events
                .key_by(|event| event.key)
                .window(Windows::calendar(uneven), |event| event.time)
                .aggregate("counts", Count::new())
                .map(|(key, window, count)| (key, window.start, window.end, count))
        },
        |events| {
            let counts = counted(events, |event| (event.key, uneven(event.time).start));
            let whole = |((key, start), n)| (key, start, uneven(start).end, n);
            counts.into_iter().map(whole).collect()
        },
    )
    .out_of_order(20)
    .run();
}

#[test]
fn pairs_of_one_window_and_key_are_joined() {
    case(
        "pairs_of_one_window_and_key_are_joined",
        |events| {
            let (left, right) = events.split(|event| match event.value % 2 {
                0 => Either::Left(event),
                _ => Either::Right(event),
            });
            left.key_by(|event| event.key)
                .window_join(
                    right.key_by(|event| event.key),
                    Windows::sliding(ms(100), ms(50)),
                    |event| event.time,
                    |event| event.time,
                )
                .join("pairs", |key, window, left, right| {
                    (*key, window.start, left.value, right.value)
                })
        },
        |events| {
            let mut pairs = Vec::new();
            for left in events.iter().filter(|event| event.value % 2 == 0) {
                for right in events.iter().filter(|event| event.value % 2 == 1) {
                    for slide in -2..=2 {
                        let start = (left.time.div_euclid(50) + slide) * 50;
                        let inside = |event: &Event| (start..start + 100).contains(&event.time);
                        if left.key == right.key && inside(left) && inside(right) {
                            pairs.push((left.key, start, left.value, right.value));
                        }
                    }
                }
            }
            pairs
        },
    )
    .records(40)
    .out_of_order(30)
    .run();
}
