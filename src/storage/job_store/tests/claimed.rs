//! What a job takes over: it goes when a checkpoint stems from it, not before, and nothing else goes with it.

use std::path::Path;

use super::*;
use crate::format::record::Claimed;
use crate::storage::savepoint::Draft;
use crate::storage::{Image, LocalStorage};

/// The lineage that begins with what is taken over.
const NEW: Lineage = Lineage(1 << 60);

/// The store of another job directory, with checkpoints that share files: 2 with 1 and with 3.
fn elsewhere(directory: &Path) -> (JobStore, Claim) {
    let storage: Arc<dyn CheckpointStorage> =
        Arc::new(LocalStorage::open(directory).unwrap().volatile());
    let store = store(&storage);
    let claim = started(&store).unwrap();
    for epoch in 1..=3 {
        let shared = |n: u64| format!("job/shared/1-{n}-base");
        storage.put(&BlobPath::new(shared(epoch)).unwrap(), b"x").unwrap();
        storage.put(&BlobPath::new(format!("job/shared/1-{epoch}-own")).unwrap(), b"x").unwrap();
        let mut manifest = write_checkpoint(&store, &claim, Epoch(epoch)).unwrap();
        for named in [epoch.saturating_sub(1).max(1), epoch] {
            manifest.parts[0].natives.push(native(&shared(named)));
        }
        manifest.parts[0].natives.push(native(&format!("job/shared/1-{epoch}-own")));
        store.publish(&claim, &manifest).unwrap();
    }
    (store, claim)
}

fn savepoint(of: &JobStore, epoch: Epoch, to: &Path) {
    let mut draft = Draft::create(to).unwrap();
    let copied = draft.copy(of, &of.load(epoch).unwrap(), SavepointFormat::Native).unwrap();
    draft.finish(&copied).unwrap();
}

/// Takes over what is at `path` by a new attempt.
fn taken_over(store: &JobStore, path: &Path) -> (Claim, Image) {
    let claim = started(store).unwrap();
    let image = Image::open(path).unwrap();
    store.take_over(&claim, &image, path.to_str().unwrap(), NEW).unwrap();
    (claim, image)
}

/// Publishes a checkpoint that stems from what was taken over.
fn publish(store: &JobStore, claim: &Claim) -> Epoch {
    let epoch = claim.first_epoch();
    let mut manifest = write_checkpoint(store, claim, epoch).unwrap();
    manifest.lineage = NEW;
    store.publish(claim, &manifest).unwrap();
    epoch
}

fn only(store: &JobStore) -> Claimed {
    let claimed = store.claimed().unwrap().claimed;
    assert_eq!(claimed.len(), 1, "{claimed:?}");
    claimed.into_iter().next().unwrap()
}

#[test]
fn what_is_taken_over_goes_with_the_first_checkpoint_that_stems_from_it_and_not_before() {
    let directory = tempfile::tempdir().unwrap();
    let (old, _) = elsewhere(&directory.path().join("old"));
    let to = directory.path().join("savepoint");
    savepoint(&old, Epoch(2), &to);
    let before = old.storage().list(None).unwrap();
    let store = store(&memory());
    let (claim, _) = taken_over(&store, &to);
    store.sweep(&claim, OLD).unwrap();
    store.retire(&claim, &[Epoch(1)], &[]).unwrap();
    assert!(to.join("manifest").exists() && !only(&store).released);
    let epoch = publish(&store, &claim);
    assert!(to.join("manifest").exists(), "publishing itself deletes nothing");
    store.retire(&claim, &[epoch], &[]).unwrap();
    assert!(!to.exists(), "the directory is gone with its files");
    assert!(only(&store).released && only(&store).blobs.is_empty());
    assert_eq!(old.storage().list(None).unwrap(), before, "what it was a copy of is another's");
    assert_nothing_left_over(&store);
    // The job is over and keeps nothing.
    store.retire(&claim, &[], &[]).unwrap();
    assert!(store.claimed().unwrap().claimed.is_empty());
}

#[test]
fn a_deletion_that_was_cut_short_anywhere_is_finished_by_the_next_attempt() {
    // The checkpoint of a job, and a savepoint.
    for in_job in [true, false] {
        for done in 0.. {
            let directory = tempfile::tempdir().unwrap();
            let (old, _) = elsewhere(directory.path());
            let mut path = directory.path().join("job/chk/2");
            if !in_job {
                path = directory.path().join("savepoint");
                savepoint(&old, Epoch(2), &path);
            }
            let store = store(&memory());
            let (claim, image) = taken_over(&store, &path);
            publish(&store, &claim);
            let (_, blobs) = image.files().unwrap();
            let root = if in_job { directory.path() } else { &path };
            // What another checkpoint needs is in nobody's list of what to delete.
            let shared = |blob: &BlobPath| in_job && blob.as_str().ends_with("-base");
            let own = blobs.iter().filter(|blob| !shared(blob)).map(|b| root.join(b.as_str()));
            let mut files = vec![path.join("manifest")];
            files.extend(own);
            if done > files.len() {
                assert!(files.len() >= 3, "{files:?}");
                break;
            }
            for file in &files[..done] {
                let _ = std::fs::remove_file(file);
            }
            let next = store.claim().unwrap();
            store.sweep(&next, OLD).unwrap();
            assert!(files.iter().all(|file| !file.exists()), "after {done}: {files:?}");
            assert!(only(&store).released);
            assert_eq!(old.valid_epochs().unwrap().contains(&Epoch(2)), !in_job);
            assert_clean(&old);
            assert_nothing_left_over(&store);
        }
    }
}

#[test]
fn what_nothing_came_of_stays_the_users() {
    let directory = tempfile::tempdir().unwrap();
    let (old, _) = elsewhere(directory.path());
    let store = store(&memory());
    taken_over(&store, &directory.path().join("job/chk/3"));
    // The next run begins with something else, and its checkpoints say so.
    let next = store.claim().unwrap();
    let epoch = next.first_epoch();
    store.publish(&next, &write_checkpoint(&store, &next, epoch).unwrap()).unwrap();
    store.retire(&next, &[epoch], &[]).unwrap();
    assert_eq!(old.valid_epochs().unwrap().len(), 3);
    assert!(store.claimed().unwrap().claimed.is_empty());
}

#[test]
fn what_others_need_of_it_stays() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("job/chk/2");
    // Pinned: all of it. A newer attempt: its shared files. Otherwise: what checkpoints 1 and 3 reference.
    for (pinned, newer, own_stays) in
        [(true, false, true), (false, true, true), (false, false, false)]
    {
        let _ = std::fs::remove_dir_all(directory.path().join("job"));
        let (old, _) = elsewhere(directory.path());
        let store = store(&memory());
        let (claim, _) = taken_over(&store, &path);
        if pinned {
            old.pin(Epoch(2)).unwrap();
        }
        if newer {
            old.claim().unwrap();
        }
        let epoch = publish(&store, &claim);
        store.retire(&claim, &[epoch], &[]).unwrap();
        assert_eq!(old.valid_epochs().unwrap().contains(&Epoch(2)), pinned);
        let there = |name: &str| directory.path().join("job/shared").join(name).exists();
        assert!(there("1-1-base") && there("1-2-base"));
        assert_eq!(there("1-2-own"), own_stays, "pinned {pinned}, newer {newer}");
        assert_clean(&old);
        assert!(only(&store).released);
    }
}

#[test]
fn what_is_gone_or_another_by_now_is_left_alone() {
    for replaced in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let (old, _) = elsewhere(&directory.path().join("old"));
        let to = directory.path().join("savepoint");
        savepoint(&old, Epoch(2), &to);
        let store = store(&memory());
        let (claim, _) = taken_over(&store, &to);
        std::fs::remove_dir_all(&to).unwrap();
        if replaced {
            savepoint(&old, Epoch(3), &to);
        }
        let epoch = publish(&store, &claim);
        store.retire(&claim, &[epoch], &[]).unwrap();
        assert_eq!(to.join("manifest").exists(), replaced);
        assert!(only(&store).released);
    }
}

#[test]
fn names_that_lead_out_of_a_directory_are_not_followed() {
    let directory = tempfile::tempdir().unwrap();
    let (old, _) = elsewhere(&directory.path().join("old"));
    let to = directory.path().join("savepoint");
    savepoint(&old, Epoch(2), &to);
    let storage = memory();
    let store = store(&storage);
    let (claim, _) = taken_over(&store, &to);
    std::fs::write(directory.path().join("precious"), b"x").unwrap();
    std::fs::create_dir(to.join("below")).unwrap();
    std::fs::write(to.join("below/precious"), b"x").unwrap();
    let mut record = store.claimed().unwrap();
    let outside = ["../precious", "below/precious", "/etc/hostname"];
    record.claimed[0].blobs.extend(outside.map(str::to_owned));
    storage.put(&BlobPath::new("job/claimed").unwrap(), &record.encode().unwrap()).unwrap();
    let epoch = publish(&store, &claim);
    store.retire(&claim, &[epoch], &[]).unwrap();
    assert!(!to.join("manifest").exists());
    assert!(directory.path().join("precious").exists() && to.join("below/precious").exists());
}

#[test]
fn a_damaged_record_is_named_and_deletes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (old, _) = elsewhere(directory.path());
    let storage = memory();
    let store = store(&storage);
    let (claim, image) = taken_over(&store, &directory.path().join("job/chk/3"));
    let record = BlobPath::new("job/claimed").unwrap();
    storage.put(&record, b"nonsense").unwrap();
    let epoch = publish(&store, &claim);
    let errors = [
        store.retire(&claim, &[epoch], &[]).map(drop),
        store.sweep(&claim, OLD).map(drop),
        store.take_over(&claim, &image, "again", NEW),
    ];
    for error in errors {
        let error = error.unwrap_err().to_string();
        assert!(error.contains("job/claimed is damaged"), "{error}");
    }
    assert_eq!(old.valid_epochs().unwrap().len(), 3);
    // Whoever removes it keeps what was given.
    storage.delete(&record).unwrap();
    store.retire(&claim, &[epoch], &[]).unwrap();
    assert_eq!(old.valid_epochs().unwrap().len(), 3);
}
