//! A time to live for what an operator keeps of a key.
//!
//! # Guarantee
//! What is kept of a key goes when it was not updated for so long, in processing time: it is as if no record of that key had
//! ever come. What was emitted of it stays; it is not retracted, then or later. So the next record of the key begins anew, and
//! where changes came to one result for a key, there may be one more for each time that it was forgotten: a reader that
//! keeps the newest for each key does not mind. A retraction of what has been forgotten has no effect.
//!
//! Which of the records are updates each operator says. With [`Ttl::update_on_read`] all are.
//!
//! # State
//! What has expired is removed little by little as records come, and at a restore; until then it takes room, but counts for
//! nothing. A job may go on from a checkpoint with another time to live, with one for the first time, and without.

use highwater::job::{Forever, Lifetime, Ttl};
use highwater::prelude::*;

/// Gives what the operator behind a keyed stream keeps a time to live.
///
/// # Examples
/// The sales of each article, until it was not sold for a month:
/// ```
/// use std::time::Duration;
///
/// use highwater::config::JobConfig;
/// use highwater::ids::Name;
/// use highwater::job::{JobHandle, execute};
/// use highwater::prelude::*;
/// use highwater_operators::{RunningAggregate, Sum, TimeToLive, net};
///
/// let collect = Collect::new();
/// let seen = collect.handle();
/// let config = JobConfig::new(Name::new("sales")?);
/// execute(config, &JobHandle::default(), move |job| {
///     job.source("sales", Collection::new(vec![(7u64, 3u64), (8, 1), (7, 2)]))
///         .into_keyed(|sale| sale)
///         .ttl(Duration::from_hours(30 * 24))
///         .aggregate_changes("totals", Sum::new())
///         .sink("out", collect.clone());
///     Ok(())
/// })?;
/// assert_eq!(net(seen.committed()).into_keys().collect::<Vec<_>>(), [(7, 5), (8, 1)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait TimeToLive<'scope, K: Key, V: Record>: Sized {
    /// Says for how long the operator that follows keeps what it has of a key. For
    /// [`aggregate`](crate::RunningAggregate::aggregate), [`aggregate_changes`](crate::RunningAggregate::aggregate_changes),
    /// [`aggregate_of_changes`](crate::RetractingAggregate::aggregate_of_changes), [`top`](crate::Top::top) and
    /// [`top_of_changes`](crate::TopOfChanges::top_of_changes).
    fn ttl(self, ttl: impl Into<Ttl>) -> Expiring<'scope, K, V>;
}

impl<'scope, K: Key, V: Record> TimeToLive<'scope, K, V> for KeyedStream<'scope, K, V> {
    fn ttl(self, ttl: impl Into<Ttl>) -> Expiring<'scope, K, V> {
        Expiring { stream: self, ttl: ttl.into() }
    }
}

/// A keyed stream whose operator forgets; made by [`TimeToLive::ttl`].
#[derive(Clone, Debug)]
#[must_use = "a time to live is of the operator that follows"]
pub struct Expiring<'scope, K: Key, V: Record> {
    stream: KeyedStream<'scope, K, V>,
    ttl: Ttl,
}

/// A keyed stream with what the operator behind it lives for: [`KeyedStream`], or one behind [`TimeToLive::ttl`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no keyed stream of such values",
    note = "this operator needs `key_by` or `into_keyed` before"
)]
pub trait Living<'scope, K: Key, V: Record>: sealed::Sealed {
    /// How long its state lives.
    type Lifetime: Lifetime + Clone;

    /// The stream, and the time.
    fn into_parts(self) -> (KeyedStream<'scope, K, V>, Self::Lifetime);
}

mod sealed {
    /// Keeps the set of streams ours.
    pub trait Sealed {}
    impl<K: super::Key, V: super::Record> Sealed for super::KeyedStream<'_, K, V> {}
    impl<K: super::Key, V: super::Record> Sealed for super::Expiring<'_, K, V> {}
}

impl<'scope, K: Key, V: Record> Living<'scope, K, V> for KeyedStream<'scope, K, V> {
    type Lifetime = Forever;

    fn into_parts(self) -> (Self, Forever) {
        (self, Forever)
    }
}

impl<'scope, K: Key, V: Record> Living<'scope, K, V> for Expiring<'scope, K, V> {
    type Lifetime = Ttl;

    fn into_parts(self) -> (KeyedStream<'scope, K, V>, Ttl) {
        (self.stream, self.ttl)
    }
}
