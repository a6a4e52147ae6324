//! Blocks: the frame around every durable byte.
//!
//! ```text
//! magic "HWBK" | version u16 | kind u8 | flags u8 | length u32 | crc32c u32 | payload
//! ```
//! All numbers are little-endian. `length` counts the payload; the checksum covers the twelve bytes before it and
//! the payload, so a damaged length is noticed like any other damage. Lengths are compared with the bytes that
//! are there before anything is allocated. No flag is defined: a block with one is refused.

use std::io::Read;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{FormatError, codec};

/// The version that this program writes, and the newest that it reads.
pub const VERSION: u16 = 1;
/// Units: bytes of a frame before its payload.
pub const FRAME_BYTES: usize = 16;
/// Units: bytes. A payload is this long at most, unless a single entry is longer.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Units: bytes. No entry is longer.
pub const ENTRY_BYTES_MAX: usize = 1 << 30;
/// Units: bytes. No payload is longer: the longest entry and what an entry block says about it.
const LENGTH_MAX: usize = ENTRY_BYTES_MAX + 4096;

const MAGIC: [u8; 4] = *b"HWBK";

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum BlockKind {
    /// Whose part this is.
    PartHeader = 1,
    /// Entries of one section of a part.
    Entries = 2,
    /// The index of a part.
    PartFooter = 3,
    /// The manifest of a checkpoint.
    Manifest = 4,
    /// The record of a job.
    Job = 5,
    /// What a new attempt found, by which manifests of earlier attempts are judged.
    Fence = 6,
    /// One entry of a job's history.
    History = 7,
    /// What a user asks a running job for.
    Request = 8,
    /// The job's answer to it.
    Answer = 9,
    /// What a process has read to restore.
    Restore = 10,
    /// Which checkpoints of others a job has taken over.
    Claimed = 11,
}

/// Fills the frame at the start of `block`, whose payload is already behind it.
///
/// # Errors
/// [`FormatError::Encode`] if the payload is too long.
///
/// # Panics
/// If `block` is shorter than a frame: a caller bug.
pub fn seal(kind: BlockKind, block: &mut [u8]) -> Result<(), FormatError> {
    let length = block.len() - FRAME_BYTES;
    if length > LENGTH_MAX {
        return Err(FormatError::Encode {
            what: format!("a {kind:?} block"),
            why: format!("{length} bytes are more than the limit of {LENGTH_MAX}"),
        });
    }
    block[..4].copy_from_slice(&MAGIC);
    block[4..6].copy_from_slice(&VERSION.to_le_bytes());
    block[6] = kind as u8;
    block[7] = 0;
    block[8..12].copy_from_slice(&(length as u32).to_le_bytes());
    let checksum = checksum(block);
    block[12..16].copy_from_slice(&checksum.to_le_bytes());
    Ok(())
}

/// Writes a value as one block.
///
/// # Errors
/// [`FormatError::Encode`] if the value does not serialize or is too long.
pub fn encode_value<T: Serialize>(kind: BlockKind, value: &T) -> Result<Vec<u8>, FormatError> {
    let mut block = vec![0; FRAME_BYTES];
    codec::encode(value, &mut block)?;
    seal(kind, &mut block)?;
    Ok(block)
}

/// Reads a value that is the whole of `bytes`.
///
/// # Errors
/// [`FormatError::Corrupt`] or [`FormatError::TooNew`]; bytes left over are corruption.
pub fn decode_value<T: DeserializeOwned>(kind: BlockKind, bytes: &[u8]) -> Result<T, FormatError> {
    codec::decode(open(kind, bytes)?).map_err(|e| e.moved_by(FRAME_BYTES as u64))
}

/// Checks a block that is the whole of `bytes`, and returns its payload.
///
/// # Errors
/// [`FormatError::Corrupt`] or [`FormatError::TooNew`]; offsets count from the start of `bytes`.
pub fn open(kind: BlockKind, bytes: &[u8]) -> Result<&[u8], FormatError> {
    let Some((frame, payload)) = bytes.split_first_chunk::<FRAME_BYTES>() else {
        return Err(FormatError::corrupt(0, format!("{} bytes are no block", bytes.len())));
    };
    let length = check_frame(kind, frame, payload.len() as u64)?;
    if length != payload.len() {
        let left = payload.len() - length;
        return Err(FormatError::corrupt(
            (FRAME_BYTES + length) as u64,
            format!("{left} bytes after the end"),
        ));
    }
    check_sum(frame, bytes)?;
    Ok(payload)
}

/// Reads one block from a medium that has `remaining_bytes` left, into `block`; the payload begins at
/// [`FRAME_BYTES`]. Offsets in errors count from the start of the block.
///
/// # Errors
/// [`FormatError`].
pub fn read(
    kind: BlockKind,
    reader: &mut impl Read,
    remaining_bytes: u64,
    block: &mut Vec<u8>,
) -> Result<(), FormatError> {
    let Some(payload_max) = remaining_bytes.checked_sub(FRAME_BYTES as u64) else {
        return Err(FormatError::corrupt(0, format!("{remaining_bytes} bytes are no block")));
    };
    let mut frame = [0; FRAME_BYTES];
    reader.read_exact(&mut frame)?;
    let length = check_frame(kind, &frame, payload_max)?;
    block.clear();
    block.resize(FRAME_BYTES + length, 0);
    block[..FRAME_BYTES].copy_from_slice(&frame);
    reader.read_exact(&mut block[FRAME_BYTES..])?;
    check_sum(&frame, block)
}

fn check_frame(
    kind: BlockKind,
    frame: &[u8; FRAME_BYTES],
    remaining: u64,
) -> Result<usize, FormatError> {
    if frame[..4] != MAGIC {
        return Err(FormatError::corrupt(0, "this is not a block: wrong magic"));
    }
    let version = u16::from_le_bytes([frame[4], frame[5]]);
    if version > VERSION {
        return Err(FormatError::TooNew { found: version, supported: VERSION });
    }
    if version == 0 {
        return Err(FormatError::corrupt(4, "there is no version 0"));
    }
    if frame[6] != kind as u8 {
        let why = format!("expected a {kind:?} block, found kind {}", frame[6]);
        return Err(FormatError::corrupt(6, why));
    }
    if frame[7] != 0 {
        return Err(FormatError::corrupt(7, format!("unknown flags {:#04x}", frame[7])));
    }
    let length = u32::from_le_bytes([frame[8], frame[9], frame[10], frame[11]]);
    if u64::from(length) > remaining || length as usize > LENGTH_MAX {
        let why = format!("a payload of {length} bytes is announced, {remaining} are there");
        return Err(FormatError::corrupt(8, why));
    }
    Ok(length as usize)
}

fn check_sum(frame: &[u8; FRAME_BYTES], block: &[u8]) -> Result<(), FormatError> {
    let expected = u32::from_le_bytes([frame[12], frame[13], frame[14], frame[15]]);
    let found = checksum(block);
    if expected == found {
        Ok(())
    } else {
        let why = format!("expected checksum {expected:#010x}, found {found:#010x}");
        Err(FormatError::corrupt(0, why))
    }
}

fn checksum(block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block[..12]), &block[FRAME_BYTES..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tests::{every_prefix_is_refused, mutations_never_decode_to_something_else};

    fn block() -> Vec<u8> {
        encode_value(BlockKind::History, &vec![7_u64; 40]).unwrap()
    }

    #[test]
    fn a_value_comes_back() {
        assert_eq!(decode_value::<Vec<u64>>(BlockKind::History, &block()).unwrap(), vec![7; 40]);
        let mut read_back = Vec::new();
        let bytes = block();
        read(BlockKind::History, &mut &bytes[..], bytes.len() as u64, &mut read_back).unwrap();
        assert_eq!(read_back, bytes);
    }

    #[test]
    fn damage_is_refused() {
        let decode = |bytes: &[u8]| decode_value::<Vec<u64>>(BlockKind::History, bytes);
        every_prefix_is_refused(&block(), decode);
        mutations_never_decode_to_something_else(&block(), &vec![7; 40], decode);
        let mut longer = block();
        longer.push(0);
        assert!(decode(&longer).is_err());
    }

    #[test]
    fn a_block_of_another_kind_or_a_later_version_is_refused_by_name() {
        let error = decode_value::<Vec<u64>>(BlockKind::Job, &block()).unwrap_err();
        assert!(error.to_string().contains("expected a Job block"), "{error}");
        let mut later = block();
        later[4] = 9;
        let error = decode_value::<Vec<u64>>(BlockKind::History, &later).unwrap_err();
        assert!(matches!(error, FormatError::TooNew { found: 9, supported: VERSION }));
    }

    #[test]
    fn an_announced_length_is_checked_before_it_is_allocated() {
        let mut bytes = block();
        bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut buffer = Vec::new();
        let result = read(BlockKind::History, &mut &bytes[..], bytes.len() as u64, &mut buffer);
        assert!(matches!(result, Err(FormatError::Corrupt { offset: 8, .. })));
        assert_eq!(buffer.capacity(), 0);
    }
}
