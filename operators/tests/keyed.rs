//! Deduplication and running aggregates, held to the suite that all operators are.

use std::collections::{BTreeMap, BTreeSet};

use highwater_operators::{Count, Dedup, RunningAggregate};

use conformance::{case, checked_case};

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
