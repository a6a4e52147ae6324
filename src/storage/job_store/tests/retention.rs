//! What checkpoints are there: published, found, read and retired.

use super::*;

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
