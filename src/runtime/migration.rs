//! Whether the state in a checkpoint fits the program's types, and what is done with it if it is older.
//!
//! State is converted while it is restored: the entries of a block are decoded as what they were, converted, and encoded
//! again as what the program keeps. So a backend never sees anything else than its own types, and the next checkpoint holds
//! nothing old.

use std::any::{Any, TypeId, type_name};
use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::format::part::EntryBlock;
use crate::format::shape::{Shape, decode_value, deserialize_value, sample};
use crate::format::{FormatError, SectionHeader, codec};
use crate::runtime::kinds::Kind;
use crate::runtime::restore::short;
use crate::runtime::shapes::shape_of;
use crate::state::StateValue;

/// How many variants of each enum are tried.
const SAMPLES: usize = 32;

/// Converts one unit (a value, an element of a list, a value of a map) at the start of the bytes, appends the result, and returns
/// what is behind it.
pub(crate) type ConvertUnit<'c> =
    dyn for<'a> FnMut(&'a [u8], &mut Vec<u8>) -> Result<&'a [u8], FormatError> + 'c;

/// A type, without the type.
#[derive(Clone, Copy)]
struct AnyType {
    id: TypeId,
    name: &'static str,
    shape: fn() -> Arc<Shape>,
}

impl AnyType {
    fn of<T: StateValue>() -> Self {
        Self { id: TypeId::of::<T>(), name: type_name::<T>(), shape: shape_of::<T> }
    }
}

type Decode = for<'a> fn(&'a [u8]) -> Result<(Box<dyn Any>, &'a [u8]), FormatError>;
type Convert = dyn Fn(Box<dyn Any>) -> Box<dyn Any> + Send + Sync;
type Encode = fn(&dyn Any, &mut Vec<u8>) -> Result<(), FormatError>;
type Units =
    for<'a> fn(&'a [u8], &mut Vec<u8>, &mut ConvertUnit<'_>) -> Result<&'a [u8], FormatError>;
type ConvertByName = for<'a> fn(&Shape, &'a [u8], &mut Vec<u8>) -> Result<&'a [u8], FormatError>;

/// One migration: from a version to the next one, or to the current one.
#[derive(Clone)]
pub(crate) struct Step {
    from: u32,
    old: AnyType,
    new: AnyType,
    decode: Decode,
    convert: Arc<Convert>,
    encode: Encode,
}

impl Step {
    pub(crate) fn new<Old: StateValue, New: StateValue>(
        from: u32,
        convert: impl Fn(Old) -> New + Send + Sync + 'static,
    ) -> Self {
        Self {
            from,
            old: AnyType::of::<Old>(),
            new: AnyType::of::<New>(),
            decode: |bytes| {
                let (value, rest) = codec::decode_prefix::<Old>(bytes)?;
                Ok((Box::new(value), rest))
            },
            convert: Arc::new(move |old| {
                let old = old.downcast::<Old>().expect("a chain of migrations was checked");
                Box::new(convert(*old))
            }),
            encode: |value, out| {
                let value = value.downcast_ref::<New>().expect("it was just made");
                codec::encode(value, out)
            },
        }
    }
}

/// Older versions of a state that the program reads, and how.
#[derive(Clone)]
pub(crate) struct Migrations {
    steps: Arc<Vec<Step>>,
    unit: AnyType,
    /// The shape of what is kept for a key, from that of a unit.
    held_shape: fn(Shape) -> Shape,
    /// Converts what is kept for a key.
    units: Units,
    by_name: Option<ByName>,
}

impl fmt::Debug for Migrations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from: Vec<u32> = self.steps.iter().map(|step| step.from).collect();
        f.debug_struct("Migrations").field("from", &from).finish_non_exhaustive()
    }
}

/// Reading by the names of fields.
#[derive(Clone, Copy)]
struct ByName {
    /// Whether the program's type takes a made-up value of this shape.
    takes: fn(&Shape) -> Result<(), String>,
    convert: ConvertByName,
}

impl Migrations {
    pub(crate) fn of<D: Kind>(steps: &Arc<Vec<Step>>, by_name: bool) -> Self {
        Self {
            steps: Arc::clone(steps),
            unit: AnyType::of::<D::Unit>(),
            held_shape: D::held_shape,
            units: D::convert_units,
            by_name: by_name
                .then_some(ByName { takes: takes::<D::Held>, convert: convert_by_name::<D::Held> }),
        }
    }

    /// Checks what can be checked without a checkpoint.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(crate) fn check(&self, version: u32) -> Result<(), String> {
        for (at, step) in self.steps.iter().enumerate() {
            let from = step.from;
            if from >= version {
                return Err(format!(
                    "it migrates from version {from} and is of version {version}: say `version({})`",
                    from.saturating_add(1)
                ));
            }
            if self.steps[..at].iter().any(|other| other.from == from) {
                return Err(format!("it migrates from version {from} twice"));
            }
            self.chain(from)?;
        }
        Ok(())
    }

    /// The steps that lead from a version to the current one; none if there is no migration from it.
    fn chain(&self, from: u32) -> Result<Vec<&Step>, String> {
        let Some(mut step) = self.steps.iter().find(|step| step.from == from) else {
            return Ok(Vec::new());
        };
        let mut chain = vec![step];
        loop {
            let later = self.steps.iter().filter(|other| other.from > step.from);
            let next = later.min_by_key(|other| other.from);
            match next.filter(|next| next.old.id == step.new.id) {
                Some(next) => step = next,
                None if step.new.id == self.unit.id => return Ok(chain),
                None => {
                    return Err(format!(
                        "its migration from version {} makes {}, which is neither {} nor what a migration from a later version takes",
                        step.from,
                        short(step.new.name),
                        short(self.unit.name)
                    ));
                }
            }
            chain.push(step);
        }
    }
}

fn takes<T: DeserializeOwned>(shape: &Shape) -> Result<(), String> {
    // What a type validates is not seen in a made-up value; what it lacks is.
    let lacks = ["missing field", "unknown field", "unknown variant", "invalid type"];
    for number in 0..SAMPLES {
        let Some(value) = sample(shape, number) else { continue };
        if let Err(why) = deserialize_value::<T>(value)
            && lacks.iter().any(|lack| why.starts_with(lack))
        {
            return Err(why);
        }
    }
    Ok(())
}

fn convert_by_name<'a, T: StateValue>(
    shape: &Shape,
    bytes: &'a [u8],
    out: &mut Vec<u8>,
) -> Result<&'a [u8], FormatError> {
    let (value, rest) = decode_value(shape, bytes)?;
    let left = rest.len();
    let value: T = deserialize_value(value).map_err(|why| FormatError::Corrupt {
        offset: 0,
        why: format!("this cannot be read by name as a {}: {why}", type_name::<T>()),
    })?;
    codec::encode(&value, out)?;
    Ok(&bytes[bytes.len() - left..])
}

/// How state of a checkpoint is read.
#[derive(Clone, Debug)]
pub(crate) struct Fit {
    /// Whether entries hold the time of their last update.
    pub(crate) expires: bool,
    /// `None`: as it is.
    pub(crate) conversion: Option<Conversion>,
}

/// How older state becomes today's.
#[derive(Clone, Debug)]
pub(crate) enum Conversion {
    /// By the declared migrations from this version on.
    Steps(Migrations, u32),
    /// By the names of fields, from this shape.
    ByName(Migrations, Arc<Shape>),
}

impl Conversion {
    /// The same entries, with converted values. `changes`: whether it is a block of changes.
    ///
    /// # Errors
    /// [`FormatError`] if an entry does not decode, or does not encode.
    pub(crate) fn block<K: DeserializeOwned>(
        &self,
        changes: bool,
        expires: bool,
        block: &EntryBlock<'_>,
    ) -> Result<Vec<u8>, FormatError> {
        let EntryBlock { entries, bytes, .. } = *block;
        let mut out = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        for _ in 0..entries {
            let at = (bytes.len() - rest.len()) as u64;
            let entry = self.entry::<K>(changes, expires, rest, &mut out);
            rest = entry.map_err(|error| error.moved_by(at))?;
        }
        if rest.is_empty() {
            return Ok(out);
        }
        let offset = (bytes.len() - rest.len()) as u64;
        Err(FormatError::Corrupt { offset, why: "bytes after the last entry".to_owned() })
    }

    fn entry<'a, K: DeserializeOwned>(
        &self,
        changes: bool,
        expires: bool,
        bytes: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Result<&'a [u8], FormatError> {
        let (is_there, key) = if changes { codec::decode_prefix(bytes)? } else { (true, bytes) };
        let (_, mut rest) = codec::decode_prefix::<K>(key)?;
        if !is_there {
            // Of a removed key there is nothing to convert.
            out.extend_from_slice(&bytes[..bytes.len() - rest.len()]);
            return Ok(rest);
        }
        if expires {
            rest = codec::decode_prefix::<i64>(rest)?.1;
        }
        out.extend_from_slice(&bytes[..bytes.len() - rest.len()]);
        self.value(rest, out)
    }

    fn value<'a>(&self, bytes: &'a [u8], out: &mut Vec<u8>) -> Result<&'a [u8], FormatError> {
        match self {
            Self::ByName(migrations, shape) => {
                let by_name = migrations.by_name.expect("only what is read by name is fit so");
                (by_name.convert)(shape, bytes, out)
            }
            Self::Steps(migrations, from) => {
                let chain = migrations.chain(*from).expect("the chain was checked");
                let (first, last) = (chain[0], chain[chain.len() - 1]);
                (migrations.units)(bytes, out, &mut |bytes, out| {
                    let (mut value, rest) = (first.decode)(bytes)?;
                    for step in &chain {
                        value = (step.convert)(value);
                    }
                    (last.encode)(&*value, out)?;
                    Ok(rest)
                })
            }
        }
    }
}

/// Why state does not fit.
#[derive(Debug)]
pub(crate) enum Misfit {
    /// The types have other names, and a shape is not known.
    Names,
    /// The shapes differ.
    Shape {
        /// Each with its path.
        differences: Vec<String>,
        /// What to do.
        advice: String,
    },
}

/// How the state in a checkpoint is read, of the same kind as the program's. `migrations`: what it declares for it.
pub(crate) fn fit(
    found: &SectionHeader,
    wanted: &SectionHeader,
    migrations: Option<&Migrations>,
) -> Result<Fit, Misfit> {
    let misfit =
        |differences, advice: &str| Err(Misfit::Shape { differences, advice: advice.to_owned() });
    let expires = found.shape.expires;
    let (found_names, wanted_names) = (names(&found.type_name), names(&wanted.type_name));
    if found.shape.key.is_opaque() || wanted.shape.key.is_opaque() {
        if found_names.0 != wanted_names.0 {
            return Err(Misfit::Names);
        }
    } else if found.shape.key != wanted.shape.key {
        let differences = Shape::differences(&found.shape.key, &wanted.shape.key, "key");
        return misfit(differences, "keys cannot be migrated: keep the old type of the key");
    }
    let (held, asked) = (&found.shape.value, &wanted.shape.value);
    let is_known = !held.is_opaque() && !asked.is_opaque();
    let differences = || Shape::differences(held, asked, "value");
    let (version, current) = (found.type_version, wanted.type_version);
    let versions = || {
        let text = format!("it is of version {version}, the program wants version {current}");
        if is_known { [vec![text], differences()].concat() } else { vec![text] }
    };
    if version > current {
        return misfit(versions(), "only a newer program can read it");
    }
    let is_same = if is_known { held == asked } else { found_names.1 == wanted_names.1 };
    if version == current && is_same {
        return Ok(Fit { expires, conversion: None });
    }
    let Some(migrations) = migrations else {
        return if is_known && version == current {
            misfit(differences(), "take the type that wrote it, or drop this state")
        } else {
            Err(Misfit::Names)
        };
    };
    let fit = |conversion| Ok(Fit { expires, conversion: Some(conversion) });
    // A chain that is broken is an error of the build, whatever is restored.
    let chain = migrations.chain(version).unwrap_or_default();
    if version < current
        && let Some(first) = chain.first()
    {
        let old = match (&*(first.old.shape)(), &**held) {
            (Shape::Opaque, _) | (_, Shape::Opaque) => None,
            (old, _) => Some((migrations.held_shape)(old.clone())),
        };
        return match old {
            Some(old) if old != **held => misfit(
                Shape::differences(held, &old, "value"),
                &format!(
                    "its migration from version {version} takes another type than was written"
                ),
            ),
            None if found_names.1
                != wanted_names.1.replace(&short(migrations.unit.name), &short(first.old.name)) =>
            {
                Err(Misfit::Names)
            }
            _ => fit(Conversion::Steps(migrations.clone(), version)),
        };
    }
    if let Some(by_name) = migrations.by_name
        && is_known
    {
        if let Some(why) = Shape::not_readable_by_name(held, asked, "value") {
            return misfit(vec![why], "it cannot be read by name: declare a migration");
        }
        if let Err(why) = (by_name.takes)(held) {
            let advice = "give a field that is new a `#[serde(default)]`, or declare a migration";
            return misfit(vec![format!("value: it cannot be read by name: {why}")], advice);
        }
        return fit(Conversion::ByName(migrations.clone(), Arc::clone(held)));
    }
    if version < current {
        let advice =
            format!("declare `migrate_from({version}, ...)`, which the program does not do");
        return misfit(versions(), &advice);
    }
    if !is_known {
        return Err(Misfit::Names);
    }
    let advice = format!("declare version {} with a migration", current.saturating_add(1));
    misfit(differences(), &advice)
}

/// The short names of the key's type and of the value's, whether it expires or not. Of state without keys, the first is empty.
fn names(type_name: &str) -> (String, String) {
    let short = short(type_name);
    let (key, value) = short.split_once(" -> ").unwrap_or(("", &short));
    let inside = value.strip_prefix("Expiring<").and_then(|value| value.strip_suffix('>'));
    (key.to_owned(), inside.unwrap_or(value).to_owned())
}
