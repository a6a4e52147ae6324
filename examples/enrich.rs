//! Orders with the names of the customers, whom a slow service knows.
//!
//! The service is asked about many customers at once, a few answers are remembered, and a call that fails is tried again. No
//! worker waits: while an answer is on its way others are dealt with.
//!
//! `cargo run --example enrich`, then look into `named`.

use std::path::PathBuf;
use std::time::Duration;

use highwater::job::Blocking;
use highwater::prelude::*;
use highwater_operators::{LookupCache, LookupJoin};

/// How many orders, and where to write them to.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Number of orders.
    #[arg(long, default_value_t = 2_000)]
    pub orders: u64,
    /// How long the service takes for an answer, in microseconds.
    #[arg(long, default_value_t = 500)]
    pub service_micros: u64,
    /// Directory for the orders with names.
    #[arg(long, default_value = "named")]
    pub output: PathBuf,
}

/// A number, and whose it is.
pub type Order = (u64, u64);

/// The order with this number.
pub fn order(number: u64) -> Order {
    (number, number * number % 211)
}

/// What the service knows: nothing of one customer in ten.
pub fn name_of(customer: u64) -> Option<String> {
    let first = ["Ada", "Bao", "Cleo", "Dina", "Emil", "Fatma", "Goran"][customer as usize % 7];
    (!customer.is_multiple_of(10)).then(|| format!("{first} No. {customer}"))
}

/// Every order with its customer, as a line.
pub fn named<'a>(orders: Stream<'a, Order>, service: Duration) -> Stream<'a, String> {
    let service = Blocking::new(8, move |customer: u64| {
        // pace: this stands for a call over the network.
        std::thread::sleep(service);
        name_of(customer).ok_or_else(|| ConnectError::new(format!("no customer {customer}")))
    });
    // Who is not known is no reason to stop: after the last try there is no name.
    let service = service.or_else(|_, _| Vec::new());
    let settings = AsyncSettings::unordered()
        .capacity(64)
        .timeout(Duration::from_secs(10))
        .retries(1, Duration::from_millis(1), Duration::from_millis(2));
    let cache = LookupCache::entries(100).time_to_live(Duration::from_secs(60));
    orders.left_lookup_join("customers", |(_, customer)| *customer, service, cache, settings).map(
        |((number, customer), name)| {
            let name = name.unwrap_or_else(|| format!("somebody ({customer})"));
            format!("order {number} is from {name}")
        },
    )
}

/// The job.
pub fn job(job: &Job<'_>, args: &Args) -> highwater::Result<()> {
    let orders = job.source("orders", Generator::new(args.orders, order));
    named(orders, Duration::from_micros(args.service_micros))
        .sink("named", FileSink::lines(&args.output));
    Ok(())
}

fn main() -> highwater::Result<()> {
    highwater::run_with("enrich", job)
}
