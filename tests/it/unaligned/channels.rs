//! Settings of single channels, a log that cannot be written, channels that have gone, and channels of unusual load.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use highwater::config::JobConfig;
use highwater::format::record::CheckpointOutcome;
use highwater::ids::Name;
use highwater::prelude::*;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::shapes::Shape;
use super::{Case, KEYS, logged, logged_by, newest, unaligned};
use crate::support::{
    Background, Difference, JOB, Scratch, assert_same, difference, history, quiet_panics, run,
    store_in, wait_until,
};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// One channel of two is aligned, by its name or because all others are; the other is overtaken.
fn mixed(aligned: &str, overtaken: &str, configure: impl Fn(&mut JobConfig)) {
    quiet_panics();
    let scratch = Scratch::new();
    let mut config = unaligned(&scratch, 2);
    configure(&mut config);
    config.checkpoints.retained = 1000;
    let case = Case::new(2, KEYS, 2);
    let shared = case.clone();
    let build = move |job: &Job<'_>| {
        Shape::TwoInputs.build(job, &shared);
        Ok(())
    };
    for (workers, fail) in [(2, true), (3, false), (1, true), (2, false)] {
        config.workers = workers;
        case.run_into_backlog(&config, 6, fail, build.clone());
    }
    config.workers = 3;
    case.run_to_the_end(config, 500, build);
    case.assert_exactly_once();
    let store = scratch.store();
    let epochs = store.valid_epochs().unwrap();
    assert!(epochs.len() >= 8, "{epochs:?}");
    let mut logs: BTreeMap<String, u64> = BTreeMap::new();
    for epoch in epochs {
        for (channel, records) in logged_by(&store, epoch) {
            *logs.entry(channel).or_default() += records;
        }
    }
    assert!(!logs.contains_key(aligned), "{logs:?}");
    assert!(logs[overtaken] > 0, "{logs:?}");
    scratch.assert_directory_is_the_reachable_set();
}

#[test]
fn a_channel_that_is_aligned_by_its_name_never_has_a_log() {
    mixed("left", "right", |config| {
        config.checkpoints.channel_alignment_timeouts.insert(name("left"), None);
    });
}

#[test]
fn a_channel_that_is_overtaken_by_its_name_is_the_only_one_with_a_log() {
    mixed("left", "right", |config| {
        config.checkpoints.alignment_timeout = None;
        let timeouts = &mut config.checkpoints.channel_alignment_timeouts;
        timeouts.insert(name("right"), Some(Duration::ZERO));
    });
}

#[test]
fn a_timeout_for_a_channel_that_is_not_there_is_refused_with_those_that_are() {
    let scratch = Scratch::new();
    let mut config = unaligned(&scratch, 2);
    config.checkpoints.channel_alignment_timeouts.insert(name("middle"), None);
    let case = Case::new(2, KEYS, 2);
    case.draw_line(10);
    let error = run(config, move |job| {
        Shape::TwoInputs.build(job, &case);
        Ok(())
    })
    .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("channel middle") && text.contains("left, right"), "{text}");
    assert!(!error.restartable());
}

/// Without the flag nothing is lost, and with it exactly what was on its way there.
#[test]
fn the_log_of_a_channel_that_has_gone_is_refused_by_name_and_dropped_only_if_allowed() {
    quiet_panics();
    let scratch = Scratch::new();
    let mut config = unaligned(&scratch, 2);
    let case = Case::new(2, KEYS, 2);
    let shared = case.clone();
    let build = move |job: &Job<'_>| {
        Shape::TwoInputs.build(job, &shared);
        Ok(())
    };
    let logs = case.run_into_backlog(&config, 2, false, build);
    assert!(logs["left"] > 0, "{logs:?}");
    case.draw_line(100);
    let shared = case.clone();
    let without = move |job: &Job<'_>| {
        let left = shared.read(job, 0).channel_name("renamed").key_by(|item| item.key);
        let right = shared.read(job, 1).channel_name("right").key_by(|item| item.key);
        let both = left.union(right).process("both", Value::new("last"), {
            |_, item: super::Item, last: &mut ValueState<'_, u64, super::LastSeen>, out| {
                last.or_default();
                out.emit(item);
            }
        });
        shared.sink(both);
        Ok(())
    };
    let before = newest(&scratch.checkpoints());
    let error = run(config.clone(), without.clone()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("left/in-flight") && !text.contains("right/in-flight"), "{text}");
    assert!(text.contains("--allow-dropped-state"), "{text}");
    assert!(!error.restartable());
    assert_eq!(newest(&scratch.checkpoints()), before, "nothing has run");
    config.restore.allow_dropped_state = true;
    run(config, without).unwrap();
    let expected = case.sources.iter().flat_map(super::Numbers::ids);
    let Difference { loss, dup } = difference(expected, case.sink.handle().committed());
    assert_eq!(dup, []);
    assert_eq!(loss.len() as u64, logs["left"]);
    assert!(loss.iter().all(|((source, _), _)| *source == 0), "{loss:?}");
    scratch.assert_directory_is_the_reachable_set();
}

/// Directories where the part files of coming checkpoints should be.
struct Obstacles(Vec<PathBuf>);

impl Obstacles {
    fn before(directory: &Path, workers: usize) -> Self {
        let newest = newest(directory);
        let mut paths = Vec::new();
        for epoch in newest + 2..newest + 8 {
            for worker in 0..workers {
                let path = directory.join(JOB).join(format!("chk/{epoch}/1-{worker}.part"));
                fs::create_dir_all(&path).unwrap();
                paths.push(path);
            }
        }
        Self(paths)
    }
}

impl Drop for Obstacles {
    fn drop(&mut self) {
        for path in &self.0 {
            // What lies there is an empty directory, or a part if that checkpoint was faster.
            let _ = fs::remove_dir(path);
            let _ = fs::remove_dir(path.parent().unwrap());
        }
    }
}

#[test]
fn a_part_with_a_log_that_cannot_be_written_costs_its_checkpoint_and_nothing_else() {
    quiet_panics();
    let scratch = Scratch::new();
    let mut config = unaligned(&scratch, 2);
    // What has no log stays in the manifest, which can be written.
    config.checkpoints.inline_bytes_max = 16 << 10;
    config.flow.in_flight_bytes_max = 128 << 10;
    let mut case = Case::new(1, KEYS, 2);
    case.sources[0].pad = |_| 400;
    let shared = case.clone();
    let build = move |job: &Job<'_>| {
        Shape::Routed.build(job, &shared);
        Ok(())
    };
    case.slow.set(2);
    let job = Background::start(config.clone(), build.clone());
    let counters = job.handle.counters();
    let wait_for_a_log = || {
        let before = counters.checkpoints();
        wait_until("a checkpoint with a log completes", || {
            assert!(!job.is_finished(), "the job has ended");
            let now = counters.checkpoints();
            now.in_flight_bytes > before.in_flight_bytes + (32 << 10)
        });
    };
    wait_for_a_log();
    let aborted = counters.checkpoints().aborted;
    let obstacles = Obstacles::before(&scratch.checkpoints(), 2);
    wait_until("checkpoints are aborted", || counters.checkpoints().aborted >= aborted + 2);
    drop(obstacles);
    wait_for_a_log();
    assert_eq!(counters.restarts(), 0);
    job.handle.cancel();
    job.end().unwrap();
    assert!(logged(&scratch.checkpoints())["routed"] > 0);
    let reasons: Vec<String> = history(&scratch)
        .into_iter()
        .filter_map(|record| match record.outcome {
            CheckpointOutcome::Aborted { reason } => Some(reason),
            _ => None,
        })
        .collect();
    assert!(reasons.iter().any(|reason| reason.contains(".part")), "{reasons:?}");
    config.workers = 3;
    case.run_to_the_end(config, 200, build);
    case.assert_exactly_once();
    scratch.assert_directory_is_the_reachable_set();
}

/// Whether a [`Brittle`] can be serialized.
static BRITTLE_BREAKS: AtomicBool = AtomicBool::new(false);

/// A record that cannot always be serialized. In one process only channel logs do so.
#[derive(Clone)]
struct Brittle(u64);

impl Serialize for Brittle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if BRITTLE_BREAKS.load(Ordering::SeqCst) {
            return Err(serde::ser::Error::custom("planted in a log"));
        }
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Brittle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u64::deserialize(deserializer).map(Self)
    }
}

#[test]
fn a_log_that_cannot_be_serialized_aborts_its_checkpoint_and_the_next_one_completes() {
    let scratch = Scratch::new();
    let mut config = unaligned(&scratch, 2);
    let case = Case::new(1, KEYS, 2);
    let shared = case.clone();
    let build = move |job: &Job<'_>| {
        let brittle = shared.read(job, 0).map(|item| Brittle(item.index)).channel_name("brittle");
        let mut pass = shared.slow.place(1);
        let keyed = brittle.key_by(|record| record.0 % KEYS);
        let ids =
            keyed.process("count", Value::<u64>::new("count"), move |_, record, count, out| {
                pass();
                *count.or_default() += 1;
                out.emit((0, record.0));
            });
        ids.sink("out", shared.sink.clone());
        Ok(())
    };
    case.slow.set(2);
    let job = Background::start(config.clone(), build.clone());
    let counters = job.handle.counters();
    wait_until("a log is written", || counters.checkpoints().in_flight_records > 0);
    let aborted = counters.checkpoints().aborted;
    BRITTLE_BREAKS.store(true, Ordering::SeqCst);
    wait_until("checkpoints are aborted", || counters.checkpoints().aborted >= aborted + 2);
    BRITTLE_BREAKS.store(false, Ordering::SeqCst);
    let before = counters.checkpoints().in_flight_records;
    wait_until("a log is written", || counters.checkpoints().in_flight_records > before);
    assert_eq!(counters.restarts(), 0);
    job.handle.cancel();
    job.end().unwrap();
    assert!(logged(&scratch.checkpoints())["brittle"] > 0);
    let reasons = history(&scratch).into_iter().filter_map(|record| match record.outcome {
        CheckpointOutcome::Aborted { reason } => Some(reason),
        _ => None,
    });
    let reasons: Vec<String> = reasons.collect();
    assert!(reasons.iter().any(|reason| reason.contains("brittle")), "{reasons:?}");
    config.workers = 3;
    case.run_to_the_end(config, 500, build);
    case.assert_exactly_once();
    scratch.assert_directory_is_the_reachable_set();
}

/// The least time within which half of the checkpoints of a job completed that all waited for slow operators.
fn median(job: &Background) -> Duration {
    let completed = job.handle.counters().checkpoints().completed;
    let mut durations: Vec<Duration> = completed.iter().map(|one| one.duration).collect();
    durations.sort_unstable();
    durations[durations.len() / 2]
}

/// Hangs are to be caught, not slowness.
const MEDIAN_MAX: Duration = Duration::from_millis(500);

/// Runs a job until so many checkpoints are complete, once with every timeout; kills it, and lets it end on another
/// number of workers.
fn with_timeouts(
    sources: u8,
    keys: u64,
    configure: impl Fn(&mut Case, &mut JobConfig),
    build: impl Fn(&Job<'_>, &Case) + Clone + Send + Sync + 'static,
) {
    quiet_panics();
    for (timeout, checkpoints) in [(0, 20), (200, 6)] {
        let scratch = Scratch::new();
        let mut config = unaligned(&scratch, 3);
        config.checkpoints.alignment_timeout = Some(Duration::from_millis(timeout));
        config.flow.in_flight_bytes_max = 128 << 10;
        let mut case = Case::new(sources, keys, 3);
        configure(&mut case, &mut config);
        let (shared, build) = (case.clone(), build.clone());
        let build = move |job: &Job<'_>| {
            build(job, &shared);
            Ok(())
        };
        case.slow.set(2);
        let job = Background::start(config.clone(), build.clone());
        let counters = job.handle.counters();
        wait_until("checkpoints hold records on their way", || {
            assert!(!job.is_finished(), "the job has ended");
            let now = counters.checkpoints();
            now.completed.len() >= checkpoints && now.in_flight_records > 0
        });
        let median = median(&job);
        println!("timeout {timeout} ms: median {median:?}");
        assert!(median < MEDIAN_MAX, "{median:?}");
        assert_eq!(counters.checkpoints().aborted, 0);
        job.handle.cancel();
        job.end().unwrap();
        config.workers = 2;
        case.run_into_backlog(&config, 2, true, build.clone());
        config.workers = 4;
        case.run_to_the_end(config, 300, build);
        case.assert_exactly_once();
        scratch.assert_directory_is_the_reachable_set();
    }
}

/// Most records are of one key, one is longer than any quantum, one channel has no records at all, and one a single
/// sender.
#[test]
fn skew_long_records_and_idle_channels_hold_no_checkpoint_up() {
    let skewed =
        |item: &super::Item| if item.index.is_multiple_of(10) { item.index % KEYS } else { 1 };
    let configure = |case: &mut Case, _: &mut JobConfig| {
        case.sources[0].pad = |index| if index % 50 == 7 { 400_000 } else { 16 };
    };
    with_timeouts(2, KEYS, configure, move |job, case| {
        let numbers = case.read(job, 0);
        let empty = numbers.clone().filter(|_| false).channel_name("empty").key_by(|item| item.key);
        let skewed = numbers.channel_name("skewed").key_by(skewed);
        let one = case.read(job, 1).channel_name("to-one").route(|_, _| 0);
        let one = one.channel_name("single").key_by(|item| item.key);
        let tally = Arc::clone(&case.tally);
        let mut pass = case.slow.place(1);
        let all = skewed.union(empty).union(one).process(
            "count",
            Value::<u64>::new("count"),
            move |_, item: super::Item, count, out| {
                tally.look(&item);
                pass();
                *count.or_default() += 1;
                out.emit(item);
            },
        );
        case.sink(all);
    });
}

/// Every record has a key and a moment of its own, and none is late, restored or not.
#[test]
fn many_keys_with_event_times_of_their_own_hold_no_checkpoint_up() {
    let configure = |_: &mut Case, config: &mut JobConfig| {
        config.watermark_interval = Duration::from_millis(1);
    };
    with_timeouts(1, 100_003, configure, |job, case| {
        let times = EventTime::monotonic(|item: &super::Item| item.index as i64);
        let tally = Arc::clone(&case.tally);
        let mut pass = case.slow.place(1);
        let keyed =
            case.sources[0].read_with(job, times).channel_name("times").key_by(|item| item.key);
        let counted = keyed.process(
            "count",
            (Value::<u64>::new("count"), Value::<i64>::new("watermark")),
            move |_, item, (count, last), out: &mut Context<'_, super::Item>| {
                tally.look(&item);
                pass();
                let watermark = out.watermark();
                let before = last.set(watermark).unwrap_or(i64::MIN);
                if item.index as i64 <= watermark || watermark < before {
                    tally.disordered();
                }
                *count.or_default() += 1;
                out.emit(item);
            },
        );
        case.sink(counted);
    });
}

/// What has been restored and cancelled at once is still there.
#[test]
fn a_restored_job_that_ends_before_its_first_checkpoint_changes_nothing() {
    quiet_panics();
    let scratch = Scratch::new();
    let mut config = unaligned(&scratch, 2);
    let case = Case::new(2, KEYS, 2);
    let shared = case.clone();
    let build = move |job: &Job<'_>| {
        Shape::TwoInputs.build(job, &shared);
        Ok(())
    };
    let logs = case.run_into_backlog(&config, 2, false, build.clone());
    let before = newest(&scratch.checkpoints());
    let interval = config.checkpoints.interval.replace(Duration::from_secs(600));
    for workers in [1, 3, 2] {
        config.workers = workers;
        let job = Background::start(config.clone(), build.clone());
        let read = job.handle.counters();
        wait_until("it reads on", || read.source_records() > 0);
        job.handle.cancel();
        job.end().unwrap();
        assert_eq!(newest(&scratch.checkpoints()), before);
        assert_eq!(logged(&scratch.checkpoints()), logs);
    }
    config.checkpoints.interval = interval;
    case.run_to_the_end(config, 500, build);
    case.assert_exactly_once();
    scratch.assert_directory_is_the_reachable_set();
    assert!(store_in(&scratch.checkpoints()).newest().unwrap().unwrap().0 > before);
    assert_same([0_u64; 0], logged(&scratch.checkpoints()).into_values());
}
