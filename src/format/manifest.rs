//! The manifest: what a checkpoint is made of. A checkpoint is complete when its manifest is there.

use serde::{Deserialize, Serialize};

use super::block::{self, BlockKind};
use super::{Extent, FormatError, SectionHeader};
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
    /// Earlier parts that hold what this one does not repeat, in ascending order of epochs. Of these counts what is in key
    /// groups of this part's worker, and in no newer layer.
    pub layers: Vec<LayerRef>,
    /// Images of states that a backend keeps in files of its own format.
    pub natives: Vec<NativeImage>,
}

/// A part of an earlier checkpoint that a later one needs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LayerRef {
    /// The checkpoint that it was written for.
    pub epoch: Epoch,
    /// The worker that wrote it.
    pub worker: u32,
    /// The attempt that wrote it.
    pub attempt: Attempt,
    /// Its path in the checkpoint store.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// The checksum of all its bytes.
    pub crc32c: u32,
}

/// The states of one operator on one worker, as files of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NativeImage {
    /// The operator.
    pub operator: Name,
    /// The backend whose files these are.
    pub backend: String,
    /// The version of its format.
    pub version: u16,
    /// The files.
    pub files: Vec<NativeFile>,
}

/// A file of a [`NativeImage`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NativeFile {
    /// Its name in the directory of the backend.
    pub name: String,
    /// Its path in the checkpoint store.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// The checksum of all its bytes.
    pub crc32c: u32,
}

/// One of the files that the state of a worker is spread over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// An earlier part.
    Layer(&'a LayerRef),
    /// The part of the checkpoint itself.
    Part(&'a PartRef),
}

impl PartRef {
    /// The part and the layers beneath it, oldest first.
    pub fn pieces(&self) -> impl DoubleEndedIterator<Item = Piece<'_>> {
        self.layers.iter().map(Piece::Layer).chain([Piece::Part(self)])
    }
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
    /// How much of the state.
    pub extent: Extent,
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
        self.parts.iter().flat_map(|part| {
            let own = match &part.place {
                PartPlace::Blob { path, .. } => Some(path.as_str()),
                PartPlace::Inline(_) => None,
            };
            let layers = part.layers.iter().map(|layer| layer.path.as_str());
            let files = part.natives.iter().flat_map(|image| &image.files);
            own.into_iter().chain(layers).chain(files.map(|file| file.path.as_str()))
        })
    }

    /// Units: bytes of all parts, without what they share with earlier ones.
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
        };
        let sections =
            vec![SectionSummary { header, extent: Extent::Whole, entries: 3, bytes: 30 }];
        let blob = PartPlace::Blob { path: "job/chk/7/2-1.part".into(), bytes: 400, crc32c: 9 };
        let layer = LayerRef {
            epoch: Epoch(3),
            worker: 0,
            attempt: Attempt(1),
            path: "job/shared/1-3-0".into(),
            bytes: 70,
            crc32c: 8,
        };
        let path = "job/shared/2-5-000012.sst".to_owned();
        let file = NativeFile { name: "000012.sst".into(), path, bytes: 4, crc32c: 1 };
        let operator = Name::new("sum").unwrap();
        let files = vec![file];
        let native = NativeImage { operator, backend: "rocksdb".into(), version: 1, files };
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
                    layers: Vec::new(),
                    natives: Vec::new(),
                },
                PartRef {
                    worker: 1,
                    place: blob,
                    sections,
                    layers: vec![layer],
                    natives: vec![native],
                },
            ],
        }
    }

    #[test]
    fn a_manifest_comes_back_and_knows_what_it_needs() {
        let manifest = manifest();
        assert_eq!(Manifest::decode(&manifest.encode().unwrap()).unwrap(), manifest);
        let blobs: Vec<_> = manifest.blobs().collect();
        let expected = ["job/chk/7/2-1.part", "job/shared/1-3-0", "job/shared/2-5-000012.sst"];
        assert_eq!(blobs, expected);
        assert_eq!((manifest.size_bytes(), manifest.entries()), (490, 6));
    }

    #[test]
    fn a_damaged_manifest_is_refused() {
        let bytes = manifest().encode().unwrap();
        every_prefix_is_refused(&bytes, Manifest::decode);
        mutations_never_decode_to_something_else(&bytes, &manifest(), Manifest::decode);
    }
}
