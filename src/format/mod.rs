//! Bytes on disk: blocks, parts, manifests. No I/O beyond `io::Read`/`io::Write`; decoders are total.

use crate::ids::KeyGroup;

pub mod block;
pub mod codec;
pub mod manifest;
pub mod part;
pub mod record;

/// What a section of a part holds.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[non_exhaustive]
pub enum SectionKind {
    /// Splits and positions of a source: operator state, one entry a split.
    Source,
    /// Keyed value state: one entry a key, sorted by key group.
    KeyedValue,
    /// Transactions that a sink has pre-committed and not yet seen committed.
    SinkTransactions,
    /// In-flight records of a channel.
    ChannelLog,
    /// Event-time timers: one entry a key, with its times ascending, sorted by key group.
    EventTimers,
    /// Processing-time timers: as event-time timers are.
    ProcessingTimers,
    /// Keyed list state: one entry a key, with its elements in order, sorted by key group.
    KeyedList,
    /// Keyed map state: one entry a key, with its entries, sorted by key group.
    KeyedMap,
    /// Keyed reducing state: one entry a key, with what its values were reduced to, sorted by key group.
    KeyedReducing,
    /// Keyed aggregating state: one entry a key, with its accumulator, sorted by key group.
    KeyedAggregating,
    /// The event time that an operator had shown: one entry.
    Watermark,
}

impl SectionKind {
    /// Whether a checkpoint may lack it without lacking state: a channel has a log only if a barrier has overtaken
    /// something, an operator a watermark only if its records have event time.
    #[must_use]
    pub fn is_optional(self) -> bool {
        matches!(self, Self::ChannelLog | Self::Watermark)
    }
}

/// What a section is: whose state, which kind, which types.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct SectionHeader {
    /// The name of the operator, unique in the job.
    pub operator: crate::ids::Name,
    /// The name of the state inside the operator.
    pub state: crate::ids::Name,
    /// What it holds.
    pub kind: SectionKind,
    /// The type of the entries, as the operator knows it.
    pub type_name: String,
    /// The version of the type, as the user counts it.
    pub type_version: u32,
}

/// How much of a state a section holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Extent {
    /// All that its worker owned: nothing older is needed. An entry is what the state's kind says.
    #[default]
    Whole,
    /// What has changed since older parts were written. An entry is a byte 1 and then what the state's kind says, or a
    /// byte 0 and then a key that was removed.
    Changes {
        /// Of keys with these hashes it holds all entries, ascending and disjoint: of these nothing older is needed.
        whole: Vec<crate::ids::HashRange>,
    },
}

/// Before an entry of a key that is there, in a section of changes.
pub const ENTRY_PRESENT: u8 = 1;
/// Before a key that was removed, in a section of changes.
pub const ENTRY_REMOVED: u8 = 0;

/// Takes the entries of one section, in ascending key-group order.
pub trait SectionOutput {
    /// Appends one entry: `fill` appends its bytes.
    ///
    /// # Errors
    /// [`FormatError`] if `fill` fails, if the entry is larger than 1 GiB, or if the medium fails.
    fn entry(
        &mut self,
        group: KeyGroup,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), FormatError>,
    ) -> Result<(), FormatError>;
}

/// Bytes could not be written or read as this format.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The medium failed.
    #[error("i/o failed")]
    Io(#[from] std::io::Error),
    /// A value could not be encoded.
    #[error("{what} could not be encoded: {why}")]
    Encode {
        /// The type.
        what: String,
        /// Why.
        why: String,
    },
    /// The bytes are damaged, or are something else.
    #[error("damaged at byte {offset}: {why}")]
    Corrupt {
        /// Units: bytes from the start of the blob.
        offset: u64,
        /// What was expected and what was found.
        why: String,
    },
    /// The bytes were written by a later version.
    #[error("format version {found} is newer than this program's {supported}")]
    TooNew {
        /// The version found.
        found: u16,
        /// The newest version this program reads.
        supported: u16,
    },
}

impl FormatError {
    /// Moves the offset of damage by `base_bytes`: from inside a blob's piece to the blob.
    #[must_use]
    pub fn moved_by(self, base_bytes: u64) -> Self {
        match self {
            Self::Corrupt { offset, why } => {
                Self::Corrupt { offset: offset.saturating_add(base_bytes), why }
            }
            other => other,
        }
    }

    pub(crate) fn corrupt(offset: u64, why: impl Into<String>) -> Self {
        Self::Corrupt { offset, why: why.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::FormatError;

    /// A small generator of numbers that are the same in every run (xorshift, Marsaglia 2003).
    pub(super) struct Numbers(pub u64);

    impl Numbers {
        pub(super) fn below(&mut self, limit: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % limit as u64) as usize
        }
    }

    pub(super) fn every_prefix_is_refused<T>(
        bytes: &[u8],
        decode: impl Fn(&[u8]) -> Result<T, FormatError>,
    ) {
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "prefix of {length} bytes");
        }
    }

    /// Flips, overwrites, cuts, doubles and drops bytes, 100,000 times.
    pub(super) fn mutations_never_decode_to_something_else<T: PartialEq + std::fmt::Debug>(
        bytes: &[u8],
        original: &T,
        decode: impl Fn(&[u8]) -> Result<T, FormatError>,
    ) {
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        let mut refused = 0;
        for case in 0..100_000 {
            let mut mutated = bytes.to_vec();
            for _ in 0..=numbers.below(4) {
                mutate(&mut mutated, &mut numbers);
            }
            match decode(&mutated) {
                Ok(value) => assert_eq!(&value, original, "case {case}"),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 90_000, "only {refused} of 100,000 mutations were noticed");
    }

    fn mutate(bytes: &mut Vec<u8>, numbers: &mut Numbers) {
        if bytes.is_empty() {
            bytes.push(numbers.below(256) as u8);
            return;
        }
        let at = numbers.below(bytes.len());
        match numbers.below(6) {
            0 => bytes[at] ^= 1 << numbers.below(8),
            1 => bytes[at] = numbers.below(256) as u8,
            2 => bytes[at] = 0xff,
            3 => bytes.truncate(at),
            4 => bytes.insert(at, numbers.below(256) as u8),
            _ => {
                let end = (at + 1 + numbers.below(16)).min(bytes.len());
                let noise = numbers.below(256) as u8;
                bytes[at..end].fill(noise);
            }
        }
    }
}
