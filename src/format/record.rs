//! Small records: what a job is, and what became of its checkpoints.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::FormatError;
use super::block::{self, BlockKind};
use crate::ids::{Attempt, Epoch, Lineage, Name};

/// What is known of a job across all its attempts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// The job.
    pub name: Name,
    /// When it first ran. Units: milliseconds since 1970; for people only.
    pub created_unix_ms: u64,
    /// Number of key groups of all its state.
    pub max_parallelism: u16,
    /// The first checkpoint that was announced as complete, or restored from. `None`: there never was one, so
    /// starting from nothing loses nothing.
    pub first_completed: Option<Epoch>,
}

/// The checkpoints and savepoints from elsewhere that a job has taken over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimedRecord {
    /// In the order in which they were taken over; of each place the last one.
    pub claimed: Vec<Claimed>,
}

/// A checkpoint or savepoint from elsewhere that a job has taken over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// What the user gave, independent of the current directory.
    pub given: String,
    /// The attempt that has taken it over.
    pub by: Attempt,
    /// The lineage that begins with it: a checkpoint of this lineage makes it superfluous.
    pub lineage: Lineage,
    /// The store that its files are in.
    pub location: String,
    /// If that is the store of a job: the newest attempt that was there.
    pub newest_attempt: Option<Attempt>,
    /// The job that it is of.
    pub job: Name,
    /// The checkpoint that it is.
    pub epoch: Epoch,
    /// The attempt that took it.
    pub attempt: Attempt,
    /// When. Units: milliseconds since 1970.
    pub triggered_unix_ms: u64,
    /// What it needs beside its manifest: blobs of the store. None any more once it is released.
    pub blobs: Vec<String>,
    /// Whether it is dealt with: deleted, or found to be somebody else's.
    pub released: bool,
}

/// What became of one checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRecord {
    /// The checkpoint.
    pub epoch: Epoch,
    /// The attempt that began it.
    pub attempt: Attempt,
    /// When. Units: milliseconds since 1970, by the coordinator's wall clock.
    pub triggered_unix_ms: u64,
    /// How it ended.
    pub outcome: CheckpointOutcome,
    /// Time from the trigger to the outcome.
    pub duration_ms: u64,
    /// Time that publishing the manifest took.
    pub publish_ms: u64,
    /// What each worker that answered did.
    pub workers: Vec<WorkerTimings>,
    /// Units: bytes of all parts.
    pub bytes: u64,
    /// Units: bytes of the channel logs in the parts: what barriers have overtaken.
    pub in_flight_bytes: u64,
    /// Number of entries of all parts.
    pub entries: u64,
    /// What took so long that it was reported.
    pub waits: Vec<CheckpointWait>,
}

/// A phase of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub enum CheckpointPhase {
    /// Until a worker has heard of it.
    Trigger,
    /// Until the barrier has come through all of a worker's operators.
    Align,
    /// Freezing an operator's state.
    Sync,
    /// Writing a worker's part.
    Async,
    /// Publishing the manifest.
    Publish,
    /// Committing what a sink had pending.
    Commit,
}

impl CheckpointPhase {
    /// What is being done in it, for people.
    #[must_use]
    pub fn doing(self) -> &'static str {
        match self {
            Self::Trigger => "no answer yet",
            Self::Align => "the barrier is on its way",
            Self::Sync => "freezing state",
            Self::Async => "writing its part",
            Self::Publish => "publishing the manifest",
            Self::Commit => "committing",
        }
    }
}

/// A phase that took long, and who was waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointWait {
    /// The phase.
    pub phase: CheckpointPhase,
    /// The worker that was waited for.
    pub worker: u32,
    /// Its operators and channels that were waited for, as far as they are known.
    pub operators: Vec<String>,
    /// For how long, when it was last reported.
    pub waited_ms: u64,
}

/// How a checkpoint ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum CheckpointOutcome {
    /// Its manifest is published.
    Complete,
    /// It can not be restored.
    Aborted {
        /// Why.
        reason: String,
    },
}

/// What a checkpoint cost one worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerTimings {
    /// The worker.
    pub worker: u32,
    /// From the first barrier seen to the last, the longest of its operators.
    pub align_us: u64,
    /// Freezing state, on the worker's own thread.
    pub sync_us: u64,
    /// Writing, on other threads.
    pub async_us: u64,
    /// Units: bytes of its part.
    pub bytes: u64,
    /// Units: bytes of the channel logs in its part: what barriers have overtaken.
    pub in_flight_bytes: u64,
    /// Number of records in them.
    pub in_flight_records: u64,
    /// Files of backends.
    pub files: FileTransfers,
}

/// Files of backends that a checkpoint needs beside a part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileTransfers {
    /// Number of files that were uploaded for it.
    pub uploaded: u32,
    /// Units: bytes of these.
    pub uploaded_bytes: u64,
    /// Number of files that were there already, of the last complete checkpoint.
    pub reused: u32,
    /// Units: bytes of these.
    pub reused_bytes: u64,
}

/// What one process has read to restore its share of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreRecord {
    /// The attempt that started from it.
    pub attempt: Attempt,
    /// The process.
    pub process: u32,
    /// The checkpoint.
    pub epoch: Epoch,
    /// When all workers of the process had restored. Units: milliseconds since 1970, by the process's wall clock.
    pub unix_ms: u64,
    /// Units: bytes that were read from local copies. What several workers have read counts for each.
    pub local_bytes: u64,
    /// Units: bytes that were read from the checkpoint store; parts inside the manifest are not counted.
    pub store_bytes: u64,
}

/// A user asks a running job for a savepoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavepointRequest {
    /// The directory that the savepoint is to be: absolute, and not there yet.
    pub to: PathBuf,
    /// `Some`: the job ends with it; `true`: after event time has moved to its end.
    pub stop: Option<bool>,
    /// What its keyed state is written as.
    pub format: SavepointFormat,
    /// After this nobody waits for an answer. Units: milliseconds since 1970.
    pub expires_unix_ms: u64,
}

/// What the keyed state of a savepoint is written as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SavepointFormat {
    /// Entry by entry, as no backend in particular has them: every program can read it.
    #[default]
    Canonical,
    /// As checkpoints are: the files of a backend that has any, and layers. Less is written, and what is on the same file
    /// system is linked and not copied.
    Native,
}

/// What became of a [`SavepointRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavepointAnswer {
    /// When it was given. Units: milliseconds since 1970.
    pub unix_ms: u64,
    /// What was written, or why nothing was.
    pub result: Result<SavepointInfo, String>,
}

/// What a savepoint holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavepointInfo {
    /// Its directory.
    pub path: PathBuf,
    /// The job whose state it is.
    pub job: Name,
    /// The checkpoint that it is a copy of.
    pub epoch: Epoch,
    /// Number of workers that took it.
    pub parallelism: u32,
    /// Number of entries of all parts.
    pub entries: u64,
    /// Units: bytes of all parts.
    pub bytes: u64,
    /// Number of files of backends in it. Without any, no backend is needed to read it.
    pub native_files: u64,
}

macro_rules! blocks {
    ($($record:ident: $kind:ident;)+) => {$(
        impl $record {
            /// The record as one checked block.
            ///
            /// # Errors
            /// [`FormatError::Encode`].
            pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
                block::encode_value(BlockKind::$kind, self)
            }

            #[doc = concat!("Reads what [`", stringify!($record), "::encode`] made.")]
            ///
            /// # Errors
            /// [`FormatError::Corrupt`] or [`FormatError::TooNew`].
            pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
                block::decode_value(BlockKind::$kind, bytes)
            }
        }
    )+};
}

blocks! {
    SavepointRequest: Request;
    SavepointAnswer: Answer;
    JobRecord: Job;
    ClaimedRecord: Claimed;
    CheckpointRecord: History;
    RestoreRecord: Restore;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tests::{every_prefix_is_refused, mutations_never_decode_to_something_else};

    #[test]
    fn a_job_record_comes_back_or_is_refused() {
        let record = JobRecord {
            name: Name::new("job").unwrap(),
            created_unix_ms: 1_700_000_000_000,
            max_parallelism: 128,
            first_completed: Some(Epoch(3)),
        };
        let bytes = record.encode().unwrap();
        assert_eq!(JobRecord::decode(&bytes).unwrap(), record);
        every_prefix_is_refused(&bytes, JobRecord::decode);
        mutations_never_decode_to_something_else(&bytes, &record, JobRecord::decode);
    }

    #[test]
    fn a_record_of_what_was_taken_over_comes_back_or_is_refused() {
        let claimed = Claimed {
            given: "/save/point".to_owned(),
            by: Attempt(3),
            lineage: Lineage(1 << 60),
            location: "/save/point".to_owned(),
            newest_attempt: Some(Attempt(2)),
            job: Name::new("job").unwrap(),
            epoch: Epoch(9),
            attempt: Attempt(2),
            triggered_unix_ms: 1_700_000_000_000,
            blobs: vec!["2-0.part".to_owned()],
            released: false,
        };
        let record = ClaimedRecord { claimed: vec![claimed] };
        let bytes = record.encode().unwrap();
        assert_eq!(ClaimedRecord::decode(&bytes).unwrap(), record);
        every_prefix_is_refused(&bytes, ClaimedRecord::decode);
        mutations_never_decode_to_something_else(&bytes, &record, ClaimedRecord::decode);
    }

    #[test]
    fn a_request_and_its_answer_come_back_or_are_refused() {
        let request = SavepointRequest {
            to: PathBuf::from("/save/point"),
            stop: Some(true),
            format: SavepointFormat::Native,
            expires_unix_ms: 1_700_000_000_000,
        };
        let bytes = request.encode().unwrap();
        assert_eq!(SavepointRequest::decode(&bytes).unwrap(), request);
        every_prefix_is_refused(&bytes, SavepointRequest::decode);
        mutations_never_decode_to_something_else(&bytes, &request, SavepointRequest::decode);
        let info = SavepointInfo {
            path: PathBuf::from("/save/point"),
            job: Name::new("job").unwrap(),
            epoch: Epoch(9),
            parallelism: 2,
            entries: 10,
            bytes: 1000,
            native_files: 3,
        };
        for result in [Ok(info), Err("no space left".to_owned())] {
            let answer = SavepointAnswer { unix_ms: 1_700_000_000_000, result };
            let bytes = answer.encode().unwrap();
            assert_eq!(SavepointAnswer::decode(&bytes).unwrap(), answer);
            every_prefix_is_refused(&bytes, SavepointAnswer::decode);
            mutations_never_decode_to_something_else(&bytes, &answer, SavepointAnswer::decode);
        }
    }

    #[test]
    fn a_record_of_a_restore_comes_back_or_is_refused() {
        let record = RestoreRecord {
            attempt: Attempt(2),
            process: 1,
            epoch: Epoch(9),
            unix_ms: 1_700_000_000_000,
            local_bytes: 1 << 30,
            store_bytes: 77,
        };
        let bytes = record.encode().unwrap();
        assert_eq!(RestoreRecord::decode(&bytes).unwrap(), record);
        every_prefix_is_refused(&bytes, RestoreRecord::decode);
        mutations_never_decode_to_something_else(&bytes, &record, RestoreRecord::decode);
    }

    #[test]
    fn a_history_record_comes_back_or_is_refused() {
        let timings = WorkerTimings {
            worker: 1,
            align_us: 20,
            sync_us: 30,
            async_us: 4_000,
            bytes: 900,
            in_flight_bytes: 10,
            in_flight_records: 2,
            files: FileTransfers { uploaded: 2, uploaded_bytes: 20, reused: 3, reused_bytes: 30 },
        };
        let record = CheckpointRecord {
            epoch: Epoch(9),
            attempt: Attempt(2),
            triggered_unix_ms: 1_700_000_000_000,
            outcome: CheckpointOutcome::Aborted { reason: "worker 3 declined".into() },
            duration_ms: 80,
            publish_ms: 0,
            workers: vec![timings],
            bytes: 900,
            in_flight_bytes: 10,
            waits: vec![CheckpointWait {
                phase: CheckpointPhase::Align,
                worker: 1,
                operators: vec!["key_by-1".to_owned()],
                waited_ms: 10_000,
            }],
            entries: 5,
        };
        let bytes = record.encode().unwrap();
        assert_eq!(CheckpointRecord::decode(&bytes).unwrap(), record);
        every_prefix_is_refused(&bytes, CheckpointRecord::decode);
        mutations_never_decode_to_something_else(&bytes, &record, CheckpointRecord::decode);
    }
}
