//! The manifest: what a checkpoint is made of. A checkpoint is complete when its manifest is there.

use serde::{Deserialize, Serialize};

use super::block::{self, BlockKind};
use super::{FormatError, SectionHeader};
use crate::ids::{Attempt, Epoch, Lineage, Name};

/// The kind of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ManifestKind {
    /// Owned by the system, which deletes it when newer ones are there.
    Checkpoint,
    /// Owned by a user: a directory of its own, whose parts the manifest names by their names in it.
    Savepoint,
}

/// What a checkpoint is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Whose state it is.
    pub job: Name,
    /// The epoch that it closes.
    pub epoch: Epoch,
    /// The attempt that took it.
    pub attempt: Attempt,
    /// The history that it belongs to.
    pub lineage: Lineage,
    /// Number of workers that took it.
    pub parallelism: u32,
    /// Number of key groups.
    pub max_parallelism: u16,
    /// Whose it is.
    pub kind: ManifestKind,
    /// Whether it is the final one, taken at the end of input.
    pub last: bool,
    /// When it was triggered. Units: milliseconds since 1970, by the coordinator's wall clock; for people only.
    pub triggered_unix_ms: u64,
    /// What the workers wrote, in the order of the workers.
    pub parts: Vec<PartRef>,
    /// Paths of further blobs that it needs (those of the parts need not be named again).
    pub files: Vec<String>,
}

/// What one worker wrote for a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRef {
    /// The worker.
    pub worker: u32,
    /// Where the bytes are.
    pub place: PartPlace,
    /// What is in them.
    pub sections: Vec<SectionSummary>,
}

/// Where a part's bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PartPlace {
    /// Here.
    Inline(Vec<u8>),
    /// In a blob of its own.
    Blob {
        /// The blob's path in the checkpoint store.
        path: String,
        /// Its size.
        bytes: u64,
        /// The checksum of all its bytes.
        crc32c: u32,
    },
}

impl PartPlace {
    /// Units: bytes of the part, wherever it is.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Blob { bytes, .. } => *bytes,
        }
    }
}

/// How much of what is in a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SectionSummary {
    /// Whose state, of which kind.
    pub header: SectionHeader,
    /// Number of entries.
    pub entries: u64,
    /// Units: bytes of the entries, without frames.
    pub bytes: u64,
}

impl Manifest {
    /// Units: bytes. A reader may refuse a larger manifest unread.
    pub const BYTES_MAX: u64 = 1 << 28;

    /// The manifest as one checked block.
    ///
    /// # Errors
    /// [`FormatError::Encode`] if it is larger than [`Manifest::BYTES_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        let bytes = block::encode_value(BlockKind::Manifest, self)?;
        if bytes.len() as u64 > Self::BYTES_MAX {
            return Err(FormatError::Encode {
                what: format!("the manifest of checkpoint {}", self.epoch),
                why: format!("{} bytes are too many: inline fewer parts", bytes.len()),
            });
        }
        Ok(bytes)
    }

    /// Reads what [`Manifest::encode`] made.
    ///
    /// # Errors
    /// [`FormatError::Corrupt`] or [`FormatError::TooNew`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        block::decode_value(BlockKind::Manifest, bytes)
    }

    /// Paths of all blobs that the checkpoint needs, its manifest apart.
    pub fn blobs(&self) -> impl Iterator<Item = &str> {
        let parts = self.parts.iter().filter_map(|part| match &part.place {
            PartPlace::Blob { path, .. } => Some(path.as_str()),
            PartPlace::Inline(_) => None,
        });
        parts.chain(self.files.iter().map(String::as_str))
    }

    /// Units: bytes of all parts.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.place.size_bytes()).sum()
    }

    /// Number of entries of all parts.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.parts.iter().flat_map(|part| &part.sections).map(|section| section.entries).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::SectionKind;
    use crate::format::tests::{every_prefix_is_refused, mutations_never_decode_to_something_else};

    fn manifest() -> Manifest {
        let header = SectionHeader {
            operator: Name::new("count").unwrap(),
            state: Name::new("counts").unwrap(),
            kind: SectionKind::KeyedValue,
            type_name: "u64".into(),
            type_version: 1,
            shape: crate::format::shape::EntryShape::default(),
        };
        let sections = vec![SectionSummary { header, entries: 3, bytes: 30 }];
        let blob = PartPlace::Blob { path: "job/chk/7/2-1.part".into(), bytes: 400, crc32c: 9 };
        Manifest {
            job: Name::new("job").unwrap(),
            epoch: Epoch(7),
            attempt: Attempt(2),
            lineage: Lineage(1),
            parallelism: 2,
            max_parallelism: 128,
            kind: ManifestKind::Checkpoint,
            last: false,
            triggered_unix_ms: 1_700_000_000_000,
            parts: vec![
                PartRef {
                    worker: 0,
                    place: PartPlace::Inline(vec![1; 90]),
                    sections: sections.clone(),
                },
                PartRef { worker: 1, place: blob, sections },
            ],
            files: vec!["job/shared/1-3-a".into()],
        }
    }

    #[test]
    fn a_manifest_comes_back_and_knows_what_it_needs() {
        let manifest = manifest();
        assert_eq!(Manifest::decode(&manifest.encode().unwrap()).unwrap(), manifest);
        let blobs: Vec<_> = manifest.blobs().collect();
        assert_eq!(blobs, ["job/chk/7/2-1.part", "job/shared/1-3-a"]);
        assert_eq!((manifest.size_bytes(), manifest.entries()), (490, 6));
    }

    #[test]
    fn a_damaged_manifest_is_refused() {
        let bytes = manifest().encode().unwrap();
        every_prefix_is_refused(&bytes, Manifest::decode);
        mutations_never_decode_to_something_else(&bytes, &manifest(), Manifest::decode);
    }
}
