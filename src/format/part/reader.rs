//! Reading a part.

use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use super::{
    BlockIndex, PREFIX_BYTES, PartFooter, PartHeader, SectionIndex, TRAILER_BYTES, TRAILER_MAGIC,
};
use crate::format::block::{self, BlockKind, FRAME_BYTES, VERSION};
use crate::format::{FormatError, codec};

/// Reads a part from a file, or from bytes in memory.
#[derive(Debug)]
pub struct PartReader<R> {
    reader: R,
    header: PartHeader,
    sections: Vec<SectionIndex>,
    /// Where the reader stands; `None` when a failed read left that open.
    position: Option<u64>,
    block: Vec<u8>,
}

/// The blocks of one section that hold entries of some key groups.
#[derive(Debug)]
pub struct Blocks<'a, R> {
    part: &'a mut PartReader<R>,
    section: usize,
    next: usize,
    groups: Range<u16>,
}

/// Entries of one section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryBlock<'a> {
    /// The key group of the first entry.
    pub first_group: u16,
    /// The key group of the last entry.
    pub last_group: u16,
    /// Number of entries.
    pub entries: u32,
    /// The entries, one after the other, as they were written.
    pub bytes: &'a [u8],
    /// Units: bytes from the start of the part to the first entry: what is to be added to an offset in `bytes`
    /// ([`FormatError::moved_by`]).
    pub offset: u64,
}

impl<R: Read + Seek> PartReader<R> {
    /// Opens a part of `size_bytes`: reads its index and its header.
    ///
    /// # Errors
    /// [`FormatError`] if the medium fails, or the bytes are no whole part.
    pub fn open(mut reader: R, size_bytes: u64) -> Result<Self, FormatError> {
        let (footer_offset, footer_bytes) = read_trailer(&mut reader, size_bytes)?;
        let mut block = Vec::new();
        reader.seek(SeekFrom::Start(footer_offset))?;
        block::read(BlockKind::PartFooter, &mut reader, footer_bytes, &mut block)
            .map_err(|e| e.moved_by(footer_offset))?;
        if block.len() as u64 != footer_bytes {
            return Err(FormatError::corrupt(footer_offset, "the index is shorter than announced"));
        }
        let footer: PartFooter = codec::decode(&block[FRAME_BYTES..])
            .map_err(|e| e.moved_by(footer_offset + FRAME_BYTES as u64))?;
        reader.seek(SeekFrom::Start(0))?;
        block::read(BlockKind::PartHeader, &mut reader, footer_offset, &mut block)?;
        let header =
            codec::decode(&block[FRAME_BYTES..]).map_err(|e| e.moved_by(FRAME_BYTES as u64))?;
        check_index(&footer, block.len() as u64, footer_offset)?;
        let position = Some(block.len() as u64);
        Ok(Self { reader, header, sections: footer.sections, position, block })
    }

    /// Whose part it is.
    pub fn header(&self) -> &PartHeader {
        &self.header
    }

    /// What is in it.
    pub fn sections(&self) -> &[SectionIndex] {
        &self.sections
    }

    /// The blocks of a section that hold entries of `groups`, in order. A block at the edge may hold entries of
    /// other groups too.
    ///
    /// # Panics
    /// If there is no such section: a caller bug.
    pub fn blocks(&mut self, section: usize, groups: Range<u16>) -> Blocks<'_, R> {
        // A block's last group says whether it is behind us; blocks ascend.
        let blocks = &self.sections[section].blocks;
        let next = blocks.partition_point(|block| block.last_group < groups.start);
        Blocks { part: self, section, next, groups }
    }

    /// Reads one block of a section, by its number in the index. The bytes live until another one is read.
    ///
    /// # Errors
    /// [`FormatError`]; offsets count from the start of the part.
    ///
    /// # Panics
    /// If there is no such section or block: a caller bug.
    pub fn block(&mut self, section: usize, number: usize) -> Result<EntryBlock<'_>, FormatError> {
        let index = self.sections[section].blocks[number];
        self.read_block(section, index).map_err(|error| error.moved_by(index.offset))?;
        Ok(EntryBlock {
            first_group: index.first_group,
            last_group: index.last_group,
            entries: index.entries,
            bytes: &self.block[FRAME_BYTES + PREFIX_BYTES..],
            offset: index.offset + (FRAME_BYTES + PREFIX_BYTES) as u64,
        })
    }

    fn read_block(&mut self, section: usize, index: BlockIndex) -> Result<(), FormatError> {
        if self.position.take() != Some(index.offset) {
            self.reader.seek(SeekFrom::Start(index.offset))?;
        }
        // One read for the whole block: the index says how long it is, and the index was compared with the file.
        self.block.resize(index.length as usize, 0);
        self.reader.read_exact(&mut self.block)?;
        self.position = Some(index.offset + u64::from(index.length));
        let payload = block::open(BlockKind::Entries, &self.block)?;
        let Some((prefix, _)) = payload.split_first_chunk::<PREFIX_BYTES>() else {
            return Err(FormatError::corrupt(FRAME_BYTES as u64, "the block is too short"));
        };
        if *prefix == expected_prefix(section, index) {
            Ok(())
        } else {
            Err(FormatError::corrupt(FRAME_BYTES as u64, "the index says otherwise of this block"))
        }
    }
}

impl<R: Read + Seek> Blocks<'_, R> {
    /// Reads the next block. The bytes live until the one after is read.
    ///
    /// # Errors
    /// [`FormatError`]; offsets count from the start of the part.
    #[expect(clippy::should_implement_trait, reason = "an iterator could not lend its buffer")]
    pub fn next(&mut self) -> Result<Option<EntryBlock<'_>>, FormatError> {
        let blocks = &self.part.sections[self.section].blocks;
        let Some(index) = blocks.get(self.next) else { return Ok(None) };
        if index.first_group >= self.groups.end {
            return Ok(None);
        }
        self.next += 1;
        self.part.block(self.section, self.next - 1).map(Some)
    }
}

fn expected_prefix(section: usize, index: BlockIndex) -> [u8; PREFIX_BYTES] {
    let mut prefix = [0; PREFIX_BYTES];
    prefix[..4].copy_from_slice(&(section as u32).to_le_bytes());
    prefix[4..6].copy_from_slice(&index.first_group.to_le_bytes());
    prefix[6..8].copy_from_slice(&index.last_group.to_le_bytes());
    prefix[8..].copy_from_slice(&index.entries.to_le_bytes());
    prefix
}

fn read_trailer<R: Read + Seek>(reader: &mut R, size: u64) -> Result<(u64, u64), FormatError> {
    let Some(at) = size.checked_sub(TRAILER_BYTES as u64) else {
        return Err(FormatError::corrupt(0, format!("{size} bytes are no part")));
    };
    reader.seek(SeekFrom::Start(at))?;
    let mut trailer = [0; TRAILER_BYTES];
    reader.read_exact(&mut trailer)?;
    let number = |range: Range<usize>| {
        let mut bytes = [0; 8];
        bytes[..range.len()].copy_from_slice(&trailer[range]);
        u64::from_le_bytes(bytes)
    };
    if trailer[..4] != TRAILER_MAGIC {
        return Err(FormatError::corrupt(at, "this is not the end of a part: wrong magic"));
    }
    let version = number(4..6) as u16;
    if version > VERSION {
        return Err(FormatError::TooNew { found: version, supported: VERSION });
    }
    if number(24..28) != u64::from(crc32c::crc32c(&trailer[..24])) {
        return Err(FormatError::corrupt(at, "the trailer's checksum does not match"));
    }
    let (offset, bytes) = (number(8..16), number(16..24));
    if version == 0 || number(6..8) != 0 || offset.checked_add(bytes) != Some(at) {
        return Err(FormatError::corrupt(at, "the trailer does not describe this file"));
    }
    Ok((offset, bytes))
}

/// Every block lies behind the one before, in the file and in the order of groups, and the sums are right.
fn check_index(footer: &PartFooter, first: u64, end: u64) -> Result<(), FormatError> {
    let refuse = |why: String| Err(FormatError::corrupt(end, why));
    let mut offset = first;
    for (number, section) in footer.sections.iter().enumerate() {
        let (mut entries, mut bytes, mut group) = (0_u64, 0_u64, 0);
        for block in &section.blocks {
            let Some(content) =
                u64::from(block.length).checked_sub((FRAME_BYTES + PREFIX_BYTES) as u64)
            else {
                return refuse(format!("section {number} has a block shorter than its frame"));
            };
            if block.offset != offset || block.first_group < group {
                return refuse(format!("the blocks of section {number} are out of order"));
            }
            if block.last_group < block.first_group || block.entries == 0 {
                return refuse(format!("a block of section {number} describes no entries"));
            }
            offset += u64::from(block.length);
            if offset > end {
                return refuse(format!("section {number} is longer than the file"));
            }
            group = block.last_group;
            entries += u64::from(block.entries);
            bytes += content;
        }
        if (entries, bytes) != (section.entries, section.bytes) {
            return refuse(format!("the sums of section {number} are wrong"));
        }
    }
    if offset == end { Ok(()) } else { refuse("there are bytes that no section owns".into()) }
}
