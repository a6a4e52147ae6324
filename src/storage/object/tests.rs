//! The store over one in memory that fails as it is told.

use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use object_store::client::{HttpError, HttpErrorKind};
use object_store::memory::InMemory;
use object_store::multipart::PartId;
use object_store::{
    CopyOptions, GetResult, ListResult, MultipartId, MultipartUpload, ObjectMeta,
    PutMultipartOptions, PutResult,
};

use super::*;
use crate::storage::conformance;
use crate::storage::fault::{FaultAction, FaultStorage};

/// A call to the store below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Put,
    Get,
    Head,
    Part,
    Complete,
    Abort,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// Nothing was sent.
    NoConnection,
    /// Nothing was done, but the caller cannot know.
    LostBefore,
    /// It was done, but the caller cannot know.
    LostAfter,
    /// Another write was under way. (What S3 answers with status 409.)
    Conflict,
}

/// A store in memory that fails as it is told.
#[derive(Debug, Default)]
struct Shaky {
    memory: InMemory,
    /// Each is used up by the next call of its kind.
    troubles: Mutex<Vec<(Call, Trouble)>>,
    calls: Mutex<Vec<Call>>,
    ignores_conditions: AtomicBool,
    down: AtomicBool,
    open_uploads: AtomicU64,
}

impl fmt::Display for Shaky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shaky")
    }
}

fn broken(kind: HttpErrorKind) -> object_store::Error {
    let source = HttpError::new(kind, io::Error::other("planted"));
    object_store::Error::Generic { store: "Shaky", source: Box::new(source) }
}

impl Shaky {
    fn trouble(&self, call: Call, trouble: Trouble) {
        self.troubles.lock().unwrap().push((call, trouble));
    }

    fn count(&self, call: Call) -> usize {
        self.calls.lock().unwrap().iter().filter(|made| **made == call).count()
    }

    async fn shaken<T>(
        &self,
        call: Call,
        act: impl Future<Output = object_store::Result<T>>,
    ) -> object_store::Result<T> {
        self.calls.lock().unwrap().push(call);
        if self.down.load(Ordering::SeqCst) {
            return Err(broken(HttpErrorKind::Timeout));
        }
        let trouble = {
            let mut troubles = self.troubles.lock().unwrap();
            let place = troubles.iter().position(|(of, _)| *of == call);
            place.map(|place| troubles.remove(place).1)
        };
        match trouble {
            None => act.await,
            Some(Trouble::NoConnection) => Err(broken(HttpErrorKind::Connect)),
            Some(Trouble::LostBefore) => Err(broken(HttpErrorKind::Interrupted)),
            Some(Trouble::LostAfter) => {
                // Lost whatever it was, a refusal as well.
                let _ = act.await;
                Err(broken(HttpErrorKind::Interrupted))
            }
            Some(Trouble::Conflict) => Err(object_store::Error::AlreadyExists {
                path: String::new(),
                source: "409 Conflict".into(),
            }),
        }
    }
}

#[async_trait]
impl ObjectStore for Shaky {
    async fn put_opts(
        &self,
        key: &Key,
        payload: PutPayload,
        mut options: PutOptions,
    ) -> object_store::Result<PutResult> {
        if self.ignores_conditions.load(Ordering::SeqCst) {
            options.mode = PutMode::Overwrite;
        }
        self.shaken(Call::Put, self.memory.put_opts(key, payload, options)).await
    }

    async fn put_multipart_opts(
        &self,
        key: &Key,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.memory.put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Key, options: GetOptions) -> object_store::Result<GetResult> {
        let call = if options.head { Call::Head } else { Call::Get };
        self.shaken(call, self.memory.get_opts(key, options)).await
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, object_store::Result<Key>>,
    ) -> BoxStream<'static, object_store::Result<Key>> {
        self.memory.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.memory.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> object_store::Result<ListResult> {
        self.memory.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &Key,
        to: &Key,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.memory.copy_opts(from, to, options).await
    }
}

#[async_trait]
impl MultipartStore for Shaky {
    async fn create_multipart(&self, key: &Key) -> object_store::Result<MultipartId> {
        self.create_multipart_opts(key, PutMultipartOptions::default()).await
    }

    async fn create_multipart_opts(
        &self,
        key: &Key,
        options: PutMultipartOptions,
    ) -> object_store::Result<MultipartId> {
        self.open_uploads.fetch_add(1, Ordering::SeqCst);
        self.memory.create_multipart_opts(key, options).await
    }

    async fn put_part(
        &self,
        key: &Key,
        id: &MultipartId,
        index: usize,
        payload: PutPayload,
    ) -> object_store::Result<PartId> {
        self.shaken(Call::Part, self.memory.put_part(key, id, index, payload)).await
    }

    async fn complete_multipart(
        &self,
        key: &Key,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> object_store::Result<PutResult> {
        let complete = async {
            let completed = self.memory.complete_multipart(key, id, parts).await;
            if completed.is_ok() {
                self.open_uploads.fetch_sub(1, Ordering::SeqCst);
            }
            completed
        };
        self.shaken(Call::Complete, complete).await
    }

    async fn abort_multipart(&self, key: &Key, id: &MultipartId) -> object_store::Result<()> {
        let abort = async {
            self.open_uploads.fetch_sub(1, Ordering::SeqCst);
            self.memory.abort_multipart(key, id).await
        };
        self.shaken(Call::Abort, abort).await
    }
}

const QUICK: RetryPolicy = RetryPolicy {
    pause_min: Duration::from_millis(1),
    pause_max: Duration::from_millis(5),
    give_up_after: Duration::from_millis(50),
};

fn shaky(prefix: &str) -> (Arc<Shaky>, ObjectStorage) {
    let store = Arc::new(Shaky::default());
    let location = format!("s3://bucket/{prefix}");
    let storage = ObjectStorage::over(store.clone(), QUICK, prefix.to_owned(), location).unwrap();
    (store, storage)
}

fn path(text: &str) -> BlobPath {
    BlobPath::new(text).unwrap()
}

fn bytes_of(storage: &ObjectStorage, blob: &str) -> Vec<u8> {
    storage.read(&path(blob), 1 << 30).unwrap()
}

#[test]
fn an_object_store_keeps_the_contract_with_and_without_a_prefix() {
    for prefix in ["", "all/jobs"] {
        conformance::check(&|| Arc::new(shaky(prefix).1));
        conformance::check(&|| {
            Arc::new(FaultStorage::new(Arc::new(shaky(prefix).1), |_| FaultAction::Proceed))
        });
    }
}

#[test]
fn what_is_beside_the_prefix_is_not_seen() {
    let (store, storage) = shaky("a");
    let other =
        ObjectStorage::over(store, QUICK, "a2".to_owned(), "s3://bucket/a2".to_owned()).unwrap();
    other.put(&path("job"), b"theirs").unwrap();
    storage.put(&path("job"), b"ours").unwrap();
    assert_eq!(storage.list(None).unwrap(), [(path("job"), 4)]);
    storage.delete(&path("job")).unwrap();
    assert_eq!(bytes_of(&other, "job"), b"theirs");
}

#[test]
fn a_create_whose_answer_is_lost_knows_its_own_object() {
    let (store, storage) = shaky("");
    // An empty blob, which its contents do not tell from another's.
    store.trouble(Call::Put, Trouble::LostAfter);
    assert_eq!(storage.create(&path("a"), &[]).unwrap(), Created::New);
    assert_eq!(store.count(Call::Put), 2, "it was tried again, and found itself in its way");
    store.trouble(Call::Put, Trouble::LostBefore);
    assert_eq!(storage.create(&path("b"), &[]).unwrap(), Created::New);
    for trouble in [Trouble::LostAfter, Trouble::LostBefore, Trouble::NoConnection] {
        store.trouble(Call::Put, trouble);
        assert_eq!(storage.create(&path("a"), &[]).unwrap(), Created::AlreadyExists, "{trouble:?}");
    }
}

#[test]
fn a_create_that_is_refused_because_of_another_write_is_tried_again() {
    let (store, storage) = shaky("");
    store.trouble(Call::Put, Trouble::Conflict);
    assert_eq!(storage.create(&path("a"), b"x").unwrap(), Created::New);
    assert_eq!(bytes_of(&storage, "a"), b"x");
}

#[test]
fn a_store_that_is_gone_leaves_writes_in_doubt_and_reads_not() {
    let (store, storage) = shaky("");
    storage.put(&path("a"), b"x").unwrap();
    store.down.store(true, Ordering::SeqCst);
    let doubtful = |result: Result<(), StorageError>| {
        let error = result.unwrap_err();
        assert!(matches!(error, StorageError::Indeterminate { .. }), "{error:?}");
    };
    doubtful(storage.create(&path("b"), b"x").map(drop));
    doubtful(storage.put(&path("b"), b"x"));
    let mut writer = storage.writer(&path("c")).unwrap();
    writer.write_all(b"x").unwrap();
    doubtful(writer.finish());
    let error = storage.read(&path("a"), 9).unwrap_err();
    let StorageError::Determinate { source, path: address, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(address, "s3://bucket//a");
    assert!(source.to_string().contains("attempts in"), "{source}");
    assert!(source.to_string().contains("check AWS_ENDPOINT_URL"), "{source}");
    assert!(store.count(Call::Get) > 3, "a read is tried again");
    assert!(storage.read(&path("a"), 9).unwrap_err().is_unreachable());
}

#[test]
fn a_write_that_was_never_sent_is_not_in_doubt() {
    let (store, storage) = shaky("");
    for _ in 0..1000 {
        store.trouble(Call::Put, Trouble::NoConnection);
    }
    for result in [storage.create(&path("b"), b"x").map(drop), storage.put(&path("b"), b"x")] {
        let error = result.unwrap_err();
        assert!(matches!(error, StorageError::Determinate { .. }), "{error:?}");
    }
}

#[test]
fn a_server_that_ignores_conditions_is_refused() {
    let (store, storage) = shaky("jobs");
    storage.probe().unwrap();
    // A lost answer is not taken for an ignored condition, or the other way round.
    store.trouble(Call::Put, Trouble::LostAfter);
    storage.probe().unwrap();
    store.ignores_conditions.store(true, Ordering::SeqCst);
    let error = storage.probe().unwrap_err();
    let StorageError::Determinate { source, .. } = &error else { panic!("{error:?}") };
    assert!(source.to_string().contains("ignores the condition"), "{source}");
    assert_eq!(storage.sweep_temporary(Duration::ZERO).unwrap(), 0, "a probe has stayed");
}

#[test]
fn the_probe_of_a_dead_process_is_swept_and_no_blob() {
    let (store, storage) = shaky("jobs");
    let key = storage.key_of(&format!("{PROBES}/abc"));
    let put = async move { ObjectStoreExt::put(&store.memory, &key, "probe".into()).await };
    storage.lane.run(put).unwrap().unwrap();
    assert_eq!(storage.list(None).unwrap(), []);
    assert_eq!(storage.sweep_temporary(Duration::from_secs(60)).unwrap(), 0, "it is too young");
    assert_eq!(storage.sweep_temporary(Duration::ZERO).unwrap(), 1);
    assert_eq!(storage.sweep_temporary(Duration::ZERO).unwrap(), 0);
}

/// More than two parts, and no two pages the same.
fn large() -> Vec<u8> {
    (0..(21_u32 << 18)).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

#[test]
fn a_large_blob_is_uploaded_in_parts_and_read_ahead_in_few_requests() {
    let (store, storage) = shaky("");
    store.trouble(Call::Part, Trouble::LostBefore);
    store.trouble(Call::Part, Trouble::LostAfter);
    let bytes = large();
    let mut writer = storage.writer(&path("a")).unwrap();
    for piece in bytes.chunks(100_001) {
        writer.write_all(piece).unwrap();
    }
    writer.finish().unwrap();
    assert_eq!(store.count(Call::Part), 3 + 2);
    assert_eq!(store.open_uploads.load(Ordering::SeqCst), 0);

    let mut reader = storage.open(&path("a")).unwrap();
    assert_eq!(reader.size_bytes(), bytes.len() as u64);
    let mut read = vec![0; bytes.len()];
    // As decoders read: some bytes at a time.
    for piece in read.chunks_mut(1000) {
        reader.read_exact(piece).unwrap();
    }
    assert!(read == bytes, "other bytes came back");
    assert_eq!(reader.read(&mut [0; 9]).unwrap(), 0);
    let gets = store.count(Call::Get);
    assert!(gets <= 10, "{gets} requests for 21 MiB");

    for at in [20 << 20, 5, 7 << 20, (7 << 20) + 3, 0] {
        reader.seek(SeekFrom::Start(at)).unwrap();
        let mut some = [0; 64];
        reader.read_exact(&mut some).unwrap();
        assert_eq!(some, bytes[at as usize..][..64], "at {at}");
    }
}

#[test]
fn an_upload_whose_completion_is_lost_knows_its_own_object() {
    for trouble in [Trouble::LostAfter, Trouble::LostBefore] {
        let (store, storage) = shaky("");
        let bytes = large();
        let mut writer = storage.writer(&path("a")).unwrap();
        writer.write_all(&bytes).unwrap();
        store.trouble(Call::Complete, trouble);
        writer.finish().unwrap();
        assert!(bytes_of(&storage, "a") == bytes, "{trouble:?}");
        assert_eq!(store.open_uploads.load(Ordering::SeqCst), 0, "{trouble:?}");
    }
}

#[test]
fn a_writer_that_is_dropped_or_fails_aborts_its_upload() {
    let (store, storage) = shaky("");
    let mut writer = storage.writer(&path("a")).unwrap();
    writer.write_all(&large()).unwrap();
    assert_eq!(store.open_uploads.load(Ordering::SeqCst), 1);
    store.trouble(Call::Abort, Trouble::NoConnection);
    drop(writer);
    assert_eq!(store.open_uploads.load(Ordering::SeqCst), 0);

    let mut writer = storage.writer(&path("a")).unwrap();
    for _ in 0..1000 {
        store.trouble(Call::Part, Trouble::LostBefore);
    }
    let written =
        writer.write_all(&large()).and_then(|()| writer.finish().map_err(io::Error::other));
    assert!(written.is_err());
    assert_eq!(store.open_uploads.load(Ordering::SeqCst), 0);
    assert_eq!(storage.list(None).unwrap(), []);
}

#[test]
fn a_reader_never_mixes_a_blob_with_its_replacement() {
    let (_, storage) = shaky("");
    let bytes = large();
    let mut writer = storage.writer(&path("a")).unwrap();
    writer.write_all(&bytes).unwrap();
    writer.finish().unwrap();
    let mut reader = storage.open(&path("a")).unwrap();
    let mut writer = storage.writer(&path("a")).unwrap();
    writer.write_all(&vec![7; bytes.len()]).unwrap();
    writer.finish().unwrap();
    let mut read = Vec::new();
    let error = reader.read_to_end(&mut read).unwrap_err();
    assert!(error.to_string().contains("replaced while it was read"), "{error}");
    assert!(bytes.starts_with(&read));
}

#[test]
fn many_blobs_are_deleted_together() {
    let (_, storage) = shaky("jobs");
    let paths: Vec<_> = (0..100).map(|n| path(&format!("a/{n}"))).collect();
    for blob in &paths[..60] {
        storage.put(blob, b"x").unwrap();
    }
    storage.put(&path("b"), b"x").unwrap();
    // Those that are not there are a success.
    storage.delete_all(&paths).unwrap();
    assert_eq!(storage.list(None).unwrap(), [(path("b"), 1)]);
}

#[test]
fn a_server_that_does_not_answer_is_named_and_no_secret_is_told() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let endpoint = format!("http://user:hushhush@127.0.0.1:{port}");
    let variables = [
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "AKIAHUSHHUSH"),
        ("AWS_SECRET_ACCESS_KEY", "hushhush"),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let storage = ObjectStorage::connect("s3://bucket/jobs", variables, QUICK).unwrap();
    assert!(!format!("{storage:?}").to_lowercase().contains("hush"), "{storage:?}");
    let start = Instant::now();
    let failures = [
        storage.probe().unwrap_err(),
        storage.put(&path("a"), b"x").unwrap_err(),
        storage.list(None).unwrap_err(),
        storage.delete(&path("a")).unwrap_err(),
        storage.open(&path("a")).err().unwrap(),
    ];
    for error in failures {
        assert!(error.is_unreachable(), "{error:?}");
        let StorageError::Determinate { source, path, .. } = &error else { panic!("{error:?}") };
        assert!(path.starts_with("s3://bucket/jobs"), "{path}");
        let text = source.to_string();
        assert!(text.contains(&format!("endpoint http://127.0.0.1:{port}, region")), "{text}");
        assert!(text.contains("check AWS_ENDPOINT_URL"), "{text}");
        assert!(!format!("{error:?} {text}").to_lowercase().contains("hush"), "{text}");
    }
    assert!(start.elapsed() < Duration::from_secs(20));
}
