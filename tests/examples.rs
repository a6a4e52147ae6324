//! Runs the examples, and compares what they find with what naive programs find.

#![allow(clippy::unwrap_used, reason = "what is not as expected fails the test")]
#![allow(clippy::duplicate_mod, reason = "each example is a program of its own")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

use highwater::job::{JobHandle, execute};
use highwater::prelude::*;
use highwater::testing::{FaultSink, Simulation, Trickle, each_seed, fewer};
use tempfile::TempDir;

#[path = "../examples/enrich.rs"]
#[expect(dead_code, reason = "the tests have a main of their own")]
mod enrich;
#[path = "../examples/fraud.rs"]
#[expect(dead_code, reason = "the tests have a main of their own")]
mod fraud;
#[path = "../examples/graph.rs"]
#[expect(dead_code, reason = "the part of the example that is a program")]
mod graph;
#[path = "../examples/sessions.rs"]
#[expect(dead_code, reason = "the tests have a main of their own")]
mod sessions;
#[path = "../examples/simulate.rs"]
mod simulate;
#[path = "../examples/top_pages.rs"]
#[expect(dead_code, reason = "the tests have a main of their own")]
mod top_pages;

use sessions::access_log::Hit;

const LOG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/access.log");

/// Runs an example with two workers, the flags of its own that are given, and a directory for its output, which is returned.
fn run<A: clap::Args + Send + Sync + 'static>(
    build: fn(&Job<'_>, &A) -> highwater::Result<()>,
    flags: &[&str],
) -> TempDir {
    let output = tempfile::tempdir().unwrap();
    let line = ["example", "--workers", "2", "--output", output.path().to_str().unwrap()];
    let line = line.iter().chain(flags).map(OsString::from);
    let (args, resolved) = highwater::cli::parse_with::<A>("example", line, []).unwrap();
    execute(resolved.config, &JobHandle::default(), move |job| build(job, &args)).unwrap();
    output
}

/// All lines that a job has written to a directory, in order.
fn written(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.is_file());
    let mut lines: Vec<String> = files
        .flat_map(|path| {
            fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    lines.sort();
    lines
}

fn sorted(lines: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut lines: Vec<String> = lines.into_iter().collect();
    lines.sort();
    lines
}

/// Numbers that look random.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// The log in `examples/data`: two days of forty clients, each of which comes a few times, and sometimes comes back just
/// before or just after its session is over. Lines are in the order of the answers, up to 40 s after the requests.
fn made_up_log() -> String {
    let mut dice = Dice(2026);
    let mut lines = Vec::new();
    for client in 0..40 {
        let mut second = dice.roll(50_000);
        while second < 2 * 86_400 {
            for _ in 0..=dice.roll(12) {
                let page =
                    ["/", "/about", "/news", "/shop", "/shop/cart", "/img/logo.png", "/feed"]
                        [(dice.roll(7) * dice.roll(8) / 7) as usize];
                let (day, time) = (20 + second / 86_400, second % 86_400);
                let (hour, minute) = (time / 3_600, time / 60 % 60);
                lines.push((
                    second + dice.roll(41),
                    format!(
                        "192.0.2.{client} - - [{day}/Nov/2026:{hour:02}:{minute:02}:{:02} +0000] \"GET {page} HTTP/1.1\" \
                         200 {}",
                        time % 60,
                        300 + dice.roll(9_000)
                    ),
                ));
                second += 1 + dice.roll(300);
            }
            second += match dice.roll(4) {
                0 => 1_500 + dice.roll(600),
                _ => 6_000 + dice.roll(40_000),
            };
        }
    }
    lines.sort();
    let mut text = String::new();
    for (number, (_, line)) in lines.iter().enumerate() {
        // Two lines were cut when the disk was full.
        text.push_str(if number == 100 || number == 300 { &line[..30] } else { line });
        text.push('\n');
    }
    text
}

#[test]
fn the_log_is_the_one_that_its_notice_describes() {
    let log = made_up_log();
    if std::env::var_os("HIGHWATER_WRITE_LOG").is_some() {
        fs::write(LOG, &log).unwrap();
    }
    assert!(log.len() < 200_000, "{} bytes", log.len());
    assert!(fs::read_to_string(LOG).unwrap() == log, "the log is not the one that is made up here");
}

#[test]
fn a_line_of_a_log_is_read_in_any_zone_and_a_leap_year() {
    let time = |stamp: &str| {
        let line = format!("192.0.2.7 - ann [{stamp}] \"GET /a?b=c HTTP/1.1\" 200 17");
        Hit::parse(&line).map(|hit| {
            assert_eq!((hit.client.as_str(), hit.path.as_str()), ("192.0.2.7", "/a?b=c"));
            hit.at
        })
    };
    assert_eq!(time("01/Jan/1970:00:00:00 +0000"), Some(0));
    assert_eq!(time("29/Feb/2024:12:30:15 +0000"), Some(1_709_209_815_000));
    assert_eq!(time("29/Feb/2024:14:00:15 +0130"), Some(1_709_209_815_000));
    assert_eq!(time("29/Feb/2024:07:30:15 -0500"), Some(1_709_209_815_000));
    assert_eq!(time("29/Fev/2024:07:30:15 -0500"), None);
}

#[test]
fn sessions_end_after_half_an_hour_of_silence_and_what_cannot_be_read_is_kept() {
    let output = run(sessions::job, &["--input", LOG]);

    let log = fs::read_to_string(LOG).unwrap();
    let mut clients: BTreeMap<String, Vec<Hit>> = BTreeMap::new();
    for hit in log.lines().filter_map(Hit::parse) {
        clients.entry(hit.client.clone()).or_default().push(hit);
    }
    let mut expected = Vec::new();
    for (client, hits) in &mut clients {
        hits.sort_by(|a, b| (a.at, &a.path).cmp(&(b.at, &b.path)));
        for session in hits.chunk_by(|a, b| b.at - a.at <= sessions::GAP.as_millis() as i64) {
            let (first, last) = (&session[0], &session[session.len() - 1]);
            expected.push(format!(
                "{client}: {} pages in {} minutes, from {}",
                session.len(),
                (last.at - first.at) / 60_000,
                first.path
            ));
        }
    }
    assert!(expected.len() > 2 * clients.len(), "too few sessions to compare");
    assert_eq!(written(&output.path().join("sessions")), sorted(expected));
    let unread = log.lines().filter(|line| Hit::parse(line).is_none()).map(str::to_owned);
    assert_eq!(written(&output.path().join("rejected")), sorted(unread));
}

#[test]
fn the_pages_of_each_hour_are_those_that_were_asked_for_most() {
    let output = run(top_pages::job, &["--input", LOG, "--pages", "3"]);

    let mut hours: BTreeMap<i64, BTreeMap<String, u64>> = BTreeMap::new();
    for hit in fs::read_to_string(LOG).unwrap().lines().filter_map(Hit::parse) {
        *hours.entry(hit.at / 3_600_000).or_default().entry(hit.path).or_default() += 1;
    }
    let mut expected = Vec::new();
    for (hour, pages) in hours {
        let ranking: BTreeSet<_> =
            pages.into_iter().map(|(page, count)| (u64::MAX - count, page)).collect();
        for (place, (rest, page)) in (1..=3).zip(ranking) {
            let (day, hour, count) = (hour / 24, hour % 24, u64::MAX - rest);
            expected.push(format!("day {day}, {hour:02}:00  {place}. {page} ({count})"));
        }
    }
    assert!(expected.len() > 60, "too few hours to compare");
    assert_eq!(written(output.path()), sorted(expected));
}

/// Looks back from every large payment.
fn naive_alarms(payments: impl Iterator<Item = fraud::Payment>) -> Vec<String> {
    let mut cards: BTreeMap<u64, Vec<fraud::Payment>> = BTreeMap::new();
    let mut payments: Vec<_> = payments.collect();
    payments.sort_by_key(|payment| payment.at);
    let mut alarms = Vec::new();
    for payment in payments {
        let since = cards.entry(payment.card).or_default();
        if !payment.is_large() {
            since.push(payment);
            continue;
        }
        let within = fraud::WITHIN.as_millis() as i64;
        let near = |trial: &&fraud::Payment| payment.at - trial.at < within && trial.is_small();
        let mut trials = since.iter().filter(near);
        if let (Some(first), Some(_)) = (trials.next(), trials.next()) {
            let (cents, seconds) = (payment.cents, (payment.at - first.at) / 1000);
            let (card, whole, part) = (payment.card, cents / 100, cents % 100);
            alarms.push(format!(
                "card {card}: {whole}.{part:02} gone {seconds} s after a first trial"
            ));
            since.clear();
        }
    }
    sorted(alarms)
}

#[test]
fn every_theft_is_found_once() {
    let output = run(fraud::job, &["--payments", "20000"]);
    let expected = naive_alarms((0..20_000).map(fraud::Payment::made_up));
    assert!(expected.len() > 20, "too few thefts to compare");
    assert_eq!(written(output.path()), expected);
}

#[test]
fn every_theft_is_found_once_through_crashes_at_any_parallelism() {
    each_seed("every_theft_is_found_once_through_crashes_at_any_parallelism", 3, "", |seed| {
        let records = fewer(150);
        // Few cards, so that much happens.
        let payment = |number| {
            let payment = fraud::Payment::made_up(number);
            fraud::Payment { card: payment.card % 5, ..payment }
        };
        let sink = Collect::new();
        let found = sink.handle();
        let outcome =
            Simulation::new(seed).crashes(3).panics(1).commit_errors(0.05).run(move |job| {
                let source =
                    Trickle::new(seed, 2, records, move |split, index| payment(index * 2 + split));
                let time = EventTime::monotonic(|payment: &fraud::Payment| payment.at);
                fraud::alarms(job.source_with("payments", source, time))
                    .sink("alarms", FaultSink::new(sink.clone()));
                Ok(())
            });
        outcome.check();
        assert!(outcome.checkpoints > 2, "{} checkpoints", outcome.checkpoints);
        let expected = naive_alarms((0..2 * records).map(payment));
        assert!(expected.len() > 2 || records < 150, "too few thefts to compare");
        assert_eq!(sorted(found.committed()), expected);
    });
}

/// The line of an order.
fn named_order(number: u64) -> String {
    let (number, customer) = enrich::order(number);
    match enrich::name_of(customer) {
        Some(name) => format!("order {number} is from {name}"),
        None => format!("order {number} is from somebody ({customer})"),
    }
}

#[test]
fn orders_have_the_names_of_their_customers_or_none() {
    let output = run(enrich::job, &["--orders", "500", "--service-micros", "100"]);
    assert_eq!(written(output.path()), sorted((0..500).map(named_order)));
}

#[test]
fn orders_are_named_once_through_crashes() {
    each_seed("orders_are_named_once_through_crashes", 5, "", |seed| {
        let records = fewer(100);
        let sink = Collect::new();
        let found = sink.handle();
        let outcome = Simulation::new(seed).crashes(2).run(move |job| {
            let orders = Trickle::new(seed, 1, records, |_, index| enrich::order(index));
            enrich::named(job.source("orders", orders), Duration::ZERO).sink("out", sink.clone());
            Ok(())
        });
        outcome.check();
        assert_eq!(sorted(found.committed()), sorted((0..records).map(named_order)));
    });
}

#[test]
fn facts_about_a_graph_stay_right_through_kills_and_on_any_number_of_workers() {
    // It asserts what it finds.
    graph::demonstrate();
}

#[test]
fn the_simulator_finds_the_bugs_of_the_example_and_passes_the_sink_that_is_right() {
    // It asserts what it finds.
    simulate::main();
}
