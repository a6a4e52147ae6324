//! Incremental views, held to the suite that all operators are.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use highwater::config::CheckpointMode;
use highwater::prelude::*;
use highwater::testing::{FaultSink, Simulation, Trickle, each_seed, fewer};
use highwater_operators::differential::Collected;
use highwater_operators::differential::differential_dataflow::operators::Iterate;
use highwater_operators::{Change, Differential, net};

use conformance::{Event, checked_case, same};

mod conformance;

/// Fewer than of others: every worker of a view has some dozens of timely operators.
const SEEDS: u64 = 8;

type Edge = (u64, u64);

/// Where a record is in a table, and what it says there: a later one of its split takes its place.
fn entry(event: &Event) -> ((u64, u64), u64) {
    ((event.split, event.key), event.value >> 8)
}

/// The entries of the table as they come and go.
fn table(events: Stream<'_, Event>) -> KeyedStream<'_, (u64, u64), Change<u64>> {
    let changes = events.into_keyed(|event| entry(&event)).process(
        "table",
        Value::<u64>::new("entry"),
        |place, new, kept, out| {
            if let Some(old) = kept.set(new) {
                out.emit(Change::Retract((*place, old)));
            }
            out.emit(Change::Insert((*place, new)));
        },
    );
    changes.into_keyed(|change| change.keyed(|entry| entry))
}

/// What the table holds in the end.
fn entries(events: &[Event]) -> BTreeMap<(u64, u64), u64> {
    let mut events = events.to_vec();
    events.sort_by_key(|event| (event.split, event.index));
    events.iter().map(entry).collect()
}

/// An edge between one node for each place of the table and one of the fifty that entries point to.
fn edge(((split, key), to): ((u64, u64), u64)) -> Edge {
    (1000 + split * 100 + key, to % 50)
}

/// Fails if a record is ever there twice, or less than not at all.
fn never_twice<T: Ord + Clone + std::fmt::Debug>(changes: &[Change<T>]) -> Result<(), String> {
    let mut there = BTreeSet::new();
    for change in changes {
        let fits = match change {
            Change::Insert(record) => there.insert(record.clone()),
            Change::Retract(record) => there.remove(record),
        };
        if !fits {
            return Err(format!("{change:?} when that cannot be, in {changes:?}"));
        }
    }
    Ok(())
}

/// Of changes of which each record is there once at the most.
fn comes_to<T: Ord + Clone + std::fmt::Debug>(
    expected: impl IntoIterator<Item = T>,
    changes: Vec<Change<T>>,
) -> Result<(), String> {
    never_twice(&changes)?;
    same(
        expected.into_iter().map(|record| (record, 1)).collect(),
        net(changes).into_iter().collect(),
    )
}

/// For each remainder of entries by ten: how many there are, and the greatest.
fn summed(table: Collected<'_, ((u64, u64), u64)>) -> Collected<'_, (u64, isize, u64)> {
    let by_digit = table.map(|(_, entry)| (entry % 10, entry));
    let counts = by_digit.clone().map(|(digit, _)| digit).count();
    let greatest = by_digit.reduce(|_, entries, out| {
        out.extend(entries.last().map(|(entry, _)| (**entry, 1)));
    });
    counts.join_map(greatest, |digit, count, greatest| (*digit, *count, *greatest))
}

#[test]
fn a_view_that_reduces_and_joins_comes_to_that_of_what_is_left() {
    checked_case(
        "a_view_that_reduces_and_joins_comes_to_that_of_what_is_left",
        |events| table(events).differential("view", summed),
        |events, changes| {
            let mut by_digit: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
            for entry in entries(events).into_values() {
                by_digit.entry(entry % 10).or_default().push(entry);
            }
            let expected = by_digit.into_iter().map(|(digit, entries)| {
                (digit, entries.len() as isize, entries.iter().copied().max().unwrap_or(0))
            });
            comes_to(expected, changes)
        },
    )
    .keys(12)
    .seeds(SEEDS)
    .run();
}

/// The least node that each node is connected with.
fn components(edges: Collected<'_, Edge>) -> Collected<'_, (u64, u64)> {
    let edges = edges.clone().map(|(from, to)| (to, from)).concat(edges);
    let nodes = edges.clone().map(|(node, _)| (node, node)).distinct();
    nodes.clone().iterate(|scope, labels| {
        let (edges, nodes) = (edges.enter(scope), nodes.enter(scope));
        labels
            .join_map(edges, |_, label, to| (*to, *label))
            .concat(nodes)
            .reduce(|_, labels, out| out.extend(labels.first().map(|(label, _)| (**label, 1))))
    })
}

/// The same by union-find.
fn naive_components(edges: impl Iterator<Item = Edge>) -> Vec<(u64, u64)> {
    let mut parents: BTreeMap<u64, u64> = BTreeMap::new();
    fn root(parents: &BTreeMap<u64, u64>, mut node: u64) -> u64 {
        while let Some(parent) = parents.get(&node).filter(|parent| **parent != node) {
            node = *parent;
        }
        node
    }
    for (from, to) in edges {
        parents.entry(from).or_insert(from);
        parents.entry(to).or_insert(to);
        let (from, to) = (root(&parents, from), root(&parents, to));
        parents.insert(from.max(to), from.min(to));
    }
    parents.keys().map(|node| (*node, root(&parents, *node))).collect()
}

#[test]
fn a_view_that_iterates_comes_to_the_components_of_the_edges_that_are_left() {
    checked_case(
        "a_view_that_iterates_comes_to_the_components_of_the_edges_that_are_left",
        |events| table(events).differential("view", |table| components(table.map(edge))),
        |events, changes| {
            comes_to(naive_components(entries(events).into_iter().map(edge)), changes)
        },
    )
    .keys(12)
    .records(25)
    .seeds(SEEDS)
    .run();
}

#[test]
fn a_view_of_late_and_disordered_records_is_of_all_of_them() {
    checked_case(
        "a_view_of_late_and_disordered_records_is_of_all_of_them",
        |events| {
            let changes = events.map(|event| Change::Insert((event.key, event.value % 3)));
            changes.differential("view", |pairs| pairs.distinct())
        },
        |events, changes| {
            let expected: BTreeSet<_> =
                events.iter().map(|event| (event.key, event.value % 3)).collect();
            comes_to(expected, changes)
        },
    )
    .late(60, 20)
    .seeds(SEEDS)
    .run();
}

#[test]
fn at_least_once_no_record_of_a_view_is_lost() {
    // Nothing is held back before the view. If it counted records of the next epoch into the state of this one, what
    // follows from them would be taken for old after a restart.
    let restarts = Cell::new(0);
    each_seed("at_least_once_no_record_of_a_view_is_lost", SEEDS, "", |seed| {
        let records = fewer(60);
        let sink = Collect::new();
        let seen = sink.handle();
        let simulation = Simulation::new(seed).workers(2..=4).crashes(2).config(|config| {
            config.checkpoints.mode = CheckpointMode::AtLeastOnce;
        });
        let outcome = simulation.run(move |job| {
            job.source("numbers", Trickle::new(seed, 3, records, |split, i| split * 1000 + i))
                .rebalance()
                .map(Change::Insert)
                .differential("view", |numbers| numbers.distinct())
                .sink("out", FaultSink::new(sink.clone()));
            Ok(())
        });
        outcome.check();
        restarts.set(restarts.get() + outcome.restarts);
        let seen: BTreeSet<u64> = net(seen.committed()).into_keys().collect();
        let all = (0..3).flat_map(|split| (0..records).map(move |i| split * 1000 + i));
        same(all.collect(), seen.into_iter().collect()).unwrap_or_else(|why| panic!("{why}"));
    });
    assert!(restarts.get() > 0);
}

/// Asserts that the results of a view come far more often than checkpoints, and come to the counts of 160 numbers by parity.
fn comes_between_checkpoints(
    numbers: impl for<'s> Fn(&Job<'s>, Trickle<u64>) -> Stream<'s, u64> + Send + Sync + 'static,
) {
    let sink = Collect::new();
    let seen = sink.handle();
    let simulation = Simulation::new(3).workers(2..=2).config(|config| {
        config.checkpoints.interval = Some(Duration::from_secs(3600));
    });
    let outcome = simulation.run(move |job| {
        numbers(job, Trickle::new(3, 2, 80, |_, i| i))
            .map(|n| Change::Insert(n % 2))
            .differential("view", |numbers| numbers.count())
            .sink("out", FaultSink::new(sink.clone()));
        Ok(())
    });
    outcome.check();
    let changes = seen.committed();
    let rounds = changes.iter().filter(|change| change.is_insert()).count();
    let checkpoints = outcome.checkpoints;
    assert!(rounds > 5 * checkpoints, "{rounds} rounds, {checkpoints} checkpoints");
    comes_to([(0, 80), (1, 80)], changes).unwrap_or_else(|why| panic!("{why}"));
}

#[test]
fn results_come_when_the_watermark_moves_on_without_waiting_for_a_checkpoint() {
    comes_between_checkpoints(|job, numbers| {
        let time = EventTime::monotonic(|n: &u64| 10 * *n as i64);
        job.source_with("numbers", numbers, time)
    });
}

#[test]
fn results_come_by_the_clock_where_event_time_does_not_move() {
    comes_between_checkpoints(|job, numbers| {
        let numbers = job.source("numbers", numbers);
        numbers.assign_arrival_times("arrival", Duration::from_millis(1))
    });
}

#[test]
fn what_watches_a_view_sees_its_event_time_and_state() {
    // Behind a view come other operators: their gates see its epochs and event times.
    checked_case(
        "what_watches_a_view_sees_its_event_time_and_state",
        |events| {
            table(events)
                .differential("view", |table| table.map(edge).map(|(_, to)| to).count())
                .into_keyed(|change| change.keyed(|(to, count)| (to, count)))
                .process("net", Value::<i64>::new("net"), |to, change, net, out| {
                    *net.or_default() += change.diff() * *change.record() as i64;
                    out.emit((*to, *net.or_default()));
                })
        },
        |events, seen| {
            let mut counts: BTreeMap<u64, i64> = (0..50).map(|to| (to, 0)).collect();
            for (_, to) in entries(events).into_iter().map(edge) {
                *counts.entry(to).or_default() += 1;
            }
            // The last of each.
            let last: BTreeMap<u64, i64> = seen.into_iter().collect();
            counts.retain(|to, count| *count != 0 || last.contains_key(to));
            same(counts.into_iter().collect(), last.into_iter().collect())
        },
    )
    .keys(12)
    .seeds(SEEDS)
    .run();
}

#[test]
fn a_view_whose_rounds_are_cut_by_the_clock_comes_to_the_same() {
    checked_case(
        "a_view_whose_rounds_are_cut_by_the_clock_comes_to_the_same",
        |events| {
            events
                .assign_arrival_times("arrival", Duration::from_millis(2))
                .map(|event| Change::Insert(event.key))
                .differential("view", |keys| keys.count())
        },
        |events, changes| {
            let mut counts = BTreeMap::<u64, isize>::new();
            events.iter().for_each(|event| *counts.entry(event.key).or_default() += 1);
            comes_to(counts, changes)
        },
    )
    .seeds(SEEDS)
    .run();
}
