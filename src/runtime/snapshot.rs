//! Writing one worker's part of a checkpoint, on a snapshot thread.

use std::io::{self, Write};
use std::time::Duration;

use crate::format::manifest::{PartPlace, PartRef};
use crate::format::part::{PartHeader, PartWriter, SectionIndex};
use crate::format::record::WorkerTimings;
use crate::format::{FormatError, SectionKind};
use crate::ids::Name;
use crate::runtime::context::{Assembled, AttemptShared, SectionFailure};
use crate::runtime::describe;
use crate::storage::{BlobPath, BlobWriter, CheckpointStorage, StorageError};

/// A part could not be made.
#[derive(Debug)]
pub(crate) struct PartFailure {
    pub(crate) operator: Option<Name>,
    pub(crate) why: String,
    /// Whether the attempt must end: records would be lost if it went on.
    pub(crate) fatal: bool,
}

/// Where a part goes: memory as long as it is small, then a blob.
struct Destination<'a> {
    storage: &'a dyn CheckpointStorage,
    path: &'a BlobPath,
    inline_bytes_max: usize,
    memory: Vec<u8>,
    blob: Option<Box<dyn BlobWriter>>,
}

impl Write for Destination<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(blob) = &mut self.blob {
            return blob.write(bytes);
        }
        self.memory.extend_from_slice(bytes);
        if self.memory.len() > self.inline_bytes_max {
            let mut blob = self.storage.writer(self.path).map_err(io::Error::other)?;
            blob.write_all(&std::mem::take(&mut self.memory))?;
            self.blob = Some(blob);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.blob.as_mut().map_or(Ok(()), |blob| blob.flush())
    }
}

/// Writes all sections, and makes the part durable.
///
/// Every section's task is run even if the checkpoint is already given up: a sink's pre-commit must not be lost.
///
/// # Errors
/// [`PartFailure`], naming the operator if it was one.
pub(crate) fn write_part(
    shared: &AttemptShared,
    worker: usize,
    peers: usize,
    assembled: Assembled,
) -> Result<(PartRef, WorkerTimings), PartFailure> {
    let start = shared.clock.now();
    let path = shared.store.part_path(assembled.epoch, shared.attempt, worker as u32);
    let inline_bytes_max =
        if shared.durable { shared.config.checkpoints.inline_bytes_max } else { usize::MAX };
    let mut destination = Destination {
        storage: shared.store.storage(),
        path: &path,
        inline_bytes_max,
        memory: Vec::new(),
        blob: None,
    };
    let broken = |error: FormatError| PartFailure {
        operator: None,
        why: describe(&error),
        fatal: false,
    };
    let header = PartHeader {
        job: shared.config.name.clone(),
        epoch: assembled.epoch,
        attempt: shared.attempt,
        worker: worker as u32,
        parallelism: peers as u32,
        max_parallelism: shared.config.max_parallelism,
    };
    let mut writer = PartWriter::new(&mut destination, &header).map_err(broken)?;
    for (header, task) in assembled.sections {
        let operator = header.operator.clone();
        let written = writer
            .section(&header)
            .map_err(SectionFailure::from)
            .and_then(|mut section| task(&mut section));
        written.map_err(|failure| PartFailure {
            operator: Some(operator),
            fatal: matches!(failure, SectionFailure::PreCommit(_)),
            why: describe(&failure),
        })?;
    }
    let (_, summary) = writer.finish().map_err(broken)?;
    let place = match destination.blob {
        None => PartPlace::Inline(destination.memory),
        Some(blob) => {
            blob.finish().map_err(|error: StorageError| PartFailure {
                operator: None,
                why: describe(&error),
                fatal: false,
            })?;
            let (bytes, crc32c) = (summary.bytes, summary.crc32c);
            PartPlace::Blob { path: path.to_string(), bytes, crc32c }
        }
    };
    let logged = summary.sections.iter().filter(|s| s.header.kind == SectionKind::ChannelLog);
    let timings = WorkerTimings {
        worker: worker as u32,
        align_us: microseconds(assembled.align),
        sync_us: microseconds(assembled.sync),
        async_us: microseconds(shared.clock.now().saturating_sub(start)),
        bytes: summary.bytes,
        in_flight_bytes: logged.map(|section| section.bytes).sum(),
    };
    let sections = summary.sections.iter().map(SectionIndex::summary).collect();
    Ok((PartRef { worker: worker as u32, place, sections }, timings))
}

fn microseconds(duration: Duration) -> u64 {
    duration.as_micros() as u64
}
