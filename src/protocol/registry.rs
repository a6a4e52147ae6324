//! Attempts and checkpoints: who may publish, and which manifests count. Facts in, decisions out.
//!
//! All attempts of a job share one directory, and any of them may be slow, stopped or thought dead. What they have is
//! create-if-absent (one winner) and listing (whatever was created before the listing began is in it).
//!
//! # Facts
//! | blob                      | made by                       | says                                            |
//! |---------------------------|-------------------------------|-------------------------------------------------|
//! | `attempts/<a>`            | attempt *a*, first of all     | claim: every lower attempt is to stop           |
//! | `attempts/<a>.fence`      | attempt *a*                   | fence: the first epoch and the kept checkpoints |
//! | `attempts/<a>.epochs-<f>` | attempt *a*                   | [`EPOCHS_PER_RESERVATION`] epochs from *f* on are its own |
//! | `chk/<n>/manifest`        | the attempt that took *n*     | checkpoint *n* is published                     |
//! | `chk/<n>/<a>.retiring`    | attempt *a*                   | it deletes that manifest unless it finds a pin  |
//! | `pins/<n>`                | a user                        | checkpoint *n* stays, if the pin was granted    |
//!
//! # A new attempt claims
//! 1. It creates the claim above the highest there is; if somebody was faster, again.
//! 2. It lists claims and fences, and reads the *ruling* fence: that of the highest attempt that has one.
//! 3. It lists manifests. (After its claim: this order is what the proof below stands on.)
//! 4. It creates its own fence: the checkpoints that count ([`counts`]) by the ruling fence are *kept*; its epochs
//!    begin above everything reserved or published. From here on its fence rules, unless a higher one is there.
//! 5. It lists claims again. A higher claim, here or in step 2, means that it is fenced; otherwise it has started.
//!
//! # An attempt publishes
//! It lists claims, creates the manifest, **lists claims again**, and only then may it tell anybody. A higher claim in
//! either list means that it is fenced.
//!
//! # Which manifests count
//! Those that the ruling fence keeps, and those with an epoch from the ruling attempt's first on. All others are void.
//!
//! # Invariants
//! * **Announced checkpoints count for ever.** If the second listing of the publisher saw no higher claim, every higher
//!   claim was created after the manifest, so every later attempt's listing of manifests (after its claim) sees it.
//!   By induction over the attempts it is kept by all their fences. (Dekker: each side writes its own fact, then reads
//!   the other's; they cannot both miss.)
//! * **What an attempt started from counts for ever.** A manifest that was published and not announced may or may not
//!   be seen by the next attempt. But an attempt has only started when its fence is there and no higher claim: every
//!   later attempt finds that fence, or a later one made from it. A lower attempt that writes its fence late changes
//!   nothing, because it does not rule; and it finds the higher claim in step 5.
//! * **Epochs never repeat.** A reservation is usable if no higher claim is seen after making it; so a later attempt's
//!   listing has it.
//! * **Nothing old is needed.** A fence sums up all lower ones, so the files of all attempts below the ruling one can be
//!   deleted.
//!
//! * **A pin that was granted holds** until it is taken off: `storage::job_store::pins` says in which order both sides go.
//!
//! The tests take every step in every order for two and three attempts, and show for three steps of the protocol that
//! without it an invariant breaks.
//!
//! # Failure
//! A crash after any step leaves a claim without a fence, which says nothing, or a fence that keeps what counted.
//!
//! # Source
//! Dekker's mutual exclusion (Dijkstra 1965) for the two listings; fencing tokens as in Burrows 2006 (Chubby).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::ids::{Attempt, Epoch};

/// Number of epochs that one reservation holds.
pub const EPOCHS_PER_RESERVATION: u64 = 1000;

/// What an attempt found when it began.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fence {
    /// The first epoch of the attempt. It has reserved [`EPOCHS_PER_RESERVATION`] of them.
    pub first_epoch: Epoch,
    /// The checkpoints of earlier attempts that count.
    pub kept: BTreeSet<Epoch>,
}

/// What a listing of the attempts' blobs says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AttemptFacts {
    /// Attempts with a claim.
    pub claims: BTreeSet<Attempt>,
    /// Attempts with a fence.
    pub fences: BTreeSet<Attempt>,
    /// Attempts' reservations beyond the one in their fence: the first epoch of each.
    pub reservations: BTreeSet<(Attempt, Epoch)>,
}

/// The number that the next attempt should try to claim.
#[must_use]
pub fn next_attempt(facts: &AttemptFacts) -> Attempt {
    // A fence without a claim is no attempt that can come back, but its number is used.
    let highest = facts.claims.iter().chain(&facts.fences).max();
    highest.copied().unwrap_or_default().next()
}

/// The highest attempt above `mine`, by which it is fenced.
#[must_use]
pub fn fenced_by(facts: &AttemptFacts, mine: Attempt) -> Option<Attempt> {
    facts.claims.last().copied().filter(|highest| *highest > mine)
}

/// Whether the checkpoint counts under the ruling fence. Without any fence everything does.
#[must_use]
pub fn counts(epoch: Epoch, ruling: Option<&Fence>) -> bool {
    ruling.is_none_or(|fence| epoch >= fence.first_epoch || fence.kept.contains(&epoch))
}

/// The fence of a new attempt. `manifests` were listed after its claim; `other_epochs` are those of any further blobs
/// (parts without a manifest), whose numbers are not to be used again either.
#[must_use]
pub fn new_fence(
    facts: &AttemptFacts,
    ruling: Option<&Fence>,
    manifests: &BTreeSet<Epoch>,
    other_epochs: &BTreeSet<Epoch>,
) -> Fence {
    let reserved = facts.reservations.iter().map(|(_, first)| *first);
    let reserved = reserved.chain(ruling.map(|fence| fence.first_epoch));
    let reserved_end = reserved.map(|first| first.0.saturating_add(EPOCHS_PER_RESERVATION)).max();
    let used = manifests.last().max(other_epochs.last());
    let used_end = used.map(|epoch| epoch.0.saturating_add(1));
    let first_epoch = Epoch(reserved_end.max(used_end).unwrap_or(1));
    let kept = manifests.iter().copied().filter(|epoch| counts(*epoch, ruling)).collect();
    Fence { first_epoch, kept }
}

/// The attempt whose fence rules.
#[must_use]
pub fn ruling(facts: &AttemptFacts) -> Option<Attempt> {
    facts.fences.last().copied()
}

/// The attempts whose files nobody needs once `ruling` has its fence.
#[must_use]
pub fn obsolete(facts: &AttemptFacts, ruling: Attempt) -> BTreeSet<Attempt> {
    let reserved = facts.reservations.iter().map(|(attempt, _)| attempt);
    let all = facts.claims.iter().chain(&facts.fences).chain(reserved);
    all.copied().filter(|attempt| *attempt < ruling).collect()
}

/// What the directory of one checkpoint says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Publication {
    /// Whether the manifest is there.
    pub manifest: bool,
    /// Whether anybody has marked it as being retired.
    pub retiring: bool,
}

/// What becomes of a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PinVerdict {
    /// It is granted, and holds until it is taken off.
    Holds,
    /// The checkpoint is not there.
    Gone,
    /// Somebody has begun to delete the checkpoint, and may not see the pin.
    Retiring,
    /// The checkpoint does not count under the fence of that attempt.
    Void {
        /// The attempt whose fence rules.
        by: Attempt,
    },
    /// That attempt has claimed and not said yet which checkpoints it keeps.
    Unsettled {
        /// The attempt.
        by: Attempt,
    },
}

/// Whether a pin holds. `publication` was listed after the pin was created, `facts` after that; `ruling_fence` is that
/// of the attempt that rules by these.
#[must_use]
pub fn judge_pin(
    epoch: Epoch,
    publication: Publication,
    facts: &AttemptFacts,
    ruling_fence: Option<&Fence>,
) -> PinVerdict {
    let rules = ruling(facts).unwrap_or_default();
    match publication {
        Publication { manifest: false, .. } => PinVerdict::Gone,
        _ if !counts(epoch, ruling_fence) => PinVerdict::Void { by: rules },
        Publication { retiring: true, .. } => PinVerdict::Retiring,
        Publication { .. } => match fenced_by(facts, rules) {
            Some(by) => PinVerdict::Unsettled { by },
            None => PinVerdict::Holds,
        },
    }
}

/// Which checkpoints stay and which go when an attempt retires the ones that it no longer wants.
///
/// `keep` are the complete checkpoints to keep; `busy` those that are being taken. An epoch of `mine` above all of these
/// was begun after the caller looked: it is left alone, unless both are empty, which says that the attempt is over.
#[derive(Clone, Debug)]
pub struct Retention<'a> {
    /// The attempt that retires.
    pub mine: Attempt,
    /// Its fence.
    pub fence: &'a Fence,
    /// Complete checkpoints to keep.
    pub keep: &'a BTreeSet<Epoch>,
    /// Checkpoints in progress.
    pub busy: &'a BTreeSet<Epoch>,
    /// Checkpoints that users have pinned: those that count stay.
    pub pinned: &'a BTreeSet<Epoch>,
}

impl Retention<'_> {
    /// Whether a manifest may be deleted.
    #[must_use]
    pub fn manifest_goes(&self, epoch: Epoch) -> bool {
        if !counts(epoch, Some(self.fence)) {
            return true;
        }
        let wanted = self.keep.contains(&epoch) || self.pinned.contains(&epoch);
        !wanted && !self.own_and_active(epoch)
    }

    /// Whether a blob that no remaining manifest references may be deleted, by who wrote it for which checkpoint.
    #[must_use]
    pub fn unreferenced_blob_goes(&self, writer: Attempt, epoch: Epoch) -> bool {
        writer < self.mine || (writer == self.mine && !self.own_and_active(epoch))
    }

    fn own_and_active(&self, epoch: Epoch) -> bool {
        let known = self.keep.last().max(self.busy.last());
        epoch >= self.fence.first_epoch
            && (self.busy.contains(&epoch) || known.is_some_and(|known| epoch > *known))
    }
}

#[cfg(test)]
mod tests;
