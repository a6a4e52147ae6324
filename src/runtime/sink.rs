//! Sinks: two-phase commit, driven by checkpoints.
//!
//! # States of a transaction
//! | state         | event                          | next          | effect                                  |
//! |---------------|--------------------------------|---------------|-----------------------------------------|
//! | open          | records                        | open          | written, invisible                      |
//! | open          | barrier *n* passes             | pre-committing | made durable on a snapshot thread       |
//! | pre-committing | done                          | pending       | its name is in the part of *n*          |
//! | pre-committing | failed                        | -             | the attempt fails: its records are gone |
//! | pending       | *n* or a later one complete    | committing    | committed on the commit thread          |
//! | pending       | *n* aborted                    | pending       | none: the next complete one covers it   |
//! | committing    | done                           | committed     | forgotten                               |
//! | committing    | failed                         | committing    | again after a delay, then the attempt fails |
//!
//! # Invariants
//! * I6: a transaction commits only after a manifest that holds it is published: every part of *n* holds every
//!   transaction that was pending when the barrier passed, so the one that is pre-committed at *n* is in *n* and in
//!   all later ones until it is committed.
//! * I1 and I3, by the gate.
//!
//! # Failure
//! What a restored checkpoint holds is committed again before the sink's first own transaction commits; commit is
//! idempotent. What worker *w* had pending is committed by worker *w mod p*, of the *p* that there are now, in its order.
//! Source: Flink's `TwoPhaseCommitSinkFunction`; difference: what blocks never runs on the worker.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::connect::{Committer, ConnectError, PreCommit, Record, Sink, TransactionWriter};
use crate::format::shape::EntryShape;
use crate::format::{FormatError, SectionHeader, SectionKind, codec};
use crate::ids::{Epoch, KeyGroup, Name};
use crate::runtime::chain::{Gate, Origin};
use crate::runtime::context::{Contribution, SectionPart, SectionTask, SinkControl, WorkerContext};
use crate::runtime::executor::Lane;
use crate::runtime::mailbox::Letter;
use crate::runtime::scope_name;
use crate::runtime::shapes::shape_of;
use crate::runtime::time::Time;

/// Attempts to commit before the job fails; it is restarted and commits again.
pub(crate) const COMMIT_ATTEMPTS: u32 = 10;

/// How long a commit waits that has failed so many times.
pub(crate) fn commit_delay(failures: u32) -> Duration {
    Duration::from_millis(50 << failures.min(7))
}

/// A pre-committed transaction. Whoever writes a part first finishes the pre-commit, also for barriers whose own
/// checkpoint was aborted before its part was written.
enum SlotState<T> {
    Todo(PreCommit<T>),
    Done(T),
    Failed,
}

type Slot<T> = Arc<Mutex<SlotState<T>>>;

/// Returns the transaction's name, after making it durable if nobody has yet.
fn resolve<T: Clone>(slot: &Slot<T>) -> Result<T, ConnectError> {
    let mut state = slot.lock().unwrap_or_else(PoisonError::into_inner);
    let transaction = match std::mem::replace(&mut *state, SlotState::Failed) {
        SlotState::Todo(pre_commit) => pre_commit()?,
        SlotState::Done(transaction) => transaction,
        SlotState::Failed => return Err(ConnectError::new("an earlier pre-commit failed")),
    };
    *state = SlotState::Done(transaction.clone());
    Ok(transaction)
}

/// The part of a sink that outlives activations: what is pending, and the committer.
struct Commits<C: Committer> {
    index: usize,
    name: Name,
    context: Rc<WorkerContext>,
    committer: Arc<Mutex<C>>,
    kept: Option<Vec<C::Transaction>>,
    /// By the epoch that pre-committed it.
    pending: BTreeMap<Epoch, Slot<C::Transaction>>,
    /// The newest complete checkpoint.
    complete: Epoch,
    committed: Epoch,
    busy: bool,
    failures: u32,
    retry_at: Option<Duration>,
    /// Since when something complete is not committed.
    behind_since: Option<Duration>,
}

impl<C> Commits<C>
where
    C: Committer + 'static,
    C::Transaction: Clone + Send + 'static,
{
    fn abandon_others(&self, kept: Vec<C::Transaction>) {
        let committer = Arc::clone(&self.committer);
        let name = self.name.clone();
        self.context.submit(
            Lane::Commits,
            Box::new(move || {
                let mut committer = committer.lock().unwrap_or_else(PoisonError::into_inner);
                if let Err(error) = committer.abandon_others(&kept) {
                    let error = crate::runtime::describe(&error);
                    tracing::warn!(operator = %name, "leftovers of earlier attempts remain: {error}");
                }
            }),
        );
    }

    fn start(&mut self) {
        if self.busy || self.retry_at.is_some() || self.committed >= self.complete {
            return;
        }
        let through = self.complete;
        let slots: Vec<Slot<C::Transaction>> =
            self.pending.range(..=through).map(|(_, slot)| Arc::clone(slot)).collect();
        if slots.is_empty() {
            self.committed = through;
            self.behind_since = None;
            return;
        }
        self.busy = true;
        let committer = Arc::clone(&self.committer);
        let mailbox = self.context.mailbox.clone();
        let sink = self.index;
        let name = self.name.to_string();
        self.context.submit(
            Lane::Commits,
            Box::new(move || {
                let _scope = scope_name(&name).enter();
                let mut committer = committer.lock().unwrap_or_else(PoisonError::into_inner);
                let result = slots.iter().try_for_each(|slot| committer.commit(&resolve(slot)?));
                mailbox.post(Letter::Commit { sink, result: result.map(|()| through) });
            }),
        );
    }
}

struct CommitsCell<C: Committer>(RefCell<Commits<C>>);

impl<C> SinkControl for CommitsCell<C>
where
    C: Committer + 'static,
    C::Transaction: Clone + Send + 'static,
{
    fn complete(&self, epoch: Epoch) {
        let mut commits = self.0.borrow_mut();
        commits.complete = commits.complete.max(epoch);
        let now = commits.context.now();
        commits.behind_since.get_or_insert(now);
        // Every worker has acked, so every worker has committed its share of the restored checkpoint.
        if let Some(kept) = commits.kept.take() {
            commits.abandon_others(kept);
        }
        commits.start();
    }

    fn committed(&self, result: Result<Epoch, ConnectError>) {
        let mut commits = self.0.borrow_mut();
        commits.busy = false;
        match result {
            Ok(through) => {
                commits.committed = through;
                commits.behind_since = (through < commits.complete).then(|| commits.context.now());
                commits.pending.retain(|epoch, _| *epoch > through);
                commits.failures = 0;
            }
            Err(error) => {
                commits.failures += 1;
                let text = crate::runtime::describe(&error);
                if commits.failures >= COMMIT_ATTEMPTS {
                    let error = ConnectError::caused(
                        format!("commit failed {COMMIT_ATTEMPTS} times"),
                        error,
                    );
                    commits.context.fail_operator(&commits.name, &error);
                    return;
                }
                let delay = commit_delay(commits.failures);
                tracing::warn!(
                    operator = %commits.name, worker = commits.context.index,
                    failures = commits.failures, "commit failed, trying again in {delay:?}: {text}"
                );
                commits.retry_at = Some(commits.context.now() + delay);
            }
        }
        commits.start();
    }

    fn tick(&self, now: Duration) {
        let mut commits = self.0.borrow_mut();
        if commits.retry_at.is_some_and(|at| at <= now) {
            commits.retry_at = None;
            commits.start();
        }
    }

    fn committing(&self) -> Option<(Epoch, Name, Duration)> {
        let commits = self.0.borrow();
        let since = commits.behind_since.filter(|_| commits.committed < commits.complete)?;
        Some((commits.complete, commits.name.clone(), since))
    }

    fn committed_through(&self) -> Epoch {
        self.0.borrow().committed
    }

    fn deadline(&self) -> Option<Duration> {
        self.0.borrow().retry_at
    }
}

/// What a sink is made of on one worker.
pub(crate) struct SinkEnds<S: Sink> {
    pub(crate) writer: S::Writer,
    pub(crate) committer: S::Committer,
    /// On one worker: all transactions of the restored checkpoint. Others of earlier attempts are leftovers.
    pub(crate) kept: Option<Vec<S::Transaction>>,
}

/// Builds a sink. The transactions of the restored checkpoint are committed already.
pub(crate) fn sink<'scope, S: Sink>(
    stream: Stream<'scope, Time, Vec<S::Record>>,
    origins: Vec<Origin>,
    context: &Rc<WorkerContext>,
    name: &Name,
    ends: SinkEnds<S>,
) where
    S::Record: Record,
{
    let SinkEnds { mut writer, committer, kept } = ends;
    let mut builder = OperatorBuilder::new(name.to_string(), stream.scope());
    let mut input = builder.new_input(stream, Pipeline);
    let participant = context.participant(name.clone());
    let mode = context.config().checkpoints.mode;
    let mut gate = Gate::<Vec<S::Record>>::new(mode, context.shared.first_epoch, origins);
    let commits = Rc::new(CommitsCell(RefCell::new(Commits {
        index: context.sinks.borrow().len(),
        name: name.clone(),
        context: Rc::clone(context),
        committer: Arc::new(Mutex::new(committer)),
        kept,
        pending: BTreeMap::new(),
        complete: Epoch(0),
        committed: Epoch(0),
        busy: false,
        failures: 0,
        retry_at: None,
        behind_since: None,
    })));
    context.sinks.borrow_mut().push(Rc::clone(&commits) as Rc<dyn SinkControl>);
    let context = Rc::clone(context);
    let operator = scope_name(name.as_str());
    let name = name.clone();
    let inputs = context.pool::<S::Record>();
    builder.build(move |_capabilities| {
        move |frontiers| {
            let _scope = operator.enter();
            let frontier = &frontiers[0];
            input.for_each(|capability, records| {
                let epoch = capability.time().epoch();
                if gate.admits(epoch) {
                    write(&mut writer, records, &context, &name);
                    inputs.give(std::mem::take(records));
                } else {
                    gate.hold(*capability.time(), std::mem::take(records));
                }
            });
            while gate.barrier_passed(&[frontier]) && !context.failed() {
                let epoch = gate.open();
                let start = context.now();
                match writer.pre_commit(epoch) {
                    Ok(pre_commit) => {
                        let task = section::<S>(pre_commit, epoch, &commits.0);
                        let header = transactions_header::<S>(&name);
                        let sync = context.now().saturating_sub(start);
                        let contribution =
                            Contribution::state(vec![SectionPart::plain(header, task)], sync);
                        context.hand_in(epoch, participant, contribution);
                    }
                    Err(error) => context.fail_operator(&name, &error),
                }
                gate.advance();
                while let Some(mut records) = gate.next_open() {
                    write(&mut writer, &mut records, &context, &name);
                }
            }
        }
    });
}

/// Writes records into the open transaction. After a failure of the attempt nothing is written any more: what is
/// open will be abandoned.
fn write<W: TransactionWriter>(
    writer: &mut W,
    records: &mut Vec<W::Record>,
    context: &WorkerContext,
    name: &Name,
) {
    if context.failed() {
        return;
    }
    let taken = records.len() as u64;
    context.shared.counters.sink_records.fetch_add(taken, Ordering::Relaxed);
    if let Err(error) = writer.write(records) {
        context.fail_operator(name, &error);
    }
}

/// The section that holds a sink's pending transactions.
pub(crate) fn transactions_header<S: Sink>(operator: &Name) -> SectionHeader {
    SectionHeader {
        operator: operator.clone(),
        state: Name::new("transactions").expect("a constant name"),
        kind: SectionKind::SinkTransactions,
        type_name: std::any::type_name::<S::Transaction>().to_owned(),
        type_version: 1,
        shape: EntryShape::of_values(shape_of::<S::Transaction>()),
    }
}

/// Makes the task that finishes the pre-commit and writes every pending transaction.
fn section<S: Sink>(
    pre_commit: Option<PreCommit<S::Transaction>>,
    epoch: Epoch,
    commits: &RefCell<Commits<S::Committer>>,
) -> SectionTask {
    let mut commits = commits.borrow_mut();
    if let Some(pre_commit) = pre_commit {
        commits.pending.insert(epoch, Arc::new(Mutex::new(SlotState::Todo(pre_commit))));
    }
    let pending: Vec<Slot<S::Transaction>> = commits.pending.values().map(Arc::clone).collect();
    Box::new(move |out| {
        for slot in pending {
            let transaction = resolve(&slot)?;
            out.entry(KeyGroup(0), &mut |bytes: &mut Vec<u8>| -> Result<(), FormatError> {
                codec::encode(&transaction, bytes)
            })?;
        }
        Ok(())
    })
}
