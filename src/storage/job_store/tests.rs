//! Tests of what a job keeps in its store: attempts against each other, deaths and failures at any call.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::*;
use crate::format::manifest::{ManifestKind, NativeFile, NativeImage};
use crate::format::part::{PartHeader, PartWriter};
use crate::format::record::{CheckpointOutcome, SavepointFormat};
use crate::format::{SectionHeader, SectionKind, SectionOutput};
use crate::ids::KeyGroup;
use crate::storage::MemoryStorage;
use crate::storage::fault::{FaultAction, FaultOp, FaultStorage};

mod attempts;
mod claimed;
mod failures;
mod history;
mod pins;
mod retention;
mod savepoints;

const OLD: Duration = Duration::from_secs(3600);

fn job() -> Name {
    Name::new("job").unwrap()
}

fn store(storage: &Arc<dyn CheckpointStorage>) -> JobStore {
    JobStore::new(storage.clone(), job())
}

fn memory() -> Arc<dyn CheckpointStorage> {
    Arc::new(MemoryStorage::new())
}

fn started(store: &JobStore) -> Result<Claim, JobStoreError> {
    store.prepare(128, 1)?;
    store.claim()
}

/// The part of a worker: worker 0's stays inline, worker 1's becomes a blob.
fn write_part(
    store: &JobStore,
    claim: &Claim,
    epoch: Epoch,
    worker: u32,
) -> Result<PartRef, FormatError> {
    let limit = if worker == 0 { 1 << 20 } else { 0 };
    let output = store.part_output(epoch, claim.attempt(), worker, limit, false);
    let header = PartHeader {
        job: job(),
        epoch,
        attempt: claim.attempt(),
        worker,
        parallelism: 2,
        max_parallelism: 128,
    };
    let section = SectionHeader {
        operator: Name::new("count").unwrap(),
        state: Name::new("counts").unwrap(),
        kind: SectionKind::KeyedValue,
        type_name: "u64".into(),
        type_version: 1,
        shape: crate::format::shape::EntryShape::default(),
    };
    let mut part = PartWriter::new(output, &header)?;
    let mut out = part.section(&section)?;
    for group in 0..64 {
        out.entry(KeyGroup(group), &mut |bytes| {
            bytes.extend_from_slice(&epoch.0.to_le_bytes());
            Ok(())
        })?;
    }
    let (output, summary) = part.finish()?;
    let place = output.finish(&summary).map_err(std::io::Error::other)?;
    let sections = summary.sections.iter().map(|section| section.summary()).collect();
    Ok(PartRef { worker, place, sections, layers: Vec::new(), natives: Vec::new() })
}

fn write_checkpoint(
    store: &JobStore,
    claim: &Claim,
    epoch: Epoch,
) -> Result<Manifest, JobStoreError> {
    let part = |worker| {
        write_part(store, claim, epoch, worker)
            .map_err(|source| JobStoreError::Encode { path: "part".into(), source })
    };
    Ok(Manifest {
        job: job(),
        epoch,
        attempt: claim.attempt(),
        lineage: claim.lineage(),
        parallelism: 2,
        max_parallelism: 128,
        kind: ManifestKind::Checkpoint,
        last: false,
        triggered_unix_ms: 1,
        parts: vec![part(0)?, part(1)?],
    })
}

/// A store in memory with checkpoints 1 to `last` of an attempt.
fn with_checkpoints(last: u64) -> (Arc<dyn CheckpointStorage>, JobStore, Claim) {
    let storage = memory();
    let store = store(&storage);
    let claim = started(&store).unwrap();
    for epoch in 1..=last {
        checkpoint(&store, &claim, Epoch(epoch)).unwrap();
    }
    (storage, store, claim)
}

/// An image of one file that holds an `x`.
fn native(path: &str) -> NativeImage {
    let file = NativeFile {
        name: "file".to_owned(),
        path: path.to_owned(),
        bytes: 1,
        crc32c: crc32c::crc32c(b"x"),
    };
    let operator = Name::new("count").unwrap();
    NativeImage { operator, backend: "test".to_owned(), version: 1, files: vec![file] }
}

fn checkpoint(store: &JobStore, claim: &Claim, epoch: Epoch) -> Result<(), JobStoreError> {
    let manifest = write_checkpoint(store, claim, epoch)?;
    store.publish(claim, &manifest).map(|_| ())
}

fn assert_clean(store: &JobStore) {
    let report = store.verify(None).unwrap();
    assert!(report.is_clean(), "{report:#?}");
}

fn assert_nothing_left_over(store: &JobStore) {
    assert_eq!(store.unreachable().unwrap(), []);
    assert_eq!(store.verify(None).unwrap().unreferenced, [""; 0]);
}

/// Runs `act` on a store where `other` runs, once, just before the call with that index. Returns whether it ran.
fn with_interruption<T>(
    storage: &Arc<dyn CheckpointStorage>,
    index: u64,
    other: impl FnOnce() + Send + 'static,
    act: impl FnOnce(&JobStore) -> T,
) -> (T, bool) {
    let other = Mutex::new(Some(other));
    let ran = Arc::new(Mutex::new(false));
    let note = ran.clone();
    let fault = FaultStorage::new(storage.clone(), move |point| {
        if point.index == index
            && let Some(other) = other.lock().unwrap().take()
        {
            other();
            *note.lock().unwrap() = true;
        }
        FaultAction::Proceed
    });
    let fault: Arc<dyn CheckpointStorage> = Arc::new(fault);
    let result = act(&store(&fault));
    let ran = *ran.lock().unwrap();
    (result, ran)
}
