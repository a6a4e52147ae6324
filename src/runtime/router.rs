//! The sending side of an exchange: finds the target of every record and fills one batch for each worker.
//!
//! A router is stateless. It never holds a record between two activations, so it takes no part in checkpoints.

use std::rc::Rc;

use timely::container::NoopBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::InputCapability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::connect::Record;
use crate::runtime::batch::Batch;
use crate::runtime::context::WorkerContext;
use crate::runtime::pool::Pool;
use crate::runtime::scope_name;
use crate::runtime::time::Time;

/// Records in a batch: about 16 KiB of them, at least 16.
pub(crate) const fn batch_records<D>() -> usize {
    let size = if size_of::<D>() == 0 { 1 } else { size_of::<D>() };
    let records = (16 << 10) / size;
    if records < 16 { 16 } else { records }
}

/// What a batch takes beside its records, with its place in a queue. Units: bytes.
const BATCH_BYTES: u64 = 128;

/// Where the records of one input batch go.
pub(crate) trait Route<D, R>: 'static {
    /// Takes all records out of `input` and hands each on with its target.
    fn route(&mut self, input: &mut Vec<D>, to: &mut Targets<R>);
}

/// The batches being filled, one for each worker.
pub(crate) struct Targets<R> {
    filling: Vec<Vec<R>>,
    full: Vec<(u32, Vec<R>)>,
    pool: Pool<R>,
}

impl<R> Targets<R> {
    fn new(peers: usize, pool: Pool<R>) -> Self {
        let filling = (0..peers).map(|_| Vec::new()).collect();
        Self { filling, full: Vec::new(), pool }
    }

    /// Number of workers.
    pub(crate) fn peers(&self) -> usize {
        self.filling.len()
    }

    /// Adds a record for a worker.
    #[inline(always)]
    pub(crate) fn give(&mut self, target: usize, record: R) {
        let filling = &mut self.filling[target];
        // One test a record: a target without a buffer is full too.
        if filling.len() == filling.capacity() {
            Self::renew(filling, target, &mut self.full, &self.pool);
        }
        filling.push(record);
    }

    #[cold]
    #[inline(never)]
    fn renew(filling: &mut Vec<R>, target: usize, full: &mut Vec<(u32, Vec<R>)>, pool: &Pool<R>) {
        let filled = std::mem::replace(filling, pool.take());
        if !filled.is_empty() {
            full.push((target as u32, filled));
        }
    }

    /// Adds a whole batch for a worker.
    pub(crate) fn give_batch(&mut self, target: usize, records: Vec<R>) {
        self.full.push((target as u32, records));
    }

    fn flush(&mut self) {
        for (target, filling) in self.filling.iter_mut().enumerate() {
            if !filling.is_empty() {
                self.full.push((target as u32, std::mem::take(filling)));
            }
        }
    }
}

/// Records of a batch whose size is looked at.
const WEIGHED_MAX: usize = 16;

/// Estimates what a batch weighs: the size of its records, and for records that own memory what a few of them, evenly
/// spread, would take on the wire, which is about what they own. The batch itself counts too: a queue of batches of few records, or of
/// records without size, takes memory as well.
fn weigh<R: Record>(records: &[R]) -> u64 {
    let mut bytes = size_of_val(records) as u64;
    if std::mem::needs_drop::<R>() && !records.is_empty() {
        let sample = records.iter().step_by(records.len().div_ceil(WEIGHED_MAX));
        let looked_at = sample.len() as u64;
        let sizes = sample.map(|record| postcard::experimental::serialized_size(record));
        let owned: u64 = sizes.map(|size| size.unwrap_or(0) as u64).sum();
        bytes += owned * records.len() as u64 / looked_at;
    }
    BATCH_BYTES + bytes
}

/// Builds a router.
pub(crate) fn router<'scope, D: Record, R: Record>(
    stream: Stream<'scope, Time, Vec<D>>,
    context: &Rc<WorkerContext>,
    name: &str,
    mut route: impl Route<D, R>,
) -> Stream<'scope, Time, Batch<R>> {
    let mut builder = OperatorBuilder::new(format!("{name}.router"), stream.scope());
    let (output, routed) = builder.new_output::<Batch<R>>();
    let mut output = OutputBuilder::<_, NoopBuilder<Batch<R>>>::from(output);
    let mut input = builder.new_input(stream, Pipeline);
    let context = Rc::clone(context);
    let scope = scope_name(name);
    builder.build(move |_capabilities| {
        let inputs = context.pool::<D>();
        let mut targets = Targets::new(context.peers, context.pool());
        move |_frontiers| {
            let _scope = scope.enter();
            let mut output = output.activate();
            let mut send = |targets: &mut Targets<R>, capability: &InputCapability<Time>| {
                let mut session = output.session_with_builder(capability);
                for (target, records) in targets.full.drain(..) {
                    // Timely does not count a message without records, so a barrier would not wait for it.
                    if records.is_empty() {
                        continue;
                    }
                    let weight = weigh(&records);
                    context.shared.ledger.sent(context.index, target as usize, weight);
                    let from = context.index as u32;
                    session.give_container(&mut Batch { records, from, target, weight });
                }
            };
            // Batches are filled across containers of one time: fewer and fuller ones cost less.
            let mut current: Option<InputCapability<Time>> = None;
            input.for_each(|capability, records| {
                if let Some(before) = current.take_if(|before| before.time() != capability.time()) {
                    targets.flush();
                    send(&mut targets, &before);
                }
                route.route(records, &mut targets);
                inputs.give(std::mem::take(records));
                send(&mut targets, &capability);
                current = Some(capability);
            });
            if let Some(capability) = current {
                targets.flush();
                send(&mut targets, &capability);
            }
        }
    });
    routed
}

#[cfg(test)]
mod tests {
    use super::weigh;

    #[test]
    fn records_without_size_weigh_something_too() {
        assert!(weigh(&[()]) > 0);
        let mixed: Vec<String> = (0..400).map(|i| "a".repeat(i % 10 * 100)).collect();
        let owned: u64 = mixed.iter().map(|text| text.len() as u64).sum();
        assert!((owned / 2..2 * owned).contains(&weigh(&mixed)), "{} for {owned}", weigh(&mixed));
        assert!(weigh(&["a".repeat(1000)]) > 1000 + weigh::<String>(&[]));
    }
}
