//! Sessions of a web log: who was there, for how long, and how many pages they saw.
//!
//! A session of a client is over when it has asked for nothing for half an hour. Lines that cannot be read go another way.
//!
//! `cargo run --example sessions`, then look into `visits/sessions` and `visits/rejected`.

use std::path::PathBuf;
use std::time::Duration;

use highwater::prelude::*;
use highwater_operators::{Aggregate, KeyedWindows, Windows};
use serde::{Deserialize, Serialize};

pub mod access_log;
use access_log::Hit;

/// A session is over after so much silence.
pub const GAP: Duration = Duration::from_secs(30 * 60);

/// A server writes a line when it has answered: a long answer comes behind shorter ones that were asked for later.
const DISORDER: Duration = Duration::from_secs(60);

/// What to read, and where to write to.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Logs in the common log format; plain, .gz or .zst.
    #[arg(long, default_value = "examples/data/access.log")]
    pub input: String,
    /// Directory for what comes of them.
    #[arg(long, default_value = "visits")]
    pub output: PathBuf,
}

/// What the hits of a session come to.
struct Visit;

/// The first hit, when the last one was, and their number.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seen(Hit, i64, u64);

impl Aggregate for Visit {
    type Input = Hit;
    type State = Seen;
    type Output = Seen;

    fn create(&self, first: Hit) -> Seen {
        let at = first.at;
        Seen(first, at, 1)
    }

    fn add(&self, seen: &mut Seen, hit: Hit) {
        self.merge(seen, self.create(hit));
    }

    /// Two sessions become one when a hit falls between them.
    fn merge(&self, seen: &mut Seen, other: Seen) {
        // Hits of one moment in the order of their paths: the result must not depend on which worker was faster.
        if (other.0.at, &other.0.path) < (seen.0.at, &seen.0.path) {
            seen.0 = other.0;
        }
        seen.1 = seen.1.max(other.1);
        seen.2 += other.2;
    }

    fn result(&self, seen: &Seen) -> Seen {
        seen.clone()
    }
}

/// The job: it reads lines, and writes a line for each session, and the lines that it could not read.
pub fn job(job: &Job<'_>, args: &Args) -> highwater::Result<()> {
    let time = EventTime::new(WatermarkStrategy::bounded(DISORDER), |line: &String| {
        // What has no time must not move time on.
        access_log::time(line).unwrap_or(i64::MIN)
    });
    let (hits, rejected) = job.source_with("log", Files::glob(&args.input), time).split(|line| {
        match Hit::parse(&line) {
            Some(hit) => Either::Left(hit),
            None => Either::Right(line),
        }
    });
    hits.into_keyed(|hit| (hit.client.clone(), hit))
        .window(Windows::session(GAP), |hit| hit.at)
        .aggregate_with("sessions", Visit, |client, _, Seen(first, last, pages), out| {
            let minutes = (last - first.at) / 60_000;
            out.emit(format!("{client}: {pages} pages in {minutes} minutes, from {}", first.path));
        })
        .sink("visits", FileSink::lines(args.output.join("sessions")));
    rejected.sink("rejected", FileSink::lines(args.output.join("rejected")));
    Ok(())
}

fn main() -> highwater::Result<()> {
    highwater::run_with("sessions", job)
}
