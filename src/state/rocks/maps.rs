//! A map state: one row for each entry, with the decoded values of some entries in front.
//!
//! ```text
//! OneMap -- get, insert, remove --> Table of EntryKey --(miss)--> row
//!    |                                 |  sorted keys of what is in memory
//!    +------ entries ------------------+--(merged)--> rows that begin with the head, in their order
//! ```
//! The entries of all maps are in one [`Table`], under hashes that spread those of one map too; so what is said there of
//! caching, giving up and freezing holds for each entry by itself.
//!
//! # Iteration
//! Rows come from an iterator of RocksDB, and what is in memory by the table's index, which has the keys of exactly the
//! entries in memory in the order of their rows. Both are merged, and memory counts: it is as new or newer. Nothing
//! is put into memory, so nothing is given up meanwhile, and iteration takes as much memory as one entry does.
//!
//! A small map is read into memory first. Then it is *resident*, until one of its entries is given up: all that there is of it
//! is in memory, and iterating over it once more asks RocksDB nothing.
//!
//! An entry that was removed stays in memory, without a value, until it is given up; but one that was added since the last
//! snapshot is nowhere else, and goes at once. So that a map may be a queue, an iteration begins by telling RocksDB of removed entries that
//! come first, if there are some, unless a snapshot is being made, and forgets them.
//!
//! # Clearing
//! Of a map with few rows each is removed like an entry. Of a larger one, what is in memory is removed like entries, and the
//! rows are deleted as one range, for which the worker waits until it may write: a snapshot that is being made does not
//! notice.
//!
//! # Failure
//! As of a [`Table`]: a worker that cannot read or write its state panics.

use std::cmp::Ordering::{Greater, Less};
use std::collections::{BTreeMap, btree_map};
use std::iter::Peekable;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rocksdb::{DBRawIteratorWithThreadMode, ReadOptions};

use super::cache::Cache;
use super::column::Column;
use super::error::RocksError;
use super::instance::{Change, Core, Database, Instance, RowBatch};
use super::row::{
    EntryKey, EntryRef, RowKey, behind, between, column_of_entries, decode_entry, encode_head,
};
use super::table::{Parts, Table, fail};
use crate::format::{FormatError, codec};
use crate::protocol::layers::Selection;
use crate::state::{FrozenState, Key, MapKey, SnapshotForm, StateValue, restore_entries};

/// A map of more rows is cleared by deleting their range.
const CLEARED_ONE_BY_ONE: usize = 64;

/// A map of no more rows, and of no more bytes in them, is read into memory to be iterated over.
const SMALL_ROWS: usize = 32;
const SMALL_BYTES: usize = 32 << 10;

/// So many removed entries at the beginning of a map are forgotten together: fewer are not worth it, more are forgotten one
/// lot after the other.
const FORGOTTEN_MIN: usize = 16;
const FORGOTTEN_MAX: usize = 256;

/// One map state of an [`Instance`].
pub struct MapTable<K: Key, M: MapKey, V: StateValue> {
    entries: Table<EntryKey<K, M>, V>,
    max_parallelism: u16,
}

/// The map of one key.
pub struct OneMap<'a, K: Key, M: MapKey, V: StateValue> {
    table: &'a mut MapTable<K, M, V>,
    hash: u64,
    key: &'a K,
}

impl<K: Key, M: MapKey, V: StateValue> std::fmt::Debug for MapTable<K, M, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MapTable").field("entries", &self.entries).finish_non_exhaustive()
    }
}

impl<K: Key, M: MapKey, V: StateValue> std::fmt::Debug for OneMap<'_, K, M, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OneMap").field("hash", &self.hash).finish_non_exhaustive()
    }
}

impl Instance {
    /// Makes the table of the map state `name`.
    #[must_use]
    pub fn map_table<K: Key, M: MapKey, V: StateValue>(
        &self,
        name: &str,
        max_parallelism: u16,
    ) -> MapTable<K, M, V> {
        let entries = Table::new(self.clone(), &column_of_entries(name), max_parallelism);
        MapTable { entries, max_parallelism }
    }
}

impl<K: Key, M: MapKey, V: StateValue> MapTable<K, M, V> {
    /// The map of a key, of which `hash` is the [stable hash](crate::state::hash::stable_hash).
    #[inline]
    pub fn map<'a>(&'a mut self, hash: u64, key: &'a K) -> OneMap<'a, K, M, V> {
        OneMap { table: self, hash, key }
    }

    /// As [`ValueTable::freeze`](crate::state::ValueTable::freeze).
    pub fn freeze(&mut self, form: SnapshotForm) -> FrozenState {
        self.entries.freeze(form)
    }

    /// As [`ValueTable::restore_block_as`](crate::state::ValueTable::restore_block_as), of blocks with a map for each key.
    ///
    /// # Errors
    /// As there. A key that is there twice is noticed by an entry that both have.
    pub fn restore_block_as<W: serde::de::DeserializeOwned>(
        &mut self,
        selection: &Selection<'_>,
        entries: u32,
        bytes: &[u8],
        convert: impl FnMut(W) -> Option<BTreeMap<M, V>>,
    ) -> Result<(), FormatError> {
        let groups = self.max_parallelism;
        restore_entries(selection, groups, entries, bytes, convert, |hash, key: &K, map| {
            let mut its = self.map(hash, key);
            if selection.changes {
                its.clear();
            }
            let mut twice = false;
            for (entry, value) in map.into_iter().flatten() {
                let by = its.by(&entry);
                its.table.entries.weigh(by, &value);
                twice |= its.insert(entry, value).is_some();
            }
            twice
        })
    }

    fn head(&self, hash: u64, key: &K) -> Result<Vec<u8>, FormatError> {
        let mut head = Vec::new();
        encode_head(hash, key, self.max_parallelism, &mut head)?;
        Ok(head)
    }

    #[cfg(test)]
    pub(super) fn table(&mut self) -> &mut Table<EntryKey<K, M>, V> {
        &mut self.entries
    }
}

impl<'a, K: Key, M: MapKey, V: StateValue> OneMap<'a, K, M, V> {
    fn by<'b>(&self, entry: &'b M) -> EntryRef<'b, K, M>
    where
        'a: 'b,
    {
        EntryRef { hash: self.hash, key: self.key, entry }
    }

    /// The value of an entry, if there is one.
    pub fn get(&mut self, entry: &M) -> Option<&V> {
        let by = self.by(entry);
        self.table.entries.get(by.table_hash(), by)
    }

    /// Sets the value of an entry, and returns the one before.
    pub fn insert(&mut self, entry: M, value: V) -> Option<V> {
        let by = self.by(&entry);
        self.table.entries.insert(by.table_hash(), by, value)
    }

    /// Removes an entry, and returns its value.
    pub fn remove(&mut self, entry: &M) -> Option<V> {
        let by = self.by(entry);
        self.table.entries.remove(by.table_hash(), by)
    }

    /// The entries, in the order of their rows: that of the entry keys, by `Ord` as it is derived.
    pub fn iter(&mut self) -> Entries<'_, K, M, V> {
        let (hash, key) = (self.hash, self.key);
        let head = self.table.head(hash, key).map_err(RocksError::from);
        let head = head.and_then(|head| {
            self.forget_first_removed(&head)?;
            Ok((self.make_resident(&head)?, head))
        });
        let Parts { cache, sorted, core, column, .. } = self.table.entries.parts();
        let found = head.and_then(|(resident, head)| {
            let rows = if resident { None } else { rows_of(core, column, &head)? };
            Ok((between(sorted, &head).peekable(), rows))
        });
        match found {
            Ok((in_memory, rows)) => {
                Entries { hash, key, cache, in_memory, rows, core, column, read: 0 }
            }
            Err(error) => fail(column, &error),
        }
    }

    /// Forgets the first entries that are in memory if they were removed: where a map is a queue they would be passed by each iteration.
    fn forget_first_removed(&mut self, head: &[u8]) -> Result<(), RocksError> {
        loop {
            let Parts { sorted, cache, .. } = self.table.entries.parts();
            let in_memory = between(sorted, head).map(|(_, entry)| entry);
            let is_removed = |entry: &&M| {
                let by = EntryRef { hash: self.hash, key: self.key, entry: *entry };
                let place = cache.find(by.table_hash(), |found| found.is(by));
                place.is_some_and(|place| cache.at(place).value.is_none())
            };
            let removed = in_memory.take(FORGOTTEN_MAX).take_while(is_removed).cloned();
            let removed: Vec<M> = removed.collect();
            if removed.len() < FORGOTTEN_MIN {
                return Ok(());
            }
            let keys = removed.iter().map(|entry| {
                let by = EntryRef { hash: self.hash, key: self.key, entry };
                (by.table_hash(), by)
            });
            if !self.table.entries.forget_removed(keys)? {
                return Ok(());
            }
        }
    }

    /// Reads a small map into memory. Returns whether all that there is of the map is there.
    fn make_resident(&mut self, head: &[u8]) -> Result<bool, RocksError> {
        let Parts { sorted, resident, core, column, .. } = self.table.entries.parts();
        if resident.contains(head) {
            return Ok(true);
        }
        let Some(mut rows) = rows_of(core, column, head)? else { return Ok(true) };
        let (mut seen, mut bytes, mut others) = (0, 0, Vec::new());
        while let Some((key, value)) = rows.item() {
            seen += 1;
            bytes += value.len();
            if seen > SMALL_ROWS || bytes > SMALL_BYTES {
                return Ok(false);
            }
            if !sorted.contains_key(key) {
                others.push(decode_entry::<M, V>(value)?);
            }
            rows.next();
        }
        check(core, &rows)?;
        drop(rows);
        core.counters.iterated.fetch_add(others.len() as u64, Ordering::Relaxed);
        if others.is_empty() && between(sorted, head).next().is_none() {
            // Nothing would be given up when there is something again.
            return Ok(true);
        }
        // From now on it is forgotten with the first entry that is given up.
        resident.insert(head.into());
        for (entry, value) in others {
            let by = self.by(&entry);
            self.table.entries.keep(by.table_hash(), by, value, 0);
        }
        Ok(self.table.entries.parts().resident.contains(head))
    }

    /// Removes all entries.
    pub fn clear(&mut self) {
        if let Err(error) = self.try_clear() {
            fail(self.table.entries.parts().column, &error);
        }
    }

    fn try_clear(&mut self) -> Result<(), RocksError> {
        let head = self.table.head(self.hash, self.key)?;
        let Parts { sorted, resident, core, column, .. } = self.table.entries.parts();
        let (core, column) = (Arc::clone(core), Arc::clone(column));
        let in_memory: Vec<M> = between(sorted, &head).map(|(_, entry)| entry.clone()).collect();
        let mut others: Vec<M> = Vec::new();
        if !resident.contains(head.as_slice())
            && let Some(mut rows) = rows_of(&core, &column, &head)?
        {
            while others.len() <= CLEARED_ONE_BY_ONE
                && let Some((key, value)) = rows.item()
            {
                if !sorted.contains_key(key) {
                    others.push(codec::decode_prefix(value)?.0);
                }
                rows.next();
            }
            check(&core, &rows)?;
        }
        for entry in &in_memory {
            self.remove(entry);
        }
        if others.len() <= CLEARED_ONE_BY_ONE {
            for entry in &others {
                let by = self.by(entry);
                self.table.entries.remove_unread(by.table_hash(), by);
            }
            return Ok(());
        }
        if !core.may_write() {
            core.wait_until_it_may_write();
        }
        let mut batch = RowBatch::new(&core, &column)?;
        batch.add(&head, Change::DeleteUntil(&behind(&head)))?;
        batch.finish()
    }
}

/// Rows of one column family.
type RawRows<'a> = DBRawIteratorWithThreadMode<'a, Database>;

/// The rows that begin with `head`. `None`: there is none.
fn rows_of<'a>(
    core: &'a Core,
    column: &Column,
    head: &[u8],
) -> Result<Option<RawRows<'a>>, RocksError> {
    if !column.has_rows.load(Ordering::Relaxed) {
        return Ok(None);
    }
    let database = core.database()?;
    let family = &column.families[column.partition_of(head)];
    let Some(family) = database.cf_handle(family) else { return Ok(None) };
    let mut reading = ReadOptions::default();
    reading.set_iterate_upper_bound(behind(head));
    let mut rows = database.raw_iterator_cf_opt(&family, reading);
    rows.seek(head);
    Ok(Some(rows))
}

/// Whether rows have ended because there are no more.
fn check(core: &Core, rows: &RawRows<'_>) -> Result<(), RocksError> {
    rows.status().map_err(RocksError::database(&core.path(), "iterate over a map"))
}

/// The entries of one map, one after the other.
pub struct Entries<'a, K: Key, M: MapKey, V: StateValue> {
    hash: u64,
    key: &'a K,
    cache: &'a mut Cache<EntryKey<K, M>, V>,
    in_memory: Peekable<btree_map::Range<'a, Box<[u8]>, M>>,
    rows: Option<RawRows<'a>>,
    core: &'a Core,
    column: &'a Column,
    /// How many rows were decoded.
    read: u64,
}

impl<K: Key, M: MapKey, V: StateValue> std::fmt::Debug for Entries<'_, K, M, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entries").field("hash", &self.hash).finish_non_exhaustive()
    }
}

impl<K: Key, M: MapKey, V: StateValue> Entries<'_, K, M, V> {
    fn try_next(&mut self) -> Result<Option<(M, V)>, RocksError> {
        loop {
            // Rows end as well when one cannot be read: who asks for no more must not take that for their end.
            if let Some(rows) = self.rows.take_if(|rows| !rows.valid()) {
                check(self.core, &rows)?;
            }
            let row = self.rows.as_ref().and_then(DBRawIteratorWithThreadMode::item);
            let in_memory = self.in_memory.peek();
            let order = match (&row, &in_memory) {
                (None, None) => return Ok(None),
                (Some(_), None) => Less,
                (None, Some(_)) => Greater,
                (Some((row, _)), Some((there, _))) => (**row).cmp(there),
            };
            let decoded = match row {
                Some((_, row)) if order == Less => Some(decode_entry(row)?),
                _ => None,
            };
            if order != Greater
                && let Some(rows) = &mut self.rows
            {
                rows.next();
            }
            if decoded.is_some() {
                self.read += 1;
                return Ok(decoded);
            }
            let Some((_, entry)) = self.in_memory.next() else { continue };
            let by = EntryRef { hash: self.hash, key: self.key, entry };
            let place = self.cache.find(by.table_hash(), |found| found.is(by));
            let place = place.expect("the index has the keys of the entries in memory");
            // Without a value it was removed.
            if let Some(value) = &self.cache.at(place).value {
                return Ok(Some((entry.clone(), value.clone())));
            }
        }
    }
}

impl<K: Key, M: MapKey, V: StateValue> Iterator for Entries<'_, K, M, V> {
    type Item = (M, V);

    fn next(&mut self) -> Option<(M, V)> {
        self.try_next().unwrap_or_else(|error| fail(self.column, &error))
    }
}

impl<K: Key, M: MapKey, V: StateValue> Drop for Entries<'_, K, M, V> {
    fn drop(&mut self) {
        self.core.counters.iterated.fetch_add(self.read, Ordering::Relaxed);
    }
}
