//! Pages that a table shares with snapshots, in chunks, so that freezing allocates once for many.
//!
//! # States
//! Of a page in a chunk: *read* by snapshots, and the table's; *read*, and copied by the table: the last reader drops it; read by
//! nobody: the table may take it back. Whoever changes that holds the page's lock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Slot;
use super::page::Page;

/// Pages of a chunk. A chunk lives as long as one of them is shared.
const CHUNK_PAGES: usize = 64;

struct Cell<K, V> {
    page: Option<Page<K, V>>,
    /// Snapshots that have not written it yet.
    readers: u32,
    /// The table has a copy of its own.
    copied: bool,
}

type Chunk<K, V> = Arc<[Mutex<Cell<K, V>>]>;

/// The table's side of a shared page.
pub(super) struct SharedPage<K, V> {
    chunk: Chunk<K, V>,
    at: usize,
    /// What the table has to know without the lock.
    pub(super) depth: u8,
    pub(super) entries: u32,
}

/// A snapshot's side of a shared page. Dropped, it lets go of the page.
pub(in crate::state) struct ReadPage<K, V> {
    chunk: Chunk<K, V>,
    at: usize,
}

/// A page while its lock is held.
pub(in crate::state) struct LockedPage<'a, K, V>(MutexGuard<'a, Cell<K, V>>);

fn lock<K, V>(cell: &Mutex<Cell<K, V>>) -> MutexGuard<'_, Cell<K, V>> {
    // A poisoned lock means that a snapshot's encoding panicked: it changes nothing, so the page is whole.
    cell.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shares the pages with these numbers, which the table owns, and adds a reader of each.
pub(super) fn share<K, V>(
    slots: &mut [Slot<K, V>],
    owned: &[usize],
    reads: &mut Vec<ReadPage<K, V>>,
) {
    for numbers in owned.chunks(CHUNK_PAGES) {
        let mut known = Vec::with_capacity(numbers.len());
        let take = |number: &usize| {
            let Slot::Owned(page) = &mut slots[*number] else { unreachable!("it is owned") };
            let page = std::mem::replace(page, Page::hollow());
            known.push((page.depth(), page.entries().len() as u32));
            Mutex::new(Cell { page: Some(page), readers: 1, copied: false })
        };
        let chunk: Chunk<K, V> = numbers.iter().map(take).collect();
        for (at, (number, (depth, entries))) in numbers.iter().zip(known).enumerate() {
            let shared = SharedPage { chunk: Arc::clone(&chunk), at, depth, entries };
            slots[*number] = Slot::Shared(shared);
            reads.push(ReadPage { chunk: Arc::clone(&chunk), at });
        }
    }
}

impl<K: Clone, V: Clone> SharedPage<K, V> {
    /// The page for the table alone: itself if no snapshot reads it any more, else a copy.
    pub(super) fn into_owned(self) -> Page<K, V> {
        let mut cell = lock(&self.chunk[self.at]);
        if cell.readers == 0 {
            return cell.page.take().expect("the table's until it has taken it");
        }
        cell.copied = true;
        cell.page.as_ref().expect("there while it is read").clone()
    }
}

impl<K, V> SharedPage<K, V> {
    /// Lets another snapshot read it.
    pub(super) fn read(&self) -> ReadPage<K, V> {
        lock(&self.chunk[self.at]).readers += 1;
        ReadPage { chunk: Arc::clone(&self.chunk), at: self.at }
    }
}

impl<K, V> ReadPage<K, V> {
    /// The page. The table waits for the lock if it wants the page back.
    pub(in crate::state) fn lock(&self) -> LockedPage<'_, K, V> {
        LockedPage(lock(&self.chunk[self.at]))
    }
}

impl<K, V> std::ops::Deref for LockedPage<'_, K, V> {
    type Target = Page<K, V>;

    fn deref(&self) -> &Page<K, V> {
        self.0.page.as_ref().expect("there while it is read")
    }
}

impl<K, V> Drop for ReadPage<K, V> {
    fn drop(&mut self) {
        let mut cell = lock(&self.chunk[self.at]);
        cell.readers -= 1;
        if cell.readers == 0 && cell.copied {
            cell.page = None;
        }
    }
}
