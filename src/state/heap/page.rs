//! One page of a heap table: the entries of one range of hashes.

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
    /// Positions that have changed since the last snapshot was frozen.
    changed: Marks,
    /// What snapshots that may not be complete hold. `None`: nothing has changed yet.
    frozen: Option<Box<FrozenMarks>>,
    /// Keys that were removed, each with the number of snapshots before. A key may be there again, or twice.
    removed: Vec<Removed<K>>,
}

/// A set of positions in a page. Those beyond the capacity of a page are always in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks([u64; MARK_WORDS]);

/// Enough for the largest capacity of a page.
const MARK_WORDS: usize = 8;

/// What had changed when a page was last frozen with changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrozenMarks {
    /// The number of that snapshot.
    pub(super) snapshot: u32,
    /// Since the snapshot that was then the last confirmed one.
    pub(super) small: Marks,
    /// Since the last confirmed top one.
    pub(super) top: Marks,
}

/// A key that was removed.
#[derive(Clone)]
pub(super) struct Removed<K> {
    pub(super) hash: u64,
    pub(super) key: K,
    /// Number of snapshots before.
    pub(super) snapshots: u32,
}

impl Marks {
    #[inline]
    fn set(&mut self, position: usize) {
        if let Some(word) = self.0.get_mut(position / 64) {
            *word |= 1 << (position % 64);
        }
    }

    fn clear(&mut self, position: usize) {
        if let Some(word) = self.0.get_mut(position / 64) {
            *word &= !(1 << (position % 64));
        }
    }

    #[inline]
    pub(super) fn contains(&self, position: usize) -> bool {
        self.0.get(position / 64).is_none_or(|word| word >> (position % 64) & 1 == 1)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0 == [0; MARK_WORDS]
    }

    /// Number of marked positions among the first `entries`.
    fn count(&self, entries: usize) -> usize {
        let marked: u32 = self.0.iter().map(|word| word.count_ones()).sum();
        marked as usize + entries.saturating_sub(64 * MARK_WORDS)
    }

    fn union(mut self, other: &Self) -> Self {
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
        self
    }

    /// The mark of `from` becomes that of `to`.
    fn relocate(&mut self, from: usize, to: usize) {
        if self.contains(from) {
            self.set(to);
        } else {
            self.clear(to);
        }
        self.clear(from);
    }
}

/// The removed keys that all pages of a table remember.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tombstones {
    /// Whether they are remembered at all.
    pub(super) kept: bool,
    /// Their number.
    pub(super) number: usize,
    /// The number of snapshots so far.
    pub(super) snapshots: u32,
    /// Those with fewer snapshots before them are not needed any more.
    pub(super) needed_from: u32,
}

/// What a snapshot has to know of a page without looking into it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Brief {
    /// How many leading bits the hashes have in common.
    pub(super) depth: u8,
    /// Number of entries.
    pub(super) entries: u32,
    /// The snapshot that it was last frozen for with changes.
    pub(super) snapshot: u32,
    /// Number of entries that had changed then, since the snapshot confirmed then.
    small: u32,
    /// And since the top one.
    top: u32,
    /// Number of removed keys.
    pub(super) removed: u32,
    /// The number of snapshots before the last of these.
    pub(super) last_removed: u32,
}

impl Brief {
    /// Number of entries, at most, that have changed since the last confirmed snapshot.
    pub(super) fn small(&self, confirmed: u32) -> u64 {
        let removed = if self.last_removed >= confirmed { self.removed } else { 0 };
        u64::from(if self.snapshot > confirmed { self.small } else { 0 }) + u64::from(removed)
    }

    /// Number of entries, at most, that have changed since the last confirmed top snapshot.
    pub(super) fn top(&self, confirmed_top: u32) -> u64 {
        let removed = if self.last_removed >= confirmed_top { self.removed } else { 0 };
        u64::from(if self.snapshot > confirmed_top { self.top } else { 0 }) + u64::from(removed)
    }
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
            changed: Marks::default(),
            frozen: None,
            removed: Vec::new(),
        }
    }

    /// A stand-in that owns no memory, for while a page is being moved. It must not be used as a
    /// page.
    pub(super) fn hollow() -> Self {
        Self {
            entries: Vec::new(),
            index: Box::default(),
            depth: 0,
            changed: Marks::default(),
            frozen: None,
            removed: Vec::new(),
        }
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
        let position = self.add(hash, key, value);
        self.changed.set(position);
        &mut self.entries[position].value
    }

    /// Adds an entry, unmarked.
    #[inline]
    fn add(&mut self, hash: u64, key: K, value: V) -> usize {
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
        position
    }

    /// Removes the entry at `position`. The last entry takes its place.
    fn remove_at(&mut self, position: usize) -> Entry<K, V> {
        let hash = self.entries[position].hash;
        let last = self.entries.len() - 1;
        self.changed.relocate(last, position);
        if let Some(frozen) = &mut self.frozen {
            frozen.small.relocate(last, position);
            frozen.top.relocate(last, position);
        }
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
    pub(super) fn sweep(
        &mut self,
        at: &mut usize,
        entries: usize,
        expired: &mut impl FnMut(&V) -> bool,
        tombstones: &mut Tombstones,
    ) -> (usize, usize) {
        let (mut looked, mut removed) = (0, 0);
        while looked < entries && *at < self.entries.len() {
            looked += 1;
            if expired(&self.entries[*at].value) {
                // Another entry takes its place.
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
    /// deeper.
    pub(super) fn split(&mut self) -> Self {
        let bit = 1 << (63 - self.depth);
        let mut upper = Self::new(self.depth + 1);
        self.depth += 1;
        let removed = std::mem::take(&mut self.removed);
        (self.removed, upper.removed) = removed.into_iter().partition(|key| key.hash & bit == 0);
        let ones = self.entries.iter().filter(|entry| entry.hash & bit != 0).count();
        if ones == 0 {
            return upper;
        }
        if ones == self.entries.len() {
            std::mem::swap(&mut self.entries, &mut upper.entries);
            std::mem::swap(&mut self.index, &mut upper.index);
            std::mem::swap(&mut self.changed, &mut upper.changed);
            std::mem::swap(&mut self.frozen, &mut upper.frozen);
            return upper;
        }
        let changed = std::mem::take(&mut self.changed);
        let frozen = self.frozen.take();
        if let Some(frozen) = &frozen {
            let none = FrozenMarks { small: Marks::default(), top: Marks::default(), ..**frozen };
            self.frozen = Some(Box::new(none));
            upper.frozen = Some(Box::new(none));
        }
        let zeros = self.entries.len() - ones;
        let entries = std::mem::take(&mut self.entries);
        self.entries.reserve_exact(zeros.max(Self::CAPACITY));
        upper.entries.reserve_exact(ones.max(Self::CAPACITY));
        self.index.fill(0);
        for (from, entry) in entries.into_iter().enumerate() {
            let page = if entry.hash & bit == 0 { &mut *self } else { &mut upper };
            let to = page.add(entry.hash, entry.key, entry.value);
            if changed.contains(from) {
                page.changed.set(to);
            }
            if let (Some(frozen), Some(moved)) = (&frozen, &mut page.frozen) {
                if frozen.small.contains(from) {
                    moved.small.set(to);
                }
                if frozen.top.contains(from) {
                    moved.top.set(to);
                }
            }
        }
        upper
    }

    /// Remembers that a key was removed, if anybody wants to know.
    fn note_removed(&mut self, hash: u64, key: K, tombstones: &mut Tombstones) {
        if tombstones.kept {
            // Those that a complete snapshot holds go first.
            if self.removed.len() == self.removed.capacity() {
                let before = self.removed.len();
                self.removed.retain(|removed| removed.snapshots >= tombstones.needed_from);
                tombstones.number -= before - self.removed.len();
            }
            self.removed.push(Removed { hash, key, snapshots: tombstones.snapshots });
            tombstones.number += 1;
        }
    }

    /// Forgets what was removed. Returns the number of keys.
    pub(super) fn forget_removed(&mut self) -> usize {
        std::mem::take(&mut self.removed).len()
    }

    pub(super) fn removed(&self) -> &[Removed<K>] {
        &self.removed
    }

    /// Whether something has changed since the page was last frozen.
    pub(super) fn has_changed(&self) -> bool {
        !self.changed.is_empty() || self.entries.len() > 64 * MARK_WORDS
    }

    /// What has changed becomes part of what `snapshot` holds, and what earlier ones hold that no complete one does.
    pub(super) fn fold(&mut self, snapshot: u32, confirmed: u32, confirmed_top: u32) {
        let changed = std::mem::take(&mut self.changed);
        let before = self.frozen.as_deref();
        let small = before.filter(|before| before.snapshot > confirmed).map(|before| before.small);
        let top = before.filter(|before| before.snapshot > confirmed_top).map(|before| before.top);
        let small = changed.union(&small.unwrap_or_default());
        let top = changed.union(&top.unwrap_or_default());
        let marks = FrozenMarks { snapshot, small, top };
        match &mut self.frozen {
            Some(frozen) => **frozen = marks,
            None => self.frozen = Some(Box::new(marks)),
        }
    }

    /// What is marked, of a page without changes since it was frozen.
    pub(super) fn frozen_marks(&self) -> Option<&FrozenMarks> {
        self.frozen.as_deref()
    }

    /// What there is to write.
    pub(super) fn brief(&self) -> Brief {
        let entries = self.entries.len();
        let count = |marks: &Marks| marks.count(entries) as u32;
        let frozen = self.frozen.as_deref();
        Brief {
            depth: self.depth,
            entries: entries as u32,
            snapshot: frozen.map_or(0, |frozen| frozen.snapshot),
            small: frozen.map_or(0, |frozen| count(&frozen.small)),
            top: frozen.map_or(0, |frozen| count(&frozen.top)),
            removed: self.removed.len() as u32,
            last_removed: self.removed.last().map_or(0, |removed| removed.snapshots),
        }
    }

    /// Nothing has changed: what is here is what checkpoints hold.
    pub(super) fn forget_changes(&mut self) {
        self.changed = Marks::default();
        self.frozen = None;
        self.removed = Vec::new();
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
    pub(super) fn get(&self, hash: u64, key: &K) -> Option<&V> {
        self.find(hash, key).map(|position| &self.entries[position].value)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, hash: u64, key: &K) -> Option<&mut V> {
        self.find(hash, key).map(|position| self.value_at(position))
    }

    /// The value of the entry at a position that [`Page::find`] has told.
    #[inline]
    pub(super) fn value_at(&mut self, position: usize) -> &mut V {
        self.changed.set(position);
        &mut self.entries[position].value
    }

    pub(super) fn remove(&mut self, hash: u64, key: &K, tombstones: &mut Tombstones) -> Option<V> {
        let position = self.find(hash, key)?;
        let Entry { hash, key, value } = self.remove_at(position);
        self.note_removed(hash, key, tombstones);
        Some(value)
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
        Self {
            entries,
            index: self.index.clone(),
            depth: self.depth,
            changed: self.changed,
            frozen: self.frozen.clone(),
            removed: self.removed.clone(),
        }
    }
}
