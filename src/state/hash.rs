//! The stable hash of keys: it routes records, names key groups and lays out state tables.
//!
//! The hash is over the calls that a key's `Serialize` makes for a binary format
//! (`is_human_readable` is false), so it is the same on every machine, in every build and in every
//! version. It is part of the checkpoint format: the test vectors below are frozen, and changing
//! one breaks every checkpoint.
//!
//! # Definition
//! The state is one 64-bit word, at first 0. Folding word `w` makes it `mix((state + GAMMA) ^ w)`,
//! where `mix` is the finalizer of splitmix64. The hash is the last state.
//!
//! | serialized as             | words folded                                                     |
//! |---------------------------|------------------------------------------------------------------|
//! | bool, u8 to u64, char     | the value                                                        |
//! | i8 to i64                 | the value in two's complement, sign-extended to 64 bits          |
//! | u128, i128                | the low 64 bits, the high 64 bits                                |
//! | f32, f64                  | the bits (so `0.0` and `-0.0` differ)                            |
//! | str, bytes                | XXH3 (64 bits, seed 0) of the bytes, their number                |
//! | none; some                | 0; 1 and the value                                               |
//! | unit, unit struct         | none                                                             |
//! | tuple, struct, newtype    | those of the fields                                              |
//! | enum variant              | the index of the variant, those of the fields                    |
//! | sequence, map             | the length, those of the elements                                |
//! | the same, length not told | before each element (of a map: each key) 1, at the end 0         |
//!
//! # What a key must keep
//! Equal keys make equal calls. Types whose order of iteration is random (`HashMap`, `HashSet`) do
//! not, nor does a float wrapper for which `0.0 == -0.0`, unless it serializes both alike. A
//! `Vec<u8>` or `[u8; N]` is a sequence of numbers for serde and folds one word a byte: long byte
//! keys are faster through `serialize_bytes`.
//!
//! # Source
//! splitmix64: Steele, Lea, Flood 2014, with the constants of Stafford's mix 13. XXH3: Collet.

use std::fmt::Display;

use serde::ser::{self, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::fields::plain_fields;

/// 2^64 divided by the golden ratio: the increment of splitmix64.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// Returns the stable hash of a key, as the module documentation defines it.
///
/// Shape: all 64 bits are well mixed. Numbers hash by value, whatever their width.
///
/// # Panics
/// If the key's `Serialize` fails: that is a fault of the key type, and the panic names the type.
///
/// # Examples
/// ```
/// use highwater::state::hash::stable_hash;
/// assert_eq!(stable_hash("word"), stable_hash(&String::from("word")));
/// assert_eq!(stable_hash(&7_u8), stable_hash(&7_u64));
/// ```
#[inline]
#[must_use]
pub fn stable_hash<K: Serialize + ?Sized>(key: &K) -> u64 {
    let mut hasher = KeyHasher { state: 0 };
    match key.serialize(&mut hasher) {
        Ok(()) => hasher.state,
        Err(refusal) => refused(std::any::type_name::<K>(), &refusal),
    }
}

#[cold]
fn refused(key_type: &str, refusal: &Refusal) -> ! {
    panic!("a key of type {key_type} cannot be serialized, so it has no hash: {refusal}")
}

/// The error of a user's `Serialize`. The hasher itself never fails.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

impl ser::Error for Refusal {
    fn custom<T: Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

struct KeyHasher {
    state: u64,
}

impl KeyHasher {
    #[inline]
    fn fold(&mut self, word: u64) {
        let mut z = self.state.wrapping_add(GAMMA) ^ word;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.state = z ^ (z >> 31);
    }
}

/// A sequence or map: remembers whether each element must be announced, because the length was not
/// told.
struct Elements<'a> {
    hasher: &'a mut KeyHasher,
    announced: bool,
}

impl Elements<'_> {
    #[inline]
    fn start(hasher: &mut KeyHasher, len: Option<usize>) -> Elements<'_> {
        if let Some(len) = len {
            hasher.fold(len as u64);
        }
        Elements { hasher, announced: len.is_none() }
    }

    #[inline]
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refusal> {
        if self.announced {
            self.hasher.fold(1);
        }
        value.serialize(&mut *self.hasher)
    }

    #[inline]
    fn finish(self) -> Result<(), Refusal> {
        if self.announced {
            self.hasher.fold(0);
        }
        Ok(())
    }
}

macro_rules! fold_numbers {
    ($($method:ident: $type:ty, $word:expr;)*) => {$(
        #[inline]
        fn $method(self, value: $type) -> Result<(), Refusal> {
            let word: fn($type) -> u64 = $word;
            self.fold(word(value));
            Ok(())
        }
    )*};
}

impl<'a> ser::Serializer for &'a mut KeyHasher {
    type Ok = ();
    type Error = Refusal;
    type SerializeSeq = Elements<'a>;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Elements<'a>;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    fold_numbers! {
        serialize_bool: bool, u64::from;
        serialize_u8: u8, u64::from;
        serialize_u16: u16, u64::from;
        serialize_u32: u32, u64::from;
        serialize_u64: u64, |v| v;
        serialize_i8: i8, |v| i64::from(v).cast_unsigned();
        serialize_i16: i16, |v| i64::from(v).cast_unsigned();
        serialize_i32: i32, |v| i64::from(v).cast_unsigned();
        serialize_i64: i64, i64::cast_unsigned;
        serialize_f32: f32, |v| u64::from(v.to_bits());
        serialize_f64: f64, f64::to_bits;
        serialize_char: char, u64::from;
    }

    #[inline]
    fn serialize_u128(self, value: u128) -> Result<(), Refusal> {
        self.fold(value as u64);
        self.fold((value >> 64) as u64);
        Ok(())
    }

    #[inline]
    fn serialize_i128(self, value: i128) -> Result<(), Refusal> {
        self.serialize_u128(value.cast_unsigned())
    }

    #[inline]
    fn serialize_str(self, value: &str) -> Result<(), Refusal> {
        self.serialize_bytes(value.as_bytes())
    }

    #[inline]
    fn serialize_bytes(self, value: &[u8]) -> Result<(), Refusal> {
        self.fold(xxh3_64(value));
        self.fold(value.len() as u64);
        Ok(())
    }

    #[inline]
    fn serialize_none(self) -> Result<(), Refusal> {
        self.fold(0);
        Ok(())
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Refusal> {
        self.fold(1);
        value.serialize(self)
    }

    #[inline]
    fn serialize_unit(self) -> Result<(), Refusal> {
        Ok(())
    }

    #[inline]
    fn serialize_unit_struct(self, _name: &'static str) -> Result<(), Refusal> {
        Ok(())
    }

    #[inline]
    fn serialize_unit_variant(
        self,
        _name: &'static str,
        index: u32,
        _variant: &'static str,
    ) -> Result<(), Refusal> {
        self.serialize_u32(index)
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        value: &T,
    ) -> Result<(), Refusal> {
        value.serialize(self)
    }

    #[inline]
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        index: u32,
        _variant: &'static str,
        value: &T,
    ) -> Result<(), Refusal> {
        self.fold(u64::from(index));
        value.serialize(self)
    }

    #[inline]
    fn serialize_seq(self, len: Option<usize>) -> Result<Elements<'a>, Refusal> {
        Ok(Elements::start(self, len))
    }

    #[inline]
    fn serialize_tuple(self, _len: usize) -> Result<Self, Refusal> {
        Ok(self)
    }

    #[inline]
    fn serialize_tuple_struct(self, _name: &'static str, _len: usize) -> Result<Self, Refusal> {
        Ok(self)
    }

    #[inline]
    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        index: u32,
        _variant: &'static str,
        _len: usize,
    ) -> Result<Self, Refusal> {
        self.fold(u64::from(index));
        Ok(self)
    }

    #[inline]
    fn serialize_map(self, len: Option<usize>) -> Result<Elements<'a>, Refusal> {
        Ok(Elements::start(self, len))
    }

    #[inline]
    fn serialize_struct(self, _name: &'static str, _len: usize) -> Result<Self, Refusal> {
        Ok(self)
    }

    #[inline]
    fn serialize_struct_variant(
        self,
        _name: &'static str,
        index: u32,
        _variant: &'static str,
        _len: usize,
    ) -> Result<Self, Refusal> {
        self.fold(u64::from(index));
        Ok(self)
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

impl ser::SerializeSeq for Elements<'_> {
    type Ok = ();
    type Error = Refusal;

    #[inline]
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refusal> {
        self.element(value)
    }

    #[inline]
    fn end(self) -> Result<(), Refusal> {
        self.finish()
    }
}

impl ser::SerializeMap for Elements<'_> {
    type Ok = ();
    type Error = Refusal;

    #[inline]
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Refusal> {
        self.element(key)
    }

    #[inline]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refusal> {
        value.serialize(&mut *self.hasher)
    }

    #[inline]
    fn end(self) -> Result<(), Refusal> {
        self.finish()
    }
}

plain_fields!(&mut KeyHasher, Refusal, hasher => &mut **hasher);

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde::{Serialize, Serializer};

    use super::stable_hash;

    #[derive(Serialize)]
    enum Shape {
        Unit,
        Newtype(u32),
        Tuple(u8, String),
        Struct { x: i64, y: Option<bool> },
    }

    /// These values are frozen: a change of any of them breaks every checkpoint ever written.
    #[test]
    fn hashes_are_the_same_in_every_version() {
        let long = "a key that is longer than two hundred and forty bytes ".repeat(5);
        let vectors = [
            ("0_u64", stable_hash(&0_u64), 0xe220_a839_7b1d_cdaf),
            ("1_u64", stable_hash(&1_u64), 0xe4d9_7177_1b65_2c20),
            ("u64::MAX", stable_hash(&u64::MAX), 0xde0a_564c_bcd0_60c4),
            ("7_u8", stable_hash(&7_u8), 0xf75f_04cb_b5a1_a1dd),
            ("-1_i32", stable_hash(&-1_i32), 0xde0a_564c_bcd0_60c4),
            ("i32::MIN", stable_hash(&i32::MIN), 0x0797_ee1d_8d29_4bfa),
            ("true", stable_hash(&true), 0xe4d9_7177_1b65_2c20),
            ("char::MAX", stable_hash(&char::MAX), 0x0d2a_2f32_dd3f_b61e),
            ("1_u128 << 64", stable_hash(&(1_u128 << 64)), 0x2a98_f501_af37_e97f),
            ("-1_i128", stable_hash(&-1_i128), 0x97e2_e8bc_2432_5a86),
            ("0.5_f32", stable_hash(&0.5_f32), 0x053d_0cdd_fef7_5fe3),
            ("-0.0_f64", stable_hash(&-0.0_f64), 0x481e_c0a2_12a9_f3db),
            ("\"\"", stable_hash(""), 0xce8a_b0d5_b9a3_0506),
            ("\"word\"", stable_hash("word"), 0x8d7b_23c4_ca6b_dd7f),
            ("a long string", stable_hash(&long), 0x198d_1c0d_8389_75b5),
            ("()", stable_hash(&()), 0x0000_0000_0000_0000),
            ("(1_u64, 2_u64)", stable_hash(&(1_u64, 2_u64)), 0x51b0_1d53_ca27_e54d),
            (
                "(1_u64, String::from(\"a\"))",
                stable_hash(&(1_u64, String::from("a"))),
                0x573c_8681_4c29_652f,
            ),
            ("Option::<u64>::None", stable_hash(&Option::<u64>::None), 0xe220_a839_7b1d_cdaf),
            ("Some(0_u64)", stable_hash(&Some(0_u64)), 0x5dc2_0aa7_b2a2_7137),
            ("Vec::<u64>::new()", stable_hash(&Vec::<u64>::new()), 0xe220_a839_7b1d_cdaf),
            ("vec![1_u8, 2, 3]", stable_hash(&vec![1_u8, 2, 3]), 0x36df_b9f6_34c1_c548),
            ("[1_u8, 2, 3]", stable_hash(&[1_u8, 2, 3]), 0xeabc_fa2c_623c_5a59),
            (
                "BTreeMap::from([(1_u64, \"a\"), (2, \"b\")])",
                stable_hash(&BTreeMap::from([(1_u64, "a"), (2, "b")])),
                0x4515_82f3_dd1d_5759,
            ),
            ("Shape::Unit", stable_hash(&Shape::Unit), 0xe220_a839_7b1d_cdaf),
            ("Shape::Newtype(1)", stable_hash(&Shape::Newtype(1)), 0x5155_e650_b562_74f2),
            (
                "Shape::Tuple(2, String::from(\"b\"))",
                stable_hash(&Shape::Tuple(2, String::from("b"))),
                0x52c9_6e44_3aaa_48af,
            ),
            (
                "Shape::Struct { x: -3, y: Some(true) }",
                stable_hash(&Shape::Struct { x: -3, y: Some(true) }),
                0xe38f_9d01_d77b_f9c0,
            ),
        ];
        for (what, found, frozen) in vectors {
            assert_eq!(found, frozen, "{what}: found {found:#018x}");
        }
    }

    #[test]
    fn numbers_hash_by_value_whatever_their_width() {
        assert_eq!(stable_hash(&7_u8), stable_hash(&7_u64));
        assert_eq!(stable_hash(&7_i16), stable_hash(&7_u32));
        assert_eq!(stable_hash(&-7_i8), stable_hash(&-7_i64));
        assert_eq!(stable_hash(&'a'), stable_hash(&97_u8));
    }

    #[test]
    fn a_reference_a_box_and_a_newtype_hash_as_what_they_hold() {
        #[derive(Serialize)]
        struct UserId(u64);
        assert_eq!(stable_hash(&UserId(9)), stable_hash(&9_u64));
        assert_eq!(stable_hash(&Box::new(9_u64)), stable_hash(&9_u64));
        assert_eq!(stable_hash(&String::from("abc")), stable_hash("abc"));
    }

    #[test]
    fn sequences_of_known_and_unknown_length_keep_their_boundaries() {
        let a = (vec![1_u64, 2], vec![3_u64]);
        let b = (vec![1_u64], vec![2_u64, 3]);
        assert_ne!(stable_hash(&a), stable_hash(&b));

        /// A sequence that does not tell its length.
        struct Unknown(&'static [u64]);
        impl Serialize for Unknown {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeSeq;
                let mut seq = serializer.serialize_seq(None)?;
                for element in self.0 {
                    seq.serialize_element(element)?;
                }
                seq.end()
            }
        }
        let c = (Unknown(&[1, 2]), Unknown(&[3]));
        let d = (Unknown(&[1]), Unknown(&[2, 3]));
        assert_ne!(stable_hash(&c), stable_hash(&d));
    }

    #[test]
    fn consecutive_numbers_spread_over_the_high_and_the_low_bits() {
        for shift in [0, 10, 20, 52] {
            let mut counts = vec![0_u32; 4096];
            for key in 0..4096_u64 * 64 {
                counts[(stable_hash(&key) >> shift) as usize & 4095] += 1;
            }
            // 64 a bucket on average, with a standard deviation of 8: 7 of them never happen by
            // chance.
            assert!(counts.iter().all(|n| (8..=120).contains(n)), "at bit {shift}");
        }
    }

    #[test]
    fn a_flipped_bit_of_the_key_flips_each_bit_of_the_hash_about_half_the_time() {
        for bit in 0..64 {
            let mut flips = [0_u32; 64];
            for key in 0..1000_u64 {
                let difference = stable_hash(&key) ^ stable_hash(&(key ^ (1 << bit)));
                for (position, count) in flips.iter_mut().enumerate() {
                    *count += (difference >> position) as u32 & 1;
                }
            }
            // 500 on average, with a standard deviation of 16.
            assert!(flips.iter().all(|n| (400..=600).contains(n)), "bit {bit}: {flips:?}");
        }
    }

    #[test]
    fn small_composite_keys_do_not_collide() {
        let mut seen = BTreeSet::new();
        for a in 0..300_u64 {
            for b in 0..300_i32 {
                assert!(seen.insert(stable_hash(&(a, b))), "({a}, {b})");
            }
        }
    }

    #[test]
    #[should_panic(expected = "Stubborn cannot be serialized, so it has no hash: not today")]
    fn a_key_that_refuses_to_be_serialized_is_named() {
        struct Stubborn;
        impl Serialize for Stubborn {
            fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("not today"))
            }
        }
        let _ = stable_hash(&Stubborn);
    }
}
