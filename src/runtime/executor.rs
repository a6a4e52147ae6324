//! Threads for what blocks: writing snapshots, publishing checkpoints, committing transactions.
//!
//! Worker threads never block on I/O: they hand tasks over bounded crossbeam channels to these threads, and find the
//! results in their mailbox. Three lanes keep a slow one from delaying the others. Under the simulator there are no
//! threads: tasks wait in their lanes until the holder of the baton runs one. What operators ask of the outside world has
//! threads of its own, as many as the program says; only the simulator has a lane for it.
//!
//! # Failure
//! Tasks run user code: serialization, pre-commits, commits. A panic of one is caught and reported, and ends the
//! attempt: its letter will never come, and whoever waits for it would wait for ever.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

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
    /// What operators ask of the outside world, under the simulator.
    #[cfg_attr(not(feature = "testing"), expect(dead_code, reason = "only the simulator has it"))]
    Requests,
}

/// Tasks that may wait in a lane before a worker has to keep them itself.
const LANE_TASKS_MAX: usize = 64;

/// Snapshots give way to records: where workers keep all cores busy, a snapshot thread of equal priority would stop
/// one of them for whole time slices.
const SNAPSHOT_NICE: i32 = 5;

/// Runs tasks. One for each attempt.
pub(crate) enum Executor {
    Threads { lanes: Mutex<Option<[Sender<Task>; 3]>>, threads: Mutex<Vec<(Lane, JoinHandle<()>)>> },
    Inline { lanes: [Mutex<VecDeque<Task>>; 4] },
}

impl Executor {
    /// Starts `snapshot_threads` threads for snapshots and one for each other lane. They end by themselves when the
    /// executor is dropped. Snapshots and commits that have not begun when `cancelled` is set are dropped; what the
    /// coordinator has asked for is done, so that the history says why the attempt failed. `on_panic` must end the
    /// attempt.
    pub(crate) fn threads(
        snapshot_threads: usize,
        cancelled: &Arc<AtomicBool>,
        on_panic: &OnPanic,
    ) -> std::io::Result<Self> {
        let mut started = Vec::new();
        let never = Arc::new(AtomicBool::new(false));
        let mut lane = |lane: Lane, name: &'static str, threads: usize| {
            let cancelled = if lane == Lane::Coordination { &never } else { cancelled };
            let (sender, receiver) = bounded::<Task>(LANE_TASKS_MAX);
            for index in 0..threads {
                let receiver = receiver.clone();
                let cancelled = Arc::clone(cancelled);
                let on_panic = Arc::clone(on_panic);
                let run = move || {
                    if name == "snapshot" {
                        // On Linux this is the priority of the thread. If it is refused, tails are longer.
                        let _ = rustix::process::nice(SNAPSHOT_NICE);
                    }
                    for task in receiver {
                        if cancelled.load(Ordering::Relaxed) {
                            continue;
                        }
                        if let Err(panic) = catch_unwind(AssertUnwindSafe(task)) {
                            on_panic(panic.as_ref(), name);
                        }
                    }
                };
                let thread = std::thread::Builder::new().name(format!("hw-{name}-{index}"));
                started.push((lane, thread.spawn(run)?));
            }
            Ok::<_, std::io::Error>(sender)
        };
        let lanes = [
            lane(Lane::Snapshots, "snapshot", snapshot_threads)?,
            lane(Lane::Coordination, "coordinate", 1)?,
            lane(Lane::Commits, "commit", 1)?,
        ];
        Ok(Self::Threads { lanes: Mutex::new(Some(lanes)), threads: Mutex::new(started) })
    }

    /// Keeps tasks until they are [taken](Self::take).
    pub(crate) fn inline() -> Self {
        Self::Inline { lanes: Default::default() }
    }

    /// Hands over a task, or gives it back if the lane is full.
    pub(crate) fn submit(&self, lane: Lane, task: Task) -> Result<(), Task> {
        match self {
            Self::Threads { lanes, .. } => {
                let lanes = locked(lanes);
                let sender = lanes.as_ref().and_then(|lanes| lanes.get(lane as usize));
                let Some(sender) = sender else { return Err(task) };
                sender.try_send(task).map_err(|error| match error {
                    TrySendError::Full(task) | TrySendError::Disconnected(task) => task,
                })
            }
            Self::Inline { lanes } => {
                locked(&lanes[lane as usize]).push_back(task);
                Ok(())
            }
        }
    }

    /// Whether there are no threads: a simulator runs the tasks.
    pub(crate) fn is_simulated(&self) -> bool {
        matches!(self, Self::Inline { .. })
    }

    /// Number of tasks that are kept in a lane.
    #[cfg(feature = "testing")]
    pub(crate) fn waiting(&self, lane: Lane) -> usize {
        match self {
            Self::Threads { .. } => 0,
            Self::Inline { lanes } => locked(&lanes[lane as usize]).len(),
        }
    }

    /// Takes a task that was kept, by its place in the lane.
    #[cfg(feature = "testing")]
    pub(crate) fn take(&self, lane: Lane, place: usize) -> Option<Task> {
        match self {
            Self::Threads { .. } => None,
            Self::Inline { lanes } => locked(&lanes[lane as usize]).remove(place),
        }
    }

    /// Waits until the coordinator's tasks are done, and all others too unless the attempt has failed; `patience` at the
    /// most: a disk may hang. No task can be handed over any more.
    pub(crate) fn finish(&self, failed: bool, patience: Duration) {
        match self {
            Self::Threads { lanes, threads } => {
                locked(lanes).take();
                let threads = locked(threads);
                let end = Instant::now() + patience;
                let awaited =
                    threads.iter().filter(|(lane, _)| !failed || *lane == Lane::Coordination);
                while !awaited.clone().all(|(_, thread)| thread.is_finished())
                    && Instant::now() < end
                {
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
            Self::Inline { lanes } => {
                // Nobody waits for the answers to requests any more.
                for lane in &lanes[..Lane::Requests as usize] {
                    loop {
                        let task = locked(lane).pop_front();
                        let Some(task) = task else { break };
                        task();
                    }
                }
            }
        }
    }

    /// Drops the tasks that are kept: a dead attempt does nothing any more. They hold on to what holds this executor.
    pub(crate) fn discard(&self) {
        if let Self::Inline { lanes } = self {
            for lane in lanes {
                let tasks = std::mem::take(&mut *locked(lane));
                drop(tasks);
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
