//! Claiming an attempt, and publishing under the claim. The protocol and why it holds: `protocol::registry`.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{JobStore, JobStoreError, layout};
use crate::format::block::{self, BlockKind};
use crate::format::manifest::Manifest;
use crate::ids::{Attempt, Epoch, Lineage};
use crate::protocol::registry::{self, EPOCHS_PER_RESERVATION, Fence};
use crate::storage::{BlobPath, Created, StorageError};

/// Published checkpoints whose references are remembered. A checkpoint builds on the newest that was complete when it began; so
/// more matter only if more are in progress at once.
const LIVE_MAX: usize = 64;

/// The right to publish, until a newer attempt claims. Clones are the same claim.
#[derive(Clone, Debug)]
pub struct Claim {
    pub(super) attempt: Attempt,
    pub(super) fence: Arc<Fence>,
    /// The first epoch that is not reserved any more.
    reserved_end: Arc<AtomicU64>,
    /// Whether the job's record is known to say that a checkpoint completed.
    completed: Arc<AtomicBool>,
    /// What the record said when the attempt was claimed.
    first_completed: Option<Epoch>,
    /// What the newest checkpoints that the attempt has published reference. Those that are being taken build on one of
    /// them, and may need that even if it is not retained, or if somebody has deleted it.
    pub(super) live: Arc<Mutex<VecDeque<BTreeSet<BlobPath>>>>,
    /// Whether nothing that the job has taken over waits to be deleted.
    pub(super) all_released: Arc<AtomicBool>,
}

/// A checkpoint that may be announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Its manifest.
    pub path: BlobPath,
    /// Units: bytes of the manifest.
    pub manifest_bytes: u64,
}

impl Claim {
    /// The attempt.
    #[must_use]
    pub fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// The first epoch that the attempt may use. No attempt before ever used it or a later one.
    #[must_use]
    pub fn first_epoch(&self) -> Epoch {
        self.fence.first_epoch
    }

    /// The first epoch that it may not use before it calls [`JobStore::extend_epochs`].
    #[must_use]
    pub fn epochs_end(&self) -> Epoch {
        Epoch(self.reserved_end.load(Ordering::SeqCst))
    }

    /// The newest checkpoint that counted when the attempt was claimed. `None` does not say that the job is new: see
    /// [`JobStore::newest_of`].
    #[must_use]
    pub fn newest(&self) -> Option<Epoch> {
        self.fence.kept.last().copied()
    }

    pub(super) fn forget_completed(&self) {
        self.completed.store(false, Ordering::SeqCst);
    }

    /// The history that a restore by this attempt begins.
    #[must_use]
    pub fn lineage(&self) -> Lineage {
        Lineage(self.attempt.0)
    }
}

impl JobStore {
    /// Claims the next attempt of the job, and fences all earlier ones.
    ///
    /// # Errors
    /// [`JobStoreError::Fenced`] if yet another attempt claims at the same time. After any error the attempt is lost;
    /// calling again claims a new one.
    pub fn claim(&self) -> Result<Claim, JobStoreError> {
        let record = self.record_of_job()?;
        let attempt = self.create_claim()?;
        let facts = self.attempt_facts()?;
        if let Some(by) = registry::fenced_by(&facts, attempt) {
            return Err(JobStoreError::Fenced { mine: attempt, by });
        }
        let ruling = self.ruling_fence(&facts)?;
        let blobs = self.storage.list(Some(&self.job_path()))?;
        let places: Vec<_> = blobs.iter().map(|(path, _)| self.place(path)).collect();
        let manifests = places.iter().filter_map(|place| place.as_manifest()).collect();
        let others = layout::epochs(places.iter().copied());
        let fence = registry::new_fence(&facts, ruling.as_ref(), &manifests, &others);
        let path = self.path(&layout::fence(attempt));
        let bytes = block::encode_value(BlockKind::Fence, &fence)
            .map_err(|e| self.encode_error(&path, e))?;
        self.storage.put(&path, &bytes)?;
        self.check_unfenced(attempt)?;
        let claim = Claim {
            attempt,
            reserved_end: Arc::new(AtomicU64::new(
                fence.first_epoch.0.saturating_add(EPOCHS_PER_RESERVATION),
            )),
            fence: Arc::new(fence),
            completed: Arc::new(AtomicBool::new(record.first_completed.is_some())),
            first_completed: record.first_completed,
            live: Arc::default(),
            all_released: Arc::default(),
        };
        if let Some(newest) = claim.newest() {
            // It may never have been announced; but this attempt may start from it.
            self.note_completed(&claim, newest)?;
        }
        Ok(claim)
    }

    /// The newest checkpoint that the attempt may start from; `None` if the job's record says that none ever completed.
    ///
    /// # Errors
    /// [`JobStoreError::CheckpointsMissing`] if the record says otherwise.
    pub fn newest_of(&self, claim: &Claim) -> Result<Option<Epoch>, JobStoreError> {
        match (claim.newest(), claim.first_completed) {
            (None, Some(first)) => Err(self.missing(first)),
            (newest, _) => Ok(newest),
        }
    }

    fn create_claim(&self) -> Result<Attempt, JobStoreError> {
        loop {
            let attempt = registry::next_attempt(&self.attempt_facts()?);
            let path = self.path(&layout::claim(attempt));
            if self.storage.create(&path, &[])? == Created::New {
                return Ok(attempt);
            }
        }
    }

    /// Checks that no newer attempt has claimed.
    ///
    /// # Errors
    /// [`JobStoreError::Fenced`] if one has.
    pub fn check_unfenced(&self, mine: Attempt) -> Result<(), JobStoreError> {
        match registry::fenced_by(&self.attempt_facts()?, mine) {
            Some(by) => Err(JobStoreError::Fenced { mine, by }),
            None => Ok(()),
        }
    }

    /// Reserves the epochs that follow [`Claim::epochs_end`].
    ///
    /// # Errors
    /// [`JobStoreError::Fenced`] if a newer attempt has claimed; then none is reserved.
    pub fn extend_epochs(&self, claim: &Claim) -> Result<(), JobStoreError> {
        let first = claim.epochs_end();
        let path = self.path(&layout::reservation(claim.attempt, first));
        // If it is there already, an earlier call failed afterwards: nobody else writes it.
        self.storage.create(&path, &[])?;
        self.check_unfenced(claim.attempt)?;
        claim
            .reserved_end
            .fetch_max(first.0.saturating_add(EPOCHS_PER_RESERVATION), Ordering::SeqCst);
        Ok(())
    }

    /// Publishes a checkpoint. Only after `Ok` may it be announced. Repeating the call is harmless.
    ///
    /// # Errors
    /// [`JobStoreError::Fenced`]: never announce it; its fate is the newer attempt's. [`JobStoreError::Refused`]: it is
    /// not published. Others: it may be published; call again, and leave its parts alone until the call says so.
    pub fn publish(&self, claim: &Claim, manifest: &Manifest) -> Result<Published, JobStoreError> {
        self.check_publishable(claim, manifest)?;
        self.check_unfenced(claim.attempt)?;
        self.check_references_exist(manifest)?;
        let path = self.path(&layout::manifest(manifest.epoch));
        let bytes = manifest.encode().map_err(|e| self.encode_error(&path, e))?;
        match self.storage.create(&path, &bytes) {
            Ok(Created::New) => {}
            Ok(Created::AlreadyExists) => {
                // An earlier call of ours may have come as far as this.
                let there = self.storage.read(&path, Manifest::BYTES_MAX)?;
                if there != bytes {
                    return Err(self.refuse(manifest, "there is another manifest of that number"));
                }
            }
            Err(error @ StorageError::Indeterminate { .. }) => {
                match self.storage.read(&path, Manifest::BYTES_MAX) {
                    Ok(there) if there == bytes => {}
                    _ => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        }
        self.check_unfenced(claim.attempt)?;
        // Only now it is certain that the checkpoint counts. Noted before, a void one would be missed for ever.
        self.note_completed(claim, manifest.epoch)?;
        self.protect(claim, manifest)?;
        Ok(Published { path, manifest_bytes: bytes.len() as u64 })
    }

    /// What a checkpoint references stays for as long as the attempt has published none, though somebody deletes that
    /// checkpoint: the attempt has started from it.
    ///
    /// # Errors
    /// [`JobStoreError::Damaged`] if it references what is not the job's.
    pub fn protect(&self, claim: &Claim, manifest: &Manifest) -> Result<(), JobStoreError> {
        let references = self.references(manifest)?;
        let mut live = claim.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.push_back(references);
        if live.len() > LIVE_MAX {
            live.pop_front();
        }
        Ok(())
    }

    /// From here on an empty directory is an error.
    fn note_completed(&self, claim: &Claim, epoch: Epoch) -> Result<(), JobStoreError> {
        if claim.completed.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.put_first_completed(Some(epoch))?;
        claim.completed.store(true, Ordering::SeqCst);
        Ok(())
    }

    pub(super) fn put_first_completed(&self, first: Option<Epoch>) -> Result<(), JobStoreError> {
        let mut record = self.record_of_job()?;
        if record.first_completed.is_some() == first.is_some() {
            return Ok(());
        }
        record.first_completed = first;
        let path = self.path(layout::JOB);
        let bytes = record.encode().map_err(|e| self.encode_error(&path, e))?;
        Ok(self.storage.put(&path, &bytes)?)
    }

    fn check_publishable(&self, claim: &Claim, manifest: &Manifest) -> Result<(), JobStoreError> {
        let why = if manifest.job != self.job {
            format!("the manifest is of job {}", manifest.job)
        } else if manifest.attempt != claim.attempt {
            format!("attempt {} does not hold the claim of {}", manifest.attempt, claim.attempt)
        } else if !(claim.first_epoch()..claim.epochs_end()).contains(&manifest.epoch) {
            let (first, end) = (claim.first_epoch(), claim.epochs_end());
            format!("the attempt has reserved epochs {first} to {end}")
        } else {
            return Ok(());
        };
        Err(self.refuse(manifest, why))
    }

    /// I5: what a manifest references is there before the manifest.
    fn check_references_exist(&self, manifest: &Manifest) -> Result<(), JobStoreError> {
        let mut wanted = self.references(manifest)?;
        for prefix in [layout::checkpoint(manifest.epoch), layout::SHARED.to_owned()] {
            if !wanted.is_empty() {
                for (path, _) in self.storage.list(Some(&self.path(&prefix)))? {
                    wanted.remove(&path);
                }
            }
        }
        match wanted.first() {
            Some(path) => {
                Err(self.refuse(manifest, format!("{} is not there", self.address(path))))
            }
            None => Ok(()),
        }
    }

    fn refuse(&self, manifest: &Manifest, why: impl Into<String>) -> JobStoreError {
        JobStoreError::Refused { job: self.job.clone(), epoch: manifest.epoch, why: why.into() }
    }
}
