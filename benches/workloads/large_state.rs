//! A large state of which little changes: what incremental checkpoints write, how long they take, and what memory they cost.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use highwater::config::RestartStrategy;
use highwater::connect::workload;
use highwater::format::record::{CheckpointOutcome, CheckpointRecord, WorkerTimings};
use highwater::ids::Name;
use highwater::job::{self, JobHandle};
use highwater::prelude::*;
use highwater::storage::{JobStore, LocalStorage};
use serde_json::json;

use crate::Measured;
use crate::args::{Args, Interval};
use crate::counting;
use crate::report::{parameters, quantile, status_bytes};

const JOB: &str = "large-state";
/// Units: bytes of what belongs to a key: the key, a number, and the payload.
pub const ENTRY_BYTES: u64 = 8 + 8 + workload::PAYLOAD_BYTES as u64;

/// The payload, in pieces that serde takes.
pub type Payload = ([u8; 32], [u8; 32], [u8; 20]);

/// The payload of an event.
pub fn payload(index: u64) -> Payload {
    let bytes = workload::payload(index);
    let (mut head, mut middle, mut tail) = ([0; 32], [0; 32], [0; 20]);
    head.copy_from_slice(&bytes[..32]);
    middle.copy_from_slice(&bytes[32..64]);
    tail.copy_from_slice(&bytes[64..]);
    (head, middle, tail)
}

/// Loads 20 million keys, and then overwrites one in a hundred between two checkpoints.
pub fn run(args: &Args) -> Measured {
    let keys = args.keys.unwrap_or(20_000_000);
    let rate = args.rate.unwrap_or(40_000);
    let interval = args.large_state_interval();
    let seconds = args.seconds.unwrap_or(45);
    let records = keys + rate * seconds;
    let args = Args {
        keys: Some(keys),
        load: Some(keys),
        rate: Some(rate),
        records: Some(records),
        checkpoint_interval: Interval(Some(interval)),
        ..args.clone()
    };
    let mut config = args.job(JOB)?;
    config.restart = RestartStrategy::None;
    let directory = tempfile::tempdir().map_err(|error| format!("temporary directory: {error}"))?;
    config.checkpoints.directory = Some(directory.path().to_owned());
    let handle = JobHandle::default();
    let loaded = Arc::new(AtomicU64::new(0));
    let memory = Memory::watch(&loaded, keys);
    let counted = Arc::clone(&loaded);
    let ran = job::execute(config, &handle, move |job| {
        let loaded = Arc::clone(&counted);
        let event = move |index, _due| {
            let (key, value) = counting::event(index, keys, keys);
            (key, (value, payload(index)))
        };
        job.source("events", Generator::scheduled(records, keys, rate, event))
            .into_keyed(|event| event)
            .process("last", Value::<(u64, Payload)>::new("last"), move |_, value, last, out| {
                if last.set(value).is_none() {
                    loaded.fetch_add(1, Ordering::Relaxed);
                }
                out.emit(());
            })
            .sink("results", Discard::counting(|()| 0));
        Ok(())
    });
    ran.map_err(|error| error.to_string())?;
    let memory = memory.stop();
    let storage = LocalStorage::open_existing(directory.path()).map_err(|e| e.to_string())?;
    let store = JobStore::new(Arc::new(storage), Name::new(JOB).expect("a constant name"));
    let history = store.history().map_err(|error| error.to_string())?;
    let aborted = history.iter().filter(|r| r.outcome != CheckpointOutcome::Complete).count();
    let complete: Vec<&CheckpointRecord> =
        history.iter().filter(|r| r.outcome == CheckpointOutcome::Complete).collect();
    let settled = memory.loaded_at_unix_ms;
    // The first after the load holds its rest, the last one only what came after the one before.
    let after: Vec<&&CheckpointRecord> =
        complete.iter().filter(|record| record.triggered_unix_ms > settled).collect();
    let after = after.get(1..after.len().saturating_sub(1)).unwrap_or_default();
    if after.is_empty() {
        return Err("no checkpoint was taken between the load and the end".to_owned());
    }
    let written: Vec<u64> = after.iter().map(|record| bytes_written(record)).collect();
    let mean = written.iter().sum::<u64>() / written.len() as u64;
    let changed = (rate as f64 * interval.as_secs_f64()) as u64 * ENTRY_BYTES;
    let durations = |of: &dyn Fn(&CheckpointRecord) -> u64| {
        let mut all: Vec<f64> = after.iter().map(|record| of(record) as f64 / 1e3).collect();
        all.sort_unstable_by(f64::total_cmp);
        json!({"p50": quantile(&all, 0.5), "max": all.last()})
    };
    let slowest = |record: &CheckpointRecord, of: &dyn Fn(&WorkerTimings) -> u64| {
        record.workers.iter().map(of).max().unwrap_or_default()
    };
    let freeze = |record: &CheckpointRecord| slowest(record, &|worker| worker.sync_us);
    let copy = sequential_copy(directory.path(), mean)?;
    let whole_freeze: u64 = complete.iter().map(|record| freeze(record)).max().unwrap_or_default();
    Ok(json!({
        "workload": JOB,
        "parameters": parameters(&args, records),
        "checkpoints": after.len(),
        "aborted": aborted,
        "bytes_changed": changed,
        "bytes_written": {"mean": mean, "max": written.iter().max(), "all": written},
        "written_of_changed": mean as f64 / changed as f64,
        "duration_ms": durations(&|record| record.duration_ms * 1000),
        "align_ms": durations(&|record| slowest(record, &|worker| worker.align_us)),
        "freeze_ms": durations(&freeze),
        "write_ms": durations(&|record| slowest(record, &|worker| worker.async_us)),
        "freeze_ms_of_all_max": whole_freeze as f64 / 1e3,
        "copy_of_mean_ms": copy.as_secs_f64() * 1e3,
        "entries_bytes": keys * ENTRY_BYTES,
        "rss_bytes_median": memory.median_rss,
        "rss_of_entries": memory.median_rss as f64 / (keys * ENTRY_BYTES) as f64,
        "peak_rss_after_load_of_entries": memory.peak_rss as f64 / (keys * ENTRY_BYTES) as f64,
        "peak_rss_bytes": status_bytes("VmHWM"),
    }))
}

/// What a checkpoint added to storage.
fn bytes_written(record: &CheckpointRecord) -> u64 {
    record.workers.iter().map(|worker| worker.bytes + worker.files.uploaded_bytes).sum()
}

/// How long it takes to write so many bytes one after the other, durably.
fn sequential_copy(directory: &Path, bytes: u64) -> Result<Duration, String> {
    let failed = |error: std::io::Error| format!("writing for comparison: {error}");
    let piece: Vec<u8> = (0..1_u64 << 17).flat_map(|n| workload::mix(n).to_le_bytes()).collect();
    let mut times = Vec::new();
    for round in 0..3 {
        let path = directory.join(format!("copy-{round}"));
        let started = Instant::now();
        let mut file = std::fs::File::create(&path).map_err(failed)?;
        let mut left = bytes as usize;
        while left > 0 {
            let count = left.min(piece.len());
            file.write_all(&piece[..count]).map_err(failed)?;
            left -= count;
        }
        file.sync_all().map_err(failed)?;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    Ok(times[1])
}

/// Watches the memory of this process.
struct Memory {
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Watched>,
}

struct Watched {
    loaded_at_unix_ms: u64,
    median_rss: u64,
    peak_rss: u64,
}

impl Memory {
    fn watch(loaded: &Arc<AtomicU64>, keys: u64) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (stop, loaded) = (Arc::clone(&over), Arc::clone(loaded));
        let thread = std::thread::spawn(move || {
            let (mut samples, mut loaded_at_unix_ms) = (Vec::new(), u64::MAX);
            while !stop.load(Ordering::Relaxed) {
                if loaded.load(Ordering::Relaxed) >= keys {
                    loaded_at_unix_ms = loaded_at_unix_ms.min(crate::report::unix_micros() / 1000);
                    samples.push(status_bytes("VmRSS"));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            samples.sort_unstable();
            let median_rss = samples.get(samples.len() / 2).copied().unwrap_or_default();
            let peak_rss = samples.last().copied().unwrap_or_default();
            Watched { loaded_at_unix_ms, median_rss, peak_rss }
        });
        Self { over, thread }
    }

    fn stop(self) -> Watched {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("it does not panic")
    }
}
