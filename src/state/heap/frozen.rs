//! A frozen heap table, and how it is written.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::marks::marked_positions;
use crate::format::{ENTRY_PRESENT, ENTRY_REMOVED, FormatError, SectionOutput, codec};
use crate::protocol::key_groups::key_group;
use crate::state::pages::{Excerpts, Page, ReadPage, ReadPages};
use crate::state::{Frozen, Key, StateValue};

/// What of pages is written that are not written whole.
#[derive(Debug)]
pub(super) struct Changes {
    /// Keys that were removed since this confirmed snapshot, and the entries that are marked.
    confirmed: u32,
    /// Which pages, 64 by 64: a bit for each, and how many there are before.
    places: Vec<(u64, u32)>,
    /// The marks of each, so many words.
    marks: Vec<u64>,
    words: usize,
}

/// What of a page is written.
#[derive(Clone, Copy)]
enum Marked<'a> {
    /// All entries.
    All,
    /// Keys that were removed since this confirmed snapshot, and the entries that are marked.
    Changes { confirmed: u32, marks: &'a [u64] },
}

impl Changes {
    /// Of the pages with these `numbers`, ascending, with their `marks`, so many `words` of each.
    pub(super) fn new(confirmed: u32, numbers: &[u32], marks: Vec<u64>, words: usize) -> Self {
        let segments = numbers.last().map_or(0, |last| last / 64 + 1);
        let mut places = vec![(0_u64, 0); segments as usize];
        for number in numbers {
            places[*number as usize / 64].0 |= 1 << (number % 64);
        }
        let mut before = 0;
        for (pages, first) in &mut places {
            *first = before;
            before += pages.count_ones();
        }
        Self { confirmed, places, marks, words }
    }

    fn of(&self, page: usize) -> Marked<'_> {
        let (pages, first) = self.places[page / 64];
        let before = pages & ((1 << (page % 64)) - 1);
        let place = (first + before.count_ones()) as usize;
        let marks = &self.marks[place * self.words..(place + 1) * self.words];
        Marked::Changes { confirmed: self.confirmed, marks }
    }
}

impl<K: Key, V: StateValue> Excerpts<K, V> for Changes {
    fn excerpt(&self, number: usize, page: &Page<K, V>) -> Page<K, V> {
        let marked = self.of(number);
        let removed = marked.removed(page).map(|at| &page.removed()[at]);
        page.excerpt(marked.entries(page), removed)
    }
}

impl<'a> Marked<'a> {
    /// The positions of entries that are written.
    fn entries<K, V>(
        self,
        page: &Page<K, V>,
    ) -> impl Iterator<Item = usize> + Clone + use<'a, K, V> {
        let marks = match self {
            Self::Changes { marks, .. } if !page.is_excerpt() => marks,
            _ => &[],
        };
        marked_positions(marks, page.entries().len())
    }

    /// The removed keys that are written.
    fn removed<K: Key, V>(self, page: &Page<K, V>) -> impl Iterator<Item = usize> {
        let (number, since) = match self {
            Self::All => (0, 0),
            Self::Changes { confirmed, .. } => (page.removed().len(), confirmed),
        };
        (0..number).filter(move |at| {
            let removed = &page.removed()[*at];
            let there = || page.find(removed.hash, &removed.key).is_some();
            page.is_excerpt() || removed.snapshots >= since && !there()
        })
    }
}

pub(super) struct FrozenPages<K, V> {
    /// Those that are written whole.
    whole: ReadPages<K, V>,
    /// The others. `None`: it is a snapshot of everything; else each entry says if it is there or was removed.
    changes: Option<(ReadPages<K, V>, Arc<Changes>)>,
    max_parallelism: u16,
    /// Where the bytes of an average entry are noted, if all are written.
    entry_bytes: Arc<AtomicUsize>,
}

impl<K, V> FrozenPages<K, V> {
    pub(super) fn new(
        whole: ReadPages<K, V>,
        changes: Option<(ReadPages<K, V>, Arc<Changes>)>,
        max_parallelism: u16,
        entry_bytes: Arc<AtomicUsize>,
    ) -> Self {
        Self { whole, changes, max_parallelism, entry_bytes }
    }
}

impl<K: Key, V: StateValue> Frozen for FrozenPages<K, V> {
    fn write(self: Box<Self>, out: &mut dyn SectionOutput) -> Result<(), FormatError> {
        let Self { whole, changes, max_parallelism, entry_bytes } = *self;
        let (changed, changes) = changes.unzip();
        // Pages hold disjoint ranges of hashes, so the least of each orders them.
        let mut whole = whole.in_order().map(|page| (page, Marked::All)).peekable();
        let marked = |number| changes.as_ref().map_or(Marked::All, |changes| changes.of(number));
        let mut changed = changed
            .into_iter()
            .flat_map(ReadPages::in_order)
            .map(|page| {
                let marked = marked(page.1.number());
                (page, marked)
            })
            .peekable();
        let mut pages = std::iter::from_fn(|| match (whole.peek(), changed.peek()) {
            (Some(((one, _), _)), Some(((other, _), _))) if one < other => whole.next(),
            (_, Some(_)) => changed.next(),
            (_, None) => whole.next(),
        });

        let mut encoder = PageEncoder::new(max_parallelism, changes.is_some());
        let (mut entries, mut bytes) = (0, 0);
        let mut group = Vec::with_capacity(PREFETCHED_PAGES);
        loop {
            group.extend(
                pages.by_ref().take(PREFETCHED_PAGES).map(|((_, page), marked)| (page, marked)),
            );
            if group.is_empty() {
                break;
            }
            if changes.is_some() {
                prefetch(&mut group);
            }
            for (page, marked) in group.drain(..) {
                let (page_entries, page_bytes) = encoder.write(page, marked, out)?;
                entries += page_entries;
                bytes += page_bytes;
            }
        }
        if changes.is_none() && entries > 0 {
            entry_bytes.store(bytes / entries, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// How many pages are looked at together. The worker waits for this, but it is a few microseconds. Other snapshots take theirs in the
/// same order, that of the hashes, so two never wait for each other.
const PREFETCHED_PAGES: usize = 16;

/// Brings the entries that are marked near the processor. Here they are loaded at the same time; one after the other, with locks
/// in between, most of what it takes to write them would be waiting for memory.
fn prefetch<K, V>(pages: &mut [(ReadPage<K, V>, Marked<'_>)]) {
    let looked = pages.iter_mut().filter_map(|(page, marked)| match *marked {
        Marked::All => None,
        marked => Some((page.look(), marked)),
    });
    let looked: Vec<(&Page<K, V>, Marked<'_>)> = looked.collect();
    let mut touched = 0;
    for (page, marked) in &looked {
        let marked = marked.entries(page);
        for [first, last] in marked.filter_map(|position| page.lines(position)) {
            touched ^= *first ^ *last;
        }
    }
    std::hint::black_box(touched);
    pages.iter_mut().for_each(|(page, _)| page.put_back());
}

/// Encodes pages into a buffer of its own, so that the output, which may be slow, is never waited
/// for while a page is looked at: the worker waits for the encoding of [`CHUNK_BYTES`] at most, or of one
/// entry.
struct PageEncoder<K, V> {
    max_parallelism: u16,
    tagged: bool,
    /// What is to be written, in order.
    order: Vec<Item>,
    bytes: Vec<u8>,
    /// For each encoded entry its hash and where its bytes end.
    ends: Vec<(u64, usize)>,
    types: PhantomData<fn(&K, &V)>,
}

/// An entry or a removed key, by its position in the page.
#[derive(Clone, Copy)]
enum Item {
    Entry(u32),
    Removed(u32),
}

/// How many bytes are encoded before the page is put back.
const CHUNK_BYTES: usize = 128 * 1024;

impl<K: Key, V: StateValue> PageEncoder<K, V> {
    fn new(max_parallelism: u16, tagged: bool) -> Self {
        Self {
            max_parallelism,
            tagged,
            order: Vec::new(),
            bytes: Vec::new(),
            ends: Vec::new(),
            types: PhantomData,
        }
    }

    /// Returns the number of entries and of bytes.
    fn write(
        &mut self,
        mut shared: ReadPage<K, V>,
        marked: Marked<'_>,
        out: &mut dyn SectionOutput,
    ) -> Result<(usize, usize), FormatError> {
        self.set_order(shared.look(), marked);
        let (mut shared, mut written, mut bytes_written) = (Some(shared), 0, 0);
        while let Some(page) = &mut shared {
            // A shared page does not change, so it may be put back between chunks.
            self.encode_chunk(page.look(), written)?;
            written += self.ends.len();
            bytes_written += self.bytes.len();
            if written < self.order.len() {
                page.put_back();
            } else {
                // The worker can take it back now without copying it.
                shared = None;
            }
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
        Ok((written, bytes_written))
    }

    fn set_order(&mut self, page: &Page<K, V>, marked: Marked<'_>) {
        self.order.clear();
        self.order.extend(marked.entries(page).map(|at| Item::Entry(at as u32)));
        self.order.extend(marked.removed(page).map(|at| Item::Removed(at as u32)));
        let hash = |item: &Item| hash_of(page, *item);
        let group = |hash| key_group(hash, self.max_parallelism);
        let hashes = || self.order.iter().map(hash);
        if hashes().min().map(group) != hashes().max().map(group) {
            self.order.sort_unstable_by_key(hash);
        }
    }

    fn encode_chunk(&mut self, page: &Page<K, V>, written: usize) -> Result<(), FormatError> {
        self.bytes.clear();
        self.ends.clear();
        for item in &self.order[written..] {
            match *item {
                Item::Entry(position) => {
                    let entry = &page.entries()[position as usize];
                    if self.tagged {
                        self.bytes.push(ENTRY_PRESENT);
                    }
                    codec::encode(&entry.key, &mut self.bytes)?;
                    codec::encode(&entry.value, &mut self.bytes)?;
                }
                Item::Removed(at) => {
                    self.bytes.push(ENTRY_REMOVED);
                    codec::encode(&page.removed()[at as usize].key, &mut self.bytes)?;
                }
            }
            self.ends.push((hash_of(page, *item), self.bytes.len()));
            if self.bytes.len() >= CHUNK_BYTES {
                break;
            }
        }
        Ok(())
    }
}

fn hash_of<K, V>(page: &Page<K, V>, item: Item) -> u64 {
    match item {
        Item::Entry(position) => page.entries()[position as usize].hash,
        Item::Removed(at) => page.removed()[at as usize].hash,
    }
}

#[cfg(test)]
mod tests {
    use super::{Changes, Marked};

    #[test]
    fn each_page_has_the_marks_that_were_given_for_it() {
        let numbers = [0, 1, 63, 64, 130, 191, 640];
        let marks = (0..numbers.len() as u64).flat_map(|at| [at, 100 + at]).collect();
        let changes = Changes::new(7, &numbers, marks, 2);
        for (at, number) in numbers.iter().enumerate() {
            let Marked::Changes { confirmed, marks } = changes.of(*number as usize) else {
                panic!("page {number} is written whole");
            };
            assert_eq!((confirmed, marks), (7, &[at as u64, 100 + at as u64][..]), "page {number}");
        }
    }
}
