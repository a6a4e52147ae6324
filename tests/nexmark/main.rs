//! Nexmark on Highwater: the results are those that other programs have found, at every parallelism, on each backend, with barriers
//! that overtake and with those that do not, and through crashes. Where nobody has published results they are those of a naive
//! program, `oracle.rs`.

#![allow(clippy::unwrap_used, reason = "what is not as expected fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use highwater::config::{CheckpointMode, JobConfig, RestartStrategy, StateBackendKind};
use highwater::ids::Name;
use highwater::job::{JobHandle, execute};
use highwater::prelude::*;

use events::Event;

#[path = "../../examples/nexmark/events.rs"]
mod events;
mod oracle;
#[path = "../../examples/nexmark/queries/mod.rs"]
#[expect(dead_code, reason = "the program reads its events in another way")]
mod queries;

const RECORDS: u64 = 100_000;

/// Results of the first hundred thousand events, found by Flink and by a naive program: query, how many, digest.
const RESULTS: [(&str, u64, u64); 7] = [
    ("q0", 100_000, 0x6015_c250_a11f_8de8),
    ("q1", 92_000, 0x67ad_57fc_1a53_acb1),
    ("q2", 373, 0x44ec_e76f_ba53_6a3c),
    ("q3", 506, 0x2aa1_37d6_8844_754b),
    ("q5", 12, 0x5a24_85fe_0da8_8904),
    ("q7", 1, 0x9653_d088_2be4_9c75),
    ("q8", 925, 0xb924_6430_886d_f83f),
];

/// A query whose results an oracle finds.
struct Case {
    query: &'static str,
    /// How many times slower than usual everything happens, so that few events are days, or auctions end while others go on.
    slower: i64,
    what: What,
}

/// What is the same in all runs.
#[derive(Clone, Copy, PartialEq)]
enum What {
    /// What is emitted.
    Results,
    /// What the changes come to that are emitted.
    Net,
    /// The sum of the numbers of the results: which there are is up to the clock.
    Totals,
}

const fn case(query: &'static str, slower: i64, what: What) -> Case {
    Case { query, slower, what }
}

/// As many days are in [`FEW`] events, and a part of one more.
const DAYS: i64 = 330_000;

const CASES: [Case; 15] = [
    case("q4", 30, What::Net),
    case("q6", 30, What::Net),
    case("q9", 30, What::Results),
    case("q11", 30, What::Results),
    case("q12", 1, What::Totals),
    case("q13", 1, What::Results),
    case("q14", DAYS, What::Results),
    case("q15", DAYS, What::Results),
    case("q16", DAYS, What::Results),
    case("q17", DAYS, What::Net),
    case("q18", 1, What::Net),
    case("q19", 1, What::Net),
    case("q20", 1, What::Results),
    case("q21", 1, What::Results),
    case("q22", 1, What::Results),
];

const FEW: u64 = 12_000;

/// The event with that index, if everything happens so much slower. Auctions last as long as they do.
fn event(n: u64, slower: i64) -> Event {
    let mut event = Event::generate(n);
    match &mut event {
        Event::Person(person) => person.time *= slower,
        Event::Auction(auction) => {
            auction.expires += auction.time * (slower - 1);
            auction.time *= slower;
        }
        Event::Bid(bid) => bid.time *= slower,
    }
    event
}

/// What numbers come to, where the negative of one takes it away.
fn net(numbers: impl IntoIterator<Item = u64>) -> BTreeMap<u64, i64> {
    let mut net = BTreeMap::<u64, i64>::new();
    for number in numbers {
        let (number, one) = match net.contains_key(&number.wrapping_neg()) {
            true => (number.wrapping_neg(), -1),
            false => (number, 1),
        };
        let count = net.entry(number).or_default();
        *count += one;
        if *count == 0 {
            net.remove(&number);
        }
    }
    net
}

impl Case {
    /// The number of each result, by the oracle.
    fn expected(&self) -> Vec<u64> {
        let events: Vec<Event> = (0..FEW).map(|n| event(n, self.slower)).collect();
        let expected = oracle::results(self.query, &events);
        assert!(expected.len() > 4, "{}: hardly any results", self.query);
        expected
    }

    fn check(&self, config: JobConfig, crashes: bool, expected: &[u64]) {
        let &Self { query, slower, what } = self;
        let context = format!("{query}, {} workers, {:?}", config.workers, config.state.backend);
        let collect = Collect::new();
        let seen = collect.handle();
        let restarts = execute_query(query, config, (FEW, slower), collect, crashes);
        assert_eq!(restarts, u64::from(crashes), "{context}: restarts");
        let found = seen.committed();
        if what == What::Totals {
            let sum = |numbers: &[u64]| numbers.iter().fold(0, |sum: u64, n| sum.wrapping_add(*n));
            assert_eq!(sum(&found), sum(expected), "{context}");
            return;
        }
        if what == What::Results {
            assert_eq!(found.len(), expected.len(), "{context}: results");
        }
        let (found, expected) = (net(found), net(expected.iter().copied()));
        let wrong = found.iter().filter(|(number, count)| expected.get(number) != Some(count));
        let missing = expected.keys().filter(|number| !found.contains_key(number));
        let (wrong, missing) = (wrong.count(), missing.count());
        assert_eq!((wrong, missing), (0, 0), "{context}: wrong and missing of {}", expected.len());
    }
}

/// How many results a query has of the events that the published ones are of, their digest, and the restarts.
fn run(query: &'static str, config: JobConfig, crashes: bool) -> (u64, u64, u64) {
    let sink = Discard::counting(|digest: &u64| *digest);
    let totals = sink.handle();
    let restarts = execute_query(query, config, (RECORDS, 1), sink, crashes);
    let (count, digest) = totals.totals();
    (count, digest, restarts)
}

/// Runs a query, with a crash in the middle if there is to be one. Returns how often it was restarted.
fn execute_query(
    query: &'static str,
    config: JobConfig,
    (records, slower): (u64, i64),
    sink: impl Sink<Record = u64> + Clone + Sync,
    crashes: bool,
) -> u64 {
    let handle = JobHandle::default();
    let seen = handle.clone();
    let ready = Arc::new(AtomicBool::new(false));
    let crashed = Arc::new(AtomicBool::new(!crashes));
    execute(config, &handle, move |job| {
        let source = Generator::new(records, move |n| event(n, slower));
        let source = if crashes { source.paced(0, 1_000_000) } else { source };
        // Each checkpoint lets some events through, up to the crash. So there are checkpoints before, and events left after.
        let (seen, get_ready, over) = (seen.clone(), Arc::clone(&ready), Arc::clone(&crashed));
        let source = source.clock(move || {
            let checkpoints = seen.counters().checkpoints().completed.len() as u64;
            get_ready.fetch_or(checkpoints > 3, Ordering::SeqCst);
            if over.load(Ordering::SeqCst) { u64::MAX / 2 } else { checkpoints * records / 6 }
        });
        let (ready, crashed) = (Arc::clone(&ready), Arc::clone(&crashed));
        let time = EventTime::monotonic(Event::time);
        let events = job.source_with("events", source, time).inspect(move |_| {
            if ready.load(Ordering::SeqCst) && !crashed.swap(true, Ordering::SeqCst) {
                panic!("the test's own panic");
            }
        });
        queries::digests(query, events).unwrap().sink("results", sink.clone());
        Ok(())
    })
    .unwrap();
    handle.counters().restarts()
}

fn config(workers: usize) -> JobConfig {
    let mut config = JobConfig::new(Name::new("nexmark").unwrap());
    config.workers = workers;
    config.checkpoints.interval = Some(Duration::from_millis(10));
    config.restart = RestartStrategy::FixedDelay { attempts: 3, delay: Duration::ZERO };
    config
}

fn backends() -> Vec<StateBackendKind> {
    let mut all = vec![StateBackendKind::Heap];
    if cfg!(feature = "rocksdb") {
        all.push(StateBackendKind::RocksDb);
    }
    all
}

/// Each parallelism with each backend; each alignment on some of these.
fn every_mode() -> Vec<JobConfig> {
    let mut alignments =
        [None, Some(Duration::ZERO), Some(Duration::from_millis(200))].into_iter().cycle();
    let mut configs = Vec::new();
    for workers in [1, 2, 4] {
        for backend in backends() {
            let mut config = config(workers);
            config.checkpoints.alignment_timeout = alignments.next().unwrap();
            config.state.backend = backend;
            configs.push(config);
        }
    }
    configs
}

#[test]
fn the_queries_have_the_published_results_at_any_parallelism_and_in_every_mode() {
    for (query, count, digest) in RESULTS {
        for config in every_mode() {
            let what = format!("{query}, {} workers, {:?}", config.workers, config.state.backend);
            assert_eq!(run(query, config, false), (count, digest, 0), "{what}");
        }
        let mut config = config(2);
        config.checkpoints.interval = None;
        assert_eq!(run(query, config, false), (count, digest, 0), "{query} without checkpoints");
    }
}

#[test]
fn the_queries_have_the_published_results_through_a_crash() {
    for (query, count, digest) in RESULTS {
        for backend in backends() {
            let mut config = config(3);
            config.state.backend = backend;
            config.checkpoints.mode = CheckpointMode::ExactlyOnce;
            assert_eq!(run(query, config, true), (count, digest, 1), "{query}, {backend:?}");
        }
    }
}

#[test]
fn every_query_has_published_results_or_those_of_an_oracle() {
    let known = RESULTS.iter().map(|row| row.0).chain(CASES.iter().map(|case| case.query));
    assert_eq!(BTreeSet::from_iter(known), BTreeSet::from(queries::QUERIES));
}

#[test]
fn the_other_queries_have_the_results_of_an_oracle_at_any_parallelism_and_in_every_mode() {
    for case in &CASES {
        let expected = case.expected();
        for config in every_mode() {
            case.check(config, false, &expected);
        }
    }
}

#[test]
fn the_other_queries_have_the_results_of_an_oracle_through_a_crash() {
    for case in &CASES {
        let expected = case.expected();
        for (backend, alignment) in backends().into_iter().zip([None, Some(Duration::ZERO)]) {
            let mut config = config(3);
            config.state.backend = backend;
            config.checkpoints.alignment_timeout = alignment;
            case.check(config, true, &expected);
        }
    }
}
