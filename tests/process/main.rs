//! Jobs in real processes: killed, stopped, started again, supervised and not. What is committed in the end is compared
//! with what the program should write; LOSS and DUP are counted apart.
//!
//! Without arguments all tests run, one after the other; arguments choose tests by a part of their name.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod commands;
mod kills;
mod program;
mod savepoints;
mod silence;
mod support;
mod unaligned;

use std::panic::catch_unwind;
use std::process::ExitCode;
use std::time::Instant;

type Test = (&'static str, fn());

fn main() -> ExitCode {
    if program::is_asked_for() {
        return program::run();
    }
    let mut chosen: Vec<String> = std::env::args().skip(1).collect();
    let only_list = chosen.iter().any(|argument| argument == "--list");
    chosen.retain(|argument| !argument.starts_with('-'));
    let tests: Vec<Test> =
        [commands::TESTS, kills::TESTS, savepoints::TESTS, silence::TESTS, unaligned::TESTS]
            .into_iter()
            .flatten()
            .copied()
            .collect();
    let mut failed = Vec::new();
    for (name, test) in tests {
        if !chosen.is_empty() && !chosen.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        if only_list {
            println!("{name}: test");
            continue;
        }
        let start = Instant::now();
        let result = catch_unwind(test);
        let took = start.elapsed();
        println!("test {name} ... {} ({took:.1?})", if result.is_ok() { "ok" } else { "FAILED" });
        if result.is_err() {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {failed:?}");
    ExitCode::FAILURE
}
