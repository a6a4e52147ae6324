//! Running aggregates of records that may be retracted.
//!
//! # Guarantee
//! At every moment the changes emitted so far come to one result for each key that has records, that of exactly the
//! records that it has. A key whose last record is retracted has no result. Nothing is emitted if the result stays.
//!
//! A retraction comes behind the insertion that it takes back; see [`change`](crate::change). What it would take back and
//! was never there, it does not find: it has no effect, or one on the count only.

use std::collections::BTreeMap;

use highwater::prelude::*;
use serde::{Deserialize, Serialize};

use crate::aggregate::{Aggregate, Average, Averaged, Count, Counted, Max, Min, Sum, Summand};
use crate::change::Change;
use crate::lifetime::Living;

/// An aggregate that records can be taken back from.
///
/// Its functions must depend on their arguments only.
pub trait Retract: Aggregate {
    /// What is kept for a key. To take the greatest record back one must know all others, so it may be more than
    /// [`Aggregate::State`].
    type Kept: Record;

    /// What is kept after the first record of a key.
    fn start(&self, first: Self::Input) -> Self::Kept;

    /// Adds a further record.
    fn insert(&self, kept: &mut Self::Kept, input: Self::Input);

    /// Takes a record back.
    fn retract(&self, kept: &mut Self::Kept, input: Self::Input);

    /// What the records come to; `None` if there are none.
    fn current(&self, kept: &Self::Kept) -> Option<Self::Output>;
}

/// Aggregates the records of each key that are inserted and not retracted.
///
/// # Examples
/// The greatest total of all, when totals go up and down:
/// ```
/// use highwater::config::JobConfig;
/// use highwater::ids::Name;
/// use highwater::job::{JobHandle, execute};
/// use highwater::prelude::*;
/// use highwater_operators::{Max, RetractingAggregate, RunningAggregate, Sum, net};
///
/// let collect = Collect::new();
/// let seen = collect.handle();
/// let config = JobConfig::new(Name::new("greatest")?);
/// execute(config, &JobHandle::default(), move |job| {
///     let moves = vec![("a".to_owned(), 50i64), ("b".to_owned(), 30), ("a".to_owned(), -40)];
///     job.source("moves", Collection::new(moves))
///         .into_keyed(|account| account)
///         .aggregate_changes("balances", Sum::new())
///         .into_keyed(|change| change.keyed(|(_, balance)| ((), balance)))
///         .aggregate_of_changes("greatest", Max::new())
///         .sink("out", collect.clone());
///     Ok(())
/// })?;
/// assert_eq!(net(seen.committed()).into_iter().collect::<Vec<_>>(), [(((), 30), 1)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait RetractingAggregate<'scope, K: Key, A: Retract>: Sized {
    /// Emits [`Change`]s that come, at every moment, to the current result of every key once. `name` is unique in the job,
    /// and identifies the state in checkpoints.
    ///
    /// State: one entry for each key that has records, for ever, or with a [time to live](crate::lifetime): every insertion
    /// is an update, and so is every retraction of what is kept.
    fn aggregate_of_changes(
        self,
        name: &str,
        aggregate: A,
    ) -> Stream<'scope, Change<(K, A::Output)>>
    where
        A::Output: PartialEq;
}

impl<'scope, K, A, S> RetractingAggregate<'scope, K, A> for S
where
    K: Key,
    A: Retract,
    S: Living<'scope, K, Change<A::Input>>,
{
    fn aggregate_of_changes(
        self,
        name: &str,
        aggregate: A,
    ) -> Stream<'scope, Change<(K, A::Output)>>
    where
        A::Output: PartialEq,
    {
        let (stream, lifetime) = self.into_parts();
        let state = Value::<A::Kept>::new("aggregate").lifetime(lifetime);
        stream.process(name, state, move |key, change, kept, out| {
            let (old, new) = match (kept.get_mut(), change) {
                (None, Change::Retract(_)) => return,
                (None, Change::Insert(first)) => {
                    let first = aggregate.start(first);
                    let new = aggregate.current(&first);
                    kept.set(first);
                    (None, new)
                }
                (Some(kept), change) => {
                    let old = aggregate.current(kept);
                    match change {
                        Change::Insert(input) => aggregate.insert(kept, input),
                        Change::Retract(input) => aggregate.retract(kept, input),
                    }
                    (old, aggregate.current(kept))
                }
            };
            if new.is_none() {
                kept.take();
            }
            if old == new {
                return;
            }
            if let Some(old) = old {
                out.emit(Change::Retract((key.clone(), old)));
            }
            if let Some(new) = new {
                out.emit(Change::Insert((key.clone(), new)));
            }
        })
    }
}

impl<T: Record> Retract for Count<T> {
    type Kept = Counted;

    fn start(&self, first: T) -> Counted {
        self.create(first)
    }

    fn insert(&self, kept: &mut Counted, input: T) {
        self.add(kept, input);
    }

    fn retract(&self, kept: &mut Counted, _input: T) {
        kept.0 = kept.0.saturating_sub(1);
    }

    fn current(&self, kept: &Counted) -> Option<u64> {
        Some(kept.0).filter(|count| *count > 0)
    }
}

/// What [`Sum`] keeps of records that may be retracted.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct NetSum<T> {
    total: T,
    count: u64,
}

/// Of floating-point numbers the sum is rounded at every change: what was inserted and retracted may leave a trace in the last
/// digits, until the key has no record left.
impl<T: Summand> Retract for Sum<T> {
    type Kept = NetSum<T::Total>;

    fn start(&self, first: T) -> Self::Kept {
        NetSum { total: first.total(), count: 1 }
    }

    fn insert(&self, kept: &mut Self::Kept, input: T) {
        input.add(&mut kept.total);
        kept.count = kept.count.saturating_add(1);
    }

    fn retract(&self, kept: &mut Self::Kept, input: T) {
        input.take(&mut kept.total);
        kept.count = kept.count.saturating_sub(1);
    }

    fn current(&self, kept: &Self::Kept) -> Option<T::Total> {
        (kept.count > 0).then(|| kept.total.clone())
    }
}

/// Of floating-point numbers the sum is rounded as that of [`Sum`] is.
impl<T: Summand> Retract for Average<T> {
    type Kept = Averaged<T::Total>;

    fn start(&self, first: T) -> Self::Kept {
        self.create(first)
    }

    fn insert(&self, kept: &mut Self::Kept, input: T) {
        self.add(kept, input);
    }

    fn retract(&self, kept: &mut Self::Kept, input: T) {
        input.take(&mut kept.total);
        kept.count = kept.count.saturating_sub(1);
    }

    fn current(&self, kept: &Self::Kept) -> Option<f64> {
        (kept.count > 0).then(|| self.result(kept))
    }
}

/// What [`Min`] and [`Max`] keep of records that may be retracted: all of them, each with how often it is there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Multiset<T: Ord>(BTreeMap<T, u64>);

impl<T: Ord> Multiset<T> {
    fn of(first: T) -> Self {
        Self(BTreeMap::from([(first, 1)]))
    }

    fn insert(&mut self, record: T) {
        *self.0.entry(record).or_default() += 1;
    }

    fn remove(&mut self, record: &T) {
        let Some(count) = self.0.get_mut(record) else { return };
        *count -= 1;
        if *count == 0 {
            self.0.remove(record);
        }
    }
}

macro_rules! extremes {
    ($($name:ident: $first:ident;)+) => {$(
        impl<T: Record + Ord> Retract for $name<T> {
            type Kept = Multiset<T>;

            fn start(&self, first: T) -> Multiset<T> {
                Multiset::of(first)
            }

            fn insert(&self, kept: &mut Multiset<T>, input: T) {
                kept.insert(input);
            }

            fn retract(&self, kept: &mut Multiset<T>, input: T) {
                kept.remove(&input);
            }

            fn current(&self, kept: &Multiset<T>) -> Option<T> {
                kept.0.$first().map(|(record, _)| record.clone())
            }
        }
    )+};
}

extremes! {
    Min: first_key_value;
    Max: last_key_value;
}
