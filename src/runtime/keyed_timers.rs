//! Keyed processing with timers: a second function of the user's, called when a time that a key waits for has come.
//!
//! # Ordering
//! An event-time timer is due when the watermark has reached its time. In one activation: what is due fires, then what a
//! gate has held is processed, then what has arrived; after each of these what has become due by it fires. So a timer
//! fires after all records that had to come before it, and before those that come with a later watermark. Timers of one
//! domain fire in the order of their times.
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

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use timely::container::NoopBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::CapabilityTrait;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::scheduling::Activator;

use crate::connect::Record;
use crate::format::shape::EntryShape;
use crate::format::{SectionHeader, SectionKind};
use crate::ids::{Epoch, Name};
use crate::runtime::chain::{Gate, Origin};
use crate::runtime::context::{
    AlarmControl, Contribution, SectionPart, SectionTask, WorkerContext, event_section,
};
use crate::runtime::keyed::{Session, frozen_sections, native_part, watermark_section};
use crate::runtime::outgoing::Outgoing;
use crate::runtime::pace::Pace;
use crate::runtime::pool::Pool;
use crate::runtime::scope_name;
use crate::runtime::shapes::shape_of;
use crate::runtime::states::States;
use crate::runtime::time::Time;
use crate::runtime::timers::Timers;
use crate::state::hash::stable_hash;
use crate::state::{Backend, Key};

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

/// What the functions of an operator with timers see beside the record and the state: where output goes, what time it
/// is, and the timers of the key.
pub struct TimerContext<'a, K: Key, O> {
    out: &'a mut Vec<O>,
    at: Moment,
    timers: &'a mut KeyTimers<K>,
    hash: u64,
    key: &'a K,
}

impl<K: Key, O> std::fmt::Debug for TimerContext<'_, K, O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TimerContext").field("at", &self.at).finish_non_exhaustive()
    }
}

impl<K: Key, O> TimerContext<'_, K, O> {
    /// Emits a record.
    #[inline]
    pub fn emit(&mut self, record: O) {
        self.out.push(record);
    }

    /// The watermark; see [`Context::watermark`](crate::job::Context::watermark). At the end of input it is `i64::MAX`.
    #[must_use]
    pub fn watermark(&self) -> i64 {
        self.at.watermark()
    }

    /// Processing time. It is read once for each batch of records or timers.
    ///
    /// Units: milliseconds since 1970, by the machine's clock, which may be set back.
    #[must_use]
    pub fn now(&self) -> i64 {
        self.at.now
    }

    /// Registers a timer of this key that fires when the watermark has reached `time`, or at once, after this function,
    /// if it has already. A key has at most one event-time timer at each time: to register it again changes nothing.
    ///
    /// At the end of input all event-time timers fire, those included that are registered then. A timer that always
    /// registers the next must stop at a watermark of `i64::MAX`, or the job does not end.
    ///
    /// Units: milliseconds of event time.
    pub fn register_event_timer(&mut self, time: i64) {
        self.timers.event.register(self.hash, self.key, time);
    }

    /// Deletes an event-time timer of this key, if there is one at `time`.
    pub fn delete_event_timer(&mut self, time: i64) {
        self.timers.event.delete(self.hash, self.key, time);
    }

    /// Registers a timer of this key that fires when the clock has reached `time`. A key has at most one processing-time
    /// timer at each time.
    ///
    /// Processing-time timers do not keep a job alive: those that have not fired at the end of input do not fire any more.
    /// After a restart those that are overdue fire at once.
    ///
    /// Units: milliseconds since 1970, as [`TimerContext::now`].
    pub fn register_processing_timer(&mut self, time: i64) {
        self.timers.processing.register(self.hash, self.key, time);
    }

    /// Deletes a processing-time timer of this key, if there is one at `time`.
    pub fn delete_processing_timer(&mut self, time: i64) {
        self.timers.processing.delete(self.hash, self.key, time);
    }
}

/// Where an operator stands in both times.
#[derive(Clone, Copy, Debug)]
struct Moment {
    /// The least event time that may still come.
    event: i64,
    now: i64,
}

impl Moment {
    fn watermark(self) -> i64 {
        if self.ended() { i64::MAX } else { self.event.saturating_sub(1) }
    }

    /// Whether the input has ended.
    fn ended(self) -> bool {
        self.event == i64::MAX
    }
}

const EVENT_TIMERS: &str = "event-timers";
const PROCESSING_TIMERS: &str = "processing-timers";

/// The timers of an operator.
pub(crate) struct KeyTimers<K: Key> {
    pub(crate) event: Timers<K>,
    pub(crate) processing: Timers<K>,
}

impl<K: Key> KeyTimers<K> {
    pub(crate) fn new(backend: &Backend, max_parallelism: u16, groups: &Range<u16>) -> Self {
        Self {
            event: Timers::new(backend, EVENT_TIMERS, max_parallelism, groups),
            processing: Timers::new(backend, PROCESSING_TIMERS, max_parallelism, groups),
        }
    }

    /// The least event time that the operator may still emit at. `None` if it has nothing to emit by itself.
    fn least(&self, at: Moment) -> Option<i64> {
        let event = self.event.first();
        if at.ended() || self.processing.first().is_none() {
            return event;
        }
        Some(event.map_or(at.event, |event| event.min(at.event)))
    }

    fn take_due(&mut self, at: Moment) -> Option<(Timer, u64, K)> {
        if let Some((time, hash, key)) = self.event.take_due(at.watermark()) {
            return Some((Timer { time, domain: TimeDomain::EventTime }, hash, key));
        }
        if at.ended() {
            return None;
        }
        let (time, hash, key) = self.processing.take_due(at.now)?;
        Some((Timer { time, domain: TimeDomain::ProcessingTime }, hash, key))
    }

    fn event_is_due(&self, at: Moment) -> bool {
        self.event.first().is_some_and(|time| time <= at.watermark())
    }

    fn is_due(&self, at: Moment) -> bool {
        self.event_is_due(at)
            || !at.ended() && self.processing.first().is_some_and(|time| time <= at.now)
    }
}

/// The sections that hold an operator's timers: of event time, of processing time, and the event time at which it held the
/// right to emit. What is behind the operator has seen no later watermark, on any worker, and may not before the timers
/// have fired: so every worker of a restored job needs to know the least of these.
pub(crate) fn timer_headers<K: Key>(operator: &Name) -> [SectionHeader; 3] {
    let header = |state, kind, type_name, shape| SectionHeader {
        operator: operator.clone(),
        state: Name::new(state).expect("a constant name"),
        kind,
        type_name,
        type_version: 1,
        shape,
    };
    let (key, value) = (shape_of::<K>(), shape_of::<Vec<i64>>());
    let shape = EntryShape { key, value, expires: false };
    let timers = || format!("{} -> timers", std::any::type_name::<K>());
    [
        header(EVENT_TIMERS, SectionKind::EventTimers, timers(), shape.clone()),
        header(PROCESSING_TIMERS, SectionKind::ProcessingTimers, timers(), shape),
        header(
            "timers-event",
            SectionKind::EventTimers,
            "i64".to_owned(),
            EntryShape::of_values(shape_of::<i64>()),
        ),
    ]
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

/// What an operator with timers is made of: its state, restored already, and its functions.
pub(crate) struct TimedParts<K: Key, S: States<K>, F, T> {
    pub(crate) states: S,
    pub(crate) backend: Backend,
    pub(crate) tables: S::Tables,
    pub(crate) timers: KeyTimers<K>,
    /// What event time was shown before the restored snapshot.
    pub(crate) shown: i64,
    pub(crate) on_record: F,
    pub(crate) on_timer: T,
}

struct Processor<K: Key, V, S: States<K>, O, F, T> {
    parts: TimedParts<K, S, F, T>,
    /// The right to send what timers emit.
    held: Option<Capability<Time>>,
    hashes: Vec<u64>,
    outgoing: Outgoing<O>,
    inputs: Pool<(K, V)>,
    pace: Pace,
    /// Timers that may still fire in this step.
    room: usize,
}

impl<K, V, S, O, F, T> Processor<K, V, S, O, F, T>
where
    K: Key,
    V: Record,
    S: States<K>,
    O: Record,
    F: FnMut(&K, V, &mut S::Access<'_>, &mut TimerContext<'_, K, O>),
    T: FnMut(&K, Timer, &mut S::Access<'_>, &mut TimerContext<'_, K, O>),
{
    fn process<C: CapabilityTrait<Time>>(
        &mut self,
        capability: &C,
        records: &mut Vec<(K, V)>,
        at: Moment,
        output: &mut Session<'_, O>,
    ) {
        let TimedParts { tables, timers, on_record, .. } = &mut self.parts;
        if S::EXPIRES {
            S::sweep(tables, records.len());
        }
        self.hashes.clear();
        self.hashes.extend(records.iter().map(|(key, _)| stable_hash(key)));
        S::prefetch(tables, &self.hashes);
        let mut hashed = records.drain(..).zip(&self.hashes);
        self.outgoing.send(output, capability, |out| {
            let Some(((key, value), hash)) = hashed.next() else { return false };
            let mut state = S::access(tables, *hash, &key);
            let mut context = TimerContext { out, at, timers, hash: *hash, key: &key };
            on_record(&key, value, &mut state, &mut context);
            true
        });
        drop(hashed);
        self.inputs.give(std::mem::take(records));
    }

    /// Takes hold of what timers need to send, if they need an earlier time than is held. `right` is one to send at the
    /// time of the batch that has registered them.
    fn hold(&mut self, at: Moment, open: Epoch, right: impl FnOnce() -> Capability<Time>) {
        let Some(least) = self.parts.timers.least(at) else { return };
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

    /// Fires what is due. Returns whether no event-time timer is left for another step: what comes behind those waits for
    /// them. Nothing waits for processing-time timers.
    fn fire(&mut self, at: Moment, output: &mut Session<'_, O>) -> bool {
        if !self.parts.timers.is_due(at) {
            return true;
        }
        let held = self.held.as_ref().expect("while there are timers there is a right to send");
        let TimedParts { tables, timers, on_timer, .. } = &mut self.parts;
        let before = self.room;
        // SUBTLE: a processing-time timer that registers itself for now would be due again and again. It uses up the room
        // of this step; the alarm goes off in the next.
        let room = &mut self.room;
        self.outgoing.send(output, held, |out| {
            if *room == 0 {
                return false;
            }
            let Some((timer, hash, key)) = timers.take_due(at) else { return false };
            *room -= 1;
            let mut state = S::access(tables, hash, &key);
            let mut context = TimerContext { out, at, timers, hash, key: &key };
            on_timer(&key, timer, &mut state, &mut context);
            true
        });
        self.pace.released(before - self.room);
        !timers.event_is_due(at)
    }

    /// Moves what is held on, as far as the timers and the open epoch let it.
    fn settle(&mut self, at: Moment, open: Epoch) {
        let Some(least) = self.parts.timers.least(at) else {
            self.held = None;
            return;
        };
        let held = self.held.as_mut().expect("while there are timers there is a right to send");
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
        let TimedParts { states, backend, tables, timers, .. } = &mut self.parts;
        let form = context.snapshot_form(epoch);
        let ((mut sections, frozen), snapshot) = backend.freeze_together(form, || {
            let sections = frozen_sections::<K, S>(states, tables, operator, form);
            (sections, [timers.event.freeze(form), timers.processing.freeze(form)])
        });
        let event = self.held.as_ref().map(|held| held.time().event);
        let write_event =
            event.map_or_else(|| -> SectionTask { Box::new(|_| Ok(())) }, event_section);
        let [event_timers, processing_timers, event_header] = timer_headers::<K>(operator);
        let headers = [event_timers, processing_timers];
        sections.extend(headers.into_iter().zip(frozen).map(|(h, f)| SectionPart::state(h, f)));
        sections.push(SectionPart::plain(event_header, write_event));
        let mut contribution = Contribution::state(sections, context.now().saturating_sub(start));
        contribution.native = snapshot.map(|snapshot| native_part(snapshot, operator, context));
        contribution
    }
}

/// Builds a keyed operator with timers. What it holds is of the key groups that this worker owns.
pub(crate) fn keyed_with_timers<'scope, K, V, S, O, F, T>(
    stream: Stream<'scope, Time, Vec<(K, V)>>,
    origins: Vec<Origin>,
    context: &Rc<WorkerContext>,
    name: &Name,
    parts: TimedParts<K, S, F, T>,
) -> Stream<'scope, Time, Vec<O>>
where
    K: Key,
    V: Record,
    S: States<K>,
    O: Record,
    F: FnMut(&K, V, &mut S::Access<'_>, &mut TimerContext<'_, K, O>) + 'static,
    T: FnMut(&K, Timer, &mut S::Access<'_>, &mut TimerContext<'_, K, O>) + 'static,
{
    let scope = stream.scope();
    let mut builder = OperatorBuilder::new(name.to_string(), scope);
    let (output, results) = builder.new_output::<Vec<O>>();
    let mut output = OutputBuilder::<_, NoopBuilder<Vec<O>>>::from(output);
    let mut input = builder.new_input(stream, Pipeline);
    let activator = scope.activator_for(builder.operator_info().address);
    let context = Rc::clone(context);
    let participant = context.participant(name.clone());
    // The end of the job may be put off after timers have stopped for it.
    context.origin(activator.clone());
    let alarm = Alarm::new(&context, activator.clone());
    let restored = Origin::restored_event(&origins);
    let mode = context.config().checkpoints.mode;
    let mut gate = Gate::new(mode, context.shared.first_epoch, origins);
    gate.resume_at(parts.shown);
    let mut processor = Processor::<K, V, S, O, F, T> {
        parts,
        held: None,
        hashes: Vec::new(),
        outgoing: Outgoing::new(&context),
        inputs: context.pool(),
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
            let frontier = &frontiers[0];
            if frontier.is_empty() {
                // The job is over. What still waits is in the final checkpoint, if there is one.
                processor.held = None;
                alarm.wake_at.set(None);
                gate.barrier_passed(&[frontier]);
                return;
            }
            let mut output = output.activate();
            let now = context.unix_ms();
            if S::EXPIRES {
                S::set_now(&mut processor.parts.tables, now);
            }
            let last = context.final_epoch();
            processor.room = processor.pace.quantum(&context).max(1);
            let mut arrived = false;
            let mut burst = false;
            loop {
                let passed = gate.barrier_passed(&[frontier]);
                let open = gate.open();
                let at = Moment { event: gate.event(frontier), now };
                let fires = match last {
                    Some(last) if open == last => true,
                    Some(last) => open < last && !passed,
                    None => !passed,
                };
                if fires && !processor.fire(at, &mut output) {
                    burst = true;
                    break;
                }
                if let Some((capability, mut records)) = gate.next_open() {
                    processor.process(&capability, &mut records, at, &mut output);
                    processor.hold(at, open, || capability);
                    continue;
                }
                if !arrived {
                    arrived = true;
                    input.for_each(|capability, records| {
                        let epoch = capability.time().epoch();
                        if gate.admits(epoch) {
                            processor.process(&capability, records, at, &mut output);
                            processor.hold(at, open, || capability.retain(0));
                        } else {
                            let time = *capability.time();
                            gate.hold(time, (capability.retain(0), std::mem::take(records)));
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
            let at = Moment { event: gate.event(frontier), now };
            processor.settle(at, gate.open());
            if burst {
                activator.activate();
            }
            let next =
                processor.parts.timers.processing.first().filter(|_| {
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
