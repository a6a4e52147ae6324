//! Panics of user code, and what the restart strategies make of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use highwater::config::RestartStrategy;
use highwater::job::{JobHandle, execute};
use highwater::prelude::*;

use crate::support::{
    Random, Scratch, assert_same, files_below, quiet_panics, run, running_counts, seed,
};

const RECORDS: u64 = 40_000;
const KEYS: u64 = 97;

/// Panics at given places, each once, however often records are replayed.
#[derive(Clone)]
pub struct Faults {
    places: Arc<Vec<(u64, AtomicBool)>>,
    passed: Arc<AtomicU64>,
}

impl Faults {
    /// Panics when as many records as each of `places` says have passed.
    pub fn at(places: impl IntoIterator<Item = u64>) -> Self {
        let places = places.into_iter().map(|place| (place, AtomicBool::new(false)));
        Self { places: Arc::new(places.collect()), passed: Arc::default() }
    }

    pub fn pass(&self) {
        let passed = self.passed.fetch_add(1, Ordering::Relaxed);
        for (place, done) in self.places.iter() {
            if passed >= *place && !done.swap(true, Ordering::Relaxed) {
                panic!("planted at record {passed}");
            }
        }
    }

    pub fn happened(&self) -> usize {
        self.places.iter().filter(|(_, done)| done.load(Ordering::Relaxed)).count()
    }
}

#[test]
fn a_panic_of_a_users_function_costs_and_doubles_no_record() {
    quiet_panics();
    for workers in 1..=3 {
        let scratch = Scratch::new();
        let collect = Collect::new();
        let (sink, faults) = (collect.clone(), Faults::at([RECORDS / 2]));
        let planted = faults.clone();
        let handle = JobHandle::default();
        execute(scratch.config(workers), &handle, move |job| {
            let faults = faults.clone();
            job.source("numbers", Generator::new(RECORDS, |i| i).paced(0, 200_000))
                .key_by(|n| n % KEYS)
                .process("count", Value::<u64>::new("count"), move |key, _, count, out| {
                    faults.pass();
                    *count.or_default() += 1;
                    out.emit((*key, *count.or_default()));
                })
                .sink("out", sink.clone());
            Ok(())
        })
        .unwrap();
        assert_eq!(planted.happened(), 1);
        assert_eq!(handle.counters().restarts(), 1);
        assert_same(running_counts(RECORDS, |n| n % KEYS), collect.handle().committed());
        scratch.assert_directory_is_the_reachable_set();
    }
}

#[test]
fn giving_up_names_the_operator_the_worker_and_the_panic() {
    quiet_panics();
    let scratch = Scratch::new();
    let mut config = scratch.config(2);
    config.restart = RestartStrategy::None;
    let error = run(config, |job| {
        job.source("numbers", Generator::new(RECORDS, |i| i))
            .key_by(|n| n % KEYS)
            .process("divide", Value::<u64>::new("count"), |key, n, _, out| {
                assert!(n != 7_000, "planted: cannot divide {n}");
                out.emit(*key);
            })
            .sink("out", Collect::new());
        Ok(())
    })
    .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("operator divide on worker "), "{text}");
    assert!(text.contains("planted: cannot divide 7000"), "{text}");
    assert!(text.contains("not restarted"), "{text}");
    assert!(!error.restartable());
}

#[test]
fn a_panic_in_a_stateless_operator_names_its_kind() {
    quiet_panics();
    let scratch = Scratch::new();
    let mut config = scratch.config(1);
    config.restart = RestartStrategy::None;
    let text = run(config, |job| {
        job.source("numbers", Generator::new(10, |i| i))
            .map(|n| {
                assert!(n != 7, "planted");
                n
            })
            .sink("out", Collect::new());
        Ok(())
    })
    .unwrap_err()
    .to_string();
    assert!(text.contains("operator map on worker 0 panicked: planted"), "{text}");
}

/// Runs a job that always fails; returns how many attempts there were, how long it took, and what was said.
fn fail_for_ever(restart: RestartStrategy) -> (u64, Duration, String) {
    quiet_panics();
    let scratch = Scratch::new();
    let mut config = scratch.config(1);
    config.restart = restart;
    let attempts = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&attempts);
    let start = Instant::now();
    let error = run(config, move |job| {
        counted.fetch_add(1, Ordering::SeqCst);
        job.source("numbers", Generator::new(10, |i| i))
            .map(|n| if n == 5 { panic!("planted") } else { n })
            .sink("out", Collect::new());
        Ok(())
    })
    .unwrap_err();
    (attempts.load(Ordering::SeqCst), start.elapsed(), error.to_string())
}

#[test]
fn without_a_restart_strategy_the_first_failure_is_the_last() {
    let (attempts, _, text) = fail_for_ever(RestartStrategy::None);
    assert_eq!(attempts, 1, "{text}");
}

#[test]
fn a_fixed_delay_restarts_that_often_and_waits_each_time() {
    let delay = Duration::from_millis(40);
    let (attempts, elapsed, text) =
        fail_for_ever(RestartStrategy::FixedDelay { attempts: 3, delay });
    assert_eq!(attempts, 4, "{text}");
    assert!(elapsed >= 3 * delay, "{elapsed:?}");
    assert!(text.contains("3 restarts"), "{text}");
}

#[test]
fn a_failure_rate_gives_up_when_failures_come_too_often() {
    let (attempts, _, text) = fail_for_ever(RestartStrategy::FailureRate {
        failures: 4,
        interval: Duration::from_secs(600),
        delay: Duration::from_millis(1),
    });
    assert_eq!(attempts, 5, "{text}");
}

#[test]
fn an_exponential_delay_grows() {
    quiet_panics();
    let scratch = Scratch::new();
    let mut config = scratch.config(1);
    config.restart = RestartStrategy::ExponentialDelay {
        initial: Duration::from_millis(10),
        max: Duration::from_secs(1),
        multiplier: 2.0,
        jitter: 0.0,
        reset_after: Duration::from_secs(60),
    };
    let (collect, faults) = (Collect::new(), Faults::at([1, 2, 3, 4]));
    let (sink, planted) = (collect.clone(), faults.clone());
    let start = Instant::now();
    run(config, move |job| {
        let faults = faults.clone();
        job.source("numbers", Generator::new(100, |i| i))
            .inspect(move |_| faults.pass())
            .sink("out", sink.clone());
        Ok(())
    })
    .unwrap();
    // 10 + 20 + 40 + 80 ms.
    assert_eq!(planted.happened(), 4);
    assert!(start.elapsed() >= Duration::from_millis(150), "{:?}", start.elapsed());
    assert_same(0..100, collect.handle().committed());
}

/// Where in the job of the random test a record may find its end.
const PLACES: usize = 4;

/// 25 panics at random places of a job that writes files: in the source, before and behind the exchange, and in the
/// sink's own format function.
#[test]
fn any_number_of_panics_anywhere_leave_exactly_the_output_of_a_run_without_them() {
    quiet_panics();
    let seed = seed();
    let mut random = Random::new(seed);
    for workers in 1..=3 {
        let scratch = Scratch::new();
        let records = 60_000;
        let mut at = vec![Vec::new(); PLACES];
        let mut next = 0;
        for _ in 0..9 {
            next += random.below(8_000);
            at[random.below(PLACES as u64) as usize].push(next);
        }
        let planned: usize = at.iter().map(Vec::len).sum();
        let faults: Vec<Faults> = at.into_iter().map(Faults::at).collect();
        let planted = faults.clone();
        let output = scratch.path("output");
        let to = output.clone();
        let mut config = scratch.config(workers);
        config.checkpoints.concurrent_max = 1 + random.below(2) as u32;
        config.checkpoints.inline_bytes_max = [0, 1 << 14][random.below(2) as usize];
        run(config, move |job| {
            let [first, second, third, fourth] = [0, 1, 2, 3].map(|place| faults[place].clone());
            let generate = move |index| {
                first.pass();
                index
            };
            let format = move |(key, count): &(u64, u64), bytes: &mut Vec<u8>| {
                fourth.pass();
                bytes.extend_from_slice(format!("{key} {count}\n").as_bytes());
            };
            job.source("numbers", Generator::new(records, generate).paced(0, 150_000))
                .inspect(move |_| second.pass())
                .key_by(|n| n % KEYS)
                .process("count", Value::<u64>::new("count"), move |key, _, count, out| {
                    third.pass();
                    *count.or_default() += 1;
                    out.emit((*key, *count.or_default()));
                })
                .sink("out", FileSink::new(&to, format));
            Ok(())
        })
        .unwrap();
        let happened: usize = planted.iter().map(Faults::happened).sum();
        assert_eq!(happened, planned, "every planned panic happened");
        let lines = committed_lines(&output);
        let expected = running_counts(records, |n| n % KEYS);
        assert_same(expected.iter().map(|(key, count)| format!("{key} {count}")), lines);
        let pending = files_below(&output.join(".highwater"));
        let is_pending = |path: &&std::path::PathBuf| path.extension().unwrap() == "pending";
        assert_eq!(pending.iter().find(is_pending), None);
        scratch.assert_directory_is_the_reachable_set();
    }
}

/// The lines of all committed files.
pub fn committed_lines(output: &std::path::Path) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in std::fs::read_dir(output).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            lines.extend(std::fs::read_to_string(path).unwrap().lines().map(str::to_owned));
        }
    }
    lines
}
