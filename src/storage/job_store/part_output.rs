//! Where a worker's part goes: into the manifest while it is small, else into a blob.

use std::io::{self, Write};
use std::sync::Arc;

use super::{JobStore, layout};
use crate::format::manifest::PartPlace;
use crate::format::part::PartSummary;
use crate::ids::{Attempt, Epoch};
use crate::storage::{BlobPath, BlobWriter, CheckpointStorage, StorageError};

/// Takes the bytes of a part. Up to a limit they stay in memory; the first byte beyond opens a blob.
pub struct PartOutput {
    storage: Arc<dyn CheckpointStorage>,
    path: BlobPath,
    inline_bytes_max: usize,
    place: Place,
}

enum Place {
    Inline(Vec<u8>),
    Blob(Box<dyn BlobWriter>),
}

impl JobStore {
    /// A place for the part of one worker. `layer`: later checkpoints may need it; then it is a blob whatever its size.
    #[must_use]
    pub fn part_output(
        &self,
        epoch: Epoch,
        attempt: Attempt,
        worker: u32,
        inline_bytes_max: usize,
        layer: bool,
    ) -> PartOutput {
        let (path, inline_bytes_max) = if layer {
            (self.path(&layout::layer(epoch, attempt, worker)), 0)
        } else {
            (self.part_path(epoch, attempt, worker), inline_bytes_max)
        };
        PartOutput {
            storage: self.storage.clone(),
            path,
            inline_bytes_max,
            place: Place::Inline(Vec::new()),
        }
    }
}

impl PartOutput {
    /// Makes the part durable, unless it is to be inline, and says where it is.
    ///
    /// # Errors
    /// [`StorageError`]; the part is then to be declined.
    pub fn finish(self, summary: &PartSummary) -> Result<PartPlace, StorageError> {
        match self.place {
            Place::Inline(bytes) => Ok(PartPlace::Inline(bytes)),
            Place::Blob(writer) => {
                writer.finish()?;
                let (path, bytes) = (self.path.into(), summary.bytes);
                Ok(PartPlace::Blob { path, bytes, crc32c: summary.crc32c })
            }
        }
    }
}

impl std::fmt::Debug for PartOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartOutput").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Write for PartOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Place::Inline(inline) = &mut self.place {
            if inline.len() + bytes.len() <= self.inline_bytes_max {
                inline.extend_from_slice(bytes);
                return Ok(bytes.len());
            }
            let mut writer = self.storage.writer(&self.path).map_err(io::Error::other)?;
            writer.write_all(inline)?;
            self.place = Place::Blob(writer);
        }
        match &mut self.place {
            Place::Blob(writer) => writer.write(bytes),
            Place::Inline(_) => unreachable!("the place was just changed"),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.place {
            Place::Inline(_) => Ok(()),
            Place::Blob(writer) => writer.flush(),
        }
    }
}
