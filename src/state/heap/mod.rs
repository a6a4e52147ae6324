//! Keyed state in memory, in pages that a snapshot shares until they change.
//!
//! ```text
//! hash:  [ directory bits | ..................... | tag | home slot ]
//!              |
//! directory: [0, 0, 1, 2] --> pages: [Owned, Shared, Owned]
//!                                              |
//!                               frozen snapshot's list of shared pages
//! ```
//! A page holds the entries of one range of hashes, and the directory maps each prefix of a hash to its page
//! (extendible hashing). A full page splits by the next bit of the hash; nothing is ever rehashed as a whole.
//! As the key group is a monotone function of the hash, pages sorted by prefix are sorted by key group.
//!
//! # Ownership
//! The worker owns its pages by value, so that no record pays for an atomic operation. Freezing moves each page
//! behind an `Arc<Mutex<_>>` that the table and the snapshot share: a pass over the pages, not the entries. The
//! first operation on a shared page takes it back if all snapshots are done with it, or else copies it; reads
//! too, because a reference to a value cannot outlive the lock. A shared page never changes: copies do. Keys and
//! values need not be `Sync`, hence the mutex and not a bare `Arc`.
//!
//! A page that is still shared has not been touched since the last freeze.
//!
//! # Bounds
//! Pages never merge: a table that shrinks keeps its pages, underfull, until the state is restored. The directory
//! stays below 2^24 prefixes or 16 a page, whichever is more, even if keys were chosen to have one prefix; then
//! the page grows beyond its capacity and searching the excess is linear.
//!
//! # Source
//! Fagin, Nievergelt, Pippenger, Strong 1979, extendible hashing.

mod frozen;
mod page;
mod table;

use super::{Key, StateBackend, StateValue, ValueTable};

/// Keeps state in memory. State must fit there; snapshots copy no more than what changes while they are written.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeapBackend;

impl StateBackend for HeapBackend {
    fn value_table<K: Key, V: StateValue>(
        &self,
        max_parallelism: u16,
    ) -> Box<dyn ValueTable<K, V>> {
        Box::new(table::Table::new(max_parallelism))
    }
}
