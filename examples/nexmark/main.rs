//! Nexmark: the queries of an auction house.
//!
//! `cargo run --release --example nexmark -- --query q5 --records 1000000 --workers 2` prints the results of a query as one line:
//! how many there are, and a digest of all of them. Of a query that emits changes, these are counted, and the digest is that of what they
//! come to. What each query is, the documentation of its function says. All flags of Highwater work as well; see `--help`.

mod events;
mod queries;

use clap::builder::PossibleValuesParser;
use highwater::prelude::*;

/// What to run.
#[derive(Clone, Debug, clap::Args)]
struct Flags {
    /// The query.
    #[arg(long, default_value = "q5", value_parser = PossibleValuesParser::new(queries::QUERIES))]
    query: String,
    /// Number of events.
    #[arg(long, default_value_t = 1_000_000)]
    records: u64,
}

fn main() -> highwater::Result<()> {
    let results = Discard::counting(|digest: &u64| *digest);
    let totals = results.handle();
    highwater::run_with("nexmark", move |job, flags: &Flags| {
        queries::digests(&flags.query, queries::source(job, flags.records))
            .expect("the command line knows the queries")
            .sink("results", results.clone());
        Ok(())
    })?;
    let (count, digest) = totals.totals();
    println!("{count} results, digest {digest:016x}");
    Ok(())
}
