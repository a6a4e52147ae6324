//! Changes: how operators tell of results that hold for a while only.
//!
//! A stream of changes describes a multiset of records that grows and shrinks: the *current* records are those that were
//! inserted more often than they were retracted. Outer joins, top-N and running aggregates emit such a stream, and
//! those named `…_of_changes` take one, so that they can be put one behind the other.
//!
//! # Order
//! A record is never retracted before it was inserted, in the order in which its operator emits. That order lasts through
//! operators without an exchange, and through exchanges that send equal records the same way: keep changes keyed by
//! something that their record determines. Behind a `rebalance` a retraction may come before its insertion.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One record more, or one record less.
///
/// # Examples
/// ```
/// use highwater_operators::{Change, net};
///
/// let changes = [Change::Insert("tea"), Change::Insert("milk"), Change::Retract("tea")];
/// assert_eq!(net(changes).into_iter().collect::<Vec<_>>(), [("milk", 1)]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Change<T> {
    /// The record holds from now on, once more than before.
    Insert(T),
    /// The record, which was inserted earlier, holds no more: once less than before.
    Retract(T),
}

impl<T> Change<T> {
    /// What is inserted or retracted.
    pub fn record(&self) -> &T {
        match self {
            Self::Insert(record) | Self::Retract(record) => record,
        }
    }

    /// What is inserted or retracted.
    pub fn into_record(self) -> T {
        match self {
            Self::Insert(record) | Self::Retract(record) => record,
        }
    }

    /// Whether it is an insertion.
    pub fn is_insert(&self) -> bool {
        matches!(self, Self::Insert(_))
    }

    /// How many more there are: 1 or -1.
    pub fn diff(&self) -> i64 {
        if self.is_insert() { 1 } else { -1 }
    }

    /// The same change of another record.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Change<U> {
        match self {
            Self::Insert(record) => Change::Insert(f(record)),
            Self::Retract(record) => Change::Retract(f(record)),
        }
    }

    /// Splits the record into a key and the change of a value: what `into_keyed` of a stream of changes needs.
    pub fn keyed<K, V>(self, split: impl FnOnce(T) -> (K, V)) -> (K, Change<V>) {
        match self {
            Self::Insert(record) => {
                let (key, value) = split(record);
                (key, Change::Insert(value))
            }
            Self::Retract(record) => {
                let (key, value) = split(record);
                (key, Change::Retract(value))
            }
        }
    }
}

/// What changes come to: each record, and how often it is there. Records that are not there are left out.
///
/// A negative number is of a record that was retracted more often than it was inserted; the changes are not all there.
pub fn net<T: Ord>(changes: impl IntoIterator<Item = Change<T>>) -> BTreeMap<T, i64> {
    let mut net = BTreeMap::new();
    for change in changes {
        let diff = change.diff();
        *net.entry(change.into_record()).or_default() += diff;
    }
    net.retain(|_, count| *count != 0);
    net
}
