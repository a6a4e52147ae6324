//! A whole job that fails in the middle, against a computation that never ran on Highwater.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use highwater::config::{JobConfig, RestartStrategy};
use highwater::ids::Name;
use highwater::job::{JobHandle, execute};
use highwater::prelude::*;

const RECORDS: u64 = 2_000_000;
const KEYS: u64 = 1_000;

#[test]
fn a_job_that_panics_commits_what_an_uninterrupted_run_would() {
    // I8
    let directory = tempfile::tempdir().unwrap();
    let mut config = JobConfig::new(Name::new("sums").unwrap());
    config.workers = 2;
    config.checkpoints.directory = Some(directory.path().to_owned());
    config.checkpoints.interval = Some(Duration::from_millis(10));
    config.restart = RestartStrategy::FixedDelay { attempts: 1, delay: Duration::from_millis(10) };
    let handle = JobHandle::default();
    let collect = Collect::new();
    let collected = collect.handle();
    let panicked = Arc::new(AtomicBool::new(false));
    let (seen, panicking) = (handle.clone(), Arc::clone(&panicked));
    execute(config, &handle, move |job| {
        let (seen, panicking) = (seen.clone(), Arc::clone(&panicking));
        job.source("numbers", Generator::new(RECORDS, |index| (index % KEYS, index)))
            .into_keyed(|pair: (u64, u64)| pair)
            .process("sum", Value::<(u64, u64)>::new("sum"), move |key, value, sum, out| {
                let (count, sum) = sum.or_default();
                (*count, *sum) = (*count + 1, *sum + value);
                if *count == RECORDS / KEYS {
                    out.emit((*key, *sum));
                } else if *count % 100 == 0
                    && seen.counters().checkpoints().completed.len() >= 2
                    && !panicking.swap(true, Ordering::SeqCst)
                {
                    panic!("on purpose");
                }
            })
            .sink("sums", collect.clone());
        Ok(())
    })
    .unwrap();
    assert!(panicked.load(Ordering::SeqCst), "the job ended before it could fail");
    assert_eq!(handle.counters().restarts(), 1);
    let mut expected: BTreeMap<u64, u64> = BTreeMap::new();
    for index in 0..RECORDS {
        *expected.entry(index % KEYS).or_default() += index;
    }
    let mut committed = collected.committed();
    committed.sort_unstable();
    assert_eq!(committed, expected.into_iter().collect::<Vec<_>>());
}
