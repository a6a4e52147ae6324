//! What can go wrong with an instance.

use std::path::{Path, PathBuf};

/// An instance of RocksDB could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RocksError {
    /// The local file system failed.
    #[error("{}", .path.display())]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// How.
        source: std::io::Error,
    },
    /// RocksDB failed.
    #[error("RocksDB could not {what} in {}", .path.display())]
    Database {
        /// The directory of the instance.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What it says.
        source: rocksdb::Error,
    },
    /// The instance failed before.
    #[error("{0}")]
    Before(String),
    /// A value could not be encoded, or not be decoded.
    #[error(transparent)]
    Format(#[from] crate::format::FormatError),
}

impl RocksError {
    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    pub(super) fn database(path: &Path, what: &'static str) -> impl FnOnce(rocksdb::Error) -> Self {
        move |source| Self::Database { path: path.to_owned(), what, source }
    }

    /// All of it as one line.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}
