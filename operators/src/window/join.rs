//! Joins of the records of two streams that are in one window.

use std::fmt;
use std::marker::PhantomData;

use highwater::prelude::*;

use crate::aggregate::Aggregate;
use crate::window::{KeyedWindows, Timestamp, Window, Windows};

/// Joins keyed streams window by window.
///
/// # Examples
/// Who has looked at something and bought it in the same minute:
/// ```
/// use std::time::Duration;
///
/// use highwater::config::JobConfig;
/// use highwater::ids::Name;
/// use highwater::job::{JobHandle, execute};
/// use highwater::prelude::*;
/// use highwater_operators::{WindowJoin, Windows};
///
/// let collect = Collect::new();
/// let seen = collect.handle();
/// let config = JobConfig::new(Name::new("bought")?);
/// execute(config, &JobHandle::default(), move |job| {
///     let time = || EventTime::monotonic(|(at, ..): &(i64, String, String)| *at);
///     let events = |all: &[(i64, &str, &str)]| {
///         let owned = |(at, who, what): &(i64, &str, &str)| (*at, who.to_string(), what.to_string());
///         Collection::new(all.iter().map(owned).collect())
///     };
///     let looks = events(&[(1_000, "ann", "book"), (2_000, "bob", "lamp"), (61_000, "bob", "pen")]);
///     let sales = events(&[(59_000, "ann", "book"), (60_000, "bob", "pen")]);
///     let by_who = |(at, who, what): (i64, String, String)| (who, (at, what));
///     let sales = job.source_with("sales", sales, time()).into_keyed(by_who);
///     job.source_with("looks", looks, time())
///         .into_keyed(by_who)
///         .window_join(sales, Windows::tumbling(Duration::from_secs(60)), |(at, _)| *at, |(at, _)| *at)
///         .join("bought", |who, _, (_, looked), (_, bought)| (who.clone(), looked.clone(), bought.clone()))
///         .sink("out", collect.clone());
///     Ok(())
/// })?;
/// let own = |who: &str, looked: &str, bought: &str| (who.to_owned(), looked.to_owned(), bought.to_owned());
/// let mut bought = seen.committed();
/// bought.sort();
/// assert_eq!(bought, [own("ann", "book", "book"), own("bob", "pen", "pen")]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait WindowJoin<'scope, K: Key, L: Record>: Sized {
    /// Puts the records of both streams into the same windows of event time. The functions give the event times of records in
    /// milliseconds, which should be what the sources were given.
    fn window_join<R: Record>(
        self,
        right: KeyedStream<'scope, K, R>,
        windows: Windows,
        left_timestamp: impl Fn(&L) -> i64 + 'static,
        right_timestamp: impl Fn(&R) -> i64 + 'static,
    ) -> WindowJoined<'scope, K, L, R>;
}

impl<'scope, K: Key, L: Record> WindowJoin<'scope, K, L> for KeyedStream<'scope, K, L> {
    fn window_join<R: Record>(
        self,
        right: KeyedStream<'scope, K, R>,
        windows: Windows,
        left_timestamp: impl Fn(&L) -> i64 + 'static,
        right_timestamp: impl Fn(&R) -> i64 + 'static,
    ) -> WindowJoined<'scope, K, L, R> {
        let both = self.connect(right).united();
        let timestamp: Timestamp<Either<L, R>> = Box::new(move |record| match record {
            Either::Left(left) => left_timestamp(left),
            Either::Right(right) => right_timestamp(right),
        });
        WindowJoined { both, windows, timestamp }
    }
}

/// Two keyed streams in the same windows.
///
/// Both functions below are called when the watermark has passed a window, for each key that has a record in it. Late records
/// are dropped. All records of a window are kept until it is over.
pub struct WindowJoined<'scope, K: Key, L: Record, R: Record> {
    both: KeyedStream<'scope, K, Either<L, R>>,
    windows: Windows,
    timestamp: Timestamp<Either<L, R>>,
}

impl<K: Key, L: Record, R: Record> fmt::Debug for WindowJoined<'_, K, L, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WindowJoined").field("windows", &self.windows).finish_non_exhaustive()
    }
}

impl<'scope, K: Key, L: Record, R: Record> WindowJoined<'scope, K, L, R> {
    /// Calls a function with all records of a window, those of each side by themselves; either may be empty.
    pub fn co_group<O: Record>(
        self,
        name: &str,
        mut function: impl FnMut(&K, Window, Vec<L>, Vec<R>, &mut ScheduledContext<'_, O>) + 'static,
    ) -> Stream<'scope, O> {
        let Self { both, windows, timestamp } = self;
        let sides = Sides(PhantomData);
        both.window(windows, timestamp).aggregate_with(
            name,
            sides,
            move |key, window, both, out| {
                let (left, right) = both;
                function(key, window, left, right, out);
            },
        )
    }

    /// Emits what `function` makes of each pair of records of one key and window, one of each side.
    pub fn join<O: Record>(
        self,
        name: &str,
        function: impl Fn(&K, Window, &L, &R) -> O + 'static,
    ) -> Stream<'scope, O> {
        self.co_group(name, move |key, window, left, right, out| {
            for left in &left {
                for right in &right {
                    out.emit(function(key, window, left, right));
                }
            }
        })
    }
}

type BothSides<L, R> = fn() -> (L, R);

/// The records of two sides.
struct Sides<L, R>(PhantomData<BothSides<L, R>>);

impl<L: Record, R: Record> Aggregate for Sides<L, R> {
    type Input = Either<L, R>;
    type State = (Vec<L>, Vec<R>);
    type Output = (Vec<L>, Vec<R>);

    fn create(&self, first: Either<L, R>) -> Self::State {
        match first {
            Either::Left(left) => (vec![left], Vec::new()),
            Either::Right(right) => (Vec::new(), vec![right]),
        }
    }

    fn add(&self, (lefts, rights): &mut Self::State, input: Either<L, R>) {
        match input {
            Either::Left(left) => lefts.push(left),
            Either::Right(right) => rights.push(right),
        }
    }

    fn merge(&self, (lefts, rights): &mut Self::State, (more_lefts, more_rights): Self::State) {
        lefts.extend(more_lefts);
        rights.extend(more_rights);
    }

    fn result(&self, state: &Self::State) -> Self::Output {
        state.clone()
    }
}
