//! The loop of one worker: feeds events to the machines, carries out what they decide, and steps timely.
//!
//! # One turn
//! Frames and letters in; the coordinator's and the sinks' clocks; parts and frames out; one timely step, parked if
//! there is nothing to do. A worker thread never blocks on anything but that park.
//!
//! # Failure
//! The first failure of any worker of the process cancels the attempt; the others see it within a turn, and drop
//! their dataflows. Dropping is no clean-up that anything relies on: a kill at the same moment is as good.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam::channel::Receiver;
use timely::worker::Worker;

use crate::format::record::{CheckpointPhase, CheckpointWait};
use crate::ids::{Epoch, Name};
use crate::protocol::abort::AbortReason;
use crate::protocol::coordinator::Event;
use crate::protocol::flow::{BUDGET_BYTES_MIN, Budget};
use crate::protocol::watchdog::Watchdog;
use crate::runtime::context::{Assembled, AttemptShared, Failure, FailureKind, WorkerContext};
use crate::runtime::control::{Control, ControlPlane};
use crate::runtime::coordination::Coordination;
use crate::runtime::coordination::slow_after;
use crate::runtime::executor::{Executor, Lane};
use crate::runtime::mailbox::{Letter, Mailbox};
use crate::runtime::savepoint::AskedSavepoint;
use crate::runtime::snapshot::{PartFailure, write_part};
use crate::storage::job_store::Claim;

/// The longest park: a bound for what no thread would wake the worker for.
const PARK_MAX: Duration = Duration::from_millis(250);
/// How often a sender in another process is told what was taken.
const REPORT_INTERVAL: Duration = Duration::from_millis(1);
/// How often the in-flight budget is set anew.
const BUDGET_INTERVAL: Duration = Duration::from_millis(10);

/// How long a worker that has sent something counts as a sender.
const SENDER_MEMORY: Duration = Duration::from_secs(1);

/// How often it is looked whether a checkpoint takes long.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// What someone outside asks a running attempt for.
#[derive(Debug)]
pub(crate) enum Request {
    /// A final checkpoint, then the end. `drain`: event time moves to its end first.
    Stop { drain: bool },
    /// The end.
    Cancel,
    /// A savepoint; it concerns this attempt only.
    Savepoint(AskedSavepoint),
}

/// How the threads of an attempt stop each other.
#[derive(Default)]
pub(crate) struct AttemptControl {
    /// Also read by the snapshot threads.
    pub(crate) cancelled: Arc<AtomicBool>,
    failure: Mutex<Option<Failure>>,
    workers: Mutex<Vec<std::thread::Thread>>,
    requests: Mutex<VecDeque<Request>>,
}

impl AttemptControl {
    /// Ends the attempt. The first failure counts.
    pub(crate) fn cancel(&self, failure: Failure) {
        let mut first = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            *first = Some(failure);
        }
        self.cancelled.store(true, Ordering::Release);
        self.wake();
    }

    pub(crate) fn request(&self, request: Request) {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push_back(request);
        self.wake();
    }

    pub(crate) fn take_failure(&self) -> Option<Failure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn wake(&self) {
        for worker in self.workers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            worker.unpark();
        }
    }

    fn register(&self) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.push(std::thread::current());
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}

/// Decides when each worker takes a turn. The simulator's baton; nothing in production.
///
/// A worker's first turn is the building of its dataflow, its last the dropping of it.
pub(crate) trait Turns: Send + Sync {
    /// An attempt of so many workers is about to start. Nobody gets a turn before all of them have asked for one:
    /// timely's allocators wait for each other while they are made.
    fn start(&self, workers: usize);
    /// Waits for the worker's turn. `false`: the attempt is to be abandoned on the spot.
    fn begin(&self, worker: usize) -> bool;
    /// Runs some of the tasks that wait, in the turn that has begun.
    fn tasks(&self, executor: &Executor);
    /// Ends the turn.
    fn end(&self, worker: usize);
    /// The worker takes no more turns. It may have failed in a turn.
    fn leave(&self, worker: usize);
    /// Whether control frames may be late, or come twice.
    fn disturbs_control(&self) -> bool;
    /// What becomes of the frame that a worker would get next from another.
    fn deliver(&self, worker: usize, from: usize) -> Delivery;
    /// A worker fails, or an attempt could not be started.
    fn failed(&self, failure: &Failure);
    /// A number from 0 to 1.
    fn random(&self) -> f64;
}

/// What becomes of a control frame, under the simulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// It is delivered.
    Now,
    /// It waits, with all that comes behind it from the same worker, at least for this turn.
    Later,
    /// It is delivered twice.
    Twice,
    /// It is delivered, and once more behind all that waits from the same worker.
    Again,
}

/// The part that is being written, since when, and whose section.
type PartInProgress = (Epoch, Duration, Arc<Mutex<Option<Name>>>);

/// Runs one worker to the end of the job, or of the attempt.
pub(crate) struct Driver {
    context: Rc<WorkerContext>,
    control: ControlPlane,
    /// Frames that the simulator keeps back, by their senders.
    late: Vec<VecDeque<Control>>,
    letters: Receiver<Letter>,
    attempt: Arc<AttemptControl>,
    coordination: Option<Coordination>,
    /// Parts are written one at a time, in the order of their epochs.
    waiting_parts: VecDeque<Assembled>,
    part: Option<PartInProgress>,
    /// The final checkpoint is complete: tell the coordinator when our sinks have committed it.
    last: Option<Epoch>,
    budget: Budget,
    budget_at: Duration,
    report_at: Duration,
    /// When each worker was last heard of, as a sender of records.
    heard_at: Vec<Option<Duration>>,
    watchdog: Watchdog<(Epoch, CheckpointPhase, Vec<Name>)>,
    watch_at: Duration,
    steps: u64,
}

impl Driver {
    /// Makes the driver. Every worker must do so before it builds its dataflow, in the same order.
    pub(crate) fn new(
        worker: &Worker,
        shared: &Arc<AttemptShared>,
        attempt: &Arc<AttemptControl>,
    ) -> Self {
        attempt.register();
        let control = ControlPlane::new(worker);
        let (mailbox, letters) = Mailbox::new();
        let context =
            WorkerContext::new(worker.index(), worker.peers(), Arc::clone(shared), mailbox);
        let flow = &shared.config.flow;
        Self {
            context: Rc::new(context),
            control,
            late: (0..worker.peers()).map(|_| VecDeque::new()).collect(),
            letters,
            attempt: Arc::clone(attempt),
            coordination: None,
            waiting_parts: VecDeque::new(),
            part: None,
            last: None,
            budget: Budget::new(flow),
            budget_at: Duration::ZERO,
            report_at: Duration::ZERO,
            heard_at: vec![None; worker.peers()],
            watchdog: Watchdog::new(slow_after(&shared.config.checkpoints)),
            watch_at: Duration::ZERO,
            steps: 0,
        }
    }

    pub(crate) fn context(&self) -> &Rc<WorkerContext> {
        &self.context
    }

    /// Makes this worker the coordinator, once its dataflow is built.
    pub(crate) fn coordinate(&mut self, claim: Claim, retained: Vec<Epoch>) {
        self.coordination = Some(Coordination::new(claim, retained, &self.context));
    }

    /// Steps the worker until the job is over.
    ///
    /// # Errors
    /// [`Failure`] of this worker. Another worker's failure ends this one with `Ok(false)`.
    pub(crate) fn run(
        &mut self,
        worker: &mut Worker,
        turns: Option<&dyn Turns>,
    ) -> Result<bool, Failure> {
        loop {
            if turns.is_some_and(|turns| !turns.begin(self.context.index)) {
                return Ok(false);
            }
            self.turn(turns.filter(|turns| turns.disturbs_control()))?;
            if self.attempt.cancelled() {
                return Ok(false);
            }
            let park = if turns.is_some() { Duration::ZERO } else { self.park() };
            let start = self.context.now();
            self.steps += 1;
            worker.step_or_park(Some(park));
            let elapsed = self.context.now().saturating_sub(start);
            self.context.last_step.set((self.steps, elapsed));
            if let Some(failure) = self.context.take_failure() {
                return Err(failure);
            }
            self.send_outgoing();
            if let Some(turns) = turns {
                turns.tasks(&self.context.shared.executor);
            }
            if self.context.finishing() && !worker.has_dataflows() {
                return Ok(true);
            }
            if let Some(turns) = turns {
                turns.end(self.context.index);
            }
        }
    }

    /// Everything between two steps. `disturbed`: who decides over the delivery of frames, if anybody does.
    fn turn(&mut self, disturbed: Option<&dyn Turns>) -> Result<(), Failure> {
        while let Some(frame) = self.control.receive() {
            let (from, control) = frame.map_err(|what| Failure {
                operator: None,
                what,
                kind: FailureKind::Transient,
            })?;
            match disturbed {
                None => self.frame(from, control),
                Some(_) => self.late[from].push_back(control),
            }
        }
        if let Some(turns) = disturbed {
            self.late_frames(turns);
        }
        while let Ok(letter) = self.letters.try_recv() {
            self.letter(letter);
        }
        let now = self.context.now();
        if self.coordination.is_some() {
            self.coordinator_requests();
        }
        if let Some(coordination) = &mut self.coordination
            && coordination.deadline().is_some_and(|deadline| deadline <= now)
        {
            coordination.step(Event::Tick);
        }
        if let Some(coordination) = &mut self.coordination {
            coordination.look_for_requests(now);
        }
        for sink in self.context.sinks.borrow().iter() {
            sink.tick(now);
        }
        for source in self.context.sources.borrow().iter() {
            source.tick(now);
        }
        for alarm in self.context.alarms.borrow().iter() {
            alarm.tick(now);
        }
        self.start_part();
        self.watch(now);
        self.context.submit_backlog();
        self.flow_control(now);
        self.report_last_commit();
        self.send_outgoing();
        self.context.take_failure().map_or(Ok(()), Err)
    }

    /// Delivers frames as the simulator says: those of one sender in their order.
    fn late_frames(&mut self, turns: &dyn Turns) {
        for from in 0..self.late.len() {
            while !self.late[from].is_empty() {
                let delivery = turns.deliver(self.context.index, from);
                if delivery == Delivery::Later {
                    break;
                }
                let Some(control) = self.late[from].pop_front() else { break };
                // What the protocol says may come twice: all but what adds up.
                let repeated = !matches!(
                    control,
                    Control::Assign { .. } | Control::Ledger { .. } | Control::Watermark { .. }
                );
                match delivery {
                    Delivery::Twice if repeated => self.frame(from, control.clone()),
                    Delivery::Again if repeated => self.late[from].push_back(control.clone()),
                    _ => {}
                }
                self.frame(from, control);
            }
        }
    }

    fn frame(&mut self, from: usize, control: Control) {
        let context = &self.context;
        match control {
            Control::Begin { epoch, last, savepoint } => {
                // Before sources hear of it: they read no further than the final barrier.
                if last {
                    context.set_final(Some(epoch));
                }
                context.announce(epoch, savepoint);
            }
            Control::Complete { epoch, last } => {
                context.end(epoch);
                context.build_on(epoch);
                for sink in context.sinks.borrow().iter() {
                    sink.complete(epoch);
                }
                if last {
                    self.last = Some(epoch);
                } else if context.final_epoch() == Some(epoch) {
                    // Something was still on its way.
                    context.set_final(None);
                }
            }
            Control::Abort { epoch } => {
                let missing = context.missing(epoch);
                if !missing.is_empty() {
                    let names: Vec<&str> = missing.iter().map(Name::as_str).collect();
                    tracing::warn!(
                        worker = context.index,
                        epoch = epoch.0,
                        "the aborted checkpoint was waiting for {}",
                        names.join(", ")
                    );
                }
                context.end(epoch);
                context.forget(epoch);
                if context.final_epoch() == Some(epoch) {
                    context.set_final(None);
                }
            }
            Control::Drain => {
                for source in context.sources.borrow().iter() {
                    source.drain();
                }
            }
            Control::Finish => context.finish(),
            Control::Assign { source, splits } => {
                context.sources.borrow()[source as usize].assign(splits);
            }
            Control::Ledger { bytes, budget } => {
                context.shared.ledger.reported(context.index, from, bytes, budget);
            }
            Control::Full => context.shared.ledger.set_full(context.index),
            Control::Watermark { source, worker, status } => {
                context.shared.board.set(source, worker as usize, status);
            }
            Control::Ack { epoch, part, timings } => {
                let in_flight = timings.in_flight_records > 0;
                let part = (part, timings);
                self.coordinator(Event::Ack { epoch, worker: from, part, in_flight });
            }
            Control::Decline { epoch, operator, why } => {
                let reason = AbortReason::Declined { worker: from, operator, why };
                self.coordinator(Event::Decline { epoch, worker: from, reason });
            }
            Control::Slow { epoch, wait } => {
                if let Some(coordination) = &mut self.coordination {
                    coordination.slow(epoch, wait);
                }
            }
            Control::SourcesFinished => {
                self.coordinator(Event::WorkerFinished { worker: from });
            }
            Control::Committed { epoch } => {
                self.coordinator(Event::WorkerCommitted { worker: from, epoch });
            }
        }
    }

    fn coordinator(
        &mut self,
        event: Event<(crate::format::manifest::PartRef, crate::format::record::WorkerTimings)>,
    ) {
        if let Some(coordination) = &mut self.coordination {
            coordination.step(event);
        }
    }

    /// Looks for phases of checkpoints that take long here, and tells the coordinator.
    fn watch(&mut self, now: Duration) {
        if now < self.watch_at {
            return;
        }
        self.watch_at = now + WATCH_INTERVAL;
        let context = &self.context;
        let aligning = context
            .aligning()
            .into_iter()
            .map(|(epoch, since)| ((epoch, CheckpointPhase::Align, context.missing(epoch)), since));
        let writing = self.part.iter().map(|(epoch, since, operator)| {
            let operator = operator.lock().unwrap_or_else(PoisonError::into_inner).clone();
            ((*epoch, CheckpointPhase::Async, operator.into_iter().collect()), *since)
        });
        let sinks = context.sinks.borrow();
        let committing = sinks.iter().filter_map(|sink| sink.committing());
        let committing = committing
            .map(|(epoch, name, since)| ((epoch, CheckpointPhase::Commit, vec![name]), since));
        let waits = aligning.chain(writing).chain(committing);
        for ((epoch, phase, operators), waited) in self.watchdog.check(now, waits) {
            let wait = CheckpointWait {
                phase,
                worker: context.index as u32,
                operators: operators.iter().map(Name::to_string).collect(),
                waited_ms: waited.as_millis() as u64,
            };
            context.send(Some(0), Control::Slow { epoch, wait });
        }
        if let Some(coordination) = &mut self.coordination {
            coordination.watch(now);
        }
    }

    fn coordinator_requests(&mut self) {
        loop {
            let request = {
                let requests = &self.attempt.requests;
                requests.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
            };
            match request {
                Some(Request::Stop { drain }) => self.coordinator(Event::Stop { drain }),
                Some(Request::Cancel) => self.coordinator(Event::Cancel),
                Some(Request::Savepoint(asked)) => {
                    if let Some(coordination) = &mut self.coordination {
                        coordination.prepare_savepoint(asked);
                    }
                }
                None => return,
            }
        }
    }

    fn letter(&mut self, letter: Letter) {
        let context = &self.context;
        match letter {
            Letter::Part { epoch, result } => {
                self.part = None;
                match result {
                    Ok((part, timings)) => {
                        context.layers.borrow_mut().written(epoch, context.shared.attempt, &part);
                        context.send(Some(0), Control::Ack { epoch, part, timings });
                    }
                    Err(PartFailure { operator, why, fatal }) => {
                        if fatal {
                            context.fail(Failure {
                                operator: operator.clone(),
                                what: why.clone(),
                                kind: FailureKind::Transient,
                            });
                        }
                        let operator = operator.map(|name| name.to_string());
                        context.send(Some(0), Control::Decline { epoch, operator, why });
                    }
                }
            }
            Letter::Commit { sink, result } => context.sinks.borrow()[sink].committed(result),
            Letter::Publish { epoch, publish_us, result } => {
                if let Some(coordination) = &mut self.coordination {
                    coordination.published(epoch, publish_us, result);
                }
            }
            Letter::Savepoints { prepared, looked } => {
                if let Some(coordination) = &mut self.coordination {
                    coordination.begin_savepoints(prepared, looked);
                }
            }
            Letter::Reserve { result } => {
                if let Some(coordination) = &mut self.coordination {
                    coordination.reserved(result);
                }
            }
            Letter::Housekeeping { what, error } => {
                tracing::warn!(attempt = context.shared.attempt.0, "{what} failed: {error}");
            }
        }
    }

    fn start_part(&mut self) {
        self.waiting_parts.extend(self.context.take_assembled());
        if self.part.is_some() {
            return;
        }
        let Some(assembled) = self.waiting_parts.pop_front() else { return };
        let writing = Arc::default();
        self.part = Some((assembled.epoch, self.context.now(), Arc::clone(&writing)));
        let shared = Arc::clone(&self.context.shared);
        let mailbox = self.context.mailbox.clone();
        let (index, peers) = (self.context.index, self.context.peers);
        let task = move || {
            let epoch = assembled.epoch;
            let result = write_part(&shared, index, peers, assembled, &writing);
            mailbox.post(Letter::Part { epoch, result });
        };
        self.context.submit(Lane::Snapshots, Box::new(task));
    }

    /// Measures what this worker takes, and tells senders in other processes.
    fn flow_control(&mut self, now: Duration) {
        let context = Rc::clone(&self.context);
        let ledger = &context.shared.ledger;
        if now >= self.budget_at {
            self.budget_at = now + BUDGET_INTERVAL;
            let full = ledger.was_full(context.index);
            let queued = context.queued_bytes.get();
            self.budget.observe(context.taken_bytes.take(), queued, full, now);
            let senders = self.senders(now);
            let share = (self.budget.bytes() / senders as u64).max(BUDGET_BYTES_MIN);
            ledger.set_budget(context.index, share.min(context.config().flow.in_flight_bytes_max));
        }
        if context.config().processes > 1 && now >= self.report_at {
            self.report_at = now + REPORT_INTERVAL;
            let workers = context.config().workers;
            let own = context.index / workers;
            for receiver in (0..context.peers).filter(|receiver| receiver / workers != own) {
                if ledger.was_full(receiver) {
                    self.control.send(receiver, &Control::Full);
                }
            }
            for sender in (0..context.peers).filter(|sender| sender / workers != own) {
                let bytes = ledger.take_unreported(sender, context.index);
                if bytes > 0 {
                    let budget = ledger.budget(context.index);
                    self.control.send(sender, &Control::Ledger { bytes, budget });
                }
            }
        }
    }

    /// Number of workers that have sent something lately. What may wait before us is shared out among them.
    fn senders(&mut self, now: Duration) -> usize {
        let mut heard_of = self.context.heard_of.borrow_mut();
        for (heard, at) in heard_of.iter_mut().zip(&mut self.heard_at) {
            if std::mem::take(heard) {
                *at = Some(now);
            }
        }
        let lately = |at: &&Option<Duration>| at.is_some_and(|at| now - at <= SENDER_MEMORY);
        self.heard_at.iter().filter(lately).count().max(1)
    }

    fn report_last_commit(&mut self) {
        let Some(epoch) = self.last else { return };
        let sinks = self.context.sinks.borrow();
        if sinks.iter().all(|sink| sink.committed_through() >= epoch) {
            self.last = None;
            self.context.send(Some(0), Control::Committed { epoch });
        }
    }

    fn send_outgoing(&mut self) {
        // Sending never puts a frame into the same list, but a frame to ourselves arrives in the next turn.
        for (to, control) in self.context.outgoing.take() {
            match to {
                Some(to) => self.control.send(to, &control),
                None => self.control.broadcast(&control),
            }
        }
    }

    /// How long the worker may park.
    fn park(&self) -> Duration {
        let now = self.context.now();
        let coordinator = self.coordination.as_ref().and_then(Coordination::deadline);
        let sinks = self.context.sinks.borrow();
        let sources = self.context.sources.borrow();
        let deadlines = sinks.iter().filter_map(|sink| sink.deadline());
        let deadlines = deadlines.chain(sources.iter().filter_map(|source| source.deadline()));
        let alarms = self.context.alarms.borrow();
        let deadlines = deadlines.chain(alarms.iter().filter_map(|alarm| alarm.deadline()));
        let deadlines = deadlines.chain(coordinator);
        let first = deadlines.map(|deadline| deadline.saturating_sub(now)).min();
        let mut park = first.unwrap_or(PARK_MAX).min(PARK_MAX);
        // The sender may be waiting for it, and then nothing else would wake us.
        if self.context.shared.ledger.has_unreported(self.context.index) {
            park = park.min(self.report_at.saturating_sub(now));
        }
        if self.context.backlogged() || !self.waiting_parts.is_empty() {
            park = park.min(Duration::from_millis(1));
        }
        park
    }
}
