//! Entries whose types are not there: passed over, and their keys hashed, by their recorded shapes.
//!
//! The hash of a key is defined over the calls that its `Serialize` makes, and a shape holds those that its `Deserialize` makes. For
//! one type the two agree, or it could not read what it writes: postcard holds nothing by which they could find each other
//! again. What is left is a type that writes bytes and reads a sequence of numbers, or the other way round, which are the same in
//! postcard and hash differently: whoever moves keys by these hashes compares them with where the keys were.

use std::cell::{Cell, RefCell};

use serde::ser::{SerializeMap, SerializeSeq, SerializeTuple, Serializer};
use serde::{Deserialize, Serialize};

use super::hash::stable_hash;
use crate::format::FormatError;
use crate::format::shape::{EntryShape, Field, Shape};

/// How deep values are nested at the most.
const DEPTH_MAX: usize = 96;

/// Reads the entry at the start of `bytes`: the stable hash of its key, and its length in bytes.
///
/// # Errors
/// [`FormatError::Corrupt`] if the bytes are not such an entry, or if a part of its shape is opaque.
pub(crate) fn hash_of_entry(shape: &EntryShape, bytes: &[u8]) -> Result<(u64, usize), FormatError> {
    let reading = Reading {
        rest: Cell::new(bytes),
        above: RefCell::default(),
        depth: Cell::new(0),
        // A value that takes no bytes may be there any number of times, so the number of values is bounded as well.
        values_left: Cell::new((bytes.len() as u64 + 64) * 64),
        failed: RefCell::default(),
    };
    let hash = stable_hash(&Replay { reading: &reading, shape: &shape.key });
    if shape.expires {
        let _ = stable_hash(&Replay { reading: &reading, shape: &Shape::I64 });
    }
    // Only to get past it.
    let _ = stable_hash(&Replay { reading: &reading, shape: &shape.value });
    let length = bytes.len() - reading.rest.get().len();
    match reading.failed.into_inner() {
        None => Ok((hash, length)),
        Some(why) => Err(FormatError::corrupt(length as u64, why)),
    }
}

/// Where the reading of an entry is.
struct Reading<'a> {
    rest: Cell<&'a [u8]>,
    /// The composite shapes around what is being read.
    above: RefCell<Vec<&'a Shape>>,
    depth: Cell<usize>,
    values_left: Cell<u64>,
    failed: RefCell<Option<String>>,
}

impl<'a> Reading<'a> {
    fn leaf<T: Deserialize<'a>>(&self) -> Option<T> {
        match postcard::take_from_bytes(self.rest.get()) {
            Ok((value, rest)) => {
                self.rest.set(rest);
                Some(value)
            }
            Err(error) => {
                self.fail(error.to_string());
                None
            }
        }
    }

    /// The first failure counts. A hasher refuses nothing, so the calls go on until they end by themselves.
    fn fail(&self, why: impl Into<String>) {
        self.failed.borrow_mut().get_or_insert_with(|| why.into());
    }

    fn has_failed(&self) -> bool {
        self.failed.borrow().is_some()
    }
}

/// A value that is still in its bytes. To serialize it is to read it.
struct Replay<'r, 'a> {
    reading: &'r Reading<'a>,
    shape: &'a Shape,
}

impl<'r, 'a> Replay<'r, 'a> {
    fn of(&self, shape: &'a Shape) -> Self {
        Self { reading: self.reading, shape }
    }

    fn composite<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let reading = self.reading;
        match self.shape {
            Shape::Option(inner) => match reading.leaf::<u8>() {
                Some(0) => to.serialize_none(),
                Some(1) => to.serialize_some(&self.of(inner)),
                Some(other) => {
                    reading.fail(format!("{other} says neither some nor none"));
                    to.serialize_unit()
                }
                None => to.serialize_unit(),
            },
            Shape::Seq(inner) => {
                let len = reading.leaf::<usize>().unwrap_or(0);
                let mut elements = to.serialize_seq(Some(len))?;
                for _ in 0..len {
                    if reading.has_failed() {
                        break;
                    }
                    elements.serialize_element(&self.of(inner))?;
                }
                elements.end()
            }
            Shape::Map(key, value) => {
                let len = reading.leaf::<usize>().unwrap_or(0);
                let mut entries = to.serialize_map(Some(len))?;
                for _ in 0..len {
                    if reading.has_failed() {
                        break;
                    }
                    entries.serialize_entry(&self.of(key), &self.of(value))?;
                }
                entries.end()
            }
            Shape::Tuple(elements) => self.fields(elements.iter(), to),
            Shape::Struct(fields) => self.fields(fields.iter().map(|field| &field.shape), to),
            Shape::Enum(variants) => {
                let index = reading.leaf::<u32>().unwrap_or(0);
                match variants.get(index as usize) {
                    Some(Field { shape: Shape::Unit, .. }) => {
                        to.serialize_unit_variant("", index, "")
                    }
                    Some(Field { shape, .. }) => {
                        to.serialize_newtype_variant("", index, "", &self.of(shape))
                    }
                    None => {
                        reading.fail(format!("there is no variant {index}"));
                        to.serialize_unit()
                    }
                }
            }
            _ => unreachable!("the caller has the others"),
        }
    }

    fn fields<S: Serializer>(
        &self,
        shapes: impl ExactSizeIterator<Item = &'a Shape>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let mut elements = to.serialize_tuple(shapes.len())?;
        for shape in shapes {
            elements.serialize_element(&self.of(shape))?;
        }
        elements.end()
    }
}

impl Serialize for Replay<'_, '_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let reading = self.reading;
        match reading.values_left.get().checked_sub(1) {
            Some(left) => reading.values_left.set(left),
            None => reading.fail("there are too many values"),
        }
        if reading.has_failed() {
            return to.serialize_unit();
        }
        macro_rules! leaf {
            ($serialize:ident) => {
                match reading.leaf() {
                    Some(value) => to.$serialize(value),
                    None => to.serialize_unit(),
                }
            };
        }
        match self.shape {
            Shape::Opaque => {
                reading.fail("its shape is not known");
                to.serialize_unit()
            }
            Shape::Unit => to.serialize_unit(),
            Shape::Bool => leaf!(serialize_bool),
            Shape::I8 => leaf!(serialize_i8),
            Shape::I16 => leaf!(serialize_i16),
            Shape::I32 => leaf!(serialize_i32),
            Shape::I64 => leaf!(serialize_i64),
            Shape::I128 => leaf!(serialize_i128),
            Shape::U8 => leaf!(serialize_u8),
            Shape::U16 => leaf!(serialize_u16),
            Shape::U32 => leaf!(serialize_u32),
            Shape::U64 => leaf!(serialize_u64),
            Shape::U128 => leaf!(serialize_u128),
            Shape::F32 => leaf!(serialize_f32),
            Shape::F64 => leaf!(serialize_f64),
            Shape::Char => leaf!(serialize_char),
            Shape::Str => leaf!(serialize_str),
            Shape::Bytes => leaf!(serialize_bytes),
            Shape::Up(levels) => {
                let above = reading.above.borrow().len().checked_sub(1 + *levels as usize);
                let Some(at) = above else {
                    reading.fail("the shape leads out of itself");
                    return to.serialize_unit();
                };
                // What is above that one is as it was there.
                let inside = reading.above.borrow_mut().split_off(at);
                let result = self.of(inside[0]).serialize(to);
                reading.above.borrow_mut().extend(inside);
                result
            }
            composite => {
                // SUBTLE: the depth of values, not of `above`: a shape that comes back to itself takes that up again.
                let depth = reading.depth.get();
                if depth == DEPTH_MAX {
                    reading.fail("it is nested too deep");
                    return to.serialize_unit();
                }
                reading.depth.set(depth + 1);
                reading.above.borrow_mut().push(composite);
                let result = self.composite(to);
                reading.above.borrow_mut().pop();
                reading.depth.set(depth);
                result
            }
        }
    }
}

/// Whether entries of this shape can be read.
pub(crate) fn is_readable(shape: &EntryShape) -> bool {
    fn seen(shape: &Shape) -> bool {
        match shape {
            Shape::Opaque => false,
            Shape::Option(inner) | Shape::Seq(inner) => seen(inner),
            Shape::Map(key, value) => seen(key) && seen(value),
            Shape::Tuple(elements) => elements.iter().all(seen),
            Shape::Struct(fields) | Shape::Enum(fields) => {
                fields.iter().all(|field| seen(&field.shape))
            }
            _ => true,
        }
    }
    seen(&shape.key) && seen(&shape.value)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::format::codec;
    use crate::format::shape::trace;
    use crate::state::Key;

    #[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
    enum Tree {
        Leaf,
        Node(Box<Tree>, u8, Box<Tree>),
        Named { text: String, more: Option<i64> },
        One(char),
    }

    #[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
    struct Wrapped((i8, u128, bool));

    /// The hash by the shape is the hash by the type, and what follows is left alone.
    fn agree<K: Key>(keys: impl IntoIterator<Item = K>) {
        let entry = |expires| EntryShape {
            key: Arc::new(trace::<K>().unwrap()),
            value: Arc::new(trace::<Vec<(u16, String)>>().unwrap()),
            expires,
        };
        assert!(is_readable(&entry(false)));
        let value = vec![(7_u16, "text".to_owned()), (70, String::new())];
        for key in keys {
            for expires in [false, true] {
                let mut bytes = Vec::new();
                codec::encode(&key, &mut bytes).unwrap();
                if expires {
                    codec::encode(&-5_i64, &mut bytes).unwrap();
                }
                codec::encode(&value, &mut bytes).unwrap();
                let length = bytes.len();
                bytes.extend([1, 2, 3]);
                let found = hash_of_entry(&entry(expires), &bytes).unwrap();
                assert_eq!(found, (stable_hash(&key), length));
                for cut in 0..length {
                    assert!(hash_of_entry(&entry(expires), &bytes[..cut]).is_err());
                }
            }
        }
    }

    #[test]
    fn the_hash_of_a_key_by_its_shape_is_the_one_by_its_type() {
        agree([0_u64, 1, 300, u64::MAX]);
        agree([0_i32, -1, i32::MIN, i32::MAX]);
        agree(["", "word", "many words"].map(str::to_owned));
        agree([(1_u8, 'x', Some(true)), (255, 'ü', None)]);
        agree([Wrapped((-1, u128::MAX - 5, true)), Wrapped((7, 1, false))]);
        agree([(), ()]);
        agree([vec![1_i64, -2], vec![]]);
        agree([[1_u8, 2, 3]]);
        agree([BTreeMap::from([(1_u16, "a".to_owned()), (2, "b".to_owned())])]);
        let leaf = || Box::new(Tree::Leaf);
        let named = Box::new(Tree::Named { text: "t".to_owned(), more: Some(-3) });
        let inner = Box::new(Tree::Node(named, 9, Box::new(Tree::One('ß'))));
        agree([Tree::Leaf, Tree::Node(leaf(), 3, inner.clone()), Tree::Node(inner, 0, leaf())]);
    }

    #[test]
    fn bytes_that_announce_more_than_is_there_are_refused_in_time() {
        let shape = EntryShape {
            key: Arc::new(Shape::Seq(Box::new(Shape::Unit))),
            value: Arc::new(Shape::Unit),
            expires: false,
        };
        // A sequence of 2^62 elements without bytes.
        let bytes = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f];
        assert!(hash_of_entry(&shape, &bytes).is_err());
        let opaque = EntryShape { key: Arc::new(Shape::Opaque), ..shape };
        assert!(!is_readable(&opaque));
        assert!(hash_of_entry(&opaque, &[0]).is_err());
    }
}
