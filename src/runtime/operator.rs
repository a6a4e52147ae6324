//! Operators with operator state: a main input, keyed or not, and beside it a broadcast input if there is one.
//!
//! # States
//! A gate over both inputs: *open* for epoch *n*. Batches of *n* are processed, from whichever input they come; later ones are
//! held.
//! # Ordering
//! When the frontiers of all inputs have passed *n*: freeze, hand in, open *n+1*, process what was held, in the order of
//! arrival. So the snapshot of *n* has seen every record of epochs up to *n* of both inputs and none later (I1), and
//! everything emitted later is emitted at *n+1* or later (I3). Between the inputs there is no order.
//! # Failure
//! A panic of the user's functions ends the attempt and names the operator; nothing that they did to state survives.

use std::rc::Rc;

use timely::container::NoopBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::{Capability, CapabilityTrait};
use timely::progress::frontier::MutableAntichain;

use crate::connect::Record;
use crate::ids::Name;
use crate::runtime::chain::{Gate, Origin};
use crate::runtime::context::{Contribution, SectionPart, WorkerContext};
use crate::runtime::keyed::{
    Context, OperatorState, Session, frozen_sections, native_part, watermark_section,
};
use crate::runtime::operator_state::{
    self, BroadcastStates, OperatorStateDeclaration, OperatorStates, Stored,
};
use crate::runtime::outgoing::Outgoing;
use crate::runtime::pool::Pool;
use crate::runtime::scope_name;
use crate::runtime::states::States;
use crate::runtime::time::Time;
use crate::state::hash::stable_hash;
use crate::state::{Key, NativeSnapshot, SnapshotForm};

/// What an operator does with its records, and what it keeps. `D`: main records; `B`: broadcast records; `O`: output.
pub(crate) trait Logic<D, B, O>: 'static {
    /// Says that it is `now`, in milliseconds since 1970.
    fn set_now(&mut self, _now: impl FnOnce() -> i64) {}
    /// A batch of main records comes.
    fn prepare(&mut self, _records: &[D]) {}
    /// The main record at `index` of its batch.
    fn record(&mut self, index: usize, record: D, context: &mut Context<'_, O>);
    /// A broadcast record.
    fn broadcast(&mut self, record: B, context: &mut Context<'_, O>);
    /// Freezes all states; also what the backend of keyed ones may keep in files.
    fn freeze(&mut self, operator: &Name, form: SnapshotForm) -> FrozenOperator;
}

/// The sections of an operator, and a snapshot in files.
pub(crate) type FrozenOperator = (Vec<SectionPart>, Option<Box<dyn NativeSnapshot>>);

/// State of an operator, with what it was declared by.
pub(crate) struct Kept<S: Stored> {
    declarations: Vec<OperatorStateDeclaration>,
    pub(super) held: S::Held,
}

impl<S: Stored> Kept<S> {
    pub(crate) fn new(declarations: Vec<OperatorStateDeclaration>, held: S::Held) -> Self {
        Self { declarations, held }
    }

    pub(super) fn freeze(&self, operator: &Name) -> Vec<SectionPart> {
        operator_state::frozen_sections::<S>(&self.declarations, &self.held, operator)
    }
}

/// An operator with operator state, and no broadcast input.
pub(crate) struct Process<S: OperatorStates, F> {
    pub(crate) kept: Kept<S>,
    pub(crate) logic: F,
}

impl<D, O, S, F> Logic<D, (), O> for Process<S, F>
where
    S: OperatorStates,
    F: FnMut(D, &mut S::Access<'_>, &mut Context<'_, O>) + 'static,
{
    fn record(&mut self, _index: usize, record: D, context: &mut Context<'_, O>) {
        (self.logic)(record, &mut S::access(&mut self.kept.held), context);
    }

    fn broadcast(&mut self, (): (), _context: &mut Context<'_, O>) {}

    fn freeze(&mut self, operator: &Name, _form: SnapshotForm) -> FrozenOperator {
        (self.kept.freeze(operator), None)
    }
}

/// An operator with a broadcast input, whose main input is not keyed.
pub(crate) struct BroadcastProcess<S: BroadcastStates, F, G> {
    pub(crate) kept: Kept<S>,
    pub(crate) on_record: F,
    pub(crate) on_broadcast: G,
}

impl<D, B, O, S, F, G> Logic<D, B, O> for BroadcastProcess<S, F, G>
where
    S: BroadcastStates,
    F: FnMut(D, &S::View<'_>, &mut Context<'_, O>) + 'static,
    G: FnMut(B, &mut S::Access<'_>, &mut Context<'_, O>) + 'static,
{
    fn record(&mut self, _index: usize, record: D, context: &mut Context<'_, O>) {
        (self.on_record)(record, &S::view(&self.kept.held), context);
    }

    fn broadcast(&mut self, record: B, context: &mut Context<'_, O>) {
        (self.on_broadcast)(record, &mut S::access(&mut self.kept.held), context);
    }

    fn freeze(&mut self, operator: &Name, _form: SnapshotForm) -> FrozenOperator {
        (self.kept.freeze(operator), None)
    }
}

/// An operator with a broadcast input and keyed state.
pub(crate) struct KeyedBroadcastProcess<K: Key, S: States<K>, B: BroadcastStates, F, G> {
    pub(crate) states: S,
    pub(crate) tables: OperatorState<S::Tables>,
    pub(crate) kept: Kept<B>,
    pub(crate) on_record: F,
    pub(crate) on_broadcast: G,
    /// Of the keys of the batch at hand.
    pub(crate) hashes: Vec<u64>,
}

impl<K, V, R, O, S, B, F, G> Logic<(K, V), R, O> for KeyedBroadcastProcess<K, S, B, F, G>
where
    K: Key,
    S: States<K>,
    B: BroadcastStates,
    F: FnMut(&K, V, &mut S::Access<'_>, &B::View<'_>, &mut Context<'_, O>) + 'static,
    G: FnMut(R, &mut B::Access<'_>, &mut Context<'_, O>) + 'static,
{
    fn set_now(&mut self, now: impl FnOnce() -> i64) {
        if S::EXPIRES {
            S::set_now(&mut self.tables.tables, now());
        }
    }

    fn prepare(&mut self, records: &[(K, V)]) {
        if S::EXPIRES {
            S::sweep(&mut self.tables.tables, records.len());
        }
        self.hashes.clear();
        self.hashes.extend(records.iter().map(|(key, _)| stable_hash(key)));
        S::prefetch(&self.tables.tables, &self.hashes);
    }

    fn record(&mut self, index: usize, (key, value): (K, V), context: &mut Context<'_, O>) {
        let mut state = S::access(&mut self.tables.tables, self.hashes[index], &key);
        (self.on_record)(&key, value, &mut state, &B::view(&self.kept.held), context);
    }

    fn broadcast(&mut self, record: R, context: &mut Context<'_, O>) {
        (self.on_broadcast)(record, &mut B::access(&mut self.kept.held), context);
    }

    fn freeze(&mut self, operator: &Name, form: SnapshotForm) -> FrozenOperator {
        let OperatorState { backend, tables } = &mut self.tables;
        let (mut sections, snapshot) = backend.freeze_together(form, || {
            frozen_sections::<K, S>(&self.states, tables, operator, form)
        });
        sections.extend(self.kept.freeze(operator));
        (sections, snapshot)
    }
}

/// A batch that waits for its epoch.
pub(super) enum Held<D, B> {
    Main(Capability<Time>, Vec<D>),
    Broadcast(Capability<Time>, Vec<B>),
}

/// The parts of the operator that a batch needs.
struct Processor<D, B, O, L> {
    logic: L,
    outgoing: Outgoing<O>,
    mains: Pool<D>,
    broadcasts: Pool<B>,
}

impl<D: Record, B: Record, O: Record, L: Logic<D, B, O>> Processor<D, B, O, L> {
    fn main<C: CapabilityTrait<Time>>(
        &mut self,
        capability: &C,
        records: &mut Vec<D>,
        event: i64,
        output: &mut Session<'_, O>,
    ) {
        self.logic.prepare(records);
        let numbered = records.drain(..).enumerate();
        self.emit(capability, event, output, numbered, |logic, (index, record), context| {
            logic.record(index, record, context);
        });
        self.mains.give(std::mem::take(records));
    }

    fn broadcast<C: CapabilityTrait<Time>>(
        &mut self,
        capability: &C,
        records: &mut Vec<B>,
        event: i64,
        output: &mut Session<'_, O>,
    ) {
        self.emit(capability, event, output, records.drain(..), L::broadcast);
        self.broadcasts.give(std::mem::take(records));
    }

    fn emit<R, C: CapabilityTrait<Time>>(
        &mut self,
        capability: &C,
        event: i64,
        output: &mut Session<'_, O>,
        mut records: impl Iterator<Item = R>,
        mut each: impl FnMut(&mut L, R, &mut Context<'_, O>),
    ) {
        let Self { logic, outgoing, .. } = self;
        outgoing.send(output, capability, |out| {
            let Some(record) = records.next() else { return false };
            each(logic, record, &mut Context::new(out, event));
            true
        });
    }
}

/// The main input, and the broadcast one if there is one.
pub(crate) type Inputs<'scope, D, B> =
    (Stream<'scope, Time, Vec<D>>, Option<Stream<'scope, Time, Vec<B>>>);

/// Builds an operator of its logic. `shown`: what event time it had shown before the restored snapshot.
pub(crate) fn operator<'scope, D, B, O, L>(
    (main, broadcast): Inputs<'scope, D, B>,
    origins: Vec<Origin>,
    context: &Rc<WorkerContext>,
    name: &Name,
    shown: i64,
    logic: L,
) -> Stream<'scope, Time, Vec<O>>
where
    D: Record,
    B: Record,
    O: Record,
    L: Logic<D, B, O>,
{
    let mut builder = OperatorBuilder::new(name.to_string(), main.scope());
    let (output, results) = builder.new_output::<Vec<O>>();
    let mut output = OutputBuilder::<_, NoopBuilder<Vec<O>>>::from(output);
    let mut main = builder.new_input(main, Pipeline);
    let mut broadcast = broadcast.map(|broadcast| builder.new_input(broadcast, Pipeline));
    let context = Rc::clone(context);
    let participant = context.participant(name.clone());
    let mode = context.config().checkpoints.mode;
    let mut gate = Gate::new(mode, context.shared.first_epoch, origins);
    gate.resume_at(shown);
    let mut processor = Processor {
        logic,
        outgoing: Outgoing::new(&context),
        mains: context.pool(),
        broadcasts: context.pool(),
    };
    let operator = scope_name(name.as_str());
    let name = name.clone();
    builder.build(move |_capabilities| {
        move |frontiers| {
            let _scope = operator.enter();
            let frontiers: Vec<&MutableAntichain<Time>> = frontiers.iter().collect();
            let event = gate.event_of(&frontiers);
            processor.logic.set_now(|| context.unix_ms());
            let mut output = output.activate();
            if let Some(broadcast) = &mut broadcast {
                broadcast.for_each(|capability, records| {
                    let held = || Held::Broadcast(capability.retain(0), std::mem::take(records));
                    if gate.admits_or_holds(*capability.time(), held) {
                        processor.broadcast(&capability, records, event, &mut output);
                    }
                });
            }
            main.for_each(|capability, records| {
                let held = || Held::Main(capability.retain(0), std::mem::take(records));
                if gate.admits_or_holds(*capability.time(), held) {
                    processor.main(&capability, records, event, &mut output);
                }
            });
            while gate.barrier_passed(&frontiers) {
                let mut contribution = Contribution::nothing();
                if context.shared.durable {
                    let start = context.now();
                    let form = context.snapshot_form(gate.open());
                    let (sections, snapshot) = processor.logic.freeze(&name, form);
                    let sync = context.now().saturating_sub(start);
                    contribution = Contribution::state(sections, sync);
                    contribution.native =
                        snapshot.map(|snapshot| native_part(snapshot, &name, &context));
                }
                contribution.sections.extend(watermark_section(&name, gate.shown(), &context));
                context.hand_in(gate.open(), participant, contribution);
                gate.advance();
                while let Some(held) = gate.next_open() {
                    match held {
                        Held::Main(capability, mut records) => {
                            processor.main(&capability, &mut records, event, &mut output);
                        }
                        Held::Broadcast(capability, mut records) => {
                            processor.broadcast(&capability, &mut records, event, &mut output);
                        }
                    }
                }
            }
        }
    });
    results
}
