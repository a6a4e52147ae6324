//! From the `kill -9` of one of several processes to output again.
//!
//! This process supervises. Each process of the job keeps a file with its number and counts up to date; each sink
//! subtask leaves a file for each of its milestones. All times are the wall clock's.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use highwater::config::RestartStrategy;
use highwater::job::{self, JobHandle};
use highwater::supervisor::{self, Supervision, exit};
use rustix::process::{Pid, Signal, getpid, kill_process};
use serde_json::{Value, json};

use crate::Measured;
use crate::args::Args;
use crate::keyed_count::supervised_config;
use crate::progress::{self, Listener, Milestone};
use crate::recovery::{since, until};
use crate::report::{checkpoints, cpu_time, parameters, status_bytes, unix_micros};

/// How often a process tells its counts.
const STATUS_INTERVAL: Duration = Duration::from_millis(50);

/// Starts the processes, kills one, and watches.
pub fn run(args: &Args) -> Measured {
    let mut args = progress::schedule(args, 10_000_000);
    if let Some(directory) = &args.report_dir {
        return run_process(&args, directory);
    }
    args.processes = args.processes.max(2);
    let directory = tempfile::tempdir().map_err(|error| format!("temporary directory: {error}"))?;
    let own = Args { report_dir: Some(directory.path().to_owned()), ..args.clone() };
    let supervision = Supervision {
        program: std::env::current_exe().map_err(|error| format!("own program: {error}"))?,
        args: own.to_arguments(),
        processes: args.processes,
        workers: Some(args.workers()),
        restart: RestartStrategy::FixedDelay { attempts: 1, delay: args.restart_delay },
        runtime_dir: None,
    };
    let watcher = std::thread::spawn(move || {
        let watched = watch(&own);
        // The supervisor below ends the job when it is told to.
        let told = kill_process(getpid(), Signal::TERM);
        watched.and_then(|watched| told.map(|()| watched).map_err(|error| error.to_string()))
    });
    // On the main thread: the processes die with the thread that started them.
    let outcome = supervisor::supervise(supervision).map_err(|error| error.to_string())?;
    let watched = watcher.join().map_err(|_| "the watcher panicked".to_owned())?;
    let mut report = watched.map_err(|why| format!("{why}; the processes: {outcome:?}"))?;
    report["parameters"] = parameters(&args, args.keyed_count_records());
    report["restart_delay_ms"] = json!(args.restart_delay.as_millis());
    report["restarts"] = json!(outcome.restarts);
    Ok(report)
}

/// Waits for the load and two checkpoints, kills the last process, and waits until all have caught up again.
fn watch(args: &Args) -> Measured {
    let directory = args.report_dir.as_deref().ok_or("no directory")?;
    let subtasks = args.processes * args.workers();
    let status = |process: usize| read(&directory.join(format!("status-{process}")));
    let loaded = until("the load", || caught_up(directory, 0, subtasks))?;
    let complete = || status(0)?["checkpoints"]["completed"].as_u64();
    let before = complete().unwrap_or(0);
    until("two checkpoints", || (complete()? >= before + 2).then_some(()))?;
    let victim = args.processes - 1;
    let old: Vec<Value> = (0..args.processes).filter_map(status).collect();
    let number = old[victim]["pid"].as_i64().and_then(|pid| Pid::from_raw(pid as i32));
    let number = number.ok_or("the process to kill has not told its number")?;
    let killed_at = unix_micros();
    kill_process(number, Signal::KILL).map_err(|error| format!("kill: {error}"))?;
    let (_, times) = until("the recovery", || caught_up(directory, loaded.0 + 1, subtasks))?;
    let [first, every, caught_up] = since(killed_at, &times);
    let new: Vec<Value> = (0..args.processes).filter_map(status).collect();
    let started = new.iter().filter_map(|status| status["started_at"].as_u64()).max();
    Ok(json!({
        "workload": "recovery",
        "mode": "kill",
        "all_started_ms": started.unwrap_or(0).saturating_sub(killed_at) as f64 / 1e3,
        "first_output_ms": first,
        "every_subtask_ms": every,
        "caught_up_ms": caught_up,
        "peak_rss_bytes": old.iter().filter_map(|status| status["peak_rss_bytes"].as_u64()).sum::<u64>(),
        "checkpoints": old[0]["checkpoints"],
    }))
}

/// One process of the job.
fn run_process(args: &Args, directory: &Path) -> Measured {
    let config = supervised_config(args, directory)?;
    let started_at = unix_micros();
    let handle = JobHandle::default();
    let file = directory.join(format!("status-{}", config.process));
    let counts = handle.clone();
    std::thread::spawn(move || {
        loop {
            let status = json!({
                "pid": std::process::id(),
                "started_at": started_at,
                "peak_rss_bytes": status_bytes("VmHWM"),
                "cpu_seconds": cpu_time().as_secs_f64(),
                "checkpoints": checkpoints(&counts.counters().checkpoints()),
            });
            leave(&file, &status.to_string());
            std::thread::sleep(STATUS_INTERVAL);
        }
    });
    let schedule = args.clone();
    let milestones = directory.to_owned();
    let listener: Listener = Arc::new(move |context, milestone, now| {
        let kind = if milestone == Milestone::Output { "output" } else { "caught-up" };
        let name = format!("{kind}-{}-{}", context.attempt.0, context.subtask);
        leave(&milestones.join(name), &now.to_string());
    });
    let ran =
        job::execute(config, &handle, move |job| progress::build(job, &schedule, || {}, &listener));
    let Err(error) = ran else { return Ok(Value::Null) };
    eprintln!("process: {error}");
    std::process::exit(if error.restartable() { exit::FAILED } else { exit::FATAL })
}

/// The first attempt from `least` on in which all subtasks have caught up, with their times.
fn caught_up(directory: &Path, least: u64, subtasks: usize) -> Option<(u64, Vec<(u64, u64)>)> {
    (least..least + 10).find_map(|attempt| {
        let time = |kind: &str, subtask: usize| {
            read(&directory.join(format!("{kind}-{attempt}-{subtask}")))?.as_u64()
        };
        let times: Option<Vec<(u64, u64)>> = (0..subtasks)
            .map(|subtask| Some((time("output", subtask)?, time("caught-up", subtask)?)))
            .collect();
        Some((attempt, times?))
    })
}

/// Leaves a file that is whole whenever it is there. A reader that misses one waits for it.
fn leave(file: &Path, text: &str) {
    let unfinished = file.with_extension("new");
    if std::fs::write(&unfinished, text).is_ok() {
        let _ = std::fs::rename(&unfinished, file);
    }
}

fn read(file: &Path) -> Option<Value> {
    serde_json::from_str(&std::fs::read_to_string(file).ok()?).ok()
}
