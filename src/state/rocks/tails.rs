//! Elements that were appended to lists which are not in memory: they are merged behind what RocksDB has, unread.
//!
//! A list is stored as its length and its elements, one behind the other; so what is appended is such a list too, and two of
//! them are merged without knowing what an element is.
//!
//! # Invariants
//! A key has a tail only while its list is not in memory: whoever reads the list puts the tail behind it, and keeps both as
//! one. A tail is merged exactly once: it is never tried again after a failure, which ends the attempt.
//!
//! # Reducing state
//! It has no such operator. To merge two values would need the user's function in the threads of RocksDB, in any order of
//! grouping, and where a panic cannot end the attempt; and a value in memory is reduced in place, so that RocksDB sees one
//! write for many additions anyway.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rocksdb::MergeOperands;

use crate::format::{FormatError, codec};

/// The name of the operator, which files keep.
pub(super) const OPERATOR: &str = "highwater-append";

/// What a tail costs beside its bytes, about. Units: bytes.
const OVERHEAD: usize = 128;

/// Puts lists behind each other.
pub(super) fn joined<'a>(lists: impl Iterator<Item = &'a [u8]>) -> Result<Vec<u8>, FormatError> {
    let (mut len, mut elements) = (0_u64, Vec::new());
    for list in lists {
        let (more, rest) = codec::decode_prefix::<u64>(list)?;
        len = len.saturating_add(more);
        elements.extend_from_slice(rest);
    }
    let mut joined = Vec::with_capacity(elements.len() + 10);
    codec::encode(&len, &mut joined)?;
    joined.append(&mut elements);
    Ok(joined)
}

/// What RocksDB merges rows with. `None`, which it takes for damage, if one is not a list.
pub(super) fn merge(_: &[u8], row: Option<&[u8]>, tails: &MergeOperands) -> Option<Vec<u8>> {
    joined(row.into_iter().chain(tails)).ok()
}

/// What was appended to the list of one key.
#[derive(Default)]
struct Tail {
    len: u64,
    elements: Vec<u8>,
}

impl Tail {
    fn list(&self) -> Result<Vec<u8>, FormatError> {
        let mut list = Vec::with_capacity(self.elements.len() + 10);
        codec::encode(&self.len, &mut list)?;
        list.extend_from_slice(&self.elements);
        Ok(list)
    }
}

/// Tails, by the keys of their rows.
#[derive(Default)]
pub(super) struct TailsByKey(HashMap<Vec<u8>, Tail>);

impl TailsByKey {
    /// Gives each once, as a list.
    pub(super) fn each<E: From<FormatError>>(
        &self,
        mut take: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.0.iter().try_for_each(|(key, tail)| take(key, &tail.list()?))
    }
}

/// Frozen tails, in a snapshot that may not have been made.
struct Underway {
    order: u64,
    tails: Arc<TailsByKey>,
}

/// The tails of a table.
#[derive(Default)]
pub(super) struct Tails {
    open: TailsByKey,
    bytes: usize,
    underway: Vec<Underway>,
    frozen: u64,
    written: Arc<AtomicU64>,
}

/// Tails that were frozen: written in the order of freezing, or never.
#[derive(Clone)]
pub(super) struct FrozenTails {
    /// How many were frozen before.
    order: u64,
    tails: Arc<TailsByKey>,
    written: Arc<AtomicU64>,
}

impl FrozenTails {
    /// The tails, unless some that were frozen earlier have not been written: what follows would have a gap.
    pub(super) fn in_order(&self) -> Option<&TailsByKey> {
        (self.written.load(Ordering::Acquire) == self.order).then_some(&self.tails)
    }

    pub(super) fn are_written(&self) {
        if !self.tails.0.is_empty() {
            self.written.store(self.order + 1, Ordering::Release);
        }
    }
}

impl Tails {
    pub(super) fn is_empty(&self) -> bool {
        self.open.0.is_empty()
    }

    /// What they take, about. Units: bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends an element, which `encode` writes, to the list of a row.
    pub(super) fn append(
        &mut self,
        row_key: &[u8],
        encode: impl FnOnce(&mut Vec<u8>) -> Result<(), FormatError>,
    ) -> Result<(), FormatError> {
        if !self.open.0.contains_key(row_key) {
            self.bytes += row_key.len() + OVERHEAD;
            self.open.0.insert(row_key.to_owned(), Tail::default());
        }
        let Some(tail) = self.open.0.get_mut(row_key) else { return Ok(()) };
        let before = tail.elements.capacity();
        encode(&mut tail.elements)?;
        tail.len += 1;
        self.bytes += tail.elements.capacity() - before;
        Ok(())
    }

    /// Takes the tail of a row that is about to be kept in memory, as a list.
    pub(super) fn take(&mut self, row_key: &[u8]) -> Result<Option<Vec<u8>>, FormatError> {
        let Some(tail) = self.open.0.remove(row_key) else { return Ok(None) };
        self.bytes -= row_key.len() + OVERHEAD + tail.elements.capacity();
        tail.list().map(Some)
    }

    /// Takes all, to be written now.
    pub(super) fn take_all(&mut self) -> TailsByKey {
        self.bytes = 0;
        std::mem::take(&mut self.open)
    }

    /// Freezes all.
    pub(super) fn freeze(&mut self) -> FrozenTails {
        self.forget_written();
        let (order, tails) = (self.frozen, Arc::new(self.take_all()));
        if !tails.0.is_empty() {
            self.frozen += 1;
            self.underway.push(Underway { order, tails: Arc::clone(&tails) });
        }
        FrozenTails { order, tails, written: Arc::clone(&self.written) }
    }

    fn forget_written(&mut self) {
        let written = self.written.load(Ordering::Acquire);
        self.underway.retain(|underway| underway.order >= written);
    }

    /// Whether frozen ones may not be written yet: those of a row, or any.
    pub(super) fn is_underway(&mut self, row_key: Option<&[u8]>) -> bool {
        if self.underway.is_empty() {
            return false;
        }
        self.forget_written();
        self.underway.iter().any(|underway| {
            let tails = &underway.tails.0;
            row_key.map_or(!tails.is_empty(), |key| tails.contains_key(key))
        })
    }
}
