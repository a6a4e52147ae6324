//! The entries of one state of a checkpoint or a savepoint, key group by key group, as bytes and as values, without the types of
//! the program.

use std::collections::VecDeque;
use std::ops::Range;

use crate::format::manifest::{Manifest, PartRef};
use crate::format::part::PartReader;
use crate::format::shape::{EntryShape, decode_value};
use crate::format::{FormatError, SectionHeader};
use crate::protocol::key_groups::key_group;
use crate::state::hash::stable_hash;
use crate::storage::Image;
use crate::storage::job_store::{JobStoreError, PartBytes};

/// One entry, as it was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RawEntry {
    /// Empty in a section without keys.
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    /// When it was last updated, if it expires. Units: milliseconds since 1970.
    pub(crate) written: Option<i64>,
}

/// The entries of one state. Holds one block of each part, and one key group.
pub(crate) struct StateEntries {
    image: Image,
    header: SectionHeader,
    parts: Vec<OpenPart>,
}

struct OpenPart {
    part: PartRef,
    reader: PartReader<PartBytes>,
    section: usize,
    /// The next block to read, and where to end.
    next: usize,
    end: usize,
    /// Of the block that was read last, with their groups, ascending.
    entries: VecDeque<(u16, RawEntry)>,
}

impl StateEntries {
    /// Opens the parts that hold this state; entries of other key groups may come along.
    ///
    /// # Errors
    /// [`JobStoreError`] if one of them cannot be read.
    pub(crate) fn open(
        image: &Image,
        header: &SectionHeader,
        groups: Range<u16>,
    ) -> Result<Self, JobStoreError> {
        let mut parts = Vec::new();
        for part in &image.manifest().parts {
            if !part.sections.iter().any(|section| section.header == *header) {
                continue;
            }
            let reader = image.open_part(part)?;
            // `open_part` has checked that the part's sections are those of the manifest.
            let section = reader.sections().iter().position(|section| section.header == *header);
            let Some(section) = section else { continue };
            let entries = VecDeque::new();
            let blocks = &reader.sections()[section].blocks;
            let next = blocks.partition_point(|block| block.last_group < groups.start);
            let end = blocks.partition_point(|block| block.first_group < groups.end);
            parts.push(OpenPart { part: part.clone(), reader, section, next, end, entries });
        }
        Ok(Self { image: image.clone(), header: header.clone(), parts })
    }

    /// All entries of the next key group that has any. Everything that reads entries reads them here. Sections without keys are
    /// given by the groups of their blocks.
    ///
    /// # Errors
    /// [`JobStoreError`] if a part is damaged, or its entries are not what its shape says.
    pub(crate) fn next_group(&mut self) -> Result<Option<(u16, Vec<RawEntry>)>, JobStoreError> {
        let Self { image, header, parts } = self;
        let mut least = None;
        for part in &mut *parts {
            let front = part.front(image, header)?;
            least = least.into_iter().chain(front).min();
        }
        let Some(group) = least else { return Ok(None) };
        let mut entries = Vec::new();
        for part in parts {
            while part.front(image, header)? == Some(group) {
                let next = part.entries.pop_front();
                entries.extend(next.map(|(_, entry)| entry));
            }
        }
        Ok(Some((group, entries)))
    }
}

impl OpenPart {
    /// The key group of its next entry, after reading a block if need be.
    fn front(
        &mut self,
        image: &Image,
        header: &SectionHeader,
    ) -> Result<Option<u16>, JobStoreError> {
        while self.entries.is_empty() {
            if self.next >= self.end {
                return Ok(None);
            }
            self.read_block(image.manifest(), header)
                .map_err(|error| image.part_error(&self.part, error))?;
        }
        Ok(self.entries.front().map(|(group, _)| *group))
    }

    fn read_block(
        &mut self,
        manifest: &Manifest,
        header: &SectionHeader,
    ) -> Result<(), FormatError> {
        let block = self.reader.block(self.section, self.next)?;
        self.next += 1;
        let mut rest = block.bytes;
        for _ in 0..block.entries {
            let at = block.offset + (block.bytes.len() - rest.len()) as u64;
            let moved = |error: FormatError| error.moved_by(at);
            let (entry, hash, after) = split(&header.shape, rest).map_err(moved)?;
            rest = after;
            let group = if header.kind.is_keyed() && !entry.key.is_empty() {
                key_group(hash, manifest.max_parallelism).0
            } else {
                block.first_group
            };
            // What the user's `Serialize` does is not known; the block is.
            let group = group.clamp(block.first_group, block.last_group);
            self.entries.push_back((group, entry));
        }
        if !rest.is_empty() {
            let offset = block.offset + (block.bytes.len() - rest.len()) as u64;
            return Err(FormatError::Corrupt { offset, why: "bytes after the last entry".into() });
        }
        // They are written in this order; only a group that was not found is out of it.
        self.entries.make_contiguous().sort_by_key(|(group, _)| *group);
        Ok(())
    }
}

/// Cuts one entry off the start of `bytes`; tells the hash of its key.
fn split<'a>(
    shape: &EntryShape,
    bytes: &'a [u8],
) -> Result<(RawEntry, u64, &'a [u8]), FormatError> {
    let until = |rest: &[u8]| bytes.len() - rest.len();
    let (key, after_key) = decode_value(&shape.key, bytes)?;
    let (written, after_time) = if shape.expires {
        let (written, rest) = crate::format::codec::decode_prefix::<i64>(after_key)
            .map_err(|error| error.moved_by(until(after_key) as u64))?;
        (Some(written), rest)
    } else {
        (None, after_key)
    };
    let (_, rest) = decode_value(&shape.value, after_time)
        .map_err(|error| error.moved_by(until(after_time) as u64))?;
    let entry = RawEntry {
        key: bytes[..until(after_key)].to_vec(),
        value: after_time[..after_time.len() - rest.len()].to_vec(),
        written,
    };
    Ok((entry, stable_hash(&key), &bytes[until(rest)..]))
}
