//! Where the tool's reports come from: the checkpoint store and the supervisor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::ExitCode;

use super::checkpoints::{
    DamagedRow, DeleteReport, HistoryRow, ListReport, ListRow, PinReport, ProblemRow, RestoreRow,
    ShowReport, StateRow, Timings, VerifyReport, WaitRow, WorkerRow,
};
use super::error::with_causes;
use super::tool::{RunPlan, ToolError, choose_job, refuse_newest};
use crate::format::SectionKind;
use crate::format::manifest::Manifest;
use crate::format::record::{CheckpointOutcome, CheckpointRecord, RestoreRecord};
use crate::ids::{Epoch, Name};
use crate::storage::job_store::JobStoreError;
use crate::storage::{CheckpointStorage, JobStore, StorageError};
use crate::supervisor::{Supervision, SupervisorError, supervise as run_supervisor};

impl From<JobStoreError> for ToolError {
    fn from(error: JobStoreError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<StorageError> for ToolError {
    fn from(error: StorageError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<SupervisorError> for ToolError {
    fn from(error: SupervisorError) -> Self {
        Self::Failed(error.into())
    }
}

/// Runs the processes until they succeed, fail for good, or we are told to stop.
pub(crate) fn supervise(plan: RunPlan) -> Result<ExitCode, ToolError> {
    let RunPlan { program, args, processes, workers, restart, runtime_dir } = plan;
    let supervision = Supervision { program, args, processes, workers, restart, runtime_dir };
    let outcome = run_supervisor(supervision)?;
    Ok(ExitCode::from(u8::try_from(outcome.exit_code()).unwrap_or(1)))
}

/// The checkpoints of a job.
pub(crate) fn list(dir: &Path, job: Option<&Name>) -> Result<ListReport, ToolError> {
    list_of(&open(dir, job)?)
}

/// What is in a checkpoint; without an id, in the newest.
pub(crate) fn show(
    dir: &Path,
    job: Option<&Name>,
    id: Option<Epoch>,
) -> Result<ShowReport, ToolError> {
    show_of(&open(dir, job)?, id)
}

/// Reads every byte of a checkpoint; without an id, of all.
pub(crate) fn verify(
    dir: &Path,
    job: Option<&Name>,
    id: Option<Epoch>,
) -> Result<VerifyReport, ToolError> {
    verify_of(&open(dir, job)?, id)
}

/// Deletes a checkpoint.
pub(crate) fn delete(
    dir: &Path,
    job: Option<&Name>,
    id: Epoch,
    force: bool,
) -> Result<DeleteReport, ToolError> {
    delete_of(&open(dir, job)?, id, force)
}

/// Pins a checkpoint.
pub(crate) fn pin(dir: &Path, job: Option<&Name>, id: Epoch) -> Result<PinReport, ToolError> {
    let store = open(dir, job)?;
    let changed = store.pin(id)?;
    Ok(pin_report(&store, id, true, changed))
}

/// Takes the pin off a checkpoint.
pub(crate) fn unpin(dir: &Path, job: Option<&Name>, id: Epoch) -> Result<PinReport, ToolError> {
    let store = open(dir, job)?;
    let changed = store.unpin(id)?;
    if !changed {
        // Nobody has pinned what is not there.
        store.load(id)?;
    }
    Ok(pin_report(&store, id, false, changed))
}

fn pin_report(store: &JobStore, id: Epoch, pinned: bool, changed: bool) -> PinReport {
    let (job, location) = (store.job().to_string(), store.storage().location());
    PinReport { job, location, id: id.0, pinned, changed }
}

pub(super) fn open(dir: &Path, job: Option<&Name>) -> Result<JobStore, ToolError> {
    let storage = crate::storage::open_existing(dir)?;
    let jobs = jobs_in(&*storage)?;
    let job = choose_job(job, &jobs, &storage.location())?;
    Ok(JobStore::new(storage, job))
}

/// The jobs of a store, in ascending order: whatever has a record.
fn jobs_in(storage: &dyn CheckpointStorage) -> Result<Vec<Name>, ToolError> {
    let blobs = storage.list(None)?;
    let jobs: BTreeSet<Name> = blobs
        .iter()
        .filter_map(|(path, _)| path.as_str().strip_suffix("/job"))
        .filter_map(|job| Name::new(job).ok())
        .collect();
    Ok(jobs.into_iter().collect())
}

fn list_of(store: &JobStore) -> Result<ListReport, ToolError> {
    let mut report = ListReport {
        job: store.job().to_string(),
        location: store.storage().location(),
        checkpoints: Vec::new(),
        damaged: Vec::new(),
        history: store.history()?.iter().map(history_row).collect(),
        restores: store.restores()?.iter().map(restore_row).collect(),
    };
    let pinned = store.pinned()?;
    for epoch in store.valid_epochs()? {
        // One damaged manifest must not hide the others.
        match store.load(epoch) {
            Ok(manifest) => report.checkpoints.push(ListRow {
                id: epoch.0,
                attempt: manifest.attempt.0,
                triggered_unix_ms: manifest.triggered_unix_ms,
                size_bytes: manifest.size_bytes(),
                entries: manifest.entries(),
                parallelism: manifest.parallelism,
                is_final: manifest.last,
                pinned: pinned.contains(&epoch),
            }),
            Err(error) => {
                report.damaged.push(DamagedRow { id: epoch.0, why: with_causes(&error) });
            }
        }
    }
    Ok(report)
}

fn history_row(record: &CheckpointRecord) -> HistoryRow {
    let (complete, why) = match &record.outcome {
        CheckpointOutcome::Complete => (true, None),
        CheckpointOutcome::Aborted { reason } => (false, Some(reason.clone())),
    };
    HistoryRow {
        id: record.epoch.0,
        attempt: record.attempt.0,
        triggered_unix_ms: record.triggered_unix_ms,
        complete,
        why,
        duration_ms: record.duration_ms,
        size_bytes: record.bytes,
        in_flight_bytes: record.in_flight_bytes,
    }
}

fn restore_row(record: &RestoreRecord) -> RestoreRow {
    RestoreRow {
        id: record.epoch.0,
        attempt: record.attempt.0,
        process: record.process,
        restored_unix_ms: record.unix_ms,
        local_bytes: record.local_bytes,
        store_bytes: record.store_bytes,
    }
}

fn show_of(store: &JobStore, id: Option<Epoch>) -> Result<ShowReport, ToolError> {
    let (job, location) = (store.job().clone(), store.storage().location());
    let id = match id {
        Some(id) => id,
        None => store
            .newest()?
            .ok_or(ToolError::NoCheckpoint { job: job.clone(), location: location.clone() })?,
    };
    let manifest = store.load(id)?;
    let history = store.history()?;
    let record = history.iter().find(|r| r.epoch == id && r.attempt == manifest.attempt);
    Ok(ShowReport {
        job: job.to_string(),
        location,
        id: id.0,
        attempt: manifest.attempt.0,
        lineage: manifest.lineage.0,
        triggered_unix_ms: manifest.triggered_unix_ms,
        parallelism: manifest.parallelism,
        max_parallelism: manifest.max_parallelism,
        is_final: manifest.last,
        pinned: store.pinned()?.contains(&id),
        size_bytes: manifest.size_bytes(),
        entries: manifest.entries(),
        blobs: manifest.blobs().collect::<BTreeSet<_>>().len() as u64,
        states: state_rows(&manifest),
        timings: record.map(timings),
    })
}

/// The sections of all workers, added up by what they hold.
pub(super) fn state_rows(manifest: &Manifest) -> Vec<StateRow> {
    let mut sums = BTreeMap::new();
    for section in manifest.parts.iter().flat_map(|part| &part.sections) {
        let (entries, bytes) = sums.entry(&section.header).or_insert((0_u64, 0_u64));
        *entries = entries.saturating_add(section.entries);
        *bytes = bytes.saturating_add(section.bytes);
    }
    sums.into_iter()
        .map(|(header, (entries, size_bytes))| StateRow {
            operator: header.operator.to_string(),
            state: header.state.to_string(),
            kind: kind(header.kind).to_owned(),
            type_name: header.type_name.clone(),
            type_version: header.type_version,
            shape: header.shape.fingerprint().map(|_| header.shape.to_string()),
            fingerprint: header.shape.fingerprint().map(|hash| format!("{hash:016x}")),
            entries,
            size_bytes,
        })
        .collect()
}

fn kind(kind: SectionKind) -> &'static str {
    match kind {
        SectionKind::Source => "source",
        SectionKind::KeyedValue => "keyed value",
        SectionKind::SinkTransactions => "sink transactions",
        SectionKind::ChannelLog => "channel log",
        SectionKind::Watermark => "watermark",
        SectionKind::EventTimers => "event-time timers",
        SectionKind::ProcessingTimers => "processing-time timers",
        SectionKind::KeyedList => "keyed list",
        SectionKind::KeyedMap => "keyed map",
        SectionKind::KeyedReducing => "keyed reducing",
        SectionKind::KeyedAggregating => "keyed aggregating",
        SectionKind::OperatorList => "operator list",
        SectionKind::UnionList => "union list",
        SectionKind::Broadcast => "broadcast",
    }
}

fn timings(record: &CheckpointRecord) -> Timings {
    let workers = record.workers.iter().map(|worker| WorkerRow {
        worker: worker.worker,
        align_us: worker.align_us,
        sync_us: worker.sync_us,
        async_us: worker.async_us,
        size_bytes: worker.bytes,
        in_flight_bytes: worker.in_flight_bytes,
    });
    let waits = record.waits.iter().map(|wait| WaitRow {
        phase: format!("{:?}", wait.phase).to_lowercase(),
        worker: wait.worker,
        operators: wait.operators.clone(),
        waited_ms: wait.waited_ms,
    });
    Timings {
        duration_ms: record.duration_ms,
        publish_ms: record.publish_ms,
        in_flight_bytes: record.in_flight_bytes,
        workers: workers.collect(),
        waits: waits.collect(),
    }
}

fn verify_of(store: &JobStore, id: Option<Epoch>) -> Result<VerifyReport, ToolError> {
    let found = store.verify(id)?;
    let problems = found.problems.into_iter().map(|problem| ProblemRow {
        checkpoint: problem.epoch.0,
        path: problem.path,
        offset_bytes: problem.offset,
        why: problem.why,
    });
    Ok(VerifyReport {
        job: store.job().to_string(),
        location: store.storage().location(),
        checkpoints: found.checkpoints.iter().map(|epoch| epoch.0).collect(),
        parts: found.parts,
        entries: found.entries,
        size_bytes: found.bytes,
        problems: problems.collect(),
        unreferenced: found.unreferenced,
    })
}

fn delete_of(store: &JobStore, id: Epoch, force: bool) -> Result<DeleteReport, ToolError> {
    // Not `newest`: a store whose checkpoints are gone must still say that this one is not there.
    let newest = store.valid_epochs()?.last().copied();
    refuse_newest(store.job(), id, newest, force)?;
    let released = store.delete(id)?;
    Ok(DeleteReport {
        job: store.job().to_string(),
        location: store.storage().location(),
        id: id.0,
        blobs: released.blobs,
        size_bytes: released.bytes,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cli::checkpoints::Report;
    use crate::format::manifest::{ManifestKind, PartPlace, PartRef, SectionSummary};
    use crate::format::record::WorkerTimings;
    use crate::format::{Extent, SectionHeader};
    use crate::storage::{BlobPath, LocalStorage};

    /// A job with checkpoints, each of two workers that counted 3 and 4 keys.
    fn store(directory: &Path, checkpoints: usize) -> (JobStore, Vec<Epoch>) {
        let storage = Arc::new(LocalStorage::open(directory).unwrap());
        let store = JobStore::new(storage, Name::new("count").unwrap());
        store.prepare(128, 1_700_000_000_000).unwrap();
        let claim = store.claim().unwrap();
        let first = claim.first_epoch().0;
        let epochs: Vec<_> = (first..).take(checkpoints).map(Epoch).collect();
        for epoch in &epochs {
            let part = |worker: u32, entries| {
                let header = SectionHeader {
                    operator: Name::new("count").unwrap(),
                    state: Name::new("counts").unwrap(),
                    kind: SectionKind::KeyedValue,
                    type_name: "u64".to_owned(),
                    type_version: 1,
                    shape: crate::format::shape::EntryShape::default(),
                };
                let sections = vec![SectionSummary {
                    header,
                    extent: Extent::Whole,
                    entries,
                    bytes: 10 * entries,
                }];
                let place = PartPlace::Inline(vec![1; 90]);
                PartRef { worker, place, sections, layers: Vec::new(), natives: Vec::new() }
            };
            let manifest = Manifest {
                job: store.job().clone(),
                epoch: *epoch,
                attempt: claim.attempt(),
                lineage: claim.lineage(),
                parallelism: 2,
                max_parallelism: 128,
                kind: ManifestKind::Checkpoint,
                last: false,
                triggered_unix_ms: 1_700_000_000_000,
                parts: vec![part(0, 3), part(1, 4)],
            };
            store.publish(&claim, &manifest).unwrap();
            store.record(&record(*epoch, &claim, CheckpointOutcome::Complete)).unwrap();
        }
        (store, epochs)
    }

    fn record(
        epoch: Epoch,
        claim: &crate::storage::job_store::Claim,
        outcome: CheckpointOutcome,
    ) -> CheckpointRecord {
        CheckpointRecord {
            epoch,
            attempt: claim.attempt(),
            triggered_unix_ms: 1_700_000_000_000,
            outcome,
            duration_ms: 80,
            publish_ms: 3,
            workers: vec![WorkerTimings {
                worker: 1,
                align_us: 20,
                sync_us: 30,
                async_us: 4_000,
                bytes: 90,
                in_flight_bytes: 10,
                in_flight_records: 2,
                files: Default::default(),
            }],
            bytes: 180,
            in_flight_bytes: 10,
            waits: Vec::new(),
            entries: 7,
        }
    }

    #[test]
    fn a_directory_with_one_job_needs_no_name_and_lists_its_checkpoints() {
        let directory = tempfile::tempdir().unwrap();
        let (_, epochs) = store(directory.path(), 2);
        let report = list(directory.path(), None).unwrap();
        let ids: Vec<_> = report.checkpoints.iter().map(|row| Epoch(row.id)).collect();
        assert_eq!((report.job.as_str(), &ids), ("count", &epochs));
        assert_eq!((report.checkpoints[0].size_bytes, report.checkpoints[0].entries), (180, 7));
        assert!(report.history.iter().all(|row| row.complete) && report.history.len() == 2);
    }

    #[test]
    fn one_damaged_manifest_does_not_hide_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let (store, epochs) = store(directory.path(), 2);
        let path = BlobPath::new(format!("count/chk/{}/manifest", epochs[0])).unwrap();
        store.storage().put(&path, b"not a manifest").unwrap();
        let report = list(directory.path(), None).unwrap();
        assert_eq!((report.checkpoints.len(), report.damaged.len()), (1, 1));
        assert_eq!(report.damaged[0].id, epochs[0].0);
        let verified = verify(directory.path(), None, None).unwrap();
        assert!(!verified.is_clean());
        assert_eq!(verified.problems[0].checkpoint, epochs[0].0);
    }

    #[test]
    fn the_newest_checkpoint_is_shown_with_the_sums_of_its_workers() {
        let directory = tempfile::tempdir().unwrap();
        let (_, epochs) = store(directory.path(), 2);
        let report = show(directory.path(), None, None).unwrap();
        assert_eq!(report.id, epochs[1].0);
        let [state] = &report.states[..] else { panic!("{:?}", report.states) };
        assert_eq!((state.entries, state.size_bytes, state.kind.as_str()), (7, 70, "keyed value"));
        assert_eq!(report.timings.as_ref().unwrap().workers[0].async_us, 4_000);
        assert!(report.text().contains("7 entries"));
    }

    #[test]
    fn an_older_checkpoint_is_deleted_and_the_newest_only_by_force() {
        let directory = tempfile::tempdir().unwrap();
        let (_, epochs) = store(directory.path(), 2);
        let refused = delete(directory.path(), None, epochs[1], false).unwrap_err();
        assert!(refused.to_string().contains("--force"));
        assert_eq!(delete(directory.path(), None, epochs[0], false).unwrap().id, epochs[0].0);
        assert_eq!(list(directory.path(), None).unwrap().checkpoints.len(), 1);
        delete(directory.path(), None, epochs[1], true).unwrap();
        assert!(delete(directory.path(), None, epochs[1], true).is_err());
    }

    #[test]
    fn a_pinned_checkpoint_is_shown_as_such_and_only_deleted_once_it_is_unpinned() {
        let directory = tempfile::tempdir().unwrap();
        let (_, epochs) = store(directory.path(), 2);
        let report = pin(directory.path(), None, epochs[0]).unwrap();
        assert_eq!((report.id, report.pinned, report.changed), (epochs[0].0, true, true));
        assert!(!pin(directory.path(), None, epochs[0]).unwrap().changed);
        let listed = list(directory.path(), None).unwrap();
        let pinned: Vec<_> = listed.checkpoints.iter().map(|row| row.pinned).collect();
        assert_eq!(pinned, [true, false]);
        assert!(show(directory.path(), None, Some(epochs[0])).unwrap().pinned);
        let error = delete(directory.path(), None, epochs[0], true).unwrap_err().to_string();
        assert!(error.contains(&format!("`highwater checkpoints unpin {}`", epochs[0])), "{error}");
        assert!(verify(directory.path(), None, None).unwrap().unreferenced.is_empty());
        assert!(unpin(directory.path(), None, epochs[0]).unwrap().changed);
        assert!(!unpin(directory.path(), None, epochs[0]).unwrap().changed);
        delete(directory.path(), None, epochs[0], false).unwrap();
        for result in [pin, unpin].map(|act| act(directory.path(), None, epochs[0])) {
            assert!(result.unwrap_err().to_string().contains("has no checkpoint"));
        }
    }

    #[test]
    fn what_is_not_there_is_an_error_that_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let error = list(&directory.path().join("absent"), None).unwrap_err();
        assert!(with_causes(&error).contains("absent"));
        let error = list(directory.path(), None).unwrap_err().to_string();
        assert!(error.starts_with("there is no checkpoint of any job in"), "{error}");
        let (_, _) = store(directory.path(), 0);
        let error = show(directory.path(), None, None).unwrap_err().to_string();
        assert!(error.starts_with("job count has no complete checkpoint in"), "{error}");
    }
}
