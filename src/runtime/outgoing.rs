//! What an operator emits, on its way into batches.

use timely::dataflow::operators::CapabilityTrait;

use crate::connect::Record;
use crate::runtime::context::WorkerContext;
use crate::runtime::keyed::Session;
use crate::runtime::pool::Pool;
use crate::runtime::router::batch_records;
use crate::runtime::time::Time;

/// The batch that an operator is filling.
pub(crate) struct Outgoing<O> {
    records: Vec<O>,
    /// Records of a full batch.
    full: usize,
    pool: Pool<O>,
}

impl<O: Record> Outgoing<O> {
    pub(crate) fn new(context: &WorkerContext) -> Self {
        Self { records: Vec::new(), full: batch_records::<O>(), pool: context.pool() }
    }

    /// Sends what `step` pushes, with each batch as soon as it is full and at the end with the rest. `step` is called until it says
    /// that it has nothing more to do.
    #[inline]
    pub(crate) fn send<C: CapabilityTrait<Time>>(
        &mut self,
        output: &mut Session<'_, O>,
        capability: &C,
        mut step: impl FnMut(&mut Vec<O>) -> bool,
    ) {
        // The buffer goes away with every batch.
        if self.records.capacity() == 0 {
            self.records = self.pool.take();
        }
        let mut session = output.session_with_builder(capability);
        while step(&mut self.records) {
            if self.records.len() >= self.full {
                session.give_container(&mut self.records);
                self.records = self.pool.take();
            }
        }
        if !self.records.is_empty() {
            session.give_container(&mut self.records);
        }
    }

    /// Sends all that `visit` gives to the function that it gets.
    pub(crate) fn send_all<C: CapabilityTrait<Time>>(
        &mut self,
        output: &mut Session<'_, O>,
        capability: &C,
        visit: impl FnOnce(&mut dyn FnMut(O)),
    ) {
        let mut session = output.session_with_builder(capability);
        visit(&mut |record| {
            self.records.push(record);
            if self.records.len() >= self.full {
                session.give_container(&mut self.records);
                self.records = self.pool.take();
            }
        });
        if !self.records.is_empty() {
            session.give_container(&mut self.records);
        }
    }

    /// Sends what `fill` makes as one batch.
    #[inline]
    pub(crate) fn send_batch<C: CapabilityTrait<Time>>(
        &mut self,
        output: &mut Session<'_, O>,
        capability: &C,
        fill: impl FnOnce(&mut Vec<O>),
    ) {
        if self.records.capacity() == 0 {
            self.records = self.pool.take();
        }
        fill(&mut self.records);
        if !self.records.is_empty() {
            output.session_with_builder(capability).give_container(&mut self.records);
        }
    }
}
