//! The keyed count: a count and a sum for each key, and every change of them to a sink.

use std::ffi::OsString;
use std::path::Path;

use highwater::cli::NoArgs;
use highwater::config::{JobConfig, RestartStrategy};
use highwater::connect::Generator;
use highwater::job::{self, JobHandle};
use highwater::prelude::*;
use highwater::supervisor::{self, Supervision, environment};

use crate::Measured;
use crate::args::Args;
use crate::counting;
use crate::report::{self, Stopwatch};

/// Runs it, in one process or in several, and checks what comes out.
pub fn run(args: &Args) -> Measured {
    if let Some(directory) = &args.report_dir {
        run_supervised(args, directory)
    } else if args.processes > 1 {
        counting::checked(supervise(args, report::join)?)
    } else {
        let mut config = args.job("keyed-count")?;
        let directory =
            tempfile::tempdir().map_err(|error| format!("temporary directory: {error}"))?;
        // Without checkpoints nothing is kept anywhere.
        config.checkpoints.directory =
            args.checkpoint_interval.0.map(|_| directory.path().to_owned());
        counting::checked(run_here(args, config)?)
    }
}

fn run_here(args: &Args, config: JobConfig) -> Measured {
    let (records, keys, load) = (args.keyed_count_records(), args.keys(), args.load.unwrap_or(0));
    let sink = Discard::counting(counting::digest);
    let (totals, handle) = (sink.handle(), JobHandle::default());
    let watch = Stopwatch::start();
    let ran = job::execute(config, &handle, move |job| {
        job.source("events", Generator::new(records, move |i| counting::event(i, keys, load)))
            .into_keyed(|event| event)
            .process("count", Value::<(u64, u64)>::new("count"), |key, value, state, out| {
                let state = state.or_default();
                counting::count(state, value);
                out.emit((*key, state.0, state.1));
            })
            .sink("results", sink.clone());
        Ok(())
    });
    ran.map_err(|error| error.to_string())?;
    let (results, digest) = totals.totals();
    let checkpoints = report::checkpoints(&handle.counters().checkpoints());
    Ok(watch.report(args, results, digest, checkpoints))
}

/// Starts the processes, and joins what they have left in the directory.
pub fn supervise(args: &Args, join: impl FnOnce(&Path, &Args) -> Measured) -> Measured {
    let directory = tempfile::tempdir().map_err(|error| format!("temporary directory: {error}"))?;
    let own = Args { report_dir: Some(directory.path().to_owned()), ..args.clone() };
    let supervision = Supervision {
        program: std::env::current_exe().map_err(|error| format!("own program: {error}"))?,
        args: own.to_arguments(),
        processes: args.processes,
        workers: Some(args.workers()),
        restart: RestartStrategy::None,
        runtime_dir: None,
    };
    let outcome = supervisor::supervise(supervision).map_err(|error| error.to_string())?;
    if outcome.exit_code() != supervisor::exit::OK {
        return Err(format!("the processes failed: {outcome:?}"));
    }
    join(directory.path(), args)
}

/// One of several processes, as the supervisor has told it to be.
fn run_supervised(args: &Args, directory: &Path) -> Measured {
    let config = supervised_config(args, directory)?;
    let process = config.process;
    let report = run_here(args, config)?;
    report::leave(directory, process, &report)?;
    Ok(serde_json::Value::Null)
}

/// The configuration of a process that a supervisor has started: its place is in the environment, checkpoints go to
/// `directory`.
pub fn supervised_config(args: &Args, directory: &Path) -> Result<JobConfig, String> {
    supervisor::adopt().map_err(|error| error.to_string())?;
    if std::env::var_os(environment::SUPERVISED).is_none() {
        return Err("--report-dir is for processes that a supervisor has started".to_owned());
    }
    let arguments: [OsString; 11] = [
        "workloads".into(),
        "--checkpoint-dir".into(),
        directory.join("checkpoints").into(),
        "--state-backend".into(),
        args.state_backend.clone().into(),
        "--rocksdb-memory".into(),
        args.rocksdb_memory.clone().into(),
        "--checkpoint-threads".into(),
        args.checkpoint_threads.to_string().into(),
        "--checkpoint-interval".into(),
        args.checkpoint_interval.to_string().into(),
    ];
    let (_, resolved) = highwater::cli::parse::<NoArgs>("workloads", arguments)
        .map_err(|error| error.to_string())?;
    highwater::cli::start_logging(&resolved.log);
    Ok(resolved.config)
}
