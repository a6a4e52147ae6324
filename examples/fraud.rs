//! Stolen cards: two small payments to try a card, and a large one within a minute of the first.
//!
//! `cargo run --example fraud`, then look into `alarms`.

use std::path::PathBuf;
use std::time::Duration;

use highwater::prelude::*;
use highwater_operators::{Detect, Detected, Pattern, Skip};
use serde::{Deserialize, Serialize};

/// How many payments, and where to write alarms to.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Number of payments.
    #[arg(long, default_value_t = 50_000)]
    pub payments: u64,
    /// Directory for the alarms.
    #[arg(long, default_value = "alarms")]
    pub output: PathBuf,
}

/// Money that leaves a card.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Payment {
    /// Milliseconds of event time.
    pub at: i64,
    /// The number of the card.
    pub card: u64,
    /// How much.
    pub cents: u64,
}

impl Payment {
    /// The payment with this number: always the same one, so that a restart reads what was there before.
    pub fn made_up(number: u64) -> Self {
        let random = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (number >> 3);
        let random = (random ^ (random >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let cents = match (random >> 40) % 10 {
            0..=2 => 1 + (random >> 50) % 300,
            3 => 50_000 + (random >> 48) % 100_000,
            _ => 1_000 + (random >> 48) % 20_000,
        };
        Self { at: number as i64 * 200, card: (random >> 20) % 300, cents }
    }

    /// Whether somebody may only want to see whether the card works.
    pub fn is_small(&self) -> bool {
        self.cents < 300
    }

    /// Whether it is worth a theft.
    pub fn is_large(&self) -> bool {
        self.cents >= 50_000
    }
}

/// The time in which a stolen card is tried and used.
pub const WITHIN: Duration = Duration::from_secs(60);

/// An alarm for each theft.
pub fn alarms<'a>(payments: Stream<'a, Payment>) -> Stream<'a, String> {
    // Other payments of the owner may come between, so each stage follows at a distance. A payment is part of one alarm only.
    let theft = Pattern::begin("trial", Payment::is_small)
        .times(2..=2)
        .followed_by("theft", Payment::is_large)
        .within(WITHIN)
        .skip(Skip::PastLastEvent);
    payments.key_by(|payment| payment.card).detect(
        "thefts",
        theft,
        |payment| payment.at,
        |card, detected| {
            // What has timed out was no theft, and nothing here is late.
            let Detected::Match(found) = detected else { return None };
            let (trial, theft) = (found.first("trial")?, found.first("theft")?);
            let (cents, seconds) = (theft.cents, (theft.at - trial.at) / 1000);
            let (whole, part) = (cents / 100, cents % 100);
            Some(format!("card {card}: {whole}.{part:02} gone {seconds} s after a first trial"))
        },
    )
}

/// The job.
pub fn job(job: &Job<'_>, args: &Args) -> highwater::Result<()> {
    let time = EventTime::monotonic(|payment: &Payment| payment.at);
    let source = Generator::new(args.payments, Payment::made_up);
    alarms(job.source_with("payments", source, time)).sink("alarms", FileSink::lines(&args.output));
    Ok(())
}

fn main() -> highwater::Result<()> {
    highwater::run_with("fraud", job)
}
