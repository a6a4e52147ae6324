//! Aggregates and top-N of records that come and go, held to the suite that all operators are.

use std::collections::BTreeMap;
use std::time::Duration;

use highwater::config::JobConfig;
use highwater::ids::Name;
use highwater::job::{JobHandle, execute};
use highwater::prelude::*;
use highwater::state_reader::StateReader;
use highwater_operators::{
    Average, Change, Count, Max, Min, RetractingAggregate, RunningAggregate, Sum, TimeToLive, Top,
    TopOfAll, TopOfChanges, net,
};

use conformance::{Event, checked_case, same};

mod conformance;

/// Every record is inserted, and half of them are retracted.
fn come_and_go(events: Stream<'_, Event>) -> Stream<'_, Change<Event>> {
    events.flat_map(|event| {
        let insert = Change::Insert(event);
        if goes(&event) { vec![insert, Change::Retract(event)] } else { vec![insert] }
    })
}

fn goes(event: &Event) -> bool {
    event.value.is_multiple_of(2)
}

/// Small, so that equal ones come and go.
fn amount(event: &Event) -> i64 {
    (event.value >> 8) as i64 % 8 - 3
}

/// The amounts of each key that are not retracted.
fn stay(events: &[Event]) -> BTreeMap<u64, Vec<i64>> {
    let mut all: BTreeMap<u64, Vec<i64>> = BTreeMap::new();
    for event in events.iter().filter(|event| !goes(event)) {
        all.entry(event.key).or_default().push(amount(event));
    }
    all
}

fn amounts(events: Stream<'_, Event>) -> KeyedStream<'_, u64, Change<i64>> {
    come_and_go(events).into_keyed(|change| change.keyed(|event| (event.key, amount(&event))))
}

/// The results of all aggregates as one stream: key, which aggregate, and a thousand times its result.
type Result3 = (u64, u8, i128);

fn all_aggregates(events: Stream<'_, Event>) -> Stream<'_, Change<Result3>> {
    let keyed = amounts(events);
    let each = |kind: u8| move |(key, n): (u64, i128)| (key, kind, n * 1000);
    let count = keyed.clone().aggregate_of_changes("count", Count::new());
    let count = count.map(move |c| c.map(|(key, n)| each(0)((key, i128::from(n)))));
    let sum = keyed.clone().aggregate_of_changes("sum", Sum::new());
    let sum = sum.map(move |c| c.map(each(1)));
    let min = keyed.clone().aggregate_of_changes("min", Min::new());
    let min = min.map(move |c| c.map(|(key, n)| each(2)((key, i128::from(n)))));
    let max = keyed.clone().aggregate_of_changes("max", Max::new());
    let max = max.map(move |c| c.map(|(key, n)| each(3)((key, i128::from(n)))));
    let mean = keyed.aggregate_of_changes("mean", Average::new());
    let mean = mean.map(|c| c.map(|(key, n)| (key, 4, (n * 1000.0) as i128)));
    count.union(sum).union(min).union(max).union(mean)
}

#[test]
fn aggregates_of_changes_come_to_those_of_what_is_left() {
    checked_case(
        "aggregates_of_changes_come_to_those_of_what_is_left",
        all_aggregates,
        |events, changes| {
            let mut expected: BTreeMap<Result3, i64> = BTreeMap::new();
            for (key, amounts) in stay(events) {
                let sum: i128 = amounts.iter().copied().map(i128::from).sum();
                let mean = (sum as f64 / amounts.len() as f64 * 1000.0) as i128;
                let thousand = |n: Option<&i64>| n.copied().map_or(0, i128::from) * 1000;
                expected.insert((key, 0, amounts.len() as i128 * 1000), 1);
                expected.insert((key, 1, sum * 1000), 1);
                expected.insert((key, 2, thousand(amounts.iter().min())), 1);
                expected.insert((key, 3, thousand(amounts.iter().max())), 1);
                expected.insert((key, 4, mean), 1);
            }
            same(expected.into_iter().collect(), net(changes).into_iter().collect())
        },
    )
    .keys(12)
    .run();
}

/// The `n` greatest of what `records` has of each key.
fn greatest<T: Ord + Clone>(records: Vec<(u64, T)>, n: usize) -> Vec<(u64, T)> {
    let mut by_key: BTreeMap<u64, Vec<T>> = BTreeMap::new();
    for (key, record) in records {
        by_key.entry(key).or_default().push(record);
    }
    let first = |(key, mut all): (u64, Vec<T>)| {
        all.sort_by(|one, other| other.cmp(one));
        all.truncate(n);
        all.into_iter().map(move |record| (key, record))
    };
    by_key.into_iter().flat_map(first).collect()
}

/// What changes come to, each record as often as it is there.
fn current<T: Ord + Clone>(changes: Vec<Change<T>>) -> Vec<T> {
    let repeated = |(record, times): (T, i64)| {
        std::iter::repeat_n(record, usize::try_from(times).unwrap_or(usize::MAX))
    };
    net(changes).into_iter().flat_map(repeated).collect()
}

#[test]
fn the_top_of_each_key_comes_to_its_greatest_records() {
    checked_case(
        "the_top_of_each_key_comes_to_its_greatest_records",
        |events| events.into_keyed(|event| (event.key, event.value)).top("top", 3, |value| *value),
        |events, changes| {
            let all = events.iter().map(|event| (event.key, event.value)).collect();
            same(greatest(all, 3), current(changes))
        },
    )
    .run();
}

#[test]
fn the_top_of_all_comes_to_the_greatest_records_of_the_stream() {
    checked_case(
        "the_top_of_all_comes_to_the_greatest_records_of_the_stream",
        |events| events.top_of_all("top", 7, |event| event.value),
        |events, changes| {
            let all = events.iter().map(|event| (0, event.value)).collect();
            let found = current(changes).into_iter().map(|event| (0, event.value)).collect();
            same(greatest(all, 7), found)
        },
    )
    .run();
}

#[test]
fn the_top_of_changes_comes_to_the_greatest_of_what_is_left() {
    checked_case(
        "the_top_of_changes_comes_to_the_greatest_of_what_is_left",
        |events| amounts(events).top_of_changes("top", 4, |amount| *amount),
        |events, changes| {
            let all = stay(events).into_iter();
            let all = all.flat_map(|(key, amounts)| amounts.into_iter().map(move |n| (key, n)));
            same(greatest(all.collect(), 4), current(changes))
        },
    )
    .run();
}

#[test]
fn the_top_of_running_counts_follows_them() {
    checked_case(
        "the_top_of_running_counts_follows_them",
        |events| {
            events
                .into_keyed(|event| (event.key, ()))
                .aggregate_changes("counts", Count::new())
                .into_keyed(|change| change.keyed(|(key, count)| (0, (count, key))))
                .top_of_changes("top", 3, |counted| *counted)
        },
        |events, changes| {
            let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
            events.iter().for_each(|event| *counts.entry(event.key).or_default() += 1);
            let all = counts.into_iter().map(|(key, count)| (0, (count, key))).collect();
            same(greatest(all, 3), current(changes))
        },
    )
    .keys(9)
    .run();
}

/// Which operator, key and result.
type Tagged = (u8, u64, i128);

/// All operators that a time to live can be given, as one stream.
fn forgetting(events: Stream<'_, Event>, ttl: Duration) -> Stream<'_, Change<Tagged>> {
    let each = |kind: u8| move |c: Change<(u64, i64)>| c.map(|(key, n)| (kind, key, n.into()));
    let keyed = events.clone().into_keyed(|event| (event.key, amount(&event))).ttl(ttl);
    let counts = keyed.clone().aggregate_changes("running-count", Count::new());
    let counts = counts.map(|c| c.map(|(key, n)| (0, key, n.into())));
    let top = keyed.top("top", 1, |amount| *amount).map(each(1));
    let changes = amounts(events).ttl(ttl);
    let sums = changes.clone().aggregate_of_changes("sum", Sum::new());
    let sums = sums.map(|c| c.map(|(key, sum)| (2, key, sum)));
    let tops = changes.top_of_changes("top-of-changes", 1, |amount| *amount).map(each(3));
    counts.union(top).union(sums).union(tops)
}

#[test]
fn with_a_long_time_to_live_nothing_is_forgotten() {
    checked_case(
        "with_a_long_time_to_live_nothing_is_forgotten",
        |events| forgetting(events, Duration::from_hours(1000)),
        |events, changes| {
            let mut expected = Vec::new();
            let mut all: BTreeMap<u64, Vec<i64>> = BTreeMap::new();
            events.iter().for_each(|event| all.entry(event.key).or_default().push(amount(event)));
            for (key, amounts) in all {
                expected.push((0, key, amounts.len() as i128));
                expected.extend(amounts.iter().max().map(|max| (1, key, i128::from(*max))));
            }
            for (key, amounts) in stay(events) {
                expected.push((2, key, amounts.iter().copied().map(i128::from).sum()));
                expected.extend(amounts.iter().max().map(|max| (3, key, i128::from(*max))));
            }
            same(expected, current(changes))
        },
    )
    .seeds(20)
    .run();
}

#[test]
fn what_has_expired_begins_anew_and_is_not_retracted() {
    checked_case(
        "what_has_expired_begins_anew_and_is_not_retracted",
        |events| forgetting(events, Duration::ZERO),
        |events, changes| {
            // Each record is the first of its key, and the retraction of what has expired finds nothing.
            let results = |event: &Event| {
                let amount = i128::from(amount(event));
                [(0, 1), (1, amount), (2, amount), (3, amount)]
                    .map(|(kind, n)| (kind, event.key, n))
            };
            if let Some(change) = changes.iter().find(|change| !change.is_insert()) {
                return Err(format!("{change:?}"));
            }
            let inserted = changes.into_iter().map(Change::into_record).collect();
            same(events.iter().flat_map(results).collect(), inserted)
        },
    )
    .seeds(20)
    .run();
}

#[test]
fn what_has_expired_is_in_no_checkpoint_once_as_many_records_have_come() {
    const KEYS: u64 = 3000;
    let directory = tempfile::tempdir().expect("a directory for checkpoints");
    // How many keys the final checkpoint of a job holds something of.
    let held = |ttl: Duration| {
        let job = Name::new(format!("ttl-{}", ttl.as_secs())).expect("a constant name");
        let mut config = JobConfig::new(job.clone());
        config.checkpoints.directory = Some(directory.path().to_owned());
        let handle = JobHandle::default();
        execute(config, &handle, move |job| {
            // Many keys that come once, and then one that comes as often.
            let keys = (0..KEYS).chain(std::iter::repeat_n(0, 2 * KEYS as usize));
            let keyed = job.source("keys", Collection::new(keys.collect())).key_by(|key| *key);
            let forgetting = keyed.ttl(ttl);
            let counts = forgetting.clone().aggregate_changes("counts", Count::new());
            counts.sink("counts-out", Discard::new());
            forgetting.top("top", 1, |key| *key).sink("top-out", Discard::new());
            Ok(())
        })
        .expect("nothing fails");
        let completed = handle.counters().checkpoints().completed;
        let last = completed.last().expect("the final checkpoint").epoch;
        let path = directory.path().join(format!("{job}/chk/{last}"));
        let reader = StateReader::open(path).expect("the final checkpoint");
        let sections = reader.manifest().parts.iter().flat_map(|part| &part.sections);
        let kept = sections
            .filter(|section| ["aggregate", "top"].contains(&section.header.state.as_str()));
        kept.map(|section| section.entries).collect::<Vec<_>>()
    };
    assert_eq!(held(Duration::from_hours(1)), [KEYS, KEYS]);
    let kept = held(Duration::ZERO);
    assert!(
        kept.len() == 2 && kept.iter().all(|keys| *keys <= 1),
        "of {KEYS} keys are kept: {kept:?}"
    );
}

#[cfg(feature = "rocksdb")]
#[test]
fn ranks_that_rocksdb_sorts_otherwise_fail_the_job_and_say_what_to_use() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = JobConfig::new(Name::new("ranks").unwrap());
    config.state.backend = highwater::config::StateBackendKind::RocksDb;
    config.state.rocksdb.directory = Some(directory.path().to_owned());
    config.restart = highwater::config::RestartStrategy::None;
    // More than are read into memory to be looked at, so that their order is that of rows.
    let numbers: Vec<u64> = (0..100).collect();
    let failed = execute(config, &JobHandle::default(), move |job| {
        job.source("numbers", Collection::new(numbers.clone()))
            .into_keyed(|n| ((), Change::Insert(n)))
            .top_of_changes("least", 3, |n| std::cmp::Reverse(*n))
            .sink("out", Collect::new());
        Ok(())
    });
    let text = format!("{:?}", failed.unwrap_err());
    assert!(text.contains("least") && text.contains("use `Descending`"), "{text}");
}
