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

mod claimed;
mod pins;

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

#[test]
fn a_checkpoint_is_published_found_read_and_retired() {
    let storage = memory();
    let store = store(&storage);
    let claim = started(&store).unwrap();
    assert_eq!((claim.attempt(), claim.first_epoch()), (Attempt(1), Epoch(1)));
    assert_eq!(store.newest_of(&claim).unwrap(), None);
    for epoch in 1..=3 {
        checkpoint(&store, &claim, Epoch(epoch)).unwrap();
        assert_eq!(store.newest().unwrap(), Some(Epoch(epoch)));
    }
    let found: Vec<_> = store.valid_checkpoints().unwrap().iter().map(|c| c.epoch.0).collect();
    assert_eq!(found, [1, 2, 3]);
    let manifest = store.load(Epoch(3)).unwrap();
    for part in &manifest.parts {
        let mut reader = store.open_part(&manifest, part).unwrap();
        let mut blocks = reader.blocks(0, 0..128);
        let block = blocks.next().unwrap().unwrap();
        assert_eq!((block.entries, block.bytes.len()), (64, 512));
    }
    let released = store.retire(&claim, &[Epoch(3)], &[]).unwrap();
    assert_eq!((released.checkpoints, released.blobs), (2, 4));
    assert_nothing_left_over(&store);
    assert_clean(&store);
    assert!(matches!(store.load(Epoch(2)), Err(JobStoreError::NoSuchCheckpoint { .. })));
}

#[test]
fn retiring_out_of_order_keeps_what_is_kept() {
    let (_, store, claim) = with_checkpoints(4);
    store.retire(&claim, &[Epoch(1), Epoch(4)], &[]).unwrap();
    assert_eq!(store.valid_epochs().unwrap(), [Epoch(1), Epoch(4)].into());
    assert_clean(&store);
    assert_nothing_left_over(&store);
}

#[test]
fn a_file_lives_as_long_as_a_manifest_that_references_it() {
    let storage = memory();
    let store = store(&storage);
    let claim = started(&store).unwrap();
    let shared = BlobPath::new("job/shared/1-1-base").unwrap();
    storage.put(&shared, b"x").unwrap();
    for epoch in 1..=3 {
        let mut manifest = write_checkpoint(&store, &claim, Epoch(epoch)).unwrap();
        if epoch < 3 {
            manifest.parts[0].natives.push(native(shared.as_str()));
        }
        store.publish(&claim, &manifest).unwrap();
        store.retire(&claim, &[Epoch(epoch)], &[]).unwrap();
        assert_eq!(storage.read(&shared, 9).is_ok(), epoch < 3, "{epoch}");
        assert_clean(&store);
        assert_nothing_left_over(&store);
    }
}

#[test]
fn parts_of_checkpoints_in_progress_or_begun_later_are_not_retired() {
    let storage = memory();
    let store = store(&storage);
    let claim = started(&store).unwrap();
    checkpoint(&store, &claim, Epoch(1)).unwrap();
    for epoch in 2..=5 {
        write_part(&store, &claim, Epoch(epoch), 1).unwrap();
    }
    store.retire(&claim, &[Epoch(1)], &[Epoch(2), Epoch(4)]).unwrap();
    let left: Vec<_> = store.unreachable().unwrap().iter().map(|p| p.to_string()).collect();
    assert_eq!(left, ["job/chk/2/1-1.part", "job/chk/4/1-1.part", "job/chk/5/1-1.part"]);
    assert_eq!(store.discard(&claim, Epoch(4)).unwrap().blobs, 1);
    assert_eq!(store.discard(&claim, Epoch(1)).unwrap().blobs, 0, "it is published");
    let next = store.claim().unwrap();
    assert_eq!(next.newest(), Some(Epoch(1)));
    store.sweep(&next, OLD).unwrap();
    assert_nothing_left_over(&store);
    assert_clean(&store);
}

#[test]
fn an_attempt_that_was_replaced_may_do_nothing() {
    let storage = memory();
    let store = store(&storage);
    let first = started(&store).unwrap();
    checkpoint(&store, &first, Epoch(1)).unwrap();
    let manifest = write_checkpoint(&store, &first, Epoch(2)).unwrap();
    let second = store.claim().unwrap();
    let before = storage.list(None).unwrap();
    let results = [
        store.publish(&first, &manifest).map(|_| ()),
        store.retire(&first, &[], &[]).map(|_| ()),
        store.sweep(&first, OLD).map(|_| ()),
        store.extend_epochs(&first),
    ];
    for result in results {
        let by = Attempt(2);
        assert!(
            matches!(result, Err(JobStoreError::Fenced { by: b, .. }) if b == by),
            "{result:?}"
        );
    }
    assert_eq!(first.epochs_end(), Epoch(1001));
    let mut after = storage.list(None).unwrap();
    after.retain(|(path, _)| path.as_str() != "job/attempts/1.epochs-1001");
    assert_eq!(after, before);
    store.sweep(&second, OLD).unwrap();
    assert_nothing_left_over(&store);
}

#[test]
fn epochs_are_never_used_twice_whatever_attempts_did() {
    let storage = memory();
    let store = store(&storage);
    let first = started(&store).unwrap();
    assert_eq!((first.first_epoch(), first.epochs_end()), (Epoch(1), Epoch(1001)));
    store.extend_epochs(&first).unwrap();
    store.extend_epochs(&first).unwrap();
    assert_eq!(first.epochs_end(), Epoch(3001));
    let second = store.claim().unwrap();
    assert_eq!(second.first_epoch(), Epoch(3001));
    store.sweep(&second, OLD).unwrap();
    let third = store.claim().unwrap();
    assert_eq!((third.attempt(), third.first_epoch()), (Attempt(3), Epoch(4001)));
}

#[test]
fn a_manifest_is_refused_if_it_is_not_ours_to_publish_or_its_parts_are_gone() {
    let storage = memory();
    let store = store(&storage);
    let claim = started(&store).unwrap();
    let manifest = write_checkpoint(&store, &claim, Epoch(5)).unwrap();
    let outside = Manifest { epoch: Epoch(1001), ..manifest.clone() };
    let other = Manifest { attempt: Attempt(7), ..manifest.clone() };
    for bad in [outside, other] {
        let error = store.publish(&claim, &bad).unwrap_err();
        assert!(matches!(error, JobStoreError::Refused { .. }), "{error}");
    }
    let mut stray = manifest.clone();
    stray.parts[0].natives.push(native("other/shared/x"));
    assert!(matches!(store.publish(&claim, &stray), Err(JobStoreError::Damaged { .. })));
    storage.delete(&store.part_path(Epoch(5), Attempt(1), 1)).unwrap();
    let error = store.publish(&claim, &manifest).unwrap_err();
    assert!(error.to_string().contains("1-1.part is not there"), "{error}");
    assert_eq!(store.newest().unwrap(), None);
}

#[test]
fn missing_checkpoints_are_an_error_unless_none_ever_completed() {
    let storage = memory();
    let store = store(&storage);
    started(&store).unwrap();
    let claim = store.claim().unwrap();
    assert_eq!(store.newest_of(&claim).unwrap(), None, "none completed yet");
    checkpoint(&store, &claim, Epoch(1001)).unwrap();
    store.delete(Epoch(1001)).unwrap();
    assert!(matches!(store.newest(), Err(JobStoreError::CheckpointsMissing { .. })));
    assert!(matches!(store.verify(None), Err(JobStoreError::CheckpointsMissing { .. })));
    let claim = store.claim().unwrap();
    let error = store.newest_of(&claim).unwrap_err();
    assert!(error.to_string().contains("checkpoint 1001 of job job was complete"), "{error}");

    // Whoever retires everything says that it was meant so.
    checkpoint(&store, &claim, claim.first_epoch()).unwrap();
    store.retire(&claim, &[], &[]).unwrap();
    assert_eq!(store.newest().unwrap(), None);
    checkpoint(&store, &claim, claim.first_epoch().next()).unwrap();
    assert!(store.record_of_job().unwrap().first_completed.is_some());
}

#[test]
fn the_number_of_key_groups_is_fixed_once_a_checkpoint_completed() {
    let storage = memory();
    let store = store(&storage);
    assert_eq!(store.prepare(128, 5).unwrap().created_unix_ms, 5);
    assert_eq!(store.prepare(64, 6).unwrap().max_parallelism, 64);
    assert_eq!(store.prepare(64, 7).unwrap().created_unix_ms, 6);
    let claim = store.claim().unwrap();
    checkpoint(&store, &claim, Epoch(1)).unwrap();
    let error = store.prepare(128, 8).unwrap_err();
    assert!(error.to_string().contains("max_parallelism 64, not 128"), "{error}");
}

#[test]
fn the_history_keeps_the_last_hundred_and_survives_attempts() {
    let storage = memory();
    let store = store(&storage);
    let claim = started(&store).unwrap();
    for epoch in 1..=130 {
        let record = CheckpointRecord {
            epoch: Epoch(epoch),
            attempt: Attempt(1),
            triggered_unix_ms: epoch,
            outcome: CheckpointOutcome::Complete,
            duration_ms: 1,
            publish_ms: 1,
            workers: Vec::new(),
            bytes: 0,
            waits: Vec::new(),
            in_flight_bytes: 0,
            entries: 0,
        };
        store.record(&record).unwrap();
    }
    drop(claim);
    store.claim().unwrap();
    let epochs: Vec<_> = store.history().unwrap().iter().map(|record| record.epoch.0).collect();
    assert_eq!(epochs, (31..=130).collect::<Vec<_>>());
}

#[test]
fn the_last_hundred_restores_are_kept_in_order_and_nothing_of_them_is_left_over() {
    let storage = memory();
    let store = store(&storage);
    let claim = started(&store).unwrap();
    for attempt in 1..=65 {
        for process in 0..2 {
            let (attempt, epoch, unix_ms) = (Attempt(attempt), Epoch(7), 1);
            let (local_bytes, store_bytes) = (attempt.0, u64::from(process));
            let record =
                RestoreRecord { attempt, process, epoch, unix_ms, local_bytes, store_bytes };
            store.record_restore(&record).unwrap();
        }
    }
    let records = store.restores().unwrap();
    let found: Vec<_> = records.iter().map(|record| (record.attempt.0, record.process)).collect();
    let expected: Vec<_> = (16..=65).flat_map(|attempt| [(attempt, 0), (attempt, 1)]).collect();
    assert_eq!(found, expected);
    assert_eq!(store.history().unwrap(), []);
    store.sweep(&claim, Duration::ZERO).unwrap();
    assert_eq!(store.unreachable().unwrap(), []);
}

/// Changes one byte of a blob.
fn damage(storage: &Arc<dyn CheckpointStorage>, path: &BlobPath, at: usize) {
    let mut bytes = storage.read(path, 1 << 20).unwrap();
    bytes[at] ^= 4;
    storage.put(path, &bytes).unwrap();
}

#[test]
fn damage_is_reported_by_file_and_offset() {
    let (storage, store, _) = with_checkpoints(2);
    let part = store.part_path(Epoch(2), Attempt(1), 1);
    let manifest = store.load(Epoch(2)).unwrap();
    let reader = store.open_part(&manifest, &manifest.parts[1]).unwrap();
    let block = reader.sections()[0].blocks[0].offset;
    damage(&storage, &part, block as usize + 100);
    let report = store.verify(None).unwrap();
    assert_eq!(report.checkpoints, [Epoch(1), Epoch(2)]);
    let [problem] = &report.problems[..] else { panic!("{report:#?}") };
    assert_eq!(problem.path, format!("memory:/{part}"));
    assert_eq!((problem.epoch, problem.offset), (Epoch(2), Some(block)));
    assert!(store.verify(Some(Epoch(1))).unwrap().is_clean());

    // The index is damaged: the part does not open, and the error says which it is.
    let size = storage.open(&part).unwrap().size_bytes() as usize;
    damage(&storage, &part, size - 40);
    let error = store.open_part(&manifest, &manifest.parts[1]).unwrap_err();
    assert_eq!(error.to_string(), format!("memory:/{part} is damaged"));

    // A part of another checkpoint in its place is whole, and still refused.
    let other = storage.read(&store.part_path(Epoch(1), Attempt(1), 1), 1 << 20).unwrap();
    storage.put(&part, &other).unwrap();
    let error = store.open_part(&manifest, &manifest.parts[1]).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("for checkpoint 1 of job job"), "{source}");

    storage.delete(&part).unwrap();
    let report = store.verify(Some(Epoch(2))).unwrap();
    assert_eq!(report.problems[0].why, "it is not there");

    damage(&storage, &BlobPath::new("job/chk/2/manifest").unwrap(), 30);
    let report = store.verify(None).unwrap();
    assert_eq!(report.problems[0].path, "memory:/job/chk/2/manifest");
    assert!(matches!(store.load(Epoch(2)), Err(JobStoreError::Damaged { .. })));
    assert_eq!(store.newest().unwrap(), Some(Epoch(2)), "an older one is not taken silently");
}

#[test]
fn nothing_is_deleted_while_a_manifest_that_stays_can_not_be_read() {
    let (storage, store, claim) = with_checkpoints(2);
    damage(&storage, &BlobPath::new("job/chk/2/manifest").unwrap(), 30);
    assert!(matches!(store.retire(&claim, &[Epoch(2)], &[]), Err(JobStoreError::Damaged { .. })));
    for epoch in 1..=2 {
        assert!(storage.open(&store.part_path(Epoch(epoch), Attempt(1), 1)).is_ok());
    }
}

#[test]
fn a_checkpoint_is_found_by_its_path() {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    struct Directory(PathBuf);
    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("highwater-job-{}-{number}", std::process::id());
    let root = Directory(std::env::temp_dir().join(name));
    let storage: Arc<dyn CheckpointStorage> =
        Arc::new(crate::storage::LocalStorage::open(&root.0).unwrap());
    let store = store(&storage);
    let claim = started(&store).unwrap();
    checkpoint(&store, &claim, Epoch(1)).unwrap();
    for path in ["job/chk/1", "job/chk/1/", "job/chk/1/manifest"] {
        let (found, epoch) = JobStore::open_checkpoint_path(&root.0.join(path)).unwrap();
        assert_eq!(epoch, Epoch(1));
        assert_eq!(found.load(epoch).unwrap(), store.load(Epoch(1)).unwrap());
    }
    for path in ["job/chk", "job/chk/x", "job/1", "job/chk/01", "a b/chk/1", ""] {
        let error = JobStore::open_checkpoint_path(&root.0.join(path)).unwrap_err();
        assert!(matches!(error, JobStoreError::NotACheckpointPath { .. }), "{path}: {error}");
    }
    assert!(JobStore::open_checkpoint_path(&root.0.join("no/where/chk/1")).is_err());
    store.retire(&claim, &[Epoch(1)], &[]).unwrap();
    assert_nothing_left_over(&store);
    assert_clean(&store);
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

#[test]
fn a_new_attempt_at_any_step_of_a_publication_finds_it_or_voids_it() {
    let (mut kept, mut voided) = (0, 0);
    for index in 0.. {
        let storage = memory();
        let raw = store(&storage);
        let first = started(&raw).unwrap();
        checkpoint(&raw, &first, Epoch(1)).unwrap();
        let manifest = write_checkpoint(&raw, &first, Epoch(2)).unwrap();
        let second = Arc::new(Mutex::new(None));
        let (claimer, slot) = (raw.clone(), second.clone());
        let other = move || {
            *slot.lock().unwrap() = Some(claimer.claim().unwrap());
        };
        let (published, ran) =
            with_interruption(&storage, index, other, |store| store.publish(&first, &manifest));
        if !ran {
            published.unwrap();
            break;
        }
        let second = second.lock().unwrap().take().unwrap();
        let newest = raw.newest_of(&second).unwrap();
        if published.is_ok() {
            assert_eq!(newest, Some(Epoch(2)), "announced and lost at call {index}");
        }
        assert_eq!(raw.newest().unwrap(), newest);
        if newest == Some(Epoch(2)) {
            kept += 1;
            raw.load(Epoch(2)).unwrap();
        } else {
            voided += 1;
            assert_eq!(newest, Some(Epoch(1)));
            assert!(raw.load(Epoch(2)).is_err());
        }
        assert_clean(&raw);
        raw.sweep(&second, OLD).unwrap();
        assert_nothing_left_over(&raw);
    }
    assert!(kept >= 1 && voided >= 2, "{kept} kept, {voided} voided");
}

#[test]
fn a_first_checkpoint_that_a_new_attempt_voids_is_not_missed_later() {
    for index in 0.. {
        let storage = memory();
        let raw = store(&storage);
        let first = started(&raw).unwrap();
        let manifest = write_checkpoint(&raw, &first, Epoch(1)).unwrap();
        let second = Arc::new(Mutex::new(None));
        let (claimer, slot) = (raw.clone(), second.clone());
        let other = move || {
            *slot.lock().unwrap() = Some(claimer.claim().unwrap());
        };
        let (published, ran) =
            with_interruption(&storage, index, other, |store| store.publish(&first, &manifest));
        if !ran {
            published.unwrap();
            break;
        }
        // The second attempt dies before its first checkpoint.
        let second = second.lock().unwrap().take().unwrap();
        raw.sweep(&second, OLD).unwrap();
        let third = started(&raw).unwrap();
        assert_eq!(raw.newest_of(&third).unwrap(), second.newest(), "at call {index}");
    }
}

#[test]
fn a_publication_at_any_step_of_a_claim_is_found_or_not_announced() {
    for index in 0.. {
        let storage = memory();
        let raw = store(&storage);
        let first = started(&raw).unwrap();
        checkpoint(&raw, &first, Epoch(1)).unwrap();
        let manifest = write_checkpoint(&raw, &first, Epoch(2)).unwrap();
        let announced = Arc::new(Mutex::new(false));
        let (publisher, note) = (raw.clone(), announced.clone());
        let other = move || {
            *note.lock().unwrap() = publisher.publish(&first, &manifest).is_ok();
        };
        let (second, ran) = with_interruption(&storage, index, other, |store| store.claim());
        let second = second.unwrap();
        if *announced.lock().unwrap() {
            assert_eq!(second.newest(), Some(Epoch(2)), "announced and lost at call {index}");
        }
        assert_clean(&raw);
        raw.sweep(&second, OLD).unwrap();
        assert_nothing_left_over(&raw);
        if !ran {
            break;
        }
    }
}

#[test]
fn a_new_attempt_at_any_step_of_a_retirement_keeps_all_it_needs() {
    for index in 0.. {
        let storage = memory();
        let raw = store(&storage);
        let first = started(&raw).unwrap();
        for epoch in 1..=3 {
            checkpoint(&raw, &first, Epoch(epoch)).unwrap();
        }
        write_part(&raw, &first, Epoch(4), 1).unwrap();
        let other_store = raw.clone();
        let other = move || {
            let second = other_store.claim().unwrap();
            assert_eq!(other_store.newest_of(&second).unwrap(), Some(Epoch(3)));
            checkpoint(&other_store, &second, Epoch(1001)).unwrap();
            write_part(&other_store, &second, Epoch(1002), 1).unwrap();
        };
        let keep = [Epoch(3)];
        let (_, ran) =
            with_interruption(&storage, index, other, |store| store.retire(&first, &keep, &[]));
        if !ran {
            break;
        }
        assert_clean(&raw);
        assert!(raw.valid_epochs().unwrap().is_superset(&[Epoch(3), Epoch(1001)].into()));
        let in_progress = raw.part_path(Epoch(1002), Attempt(2), 1);
        assert!(storage.open(&in_progress).is_ok(), "call {index}");
    }
}

/// What somebody outside was told.
#[derive(Default)]
struct Told {
    /// The newest checkpoint.
    announced: Option<Epoch>,
    /// The checkpoints whose pin was granted and not taken off since.
    pinned: BTreeSet<Epoch>,
}

/// What an attempt does in its life. Says which checkpoints it announced. A user pins the first, and unpins those of
/// earlier lives.
fn life(store: &JobStore, told: &Mutex<Told>) -> Result<(), JobStoreError> {
    let claim = started(store)?;
    store.sweep(&claim, OLD)?;
    for step in 0..3 {
        let epoch = Epoch(claim.first_epoch().0 + step);
        let manifest = write_checkpoint(store, &claim, epoch)?;
        store.publish(&claim, &manifest)?;
        told.lock().unwrap().announced = Some(epoch);
        match step {
            0 => {
                store.pin(epoch)?;
                told.lock().unwrap().pinned.insert(epoch);
            }
            1 => {
                for old in store.pinned()?.range(..claim.first_epoch()) {
                    told.lock().unwrap().pinned.remove(old);
                    store.unpin(*old)?;
                }
            }
            _ => {}
        }
        store.retire(&claim, &[epoch], &[])?;
    }
    store.extend_epochs(&claim)
}

/// Whatever happened before: a new attempt starts from the newest announced checkpoint or a later one, and cleans up.
fn assert_recovers(storage: &Arc<dyn CheckpointStorage>, told: &Told, context: u64) {
    let Told { announced, pinned } = told;
    let store = store(storage);
    store.prepare(128, 1).unwrap();
    assert_clean(&store);
    let found = store.newest().unwrap();
    assert!(found >= *announced, "call {context}: {announced:?} was announced, {found:?} is there");
    let claim = store.claim().unwrap();
    assert_eq!(store.newest_of(&claim).unwrap(), found);
    store.sweep(&claim, OLD).unwrap();
    if let Some(newest) = found {
        store.load(newest).unwrap();
        store.retire(&claim, &[newest], &[]).unwrap();
    }
    assert_nothing_left_over(&store);
    let mut stays = store.pinned().unwrap();
    assert!(stays.is_superset(pinned), "call {context}: {pinned:?} were pinned, {stays:?} are");
    stays.extend(found);
    assert_eq!(store.valid_epochs().unwrap(), stays, "call {context}");
    checkpoint(&store, &claim, claim.first_epoch()).unwrap();
    for epoch in store.pinned().unwrap() {
        store.unpin(epoch).unwrap();
    }
    store.retire(&claim, &[claim.first_epoch()], &[]).unwrap();
    assert_nothing_left_over(&store);
    assert_eq!(store.valid_epochs().unwrap(), [claim.first_epoch()].into());
    assert_clean(&store);
}

#[test]
fn a_death_at_any_call_loses_no_announced_checkpoint_and_leaves_nothing_for_ever() {
    let mut deaths = 0;
    for index in 0.. {
        let storage = memory();
        let told = Mutex::new(Told::default());
        // The first life is whole, so that the second one also has something to restore and to sweep.
        life(&store(&storage), &told).unwrap();
        let fault: Arc<dyn CheckpointStorage> =
            Arc::new(FaultStorage::dying_at(storage.clone(), index));
        let survived = life(&store(&fault), &told).is_ok();
        assert_recovers(&storage, &told.lock().unwrap(), index);
        if survived {
            break;
        }
        deaths += 1;
    }
    assert!(deaths > 60, "only {deaths} calls could be interrupted");
}

#[test]
fn a_failure_of_any_call_loses_no_announced_checkpoint() {
    let actions = [
        FaultAction::FailDeterminate(ErrorKind::StorageFull),
        FaultAction::FailIndeterminateAfterEffect,
        FaultAction::FailIndeterminateWithoutEffect,
    ];
    for action in actions {
        for index in 0.. {
            let storage = memory();
            let told = Mutex::new(Told::default());
            let fault = FaultStorage::new(storage.clone(), move |point| {
                if point.index == index { action } else { FaultAction::Proceed }
            });
            let calls = fault.clone();
            let fault: Arc<dyn CheckpointStorage> = Arc::new(fault);
            // Another attempt begins in the same process after the failure.
            for _ in 0..2 {
                let _ = life(&store(&fault), &told);
            }
            assert_recovers(&storage, &told.lock().unwrap(), index);
            if calls.calls() <= index {
                break;
            }
        }
    }
}

#[test]
fn a_publication_in_doubt_is_settled_by_reading_back_or_by_publishing_again() {
    for action in
        [FaultAction::FailIndeterminateAfterEffect, FaultAction::FailIndeterminateWithoutEffect]
    {
        let storage = memory();
        let raw = store(&storage);
        let claim = started(&raw).unwrap();
        let manifest = write_checkpoint(&raw, &claim, Epoch(1)).unwrap();
        let first = Mutex::new(true);
        let fault = FaultStorage::new(storage.clone(), move |point| {
            let create = point.op == FaultOp::Create;
            if create && std::mem::take(&mut *first.lock().unwrap()) {
                action
            } else {
                FaultAction::Proceed
            }
        });
        let fault: Arc<dyn CheckpointStorage> = Arc::new(fault);
        let result = store(&fault).publish(&claim, &manifest);
        assert_eq!(result.is_ok(), action == FaultAction::FailIndeterminateAfterEffect);
        for _ in 0..2 {
            store(&fault).publish(&claim, &manifest).unwrap();
        }
        let other = Manifest { triggered_unix_ms: 2, ..manifest };
        let error = raw.publish(&claim, &other).unwrap_err();
        assert!(error.to_string().contains("another manifest"), "{error}");
    }
}

fn info(path: &str) -> crate::format::record::SavepointInfo {
    crate::format::record::SavepointInfo {
        path: PathBuf::from(path),
        job: job(),
        epoch: Epoch(1),
        parallelism: 2,
        entries: 128,
        bytes: 1000,
        native_files: 0,
    }
}

fn savepoint_request(expires_unix_ms: u64) -> crate::format::record::SavepointRequest {
    crate::format::record::SavepointRequest {
        to: PathBuf::from("/to"),
        stop: None,
        format: SavepointFormat::Canonical,
        expires_unix_ms,
    }
}

#[test]
fn a_request_is_taken_once_answered_once_and_belongs_to_what_is_reachable() {
    let storage = memory();
    let store = store(&storage);
    let claim = started(&store).unwrap();
    let none = BTreeSet::new();
    assert_eq!(store.take_requests(claim.attempt(), &none, 5).unwrap(), []);
    let id = store.ask(&savepoint_request(10)).unwrap();
    assert!(!store.is_taken(id).unwrap());
    let taken = store.take_requests(claim.attempt(), &none, 5).unwrap();
    assert_eq!(taken, [TakenRequest { id, request: savepoint_request(10) }]);
    assert!(store.is_taken(id).unwrap());
    let open = BTreeSet::from([id]);
    assert_eq!(store.take_requests(claim.attempt(), &open, 6).unwrap(), []);
    assert_eq!(store.answer_of(id).unwrap(), None, "it is open");
    assert_nothing_left_over(&store);
    let answer = |result| crate::format::record::SavepointAnswer { unix_ms: 7, result };
    store.answer(id, &answer(Ok(info("/to")))).unwrap();
    store.answer(id, &answer(Err("late".to_owned()))).unwrap();
    assert_eq!(store.answer_of(id).unwrap(), Some(answer(Ok(info("/to")))));
    assert_nothing_left_over(&store);
    store.sweep(&claim, OLD).unwrap();
    assert!(store.answer_of(id).unwrap().is_some(), "whoever asked has not read it");
    // Nobody fetches it.
    store.take_requests(claim.attempt(), &open, 7 + REQUEST_AGE_MAX).unwrap();
    assert!(store.answer_of(id).unwrap().is_some());
    store.take_requests(claim.attempt(), &open, 8 + REQUEST_AGE_MAX).unwrap();
    assert_eq!(store.answer_of(id).unwrap(), None);
    assert!(!store.is_taken(id).unwrap());
}

#[test]
fn a_request_of_a_dead_attempt_is_answered_by_the_next() {
    let storage = memory();
    let store = store(&storage);
    let first = started(&store).unwrap();
    let none = BTreeSet::new();
    let id = store.ask(&savepoint_request(1000)).unwrap();
    assert_eq!(store.take_requests(first.attempt(), &none, 5).unwrap().len(), 1);
    let waiting = store.ask(&savepoint_request(1000)).unwrap();
    let second = store.claim().unwrap();
    // The first one is fenced: it takes nothing more.
    let fenced = store.take_requests(first.attempt(), &none, 6).unwrap_err();
    assert!(matches!(fenced, JobStoreError::Fenced { .. }), "{fenced}");
    let taken = store.take_requests(second.attempt(), &none, 7).unwrap();
    assert_eq!(taken.iter().map(|taken| taken.id).collect::<Vec<_>>(), [waiting]);
    let why = store.answer_of(id).unwrap().unwrap().result.unwrap_err();
    assert!(why.contains("the attempt that had begun it has ended"), "{why}");
}

#[test]
fn requests_that_expired_were_withdrawn_or_are_damaged_are_not_taken() {
    let storage = memory();
    let store = store(&storage);
    let claim = started(&store).unwrap();
    let none = BTreeSet::new();
    let expired = store.ask(&savepoint_request(4)).unwrap();
    let withdrawn = store.ask(&savepoint_request(1000)).unwrap();
    store.withdraw(withdrawn).unwrap();
    let damaged = store.path(&layout::request(77));
    storage.put(&damaged, b"what?").unwrap();
    // An answer to a request that was withdrawn.
    let answer = crate::format::record::SavepointAnswer { unix_ms: 5, result: Ok(info("/to")) };
    store.answer(88, &answer).unwrap();
    assert_eq!(store.take_requests(claim.attempt(), &none, 5).unwrap(), []);
    assert_eq!(store.answer_of(expired).unwrap(), None);
    assert_eq!(store.answer_of(88).unwrap(), None);
    let why = store.answer_of(77).unwrap().unwrap().result.unwrap_err();
    assert!(why.contains("the request can not be read"), "{why}");
}

#[test]
fn a_savepoint_is_a_copy_that_needs_nothing_else_and_a_draft_leaves_nothing() {
    use crate::storage::Image;
    use crate::storage::savepoint::{Draft, SavepointError};
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("a/b");
    let storage = memory();
    let store = store(&storage);
    let claim = started(&store).unwrap();
    let manifest = write_checkpoint(&store, &claim, Epoch(1)).unwrap();

    let mut draft = Draft::create(&to).unwrap();
    draft.copy(&store, &manifest, SavepointFormat::Canonical).unwrap();
    assert!(to.join("1-1.part").is_file());
    let error = Image::open(&to).unwrap_err();
    assert!(matches!(error, JobStoreError::NotACheckpointPath { .. }), "{error}");
    let error = Draft::create(&to).unwrap_err();
    assert!(matches!(error, SavepointError::Exists { .. }), "{error}");
    drop(draft);
    assert!(!to.exists());

    let mut draft = Draft::create(&to).unwrap();
    let copied = draft.copy(&store, &manifest, SavepointFormat::Canonical).unwrap();
    let info = draft.finish(&copied).unwrap();
    assert_eq!((info.epoch, info.entries, info.bytes), (Epoch(1), 128, manifest.size_bytes()));
    drop((store, storage));
    let moved = directory.path().join("moved");
    std::fs::rename(&to, &moved).unwrap();
    let image = Image::open(&moved).unwrap();
    for part in &image.manifest().parts {
        let mut reader = image.open_part(part).unwrap();
        let mut entries = 0;
        let mut blocks = reader.blocks(0, 0..u16::MAX);
        while let Some(block) = blocks.next().unwrap() {
            entries += block.entries;
        }
        assert_eq!(entries, 64);
    }
    // What is damaged or missing is named by its file.
    std::fs::write(moved.join("1-1.part"), b"short").unwrap();
    let error = image.open_part(&image.manifest().parts[1]).unwrap_err().to_string();
    assert!(error.contains(&moved.join("1-1.part").display().to_string()), "{error}");
}

#[test]
fn a_part_that_was_damaged_since_is_not_copied() {
    use crate::storage::savepoint::Draft;
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("to");
    let storage = memory();
    let store = store(&storage);
    let claim = started(&store).unwrap();
    let manifest = write_checkpoint(&store, &claim, Epoch(1)).unwrap();
    let path = store.part_path(Epoch(1), claim.attempt(), 1);
    let mut bytes = storage.read(&path, 1 << 20).unwrap();
    bytes[20] ^= 1;
    storage.put(&path, &bytes).unwrap();
    let mut draft = Draft::create(&to).unwrap();
    let error = draft.copy(&store, &manifest, SavepointFormat::Canonical).unwrap_err();
    assert!(error.to_string().contains("could not be read back"), "{error}");
    drop(draft);
    assert!(!to.exists());
}
