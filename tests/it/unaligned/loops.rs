//! Records that go round a loop while the job is killed.

use std::collections::BTreeSet;
use std::sync::Arc;

use highwater::prelude::*;

use super::{Case, Item, KEYS, unaligned};
use crate::support::{Scratch, quiet_panics};

/// Every record goes round as often as its index says, and each time to the worker of another key; what its last key
/// has counted of it leaves the loop.
fn rounds<'scope>(job: &Job<'scope>, case: &Case) -> Stream<'scope, Item> {
    const ROUNDS: u64 = 6;
    let tally = Arc::clone(&case.tally);
    let mut pass = case.slow.place(1);
    let left = |item: &Item| item.index % ROUNDS;
    let check = Arc::clone(&case.tally);
    case.read(job, 0).map(move |item| (left(&item), 0_u64, item)).iterate("rounds", move |head| {
        let counted =
            head.channel_name("around").key_by(|(left, _, item)| item.key + left).process(
                "visits",
                Value::<u64>::new("visits"),
                move |_, (left, visits, item): (u64, u64, Item), seen, out| {
                    tally.look(&item);
                    pass();
                    *seen.or_default() += 1;
                    out.emit((left, visits + 1, item));
                },
            );
        let again = counted.clone().filter(|(left, ..)| *left > 0);
        let again = again.map(|(left, visits, item)| (left - 1, visits, item));
        let out = counted.filter(|(left, ..)| *left == 0).map(move |(_, visits, item)| {
            if visits != left(&item) + 1 {
                check.disordered();
            }
            item
        });
        (again, out)
    })
}

fn killed(workers: &[usize], aligned: bool) -> BTreeSet<String> {
    quiet_panics();
    let scratch = Scratch::new();
    let mut config = unaligned(&scratch, workers[0]);
    if aligned {
        config.checkpoints.alignment_timeout = None;
    }
    let case = Case::new(1, KEYS, workers[0]);
    let shared = case.clone();
    let build = move |job: &Job<'_>| {
        shared.sink(rounds(job, &shared));
        Ok(())
    };
    let (last, first) = workers.split_last().unwrap();
    let mut overtaken = BTreeSet::new();
    for (run, workers) in first.iter().enumerate() {
        config.workers = *workers;
        let logs = case.run_into_backlog(&config, 4, run % 2 == 0, build.clone());
        overtaken.extend(logs.into_keys());
    }
    config.workers = *last;
    case.run_to_the_end(config, 500, build);
    case.assert_exactly_once();
    scratch.assert_directory_is_the_reachable_set();
    overtaken
}

fn both() -> BTreeSet<String> {
    ["around", "rounds"].map(str::to_owned).into()
}

#[test]
fn what_goes_round_a_loop_survives_one_kill_after_another() {
    for workers in 1..=3 {
        assert_eq!(killed(&[workers; 6], false), both());
    }
}

#[test]
fn what_goes_round_a_loop_goes_on_with_any_number_of_workers() {
    let mut overtaken = BTreeSet::new();
    for from in 1..=5 {
        for to in 1..=5 {
            overtaken.extend(killed(&[from, to], false));
        }
    }
    assert_eq!(overtaken, both());
    assert_eq!(killed(&[3, 1, 4, 2, 5, 2], false), both());
}

/// A loop's own edge is always overtaken: its barrier would never come otherwise.
#[test]
fn a_loop_between_aligned_channels_is_the_only_one_with_a_log() {
    assert_eq!(killed(&[2, 3, 1, 2], true), ["rounds".to_owned()].into());
}
