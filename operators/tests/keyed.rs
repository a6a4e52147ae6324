//! Deduplication and running aggregates, held to the suite that all operators are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use highwater_operators::{Count, Dedup, RunningAggregate};

use highwater::prelude::*;

use conformance::{Event, case, checked_case};

mod conformance;

#[test]
fn each_key_is_emitted_once() {
    case(
        "each_key_is_emitted_once",
        |events| events.dedup("once", |event| event.key).map(|event| event.key),
        |events| {
            let keys: BTreeSet<u64> = events.iter().map(|event| event.key).collect();
            keys.into_iter().collect()
        },
    )
    .run();
}

#[test]
fn a_running_count_counts_each_record_once() {
    checked_case(
        "a_running_count_counts_each_record_once",
        |events| {
            events.into_keyed(|event| (event.key, event.value)).aggregate("count", Count::new())
        },
        |events, counts| {
            let mut all: BTreeMap<u64, u64> = BTreeMap::new();
            events.iter().for_each(|event| *all.entry(event.key).or_default() += 1);
            let expected = all.into_iter().flat_map(|(key, n)| (1..=n).map(move |n| (key, n)));
            conformance::same(expected.collect(), counts)
        },
    )
    .run();
}

const WITHIN: u64 = 60;

fn near(one: &Event, other: &Event) -> bool {
    one.key == other.key && one.time.abs_diff(other.time) <= WITHIN
}

fn once_within(events: Stream<'_, Event>) -> Stream<'_, Event> {
    let within = Duration::from_millis(WITHIN);
    events.dedup_within("near", within, |event| event.time, |event| event.key)
}

/// Whether all that is missing is near something that is there, and all that is there is of the input, once.
fn nothing_is_lost(events: &[Event], emitted: &[Event]) -> Result<(), String> {
    let input: BTreeSet<Event> = events.iter().copied().collect();
    let output: BTreeSet<Event> = emitted.iter().copied().collect();
    if output.len() != emitted.len() || !output.is_subset(&input) {
        return Err("something is emitted twice, or was never there".to_owned());
    }
    match events.iter().find(|event| !emitted.iter().any(|kept| near(event, kept))) {
        Some(lost) => Err(format!("{lost:?} is lost")),
        None => Ok(()),
    }
}

#[test]
fn of_near_records_that_are_not_late_one_is_emitted() {
    checked_case(
        "of_near_records_that_are_not_late_one_is_emitted",
        once_within,
        |events, emitted| {
            nothing_is_lost(events, &emitted)?;
            for (index, one) in emitted.iter().enumerate() {
                if let Some(other) = emitted[..index].iter().find(|other| near(one, other)) {
                    return Err(format!("{one:?} is near {other:?}"));
                }
            }
            Ok(())
        },
    )
    .out_of_order(50)
    .run();
}

#[test]
fn a_late_record_is_emitted_or_near_one_that_is() {
    checked_case("a_late_record_is_emitted_or_near_one_that_is", once_within, |events, emitted| {
        nothing_is_lost(events, &emitted)
    })
    .late(150, 20)
    .run();
}
