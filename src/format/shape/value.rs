//! Values without their types: decoded by a shape, and read again as any type that fits, by the names of fields.

use std::fmt;

use serde::de::value::BorrowedStrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, EnumAccess, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};

use serde::ser::{Serialize, SerializeTuple, Serializer};

use super::{Field, Shape};
use crate::format::FormatError;

/// How deep values may go: lists that are linked by pointers are the ones that do.
const DEPTH_MAX: usize = 200;

/// A value that was decoded by its shape. Borrows texts from the bytes, and names from the shape.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value<'a> {
    /// Nothing.
    Unit,
    /// A `bool`.
    Bool(bool),
    /// A signed number of up to 64 bits.
    Int(i64),
    /// A number of up to 64 bits without a sign.
    Uint(u64),
    /// A signed number of 128 bits.
    Int128(i128),
    /// A number of 128 bits without a sign.
    Uint128(u128),
    /// An `f32`.
    F32(f32),
    /// An `f64`.
    F64(f64),
    /// A `char`.
    Char(char),
    /// Text.
    Str(&'a str),
    /// Bytes.
    Bytes(&'a [u8]),
    /// No value, where there could be one.
    None,
    /// A value, where there could be none.
    Some(Box<Value<'a>>),
    /// A sequence.
    Seq(Vec<Value<'a>>),
    /// A tuple.
    Tuple(Vec<Value<'a>>),
    /// Keys with values, in the order of the bytes.
    Map(Vec<(Value<'a>, Value<'a>)>),
    /// Fields with their names.
    Struct(Vec<(&'a str, Value<'a>)>),
    /// A variant's number and name, and what it holds.
    Variant(u32, &'a str, Box<Value<'a>>),
}

/// Reads a value of this shape from the start of `bytes`, and returns what is behind it.
///
/// # Errors
/// [`FormatError::Corrupt`] if the bytes are not such a value, or if it is opaque or nested too deep.
pub fn decode_value<'a>(
    shape: &'a Shape,
    bytes: &'a [u8],
) -> Result<(Value<'a>, &'a [u8]), FormatError> {
    // A value that takes no bytes may be there any number of times, so the number of nodes is bounded as well.
    let nodes_left = (bytes.len() as u64 + 64) * 64;
    let mut decoder = Decoder { rest: bytes, above: Vec::new(), depth: 0, nodes_left };
    let value = decoder
        .value(shape)
        .map_err(|why| FormatError::corrupt((bytes.len() - decoder.rest.len()) as u64, why))?;
    Ok((value, decoder.rest))
}

struct Decoder<'a> {
    rest: &'a [u8],
    /// The composite shapes around the one that is being read.
    above: Vec<&'a Shape>,
    depth: usize,
    nodes_left: u64,
}

impl<'a> Decoder<'a> {
    fn leaf<T: serde::Deserialize<'a>>(&mut self) -> Result<T, String> {
        let (value, rest) =
            postcard::take_from_bytes(self.rest).map_err(|error| error.to_string())?;
        self.rest = rest;
        Ok(value)
    }

    fn value(&mut self, shape: &'a Shape) -> Result<Value<'a>, String> {
        self.nodes_left = self.nodes_left.checked_sub(1).ok_or("there are too many values")?;
        Ok(match shape {
            Shape::Opaque => return Err("its shape is not known".to_owned()),
            Shape::Unit => Value::Unit,
            Shape::Bool => Value::Bool(self.leaf()?),
            Shape::I8 => Value::Int(self.leaf::<i8>()?.into()),
            Shape::I16 => Value::Int(self.leaf::<i16>()?.into()),
            Shape::I32 => Value::Int(self.leaf::<i32>()?.into()),
            Shape::I64 => Value::Int(self.leaf()?),
            Shape::I128 => Value::Int128(self.leaf()?),
            Shape::U8 => Value::Uint(self.leaf::<u8>()?.into()),
            Shape::U16 => Value::Uint(self.leaf::<u16>()?.into()),
            Shape::U32 => Value::Uint(self.leaf::<u32>()?.into()),
            Shape::U64 => Value::Uint(self.leaf()?),
            Shape::U128 => Value::Uint128(self.leaf()?),
            Shape::F32 => Value::F32(self.leaf()?),
            Shape::F64 => Value::F64(self.leaf()?),
            Shape::Char => Value::Char(self.leaf()?),
            Shape::Str => Value::Str(self.leaf()?),
            Shape::Bytes => Value::Bytes(self.leaf()?),
            Shape::Up(levels) => {
                let at = self.above.len().checked_sub(1 + *levels as usize);
                // What is above that one is as it was there.
                let inside = self.above.split_off(at.ok_or("the shape leads out of itself")?);
                let value = self.value(inside[0]);
                self.above.extend(inside);
                value?
            }
            composite => {
                if self.depth == DEPTH_MAX {
                    return Err("it is nested too deep".to_owned());
                }
                self.depth += 1;
                self.above.push(composite);
                let value = self.composite(composite);
                self.above.pop();
                self.depth -= 1;
                value?
            }
        })
    }

    fn composite(&mut self, shape: &'a Shape) -> Result<Value<'a>, String> {
        Ok(match shape {
            Shape::Option(inner) => match self.leaf::<u8>()? {
                0 => Value::None,
                1 => Value::Some(Box::new(self.value(inner)?)),
                other => return Err(format!("{other} says neither some nor none")),
            },
            Shape::Seq(inner) => {
                let len = self.leaf::<usize>()?;
                let mut elements = Vec::new();
                for _ in 0..len {
                    elements.push(self.value(inner)?);
                }
                Value::Seq(elements)
            }
            Shape::Map(key, value) => {
                let len = self.leaf::<usize>()?;
                let mut entries = Vec::new();
                for _ in 0..len {
                    entries.push((self.value(key)?, self.value(value)?));
                }
                Value::Map(entries)
            }
            Shape::Tuple(elements) => Value::Tuple(
                elements.iter().map(|shape| self.value(shape)).collect::<Result<_, _>>()?,
            ),
            Shape::Struct(fields) => {
                let mut values = Vec::with_capacity(fields.len());
                for Field { name, shape } in fields {
                    values.push((name.as_str(), self.value(shape)?));
                }
                Value::Struct(values)
            }
            Shape::Enum(variants) => {
                let index = self.leaf::<u32>()?;
                let Some(Field { name, shape }) = variants.get(index as usize) else {
                    return Err(format!("there is no variant {index}"));
                };
                Value::Variant(index, name, Box::new(self.value(shape)?))
            }
            _ => return Err("this is no composite".to_owned()),
        })
    }
}

/// Reads `value` as a `T`: fields by their names, what is missing by `#[serde(default)]`, numbers at any width.
///
/// # Errors
/// What `T` says, in words.
pub fn deserialize_value<T: DeserializeOwned>(value: Value<'_>) -> Result<T, String> {
    T::deserialize(value).map_err(|Misfit(why)| why)
}

/// A made-up value of a shape: options are there, sequences and maps have one element. Enums hold the variant `number`, modulo
/// the number of variants. `None` if part of it is opaque or never ends.
#[must_use]
pub fn sample(shape: &Shape, number: usize) -> Option<Value<'_>> {
    sample_in(shape, number, &mut Vec::new(), 0)
}

fn sample_in<'a>(
    shape: &'a Shape,
    number: usize,
    above: &mut Vec<&'a Shape>,
    depth: usize,
) -> Option<Value<'a>> {
    if depth > 64 {
        return None;
    }
    // Inside of what comes back to itself, the least value.
    let is_least = depth > above.len();
    let mut inner = |shape: &'a Shape, composite: &'a Shape| {
        above.push(composite);
        let value = sample_in(shape, number, above, depth + 1);
        above.pop();
        value
    };
    Some(match shape {
        Shape::Opaque => return None,
        Shape::Unit => Value::Unit,
        Shape::Bool => Value::Bool(false),
        Shape::I8 | Shape::I16 | Shape::I32 | Shape::I64 => Value::Int(1),
        Shape::I128 => Value::Int128(1),
        Shape::U8 | Shape::U16 | Shape::U32 | Shape::U64 => Value::Uint(1),
        Shape::U128 => Value::Uint128(1),
        Shape::F32 => Value::F32(1.0),
        Shape::F64 => Value::F64(1.0),
        Shape::Char => Value::Char('a'),
        Shape::Str => Value::Str("a"),
        Shape::Bytes => Value::Bytes(&[1]),
        Shape::Option(_) if is_least => Value::None,
        Shape::Option(some) => Value::Some(Box::new(inner(some, shape)?)),
        Shape::Seq(_) if is_least => Value::Seq(Vec::new()),
        Shape::Seq(element) => Value::Seq(vec![inner(element, shape)?]),
        Shape::Map(..) if is_least => Value::Map(Vec::new()),
        Shape::Map(key, value) => Value::Map(vec![(inner(key, shape)?, inner(value, shape)?)]),
        Shape::Tuple(elements) => Value::Tuple(
            elements.iter().map(|element| inner(element, shape)).collect::<Option<_>>()?,
        ),
        Shape::Struct(fields) => {
            let field = |field: &'a Field| Some((field.name.as_str(), inner(&field.shape, shape)?));
            Value::Struct(fields.iter().map(field).collect::<Option<_>>()?)
        }
        Shape::Enum(variants) => {
            let first = number % variants.len().max(1);
            // One that does not end is passed over where another will do.
            let mut order = (0..variants.len()).map(|at| (first + at) % variants.len());
            let all = if is_least { variants.len() } else { 1 };
            let mut found = order.by_ref().take(all).filter_map(|at| {
                let variant = &variants[at];
                let value = Box::new(inner(&variant.shape, shape)?);
                Some(Value::Variant(at as u32, &variant.name, value))
            });
            found.next()?
        }
        Shape::Up(levels) => {
            let at = above.len().checked_sub(1 + *levels as usize)?;
            let inside = above.split_off(at);
            let value = sample_in(inside[0], number + 1, above, depth + 1);
            above.extend(inside);
            value?
        }
    })
}

/// The error of a value that does not fit.
#[derive(Debug)]
pub struct Misfit(String);

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Misfit {}

impl de::Error for Misfit {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

/// Makes the calls that the type itself makes, as far as the stable hash of keys goes.
impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unit => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(value) => serializer.serialize_i64(*value),
            Self::Uint(value) => serializer.serialize_u64(*value),
            Self::Int128(value) => serializer.serialize_i128(*value),
            Self::Uint128(value) => serializer.serialize_u128(*value),
            Self::F32(value) => serializer.serialize_f32(*value),
            Self::F64(value) => serializer.serialize_f64(*value),
            Self::Char(value) => serializer.serialize_char(*value),
            Self::Str(value) => serializer.serialize_str(value),
            Self::Bytes(value) => serializer.serialize_bytes(value),
            Self::None => serializer.serialize_none(),
            Self::Some(value) => serializer.serialize_some(value),
            Self::Seq(values) => serializer.collect_seq(values),
            Self::Map(entries) => serializer.collect_map(entries.iter().map(|(k, v)| (k, v))),
            Self::Tuple(values) => {
                let mut tuple = serializer.serialize_tuple(values.len())?;
                values.iter().try_for_each(|value| tuple.serialize_element(value))?;
                tuple.end()
            }
            Self::Struct(fields) => {
                let mut tuple = serializer.serialize_tuple(fields.len())?;
                fields.iter().try_for_each(|(_, value)| tuple.serialize_element(value))?;
                tuple.end()
            }
            Self::Variant(index, _, value) => {
                serializer.serialize_newtype_variant("", *index, "", value)
            }
        }
    }
}

impl<'de> de::Deserializer<'de> for Value<'de> {
    type Error = Misfit;

    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self {
            Self::Unit => visitor.visit_unit(),
            Self::Bool(value) => visitor.visit_bool(value),
            Self::Int(value) => visitor.visit_i64(value),
            Self::Uint(value) => visitor.visit_u64(value),
            Self::Int128(value) => visitor.visit_i128(value),
            Self::Uint128(value) => visitor.visit_u128(value),
            Self::F32(value) => visitor.visit_f32(value),
            Self::F64(value) => visitor.visit_f64(value),
            Self::Char(value) => visitor.visit_char(value),
            Self::Str(value) => visitor.visit_borrowed_str(value),
            Self::Bytes(value) => visitor.visit_borrowed_bytes(value),
            Self::None => visitor.visit_none(),
            Self::Some(value) => visitor.visit_some(*value),
            Self::Seq(values) | Self::Tuple(values) => {
                visitor.visit_seq(Sequence(values.into_iter()))
            }
            Self::Map(entries) => {
                visitor.visit_map(Entries { entries: entries.into_iter(), value: None })
            }
            Self::Struct(fields) => {
                visitor.visit_map(Fields { fields: fields.into_iter(), value: None })
            }
            variant @ Self::Variant(..) => visitor.visit_enum(variant),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self {
            Self::None => visitor.visit_none(),
            Self::Some(value) => visitor.visit_some(*value),
            // What was there always is there.
            other => visitor.visit_some(other),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct Sequence<'a>(std::vec::IntoIter<Value<'a>>);

impl<'de> SeqAccess<'de> for Sequence<'de> {
    type Error = Misfit;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Misfit> {
        self.0.next().map(|value| seed.deserialize(value)).transpose()
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

struct Entries<'a> {
    entries: std::vec::IntoIter<(Value<'a>, Value<'a>)>,
    value: Option<Value<'a>>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Misfit;

    fn next_key_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Misfit> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        self.value = Some(value);
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Misfit> {
        seed.deserialize(self.value.take().unwrap_or(Value::Unit))
    }
}

struct Fields<'a> {
    fields: std::vec::IntoIter<(&'a str, Value<'a>)>,
    value: Option<Value<'a>>,
}

impl<'de> MapAccess<'de> for Fields<'de> {
    type Error = Misfit;

    fn next_key_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Misfit> {
        let Some((name, value)) = self.fields.next() else { return Ok(None) };
        self.value = Some(value);
        seed.deserialize(BorrowedStrDeserializer::new(name)).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Misfit> {
        seed.deserialize(self.value.take().unwrap_or(Value::Unit))
    }
}

impl<'de> EnumAccess<'de> for Value<'de> {
    type Error = Misfit;
    type Variant = Self;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self), Misfit> {
        let Self::Variant(_, name, content) = self else {
            return Err(de::Error::custom("this is no variant"));
        };
        Ok((seed.deserialize(BorrowedStrDeserializer::new(name))?, *content))
    }
}

impl<'de> VariantAccess<'de> for Value<'de> {
    type Error = Misfit;

    fn unit_variant(self) -> Result<(), Misfit> {
        match self {
            Self::Unit => Ok(()),
            _ => Err(de::Error::custom("the variant holds something")),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Misfit> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Misfit> {
        de::Deserializer::deserialize_any(self, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        de::Deserializer::deserialize_any(self, visitor)
    }
}
