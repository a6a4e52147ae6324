//! Joins, held to the suite that all operators are.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use highwater::prelude::*;
use highwater_operators::join::Join;
use highwater_operators::{
    BroadcastJoin, Change, IntervalJoin, JoinByKey, JoinChanges, TemporalJoin, net,
};

use conformance::{Event, case, checked_case, same};

mod conformance;

/// What a join makes of a pair: its key, and who its records are.
type Pair = (u64, Option<(u64, u64)>, Option<(u64, u64)>);

fn id(event: &Event) -> (u64, u64) {
    (event.split, event.index)
}

fn pair(key: u64, left: Option<&Event>, right: Option<&Event>) -> Pair {
    (key, left.map(id), right.map(id))
}

fn is_left(event: &Event) -> bool {
    event.value.is_multiple_of(2)
}

fn sides<'s>(
    events: Stream<'s, Event>,
) -> (KeyedStream<'s, u64, Event>, KeyedStream<'s, u64, Event>) {
    let left = events.clone().filter(is_left).key_by(|event| event.key);
    (left, events.filter(|event| !is_left(event)).key_by(|event| event.key))
}

fn joined<'s>(events: Stream<'s, Event>) -> Join<'s, u64, Event, Event> {
    let (left, right) = sides(events);
    left.join(right)
}

/// All pairs of a key for which `near` holds, and the records of the sides in `lonely` that are in none.
fn pairs(
    events: &[Event],
    near: impl Fn(&Event, &Event) -> bool,
    lonely: (bool, bool),
) -> Vec<Pair> {
    let (lefts, rights): (Vec<&Event>, Vec<&Event>) = events.iter().partition(|e| is_left(e));
    let meet = |left: &Event, right: &Event| left.key == right.key && near(left, right);
    let mut all = Vec::new();
    for left in &lefts {
        let met = rights.iter().filter(|right| meet(left, right));
        all.extend(met.map(|right| pair(left.key, Some(left), Some(right))));
        if lonely.0 && !rights.iter().any(|right| meet(left, right)) {
            all.push(pair(left.key, Some(left), None));
        }
    }
    for right in rights {
        if lonely.1 && !lefts.iter().any(|left| meet(left, right)) {
            all.push(pair(right.key, None, Some(right)));
        }
    }
    all
}

/// Compares what changes come to.
fn comes_to(expected: Vec<Pair>, changes: Vec<Change<Pair>>) -> Result<(), String> {
    let mut found = Vec::new();
    for (record, times) in net(changes) {
        let times = usize::try_from(times).map_err(|_| format!("{record:?}: {times} times"))?;
        found.extend(std::iter::repeat_n(record, times));
    }
    same(expected, found)
}

#[test]
fn an_inner_join_emits_each_pair_of_a_key_once() {
    case(
        "an_inner_join_emits_each_pair_of_a_key_once",
        |events| joined(events).inner("join", |key, l, r| pair(*key, Some(l), Some(r))),
        |events| pairs(events, |_, _| true, (false, false)),
    )
    .keys(20)
    .run();
}

#[test]
fn a_left_join_comes_to_the_pairs_and_the_left_records_without_a_partner() {
    checked_case(
        "a_left_join_comes_to_the_pairs_and_the_left_records_without_a_partner",
        |events| joined(events).left("join", |key, l, r| pair(*key, Some(l), r)),
        |events, found| comes_to(pairs(events, |_, _| true, (true, false)), found),
    )
    .keys(40)
    .run();
}

#[test]
fn a_right_join_comes_to_the_pairs_and_the_right_records_without_a_partner() {
    checked_case(
        "a_right_join_comes_to_the_pairs_and_the_right_records_without_a_partner",
        |events| joined(events).right("join", |key, l, r| pair(*key, l, Some(r))),
        |events, found| comes_to(pairs(events, |_, _| true, (false, true)), found),
    )
    .keys(40)
    .run();
}

#[test]
fn a_full_join_comes_to_the_pairs_and_all_records_without_a_partner() {
    checked_case(
        "a_full_join_comes_to_the_pairs_and_all_records_without_a_partner",
        |events| joined(events).full("join", |key, l, r| pair(*key, l, r)),
        |events, found| comes_to(pairs(events, |_, _| true, (true, true)), found),
    )
    .keys(40)
    .run();
}

#[test]
fn a_join_with_a_long_time_to_live_is_as_one_without() {
    checked_case(
        "a_join_with_a_long_time_to_live_is_as_one_without",
        |events| {
            let joined = joined(events).ttl(Duration::from_hours(1000));
            joined.full("join", |key, l, r| pair(*key, l, r))
        },
        |events, found| comes_to(pairs(events, |_, _| true, (true, true)), found),
    )
    .keys(40)
    .run();
}

#[test]
fn what_has_expired_meets_nothing_and_is_not_retracted() {
    checked_case(
        "what_has_expired_meets_nothing_and_is_not_retracted",
        |events| {
            let joined = joined(events).ttl(Duration::ZERO);
            joined.full("join", |key, l, r| pair(*key, l, r))
        },
        |events, found| {
            if found.iter().any(|change| !change.is_insert()) {
                return Err("something is retracted".to_owned());
            }
            comes_to(pairs(events, |_, _| false, (true, true)), found)
        },
    )
    .run();
}

/// Every record is inserted, and one of two is retracted right behind it, or with the next of its split.
fn come_and_go(event: Event) -> Vec<Change<Event>> {
    let insert = Change::Insert(event);
    if goes(&event) { vec![insert, Change::Retract(event)] } else { vec![insert] }
}

fn goes(event: &Event) -> bool {
    (event.value / 2).is_multiple_of(2)
}

fn stays(events: &[Event]) -> Vec<Event> {
    events.iter().copied().filter(|event| !goes(event)).collect()
}

#[test]
fn a_full_join_of_changes_comes_to_the_join_of_what_is_left() {
    checked_case(
        "a_full_join_of_changes_comes_to_the_join_of_what_is_left",
        |events| {
            let changes = events.flat_map(come_and_go);
            let keyed = |change: Change<Event>| change.keyed(|event| (event.key, event));
            let left = changes.clone().filter(|change| is_left(change.record())).into_keyed(keyed);
            let right = changes.filter(|change| !is_left(change.record())).into_keyed(keyed);
            left.join_of_changes(right).full("join", |key, l, r| pair(*key, l, r))
        },
        |events, found| comes_to(pairs(&stays(events), |_, _| true, (true, true)), found),
    )
    .keys(20)
    .run();
}

#[test]
fn a_join_of_a_join_is_that_of_three_streams() {
    checked_case(
        "a_join_of_a_join_is_that_of_three_streams",
        |events| {
            let keyed = |change: Change<(u64, Pair)>| change.keyed(|all| all);
            let again = events.clone().map(|event| Change::Insert((event.key, event)));
            joined(events)
                .left("first", |key, l, r| (*key, pair(*key, Some(l), r)))
                .into_keyed(keyed)
                .join_of_changes(again.into_keyed(|change| change.keyed(|event| event)))
                .inner("second", |_, pair, third| (*pair, id(third)))
        },
        |events, found| {
            let mut expected = Vec::new();
            for pair in pairs(events, |_, _| true, (true, false)) {
                let thirds = events.iter().filter(|third| third.key == pair.0);
                expected.extend(thirds.map(|third| ((pair, id(third)), 1)));
            }
            same(expected, net(found).into_iter().collect())
        },
    )
    .keys(20)
    .records(40)
    .run();
}

const NEAR: RangeInclusive<i64> = -35..=50;

fn near(left: &Event, right: &Event) -> bool {
    NEAR.contains(&(right.time - left.time))
}

#[test]
fn an_interval_join_emits_each_pair_of_near_records_once() {
    case(
        "an_interval_join_emits_each_pair_of_near_records_once",
        |events| {
            let (left, right) = sides(events);
            left.interval_join(right, (|l| l.time, |r| r.time), NEAR)
                .inner("join", |key, l, r| pair(*key, Some(l), Some(r)))
        },
        |events| pairs(events, near, (false, false)),
    )
    .out_of_order(60)
    .run();
}

#[test]
fn a_left_interval_join_emits_what_has_no_partner_once() {
    case(
        "a_left_interval_join_emits_what_has_no_partner_once",
        |events| {
            let (left, right) = sides(events);
            left.interval_join(right, (|l| l.time, |r| r.time), NEAR)
                .left("join", |key, l, r| pair(*key, Some(l), r))
        },
        |events| pairs(events, near, (true, false)),
    )
    .keys(8)
    .out_of_order(60)
    .run();
}

#[test]
fn an_interval_on_one_side_joins_as_well() {
    const AHEAD: RangeInclusive<i64> = 20..=60;
    case(
        "an_interval_on_one_side_joins_as_well",
        |events| {
            let (left, right) = sides(events);
            left.interval_join(right, (|l| l.time, |r| r.time), AHEAD)
                .left("join", |key, l, r| pair(*key, Some(l), r))
        },
        |events| pairs(events, |l, r| AHEAD.contains(&(r.time - l.time)), (true, false)),
    )
    .out_of_order(30)
    .run();
}

#[test]
fn what_an_interval_join_calls_late_comes_out_aside_and_the_rest_is_joined() {
    checked_case(
        "what_an_interval_join_calls_late_comes_out_aside_and_the_rest_is_joined",
        |events| {
            let (left, right) = sides(events);
            let (pairs, late) = left
                .interval_join(right, (|l| l.time, |r| r.time), NEAR)
                .left_and_late("join", |key, l, r| pair(*key, Some(l), r));
            let late = late.map(|(_, event)| match event {
                Either::Left(event) | Either::Right(event) => Either::Right(event),
            });
            pairs.map(Either::Left).union(late)
        },
        |events, found| {
            let (mut found_pairs, mut late) = (Vec::new(), BTreeSet::new());
            for found in found {
                match found {
                    Either::Left(pair) => found_pairs.push(pair),
                    Either::Right(event) if late.insert(event) => {}
                    Either::Right(event) => return Err(format!("{event:?} is late twice")),
                }
            }
            let on_time: Vec<Event> =
                events.iter().copied().filter(|event| !late.contains(event)).collect();
            if on_time.len() + late.len() != events.len() {
                return Err("what is late is not of the input".to_owned());
            }
            same(pairs(&on_time, near, (true, false)), found_pairs)
        },
    )
    .late(120, 20)
    .run();
}

#[test]
fn a_late_record_makes_no_pair_that_is_none_and_none_twice() {
    checked_case(
        "a_late_record_makes_no_pair_that_is_none_and_none_twice",
        |events| {
            let (left, right) = sides(events);
            left.interval_join(right, (|l| l.time, |r| r.time), NEAR)
                .inner("join", |key, l, r| pair(*key, Some(l), Some(r)))
        },
        |events, mut found| {
            let allowed: BTreeSet<Pair> = pairs(events, near, (false, false)).into_iter().collect();
            found.sort();
            if !found.is_sorted_by(|one, next| one < next) {
                return Err("a pair comes twice".to_owned());
            }
            match found.iter().find(|pair| !allowed.contains(pair)) {
                Some(pair) => Err(format!("{pair:?} is no pair")),
                None => Ok(()),
            }
        },
    )
    .late(120, 20)
    .run();
}

/// The left record and the version that it met; of several versions of one time any may count.
type Met = (Event, Option<Event>);

/// Whether each of `lefts` has met one of the newest versions up to its time, once.
fn met_versions(
    events: &[Event],
    lefts: impl Iterator<Item = Event>,
    mut found: Vec<Met>,
) -> Result<(), String> {
    found.sort();
    same(lefts.collect(), found.iter().map(|(left, _)| *left).collect())?;
    for (left, version) in found {
        let rights = events.iter().filter(|right| !is_left(right) && right.key == left.key);
        let valid = rights.map(|right| right.time).filter(|time| *time <= left.time).max();
        let of_the_key = version.is_none_or(|right| right.key == left.key && !is_left(&right));
        if !of_the_key || version.map(|right| right.time) != valid {
            return Err(format!("{left:?} has met {version:?}, not one of {valid:?}"));
        }
    }
    Ok(())
}

#[test]
fn a_temporal_join_finds_the_version_of_the_time_of_each_record() {
    checked_case(
        "a_temporal_join_finds_the_version_of_the_time_of_each_record",
        |events| {
            let (left, right) = sides(events);
            left.temporal_join(right, (|l| l.time, |r| r.time))
                .left("join", |_, l, r| (*l, r.copied()))
        },
        |events, found| met_versions(events, events.iter().copied().filter(is_left), found),
    )
    .out_of_order(80)
    .run();
}

#[test]
fn a_temporal_join_emits_late_records_aside_and_joins_the_rest() {
    checked_case(
        "a_temporal_join_emits_late_records_aside_and_joins_the_rest",
        |events| {
            // Versions are never late: the watermark is far behind them.
            let (left, right) = sides(events);
            let right = right.map_values(|_, event| Event { time: event.time + 100, ..event });
            let (found, late) = left
                .temporal_join(right, (|l| l.time, |r| r.time))
                .inner_and_late("join", |_, l, r| (*l, Some(*r)));
            found.union(late.map(|(_, left)| (left, None)))
        },
        |events, found| {
            let later = |event: &Event| match is_left(event) {
                true => *event,
                false => Event { time: event.time + 100, ..*event },
            };
            let events: Vec<Event> = events.iter().map(later).collect();
            let (found, late): (Vec<Met>, Vec<Met>) =
                found.into_iter().partition(|m| m.1.is_some());
            let late: BTreeSet<Event> = late.into_iter().map(|(left, _)| left).collect();
            let on_time = events.iter().copied().filter(|l| is_left(l) && !late.contains(l));
            let has_version = |left: &Event| {
                let mut rights = events.iter().filter(|r| !is_left(r) && r.key == left.key);
                rights.any(|right| right.time <= left.time)
            };
            met_versions(&events, on_time.filter(has_version), found)
        },
    )
    .late(100, 20)
    .run();
}

#[test]
fn a_broadcast_join_emits_each_record_once_with_an_entry_of_its_key_or_none() {
    checked_case(
        "a_broadcast_join_emits_each_record_once_with_an_entry_of_its_key_or_none",
        |events| {
            let table = events.clone().filter(|event| !is_left(event));
            let table = table.map(|event| (event.key, (!goes(&event)).then_some(event)));
            let main = events.filter(is_left).broadcast_join(table, |event| event.key);
            main.left("join", |event, entry| (event, entry.copied()))
        },
        |events, found: Vec<Met>| {
            let lefts = events.iter().copied().filter(is_left);
            same(lefts.collect(), found.iter().map(|(left, _)| *left).collect())?;
            let entries: BTreeSet<Event> = events.iter().copied().filter(|e| !is_left(e)).collect();
            let wrong = |(left, entry): &&Met| {
                entry.is_some_and(|e| e.key != left.key || goes(&e) || !entries.contains(&e))
            };
            found.iter().find(wrong).map_or(Ok(()), |met| Err(format!("{met:?}")))
        },
    )
    .run();
}
