//! Finding the shape of a type: its `Deserialize` is given made-up values, and what it asks for is written down.
//!
//! One run of `Deserialize` sees one variant of each enum, so it is run until nothing is unknown. A type that comes back to
//! itself is given the least value that ends it. A type that refuses a value, because it validates, is offered others; if it
//! takes none of them it cannot be traced.

use std::any::type_name;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Deserialize;
use serde::de::value::{BorrowedStrDeserializer, U32Deserializer};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};

use super::{DEPTH_MAX, DESCENDING, Field, NODES_MAX, Shape};

/// How many calls of all runs together are made.
const STEPS_MAX: u32 = 200_000;
/// How many times a run is repeated with other values.
const TRIES_MAX: u32 = 200;

/// What texts are offered, in this order: many types that are written as text take one of these.
const TEXTS: [&str; 10] = [
    "a",
    "1",
    "",
    "2000-01-01T00:00:00Z",
    "2000-01-01",
    "00:00:00",
    "2000-01-01T00:00:00",
    "127.0.0.1",
    "67e55044-10b1-426f-9247-bb680e5fe0c8",
    "http://localhost/",
];
const BYTES: [&[u8]; 6] = [&[1], &[], &[1; 16], &[1; 4], &[1; 8], &[1; 32]];

/// A type's shape cannot be found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the shape of {type_name} is not known: {why}")]
pub struct Untraceable {
    /// The type.
    pub type_name: &'static str,
    /// Why.
    pub why: String,
    /// Whether the type cannot be read from postcard at all: it asks for a format that describes itself.
    pub is_unreadable: bool,
}

/// The shape of `T`.
///
/// # Errors
/// [`Untraceable`] if `T` validates what it reads and takes none of the values that are tried, if it needs a format that
/// describes itself, if it is too large, or if its `Deserialize` panics.
pub fn trace<T: DeserializeOwned>() -> Result<Shape, Untraceable> {
    let mut tracer = Tracer::default();
    let mut root = Node::Unknown;
    let refuse = |why: String, is_unreadable| {
        Err(Untraceable { type_name: type_name::<T>(), why, is_unreadable })
    };
    loop {
        if root.unknown() == 0 {
            break;
        }
        let before = (root.unknown(), root.size());
        if let Err(why) = tracer.run::<T>(&mut root) {
            return refuse(why, tracer.asked_for_any);
        }
        if root.size() > NODES_MAX {
            return refuse("it is too large".to_owned(), false);
        }
        if (root.unknown(), root.size()) == before {
            return refuse("a part of it is never asked for".to_owned(), false);
        }
    }
    Ok(root.into_shape())
}

/// What is known of a shape.
#[derive(Clone)]
enum Node {
    Unknown,
    Leaf(Shape),
    Option(Box<Node>),
    Seq(Box<Node>),
    Map(Box<(Node, Node)>),
    Tuple(Vec<Node>),
    Struct(Vec<(&'static str, Node)>),
    Enum(Vec<(String, Node)>),
    Up(u32),
}

impl Node {
    fn inner(&self) -> Vec<&Self> {
        match self {
            Self::Unknown | Self::Leaf(_) | Self::Up(_) => Vec::new(),
            Self::Option(inner) | Self::Seq(inner) => vec![inner],
            Self::Map(entry) => vec![&entry.0, &entry.1],
            Self::Tuple(elements) => elements.iter().collect(),
            Self::Struct(fields) => fields.iter().map(|(_, node)| node).collect(),
            Self::Enum(variants) => variants.iter().map(|(_, node)| node).collect(),
        }
    }

    /// Number of nodes that are not known yet.
    fn unknown(&self) -> usize {
        match self {
            Self::Unknown => 1,
            node => node.inner().into_iter().map(Self::unknown).sum(),
        }
    }

    fn size(&self) -> usize {
        1 + self.inner().into_iter().map(Self::size).sum::<usize>()
    }

    fn into_shape(self) -> Shape {
        let boxed = |node: Self| Box::new(node.into_shape());
        match self {
            Self::Unknown => Shape::Opaque,
            Self::Leaf(shape) => shape,
            Self::Option(inner) => Shape::Option(boxed(*inner)),
            Self::Seq(inner) => Shape::Seq(boxed(*inner)),
            Self::Map(entry) => Shape::Map(boxed(entry.0), boxed(entry.1)),
            Self::Tuple(elements) => {
                Shape::Tuple(elements.into_iter().map(Self::into_shape).collect())
            }
            Self::Struct(fields) => Shape::Struct(
                fields
                    .into_iter()
                    .map(|(name, node)| Field { name: name.to_owned(), shape: node.into_shape() })
                    .collect(),
            ),
            Self::Enum(variants) => Shape::Enum(
                variants
                    .into_iter()
                    .map(|(name, node)| Field { name, shape: node.into_shape() })
                    .collect(),
            ),
            Self::Up(levels) => Shape::Up(levels),
        }
    }
}

/// A composite that is being read.
struct Frame {
    /// The type of the visitor, which says for what type it is.
    identity: &'static str,
    variant: Option<u32>,
}

#[derive(Default)]
struct Tracer {
    stack: Vec<Frame>,
    /// Above 0: inside of a type that comes back to itself. Nothing is written down, and values are least ones.
    least: u32,
    /// How many choices there were at each point of this run.
    choices: Vec<usize>,
    /// What is chosen at the first points; at others the first choice.
    chosen: Vec<usize>,
    /// The variant of each enum that has ended soonest, and after how many steps.
    ended: BTreeMap<&'static str, (u32, u32)>,
    /// Enums that have fewer variants than they name, because some have several names.
    variants: BTreeMap<&'static str, u32>,
    /// Structs with fields of several names: one name each, as far as that is known; `None`: they cannot be read by name.
    fields: BTreeMap<&'static str, Option<Vec<&'static str>>>,
    steps: u32,
    /// Why no other value would help.
    fatal: Option<String>,
    asked_for_any: bool,
    /// What is not in the tree was learned: the same values are worth another try.
    learned: bool,
}

impl Tracer {
    /// Reads one value. If it is refused, another one, until one is taken.
    fn run<T: DeserializeOwned>(&mut self, root: &mut Node) -> Result<(), String> {
        self.chosen.clear();
        for _ in 0..TRIES_MAX {
            let mut node = root.clone();
            let ended = self.ended.clone();
            self.stack.clear();
            self.choices.clear();
            self.least = 0;
            let at = At { tracer: self, node: &mut node };
            // Whatever it is made to do, it has nothing of ours but the tracer, which is reset.
            let read = catch_unwind(AssertUnwindSafe(|| T::deserialize(at).map(drop)));
            let error = match read {
                Ok(Ok(())) => {
                    *root = node;
                    return Ok(());
                }
                Ok(Err(error)) => error.why,
                Err(_) => return Err("its Deserialize panics".to_owned()),
            };
            self.ended = ended;
            if let Some(why) = self.fatal.take() {
                return Err(why);
            }
            if std::mem::take(&mut self.learned) {
                self.chosen.clear();
            } else if !self.choose_otherwise() {
                return Err(error);
            }
        }
        Err("it refuses every value that is tried".to_owned())
    }

    /// The last choice is the most likely to have been refused.
    fn choose_otherwise(&mut self) -> bool {
        self.chosen.resize(self.choices.len(), 0);
        while let (Some(chosen), Some(choices)) = (self.chosen.pop(), self.choices.pop()) {
            if chosen + 1 < choices {
                self.chosen.push(chosen + 1);
                return true;
            }
        }
        false
    }

    fn choose(&mut self, choices: usize) -> usize {
        let chosen = self.chosen.get(self.choices.len()).copied().unwrap_or(0);
        self.choices.push(choices);
        chosen.min(choices - 1)
    }

    fn step(&mut self) -> Result<(), Refused> {
        self.steps += 1;
        if self.steps > STEPS_MAX || self.stack.len() > DEPTH_MAX {
            return Err(self.fail("it is too large, or too deep"));
        }
        Ok(())
    }

    fn fail(&mut self, why: &str) -> Refused {
        self.fatal.get_or_insert_with(|| why.to_owned());
        Refused::new(why)
    }

    /// Reads a struct by the names of its fields; learns which of them are one field's.
    fn read_named<'de, V: Visitor<'de>>(
        &mut self,
        identity: &'static str,
        kept: &[&'static str],
        nodes: &mut Vec<Node>,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        nodes.resize(kept.len(), Node::Unknown);
        let mut named = Named { tracer: self, names: kept, nodes, fed: 0 };
        let result = visitor.visit_map(&mut named);
        let fed = named.fed;
        result.map_err(|error| {
            if let Some(name) = error.duplicate {
                // Names of one field are beside each other.
                let is_other = |at: &usize| *at + 1 != fed && *at + 2 != fed || kept[*at] == name;
                let kept = (0..kept.len()).filter(is_other).map(|at| kept[at]).collect();
                self.fields.insert(identity, Some(kept));
                self.learned = true;
            } else if error.why.starts_with("invalid type: map") {
                self.fields.insert(identity, None);
                self.learned = true;
            }
            Refused::new(error.why)
        })
    }

    /// The variant to give where nothing is to be learned: one that ends.
    fn least_variant(&mut self, identity: &'static str, count: u32) -> Result<u32, Refused> {
        if let Some((variant, _)) = self.ended.get(identity) {
            return Ok(*variant);
        }
        let busy = |variant: &u32| {
            self.stack
                .iter()
                .any(|frame| frame.identity == identity && frame.variant == Some(*variant))
        };
        (0..count).find(|variant| !busy(variant)).ok_or_else(|| Refused::new("it never ends"))
    }
}

/// The error of a made-up value.
#[derive(Debug)]
struct Refused {
    why: String,
    /// The name of the field that was there twice.
    duplicate: Option<&'static str>,
}

impl Refused {
    fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), duplicate: None }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Refused {}

impl de::Error for Refused {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self { why: format!("{field} is there twice"), duplicate: Some(field) }
    }
}

/// A place in the shape, where a value is asked for.
struct At<'t> {
    tracer: &'t mut Tracer,
    node: &'t mut Node,
}

impl At<'_> {
    /// Reads a composite. `read` gets its node, which is `fresh` if it is new, and whether the least value will do.
    fn composite<R>(
        self,
        identity: &'static str,
        fresh: impl FnOnce() -> Node,
        read: impl FnOnce(At<'_>, bool) -> Result<R, Refused>,
    ) -> Result<R, Refused> {
        let Self { tracer, node } = self;
        tracer.step()?;
        let mut scratch = Node::Unknown;
        let mut node = node;
        let mut entered = false;
        if tracer.least == 0 {
            let above = tracer.stack.iter().rev().position(|frame| frame.identity == identity);
            if let Some(levels) = above {
                *node = Node::Up(levels as u32);
                tracer.least += 1;
                entered = true;
            }
        }
        if tracer.least > 0 {
            node = &mut scratch;
        }
        if matches!(node, Node::Unknown) {
            *node = fresh();
        }
        let is_known = tracer.least > 0 || node.unknown() == 0;
        tracer.stack.push(Frame { identity, variant: None });
        let result = read(At { tracer: &mut *tracer, node }, is_known);
        tracer.stack.pop();
        tracer.least -= u32::from(entered);
        result
    }

    fn leaf(self, shape: Shape, choices: usize) -> Result<usize, Refused> {
        self.tracer.step()?;
        if self.tracer.least == 0 {
            *self.node = Node::Leaf(shape);
        }
        Ok(self.tracer.choose(choices))
    }

    fn refuse_any<R>(self) -> Result<R, Refused> {
        self.tracer.asked_for_any = true;
        Err(self.tracer.fail("it needs a format that describes itself"))
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $shape:ident [$($value:literal),+];)+) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
            let values = [$($value),+];
            let chosen = self.leaf(Shape::$shape, values.len())?;
            visitor.$visit(values[chosen])
        }
    )+};
}

impl<'de> de::Deserializer<'de> for At<'_> {
    type Error = Refused;

    fn is_human_readable(&self) -> bool {
        false
    }

    numbers! {
        deserialize_bool visit_bool Bool [false, true];
        deserialize_i8 visit_i8 I8 [1, 0, 2, 100];
        deserialize_i16 visit_i16 I16 [1, 0, 2, 100];
        deserialize_i32 visit_i32 I32 [1, 0, 2, 100];
        deserialize_i64 visit_i64 I64 [1, 0, 2, 100];
        deserialize_i128 visit_i128 I128 [1, 0, 2, 100];
        deserialize_u8 visit_u8 U8 [1, 0, 2, 100];
        deserialize_u16 visit_u16 U16 [1, 0, 2, 100];
        deserialize_u32 visit_u32 U32 [1, 0, 2, 100];
        deserialize_u64 visit_u64 U64 [1, 0, 2, 100];
        deserialize_u128 visit_u128 U128 [1, 0, 2, 100];
        deserialize_f32 visit_f32 F32 [1.0, 0.0, 0.5];
        deserialize_f64 visit_f64 F64 [1.0, 0.0, 0.5];
        deserialize_char visit_char Char ['a', '0'];
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Refused> {
        self.refuse_any()
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Refused> {
        self.refuse_any()
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Refused> {
        self.refuse_any()
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        let chosen = self.leaf(Shape::Str, TEXTS.len())?;
        visitor.visit_borrowed_str(TEXTS[chosen])
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        let chosen = self.leaf(Shape::Bytes, BYTES.len())?;
        visitor.visit_borrowed_bytes(BYTES[chosen])
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.leaf(Shape::Unit, 1)?;
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        if name == DESCENDING {
            // It is not the value by itself: rows that are sorted by it have other keys.
            return self.deserialize_tuple(1, visitor);
        }
        self.tracer.step()?;
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        let fresh = || Node::Option(Box::new(Node::Unknown));
        self.composite(type_name::<V>(), fresh, |At { tracer, node }, is_known| {
            let Node::Option(inner) = node else { return Err(tracer.fail(CHANGED)) };
            if (tracer.choose(2) == 0) == is_known {
                visitor.visit_none()
            } else {
                visitor.visit_some(At { tracer, node: inner })
            }
        })
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        let fresh = || Node::Seq(Box::new(Node::Unknown));
        self.composite(type_name::<V>(), fresh, |At { tracer, node }, is_known| {
            let Node::Seq(inner) = node else { return Err(tracer.fail(CHANGED)) };
            let left = lengths(tracer, is_known);
            visitor.visit_seq(Repeated { tracer, node: inner, left })
        })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        let fresh = || Node::Map(Box::new((Node::Unknown, Node::Unknown)));
        self.composite(type_name::<V>(), fresh, |At { tracer, node }, is_known| {
            let Node::Map(entry) = node else { return Err(tracer.fail(CHANGED)) };
            let left = lengths(tracer, is_known);
            visitor.visit_map(Entries { tracer, entry, left })
        })
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        let fresh = || Node::Tuple(Vec::new());
        self.composite(type_name::<V>(), fresh, |At { tracer, node }, _| {
            let mut nodes = match std::mem::replace(node, Node::Unknown) {
                Node::Tuple(nodes) => nodes,
                // A struct whose fields cannot be told apart by name.
                _ => return Err(tracer.fail(CHANGED)),
            };
            let elements = Elements { tracer, nodes: &mut nodes, taken: 0, len };
            let value = visitor.visit_seq(elements)?;
            *node = Node::Tuple(nodes);
            Ok(value)
        })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        self.deserialize_tuple(len, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        let identity = type_name::<V>();
        let fresh = || Node::Tuple(Vec::new());
        self.composite(identity, fresh, |At { tracer, node }, _| {
            let mut nodes = match std::mem::replace(node, Node::Unknown) {
                Node::Tuple(nodes) => nodes,
                Node::Struct(fields) => fields.into_iter().map(|(_, node)| node).collect(),
                _ => return Err(tracer.fail(CHANGED)),
            };
            let known = tracer.fields.get(identity).cloned();
            if let Some(Some(kept)) = known {
                let value = tracer.read_named(identity, &kept, &mut nodes, visitor)?;
                *node = Node::Struct(kept.into_iter().zip(nodes).collect());
                return Ok(value);
            }
            let elements =
                Elements { tracer: &mut *tracer, nodes: &mut nodes, taken: 0, len: names.len() };
            let value = visitor.visit_seq(elements)?;
            if nodes.len() < names.len() && known.is_none() {
                // Some fields have several names. Which they are shows when it is read by name.
                tracer.fields.insert(identity, Some(names.to_vec()));
                tracer.learned = true;
                return Err(Refused::new("a field has several names"));
            }
            *node = if nodes.len() == names.len() {
                Node::Struct(names.iter().copied().zip(nodes).collect())
            } else {
                Node::Tuple(nodes)
            };
            Ok(value)
        })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        let identity = type_name::<V>();
        let count = self.tracer.variants.get(identity).copied();
        let fresh = || {
            let unknown = |name: &str| (name.to_owned(), Node::Unknown);
            Node::Enum(match count {
                None => names.iter().map(|name| unknown(name)).collect(),
                Some(count) => (0..count).map(|index| unknown(&index.to_string())).collect(),
            })
        };
        self.composite(identity, fresh, |At { tracer, node }, is_known| {
            let Node::Enum(variants) = node else { return Err(tracer.fail(CHANGED)) };
            // What an earlier run took for a variant.
            if let Some(count) = count {
                variants.truncate(count as usize);
                for (index, variant) in variants.iter_mut().enumerate() {
                    variant.0 = index.to_string();
                }
            }
            let count = variants.len() as u32;
            let unknown = variants.iter().position(|(_, node)| node.unknown() > 0);
            let index = match unknown.filter(|_| !is_known) {
                Some(index) => index as u32,
                None => tracer.least_variant(identity, count)?,
            };
            let Some((_, node)) = variants.get_mut(index as usize) else {
                return Err(tracer.fail("an enum without variants has no values"));
            };
            tracer.stack.last_mut().expect("its own frame").variant = Some(index);
            let before = tracer.steps;
            let access = Variant { tracer: &mut *tracer, node, identity, index };
            let value = visitor.visit_enum(access)?;
            let steps = tracer.steps - before;
            let ended = tracer.ended.entry(identity).or_insert((index, steps));
            if steps < ended.1 {
                *ended = (index, steps);
            }
            Ok(value)
        })
    }
}

const CHANGED: &str = "it does not ask for the same every time";

/// How many elements or entries to give.
fn lengths(tracer: &mut Tracer, is_known: bool) -> usize {
    let lengths = if is_known { [0, 1, 2] } else { [1, 0, 2] };
    lengths[tracer.choose(lengths.len())]
}

struct Repeated<'t> {
    tracer: &'t mut Tracer,
    node: &'t mut Node,
    left: usize,
}

impl<'de> SeqAccess<'de> for Repeated<'_> {
    type Error = Refused;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Refused> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        seed.deserialize(At { tracer: self.tracer, node: self.node }).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

struct Entries<'t> {
    tracer: &'t mut Tracer,
    entry: &'t mut (Node, Node),
    left: usize,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Refused;

    fn next_key_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Refused> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        seed.deserialize(At { tracer: self.tracer, node: &mut self.entry.0 }).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Refused> {
        seed.deserialize(At { tracer: self.tracer, node: &mut self.entry.1 })
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

/// At most `len` elements; postcard does not mind if fewer are taken.
struct Elements<'t> {
    tracer: &'t mut Tracer,
    nodes: &'t mut Vec<Node>,
    taken: usize,
    len: usize,
}

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = Refused;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Refused> {
        if self.taken == self.len {
            return Ok(None);
        }
        if self.taken == self.nodes.len() {
            self.nodes.push(Node::Unknown);
        }
        let node = &mut self.nodes[self.taken];
        self.taken += 1;
        seed.deserialize(At { tracer: self.tracer, node }).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.len - self.taken)
    }
}

/// The fields of a struct, by name.
struct Named<'t, 'n> {
    tracer: &'t mut Tracer,
    names: &'n [&'static str],
    nodes: &'t mut [Node],
    fed: usize,
}

impl<'de> MapAccess<'de> for Named<'_, '_> {
    type Error = Refused;

    fn next_key_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Refused> {
        let Some(name) = self.names.get(self.fed) else { return Ok(None) };
        self.fed += 1;
        seed.deserialize(BorrowedStrDeserializer::new(name)).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Refused> {
        let Some(node) = self.fed.checked_sub(1).and_then(|at| self.nodes.get_mut(at)) else {
            return Err(Refused::new("a value without a key"));
        };
        seed.deserialize(At { tracer: self.tracer, node })
    }
}

struct Variant<'t> {
    tracer: &'t mut Tracer,
    node: &'t mut Node,
    identity: &'static str,
    index: u32,
}

impl<'de, 't> EnumAccess<'de> for Variant<'t> {
    type Error = Refused;
    type Variant = At<'t>;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, At<'t>), Refused> {
        let Self { tracer, node, identity, index } = self;
        let number: U32Deserializer<Refused> = index.into_deserializer();
        match seed.deserialize(number) {
            Ok(value) => Ok((value, At { tracer, node })),
            Err(error) => {
                if index > 0 && tracer.least == 0 {
                    tracer.variants.insert(identity, index);
                    tracer.learned = true;
                }
                Err(error)
            }
        }
    }
}

impl<'de> VariantAccess<'de> for At<'_> {
    type Error = Refused;

    fn unit_variant(self) -> Result<(), Refused> {
        <()>::deserialize(self)
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Refused> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Refused> {
        de::Deserializer::deserialize_tuple(self, len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        de::Deserializer::deserialize_struct(self, "", names, visitor)
    }
}
