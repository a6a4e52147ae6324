//! What is copied, which copies are used, and which go.

use std::io::ErrorKind;

use super::*;
use crate::storage::fault::{FaultAction, FaultOp, FaultStorage};
use crate::storage::{LocalStorage, MemoryStorage, conformance};

const CREATED: u64 = 1_700_000_000_000;

fn path(text: &str) -> BlobPath {
    BlobPath::new(text).unwrap()
}

fn job() -> Name {
    Name::new("job").unwrap()
}

fn contents(bytes: &[u8]) -> BlobContents {
    BlobContents { bytes: bytes.len() as u64, crc32c: crc32c::crc32c(bytes) }
}

/// A store, the copies, and the decorator over both; the attempt has begun.
struct World {
    store: MemoryStorage,
    copies: MemoryStorage,
    both: LocalCopies,
}

impl World {
    fn new() -> Self {
        let copies = MemoryStorage::new();
        Self::over(copies.clone(), Arc::new(copies))
    }

    fn over(copies: MemoryStorage, through: Arc<dyn CheckpointStorage>) -> Self {
        let store = MemoryStorage::new();
        let both = LocalCopies::new(Arc::new(store.clone()), Some(through), Arc::default());
        both.begin(&job(), CREATED);
        Self { store, copies, both }
    }

    fn write(&self, blob: &str, bytes: &[u8]) {
        let mut writer = self.both.writer(&path(blob)).unwrap();
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap();
    }

    fn copies(&self) -> Vec<BlobPath> {
        self.copies.list(None).unwrap().into_iter().map(|(path, _)| path).collect()
    }

    /// What a restore reads, and whether it came from the copy.
    fn restore(&self, blob: &str, wanted: &[u8]) -> (Vec<u8>, bool) {
        let before = self.both.shared.counts.get();
        let mut reader = self.both.open_checked(&path(blob), contents(wanted)).unwrap();
        let mut found = Vec::new();
        reader.read_to_end(&mut found).unwrap();
        let now = self.both.shared.counts.get();
        let (local, store) = (now.local - before.local, now.store - before.store);
        assert_eq!(local + store, found.len() as u64);
        assert!(local == 0 || store == 0);
        (found, local > 0)
    }
}

#[test]
fn a_store_with_copies_keeps_the_contract() {
    conformance::check(&|| {
        let copies = MemoryStorage::new();
        let store = Arc::new(MemoryStorage::new());
        let both = LocalCopies::new(store, Some(Arc::new(copies)), Arc::default());
        // The suite's blobs are below several names.
        both.begin(&Name::new("a").unwrap(), CREATED);
        Arc::new(both)
    });
}

#[test]
fn a_directory_without_fsync_keeps_the_contract() {
    let directories = std::sync::Mutex::new(Vec::new());
    conformance::check(&|| {
        let directory = tempfile::tempdir().unwrap();
        let storage = LocalStorage::open(directory.path()).unwrap().volatile();
        directories.lock().unwrap().push(directory);
        Arc::new(storage)
    });
}

#[test]
fn a_restore_reads_the_copy_and_anything_else_the_store() {
    let world = World::new();
    world.write("job/chk/1/1-0.part", b"part");
    world.both.create(&path("job/chk/1/manifest"), b"manifest").unwrap();
    world.both.put(&path("job/job"), b"record").unwrap();
    assert_eq!(world.copies().len(), 1, "{:?}", world.copies());
    assert_eq!(world.restore("job/chk/1/1-0.part", b"part"), (b"part".to_vec(), true));
    // A new attempt checks again, and finds it.
    world.both.begin(&job(), CREATED);
    assert_eq!(world.restore("job/chk/1/1-0.part", b"part"), (b"part".to_vec(), true));
    world.store.delete(&path("job/chk/1/1-0.part")).unwrap();
    let open = world.both.open(&path("job/chk/1/1-0.part")).err().unwrap();
    assert!(matches!(open, StorageError::NotFound { .. }));
}

#[test]
fn a_copy_that_is_damaged_short_or_gone_is_not_used() {
    for damaged in [Some(&b"Part"[..]), Some(b"par"), Some(b""), Some(b"part "), None] {
        let world = World::new();
        world.write("job/shared/1-1-0.part", b"part");
        let copy = world.copies().remove(0);
        match damaged {
            Some(bytes) => world.copies.put(&copy, bytes).unwrap(),
            None => world.copies.delete(&copy).unwrap(),
        }
        let found = world.restore("job/shared/1-1-0.part", b"part");
        assert_eq!(found, (b"part".to_vec(), false), "{damaged:?}");
        assert_eq!(world.copies(), [], "{damaged:?}");
    }
}

#[test]
fn a_copy_of_other_contents_than_the_manifest_says_is_not_used() {
    let world = World::new();
    world.write("job/chk/1/1-0.part", b"old!");
    assert_eq!(world.restore("job/chk/1/1-0.part", b"old!"), (b"old!".to_vec(), true));
    // The store was put back to an older state, and the attempt's number was used again, elsewhere.
    world.store.put(&path("job/chk/1/1-0.part"), b"new!").unwrap();
    assert_eq!(world.restore("job/chk/1/1-0.part", b"new!"), (b"new!".to_vec(), false));
}

#[test]
fn a_job_that_began_anew_does_not_see_the_copies_of_the_one_before() {
    let world = World::new();
    world.write("job/chk/1/1-0.part", b"part");
    world.both.begin(&job(), CREATED + 1);
    assert_eq!(world.restore("job/chk/1/1-0.part", b"part"), (b"part".to_vec(), false));
    world.write("job/chk/1/1-0.part", b"anew");
    assert_eq!(world.copies().len(), 2);
    assert_eq!(world.both.sweep().unwrap(), 1);
    assert_eq!(world.restore("job/chk/1/1-0.part", b"anew"), (b"anew".to_vec(), true));
}

#[test]
fn the_same_job_in_another_store_does_not_see_the_copies() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let copies = MemoryStorage::new();
    let [one, other] = directories.each_ref().map(|directory| {
        let store = LocalStorage::open(directory.path()).unwrap();
        let both =
            LocalCopies::new(Arc::new(store), Some(Arc::new(copies.clone())), Arc::default());
        both.begin(&job(), CREATED);
        both
    });
    let mut writer = one.writer(&path("job/chk/1/1-0.part")).unwrap();
    writer.write_all(b"part").unwrap();
    writer.finish().unwrap();
    let opened = other.open_checked(&path("job/chk/1/1-0.part"), contents(b"part"));
    assert!(matches!(opened.err().unwrap(), StorageError::NotFound { .. }));
}

#[test]
fn copies_go_with_their_blobs() {
    let world = World::new();
    for blob in ["job/chk/1/1-0.part", "job/chk/2/1-0.part", "job/chk/3/1-0.part"] {
        world.write(blob, b"part");
    }
    world.both.delete(&path("job/chk/1/1-0.part")).unwrap();
    world.both.delete_all(&[path("job/chk/2/1-0.part")]).unwrap();
    assert_eq!(world.copies().len(), 1, "{:?}", world.copies());
    assert_eq!(world.store.list(None).unwrap(), [(path("job/chk/3/1-0.part"), 4)]);
}

#[test]
fn a_sweep_leaves_copies_of_what_is_in_the_store_and_no_others() {
    let world = World::new();
    world.write("job/chk/1/1-0.part", b"part");
    world.write("job/chk/2/1-0.part", b"part");
    world.write("job/chk/3/1-0.part", b"part");
    let before = world.copies();
    // Another process has retired them, or has another one of that name.
    world.store.delete(&path("job/chk/1/1-0.part")).unwrap();
    world.store.put(&path("job/chk/2/1-0.part"), b"longer").unwrap();
    world.copies.put(&path("job/0-0/chk/3/1-0.part"), b"of an older run").unwrap();
    world.copies.put(&path("other/0-0/chk/3/1-0.part"), b"of another job").unwrap();
    assert_eq!(world.both.sweep().unwrap(), 3);
    assert_eq!(world.copies(), [before[2].clone(), path("other/0-0/chk/3/1-0.part")]);
}

#[test]
fn a_process_that_does_not_delete_keeps_a_bounded_number_of_copies() {
    let world = World::new();
    let mut most = 0;
    for epoch in 1..1000 {
        world.write(&format!("job/chk/{epoch}/1-0.part"), b"part");
        if epoch > 2 {
            world.store.delete(&path(&format!("job/chk/{}/1-0.part", epoch - 2))).unwrap();
        }
        most = most.max(world.copies().len());
    }
    assert!((2..=2 * COPIES_MIN + 2).contains(&most), "{most}");
}

#[test]
fn a_local_disk_that_fails_in_any_call_fails_nothing() {
    let calls = [
        FaultOp::Writer,
        FaultOp::Write,
        FaultOp::Finish,
        FaultOp::Open,
        FaultOp::ReadAt,
        FaultOp::Delete,
    ];
    for failing in calls {
        let copies = MemoryStorage::new();
        let through = FaultStorage::new(Arc::new(copies.clone()), move |point| {
            if point.op == failing {
                FaultAction::FailDeterminate(ErrorKind::StorageFull)
            } else {
                FaultAction::Proceed
            }
        });
        let world = World::over(copies, Arc::new(through));
        world.write("job/chk/1/1-0.part", b"part");
        let from_copy = failing == FaultOp::Delete;
        let found = world.restore("job/chk/1/1-0.part", b"part");
        assert_eq!(found, (b"part".to_vec(), from_copy), "{failing:?}");
        world.both.delete(&path("job/chk/1/1-0.part")).unwrap();
        assert_eq!(world.store.list(None).unwrap(), []);
    }
}

#[test]
fn without_a_place_for_copies_restored_bytes_are_counted_all_the_same() {
    let store = MemoryStorage::new();
    let both = LocalCopies::new(Arc::new(store), None, Arc::default());
    both.begin(&job(), CREATED);
    both.put(&path("job/chk/1/1-0.part"), b"part").unwrap();
    let mut reader = both.open_checked(&path("job/chk/1/1-0.part"), contents(b"part")).unwrap();
    reader.read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(both.shared.counts.get(), RestoredBytes { local: 0, store: 4 });
    assert_eq!(both.sweep().unwrap(), 0);
}

#[test]
fn a_directory_for_copies_that_cannot_be_one_is_refused() {
    let check = |checkpoints: Option<&str>, copies: &str| {
        check_local(checkpoints.map(Path::new), Path::new(copies))
    };
    assert!(check(None, "/copies").unwrap_err().contains("--checkpoint-dir"));
    assert!(check(Some("/a"), "s3://bucket").unwrap_err().contains("object store"));
    for (checkpoints, copies) in [("/a", "/a"), ("/a", "/a/b"), ("/a/b", "/a"), ("a", "a/b")] {
        let refused = check(Some(checkpoints), copies).unwrap_err();
        assert!(refused.contains("lie in each other"), "{refused}");
    }
    for (checkpoints, copies) in [("/a", "/ab"), ("s3://bucket/a", "/a"), ("a", "b")] {
        assert_eq!(check(Some(checkpoints), copies), Ok(()));
    }
}
