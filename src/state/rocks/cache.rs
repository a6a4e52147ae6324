//! Decoded values, in the pages of the heap backend: a cache in front of one column family.
//!
//! A page holds the entries of one range of hashes and splits when it is full, as on the heap. Once the budget is used up
//! it does not split but gives up entries, those first that were not used since it last did: the table is then a
//! set-associative cache with the pages for its sets.
//!
//! # Stamps
//! An entry that was changed bears the generation of its table, which counts snapshots. Everything up to the table's
//! *durable* generation is in RocksDB, so an entry is clean if its stamp is not above that: no pass marks entries clean.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::state::pages::{CopyLimit, Entry, Excerpts, Page, Pages, ReadPages};

/// What is known of one key.
#[derive(Clone)]
pub(super) struct Cached<V> {
    /// `None`: the key was removed.
    pub(super) value: Option<V>,
    /// When it was last changed; 0: not since it was read.
    pub(super) stamp: u32,
    /// Whether it was used since its page last gave something up.
    pub(super) used: bool,
    /// Whether there was no row of it in RocksDB when it was added; see [`Cached::is_new`].
    pub(super) added: bool,
}

impl<V> Cached<V> {
    /// Whether a snapshot that follows `generation` has to hold it.
    pub(super) fn is_after(&self, generation: u32) -> bool {
        self.stamp > generation
    }

    /// Whether it is only here: in the generation of its stamp it was added, and no snapshot has it.
    pub(super) fn is_new(&self, generation: u32) -> bool {
        self.added && self.stamp == generation
    }
}

/// A snapshot wants the entries with a later stamp.
struct ChangedAfter(u32);

impl<K: Clone, V: Clone> Excerpts<K, Cached<V>> for ChangedAfter {
    fn excerpt(&self, _: usize, page: &Page<K, Cached<V>>) -> Page<K, Cached<V>> {
        let changed = |at: &usize| page.entries()[*at].value.is_after(self.0);
        page.excerpt((0..page.entries().len()).filter(changed), std::iter::empty())
    }
}

/// Where an entry is, until entries are added or given up.
#[derive(Clone, Copy)]
pub(super) struct Place {
    page: usize,
    entry: usize,
}

/// The pages.
pub(super) struct Cache<K, V> {
    pages: Pages<K, Cached<V>>,
    /// For each page a stamp that none of its entries is later than.
    newest: Vec<u32>,
}

/// The directory grows to this depth at the most; then pages grow beyond their capacity.
const DEPTH_MAX: u32 = 20;

pub(super) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // Poisoned means that encoding panicked: it changes nothing.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Clone, V: Clone> Cache<K, V> {
    /// What a full page takes. Units: bytes.
    pub(super) const PAGE_BYTES: usize = Page::<K, Cached<V>>::CAPACITY
        * (size_of::<Entry<K, Cached<V>>>()
            + Page::<K, Cached<V>>::SLOTS_PER_ENTRY * size_of::<u16>());

    pub(super) fn new() -> Self {
        Self { pages: Pages::new(), newest: vec![0] }
    }

    pub(super) fn pages(&self) -> usize {
        self.pages.len()
    }

    #[inline]
    pub(super) fn page_of(&self, hash: u64) -> usize {
        self.pages.number(hash)
    }

    #[inline]
    pub(super) fn find(&mut self, hash: u64, is: impl Fn(&K) -> bool) -> Option<Place> {
        let page = self.page_of(hash);
        self.pages.own(page).find_by(hash, is).map(|entry| Place { page, entry })
    }

    /// The entry at a place that was just found.
    #[inline]
    pub(super) fn at(&mut self, place: Place) -> &mut Cached<V> {
        self.pages.own(place.page).value_at(place.entry)
    }

    /// The entry at a place that was just found, to be changed.
    #[inline]
    pub(super) fn change(&mut self, place: Place, stamp: u32) -> &mut Cached<V> {
        self.newest[place.page] = stamp;
        let cached = self.pages.own(place.page).value_at(place.entry);
        cached.added &= cached.stamp == stamp;
        cached.stamp = stamp;
        cached.used = true;
        cached
    }

    /// Takes out the entry at a place that was just found.
    pub(super) fn take(&mut self, place: Place) -> Cached<V> {
        self.pages.own(place.page).remove_at(place.entry).value
    }

    /// Adds an entry whose key is not here yet. `cached` is as old as `newest` at the most.
    pub(super) fn push(&mut self, hash: u64, key: K, cached: Cached<V>) -> Place {
        let page = self.page_of(hash);
        self.newest[page] = self.newest[page].max(cached.stamp);
        let entry = self.pages.own(page).push(hash, key, cached);
        Place { page, entry }
    }

    pub(super) fn is_full(&mut self, hash: u64) -> bool {
        let page = self.page_of(hash);
        self.pages.own(page).is_full()
    }

    /// Splits the page of this hash. `false`: its entries cannot be told apart by a directory of bounded size.
    pub(super) fn split(&mut self, hash: u64) -> bool {
        loop {
            let page = self.pages.own(self.pages.number(hash));
            if page.common_bits(hash) >= DEPTH_MAX {
                return false;
            }
            let entries = page.entries().len();
            let (lower, upper) = self.pages.split(hash, |_, _, _| ());
            let moved = self.pages.own(upper).entries().len();
            self.newest.push(self.newest[lower]);
            if moved > 0 && moved < entries {
                return true;
            }
        }
    }

    /// The entries of one page.
    pub(super) fn entries(&mut self, page: usize) -> &[Entry<K, Cached<V>>] {
        self.pages.own(page).entries()
    }

    /// Whether a snapshot has the page.
    pub(super) fn is_shared(&self, page: usize) -> bool {
        self.pages.is_shared(page)
    }

    /// Drops the entries of a page at these positions, which ascend.
    pub(super) fn give_up(&mut self, page: usize, positions: &[usize]) {
        let page = self.pages.own(page);
        for position in positions.iter().rev() {
            drop(page.remove_at(*position));
        }
    }

    /// Forgets which entries of a page were used.
    pub(super) fn forget_use(&mut self, page: usize) {
        let page = self.pages.own(page);
        for position in 0..page.entries().len() {
            page.value_at(position).used = false;
        }
    }

    /// Looks at up to `entries` entries of a page from position `at` on, and removes those that are `expired`. Returns how
    /// many of each.
    pub(super) fn remove_expired(
        &mut self,
        page: usize,
        at: &mut usize,
        entries: usize,
        stamp: u32,
        expired: &mut impl FnMut(&V) -> bool,
    ) -> (usize, usize) {
        let (mut looked, mut removed) = (0, 0);
        let there = self.pages.own(page).entries().len();
        while looked < entries && *at < there {
            let place = Place { page, entry: *at };
            *at += 1;
            let Some(value) = &self.at(place).value else { continue };
            looked += 1;
            if expired(value) {
                self.change(place, stamp).value = None;
                removed += 1;
            }
        }
        (looked, removed)
    }

    /// Shares the pages that hold an entry later than `durable`. `copies`: what is copied because the snapshot has it.
    pub(super) fn share_changed(
        &mut self,
        durable: u32,
        copies: CopyLimit,
    ) -> ReadPages<K, Cached<V>> {
        let Self { pages, newest } = self;
        pages.copies = Some(copies);
        let changed = (0..newest.len()).filter(|page| newest[*page] > durable);
        let excerpts: Arc<dyn Excerpts<K, Cached<V>>> = Arc::new(ChangedAfter(durable));
        pages.share_for(changed, Some(&excerpts))
    }

    /// Brings near what keys with these hashes need.
    pub(super) fn prefetch(&self, hashes: &[u64]) {
        self.pages.prefetch(hashes);
    }
}
