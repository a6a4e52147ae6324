//! Watches a coordinator from outside: every event that it is given and every effect that it asks
//! for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use highwater::ids::Epoch;
use highwater::protocol::abort::AbortReason;
use highwater::protocol::coordinator::{Coordinator, CoordinatorSetup, Effect, Event};

/// The shortest of the delays after a final checkpoint that failed; the script `final_retried` has them all.
const FAILED_DELAY: Duration = Duration::from_millis(200);

/// A part: which message brought it, so that the first one can be told from its copies.
pub type Part = u64;

struct Pending {
    begun: Duration,
    last: bool,
    savepoint: bool,
    /// The first part of each worker that the coordinator was given.
    parts: BTreeMap<usize, Part>,
    in_flight: bool,
    /// The final one, but records on their way ask for another.
    again: bool,
}

/// What must be true of one attempt, recomputed from events and effects alone.
pub struct Checker {
    setup: CoordinatorSetup,
    started: Option<Duration>,
    reserved_end: Epoch,
    begun_before: Option<Epoch>,
    pending: BTreeMap<Epoch, Pending>,
    publishing: Option<Epoch>,
    /// The outstanding publication succeeded, and Complete must follow.
    published: Option<Epoch>,
    valid: BTreeSet<Epoch>,
    unrecorded: BTreeSet<Epoch>,
    last_trigger: Duration,
    last_end: Option<Duration>,
    user_asked: bool,
    final_complete: Option<Epoch>,
    committed: BTreeMap<usize, Epoch>,
    finished: BTreeSet<usize>,
    stopped: Option<bool>,
    /// Whether what is on its way may stay there.
    stopped_in_place: bool,
    /// The same, until the savepoint that was asked for fails.
    savepoint_in_place: bool,
    /// Least time between a final checkpoint and the next.
    final_delay: Duration,
    /// Whether the job is to end with a savepoint.
    stop_savepoint: bool,
    /// Requests for savepoints that have no answer.
    unanswered: BTreeSet<u64>,
    /// The request that the outstanding publication answers if it succeeds.
    answering: Option<u64>,
    cancelled: bool,
    fenced: bool,
    failures: u32,
    pub over: bool,
    pub counts: BTreeMap<&'static str, u64>,
}

impl Checker {
    pub fn new(setup: &CoordinatorSetup) -> Self {
        Self {
            started: None,
            reserved_end: setup.reserved_end,
            begun_before: None,
            pending: BTreeMap::new(),
            publishing: None,
            published: None,
            valid: setup.retained_before.iter().copied().collect(),
            unrecorded: BTreeSet::new(),
            last_trigger: Duration::ZERO,
            last_end: None,
            user_asked: false,
            final_complete: None,
            committed: BTreeMap::new(),
            finished: BTreeSet::new(),
            stopped: None,
            stopped_in_place: false,
            savepoint_in_place: false,
            final_delay: Duration::ZERO,
            stop_savepoint: false,
            unanswered: BTreeSet::new(),
            answering: None,
            cancelled: false,
            fenced: false,
            failures: 0,
            over: false,
            counts: BTreeMap::new(),
            setup: setup.clone(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Before the coordinator is given `event`.
    pub fn event(&mut self, now: Duration, event: &Event<Part>) {
        if self.started.is_none() {
            self.started = Some(now);
            self.last_trigger = now;
        }
        let known = |worker: &usize| *worker < self.setup.workers;
        match event {
            Event::Ack { epoch, worker, part, in_flight } if known(worker) => {
                if let Some(pending) = self.pending.get_mut(epoch)
                    && !pending.parts.contains_key(worker)
                {
                    pending.parts.insert(*worker, *part);
                    pending.in_flight |= in_flight;
                }
            }
            Event::Published { epoch } if self.publishing == Some(*epoch) => {
                self.publishing = None;
                self.published = Some(*epoch);
            }
            Event::PublishFailed { epoch, reason } if self.publishing == Some(*epoch) => {
                self.publishing = None;
                self.fenced |= matches!(reason, AbortReason::Fenced { .. });
            }
            Event::ReserveFailed { reason } => {
                self.fenced |= matches!(reason, AbortReason::Fenced { .. });
            }
            Event::Reserved { end } => self.reserved_end = self.reserved_end.max(*end),
            Event::Trigger => self.user_asked = true,
            Event::WorkerFinished { worker } if known(worker) => {
                self.finished.insert(*worker);
            }
            Event::WorkerCommitted { worker, epoch } => {
                let committed = self.committed.entry(*worker).or_insert(*epoch);
                *committed = (*committed).max(*epoch);
            }
            Event::Stop { drain } => {
                if !drain && (self.stopped.is_none() || self.all_finished()) {
                    self.stopped_in_place = true;
                    if self.final_delay < FAILED_DELAY {
                        self.final_delay = Duration::ZERO;
                    }
                }
                self.stopped = self.stopped.or(Some(*drain));
            }
            Event::Cancel => self.cancelled = true,
            Event::Savepoint { request } if !self.over => {
                assert!(self.unanswered.insert(*request));
            }
            Event::StopWithSavepoint { request, drain } if !self.over => {
                assert!(self.unanswered.insert(*request));
                if self.stopped.is_none() && !self.all_finished() {
                    self.stopped = Some(*drain);
                    self.savepoint_in_place = !drain;
                    self.stop_savepoint = true;
                }
            }
            _ => {}
        }
    }

    /// After the step, with what it asked for.
    pub fn effects(&mut self, now: Duration, effects: &[Effect<Part>]) {
        for effect in effects {
            assert!(!self.over, "C6: {effect:?} after the end");
            match effect {
                Effect::Begin { epoch, last, savepoint } => {
                    self.begin(now, *epoch, *last, savepoint.is_some());
                }
                Effect::SavepointFailed { request, .. } => {
                    assert!(self.unanswered.remove(request), "{request} is answered twice");
                    self.count("savepoint failed");
                }
                Effect::Publish { epoch, last, savepoint, parts } => {
                    assert_eq!(self.publishing, None, "C4");
                    let waits = self.all_finished() && !self.stays_in_place();
                    let pending = self.pending.get_mut(epoch).expect("C1: published, not pending");
                    let again = pending.last && pending.in_flight && waits;
                    assert_eq!(pending.last && !again, *last);
                    assert_eq!(pending.savepoint && !again, savepoint.is_some());
                    pending.again = again;
                    let pending = &self.pending[epoch];
                    assert!(savepoint.is_none_or(|request| self.unanswered.contains(&request)));
                    self.answering = *savepoint;
                    assert_eq!(pending.parts.len(), self.setup.workers, "C2: {epoch}");
                    let first: Vec<_> = pending.parts.iter().map(|(w, p)| (*w, *p)).collect();
                    assert_eq!(&first, parts, "the first part of each worker counts");
                    let ready =
                        self.pending.iter().find(|(_, p)| p.parts.len() == self.setup.workers);
                    assert_eq!(ready.map(|(e, _)| e), Some(epoch), "in epoch order");
                    self.publishing = Some(*epoch);
                }
                Effect::Complete { epoch, last } => {
                    assert_eq!(self.published.take(), Some(*epoch), "C2: complete, not published");
                    let pending = self.pending.remove(epoch).expect("C1: complete, not pending");
                    assert_eq!(pending.last && !pending.again, *last);
                    if pending.again {
                        let least = if self.stays_in_place() { 0 } else { 10 };
                        self.final_delay = Duration::from_millis(least);
                        self.count("final again");
                    } else if *last && pending.in_flight && self.all_finished() {
                        self.count("final in flight");
                    }
                    assert!(self.valid.iter().all(|valid| valid < epoch), "C3");
                    if let Some(request) = self.answering.take() {
                        assert!(self.unanswered.remove(&request), "{request} is answered twice");
                        self.count(if *last { "final savepoint" } else { "savepoint" });
                    }
                    self.valid.insert(*epoch);
                    self.failures = 0;
                    self.last_end = Some(now);
                    self.final_complete = last.then_some(*epoch);
                    self.count("complete");
                }
                Effect::Abort { epoch, reason } => self.abort(now, *epoch, reason),
                Effect::Reserve { from } => assert_eq!(*from, self.reserved_end),
                Effect::Retire { keep, in_progress, before } => {
                    while self.valid.len() > self.setup.checkpoints.retained as usize {
                        self.valid.pop_first();
                    }
                    assert!(keep.iter().eq(&self.valid), "{keep:?} but {:?} is valid", self.valid);
                    assert!(in_progress.iter().eq(self.pending.keys()), "I5: {in_progress:?}");
                    assert!(self.begun_before.is_none_or(|begun| begun < *before), "I5");
                }
                Effect::DrainSources => {
                    assert_eq!(self.stopped, Some(true));
                    self.count("drain");
                }
                Effect::Record(outcome) => {
                    let first = self.unrecorded.remove(&outcome.epoch);
                    assert!(first, "C1: recorded twice: {outcome:?}");
                    if outcome.result == Err(AbortReason::Undecided) {
                        self.pending.remove(&outcome.epoch).expect("undecided, so pending");
                        assert_eq!(self.publishing, Some(outcome.epoch));
                        self.count("undecided");
                    } else if self.fenced {
                        self.pending.remove(&outcome.epoch);
                    }
                }
                Effect::Finish => {
                    let all = |last: Epoch| {
                        (0..self.setup.workers).all(|w| self.committed.get(&w) >= Some(&last))
                    };
                    let committed = self.final_complete.is_some_and(all);
                    assert!(self.cancelled || committed, "C5: finished too early");
                    self.end(if committed { "finish" } else { "cancel" });
                }
                Effect::Fail { .. } => {
                    let tolerable = self.setup.checkpoints.tolerable_failures;
                    let exceeded = tolerable.is_some_and(|max| self.failures > max);
                    assert!(self.fenced || exceeded, "failed for nothing");
                    self.end(if self.fenced { "fenced" } else { "intolerable" });
                }
            }
        }
        assert!(self.over || self.published.is_none(), "published, but not complete");
    }

    /// What must be true between any two steps.
    pub fn between(&self, now: Duration, coordinator: &Coordinator<Part>) {
        let deadline = coordinator.next_deadline();
        assert!(deadline.is_none_or(|due| due > now), "C7: {deadline:?} at {now:?}");
        if self.over {
            assert_eq!(deadline, None);
            return;
        }
        assert!(self.failures_tolerated(), "the job should have failed");
        let status = coordinator.status();
        assert!(status.in_progress.iter().map(|p| &p.epoch).eq(self.pending.keys()));
        assert_eq!(status.consecutive_failures, self.failures);
        let collecting = self.pending.values().filter(|p| p.parts.len() < self.setup.workers);
        let expiry = collecting.map(|pending| pending.begun + self.setup.checkpoints.timeout).min();
        assert!(expiry.is_none_or(|expiry| expiry > now), "an overdue checkpoint is aborted");
        assert!(
            expiry.is_none_or(|expiry| deadline.is_some_and(|due| due <= expiry)),
            "the loop is woken in time"
        );
    }

    fn failures_tolerated(&self) -> bool {
        self.setup.checkpoints.tolerable_failures.is_none_or(|max| self.failures <= max)
    }

    fn stays_in_place(&self) -> bool {
        self.stopped_in_place || self.savepoint_in_place
    }

    fn all_finished(&self) -> bool {
        self.finished.len() == self.setup.workers
    }

    fn begin(&mut self, now: Duration, epoch: Epoch, last: bool, savepoint: bool) {
        let config = &self.setup.checkpoints;
        assert!(self.begun_before.is_none_or(|begun| begun < epoch), "C3: {epoch} is not new");
        assert!(epoch >= self.setup.first_epoch && epoch < self.reserved_end, "C3: {epoch}");
        let all_finished = self.all_finished();
        if last {
            assert!(self.pending.is_empty(), "the final checkpoint is alone");
            assert!(all_finished || self.stopped == Some(false), "final for no reason");
            let delay = self.final_delay;
            let waited = self.last_end.is_none_or(|end| now >= end + delay);
            assert!(waited, "a final checkpoint is retried after a delay");
        } else {
            assert!(!all_finished && self.stopped != Some(false), "periodic at the end");
            let slots = if config.min_pause.is_zero() { config.concurrent_max as usize } else { 1 };
            assert!(self.pending.len() < slots, "too many at once");
            if !std::mem::take(&mut self.user_asked) && !savepoint {
                assert!(now >= self.last_trigger + config.interval.expect("periodic"));
                assert!(self.last_end.is_none_or(|end| now >= end + config.min_pause));
            }
        }
        let beside = self.pending.values().any(|pending| pending.last || pending.savepoint);
        assert!(!beside, "nothing beside the final one or a savepoint");
        assert!(!last || savepoint == self.stop_savepoint, "the final one is what was asked for");
        assert!(!savepoint || !self.unanswered.is_empty(), "a savepoint for nobody");
        assert_eq!(self.final_complete, None, "nothing behind the final one");
        self.begun_before = Some(epoch);
        self.last_trigger = now;
        let parts = BTreeMap::new();
        let pending =
            Pending { begun: now, last, savepoint, parts, in_flight: false, again: false };
        self.pending.insert(epoch, pending);
        self.unrecorded.insert(epoch);
        self.count(if last { "final" } else { "periodic" });
    }

    fn abort(&mut self, now: Duration, epoch: Epoch, reason: &AbortReason) {
        assert_ne!(self.publishing, Some(epoch), "C4: aborted while being published");
        assert!(!self.fenced, "I7: a fenced attempt lets nobody delete");
        let pending = self.pending.remove(&epoch).expect("C1: aborted, but not pending");
        self.last_end = Some(now);
        self.failures += u32::from(reason.counts());
        if pending.last {
            self.final_delay = FAILED_DELAY;
            if std::mem::take(&mut self.stop_savepoint) {
                self.savepoint_in_place = false;
                // The job goes on as if nobody had stopped it, if it can.
                if !self.all_finished() {
                    self.stopped = None;
                    self.final_delay = Duration::ZERO;
                    self.count("stop undone");
                }
            }
        }
        match reason {
            AbortReason::Expired { waiting_for } => {
                let missing = |w: &usize| !pending.parts.contains_key(w);
                assert!((0..self.setup.workers).filter(missing).eq(waiting_for.iter().copied()));
                assert!(now >= pending.begun + self.setup.checkpoints.timeout);
                self.count("expired");
            }
            AbortReason::Subsumed { by } => {
                assert!(self.valid.contains(by) && *by > epoch);
                self.count("subsumed");
            }
            AbortReason::Declined { worker, .. } => {
                assert!(!pending.parts.contains_key(worker), "declined after its ack");
                self.count("declined");
            }
            AbortReason::Storage { .. } => {
                assert_eq!(pending.parts.len(), self.setup.workers);
                self.count("not published");
            }
            AbortReason::Stopping => {
                assert!(self.cancelled || !self.failures_tolerated());
                self.count("stopping");
            }
            _ => self.count("other"),
        }
    }

    fn end(&mut self, how: &'static str) {
        assert!(self.pending.is_empty(), "what was in progress is ended");
        assert!(self.unanswered.is_empty(), "not answered: {:?}", self.unanswered);
        assert!(self.unrecorded.is_empty(), "the history is complete: {:?}", self.unrecorded);
        self.over = true;
        self.count(how);
    }
}
