//! Everything that one job keeps in a checkpoint store.
//!
//! ```text
//! <job>/job                              what the job is, and whether a checkpoint ever completed
//! <job>/claimed                          checkpoints from elsewhere that the job has taken over: see `claimed`
//! <job>/attempts/<a>[.fence|.epochs-<f>] who may publish (the protocol: `protocol::registry`)
//! <job>/chk/<n>/manifest                 checkpoint n; published last, create-if-absent
//! <job>/chk/<n>/<attempt>-<worker>.part  what one worker wrote for it
//! <job>/shared/<attempt>-<epoch>-<id>    files of several checkpoints, by who first wrote them for which
//! <job>/history/<n>                      what became of checkpoint n; the last hundred
//! <job>/history/restore-<a>-<process>   what a process of attempt a has read to restore; the last hundred
//! <job>/pins/<n>                         a user keeps checkpoint n; chk/<n>/<a>.retiring: see `pins`
//! <job>/requests/<id>[.taken|.answer]    what a user asks a running job for, and the answer
//! ```
//! # Invariants
//! * A checkpoint can be restored if and only if its manifest is there and counts. (I5)
//! * A manifest is published after all that it references, and deleted before any of that. So a crash anywhere leaves
//!   unreferenced blobs at worst, which the next [`JobStore::sweep`] or [`JobStore::retire`] removes.
//! * An attempt deletes only what attempts up to itself wrote: what a newer one is writing is not its business. (I7)
//! * `first_completed` is written before a checkpoint is announced or restored from. If it is set and no checkpoint is
//!   there, somebody lost them: that is an error, never a fresh start.
//!
//! # Failure
//! Every method may be called again after any error. After an error of [`JobStore::publish`] the manifest may be there
//! or not; publishing the same manifest again settles it.

mod claim;
mod claimed;
mod layout;
mod part_output;
mod pins;
mod requests;
mod retire;
mod verify;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

pub use claim::{Claim, Published};
pub use part_output::PartOutput;
pub use requests::{REQUEST_AGE_MAX, TakenRequest};
pub use retire::Released;
pub use verify::{Problem, VerifyReport};

use super::{BlobContents, BlobPath, BlobReader, CheckpointStorage, StorageError, place};
use crate::format::FormatError;
use crate::format::block::{self, BlockKind};
use crate::format::manifest::{LayerRef, Manifest, PartPlace, PartRef, Piece};
use crate::format::part::PartReader;
use crate::format::record::{CheckpointRecord, JobRecord, RestoreRecord};
use crate::ids::{Attempt, Epoch, Lineage, Name};
use crate::protocol::registry::{self, AttemptFacts, Fence};

/// Records of the history that are kept.
pub const HISTORY_MAX: usize = 100;
/// Units: bytes of a record or a fence.
const RECORD_BYTES_MAX: u64 = 64 << 20;

/// What one job keeps in a checkpoint store. Clones are the same store.
#[derive(Clone, Debug)]
pub struct JobStore {
    storage: Arc<dyn CheckpointStorage>,
    job: Name,
}

/// A checkpoint of a job.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CheckpointInfo {
    /// The checkpoint.
    pub epoch: Epoch,
    /// The attempt that took it.
    pub attempt: Attempt,
    /// The history that it belongs to.
    pub lineage: Lineage,
    /// Number of workers that took it.
    pub parallelism: u32,
    /// Whether it is the final one, taken at the end of input.
    pub last: bool,
    /// When it was triggered. Units: milliseconds since 1970.
    pub triggered_unix_ms: u64,
    /// Units: bytes of all parts.
    pub bytes: u64,
    /// Number of entries of all parts.
    pub entries: u64,
}

/// A job's checkpoints could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobStoreError {
    /// The store failed.
    #[error("the checkpoint store failed")]
    Storage(#[from] StorageError),
    /// A value could not be written as bytes.
    #[error("{path} could not be encoded")]
    Encode {
        /// What was to be written.
        path: String,
        /// Why not.
        source: FormatError,
    },
    /// A blob does not hold what it should.
    #[error("{path} is damaged")]
    Damaged {
        /// The blob, with the store's root in front.
        path: String,
        /// Where and how.
        source: FormatError,
    },
    /// A newer attempt has taken over: this one may not write, delete or announce anything any more.
    #[error("attempt {mine} is fenced by attempt {by}")]
    Fenced {
        /// The attempt that asked.
        mine: Attempt,
        /// The newest attempt.
        by: Attempt,
    },
    /// Checkpoints were complete and are not there any more.
    #[error(
        "checkpoint {first} of job {job} was complete, but {location} holds no checkpoint of the job now: bring them \
         back, or start fresh explicitly"
    )]
    CheckpointsMissing {
        /// The job.
        job: Name,
        /// The first one that was complete.
        first: Epoch,
        /// The store.
        location: String,
    },
    /// There is no such checkpoint.
    #[error("job {job} has no checkpoint {epoch} in {location}")]
    NoSuchCheckpoint {
        /// The job.
        job: Name,
        /// The checkpoint.
        epoch: Epoch,
        /// The store.
        location: String,
    },
    /// The checkpoint was published by an attempt that had been replaced, and never announced.
    #[error(
        "checkpoint {epoch} of job {job} is void: its attempt had been replaced by attempt {by}"
    )]
    Void {
        /// The job.
        job: Name,
        /// The checkpoint.
        epoch: Epoch,
        /// The attempt whose fence rules.
        by: Attempt,
    },
    /// The job's state has another number of key groups.
    #[error(
        "job {job} has max_parallelism {recorded}, not {asked}: it is fixed for the life of the job's state; use \
         {recorded}, or another job name"
    )]
    MaxParallelism {
        /// The job.
        job: Name,
        /// The number in the job's record.
        recorded: u16,
        /// The number asked for.
        asked: u16,
    },
    /// The request contradicts what the store holds, or itself.
    #[error("checkpoint {epoch} of job {job} can not be published: {why}")]
    Refused {
        /// The job.
        job: Name,
        /// The checkpoint.
        epoch: Epoch,
        /// Why.
        why: String,
    },
    /// The checkpoint is pinned, so it is not deleted.
    #[error(
        "checkpoint {epoch} of job {job} is pinned: `highwater checkpoints unpin {epoch}` comes first"
    )]
    Pinned {
        /// The job.
        job: Name,
        /// The checkpoint.
        epoch: Epoch,
    },
    /// The checkpoint could not be pinned.
    #[error("checkpoint {epoch} of job {job} is not pinned: {why}")]
    NotPinned {
        /// The job.
        job: Name,
        /// The checkpoint.
        epoch: Epoch,
        /// Why.
        why: String,
    },
    /// A checkpoint's directory was copied without the files that it shares with others.
    #[error(
        "the checkpoint in {location} needs {path}, which it shares with others and which is not beside it: give the path of \
         the checkpoint in its job's directory, or take a savepoint"
    )]
    NotSelfContained {
        /// The copy.
        location: String,
        /// The file.
        path: String,
    },
    /// The path does not lead to a checkpoint.
    #[error(
        "{path} is not a checkpoint: give the directory of a checkpoint (<directory>/<job>/chk/<number>, or a copy) or \
         of a savepoint"
    )]
    NotACheckpointPath {
        /// The path.
        path: String,
    },
}

impl JobStore {
    /// The job's part of a store. Reads and writes nothing.
    #[must_use]
    pub fn new(storage: Arc<dyn CheckpointStorage>, job: Name) -> Self {
        Self { storage, job }
    }

    /// The store and the number of the checkpoint that a path names: `<directory>/<job>/chk/<n>`, with or without
    /// `/manifest` behind. The directory may be the URL of an object store.
    ///
    /// # Errors
    /// [`JobStoreError::NotACheckpointPath`], or [`JobStoreError::Storage`] if the directory is not there.
    pub fn open_checkpoint_path(path: &Path) -> Result<(Self, Epoch), JobStoreError> {
        let parse = || {
            // Of a URL, its text is as good: it is taken apart from behind.
            let path = place::absolute(path).ok()?;
            let checkpoint = if path.ends_with("manifest") { path.parent()? } else { &path };
            let epoch = layout::number(checkpoint.file_name()?.to_str()?)?;
            let chk = checkpoint.parent()?;
            let job = chk.parent()?;
            let name = Name::new(job.file_name()?.to_str()?).ok()?;
            let root = job.parent()?.to_owned();
            chk.ends_with("chk").then_some((root, name, Epoch(epoch)))
        };
        let (root, job, epoch) = parse().ok_or_else(|| JobStoreError::NotACheckpointPath {
            path: path.display().to_string(),
        })?;
        Ok((Self::new(place::open_existing(&root)?, job), epoch))
    }

    /// The job.
    #[must_use]
    pub fn job(&self) -> &Name {
        &self.job
    }

    /// The store beneath.
    #[must_use]
    pub fn storage(&self) -> &Arc<dyn CheckpointStorage> {
        &self.storage
    }

    /// Makes the job's record if there is none, and returns it. Comes before [`JobStore::claim`].
    ///
    /// # Errors
    /// [`JobStoreError::MaxParallelism`] if checkpoints have completed with another number of key groups.
    pub fn prepare(
        &self,
        max_parallelism: u16,
        now_unix_ms: u64,
    ) -> Result<JobRecord, JobStoreError> {
        let name = self.job.clone();
        let new = JobRecord {
            name,
            created_unix_ms: now_unix_ms,
            max_parallelism,
            first_completed: None,
        };
        let path = self.path(layout::JOB);
        let bytes = new.encode().map_err(|e| self.encode_error(&path, e))?;
        self.storage.create(&path, &bytes)?;
        let recorded = self.record_of_job()?;
        if recorded.max_parallelism == max_parallelism {
            return Ok(recorded);
        }
        if recorded.first_completed.is_some() {
            return Err(JobStoreError::MaxParallelism {
                job: self.job.clone(),
                recorded: recorded.max_parallelism,
                asked: max_parallelism,
            });
        }
        self.storage.put(&path, &bytes)?;
        Ok(new)
    }

    /// The job's record.
    ///
    /// # Errors
    /// [`JobStoreError`], `Storage(NotFound)` if the job never ran here.
    pub fn record_of_job(&self) -> Result<JobRecord, JobStoreError> {
        let path = self.path(layout::JOB);
        let bytes = self.storage.read(&path, RECORD_BYTES_MAX)?;
        JobRecord::decode(&bytes).map_err(|e| self.damaged(path.as_str(), e))
    }

    /// The newest checkpoint that counts; `None` if the job's record says that none ever completed.
    ///
    /// # Errors
    /// [`JobStoreError::CheckpointsMissing`] if the record says otherwise; other [`JobStoreError`]s.
    pub fn newest(&self) -> Result<Option<Epoch>, JobStoreError> {
        if let Some(newest) = self.valid_epochs()?.last() {
            return Ok(Some(*newest));
        }
        match self.record_of_job()?.first_completed {
            None => Ok(None),
            Some(first) => Err(self.missing(first)),
        }
    }

    /// The checkpoints that count, in ascending order. Their manifests are not read.
    ///
    /// # Errors
    /// [`JobStoreError`].
    pub fn valid_epochs(&self) -> Result<BTreeSet<Epoch>, JobStoreError> {
        let ruling = self.ruling_fence(&self.attempt_facts()?)?;
        let manifests = self.published()?.into_iter();
        Ok(manifests.filter(|epoch| registry::counts(*epoch, ruling.as_ref())).collect())
    }

    /// The checkpoints that count, in ascending order.
    ///
    /// # Errors
    /// [`JobStoreError`]; the first damaged manifest is one.
    pub fn valid_checkpoints(&self) -> Result<Vec<CheckpointInfo>, JobStoreError> {
        let mut checkpoints = Vec::new();
        for epoch in self.valid_epochs()? {
            let manifest = self.load_unchecked(epoch)?;
            checkpoints.push(CheckpointInfo {
                epoch,
                attempt: manifest.attempt,
                lineage: manifest.lineage,
                parallelism: manifest.parallelism,
                last: manifest.last,
                triggered_unix_ms: manifest.triggered_unix_ms,
                bytes: manifest.size_bytes(),
                entries: manifest.entries(),
            });
        }
        Ok(checkpoints)
    }

    /// Reads the manifest of a checkpoint.
    ///
    /// # Errors
    /// [`JobStoreError::NoSuchCheckpoint`], [`JobStoreError::Void`], [`JobStoreError::Damaged`] and others.
    pub fn load(&self, epoch: Epoch) -> Result<Manifest, JobStoreError> {
        let facts = self.attempt_facts()?;
        let ruling = self.ruling_fence(&facts)?;
        if !registry::counts(epoch, ruling.as_ref()) && self.published()?.contains(&epoch) {
            let by = registry::ruling(&facts).unwrap_or_default();
            return Err(JobStoreError::Void { job: self.job.clone(), epoch, by });
        }
        self.load_unchecked(epoch)
    }

    fn load_unchecked(&self, epoch: Epoch) -> Result<Manifest, JobStoreError> {
        let path = self.path(&layout::manifest(epoch));
        let bytes = match self.storage.read(&path, Manifest::BYTES_MAX) {
            Err(StorageError::NotFound { .. }) => {
                let (job, location) = (self.job.clone(), self.storage.location());
                return Err(JobStoreError::NoSuchCheckpoint { job, epoch, location });
            }
            read => read?,
        };
        let manifest = Manifest::decode(&bytes).map_err(|e| self.damaged(path.as_str(), e))?;
        if manifest.job == self.job && manifest.epoch == epoch {
            return Ok(manifest);
        }
        let why = format!("this is checkpoint {} of job {}", manifest.epoch, manifest.job);
        Err(self.damaged(path.as_str(), FormatError::corrupt(0, why)))
    }

    /// Opens a part of a checkpoint, and checks that it is what the manifest says.
    ///
    /// Errors of the reader itself do not name the file: wrap them with [`JobStore::part_error`].
    ///
    /// # Errors
    /// [`JobStoreError::Damaged`] and others.
    pub fn open_part(
        &self,
        manifest: &Manifest,
        part: &PartRef,
    ) -> Result<PartReader<PartBytes>, JobStoreError> {
        self.open_piece(manifest, Piece::Part(part))
    }

    /// As [`JobStore::open_part`], of a part or of a layer beneath it.
    ///
    /// # Errors
    /// As there.
    pub fn open_piece(
        &self,
        manifest: &Manifest,
        piece: Piece<'_>,
    ) -> Result<PartReader<PartBytes>, JobStoreError> {
        let epoch = manifest.epoch;
        let open = |path: &str, contents| self.open_checked(epoch, path, contents);
        read_piece(manifest, piece, open, |error| self.piece_error(epoch, piece, error))
    }

    /// Opens a blob that the manifest of a checkpoint names.
    ///
    /// # Errors
    /// [`JobStoreError::Damaged`] if it is not the job's, and others.
    pub fn open_reference(
        &self,
        epoch: Epoch,
        path: &str,
    ) -> Result<Box<dyn BlobReader>, JobStoreError> {
        Ok(self.storage.open(&self.reference(epoch, path)?)?)
    }

    /// As [`JobStore::open_reference`], of a blob that holds what the manifest says or is not wanted: then a copy of it
    /// will do.
    ///
    /// # Errors
    /// As there.
    pub fn open_checked(
        &self,
        epoch: Epoch,
        path: &str,
        contents: BlobContents,
    ) -> Result<Box<dyn BlobReader>, JobStoreError> {
        Ok(self.storage.open_checked(&self.reference(epoch, path)?, contents)?)
    }

    /// Says of damage in a part which file it is in.
    #[must_use]
    pub fn part_error(&self, epoch: Epoch, part: &PartRef, source: FormatError) -> JobStoreError {
        self.piece_error(epoch, Piece::Part(part), source)
    }

    /// Says of damage in a part or a layer which file it is in.
    #[must_use]
    pub fn piece_error(
        &self,
        epoch: Epoch,
        piece: Piece<'_>,
        source: FormatError,
    ) -> JobStoreError {
        match piece {
            Piece::Layer(LayerRef { path, .. })
            | Piece::Part(PartRef { place: PartPlace::Blob { path, .. }, .. }) => {
                self.damaged(path, source)
            }
            Piece::Part(PartRef { place: PartPlace::Inline(_), worker, .. }) => {
                let manifest = self.path(&layout::manifest(epoch));
                let path = format!("{}, inline part of worker {worker}", self.address(&manifest));
                JobStoreError::Damaged { path, source }
            }
        }
    }

    /// Whether a blob may be needed by several checkpoints.
    #[must_use]
    pub fn is_shared(&self, path: &str) -> bool {
        let below = path.strip_prefix(self.job.as_str()).and_then(|path| path.strip_prefix('/'));
        below.and_then(|path| path.strip_prefix(layout::SHARED)).is_some_and(|p| p.starts_with('/'))
    }

    /// The path of the blob in which a worker writes its part.
    #[must_use]
    pub fn part_path(&self, epoch: Epoch, attempt: Attempt, worker: u32) -> BlobPath {
        self.path(&layout::part(epoch, attempt, worker))
    }

    /// The path of a file of a backend: the instance of that `index` on the worker calls it `name`.
    ///
    /// # Errors
    /// [`FormatError::Encode`] if that makes no path.
    pub fn native_path(
        &self,
        epoch: Epoch,
        attempt: Attempt,
        worker: usize,
        index: usize,
        name: &str,
    ) -> Result<BlobPath, FormatError> {
        let below = layout::native(epoch, attempt, worker, index, name);
        BlobPath::new(format!("{}/{below}", self.job)).map_err(|error| FormatError::Encode {
            what: format!("the file name {name:?}"),
            why: error.to_string(),
        })
    }

    /// Adds to the history what became of a checkpoint, and drops the oldest records beyond [`HISTORY_MAX`].
    ///
    /// # Errors
    /// [`JobStoreError`].
    pub fn record(&self, record: &CheckpointRecord) -> Result<(), JobStoreError> {
        let path = self.path(&layout::history(record.epoch));
        let bytes = record.encode().map_err(|e| self.encode_error(&path, e))?;
        self.storage.put(&path, &bytes)?;
        let epochs = self.history_epochs()?;
        for epoch in epochs.iter().take(epochs.len().saturating_sub(HISTORY_MAX)) {
            self.storage.delete(&self.path(&layout::history(*epoch)))?;
        }
        Ok(())
    }

    /// What became of the last checkpoints, in ascending order.
    ///
    /// # Errors
    /// [`JobStoreError`].
    pub fn history(&self) -> Result<Vec<CheckpointRecord>, JobStoreError> {
        let mut records = Vec::new();
        for epoch in self.history_epochs()? {
            let path = self.path(&layout::history(epoch));
            match self.storage.read(&path, RECORD_BYTES_MAX) {
                // It was dropped meanwhile, because newer ones came.
                Err(StorageError::NotFound { .. }) => {}
                read => records.push(
                    CheckpointRecord::decode(&read?).map_err(|e| self.damaged(path.as_str(), e))?,
                ),
            }
        }
        Ok(records)
    }

    /// Adds to the history what a process has read to restore, and drops the oldest records beyond [`HISTORY_MAX`].
    ///
    /// # Errors
    /// [`JobStoreError`].
    pub fn record_restore(&self, record: &RestoreRecord) -> Result<(), JobStoreError> {
        let path = self.path(&layout::restore(record.attempt, record.process));
        let bytes = record.encode().map_err(|e| self.encode_error(&path, e))?;
        self.storage.put(&path, &bytes)?;
        let paths = self.restore_paths()?;
        let old = paths.len().saturating_sub(HISTORY_MAX);
        let old: Vec<BlobPath> = paths.into_iter().take(old).map(|(_, path)| path).collect();
        Ok(self.storage.delete_all(&old)?)
    }

    /// What processes have read to restore, of the last restores that were recorded, by attempt.
    ///
    /// # Errors
    /// [`JobStoreError`].
    pub fn restores(&self) -> Result<Vec<RestoreRecord>, JobStoreError> {
        let mut records = Vec::new();
        for (_, path) in self.restore_paths()? {
            match self.storage.read(&path, RECORD_BYTES_MAX) {
                // It was dropped meanwhile, because newer ones came.
                Err(StorageError::NotFound { .. }) => {}
                read => records.push(
                    RestoreRecord::decode(&read?).map_err(|e| self.damaged(path.as_str(), e))?,
                ),
            }
        }
        Ok(records)
    }

    fn restore_paths(&self) -> Result<BTreeSet<(Attempt, BlobPath)>, JobStoreError> {
        let blobs = self.storage.list(Some(&self.path(layout::HISTORY)))?;
        let restore = |path: BlobPath| match self.place(&path) {
            layout::Place::Restore(attempt) => Some((attempt, path)),
            _ => None,
        };
        Ok(blobs.into_iter().filter_map(|(path, _)| restore(path)).collect())
    }

    fn history_epochs(&self) -> Result<BTreeSet<Epoch>, JobStoreError> {
        let blobs = self.storage.list(Some(&self.path(layout::HISTORY)))?;
        Ok(blobs.iter().filter_map(|(path, _)| self.place(path).as_history()).collect())
    }

    /// The checkpoints that have a manifest, whether they count or not.
    fn published(&self) -> Result<BTreeSet<Epoch>, JobStoreError> {
        let blobs = self.storage.list(Some(&self.path(layout::CHECKPOINTS)))?;
        Ok(blobs.iter().filter_map(|(path, _)| self.place(path).as_manifest()).collect())
    }

    fn attempt_facts(&self) -> Result<AttemptFacts, JobStoreError> {
        let blobs = self.storage.list(Some(&self.path(layout::ATTEMPTS)))?;
        Ok(layout::facts(blobs.iter().map(|(path, _)| self.place(path))))
    }

    fn ruling_fence(&self, facts: &AttemptFacts) -> Result<Option<Fence>, JobStoreError> {
        let Some(attempt) = registry::ruling(facts) else { return Ok(None) };
        let path = self.path(&layout::fence(attempt));
        let bytes = match self.storage.read(&path, RECORD_BYTES_MAX) {
            // A later attempt has pruned it: look again at what there is now.
            Err(StorageError::NotFound { .. }) => {
                let now = self.attempt_facts()?;
                return if now == *facts { Ok(None) } else { self.ruling_fence(&now) };
            }
            read => read?,
        };
        let fence = block::decode_value(BlockKind::Fence, &bytes);
        fence.map(Some).map_err(|e| self.damaged(path.as_str(), e))
    }

    /// A blob that a manifest references. It must be the job's own.
    pub(in crate::storage) fn reference(
        &self,
        epoch: Epoch,
        path: &str,
    ) -> Result<BlobPath, JobStoreError> {
        let inside = path.strip_prefix(self.job.as_str()).is_some_and(|rest| rest.starts_with('/'));
        match BlobPath::new(path) {
            Ok(path) if inside => Ok(path),
            _ => {
                let manifest = self.path(&layout::manifest(epoch));
                let why = format!("{path:?} is not a blob of this job");
                Err(self.damaged(manifest.as_str(), FormatError::corrupt(0, why)))
            }
        }
    }

    fn references(&self, manifest: &Manifest) -> Result<BTreeSet<BlobPath>, JobStoreError> {
        manifest.blobs().map(|path| self.reference(manifest.epoch, path)).collect()
    }

    fn job_path(&self) -> BlobPath {
        BlobPath::new(self.job.as_str()).expect("a name is a path of one component")
    }

    fn path(&self, below: &str) -> BlobPath {
        let path = format!("{}/{below}", self.job);
        BlobPath::new(path).expect("a name and our own layout make a valid path")
    }

    fn place(&self, path: &BlobPath) -> layout::Place {
        let below = path.as_str().strip_prefix(self.job.as_str());
        layout::parse(below.and_then(|rest| rest.strip_prefix('/')).unwrap_or_default())
    }

    fn address(&self, path: &BlobPath) -> String {
        format!("{}/{path}", self.storage.location())
    }

    fn missing(&self, first: Epoch) -> JobStoreError {
        let (job, location) = (self.job.clone(), self.storage.location());
        JobStoreError::CheckpointsMissing { job, first, location }
    }

    fn damaged(&self, path: &str, source: FormatError) -> JobStoreError {
        JobStoreError::Damaged { path: format!("{}/{path}", self.storage.location()), source }
    }

    fn encode_error(&self, path: &BlobPath, source: FormatError) -> JobStoreError {
        JobStoreError::Encode { path: self.address(path), source }
    }
}

/// Opens a part or a layer, and checks that it is what the manifest says.
pub(super) fn read_piece(
    manifest: &Manifest,
    piece: Piece<'_>,
    open: impl Fn(&str, BlobContents) -> Result<Box<dyn BlobReader>, JobStoreError>,
    damaged: impl Fn(FormatError) -> JobStoreError,
) -> Result<PartReader<PartBytes>, JobStoreError> {
    let blob = match piece {
        Piece::Layer(LayerRef { path, bytes, crc32c, .. })
        | Piece::Part(PartRef { place: PartPlace::Blob { path, bytes, crc32c }, .. }) => {
            Some((path, BlobContents { bytes: *bytes, crc32c: *crc32c }))
        }
        Piece::Part(_) => None,
    };
    let (bytes, size) = match (blob, piece) {
        (Some((path, contents)), _) => {
            let reader = open(path, contents)?;
            let (size, expected) = (reader.size_bytes(), contents.bytes);
            if size != expected {
                let why = format!("{size} bytes are there, the manifest says {expected}");
                return Err(damaged(FormatError::corrupt(size.min(expected), why)));
            }
            (PartBytes::Blob(reader), size)
        }
        (None, Piece::Part(PartRef { place: PartPlace::Inline(bytes), .. })) => {
            (PartBytes::Inline(Cursor::new(bytes.clone())), bytes.len() as u64)
        }
        (None, _) => unreachable!("only a part can be inline"),
    };
    read_part(manifest, piece, bytes, size).map_err(damaged)
}

fn read_part(
    manifest: &Manifest,
    piece: Piece<'_>,
    bytes: PartBytes,
    size: u64,
) -> Result<PartReader<PartBytes>, FormatError> {
    let reader = PartReader::open(bytes, size)?;
    let header = reader.header();
    let expected = match piece {
        Piece::Layer(layer) => (layer.epoch, layer.attempt, layer.worker),
        Piece::Part(part) => (manifest.epoch, manifest.attempt, part.worker),
    };
    let same = header.job == manifest.job
        && (header.epoch, header.attempt, header.worker) == expected
        && header.max_parallelism == manifest.max_parallelism;
    if !same {
        let why = format!(
            "this is the part of worker {} for checkpoint {} of job {}, attempt {}",
            header.worker, header.epoch, header.job, header.attempt
        );
        return Err(FormatError::corrupt(0, why));
    }
    if let Piece::Part(part) = piece
        && !reader.sections().iter().map(|s| s.summary()).eq(part.sections.iter().cloned())
    {
        return Err(FormatError::corrupt(0, "its sections are not the manifest's"));
    }
    Ok(reader)
}

/// The bytes of a part, wherever they are.
pub enum PartBytes {
    /// In the manifest.
    Inline(Cursor<Vec<u8>>),
    /// In a blob.
    Blob(Box<dyn BlobReader>),
}

impl std::fmt::Debug for PartBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inline(bytes) => write!(f, "Inline({} bytes)", bytes.get_ref().len()),
            Self::Blob(reader) => write!(f, "Blob({} bytes)", reader.size_bytes()),
        }
    }
}

impl Read for PartBytes {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Inline(bytes) => bytes.read(out),
            Self::Blob(reader) => reader.read(out),
        }
    }
}

impl Seek for PartBytes {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        match self {
            Self::Inline(bytes) => bytes.seek(to),
            Self::Blob(reader) => reader.seek(to),
        }
    }
}
