//! Savepoints with another number of key groups: what is refused, and that nothing is left of it.

use std::path::PathBuf;
use std::time::Duration;

use highwater::convert::{Conversion, ConvertError};
use highwater::format::manifest::PartPlace;
use highwater::format::part::PartReader;
use highwater::prelude::*;
use highwater::protocol::key_groups::key_group;
use highwater::state::hash::stable_hash;
use highwater::state_reader::StateReader;

use crate::support::{Scratch, run};

type Counted = (String, u64);

/// A checkpoint of counts by words, in 128 key groups.
fn counted(scratch: &Scratch) -> PathBuf {
    run(scratch.config(2), |job| {
        job.source("numbers", Generator::new(3_000, |n| n))
            .key_by(|n| format!("word {}", n % 101))
            .process(
                "words",
                (
                    Value::<u64>::new("count"),
                    List::<u64>::new("last").ttl(Duration::from_secs(3600)),
                ),
                |word, n, (count, last), out| {
                    *count.or_default() += 1;
                    last.replace([n]);
                    out.emit((word.clone(), *count.or_default()));
                },
            )
            .sink("out", Discard::new());
        Ok(())
    })
    .unwrap();
    let epoch = scratch.store().newest().unwrap().unwrap();
    scratch.checkpoints().join("job/chk").join(epoch.to_string())
}

/// Keys that the recorded shape is read by, and keys that the given types are.
fn ways() -> [Conversion; 2] {
    [Conversion::new(), words()]
}

fn words() -> Conversion {
    Conversion::new()
        .keyed::<String, u64>("words", "count")
        .keyed::<String, Vec<u64>>("words", "last")
}

#[test]
fn every_key_of_a_converted_checkpoint_is_in_the_group_of_its_hash() {
    let scratch = Scratch::new();
    let from = counted(&scratch);
    for (groups, memory) in [(1, 1), (2, 1), (13, 100), (128, 200), (129, 1_000), (32_768, 1 << 20)]
    {
        let to = scratch.path(&format!("to-{groups}"));
        let way = (groups % 2) as usize;
        ways()[way].clone().memory_bytes(memory).convert(&from, &to, groups).unwrap();
        let reader = StateReader::open(&to).unwrap();
        let mut found = Vec::new();
        for part in &reader.manifest().parts {
            let PartPlace::Inline(bytes) = &part.place else { panic!("a small part is inline") };
            let size = bytes.len() as u64;
            let mut part = PartReader::open(std::io::Cursor::new(bytes), size).unwrap();
            let is_count = |state: &str| state == "count";
            let index = part.sections().iter().position(|s| is_count(s.header.state.as_str()));
            let mut blocks = part.blocks(index.unwrap(), 0..u16::MAX);
            while let Some(block) = blocks.next().unwrap() {
                let (range, bytes) = (block.first_group..=block.last_group, block.bytes);
                let mut last = 0;
                highwater::format::codec::decode_entries::<Counted>(
                    bytes,
                    block.entries,
                    |entry| {
                        let group = key_group(stable_hash(&entry.0), groups).0;
                        assert!(range.contains(&group) && group >= last, "{group} in {range:?}");
                        last = group;
                        found.push(entry);
                    },
                )
                .unwrap();
            }
        }
        let mut expected = Vec::new();
        let counts = StateReader::open(&from).unwrap();
        counts.for_each("words", "count", |word: String, n: u64| expected.push((word, n))).unwrap();
        expected.sort();
        found.sort();
        assert_eq!((found.len(), found), (101, expected));
    }
}

/// A key that takes few of the numbers that it could read, so that its shape is not found.
#[derive(Clone, PartialEq, Eq)]
struct Picky(u64);

impl serde::Serialize for Picky {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(self.0 * 7919 + 1)
    }
}

impl<'de> serde::Deserialize<'de> for Picky {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let number = u64::deserialize(from)?;
        let whole = number % 7919 == 1 && number > 7919;
        let refuse = || serde::de::Error::custom("this is none");
        if whole { Ok(Self(number / 7919)) } else { Err(refuse()) }
    }
}

#[test]
fn keys_of_unknown_shape_are_refused_by_name_unless_their_types_are_given() {
    let scratch = Scratch::new();
    run(scratch.config(2), |job| {
        job.source("numbers", Generator::new(500, |n| n))
            .key_by(|n| Picky(n % 50 + 1))
            .process("picky", Value::<u64>::new("count"), |key, _, count, out| {
                *count.or_default() += 1;
                out.emit(key.clone());
            })
            .sink("out", Discard::new());
        Ok(())
    })
    .unwrap();
    let epoch = scratch.store().newest().unwrap().unwrap();
    let from = scratch.checkpoints().join("job/chk").join(epoch.to_string());
    let to = scratch.path("to");
    let text = Conversion::new().convert(&from, &to, 13).unwrap_err().to_string();
    assert!(text.contains("picky/count has keys that only the program can read"), "{text}");
    assert!(text.contains("Picky") && text.contains("Conversion") && !to.exists(), "{text}");
    let typed = Conversion::new().keyed::<Picky, u64>("picky", "count");
    assert!(typed.convert(&from, &to, 13).unwrap().entries >= 50);
}

#[test]
fn wrong_types_are_refused_and_leave_no_savepoint() {
    let scratch = Scratch::new();
    let from = counted(&scratch);
    let to = scratch.path("to");
    let error = |conversion: Conversion| {
        let error = conversion.convert(&from, &to, 13).unwrap_err();
        assert!(!to.exists());
        error
    };
    let other = error(words().keyed::<u64, u64>("words", "count")).to_string();
    assert!(
        other.contains("the keys of words/count are alloc::string::String, not u64"),
        "{other}"
    );
    let damaged = error(words().keyed::<String, (u64, u64)>("words", "count"));
    assert!(
        matches!(damaged, ConvertError::Unreadable(_) | ConvertError::Misplaced { .. }),
        "{damaged}"
    );
    assert!(matches!(words().convert(&from, &to, 0), Err(ConvertError::MaxParallelism(0))));
    // Nothing that is there is touched.
    std::fs::create_dir(&to).unwrap();
    let text = words().convert(&from, &to, 13).unwrap_err().to_string();
    assert!(text.contains("exists already"), "{text}");
}

/// A key whose `Deserialize` does not give back what was hashed: the groups tell.
#[test]
fn keys_that_hash_otherwise_than_when_they_were_written_are_found_by_their_groups() {
    /// Reads as text, is hashed as something else.
    #[derive(Clone, PartialEq, Eq, serde::Deserialize)]
    #[serde(transparent)]
    struct String {
        text: std::string::String,
    }
    impl serde::Serialize for String {
        fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            to.serialize_u64(self.text.len() as u64)
        }
    }
    let scratch = Scratch::new();
    let from = counted(&scratch);
    let conversion = words().keyed::<String, u64>("words", "count");
    let error = conversion.convert(&from, &scratch.path("to"), 13).unwrap_err();
    assert!(matches!(error, ConvertError::Misplaced { max_parallelism: 128, .. }), "{error}");
    assert!(error.to_string().contains("words/count"), "{error}");
}
