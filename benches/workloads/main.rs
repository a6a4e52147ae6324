//! Measures whole jobs. Run with `cargo bench --bench workloads -- <workload> [options]`; the workloads and their
//! numbers are in `benches/README.md`.
//!
//! The last line of output is one JSON object. Without a workload (as `cargo test` starts it) small ones are run, to
//! see that they still work and still give the published results.

mod args;
mod backpressure;
mod ceiling;
mod compare;
mod counting;
mod histogram;
mod idle;
mod keyed_count;
mod large_state;
mod latency;
mod memory;
mod progress;
mod raw;
mod recovery;
mod recovery_kill;
mod report;

use std::process::ExitCode;

use clap::Parser;
use serde_json::Value;

use args::{Args, Mode, Workload};

/// What a workload gives: an object to print, or why there is none.
type Measured = Result<Value, String>;

fn main() -> ExitCode {
    // Cargo adds it to what it runs as a bench.
    let args = Args::parse_from(std::env::args_os().filter(|argument| argument != "--bench"));
    let measured = match args.workload {
        None => smoke(&args),
        Some(Workload::KeyedCount) if args.compare => compare::run(&args),
        Some(Workload::KeyedCount) => keyed_count::run(&args),
        Some(Workload::RawTimelyKeyedCount) => raw::run(&args),
        Some(Workload::Latency) => latency::run(&args),
        Some(Workload::Recovery) => match args.mode {
            Mode::Panic => recovery::run(&args),
            Mode::Kill => recovery_kill::run(&args),
        },
        Some(Workload::Backpressure) => backpressure::run(&args),
        Some(Workload::LargeState) => large_state::run(&args),
        Some(Workload::Idle) => idle::run(&args),
        Some(Workload::Memory) => memory::run(&args),
        Some(Workload::MemoryCeiling) => ceiling::run(&args),
    };
    match measured {
        Ok(value) if value.is_null() => ExitCode::SUCCESS, // A process that has reported to its parent.
        Ok(value) => {
            println!("{value}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the workloads once on few records.
fn smoke(args: &Args) -> Measured {
    let small = Args { records: Some(200_000), keys: Some(1_000), ..args.clone() };
    Ok(serde_json::json!({
        "keyed-count": keyed_count::run(&small)?,
        "raw-timely-keyed-count": raw::run(&small)?,
    }))
}
