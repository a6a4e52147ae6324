//! Checkpoints of earlier versions, which every later version restores. They are in `tests/fixtures`, and are never written
//! again: see `examples/make_fixtures.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use highwater::config::{JobConfig, RestoreFrom};
use highwater::format::codec::decode_prefix;
use highwater::format::manifest::Manifest;
use highwater::format::part::{PartReader, SectionIndex};
use highwater::format::{Extent, SectionKind};
use highwater::prelude::*;

use crate::fixture_jobs::{
    Gate, IN_FLIGHT_RECORDS, KEYS, LINES_ALL, LINES_BEFORE, ON_HEAP, RECORDS, RECORDS_BEFORE, Row,
    Size, WINDOW, WORDS, WORKERS, all_states, config, in_flight, layers, line, row, rule, word,
};
#[cfg(feature = "rocksdb")]
use crate::fixture_jobs::{ON_ROCKSDB, on_rocksdb};
use crate::support::{
    Background, Scratch, assert_same, files_below, run, running_counts, wait_until,
};

/// The path of a fixture; `name` begins with the version.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A copy of a fixture.
fn copy(name: &str, to: &Path) {
    let from = fixture(name);
    let files = files_below(&from);
    assert!(!files.is_empty(), "{} is not there", from.display());
    for file in files {
        let to = to.join(file.strip_prefix(&from).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
}

/// A copy of a fixture as the checkpoint directory of a test, whose bytes are sound; and its newest checkpoint.
fn copied(name: &str) -> (Scratch, Manifest) {
    let scratch = Scratch::new();
    copy(name, &scratch.checkpoints());
    let report = scratch.store().verify(None).unwrap();
    assert!(report.is_clean(), "{:?}", report.problems);
    assert!(!report.checkpoints.is_empty());
    let newest = scratch.store().newest().unwrap().unwrap();
    let manifest = scratch.store().load(newest).unwrap();
    assert_eq!(manifest.parallelism as usize, WORKERS);
    (scratch, manifest)
}

#[test]
fn the_fixtures_of_each_version_are_small() {
    for version in ["v1", "v2"] {
        let sizes = files_below(&fixture(version)).into_iter().map(|f| fs::metadata(f).unwrap());
        let bytes: u64 = sizes.map(|file| file.len()).sum();
        assert!((10_000..150_000).contains(&bytes), "{version}: {bytes} bytes");
    }
}

/// All that [`all_states`] lets out when `workers` go on from the savepoint: what was pending in it, and the rest.
fn of_all_states(workers: u64) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut seen: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut windows: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    for n in 0..RECORDS {
        let key = n % KEYS;
        let numbers = seen.entry(key).or_default();
        numbers.push(n);
        let digits = numbers.iter().filter(|other| **other % 10 == n % 10).count() as u64;
        let (sum, count) = (numbers.iter().sum::<u64>(), numbers.len() as u64);
        rows.push(row("kinds", [key, count, digits, n, sum / count]));
        *windows.entry((key, n / WINDOW * WINDOW + 3 * WINDOW - 1)).or_default() += 1;
        if n >= RECORDS_BEFORE {
            rows.push(row("rule", [n, rule(&line(n % LINES_BEFORE))]));
        }
    }
    rows.extend(windows.into_iter().map(|((key, end), count)| row("window", [key, end, count])));
    rows.extend((0..KEYS).map(|key| row("alarm", [key])));
    for n in (0..RECORDS_BEFORE).filter(|n| n % 3 == 0) {
        rows.push(row("list", [n]));
        rows.extend((0..workers).map(|_| row("union", [n])));
    }
    for number in 0..LINES_ALL {
        let copies = if number < LINES_BEFORE { WORKERS as u64 } else { workers };
        rows.extend((0..copies).map(|_| row(&line(number), [])));
    }
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for word in (0..WORDS).map(word) {
        let count = counts.entry(word.clone()).or_default();
        *count += 1;
        rows.push(row(&word, [*count]));
    }
    rows
}

fn savepoint_goes_on(scratch: &Scratch, mut config: JobConfig) {
    let savepoint = scratch.path("savepoint");
    copy("v1/savepoint", &savepoint);
    let before = files_below(&savepoint).iter().map(|f| fs::read(f).unwrap()).collect::<Vec<_>>();
    let workers = config.workers;
    config.restore.from = RestoreFrom::Checkpoint(savepoint.display().to_string());
    let (gate, alarms, sink) = (Gate::new(true), Arc::new(AtomicU64::new(0)), Collect::new());
    let job = {
        let (gate, alarms, sink) = (gate.clone(), Arc::clone(&alarms), sink.clone());
        Background::start(config, move |job| {
            all_states(job, &gate, &alarms, sink.clone());
            Ok(())
        })
    };
    // Their time has come while the job was not there.
    wait_until("the timers of processing time have fired", || {
        assert!(!job.is_finished(), "the job has ended");
        alarms.load(Ordering::SeqCst) == KEYS
    });
    assert_eq!(gate.read(), 0);
    gate.next();
    job.end().unwrap();
    assert_same(of_all_states(workers as u64), sink.handle().committed());
    let after = files_below(&savepoint).iter().map(|f| fs::read(f).unwrap()).collect::<Vec<_>>();
    assert!(before == after, "a savepoint is never changed");
    scratch.assert_directory_is_the_reachable_set();
}

#[test]
fn a_savepoint_of_version_1_with_all_kinds_of_state_is_restored_at_any_parallelism() {
    let manifest = Manifest::decode(&fs::read(fixture("v1/savepoint/manifest")).unwrap()).unwrap();
    let held = |kind| {
        let sections = manifest.parts.iter().flat_map(|part| &part.sections);
        sections.filter(|s| s.header.kind == kind).map(|s| s.entries).sum::<u64>()
    };
    use SectionKind::{
        Broadcast, EventTimers, KeyedAggregating, KeyedList, KeyedMap, KeyedReducing, KeyedValue,
        OperatorList, ProcessingTimers, SinkTransactions, Source, UnionList,
    };
    for kind in [
        Source,
        KeyedValue,
        KeyedList,
        KeyedMap,
        KeyedReducing,
        KeyedAggregating,
        EventTimers,
        ProcessingTimers,
        OperatorList,
        UnionList,
        Broadcast,
        SinkTransactions,
    ] {
        assert!(held(kind) > 0, "it holds no {kind:?}");
    }
    for workers in 1..=3 {
        let scratch = Scratch::new();
        savepoint_goes_on(&scratch, config(&scratch.checkpoints(), workers));
    }
}

#[cfg(feature = "rocksdb")]
#[test]
fn a_savepoint_of_version_1_is_restored_into_rocksdb() {
    let scratch = Scratch::new();
    let config = config(&scratch.checkpoints(), 3);
    let config = on_rocksdb(config, &scratch.path("running"));
    savepoint_goes_on(&scratch, config);
}

/// What [`layers`] lets out after the checkpoint. What came before was committed before.
fn of_layers(size: Size) -> Vec<Row> {
    let mut kept: BTreeMap<u64, (u64, BTreeMap<u64, u64>)> = BTreeMap::new();
    let mut rows = Vec::new();
    for n in 0..size.records() {
        let key = size.key(n);
        let (count, digits) = kept.entry(key).or_default();
        *count += 1;
        let digit = digits.entry(n % 10).or_default();
        *digit += 1;
        if n >= size.phases()[2] {
            let before = if *count > 1 { size.pad as u64 } else { 0 };
            rows.push(row("count", [key, *count, *digit, before]));
        }
        if size.removes(n) {
            kept.remove(&key);
        }
    }
    rows
}

fn layers_go_on(scratch: &Scratch, config: JobConfig, size: Size) {
    let sink = Collect::new();
    let to = sink.clone();
    let gate = Gate::new(true);
    gate.next();
    run(config, move |job| {
        layers(job, &gate, size, to.clone());
        Ok(())
    })
    .unwrap();
    assert_same(of_layers(size), sink.handle().committed());
    scratch.assert_directory_is_the_reachable_set();
}

/// How many entries of the state `count` in a part say that a key was removed.
fn removed(part: &Path) -> u32 {
    let bytes = fs::read(part).unwrap();
    let size = bytes.len() as u64;
    let mut part = PartReader::open(Cursor::new(bytes), size).unwrap();
    let is_count = |s: &SectionIndex| s.header.state.as_str() == "count";
    let index = part.sections().iter().position(is_count).unwrap();
    if part.sections()[index].extent == Extent::Whole {
        return 0;
    }
    let mut removed = 0;
    let mut blocks = part.blocks(index, 0..u16::MAX);
    while let Some(block) = blocks.next().unwrap() {
        let mut rest = block.bytes;
        for _ in 0..block.entries {
            let is_there = rest[0] == 1;
            rest = decode_prefix::<u64>(&rest[1..]).unwrap().1;
            if is_there {
                rest = decode_prefix::<u64>(rest).unwrap().1;
            }
            removed += u32::from(!is_there);
        }
        assert!(rest.is_empty());
    }
    removed
}

#[test]
fn a_checkpoint_of_version_1_in_layers_is_restored_at_any_parallelism() {
    for workers in 1..=3 {
        let (scratch, manifest) = copied("v1/layers");
        for part in &manifest.parts {
            assert!(part.layers.len() >= 2, "{part:?}");
            assert!(part.sections.iter().any(|section| section.extent != Extent::Whole));
        }
        let layers = manifest.parts.iter().flat_map(|part| &part.layers);
        let removed = layers.map(|layer| removed(&scratch.checkpoints().join(&layer.path)));
        assert!(removed.sum::<u32>() > 0, "no layer says that a key was removed");
        layers_go_on(&scratch, config(&scratch.checkpoints(), workers), ON_HEAP);
    }
}

#[cfg(feature = "rocksdb")]
#[test]
fn a_checkpoint_of_each_version_in_files_of_rocksdb_is_restored_at_any_parallelism() {
    // First a map had one row, and since version 3 of the files a row for each entry.
    for (version, of_files) in [("v1", 1), ("v2", 3)] {
        for workers in 1..=3 {
            let (scratch, manifest) = copied(&format!("{version}/rocksdb"));
            assert!(manifest.parts.iter().all(|part| !part.natives.is_empty()), "{manifest:?}");
            let images = manifest.parts.iter().flat_map(|part| &part.natives);
            assert!(images.clone().all(|image| image.version == of_files), "{manifest:?}");
            let config = config(&scratch.checkpoints(), workers);
            let config = on_rocksdb(config, &scratch.path("running"));
            layers_go_on(&scratch, config, ON_ROCKSDB);
        }
    }
}

#[test]
fn a_checkpoint_of_version_1_with_channel_logs_is_restored_at_any_parallelism() {
    for workers in 1..=3 {
        let (scratch, manifest) = copied("v1/in-flight");
        let sections = manifest.parts.iter().flat_map(|part| &part.sections);
        let logs = sections.filter(|section| section.header.kind == SectionKind::ChannelLog);
        assert!(logs.map(|section| section.bytes).sum::<u64>() > 0, "nothing was on its way");
        let sink = Collect::new();
        let to = sink.clone();
        run(config(&scratch.checkpoints(), workers), move |job| {
            in_flight(job, || (), to.clone());
            Ok(())
        })
        .unwrap();
        // All that came before is pending in the checkpoint, which is the first of its job.
        let expected = running_counts(IN_FLIGHT_RECORDS, |n| n % KEYS).into_iter();
        let expected = expected.map(|(key, count)| row("count", [key, count]));
        assert_same(expected, sink.handle().committed());
        scratch.assert_directory_is_the_reachable_set();
    }
}
