//! The program whose processes are killed: it counts keys, and writes every count of every key to files.

use std::path::PathBuf;
use std::process::ExitCode;

use highwater::prelude::*;

/// Makes this binary the program.
pub const ASK: &str = "OBJECT_STORE_TEST_PROGRAM";

/// The name of the job.
pub const JOB: &str = "counts";

/// What the program is to do.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Numbers to count
    #[arg(long)]
    records: u64,
    /// Numbers a second
    #[arg(long)]
    per_second: u64,
    /// Keys that they have
    #[arg(long)]
    keys: u64,
    /// Directory for the counts
    #[arg(long)]
    output: PathBuf,
}

pub fn is_asked_for() -> bool {
    std::env::var_os(ASK).is_some()
}

pub fn run() -> ExitCode {
    let ran = highwater::run_with(JOB, |job, args: &Args| {
        let keys = args.keys;
        job.source("numbers", Generator::new(args.records, |i| i).paced(0, args.per_second))
            .key_by(move |number| number % keys)
            .process("count", Value::<u64>::new("count"), |key, _, count, out| {
                *count.or_default() += 1;
                out.emit(format!("{key} {}", count.or_default()));
            })
            .sink("counts", FileSink::lines(&args.output));
        Ok(())
    });
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}
