//! Reading everything, to say what is damaged, missing or left over.

use std::collections::BTreeSet;
use std::io::Read;

use super::{JobStore, JobStoreError, layout};
use crate::format::FormatError;
use crate::format::manifest::{Manifest, PartPlace, PartRef};
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
            if let Err(error) = self.verify_part(manifest, part, report) {
                let path = match &part.place {
                    PartPlace::Blob { path, .. } => BlobPath::new(path.clone()).ok(),
                    PartPlace::Inline(_) => None,
                };
                let path = path.as_ref().unwrap_or(&place);
                self.note(manifest.epoch, path, error, report);
            }
        }
        let files: BTreeSet<_> = manifest.files.iter().collect();
        for file in files {
            let opened = self
                .reference(manifest.epoch, file)
                .and_then(|path| Ok(self.storage.open(&path).map(drop)?));
            if let Err(error) = opened {
                let path = BlobPath::new(file.clone()).ok();
                self.note(manifest.epoch, path.as_ref().unwrap_or(&place), error, report);
            }
        }
    }

    fn verify_part(
        &self,
        manifest: &Manifest,
        part: &PartRef,
        report: &mut VerifyReport,
    ) -> Result<(), JobStoreError> {
        let failed = |e| self.part_error(manifest.epoch, part, e);
        let mut reader = self.open_part(manifest, part)?;
        for section in 0..reader.sections().len() {
            let mut blocks = reader.blocks(section, 0..u16::MAX);
            while let Some(block) = blocks.next().map_err(failed)? {
                report.blocks += 1;
                report.entries += u64::from(block.entries);
            }
        }
        report.bytes += part.place.size_bytes();
        let PartPlace::Blob { path, crc32c: expected, .. } = &part.place else { return Ok(()) };
        let mut blob = self.storage.open(&self.reference(manifest.epoch, path)?)?;
        let (mut found, mut piece) = (0, vec![0; 1 << 20]);
        loop {
            let count = blob.read(&mut piece).map_err(|e| failed(e.into()))?;
            if count == 0 {
                break;
            }
            found = crc32c::crc32c_append(found, &piece[..count]);
        }
        if found == *expected {
            return Ok(());
        }
        let why =
            format!("the manifest says checksum {expected:#010x}, the file has {found:#010x}");
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
