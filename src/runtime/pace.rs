//! How much an origin releases in one step, so that steps stay short however slow the chain behind it is.

use std::time::Duration;

use crate::protocol::flow::Quantum;
use crate::runtime::context::WorkerContext;

/// How much shorter steps are while a barrier is on its way.
const HURRY: u32 = 5;

/// The pace of one origin: its quantum, measured against the worker's steps.
pub(crate) struct Pace {
    quantum: Quantum,
    /// How long a step should take while a barrier is on its way.
    hurried: Duration,
    /// What a record cost in the last step that was measured.
    each: Duration,
    step: u64,
    records: usize,
}

impl Pace {
    /// A pace of at most `records_max` in one step.
    pub(crate) fn new(context: &WorkerContext, records_max: usize) -> Self {
        let target = context.config().flow.step_target;
        Self {
            quantum: Quantum::new(target, records_max),
            hurried: target / HURRY,
            each: Duration::ZERO,
            step: 0,
            records: 0,
        }
    }

    /// Begins a release: what may be released in this step. Units: records.
    pub(crate) fn quantum(&mut self, context: &WorkerContext) -> usize {
        let (step, elapsed) = context.last_step.get();
        if self.records > 0 && step == self.step {
            self.quantum.observe(self.records, elapsed);
            self.each = elapsed / u32::try_from(self.records).unwrap_or(u32::MAX);
        }
        self.step = step + 1; // The one that runs now.
        self.records = 0;
        let records = self.quantum.records();
        // While a barrier is on its way, steps are what it waits for.
        if !self.each.is_zero() && context.in_a_hurry() {
            let few = self.hurried.as_nanos() / self.each.as_nanos();
            return records.min(usize::try_from(few).unwrap_or(usize::MAX)).max(1);
        }
        records
    }

    /// What a record costs, if that is more than a step may take while a checkpoint is in progress.
    pub(crate) fn slow_record(&self) -> Option<Duration> {
        (self.each > self.hurried).then_some(self.each)
    }

    /// Counts what was released.
    pub(crate) fn released(&mut self, records: usize) {
        self.records += records;
    }
}
