//! The name of a transaction.

use serde::{Deserialize, Serialize};

use super::SinkContext;
use crate::ids::{Attempt, Epoch, Lineage};

/// Names one transaction of one operator of one job for all time: no two runs and no two barriers
/// share it.
///
/// Order: by lineage, attempt, subtask, then epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TransactionId {
    /// The history that the run belongs to.
    pub lineage: Lineage,
    /// The run that wrote it.
    pub attempt: Attempt,
    /// The index of the worker that wrote it.
    pub subtask: u64,
    /// The barrier that ended it.
    pub epoch: Epoch,
}

impl TransactionId {
    /// The name of the transaction that barrier `epoch` ends in the subtask that `context`
    /// describes.
    #[must_use]
    pub fn new(context: &SinkContext, epoch: Epoch) -> Self {
        Self {
            lineage: context.lineage,
            attempt: context.attempt,
            subtask: context.subtask as u64,
            epoch,
        }
    }
}
