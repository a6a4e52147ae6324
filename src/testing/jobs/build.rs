//! The dataflow of a random job.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::item::{Item, Stamp};
use super::{Kind, Node, oracle, state};
use crate::config::CheckpointMode;
use crate::connect::Collect;
use crate::ids::KeyGroup;
use crate::job::{Broadcast, Context, EventTime, Job, KeyedStream, Stream, UnionList, Value};
use crate::protocol::key_groups::{key_group, owner};
use crate::state::hash::stable_hash;
use crate::testing::{FaultSink, Trickle, point, work};

type Items<'scope> = Stream<'scope, Item>;

/// Builds all nodes.
pub(super) fn build<'scope>(
    job: &Job<'scope>,
    nodes: &[Node],
    sink: &dyn Fn(u64) -> FaultSink<Collect<Item>>,
) {
    let mut streams: BTreeMap<u64, Items<'scope>> = BTreeMap::new();
    for node in nodes {
        let input = |id: &u64| streams.get(id).expect("a node stands behind its inputs").clone();
        let mut inputs: Vec<Items<'scope>> = node.inputs.iter().map(input).collect();
        let stream = match &node.kind {
            Kind::Source { number, splits, records, timed, .. } => {
                let made = node.clone();
                let source = Trickle::new(node.id, *splits, *records, move |split, index| {
                    oracle::record(&made, split, index)
                });
                let name = format!("source-{number}");
                if *timed {
                    job.source_with(&name, source, EventTime::monotonic(|item: &Item| item.time))
                } else {
                    job.source(&name, source)
                }
            }
            Kind::Sink => {
                let input = inputs.remove(0);
                input.sink(&format!("sink-{}", node.id), sink(node.id));
                continue;
            }
            _ => operator(job, node, inputs, &streams),
        };
        streams.insert(node.id, stream);
    }
}

fn operator<'scope>(
    job: &Job<'scope>,
    node: &Node,
    mut inputs: Vec<Items<'scope>>,
    surroundings: &BTreeMap<u64, Items<'scope>>,
) -> Items<'scope> {
    let (worker, workers) = job.worker();
    let named = |side: usize, input: Items<'scope>| {
        input.channel_name(&node.channel(side).expect("the node has channels"))
    };
    let own = node.clone();
    match &node.kind {
        Kind::Map { .. } => inputs.remove(0).map(move |item| {
            let mut out = Vec::new();
            begin(&own, &item);
            oracle::stateless(&own, item, &mut out);
            out.remove(0)
        }),
        Kind::Filter { .. } => {
            let (node, keep) = (own.clone(), own);
            let kept = inputs.remove(0).filter(move |item| {
                begin(&keep, item);
                let mut out = Vec::new();
                oracle::stateless(&keep, item.clone(), &mut out);
                !out.is_empty()
            });
            kept.map(move |item| {
                let mut out = Vec::new();
                oracle::stateless(&node, item, &mut out);
                out.remove(0)
            })
        }
        Kind::FlatMap { .. } => inputs.remove(0).flat_map(move |item| {
            let mut out = Vec::new();
            begin(&own, &item);
            oracle::stateless(&own, item, &mut out);
            out
        }),
        Kind::Keyed { sides } => keyed(job, node, *sides, inputs),
        Kind::Union => {
            let second = inputs.remove(1);
            let other = own.clone();
            inputs
                .remove(0)
                .map(move |item| arrive(&own, 0, item))
                .union(second.map(move |item| arrive(&other, 1, item)))
        }
        Kind::Rebalance => {
            named(0, inputs.remove(0)).rebalance().map(move |item| arrive(&own, 0, item))
        }
        Kind::Broadcast => named(0, inputs.remove(0))
            .broadcast()
            .filter(move |item| item.key as usize % workers == worker)
            .map(move |item| arrive(&own, 0, item)),
        Kind::Route => {
            let routed = named(0, inputs.remove(0)).route(|item, _| item.key as usize);
            routed.map(move |item| {
                let target = item.key as usize % workers;
                assert_eq!(target, worker, "MISROUTED: {item:?} is on another worker");
                arrive(&own, 0, item)
            })
        }
        Kind::Beside => {
            let broadcast = named(1, inputs.remove(1));
            beside(job, node, named(0, inputs.remove(0)), broadcast)
        }
        Kind::Claims => claims(job, node, named(0, inputs.remove(0))),
        Kind::Every { lists } => state::every(job, node, *lists, named(0, inputs.remove(0))),
        Kind::Timers { event, delay } => {
            state::timers(node, *event, *delay, named(0, inputs.remove(0)))
        }
        Kind::Listed => state::listed(job, node, named(0, inputs.remove(0))),
        Kind::Loop { rounds, body } => {
            let (rounds, round, left) = (*rounds, own.clone(), own.clone());
            let entered = inputs.remove(0).map(move |item| {
                begin(&own, &item);
                oracle::enter(&own, rounds, item)
            });
            entered.iterate(&format!("loop-{}", node.id), |head| {
                let mut stream = head;
                for inner in body {
                    let others = inner.inputs[1..].iter().map(|id| surroundings[id].clone());
                    let inputs = std::iter::once(stream).chain(others).collect();
                    stream = operator(job, inner, inputs, surroundings);
                }
                let again = stream.clone().filter(oracle::goes_round);
                let again = again.map(move |item| oracle::again(&round, item));
                let done = stream.filter(|item| !oracle::goes_round(item));
                (again, done.map(move |item| oracle::leave(&left, item)))
            })
        }
        Kind::Source { .. } | Kind::Sink => unreachable!("not an operator"),
    }
}

/// A record is processed: it is checked, and takes its time.
fn begin(node: &Node, item: &Item) {
    item.check(node.id, &node.inputs);
    if node.slow_us > 0 {
        work(Duration::from_micros(item.draw(node.id + 1, node.slow_us)));
        point("a slow operator");
    }
}

pub(super) fn arrive(node: &Node, side: usize, item: Item) -> Item {
    begin(node, &item);
    oracle::arrived(node, side, item)
}

fn keyed<'scope>(
    job: &Job<'scope>,
    node: &Node,
    sides: bool,
    inputs: Vec<Items<'scope>>,
) -> Items<'scope> {
    let (worker, workers) = job.worker();
    let max_parallelism = job.context().config().max_parallelism;
    let mut joined: Option<KeyedStream<'scope, u64, (u64, Item)>> = None;
    for (side, input) in inputs.into_iter().enumerate() {
        let own = node.clone();
        let input = input.channel_name(&node.channel(side).expect("a keyed node has channels"));
        let keyed = input.into_keyed(|item| (item.key, item)).map_values(move |key, item| {
            let group: KeyGroup = key_group(stable_hash(key), max_parallelism);
            let owner = owner(group, max_parallelism, workers);
            assert_eq!(
                (owner, *key),
                (worker, item.key),
                "MISROUTED: {item:?} is on another worker"
            );
            (side as u64, arrive(&own, side, item))
        });
        joined = Some(match joined {
            Some(others) => others.union(keyed),
            None => keyed,
        });
    }
    let joined = joined.expect("a keyed node has inputs");
    let name = format!("keyed-{}", node.id);
    let count = Value::<Seen>::new("count");
    let exact = job.context().config().checkpoints.mode == CheckpointMode::ExactlyOnce;
    let (operator, straight) = (node.id, node.straight);
    let process = move |key: u64, item: Item, seen: &mut Seen, out: &mut Context<'_, Item>| {
        if straight {
            seen.check_time(&item, out.watermark(), exact);
        }
        out.emit(seen.stamp(operator, key, item));
    };
    if !sides {
        return joined.process(&name, count, move |key, (_, item), seen, out| {
            point("keyed");
            process(*key, item, seen.or_default(), out);
        });
    }
    let apart = Value::<Vec<u64>>::new("sides");
    joined.process(&name, (count, apart), move |key, (side, item), (seen, apart), out| {
        point("keyed with two states");
        let apart = apart.or_default();
        apart.resize(3, 0);
        apart[side as usize] += 1;
        let seen = seen.or_default();
        process(*key, item, seen, out);
        let sum: u64 = apart.iter().sum();
        // At least once a snapshot may hold records from behind its barrier, but in both states.
        assert!(sum == seen.count, "TORN: one state of {key} has seen {sum}, the other {seen:?}");
    })
}

/// Keyed state beside broadcast state: the second counts the records of each key of the broadcast input, and a key of the
/// main input never sees fewer of them than before.
fn beside<'scope>(
    job: &Job<'scope>,
    node: &Node,
    main: Items<'scope>,
    broadcast: Items<'scope>,
) -> Items<'scope> {
    let (worker, workers) = job.worker();
    let exact = job.context().config().checkpoints.mode == CheckpointMode::ExactlyOnce;
    let (own, other) = (node.clone(), node.clone());
    main.into_keyed(|item| (item.key, item)).connect_broadcast(broadcast).process(
        &format!("beside-{}", node.id),
        (Value::<Seen>::new("count"), Value::<u64>::new("known")),
        Broadcast::<u64, u64>::new("counts"),
        move |key, item, (seen, known), counts, out| {
            point("beside a broadcast");
            let item = arrive(&own, 0, item);
            let now: u64 = counts.iter().map(|(_, count)| count).sum();
            let before = known.set(now).unwrap_or(0);
            assert!(!exact || before <= now, "BACK: {key} has seen {before} broadcasts, now {now}");
            let seen = seen.or_default();
            if own.straight {
                seen.check_time(&item, out.watermark(), exact);
            }
            out.emit(seen.stamp(oracle::counter(&own, 0), *key, item));
        },
        move |item: Item, counts, out| {
            point("a broadcast record");
            let mut item = arrive(&other, 1, item);
            let key = item.key;
            let count = counts.get(&key).copied().unwrap_or(0) + 1;
            counts.insert(key, count);
            // Each key is one worker's to show.
            if key as usize % workers == worker {
                let operator = oracle::counter(&other, 1);
                let (path, lane) = (item.path, item.lane);
                item.stamps.push(Stamp { operator, key, count, digest: 0, path, lane });
                item.seal();
                out.emit(item);
            }
        },
    )
}

/// Partitions that workers claim out of a union list, as they would in a source.
fn claims<'scope>(job: &Job<'scope>, node: &Node, input: Items<'scope>) -> Items<'scope> {
    let (worker, workers) = job.worker();
    let own = node.clone();
    let mut claimed = false;
    let routed = input.route(|item, _| (item.key % oracle::PARTITIONS) as usize);
    let name = format!("claims-{}", node.id);
    routed.process(&name, UnionList::<(u64, Seen)>::new("counts"), move |item, counts, out| {
        point("a union list");
        let item = arrive(&own, 0, item);
        let mut seen: BTreeMap<u64, Seen> = BTreeMap::new();
        for (partition, count) in counts.take() {
            if claimed || partition as usize % workers == worker {
                // A worker that has claimed nothing yet still has what another goes on with.
                let known = seen.entry(partition).or_default();
                if known.count <= count.count {
                    *known = count;
                }
            }
        }
        claimed = true;
        let partition = item.key % oracle::PARTITIONS;
        let item = seen.entry(partition).or_default().stamp(own.id, partition, item);
        counts.replace(seen);
        out.emit(item);
    })
}

/// What a keyed operator knows of a key.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Seen {
    pub(super) count: u64,
    /// Of all records, in their order.
    digest: u64,
    watermark: Option<i64>,
}

impl Seen {
    pub(super) fn check_time(&mut self, item: &Item, watermark: i64, exact: bool) {
        let before = self.watermark.replace(watermark).unwrap_or(i64::MIN);
        // At least once a snapshot may hold records from behind its barrier, and so what they saw.
        assert!(
            !exact || before <= watermark,
            "I9: the watermark goes from {before} to {watermark}"
        );
        assert!(item.time > watermark, "LATE: {item:?} of {} at {watermark}", item.time);
    }

    pub(super) fn stamp(&mut self, operator: u64, key: u64, mut item: Item) -> Item {
        self.count += 1;
        self.digest = oracle::digest(self.digest, &item);
        let (path, lane) = (item.path, item.lane);
        let (count, digest) = (self.count, self.digest);
        item.stamps.push(Stamp { operator, key, count, digest, path, lane });
        item.seal();
        item
    }
}
