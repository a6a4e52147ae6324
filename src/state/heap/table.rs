//! The directory of pages, and the operations on keys.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustc_hash::FxHashSet;

use super::frozen::{FrozenPages, Marked};
use super::marks::Marks;
use super::page::{Page, Tombstones};
use super::shared::{self, ReadPage, SharedPage};
use crate::format::{ENTRY_PRESENT, ENTRY_REMOVED, Extent, FormatError};
use crate::ids::{Epoch, HashRange};
use crate::protocol::key_groups::{hashes, key_group};
use crate::protocol::layers::{Layer, Layers, Plan};
use crate::state::hash::stable_hash;
use crate::state::{
    FrozenState, Key, Selection, SnapshotForm, StateValue, SweepPosition, ValueTable,
};

pub(super) enum Slot<K, V> {
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

/// How many keys are prefetched together.
const PREFETCH_CHUNK: usize = 64;

/// Tables with less memory in entries than this are in the processor's cache anyway.
const PREFETCH_BYTES_MIN: usize = 1 << 20;

impl<K: Key, V: StateValue> Table<K, V> {
    pub(super) fn new(max_parallelism: u16, groups: &Range<u16>) -> Self {
        let owned = hashes(groups, max_parallelism).unwrap_or(HashRange::ALL);
        Self {
            directory: vec![0; 2],
            depth: 1,
            pages: vec![Slot::Owned(Page::new(0))],
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
        self.len.saturating_mul(entry_bytes.max(size_of::<super::page::Entry<K, V>>()))
    }

    /// Shares these pages with a snapshot: first those that are shared already.
    fn share(&mut self, numbers: impl Iterator<Item = usize>) -> Vec<ReadPage<K, V>> {
        let (mut owned, mut reads) = (Vec::new(), Vec::new());
        for number in numbers {
            match &self.pages[number] {
                Slot::Owned(_) => owned.push(number),
                Slot::Shared(shared) => reads.push(shared.read()),
            }
        }
        shared::share(&mut self.pages, &owned, &mut reads);
        reads
    }

    fn frozen(
        &self,
        pages: Vec<(ReadPage<K, V>, Marked)>,
        marks: Vec<u64>,
        tagged: bool,
    ) -> FrozenPages<K, V> {
        let marks = (marks, self.marks.words());
        FrozenPages::new(pages, marks, self.max_parallelism, tagged, Arc::clone(&self.entry_bytes))
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

    /// The number of the page where an entry with this hash may be added.
    #[inline]
    fn page_with_room(&mut self, hash: u64) -> usize {
        let number = self.page_number(hash);
        if !self.pages[number].own().is_full() {
            return number;
        }
        self.make_room(hash);
        self.page_number(hash)
    }

    /// Adds an entry whose key is not here yet.
    #[inline(never)]
    fn push_new(&mut self, hash: u64, key: &K, value: V) -> &mut V {
        self.len += 1;
        let number = self.page_with_room(hash);
        let page = self.pages[number].own();
        let position = page.push(hash, key.clone(), value);
        self.marks.set(number, position);
        page.value_at(position)
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
        let page_count = self.pages.len();
        let page = self.pages[number].own();
        let prefixes = 1_usize << (self.depth - page.depth());
        let first = (hash >> (64 - self.depth)) as usize & !(prefixes - 1);
        let upper_number = u32::try_from(page_count).expect("2^32 pages do not fit into memory");
        let mut moves = Vec::with_capacity(page.entries().len());
        let upper = page.split(|from, upper, to| moves.push((from, upper, to)));
        self.marks.split(number, moves);
        for (page, number) in [(&*page, number), (&upper, upper_number as usize)] {
            let last = page.removed().last().map_or(0, |removed| removed.snapshots);
            self.marks.set_removed(number, page.removed().len(), last);
        }
        self.pages.push(Slot::Owned(upper));
        self.directory[first + prefixes / 2..first + prefixes].fill(upper_number);
    }

    /// Decodes and adds one entry, or removes it, and returns the bytes behind it.
    fn restore_entry<'a, W: serde::de::DeserializeOwned>(
        &mut self,
        selection: &Selection<'_>,
        bytes: &'a [u8],
        convert: &mut impl FnMut(W) -> Option<V>,
    ) -> Result<&'a [u8], String> {
        let (tag, bytes) = if selection.changes {
            let (tag, rest) = bytes.split_first().ok_or("it ends before the entry")?;
            (*tag, rest)
        } else {
            (ENTRY_PRESENT, bytes)
        };
        let (key, rest) = postcard::take_from_bytes::<K>(bytes)
            .map_err(|error| format!("the key does not decode: {error}"))?;
        let hash = stable_hash(&key);
        let counts = selection.groups.contains(&key_group(hash, self.max_parallelism).0)
            && !selection.superseded.contains(hash);
        let (value, rest) = match tag {
            ENTRY_REMOVED => (None, rest),
            ENTRY_PRESENT => {
                let (value, rest) = postcard::take_from_bytes::<W>(rest)
                    .map_err(|error| format!("the value does not decode: {error}"))?;
                (counts.then(|| convert(value)).flatten(), rest)
            }
            other => return Err(format!("an entry begins with {other}")),
        };
        if counts {
            let replaced = match value {
                Some(value) => self.insert(hash, &key, value).is_some(),
                None => self.remove(hash, &key).is_some(),
            };
            if replaced && !selection.changes {
                return Err("the key is there twice".to_owned());
            }
        }
        Ok(rest)
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
                && let Slot::Owned(page) = &mut self.pages[number]
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
            let number = self.page_number(hash);
            let (depth, entries) = match &self.pages[number] {
                Slot::Owned(page) => (page.depth(), page.entries().len() as u32),
                Slot::Shared(shared) => (shared.depth, shared.entries),
            };
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
        let is_shared = |number: &usize| matches!(self.pages[*number], Slot::Shared(_));
        let (shared, owned): (Vec<usize>, Vec<usize>) =
            changes.into_iter().map(|number| number as usize).partition(is_shared);
        // In the order in which they will be shared.
        let changes = || shared.iter().chain(&owned).copied();
        let (mut marks, mut marked) = (Vec::new(), Vec::with_capacity(shared.len() + owned.len()));
        for number in changes() {
            let words = self.marks.folded(number, confirmed, is_top);
            let at = words.map(|words| {
                marks.extend_from_slice(words);
                marks.len() - words.len()
            });
            marked.push(Marked::Changes { confirmed, marks: at });
        }
        let mut pages: Vec<_> = self.share(changes()).into_iter().zip(marked).collect();
        pages.extend(self.share(whole.into_iter()).into_iter().map(|page| (page, Marked::All)));
        let empty = plan == Plan::Small && pages.is_empty();
        let needs = self.layers.taken(epoch, plan, window, empty);
        self.tombstones.kept = true;
        self.tombstones.snapshots = self.layers.snapshot();
        self.tombstones.needed_from = self.layers.confirmed_top();
        let extent = match plan {
            Plan::Whole => Extent::Whole,
            _ => Extent::Changes { whole: window.into_iter().collect() },
        };
        let tagged = plan != Plan::Whole;
        let content = Box::new(self.frozen(pages, marks, tagged));
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
            Slot::Shared(shared) => shared.into_owned(),
        };
        *self = Slot::Owned(page);
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
        let number = self.page_number(hash);
        let page = self.pages[number].own();
        let position = page.find(hash, key)?;
        self.marks.set(number, position);
        Some(page.value_at(position))
    }

    #[inline]
    fn get_or_insert_with(&mut self, hash: u64, key: &K, value: &mut dyn FnMut() -> V) -> &mut V {
        let number = self.page_number(hash);
        let page = self.pages[number].own();
        match page.find(hash, key) {
            Some(position) => {
                self.marks.set(number, position);
                self.pages[number].own().value_at(position)
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
        let number = self.page_number(hash);
        let page = self.pages[number].own();
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
                let pages = self.share(0..self.pages.len());
                let pages = pages.into_iter().map(|page| (page, Marked::All)).collect();
                let content = Box::new(self.frozen(pages, Vec::new(), false));
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
        for slot in &mut self.pages {
            for entry in slot.own().entries() {
                visit(&entry.key, &entry.value);
            }
        }
    }

    fn restored(&mut self, layers: Vec<Layer>) {
        for slot in &mut self.pages {
            slot.own().forget_removed();
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
            if let Some(Slot::Owned(page)) = self.pages.get_mut(position.page) {
                let (tombstones, marks) = (&mut self.tombstones, &mut self.marks);
                let number = position.page;
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
            rest = self.restore_entry(selection, rest, &mut convert).map_err(|why| {
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
