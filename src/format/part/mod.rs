//! A part: everything that one worker writes for one checkpoint, in one file.
//!
//! ```text
//! PartHeader block | Entries block ... | PartFooter block | trailer
//! entries block: section u32 | first group u16 | last group u16 | entries u32 | bytes of the entries
//! trailer:       magic "HWPT" | version u16 | 0 u16 | footer offset u64 | footer bytes u64 | crc32c u32
//! ```
//! The entries of a section are in ascending key-group order. The footer says for every block which groups are
//! in it, so that a worker which owns other groups than the one that wrote reads only what it needs. Where one
//! entry ends and the next begins is known to the entries' own encoding: nothing is added to an entry.
//!
//! A reader trusts nothing: the trailer and the footer carry checksums, every offset is compared with the size
//! of the file, and what a block says of itself is compared with what the footer says of it.

mod reader;
mod writer;

use serde::{Deserialize, Serialize};

pub use reader::{Blocks, EntryBlock, PartReader};
pub use writer::{PartSummary, PartWriter, Section};

use super::manifest::SectionSummary;
use super::{Extent, SectionHeader};
use crate::ids::{Attempt, Epoch, Name};

/// Whose part it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartHeader {
    /// The job.
    pub job: Name,
    /// The checkpoint.
    pub epoch: Epoch,
    /// The attempt that wrote it.
    pub attempt: Attempt,
    /// The worker that wrote it.
    pub worker: u32,
    /// Number of workers.
    pub parallelism: u32,
    /// Number of key groups.
    pub max_parallelism: u16,
}

/// Where a section is in a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SectionIndex {
    /// Whose state, of which kind.
    pub header: SectionHeader,
    /// How much of the state.
    pub extent: Extent,
    /// Number of entries.
    pub entries: u64,
    /// Units: bytes of the entries, without frames.
    pub bytes: u64,
    /// Its blocks, in ascending order of offsets and of key groups.
    pub blocks: Vec<BlockIndex>,
}

impl SectionIndex {
    /// The index without the blocks.
    #[must_use]
    pub fn summary(&self) -> SectionSummary {
        let Self { header, extent, entries, bytes, .. } = self;
        let (header, extent) = (header.clone(), extent.clone());
        SectionSummary { header, extent, entries: *entries, bytes: *bytes }
    }
}

/// Where a block is in a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockIndex {
    /// The key group of its first entry.
    pub first_group: u16,
    /// The key group of its last entry.
    pub last_group: u16,
    /// Number of entries.
    pub entries: u32,
    /// Units: bytes from the start of the part to the block's frame.
    pub offset: u64,
    /// Units: bytes of the block with its frame.
    pub length: u32,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PartFooter {
    sections: Vec<SectionIndex>,
}

const TRAILER_BYTES: usize = 28;
const TRAILER_MAGIC: [u8; 4] = *b"HWPT";
/// Units: bytes of what an entry block says of itself before the entries.
const PREFIX_BYTES: usize = 12;

#[cfg(test)]
mod tests;
