//! The operator that gives a stream a new event time, in the middle of a job.
//!
//! # Capability
//! What event time its input has says nothing about its output, so timely knows of no way from the one to the other. The
//! operator holds one capability, at the open epoch and the event time that it has come to itself, and sends all records with
//! it. It moves on in event time once a watermark interval, in the epoch at every barrier after the snapshot (I3), to
//! the end of event time with the input, and is dropped when the input is over.
//!
//! # By the clock
//! Event time may be that of the machine's clock, in ticks. Then it moves on whether records come or not: the operator wakes up for
//! it.
//!
//! # Event time across a restore (I9)
//! Each instance keeps its watermark in the snapshot. What is behind it has seen the least of all instances at the most, so
//! every instance of a restored job starts from the least.
//!
//! # Failure
//! A crash takes back what was not in the checkpoint, and the replay repeats it.

use std::rc::Rc;
use std::time::Duration;

use timely::container::NoopBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::connect::Record;
use crate::format::{SectionHeader, SectionKind};
use crate::ids::Name;
use crate::protocol::watermark::{SplitState, SplitWatermarks, event_coordinate};
use crate::runtime::chain::{Gate, Origin};
use crate::runtime::context::{
    Alarm, Contribution, SectionPart, WorkerContext, event_header, event_section,
};
use crate::runtime::event_clock::{EventClock, Pressure};
use crate::runtime::event_time::EventTime;
use crate::runtime::scope_name;
use crate::runtime::time::Time;

/// The section that keeps the watermark of each instance.
pub(crate) fn assigned_header(operator: &Name) -> SectionHeader {
    event_header(operator, "assigned-watermark", SectionKind::Watermark)
}

/// One instance of the operator, which reads as if from one split.
struct Instance {
    watermarks: SplitWatermarks,
    clock: EventClock,
    ended: bool,
}

impl Instance {
    /// Moves event time on, to its end with the input. Returns when there may be something to move on again.
    fn tick(&mut self, ended: bool, context: &WorkerContext) -> Option<Duration> {
        if std::mem::replace(&mut self.ended, ended) {
            return None;
        }
        let pressure = if ended { Pressure::Ended } else { Pressure::Usual };
        self.clock.tick(&mut self.watermarks, pressure, context).1
    }
}

/// Gives the records of `stream` the event time `event_time`. `restored`: the least watermark of the checkpoint. `number` is
/// that of the operator among those that tell others where they are.
pub(crate) fn assign<'scope, D: Record>(
    stream: Stream<'scope, Time, Vec<D>>,
    origins: Vec<Origin>,
    context: &Rc<WorkerContext>,
    name: &Name,
    number: u32,
    restored: i64,
    event_time: EventTime<D>,
) -> Stream<'scope, Time, Vec<D>> {
    let scope = stream.scope();
    let mut builder = OperatorBuilder::new(name.to_string(), scope);
    let (output, results) = builder.new_output::<Vec<D>>();
    let mut output = OutputBuilder::<_, NoopBuilder<Vec<D>>>::from(output);
    let mut input = builder.new_input_connection(stream, Pipeline, []);
    let activator = scope.activator_for(builder.operator_info().address);
    let context = Rc::clone(context);
    let participant = context.participant(name.clone());
    let alarm = Alarm::new(&context, activator.clone());
    let mode = context.config().checkpoints.mode;
    let mut gate = Gate::<Vec<D>>::new(mode, context.shared.first_epoch, origins);
    let EventTime { strategy, timestamp, tick } = event_time;
    let tick_ms = tick.map(|tick| i64::try_from(tick.as_millis()).unwrap_or(i64::MAX).max(1));
    let split = SplitState { watermark: restored, finished: false };
    let mut instance = Instance {
        watermarks: SplitWatermarks::new(&strategy, &[split], context.now()),
        clock: EventClock::new(number, number..=number, event_coordinate(restored)),
        ended: false,
    };
    let operator = scope_name(name.as_str());
    let name = name.clone();
    builder.build(move |mut capabilities| {
        let mut held: Option<Capability<Time>> = capabilities.pop();
        if let Some(held) = &mut held {
            held.downgrade(&Time::new(gate.open(), instance.clock.event()));
        }
        activator.activate();
        move |frontiers| {
            let _scope = operator.enter();
            let frontier = &frontiers[0];
            if frontier.is_empty() {
                held = None;
                alarm.wake_at.set(None);
                gate.barrier_passed(&[frontier]);
                return;
            }
            let Some(held) = &mut held else { return };
            let mut output = output.activate();
            let now = context.now();
            // By the clock: event time is at the last tick, whether records come or not.
            let mut next_tick = None;
            if let Some(tick_ms) = tick_ms {
                let unix_ms = context.unix_ms();
                let since = unix_ms.rem_euclid(tick_ms);
                instance.watermarks.observe(0, [unix_ms.saturating_sub(since)], now);
                instance.clock.stir();
                next_tick = Some(now + Duration::from_millis((tick_ms - since).unsigned_abs()));
            }
            let mut give = |held: &Capability<Time>, to: &mut Instance, records: &mut Vec<D>| {
                if let Some(timestamp) = &timestamp {
                    to.watermarks.observe(0, records.iter().map(timestamp), now);
                    to.clock.stir();
                }
                output.session_with_builder(held).give_container(records);
            };
            input.for_each(|capability, records| {
                let time = *capability.time();
                if gate.admits(time.epoch()) {
                    give(held, &mut instance, records);
                } else {
                    gate.hold(time, std::mem::take(records));
                }
            });
            while gate.barrier_passed(&[frontier]) {
                let mut contribution = Contribution::nothing();
                if context.shared.durable {
                    let kept = event_section(instance.watermarks.state(0).watermark);
                    let section = SectionPart::plain(assigned_header(&name), kept);
                    contribution = Contribution::state(vec![section], Duration::ZERO);
                }
                context.hand_in(gate.open(), participant, contribution);
                gate.advance();
                held.downgrade(&Time::new(gate.open(), instance.clock.event()));
                while let Some(mut records) = gate.next_open() {
                    give(held, &mut instance, &mut records);
                }
            }
            let over = |time: &Time| time.event == i64::MAX;
            let ended = frontier.frontier().iter().all(over) && !gate.holds();
            let again = instance.tick(ended, &context);
            let next_tick = next_tick.filter(|_| !ended);
            alarm.wake_at.set(again.into_iter().chain(next_tick).min());
            if held.time().event < instance.clock.event() {
                held.downgrade(&Time::new(gate.open(), instance.clock.event()));
            }
        }
    });
    results
}
