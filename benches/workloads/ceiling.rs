//! Whether a job whose state is many times its budget of memory stays within that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use highwater::cli::parse_size;
use highwater::config::RestartStrategy;
use highwater::job::{self, JobHandle};
use highwater::prelude::*;
use serde_json::json;

use crate::Measured;
use crate::args::Args;
use crate::counting;
use crate::large_state::{ENTRY_BYTES, Payload, payload};
use crate::report::{parameters, status_bytes};

/// How many times the budget the state is.
const STATE_OF_BUDGET: u64 = 5;
/// What a job with hardly any state holds is not what state takes.
const BASELINE_KEYS: u64 = 1_000;
/// Memory may be so much of the budget.
const OF_BUDGET_MAX: f64 = 1.15;

/// Runs a job with hardly any state, and then one with much, and compares what they hold of memory.
pub fn run(args: &Args) -> Measured {
    let args = Args { state_backend: "rocksdb".to_owned(), ..args.clone() };
    let budget = parse_size(&args.rocksdb_memory)?;
    let keys = args.keys.unwrap_or(STATE_OF_BUDGET * budget / ENTRY_BYTES);
    let records = args.records.unwrap_or(3 * keys);
    let baseline = highest(&args, BASELINE_KEYS, records)?;
    let most = highest(&args, keys, records)?;
    let taken = most.rss_bytes.saturating_sub(baseline.rss_bytes);
    let of_budget = taken as f64 / budget as f64;
    Ok(json!({
        "workload": "memory-ceiling",
        "parameters": parameters(&args, records),
        "budget_bytes": budget,
        "entries_bytes": keys * ENTRY_BYTES,
        "entries_of_budget": (keys * ENTRY_BYTES) as f64 / budget as f64,
        "baseline_rss_bytes": baseline.rss_bytes,
        "peak_rss_bytes": most.rss_bytes,
        "used_bytes_peak": most.used_bytes,
        "rss_of_budget": of_budget,
        "within": of_budget <= OF_BUDGET_MAX,
    }))
}

/// The highest values that were seen.
struct Highest {
    rss_bytes: u64,
    /// What RocksDB and the decoded values say that they use.
    used_bytes: u64,
}

fn highest(args: &Args, keys: u64, records: u64) -> Result<Highest, String> {
    let mut config = args.job("memory-ceiling")?;
    config.restart = RestartStrategy::None;
    let directory = tempfile::tempdir().map_err(|error| format!("temporary directory: {error}"))?;
    config.checkpoints.directory = Some(directory.path().to_owned());
    let handle = JobHandle::default();
    let over = Arc::new(AtomicBool::new(false));
    let (stop, seen) = (Arc::clone(&over), handle.clone());
    let used = Arc::new(AtomicU64::new(0));
    let most_used = Arc::clone(&used);
    let watching = std::thread::spawn(move || {
        let mut rss_bytes = 0;
        while !stop.load(Ordering::Relaxed) {
            rss_bytes = rss_bytes.max(status_bytes("VmRSS"));
            if let Some(memory) = seen.counters().state_memory() {
                most_used.fetch_max(memory.used_bytes as u64, Ordering::Relaxed);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        rss_bytes
    });
    let ran = job::execute(config, &handle, move |job| {
        let event = move |index| {
            let (key, value) = counting::event(index, keys, keys);
            (key, (value, payload(index)))
        };
        job.source("events", Generator::new(records, event))
            .into_keyed(|event| event)
            .process("last", Value::<(u64, Payload)>::new("last"), |_, value, last, out| {
                last.set(value);
                out.emit(());
            })
            .sink("results", Discard::counting(|()| 0));
        Ok(())
    });
    over.store(true, Ordering::Relaxed);
    let rss_bytes = watching.join().map_err(|_| "watching memory panicked".to_owned())?;
    ran.map_err(|error| error.to_string())?;
    Ok(Highest { rss_bytes, used_bytes: used.load(Ordering::Relaxed) })
}
