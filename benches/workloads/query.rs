//! Queries whose results are known: a job that makes a number of each result, and what came out.

use highwater::job::{self, JobHandle};
use highwater::prelude::*;
use serde_json::Value;

use crate::Measured;
use crate::args::Args;
use crate::nexmark_queries;
use crate::report::{self, Stopwatch};

/// Results of Nexmark that were computed by other programs: query, records, results, digest.
const PUBLISHED: [(&str, u64, u64, &str); 23] = [
    ("q0", 100_000, 100_000, "6015c250a11f8de8"),
    ("q1", 100_000, 92_000, "67ad57fc1a53acb1"),
    ("q2", 100_000, 373, "44ece76fba536a3c"),
    ("q3", 100_000, 506, "2aa137d68844754b"),
    ("q5", 100_000, 12, "5a2485fe0da88904"),
    ("q7", 100_000, 1, "9653d0882be49c75"),
    ("q8", 100_000, 925, "b9246430886df83f"),
    ("q0", 1_000_000, 1_000_000, "ce19fab78317e3ae"),
    ("q1", 1_000_000, 920_000, "69bcbed15bf6e054"),
    ("q2", 1_000_000, 6_790, "039ff9dd2a509553"),
    ("q3", 2_000_000, 11_570, "c07a46934d40acab"),
    ("q5", 2_000_000, 109, "91c575e8b8eb3755"),
    ("q7", 1_000_000, 10, "6362b4cf14df644c"),
    ("q8", 1_000_000, 8_549, "bd92ca9a582a55e4"),
    ("q0", 400_000_000, 400_000_000, "13f4662d6bce5531"),
    ("q1", 400_000_000, 368_000_000, "0ab1de8c1437221e"),
    ("q3", 84_000_000, 505_448, "6b329e2d607cca84"),
    ("q3", 300_000_000, 1_800_326, "258120818ebf5540"),
    ("q5", 14_000_000, 746, "a91a56f8035f487e"),
    ("q5", 28_000_000, 1_481, "b344d451cdd3ba5d"),
    ("q7", 100_000_000, 1_007, "9e4bd4438382f82f"),
    ("q8", 70_000_000, 587_568, "756bf33d1f3ea918"),
    ("q8", 200_000_000, 1_677_860, "898fce7c1504eeba"),
];

/// Runs the queries of Nexmark that have published results of as many events.
pub fn smoke(args: &Args, records: u64) -> Result<(), String> {
    let args = Args { records: Some(records), ..args.clone() };
    for (query, ..) in PUBLISHED.iter().filter(|row| row.1 == records) {
        nexmark(&args, query)?;
    }
    Ok(())
}

/// Runs a query of Nexmark and checks what comes out.
pub fn nexmark(args: &Args, query: &'static str) -> Measured {
    let lasting = match query {
        "q5" => 28_000_000,
        "q7" => 100_000_000,
        "q8" => 200_000_000,
        "q3" => 300_000_000,
        _ => 400_000_000,
    };
    let records = args.records.unwrap_or(lasting);
    let report = run(args, query, records, move |job| {
        let events = nexmark_queries::source(job, records);
        nexmark_queries::digests(query, events).expect("a query of the list")
    })?;
    let known = PUBLISHED.iter().filter(|row| row.0 == query);
    checked(report, known.map(|row| (row.1, row.2, row.3)))
}

/// Runs a job whose results are numbers.
pub fn run(
    args: &Args,
    name: &str,
    records: u64,
    build: impl for<'a> Fn(&Job<'a>) -> Stream<'a, u64> + Send + Sync + 'static,
) -> Measured {
    let mut config = args.job(name)?;
    let directory = tempfile::tempdir().map_err(|error| format!("temporary directory: {error}"))?;
    // Without checkpoints nothing is kept anywhere.
    config.checkpoints.directory = args.checkpoint_interval.0.map(|_| directory.path().to_owned());
    let sink = Discard::counting(|digest: &u64| *digest);
    let (totals, handle) = (sink.handle(), JobHandle::default());
    let watch = Stopwatch::start();
    let ran = job::execute(config, &handle, move |job| {
        build(job).sink("results", sink.clone());
        Ok(())
    });
    ran.map_err(|error| error.to_string())?;
    let (results, digest) = totals.totals();
    let checkpoints = report::checkpoints(&handle.counters().checkpoints());
    let own = Args { records: Some(records), ..args.clone() };
    Ok(watch.report(&own, results, digest, checkpoints))
}

/// Checks a report against what is known: records, results, digest.
pub fn checked(
    report: Value,
    mut known: impl Iterator<Item = (u64, u64, &'static str)>,
) -> Measured {
    let records = report["parameters"]["records"].as_u64();
    match known.find(|row| Some(row.0) == records) {
        Some((_, results, digest))
            if report["results"].as_u64() != Some(results) || report["digest"] != *digest =>
        {
            Err(format!("expected {results} results with the digest {digest}: {report}"))
        }
        _ => Ok(report),
    }
}
