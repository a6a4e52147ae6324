//! The operator that gives a stream a new event time, in the middle of a job.
//!
//! # Capability
//! What event time its input has says nothing about its output, so timely knows of no way from the one to the other. The
//! operator holds one capability, at the open epoch and the event time that it has come to itself, and sends all records with
//! it. It moves on in event time once a watermark interval, in the epoch at every barrier after the snapshot (I3), to
//! the end of event time with the input, and is dropped when the input is over.
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
use crate::format::shape::EntryShape;
use crate::format::{SectionHeader, SectionKind};
use crate::ids::Name;
use crate::protocol::watermark::{SplitState, SplitWatermarks, event_coordinate};
use crate::runtime::chain::{Gate, Origin};
use crate::runtime::context::{Alarm, Contribution, SectionPart, WorkerContext, event_section};
use crate::runtime::event_time::EventTime;
use crate::runtime::scope_name;
use crate::runtime::shapes::shape_of;
use crate::runtime::time::Time;

/// An idle instance looks at the others this much less often while they do not move either. Units: watermark intervals.
const IDLE_INTERVALS: u32 = 10;

/// The section that keeps the watermark of each instance.
pub(crate) fn assigned_header(operator: &Name) -> SectionHeader {
    SectionHeader {
        operator: operator.clone(),
        state: Name::new("assigned-watermark").expect("a constant name"),
        kind: SectionKind::Watermark,
        type_name: "i64".to_owned(),
        type_version: 1,
        shape: EntryShape::of_values(shape_of::<i64>()),
    }
}

/// The event time of one instance.
struct Clock {
    watermarks: SplitWatermarks,
    number: u32,
    /// The least event time that its output may still have.
    event: i64,
    ended: bool,
    tick_at: Duration,
    /// Something came since the last tick.
    unticked: bool,
}

impl Clock {
    /// Moves event time on. Returns when there may be something to move on again, if no record comes.
    fn tick(&mut self, ended: bool, context: &WorkerContext) -> Option<Duration> {
        if self.ended {
            return None;
        }
        let now = context.now();
        if !ended && now < self.tick_at {
            let due = self.unticked || self.watermarks.status().idle;
            let idle = self.watermarks.next_idle().map(|idle| idle.max(self.tick_at));
            return if due { Some(self.tick_at) } else { idle };
        }
        let interval = context.config().watermark_interval;
        self.unticked = false;
        self.tick_at = now + interval;
        self.watermarks.advance(now);
        let mut status = self.watermarks.status();
        if status.idle
            && let Some(watermark) = context.shared.board.idle_target(self.number..=self.number)
        {
            self.watermarks.follow(watermark);
            status = self.watermarks.status();
        }
        status.finished = ended;
        self.ended = ended;
        context.set_status(self.number, status);
        let reached = if ended { i64::MAX } else { event_coordinate(status.watermark) };
        let moved = reached > self.event;
        self.event = self.event.max(reached);
        if status.idle {
            return Some(now + if moved { interval } else { interval * IDLE_INTERVALS });
        }
        self.watermarks.next_idle().map(|idle| idle.max(self.tick_at))
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
    let EventTime { strategy, timestamp } = event_time;
    let split = SplitState { watermark: restored, finished: false };
    let mut clock = Clock {
        watermarks: SplitWatermarks::new(&strategy, &[split], context.now()),
        number,
        event: event_coordinate(restored),
        ended: false,
        tick_at: Duration::ZERO,
        unticked: false,
    };
    let operator = scope_name(name.as_str());
    let name = name.clone();
    builder.build(move |mut capabilities| {
        let mut held: Option<Capability<Time>> = capabilities.pop();
        if let Some(held) = &mut held {
            held.downgrade(&Time::new(gate.open(), clock.event));
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
            let mut give = |held: &Capability<Time>, clock: &mut Clock, records: &mut Vec<D>| {
                if let Some(timestamp) = &timestamp {
                    clock.watermarks.observe(0, records.iter().map(timestamp), now);
                    clock.unticked = true;
                }
                output.session_with_builder(held).give_container(records);
            };
            input.for_each(|capability, records| {
                let time = *capability.time();
                if gate.admits(time.epoch()) {
                    give(held, &mut clock, records);
                } else {
                    gate.hold(time, std::mem::take(records));
                }
            });
            while gate.barrier_passed(&[frontier]) {
                let mut contribution = Contribution::nothing();
                if context.shared.durable {
                    let kept = event_section(clock.watermarks.state(0).watermark);
                    let section = SectionPart::plain(assigned_header(&name), kept);
                    contribution = Contribution::state(vec![section], Duration::ZERO);
                }
                context.hand_in(gate.open(), participant, contribution);
                gate.advance();
                held.downgrade(&Time::new(gate.open(), clock.event));
                while let Some(mut records) = gate.next_open() {
                    give(held, &mut clock, &mut records);
                }
            }
            let over = |time: &Time| time.event == i64::MAX;
            let ended = frontier.frontier().iter().all(over) && !gate.holds();
            alarm.wake_at.set(clock.tick(ended, &context));
            if held.time().event < clock.event {
                held.downgrade(&Time::new(gate.open(), clock.event));
            }
        }
    });
    results
}
