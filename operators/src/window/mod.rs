//! Windows: what the records of a stretch of time come to.
//!
//! | windows                  | are                                                            | kept for a key                    |
//! |--------------------------|----------------------------------------------------------------|-----------------------------------|
//! | [`Windows::tumbling`]     | one behind the other, as long as each other                     | one state of the aggregate        |
//! | [`Windows::sliding`]      | as long as each other, each beginning a slide after the last     | one a slide, shared by all windows |
//! | [`Windows::session`]      | as long as records come, until a silence                        | one for each session              |
//!
//! # Guarantee
//! The result of a window is emitted once, when the watermark says that no record of it is expected any more: when it has
//! reached the last millisecond of the window. Results are in time: the watermark behind the operator does not pass a window
//! before its result. At the end of input all windows end.
//!
//! A record whose windows are all over is late. It is dropped, or [sent another way](WindowedStream::aggregate_or_late), unless
//! [lateness](WindowedStream::allowed_lateness) is allowed: then windows are kept so much longer, and each late record gives the
//! corrected results of its windows that are over, at once.
//!
//! # State
//! What stands in the table for each key, until the watermark has passed the last window that needs it, and lateness is over. Records
//! themselves are not kept.

mod aligned;
mod session;
mod time;

use std::fmt;
use std::time::Duration;

use highwater::prelude::*;

pub use time::Window;

use crate::aggregate::Aggregate;
use aligned::{Grid, Panes};
use session::{Sessions, Silence};
use time::{ByEvent, ByProcessing, Domain};

/// Which windows there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Units: milliseconds, as everywhere below.
    Aligned {
        size: i64,
        slide: i64,
        offset: i64,
    },
    Session {
        gap: i64,
    },
}

/// Whole milliseconds, rounded up, at least one.
fn millis(time: Duration) -> i64 {
    // A part of all time: sums of some of these do not overflow.
    let most = i64::MAX / 4;
    i64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(most).clamp(1, most)
}

impl Windows {
    /// Windows of `size`, one behind the other: `[n * size, (n + 1) * size)`.
    ///
    /// Durations count in whole milliseconds, rounded up, and at least one; so everywhere here.
    #[must_use]
    pub fn tumbling(size: Duration) -> Self {
        Self::sliding(size, size)
    }

    /// Windows of `size`, of which one begins every `slide`: `[n * slide, n * slide + size)`. A record is in `size / slide` of them;
    /// it is added up once, and what a window costs does not depend on how many records or slides it is long. With a slide above
    /// the size, records between the windows are in none and count as late.
    #[must_use]
    pub fn sliding(size: Duration, slide: Duration) -> Self {
        Self(Kind::Aligned { size: millis(size), slide: millis(slide), offset: 0 })
    }

    /// Windows that last as long as records come: a session ends when none has come for `gap`. Records exactly `gap` apart are in
    /// one session.
    #[must_use]
    pub fn session(gap: Duration) -> Self {
        Self(Kind::Session { gap: millis(gap) })
    }

    /// Begins tumbling and sliding windows so much later: windows of a day with an offset of -2 hours begin at midnight where
    /// clocks are two hours ahead of UTC. Sessions begin with a record, whatever the offset.
    ///
    /// Units: milliseconds.
    #[must_use]
    pub fn offset(self, offset: i64) -> Self {
        match self.0 {
            Kind::Aligned { size, slide, .. } => {
                let offset = offset.rem_euclid(slide);
                Self(Kind::Aligned { size, slide, offset })
            }
            Kind::Session { .. } => self,
        }
    }
}

/// Puts the records of keyed streams into windows.
///
/// # Examples
/// What each room was at most, each ten milliseconds:
/// ```
/// use std::time::Duration;
///
/// use highwater::config::JobConfig;
/// use highwater::ids::Name;
/// use highwater::job::{JobHandle, execute};
/// use highwater::prelude::*;
/// use highwater_operators::{KeyedWindows, Max, Windows};
///
/// let collect = Collect::new();
/// let seen = collect.handle();
/// let config = JobConfig::new(Name::new("rooms")?);
/// execute(config, &JobHandle::default(), move |job| {
///     let degrees: Vec<(i64, String, i32)> = [(1, "hall", 19), (4, "hall", 21), (7, "attic", 12), (13, "hall", 18)]
///         .map(|(at, room, degrees)| (at, room.to_owned(), degrees))
///         .to_vec();
///     let time = EventTime::monotonic(|(at, ..): &(i64, String, i32)| *at);
///     job.source_with("degrees", Collection::new(degrees), time)
///         .into_keyed(|(at, room, degrees)| (room, (at, degrees)))
///         .window(Windows::tumbling(Duration::from_millis(10)), |(at, _)| *at)
///         .aggregate("warmest", Max::new())
///         .map(|(room, window, (_, degrees))| (room, window.start, degrees))
///         .sink("out", collect.clone());
///     Ok(())
/// })?;
/// let mut warmest = seen.committed();
/// warmest.sort();
/// let warmest: Vec<(&str, i64, i32)> = warmest.iter().map(|(r, w, d)| (r.as_str(), *w, *d)).collect();
/// assert_eq!(warmest, [("attic", 0, 12), ("hall", 0, 19), ("hall", 10, 18)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait KeyedWindows<'scope, K: Key, V: Record>: Sized {
    /// Windows of event time. `timestamp` gives a record's event time in milliseconds, and should be what the source was given.
    fn window(
        self,
        windows: Windows,
        timestamp: impl Fn(&V) -> i64 + 'static,
    ) -> WindowedStream<'scope, K, V>;

    /// Windows of processing time: a record is in the windows of the moment at which it is processed. No record is late. At the
    /// end of input all windows end at once.
    fn window_by_processing_time(self, windows: Windows) -> WindowedStream<'scope, K, V>;
}

/// The results of windows, and the records that were too late for them.
pub type ResultsAndLate<'scope, K, V, R> = (Stream<'scope, (K, Window, R)>, Stream<'scope, (K, V)>);

type Timestamp<V> = Box<dyn Fn(&V) -> i64>;

impl<'scope, K: Key, V: Record> KeyedWindows<'scope, K, V> for KeyedStream<'scope, K, V> {
    fn window(
        self,
        windows: Windows,
        timestamp: impl Fn(&V) -> i64 + 'static,
    ) -> WindowedStream<'scope, K, V> {
        WindowedStream { stream: self, windows, timestamp: Some(Box::new(timestamp)), lateness: 0 }
    }

    fn window_by_processing_time(self, windows: Windows) -> WindowedStream<'scope, K, V> {
        WindowedStream { stream: self, windows, timestamp: None, lateness: 0 }
    }
}

/// A keyed stream in windows.
pub struct WindowedStream<'scope, K: Key, V: Record> {
    stream: KeyedStream<'scope, K, V>,
    windows: Windows,
    /// `None`: processing time.
    timestamp: Option<Timestamp<V>>,
    lateness: i64,
}

impl<K: Key, V: Record> fmt::Debug for WindowedStream<'_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WindowedStream").field("windows", &self.windows).finish_non_exhaustive()
    }
}

impl<'scope, K: Key, V: Record> WindowedStream<'scope, K, V> {
    /// Keeps windows for so much longer than they last, and corrects their results when late records come. Nothing is late in
    /// processing time.
    #[must_use]
    pub fn allowed_lateness(mut self, lateness: Duration) -> Self {
        self.lateness = if lateness.is_zero() { 0 } else { millis(lateness) };
        self
    }

    /// Emits the key, the window and what its records come to, for every window that has a record. Late records are dropped.
    ///
    /// `name` is unique in the job, and identifies the state in checkpoints.
    pub fn aggregate<A: Aggregate<Input = V>>(
        self,
        name: &str,
        aggregate: A,
    ) -> Stream<'scope, (K, Window, A::Output)> {
        let emit = Emit { result: |key: &K, window, result| (key.clone(), window, result), late };
        self.build(name, aggregate, emit)
    }

    /// As [`WindowedStream::aggregate`]; the second stream has the late records.
    pub fn aggregate_or_late<A: Aggregate<Input = V>>(
        self,
        name: &str,
        aggregate: A,
    ) -> ResultsAndLate<'scope, K, V, A::Output> {
        let emit = Emit {
            result: |key: &K, window, result| Either::Left((key.clone(), window, result)),
            late: |key: &K, record| Some(Either::Right((key.clone(), record))),
        };
        self.build(name, aggregate, emit).split(|record| record)
    }

    fn build<A, O, R, L>(self, name: &str, aggregate: A, emit: Emit<R, L>) -> Stream<'scope, O>
    where
        A: Aggregate<Input = V>,
        O: Record,
        R: Fn(&K, Window, A::Output) -> O + Copy + 'static,
        L: Fn(&K, V) -> Option<O> + Copy + 'static,
    {
        let Self { stream, windows, timestamp, lateness } = self;
        match (windows.0, timestamp) {
            (Kind::Aligned { size, slide, offset }, Some(timestamp)) => {
                let grid = Grid::new(size, slide, offset, lateness);
                let at = move |record: &V, _: i64| timestamp(record);
                build::<_, _, _, _, ByEvent, Panes<A::State, ByEvent>, _, _>(
                    stream, name, grid, aggregate, at, emit,
                )
            }
            (Kind::Aligned { size, slide, offset }, None) => {
                let grid = Grid::new(size, slide, offset, lateness);
                build::<_, _, _, _, ByProcessing, Panes<A::State, ByProcessing>, _, _>(
                    stream,
                    name,
                    grid,
                    aggregate,
                    |_, now| now,
                    emit,
                )
            }
            (Kind::Session { gap }, Some(timestamp)) => {
                let silence = Silence { gap, lateness };
                let at = move |record: &V, _: i64| timestamp(record);
                build::<_, _, _, _, ByEvent, Sessions<A::State, ByEvent>, _, _>(
                    stream, name, silence, aggregate, at, emit,
                )
            }
            (Kind::Session { gap }, None) => {
                let silence = Silence { gap, lateness };
                build::<_, _, _, _, ByProcessing, Sessions<A::State, ByProcessing>, _, _>(
                    stream,
                    name,
                    silence,
                    aggregate,
                    |_, now| now,
                    emit,
                )
            }
        }
    }
}

/// Late records are dropped.
fn late<K, V, O>(_key: &K, _record: V) -> Option<O> {
    None
}

/// What is emitted for a result, and for a late record.
#[derive(Clone, Copy)]
struct Emit<R, L> {
    result: R,
    late: L,
}

/// The windows of one key.
trait WindowState<S, D>: Scheduled {
    /// Where windows are.
    type Spec: Copy + 'static;

    /// Adds a record; see [`Panes::add`].
    fn add<A: Aggregate<State = S>>(
        &mut self,
        spec: &Self::Spec,
        aggregate: &A,
        time: i64,
        record: A::Input,
        passed: i64,
        result: impl FnMut(Window, A::Output),
    ) -> Result<(), A::Input>;

    /// The state is due, when `passed` has passed.
    fn fire<A: Aggregate<State = S>>(
        &mut self,
        spec: &Self::Spec,
        aggregate: &A,
        passed: i64,
        result: impl FnMut(Window, A::Output),
    );
}

macro_rules! window_state {
    ($state:ident, $spec:ident) => {
        impl<S: Record, D: Domain> WindowState<S, D> for $state<S, D> {
            type Spec = $spec;

            #[inline]
            fn add<A: Aggregate<State = S>>(
                &mut self,
                spec: &$spec,
                aggregate: &A,
                time: i64,
                record: A::Input,
                passed: i64,
                result: impl FnMut(Window, A::Output),
            ) -> Result<(), A::Input> {
                $state::add(self, spec, aggregate, time, record, passed, result)
            }

            #[inline]
            fn fire<A: Aggregate<State = S>>(
                &mut self,
                spec: &$spec,
                aggregate: &A,
                passed: i64,
                result: impl FnMut(Window, A::Output),
            ) {
                $state::fire(self, spec, aggregate, passed, result);
            }
        }
    };
}

window_state!(Panes, Grid);
window_state!(Sessions, Silence);

/// Builds the operator. `at` gives the time of a record, from the record and what the clock says.
fn build<'scope, K, V, A, O, D, W, R, L>(
    stream: KeyedStream<'scope, K, V>,
    name: &str,
    spec: W::Spec,
    aggregate: A,
    at: impl Fn(&V, i64) -> i64 + 'static,
    emit: Emit<R, L>,
) -> Stream<'scope, O>
where
    K: Key,
    V: Record,
    A: Aggregate<Input = V>,
    O: Record,
    D: Domain,
    W: WindowState<A::State, D>,
    R: Fn(&K, Window, A::Output) -> O + Copy + 'static,
    L: Fn(&K, V) -> Option<O> + Copy + 'static,
{
    let aggregate = std::rc::Rc::new(aggregate);
    let firing = std::rc::Rc::clone(&aggregate);
    stream.process_scheduled(
        name,
        Value::<W>::new("windows"),
        move |key, record, windows, context| {
            let (passed, time) = (D::passed(context), at(&record, context.now()));
            let result = |window, result| context.emit((emit.result)(key, window, result));
            if let Err(record) = windows.add(&spec, &*aggregate, time, record, passed, result)
                && let Some(late) = (emit.late)(key, record)
            {
                context.emit(late);
            }
        },
        move |key, timer, windows, context| {
            let passed = D::passed_at(timer, context);
            windows.fire(&spec, &*firing, passed, |window, result| {
                context.emit((emit.result)(key, window, result));
            });
        },
    )
}

/// What the records of all keys come to, in windows, without keys: added up in two steps, so that few records go to the one worker
/// that has the sums.
///
/// # Examples
/// ```
/// use std::time::Duration;
///
/// use highwater::prelude::*;
/// use highwater_operators::{AllWindows, Count, Window, Windows};
///
/// fn per_second<'a>(requests: Stream<'a, (i64, String)>) -> Stream<'a, (Window, u64)> {
///     requests
///         .window_all(Windows::tumbling(Duration::from_secs(1)), |(at, _)| *at)
///         .aggregate("per-second", Count::new())
/// }
/// ```
pub trait AllWindows<'scope, D: Record>: Sized {
    /// Windows of event time. `timestamp` gives a record's event time in milliseconds, and should be what the source was given.
    fn window_all(
        self,
        windows: Windows,
        timestamp: impl Fn(&D) -> i64 + 'static,
    ) -> AllWindowedStream<'scope, D>;
}

impl<'scope, D: Record> AllWindows<'scope, D> for Stream<'scope, D> {
    fn window_all(
        self,
        windows: Windows,
        timestamp: impl Fn(&D) -> i64 + 'static,
    ) -> AllWindowedStream<'scope, D> {
        AllWindowedStream { stream: self, windows, timestamp: Box::new(timestamp), lateness: 0 }
    }
}

/// A stream in windows, without keys.
pub struct AllWindowedStream<'scope, D: Record> {
    stream: Stream<'scope, D>,
    windows: Windows,
    timestamp: Timestamp<D>,
    lateness: i64,
}

impl<D: Record> fmt::Debug for AllWindowedStream<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AllWindowedStream").field("windows", &self.windows).finish_non_exhaustive()
    }
}

/// An aggregate whose records are the states of another.
struct Merging<A>(A);

impl<A: Aggregate> Aggregate for Merging<A> {
    type Input = (i64, A::State);
    type State = A::State;
    type Output = A::Output;

    fn create(&self, (_, first): Self::Input) -> A::State {
        first
    }

    fn add(&self, state: &mut A::State, (_, input): Self::Input) {
        self.0.merge(state, input);
    }

    fn merge(&self, state: &mut A::State, other: A::State) {
        self.0.merge(state, other);
    }

    fn result(&self, state: &A::State) -> A::Output {
        self.0.result(state)
    }
}

impl<'scope, D: Record> AllWindowedStream<'scope, D> {
    /// Keeps windows for so much longer than they last, and corrects their results when late records come.
    #[must_use]
    pub fn allowed_lateness(mut self, lateness: Duration) -> Self {
        self.lateness = if lateness.is_zero() { 0 } else { millis(lateness) };
        self
    }

    /// Emits each window that has a record, and what its records come to. Late records are dropped.
    ///
    /// `name` is unique in the job, and identifies the state in checkpoints.
    pub fn aggregate<A: Aggregate<Input = D> + Clone>(
        self,
        name: &str,
        aggregate: A,
    ) -> Stream<'scope, (Window, A::Output)> {
        let Self { stream, windows, timestamp, lateness } = self;
        let merging = Merging(aggregate.clone());
        let parts = match windows.0 {
            Kind::Aligned { size, slide, offset } => {
                let grid = Grid::new(size, slide, offset, 0);
                stream.map_batches(move |records, out| {
                    for record in records.drain(..) {
                        let pane = grid.pane_of(timestamp(&record));
                        match out.iter_mut().rfind(|(start, _)| *start == pane) {
                            Some((_, state)) => aggregate.add(state, record),
                            None => out.push((pane, aggregate.create(record))),
                        }
                    }
                })
            }
            Kind::Session { .. } => {
                stream.map(move |record| (timestamp(&record), aggregate.create(record)))
            }
        };
        let keyed = parts.into_keyed(|part| ((), part));
        let timestamp: Timestamp<(i64, A::State)> = Box::new(|(time, _)| *time);
        WindowedStream { stream: keyed, windows, timestamp: Some(timestamp), lateness }
            .aggregate(name, merging)
            .map(|((), window, result)| (window, result))
    }
}
