//! Interval join: pairs of records of a key that are near in event time.
//!
//! # Guarantee
//! A left and a right record of a key are a pair if `left.time + lower <= right.time <= left.time + upper`. Every pair of
//! which neither record was late when it came is emitted once, as soon as its second record comes.
//!
//! A record is late if its time is at or before the watermark, which is the lesser of both sides'. A late record
//! still meets what is kept of the other side, and is kept itself as far as that is of use; what could have met it and is
//! gone is missed. Where that is not good enough, `inner_and_late` and `left_and_late` pair no late record: they return
//! those as a second stream.
//!
//! # State
//! What is kept of a key: left records until the watermark has reached their time + `upper`, right ones until it has
//! reached their time - `lower`. Timers remove them, one at a time for each key and side, so a key that never comes again
//! leaves nothing. An inner join may keep records for up to twice as long, since one timer removes many.

use std::ops::{Range, RangeInclusive};
use std::rc::Rc;

use highwater::prelude::*;
use serde::{Deserialize, Serialize};

use super::aside;

/// Joins two keyed streams by key and nearness in event time.
///
/// # Examples
/// Clicks, and the views of the five seconds before:
/// ```
/// use highwater::config::JobConfig;
/// use highwater::ids::Name;
/// use highwater::job::{JobHandle, execute};
/// use highwater::prelude::*;
/// use highwater_operators::IntervalJoin;
///
/// let collect = Collect::new();
/// let seen = collect.handle();
/// let config = JobConfig::new(Name::new("clicks")?);
/// execute(config, &JobHandle::default(), move |job| {
///     let time = || EventTime::monotonic(|(_, at): &(u64, i64)| *at);
///     let views = Collection::new(vec![(7u64, 1_000i64), (8, 1_500), (7, 9_000)]);
///     let views = job.source_with("views", views, time()).into_keyed(|view| view);
///     let clicks = Collection::new(vec![(7u64, 4_000i64), (8, 7_000)]);
///     let clicks = job.source_with("clicks", clicks, time()).into_keyed(|click| click);
///     clicks
///         .interval_join(views, (|click| *click, |view| *view), -5_000..=0)
///         .inner("clicked", |user, click, view| (*user, *view, *click))
///         .sink("out", collect.clone());
///     Ok(())
/// })?;
/// assert_eq!(seen.committed(), [(7, 1_000, 4_000)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait IntervalJoin<'scope, K: Key, L: Record>: Sized {
    /// Puts `right` beside this stream. Which join it is, the methods of [`IntervalJoined`] say.
    ///
    /// `times` gives the event times of left and of right records, in milliseconds, which should be what their sources
    /// were given. `near` is `lower..=upper`: how far a right record may be from the left one, in milliseconds; negative if
    /// it is earlier. An empty range pairs nothing.
    fn interval_join<R: Record, TL, TR>(
        self,
        right: KeyedStream<'scope, K, R>,
        times: (TL, TR),
        near: RangeInclusive<i64>,
    ) -> IntervalJoined<'scope, K, L, R, TL, TR>
    where
        TL: Fn(&L) -> i64 + 'static,
        TR: Fn(&R) -> i64 + 'static;
}

impl<'scope, K: Key, L: Record> IntervalJoin<'scope, K, L> for KeyedStream<'scope, K, L> {
    fn interval_join<R: Record, TL, TR>(
        self,
        right: KeyedStream<'scope, K, R>,
        times: (TL, TR),
        near: RangeInclusive<i64>,
    ) -> IntervalJoined<'scope, K, L, R, TL, TR>
    where
        TL: Fn(&L) -> i64 + 'static,
        TR: Fn(&R) -> i64 + 'static,
    {
        IntervalJoined { sides: self.connect(right), times, near }
    }
}

/// Two keyed streams that are about to be joined; made by [`IntervalJoin::interval_join`].
///
/// The name that each of the methods takes is unique in the job, and identifies the state in checkpoints.
#[derive(Debug)]
pub struct IntervalJoined<'scope, K: Key, L: Record, R: Record, TL, TR> {
    sides: Connected<'scope, K, L, R>,
    times: (TL, TR),
    near: RangeInclusive<i64>,
}

/// What a late record comes out as, if it is not to be paired.
type Aside<K, L, R, O> = fn(&K, Either<L, R>) -> O;

/// Results, and late records.
type WithLate<'scope, K, L, R, O> = (Stream<'scope, O>, Stream<'scope, (K, Either<L, R>)>);

impl<'scope, K: Key, L: Record, R: Record, TL, TR> IntervalJoined<'scope, K, L, R, TL, TR>
where
    TL: Fn(&L) -> i64 + 'static,
    TR: Fn(&R) -> i64 + 'static,
{
    /// Emits every pair.
    pub fn inner<O: Record>(
        self,
        name: &str,
        pair: impl Fn(&K, &L, &R) -> O + 'static,
    ) -> Stream<'scope, O> {
        self.build(name, false, None, move |key, left, right| pair(key, left?, right?).into())
    }

    /// Emits every pair, and once every left record that has no partner, when the watermark says that none will come.
    pub fn left<O: Record>(
        self,
        name: &str,
        pair: impl Fn(&K, &L, Option<&R>) -> O + 'static,
    ) -> Stream<'scope, O> {
        self.build(name, true, None, move |key, left, right| pair(key, left?, right).into())
    }

    /// As [`IntervalJoined::inner`], of the records that are not late; the second stream is of the late ones.
    pub fn inner_and_late<O: Record>(
        self,
        name: &str,
        pair: impl Fn(&K, &L, &R) -> O + 'static,
    ) -> WithLate<'scope, K, L, R, O> {
        self.build(name, false, Some(aside), move |key, left, right| {
            Some(Either::Left(pair(key, left?, right?)))
        })
        .split(|record| record)
    }

    /// As [`IntervalJoined::left`], of the records that are not late; the second stream is of the late ones.
    pub fn left_and_late<O: Record>(
        self,
        name: &str,
        pair: impl Fn(&K, &L, Option<&R>) -> O + 'static,
    ) -> WithLate<'scope, K, L, R, O> {
        self.build(name, true, Some(aside), move |key, left, right| {
            Some(Either::Left(pair(key, left?, right)))
        })
        .split(|record| record)
    }

    fn build<O: Record>(
        self,
        name: &str,
        lonely: bool,
        late: Option<Aside<K, L, R, O>>,
        pair: impl Fn(&K, Option<&L>, Option<&R>) -> Option<O> + 'static,
    ) -> Stream<'scope, O> {
        let (lower, upper) = self.near.into_inner();
        let (left_time, right_time) = self.times;
        // What a record may meet is as far from it on the other side, the other way round.
        let to_right = Reach { from: lower, to: upper, lonely: (lonely, false) };
        let (from, to) = (upper.saturating_neg(), lower.saturating_neg());
        let to_left = Reach { from, to, lonely: (false, lonely) };
        let states = (Value::<Kept<L>>::new("left"), Value::<Kept<R>>::new("right"));
        let pair = Rc::new(pair);
        let (pair_at_right, pair_at_timer) = (Rc::clone(&pair), Rc::clone(&pair));
        self.sides.process_with_timers(
            name,
            states,
            move |key, left, (lefts, rights), context| {
                let time = left_time(&left);
                match late.filter(|_| time <= context.watermark()) {
                    Some(late) => context.emit(late(key, Either::Left(left))),
                    None => {
                        let pair = |left: &L, right: Option<&R>| pair(key, Some(left), right);
                        to_right.meet(lefts, rights, Timed::new(time, left), pair, context);
                    }
                }
            },
            move |key, right, (lefts, rights), context| {
                let time = right_time(&right);
                match late.filter(|_| time <= context.watermark()) {
                    Some(late) => context.emit(late(key, Either::Right(right))),
                    None => {
                        let pair =
                            |right: &R, left: Option<&L>| pair_at_right(key, left, Some(right));
                        to_left.meet(rights, lefts, Timed::new(time, right), pair, context);
                    }
                }
            },
            move |key, timer, (lefts, rights), context| {
                let alone = |left: &L, right: Option<&R>| pair_at_timer(key, Some(left), right);
                to_right.clean(timer, lefts, alone, context);
                to_left.clean(timer, rights, |_, _: Option<&L>| None, context);
            },
        )
    }
}

/// What is kept of one side of a key.
///
/// SUBTLE: there is a timer at `clean_at` as long as this is in the state, so it is never removed but by that timer.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept<T> {
    /// By time; at one time in the order in which they came.
    records: Vec<Timed<T>>,
    clean_at: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Timed<T> {
    time: i64,
    /// Whether it has had a partner; said of sides whose lonely records are emitted.
    met: bool,
    record: T,
}

impl<T> Timed<T> {
    fn new(time: i64, record: T) -> Self {
        Self { time, met: false, record }
    }
}

/// How far in event time the partners of a record are from it: `from..=to`.
#[derive(Clone, Copy)]
struct Reach {
    from: i64,
    to: i64,
    /// Whether records are emitted that had no partner, of this side and of the other.
    lonely: (bool, bool),
}

impl Reach {
    /// When no partner can come any more that is not late.
    fn over(self, time: i64) -> i64 {
        time.saturating_add(self.to)
    }

    /// Pairs a record with what is kept of the other side, and keeps it for what comes.
    fn meet<K: Key, M: Record, N: Record, O: Record>(
        self,
        mine: &mut ValueState<'_, K, Kept<M>>,
        theirs: &mut ValueState<'_, K, Kept<N>>,
        mut record: Timed<M>,
        pair: impl Fn(&M, Option<&N>) -> Option<O>,
        context: &mut TimerContext<'_, K, O>,
    ) {
        let near = record.time.saturating_add(self.from)..=self.over(record.time);
        let mut unmarked = false;
        if let Some(theirs) = theirs.get() {
            for other in theirs.near(&near) {
                record.met = true;
                unmarked |= !other.met;
                emit(pair(&record.record, Some(&other.record)), context);
            }
        }
        // Access to be changed makes the next checkpoint write it: only if something changes.
        if unmarked
            && self.lonely.1
            && let Some(theirs) = theirs.get_mut()
        {
            let met = theirs.places(&near);
            theirs.records[met].iter_mut().for_each(|other| other.met = true);
        }
        if self.over(record.time) > context.watermark() && !near.is_empty() {
            self.keep(mine, record, pair, context);
        } else if self.lonely.0 && !record.met {
            emit(pair(&record.record, None), context);
        }
    }

    fn keep<K: Key, M: Record, N: Record, O: Record>(
        self,
        mine: &mut ValueState<'_, K, Kept<M>>,
        record: Timed<M>,
        pair: impl Fn(&M, Option<&N>) -> Option<O>,
        context: &mut TimerContext<'_, K, O>,
    ) {
        let over = self.over(record.time);
        // A record that waits to be emitted is waited for by the timer.
        let waits = self.lonely.0 && !record.met;
        let mine =
            mine.or_insert_with(|| Kept { records: Vec::with_capacity(1), clean_at: i64::MIN });
        self.remove(mine, pair, context);
        let place = mine.records.partition_point(|other| other.time <= record.time);
        mine.records.insert(place, record);
        if mine.clean_at == i64::MIN || waits && over < mine.clean_at {
            mine.clean_at = over;
            context.register_event_timer(over);
        }
    }

    /// Removes what meets nothing any more.
    fn remove<K: Key, M: Record, N: Record, O: Record>(
        self,
        mine: &mut Kept<M>,
        pair: impl Fn(&M, Option<&N>) -> Option<O>,
        context: &mut TimerContext<'_, K, O>,
    ) {
        let watermark = context.watermark();
        let gone = mine.records.partition_point(|record| self.over(record.time) <= watermark);
        for record in mine.records.drain(..gone) {
            if self.lonely.0 && !record.met {
                emit(pair(&record.record, None), context);
            }
        }
    }

    /// What the timer of a side does.
    fn clean<K: Key, M: Record, N: Record, O: Record>(
        self,
        timer: Timer,
        mine: &mut ValueState<'_, K, Kept<M>>,
        pair: impl Fn(&M, Option<&N>) -> Option<O>,
        context: &mut TimerContext<'_, K, O>,
    ) {
        // It may be the other side's, or one in whose place an earlier one has come.
        if mine.get().is_none_or(|mine| mine.clean_at != timer.time) {
            return;
        }
        let Some(kept) = mine.get_mut() else { return };
        self.remove(kept, pair, context);
        let waits = kept.records.iter().find(|record| self.lonely.0 && !record.met);
        match waits.or(kept.records.last()) {
            Some(record) => {
                kept.clean_at = self.over(record.time);
                context.register_event_timer(kept.clean_at);
            }
            None => drop(mine.take()),
        }
    }
}

impl<T> Kept<T> {
    fn places(&self, near: &RangeInclusive<i64>) -> Range<usize> {
        let first = self.records.partition_point(|record| record.time < *near.start());
        let count = self.records[first..].partition_point(|record| record.time <= *near.end());
        first..first + count
    }

    fn near(&self, near: &RangeInclusive<i64>) -> &[Timed<T>] {
        &self.records[self.places(near)]
    }
}

fn emit<K: Key, O: Record>(result: Option<O>, context: &mut TimerContext<'_, K, O>) {
    if let Some(result) = result {
        context.emit(result);
    }
}
