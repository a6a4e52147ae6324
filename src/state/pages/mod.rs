//! The pages of a table of decoded values: in the heap backend all that there is, in front of RocksDB a cache.
//!
//! ```text
//! hash:  [ directory bits | ..................... | tag | home slot ]
//!              |
//! directory: [0, 0, 1, 2] --> pages: [owned, -, owned]
//!                                            |
//!                                     behind a lock, shared with snapshots
//! ```
//! A page holds the entries of one range of hashes, and the directory maps each prefix of a hash to
//! its page (extendible hashing). A full page splits by the next bit of the hash; nothing is ever
//! rehashed as a whole. As the key group is a monotone function of the hash, pages sorted by prefix
//! are sorted by key group. When to split, and up to which depth, is up to the table.
//!
//! # Ownership
//! The worker owns its pages by value, so that no record pays for an atomic operation. Freezing moves them
//! behind locks that the table and the snapshot share, a lock for each segment of 64: a few words for
//! each page, neither entries nor index (`shared`). The first operation on a shared page takes it back if
//! all snapshots are done with it or do not want it, or else copies it, or what the snapshot wants of it;
//! reads too, because a reference to a value cannot outlive the lock. What a snapshot has looked at does not
//! change. Keys and values need not be `Sync`, hence the lock.
//!
//! # Source
//! Fagin, Nievergelt, Pippenger, Strong 1979, extendible hashing.

use std::sync::Arc;

mod page;
mod shared;
#[cfg(test)]
mod tests;

pub(super) use page::{Entry, Page, Tombstones};
#[cfg(any(test, feature = "rocksdb"))]
pub(super) use shared::CopyRoom;
pub(super) use shared::{CopyLimit, Excerpts, ReadPage, ReadPages};
use shared::{Levels, SEGMENT_PAGES, Sharing, Slot, Spare};

/// The pages, and the directory that finds them.
pub(super) struct Pages<K, V> {
    /// For each prefix of `depth` bits, the number of its page.
    directory: Vec<u32>,
    /// At least 1, so that a shift by `64 - depth` is defined.
    depth: u8,
    /// By number. Empty where the page is not the table's own.
    slots: Vec<Slot<K, V>>,
    /// Where the others are, for each segment of pages.
    levels: Vec<Levels<K, V>>,
    spare: Spare<K, V>,
    /// Of pages that are shared from now on.
    pub(super) copies: Option<CopyLimit>,
}

/// How many keys are prefetched together.
const PREFETCH_CHUNK: usize = 64;

impl<K, V> Pages<K, V> {
    /// One page, empty.
    pub(super) fn new() -> Self {
        let slots = vec![Some(Page::new(0, 0))];
        let (levels, spare) = (vec![Levels::none()], Vec::new());
        Self { directory: vec![0; 2], depth: 1, slots, levels, spare, copies: None }
    }

    /// Number of pages.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// How many bits of a hash the directory looks at.
    pub(super) fn depth(&self) -> u8 {
        self.depth
    }

    /// The number of the page of a hash.
    #[inline]
    pub(super) fn number(&self, hash: u64) -> usize {
        self.directory[(hash >> (64 - self.depth)) as usize] as usize
    }

    /// Whether snapshots may have the page.
    #[cfg(any(test, feature = "rocksdb"))]
    pub(super) fn is_shared(&self, number: usize) -> bool {
        self.slots[number].is_none()
    }

    /// How many leading bits the hashes of a page have in common, and the number of its entries.
    pub(super) fn extent(&self, number: usize) -> (u8, u32) {
        let extent = |page: &Page<K, V>| (page.depth(), page.entries().len() as u32);
        match &self.slots[number] {
            Some(page) => extent(page),
            None => self.levels[number / SEGMENT_PAGES].look(number % SEGMENT_PAGES, extent),
        }
    }

    /// The page, if no snapshot may have it.
    #[inline]
    pub(super) fn owned_mut(&mut self, number: usize) -> Option<&mut Page<K, V>> {
        self.slots[number].as_mut()
    }

    /// Shares these pages with a snapshot that wants all of them.
    pub(super) fn share(&mut self, numbers: impl Iterator<Item = usize>) -> ReadPages<K, V> {
        self.share_for(numbers, None)
    }

    /// Shares these pages with a snapshot that wants `excerpts` of them, or else all.
    pub(super) fn share_for(
        &mut self,
        numbers: impl Iterator<Item = usize>,
        excerpts: Option<&Arc<dyn Excerpts<K, V>>>,
    ) -> ReadPages<K, V> {
        let mut wanted = vec![0_u64; self.levels.len()];
        for number in numbers {
            wanted[number / SEGMENT_PAGES] |= 1 << (number % SEGMENT_PAGES);
        }
        let mut sharing = Sharing {
            excerpts,
            copies: self.copies.as_ref(),
            spare: &mut self.spare,
            reads: ReadPages::default(),
        };
        let segments = self.slots.chunks_mut(SEGMENT_PAGES).zip(&mut self.levels).zip(wanted);
        for (index, ((own, levels), wanted)) in segments.enumerate() {
            if wanted != 0 {
                levels.share(own, index * SEGMENT_PAGES, wanted, &mut sharing);
            }
        }
        sharing.reads
    }

    /// Brings what operations on keys with these hashes need near the processor.
    pub(super) fn prefetch(&self, hashes: &[u64]) {
        // A load that misses the caches must have few instructions around it, or the processor
        // cannot look far enough ahead to overlap it with the next ones. So addresses are computed
        // first and loaded together.
        let mut pages = [None; PREFETCH_CHUNK];
        let mut slots = [&0; PREFETCH_CHUNK];
        let mut entries = [[&0; 2]; PREFETCH_CHUNK];
        let mut touched = 0;
        for hashes in hashes.chunks(PREFETCH_CHUNK) {
            for ((hash, page), slot) in hashes.iter().zip(&mut pages).zip(&mut slots) {
                *page = self.slots[self.number(*hash)].as_ref();
                if let Some(page) = page {
                    *slot = page.home_slot(*hash);
                }
            }
            for slot in &slots[..hashes.len()] {
                touched ^= u64::from(**slot);
            }
            for ((hash, page), entry) in hashes.iter().zip(&pages).zip(&mut entries) {
                if let Some(candidate) = page.and_then(|page| page.candidate(*hash)) {
                    *entry = candidate;
                }
            }
            for [first, last] in &entries[..hashes.len()] {
                touched ^= **first ^ **last;
            }
        }
        std::hint::black_box(touched);
    }
}

impl<K: Clone, V: Clone> Pages<K, V> {
    /// The page, taken back from snapshots.
    #[inline]
    pub(super) fn own(&mut self, number: usize) -> &mut Page<K, V> {
        if self.slots[number].is_none() {
            self.take_back(number);
        }
        self.slots[number].as_mut().expect("the page was just taken back")
    }

    #[cold]
    #[inline(never)]
    fn take_back(&mut self, number: usize) {
        let (segment, at) = (number / SEGMENT_PAGES, number % SEGMENT_PAGES);
        let first = number - at;
        let end = self.slots.len().min(first + SEGMENT_PAGES);
        self.levels[segment].take_back(&mut self.slots[first..end], at, &mut self.spare);
    }

    /// Splits the page of this hash by the next bit. Returns its number and that of the new page, which is the last.
    /// `moved`: see [`Page::split`].
    pub(super) fn split(
        &mut self,
        hash: u64,
        moved: impl FnMut(usize, bool, usize),
    ) -> (usize, usize) {
        let number = self.number(hash);
        let depth = self.own(number).depth();
        if depth == self.depth {
            self.directory = self.directory.iter().flat_map(|page| [*page; 2]).collect();
            self.depth += 1;
        }
        let prefixes = 1_usize << (self.depth - depth);
        let first = (hash >> (64 - self.depth)) as usize & !(prefixes - 1);
        let upper = self.own(number).split(moved);
        let upper_number = self.slots.len();
        self.slots.push(Some(upper));
        if upper_number.is_multiple_of(SEGMENT_PAGES) {
            self.levels.push(Levels::none());
            // Written to now and not in a freeze.
            let mut room: Vec<Slot<K, V>> = (0..SEGMENT_PAGES).map(|_| None).collect();
            room.clear();
            self.spare.push(room);
        }
        let entry = u32::try_from(upper_number).expect("2^32 pages do not fit into memory");
        self.directory[first + prefixes / 2..first + prefixes].fill(entry);
        (number, upper_number)
    }
}
