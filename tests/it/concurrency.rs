//! When checkpoints are taken, and how many at once.

use std::time::Duration;

use highwater::config::{JobConfig, RestartStrategy};
use highwater::format::record::{CheckpointOutcome, CheckpointRecord};
use highwater::prelude::*;

use crate::support::{Background, Scratch, history, run};

/// A job whose barriers take a while: its operator needs a millisecond for each record.
fn slow(config: JobConfig, records: u64) -> Result<(), highwater::Error> {
    run(config, move |job| {
        job.source("numbers", Generator::new(records, |i| i))
            .key_by(|n| n % 7)
            .process("slow", Value::<u64>::new("count"), |_, n, count, out| {
                std::thread::sleep(Duration::from_millis(1)); // Fault: a slow operator.
                *count.or_default() += 1;
                out.emit(n);
            })
            .sink("out", Discard::new());
        Ok(())
    })
}

fn span(record: &CheckpointRecord) -> (u64, u64) {
    (record.triggered_unix_ms, record.triggered_unix_ms + record.duration_ms)
}

/// The largest number of checkpoints that were in progress at once. Times are in whole milliseconds, so one that begins
/// in the millisecond in which another ends is behind it.
fn most_at_once(records: &[CheckpointRecord]) -> usize {
    let spans: Vec<_> = records.iter().map(span).collect();
    let at = |time: u64| spans.iter().filter(|(from, to)| *from < time && time < *to).count();
    spans.iter().map(|(from, _)| at(*from + 1)).max().unwrap()
}

#[test]
fn two_checkpoints_may_be_in_progress_at_once_and_never_three() {
    let scratch = Scratch::new();
    let mut config = scratch.config(2);
    config.checkpoints.interval = Some(Duration::from_millis(20));
    config.checkpoints.concurrent_max = 2;
    slow(config, 3_000).unwrap();
    let records = history(&scratch);
    assert!(records.len() > 3, "{records:?}");
    assert_eq!(most_at_once(&records), 2);
    scratch.assert_directory_is_the_reachable_set();
}

#[test]
fn one_checkpoint_at_a_time_is_the_default() {
    let scratch = Scratch::new();
    let mut config = scratch.config(2);
    config.checkpoints.interval = Some(Duration::from_millis(20));
    slow(config, 2_000).unwrap();
    let records = history(&scratch);
    assert!(records.len() > 2, "{records:?}");
    assert_eq!(most_at_once(&records), 1);
}

#[test]
fn a_pause_lies_between_the_end_of_a_checkpoint_and_the_next() {
    let scratch = Scratch::new();
    let mut config = scratch.config(2);
    config.checkpoints.min_pause = Duration::from_millis(60);
    let job = Background::start(config, |job| {
        job.source("numbers", Generator::new(30_000, |i| i).paced(0, 50_000))
            .sink("out", Discard::new());
        Ok(())
    });
    job.end().unwrap();
    let records = history(&scratch);
    assert!(records.len() > 3, "{records:?}");
    // The final one waits for no pause.
    for pair in records[..records.len() - 1].windows(2) {
        let pause = pair[1].triggered_unix_ms as i64 - span(&pair[0]).1 as i64;
        assert!(pause >= 58, "{pause} ms between {pair:?}");
    }
}

#[test]
fn a_checkpoint_that_takes_too_long_is_aborted_and_the_job_goes_on() {
    let scratch = Scratch::new();
    let mut config = scratch.config(2);
    config.checkpoints.timeout = Duration::from_millis(5);
    // The final one has all the time it needs: nothing is queued before it.
    slow(config, 1_500).unwrap();
    let records = history(&scratch);
    let aborted: Vec<&str> = records
        .iter()
        .filter_map(|record| match &record.outcome {
            CheckpointOutcome::Aborted { reason } => Some(reason.as_str()),
            _ => None,
        })
        .collect();
    assert!(!aborted.is_empty(), "{records:?}");
    assert!(aborted.iter().all(|why| why.contains("expired while waiting for")), "{aborted:?}");
    assert_eq!(records.last().unwrap().outcome, CheckpointOutcome::Complete);
    scratch.assert_directory_is_the_reachable_set();
}

#[test]
fn more_failed_checkpoints_in_a_row_than_are_tolerated_fail_the_job() {
    let scratch = Scratch::new();
    let mut config = scratch.config(1);
    config.checkpoints.timeout = Duration::from_millis(2);
    config.checkpoints.tolerable_failures = Some(2);
    config.restart = RestartStrategy::None;
    let text = slow(config, 20_000).unwrap_err().to_string();
    assert!(text.contains("3") && text.contains("checkpoint"), "{text}");
    assert!(text.contains("expired"), "{text}");
    let records = history(&scratch);
    assert_eq!(records.len(), 3, "{records:?}");
}
