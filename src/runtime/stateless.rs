//! Operators without state: they pass barriers without noticing, since timely's frontiers pass them.

use timely::container::NoopBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::InputCapability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::connect::Record;
use crate::runtime::context::WorkerContext;
use crate::runtime::either::Either;
use crate::runtime::keyed::Session;
use crate::runtime::outgoing::Outgoing;
use crate::runtime::scope_name;
use crate::runtime::time::Time;

/// Takes the records of a batch one by one and pushes what comes of each.
pub(crate) fn stateless<'scope, D: Record, O: Record>(
    stream: Stream<'scope, Time, Vec<D>>,
    context: &WorkerContext,
    name: &str,
    mut logic: impl FnMut(D, &mut Vec<O>) + 'static,
) -> Stream<'scope, Time, Vec<O>> {
    let mut outgoing = Outgoing::new(context);
    batches(stream, context, name, move |records, capability, output| {
        let mut taken = records.drain(..);
        outgoing.send(output, capability, |out| {
            let Some(record) = taken.next() else { return false };
            logic(record, out);
            true
        });
    })
}

/// Takes the records of a batch together and pushes what comes of them.
pub(crate) fn batchwise<'scope, D: Record, O: Record>(
    stream: Stream<'scope, Time, Vec<D>>,
    context: &WorkerContext,
    mut logic: impl FnMut(&mut Vec<D>, &mut Vec<O>) + 'static,
) -> Stream<'scope, Time, Vec<O>> {
    let mut outgoing = Outgoing::new(context);
    batches(stream, context, "map_batches", move |records, capability, output| {
        outgoing.send_batch(output, capability, |out| logic(records, out));
        records.clear();
    })
}

fn batches<'scope, D: Record, O: Record>(
    stream: Stream<'scope, Time, Vec<D>>,
    context: &WorkerContext,
    name: &str,
    mut logic: impl FnMut(&mut Vec<D>, &InputCapability<Time>, &mut Session<'_, O>) + 'static,
) -> Stream<'scope, Time, Vec<O>> {
    let mut builder = OperatorBuilder::new(name.to_owned(), stream.scope());
    let (output, results) = builder.new_output::<Vec<O>>();
    let mut output = OutputBuilder::<_, NoopBuilder<Vec<O>>>::from(output);
    let mut input = builder.new_input(stream, Pipeline);
    let operator = scope_name(name);
    let inputs = context.pool::<D>();
    builder.build(move |_capabilities| {
        move |_frontiers| {
            let _scope = operator.enter();
            let mut output = output.activate();
            input.for_each(|capability, records| {
                logic(records, &capability, &mut output);
                inputs.give(std::mem::take(records));
            });
        }
    });
    results
}

/// Two streams of one.
type Two<'scope, A, B> = (Stream<'scope, Time, Vec<A>>, Stream<'scope, Time, Vec<B>>);

/// Sends each record one of two ways.
pub(crate) fn split<'scope, D: Record, A: Record, B: Record>(
    stream: Stream<'scope, Time, Vec<D>>,
    context: &WorkerContext,
    mut logic: impl FnMut(D) -> Either<A, B> + 'static,
) -> Two<'scope, A, B> {
    let mut builder = OperatorBuilder::new("split".to_owned(), stream.scope());
    let (left, lefts) = builder.new_output::<Vec<A>>();
    let (right, rights) = builder.new_output::<Vec<B>>();
    let mut left = OutputBuilder::<_, NoopBuilder<Vec<A>>>::from(left);
    let mut right = OutputBuilder::<_, NoopBuilder<Vec<B>>>::from(right);
    let mut input = builder.new_input(stream, Pipeline);
    let operator = scope_name("split");
    let inputs = context.pool::<D>();
    let (mut out_left, mut out_right) = (Outgoing::new(context), Outgoing::new(context));
    builder.build(move |_capabilities| {
        move |_frontiers| {
            let _scope = operator.enter();
            let (mut left, mut right) = (left.activate(), right.activate());
            input.for_each(|capability, records| {
                out_left.send_batch(&mut left, &capability, |lefts| {
                    out_right.send_batch(&mut right, &capability, |rights| {
                        for record in records.drain(..) {
                            match logic(record) {
                                Either::Left(record) => lefts.push(record),
                                Either::Right(record) => rights.push(record),
                            }
                        }
                    });
                });
                inputs.give(std::mem::take(records));
            });
        }
    });
    (lefts, rights)
}
