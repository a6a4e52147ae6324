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
//! The records that the watermark has not reached.

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
        self.process_scheduled(
            name,
            Value::<Waiting<V>>::new("waiting"),
            move |key, value, waiting, context| match time(&value) {
                late if late <= context.watermark() => context.emit((key.clone(), value)),
                time => waiting.add(time, value),
            },
            |key, _, waiting, context| {
                let over = waiting.take_until(context.watermark());
                over.for_each(|(_, value)| context.emit((key.clone(), value)));
            },
        )
    }
}

/// The records of a key that wait for the watermark.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Waiting<V> {
    /// As they came.
    records: Vec<(i64, V)>,
    /// The least of their times; `i64::MAX` without any.
    pub(crate) first: i64,
}

impl<V> Default for Waiting<V> {
    fn default() -> Self {
        Self { records: Vec::new(), first: i64::MAX }
    }
}

impl<V: Record> Scheduled for Waiting<V> {
    fn event_due(&self) -> Option<i64> {
        (!self.is_vacant()).then_some(self.first)
    }

    fn is_vacant(&self) -> bool {
        self.records.is_empty()
    }
}

impl<V> Waiting<V> {
    pub(crate) fn add(&mut self, time: i64, record: V) {
        if self.records.is_empty() {
            // Most keys have one.
            self.records.reserve_exact(1);
        }
        self.first = self.first.min(time);
        self.records.push((time, record));
    }

    /// Takes what waits no longer, by time and then as it came.
    pub(crate) fn take_until(&mut self, watermark: i64) -> impl Iterator<Item = (i64, V)> {
        self.records.sort_by_key(|(time, _)| *time);
        let over = self.records.partition_point(|(time, _)| *time <= watermark);
        self.first = self.records.get(over).map_or(i64::MAX, |(time, _)| *time);
        self.records.drain(..over)
    }
}
