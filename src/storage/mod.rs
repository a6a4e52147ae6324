//! Where checkpoints live: blobs under paths, written so that a kill at any instruction leaves no torn one.
//!
//! # What an implementor must guarantee
//! * **Atomicity**: a blob is seen whole or not at all, whatever instruction the writer dies at.
//! * **Durability**: when `put`, `create` or `BlobWriter::finish` returns `Ok`, the blob survives a power cut.
//! * **Create-if-absent**: of any number of concurrent `create`s of one path exactly one wins.
//! * **Reads are stable**: what `read` returned survives a power cut, although its writer may not know yet. (A
//!   new attempt acts on a manifest that it found; it must not vanish afterwards.)
//! * **Deletes are durable** when they return, so that deletes in sequence can not be reordered by a power cut.
//! * **A missing store is an error**, never an empty one.
//! * **Failed syncs**: a failed fsync condemns the blob; it is never retried on the same handle.
//! * All methods may be called from any thread.
//!
//! Every implementation passes `storage::conformance`, the fault-injecting decorator included.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

#[cfg(any(test, feature = "testing"))]
pub mod conformance;
pub mod fault;
pub mod image;
pub mod job_store;
pub mod local;
pub mod local_copy;
pub mod memory;
#[cfg(feature = "s3")]
pub mod object;
mod place;
pub mod savepoint;

pub use image::Image;
pub use job_store::JobStore;
pub use local::LocalStorage;
pub use local_copy::LocalCopies;
pub use memory::MemoryStorage;
#[cfg(feature = "s3")]
pub use object::ObjectStorage;
pub(crate) use place::is_same;
pub use place::{absolute, is_url, open, open_existing};

/// A blob's place, relative to the root of the store.
///
/// Shape: components of the characters of a `Name`, separated by `/`; no empty component, no `.` or `..`, not
/// absolute; at most 512 bytes. (Components may not start with `.`: those are the store's own temporary files.)
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlobPath(String);

/// Why a text is not a [`BlobPath`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what:?} is not a path inside a checkpoint store")]
pub struct InvalidBlobPath {
    /// The refused text, shortened to 160 characters.
    pub what: String,
}

impl BlobPath {
    /// Checks `text` and makes it a path.
    ///
    /// # Errors
    /// [`InvalidBlobPath`] if the text has another shape than the type's documentation says.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidBlobPath> {
        let text = text.into();
        let component = |c: &str| crate::ids::Name::new(c).is_ok();
        if text.len() <= 512 && text.split('/').all(component) {
            Ok(Self(text))
        } else {
            Err(InvalidBlobPath { what: text.chars().take(160).collect() })
        }
    }

    /// The text of the path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BlobPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for BlobPath {
    type Error = InvalidBlobPath;
    fn try_from(text: String) -> Result<Self, InvalidBlobPath> {
        Self::new(text)
    }
}

impl From<BlobPath> for String {
    fn from(path: BlobPath) -> Self {
        path.0
    }
}

/// What was being done when storage failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StorageOp {
    /// Reading a blob.
    Read,
    /// Writing a blob's bytes.
    Write,
    /// Making a blob durable and visible.
    Publish,
    /// Listing blobs.
    List,
    /// Deleting a blob.
    Delete,
}

impl fmt::Display for StorageOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Publish => "publish",
            Self::List => "list",
            Self::Delete => "delete",
        })
    }
}

/// Storage failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// Did not take effect; retrying is safe.
    #[error("{op} of {path} failed")]
    Determinate {
        /// What was being done.
        op: StorageOp,
        /// To which blob (or prefix, or root), as the operator knows it: with the store's root in front.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// May have taken effect; read back before publishing again.
    #[error("{op} of {path} may have taken effect")]
    Indeterminate {
        /// What was being done.
        op: StorageOp,
        /// To which blob, as the operator knows it.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// There is no such blob.
    #[error("{path} does not exist")]
    NotFound {
        /// The blob, as the operator knows it.
        path: String,
    },
}

impl StorageError {
    /// Whether the store could not be reached: another time may go better.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        let kinds = [
            io::ErrorKind::NotConnected,
            io::ErrorKind::ConnectionAborted,
            io::ErrorKind::TimedOut,
        ];
        match self {
            Self::Determinate { source, .. } | Self::Indeterminate { source, .. } => {
                kinds.contains(&source.kind())
            }
            Self::NotFound { .. } => false,
        }
    }
}

/// The outcome of [`CheckpointStorage::create`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// This call made the blob.
    New,
    /// The blob was there; it is untouched.
    AlreadyExists,
}

/// A blob being written. Dropping it without [`finish`](BlobWriter::finish) leaves nothing behind.
pub trait BlobWriter: io::Write + Send {
    /// Makes the blob durable and visible under its path, replacing what was there.
    ///
    /// # Errors
    /// [`StorageError`]; the blob is then condemned: it is not visible, unless the error is `Indeterminate`.
    fn finish(self: Box<Self>) -> Result<(), StorageError>;
}

/// A blob being read, with random access.
pub trait BlobReader: io::Read + io::Seek + Send {
    /// Units: bytes.
    fn size_bytes(&self) -> u64;
}

/// What a blob must hold, as a manifest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobContents {
    /// Units: bytes.
    pub bytes: u64,
    /// The CRC-32C of all of them.
    pub crc32c: u32,
}

/// A store of blobs. See the module for the contract.
pub trait CheckpointStorage: Send + Sync + fmt::Debug {
    /// Writes a small blob, durably, replacing what was there.
    ///
    /// # Errors
    /// [`StorageError`].
    fn put(&self, path: &BlobPath, bytes: &[u8]) -> Result<(), StorageError>;

    /// Writes a small blob, durably, unless the path is taken.
    ///
    /// # Errors
    /// [`StorageError`].
    fn create(&self, path: &BlobPath, bytes: &[u8]) -> Result<Created, StorageError>;

    /// Begins to write a large blob.
    ///
    /// # Errors
    /// [`StorageError`].
    fn writer(&self, path: &BlobPath) -> Result<Box<dyn BlobWriter>, StorageError>;

    /// Opens a blob.
    ///
    /// # Errors
    /// [`StorageError`], `NotFound` among them.
    fn open(&self, path: &BlobPath) -> Result<Box<dyn BlobReader>, StorageError>;

    /// Opens a blob whose contents are known, so that a copy of it that holds the same will do. Nobody has checked that the
    /// blob does hold it if it is no copy.
    ///
    /// # Errors
    /// [`StorageError`], `NotFound` among them.
    fn open_checked(
        &self,
        path: &BlobPath,
        _contents: BlobContents,
    ) -> Result<Box<dyn BlobReader>, StorageError> {
        self.open(path)
    }

    /// Reads a small blob whole.
    ///
    /// # Errors
    /// [`StorageError`], `NotFound` among them; `Determinate` if it is larger than `limit_bytes`.
    fn read(&self, path: &BlobPath, limit_bytes: u64) -> Result<Vec<u8>, StorageError>;

    /// Lists the blobs at and below `prefix` (whole components), in ascending order, with their sizes in bytes.
    /// `None` lists everything. Temporary files of unfinished writers are not blobs.
    ///
    /// # Errors
    /// [`StorageError`].
    fn list(&self, prefix: Option<&BlobPath>) -> Result<Vec<(BlobPath, u64)>, StorageError>;

    /// Deletes a blob. Deleting what is not there is a success. Directories that become empty disappear.
    ///
    /// # Errors
    /// [`StorageError`].
    fn delete(&self, path: &BlobPath) -> Result<(), StorageError>;

    /// Deletes blobs in any order, several at once where that is faster. They are durably gone when it returns.
    ///
    /// # Errors
    /// [`StorageError`]; any of the others may be deleted or not.
    fn delete_all(&self, paths: &[BlobPath]) -> Result<(), StorageError> {
        paths.iter().try_for_each(|path| self.delete(path))
    }

    /// Makes `to`, on the local disk, another name of a blob of that size, and says whether it did. A store that is not on the
    /// same file system does not. Whoever asks makes the directory of `to` durable.
    fn link(&self, _path: &BlobPath, _size_bytes: u64, _to: &std::path::Path) -> bool {
        false
    }

    /// Removes what dead writers left (temporary files), none of them younger than `age`.
    ///
    /// # Errors
    /// [`StorageError`].
    fn sweep_temporary(&self, age: std::time::Duration) -> Result<u64, StorageError>;

    /// The store's address as the operator knows it, for messages.
    fn location(&self) -> String;
}

/// An error with all its causes, in one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
