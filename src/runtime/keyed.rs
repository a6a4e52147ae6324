//! Keyed stateful processing: the user's function, once a record, with the state of the record's key.
//!
//! # States
//! A gate: *open* for epoch *n*. Batches of *n* are processed, later ones held.
//! # Ordering
//! When the input frontier passes *n*: freeze, hand in, open *n+1*, process what was held. So the snapshot of *n*
//! has seen every record of epochs up to *n* and none later (I1), and everything emitted later is emitted at *n+1*
//! or later (I3).
//! # Replay
//! An operator may feed a dataflow that remembers what it was sent. At its start it sends that again, made of its restored
//! state, at [`REPLAYED`]: of epoch 0, which is before all epochs of the job, so that what follows from it can be told from
//! what is new. Until it has, nothing else is processed, and no barrier passes it. Its gate holds later epochs back in every
//! mode: what was counted into the state before its barrier would be replayed, and what follows from it be taken for old.
//! # Failure
//! A panic of the user's function ends the attempt and names the operator; nothing that it did to state survives.

use std::ops::Range;
use std::rc::Rc;

use timely::container::NoopBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::CapabilityTrait;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::{OutputBuilder, OutputBuilderSession};

use crate::connect::Record;
use crate::format::shape::EntryShape;
use crate::format::{SectionHeader, SectionKind};
use crate::ids::{Epoch, InvalidName, Name};
use crate::protocol::key_groups::key_groups;
use crate::runtime::chain::{Gate, Origin};
use crate::runtime::context::{
    Contribution, SectionPart, WorkerContext, event_header, event_section,
};
use crate::runtime::migration::Migrations;
use crate::runtime::natives::NativePart;
use crate::runtime::outgoing::Outgoing;
use crate::runtime::pool::Pool;
use crate::runtime::scope_name;
use crate::runtime::states::States;
use crate::runtime::time::Time;
use crate::state::hash::stable_hash;
use crate::state::{Backend, FrozenState, Key, NativeSnapshot, SnapshotForm};

/// What a processing function sees beside the record and the state: where output goes, and what time it is.
#[derive(Debug)]
pub struct Context<'a, O> {
    out: &'a mut Vec<O>,
    event: i64,
}

impl<'a, O> Context<'a, O> {
    pub(super) fn new(out: &'a mut Vec<O>, event: i64) -> Self {
        Self { out, event }
    }

    /// Emits a record.
    #[inline]
    pub fn emit(&mut self, record: O) {
        self.out.push(record);
    }

    /// The watermark: no record with this event time or an earlier one is expected any more. Late ones are still
    /// delivered; the function decides.
    ///
    /// Units: milliseconds of event time. `i64::MIN` before anything is known, `i64::MAX` at end of input.
    #[must_use]
    pub fn watermark(&self) -> i64 {
        if self.event == i64::MAX { i64::MAX } else { self.event.saturating_sub(1) }
    }
}

pub(crate) type Session<'a, O> = OutputBuilderSession<'a, Time, NoopBuilder<Vec<O>>>;

/// When an operator sends again what its restored state holds.
pub(crate) const REPLAYED: Time = Time { epoch: 0, event: i64::MIN };

/// Sends again what the tables of an operator hold, one record at a time.
pub(crate) type Replay<T, O> = Box<dyn FnOnce(&mut T, &mut dyn FnMut(O))>;

/// The tables of an operator on one worker, and what keeps them.
pub(crate) struct OperatorState<T> {
    pub(crate) backend: Backend,
    pub(crate) tables: T,
}

/// The parts of the operator that a batch needs.
struct Processor<K, V, S: States<K>, O, F>
where
    K: Key,
{
    tables: S::Tables,
    logic: F,
    hashes: Vec<u64>,
    outgoing: Outgoing<O>,
    inputs: Pool<(K, V)>,
}

impl<K, V, S, O, F> Processor<K, V, S, O, F>
where
    K: Key,
    V: Record,
    S: States<K>,
    O: Record,
    F: FnMut(&K, V, &mut S::Access<'_>, &mut Context<'_, O>),
{
    fn process<C: CapabilityTrait<Time>>(
        &mut self,
        capability: &C,
        records: &mut Vec<(K, V)>,
        event: i64,
        output: &mut Session<'_, O>,
    ) {
        if S::EXPIRES {
            S::sweep(&mut self.tables, records.len());
        }
        // Hash the batch first and touch what it needs, so that cache misses overlap.
        self.hashes.clear();
        self.hashes.extend(records.iter().map(|(key, _)| stable_hash(key)));
        S::prefetch(&self.tables, &self.hashes);
        let mut hashed = records.drain(..).zip(&self.hashes);
        self.outgoing.send(output, capability, |out| {
            let Some(((key, value), hash)) = hashed.next() else { return false };
            let mut state = S::access(&mut self.tables, *hash, &key);
            (self.logic)(&key, value, &mut state, &mut Context { out, event });
            true
        });
        drop(hashed);
        self.inputs.give(std::mem::take(records));
    }
}

/// Builds a keyed operator, of its states, their tables, and what event time was shown before the restored snapshot.
/// Tables are restored already; the key groups that this worker owns are all they hold. `replay`: what it does with them first.
pub(crate) fn keyed<'scope, K, V, S, O, F>(
    stream: Stream<'scope, Time, Vec<(K, V)>>,
    origins: Vec<Origin>,
    context: &Rc<WorkerContext>,
    name: &Name,
    (states, tables, shown): (S, OperatorState<S::Tables>, i64),
    logic: F,
    replay: Option<Replay<S::Tables, O>>,
) -> Stream<'scope, Time, Vec<O>>
where
    K: Key,
    V: Record,
    S: States<K>,
    O: Record,
    F: FnMut(&K, V, &mut S::Access<'_>, &mut Context<'_, O>) + 'static,
{
    let scope = stream.scope();
    let mut builder = OperatorBuilder::new(name.to_string(), scope);
    let (output, results) = builder.new_output::<Vec<O>>();
    let mut output = OutputBuilder::<_, NoopBuilder<Vec<O>>>::from(output);
    let mut input = builder.new_input(stream, Pipeline);
    let context = Rc::clone(context);
    let participant = context.participant(name.clone());
    let mode = context.config().checkpoints.mode;
    let mut gate = Gate::new(mode, context.shared.first_epoch, origins);
    gate.resume_at(shown);
    if replay.is_some() {
        gate.hold_in_every_mode();
    }
    let OperatorState { backend, tables } = tables;
    let mut processor = Processor::<K, V, S, O, F> {
        tables,
        logic,
        hashes: Vec::new(),
        outgoing: Outgoing::new(&context),
        inputs: context.pool(),
    };
    let operator = scope_name(name.as_str());
    let name = name.clone();
    let activator = scope.activator_for(builder.operator_info().address);
    builder.build(move |mut capabilities| {
        let mut replay = replay.zip(capabilities.pop());
        if replay.is_some() {
            activator.activate();
        }
        move |frontiers| {
            let _scope = operator.enter();
            let frontier = &frontiers[0];
            let event = gate.event(frontier);
            if S::EXPIRES {
                S::set_now(&mut processor.tables, context.unix_ms());
            }
            let mut output = output.activate();
            if let Some((replay, capability)) = replay.take() {
                assert_eq!(*capability.time(), REPLAYED, "no operator has begun earlier");
                let Processor { outgoing, tables, .. } = &mut processor;
                outgoing.send_all(&mut output, &capability, |send| replay(tables, send));
            }
            input.for_each(|capability, records| {
                let epoch = capability.time().epoch();
                if gate.admits(epoch) {
                    processor.process(&capability, records, event, &mut output);
                } else {
                    let time = *capability.time();
                    gate.hold(time, (capability.retain(0), std::mem::take(records)));
                }
            });
            while gate.barrier_passed(&[frontier]) {
                let epoch = gate.open();
                let mut contribution = freeze::<K, S>(
                    &states,
                    &backend,
                    &mut processor.tables,
                    epoch,
                    &name,
                    &context,
                );
                contribution.sections.extend(watermark_section(&name, gate.shown(), &context));
                context.hand_in(epoch, participant, contribution);
                gate.advance();
                while let Some((capability, mut records)) = gate.next_open() {
                    processor.process(&capability, &mut records, event, &mut output);
                }
            }
        }
    });
    results
}

/// The section that keeps what event time an operator has shown.
pub(crate) fn watermark_header(operator: &Name) -> SectionHeader {
    event_header(operator, "operator-watermark", SectionKind::Watermark)
}

/// Keeps what was shown, if it says anything.
pub(crate) fn watermark_section(
    operator: &Name,
    shown: Option<i64>,
    context: &WorkerContext,
) -> Option<SectionPart> {
    let shown = shown.filter(|_| context.shared.durable)?;
    Some(SectionPart::plain(watermark_header(operator), event_section(shown)))
}

fn freeze<K: Key, S: States<K>>(
    states: &S,
    backend: &Backend,
    tables: &mut S::Tables,
    epoch: Epoch,
    operator: &Name,
    context: &WorkerContext,
) -> Contribution {
    if !context.shared.durable {
        return Contribution::nothing();
    }
    let start = context.now();
    let form = context.snapshot_form(epoch);
    let (sections, snapshot) =
        backend.freeze_together(form, || frozen_sections::<K, S>(states, tables, operator, form));
    let mut contribution = Contribution::state(sections, context.now().saturating_sub(start));
    contribution.native = snapshot.map(|snapshot| native_part(snapshot, operator, context));
    contribution
}

/// What an operator hands in of what its backend may keep in files.
pub(crate) fn native_part(
    snapshot: Box<dyn NativeSnapshot>,
    operator: &Name,
    context: &WorkerContext,
) -> NativePart {
    NativePart { operator: operator.clone(), snapshot, uploads: context.uploads(operator) }
}

/// Freezes all states of an operator.
pub(crate) fn frozen_sections<K: Key, S: States<K>>(
    states: &S,
    tables: &mut S::Tables,
    operator: &Name,
    form: SnapshotForm,
) -> Vec<SectionPart> {
    let frozen = S::freeze(tables, form);
    let section = |(declaration, frozen): (StateDeclaration, FrozenState)| {
        SectionPart::state(declaration.header(operator), frozen)
    };
    states.declarations().into_iter().zip(frozen).map(section).collect()
}

/// What a state is, as the program declares it.
#[derive(Clone, Debug)]
pub struct StateDeclaration {
    pub(crate) name: Result<Name, InvalidName>,
    pub(crate) kind: SectionKind,
    pub(crate) key_type: &'static str,
    /// What is kept for a key.
    pub(crate) state_type: String,
    /// Whether it is kept with the time of its last update.
    pub(crate) expires: bool,
    pub(crate) type_version: u32,
    /// What a key is, and what is kept for it.
    pub(crate) shape: EntryShape,
    /// The older versions that are read.
    pub(crate) migrations: Migrations,
}

impl StateDeclaration {
    pub(crate) fn header(&self, operator: &Name) -> SectionHeader {
        SectionHeader {
            operator: operator.clone(),
            // A wrong name is an error of the build; such a job never runs.
            state: self.name.clone().unwrap_or_else(|_| Name::new("_").expect("a constant name")),
            kind: self.kind,
            type_name: if self.expires {
                format!("{} -> Expiring<{}>", self.key_type, self.state_type)
            } else {
                format!("{} -> {}", self.key_type, self.state_type)
            },
            type_version: self.type_version,
            shape: self.shape.clone(),
        }
    }
}

/// The key groups of this worker.
pub(crate) fn owned_groups(context: &WorkerContext) -> Range<u16> {
    key_groups(context.config().max_parallelism, context.peers, context.index)
}
