//! The directory of pages, and the operations on keys.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustc_hash::FxHashSet;

use super::frozen::{Changes, FrozenPages};
use super::marks::Marks;
use crate::format::{Extent, FormatError};
use crate::ids::{Epoch, HashRange};
use crate::protocol::key_groups::hashes;
use crate::protocol::layers::{Layer, Layers, Plan};
use crate::state::pages::{Entry, Excerpts, Page, Pages, ReadPages, Tombstones};
use crate::state::{
    FrozenState, Key, Selection, SnapshotForm, StateValue, SweepPosition, ValueTable,
    restore_entries,
};

/// One value state in memory: see the module.
pub struct Table<K, V> {
    pages: Pages<K, V>,
    len: usize,
    max_parallelism: u16,
    layers: Layers,
    marks: Marks,
    tombstones: Tombstones,
    /// How many bytes an entry took in the last snapshot that held all. What is behind a pointer shows there only.
    entry_bytes: Arc<AtomicUsize>,
}

/// Removed keys that are remembered however few entries there are. Beyond, and beyond the number of entries, the next
/// snapshot is whole instead.
const TOMBSTONES_MIN: usize = 4096;

/// The directory may always grow to this depth: 64 MiB, enough for a billion entries in full pages.
const FREE_DEPTH: u32 = 24;

/// Tables with less memory in entries than this are in the processor's cache anyway.
const PREFETCH_BYTES_MIN: usize = 1 << 20;

impl<K: Key, V: StateValue> Table<K, V> {
    pub(super) fn new(max_parallelism: u16, groups: &Range<u16>) -> Self {
        let owned = hashes(groups, max_parallelism).unwrap_or(HashRange::ALL);
        Self {
            pages: Pages::new(),
            len: 0,
            max_parallelism,
            layers: Layers::new(owned),
            marks: Marks::new(Page::<K, V>::CAPACITY),
            tombstones: Tombstones::default(),
            entry_bytes: Arc::default(),
        }
    }

    /// Units: bytes of all entries, estimated.
    fn bytes(&self) -> usize {
        let entry_bytes = self.entry_bytes.load(Ordering::Relaxed);
        self.len.saturating_mul(entry_bytes.max(size_of::<Entry<K, V>>()))
    }

    fn frozen(
        &self,
        whole: ReadPages<K, V>,
        changes: Option<(ReadPages<K, V>, Arc<Changes>)>,
    ) -> FrozenPages<K, V> {
        FrozenPages::new(whole, changes, self.max_parallelism, Arc::clone(&self.entry_bytes))
    }

    #[inline]
    fn page(&mut self, hash: u64) -> &mut Page<K, V> {
        self.pages.own(self.pages.number(hash))
    }

    /// The number of the page where an entry with this hash may be added.
    #[inline]
    fn page_with_room(&mut self, hash: u64) -> usize {
        let number = self.pages.number(hash);
        if !self.pages.own(number).is_full() {
            return number;
        }
        self.make_room(hash);
        self.pages.number(hash)
    }

    /// Adds an entry whose key is not here yet.
    #[inline(never)]
    fn push_new(&mut self, hash: u64, key: &K, value: V) -> &mut V {
        self.len += 1;
        let number = self.page_with_room(hash);
        let page = self.pages.own(number);
        let position = page.push(hash, key.clone(), value);
        self.marks.set(number, position);
        page.value_at(position)
    }

    /// Splits the page of this hash until it has room, unless the directory would have to grow out
    /// of bounds.
    #[cold]
    fn make_room(&mut self, hash: u64) {
        loop {
            let page = self.page(hash);
            if !page.is_full() {
                return;
            }
            let depth_needed = page.common_bits(hash) + 1;
            if depth_needed > u32::from(self.pages.depth()) && !self.may_deepen_to(depth_needed) {
                return;
            }
            self.split(hash);
        }
    }

    fn may_deepen_to(&self, depth: u32) -> bool {
        depth <= FREE_DEPTH || depth < 48 && 1 << depth <= 16 * self.pages.len()
    }

    /// Splits the page of this hash, and its marks.
    fn split(&mut self, hash: u64) {
        let mut moves = Vec::new();
        let (lower, upper) =
            self.pages.split(hash, |from, upper, to| moves.push((from, upper, to)));
        self.marks.split(lower, moves);
        for number in [lower, upper] {
            let removed = self.pages.own(number).removed();
            let last = removed.last().map_or(0, |removed| removed.snapshots);
            self.marks.set_removed(number, removed.len(), last);
        }
    }

    /// Marks become part of this snapshot. Returns the pages where something has changed since the last confirmed snapshot, and since
    /// the last confirmed top one, with the number of entries in each.
    fn fold(&mut self) -> [Changed; 2] {
        let (confirmed, confirmed_top) =
            (self.layers.confirmed_snapshot(), self.layers.confirmed_top());
        let snapshot = self.layers.snapshot();
        let mut changed = [Changed::default(), Changed::default()];
        for number in 0..self.pages.len() {
            if self.marks.removed_are_over(number, confirmed_top)
                && let Some(page) = self.pages.owned_mut(number)
            {
                self.tombstones.number -= page.forget_removed();
                self.marks.set_removed(number, 0, 0);
            }
            let entries = self.marks.fold(number, snapshot, confirmed, confirmed_top);
            changed[0].add(number, entries.small);
            changed[1].add(number, entries.top);
        }
        changed
    }

    /// The pages of the next window, of about so many entries, and their hashes.
    fn window(&self, entries: u64) -> (Vec<u32>, HashRange) {
        let first = self.layers.window_at();
        let (mut pages, mut hash, mut left) = (Vec::new(), first, entries as i64);
        loop {
            let number = self.pages.number(hash);
            let (depth, entries) = self.pages.extent(number);
            pages.push(number as u32);
            left -= i64::from(entries);
            let last = hash | u64::MAX.checked_shr(u32::from(depth)).unwrap_or(0);
            match last.checked_add(1) {
                Some(next) if left > 0 => hash = next,
                _ => return (pages, HashRange { first, last }),
            }
        }
    }

    /// Freezes what has changed, or all if that is less.
    fn freeze_layer(&mut self, epoch: Epoch, confirmed: Option<Epoch>, whole: bool) -> FrozenState {
        if let Some(confirmed) = confirmed {
            self.layers.confirm(confirmed);
        }
        if !self.tombstones.kept {
            self.layers.forget();
        }
        self.layers.begin();
        let [small, top] = self.fold();
        let plan = match self.layers.plan(self.len as u64, small.entries, top.entries) {
            _ if whole => Plan::Whole,
            plan => plan,
        };
        let (mut window, mut whole, mut changes) = (None, Vec::new(), Vec::new());
        match plan {
            Plan::Whole => whole.extend(0..self.pages.len()),
            Plan::Top { window: entries } => {
                let (in_window, range) = self.window(entries);
                window = Some(range);
                let in_window: FxHashSet<u32> = in_window.into_iter().collect();
                changes.extend(top.pages.into_iter().filter(|number| !in_window.contains(number)));
                whole.extend(in_window.into_iter().map(|number| number as usize));
            }
            Plan::Small => changes.extend(small.pages),
        }
        let (is_top, confirmed) = match plan {
            Plan::Top { .. } => (true, self.layers.confirmed_top()),
            _ => (false, self.layers.confirmed_snapshot()),
        };
        let mut marks = Vec::with_capacity(changes.len() * self.marks.words());
        for number in &changes {
            self.marks.copy_folded(*number as usize, confirmed, is_top, &mut marks);
        }
        let words = self.marks.words();
        let numbers = changes.iter().map(|number| *number as usize);
        let written = Arc::new(Changes::new(confirmed, &changes, marks, words));
        let excerpts: Arc<dyn Excerpts<K, V>> = Arc::<Changes>::clone(&written);
        let whole = self.pages.share(whole.into_iter());
        let changed = self.pages.share_for(numbers, Some(&excerpts));
        let empty = plan == Plan::Small && changes.is_empty();
        let needs = self.layers.taken(epoch, plan, window, empty);
        self.tombstones.kept = true;
        self.tombstones.snapshots = self.layers.snapshot();
        self.tombstones.needed_from = self.layers.confirmed_top();
        let extent = match plan {
            Plan::Whole => Extent::Whole,
            _ => Extent::Changes { whole: window.into_iter().collect() },
        };
        let changes = (plan != Plan::Whole).then_some((changed, written));
        let content = Box::new(self.frozen(whole, changes));
        FrozenState { content, extent, needs, layer: !empty }
    }
}

/// Pages where something has changed.
#[derive(Default)]
struct Changed {
    pages: Vec<u32>,
    /// Number of entries, at most.
    entries: u64,
}

impl Changed {
    fn add(&mut self, page: usize, entries: u64) {
        if entries > 0 {
            self.pages.push(page as u32);
            self.entries += entries;
        }
    }
}

impl<K: Key, V: StateValue> ValueTable<K, V> for Table<K, V> {
    fn prefetch(&self, hashes: &[u64]) {
        if self.len * size_of::<Entry<K, V>>() < PREFETCH_BYTES_MIN {
            return;
        }
        self.pages.prefetch(hashes);
    }

    #[inline]
    fn get(&mut self, hash: u64, key: &K) -> Option<&V> {
        self.page(hash).get(hash, key)
    }

    #[inline]
    fn get_mut(&mut self, hash: u64, key: &K) -> Option<&mut V> {
        let number = self.pages.number(hash);
        let page = self.pages.own(number);
        let position = page.find(hash, key)?;
        self.marks.set(number, position);
        Some(page.value_at(position))
    }

    #[inline]
    fn get_or_insert_with(&mut self, hash: u64, key: &K, value: &mut dyn FnMut() -> V) -> &mut V {
        let number = self.pages.number(hash);
        let page = self.pages.own(number);
        match page.find(hash, key) {
            Some(position) => {
                self.marks.set(number, position);
                self.pages.own(number).value_at(position)
            }
            None => self.push_new(hash, key, value()),
        }
    }

    fn insert(&mut self, hash: u64, key: &K, value: V) -> Option<V> {
        if let Some(there) = self.get_mut(hash, key) {
            return Some(std::mem::replace(there, value));
        }
        self.push_new(hash, key, value);
        None
    }

    fn remove(&mut self, hash: u64, key: &K) -> Option<V> {
        let number = self.pages.number(hash);
        let page = self.pages.own(number);
        let (value, gone) = page.remove(hash, key, &mut self.tombstones)?;
        self.marks.relocate(number, gone.last, gone.position);
        self.marks.set_removed(number, page.removed().len(), self.tombstones.snapshots);
        self.len -= 1;
        if self.tombstones.number > self.len.max(TOMBSTONES_MIN) {
            self.tombstones.kept = false;
        }
        Some(value)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn freeze(&mut self, form: SnapshotForm) -> FrozenState {
        match form {
            SnapshotForm::Plain => {
                // What changes from here on is not kept apart from what has changed before.
                self.tombstones.kept = false;
                let pages = self.pages.share(0..self.pages.len());
                let content = Box::new(self.frozen(pages, None));
                let needs = BTreeSet::new();
                FrozenState { content, extent: Extent::Whole, needs, layer: false }
            }
            SnapshotForm::Layer { bytes_min, .. } if self.bytes() < bytes_min => {
                self.freeze(SnapshotForm::Plain)
            }
            SnapshotForm::Layer { epoch, confirmed, whole, .. } => {
                self.freeze_layer(epoch, confirmed, whole)
            }
        }
    }

    fn for_each(&mut self, mut visit: impl FnMut(&K, &V)) {
        for number in 0..self.pages.len() {
            for entry in self.pages.own(number).entries() {
                visit(&entry.key, &entry.value);
            }
        }
    }

    fn restored(&mut self, layers: Vec<Layer>) {
        for number in 0..self.pages.len() {
            self.pages.own(number).forget_removed();
        }
        self.marks.forget();
        self.tombstones = Tombstones { kept: true, ..Tombstones::default() };
        self.layers.adopt(layers);
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
            let number = position.page;
            if let Some(page) = self.pages.owned_mut(number) {
                let (tombstones, marks) = (&mut self.tombstones, &mut self.marks);
                let (looked, expired) = page.sweep(
                    &mut position.entry,
                    left,
                    &mut expired,
                    |gone| marks.relocate(number, gone.last, gone.position),
                    tombstones,
                );
                marks.set_removed(number, page.removed().len(), tombstones.snapshots);
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
        selection: &Selection<'_>,
        entries: u32,
        bytes: &[u8],
        convert: impl FnMut(W) -> Option<V>,
    ) -> Result<(), FormatError> {
        let groups = self.max_parallelism;
        restore_entries(selection, groups, entries, bytes, convert, |hash, key: &K, value| {
            match value {
                Some(value) => self.insert(hash, key, value).is_some(),
                None => self.remove(hash, key).is_some(),
            }
        })
    }
}
