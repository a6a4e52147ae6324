//! The pages of a table of decoded values: in the heap backend all that there is, in front of RocksDB a cache.
//!
//! ```text
//! hash:  [ directory bits | ..................... | tag | home slot ]
//!              |
//! directory: [0, 0, 1, 2] --> pages: [Owned, Shared, Owned]
//!                                              |
//!                               frozen snapshot's list of shared pages
//! ```
//! A page holds the entries of one range of hashes, and the directory maps each prefix of a hash to
//! its page (extendible hashing). A full page splits by the next bit of the hash; nothing is ever
//! rehashed as a whole. As the key group is a monotone function of the hash, pages sorted by prefix
//! are sorted by key group. When to split, and up to which depth, is up to the table.
//!
//! # Ownership
//! The worker owns its pages by value, so that no record pays for an atomic operation. Freezing
//! moves each page behind a lock that the table and the snapshot share: a pass over the
//! pages, not the entries. The first operation on a shared page takes it back if all snapshots are
//! done with it, or else copies it; reads too, because a reference to a value cannot outlive the
//! lock. A shared page never changes: copies do. Keys and values need not be `Sync`, hence the
//! lock.
//!
//! # Source
//! Fagin, Nievergelt, Pippenger, Strong 1979, extendible hashing.

mod page;
mod shared;

pub(super) use page::{Entry, Page, Tombstones};
pub(super) use shared::ReadPage;
use shared::SharedPage;

enum Slot<K, V> {
    Owned(Page<K, V>),
    Shared(SharedPage<K, V>),
}

/// The pages, and the directory that finds them.
pub(super) struct Pages<K, V> {
    /// For each prefix of `depth` bits, the page in `slots`.
    directory: Vec<u32>,
    /// At least 1, so that a shift by `64 - depth` is defined.
    depth: u8,
    slots: Vec<Slot<K, V>>,
}

/// How many keys are prefetched together.
const PREFETCH_CHUNK: usize = 64;

impl<K, V> Pages<K, V> {
    /// One page, empty.
    pub(super) fn new() -> Self {
        Self { directory: vec![0; 2], depth: 1, slots: vec![Slot::Owned(Page::new(0))] }
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
    pub(super) fn is_shared(&self, number: usize) -> bool {
        matches!(self.slots[number], Slot::Shared(_))
    }

    /// How many leading bits the hashes of a page have in common, and the number of its entries.
    pub(super) fn extent(&self, number: usize) -> (u8, u32) {
        match &self.slots[number] {
            Slot::Owned(page) => (page.depth(), page.entries().len() as u32),
            Slot::Shared(shared) => (shared.depth, shared.entries),
        }
    }

    /// The page, if no snapshot may have it.
    pub(super) fn owned_mut(&mut self, number: usize) -> Option<&mut Page<K, V>> {
        match &mut self.slots[number] {
            Slot::Owned(page) => Some(page),
            Slot::Shared(_) => None,
        }
    }

    /// Shares these pages with a snapshot: first those that are shared already.
    pub(super) fn share(&mut self, numbers: impl Iterator<Item = usize>) -> Vec<ReadPage<K, V>> {
        let (mut owned, mut reads) = (Vec::new(), Vec::new());
        for number in numbers {
            match &self.slots[number] {
                Slot::Owned(_) => owned.push(number),
                Slot::Shared(shared) => reads.push(shared.read()),
            }
        }
        shared::share(&mut self.slots, &owned, &mut reads);
        reads
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
                *page = match &self.slots[self.number(*hash)] {
                    Slot::Owned(page) => Some(page),
                    Slot::Shared(_) => None,
                };
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
        let slot = &mut self.slots[number];
        if let Slot::Shared(_) = slot {
            slot.unshare();
        }
        match slot {
            Slot::Owned(page) => page,
            Slot::Shared(_) => unreachable!("the page was just unshared"),
        }
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
        self.slots.push(Slot::Owned(upper));
        let entry = u32::try_from(upper_number).expect("2^32 pages do not fit into memory");
        self.directory[first + prefixes / 2..first + prefixes].fill(entry);
        (number, upper_number)
    }
}

impl<K: Clone, V: Clone> Slot<K, V> {
    #[cold]
    #[inline(never)]
    fn unshare(&mut self) {
        let slot = std::mem::replace(self, Slot::Owned(Page::hollow()));
        let page = match slot {
            Slot::Owned(page) => page,
            Slot::Shared(shared) => shared.into_owned(),
        };
        *self = Slot::Owned(page);
    }
}
