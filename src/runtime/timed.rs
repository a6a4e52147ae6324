//! Keyed operators that act by themselves when a time has come that a key waits for.
//!
//! There may be a broadcast input beside the keyed one, whose records no key waits for. Both share a gate, as in
//! [`operator`](crate::runtime::operator), and the watermark is the lesser of both.
//!
//! What is kept, and what makes a key wait, is up to a [`TimedLogic`]: timers that the user's functions register
//! ([`keyed_timers`](crate::runtime::keyed_timers)), or a state that says itself when it is due
//! ([`scheduled`](crate::runtime::scheduled)).
//!
//! # Ordering
//! An event-time timer is due when the watermark has reached its time. In one activation: what is due fires, then what a
//! gate has held is processed, then what has arrived; after each of these what has become due by it fires. So a timer
//! fires after all records that had to come before it, and before those that come with a later watermark. Timers of one
//! domain fire in the order of their times.
//!
//! A processing-time timer is due when the machine's clock has reached its time. At the end of input all event-time timers are due, and
//! processing-time timers do not fire any more.
//!
//! At a barrier, timers are state. A barrier that has passed does not wait for those that are due: they fire in the next
//! epoch. The final one does, because nothing that is emitted behind it would be committed; for the same reason nothing
//! fires behind it.
//!
//! # Capability
//! The operator holds one at the open epoch and the least event time that it may still emit at: that of its first
//! event-time timer, or where its input stands in event time if there is a processing-time timer. So what a timer emits
//! is not late downstream, and the watermark downstream is held back by no more than that. It moves on with the frontier
//! and at every barrier, after the snapshot (I3), and is dropped when there is no timer and at the end of input.
//!
//! # Failure
//! A timer is in the checkpoint until it has fired in an epoch that the checkpoint holds. Restored, what is overdue fires
//! at once.

use std::rc::Rc;
use std::time::Duration;

use timely::container::NoopBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::CapabilityTrait;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::progress::frontier::MutableAntichain;

use crate::connect::Record;
use crate::format::SectionHeader;
use crate::format::SectionKind;
use crate::ids::{Epoch, Name};
use crate::runtime::chain::{Gate, Origin};
use crate::runtime::context::{
    Alarm, Contribution, SectionPart, SectionTask, WorkerContext, event_header, event_section,
};
use crate::runtime::keyed::{Session, native_part, watermark_section};
use crate::runtime::operator::{FrozenOperator, Held, Inputs};
use crate::runtime::outgoing::Outgoing;
use crate::runtime::pace::Pace;
use crate::runtime::pool::Pool;
use crate::runtime::scope_name;
use crate::runtime::time::Time;
use crate::state::hash::stable_hash;
use crate::state::{Key, SnapshotForm};

/// Timers that fire in one step, at the most.
const FIRED_MAX: usize = 8192;

/// Which time a timer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimeDomain {
    /// Event time, as the watermark tells it.
    EventTime,
    /// Processing time: the clock of the machine.
    ProcessingTime,
}

/// A timer that fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer {
    /// The time it was registered for. Units: milliseconds, of event time or since 1970.
    pub time: i64,
    /// Of which time.
    pub domain: TimeDomain,
}

/// Where an operator stands in both times.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// The least event time that may still come.
    pub(crate) event: i64,
    pub(crate) now: i64,
}

impl Moment {
    pub(crate) fn watermark(self) -> i64 {
        if self.ended() { i64::MAX } else { self.event.saturating_sub(1) }
    }

    /// Whether the input has ended.
    fn ended(self) -> bool {
        self.event == i64::MAX
    }
}

/// The first times that a key of the operator waits for, one of each domain.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Waits {
    pub(crate) event: Option<i64>,
    pub(crate) processing: Option<i64>,
}

impl Waits {
    /// The least event time that the operator may still emit at. `None` if it has nothing to emit by itself.
    fn least(self, at: Moment) -> Option<i64> {
        if at.ended() || self.processing.is_none() {
            return self.event;
        }
        Some(self.event.map_or(at.event, |event| event.min(at.event)))
    }

    fn event_is_due(self, at: Moment) -> bool {
        self.event.is_some_and(|time| time <= at.watermark())
    }

    /// Which domain is due: event time first.
    fn due(self, at: Moment) -> Option<TimeDomain> {
        if self.event_is_due(at) {
            return Some(TimeDomain::EventTime);
        }
        let due = !at.ended() && self.processing.is_some_and(|time| time <= at.now);
        due.then_some(TimeDomain::ProcessingTime)
    }
}

/// What an operator does with its records and its times, and what it keeps. `B`: the records of a broadcast input, if it has one.
pub(crate) trait TimedLogic<K: Key, V, B, O>: 'static {
    /// Says what time it is.
    fn set_now(&mut self, now: i64);
    /// A batch of records comes, with keys of these hashes.
    fn prepare(&mut self, hashes: &[u64]);
    /// A record.
    fn record(&mut self, hash: u64, key: &K, value: V, at: Moment, out: &mut Vec<O>);
    /// A broadcast record.
    fn broadcast(&mut self, _record: B, _at: Moment, _out: &mut Vec<O>) {}
    /// What keys wait for. Neither is later than what the first key waits for.
    fn waits(&self) -> Waits;
    /// Calls the first key that waits for a time of `domain`, which has come.
    fn fire(&mut self, domain: TimeDomain, at: Moment, out: &mut Vec<O>);
    /// Freezes all states; also what the backend may keep in files.
    fn freeze(&mut self, operator: &Name, form: SnapshotForm) -> FrozenOperator;
}

/// The section that keeps the event time at which an operator held the right to emit. What is behind the operator has seen no
/// later watermark, on any worker, and may not before what it waited for has come: so every worker of a restored job needs to
/// know the least of these.
pub(crate) fn held_header(operator: &Name) -> SectionHeader {
    event_header(operator, "timers-event", SectionKind::EventTimers)
}

struct Processor<K, V, B, O, L> {
    logic: L,
    /// The right to send what is emitted when a time has come.
    held: Option<Capability<Time>>,
    hashes: Vec<u64>,
    outgoing: Outgoing<O>,
    inputs: Pool<(K, V)>,
    broadcasts: Pool<B>,
    pace: Pace,
    /// Keys that may still be called in this step.
    room: usize,
}

impl<K, V, B, O, L> Processor<K, V, B, O, L>
where
    K: Key,
    V: Record,
    B: Record,
    O: Record,
    L: TimedLogic<K, V, B, O>,
{
    fn process<C: CapabilityTrait<Time>>(
        &mut self,
        capability: &C,
        records: &mut Vec<(K, V)>,
        at: Moment,
        output: &mut Session<'_, O>,
    ) {
        self.hashes.clear();
        self.hashes.extend(records.iter().map(|(key, _)| stable_hash(key)));
        self.logic.prepare(&self.hashes);
        let mut hashed = records.drain(..).zip(&self.hashes);
        self.outgoing.send(output, capability, |out| {
            let Some(((key, value), hash)) = hashed.next() else { return false };
            self.logic.record(*hash, &key, value, at, out);
            true
        });
        drop(hashed);
        self.inputs.give(std::mem::take(records));
    }

    fn broadcast<C: CapabilityTrait<Time>>(
        &mut self,
        capability: &C,
        records: &mut Vec<B>,
        at: Moment,
        output: &mut Session<'_, O>,
    ) {
        let mut each = records.drain(..);
        self.outgoing.send(output, capability, |out| {
            let Some(record) = each.next() else { return false };
            self.logic.broadcast(record, at, out);
            true
        });
        drop(each);
        self.broadcasts.give(std::mem::take(records));
    }

    /// Takes hold of what is needed to send when a time comes, if that is an earlier time than is held. `right` is one to send
    /// at the time of the batch that made a key wait.
    fn hold(&mut self, at: Moment, open: Epoch, right: impl FnOnce() -> Capability<Time>) {
        let Some(least) = self.logic.waits().least(at) else { return };
        if self.held.as_ref().is_some_and(|held| held.time().event <= least) {
            return;
        }
        let mut right = right();
        let (epoch, event) = (right.time().epoch().max(open), right.time().event.max(least));
        right.downgrade(&Time::new(epoch, event));
        if self.held.as_ref().is_none_or(|held| event < held.time().event) {
            self.held = Some(right);
        }
    }

    /// Calls the keys whose time has come. Returns whether nothing of event time is left for another step: what comes behind
    /// that waits for it. Nothing waits for processing time.
    fn fire(&mut self, at: Moment, output: &mut Session<'_, O>) -> bool {
        if self.logic.waits().due(at).is_none() {
            return true;
        }
        let held = self.held.as_ref().expect("while keys wait there is a right to send");
        let before = self.room;
        // SUBTLE: a processing-time timer that registers itself for now would be due again and again. It uses up the room
        // of this step; the alarm goes off in the next.
        let (logic, room) = (&mut self.logic, &mut self.room);
        self.outgoing.send(output, held, |out| {
            if *room == 0 {
                return false;
            }
            let Some(domain) = logic.waits().due(at) else { return false };
            *room -= 1;
            logic.fire(domain, at, out);
            true
        });
        self.pace.released(before - self.room);
        !self.logic.waits().event_is_due(at)
    }

    /// Moves what is held on, as far as waiting keys and the open epoch let it.
    fn settle(&mut self, at: Moment, open: Epoch) {
        let Some(least) = self.logic.waits().least(at) else {
            self.held = None;
            return;
        };
        let held = self.held.as_mut().expect("while keys wait there is a right to send");
        let time = *held.time();
        let next = Time::new(time.epoch().max(open), time.event.max(least));
        if next != time {
            held.downgrade(&next);
        }
    }

    fn freeze(&mut self, epoch: Epoch, operator: &Name, context: &WorkerContext) -> Contribution {
        if !context.shared.durable {
            return Contribution::nothing();
        }
        let start = context.now();
        let form = context.snapshot_form(epoch);
        let (mut sections, snapshot) = self.logic.freeze(operator, form);
        let event = self.held.as_ref().map(|held| held.time().event);
        let write_event =
            event.map_or_else(|| -> SectionTask { Box::new(|_| Ok(())) }, event_section);
        sections.push(SectionPart::plain(held_header(operator), write_event));
        let mut contribution = Contribution::state(sections, context.now().saturating_sub(start));
        contribution.native = snapshot.map(|snapshot| native_part(snapshot, operator, context));
        contribution
    }
}

/// Builds the operator of a logic, which is restored already: what it holds is of the key groups that this worker owns.
/// `shown`: what event time was shown before the restored snapshot.
pub(crate) fn timed<'scope, K, V, B, O, L>(
    (main, broadcast): Inputs<'scope, (K, V), B>,
    origins: Vec<Origin>,
    context: &Rc<WorkerContext>,
    name: &Name,
    shown: i64,
    logic: L,
) -> Stream<'scope, Time, Vec<O>>
where
    K: Key,
    V: Record,
    B: Record,
    O: Record,
    L: TimedLogic<K, V, B, O>,
{
    let scope = main.scope();
    let mut builder = OperatorBuilder::new(name.to_string(), scope);
    let (output, results) = builder.new_output::<Vec<O>>();
    let mut output = OutputBuilder::<_, NoopBuilder<Vec<O>>>::from(output);
    let mut main = builder.new_input(main, Pipeline);
    let mut broadcast = broadcast.map(|broadcast| builder.new_input(broadcast, Pipeline));
    let activator = scope.activator_for(builder.operator_info().address);
    let context = Rc::clone(context);
    let participant = context.participant(name.clone());
    // The end of the job may be put off after timers have stopped for it.
    context.origin(activator.clone());
    let alarm = Alarm::new(&context, activator.clone());
    let restored = Origin::restored_event(&origins);
    let mode = context.config().checkpoints.mode;
    let mut gate = Gate::new(mode, context.shared.first_epoch, origins);
    gate.resume_at(shown);
    let mut processor = Processor::<K, V, B, O, L> {
        logic,
        held: None,
        hashes: Vec::new(),
        outgoing: Outgoing::new(&context),
        inputs: context.pool(),
        broadcasts: context.pool(),
        pace: Pace::new(&context, FIRED_MAX),
        room: 0,
    };
    let operator = scope_name(name.as_str());
    let name = name.clone();
    builder.build(move |mut capabilities| {
        // What was restored needs a right to send before any record comes.
        processor.held = capabilities.pop();
        processor.settle(Moment { event: restored, now: 0 }, gate.open());
        activator.activate();
        move |frontiers| {
            let _scope = operator.enter();
            let frontiers: Vec<&MutableAntichain<Time>> = frontiers.iter().collect();
            if frontiers.iter().all(|frontier| frontier.is_empty()) {
                // The job is over. What still waits is in the final checkpoint, if there is one.
                processor.held = None;
                alarm.wake_at.set(None);
                gate.barrier_passed(&frontiers);
                return;
            }
            let mut output = output.activate();
            let now = context.unix_ms();
            processor.logic.set_now(now);
            let last = context.final_epoch();
            processor.room = processor.pace.quantum(&context).max(1);
            let mut arrived = false;
            let mut burst = false;
            loop {
                let passed = gate.barrier_passed(&frontiers);
                let open = gate.open();
                let at = Moment { event: gate.event_of(&frontiers), now };
                let fires = match last {
                    Some(last) if open == last => true,
                    Some(last) => open < last && !passed,
                    None => !passed,
                };
                if fires && !processor.fire(at, &mut output) {
                    burst = true;
                    break;
                }
                match gate.next_open() {
                    Some(Held::Main(capability, mut records)) => {
                        processor.process(&capability, &mut records, at, &mut output);
                        processor.hold(at, open, || capability);
                        continue;
                    }
                    Some(Held::Broadcast(capability, mut records)) => {
                        processor.broadcast(&capability, &mut records, at, &mut output);
                        continue;
                    }
                    None => {}
                }
                if !arrived {
                    arrived = true;
                    if let Some(broadcast) = &mut broadcast {
                        broadcast.for_each(|capability, records| {
                            let held =
                                || Held::Broadcast(capability.retain(0), std::mem::take(records));
                            if gate.admits_or_holds(*capability.time(), held) {
                                processor.broadcast(&capability, records, at, &mut output);
                            }
                        });
                    }
                    main.for_each(|capability, records| {
                        let held = || Held::Main(capability.retain(0), std::mem::take(records));
                        if gate.admits_or_holds(*capability.time(), held) {
                            processor.process(&capability, records, at, &mut output);
                            processor.hold(at, open, || capability.retain(0));
                        }
                    });
                    continue;
                }
                if !passed {
                    break;
                }
                let mut contribution = processor.freeze(gate.open(), &name, &context);
                contribution.sections.extend(watermark_section(&name, gate.shown(), &context));
                context.hand_in(open, participant, contribution);
                gate.advance();
                processor.settle(at, gate.open());
            }
            gate.pause(burst);
            let at = Moment { event: gate.event_of(&frontiers), now };
            processor.settle(at, gate.open());
            if burst {
                activator.activate();
            }
            let next =
                processor.logic.waits().processing.filter(|_| {
                    !burst && !at.ended() && last.is_none_or(|last| gate.open() <= last)
                });
            alarm.wake_at.set(next.map(|time| {
                let wait = u64::try_from(time.saturating_sub(now)).unwrap_or(0);
                context.now().saturating_add(Duration::from_millis(wait))
            }));
        }
    });
    results
}
