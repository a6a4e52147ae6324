//! Tests of shapes, of tracing them, and of values that are read by them.

#![expect(dead_code, reason = "what tests trace is never used")]

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU64;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Shape, Value, decode_value, deserialize_value, sample, trace};
use crate::format::codec;
use crate::format::tests::every_prefix_is_refused;

#[derive(Serialize, Deserialize, Debug, PartialEq)]
struct Pair<A, B> {
    first: A,
    second: B,
}

#[derive(Serialize, Deserialize, Debug, PartialEq)]
struct Meters(f64);

#[derive(Serialize, Deserialize, Debug, PartialEq)]
enum Event {
    Nothing,
    Moved(Meters),
    Turned(i32, u8),
    Said { text: String, to: Option<u64> },
}

#[derive(Serialize, Deserialize, Debug, PartialEq)]
enum Term {
    Sum(Box<Term>, Box<Term>),
    Not { term: Box<Term> },
    All(Vec<Term>),
    Number(i64),
}

#[derive(Serialize, Deserialize, Debug, PartialEq)]
struct Chain {
    value: u32,
    next: Option<Box<Chain>>,
    event: Event,
}

#[derive(Serialize, Deserialize)]
#[serde(try_from = "u32")]
struct Even(#[serde(skip)] u32);

impl TryFrom<u32> for Even {
    type Error = String;
    fn try_from(number: u32) -> Result<Self, String> {
        if number.is_multiple_of(2) { Ok(Self(number)) } else { Err("odd".to_owned()) }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(try_from = "u32")]
struct Picky;

impl TryFrom<u32> for Picky {
    type Error = String;
    fn try_from(number: u32) -> Result<Self, String> {
        if number == 77 { Ok(Self) } else { Err("not 77".to_owned()) }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(from = "u32")]
struct Panics;

impl From<u32> for Panics {
    fn from(_: u32) -> Self {
        panic!("it always does")
    }
}

fn text<T: serde::de::DeserializeOwned>() -> String {
    trace::<T>().unwrap().to_string()
}

#[test]
fn what_serde_derives_is_traced_with_all_variants() {
    assert_eq!(text::<u64>(), "u64");
    assert_eq!(text::<(u8, String, Vec<bool>)>(), "(u8, String, [bool])");
    assert_eq!(text::<HashMap<String, [i16; 3]>>(), "Map<String, (i16, i16, i16)>");
    assert_eq!(text::<Option<()>>(), "Option<()>");
    assert_eq!(text::<Meters>(), "f64");
    assert_eq!(text::<Duration>(), "{secs: u64, nanos: u32}");
    assert_eq!(text::<Result<u8, char>>(), "Ok(u8) | Err(char)");
    assert_eq!(
        text::<Event>(),
        "Nothing | Moved(f64) | Turned(i32, u8) | Said{text: String, to: Option<u64>}"
    );
    let address = text::<std::net::IpAddr>();
    assert!(address.starts_with("V4(u8, u8, u8, u8) | V6(u8, u8, u8, u8, u8"), "{address}");
}

#[test]
fn types_of_one_name_are_told_apart() {
    // Serde calls both `Pair`.
    assert_eq!(
        text::<Pair<Pair<u8, u16>, Pair<String, u16>>>(),
        "{first: {first: u8, second: u16}, second: {first: String, second: u16}}"
    );
}

#[test]
fn types_that_come_back_to_themselves_are_traced() {
    assert_eq!(text::<Term>(), "Sum(Self, Self) | Not{term: Self} | All([Self]) | Number(i64)");
    let chain = trace::<Chain>().unwrap();
    assert!(chain.to_string().starts_with("{value: u32, next: Option<Self>, event: Nothing"));
}

#[test]
fn types_that_validate_are_traced_if_a_value_is_found_and_opaque_otherwise() {
    assert_eq!(text::<NonZeroU64>(), "u64");
    assert_eq!(text::<Vec<Even>>(), "[u32]");
    assert_eq!(text::<Pair<NonZeroU64, Even>>(), "{first: u64, second: u32}");
    assert_eq!(text::<std::net::SocketAddrV4>(), "((u8, u8, u8, u8), u16)");
    for why in [
        trace::<Picky>().unwrap_err(),
        trace::<Vec<Picky>>().unwrap_err(),
        trace::<Panics>().unwrap_err(),
        trace::<serde_json::Value>().unwrap_err(),
    ] {
        assert!(why.to_string().starts_with("the shape of "), "{why}");
    }
    assert!(trace::<serde_json::Value>().unwrap_err().is_unreadable);
    assert!(!trace::<Picky>().unwrap_err().is_unreadable);
}

#[derive(Serialize, Deserialize, Debug, PartialEq)]
struct Renamed {
    #[serde(alias = "old", alias = "older")]
    new: u8,
    other: String,
}

#[derive(Serialize, Deserialize, Debug, PartialEq)]
enum RenamedVariant {
    #[serde(alias = "Old")]
    New,
    Other(u8),
}

#[test]
fn of_fields_with_several_names_the_first_is_found_and_variants_go_by_position() {
    assert_eq!(text::<Renamed>(), "{new: u8, other: String}");
    assert_eq!(text::<RenamedVariant>(), "0 | 1(u8)");
}

#[test]
fn a_fingerprint_is_of_the_shape_and_not_of_the_names_of_types() {
    #[derive(Serialize, Deserialize)]
    struct Other {
        first: u8,
        second: NonZeroU64,
    }
    #[derive(Serialize, Deserialize)]
    struct Swapped {
        second: u64,
        first: u8,
    }
    let of = |shape: Shape| shape.fingerprint();
    let pair = of(trace::<Pair<u8, u64>>().unwrap());
    assert_eq!(pair, of(trace::<Other>().unwrap()));
    assert_ne!(pair, of(trace::<Swapped>().unwrap()));
    // Frozen: these are in files.
    let found = [of(Shape::U64), pair, of(trace::<Term>().unwrap())];
    assert_eq!(found, [0x4a4139caf4136257, 0x2986d36628ff3b7a, 0x26b0684469bf3440]);
}

#[test]
fn a_shape_comes_back_or_is_refused() {
    for shape in [trace::<Chain>(), trace::<Term>(), trace::<BTreeMap<u8, Event>>()] {
        let shape = shape.unwrap();
        let bytes = shape.encode();
        assert_eq!(Shape::decode(&bytes).unwrap(), shape);
        every_prefix_is_refused(&bytes, Shape::decode);
    }
    // So many options in each other, and a way out of the root.
    let option = Shape::Option(Box::new(Shape::Unit)).encode()[0];
    assert!(Shape::decode(&vec![option; 1 << 20]).is_err());
    assert!(Shape::decode(&Shape::Up(0).encode()).is_err());
}

fn encoded<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec::encode(value, &mut bytes).unwrap();
    bytes
}

fn goes_round<T: Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(value: T) {
    let shape = trace::<T>().unwrap();
    let mut bytes = encoded(&value);
    every_prefix_is_refused(&bytes, |bytes| decode_value(&shape, bytes).map(|_| ()));
    bytes.push(9);
    let (read, rest) = decode_value(&shape, &bytes).unwrap();
    assert_eq!(rest, [9]);
    assert_eq!(deserialize_value::<T>(read).unwrap(), value);
}

#[test]
fn values_are_read_by_their_shape_and_come_back() {
    goes_round(Pair { first: u128::MAX, second: i128::MIN });
    goes_round(Pair { first: -5_i8, second: 1.5_f32 });
    goes_round(vec![
        Event::Nothing,
        Event::Moved(Meters(2.5)),
        Event::Turned(-90, 3),
        Event::Said { text: "\u{e9}".to_owned(), to: Some(7) },
    ]);
    let number = |n| Box::new(Term::Number(n));
    goes_round(Term::Sum(
        Box::new(Term::Not { term: number(1) }),
        Box::new(Term::All(vec![Term::Sum(number(2), number(3)), Term::Number(4)])),
    ));
    let last = Chain { value: 2, next: None, event: Event::Nothing };
    goes_round(Chain { value: 1, next: Some(Box::new(last)), event: Event::Turned(1, 1) });
    goes_round(BTreeMap::from([((1_u8, 'x'), Some(Duration::from_millis(3)))]));
    goes_round(RenamedVariant::New.eq(&RenamedVariant::Other(1)));
    goes_round(Renamed { new: 1, other: "x".to_owned() });
}

#[test]
fn values_that_take_no_bytes_do_not_run_away() {
    // 2^32 times nothing.
    let shape = trace::<Vec<()>>().unwrap();
    assert!(decode_value(&shape, &encoded(&(1_u64 << 32))).is_err());
    let endless = Shape::Struct(vec![
        super::Field { name: "a".to_owned(), shape: Shape::Up(0) },
        super::Field { name: "b".to_owned(), shape: Shape::Up(0) },
    ]);
    assert!(decode_value(&endless, &[]).is_err());
}

#[test]
fn a_newer_type_reads_an_older_value_by_the_names_of_its_fields() {
    #[derive(Deserialize, Debug, PartialEq)]
    struct Newer {
        #[serde(default)]
        added: Vec<u8>,
        second: Option<i64>,
        #[serde(alias = "first")]
        renamed: u64,
    }
    let older = Pair { first: 7_u32, second: -1_i8 };
    let shape = trace::<Pair<u32, i8>>().unwrap();
    let bytes = encoded(&older);
    let (value, _) = decode_value(&shape, &bytes).unwrap();
    assert_eq!(
        deserialize_value::<Newer>(value).unwrap(),
        Newer { added: vec![], second: Some(-1), renamed: 7 }
    );
    let (value, _) = decode_value(&shape, &bytes).unwrap();
    let why = deserialize_value::<Chain>(value).unwrap_err();
    assert_eq!(why, "missing field `value`");
}

#[test]
fn samples_have_every_variant() {
    let shape = trace::<Vec<Event>>().unwrap();
    let names: Vec<_> = (0..4)
        .map(|number| match sample(&shape, number) {
            Some(Value::Seq(values)) => match &values[..] {
                [Value::Variant(_, name, _)] => (*name).to_owned(),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(names, ["Nothing", "Moved", "Turned", "Said"]);
    for number in 0..4 {
        let shape = trace::<Term>().unwrap();
        let value = sample(&shape, number).unwrap();
        assert!(deserialize_value::<Term>(value).is_ok());
        let shape = trace::<Chain>().unwrap();
        assert!(deserialize_value::<Chain>(sample(&shape, number).unwrap()).is_ok());
    }
}

#[test]
fn differences_are_told_by_the_path_of_fields() {
    #[derive(Deserialize)]
    struct Old {
        total: u32,
        gone: u8,
        list: Vec<Pair<u8, u8>>,
    }
    #[derive(Deserialize)]
    struct New {
        total: u64,
        list: Vec<Pair<u8, String>>,
        fresh: bool,
    }
    let (old, new) = (trace::<Old>().unwrap(), trace::<New>().unwrap());
    assert_eq!(
        Shape::differences(&old, &new, "value"),
        [
            "value.total: the checkpoint holds u32, the program wants u64",
            "value.gone: the checkpoint holds u8, the program has no such one",
            "value.list[].second: the checkpoint holds u8, the program wants String",
            "value.fresh: the checkpoint holds no such one, the program wants bool",
        ]
    );
    assert!(Shape::differences(&old, &old, "value").is_empty());
    #[derive(Deserialize)]
    struct Swapped {
        second: u8,
        first: u8,
    }
    let (pair, swapped) = (trace::<Pair<u8, u8>>().unwrap(), trace::<Swapped>().unwrap());
    assert_eq!(
        Shape::differences(&pair, &swapped, "value"),
        [
            "value: the fields are in another order: the checkpoint has first, second, the program second, first"
        ]
    );
    assert_eq!(Shape::not_readable_by_name(&pair, &swapped, "value"), None);
    assert_eq!(
        Shape::not_readable_by_name(&old, &new, "value").unwrap(),
        "value.list[].second: the checkpoint holds u8, the program wants String"
    );
}
