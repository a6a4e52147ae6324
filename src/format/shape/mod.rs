//! Shapes: what the bytes of a type are, as data. Values are postcard, which does not describe itself; with the shape beside
//! them they can be compared with a program's types before anything is read, and read without the program.
//!
//! A shape is what a type's `Deserialize` asks for, one call a node, in order. The names of fields and variants belong to
//! it, because postcard goes by position and a swap of two fields of one type must not go unnoticed. The names of types do
//! not: renaming a type, moving it, or wrapping it into a newtype changes no byte.
//!
//! # Encoding
//! The nodes in preorder, each a postcard value (`Node`). The fingerprint is XXH3 (64 bits, seed 0) of these
//! bytes. A recursive type holds [`Shape::Up`] where it comes back to itself.

mod trace;
mod value;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

pub use trace::{Untraceable, trace};
pub use value::{Value, decode_value, deserialize_value, sample};

use super::{FormatError, codec};

/// Shapes with more nodes are opaque: nobody could read a message about them.
const NODES_MAX: usize = 4096;
/// How deep a shape goes at most.
const DEPTH_MAX: usize = 96;
/// The name under which a value comes that sorts the other way round. It has a shape of its own, as a tuple of one: rows that are
/// sorted by it have other keys than those of the value by itself.
pub(crate) const DESCENDING: &str = "highwater::Descending";
/// Units: characters of a shape in a message.
const TEXT_MAX: usize = 120;

/// What the bytes of a type are.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Shape {
    /// Not known: the type's `Deserialize` could not be seen through.
    #[default]
    Opaque,
    /// Nothing: no bytes.
    Unit,
    /// A `bool`.
    Bool,
    /// An `i8`.
    I8,
    /// An `i16`.
    I16,
    /// An `i32`.
    I32,
    /// An `i64`.
    I64,
    /// An `i128`.
    I128,
    /// A `u8`.
    U8,
    /// A `u16`.
    U16,
    /// A `u32`.
    U32,
    /// A `u64`.
    U64,
    /// A `u128`.
    U128,
    /// An `f32`.
    F32,
    /// An `f64`.
    F64,
    /// A `char`.
    Char,
    /// Text.
    Str,
    /// Bytes.
    Bytes,
    /// A value, or none.
    Option(Box<Shape>),
    /// Any number of values.
    Seq(Box<Shape>),
    /// Any number of keys with values.
    Map(Box<Shape>, Box<Shape>),
    /// So many values, without names.
    Tuple(Vec<Shape>),
    /// Values with names.
    Struct(Vec<Field>),
    /// One of several variants, each with what it holds: [`Shape::Unit`], one value, a tuple or a struct.
    Enum(Vec<Field>),
    /// The shape that is so many composite nodes above: 0 is the node that this one is in.
    Up(u32),
}

/// A field of a struct, or a variant of an enum.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub shape: Shape,
}

/// A node without what is in it: that follows.
#[derive(Serialize, Deserialize)]
enum Node {
    Opaque,
    Unit,
    Bool,
    I8,
    I16,
    I32,
    I64,
    I128,
    U8,
    U16,
    U32,
    U64,
    U128,
    F32,
    F64,
    Char,
    Str,
    Bytes,
    Option,
    Seq,
    Map,
    Tuple(u32),
    Struct(Vec<String>),
    Enum(Vec<String>),
    Up(u32),
}

impl Shape {
    /// Whether nothing is known of it.
    #[must_use]
    pub fn is_opaque(&self) -> bool {
        *self == Self::Opaque
    }

    /// The canonical bytes: equal shapes have equal ones.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode_into(&mut bytes);
        bytes
    }

    fn encode_into(&self, out: &mut Vec<u8>) {
        let names = |fields: &[Field]| fields.iter().map(|field| field.name.clone()).collect();
        let node = match self {
            Self::Opaque => Node::Opaque,
            Self::Unit => Node::Unit,
            Self::Bool => Node::Bool,
            Self::I8 => Node::I8,
            Self::I16 => Node::I16,
            Self::I32 => Node::I32,
            Self::I64 => Node::I64,
            Self::I128 => Node::I128,
            Self::U8 => Node::U8,
            Self::U16 => Node::U16,
            Self::U32 => Node::U32,
            Self::U64 => Node::U64,
            Self::U128 => Node::U128,
            Self::F32 => Node::F32,
            Self::F64 => Node::F64,
            Self::Char => Node::Char,
            Self::Str => Node::Str,
            Self::Bytes => Node::Bytes,
            Self::Option(_) => Node::Option,
            Self::Seq(_) => Node::Seq,
            Self::Map(..) => Node::Map,
            Self::Tuple(elements) => Node::Tuple(elements.len() as u32),
            Self::Struct(fields) => Node::Struct(names(fields)),
            Self::Enum(variants) => Node::Enum(names(variants)),
            Self::Up(levels) => Node::Up(*levels),
        };
        codec::encode(&node, out).expect("numbers and texts always encode");
        for inner in self.inner() {
            inner.encode_into(out);
        }
    }

    /// The shapes in it, in the order of the encoding.
    fn inner(&self) -> Vec<&Self> {
        match self {
            Self::Option(inner) | Self::Seq(inner) => vec![inner],
            Self::Map(key, value) => vec![key, value],
            Self::Tuple(elements) => elements.iter().collect(),
            Self::Struct(fields) | Self::Enum(fields) => {
                fields.iter().map(|field| &field.shape).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether there is no shape in it.
    #[must_use]
    pub fn is_leaf(&self) -> bool {
        self.inner().is_empty()
    }

    /// Reads what [`Shape::encode`] made.
    ///
    /// # Errors
    /// [`FormatError::Corrupt`], also if it is deeper or larger than any that this crate makes.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut nodes = 0;
        let (shape, rest) = Self::decode_prefix(bytes, 0, &mut nodes)?;
        if rest.is_empty() {
            return Ok(shape);
        }
        let at = (bytes.len() - rest.len()) as u64;
        Err(FormatError::corrupt(at, "bytes after the end of a shape"))
    }

    fn decode_prefix<'a>(
        bytes: &'a [u8],
        depth: usize,
        nodes: &mut usize,
    ) -> Result<(Self, &'a [u8]), FormatError> {
        *nodes += 1;
        if depth > DEPTH_MAX || *nodes > NODES_MAX {
            return Err(FormatError::corrupt(0, "a shape is too large"));
        }
        let (node, mut rest) = codec::decode_prefix::<Node>(bytes)?;
        let mut next = || -> Result<Self, FormatError> {
            let (shape, after) = Self::decode_prefix(rest, depth + 1, nodes)?;
            rest = after;
            Ok(shape)
        };
        let fields = |names: Vec<String>, next: &mut dyn FnMut() -> Result<Self, FormatError>| {
            let field = |name| Ok(Field { name, shape: next()? });
            names.into_iter().map(field).collect::<Result<Vec<_>, FormatError>>()
        };
        let shape = match node {
            Node::Opaque => Self::Opaque,
            Node::Unit => Self::Unit,
            Node::Bool => Self::Bool,
            Node::I8 => Self::I8,
            Node::I16 => Self::I16,
            Node::I32 => Self::I32,
            Node::I64 => Self::I64,
            Node::I128 => Self::I128,
            Node::U8 => Self::U8,
            Node::U16 => Self::U16,
            Node::U32 => Self::U32,
            Node::U64 => Self::U64,
            Node::U128 => Self::U128,
            Node::F32 => Self::F32,
            Node::F64 => Self::F64,
            Node::Char => Self::Char,
            Node::Str => Self::Str,
            Node::Bytes => Self::Bytes,
            Node::Option => Self::Option(Box::new(next()?)),
            Node::Seq => Self::Seq(Box::new(next()?)),
            Node::Map => Self::Map(Box::new(next()?), Box::new(next()?)),
            Node::Tuple(len) => Self::Tuple((0..len).map(|_| next()).collect::<Result<_, _>>()?),
            Node::Struct(names) => Self::Struct(fields(names, &mut next)?),
            Node::Enum(names) => Self::Enum(fields(names, &mut next)?),
            // Every node above is composite.
            Node::Up(levels) if (levels as usize) < depth => Self::Up(levels),
            Node::Up(_) => return Err(FormatError::corrupt(0, "a shape leads out of itself")),
        };
        Ok((shape, rest))
    }

    /// XXH3 of the canonical bytes. Two shapes with one fingerprint are taken for equal.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        xxh3_64(&self.encode())
    }

    /// How `held` differs from `wanted`, one line a place, each with the path of fields that leads there. Nothing if they are
    /// equal.
    #[must_use]
    pub fn differences(held: &Self, wanted: &Self, path: &str) -> Vec<String> {
        let mut found = Vec::new();
        compare(held, wanted, path, &mut found);
        found
    }

    /// Why a value of the shape `held` cannot be read field by field, by name, as one of `wanted`: the first line of
    /// reasons, with its path. A field that `held` does not have may have a default; that is not seen here.
    #[must_use]
    pub fn not_readable_by_name(held: &Self, wanted: &Self, path: &str) -> Option<String> {
        by_name(held, wanted, path)
    }
}

fn compare(held: &Shape, wanted: &Shape, path: &str, found: &mut Vec<String>) {
    match (held, wanted) {
        (held, wanted) if held == wanted => {}
        (Shape::Option(held), Shape::Option(wanted)) => {
            compare(held, wanted, &format!("{path}?"), found);
        }
        (Shape::Seq(held), Shape::Seq(wanted)) => {
            compare(held, wanted, &format!("{path}[]"), found);
        }
        (Shape::Map(held_key, held), Shape::Map(wanted_key, wanted)) => {
            compare(held_key, wanted_key, &format!("{path}{{key}}"), found);
            compare(held, wanted, &format!("{path}{{}}"), found);
        }
        (Shape::Tuple(held), Shape::Tuple(wanted)) if held.len() == wanted.len() => {
            for (at, (held, wanted)) in held.iter().zip(wanted).enumerate() {
                compare(held, wanted, &format!("{path}.{at}"), found);
            }
        }
        (Shape::Struct(held), Shape::Struct(wanted)) => {
            compare_named(held, wanted, path, ".", "fields", found);
        }
        (Shape::Enum(held), Shape::Enum(wanted)) => {
            compare_named(held, wanted, path, "::", "variants", found);
        }
        (held, wanted) => {
            found.push(format!("{path}: the checkpoint holds {held}, the program wants {wanted}"));
        }
    }
}

fn compare_named(
    held: &[Field],
    wanted: &[Field],
    path: &str,
    separator: &str,
    what: &str,
    found: &mut Vec<String>,
) {
    let before = found.len();
    for field in held {
        let path = format!("{path}{separator}{}", field.name);
        match wanted.iter().find(|wanted| wanted.name == field.name) {
            Some(wanted) => compare(&field.shape, &wanted.shape, &path, found),
            None => found.push(format!(
                "{path}: the checkpoint holds {}, the program has no such one",
                field.shape
            )),
        }
    }
    for field in wanted {
        if !held.iter().any(|held| held.name == field.name) {
            let path = format!("{path}{separator}{}", field.name);
            found.push(format!(
                "{path}: the checkpoint holds no such one, the program wants {}",
                field.shape
            ));
        }
    }
    if found.len() == before {
        let names = |fields: &[Field]| {
            fields.iter().map(|field| field.name.as_str()).collect::<Vec<_>>().join(", ")
        };
        found.push(format!(
            "{path}: the {what} are in another order: the checkpoint has {}, the program {}",
            names(held),
            names(wanted)
        ));
    }
}

fn by_name(held: &Shape, wanted: &Shape, path: &str) -> Option<String> {
    let refuse =
        || Some(format!("{path}: the checkpoint holds {held}, the program wants {wanted}"));
    let inner =
        |held: &Shape, wanted: &Shape, step: &str| by_name(held, wanted, &format!("{path}{step}"));
    match (held, wanted) {
        (Shape::Opaque, _) | (_, Shape::Opaque) => refuse(),
        (held, wanted) if held == wanted => None,
        (held, wanted) if widens(held, wanted) => None,
        (Shape::Option(held), Shape::Option(wanted)) => inner(held, wanted, "?"),
        (held, Shape::Option(wanted)) => inner(held, wanted, "?"),
        (Shape::Seq(held), Shape::Seq(wanted)) => inner(held, wanted, "[]"),
        (Shape::Map(held_key, held), Shape::Map(wanted_key, wanted)) => {
            inner(held_key, wanted_key, "{key}").or_else(|| inner(held, wanted, "{}"))
        }
        (Shape::Tuple(held), Shape::Tuple(wanted)) if held.len() == wanted.len() => {
            let mut pairs = held.iter().zip(wanted).enumerate();
            pairs.find_map(|(at, (held, wanted))| inner(held, wanted, &format!(".{at}")))
        }
        (Shape::Struct(held), Shape::Struct(wanted)) => held.iter().find_map(|field| {
            // One that the program does not have is passed over.
            let wanted = wanted.iter().find(|wanted| wanted.name == field.name)?;
            inner(&field.shape, &wanted.shape, &format!(".{}", field.name))
        }),
        (Shape::Enum(held), Shape::Enum(wanted)) => held.iter().find_map(|variant| {
            let step = format!("::{}", variant.name);
            match wanted.iter().find(|wanted| wanted.name == variant.name) {
                Some(wanted) => inner(&variant.shape, &wanted.shape, &step),
                None => Some(format!("{path}{step}: the program has no such variant")),
            }
        }),
        _ => refuse(),
    }
}

/// Whether every number of `held` is one of `wanted`.
fn widens(held: &Shape, wanted: &Shape) -> bool {
    let unsigned = |shape: &Shape| match shape {
        Shape::U8 => Some(8),
        Shape::U16 => Some(16),
        Shape::U32 => Some(32),
        Shape::U64 => Some(64),
        Shape::U128 => Some(128),
        _ => None,
    };
    let signed = |shape: &Shape| match shape {
        Shape::I8 => Some(8),
        Shape::I16 => Some(16),
        Shape::I32 => Some(32),
        Shape::I64 => Some(64),
        Shape::I128 => Some(128),
        _ => None,
    };
    match (unsigned(held), signed(held), unsigned(wanted), signed(wanted)) {
        (Some(held), _, Some(wanted), _) | (_, Some(held), _, Some(wanted)) => held <= wanted,
        (Some(held), _, _, Some(wanted)) => held < wanted,
        _ => (held, wanted) == (&Shape::F32, &Shape::F64),
    }
}

impl fmt::Display for Shape {
    /// As short as a message should be: what does not fit is left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.write(&mut text);
        if text.len() > TEXT_MAX {
            let mut end = TEXT_MAX;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            text.push_str("...");
        }
        f.write_str(&text)
    }
}

impl Shape {
    fn write(&self, out: &mut String) {
        // What is behind is cut off anyway.
        if out.len() > TEXT_MAX {
            return;
        }
        let name = match self {
            Self::Opaque => "what only its type knows",
            Self::Unit => "()",
            Self::Bool => "bool",
            Self::I8 => "i8",
            Self::I16 => "i16",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::I128 => "i128",
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::U32 => "u32",
            Self::U64 => "u64",
            Self::U128 => "u128",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::Char => "char",
            Self::Str => "String",
            Self::Bytes => "bytes",
            Self::Up(_) => "Self",
            Self::Option(inner) => return wrap(out, "Option<", &[inner], ">"),
            Self::Seq(inner) => return wrap(out, "[", &[inner], "]"),
            Self::Map(key, value) => return wrap(out, "Map<", &[key, value], ">"),
            Self::Tuple(elements) => {
                return wrap(out, "(", &elements.iter().collect::<Vec<_>>(), ")");
            }
            Self::Struct(fields) => {
                out.push('{');
                for (at, Field { name, shape }) in fields.iter().enumerate() {
                    out.push_str(if at > 0 { ", " } else { "" });
                    out.push_str(name);
                    out.push_str(": ");
                    shape.write(out);
                }
                out.push('}');
                return;
            }
            Self::Enum(variants) => {
                for (at, Field { name, shape }) in variants.iter().enumerate() {
                    out.push_str(if at > 0 { " | " } else { "" });
                    out.push_str(name);
                    match shape {
                        Self::Unit => {}
                        Self::Tuple(_) | Self::Struct(_) => shape.write(out),
                        shape => wrap(out, "(", &[shape], ")"),
                    }
                }
                return;
            }
        };
        out.push_str(name);
    }
}

fn wrap(out: &mut String, before: &str, inner: &[&Shape], after: &str) {
    out.push_str(before);
    for (at, shape) in inner.iter().enumerate() {
        out.push_str(if at > 0 { ", " } else { "" });
        shape.write(out);
    }
    out.push_str(after);
}

impl Serialize for Shape {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.encode())
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the bytes of a shape")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Shape, E> {
                Shape::decode(bytes).map_err(E::custom)
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

/// What an entry of a section is: a key, the time of its last update if it expires, and a value. Sections without keys have
/// [`Shape::Unit`] for one. Clones share the shapes.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EntryShape {
    /// What a key is.
    #[serde(with = "shared")]
    pub key: Arc<Shape>,
    /// What is kept for it.
    #[serde(with = "shared")]
    pub value: Arc<Shape>,
    /// Whether the time of the last update (`i64`, milliseconds since 1970) is between the two.
    pub expires: bool,
}

impl EntryShape {
    /// Entries without keys.
    #[must_use]
    pub fn of_values(value: Arc<Shape>) -> Self {
        Self { key: Arc::new(Shape::Unit), value, expires: false }
    }

    /// Of the key's and the value's, whether it expires or not. `None` if one is not known.
    #[must_use]
    pub fn fingerprint(&self) -> Option<u64> {
        if self.key.is_opaque() || self.value.is_opaque() {
            return None;
        }
        let mut bytes = self.key.encode();
        self.value.encode_into(&mut bytes);
        Some(xxh3_64(&bytes))
    }
}

impl fmt::Display for EntryShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, expires } = self;
        let until = if *expires { ", expires" } else { "" };
        match **key {
            Shape::Unit => write!(f, "{value}{until}"),
            _ => write!(f, "{key} -> {value}{until}"),
        }
    }
}

mod shared {
    //! A shape behind a pointer is written as the shape.

    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Shape;

    pub(super) fn serialize<S: Serializer>(shape: &Arc<Shape>, to: S) -> Result<S::Ok, S::Error> {
        shape.as_ref().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<Shape>, D::Error> {
        Shape::deserialize(from).map(Arc::new)
    }
}

#[cfg(test)]
mod tests;
