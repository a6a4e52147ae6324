//! Pins: checkpoints that a user keeps, whatever the job would retire.
//!
//! A pin is the blob `pins/<n>`. While it is there no retirement, no sweep, no end of the job and no
//! [`JobStore::delete`] removes checkpoint *n* or anything that its manifest names. Without it the checkpoint is as any
//! other: the next retirement removes it, and exactly what only it references.
//!
//! # Ordering
//! * **Who pins** sees the manifest, creates the pin, then lists the checkpoint's directory, then the attempts. The pin
//!   holds if the manifest is still there, no mark says that it is being retired, the checkpoint counts under the ruling
//!   fence, and no claim is above that fence ([`registry::judge_pin`]). Otherwise the pin is removed again and refused.
//! * **Who deletes a manifest that counts** creates a mark first, `chk/<n>/<attempt>.retiring`, then lists the pins, and
//!   deletes only what has none; for what has one it removes its mark. Marks outlive their manifests, never the other
//!   way round. A user's deletion marks as attempt 0.
//!
//! # Invariants
//! * **A pin that was granted holds.** (Dekker) If who pins saw no mark, every mark was made after the pin, and whoever
//!   made one lists the pin. That is so for any attempt, also a slow one that has been replaced: marks carry the
//!   attempt's number, and nobody removes another's while the manifest is there. What a dead attempt has marked can not
//!   be pinned any more, and is retired by a later one.
//! * **A new attempt keeps it.** No claim was above the ruling fence after the manifest was seen: so every later attempt
//!   lists that manifest after its claim, and its fence keeps it. (As for what is announced: `protocol::registry`.)
//! * **What is void stays void**: it needs no mark, because its pin is never granted.
//!
//! # Failure
//! A crash of who pins leaves a pin that was not granted. It holds if the checkpoint is there and counts; otherwise the
//! next sweep removes it. A crash of who retires leaves marks, removed with the manifest or after it.
//!
//! Not covered: two users at the same checkpoint at once. If one pin is refused, or one user unpins, or two delete, the
//! other's pin may be gone with it.

use std::collections::BTreeSet;

use super::layout::Place;
use super::{JobStore, JobStoreError, layout};
use crate::ids::{Attempt, Epoch};
use crate::protocol::registry::{self, PinVerdict, Publication};
use crate::storage::{BlobPath, Created};

/// The attempt that a user's deletion is marked with. Attempts count from 1.
pub(super) const BY_USER: Attempt = Attempt(0);

impl JobStore {
    /// Pins a checkpoint; `false` if it was pinned already.
    ///
    /// # Errors
    /// [`JobStoreError::NoSuchCheckpoint`], [`JobStoreError::Void`], or [`JobStoreError::NotPinned`] if it is being
    /// deleted or an attempt is just starting: then there is no pin. After others it may be pinned: call again.
    pub fn pin(&self, epoch: Epoch) -> Result<bool, JobStoreError> {
        self.load(epoch)?;
        let path = self.path(&layout::pin(epoch));
        let new = self.storage.create(&path, &[])? == Created::New;
        let verdict = self.judge_pin(epoch)?;
        if verdict == PinVerdict::Holds {
            return Ok(new);
        }
        if new {
            self.storage.delete(&path)?;
        }
        let job = self.job.clone();
        let why = match verdict {
            PinVerdict::Gone | PinVerdict::Holds => {
                let location = self.storage.location();
                return Err(JobStoreError::NoSuchCheckpoint { job, epoch, location });
            }
            PinVerdict::Void { by } => return Err(JobStoreError::Void { job, epoch, by }),
            PinVerdict::Retiring => "it is being deleted".to_owned(),
            PinVerdict::Unsettled { by } => {
                format!(
                    "attempt {by} is starting, or has died while it did: ask again when one has started"
                )
            }
        };
        Err(JobStoreError::NotPinned { job, epoch, why })
    }

    /// Takes the pin off a checkpoint; `false` if there was none.
    ///
    /// # Errors
    /// [`JobStoreError`].
    pub fn unpin(&self, epoch: Epoch) -> Result<bool, JobStoreError> {
        let pinned = self.pinned()?.contains(&epoch);
        if pinned {
            self.storage.delete(&self.path(&layout::pin(epoch)))?;
        }
        Ok(pinned)
    }

    /// The checkpoints that have a pin, in ascending order.
    ///
    /// # Errors
    /// [`JobStoreError`].
    pub fn pinned(&self) -> Result<BTreeSet<Epoch>, JobStoreError> {
        let blobs = self.storage.list(Some(&self.path(layout::PINS)))?;
        Ok(blobs.iter().filter_map(|(path, _)| self.place(path).as_pin()).collect())
    }

    /// Marks checkpoints as being retired by an attempt. Returns the marks of those that may go; the others have been
    /// pinned meanwhile.
    pub(super) fn mark_retiring(
        &self,
        by: Attempt,
        epochs: &BTreeSet<Epoch>,
    ) -> Result<(Vec<BlobPath>, BTreeSet<Epoch>), JobStoreError> {
        let mark = |epoch: &Epoch| self.path(&layout::retiring(*epoch, by));
        if epochs.is_empty() {
            return Ok((Vec::new(), BTreeSet::new()));
        }
        for epoch in epochs {
            self.storage.create(&mark(epoch), &[])?;
        }
        let pinned: BTreeSet<Epoch> = self.pinned()?.intersection(epochs).copied().collect();
        for epoch in &pinned {
            self.storage.delete(&mark(epoch))?;
        }
        Ok((epochs.difference(&pinned).map(mark).collect(), pinned))
    }

    fn judge_pin(&self, epoch: Epoch) -> Result<PinVerdict, JobStoreError> {
        let blobs = self.storage.list(Some(&self.path(&layout::checkpoint(epoch))))?;
        let places = || blobs.iter().map(|(path, _)| self.place(path));
        let publication = Publication {
            manifest: places().any(|place| place == Place::Manifest(epoch)),
            retiring: places().any(|place| matches!(place, Place::Retiring(..))),
        };
        loop {
            let before = self.attempt_facts()?;
            let fence = self.ruling_fence(&before)?;
            let facts = self.attempt_facts()?;
            // Otherwise the fence may not be the ruling one of these facts.
            if registry::ruling(&before) == registry::ruling(&facts) {
                return Ok(registry::judge_pin(epoch, publication, &facts, fence.as_ref()));
            }
        }
    }
}
