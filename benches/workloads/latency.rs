//! The latency of every result, from the time it is due to the sink, under an open loop.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use highwater::connect::{Committer, ConnectError, PreCommit, SinkContext, TransactionWriter};
use highwater::ids::Epoch;
use highwater::job::{self, JobHandle};
use highwater::prelude::*;
use serde_json::json;

use crate::Measured;
use crate::args::Args;
use crate::counting;
use crate::histogram::Histogram;
use crate::report::{self, Stopwatch, cpu_time, unix_micros};

/// What is left out after the load.
const WARM_UP: Duration = Duration::from_secs(5);

/// A key, a count, a sum, and the time the result was due, in Unix microseconds; 0 for an event of the load.
pub type Timed = (u64, u64, u64, u64);

/// Runs W7 in one process.
pub fn run(args: &Args) -> Measured {
    let keys = args.keys.unwrap_or(1_000_000);
    let load = args.load.unwrap_or(keys);
    let (report, _) = measure(args, "latency", keys, load, move |job, records, rate| {
        let event = move |index, due| {
            let (key, value) = counting::event(index, keys, load);
            (key, value, due)
        };
        job.source("events", Generator::scheduled(records, load, rate, event))
            .into_keyed(|(key, value, due)| (key, (value, due)))
            .process("count", Value::<(u64, u64)>::new("count"), |key, (value, due), state, out| {
                let state = state.or_default();
                counting::count(state, value);
                out.emit((*key, state.0, state.1, due));
            })
    })?;
    counting::checked(report)
}

/// Runs a job of so many records at such a rate, and says what it did, and the sum of the counts of its results.
pub fn measure(
    args: &Args,
    name: &str,
    keys: u64,
    load: u64,
    build: impl for<'a> Fn(&Job<'a>, u64, u64) -> Stream<'a, Timed> + Send + Sync + 'static,
) -> Result<(serde_json::Value, u64), String> {
    let seconds = args.seconds.unwrap_or(20);
    let rate = args.rate.unwrap_or(100_000);
    let records = args.records.unwrap_or(load + rate * (seconds + WARM_UP.as_secs()));
    let args = Args {
        records: Some(records),
        keys: Some(keys),
        rate: Some(rate),
        load: Some(load),
        ..args.clone()
    };
    let mut config = args.job(name)?;
    let directory = tempfile::tempdir().map_err(|error| format!("temporary directory: {error}"))?;
    config.checkpoints.directory = args.checkpoint_interval.0.map(|_| directory.path().to_owned());
    let (shared, handle) = (Arc::new(Shared::default()), JobHandle::default());
    let sink = LatencySink { shared: Arc::clone(&shared) };
    let watch = Stopwatch::start();
    let ran = job::execute(config, &handle, move |job| {
        build(job, records, rate).sink("results", sink.clone());
        Ok(())
    });
    ran.map_err(|error| error.to_string())?;
    let measured = shared.measured.lock().unwrap_or_else(PoisonError::into_inner);
    let checkpoints = report::checkpoints(&handle.counters().checkpoints());
    let mut report = watch.report(&args, measured.results, measured.digest, checkpoints);
    let milliseconds = |micros: u64| micros as f64 / 1e3;
    let quantile = |part: f64| milliseconds(measured.latencies.quantile(part));
    report["latency_ms"] = json!({
        "count": measured.latencies.count(),
        "p50": quantile(0.5),
        "p90": quantile(0.9),
        "p99": quantile(0.99),
        "p99.9": quantile(0.999),
        "max": milliseconds(measured.latencies.max()),
    });
    report["longest_stall_ms"] = json!(milliseconds(measured.stall));
    report["measured_seconds"] = json!(measured.wall.as_secs_f64());
    report["cores"] = json!(measured.cpu.as_secs_f64() / measured.wall.as_secs_f64());
    Ok((report, measured.counts))
}

/// What the writers share: when the schedule began, and what was measured.
#[derive(Debug)]
struct Shared {
    /// The first due time that any writer saw.
    first_due: AtomicU64,
    measured: Mutex<Report>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { first_due: AtomicU64::new(u64::MAX), measured: Mutex::default() }
    }
}

#[derive(Debug, Default)]
struct Report {
    results: u64,
    digest: u64,
    /// The sum of all counts.
    counts: u64,
    latencies: Histogram,
    stall: u64,
    cpu: Duration,
    wall: Duration,
}

#[derive(Clone)]
struct LatencySink {
    shared: Arc<Shared>,
}

struct LatencyWriter {
    shared: Arc<Shared>,
    own: Report,
    /// When the last batch came, once warm.
    last: Option<u64>,
    /// CPU time and wall clock when the measurement began; subtask 0 takes them.
    began: Option<(Duration, u64)>,
    subtask: usize,
}

struct NothingToCommit;

impl Sink for LatencySink {
    type Record = Timed;
    type Transaction = ();
    type Writer = LatencyWriter;
    type Committer = NothingToCommit;

    fn writer(&mut self, context: &SinkContext) -> Result<LatencyWriter, ConnectError> {
        let (shared, own) = (Arc::clone(&self.shared), Report::default());
        Ok(LatencyWriter { shared, own, last: None, began: None, subtask: context.subtask })
    }

    fn committer(&mut self, _: &SinkContext) -> Result<NothingToCommit, ConnectError> {
        Ok(NothingToCommit)
    }
}

impl Committer for NothingToCommit {
    type Transaction = ();

    fn commit(&mut self, (): &()) -> Result<(), ConnectError> {
        Ok(())
    }

    fn abandon_others(&mut self, _: &[()]) -> Result<(), ConnectError> {
        Ok(())
    }
}

impl TransactionWriter for LatencyWriter {
    type Record = Timed;
    type Transaction = ();

    fn write(&mut self, records: &mut Vec<Timed>) -> Result<(), ConnectError> {
        let now = unix_micros();
        let Some(newest) = records.last().map(|record| record.3) else { return Ok(()) };
        self.own.results += records.len() as u64;
        self.own.counts += records.iter().map(|record| record.1).sum::<u64>();
        let digests =
            records.iter().map(|record| counting::digest(&(record.0, record.1, record.2)));
        self.own.digest = digests.fold(self.own.digest, u64::wrapping_add);
        if newest > 0 {
            let oldest = records.iter().map(|record| record.3).filter(|due| *due > 0).min();
            let first =
                self.shared.first_due.fetch_min(oldest.unwrap_or(newest), Ordering::Relaxed);
            let warm = first.saturating_add(WARM_UP.as_micros() as u64);
            if newest >= warm {
                self.measure(now, warm, records);
            }
        }
        records.clear();
        Ok(())
    }

    fn pre_commit(&mut self, _: Epoch) -> Result<Option<PreCommit<()>>, ConnectError> {
        Ok(None) // What it counts is for the bench alone.
    }
}

impl LatencyWriter {
    fn measure(&mut self, now: u64, warm: u64, records: &[Timed]) {
        if let Some(last) = self.last.replace(now) {
            self.own.stall = self.own.stall.max(now.saturating_sub(last));
        }
        for (.., due) in records {
            // At the end of the input windows end before their time.
            if (warm..=now).contains(due) {
                self.own.latencies.add(now.saturating_sub(*due));
            }
        }
        if self.subtask == 0 {
            let (cpu, wall) = *self.began.get_or_insert_with(|| (cpu_time(), now));
            let wall = Duration::from_micros(now.saturating_sub(wall));
            // The clock of the process is a system call; ten a second are enough.
            if wall.saturating_sub(self.own.wall) >= Duration::from_millis(100) {
                (self.own.cpu, self.own.wall) = (cpu_time() - cpu, wall);
            }
        }
    }
}

impl Drop for LatencyWriter {
    fn drop(&mut self) {
        let mut all = self.shared.measured.lock().unwrap_or_else(PoisonError::into_inner);
        all.results += self.own.results;
        all.counts += self.own.counts;
        all.digest = all.digest.wrapping_add(self.own.digest);
        all.latencies.merge(&self.own.latencies);
        all.stall = all.stall.max(self.own.stall);
        if self.subtask == 0 {
            (all.cpu, all.wall) = (self.own.cpu, self.own.wall);
        }
    }
}
