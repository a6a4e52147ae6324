//! Keeps track of a graph whose edges come and go: which nodes are connected, and which can be reached from node 0.
//!
//! Without arguments it shows in a simulated machine that the answers are right whatever happens: jobs are killed, and go on with
//! another number of workers. With arguments it is a job that reads edges, lines such as `+ 3 17` and `- 3 17`:
//! ```text
//! cargo run --example graph
//! cargo run --example graph -- --input 'edges/*.txt' --output facts --checkpoint-dir checkpoints
//! ```

use std::collections::{BTreeMap, BTreeSet};

use highwater::prelude::*;
use highwater::testing::{FaultSink, Random, Simulation, Trickle};
use highwater_operators::differential::Collected;
use highwater_operators::differential::differential_dataflow::operators::Iterate;
use highwater_operators::{Change, Differential, net};
use serde::{Deserialize, Serialize};

type Edge = (u32, u32);

/// What is true of the graph at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Fact {
    /// A node, and the least that it is connected with, whichever way edges go.
    Component(u32, u32),
    /// A node that can be reached from node 0.
    Reachable(u32),
}

/// The facts of a graph, as differential dataflow keeps them.
fn facts(edges: Collected<'_, Edge>) -> Collected<'_, Fact> {
    let edges = edges.distinct();
    let components = components(edges.clone()).map(|(node, least)| Fact::Component(node, least));
    components.concat(reachable(edges).map(Fact::Reachable))
}

/// Each node starts with its own number, and takes the least of its neighbours' until none changes.
fn components(edges: Collected<'_, Edge>) -> Collected<'_, (u32, u32)> {
    let ways = edges.clone().map(|(from, to)| (to, from)).concat(edges);
    let nodes = ways.clone().map(|(node, _)| (node, node)).distinct();
    nodes.clone().iterate(|scope, least| {
        let (ways, nodes) = (ways.enter(scope), nodes.enter(scope));
        least
            .join_map(ways, |_, least, to| (*to, *least))
            .concat(nodes)
            .reduce(|_, all, out| out.extend(all.first().map(|(least, _)| (**least, 1))))
    })
}

/// Node 0 if there is one, and the ends of all edges from nodes that are reached.
fn reachable(edges: Collected<'_, Edge>) -> Collected<'_, u32> {
    let nodes = edges.clone().flat_map(|(from, to)| [from, to]);
    let start = nodes.filter(|node| *node == 0).distinct();
    start.clone().iterate(|scope, reached| {
        let (edges, start) = (edges.enter(scope), start.enter(scope));
        let reached = reached.map(|node| (node, ()));
        edges.join_map(reached, |_, to, ()| *to).concat(start).distinct()
    })
}

/// Without differential dataflow, by union-find and by search.
fn naive_facts(edges: &BTreeSet<Edge>) -> Vec<Fact> {
    let nodes: BTreeSet<u32> = edges.iter().flat_map(|(from, to)| [*from, *to]).collect();
    let mut parents: BTreeMap<u32, u32> = nodes.iter().map(|node| (*node, *node)).collect();
    let root = |parents: &BTreeMap<u32, u32>, mut node: u32| {
        while parents[&node] != node {
            node = parents[&node];
        }
        node
    };
    for (from, to) in edges {
        let (from, to) = (root(&parents, *from), root(&parents, *to));
        parents.insert(from.max(to), from.min(to));
    }
    let mut facts: Vec<Fact> =
        nodes.iter().map(|node| Fact::Component(*node, root(&parents, *node))).collect();
    let mut reached = BTreeSet::new();
    let mut ahead: Vec<u32> = nodes.contains(&0).then_some(0).into_iter().collect();
    while let Some(node) = ahead.pop() {
        if reached.insert(node) {
            ahead.extend(edges.range((node, 0)..=(node, u32::MAX)).map(|(_, to)| *to));
        }
    }
    facts.extend(reached.into_iter().map(Fact::Reachable));
    facts
}

/// Edges that come, and of which most go some time later.
const CHANGES: u64 = 90;
const NODES: u64 = 40;
const SPLITS: u64 = 2;
/// Jobs.
const SEEDS: u64 = 5;

/// The change at a place of the input: every third takes back an edge that came earlier in its split.
fn change(seed: u64, split: u64, index: u64) -> Change<Edge> {
    let edge = |index: u64| {
        let mut random = Random::new(seed).fork(split << 32 | index);
        // Each split has edges of its own.
        (random.below(NODES) as u32, (random.below(NODES / SPLITS) * SPLITS + split) as u32)
    };
    // Two come, one of those that came first goes, and so on.
    match index % 3 {
        2 => Change::Retract(edge(index / 3 / 2 * 3 + index / 3 % 2)),
        _ => Change::Insert(edge(index)),
    }
}

/// Runs jobs that are killed on their way, and compares what they come to.
///
/// # Panics
/// If a job fails, or comes to something else than it should.
pub fn demonstrate() {
    let (mut kills, mut moves, mut emitted) = (0, 0, 0);
    for seed in 0..SEEDS {
        let seen = Collect::new();
        let found = seen.handle();
        let outcome = Simulation::new(seed).workers(1..=4).crashes(3).run(move |job| {
            let edges = Trickle::new(seed, SPLITS, CHANGES, move |split, i| change(seed, split, i));
            job.source("edges", edges)
                .differential("graph", facts)
                .sink("facts", FaultSink::new(seen.clone()));
            Ok(())
        });
        outcome.check();
        let input = (0..SPLITS).flat_map(|s| (0..CHANGES).map(move |i| change(seed, s, i)));
        let edges: BTreeSet<Edge> =
            net(input).into_iter().filter(|(_, n)| *n > 0).map(|(edge, _)| edge).collect();
        let changes = found.committed();
        emitted += changes.len();
        let expected: BTreeMap<Fact, i64> =
            naive_facts(&edges).into_iter().map(|fact| (fact, 1)).collect();
        assert!(!expected.is_empty());
        assert_eq!(net(changes), expected, "seed {seed}");
        kills += outcome.crashes.len();
        moves += outcome.restores.iter().filter(|r| r.workers != r.workers_before).count();
    }
    assert!(kills > 0 && moves > 0, "{kills} kills, {moves} moves");
    println!("{emitted} changes of facts, each once, through {kills} kills");
    println!("{moves} times a job went on with another number of workers");
}

/// What to read, and where to write.
#[derive(clap::Args)]
struct Args {
    /// Files of edges; plain, .gz or .zst.
    #[arg(long)]
    input: String,
    /// Directory for the changes of facts.
    #[arg(long, default_value = "facts")]
    output: std::path::PathBuf,
}

/// A line such as `+ 3 17`; others are left out.
fn parse(line: &str) -> Option<Change<Edge>> {
    let (sign, edge) = line.split_once(' ')?;
    let (from, to) = edge.split_once(' ')?;
    let edge = (from.parse().ok()?, to.trim().parse().ok()?);
    match sign {
        "+" => Some(Change::Insert(edge)),
        "-" => Some(Change::Retract(edge)),
        _ => None,
    }
}

fn main() -> highwater::Result<()> {
    if std::env::args().len() == 1 {
        demonstrate();
        return Ok(());
    }
    highwater::run_with("graph", |job, args: &Args| {
        job.source("edges", Files::glob(&args.input))
            .flat_map(|line| parse(&line))
            .differential("graph", facts)
            .map(|change| {
                let sign = if change.is_insert() { '+' } else { '-' };
                format!("{sign} {:?}", change.record())
            })
            .sink("facts", FileSink::lines(&args.output));
        Ok(())
    })
}
