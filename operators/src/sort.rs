//! Sorting by event time.
//!
//! # Guarantee
//! Of each key, the records that are not late leave in the order of their event times, those of one time in the order in
//! which they came; each leaves when the watermark reaches its time, and at the end of input at the latest. Between keys
//! there is no order.
//!
//! A record is late if its time is at or before the watermark when it comes. Its place is gone; it leaves at once, so it is
//! the only kind that comes behind one of a later time. None is lost.
//!
//! # State
//! The records that the watermark has not reached, and one timer for each key that has such.

use highwater::prelude::*;
use serde::{Deserialize, Serialize};

/// Brings the records of each key into the order of event time.
///
/// # Examples
/// ```
/// use std::time::Duration;
///
/// use highwater::config::JobConfig;
/// use highwater::ids::Name;
/// use highwater::job::{JobHandle, execute};
/// use highwater::prelude::*;
/// use highwater_operators::SortByTime;
///
/// let collect = Collect::new();
/// let seen = collect.handle();
/// let config = JobConfig::new(Name::new("sorted")?);
/// execute(config, &JobHandle::default(), move |job| {
///     let strategy = WatermarkStrategy::bounded(Duration::from_millis(10));
///     let time = EventTime::new(strategy, |(at, _): &(i64, char)| *at);
///     job.source_with("letters", Collection::new(vec![(5, 'b'), (12, 'c'), (3, 'a')]), time)
///         .key_by(|_| ())
///         .sort_by_time("sorted", |(at, _)| *at)
///         .sink("out", collect.clone());
///     Ok(())
/// })?;
/// let letters: Vec<char> = seen.committed().into_iter().map(|((), (_, letter))| letter).collect();
/// assert_eq!(letters, ['a', 'b', 'c']);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait SortByTime<'scope, K: Key, V: Record>: Sized {
    /// Emits the records of each key in the order of event time. `time` gives it in milliseconds, and should be what the
    /// source was given. `name` is unique in the job, and identifies the state in checkpoints.
    fn sort_by_time(self, name: &str, time: impl Fn(&V) -> i64 + 'static)
    -> Stream<'scope, (K, V)>;
}

impl<'scope, K: Key, V: Record> SortByTime<'scope, K, V> for KeyedStream<'scope, K, V> {
    fn sort_by_time(
        self,
        name: &str,
        time: impl Fn(&V) -> i64 + 'static,
    ) -> Stream<'scope, (K, V)> {
        self.process_with_timers(
            name,
            Value::<Waiting<V>>::new("waiting"),
            move |key, value, waiting, context| {
                let time = time(&value);
                if time <= context.watermark() {
                    return context.emit((key.clone(), value));
                }
                if let Some(timer) = waiting.or_insert_with(Waiting::new).add(time, value) {
                    context.register_event_timer(timer);
                }
            },
            |key, _, state, context| {
                let watermark = context.watermark();
                // It may be the timer of a time in whose place an earlier one has come.
                if state.get().is_none_or(|waiting| waiting.first > watermark) {
                    return;
                }
                let Some(waiting) = state.get_mut() else { return };
                waiting.take_until(watermark).for_each(|(_, v)| context.emit((key.clone(), v)));
                match waiting.timer() {
                    Some(timer) => context.register_event_timer(timer),
                    None => drop(state.take()),
                }
            },
        )
    }
}

/// The records of a key that wait for the watermark.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Waiting<V> {
    /// As they came.
    records: Vec<(i64, V)>,
    /// The least of their times. There is a timer at it.
    pub(crate) first: i64,
}

impl<V> Waiting<V> {
    pub(crate) fn new() -> Self {
        Self { records: Vec::with_capacity(1), first: i64::MAX }
    }

    /// Adds a record. Returns the time of the timer that it needs, if it needs one.
    pub(crate) fn add(&mut self, time: i64, record: V) -> Option<i64> {
        let needs = self.records.is_empty() || time < self.first;
        self.first = self.first.min(time);
        self.records.push((time, record));
        needs.then_some(time)
    }

    /// Takes what waits no longer, by time and then as it came.
    pub(crate) fn take_until(&mut self, watermark: i64) -> impl Iterator<Item = (i64, V)> {
        self.records.sort_by_key(|(time, _)| *time);
        let over = self.records.partition_point(|(time, _)| *time <= watermark);
        self.first = self.records.get(over).map_or(i64::MAX, |(time, _)| *time);
        self.records.drain(..over)
    }

    /// The time of the timer that what is left needs.
    pub(crate) fn timer(&self) -> Option<i64> {
        (!self.records.is_empty()).then_some(self.first)
    }
}
