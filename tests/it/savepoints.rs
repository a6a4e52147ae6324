//! Savepoints: written by a running job, moved, restored by a changed program; and what goes wrong.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use highwater::config::{JobConfig, RestartStrategy, RestoreFrom};
use highwater::format::SectionKind;
use highwater::format::manifest::{Manifest, ManifestKind};
use highwater::format::record::SavepointFormat;
use highwater::ids::Name;
use highwater::prelude::*;
use highwater::state_reader::StateReader;

use crate::support::{
    Background, Scratch, assert_same, files_below, run, running_counts, throttle,
};

const RECORDS: u64 = 20_000;
const KEYS: u64 = 61;

/// Counts by key, under these names.
fn count(
    operator: &'static str,
    records_a_ms: u32,
    sink: Collect<(u64, u64)>,
) -> impl Fn(&Job<'_>) -> highwater::Result<()> {
    move |job| {
        job.source("numbers", Generator::new(RECORDS, |i| i))
            .inspect(throttle(records_a_ms))
            .key_by(|n| n % KEYS)
            .process(operator, Value::<u64>::new("count"), |key, _, count, out| {
                *count.or_default() += 1;
                out.emit((*key, *count.or_default()));
            })
            .sink("out", sink.clone());
        Ok(())
    }
}

fn running(scratch: &Scratch) -> (JobConfig, Background, Collect<(u64, u64)>) {
    let mut config = scratch.config(2);
    config.checkpoints.inline_bytes_max = 0;
    let collect = Collect::new();
    let job = Background::start(config.clone(), count("count", 2, collect.clone()));
    crate::support::wait_until("each key has come some times", || {
        job.handle.counters().source_records() > 5 * KEYS
    });
    // The first of these may have begun before.
    job.wait_for_more_checkpoints(2);
    (config, job, collect)
}

fn manifest(savepoint: &Path) -> Manifest {
    Manifest::decode(&fs::read(savepoint.join("manifest")).unwrap()).unwrap()
}

/// Runs the rest from a savepoint, in a directory of its own, and checks that the counts go on without a gap. Returns the
/// first count of each key.
fn assert_goes_on(
    savepoint: &Path,
    workers: usize,
    operator: &'static str,
    rename: bool,
) -> BTreeMap<u64, u64> {
    let other = Scratch::new();
    let mut config = other.config(workers);
    config.restart = RestartStrategy::None;
    config.restore.from = RestoreFrom::Checkpoint(savepoint.display().to_string());
    if rename {
        let name = |text| Name::new(text).unwrap();
        config.restore.renamed = BTreeMap::from([(name("count"), name(operator))]);
    }
    let collect = Collect::new();
    run(config, count(operator, 1000, collect.clone())).unwrap();
    let mut least: BTreeMap<u64, u64> = BTreeMap::new();
    let found = collect.handle().committed();
    for (key, count) in &found {
        let first = least.entry(*key).or_insert(*count);
        *first = (*first).min(*count);
    }
    assert!(least.values().any(|first| *first > 1), "it did not start anew");
    let expected = running_counts(RECORDS, |n| n % KEYS);
    let rest = expected.into_iter().filter(|(key, count)| least.get(key) <= Some(count));
    assert_same(rest, found);
    other.assert_directory_is_the_reachable_set();
    least
}

#[test]
fn a_savepoint_of_a_running_job_is_moved_and_restored_at_any_parallelism() {
    let scratch = Scratch::new();
    let (_, job, collect) = running(&scratch);
    let (to, moved) = (scratch.path("deep/er/savepoint"), scratch.path("moved"));
    let info = job.handle.savepoint(&to).unwrap();
    assert_eq!((info.path.as_path(), info.parallelism), (to.as_path(), 2));
    job.handle.drain();
    job.end().unwrap();
    assert!(!collect.handle().committed().is_empty());
    // Nothing of the job is needed, and its directory knows nothing of the savepoint.
    scratch.assert_directory_is_the_reachable_set();
    fs::remove_dir_all(scratch.checkpoints()).unwrap();
    fs::rename(&to, &moved).unwrap();
    let manifest = manifest(&moved);
    assert_eq!((manifest.kind, manifest.epoch), (ManifestKind::Savepoint, info.epoch));
    assert!(manifest.blobs().all(|name| moved.join(name).is_file()));
    assert_eq!(files_below(&moved).len(), 3, "a manifest and two parts: {:?}", files_below(&moved));
    let before = files_below(&moved).iter().map(|f| fs::read(f).unwrap()).collect::<Vec<_>>();
    let reader = StateReader::open(&moved).unwrap();
    let mut counts = BTreeMap::new();
    let entries = reader.for_each("count", "count", |key: u64, count: u64| {
        assert_eq!(counts.insert(key, count), None);
    });
    assert_eq!((entries.unwrap(), counts.len() as u64), (KEYS, KEYS));
    let text = reader.for_each("count", "count", |_: u64, _: i64| ()).unwrap_err().to_string();
    assert_eq!(text, "state count/count holds u64 -> u64, not u64 -> i64");
    let text = reader.for_each("count", "x", |_: u64, _: u64| ()).unwrap_err().to_string();
    assert!(text.ends_with("holds no keyed state count/x; it holds: count/count"), "{text}");
    for workers in [1, 2, 3] {
        let first = assert_goes_on(&moved, workers, "count", false);
        // What the sink had pending comes out too.
        assert!(first.iter().all(|(key, first)| *first <= counts[key] + 1), "it was what was read");
    }
    assert_goes_on(&moved.join("manifest"), 2, "count", false);
    let after = files_below(&moved).iter().map(|f| fs::read(f).unwrap()).collect::<Vec<_>>();
    assert!(before == after, "a savepoint is never changed");
}

#[test]
fn a_native_savepoint_of_the_heap_is_the_parts_of_its_checkpoint_and_stands_alone() {
    let scratch = Scratch::new();
    let (_, job, _) = running(&scratch);
    let to = scratch.path("native");
    let info = job.handle.stop_with_savepoint_as(&to, false, SavepointFormat::Native).unwrap();
    job.end().unwrap();
    assert_eq!(info.native_files, 0);
    let parts =
        files_below(&to).into_iter().filter(|f| f.extension().is_some()).collect::<Vec<_>>();
    assert!(parts.len() >= 2, "{parts:?}");
    assert!(parts.iter().all(|file| fs::metadata(file).unwrap().nlink() == 2), "they are linked");
    scratch.assert_directory_is_the_reachable_set();
    fs::remove_dir_all(scratch.checkpoints()).unwrap();
    assert_goes_on(&to, 3, "count", false);
}

#[test]
fn a_copied_checkpoint_directory_is_restored_under_any_name() {
    let scratch = Scratch::new();
    let (_, job, _) = running(&scratch);
    job.handle.stop();
    job.end().unwrap();
    let newest = scratch.store().newest().unwrap().unwrap();
    let copy = scratch.path("copy");
    fs::create_dir(&copy).unwrap();
    let chk = scratch.checkpoints().join(crate::support::JOB).join(format!("chk/{newest}"));
    for file in files_below(&chk) {
        fs::copy(&file, copy.join(file.file_name().unwrap())).unwrap();
    }
    fs::remove_dir_all(scratch.checkpoints()).unwrap();
    assert_goes_on(&copy, 3, "count", false);
}

#[test]
fn a_job_that_is_stopped_with_a_savepoint_ends_with_success_and_goes_on_from_it() {
    let scratch = Scratch::new();
    let (mut config, job, collect) = running(&scratch);
    let to = scratch.path("savepoint");
    let info = job.handle.stop_with_savepoint(&to, false).unwrap();
    job.end().unwrap();
    assert!(manifest(&to).last);
    let newest = scratch.store().newest().unwrap().unwrap();
    assert_eq!(newest, info.epoch, "it is the job's last checkpoint as well");
    // What was committed with it and what comes after it are the whole.
    config.restore.from = RestoreFrom::Checkpoint(to.display().to_string());
    run(config, count("count", 1000, collect.clone())).unwrap();
    assert_same(running_counts(RECORDS, |n| n % KEYS), collect.handle().committed());
    scratch.assert_directory_is_the_reachable_set();
}

#[test]
fn a_renamed_operator_finds_its_state_and_renames_that_do_not_fit_are_listed() {
    let scratch = Scratch::new();
    let (mut config, job, _) = running(&scratch);
    let to = scratch.path("savepoint");
    job.handle.stop_with_savepoint(&to, false).unwrap();
    job.end().unwrap();
    assert_goes_on(&to, 3, "totals", true);
    // Without the rename both sides are named.
    config.restore.from = RestoreFrom::Checkpoint(to.display().to_string());
    let program = || count("totals", 1000, Collect::new());
    let text = run(config.clone(), program()).unwrap_err().to_string();
    assert!(text.contains("count/count"), "{text}");
    let name = |text| Name::new(text).unwrap();
    config.restore.renamed =
        BTreeMap::from([(name("nobody"), name("totals")), (name("count"), name("out"))]);
    let text = run(config.clone(), program()).unwrap_err().to_string();
    assert!(text.contains("nobody=totals: it holds state of neither"), "{text}");
    assert!(text.contains("count=out: it holds state of both"), "{text}");
    // The job's own later checkpoints have the new name: the same command starts it again.
    config.restore.from = RestoreFrom::Newest;
    config.restore.renamed = BTreeMap::from([(name("count"), name("totals"))]);
    let collect = Collect::new();
    run(config.clone(), count("totals", 1000, collect.clone())).unwrap();
    run(config, count("totals", 1000, collect)).unwrap();
    scratch.assert_directory_is_the_reachable_set();
}

#[test]
fn a_savepoint_holds_no_channel_log_where_every_checkpoint_does() {
    let scratch = Scratch::new();
    let mut config = scratch.config(2);
    config.checkpoints.alignment_timeout = Some(Duration::ZERO);
    let collect = Collect::new();
    let sink = collect.clone();
    let job = Background::start(config, move |job| {
        job.source("numbers", Generator::new(u64::MAX, |i| i))
            .key_by(|n| n % KEYS)
            .process("slow", Value::<u64>::new("count"), {
                let mut pause = throttle(20);
                move |key, n, count, out| {
                    pause(&n);
                    *count.or_default() += 1;
                    out.emit((*key, *count.or_default()));
                }
            })
            .sink("out", sink.clone());
        Ok(())
    });
    let logs = |manifest: &Manifest| {
        let sections = manifest.parts.iter().flat_map(|part| &part.sections);
        sections.filter(|section| section.header.kind == SectionKind::ChannelLog).count()
    };
    job.wait_for_checkpoints(1);
    crate::support::wait_until("a checkpoint overtakes", || {
        let store = scratch.store();
        let newest = store.valid_epochs().unwrap().last().copied();
        newest.and_then(|epoch| store.load(epoch).ok()).is_some_and(|it| logs(&it) > 0)
    });
    for number in 0..3 {
        let to = scratch.path(&format!("savepoint-{number}"));
        job.handle.savepoint(&to).unwrap();
        assert_eq!(logs(&manifest(&to)), 0);
    }
    job.handle.cancel();
    job.end().unwrap();
}

#[test]
fn a_target_that_exists_or_cannot_be_made_is_refused_and_the_job_goes_on() {
    let scratch = Scratch::new();
    let (_, job, collect) = running(&scratch);
    let there = scratch.path("there");
    fs::create_dir(&there).unwrap();
    fs::write(there.join("mine"), "mine").unwrap();
    let file = there.join("mine");
    for (stop, to) in [(None, &there), (Some(false), &there), (Some(true), &file)] {
        let refused = match stop {
            None => job.handle.savepoint(to),
            Some(drain) => job.handle.stop_with_savepoint(to, drain),
        };
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("exists already"), "{text}");
    }
    // Below a file nothing can be made, whoever tries.
    let text = job.handle.stop_with_savepoint(file.join("x"), true).unwrap_err().to_string();
    assert!(text.contains("the savepoint could not be written"), "{text}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    job.wait_for_more_checkpoints(2);
    job.handle.drain();
    job.end().unwrap();
    assert!(!collect.handle().committed().is_empty());
    scratch.assert_directory_is_the_reachable_set();
}

/// The directory that vanishes as soon as state is serialized, which is after it is made and before it is written.
static VANISHES: Mutex<Option<PathBuf>> = Mutex::new(None);

/// A count whose serialization is the fault.
#[derive(Clone, Default, serde::Deserialize)]
struct Fault(u64);

impl serde::Serialize for Fault {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Some(path) = &*VANISHES.lock().unwrap()
            && path.exists()
        {
            fs::remove_dir_all(path).unwrap();
        }
        serializer.serialize_newtype_struct("Fault", &self.0)
    }
}

#[test]
fn a_target_that_fails_midway_undoes_the_stop_and_leaves_nothing() {
    let scratch = Scratch::new();
    let mut config = scratch.config(2);
    config.checkpoints.inline_bytes_max = 0;
    let collect = Collect::new();
    let sink = collect.clone();
    let program = move |job: &Job<'_>| {
        job.source("numbers", Generator::new(RECORDS, |i| i))
            .inspect(throttle(2))
            .key_by(|n| n % KEYS)
            .process("count", Value::<Fault>::new("count"), |key, _, count, out| {
                count.or_default().0 += 1;
                out.emit((*key, count.or_default().0));
            })
            .sink("out", sink.clone());
        Ok(())
    };
    let job = Background::start(config.clone(), program.clone());
    job.wait_for_checkpoints(1);
    let to = scratch.path("savepoint");
    *VANISHES.lock().unwrap() = Some(to.clone());
    let text = job.handle.stop_with_savepoint(&to, false).unwrap_err().to_string();
    assert!(text.contains("the savepoint could not be written"), "{text}");
    let text = job.handle.savepoint(&to).unwrap_err().to_string();
    assert!(text.contains("itself is complete"), "{text}");
    *VANISHES.lock().unwrap() = None;
    assert!(!to.exists());
    // It still runs, and its output has no gap and nothing twice.
    job.wait_for_more_checkpoints(2);
    job.handle.savepoint(&to).unwrap();
    job.handle.stop();
    job.end().unwrap();
    run(config, program).unwrap();
    assert_same(running_counts(RECORDS, |n| n % KEYS), collect.handle().committed());
    scratch.assert_directory_is_the_reachable_set();
}

#[test]
fn a_job_that_does_not_run_or_writes_no_checkpoints_says_so() {
    let scratch = Scratch::new();
    let to = scratch.path("savepoint");
    let idle = highwater::job::JobHandle::default();
    let text = idle.savepoint(&to).unwrap_err().to_string();
    assert!(text.contains("no attempt of the job runs now"), "{text}");
    let mut config = scratch.config(1);
    config.checkpoints.directory = None;
    config.checkpoints.interval = None;
    let job = Background::start(config, count("count", 2, Collect::new()));
    crate::support::wait_until("it runs", || job.handle.counters().source_records() > 0);
    let text = job.handle.stop_with_savepoint(&to, false).unwrap_err().to_string();
    assert!(text.contains("the job writes no checkpoints"), "{text}");
    job.handle.cancel();
    job.end().unwrap();
    assert!(!to.exists());
}
