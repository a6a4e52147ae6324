//! How other threads answer a worker: a queue, and a tap on the shoulder.

use crossbeam::channel::{Receiver, Sender, unbounded};

use crate::connect::ConnectError;
use crate::format::manifest::PartRef;
use crate::format::record::WorkerTimings;
use crate::ids::Epoch;
use crate::protocol::abort::AbortReason;
use crate::runtime::savepoint::PreparedSavepoint;
use crate::runtime::snapshot::PartFailure;
use crate::storage::job_store::JobStoreError;

/// What other threads tell a worker.
pub(crate) enum Letter {
    /// A part is durable, or could not be made.
    Part { epoch: Epoch, result: Result<(PartRef, WorkerTimings), PartFailure> },
    /// A sink has committed through this epoch, or could not.
    Commit { sink: usize, result: Result<Epoch, ConnectError> },
    /// The manifest of an epoch is published, or not.
    Publish { epoch: Epoch, publish_us: u64, result: Result<(), AbortReason> },
    /// Requests for savepoints whose directories are made; perhaps none. `looked`: all that were found in the job's
    /// directory.
    Savepoints { prepared: Vec<PreparedSavepoint>, looked: bool },
    /// More epochs are reserved, up to this one, or not.
    Reserve { result: Result<Epoch, JobStoreError> },
    /// Housekeeping failed: it is logged, and tried again after the next checkpoint.
    Housekeeping { what: &'static str, error: String },
}

/// The sending end. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub(crate) struct Mailbox {
    sender: Sender<Letter>,
    worker: std::thread::Thread,
}

impl Mailbox {
    /// Makes the mailbox of the calling thread.
    pub(crate) fn new() -> (Self, Receiver<Letter>) {
        let (sender, receiver) = unbounded();
        (Self { sender, worker: std::thread::current() }, receiver)
    }

    /// Posts a letter and wakes the worker. A worker that is gone does not care.
    pub(crate) fn post(&self, letter: Letter) {
        if self.sender.send(letter).is_ok() {
            self.worker.unpark();
        }
    }
}
