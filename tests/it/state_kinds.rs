//! All kinds of keyed state in whole jobs, through panics and restores.

use std::time::Duration;

use highwater::prelude::*;

use crate::failure::Faults;
use crate::fixture_jobs::Mean;
use crate::support::{Background, Scratch, assert_same, quiet_panics, run, throttle};

const RECORDS: u64 = 20_000;
const KEYS: u64 = 101;

type Row = (u64, usize, u64, u64, u64);

/// After each record of a key: how many there were, the greatest, and the mean; and how often its last digit was there.
fn rows() -> Vec<Row> {
    let mut seen = vec![Vec::new(); KEYS as usize];
    let row = |n: u64| {
        let key = n % KEYS;
        let numbers = &mut seen[key as usize];
        numbers.push(n);
        let digit = numbers.iter().filter(|other| **other % 10 == n % 10).count();
        let mean = numbers.iter().sum::<u64>() / numbers.len() as u64;
        (key, numbers.len(), digit as u64, n, mean)
    };
    (0..RECORDS).map(row).collect()
}

fn build(job: &Job<'_>, faults: Faults, sink: Collect<Row>) {
    let states = (
        List::<u64>::new("numbers").ttl(Duration::from_secs(3600)),
        Map::<u64, u64>::new("digits"),
        Reducing::new("greatest", |greatest: &mut u64, n| *greatest = n.max(*greatest)),
        Aggregating::new("mean", Mean),
    );
    job.source("numbers", Generator::new(RECORDS, |i| i))
        .inspect(throttle(20))
        .key_by(|n| n % KEYS)
        .process("all", states, move |key, n, (numbers, digits, greatest, mean), out| {
            faults.pass();
            numbers.append(n);
            let digit = digits.get(&(n % 10)).copied().unwrap_or(0) + 1;
            digits.insert(n % 10, digit);
            greatest.add(n);
            mean.add(n);
            let greatest = greatest.get().copied().unwrap_or(0);
            out.emit((*key, numbers.iter().count(), digit, greatest, mean.get().unwrap_or(0)));
        })
        .sink("out", sink);
}

#[test]
fn all_kinds_of_state_are_exact_through_a_panic_and_at_one_three_and_two_workers() {
    quiet_panics();
    let scratch = Scratch::new();
    let collect = Collect::new();
    for workers in [1, 3, 2] {
        let (sink, faults) = (collect.clone(), Faults::at([1_000]));
        let job = Background::start(scratch.config(workers), move |job| {
            build(job, faults.clone(), sink.clone());
            Ok(())
        });
        if workers == 2 {
            job.end().unwrap();
        } else {
            job.wait_for_more_checkpoints(4);
            job.handle.stop();
            job.end().unwrap();
        }
    }
    assert_same(rows(), collect.handle().committed());
    scratch.assert_directory_is_the_reachable_set();
}

/// Runs a job over a hundred records of each of three keys on the state that the last run has left, `number` runs having
/// been before. Returns what it has emitted.
fn go_on<S: States<u64>>(
    scratch: &Scratch,
    number: u64,
    states: impl Fn() -> S + Send + Sync + 'static,
    process: impl for<'a> Fn(&mut S::Access<'a>) -> u64 + Clone + Send + Sync + 'static,
) -> highwater::Result<Vec<u64>> {
    let collect = Collect::new();
    let sink = collect.clone();
    let mut config = scratch.config(2);
    // Each run has a source of its own, that begins at its beginning, and a sink that commits nothing of the last run's.
    config.restore.allow_new_state = true;
    config.restore.allow_dropped_state = true;
    run(config, move |job| {
        let process = process.clone();
        job.source(&format!("numbers-{number}"), Generator::new(300, |i| i))
            .key_by(|n| n % 3)
            .process("operator", states(), move |_, _, state, out| out.emit(process(state)))
            .sink(&format!("out-{number}"), sink.clone());
        Ok(())
    })?;
    Ok(collect.handle().committed())
}

#[test]
fn a_kind_that_is_not_the_one_of_the_checkpoint_is_refused_by_name() {
    let scratch = Scratch::new();
    let value = || Value::<u64>::new("state");
    go_on(&scratch, 0, value, |count| *count.or_default()).unwrap();
    let error = go_on(
        &scratch,
        1,
        || List::<u64>::new("state"),
        |list| {
            list.append(1);
            1
        },
    );
    let text = error.unwrap_err().to_string();
    assert!(text.contains("operator/state"), "{text}");
    assert!(text.contains("u64 -> u64") && text.contains("u64 -> List<u64>"), "{text}");
    let error = go_on(&scratch, 1, move || value().version(2).ttl(Duration::MAX), |_| 1);
    let text = error.unwrap_err().to_string();
    assert!(text.contains("version 1") && text.contains("version 2"), "{text}");
}

#[test]
fn a_ttl_can_be_added_to_the_state_of_a_checkpoint_changed_and_taken_away() {
    let scratch = Scratch::new();
    let count = |count: &mut u64| {
        *count += 1;
        *count
    };
    let plain = || Value::<u64>::new("state");
    let ttl = |time| move || Value::<u64>::new("state").ttl(time);
    let counts = |run: u64| (1..=100).flat_map(move |n| [100 * run + n; 3]);
    let hour = Duration::from_secs(3600);
    assert_same(counts(0), go_on(&scratch, 0, plain, move |s| count(s.or_default())).unwrap());
    for (run, time) in [(1, hour), (2, 2 * hour)] {
        let seen = go_on(&scratch, run, ttl(time), move |s| count(s.or_default())).unwrap();
        assert_same(counts(run), seen);
    }
    assert_same(counts(3), go_on(&scratch, 3, plain, move |s| count(s.or_default())).unwrap());
    // Too short for what was kept to be there still.
    let none = ttl(Duration::ZERO);
    assert_same([1; 300], go_on(&scratch, 4, none, move |s| count(s.or_default())).unwrap());
}
