//! What a run reports, and where the numbers come from.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use highwater::job::{Checkpoints, CompletedCheckpoint};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::Measured;
use crate::args::Args;

/// CPU time that all threads of this process have used.
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The wall clock in Unix microseconds.
pub fn unix_micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

/// A field of `/proc/self/status` in bytes; 0 where there is none.
pub fn status_bytes(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Measures a run from its beginning.
pub struct Stopwatch {
    started: Instant,
    cpu: Duration,
}

impl Stopwatch {
    pub fn start() -> Self {
        Self { started: Instant::now(), cpu: cpu_time() }
    }

    /// The report of a run that has ended now.
    pub fn report(&self, args: &Args, results: u64, digest: u64, checkpoints: Value) -> Value {
        let (seconds, cpu) = (self.started.elapsed(), cpu_time() - self.cpu);
        let (seconds, cpu) = (seconds.as_secs_f64(), cpu.as_secs_f64());
        let records = args.keyed_count_records();
        json!({
            "workload": args.workload.map_or_else(|| "smoke".to_owned(), |workload| workload.name()),
            "parameters": parameters(args, records),
            "seconds": seconds,
            "records_per_second": records as f64 / seconds,
            "cpu_seconds": cpu,
            "records_per_cpu_second": records as f64 / cpu,
            "peak_rss_bytes": status_bytes("VmHWM"),
            "results": results,
            "digest": format!("{digest:016x}"),
            "checkpoints": checkpoints,
        })
    }
}

/// The parameters that a run had.
pub fn parameters(args: &Args, records: u64) -> Value {
    json!({
        "records": records,
        "keys": args.keys(),
        "workers": args.workers(),
        "state_backend": args.state_backend,
        "processes": args.processes,
        "checkpoint_interval": args.checkpoint_interval.to_string(),
        "checkpoint_threads": args.checkpoint_threads,
        "load": args.load,
        "rate": args.rate,
        "malloc_conf": std::env::var("MALLOC_CONF").ok(),
    })
}

/// How checkpoints went. `bytes`: those of the newest one.
pub fn checkpoints(checkpoints: &Checkpoints) -> Value {
    let milliseconds = |completed: &CompletedCheckpoint| completed.duration.as_secs_f64() * 1e3;
    let mut durations: Vec<f64> = checkpoints.completed.iter().map(milliseconds).collect();
    durations.sort_unstable_by(f64::total_cmp);
    json!({
        "completed": checkpoints.completed.len(),
        "failed": checkpoints.aborted,
        "duration_ms": {
            "p50": quantile(&durations, 0.5),
            "p99": quantile(&durations, 0.99),
            "max": durations.last(),
        },
        "bytes": checkpoints.completed.last().map_or(0, |last| last.bytes),
    })
}

/// A quantile of ascending numbers: the least that so large a part of them does not exceed.
pub fn quantile(ascending: &[f64], part: f64) -> Option<f64> {
    let rank = (ascending.len() as f64 * part).ceil() as usize;
    ascending.get(rank.saturating_sub(1)).copied()
}

/// Leaves the report of one process for the parent. The parent has no output of its own to confuse it with.
pub fn leave(directory: &Path, process: usize, report: &Value) -> Result<(), String> {
    let file = directory.join(format!("process-{process}.json"));
    std::fs::write(&file, report.to_string())
        .map_err(|error| format!("{}: {error}", file.display()))
}

/// Joins the reports of all processes: what each used and made is added up, the time is the longest.
pub fn join(directory: &Path, args: &Args) -> Measured {
    let mut reports = Vec::new();
    for process in 0..args.processes {
        let file = directory.join(format!("process-{process}.json"));
        let text = std::fs::read_to_string(&file);
        let text = text.map_err(|error| format!("{}: {error}", file.display()))?;
        reports.push(serde_json::from_str::<Value>(&text).map_err(|error| error.to_string())?);
    }
    let sum = |field: &str| reports.iter().filter_map(|report| report[field].as_f64()).sum::<f64>();
    let whole =
        |field: &str| reports.iter().filter_map(|report| report[field].as_u64()).sum::<u64>();
    let seconds =
        reports.iter().filter_map(|report| report["seconds"].as_f64()).fold(0.0, f64::max);
    let digests = reports.iter().filter_map(|report| report["digest"].as_str());
    let digest = digests
        .filter_map(|digest| u64::from_str_radix(digest, 16).ok())
        .fold(0_u64, u64::wrapping_add);
    let records = args.keyed_count_records();
    let mut joined = reports[0].clone();
    joined["seconds"] = json!(seconds);
    joined["records_per_second"] = json!(records as f64 / seconds);
    joined["cpu_seconds"] = json!(sum("cpu_seconds"));
    joined["records_per_cpu_second"] = json!(records as f64 / sum("cpu_seconds"));
    joined["peak_rss_bytes"] = json!(whole("peak_rss_bytes"));
    joined["results"] = json!(whole("results"));
    joined["digest"] = json!(format!("{digest:016x}"));
    Ok(joined)
}
