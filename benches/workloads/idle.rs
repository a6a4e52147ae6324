//! What a job costs that has nothing to do.

use std::time::Duration;

use highwater::connect::{ConnectError, ReadStatus, SplitReader};
use highwater::job::{self, EventTime, JobHandle};
use highwater::prelude::*;
use serde_json::json;

use crate::Measured;
use crate::args::{Args, Interval};
use crate::report::{cpu_time, parameters, status_bytes};

/// What a job may cost before it is idle: the first checkpoint and the first parks are not looked at.
const SETTLE: Duration = Duration::from_secs(2);

/// Measures a job with a checkpoint every ten seconds, and every second; without and with event time.
pub fn run(args: &Args) -> Measured {
    let seconds = Duration::from_secs(args.seconds.unwrap_or(10));
    let mut cases = Vec::new();
    for interval in [Duration::from_secs(10), Duration::from_secs(1)] {
        for event_time in [false, true] {
            let (part, completed) = measure(args, interval, event_time, seconds)?;
            cases.push(json!({
                "checkpoint_interval_ms": interval.as_millis(),
                "event_time": event_time,
                "part_of_a_core": part,
                "checkpoints_completed": completed,
            }));
        }
    }
    Ok(json!({
        "workload": "idle",
        "parameters": parameters(args, 0),
        "seconds": seconds.as_secs(),
        "idle": cases,
        "peak_rss_bytes": status_bytes("VmHWM"),
    }))
}

fn measure(
    args: &Args,
    interval: Duration,
    event_time: bool,
    seconds: Duration,
) -> Result<(f64, usize), String> {
    let args = Args { checkpoint_interval: Interval(Some(interval)), ..args.clone() };
    let mut config = args.job("idle")?;
    let directory = tempfile::tempdir().map_err(|error| format!("temporary directory: {error}"))?;
    config.checkpoints.directory = Some(directory.path().to_owned());
    let handle = JobHandle::default();
    let running = handle.clone();
    let thread = std::thread::spawn(move || {
        job::execute(config, &running, move |job| {
            let time = if event_time {
                EventTime::new(WatermarkStrategy::monotonic(), |number: &u64| *number as i64)
            } else {
                EventTime::none()
            };
            job.source_with("nothing", Nothing, time)
                .key_by(|number| *number)
                .process("count", Value::<u64>::new("count"), |_, number, count, out| {
                    *count.or_default() += number;
                    out.emit(*count.or_default());
                })
                .sink("results", Discard::new());
            Ok(())
        })
    });
    std::thread::sleep(SETTLE);
    let cpu = cpu_time();
    std::thread::sleep(seconds);
    let part = (cpu_time() - cpu).as_secs_f64() / seconds.as_secs_f64();
    let completed = handle.counters().checkpoints().completed.len();
    handle.cancel();
    match thread.join() {
        Ok(ran) => ran.map_err(|error| error.to_string())?,
        Err(_) => return Err("the job panicked".to_owned()),
    }
    Ok((part, completed))
}

/// A source that always waits.
struct Nothing;

impl Source for Nothing {
    type Record = u64;
    type Split = u64;
    type Reader = Nothing;

    fn splits(&mut self, parallelism: usize) -> Result<Vec<u64>, ConnectError> {
        Ok((0..parallelism as u64).collect())
    }

    fn open(&mut self, _: u64) -> Result<Self, ConnectError> {
        Ok(Self)
    }
}

impl SplitReader for Nothing {
    type Record = u64;
    type Split = u64;

    fn read(&mut self, _: &mut Vec<u64>, _: usize) -> Result<ReadStatus, ConnectError> {
        Ok(ReadStatus::Wait(Duration::from_secs(3600)))
    }

    fn split(&self) -> u64 {
        0
    }
}
