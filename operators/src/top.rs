//! Top-N: the records of the highest rank, of each key or of all, as they come and go.
//!
//! # Guarantee
//! At every moment the [`Change`]s emitted so far come to the `n` records of the highest rank that have come so far, or all if
//! there are fewer: one that is among them is inserted, and retracted when another takes its place.
//!
//! Of records of one rank [`top`](Top::top) prefers those that came first, and [`top_of_changes`](TopOfChanges::top_of_changes)
//! the lesser record, so that what it comes to does not depend on the order of arrival at all.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use highwater::job::{Lifetime, MapKey};
use highwater::prelude::*;

use crate::change::Change;
use crate::lifetime::Living;

/// The records of the highest rank of each key.
///
/// # Examples
/// ```
/// use highwater::config::JobConfig;
/// use highwater::ids::Name;
/// use highwater::job::{JobHandle, execute};
/// use highwater::prelude::*;
/// use highwater_operators::{Top, net};
///
/// let collect = Collect::new();
/// let seen = collect.handle();
/// let config = JobConfig::new(Name::new("scores")?);
/// execute(config, &JobHandle::default(), move |job| {
///     let scores = vec![("a", 3u64), ("a", 9), ("b", 1), ("a", 5), ("a", 4)];
///     let scores = scores.into_iter().map(|(who, score)| (who.to_owned(), score)).collect();
///     job.source("scores", Collection::new(scores))
///         .into_keyed(|score| score)
///         .top("best-two", 2, |score| *score)
///         .sink("out", collect.clone());
///     Ok(())
/// })?;
/// let best: Vec<(String, u64)> = net(seen.committed()).into_keys().collect();
/// assert_eq!(best, [("a".to_owned(), 5), ("a".to_owned(), 9), ("b".to_owned(), 1)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Top<'scope, K: Key, V: Record>: Sized {
    /// Keeps the `n` values of each key whose `rank` is highest. `name` is unique in the job, and identifies the state in
    /// checkpoints; `rank` must depend on the value only.
    ///
    /// State: `n` values for each key, at the most, for ever, or with a [time to live](crate::lifetime): a value that comes
    /// among the first `n` is an update, of all of them.
    fn top<R: Ord>(
        self,
        name: &str,
        n: usize,
        rank: impl Fn(&V) -> R + 'static,
    ) -> Stream<'scope, Change<(K, V)>>;
}

impl<'scope, K: Key, V: Record, S: Living<'scope, K, V>> Top<'scope, K, V> for S {
    fn top<R: Ord>(
        self,
        name: &str,
        n: usize,
        rank: impl Fn(&V) -> R + 'static,
    ) -> Stream<'scope, Change<(K, V)>> {
        // The values of a key, by rank from the highest, in one rank as they came.
        let (stream, lifetime) = self.into_parts();
        let state = Value::<Vec<V>>::new("top").lifetime(lifetime);
        stream.process(name, state, move |key, value, top, out| {
            let its = rank(&value);
            let held = top.get();
            let full = held.is_some_and(|held| held.len() >= n);
            if n == 0
                || full && held.and_then(|held| held.last()).is_some_and(|last| rank(last) >= its)
            {
                return;
            }
            let top = top.or_insert_with(|| Vec::with_capacity(1));
            if full && let Some(leaves) = top.pop() {
                out.emit(Change::Retract((key.clone(), leaves)));
            }
            out.emit(Change::Insert((key.clone(), value.clone())));
            let place = top.partition_point(|other| rank(other) >= its);
            top.insert(place, value);
        })
    }
}

/// The records of the highest rank of all.
pub trait TopOfAll<'scope, D: Record>: Sized {
    /// Keeps the `n` records of the whole stream whose `rank` is highest. `name` is unique in the job, and identifies the
    /// state in checkpoints; `rank` must depend on the record only.
    ///
    /// One worker has the last word; the others send it only what may be among the first `n` as far as they know.
    ///
    /// State: `n` records.
    ///
    /// # Examples
    /// ```
    /// use highwater::config::JobConfig;
    /// use highwater::ids::Name;
    /// use highwater::job::{JobHandle, execute};
    /// use highwater::prelude::*;
    /// use highwater_operators::{TopOfAll, net};
    ///
    /// let collect = Collect::new();
    /// let seen = collect.handle();
    /// let config = JobConfig::new(Name::new("largest")?);
    /// execute(config, &JobHandle::default(), move |job| {
    ///     job.source("numbers", Collection::new((0..1000u64).collect()))
    ///         .top_of_all("largest", 3, |n| *n)
    ///         .sink("out", collect.clone());
    ///     Ok(())
    /// })?;
    /// assert_eq!(net(seen.committed()).into_keys().collect::<Vec<_>>(), [997, 998, 999]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn top_of_all<R: Ord + 'static>(
        self,
        name: &str,
        n: usize,
        rank: impl Fn(&D) -> R + Clone + 'static,
    ) -> Stream<'scope, Change<D>>;
}

impl<'scope, D: Record> TopOfAll<'scope, D> for Stream<'scope, D> {
    fn top_of_all<R: Ord + 'static>(
        self,
        name: &str,
        n: usize,
        rank: impl Fn(&D) -> R + Clone + 'static,
    ) -> Stream<'scope, Change<D>> {
        // The ranks of the best that this worker has sent on. What has `n` before it that are as good is not among the
        // first. No checkpoint needs to hold this: after a restore more is sent on than needed.
        let mut best: BinaryHeap<Reverse<R>> = BinaryHeap::new();
        let local = rank.clone();
        let candidates = self.filter(move |record| {
            let its = Reverse(local(record));
            if best.len() >= n {
                if best.peek().is_none_or(|least| least.0 >= its.0) {
                    return false;
                }
                best.pop();
            }
            best.push(its);
            true
        });
        let top = candidates.key_by(|_| ()).top(name, n, rank);
        top.map(|change| change.map(|((), record)| record))
    }
}

/// The records of the highest rank of each key, of records that may be retracted.
pub trait TopOfChanges<'scope, K: Key, V: MapKey>: Sized {
    /// As [`Top::top`], of the values that are inserted and not retracted: when one of the first `n` is retracted, the next
    /// takes its place. With a key that all records share, `()`, it is the top of all.
    ///
    /// State: all values that are not retracted, in order, since any of them may become one of the first; for ever, or with a
    /// [time to live](crate::lifetime): every change of them is an update, of all values of the key. The retraction of what is not
    /// there has no effect.
    ///
    /// The order has to be the same on every backend, and RocksDB sorts by bytes: derive `Ord` for ranks and values, and write
    /// [`Descending`] for [`std::cmp::Reverse`]. What is found to come in another order fails the job.
    ///
    /// # Examples
    /// The two words that are there most often:
    /// ```
    /// use highwater::config::JobConfig;
    /// use highwater::ids::Name;
    /// use highwater::job::{JobHandle, execute};
    /// use highwater::prelude::*;
    /// use highwater_operators::{Count, RunningAggregate, TopOfChanges, net};
    ///
    /// let collect = Collect::new();
    /// let seen = collect.handle();
    /// let config = JobConfig::new(Name::new("trends")?);
    /// execute(config, &JobHandle::default(), move |job| {
    ///     let words = "to be or not to be that is to".split(' ').map(str::to_owned).collect();
    ///     job.source("words", Collection::new(words))
    ///         .into_keyed(|word: String| (word, ()))
    ///         .aggregate_changes("counts", Count::new())
    ///         .into_keyed(|change| change.keyed(|counted| ((), counted)))
    ///         .top_of_changes("trends", 2, |(_, count)| *count)
    ///         .sink("out", collect.clone());
    ///     Ok(())
    /// })?;
    /// let trends: Vec<_> = net(seen.committed()).into_keys().map(|((), word)| word).collect();
    /// assert_eq!(trends, [("be".to_owned(), 2), ("to".to_owned(), 3)]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn top_of_changes<R: MapKey>(
        self,
        name: &str,
        n: usize,
        rank: impl Fn(&V) -> R + 'static,
    ) -> Stream<'scope, Change<(K, V)>>;
}

impl<'scope, K, V, S> TopOfChanges<'scope, K, V> for S
where
    K: Key,
    V: MapKey,
    S: Living<'scope, K, Change<V>>,
{
    fn top_of_changes<R: MapKey>(
        self,
        name: &str,
        n: usize,
        rank: impl Fn(&V) -> R + 'static,
    ) -> Stream<'scope, Change<(K, V)>> {
        // The values of a key in their order, each with how often it is there.
        let (stream, lifetime) = self.into_parts();
        let values = Map::<(Descending<R>, V), u64>::new("values").lifetime(lifetime);
        stream.process(name, values, move |key, change, values, out| {
            let insert = change.is_insert();
            let value = change.into_record();
            let its = (Descending(rank(&value)), value);
            let times = values.get(&its).copied().unwrap_or(0);
            if !insert && times == 0 {
                return;
            }
            // Before an insertion, after a retraction: who is last of the first `n`, and whether the record is before it.
            if !insert {
                set(values, its.clone(), times - 1);
            }
            let place = Place::of(values, &its, n);
            let record = |(_, value): &(Descending<R>, V)| (key.clone(), value.clone());
            if place.before < n {
                let moves = place.last.as_ref().map(record);
                let (first, second) = match insert {
                    true => (moves.map(Change::Retract), Some(Change::Insert(record(&its)))),
                    false => (Some(Change::Retract(record(&its))), moves.map(Change::Insert)),
                };
                first.into_iter().chain(second).for_each(|change| out.emit(change));
            }
            if insert {
                set(values, its, times + 1);
            }
        })
    }
}

fn set<K: Key, M: MapKey, T: Lifetime>(
    values: &mut MapState<'_, K, M, u64, T>,
    value: M,
    times: u64,
) {
    if times == 0 {
        values.remove(&value);
    } else {
        values.insert(value, times);
    }
}

/// Otherwise results would be wrong, and nobody would notice.
const OTHER_ORDER: &str = "the state `values` does not come in the order of its keys: on this backend that is the order of a derived `Ord`. \
    If the rank or the records have an `Ord` of their own or `std::cmp::Reverse` in them, derive it, or use `Descending`";

/// Where a value belongs among others.
struct Place<M> {
    /// How many are before it, counted up to `n`.
    before: usize,
    /// The value at place `n`, if there are as many: it is there only without the other.
    last: Option<M>,
}

impl<M: MapKey> Place<M> {
    fn of<K: Key, T: Lifetime>(
        values: &mut MapState<'_, K, M, u64, T>,
        value: &M,
        n: usize,
    ) -> Self {
        let mut before = 0;
        let mut counted = 0;
        let mut last = None;
        let mut previous = None;
        for (other, times) in values.iter() {
            assert!(previous.is_none_or(|previous| previous < other), "{OTHER_ORDER}");
            let room = n - counted;
            let here = usize::try_from(*times).unwrap_or(usize::MAX).min(room);
            counted += here;
            // Equal ones are before it: they are the same.
            if *other <= *value {
                before += here;
            }
            if counted == n {
                last = Some(other.into_owned());
                break;
            }
            previous = Some(other);
        }
        Self { before, last }
    }
}
