//! One checkpoint or savepoint to read from, wherever it is.
//!
//! A checkpoint in the directory of its job is judged by the job's attempts: one that a fenced attempt published does
//! not count. A savepoint, and a checkpoint's directory that somebody copied elsewhere, stand for themselves: their parts
//! are looked for beside the manifest, so that they can be moved.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::job_store::{JobStore, JobStoreError, PartBytes, read_piece};
use super::{BlobContents, BlobPath, BlobReader, CheckpointStorage, StorageError, place};
use crate::format::manifest::{LayerRef, Manifest, ManifestKind, PartPlace, PartRef, Piece};
use crate::format::part::PartReader;
use crate::format::part::{EntryBlock, PartHeader, SectionIndex};
use crate::format::{Extent, FormatError, SectionHeader};
use crate::ids::{Epoch, HashRange};
use crate::protocol::key_groups::{hashes, key_groups};
use crate::protocol::layers::{HashRanges, Layer, Selection};

const MANIFEST: &str = "manifest";

/// A checkpoint or a savepoint: its manifest, and where its parts are. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Image {
    manifest: Arc<Manifest>,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    /// In the store of its job.
    Job(JobStore),
    /// In a directory of its own.
    Directory(Arc<dyn CheckpointStorage>),
}

impl Image {
    /// A checkpoint of a job.
    ///
    /// # Errors
    /// As [`JobStore::load`].
    pub fn of_job(store: JobStore, epoch: Epoch) -> Result<Self, JobStoreError> {
        Ok(Self::loaded(store.load(epoch)?, store))
    }

    /// A checkpoint of a job whose manifest is read already.
    #[must_use]
    pub fn loaded(manifest: Manifest, store: JobStore) -> Self {
        Self { manifest: Arc::new(manifest), place: Place::Job(store) }
    }

    /// What is in the directory `path`: a savepoint, a checkpoint of a job, or a copy of one. `/manifest` may follow. It may
    /// be the URL of such a directory in an object store.
    ///
    /// # Errors
    /// [`JobStoreError::NotACheckpointPath`] if no manifest is there, and others.
    pub fn open(path: &Path) -> Result<Self, JobStoreError> {
        // In its job's directory? Then the job's record is there.
        match JobStore::open_checkpoint_path(path) {
            Ok((store, epoch)) if store.record_of_job().is_ok() => {
                return Self::of_job(store, epoch);
            }
            // Asking once more would only take as long again.
            Err(JobStoreError::Storage(error)) if error.is_unreachable() => {
                return Err(error.into());
            }
            _ => {}
        }
        let none = || JobStoreError::NotACheckpointPath { path: path.display().to_string() };
        let storage = if let Some(url) = place::url(path) {
            let url = url.trim_end_matches('/');
            let directory = url.strip_suffix("/manifest").unwrap_or(url);
            place::open_existing(Path::new(directory))?
        } else {
            let absolute = std::path::absolute(path).map_err(|_| none())?;
            let directory = if absolute.ends_with(MANIFEST) && !absolute.is_dir() {
                absolute.parent().ok_or_else(none)?
            } else {
                &absolute
            };
            if !directory.is_dir() {
                return Err(none());
            }
            place::open_existing(directory)?
        };
        let bytes = match storage.read(&blob(MANIFEST), Manifest::BYTES_MAX) {
            Err(StorageError::NotFound { .. }) => return Err(none()),
            read => read?,
        };
        let manifest = Manifest::decode(&bytes).map_err(|source| {
            let path = format!("{}/{MANIFEST}", storage.location());
            JobStoreError::Damaged { path, source }
        })?;
        Ok(Self { manifest: Arc::new(manifest), place: Place::Directory(storage) })
    }

    /// What it is made of.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where it is, for messages.
    #[must_use]
    pub fn location(&self) -> String {
        match &self.place {
            Place::Job(store) => {
                let (job, location) = (store.job(), store.storage().location());
                format!("{location}/{job}/chk/{}", self.manifest.epoch)
            }
            Place::Directory(storage) => storage.location(),
        }
    }

    /// The store of the job that it is a checkpoint of, unless it stands for itself.
    #[must_use]
    pub fn job_store(&self) -> Option<&JobStore> {
        match &self.place {
            Place::Job(store) => Some(store),
            Place::Directory(_) => None,
        }
    }

    /// The store that its files are in, and their names there, the manifest's not among them.
    ///
    /// # Errors
    /// [`JobStoreError::NotSelfContained`] if one is outside of a directory that was copied.
    pub fn files(&self) -> Result<(&dyn CheckpointStorage, Vec<BlobPath>), JobStoreError> {
        let storage = match &self.place {
            Place::Job(store) => store.storage(),
            Place::Directory(storage) => storage,
        };
        let name = |path: &str| match &self.place {
            Place::Job(store) => store.reference(self.manifest.epoch, path),
            Place::Directory(_) => self.beside(path),
        };
        let names: Result<_, _> = self.manifest.blobs().map(name).collect();
        Ok((&**storage, names?))
    }

    /// Opens a part, and checks that it is what the manifest says. Errors of the reader itself do not name the file: wrap
    /// them with [`Image::part_error`].
    ///
    /// # Errors
    /// [`JobStoreError::Damaged`] and others.
    pub fn open_part(&self, part: &PartRef) -> Result<PartReader<PartBytes>, JobStoreError> {
        self.open_piece(Piece::Part(part))
    }

    /// As [`Image::open_part`], of a part or of a layer beneath it.
    ///
    /// # Errors
    /// As there.
    pub fn open_piece(&self, piece: Piece<'_>) -> Result<PartReader<PartBytes>, JobStoreError> {
        let damaged = |error| self.piece_error(piece, error);
        match &self.place {
            Place::Job(store) => store.open_piece(&self.manifest, piece),
            Place::Directory(_) => {
                let open = |path: &str, contents| self.open_blob(path, contents);
                read_piece(&self.manifest, piece, open, damaged)
            }
        }
    }

    /// Opens a blob that the manifest names, with what it says that the blob holds. Whether it does is for the caller to check.
    ///
    /// # Errors
    /// [`JobStoreError::NotSelfContained`] if it is outside of a directory that was copied, and others.
    pub fn open_blob(
        &self,
        path: &str,
        contents: BlobContents,
    ) -> Result<Box<dyn BlobReader>, JobStoreError> {
        match &self.place {
            Place::Job(store) => store.open_checked(self.manifest.epoch, path, contents),
            Place::Directory(storage) => Ok(storage.open(&self.beside(path)?)?),
        }
    }

    /// The name of a file beside the manifest, which must be there.
    fn beside(&self, path: &str) -> Result<BlobPath, JobStoreError> {
        self.name_beside(path).ok_or_else(|| {
            let location = match &self.place {
                Place::Job(store) => store.storage().location(),
                Place::Directory(storage) => storage.location(),
            };
            JobStoreError::NotSelfContained { location, path: path.to_owned() }
        })
    }

    /// Says of damage in a blob that the manifest names which file it is.
    #[must_use]
    pub fn file_error(&self, path: &str, source: FormatError) -> JobStoreError {
        let location = match &self.place {
            Place::Job(store) => store.storage().location(),
            Place::Directory(storage) => storage.location(),
        };
        JobStoreError::Damaged { path: format!("{location}/{path}"), source }
    }

    /// Whether a piece is a file that several checkpoints may share.
    #[must_use]
    pub fn is_shared(&self, piece: Piece<'_>) -> bool {
        match (&self.place, piece) {
            (Place::Directory(_), _) => false,
            (Place::Job(_), Piece::Layer(_)) => true,
            (Place::Job(store), Piece::Part(part)) => match &part.place {
                PartPlace::Blob { path, .. } => store.is_shared(path),
                PartPlace::Inline(_) => false,
            },
        }
    }

    /// The key groups of `groups` that a worker's part is about.
    #[must_use]
    pub fn overlap(&self, worker: u32, groups: &Range<u16>) -> Range<u16> {
        let own = owned(self.manifest.max_parallelism, self.manifest.parallelism, worker);
        own.start.max(groups.start)..own.end.min(groups.end)
    }

    /// Reads all blocks of a keyed state that hold entries of `groups`, in an order in which a later entry takes the place of
    /// an earlier one with the same key. Returns the layers that they are in, if other checkpoints may share all of these.
    ///
    /// # Errors
    /// [`JobStoreError`], naming the file; an error of `take` is taken for damage.
    pub fn read_table(
        &self,
        wanted: impl Fn(&SectionHeader) -> bool,
        groups: &Range<u16>,
        mut take: impl FnMut(&Selection<'_>, &EntryBlock<'_>) -> Result<(), FormatError>,
    ) -> Result<Option<Vec<Layer>>, JobStoreError> {
        let mut layers: BTreeMap<Epoch, HashRanges> = BTreeMap::new();
        let mut shared = true;
        for part in &self.manifest.parts {
            let own = self.overlap(part.worker, groups);
            // What stands alone counts wherever it is: conversions leave entries where they were.
            let groups = if part.layers.is_empty() { groups.clone() } else { own.clone() };
            let Some(range) = hashes(&groups, self.manifest.max_parallelism) else { continue };
            if !part.sections.iter().any(|section| wanted(&section.header)) {
                continue;
            }
            let steps = self.table_layers(part, range, &wanted)?;
            for step in steps.iter().rev() {
                let TableLayer { piece, section, changes, .. } = *step;
                if !step.empty && !own.is_empty() {
                    let whole = layers.entry(step.epoch).or_default();
                    step.whole.clip(range).as_slice().iter().for_each(|own| whole.insert(*own));
                    shared &= self.is_shared(piece);
                }
                let damaged = |error| self.piece_error(piece, error);
                let mut reader = self.open_piece(piece)?;
                let superseded = &step.superseded;
                let selection = Selection { groups: groups.clone(), superseded, changes };
                let mut blocks = reader.blocks(section, groups.clone());
                while let Some(block) = blocks.next().map_err(damaged)? {
                    take(&selection, &block)
                        .map_err(|error| damaged(error.moved_by(block.offset)))?;
                }
            }
        }
        let layer = |(epoch, whole)| Layer { epoch, whole, top: true };
        Ok(shared.then(|| layers.into_iter().map(layer).collect()))
    }

    /// The layers of a state that hold anything of a range of hashes that counts, newest first.
    fn table_layers<'a>(
        &self,
        part: &'a PartRef,
        range: HashRange,
        wanted: &impl Fn(&SectionHeader) -> bool,
    ) -> Result<Vec<TableLayer<'a>>, JobStoreError> {
        let mut superseded = HashRanges::none();
        let mut layers = Vec::new();
        for piece in part.pieces().rev() {
            if superseded.covers(range) {
                break;
            }
            let reader = self.open_piece(piece)?;
            let place = reader.sections().iter().position(|section| wanted(&section.header));
            let Some(section) = place else { continue };
            let SectionIndex { extent, entries, .. } = &reader.sections()[section];
            let (changes, whole): (_, HashRanges) = match extent {
                Extent::Whole => {
                    let PartHeader { max_parallelism, parallelism, worker, .. } = *reader.header();
                    let groups = owned(max_parallelism, parallelism, worker);
                    (false, hashes(&groups, max_parallelism).into_iter().collect())
                }
                Extent::Changes { whole } => (true, whole.iter().copied().collect()),
            };
            let epoch = match piece {
                Piece::Layer(layer) => layer.epoch,
                Piece::Part(_) => self.manifest.epoch,
            };
            let empty = changes && *entries == 0 && whole.is_empty();
            let before = superseded.clone();
            whole.as_slice().iter().for_each(|range| superseded.insert(*range));
            let superseded = before;
            layers.push(TableLayer { epoch, piece, section, changes, empty, whole, superseded });
        }
        Ok(layers)
    }

    /// The name of a file beside the manifest.
    fn name_beside(&self, path: &str) -> Option<BlobPath> {
        let name = match self.manifest.kind {
            ManifestKind::Savepoint => path,
            ManifestKind::Checkpoint => {
                let Manifest { job, epoch, .. } = &*self.manifest;
                path.strip_prefix(&format!("{job}/chk/{epoch}/"))?
            }
        };
        BlobPath::new(name).ok().filter(|_| !name.contains('/'))
    }

    /// Says of damage in a part which file it is in.
    #[must_use]
    pub fn part_error(&self, part: &PartRef, source: FormatError) -> JobStoreError {
        self.piece_error(Piece::Part(part), source)
    }

    /// Says of damage in a part or a layer which file it is in.
    #[must_use]
    pub fn piece_error(&self, piece: Piece<'_>, source: FormatError) -> JobStoreError {
        let storage = match &self.place {
            Place::Job(store) => return store.piece_error(self.manifest.epoch, piece, source),
            Place::Directory(storage) => storage,
        };
        let location = storage.location();
        let path = match piece {
            Piece::Layer(LayerRef { path, .. })
            | Piece::Part(PartRef { place: PartPlace::Blob { path, .. }, .. }) => {
                let name = self.name_beside(path);
                format!("{location}/{}", name.as_ref().map_or(path.as_str(), BlobPath::as_str))
            }
            Piece::Part(PartRef { place: PartPlace::Inline(_), worker, .. }) => {
                format!("{location}/{MANIFEST}, inline part of worker {worker}")
            }
        };
        JobStoreError::Damaged { path, source }
    }
}

/// A layer of one state in one part.
struct TableLayer<'a> {
    epoch: Epoch,
    piece: Piece<'a>,
    /// Which section of the piece it is.
    section: usize,
    changes: bool,
    /// Whether nothing is lost without it.
    empty: bool,
    whole: HashRanges,
    /// The hashes of which newer layers hold everything.
    superseded: HashRanges,
}

/// The key groups of a worker; none if there is no such worker.
fn owned(max_parallelism: u16, parallelism: u32, worker: u32) -> Range<u16> {
    if worker < parallelism {
        key_groups(max_parallelism, parallelism as usize, worker as usize)
    } else {
        0..0
    }
}

pub(super) fn blob(name: &str) -> BlobPath {
    BlobPath::new(name).expect("a constant name")
}
