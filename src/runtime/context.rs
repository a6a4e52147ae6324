//! What the operators of one worker share: its epoch, who takes part in checkpoints, and what they have handed in.

use std::any::{Any, TypeId};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use timely::scheduling::Activator;

use crate::config::JobConfig;
use crate::connect::ConnectError;
use crate::format::manifest::LayerRef;
use crate::format::record::{CheckpointPhase, CheckpointWait, SavepointFormat};
use crate::format::shape::EntryShape;
use crate::format::{Extent, FormatError, SectionHeader, SectionKind, SectionOutput, codec};
use crate::ids::{Attempt, Epoch, KeyGroup, Lineage, Name};
use crate::protocol::key_groups::key_groups;
use crate::protocol::watermark::InstanceStatus;
use crate::runtime::backend::Backends;
use crate::runtime::board::Board;
use crate::runtime::clock::Clock;
use crate::runtime::control::Control;
use crate::runtime::counters::Counters;
use crate::runtime::executor::{Executor, Lane, Task};
use crate::runtime::layers::WorkerLayers;
use crate::runtime::ledger::Ledger;
use crate::runtime::mailbox::Mailbox;
use crate::runtime::migration::Migrations;
use crate::runtime::natives::{NativePart, Uploads};
use crate::runtime::pool::Pool;
use crate::runtime::restore::Restored;
use crate::runtime::shapes::shape_of;
use crate::state::{FrozenState, SnapshotForm};
use crate::storage::job_store::JobStore;

/// How long after the beginning of a checkpoint steps are short.
const HURRY_TIME: Duration = Duration::from_millis(100);

/// What all workers of this process share in one attempt.
pub(crate) struct AttemptShared {
    pub(crate) config: JobConfig,
    pub(crate) attempt: Attempt,
    pub(crate) lineage: Lineage,
    pub(crate) first_epoch: Epoch,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) executor: Arc<Executor>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) board: Board,
    pub(crate) counters: Arc<Counters>,
    pub(crate) store: JobStore,
    /// Whether snapshots are written at all: not if the job has neither a directory nor an interval.
    pub(crate) durable: bool,
    pub(crate) restored: Option<Restored>,
    /// What keeps the state of operators.
    pub(crate) backends: Backends,
    /// The dataflow is only built, to see what state it declares: sources and sinks touch nothing.
    pub(crate) planning: bool,
}

/// Writes one section on a snapshot thread.
pub(crate) type SectionTask =
    Box<dyn FnOnce(&mut dyn SectionOutput) -> Result<(), SectionFailure> + Send>;

/// What a participant adds to its worker's part.
pub(crate) struct SectionPart {
    pub(crate) header: SectionHeader,
    /// How much of the state.
    pub(crate) extent: Extent,
    /// Checkpoints whose parts hold the rest.
    pub(crate) needs: BTreeSet<Epoch>,
    /// Whether parts of later checkpoints may need this one.
    pub(crate) layer: bool,
    pub(crate) task: SectionTask,
}

impl SectionPart {
    /// A section that stands for itself.
    pub(crate) fn plain(header: SectionHeader, task: SectionTask) -> Self {
        Self { header, extent: Extent::Whole, needs: BTreeSet::new(), layer: false, task }
    }

    /// A frozen state.
    pub(crate) fn state(header: SectionHeader, frozen: FrozenState) -> Self {
        let FrozenState { content, extent, needs, layer } = frozen;
        Self { header, extent, needs, layer, task: Box::new(move |out| Ok(content.write(out)?)) }
    }
}

/// The section of an operator that keeps an event time of each instance.
pub(crate) fn event_header(operator: &Name, state: &str, kind: SectionKind) -> SectionHeader {
    SectionHeader {
        operator: operator.clone(),
        state: Name::new(state).expect("a constant name"),
        kind,
        type_name: "i64".to_owned(),
        type_version: 1,
        shape: EntryShape::of_values(shape_of::<i64>()),
    }
}

/// Writes the one entry of a section that keeps an event time.
pub(crate) fn event_section(event: i64) -> SectionTask {
    Box::new(move |out| Ok(out.entry(KeyGroup(0), &mut |bytes| codec::encode(&event, bytes))?))
}

/// A section could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SectionFailure {
    /// Its bytes: the checkpoint is aborted, the job goes on.
    #[error("the state could not be written")]
    Format(#[from] FormatError),
    /// A sink's pre-commit: its records cannot be written again without going back, so the job fails.
    #[error("the sink could not pre-commit")]
    PreCommit(#[from] ConnectError),
}

/// What one participant hands in at a barrier.
pub(crate) struct Contribution {
    pub(crate) sections: Vec<SectionPart>,
    /// How long the synchronous part took.
    pub(crate) sync: Duration,
    /// Number of records on their way that the sections hold.
    pub(crate) in_flight_records: u64,
    /// What the operator's backend may keep in files.
    pub(crate) native: Option<NativePart>,
}

impl Contribution {
    /// Nothing, of a participant that has nothing to keep.
    pub(crate) fn nothing() -> Self {
        Self { sections: Vec::new(), sync: Duration::ZERO, in_flight_records: 0, native: None }
    }

    /// State, and no records on their way.
    pub(crate) fn state(sections: Vec<SectionPart>, sync: Duration) -> Self {
        Self { sections, sync, in_flight_records: 0, native: None }
    }
}

/// One worker's part of one checkpoint, complete.
pub(crate) struct Assembled {
    pub(crate) epoch: Epoch,
    pub(crate) sections: Vec<SectionPart>,
    /// Earlier parts that it needs.
    pub(crate) layers: Vec<LayerRef>,
    /// What backends may keep in files.
    pub(crate) natives: Vec<NativePart>,
    /// From this worker's learning of the checkpoint to its last participant's snapshot.
    pub(crate) align: Duration,
    /// The synchronous parts of all participants.
    pub(crate) sync: Duration,
    /// Number of records in the channel logs.
    pub(crate) in_flight_records: u64,
}

struct Assembly {
    began: Duration,
    handed_in: BTreeMap<usize, Contribution>,
}

/// A source instance, as the driver sees it.
pub(crate) trait SourceControl {
    /// Takes the splits that worker 0 has dealt to it.
    fn assign(&self, splits: Vec<Vec<u8>>);
    /// Stops reading, and moves event time to its end.
    fn drain(&self);
    /// Called when a moment that the source asked to be called at has come.
    fn tick(&self, now: Duration);
    /// When it wants to be called again.
    fn deadline(&self) -> Option<Duration>;
}

/// An operator that wants to be called at a time of its own, as the driver sees it: channels for their barriers, keyed
/// operators for their processing-time timers.
pub(crate) trait AlarmControl {
    /// Called when a moment that the operator asked to be called at may have come.
    fn tick(&self, now: Duration);
    /// When it wants to be called again.
    fn deadline(&self) -> Option<Duration>;
}

/// When the operator wants to be called again.
pub(crate) struct Alarm {
    pub(crate) wake_at: Cell<Option<Duration>>,
    activator: Activator,
}

impl Alarm {
    /// An alarm that the driver knows of.
    pub(crate) fn new(context: &WorkerContext, activator: Activator) -> Rc<Self> {
        let alarm = Rc::new(Self { wake_at: Cell::new(None), activator });
        context.alarms.borrow_mut().push(Rc::clone(&alarm) as Rc<dyn AlarmControl>);
        alarm
    }
}

impl AlarmControl for Alarm {
    fn tick(&self, now: Duration) {
        if self.wake_at.get().is_some_and(|at| at <= now) {
            self.wake_at.set(None);
            self.activator.activate();
        }
    }

    fn deadline(&self) -> Option<Duration> {
        self.wake_at.get()
    }
}

/// A sink instance, as the driver sees it.
pub(crate) trait SinkControl {
    /// The checkpoint is complete: commit everything up to it.
    fn complete(&self, epoch: Epoch);
    /// The result of a commit that the sink had asked for.
    fn committed(&self, result: Result<Epoch, ConnectError>);
    /// Called when a moment that the sink asked to be called at has come.
    fn tick(&self, now: Duration);
    /// The checkpoint that it is committing, its name, and since when.
    fn committing(&self) -> Option<(Epoch, Name, Duration)>;
    /// The epoch up to which everything is committed, of what was complete.
    fn committed_through(&self) -> Epoch;
    /// When it wants to be called again.
    fn deadline(&self) -> Option<Duration>;
}

/// Why an attempt ends early.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) operator: Option<Name>,
    pub(crate) what: String,
    pub(crate) kind: FailureKind,
}

/// What a failure means for what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// No restart can help.
    Fatal,
    /// Another attempt could go better.
    Transient,
    /// Another process is gone; the cause is to be looked for there.
    PeerLost,
    /// A newer attempt has taken over.
    Fenced,
}

impl Failure {
    /// Whether another attempt could go better.
    pub(crate) fn restartable(&self) -> bool {
        matches!(self.kind, FailureKind::Transient | FailureKind::PeerLost)
    }
}

/// What the operators of one worker share. Lives on the worker's thread.
pub(crate) struct WorkerContext {
    pub(crate) index: usize,
    pub(crate) peers: usize,
    pub(crate) shared: Arc<AttemptShared>,
    pub(crate) mailbox: Mailbox,
    /// The worker's epoch: its sources must be in this one.
    epoch: Cell<Epoch>,
    /// Checkpoints that the coordinator has announced and that are not over: whether they are to be savepoints.
    announced: RefCell<BTreeMap<Epoch, Option<SavepointFormat>>>,
    /// When the newest checkpoint began, while it is in progress.
    begun_at: Cell<Option<Duration>>,
    /// When the last participant handed in, until that checkpoint is over.
    handed_in_at: Cell<Option<Duration>>,
    names: RefCell<BTreeSet<Name>>,
    participants: RefCell<Vec<Name>>,
    assemblies: RefCell<BTreeMap<Epoch, Assembly>>,
    /// Checkpoints that are over: what is handed in for them is dropped.
    ended: RefCell<BTreeSet<Epoch>>,
    assembled: RefCell<Vec<Assembled>>,
    /// The parts of complete checkpoints that later ones may build on.
    pub(crate) layers: RefCell<WorkerLayers>,
    /// What the instances of backends have in storage.
    uploads: RefCell<BTreeMap<Name, Arc<Uploads>>>,
    /// Activated when the worker's epoch moves on, and when the job's end comes or is put off.
    origins: RefCell<Vec<Activator>>,
    pub(crate) sources: RefCell<Vec<Rc<dyn SourceControl>>>,
    finished_sources: Cell<usize>,
    pub(crate) alarms: RefCell<Vec<Rc<dyn AlarmControl>>>,
    pub(crate) sinks: RefCell<Vec<Rc<dyn SinkControl>>>,
    /// The states that the dataflow declares, once it is built.
    pub(crate) declared: RefCell<Vec<SectionHeader>>,
    /// By operator and state: the older versions that the program reads.
    pub(crate) migrations: RefCell<BTreeMap<(Name, Name), Migrations>>,
    pub(crate) outgoing: RefCell<Vec<(Option<usize>, Control)>>,
    failure: RefCell<Option<Failure>>,
    /// The epoch that the final checkpoint closes, while one is in progress or complete.
    final_epoch: Cell<Option<Epoch>>,
    finish: Cell<bool>,
    /// How long the last step of the worker took, and its number.
    pub(crate) last_step: Cell<(u64, Duration)>,
    /// Bytes that channels of this worker have released since the budget was set.
    pub(crate) taken_bytes: Cell<u64>,
    /// Bytes that wait in channels of this worker.
    pub(crate) queued_bytes: Cell<u64>,
    /// Who has sent something since the budget was set.
    pub(crate) heard_of: RefCell<Vec<bool>>,
    /// By the type of record.
    pools: RefCell<HashMap<TypeId, Rc<dyn Any>>>,
    /// Tasks that no lane had room for.
    backlog: RefCell<Vec<(Lane, Task)>>,
}

impl WorkerContext {
    pub(crate) fn new(
        index: usize,
        peers: usize,
        shared: Arc<AttemptShared>,
        mailbox: Mailbox,
    ) -> Self {
        let epoch = Cell::new(shared.first_epoch);
        let groups = key_groups(shared.config.max_parallelism, peers, index);
        let restored = shared.restored.iter().flat_map(|restored| restored.layers_of(&groups));
        let mut layers = WorkerLayers::default();
        layers.adopt(restored);
        Self {
            index,
            peers,
            shared,
            mailbox,
            epoch,
            announced: RefCell::default(),
            begun_at: Cell::new(None),
            handed_in_at: Cell::new(None),
            names: RefCell::default(),
            participants: RefCell::default(),
            assemblies: RefCell::default(),
            ended: RefCell::default(),
            assembled: RefCell::default(),
            layers: RefCell::new(layers),
            uploads: RefCell::default(),
            origins: RefCell::default(),
            sources: RefCell::default(),
            finished_sources: Cell::new(0),
            alarms: RefCell::default(),
            sinks: RefCell::default(),
            declared: RefCell::default(),
            migrations: RefCell::default(),
            outgoing: RefCell::default(),
            failure: RefCell::default(),
            final_epoch: Cell::new(None),
            finish: Cell::new(false),
            last_step: Cell::new((0, Duration::ZERO)),
            taken_bytes: Cell::new(0),
            queued_bytes: Cell::new(0),
            heard_of: RefCell::new(vec![false; peers]),
            pools: RefCell::default(),
            backlog: RefCell::default(),
        }
    }

    pub(crate) fn config(&self) -> &JobConfig {
        &self.shared.config
    }

    /// The worker's empty buffers for one type of record.
    pub(crate) fn pool<D: 'static>(&self) -> Pool<D> {
        let mut pools = self.pools.borrow_mut();
        let pool = pools.entry(TypeId::of::<D>()).or_insert_with(|| Rc::new(Pool::<D>::default()));
        pool.downcast_ref::<Pool<D>>().expect("kept under the type of its records").clone()
    }

    pub(crate) fn now(&self) -> Duration {
        self.shared.clock.now()
    }

    /// Processing time, as programs see it: it outlives the process. Units: milliseconds since 1970.
    pub(crate) fn unix_ms(&self) -> i64 {
        i64::try_from(self.shared.clock.unix_ms()).unwrap_or(i64::MAX)
    }

    /// The epoch that sources must be in.
    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch.get()
    }

    /// Registers the name of a stateful participant; says whether it is new.
    pub(crate) fn claim_name(&self, name: &Name) -> bool {
        self.names.borrow_mut().insert(name.clone())
    }

    /// Registers a participant. Every one must hand in a contribution at every barrier.
    pub(crate) fn participant(&self, name: Name) -> usize {
        let mut participants = self.participants.borrow_mut();
        participants.push(name);
        participants.len() - 1
    }

    /// Registers what produces at the head of a chain, to be activated when an epoch begins.
    pub(crate) fn origin(&self, activator: Activator) {
        self.origins.borrow_mut().push(activator);
    }

    /// The checkpoint that closes `epoch` has begun, as the coordinator says or as a record of a later epoch shows.
    pub(crate) fn begin(&self, epoch: Epoch) {
        while self.epoch.get() <= epoch {
            let closing = self.epoch.get();
            self.epoch.set(closing.next());
            self.begun_at.set(Some(self.now()));
            self.assembly(closing, |_| ());
            for activator in self.origins.borrow().iter() {
                activator.activate();
            }
        }
    }

    /// The coordinator says that the checkpoint that closes `epoch` begins, and whether it is to be a savepoint.
    pub(crate) fn announce(&self, epoch: Epoch, savepoint: Option<SavepointFormat>) {
        if !self.ended.borrow().contains(&epoch) {
            self.announced.borrow_mut().insert(epoch, savepoint);
        }
        self.begin(epoch);
        // Channels that knew of it have waited for this word.
        for activator in self.origins.borrow().iter() {
            activator.activate();
        }
    }

    /// Whether barriers of this checkpoint may overtake. `None`: that is not known yet, as long as only a record of a
    /// later epoch has told of it.
    pub(crate) fn may_overtake(&self, epoch: Epoch) -> Option<bool> {
        if self.ended.borrow().contains(&epoch) {
            return Some(true); // Nobody keeps its logs.
        }
        self.announced.borrow().get(&epoch).map(Option::is_none)
    }

    /// What the operator's instance of a backend has in storage.
    pub(crate) fn uploads(&self, operator: &Name) -> Arc<Uploads> {
        let mut all = self.uploads.borrow_mut();
        let index = all.len();
        let uploads = all.entry(operator.clone());
        Arc::clone(uploads.or_insert_with(|| Arc::new(Uploads::new(index))))
    }

    /// A checkpoint is complete: later ones may build on it.
    pub(crate) fn build_on(&self, epoch: Epoch) {
        self.layers.borrow_mut().complete(epoch);
        self.uploads.borrow().values().for_each(|uploads| uploads.complete(epoch));
    }

    /// A checkpoint was aborted: nothing builds on it.
    pub(crate) fn forget(&self, epoch: Epoch) {
        self.layers.borrow_mut().aborted(epoch);
        self.uploads.borrow().values().for_each(|uploads| uploads.aborted(epoch));
    }

    /// What snapshots of keyed state for this checkpoint are to hold.
    pub(crate) fn snapshot_form(&self, epoch: Epoch) -> SnapshotForm {
        if !self.config().checkpoints.incremental {
            return SnapshotForm::Plain;
        }
        // A canonical savepoint is written in one piece. If this worker does not know yet that it is one, it is as a native one
        // is: its layers and files are copied.
        let layers = self.layers.borrow();
        let announced = self.announced.borrow().get(&epoch).copied().flatten();
        let whole = announced == Some(SavepointFormat::Canonical) || layers.in_doubt();
        let confirmed = layers.confirmed();
        let bytes_min = self.config().checkpoints.incremental_bytes_min;
        SnapshotForm::Layer { epoch, confirmed, whole, bytes_min }
    }

    /// Whether a barrier is on its way through this worker, or acks and announcements soon will be. Steps are short then:
    /// each of these waits for the end of one. Writing a large state takes longer and does not wait for steps.
    pub(crate) fn in_a_hurry(&self) -> bool {
        !self.assemblies.borrow().is_empty()
            || self.begun_at.get().is_some_and(|begun| self.now() - begun < HURRY_TIME)
    }

    /// When all participants had handed in what the newest checkpoint is made of, while it is not over.
    pub(crate) fn handed_in_at(&self) -> Option<Duration> {
        self.handed_in_at.get()
    }

    /// A channel has taken a batch in.
    pub(crate) fn arrived(&self, from: usize, weight: u64) {
        self.queued_bytes.set(self.queued_bytes.get() + weight);
        self.heard_of.borrow_mut()[from] = true;
    }

    /// A channel has released what `from` had sent.
    pub(crate) fn released(&self, from: usize, weight: u64) {
        self.queued_bytes.set(self.queued_bytes.get().saturating_sub(weight));
        self.taken_bytes.set(self.taken_bytes.get() + weight);
        self.shared.ledger.taken(from, self.index, weight);
    }

    fn assembly<R>(&self, epoch: Epoch, with: impl FnOnce(&mut Assembly) -> R) -> Option<R> {
        if self.ended.borrow().contains(&epoch) {
            return None;
        }
        let mut assemblies = self.assemblies.borrow_mut();
        let assembly = assemblies
            .entry(epoch)
            .or_insert_with(|| Assembly { began: self.now(), handed_in: BTreeMap::new() });
        Some(with(assembly))
    }

    /// A participant hands in what it has at the barrier of `epoch`.
    pub(crate) fn hand_in(&self, epoch: Epoch, participant: usize, contribution: Contribution) {
        let participants = self.participants.borrow().len();
        if self.config().checkpoints.slow_after.is_some_and(|slow| contribution.sync >= slow) {
            let wait = CheckpointWait {
                phase: CheckpointPhase::Sync,
                worker: self.index as u32,
                operators: vec![self.participants.borrow()[participant].to_string()],
                waited_ms: contribution.sync.as_millis() as u64,
            };
            self.send(Some(0), Control::Slow { epoch, wait });
        }
        let complete = self.assembly(epoch, |assembly| {
            let before = assembly.handed_in.insert(participant, contribution);
            assert!(before.is_none(), "a participant hands in once a barrier");
            assembly.handed_in.len() == participants
        });
        if complete != Some(true) {
            return;
        }
        let Some(assembly) = self.assemblies.borrow_mut().remove(&epoch) else { return };
        self.handed_in_at.set(Some(self.now()));
        let sync = assembly.handed_in.values().map(|contribution| contribution.sync).sum();
        let in_flight_records = assembly.handed_in.values().map(|c| c.in_flight_records).sum();
        let (mut sections, mut natives) = (Vec::new(), Vec::new());
        for contribution in assembly.handed_in.into_values() {
            sections.extend(contribution.sections);
            natives.extend(contribution.native);
        }
        let needs = sections.iter().flat_map(|section| &section.needs).copied().collect();
        self.assembled.borrow_mut().push(Assembled {
            epoch,
            layers: self.layers.borrow().of(&needs),
            natives,
            align: self.now().saturating_sub(assembly.began),
            sync,
            in_flight_records,
            sections,
        });
    }

    pub(crate) fn take_assembled(&self) -> Vec<Assembled> {
        std::mem::take(&mut self.assembled.borrow_mut())
    }

    /// The checkpoints whose barriers are on their way through this worker, each with the time it began.
    pub(crate) fn aligning(&self) -> Vec<(Epoch, Duration)> {
        let assemblies = self.assemblies.borrow();
        assemblies.iter().map(|(epoch, assembly)| (*epoch, assembly.began)).collect()
    }

    /// The participants that have not handed in for `epoch`.
    pub(crate) fn missing(&self, epoch: Epoch) -> Vec<Name> {
        let assemblies = self.assemblies.borrow();
        let Some(assembly) = assemblies.get(&epoch) else { return Vec::new() };
        let participants = self.participants.borrow();
        let missing = participants.iter().enumerate();
        missing
            .filter(|(index, _)| !assembly.handed_in.contains_key(index))
            .map(|(_, name)| name.clone())
            .collect()
    }

    /// A checkpoint is over, complete or aborted: what is still handed in for it is dropped.
    pub(crate) fn end(&self, epoch: Epoch) {
        let mut assemblies = self.assemblies.borrow_mut();
        let mut ended = self.ended.borrow_mut();
        assemblies.remove(&epoch);
        ended.insert(epoch);
        self.announced.borrow_mut().remove(&epoch);
        if epoch.next() == self.epoch.get() {
            self.begun_at.set(None);
            self.handed_in_at.set(None);
        }
        while ended.len() > 1024 {
            ended.pop_first();
        }
    }

    pub(crate) fn source_finished(&self) {
        self.finished_sources.set(self.finished_sources.get() + 1);
        if self.finished_sources.get() == self.sources.borrow().len() {
            self.send(Some(0), Control::SourcesFinished);
        }
    }

    /// Sends a frame to one worker, or to all.
    pub(crate) fn send(&self, to: Option<usize>, control: Control) {
        self.outgoing.borrow_mut().push((to, control));
    }

    /// Tells every other process where a source instance is.
    pub(crate) fn set_status(&self, source: u32, status: InstanceStatus) {
        if self.shared.board.set(source, self.index, status) && self.config().processes > 1 {
            let workers = self.config().workers;
            let own = self.index / workers;
            for process in (0..self.config().processes).filter(|process| *process != own) {
                let worker = self.index as u32;
                let control = Control::Watermark { source, worker, status };
                self.send(Some(process * workers), control);
            }
        }
    }

    /// Ends the attempt. The first failure counts.
    pub(crate) fn fail(&self, failure: Failure) {
        let mut first = self.failure.borrow_mut();
        if first.is_none() {
            *first = Some(failure);
        }
    }

    pub(crate) fn fail_operator(&self, operator: &Name, error: &ConnectError) {
        self.fail(Failure {
            operator: Some(operator.clone()),
            what: crate::runtime::describe(error),
            kind: FailureKind::Transient,
        });
    }

    pub(crate) fn failed(&self) -> bool {
        self.failure.borrow().is_some()
    }

    pub(crate) fn take_failure(&self) -> Option<Failure> {
        self.failure.borrow_mut().take()
    }

    /// The epoch that the final checkpoint closes. What is read beyond it would be read again by the next run, and
    /// seen twice in sinks that show their records at once.
    pub(crate) fn final_epoch(&self) -> Option<Epoch> {
        self.final_epoch.get()
    }

    /// A final checkpoint begins, or was aborted: then the job goes on until the next.
    pub(crate) fn set_final(&self, epoch: Option<Epoch>) {
        self.final_epoch.set(epoch);
        for activator in self.origins.borrow().iter() {
            activator.activate();
        }
    }

    /// The job is over: sources let go of their capabilities.
    pub(crate) fn finish(&self) {
        self.finish.set(true);
        for activator in self.origins.borrow().iter() {
            activator.activate();
        }
    }

    pub(crate) fn finishing(&self) -> bool {
        self.finish.get()
    }

    /// Lets go of the operators, which hold this context: nothing of the attempt would be freed otherwise, its
    /// threads included.
    pub(crate) fn release(&self) {
        self.sources.take();
        self.alarms.take();
        self.sinks.take();
        self.assemblies.take();
        self.assembled.take();
        self.backlog.take();
    }

    /// Hands a task to a lane, now or as soon as there is room, behind those that wait for room already.
    pub(crate) fn submit(&self, lane: Lane, task: Task) {
        if self.backlog.borrow().iter().any(|(waiting, _)| *waiting == lane) {
            self.backlog.borrow_mut().push((lane, task));
        } else if let Err(task) = self.shared.executor.submit(lane, task) {
            self.backlog.borrow_mut().push((lane, task));
        }
    }

    /// Whether a task waits for room in its lane.
    pub(crate) fn backlogged(&self) -> bool {
        !self.backlog.borrow().is_empty()
    }

    /// Tries again what no lane had room for.
    pub(crate) fn submit_backlog(&self) {
        for (lane, task) in self.backlog.take() {
            self.submit(lane, task);
        }
    }
}
