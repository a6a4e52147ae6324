//! Windows: what the records of a stretch of time come to.
//!
//! | windows                  | are                                                            | kept for a key                    |
//! |--------------------------|----------------------------------------------------------------|-----------------------------------|
//! | [`Windows::tumbling`]     | one behind the other, as long as each other                     | one state of the aggregate        |
//! | [`Windows::sliding`]      | as long as each other, each beginning a slide after the last     | one a pane, shared by all windows |
//! | [`Windows::session`]      | as long as records come, until a silence                        | one for each session              |
//! | [`Windows::calendar`]     | one behind the other, as a function says                        | one for each window               |
//! | [`Windows::global`]       | one for all time                                                | one                               |
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
//! What stands in the table for each key, until the watermark has passed the last window that needs it, and lateness is over. A pane
//! is as long as possible so that each window is some of them: a slide, if that divides the size. Records
//! themselves are not kept.

mod aligned;
mod join;
mod session;
mod time;
mod trigger;
mod triggered;
#[cfg(feature = "time-zones")]
mod zone;

use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use highwater::prelude::*;

pub use join::{WindowJoin, WindowJoined};
pub use time::Window;
pub use trigger::Trigger;
#[cfg(feature = "time-zones")]
pub use zone::NoSuchZone;

use crate::aggregate::Aggregate;
use crate::duration::some_milliseconds;
use aligned::{Grid, Panes};
use session::{Sessions, Silence};
use time::{ByEvent, ByProcessing, Domain, InTime, Moments};
use triggered::{Assigner, Calendar, Plan, Triggered};

/// Which windows there are.
#[derive(Clone)]
pub struct Windows(Kind);

impl fmt::Debug for Windows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Aligned { size, slide, offset } => {
                write!(f, "windows of {size} ms every {slide} ms, from {offset} ms on")
            }
            Kind::Session { gap } => write!(f, "sessions with a gap of {gap} ms"),
            Kind::Global => f.write_str("one window"),
            Kind::Calendar(_) => f.write_str("windows by a calendar"),
        }
    }
}

#[derive(Clone)]
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
    Global,
    Calendar(Calendar),
}

/// Whole milliseconds, rounded up, at least one, and so few that sums of some of these do not overflow.
fn millis(time: Duration) -> i64 {
    some_milliseconds(time, i64::MAX / 4)
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

    /// One window that holds everything and ends with the input. It is made for a [`Trigger`] that gives results before.
    #[must_use]
    pub fn global() -> Self {
        Self(Kind::Global)
    }

    /// Windows one behind the other, of any lengths: `window` gives the one that holds a time, and must depend on nothing but that
    /// time. Days and months where clocks are set twice a year are such windows; with the cargo
    /// feature `time-zones`, `Windows::days` makes them.
    #[must_use]
    pub fn calendar(window: impl Fn(i64) -> Window + Send + Sync + 'static) -> Self {
        Self(Kind::Calendar(Arc::new(window)))
    }

    /// Begins tumbling and sliding windows so much later: windows of a day with an offset of -2 hours begin at midnight where
    /// clocks are two hours ahead of UTC. Others do not change.
    ///
    /// Units: milliseconds.
    #[must_use]
    pub fn offset(self, offset: i64) -> Self {
        match self.0 {
            Kind::Aligned { size, slide, .. } => {
                let offset = offset.rem_euclid(slide);
                Self(Kind::Aligned { size, slide, offset })
            }
            other => Self(other),
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
///         .into_keyed(|(at, room, degrees)| (room, (degrees, at)))
///         .window(Windows::tumbling(Duration::from_millis(10)), |(_, at)| *at)
///         .aggregate("warmest", Max::new())
///         .map(|(room, window, (degrees, _))| (room, window.start, degrees))
///         .sink("out", collect.clone());
///     Ok(())
/// })?;
/// let mut warmest = seen.committed();
/// warmest.sort();
/// let warmest: Vec<(&str, i64, i32)> = warmest.iter().map(|(r, w, d)| (r.as_str(), *w, *d)).collect();
/// assert_eq!(warmest, [("attic", 0, 12), ("hall", 0, 21), ("hall", 10, 18)]);
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
        WindowedStream {
            stream: self,
            windows,
            timestamp: Some(Box::new(timestamp)),
            lateness: 0,
            trigger: Trigger::at_end(),
            alone: false,
        }
    }

    fn window_by_processing_time(self, windows: Windows) -> WindowedStream<'scope, K, V> {
        WindowedStream {
            stream: self,
            windows,
            timestamp: None,
            lateness: 0,
            trigger: Trigger::at_end(),
            alone: false,
        }
    }
}

/// A keyed stream in windows.
pub struct WindowedStream<'scope, K: Key, V: Record> {
    stream: KeyedStream<'scope, K, V>,
    windows: Windows,
    /// `None`: processing time.
    timestamp: Option<Timestamp<V>>,
    lateness: i64,
    trigger: Trigger,
    /// Whether windows may share nothing.
    alone: bool,
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

    /// Gives results at other times than the end of a window, too.
    #[must_use]
    pub fn trigger(mut self, trigger: Trigger) -> Self {
        self.trigger = trigger;
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
        self.aggregate_with(name, aggregate, |key: &K, window, result, out| {
            out.emit((key.clone(), window, result));
        })
    }

    /// As [`WindowedStream::aggregate`]; the second stream has the late records.
    pub fn aggregate_or_late<A: Aggregate<Input = V>>(
        self,
        name: &str,
        aggregate: A,
    ) -> ResultsAndLate<'scope, K, V, A::Output> {
        let emit = Emit {
            result: |key: &K, window, result, out: &mut ScheduledContext<'_, _>| {
                out.emit(Either::Left((key.clone(), window, result)));
            },
            late: |key: &K, record, out: &mut ScheduledContext<'_, _>| {
                out.emit(Either::Right((key.clone(), record)));
            },
        };
        self.build(name, aggregate, emit).split(|record| record)
    }

    /// Calls a function with each window that has a record and what its records come to. Late records are dropped.
    pub fn aggregate_with<A: Aggregate<Input = V>, O: Record>(
        self,
        name: &str,
        aggregate: A,
        function: impl FnMut(&K, Window, A::Output, &mut ScheduledContext<'_, O>) + 'static,
    ) -> Stream<'scope, O> {
        let function = RefCell::new(function);
        let emit = Emit {
            result: move |key: &K, window, result, out: &mut ScheduledContext<'_, O>| {
                (function.borrow_mut())(key, window, result, out);
            },
            late: |_: &K, _, _: &mut ScheduledContext<'_, O>| (),
        };
        self.build(name, aggregate, emit)
    }

    /// Calls a function with all records of each window: for what cannot be [aggregated](WindowedStream::aggregate) as records
    /// come. All of them are kept until the window is over. Late records are dropped.
    ///
    /// Records are in the order in which they came, pane by pane where windows slide.
    pub fn process<O: Record>(
        self,
        name: &str,
        function: impl FnMut(&K, Window, Vec<V>, &mut ScheduledContext<'_, O>) + 'static,
    ) -> Stream<'scope, O> {
        let all = Elements { evict: |_: &mut Vec<V>| (), element: PhantomData };
        self.aggregate_with(name, all, function)
    }

    /// As [`WindowedStream::process`], with an evictor: with each result, `evict` removes records that no later result is to see
    /// either, before the function sees what is left.
    ///
    /// # Examples
    /// Each record with the two before it:
    /// ```
    /// use std::num::NonZeroU64;
    ///
    /// use highwater::prelude::*;
    /// use highwater_operators::{KeyedWindows, Trigger, Windows};
    ///
    /// fn last_three<'a>(values: KeyedStream<'a, String, u64>) -> Stream<'a, Vec<u64>> {
    ///     values
    ///         .window_by_processing_time(Windows::global())
    ///         .trigger(Trigger::at_end().every_records(NonZeroU64::MIN))
    ///         .process_evicting(
    ///             "last-three",
    ///             |values| drop(values.drain(..values.len().saturating_sub(3))),
    ///             |_, _, values, out| out.emit(values),
    ///         )
    /// }
    /// ```
    pub fn process_evicting<O: Record>(
        mut self,
        name: &str,
        evict: impl Fn(&mut Vec<V>) + 'static,
        function: impl FnMut(&K, Window, Vec<V>, &mut ScheduledContext<'_, O>) + 'static,
    ) -> Stream<'scope, O> {
        // Panes that windows share cannot be evicted from.
        self.alone = true;
        self.aggregate_with(name, Elements { evict, element: PhantomData }, function)
    }

    fn build<A, O, R, L>(self, name: &str, aggregate: A, emit: Emit<R, L>) -> Stream<'scope, O>
    where
        A: Aggregate<Input = V>,
        O: Record,
        R: Fn(&K, Window, A::Output, &mut ScheduledContext<'_, O>) + 'static,
        L: Fn(&K, V, &mut ScheduledContext<'_, O>) + 'static,
    {
        let Self { stream, windows, timestamp, lateness, trigger, alone } = self;
        match timestamp {
            Some(timestamp) => {
                let at = move |record: &V, _: i64| timestamp(record);
                let logic = Logic { aggregate, at, emit, domain: PhantomData::<fn() -> ByEvent> };
                logic.build(stream, name, windows.0, trigger, lateness, alone)
            }
            None => {
                let at = |_: &V, now: i64| now;
                let domain = PhantomData::<fn() -> ByProcessing>;
                let logic = Logic { aggregate, at, emit, domain };
                logic.build(stream, name, windows.0, trigger, lateness, alone)
            }
        }
    }
}

/// All records.
struct Elements<V, E> {
    evict: E,
    element: PhantomData<fn() -> V>,
}

impl<V: Record, E: Fn(&mut Vec<V>) + 'static> Aggregate for Elements<V, E> {
    type Input = V;
    type State = Vec<V>;
    type Output = Vec<V>;

    fn create(&self, first: V) -> Vec<V> {
        vec![first]
    }

    fn add(&self, state: &mut Vec<V>, input: V) {
        state.push(input);
    }

    fn merge(&self, state: &mut Vec<V>, other: Vec<V>) {
        state.extend(other);
    }

    fn result(&self, state: &Vec<V>) -> Vec<V> {
        state.clone()
    }

    fn result_and_trim(&self, state: &mut Vec<V>) -> Vec<V> {
        (self.evict)(state);
        state.clone()
    }
}

/// What is done with a result, and with a late record.
struct Emit<R, L> {
    result: R,
    late: L,
}

/// The windows of one key.
trait WindowState: Record + Default {
    /// What records are added up in.
    type Held;
    /// Which windows there are.
    type Spec: 'static;

    /// When the windows want to be looked at, as soon as it has passed. `None`: there are none.
    fn due(&self) -> Option<i64>;

    /// When they want to be looked at by the clock, whatever time they count in.
    fn due_by_clock(&self) -> Option<i64> {
        None
    }

    /// Adds a record at `time`. Gives windows that are late, but not too late, to `result`. Returns the record if all its windows
    /// are too late, or if it is in none.
    fn add<A: Aggregate<State = Self::Held>>(
        &mut self,
        spec: &Self::Spec,
        aggregate: &A,
        time: i64,
        record: A::Input,
        at: Moments,
        result: impl FnMut(Window, A::Output),
    ) -> Result<(), A::Input>;

    /// The state is due.
    fn fire<A: Aggregate<State = Self::Held>>(
        &mut self,
        spec: &Self::Spec,
        aggregate: &A,
        at: Moments,
        result: impl FnMut(Window, A::Output),
    );
}

/// What the operator does. `at` gives the time of a record, from the record and what the clock says.
struct Logic<A, T, R, L, D> {
    aggregate: A,
    at: T,
    emit: Emit<R, L>,
    domain: PhantomData<fn() -> D>,
}

impl<A: Aggregate, T, R, L, D: Domain> Logic<A, T, R, L, D> {
    fn build<'scope, K: Key, O: Record>(
        self,
        stream: KeyedStream<'scope, K, A::Input>,
        name: &str,
        kind: Kind,
        trigger: Trigger,
        lateness: i64,
        alone: bool,
    ) -> Stream<'scope, O>
    where
        T: Fn(&A::Input, i64) -> i64 + 'static,
        R: Fn(&K, Window, A::Output, &mut ScheduledContext<'_, O>) + 'static,
        L: Fn(&K, A::Input, &mut ScheduledContext<'_, O>) + 'static,
    {
        let plain = trigger == Trigger::default() && !alone;
        let plan = |assigner| Plan { assigner, trigger, lateness };
        match kind {
            Kind::Aligned { size, slide, offset } => {
                let grid = Grid::new(size, slide, offset, lateness);
                if plain {
                    return self.run::<K, O, Panes<A::State>>(stream, name, grid);
                }
                self.run::<K, O, Triggered<_>>(stream, name, plan(Assigner::Aligned(grid)))
            }
            Kind::Session { gap } if plain => {
                let silence = Silence { gap, lateness };
                self.run::<K, O, Sessions<A::State>>(stream, name, silence)
            }
            Kind::Session { gap } => {
                self.run::<K, O, Triggered<_>>(stream, name, plan(Assigner::Session(gap)))
            }
            Kind::Global => self.run::<K, O, Triggered<_>>(stream, name, plan(Assigner::Global)),
            Kind::Calendar(calendar) => {
                let assigner = Assigner::Calendar(calendar);
                self.run::<K, O, Triggered<_>>(stream, name, plan(assigner))
            }
        }
    }

    fn run<'scope, K: Key, O: Record, W: WindowState<Held = A::State>>(
        self,
        stream: KeyedStream<'scope, K, A::Input>,
        name: &str,
        spec: W::Spec,
    ) -> Stream<'scope, O>
    where
        T: Fn(&A::Input, i64) -> i64 + 'static,
        R: Fn(&K, Window, A::Output, &mut ScheduledContext<'_, O>) + 'static,
        L: Fn(&K, A::Input, &mut ScheduledContext<'_, O>) + 'static,
    {
        let logic = Rc::new((self, spec));
        let firing = Rc::clone(&logic);
        stream.process_scheduled(
            name,
            Value::<InTime<W, D>>::new("windows"),
            move |key, record, windows, context| {
                let (logic, spec) = &*logic;
                let at = D::at(None, context);
                let time = (logic.at)(&record, at.now);
                let result = |window, result| (logic.emit.result)(key, window, result, context);
                if let Err(late) = windows.0.add(spec, &logic.aggregate, time, record, at, result) {
                    (logic.emit.late)(key, late, context);
                }
            },
            move |key, timer, windows, context| {
                let (logic, spec) = &*firing;
                let at = D::at(Some(timer), context);
                windows.0.fire(spec, &logic.aggregate, at, |window, result| {
                    (logic.emit.result)(key, window, result, context);
                });
            },
        )
    }
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
        let parts = match &windows.0 {
            Kind::Aligned { size, slide, offset } => {
                let grid = Grid::new(*size, *slide, *offset, 0);
                stream.map_batches(move |records, out| {
                    for record in records.drain(..) {
                        let (pane, _) = grid.pane_of(timestamp(&record));
                        match out.iter_mut().rfind(|(start, _)| *start == pane) {
                            Some((_, state)) => aggregate.add(state, record),
                            None => out.push((pane, aggregate.create(record))),
                        }
                    }
                })
            }
            _ => stream.map(move |record| (timestamp(&record), aggregate.create(record))),
        };
        let keyed = parts.into_keyed(|part| ((), part));
        let timestamp: Timestamp<(i64, A::State)> = Box::new(|(time, _)| *time);
        let mut windowed = keyed.window(windows, timestamp);
        windowed.lateness = lateness;
        windowed.aggregate(name, merging).map(|((), window, result)| (window, result))
    }
}
