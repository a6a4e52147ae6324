//! Restores of restores.

use std::collections::BTreeMap;
use std::time::Duration;

use highwater::prelude::*;

use super::shapes::Shape;
use super::{Case, KEYS, logged, newest, unaligned};
use crate::support::{Background, Random, Scratch, quiet_panics, seed};

/// The queues that were restored are slow to drain; meanwhile checkpoints complete, and one of them is restored before
/// the queues are empty; and so on.
#[test]
fn checkpoints_taken_while_restored_records_wait_are_restored_themselves() {
    const CHAIN: u32 = 5;
    quiet_panics();
    for shape in [Shape::TwoInputs, Shape::Pipeline] {
        let scratch = Scratch::new();
        let directory = scratch.checkpoints();
        let mut config = unaligned(&scratch, 2);
        let case = Case::new(shape.sources(), KEYS, 2);
        let shared = case.clone();
        let build = move |job: &Job<'_>| {
            shape.build(job, &shared);
            Ok(())
        };
        case.run_into_backlog(&config, 1, false, build.clone());
        let mut undrained = 0;
        // A busy machine may have drained a queue: then it counts for nothing, and another one has to be.
        for workers in [3, 1, 4, 2].into_iter().cycle().take(40) {
            let restored = logged(&directory);
            config.workers = workers;
            case.slow.set(1);
            let before = newest(&directory);
            let job = Background::start(config.clone(), build.clone());
            job.wait_for_checkpoints(3);
            let mut released: BTreeMap<String, u64> = BTreeMap::new();
            for channel in job.handle.counters().channels() {
                *released.entry(channel.name.to_string()).or_default() += channel.released_records;
            }
            job.handle.cancel();
            job.end().unwrap();
            assert!(newest(&directory) >= before + 3);
            let waits = |(channel, records): (&String, &u64)| {
                released[channel] < *records && logged(&directory).contains_key(channel)
            };
            if restored.iter().any(waits) {
                undrained += 1;
            } else {
                undrained = 0;
            }
            if undrained == CHAIN {
                break;
            }
        }
        assert_eq!(undrained, CHAIN, "{shape:?}");
        config.workers = 3;
        case.run_to_the_end(config, 500, build);
        case.assert_exactly_once();
        scratch.assert_directory_is_the_reachable_set();
    }
}

/// A checkpoint every 20 ms; the job dies after 2 to 10 of them, and goes on from the newest with another number of
/// workers.
#[test]
fn two_hundred_generations_lose_nothing() {
    const GENERATIONS: usize = 200;
    quiet_panics();
    let mut random = Random::new(seed());
    let scratch = Scratch::new();
    let directory = scratch.checkpoints();
    let mut config = unaligned(&scratch, 3);
    config.checkpoints.interval = Some(Duration::from_millis(20));
    let shape = Shape::Everything;
    let case = Case::new(shape.sources(), KEYS, 3);
    let shared = case.clone();
    let checkpoints = directory.clone();
    let build = move |job: &Job<'_>| {
        shared.note_restore(job, &checkpoints);
        shape.build(job, &shared);
        Ok(())
    };
    for generation in 0..GENERATIONS {
        let checkpoints = 2 + random.below(9) as usize;
        case.slow.set(10 + random.below(50));
        let job = Background::start(config.clone(), build.clone());
        job.wait_for_checkpoints(checkpoints);
        let fail = random.below(2) == 0;
        if fail {
            case.slow.fail();
        } else {
            job.handle.cancel();
        }
        assert_eq!(job.end().is_err(), fail, "generation {generation}");
        case.tally.assert_clean();
        config.workers = 1 + random.below(4) as usize;
    }
    case.run_to_the_end(config, 500, build);
    case.assert_exactly_once();
    scratch.assert_directory_is_the_reachable_set();
    let restored = case.restored_records();
    assert_eq!(restored.len(), GENERATIONS);
    let with_records = restored.iter().filter(|records| **records > 0).count();
    println!("{with_records} of {GENERATIONS} were restored with records on their way");
    assert!(with_records > GENERATIONS * 3 / 4, "{restored:?}");
}

/// Every run of a chain draws its own number of workers, timeouts, number of checkpoints at once, and end: failure,
/// cancel, or a stop, whose final checkpoint is the one that holds what is on its way.
#[test]
fn any_chain_of_settings_and_ends_loses_nothing() {
    const SHAPES: [Shape; 9] = [
        Shape::Pipeline,
        Shape::Union,
        Shape::TwoInputs,
        Shape::ThreeInputs,
        Shape::SharedBroadcast,
        Shape::KeyedBroadcast,
        Shape::Routed,
        Shape::Everything,
        Shape::Loop,
    ];
    quiet_panics();
    let mut random = Random::new(seed());
    let mut all_restored = 0;
    for shape in SHAPES.into_iter().chain(SHAPES) {
        let first = 1 + random.below(4) as usize;
        let scratch = Scratch::new();
        let mut config = unaligned(&scratch, first);
        let case = Case::new(shape.sources(), KEYS, first);
        let shared = case.clone();
        let build = move |job: &Job<'_>| {
            shape.build(job, &shared);
            Ok(())
        };
        let mut restored = 0;
        for _ in 0..5 {
            let timeouts = [Some(0), Some(0), Some(0), Some(10), None];
            let timeout = timeouts[random.below(5) as usize];
            config.checkpoints.alignment_timeout = timeout.map(Duration::from_millis);
            config.checkpoints.concurrent_max = 1 + random.below(3) as u32;
            config.checkpoints.inline_bytes_max = [0, 4 << 10, 1 << 20][random.below(3) as usize];
            config.checkpoints.writer_threads = 1 + random.below(2) as usize;
            config.flow.in_flight_bytes_max =
                [8 << 10, 16 << 10, 64 << 10][random.below(3) as usize];
            case.slow.set(5 + random.below(20));
            let job = Background::start(config.clone(), build.clone());
            job.wait_for_checkpoints(1 + random.below(6) as usize);
            let end = random.below(3);
            match end {
                0 => case.slow.fail(),
                1 => job.handle.cancel(),
                _ => job.handle.stop(),
            }
            let ended = job.end();
            assert_eq!(ended.is_err(), end == 0, "{shape:?}: {ended:?}");
            restored += logged(&scratch.checkpoints()).values().sum::<u64>();
            if end == 2 {
                // A job that was killed leaves to the next what it was writing.
                scratch.assert_directory_is_the_reachable_set();
            }
            config.workers = 1 + random.below(5) as usize;
        }
        case.run_to_the_end(config, 300, build);
        case.assert_exactly_once();
        scratch.assert_directory_is_the_reachable_set();
        println!("{shape:?}: {restored} records were restored on their way");
        all_restored += restored;
    }
    assert!(all_restored > 1000, "{all_restored} records were restored on their way");
}
