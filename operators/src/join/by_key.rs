//! Joins by key that are right at every moment: each record meets all of its key that came before it on the other side.
//!
//! # Guarantee
//! At every moment the changes emitted so far come to the join of the records that have come so far; at the end, to the
//! join of both inputs, whatever the order in which they came. An inner join of records that are never retracted
//! only ever adds, so it emits records. The others emit [`Change`]s: an outer join first emits a record without a
//! partner, and takes that back when the first partner comes.
//!
//! The functions that make results must depend on their arguments only, since a retraction is made by calling them
//! again.
//!
//! # State
//! Each side is kept apart, a list for each key. Without a time to live it grows for ever. With one, what one side has of a
//! key goes when no record of that key has come on that side for so long; what was emitted of it stays, and is not
//! retracted any more, and later records of the other side meet nothing. (That a record without a partner meets its first
//! counts as an update as well.)
//!
//! No watermark is needed, and none is waited for.

use std::rc::Rc;

use highwater::job::{Forever, Lifetime, Ttl};
use highwater::prelude::*;
use serde::{Deserialize, Serialize};

use crate::change::Change;

/// Joins two keyed streams by key.
///
/// # Examples
/// ```
/// use highwater::config::JobConfig;
/// use highwater::ids::Name;
/// use highwater::job::{JobHandle, execute};
/// use highwater::prelude::*;
/// use highwater_operators::{JoinByKey, net};
///
/// let (bought, all) = (Collect::new(), Collect::new());
/// let (seen_bought, seen_all) = (bought.handle(), all.handle());
/// let config = JobConfig::new(Name::new("orders")?);
/// execute(config, &JobHandle::default(), move |job| {
///     let customers = vec![(1u64, "Ann".to_owned()), (2, "Bob".to_owned())];
///     let customers = job.source("customers", Collection::new(customers)).into_keyed(|c| c);
///     let orders = vec![(1u64, 100u64), (1, 250), (3, 20)];
///     let orders = job.source("orders", Collection::new(orders)).into_keyed(|order| order);
///     orders
///         .clone()
///         .join(customers.clone())
///         .inner("bought", |_, amount, name| (name.clone(), *amount))
///         .sink("bought-out", bought.clone());
///     customers
///         .join(orders)
///         .left("all", |_, name, amount| (name.clone(), amount.copied()))
///         .sink("all-out", all.clone());
///     Ok(())
/// })?;
/// let mut bought = seen_bought.committed();
/// bought.sort();
/// assert_eq!(bought, [("Ann".to_owned(), 100), ("Ann".to_owned(), 250)]);
/// let all: Vec<_> = net(seen_all.committed()).into_keys().collect();
/// let ann = |amount| ("Ann".to_owned(), Some(amount));
/// assert_eq!(all, [ann(100), ann(250), ("Bob".to_owned(), None)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait JoinByKey<'scope, K: Key, L: Record>: Sized {
    /// Puts `right` beside this stream. Which join it is, the methods of [`Join`] say.
    fn join<R: Record>(self, right: KeyedStream<'scope, K, R>) -> Join<'scope, K, L, R>;
}

impl<'scope, K: Key, L: Record> JoinByKey<'scope, K, L> for KeyedStream<'scope, K, L> {
    fn join<R: Record>(self, right: KeyedStream<'scope, K, R>) -> Join<'scope, K, L, R> {
        Join { left: self, right, lifetime: Forever }
    }
}

/// Joins two keyed streams of changes by key.
///
/// # Examples
/// The customer of each running total, when both may change:
/// ```
/// use highwater::config::JobConfig;
/// use highwater::ids::Name;
/// use highwater::job::{JobHandle, execute};
/// use highwater::prelude::*;
/// use highwater_operators::{Change, JoinChanges, RunningAggregate, Sum, net};
///
/// let collect = Collect::new();
/// let seen = collect.handle();
/// let config = JobConfig::new(Name::new("totals")?);
/// execute(config, &JobHandle::default(), move |job| {
///     let names = vec![
///         Change::Insert((1u64, "Ann".to_owned())),
///         Change::Retract((1, "Ann".to_owned())),
///         Change::Insert((1, "Anne".to_owned())),
///     ];
///     let names = job.source("names", Collection::new(names));
///     let names = names.into_keyed(|change| change.keyed(|name| name));
///     job.source("orders", Collection::new(vec![(1u64, 100u64), (1, 250)]))
///         .into_keyed(|order| order)
///         .aggregate_changes("totals", Sum::new())
///         .into_keyed(|change| change.keyed(|total| total))
///         .join_of_changes(names)
///         .inner("named", |_, total, name| (name.clone(), *total))
///         .sink("out", collect.clone());
///     Ok(())
/// })?;
/// let named = net(seen.committed());
/// assert_eq!(named.into_iter().collect::<Vec<_>>(), [(("Anne".to_owned(), 350), 1)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait JoinChanges<'scope, K: Key, L: Record + PartialEq>: Sized {
    /// Puts `right` beside this stream. Which join it is, the methods of [`JoinOfChanges`] say.
    ///
    /// A retraction takes one equal record away. If there is none, because it has expired or was never there, it
    /// has no effect.
    fn join_of_changes<R: Record + PartialEq>(
        self,
        right: KeyedStream<'scope, K, Change<R>>,
    ) -> JoinOfChanges<'scope, K, L, R>;
}

impl<'scope, K: Key, L: Record + PartialEq> JoinChanges<'scope, K, L>
    for KeyedStream<'scope, K, Change<L>>
{
    fn join_of_changes<R: Record + PartialEq>(
        self,
        right: KeyedStream<'scope, K, Change<R>>,
    ) -> JoinOfChanges<'scope, K, L, R> {
        JoinOfChanges { left: self, right, lifetime: Forever, equal: (L::eq, R::eq) }
    }
}

/// Two keyed streams that are about to be joined; made by [`JoinByKey::join`].
///
/// The name that each of the methods takes is unique in the job, and identifies the state in checkpoints.
#[derive(Clone, Debug)]
pub struct Join<'scope, K: Key, L: Record, R: Record, T = Forever> {
    left: KeyedStream<'scope, K, L>,
    right: KeyedStream<'scope, K, R>,
    lifetime: T,
}

/// Two keyed streams of changes that are about to be joined; made by [`JoinChanges::join_of_changes`].
///
/// The name that each of the methods takes is unique in the job, and identifies the state in checkpoints.
#[derive(Clone, Debug)]
pub struct JoinOfChanges<'scope, K: Key, L: Record, R: Record, T = Forever> {
    left: KeyedStream<'scope, K, Change<L>>,
    right: KeyedStream<'scope, K, Change<R>>,
    lifetime: T,
    equal: (Equal<L>, Equal<R>),
}

/// Whether a record is the one that is retracted.
type Equal<T> = fn(&T, &T) -> bool;

impl<'scope, K: Key, L: Record, R: Record> Join<'scope, K, L, R> {
    /// Forgets what a side has of a key when no record of it has come on that side for so long, in processing time.
    #[must_use]
    pub fn ttl(self, ttl: impl Into<Ttl>) -> Join<'scope, K, L, R, Ttl> {
        Join { left: self.left, right: self.right, lifetime: ttl.into() }
    }
}

impl<'scope, K: Key, L: Record, R: Record> JoinOfChanges<'scope, K, L, R> {
    /// As [`Join::ttl`].
    #[must_use]
    pub fn ttl(self, ttl: impl Into<Ttl>) -> JoinOfChanges<'scope, K, L, R, Ttl> {
        let Self { left, right, lifetime: Forever, equal } = self;
        JoinOfChanges { left, right, lifetime: ttl.into(), equal }
    }
}

impl<'scope, K: Key, L: Record, R: Record, T: Lifetime + Clone> Join<'scope, K, L, R, T> {
    /// Emits every pair of records of a key, when its second one comes.
    pub fn inner<O: Record>(
        self,
        name: &str,
        pair: impl Fn(&K, &L, &R) -> O + 'static,
    ) -> Stream<'scope, O> {
        let lifetime = || self.lifetime.clone();
        let states = (
            List::<L>::new("left").lifetime(lifetime()),
            List::<R>::new("right").lifetime(lifetime()),
        );
        let pair = Rc::new(pair);
        let pair_at_right = Rc::clone(&pair);
        self.left.connect(self.right).process(
            name,
            states,
            move |key, left, (lefts, rights), out| {
                rights.iter().for_each(|right| out.emit(pair(key, &left, right)));
                lefts.append(left);
            },
            move |key, right, (lefts, rights), out| {
                lefts.iter().for_each(|left| out.emit(pair_at_right(key, left, &right)));
                rights.append(right);
            },
        )
    }

    /// Emits every pair of records of a key, and every left record for as long as it has no partner.
    pub fn left<O: Record>(
        self,
        name: &str,
        pair: impl Fn(&K, &L, Option<&R>) -> O + 'static,
    ) -> Stream<'scope, Change<O>> {
        self.of_changes().left(name, pair)
    }

    /// Emits every pair of records of a key, and every right record for as long as it has no partner.
    pub fn right<O: Record>(
        self,
        name: &str,
        pair: impl Fn(&K, Option<&L>, &R) -> O + 'static,
    ) -> Stream<'scope, Change<O>> {
        self.of_changes().right(name, pair)
    }

    /// Emits every pair of records of a key, and every record of either side for as long as it has no partner.
    pub fn full<O: Record>(
        self,
        name: &str,
        pair: impl Fn(&K, Option<&L>, Option<&R>) -> O + 'static,
    ) -> Stream<'scope, Change<O>> {
        self.of_changes().full(name, pair)
    }

    fn of_changes(self) -> JoinOfChanges<'scope, K, L, R, T> {
        JoinOfChanges {
            left: self.left.map_values(|_, record| Change::Insert(record)),
            right: self.right.map_values(|_, record| Change::Insert(record)),
            lifetime: self.lifetime,
            // What is never retracted is never compared.
            equal: (|_, _| false, |_, _| false),
        }
    }
}

impl<'scope, K: Key, L: Record, R: Record, T: Lifetime + Clone> JoinOfChanges<'scope, K, L, R, T> {
    /// The pairs of records of a key.
    pub fn inner<O: Record>(
        self,
        name: &str,
        pair: impl Fn(&K, &L, &R) -> O + 'static,
    ) -> Stream<'scope, Change<O>> {
        self.outer(name, INNER, move |key, left, right| pair(key, left?, right?).into())
    }

    /// The pairs of records of a key, and every left record that has no partner.
    pub fn left<O: Record>(
        self,
        name: &str,
        pair: impl Fn(&K, &L, Option<&R>) -> O + 'static,
    ) -> Stream<'scope, Change<O>> {
        self.outer(name, LEFT, move |key, left, right| pair(key, left?, right).into())
    }

    /// The pairs of records of a key, and every right record that has no partner.
    pub fn right<O: Record>(
        self,
        name: &str,
        pair: impl Fn(&K, Option<&L>, &R) -> O + 'static,
    ) -> Stream<'scope, Change<O>> {
        self.outer(name, RIGHT, move |key, left, right| pair(key, left, right?).into())
    }

    /// The pairs of records of a key, and every record of either side that has no partner.
    pub fn full<O: Record>(
        self,
        name: &str,
        pair: impl Fn(&K, Option<&L>, Option<&R>) -> O + 'static,
    ) -> Stream<'scope, Change<O>> {
        self.outer(name, FULL, move |key, left, right| Some(pair(key, left, right)))
    }

    /// `pair` makes a result, of one side if the other is `None`; it is asked for those without a partner of `lonely` sides only.
    fn outer<O: Record>(
        self,
        name: &str,
        lonely: Lonely,
        pair: impl Fn(&K, Option<&L>, Option<&R>) -> Option<O> + 'static,
    ) -> Stream<'scope, Change<O>> {
        let states = (
            Value::<Half<L>>::new("left").lifetime(self.lifetime.clone()),
            Value::<Half<R>>::new("right").lifetime(self.lifetime),
        );
        let pair = Rc::new(pair);
        let pair_at_right = Rc::clone(&pair);
        let (left_equal, right_equal) = self.equal;
        self.left.connect(self.right).process(
            name,
            states,
            move |key, change, (lefts, rights), out| {
                let pair = |left: Option<&L>, right: Option<&R>| pair(key, left, right);
                let mut step = Step { lonely: (lonely.left, lonely.right), pair, out };
                step.apply(change, lefts, rights, left_equal);
            },
            move |key, change, (lefts, rights), out| {
                let pair = |right: Option<&R>, left: Option<&L>| pair_at_right(key, left, right);
                let mut step = Step { lonely: (lonely.right, lonely.left), pair, out };
                step.apply(change, rights, lefts, right_equal);
            },
        )
    }
}

/// Of which sides a record without a partner is emitted.
#[derive(Clone, Copy)]
struct Lonely {
    left: bool,
    right: bool,
}

const INNER: Lonely = Lonely { left: false, right: false };
const LEFT: Lonely = Lonely { left: true, right: false };
const RIGHT: Lonely = Lonely { left: false, right: true };
const FULL: Lonely = Lonely { left: true, right: true };

/// What one side has of a key. Never empty.
///
/// SUBTLE: that the other side has no record does not tell which of ours were emitted without a partner. With a time to
/// live: (1) *a* comes and meets *x*; (2) *x* expires; (3) *b* comes and is emitted without a partner; (4) *y* comes.
/// Now *b* is to be retracted, and *a* is not. Hence `lonely`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Half<T> {
    records: Vec<T>,
    /// The records from here on were emitted without a partner, if those of this side are.
    lonely: usize,
}

/// One change of a record, seen from its side.
struct Step<'a, 'b, O, F> {
    /// Whether records without a partner are emitted, of its side and of the other.
    lonely: (bool, bool),
    pair: F,
    out: &'a mut Context<'b, Change<O>>,
}

impl<O: Record, F> Step<'_, '_, O, F> {
    fn emit(&mut self, change: Change<Option<O>>) {
        match change {
            Change::Insert(Some(record)) => self.out.emit(Change::Insert(record)),
            Change::Retract(Some(record)) => self.out.emit(Change::Retract(record)),
            Change::Insert(None) | Change::Retract(None) => {}
        }
    }

    fn apply<K: Key, M: Record, N: Record, T: Lifetime>(
        &mut self,
        change: Change<M>,
        mine: &mut ValueState<'_, K, Half<M>, T>,
        theirs: &mut ValueState<'_, K, Half<N>, T>,
        equal: Equal<M>,
    ) where
        F: Fn(Option<&M>, Option<&N>) -> Option<O>,
    {
        match change {
            Change::Insert(record) => self.insert(mine, theirs, record),
            Change::Retract(record) => self.retract(mine, theirs, &record, equal),
        }
    }

    fn insert<K: Key, M: Record, N: Record, T: Lifetime>(
        &mut self,
        mine: &mut ValueState<'_, K, Half<M>, T>,
        theirs: &mut ValueState<'_, K, Half<N>, T>,
        record: M,
    ) where
        F: Fn(Option<&M>, Option<&N>) -> Option<O>,
    {
        let mut met = 0;
        let mut lonely = false;
        if let Some(theirs) = theirs.get() {
            met = theirs.records.len();
            lonely = self.lonely.1 && theirs.lonely < met;
            for (index, other) in theirs.records.iter().enumerate() {
                if lonely && index >= theirs.lonely {
                    self.emit(Change::Retract((self.pair)(None, Some(other))));
                }
                self.emit(Change::Insert((self.pair)(Some(&record), Some(other))));
            }
        }
        if lonely && let Some(theirs) = theirs.get_mut() {
            theirs.lonely = met;
        }
        if met == 0 && self.lonely.0 {
            self.emit(Change::Insert((self.pair)(Some(&record), None)));
        }
        let mine = mine.or_insert_with(|| Half { records: Vec::with_capacity(1), lonely: 0 });
        mine.records.push(record);
        if met > 0 {
            mine.lonely = mine.records.len();
        }
    }

    fn retract<K: Key, M: Record, N: Record, T: Lifetime>(
        &mut self,
        mine: &mut ValueState<'_, K, Half<M>, T>,
        theirs: &mut ValueState<'_, K, Half<N>, T>,
        record: &M,
        equal: Equal<M>,
    ) where
        F: Fn(Option<&M>, Option<&N>) -> Option<O>,
    {
        let place = mine.get().and_then(|half| half.records.iter().rposition(|m| equal(m, record)));
        // What is not there was forgotten, and is no update.
        let Some((place, half)) = place.zip(mine.get_mut()) else { return };
        // Equal records may differ in what is emitted of them; it is ours that was.
        let record = half.records.remove(place);
        let lonely = place >= half.lonely;
        half.lonely -= usize::from(!lonely);
        let last = half.records.is_empty();
        if last {
            mine.take();
        }
        let mut left_alone = false;
        match theirs.get() {
            None if lonely && self.lonely.0 => {
                self.emit(Change::Retract((self.pair)(Some(&record), None)));
            }
            None => {}
            Some(theirs) => {
                left_alone = last && self.lonely.1;
                for other in &theirs.records {
                    self.emit(Change::Retract((self.pair)(Some(&record), Some(other))));
                    if left_alone {
                        self.emit(Change::Insert((self.pair)(None, Some(other))));
                    }
                }
            }
        }
        if left_alone && let Some(theirs) = theirs.get_mut() {
            theirs.lonely = 0;
        }
    }
}
