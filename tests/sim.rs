//! Whole jobs in a simulated machine, from seeds: crashes at any step, restarts with other numbers of workers, storage
//! that fails. What was committed is compared with what follows from the source alone.

use std::collections::BTreeMap;

use highwater::config::CheckpointMode;
use highwater::prelude::*;
use highwater::testing::{FaultSink, Outcome, Random, Simulation, Trickle, each_seed, point};
use serde::{Deserialize, Serialize};

const PAST: &str = include_str!("sim_seeds.txt");

/// A record of the source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Input {
    source: u64,
    split: u64,
    index: u64,
    key: u64,
    time: i64,
}

impl Input {
    fn id(&self) -> (u64, u64, u64) {
        (self.source, self.split, self.index)
    }
}

/// What the sources of one run give.
#[derive(Clone, Copy, Debug)]
struct Shape {
    seed: u64,
    sources: u64,
    splits: u64,
    records: u64,
    keys: u64,
}

impl Shape {
    fn draw(random: &mut Random, sources: u64) -> Self {
        let splits = random.between(1, 5);
        let records = random.scaled(20, 300) / splits + 1;
        let keys = random.scaled(1, 40);
        Self { seed: random.next(), sources, splits, records, keys }
    }

    fn record(self, source: u64, split: u64, index: u64) -> Input {
        let mut random = Random::new(self.seed).fork(source << 48 | split << 32 | index);
        // Within a split event time grows.
        let time = (index * 10 + random.below(10)) as i64;
        Input { source, split, index, key: random.below(self.keys), time }
    }

    fn source(self, source: u64) -> Trickle<Input> {
        Trickle::new(self.seed ^ source, self.splits, self.records, move |split, index| {
            self.record(source, split, index)
        })
    }

    fn all(self) -> impl Iterator<Item = Input> {
        (0..self.sources).flat_map(move |source| {
            (0..self.splits).flat_map(move |split| {
                (0..self.records).map(move |index| self.record(source, split, index))
            })
        })
    }
}

/// How a run is made to go wrong.
fn simulation(seed: u64, random: &mut Random, mode: CheckpointMode) -> Simulation {
    let simulation = Simulation::new(seed)
        .crashes(random.below(5) as u32)
        .panics(random.pick(&[0, 0, 1, 2]))
        .config(move |config| config.checkpoints.mode = mode);
    match random.below(4) {
        0 => simulation.storage_errors(random.pick(&[0.005, 0.05])),
        1 => simulation.commit_errors(random.pick(&[0.02, 0.2])),
        _ => simulation,
    }
}

/// Compares what was committed with what should have been, record by record: LOSS and DUP apart.
fn compare<T: Ord + Clone + std::fmt::Debug>(
    expected: impl IntoIterator<Item = T>,
    committed: impl IntoIterator<Item = T>,
    duplicates_allowed: bool,
) {
    let mut balance: BTreeMap<T, i64> = BTreeMap::new();
    for record in expected {
        *balance.entry(record).or_default() += 1;
    }
    for record in committed {
        *balance.entry(record).or_default() -= 1;
    }
    let lost: Vec<_> = balance.iter().filter(|(_, count)| **count > 0).collect();
    let doubled: Vec<_> = balance.iter().filter(|(_, count)| **count < 0).collect();
    assert!(
        lost.is_empty() && (doubled.is_empty() || duplicates_allowed),
        "LOSS of {}: {:?}; DUP of {}: {:?}",
        lost.len(),
        lost.iter().take(5).collect::<Vec<_>>(),
        doubled.len(),
        doubled.iter().take(5).collect::<Vec<_>>(),
    );
}

/// Runs a simulation, and checks what does not depend on the job.
fn finish(outcome: &Outcome) {
    outcome.write_trace();
    outcome.check();
}

fn mode(random: &mut Random) -> CheckpointMode {
    if random.chance(0.15) { CheckpointMode::AtLeastOnce } else { CheckpointMode::ExactlyOnce }
}

type Counted = (u64, u64, (u64, u64, u64));

/// The running count of every key: in the order of each sender, each count once.
fn check_counts(shape: Shape, committed: Vec<Counted>, exactly_once: bool) {
    compare(
        shape.all().map(|input| (input.key, input.id())),
        committed.iter().map(|(key, _, id)| (*key, *id)),
        !exactly_once,
    );
    if !exactly_once {
        return;
    }
    let mut totals: BTreeMap<u64, u64> = BTreeMap::new();
    for input in shape.all() {
        *totals.entry(input.key).or_default() += 1;
    }
    let counts = totals.iter().flat_map(|(key, total)| (1..=*total).map(move |n| (*key, n)));
    compare(counts, committed.iter().map(|(key, count, _)| (*key, *count)), false);
}

/// Of one key and one split, records were counted in their order.
fn check_order(committed: &[Counted]) {
    let mut sorted = committed.to_vec();
    sorted.sort();
    let mut last: BTreeMap<(u64, u64, u64), u64> = BTreeMap::new();
    let mut disorder = 0;
    for (key, _, (source, split, index)) in sorted {
        if last.insert((key, source, split), index).is_some_and(|before| before >= index) {
            disorder += 1;
        }
    }
    assert_eq!(disorder, 0, "records of one key and one sender out of order");
}

fn count(seed: u64) -> Outcome {
    let mut random = Random::new(seed).fork(100);
    let shape = Shape::draw(&mut random, 1);
    let mode = mode(&mut random);
    let target = Collect::new();
    let seen = target.handle();
    let outcome = simulation(seed, &mut random, mode).run(move |job| {
        job.source("numbers", shape.source(0))
            .key_by(|input| input.key)
            .process("count", Value::<u64>::new("count"), |key, input: Input, count, out| {
                point("count");
                *count.or_default() += 1;
                out.emit((*key, *count.or_default(), input.id()));
            })
            .sink("out", FaultSink::new(target.clone()));
        Ok(())
    });
    finish(&outcome);
    let committed = seen.committed();
    let exactly_once = mode == CheckpointMode::ExactlyOnce;
    if exactly_once {
        check_order(&committed);
    }
    check_counts(shape, committed, exactly_once);
    outcome
}

#[test]
fn running_counts_are_committed_once() {
    each_seed("running_counts_are_committed_once", 125, PAST, |seed| drop(count(seed)));
}

#[test]
fn one_seed_gives_one_trace() {
    each_seed("one_seed_gives_one_trace", 100, PAST, |seed| {
        let (first, second) = (count(seed), count(seed));
        assert_eq!(first.trace, second.trace, "{first:?}\n{second:?}");
        assert!(first.turns > 0);
    });
}
