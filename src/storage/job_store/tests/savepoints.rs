//! Requests for savepoints, and savepoints.

use super::*;

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
