//! One value state: decoded values in front of a column family.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rocksdb::IteratorMode;

use super::budget::Share;
use super::cache::{Cache, Cached, Place};
use super::column::Column;
use super::error::RocksError;
use super::frozen::{FrozenRows, FrozenTable};
use super::instance::{Change, Core, Instance, RowBatch};
use super::row::{RowKey, between, head_of};
use super::tails::{Tails, joined};
use super::weigh::owned_bytes;
use crate::format::{Extent, FormatError, codec};
use crate::protocol::layers::{Layer, Selection};
use crate::state::hash::stable_hash;
use crate::state::pages::CopyLimit;
use crate::state::{
    FrozenState, Key, SnapshotForm, StateValue, SweepPosition, ValueTable, restore_entries,
};

/// One value state of an [`Instance`].
pub struct Table<K: RowKey, V: StateValue> {
    cache: Cache<K, V>,
    instance: Instance,
    column: Arc<Column>,
    share: Share,
    /// What changes are stamped with: one more than the snapshots of this table so far.
    generation: u32,
    /// RocksDB has all changes up to this generation.
    durable: Arc<AtomicU32>,
    /// Number of keys, as far as they have been in memory.
    len: usize,
    max_parallelism: u16,
    /// The page that gives something up next if values have grown.
    hand: usize,
    /// Number of entries that are in memory.
    entries: usize,
    /// What keys and values own outside of the pages, in the mean of late. Units: bytes an entry.
    owned: f64,
    /// Changes until an entry is weighed again.
    unweighed: u32,
    /// Operations that found what they looked for in memory, not yet counted.
    hits: u64,
    row_key: Vec<u8>,
    row_value: Vec<u8>,
    /// What was appended to lists that are not in memory.
    tails: Tails,
    /// The keys of the entries in memory by those of their rows, if [`RowKey::SORTED`].
    sorted: BTreeMap<Box<[u8]>, K::Mark>,
    /// The heads of maps of which all entries are in memory, one at least.
    resident: HashSet<Box<[u8]>>,
}

/// What an iteration over a map needs of a table.
pub(super) struct Parts<'a, K: RowKey, V> {
    pub(super) cache: &'a mut Cache<K, V>,
    pub(super) sorted: &'a BTreeMap<Box<[u8]>, K::Mark>,
    pub(super) resident: &'a mut HashSet<Box<[u8]>>,
    pub(super) core: &'a Arc<Core>,
    pub(super) column: &'a Arc<Column>,
}

/// What is appended to lists that are not in memory may take so small a part of the budget in each table.
const TAILS_OF_BUDGET: usize = 32;

/// With every so manyth change an entry is weighed.
const WEIGH_EVERY: u32 = 32;

#[cold]
pub(super) fn fail(column: &Column, error: &RocksError) -> ! {
    panic!("the state {} cannot be kept: {}", column.name, error.text())
}

impl<K: RowKey, V: StateValue> Table<K, V> {
    /// `column`: the name of its column.
    pub(super) fn new(instance: Instance, column: &str, max_parallelism: u16) -> Self {
        let column = instance.core().column(column);
        let mut share = Share::new(Arc::clone(&instance.core().setup.budget));
        share.set(Cache::<K, V>::PAGE_BYTES);
        Self {
            cache: Cache::new(),
            share,
            generation: 1,
            durable: Arc::new(AtomicU32::new(0)),
            len: 0,
            max_parallelism,
            hand: 0,
            entries: 0,
            owned: 0.0,
            unweighed: 1,
            hits: 0,
            row_key: Vec::new(),
            row_value: Vec::new(),
            tails: Tails::default(),
            sorted: BTreeMap::new(),
            resident: HashSet::new(),
            column,
            instance,
        }
    }

    /// Whether values and keys may own memory.
    const OWNS: bool = K::SORTED || std::mem::needs_drop::<K>() || std::mem::needs_drop::<V>();

    /// The entry of a key, from memory or from RocksDB.
    #[inline]
    pub(super) fn find(&mut self, hash: u64, key: K::Ref<'_>) -> Option<Place> {
        if let Some(place) = self.cache.find(hash, |found| found.is(key)) {
            self.hits += 1;
            return Some(place);
        }
        if self.column.has_rows.load(Ordering::Relaxed) { self.load(hash, key) } else { None }
    }

    #[cold]
    #[inline(never)]
    fn load(&mut self, hash: u64, key: K::Ref<'_>) -> Option<Place> {
        let (value, stamp) = match self.read(hash, key) {
            Ok(read) => read?,
            Err(error) => fail(&self.column, &error),
        };
        Some(self.keep(hash, key, value, stamp))
    }

    /// Keeps in memory what was read.
    pub(super) fn keep(&mut self, hash: u64, key: K::Ref<'_>, value: V, stamp: u32) -> Place {
        self.weigh(key, &value);
        self.push(hash, key, Cached { value: Some(value), stamp, used: true, added: false })
    }

    /// Adds an entry whose key is not in memory.
    fn push(&mut self, hash: u64, key: K::Ref<'_>, cached: Cached<V>) -> Place {
        self.make_room(hash);
        self.entries += 1;
        if K::SORTED {
            if let Err(error) = self.encode_row_key(hash, key) {
                fail(&self.column, &error.into());
            }
            self.sorted.insert(self.row_key.as_slice().into(), K::mark(key));
        }
        self.cache.push(hash, K::of(key), cached)
    }

    /// The value of a key that is not in memory, and its stamp: it has changed if there is something that was appended.
    fn read(&mut self, hash: u64, key: K::Ref<'_>) -> Result<Option<(V, u32)>, RocksError> {
        let core = Arc::clone(self.instance.core());
        core.counters.looked_up.fetch_add(1, Ordering::Relaxed);
        self.encode_row_key(hash, key)?;
        if self.tails.is_underway(Some(&self.row_key)) {
            self.wait_for_tails()?;
        }
        let Some(tail) = self.tails.take(&self.row_key)? else {
            let decode = |row: &[u8]| Ok((K::decode_value(row)?, 0));
            return core.get(&self.column, &self.row_key, decode);
        };
        let row = core.get(&self.column, &self.row_key, |row| Ok(row.to_vec()))?;
        let list = joined(row.iter().map(Vec::as_slice).chain([&tail[..]]))?;
        Ok(Some((codec::decode(&list)?, self.generation)))
    }

    fn encode_row_key(&mut self, hash: u64, key: K::Ref<'_>) -> Result<(), FormatError> {
        self.row_key.clear();
        K::encode(hash, key, self.max_parallelism, &mut self.row_key)
    }

    /// Waits until frozen tails are in RocksDB.
    fn wait_for_tails(&mut self) -> Result<(), RocksError> {
        self.instance.core().wait_until_it_may_write();
        if self.tails.is_underway(None) {
            let why = "elements that were appended are lost, since a snapshot failed";
            return Err(RocksError::Before(why.to_owned()));
        }
        Ok(())
    }

    /// Writes what was appended, if it may be written or has to be.
    fn write_tails(&mut self, must: bool) -> Result<(), RocksError> {
        let core = Arc::clone(self.instance.core());
        if self.tails.is_empty() || !core.may_write() && !must {
            return Ok(());
        }
        if self.tails.is_underway(None) || !core.may_write() {
            self.wait_for_tails()?;
        }
        let mut batch = RowBatch::new(&core, &self.column)?;
        self.tails.take_all().each(|key, list| batch.add(key, Change::Append(list)))?;
        batch.finish()
    }

    pub(super) fn weigh(&mut self, key: K::Ref<'_>, value: &V) {
        if Self::OWNS {
            self.weighed(K::owned_bytes(key) + owned_bytes(value));
        }
    }

    /// What an entry owns counts in the mean: much at once, little slowly, so that a few large values are not missed.
    fn weighed(&mut self, bytes: usize) {
        let difference = bytes as f64 - self.owned;
        self.owned += difference / if difference > 0.0 { 8.0 } else { 64.0 };
    }

    /// What pages and what is in them take. Units: bytes.
    fn bytes(&self) -> usize {
        let owned = (self.entries as f64 * self.owned) as usize;
        self.cache.pages() * Cache::<K, V>::PAGE_BYTES + owned
    }

    fn account(&mut self) {
        self.share.set(self.bytes() + self.tails.bytes());
    }

    /// An entry that is about to be changed.
    #[inline]
    fn change(&mut self, place: Place) -> &mut Cached<V> {
        self.cache.change(place, self.generation)
    }

    /// Weighs an entry, now and then; gives something up if values have grown.
    #[inline]
    fn mind_growth(&mut self, hash: u64) {
        if Self::OWNS {
            self.unweighed -= 1;
            if self.unweighed == 0 {
                self.weigh_another(hash);
            }
        }
    }

    /// Weighs any entry of the page that was used by now: the one in hand is about to be changed.
    #[cold]
    #[inline(never)]
    fn weigh_another(&mut self, hash: u64) {
        self.unweighed = WEIGH_EVERY;
        let entries = self.cache.entries(self.cache.page_of(hash));
        if entries.is_empty() {
            return;
        }
        let entry = &entries[hash as usize % entries.len()];
        let value = entry.value.value.as_ref().map_or(0, owned_bytes);
        let bytes = K::owned_bytes(entry.key.by_ref()) + value;
        self.weighed(bytes);
        self.account();
        self.shed();
    }

    /// Gives entries up while the table has more than it may, but looks at a few pages only.
    fn shed(&mut self) {
        for _ in 0..4 {
            if self.share.may_take(0, false) {
                return;
            }
            self.hand = (self.hand + 1) % self.cache.pages();
            // A shared page is not worth a copy.
            if !self.cache.is_shared(self.hand) {
                self.give_up(self.hand);
            }
            self.account();
        }
    }

    /// Sees to it that an entry with this hash can be added: its page is not full, or may not be anything else.
    fn make_room(&mut self, hash: u64) {
        if Self::OWNS && self.entries.is_multiple_of(64) {
            self.account();
            self.shed();
        }
        let mut reserved = false;
        while self.cache.is_full(hash) {
            if self.share.may_take(Cache::<K, V>::PAGE_BYTES, reserved) {
                if !self.cache.split(hash) {
                    return;
                }
                self.account();
            } else if self.give_up(self.cache.page_of(hash)) > 0 {
                // There is room now.
            } else if reserved {
                // Everything in it was changed, and a snapshot is being made.
                self.instance.core().wait_until_it_may_write();
            } else {
                reserved = true;
            }
        }
    }

    /// Gives up entries of a page: half of them or more, if they may be written. Returns how many.
    fn give_up(&mut self, page: usize) -> usize {
        match self.try_give_up(page) {
            Ok(given_up) => given_up,
            Err(error) => fail(&self.column, &error),
        }
    }

    fn try_give_up(&mut self, page: usize) -> Result<usize, RocksError> {
        let core = Arc::clone(self.instance.core());
        let may_write = core.may_write();
        let durable = self.durable.load(Ordering::Acquire);
        let entries = self.cache.entries(page);
        let may_go = |position: &usize| may_write || entries[*position].value.stamp <= durable;
        let unused = (0..entries.len()).filter(|position| !entries[*position].value.used);
        let mut positions: Vec<usize> = unused.filter(may_go).collect();
        let wanted = entries.len().div_ceil(2);
        if positions.len() < wanted {
            let used = (0..entries.len()).filter(|position| entries[*position].value.used);
            positions.extend(used.filter(may_go).take(wanted - positions.len()));
            positions.sort_unstable();
        }
        if may_write && positions.iter().any(|at| entries[*at].value.stamp > durable) {
            let mut batch = RowBatch::new(&core, &self.column)?;
            for entry in positions.iter().map(|position| &entries[*position]) {
                if entry.value.stamp <= durable {
                    continue;
                }
                self.row_key.clear();
                let key = entry.key.by_ref();
                K::encode(entry.hash, key, self.max_parallelism, &mut self.row_key)?;
                let change = match &entry.value.value {
                    Some(value) => {
                        self.row_value.clear();
                        K::encode_value(key, value, &mut self.row_value)?;
                        Change::Put(&self.row_value)
                    }
                    None => Change::Delete,
                };
                batch.add(&self.row_key, change)?;
            }
            batch.finish()?;
        }
        if K::SORTED {
            for entry in positions.iter().map(|position| &entries[*position]) {
                self.row_key.clear();
                let key = entry.key.by_ref();
                K::encode(entry.hash, key, self.max_parallelism, &mut self.row_key)?;
                self.sorted.remove(self.row_key.as_slice());
                self.resident.remove(head_of(&self.row_key)?);
            }
        }
        self.cache.give_up(page, &positions);
        self.cache.forget_use(page);
        self.entries -= positions.len();
        Ok(positions.len())
    }

    /// Adds an entry whose key is not in memory, and of which there is no row either.
    #[inline(never)]
    fn push_new(&mut self, hash: u64, key: K::Ref<'_>, value: Option<V>) -> Place {
        self.push(hash, key, Cached { value, stamp: self.generation, used: true, added: true })
    }

    /// Whether there is nothing in RocksDB and nobody is writing, so that nothing has to be remembered as removed. SUBTLE: asked in this
    /// order. A snapshot that ends in between has written rows, and who has seen its end sees that.
    fn nothing_is_below(&self) -> bool {
        self.instance.core().may_write() && !self.column.has_rows.load(Ordering::Relaxed)
    }

    /// Removes a key that is not in memory, and of which there is a row.
    pub(super) fn remove_unread(&mut self, hash: u64, key: K::Ref<'_>) {
        let stamp = self.generation;
        self.push(hash, key, Cached { value: None, stamp, used: true, added: false });
    }

    /// Forgets an entry: RocksDB has what it says, or nobody needs it.
    fn take(&mut self, hash: u64, key: K::Ref<'_>, place: Place) -> Result<Option<V>, RocksError> {
        if K::SORTED {
            self.encode_row_key(hash, key)?;
            self.sorted.remove(self.row_key.as_slice());
            let head = head_of(&self.row_key)?;
            if between(&self.sorted, head).next().is_none() {
                self.resident.remove(head);
            }
        }
        self.entries -= 1;
        Ok(self.cache.take(place).value)
    }

    /// Forgets keys that are in memory as removed, as far as RocksDB knows or can be told that. Returns whether it was all of them.
    pub(super) fn forget_removed<'a>(
        &mut self,
        keys: impl Iterator<Item = (u64, K::Ref<'a>)>,
    ) -> Result<bool, RocksError>
    where
        K: 'a,
    {
        let (core, column) = (Arc::clone(self.instance.core()), Arc::clone(&self.column));
        let (durable, may_write) = (self.durable.load(Ordering::Acquire), core.may_write());
        let nothing_is_below = self.nothing_is_below();
        let (mut all, mut batch) = (true, None);
        for (hash, key) in keys {
            let place = self.cache.find(hash, |found| found.is(key));
            let Some(place) = place else { continue };
            if self.cache.at(place).stamp > durable && !nothing_is_below {
                if !may_write {
                    all = false;
                    continue;
                }
                self.encode_row_key(hash, key)?;
                let batch = match &mut batch {
                    Some(batch) => batch,
                    None => batch.insert(RowBatch::new(&core, &column)?),
                };
                batch.add(&self.row_key, Change::Delete)?;
            }
            self.take(hash, key, place)?;
        }
        batch.map_or(Ok(()), RowBatch::finish)?;
        Ok(all)
    }

    #[cfg(test)]
    pub(super) fn instance(&self) -> &Instance {
        &self.instance
    }

    /// What pages, keys and values take, each of them weighed. Units: bytes.
    #[cfg(test)]
    pub(super) fn bytes_in_memory(&mut self) -> usize {
        let mut bytes = self.cache.pages() * Cache::<K, V>::PAGE_BYTES;
        for page in 0..self.cache.pages() {
            for entry in self.cache.entries(page) {
                bytes += K::owned_bytes(entry.key.by_ref());
                bytes += entry.value.value.as_ref().map_or(0, owned_bytes);
            }
        }
        bytes
    }

    #[inline]
    pub(super) fn get(&mut self, hash: u64, key: K::Ref<'_>) -> Option<&V> {
        let place = self.find(hash, key)?;
        let cached = self.cache.at(place);
        cached.used = true;
        cached.value.as_ref()
    }

    pub(super) fn insert(&mut self, hash: u64, key: K::Ref<'_>, value: V) -> Option<V> {
        self.mind_growth(hash);
        let Some(place) = self.find(hash, key) else {
            self.push_new(hash, key, Some(value));
            self.len += 1;
            return None;
        };
        let before = self.change(place).value.replace(value);
        self.len += usize::from(before.is_none());
        before
    }

    pub(super) fn remove(&mut self, hash: u64, key: K::Ref<'_>) -> Option<V> {
        let place = self.find(hash, key)?;
        let cached = self.cache.at(place);
        cached.value.as_ref()?;
        // Of a value it is remembered that there is no row: keys come and go, and each would be looked up again.
        let is_new = K::SORTED && cached.is_new(self.generation);
        self.len = self.len.saturating_sub(1);
        if is_new || self.nothing_is_below() {
            let taken = self.take(hash, key, place);
            return taken.unwrap_or_else(|error| fail(&self.column, &error));
        }
        self.change(place).value.take()
    }

    pub(super) fn freeze(&mut self, form: SnapshotForm) -> FrozenState {
        self.count_hits();
        self.account();
        let durable = self.durable.load(Ordering::Acquire);
        if self.tails.is_underway(None) && self.instance.core().may_write() {
            // Nobody writes them any more.
            let failed = self.wait_for_tails();
            failed.unwrap_or_else(|error| fail(&self.column, &error));
        }
        let bytes = self.bytes();
        let copies = CopyLimit {
            room: self.instance.core().clone(),
            entry_bytes: bytes / self.entries.max(1),
            may_wait: !self.instance.core().stays_in_memory(bytes),
        };
        let rows = Arc::new(FrozenRows::new(
            (self.cache.share_changed(durable, copies), self.tails.freeze()),
            durable,
            self.generation,
            Arc::clone(&self.durable),
            Arc::clone(&self.column),
            self.max_parallelism,
        ));
        let ticket = self.instance.join_snapshot(rows.clone(), bytes);
        self.generation += 1;
        // What stands alone is written entry by entry, whatever files were made.
        let files_suffice = form.may_be_files();
        let core = Arc::clone(self.instance.core());
        FrozenState {
            content: Box::new(FrozenTable::new(ticket, rows, core, files_suffice)),
            extent: Extent::Whole,
            needs: BTreeSet::new(),
            layer: false,
        }
    }

    pub(super) fn parts(&mut self) -> Parts<'_, K, V> {
        let Self { cache, sorted, resident, instance, column, .. } = self;
        Parts { cache, sorted, resident, core: instance.core(), column }
    }

    fn count_hits(&mut self) {
        let hits = std::mem::take(&mut self.hits);
        self.instance.counters().hits.fetch_add(hits, Ordering::Relaxed);
    }
}

impl<K: Key, V: StateValue> Table<K, V> {
    /// Gives the rows of RocksDB whose keys are not in memory.
    fn try_each_row(&mut self, visit: &mut impl FnMut(&K, &V)) -> Result<(), RocksError> {
        self.write_tails(true)?;
        if self.tails.is_underway(None) {
            self.wait_for_tails()?;
        }
        let core = Arc::clone(self.instance.core());
        let Some(database) = core.opened() else { return Ok(()) };
        let column = Arc::clone(&self.column);
        for family in column.families.iter().filter_map(|name| database.cf_handle(name)) {
            for row in database.iterator_cf(&family, IteratorMode::Start) {
                let (key, value) =
                    row.map_err(RocksError::database(database.path(), "read the rows"))?;
                let key: K = codec::decode(key.get(2..).unwrap_or_default())?;
                if self.cache.find(stable_hash(&key), |found| *found == key).is_none() {
                    visit(&key, &codec::decode(&value)?);
                }
            }
        }
        Ok(())
    }
}

impl<K: Key, T: StateValue> Table<K, Vec<T>> {
    /// Adds an element at the end of a list, which is not read for it.
    pub(crate) fn append(&mut self, hash: u64, key: &K, element: T) {
        if self.cache.find(hash, |found| found == key).is_none()
            && self.column.has_rows.load(Ordering::Relaxed)
        {
            if let Err(error) = self.append_unread(hash, key, &element) {
                fail(&self.column, &error);
            }
        } else {
            self.get_or_insert_with(hash, key, &mut Vec::new).push(element);
        }
    }

    fn append_unread(&mut self, hash: u64, key: &K, element: &T) -> Result<(), RocksError> {
        self.instance.counters().appended.fetch_add(1, Ordering::Relaxed);
        self.encode_row_key(hash, key)?;
        self.tails.append(&self.row_key, |elements| codec::encode(element, elements))?;
        let most = self.instance.core().setup.budget.total_bytes() / TAILS_OF_BUDGET;
        if self.tails.bytes() < most {
            return Ok(());
        }
        // While a snapshot is made they may take twice as much.
        self.write_tails(self.tails.bytes() > 2 * most)?;
        self.account();
        self.shed();
        Ok(())
    }
}

impl<K: Key, V: StateValue> ValueTable<K, V> for Table<K, V> {
    fn prefetch(&self, hashes: &[u64]) {
        if self.cache.pages() > 64 {
            self.cache.prefetch(hashes);
        }
    }

    #[inline]
    fn get(&mut self, hash: u64, key: &K) -> Option<&V> {
        self.get(hash, key)
    }

    #[inline]
    fn get_mut(&mut self, hash: u64, key: &K) -> Option<&mut V> {
        self.mind_growth(hash);
        let place = self.find(hash, key)?;
        self.cache.at(place).value.as_ref()?;
        self.change(place).value.as_mut()
    }

    #[inline]
    fn get_or_insert_with(&mut self, hash: u64, key: &K, value: &mut dyn FnMut() -> V) -> &mut V {
        self.mind_growth(hash);
        let place = match self.find(hash, key) {
            Some(place) => place,
            None => self.push_new(hash, key, None),
        };
        let (generation, len) = (self.generation, &mut self.len);
        self.cache.change(place, generation).value.get_or_insert_with(|| {
            *len += 1;
            value()
        })
    }

    fn insert(&mut self, hash: u64, key: &K, value: V) -> Option<V> {
        self.insert(hash, key, value)
    }

    fn remove(&mut self, hash: u64, key: &K) -> Option<V> {
        self.remove(hash, key)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn freeze(&mut self, form: SnapshotForm) -> FrozenState {
        self.freeze(form)
    }

    fn for_each(&mut self, mut visit: impl FnMut(&K, &V)) {
        if let Err(error) = self.try_each_row(&mut visit) {
            fail(&self.column, &error);
        }
        for page in 0..self.cache.pages() {
            for entry in self.cache.entries(page) {
                if let Some(value) = &entry.value.value {
                    visit(&entry.key, value);
                }
            }
        }
    }

    /// Files know by themselves what has changed.
    fn restored(&mut self, _layers: Vec<Layer>) {}

    /// Looks at entries in memory only: RocksDB drops expired rows when it compacts files.
    fn sweep(
        &mut self,
        position: &mut SweepPosition,
        entries: usize,
        mut expired: impl FnMut(&V) -> bool,
    ) -> usize {
        let (mut left, mut removed) = (entries, 0);
        for _ in 0..self.cache.pages().min(1 + entries) {
            if position.page >= self.cache.pages() {
                position.page = 0;
            }
            // A shared page is not worth a copy: the snapshot will be done with it.
            if !self.cache.is_shared(position.page) {
                let (looked, gone) = self.cache.remove_expired(
                    position.page,
                    &mut position.entry,
                    left,
                    self.generation,
                    &mut expired,
                );
                left -= looked;
                removed += gone;
                if left == 0 {
                    break;
                }
            }
            position.entry = 0;
            position.page += 1;
        }
        self.len = self.len.saturating_sub(removed);
        removed
    }

    fn expired_until(&mut self, written: i64) {
        self.column.expired.store(written, Ordering::Relaxed);
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
                Some(value) => {
                    self.weigh(key, &value);
                    self.insert(hash, key, value).is_some()
                }
                None => self.remove(hash, key).is_some(),
            }
        })
    }
}

impl<K: RowKey, V: StateValue> std::fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("column", &self.column.name).finish_non_exhaustive()
    }
}

impl<K: RowKey, V: StateValue> Drop for Table<K, V> {
    fn drop(&mut self) {
        self.count_hits();
    }
}
