//! Reading everything, to say what is damaged, missing or left over.

use std::io::Read;

use super::{JobStore, JobStoreError, layout};
use crate::format::FormatError;
use crate::format::manifest::{LayerRef, Manifest, PartPlace, PartRef, Piece};
use crate::ids::Epoch;
use crate::storage::{BlobPath, StorageError};

/// What is wrong with a blob.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// The checkpoint that needs it.
    pub epoch: Epoch,
    /// The blob, with the store's root in front.
    pub path: String,
    /// Where. Units: bytes from its start. `None`: all of it, or it is not there.
    pub offset: Option<u64>,
    /// What.
    pub why: String,
}

/// What reading checkpoints found.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct VerifyReport {
    /// The checkpoints that were read.
    pub checkpoints: Vec<Epoch>,
    /// Number of parts that were read, inline ones among them.
    pub parts: u64,
    /// Number of blocks that were read.
    pub blocks: u64,
    /// Number of entries in these.
    pub entries: u64,
    /// Units: bytes of the parts.
    pub bytes: u64,
    /// What is damaged or missing.
    pub problems: Vec<Problem>,
    /// Blobs of the job that nothing references (those of a checkpoint in progress among them). No damage: they are
    /// removed by the job.
    pub unreferenced: Vec<String>,
}

impl VerifyReport {
    /// Whether every checkpoint that was read can be restored.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }
}

/// The path, the size and the checksum of a piece that is a blob.
fn blob_of(piece: Piece<'_>) -> Option<(&str, u64, u32)> {
    match piece {
        Piece::Layer(LayerRef { path, bytes, crc32c, .. })
        | Piece::Part(PartRef { place: PartPlace::Blob { path, bytes, crc32c }, .. }) => {
            Some((path, *bytes, *crc32c))
        }
        Piece::Part(_) => None,
    }
}

impl JobStore {
    /// Reads every block of one checkpoint, or of all that count.
    ///
    /// # Errors
    /// [`JobStoreError`] if the store can not even be listed. Damage is no error: it is in the report.
    pub fn verify(&self, only: Option<Epoch>) -> Result<VerifyReport, JobStoreError> {
        let (blobs, valid) = self.blobs_and_valid()?;
        let mut report = VerifyReport::default();
        let mut reachable = self.reachable_otherwise(&blobs, &valid);
        if only.is_none()
            && valid.is_empty()
            && let Some(first) = self.record_of_job()?.first_completed
        {
            return Err(self.missing(first));
        }
        if let Some(epoch) = only
            && !valid.contains(&epoch)
        {
            self.load(epoch)?;
        }
        for epoch in valid {
            let wanted = only.is_none_or(|only| only == epoch);
            if wanted {
                report.checkpoints.push(epoch);
            }
            match self.load_unchecked(epoch) {
                Ok(manifest) => {
                    if wanted {
                        self.verify_checkpoint(&manifest, &mut report);
                    }
                    let references = manifest.blobs().filter_map(|p| BlobPath::new(p).ok());
                    reachable.extend(references);
                }
                Err(error) => {
                    if wanted {
                        self.note(epoch, &self.path(&layout::manifest(epoch)), error, &mut report);
                    }
                    // Nobody can say which of its neighbours it needs.
                    let directory = format!("{}/", self.path(&layout::checkpoint(epoch)));
                    let neighbours = blobs.iter().map(|(path, _)| path);
                    let neighbours = neighbours.filter(|p| p.as_str().starts_with(&directory));
                    reachable.extend(neighbours.cloned());
                }
            }
        }
        let left_over = blobs.iter().filter(|(path, _)| !reachable.contains(path));
        report.unreferenced = left_over.map(|(path, _)| self.address(path)).collect();
        Ok(report)
    }

    fn verify_checkpoint(&self, manifest: &Manifest, report: &mut VerifyReport) {
        let place = self.path(&layout::manifest(manifest.epoch));
        for part in &manifest.parts {
            report.parts += 1;
            for piece in part.pieces() {
                if let Err(error) = self.verify_piece(manifest, piece, report) {
                    let path = blob_of(piece).and_then(|(path, ..)| BlobPath::new(path).ok());
                    self.note(manifest.epoch, path.as_ref().unwrap_or(&place), error, report);
                }
            }
            for file in part.natives.iter().flat_map(|image| &image.files) {
                if let Err(error) = self.verify_blob(manifest, &file.path, file.bytes, file.crc32c)
                {
                    let path = BlobPath::new(file.path.clone()).ok();
                    self.note(manifest.epoch, path.as_ref().unwrap_or(&place), error, report);
                }
                report.bytes += file.bytes;
            }
        }
    }

    fn verify_piece(
        &self,
        manifest: &Manifest,
        piece: Piece<'_>,
        report: &mut VerifyReport,
    ) -> Result<(), JobStoreError> {
        let failed = |e| self.piece_error(manifest.epoch, piece, e);
        let mut reader = self.open_piece(manifest, piece)?;
        for section in 0..reader.sections().len() {
            let mut blocks = reader.blocks(section, 0..u16::MAX);
            while let Some(block) = blocks.next().map_err(failed)? {
                report.blocks += 1;
                report.entries += u64::from(block.entries);
            }
        }
        match (blob_of(piece), piece) {
            (Some((path, bytes, crc32c)), _) => {
                report.bytes += bytes;
                self.verify_blob(manifest, path, bytes, crc32c)
            }
            (None, Piece::Part(part)) => {
                report.bytes += part.place.size_bytes();
                Ok(())
            }
            (None, Piece::Layer(_)) => Ok(()),
        }
    }

    /// Reads a blob for its size and its checksum.
    fn verify_blob(
        &self,
        manifest: &Manifest,
        path: &str,
        bytes: u64,
        crc32c: u32,
    ) -> Result<(), JobStoreError> {
        let failed = |error: FormatError| self.damaged(path, error);
        let mut blob = self.open_reference(manifest.epoch, path)?;
        let (mut found, mut size, mut piece) = (0, 0, vec![0; 1 << 20]);
        loop {
            let count = blob.read(&mut piece).map_err(|e| failed(e.into()))?;
            if count == 0 {
                break;
            }
            found = crc32c::crc32c_append(found, &piece[..count]);
            size += count as u64;
        }
        if (size, found) == (bytes, crc32c) {
            return Ok(());
        }
        let why = format!(
            "the manifest says {bytes} bytes with checksum {crc32c:#010x}, the file has {size} with {found:#010x}"
        );
        Err(failed(FormatError::corrupt(0, why)))
    }

    fn note(&self, epoch: Epoch, path: &BlobPath, error: JobStoreError, report: &mut VerifyReport) {
        let (path, offset, why) = match error {
            JobStoreError::Damaged { path, source: FormatError::Corrupt { offset, why } } => {
                (path, Some(offset), why)
            }
            JobStoreError::Damaged { path, source: FormatError::Io(error) } => {
                (path, None, format!("it can not be read: {error}"))
            }
            JobStoreError::Damaged { path, source } => (path, None, source.to_string()),
            JobStoreError::Storage(StorageError::NotFound { path }) => {
                (path, None, "it is not there".to_owned())
            }
            JobStoreError::Storage(StorageError::Determinate { path, source, .. }) => {
                (path, None, format!("it can not be read: {source}"))
            }
            error => (self.address(path), None, error.to_string()),
        };
        report.problems.push(Problem { epoch, path, offset, why });
    }
}
