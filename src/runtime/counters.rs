//! What a person sees of a running job. Shared by all attempts of a process.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::format::record::{CheckpointOutcome, CheckpointRecord, WorkerTimings};
use crate::ids::{Epoch, Name};
use crate::runtime::ledger::Ledger;
#[cfg(feature = "rocksdb")]
use crate::state::rocks::Budget;
use crate::storage::local_copy::{RestoreCounts, RestoredBytes};

/// Counts of one process.
#[derive(Debug)]
pub struct Counters {
    pub(crate) source_records: AtomicU64,
    pub(crate) sink_records: AtomicU64,
    restarts: AtomicU64,
    watermark: AtomicI64,
    in_progress: AtomicU32,
    checkpoints: Mutex<Checkpoints>,
    /// Of the attempt that runs now.
    channels: Mutex<Vec<Arc<ChannelCounters>>>,
    /// Of the attempt that runs now.
    requests: Mutex<Vec<Arc<RequestCounters>>>,
    ledger: Mutex<Option<Arc<Ledger>>>,
    #[cfg(feature = "rocksdb")]
    budget: Mutex<Option<Arc<Budget>>>,
    restored: Arc<RestoreCounts>,
}

/// What the backend of keyed state takes of memory, if it has a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StateMemory {
    /// What it may take, with what nobody accounts for. Units: bytes.
    pub budget_bytes: usize,
    /// What blocks, write buffers and decoded values take now: three quarters of the budget at the most, or all but 24 MiB if that is more.
    /// Units: bytes.
    pub used_bytes: usize,
}

/// A checkpoint that completed. The history in the checkpoint directory says more.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompletedCheckpoint {
    /// Which.
    pub epoch: Epoch,
    /// From the trigger to the announcement.
    pub duration: Duration,
    /// Units: bytes of all parts.
    pub bytes: u64,
    /// Units: bytes of the channel logs among them.
    pub in_flight_bytes: u64,
    /// From a worker's learning of the checkpoint to its last snapshot: the longest of all workers.
    pub align: Duration,
    /// Writing a worker's part: the longest of all workers.
    pub write: Duration,
    /// Publishing the manifest.
    pub publish: Duration,
}

/// How checkpoints went, as this process saw it. Only the process of worker 0 sees them.
#[derive(Clone, Debug, Default)]
pub struct Checkpoints {
    /// Those that completed, in order; the last ten thousand at the most.
    pub completed: Vec<CompletedCheckpoint>,
    /// Number of those that were aborted.
    pub aborted: u64,
    /// Records that barriers have overtaken, in those that completed.
    pub in_flight_records: u64,
    /// What they take in storage. Units: bytes.
    pub in_flight_bytes: u64,
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
            channels: Mutex::default(),
            requests: Mutex::default(),
            ledger: Mutex::default(),
            #[cfg(feature = "rocksdb")]
            budget: Mutex::default(),
            restored: Arc::default(),
        }
    }
}

impl Counters {
    /// What keyed state takes of memory in this process, if its backend has a budget.
    pub fn state_memory(&self) -> Option<StateMemory> {
        #[cfg(feature = "rocksdb")]
        if let Some(budget) = &*self.budget.lock().unwrap_or_else(PoisonError::into_inner) {
            let (budget_bytes, used_bytes) = (budget.total_bytes(), budget.used_bytes());
            return Some(StateMemory { budget_bytes, used_bytes });
        }
        None
    }

    #[cfg(feature = "rocksdb")]
    pub(crate) fn set_budget(&self, budget: Option<Arc<Budget>>) {
        *self.budget.lock().unwrap_or_else(PoisonError::into_inner) = budget;
    }

    /// What restores of this process have read, in all its attempts, from local copies and from the checkpoint store.
    pub fn restored_bytes(&self) -> RestoredBytes {
        self.restored.get()
    }

    pub(crate) fn restore_counts(&self) -> &Arc<RestoreCounts> {
        &self.restored
    }

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

    /// How the channels of this process stand, of the attempt that runs now.
    pub fn channels(&self) -> Vec<ChannelStatus> {
        let channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.iter().map(|channel| channel.status()).collect()
    }

    pub(crate) fn channel(&self, name: &Name, worker: usize) -> Arc<ChannelCounters> {
        let channel = Arc::new(ChannelCounters::new(name.clone(), worker));
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.push(Arc::clone(&channel));
        channel
    }

    /// How the operators of this process stand that ask the outside world, of the attempt that runs now.
    pub fn requests(&self) -> Vec<RequestStatus> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.iter().map(|requests| requests.status()).collect()
    }

    pub(crate) fn requests_of(&self, operator: &Name, worker: usize) -> Arc<RequestCounters> {
        let counters = Arc::new(RequestCounters {
            operator: operator.clone(),
            worker,
            under_way: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            timed_out: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
        });
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.push(Arc::clone(&counters));
        counters
    }

    /// What the workers of this process have sent to each other and to those of other processes and what was not taken
    /// out of channels yet, of the attempt that runs now.
    pub fn balances(&self) -> Vec<Balance> {
        let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        ledger.as_ref().map_or_else(Vec::new, |ledger| ledger.balances())
    }

    /// An attempt begins.
    pub(crate) fn begin_attempt(&self, ledger: &Arc<Ledger>) {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clear();
        *self.ledger.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(ledger));
    }

    /// The newest complete checkpoint with the time it took, and the number of those in progress.
    pub(crate) fn checkpoint_status(&self) -> (Option<(Epoch, Duration)>, u32) {
        let checkpoints = self.checkpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let last = checkpoints.completed.last().map(|last| (last.epoch, last.duration));
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
                let records = record.workers.iter().map(|worker| worker.in_flight_records);
                checkpoints.in_flight_records += records.sum::<u64>();
                checkpoints.in_flight_bytes += record.in_flight_bytes;
                let longest = |of: fn(&WorkerTimings) -> u64| {
                    Duration::from_micros(record.workers.iter().map(of).max().unwrap_or(0))
                };
                checkpoints.completed.push(CompletedCheckpoint {
                    epoch: record.epoch,
                    duration,
                    bytes: record.bytes,
                    in_flight_bytes: record.in_flight_bytes,
                    align: longest(|worker| worker.align_us),
                    write: longest(|worker| worker.async_us),
                    publish: Duration::from_millis(record.publish_ms),
                });
                // A job runs for months; what is shown is the last ones.
                if checkpoints.completed.len() > 10_000 {
                    checkpoints.completed.drain(..5_000);
                }
            }
            CheckpointOutcome::Aborted { .. } => checkpoints.aborted += 1,
        }
    }
}

/// How a channel stands at one worker. Rates are differences of two of these.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChannelStatus {
    /// The channel.
    pub name: Name,
    /// The worker that receives from it.
    pub worker: usize,
    /// Records that wait to be released.
    pub queued_records: u64,
    /// What they weigh, by the senders' estimates. Units: bytes.
    pub queued_bytes: u64,
    /// Records that were released since the attempt began.
    pub released_records: u64,
    /// What they weighed. Units: bytes.
    pub released_bytes: u64,
    /// Records that the next step may release, at the most.
    pub quantum: u64,
    /// For how long records were held, in all, because their barrier had not arrived.
    pub held: Duration,
    /// Records that barriers have overtaken.
    pub logged_records: u64,
    /// What they weighed. Units: bytes.
    pub logged_bytes: u64,
}

/// How an operator that asks the outside world stands at one worker. Counts are of the attempt of the job; rates are differences
/// of two of these.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestStatus {
    /// The operator.
    pub operator: Name,
    /// The worker.
    pub worker: usize,
    /// Requests under way: asked, waiting to be asked again, or answered and waiting for their turn to be emitted.
    pub under_way: u64,
    /// Requests that were answered, stand-ins not counted.
    pub answered: u64,
    /// Attempts that have failed by themselves.
    pub failed: u64,
    /// Attempts that were not answered in time.
    pub timed_out: u64,
    /// Requests whose last attempt has failed or timed out: a stand-in was their answer, or the job has failed.
    pub given_up: u64,
}

/// The counts of one operator that asks the outside world at one worker. One writer.
#[derive(Debug)]
pub(crate) struct RequestCounters {
    operator: Name,
    worker: usize,
    under_way: AtomicU64,
    pub(crate) answered: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) timed_out: AtomicU64,
    pub(crate) given_up: AtomicU64,
}

impl RequestCounters {
    pub(crate) fn set_under_way(&self, requests: usize) {
        self.under_way.store(requests as u64, Ordering::Relaxed);
    }

    fn status(&self) -> RequestStatus {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        RequestStatus {
            operator: self.operator.clone(),
            worker: self.worker,
            under_way: get(&self.under_way),
            answered: get(&self.answered),
            failed: get(&self.failed),
            timed_out: get(&self.timed_out),
            given_up: get(&self.given_up),
        }
    }
}

/// What is outstanding between two workers, all channels together: a source waits while it is not below the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Balance {
    /// The worker that sends.
    pub from: usize,
    /// The worker that receives.
    pub to: usize,
    /// What was sent and not taken out of a channel. Units: bytes, by the sender's estimate.
    pub outstanding_bytes: u64,
    /// How much may be. Units: bytes.
    pub budget_bytes: u64,
}

/// The counts of one channel at one worker. One writer.
#[derive(Debug)]
pub(crate) struct ChannelCounters {
    name: Name,
    worker: usize,
    arrived: Count,
    released: Count,
    logged: Count,
    quantum: AtomicU64,
    held_us: AtomicU64,
}

#[derive(Debug, Default)]
struct Count {
    records: AtomicU64,
    bytes: AtomicU64,
}

impl Count {
    /// There is one writer, so nothing is locked.
    fn add(&self, records: u64, bytes: u64) {
        let add = |to: &AtomicU64, more| {
            to.store(to.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
        };
        add(&self.records, records);
        add(&self.bytes, bytes);
    }

    fn get(&self) -> (u64, u64) {
        (self.records.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

impl ChannelCounters {
    fn new(name: Name, worker: usize) -> Self {
        Self {
            name,
            worker,
            arrived: Count::default(),
            released: Count::default(),
            logged: Count::default(),
            quantum: AtomicU64::new(0),
            held_us: AtomicU64::new(0),
        }
    }

    pub(crate) fn arrived(&self, records: u64, bytes: u64) {
        self.arrived.add(records, bytes);
    }

    pub(crate) fn released(&self, records: u64, bytes: u64) {
        self.released.add(records, bytes);
    }

    pub(crate) fn logged(&self, records: u64, bytes: u64) {
        self.logged.add(records, bytes);
    }

    pub(crate) fn set_quantum(&self, records: usize) {
        self.quantum.store(records as u64, Ordering::Relaxed);
    }

    pub(crate) fn held(&self, time: Duration) {
        self.held_us.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    fn status(&self) -> ChannelStatus {
        // In this order, so that what is released in between is not counted as less than nothing.
        let (released_records, released_bytes) = self.released.get();
        let (arrived_records, arrived_bytes) = self.arrived.get();
        let (logged_records, logged_bytes) = self.logged.get();
        ChannelStatus {
            name: self.name.clone(),
            worker: self.worker,
            queued_records: arrived_records.saturating_sub(released_records),
            queued_bytes: arrived_bytes.saturating_sub(released_bytes),
            released_records,
            released_bytes,
            quantum: self.quantum.load(Ordering::Relaxed),
            held: Duration::from_micros(self.held_us.load(Ordering::Relaxed)),
            logged_records,
            logged_bytes,
        }
    }
}
