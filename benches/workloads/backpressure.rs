//! Checkpoints of a job whose operator is slower than its source: large events, keyed, and some busy work for each.

use std::path::Path;
use std::time::{Duration, Instant};

use highwater::config::JobConfig;
use highwater::connect::workload;
use highwater::job::{self, CompletedCheckpoint, JobHandle};
use highwater::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::Measured;
use crate::args::{Args, Interval};
use crate::keyed_count::{supervise, supervised_config};
use crate::report::{leave, parameters, quantile, status_bytes};

/// Checkpoints that are looked at; one more is taken, and the first left out.
const CHECKPOINTS: usize = 15;
/// How often the queues are looked at.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);
/// What is left out of the throughput and of the queues at the beginning.
const WARM_UP: Duration = Duration::from_secs(2);

/// An event of 100 bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Fat {
    value: u64,
    head: [u8; 32],
    middle: [u8; 32],
    tail: [u8; 20],
}

fn event(index: u64, keys: u64) -> (u64, Fat) {
    let (key, value) = workload::key_value(index, keys, 0);
    let payload = workload::payload(index);
    let (mut head, mut middle, mut tail) = ([0; 32], [0; 32], [0; 20]);
    head.copy_from_slice(&payload[..32]);
    middle.copy_from_slice(&payload[32..64]);
    tail.copy_from_slice(&payload[64..]);
    (key, Fat { value, head, middle, tail })
}

/// Runs each mode in fresh processes, or the one that was asked for.
pub fn run(args: &Args) -> Measured {
    let args = Args { keys: Some(args.keys.unwrap_or(1_024)), ..args.clone() };
    if let Some(directory) = &args.report_dir {
        let config = supervised_config(&args, directory)?;
        let process = config.process;
        leave(directory, process, &run_here(&args, config)?)?;
        return Ok(serde_json::Value::Null);
    }
    if args.alignment_timeout.is_some() {
        return if args.processes > 1 { supervise(&args, join) } else { run_alone(&args) };
    }
    let sides = [
        ("off", "none", Interval(None)),
        ("aligned", "none", args.checkpoint_interval),
        ("unaligned", "0s", args.checkpoint_interval),
        ("default", "200ms", args.checkpoint_interval),
    ];
    let mut result = json!({ "workload": "backpressure", "parameters": parameters(&args, 0) });
    result["parameters"]["work_us"] = json!(args.work.as_micros());
    for (name, timeout, checkpoint_interval) in sides {
        let alignment_timeout = Some(timeout.to_owned());
        let own = Args { alignment_timeout, checkpoint_interval, ..args.clone() };
        let report = own.run_in_process()?;
        if !args.json {
            println!("{name:<10} {report}");
        }
        result[name] = report;
    }
    let rate = |report: &serde_json::Value| report["records_per_second"].as_f64();
    let off = rate(&result["off"]);
    for name in ["aligned", "unaligned", "default"] {
        let ratio = rate(&result[name]).zip(off).map(|(on, off)| on / off);
        result[name]["throughput_ratio"] = json!(ratio);
    }
    Ok(result)
}

fn run_alone(args: &Args) -> Measured {
    let mut config = args.job("backpressure")?;
    let directory = tempfile::tempdir().map_err(|error| format!("temporary directory: {error}"))?;
    config.checkpoints.directory = args.checkpoint_interval.0.map(|_| directory.path().to_owned());
    run_here(args, config)
}

/// Process 0 knows the checkpoints; records are added up.
fn join(directory: &Path, args: &Args) -> Measured {
    let report = |process: usize| -> Measured {
        let file = directory.join(format!("process-{process}.json"));
        let text = std::fs::read_to_string(&file)
            .map_err(|error| format!("{}: {error}", file.display()))?;
        serde_json::from_str(&text).map_err(|error| error.to_string())
    };
    let mut joined = report(0)?;
    for process in 1..args.processes {
        let other = report(process)?;
        for field in ["records_per_second", "peak_rss_bytes"] {
            let sum = joined[field].as_f64().unwrap_or(0.0) + other[field].as_f64().unwrap_or(0.0);
            joined[field] = json!(sum);
        }
        joined[format!("queues_of_process_{process}")] = other["queues"].clone();
    }
    Ok(joined)
}

fn run_here(args: &Args, mut config: JobConfig) -> Measured {
    let timeout = args.alignment_timeout.as_deref().unwrap_or("200ms");
    config.checkpoints.alignment_timeout = match timeout {
        "none" => None,
        time => Some(highwater::cli::parse_duration(time)?),
    };
    let (keys, work, leads) = (args.keys(), args.work, config.process == 0);
    let checkpoints_on = args.checkpoint_interval.0.is_some();
    let (sink, handle) = (Discard::counting(|_: &(u64, u64)| 0), JobHandle::default());
    let running = handle.clone();
    let job = std::thread::spawn(move || {
        job::execute(config, &running, move |job| {
            job.source("events", Generator::unbounded(move |index| event(index, keys)))
                .into_keyed(|event| event)
                .process("slow", Value::<u64>::new("count"), move |key, fat: Fat, count, out| {
                    let started = Instant::now();
                    while started.elapsed() < work {
                        std::hint::spin_loop();
                    }
                    std::hint::black_box(&fat);
                    let count = count.or_default();
                    *count += 1;
                    out.emit((*key, *count));
                })
                .sink("results", sink.clone());
            Ok(())
        })
    });
    let seconds = args.seconds.unwrap_or(CHECKPOINTS as u64 + 2);
    let watched = watch(&handle, seconds, checkpoints_on, &job);
    // Of several processes the first ends the job.
    if leads {
        handle.cancel();
    }
    match job.join() {
        Ok(ran) => ran.map_err(|error| error.to_string())?,
        Err(_) => return Err("the job panicked".to_owned()),
    }
    let mut report = watched;
    let completed = handle.counters().checkpoints();
    let looked_at = completed.completed.get(1..).unwrap_or_default();
    report["checkpoints"] = describe(looked_at, completed.aborted);
    report["alignment_timeout"] = json!(timeout);
    report["peak_rss_bytes"] = json!(status_bytes("VmHWM"));
    Ok(report)
}

/// Watches throughput and queues until enough checkpoints are complete, or for a time if there are none.
fn watch(
    handle: &JobHandle,
    seconds: u64,
    checkpoints: bool,
    job: &std::thread::JoinHandle<Result<(), JobError>>,
) -> serde_json::Value {
    let started = Instant::now();
    let (mut first, mut queued_bytes, mut queued_records) = (None, Vec::new(), Vec::new());
    let mut quantum = Vec::new();
    loop {
        std::thread::sleep(SAMPLE_INTERVAL);
        let enough = if checkpoints {
            handle.counters().checkpoints().completed.len() > CHECKPOINTS
                || started.elapsed() > Duration::from_secs(20 * seconds)
        } else {
            started.elapsed() > Duration::from_secs(seconds)
        };
        if job.is_finished() || enough {
            break;
        }
        if started.elapsed() < WARM_UP {
            continue;
        }
        first.get_or_insert_with(|| (Instant::now(), handle.counters().sink_records()));
        for channel in handle.counters().channels() {
            queued_bytes.push(channel.queued_bytes as f64);
            queued_records.push(channel.queued_records as f64);
            quantum.push(channel.quantum as f64);
        }
    }
    let (since, before) = first.unwrap_or((started, 0));
    let records = handle.counters().sink_records() - before;
    json!({
        "records_per_second": records as f64 / since.elapsed().as_secs_f64(),
        "queues": {
            "bytes": spread(queued_bytes),
            "records": spread(queued_records),
            "quantum": spread(quantum),
        },
    })
}

fn describe(completed: &[CompletedCheckpoint], failed: u64) -> serde_json::Value {
    let milliseconds = |of: fn(&CompletedCheckpoint) -> Duration| {
        spread(completed.iter().map(|checkpoint| of(checkpoint).as_secs_f64() * 1e3).collect())
    };
    json!({
        "completed": completed.len(),
        "failed": failed,
        "duration_ms": milliseconds(|checkpoint| checkpoint.duration),
        "align_ms": milliseconds(|checkpoint| checkpoint.align),
        "write_ms": milliseconds(|checkpoint| checkpoint.write),
        "publish_ms": milliseconds(|checkpoint| checkpoint.publish),
        "in_flight_bytes": spread(completed.iter().map(|c| c.in_flight_bytes as f64).collect()),
    })
}

fn spread(mut numbers: Vec<f64>) -> serde_json::Value {
    numbers.sort_unstable_by(f64::total_cmp);
    json!({
        "min": numbers.first(),
        "p50": quantile(&numbers, 0.5),
        "p90": quantile(&numbers, 0.9),
        "max": numbers.last(),
    })
}
