//! Bytes to sort by: of any two values of a type, those of the lesser are less.
//!
//! # Definition
//! | serialized as              | bytes                                                                    |
//! |----------------------------|--------------------------------------------------------------------------|
//! | bool, u8 to u128, char     | the value, the high byte first                                           |
//! | i8 to i128                 | the same, with the sign turned                                           |
//! | f32, f64                   | the bits, the sign turned, of negative ones all                          |
//! | str, bytes                 | the bytes, each 0 as 0 255; 0 0 at the end                               |
//! | none; some                 | 0; 1 and the value                                                       |
//! | unit, unit struct          | none                                                                     |
//! | tuple, struct, newtype     | those of the fields                                                      |
//! | enum variant               | its index in one byte (from 255 on: 255 and four bytes), the fields       |
//! | sequence, map              | before each element 1, behind the last 0                                 |
//! | [`Descending`]             | those of the value, with all bits turned                                 |
//!
//! No value's are the beginning of another's, so values may stand behind each other. They are never read back.
//!
//! # Which order
//! That of `Ord` as it is derived, and of std's types. An `Ord` that a user writes is not seen through, nor is
//! `std::cmp::Reverse`, which serializes as what is in it: those are sorted as if derived.

use serde::ser::{self, Serialize};

use crate::format::FormatError;
use crate::format::shape::DESCENDING;
#[cfg(doc)]
use crate::state::Descending;
use crate::state::fields::plain_fields;

/// Appends the bytes of `value`.
///
/// # Errors
/// [`FormatError::Encode`] if the value does not serialize.
pub(super) fn encode<T: Serialize + ?Sized>(
    value: &T,
    out: &mut Vec<u8>,
) -> Result<(), FormatError> {
    value.serialize(Sorting(out)).map_err(|Refused(why)| FormatError::Encode {
        what: std::any::type_name::<T>().to_owned(),
        why,
    })
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

impl ser::Error for Refused {
    fn custom<T: std::fmt::Display>(why: T) -> Self {
        Self(why.to_string())
    }
}

struct Sorting<'a>(&'a mut Vec<u8>);

impl Sorting<'_> {
    fn put(self, bytes: &[u8]) -> Result<(), Refused> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn variant(&mut self, index: u32) {
        match u8::try_from(index) {
            Ok(index) if index < u8::MAX => self.0.push(index),
            _ => {
                self.0.push(u8::MAX);
                self.0.extend_from_slice(&index.to_be_bytes());
            }
        }
    }
}

macro_rules! numbers {
    ($($method:ident($value:ident: $type:ty) => $sorted:expr;)*) => {$(
        #[inline]
        fn $method(self, $value: $type) -> Result<(), Refused> {
            self.put(&$sorted.to_be_bytes())
        }
    )*};
}

impl<'a> ser::Serializer for Sorting<'a> {
    type Ok = ();
    type Error = Refused;
    type SerializeSeq = Fields<'a>;
    type SerializeTuple = Fields<'a>;
    type SerializeTupleStruct = Fields<'a>;
    type SerializeTupleVariant = Fields<'a>;
    type SerializeMap = Fields<'a>;
    type SerializeStruct = Fields<'a>;
    type SerializeStructVariant = Fields<'a>;

    numbers! {
        serialize_bool(value: bool) => u8::from(value);
        serialize_u8(value: u8) => value;
        serialize_u16(value: u16) => value;
        serialize_u32(value: u32) => value;
        serialize_u64(value: u64) => value;
        serialize_u128(value: u128) => value;
        serialize_i8(value: i8) => value ^ i8::MIN;
        serialize_i16(value: i16) => value ^ i16::MIN;
        serialize_i32(value: i32) => value ^ i32::MIN;
        serialize_i64(value: i64) => value ^ i64::MIN;
        serialize_i128(value: i128) => value ^ i128::MIN;
        serialize_char(value: char) => u32::from(value);
        serialize_f32(value: f32) => {
            let bits = value.to_bits();
            if value.is_sign_negative() { !bits } else { bits | 1 << 31 }
        };
        serialize_f64(value: f64) => {
            let bits = value.to_bits();
            if value.is_sign_negative() { !bits } else { bits | 1 << 63 }
        };
    }

    fn serialize_str(self, value: &str) -> Result<(), Refused> {
        self.serialize_bytes(value.as_bytes())
    }
    fn serialize_bytes(self, value: &[u8]) -> Result<(), Refused> {
        for (index, piece) in value.split(|byte| *byte == 0).enumerate() {
            if index > 0 {
                self.0.extend_from_slice(&[0, u8::MAX]);
            }
            self.0.extend_from_slice(piece);
        }
        self.put(&[0, 0])
    }
    fn serialize_none(self) -> Result<(), Refused> {
        self.put(&[0])
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Refused> {
        self.0.push(1);
        value.serialize(self)
    }
    fn serialize_unit(self) -> Result<(), Refused> {
        Ok(())
    }
    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Refused> {
        Ok(())
    }
    fn serialize_unit_variant(
        mut self,
        _: &'static str,
        index: u32,
        _: &'static str,
    ) -> Result<(), Refused> {
        self.variant(index);
        Ok(())
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<(), Refused> {
        let before = self.0.len();
        value.serialize(Sorting(self.0))?;
        if name == DESCENDING {
            self.0[before..].iter_mut().for_each(|byte| *byte = !*byte);
        }
        Ok(())
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        mut self,
        _: &'static str,
        index: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), Refused> {
        self.variant(index);
        value.serialize(self)
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<Fields<'a>, Refused> {
        Ok(Fields(self.0))
    }
    fn serialize_tuple(self, _: usize) -> Result<Fields<'a>, Refused> {
        Ok(Fields(self.0))
    }
    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Fields<'a>, Refused> {
        Ok(Fields(self.0))
    }
    fn serialize_tuple_variant(
        mut self,
        _: &'static str,
        index: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Fields<'a>, Refused> {
        self.variant(index);
        Ok(Fields(self.0))
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Fields<'a>, Refused> {
        Ok(Fields(self.0))
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Fields<'a>, Refused> {
        Ok(Fields(self.0))
    }
    fn serialize_struct_variant(
        mut self,
        _: &'static str,
        index: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Fields<'a>, Refused> {
        self.variant(index);
        Ok(Fields(self.0))
    }
    fn is_human_readable(&self) -> bool {
        false
    }
}

/// What has parts.
struct Fields<'a>(&'a mut Vec<u8>);

impl ser::SerializeSeq for Fields<'_> {
    type Ok = ();
    type Error = Refused;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
        self.0.push(1);
        value.serialize(Sorting(self.0))
    }
    fn end(self) -> Result<(), Refused> {
        Sorting(self.0).put(&[0])
    }
}

impl ser::SerializeMap for Fields<'_> {
    type Ok = ();
    type Error = Refused;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Refused> {
        self.0.push(1);
        key.serialize(Sorting(self.0))
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
        value.serialize(Sorting(self.0))
    }
    fn end(self) -> Result<(), Refused> {
        Sorting(self.0).put(&[0])
    }
}

plain_fields!(Fields<'_>, Refused, fields => Sorting(fields.0));

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Debug;

    use serde::Serialize;

    use super::encode;
    use crate::state::Descending;

    fn bytes<T: Serialize>(value: &T) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(value, &mut bytes).unwrap();
        bytes
    }

    /// Any two are sorted alike, alone and with something behind that would turn the order.
    fn check<T: Serialize + Ord + Debug>(values: &[T]) {
        for a in values {
            for b in values {
                assert_eq!(bytes(a).cmp(&bytes(b)), a.cmp(b), "{a:?} and {b:?}");
                let (x, y) = ((a, b), (b, a));
                assert_eq!(bytes(&x).cmp(&bytes(&y)), x.cmp(&y), "{x:?} and {y:?}");
                if a != b {
                    assert!(!bytes(a).starts_with(&bytes(b)), "{b:?} begins {a:?}");
                }
            }
        }
    }

    #[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
    enum Shape {
        Nothing,
        Line(i32),
        Box { high: u8, wide: Option<u8> },
        Pair(String, bool),
    }

    #[test]
    fn bytes_are_in_the_order_of_the_values() {
        check(&[0_u64, 1, 127, 128, 255, 256, 300, 1 << 40, u64::MAX]);
        check(&[i64::MIN, -300, -256, -128, -1, 0, 1, 127, 128, 255, 256, i64::MAX]);
        check(&[i8::MIN, -1, 0, i8::MAX]);
        check(&[i128::MIN, -1, 0, 1, i128::MAX]);
        check(&["", "\0", "\0\0", "\0\u{1}", "a", "a\0", "a\0b", "a\u{1}", "aa", "ab", "b", "é"]);
        check(&['a', 'z', 'é', '\u{10ffff}']);
        check(&[None, Some(0_u8), Some(1), Some(255)]);
        check(&[vec![], vec![0_u8], vec![0, 0], vec![0, 1], vec![1], vec![1, 0], vec![255]]);
        check(&[(), ()]);
        check(&[false, true]);
        let map = |pairs: &[(u8, u8)]| pairs.iter().copied().collect::<BTreeMap<u8, u8>>();
        check(&[map(&[]), map(&[(0, 9)]), map(&[(0, 9), (1, 1)]), map(&[(1, 0)])]);
        check(&[
            Shape::Nothing,
            Shape::Line(-5),
            Shape::Line(5),
            Shape::Box { high: 1, wide: None },
            Shape::Box { high: 1, wide: Some(0) },
            Shape::Box { high: 2, wide: None },
            Shape::Pair("a".to_owned(), true),
            Shape::Pair("ab".to_owned(), false),
        ]);
        check(&["", "a", "a\0", "ab", "b"].map(Descending));
        check(&[vec![], vec![1_u8], vec![1, 2], vec![2]].map(Descending));
        check(&[(Descending(1_u32), -1_i8), (Descending(1), 1), (Descending(0), 0)]);
        let floats = [f64::NEG_INFINITY, -1.5, -0.0, 0.0, 1.5, f64::INFINITY];
        assert!(floats.map(|float| bytes(&float)).is_sorted());
        assert!(floats.map(|float| bytes(&(float as f32))).is_sorted());
    }
}
