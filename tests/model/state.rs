//! The state of a whole job: what workers, the network, the coordinator and storage hold.

use highwater::ids::Epoch;
use highwater::protocol::channel::{Channel, ChannelKind};

use crate::plan::{Plan, WORKERS_MAX};

/// Epochs are numbered from 1; there are as many as checkpoints of all attempts, and one more.
pub const EPOCHS_END: usize = 4;
/// Channels of a worker.
pub const PORTS_MAX: usize = 2;

/// A queue of up to eight items, each with an epoch.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Items(u64);

impl Items {
    pub fn len(self) -> usize {
        (64 - self.0.leading_zeros() as usize).div_ceil(8)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn push(&mut self, item: u8, epoch: u8) {
        assert!(item < 64 && (1..EPOCHS_END as u8).contains(&epoch) && self.len() < 8);
        self.0 |= u64::from(item << 2 | epoch) << (8 * self.len());
    }

    pub fn pop(&mut self) -> Option<(u8, u8)> {
        let first = self.iter().next()?;
        self.0 >>= 8;
        Some(first)
    }

    /// Items with their epochs.
    pub fn iter(self) -> impl Iterator<Item = (u8, u8)> {
        self.0.to_le_bytes().into_iter().take_while(|byte| *byte != 0).map(|b| (b >> 2, b & 3))
    }
}

impl std::fmt::Debug for Items {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A batch of one item, as it waits in a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Waiting {
    pub item: u8,
    /// The epoch that it was sent in. Only the checks look at this and at what follows.
    pub sent: u8,
    /// The epoch that it may be released in: the capability that it holds.
    pub capability: u8,
    /// The epochs whose logs it was written into, a bit each.
    pub logged: u8,
}

/// A channel: the real machine, and what the runtime keeps beside it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Port {
    pub machine: Channel<Waiting>,
    /// Capabilities held by what waits in the machine, by epoch.
    pub capabilities: [u8; EPOCHS_END],
    /// Timers that run, a bit an epoch.
    pub timers: u8,
    /// Logs of barriers that have not passed, by epoch.
    pub logs: [Items; EPOCHS_END],
    /// Epochs below are overtaken already. Only a planted error sets this.
    pub overtaken: u8,
}

impl Port {
    pub fn new(kind: ChannelKind, plan: &Plan, first: u8) -> Self {
        Self {
            machine: Channel::new(kind, plan.machine_mode(), Epoch(u64::from(first))),
            capabilities: [0; EPOCHS_END],
            timers: 0,
            logs: [Items::default(); EPOCHS_END],
            overtaken: 0,
        }
    }

    /// The lowest epoch of what waits; [`u8::MAX`] if nothing does.
    pub fn lowest(&self) -> u8 {
        let lowest = self.capabilities.iter().position(|count| *count > 0);
        lowest.map_or(u8::MAX, |epoch| epoch as u8)
    }

    pub fn restore(&mut self, log: Items, first: u8) {
        for (item, _) in log.iter() {
            self.machine.restore(Waiting { item, sent: first, capability: first, logged: 0 });
            self.capabilities[first as usize] += 1;
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Worker {
    /// Records that its source has read.
    pub position: u8,
    /// Whether its source still decides what to read in its epoch. Not in an unreduced model, where it always may.
    pub reading: bool,
    /// The epoch that its source is in.
    pub epoch: u8,
    /// The epoch that its gate has opened.
    pub gate: u8,
    /// The operator's state: the items that it has processed, a bit each.
    pub state: u16,
    /// The exchanges' channels, then that of the feedback edge.
    pub ports: Vec<Port>,
    /// Between the operator and the feedback edge.
    pub pipe: Items,
}

/// What workers have handed in for a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Parts {
    pub positions: [Option<u8>; WORKERS_MAX],
    pub states: [Option<u16>; WORKERS_MAX],
    pub logs: [[Option<Items>; PORTS_MAX]; WORKERS_MAX],
}

impl Parts {
    pub fn complete(&self, plan: &Plan) -> bool {
        let ports = plan.inputs + usize::from(plan.feedback);
        (0..plan.workers).all(|worker| {
            self.positions[worker].is_some()
                && self.states[worker].is_some()
                && self.logs[worker][..ports].iter().all(Option::is_some)
        })
    }
}

impl Parts {
    /// Whether any record is in a log.
    pub fn in_flight(&self) -> bool {
        self.logs.iter().flatten().flatten().any(|log| !log.is_empty())
    }
}

/// Where a checkpoint stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Checkpoint {
    /// Not begun, or over: complete, aborted, subsumed, or of an attempt that crashed.
    None,
    Pending(Box<Parts>),
}

/// The state of the job.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub crashes: u8,
    /// The last epoch whose checkpoint has begun, over all attempts.
    pub begun: u8,
    pub checkpoints: Vec<Checkpoint>,
    /// The newest complete checkpoint, which is all that a crash leaves.
    pub restorable: Option<Box<Parts>>,
    pub workers: Vec<Worker>,
    /// What is on its way, by input, sender and receiver.
    pub network: Vec<Items>,
}

impl State {
    /// A job that starts from a checkpoint, or from nothing.
    pub fn start(plan: &Plan, from: Option<Box<Parts>>, begun: u8, crashes: u8) -> Self {
        let first = begun + 1;
        let mut workers = Vec::new();
        for worker in 0..plan.workers {
            let mut ports: Vec<Port> =
                (0..plan.inputs).map(|_| Port::new(ChannelKind::Exchange, plan, first)).collect();
            if plan.feedback {
                ports.push(Port::new(ChannelKind::Feedback, plan, first));
            }
            let (mut position, mut state) = (0, 0);
            if let Some(parts) = &from {
                position = parts.positions[worker].expect("a complete checkpoint has all parts");
                state = parts.states[worker].expect("a complete checkpoint has all parts");
                for (port, log) in ports.iter_mut().zip(parts.logs[worker]) {
                    port.restore(log.expect("a complete checkpoint has all parts"), first);
                }
            }
            let pipe = Items::default();
            let (epoch, gate, reading) = (first, first, plan.reduced);
            workers.push(Worker { position, reading, epoch, gate, state, ports, pipe });
        }
        Self {
            crashes,
            begun,
            checkpoints: vec![Checkpoint::None; EPOCHS_END],
            restorable: from,
            workers,
            network: vec![Items::default(); plan.inputs * plan.workers * plan.workers],
        }
    }

    /// The lowest epoch that may still arrive at an exchange's channels, at any worker.
    pub fn arriving(&self, plan: &Plan, input: usize) -> u8 {
        let mut lowest = u8::MAX;
        for worker in &self.workers {
            lowest = lowest.min(worker.epoch);
            if plan.feedback {
                // It keeps the right to send in the epoch that it releases in.
                let feedback = &worker.ports[plan.inputs];
                lowest = lowest.min(feedback.machine.open().0 as u8).min(feedback.lowest());
            }
        }
        let links = plan.workers * plan.workers;
        for link in &self.network[input * links..(input + 1) * links] {
            lowest = link.iter().map(|(_, epoch)| epoch).min().unwrap_or(u8::MAX).min(lowest);
        }
        lowest
    }

    /// The lowest epoch that may still arrive at the gates from one exchange.
    pub fn released(&self, plan: &Plan, input: usize) -> u8 {
        let waiting = self.workers.iter().map(|worker| worker.ports[input].lowest()).min();
        self.arriving(plan, input).min(waiting.unwrap_or(u8::MAX))
    }

    /// The lowest epoch that may still arrive at the gates.
    pub fn gates(&self, plan: &Plan) -> u8 {
        (0..plan.inputs).map(|input| self.released(plan, input)).min().unwrap_or(u8::MAX)
    }

    /// The lowest epoch that may still arrive at the feedback edges. There is no way through them, as far as timely knows.
    pub fn returning(&self, plan: &Plan) -> u8 {
        let piped = self.workers.iter().flat_map(|worker| worker.pipe.iter());
        piped.map(|(_, epoch)| epoch).min().unwrap_or(u8::MAX).min(self.gates(plan))
    }

    /// Whether any record is on its way.
    pub fn in_flight(&self) -> bool {
        let waiting = |worker: &Worker| {
            !worker.pipe.is_empty() || worker.ports.iter().any(|port| port.lowest() != u8::MAX)
        };
        self.network.iter().any(|link| !link.is_empty()) || self.workers.iter().any(waiting)
    }
}
