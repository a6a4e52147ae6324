//! Threads for what blocks: writing snapshots, publishing checkpoints, committing transactions.
//!
//! Worker threads never block on I/O: they hand tasks over bounded crossbeam channels to these threads, and find the
//! results in their mailbox. Three lanes keep a slow one from delaying the others. Under the simulator there are no
//! threads: tasks wait in one queue until the driver runs one.
//!
//! # Failure
//! Tasks run user code: serialization, pre-commits, commits. A panic of one is caught and reported, and ends the
//! attempt: its letter will never come, and whoever waits for it would wait for ever.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam::channel::{Sender, TrySendError, bounded};

/// Something to be done on another thread. It reports by itself.
pub(crate) type Task = Box<dyn FnOnce() + Send>;

/// Told of a task that panicked, on the thread that ran it: with what, and which lane it was.
pub(crate) type OnPanic = Arc<dyn Fn(&(dyn std::any::Any + Send), &str) + Send + Sync>;

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
    Threads { lanes: [Sender<Task>; 3] },
    Inline { queue: Mutex<VecDeque<Task>> },
}

impl Executor {
    /// Starts `snapshot_threads` threads for snapshots and one for each other lane. They end by themselves when the
    /// executor is dropped; tasks that have not begun when `cancelled` is set are dropped. `on_panic` must end the
    /// attempt.
    pub(crate) fn threads(
        snapshot_threads: usize,
        cancelled: &Arc<AtomicBool>,
        on_panic: &OnPanic,
    ) -> std::io::Result<Self> {
        let lane = |name: &'static str, threads: usize| -> std::io::Result<Sender<Task>> {
            let (sender, receiver) = bounded::<Task>(LANE_TASKS_MAX);
            for index in 0..threads {
                let receiver = receiver.clone();
                let cancelled = Arc::clone(cancelled);
                let on_panic = Arc::clone(on_panic);
                std::thread::Builder::new().name(format!("hw-{name}-{index}")).spawn(move || {
                    for task in receiver {
                        if cancelled.load(Ordering::Relaxed) {
                            continue;
                        }
                        if let Err(panic) = catch_unwind(AssertUnwindSafe(task)) {
                            on_panic(panic.as_ref(), name);
                        }
                    }
                })?;
            }
            Ok(sender)
        };
        Ok(Self::Threads {
            lanes: [
                lane("snapshot", snapshot_threads)?,
                lane("coordinate", 1)?,
                lane("commit", 1)?,
            ],
        })
    }

    /// Keeps tasks until [`run_one`](Self::run_one).
    pub(crate) fn inline() -> Self {
        Self::Inline { queue: Mutex::new(VecDeque::new()) }
    }

    /// Hands over a task, or gives it back if the lane is full.
    pub(crate) fn submit(&self, lane: Lane, task: Task) -> Result<(), Task> {
        match self {
            Self::Threads { lanes } => {
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

    /// Waits until the tasks of `lane`, which has one thread, are done; at most for `patience`.
    pub(crate) fn settle(&self, lane: Lane, patience: Duration) {
        if matches!(self, Self::Inline { .. }) {
            while self.run_one() {}
            return;
        }
        let (done, wait) = bounded(1);
        // A lane that is full or dead has more to do than there is time for.
        if self.submit(lane, Box::new(move || done.send(()).unwrap_or(()))).is_ok() {
            let _ = wait.recv_timeout(patience);
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
