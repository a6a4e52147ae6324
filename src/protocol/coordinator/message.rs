//! What the coordinator is told, what it asks for, and what it shows.

use std::time::Duration;

use crate::config::CheckpointConfig;
use crate::ids::Epoch;
use crate::protocol::abort::{AbortReason, JobFailure, Outcome};

/// What a coordinator starts with.
#[derive(Clone, Debug)]
pub struct CoordinatorSetup {
    /// The numbers of the configuration, as [`validate`](crate::protocol::plan::validate) passed
    /// them.
    pub checkpoints: CheckpointConfig,
    /// Number of workers in all processes, at least 1. Each of them acks every checkpoint.
    pub workers: usize,
    /// The first epoch of this attempt, above every epoch that any attempt began.
    pub first_epoch: Epoch,
    /// End of the epochs that are reserved for this attempt; exclusive.
    pub reserved_end: Epoch,
    /// The checkpoint that this attempt was restored from.
    pub restored: Option<Epoch>,
    /// Valid complete checkpoints of this job found at start, ascending, below `first_epoch`.
    pub retained_before: Vec<Epoch>,
}

/// What a coordinator is told. `P` describes a worker's part; the coordinator only hands it on.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<P> {
    /// Time has passed.
    Tick,
    /// A user asks for a checkpoint now.
    Trigger,
    /// A user asks for a savepoint now.
    Savepoint {
        /// What the answer names; never used before.
        request: u64,
    },
    /// A worker has stored its part.
    Ack {
        /// The checkpoint.
        epoch: Epoch,
        /// The worker.
        worker: usize,
        /// Its part.
        part: P,
        /// Whether it holds records that were on their way.
        in_flight: bool,
    },
    /// A worker cannot take or store its part.
    Decline {
        /// The checkpoint.
        epoch: Epoch,
        /// The worker.
        worker: usize,
        /// Why.
        reason: AbortReason,
    },
    /// The manifest is in storage.
    Published {
        /// The checkpoint.
        epoch: Epoch,
    },
    /// The manifest is not in storage and never will be. A publisher that does not know must find
    /// out before it answers.
    PublishFailed {
        /// The checkpoint.
        epoch: Epoch,
        /// Why. [`AbortReason::Fenced`]: this attempt must stop.
        reason: AbortReason,
    },
    /// Epochs below `end` are reserved for this attempt.
    Reserved {
        /// End of what is reserved; exclusive.
        end: Epoch,
    },
    /// Nothing was reserved; the coordinator asks again.
    ReserveFailed {
        /// Why. [`AbortReason::Fenced`]: this attempt must stop.
        reason: AbortReason,
    },
    /// All sources of a worker are at the end of their input (drained ones too), and its event time
    /// is as well.
    WorkerFinished {
        /// The worker.
        worker: usize,
    },
    /// All sinks of a worker have committed everything up to a complete checkpoint. A worker
    /// without sinks says so at once.
    WorkerCommitted {
        /// The worker.
        worker: usize,
        /// The checkpoint.
        epoch: Epoch,
    },
    /// A user stops the job: it ends with a final checkpoint. The first one counts, later ones
    /// change nothing.
    Stop {
        /// Whether event time moves to its end first, so that all windows fire.
        drain: bool,
    },
    /// As `Stop`, and the final checkpoint is to be a savepoint: if that fails, the job goes on, unless its sources have
    /// ended.
    StopWithSavepoint {
        /// What the answer names; never used before.
        request: u64,
        /// Whether event time moves to its end first.
        drain: bool,
    },
    /// A user ends the job at once.
    Cancel,
}

/// What a coordinator asks for. To be carried out in the order given.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect<P> {
    /// All workers: end this epoch. `last`: sources read nothing behind this barrier.
    Begin {
        /// The checkpoint.
        epoch: Epoch,
        /// Whether the job ends with it.
        last: bool,
        /// The request for a savepoint that it is to answer: nothing overtakes then.
        savepoint: Option<u64>,
    },
    /// Write the manifest and publish it, create-if-absent; answer [`Event::Published`] or
    /// [`Event::PublishFailed`], without fail.
    Publish {
        /// The checkpoint.
        epoch: Epoch,
        /// Whether the job ends with it.
        last: bool,
        /// Copy it, too, to where this request says, and answer the request. If that fails and the job ends with it, answer
        /// [`Event::PublishFailed`] and publish nothing.
        savepoint: Option<u64>,
        /// One part of every worker, ascending.
        parts: Vec<(usize, P)>,
    },
    /// All workers: the checkpoint is complete; sinks commit everything up to it.
    Complete {
        /// The checkpoint.
        epoch: Epoch,
        /// Whether the job ends with it.
        last: bool,
    },
    /// All workers: the checkpoint will never be complete; parts of it may be deleted. Sinks keep
    /// what they pre-committed for the next one.
    Abort {
        /// The checkpoint.
        epoch: Epoch,
        /// Why.
        reason: AbortReason,
    },
    /// Reserve the next block of epochs; answer [`Event::Reserved`] or [`Event::ReserveFailed`].
    Reserve {
        /// The first epoch of the block.
        from: Epoch,
    },
    /// Delete what is neither in `keep` nor in `in_progress`, nor referenced from there.
    Retire {
        /// Complete checkpoints that stay, ascending.
        keep: Vec<Epoch>,
        /// Checkpoints in progress, ascending.
        in_progress: Vec<Epoch>,
        /// Epochs from here on may be begun while the deletion runs: leave them alone.
        before: Epoch,
    },
    /// All workers: sources read no more and move event time to its end, then say
    /// [`Event::WorkerFinished`].
    DrainSources,
    /// There will be no savepoint for this request, or nobody here knows whether there is. A request that is answered
    /// already stays so.
    SavepointFailed {
        /// The request.
        request: u64,
        /// Why.
        reason: AbortReason,
    },
    /// A line for the history.
    Record(Outcome),
    /// All workers: drop the sources' capabilities; the job is over.
    Finish,
    /// This attempt has failed.
    Fail {
        /// Why.
        reason: JobFailure,
    },
}

/// What the job is doing, as the coordinator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Sources read.
    Running,
    /// Sources were told to drain.
    Draining,
    /// The final checkpoint is due or in progress.
    Ending,
    /// The final checkpoint is complete; sinks commit.
    Committing {
        /// The final checkpoint.
        epoch: Epoch,
    },
    /// Finished or failed.
    Over,
}

/// One checkpoint in progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InProgress {
    /// The checkpoint.
    pub epoch: Epoch,
    /// When it was begun.
    pub triggered: Duration,
    /// Workers that have not acked, ascending.
    pub waiting_for: Vec<usize>,
    /// Whether its manifest is being published.
    pub publishing: bool,
}

/// Where the checkpoints of a job stand: for a progress line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What the job is doing.
    pub phase: Phase,
    /// Checkpoints in progress, ascending.
    pub in_progress: Vec<InProgress>,
    /// The last complete checkpoint; at first the restored one.
    pub last_completed: Option<Epoch>,
    /// Number of checkpoints that this attempt completed.
    pub completed: u64,
    /// Number of its checkpoints that failed: those whose reason [counts](AbortReason::counts).
    pub failed: u64,
    /// How many of them since the last complete one.
    pub consecutive_failures: u32,
    /// The last one that failed, and why.
    pub last_failure: Option<(Epoch, AbortReason)>,
    /// Workers whose sources are not at the end of their input, ascending.
    pub reading: Vec<usize>,
    /// Workers whose sinks have not committed the final checkpoint, ascending; empty before it is
    /// complete.
    pub committing: Vec<usize>,
}
