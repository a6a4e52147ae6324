//! Writing one worker's part of a checkpoint, on a snapshot thread.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::format::manifest::PartRef;
use crate::format::part::{PartHeader, PartWriter, SectionIndex};
use crate::format::record::{FileTransfers, WorkerTimings};
use crate::format::{FormatError, SectionKind};
use crate::ids::Name;
use crate::runtime::context::{Assembled, AttemptShared, SectionFailure, SectionPart};
use crate::runtime::natives::upload;
use crate::runtime::{describe, scope_name};

/// A part could not be made.
#[derive(Debug)]
pub(crate) struct PartFailure {
    pub(crate) operator: Option<Name>,
    pub(crate) why: String,
    /// Whether the attempt must end: records would be lost if it went on.
    pub(crate) fatal: bool,
}

/// Writes all sections, and makes the part durable.
///
/// `writing` tells whose section is being written, for whoever waits.
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
    writing: &Mutex<Option<Name>>,
) -> Result<(PartRef, WorkerTimings), PartFailure> {
    let start = shared.clock.now();
    let inline_bytes_max =
        if shared.durable { shared.config.checkpoints.inline_bytes_max } else { usize::MAX };
    let (epoch, attempt) = (assembled.epoch, shared.attempt);
    let layer = assembled.sections.iter().any(|section| section.layer);
    let output = shared.store.part_output(epoch, attempt, worker as u32, inline_bytes_max, layer);
    let broken =
        |error: FormatError| PartFailure { operator: None, why: describe(&error), fatal: false };
    let header = PartHeader {
        job: shared.config.name.clone(),
        epoch: assembled.epoch,
        attempt: shared.attempt,
        worker: worker as u32,
        parallelism: peers as u32,
        max_parallelism: shared.config.max_parallelism,
    };
    let mut writer = PartWriter::new(output, &header).map_err(broken)?;
    for SectionPart { header, extent, task, .. } in assembled.sections {
        let operator = header.operator.clone();
        *writing.lock().unwrap_or_else(PoisonError::into_inner) = Some(operator.clone());
        let _scope = scope_name(operator.as_str()).enter();
        let written = writer
            .section_of(&header, extent)
            .map_err(SectionFailure::from)
            .and_then(|mut section| task(&mut section));
        written.map_err(|failure| PartFailure {
            operator: Some(operator),
            fatal: matches!(failure, SectionFailure::PreCommit(_)),
            why: describe(&failure),
        })?;
    }
    let (mut natives, mut files) = (Vec::new(), FileTransfers::default());
    for native in assembled.natives {
        let operator = native.operator.clone();
        *writing.lock().unwrap_or_else(PoisonError::into_inner) = Some(operator.clone());
        let uploaded = upload(&shared.store, native, (epoch, attempt, worker));
        let uploaded = uploaded.map_err(|error| PartFailure {
            operator: Some(operator),
            fatal: false,
            why: describe(&error),
        })?;
        if let Some((image, moved)) = uploaded {
            natives.push(image);
            files.uploaded += moved.uploaded;
            files.uploaded_bytes += moved.uploaded_bytes;
            files.reused += moved.reused;
            files.reused_bytes += moved.reused_bytes;
        }
    }
    *writing.lock().unwrap_or_else(PoisonError::into_inner) = None;
    let (output, summary) = writer.finish().map_err(broken)?;
    let place = output.finish(&summary).map_err(|error| PartFailure {
        operator: None,
        why: describe(&error),
        fatal: false,
    })?;
    let logged =
        summary.sections.iter().filter(|section| section.header.kind == SectionKind::ChannelLog);
    let timings = WorkerTimings {
        worker: worker as u32,
        align_us: microseconds(assembled.align),
        sync_us: microseconds(assembled.sync),
        async_us: microseconds(shared.clock.now().saturating_sub(start)),
        bytes: summary.bytes,
        in_flight_bytes: logged.map(|section| section.bytes).sum(),
        in_flight_records: assembled.in_flight_records,
        files,
    };
    let sections = summary.sections.iter().map(SectionIndex::summary).collect();
    let (worker, layers) = (worker as u32, assembled.layers);
    Ok((PartRef { worker, place, sections, layers, natives }, timings))
}

fn microseconds(duration: Duration) -> u64 {
    duration.as_micros() as u64
}
