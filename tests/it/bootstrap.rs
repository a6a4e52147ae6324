//! Savepoints from iterators: restored at any parallelism, and none if anything fails.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use highwater::bootstrap::{BootstrapError, SavepointWriter};
use highwater::config::{JobConfig, RestartStrategy, RestoreFrom};
use highwater::prelude::*;
use highwater::state_reader::StateReader;

use crate::fixture_jobs::Mean;
use crate::support::{JOB, Scratch, assert_same, run};

const KEYS: u64 = 100_000;
/// Small, so that entries go to more files than are merged at once.
const MEMORY_BYTES: usize = 32 << 10;

/// The keys in an order of their own.
fn keys() -> impl Iterator<Item = u64> {
    (0..KEYS).map(|n| n * 7_919 % KEYS)
}

fn sum(descriptor: &Value<u64>, to: &Path, max_parallelism: u16) -> Result<(), BootstrapError> {
    let entries = keys().map(|key| (key, key * key));
    SavepointWriter::create(to, JOB, max_parallelism)?
        .memory_bytes(MEMORY_BYTES)
        .keyed("sums", descriptor, entries)?
        .finish()
        .map(|info| assert_eq!((info.entries, info.parallelism), (KEYS, 1)))
}

fn from(savepoint: &Path, scratch: &Scratch, workers: usize) -> JobConfig {
    let mut config = scratch.config(workers);
    config.restart = RestartStrategy::None;
    config.restore.from = RestoreFrom::Checkpoint(savepoint.display().to_string());
    config.restore.allow_new_state = true;
    config
}

/// Adds one to every key, and says what the sum is.
fn add_one(config: JobConfig, operator: &'static str) -> highwater::Result<Vec<(u64, u64)>> {
    let collect = Collect::new();
    let sink = collect.clone();
    run(config, move |job| {
        job.source("numbers", Generator::new(KEYS, |n| n))
            .key_by(|n| *n)
            .process(operator, Value::<u64>::new("sum"), |key, _, sum, out| {
                *sum.or_default() += 1;
                out.emit((*key, *sum.or_default()));
            })
            .sink("out", sink.clone());
        Ok(())
    })?;
    Ok(collect.handle().committed())
}

#[test]
fn a_hundred_thousand_keys_are_restored_at_any_parallelism() {
    let scratch = Scratch::new();
    for (workers, max_parallelism) in [(1, 128), (2, 13), (3, 32_768)] {
        let scratch_of_job = Scratch::new();
        let to = scratch.path(&format!("deep/er/{workers}"));
        sum(&Value::new("sum"), &to, max_parallelism).unwrap();
        let mut config = from(&to, &scratch_of_job, workers);
        config.max_parallelism = max_parallelism;
        let expected = (0..KEYS).map(|key| (key, key * key + 1));
        assert_same(expected, add_one(config, "sums").unwrap());
        scratch_of_job.assert_directory_is_the_reachable_set();
    }
    // The savepoints, and no runs.
    let left = std::fs::read_dir(scratch.path("deep/er")).unwrap().count();
    assert_eq!(left, 3);
}

#[test]
fn what_is_written_does_not_depend_on_the_memory() {
    let scratch = Scratch::new();
    let mut parts = Vec::new();
    for (number, memory) in [1_000, 50_000, usize::MAX].into_iter().enumerate() {
        let to = scratch.path(&number.to_string());
        SavepointWriter::create(&to, JOB, 128)
            .unwrap()
            .memory_bytes(memory)
            .keyed("op", &List::<u64>::new("list"), (0..5_000_u64).map(|n| (n, vec![n, n + 1])))
            .unwrap()
            .finish()
            .unwrap();
        parts.push(std::fs::read(to.join("1-0.part")).unwrap());
    }
    assert!(parts.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn every_kind_of_keyed_state_goes_on_from_what_was_written() {
    let scratch = Scratch::new();
    let to = scratch.path("savepoint");
    let names = || ["ann", "bob", "eve"].map(str::to_owned).into_iter();
    let list = || List::<u64>::new("list");
    let map = || Map::<String, u64>::new("map");
    let least = || Reducing::new("least", |least: &mut u64, n| *least = n.min(*least));
    let mean = || Aggregating::new("mean", Mean);
    let entry = |name: &String| BTreeMap::from([(name.clone(), 7), ("all".to_owned(), 1)]);
    SavepointWriter::create(&to, JOB, 128)
        .unwrap()
        .keyed("op", &list(), names().map(|name| (name, vec![1, 2])))
        .unwrap()
        .keyed("op", &map(), names().map(|name| (name.clone(), entry(&name))))
        .unwrap()
        .keyed("op", &least(), names().map(|name| (name, 3)))
        .unwrap()
        .keyed("op", &mean(), names().map(|name| (name, (100, 9))))
        .unwrap()
        .finish()
        .unwrap();
    for workers in 1..=3 {
        let scratch = Scratch::new();
        let collect = Collect::new();
        let sink = collect.clone();
        run(from(&to, &scratch, workers), move |job| {
            // A time to live may be declared by the program.
            let list = list().ttl(std::time::Duration::from_secs(3600));
            let states = (list, map(), least(), mean());
            job.source("names", Collection::new(names().collect()))
                .key_by(String::clone)
                .process("op", states, |name, _, (list, map, least, mean), out| {
                    list.append(5);
                    least.add(10);
                    mean.add(10);
                    let list: Vec<u64> = list.iter().copied().collect();
                    let map = (map.get(name).copied(), map.get(&"all".to_owned()).copied());
                    out.emit((name.clone(), list, map, least.get().copied(), mean.get()));
                })
                .sink("out", sink.clone());
            Ok(())
        })
        .unwrap();
        let expected =
            names().map(|name| (name, vec![1, 2, 5], (Some(7), Some(1)), Some(3), Some(11)));
        assert_same(expected, collect.handle().committed());
    }
}

#[test]
fn sources_are_new_only_if_that_is_allowed_and_a_wrong_name_is_found() {
    let scratch = Scratch::new();
    let to = scratch.path("savepoint");
    sum(&Value::new("sum"), &to, 128).unwrap();
    let job = Scratch::new();
    let mut config = from(&to, &job, 2);
    let text = add_one(config.clone(), "sum").unwrap_err().to_string();
    assert!(text.contains("sums/sum") && text.contains("--allow-dropped-state"), "{text}");
    config.restore.allow_new_state = false;
    let text = add_one(config, "sums").unwrap_err().to_string();
    assert!(text.contains("numbers/splits") && text.contains("--allow-new-state"), "{text}");
}

#[test]
fn a_key_that_comes_twice_is_refused_by_name_and_no_savepoint_is_left() {
    for memory in [500, usize::MAX] {
        let scratch = Scratch::new();
        let to = scratch.path("here/savepoint");
        let numbers = (0..1_000).chain([123]);
        let entries = numbers.map(|n: u64| (format!("key {n}"), n));
        let refused = SavepointWriter::create(&to, JOB, 128)
            .unwrap()
            .memory_bytes(memory)
            .keyed("sums", &Value::<u64>::new("sum"), entries)
            .unwrap_err();
        assert_eq!(refused.to_string(), r#"sums/sum: the key "key 123" comes twice"#);
        assert_eq!(std::fs::read_dir(scratch.path("here")).unwrap().count(), 0);
    }
}

#[test]
fn a_state_that_is_written_twice_and_a_wrong_number_of_groups_are_refused() {
    let scratch = Scratch::new();
    let to = scratch.path("here/savepoint");
    let entries = || [(1_u64, 1_u64)];
    let value = Value::<u64>::new("sum");
    let writer = SavepointWriter::create(&to, JOB, 128).unwrap();
    let writer = writer.keyed("sums", &value, entries()).unwrap();
    let refused = writer.keyed("sums", &value, entries()).unwrap_err();
    assert!(refused.to_string().starts_with("sums/sum is written already"), "{refused}");
    let refused = SavepointWriter::create(&to, JOB, 0).unwrap_err();
    assert!(matches!(refused, BootstrapError::MaxParallelism(0)), "{refused}");
    assert_eq!(std::fs::read_dir(scratch.path("here")).unwrap().count(), 0);
}

#[test]
fn an_iterator_that_fails_leaves_no_savepoint() {
    let scratch = Scratch::new();
    let to = scratch.path("here/savepoint");
    let entries = keys().map(|key| {
        let planted = || io::Error::other("planted");
        if key == 777 { Err(planted()) } else { Ok((key, key)) }
    });
    let before = keys().position(|key| key == 777).unwrap() as u64;
    let failed = SavepointWriter::create(&to, JOB, 128)
        .unwrap()
        .memory_bytes(MEMORY_BYTES)
        .try_keyed("sums", &Value::<u64>::new("sum"), entries)
        .unwrap_err();
    assert!(matches!(&failed, BootstrapError::Entry { index, .. } if *index == before));
    assert_eq!(failed.to_string(), format!("sums/sum: entry {before} could not be had"));
    assert_eq!(std::fs::read_dir(scratch.path("here")).unwrap().count(), 0);
}

#[test]
fn a_disk_that_fails_leaves_no_savepoint() {
    // The directory of the runs vanishes while they are written, and that of the savepoint before it is finished.
    for of_runs in [true, false] {
        let scratch = Scratch::new();
        let here = scratch.path("here");
        let to = here.join("savepoint");
        let vanish = here.clone();
        let entries = keys().inspect(move |key| {
            if *key == 777 {
                for entry in std::fs::read_dir(&vanish).unwrap() {
                    let path = entry.unwrap().path();
                    if of_runs == path.to_string_lossy().contains(".runs-") {
                        std::fs::remove_dir_all(path).unwrap();
                    }
                }
            }
        });
        let written = SavepointWriter::create(&to, JOB, 128)
            .unwrap()
            .memory_bytes(MEMORY_BYTES)
            .keyed("sums", &Value::<u64>::new("sum"), entries.map(|key| (key, key)))
            .and_then(SavepointWriter::finish);
        let failed = written.unwrap_err();
        let is_run = matches!(failed, BootstrapError::Run { .. });
        assert_eq!(is_run, of_runs, "{failed}");
        assert_eq!(std::fs::read_dir(&here).unwrap().count(), 0);
    }
}

#[test]
fn a_target_that_exists_is_refused_and_stays_as_it_is() {
    let scratch = Scratch::new();
    let to = scratch.path("savepoint");
    sum(&Value::new("sum"), &to, 128).unwrap();
    let refused = sum(&Value::new("sum"), &to, 128).unwrap_err().to_string();
    assert!(refused.contains("exists already"), "{refused}");
    let read = StateReader::open(&to).unwrap();
    let mut entries = 0;
    read.for_each("sums", "sum", |key: u64, sum: u64| {
        assert_eq!(sum, key * key);
        entries += 1;
    })
    .unwrap();
    assert_eq!(entries, KEYS);
}
