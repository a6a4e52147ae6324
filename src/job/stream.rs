//! Streams of records, and what can be done with them.

use std::fmt;

use timely::dataflow::operators::Concat;

use crate::connect::{Record, Sink};
use crate::ids::KeyGroup;
use crate::job::Job;
use crate::protocol::key_groups::{key_group, owner};
use crate::runtime::batch::Batch;
use crate::runtime::chain::Origin;
use crate::runtime::channel::channel;
use crate::runtime::keyed::Context;
use crate::runtime::router::{Route, Targets, router};
use crate::runtime::stateless::stateless;
use crate::runtime::states::States;
use crate::runtime::time::Time;
use crate::state::Key;
use crate::state::hash::stable_hash;

pub(crate) type Timely<'scope, D> = timely::dataflow::Stream<'scope, Time, Vec<D>>;

/// A stream of records, spread over all workers.
#[derive(Clone)]
pub struct Stream<'scope, D: Record> {
    pub(crate) inner: Timely<'scope, D>,
    pub(crate) job: Job<'scope>,
    /// The heads of the chains that feed it.
    pub(crate) origins: Vec<Origin>,
}

impl<D: Record> fmt::Debug for Stream<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("records", &std::any::type_name::<D>())
            .finish_non_exhaustive()
    }
}

impl<'scope, D: Record> Stream<'scope, D> {
    fn stateless<O: Record>(
        self,
        name: &str,
        logic: impl FnMut(D, &mut Vec<O>) + 'static,
    ) -> Stream<'scope, O> {
        let Self { inner, job, origins } = self;
        Stream { inner: stateless(inner, job.context(), name, logic), job, origins }
    }

    /// Turns every record into another.
    pub fn map<O: Record>(self, mut f: impl FnMut(D) -> O + 'static) -> Stream<'scope, O> {
        self.stateless("map", move |record, out| out.push(f(record)))
    }

    /// Keeps the records for which `f` holds.
    pub fn filter(self, mut f: impl FnMut(&D) -> bool + 'static) -> Self {
        self.stateless("filter", move |record, out| {
            if f(&record) {
                out.push(record);
            }
        })
    }

    /// Turns every record into any number of others.
    pub fn flat_map<I>(self, mut f: impl FnMut(D) -> I + 'static) -> Stream<'scope, I::Item>
    where
        I: IntoIterator,
        I::Item: Record,
    {
        self.stateless("flat_map", move |record, out| out.extend(f(record)))
    }

    /// Shows every record to `f`, and passes it on.
    pub fn inspect(self, mut f: impl FnMut(&D) + 'static) -> Self {
        self.stateless("inspect", move |record, out| {
            f(&record);
            out.push(record);
        })
    }

    /// All records of both streams. The watermark of the result is the lesser of both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        let mut origins = self.origins;
        origins.extend(other.origins);
        Self { inner: self.inner.concat(other.inner), job: self.job, origins }
    }

    fn exchange<R: Record>(self, kind: &str, route: impl Route<D, R>) -> Stream<'scope, R> {
        let Self { inner, job, origins } = self;
        let name = job.exchange_name(kind);
        let routed: timely::dataflow::Stream<'scope, Time, Batch<R>> =
            router(inner, job.context(), &name, route);
        let (inner, origin) =
            channel(routed, job.context(), &name, Origin::restored_event(&origins));
        Stream { inner, job, origins: vec![origin] }
    }

    /// Sends every record to the worker that owns its key. Records of one key from one worker keep their order.
    pub fn key_by<K: Key>(self, key: impl Fn(&D) -> K + 'static) -> KeyedStream<'scope, K, D> {
        self.into_keyed(move |record| (key(&record), record))
    }

    /// Splits every record into a key and a value, and sends it to the worker that owns the key.
    pub fn into_keyed<K: Key, V: Record>(
        self,
        split: impl Fn(D) -> (K, V) + 'static,
    ) -> KeyedStream<'scope, K, V> {
        let max_parallelism = self.job.context().config().max_parallelism;
        let peers = self.job.context().peers;
        let owners = (0..max_parallelism)
            .map(|group| owner(KeyGroup(group), max_parallelism, peers) as u32)
            .collect();
        let route = ByKey { split, owners, max_parallelism };
        KeyedStream { stream: self.exchange("key_by", route) }
    }

    /// Spreads the records evenly over the workers, batch by batch.
    #[must_use]
    pub fn rebalance(self) -> Self {
        let next = self.job.context().index;
        self.exchange("rebalance", InTurn { next })
    }

    /// Sends every record to every worker.
    #[must_use]
    pub fn broadcast(self) -> Self {
        self.exchange("broadcast", ToAll)
    }

    /// Sends every record to the worker that `target` says, of the number of workers that it is given (modulo that
    /// number).
    pub fn route(self, target: impl FnMut(&D, usize) -> usize + 'static) -> Self {
        self.exchange("route", ByFunction(target))
    }

    /// Goes through plain timely dataflow and back: whatever `f` builds must emit nothing at an epoch whose barrier
    /// has passed it, and must hold no record across a barrier, since Highwater cannot snapshot it. Timely's own
    /// stateless operators do neither.
    pub fn through_timely<O: Record>(
        self,
        f: impl FnOnce(Timely<'scope, D>) -> Timely<'scope, O>,
    ) -> Stream<'scope, O> {
        let Self { inner, job, origins } = self;
        Stream { inner: f(inner), job, origins }
    }

    /// Ends in a sink. `name` is unique in the job, and identifies the sink's transactions in checkpoints.
    pub fn sink<S: Sink<Record = D>>(self, name: &str, sink: S) {
        self.job.clone().add_sink(self, name, sink);
    }
}

/// A stream of keyed records: each is on the worker that owns its key.
#[derive(Clone, Debug)]
pub struct KeyedStream<'scope, K: Key, V: Record> {
    stream: Stream<'scope, (K, V)>,
}

impl<'scope, K: Key, V: Record> KeyedStream<'scope, K, V> {
    /// Processes every record with the states of its key.
    ///
    /// `name` is unique in the job, and identifies the state in checkpoints. `states` declares what is kept for each
    /// key: [`Value`](crate::job::Value), or a tuple of such. The function gets the key, the value, access to the
    /// states of that key and the [`Context`] that it emits to.
    ///
    /// A panic of the function fails the attempt: nothing it did to state or output survives, and the job goes on
    /// from the last checkpoint by its restart strategy.
    pub fn process<S, O, F>(self, name: &str, states: S, logic: F) -> Stream<'scope, O>
    where
        S: States<K>,
        O: Record,
        F: FnMut(&K, V, &mut S::Access<'_>, &mut Context<'_, O>) + 'static,
    {
        self.stream.job.clone().add_keyed(self.stream, name, states, logic)
    }

    /// The records as a stream of pairs. They stay where they are, but further operators know nothing of the key.
    #[must_use]
    pub fn unkeyed(self) -> Stream<'scope, (K, V)> {
        self.stream
    }
}

struct ByKey<F> {
    split: F,
    /// For each key group, the worker that owns it.
    owners: Vec<u32>,
    max_parallelism: u16,
}

impl<D: Record, K: Key, V: Record, F: Fn(D) -> (K, V) + 'static> Route<D, (K, V)> for ByKey<F> {
    fn route(&mut self, input: &mut Vec<D>, to: &mut Targets<(K, V)>) {
        for record in input.drain(..) {
            let (key, value) = (self.split)(record);
            let group = key_group(stable_hash(&key), self.max_parallelism);
            to.give(self.owners[usize::from(group.0)] as usize, (key, value));
        }
    }
}

struct InTurn {
    next: usize,
}

impl<D: Record> Route<D, D> for InTurn {
    fn route(&mut self, input: &mut Vec<D>, to: &mut Targets<D>) {
        self.next = (self.next + 1) % to.peers();
        to.give_batch(self.next, std::mem::take(input));
    }
}

struct ToAll;

impl<D: Record> Route<D, D> for ToAll {
    fn route(&mut self, input: &mut Vec<D>, to: &mut Targets<D>) {
        for target in 1..to.peers() {
            to.give_batch(target, input.clone());
        }
        to.give_batch(0, std::mem::take(input));
    }
}

struct ByFunction<F>(F);

impl<D: Record, F: FnMut(&D, usize) -> usize + 'static> Route<D, D> for ByFunction<F> {
    fn route(&mut self, input: &mut Vec<D>, to: &mut Targets<D>) {
        let peers = to.peers();
        for record in input.drain(..) {
            let target = (self.0)(&record, peers) % peers;
            to.give(target, record);
        }
    }
}
