//! Streams of records, and what can be done with them.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use timely::dataflow::operators::Concat;

use crate::connect::{Record, Sink};
use crate::ids::KeyGroup;
use crate::job::Job;
use crate::protocol::key_groups::{key_group, owner};
use crate::runtime::batch::Batch;
use crate::runtime::chain::Origin;
use crate::runtime::channel::{channel, feedback};
use crate::runtime::channel_log::{GroupOf, Placement, RouteBy};
use crate::runtime::either::Either;
use crate::runtime::keyed::{Context, Replay};
use crate::runtime::keyed_timers::TimerContext;
use crate::runtime::kinds::{Value, ValueState};
use crate::runtime::operator_state::NoBroadcast;
use crate::runtime::router::{Route, Targets, router};
use crate::runtime::scheduled::{Scheduled, ScheduledContext};
use crate::runtime::stateless::{batchwise, split, stateless};
use crate::runtime::states::States;
use crate::runtime::time::Time;
use crate::runtime::timed::Timer;
use crate::state::hash::stable_hash;
use crate::state::{Key, StateValue, ValueTable};

pub(crate) type Timely<'scope, D> = timely::dataflow::Stream<'scope, Time, Vec<D>>;

/// A stream of records, spread over all workers.
#[derive(Clone)]
pub struct Stream<'scope, D: Record> {
    pub(crate) inner: Timely<'scope, D>,
    pub(crate) job: Job<'scope>,
    /// The heads of the chains that feed it.
    pub(crate) origins: Vec<Origin>,
    /// What the next exchange is to be called.
    pub(crate) channel: Option<String>,
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
        let Self { inner, job, origins, channel } = self;
        Stream { inner: stateless(inner, job.context(), name, logic), job, origins, channel }
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

    /// Sends every record one of two ways, as what `f` makes of it: side outputs of an operator (what was late, what could not be
    /// read, alarms) are records of an enum, split behind it.
    ///
    /// # Examples
    /// ```
    /// use highwater::prelude::*;
    ///
    /// fn numbers<'a>(lines: Stream<'a, String>) -> (Stream<'a, u64>, Stream<'a, String>) {
    ///     lines.split(|line| match line.parse() {
    ///         Ok(number) => Either::Left(number),
    ///         Err(_) => Either::Right(line),
    ///     })
    /// }
    /// ```
    pub fn split<A: Record, B: Record>(
        self,
        f: impl FnMut(D) -> Either<A, B> + 'static,
    ) -> (Stream<'scope, A>, Stream<'scope, B>) {
        let Self { inner, job, origins, channel } = self;
        let (left, right) = split(inner, job.context(), f);
        let (job_too, origins_too) = (job.clone(), origins.clone());
        let left = Stream { inner: left, job, origins, channel: channel.clone() };
        (left, Stream { inner: right, job: job_too, origins: origins_too, channel })
    }

    /// Turns batches of records into others, each batch by itself: `f` takes what it wants out of the first vector (the rest is
    /// dropped) and pushes what comes of it to the second.
    ///
    /// What is a batch follows from nothing that a program could know, and is another in the next run. So this is for what may
    /// be done for any part of the records, such as adding up before an exchange what is added up behind it.
    ///
    /// # Examples
    /// Few records go through the exchange:
    /// ```
    /// use highwater::prelude::*;
    ///
    /// fn greatest<'a>(numbers: Stream<'a, u64>) -> KeyedStream<'a, (), u64> {
    ///     numbers.map_batches(|batch, out| out.extend(batch.drain(..).max())).key_by(|_| ())
    /// }
    /// ```
    pub fn map_batches<O: Record>(
        self,
        f: impl FnMut(&mut Vec<D>, &mut Vec<O>) + 'static,
    ) -> Stream<'scope, O> {
        let Self { inner, job, origins, channel } = self;
        Stream { inner: batchwise(inner, job.context(), f), job, origins, channel }
    }

    /// All records of both streams. The watermark of the result is the lesser of both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        let mut origins = self.origins;
        origins.extend(other.origins);
        Self {
            inner: self.inner.concat(other.inner),
            job: self.job,
            origins,
            channel: self.channel,
        }
    }

    /// Names the channel of the exchange that follows; without it, a channel is called by its kind and its place in
    /// the program: `key_by-1`. Settings of single channels, the checkpoint history and metrics go by that name, and so
    /// does a checkpoint that holds records on their way: a job with other exchanges cannot restore those.
    #[must_use]
    pub fn channel_name(mut self, name: &str) -> Self {
        self.channel = Some(name.to_owned());
        self
    }

    fn exchange<R: Record>(
        self,
        kind: &str,
        route: impl Route<D, R>,
        placement: &Placement<R>,
    ) -> Stream<'scope, R> {
        let Self { inner, job, origins, channel: name } = self;
        let spec = job.channel_spec(kind, name.as_deref(), placement);
        let routed: timely::dataflow::Stream<'scope, Time, Batch<R>> =
            router(inner, job.context(), spec.name.as_str(), route);
        let (inner, origin) =
            channel(routed, job.context(), spec, Origin::restored_event(&origins));
        Stream { inner, job, origins: vec![origin], channel: None }
    }

    /// A loop: `body` gets the records of this stream together with those that come back, and returns what goes round
    /// once more, and what leaves the loop. Records that go round stay on their worker; `body` may exchange them.
    /// Exactly-once, through crashes while records go round. `name` is unique in the job.
    ///
    /// What goes round does not hold event time back: behind the loop it may be late. Nor does it end by itself: a job
    /// whose input has ended goes on until nothing goes round any more.
    pub fn iterate<O: Record>(
        self,
        name: &str,
        body: impl FnOnce(Self) -> (Self, Stream<'scope, O>),
    ) -> Stream<'scope, O> {
        let Self { inner, job, mut origins, channel } = self;
        let spec = job.channel_spec("iterate", Some(name), &Placement::<D>::Anywhere);
        let loop_name = spec.name.clone();
        let (back, origin, edge) = feedback(inner.scope(), job.context(), spec);
        origins.push(origin);
        let head = Self { inner: inner.concat(back), job: job.clone(), origins, channel };
        let (again, out) = body(head);
        let stay = Stay { index: job.context().index };
        edge.connect(router(again.inner, job.context(), loop_name.as_str(), stay));
        out
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
        let group_of: GroupOf<(K, V)> = |(key, _), groups| key_group(stable_hash(key), groups);
        KeyedStream { stream: self.exchange("key_by", route, &Placement::Keyed(group_of)) }
    }

    /// Spreads the records evenly over the workers, batch by batch.
    #[must_use]
    pub fn rebalance(self) -> Self {
        let next = self.job.context().index;
        self.exchange("rebalance", InTurn { next }, &Placement::Anywhere)
    }

    /// Sends every record to every worker.
    ///
    /// No barrier overtakes here unless an alignment timeout is set for this channel by name: workers share out what all
    /// of them see, and if each were restored at a record of its own, another number of workers could share it out no
    /// more. With such a timeout each worker goes on where it was; with more workers than before a new one continues as
    /// one that was there, and with fewer those that are gone take what they had not processed with them. What is kept in
    /// [broadcast state](crate::job::Stream::connect_broadcast) does not mind.
    #[must_use]
    pub fn broadcast(self) -> Self {
        self.exchange("broadcast", ToAll, &Placement::Replica)
    }

    /// Sends every record to the worker that `target` says, of the number of workers that it is given (modulo that
    /// number). Restored at another parallelism, records that were on their way are routed again.
    pub fn route(self, target: impl FnMut(&D, usize) -> usize + 'static) -> Self {
        let target = Rc::new(RefCell::new(target));
        let placement = Placement::Routed(Rc::clone(&target) as RouteBy<D>);
        self.exchange("route", ByFunction(target), &placement)
    }

    /// Goes through plain timely dataflow and back: whatever `f` builds must emit nothing at an epoch whose barrier
    /// has passed it, and must hold no record across a barrier, since Highwater cannot snapshot it. Timely's own
    /// stateless operators do neither. What remembers more goes through [`KeyedStream::through_stateful_timely`].
    pub fn through_timely<O: Record>(
        self,
        f: impl FnOnce(Timely<'scope, D>) -> Timely<'scope, O>,
    ) -> Stream<'scope, O> {
        let Self { inner, job, origins, channel } = self;
        Stream { inner: f(inner), job, origins, channel }
    }

    /// Ends in a sink. `name` is unique in the job, and identifies the sink's transactions in checkpoints.
    pub fn sink<S: Sink<Record = D>>(self, name: &str, sink: S) {
        self.job.clone().add_sink(self, name, sink);
    }
}

/// A stream of keyed records: each is on the worker that owns its key.
#[derive(Clone, Debug)]
pub struct KeyedStream<'scope, K: Key, V: Record> {
    pub(crate) stream: Stream<'scope, (K, V)>,
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
        self.stream.job.clone().add_keyed(self.stream, name, states, logic, None)
    }

    /// Processes every record with the states of its key, and calls a second function when a time has come that the key
    /// waits for. Timers are registered and deleted through the [`TimerContext`], for the key at hand, in event time or
    /// in processing time; they are part of the operator's state: each fires once, through crashes and at any
    /// parallelism. Otherwise as [`KeyedStream::process`].
    ///
    /// Event-time timers fire in the order of their times when the watermark has reached them, at the latest at the end
    /// of input. What they emit is not late: until a timer has fired, the watermark downstream does not reach its time.
    /// Processing-time timers fire when the clock has reached them. The two share nothing but the function, which sees
    /// by [`Timer::domain`] what it is called for.
    ///
    /// # Examples
    /// The sum of each key over ten milliseconds of event time:
    /// ```
    /// use highwater::config::JobConfig;
    /// use highwater::ids::Name;
    /// use highwater::job::{JobHandle, execute};
    /// use highwater::prelude::*;
    ///
    /// let collect = Collect::new();
    /// let seen = collect.handle();
    /// let config = JobConfig::new(Name::new("sums")?);
    /// execute(config, &JobHandle::default(), move |job| {
    ///     let numbers: Vec<(i64, u64)> = vec![(1, 5), (4, 6), (12, 7), (25, 8)];
    ///     let time = EventTime::monotonic(|(time, _): &(i64, u64)| *time);
    ///     job.source_with("numbers", Collection::new(numbers), time)
    ///         .key_by(|_| "all".to_owned())
    ///         .process_with_timers(
    ///             "sums",
    ///             Map::<i64, u64>::new("sums"),
    ///             |_, (time, n), sums, context| {
    ///                 let start = time - time % 10;
    ///                 let sum = sums.get(&start).copied().unwrap_or(0);
    ///                 sums.insert(start, sum + n);
    ///                 context.register_event_timer(start + 9);
    ///             },
    ///             |_, timer, sums, context| {
    ///                 let sum = sums.remove(&(timer.time - 9));
    ///                 context.emit((timer.time, sum.unwrap_or(0)));
    ///             },
    ///         )
    ///         .sink("out", collect.clone());
    ///     Ok(())
    /// })?;
    /// assert_eq!(seen.committed(), [(9, 11), (19, 7), (29, 8)]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn process_with_timers<S, O, F, T>(
        self,
        name: &str,
        states: S,
        mut on_record: F,
        mut on_timer: T,
    ) -> Stream<'scope, O>
    where
        S: States<K>,
        O: Record,
        F: FnMut(&K, V, &mut S::Access<'_>, &mut TimerContext<'_, K, O>) + 'static,
        T: FnMut(&K, Timer, &mut S::Access<'_>, &mut TimerContext<'_, K, O>) + 'static,
    {
        let job = self.stream.job.clone();
        job.add_keyed_with_timers(
            (self.stream, None),
            name,
            (states, NoBroadcast),
            move |key, value, state, (), context| on_record(key, value, state, context),
            |(), (), _| (),
            move |key, timer, state, (), context| on_timer(key, timer, state, context),
        )
    }

    /// Processes every record with the state of its key, and calls a second function when the state is due: a state of a
    /// [`Scheduled`] type says itself when it wants to be looked at. Otherwise as [`KeyedStream::process_with_timers`], which does
    /// the same by timers that are registered and deleted; this takes less time, and room in checkpoints.
    ///
    /// A key without a state gets the default one; a state that is vacant afterwards is not kept. `on_due` is called with the
    /// time that the state has named, and has to leave it with none or with another: one that stays due is called again and
    /// again, and a job whose state is always due does not end.
    ///
    /// Keys are called in the order of their times, and what `on_due` emits is not late: until it has been called, the watermark
    /// downstream does not reach its time.
    ///
    /// # Examples
    /// The sum of ten milliseconds of event time:
    /// ```
    /// use std::collections::BTreeMap;
    ///
    /// use highwater::config::JobConfig;
    /// use highwater::ids::Name;
    /// use highwater::job::{JobHandle, execute};
    /// use highwater::prelude::*;
    /// use serde::{Deserialize, Serialize};
    ///
    /// /// Sums by the last millisecond of their time.
    /// #[derive(Clone, Default, Serialize, Deserialize)]
    /// struct Sums(BTreeMap<i64, u64>);
    ///
    /// impl Scheduled for Sums {
    ///     fn event_due(&self) -> Option<i64> {
    ///         self.0.keys().next().copied()
    ///     }
    ///     fn is_vacant(&self) -> bool {
    ///         self.0.is_empty()
    ///     }
    /// }
    ///
    /// let collect = Collect::new();
    /// let seen = collect.handle();
    /// let config = JobConfig::new(Name::new("sums")?);
    /// execute(config, &JobHandle::default(), move |job| {
    ///     let numbers: Vec<(i64, u64)> = vec![(1, 5), (4, 6), (12, 7), (25, 8)];
    ///     let time = EventTime::monotonic(|(at, _): &(i64, u64)| *at);
    ///     job.source_with("numbers", Collection::new(numbers), time)
    ///         .key_by(|_| ())
    ///         .process_scheduled(
    ///             "sums",
    ///             Value::<Sums>::new("sums"),
    ///             // Several may be open: the watermark moves on between batches of records, not with each.
    ///             |(), (at, n), sums, _| *sums.0.entry(at - at % 10 + 9).or_default() += n,
    ///             |(), _, sums, out| out.emit(sums.0.pop_first()),
    ///         )
    ///         .sink("out", collect.clone());
    ///     Ok(())
    /// })?;
    /// let sums: Vec<(i64, u64)> = seen.committed().into_iter().flatten().collect();
    /// assert_eq!(sums, [(9, 11), (19, 7), (29, 8)]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn process_scheduled<W, O, F, T>(
        self,
        name: &str,
        state: Value<W>,
        on_record: F,
        on_due: T,
    ) -> Stream<'scope, O>
    where
        W: Scheduled,
        O: Record,
        F: FnMut(&K, V, &mut W, &mut ScheduledContext<'_, O>) + 'static,
        T: FnMut(&K, Timer, &mut W, &mut ScheduledContext<'_, O>) + 'static,
    {
        self.stream.job.clone().add_scheduled(self.stream, name, state, on_record, on_due)
    }

    /// Goes through plain timely dataflow that remembers what it was sent, and back: such as one of differential dataflow.
    ///
    /// Highwater cannot snapshot what timely's operators hold. So `state` keeps for each key what they have to be sent to
    /// hold the same again: `on_record` brings it up to date with every record and emits what goes into the dataflow, and at
    /// every start `on_restored` makes it again for every key of the restored state, before any record comes.
    ///
    /// What `on_restored` returns is sent at `Time { epoch: 0, event: i64::MIN }`, before all times of the job. Whatever `f`
    /// builds must
    /// * emit nothing at epoch 0: it follows from records of which the checkpoint has the results;
    /// * emit all that follows from records of an epoch at that epoch, neither later, nor earlier. An operator that emits
    ///   at the time of its capabilities, and lets go of those of an epoch only when the frontier has passed it, does that;
    /// * be a function of what it was sent: restored, it has to come to where it was.
    ///
    /// Its own exchanges are no channels: flow control does not count what waits there, and nothing overtakes it. A
    /// checkpoint waits until it is through. `name` is unique in the job, and identifies the state in checkpoints.
    ///
    /// # Examples
    /// An operator of timely's that emits each word once. It remembers the words, by its own means:
    /// ```
    /// use std::collections::HashSet;
    ///
    /// use highwater::config::JobConfig;
    /// use highwater::ids::Name;
    /// use highwater::job::{JobHandle, execute};
    /// use highwater::prelude::*;
    /// use timely::dataflow::channels::pact::Pipeline;
    /// use timely::dataflow::operators::generic::Operator;
    ///
    /// let collect = Collect::new();
    /// let seen = collect.handle();
    /// let config = JobConfig::new(Name::new("words")?);
    /// execute(config, &JobHandle::default(), move |job| {
    ///     let words = ["to", "be", "or", "not", "to", "be"].map(str::to_owned).to_vec();
    ///     job.source("words", Collection::new(words))
    ///         .into_keyed(|word| (word, ()))
    ///         .through_stateful_timely(
    ///             "once",
    ///             Value::<()>::new("seen"),
    ///             |word, (), seen, out| {
    ///                 seen.set(());
    ///                 out.emit(word.clone());
    ///             },
    ///             |word, ()| word.clone(),
    ///             |words| {
    ///                 words.unary(Pipeline, "Once", |_, _| {
    ///                     let mut remembered = HashSet::new();
    ///                     move |input, output| {
    ///                         input.for_each(|capability, words: &mut Vec<String>| {
    ///                             words.retain(|word| remembered.insert(word.clone()));
    ///                             if capability.time().epoch > 0 {
    ///                                 output.session(&capability).give_container(words);
    ///                             }
    ///                         });
    ///                     }
    ///                 })
    ///             },
    ///         )
    ///         .sink("out", collect.clone());
    ///     Ok(())
    /// })?;
    /// let mut words = seen.committed();
    /// words.sort();
    /// assert_eq!(words, ["be", "not", "or", "to"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn through_stateful_timely<W, O, R>(
        self,
        name: &str,
        state: Value<W>,
        on_record: impl FnMut(&K, V, &mut ValueState<'_, K, W>, &mut Context<'_, O>) + 'static,
        mut on_restored: impl FnMut(&K, &W) -> O + 'static,
        f: impl FnOnce(Timely<'scope, O>) -> Timely<'scope, R>,
    ) -> Stream<'scope, R>
    where
        W: StateValue,
        O: Record,
        R: Record,
    {
        let replay: Replay<<Value<W> as States<K>>::Tables, O> = Box::new(move |tables, send| {
            tables.entries.for_each(|key, kept| send(on_restored(key, kept)));
        });
        let job = self.stream.job.clone();
        job.add_keyed(self.stream, name, state, on_record, Some(replay)).through_timely(f)
    }

    /// Turns every value into another. The records stay keyed, and where they are.
    pub fn map_values<W: Record>(
        self,
        mut f: impl FnMut(&K, V) -> W + 'static,
    ) -> KeyedStream<'scope, K, W> {
        let stream = self.stream.map(move |(key, value)| {
            let value = f(&key, value);
            (key, value)
        });
        KeyedStream { stream }
    }

    /// All records of both streams, keyed as they were. The watermark of the result is the lesser of both.
    ///
    /// Operators with more inputs than two are behind a union: [`KeyedStream::map_values`] brings the streams to one type, and each
    /// keeps a channel of its own, all of which a barrier has to come through. For two see [`KeyedStream::connect`].
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self { stream: self.stream.union(other.stream) }
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

/// Keeps records on their worker.
struct Stay {
    index: usize,
}

impl<D: Record> Route<D, D> for Stay {
    fn route(&mut self, input: &mut Vec<D>, to: &mut Targets<D>) {
        to.give_batch(self.index, std::mem::take(input));
    }
}

struct ByFunction<F: ?Sized>(Rc<RefCell<F>>);

impl<D: Record, F: FnMut(&D, usize) -> usize + 'static> Route<D, D> for ByFunction<F> {
    fn route(&mut self, input: &mut Vec<D>, to: &mut Targets<D>) {
        let peers = to.peers();
        let mut target_of = self.0.borrow_mut();
        for record in input.drain(..) {
            let target = target_of(&record, peers) % peers;
            to.give(target, record);
        }
    }
}
