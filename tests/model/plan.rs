//! What is explored: the bounds, and the error of design, if one is planted.

use highwater::config::CheckpointMode;

/// Workers of the largest model.
pub const WORKERS_MAX: usize = 3;

/// A record and the way that it takes.
#[derive(Clone, Debug)]
pub struct Record {
    /// The worker whose source reads it.
    pub source: usize,
    /// The exchange that it takes, if the operator has several inputs.
    pub input: usize,
    /// The workers that process it, one after the other: more than one if it goes round.
    pub visits: Vec<usize>,
}

/// One record at one of its visits: what is sent, processed and logged.
#[derive(Clone, Copy, Debug)]
pub struct Item {
    pub record: usize,
    pub visit: usize,
    pub worker: usize,
    pub input: usize,
    /// Where its record is in its source.
    pub position: u8,
    /// What it becomes when it goes round.
    pub next: Option<u8>,
}

/// Something that the design gets wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Behind a feedback edge, what arrives after the barrier has passed is not logged.
    NoStragglerLog,
    /// A batch goes into its new epoch first; the log then looks for those of the old one.
    RestampBeforeLog,
    /// What a barrier has overtaken is released late, but keeps the right to send in the old epoch.
    NoDelay,
    /// What a barrier has overtaken is still released in the old epoch.
    NoRestamp,
    /// Nothing of a later epoch is held back.
    NoAlignment,
    /// A gate looks at the progress of its own worker.
    LocalFrontier,
    /// A gate looks at the first of its inputs.
    OneInput,
    /// Behind a feedback edge, the log is handed in when the barrier overtakes, not when it arrives.
    EarlyLog,
    /// Behind an exchange, a barrier overtakes before it arrives, and stragglers are not logged.
    EarlyOvertaking,
}

/// The bounds of a model.
#[derive(Clone, Debug)]
pub struct Plan {
    pub workers: usize,
    /// Exchanges in front of each operator.
    pub inputs: usize,
    /// Whether what operators emit comes back to them.
    pub feedback: bool,
    pub records: Vec<Record>,
    /// Checkpoints of all attempts.
    pub checkpoints: u8,
    pub crashes: u8,
    /// What is promised.
    pub mode: CheckpointMode,
    /// Whether there is an alignment timeout: without it no barrier overtakes behind an exchange.
    pub timers: bool,
    /// Whether steps are left out that lead nowhere new; see [`crate::protocol`].
    pub reduced: bool,
    /// Judge only what comes out in the end, and not how.
    pub outcome_only: bool,
    pub fault: Option<Fault>,
}

impl Plan {
    /// A plan without checkpoints or crashes. A record is its source, its input, and the workers that it visits.
    pub fn new(workers: usize, records: &[(usize, usize, &[usize])]) -> Self {
        assert!(workers <= WORKERS_MAX);
        let record = |(source, input, visits): &(usize, usize, &[usize])| Record {
            source: *source,
            input: *input,
            visits: visits.to_vec(),
        };
        let records: Vec<Record> = records.iter().map(record).collect();
        let inputs = records.iter().map(|record| record.input + 1).max().unwrap_or(1);
        let feedback = records.iter().any(|record| record.visits.len() > 1);
        assert!(inputs + usize::from(feedback) <= 2, "a worker has two ports at the most");
        Self {
            workers,
            inputs,
            feedback,
            records,
            checkpoints: 0,
            crashes: 0,
            mode: CheckpointMode::ExactlyOnce,
            timers: true,
            reduced: true,
            outcome_only: false,
            fault: None,
        }
    }

    pub fn checkpoints(mut self, checkpoints: u8) -> Self {
        self.checkpoints = checkpoints;
        self
    }

    pub fn crashes(mut self, crashes: u8) -> Self {
        self.crashes = crashes;
        self
    }

    pub fn aligned(mut self) -> Self {
        self.timers = false;
        self
    }

    pub fn unreduced(mut self) -> Self {
        self.reduced = false;
        self
    }

    pub fn at_least_once(mut self) -> Self {
        self.mode = CheckpointMode::AtLeastOnce;
        self
    }

    pub fn outcome_only(mut self) -> Self {
        self.outcome_only = true;
        self
    }

    pub fn fault(mut self, fault: Fault) -> Self {
        self.fault = Some(fault);
        self
    }

    /// The mode that the machines run in.
    pub fn machine_mode(&self) -> CheckpointMode {
        match self.fault {
            Some(Fault::NoAlignment) => CheckpointMode::AtLeastOnce,
            _ => self.mode,
        }
    }

    /// All items, those of one record one behind the other.
    pub fn items(&self) -> Vec<Item> {
        let mut positions = [0; WORKERS_MAX];
        let mut items = Vec::new();
        for (number, record) in self.records.iter().enumerate() {
            for (visit, worker) in record.visits.iter().enumerate() {
                let last = visit + 1 == record.visits.len();
                items.push(Item {
                    record: number,
                    visit,
                    worker: *worker,
                    input: record.input,
                    position: positions[record.source],
                    next: (!last).then_some(items.len() as u8 + 1),
                });
            }
            positions[record.source] += 1;
        }
        assert!(items.len() <= 16, "a set of items has 16 bits");
        items
    }
}
