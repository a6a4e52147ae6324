//! What a job starts from, and what is refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use highwater::config::{JobConfig, RestoreFrom};
use highwater::ids::Epoch;
use highwater::prelude::*;

use crate::support::{
    Background, Scratch, assert_same, files_below, run, running_counts, throttle, wait_until,
};

const RECORDS: u64 = 20_000;
const KEYS: u64 = 61;

fn count(sink: Collect<(u64, u64)>) -> impl Fn(&Job<'_>) -> highwater::Result<()> {
    count_at(u64::MAX, sink)
}

/// The same at so many records a second.
fn count_at(
    per_second: u64,
    sink: Collect<(u64, u64)>,
) -> impl Fn(&Job<'_>) -> highwater::Result<()> {
    move |job| {
        let numbers = Generator::new(RECORDS, |i| i);
        let paced = if per_second < u64::MAX { numbers.paced(0, per_second) } else { numbers };
        job.source("numbers", paced)
            .inspect(throttle(20))
            .key_by(|n| n % KEYS)
            .process("count", Value::<u64>::new("count"), |key, _, count, out| {
                *count.or_default() += 1;
                out.emit((*key, *count.or_default()));
            })
            .sink("out", sink.clone());
        Ok(())
    }
}

/// A job that was stopped midway; its checkpoints are in files and `retained` of them are kept, all of which have some of each key.
fn stopped(retained: u32) -> (Scratch, JobConfig, Collect<(u64, u64)>) {
    let scratch = Scratch::new();
    let mut config = scratch.config(2);
    config.checkpoints.retained = retained;
    config.checkpoints.inline_bytes_max = 0;
    let collect = Collect::new();
    // Slow enough that even a busy machine stops it before its end.
    let job = Background::start(config.clone(), count_at(RECORDS / 4, collect.clone()));
    wait_until("each key has come some times", || {
        job.handle.counters().source_records() > 10 * KEYS
    });
    job.wait_for_more_checkpoints(retained as usize + 1);
    job.handle.stop();
    job.end().unwrap();
    scratch.assert_directory_is_the_reachable_set();
    (scratch, config, collect)
}

/// Asserts that the counts of every key are without a gap up to the last one, none of them twice; returns the least
/// first count of all keys.
fn assert_counts_to_the_end(found: Vec<(u64, u64)>) -> u64 {
    let mut counts: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for (key, count) in found {
        counts.entry(key).or_default().push(count);
    }
    assert_eq!(counts.len() as u64, KEYS);
    let mut least = u64::MAX;
    for (key, mut counts) in counts {
        counts.sort_unstable();
        let total = (0..RECORDS).filter(|n| n % KEYS == key).count() as u64;
        assert_same(counts[0]..=total, counts.iter().copied());
        least = least.min(counts[0]);
    }
    least
}

fn error_of(config: &JobConfig) -> String {
    let error = run(config.clone(), count(Collect::new())).unwrap_err();
    assert!(!error.restartable(), "{error}");
    error.to_string()
}

#[test]
fn a_checkpoint_is_restored_by_its_number() {
    let (scratch, mut config, _) = stopped(4);
    let epochs: Vec<Epoch> = scratch.store().valid_epochs().unwrap().into_iter().collect();
    assert_eq!(epochs.len(), 4);
    config.restore.from = RestoreFrom::Checkpoint(epochs[1].to_string());
    config.workers = 3;
    let collect = Collect::new();
    run(config, count(collect.clone())).unwrap();
    assert!(assert_counts_to_the_end(collect.handle().committed()) > 1, "it did not start anew");
    scratch.assert_directory_is_the_reachable_set();
}

#[test]
fn a_checkpoint_is_restored_by_its_path_into_another_directory() {
    let (scratch, mut config, _) = stopped(2);
    let newest = scratch.store().newest().unwrap().unwrap();
    let job = scratch.checkpoints().join(crate::support::JOB);
    let before = files_below(&job);
    for path in [job.join(format!("chk/{newest}")), job.join(format!("chk/{newest}/manifest"))] {
        let other = Scratch::new();
        config.checkpoints.directory = Some(other.checkpoints());
        config.restore.from = RestoreFrom::Checkpoint(path.display().to_string());
        let collect = Collect::new();
        run(config.clone(), count(collect.clone())).unwrap();
        assert!(assert_counts_to_the_end(collect.handle().committed()) > 1);
        other.assert_directory_is_the_reachable_set();
        assert_eq!(files_below(&job), before, "the checkpoint's own directory is left alone");
    }
}

#[test]
fn fresh_starts_with_nothing_whatever_there_is() {
    let (scratch, mut config, _) = stopped(2);
    config.restore.from = RestoreFrom::Fresh;
    let collect = Collect::new();
    run(config, count(collect.clone())).unwrap();
    assert_same(running_counts(RECORDS, |n| n % KEYS), collect.handle().committed());
    scratch.assert_directory_is_the_reachable_set();
}

#[test]
fn a_number_that_is_no_checkpoint_and_a_path_that_is_none_are_refused() {
    let (_scratch, mut config, _) = stopped(1);
    config.restore.from = RestoreFrom::Checkpoint("999999".to_owned());
    let text = error_of(&config);
    assert!(text.contains("job job has no checkpoint 999999"), "{text}");
    for path in ["nowhere", "/", "x/chk/abc"] {
        config.restore.from = RestoreFrom::Checkpoint(path.to_owned());
        let text = error_of(&config);
        assert!(text.contains("is not a checkpoint"), "{text}");
    }
}

#[test]
fn checkpoints_that_somebody_has_deleted_are_an_error_and_no_fresh_start() {
    let (scratch, mut config, _) = stopped(2);
    fs::remove_dir_all(scratch.checkpoints().join(crate::support::JOB).join("chk")).unwrap();
    let text = error_of(&config);
    assert!(text.contains("was complete, but"), "{text}");
    assert!(text.contains(&scratch.checkpoints().display().to_string()), "{text}");
    config.restore.from = RestoreFrom::Fresh;
    let collect = Collect::new();
    run(config, count(collect.clone())).unwrap();
    assert_same(running_counts(RECORDS, |n| n % KEYS), collect.handle().committed());
}

#[test]
fn state_that_the_program_has_no_more_is_dropped_only_if_allowed() {
    let (scratch, mut config, _) = stopped(1);
    let program = |sink: Collect<u64>| {
        move |job: &Job<'_>| {
            job.source("numbers", Generator::new(RECORDS, |i| i)).sink("elsewhere", sink.clone());
            Ok(())
        }
    };
    config.restore.allow_new_state = true;
    let text = run(config.clone(), program(Collect::new())).unwrap_err().to_string();
    assert!(text.contains("count/count, out/transactions"), "{text}");
    assert!(text.contains("--allow-dropped-state"), "{text}");
    config.restore.allow_dropped_state = true;
    let collect = Collect::new();
    run(config, program(collect.clone())).unwrap();
    let found = collect.handle().committed();
    assert!(!found.is_empty() && (found.len() as u64) < RECORDS, "it goes on where it was");
    scratch.assert_directory_is_the_reachable_set();
}

#[test]
fn state_that_the_checkpoint_does_not_have_starts_empty_only_if_allowed() {
    let (scratch, mut config, collect) = stopped(1);
    let program = |sink: Collect<(u64, u64)>| {
        move |job: &Job<'_>| {
            job.source("numbers", Generator::new(RECORDS, |i| i))
                .key_by(|n| n % KEYS)
                .process(
                    "count",
                    (Value::<u64>::new("count"), Value::<u64>::new("more")),
                    |key, _, (count, more), out| {
                        *count.or_default() += 1;
                        *more.or_default() += 1;
                        out.emit((*key, *count.or_default()));
                    },
                )
                .sink("out", sink.clone());
            Ok(())
        }
    };
    let text = run(config.clone(), program(Collect::new())).unwrap_err().to_string();
    assert!(text.contains("does not hold: count/more"), "{text}");
    assert!(text.contains("--allow-new-state"), "{text}");
    config.restore.allow_new_state = true;
    run(config, program(collect.clone())).unwrap();
    assert_same(running_counts(RECORDS, |n| n % KEYS), collect.handle().committed());
    scratch.assert_directory_is_the_reachable_set();
}

#[test]
fn state_of_another_type_or_version_is_refused_by_its_name() {
    let (_scratch, mut config, _) = stopped(1);
    // No flag allows it.
    config.restore.allow_dropped_state = true;
    config.restore.allow_new_state = true;
    let text = run(config.clone(), |job| {
        job.source("numbers", Generator::new(RECORDS, |i| i))
            .key_by(|n| n % KEYS)
            .process("count", Value::<i32>::new("count"), |key, _, _, out| out.emit((*key, 0_u64)))
            .sink("out", Collect::new());
        Ok(())
    })
    .unwrap_err()
    .to_string();
    assert!(text.contains("does not fit: count/count: value: "), "{text}");
    assert!(text.contains("u64") && text.contains("i32"), "{text}");
    let text = run(config, |job| {
        job.source("numbers", Generator::new(RECORDS, |i| i))
            .key_by(|n| n % KEYS)
            .process("count", Value::<u64>::new("count").version(2), |key, _, _, out| {
                out.emit((*key, 0_u64));
            })
            .sink("out", Collect::new());
        Ok(())
    })
    .unwrap_err()
    .to_string();
    assert!(text.contains("version 1") && text.contains("version 2"), "{text}");
}

#[test]
fn another_number_of_key_groups_is_refused() {
    let (_scratch, mut config, _) = stopped(1);
    config.max_parallelism = 64;
    let text = error_of(&config);
    assert!(text.contains("128") && text.contains("64"), "{text}");
}

/// The part files of the only checkpoint, the larger one first.
fn parts(scratch: &Scratch) -> Vec<PathBuf> {
    let mut parts = files_below(&scratch.checkpoints());
    parts.retain(|path| path.extension().is_some_and(|extension| extension == "part"));
    parts.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).unwrap().len()));
    assert_eq!(parts.len(), 2, "one for each worker");
    parts
}

fn assert_named(text: &str, path: &Path) {
    assert!(text.contains(&path.display().to_string()), "{text} does not name {}", path.display());
}

#[test]
fn a_damaged_part_is_refused_by_its_file_and_stays_as_it_is() {
    let (scratch, config, collect) = stopped(1);
    let parts = parts(&scratch);
    let (part, other) = (&parts[0], &parts[1]);
    let (good, good_other) = (fs::read(part).unwrap(), fs::read(other).unwrap());
    let before = files_below(&scratch.checkpoints().join(crate::support::JOB).join("chk"));
    let check_refused = |what: &str| {
        let text = error_of(&config);
        let named = [part, other].iter().any(|path| text.contains(&path.display().to_string()));
        assert!(named, "{what}: {text}");
        assert!(text.contains("cannot be restored"), "{what}: {text}");
    };
    let step = good.len() / 12;
    for at in (0..good.len()).step_by(step.max(1)).chain([good.len() - 1]) {
        let mut damaged = good.clone();
        damaged[at] ^= 0x10;
        fs::write(part, &damaged).unwrap();
        check_refused(&format!("byte {at} of {} flipped", good.len()));
    }
    for length in [0, 1, good.len() / 2, good.len() - 1] {
        fs::write(part, &good[..length]).unwrap();
        assert_named(&error_of(&config), part);
    }
    fs::write(part, &good_other).unwrap();
    fs::write(other, &good).unwrap();
    check_refused("swapped");
    fs::write(other, &good_other).unwrap();
    fs::remove_file(part).unwrap();
    assert_named(&error_of(&config), part);
    fs::write(part, &good).unwrap();
    let after = files_below(&scratch.checkpoints().join(crate::support::JOB).join("chk"));
    assert_eq!(before, after, "a refused restore deletes nothing");
    // And with the part back in place nothing is lost.
    run(config, count(collect.clone())).unwrap();
    assert_same(running_counts(RECORDS, |n| n % KEYS), collect.handle().committed());
    scratch.assert_directory_is_the_reachable_set();
}

#[test]
fn a_damaged_newest_manifest_is_refused_and_an_older_one_is_taken_only_when_named() {
    let (scratch, mut config, _) = stopped(2);
    let epochs: Vec<Epoch> = scratch.store().valid_epochs().unwrap().into_iter().collect();
    let chk = scratch.checkpoints().join(crate::support::JOB).join("chk");
    let manifest = chk.join(format!("{}/manifest", epochs[1]));
    let good = fs::read(&manifest).unwrap();
    for at in [0, 9, good.len() / 2, good.len() - 1] {
        let mut damaged = good.clone();
        damaged[at] ^= 1;
        fs::write(&manifest, damaged).unwrap();
        assert_named(&error_of(&config), &manifest);
    }
    fs::write(&manifest, &good[..good.len() / 2]).unwrap();
    assert_named(&error_of(&config), &manifest);
    config.restore.from = RestoreFrom::Checkpoint(epochs[0].to_string());
    let collect = Collect::new();
    run(config, count(collect.clone())).unwrap();
    assert!(assert_counts_to_the_end(collect.handle().committed()) > 1);
}
