//! The longest pause of a worker while keys are added to its state, one after the other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use highwater::job::{self, JobHandle};
use highwater::prelude::*;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use crate::Measured;
use crate::args::Args;
use crate::counting;
use crate::report::{parameters, quantile, status_bytes};

/// Records of a worker between two looks at the clock: fewer than a batch has.
const STEP_RECORDS: u64 = 128;

/// What one worker has measured.
struct Steps {
    records: u64,
    wall: Instant,
    cpu: Duration,
    /// Units: milliseconds.
    longest: Vec<[f64; 2]>,
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Adds 50 million keys. A step is what a worker does from one record to the 128th after, whatever that is; its processor time says
/// how long it was, the wall clock also how busy the machine.
pub fn run(args: &Args) -> Measured {
    let keys = args.keys.unwrap_or(50_000_000);
    let args = Args { keys: Some(keys), load: Some(keys), records: Some(keys), ..args.clone() };
    let mut config = args.job("growth")?;
    let directory = tempfile::tempdir().map_err(|error| format!("temporary directory: {error}"))?;
    config.checkpoints.directory = args.checkpoint_interval.0.map(|_| directory.path().to_owned());
    let all: Arc<Mutex<Vec<[f64; 2]>>> = Arc::default();
    let added = Arc::new(AtomicU64::new(0));
    let (measured, counted) = (Arc::clone(&all), Arc::clone(&added));
    let ran = job::execute(config, &JobHandle::default(), move |job| {
        let (all, added) = (Arc::clone(&measured), Arc::clone(&counted));
        let mut steps: Option<Steps> = None;
        job.source("events", Generator::new(keys, move |i| counting::event(i, keys, keys)))
            .into_keyed(|event| event)
            .process("last", Value::<(u64, u64)>::new("last"), move |_, value, last, out| {
                last.set((value, 0));
                added.fetch_add(1, Ordering::Relaxed);
                let begin = || (0, Instant::now(), thread_time());
                let steps = steps.get_or_insert_with(|| {
                    let (records, wall, cpu) = begin();
                    Steps { records, wall, cpu, longest: Vec::new() }
                });
                steps.records += 1;
                if steps.records == STEP_RECORDS {
                    let (records, wall, cpu) = begin();
                    let times = [wall - steps.wall, cpu - steps.cpu];
                    steps.longest.push(times.map(|time| time.as_secs_f64() * 1e3));
                    (steps.records, steps.wall, steps.cpu) = (records, wall, cpu);
                    if steps.longest.len() == 1024 {
                        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                        all.append(&mut steps.longest);
                    }
                }
                out.emit(());
            })
            .sink("results", Discard::counting(|()| 0));
        Ok(())
    });
    ran.map_err(|error| error.to_string())?;
    if added.load(Ordering::Relaxed) != keys {
        return Err(format!("{} keys were added, not {keys}", added.load(Ordering::Relaxed)));
    }
    let all = all.lock().unwrap_or_else(PoisonError::into_inner);
    let of = |clock: usize| {
        let mut times: Vec<f64> = all.iter().map(|step| step[clock]).collect();
        times.sort_unstable_by(f64::total_cmp);
        let quantiles = [0.5, 0.999, 0.99999].map(|part| quantile(&times, part));
        json!({"p50": quantiles[0], "p999": quantiles[1], "p99999": quantiles[2], "max": times.last()})
    };
    Ok(json!({
        "workload": "growth",
        "parameters": parameters(&args, keys),
        "steps": all.len(),
        "step_records": STEP_RECORDS,
        "step_cpu_ms": of(1),
        "step_wall_ms": of(0),
        "peak_rss_bytes": status_bytes("VmHWM"),
    }))
}
