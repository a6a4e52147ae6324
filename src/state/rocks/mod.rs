//! Keyed state in RocksDB, with the decoded values of hot keys in memory.
//!
//! ```text
//! worker ── Table ── cache of decoded values ──(given up)──> column family ┐
//!             │                                                            ├─ instance: one operator on one worker
//!             └──(frozen: changed pages are shared)──> snapshot thread ────┘      │
//!                                                                                 └─> hard links, then storage
//! ```
//! One instance belongs to one operator and worker, and not to all operators of a worker: operators of a worker pass a barrier at
//! different moments, so there is none at which hard links to the files of a common instance would be a consistent cut of
//! all. The instances of a process share one [`Budget`] of memory.
//!
//! # Rows
//! The key group, two bytes with the high one first, and the key; then the value, both as a savepoint has them. So rows
//! are in the order of their key groups, those of some key groups are one range, and a savepoint is a copy of the rows. A state is
//! cut by key groups into several column families, so that files can be rewritten piece by piece: see `column` and `merging`.
//!
//! What is appended to a list that is not in memory is merged behind its row, unread: see `tails`.
//!
//! # Maps
//! A map has a row for each entry, behind the key and in the order of the entries: see `row`. So one entry is read and
//! written by itself, iteration takes no more memory than an entry, and a map may be much larger than memory: see
//! `maps`. A savepoint has the map of a key as one entry, as the heap writes it; for that the rows of one key are put together
//! in memory, and so it is when a map is restored from there. A map with a time to live is one row, since it lives as a
//! whole.
//!
//! # Snapshots
//! The worker shares the pages that have changed, which takes a pass over the pages. A thread of the instance writes their
//! changed entries, flushes, and makes a directory of hard links. Until then the worker writes nothing, so that nothing
//! of a later epoch gets in; what it changes stays in memory, beyond the usual limit by a reserve that is part of the
//! budget, and so are the copies that it makes of pages which the thread has not read yet. If that is used up it waits for the
//! thread, which depends on nothing that the worker holds.
//!
//! An instance that was never opened and is small makes no files: its entries are written as the heap backend writes them.
//!
//! # Rescaling
//! A worker takes over the files of the instance that has most of its key groups, and deletes the others' as ranges; of
//! other instances it copies the rows of its key groups, which are one range in each column family, into files that
//! RocksDB takes in as they are. So files are not rewritten as a whole.
//!
//! # Source
//! The layout of rows and the choice of the fullest instance at a rescale: Apache Flink.

mod budget;
mod cache;
mod column;
mod error;
mod frozen;
mod instance;
mod maps;
mod merging;
mod options;
mod restore;
mod row;
mod sorting;
mod table;
mod tails;
mod weigh;

pub use budget::Budget;
pub use error::RocksError;
pub use instance::{Instance, InstanceCounters, LocalSnapshot, Setup, Ticket};
pub use maps::{Entries, MapTable, OneMap};
pub use options::Profile;
pub use restore::{Reader, Source};
pub use row::{EntryKey, EntryRef, RowKey};
pub use table::Table;

use std::ops::Range;

use super::{Key, StateBackend, StateValue};

/// The name of the backend in manifests.
pub const BACKEND: &str = "rocksdb";

/// The version of the files: that of RocksDB's own format, of the rows, and of the column families. Version 1 has one family for
/// a state; since version 3 a map that does not expire has a row for each entry.
pub const FORMAT_VERSION: u16 = 3;

/// The first version of the files with a row for each entry of a map that does not expire.
pub const ENTRIES_SINCE: u16 = 3;

impl StateBackend for Instance {
    type Table<K: Key, V: StateValue> = Table<K, V>;

    fn value_table<K: Key, V: StateValue>(
        &self,
        max_parallelism: u16,
        groups: &Range<u16>,
    ) -> Table<K, V> {
        self.named_table(&self.unnamed(), max_parallelism, groups)
    }

    fn named_table<K: Key, V: StateValue>(
        &self,
        name: &str,
        max_parallelism: u16,
        _groups: &Range<u16>,
    ) -> Table<K, V> {
        Table::new(self.clone(), name, max_parallelism)
    }
}

#[cfg(test)]
mod maps_tests;
#[cfg(test)]
mod tests;
