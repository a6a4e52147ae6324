//! From one number of workers to another and back, several times, with state of every kind: what comes out is compared with
//! what an independent computation says, lost and doubled records apart.
//!
//! 42 keys, as in Flink's tests of rescaling, in 13 key groups, which no number of workers divides, and in as many as there may
//! be. Every run ends in one of several ways, and the next one goes on from what it has left, at another parallelism.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use highwater::config::{JobConfig, RestartStrategy, RestoreFrom};
use highwater::convert::Conversion;
use highwater::format::SectionKind;
use highwater::ids::Name;
use highwater::prelude::*;
use highwater::protocol::key_groups::{key_group, owner};
use highwater::state::hash::stable_hash;
use highwater::state_reader::StateReader;
use serde::{Deserialize, Serialize};

use crate::support::{
    Background, Random, Scratch, assert_directory_is_the_reachable_set, assert_same, quiet_panics,
    run, running_counts, seed, wait_until,
};

const KEYS: u64 = 42;
const PARTITIONS: u64 = 8;
const RULES: u64 = 5;
/// Units: milliseconds of event time, which are records.
const WINDOW: u64 = 50;
const PACKAGE: usize = 5;

/// What the operators emit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Out {
    /// Of all kinds of keyed state: the how many-th record of its key, and the sum of those.
    Kinds { key: u64, index: u64, count: u64, sum: u64 },
    /// Something that must not be.
    Unsound(String),
    /// A window of event time.
    Window { key: u64, end: i64, count: u64 },
    /// What an operator list had kept back, or not.
    Package { index: u64 },
    /// Of a union list: the how many-th record of a partition.
    Partition { partition: u64, count: u64 },
    /// A record beside a broadcast state.
    Looked { index: u64 },
    /// What a worker's broadcast state is in the last run.
    Rules { worker: u64, counts: Vec<u64> },
}

/// Which operators a job has.
#[derive(Clone, Copy, Debug)]
pub struct Pieces {
    kinds: bool,
    windows: bool,
    packages: bool,
    partitions: bool,
    lookup: bool,
}

impl Pieces {
    pub const ALL: Self =
        Self { kinds: true, windows: true, packages: true, partitions: true, lookup: true };

    fn draw(random: &mut Random) -> Self {
        let mut piece = || random.below(3) > 0;
        let [kinds, windows, packages, partitions, lookup] = std::array::from_fn(|_| piece());
        let lookup = lookup || !(kinds || windows || packages || partitions);
        Self { kinds, windows, packages, partitions, lookup }
    }
}

/// A source without an end, until the test draws a line behind what was read.
#[derive(Clone)]
pub struct Line {
    end: Arc<AtomicU64>,
    reached: Arc<AtomicU64>,
}

impl Line {
    fn new() -> Self {
        Self { end: Arc::new(AtomicU64::new(u64::MAX)), reached: Arc::default() }
    }

    fn end(&self) -> u64 {
        self.end.load(Ordering::SeqCst)
    }

    pub fn draw(&self, more: u64) {
        self.end.store(self.reached.load(Ordering::SeqCst) + more, Ordering::SeqCst);
    }

    /// The number of each record, of so many in a second if it says so.
    fn read(&self, per_second: Option<u64>) -> impl Source<Record = u64> + use<> {
        let reached = Arc::clone(&self.reached);
        let numbers = Generator::new(self.end(), move |index| {
            reached.fetch_max(index + 1, Ordering::Relaxed);
            index
        });
        match per_second {
            Some(per_second) => numbers.paced(0, per_second),
            None => numbers,
        }
    }
}

/// What all runs of a job share.
#[derive(Clone)]
pub struct Case {
    pieces: Pieces,
    pub numbers: Line,
    pub rules: Line,
    /// Records that an operator lets pass in a millisecond; 0: any number.
    pub per_millisecond: Arc<AtomicU64>,
    pub fail: Arc<AtomicBool>,
    /// The last run: operators emit what they have kept back.
    pub last: Arc<AtomicBool>,
    /// Barriers overtake in the broadcast channel too, so that the copies of the rules are at records of their own.
    rules_overtaken: bool,
    sink: Collect<Out>,
}

impl Case {
    pub fn new(pieces: Pieces) -> Self {
        Self {
            pieces,
            numbers: Line::new(),
            rules: Line::new(),
            per_millisecond: Arc::default(),
            fail: Arc::default(),
            last: Arc::default(),
            rules_overtaken: false,
            sink: Collect::new(),
        }
    }

    /// A place that records pass slowly.
    fn place(&self) -> impl FnMut() + use<> {
        let (per_millisecond, fail) = (Arc::clone(&self.per_millisecond), Arc::clone(&self.fail));
        let mut passed = 0;
        move || {
            if fail.load(Ordering::Relaxed) && fail.swap(false, Ordering::SeqCst) {
                panic!("planted");
            }
            passed += 1;
            let limit = per_millisecond.load(Ordering::Relaxed);
            if limit > 0 && passed >= limit {
                passed = 0;
                // Fault: a slow operator.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    pub fn build(&self, job: &Job<'_>, max_parallelism: u16) {
        let times = EventTime::monotonic(|n: &u64| *n as i64);
        let numbers = job.source_with("numbers", self.numbers.read(None), times);
        let mut outs = Vec::new();
        if self.pieces.kinds {
            outs.push(self.kinds(numbers.clone(), job, max_parallelism));
        }
        if self.pieces.windows {
            outs.push(self.windows(numbers.clone()));
        }
        if self.pieces.packages {
            outs.push(self.packages(numbers.clone()));
        }
        if self.pieces.partitions {
            outs.push(self.partitions(numbers.clone(), job));
        }
        if self.pieces.lookup {
            outs.push(self.lookup(numbers, job));
        }
        let all = outs.into_iter().reduce(Stream::union).expect("a job has an operator");
        all.sink("out", self.sink.clone());
    }

    /// Keyed state of four kinds, which have to agree.
    fn kinds<'scope>(
        &self,
        numbers: Stream<'scope, u64>,
        job: &Job<'scope>,
        max_parallelism: u16,
    ) -> Stream<'scope, Out> {
        let states = (
            Value::<u64>::new("count"),
            List::<u64>::new("numbers"),
            Map::<u64, u64>::new("digits"),
            Reducing::new("sum", |sum: &mut u64, n| *sum += n),
        );
        let (worker, workers) = job.worker();
        let mut pass = self.place();
        numbers.channel_name("kinds-in").key_by(|n| n % KEYS).process(
            "kinds",
            states,
            move |key, index, (count, numbers, digits, sum), out| {
                pass();
                *count.or_default() += 1;
                numbers.append(index);
                let digit = digits.get(&(index % 10)).copied().unwrap_or(0) + 1;
                digits.insert(index % 10, digit);
                sum.add(index);
                let (count, sum) = (*count.or_default(), sum.get().copied().unwrap_or(0));
                out.emit(Out::Kinds { key: *key, index, count, sum });
                let seen: BTreeSet<u64> = numbers.iter().copied().collect();
                let listed = (numbers.iter().count() as u64, seen.len() as u64, seen.iter().sum());
                let digits: u64 = digits.iter().map(|(_, count)| *count).sum();
                if (listed, digits) != ((count, count, sum), count) {
                    out.emit(Out::Unsound(format!(
                        "TORN key {key}: {listed:?} {digits} {count} {sum}"
                    )));
                }
                let group = key_group(stable_hash(key), max_parallelism);
                if owner(group, max_parallelism, workers) != worker {
                    out.emit(Out::Unsound(format!("MISROUTED key {key} to {worker}")));
                }
            },
        )
    }

    /// Windows of event time.
    fn windows<'scope>(&self, numbers: Stream<'scope, u64>) -> Stream<'scope, Out> {
        let mut pass = self.place();
        numbers.channel_name("windows-in").key_by(|n| n % KEYS).process_with_timers(
            "windows",
            Map::<i64, u64>::new("counts"),
            move |_, n, counts, context| {
                pass();
                let end = window_end(n);
                let count = counts.get(&end).copied().unwrap_or(0);
                counts.insert(end, count + 1);
                context.register_event_timer(end);
            },
            |key, timer, counts, context| {
                let count = counts.remove(&timer.time).expect("a window that fires has records");
                context.emit(Out::Window { key: *key, end: timer.time, count });
            },
        )
    }

    /// An operator list keeps records back until there are some; the last run lets all of them go.
    fn packages<'scope>(&self, numbers: Stream<'scope, u64>) -> Stream<'scope, Out> {
        let (mut pass, last) = (self.place(), Arc::clone(&self.last));
        let in_turn = |n: &u64, workers: usize| *n as usize % workers;
        numbers.channel_name("packages-in").route(in_turn).process(
            "packages",
            OperatorList::<u64>::new("waiting"),
            move |index, waiting, out| {
                pass();
                waiting.append(index);
                if waiting.len() >= PACKAGE || last.load(Ordering::Relaxed) {
                    for index in waiting.take() {
                        out.emit(Out::Package { index });
                    }
                }
            },
        )
    }

    /// As a source keeps its positions in Flink: every instance gets those of all, and keeps those of its own partitions.
    fn partitions<'scope>(
        &self,
        numbers: Stream<'scope, u64>,
        job: &Job<'scope>,
    ) -> Stream<'scope, Out> {
        let target = |partition: u64, workers: usize| partition as usize % workers;
        let (worker, workers) = job.worker();
        let mut pass = self.place();
        let mut sorted_out = false;
        numbers
            .channel_name("partitions-in")
            .route(move |n, workers| target(n % PARTITIONS, workers))
            .process(
                "partitions",
                UnionList::<(u64, u64)>::new("counts"),
                move |index, counts, out| {
                    pass();
                    let mut own: BTreeMap<u64, u64> = BTreeMap::new();
                    for (partition, count) in counts.take() {
                        if sorted_out || target(partition, workers) == worker {
                            // An instance that has seen no record since the last restore still has what others go on with.
                            let known = own.entry(partition).or_default();
                            *known = count.max(*known);
                        }
                    }
                    sorted_out = true;
                    let partition = index % PARTITIONS;
                    let count = own.entry(partition).or_default();
                    *count += 1;
                    out.emit(Out::Partition { partition, count: *count });
                    counts.replace(own);
                },
            )
    }

    /// Records that look at rules, which every worker counts.
    fn lookup<'scope>(
        &self,
        numbers: Stream<'scope, u64>,
        job: &Job<'scope>,
    ) -> Stream<'scope, Out> {
        let apart = self.rules_overtaken;
        let rules = job.source("rules", self.rules.read((!apart).then_some(2_000)));
        let mut pass_rule = self.place();
        let (mut pass, last) = (self.place(), Arc::clone(&self.last));
        let worker = job.worker().0 as u64;
        numbers
            .channel_name("lookup-in")
            .key_by(|n| n % KEYS)
            .connect_broadcast(rules.channel_name("rules-in"))
            .process(
                "lookup",
                Value::<u64>::new("seen"),
                Broadcast::<u64, u64>::new("rules"),
                move |key, index, seen, rules, out| {
                    pass();
                    let known: u64 = rules.iter().map(|(_, count)| count).sum();
                    let before = seen.set(known).unwrap_or(0);
                    if before > known && !apart {
                        let back = format!("BACK key {key} has seen {before} rules, now {known}");
                        out.emit(Out::Unsound(back));
                    }
                    out.emit(Out::Looked { index });
                },
                move |rule, rules, out| {
                    if apart {
                        pass_rule();
                    }
                    let count = rules.get(&(rule % RULES)).copied().unwrap_or(0);
                    rules.insert(rule % RULES, count + 1);
                    if last.load(Ordering::Relaxed) {
                        let counts = rules.view().iter().map(|(_, count)| *count).collect();
                        out.emit(Out::Rules { worker, counts });
                    }
                },
            )
    }

    /// Compares what came out with what should, when the last run was on so many workers.
    #[track_caller]
    pub fn check(&self, workers: usize) {
        let end = self.numbers.end();
        let found = self.sink.handle().committed();
        let unsound: Vec<&Out> =
            found.iter().filter(|out| matches!(out, Out::Unsound(_))).take(3).collect();
        assert!(unsound.is_empty(), "{unsound:?}");
        let mut expected = BTreeSet::new();
        let indices = |have: bool| if have { 0..end } else { 0..0 };
        expected.extend(indices(self.pieces.packages).map(|index| Out::Package { index }));
        expected.extend(indices(self.pieces.lookup).map(|index| Out::Looked { index }));
        if self.pieces.partitions {
            let counts = running_counts(end, |index| index % PARTITIONS);
            let row = |(partition, count)| Out::Partition { partition, count };
            expected.extend(counts.into_iter().map(row));
        }
        if self.pieces.windows {
            let mut windows: BTreeMap<(u64, i64), u64> = BTreeMap::new();
            for n in 0..end {
                *windows.entry((n % KEYS, window_end(n))).or_default() += 1;
            }
            let row = |((key, end), count)| Out::Window { key, end, count };
            expected.extend(windows.into_iter().map(row));
        }
        let alike = |out: &&Out| !matches!(out, Out::Kinds { .. } | Out::Rules { .. });
        assert_same(expected, found.iter().filter(alike).cloned());
        if self.pieces.kinds {
            self.check_kinds(&found);
        }
        if self.pieces.lookup {
            self.check_rules(&found, workers);
        }
    }

    /// Records of a key come in any order if there are several splits; how many there were, and their sum, are known.
    #[track_caller]
    fn check_kinds(&self, found: &[Out]) {
        let end = self.numbers.end();
        let (mut indices, mut counts, mut sums) = (Vec::new(), Vec::new(), BTreeMap::new());
        for out in found {
            let Out::Kinds { key, index, count, sum } = out else { continue };
            indices.push((*key, *index));
            counts.push((*key, *count));
            let greatest = sums.entry(*key).or_insert(0);
            *greatest = (*sum).max(*greatest);
        }
        assert_same((0..end).map(|index| (index % KEYS, index)), indices);
        assert_same(running_counts(end, |index| index % KEYS), counts);
        let mut all = BTreeMap::new();
        for index in 0..end {
            *all.entry(index % KEYS).or_insert(0) += index;
        }
        assert_eq!(sums, all);
    }

    /// Every worker's rules grow by one at a time, to what they are everywhere.
    #[track_caller]
    fn check_rules(&self, found: &[Out], workers: usize) {
        let end = self.rules.end();
        let mut totals: BTreeMap<u64, BTreeMap<u64, Vec<u64>>> = BTreeMap::new();
        for out in found {
            let Out::Rules { worker, counts } = out else { continue };
            let of_worker = totals.entry(*worker).or_default();
            let before = of_worker.insert(counts.iter().sum(), counts.clone());
            assert!(before.is_none(), "DUP: worker {worker} came to {before:?} twice");
        }
        let all: Vec<u64> =
            (0..RULES).map(|rule| (0..end).filter(|n| n % RULES == rule).count() as u64).collect();
        assert_eq!(totals.len(), workers, "every worker has rules");
        for (worker, totals) in totals {
            let (first, last) = (totals.first_key_value(), totals.last_key_value());
            assert_eq!(last, Some((&end, &all)), "LOSS or DUP: rules of worker {worker}");
            let first = first.map_or(0, |(total, _)| *total);
            assert_eq!(totals.len() as u64, end - first + 1, "rules of worker {worker}");
        }
    }
}

fn window_end(n: u64) -> i64 {
    (n - n % WINDOW + WINDOW - 1) as i64
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By its final checkpoint.
    Stop,
    /// At its newest checkpoint, with records behind it that are lost.
    Cancel,
    /// In the same way, by a panic.
    Fail,
    /// By a savepoint, from which the next one goes on.
    Savepoint,
}

/// Records on their way in the newest checkpoint, in one channel or in all.
fn logged(scratch: &Scratch, channel: Option<&str>) -> u64 {
    let store = scratch.store();
    let Some(epoch) = store.newest().unwrap() else { return 0 };
    let sections = store.load(epoch).unwrap().parts.into_iter().flat_map(|part| part.sections);
    let logs = sections.filter(|section| {
        let header = &section.header;
        header.kind == SectionKind::ChannelLog
            && header.state.as_str() == "in-flight"
            && channel.is_none_or(|channel| header.operator.as_str() == channel)
    });
    logs.map(|section| section.entries).sum()
}

/// Runs a job at each number of workers in turn; each run but the last ends as it says. Returns the number of records that
/// were restored into channels.
#[track_caller]
fn rescale(
    pieces: Pieces,
    max_parallelism: u16,
    unaligned: bool,
    runs: &[(usize, End)],
    last: usize,
) -> u64 {
    rescale_case(Case::new(pieces), max_parallelism, unaligned, runs, last)
}

#[track_caller]
fn rescale_case(
    case: Case,
    max_parallelism: u16,
    unaligned: bool,
    runs: &[(usize, End)],
    last: usize,
) -> u64 {
    quiet_panics();
    let scratch = Scratch::new();
    let mut restored = 0;
    let mut config = scratch.config(1);
    config.max_parallelism = max_parallelism;
    config.restart = RestartStrategy::None;
    config.checkpoints.alignment_timeout = unaligned.then_some(Duration::ZERO);
    config.flow.in_flight_bytes_max = 16 << 10;
    if case.rules_overtaken {
        let rules = Name::new("rules-in").unwrap();
        config.checkpoints.channel_alignment_timeouts.insert(rules, Some(Duration::ZERO));
    }
    let shared = case.clone();
    let build = move |job: &Job<'_>| {
        shared.build(job, max_parallelism);
        Ok(())
    };
    case.per_millisecond.store(if unaligned { 4 } else { 20 }, Ordering::SeqCst);
    for (number, (workers, end)) in runs.iter().enumerate() {
        config.workers = *workers;
        // A checkpoint without a log may complete between the look and the end: then once more, from there.
        let mut tries = 0;
        loop {
            let to = scratch.path(&format!("savepoint-{number}-{tries}"));
            let from = run_and_end(&config, *end, unaligned, &case, build.clone(), to);
            config.restore.from = from;
            let logs = logged(&scratch, case.rules_overtaken.then_some("rules-in"));
            assert!(unaligned || logs == 0, "{logs} records were overtaken");
            restored += logs;
            tries += 1;
            if logs > 0 || !unaligned {
                break;
            }
            assert!(tries < 20, "no checkpoint held records on their way");
        }
    }
    case.per_millisecond.store(0, Ordering::SeqCst);
    case.numbers.draw(400);
    case.rules.draw(40);
    case.last.store(true, Ordering::SeqCst);
    config.workers = last;
    run(config, build).unwrap();
    case.check(last);
    scratch.assert_directory_is_the_reachable_set();
    restored
}

/// Runs a job until it has checkpoints, and ends it. Returns where to go on from.
#[track_caller]
fn run_and_end(
    config: &JobConfig,
    end: End,
    unaligned: bool,
    case: &Case,
    build: impl Fn(&Job<'_>) -> highwater::Result<()> + Send + Sync + 'static,
    to: PathBuf,
) -> RestoreFrom {
    let job = Background::start(config.clone(), build);
    let counters = job.handle.counters();
    wait_until("there are checkpoints", || {
        assert!(!job.is_finished(), "the job has ended");
        let checkpoints = counters.checkpoints();
        checkpoints.completed.len() >= 2 && (!unaligned || checkpoints.in_flight_records > 0)
    });
    end_job(job, end, case, to)
}

/// Ends a job that restarts after nothing if it is to fail. Returns where to go on from.
#[track_caller]
pub fn end_job(job: Background, end: End, case: &Case, to: PathBuf) -> RestoreFrom {
    let mut from = RestoreFrom::Newest;
    match end {
        End::Stop => job.handle.stop(),
        End::Cancel => job.handle.cancel(),
        End::Fail => case.fail.store(true, Ordering::SeqCst),
        End::Savepoint => {
            let info = job.handle.stop_with_savepoint(&to, false).unwrap();
            from = RestoreFrom::Checkpoint(info.path.display().to_string());
        }
    }
    let ended = job.end();
    assert_eq!(ended.is_err(), end == End::Fail, "{ended:?}");
    from
}

#[test]
fn forty_two_keys_go_from_three_workers_to_four_and_back_in_thirteen_groups_and_in_most() {
    for max_parallelism in [13, 32_768] {
        for end in [End::Cancel, End::Fail, End::Stop, End::Savepoint] {
            rescale(Pieces::ALL, max_parallelism, false, &[(3, end), (4, end)], 3);
        }
        let ends = [(3, End::Cancel), (4, End::Fail)];
        assert!(rescale(Pieces::ALL, max_parallelism, true, &ends, 3) > 0);
    }
}

#[test]
fn all_state_goes_from_one_worker_to_eight_and_down_again_step_by_step() {
    let up_and_down = [1, 8, 5, 7, 2, 6, 4];
    let ends = [End::Cancel, End::Savepoint, End::Fail, End::Stop].into_iter().cycle();
    let runs: Vec<_> = up_and_down.into_iter().zip(ends).collect();
    rescale(Pieces::ALL, 13, false, &runs, 1);
    let ends = [End::Cancel, End::Fail].into_iter().cycle();
    let runs: Vec<_> = up_and_down.into_iter().rev().zip(ends).collect();
    assert!(rescale(Pieces::ALL, 13, true, &runs, 8) > 0);
}

/// Each copy of the rules is restored with the log of the channel of just that copy.
#[test]
fn copies_of_a_broadcast_state_at_different_records_come_to_the_same_at_other_parallelisms() {
    let none =
        Pieces { kinds: false, windows: false, packages: false, partitions: false, lookup: true };
    for runs in [[3, 5, 2], [1, 4, 4], [4, 1, 3]] {
        let case = Case { rules_overtaken: true, ..Case::new(none) };
        let runs = runs.map(|workers| (workers, End::Cancel));
        assert!(rescale_case(case, 13, true, &runs[..2], runs[2].0) > 0);
    }
}

#[test]
fn random_jobs_go_on_at_random_numbers_of_workers() {
    const CASES: u64 = 20;
    let first = seed();
    let (start, mut restored) = (Instant::now(), 0);
    for case in 0..CASES {
        let seed = first.wrapping_add(case);
        let mut random = Random::new(seed);
        let pieces = Pieces::draw(&mut random);
        let max_parallelism = [13, 32_768][random.below(2) as usize];
        let unaligned = random.below(2) == 1;
        let ends: &[End] = if unaligned {
            &[End::Cancel, End::Fail]
        } else {
            &[End::Cancel, End::Fail, End::Stop, End::Savepoint]
        };
        let mut workers = || random.below(8) as usize + 1;
        let [a, b, c, last] = std::array::from_fn(|_| workers());
        let number = 1 + random.below(3) as usize;
        let runs: Vec<(usize, End)> = [a, b, c][..number]
            .iter()
            .map(|workers| (*workers, ends[random.below(ends.len() as u64) as usize]))
            .collect();
        println!(
            "seed {seed}: {max_parallelism} groups, unaligned {unaligned}, {runs:?}, then {last}, {pieces:?}"
        );
        restored += rescale(pieces, max_parallelism, unaligned, &runs, last);
    }
    println!("{CASES} cases in {:?}, {restored} records restored into channels", start.elapsed());
}

/// The types of the keyed state of these jobs.
fn typed(conversion: Conversion) -> Conversion {
    conversion
        .keyed::<u64, u64>("kinds", "count")
        .keyed::<u64, Vec<u64>>("kinds", "numbers")
        .keyed::<u64, BTreeMap<u64, u64>>("kinds", "digits")
        .keyed::<u64, u64>("kinds", "sum")
        .keyed::<u64, BTreeMap<i64, u64>>("windows", "counts")
        .timers::<u64>("windows")
        .keyed::<u64, u64>("lookup", "seen")
}

#[test]
fn a_converted_savepoint_goes_on_with_another_number_of_key_groups() {
    quiet_panics();
    let scratch = Scratch::new();
    let case = Case::new(Pieces::ALL);
    case.per_millisecond.store(20, Ordering::SeqCst);
    let config_of = |groups: u16, workers, from: &Option<PathBuf>| {
        let mut config = scratch.config(workers);
        config.max_parallelism = groups;
        config.restart = RestartStrategy::None;
        config.checkpoints.alignment_timeout = None;
        // Small parts are in the manifest, larger ones in files: some of both.
        config.checkpoints.inline_bytes_max = 4 << 10;
        config.checkpoints.directory = Some(scratch.path(&format!("checkpoints-{groups}")));
        if let Some(from) = from {
            config.restore.from = RestoreFrom::Checkpoint(from.display().to_string());
        }
        let case = case.clone();
        let build = move |job: &Job<'_>| {
            case.build(job, groups);
            Ok(())
        };
        (config, build)
    };
    let mut from = None;
    for (groups, workers, next, memory) in
        [(13, 3, 32_768, 64 << 20), (32_768, 8, 1, 1 << 10), (1, 1, 7, 1 << 10), (7, 5, 26, 100)]
    {
        let (config, build) = config_of(groups, workers, &from);
        let savepoint = scratch.path(&format!("savepoint-{groups}"));
        run_and_end(&config, End::Savepoint, false, &case, build, savepoint.clone());
        let to = scratch.path(&format!("converted-{groups}"));
        let conversion = Conversion::new().memory_bytes(memory);
        let conversion = if groups == 7 { typed(conversion) } else { conversion };
        let info = conversion.convert(&savepoint, &to, next).unwrap();
        let (before, after) =
            (StateReader::open(&savepoint).unwrap(), StateReader::open(&to).unwrap());
        assert_eq!(
            (info.entries, after.manifest().max_parallelism),
            (before.manifest().entries(), next)
        );
        from = Some(to);
    }
    case.per_millisecond.store(0, Ordering::SeqCst);
    case.numbers.draw(400);
    case.rules.draw(40);
    case.last.store(true, Ordering::SeqCst);
    let (config, build) = config_of(26, 4, &from);
    let directory = config.checkpoints.directory.clone().unwrap();
    run(config, build).unwrap();
    case.check(4);
    assert_directory_is_the_reachable_set(&directory);
}

#[test]
fn more_workers_than_key_groups_are_refused_before_anything_starts() {
    let scratch = Scratch::new();
    let mut config = scratch.config(14);
    config.max_parallelism = 13;
    let case = Case::new(Pieces::ALL);
    case.numbers.draw(10);
    let shared = case.clone();
    let build = move |job: &Job<'_>| {
        shared.build(job, 13);
        Ok(())
    };
    let text = run(config.clone(), build.clone()).unwrap_err().to_string();
    assert!(text.contains("14 workers") && text.contains("13 key groups"), "{text}");
    // Just as many do work: each has one group.
    case.rules.draw(10);
    case.last.store(true, Ordering::SeqCst);
    config.workers = 13;
    run(config, build).unwrap();
    case.check(13);
    scratch.assert_directory_is_the_reachable_set();
}
