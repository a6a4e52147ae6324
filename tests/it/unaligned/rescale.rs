//! From any number of workers to any other, with records on their way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use highwater::config::JobConfig;
use highwater::ids::Name;
use highwater::prelude::*;

use super::shapes::Shape;
use super::{Case, Item, KEYS, unaligned};
use crate::support::{Scratch, assert_same, quiet_panics};

/// All pairs of numbers of workers.
fn pairs() -> impl Iterator<Item = (usize, usize)> {
    (1..=5).flat_map(|from| (1..=5).map(move |to| (from, to)))
}

/// Runs a shape on `from` workers into a checkpoint with records on their way, and to its end on `to` workers. Returns
/// the channels that had a log.
fn rescale(
    shape: Shape,
    (from, to): (usize, usize),
    per_millisecond: u64,
    prepare: impl Fn(&mut Case, &mut JobConfig),
) -> BTreeSet<String> {
    quiet_panics();
    let scratch = Scratch::new();
    let mut config = unaligned(&scratch, from);
    let mut case = Case::new(shape.sources(), KEYS, from);
    prepare(&mut case, &mut config);
    let shared = case.clone();
    let build = move |job: &Job<'_>| {
        shape.build(job, &shared);
        Ok(())
    };
    // Half of them by a failure, half of them by a cancel.
    let fail = (from + to) % 2 == 0;
    let logs = case.run_into_backlog(&config, per_millisecond, fail, build.clone());
    config.workers = to;
    case.run_to_the_end(config, 500, build);
    case.assert_exactly_once();
    scratch.assert_directory_is_the_reachable_set();
    logs.into_keys().collect()
}

/// All pairs of one shape. Every channel that can be overtaken was, in one of them at least, and no other.
fn rescale_all(shape: Shape) {
    let start = Instant::now();
    let mut overtaken = BTreeSet::new();
    for pair in pairs() {
        overtaken.extend(rescale(shape, pair, 4, |_, _| ()));
    }
    println!("{shape:?}: {:?}", start.elapsed());
    assert_eq!(overtaken.iter().map(String::as_str).collect::<Vec<_>>(), shape.overtaken());
}

#[test]
fn a_pipeline_goes_on_with_any_number_of_workers() {
    rescale_all(Shape::Pipeline);
}

#[test]
fn unions_go_on_with_any_number_of_workers() {
    rescale_all(Shape::Union);
}

#[test]
fn two_inputs_of_a_keyed_operator_go_on_with_any_number_of_workers() {
    rescale_all(Shape::TwoInputs);
}

#[test]
fn three_inputs_of_a_keyed_operator_go_on_with_any_number_of_workers() {
    rescale_all(Shape::ThreeInputs);
}

#[test]
fn a_broadcast_of_which_each_keeps_its_share_goes_on_beside_overtaken_channels() {
    rescale_all(Shape::SharedBroadcast);
}

#[test]
fn an_exchange_behind_a_broadcast_goes_on_with_any_number_of_workers() {
    rescale_all(Shape::KeyedBroadcast);
}

#[test]
fn routed_records_go_where_the_function_says_for_the_new_number_of_workers() {
    rescale_all(Shape::Routed);
}

/// Each is longer than a whole quantum's worth, one longer than a frame of a snapshot.
#[test]
fn routed_records_much_larger_than_a_quantum_go_on_with_any_number_of_workers() {
    for pair in pairs() {
        let overtaken = rescale(Shape::Routed, pair, 1, |case, config| {
            case.sources[0].pad = |index| if index == 7 { 1_300_000 } else { 100_000 };
            config.flow.in_flight_bytes_max = 400_000;
        });
        assert_eq!(overtaken.into_iter().collect::<Vec<_>>(), ["routed"]);
    }
}

/// What one replica of one run has seen.
type Replica = (u8, usize);

/// Each replica goes on with a log of its own: what run 2 shows on worker `j` is what replica `j % from` of run 1 had
/// not shown, in order.
#[test]
fn every_replica_of_an_overtaken_broadcast_goes_on_where_one_was() {
    quiet_panics();
    for (from, to) in pairs() {
        let scratch = Scratch::new();
        let mut config = unaligned(&scratch, from);
        let all = Name::new("all").unwrap();
        config.checkpoints.channel_alignment_timeouts.insert(all, Some(Duration::ZERO));
        let case = Case::new(1, KEYS, from);
        let seen: Collect<(u8, usize, u64)> = Collect::new();
        let shown = seen.handle();
        let run = Arc::new(Mutex::new(1_u8));
        let (shared, number) = (case.clone(), Arc::clone(&run));
        let build = move |job: &Job<'_>| {
            let (worker, run) = (job.worker().0, *number.lock().unwrap());
            let replica = case_in_order(&shared, job).map(move |item| (run, worker, item.index));
            replica.sink("out", seen.clone());
            Ok(())
        };
        let logs = case.run_into_backlog(&config, 4, (from + to) % 2 == 1, build.clone());
        assert_eq!(logs.keys().collect::<Vec<_>>(), ["all"]);
        *run.lock().unwrap() = 2;
        config.workers = to;
        case.run_to_the_end(config, 200, build);
        case.tally.assert_clean();
        let mut shown_by: BTreeMap<Replica, Vec<u64>> = BTreeMap::new();
        for (run, worker, index) in shown.committed() {
            shown_by.entry((run, worker)).or_default().push(index);
        }
        let none = Vec::new();
        for worker in 0..to {
            let before = shown_by.get(&(1, worker % from)).unwrap_or(&none);
            let after = shown_by.get(&(2, worker)).unwrap_or(&none);
            let end = case.sources[0].end.load(Ordering::SeqCst);
            assert_same(0..end, before.iter().chain(after).copied());
        }
        scratch.assert_directory_is_the_reachable_set();
    }
}

/// A broadcast; what each replica sees of a split is without a gap.
fn case_in_order<'scope>(case: &Case, job: &Job<'scope>) -> Stream<'scope, Item> {
    let all = case.look(case.read(job, 0).channel_name("all").broadcast());
    let (tally, splits) = (Arc::clone(&case.tally), case.splits);
    let mut last: BTreeMap<u64, u64> = BTreeMap::new();
    all.inspect(move |item| {
        let before = last.insert(item.index % splits, item.index);
        if before.is_some_and(|before| item.index != before + splits) {
            tally.disordered();
        }
    })
}
