//! Deleting what nobody needs, so that the directory equals the reachable set.
//!
//! # Ordering
//! Manifests go first (a deleted one is durably gone before the next step), then what no remaining manifest
//! references. A manifest that can not be read references anything: then no data is deleted, and the error says which.
//!
//! Before a manifest that counts is deleted it is marked, and the pins are listed: what is pinned stays ([`super::pins`]).
//!
//! What a checkpoint in progress has written is named by no manifest yet. It stays because its name says which attempt and checkpoint
//! it is of: of its own attempt, a retirement deletes no data of checkpoints in progress or begun later. What newer attempts wrote is
//! never deleted, nor are checkpoints elsewhere that no user has handed over ([`super::claimed`]).
//!
//! # What a slow attempt can do
//! It looks for a newer claim before it deletes checkpoints, and again, when it has read what the remaining ones reference,
//! before it deletes data. If one appears afterwards, what it deletes is what the newer one does not need: checkpoints older
//! than one that it has itself announced (the newer one starts from that or a later one), and data of attempts up to itself that
//! no checkpoint references which the newer one could start from. A user who restores an *older*
//! checkpoint while a stopped attempt wakes up may find it gone; that is an error, not damage.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Duration;

use super::layout::Place;
use super::pins::BY_USER;
use super::{Claim, JobStore, JobStoreError, layout};
use crate::ids::{Attempt, Epoch};
use crate::protocol::registry::{self, Retention};
use crate::storage::BlobPath;

/// What was deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Number of checkpoints.
    pub checkpoints: u64,
    /// Number of blobs, manifests among them.
    pub blobs: u64,
    /// Units: bytes of these.
    pub bytes: u64,
}

type Blobs = Vec<(BlobPath, u64)>;

impl JobStore {
    /// Deletes the checkpoints that are not in `keep`, and everything that no remaining one references, except what
    /// belongs to checkpoints of this attempt `in_progress` or begun later than any that is named. Pinned ones stay.
    ///
    /// `keep` are complete checkpoints. If both are empty the attempt is over: everything goes, and the job's record
    /// says again that no checkpoint completed, unless one is pinned.
    ///
    /// # Errors
    /// [`JobStoreError::Fenced`] if a newer attempt has claimed: nothing is deleted that it needs. After others call again.
    pub fn retire(
        &self,
        claim: &Claim,
        keep: &[Epoch],
        in_progress: &[Epoch],
    ) -> Result<Released, JobStoreError> {
        let keep = keep.iter().copied().collect();
        let busy = in_progress.iter().copied().collect();
        let (mine, fence) = (claim.attempt, &*claim.fence);
        let mut blobs = self.storage.list(Some(&self.job_path()))?;
        let pins = blobs.iter().filter_map(|(path, _)| self.place(path).as_pin());
        let mut pinned: BTreeSet<Epoch> = pins.collect();
        self.check_unfenced(mine)?;
        // First: afterwards the checkpoints may be gone that say whose it is.
        let claimed = self.release_claimed(claim);
        let retention = Retention { mine, fence, keep: &keep, busy: &busy, pinned: &pinned };
        let counting = self.manifests(&blobs).filter(|epoch| registry::counts(*epoch, Some(fence)));
        let going = counting.filter(|epoch| retention.manifest_goes(*epoch)).collect();
        let (marks, pinned_since) = self.mark_retiring(mine, &going)?;
        pinned.extend(pinned_since);
        blobs.extend(marks.into_iter().map(|mark| (mark, 0)));
        let retention = Retention { mine, fence, keep: &keep, busy: &busy, pinned: &pinned };
        let live = if keep.is_empty() && busy.is_empty() {
            if self.manifests(&blobs).all(|epoch| retention.manifest_goes(epoch)) {
                self.put_first_completed(None)?;
                claim.forget_completed();
                self.forget_claimed(&claimed)?;
            }
            BTreeSet::new()
        } else {
            let live = claim.live.lock().unwrap_or_else(PoisonError::into_inner);
            // Each that is being taken may have seen one more complete since it began.
            live.iter().rev().take(1 + busy.len()).flatten().cloned().collect()
        };
        let released = self.delete_unwanted(
            &blobs,
            |epoch| retention.manifest_goes(epoch),
            |attempt, epoch| retention.unreferenced_blob_goes(attempt, epoch),
            live,
            mine,
        )?;
        claimed.map(|()| released)
    }

    /// Removes what earlier attempts left: void manifests, unreferenced data, their claims, and temporary files older
    /// than `temporary_age` (of all jobs of the store; so let it be longer than a write may take).
    ///
    /// # Errors
    /// [`JobStoreError::Fenced`] if a newer attempt has claimed: nothing is deleted that it needs. After others call again.
    pub fn sweep(&self, claim: &Claim, temporary_age: Duration) -> Result<Released, JobStoreError> {
        // First the pins: the checkpoint of a pin was published before the pin was made.
        let pins = self.pinned()?;
        let blobs = self.storage.list(Some(&self.job_path()))?;
        self.check_unfenced(claim.attempt)?;
        self.release_claimed(claim)?;
        let mut released = self.delete_unwanted(
            &blobs,
            |epoch| !registry::counts(epoch, Some(&claim.fence)),
            |attempt, _| attempt < claim.attempt,
            BTreeSet::new(),
            claim.attempt,
        )?;
        let remaining: BTreeSet<Epoch> = self
            .manifests(&blobs)
            .filter(|epoch| registry::counts(*epoch, Some(&claim.fence)))
            .collect();
        // Whoever made these has died, or is about to be refused.
        for epoch in pins.difference(&remaining) {
            self.storage.delete(&self.path(&layout::pin(*epoch)))?;
        }
        let facts = layout::facts(blobs.iter().map(|(path, _)| self.place(path)));
        let obsolete = registry::obsolete(&facts, claim.attempt);
        for (path, size) in &blobs {
            if self.place(path).as_attempt().is_some_and(|attempt| obsolete.contains(&attempt)) {
                self.release(path, *size, &mut released)?;
            }
        }
        self.storage.sweep_temporary(temporary_age)?;
        Ok(released)
    }

    /// Removes what this attempt and earlier ones wrote and no checkpoint references: what was still being written when a
    /// checkpoint was given up. The attempt must be over: a part of a checkpoint in progress would go as well.
    ///
    /// # Errors
    /// [`JobStoreError::Fenced`] if a newer attempt has claimed: nothing is deleted that it needs. After others call again.
    pub fn tidy(&self, claim: &Claim) -> Result<Released, JobStoreError> {
        let blobs = self.storage.list(Some(&self.job_path()))?;
        self.check_unfenced(claim.attempt)?;
        let goes = |attempt, _| attempt <= claim.attempt;
        self.delete_unwanted(&blobs, |_| false, goes, BTreeSet::new(), claim.attempt)
    }

    /// Deletes the parts of a checkpoint of this attempt that was aborted. If its manifest is there after all, nothing.
    ///
    /// # Errors
    /// [`JobStoreError`].
    pub fn discard(&self, claim: &Claim, epoch: Epoch) -> Result<Released, JobStoreError> {
        let blobs = self.storage.list(Some(&self.path(&layout::checkpoint(epoch))))?;
        let mut released = Released::default();
        if blobs.iter().any(|(path, _)| self.place(path) == Place::Manifest(epoch)) {
            return Ok(released);
        }
        let shared = self.storage.list(Some(&self.path(layout::SHARED)))?;
        for (path, size) in blobs.iter().chain(&shared) {
            if self.place(path) == Place::Data(claim.attempt, epoch) {
                self.release(path, *size, &mut released)?;
            }
        }
        Ok(released)
    }

    /// Deletes one checkpoint, because the user says so. The job's record still says that one was complete.
    ///
    /// # Errors
    /// [`JobStoreError::NoSuchCheckpoint`], [`JobStoreError::Pinned`] and others.
    pub fn delete(&self, epoch: Epoch) -> Result<Released, JobStoreError> {
        let blobs = self.storage.list(Some(&self.job_path()))?;
        if !blobs.iter().any(|(path, _)| self.place(path) == Place::Manifest(epoch)) {
            let (job, location) = (self.job.clone(), self.storage.location());
            return Err(JobStoreError::NoSuchCheckpoint { job, epoch, location });
        }
        let pinned = || JobStoreError::Pinned { job: self.job.clone(), epoch };
        if blobs.iter().any(|(path, _)| self.place(path) == Place::Pin(epoch)) {
            return Err(pinned());
        }
        let (marks, pinned_since) = self.mark_retiring(BY_USER, &BTreeSet::from([epoch]))?;
        if !pinned_since.is_empty() {
            return Err(pinned());
        }
        // Shared files may be wanted by a checkpoint that is being taken: the job itself retires those.
        let directory = self.path(&layout::checkpoint(epoch));
        let below = |path: &BlobPath| path.as_str().starts_with(&format!("{directory}/"));
        let inside: Blobs = blobs.iter().filter(|(path, _)| below(path)).cloned().collect();
        let remaining: Vec<_> = self.manifests(&blobs).filter(|other| *other != epoch).collect();
        let referenced = self.referenced_by(remaining)?;
        let mut released = Released { checkpoints: 1, ..Released::default() };
        let manifest = self.path(&layout::manifest(epoch));
        let size = inside.iter().find(|(path, _)| *path == manifest).map_or(0, |(_, size)| *size);
        self.release(&manifest, size, &mut released)?;
        for (path, size) in inside.iter().filter(|(path, _)| *path != manifest) {
            if !referenced.contains(path) && matches!(self.place(path), Place::Data(..)) {
                self.release(path, *size, &mut released)?;
            }
        }
        for mark in &marks {
            self.storage.delete(mark)?;
        }
        Ok(released)
    }

    /// Every blob that the job needs: its record, its history, pins, requests and answers, the attempts from the ruling one on, the checkpoints that
    /// count and all that they reference.
    ///
    /// # Errors
    /// [`JobStoreError`]; a damaged manifest is one.
    pub fn reachable(&self) -> Result<BTreeSet<BlobPath>, JobStoreError> {
        let (blobs, valid) = self.blobs_and_valid()?;
        let mut reachable = self.referenced_by(valid.iter().copied())?;
        reachable.extend(self.reachable_otherwise(&blobs, &valid));
        Ok(reachable)
    }

    /// Every blob of the job that is not reachable. After [`JobStore::sweep`] and [`JobStore::retire`], none.
    ///
    /// # Errors
    /// [`JobStoreError`]; a damaged manifest is one.
    pub fn unreachable(&self) -> Result<Vec<BlobPath>, JobStoreError> {
        let reachable = self.reachable()?;
        let blobs = self.storage.list(Some(&self.job_path()))?;
        Ok(blobs.into_iter().map(|(path, _)| path).filter(|p| !reachable.contains(p)).collect())
    }

    pub(super) fn blobs_and_valid(&self) -> Result<(Blobs, BTreeSet<Epoch>), JobStoreError> {
        let blobs = self.storage.list(Some(&self.job_path()))?;
        let facts = layout::facts(blobs.iter().map(|(path, _)| self.place(path)));
        let ruling = self.ruling_fence(&facts)?;
        let counts = |epoch: &Epoch| registry::counts(*epoch, ruling.as_ref());
        let valid = self.manifests(&blobs).filter(counts).collect();
        Ok((blobs, valid))
    }

    /// What is reachable without any manifest's saying so.
    pub(super) fn reachable_otherwise(
        &self,
        blobs: &Blobs,
        valid: &BTreeSet<Epoch>,
    ) -> BTreeSet<BlobPath> {
        let facts = layout::facts(blobs.iter().map(|(path, _)| self.place(path)));
        let ruling = registry::ruling(&facts);
        let needed = |place: Place| match place {
            Place::Job | Place::Claimed | Place::History(_) | Place::Restore(_) => true,
            // Whoever asked, or the attempt that runs, removes them.
            Place::Request(_) | Place::Taken(_) | Place::Answer(_) => true,
            Place::Claim(attempt) | Place::Fence(attempt) | Place::Reservation(attempt, _) => {
                ruling.is_none_or(|ruling| attempt >= ruling)
            }
            Place::Manifest(epoch) | Place::Pin(epoch) | Place::Retiring(_, epoch) => {
                valid.contains(&epoch)
            }
            Place::Data(..) | Place::Other => false,
        };
        let paths = blobs.iter().map(|(path, _)| path);
        paths.filter(|path| needed(self.place(path))).cloned().collect()
    }

    fn delete_unwanted(
        &self,
        blobs: &Blobs,
        manifest_goes: impl Fn(Epoch) -> bool,
        data_goes: impl Fn(Attempt, Epoch) -> bool,
        mut needed: BTreeSet<BlobPath>,
        mine: Attempt,
    ) -> Result<Released, JobStoreError> {
        let mut released = Released::default();
        for (path, size) in blobs {
            if let Place::Manifest(epoch) = self.place(path)
                && manifest_goes(epoch)
            {
                self.release(path, *size, &mut released)?;
                released.checkpoints += 1;
            }
        }
        let remaining: BTreeSet<Epoch> =
            self.manifests(blobs).filter(|epoch| !manifest_goes(*epoch)).collect();
        for (path, _) in blobs {
            if let Place::Retiring(attempt, epoch) = self.place(path)
                && !remaining.contains(&epoch)
                && data_goes(attempt, epoch)
            {
                self.storage.delete(path)?;
            }
        }
        let unwanted: Blobs = blobs
            .iter()
            .filter(|(path, _)| {
                matches!(self.place(path), Place::Data(attempt, epoch) if data_goes(attempt, epoch))
            })
            .cloned()
            .collect();
        if unwanted.is_empty() {
            return Ok(released);
        }
        needed.extend(self.referenced_by(remaining)?);
        // SUBTLE: 1. this attempt lists, and stops; 2. a newer one goes on from a checkpoint of the list, publishes one that
        // references the same files, and retires the first; 3. this one finds the manifest gone, and so nothing that needs
        // the files. If nobody has claimed by now, what whoever claims later starts from is among what was read above.
        self.check_unfenced(mine)?;
        // Of data any order will do, and an object store deletes several at once.
        let data: Blobs = unwanted.into_iter().filter(|(path, _)| !needed.contains(path)).collect();
        let paths: Vec<BlobPath> = data.iter().map(|(path, _)| path.clone()).collect();
        self.storage.delete_all(&paths)?;
        released.blobs += data.len() as u64;
        released.bytes += data.iter().map(|(_, size)| size).sum::<u64>();
        Ok(released)
    }

    pub(super) fn referenced_by(
        &self,
        epochs: impl IntoIterator<Item = Epoch>,
    ) -> Result<BTreeSet<BlobPath>, JobStoreError> {
        let mut referenced = BTreeSet::new();
        for epoch in epochs {
            match self.load_unchecked(epoch) {
                Ok(manifest) => referenced.extend(self.references(&manifest)?),
                // Somebody deleted it meanwhile: it references nothing any more.
                Err(JobStoreError::NoSuchCheckpoint { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(referenced)
    }

    fn manifests(&self, blobs: &Blobs) -> impl Iterator<Item = Epoch> {
        blobs.iter().filter_map(|(path, _)| self.place(path).as_manifest())
    }

    fn release(
        &self,
        path: &BlobPath,
        size: u64,
        released: &mut Released,
    ) -> Result<(), JobStoreError> {
        self.storage.delete(path)?;
        released.blobs += 1;
        released.bytes += size;
        Ok(())
    }
}
