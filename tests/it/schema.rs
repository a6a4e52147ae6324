//! Types of state that change between a savepoint and the program that is restored from it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use highwater::config::{RestartStrategy, RestoreFrom};
use highwater::prelude::*;
use highwater::state_reader::StateReader;
use serde::{Deserialize, Serialize};

use crate::support::{Background, Scratch, run, throttle};

const RECORDS: u64 = 10_000;
const KEYS: u64 = 7;

/// Adds a number to the state of its key, and returns the sum of all that were added.
type Add<S> = for<'a, 'b> fn(u64, &'b mut <S as States<u64>>::Access<'a>) -> u64;

/// Emits the sums by key.
fn sums<S: States<u64>>(
    records_a_ms: u32,
    states: impl Fn() -> S + Send + Sync + 'static,
    add: Add<S>,
    sink: Collect<(u64, u64)>,
) -> impl Fn(&Job<'_>) -> highwater::Result<()> {
    move |job| {
        job.source("numbers", Generator::new(RECORDS, |i| i))
            .inspect(throttle(records_a_ms))
            .key_by(|n| n % KEYS)
            .process("count", states(), move |key, n, state, out| out.emit((*key, add(n, state))))
            .sink("out", sink.clone());
        Ok(())
    }
}

/// Runs the first part of the job, and stops it with a savepoint.
fn stopped<S: States<u64>>(
    scratch: &Scratch,
    states: impl Fn() -> S + Send + Sync + 'static,
    add: Add<S>,
) -> PathBuf {
    let job = Background::start(scratch.config(2), sums(2, states, add, Collect::new()));
    job.wait_for_checkpoints(2);
    let to = scratch.path("savepoint");
    job.handle.stop_with_savepoint(&to, false).unwrap();
    job.end().unwrap();
    to
}

/// Runs the rest of it. The last sums of all keys, or why it does not start.
fn rest<S: States<u64>>(
    savepoint: &Path,
    states: impl Fn() -> S + Send + Sync + 'static,
    add: Add<S>,
) -> Result<BTreeMap<u64, u64>, String> {
    let other = Scratch::new();
    let mut config = other.config(3);
    config.restart = RestartStrategy::None;
    config.restore.from = RestoreFrom::Checkpoint(savepoint.display().to_string());
    let collect = Collect::new();
    run(config, sums(1000, states, add, collect.clone())).map_err(|error| {
        assert!(!error.restartable(), "{error}");
        error.to_string()
    })?;
    let mut last = BTreeMap::new();
    for (key, sum) in collect.handle().committed() {
        let greatest = last.entry(key).or_insert(sum);
        *greatest = sum.max(*greatest);
    }
    Ok(last)
}

fn expected() -> BTreeMap<u64, u64> {
    (0..KEYS).map(|key| (key, (0..RECORDS).filter(|n| n % KEYS == key).sum())).collect()
}

#[track_caller]
fn assert_right(sums: Result<BTreeMap<u64, u64>, String>) {
    assert_eq!(sums.unwrap(), expected());
}

/// What a refusal says behind the number of the checkpoint.
#[track_caller]
fn refusal(sums: Result<BTreeMap<u64, u64>, String>) -> String {
    let text = sums.unwrap_err();
    let (_, text) = text.split_once(" does not fit: ").unwrap_or_else(|| panic!("{text}"));
    text.to_owned()
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Sum {
    total: u32,
    seen: u16,
}

fn add(n: u64, state: &mut ValueState<'_, u64, Sum>) -> u64 {
    let sum = state.or_default();
    sum.total += n as u32;
    sum.seen += 1;
    sum.total.into()
}

#[test]
fn a_type_that_is_only_called_otherwise_is_restored() {
    #[derive(Clone, Default, Serialize, Deserialize)]
    struct Narrow(u32);
    #[derive(Clone, Default, Serialize, Deserialize)]
    struct Total {
        total: Narrow,
        seen: u16,
    }
    let scratch = Scratch::new();
    let savepoint = stopped::<Value<Sum>>(&scratch, || Value::<Sum>::new("counts"), add);
    let add_total = |n, state: &mut ValueState<'_, u64, Total>| {
        let sum = state.or_default();
        sum.total.0 += n as u32;
        sum.total.0.into()
    };
    assert_right(rest::<Value<Total>>(&savepoint, || Value::<Total>::new("counts"), add_total));
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Wider {
    total: u64,
    seen: u16,
}

fn add_wider(n: u64, state: &mut ValueState<'_, u64, Wider>) -> u64 {
    let sum = state.or_default();
    sum.total += n;
    sum.seen += 1;
    sum.total
}

#[test]
fn a_changed_field_is_refused_by_its_path_and_migrated_if_the_program_says_how() {
    let scratch = Scratch::new();
    let savepoint = stopped::<Value<Sum>>(&scratch, || Value::<Sum>::new("counts"), add);
    let wider = || Value::<Wider>::new("counts");
    assert_eq!(
        refusal(rest::<Value<Wider>>(&savepoint, wider, add_wider)),
        "count/counts: value.total: the checkpoint holds u32, the program wants u64; \
         declare version 2 with a migration"
    );
    assert_eq!(
        refusal(rest::<Value<Wider>>(&savepoint, move || wider().version(2), add_wider)),
        "count/counts: it is of version 1, the program wants version 2; \
         value.total: the checkpoint holds u32, the program wants u64; \
         declare `migrate_from(1, ...)`, which the program does not do"
    );
    let migrated = || {
        let widen = |old: Sum| Wider { total: old.total.into(), seen: old.seen };
        Value::<Wider>::new("counts").version(2).migrate_from(1, widen)
    };
    assert_right(rest::<Value<Wider>>(&savepoint, migrated, add_wider));
    // Nothing is said of the bytes of the savepoint by another type that was there once.
    let wrong = || {
        let widen = |total: u64| Wider { total, seen: 0 };
        Value::<Wider>::new("counts").version(2).migrate_from(1, widen)
    };
    assert_eq!(
        refusal(rest::<Value<Wider>>(&savepoint, wrong, add_wider)),
        "count/counts: value: the checkpoint holds {total: u32, seen: u16}, the program wants u64; \
         its migration from version 1 takes another type than was written"
    );
}

#[test]
fn migrations_make_a_chain_and_a_broken_one_is_an_error_of_the_build() {
    let scratch = Scratch::new();
    let savepoint = stopped::<Value<Sum>>(&scratch, || Value::<Sum>::new("counts"), add);
    let chain = || {
        Value::<Wider>::new("counts")
            .version(4)
            .migrate_from(2, |(total, seen): (u32, u16)| Wider { total: total.into(), seen })
            // Of the same type, and another meaning.
            .migrate_from(3, |wider: Wider| wider)
            .migrate_from(1, |old: Sum| (old.total, old.seen))
    };
    assert_right(rest::<Value<Wider>>(&savepoint, chain, add_wider));
    let broken = || {
        Value::<Wider>::new("counts").version(3).migrate_from(1, |old: Sum| (old.total, old.seen))
    };
    let why = rest::<Value<Wider>>(&savepoint, broken, add_wider).unwrap_err();
    assert!(
        why.contains("state count/counts: its migration from version 1 makes (u32, u16), which is neither Wider nor"),
        "{why}"
    );
    let early = || Value::<Wider>::new("counts").migrate_from(1, |_: Sum| Wider::default());
    let why = rest::<Value<Wider>>(&savepoint, early, add_wider).unwrap_err();
    assert!(why.contains("migrates from version 1 and is of version 1: say `version(2)`"), "{why}");
}

#[test]
fn a_newer_version_is_refused() {
    let scratch = Scratch::new();
    let savepoint = stopped::<Value<Sum>>(&scratch, || Value::<Sum>::new("counts").version(3), add);
    assert_eq!(
        refusal(rest::<Value<Sum>>(
            &savepoint,
            || Value::<Sum>::new("counts").version(2).evolve_by_name(),
            add
        )),
        "count/counts: it is of version 3, the program wants version 2; \
         only a newer program can read it"
    );
}

struct Adding;

impl AggregateFunction for Adding {
    type Input = u64;
    type Accumulator = u32;
    type Output = u64;

    fn create(&self) -> u32 {
        0
    }
    fn add(&self, accumulator: &mut u32, input: u64) {
        *accumulator += input as u32;
    }
    fn merge(&self, accumulator: &mut u32, other: u32) {
        *accumulator += other;
    }
    fn result(&self, accumulator: &u32) -> u64 {
        (*accumulator).into()
    }
}

struct AddingWide;

impl AggregateFunction for AddingWide {
    type Input = u64;
    type Accumulator = Wider;
    type Output = u64;

    fn create(&self) -> Wider {
        Wider::default()
    }
    fn add(&self, accumulator: &mut Wider, input: u64) {
        accumulator.total += input;
    }
    fn merge(&self, accumulator: &mut Wider, other: Wider) {
        accumulator.total += other.total;
    }
    fn result(&self, accumulator: &Wider) -> u64 {
        accumulator.total
    }
}

#[test]
fn every_kind_of_state_is_migrated_and_may_gain_or_lose_its_time_to_live() {
    let hour = Duration::from_secs(3600);
    let scratch = Scratch::new();
    let old = move || {
        (
            List::<u32>::new("list").ttl(hour),
            Map::<u64, u32>::new("map"),
            Reducing::new("reducing", |sum: &mut u32, n| *sum += n).ttl(hour),
            Aggregating::new("aggregating", Adding),
        )
    };
    let savepoint = stopped(&scratch, old, |n, (list, map, reducing, aggregating)| {
        list.append(n as u32);
        let sum = map.get(&(n % 3)).copied().unwrap_or(0) + n as u32;
        map.insert(n % 3, sum);
        reducing.add(n as u32);
        aggregating.add(n);
        aggregating.get().unwrap()
    });
    let new = move || {
        let text = |n: u32| n.to_string();
        let wider = |total: u32| Wider { total: total.into(), seen: 0 };
        (
            List::<String>::new("list").version(2).migrate_from(1, text).ttl(hour),
            Map::<u64, Wider>::new("map").ttl(hour).version(2).migrate_from(1, wider),
            Reducing::new("reducing", |sum: &mut u64, n| *sum += n)
                .version(2)
                .migrate_from(1, |sum: u32| u64::from(sum)),
            Aggregating::new("aggregating", AddingWide).version(2).migrate_from(1, wider),
        )
    };
    let sums = rest(&savepoint, new, |n, (list, map, reducing, aggregating)| {
        list.append(n.to_string());
        let mut sum = map.get(&(n % 3)).cloned().unwrap_or_default();
        sum.total += n;
        map.insert(n % 3, sum);
        reducing.add(n);
        aggregating.add(n);
        let sums = [
            list.iter().map(|n| n.parse::<u64>().unwrap()).sum(),
            map.iter().map(|(_, sum)| sum.total).sum(),
            *reducing.get().unwrap(),
            aggregating.get().unwrap(),
        ];
        assert_eq!(sums, [sums[0]; 4]);
        sums[0]
    });
    assert_right(sums);
}

#[test]
fn fields_with_defaults_are_added_and_others_moved_renamed_and_widened_by_name() {
    #[derive(Clone, Default, Serialize, Deserialize)]
    struct Newer {
        #[serde(default)]
        note: String,
        #[serde(alias = "seen")]
        times: Option<u32>,
        total: u64,
    }
    fn newer() -> Value<Newer> {
        Value::<Newer>::new("counts")
    }
    let add_newer: Add<Value<Newer>> = |n, state| {
        let sum = state.or_default();
        assert!(sum.total == 0 || sum.times.is_some_and(|times| times > 0));
        sum.total += n;
        sum.times = Some(sum.times.unwrap_or(0) + 1);
        sum.total
    };
    let scratch = Scratch::new();
    let savepoint = stopped::<Value<Sum>>(&scratch, || Value::<Sum>::new("counts"), add);
    assert_right(rest::<Value<Newer>>(&savepoint, || newer().evolve_by_name(), add_newer));
    assert_right(rest::<Value<Newer>>(
        &savepoint,
        || newer().version(2).evolve_by_name(),
        add_newer,
    ));
    assert!(
        refusal(rest::<Value<Newer>>(&savepoint, newer, add_newer))
            .ends_with("declare version 2 with a migration")
    );

    #[derive(Clone, Default, Serialize, Deserialize)]
    struct NoDefault {
        total: u32,
        seen: u16,
        added: u8,
    }
    let add_no_default: Add<Value<NoDefault>> = |_, _| 0;
    assert_eq!(
        refusal(rest::<Value<NoDefault>>(
            &savepoint,
            || Value::<NoDefault>::new("counts").evolve_by_name(),
            add_no_default
        )),
        "count/counts: value: it cannot be read by name: missing field `added`; \
         give a field that is new a `#[serde(default)]`, or declare a migration"
    );
    #[derive(Clone, Default, Serialize, Deserialize)]
    struct Narrower {
        total: u16,
    }
    let add_narrower: Add<Value<Narrower>> = |_, _| 0;
    assert_eq!(
        refusal(rest::<Value<Narrower>>(
            &savepoint,
            || Value::<Narrower>::new("counts").evolve_by_name(),
            add_narrower
        )),
        "count/counts: value.total: the checkpoint holds u32, the program wants u16; \
         it cannot be read by name: declare a migration"
    );
}

#[test]
fn a_field_that_moved_is_noticed_though_its_type_did_not_change() {
    #[derive(Clone, Default, Serialize, Deserialize)]
    struct Point {
        x: u64,
        y: u64,
    }
    #[derive(Clone, Default, Serialize, Deserialize)]
    struct Swapped {
        y: u64,
        x: u64,
    }
    let scratch = Scratch::new();
    let savepoint = stopped(
        &scratch,
        || Value::<Point>::new("counts"),
        |n, state| {
            let point = state.or_default();
            point.x += n;
            point.y += 1;
            point.x
        },
    );
    let add_swapped: Add<Value<Swapped>> = |n, state| {
        let point = state.or_default();
        point.x += n;
        point.x
    };
    assert_eq!(
        refusal(rest::<Value<Swapped>>(
            &savepoint,
            || Value::<Swapped>::new("counts"),
            add_swapped
        )),
        "count/counts: value: the fields are in another order: the checkpoint has x, y, the program y, x; \
         declare version 2 with a migration"
    );
    assert_right(rest::<Value<Swapped>>(
        &savepoint,
        || Value::<Swapped>::new("counts").evolve_by_name(),
        add_swapped,
    ));
}

/// A type that nobody can see through: it takes one text only.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(try_from = "(String, u64)", into = "(String, u64)")]
struct Sealed(u64);

impl TryFrom<(String, u64)> for Sealed {
    type Error = String;
    fn try_from((seal, sum): (String, u64)) -> Result<Self, String> {
        if seal == "sealed" { Ok(Self(sum)) } else { Err("the seal is broken".to_owned()) }
    }
}

impl From<Sealed> for (String, u64) {
    fn from(Sealed(sum): Sealed) -> Self {
        ("sealed".to_owned(), sum)
    }
}

#[test]
fn types_that_cannot_be_seen_through_are_compared_by_name() {
    let scratch = Scratch::new();
    let add: Add<Value<Sealed>> = |n, state| {
        let sum = state.or_default();
        sum.0 += n;
        sum.0
    };
    let savepoint = stopped::<Value<Sealed>>(&scratch, || Value::<Sealed>::new("counts"), add);
    let reader = StateReader::open(&savepoint).unwrap();
    let parts = reader.manifest().parts.iter();
    let mut headers = parts.flat_map(|part| &part.sections).map(|section| &section.header);
    let header = headers.find(|header| header.operator.as_str() == "count").unwrap();
    assert!(header.shape.value.is_opaque() && !header.shape.key.is_opaque());
    assert_right(rest::<Value<Sealed>>(&savepoint, || Value::<Sealed>::new("counts"), add));
    let other: Add<Value<u64>> = |_, _| 0;
    let why = rest::<Value<u64>>(&savepoint, || Value::<u64>::new("counts"), other).unwrap_err();
    assert!(
        why.contains("is of another type: it holds u64 -> ") && why.contains("Sealed"),
        "{why}"
    );
    // A migration from it is possible still.
    let opened: Add<Value<u64>> = |n, state| {
        *state.or_default() += n;
        *state.or_default()
    };
    let migrated =
        || Value::<u64>::new("counts").version(2).migrate_from(1, |Sealed(sum): Sealed| sum);
    assert_right(rest::<Value<u64>>(&savepoint, migrated, opened));
}

#[test]
fn keys_of_another_shape_are_refused() {
    let scratch = Scratch::new();
    let savepoint = stopped::<Value<Sum>>(&scratch, || Value::<Sum>::new("counts"), add);
    let other = Scratch::new();
    let mut config = other.config(1);
    config.restart = RestartStrategy::None;
    config.restore.from = RestoreFrom::Checkpoint(savepoint.display().to_string());
    let why = run(config, |job| {
        job.source("numbers", Generator::new(RECORDS, |i| i))
            .key_by(|n| (n % KEYS).to_string())
            .process("count", Value::<Sum>::new("counts").evolve_by_name(), |_, n, _, out| {
                out.emit((n, n));
            })
            .sink("out", Collect::new());
        Ok(())
    });
    let text = why.unwrap_err().to_string();
    assert!(
        text.contains(
            "count/counts: key: the checkpoint holds u64, the program wants String; keys cannot be migrated"
        ),
        "{text}"
    );
}

#[test]
fn a_checkpoint_in_layers_is_dumped_as_it_is_read_and_migrated_as_a_whole() {
    let scratch = Scratch::new();
    let mut config = scratch.config(2);
    config.checkpoints.incremental_bytes_min = 0;
    config.checkpoints.inline_bytes_max = 0;
    // Many keys once, then a few of them again and again.
    let key = |n: &u64| if *n < 20_000 { *n } else { *n % 40 * 401 };
    let records = 300_000;
    let all_there = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&all_there);
    let job = Background::start(config, move |job| {
        let there = Arc::clone(&seen);
        let mut slow = throttle(20);
        job.source("numbers", Generator::new(records, |i| i))
            .inspect(move |n| {
                if *n >= 20_000 {
                    there.store(true, Ordering::Relaxed);
                    slow(n);
                }
            })
            .key_by(key)
            .process("count", Value::<Sum>::new("counts"), |key, n, state, out| {
                out.emit((*key, add(n, state)));
            })
            .sink("out", Collect::new());
        Ok(())
    });
    crate::support::wait_until("all keys are there", || all_there.load(Ordering::Relaxed));
    let newest = || {
        job.handle.counters().checkpoints().completed.iter().map(|c| c.epoch.0).max().unwrap_or(0)
    };
    let before = newest();
    crate::support::wait_until("five more checkpoints are complete", || newest() >= before + 5);
    job.handle.stop();
    job.end().unwrap();
    let newest = scratch.store().newest().unwrap().unwrap();
    let path = scratch.checkpoints().join(crate::support::JOB).join(format!("chk/{newest}"));
    let reader = StateReader::open(&path).unwrap();
    assert!(reader.manifest().parts.iter().any(|part| !part.layers.is_empty()), "no layers");
    let mut expected = BTreeMap::new();
    reader
        .for_each("count", "counts", |key: u64, (total, seen): (u32, u16)| {
            expected.insert(key, (total, seen));
        })
        .unwrap_err();
    reader
        .for_each("count", "counts", |key: u64, sum: Sum| {
            expected.insert(key, (sum.total, sum.seen));
        })
        .unwrap();
    assert_eq!(expected.len(), 20_000);

    let dump = std::process::Command::new(env!("CARGO_BIN_EXE_highwater"))
        .args(["state", "dump", "--operator", "count", "--state", "counts"])
        .args(["--format", "csv"])
        .arg(&path)
        .output()
        .unwrap();
    let text = String::from_utf8(dump.stdout).unwrap();
    let mut lines = text.lines();
    assert_eq!(
        lines.next(),
        Some("operator,state,key_group,last_update,key,value.total,value.seen")
    );
    let mut dumped = BTreeMap::new();
    for line in lines {
        let cells: Vec<&str> = line.split(',').collect();
        let number = |at: usize| cells[at].parse::<u64>().unwrap();
        let sum = (number(5) as u32, number(6) as u16);
        assert_eq!(dumped.insert(number(4), sum), None, "{line}");
    }
    assert_eq!(dumped, expected);

    let other = Scratch::new();
    let mut config = other.config(3);
    config.restart = RestartStrategy::None;
    config.restore.from = RestoreFrom::Checkpoint(path.display().to_string());
    let collect = Collect::new();
    let sink = collect.clone();
    run(config, move |job| {
        let widen = |old: Sum| Wider { total: old.total.into(), seen: old.seen };
        let state = Value::<Wider>::new("counts").version(2).migrate_from(1, widen);
        job.source("numbers", Generator::new(records, |i| i))
            .key_by(key)
            .process("count", state, |key, n, state, out| out.emit((*key, add_wider(n, state))))
            .sink("out", sink.clone());
        Ok(())
    })
    .unwrap();
    let mut totals: BTreeMap<u64, u64> = BTreeMap::new();
    for n in 0..records {
        *totals.entry(key(&n)).or_default() += n;
    }
    let mut found: BTreeMap<u64, u64> = BTreeMap::new();
    for (key, sum) in collect.handle().committed() {
        let greatest = found.entry(key).or_default();
        *greatest = sum.max(*greatest);
    }
    for n in 0..40 {
        assert_eq!(found.get(&(n * 401)), totals.get(&(n * 401)));
    }
}
