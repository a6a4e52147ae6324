//! Map state on the backend of the job: a map whole for each key, or a row for each entry.
//!
//! | backend | lives for ever    | expires |
//! |---------|-------------------|---------|
//! | heap    | whole             | whole   |
//! | RocksDB | a row an entry    | whole   |
//!
//! A map that expires has one time of its last update, so it is one value; one that does not is nothing but its entries.

use std::borrow::Cow;
use std::collections::{BTreeMap, btree_map};
use std::ops::Range;

use crate::format::FormatError;
use crate::protocol::layers::Layer;
use crate::runtime::lifetime::{Cell, Lifetime};
use crate::runtime::states::HeldTable;
#[cfg(feature = "rocksdb")]
use crate::state::rocks;
use crate::state::{
    Backend, BackendTable, FrozenState, Key, MapKey, Selection, SnapshotForm, StateValue,
    SweepPosition,
};

/// The maps of all keys of one worker.
#[derive(Debug)]
#[non_exhaustive]
pub enum Maps<K: Key, M: MapKey, V: StateValue, L: Lifetime> {
    /// A map for each key.
    Whole(BackendTable<K, L::Stored<BTreeMap<M, V>>>),
    /// A row for each entry.
    #[cfg(feature = "rocksdb")]
    Rows(rocks::MapTable<K, M, V>),
}

impl<K: Key, M: MapKey, V: StateValue, L: Lifetime> Maps<K, M, V, L> {
    /// Access to the map of one key.
    #[inline]
    pub(crate) fn map<'a>(
        &'a mut self,
        clock: L::Clock,
        hash: u64,
        key: &'a K,
    ) -> OneMap<'a, K, M, V, L> {
        match self {
            Self::Whole(table) => OneMap::Whole(Cell { table, clock, hash, key }),
            #[cfg(feature = "rocksdb")]
            Self::Rows(table) => OneMap::Rows(table.map(hash, key)),
        }
    }
}

impl<K: Key, M: MapKey, V: StateValue, L: Lifetime> HeldTable<K, L::Stored<BTreeMap<M, V>>>
    for Maps<K, M, V, L>
{
    fn open(
        backend: &Backend,
        name: Option<&str>,
        max_parallelism: u16,
        groups: &Range<u16>,
    ) -> Self {
        #[cfg(feature = "rocksdb")]
        if let (Backend::Rocks(instance), Some(name), false) = (backend, name, L::EXPIRES) {
            return Self::Rows(instance.map_table(name, max_parallelism));
        }
        Self::Whole(HeldTable::open(backend, name, max_parallelism, groups))
    }

    fn restore<W: serde::de::DeserializeOwned>(
        &mut self,
        selection: &Selection<'_>,
        entries: u32,
        bytes: &[u8],
        convert: impl FnMut(W) -> Option<L::Stored<BTreeMap<M, V>>>,
    ) -> Result<(), FormatError> {
        match self {
            Self::Whole(table) => table.restore(selection, entries, bytes, convert),
            #[cfg(feature = "rocksdb")]
            Self::Rows(table) => {
                let mut convert = convert;
                let convert = |value| convert(value).map(L::into_value);
                table.restore_block_as(selection, entries, bytes, convert)
            }
        }
    }

    fn restored(&mut self, layers: Vec<Layer>) {
        match self {
            Self::Whole(table) => table.restored(layers),
            // Files know by themselves what has changed.
            #[cfg(feature = "rocksdb")]
            Self::Rows(_) => {}
        }
    }

    #[inline]
    fn prefetch(&self, hashes: &[u64]) {
        match self {
            Self::Whole(table) => HeldTable::prefetch(table, hashes),
            // Which entries will be wanted is not known.
            #[cfg(feature = "rocksdb")]
            Self::Rows(_) => {}
        }
    }

    fn freeze(&mut self, form: SnapshotForm) -> FrozenState {
        match self {
            Self::Whole(table) => HeldTable::freeze(table, form),
            #[cfg(feature = "rocksdb")]
            Self::Rows(table) => table.freeze(form),
        }
    }

    fn expired_until(&mut self, written: i64) {
        match self {
            Self::Whole(table) => HeldTable::expired_until(table, written),
            #[cfg(feature = "rocksdb")]
            Self::Rows(_) => {}
        }
    }

    fn sweep(
        &mut self,
        position: &mut SweepPosition,
        entries: usize,
        expired: impl FnMut(&L::Stored<BTreeMap<M, V>>) -> bool,
    ) {
        match self {
            Self::Whole(table) => HeldTable::sweep(table, position, entries, expired),
            #[cfg(feature = "rocksdb")]
            Self::Rows(_) => {}
        }
    }
}

/// The map of one key.
#[derive(Debug)]
pub(crate) enum OneMap<'a, K: Key, M: MapKey, V: StateValue, L: Lifetime> {
    Whole(Cell<'a, K, BTreeMap<M, V>, L>),
    #[cfg(feature = "rocksdb")]
    Rows(rocks::OneMap<'a, K, M, V>),
}

impl<K: Key, M: MapKey, V: StateValue, L: Lifetime> OneMap<'_, K, M, V, L> {
    pub(crate) fn get(&mut self, entry: &M) -> Option<&V> {
        match self {
            Self::Whole(cell) => cell.get()?.get(entry),
            #[cfg(feature = "rocksdb")]
            Self::Rows(map) => map.get(entry),
        }
    }

    pub(crate) fn insert(&mut self, entry: M, value: V) -> Option<V> {
        match self {
            Self::Whole(cell) => cell.or_insert_with(BTreeMap::new).insert(entry, value),
            #[cfg(feature = "rocksdb")]
            Self::Rows(map) => map.insert(entry, value),
        }
    }

    pub(crate) fn remove(&mut self, entry: &M) -> Option<V> {
        match self {
            Self::Whole(cell) => {
                // What is not there is not an update.
                cell.get()?.get(entry)?;
                let map = cell.get_mut()?;
                let value = map.remove(entry);
                if map.is_empty() {
                    cell.take();
                }
                value
            }
            #[cfg(feature = "rocksdb")]
            Self::Rows(map) => map.remove(entry),
        }
    }

    pub(crate) fn iter(&mut self) -> Entries<'_, K, M, V> {
        match self {
            Self::Whole(cell) => Entries::Whole(cell.get().map(BTreeMap::iter), KeyOf::default()),
            #[cfg(feature = "rocksdb")]
            Self::Rows(map) => Entries::Rows(map.iter()),
        }
    }

    pub(crate) fn clear(&mut self) {
        match self {
            Self::Whole(cell) => drop(cell.take()),
            #[cfg(feature = "rocksdb")]
            Self::Rows(map) => map.clear(),
        }
    }
}

/// Says whose entries they are.
type KeyOf<K> = std::marker::PhantomData<fn() -> K>;

/// The entries of one map: references where it is in memory, decoded rows otherwise.
pub(crate) enum Entries<'a, K: Key, M: MapKey, V: StateValue> {
    Whole(Option<btree_map::Iter<'a, M, V>>, KeyOf<K>),
    #[cfg(feature = "rocksdb")]
    Rows(rocks::Entries<'a, K, M, V>),
}

impl<'a, K: Key, M: MapKey, V: StateValue> Iterator for Entries<'a, K, M, V> {
    type Item = (Cow<'a, M>, Cow<'a, V>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Whole(entries, _) => {
                let (entry, value) = entries.as_mut()?.next()?;
                Some((Cow::Borrowed(entry), Cow::Borrowed(value)))
            }
            #[cfg(feature = "rocksdb")]
            Self::Rows(entries) => {
                let (entry, value) = entries.next()?;
                Some((Cow::Owned(entry), Cow::Owned(value)))
            }
        }
    }
}
