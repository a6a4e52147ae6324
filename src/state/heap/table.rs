//! The directory of pages, and the operations on keys.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::frozen::FrozenPages;
use super::page::Page;
use crate::format::FormatError;
use crate::protocol::key_groups::key_group;
use crate::state::hash::stable_hash;
use crate::state::{Frozen, Key, StateValue, SweepPosition, ValueTable};

/// A page that the table shares with frozen snapshots.
pub(super) type SharedPage<K, V> = Arc<Mutex<Page<K, V>>>;

enum Slot<K, V> {
    Owned(Page<K, V>),
    Shared(SharedPage<K, V>),
}

/// One value state in memory: see the module.
pub struct Table<K, V> {
    /// For each prefix of `depth` bits, the page in `pages`.
    directory: Vec<u32>,
    /// At least 1, so that a shift by `64 - depth` is defined.
    depth: u8,
    pages: Vec<Slot<K, V>>,
    len: usize,
    max_parallelism: u16,
}

/// The directory may always grow to this depth: 64 MiB, enough for a billion entries in full pages.
const FREE_DEPTH: u32 = 24;

/// How many keys are prefetched together.
const PREFETCH_CHUNK: usize = 64;

/// Tables with less memory in entries than this are in the processor's cache anyway.
const PREFETCH_BYTES_MIN: usize = 1 << 20;

impl<K: Key, V: StateValue> Table<K, V> {
    pub(super) fn new(max_parallelism: u16) -> Self {
        let pages = vec![Slot::Owned(Page::new(0))];
        Self { directory: vec![0; 2], depth: 1, pages, len: 0, max_parallelism }
    }

    #[inline]
    fn page_number(&self, hash: u64) -> usize {
        self.directory[(hash >> (64 - self.depth)) as usize] as usize
    }

    #[inline]
    fn page(&mut self, hash: u64) -> &mut Page<K, V> {
        let number = self.page_number(hash);
        self.pages[number].own()
    }

    /// The page where an entry with this hash may be added, and the number to count it in.
    #[inline]
    fn page_with_room(&mut self, hash: u64) -> (&mut Page<K, V>, &mut usize) {
        let mut number = self.page_number(hash);
        if self.pages[number].own().is_full() {
            self.make_room(hash);
            number = self.page_number(hash);
        }
        (self.pages[number].own(), &mut self.len)
    }

    /// Adds an entry whose key is not here yet.
    #[inline(never)]
    fn push_new(&mut self, hash: u64, key: &K, value: V) -> &mut V {
        self.len += 1;
        self.page_with_room(hash).0.push(hash, key.clone(), value)
    }

    /// Splits the page of this hash until it has room, unless the directory would have to grow out
    /// of bounds.
    #[cold]
    fn make_room(&mut self, hash: u64) {
        loop {
            let number = self.page_number(hash);
            let page = self.pages[number].own();
            if !page.is_full() {
                return;
            }
            let depth = page.depth();
            let depth_needed = page.common_bits(hash) + 1;
            if depth_needed > u32::from(self.depth) && !self.may_deepen_to(depth_needed) {
                return;
            }
            if depth == self.depth {
                self.directory = self.directory.iter().flat_map(|page| [*page; 2]).collect();
                self.depth += 1;
            }
            self.split(number, hash);
        }
    }

    fn may_deepen_to(&self, depth: u32) -> bool {
        depth <= FREE_DEPTH || depth < 48 && 1 << depth <= 16 * self.pages.len()
    }

    /// Splits a page that is shallower than the directory. `hash` is any hash that belongs to it.
    fn split(&mut self, number: usize, hash: u64) {
        let page = self.pages[number].own();
        let prefixes = 1_usize << (self.depth - page.depth());
        let first = (hash >> (64 - self.depth)) as usize & !(prefixes - 1);
        let upper = page.split();
        let upper_number =
            u32::try_from(self.pages.len()).expect("2^32 pages do not fit into memory");
        self.pages.push(Slot::Owned(upper));
        self.directory[first + prefixes / 2..first + prefixes].fill(upper_number);
    }

    /// Decodes and adds one entry, and returns the bytes behind it.
    fn restore_entry<'a, W: serde::de::DeserializeOwned>(
        &mut self,
        groups: &Range<u16>,
        bytes: &'a [u8],
        convert: &mut impl FnMut(W) -> Option<V>,
    ) -> Result<&'a [u8], String> {
        let (key, rest) = postcard::take_from_bytes::<K>(bytes)
            .map_err(|error| format!("the key does not decode: {error}"))?;
        let (value, rest) = postcard::take_from_bytes::<W>(rest)
            .map_err(|error| format!("the value does not decode: {error}"))?;
        let hash = stable_hash(&key);
        if groups.contains(&key_group(hash, self.max_parallelism).0)
            && let Some(value) = convert(value)
        {
            let (page, len) = self.page_with_room(hash);
            if page.get(hash, &key).is_some() {
                return Err("the key is there twice".to_owned());
            }
            page.push(hash, key, value);
            *len += 1;
        }
        Ok(rest)
    }
}

impl<K: Clone, V: Clone> Slot<K, V> {
    #[inline]
    fn owned(&self) -> Option<&Page<K, V>> {
        match self {
            Slot::Owned(page) => Some(page),
            Slot::Shared(_) => None,
        }
    }

    #[inline]
    fn own(&mut self) -> &mut Page<K, V> {
        if let Slot::Shared(_) = self {
            self.unshare();
        }
        match self {
            Slot::Owned(page) => page,
            Slot::Shared(_) => unreachable!("the page was just unshared"),
        }
    }

    #[cold]
    #[inline(never)]
    fn unshare(&mut self) {
        let slot = std::mem::replace(self, Slot::Owned(Page::hollow()));
        let page = match slot {
            Slot::Owned(page) => page,
            // A poisoned lock means that encoding panicked: it changes nothing, so the page is
            // whole.
            Slot::Shared(shared) => match Arc::try_unwrap(shared) {
                Ok(page) => page.into_inner().unwrap_or_else(PoisonError::into_inner),
                Err(shared) => shared.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            },
        };
        *self = Slot::Owned(page);
    }

    fn share(&mut self) -> SharedPage<K, V> {
        match self {
            Slot::Shared(shared) => Arc::clone(shared),
            Slot::Owned(page) => {
                let page = std::mem::replace(page, Page::hollow());
                let shared = Arc::new(Mutex::new(page));
                *self = Slot::Shared(Arc::clone(&shared));
                shared
            }
        }
    }
}

impl<K: Key, V: StateValue> ValueTable<K, V> for Table<K, V> {
    fn prefetch(&self, hashes: &[u64]) {
        if self.len * size_of::<super::page::Entry<K, V>>() < PREFETCH_BYTES_MIN {
            return;
        }
        // A load that misses the caches must have few instructions around it, or the processor
        // cannot look far enough ahead to overlap it with the next ones. So addresses are computed
        // first and loaded together.
        let mut pages = [None; PREFETCH_CHUNK];
        let mut slots = [&0; PREFETCH_CHUNK];
        let mut entries = [[&0; 2]; PREFETCH_CHUNK];
        let mut touched = 0;
        for hashes in hashes.chunks(PREFETCH_CHUNK) {
            for ((hash, page), slot) in hashes.iter().zip(&mut pages).zip(&mut slots) {
                *page = self.pages[self.page_number(*hash)].owned();
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

    #[inline]
    fn get(&mut self, hash: u64, key: &K) -> Option<&V> {
        self.page(hash).get(hash, key)
    }

    #[inline]
    fn get_mut(&mut self, hash: u64, key: &K) -> Option<&mut V> {
        self.page(hash).get_mut(hash, key)
    }

    #[inline]
    fn get_or_insert_with(&mut self, hash: u64, key: &K, value: &mut dyn FnMut() -> V) -> &mut V {
        let number = self.page_number(hash);
        let page = self.pages[number].own();
        match page.find(hash, key) {
            Some(position) => self.pages[number].own().value_at(position),
            None => self.push_new(hash, key, value()),
        }
    }

    fn insert(&mut self, hash: u64, key: &K, value: V) -> Option<V> {
        let page = self.page(hash);
        if let Some(there) = page.get_mut(hash, key) {
            return Some(std::mem::replace(there, value));
        }
        self.page_with_room(hash).0.push(hash, key.clone(), value);
        self.len += 1;
        None
    }

    fn remove(&mut self, hash: u64, key: &K) -> Option<V> {
        let value = self.page(hash).remove(hash, key)?;
        self.len -= 1;
        Some(value)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn freeze(&mut self) -> Box<dyn Frozen> {
        let pages = self.pages.iter_mut().map(Slot::share).collect();
        Box::new(FrozenPages::new(pages, self.max_parallelism))
    }

    fn sweep(
        &mut self,
        position: &mut SweepPosition,
        entries: usize,
        mut expired: impl FnMut(&V) -> bool,
    ) -> usize {
        let (mut left, mut removed) = (entries, 0);
        // Pages may be empty or shared, so their number is bounded as well.
        for _ in 0..self.pages.len().min(1 + entries) {
            // A shared page is not worth a copy: the snapshot will be done with it.
            if let Some(Slot::Owned(page)) = self.pages.get_mut(position.page) {
                let (looked, expired) = page.sweep(&mut position.entry, left, &mut expired);
                left -= looked;
                removed += expired;
                if left == 0 {
                    break;
                }
            }
            position.entry = 0;
            position.page += 1;
            if position.page >= self.pages.len() {
                position.page = 0;
            }
        }
        self.len -= removed;
        removed
    }

    fn restore_block_as<W: serde::de::DeserializeOwned>(
        &mut self,
        groups: Range<u16>,
        entries: u32,
        bytes: &[u8],
        mut convert: impl FnMut(W) -> Option<V>,
    ) -> Result<(), FormatError> {
        let corrupt = |rest: &[u8], why| FormatError::Corrupt {
            offset: (bytes.len() - rest.len()) as u64,
            why,
        };
        // At most one key and value can be encoded in no bytes at all, so more entries than this
        // are damage.
        if entries as usize > bytes.len() + 1 {
            let why = format!("{entries} entries cannot be in {} bytes", bytes.len());
            return Err(corrupt(bytes, why));
        }
        let mut rest = bytes;
        for entry in 0..entries {
            rest = self.restore_entry(&groups, rest, &mut convert).map_err(|why| {
                corrupt(rest, format!("entry {entry} of {entries} in the block: {why}"))
            })?;
        }
        if !rest.is_empty() {
            let why = format!("{} bytes are left after {entries} entries", rest.len());
            return Err(corrupt(rest, why));
        }
        Ok(())
    }
}
