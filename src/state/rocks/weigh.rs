//! How much memory a value owns outside of itself: an estimate, made with the help of its `Serialize`.
//!
//! Text, sequences and maps own memory; numbers do not. A sequence is taken to have a quarter of its room free and to
//! cost an allocation's overhead, and so is everything inside it.

use serde::ser::{self, Serialize};

use crate::state::fields::plain_fields;

/// What an allocation costs beside its bytes. Units: bytes.
const ALLOCATION: usize = 16;

/// The memory that `value` owns, about. Units: bytes. A value that refuses to be serialized is taken for small.
pub(super) fn owned_bytes<T: Serialize>(value: &T) -> usize {
    if !std::mem::needs_drop::<T>() {
        return 0;
    }
    let mut weight = Weight { bytes: 0, inside: 0 };
    _ = value.serialize(&mut weight);
    weight.bytes
}

struct Weight {
    bytes: usize,
    /// How many sequences this is inside of: what is in none lies in the value itself.
    inside: u32,
}

impl Weight {
    #[inline]
    fn add(&mut self, bytes: usize) {
        if self.inside > 0 {
            self.bytes += bytes;
        }
    }

    fn text(&mut self, len: usize) {
        self.add(24);
        self.bytes += len + ALLOCATION;
    }
}

#[derive(Debug, thiserror::Error)]
#[error("refused")]
struct Refused;

impl ser::Error for Refused {
    fn custom<T: std::fmt::Display>(_: T) -> Self {
        Self
    }
}

/// A sequence or a map.
struct Elements<'a> {
    weight: &'a mut Weight,
    before: usize,
}

impl Elements<'_> {
    fn start(weight: &mut Weight) -> Elements<'_> {
        weight.add(24);
        let before = weight.bytes;
        weight.inside += 1;
        Elements { weight, before }
    }

    fn finish(self) {
        self.weight.inside -= 1;
        let content = self.weight.bytes - self.before;
        self.weight.bytes += content / 4 + ALLOCATION;
    }
}

macro_rules! plain {
    ($($method:ident($type:ty);)*) => {$(
        #[inline]
        fn $method(self, _: $type) -> Result<(), Refused> {
            self.add(size_of::<$type>());
            Ok(())
        }
    )*};
}

impl<'a> ser::Serializer for &'a mut Weight {
    type Ok = ();
    type Error = Refused;
    type SerializeSeq = Elements<'a>;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Elements<'a>;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    plain! {
        serialize_bool(bool);
        serialize_u8(u8);
        serialize_u16(u16);
        serialize_u32(u32);
        serialize_u64(u64);
        serialize_u128(u128);
        serialize_i8(i8);
        serialize_i16(i16);
        serialize_i32(i32);
        serialize_i64(i64);
        serialize_i128(i128);
        serialize_f32(f32);
        serialize_f64(f64);
        serialize_char(char);
    }

    fn serialize_str(self, value: &str) -> Result<(), Refused> {
        self.text(value.len());
        Ok(())
    }
    fn serialize_bytes(self, value: &[u8]) -> Result<(), Refused> {
        self.text(value.len());
        Ok(())
    }
    fn serialize_none(self) -> Result<(), Refused> {
        self.add(8);
        Ok(())
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Refused> {
        self.add(8);
        value.serialize(self)
    }
    fn serialize_unit(self) -> Result<(), Refused> {
        Ok(())
    }
    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Refused> {
        Ok(())
    }
    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
    ) -> Result<(), Refused> {
        self.add(8);
        Ok(())
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Refused> {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), Refused> {
        self.add(8);
        value.serialize(self)
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<Elements<'a>, Refused> {
        Ok(Elements::start(self))
    }
    fn serialize_tuple(self, _: usize) -> Result<Self, Refused> {
        Ok(self)
    }
    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Refused> {
        Ok(self)
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Refused> {
        self.add(8);
        Ok(self)
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Elements<'a>, Refused> {
        Ok(Elements::start(self))
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Refused> {
        Ok(self)
    }
    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Refused> {
        self.add(8);
        Ok(self)
    }
    fn is_human_readable(&self) -> bool {
        false
    }
}

impl ser::SerializeSeq for Elements<'_> {
    type Ok = ();
    type Error = Refused;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
        value.serialize(&mut *self.weight)
    }
    fn end(self) -> Result<(), Refused> {
        self.finish();
        Ok(())
    }
}

impl ser::SerializeMap for Elements<'_> {
    type Ok = ();
    type Error = Refused;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Refused> {
        key.serialize(&mut *self.weight)
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
        value.serialize(&mut *self.weight)
    }
    fn end(self) -> Result<(), Refused> {
        self.finish();
        Ok(())
    }
}

plain_fields!(&mut Weight, Refused, fields => &mut **fields);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::owned_bytes;

    #[test]
    fn numbers_own_nothing_and_collections_what_is_in_them() {
        assert_eq!(owned_bytes(&(1_u64, 2_u8)), 0);
        assert!((100..150).contains(&owned_bytes(&"x".repeat(100))));
        // One byte each when written, eight in memory.
        assert!((8_000..11_000).contains(&owned_bytes(&vec![1_u64; 1_000])));
        let words = vec!["four".to_owned(); 100];
        assert!((4_400..7_000).contains(&owned_bytes(&words)), "{}", owned_bytes(&words));
        let map: BTreeMap<u64, u64> = (0..1_000).map(|n| (n, n)).collect();
        assert!((16_000..25_000).contains(&owned_bytes(&map)));
    }
}
