//! Records that go round a loop while the job is killed.

use std::collections::BTreeSet;

use highwater::prelude::*;

use super::shapes::Shape;
use super::{Case, KEYS, unaligned};
use crate::support::{Scratch, quiet_panics};

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
        Shape::Loop.build(job, &shared);
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
