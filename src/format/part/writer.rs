//! Writing a part.

use std::io::Write;

use super::{
    BlockIndex, PREFIX_BYTES, PartFooter, PartHeader, SectionIndex, TRAILER_BYTES, TRAILER_MAGIC,
};
use crate::format::block::{
    self, BlockKind, ENTRY_BYTES_MAX, FRAME_BYTES, PAYLOAD_BYTES_MAX, VERSION,
};
use crate::format::{Extent, FormatError, SectionHeader, SectionOutput};
use crate::ids::KeyGroup;

/// Units: bytes before the entries in a block under construction.
const FRONT_BYTES: usize = FRAME_BYTES + PREFIX_BYTES;

/// Writes a part to `W`, in one pass, with one block in memory. After an error the part is unusable, and
/// [`PartWriter::finish`] says so.
pub struct PartWriter<W: Write> {
    out: W,
    offset: u64,
    checksum: u32,
    sections: Vec<SectionIndex>,
    /// The block under construction: room for its frame and prefix, then entries.
    block: Vec<u8>,
    entries: u32,
    first_group: u16,
    last_group: u16,
    failed: bool,
}

/// What has been written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartSummary {
    /// Units: bytes of the part.
    pub bytes: u64,
    /// The checksum of all its bytes.
    pub crc32c: u32,
    /// Its sections.
    pub sections: Vec<SectionIndex>,
}

/// Takes the entries of one section.
pub struct Section<'a, W: Write> {
    part: &'a mut PartWriter<W>,
}

impl<W: Write> PartWriter<W> {
    /// Begins a part. `out` is written in pieces of up to about 1 MiB; it needs no buffer.
    ///
    /// # Errors
    /// [`FormatError::Io`].
    pub fn new(out: W, header: &PartHeader) -> Result<Self, FormatError> {
        let mut part = Self {
            out,
            offset: 0,
            checksum: 0,
            sections: Vec::new(),
            block: vec![0; FRONT_BYTES],
            entries: 0,
            first_group: 0,
            last_group: 0,
            failed: false,
        };
        let block = block::encode_value(BlockKind::PartHeader, header)?;
        part.write(&block)?;
        Ok(part)
    }

    /// Begins a section, and so ends the one before.
    ///
    /// # Errors
    /// [`FormatError::Io`] if the medium fails.
    pub fn section(&mut self, header: &SectionHeader) -> Result<Section<'_, W>, FormatError> {
        self.section_of(header, Extent::Whole)
    }

    /// Begins a section that may hold a part of the state only, and so ends the one before.
    ///
    /// # Errors
    /// [`FormatError::Io`] if the medium fails.
    pub fn section_of(
        &mut self,
        header: &SectionHeader,
        extent: Extent,
    ) -> Result<Section<'_, W>, FormatError> {
        self.flush()?;
        self.last_group = 0;
        let (header, blocks) = (header.clone(), Vec::new());
        self.sections.push(SectionIndex { header, extent, entries: 0, bytes: 0, blocks });
        Ok(Section { part: self })
    }

    /// Ends the part, and returns the medium: the caller makes it durable.
    ///
    /// # Errors
    /// [`FormatError`] if the medium fails, or if something failed before.
    pub fn finish(mut self) -> Result<(W, PartSummary), FormatError> {
        self.flush()?;
        if self.failed {
            return Err(FormatError::Encode {
                what: "a part".into(),
                why: "one of its entries failed before".into(),
            });
        }
        let footer = PartFooter { sections: std::mem::take(&mut self.sections) };
        let footer_offset = self.offset;
        let block = block::encode_value(BlockKind::PartFooter, &footer)?;
        self.write(&block)?;
        let mut trailer = [0; TRAILER_BYTES];
        trailer[..4].copy_from_slice(&TRAILER_MAGIC);
        trailer[4..6].copy_from_slice(&VERSION.to_le_bytes());
        trailer[8..16].copy_from_slice(&footer_offset.to_le_bytes());
        trailer[16..24].copy_from_slice(&(block.len() as u64).to_le_bytes());
        let checksum = crc32c::crc32c(&trailer[..24]);
        trailer[24..].copy_from_slice(&checksum.to_le_bytes());
        self.write(&trailer)?;
        self.out.flush()?;
        let summary =
            PartSummary { bytes: self.offset, crc32c: self.checksum, sections: footer.sections };
        Ok((self.out, summary))
    }

    #[inline]
    fn entry(
        &mut self,
        group: KeyGroup,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), FormatError>,
    ) -> Result<(), FormatError> {
        let before = self.block.len();
        if let Err(error) = fill(&mut self.block) {
            self.failed = true;
            return Err(error);
        }
        if self.block.len() < before || group.0 < self.last_group || self.failed {
            return Err(self.refuse(group, before));
        }
        let previous_group = self.last_group;
        if self.entries == 0 {
            self.first_group = group.0;
        }
        self.entries += 1;
        self.last_group = group.0;
        if self.block.len() >= FRAME_BYTES + PAYLOAD_BYTES_MAX {
            self.roll(previous_group, before)?;
        }
        Ok(())
    }

    #[cold]
    fn refuse(&mut self, group: KeyGroup, before: usize) -> FormatError {
        let why = if self.failed {
            "one of its entries failed before".to_owned()
        } else if self.block.len() < before {
            "an encoder removed bytes of earlier entries".to_owned()
        } else {
            format!("an entry of key group {group} comes after one of {}", self.last_group)
        };
        self.failed = true;
        FormatError::Encode { what: "a part".into(), why }
    }

    /// The block is full: writes it, without its last entry if that one made it too long.
    #[cold]
    fn roll(&mut self, previous_group: u16, last_entry: usize) -> Result<(), FormatError> {
        let last_bytes = self.block.len() - last_entry;
        if last_bytes > ENTRY_BYTES_MAX {
            self.failed = true;
            return Err(FormatError::Encode {
                what: format!("an entry of key group {}", self.last_group),
                why: format!("{last_bytes} bytes are more than the limit of {ENTRY_BYTES_MAX}"),
            });
        }
        let full = FRAME_BYTES + PAYLOAD_BYTES_MAX;
        if self.block.len() > full && last_entry > FRONT_BYTES {
            let last = self.block.split_off(last_entry);
            let group = self.last_group;
            self.entries -= 1;
            self.last_group = previous_group;
            self.flush()?;
            self.block.extend_from_slice(&last);
            self.entries = 1;
            self.first_group = group;
            self.last_group = group;
        }
        if self.block.len() >= full { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), FormatError> {
        if self.entries == 0 || self.failed {
            return Ok(());
        }
        let section = self.sections.len() - 1;
        let prefix = &mut self.block[FRAME_BYTES..FRONT_BYTES];
        prefix[..4].copy_from_slice(&(section as u32).to_le_bytes());
        prefix[4..6].copy_from_slice(&self.first_group.to_le_bytes());
        prefix[6..8].copy_from_slice(&self.last_group.to_le_bytes());
        prefix[8..].copy_from_slice(&self.entries.to_le_bytes());
        block::seal(BlockKind::Entries, &mut self.block)?;
        let index = BlockIndex {
            first_group: self.first_group,
            last_group: self.last_group,
            entries: self.entries,
            offset: self.offset,
            length: self.block.len() as u32,
        };
        let mut block = std::mem::take(&mut self.block);
        self.write(&block)?;
        let section = &mut self.sections[section];
        section.entries += u64::from(self.entries);
        section.bytes += (block.len() - FRONT_BYTES) as u64;
        section.blocks.push(index);
        // One huge entry must not keep its memory for the rest of the part.
        block.truncate(FRONT_BYTES);
        block.shrink_to(4 * PAYLOAD_BYTES_MAX);
        self.block = block;
        self.entries = 0;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        if let Err(error) = self.out.write_all(bytes) {
            self.failed = true;
            return Err(error.into());
        }
        self.checksum = crc32c::crc32c_append(self.checksum, bytes);
        self.offset += bytes.len() as u64;
        Ok(())
    }
}

impl<W: Write> SectionOutput for Section<'_, W> {
    #[inline]
    fn entry(
        &mut self,
        group: KeyGroup,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), FormatError>,
    ) -> Result<(), FormatError> {
        self.part.entry(group, fill)
    }
}
