//! A real object store: the conformance suite, and whole jobs whose checkpoints are in its bucket, while processes and the
//! server itself are killed. LOSS and DUP are counted apart.
//!
//! Settings of an object store are environment variables, so the test starts itself again with those of the server that it
//! then starts. Without arguments all tests run, one after the other; arguments choose tests by a part of their name.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod jobs;
mod program;
mod savepoints;
mod server;
mod store;

use std::panic::catch_unwind;
use std::process::{Command, ExitCode};
use std::time::Instant;

use server::Server;

type Test = (&'static str, fn(&Server));

/// Makes this binary run the tests, in the environment that it needs.
const INSIDE: &str = "OBJECT_STORE_TEST_INSIDE";

fn main() -> ExitCode {
    if program::is_asked_for() {
        return program::run();
    }
    let mut chosen: Vec<String> = std::env::args().skip(1).collect();
    let only_list = chosen.iter().any(|argument| argument == "--list");
    if std::env::var_os(INSIDE).is_none() && !only_list {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(&chosen).env(INSIDE, "1").envs(server::environment());
        let status = command.status().unwrap();
        return if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    chosen.retain(|argument| !argument.starts_with('-'));
    let is_chosen = |name: &str| chosen.is_empty() || chosen.iter().any(|part| name.contains(part));
    let tests: Vec<Test> = [store::TESTS, jobs::TESTS, savepoints::TESTS].concat();
    let tests: Vec<Test> = tests.into_iter().filter(|(name, _)| is_chosen(name)).collect();
    if only_list {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if tests.is_empty() {
        return ExitCode::SUCCESS;
    }
    let start = Instant::now();
    let server = Server::start();
    println!("the server runs ({:.1?})", start.elapsed());
    let mut failed = Vec::new();
    for (name, test) in tests {
        let start = Instant::now();
        let result = catch_unwind(|| test(&server));
        let took = start.elapsed();
        println!("test {name} ... {} ({took:.1?})", if result.is_ok() { "ok" } else { "FAILED" });
        if result.is_err() {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {failed:?}; the server said at the end:\n{}", server.said());
    ExitCode::FAILURE
}
