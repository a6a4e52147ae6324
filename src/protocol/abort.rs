//! Why a checkpoint was aborted, how it ended, and why a job fails for it.
//!
//! These values travel from workers to the coordinator and are kept in the history, so they can be
//! serialized.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{Attempt, Epoch};

/// Why a checkpoint was aborted. Its text is what the history shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum AbortReason {
    /// It took longer than the timeout.
    #[error("expired while waiting for {}", Workers(waiting_for))]
    Expired {
        /// Workers that had not acked, ascending.
        waiting_for: Vec<usize>,
    },
    /// A worker could not take or store its part.
    #[error("declined by worker {worker}{}: {why}", Operator(operator.as_deref()))]
    Declined {
        /// The worker.
        worker: usize,
        /// The operator that declined, if it was one.
        operator: Option<String>,
        /// What went wrong.
        why: String,
    },
    /// A worker was not in a state to take part: still starting, or already closing.
    #[error("worker {worker} was not ready: {why}")]
    NotReady {
        /// The worker.
        worker: usize,
        /// What it was doing.
        why: String,
    },
    /// A worker had gone on to a later epoch before it heard of this one.
    #[error("superseded by checkpoint {by}")]
    Superseded {
        /// The later epoch.
        by: Epoch,
    },
    /// The manifest could not be published: it is not in storage, and never will be.
    #[error("not published: {why}")]
    Storage {
        /// What went wrong.
        why: String,
    },
    /// A newer attempt of the job has claimed the storage. This attempt must stop.
    #[error("fenced by attempt {by}")]
    Fenced {
        /// The newer attempt.
        by: Attempt,
    },
    /// A later checkpoint completed first.
    #[error("subsumed by checkpoint {by}, which completed first")]
    Subsumed {
        /// The later checkpoint.
        by: Epoch,
    },
    /// The job was cancelled, or failed.
    #[error("the job was stopping")]
    Stopping,
    /// The job ended while the manifest was being published: the checkpoint is complete if the
    /// manifest is in storage. The next attempt finds out.
    #[error("undecided: the job ended while the manifest was being published")]
    Undecided,
    /// The job was to end with a savepoint, which could not be written.
    #[error("the savepoint could not be written: {why}")]
    Savepoint {
        /// What went wrong.
        why: String,
    },
}

impl AbortReason {
    /// Whether the abort counts against the tolerance: a fault, not a consequence of what the job
    /// decided.
    #[must_use]
    pub fn counts(&self) -> bool {
        match self {
            Self::Expired { .. } | Self::Declined { .. } | Self::Storage { .. } => true,
            Self::NotReady { .. }
            | Self::Superseded { .. }
            | Self::Fenced { .. }
            | Self::Subsumed { .. }
            | Self::Stopping
            | Self::Undecided
            | Self::Savepoint { .. } => false,
        }
    }
}

/// What made the coordinator begin a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// The interval had passed.
    Interval,
    /// A user asked.
    User,
    /// The end of the job: all sources are done, or a user stopped it.
    End,
}

/// How one checkpoint went: a line of the history.
///
/// Units: times are those of the events that the coordinator was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The checkpoint.
    pub epoch: Epoch,
    /// Why it was begun.
    pub cause: Cause,
    /// When it was begun.
    pub triggered: Duration,
    /// When it was complete or aborted.
    pub ended: Duration,
    /// Complete, or why not.
    pub result: Result<(), AbortReason>,
    /// The worker that acked last, and when.
    pub last_ack: Option<(usize, Duration)>,
    /// Workers that had not acked at the end, ascending.
    pub waited_for: Vec<usize>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let took = self.ended.saturating_sub(self.triggered);
        match &self.result {
            Ok(()) => write!(f, "checkpoint {} complete after {took:?}", self.epoch),
            Err(reason) => {
                write!(f, "checkpoint {} aborted after {took:?}: {reason}", self.epoch)
            }
        }
    }
}

/// Why the coordinator fails the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum JobFailure {
    /// More consecutive checkpoints failed than are tolerated.
    #[error(
        "{failures} consecutive checkpoints failed and {tolerable} are tolerated; \
         the last one, {epoch}, was {last}"
    )]
    ToleranceExceeded {
        /// How many failed.
        failures: u32,
        /// How many are tolerated.
        tolerable: u32,
        /// The last one.
        epoch: Epoch,
        /// Why it failed.
        last: AbortReason,
    },
    /// A newer attempt of the job has claimed the storage. This one must stop without touching it.
    #[error("attempt {by} of this job has taken over; this one stops")]
    Fenced {
        /// The newer attempt.
        by: Attempt,
    },
}

/// Shows a list of workers, shortened: a job may have thousands.
struct Workers<'a>(&'a [usize]);

impl fmt::Display for Workers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        match self.0 {
            [] => return f.write_str("no worker"),
            [_] => f.write_str("worker ")?,
            _ => f.write_str("workers ")?,
        }
        for (index, worker) in self.0.iter().take(SHOWN).enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{worker}")?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Shows an operator's name if there is one.
struct Operator<'a>(Option<&'a str>);

impl fmt::Display for Operator<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, ", operator {name}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_name_who_was_waited_for_and_who_declined() {
        let expired = |workers: std::ops::Range<usize>| AbortReason::Expired {
            waiting_for: workers.collect(),
        };
        assert_eq!(expired(3..4).to_string(), "expired while waiting for worker 3");
        assert_eq!(expired(1..4).to_string(), "expired while waiting for workers 1, 2, 3");
        assert_eq!(
            expired(0..20).to_string(),
            "expired while waiting for workers 0, 1, 2, 3, 4, 5, 6, 7 and 12 more"
        );
        let declined = AbortReason::Declined {
            worker: 2,
            operator: Some("count".into()),
            why: "no space left on device".into(),
        };
        assert_eq!(
            declined.to_string(),
            "declined by worker 2, operator count: no space left on device"
        );
    }

    #[test]
    fn only_faults_count_against_the_tolerance() {
        assert!(AbortReason::Expired { waiting_for: vec![0] }.counts());
        assert!(AbortReason::Storage { why: "timeout".into() }.counts());
        assert!(!AbortReason::Subsumed { by: Epoch(2) }.counts());
        assert!(!AbortReason::Superseded { by: Epoch(2) }.counts());
        assert!(!AbortReason::Stopping.counts());
    }
}
