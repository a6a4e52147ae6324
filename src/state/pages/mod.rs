//! The pages of a table of decoded values: in the heap backend all that there is, in front of RocksDB a cache.
//!
//! ```text
//! hash:  [ directory bits | ..................... | tag | home slot ]
//!              |
//! directory: [0, 0, 1, 2] --> segments: [page 0, page 1, ...] [page 64, ...]
//!                                              |
//!                             frozen: moved behind a lock as they are
//! ```
//! A page holds the entries of one range of hashes, and the directory maps each prefix of a hash to
//! its page (extendible hashing). A full page splits by the next bit of the hash; nothing is ever
//! rehashed as a whole. As the key group is a monotone function of the hash, pages sorted by prefix
//! are sorted by key group. When to split, and up to which depth, is up to the table.
//!
//! # Ownership
//! The worker owns its pages by value, so that no record pays for an atomic operation, in segments of 64. Freezing
//! moves what a segment owns behind a lock that the table and the snapshot share, as one vector: neither entries nor pages are
//! touched (`shared`). The first operation on a shared page takes it back if all snapshots are
//! done with it or do not want it, or else copies it; reads too, because a reference to a value cannot outlive the
//! lock. A shared page never changes: copies do. Keys and values need not be `Sync`, hence the
//! lock.
//!
//! # Source
//! Fagin, Nievergelt, Pippenger, Strong 1979, extendible hashing.

mod page;
mod shared;

pub(super) use page::{Entry, Page, Tombstones};
use shared::{SEGMENT_PAGES, Segment};
pub(super) use shared::{ReadPage, ReadPages};

/// The pages, and the directory that finds them.
pub(super) struct Pages<K, V> {
    /// For each prefix of `depth` bits, the number of its page.
    directory: Vec<u32>,
    /// At least 1, so that a shift by `64 - depth` is defined.
    depth: u8,
    /// Number of pages.
    len: usize,
    segments: Vec<Segment<K, V>>,
}

/// How many keys are prefetched together.
const PREFETCH_CHUNK: usize = 64;

impl<K, V> Pages<K, V> {
    /// One page, empty.
    pub(super) fn new() -> Self {
        let mut pages = Self { directory: vec![0; 2], depth: 1, len: 0, segments: Vec::new() };
        pages.push(Page::new(0));
        pages
    }

    /// Number of pages.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
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

    #[inline]
    fn owned(&self, number: usize) -> Option<&Page<K, V>> {
        self.segments[number / SEGMENT_PAGES].get(number % SEGMENT_PAGES)
    }

    /// Whether snapshots may have the page.
    pub(super) fn is_shared(&self, number: usize) -> bool {
        self.owned(number).is_none()
    }

    /// How many leading bits the hashes of a page have in common, and the number of its entries.
    pub(super) fn extent(&self, number: usize) -> (u8, u32) {
        self.segments[number / SEGMENT_PAGES]
            .look(number % SEGMENT_PAGES, |page| (page.depth(), page.entries().len() as u32))
    }

    /// The page, if no snapshot may have it.
    #[inline]
    pub(super) fn owned_mut(&mut self, number: usize) -> Option<&mut Page<K, V>> {
        self.segments[number / SEGMENT_PAGES].get_mut(number % SEGMENT_PAGES)
    }

    /// Shares these pages with a snapshot.
    pub(super) fn share(&mut self, numbers: impl Iterator<Item = usize>) -> ReadPages<K, V> {
        let mut wanted = vec![0_u64; self.segments.len()];
        for number in numbers {
            wanted[number / SEGMENT_PAGES] |= 1 << (number % SEGMENT_PAGES);
        }
        let mut reads = ReadPages::default();
        for (index, wanted) in wanted.into_iter().enumerate().filter(|(_, wanted)| *wanted != 0) {
            self.segments[index].share(index * SEGMENT_PAGES, wanted, &mut reads);
        }
        reads
    }

    fn push(&mut self, page: Page<K, V>) {
        let at = self.len % SEGMENT_PAGES;
        if at == 0 {
            self.segments.push(Segment::new());
        }
        self.segments.last_mut().expect("one was just added").push(at, page);
        self.len += 1;
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
                *page = self.owned(self.number(*hash));
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
        let (segment, at) = (number / SEGMENT_PAGES, number % SEGMENT_PAGES);
        if self.segments[segment].get(at).is_none() {
            self.segments[segment].take_back(at);
        }
        self.segments[segment].get_mut(at).expect("the page was just taken back")
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
        let upper_number = self.len;
        self.push(upper);
        let entry = u32::try_from(upper_number).expect("2^32 pages do not fit into memory");
        self.directory[first + prefixes / 2..first + prefixes].fill(entry);
        (number, upper_number)
    }
}
