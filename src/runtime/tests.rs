//! Whole jobs over a store that fails at any of its calls, one after the other.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::config::{JobConfig, RestartStrategy};
use crate::connect::{Collect, Generator};
use crate::format::record::{CheckpointOutcome, CheckpointPhase};
use crate::ids::Name;
use crate::job::Value;
use crate::job::execute::builder;
use crate::runtime::attempt::{Environment, Running, run_in_place};
use crate::runtime::clock::SystemClock;
use crate::runtime::counters::Counters;
use crate::storage::fault::{FaultAction, FaultOp, FaultPoint, FaultStorage};
use crate::storage::job_store::JobStore;
use crate::storage::memory::MemoryStorage;
use crate::storage::{BlobPath, CheckpointStorage, LocalCopies};

const RECORDS: u64 = 600;
const KEYS: u64 = 20;

/// What one run over a failing store came to.
struct Run {
    /// The call that failed; `None` if there were not so many.
    failed: Option<FaultPoint>,
    restarts: u64,
    aborted: u64,
    completed: usize,
}

/// Runs a job whose store fails at its call number `fail_at`, counted from when the job runs. Checks the output, and
/// that nothing is left over once the next attempt has swept.
fn run(fail_at: u64, action: FaultAction) -> Run {
    let calls = AtomicU64::new(0);
    let failed = Arc::new(std::sync::Mutex::new(None));
    let noted = Arc::clone(&failed);
    let (counters, _) = run_over(Duration::from_secs(10), move |point| {
        if calls.fetch_add(1, Ordering::SeqCst) != fail_at {
            return FaultAction::Proceed;
        }
        println!("{point:?}: {action:?}"); // Shown if the run fails.
        *noted.lock().unwrap() = Some(point.clone());
        action
    });
    let failed = failed.lock().unwrap().clone();
    let checkpoints = counters.checkpoints();
    let completed = checkpoints.completed.len();
    Run { failed, restarts: counters.restarts(), aborted: checkpoints.aborted, completed }
}

/// Runs a job over a store of which `decide` says what becomes of each call. Checks as [`run`] does.
fn run_over(
    slow_after: Duration,
    decide: impl Fn(&FaultPoint) -> FaultAction + Send + Sync + 'static,
) -> (Arc<Counters>, JobStore) {
    let memory = Arc::new(MemoryStorage::new());
    let armed = Arc::new(AtomicBool::new(false));
    let storage = {
        let armed = Arc::clone(&armed);
        FaultStorage::new(memory.clone(), move |point| {
            // Starting is another story: what cannot be claimed or restored ends the job, or restarts it.
            if armed.load(Ordering::SeqCst) { decide(point) } else { FaultAction::Proceed }
        })
    };
    let name = Name::new("job").unwrap();
    let mut config = JobConfig::new(name.clone());
    config.workers = 2;
    config.checkpoints.interval = Some(Duration::from_millis(2));
    config.checkpoints.inline_bytes_max = 0;
    config.checkpoints.slow_after = Some(slow_after);
    config.restart = RestartStrategy::None;
    let env = Environment {
        clock: Arc::new(SystemClock::new()),
        storage: Arc::new(storage),
        copies: None,
        counters: Arc::new(Counters::default()),
        turns: None,
        running: Running::default(),
    };
    let collect = Collect::new();
    let sink = collect.clone();
    let build = builder(move |job| {
        let armed = Arc::clone(&armed);
        let mut passed = 0;
        job.source("numbers", Generator::new(RECORDS, |i| i))
            .inspect(move |_| {
                armed.store(true, Ordering::SeqCst);
                passed += 1;
                // Slow enough for a handful of checkpoints.
                if passed % 30 == 0 {
                    // Poll: the condition is looked at again.
                    std::thread::sleep(Duration::from_millis(1));
                }
            })
            .key_by(|n| n % KEYS)
            .process("count", Value::<u64>::new("count"), |key, _, count, out| {
                *count.or_default() += 1;
                out.emit((*key, *count.or_default()));
            })
            .sink("out", sink.clone());
        Ok(())
    });
    let ran = run_in_place(&env, &config, &build);
    ran.unwrap_or_else(|failure| panic!("{}", failure.what));

    let mut found = collect.handle().committed();
    found.sort_unstable();
    let expected: Vec<(u64, u64)> =
        (0..KEYS).flat_map(|key| (1..=RECORDS / KEYS).map(move |count| (key, count))).collect();
    assert_eq!(found, expected);

    let store = JobStore::new(memory, name);
    let claim = store.claim().unwrap();
    store.sweep(&claim, Duration::ZERO).unwrap();
    assert_eq!(store.unreachable().unwrap(), []);
    let report = store.verify(None).unwrap();
    assert!(report.is_clean(), "{:?}", report.problems);
    (env.counters, store)
}

#[test]
fn a_manifest_that_takes_long_to_publish_is_noted_in_the_history() {
    let slow_after = Duration::from_millis(20);
    let (_, store) = run_over(slow_after, |point| {
        let path = point.path.as_ref().map_or("", BlobPath::as_str);
        if point.op == FaultOp::Create && path.ends_with("/manifest") {
            std::thread::sleep(Duration::from_millis(300)); // Fault: slow storage.
        }
        FaultAction::Proceed
    });
    let waits: Vec<_> = store.history().unwrap().into_iter().flat_map(|r| r.waits).collect();
    let publishing = waits.iter().find(|wait| wait.phase == CheckpointPhase::Publish);
    assert!(publishing.is_some_and(|wait| wait.waited_ms >= 20), "{waits:?}");
}

/// Lets every call fail, one in each run; returns the runs in which one did.
fn every_call(action: FaultAction) -> Vec<(FaultPoint, Run)> {
    let mut runs = Vec::new();
    for fail_at in 0..1_000 {
        let mut run = run(fail_at, action);
        assert!(run.completed > 0);
        assert_eq!(run.restarts, 0, "{:?}", run.failed);
        // How many calls there are differs from run to run, so the last few may be missed; not the first ones.
        let Some(failed) = run.failed.take() else { break };
        runs.push((failed, run));
    }
    assert!(runs.len() > 40, "{} calls failed", runs.len());
    runs
}

fn is_of_a_checkpoint(point: &FaultPoint) -> bool {
    point.path.as_ref().is_some_and(|path| path.as_str().contains("/chk/"))
}

#[test]
fn a_full_disk_at_any_call_aborts_a_checkpoint_at_most_and_never_restarts_the_job() {
    let runs = every_call(FaultAction::FailDeterminate(ErrorKind::StorageFull));
    let writes = [FaultOp::Writer, FaultOp::Write, FaultOp::Finish];
    let mut seen = 0;
    for (point, run) in &runs {
        if writes.contains(&point.op) && is_of_a_checkpoint(point) {
            seen += 1;
            assert_eq!(run.aborted, 1, "{point:?}");
        }
    }
    assert!(seen > 10, "{seen} writes of parts failed");
}

#[test]
fn a_call_of_which_nobody_knows_whether_it_had_an_effect_is_settled_without_a_restart() {
    every_call(FaultAction::FailIndeterminateAfterEffect);
    every_call(FaultAction::FailIndeterminateWithoutEffect);
}

#[test]
fn nothing_of_an_attempt_is_left_in_memory_when_it_is_over() {
    let memory = Arc::new(MemoryStorage::new());
    let mut config = JobConfig::new(Name::new("job").unwrap());
    config.workers = 2;
    config.restart = RestartStrategy::FixedDelay { attempts: 5, delay: Duration::from_millis(1) };
    let env = Environment {
        clock: Arc::new(SystemClock::new()),
        storage: memory.clone(),
        copies: None,
        counters: Arc::new(Counters::default()),
        turns: None,
        running: Running::default(),
    };
    let failures = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&failures);
    let build = builder(move |job| {
        let failures = Arc::clone(&counted);
        job.source("numbers", Generator::new(RECORDS, |i| i))
            .key_by(|n| n % KEYS)
            .process("count", Value::<u64>::new("count"), move |_, n, _, out| {
                assert!(failures.fetch_add(1, Ordering::SeqCst) >= 5, "planted");
                out.emit(n);
            })
            .sink("out", Collect::new());
        Ok(())
    });
    run_in_place(&env, &config, &build).unwrap();
    assert!(env.counters.restarts() > 0);
    drop(env);
    // Whatever is left of an attempt holds the store. Its threads may need a moment to end.
    let start = std::time::Instant::now();
    while Arc::strong_count(&memory) > 1 {
        assert!(start.elapsed() < Duration::from_secs(30), "an attempt is still in memory");
        std::thread::yield_now();
    }
}

#[test]
fn a_full_local_disk_costs_copies_and_no_checkpoint() {
    let store = Arc::new(MemoryStorage::new());
    let local = MemoryStorage::new();
    let (written, full) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let copies = {
        let (written, full) = (Arc::clone(&written), Arc::clone(&full));
        FaultStorage::new(Arc::new(local.clone()), move |point| {
            let writes = [FaultOp::Writer, FaultOp::Write, FaultOp::Finish].contains(&point.op);
            // The first checkpoints find room, and so does every third call later: an attempt has copies of some parts.
            if !writes || written.fetch_add(1, Ordering::SeqCst) < 20 {
                return FaultAction::Proceed;
            }
            full.store(true, Ordering::SeqCst);
            match point.index % 3 {
                0 => FaultAction::Proceed,
                _ => FaultAction::FailDeterminate(ErrorKind::StorageFull),
            }
        })
    };
    let name = Name::new("job").unwrap();
    let mut config = JobConfig::new(name.clone());
    config.workers = 2;
    config.checkpoints.interval = Some(Duration::from_millis(2));
    config.checkpoints.inline_bytes_max = 0;
    config.checkpoints.incremental_bytes_min = 0;
    config.restart = RestartStrategy::FixedDelay { attempts: 1, delay: Duration::from_millis(1) };
    let counters = Arc::new(Counters::default());
    let counts = Arc::clone(counters.restore_counts());
    let copies = LocalCopies::new(store.clone(), Some(Arc::new(copies)), counts);
    let env = Environment {
        clock: Arc::new(SystemClock::new()),
        storage: Arc::new(copies.clone()),
        copies: Some(copies),
        counters: Arc::clone(&counters),
        turns: None,
        running: Running::default(),
    };
    let collect = Collect::new();
    let sink = collect.clone();
    let (panicked, filled) = (Arc::new(AtomicBool::new(false)), Arc::clone(&full));
    let records = 3_000;
    let build = builder(move |job| {
        let (panicked, full) = (Arc::clone(&panicked), Arc::clone(&filled));
        job.source("numbers", Generator::new(records, |i| i))
            .inspect(move |n| {
                let full = full.load(Ordering::SeqCst);
                // Slow enough for some checkpoints, and slower until the disk is full.
                if n % 5 == 0 || (n % 2 == 0 && !full) {
                    // Poll: the condition is looked at again.
                    std::thread::sleep(Duration::from_millis(1));
                }
                if *n > records * 3 / 4 && full && !panicked.swap(true, Ordering::SeqCst) {
                    panic!("planted");
                }
            })
            .key_by(|n| n % KEYS)
            .process("count", Value::<u64>::new("count"), |key, _, count, out| {
                *count.or_default() += 1;
                out.emit((*key, *count.or_default()));
            })
            .sink("out", sink.clone());
        Ok(())
    });
    run_in_place(&env, &config, &build).unwrap_or_else(|failure| panic!("{}", failure.what));
    assert!(full.load(Ordering::SeqCst));
    assert_eq!(counters.restarts(), 1);
    let mut found = collect.handle().committed();
    found.sort_unstable();
    let expected: Vec<(u64, u64)> =
        (0..KEYS).flat_map(|key| (1..=records / KEYS).map(move |count| (key, count))).collect();
    assert_eq!(found, expected);
    let restored = counters.restored_bytes();
    assert!(restored.local + restored.store > 0, "{restored:?}");
    let store = JobStore::new(store, name);
    for record in store.history().unwrap() {
        if let CheckpointOutcome::Aborted { reason } = record.outcome {
            assert!(!reason.contains("injected"), "{reason}");
        }
    }
    assert_eq!(store.unreachable().unwrap(), []);
    let reachable = store.reachable().unwrap();
    for (copy, _) in local.list(None).unwrap() {
        let below = copy.as_str().splitn(3, '/').nth(2).unwrap();
        let blob = BlobPath::new(format!("job/{below}")).unwrap();
        assert!(reachable.contains(&blob), "{copy} is left over");
    }
}
