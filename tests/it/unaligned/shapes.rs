//! The jobs of these tests.

use std::sync::Arc;

use highwater::prelude::*;

use super::{Case, Item, KEYS};

/// A shape of a dataflow, all of which keep the order of a key and a split where they look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Three exchanges one behind the other, two of them keyed.
    Pipeline,
    /// Two sources in front of one exchange, and two exchanges in front of one operator.
    Union,
    /// Two channels into one keyed operator.
    TwoInputs,
    /// Three channels into one keyed operator.
    ThreeInputs,
    /// A broadcast of which every worker keeps its share, beside channels that are overtaken.
    SharedBroadcast,
    /// The same with an exchange by key behind it.
    KeyedBroadcast,
    /// A program's own routing.
    Routed,
    /// Four exchanges, of which two have several inputs.
    Everything,
    /// Records go round.
    Loop,
}

impl Shape {
    pub fn sources(self) -> u8 {
        match self {
            Self::Pipeline | Self::Routed | Self::Loop => 1,
            Self::ThreeInputs | Self::Everything => 3,
            _ => 2,
        }
    }

    /// The channels that barriers overtake.
    pub fn overtaken(self) -> &'static [&'static str] {
        match self {
            Self::Pipeline => &["first", "second", "third"],
            Self::Union => &["both", "left", "right"],
            Self::TwoInputs => &["left", "right"],
            Self::ThreeInputs => &["left", "middle", "right"],
            Self::SharedBroadcast => &["beside"],
            Self::KeyedBroadcast => &["beside", "keyed"],
            Self::Routed => &["routed"],
            Self::Everything => &["both", "left", "right", "spread"],
            Self::Loop => &["around", "rounds"],
        }
    }

    /// The job, with the sink of these tests.
    pub fn build(self, job: &Job<'_>, case: &Case) {
        self.build_into(job, case, |stream| case.sink(stream));
    }

    /// The job, with any sink.
    pub fn build_into<'scope>(
        self,
        job: &Job<'scope>,
        case: &Case,
        sink: impl FnOnce(Stream<'scope, Item>),
    ) {
        let stream = match self {
            Self::Pipeline => pipeline(job, case),
            Self::Union => union(job, case),
            Self::TwoInputs => two_inputs(job, case),
            Self::ThreeInputs => three_inputs(job, case),
            Self::SharedBroadcast => shared_broadcast(job, case),
            Self::KeyedBroadcast => keyed_broadcast(job, case),
            Self::Routed => routed(job, case),
            Self::Everything => everything(job, case),
            Self::Loop => rounds(job, case),
        };
        sink(stream);
    }
}

fn pipeline<'scope>(job: &Job<'scope>, case: &Case) -> Stream<'scope, Item> {
    let first = case.read(job, 0).channel_name("first").key_by(|item| item.key);
    let first = case.in_order("once", first, job);
    // To another worker, with the order of a key kept.
    let second = first.channel_name("second").key_by(|item| item.key + KEYS);
    let second = case.in_order("twice", second, job);
    case.look(second.channel_name("third").rebalance())
}

fn union<'scope>(job: &Job<'scope>, case: &Case) -> Stream<'scope, Item> {
    let both = case.read(job, 0).union(case.read(job, 1)).channel_name("both");
    let both = case.in_order("once", both.key_by(|item| item.key), job);
    let even = both.clone().filter(|item| item.index % 2 == 0).channel_name("left").rebalance();
    let odd = both.filter(|item| item.index % 2 == 1).channel_name("right").rebalance();
    case.look(even.union(odd))
}

fn two_inputs<'scope>(job: &Job<'scope>, case: &Case) -> Stream<'scope, Item> {
    let left = case.read(job, 0).channel_name("left").key_by(|item| item.key);
    let right = case.read(job, 1).channel_name("right").key_by(|item| item.key);
    case.in_order("both", left.union(right), job)
}

fn three_inputs<'scope>(job: &Job<'scope>, case: &Case) -> Stream<'scope, Item> {
    let left = case.read(job, 0).channel_name("left").key_by(|item| item.key);
    let middle = case.read(job, 1).channel_name("middle").key_by(|item| item.key);
    let right = case.read(job, 2).channel_name("right").key_by(|item| item.key);
    case.in_order("all", left.union(middle).union(right), job)
}

/// A broadcast of the first source; each worker keeps what is its own.
fn share<'scope>(job: &Job<'scope>, case: &Case) -> Stream<'scope, Item> {
    let (worker, peers) = job.worker();
    let all = case.look(case.read(job, 0).channel_name("all").broadcast());
    all.filter(move |item| item.key as usize % peers == worker)
}

fn shared_broadcast<'scope>(job: &Job<'scope>, case: &Case) -> Stream<'scope, Item> {
    let beside = case.read(job, 1).channel_name("beside").key_by(|item| item.key);
    let beside = case.in_order("ordered", beside, job);
    share(job, case).union(beside)
}

fn keyed_broadcast<'scope>(job: &Job<'scope>, case: &Case) -> Stream<'scope, Item> {
    let keyed = share(job, case).channel_name("keyed").key_by(|item| item.key);
    let beside = case.read(job, 1).channel_name("beside").key_by(|item| item.key);
    case.in_order("ordered", keyed.union(beside), job)
}

fn routed<'scope>(job: &Job<'scope>, case: &Case) -> Stream<'scope, Item> {
    let routed = case.read(job, 0).channel_name("routed").route(|item, peers| {
        // Another worker for another number of them.
        item.key as usize * 7 % peers
    });
    let (worker, peers) = job.worker();
    let tally = Arc::clone(&case.tally);
    let routed = routed.inspect(move |item| {
        if item.key as usize * 7 % peers != worker {
            tally.astray();
        }
    });
    case.look(routed)
}

fn everything<'scope>(job: &Job<'scope>, case: &Case) -> Stream<'scope, Item> {
    let both = case.read(job, 0).union(case.read(job, 1)).channel_name("both");
    let both = case.in_order("once", both.key_by(|item| item.key), job);
    let left = both.channel_name("left").key_by(|item| item.key + KEYS);
    let right = case.read(job, 2).channel_name("right").key_by(|item| item.key + KEYS);
    let all = case.in_order("twice", left.union(right), job);
    case.look(all.channel_name("spread").rebalance())
}

/// Every record goes round as often as its index says, and each time to the worker of another key; what its last key
/// has counted of it leaves the loop.
fn rounds<'scope>(job: &Job<'scope>, case: &Case) -> Stream<'scope, Item> {
    const ROUNDS: u64 = 6;
    let tally = Arc::clone(&case.tally);
    let mut pass = case.slow.place(1);
    let left = |item: &Item| item.index % ROUNDS;
    let check = Arc::clone(&case.tally);
    case.read(job, 0).map(move |item| (left(&item), 0_u64, item)).iterate("rounds", move |head| {
        let counted =
            head.channel_name("around").key_by(|(left, _, item)| item.key + left).process(
                "visits",
                Value::<u64>::new("visits"),
                move |_, (left, visits, item): (u64, u64, Item), seen, out| {
                    tally.look(&item);
                    pass();
                    *seen.or_default() += 1;
                    out.emit((left, visits + 1, item));
                },
            );
        let again = counted.clone().filter(|(left, ..)| *left > 0);
        let again = again.map(|(left, visits, item)| (left - 1, visits, item));
        let out = counted.filter(|(left, ..)| *left == 0).map(move |(_, visits, item)| {
            if visits != left(&item) + 1 {
                check.disordered();
            }
            item
        });
        (again, out)
    })
}
