//! The other way round, in every order that state is kept in.

use std::cmp::Ordering;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::format::shape::DESCENDING;

/// Sorts values the other way round, as [`std::cmp::Reverse`] does, and tells a backend that sorts by bytes: as the key of
/// an entry of a [`Map`](crate::job::Map), it has one order on all backends. It is written as the value is by itself, but is
/// another type: state with one is not restored as state with the other, since their rows have other keys.
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
        deserializer.deserialize_newtype_struct(DESCENDING, InPlace(PhantomData))
    }
}

/// Reads what is in a [`Descending`]: as a newtype or, where its shape is told from that of the value alone, as a tuple of one.
struct InPlace<T>(PhantomData<fn() -> T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for InPlace<T> {
    type Value = Descending<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value to be sorted the other way round")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, value: D) -> Result<Self::Value, D::Error> {
        T::deserialize(value).map(Descending)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let value = elements.next_element()?;
        value.map(Descending).ok_or_else(|| A::Error::invalid_length(0, &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::codec;
    use crate::format::shape::trace;

    #[test]
    fn it_is_written_as_the_value_and_has_a_shape_of_its_own() {
        assert_eq!(trace::<(Descending<u64>, String)>().unwrap().to_string(), "((u64), String)");
        let (mut one, mut other) = (Vec::new(), Vec::new());
        codec::encode(&Descending(300_u64), &mut one).unwrap();
        codec::encode(&300_u64, &mut other).unwrap();
        assert_eq!(one, other);
        let (back, rest) = codec::decode_prefix::<Descending<u64>>(&one).unwrap();
        assert_eq!((back, rest.len()), (Descending(300), 0));
    }
}
