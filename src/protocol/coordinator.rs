//! The checkpoint coordinator: decides when a checkpoint begins, when it is complete, when it is
//! given up, what storage may delete, and when the job is over. There is one in an attempt; it
//! lives beside worker 0.
//!
//! ```text
//! time, user --------->+-------------+--begin, complete, abort, drain, finish--> all workers
//! ack, decline, done ->| Coordinator |--publish, reserve, retire--------------> storage
//! published, reserved->+-------------+--record, fail--------------------------> history
//! ```
//!
//! # States of the job
//! | state      | event                   | next       | effects                              |
//! |------------|-------------------------|------------|--------------------------------------|
//! | Running    | interval due, `Trigger` | Running    | begin, if slots and pause allow      |
//! | Running    | last `WorkerFinished`   | Ending     | begin the final one when alone       |
//! | Running    | `Stop`, not draining    | Ending     | the same                             |
//! | Running    | `Stop`, draining        | Draining   | drain sources                        |
//! | Running    | `StopWithSavepoint`     | as `Stop`  | the final one is to be a savepoint   |
//! | Running    | `Savepoint`             | Running    | begin one, when a slot is free       |
//! | Draining   | interval due, `Trigger`, `Savepoint` | Draining | as in Running            |
//! | Draining   | last `WorkerFinished`   | Ending     | as in Running                        |
//! | Ending     | none in progress        | Ending     | begin the final one, after its delay |
//! | Ending     | the final one complete  | Committing | complete, record, retire             |
//! | Ending     | the final one aborted   | Ending     | abort, record; later a new one       |
//! | Ending     | it was to be a savepoint, and sources have not ended | Running | abort, record, answer |
//! | Ending     | it was to be a savepoint, and sources have ended | Ending | the same; the next one is none |
//! | Ending     | it holds records in flight, input has ended, nobody stopped | Ending | complete, not as the last; later a new one |
//! | Ending, input has ended | `Stop`, not draining | Ending | the next one is the last, whatever it holds |
//! | Committing | last `WorkerCommitted`  | Over       | finish                               |
//! | not Over   | `Cancel`                | Over       | abort those in progress, finish      |
//! | not Over   | too many failures       | Over       | abort those in progress, fail        |
//! | not Over   | `Fenced`, as any reason | Over       | record, fail; delete nothing         |
//! | Over       | any                     | Over       | none                                 |
//!
//! # Savepoints
//! A checkpoint that a user asked for as a savepoint is one like any other: it is retained, subsumes, and sinks commit by
//! it. Besides, its channels do not overtake, and the publisher copies it to where the user said. So nothing else begins
//! while one is in progress: a later barrier could overtake what it must not log, and a later checkpoint would subsume
//! it. Each request is answered once: by the publisher if the checkpoint is published with it, else by
//! `SavepointFailed`. One that comes when the job is ending is refused. A stop whose savepoint fails is undone: the user
//! asked for both.
//!
//! "Alone": no other checkpoint is in progress. A draining `Stop` with all sources at their end
//! leads to Ending at once. The first `Stop` counts; later ones change nothing, nor does a
//! `Trigger` in Ending and Committing: the final checkpoint is its answer.
//!
//! # States of one checkpoint
//! | state       | event                             | next        | effects                            |
//! |-------------|-----------------------------------|-------------|------------------------------------|
//! | Collecting  | `Ack`, others missing             | Collecting  |                                    |
//! | Collecting  | last `Ack`                        | Ready       |                                    |
//! | Collecting  | `Decline` of a worker without ack | gone        | abort, record                      |
//! | Collecting  | timeout                           | gone        | abort, record                      |
//! | Ready       | nothing else is being published   | Publishing  | publish                            |
//! | Publishing  | `Published`                       | gone        | complete, record, subsume, retire  |
//! | Publishing  | `PublishFailed`                   | gone        | abort, record                      |
//! | both        | a later one is complete           | gone        | abort, record                      |
//! | no such one | any                               | no such one | none: late parts wait for a retire |
//!
//! "Both": Collecting and Ready; subsumed ones are aborted and recorded. Every pair that is not
//! listed leaves the state as it is, without effects: events may come twice and in any order. Ready
//! and Publishing do not expire and cannot be declined. All workers have done their part, and once
//! a manifest may be in storage nobody but the publisher can say what became of it.
//!
//! # Ordering
//! Effects are carried out in the order pushed. An event is taken in before time is: an ack that
//! comes in the step in which its checkpoint would expire still counts. Of several checkpoints that
//! are Ready the lowest epoch is published first. A later one may overtake an earlier one that is
//! still Collecting, which it then subsumes (sinks hand the transactions of an epoch on to the
//! next, so the later one covers them).
//!
//! # Time
//! The interval counts from trigger to trigger; the first is due one interval after the first step.
//! The pause counts from the end of a checkpoint, complete or aborted, to the next trigger, and
//! forces one at a time. A user's trigger waits for a free slot only, and restarts the interval.
//! The final checkpoint waits for neither: it begins as soon as none is in progress. Older ones are
//! waited for rather than subsumed, since they end by themselves, at the latest at their timeout,
//! and the final barrier then has nothing to overtake.
//!
//! # Invariants
//!   C1. Complete and Abort never both, each at most once, and only for what was begun.
//!   C2. Publish only with the parts of all workers; Complete only after Published.
//!   C3. Epochs grow strictly, are reserved when they begin, and are never used again after an
//!       abort.
//!   C4. At most one Publish is outstanding, and nothing that may be published is aborted or
//!       retired. (I5)
//!   C5. Finish follows Cancel, or the final checkpoint's commit by every worker. (I6)
//!   C6. Nothing follows Finish or Fail. (I7)
//!   C7. After a step, the next deadline lies in the future: a loop that waits for it does not
//!       spin.
//!
//! # Failure
//! The coordinator keeps nothing. If its process dies, the attempt ends; the next attempt finds in
//! storage what was published, and starts above every reserved epoch.
//!
//! # Source
//! Carbone et al. 2015, asynchronous barrier snapshots; Flink's `CheckpointCoordinator` and
//! `CheckpointRequestDecider`. Differences: failed checkpoints are tolerated without bound by
//! default; the pause counts after aborted checkpoints too; a job's end is one path, whether input
//! ended or a user stopped it.

mod message;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

pub use self::message::{CoordinatorSetup, Effect, Event, InProgress, Phase, Status};
use super::abort::{AbortReason, Cause, JobFailure, Outcome};
use crate::config::CheckpointConfig;
use crate::ids::{Attempt, Epoch};

/// The next block of epochs is asked for when fewer than this are left.
pub const EPOCHS_RESERVED_MIN: u64 = 100;

/// Time between a failed final checkpoint and the next try, and between failed reservations:
/// doubles from the first to the second.
const RETRY_DELAY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Time between a final checkpoint that found records on their way and the next: doubles likewise.
const IN_FLIGHT_DELAY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Decides over the checkpoints of one attempt. See the module's documentation for the contract.
#[derive(Debug)]
pub struct Coordinator<P> {
    config: CheckpointConfig,
    workers: usize,
    /// Time of the latest step; `None` before the first.
    now: Option<Duration>,
    phase: Phase,

    first_epoch: Epoch,
    next_epoch: Epoch,
    reserved_end: Epoch,
    reservation: Reservation,
    reservation_retry: Retry,

    pending: BTreeMap<Epoch, Pending<P>>,
    publishing: Option<Epoch>,
    /// Complete checkpoints that are kept, ascending.
    valid: Vec<Epoch>,

    last_trigger: Duration,
    last_end: Option<Duration>,
    /// A user's request that waits for a free slot.
    wanted: bool,
    /// Savepoints that wait for a free slot.
    savepoints: VecDeque<u64>,
    /// The savepoint that the final checkpoint is to be.
    final_savepoint: Option<u64>,
    /// Whether a user stopped the job where it is: then what is on its way is for the next run.
    stopped: bool,
    /// The same, for as long as the stop with a savepoint has not failed.
    savepoint_stops: bool,
    final_retry: Retry,
    /// The final checkpoint is tried again until nothing is on its way.
    in_flight_retry: Retry,

    finished: BTreeSet<usize>,
    committed: BTreeMap<usize, Epoch>,

    last_completed: Option<Epoch>,
    completed: u64,
    failed: u64,
    consecutive_failures: u32,
    last_failure: Option<(Epoch, AbortReason)>,
}

/// A checkpoint that is Collecting, Ready (all parts are here) or Publishing (its epoch is in
/// `publishing`).
#[derive(Debug)]
struct Pending<P> {
    cause: Cause,
    triggered: Duration,
    acked: BTreeSet<usize>,
    /// The parts of `acked`, until they are handed to the publisher.
    parts: BTreeMap<usize, P>,
    last_ack: Option<(usize, Duration)>,
    /// Whether any part holds records that were on their way.
    in_flight: bool,
    /// Whether the job ends with it; known when it is published.
    last: bool,
    /// The request for a savepoint that it is to answer.
    savepoint: Option<u64>,
}

impl<P> Pending<P> {
    fn is_last(&self) -> bool {
        self.cause == Cause::End
    }

    fn waiting_for(&self, workers: usize) -> Vec<usize> {
        (0..workers).filter(|worker| !self.acked.contains(worker)).collect()
    }
}

/// Whether the next block of epochs was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reservation {
    Idle,
    Asked,
    Failed,
}

/// When something may be tried again: the delay doubles with each failure.
#[derive(Clone, Copy, Debug)]
struct Retry {
    not_before: Duration,
    delay: Duration,
    delay_max: Duration,
}

impl Retry {
    const NEW: Self =
        Self { not_before: Duration::ZERO, delay: RETRY_DELAY.0, delay_max: RETRY_DELAY.1 };

    fn failed(&mut self, now: Duration) {
        self.not_before = now.saturating_add(self.delay);
        self.delay = (self.delay * 2).min(self.delay_max);
    }
}

impl<P> Coordinator<P> {
    /// A coordinator before its first step. Send [`Event::Tick`] as soon as the dataflow stands:
    /// time counts from there.
    ///
    /// # Panics
    /// If the setup contradicts itself: no workers, nothing retained, no room for a checkpoint, a
    /// zero interval or timeout, or epochs of the past at or above `first_epoch`. All are checked
    /// before an attempt starts.
    #[must_use]
    pub fn new(setup: CoordinatorSetup) -> Self {
        let CoordinatorSetup {
            checkpoints: config,
            workers,
            first_epoch,
            reserved_end,
            restored,
            retained_before,
        } = setup;
        assert!(workers > 0, "a job has workers");
        assert!(config.retained > 0 && config.concurrent_max > 0, "{config:?} was validated");
        assert!(!config.timeout.is_zero(), "{config:?} was validated");
        assert!(config.interval.is_none_or(|interval| !interval.is_zero()), "{config:?}");
        assert!(retained_before.is_sorted(), "{retained_before:?} is not ascending");
        assert!(
            retained_before.iter().chain(&restored).all(|epoch| *epoch < first_epoch),
            "epochs never repeat: {retained_before:?} and {restored:?} must be below {first_epoch}"
        );
        Self {
            config,
            workers,
            now: None,
            phase: Phase::Running,
            first_epoch,
            next_epoch: first_epoch,
            reserved_end,
            reservation: Reservation::Idle,
            reservation_retry: Retry::NEW,
            pending: BTreeMap::new(),
            publishing: None,
            valid: retained_before,
            last_trigger: Duration::ZERO,
            last_end: None,
            wanted: false,
            savepoints: VecDeque::new(),
            final_savepoint: None,
            stopped: false,
            savepoint_stops: false,
            final_retry: Retry::NEW,
            in_flight_retry: Retry {
                delay: IN_FLIGHT_DELAY.0,
                delay_max: IN_FLIGHT_DELAY.1,
                ..Retry::NEW
            },
            finished: BTreeSet::new(),
            committed: BTreeMap::new(),
            last_completed: restored,
            completed: 0,
            failed: 0,
            consecutive_failures: 0,
            last_failure: None,
        }
    }

    /// Takes in one event at time `now` and appends what is to be done.
    ///
    /// Units: `now` counts from an arbitrary origin; a value below an earlier one is taken as that
    /// one.
    ///
    /// # Panics
    /// If a worker claims to have committed a checkpoint that is not complete (I6): the attempt
    /// must not go on.
    pub fn step(&mut self, now: Duration, event: Event<P>, effects: &mut Vec<Effect<P>>) {
        let now = match self.now {
            None => {
                self.last_trigger = now;
                now
            }
            Some(before) => now.max(before),
        };
        self.now = Some(now);
        if self.phase == Phase::Over {
            return; // C6
        }
        self.take_in(now, event, effects);
        self.expire(now, effects);
        self.publish_next(effects);
        self.enter_ending(effects);
        self.begin_if_due(now, effects);
        self.reserve_if_due(now, effects);
        self.finish_if_committed(effects);
    }

    /// When the next step is due even if nothing happens. `None`: not before something happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        if self.phase == Phase::Over {
            return None;
        }
        if self.now.is_none() {
            return Some(Duration::ZERO);
        }
        let expiry = self.collecting().map(|(_, pending)| self.expires(pending)).min();
        let reserve = (self.reservation == Reservation::Failed && self.reserve_needed())
            .then_some(self.reservation_retry.not_before);
        let begin = self.begin_due().map(|(due, _)| due);
        [expiry, reserve, begin].into_iter().flatten().min().filter(|due| *due < Duration::MAX)
    }

    /// Where the checkpoints stand.
    #[must_use]
    pub fn status(&self) -> Status {
        let in_progress = |(epoch, pending): (&Epoch, &Pending<P>)| InProgress {
            epoch: *epoch,
            triggered: pending.triggered,
            waiting_for: pending.waiting_for(self.workers),
            publishing: self.publishing == Some(*epoch),
        };
        Status {
            phase: self.phase,
            in_progress: self.pending.iter().map(in_progress).collect(),
            last_completed: self.last_completed,
            completed: self.completed,
            failed: self.failed,
            consecutive_failures: self.consecutive_failures,
            last_failure: self.last_failure.clone(),
            reading: (0..self.workers).filter(|w| !self.finished.contains(w)).collect(),
            committing: self.not_committed(),
        }
    }

    fn take_in(&mut self, now: Duration, event: Event<P>, effects: &mut Vec<Effect<P>>) {
        match event {
            Event::Tick => {}
            Event::Trigger => {
                self.wanted |= matches!(self.phase, Phase::Running | Phase::Draining);
            }
            Event::Savepoint { request } => match self.phase {
                Phase::Running | Phase::Draining => self.savepoints.push_back(request),
                _ => {
                    effects.push(Effect::SavepointFailed { request, reason: AbortReason::Stopping })
                }
            },
            Event::Ack { epoch, worker, part, in_flight } => {
                self.ack(now, epoch, worker, part, in_flight);
            }
            Event::Decline { epoch, worker, reason } => {
                let declinable = worker < self.workers
                    && self.pending.get(&epoch).is_some_and(|p| !p.acked.contains(&worker));
                if declinable {
                    self.abort(now, epoch, reason, effects);
                }
            }
            Event::Published { epoch } => {
                if self.publishing == Some(epoch) {
                    self.complete(now, epoch, effects);
                }
            }
            Event::PublishFailed { epoch, reason } => {
                if self.publishing == Some(epoch) {
                    self.publishing = None;
                    self.abort(now, epoch, reason, effects);
                }
            }
            Event::Reserved { end } => {
                // An end that is not beyond what we have is an answer that came twice.
                if end > self.reserved_end {
                    self.reserved_end = end;
                    self.reservation = Reservation::Idle;
                    self.reservation_retry = Retry::NEW;
                }
            }
            Event::ReserveFailed { reason } => self.reserve_failed(now, reason, effects),
            Event::WorkerFinished { worker } => {
                if worker < self.workers {
                    self.finished.insert(worker);
                }
            }
            Event::WorkerCommitted { worker, epoch } => self.worker_committed(worker, epoch),
            Event::Stop { drain } => self.stop(drain, effects),
            Event::StopWithSavepoint { request, drain } => {
                if self.phase == Phase::Running {
                    self.final_savepoint = Some(request);
                    self.stop(drain, effects);
                    self.savepoint_stops = std::mem::take(&mut self.stopped);
                } else {
                    let reason = AbortReason::Stopping;
                    effects.push(Effect::SavepointFailed { request, reason });
                }
            }
            Event::Cancel => {
                self.give_up(now, true, effects);
                effects.push(Effect::Finish);
            }
        }
    }

    fn ack(&mut self, now: Duration, epoch: Epoch, worker: usize, part: P, in_flight: bool) {
        if worker >= self.workers {
            return;
        }
        let Some(pending) = self.pending.get_mut(&epoch) else { return };
        // The first part counts: a second one with another content would be a second file of the
        // same name.
        if pending.acked.insert(worker) {
            pending.parts.insert(worker, part);
            pending.last_ack = Some((worker, now));
            pending.in_flight |= in_flight;
        }
    }

    fn worker_committed(&mut self, worker: usize, epoch: Epoch) {
        if worker >= self.workers {
            return;
        }
        assert!(
            epoch < self.first_epoch || self.last_completed.is_some_and(|last| epoch <= last),
            "I6: worker {worker} committed checkpoint {epoch}, but the last complete one is {:?}",
            self.last_completed
        );
        let committed = self.committed.entry(worker).or_insert(epoch);
        *committed = epoch.max(*committed);
    }

    fn stop(&mut self, drain: bool, effects: &mut Vec<Effect<P>>) {
        let ended = self.phase == Phase::Ending && self.finished.len() == self.workers;
        if self.phase != Phase::Running && !ended {
            return;
        }
        self.wanted = false;
        if !drain {
            self.stopped = true;
            self.in_flight_retry.not_before = Duration::ZERO;
            self.begin_ending(effects);
        } else if self.finished.len() < self.workers {
            self.phase = Phase::Draining;
            effects.push(Effect::DrainSources);
        }
    }

    fn stops_in_place(&self) -> bool {
        self.stopped || self.savepoint_stops
    }

    fn enter_ending(&mut self, effects: &mut Vec<Effect<P>>) {
        if matches!(self.phase, Phase::Running | Phase::Draining)
            && self.finished.len() == self.workers
        {
            self.begin_ending(effects);
        }
    }

    fn begin_ending(&mut self, effects: &mut Vec<Effect<P>>) {
        self.phase = Phase::Ending;
        self.wanted = false;
        self.refuse_savepoints(effects);
    }

    /// Those that have not begun.
    fn refuse_savepoints(&mut self, effects: &mut Vec<Effect<P>>) {
        for request in self.savepoints.drain(..) {
            effects.push(Effect::SavepointFailed { request, reason: AbortReason::Stopping });
        }
    }

    fn collecting(&self) -> impl Iterator<Item = (&Epoch, &Pending<P>)> {
        self.pending.iter().filter(|(_, pending)| pending.acked.len() < self.workers)
    }

    fn expires(&self, pending: &Pending<P>) -> Duration {
        pending.triggered.saturating_add(self.config.timeout)
    }

    fn expire(&mut self, now: Duration, effects: &mut Vec<Effect<P>>) {
        let expired: Vec<Epoch> = self
            .collecting()
            .filter(|(_, pending)| self.expires(pending) <= now)
            .map(|(epoch, _)| *epoch)
            .collect();
        for epoch in expired {
            // The abort of an earlier one may have failed the job, and ended this one with it.
            if let Some(pending) = self.pending.get(&epoch) {
                let waiting_for = pending.waiting_for(self.workers);
                self.abort(now, epoch, AbortReason::Expired { waiting_for }, effects);
            }
        }
    }

    fn publish_next(&mut self, effects: &mut Vec<Effect<P>>) {
        if self.publishing.is_some() {
            return; // C4
        }
        let (workers, stops) = (self.workers, self.stops_in_place());
        let ready = self.pending.iter_mut().find(|(_, pending)| pending.acked.len() == workers);
        if let Some((&epoch, pending)) = ready {
            let parts: Vec<(usize, P)> = std::mem::take(&mut pending.parts).into_iter().collect();
            assert_eq!(parts.len(), workers, "C2: publish only with all parts");
            // What is on its way at the end of input still has to come out: then this one is a checkpoint like any
            // other, and there will be one more. After a stop it is what the next run goes on with.
            let ended = self.finished.len() == workers && !stops;
            let last = pending.is_last() && !(ended && pending.in_flight);
            pending.last = last;
            // If there will be one more, that one is the savepoint.
            let savepoint = pending.savepoint.filter(|_| last == pending.is_last());
            self.publishing = Some(epoch);
            effects.push(Effect::Publish { epoch, last, savepoint, parts });
        }
    }

    fn complete(&mut self, now: Duration, epoch: Epoch, effects: &mut Vec<Effect<P>>) {
        assert_eq!(self.publishing.take(), Some(epoch), "C2: complete only after published");
        let pending = self.pending.remove(&epoch).expect("what is published is pending");
        assert_eq!(pending.acked.len(), self.workers, "C2: complete only with all parts");
        assert!(self.valid.last().is_none_or(|last| *last < epoch), "C3: epochs grow");
        let last = pending.last;
        if pending.is_last() && !last && !self.stops_in_place() {
            self.in_flight_retry.failed(now);
        }
        effects.push(Effect::Complete { epoch, last });
        self.record(now, epoch, &pending, Ok(()), effects);
        self.completed += 1;
        self.consecutive_failures = 0;
        self.last_completed = Some(epoch);

        let older: Vec<Epoch> = self.pending.range(..epoch).map(|(older, _)| *older).collect();
        for older in older {
            self.abort(now, older, AbortReason::Subsumed { by: epoch }, effects);
        }

        self.valid.push(epoch);
        let surplus = self.valid.len().saturating_sub(self.config.retained as usize);
        self.valid.drain(..surplus);
        effects.push(Effect::Retire {
            keep: self.valid.clone(),
            in_progress: self.pending.keys().copied().collect(),
            before: self.next_epoch,
        });
        if last {
            assert!(self.pending.is_empty(), "nothing is begun beside the final checkpoint");
            self.final_savepoint = None;
            self.phase = Phase::Committing { epoch };
        }
    }

    /// Ends a checkpoint that nobody is publishing, and the job if that was one failure too many.
    fn abort(
        &mut self,
        now: Duration,
        epoch: Epoch,
        reason: AbortReason,
        effects: &mut Vec<Effect<P>>,
    ) {
        assert_ne!(self.publishing, Some(epoch), "C4: what is being published is not aborted");
        let pending = self.pending.remove(&epoch).expect("the callers look it up");
        if let AbortReason::Fenced { by } = reason {
            if let Some(request) = pending.savepoint {
                if pending.is_last() {
                    self.final_savepoint = None;
                }
                effects.push(Effect::SavepointFailed { request, reason: reason.clone() });
            }
            self.record(now, epoch, &pending, Err(reason), effects);
            self.fail_fenced(now, by, effects);
            return;
        }
        effects.push(Effect::Abort { epoch, reason: reason.clone() });
        self.record(now, epoch, &pending, Err(reason.clone()), effects);
        if let Some(request) = pending.savepoint {
            effects.push(Effect::SavepointFailed { request, reason: reason.clone() });
        }
        if pending.is_last() {
            let undo = self.final_savepoint.take().is_some() && self.finished.len() < self.workers;
            // Who asked for a stop with a savepoint asked for both.
            self.savepoint_stops &= pending.savepoint.is_none();
            if undo {
                self.phase = Phase::Running;
            } else {
                self.final_retry.failed(now);
            }
        }
        if !reason.counts() {
            return;
        }
        self.failed += 1;
        self.consecutive_failures = self.consecutive_failures.saturating_add(1);
        self.last_failure = Some((epoch, reason.clone()));
        let failures = self.consecutive_failures;
        if let Some(tolerable) = self.config.tolerable_failures.filter(|max| failures > *max) {
            self.give_up(now, true, effects);
            let last = reason;
            let reason = JobFailure::ToleranceExceeded { failures, tolerable, epoch, last };
            effects.push(Effect::Fail { reason });
        }
    }

    /// Ends everything in progress. `delete`: parts that cannot be in a manifest may be deleted; a
    /// fenced attempt must not, since the newer one may already refer to the same shared files
    /// (I7).
    fn give_up(&mut self, now: Duration, delete: bool, effects: &mut Vec<Effect<P>>) {
        for (epoch, pending) in std::mem::take(&mut self.pending) {
            let reason = if self.publishing == Some(epoch) {
                // Its manifest may be in storage by now: an abort would let workers delete what it
                // needs (C4).
                AbortReason::Undecided
            } else {
                if delete {
                    effects.push(Effect::Abort { epoch, reason: AbortReason::Stopping });
                }
                AbortReason::Stopping
            };
            if let Some(request) = pending.savepoint {
                if pending.is_last() {
                    self.final_savepoint = None;
                }
                effects.push(Effect::SavepointFailed { request, reason: reason.clone() });
            }
            self.record(now, epoch, &pending, Err(reason), effects);
        }
        self.savepoints.extend(self.final_savepoint.take());
        self.refuse_savepoints(effects);
        self.publishing = None;
        self.phase = Phase::Over;
    }

    fn fail_fenced(&mut self, now: Duration, by: Attempt, effects: &mut Vec<Effect<P>>) {
        self.give_up(now, false, effects);
        effects.push(Effect::Fail { reason: JobFailure::Fenced { by } });
    }

    fn record(
        &mut self,
        now: Duration,
        epoch: Epoch,
        pending: &Pending<P>,
        result: Result<(), AbortReason>,
        effects: &mut Vec<Effect<P>>,
    ) {
        self.last_end = Some(now);
        effects.push(Effect::Record(Outcome {
            epoch,
            cause: pending.cause,
            triggered: pending.triggered,
            ended: now,
            result,
            last_ack: pending.last_ack,
            waited_for: pending.waiting_for(self.workers),
        }));
    }

    /// When the next checkpoint may begin, and why. `None`: not before something happens.
    fn begin_due(&self) -> Option<(Duration, Cause)> {
        if self.next_epoch >= self.reserved_end {
            return None;
        }
        match self.phase {
            Phase::Running | Phase::Draining => {
                let one_at_a_time = !self.config.min_pause.is_zero();
                let slots = if one_at_a_time { 1 } else { self.config.concurrent_max as usize };
                let savepoint = self.pending.values().any(|pending| pending.savepoint.is_some());
                if savepoint || self.pending.len() >= slots {
                    None
                } else if self.wanted || !self.savepoints.is_empty() {
                    Some((Duration::ZERO, Cause::User))
                } else {
                    let due = self.last_trigger.saturating_add(self.config.interval?);
                    let pause = self
                        .last_end
                        .map_or(Duration::ZERO, |end| end.saturating_add(self.config.min_pause));
                    Some((due.max(pause), Cause::Interval))
                }
            }
            Phase::Ending => {
                let alone = self.pending.is_empty();
                let not_before = self.final_retry.not_before.max(self.in_flight_retry.not_before);
                alone.then_some((not_before, Cause::End))
            }
            Phase::Committing { .. } | Phase::Over => None,
        }
    }

    fn begin_if_due(&mut self, now: Duration, effects: &mut Vec<Effect<P>>) {
        let Some((_, cause)) = self.begin_due().filter(|(due, _)| *due <= now) else { return };
        let epoch = self.next_epoch;
        assert!(epoch < self.reserved_end, "C3: epochs are reserved before they begin");
        assert!(self.last_completed.is_none_or(|last| last < epoch), "C3: epochs grow");
        self.next_epoch = epoch.next();
        self.last_trigger = now;
        let savepoint = match cause {
            Cause::Interval => None,
            // It is a checkpoint as well, so it answers a trigger too.
            Cause::User => self.savepoints.pop_front(),
            Cause::End => self.final_savepoint,
        };
        self.wanted = false;
        let pending = Pending {
            cause,
            triggered: now,
            acked: BTreeSet::new(),
            parts: BTreeMap::new(),
            last_ack: None,
            in_flight: false,
            last: false,
            savepoint,
        };
        let last = pending.is_last();
        effects.push(Effect::Begin { epoch, last, savepoint });
        let before = self.pending.insert(epoch, pending);
        assert!(before.is_none(), "C3: epochs are used once");
    }

    fn reserve_needed(&self) -> bool {
        !matches!(self.phase, Phase::Committing { .. } | Phase::Over)
            && self.reserved_end.0.saturating_sub(self.next_epoch.0) < EPOCHS_RESERVED_MIN
    }

    fn reserve_if_due(&mut self, now: Duration, effects: &mut Vec<Effect<P>>) {
        let allowed = match self.reservation {
            Reservation::Idle => true,
            Reservation::Asked => false,
            Reservation::Failed => self.reservation_retry.not_before <= now,
        };
        if allowed && self.reserve_needed() {
            self.reservation = Reservation::Asked;
            effects.push(Effect::Reserve { from: self.reserved_end });
        }
    }

    fn reserve_failed(&mut self, now: Duration, reason: AbortReason, effects: &mut Vec<Effect<P>>) {
        if let AbortReason::Fenced { by } = reason {
            self.fail_fenced(now, by, effects);
        } else if self.reservation == Reservation::Asked {
            self.reservation = Reservation::Failed;
            self.reservation_retry.failed(now);
        }
    }

    fn not_committed(&self) -> Vec<usize> {
        let Phase::Committing { epoch: last } = self.phase else { return Vec::new() };
        let committed =
            |worker: &usize| self.committed.get(worker).is_some_and(|epoch| *epoch >= last);
        (0..self.workers).filter(|worker| !committed(worker)).collect()
    }

    fn finish_if_committed(&mut self, effects: &mut Vec<Effect<P>>) {
        if matches!(self.phase, Phase::Committing { .. }) && self.not_committed().is_empty() {
            assert!(self.pending.is_empty(), "C5: nothing is in progress at the end");
            self.phase = Phase::Over;
            effects.push(Effect::Finish);
        }
    }
}
