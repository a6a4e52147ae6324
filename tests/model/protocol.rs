//! The steps of a job, and what must hold in each: the model proper.
//!
//! A batch is one record. What the runtime does in one activation of an operator is one step here, or several; what is
//! between a channel and the operator behind it on the same worker is one step.
//!
//! # Frontiers
//! What timely computes: the lowest epoch that may still arrive at a place, at *any* worker, from what sources may send, what
//! the network carries, and what waits in channels. Each channel and each gate sees it as late as it likes: the
//! channel when it is told ([`Step::Observe`]), the gate when it takes its snapshot ([`Step::Snapshot`]).
//!
//! # What a reduced model leaves out
//! Each run that it leaves out has the same effects as one that is in it. A test compares the complete checkpoints of reduced and
//! unreduced models.
//! * A gate takes its snapshot as soon as the barrier has passed. Nothing else depends on when, but what the gate itself
//!   holds back, which might as well be slow later.
//! * A checkpoint whose parts are all there is complete at once, and is aborted right after it has begun or never: the
//!   workers know nothing of either, and after a crash only what was complete counts.
//! * A source decides what it reads in an epoch at the start of that: then it is slow on the network instead.
//! * A timer fires when its barrier waits. Before that it only makes the barrier overtake when it arrives, which is the
//!   same as to fire then; afterwards it does nothing.
//! * A crash strikes when there is something to restore. Before that, the job begins anew with fewer checkpoints to go.

use std::ops::Range;

use highwater::config::CheckpointMode::ExactlyOnce;
use highwater::ids::Epoch;
use highwater::protocol::channel::{Effect, Event};

use crate::explorer::Model;
use crate::plan::{Fault, Item, Plan};
use crate::state::{Checkpoint, EPOCHS_END, Items, Parts, Port, State, Waiting, Worker};

/// Something that can happen. Numbers are of workers, channels of a worker, and epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A source reads a record and sends it.
    Read(usize),
    /// A source reads no more in its epoch.
    Stop(usize),
    /// A batch comes out of the network.
    Deliver {
        input: usize,
        from: usize,
        to: usize,
    },
    /// The coordinator begins the next checkpoint.
    Begin,
    /// A worker hears of it: its source writes its position down.
    Hear(usize),
    /// A feedback edge hears of it.
    Announce(usize),
    /// A channel sees the frontier of its input.
    Observe {
        worker: usize,
        port: usize,
        frontier: u8,
    },
    /// An alignment timer fires.
    Timer {
        worker: usize,
        port: usize,
    },
    /// A channel releases a batch, and what is behind it takes it.
    Release {
        worker: usize,
        port: usize,
    },
    /// What an operator emitted comes to the feedback edge.
    Return(usize),
    /// A gate sees that a barrier has passed: a snapshot.
    Snapshot(usize),
    /// All parts are there, and the manifest is published.
    Complete(u8),
    Abort(u8),
    /// All workers die, and the job starts again from the newest complete checkpoint.
    Crash,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A record of a later epoch was processed before the snapshot, or may be.
    I1,
    /// A batch is not in exactly one of: what was released in front of the barrier, and its log.
    I2,
    /// Something was sent behind its own barrier.
    I3,
    /// A barrier passed twice, or out of turn.
    I4,
    /// A frontier went back, or a channel did not take it in.
    Frontier,
    /// Records of one source came out of order.
    Order,
    /// A complete checkpoint has neither the effect of a record nor the record, but its source is behind it.
    CutLoss,
    /// A checkpoint behind the end of all sources, without records in flight, has not the effect of all records.
    End,
    /// A complete checkpoint has a record more than once, or a record that its source will read again.
    CutDup,
    /// A record is in no state in the end.
    Loss,
    /// A record was processed twice.
    Dup,
    /// Nothing can happen any more, or only round and round, and the job is not at its end.
    Stuck,
}

/// The model.
pub struct Job {
    pub plan: Plan,
    items: Vec<Item>,
    /// The records of each source.
    sources: Vec<Vec<u8>>,
}

impl Job {
    pub fn new(plan: Plan) -> Self {
        let items = plan.items();
        let sources = (0..plan.workers)
            .map(|worker| {
                let first = |(number, item): (usize, &Item)| {
                    let ours = plan.records[item.record].source == worker && item.visit == 0;
                    ours.then_some(number as u8)
                };
                items.iter().enumerate().filter_map(first).collect()
            })
            .collect();
        Self { plan, items, sources }
    }

    fn exactly_once(&self) -> bool {
        self.plan.mode == ExactlyOnce
    }

    fn has(&self, fault: Fault) -> bool {
        self.plan.fault == Some(fault)
    }

    /// Fails, unless something holds or only the outcome counts.
    fn check(&self, holds: bool, violation: Violation) -> Result<(), Violation> {
        if holds || self.plan.outcome_only { Ok(()) } else { Err(violation) }
    }

    fn link(&self, input: usize, from: usize, to: usize) -> usize {
        (input * self.plan.workers + from) * self.plan.workers + to
    }

    fn send(&self, state: &mut State, from: usize, item: u8, epoch: u8) {
        let Item { input, worker: to, .. } = self.items[item as usize];
        state.network[self.link(input, from, to)].push(item, epoch);
    }

    /// The epoch that a gate's inputs have reached, as the gate sees it.
    fn gate_frontier(&self, state: &State, worker: usize) -> u8 {
        match self.plan.fault {
            Some(Fault::LocalFrontier) => {
                let worker = &state.workers[worker];
                worker.ports.iter().map(|p| p.lowest()).min().unwrap_or(u8::MAX).min(worker.epoch)
            }
            Some(Fault::OneInput) => state.released(&self.plan, 0),
            _ => state.gates(&self.plan),
        }
    }

    /// The worker hears that the checkpoint that closes its epoch has begun.
    fn hear(&self, state: &mut State, worker: usize) -> Result<(), Violation> {
        let closing = state.workers[worker].epoch;
        let position = state.workers[worker].position;
        state.workers[worker].epoch += 1;
        state.workers[worker].reading = self.plan.reduced;
        if let Checkpoint::Pending(parts) = &mut state.checkpoints[closing as usize] {
            parts.positions[worker] = Some(position);
        }
        for port in 0..self.plan.inputs {
            self.step(state, worker, port, Event::Begun(epoch(closing)))?;
        }
        Ok(())
    }

    fn announce(&self, state: &mut State, worker: usize) -> Result<(), Violation> {
        let port = self.plan.inputs;
        let open = state.workers[worker].ports[port].machine.open();
        self.step(state, worker, port, Event::Begun(open))?;
        if self.has(Fault::EarlyLog) {
            self.hand_in(state, worker, port, open.0 as u8)?;
        }
        Ok(())
    }

    /// A batch comes to a channel, as the runtime feeds it.
    fn arrive(
        &self,
        state: &mut State,
        worker: usize,
        port: usize,
        (item, sent): (u8, u8),
    ) -> Result<(), Violation> {
        while sent > state.workers[worker].epoch {
            self.hear(state, worker)?;
        }
        let feedback = port == self.plan.inputs;
        while feedback && open(state, worker, port) < state.workers[worker].epoch {
            self.announce(state, worker)?;
        }
        assert!(feedback || self.items[item as usize].worker == worker, "a batch went astray");
        let machine = &state.workers[worker].ports[port].machine;
        let lowest = if feedback { machine.next() } else { machine.open() };
        if u64::from(sent) < lowest.0 {
            return Err(Violation::I3); // The machine would panic.
        }
        let capability = if feedback { open(state, worker, port) } else { sent };
        state.workers[worker].ports[port].capabilities[capability as usize] += 1;
        let batch = Waiting { item, sent, capability, logged: 0 };
        self.step(state, worker, port, Event::Batch { epoch: epoch(sent), batch })?;
        let port = &mut state.workers[worker].ports[port];
        if sent < port.overtaken {
            // Planted: it joins what was overtaken, and nobody writes it down.
            let to = port.overtaken;
            let last = port.machine.queue().back_mut().expect("just queued");
            port.capabilities[last.1.capability as usize] -= 1;
            port.capabilities[to as usize] += 1;
            last.0 = epoch(to);
            last.1.capability = to;
        }
        Ok(())
    }

    fn timer(&self, state: &mut State, worker: usize, port: usize) -> Result<(), Violation> {
        let timers = &mut state.workers[worker].ports[port].timers;
        let first = timers.trailing_zeros() as u8;
        *timers &= *timers - 1;
        if self.has(Fault::EarlyOvertaking) && open(state, worker, port) <= first {
            let machine = &mut state.workers[worker].ports[port].machine;
            let batches = 0..machine.queue().len();
            self.log(state, worker, port, first, batches.clone());
            self.restamp(state, worker, port, first + 1, batches.clone());
            let queue = state.workers[worker].ports[port].machine.queue();
            queue.range_mut(batches).for_each(|(stamp, _)| *stamp = epoch(first + 1));
            state.workers[worker].ports[port].overtaken = first + 1;
            return self.hand_in(state, worker, port, first);
        }
        self.step(state, worker, port, Event::Timer(epoch(first)))
    }

    /// Feeds the machine, and carries out what it says.
    fn step(
        &self,
        state: &mut State,
        worker: usize,
        port: usize,
        event: Event<Waiting>,
    ) -> Result<(), Violation> {
        let is_batch = matches!(event, Event::Batch { .. });
        let next = state.workers[worker].ports[port].machine.next();
        let mut effects = Vec::new();
        state.workers[worker].ports[port].machine.step(event, &mut effects);
        let feedback = port == self.plan.inputs;
        if self.has(Fault::NoStragglerLog) && feedback && is_batch {
            effects.retain(|effect| !matches!(effect, Effect::Log { .. }));
        }
        if self.has(Fault::NoDelay) {
            effects.retain(|effect| !matches!(effect, Effect::Restamp { .. }));
        }
        if self.has(Fault::RestampBeforeLog) {
            effects.sort_by_key(|effect| match effect {
                Effect::Restamp { .. } => 0,
                Effect::Passed { .. } => 2,
                _ => 1,
            });
        }
        let mut passing = next;
        for effect in effects {
            match effect {
                Effect::StartTimer(epoch) => {
                    let timer = u8::from(self.plan.timers) << epoch.0;
                    state.workers[worker].ports[port].timers |= timer;
                }
                Effect::Log { epoch, batches } => {
                    self.log(state, worker, port, epoch.0 as u8, batches);
                }
                Effect::Restamp { batches, .. } if self.has(Fault::NoRestamp) => {
                    // Planted: undoes what the machine has done to its queue.
                    let queue = state.workers[worker].ports[port].machine.queue();
                    for (stamp, batch) in queue.range_mut(batches) {
                        *stamp = epoch(batch.capability);
                    }
                }
                Effect::Restamp { batches, to } => {
                    self.restamp(state, worker, port, to.0 as u8, batches);
                }
                Effect::Passed { epoch, overtaken } => {
                    self.check(epoch == passing, Violation::I4)?;
                    passing = epoch.next();
                    let number = epoch.0 as u8;
                    let port_state = &mut state.workers[worker].ports[port];
                    // A timer that fires later does nothing.
                    port_state.timers &= !(1 << number);
                    if self.has(Fault::EarlyLog) && feedback {
                        port_state.logs[number as usize] = Items::default();
                        continue; // Handed in before.
                    }
                    if number < port_state.overtaken {
                        continue; // The same.
                    }
                    let logged = !port_state.logs[number as usize].is_empty();
                    self.check(logged == overtaken, Violation::I2)?;
                    self.hand_in(state, worker, port, number)?;
                }
            }
        }
        let machine = &mut state.workers[worker].ports[port].machine;
        self.check(machine.next() == passing, Violation::I4)?;
        if self.exactly_once() && !self.has(Fault::EarlyOvertaking) {
            let open = machine.open();
            let later = machine.queue().iter().any(|(stamp, _)| *stamp > open);
            self.check(!later, Violation::I1)?;
        }
        Ok(())
    }

    fn log(
        &self,
        state: &mut State,
        worker: usize,
        port: usize,
        number: u8,
        batches: Range<usize>,
    ) {
        let port = &mut state.workers[worker].ports[port];
        for (_, batch) in port.machine.queue().range_mut(batches) {
            // Planted: looks for the epoch that the batch had before.
            if self.has(Fault::RestampBeforeLog) && batch.capability > number {
                continue;
            }
            port.logs[number as usize].push(batch.item, 1);
            batch.logged |= 1 << number;
        }
    }

    fn restamp(
        &self,
        state: &mut State,
        worker: usize,
        port: usize,
        to: u8,
        batches: Range<usize>,
    ) {
        let port = &mut state.workers[worker].ports[port];
        for (_, batch) in port.machine.queue().range_mut(batches) {
            port.capabilities[batch.capability as usize] -= 1;
            port.capabilities[to as usize] += 1;
            batch.capability = to;
        }
    }

    /// The log of a barrier that has passed.
    fn hand_in(
        &self,
        state: &mut State,
        worker: usize,
        port: usize,
        number: u8,
    ) -> Result<(), Violation> {
        let log = std::mem::take(&mut state.workers[worker].ports[port].logs[number as usize]);
        if let Checkpoint::Pending(parts) = &mut state.checkpoints[number as usize] {
            let before = parts.logs[worker][port].replace(log);
            self.check(before.is_none(), Violation::I4)?;
        }
        Ok(())
    }

    /// The first of the queue, if it may be released.
    fn releasable(&self, state: &mut State, worker: usize, port: usize) -> bool {
        let gate = state.workers[worker].gate;
        let front = state.workers[worker].ports[port].machine.queue().front();
        let held_back = port < self.plan.inputs && self.plan.machine_mode() == ExactlyOnce;
        front.is_some_and(|(stamp, _)| !held_back || stamp.0 <= u64::from(gate))
    }

    fn release(&self, state: &mut State, worker: usize, port: usize) -> Result<(), Violation> {
        let from = &mut state.workers[worker].ports[port];
        let (stamp, batch) = from.machine.queue().pop_front().expect("releasable");
        let Waiting { item, sent, capability, logged } = batch;
        from.capabilities[capability as usize] -= 1;
        if self.exactly_once() || port == self.plan.inputs {
            // In the log of every barrier between the epoch that it was sent in and this one, and in no other.
            let between = (sent..capability).fold(0, |bits, epoch| bits | 1 << epoch);
            self.check(logged == between, Violation::I2)?;
            self.check(stamp.0 == u64::from(capability), Violation::I2)?;
        }
        if port == self.plan.inputs {
            self.send(state, worker, item, capability);
        } else {
            self.process(state, worker, item, capability)?;
        }
        let machine = &state.workers[worker].ports[port].machine;
        if machine.next() < machine.open() {
            self.step(state, worker, port, Event::Released)?;
        }
        Ok(())
    }

    fn process(
        &self,
        state: &mut State,
        worker: usize,
        item: u8,
        sent: u8,
    ) -> Result<(), Violation> {
        let at = &mut state.workers[worker];
        if sent < at.gate {
            // The gate would panic. Let it be, to see what comes of it.
            self.check(false, Violation::I3)?;
        }
        self.check(sent <= at.gate || !self.exactly_once(), Violation::I1)?;
        let bit = 1 << item;
        if at.state & bit != 0 {
            if self.exactly_once() {
                return Err(Violation::Dup);
            }
            return Ok(());
        }
        if !self.plan.feedback && self.exactly_once() {
            let Item { record, position, worker: target, input, .. } = self.items[item as usize];
            let source = self.plan.records[record].source;
            let later = self.items.iter().enumerate().any(|(number, other)| {
                at.state & 1 << number != 0
                    && self.plan.records[other.record].source == source
                    && other.worker == target
                    && other.input == input
                    && other.position > position
            });
            self.check(!later, Violation::Order)?;
        }
        let at = &mut state.workers[worker];
        at.state |= bit;
        if let Some(next) = self.items[item as usize].next {
            at.pipe.push(next, sent);
        }
        Ok(())
    }

    /// Whether the job could end with this checkpoint: its sources are at their end, and nothing is in flight.
    pub fn is_final(&self, parts: &Parts) -> bool {
        let mut ends = parts.positions.iter().zip(&self.sources);
        let at_end = ends.all(|(at, source)| at.is_some_and(|at| usize::from(at) == source.len()));
        at_end && !parts.in_flight()
    }

    /// Whether a complete checkpoint is a consistent cut.
    fn judge_cut(&self, parts: &Parts) -> Result<(), Violation> {
        let processed = parts.states.iter().flatten().fold(0, |all, state| all | state);
        let mut logged = [0; 16];
        for log in parts.logs.iter().flatten().flatten() {
            log.iter().for_each(|(item, _)| logged[item as usize] += 1);
        }
        for (number, item) in self.items.iter().enumerate() {
            let source = self.plan.records[item.record].source;
            let sent = parts.positions[source].is_some_and(|position| item.position < position);
            let done = |number: usize| processed & 1 << number != 0;
            let due = sent && (item.visit == 0 || done(number - 1));
            let times = usize::from(done(number)) + logged[number];
            self.check(times >= usize::from(due), Violation::CutLoss)?;
            if self.exactly_once() {
                self.check(times <= usize::from(due), Violation::CutDup)?;
            }
        }
        let ended = self.is_final(parts);
        self.check(!ended || processed.count_ones() as usize == self.items.len(), Violation::End)
    }
}

impl Model for Job {
    type State = State;
    type Step = Step;
    type Violation = Violation;

    fn first(&self) -> State {
        State::start(&self.plan, None, 0, 0)
    }

    fn steps(&self, state: &mut State, steps: &mut Vec<Step>) {
        let plan = &self.plan;
        for worker in 0..plan.workers {
            if self.gate_frontier(state, worker) > state.workers[worker].gate {
                if plan.reduced {
                    steps.clear();
                    steps.push(Step::Snapshot(worker));
                    return;
                }
                steps.push(Step::Snapshot(worker));
            }
        }
        let reading = state.workers.iter().enumerate().find(|(_, worker)| worker.reading);
        if let Some((number, worker)) = reading {
            let left = usize::from(worker.position) < self.sources[number].len();
            steps.extend(left.then_some(Step::Read(number)));
            // There is no other epoch to read it in.
            let last = worker.epoch > plan.checkpoints;
            steps.extend((!left || !last).then_some(Step::Stop(number)));
            return;
        }
        if state.begun < plan.checkpoints {
            steps.push(Step::Begin);
        }
        for (number, checkpoint) in state.checkpoints.iter().enumerate() {
            if let Checkpoint::Pending(parts) = checkpoint {
                if parts.complete(plan) {
                    if plan.reduced {
                        steps.clear();
                        steps.push(Step::Complete(number as u8));
                        return;
                    }
                    steps.push(Step::Complete(number as u8));
                }
                if !plan.reduced || **parts == Parts::default() {
                    steps.push(Step::Abort(number as u8));
                }
            }
        }
        let returning = state.returning(plan);
        for worker in 0..plan.workers {
            let left = usize::from(state.workers[worker].position) < self.sources[worker].len();
            if left && !plan.reduced {
                steps.push(Step::Read(worker));
            }
            if state.workers[worker].epoch <= state.begun {
                steps.push(Step::Hear(worker));
            }
            for input in 0..plan.inputs {
                for from in 0..plan.workers {
                    if !state.network[self.link(input, from, worker)].is_empty() {
                        steps.push(Step::Deliver { input, from, to: worker });
                    }
                }
                let to = state.arriving(plan, input);
                let next = open(state, worker, input) + 1;
                steps.extend((next..=to).map(|frontier| Step::Observe {
                    worker,
                    port: input,
                    frontier,
                }));
            }
            for port in 0..state.workers[worker].ports.len() {
                if self.releasable(state, worker, port) {
                    steps.push(Step::Release { worker, port });
                }
                let Port { timers, machine, .. } = &state.workers[worker].ports[port];
                let (waits, next) = (machine.next() < machine.open(), machine.next().0);
                if *timers != 0 && (!plan.reduced || waits && *timers & 1 << next != 0) {
                    steps.push(Step::Timer { worker, port });
                }
            }
            if plan.feedback {
                let port = plan.inputs;
                if open(state, worker, port) < state.workers[worker].epoch {
                    steps.push(Step::Announce(worker));
                }
                let next = state.workers[worker].ports[port].machine.next().0 as u8 + 1;
                let to = returning.min(open(state, worker, port));
                steps.extend((next..=to).map(|frontier| Step::Observe { worker, port, frontier }));
                if !state.workers[worker].pipe.is_empty() {
                    steps.push(Step::Return(worker));
                }
            }
        }
    }

    fn faults(&self, state: &State, steps: &mut Vec<Step>) {
        let nothing_new = self.plan.reduced && state.restorable.is_none();
        if state.crashes < self.plan.crashes && !nothing_new {
            steps.push(Step::Crash);
        }
    }

    fn take(&self, state: &mut State, step: Step) -> Result<(), Violation> {
        let plan = &self.plan;
        let inputs = plan.inputs;
        let frontiers = |state: &State| {
            let arriving = |input| state.arriving(plan, input);
            let inputs: Vec<u8> = (0..inputs).map(arriving).collect();
            (inputs, state.gates(plan), state.returning(plan))
        };
        let before = (!plan.reduced).then(|| frontiers(state));
        match step {
            Step::Read(worker) => {
                let source = &mut state.workers[worker];
                let item = self.sources[worker][usize::from(source.position)];
                source.position += 1;
                let epoch = source.epoch;
                self.send(state, worker, item, epoch);
            }
            Step::Deliver { input, from, to } => {
                let link = self.link(input, from, to);
                let batch = state.network[link].pop().expect("something to deliver");
                self.arrive(state, to, input, batch)?;
            }
            Step::Stop(worker) => state.workers[worker].reading = false,
            Step::Begin => {
                state.begun += 1;
                state.checkpoints[state.begun as usize] = Checkpoint::Pending(Box::default());
            }
            Step::Hear(worker) => self.hear(state, worker)?,
            Step::Announce(worker) => self.announce(state, worker)?,
            Step::Observe { worker, port, frontier } => {
                self.step(state, worker, port, Event::Frontier(Some(epoch(frontier))))?;
                // It is told once: all barriers below have arrived.
                let machine = &state.workers[worker].ports[port].machine;
                let arrived = if port < inputs { machine.open() } else { machine.next() };
                self.check(arrived == epoch(frontier), Violation::Frontier)?;
            }
            Step::Timer { worker, port } => self.timer(state, worker, port)?,
            Step::Release { worker, port } => self.release(state, worker, port)?,
            Step::Return(worker) => {
                let batch = state.workers[worker].pipe.pop().expect("something to return");
                self.arrive(state, worker, inputs, batch)?;
            }
            Step::Snapshot(worker) => {
                let Worker { gate, state: frozen, .. } = &mut state.workers[worker];
                let (number, frozen) = (*gate, *frozen);
                *gate += 1;
                if let Checkpoint::Pending(parts) = &mut state.checkpoints[number as usize] {
                    parts.states[worker] = Some(frozen);
                }
            }
            Step::Complete(number) => {
                let done = &mut state.checkpoints[number as usize];
                if let Checkpoint::Pending(parts) = std::mem::replace(done, Checkpoint::None) {
                    self.judge_cut(&parts)?;
                    state.restorable = Some(parts);
                }
                // Those before it are subsumed.
                state.checkpoints[..number as usize].fill(Checkpoint::None);
            }
            Step::Abort(number) => state.checkpoints[number as usize] = Checkpoint::None,
            Step::Crash => {
                let from = state.restorable.take();
                *state = State::start(plan, from, state.begun, state.crashes + 1);
                return Ok(());
            }
        }
        let Some(before) = before else { return Ok(()) };
        let now = frontiers(state);
        let forward = before.0.iter().zip(&now.0).all(|(before, now)| before <= now);
        self.check(forward && before.1 <= now.1 && before.2 <= now.2, Violation::Frontier)
    }

    fn ended(&self, state: &State) -> Result<(), Violation> {
        let all_passed = state.workers.iter().all(|worker| {
            let passed = |port: &Port| port.machine.next().0 > state.begun.into();
            worker.gate > state.begun && worker.ports.iter().all(passed)
        });
        if state.in_flight() || !all_passed {
            return Err(Violation::Stuck);
        }
        let processed = state.workers.iter().fold(0, |all, worker| all | worker.state);
        if processed.count_ones() as usize == self.items.len() {
            Ok(())
        } else {
            Err(Violation::Loss)
        }
    }

    fn endless(&self) -> Violation {
        Violation::Stuck
    }
}

fn epoch(number: u8) -> Epoch {
    debug_assert!((1..=EPOCHS_END as u8).contains(&number));
    Epoch(number.into())
}

fn open(state: &State, worker: usize, port: usize) -> u8 {
    state.workers[worker].ports[port].machine.open().0 as u8
}
