//! The one memory budget of all instances of a process.
//!
//! ```text
//! budget ── 1/4, at most 24 MiB: what nobody accounts for
//!        └─ the rest ── 1/2 ── block cache of RocksDB; write buffers, at most half of it, are charged to it
//!                    └─ 1/2 ── decoded values of all tables: 7/8 of it in the usual case, 1/8 as a reserve
//! ```
//! What nobody accounts for are the buffers of RocksDB where it merges and writes files, and what the allocator loses: about as much for a small
//! budget as for a large one (measured by `cargo bench --bench workloads -- memory-ceiling`).
//!
//! The reserve is for what there is more of while a snapshot is being made: changes that may not be written yet, and copies of pages
//! that the snapshot reads. When it is used up, workers wait for the snapshot: see the module.
//!
//! Write buffers are kept within their part by whoever writes: it flushes its own instance and waits, which needs no other
//! instance. (RocksDB's own way to stall writers may wait for a flush that no other instance has a reason for.) Each column family
//! holds one buffer of some ten KiB at the least, so a budget must not be tiny beside the number of states and workers.
//!
//! # Invariant
//! `decoded` is the sum of what all [`Share`]s have taken, `copies` that of the copies that there are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rocksdb::{Cache, WriteBufferManager};

/// Units: bytes of a budget that are left for what nobody accounts for, at the most.
const UNACCOUNTED_MAX: usize = 24 << 20;

/// The memory that all instances of a process may use together.
pub struct Budget {
    total_bytes: usize,
    accounted_bytes: usize,
    block_cache: Cache,
    write_buffers: WriteBufferManager,
    decoded_max: usize,
    decoded: AtomicUsize,
    copies: AtomicUsize,
    tables: AtomicUsize,
}

impl std::fmt::Debug for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Budget").field("total_bytes", &self.total_bytes).finish_non_exhaustive()
    }
}

impl Budget {
    /// The least: 256 KiB. Less is taken for this much.
    pub const BYTES_MIN: usize = 1 << 18;

    /// A budget of so many bytes.
    #[must_use]
    pub fn new(total_bytes: usize) -> Arc<Self> {
        let total_bytes = total_bytes.max(Self::BYTES_MIN);
        let accounted_bytes = total_bytes - (total_bytes / 4).min(UNACCOUNTED_MAX);
        let block_cache = Cache::new_lru_cache(accounted_bytes / 2);
        let write_buffers = WriteBufferManager::new_write_buffer_manager_with_cache(
            accounted_bytes / 4,
            false,
            block_cache.clone(),
        );
        Arc::new(Self {
            total_bytes,
            accounted_bytes,
            block_cache,
            write_buffers,
            decoded_max: accounted_bytes / 2,
            decoded: AtomicUsize::new(0),
            copies: AtomicUsize::new(0),
            tables: AtomicUsize::new(0),
        })
    }

    /// Units: bytes.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        self.total_bytes
    }

    /// What blocks, write buffers and decoded values may use of it. Units: bytes.
    #[must_use]
    pub fn accounted_bytes(&self) -> usize {
        self.accounted_bytes
    }

    /// What is in use now, of write buffers, blocks and decoded values. Units: bytes.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.block_cache.get_usage() + self.decoded_used()
    }

    /// What decoded values use now, and copies of them. Units: bytes.
    #[must_use]
    pub fn decoded_used(&self) -> usize {
        self.decoded.load(Ordering::Relaxed) + self.copies.load(Ordering::Relaxed)
    }

    /// Takes memory for a copy of a page. `false`: there is none. Who `must` have it takes it all the same.
    pub(super) fn take_copy(&self, bytes: usize, must: bool) -> bool {
        let max = self.decoded_max.saturating_sub(self.decoded.load(Ordering::Relaxed));
        let taken = |copies: usize| (must || copies + bytes <= max).then_some(copies + bytes);
        self.copies.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }

    pub(super) fn give_back_copy(&self, bytes: usize) {
        self.copies.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn block_cache(&self) -> &Cache {
        &self.block_cache
    }

    /// Whether write buffers take all that they may: flushes do not keep up.
    pub(super) fn are_write_buffers_full(&self) -> bool {
        self.write_buffers.get_usage() > self.write_buffers.get_buffer_size()
    }

    pub(super) fn write_buffers(&self) -> &WriteBufferManager {
        &self.write_buffers
    }
}

/// What one table has taken of the memory for decoded values.
pub(super) struct Share {
    budget: Arc<Budget>,
    taken: usize,
}

impl Share {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        budget.tables.fetch_add(1, Ordering::Relaxed);
        Self { budget, taken: 0 }
    }

    /// Tells how much the table uses now. Units: bytes.
    pub(super) fn set(&mut self, bytes: usize) {
        let used = &self.budget.decoded;
        if bytes >= self.taken {
            used.fetch_add(bytes - self.taken, Ordering::Relaxed);
        } else {
            used.fetch_sub(self.taken - bytes, Ordering::Relaxed);
        }
        self.taken = bytes;
    }

    /// Whether the table may take `bytes` more. `reserved`: of the reserve too.
    ///
    /// A table that has less than half of an equal share may always have what others have left; so a small table beside
    /// a large one is not starved.
    pub(super) fn may_take(&self, bytes: usize, reserved: bool) -> bool {
        let max = self.budget.decoded_max;
        if reserved {
            return self.budget.decoded_used() + bytes <= max;
        }
        let equal = max / self.budget.tables.load(Ordering::Relaxed).max(1);
        let limit = if self.taken + bytes <= equal / 2 { max / 16 * 15 } else { max / 8 * 7 };
        // Copies are of the reserve, and soon gone: nothing is given up for them.
        self.budget.decoded.load(Ordering::Relaxed) + bytes <= limit
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
        self.budget.tables.fetch_sub(1, Ordering::Relaxed);
    }
}
