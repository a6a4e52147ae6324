//! Tumbling windows of a second of event time: a count and a sum for each key and window.

use std::time::Duration;

use highwater::connect::{Generator, workload};
use highwater::prelude::*;
use highwater_operators::{Aggregate, KeyedWindows, Windows};

use crate::Measured;
use crate::args::Args;
use crate::latency;
use crate::query;

/// Results that were computed by other programs: records, keys, results, digest.
const PUBLISHED: [(u64, u64, u64, &str); 6] = [
    (20_000, 1_000, 1_000, "4a1dd59a6ab6c053"),
    (2_000_000, 1_000, 2_000, "3c813aaed611f2df"),
    (4_800_000, 1_000, 5_000, "de39b4089d7a5ae0"),
    (96_000_000, 1_000, 96_000, "f1605cc844644e97"),
    (1_600_000, 1_000_000, 1_083_333, "9e91dc1cb6793919"),
    (12_800_000, 1_000_000, 8_135_724, "0306d04f7955637d"),
];

/// Events in a millisecond of event time.
const PER_MILLISECOND: u64 = 1_000;

/// A count and a sum of values that come with a time.
#[derive(Clone, Copy)]
struct CountAndSum;

impl Aggregate for CountAndSum {
    type Input = (u64, u64);
    type State = (u64, u64);
    type Output = (u64, u64);

    #[inline]
    fn create(&self, (_, value): (u64, u64)) -> (u64, u64) {
        (1, value)
    }

    #[inline]
    fn add(&self, state: &mut (u64, u64), (_, value): (u64, u64)) {
        state.0 += 1;
        state.1 = state.1.wrapping_add(value);
    }

    fn merge(&self, state: &mut (u64, u64), other: (u64, u64)) {
        state.0 += other.0;
        state.1 = state.1.wrapping_add(other.1);
    }

    #[inline]
    fn result(&self, state: &(u64, u64)) -> (u64, u64) {
        *state
    }
}

/// Runs it and checks what comes out.
pub fn run(args: &Args) -> Measured {
    let keys = args.keys();
    let records = args.records.unwrap_or(if keys <= 100_000 { 96_000_000 } else { 12_800_000 });
    let slide = Duration::from_millis(args.slide.unwrap_or(1_000));
    let windows = Windows::sliding(Duration::from_secs(1), slide);
    let report = query::run(args, "window", records, move |job| {
        let time = EventTime::monotonic(|event: &(u64, u32, u64)| i64::from(event.1));
        let event = move |index| {
            let (key, value) = workload::key_value(index, keys, 0);
            (key, (index / PER_MILLISECOND) as u32, value)
        };
        job.source_with("events", Generator::new(records, event), time)
            .into_keyed(|(key, time, value)| (key, (u64::from(time), value)))
            .window(windows.clone(), |(time, _)| *time as i64)
            .aggregate("window", CountAndSum)
            .map(|(key, window, (count, sum))| {
                workload::fold([window.start as u64, key, count, sum])
            })
    })?;
    let published = PUBLISHED.iter().filter(|_| args.slide.is_none());
    let known = published.map(|row| (row.0, row.1, row.2, row.3));
    query::checked(report, known.filter(|row| row.1 == keys).map(|row| (row.0, row.2, row.3)))
}

/// Runs windows of a second under an open loop, and says how long after its end was due the results of each came.
pub fn measure_latency(args: &Args) -> Measured {
    let keys = args.keys();
    let (report, counted) =
        latency::measure(args, "window-latency", keys, 0, move |job, records, rate| {
            let event = move |index, due: u64| {
                let (key, value) = workload::key_value(index, keys, 0);
                (key, value, due)
            };
            let time = EventTime::monotonic(|event: &(u64, u64, u64)| (event.2 / 1_000) as i64);
            job.source_with("events", Generator::scheduled(records, 0, rate, event), time)
                .into_keyed(|(key, value, due)| (key, (due, value)))
                .window(Windows::tumbling(Duration::from_secs(1)), |(due, _)| (*due / 1_000) as i64)
                .aggregate("window", CountAndSum)
                .map(|(key, window, (count, sum))| (key, count, sum, window.end as u64 * 1_000))
        })?;
    match report["parameters"]["records"].as_u64() {
        Some(records) if records == counted => Ok(report),
        records => Err(format!("{counted} records were in windows, of {records:?}: {report}")),
    }
}
