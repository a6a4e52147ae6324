//! Operators with operator state: streams that are not keyed, and streams beside a broadcast one.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::connect::Record;
use crate::ids::Name;
use crate::job::Job;
use crate::job::builder::{BuildError, MainAndBroadcast, behind};
use crate::job::stream::{KeyedStream, Stream};
use crate::runtime::event_time::EventTime;
use crate::runtime::keyed::Context;
use crate::runtime::keyed_timers::TimerContext;
use crate::runtime::operator::{
    BroadcastProcess, Kept, KeyedBroadcastProcess, Logic, Process, operator,
};
use crate::runtime::operator_state::{self, BroadcastStates, OperatorStates, Stored};
use crate::runtime::states::States;
use crate::runtime::timed::Timer;
use crate::state::Key;

impl<'scope, D: Record> Stream<'scope, D> {
    /// Processes every record with states of the instance: each worker has its own, whatever keys its records have.
    ///
    /// `name` is unique in the job, and identifies the state in checkpoints. `states` declares what is kept:
    /// [`OperatorList`](crate::job::OperatorList), [`UnionList`](crate::job::UnionList), or a tuple of such. The function
    /// gets the record, access to the states, and the [`Context`] that it emits to. Records stay on their worker. At
    /// another parallelism the state is dealt anew, so nothing may depend on which instance has what.
    ///
    /// A panic of the function fails the attempt: nothing it did to state or output survives, and the job goes on
    /// from the last checkpoint by its restart strategy.
    ///
    /// # Examples
    /// Records in packages of three:
    /// ```
    /// use highwater::config::JobConfig;
    /// use highwater::ids::Name;
    /// use highwater::job::{JobHandle, execute};
    /// use highwater::prelude::*;
    ///
    /// let collect = Collect::new();
    /// let seen = collect.handle();
    /// let config = JobConfig::new(Name::new("packages")?);
    /// execute(config, &JobHandle::default(), move |job| {
    ///     job.source("numbers", Collection::new((1..=7).collect()))
    ///         .process("packages", OperatorList::<u64>::new("waiting"), |n, waiting, out| {
    ///             waiting.append(n);
    ///             if waiting.len() == 3 {
    ///                 out.emit(waiting.take());
    ///             }
    ///         })
    ///         .sink("out", collect.clone());
    ///     Ok(())
    /// })?;
    /// assert_eq!(seen.committed(), [[1, 2, 3], [4, 5, 6]]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn process<S, O, F>(self, name: &str, states: S, logic: F) -> Stream<'scope, O>
    where
        S: OperatorStates,
        O: Record,
        F: FnMut(D, &mut S::Access<'_>, &mut Context<'_, O>) + 'static,
    {
        let job = self.job.clone();
        let name = job.name(name);
        let (watermark, shown) = job.restored_watermark(&name);
        let kept = job.restored_operator_state(&name, &states, &mut BTreeSet::from([watermark]));
        job.add_operator::<D, (), O, _>((self, None), &name, shown, Process::<S, F> { kept, logic })
    }

    /// Gives the records another event time, whatever they had: `event_time` says what it is and how far behind the latest
    /// record the watermark stays. Records keep their order, and stay on their worker.
    ///
    /// Each worker has a watermark generator of its own, for whatever reaches it, and the watermark is the least of all
    /// workers'. A worker that no record reaches holds it back until the end of the input, unless the strategy has an
    /// [idle timeout](crate::prelude::WatermarkStrategy::with_idle_timeout): then it follows the others. Event time does not go back over
    /// a restart: `name`, which is unique in the job, identifies the watermark in checkpoints.
    ///
    /// # Examples
    /// ```
    /// use highwater::config::JobConfig;
    /// use highwater::ids::Name;
    /// use highwater::job::{JobHandle, execute};
    /// use highwater::prelude::*;
    ///
    /// let collect = Collect::new();
    /// let seen = collect.handle();
    /// let config = JobConfig::new(Name::new("lines")?);
    /// execute(config, &JobHandle::default(), move |job| {
    ///     let lines = ["8 b", "3 a", "17 c"].map(str::to_owned).to_vec();
    ///     job.source("lines", Collection::new(lines))
    ///         .flat_map(|line| {
    ///             let (time, what) = line.split_once(' ')?;
    ///             Some((time.parse::<i64>().ok()?, what.to_owned()))
    ///         })
    ///         .assign_timestamps("times", EventTime::monotonic(|(time, _)| *time))
    ///         .key_by(|_| ())
    ///         .process_with_timers(
    ///             "in-order",
    ///             Map::<i64, String>::new("waiting"),
    ///             |(), (time, what), waiting, context| {
    ///                 waiting.insert(time, what);
    ///                 context.register_event_timer(time);
    ///             },
    ///             |(), timer, waiting, context| {
    ///                 waiting.remove(&timer.time).into_iter().for_each(|what| context.emit(what));
    ///             },
    ///         )
    ///         .sink("out", collect.clone());
    ///     Ok(())
    /// })?;
    /// let mut whats = seen.committed();
    /// whats.sort();
    /// assert_eq!(whats, ["a", "b", "c"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn assign_timestamps(self, name: &str, event_time: EventTime<D>) -> Self {
        self.job.clone().add_assigner(self, name, event_time)
    }

    /// Gives the records another event time, whatever they had: that of their arrival here, by the clock of the machine, in steps of
    /// `tick` (whole milliseconds, at least one). Event time moves on with the clock, whether records come or not, until the
    /// end of the input; each step costs the worker a look at what is behind. No record is late.
    ///
    /// So what waits for the watermark, such as a view of differential dataflow, gives results once a tick. Another run
    /// gives the records other times. Otherwise as [`Stream::assign_timestamps`].
    ///
    /// # Examples
    /// What has arrived in each tenth of a second is counted when that is over:
    /// ```
    /// use std::time::Duration;
    ///
    /// use highwater::prelude::*;
    ///
    /// fn counts<'a>(visits: Stream<'a, String>) -> Stream<'a, (String, u64)> {
    ///     visits
    ///         .assign_arrival_times("arrival", Duration::from_millis(100))
    ///         .key_by(String::clone)
    ///         .process_with_timers(
    ///             "counts",
    ///             Value::<u64>::new("count"),
    ///             |_, _, count, context| {
    ///                 *count.or_default() += 1;
    ///                 context.register_event_timer(context.watermark().saturating_add(1));
    ///             },
    ///             |page, _, count, context| {
    ///                 count.take().into_iter().for_each(|n| context.emit((page.clone(), n)));
    ///             },
    ///         )
    /// }
    /// ```
    #[must_use]
    pub fn assign_arrival_times(self, name: &str, tick: Duration) -> Self {
        let by_clock = EventTime { tick: Some(tick), ..EventTime::none() };
        self.job.clone().add_assigner(self, name, by_clock)
    }

    /// Puts a second stream beside this one, of which every worker gets every record: settings, rules, a table to look things
    /// up in. What comes of its records is kept in a broadcast state, which is the same on every worker.
    ///
    /// The channel of the broadcast stream is as that of [`Stream::broadcast`]: no barrier overtakes in it unless an
    /// alignment timeout is set for it [by name](Stream::channel_name).
    pub fn connect_broadcast<B: Record>(
        self,
        broadcast: Stream<'scope, B>,
    ) -> BroadcastConnected<'scope, D, B> {
        BroadcastConnected { main: self, broadcast: broadcast.broadcast() }
    }
}

impl<'scope, K: Key, V: Record> KeyedStream<'scope, K, V> {
    /// As [`Stream::connect_broadcast`], with keyed state for the main records beside the broadcast state.
    pub fn connect_broadcast<B: Record>(
        self,
        broadcast: Stream<'scope, B>,
    ) -> KeyedBroadcastConnected<'scope, K, V, B> {
        KeyedBroadcastConnected { main: self, broadcast: broadcast.broadcast() }
    }
}

/// A stream with a broadcast one beside it.
#[derive(Clone)]
pub struct BroadcastConnected<'scope, D: Record, B: Record> {
    main: Stream<'scope, D>,
    broadcast: Stream<'scope, B>,
}

impl<D: Record, B: Record> fmt::Debug for BroadcastConnected<'_, D, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BroadcastConnected").finish_non_exhaustive()
    }
}

impl<'scope, D: Record, B: Record> BroadcastConnected<'scope, D, B> {
    /// Processes the records of both streams. `states` declares what is kept: one [`Broadcast`](crate::job::Broadcast)
    /// state, or a tuple of such. `on_broadcast` gets every broadcast record, on every worker, and may change it; `on_record`
    /// gets the main records and may only read it. `name` is unique in the job, and identifies the state in checkpoints.
    ///
    /// So that the state is the same on every worker, `on_broadcast` must depend on nothing but its record and the state.
    /// What it emits is emitted by every worker. There is no order between the two streams: a main record may come before a
    /// broadcast one that was sent earlier. The watermark is the lesser of both.
    ///
    /// # Examples
    /// Numbers, and the limit that they may not pass:
    /// ```
    /// use highwater::config::JobConfig;
    /// use highwater::ids::Name;
    /// use highwater::job::{JobHandle, execute};
    /// use highwater::prelude::*;
    ///
    /// let collect = Collect::new();
    /// let seen = collect.handle();
    /// let config = JobConfig::new(Name::new("limits")?);
    /// execute(config, &JobHandle::default(), move |job| {
    ///     let limits = job.source("limits", Collection::new(vec![7_u64]));
    ///     job.source("numbers", Collection::new((0..10_u64).collect()))
    ///         .connect_broadcast(limits)
    ///         .process(
    ///             "limit",
    ///             Broadcast::<(), u64>::new("limit"),
    ///             |n, limit, out| {
    ///                 let known = limit.get(&()).is_some();
    ///                 out.emit((n, known && limit.get(&()) < Some(&n)));
    ///             },
    ///             |new_limit, limit, _| {
    ///                 limit.insert((), new_limit);
    ///             },
    ///         )
    ///         .sink("out", collect.clone());
    ///     Ok(())
    /// })?;
    /// assert_eq!(seen.committed().len(), 10);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    /// The function for main records cannot change the state:
    /// ```compile_fail
    /// # use highwater::prelude::*;
    /// # fn build<'a>(main: Stream<'a, u64>, limits: Stream<'a, u64>) {
    /// main.connect_broadcast(limits).process(
    ///     "limit",
    ///     Broadcast::<(), u64>::new("limit"),
    ///     |n: u64, limit, out| {
    ///         limit.insert((), n); // no method named `insert` found
    ///         out.emit(n);
    ///     },
    ///     |_, _, _| (),
    /// );
    /// # }
    /// ```
    pub fn process<S, O, F, G>(
        self,
        name: &str,
        states: S,
        on_record: F,
        on_broadcast: G,
    ) -> Stream<'scope, O>
    where
        S: BroadcastStates,
        O: Record,
        F: FnMut(D, &S::View<'_>, &mut Context<'_, O>) + 'static,
        G: FnMut(B, &mut S::Access<'_>, &mut Context<'_, O>) + 'static,
    {
        let job = self.main.job.clone();
        let name = job.name(name);
        let (watermark, shown) = job.restored_watermark(&name);
        let kept = job.restored_operator_state(&name, &states, &mut BTreeSet::from([watermark]));
        let logic = BroadcastProcess::<S, F, G> { kept, on_record, on_broadcast };
        job.add_operator((self.main, Some(self.broadcast)), &name, shown, logic)
    }
}

/// A keyed stream with a broadcast one beside it.
#[derive(Clone)]
pub struct KeyedBroadcastConnected<'scope, K: Key, V: Record, B: Record> {
    main: KeyedStream<'scope, K, V>,
    broadcast: Stream<'scope, B>,
}

impl<K: Key, V: Record, B: Record> fmt::Debug for KeyedBroadcastConnected<'_, K, V, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedBroadcastConnected").finish_non_exhaustive()
    }
}

impl<'scope, K: Key, V: Record, B: Record> KeyedBroadcastConnected<'scope, K, V, B> {
    /// As [`BroadcastConnected::process`], with keyed states for the main records: `states` are those of each key, as for
    /// [`KeyedStream::process`], `broadcast` those that every worker has alike.
    ///
    /// # Examples
    /// The sums of each key, in a unit that may change:
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
    ///     let units = job.source("units", Collection::new(vec![("unit".to_owned(), 10_u64)]));
    ///     job.source("numbers", Collection::new((0..10_u64).collect()))
    ///         .key_by(|n| n % 2)
    ///         .connect_broadcast(units)
    ///         .process(
    ///             "sums",
    ///             Value::<u64>::new("sum"),
    ///             Broadcast::<String, u64>::new("units"),
    ///             |parity, n, sum, units, out| {
    ///                 *sum.or_default() += n;
    ///                 let unit = units.get(&"unit".to_owned()).copied().unwrap_or(1);
    ///                 out.emit((*parity, *sum.or_default(), unit));
    ///             },
    ///             |(name, unit), units, _| {
    ///                 units.insert(name, unit);
    ///             },
    ///         )
    ///         .sink("out", collect.clone());
    ///     Ok(())
    /// })?;
    /// let sums = seen.committed().into_iter().map(|(parity, sum, _)| (parity, sum));
    /// assert_eq!(sums.filter(|sum| *sum == (0, 20) || *sum == (1, 25)).count(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn process<S, T, O, F, G>(
        self,
        name: &str,
        states: S,
        broadcast: T,
        on_record: F,
        on_broadcast: G,
    ) -> Stream<'scope, O>
    where
        S: States<K>,
        T: BroadcastStates,
        O: Record,
        F: FnMut(&K, V, &mut S::Access<'_>, &T::View<'_>, &mut Context<'_, O>) + 'static,
        G: FnMut(B, &mut T::Access<'_>, &mut Context<'_, O>) + 'static,
    {
        let main = self.main.stream;
        let job = main.job.clone();
        let name = job.name(name);
        let (watermark, shown) = job.restored_watermark(&name);
        let mut taken = BTreeSet::from([watermark]);
        let kept = job.restored_operator_state(&name, &broadcast, &mut taken);
        let (tables, _) = job.restored_tables(&name, &states, taken, &[]);
        let logic = KeyedBroadcastProcess::<K, S, T, F, G> {
            states,
            tables,
            kept,
            on_record,
            on_broadcast,
            hashes: Vec::new(),
        };
        job.add_operator((main, Some(self.broadcast)), &name, shown, logic)
    }

    /// As [`KeyedBroadcastConnected::process`], with timers: the function for the main records may register and delete them,
    /// for the key at hand, and a third function is called when a time has come. It sees the broadcast state as it is then, and
    /// cannot change it. Otherwise as [`KeyedStream::process_with_timers`].
    ///
    /// A broadcast record has no key, so its function has no timers.
    ///
    /// # Examples
    /// What was bought of each article in ten milliseconds of event time, where it passes a limit that may change:
    /// ```
    /// use highwater::config::JobConfig;
    /// use highwater::ids::Name;
    /// use highwater::job::{JobHandle, execute};
    /// use highwater::prelude::*;
    ///
    /// let collect = Collect::new();
    /// let seen = collect.handle();
    /// let config = JobConfig::new(Name::new("limits")?);
    /// execute(config, &JobHandle::default(), move |job| {
    ///     // Since when, and what. The windows below wait until both streams have passed them.
    ///     let limits = Collection::new(vec![(0i64, 4u64), (15, 7)]);
    ///     let limits = job.source_with("limits", limits, EventTime::monotonic(|(at, _)| *at));
    ///     let sold = [(1i64, "tea", 3u64), (4, "tea", 2), (12, "tea", 1), (31, "tea", 9)];
    ///     let sold = sold.map(|(at, article, pieces)| (at, article.to_owned(), pieces)).to_vec();
    ///     job.source_with("sold", Collection::new(sold), EventTime::monotonic(|(at, _, _)| *at))
    ///         .key_by(|(_, article, _)| article.clone())
    ///         .connect_broadcast(limits)
    ///         .process_with_timers(
    ///             "passed",
    ///             Map::<i64, u64>::new("sold"),
    ///             Broadcast::<i64, u64>::new("limits"),
    ///             |_, (at, _, pieces), sold, _limits, context| {
    ///                 let end = at - at % 10 + 9;
    ///                 let before = sold.get(&end).copied().unwrap_or(0);
    ///                 sold.insert(end, before + pieces);
    ///                 context.register_event_timer(end);
    ///             },
    ///             |(at, limit), limits, _| {
    ///                 limits.insert(at, limit);
    ///             },
    ///             |article, timer, sold, limits, context| {
    ///                 let pieces = sold.remove(&timer.time).unwrap_or(0);
    ///                 let limit = limits.iter().filter(|(at, _)| **at <= timer.time).last();
    ///                 if limit.is_some_and(|(_, limit)| pieces > *limit) {
    ///                     context.emit((timer.time, article.clone(), pieces));
    ///                 }
    ///             },
    ///         )
    ///         .sink("out", collect.clone());
    ///     Ok(())
    /// })?;
    /// assert_eq!(seen.committed(), [(9, "tea".to_owned(), 5), (39, "tea".to_owned(), 9)]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn process_with_timers<S, T, O, F, G, H>(
        self,
        name: &str,
        states: S,
        broadcast: T,
        on_record: F,
        on_broadcast: G,
        on_timer: H,
    ) -> Stream<'scope, O>
    where
        S: States<K>,
        T: BroadcastStates,
        O: Record,
        F: FnMut(&K, V, &mut S::Access<'_>, &T::View<'_>, &mut TimerContext<'_, K, O>) + 'static,
        G: FnMut(B, &mut T::Access<'_>, &mut Context<'_, O>) + 'static,
        H: FnMut(&K, Timer, &mut S::Access<'_>, &T::View<'_>, &mut TimerContext<'_, K, O>)
            + 'static,
    {
        let main = self.main.stream;
        main.job.clone().add_keyed_with_timers(
            (main, Some(self.broadcast)),
            name,
            (states, broadcast),
            on_record,
            on_broadcast,
            on_timer,
        )
    }
}

impl<'scope> Job<'scope> {
    fn add_operator<D: Record, B: Record, O: Record, L: Logic<D, B, O>>(
        &self,
        inputs: MainAndBroadcast<'scope, D, B>,
        name: &Name,
        shown: i64,
        logic: L,
    ) -> Stream<'scope, O> {
        behind(inputs, |inputs, origins| {
            (operator(inputs, origins.clone(), self.context(), name, shown, logic), origins)
        })
    }

    /// The states of an operator, with what a checkpoint holds of them for this worker. `seen`: names that states may not
    /// have; theirs are added.
    pub(super) fn restored_operator_state<S: Stored>(
        &self,
        name: &Name,
        states: &S,
        seen: &mut BTreeSet<Name>,
    ) -> Kept<S> {
        let declarations = states.declarations();
        let mut held = S::Held::default();
        for (index, declaration) in declarations.iter().enumerate() {
            let header = declaration.header(name);
            if let Err(error) = &declaration.name {
                self.error(error.clone());
                continue;
            }
            if !seen.insert(header.state.clone()) {
                self.error(BuildError::Duplicate(header.state.clone()));
            }
            let Some(restored) = self.restorable(&header) else { continue };
            let read =
                operator_state::read::<S>(&mut held, index, &header, restored, self.context());
            if let Err(error) = read {
                self.error(error);
            }
        }
        Kept::new(declarations, held)
    }
}
