//! Writes checkpoints and a savepoint of small jobs, as this version writes them, for later versions to restore:
//!
//! ```text
//! cargo run --example make_fixtures --features rocksdb -- tests/fixtures/v1
//! ```
//!
//! Fixtures are never written again: this is for a version of the format that has none yet. What is there is not
//! replaced. Run it from the root of the repository. Of a version that differs from the one before in the files of RocksDB
//! only, as version 2 does, those are enough: keep `rocksdb` of what it writes.

#[path = "../tests/it/fixture_jobs.rs"]
mod fixture_jobs;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fixture_jobs::{
    Gate, IN_FLIGHT_RECORDS, JOB, LINES, LINES_ALL, LINES_BEFORE, ON_HEAP, RECORDS_BEFORE, Row,
    Size, WORDS_BEFORE, WORKERS, all_states, config, in_flight, layers, line,
};
use highwater::config::JobConfig;
use highwater::format::manifest::Manifest;
use highwater::format::{Extent, SectionKind};
use highwater::ids::Name;
use highwater::job::{Job, JobHandle, execute};
use highwater::prelude::Collect;
use highwater::storage::{JobStore, LocalStorage};

type Done = Result<(), Box<dyn Error>>;

const WAIT_MAX: Duration = Duration::from_secs(60);

fn main() -> Done {
    let to = std::env::args().nth(1).map(PathBuf::from);
    let to = to.ok_or("which directory? For version 1: tests/fixtures/v1")?;
    if to.join("savepoint").exists() {
        return Err(format!("{} has fixtures: they are never written again", to.display()).into());
    }
    std::fs::create_dir_all(&to)?;
    let lines: String = (0..LINES_ALL).map(|n| line(n) + "\n").collect();
    std::fs::create_dir_all(Path::new(LINES).parent().ok_or("no directory")?)?;
    std::fs::write(LINES, lines)?;
    savepoint(&to)?;
    in_layers(config(&to.join("layers"), WORKERS), ON_HEAP)?;
    with_channel_logs(&to.join("in-flight"))?;
    #[cfg(feature = "rocksdb")]
    {
        let running = std::env::temp_dir().join(format!("make-fixtures-{}", std::process::id()));
        let config = fixture_jobs::on_rocksdb(config(&to.join("rocksdb"), WORKERS), &running);
        in_layers(config, fixture_jobs::ON_ROCKSDB)?;
        std::fs::remove_dir_all(running)?;
    }
    println!("written to {}", to.display());
    Ok(())
}

/// Runs a job beside `meanwhile`, which ends it.
fn beside(
    config: JobConfig,
    build: impl Fn(&Job<'_>) -> highwater::Result<()> + Send + Sync + 'static,
    meanwhile: impl FnOnce(&JobHandle) -> Done,
) -> Done {
    let handle = JobHandle::default();
    let job = {
        let handle = handle.clone();
        std::thread::spawn(move || execute(config, &handle, build))
    };
    let done = meanwhile(&handle);
    handle.cancel();
    job.join().map_err(|_| "the job has panicked")??;
    done
}

fn wait(what: &str, mut met: impl FnMut() -> bool) -> Done {
    let start = Instant::now();
    while !met() {
        if start.elapsed() > WAIT_MAX {
            return Err(format!("waited too long until {what}").into());
        }
        std::thread::sleep(Duration::from_millis(1)); // Poll: until the condition holds.
    }
    Ok(())
}

/// All kinds of state. It is the only checkpoint of its job, so all output is pending in it.
fn savepoint(to: &Path) -> Done {
    let scratch = to.join("scratch");
    let mut config = config(&scratch, WORKERS);
    config.checkpoints.inline_bytes_max = 0;
    let (gate, sink) = (Gate::new(false), Collect::new());
    let build = {
        let (gate, sink) = (gate.clone(), sink.clone());
        move |job: &Job<'_>| {
            all_states(job, &gate, &Arc::default(), sink.clone());
            Ok(())
        }
    };
    beside(config, build, |handle| {
        let records = RECORDS_BEFORE + WORDS_BEFORE + LINES_BEFORE;
        wait("the sources have stopped", || gate.read() == records)?;
        handle.savepoint(to.join("savepoint"))?;
        Ok(())
    })?;
    let epochs = sink.handle().transactions().iter().map(|t| t.epoch).collect::<Vec<_>>();
    if epochs.iter().any(|epoch| *epoch != epochs[0]) {
        return Err("more than one checkpoint was taken".into());
    }
    Ok(std::fs::remove_dir_all(scratch)?)
}

fn store(directory: &Path) -> Result<JobStore, Box<dyn Error>> {
    Ok(JobStore::new(Arc::new(LocalStorage::open_existing(directory)?), Name::new(JOB)?))
}

fn newest(directory: &Path) -> Option<Manifest> {
    let store = store(directory).ok()?;
    let epoch = store.newest().ok()??;
    // It may have been retired since it was listed.
    store.load(epoch).ok()
}

/// A checkpoint in layers (or, with RocksDB, of files of several checkpoints), at the end of whose last phase nothing is
/// pending.
fn in_layers(mut config: JobConfig, size: Size) -> Done {
    config.checkpoints.interval = Some(Duration::from_millis(60));
    config.checkpoints.incremental_bytes_min = 0;
    let directory = config.checkpoints.directory.clone().ok_or("no directory")?;
    let (gate, sink) = (Gate::new(false), Collect::<Row>::new());
    let build = {
        let (gate, sink) = (gate.clone(), sink.clone());
        move |job: &Job<'_>| {
            layers(job, &gate, size, sink.clone());
            Ok(())
        }
    };
    beside(config, build, |handle| {
        for (phase, records) in size.phases().into_iter().enumerate() {
            let is_last = phase + 1 == size.phases().len();
            wait("all is committed", || sink.handle().committed().len() as u64 == records)?;
            let completed = || handle.counters().checkpoints().completed.len();
            let before = completed();
            wait("checkpoints have nothing pending", || completed() > before + 1)?;
            if !is_last {
                gate.next();
            }
        }
        Ok(())
    })?;
    let manifest = newest(&directory).ok_or("no checkpoint")?;
    let is_layered = manifest.parts.iter().all(|part| {
        let changes = part.sections.iter().any(|section| section.extent != Extent::Whole);
        changes && part.layers.len() >= 2 || !part.natives.is_empty()
    });
    if is_layered {
        Ok(())
    } else {
        Err(format!("checkpoint {} is not in layers", manifest.epoch).into())
    }
}

/// A checkpoint whose barriers have overtaken records. It is the first of its job, so all output is pending in it.
fn with_channel_logs(directory: &Path) -> Done {
    for _ in 0..20 {
        let mut config = config(directory, WORKERS);
        config.checkpoints.interval = Some(Duration::from_millis(250));
        config.checkpoints.alignment_timeout = Some(Duration::ZERO);
        config.flow.in_flight_bytes_max = 4 << 10;
        let sink = Collect::<Row>::new();
        let build = move |job: &Job<'_>| {
            let pass = || std::thread::sleep(Duration::from_millis(1)); // Fault: a slow operator.
            in_flight(job, pass, sink.clone());
            Ok(())
        };
        beside(config, build, |handle| {
            wait("a checkpoint is complete", || {
                !handle.counters().checkpoints().completed.is_empty()
            })
        })?;
        let store = store(directory)?;
        let manifest = newest(directory).ok_or("no checkpoint")?;
        let sections = manifest.parts.iter().flat_map(|part| &part.sections);
        let logged: u64 = sections
            .filter(|section| section.header.kind == SectionKind::ChannelLog)
            .map(|section| section.bytes)
            .sum();
        let is_first = store.history()?.iter().all(|record| record.epoch >= manifest.epoch);
        if logged > 0 && is_first && logged < IN_FLIGHT_RECORDS * 16 {
            println!("{logged} bytes of channel logs");
            return Ok(());
        }
        std::fs::remove_dir_all(directory)?;
    }
    Err("no first checkpoint had records on their way in 20 runs".into())
}
