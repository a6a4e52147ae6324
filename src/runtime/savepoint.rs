//! Savepoints on their way: who asked, where to, and the answer.
//!
//! # Order
//! The directory is made before anything is begun, so that a target that is taken or cannot be written is refused while
//! the job is as it was. Then, on the coordinator's lane: the parts are copied; the checkpoint is published; the
//! savepoint's manifest is published; the answer is given. If copying fails, the checkpoint is published all the same,
//! unless the job was to end with it: then the coordinator undoes the stop.
//!
//! # Failure
//! What ends without an answer gives one when it is dropped: the attempt has ended. A request that came as a file and
//! was taken by an attempt that died is answered by the next attempt.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::Sender;

use crate::format::manifest::Manifest;
use crate::format::record::{SavepointAnswer, SavepointFormat, SavepointInfo};
use crate::protocol::abort::AbortReason;
use crate::runtime::clock::Clock;
use crate::runtime::describe;
use crate::storage::job_store::{Claim, JobStore, TakenRequest};
use crate::storage::savepoint::{Draft, SavepointError};

/// How often it is looked whether there is a request in the job's directory.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Who waits for the answer.
#[derive(Debug)]
pub(crate) enum Asker {
    /// A thread of this process.
    Thread(Sender<Result<SavepointInfo, String>>),
    /// Whoever has left the request of this number in the job's directory.
    File(u64),
}

/// A savepoint that somebody asks for.
#[derive(Debug)]
pub(crate) struct AskedSavepoint {
    pub(crate) to: PathBuf,
    /// `Some`: the job ends with it; `true`: after it has drained.
    pub(crate) stop: Option<bool>,
    pub(crate) format: SavepointFormat,
    pub(crate) asker: Asker,
}

/// A savepoint whose directory is made.
#[derive(Debug)]
pub(crate) struct PreparedSavepoint {
    draft: Draft,
    pub(crate) stop: Option<bool>,
    format: SavepointFormat,
    asker: Asker,
}

impl Asker {
    fn answer(self, store: &JobStore, clock: &dyn Clock, result: Result<SavepointInfo, String>) {
        match &result {
            Ok(info) => {
                tracing::info!(
                    epoch = info.epoch.0,
                    "savepoint {} is complete",
                    info.path.display()
                );
            }
            Err(why) => tracing::warn!("a savepoint was asked for and there is none: {why}"),
        }
        match self {
            // Whoever asked may be gone.
            Self::Thread(sender) => drop(sender.send(result)),
            Self::File(id) => {
                let answer = SavepointAnswer { unix_ms: clock.unix_ms(), result };
                if let Err(error) = store.answer(id, &answer) {
                    tracing::warn!("the answer could not be written: {}", describe(&error));
                }
            }
        }
    }
}

impl AskedSavepoint {
    /// Makes the directory. If that is not possible, or the job writes no snapshots, says so and returns nothing.
    pub(crate) fn prepare(
        self,
        durable: bool,
        store: &JobStore,
        clock: &dyn Clock,
    ) -> Option<PreparedSavepoint> {
        let Self { to, stop, format, asker } = self;
        let draft = if durable {
            Draft::create(&to).map_err(|error| describe(&error))
        } else {
            let why = "the job writes no checkpoints: it has neither an interval nor a directory";
            Err(why.to_owned())
        };
        match draft {
            Ok(draft) => Some(PreparedSavepoint { draft, stop, format, asker }),
            Err(why) => {
                asker.answer(store, clock, Err(why));
                None
            }
        }
    }
}

impl PreparedSavepoint {
    /// Writes the savepoint and has the checkpoint published in between; answers whoever asked. Returns what became of the
    /// checkpoint.
    ///
    /// # Errors
    /// Why it is not published.
    pub(crate) fn publish(
        self,
        store: &JobStore,
        manifest: &Manifest,
        clock: &dyn Clock,
        publish: impl FnOnce() -> Result<(), AbortReason>,
    ) -> Result<(), AbortReason> {
        let Self { mut draft, asker, format, .. } = self;
        let failed = |error: SavepointError| describe(&error);
        let copied = draft.copy(store, manifest, format).map_err(failed);
        if let Err(why) = &copied
            && manifest.last
        {
            drop(draft);
            asker.answer(store, clock, Err(format!("{why}; the job goes on if it can")));
            return Err(AbortReason::Savepoint { why: why.clone() });
        }
        if let Err(reason) = publish() {
            drop(draft);
            asker.answer(store, clock, Err(reason.to_string()));
            return Err(reason);
        }
        let result = copied.and_then(|copied| draft.finish(&copied).map_err(failed));
        let epoch = manifest.epoch;
        let result = result.map_err(|why| format!("{why}; checkpoint {epoch} itself is complete"));
        asker.answer(store, clock, result);
        Ok(())
    }

    /// There will be none.
    pub(crate) fn fail(self, store: &JobStore, clock: &dyn Clock, why: String) {
        drop(self.draft);
        self.asker.answer(store, clock, Err(why));
    }
}

/// The savepoints that one attempt has begun or is about to.
#[derive(Debug, Default)]
pub(crate) struct Savepoints {
    waiting: BTreeMap<u64, PreparedSavepoint>,
    requests: u64,
    /// Requests in the job's directory that this attempt has taken.
    files: Arc<BTreeSet<u64>>,
    look_at: Duration,
    looking: bool,
}

impl Savepoints {
    /// Keeps it until it is taken; returns its number.
    pub(crate) fn add(&mut self, savepoint: PreparedSavepoint) -> u64 {
        if let Asker::File(id) = savepoint.asker {
            Arc::make_mut(&mut self.files).insert(id);
        }
        self.requests += 1;
        self.waiting.insert(self.requests, savepoint);
        self.requests
    }

    /// What a savepoint that waits is to be written as.
    pub(crate) fn format(&self, request: u64) -> SavepointFormat {
        self.waiting.get(&request).map(|savepoint| savepoint.format).unwrap_or_default()
    }

    pub(crate) fn take(&mut self, request: u64) -> Option<PreparedSavepoint> {
        self.waiting.remove(&request)
    }

    /// Whether it is time to look for requests: then what is taken already.
    pub(crate) fn look(&mut self, now: Duration) -> Option<Arc<BTreeSet<u64>>> {
        if self.looking || now < self.look_at {
            return None;
        }
        self.looking = true;
        self.look_at = now + LOOK_INTERVAL;
        Some(Arc::clone(&self.files))
    }

    pub(crate) fn looked(&mut self) {
        self.looking = false;
    }
}

/// Takes the requests that wait in the job's directory, and makes their directories.
pub(crate) fn take_requests(
    store: &JobStore,
    claim: &Claim,
    open: &BTreeSet<u64>,
    clock: &dyn Clock,
) -> Vec<PreparedSavepoint> {
    let taken =
        store.take_requests(claim.attempt(), open, clock.unix_ms()).unwrap_or_else(|error| {
            tracing::debug!("requests could not be looked for: {}", describe(&error));
            Vec::new()
        });
    let ask = |TakenRequest { id, request }| AskedSavepoint {
        to: request.to,
        stop: request.stop,
        format: request.format,
        asker: Asker::File(id),
    };
    taken.into_iter().filter_map(|taken| ask(taken).prepare(true, store, clock)).collect()
}

#[cfg(test)]
mod tests {
    use crossbeam::channel::bounded;

    use super::*;
    use crate::format::manifest::ManifestKind;
    use crate::ids::{Attempt, Epoch, Lineage, Name};
    use crate::runtime::clock::SystemClock;
    use crate::storage::MemoryStorage;

    fn manifest(last: bool) -> Manifest {
        Manifest {
            job: Name::new("job").unwrap(),
            epoch: Epoch(1),
            attempt: Attempt(1),
            lineage: Lineage(1),
            parallelism: 1,
            max_parallelism: 128,
            kind: ManifestKind::Checkpoint,
            last,
            triggered_unix_ms: 1,
            parts: Vec::new(),
        }
    }

    /// What becomes of the checkpoint and of the request; and whether there is a savepoint.
    fn published(
        vanishes: bool,
        last: bool,
        publish: Result<(), AbortReason>,
    ) -> (Option<Result<(), AbortReason>>, Result<SavepointInfo, String>, bool) {
        let directory = tempfile::tempdir().unwrap();
        let to = directory.path().join("to");
        let store = JobStore::new(Arc::new(MemoryStorage::new()), Name::new("job").unwrap());
        let (sender, answer) = bounded(1);
        let asked = AskedSavepoint {
            to: to.clone(),
            stop: None,
            format: SavepointFormat::Canonical,
            asker: Asker::Thread(sender),
        };
        let clock = SystemClock::new();
        let prepared = asked.prepare(true, &store, &clock).unwrap();
        if vanishes {
            std::fs::remove_dir(&to).unwrap();
        }
        let mut published = None;
        let result = prepared.publish(&store, &manifest(last), &clock, || {
            assert!(!to.join("manifest").exists(), "the savepoint comes after its checkpoint");
            published = Some(publish.clone());
            publish
        });
        assert_eq!(published.clone().unwrap_or_else(|| result.clone()), result);
        let whole = to.join("manifest").exists();
        assert_eq!(to.exists(), whole, "a savepoint that failed leaves nothing");
        (published, answer.recv().unwrap(), whole)
    }

    #[test]
    fn a_fenced_attempt_leaves_no_savepoint() {
        let fenced = Err(AbortReason::Fenced { by: Attempt(2) });
        let (_, answer, whole) = published(false, false, fenced);
        assert_eq!((answer, whole), (Err("fenced by attempt 2".to_owned()), false));
    }

    #[test]
    fn a_savepoint_comes_after_its_checkpoint_and_its_failure_is_not_the_checkpoints() {
        let (checkpoint, answer, whole) = published(false, true, Ok(()));
        assert_eq!((checkpoint, answer.unwrap().epoch, whole), (Some(Ok(())), Epoch(1), true));
        let (checkpoint, answer, whole) = published(true, false, Ok(()));
        assert_eq!((checkpoint, whole), (Some(Ok(())), false));
        assert!(answer.unwrap_err().ends_with("checkpoint 1 itself is complete"));
    }
}
