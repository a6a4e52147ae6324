//! How much an origin releases in one step, so that steps stay short however slow the chain behind it is.

use crate::protocol::flow::Quantum;
use crate::runtime::context::WorkerContext;

/// The pace of one origin: its quantum, measured against the worker's steps.
pub(crate) struct Pace {
    quantum: Quantum,
    step: u64,
    records: usize,
}

impl Pace {
    /// A pace of at most `records_max` in one step.
    pub(crate) fn new(context: &WorkerContext, records_max: usize) -> Self {
        let target = context.config().flow.step_target;
        Self { quantum: Quantum::new(target, records_max), step: 0, records: 0 }
    }

    /// Begins a release: what may be released in this step. Units: records.
    pub(crate) fn quantum(&mut self, context: &WorkerContext) -> usize {
        let (step, elapsed) = context.last_step.get();
        if self.records > 0 && step == self.step {
            self.quantum.observe(self.records, elapsed);
        }
        self.step = step + 1; // The one that runs now.
        self.records = 0;
        self.quantum.records()
    }

    /// Counts what was released.
    pub(crate) fn released(&mut self, records: usize) {
        self.records += records;
    }
}
