//! Taking over a checkpoint or savepoint from elsewhere, and deleting it once a checkpoint of the job's own stems from it.
//!
//! # Order
//! 1. Before the job runs, the attempt writes down in `claimed` what it has restored and which lineage begins with it.
//! 2. The first checkpoint of that lineage is published, as any other. It stands alone.
//! 3. Whoever retires or sweeps next (this attempt or a later one) finds a checkpoint of that lineage, deletes the manifest
//!    of what was taken over, then its files, and writes down that it is released.
//!
//! # Invariants
//! * **Nothing is deleted before step 2.** A lineage belongs to one restore: no checkpoint has it that does not stem from
//!   what was taken over. If a later attempt finds none, the restore came to nothing and the user keeps what was given.
//! * **Only what was restored is deleted.** The manifest must still be the one that was read (job, checkpoint, attempt and
//!   time), and of files only those that it named: plain names beside it, or blobs of its job.
//! * **What others need stays.** In the directory of a job, a checkpoint that is pinned there stays whole, files that
//!   another published checkpoint there references stay, and all shared files stay if a newer attempt has begun there.
//!
//! # Failure
//! A crash after any step is finished by the next attempt: each deletion may be repeated, and the names of all files are in
//! the record, which is there until they are gone. An error leaves the record as it was, so it is tried again.

use std::path::Path;
use std::sync::atomic::Ordering;

use super::{Claim, JobStore, JobStoreError, RECORD_BYTES_MAX, layout};
use crate::format::manifest::Manifest;
use crate::format::record::{Claimed, ClaimedRecord};
use crate::ids::{Attempt, Lineage};
use crate::storage::{BlobPath, CheckpointStorage, Image, StorageError, place};

impl JobStore {
    /// Takes over what is in `image`, which the user gave as `given`: it is deleted once a checkpoint of `lineage`, which
    /// begins with it, is complete.
    ///
    /// # Errors
    /// [`JobStoreError::Fenced`], [`JobStoreError::Damaged`] if the record of earlier ones is, and others: then nothing is
    /// taken over.
    pub fn take_over(
        &self,
        claim: &Claim,
        image: &Image,
        given: &str,
        lineage: Lineage,
    ) -> Result<(), JobStoreError> {
        let (storage, blobs) = image.files()?;
        let newest_attempt = match image.job_store() {
            Some(store) => Some(store.newest_attempt()?),
            None => None,
        };
        let manifest = image.manifest();
        let claimed = Claimed {
            given: given.to_owned(),
            by: claim.attempt(),
            lineage,
            location: storage.location(),
            newest_attempt,
            job: manifest.job.clone(),
            epoch: manifest.epoch,
            attempt: manifest.attempt,
            triggered_unix_ms: manifest.triggered_unix_ms,
            blobs: blobs.into_iter().map(String::from).collect(),
            released: false,
        };
        let mut record = self.claimed()?;
        record.claimed.retain(|other| Path::new(&other.given) != Path::new(given));
        record.claimed.push(claimed);
        self.check_unfenced(claim.attempt())?;
        self.put_claimed(&record)?;
        claim.all_released.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// What the job has taken over, what is released already among it.
    ///
    /// # Errors
    /// [`JobStoreError::Damaged`] and others.
    pub fn claimed(&self) -> Result<ClaimedRecord, JobStoreError> {
        let path = self.path(layout::CLAIMED);
        match self.storage.read(&path, RECORD_BYTES_MAX) {
            Err(StorageError::NotFound { .. }) => Ok(ClaimedRecord::default()),
            read => ClaimedRecord::decode(&read?).map_err(|e| self.damaged(path.as_str(), e)),
        }
    }

    /// Deletes what was taken over and is superfluous now.
    pub(super) fn release_claimed(&self, claim: &Claim) -> Result<(), JobStoreError> {
        if claim.all_released.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut record = self.claimed()?;
        if record.claimed.iter().all(|claimed| claimed.released) {
            claim.all_released.store(true, Ordering::SeqCst);
            return Ok(());
        }
        let mut lineages = Vec::new();
        for epoch in self.valid_epochs()? {
            match self.load_unchecked(epoch) {
                Ok(manifest) => lineages.push(manifest.lineage),
                // It says nothing; what it stems from stays for as long as no other tells.
                Err(JobStoreError::NoSuchCheckpoint { .. } | JobStoreError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let before = record.clone();
        let mine = claim.attempt();
        // What an earlier attempt has restored and nothing came of: it is the user's, as before.
        record.claimed.retain(|claimed| {
            claimed.released || claimed.by == mine || lineages.contains(&claimed.lineage)
        });
        let superfluous =
            |claimed: &&mut Claimed| !claimed.released && lineages.contains(&claimed.lineage);
        for claimed in record.claimed.iter_mut().filter(superfluous) {
            delete(claimed)?;
            claimed.released = true;
            claimed.blobs.clear();
        }
        if record != before {
            self.check_unfenced(mine)?;
            self.put_claimed(&record)?;
        }
        let all = record.claimed.iter().all(|claimed| claimed.released);
        claim.all_released.store(all, Ordering::SeqCst);
        Ok(())
    }

    /// The job is over and keeps nothing: neither does it need to know what it had taken over, unless that is still there.
    pub(super) fn forget_claimed(
        &self,
        released: &Result<(), JobStoreError>,
    ) -> Result<(), JobStoreError> {
        match released {
            Ok(()) => Ok(self.storage.delete(&self.path(layout::CLAIMED))?),
            Err(_) => Ok(()),
        }
    }

    fn put_claimed(&self, record: &ClaimedRecord) -> Result<(), JobStoreError> {
        let path = self.path(layout::CLAIMED);
        let bytes = record.encode().map_err(|e| self.encode_error(&path, e))?;
        Ok(self.storage.put(&path, &bytes)?)
    }

    fn newest_attempt(&self) -> Result<Attempt, JobStoreError> {
        let facts = self.attempt_facts()?;
        Ok(facts.claims.iter().chain(&facts.fences).max().copied().unwrap_or_default())
    }

    /// Deletes a checkpoint that another job has taken over, and what only it references.
    fn delete_claimed(&self, claimed: &Claimed) -> Result<(), JobStoreError> {
        match self.load_unchecked(claimed.epoch) {
            Ok(manifest) if is_it(claimed, &manifest) => match self.delete(claimed.epoch) {
                Err(JobStoreError::Pinned { .. }) => {
                    let Claimed { given, .. } = claimed;
                    tracing::info!("{given} was taken over and stays: it is pinned");
                    return Ok(());
                }
                // Somebody was faster.
                Err(JobStoreError::NoSuchCheckpoint { .. }) => {}
                deleted => _ = deleted?,
            },
            Ok(_) => return Ok(()),
            Err(JobStoreError::NoSuchCheckpoint { .. }) => {}
            Err(error) => return Err(error),
        }
        // Left by a deletion that was cut short.
        self.storage.delete(&self.path(&layout::retiring(claimed.epoch, super::pins::BY_USER)))?;
        // Before it is known that nobody has begun there: what begins later starts from one of these.
        let needed = self.referenced_by(self.published()?)?;
        if Some(self.newest_attempt()?) != claimed.newest_attempt {
            let Claimed { given, job, .. } = claimed;
            tracing::info!(
                "job {job} runs again: it deletes the files of {given} that it does not need"
            );
            return Ok(());
        }
        let mut blobs = Vec::new();
        for blob in &claimed.blobs {
            let blob = self.reference(claimed.epoch, blob)?;
            if !needed.contains(&blob) {
                blobs.push(blob);
            }
        }
        Ok(self.storage.delete_all(&blobs)?)
    }
}

/// Deletes what a job has taken over, wherever it is.
fn delete(claimed: &Claimed) -> Result<(), JobStoreError> {
    let Claimed { given, location, .. } = claimed;
    let storage = match place::open_existing(Path::new(location)) {
        Err(StorageError::NotFound { .. }) => return Ok(()),
        opened => opened?,
    };
    tracing::info!("{given} was taken over, and a checkpoint stems from it now: it is deleted");
    if claimed.newest_attempt.is_some() {
        return JobStore::new(storage, claimed.job.clone()).delete_claimed(claimed);
    }
    delete_directory(claimed, &*storage)
}

/// Deletes a savepoint or the copy of a checkpoint.
fn delete_directory(
    claimed: &Claimed,
    storage: &dyn CheckpointStorage,
) -> Result<(), JobStoreError> {
    let manifest = BlobPath::new("manifest").expect("a constant name");
    match storage.read(&manifest, Manifest::BYTES_MAX) {
        Ok(bytes) => {
            let there = Manifest::decode(&bytes);
            if !there.is_ok_and(|there| is_it(claimed, &there)) {
                let Claimed { given, .. } = claimed;
                tracing::warn!("{given} is not what was taken over any more: it stays as it is");
                return Ok(());
            }
            storage.delete(&manifest)?;
        }
        Err(StorageError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let plain = claimed.blobs.iter().filter_map(|name| BlobPath::new(name).ok());
    let files: Vec<_> = plain.filter(|name| !name.as_str().contains('/')).collect();
    storage.delete_all(&files)?;
    if !place::is_url(Path::new(&claimed.location)) {
        // It stays if the user has put anything else into it.
        let _ = std::fs::remove_dir(&claimed.location);
    }
    Ok(())
}

fn is_it(claimed: &Claimed, there: &Manifest) -> bool {
    let identity = (&there.job, there.epoch, there.attempt, there.triggered_unix_ms);
    identity == (&claimed.job, claimed.epoch, claimed.attempt, claimed.triggered_unix_ms)
}
