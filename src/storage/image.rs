//! One checkpoint or savepoint to read from, wherever it is.
//!
//! A checkpoint in the directory of its job is judged by the job's attempts: one that a fenced attempt published does
//! not count. A savepoint, and a checkpoint's directory that somebody copied elsewhere, stand for themselves: their parts
//! are looked for beside the manifest, so that they can be moved.

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use super::job_store::{JobStore, JobStoreError, PartBytes, read_part};
use super::{BlobPath, CheckpointStorage, StorageError, place};
use crate::format::FormatError;
use crate::format::manifest::{Manifest, ManifestKind, PartPlace, PartRef};
use crate::format::part::PartReader;
use crate::ids::Epoch;

const MANIFEST: &str = "manifest";

/// A checkpoint or a savepoint: its manifest, and where its parts are. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Image {
    manifest: Arc<Manifest>,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    /// In the store of its job.
    Job(JobStore),
    /// In a directory of its own.
    Directory(Arc<dyn CheckpointStorage>),
}

impl Image {
    /// A checkpoint of a job.
    ///
    /// # Errors
    /// As [`JobStore::load`].
    pub fn of_job(store: JobStore, epoch: Epoch) -> Result<Self, JobStoreError> {
        Ok(Self::loaded(store.load(epoch)?, store))
    }

    /// A checkpoint of a job whose manifest is read already.
    #[must_use]
    pub fn loaded(manifest: Manifest, store: JobStore) -> Self {
        Self { manifest: Arc::new(manifest), place: Place::Job(store) }
    }

    /// What is in the directory `path`: a savepoint, a checkpoint of a job, or a copy of one. `/manifest` may follow. It may
    /// be the URL of such a directory in an object store.
    ///
    /// # Errors
    /// [`JobStoreError::NotACheckpointPath`] if no manifest is there, and others.
    pub fn open(path: &Path) -> Result<Self, JobStoreError> {
        // In its job's directory? Then the job's record is there.
        match JobStore::open_checkpoint_path(path) {
            Ok((store, epoch)) if store.record_of_job().is_ok() => {
                return Self::of_job(store, epoch);
            }
            // Asking once more would only take as long again.
            Err(JobStoreError::Storage(error)) if error.is_unreachable() => {
                return Err(error.into());
            }
            _ => {}
        }
        let none = || JobStoreError::NotACheckpointPath { path: path.display().to_string() };
        let storage = if let Some(url) = place::url(path) {
            let url = url.trim_end_matches('/');
            let directory = url.strip_suffix("/manifest").unwrap_or(url);
            place::open_existing(Path::new(directory))?
        } else {
            let absolute = std::path::absolute(path).map_err(|_| none())?;
            let directory = if absolute.ends_with(MANIFEST) && !absolute.is_dir() {
                absolute.parent().ok_or_else(none)?
            } else {
                &absolute
            };
            if !directory.is_dir() {
                return Err(none());
            }
            place::open_existing(directory)?
        };
        let bytes = match storage.read(&blob(MANIFEST), Manifest::BYTES_MAX) {
            Err(StorageError::NotFound { .. }) => return Err(none()),
            read => read?,
        };
        let manifest = Manifest::decode(&bytes).map_err(|source| {
            let path = format!("{}/{MANIFEST}", storage.location());
            JobStoreError::Damaged { path, source }
        })?;
        Ok(Self { manifest: Arc::new(manifest), place: Place::Directory(storage) })
    }

    /// What it is made of.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where it is, for messages.
    #[must_use]
    pub fn location(&self) -> String {
        match &self.place {
            Place::Job(store) => {
                let (job, location) = (store.job(), store.storage().location());
                format!("{location}/{job}/chk/{}", self.manifest.epoch)
            }
            Place::Directory(storage) => storage.location(),
        }
    }

    /// Opens a part, and checks that it is what the manifest says. Errors of the reader itself do not name the file: wrap
    /// them with [`Image::part_error`].
    ///
    /// # Errors
    /// [`JobStoreError::Damaged`] and others.
    pub fn open_part(&self, part: &PartRef) -> Result<PartReader<PartBytes>, JobStoreError> {
        let storage = match &self.place {
            Place::Job(store) => return store.open_part(&self.manifest, part),
            Place::Directory(storage) => storage,
        };
        let (bytes, size) = match &part.place {
            PartPlace::Inline(bytes) => {
                (PartBytes::Inline(Cursor::new(bytes.clone())), bytes.len() as u64)
            }
            PartPlace::Blob { path, bytes, .. } => {
                let damaged = |why: String| self.part_error(part, FormatError::corrupt(0, why));
                let Some(name) = self.name_beside(path) else {
                    return Err(damaged(format!("{path:?} is not a file of this checkpoint")));
                };
                let reader = storage.open(&name)?;
                let size = reader.size_bytes();
                if size != *bytes {
                    let why = format!("{size} bytes are there, the manifest says {bytes}");
                    return Err(damaged(why));
                }
                (PartBytes::Blob(reader), size)
            }
        };
        read_part(&self.manifest, part, bytes, size).map_err(|error| self.part_error(part, error))
    }

    /// The name of a part beside the manifest.
    fn name_beside(&self, path: &str) -> Option<BlobPath> {
        let name = match self.manifest.kind {
            ManifestKind::Savepoint => path,
            ManifestKind::Checkpoint => {
                let Manifest { job, epoch, .. } = &*self.manifest;
                path.strip_prefix(&format!("{job}/chk/{epoch}/"))?
            }
        };
        BlobPath::new(name).ok().filter(|_| !name.contains('/'))
    }

    /// Says of damage in a part which file it is in.
    #[must_use]
    pub fn part_error(&self, part: &PartRef, source: FormatError) -> JobStoreError {
        let storage = match &self.place {
            Place::Job(store) => return store.part_error(self.manifest.epoch, part, source),
            Place::Directory(storage) => storage,
        };
        let location = storage.location();
        let path = match &part.place {
            PartPlace::Blob { path, .. } => {
                let name = self.name_beside(path);
                format!("{location}/{}", name.as_ref().map_or(path.as_str(), BlobPath::as_str))
            }
            PartPlace::Inline(_) => {
                format!("{location}/{MANIFEST}, inline part of worker {}", part.worker)
            }
        };
        JobStoreError::Damaged { path, source }
    }
}

pub(super) fn blob(name: &str) -> BlobPath {
    BlobPath::new(name).expect("a constant name")
}
