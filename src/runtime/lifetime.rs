//! How long state lives: for ever, or for a time after it was last written.
//!
//! State that lives for ever is stored as it is: nothing is added to it, and no record pays for what others need. State
//! with a time to live is stored with the time of its last update, and so it is written: a checkpoint can be restored
//! with a time to live, with another one, and without.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::state::{BackendTable, Key, StateValue, SweepPosition, ValueTable};

/// How long state lives: [`Forever`] or [`Ttl`]. Not to be implemented outside of the crate.
pub trait Lifetime: sealed::Sealed + 'static {
    /// What is stored for a value.
    type Stored<V: StateValue>: StateValue;
    /// What tells whether a value is alive.
    type Clock: Copy + 'static;
    /// Whether anything ever expires.
    const EXPIRES: bool;

    /// The clock of this moment.
    fn clock(&self) -> Self::Clock;
    /// Sets the clock. Units: milliseconds since 1970.
    fn set_now(&mut self, now: i64);
    /// What was last updated then or earlier has expired. `None` if nothing does. Units: milliseconds since 1970.
    fn expired_until(clock: Self::Clock) -> Option<i64>;
    /// Where the next sweep begins. `None` if there is none.
    fn sweep_position(&mut self) -> Option<&mut SweepPosition>;
    /// What a value is stored as that is written now.
    fn store<V: StateValue>(clock: Self::Clock, value: V) -> Self::Stored<V>;
    /// What a restored value is stored as; `None` if it has expired. `written`: when it was last updated, if that is known.
    fn restore<V: StateValue>(
        clock: Self::Clock,
        value: V,
        written: Option<i64>,
    ) -> Option<Self::Stored<V>>;
    /// The value.
    fn value<V: StateValue>(stored: &Self::Stored<V>) -> &V;
    /// The value, to be changed.
    fn value_mut<V: StateValue>(stored: &mut Self::Stored<V>) -> &mut V;
    /// The value by itself.
    fn into_value<V: StateValue>(stored: Self::Stored<V>) -> V;
    /// Whether it has expired.
    fn expired<V: StateValue>(clock: Self::Clock, stored: &Self::Stored<V>) -> bool;
    /// It was written.
    fn written<V: StateValue>(clock: Self::Clock, stored: &mut Self::Stored<V>);
    /// It was read.
    fn read<V: StateValue>(clock: Self::Clock, stored: &mut Self::Stored<V>);
    /// Adds an element at the end of a list, which has not expired.
    fn append<K: Key, T: StateValue>(
        clock: Self::Clock,
        table: &mut BackendTable<K, Self::Stored<Vec<T>>>,
        hash: u64,
        key: &K,
        element: T,
    ) {
        let mut empty = || Self::store(clock, Vec::with_capacity(1));
        let stored = table.get_or_insert_with(hash, key, &mut empty);
        Self::written(clock, stored);
        Self::value_mut(stored).push(element);
    }
}

mod sealed {
    /// Keeps the set of lifetimes ours.
    pub trait Sealed {}
    impl Sealed for super::Forever {}
    impl Sealed for super::Ttl {}
}

/// State that never expires.
#[derive(Clone, Copy, Debug, Default)]
pub struct Forever;

impl Lifetime for Forever {
    type Stored<V: StateValue> = V;
    type Clock = ();
    const EXPIRES: bool = false;

    #[inline]
    fn clock(&self) {}
    fn set_now(&mut self, _now: i64) {}
    fn expired_until((): ()) -> Option<i64> {
        None
    }
    fn sweep_position(&mut self) -> Option<&mut SweepPosition> {
        None
    }
    #[inline]
    fn store<V: StateValue>((): (), value: V) -> V {
        value
    }
    #[inline]
    fn restore<V: StateValue>((): (), value: V, _written: Option<i64>) -> Option<V> {
        Some(value)
    }
    #[inline]
    fn value<V: StateValue>(stored: &V) -> &V {
        stored
    }
    #[inline]
    fn value_mut<V: StateValue>(stored: &mut V) -> &mut V {
        stored
    }
    #[inline]
    fn into_value<V: StateValue>(stored: V) -> V {
        stored
    }
    #[inline]
    fn expired<V: StateValue>((): (), _stored: &V) -> bool {
        false
    }
    #[inline]
    fn written<V: StateValue>((): (), _stored: &mut V) {}
    #[inline]
    fn read<V: StateValue>((): (), _stored: &mut V) {}
    #[inline]
    fn append<K: Key, T: StateValue>(
        (): (),
        table: &mut BackendTable<K, Vec<T>>,
        hash: u64,
        key: &K,
        element: T,
    ) {
        table.append(hash, key, element);
    }
}

/// A time to live, of processing time: state that was not updated for so long is as if it had never been.
///
/// Creating and writing state is an update; reading is one if [`Ttl::update_on_read`] says so. The clock is read once a
/// batch. A list or a map lives as a whole: an update of one entry is one of all; so such a map is one row in RocksDB.
///
/// Expired state is never returned. It is removed when it is met, in the background (with each batch as many entries are
/// looked at as the batch has records), and when a checkpoint is restored. Until then it takes room, in checkpoints too.
///
/// Checkpoints hold the time of the last update and not the time to live. So a job may be restored with another time to
/// live, which then counts for old entries too; with one where there was none, and entries count as updated at the
/// restore; and without one where there was, and what has not been removed stays.
#[derive(Clone, Copy, Debug)]
pub struct Ttl {
    clock: TtlClock,
    position: SweepPosition,
}

/// A moment, for a [`Ttl`].
#[derive(Clone, Copy, Debug)]
pub struct TtlClock {
    /// Units: milliseconds.
    ttl: i64,
    updates_on_read: bool,
    /// Units: milliseconds since 1970.
    now: i64,
}

impl TtlClock {
    fn expired(self, written: i64) -> bool {
        written.saturating_add(self.ttl) <= self.now
    }
}

impl Ttl {
    /// State lives for `time` after its last update. Parts of a millisecond count as a whole one.
    #[must_use]
    pub fn new(time: Duration) -> Self {
        let ttl = i64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX);
        Self {
            clock: TtlClock { ttl, updates_on_read: false, now: 0 },
            position: SweepPosition::default(),
        }
    }

    /// Reading is an update too.
    #[must_use]
    pub fn update_on_read(mut self) -> Self {
        self.clock.updates_on_read = true;
        self
    }
}

impl From<Duration> for Ttl {
    fn from(time: Duration) -> Self {
        Self::new(time)
    }
}

/// A value with the time of its last update.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Expiring<V> {
    /// Units: milliseconds since 1970.
    pub(crate) written: i64,
    pub(crate) value: V,
}

impl Lifetime for Ttl {
    type Stored<V: StateValue> = Expiring<V>;
    type Clock = TtlClock;
    const EXPIRES: bool = true;

    fn clock(&self) -> TtlClock {
        self.clock
    }
    fn set_now(&mut self, now: i64) {
        self.clock.now = now;
    }
    fn expired_until(clock: TtlClock) -> Option<i64> {
        Some(clock.now.saturating_sub(clock.ttl))
    }
    fn sweep_position(&mut self) -> Option<&mut SweepPosition> {
        Some(&mut self.position)
    }
    fn store<V: StateValue>(clock: TtlClock, value: V) -> Expiring<V> {
        Expiring { written: clock.now, value }
    }
    fn restore<V: StateValue>(
        clock: TtlClock,
        value: V,
        written: Option<i64>,
    ) -> Option<Expiring<V>> {
        let written = written.unwrap_or(clock.now);
        (!clock.expired(written)).then_some(Expiring { written, value })
    }
    fn value<V: StateValue>(stored: &Expiring<V>) -> &V {
        &stored.value
    }
    fn value_mut<V: StateValue>(stored: &mut Expiring<V>) -> &mut V {
        &mut stored.value
    }
    fn into_value<V: StateValue>(stored: Expiring<V>) -> V {
        stored.value
    }
    fn expired<V: StateValue>(clock: TtlClock, stored: &Expiring<V>) -> bool {
        clock.expired(stored.written)
    }
    fn written<V: StateValue>(clock: TtlClock, stored: &mut Expiring<V>) {
        stored.written = clock.now;
    }
    fn read<V: StateValue>(clock: TtlClock, stored: &mut Expiring<V>) {
        if clock.updates_on_read {
            stored.written = clock.now;
        }
    }
}

/// What is kept for one key, if it is alive: the access to state that all kinds share.
pub struct Cell<'a, K: Key, V: StateValue, L: Lifetime> {
    pub(crate) table: &'a mut BackendTable<K, L::Stored<V>>,
    pub(crate) clock: L::Clock,
    pub(crate) hash: u64,
    pub(crate) key: &'a K,
}

impl<K: Key, V: StateValue, L: Lifetime> std::fmt::Debug for Cell<'_, K, V, L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cell").field("hash", &self.hash).finish_non_exhaustive()
    }
}

impl<K: Key, V: StateValue, L: Lifetime> Cell<'_, K, V, L> {
    /// Removes what has expired.
    #[inline]
    fn expire(&mut self) {
        if L::EXPIRES {
            let clock = self.clock;
            let stored = self.table.get(self.hash, self.key);
            if stored.is_some_and(|stored| L::expired(clock, stored)) {
                self.table.remove(self.hash, self.key);
            }
        }
    }

    #[inline]
    pub(crate) fn get(&mut self) -> Option<&V> {
        if !L::EXPIRES {
            return self.table.get(self.hash, self.key).map(L::value);
        }
        self.expire();
        let stored = self.table.get_mut(self.hash, self.key)?;
        L::read(self.clock, stored);
        Some(L::value(stored))
    }

    #[inline]
    pub(crate) fn get_mut(&mut self) -> Option<&mut V> {
        self.expire();
        let stored = self.table.get_mut(self.hash, self.key)?;
        L::written(self.clock, stored);
        Some(L::value_mut(stored))
    }

    #[inline]
    pub(crate) fn or_insert_with(&mut self, mut value: impl FnMut() -> V) -> &mut V {
        self.expire();
        let clock = self.clock;
        let mut value = || L::store(clock, value());
        let stored = self.table.get_or_insert_with(self.hash, self.key, &mut value);
        L::written(clock, stored);
        L::value_mut(stored)
    }

    #[inline]
    pub(crate) fn set(&mut self, value: V) -> Option<V> {
        self.expire();
        let stored = L::store(self.clock, value);
        self.table.insert(self.hash, self.key, stored).map(L::into_value)
    }

    #[inline]
    pub(crate) fn take(&mut self) -> Option<V> {
        self.expire();
        self.table.remove(self.hash, self.key).map(L::into_value)
    }
}

impl<K: Key, T: StateValue, L: Lifetime> Cell<'_, K, Vec<T>, L> {
    /// Adds an element at the end of the list.
    #[inline]
    pub(crate) fn append(&mut self, element: T) {
        self.expire();
        L::append(self.clock, self.table, self.hash, self.key, element);
    }
}
