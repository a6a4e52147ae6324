//! The store itself, against the server.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use highwater::storage::fault::{FaultAction, FaultOp, FaultStorage};
use highwater::storage::{
    BlobPath, CheckpointStorage, Created, ObjectStorage, StorageError, conformance, open_existing,
};

use crate::Test;
use crate::server::{ACCESS_KEY, SECRET_KEY, Server};

pub const TESTS: &[Test] = &[
    ("an_object_store_keeps_the_contract", keeps_the_contract),
    ("a_decorated_object_store_keeps_the_contract", decorated),
    ("a_listing_of_several_pages_is_whole_and_is_deleted_together", pages),
    ("a_large_blob_goes_up_in_parts_and_comes_back", large),
    ("an_upload_that_nobody_finishes_is_swept", unfinished_upload),
    ("a_missing_bucket_and_wrong_keys_are_told_and_no_secret_is", refusals),
];

fn path(text: &str) -> BlobPath {
    BlobPath::new(text).unwrap()
}

fn new_store(server: &Server, name: &str) -> Arc<dyn CheckpointStorage> {
    static STORES: AtomicU32 = AtomicU32::new(0);
    let number = STORES.fetch_add(1, Ordering::SeqCst);
    Arc::new(ObjectStorage::open(&server.url(&format!("{name}-{number}/store"))).unwrap())
}

fn keeps_the_contract(server: &Server) {
    conformance::check(&|| new_store(server, "contract"));
}

fn decorated(server: &Server) {
    conformance::check(&|| {
        Arc::new(FaultStorage::new(new_store(server, "decorated"), |_| FaultAction::Proceed))
    });
    // And with a fault: a create in doubt had its effect, or not.
    let below = new_store(server, "faults");
    let storage = FaultStorage::new(below.clone(), |point| match (point.op, point.index) {
        (FaultOp::Create, 0) => FaultAction::FailIndeterminateAfterEffect,
        (FaultOp::Create, 1) => FaultAction::FailIndeterminateWithoutEffect,
        _ => FaultAction::Proceed,
    });
    for blob in ["a", "b"] {
        let error = storage.create(&path(blob), b"x").unwrap_err();
        assert!(matches!(error, StorageError::Indeterminate { .. }), "{error:?}");
    }
    assert_eq!(storage.create(&path("a"), b"y").unwrap(), Created::AlreadyExists);
    assert_eq!(storage.create(&path("b"), b"y").unwrap(), Created::New);
    assert_eq!(below.read(&path("a"), 9).unwrap(), b"x");
}

fn pages(server: &Server) {
    // A page has a thousand.
    const BLOBS: usize = 1030;
    let storage = new_store(server, "pages");
    let paths: Vec<BlobPath> = (0..BLOBS).map(|n| path(&format!("many/{n:05}"))).collect();
    std::thread::scope(|scope| {
        for some in paths.chunks(BLOBS.div_ceil(8)) {
            let storage = &storage;
            scope.spawn(move || some.iter().for_each(|blob| storage.put(blob, b"abc").unwrap()));
        }
    });
    storage.put(&path("other"), b"x").unwrap();
    let listed = storage.list(Some(&path("many"))).unwrap();
    assert!(listed.iter().map(|(path, _)| path).eq(&paths), "{} are listed", listed.len());
    assert!(listed.iter().all(|(_, size)| *size == 3));
    storage.delete_all(&paths).unwrap();
    assert_eq!(storage.list(None).unwrap(), [(path("other"), 1)]);
}

fn large(server: &Server) {
    let storage = new_store(server, "large");
    let bytes: Vec<u8> =
        (0..(18_u32 << 18)).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let mut writer = storage.writer(&path("a/b")).unwrap();
    for piece in bytes.chunks(1 << 20) {
        writer.write_all(piece).unwrap();
    }
    assert_eq!(storage.list(None).unwrap(), [], "it is not seen before its end");
    writer.finish().unwrap();
    assert_eq!(storage.list(None).unwrap(), [(path("a/b"), bytes.len() as u64)]);
    let mut read = Vec::new();
    storage.open(&path("a/b")).unwrap().read_to_end(&mut read).unwrap();
    assert!(read == bytes, "other bytes came back");
    assert_eq!(storage.sweep_temporary(Duration::ZERO).unwrap(), 0);
}

fn unfinished_upload(server: &Server) {
    let storage = new_store(server, "unfinished");
    let beside = new_store(server, "unfinished-too");
    for storage in [&storage, &beside] {
        let mut writer = storage.writer(&path("job/part")).unwrap();
        writer.write_all(&vec![1; 9 << 20]).unwrap();
        // What a killed process leaves.
        std::mem::forget(writer);
    }
    assert_eq!(storage.list(None).unwrap(), []);
    assert_eq!(storage.sweep_temporary(Duration::from_secs(3600)).unwrap(), 0, "it is young");
    assert_eq!(storage.sweep_temporary(Duration::ZERO).unwrap(), 1);
    assert_eq!(storage.sweep_temporary(Duration::ZERO).unwrap(), 0);
    assert_eq!(beside.sweep_temporary(Duration::ZERO).unwrap(), 1, "it was left alone");
}

fn refusals(server: &Server) {
    let endpoint = std::env::var("AWS_ENDPOINT_URL").unwrap();
    let texts = |error: &StorageError| {
        let source = std::error::Error::source(error).unwrap();
        let text = format!("{error}: {source}");
        for secret in [SECRET_KEY, ACCESS_KEY, "wrong-secret", "Signature="] {
            let shown = format!("{text} {error:?}");
            assert!(!shown.contains(secret), "{shown}");
        }
        assert!(text.contains(&endpoint), "{text}");
        text
    };
    let url = "s3://highwater-no-such-bucket/a";
    for error in [
        ObjectStorage::open(url).map(drop).unwrap_err(),
        open_existing(Path::new(url)).map(drop).unwrap_err(),
    ] {
        let text = texts(&error);
        assert!(matches!(error, StorageError::Determinate { .. }), "{error:?}");
        assert!(!error.is_unreachable(), "no other time will go better: {error:?}");
        assert!(text.contains(url) && text.contains("make the bucket"), "{text}");
    }

    let url = server.url("refusals");
    let variables = std::env::vars().map(|(name, value)| match name.as_str() {
        "AWS_SECRET_ACCESS_KEY" => (name, "wrong-secret".to_owned()),
        _ => (name, value),
    });
    let error = ObjectStorage::open_with(&url, variables).unwrap_err();
    assert!(matches!(error, StorageError::Determinate { .. }), "{error:?}");
    let text = texts(&error);
    assert!(text.contains("403") && text.contains("check AWS_ACCESS_KEY_ID"), "{text}");

    // A bucket that is there and a prefix that is not is an empty store.
    let empty = open_existing(Path::new(&url)).unwrap();
    assert_eq!(empty.list(None).unwrap(), []);
    assert!(matches!(empty.read(&path("a"), 9), Err(StorageError::NotFound { .. })));
}
