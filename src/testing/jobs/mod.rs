//! Random jobs: what a runtime must survive is not only what somebody thought of.
//!
//! A seed draws a dataflow: sources, stateless operators, keyed state, unions, joins, exchanges of every kind, loops and
//! sinks, slow operators and fat records. [`RandomJob::build`] builds it on Highwater; [`RandomJob::check`] compares what
//! its sinks have committed with what an *oracle* finds, which interprets the same drawing record by record, one node
//! after the other, without the runtime.
//!
//! # What is checked
//! * Every record has a header and a checksum, which every node verifies: that it is whole, that it comes from where
//!   the node reads, that the worker owns its key, or is the one that it was routed to.
//! * **Loss and duplicates**: the committed records of every sink are those of the oracle, as multisets.
//! * **State**: a keyed operator counts the records of every key, and mixes them into a digest in the order in which it
//!   sees them; both go with the record. Of one key every count is there once, from 1 to the number of the oracle,
//!   and the digests are those of the records in the order of their counts.
//! * **Operator state**: counts in a broadcast state and those of partitions in a union list are held to the same, and a key
//!   that looks at a broadcast state never sees less of it than before.
//!   What kinds of keyed state know of a key agrees, and what an operator list holds in the last checkpoint is every
//!   record once.
//! * **Timers**: a record that waits for one is let go once, by a timer that is due, or at the end of input.
//! * **Event time**: no record is late in a keyed operator that is not in or behind a loop, since event time grows in
//!   every split, and the watermark that a key sees never goes back.
//! * **Order**: records of one split that take the same way, under the same keys, keep their order, where nothing
//!   between promises less (rebalance, loop).
//!
//! In at-least-once mode only loss is checked, and headers.

mod build;
mod item;
mod oracle;
mod state;

pub use item::Item;
pub use oracle::Verdict;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::{FaultSink, Outcome, Random, Simulation, fewer};
use crate::config::{CheckpointMode, JobConfig};
use crate::connect::Collect;
use crate::format::{SectionHeader, SectionKind};
use crate::ids::Name;
use crate::job::Job;

/// What a barrier may need for one exchange, at the slowest clock and with workers that get few turns.
const BARRIER_TIME: Duration = Duration::from_millis(500);

/// Records that all nodes of a job process together, at the most: a simulation should take milliseconds.
const STEPS_MAX: usize = 2_500;

/// What a node does.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// Reads.
    Source {
        /// The number of the source.
        number: u64,
        splits: u64,
        /// Of each split.
        records: u64,
        keys: u64,
        /// Whether its records have an event time.
        timed: bool,
        /// Records with a large payload. Units: one in so many.
        fat_in: u64,
        /// Units: bytes.
        fat_bytes: u64,
    },
    /// Draws a new key.
    Map { keys: u64 },
    /// Drops one record in so many.
    Filter { one_in: u64 },
    /// Gives up to so many records for each.
    FlatMap { most: u64 },
    /// Counts the records of each key, out of any number of inputs.
    Keyed {
        /// Whether a second state counts the inputs apart.
        sides: bool,
    },
    /// All records of two inputs.
    Union,
    /// Spreads records over the workers.
    Rebalance,
    /// Shows all records to all workers; each keeps its share of the keys.
    Broadcast,
    /// Sends records where their key says.
    Route,
    /// Counts the records of each key, beside the counts of a broadcast input.
    Beside,
    /// Counts the records of each partition, in a union list.
    Claims,
    /// Counts the records of each key, in states of several kinds that have to agree.
    Every {
        /// Which kinds: lists and maps, or reducing and aggregating ones. Those that expire are with both.
        lists: bool,
    },
    /// Keeps records back until a timer fires.
    Timers {
        /// Of event time, or of processing time.
        event: bool,
        /// For how long. Units: milliseconds.
        delay: u64,
    },
    /// Keeps all that it has seen, in an operator list.
    Listed,
    /// Lets records go round.
    Loop {
        /// How often, at the most.
        rounds: u64,
        /// What they go through, one node after the other.
        body: Vec<Node>,
    },
    /// Commits.
    Sink,
}

/// A node of the dataflow.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Unique in the job, above zero.
    pub(super) id: u64,
    pub(super) kind: Kind,
    /// The nodes that it reads, by their ids.
    pub(super) inputs: Vec<u64>,
    /// Whether the order of what comes in is promised.
    pub(super) ordered: bool,
    /// Whether no record has gone round a loop before.
    pub(super) straight: bool,
    /// How long it takes for a record, at the most; zero: no time. Units: microseconds.
    pub(super) slow_us: u64,
}

impl Node {
    /// The name of the channel of an input, if this is a node with channels.
    fn channel(&self, side: usize) -> Option<String> {
        let exchanges = matches!(
            self.kind,
            Kind::Keyed { .. }
                | Kind::Rebalance
                | Kind::Broadcast
                | Kind::Route
                | Kind::Beside
                | Kind::Claims
                | Kind::Every { .. }
                | Kind::Timers { .. }
                | Kind::Listed
                | Kind::Loop { .. }
        );
        exchanges.then(|| match self.kind {
            Kind::Loop { .. } => format!("loop-{}", self.id),
            _ => format!("channel-{}-{side}", self.id),
        })
    }

    /// Adds the names of all channels for which an alignment timeout may be set.
    fn channels(&self, names: &mut Vec<String>) {
        // Exact only as long as barriers do not overtake.
        let sides = match self.kind {
            Kind::Broadcast => 0,
            Kind::Beside => 1,
            _ => self.inputs.len(),
        };
        names.extend((0..sides).filter_map(|side| self.channel(side)));
        if let Kind::Loop { body, .. } = &self.kind {
            for node in body {
                node.channels(names);
            }
        }
    }

    /// Calls `f` for this node and those of its body.
    fn each(&self, f: &mut impl FnMut(&Self)) {
        f(self);
        if let Kind::Loop { body, .. } = &self.kind {
            for node in body {
                node.each(f);
            }
        }
    }

    fn name(&self) -> &'static str {
        match &self.kind {
            Kind::Source { .. } => "source",
            Kind::Map { .. } => "map",
            Kind::Filter { .. } => "filter",
            Kind::FlatMap { .. } => "flat_map",
            Kind::Keyed { .. } => match self.inputs.len() {
                1 => "keyed",
                2 => "join of two",
                _ => "join of three",
            },
            Kind::Union => "union",
            Kind::Rebalance => "rebalance",
            Kind::Broadcast => "broadcast",
            Kind::Route => "route",
            Kind::Beside => "beside a broadcast",
            Kind::Claims => "union list",
            Kind::Every { lists: true } => "lists and maps",
            Kind::Every { lists: false } => "reducing and aggregating",
            Kind::Timers { event: true, .. } => "event timers",
            Kind::Timers { event: false, .. } => "processing timers",
            Kind::Listed => "operator list",
            Kind::Loop { .. } => "loop",
            Kind::Sink => "sink",
        }
    }
}

/// A job that was drawn from a seed. Clones share their sinks' targets.
///
/// ```
/// use highwater::testing::jobs::RandomJob;
///
/// let job = RandomJob::draw(7);
/// let outcome = job.simulate();
/// job.check(&outcome);
/// ```
#[derive(Clone)]
pub struct RandomJob {
    seed: u64,
    mode: CheckpointMode,
    /// In an order in which every node stands behind those that it reads.
    nodes: Arc<Vec<Node>>,
    /// For every sink its node and its target.
    targets: Arc<Vec<(u64, Collect<Item>)>>,
}

impl std::fmt::Debug for RandomJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "seed {}, {:?}", self.seed, self.mode)?;
        for node in self.nodes.iter() {
            let Node { id, kind, inputs, slow_us, .. } = node;
            writeln!(f, "  {id}: {kind:?} of {inputs:?}, takes {slow_us} us")?;
        }
        Ok(())
    }
}

/// Draws the nodes of one job.
struct Draft {
    random: Random,
    nodes: Vec<Node>,
    ids: u64,
}

impl Draft {
    fn id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    fn node(&mut self, kind: Kind, inputs: Vec<u64>) -> Node {
        let ordered = inputs.iter().all(|input| self.ordered_behind(*input));
        let straight = inputs.iter().all(|input| self.straight_behind(*input));
        let id = self.id();
        let slow = self.random.chance(0.2);
        let slow_us = if slow { self.random.scaled(10, 5_000) } else { 0 };
        Node { id, kind, inputs, ordered, straight, slow_us }
    }

    fn sources(&mut self) {
        let count = self.random.pick(&[1, 1, 2, 2, 3]);
        for number in 0..count {
            let random = &mut self.random;
            let splits = random.between(1, 4);
            let records = fewer(random.scaled(10, 160) / splits + 1);
            let keys = random.scaled(1, 30);
            let fat_in = random.pick(&[u64::MAX, u64::MAX, 50, 10]);
            let fat_bytes = random.scaled(500, 20_000);
            let timed = random.chance(0.6);
            let kind = Kind::Source { number, splits, records, keys, timed, fat_in, fat_bytes };
            let node = self.node(kind, Vec::new());
            self.nodes.push(Node { slow_us: 0, ..node });
        }
    }

    /// Whether the order of what comes out of a node is promised, if that of what goes in is.
    fn keeps_order(kind: &Kind) -> bool {
        !matches!(kind, Kind::Rebalance | Kind::Loop { .. } | Kind::Timers { .. } | Kind::Listed)
    }

    /// The nodes that nobody reads.
    fn loose(&self) -> Vec<u64> {
        let mut read = BTreeSet::new();
        for node in &self.nodes {
            node.each(&mut |node| read.extend(node.inputs.iter().copied()));
        }
        let ends = self.nodes.iter().filter(|node| !matches!(node.kind, Kind::Sink));
        ends.map(|node| node.id).filter(|id| !read.contains(id)).collect()
    }

    /// A node to read: one that nobody reads yet, more often than not.
    fn input(&mut self) -> u64 {
        let loose = self.loose();
        if !loose.is_empty() && self.random.chance(0.75) {
            return self.random.pick(&loose);
        }
        let all: Vec<u64> = self.nodes.iter().map(|node| node.id).collect();
        self.random.pick(&all)
    }

    /// Whether the order of what comes out of a node is promised.
    fn ordered_behind(&self, id: u64) -> bool {
        let node = self.nodes.iter().find(|node| node.id == id);
        node.is_some_and(|node| node.ordered && Self::keeps_order(&node.kind))
    }

    fn straight_behind(&self, id: u64) -> bool {
        let node = self.nodes.iter().find(|node| node.id == id);
        node.is_some_and(|node| {
            node.straight && !matches!(node.kind, Kind::Loop { .. } | Kind::Timers { .. })
        })
    }

    fn kind(&mut self, depth: u32) -> Kind {
        let random = &mut self.random;
        match random.below(if depth < 2 { 20 } else { 18 }) {
            0 | 1 => Kind::Map { keys: random.scaled(1, 30) },
            2 => Kind::Filter { one_in: random.between(2, 6) },
            // In a loop it must not give more than it takes.
            3 | 4 => Kind::FlatMap { most: if depth == 0 { 3 } else { 2 } },
            5..=9 => Kind::Keyed { sides: random.chance(0.4) },
            10 | 11 => Kind::Union,
            12 | 13 => Kind::Rebalance,
            14 | 15 => Kind::Broadcast,
            16 | 17 => Kind::Route,
            _ => {
                let rounds = random.between(1, 5);
                let length = random.between(1, 3);
                let mut body = Vec::new();
                for _ in 0..length {
                    let kind = match self.kind(depth + 1) {
                        Kind::Union => Kind::Rebalance,
                        kind => kind,
                    };
                    // Out of the loop's surroundings.
                    let joins = matches!(kind, Kind::Keyed { .. }) && self.random.chance(0.4);
                    let others = if joins { vec![self.input()] } else { Vec::new() };
                    let node = self.node(kind, others);
                    body.push(Node { ordered: false, straight: false, ..node });
                }
                Kind::Loop { rounds, body }
            }
        }
    }

    fn operator(&mut self) {
        let kind = self.kind(0);
        let inputs = match kind {
            Kind::Union => 2,
            Kind::Keyed { .. } => self.random.pick(&[1, 1, 1, 2, 3]),
            _ => 1,
        };
        let inputs: Vec<u64> = (0..inputs).map(|_| self.input()).collect();
        let mut node = self.node(kind, inputs);
        Self::link(&mut node);
        self.nodes.push(node);
    }

    /// What the body of a loop reads first: the loop itself, then one node the other.
    fn link(node: &mut Node) {
        if let Kind::Loop { body, .. } = &mut node.kind {
            let mut last = node.id;
            for inner in body {
                inner.inputs.insert(0, last);
                last = inner.id;
                Self::link(inner);
            }
        }
    }

    /// Operators with operator state, some of the time; drawn after all else, so that the rest of a seed stays what it was.
    fn operator_state(&mut self) {
        let behind = |kind: &Kind| !matches!(kind, Kind::Sink);
        let all: Vec<u64> =
            self.nodes.iter().filter(|node| behind(&node.kind)).map(|node| node.id).collect();
        for _ in 0..self.random.pick(&[0, 0, 1, 1, 2]) {
            let (kind, inputs) = match self.random.below(3) {
                0 => (Kind::Claims, 1),
                _ => (Kind::Beside, 2),
            };
            let inputs = (0..inputs).map(|_| self.random.pick(&all)).collect();
            let node = self.node(kind, inputs);
            let id = node.id;
            self.nodes.push(node);
            self.sink(id);
        }
    }

    /// Further operators with state, each on top of any node, like those before.
    fn more_state(&mut self) {
        let behind = |kind: &Kind| !matches!(kind, Kind::Sink);
        let all: Vec<u64> =
            self.nodes.iter().filter(|node| behind(&node.kind)).map(|node| node.id).collect();
        for _ in 0..self.random.pick(&[0, 1, 1, 2]) {
            let kind = match self.random.below(5) {
                0 | 1 => Kind::Every { lists: self.random.chance(0.5) },
                2 | 3 => {
                    let event = self.random.chance(0.5);
                    Kind::Timers { event, delay: self.random.scaled(1, 200) }
                }
                _ => Kind::Listed,
            };
            let fires = matches!(kind, Kind::Timers { .. });
            let input = self.random.pick(&all);
            let mut node = self.node(kind, vec![input]);
            // Records are processed as their timers fire.
            node.ordered &= !fires;
            let id = node.id;
            self.nodes.push(node);
            self.sink(id);
        }
    }

    fn sink(&mut self, input: u64) {
        let node = self.node(Kind::Sink, vec![input]);
        self.nodes.push(Node { slow_us: 0, ..node });
    }
}

impl RandomJob {
    /// Draws a job.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut draft = Draft { random: Random::new(seed).fork(200), nodes: Vec::new(), ids: 0 };
        draft.sources();
        for _ in 0..draft.random.between(2, 8) {
            draft.operator();
        }
        for id in draft.loose() {
            draft.sink(id);
        }
        // What a keyed operator has seen is best seen right behind it.
        let keyed = draft.nodes.iter().filter(|node| matches!(node.kind, Kind::Keyed { .. }));
        for id in keyed.map(|node| node.id).collect::<Vec<_>>() {
            if draft.random.chance(0.4) {
                draft.sink(id);
            }
        }
        let at_least_once = draft.random.chance(0.1);
        let mode =
            if at_least_once { CheckpointMode::AtLeastOnce } else { CheckpointMode::ExactlyOnce };
        draft.random = Random::new(seed).fork(202);
        draft.operator_state();
        draft.random = Random::new(seed).fork(203);
        draft.more_state();
        let sinks = draft.nodes.iter().filter(|node| matches!(node.kind, Kind::Sink));
        let targets = sinks.map(|node| (node.id, Collect::new())).collect();
        let mut job = Self { seed, mode, nodes: Arc::new(draft.nodes), targets: Arc::new(targets) };
        while job.halve_if_large() {}
        job
    }

    /// Halves the records of all sources, if they are too many.
    fn halve_if_large(&mut self) -> bool {
        if self.oracle().steps() <= STEPS_MAX {
            return false;
        }
        let mut nodes = (*self.nodes).clone();
        let mut halved = false;
        for node in &mut nodes {
            if let Kind::Source { records, .. } = &mut node.kind {
                halved |= *records > 1;
                *records = records.div_ceil(2);
            }
        }
        self.nodes = Arc::new(nodes);
        halved
    }

    /// How records are kept: at least once only loss is checked.
    #[must_use]
    pub fn mode(&self) -> CheckpointMode {
        self.mode
    }

    /// What kinds of nodes there are, those in loops included.
    #[must_use]
    pub fn kinds(&self) -> Vec<&'static str> {
        let mut kinds = Vec::new();
        for node in self.nodes.iter() {
            node.each(&mut |inner| {
                kinds.push(inner.name());
                let nested = |inner: &Node| matches!(inner.kind, Kind::Loop { .. });
                if let Kind::Loop { body, .. } = &inner.kind
                    && body.iter().any(nested)
                {
                    kinds.push("loop in a loop");
                }
                if let Kind::Loop { body, .. } = &inner.kind
                    && body.iter().any(|inner| inner.inputs.len() > 1)
                {
                    kinds.push("join in a loop");
                }
                if inner.slow_us > 0 {
                    kinds.push("slow operator");
                }
                if let Kind::Source { fat_in, .. } = inner.kind
                    && fat_in < u64::MAX
                {
                    kinds.push("fat records");
                }
            });
        }
        kinds
    }

    /// Whether any source has event time, or a timer waits for some.
    fn is_timed(&self) -> bool {
        let timed =
            |kind: &Kind| matches!(kind, Kind::Source { timed: true, .. } | Kind::Timers { .. });
        self.nodes.iter().any(|node| timed(&node.kind))
    }

    /// A simulated machine for this job, with faults of all kinds, as the seed draws them.
    #[must_use]
    pub fn simulation(&self) -> Simulation {
        let mut random = Random::new(self.seed).fork(201);
        let mut simulation = Simulation::new(self.seed)
            .workers(1..=random.pick(&[1, 2, 3, 4, 4]))
            .crashes(random.pick(&[0, 1, 2, 3, 5, 8, 12]))
            .panics(random.pick(&[0, 0, 1, 2]))
            .stops(random.pick(&[0, 0, 0, 1, 2]))
            .harsh(random.chance(0.6))
            .drains(!self.is_timed())
            .varied_state(true);
        match random.below(5) {
            0 => simulation = simulation.storage_errors(random.pick(&[0.005, 0.05])),
            1 => simulation = simulation.commit_errors(random.pick(&[0.02, 0.2])),
            _ => {}
        }
        if random.chance(0.5) {
            let delay = random.pick(&[0.02, 0.1, 0.5]);
            simulation = simulation.control_faults(delay, random.pick(&[0.0, 0.05, 0.3]));
        }
        let configure = self.configure(random.fork(1));
        simulation.config(configure)
    }

    /// Draws, for every life, how long barriers wait, for single channels and for the job.
    fn configure(&self, random: Random) -> impl Fn(&mut JobConfig) + 'static {
        let mode = self.mode;
        let mut channels = Vec::new();
        for node in self.nodes.iter() {
            node.channels(&mut channels);
        }
        let lives = Cell::new(0);
        let fixed = random.fork(1_000).chance(0.5);
        move |config| {
            let life = if fixed { 0 } else { lives.replace(lives.get() + 1) };
            let mut random = random.fork(life);
            let timeouts = [None, Some(0), Some(0), Some(500), Some(5_000), Some(200_000)];
            let mut timeout = || random.pick(&timeouts).map(Duration::from_micros);
            config.checkpoints.mode = mode;
            let general = timeout();
            let own: Vec<Option<Duration>> = channels.iter().map(|_| timeout()).collect();
            if random.chance(0.5) {
                config.checkpoints.alignment_timeout = general;
            }
            // A barrier needs turns for every exchange. With less time for them no checkpoint would ever complete.
            let least = BARRIER_TIME * (channels.len() as u32 + 2);
            config.checkpoints.timeout = config.checkpoints.timeout.max(least);
            let often = random.pick(&[0.0, 0.3, 1.0]);
            for (name, timeout) in channels.iter().zip(own) {
                if random.chance(often) {
                    let name = Name::new(name).expect("names of channels are names");
                    config.checkpoints.channel_alignment_timeouts.insert(name, timeout);
                }
            }
        }
    }

    /// Whether lives of the simulation may keep their state in RocksDB.
    #[must_use]
    pub fn may_use_rocksdb(&self) -> bool {
        self.simulation().may_use_rocksdb()
    }

    /// Simulates the job, with faults of all kinds.
    #[must_use]
    pub fn simulate(&self) -> Outcome {
        let job = self.clone();
        self.simulation().run(move |built| {
            job.build(built);
            Ok(())
        })
    }

    /// Builds the job.
    pub fn build(&self, job: &Job<'_>) {
        build::build(job, &self.nodes, &|id| {
            let target = self.targets.iter().find(|(node, _)| *node == id);
            FaultSink::new(target.expect("every sink has a target").1.clone())
        });
    }

    fn oracle(&self) -> oracle::Oracle {
        oracle::Oracle::run(&self.nodes)
    }

    /// Compares what was committed with what follows from the sources.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let committed = self.targets.iter().map(|(id, target)| (*id, target.handle().committed()));
        let committed: Vec<(u64, Vec<Item>)> = committed.collect();
        self.oracle().compare(&self.nodes, &committed, self.mode)
    }

    /// Checks that the job came to its end, and committed what it should have.
    ///
    /// # Panics
    /// If not.
    pub fn check(&self, outcome: &Outcome) {
        outcome.write_trace();
        outcome.check();
        let verdict = self.verdict();
        assert!(verdict.is_good(), "{verdict}\ndrawn: {}", outcome.drawn);
        self.check_lists(outcome);
    }

    /// The operator lists of the last checkpoint hold each record once.
    fn check_lists(&self, outcome: &Outcome) {
        let listed = |node: &&Node| matches!(node.kind, Kind::Listed);
        let newest = outcome.store.newest().expect("memory can be read");
        let manifest = newest.map(|epoch| outcome.store.load(epoch).expect("it is the newest"));
        let Some(manifest) = manifest else { return };
        let oracle = self.oracle();
        for node in self.nodes.iter().filter(listed) {
            let name = format!("listed-{}", node.id);
            let sections = manifest.parts.iter().flat_map(|part| &part.sections);
            let is_it = |header: &SectionHeader| {
                header.kind == SectionKind::OperatorList && header.operator.as_str() == name
            };
            let held: u64 =
                sections.filter(|section| is_it(&section.header)).map(|s| s.entries).sum();
            let total = oracle.total(node.id, 0);
            let exact = self.mode == CheckpointMode::ExactlyOnce;
            assert!(
                held == total || !exact && held > total,
                "LOSS or DUP: {name} holds {held} of {total}; drawn: {}",
                outcome.drawn
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the sinks of a job have committed, and the oracle's opinion of it after a change.
    fn verdict_of(change: impl Fn(&mut Vec<Item>)) -> Vec<Verdict> {
        let jobs = (0..40).map(RandomJob::draw);
        let jobs = jobs.filter(|job| job.mode == CheckpointMode::ExactlyOnce).take(8);
        jobs.map(|job| {
            let built = job.clone();
            let outcome = Simulation::new(job.seed).run(move |dataflow| {
                built.build(dataflow);
                Ok(())
            });
            job.check(&outcome);
            let committed = job.targets.iter().map(|(id, target)| {
                let mut items = target.handle().committed();
                change(&mut items);
                (*id, items)
            });
            let committed: Vec<(u64, Vec<Item>)> = committed.collect();
            job.oracle().compare(&job.nodes, &committed, job.mode)
        })
        .collect()
    }

    #[test]
    fn what_is_committed_without_faults_is_what_the_oracle_says() {
        let verdicts = verdict_of(|_| ());
        assert_eq!(verdicts.len(), 8);
        assert!(verdicts.iter().all(Verdict::is_good), "{verdicts:?}");
    }

    #[test]
    fn the_oracle_notices_a_record_that_is_lost_and_one_that_is_there_twice() {
        let verdicts = verdict_of(|items| drop(items.pop()));
        assert!(verdicts.iter().all(|verdict| verdict.lost > 0), "{verdicts:?}");
        let verdicts = verdict_of(|items| items.extend(items.last().cloned()));
        assert!(verdicts.iter().all(|verdict| verdict.doubled > 0 && verdict.lost == 0));
    }

    #[test]
    fn the_oracle_notices_records_out_of_order() {
        let verdicts = verdict_of(|items| items.reverse());
        assert!(verdicts.iter().all(|verdict| verdict.lost + verdict.doubled == 0));
        let disordered = verdicts.iter().filter(|verdict| verdict.disordered > 0);
        assert!(disordered.count() > 2, "{verdicts:?}");
    }

    #[test]
    fn the_oracle_notices_a_state_that_counted_a_record_twice_or_forgot_one() {
        for change in [1_i64, -1] {
            let verdicts = verdict_of(|items| {
                // As if state had been restored to another moment than the record.
                if let Some(item) = items.iter_mut().rev().find(|item| !item.stamps.is_empty()) {
                    let stamp = item.stamps.last_mut().unwrap();
                    stamp.count = stamp.count.wrapping_add_signed(change);
                    item.seal();
                }
            });
            let miscounted = verdicts.iter().filter(|verdict| verdict.miscounted > 0);
            assert!(miscounted.count() > 2, "{change}: {verdicts:?}");
        }
    }
}
