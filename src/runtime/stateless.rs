//! Operators without state: they pass barriers without noticing, since timely's frontiers pass them.

use timely::container::NoopBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::connect::Record;
use crate::runtime::context::WorkerContext;
use crate::runtime::outgoing::Outgoing;
use crate::runtime::scope_name;
use crate::runtime::time::Time;

/// Takes the records of a batch and pushes what comes of them.
pub(crate) fn stateless<'scope, D: Record, O: Record>(
    stream: Stream<'scope, Time, Vec<D>>,
    context: &WorkerContext,
    name: &str,
    mut logic: impl FnMut(D, &mut Vec<O>) + 'static,
) -> Stream<'scope, Time, Vec<O>> {
    let mut builder = OperatorBuilder::new(name.to_owned(), stream.scope());
    let (output, results) = builder.new_output::<Vec<O>>();
    let mut output = OutputBuilder::<_, NoopBuilder<Vec<O>>>::from(output);
    let mut input = builder.new_input(stream, Pipeline);
    let operator = scope_name(name);
    let inputs = context.pool::<D>();
    let mut outgoing = Outgoing::new(context);
    builder.build(move |_capabilities| {
        move |_frontiers| {
            let _scope = operator.enter();
            let mut output = output.activate();
            input.for_each(|capability, records| {
                let mut taken = records.drain(..);
                outgoing.send(&mut output, &capability, |out| {
                    let Some(record) = taken.next() else { return false };
                    logic(record, out);
                    true
                });
                drop(taken);
                inputs.give(std::mem::take(records));
            });
        }
    });
    results
}
