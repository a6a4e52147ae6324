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

use super::page::{self, Entry, Page};

/// What is known of one key.
#[derive(Clone)]
pub(super) struct Cached<V> {
    /// `None`: the key was removed.
    pub(super) value: Option<V>,
    /// When it was last changed; 0: not since it was read.
    pub(super) stamp: u32,
    /// Whether it was used since its page last gave something up.
    pub(super) used: bool,
}

/// A page that the table shares with snapshots. It never changes.
pub(super) type SharedPage<K, V> = Arc<Mutex<Page<K, Cached<V>>>>;

enum Held<K, V> {
    Owned(Page<K, Cached<V>>),
    Shared(SharedPage<K, V>),
}

struct Slot<K, V> {
    page: Held<K, V>,
    /// No entry of the page has a later stamp.
    newest: u32,
}

/// Where an entry is, until entries are added or given up.
#[derive(Clone, Copy)]
pub(super) struct Place {
    page: usize,
    entry: usize,
}

/// The pages, and the directory that finds them.
pub(super) struct Cache<K, V> {
    /// For each prefix of `depth` bits, the page.
    directory: Vec<u32>,
    /// At least 1, so that a shift by `64 - depth` is defined.
    depth: u8,
    slots: Vec<Slot<K, V>>,
}

/// The directory grows to this depth at the most; then pages grow beyond their capacity.
const DEPTH_MAX: u32 = 20;

pub(super) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // Poisoned means that encoding panicked: it changes nothing.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Clone + Eq, V: Clone> Cache<K, V> {
    /// What a full page takes. Units: bytes.
    pub(super) const PAGE_BYTES: usize =
        Page::<K, Cached<V>>::CAPACITY * (size_of::<Entry<K, Cached<V>>>() + 4 * size_of::<u16>());

    pub(super) fn new() -> Self {
        let page = Held::Owned(Page::new(0));
        Self { directory: vec![0; 2], depth: 1, slots: vec![Slot { page, newest: 0 }] }
    }

    pub(super) fn pages(&self) -> usize {
        self.slots.len()
    }

    #[inline]
    pub(super) fn page_of(&self, hash: u64) -> usize {
        self.directory[(hash >> (64 - self.depth)) as usize] as usize
    }

    #[inline]
    fn own(&mut self, page: usize) -> &mut Page<K, Cached<V>> {
        let slot = &mut self.slots[page];
        if let Held::Shared(_) = slot.page {
            slot.unshare();
        }
        match &mut slot.page {
            Held::Owned(page) => page,
            Held::Shared(_) => unreachable!("the page was just unshared"),
        }
    }

    #[inline]
    pub(super) fn find(&mut self, hash: u64, key: &K) -> Option<Place> {
        let page = self.page_of(hash);
        self.own(page).find(hash, key).map(|entry| Place { page, entry })
    }

    /// The entry at a place that was just found.
    #[inline]
    pub(super) fn at(&mut self, place: Place) -> &mut Cached<V> {
        self.own(place.page).value_at(place.entry)
    }

    /// The entry at a place that was just found, to be changed.
    #[inline]
    pub(super) fn change(&mut self, place: Place, stamp: u32) -> &mut Cached<V> {
        self.slots[place.page].newest = stamp;
        let cached = self.own(place.page).value_at(place.entry);
        cached.stamp = stamp;
        cached.used = true;
        cached
    }

    /// Adds an entry whose key is not here yet. `cached` is as old as `newest` at the most.
    pub(super) fn push(&mut self, hash: u64, key: K, cached: Cached<V>) -> Place {
        let page = self.page_of(hash);
        self.slots[page].newest = self.slots[page].newest.max(cached.stamp);
        let entries = self.own(page);
        let entry = entries.entries().len();
        entries.push(hash, key, cached);
        Place { page, entry }
    }

    pub(super) fn is_full(&mut self, hash: u64) -> bool {
        let page = self.page_of(hash);
        self.own(page).is_full()
    }

    /// Splits the page of this hash. `false`: its entries cannot be told apart by a directory of bounded size.
    pub(super) fn split(&mut self, hash: u64) -> bool {
        loop {
            let number = self.page_of(hash);
            let page = self.own(number);
            if page.common_bits(hash) >= DEPTH_MAX {
                return false;
            }
            let entries = page.entries().len();
            if page.depth() == self.depth {
                self.directory = self.directory.iter().flat_map(|page| [*page; 2]).collect();
                self.depth += 1;
            }
            let depth = self.own(number).depth();
            let prefixes = 1_usize << (self.depth - depth);
            let first = (hash >> (64 - self.depth)) as usize & !(prefixes - 1);
            let upper = self.own(number).split();
            let moved = upper.entries().len();
            let newest = self.slots[number].newest;
            let upper_number =
                u32::try_from(self.slots.len()).expect("2^32 pages do not fit into memory");
            self.slots.push(Slot { page: Held::Owned(upper), newest });
            self.directory[first + prefixes / 2..first + prefixes].fill(upper_number);
            if moved > 0 && moved < entries {
                return true;
            }
        }
    }

    /// The entries of one page.
    pub(super) fn entries(&mut self, page: usize) -> &[Entry<K, Cached<V>>] {
        self.own(page).entries()
    }

    /// Whether a snapshot has the page.
    pub(super) fn is_shared(&self, page: usize) -> bool {
        matches!(self.slots[page].page, Held::Shared(_))
    }

    /// Drops the entries of a page at these positions, which ascend.
    pub(super) fn give_up(&mut self, page: usize, positions: &[usize]) {
        let page = self.own(page);
        for position in positions.iter().rev() {
            drop(page.remove_at(*position));
        }
    }

    /// Forgets which entries of a page were used.
    pub(super) fn forget_use(&mut self, page: usize) {
        let page = self.own(page);
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
        let there = self.own(page).entries().len();
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

    /// Shares the pages that hold an entry later than `durable`.
    pub(super) fn share_changed(&mut self, durable: u32) -> Vec<SharedPage<K, V>> {
        self.slots.iter_mut().filter(|slot| slot.newest > durable).map(Slot::share).collect()
    }

    /// Brings near what keys with these hashes need.
    pub(super) fn prefetch(&self, hashes: &[u64]) {
        page::prefetch(hashes, |hash| match &self.slots[self.page_of(hash)].page {
            Held::Owned(page) => Some(page),
            Held::Shared(_) => None,
        });
    }
}

impl<K: Clone, V: Clone> Slot<K, V> {
    #[cold]
    #[inline(never)]
    fn unshare(&mut self) {
        let held = std::mem::replace(&mut self.page, Held::Owned(Page::hollow()));
        let page = match held {
            Held::Owned(page) => page,
            Held::Shared(shared) => match Arc::try_unwrap(shared) {
                Ok(page) => page.into_inner().unwrap_or_else(PoisonError::into_inner),
                Err(shared) => lock(&shared).clone(),
            },
        };
        self.page = Held::Owned(page);
    }

    fn share(&mut self) -> SharedPage<K, V> {
        match &mut self.page {
            Held::Shared(shared) => Arc::clone(shared),
            Held::Owned(page) => {
                let page = std::mem::replace(page, Page::hollow());
                let shared = Arc::new(Mutex::new(page));
                self.page = Held::Shared(Arc::clone(&shared));
                shared
            }
        }
    }
}
