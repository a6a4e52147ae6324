//! What a person sees of a running job. Shared by all attempts of a process.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::format::record::{CheckpointOutcome, CheckpointRecord};
use crate::ids::Epoch;

/// Counts of one process.
#[derive(Debug)]
pub struct Counters {
    pub(crate) source_records: AtomicU64,
    pub(crate) sink_records: AtomicU64,
    restarts: AtomicU64,
    watermark: AtomicI64,
    in_progress: AtomicU32,
    checkpoints: Mutex<Checkpoints>,
}

/// How checkpoints went, as this process saw it. Only the process of worker 0 sees them.
#[derive(Clone, Debug, Default)]
pub struct Checkpoints {
    /// Those that completed, in order: which, how long from the trigger, and how many bytes.
    pub completed: Vec<(Epoch, Duration, u64)>,
    /// Number of those that were aborted.
    pub aborted: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            source_records: AtomicU64::new(0),
            sink_records: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
            watermark: AtomicI64::new(i64::MIN),
            in_progress: AtomicU32::new(0),
            checkpoints: Mutex::default(),
        }
    }
}

impl Counters {
    /// Records that sources of this process have emitted, those that were replayed included.
    pub fn source_records(&self) -> u64 {
        self.source_records.load(Ordering::Relaxed)
    }

    /// Records that sinks of this process have taken, those that were replayed included.
    pub fn sink_records(&self) -> u64 {
        self.sink_records.load(Ordering::Relaxed)
    }

    /// Restarts in place.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    /// The watermark of the slowest source instance of this process. Units: milliseconds; `None` before there is one,
    /// and at the end of input.
    pub fn watermark(&self) -> Option<i64> {
        let watermark = self.watermark.load(Ordering::Relaxed);
        (watermark != i64::MIN && watermark != i64::MAX).then_some(watermark)
    }

    /// How checkpoints went.
    pub fn checkpoints(&self) -> Checkpoints {
        self.checkpoints.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The newest complete checkpoint with the time it took, and the number of those in progress.
    pub(crate) fn checkpoint_status(&self) -> (Option<(Epoch, Duration)>, u32) {
        let checkpoints = self.checkpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let last = checkpoints.completed.last().map(|(epoch, duration, _)| (*epoch, *duration));
        (last, self.in_progress.load(Ordering::Relaxed))
    }

    pub(crate) fn set_in_progress(&self, checkpoints: u32) {
        self.in_progress.store(checkpoints, Ordering::Relaxed);
    }

    pub(crate) fn restarted(&self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn set_watermark(&self, watermark: i64) {
        self.watermark.store(watermark, Ordering::Relaxed);
    }

    pub(crate) fn checkpoint(&self, record: &CheckpointRecord, duration: Duration) {
        let mut checkpoints = self.checkpoints.lock().unwrap_or_else(PoisonError::into_inner);
        match record.outcome {
            CheckpointOutcome::Complete => {
                checkpoints.completed.push((record.epoch, duration, record.bytes));
                // A job runs for months; what is shown is the last ones.
                if checkpoints.completed.len() > 10_000 {
                    checkpoints.completed.drain(..5_000);
                }
            }
            CheckpointOutcome::Aborted { .. } => checkpoints.aborted += 1,
        }
    }
}
