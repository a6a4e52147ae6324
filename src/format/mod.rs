//! Bytes on disk: blocks, parts, manifests. No I/O beyond `io::Read`/`io::Write`; decoders are total.

use crate::ids::KeyGroup;

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
