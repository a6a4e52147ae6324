//! At-least-once: nothing is held back, and nothing is lost.

use std::collections::BTreeMap;

use highwater::config::CheckpointMode;
use highwater::prelude::*;

use crate::failure::Faults;
use crate::support::{Scratch, difference, quiet_panics, run};

const RECORDS: u64 = 30_000;
const KEYS: u64 = 53;

#[test]
fn no_record_is_lost_when_nothing_is_held_back() {
    quiet_panics();
    for workers in 1..=3 {
        let scratch = Scratch::new();
        let mut config = scratch.config(workers);
        config.checkpoints.mode = CheckpointMode::AtLeastOnce;
        let collect = Collect::new();
        let (sink, faults) = (collect.clone(), Faults::at([3_000, 11_000, 20_000, 29_000]));
        let planted = faults.clone();
        run(config, move |job| {
            let faults = faults.clone();
            job.source("numbers", Generator::new(RECORDS, |i| i).paced(0, 150_000))
                .key_by(|n| n % KEYS)
                .process("count", Value::<u64>::new("count"), move |_, n, count, out| {
                    faults.pass();
                    *count.or_default() += 1;
                    out.emit((n, *count.or_default()));
                })
                .sink("out", sink.clone());
            Ok(())
        })
        .unwrap();
        assert_eq!(planted.happened(), 4);
        let committed = collect.handle().committed();
        let loss = difference(0..RECORDS, committed.iter().map(|(n, _)| *n)).loss;
        assert!(loss.is_empty(), "LOSS {}", loss.len());
        let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
        for (n, count) in committed {
            let last = counts.entry(n % KEYS).or_default();
            *last = count.max(*last);
        }
        for key in 0..KEYS {
            let total = (0..RECORDS).filter(|n| n % KEYS == key).count() as u64;
            assert!(counts[&key] >= total, "key {key}: {} of {total}", counts[&key]);
        }
        scratch.assert_directory_is_the_reachable_set();
    }
}
