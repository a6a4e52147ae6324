//! The receiving side of an exchange: all waiting data waits here.
//!
//! It pulls from the network at once, keeps batches in the queue of the [`protocol::channel`](crate::protocol::channel)
//! machine, and releases them downstream in quanta that adapt to what the chain behind it can do in one step.

use std::cell::Cell;
use std::rc::Rc;

use timely::container::NoopBuilder;
use timely::dataflow::Stream;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::connect::Record;
use crate::protocol::channel::{Channel, Effect, Event};
use crate::runtime::batch::{Batch, ByTarget};
use crate::runtime::chain::{Origin, lowest_epoch};
use crate::runtime::context::WorkerContext;
use crate::runtime::pace::Pace;
use crate::runtime::scope_name;
use crate::runtime::time::Time;

/// Records that a channel releases in one step, at the most.
///
/// What a record costs shows only after a step; so this also bounds how long one step takes when records become slow.
const RELEASE_RECORDS_MAX: usize = 1 << 13;

/// A batch in the queue: what is left of it, and the right to send at its time.
struct Waiting<D> {
    capability: Capability<Time>,
    batch: Batch<D>,
}

/// Builds a channel behind an exchange, and returns it with the head of the chain behind it.
pub(crate) fn channel<'scope, D: Record>(
    stream: Stream<'scope, Time, Batch<D>>,
    context: &Rc<WorkerContext>,
    name: &str,
    restored_event: i64,
) -> (Stream<'scope, Time, Vec<D>>, Origin) {
    let scope = stream.scope();
    let mut builder = OperatorBuilder::new(format!("{name}.channel"), scope);
    let (output, released) = builder.new_output::<Vec<D>>();
    let mut output = OutputBuilder::<_, NoopBuilder<Vec<D>>>::from(output);
    let mut input = builder.new_input(stream, ByTarget);
    let activator = scope.activator_for(builder.operator_info().address);
    let origin = Origin::new(activator, restored_event);
    let chain = origin.clone();
    let context = Rc::clone(context);
    let operator = scope_name(name);
    builder.build(move |_capabilities| {
        let mode = context.config().checkpoints.mode;
        let mut machine = Channel::<Waiting<D>>::new(mode, context.shared.first_epoch);
        let mut effects = Vec::new();
        let mut pace = Pace::new(&context, RELEASE_RECORDS_MAX);
        let frontier_epoch = Cell::new(None);
        move |frontiers| {
            let _scope = operator.enter();
            input.for_each(|capability, batch| {
                let epoch = capability.time().epoch();
                // A record of a later epoch is news of a checkpoint, whichever comes first.
                if epoch > context.epoch() {
                    context.begin(epoch.before());
                }
                let capability = capability.retain(0);
                let batch = Waiting { capability, batch: std::mem::take(batch) };
                machine.step(Event::Batch { epoch, batch }, &mut effects);
            });
            let lowest = lowest_epoch(&frontiers[0]);
            if frontier_epoch.replace(Some(lowest)) != Some(lowest) {
                machine.step(Event::Frontier(lowest), &mut effects);
            }
            for effect in effects.drain(..) {
                match effect {
                    // The aligned part of the protocol: nothing is logged and no timer runs, so no barrier is
                    // overtaken.
                    Effect::StartTimer(_) | Effect::Passed { .. } => {}
                    Effect::LogQueue { .. } | Effect::LogStraggler { .. } | Effect::CloseLog(_) => {
                        unreachable!("no alignment timer runs")
                    }
                }
            }
            let mut room = pace.quantum(&context);
            let mut output = output.activate();
            let limit = chain.limit();
            while room > 0 {
                let Some((epoch, waiting)) = machine.queue().front_mut() else { break };
                if *epoch > limit {
                    break; // A gate behind us has not taken its snapshot; it will activate us.
                }
                let Waiting { capability, batch } = waiting;
                let all = batch.records.len();
                let take = all.min(room);
                let weight = if take == all {
                    batch.weight
                } else {
                    batch.weight * take as u64 / all as u64
                };
                let mut records = if take == all {
                    std::mem::take(&mut batch.records)
                } else {
                    let rest = batch.records.split_off(take);
                    std::mem::replace(&mut batch.records, rest)
                };
                batch.weight -= weight;
                context.shared.ledger.taken(batch.from as usize, context.index, weight);
                output.session_with_builder(&*capability).give_container(&mut records);
                room -= take;
                pace.released(take);
                context.taken_bytes.set(context.taken_bytes.get() + weight);
                if take == all {
                    machine.queue().pop_front();
                }
            }
            let more = machine.queue().front().is_some_and(|(epoch, _)| *epoch <= limit);
            if more {
                chain.activator().activate();
            }
        }
    });
    (released, origin)
}
