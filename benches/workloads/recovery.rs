//! From the panic of a user's function to output again, within one process.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use highwater::config::RestartStrategy;
use highwater::job::{self, JobHandle};
use serde_json::json;

use crate::Measured;
use crate::args::Args;
use crate::progress::{self, Listener, Milestone};
use crate::report::{checkpoints, parameters, status_bytes, unix_micros};

/// Everything must have happened by then.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Set when the next record is to panic.
static ARMED: AtomicBool = AtomicBool::new(false);
/// When it did, in Unix microseconds; 0 before.
static PANICKED_AT: AtomicU64 = AtomicU64::new(0);

/// By attempt and subtask: when it had its first output, and when it had caught up.
type Seen = BTreeMap<(u64, usize), (u64, Option<u64>)>;

/// Loads the state, lets a user's function panic, and watches.
pub fn run(args: &Args) -> Measured {
    let args = progress::schedule(args, 1_000_000);
    let mut config = args.job("recovery")?;
    config.restart = RestartStrategy::FixedDelay { attempts: 1, delay: args.restart_delay };
    let directory = tempfile::tempdir().map_err(|error| format!("temporary directory: {error}"))?;
    config.checkpoints.directory = Some(directory.path().join("checkpoints"));
    config.checkpoints.local_recovery = args.local_copy.then(|| directory.path().join("local"));
    std::panic::set_hook(Box::new(|_| {})); // One is on purpose.
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let listener = listener(&seen);
    let handle = JobHandle::default();
    let (running, schedule) = (handle.clone(), args.clone());
    let thread = std::thread::spawn(move || {
        job::execute(config, &running, move |job| progress::build(job, &schedule, trip, &listener))
    });
    let watched = watch(&seen, &handle, args.workers());
    handle.cancel();
    match thread.join() {
        Ok(ran) => ran.map_err(|error| error.to_string())?,
        Err(_) => return Err("the job panicked".to_owned()),
    }
    let [first, every, caught_up] = watched?;
    Ok(json!({
        "workload": "recovery",
        "mode": "panic",
        "parameters": parameters(&args, args.keyed_count_records()),
        "local_copy": args.local_copy,
        "restart_delay_ms": args.restart_delay.as_millis(),
        "first_output_ms": first,
        "every_subtask_ms": every,
        "caught_up_ms": caught_up,
        "peak_rss_bytes": status_bytes("VmHWM"),
        "checkpoints": checkpoints(&handle.counters().checkpoints()),
    }))
}

fn trip() {
    if ARMED.load(Ordering::Relaxed) && ARMED.swap(false, Ordering::Relaxed) {
        PANICKED_AT.store(unix_micros(), Ordering::SeqCst);
        panic!("on purpose");
    }
}

fn listener(seen: &Arc<Mutex<Seen>>) -> Listener {
    let seen = Arc::clone(seen);
    Arc::new(move |context, milestone, now| {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = seen.entry((context.attempt.0, context.subtask)).or_insert((now, None));
        if milestone == Milestone::CaughtUp {
            entry.1 = Some(now);
        }
    })
}

/// Waits for the load and two checkpoints, arms the panic, and waits until all have caught up again.
fn watch(seen: &Mutex<Seen>, handle: &JobHandle, workers: usize) -> Result<[f64; 3], String> {
    let attempt = until("the load", || caught_up(seen, 0, workers))?.0;
    let complete = || handle.counters().checkpoints().completed.len();
    let before = complete();
    until("two checkpoints", || (complete() >= before + 2).then_some(()))?;
    ARMED.store(true, Ordering::Relaxed);
    let (_, times) = until("the recovery", || caught_up(seen, attempt + 1, workers))?;
    Ok(since(PANICKED_AT.load(Ordering::SeqCst), &times))
}

/// The first attempt from `least` on in which all subtasks have caught up, with their times.
fn caught_up(seen: &Mutex<Seen>, least: u64, subtasks: usize) -> Option<(u64, Vec<(u64, u64)>)> {
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let (attempt, _) = *seen.range((least, 0)..).next()?.0;
    let of_attempt = seen.range((attempt, 0)..(attempt + 1, 0));
    let times: Vec<(u64, u64)> =
        of_attempt.filter_map(|(_, seen)| Some((seen.0, seen.1?))).collect();
    (times.len() == subtasks).then_some((attempt, times))
}

/// Milliseconds from `failure` to the first output of any subtask, of every subtask, and to all having caught up.
pub fn since(failure: u64, times: &[(u64, u64)]) -> [f64; 3] {
    let milliseconds = |at: Option<u64>| at.unwrap_or(0).saturating_sub(failure) as f64 / 1e3;
    [
        milliseconds(times.iter().map(|time| time.0).min()),
        milliseconds(times.iter().map(|time| time.0).max()),
        milliseconds(times.iter().map(|time| time.1).max()),
    ]
}

/// Asks again and again until there is an answer.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> Result<T, String> {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(format!("waited {PATIENCE:?} for {what}"))
}
