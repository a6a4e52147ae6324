//! Whether memory stays bounded when a sink is far slower than its source.

use std::time::{Duration, Instant};

use highwater::connect::{Committer, ConnectError, PreCommit, SinkContext, TransactionWriter};
use highwater::ids::Epoch;
use highwater::job::{self, JobHandle};
use highwater::prelude::*;
use serde_json::json;

use crate::Measured;
use crate::args::Args;
use crate::counting;
use crate::report::{checkpoints, parameters, status_bytes};

/// What the sink takes for a record.
const SINK_DELAY: Duration = Duration::from_millis(1);
/// Memory that is still being taken into use is not looked at.
const SETTLE_SECONDS: u64 = 10;
/// Memory that varies by less is flat.
const FLAT_BYTES: u64 = 16 << 20;

/// Watches the resident memory of a job in this process.
pub fn run(args: &Args) -> Measured {
    let (seconds, keys) = (args.seconds.unwrap_or(60).max(1), args.keys());
    let mut config = args.job("memory")?;
    let directory = tempfile::tempdir().map_err(|error| format!("temporary directory: {error}"))?;
    config.checkpoints.directory = args.checkpoint_interval.0.map(|_| directory.path().to_owned());
    let handle = JobHandle::default();
    let running = handle.clone();
    let thread = std::thread::spawn(move || {
        job::execute(config, &running, move |job| {
            job.source("events", Generator::unbounded(move |i| counting::event(i, keys, 0)))
                .into_keyed(|event| event)
                .process("count", Value::<(u64, u64)>::new("count"), |key, value, state, out| {
                    let state = state.or_default();
                    counting::count(state, value);
                    out.emit((*key, state.0, state.1));
                })
                .sink("slow", Slow);
            Ok(())
        })
    });
    let started = Instant::now();
    let mut samples = Vec::new();
    while started.elapsed() < Duration::from_secs(seconds) && !thread.is_finished() {
        std::thread::sleep(Duration::from_secs(1));
        samples.push(status_bytes("VmRSS"));
    }
    let counters = (handle.counters().source_records(), handle.counters().sink_records());
    let how = checkpoints(&handle.counters().checkpoints());
    handle.cancel();
    match thread.join() {
        Ok(ran) => ran.map_err(|error| error.to_string())?,
        Err(_) => return Err("the job panicked".to_owned()),
    }
    let settled = samples.get(SETTLE_SECONDS.min(seconds - 1) as usize..).unwrap_or_default();
    let (least, most) = (settled.iter().min().copied(), settled.iter().max().copied());
    let flat = least.zip(most).is_some_and(|(least, most)| most - least < FLAT_BYTES);
    Ok(json!({
        "workload": "memory",
        "parameters": parameters(args, counters.0),
        "seconds": seconds,
        "source_records": counters.0,
        "sink_records": counters.1,
        "rss_bytes": { "min": least, "max": most, "last": settled.last() },
        "flat": flat,
        "peak_rss_bytes": status_bytes("VmHWM"),
        "checkpoints": how,
    }))
}

/// A sink that takes its time for every record.
#[derive(Clone)]
struct Slow;

impl Sink for Slow {
    type Record = (u64, u64, u64);
    type Transaction = ();
    type Writer = Slow;
    type Committer = Slow;

    fn writer(&mut self, _: &SinkContext) -> Result<Self, ConnectError> {
        Ok(Self)
    }

    fn committer(&mut self, _: &SinkContext) -> Result<Self, ConnectError> {
        Ok(Self)
    }
}

impl TransactionWriter for Slow {
    type Record = (u64, u64, u64);
    type Transaction = ();

    fn write(&mut self, records: &mut Vec<Self::Record>) -> Result<(), ConnectError> {
        for _ in records.drain(..) {
            std::thread::sleep(SINK_DELAY);
        }
        Ok(())
    }

    fn pre_commit(&mut self, _: Epoch) -> Result<Option<PreCommit<()>>, ConnectError> {
        Ok(None)
    }
}

impl Committer for Slow {
    type Transaction = ();

    fn commit(&mut self, (): &()) -> Result<(), ConnectError> {
        Ok(())
    }

    fn abandon_others(&mut self, _: &[()]) -> Result<(), ConnectError> {
        Ok(())
    }
}
