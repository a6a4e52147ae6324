//! One page: the entries of one range of hashes.

/// One key and its value. The hash comes first in memory, for `Page::candidate`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(in crate::state) struct Entry<K, V> {
    pub(in crate::state) hash: u64,
    pub(in crate::state) key: K,
    pub(in crate::state) value: V,
}

/// The entries whose hashes start with one prefix of `depth` bits.
///
/// `entries` is dense, in no order. `index` finds them: open addressing with linear probing, home
/// slot from the low bits of the hash. A slot is 0 (free) or six bits of the hash above the
/// position in `entries` plus one.
///
/// An excerpt for a snapshot has no index.
///
/// A page holds at most [`Page::CAPACITY`] entries unless the table cannot split it. Those beyond are not in the index but found by scanning.
pub(in crate::state) struct Page<K, V> {
    entries: Vec<Entry<K, V>>,
    index: Box<[u16]>,
    /// The least hash that belongs here.
    prefix: u64,
    depth: u8,
    /// `None`: nothing.
    removed: Option<Box<RemovedKeys<K>>>,
}

/// Keys that were removed, each with the number of snapshots before. A key may be there again, or twice.
#[derive(Clone)]
struct RemovedKeys<K>(Vec<Removed<K>>);

/// A key that was removed.
#[derive(Clone)]
pub(in crate::state) struct Removed<K> {
    pub(in crate::state) hash: u64,
    pub(in crate::state) key: K,
    /// Number of snapshots before.
    pub(in crate::state) snapshots: u32,
}

/// An entry was removed from its position, and the last one has taken its place.
#[derive(Clone, Copy, Debug)]
pub(in crate::state) struct Gone {
    pub(in crate::state) last: usize,
    pub(in crate::state) position: usize,
}

/// How much room a page that holds so many entries gets for more: little, because a page is half empty on average after it
/// was split, and room that is not used is memory.
fn grow_by(entries: usize) -> usize {
    (entries / 8).max(8)
}

/// The removed keys that all pages of a table remember.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::state) struct Tombstones {
    /// Whether they are remembered at all.
    pub(in crate::state) kept: bool,
    /// Their number.
    pub(in crate::state) number: usize,
    /// The number of snapshots so far.
    pub(in crate::state) snapshots: u32,
    /// Those with fewer snapshots before them are not needed any more.
    pub(in crate::state) needed_from: u32,
}

/// The bits of an index slot that hold a position plus one. The others hold a tag.
const POSITION_MASK: u16 = (1 << 10) - 1;

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
    pub(in crate::state) const CAPACITY: usize = {
        let mut capacity = if std::mem::needs_drop::<Entry<K, V>>() { 128 } else { 512 };
        while capacity > 32 && capacity * size_of::<Entry<K, V>>() > 16 * 1024 {
            capacity /= 2;
        }
        capacity
    };

    /// Slots of the index for each entry of a full page. At two, an update in the cache takes half as
    /// long again, because the processor guesses wrong how long a search is; but of entries that are not small
    /// few are in the cache, and memory counts.
    pub(in crate::state) const SLOTS_PER_ENTRY: usize =
        if size_of::<Entry<K, V>>() < 64 { 4 } else { 2 };

    /// An empty page for the hashes that have `depth` bits in common with `prefix`, the least of them.
    pub(in crate::state) fn new(prefix: u64, depth: u8) -> Self {
        Self {
            entries: Vec::new(),
            index: vec![0; Self::SLOTS_PER_ENTRY * Self::CAPACITY].into_boxed_slice(),
            prefix,
            depth,
            removed: None,
        }
    }

    /// The least hash that belongs here: hashes of pages are in the order of these.
    pub(in crate::state) fn prefix(&self) -> u64 {
        self.prefix
    }

    /// Whether there is nothing to say about it.
    pub(in crate::state) fn is_blank(&self) -> bool {
        self.entries.is_empty() && self.removed.is_none()
    }

    /// Whether it is but what a snapshot wants.
    pub(in crate::state) fn is_excerpt(&self) -> bool {
        self.index.is_empty()
    }

    /// How many leading bits the hashes of this page have in common.
    pub(in crate::state) fn depth(&self) -> u8 {
        self.depth
    }

    pub(in crate::state) fn entries(&self) -> &[Entry<K, V>] {
        &self.entries
    }

    /// How many leading bits `hash` and all hashes in this page have in common.
    pub(in crate::state) fn common_bits(&self, hash: u64) -> u32 {
        let differences = self.entries.iter().fold(0, |bits, entry| bits | (entry.hash ^ hash));
        differences.leading_zeros()
    }

    #[inline]
    pub(in crate::state) fn is_full(&self) -> bool {
        self.entries.len() >= Self::CAPACITY
    }

    /// The index slot where a search for `hash` begins. Only its address is computed.
    #[inline]
    pub(in crate::state) fn home_slot(&self, hash: u64) -> &u16 {
        &self.index[self.home(hash)]
    }

    /// The start of an entry, and of the one behind it: the two lines of the cache that the entry may be in. Only their addresses
    /// are computed.
    #[inline]
    pub(in crate::state) fn lines(&self, position: usize) -> Option<[&u64; 2]> {
        let first = self.entries.get(position)?;
        let next = self.entries.get(position + 1).unwrap_or(first);
        Some([&first.hash, &next.hash])
    }

    /// The [`lines`](Self::lines) of the entry that the index names first for `hash`, or else of the last one, behind which it
    /// would be added.
    #[inline]
    pub(in crate::state) fn candidate(&self, hash: u64) -> Option<[&u64; 2]> {
        let mask = self.index.len() - 1;
        let tag = tag(hash);
        let mut slot = self.home(hash);
        loop {
            let word = self.index[slot];
            if word == 0 {
                return self.lines(self.entries.len().checked_sub(1)?);
            }
            if word & !POSITION_MASK == tag {
                return self.lines(position(word));
            }
            slot = (slot + 1) & mask;
        }
    }

    /// Adds an entry whose key is not here yet.
    #[inline]
    pub(in crate::state) fn push(&mut self, hash: u64, key: K, value: V) -> usize {
        let position = self.entries.len();
        if position == self.entries.capacity() {
            // Grown by ourselves: `Vec` would round up beyond the capacity of a page.
            let room = match Self::CAPACITY.saturating_sub(position) {
                0 => position,
                to_capacity => grow_by(position).min(to_capacity),
            };
            self.entries.reserve_exact(room);
        }
        self.entries.push(Entry { hash, key, value });
        self.index_position(hash, position);
        position
    }

    /// Removes the entry at `position`. The last entry takes its place.
    pub(in crate::state) fn remove_at(&mut self, position: usize) -> Entry<K, V> {
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
        self.entries.swap_remove(position)
    }

    /// Looks at up to `entries` entries from position `at` on, and removes those that are `expired`. Returns how many of
    /// each.
    pub(in crate::state) fn sweep(
        &mut self,
        at: &mut usize,
        entries: usize,
        expired: &mut impl FnMut(&V) -> bool,
        mut removing: impl FnMut(Gone),
        tombstones: &mut Tombstones,
    ) -> (usize, usize) {
        let (mut looked, mut removed) = (0, 0);
        while looked < entries && *at < self.entries.len() {
            looked += 1;
            if expired(&self.entries[*at].value) {
                // Another entry takes its place.
                removing(Gone { last: self.entries.len() - 1, position: *at });
                let Entry { hash, key, .. } = self.remove_at(*at);
                self.note_removed(hash, key, tombstones);
                removed += 1;
            } else {
                *at += 1;
            }
        }
        (looked, removed)
    }

    /// Moves the entries whose next hash bit is one into the returned page. Both are one bit
    /// deeper. `moved` hears of each entry where it was, whether it is in the new page, and where.
    pub(in crate::state) fn split(&mut self, mut moved: impl FnMut(usize, bool, usize)) -> Self {
        let bit = 1 << (63 - self.depth);
        let mut upper = Self::new(self.prefix | bit, self.depth + 1);
        self.depth += 1;
        if let Some(removed) = self.removed.take() {
            let (lower, higher) = removed.0.into_iter().partition(|key| key.hash & bit == 0);
            let keys = |keys: Vec<_>| (!keys.is_empty()).then(|| Box::new(RemovedKeys(keys)));
            (self.removed, upper.removed) = (keys(lower), keys(higher));
        }
        let ones = self.entries.iter().filter(|entry| entry.hash & bit != 0).count();
        if ones == 0 {
            (0..self.entries.len()).for_each(|position| moved(position, false, position));
            return upper;
        }
        if ones == self.entries.len() {
            std::mem::swap(&mut self.entries, &mut upper.entries);
            std::mem::swap(&mut self.index, &mut upper.index);
            (0..upper.entries.len()).for_each(|position| moved(position, true, position));
            return upper;
        }
        let zeros = self.entries.len() - ones;
        let entries = std::mem::take(&mut self.entries);
        self.entries.reserve_exact(zeros + grow_by(zeros));
        upper.entries.reserve_exact(ones + grow_by(ones));
        self.index.fill(0);
        for (from, entry) in entries.into_iter().enumerate() {
            let page = if entry.hash & bit == 0 { &mut *self } else { &mut upper };
            let is_upper = entry.hash & bit != 0;
            let to = page.push(entry.hash, entry.key, entry.value);
            moved(from, is_upper, to);
        }
        upper
    }

    /// Remembers that a key was removed, if anybody wants to know.
    fn note_removed(&mut self, hash: u64, key: K, tombstones: &mut Tombstones) {
        if tombstones.kept {
            let keys = self.removed.get_or_insert_with(|| Box::new(RemovedKeys(Vec::new())));
            // Those that a complete snapshot holds go first.
            if keys.0.len() == keys.0.capacity() {
                let before = keys.0.len();
                keys.0.retain(|removed| removed.snapshots >= tombstones.needed_from);
                tombstones.number -= before - keys.0.len();
            }
            keys.0.push(Removed { hash, key, snapshots: tombstones.snapshots });
            tombstones.number += 1;
        }
    }

    /// Forgets what was removed. Returns the number of keys.
    pub(in crate::state) fn forget_removed(&mut self) -> usize {
        self.removed.take().map_or(0, |keys| keys.0.len())
    }

    pub(in crate::state) fn removed(&self) -> &[Removed<K>] {
        self.removed.as_ref().map_or(&[], |keys| &keys.0)
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
    #[inline]
    pub(in crate::state) fn get(&self, hash: u64, key: &K) -> Option<&V> {
        self.find(hash, key).map(|position| &self.entries[position].value)
    }

    pub(in crate::state) fn remove(
        &mut self,
        hash: u64,
        key: &K,
        tombstones: &mut Tombstones,
    ) -> Option<(V, Gone)> {
        let position = self.find(hash, key)?;
        let gone = Gone { last: self.entries.len() - 1, position };
        let Entry { hash, key, value } = self.remove_at(position);
        self.note_removed(hash, key, tombstones);
        Some((value, gone))
    }

    /// The position of a key.
    #[inline]
    pub(in crate::state) fn find(&self, hash: u64, key: &K) -> Option<usize> {
        self.find_by(hash, |found| found == key)
    }
}

impl<K, V> Page<K, V> {
    /// The value of the entry at a position that [`Page::find`] has told.
    #[inline]
    pub(in crate::state) fn value_at(&mut self, position: usize) -> &mut V {
        &mut self.entries[position].value
    }

    /// The position of the key with this hash that `is` the one.
    #[inline]
    pub(in crate::state) fn find_by(&self, hash: u64, is: impl Fn(&K) -> bool) -> Option<usize> {
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
                if entry.hash == hash && is(&entry.key) {
                    return Some(position(word));
                }
            }
            slot = (slot + 1) & mask;
        }
        if self.entries.len() > Self::CAPACITY { self.find_beyond(hash, is) } else { None }
    }

    #[cold]
    fn find_beyond(&self, hash: u64, is: impl Fn(&K) -> bool) -> Option<usize> {
        let beyond = &self.entries[Self::CAPACITY..];
        let found = beyond.iter().position(|entry| entry.hash == hash && is(&entry.key));
        found.map(|position| Self::CAPACITY + position)
    }
}

impl<K: Clone, V: Clone> Page<K, V> {
    /// The entries at these positions, and these of the removed keys, for a snapshot. Nothing can be found in it.
    pub(in crate::state) fn excerpt<'a>(
        &'a self,
        positions: impl Iterator<Item = usize> + Clone,
        removed: impl Iterator<Item = &'a Removed<K>>,
    ) -> Self {
        let mut entries = Vec::with_capacity(positions.clone().count());
        entries.extend(positions.map(|position| self.entries[position].clone()));
        let removed: Vec<Removed<K>> = removed.cloned().collect();
        Self {
            entries,
            index: Box::default(),
            prefix: self.prefix,
            depth: self.depth,
            removed: (!removed.is_empty()).then(|| Box::new(RemovedKeys(removed))),
        }
    }
}

impl<K: Clone, V: Clone> Clone for Page<K, V> {
    fn clone(&self) -> Self {
        // The same capacity, so that the copies' memory fits the next ones.
        let mut entries = Vec::with_capacity(self.entries.capacity());
        entries.extend_from_slice(&self.entries);
        Self {
            entries,
            index: self.index.clone(),
            prefix: self.prefix,
            depth: self.depth,
            removed: self.removed.clone(),
        }
    }
}
