//! The entries of one state of a checkpoint or a savepoint, key group by key group, as bytes and as values, without the types of
//! the program.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::format::manifest::PartRef;
use crate::format::part::EntryBlock;
use crate::format::shape::{EntryShape, Shape, decode_value};
use crate::format::{FormatError, SectionHeader, codec};
use crate::protocol::key_groups::key_group;
use crate::state::hash::stable_hash;
use crate::storage::Image;
use crate::storage::job_store::JobStoreError;

/// One entry, as it was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RawEntry {
    /// Empty in a section without keys.
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    /// When it was last updated, if it expires. Units: milliseconds since 1970.
    pub(crate) written: Option<i64>,
}

/// A value, and when it was last updated if it expires.
type Kept = (Vec<u8>, Option<i64>);

/// How much is put together at once. Units: bytes, as they are stored.
const BYTES_AT_ONCE: u64 = 16 << 20;

/// The entries of one state. Holds about [`BYTES_AT_ONCE`] of them, or one key group.
pub(crate) struct StateEntries {
    image: Image,
    header: SectionHeader,
    /// The key groups that are to be read yet.
    groups: Range<u16>,
    at_once: u16,
    ready: BTreeMap<u16, Vec<RawEntry>>,
    /// Of a section without keys: the next part, and the next block in it.
    next: (usize, usize),
}

impl StateEntries {
    /// The entries of `groups`; all of a section without keys.
    pub(crate) fn new(image: &Image, header: &SectionHeader, groups: Range<u16>) -> Self {
        let manifest = image.manifest();
        let parts = manifest.parts.iter().filter(|part| holds(part, header));
        let size = |part: &PartRef| {
            let layers = part.layers.iter().map(|layer| layer.bytes).sum::<u64>();
            let sections = part.sections.iter().filter(|section| section.header == *header);
            layers + sections.map(|section| section.bytes).sum::<u64>()
        };
        let bytes = parts.map(size).sum::<u64>().max(1);
        let groups = groups.start..groups.end.min(manifest.max_parallelism);
        let all = u64::from(manifest.max_parallelism);
        let at_once = (all * BYTES_AT_ONCE / bytes).clamp(1, all) as u16;
        let (image, header) = (image.clone(), header.clone());
        Self { image, header, groups, at_once, ready: BTreeMap::new(), next: (0, 0) }
    }

    /// All entries of the next key group that has any, each key once. Everything that reads entries reads them here. Of a section
    /// without keys: those of the next block.
    ///
    /// # Errors
    /// [`JobStoreError`] if a part is damaged, or its entries are not what its shape says.
    pub(crate) fn next_group(&mut self) -> Result<Option<(u16, Vec<RawEntry>)>, JobStoreError> {
        if !self.header.kind.is_keyed() || *self.header.shape.key == Shape::Unit {
            return self.next_block();
        }
        while self.ready.is_empty() && !self.groups.is_empty() {
            let end = self.groups.start.saturating_add(self.at_once).min(self.groups.end);
            let groups = self.groups.start..end;
            self.groups.start = end;
            self.read(&groups)?;
        }
        Ok(self.ready.pop_first())
    }

    /// Puts together what all parts and their layers hold of some key groups.
    fn read(&mut self, groups: &Range<u16>) -> Result<(), JobStoreError> {
        let Self { image, header, .. } = self;
        let max_parallelism = image.manifest().max_parallelism;
        // A later one takes the place of an earlier one with the same key.
        let mut found: BTreeMap<(u16, Vec<u8>), Kept> = BTreeMap::new();
        let wanted = |other: &SectionHeader| is_same(other, header);
        image.read_table(wanted, groups, |selection, block| {
            decode_block(&header.shape, selection.changes, block, |key, hash, rest| {
                let group = key_group(hash, max_parallelism).0;
                if !selection.groups.contains(&group) || selection.superseded.contains(hash) {
                    return;
                }
                match rest {
                    Some(entry) => found.insert((group, key), entry),
                    None => found.remove(&(group, key)),
                };
            })
        })?;
        for ((group, key), (value, written)) in found {
            self.ready.entry(group).or_default().push(RawEntry { key, value, written });
        }
        Ok(())
    }

    fn next_block(&mut self) -> Result<Option<(u16, Vec<RawEntry>)>, JobStoreError> {
        let Self { image, header, next, .. } = self;
        while let Some(part) = image.manifest().parts.get(next.0) {
            if holds(part, header) {
                let mut reader = image.open_part(part)?;
                // `open_part` has checked that the part's sections are those of the manifest.
                let place = reader.sections().iter().position(|own| own.header == *header);
                if let Some(section) = place
                    && next.1 < reader.sections()[section].blocks.len()
                {
                    let damaged = |error| image.part_error(part, error);
                    let block = reader.block(section, next.1).map_err(damaged)?;
                    next.1 += 1;
                    let mut entries = Vec::new();
                    decode_block(&header.shape, false, &block, |key, _, rest| {
                        entries.extend(rest.map(|(value, written)| RawEntry {
                            key,
                            value,
                            written,
                        }));
                    })
                    .map_err(|error| damaged(error.moved_by(block.offset)))?;
                    return Ok(Some((block.first_group, entries)));
                }
            }
            *next = (next.0 + 1, 0);
        }
        Ok(None)
    }
}

fn holds(part: &PartRef, header: &SectionHeader) -> bool {
    part.sections.iter().any(|section| section.header == *header)
}

/// Whether it is of the same state: in an older layer its types may have had other names.
pub(crate) fn is_same(one: &SectionHeader, other: &SectionHeader) -> bool {
    (&one.operator, &one.state) == (&other.operator, &other.state)
}

/// Gives each entry's key, the hash of it, and value and time; `None`: the key was removed.
fn decode_block(
    shape: &EntryShape,
    changes: bool,
    block: &EntryBlock<'_>,
    mut take: impl FnMut(Vec<u8>, u64, Option<Kept>),
) -> Result<(), FormatError> {
    let bytes = block.bytes;
    let mut rest = bytes;
    for _ in 0..block.entries {
        let at = (bytes.len() - rest.len()) as u64;
        let moved = |error: FormatError| error.moved_by(at);
        let is_there = if changes {
            let (is_there, after) = codec::decode_prefix(rest).map_err(moved)?;
            rest = after;
            is_there
        } else {
            true
        };
        let (key, after_key) = decode_value(&shape.key, rest).map_err(moved)?;
        let hash = stable_hash(&key);
        let key = rest[..rest.len() - after_key.len()].to_vec();
        if !is_there {
            rest = &rest[key.len()..];
            take(key, hash, None);
            continue;
        }
        let mut value = &rest[key.len()..];
        let mut written = None;
        if shape.expires {
            let (time, after) = codec::decode_prefix::<i64>(value).map_err(moved)?;
            (written, value) = (Some(time), after);
        }
        let (_, after) = decode_value(&shape.value, value).map_err(moved)?;
        let len = value.len() - after.len();
        rest = &value[len..];
        take(key, hash, Some((value[..len].to_vec(), written)));
    }
    if rest.is_empty() {
        return Ok(());
    }
    let offset = (bytes.len() - rest.len()) as u64;
    Err(FormatError::Corrupt { offset, why: "bytes after the last entry".to_owned() })
}
