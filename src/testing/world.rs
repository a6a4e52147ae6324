//! The simulated machine: who runs, what time it is, and when it breaks.
//!
//! # The baton
//! Every worker thread runs only while it holds the baton, for one turn: the building of its dataflow, or one step of
//! it. At the end of a turn the seed draws the next holder among the workers that have not left. So one thread runs at
//! a time, and everything that happens follows from the seed.
//!
//! # Lives
//! A *life* is what a process is outside: it ends when the job ends, or when the process is killed. Killed means: from
//! this storage call or this turn on nothing has an effect; all workers abandon what they do, the tasks of their
//! executor are dropped. The next life finds what was in storage, and what the sinks had committed.
//!
//! # Time
//! The clock moves on with turns only. If nothing at all happens for many turns it jumps, so that a job that waits for
//! a timeout does not need a million turns.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::Random;
use super::faults::{Death, Faults, Moment};
use super::trace::Trace;
use crate::format::manifest::Manifest;
use crate::runtime::attempt::Running;
use crate::runtime::clock::Clock;
use crate::runtime::context::Failure;
use crate::runtime::counters::Counters;
use crate::runtime::driver::Turns;
use crate::runtime::executor::{Executor, Lane};
use crate::storage::fault::{FaultAction, FaultOp, FaultPoint};
use crate::storage::{BlobPath, CheckpointStorage, MemoryStorage};

/// What a failure that was put there on purpose says.
pub(super) const INJECTED: &str = "injected by the simulator";

/// Turns without any change after which the clock makes a jump.
const QUIET_TURNS: u64 = 20;
/// How far it jumps. A checkpoint that is on its way needs not so many turns that it would expire by this.
const QUIET_JUMP: Duration = Duration::from_millis(100);

thread_local! {
    static CURRENT: RefCell<Option<Arc<World>>> = const { RefCell::new(None) };
}

/// The simulated machine that the calling thread runs on, if it does.
pub(super) fn current() -> Option<Arc<World>> {
    CURRENT.with(|current| current.borrow().clone())
}

/// The simulated machine. One for each run of a simulation.
pub(super) struct World {
    me: Weak<Self>,
    state: Mutex<State>,
    /// One for each worker.
    baton: Vec<Condvar>,
    counters: Arc<Counters>,
    /// What is on the disk, beyond all faults.
    storage: MemoryStorage,
}

struct Worker {
    arrived: bool,
    built: bool,
    left: bool,
    /// How likely it is to be drawn, against the others.
    weight: u64,
}

struct State {
    random: Random,
    now: Duration,
    turns: u64,
    turns_max: u64,
    workers: Vec<Worker>,
    holder: Option<usize>,
    reweigh_at: u64,
    /// The longest step of the clock. Units: microseconds.
    tick_us: u64,
    /// How much the clock moves when it is read. Units: microseconds.
    read_us: u64,
    snapshot_threads: usize,
    progress: (u64, u64, u64, u64),
    quiet: u64,
    storage_calls: u64,
    tasks: u64,
    faults: Faults,
    /// A manifest that has been written since the last turn.
    manifest: Option<BlobPath>,
    killed: Option<String>,
    running: Running,
    /// Whether the job was asked to stop in this life.
    stopped: bool,
    unexpected: Vec<String>,
    trace: Trace,
}

/// What became of a run, beside its result.
pub(super) struct Told {
    pub(super) trace: Trace,
    pub(super) turns: u64,
    pub(super) now: Duration,
    pub(super) unexpected: Vec<String>,
}

impl World {
    pub(super) fn new(
        mut random: Random,
        workers_max: usize,
        turns_max: u64,
        faults: Faults,
        counters: Arc<Counters>,
        storage: MemoryStorage,
    ) -> Arc<Self> {
        let tick_us = random.scaled(20, 2000);
        let read_us = random.pick(&[0, 0, 1, 50, 1000]);
        let state = State {
            random,
            now: Duration::ZERO,
            turns: 0,
            turns_max,
            workers: Vec::new(),
            holder: None,
            reweigh_at: 0,
            tick_us,
            read_us,
            snapshot_threads: 1,
            progress: (0, 0, 0, 0),
            quiet: 0,
            storage_calls: 0,
            tasks: 0,
            faults,
            manifest: None,
            killed: None,
            running: Running::default(),
            stopped: false,
            unexpected: Vec::new(),
            trace: Trace::new(),
        };
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            state: Mutex::new(state),
            baton: (0..workers_max).map(|_| Condvar::new()).collect(),
            counters,
            storage,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that unwinds while it holds the lock has been told to: the state is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a life. `mortal`: it may end in a death.
    pub(super) fn live(&self, mortal: bool, snapshot_threads: usize, running: &Running) {
        let mut state = self.state();
        let state = &mut *state;
        state.running = running.clone();
        state.stopped = false;
        state.killed = None;
        state.workers.clear();
        state.holder = None;
        state.snapshot_threads = snapshot_threads.max(1);
        state.faults.live(mortal);
        let plan = state.faults.death();
        state.trace.note(|| format!("a life begins: {plan}"));
    }

    /// How this life was ended, if it was.
    pub(super) fn killed(&self) -> Option<String> {
        self.state().killed.clone()
    }

    /// Whether the job was asked to stop in this life, so that it may have ended before its input did.
    pub(super) fn stopped(&self) -> bool {
        self.state().stopped
    }

    /// From here on nothing goes wrong any more.
    pub(super) fn heal(&self) {
        self.state().faults.none();
    }

    pub(super) fn tell(&self) -> Told {
        let state = self.state();
        Told {
            trace: state.trace.clone(),
            turns: state.turns,
            now: state.now,
            unexpected: state.unexpected.clone(),
        }
    }

    /// What becomes of a call to storage.
    pub(super) fn storage_call(&self, point: &FaultPoint) -> FaultAction {
        let mut state = self.state();
        if state.killed.is_some() {
            return dead(state);
        }
        state.storage_calls += 1;
        let path = point.path.as_ref().map_or("", BlobPath::as_str);
        let calls = state.storage_calls;
        state.trace.event(1, &[point.op as u64, calls]);
        state.trace.text(path);
        state.trace.note(|| format!("  {:?} {path}", point.op));
        let is_manifest = path.ends_with("/manifest");
        let moment = match point.op {
            FaultOp::Create if is_manifest => Moment::Manifest,
            _ => Moment::StorageCall,
        };
        if state.faults.dies(moment) {
            state.kill(format!("at {:?} {path}", point.op));
            return dead(state);
        }
        if moment == Moment::Manifest {
            state.manifest = point.path.clone();
        }
        // What goes wrong while a job is started ends it, as its operator would want: only a running one goes on.
        let running = !state.workers.is_empty()
            && state.workers.iter().all(|worker| worker.built && !worker.left);
        let fails = running && state.faults.storage_fails();
        if !fails || matches!(point.op, FaultOp::Open | FaultOp::ReadAt) {
            return FaultAction::Proceed;
        }
        let action = match state.random.below(3) {
            0 => FaultAction::FailIndeterminateAfterEffect,
            1 => FaultAction::FailIndeterminateWithoutEffect,
            _ => FaultAction::FailDeterminate(ErrorKind::StorageFull),
        };
        state.trace.note(|| format!("    {action:?}"));
        action
    }

    /// A moment outside of the runtime, at which it may die: it does so here.
    pub(super) fn moment(&self, moment: Moment, what: &str) {
        let mut state = self.state();
        if state.killed.is_some() {
            dead(state);
            return;
        }
        state.trace.event(2, &[moment as u64]);
        state.trace.note(|| format!("  {what}"));
        if state.faults.dies(moment) {
            state.kill(what.to_owned());
            dead(state);
        } else if state.faults.panics(moment) {
            state.trace.note(|| format!("  panic: {what}"));
            drop(state);
            panic_quietly();
        }
    }

    /// Whether a commit is to fail.
    pub(super) fn commit_fails(&self) -> bool {
        self.state().faults.commit_fails()
    }
}

/// Ends the calling thread's work here and now, as a kill would: by unwinding, which nobody relies on. A thread that
/// unwinds already gets an error instead.
fn dead(state: MutexGuard<'_, State>) -> FaultAction {
    drop(state);
    if !std::thread::panicking() {
        std::panic::resume_unwind(Box::new("killed by the simulator".to_owned()));
    }
    FaultAction::Die
}

/// Panics without the message of the panic hook, since it is expected.
fn panic_quietly() {
    std::panic::resume_unwind(Box::new(format!("a panic {INJECTED}")));
}

impl State {
    fn kill(&mut self, how: String) {
        self.trace.note(|| format!("killed {how}"));
        self.trace.event(3, &[self.turns]);
        self.killed = Some(how);
    }

    /// Draws the next holder of the baton.
    fn draw(&mut self) {
        if self.workers.iter().any(|worker| !worker.arrived) {
            return;
        }
        if self.turns >= self.reweigh_at {
            self.reweigh_at = self.turns + self.random.scaled(1, 200);
            for worker in &mut self.workers {
                worker.weight = self.random.pick(&[1, 4, 16]);
            }
        }
        let weights = self.workers.iter().map(|worker| if worker.left { 0 } else { worker.weight });
        let mut at = self.random.below(weights.clone().sum());
        self.holder = weights.enumerate().find_map(|(worker, weight)| {
            let here = at < weight;
            at = at.saturating_sub(weight);
            here.then_some(worker)
        });
    }

    /// Counts a turn and moves the clock on.
    fn turn(&mut self, worker: usize, progress: (u64, u64)) {
        self.turns += 1;
        let progress = (progress.0, progress.1, self.storage_calls, self.tasks);
        self.quiet = if progress == self.progress { self.quiet + 1 } else { 0 };
        self.progress = progress;
        self.now += Duration::from_micros(self.random.between(10, self.tick_us));
        if self.quiet >= QUIET_TURNS {
            self.quiet = 0;
            self.now += QUIET_JUMP;
        }
        let now_us = self.now.as_micros() as u64;
        self.trace.event(4, &[worker as u64, now_us, progress.0, progress.1]);
        self.trace.note(|| format!("turn of {worker} at {now_us} us, {progress:?}"));
    }
}

impl Turns for World {
    fn start(&self, workers: usize) {
        let mut state = self.state();
        assert!(workers <= self.baton.len(), "the number of workers was drawn within its bounds");
        let worker = || Worker { arrived: false, built: false, left: false, weight: 1 };
        state.workers = (0..workers).map(|_| worker()).collect();
        state.holder = None;
    }

    fn begin(&self, worker: usize) -> bool {
        CURRENT.with(|current| *current.borrow_mut() = self.me.upgrade());
        let mut state = self.state();
        if !state.workers[worker].arrived {
            state.workers[worker].arrived = true;
            state.draw();
            self.pass(&state);
        }
        while state.holder != Some(worker) {
            state = self.baton[worker].wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.killed.is_some() {
            return false;
        }
        let progress = (self.counters.source_records(), self.counters.sink_records());
        state.turn(worker, progress);
        if state.turns > state.turns_max {
            let turns = state.turns;
            state.unexpected.push(format!("the job has not ended after {turns} turns"));
            state.kill("since it does not end".to_owned());
            return false;
        }
        if state.manifest.take().is_some_and(|path| self.is_last(&path)) {
            state.faults.last_published();
        }
        if state.faults.dies(Moment::Turn) {
            let turns = state.turns;
            state.kill(format!("at turn {turns}"));
            return false;
        }
        if let Some(request) = state.faults.stops() {
            state.stopped = true;
            state.trace.note(|| format!("{request:?} is requested"));
            state.running.request(request);
        }
        if state.faults.panics(Moment::Turn) {
            drop(state);
            panic_quietly();
        }
        true
    }

    fn tasks(&self, executor: &Executor) {
        let (mut count, threads) = {
            let mut state = self.state();
            (state.random.pick(&[0, 0, 1, 1, 2, 8]), state.snapshot_threads)
        };
        while count > 0 {
            count -= 1;
            let waiting = [Lane::Snapshots, Lane::Coordination, Lane::Commits];
            let waiting: Vec<(Lane, usize)> = waiting
                .into_iter()
                .map(|lane| (lane, executor.waiting(lane)))
                .filter(|(_, tasks)| *tasks > 0)
                .collect();
            if waiting.is_empty() {
                return;
            }
            let (lane, place) = {
                let mut state = self.state();
                let (lane, tasks) = state.random.pick(&waiting);
                // The other lanes have one thread.
                let threads = if lane == Lane::Snapshots { threads } else { 1 };
                let place = state.random.below(tasks.min(threads) as u64);
                state.tasks += 1;
                state.trace.event(5, &[lane as u64, place]);
                state.trace.note(|| format!(" {lane:?} task {place} of {tasks}"));
                (lane, place as usize)
            };
            if let Some(task) = executor.take(lane, place) {
                self.moment(Moment::Task, "before a task");
                task();
                self.moment(Moment::Task, "after a task");
            }
        }
    }

    fn end(&self, worker: usize) {
        let mut state = self.state();
        state.workers[worker].built = true;
        state.draw();
        self.pass(&state);
    }

    fn leave(&self, worker: usize) {
        CURRENT.with(|current| current.borrow_mut().take());
        let mut state = self.state();
        state.workers[worker].left = true;
        state.workers[worker].arrived = true;
        state.trace.event(6, &[worker as u64]);
        if state.holder == Some(worker) || state.holder.is_none() {
            state.draw();
            self.pass(&state);
        }
    }

    fn failed(&self, failure: &Failure) {
        let mut state = self.state();
        let what = &failure.what;
        state.trace.note(|| format!("failure: {what}"));
        if state.killed.is_none() && !what.contains(INJECTED) && !what.contains("injected fault") {
            state.unexpected.push(what.clone());
            // Another attempt would only hide it.
            state.kill("since it fails".to_owned());
        }
    }

    fn random(&self) -> f64 {
        self.state().random.unit()
    }
}

impl World {
    /// Whether a manifest is there and is of a final checkpoint.
    fn is_last(&self, path: &BlobPath) -> bool {
        let bytes = self.storage.read(path, Manifest::BYTES_MAX);
        bytes.is_ok_and(|bytes| Manifest::decode(&bytes).is_ok_and(|manifest| manifest.last))
    }

    fn pass(&self, state: &State) {
        if let Some(holder) = state.holder {
            self.baton[holder].notify_one();
        }
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("turns", &self.state().turns).finish_non_exhaustive()
    }
}

impl Clock for World {
    fn now(&self) -> Duration {
        let mut state = self.state();
        let read_us = state.read_us;
        state.now += Duration::from_micros(read_us);
        state.now
    }

    fn unix_ms(&self) -> u64 {
        self.state().now.as_millis() as u64
    }

    fn sleep(&self, duration: Duration) {
        self.state().now += duration;
    }
}

/// How a life ends, in words.
impl std::fmt::Display for Death {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Never => f.write_str("to the end"),
            Self::At(moment, count) => write!(f, "until {moment:?} {count} more times"),
            Self::AfterLast { within } => write!(f, "until {within} turns after the last manifest"),
        }
    }
}
