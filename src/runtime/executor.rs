//! Threads for what blocks: writing snapshots, publishing checkpoints, committing transactions.
//!
//! Worker threads never block on I/O: they hand tasks over bounded crossbeam channels to these threads, and find the
//! results in their mailbox. Three lanes keep a slow one from delaying the others. Under the simulator there are no
//! threads: tasks wait in one queue until the driver runs one.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, TrySendError, bounded};

/// Something to be done on another thread. It reports by itself.
pub(crate) type Task = Box<dyn FnOnce() + Send>;

/// Which threads a task is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Serializing and writing parts.
    Snapshots,
    /// What the coordinator asks for, in order: publish, record, retire.
    Coordination,
    /// Committing sink transactions.
    Commits,
}

/// Tasks that may wait in a lane before a worker has to keep them itself.
const LANE_TASKS_MAX: usize = 64;

/// Runs tasks. One for each attempt.
pub(crate) enum Executor {
    Threads { lanes: Mutex<Option<[Sender<Task>; 3]>>, threads: Mutex<Vec<JoinHandle<()>>> },
    Inline { queue: Mutex<VecDeque<Task>> },
}

impl Executor {
    /// Starts `snapshot_threads` threads for snapshots and one for each other lane. They end by themselves when the
    /// executor is dropped. Snapshots and commits that have not begun when `cancelled` is set are dropped; what the
    /// coordinator has asked for is done, so that the history says why the attempt failed.
    pub(crate) fn threads(
        snapshot_threads: usize,
        cancelled: &Arc<AtomicBool>,
    ) -> std::io::Result<Self> {
        let mut threads = Vec::new();
        let never = Arc::new(AtomicBool::new(false));
        let mut lane = |name: &str, count: usize, cancelled: &Arc<AtomicBool>| {
            let (sender, receiver) = bounded::<Task>(LANE_TASKS_MAX);
            for index in 0..count {
                let receiver = receiver.clone();
                let cancelled = Arc::clone(cancelled);
                let run = move || {
                    for task in receiver {
                        if !cancelled.load(Ordering::Relaxed) {
                            task();
                        }
                    }
                };
                let thread = std::thread::Builder::new().name(format!("hw-{name}-{index}"));
                threads.push(thread.spawn(run)?);
            }
            Ok::<_, std::io::Error>(sender)
        };
        let lanes = [
            lane("snapshot", snapshot_threads, cancelled)?,
            lane("coordinate", 1, &never)?,
            lane("commit", 1, cancelled)?,
        ];
        Ok(Self::Threads { lanes: Mutex::new(Some(lanes)), threads: Mutex::new(threads) })
    }

    /// Keeps tasks until [`run_one`](Self::run_one).
    #[cfg(feature = "testing")]
    pub(crate) fn inline() -> Self {
        Self::Inline { queue: Mutex::new(VecDeque::new()) }
    }

    /// Hands over a task, or gives it back if the lane is full.
    pub(crate) fn submit(&self, lane: Lane, task: Task) -> Result<(), Task> {
        match self {
            Self::Threads { lanes, .. } => {
                let lanes = lanes.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(lanes) = &*lanes else { return Err(task) };
                let sender = match lane {
                    Lane::Snapshots => &lanes[0],
                    Lane::Coordination => &lanes[1],
                    Lane::Commits => &lanes[2],
                };
                sender.try_send(task).map_err(|error| match error {
                    TrySendError::Full(task) | TrySendError::Disconnected(task) => task,
                })
            }
            Self::Inline { queue } => {
                queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(task);
                Ok(())
            }
        }
    }

    /// Waits until everything that was handed over is done, `patience` at the most: a disk may hang. Nothing may be
    /// handed over any more.
    pub(crate) fn finish(&self, patience: Duration) {
        match self {
            Self::Threads { lanes, threads } => {
                drop(lanes.lock().unwrap_or_else(PoisonError::into_inner).take());
                let threads = threads.lock().unwrap_or_else(PoisonError::into_inner);
                let end = Instant::now() + patience;
                while !threads.iter().all(JoinHandle::is_finished) && Instant::now() < end {
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
            Self::Inline { .. } => while self.run_one() {},
        }
    }

    /// Runs the oldest task that was kept; says whether there was one.
    pub(crate) fn run_one(&self) -> bool {
        let Self::Inline { queue } = self else { return false };
        let task = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        task.is_some_and(|task| {
            task();
            true
        })
    }
}
