//! Keyed streams side by side: operators with two inputs that share the state of a key.
//!
//! The two are one stream of [`Either`] for the operator behind them, so it is as any other: each input has a channel of its own, a
//! barrier has to come through both, and the watermark is the lesser of both.

use std::fmt;

use crate::connect::Record;
use crate::job::stream::{KeyedStream, Stream};
use crate::runtime::either::Either;
use crate::runtime::keyed::Context;
use crate::runtime::keyed_timers::TimerContext;
use crate::runtime::kinds::Value;
use crate::runtime::scheduled::{Scheduled, ScheduledContext};
use crate::runtime::states::States;
use crate::runtime::timed::Timer;
use crate::state::Key;

impl<'scope, K: Key, L: Record> KeyedStream<'scope, K, L> {
    /// Puts a second stream with keys of the same type beside this one, for an operator that has a function for each of them:
    /// see [`Connected`].
    pub fn connect<R: Record>(
        self,
        right: KeyedStream<'scope, K, R>,
    ) -> Connected<'scope, K, L, R> {
        let left = self.map_values(|_, record| Either::Left(record));
        let right = right.map_values(|_, record| Either::Right(record));
        Connected { both: left.union(right) }
    }
}

/// Two keyed streams side by side; made by [`KeyedStream::connect`].
///
/// The functions for the two inputs see the same states of a key. Records of one input come in its order; between the two there
/// is none: a record may come before one that was sent earlier on the other side, so what has come has to be kept until what
/// it needs is there. The watermark is the lesser of both.
///
/// What both functions use is shared by an `Rc`, what both change by an `Rc<RefCell<_>>`; what has to survive a failure is in
/// the states.
///
/// # Examples
/// Each order with what was paid for it, whichever comes first; and those that are not paid after ten milliseconds of event
/// time:
/// ```
/// use highwater::config::JobConfig;
/// use highwater::ids::Name;
/// use highwater::job::{JobHandle, execute};
/// use highwater::prelude::*;
///
/// let collect = Collect::new();
/// let seen = collect.handle();
/// let config = JobConfig::new(Name::new("orders")?);
/// execute(config, &JobHandle::default(), move |job| {
///     // Number and time of each order; number, time and amount of each payment.
///     let orders = Collection::new(vec![(1u64, 0i64), (2, 5), (3, 20)]);
///     let orders = job.source_with("orders", orders, EventTime::monotonic(|(_, at)| *at));
///     let payments = Collection::new(vec![(1u64, 2i64, 100u64), (3, 21, 250)]);
///     let payments = job.source_with("payments", payments, EventTime::monotonic(|(_, at, _)| *at));
///     orders
///         .key_by(|(order, _)| *order)
///         .connect(payments.key_by(|(order, ..)| *order))
///         .process_with_timers(
///             "paid",
///             (Value::<i64>::new("ordered-at"), Value::<u64>::new("amount")),
///             |order, (_, at), (ordered_at, amount), context| match amount.take() {
///                 Some(amount) => context.emit((*order, Some(amount))),
///                 None => {
///                     ordered_at.set(at);
///                     context.register_event_timer(at + 10);
///                 }
///             },
///             |order, (.., paid), (ordered_at, amount), context| match ordered_at.take() {
///                 Some(at) => {
///                     context.delete_event_timer(at + 10);
///                     context.emit((*order, Some(paid)));
///                 }
///                 None => {
///                     amount.set(paid);
///                 }
///             },
///             |order, _timer, (ordered_at, _), context| {
///                 ordered_at.take();
///                 context.emit((*order, None));
///             },
///         )
///         .sink("out", collect.clone());
///     Ok(())
/// })?;
/// let mut paid = seen.committed();
/// paid.sort();
/// assert_eq!(paid, [(1, Some(100)), (2, None), (3, Some(250))]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[must_use = "two streams side by side do nothing without an operator"]
pub struct Connected<'scope, K: Key, L: Record, R: Record> {
    both: KeyedStream<'scope, K, Either<L, R>>,
}

impl<K: Key, L: Record, R: Record> fmt::Debug for Connected<'_, K, L, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connected").finish_non_exhaustive()
    }
}

impl<'scope, K: Key, L: Record, R: Record> Connected<'scope, K, L, R> {
    /// Processes every record of either stream with the states of its key, by the function for that stream. Otherwise as
    /// [`KeyedStream::process`].
    ///
    /// # Examples
    /// Words, counted while they are wanted:
    /// ```
    /// use highwater::prelude::*;
    ///
    /// fn counts<'a>(
    ///     words: KeyedStream<'a, String, ()>,
    ///     wanted: KeyedStream<'a, String, bool>,
    /// ) -> Stream<'a, (String, u64)> {
    ///     words.connect(wanted).process(
    ///         "counts",
    ///         Value::<u64>::new("count"),
    ///         |word, (), count, out| {
    ///             if let Some(count) = count.get_mut() {
    ///                 *count += 1;
    ///                 out.emit((word.clone(), *count));
    ///             }
    ///         },
    ///         |_word, wanted, count, _| {
    ///             if wanted {
    ///                 count.or_default();
    ///             } else {
    ///                 count.take();
    ///             }
    ///         },
    ///     )
    /// }
    /// ```
    pub fn process<S, O, F, G>(
        self,
        name: &str,
        states: S,
        mut on_left: F,
        mut on_right: G,
    ) -> Stream<'scope, O>
    where
        S: States<K>,
        O: Record,
        F: FnMut(&K, L, &mut S::Access<'_>, &mut Context<'_, O>) + 'static,
        G: FnMut(&K, R, &mut S::Access<'_>, &mut Context<'_, O>) + 'static,
    {
        self.both.process(name, states, move |key, record, state, out| match record {
            Either::Left(left) => on_left(key, left, state, out),
            Either::Right(right) => on_right(key, right, state, out),
        })
    }

    /// As [`Connected::process`], with timers that both functions may register and delete, and a third function that is called
    /// when a time has come. Otherwise as [`KeyedStream::process_with_timers`].
    pub fn process_with_timers<S, O, F, G, T>(
        self,
        name: &str,
        states: S,
        mut on_left: F,
        mut on_right: G,
        on_timer: T,
    ) -> Stream<'scope, O>
    where
        S: States<K>,
        O: Record,
        F: FnMut(&K, L, &mut S::Access<'_>, &mut TimerContext<'_, K, O>) + 'static,
        G: FnMut(&K, R, &mut S::Access<'_>, &mut TimerContext<'_, K, O>) + 'static,
        T: FnMut(&K, Timer, &mut S::Access<'_>, &mut TimerContext<'_, K, O>) + 'static,
    {
        let on_record =
            move |key: &K,
                  record: Either<L, R>,
                  state: &mut S::Access<'_>,
                  context: &mut TimerContext<'_, K, O>| match record {
                Either::Left(left) => on_left(key, left, state, context),
                Either::Right(right) => on_right(key, right, state, context),
            };
        self.both.process_with_timers(name, states, on_record, on_timer)
    }

    /// As [`Connected::process`], with one state that says itself when it is due, and a third function that is called then.
    /// Otherwise as [`KeyedStream::process_scheduled`].
    pub fn process_scheduled<W, O, F, G, T>(
        self,
        name: &str,
        state: Value<W>,
        mut on_left: F,
        mut on_right: G,
        on_due: T,
    ) -> Stream<'scope, O>
    where
        W: Scheduled,
        O: Record,
        F: FnMut(&K, L, &mut W, &mut ScheduledContext<'_, O>) + 'static,
        G: FnMut(&K, R, &mut W, &mut ScheduledContext<'_, O>) + 'static,
        T: FnMut(&K, Timer, &mut W, &mut ScheduledContext<'_, O>) + 'static,
    {
        let on_record =
            move |key: &K,
                  record: Either<L, R>,
                  state: &mut W,
                  out: &mut ScheduledContext<'_, O>| match record {
                Either::Left(left) => on_left(key, left, state, out),
                Either::Right(right) => on_right(key, right, state, out),
            };
        self.both.process_scheduled(name, state, on_record, on_due)
    }

    /// The records of both as one stream, for operators that take one, such as windows.
    pub fn united(self) -> KeyedStream<'scope, K, Either<L, R>> {
        self.both
    }
}
