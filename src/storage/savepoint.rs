//! Writing a savepoint: a directory, or a prefix of a bucket, that holds one checkpoint and needs nothing else.
//!
//! ```text
//! <savepoint>/manifest                 published last; names parts by their names here
//! <savepoint>/<attempt>-<worker>.part  copies of the checkpoint's parts
//! <savepoint>/<file>                   copies of what it shares with other checkpoints, by their names there
//! <savepoint>/draft                    only in a bucket, and until the manifest is there: somebody writes here
//! ```
//! # Invariants
//! * The directory is made for it, exclusively, and never written again: nothing that was there is replaced. A bucket has no
//!   directories: there `draft` is created, which only one can do, and then nothing else may be listed. (If two come one after
//!   the other, the second finds the first's draft or, if that is gone, its manifest.)
//! * Without a manifest it is no savepoint. The manifest comes after all that it names is durable, and only if the
//!   checkpoint itself was published: so a fenced attempt leaves none.
//!
//! # Failure
//! A draft that is dropped removes what it has written; what it cannot remove it names in the log. A kill leaves a directory
//! without a manifest, which nothing reads; it is the user's to remove.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::image::blob;
use super::job_store::{JobStore, JobStoreError};
use super::{
    BlobPath, BlobWriter, CheckpointStorage, Created, LocalStorage, StorageError, StorageOp, place,
};
use crate::format::FormatError;
use crate::format::manifest::{Manifest, ManifestKind, PartPlace};
use crate::format::record::{SavepointFormat, SavepointInfo};

/// Says that somebody writes a savepoint here, where there are no directories.
const DRAFT: &str = "draft";
/// Units: bytes that are copied at once.
const COPY_BYTES: usize = 1 << 20;

/// A savepoint could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SavepointError {
    /// The directory is there, or there are objects below the URL.
    #[error(
        "{path} exists already: a savepoint is written to a new directory, or below a URL that nothing is below"
    )]
    Exists {
        /// The directory or the URL.
        path: String,
    },
    /// The directory could not be written.
    #[error("the savepoint could not be written")]
    Target(#[source] StorageError),
    /// The checkpoint could not be read.
    #[error("the checkpoint could not be read back")]
    Checkpoint(#[source] JobStoreError),
}

/// A savepoint that is being written. It removes itself unless it is finished.
#[derive(Debug)]
pub struct Draft {
    storage: Arc<dyn CheckpointStorage>,
    to: PathBuf,
    written: Vec<BlobPath>,
    finished: bool,
}

impl Draft {
    /// Makes the directory `to`, and those above it that are missing; or reserves what is below the URL `to` in an object
    /// store.
    ///
    /// # Errors
    /// [`SavepointError::Exists`] or [`SavepointError::Target`]; then nothing is written.
    pub fn create(to: &Path) -> Result<Self, SavepointError> {
        if place::is_url(to) {
            let storage = place::open(to).map_err(SavepointError::Target)?;
            return Self::reserve(storage, to);
        }
        let storage = LocalStorage::create_new(to).map_err(|error| match error {
            StorageError::Determinate { source, path, .. }
                if source.kind() == io::ErrorKind::AlreadyExists =>
            {
                SavepointError::Exists { path }
            }
            error => SavepointError::Target(error),
        })?;
        let to = storage.root().to_owned();
        Ok(Self { storage: Arc::new(storage), to, written: Vec::new(), finished: false })
    }

    fn reserve(storage: Arc<dyn CheckpointStorage>, to: &Path) -> Result<Self, SavepointError> {
        let exists = || SavepointError::Exists { path: storage.location() };
        let mark = blob(DRAFT);
        // So that what is there already is found without writing anything.
        if !storage.list(None).map_err(SavepointError::Target)?.is_empty() {
            return Err(exists());
        }
        if storage.create(&mark, &[]).map_err(SavepointError::Target)? == Created::AlreadyExists {
            return Err(exists());
        }
        let draft = Self {
            storage: Arc::clone(&storage),
            to: to.to_owned(),
            written: Vec::new(),
            finished: false,
        };
        let there = storage.list(None).map_err(SavepointError::Target)?;
        if there.iter().any(|(path, _)| *path != mark) {
            return Err(exists());
        }
        Ok(draft)
    }

    /// The directory, or the URL.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.to
    }

    /// Copies all that a checkpoint is made of; its manifest need not be published yet. Returns the savepoint's manifest.
    ///
    /// Of a native one a file is linked if both are on one file system. It is not read then, so what is damaged already is
    /// found when it is restored.
    ///
    /// # Errors
    /// [`SavepointError`]; the draft is then to be dropped.
    pub fn copy(
        &mut self,
        store: &JobStore,
        manifest: &Manifest,
        format: SavepointFormat,
    ) -> Result<Manifest, SavepointError> {
        let links = format == SavepointFormat::Native;
        let mut copied = manifest.clone();
        copied.kind = ManifestKind::Savepoint;
        for part in &mut copied.parts {
            if let PartPlace::Blob { path, bytes, crc32c } = &mut part.place {
                let name = format!("{}-{}.part", manifest.attempt, part.worker);
                self.copy_blob(store, path, &name, (*bytes, *crc32c), links)?;
                *path = name;
            }
            for layer in &mut part.layers {
                let name = file_name(&layer.path);
                self.copy_blob(store, &layer.path, &name, (layer.bytes, layer.crc32c), links)?;
                layer.path = name;
            }
            for file in part.natives.iter_mut().flat_map(|image| &mut image.files) {
                let name = file_name(&file.path);
                self.copy_blob(store, &file.path, &name, (file.bytes, file.crc32c), links)?;
                file.path = name;
            }
        }
        Ok(copied)
    }

    /// Copies a blob, unless it was copied for another worker already.
    fn copy_blob(
        &mut self,
        store: &JobStore,
        from: &str,
        name: &str,
        expected: (u64, u32),
        links: bool,
    ) -> Result<(), SavepointError> {
        let to = BlobPath::new(name)
            .map_err(|error| self.target(StorageOp::Write, error.to_string()))?;
        if self.written.contains(&to) {
            return Ok(());
        }
        if links
            && !place::is_url(&self.to)
            && let Ok(source) = BlobPath::new(from)
            && store.storage().link(&source, expected.0, &self.to.join(name))
        {
            self.written.push(to);
            return Ok(());
        }
        self.copy_new(store, from, &to, expected)
    }

    fn copy_new(
        &mut self,
        store: &JobStore,
        from: &str,
        to: &BlobPath,
        expected: (u64, u32),
    ) -> Result<(), SavepointError> {
        let damaged = |why: String| {
            let path = format!("{}/{from}", store.storage().location());
            SavepointError::Checkpoint(JobStoreError::Damaged {
                path,
                source: FormatError::corrupt(0, why),
            })
        };
        let source = BlobPath::new(from).map_err(|error| damaged(error.to_string()))?;
        let reading = |error: StorageError| SavepointError::Checkpoint(error.into());
        let mut reader = store.storage().open(&source).map_err(reading)?;
        let mut writer = self.storage.writer(to).map_err(SavepointError::Target)?;
        self.written.push(to.clone());
        let (mut bytes, mut checksum, mut piece) = (0, 0, vec![0; COPY_BYTES]);
        loop {
            let count = match reader.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    let path = format!("{}/{from}", store.storage().location());
                    let op = StorageOp::Read;
                    return Err(reading(StorageError::Determinate { op, path, source }));
                }
            };
            writer.write_all(&piece[..count]).map_err(|source| self.failed(to, source))?;
            checksum = crc32c::crc32c_append(checksum, &piece[..count]);
            bytes += count as u64;
        }
        if (bytes, checksum) != expected {
            return Err(damaged("its size or its checksum is not the manifest's".to_owned()));
        }
        writer.finish().map_err(SavepointError::Target)
    }

    /// Begins the part of this name, of a savepoint that is not copied from a checkpoint.
    ///
    /// # Errors
    /// [`SavepointError::Target`]; the draft is then to be dropped.
    pub fn part(&mut self, name: &str) -> Result<Box<dyn BlobWriter>, SavepointError> {
        let name = BlobPath::new(name)
            .map_err(|error| self.target(StorageOp::Write, error.to_string()))?;
        let writer = self.storage.writer(&name).map_err(SavepointError::Target)?;
        self.written.push(name);
        Ok(writer)
    }

    /// Publishes the manifest: from here on it is a savepoint.
    ///
    /// # Errors
    /// [`SavepointError::Target`].
    pub fn finish(mut self, manifest: &Manifest) -> Result<SavepointInfo, SavepointError> {
        let bytes =
            manifest.encode().map_err(|error| self.target(StorageOp::Write, error.to_string()))?;
        let name = blob("manifest");
        match self.storage.create(&name, &bytes) {
            Ok(Created::New) => {}
            Ok(Created::AlreadyExists) => {
                // Somebody else has written here: it is theirs now.
                self.finished = true;
                return Err(
                    self.target(StorageOp::Publish, "there is a manifest already".to_owned())
                );
            }
            Err(error) => {
                self.written.insert(0, name);
                return Err(SavepointError::Target(error));
            }
        }
        self.finished = true;
        self.remove_mark();
        let natives = manifest.parts.iter().flat_map(|part| &part.natives);
        let native_files = natives.map(|image| image.files.len() as u64);
        Ok(SavepointInfo {
            path: self.path().to_owned(),
            job: manifest.job.clone(),
            epoch: manifest.epoch,
            parallelism: manifest.parallelism,
            entries: manifest.entries(),
            bytes: manifest.size_bytes(),
            native_files: native_files.sum(),
        })
    }

    /// Nobody writes here any more.
    fn remove_mark(&self) {
        if place::is_url(&self.to)
            && let Err(error) = self.storage.delete(&blob(DRAFT))
        {
            tracing::warn!("{}/{DRAFT} is left, which means nothing: {error}", self.to.display());
        }
    }

    fn failed(&self, file: &BlobPath, source: io::Error) -> SavepointError {
        let path = format!("{}/{file}", self.storage.location());
        SavepointError::Target(StorageError::Determinate { op: StorageOp::Write, path, source })
    }

    fn target(&self, op: StorageOp, why: String) -> SavepointError {
        let path = self.storage.location();
        SavepointError::Target(StorageError::Determinate {
            op,
            path,
            source: io::Error::other(why),
        })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // What stays has no manifest: that one, if it may be there, is first in the list.
        let left = self.written.iter().filter(|file| self.storage.delete(file).is_err()).count();
        if left > 0 {
            let place = self.to.display();
            tracing::warn!(
                "{left} files of a savepoint that was given up are left in {place}: delete it"
            );
            return;
        }
        self.remove_mark();
        if !place::is_url(&self.to) {
            // If anybody has put something there, it is theirs.
            let _ = std::fs::remove_dir(&self.to);
        }
    }
}

fn file_name(path: &str) -> String {
    path.rsplit_once('/').map_or(path, |(_, name)| name).to_owned()
}

/// Where a savepoint is to be, independent of the current directory.
///
/// # Errors
/// [`SavepointError::Target`] if the path is empty, or the URL of what is no object store.
pub fn absolute(to: &Path) -> Result<PathBuf, SavepointError> {
    place::check(to).map_err(SavepointError::Target)?;
    place::absolute(to).map_err(|source| {
        let path = to.display().to_string();
        SavepointError::Target(StorageError::Determinate { op: StorageOp::Write, path, source })
    })
}
