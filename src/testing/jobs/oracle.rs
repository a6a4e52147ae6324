//! What a random job should commit: its drawing interpreted node by node, record by record.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::item::{Identity, Item, Stamp, mix};
use super::{Kind, Node};
use crate::config::CheckpointMode;
use crate::testing::Random;

/// Partitions of a union list.
pub(super) const PARTITIONS: u64 = 8;

/// Marks the counts of a broadcast state: replicas see records of several senders in orders of their own, so there is no
/// digest of them.
const REPLICATED: u64 = 1 << 32;

/// The record of a source at a place.
pub(super) fn record(node: &Node, split: u64, index: u64) -> Item {
    let Kind::Source { number, keys, fat_in, fat_bytes, .. } = node.kind else {
        panic!("node {} is no source", node.id);
    };
    let mut random = Random::new(mix(node.id, split, index));
    let payload = if random.below(fat_in) == 0 { fat_bytes } else { random.below(16) };
    Item::new(node.id, (number, split, index), random.below(keys), payload as usize)
}

/// What a node without state makes of a record.
pub(super) fn stateless(node: &Node, mut item: Item, out: &mut Vec<Item>) {
    match node.kind {
        Kind::Map { keys } => {
            item.key = item.draw(node.id, keys);
            item.pass(node.id, 0);
            item.seal();
            out.push(item);
        }
        Kind::Filter { one_in } => {
            if item.draw(node.id, one_in) != 0 {
                item.pass(node.id, 0);
                item.seal();
                out.push(item);
            }
        }
        Kind::FlatMap { most } => {
            for output in 0..item.draw(node.id, most + 1) {
                let mut item = item.clone();
                item.pass(node.id, output);
                item.part(node.id, output);
                item.seal();
                out.push(item);
            }
        }
        _ => panic!("node {} is not stateless", node.id),
    }
}

/// A record has come through an exchange, or into one of the inputs of a node.
pub(super) fn arrived(node: &Node, side: usize, mut item: Item) -> Item {
    item.pass(node.id, side as u64);
    match node.kind {
        Kind::Keyed { .. }
        | Kind::Route
        | Kind::Broadcast
        | Kind::Beside
        | Kind::Claims
        | Kind::Every { .. }
        | Kind::Timers { .. } => {
            let lane = mix(side as u64, item.key, 1);
            item.part(node.id, lane);
        }
        _ => item.part(node.id, side as u64),
    }
    item.seal();
    item
}

/// Under which a node counts what comes into one of its inputs.
pub(super) fn counter(node: &Node, side: usize) -> u64 {
    if matches!(node.kind, Kind::Beside) && side == 1 { node.id | REPLICATED } else { node.id }
}

/// A record enters a loop of up to so many rounds.
pub(super) fn enter(node: &Node, rounds: u64, mut item: Item) -> Item {
    let drawn = item.draw(node.id, rounds + 1);
    item.rounds.push(drawn as u8);
    item.pass(node.id, 0);
    item.seal();
    item
}

/// Whether a record goes round once more.
pub(super) fn goes_round(item: &Item) -> bool {
    item.rounds.last().is_some_and(|rounds| *rounds > 0)
}

/// A record goes round once more.
pub(super) fn again(node: &Node, mut item: Item) -> Item {
    if let Some(rounds) = item.rounds.last_mut() {
        *rounds -= 1;
    }
    item.pass(node.id, 1);
    item.seal();
    item
}

/// A record leaves a loop.
pub(super) fn leave(node: &Node, mut item: Item) -> Item {
    item.rounds.pop();
    item.pass(node.id, 2);
    item.seal();
    item
}

/// The digest of a key after one more record.
pub(super) fn digest(before: u64, item: &Item) -> u64 {
    mix(before, item.path, item.index)
}

/// What should come of a job.
pub(super) struct Oracle {
    /// What comes out of each node; of a sink, what goes in.
    out: BTreeMap<u64, Vec<Item>>,
    /// How many records each operator sees of each key.
    totals: BTreeMap<(u64, u64), u64>,
    /// The nodes in loops that have got what comes from outside of the loop.
    joined: BTreeSet<u64>,
    steps: usize,
}

impl Oracle {
    pub(super) fn run(nodes: &[Node]) -> Self {
        let mut oracle = Self {
            out: BTreeMap::new(),
            totals: BTreeMap::new(),
            joined: BTreeSet::new(),
            steps: 0,
        };
        for node in nodes {
            let input = |id: &u64| oracle.out.get(id).cloned().unwrap_or_default();
            let inputs: Vec<Vec<Item>> = node.inputs.iter().map(input).collect();
            let out = oracle.node(node, inputs);
            oracle.out.insert(node.id, out);
        }
        oracle
    }

    /// How many records an operator sees of a key.
    pub(super) fn total(&self, operator: u64, key: u64) -> u64 {
        self.totals.get(&(operator, key)).copied().unwrap_or_default()
    }

    /// Number of records that all nodes have processed.
    pub(super) fn steps(&self) -> usize {
        self.steps
    }

    fn node(&mut self, node: &Node, inputs: Vec<Vec<Item>>) -> Vec<Item> {
        self.steps += inputs.iter().map(Vec::len).sum::<usize>();
        let mut out = Vec::new();
        match &node.kind {
            Kind::Source { splits, records, .. } => {
                for split in 0..*splits {
                    out.extend((0..*records).map(|index| record(node, split, index)));
                }
            }
            Kind::Map { .. } | Kind::Filter { .. } | Kind::FlatMap { .. } => {
                for item in inputs.into_iter().flatten() {
                    stateless(node, item, &mut out);
                }
            }
            Kind::Beside
            | Kind::Claims
            | Kind::Every { .. }
            | Kind::Timers { .. }
            | Kind::Listed => {
                for (side, items) in inputs.into_iter().enumerate() {
                    for item in items {
                        let operator = counter(node, side);
                        let key = match node.kind {
                            Kind::Claims => item.key % PARTITIONS,
                            Kind::Listed => 0,
                            _ => item.key,
                        };
                        *self.totals.entry((operator, key)).or_default() += 1;
                        out.push(arrived(node, side, item));
                    }
                }
            }
            Kind::Keyed { .. } | Kind::Union | Kind::Rebalance | Kind::Broadcast | Kind::Route => {
                for (side, items) in inputs.into_iter().enumerate() {
                    out.extend(items.into_iter().map(|item| arrived(node, side, item)));
                }
                if matches!(node.kind, Kind::Keyed { .. }) {
                    for item in &out {
                        *self.totals.entry((node.id, item.key)).or_default() += 1;
                    }
                }
            }
            Kind::Loop { rounds, body } => {
                let items = inputs.into_iter().flatten();
                let mut going: Vec<Item> = items.map(|item| enter(node, *rounds, item)).collect();
                // Once at least: nodes inside may have inputs of their own.
                loop {
                    for inner in body {
                        let mut inputs = vec![going];
                        if self.joined.insert(inner.id) {
                            let others = inner.inputs[1..].iter();
                            let other = |id| self.out.get(id).cloned().unwrap_or_default();
                            inputs.extend(others.map(other));
                        }
                        going = self.node(inner, inputs);
                    }
                    let (round, done): (Vec<Item>, Vec<Item>) =
                        going.into_iter().partition(goes_round);
                    out.extend(done.into_iter().map(|item| leave(node, item)));
                    if round.is_empty() {
                        break;
                    }
                    going = round.into_iter().map(|item| again(node, item)).collect();
                }
            }
            Kind::Sink => out.extend(inputs.into_iter().flatten()),
        }
        out
    }

    /// Compares this with what every sink has committed.
    pub(super) fn compare(
        &self,
        nodes: &[Node],
        committed: &[(u64, Vec<Item>)],
        mode: CheckpointMode,
    ) -> Verdict {
        let mut verdict = Verdict::default();
        for (id, items) in committed {
            let Some(sink) = nodes.iter().find(|node| node.id == *id) else { continue };
            for item in items {
                item.check(*id, &sink.inputs);
            }
            self.compare_sink(*id, items, mode, &mut verdict);
            if sink.ordered && mode == CheckpointMode::ExactlyOnce {
                let lanes =
                    items.iter().map(|item| ((item.source, item.split, item.lane), item.index));
                in_order(&format!("sink {id}"), lanes, &mut verdict);
            }
        }
        if mode == CheckpointMode::ExactlyOnce {
            let items = committed.iter().flat_map(|(_, items)| items);
            self.compare_stamps(nodes, items, &mut verdict);
        }
        verdict
    }

    fn compare_sink(&self, id: u64, items: &[Item], mode: CheckpointMode, verdict: &mut Verdict) {
        let mut balance: BTreeMap<Identity, i64> = BTreeMap::new();
        for item in self.out.get(&id).into_iter().flatten() {
            *balance.entry(item.identity()).or_default() += 1;
        }
        for item in items {
            *balance.entry(item.identity()).or_default() -= 1;
        }
        for (identity, count) in balance {
            if count > 0 {
                verdict.lost += 1;
                verdict.example(|| format!("sink {id}: {identity:?} is lost"));
            }
            if count < 0 && mode == CheckpointMode::ExactlyOnce {
                verdict.doubled += 1;
                verdict.example(|| {
                    format!("sink {id}: {identity:?} is there {} times too often", -count)
                });
            }
        }
    }

    fn compare_stamps<'a>(
        &self,
        nodes: &[Node],
        items: impl Iterator<Item = &'a Item>,
        verdict: &mut Verdict,
    ) {
        type Seen<'a> = (&'a Stamp, (u64, u64, u64));
        let mut seen: BTreeMap<(u64, u64), BTreeSet<Seen<'a>>> = BTreeMap::new();
        for item in items {
            let place = (item.source, item.split, item.index);
            for stamp in &item.stamps {
                seen.entry((stamp.operator, stamp.key)).or_default().insert((stamp, place));
            }
        }
        let mut ordered = BTreeSet::new();
        for node in nodes {
            node.each(&mut |node| {
                if node.ordered {
                    ordered.insert(node.id);
                }
            });
        }
        for ((operator, key), stamps) in seen {
            let what = format!("operator {operator}, key {key}");
            let total = self.total(operator, key);
            let counts: BTreeSet<u64> = stamps.iter().map(|(stamp, _)| stamp.count).collect();
            let records: BTreeSet<(u64, (u64, u64, u64))> =
                stamps.iter().map(|(stamp, place)| (stamp.path, *place)).collect();
            let bounds = counts.first() < Some(&1) || counts.last() > Some(&total);
            if bounds || counts.len() != stamps.len() || records.len() != stamps.len() {
                verdict.miscounted += 1;
                verdict.example(|| {
                    format!(
                        "{what}: {} counts from {:?} to {:?} for {} records, where {total} go in",
                        counts.len(),
                        counts.first(),
                        counts.last(),
                        records.len()
                    )
                });
                continue;
            }
            let mut by_count: Vec<Seen<'_>> = stamps.into_iter().collect();
            by_count.sort_by_key(|(stamp, _)| stamp.count);
            // Of two neighbours both digests are known.
            for pair in by_count.windows(2) {
                let ((before, _), (after, (_, _, index))) = (&pair[0], &pair[1]);
                let expected = mix(before.digest, after.path, *index);
                let mixed = before.count + 1 == after.count && operator & REPLICATED == 0;
                if mixed && expected != after.digest {
                    verdict.miscounted += 1;
                    verdict.example(|| {
                        format!("{what}: the state of count {} is of another history", after.count)
                    });
                }
            }
            if ordered.contains(&operator) {
                let lanes = by_count
                    .iter()
                    .map(|(stamp, (source, split, index))| ((*source, *split, stamp.lane), *index));
                in_order(&what, lanes, verdict);
            }
        }
    }
}

/// Checks that within a lane indices grow.
fn in_order(
    what: &str,
    lanes: impl Iterator<Item = ((u64, u64, u64), u64)>,
    verdict: &mut Verdict,
) {
    let mut last = BTreeMap::new();
    for (lane, index) in lanes {
        if let Some(before) = last.insert(lane, index)
            && before >= index
        {
            verdict.disordered += 1;
            let (source, split, _) = lane;
            verdict.example(|| {
                format!("{what}: record {source}/{split}/{index} comes after {before}")
            });
        }
    }
}

/// How what was committed differs from what should have been.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verdict {
    /// Records that are missing in a sink.
    pub lost: u64,
    /// Records that are there too often in a sink.
    pub doubled: u64,
    /// Records that came after one that they should have come before.
    pub disordered: u64,
    /// Keys of operators whose counts are not those of the records that went in, each once.
    pub miscounted: u64,
    /// Some of them, in words.
    pub examples: Vec<String>,
}

impl Verdict {
    /// Whether nothing differs.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.lost + self.doubled + self.disordered + self.miscounted == 0
    }

    fn example(&mut self, text: impl FnOnce() -> String) {
        if self.examples.len() < 8 {
            self.examples.push(text());
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lost, doubled, disordered, miscounted, examples } = self;
        write!(
            f,
            "LOSS of {lost}; DUP of {doubled}; {disordered} in DISORDER; {miscounted} MISCOUNTED"
        )?;
        for example in examples {
            write!(f, "\n  {example}")?;
        }
        Ok(())
    }
}
