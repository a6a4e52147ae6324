//! A frozen heap table, and how it is written.

use std::marker::PhantomData;
use std::sync::{MutexGuard, PoisonError};

use super::page::Page;
use super::table::SharedPage;
use crate::format::{FormatError, SectionOutput};
use crate::protocol::key_groups::key_group;
use crate::state::{Frozen, Key, StateValue};

pub(super) struct FrozenPages<K, V> {
    /// In the order of their making.
    pages: Vec<SharedPage<K, V>>,
    max_parallelism: u16,
}

impl<K, V> FrozenPages<K, V> {
    pub(super) fn new(pages: Vec<SharedPage<K, V>>, max_parallelism: u16) -> Self {
        Self { pages, max_parallelism }
    }
}

impl<K: Key, V: StateValue> Frozen for FrozenPages<K, V> {
    fn write(self: Box<Self>, out: &mut dyn SectionOutput) -> Result<(), FormatError> {
        // Pages hold disjoint ranges of hashes, so any hash of each sorts them.
        let first = |page: SharedPage<K, V>| {
            let hash = lock(&page).entries().first().map(|entry| entry.hash);
            hash.map(|hash| (hash, page))
        };
        let mut pages: Vec<_> = self.pages.into_iter().filter_map(first).collect();
        pages.sort_unstable_by_key(|(hash, _)| *hash);

        let mut encoder = PageEncoder::new(self.max_parallelism);
        for (_, page) in pages {
            encoder.write(&page, out)?;
            // `page` is dropped here, so the worker can take it back without copying it.
        }
        Ok(())
    }
}

fn lock<K, V>(page: &SharedPage<K, V>) -> MutexGuard<'_, Page<K, V>> {
    // A poisoned lock means that another snapshot's encoding panicked: it changes nothing, so the
    // page is whole.
    page.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Encodes pages into a buffer of its own, so that the output, which may be slow, is never waited
/// for with a page locked: the worker waits for the encoding of [`CHUNK_BYTES`] at most, or of one
/// entry.
struct PageEncoder<K, V> {
    max_parallelism: u16,
    /// Positions of the page's entries, in the order in which they are to be written.
    order: Vec<u32>,
    bytes: Vec<u8>,
    /// For each encoded entry its hash and where its bytes end.
    ends: Vec<(u64, usize)>,
    types: PhantomData<fn(&K, &V)>,
}

/// How many bytes are encoded before the lock is released.
const CHUNK_BYTES: usize = 128 * 1024;

impl<K: Key, V: StateValue> PageEncoder<K, V> {
    fn new(max_parallelism: u16) -> Self {
        Self {
            max_parallelism,
            order: Vec::new(),
            bytes: Vec::new(),
            ends: Vec::new(),
            types: PhantomData,
        }
    }

    fn write(
        &mut self,
        shared: &SharedPage<K, V>,
        out: &mut dyn SectionOutput,
    ) -> Result<(), FormatError> {
        self.set_order(&lock(shared));
        let mut written = 0;
        while written < self.order.len() {
            // A shared page does not change, so it may be unlocked between chunks.
            self.encode_chunk(&lock(shared), written)?;
            written += self.ends.len();
            let mut start = 0;
            for (hash, end) in &self.ends {
                let bytes = &self.bytes[start..*end];
                out.entry(key_group(*hash, self.max_parallelism), &mut |buffer| {
                    buffer.extend_from_slice(bytes);
                    Ok(())
                })?;
                start = *end;
            }
        }
        Ok(())
    }

    fn set_order(&mut self, page: &Page<K, V>) {
        let entries = page.entries();
        self.order.clear();
        self.order.extend(0..entries.len() as u32);
        let group = |hash| key_group(hash, self.max_parallelism);
        let hashes = || entries.iter().map(|entry| entry.hash);
        if hashes().min().map(group) != hashes().max().map(group) {
            self.order.sort_unstable_by_key(|position| entries[*position as usize].hash);
        }
    }

    fn encode_chunk(&mut self, page: &Page<K, V>, written: usize) -> Result<(), FormatError> {
        self.bytes.clear();
        self.ends.clear();
        for position in &self.order[written..] {
            let entry = &page.entries()[*position as usize];
            append(&entry.key, &mut self.bytes)?;
            append(&entry.value, &mut self.bytes)?;
            self.ends.push((entry.hash, self.bytes.len()));
            if self.bytes.len() >= CHUNK_BYTES {
                break;
            }
        }
        Ok(())
    }
}

/// Appends the encoding of `value`.
fn append<T: serde::Serialize>(value: &T, bytes: &mut Vec<u8>) -> Result<(), FormatError> {
    postcard::serialize_with_flavor(value, Append(bytes)).map_err(|error| FormatError::Encode {
        what: std::any::type_name::<T>().to_owned(),
        why: error.to_string(),
    })
}

/// Lets postcard append to a vector. (Its own way to extend a collection goes byte by byte.)
struct Append<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Append<'_> {
    type Output = ();

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}
