//! Attempts: one run of all workers between restarts.
//!
//! # One attempt
//! 1. Claim its number in the checkpoint storage; from here on every earlier attempt is fenced (I7).
//! 2. Decide what to start from, and read that manifest ([`crate::runtime::start`]).
//! 3. Start the worker threads; each builds the dataflow, restoring its own share, and runs.
//! 4. The first failure of any worker cancels the attempt.
//!
//! # Failure
//! In one process the threads are joined and the next attempt is built in place, by the restart strategy. With
//! several processes, a process that sees a failure ends, and the supervisor starts all of them again: no
//! destructor and no graceful path is relied on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam::channel::unbounded;
use timely::WorkerConfig;
use timely::communication::allocator::zero_copy::initialize::initialize_networking_from_sockets;
use timely::communication::allocator::{AllocatorBuilder, ProcessBuilder};
use timely::communication::{Allocator, Hooks, initialize_from};
use timely::dataflow::Scope;
use timely::worker::Worker;

use crate::config::{JobConfig, OnCancel};
use crate::format::record::RestoreRecord;
use crate::network::{Heartbeat, Mesh};
use crate::protocol::restart::{Decision, RestartPolicy};
use crate::runtime::backend::Backends;
use crate::runtime::board::Board;
use crate::runtime::clock::Clock;
use crate::runtime::context::{AttemptShared, Failure, FailureKind, WorkerContext};
use crate::runtime::coordination::TEMPORARY_AGE;
use crate::runtime::counters::Counters;
use crate::runtime::describe;
use crate::runtime::driver::{AttemptControl, Driver, Request, Turns};
use crate::runtime::executor::{Executor, Lane, OnPanic};
use crate::runtime::ledger::Ledger;
use crate::runtime::restore::Restored;
use crate::runtime::start::{Right, Start, announce, claim};
use crate::runtime::take_current_operator;
use crate::runtime::time::Time;
use crate::storage::job_store::JobStore;
use crate::storage::local_copy::RestoredBytes;
use crate::storage::{CheckpointStorage, LocalCopies};

/// How long the end of a job waits for storage to delete what is old.
const END_PATIENCE: Duration = Duration::from_secs(30);
/// How long a restart waits for the history to be written.
const FAILURE_PATIENCE: Duration = Duration::from_secs(1);

/// Builds the dataflow of one worker.
pub(crate) type Build =
    dyn for<'s> Fn(Scope<'s, Time>, &Rc<WorkerContext>) -> Result<(), Failure> + Send + Sync;

/// What surrounds the attempts of one process: the machine, or the simulator.
#[derive(Clone)]
pub(crate) struct Environment {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) storage: Arc<dyn CheckpointStorage>,
    /// The same store, if it may have copies on a local disk.
    pub(crate) copies: Option<LocalCopies>,
    pub(crate) counters: Arc<Counters>,
    /// The simulator's baton; then tasks run inline as well.
    pub(crate) turns: Option<Arc<dyn Turns>>,
    /// How to reach the attempt that runs now.
    pub(crate) running: Running,
}

/// A handle on whatever attempt runs now.
#[derive(Clone, Default)]
pub(crate) struct Running(Arc<RunningState>);

#[derive(Default)]
struct RunningState {
    control: Mutex<Option<Arc<AttemptControl>>>,
    /// How the job was last asked to end.
    requested: Mutex<Option<Ending>>,
}

/// How a job is asked to end: that outlives the attempt that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Stop { drain: bool },
    Cancel,
}

impl Ending {
    fn request(self) -> Request {
        match self {
            Self::Stop { drain } => Request::Stop { drain },
            Self::Cancel => Request::Cancel,
        }
    }
}

impl Running {
    fn set(&self, control: Option<Arc<AttemptControl>>) {
        *self.0.control.lock().unwrap_or_else(PoisonError::into_inner) = control;
        // It came while nothing ran, or the attempt that it came to has failed.
        if let Some(ending) = self.requested() {
            self.request(ending.request());
        }
    }

    pub(crate) fn request(&self, request: Request) {
        let ending = match &request {
            Request::Stop { drain } => Some(Ending::Stop { drain: *drain }),
            Request::Cancel => Some(Ending::Cancel),
            // Whoever asked is told that the attempt has failed.
            Request::Savepoint(_) => None,
        };
        if let Some(ending) = ending {
            *self.0.requested.lock().unwrap_or_else(PoisonError::into_inner) = Some(ending);
        }
        if let Some(control) = &*self.0.control.lock().unwrap_or_else(PoisonError::into_inner) {
            control.request(request);
        }
    }

    fn requested(&self) -> Option<Ending> {
        *self.0.requested.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn cancelled(&self) -> bool {
        self.requested() == Some(Ending::Cancel)
    }
}

impl JobConfig {
    /// Whether snapshots are written at all.
    pub(crate) fn durable(&self) -> bool {
        self.checkpoints.directory.is_some() || self.checkpoints.interval.is_some()
    }
}

pub(crate) fn fatal(what: impl Into<String>) -> Failure {
    Failure { operator: None, what: what.into(), kind: FailureKind::Fatal }
}

fn transient(what: impl Into<String>) -> Failure {
    Failure { operator: None, what: what.into(), kind: FailureKind::Transient }
}

/// Runs one attempt to its end.
///
/// # Errors
/// The first [`Failure`] of any worker.
pub(crate) fn run_attempt(
    env: &Environment,
    config: &JobConfig,
    start: &Start,
    right: Option<Right>,
    restored: Option<Restored>,
    mesh: Option<Mesh>,
    build: &Arc<Build>,
) -> Result<(), Failure> {
    let control = Arc::new(AttemptControl::default());
    let executor = Arc::new(match env.turns {
        Some(_) => Executor::inline(),
        None => {
            let stop = Arc::clone(&control);
            let on_panic: OnPanic = Arc::new(move |panic, lane| {
                stop.cancel(panicked(panic, &format!("a {lane} thread")));
            });
            let threads = config.checkpoints.writer_threads;
            Executor::threads(threads, &control.cancelled, &on_panic)
                .map_err(|error| fatal(format!("no thread could be started: {error}")))?
        }
    });
    let store = JobStore::new(Arc::clone(&env.storage), config.name.clone());
    let claim = right.as_ref().map(|right| right.claim.clone());
    let copies = env.copies.as_ref().filter(|copies| copies.is_on());
    if let Some(copies) = copies {
        begin_copies(copies, &store, &executor);
    }
    let restoring = Arc::new(Restoring {
        before: env.counters.restored_bytes(),
        built: AtomicUsize::new(0),
        recorded: copies.is_some(),
    });
    let own = config.process * config.workers;
    let backends = Backends::new(config, start.attempt).map_err(|error| {
        transient(format!("the directory for running state: {}", describe(&error)))
    })?;
    let shared = Arc::new(AttemptShared {
        config: config.clone(),
        attempt: start.attempt,
        lineage: start.lineage,
        first_epoch: start.first_epoch,
        clock: Arc::clone(&env.clock),
        executor: Arc::clone(&executor),
        ledger: Arc::new(Ledger::new(config.parallelism(), own..own + config.workers)),
        board: Board::default(),
        counters: Arc::clone(&env.counters),
        store: store.clone(),
        durable: config.durable(),
        restored,
        backends,
        planning: false,
    });
    env.counters.begin_attempt(&shared.ledger);
    #[cfg(feature = "rocksdb")]
    env.counters.set_budget(shared.backends.budget());
    let executor = Arc::clone(&shared.executor);
    let heartbeats = mesh.is_some();
    let (builders, others, heartbeat) = allocators(config, mesh, &control)?;
    env.running.set(Some(Arc::clone(&control)));
    if let Some(turns) = &env.turns {
        turns.start(config.workers);
    }
    let (sender, results) = unbounded();
    let right = Mutex::new(right);
    let run = {
        let (control, build) = (Arc::clone(&control), Arc::clone(build));
        let turns = env.turns.clone();
        move |allocator: Allocator| {
            let right = if allocator.index() == 0 {
                right.lock().unwrap_or_else(PoisonError::into_inner).take()
            } else {
                None
            };
            let turns = turns.as_deref();
            let ended = run_worker(allocator, &shared, &control, turns, &build, right, &restoring);
            // Nobody listens only if the attempt is over.
            let _ = sender.send(ended);
        }
    };
    let guards = initialize_from(builders, others, run).map_err(fatal)?;
    // Not by joining: the guard of a broken mesh waits for peers that are gone.
    let finished = results.iter().take(config.workers).filter(|finished| *finished).count();
    env.running.set(None);
    let failure = control.take_failure();
    if failure.is_none() && finished == config.workers {
        // The process may end now: what storage was to delete would stay behind.
        executor.finish(false, END_PATIENCE);
        if let Some(heartbeat) = heartbeat {
            heartbeat.stop();
        }
        // A peer that dies now makes timely's guard panic; the job is over all the same.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(guards.join())));
        if let Some(claim) = claim
            && let Err(error) = store.tidy(&claim)
        {
            tracing::warn!("leftovers of the attempt remain: {}", describe(&error));
        }
        if let Some(copies) = copies {
            sweep_copies(copies);
        }
        return Ok(());
    }
    executor.discard();
    if claim.is_some() && env.turns.is_none() {
        executor.finish(true, FAILURE_PATIENCE);
    }
    if heartbeats {
        // The sockets' threads end with the process, which ends now.
        std::mem::forget(guards);
    } else {
        drop(guards.join());
    }
    Err(failure.unwrap_or_else(|| transient("the attempt was abandoned")))
}

/// Copies on the local disk are of use from here on.
fn begin_copies(copies: &LocalCopies, store: &JobStore, executor: &Executor) {
    match store.record_of_job() {
        Ok(record) => copies.begin(store.job(), record.created_unix_ms),
        Err(error) => {
            tracing::warn!("there will be no new local copies: {}", describe(&error));
            return;
        }
    }
    let copies = copies.clone();
    // Nobody waits for it: a copy that nothing needs is never used. If the lane is full, the end of the attempt sweeps.
    let _ = executor.submit(Lane::Coordination, Box::new(move || sweep_copies(&copies)));
}

fn sweep_copies(copies: &LocalCopies) {
    match copies.sweep() {
        Ok(0) => {}
        Ok(count) => tracing::debug!(count, "local copies that nothing needs are removed"),
        Err(error) => {
            tracing::warn!("local copies that nothing needs may remain: {}", describe(&error));
        }
    }
}

/// Tells when all workers of the process have restored, and from where.
struct Restoring {
    before: RestoredBytes,
    /// Number of workers that have restored.
    built: AtomicUsize,
    /// Whether it becomes part of the history: if there is more than one place that bytes may come from.
    recorded: bool,
}

impl Restoring {
    fn built(&self, shared: &Arc<AttemptShared>) {
        let built = self.built.fetch_add(1, Ordering::AcqRel) + 1;
        let Some(restored) = shared.restored.as_ref() else { return };
        if built < shared.config.workers {
            return;
        }
        let now = shared.counters.restored_bytes();
        let local_bytes = now.local - self.before.local;
        let store_bytes = now.store - self.before.store;
        // All of it is in the manifest, or elsewhere: a savepoint.
        if local_bytes + store_bytes == 0 {
            return;
        }
        tracing::info!(
            local_bytes,
            store_bytes,
            "restored: {local_bytes} bytes from local copies, {store_bytes} from the checkpoint store"
        );
        if !self.recorded {
            return;
        }
        let record = RestoreRecord {
            attempt: shared.attempt,
            process: shared.config.process as u32,
            epoch: restored.manifest().epoch,
            unix_ms: shared.clock.unix_ms(),
            local_bytes,
            store_bytes,
        };
        let store = shared.store.clone();
        let task = Box::new(move || {
            if let Err(error) = store.record_restore(&record) {
                tracing::warn!("the restore is not in the history: {}", describe(&error));
            }
        });
        // At its start the lane has room; if not, the log has it.
        let _ = shared.executor.submit(Lane::Coordination, task);
    }
}

type Allocators = (Vec<AllocatorBuilder>, Box<dyn std::any::Any + Send>, Option<Heartbeat>);

fn allocators(
    config: &JobConfig,
    mesh: Option<Mesh>,
    control: &Arc<AttemptControl>,
) -> Result<Allocators, Failure> {
    let hooks = Hooks::default();
    let processes =
        ProcessBuilder::new_typed_vector(config.workers, hooks.refill.clone(), hooks.spill.clone());
    let Some(mesh) = mesh else {
        let builders = processes.into_iter().map(AllocatorBuilder::Process).collect();
        return Ok((builders, Box::new(()), None));
    };
    let lost = Arc::clone(control);
    let heartbeat = Heartbeat::start(
        mesh.heartbeats,
        config.heartbeat.clone(),
        Arc::new(move |peer| {
            lost.cancel(Failure {
                operator: None,
                what: format!("process {} is lost: {}", peer.process, peer.why),
                kind: FailureKind::PeerLost,
            });
        }),
    )
    .map_err(|error| transient(describe(&error)))?;
    let (builders, guard) = initialize_networking_from_sockets(
        processes,
        mesh.streams,
        config.process,
        config.workers,
        hooks,
    )
    .map_err(|error| transient(format!("sockets could not be handed over: {error}")))?;
    let builders = builders.into_iter().map(AllocatorBuilder::Tcp).collect();
    Ok((builders, Box::new(guard), Some(heartbeat)))
}

/// Runs one worker; says whether it came to the end of the job. A failure or a panic cancels the attempt.
fn run_worker(
    allocator: Allocator,
    shared: &Arc<AttemptShared>,
    control: &Arc<AttemptControl>,
    turns: Option<&dyn Turns>,
    build: &Arc<Build>,
    right: Option<Right>,
    restoring: &Restoring,
) -> bool {
    let index = allocator.index();
    let ended = catch_unwind(AssertUnwindSafe(|| {
        if turns.is_some_and(|turns| !turns.begin(index)) {
            return false;
        }
        // Without a timer timely's delayed activations come at once, and nothing depends on the machine's time.
        let now = turns.is_none().then(std::time::Instant::now);
        let mut worker = Worker::new(WorkerConfig::default(), allocator, now);
        let ran = catch_unwind(AssertUnwindSafe(|| {
            let mut driver = Driver::new(&worker, shared, control);
            let context = Rc::clone(driver.context());
            let _release = Release(Rc::clone(&context));
            let built = catch_unwind(AssertUnwindSafe(|| {
                worker.dataflow::<Time, _, _>(|scope| build(scope, &context))
            }));
            built.unwrap_or_else(|panic| {
                let mut failure =
                    panicked(panic.as_ref(), &format!("the building of the job on worker {index}"));
                // Later it may be the world that was at fault. A program that could never be built never will be.
                if shared.restored.is_none() {
                    failure.kind = FailureKind::Fatal;
                }
                Err(failure)
            })?;
            restoring.built(shared);
            if let Some(Right { claim, retained }) = right {
                driver.coordinate(claim, retained);
            }
            if let Some(turns) = turns {
                turns.end(index);
            }
            driver.run(&mut worker, turns)
        }));
        let ran =
            ran.unwrap_or_else(|panic| Err(panicked(panic.as_ref(), &format!("worker {index}"))));
        if let Err(failure) = &ran {
            tracing::debug!(worker = index, "attempt fails: {}", failure.what);
            if let Some(turns) = turns {
                turns.failed(failure);
            }
        }
        let finished = ran.unwrap_or_else(|failure| {
            control.cancel(failure);
            false
        });
        // Dataflows are dropped, not run to their end.
        drop(worker);
        finished
    }));
    let finished = ended.unwrap_or_else(|panic| {
        let failure = panicked(panic.as_ref(), &format!("worker {index}"));
        if let Some(turns) = turns {
            turns.failed(&failure);
        }
        control.cancel(failure);
        false
    });
    if let Some(turns) = turns {
        turns.leave(index);
    }
    finished
}

/// Takes a worker's context apart, however the worker ends.
struct Release(Rc<WorkerContext>);

impl Drop for Release {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// Whether a panic is what timely makes of a lost connection: on the thread that reads from it, and then on each worker.
pub(crate) fn says_connection_lost(message: &str) -> bool {
    message.contains("timely communication error") || message.contains("MergeQueue poisoned")
}

/// What became of a panic on `thread`, which must be the calling one.
fn panicked(panic: &(dyn std::any::Any + Send), thread: &str) -> Failure {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("with a value that is no text");
    let operator = take_current_operator();
    if says_connection_lost(message) {
        // The worker may see it before the heartbeat does, which knows the process. No operator is at fault.
        let what = "the connection to another process is lost".to_owned();
        return Failure { operator: None, what, kind: FailureKind::PeerLost };
    }
    let what = match operator {
        Some(operator) => format!("operator {operator} on {thread} panicked: {message}"),
        None => format!("{thread} panicked: {message}"),
    };
    transient(what)
}

/// Runs attempts in this process until the job ends, or its restart strategy gives up.
///
/// # Errors
/// The last [`Failure`].
pub(crate) fn run_in_place(
    env: &Environment,
    config: &JobConfig,
    build: &Arc<Build>,
) -> Result<(), Failure> {
    let mut policy = RestartPolicy::new(&config.restart);
    let mut run_began = None;
    loop {
        let claimed = claim(env, config, run_began).inspect_err(|failure| {
            if let Some(turns) = &env.turns {
                turns.failed(failure);
            }
        });
        let result = claimed.and_then(|(start, claim, restored)| {
            run_began = run_began.or(Some(start.attempt));
            announce(&start, restored.as_ref());
            run_attempt(env, config, &start, Some(claim), restored, None, build)
        });
        let Err(failure) = result else {
            delete_if_cancelled(env, config);
            return Ok(());
        };
        if !failure.restartable() {
            return Err(failure);
        }
        let random = env.turns.as_ref().map_or_else(random, |turns| turns.random());
        match policy.on_failure(env.clock.now(), random) {
            Decision::RestartAfter(delay) => {
                env.counters.restarted();
                let operator = failure.operator.as_ref().map(tracing::field::display);
                tracing::error!(operator, "{}; restarting after {delay:?}", failure.what);
                sleep_unless_cancelled(delay, env);
                if env.running.cancelled() {
                    return Ok(());
                }
            }
            Decision::GiveUp { why } => {
                let what = format!("{}; not restarted: {why}", failure.what);
                return Err(Failure { what, kind: FailureKind::Fatal, ..failure });
            }
        }
    }
}

fn sleep_unless_cancelled(delay: Duration, env: &Environment) {
    let end = env.clock.now() + delay;
    while !env.running.cancelled() {
        let left = end.saturating_sub(env.clock.now());
        if left.is_zero() {
            return;
        }
        env.clock.sleep(left.min(Duration::from_millis(50)));
    }
}

/// Deletes the checkpoints of a job that was cancelled, if that is what its configuration says.
pub(crate) fn delete_if_cancelled(env: &Environment, config: &JobConfig) {
    if !env.running.cancelled() || config.checkpoints.on_cancel == OnCancel::Retain {
        return;
    }
    let store = JobStore::new(Arc::clone(&env.storage), config.name.clone());
    let deleted = store.claim().and_then(|claim| {
        store.retire(&claim, &[], &[])?;
        store.sweep(&claim, TEMPORARY_AGE)
    });
    match deleted {
        Ok(_) => tracing::info!("checkpoints of the cancelled job are deleted"),
        Err(error) => tracing::warn!("checkpoints remain: {}", describe(&error)),
    }
}

/// A number from 0 to 1, for jitter and lineages. The standard library's hasher keys are random.
pub(crate) fn random() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let bits = std::hash::RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::panicked;
    use crate::ids::Name;
    use crate::runtime::context::FailureKind;
    use crate::runtime::scope_name;

    #[test]
    fn a_worker_that_finds_a_connection_lost_says_so_and_blames_no_operator() {
        let scope = scope_name("count");
        let fails = |message: &'static str| {
            let panic = std::panic::catch_unwind(|| {
                let _scope = scope.enter();
                std::panic::resume_unwind(Box::new(message));
            });
            panicked(panic.unwrap_err().as_ref(), "worker 0")
        };
        let lost = fails("MergeQueue poisoned.");
        assert_eq!((lost.kind, lost.operator), (FailureKind::PeerLost, None::<Name>));
        assert_eq!(lost.what, "the connection to another process is lost");
        let own = fails("attempt to divide by zero");
        assert_eq!(own.kind, FailureKind::Transient);
        assert_eq!(own.what, "operator count on worker 0 panicked: attempt to divide by zero");
    }
}
