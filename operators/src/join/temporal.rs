//! Temporal join: each record meets the version of the other side that was valid at its event time.
//!
//! # Guarantee
//! A right record is a version of its key, valid from its event time on until the next one's. Of versions with one
//! time, the last to arrive counts. A left record that is not late meets the version valid at its event time, among all
//! that came before the watermark had passed that time; it is emitted once, when the watermark passes it. Results of one
//! key leave in the order of event time, those of one time in the order in which the left records came.
//!
//! A left record is late if its time is at or before the watermark, which is the lesser of both sides'. It is emitted at
//! once, with the version that was valid at its time if that is still kept, and otherwise as one that meets nothing; it
//! never meets a wrong version. With `inner_and_late` and `left_and_late` late left records are not joined, but returned
//! as a second stream. A late version counts for all left records that are not yet emitted; those that are do not change.
//!
//! # State
//! Of a key: left records until the watermark passes them; the newest version up to the watermark, for ever; and the versions
//! after it. Older versions are dropped when the key is next seen, and by a timer.

use std::rc::Rc;

use highwater::prelude::*;
use serde::{Deserialize, Serialize};

use super::aside;
use crate::sort::Waiting;

/// Joins a keyed stream with the versions of another.
///
/// # Examples
/// Payments, in the rate of their time:
/// ```
/// use highwater::config::JobConfig;
/// use highwater::ids::Name;
/// use highwater::job::{JobHandle, execute};
/// use highwater::prelude::*;
/// use highwater_operators::TemporalJoin;
///
/// let collect = Collect::new();
/// let seen = collect.handle();
/// let config = JobConfig::new(Name::new("rates")?);
/// execute(config, &JobHandle::default(), move |job| {
///     let time = || EventTime::monotonic(|(_, (at, _)): &(String, (i64, u64))| *at);
///     let at = |at: i64, n: u64| ("EUR".to_owned(), (at, n));
///     let rates = Collection::new(vec![at(0, 110), at(100, 120)]);
///     let rates = job.source_with("rates", rates, time()).into_keyed(|rate| rate);
///     let payments = Collection::new(vec![at(50, 1), at(99, 2), at(100, 3)]);
///     let payments = job.source_with("payments", payments, time()).into_keyed(|payment| payment);
///     payments
///         .temporal_join(rates, (|(at, _)| *at, |(at, _)| *at))
///         .inner("paid", |_, (_, amount), (_, rate)| amount * rate)
///         .sink("out", collect.clone());
///     Ok(())
/// })?;
/// assert_eq!(seen.committed(), [110, 220, 360]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait TemporalJoin<'scope, K: Key, L: Record>: Sized {
    /// Puts the versions `right` beside this stream. Which join it is, the methods of [`TemporalJoined`] say.
    ///
    /// `times` gives the event times of left and of right records, in milliseconds, which should be what their sources
    /// were given.
    fn temporal_join<R: Record, TL, TR>(
        self,
        right: KeyedStream<'scope, K, R>,
        times: (TL, TR),
    ) -> TemporalJoined<'scope, K, L, R, TL, TR>
    where
        TL: Fn(&L) -> i64 + 'static,
        TR: Fn(&R) -> i64 + 'static;
}

impl<'scope, K: Key, L: Record> TemporalJoin<'scope, K, L> for KeyedStream<'scope, K, L> {
    fn temporal_join<R: Record, TL, TR>(
        self,
        right: KeyedStream<'scope, K, R>,
        times: (TL, TR),
    ) -> TemporalJoined<'scope, K, L, R, TL, TR>
    where
        TL: Fn(&L) -> i64 + 'static,
        TR: Fn(&R) -> i64 + 'static,
    {
        TemporalJoined { sides: self.connect(right), times }
    }
}

/// A keyed stream that is about to be joined with versions; made by [`TemporalJoin::temporal_join`].
///
/// The name that each of the methods takes is unique in the job, and identifies the state in checkpoints.
#[derive(Debug)]
pub struct TemporalJoined<'scope, K: Key, L: Record, R: Record, TL, TR> {
    sides: Connected<'scope, K, L, R>,
    times: (TL, TR),
}

/// Results, and late left records.
type WithLate<'scope, K, L, O> = (Stream<'scope, O>, Stream<'scope, (K, L)>);

impl<'scope, K: Key, L: Record, R: Record, TL, TR> TemporalJoined<'scope, K, L, R, TL, TR>
where
    TL: Fn(&L) -> i64 + 'static,
    TR: Fn(&R) -> i64 + 'static,
{
    /// Emits every left record that meets a version.
    pub fn inner<O: Record>(
        self,
        name: &str,
        pair: impl Fn(&K, &L, &R) -> O + 'static,
    ) -> Stream<'scope, O> {
        self.build(name, None, move |key, left, right| right.map(|right| pair(key, left, right)))
    }

    /// Emits every left record, with the version that it meets if there is one.
    pub fn left<O: Record>(
        self,
        name: &str,
        pair: impl Fn(&K, &L, Option<&R>) -> O + 'static,
    ) -> Stream<'scope, O> {
        self.build(name, None, move |key, left, right| Some(pair(key, left, right)))
    }

    /// As [`TemporalJoined::inner`], of the left records that are not late; the second stream is of those that are.
    pub fn inner_and_late<O: Record>(
        self,
        name: &str,
        pair: impl Fn(&K, &L, &R) -> O + 'static,
    ) -> WithLate<'scope, K, L, O> {
        self.build(name, Some(aside), move |key, left, right| {
            right.map(|right| Either::Left(pair(key, left, right)))
        })
        .split(|record| record)
    }

    /// As [`TemporalJoined::left`], of the left records that are not late; the second stream is of those that are.
    pub fn left_and_late<O: Record>(
        self,
        name: &str,
        pair: impl Fn(&K, &L, Option<&R>) -> O + 'static,
    ) -> WithLate<'scope, K, L, O> {
        self.build(name, Some(aside), move |key, left, right| {
            Some(Either::Left(pair(key, left, right)))
        })
        .split(|record| record)
    }

    fn build<O: Record>(
        self,
        name: &str,
        late: Option<fn(&K, L) -> O>,
        pair: impl Fn(&K, &L, Option<&R>) -> Option<O> + 'static,
    ) -> Stream<'scope, O> {
        let (left_time, right_time) = self.times;
        let pair = Rc::new(pair);
        let pair_at_timer = Rc::clone(&pair);
        let states = (Value::<Waiting<L>>::new("left"), Value::<Versions<R>>::new("right"));
        self.sides.process_with_timers(
            name,
            states,
            move |key, left, (lefts, rights), context| {
                let time = left_time(&left);
                if time > context.watermark() {
                    let waiting = lefts.or_default();
                    // There is a timer at the first.
                    if time < waiting.first || waiting.is_vacant() {
                        context.register_event_timer(time);
                    }
                    waiting.add(time, left);
                } else if let Some(late) = late {
                    context.emit(late(key, left));
                } else {
                    let valid = rights.get().and_then(|rights| rights.at(time));
                    pair(key, &left, valid).into_iter().for_each(|out| context.emit(out));
                }
            },
            move |_, right, (lefts, rights), context| {
                let first = lefts.get().map_or(i64::MAX, |lefts| lefts.first);
                let time = right_time(&right);
                let until = context.watermark().min(first);
                let rights = rights.or_insert_with(Versions::new);
                rights.insert(time, right);
                if let Some(tidy_at) = rights.tidy(until) {
                    context.register_event_timer(tidy_at);
                }
            },
            move |key, timer, (lefts, rights), context| {
                let watermark = context.watermark();
                if lefts.get().is_some_and(|lefts| lefts.first <= watermark)
                    && let Some(waiting) = lefts.get_mut()
                {
                    let valid = rights.get();
                    for (time, left) in waiting.take_until(watermark) {
                        let valid = valid.and_then(|rights| rights.at(time));
                        let result = pair_at_timer(key, &left, valid);
                        result.into_iter().for_each(|out| context.emit(out));
                    }
                    match waiting.event_due() {
                        Some(timer) => context.register_event_timer(timer),
                        None => drop(lefts.take()),
                    }
                }
                if rights.get().is_some_and(|rights| rights.tidy_at == Some(timer.time))
                    && let Some(rights) = rights.get_mut()
                {
                    rights.tidy_at = None;
                    if let Some(tidy_at) = rights.tidy(watermark) {
                        context.register_event_timer(tidy_at);
                    }
                }
            },
        )
    }
}

/// The versions of a key. Never empty.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Versions<R> {
    /// By time, of each at most one.
    versions: Vec<(i64, R)>,
    /// When there is a timer that drops what is old. There is one if there is more than one version.
    tidy_at: Option<i64>,
}

impl<R> Versions<R> {
    fn new() -> Self {
        Self { versions: Vec::with_capacity(1), tidy_at: None }
    }

    fn insert(&mut self, time: i64, version: R) {
        match self.versions.binary_search_by_key(&time, |(time, _)| *time) {
            Ok(place) => self.versions[place].1 = version,
            Err(place) => self.versions.insert(place, (time, version)),
        }
    }

    /// The version that is valid at `time`.
    fn at(&self, time: i64) -> Option<&R> {
        let after = self.versions.partition_point(|(from, _)| *from <= time);
        Some(&self.versions[after.checked_sub(1)?].1)
    }

    /// Drops the versions that are valid only until before `time`. Returns when a timer is to do so again, unless there
    /// is one already.
    fn tidy(&mut self, time: i64) -> Option<i64> {
        let after = self.versions.partition_point(|(from, _)| *from <= time);
        self.versions.drain(..after.saturating_sub(1));
        if self.versions.len() < 2 || self.tidy_at.is_some() {
            return None;
        }
        self.tidy_at = self.versions.last().map(|(from, _)| *from);
        self.tidy_at
    }
}
