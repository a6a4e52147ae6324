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
#[path = "../../examples/nexmark/events.rs"]
#[allow(dead_code, reason = "some queries are measured, not all")]
mod events;
mod growth;
mod histogram;
mod idle;
mod keyed_count;
mod large_state;
mod latency;
mod memory;
#[path = "../../examples/nexmark/queries/mod.rs"]
#[allow(dead_code, reason = "some queries are measured, not all")]
mod nexmark_queries;
mod progress;
mod query;
mod raw;
mod recovery;
mod recovery_kill;
mod report;
mod restore;
mod window;

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use clap::Parser;
use serde_json::Value;

use args::{Args, Mode, Workload};

/// As a program with a large state should: see the guide's page on deploying.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What a workload gives: an object to print, or why there is none.
type Measured = Result<Value, String>;

fn main() -> ExitCode {
    // Cargo adds it to what it runs as a bench.
    let args = Args::parse_from(std::env::args_os().filter(|argument| argument != "--bench"));
    if let Err(error) = set_up_allocator(args.workload) {
        eprintln!("error: starting again with MALLOC_CONF: {error}");
        return ExitCode::FAILURE;
    }
    let measured = match args.workload {
        None => smoke(&args),
        Some(Workload::KeyedCount) if args.compare => compare::run(&args),
        Some(Workload::KeyedCount) => keyed_count::run(&args),
        Some(Workload::RawTimelyKeyedCount) => raw::run(&args),
        Some(Workload::Latency) => latency::run(&args),
        Some(Workload::WindowLatency) => window::measure_latency(&args),
        Some(Workload::Recovery) => match args.mode {
            Mode::Panic => recovery::run(&args),
            Mode::Kill => recovery_kill::run(&args),
        },
        Some(Workload::Backpressure) => backpressure::run(&args),
        Some(Workload::LargeState) => large_state::run(&args),
        Some(Workload::Growth) => growth::run(&args),
        Some(Workload::Restore) => restore::run(&args),
        Some(Workload::Idle) => idle::run(&args),
        Some(Workload::Memory) => memory::run(&args),
        Some(Workload::Window) => window::run(&args),
        Some(Workload::NexmarkQ0) => query::nexmark(&args, "q0"),
        Some(Workload::NexmarkQ1) => query::nexmark(&args, "q1"),
        Some(Workload::NexmarkQ2) => query::nexmark(&args, "q2"),
        Some(Workload::NexmarkQ3) => query::nexmark(&args, "q3"),
        Some(Workload::NexmarkQ5) => query::nexmark(&args, "q5"),
        Some(Workload::NexmarkQ7) => query::nexmark(&args, "q7"),
        Some(Workload::NexmarkQ8) => query::nexmark(&args, "q8"),
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

/// Sees to it that the allocator gives memory back as it should, unless the environment says how. It reads that when a program
/// starts, so this one starts again.
fn set_up_allocator(workload: Option<Workload>) -> io::Result<()> {
    let conf = match workload {
        Some(Workload::MemoryCeiling) => "dirty_decay_ms:0,muzzy_decay_ms:0",
        _ => "background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0",
    };
    if std::env::var_os("MALLOC_CONF").is_some() {
        return Ok(());
    }
    let program = std::env::current_exe()?;
    Err(Command::new(program).args(std::env::args_os().skip(1)).env("MALLOC_CONF", conf).exec())
}

/// Runs the workloads once on few records.
fn smoke(args: &Args) -> Measured {
    let small = Args { records: Some(200_000), keys: Some(1_000), ..args.clone() };
    query::smoke(args, 100_000)?;
    Ok(serde_json::json!({
        "window": window::run(&Args { records: Some(20_000), ..small.clone() })?,
        "keyed-count": keyed_count::run(&small)?,
        "raw-timely-keyed-count": raw::run(&small)?,
    }))
}
