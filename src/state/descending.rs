//! The other way round, in every order that state is kept in.

use std::cmp::Ordering;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The name by which a backend knows it.
pub(super) const DESCENDING: &str = "highwater::Descending";

/// Sorts values the other way round, as [`std::cmp::Reverse`] does, and tells a backend that sorts by bytes: as the key of
/// an entry of a [`Map`](crate::job::Map), it has one order on all backends. It is written as the value is by itself.
///
/// # Examples
/// ```
/// use highwater::prelude::*;
///
/// // Of each player the games, those with the highest scores first.
/// let games = Map::<(Descending<u64>, String), u32>::new("games");
/// # drop(games);
/// assert!(Descending(2) < Descending(1));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Descending<T>(
    /// The value.
    pub T,
);

impl<T: PartialOrd> PartialOrd for Descending<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        other.0.partial_cmp(&self.0)
    }
}

impl<T: Ord> Ord for Descending<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.0.cmp(&self.0)
    }
}

impl<T: Serialize> Serialize for Descending<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_newtype_struct(DESCENDING, &self.0)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Descending<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self)
    }
}
