//! Whole jobs in a simulated machine, from seeds: crashes at any step, restarts with other numbers of workers, storage
//! that fails. What was committed is compared with what follows from the source alone.

use std::collections::BTreeMap;

use highwater::config::CheckpointMode;
use highwater::connect::collect::CollectHandle;
use highwater::prelude::*;
use highwater::testing::{FaultSink, Outcome, Random, Simulation, Trickle, each_seed, point};
use serde::{Deserialize, Serialize};

const PAST: &str = include_str!("sim_seeds.txt");

const JOBS: [fn(u64) -> Outcome; 5] = [count, union, broadcast, event_time, loops];

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
        .stops(random.pick(&[0, 0, 0, 1, 2]))
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

fn mode(random: &mut Random) -> CheckpointMode {
    if random.chance(0.15) { CheckpointMode::AtLeastOnce } else { CheckpointMode::ExactlyOnce }
}

type Counted = (u64, u64, (u64, u64, u64));

/// What a shape of job gives: for every record its key, the running count of that key, and the record's identity.
/// Every record is there once, and so is every count.
fn check(run: &Run, seen: &CollectHandle<Counted>) {
    run.outcome.write_trace();
    run.outcome.check();
    let committed = seen.committed();
    let expected = run.shape.all().map(|input| (input.key, input.id()));
    let ids = committed.iter().map(|(key, _, id)| (*key, *id));
    compare(expected, ids, run.mode == CheckpointMode::AtLeastOnce);
    if run.mode == CheckpointMode::ExactlyOnce {
        let mut totals: BTreeMap<u64, u64> = BTreeMap::new();
        for input in run.shape.all() {
            *totals.entry(input.key).or_default() += 1;
        }
        let counts = totals.iter().flat_map(|(key, total)| (1..=*total).map(move |n| (*key, n)));
        compare(counts, committed.iter().map(|(key, count, _)| (*key, *count)), false);
    }
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

struct Run {
    shape: Shape,
    mode: CheckpointMode,
    outcome: Outcome,
}

/// Draws a shape of `sources` sources and a way of going wrong, and runs the job that `build` makes of it.
fn run<F>(seed: u64, sources: u64, build: F) -> Run
where
    F: Fn(&Job<'_>, Shape, CheckpointMode) + Send + Sync + 'static,
{
    if std::env::var_os("HIGHWATER_LOG").is_some() {
        // It may be there already.
        let _ = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).try_init();
    }
    let mut random = Random::new(seed).fork(100);
    let shape = Shape::draw(&mut random, sources);
    let mode = mode(&mut random);
    let outcome = simulation(seed, &mut random, mode).run(move |job| {
        build(job, shape, mode);
        Ok(())
    });
    Run { shape, mode, outcome }
}

/// A source, a key, a running count.
fn count(seed: u64) -> Outcome {
    let target = Collect::new();
    let seen = target.handle();
    let run = run(seed, 1, move |job, shape, _| {
        job.source("numbers", shape.source(0))
            .key_by(|input| input.key)
            .process("count", Value::<u64>::new("count"), |key, input: Input, count, out| {
                point("count");
                *count.or_default() += 1;
                out.emit((*key, *count.or_default(), input.id()));
            })
            .sink("out", FaultSink::new(target.clone()));
    });
    check(&run, &seen);
    if run.mode == CheckpointMode::ExactlyOnce {
        check_order(&seen.committed());
    }
    run.outcome
}

/// Two sources together, spread over the workers, and a second sink that counts what the sources gave.
fn union(seed: u64) -> Outcome {
    let (target, totals) = (Collect::new(), Discard::counting(|input: &Input| input.index));
    let (seen, counted) = (target.handle(), totals.handle());
    let run = run(seed, 2, move |job, shape, _| {
        let first = job.source("first", shape.source(0));
        let both = first.union(job.source("second", shape.source(1)));
        both.clone().sink("all", FaultSink::new(totals.clone()));
        both.rebalance()
            .map(|input| (input.key, input))
            .into_keyed(|pair| pair)
            .process("count", Value::<u64>::new("count"), |key, input: Input, count, out| {
                point("count");
                *count.or_default() += 1;
                out.emit((*key, *count.or_default(), input.id()));
            })
            .rebalance()
            .sink("out", FaultSink::new(target.clone()));
    });
    check(&run, &seen);
    let all = run.shape.all().fold((0, 0), |(n, sum), input| (n + 1, sum + input.index));
    if run.mode == CheckpointMode::ExactlyOnce {
        assert_eq!(counted.totals(), all, "count and sum of the second sink");
    } else {
        assert!(counted.totals().0 >= all.0, "LOSS in the second sink");
    }
    run.outcome
}

/// Every worker sees every record and keeps its share; two states a key.
fn broadcast(seed: u64) -> Outcome {
    let target = Collect::new();
    let seen = target.handle();
    let run = run(seed, 1, move |job, shape, mode| {
        let (worker, workers) = job.worker();
        job.source("numbers", shape.source(0))
            .broadcast()
            .filter(move |input| input.index as usize % workers == worker)
            .route(|input, _| input.split as usize)
            .flat_map(|input| [Some(input), None])
            .filter(Option::is_some)
            .into_keyed(|input| (input.as_ref().map_or(0, |input| input.key), input))
            .process(
                "count",
                (Value::<u64>::new("count"), Value::<Vec<(u64, u64, u64)>>::new("seen")),
                move |key, input: Option<Input>, (count, seen), out| {
                    let Some(input) = input else { return };
                    point("count");
                    let count = count.or_default();
                    *count += 1;
                    seen.or_default().push(input.id());
                    if mode == CheckpointMode::ExactlyOnce {
                        assert_eq!(seen.or_default().len() as u64, *count, "two states of one key");
                    }
                    out.emit((*key, *count, input.id()));
                },
            )
            .sink("out", FaultSink::new(target.clone()));
    });
    check(&run, &seen);
    run.outcome
}

/// Records go round a loop as often as their index says, counted each time; three inputs of one keyed operator, two of
/// them of their own channels.
fn loops(seed: u64) -> Outcome {
    let target = Collect::new();
    let seen = target.handle();
    let run = run(seed, 2, move |job, shape, _| {
        let second = job.source("second", shape.source(1)).map(|input| (input, 0));
        let rounds = job
            .source("first", shape.source(0))
            .map(|input: Input| (input.clone(), input.index % 4))
            .iterate("rounds", |head| {
                let counted = head.key_by(|(input, _)| input.key).process(
                    "round",
                    Value::<u64>::new("count"),
                    |_, record: (Input, u64), count, out| {
                        point("round");
                        *count.or_default() += 1;
                        out.emit(record);
                    },
                );
                let again = counted.clone().filter(|(_, left)| *left > 0);
                let again = again.map(|(input, left)| (input, left - 1));
                (again, counted.filter(|(_, left)| *left == 0))
            });
        let third = second.clone().filter(|(input, _)| input.index % 2 == 0).rebalance();
        let odd = second.filter(|(input, _)| input.index % 2 == 1);
        rounds
            .key_by(|(input, _)| input.key)
            .union(odd.key_by(|(input, _)| input.key))
            .union(third.key_by(|(input, _)| input.key))
            .process("count", Value::<u64>::new("count"), |key, (input, _), count, out| {
                point("count");
                *count.or_default() += 1;
                out.emit((*key, *count.or_default(), input.id()));
            })
            .sink("out", FaultSink::new(target.clone()));
    });
    check(&run, &seen);
    run.outcome
}

/// Two exchanges and two keyed operators one behind the other. No record is late, since event time grows in every split,
/// and the watermark that a key sees never goes back (I9).
fn event_time(seed: u64) -> Outcome {
    let target = Collect::new();
    let seen = target.handle();
    let run = run(seed, 2, move |job, shape, mode| {
        let source = |number: u64| {
            let time = EventTime::monotonic(|input: &Input| input.time);
            job.source_with(&format!("source-{number}"), shape.source(number), time)
        };
        // In at-least-once mode a snapshot may hold records from behind its barrier, and so what they saw.
        let exact = mode == CheckpointMode::ExactlyOnce;
        source(0)
            .union(source(1))
            .key_by(|input| input.index % 7)
            .process("first", Value::<i64>::new("watermark"), move |_, input: Input, last, out| {
                point("first");
                let watermark = out.watermark();
                let before = last.set(watermark).unwrap_or(i64::MIN);
                assert!(!exact || before <= watermark, "I9: {before} -> {watermark}");
                assert!(input.time > watermark, "late: {} at {watermark}", input.time);
                out.emit(input);
            })
            .key_by(|input| input.key)
            .process(
                "second",
                (Value::<u64>::new("count"), Value::<i64>::new("watermark")),
                move |key, input: Input, (count, last), out| {
                    let watermark = out.watermark();
                    let before = last.set(watermark).unwrap_or(i64::MIN);
                    assert!(!exact || before <= watermark, "I9: {before} -> {watermark}");
                    assert!(input.time > watermark, "late: {} at {watermark}", input.time);
                    *count.or_default() += 1;
                    out.emit((*key, *count.or_default(), input.id()));
                },
            )
            .sink("out", FaultSink::new(target.clone()));
    });
    check(&run, &seen);
    run.outcome
}

#[test]
fn running_counts_are_committed_once() {
    each_seed("running_counts_are_committed_once", 500, PAST, |seed| drop(count(seed)));
}

#[test]
fn united_and_spread_records_are_committed_once() {
    each_seed("united_and_spread_records_are_committed_once", 500, PAST, |seed| drop(union(seed)));
}

#[test]
fn broadcast_and_routed_records_are_committed_once() {
    each_seed("broadcast_and_routed_records_are_committed_once", 500, PAST, |seed| {
        drop(broadcast(seed));
    });
}

#[test]
fn records_that_go_round_a_loop_and_those_of_three_inputs_are_committed_once() {
    each_seed("loops", 500, PAST, |seed| {
        drop(loops(seed));
    });
}

#[test]
fn watermarks_never_go_back_and_no_record_is_late() {
    each_seed("watermarks_never_go_back_and_no_record_is_late", 500, PAST, |seed| {
        drop(event_time(seed));
    });
}

#[test]
fn one_seed_gives_one_trace() {
    each_seed("one_seed_gives_one_trace", 100, PAST, |seed| {
        let job = JOBS[seed as usize % JOBS.len()];
        let (first, second) = (job(seed), job(seed));
        assert_eq!(first.trace, second.trace, "{first:?}\n{second:?}");
    });
}

/// Without this, a simulator that never crashes would look like a job that survives everything.
#[test]
fn the_seeds_put_crashes_everywhere() {
    let mut moments: BTreeMap<String, usize> = BTreeMap::new();
    let (mut restarts, mut completed, mut aborted) = (0, 0, 0);
    let mut in_flight = 0;
    for seed in 0..150 {
        let outcome = JOBS[seed as usize % JOBS.len()](seed);
        for crash in &outcome.crashes {
            let moment: Vec<&str> = crash.split(' ').take(2).collect();
            *moments.entry(moment.join(" ")).or_default() += 1;
        }
        restarts += outcome.restarts;
        completed += outcome.checkpoints;
        aborted += outcome.aborted;
        in_flight += outcome.in_flight_records;
    }
    println!(
        "{moments:?}; {restarts} restarts, {completed} complete, {aborted} aborted, {in_flight} in flight"
    );
    for moment in ["at turn", "at Create", "at List", "at Read", "at Write", "before a", "after a"]
    {
        assert!(moments.contains_key(moment), "no crash {moment}: {moments:?}");
    }
    assert!(in_flight > 1000, "{in_flight} records in channel logs");
    assert!(restarts > 20 && completed > 500 && aborted > 20, "{restarts} {completed} {aborted}");
}
