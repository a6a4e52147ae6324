//! One page of a cache: the entries of one range of hashes. As a page of the heap backend, less what that marks for layers.

/// One key and its value. The hash comes first in memory, for `Page::candidate`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Entry<K, V> {
    pub(super) hash: u64,
    pub(super) key: K,
    pub(super) value: V,
}

/// The entries whose hashes start with one prefix of `depth` bits.
///
/// `entries` is dense, in no order. `index` finds them: open addressing with linear probing, home
/// slot from the low bits of the hash. A slot is 0 (free) or six bits of the hash above the
/// position in `entries` plus one.
///
/// A page holds at most [`Page::CAPACITY`] entries unless the table cannot split it (see
/// `Table::make_room`). Those beyond are not in the index but found by scanning.
pub(super) struct Page<K, V> {
    entries: Vec<Entry<K, V>>,
    index: Box<[u16]>,
    depth: u8,
}

/// The bits of an index slot that hold a position plus one. The others hold a tag.
const POSITION_MASK: u16 = (1 << 10) - 1;

/// Slots of the index for each entry of a full page. At two, an update in the cache takes half as
/// long again, because the processor guesses wrong how long a search is.
const SLOTS_PER_ENTRY: usize = 4;

/// The position that a slot which is not free names.
#[inline]
fn position(word: u16) -> usize {
    usize::from(word & POSITION_MASK) - 1
}

/// The bits of the hash that a slot remembers: bits 16 to 21, above the home slot and below any
/// prefix.
#[inline]
fn tag(hash: u64) -> u16 {
    (hash >> 6) as u16 & !POSITION_MASK
}

impl<K, V> Page<K, V> {
    /// The most entries that a page is meant to hold: a power of two.
    ///
    /// A page is copied when it is first touched after a freeze, so a copy is kept to about 16 KiB,
    /// and to fewer entries where each is cloned by itself (the measurements are in
    /// `benches/plumbing.rs`).
    pub(super) const CAPACITY: usize = {
        let mut capacity = if std::mem::needs_drop::<Entry<K, V>>() { 128 } else { 512 };
        while capacity > 32 && capacity * size_of::<Entry<K, V>>() > 16 * 1024 {
            capacity /= 2;
        }
        capacity
    };

    /// An empty page for the hashes with one prefix of `depth` bits.
    pub(super) fn new(depth: u8) -> Self {
        Self {
            entries: Vec::new(),
            index: vec![0; SLOTS_PER_ENTRY * Self::CAPACITY].into_boxed_slice(),
            depth,
        }
    }

    /// A stand-in that owns no memory, for while a page is being moved. It must not be used as a
    /// page.
    pub(super) fn hollow() -> Self {
        Self { entries: Vec::new(), index: Box::default(), depth: 0 }
    }

    /// How many leading bits the hashes of this page have in common.
    pub(super) fn depth(&self) -> u8 {
        self.depth
    }

    pub(super) fn entries(&self) -> &[Entry<K, V>] {
        &self.entries
    }

    /// How many leading bits `hash` and all hashes in this page have in common.
    pub(super) fn common_bits(&self, hash: u64) -> u32 {
        let differences = self.entries.iter().fold(0, |bits, entry| bits | (entry.hash ^ hash));
        differences.leading_zeros()
    }

    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.entries.len() >= Self::CAPACITY
    }

    /// The index slot where a search for `hash` begins. Only its address is computed.
    #[inline]
    pub(super) fn home_slot(&self, hash: u64) -> &u16 {
        &self.index[self.home(hash)]
    }

    /// The start of the entry that the index names first for `hash`, and of the one behind it: the
    /// two lines of the cache that the entry may be in. Only their addresses are computed.
    #[inline]
    pub(super) fn candidate(&self, hash: u64) -> Option<[&u64; 2]> {
        let mask = self.index.len() - 1;
        let tag = tag(hash);
        let mut slot = self.home(hash);
        loop {
            let word = self.index[slot];
            if word == 0 {
                return None;
            }
            if word & !POSITION_MASK == tag {
                let first = self.entries.get(position(word))?;
                let next = self.entries.get(position(word) + 1).unwrap_or(first);
                return Some([&first.hash, &next.hash]);
            }
            slot = (slot + 1) & mask;
        }
    }

    /// Adds an entry whose key is not here yet.
    #[inline]
    pub(super) fn push(&mut self, hash: u64, key: K, value: V) -> &mut V {
        let position = self.entries.len();
        if position == self.entries.capacity() {
            // Grown by ourselves: `Vec` would round up beyond the capacity of a page.
            let room = match Self::CAPACITY.saturating_sub(position) {
                0 => position,
                to_capacity => position.max(4).min(to_capacity),
            };
            self.entries.reserve_exact(room);
        }
        self.entries.push(Entry { hash, key, value });
        self.index_position(hash, position);
        &mut self.entries[position].value
    }

    /// Removes the entry at `position`. The last entry takes its place.
    pub(super) fn remove_at(&mut self, position: usize) -> V {
        let hash = self.entries[position].hash;
        let last = self.entries.len() - 1;
        if position < Self::CAPACITY {
            self.unindex(self.slot_of(hash, position));
        }
        if position < last {
            let moved = self.entries[last].hash;
            if last < Self::CAPACITY {
                let slot = self.slot_of(moved, last);
                self.index[slot] = tag(moved) | (position as u16 + 1);
            } else {
                self.index_position(moved, position);
            }
        }
        self.entries.swap_remove(position).value
    }

    /// Moves the entries whose next hash bit is one into the returned page. Both are one bit
    /// deeper.
    pub(super) fn split(&mut self) -> Self {
        let bit = 1 << (63 - self.depth);
        let mut upper = Self::new(self.depth + 1);
        self.depth += 1;
        let ones = self.entries.iter().filter(|entry| entry.hash & bit != 0).count();
        if ones == 0 {
            return upper;
        }
        if ones == self.entries.len() {
            std::mem::swap(&mut self.entries, &mut upper.entries);
            std::mem::swap(&mut self.index, &mut upper.index);
            return upper;
        }
        let zeros = self.entries.len() - ones;
        let entries = std::mem::take(&mut self.entries);
        self.entries.reserve_exact(zeros.max(Self::CAPACITY));
        upper.entries.reserve_exact(ones.max(Self::CAPACITY));
        self.index.fill(0);
        for entry in entries {
            let page = if entry.hash & bit == 0 { &mut *self } else { &mut upper };
            page.push(entry.hash, entry.key, entry.value);
        }
        upper
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        hash as usize & (self.index.len() - 1)
    }

    #[inline]
    fn index_position(&mut self, hash: u64, position: usize) {
        if position < Self::CAPACITY {
            let mask = self.index.len() - 1;
            let mut slot = self.home(hash);
            // Ends: most slots are free.
            while self.index[slot] != 0 {
                slot = (slot + 1) & mask;
            }
            self.index[slot] = tag(hash) | (position as u16 + 1);
        }
    }

    /// The slot that names an indexed position.
    fn slot_of(&self, hash: u64, position: usize) -> usize {
        let word = tag(hash) | (position as u16 + 1);
        let mask = self.index.len() - 1;
        let mut slot = self.home(hash);
        while self.index[slot] != word {
            debug_assert_ne!(self.index[slot], 0, "position {position} is not in the index");
            slot = (slot + 1) & mask;
        }
        slot
    }

    /// Frees a slot, and moves back those behind it that a search would otherwise no longer reach.
    fn unindex(&mut self, mut free: usize) {
        let mask = self.index.len() - 1;
        let mut slot = free;
        loop {
            slot = (slot + 1) & mask;
            let word = self.index[slot];
            if word == 0 {
                break;
            }
            let home = self.home(self.entries[position(word)].hash);
            // Whether the way from its home to its slot leads over the free one.
            if slot.wrapping_sub(home) & mask >= slot.wrapping_sub(free) & mask {
                self.index[free] = word;
                free = slot;
            }
        }
        self.index[free] = 0;
    }
}

impl<K: Eq, V> Page<K, V> {
    /// The value of the entry at a position that [`Page::find`] has told.
    #[inline]
    pub(super) fn value_at(&mut self, position: usize) -> &mut V {
        &mut self.entries[position].value
    }

    /// The position of a key.
    #[inline]
    pub(super) fn find(&self, hash: u64, key: &K) -> Option<usize> {
        let mask = self.index.len() - 1;
        let tag = tag(hash);
        let mut slot = self.home(hash);
        loop {
            let word = self.index[slot];
            if word == 0 {
                break;
            }
            if word & !POSITION_MASK == tag {
                let entry = &self.entries[position(word)];
                if entry.hash == hash && entry.key == *key {
                    return Some(position(word));
                }
            }
            slot = (slot + 1) & mask;
        }
        if self.entries.len() > Self::CAPACITY { self.find_beyond(hash, key) } else { None }
    }

    #[cold]
    fn find_beyond(&self, hash: u64, key: &K) -> Option<usize> {
        let beyond = &self.entries[Self::CAPACITY..];
        let found = beyond.iter().position(|entry| entry.hash == hash && entry.key == *key);
        found.map(|position| Self::CAPACITY + position)
    }
}

impl<K: Clone, V: Clone> Clone for Page<K, V> {
    fn clone(&self) -> Self {
        // The same capacity, so that the copies' memory fits the next ones.
        let mut entries = Vec::with_capacity(self.entries.capacity());
        entries.extend_from_slice(&self.entries);
        Self { entries, index: self.index.clone(), depth: self.depth }
    }
}

/// How many keys are prefetched together.
const PREFETCH_CHUNK: usize = 64;

/// Brings what operations on keys with these hashes need near the processor. `page_of` tells the page of a hash, if it can
/// be told without waiting.
#[inline]
pub(super) fn prefetch<'a, K: 'a, V: 'a>(
    hashes: &[u64],
    page_of: impl Fn(u64) -> Option<&'a Page<K, V>>,
) {
    // A load that misses the caches must have few instructions around it, or the processor cannot look far enough ahead
    // to overlap it with the next ones. So addresses are computed first and loaded together.
    let mut pages = [None; PREFETCH_CHUNK];
    let mut slots = [&0; PREFETCH_CHUNK];
    let mut entries = [[&0; 2]; PREFETCH_CHUNK];
    let mut touched = 0;
    for hashes in hashes.chunks(PREFETCH_CHUNK) {
        for ((hash, page), slot) in hashes.iter().zip(&mut pages).zip(&mut slots) {
            *page = page_of(*hash);
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
