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
//! Instead of killed a life may be *frozen*, at the same moments: it stands still, is taken for dead, and the next life
//! begins. Later it thaws and goes on where it was, in turn with the workers of the newest life. It may do no harm (I7).
//! Outside of its workers' turns it does nothing any more: it claims no attempt.
//!
//! # Time
//! The clock moves on with turns only. If nothing at all happens for many turns it jumps, so that a job that waits for
//! a timeout does not need a million turns.

mod calls;

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};

use super::Random;
use super::control::ControlFaults;
use super::faults::{Asked, Faults, Moment};
use super::reduce::{Fault, FaultKind};
use super::trace::Trace;
use crate::format::manifest::Manifest;
use crate::format::record::{SavepointFormat, SavepointInfo};
use crate::runtime::attempt::Running;
use crate::runtime::clock::Clock;
use crate::runtime::context::Failure;
use crate::runtime::counters::Counters;
use crate::runtime::driver::{Delivery, Request, Turns};
use crate::runtime::executor::{Executor, Lane};
use crate::runtime::savepoint::{AskedSavepoint, Asker};
use crate::storage::fault::FaultAction;
use crate::storage::{BlobPath, CheckpointStorage, MemoryStorage};

/// What a failure that was put there on purpose says.
pub(super) const INJECTED: &str = "injected by the simulator";

/// Turns without any change after which the clock makes a jump.
const QUIET_TURNS: u64 = 20;
/// How far it jumps. A checkpoint that is on its way needs not so many turns that it would expire by this.
const QUIET_JUMP: Duration = Duration::from_millis(100);
/// How far it jumps while no checkpoint is on its way.
const IDLE_JUMP: Duration = Duration::from_secs(2);
/// Turns that thawed lives get once the job has ended. Then they are killed.
const DRAIN_TURNS: u64 = 400;

thread_local! {
    static CURRENT: RefCell<Option<Arc<Seat>>> = const { RefCell::new(None) };
}

/// Where the calling worker sits in a simulated machine, if it does.
pub(super) fn current() -> Option<Arc<Seat>> {
    CURRENT.with(|current| current.borrow().clone())
}

/// The place of one worker thread in a simulated machine.
pub(super) struct Seat {
    life: Arc<Life>,
    number: usize,
}

/// One life of the simulated process.
pub(super) struct Life {
    world: Arc<World>,
    number: usize,
}

/// The simulated machine. One for each run of a simulation.
pub(super) struct World {
    state: Mutex<State>,
    /// Wakes who waits for the end of a life, or for its being frozen.
    lives: Condvar,
    counters: Arc<Counters>,
    /// What is on the disk, beyond all faults.
    storage: MemoryStorage,
    /// Whether panics of workers are of no interest to anybody.
    pub(super) quiet: bool,
}

struct SeatState {
    life: usize,
    arrived: bool,
    built: bool,
    left: bool,
    /// How likely it is to be drawn, against the others.
    weight: u64,
    baton: Arc<Condvar>,
}

#[derive(Default)]
struct LifeState {
    /// The seats of the attempt that runs.
    first_seat: usize,
    snapshot_threads: usize,
    running: Running,
    killed: Option<String>,
    /// How it was frozen, and the turn from which on it goes on.
    frozen: Option<(String, u64)>,
    /// The seat that was frozen in the middle of its turn. It goes on before others of its life get one: a task of a
    /// lane with one thread must not run beside the next, nor what it holds be waited for by who has the baton.
    suspended: Option<usize>,
    /// Whether the job was asked to stop.
    stopped: bool,
    ended: bool,
}

struct State {
    random: Random,
    now: Duration,
    turns: u64,
    turns_max: u64,
    seats: Vec<SeatState>,
    lives: Vec<LifeState>,
    holder: Option<usize>,
    /// The job has ended: only thawed lives go on, until this turn.
    drain_until: Option<u64>,
    reweigh_at: u64,
    /// The longest step of the clock. Units: microseconds.
    tick_us: u64,
    /// How much the clock moves when it is read. Units: microseconds.
    read_us: u64,
    progress: (u64, u64, u64, u64),
    quiet: u64,
    storage_calls: u64,
    tasks: u64,
    faults: Faults,
    /// A manifest that has been written since the last turn.
    manifest: Option<BlobPath>,
    unexpected: Vec<String>,
    trace: Trace,
    control: Option<ControlFaults>,
    /// A directory for real files: savepoints.
    directory: Option<PathBuf>,
    /// Answers to who has asked for savepoints.
    savepoints: Vec<Receiver<Result<SavepointInfo, String>>>,
    savepoints_asked: u64,
    /// Calls about files of a backend are made, and are nobody's business: see [`is_beside`].
    files_beside: bool,
}

/// What became of a run, beside its result.
pub(super) struct Told {
    pub(super) trace: Trace,
    pub(super) turns: u64,
    pub(super) now: Duration,
    pub(super) unexpected: Vec<String>,
    pub(super) faults: Vec<Fault>,
}

impl World {
    pub(super) fn new(
        mut random: Random,
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
            seats: Vec::new(),
            lives: Vec::new(),
            holder: None,
            drain_until: None,
            reweigh_at: 0,
            tick_us,
            read_us,
            progress: (0, 0, 0, 0),
            quiet: 0,
            storage_calls: 0,
            tasks: 0,
            faults,
            manifest: None,
            unexpected: Vec::new(),
            trace: Trace::new(),
            control: None,
            directory: None,
            savepoints: Vec::new(),
            savepoints_asked: 0,
            files_beside: false,
        };
        let (state, quiet) = (Mutex::new(state), super::reduce::is_quiet());
        Arc::new(Self { state, lives: Condvar::new(), counters, storage, quiet })
    }

    /// Lets control frames be late with one probability, and come twice with another.
    pub(super) fn disturb_control(&self, random: Random, delay: f64, twice: f64) {
        let mut state = self.state();
        let delay = if state.faults.allows(FaultKind::ControlDelay) { delay } else { 0.0 };
        let twice = if state.faults.allows(FaultKind::ControlTwice) { twice } else { 0.0 };
        state.control = (delay + twice > 0.0).then(|| ControlFaults::new(random, delay, twice));
    }

    /// Where real files go, and whether a backend has files in storage.
    pub(super) fn keep_files(&self, directory: Option<PathBuf>, backend: bool) {
        let mut state = self.state();
        (state.directory, state.files_beside) = (directory, backend);
    }

    /// Changes what is not under the baton, between two lives.
    pub(super) fn between_lives<R>(&self, change: impl FnOnce(&mut Faults) -> R) -> R {
        change(&mut self.state().faults)
    }

    /// The savepoints that were completed since this was asked.
    pub(super) fn savepoints(&self) -> Vec<SavepointInfo> {
        let mut done = Vec::new();
        self.state().savepoints.retain(|answer| match answer.try_recv() {
            Ok(answer) => {
                done.extend(answer);
                false
            }
            Err(error) => error.is_empty(),
        });
        done
    }

    /// Whether anything has failed that nobody had injected.
    pub(super) fn has_failed(&self) -> bool {
        !self.state().unexpected.is_empty()
    }

    /// Whether a further life may be killed.
    pub(super) fn mortal(&self) -> bool {
        self.state().faults.mortal()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that unwinds while it holds the lock has been told to: the state is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a life. `mortal`: it may end in a death.
    pub(super) fn live(
        self: &Arc<Self>,
        mortal: bool,
        snapshot_threads: usize,
        running: &Running,
    ) -> Arc<Life> {
        let mut state = self.state();
        let number = state.lives.len();
        let first_seat = state.seats.len();
        state.lives.push(LifeState {
            first_seat,
            snapshot_threads: snapshot_threads.max(1),
            running: running.clone(),
            ..LifeState::default()
        });
        state.drain_until = None;
        state.holder = None;
        state.faults.live(mortal);
        let death = state.faults.death();
        state.trace.note(|| format!("life {number} begins, its end: {death:?}"));
        Arc::new(Life { world: Arc::clone(self), number })
    }

    /// From here on nothing goes wrong any more.
    pub(super) fn heal(&self) {
        let mut state = self.state();
        state.faults.none();
        if let Some(control) = &mut state.control {
            control.none();
        }
    }

    /// Lets the frozen lives go on, and kills them at last. The job has ended.
    pub(super) fn drain(&self) {
        let mut state = self.state();
        let until = state.turns + DRAIN_TURNS;
        state.drain_until = Some(until);
        state.draw();
        state.pass();
    }

    pub(super) fn tell(&self) -> Told {
        let mut state = self.state();
        if let Some(control) = &state.control {
            for (kind, count) in control.counts() {
                if count > 0 {
                    state.faults.happens(kind, &format!("{count} times"));
                }
            }
        }
        Told {
            faults: state.faults.happened().to_vec(),
            trace: state.trace.clone(),
            turns: state.turns,
            now: state.now,
            unexpected: state.unexpected.clone(),
        }
    }

    /// Whether a manifest is there and is of a final checkpoint.
    fn is_last(&self, path: &BlobPath) -> bool {
        let bytes = self.storage.read(path, Manifest::BYTES_MAX);
        bytes.is_ok_and(|bytes| Manifest::decode(&bytes).is_ok_and(|manifest| manifest.last))
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
    fn request(&mut self, asked: Asked) -> Request {
        let stop = match asked {
            Asked::Stop { drain } => return Request::Stop { drain },
            Asked::Cancel => return Request::Cancel,
            Asked::Savepoint { stop } => stop,
        };
        let directory = self.directory.as_ref().expect("savepoints have a directory");
        let to = directory.join(format!("savepoint-{}", self.savepoints_asked));
        self.savepoints_asked += 1;
        let (sender, answer) = bounded(1);
        self.savepoints.push(answer);
        Request::Savepoint(AskedSavepoint {
            to,
            stop,
            format: SavepointFormat::Canonical,
            asker: Asker::Thread(sender),
        })
    }

    fn kill(&mut self, life: usize, how: String) {
        self.trace.note(|| format!("life {life} is killed {how}"));
        self.trace.event(3, &[self.turns, life as u64]);
        self.lives[life].killed = Some(how);
    }

    /// Whether it is the life that the others make way for.
    fn is_newest(&self, life: usize) -> bool {
        life + 1 == self.lives.len() && self.drain_until.is_none()
    }

    /// Whether a worker may get the baton. Those of frozen lives wait until all workers of the newest are there: what
    /// a process does before and after its workers' turns is not under the baton.
    fn may_run(&self, number: usize, seat: &SeatState) -> bool {
        let life = &self.lives[seat.life];
        let waits = life.suspended.is_some_and(|suspended| suspended != number);
        if seat.left || !seat.arrived || waits {
            return false;
        }
        self.is_newest(seat.life)
            || life.killed.is_some()
            || self.drain_until.is_some()
            || life.frozen.as_ref().is_some_and(|(_, thaws)| *thaws <= self.turns)
    }

    /// Draws the next holder of the baton.
    fn draw(&mut self) {
        self.holder = None;
        if let (Some(newest), None) = (self.lives.last(), self.drain_until) {
            let seats = &self.seats[newest.first_seat..];
            if seats.iter().any(|seat| !seat.arrived) || seats.iter().all(|seat| seat.left) {
                return;
            }
        }
        if self.turns >= self.reweigh_at {
            self.reweigh_at = self.turns + self.random.scaled(1, 200);
            for seat in &mut self.seats {
                seat.weight = self.random.pick(&[1, 4, 16]);
            }
        }
        let weight = |(number, seat): (usize, &SeatState)| {
            if self.may_run(number, seat) { seat.weight } else { 0 }
        };
        let weights: Vec<u64> = self.seats.iter().enumerate().map(weight).collect();
        let mut at = self.random.below(weights.iter().sum());
        self.holder = weights.into_iter().enumerate().find_map(|(seat, weight)| {
            let here = at < weight;
            at = at.saturating_sub(weight);
            here.then_some(seat)
        });
    }

    fn pass(&self) {
        if let Some(holder) = self.holder {
            self.seats[holder].baton.notify_one();
        }
    }

    /// Counts a turn and moves the clock on.
    fn turn(&mut self, seat: usize, counters: &Counters) {
        let progress = (counters.source_records(), counters.sink_records());
        self.turns += 1;
        let progress = (progress.0, progress.1, self.storage_calls, self.tasks);
        self.quiet = if progress == self.progress { self.quiet + 1 } else { 0 };
        self.progress = progress;
        self.now += Duration::from_micros(self.random.between(10, self.tick_us));
        if self.quiet >= QUIET_TURNS {
            self.quiet = 0;
            let idle = counters.checkpoint_status().1 == 0;
            self.now += if idle { IDLE_JUMP } else { QUIET_JUMP };
        }
        let now_us = self.now.as_micros() as u64;
        self.trace.event(4, &[seat as u64, now_us, progress.0, progress.1]);
        self.trace.note(|| format!("turn of {seat} at {now_us} us, {progress:?}"));
    }
}

impl Life {
    fn seat(&self, state: &State, worker: usize) -> usize {
        state.lives[self.number].first_seat + worker
    }

    /// Waits until the life has ended or is frozen. Returns how it was killed or frozen, if it was.
    pub(super) fn wait(&self) -> (bool, Option<String>) {
        let mut state = self.world.state();
        loop {
            let life = &state.lives[self.number];
            if life.ended {
                return (true, life.killed.clone());
            }
            if let Some((how, _)) = &life.frozen {
                return (false, Some(how.clone()));
            }
            state = self.world.lives.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The process has ended.
    pub(super) fn end(&self) {
        self.world.state().lives[self.number].ended = true;
        self.world.lives.notify_all();
    }

    /// Whether the job was asked to stop in this life, so that it may have ended before its input did.
    pub(super) fn stopped(&self) -> bool {
        self.world.state().lives[self.number].stopped
    }

    /// The life dies at this moment: it is killed, or frozen for a while. A thread that comes back from here goes on.
    fn die<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        seat: Option<usize>,
        how: String,
    ) -> MutexGuard<'a, State> {
        let (Some(seat), Some(turns)) = (seat, state.faults.freezes()) else {
            state.kill(self.number, how);
            return state;
        };
        let thaws = state.turns + turns;
        state.trace.note(|| format!("life {} is frozen {how}, until turn {thaws}", self.number));
        state.lives[self.number].frozen = Some((format!("frozen {how}"), thaws));
        state.lives[self.number].suspended = Some(seat);
        state.holder = None;
        self.world.lives.notify_all();
        state = self.await_baton(state, seat);
        state.lives[self.number].suspended = None;
        state.trace.note(|| format!("life {} goes on", self.number));
        state
    }

    fn await_baton<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        seat: usize,
    ) -> MutexGuard<'a, State> {
        let baton = Arc::clone(&state.seats[seat].baton);
        while state.holder != Some(seat) {
            state = baton.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }
}

impl Seat {
    /// A moment outside of the runtime, at which the process may die or the worker panic.
    pub(super) fn moment(&self, moment: Moment, what: &str) {
        let life = &self.life;
        let mut state = life.world.state();
        state.trace.event(2, &[moment as u64]);
        state.trace.note(|| format!("  {what}"));
        if state.is_newest(life.number) && state.lives[life.number].killed.is_none() {
            if state.faults.dies(moment, what) {
                state = life.die(state, Some(self.number), what.to_owned());
            } else if state.faults.panics(moment, what) {
                state.trace.note(|| format!("  panic: {what}"));
                drop(state);
                panic_quietly();
                return;
            }
        }
        if state.lives[life.number].killed.is_some() {
            dead(state);
        }
    }

    /// Lets time pass.
    pub(super) fn work(&self, duration: Duration) {
        self.life.world.state().now += duration;
    }

    /// Whether nobody wants to hear of panics.
    pub(super) fn is_quiet(&self) -> bool {
        self.life.world.quiet
    }

    /// Whether a commit is to fail.
    pub(super) fn commit_fails(&self) -> bool {
        let mut state = self.life.world.state();
        state.is_newest(self.life.number) && state.faults.commit_fails()
    }
}

/// The turns of one life's workers.
impl Turns for Life {
    fn start(&self, workers: usize) {
        let mut state = self.world.state();
        let life = self.number;
        state.lives[life].first_seat = state.seats.len();
        state.seats.extend((0..workers).map(|_| SeatState {
            life,
            arrived: false,
            built: false,
            left: false,
            weight: 1,
            baton: Arc::new(Condvar::new()),
        }));
        state.holder = None;
    }

    fn begin(&self, worker: usize) -> bool {
        let mut state = self.world.state();
        let number = self.seat(&state, worker);
        if !state.seats[number].arrived {
            let life = Arc::new(Self { world: Arc::clone(&self.world), number: self.number });
            CURRENT.with(|current| {
                *current.borrow_mut() = Some(Arc::new(Seat { life, number }));
            });
            state.seats[number].arrived = true;
            state.draw();
            state.pass();
        }
        state = self.await_baton(state, number);
        if state.lives[self.number].killed.is_some() {
            return false;
        }
        state.turn(number, &self.world.counters);
        if !state.is_newest(self.number) {
            return self.thawed_turn(state);
        }
        if state.turns > state.turns_max {
            let turns = state.turns;
            state.unexpected.push(format!("the job has not ended after {turns} turns"));
            state.kill(self.number, "since it does not end".to_owned());
            return false;
        }
        if let Some(path) = state.manifest.take() {
            if self.world.is_last(&path) {
                state.faults.last_published();
            }
            state.faults.published();
        }
        let built = if self.is_building(&state) { ", while the job is built" } else { "" };
        let how = format!("at turn {}{built}", state.turns);
        if state.faults.dies(Moment::Turn, &how) {
            state = self.die(state, Some(number), how);
            return state.lives[self.number].killed.is_none();
        }
        if let Some(asked) = state.faults.stops() {
            state.lives[self.number].stopped |= asked.ends();
            state.trace.note(|| format!("{asked:?} is requested"));
            let request = state.request(asked);
            state.lives[self.number].running.request(request);
        }
        if state.faults.panics(Moment::Turn, &how) {
            drop(state);
            panic_quietly();
        }
        true
    }

    fn tasks(&self, executor: &Executor) {
        let (mut count, threads) = {
            let mut state = self.world.state();
            let threads = state.lives[self.number].snapshot_threads;
            (state.random.pick(&[0, 0, 1, 1, 2, 8]), threads)
        };
        let Some(seat) = current() else { return };
        while count > 0 {
            count -= 1;
            let lanes = [Lane::Snapshots, Lane::Coordination, Lane::Commits, Lane::Requests];
            let waiting: Vec<(Lane, usize)> = lanes
                .into_iter()
                .map(|lane| (lane, executor.waiting(lane)))
                .filter(|(_, tasks)| *tasks > 0)
                .collect();
            if waiting.is_empty() {
                return;
            }
            let (lane, place) = {
                let mut state = self.world.state();
                let (lane, tasks) = state.random.pick(&waiting);
                let threads = match lane {
                    Lane::Snapshots => threads,
                    Lane::Coordination | Lane::Commits => 1,
                    // The outside world answers in any order.
                    Lane::Requests => tasks,
                };
                let place = state.random.below(tasks.min(threads) as u64);
                state.tasks += 1;
                state.trace.event(5, &[lane as u64, place]);
                state.trace.note(|| format!(" {lane:?} task {place} of {tasks}"));
                (lane, place as usize)
            };
            if let Some(task) = executor.take(lane, place) {
                seat.moment(Moment::Task, "before a task");
                task();
                seat.moment(Moment::Task, "after a task");
            }
        }
    }

    fn end(&self, worker: usize) {
        let mut state = self.world.state();
        let seat = self.seat(&state, worker);
        state.seats[seat].built = true;
        state.draw();
        state.pass();
    }

    fn leave(&self, worker: usize) {
        CURRENT.with(|current| current.borrow_mut().take());
        let mut state = self.world.state();
        let seat = self.seat(&state, worker);
        state.seats[seat].left = true;
        state.trace.event(6, &[seat as u64]);
        state.draw();
        state.pass();
    }

    fn failed(&self, failure: &Failure) {
        let mut state = self.world.state();
        let what = &failure.what;
        state.trace.note(|| format!("failure in life {}: {what}", self.number));
        // A thawed one may find that it is fenced, or that what it wants to read is gone.
        let expected = state.lives[self.number].killed.is_some()
            || what.contains(INJECTED)
            || what.contains("injected fault")
            || !state.is_newest(self.number) && !what.contains("panicked");
        if !expected {
            state.unexpected.push(what.clone());
            // Another attempt would only hide it.
            state.kill(self.number, "since it fails".to_owned());
        }
    }

    fn disturbs_control(&self) -> bool {
        self.world.state().control.is_some()
    }

    fn deliver(&self, worker: usize, from: usize) -> Delivery {
        let mut state = self.world.state();
        let (to, from) = (self.seat(&state, worker), self.seat(&state, from));
        let State { control: Some(control), trace, turns, .. } = &mut *state else {
            return Delivery::Now;
        };
        control.deliver(to, from, *turns, trace)
    }

    fn random(&self) -> f64 {
        let mut state = self.world.state();
        if self.is_aside(&state) { 0.5 } else { state.random.unit() }
    }
}

impl Life {
    /// Whether not all workers of the life have been built yet.
    fn is_building(&self, state: &State) -> bool {
        let life = &state.lives[self.number];
        let mut seats = state.seats[life.first_seat..].iter();
        life.first_seat == state.seats.len()
            || seats.any(|seat| seat.life == self.number && !seat.built)
    }

    /// Whether the calling thread runs beside the baton, in a life that others have taken the place of: it must not
    /// change anything any more.
    fn is_aside(&self, state: &State) -> bool {
        // Threads that move files for a worker have no seat. It has the baton, and waits for them.
        let has_baton = |holder: usize| state.seats[holder].life == self.number;
        !state.is_newest(self.number) && current().is_none() && !state.holder.is_some_and(has_baton)
    }

    /// A turn of a worker of a life that was frozen.
    fn thawed_turn(&self, mut state: MutexGuard<'_, State>) -> bool {
        if state.drain_until.is_some_and(|end| state.turns > end) {
            state.kill(self.number, "for good".to_owned());
            return false;
        }
        true
    }
}

impl std::fmt::Debug for Life {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Life").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Clock for Life {
    fn now(&self) -> Duration {
        let mut state = self.world.state();
        if !self.is_aside(&state) {
            let read_us = state.read_us;
            state.now += Duration::from_micros(read_us);
        }
        state.now
    }

    fn unix_ms(&self) -> u64 {
        self.world.state().now.as_millis() as u64
    }

    fn sleep(&self, duration: Duration) {
        let mut state = self.world.state();
        if self.is_aside(&state) {
            dead(state);
            return;
        }
        state.now += duration;
    }
}
