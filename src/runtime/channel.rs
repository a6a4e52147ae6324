//! The receiving side of an exchange or of a feedback edge: all waiting data waits here.
//!
//! It pulls from the network at once, keeps batches in the queue of the [`protocol::channel`](crate::protocol::channel)
//! machine, and releases them downstream in quanta that adapt to what the chain behind it can do in one step. It takes
//! part in checkpoints: at every barrier it hands in its log, which is empty unless the barrier overtook something.
//!
//! # Capabilities
//! Behind an exchange a batch keeps the capability that it came with; restamping delays it. Behind a feedback edge
//! timely knows of no way from the input to the output (a cycle could not make progress), and the channel holds one
//! capability of its own: at the epoch that it releases in, and at the end of event time, so that what goes round does
//! not hold event time back.
//!
//! # Cost
//! The worker thread hands the batches of a log over; a snapshot thread serializes them. Until it has, they are shared,
//! and a batch that is released in the meantime is cloned.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use timely::container::NoopBuilder;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, Stream};
use timely::progress::frontier::MutableAntichain;
use timely::scheduling::Activator;

use crate::connect::Record;
use crate::ids::{Epoch, Name};
use crate::protocol::channel::{Channel, ChannelKind, Effect, Event};
use crate::runtime::batch::{Batch, ByTarget};
use crate::runtime::chain::{Origin, lowest_epoch};
use crate::runtime::channel_log::{ChannelLog, GroupOf, RestoredLog, SharedRecords};
use crate::runtime::context::{AlarmControl, Contribution, WorkerContext};
use crate::runtime::counters::ChannelCounters;
use crate::runtime::pace::Pace;
use crate::runtime::scope_name;
use crate::runtime::time::Time;

/// Records that a channel releases in one step, at the most.
///
/// What a record costs shows only after a step; so this also bounds how long one step takes when records become slow.
const RELEASE_RECORDS_MAX: usize = 1 << 13;

/// How long a channel releases nothing for the sake of a checkpoint: because its barrier is about to overtake, and only
/// waits for others to hear of it, which takes them a step; or so that an ack is not kept waiting.
const WAIT_MAX: Duration = Duration::from_millis(50);
/// How many times as long as it has waited a channel does not wait again.
const WAIT_SHARE: u32 = 10;
/// How many records' time a channel leaves to acks and announcements, if a record takes longer than those do.
const ANNOUNCE_WAIT_RECORDS: u32 = 2;

/// What a channel is built with.
pub(crate) struct ChannelSpec<D> {
    pub(crate) name: Name,
    /// How long a barrier waits for what is queued before it overtakes; `None`: for ever.
    pub(crate) alignment_timeout: Option<Duration>,
    /// The key group of a record, for what is logged of a keyed channel.
    pub(crate) group_of: Option<GroupOf<D>>,
    /// What a restored checkpoint has in the channel's logs for this worker.
    pub(crate) restored: RestoredLog<D>,
}

/// A batch in the queue: what is left of it, and the right to send at its time.
struct Waiting<D> {
    capability: Capability<Time>,
    records: SharedRecords<D>,
    len: usize,
    from: u32,
    weight: u64,
}

/// When barriers overtake. The driver wakes the channel.
struct Timers {
    at: RefCell<VecDeque<(Duration, Epoch)>>,
    /// When the channel goes on releasing at the latest, if it waits.
    release_at: Cell<Option<Duration>>,
    activator: Activator,
}

impl AlarmControl for Timers {
    fn tick(&self, now: Duration) {
        if self.deadline().is_some_and(|at| at <= now) {
            self.activator.activate();
        }
    }

    fn deadline(&self) -> Option<Duration> {
        let timer = self.at.borrow().front().map(|(at, _)| *at);
        timer.into_iter().chain(self.release_at.get()).min()
    }
}

impl Timers {
    fn fired(&self, now: Duration) -> Option<Epoch> {
        let mut timers = self.at.borrow_mut();
        let fired = timers.front().is_some_and(|(at, _)| *at <= now);
        if fired { timers.pop_front().map(|(_, epoch)| epoch) } else { None }
    }
}

/// The hands of the machine.
struct Hands<D: Record> {
    spec: ChannelSpec<D>,
    context: Rc<WorkerContext>,
    participant: usize,
    machine: Channel<Waiting<D>>,
    effects: Vec<Effect>,
    timers: Rc<Timers>,
    /// Timers of checkpoints of which it is not known whether anything may overtake.
    undecided: VecDeque<(Duration, Epoch)>,
    /// The logs of barriers that have not passed.
    logs: BTreeMap<Epoch, (ChannelLog<D>, Duration)>,
    /// The first epoch that the machine has not heard of.
    unannounced: Epoch,
    counters: Arc<ChannelCounters>,
    held_since: Option<Duration>,
    /// When a timer fired last.
    fired_at: Duration,
    wait: Wait,
}

/// For how long nothing was released for the sake of a checkpoint.
#[derive(Default)]
struct Wait {
    /// The worker's epoch when it was waited last: after the next checkpoint has begun it is another one.
    epoch: Option<Epoch>,
    /// Since when, if it is waited now.
    since: Option<Duration>,
    /// For how long before, in that epoch.
    before: Duration,
    /// When it may be waited for another checkpoint.
    next: Duration,
}

impl Wait {
    /// Until when to wait, if it should be until `wanted`.
    fn until(&mut self, wanted: Option<Duration>, epoch: Epoch, now: Duration) -> Option<Duration> {
        if self.epoch != Some(epoch) {
            self.end(now);
            if now < self.next {
                return None;
            }
            *self = Self { epoch: Some(epoch), ..Self::default() };
        }
        let waited = self.before + self.since.map_or(Duration::ZERO, |since| now - since);
        let wanted = wanted.filter(|wanted| now < *wanted && waited < WAIT_MAX);
        if let Some(wanted) = wanted {
            self.since.get_or_insert(now);
            Some(wanted.min(now + (WAIT_MAX - waited)))
        } else {
            self.end(now);
            None
        }
    }

    fn end(&mut self, now: Duration) {
        if let Some(since) = self.since.take() {
            self.before += now - since;
            self.next = now + self.before * WAIT_SHARE;
        }
    }
}

impl<D: Record> Hands<D> {
    fn new(
        kind: ChannelKind,
        spec: ChannelSpec<D>,
        context: &Rc<WorkerContext>,
        activator: &Activator,
    ) -> Self {
        let first = context.shared.first_epoch;
        let mode = context.config().checkpoints.mode;
        let timers = Rc::new(Timers {
            at: RefCell::default(),
            release_at: Cell::new(None),
            activator: activator.clone(),
        });
        context.alarms.borrow_mut().push(Rc::clone(&timers) as Rc<dyn AlarmControl>);
        context.origin(activator.clone());
        Self {
            participant: context.participant(spec.name.clone()),
            counters: context.shared.counters.channel(&spec.name, context.index),
            spec,
            context: Rc::clone(context),
            machine: Channel::new(kind, mode, first),
            effects: Vec::new(),
            timers,
            undecided: VecDeque::new(),
            logs: BTreeMap::new(),
            unannounced: first,
            held_since: None,
            fired_at: Duration::ZERO,
            wait: Wait::default(),
        }
    }

    /// Queues what was restored. `capability` is the output's first.
    fn restore(&mut self, capability: &Capability<Time>) {
        let epoch = self.context.shared.first_epoch;
        for (event, records) in std::mem::take(&mut self.spec.restored.batches) {
            let capability = capability.delayed(&Time::new(epoch, event));
            let len = records.len();
            self.counters.arrived(len as u64, 0);
            let records = SharedRecords::Own(records);
            // Nobody has sent it, so it is in nobody's balance.
            self.machine.restore(Waiting { capability, records, len, from: 0, weight: 0 });
        }
    }

    /// Tells the machine of the checkpoints that the worker knows to have begun.
    fn announce(&mut self) {
        while self.unannounced < self.context.epoch() {
            self.step(Event::Begun(self.unannounced));
            self.unannounced = self.unannounced.next();
        }
    }

    /// A record of a later epoch is news of a checkpoint, whichever comes first.
    fn hear_of(&mut self, epoch: Epoch) {
        if epoch > self.context.epoch() {
            self.context.begin(epoch.before());
            self.announce();
        }
    }

    fn arrived(&mut self, epoch: Epoch, batch: Batch<D>, capability: Capability<Time>) {
        let Batch { records, from, weight, .. } = batch;
        let len = records.len();
        self.counters.arrived(len as u64, weight);
        self.context.arrived(from as usize, weight);
        let records = SharedRecords::Own(records);
        let batch = Waiting { capability, records, len, from, weight };
        self.step(Event::Batch { epoch, batch });
    }

    fn step(&mut self, event: Event<Waiting<D>>) {
        self.machine.step(event, &mut self.effects);
        if !self.effects.is_empty() {
            self.carry_out();
        }
    }

    /// Starts the timers of the checkpoints whose barriers may overtake, as soon as that is known.
    fn decide(&mut self) {
        while let Some((at, epoch)) = self.undecided.front().copied() {
            let Some(may_overtake) = self.context.may_overtake(epoch) else { break };
            self.undecided.pop_front();
            if may_overtake {
                self.timers.at.borrow_mut().push_back((at, epoch));
            }
        }
    }

    /// Feeds the timers that have fired.
    fn fire(&mut self) {
        self.decide();
        if self.timers.at.borrow().is_empty() {
            return;
        }
        let now = self.context.now();
        while let Some(epoch) = self.timers.fired(now) {
            self.fired_at = now;
            self.step(Event::Timer(epoch));
        }
    }

    #[cold]
    fn carry_out(&mut self) {
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::StartTimer(epoch) => {
                    // A job that writes no checkpoints has no log to write either.
                    if let Some(timeout) = self.spec.alignment_timeout
                        && self.context.shared.durable
                    {
                        let at = self.context.now().saturating_add(timeout);
                        self.undecided.push_back((at, epoch));
                    }
                }
                Effect::Log { epoch, batches } => {
                    let start = self.context.now();
                    let (log, sync) = self.logs.entry(epoch).or_default();
                    for (_, waiting) in self.machine.queue().range_mut(batches) {
                        let event = waiting.capability.time().event;
                        self.counters.logged(waiting.len as u64, waiting.weight);
                        log.add(event, waiting.len, &mut waiting.records);
                    }
                    *sync += self.context.now().saturating_sub(start);
                }
                Effect::Restamp { batches, to } => {
                    for (_, waiting) in self.machine.queue().range_mut(batches) {
                        let event = waiting.capability.time().event;
                        waiting.capability = waiting.capability.delayed(&Time::new(to, event));
                    }
                }
                Effect::Passed { epoch, .. } => {
                    let (log, sync) = self.logs.remove(&epoch).unwrap_or_default();
                    let in_flight_records = log.records();
                    let sections = if self.context.shared.durable {
                        log.into_sections(
                            &self.spec.name,
                            self.spec.group_of,
                            self.context.config().max_parallelism,
                        )
                    } else {
                        Vec::new()
                    };
                    let contribution =
                        Contribution { sections, sync, in_flight_records, native: None };
                    self.context.hand_in(epoch, self.participant, contribution);
                }
            }
        }
    }

    /// Keeps count of the time for which batches were held.
    fn measure_held(&mut self) {
        match (self.machine.ahead_batches() > 0, self.held_since) {
            (true, None) => self.held_since = Some(self.context.now()),
            (false, Some(since)) => {
                self.held_since = None;
                self.counters.held(self.context.now().saturating_sub(since));
            }
            _ => {}
        }
    }

    /// Until when nothing should be released, because a checkpoint waits for the end of this step more urgently. For one
    /// checkpoint that is [`WAIT_MAX`] in all; and it is a tenth of the time, however often checkpoints are taken.
    fn waits(&mut self, pace: &Pace) -> Option<Duration> {
        let overtakes = self.machine.expects_to_overtake();
        let overtakes = overtakes.then(|| self.fired_at + WAIT_MAX);
        let announces = self.context.handed_in_at().zip(pace.slow_record());
        let announces = announces.map(|(since, record)| since + record * ANNOUNCE_WAIT_RECORDS);
        let until = overtakes.into_iter().chain(announces).max();
        if until.is_none() && self.wait.since.is_none() {
            return None;
        }
        self.wait.until(until, self.context.epoch(), self.context.now())
    }

    /// Releases what a step has room for. Returns whether there is more that may be released.
    fn release(
        &mut self,
        chain: &Origin,
        pace: &mut Pace,
        mut give: impl FnMut(&Capability<Time>, &mut Vec<D>),
    ) -> bool {
        let mut room = pace.quantum(&self.context);
        let waits = self.waits(pace);
        self.timers.release_at.set(waits);
        if waits.is_some() {
            return false;
        }
        self.counters.set_quantum(room);
        // What is behind the final barrier is in its checkpoint; sinks must not see it before the job goes on from there.
        let last = self.context.final_epoch().unwrap_or(Epoch(u64::MAX));
        let limit = chain.limit().min(last);
        let mut taken = (0, 0);
        while room > 0 {
            let Some((epoch, waiting)) = self.machine.queue().front_mut() else { break };
            if *epoch > limit {
                break; // A gate behind us has not taken its snapshot; it will activate us.
            }
            let Waiting { capability, records, len, from, weight: left } = waiting;
            let take = (*len).min(room);
            let whole = take == *len;
            let weight = if whole { *left } else { *left * take as u64 / *len as u64 };
            let mut records = records.take_first(take);
            *len -= take;
            *left -= weight;
            if weight > 0 {
                self.context.released(*from as usize, weight);
            }
            give(&*capability, &mut records);
            room -= take;
            taken = (taken.0 + take, taken.1 + weight);
            if whole {
                self.machine.queue().pop_front();
            }
        }
        if taken.0 > 0 {
            pace.released(taken.0);
            self.counters.released(taken.0 as u64, taken.1);
            if self.machine.next() < self.machine.open() {
                self.step(Event::Released);
            }
        }
        self.machine.queue().front().is_some_and(|(epoch, _)| *epoch <= limit)
    }

    fn frontier(&mut self, frontier: &MutableAntichain<Time>, before: &mut Option<Option<Epoch>>) {
        let lowest = lowest_epoch(frontier);
        if before.replace(lowest) != Some(lowest) {
            self.step(Event::Frontier(lowest));
        }
    }
}

/// Builds a channel behind an exchange, and returns it with the head of the chain behind it.
pub(crate) fn channel<'scope, D: Record>(
    stream: Stream<'scope, Time, Batch<D>>,
    context: &Rc<WorkerContext>,
    spec: ChannelSpec<D>,
    restored_event: i64,
) -> (Stream<'scope, Time, Vec<D>>, Origin) {
    let scope = stream.scope();
    let mut builder = OperatorBuilder::new(format!("{}.channel", spec.name), scope);
    let (output, released) = builder.new_output::<Vec<D>>();
    let mut output = OutputBuilder::<_, NoopBuilder<Vec<D>>>::from(output);
    let mut input = builder.new_input(stream, ByTarget);
    let activator = scope.activator_for(builder.operator_info().address);
    // What waits in logs, at any worker, is still to come.
    let restored_event = restored_event.min(spec.restored.event);
    let origin = Origin::new(activator.clone(), restored_event);
    let chain = origin.clone();
    let operator = scope_name(spec.name.as_str());
    let mut hands = Hands::new(ChannelKind::Exchange, spec, context, &activator);
    builder.build(move |capabilities| {
        for capability in &capabilities {
            hands.restore(capability);
        }
        drop(capabilities);
        let mut pace = Pace::new(&hands.context, RELEASE_RECORDS_MAX);
        let mut frontier_epoch = None;
        move |frontiers| {
            let _scope = operator.enter();
            hands.announce();
            input.for_each(|capability, batch| {
                let epoch = capability.time().epoch();
                hands.hear_of(epoch);
                hands.arrived(epoch, std::mem::take(batch), capability.retain(0));
            });
            hands.frontier(&frontiers[0], &mut frontier_epoch);
            hands.fire();
            hands.measure_held();
            if hands.context.finishing() {
                // What waits is in a checkpoint, or of no checkpoint.
                hands.machine.clear();
            }
            let mut output = output.activate();
            let more = hands.release(&chain, &mut pace, |capability, records| {
                output.session_with_builder(capability).give_container(records);
            });
            if more {
                chain.activator().activate();
            }
        }
    });
    (released, origin)
}

/// A feedback edge whose end is not known yet.
pub(crate) struct Feedback<'scope, D: Record> {
    builder: OperatorBuilder<'scope, Time>,
    output: OutputBuilder<Time, NoopBuilder<Vec<D>>>,
    hands: Hands<D>,
    origin: Origin,
}

/// Begins a feedback edge: what comes out of it, and the head of the chain behind it.
pub(crate) fn feedback<'scope, D: Record>(
    scope: Scope<'scope, Time>,
    context: &Rc<WorkerContext>,
    spec: ChannelSpec<D>,
) -> (Stream<'scope, Time, Vec<D>>, Origin, Feedback<'scope, D>) {
    let mut builder = OperatorBuilder::new(format!("{}.feedback", spec.name), scope);
    let (output, released) = builder.new_output::<Vec<D>>();
    let output = OutputBuilder::<_, NoopBuilder<Vec<D>>>::from(output);
    let activator = scope.activator_for(builder.operator_info().address);
    let origin = Origin::new(activator.clone(), i64::MAX);
    let hands = Hands::new(ChannelKind::Feedback, spec, context, &activator);
    let feedback = Feedback { builder, output, hands, origin: origin.clone() };
    (released, origin, feedback)
}

impl<'scope, D: Record> Feedback<'scope, D> {
    /// Closes the loop.
    pub(crate) fn connect(self, stream: Stream<'scope, Time, Batch<D>>) {
        let Self { mut builder, mut output, mut hands, origin: chain } = self;
        // No way through, as far as timely knows.
        let mut input = builder.new_input_connection(stream, ByTarget, []);
        let operator = scope_name(hands.spec.name.as_str());
        builder.build(move |mut capabilities| {
            let mut own = capabilities.pop();
            if let Some(capability) = &mut own {
                capability.downgrade(&Time::new(hands.machine.open(), i64::MAX));
                hands.restore(capability);
            }
            let mut pace = Pace::new(&hands.context, RELEASE_RECORDS_MAX);
            let mut frontier_epoch = None;
            move |frontiers| {
                let _scope = operator.enter();
                if hands.context.finishing() {
                    // What waits is in a checkpoint, or of no checkpoint.
                    hands.machine.clear();
                    own = None;
                }
                let Some(own) = &mut own else {
                    input.for_each(|_, batch| drop(std::mem::take(batch)));
                    return;
                };
                hands.announce();
                input.for_each(|capability, batch| {
                    let epoch = capability.time().epoch();
                    hands.hear_of(epoch);
                    let time = Time::new(hands.machine.open(), i64::MAX);
                    hands.arrived(epoch, std::mem::take(batch), own.delayed(&time));
                });
                hands.frontier(&frontiers[0], &mut frontier_epoch);
                if own.time().epoch() < hands.machine.open() {
                    own.downgrade(&Time::new(hands.machine.open(), i64::MAX));
                }
                let mut output = output.activate();
                let more = hands.release(&chain, &mut pace, |capability, records| {
                    output.session_with_builder(capability).give_container(records);
                });
                if more {
                    chain.activator().activate();
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_wait_goes_on_in_the_same_checkpoint_up_to_a_limit() {
        let mut wait = Wait::default();
        assert_eq!(wait.until(Some(ms(1_020)), Epoch(2), ms(1_000)), Some(ms(1_020)));
        assert_eq!(wait.until(None, Epoch(2), ms(1_010)), None, "it has overtaken");
        assert_eq!(wait.until(Some(ms(2_000)), Epoch(2), ms(1_015)), Some(ms(1_055)));
        assert_eq!(wait.until(Some(ms(2_000)), Epoch(2), ms(1_055)), None, "50 ms are over");
        assert_eq!(wait.until(Some(ms(2_000)), Epoch(2), ms(1_060)), None);
    }

    #[test]
    fn checkpoints_in_quick_succession_are_waited_for_a_tenth_of_the_time() {
        let mut wait = Wait::default();
        let mut waited = Duration::ZERO;
        for now in 0..10_000 {
            // A new checkpoint every 20 ms, each of which would like to be waited for without end.
            let waits = wait.until(Some(ms(1 << 20)), Epoch(now / 20), ms(now));
            waited += waits.map_or(Duration::ZERO, |_| ms(1));
        }
        assert!((ms(500)..ms(1_200)).contains(&waited), "{waited:?} of 10 s");
    }
}
