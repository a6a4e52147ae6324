//! Incremental snapshots of keyed state: which older layers a snapshot needs, and how much it writes.
//!
//! A state is kept as *layers*: parts of checkpoints, of which each holds what had changed when it was written, and for some
//! ranges of hashes all there was. A range is *superseded* in a layer if a newer one holds all of it.
//!
//! # States
//! Of a layer: *small* (what has changed since the newest layer of all), *top* (what has changed since the newest top layer, and a
//! *window* that is written whole), or *whole* (if there is nothing confirmed to build on, if half or more has changed, or if the
//! snapshot has to stand alone). Of a snapshot: *pending* from its freeze until its checkpoint is complete, then
//! *confirmed*; only confirmed ones are built on.
//!
//! # Ordering and invariants
//! * A snapshot holds everything that has changed since the confirmed one that it builds on, whatever became of those between.
//!   So a checkpoint that was aborted loses nothing.
//! * A top layer takes the place of the small ones before it: they are not needed any more.
//! * The window moves through all hashes, so after some top layers everything below is superseded and forgotten. Its size is a share of what
//!   has changed: this is what compaction costs, and it comes in even pieces, never all at once.
//! * At most [`SMALL_MAX`] small layers and about [`WINDOWS`] top ones are needed.
//!
//! # Cost
//! With *c* entries changed between two checkpoints out of *n*, `1.8 c` entries are written on average if `c >= n/128`. If less, `c`, and when
//! `n/128` have come together these again with as large a window: `3 c`. If very few, so that [`SMALL_MAX`] checkpoints come first, `2 c` and
//! `n/2048`. If half or more has changed, everything.
//!
//! # Source
//! Log-structured merge trees (O'Neil, Cheng, Gawlick, O'Neil 1996) with two levels, merged from memory instead of from files.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::ids::{Epoch, HashRange};

/// Small layers between two top ones.
pub const SMALL_MAX: usize = 16;
/// The window passes through all hashes in at most so many top layers.
pub const WINDOWS: u64 = 128;
/// A snapshot is a top one if one entry in so many has changed since the last.
const TOP_SHARE: u64 = 128;
/// Layers beyond which a snapshot is whole: many restarts may leave some that nothing supersedes soon.
const LAYERS_MAX: usize = 256;

/// Hashes: disjoint ranges, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HashRanges(Vec<HashRange>);

impl HashRanges {
    /// No hashes.
    #[must_use]
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    /// Adds the hashes of a range.
    pub fn insert(&mut self, range: HashRange) {
        let (mut first, mut last) = (range.first, range.last);
        self.0.retain(|other| {
            let apart = other.last < first && first - other.last > 1
                || last < other.first && other.first - last > 1;
            if !apart {
                first = first.min(other.first);
                last = last.max(other.last);
            }
            apart
        });
        let place = self.0.partition_point(|other| other.first < first);
        self.0.insert(place, HashRange { first, last });
    }

    /// Whether the hash is in one of the ranges.
    #[inline]
    #[must_use]
    pub fn contains(&self, hash: u64) -> bool {
        let behind = self.0.partition_point(|range| range.first <= hash);
        behind > 0 && hash <= self.0[behind - 1].last
    }

    /// Whether every hash of a range is in one of the ranges.
    #[must_use]
    pub fn covers(&self, range: HashRange) -> bool {
        self.0.iter().any(|own| own.contains(range.first) && own.contains(range.last))
    }

    /// Those that are in another range as well.
    #[must_use]
    pub fn clip(&self, to: HashRange) -> Self {
        let clipped = |range: &HashRange| {
            let (first, last) = (range.first.max(to.first), range.last.min(to.last));
            (first <= last).then_some(HashRange { first, last })
        };
        Self(self.0.iter().filter_map(clipped).collect())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges, ascending.
    #[must_use]
    pub fn as_slice(&self) -> &[HashRange] {
        &self.0
    }
}

impl FromIterator<HashRange> for HashRanges {
    fn from_iter<I: IntoIterator<Item = HashRange>>(ranges: I) -> Self {
        let mut all = Self::default();
        ranges.into_iter().for_each(|range| all.insert(range));
        all
    }
}

/// Which entries of a block count, and what they look like.
#[derive(Clone, Debug)]
pub struct Selection<'a> {
    /// Those of keys in these key groups,
    pub groups: Range<u16>,
    /// unless a newer layer holds all entries of their hash.
    pub superseded: &'a HashRanges,
    /// Whether the block is of changes.
    pub changes: bool,
}

impl Selection<'static> {
    /// All entries of keys in these key groups, of a block that holds no changes.
    #[must_use]
    pub fn whole(groups: Range<u16>) -> Self {
        static NONE: HashRanges = HashRanges::none();
        Self { groups, superseded: &NONE, changes: false }
    }
}

/// A layer of one state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The checkpoint that it was written for.
    pub epoch: Epoch,
    /// The hashes of which it holds all entries.
    pub whole: HashRanges,
    /// Whether a newer top layer leaves it needed.
    pub top: bool,
}

/// What a snapshot is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Everything.
    Whole,
    /// What has changed since the last confirmed top layer, and a window of about so many entries.
    Top {
        /// Number of entries.
        window: u64,
    },
    /// What has changed since the last confirmed snapshot.
    Small,
}

#[derive(Debug)]
struct Pending {
    epoch: Epoch,
    snapshot: u32,
    top: bool,
    layers: Vec<Layer>,
}

/// The layers of one state on one worker.
#[derive(Debug)]
pub struct Layers {
    /// The hashes of all keys that the worker owns.
    owned: HashRange,
    /// What the last confirmed snapshot needs, itself included, in ascending order. Empty: there is none to build on.
    confirmed: Vec<Layer>,
    pending: Vec<Pending>,
    /// The number of the last snapshot.
    snapshot: u32,
    confirmed_snapshot: u32,
    confirmed_top: u32,
    /// Where the next window begins.
    window_at: u64,
}

impl Layers {
    /// No layers, of a worker that owns keys with these hashes.
    #[must_use]
    pub fn new(owned: HashRange) -> Self {
        Self {
            owned,
            confirmed: Vec::new(),
            pending: Vec::new(),
            snapshot: 0,
            confirmed_snapshot: 0,
            confirmed_top: 0,
            window_at: owned.first,
        }
    }

    /// Builds on the layers that the state was restored from.
    pub fn adopt(&mut self, mut layers: Vec<Layer>) {
        // What has changed since the last top layer is not known any more: so none of these is replaced by the next.
        layers.iter_mut().for_each(|layer| layer.top = true);
        self.confirmed = layers;
    }

    /// The number of snapshots so far: what is removed now is in the next.
    #[must_use]
    pub fn snapshot(&self) -> u32 {
        self.snapshot
    }

    /// The number of the last confirmed snapshot: what it or an earlier one holds need not be in the next.
    #[must_use]
    pub fn confirmed_snapshot(&self) -> u32 {
        self.confirmed_snapshot
    }

    /// As [`Layers::confirmed_snapshot`], of top and whole layers.
    #[must_use]
    pub fn confirmed_top(&self) -> u32 {
        self.confirmed_top
    }

    /// The first hash of the next window.
    #[must_use]
    pub fn window_at(&self) -> u64 {
        self.window_at
    }

    /// The newest checkpoint that is complete, of those that this worker has written parts for.
    pub fn confirm(&mut self, epoch: Epoch) {
        let Some(index) = self.pending.iter().position(|pending| pending.epoch == epoch) else {
            return;
        };
        let confirmed = self.pending.drain(..=index).next_back().expect("it was found");
        self.confirmed_snapshot = confirmed.snapshot;
        if confirmed.top {
            self.confirmed_top = confirmed.snapshot;
        }
        self.confirmed = confirmed.layers;
    }

    /// Forgets all snapshots: the next one is whole.
    pub fn forget(&mut self) {
        self.confirmed.clear();
        self.pending.clear();
    }

    /// Begins a snapshot: the next number.
    pub fn begin(&mut self) {
        self.snapshot += 1;
    }

    /// What the snapshot is to hold, of a state of `entries`, of which so many have changed since the last confirmed snapshot and since
    /// the last confirmed top one.
    #[must_use]
    pub fn plan(&self, entries: u64, changed: u64, changed_since_top: u64) -> Plan {
        let small = self.confirmed.iter().rev().take_while(|layer| !layer.top).count();
        if self.confirmed.is_empty()
            || 2 * changed_since_top >= entries && changed > 0
            || self.confirmed.len() >= LAYERS_MAX
        {
            Plan::Whole
        } else if changed > 0 && (TOP_SHARE * changed_since_top >= entries || small >= SMALL_MAX) {
            Plan::Top { window: (changed_since_top * 4 / 5).max(entries.div_ceil(WINDOWS)) }
        } else {
            Plan::Small
        }
    }

    /// The snapshot of `epoch` holds what `plan` says, and for `Top` everything of the window. Returns the checkpoints whose parts
    /// it needs. `empty`: it holds nothing, so nobody will need it.
    pub fn taken(
        &mut self,
        epoch: Epoch,
        plan: Plan,
        window: Option<HashRange>,
        empty: bool,
    ) -> BTreeSet<Epoch> {
        let mut layers = match plan {
            Plan::Whole => Vec::new(),
            Plan::Top { .. } => self.confirmed.iter().filter(|layer| layer.top).cloned().collect(),
            Plan::Small => self.confirmed.clone(),
        };
        let whole = match plan {
            Plan::Whole => HashRanges(vec![self.owned]),
            _ => window.into_iter().collect(),
        };
        if let Some(window) = window {
            self.window_at = match window.last.checked_add(1) {
                Some(next) if self.owned.contains(next) => next,
                _ => self.owned.first,
            };
        }
        let top = plan != Plan::Small;
        if !(empty && plan == Plan::Small) {
            layers.push(Layer { epoch, whole, top });
        }
        drop_superseded(&mut layers, self.owned);
        let needs =
            layers.iter().map(|layer| layer.epoch).filter(|other| *other != epoch).collect();
        self.pending.push(Pending { epoch, snapshot: self.snapshot, top, layers });
        needs
    }
}

/// Drops the layers of which newer ones hold everything.
fn drop_superseded(layers: &mut Vec<Layer>, owned: HashRange) {
    let mut covered = HashRanges::default();
    let mut needed = 0;
    for layer in layers.iter().rev() {
        needed += 1;
        layer.whole.0.iter().for_each(|range| covered.insert(*range));
        if covered.covers(owned) {
            break;
        }
    }
    layers.drain(..layers.len() - needed);
}

#[cfg(test)]
mod tests;
