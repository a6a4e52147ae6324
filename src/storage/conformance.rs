//! One suite for every [`CheckpointStorage`]: what its documentation promises and a test can see.

use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use super::{BlobPath, CheckpointStorage, Created, StorageError};

/// Checks a kind of store. `make` makes a new, empty one at every call.
///
/// # Panics
/// If the store breaks its contract; the message says how.
pub fn check(make: &dyn Fn() -> Arc<dyn CheckpointStorage>) {
    blobs_come_back_and_are_replaced(&*make());
    small_reads_are_limited(&*make());
    missing_blobs_are_told_apart(&*make());
    one_creator_wins(&make());
    a_large_blob_is_seen_whole_or_not_at_all(&*make());
    readers_have_random_access(&*make());
    a_reader_is_not_disturbed_by_a_replacement(&*make());
    listings_are_sorted_and_keep_to_whole_components(&*make());
    deletes_can_be_repeated(&*make());
    many_blobs_are_deleted_together(&*make());
    nothing_temporary_is_left(&*make());
}

fn path(text: &str) -> BlobPath {
    BlobPath::new(text).expect("the suite's paths are valid")
}

fn all(storage: &dyn CheckpointStorage) -> Vec<(String, u64)> {
    let blobs = storage.list(None).expect("list works");
    blobs.into_iter().map(|(path, size)| (path.into(), size)).collect()
}

fn blobs_come_back_and_are_replaced(storage: &dyn CheckpointStorage) {
    for bytes in [&b"first"[..], b"", &[9; 100_000]] {
        storage.put(&path("a/b/c"), bytes).expect("put works");
        assert_eq!(storage.read(&path("a/b/c"), 1 << 20).expect("read works"), bytes);
        assert_eq!(all(storage), [("a/b/c".to_owned(), bytes.len() as u64)]);
    }
}

fn small_reads_are_limited(storage: &dyn CheckpointStorage) {
    storage.put(&path("a"), &[1; 10]).expect("put works");
    assert_eq!(storage.read(&path("a"), 10).expect("read works").len(), 10);
    let error = storage.read(&path("a"), 9).expect_err("ten bytes are more than nine");
    assert!(matches!(error, StorageError::Determinate { .. }), "{error:?}");
}

fn missing_blobs_are_told_apart(storage: &dyn CheckpointStorage) {
    storage.put(&path("a/b"), b"x").expect("put works");
    for missing in ["b", "a", "a/b/c", "a/c"] {
        let read = storage.read(&path(missing), 10).expect_err("it is not there");
        assert!(matches!(read, StorageError::NotFound { .. }), "{missing}: {read:?}");
        let open = storage.open(&path(missing)).err().expect("it is not there");
        assert!(matches!(open, StorageError::NotFound { .. }), "{missing}: {open:?}");
    }
}

fn one_creator_wins(storage: &Arc<dyn CheckpointStorage>) {
    for round in 0..20 {
        let place = path(&format!("claims/{round}"));
        let creators: Vec<_> = (0..4_u8)
            .map(|creator| {
                let (storage, place) = (storage.clone(), place.clone());
                std::thread::spawn(move || {
                    storage.create(&place, &[creator]).expect("create works")
                })
            })
            .collect();
        let outcomes: Vec<_> =
            creators.into_iter().map(|t| t.join().expect("no creator panics")).collect();
        let winners = (0..4_u8).filter(|c| outcomes[usize::from(*c)] == Created::New);
        let winners: Vec<_> = winners.collect();
        assert_eq!(winners.len(), 1, "{outcomes:?}");
        assert_eq!(storage.read(&place, 10).expect("read works"), winners);
    }
    assert_eq!(all(&**storage).len(), 20);
}

fn a_large_blob_is_seen_whole_or_not_at_all(storage: &dyn CheckpointStorage) {
    let place = path("job/chk/1/0.part");
    let mut writer = storage.writer(&place).expect("writer works");
    writer.write_all(&vec![7; 3 << 20]).expect("write works");
    writer.flush().expect("flush works");
    assert!(all(storage).is_empty(), "an unfinished blob is listed");
    assert!(storage.open(&place).is_err(), "an unfinished blob is opened");
    drop(writer);
    assert!(all(storage).is_empty(), "a dropped writer left a blob");

    let mut writer = storage.writer(&place).expect("writer works");
    for piece in 0..300_u32 {
        writer.write_all(&piece.to_le_bytes()).expect("write works");
        writer.write_all(&[1; 5000]).expect("write works");
    }
    writer.finish().expect("finish works");
    let mut bytes = Vec::new();
    let mut reader = storage.open(&place).expect("open works");
    assert_eq!(reader.size_bytes(), 300 * 5004);
    reader.read_to_end(&mut bytes).expect("read works");
    assert_eq!(bytes.len(), 300 * 5004);
    for (piece, bytes) in bytes.chunks(5004).enumerate() {
        assert_eq!(bytes[..4], (piece as u32).to_le_bytes());
        assert!(bytes[4..].iter().all(|byte| *byte == 1));
    }
}

fn readers_have_random_access(storage: &dyn CheckpointStorage) {
    storage.put(&path("a"), &(0..=255).collect::<Vec<u8>>()).expect("put works");
    let mut reader = storage.open(&path("a")).expect("open works");
    let mut two = [0; 2];
    for (at, expected) in [(SeekFrom::Start(200), 200), (SeekFrom::Start(3), 3)] {
        reader.seek(at).expect("seek works");
        reader.read_exact(&mut two).expect("read works");
        assert_eq!(two, [expected, expected + 1]);
    }
    reader.seek(SeekFrom::End(-1)).expect("seek works");
    assert!(reader.read_exact(&mut two).is_err(), "a read goes past the end");
}

fn a_reader_is_not_disturbed_by_a_replacement(storage: &dyn CheckpointStorage) {
    storage.put(&path("a"), &[1; 1000]).expect("put works");
    let mut reader = storage.open(&path("a")).expect("open works");
    storage.put(&path("a"), &[2; 10]).expect("put works");
    storage.delete(&path("a")).expect("delete works");
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).expect("read works");
    assert_eq!(bytes, [1; 1000]);
}

fn listings_are_sorted_and_keep_to_whole_components(storage: &dyn CheckpointStorage) {
    for blob in ["a/b", "a/b2", "a/c/d", "ab/x", "a.b", "a/b-3", "z"] {
        storage.put(&path(blob), b"12").expect("put works");
    }
    let names = |prefix: Option<&str>| -> Vec<String> {
        let listed = storage.list(prefix.map(path).as_ref()).expect("list works");
        assert!(listed.is_sorted());
        assert!(listed.iter().all(|(_, size)| *size == 2));
        listed.into_iter().map(|(path, _)| path.into()).collect()
    };
    assert_eq!(names(None).len(), 7);
    assert_eq!(names(Some("a")), ["a/b", "a/b-3", "a/b2", "a/c/d"]);
    assert_eq!(names(Some("a/b")), ["a/b"]);
    assert_eq!(names(Some("a/c")), ["a/c/d"]);
    assert_eq!(names(Some("nothing")), [""; 0]);
    assert_eq!(names(Some("a/nothing/there")), [""; 0]);
}

fn deletes_can_be_repeated(storage: &dyn CheckpointStorage) {
    storage.put(&path("a/b/c"), b"x").expect("put works");
    storage.put(&path("a/d"), b"x").expect("put works");
    for _ in 0..2 {
        storage.delete(&path("a/b/c")).expect("delete works");
        assert_eq!(all(storage), [("a/d".to_owned(), 1)]);
    }
    // The directory that became empty is not in the way of a blob.
    storage.put(&path("a/b"), b"x").expect("the place is free");
    storage.delete(&path("a/b")).expect("delete works");
    assert_eq!(storage.create(&path("a/b/c"), b"y").expect("create works"), Created::New);
}

fn many_blobs_are_deleted_together(storage: &dyn CheckpointStorage) {
    let paths: Vec<_> = (0..20).map(|n| path(&format!("a/{}/{n}", n % 3))).collect();
    for blob in &paths {
        storage.put(blob, b"x").expect("put works");
    }
    storage.delete_all(&[]).expect("nothing is deleted");
    assert_eq!(all(storage).len(), 20);
    for _ in 0..2 {
        storage.delete_all(&paths[..19]).expect("what is not there is no failure");
        assert_eq!(all(storage), [(paths[19].as_str().to_owned(), 1)]);
    }
}

fn nothing_temporary_is_left(storage: &dyn CheckpointStorage) {
    storage.put(&path("a/b"), b"x").expect("put works");
    storage.create(&path("a/b"), b"y").expect("create works");
    storage.create(&path("a/c"), b"y").expect("create works");
    storage.writer(&path("a/d")).expect("writer works").finish().expect("finish works");
    drop(storage.writer(&path("a/e")).expect("writer works"));
    assert_eq!(storage.sweep_temporary(Duration::ZERO).expect("sweep works"), 0);
    assert_eq!(all(storage).len(), 3);
}
