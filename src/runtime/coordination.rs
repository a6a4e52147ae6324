//! Worker 0's second job: it carries out what the coordinator decides.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::config::CheckpointConfig;
use crate::format::manifest::{Manifest, ManifestKind, PartRef};
use crate::format::record::{
    CheckpointOutcome, CheckpointPhase, CheckpointRecord, CheckpointWait, WorkerTimings,
};
use crate::ids::Epoch;
use crate::protocol::abort::{AbortReason, JobFailure, Outcome};
use crate::protocol::coordinator::{Coordinator, CoordinatorSetup, Effect, Event, Phase};
use crate::protocol::watchdog::Watchdog;
use crate::runtime::clock::Clock;
use crate::runtime::context::{Failure, FailureKind, WorkerContext};
use crate::runtime::control::Control;
use crate::runtime::describe;
use crate::runtime::executor::Lane;
use crate::runtime::mailbox::Letter;
use crate::runtime::savepoint::{AskedSavepoint, PreparedSavepoint, Savepoints, take_requests};
use crate::storage::job_store::{Claim, HISTORY_MAX, JobStore, JobStoreError};

type Part = (PartRef, WorkerTimings);

/// Temporary files older than this are of writers that are dead.
pub(crate) const TEMPORARY_AGE: Duration = Duration::from_secs(600);

/// What is known of a checkpoint until it is recorded.
#[derive(Default)]
struct Progress {
    triggered_unix_ms: u64,
    workers: BTreeMap<u32, WorkerTimings>,
    entries: u64,
    publish_us: u64,
    /// When it began, on our clock, and since when its manifest is being published.
    began: Duration,
    publishing: Option<Duration>,
    waits: Vec<CheckpointWait>,
}

/// What is waited for is heard of by now, if the worker is not stuck itself.
const ANSWER_TIME: Duration = Duration::from_millis(500);
/// Records that may hear more of their checkpoints.
const RECORDED_MAX: usize = 8;
/// Waits that are noted of one checkpoint.
const WAITS_MAX: usize = 64;

/// When a phase takes long: early enough to be noted before the checkpoint is given up.
pub(crate) fn slow_after(checkpoints: &CheckpointConfig) -> Option<Duration> {
    checkpoints.slow_after.map(|slow_after| slow_after.min(checkpoints.timeout / 2))
}

/// Notes a wait, or that it goes on.
fn note(waits: &mut Vec<CheckpointWait>, wait: CheckpointWait) {
    let same = |before: &&mut CheckpointWait| {
        (before.phase, before.worker, &before.operators)
            == (wait.phase, wait.worker, &wait.operators)
    };
    if let Some(before) = waits.iter_mut().find(same) {
        before.waited_ms = wait.waited_ms;
    } else if waits.len() < WAITS_MAX {
        waits.push(wait);
    }
}

/// The coordinator and its hands.
pub(crate) struct Coordination {
    machine: Coordinator<Part>,
    claim: Arc<Claim>,
    context: Rc<WorkerContext>,
    progress: BTreeMap<Epoch, Progress>,
    effects: Vec<Effect<Part>>,
    unrecorded: Unrecorded,
    watchdog: Watchdog<(Epoch, CheckpointPhase, u32)>,
    /// What was recorded last, for what is heard of it later.
    recorded: VecDeque<CheckpointRecord>,
    savepoints: Savepoints,
}

/// Records of the history that are not written yet. On a full disk they wait, and those that tell of it most of all.
type Unrecorded = Arc<Mutex<VecDeque<CheckpointRecord>>>;

impl Coordination {
    pub(crate) fn new(claim: Claim, retained: Vec<Epoch>, context: &Rc<WorkerContext>) -> Self {
        let mut checkpoints = context.config().checkpoints.clone();
        if !context.shared.durable {
            checkpoints.interval = None;
        }
        let watchdog = Watchdog::new(slow_after(&checkpoints));
        // What comes from elsewhere has a number of elsewhere: it may be that of one that is still to come here.
        let restored = context.shared.restored.as_ref();
        let restored = restored.map(|restored| restored.manifest().epoch);
        let restored = restored.filter(|epoch| *epoch < claim.first_epoch());
        let machine = Coordinator::new(CoordinatorSetup {
            checkpoints,
            workers: context.peers,
            first_epoch: claim.first_epoch(),
            reserved_end: claim.epochs_end(),
            restored,
            retained_before: retained,
        });
        let claim = Arc::new(claim);
        let context = Rc::clone(context);
        let coordination = Self {
            machine,
            claim,
            context,
            progress: BTreeMap::new(),
            effects: Vec::new(),
            unrecorded: Unrecorded::default(),
            watchdog,
            recorded: VecDeque::new(),
            savepoints: Savepoints::default(),
        };
        coordination.housekeeping("removing what dead attempts left", |store, claim| {
            store.sweep(claim, TEMPORARY_AGE).map(drop)
        });
        coordination
    }

    /// When the coordinator wants to be called again.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.machine.next_deadline()
    }

    pub(crate) fn step(&mut self, event: Event<Part>) {
        if let Event::Ack { epoch, part: (part, timings), .. } = &event
            && let Some(progress) = self.progress.get_mut(epoch)
        {
            progress.workers.insert(timings.worker, timings.clone());
            progress.entries += part.sections.iter().map(|section| section.entries).sum::<u64>();
        }
        let mut effects = std::mem::take(&mut self.effects);
        self.machine.step(self.context.now(), event, &mut effects);
        for effect in effects.drain(..) {
            self.carry_out(effect);
        }
        self.effects = effects;
    }

    pub(crate) fn published(
        &mut self,
        epoch: Epoch,
        publish_us: u64,
        result: Result<(), AbortReason>,
    ) {
        if let Some(progress) = self.progress.get_mut(&epoch) {
            progress.publish_us = publish_us;
        }
        self.step(match result {
            Ok(()) => Event::Published { epoch },
            Err(reason) => Event::PublishFailed { epoch, reason },
        });
    }

    pub(crate) fn reserved(&mut self, result: Result<Epoch, JobStoreError>) {
        self.step(match result {
            Ok(end) => Event::Reserved { end },
            Err(error) => Event::ReserveFailed { reason: reason(&error) },
        });
    }

    fn carry_out(&mut self, effect: Effect<Part>) {
        let attempt = self.context.shared.attempt.0;
        match effect {
            Effect::Begin { epoch, last, savepoint } => {
                tracing::debug!(attempt, epoch = epoch.0, last, "checkpoint begins");
                let triggered_unix_ms = self.context.shared.clock.unix_ms();
                let began = self.context.now();
                let progress = Progress { triggered_unix_ms, began, ..Progress::default() };
                self.progress.insert(epoch, progress);
                self.context.shared.counters.set_in_progress(self.progress.len() as u32);
                let savepoint = savepoint.map(|request| self.savepoints.format(request));
                self.context.send(None, Control::Begin { epoch, last, savepoint });
            }
            Effect::Publish { epoch, last, savepoint, parts } => {
                self.publish(epoch, last, savepoint, parts);
            }
            Effect::SavepointFailed { request, reason } => {
                // It may be with the publisher, who answers.
                if let Some(savepoint) = self.savepoints.take(request) {
                    self.answer_savepoint(savepoint, reason.to_string());
                }
            }
            Effect::Complete { epoch, last } => {
                self.context.send(None, Control::Complete { epoch, last });
            }
            Effect::Abort { epoch, reason } => {
                tracing::warn!(attempt, epoch = epoch.0, "checkpoint aborted: {reason}");
                self.context.send(None, Control::Abort { epoch });
                // On a full disk nothing completes any more, so nothing else would make room.
                self.housekeeping("deleting an aborted checkpoint", move |store, claim| {
                    store.discard(claim, epoch).map(drop)
                });
            }
            Effect::Reserve { .. } => {
                let mailbox = self.context.mailbox.clone();
                self.io(move |store, claim| {
                    let result = store.extend_epochs(claim).map(|()| claim.epochs_end());
                    mailbox.post(Letter::Reserve { result });
                });
            }
            Effect::Retire { keep, in_progress, .. } => {
                self.housekeeping("deleting old checkpoints", move |store, claim| {
                    store.retire(claim, &keep, &in_progress).map(drop)
                });
            }
            Effect::DrainSources => self.context.send(None, Control::Drain),
            Effect::Record(outcome) => self.record(&outcome),
            Effect::Finish => self.context.send(None, Control::Finish),
            Effect::Fail { reason } => self.context.fail(Failure {
                operator: None,
                what: reason.to_string(),
                kind: match reason {
                    JobFailure::Fenced { .. } => FailureKind::Fenced,
                    _ => FailureKind::Transient,
                },
            }),
        }
    }

    fn publish(
        &mut self,
        epoch: Epoch,
        last: bool,
        savepoint: Option<u64>,
        parts: Vec<(usize, Part)>,
    ) {
        let now = self.context.now();
        if let Some(progress) = self.progress.get_mut(&epoch) {
            progress.publishing = Some(now);
        }
        let shared = &self.context.shared;
        let progress = self.progress.get(&epoch);
        let manifest = Manifest {
            job: shared.config.name.clone(),
            epoch,
            attempt: shared.attempt,
            lineage: shared.lineage,
            parallelism: self.context.peers as u32,
            max_parallelism: shared.config.max_parallelism,
            kind: ManifestKind::Checkpoint,
            last,
            triggered_unix_ms: progress.map_or(0, |progress| progress.triggered_unix_ms),
            parts: parts.into_iter().map(|(_, (part, _))| part).collect(),
        };
        let mailbox = self.context.mailbox.clone();
        let durable = shared.durable;
        let clock = Arc::clone(&shared.clock);
        let savepoint = savepoint.and_then(|request| self.savepoints.take(request));
        self.io(move |store, claim| {
            let start = clock.now();
            let publish = || publish_for_certain(store, claim, &manifest, &*clock);
            // A job that keeps nothing has nothing to publish; its final checkpoint only orders the commits.
            let result = match savepoint {
                _ if !durable => Ok(()),
                Some(savepoint) => savepoint.publish(store, &manifest, &*clock, || {
                    publish().map_err(|error| reason(&error))
                }),
                None => publish().map_err(|error| reason(&error)),
            };
            let publish_us = clock.now().saturating_sub(start).as_micros() as u64;
            mailbox.post(Letter::Publish { epoch, publish_us, result });
        });
    }

    fn record(&mut self, outcome: &Outcome) {
        let progress = self.progress.remove(&outcome.epoch).unwrap_or_default();
        self.context.shared.counters.set_in_progress(self.progress.len() as u32);
        let workers: Vec<WorkerTimings> = progress.workers.into_values().collect();
        let ended = match &outcome.result {
            Ok(()) => CheckpointOutcome::Complete,
            Err(reason) => CheckpointOutcome::Aborted { reason: reason.to_string() },
        };
        let record = CheckpointRecord {
            epoch: outcome.epoch,
            attempt: self.context.shared.attempt,
            triggered_unix_ms: progress.triggered_unix_ms,
            outcome: ended,
            duration_ms: outcome.ended.saturating_sub(outcome.triggered).as_millis() as u64,
            publish_ms: progress.publish_us / 1000,
            bytes: workers.iter().map(|worker| worker.bytes).sum(),
            in_flight_bytes: workers.iter().map(|worker| worker.in_flight_bytes).sum(),
            entries: progress.entries,
            workers,
            waits: progress.waits,
        };
        if outcome.result.is_ok() {
            tracing::info!(
                job = %self.context.config().name,
                attempt = record.attempt.0,
                epoch = record.epoch.0,
                bytes = record.bytes,
                entries = record.entries,
                "checkpoint complete in {} ms",
                record.duration_ms
            );
        }
        self.context.shared.counters.checkpoint(&record, outcome.ended - outcome.triggered);
        self.recorded.push_back(record.clone());
        if self.recorded.len() > RECORDED_MAX {
            self.recorded.pop_front();
        }
        self.write_record(record);
    }

    fn write_record(&self, record: CheckpointRecord) {
        let unrecorded = Arc::clone(&self.unrecorded);
        self.housekeeping("writing the checkpoint history", move |store, _| {
            let mut unrecorded = unrecorded.lock().unwrap_or_else(PoisonError::into_inner);
            unrecorded.push_back(record);
            if unrecorded.len() > HISTORY_MAX {
                unrecorded.pop_front();
            }
            while let Some(record) = unrecorded.front() {
                store.record(record)?;
                unrecorded.pop_front();
            }
            Ok(())
        });
    }

    /// Somebody in this process asks for a savepoint: its directory is made first.
    pub(crate) fn prepare_savepoint(&self, asked: AskedSavepoint) {
        let mailbox = self.context.mailbox.clone();
        let (durable, clock) =
            (self.context.shared.durable, Arc::clone(&self.context.shared.clock));
        self.io(move |store, _| {
            let prepared = asked.prepare(durable, store, &*clock);
            let prepared = prepared.into_iter().collect();
            mailbox.post(Letter::Savepoints { prepared, looked: false });
        });
    }

    /// The directories of these savepoints are made, so they can begin.
    pub(crate) fn begin_savepoints(&mut self, prepared: Vec<PreparedSavepoint>, looked: bool) {
        if looked {
            self.savepoints.looked();
        }
        for savepoint in prepared {
            if self.machine.status().phase == Phase::Over {
                self.answer_savepoint(savepoint, "the job is over".to_owned());
                continue;
            }
            let stop = savepoint.stop;
            let request = self.savepoints.add(savepoint);
            self.step(match stop {
                None => Event::Savepoint { request },
                Some(drain) => Event::StopWithSavepoint { request, drain },
            });
        }
    }

    /// From time to time: whether somebody has left a request in the job's directory.
    pub(crate) fn look_for_requests(&mut self, now: Duration) {
        let shared = &self.context.shared;
        if !shared.durable || shared.config.checkpoints.directory.is_none() {
            return;
        }
        let Some(open) = self.savepoints.look(now) else { return };
        let mailbox = self.context.mailbox.clone();
        let clock = Arc::clone(&shared.clock);
        self.io(move |store, claim| {
            let prepared = take_requests(store, claim, &open, &*clock);
            mailbox.post(Letter::Savepoints { prepared, looked: true });
        });
    }

    fn answer_savepoint(&self, savepoint: PreparedSavepoint, why: String) {
        let clock = Arc::clone(&self.context.shared.clock);
        self.io(move |store, _| savepoint.fail(store, &*clock, why));
    }

    /// Looks for checkpoints that a worker has not answered, and for a manifest that takes long.
    pub(crate) fn watch(&mut self, now: Duration) {
        let workers = self.context.peers as u32;
        let waits = self.progress.iter().flat_map(|(epoch, progress)| {
            let silent = (0..workers).filter(|worker| {
                // Others say themselves what they wait for; they need a moment for that.
                let told = progress.waits.iter().any(|wait| wait.worker == *worker);
                !told && !progress.workers.contains_key(worker)
            });
            let began = progress.began + ANSWER_TIME;
            let silent =
                silent.map(move |worker| ((*epoch, CheckpointPhase::Trigger, worker), began));
            let publishing = progress.publishing;
            silent.chain(publishing.map(|since| ((*epoch, CheckpointPhase::Publish, 0), since)))
        });
        for ((epoch, phase, worker), waited) in self.watchdog.check(now, waits.collect::<Vec<_>>())
        {
            let waited_ms = waited.as_millis() as u64;
            self.slow(epoch, CheckpointWait { phase, worker, operators: Vec::new(), waited_ms });
        }
    }

    /// A phase takes long: says so, in the log and in the history.
    pub(crate) fn slow(&mut self, epoch: Epoch, wait: CheckpointWait) {
        tracing::warn!(
            job = %self.context.config().name,
            attempt = self.context.shared.attempt.0,
            epoch = epoch.0,
            worker = wait.worker,
            operators = wait.operators.join(","),
            "checkpoint {epoch} has waited {:?} for worker {} ({}){}",
            Duration::from_millis(wait.waited_ms),
            wait.worker,
            wait.phase.doing(),
            if wait.operators.is_empty() { String::new() } else { format!(": {}", wait.operators.join(", ")) },
        );
        if let Some(progress) = self.progress.get_mut(&epoch) {
            note(&mut progress.waits, wait);
        } else if let Some(at) = self.recorded.iter().position(|record| record.epoch == epoch) {
            note(&mut self.recorded[at].waits, wait);
            self.write_record(self.recorded[at].clone());
        }
    }

    /// Does something that matters to nobody's correctness. A failure is logged.
    fn housekeeping(
        &self,
        what: &'static str,
        task: impl FnOnce(&JobStore, &Claim) -> Result<(), JobStoreError> + Send + 'static,
    ) {
        if !self.context.shared.durable {
            return;
        }
        let mailbox = self.context.mailbox.clone();
        self.io(move |store, claim| {
            if let Err(error) = task(store, claim) {
                mailbox.post(Letter::Housekeeping { what, error: describe(&error) });
            }
        });
    }

    fn io(&self, task: impl FnOnce(&JobStore, &Claim) + Send + 'static) {
        let store = self.context.shared.store.clone();
        let claim = Arc::clone(&self.claim);
        self.context.submit(Lane::Coordination, Box::new(move || task(&store, &claim)));
    }
}

/// Publishes a manifest, or makes sure that it is not there and never will be.
fn publish_for_certain(
    store: &JobStore,
    claim: &Claim,
    manifest: &Manifest,
    clock: &dyn Clock,
) -> Result<(), JobStoreError> {
    let mut delay = Duration::from_millis(10);
    loop {
        let error = match store.publish(claim, manifest) {
            Ok(_) => return Ok(()),
            Err(error @ (JobStoreError::Fenced { .. } | JobStoreError::Refused { .. })) => {
                return Err(error);
            }
            Err(error) => error,
        };
        // It may be there: then it must become complete. If it is not, nobody but us would write it.
        if let Ok(valid) = store.valid_epochs()
            && !valid.contains(&manifest.epoch)
        {
            return Err(error);
        }
        tracing::warn!(
            epoch = manifest.epoch.0,
            "it is not known whether a manifest is published, trying again: {}",
            describe(&error)
        );
        clock.sleep(delay);
        delay = (delay * 2).min(Duration::from_secs(5));
    }
}

fn reason(error: &JobStoreError) -> AbortReason {
    match error {
        JobStoreError::Fenced { by, .. } => AbortReason::Fenced { by: *by },
        other => AbortReason::Storage { why: describe(other) },
    }
}
