//! A store in a bucket of an object store that speaks the S3 API.
//!
//! # How it differs from a directory
//! * An object is seen when its upload is complete, and not before: there are no temporary files, and nothing is renamed.
//!   A large blob is a multipart upload; what a killed writer leaves is an unfinished upload, which no listing shows, and
//!   which [`CheckpointStorage::sweep_temporary`] aborts.
//! * Create-if-absent is a conditional put (`If-None-Match: *`). A server that ignores the condition would let a fenced
//!   attempt publish, so [`ObjectStorage::open`] tries it out and refuses such a server.
//! * Listing must be strongly consistent, as it is of S3 and of the servers that are compatible with it.
//! * A write whose answer is lost may be carried out later, even after a newer write of the same path.
//!   The protocols above hold nevertheless: a manifest is written once, and what is written again is the same.
//! * A reader of a large blob that is replaced meanwhile fails; it never mixes the two.
//!
//! # Doubt
//! Every write carries a mark of its own in the object's metadata. If an answer is lost, the mark of what is there then
//! says whose it is. Only if nothing is there, or it cannot be read, the caller is told that nobody knows.
//!
//! # Threads
//! Requests travel on two threads of the store. Callers wait, so workers must not call; that is as with a directory.
//!
//! # Secrets
//! Credentials come from the environment. They are in no error, no log line and no `Debug` form; of what a server answers, only
//! its code and message are repeated.

mod lane;
mod reader;
mod retry;
mod s3;
mod writer;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::multipart::MultipartStore;
use object_store::path::Path as Key;
use object_store::{
    Attribute, Attributes, GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};

use self::lane::Lane;
use self::reader::ObjectReader;
use self::retry::{Answer, Failure, RetryPolicy, retried};
use self::writer::ObjectWriter;
use super::local::too_large;
use super::{
    BlobPath, BlobReader, BlobWriter, CheckpointStorage, Created, StorageError, StorageOp,
};

/// The name of the metadata that says which write made an object.
const MARK: &str = "highwater-write";
/// Where probes are. No blob has such a path.
const PROBES: &str = ".probe";
/// Deletes that are under way at once.
const DELETES_MAX: usize = 16;
/// How often a create is begun again because what was in its way has gone.
const CREATE_ROUNDS_MAX: u32 = 8;

/// What is asked of the client library.
pub(crate) trait Backend: ObjectStore + MultipartStore {}

impl<T: ObjectStore + MultipartStore> Backend for T {}

/// A store in a bucket. Clones share its threads.
#[derive(Clone)]
pub struct ObjectStorage {
    core: Arc<Core>,
    lane: Arc<Lane>,
    uploads: Option<Arc<s3::Uploads>>,
    /// What is before every key; empty: nothing.
    prefix: String,
    /// As `s3://bucket/prefix`.
    location: String,
    /// Which server and bucket it is, for errors.
    remedy: Arc<str>,
}

/// What the tasks of a store share.
struct Core {
    backend: Arc<dyn Backend>,
    policy: RetryPolicy,
}

/// Whose object is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Ours,
    Another,
    Nothing,
}

impl Core {
    /// Whether the object at `key` was made by the write with this mark.
    async fn look(&self, key: &Key, mark: &str) -> Result<Found, Failure> {
        let options = || GetOptions { head: true, ..GetOptions::default() };
        match retried(self.policy, || self.backend.get_opts(key, options())).await {
            Ok(there) => {
                let found = there.attributes.get(&Attribute::Metadata(MARK.into()));
                let ours = found.is_some_and(|found| found.as_ref() == mark);
                Ok(if ours { Found::Ours } else { Found::Another })
            }
            Err(failure) if failure.answer == Answer::NotFound => Ok(Found::Nothing),
            Err(failure) => Err(failure),
        }
    }

    async fn put_once(&self, key: &Key, bytes: Bytes, mode: PutMode, mark: &str) -> Outcome {
        let call = || {
            let options = PutOptions {
                mode: mode.clone(),
                attributes: marked(mark),
                ..PutOptions::default()
            };
            self.backend.put_opts(key, PutPayload::from_bytes(bytes.clone()), options)
        };
        retried(self.policy, call).await.map(drop)
    }

    /// Puts an object, replacing what was there. An error that is not in doubt had no effect.
    async fn put(&self, key: &Key, bytes: Bytes) -> Outcome {
        let mark = mark();
        let put = self.put_once(key, bytes, PutMode::Overwrite, &mark).await;
        self.settle(key, &mark, put).await
    }

    /// What a write came to, if its answer may have been lost.
    async fn settle(&self, key: &Key, mark: &str, outcome: Outcome) -> Outcome {
        match outcome {
            Err(failure) if failure.in_doubt => match self.look(key, mark).await {
                Ok(Found::Ours) => Ok(()),
                _ => Err(failure),
            },
            outcome => outcome,
        }
    }

    /// Puts an object unless one is there.
    async fn create(&self, key: &Key, bytes: Bytes) -> Result<Created, Failure> {
        let mark = mark();
        let (mut round, mut in_doubt) = (0, false);
        loop {
            round += 1;
            let put = self.put_once(key, bytes.clone(), PutMode::Create, &mark).await;
            let Err(mut failure) = put else { return Ok(Created::New) };
            in_doubt |= failure.in_doubt;
            failure.in_doubt = in_doubt;
            let refused = failure.answer == Answer::Condition;
            if !refused && !in_doubt {
                return Err(failure);
            }
            // The refusal may be of our own object, whose answer was lost; or of nothing but a conflict with another write.
            match self.look(key, &mark).await {
                Ok(Found::Ours) => return Ok(Created::New),
                Ok(Found::Another) => return Ok(Created::AlreadyExists),
                Ok(Found::Nothing) if refused && round < CREATE_ROUNDS_MAX => {}
                _ => return Err(failure),
            }
        }
    }
}

type Outcome = Result<(), Failure>;

/// A number that no other write has.
fn mark() -> String {
    let mut random = [0; 16];
    // Without random numbers no attempt could be claimed either.
    getrandom::fill(&mut random).expect("the system gives random numbers");
    format!("{:032x}", u128::from_le_bytes(random))
}

fn marked(mark: &str) -> Attributes {
    [(Attribute::Metadata(MARK.into()), mark.to_owned())].into_iter().collect()
}

impl ObjectStorage {
    /// Opens the store at `url`, as `s3://bucket/prefix`; the prefix may be missing. The bucket must be there. Settings are the usual
    /// environment variables: `AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
    /// `AWS_SESSION_TOKEN`, `AWS_ALLOW_HTTP` and others.
    ///
    /// Checks by a small object, which it removes again, that the server knows conditional puts.
    ///
    /// # Errors
    /// [`StorageError::Determinate`] if the URL is none, the bucket cannot be reached, or the server ignores conditions.
    pub fn open(url: &str) -> Result<Self, StorageError> {
        Self::open_with(url, std::env::vars())
    }

    /// As [`open`](Self::open), with variables of the program's own instead of the environment's.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(
        url: &str,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, StorageError> {
        let storage = Self::connect(url, variables, RetryPolicy::default())?;
        // Some servers would make a bucket whose name is a slip of the pen.
        storage.check_bucket(StorageOp::Read)?;
        storage.probe()?;
        Ok(storage)
    }

    /// Opens a store to look into it: as [`open`](Self::open), but nothing is written.
    ///
    /// # Errors
    /// [`StorageError::Determinate`] if the URL is none, or the bucket cannot be listed.
    pub fn open_existing(url: &str) -> Result<Self, StorageError> {
        let storage = Self::connect(url, std::env::vars(), RetryPolicy::default())?;
        storage.check_bucket(StorageOp::Read)?;
        Ok(storage)
    }

    fn connect(
        url: &str,
        variables: impl IntoIterator<Item = (String, String)>,
        policy: RetryPolicy,
    ) -> Result<Self, StorageError> {
        let connected = s3::connect(url, variables).map_err(|source| {
            StorageError::Determinate { op: StorageOp::Read, path: s3::printable(url), source }
        })?;
        let s3::Connected { store, bucket, prefix, remedy } = connected;
        let store = Arc::new(store);
        let slash = if prefix.is_empty() { "" } else { "/" };
        let location = format!("s3://{bucket}{slash}{prefix}");
        let uploads = s3::Uploads::new(store.clone());
        let mut storage = Self::over(store, policy, prefix, location)?;
        storage.uploads = Some(Arc::new(uploads));
        storage.remedy = remedy.into();
        Ok(storage)
    }

    fn over(
        backend: Arc<dyn Backend>,
        policy: RetryPolicy,
        prefix: String,
        location: String,
    ) -> Result<Self, StorageError> {
        let lane = Lane::new().map_err(|source| {
            let (op, path) = (StorageOp::Read, location.clone());
            StorageError::Determinate { op, path, source }
        })?;
        let remedy = location.as_str().into();
        let core = Arc::new(Core { backend, policy });
        Ok(Self { core, lane: Arc::new(lane), uploads: None, prefix, location, remedy })
    }

    /// Checks that a put on condition that nothing is there fails if something is.
    fn probe(&self) -> Result<(), StorageError> {
        let key = self.key_of(&format!("{PROBES}/{}", mark()));
        let core = self.core.clone();
        let task = async move {
            let put = || core.put_once(&key, Bytes::from_static(b"probe"), PutMode::Create, PROBES);
            let first = put().await;
            let first = first.or_else(|failure| match failure.answer {
                // Of an object that only we can have made: the condition works.
                Answer::Condition => Ok(()),
                _ => Err(failure),
            });
            let second = match first {
                Ok(()) => put().await,
                Err(failure) => Err(failure),
            };
            let removed = retried(core.policy, || core.backend.delete(&key)).await;
            match second {
                Err(failure) if failure.answer == Answer::Condition => removed.map(|()| true),
                Err(failure) => Err(failure),
                Ok(()) => Ok(false),
            }
        };
        let known = self.run(StorageOp::Write, &self.location, task)?;
        if known.map_err(|failure| self.failed(StorageOp::Write, &self.location, failure))? {
            return Ok(());
        }
        let why = format!(
            "the server ignores the condition `If-None-Match: *` of a put, so that a process that is thought dead could \
             overwrite checkpoints: use a server that knows conditional puts ({})",
            self.remedy
        );
        Err(StorageError::Determinate {
            op: StorageOp::Write,
            path: self.location.clone(),
            source: io::Error::new(io::ErrorKind::Unsupported, why),
        })
    }

    /// An answer that there is no object may come without saying that there is no bucket either.
    fn check_bucket(&self, op: StorageOp) -> Result<(), StorageError> {
        let (core, prefix) = (self.core.clone(), self.prefix_key());
        let task = async move {
            retried(core.policy, || async {
                core.backend.list(prefix.as_ref()).try_next().await.map(drop)
            })
            .await
        };
        self.run(op, &self.location, task)?
            .map_err(|failure| self.failed(op, &self.location, failure))
    }

    fn prefix_key(&self) -> Option<Key> {
        (!self.prefix.is_empty()).then(|| Key::from(self.prefix.as_str()))
    }

    fn key_of(&self, below: &str) -> Key {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        Key::from(format!("{}{slash}{below}", self.prefix))
    }

    fn key(&self, path: &BlobPath) -> Key {
        self.key_of(path.as_str())
    }

    fn blob_path(&self, key: &Key) -> Option<BlobPath> {
        let below = match self.prefix.as_str() {
            "" => key.as_ref(),
            prefix => key.as_ref().strip_prefix(prefix)?.strip_prefix('/')?,
        };
        BlobPath::new(below).ok()
    }

    fn address(&self, path: &BlobPath) -> String {
        format!("{}/{path}", self.location)
    }

    /// Runs a task on the store's threads.
    fn run<T: Send + 'static>(
        &self,
        op: StorageOp,
        path: &str,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, StorageError> {
        self.lane.run(task).map_err(|source| {
            let path = path.to_owned();
            match op {
                StorageOp::Read | StorageOp::List => StorageError::Determinate { op, path, source },
                _ => StorageError::Indeterminate { op, path, source },
            }
        })
    }

    fn failed(&self, op: StorageOp, path: &str, failure: Failure) -> StorageError {
        let path = path.to_owned();
        let doubt = failure.in_doubt && !matches!(op, StorageOp::Read | StorageOp::List);
        let source = failure.into_io(&self.remedy);
        if doubt {
            StorageError::Indeterminate { op, path, source }
        } else {
            StorageError::Determinate { op, path, source }
        }
    }

    /// As [`failed`](Self::failed), of a read: what is not there is no failure of the store, if the bucket is there.
    fn failed_read(&self, path: &BlobPath, failure: Failure) -> StorageError {
        if failure.answer != Answer::NotFound {
            return self.failed(StorageOp::Read, &self.address(path), failure);
        }
        match self.check_bucket(StorageOp::Read) {
            Ok(()) => StorageError::NotFound { path: self.address(path) },
            Err(error) => error,
        }
    }

    /// Deletes keys, some at once. Those after the first that fails may be deleted or not.
    fn delete_keys(&self, keys: Vec<(Key, String)>) -> Result<(), StorageError> {
        let core = self.core.clone();
        let task = async move {
            let deletes = keys.into_iter().map(|(key, path)| {
                let core = core.clone();
                async move {
                    match retried(core.policy, || core.backend.delete(&key)).await {
                        Err(failure) if failure.answer != Answer::NotFound => Err((path, failure)),
                        _ => Ok(()),
                    }
                }
            });
            futures_util::stream::iter(deletes)
                .buffer_unordered(DELETES_MAX)
                .try_for_each(|()| std::future::ready(Ok(())))
                .await
        };
        self.run(StorageOp::Delete, &self.location, task)?
            .map_err(|(path, failure)| self.failed(StorageOp::Delete, &path, failure))
    }
}

impl fmt::Debug for ObjectStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the client: it knows the credentials.
        f.debug_struct("ObjectStorage").field("location", &self.location).finish_non_exhaustive()
    }
}

impl CheckpointStorage for ObjectStorage {
    fn put(&self, path: &BlobPath, bytes: &[u8]) -> Result<(), StorageError> {
        let (core, key) = (self.core.clone(), self.key(path));
        let bytes = Bytes::copy_from_slice(bytes);
        let (op, address) = (StorageOp::Publish, self.address(path));
        let put = self.run(op, &address, async move { core.put(&key, bytes).await })?;
        put.map_err(|failure| self.failed(op, &address, failure))
    }

    fn create(&self, path: &BlobPath, bytes: &[u8]) -> Result<Created, StorageError> {
        let (core, key) = (self.core.clone(), self.key(path));
        let bytes = Bytes::copy_from_slice(bytes);
        let (op, address) = (StorageOp::Publish, self.address(path));
        let created = self.run(op, &address, async move { core.create(&key, bytes).await })?;
        created.map_err(|failure| self.failed(op, &address, failure))
    }

    fn writer(&self, path: &BlobPath) -> Result<Box<dyn BlobWriter>, StorageError> {
        Ok(Box::new(ObjectWriter::new(self.clone(), path)))
    }

    fn open(&self, path: &BlobPath) -> Result<Box<dyn BlobReader>, StorageError> {
        let reader = ObjectReader::open(self.clone(), path);
        Ok(Box::new(reader.map_err(|failure| self.failed_read(path, failure))?))
    }

    fn read(&self, path: &BlobPath, limit_bytes: u64) -> Result<Vec<u8>, StorageError> {
        let (core, key) = (self.core.clone(), self.key(path));
        let task = async move {
            let whole = || async {
                let there = core.backend.get_opts(&key, GetOptions::default()).await?;
                let size = there.meta.size;
                // Dropping the answer ends the transfer.
                Ok(if size > limit_bytes { Err(size) } else { Ok(there.bytes().await?) })
            };
            retried(core.policy, whole).await
        };
        let address = self.address(path);
        match self.run(StorageOp::Read, &address, task)? {
            Ok(Ok(bytes)) => Ok(bytes.into()),
            Ok(Err(size)) => {
                let source = too_large(size, limit_bytes);
                Err(StorageError::Determinate { op: StorageOp::Read, path: address, source })
            }
            Err(failure) => Err(self.failed_read(path, failure)),
        }
    }

    fn list(&self, prefix: Option<&BlobPath>) -> Result<Vec<(BlobPath, u64)>, StorageError> {
        let (op, core) = (StorageOp::List, self.core.clone());
        let below = prefix.map_or_else(|| self.prefix_key(), |prefix| Some(self.key(prefix)));
        let itself = prefix.map(|prefix| self.key(prefix));
        let task = async move {
            let listed: Vec<_> = retried(core.policy, || {
                core.backend
                    .list(below.as_ref())
                    .map_ok(|meta| (meta.location, meta.size))
                    .try_collect()
            })
            .await?;
            // The store lists what is below; what is there itself has nothing below it.
            let Some(itself) = itself.filter(|_| listed.is_empty()) else { return Ok(listed) };
            match retried(core.policy, || core.backend.head(&itself)).await {
                Ok(meta) => Ok(vec![(meta.location, meta.size)]),
                Err(failure) if failure.answer == Answer::NotFound => Ok(listed),
                Err(failure) => Err(failure),
            }
        };
        let address = prefix.map_or_else(|| self.location.clone(), |prefix| self.address(prefix));
        let listed =
            self.run(op, &address, task)?.map_err(|failure| self.failed(op, &address, failure))?;
        // Probes and objects that are not ours have no blob path.
        let mut blobs: Vec<_> = listed
            .into_iter()
            .filter_map(|(key, size)| Some((self.blob_path(&key)?, size)))
            .collect();
        blobs.sort();
        Ok(blobs)
    }

    fn delete(&self, path: &BlobPath) -> Result<(), StorageError> {
        self.delete_keys(vec![(self.key(path), self.address(path))])
    }

    fn delete_all(&self, paths: &[BlobPath]) -> Result<(), StorageError> {
        self.delete_keys(paths.iter().map(|path| (self.key(path), self.address(path))).collect())
    }

    fn sweep_temporary(&self, age: Duration) -> Result<u64, StorageError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let newest = i64::try_from(now.saturating_sub(age).as_millis()).unwrap_or(i64::MAX);
        let (core, probes) = (self.core.clone(), self.key_of(PROBES));
        let task = async move {
            let list = || core.backend.list(Some(&probes)).try_collect::<Vec<_>>();
            retried(core.policy, list).await
        };
        let (op, address) = (StorageOp::Delete, &self.location);
        let probes =
            self.run(op, address, task)?.map_err(|failure| self.failed(op, address, failure))?;
        let old = probes.into_iter().filter(|meta| meta.last_modified.timestamp_millis() <= newest);
        let old: Vec<_> = old.map(|meta| (meta.location, self.location.clone())).collect();
        let mut removed = old.len() as u64;
        self.delete_keys(old)?;
        if let Some(uploads) = self.uploads.clone() {
            let (policy, prefix) = (self.core.policy, self.prefix.clone());
            let task = async move { uploads.abort_older(policy, &prefix, newest).await };
            let aborted = self.run(op, address, task)?;
            removed += aborted.map_err(|failure| self.failed(op, address, failure))?;
        }
        Ok(removed)
    }

    fn location(&self) -> String {
        self.location.clone()
    }
}
