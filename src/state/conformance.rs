//! What every [`StateBackend`] must do, as one suite of tests.
//!
//! ```
//! use highwater::state::{conformance, heap::HeapBackend};
//! conformance::restoring_gives_each_owner_exactly_its_keys::<_, u64>(&HeapBackend, 13, 1);
//! ```
//! Each function panics at the first deviation and names the seed, so that it can be run again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::ops::Range;
use std::thread::JoinHandle;

use super::hash::stable_hash;
use super::{
    Frozen, Key, Selection, SnapshotForm, StateBackend, StateValue, SweepPosition, ValueTable,
};
use crate::format::{ENTRY_REMOVED, Extent, FormatError, SectionOutput};
use crate::ids::{Epoch, KeyGroup};
use crate::protocol::key_groups::{hashes, key_group, key_groups};
use crate::protocol::layers::{HashRanges, Layer};

/// The values of the suite: of fixed size, with a part that is not `Copy`.
pub type Value = (u64, Option<String>);

type Model<K> = BTreeMap<K, Value>;
type Table<B, K> = <B as StateBackend>::Table<K, Value>;

/// A key type of which the suite makes keys.
pub trait TestKey: Key + Ord + Debug {
    /// The `n`th key; any two differ.
    fn nth(n: u64) -> Self;
}

impl TestKey for u64 {
    fn nth(n: u64) -> Self {
        n
    }
}

impl TestKey for String {
    fn nth(n: u64) -> Self {
        format!("key {n}")
    }
}

/// Runs all of the suite.
///
/// # Panics
/// If the backend deviates.
pub fn suite<B: StateBackend>(backend: &B) {
    for (seed, max_parallelism) in (1..).zip([1, 13, 128, 32_768]) {
        operations_and_snapshots_agree_with_a_model::<B, u64>(backend, max_parallelism, seed);
        operations_and_snapshots_agree_with_a_model::<B, String>(backend, max_parallelism, seed);
        restoring_gives_each_owner_exactly_its_keys::<B, u64>(backend, max_parallelism, seed);
        restoring_gives_each_owner_exactly_its_keys::<B, String>(backend, max_parallelism, seed);
    }
    for (seed, max_parallelism) in (20..).zip([1, 13, 128, 32_768]) {
        layers_restore_to_what_was_frozen::<B, u64>(backend, max_parallelism, seed);
        layers_restore_to_what_was_frozen::<B, String>(backend, max_parallelism, seed + 10);
    }
    sweeps_remove_what_has_expired_and_nothing_else::<B, u64>(backend, 7);
    sweeps_remove_what_has_expired_and_nothing_else::<B, String>(backend, 8);
    values_are_restored_as_what_they_are_converted_to::<B, u64>(backend, 9);
    values_are_restored_as_what_they_are_converted_to::<B, String>(backend, 10);
    damaged_blocks_are_refused::<B, u64>(backend);
    damaged_blocks_are_refused::<B, String>(backend);
    random_damage_does_no_harm::<B, u64>(backend, 50_000, 1);
    random_damage_does_no_harm::<B, String>(backend, 50_000, 2);
}

/// Random operations answer as a `BTreeMap` does, and each snapshot, written at some later time on
/// this or on another thread, holds what the model held when it was frozen. Up to four snapshots
/// are alive at once.
///
/// # Panics
/// If the backend deviates.
pub fn operations_and_snapshots_agree_with_a_model<B: StateBackend, K: TestKey>(
    backend: &B,
    max_parallelism: u16,
    seed: u64,
) {
    let mut random = Random(seed);
    let mut table: Table<B, K> = backend.value_table(max_parallelism, &(0..max_parallelism));
    let mut model = Model::new();
    let mut frozen: Vec<(Box<dyn Frozen>, Model<K>)> = Vec::new();
    let mut writing: Vec<(JoinHandle<Section>, Model<K>)> = Vec::new();
    let mut checked = 0;
    for step in 0..12_000_u64 {
        let what = format!("seed {seed}, step {step}");
        // The range of keys grows and shrinks, so that there are both many new keys and many
        // removals.
        let key = K::nth(random.below(1 + (step * 7) % 6_000));
        operate(&mut table, &mut model, &key, &mut random, &what);
        match random.below(600) {
            0 if frozen.len() + writing.len() < 4 => {
                frozen.push((plain(&mut table), model.clone()))
            }
            1 if !frozen.is_empty() => {
                let (snapshot, expected) = frozen.swap_remove(random.index(frozen.len()));
                assert_eq!(content(&written(snapshot), max_parallelism), expected, "{what}");
                checked += 1;
            }
            2 if !frozen.is_empty() => {
                let (snapshot, expected) = frozen.swap_remove(random.index(frozen.len()));
                writing.push((std::thread::spawn(|| written(snapshot)), expected));
            }
            3 if !writing.is_empty() => {
                let (thread, expected) = writing.swap_remove(random.index(writing.len()));
                let section = thread.join().expect("the writer does not panic");
                assert_eq!(content(&section, max_parallelism), expected, "{what}");
                checked += 1;
            }
            // A snapshot that is given up leaves no trace.
            4 => drop(frozen.pop()),
            _ => {}
        }
    }
    assert!(checked > 0, "seed {seed}: no snapshot was checked");
    for (snapshot, expected) in frozen {
        assert_eq!(content(&written(snapshot), max_parallelism), expected, "seed {seed}, end");
    }
    for (thread, expected) in writing {
        let section = thread.join().expect("the writer does not panic");
        assert_eq!(content(&section, max_parallelism), expected, "seed {seed}, end");
    }
    assert_eq!(content(&written(plain(&mut table)), max_parallelism), model, "seed {seed}, end");
}

/// One random operation on both.
fn operate<K: TestKey>(
    table: &mut impl ValueTable<K, Value>,
    model: &mut Model<K>,
    key: &K,
    random: &mut Random,
    what: &str,
) {
    let hash = stable_hash(key);
    if random.below(4) == 0 {
        table.prefetch(&[hash, random.next()]);
    }
    let text = (random.below(3) == 0).then(|| format!("value {}", random.below(100)));
    let value = (random.next(), text);
    match random.below(8) {
        0 => assert_eq!(table.get(hash, key), model.get(key), "{what}: get {key:?}"),
        1 => {
            let found = table.get_mut(hash, key);
            let expected = model.get_mut(key);
            assert_eq!(found, expected, "{what}: get_mut {key:?}");
            if let (Some(found), Some(expected)) = (found, expected) {
                found.clone_from(&value);
                *expected = value;
            }
        }
        2..=4 => {
            let mut made = 0;
            let found = table.get_or_insert_with(hash, key, &mut || {
                made += 1;
                value.clone()
            });
            found.0 = found.0.wrapping_add(1);
            let is_new = !model.contains_key(key);
            let expected = model.entry(key.clone()).or_insert(value);
            expected.0 = expected.0.wrapping_add(1);
            assert_eq!(found, expected, "{what}: get_or_insert_with {key:?}");
            assert_eq!(made, u32::from(is_new), "{what}: values made for {key:?}");
        }
        5 => {
            let before = table.insert(hash, key, value.clone());
            assert_eq!(before, model.insert(key.clone(), value), "{what}: insert {key:?}");
        }
        _ => assert_eq!(table.remove(hash, key), model.remove(key), "{what}: remove {key:?}"),
    }
    assert_eq!(table.len(), model.len(), "{what}: len");
    assert_eq!(table.is_empty(), model.is_empty(), "{what}: is_empty");
}

/// A snapshot, restored by one to five owners, gives each exactly the keys of its key groups; and
/// each can go on.
///
/// # Panics
/// If the backend deviates.
pub fn restoring_gives_each_owner_exactly_its_keys<B: StateBackend, K: TestKey>(
    backend: &B,
    max_parallelism: u16,
    seed: u64,
) {
    let mut random = Random(seed);
    let (mut table, model) = filled::<B, K>(backend, max_parallelism, 3_000, &mut random);
    let section = written(plain(&mut table));
    assert_eq!(content(&section, max_parallelism), model, "seed {seed}");
    for parallelism in (1..=5).filter(|p| *p <= usize::from(max_parallelism)) {
        let mut all = Model::new();
        for worker in 0..parallelism {
            let groups = key_groups(max_parallelism, parallelism, worker);
            let mut table: Table<B, K> = backend.value_table(max_parallelism, &groups);
            for (entries, bytes) in section.blocks(1 + random.below(200) as usize) {
                let restored =
                    table.restore_block(&Selection::whole(groups.clone()), entries, &bytes);
                restored.expect("the block is whole");
            }
            let part = content::<K>(&written(plain(&mut table)), max_parallelism);
            assert_eq!(part.len(), table.len(), "seed {seed}, worker {worker} of {parallelism}");
            for (key, value) in &part {
                let hash = stable_hash(key);
                assert!(groups.contains(&key_group(hash, max_parallelism).0), "{key:?}");
                assert_eq!(table.get(hash, key), Some(value), "{key:?}");
                assert_eq!(table.remove(hash, key).as_ref(), Some(value), "{key:?}");
            }
            assert!(table.is_empty());
            let before = all.len();
            all.extend(part.clone());
            assert_eq!(all.len(), before + part.len(), "seed {seed}: two owners of one key");
        }
        assert_eq!(all, model, "seed {seed}, parallelism {parallelism}");
    }
}

/// Sweeps between changes remove only what has expired, look at no more entries than they may, and remove all of it in
/// rounds over the table. A snapshot that is alive keeps what it had.
///
/// # Panics
/// If the backend deviates.
pub fn sweeps_remove_what_has_expired_and_nothing_else<B: StateBackend, K: TestKey>(
    backend: &B,
    seed: u64,
) {
    let mut random = Random(seed);
    let (mut table, mut model) = filled::<B, K>(backend, 128, 4_000, &mut random);
    let expired = |value: &Value| value.0.is_multiple_of(3);
    let mut position = SweepPosition::default();
    let mut snapshot = None;
    let mut removed_all = 0;
    for step in 0..4_000_u64 {
        let key = K::nth(random.below(6_000));
        operate(&mut table, &mut model, &key, &mut random, &format!("seed {seed}, step {step}"));
        if step == 1_000 {
            snapshot = Some((plain(&mut table), model.clone()));
        }
        let entries = random.index(20);
        let mut looked = 0;
        let before = table.len();
        let removed = table.sweep(&mut position, entries, |value| {
            looked += 1;
            expired(value)
        });
        assert!(looked <= entries, "seed {seed}, step {step}: {looked} of {entries} looked at");
        assert_eq!(table.len(), before - removed, "seed {seed}, step {step}");
        removed_all += removed;
        // What is left of the model is what the table has, of what has expired.
        if removed > 0 {
            model
                .retain(|key, value| !expired(value) || table.get(stable_hash(key), key).is_some());
        }
        assert_eq!(table.len(), model.len(), "seed {seed}, step {step}");
    }
    assert!(removed_all > 1_000, "seed {seed}: only {removed_all} were removed");
    let (frozen, expected) = snapshot.expect("one was taken");
    assert_eq!(content(&written(frozen), 128), expected, "seed {seed}: what was frozen");
    // Reading takes every page back from the snapshot.
    for key in model.keys() {
        assert!(table.get(stable_hash(key), key).is_some(), "seed {seed}: {key:?}");
    }
    for _ in 0..1 + 2 * model.len() / 50 {
        table.sweep(&mut position, 50, expired);
    }
    model.retain(|_, value| !expired(value));
    assert_eq!(content(&written(plain(&mut table)), 128), model, "seed {seed}: after all rounds");
}

/// A block of values of one type fills a table of another, but for those that the conversion drops.
///
/// # Panics
/// If the backend deviates.
pub fn values_are_restored_as_what_they_are_converted_to<B: StateBackend, K: TestKey>(
    backend: &B,
    seed: u64,
) {
    let (mut table, model) = filled::<B, K>(backend, 128, 2_000, &mut Random(seed));
    let section = written(plain(&mut table));
    let convert = |value: Value| (!value.0.is_multiple_of(5)).then_some(value.0);
    let mut other: B::Table<K, u64> = backend.value_table(128, &(0..128));
    for (entries, bytes) in section.blocks(100) {
        let restored = other.restore_block_as(&Selection::whole(0..128), entries, &bytes, convert);
        restored.expect("the block is whole");
    }
    let mut kept = 0;
    for (key, value) in &model {
        let expected = convert(value.clone());
        kept += usize::from(expected.is_some());
        assert_eq!(other.get(stable_hash(key), key).copied(), expected, "seed {seed}: {key:?}");
    }
    assert_eq!(other.len(), kept, "seed {seed}");
    assert!(kept < model.len() && kept > 0, "seed {seed}: some are dropped, some are not");
    let (entries, bytes) = section.blocks(usize::MAX).remove(0);
    let cut = other.restore_block_as(
        &Selection::whole(0..128),
        entries,
        &bytes[..bytes.len() - 1],
        convert,
    );
    assert!(matches!(cut, Err(FormatError::Corrupt { .. })), "{cut:?}");
}

/// A block that is cut, has bytes or entries too many or too few, or is there twice, is refused.
///
/// # Panics
/// If the backend deviates.
pub fn damaged_blocks_are_refused<B: StateBackend, K: TestKey>(backend: &B) {
    let (entries, bytes) = small_block::<B, K>(backend);
    let restore = |table: &mut Table<B, K>, entries, bytes: &[u8]| {
        table.restore_block(&Selection::whole(0..128), entries, bytes)
    };
    let refused = |entries, bytes: &[u8], what: &str| {
        let result = restore(&mut backend.value_table(128, &(0..128)), entries, bytes);
        assert!(matches!(result, Err(FormatError::Corrupt { .. })), "{what}: {result:?}");
    };
    for length in 0..bytes.len() {
        refused(entries, &bytes[..length], &format!("cut to {length} bytes"));
    }
    refused(entries, &[bytes.as_slice(), &[0]].concat(), "a byte too many");
    refused(entries - 1, &bytes, "an entry more than told");
    refused(entries + 1, &bytes, "an entry fewer than told");
    refused(u32::MAX, &bytes, "far fewer entries than told");
    refused(2 * entries, &bytes.repeat(2), "each key twice");

    let mut table: Table<B, K> = backend.value_table(128, &(0..128));
    restore(&mut table, entries, &bytes).expect("the block is whole");
    let again = restore(&mut table, entries, &bytes);
    assert!(matches!(again, Err(FormatError::Corrupt { offset: 0, .. })), "{again:?}");
    assert_eq!(table.len(), entries as usize);
}

/// Blocks with random bytes changed are refused or restored, and the table can still be used. (Such
/// damage is found by the checksum around a block; here it must only do no harm.)
///
/// # Panics
/// If the backend panics, or accepts more entries than there can be.
pub fn random_damage_does_no_harm<B: StateBackend, K: TestKey>(
    backend: &B,
    rounds: u32,
    seed: u64,
) {
    let (entries, bytes) = small_block::<B, K>(backend);
    let mut random = Random(seed);
    let mut refused = 0;
    for round in 0..rounds {
        let mut damaged = bytes.clone();
        for _ in 0..=random.below(3) {
            let at = random.index(damaged.len());
            match random.below(4) {
                0 => damaged[at] ^= 1 << random.below(8),
                1 => damaged[at] = [0, 1, 0x7f, 0x80, 0xff][random.index(5)],
                2 => drop(damaged.remove(at)),
                _ => damaged.insert(at, random.next() as u8),
            }
        }
        let mut table: Table<B, K> = backend.value_table(128, &(0..128));
        refused +=
            u32::from(table.restore_block(&Selection::whole(0..128), entries, &damaged).is_err());
        let held = content::<K>(&written(plain(&mut table)), 128);
        assert_eq!(held.len(), table.len(), "seed {seed}, round {round}");
        assert!(held.len() <= entries as usize, "seed {seed}, round {round}");
    }
    assert!(refused > rounds / 10, "seed {seed}: only {refused} of {rounds} were refused");
}

/// Layers of random changes, some of them of checkpoints that are never complete or are complete late, restore to what the table held when the
/// last was frozen, whatever changed and was frozen before it was written, for any owners; and the restored tables can be built on.
///
/// # Panics
/// If the backend deviates.
pub fn layers_restore_to_what_was_frozen<B: StateBackend, K: TestKey>(
    backend: &B,
    max_parallelism: u16,
    seed: u64,
) {
    let mut random = Random(seed);
    let all = 0..max_parallelism;
    let (mut table, mut model) = filled::<B, K>(backend, max_parallelism, 4_000, &mut random);
    let mut stored: BTreeMap<Epoch, StoredLayer> = BTreeMap::new();
    let mut confirmed: Option<(Epoch, BTreeSet<Epoch>)> = None;
    let mut pending: Vec<(Epoch, BTreeSet<Epoch>)> = Vec::new();
    // Frozen, with whether the layer will be needed, and not written yet.
    let mut unwritten: Vec<(Epoch, Box<dyn Frozen>, StoredLayer, bool)> = Vec::new();
    let (mut layered, mut removed, mut empty, mut overlapping) = (0, 0, 0, 0);
    for epoch in (1..=160).map(Epoch) {
        let what = format!("seed {seed}, max_parallelism {max_parallelism}, checkpoint {epoch}");
        let steps = [0, 3, 40, 40, 1_500][random.index(5)];
        operate_some(&mut table, &mut model, steps, &mut random, &what);
        let form = SnapshotForm::Layer {
            epoch,
            confirmed: confirmed.as_ref().map(|(epoch, _)| *epoch),
            whole: random.below(20) == 0,
            bytes_min: 0,
        };
        let frozen = table.freeze(form);
        let frozen_model = model.clone();
        let steps = [0, 0, 3, 1_500][random.index(4)];
        operate_some(&mut table, &mut model, steps, &mut random, &what);
        let layer = StoredLayer {
            changes: matches!(frozen.extent, Extent::Changes { .. }),
            whole: match &frozen.extent {
                Extent::Whole => hashes(&all, max_parallelism).into_iter().collect(),
                Extent::Changes { whole } => whole.iter().copied().collect(),
            },
            section: Section::default(),
        };
        layered += usize::from(frozen.needs.len() > 2);
        let mut needs = frozen.needs;
        needs.insert(epoch);
        unwritten.push((epoch, frozen.content, layer, frozen.layer));
        if unwritten.len() < 4 && random.below(2) == 0 {
            pending.push((epoch, needs));
            continue;
        }
        overlapping += unwritten.len() - 1;
        while !unwritten.is_empty() {
            let (epoch, content, mut layer, needed) =
                unwritten.swap_remove(random.index(unwritten.len()));
            layer.section = written(content);
            if !needed {
                assert!(layer.section.entries.is_empty(), "{what}: somebody will need {epoch}");
                empty += 1;
            }
            if layer.changes {
                let gone = |(_, bytes): &&(KeyGroup, Vec<u8>)| bytes[0] == ENTRY_REMOVED;
                removed += layer.section.entries.iter().filter(gone).count();
            }
            stored.insert(epoch, layer);
        }

        if random.below(4) == 0 {
            let parallelism = (1 + random.index(5)).min(usize::from(max_parallelism));
            let mut restored = Model::new();
            for worker in 0..parallelism {
                let groups = key_groups(max_parallelism, parallelism, worker);
                let table =
                    restore_layers::<B, K>(backend, &stored, &needs, &groups, max_parallelism);
                restored.extend(content_of(table, max_parallelism));
            }
            assert_eq!(restored, frozen_model, "{what}: restored by {parallelism}");
        }
        pending.push((epoch, needs));
        match random.below(8) {
            // It is aborted, or late.
            0 => drop(pending.pop()),
            1 => {}
            _ => {
                confirmed = pending.pop();
                pending.clear();
            }
        }
        if random.below(4) == 0 && !pending.is_empty() {
            confirmed = Some(pending.remove(0));
        }
        if random.below(30) == 0
            && let Some((epoch, needs)) = &confirmed
        {
            table = restore_layers::<B, K>(backend, &stored, needs, &all, max_parallelism);
            let layers = needs.iter().map(|epoch| Layer {
                epoch: *epoch,
                whole: stored[epoch].whole.clone(),
                top: true,
            });
            table.restored(layers.collect());
            let restored = restore_layers::<B, K>(backend, &stored, needs, &all, max_parallelism);
            model = content_of(restored, max_parallelism);
            assert_eq!(table.len(), model.len(), "{what}: restored {epoch}");
            pending.clear();
            confirmed = None;
        }
    }
    assert!(layered > 20, "seed {seed}: {layered} snapshots had layers");
    assert!(removed > 20, "seed {seed}: {removed} removed keys were written");
    assert!(empty > 0, "seed {seed}: none was empty");
    assert!(overlapping > 20, "seed {seed}: {overlapping} were frozen before another was written");
}

/// So many random operations on both, also with keys that were never there.
fn operate_some<K: TestKey>(
    table: &mut impl ValueTable<K, Value>,
    model: &mut Model<K>,
    steps: usize,
    random: &mut Random,
    what: &str,
) {
    for _ in 0..steps {
        let key = K::nth(random.below(5_000));
        operate(table, model, &key, random, what);
    }
}

/// What storage holds of one snapshot.
struct StoredLayer {
    changes: bool,
    whole: HashRanges,
    section: Section,
}

fn restore_layers<B: StateBackend, K: TestKey>(
    backend: &B,
    stored: &BTreeMap<Epoch, StoredLayer>,
    needs: &BTreeSet<Epoch>,
    groups: &Range<u16>,
    max_parallelism: u16,
) -> Table<B, K> {
    let mut superseded = HashRanges::default();
    let mut steps = Vec::new();
    for layer in needs.iter().rev().map(|epoch| &stored[epoch]) {
        steps.push((layer, superseded.clone()));
        layer.whole.as_slice().iter().for_each(|range| superseded.insert(*range));
    }
    let mut table: Table<B, K> = backend.value_table(max_parallelism, groups);
    for (layer, superseded) in steps.into_iter().rev() {
        let (groups, changes) = (groups.clone(), layer.changes);
        let selection = Selection { groups, superseded: &superseded, changes };
        for (entries, bytes) in layer.section.blocks(100) {
            table.restore_block(&selection, entries, &bytes).expect("the block is whole");
        }
    }
    table
}

fn content_of<K: TestKey>(mut table: impl ValueTable<K, Value>, max_parallelism: u16) -> Model<K> {
    let mut visited = Model::new();
    table.for_each(|key, value| {
        assert!(visited.insert(key.clone(), value.clone()).is_none(), "{key:?} is visited twice");
    });
    assert_eq!(content(&written(plain(&mut table)), max_parallelism), visited);
    visited
}

/// Everything, once.
fn plain<K: Key, V: StateValue>(table: &mut impl ValueTable<K, V>) -> Box<dyn Frozen> {
    table.freeze(SnapshotForm::Plain).content
}

fn small_block<B: StateBackend, K: TestKey>(backend: &B) -> (u32, Vec<u8>) {
    let (mut table, _) = filled::<B, K>(backend, 128, 12, &mut Random(5));
    let mut blocks = written(plain(&mut table)).blocks(usize::MAX);
    blocks.pop().expect("a table with keys has a block")
}

fn filled<B: StateBackend, K: TestKey>(
    backend: &B,
    max_parallelism: u16,
    keys: u64,
    random: &mut Random,
) -> (Table<B, K>, Model<K>) {
    let mut table: Table<B, K> = backend.value_table(max_parallelism, &(0..max_parallelism));
    let mut model = Model::new();
    for n in 0..keys {
        let key = K::nth(n);
        let text = (n % 3 == 0).then(|| format!("value {n}"));
        let value = (random.next(), text);
        assert_eq!(table.insert(stable_hash(&key), &key, value.clone()), None);
        model.insert(key, value);
    }
    (table, model)
}

fn written(frozen: Box<dyn Frozen>) -> Section {
    let mut section = Section::default();
    frozen.write(&mut section).expect("memory does not fail");
    section
}

/// The entries of a section. Asserts that each is in its key group, in ascending order, and there
/// once.
fn content<K: TestKey>(section: &Section, max_parallelism: u16) -> Model<K> {
    let mut content = Model::new();
    let mut last = KeyGroup(0);
    for (group, bytes) in &section.entries {
        let (key, rest) = postcard::take_from_bytes::<K>(bytes).expect("a key");
        let (value, rest) = postcard::take_from_bytes::<Value>(rest).expect("a value");
        assert!(rest.is_empty(), "{key:?} has bytes left over");
        assert_eq!(*group, key_group(stable_hash(&key), max_parallelism), "{key:?}");
        assert!(last <= *group, "key group {group} of {key:?} comes after {last}");
        last = *group;
        assert!(!content.contains_key(&key), "{key:?} is there twice");
        content.insert(key, value);
    }
    content
}

/// A section in memory.
#[derive(Default)]
struct Section {
    entries: Vec<(KeyGroup, Vec<u8>)>,
}

impl Section {
    /// The entries in blocks of `per_block`: how many, and their bytes.
    fn blocks(&self, per_block: usize) -> Vec<(u32, Vec<u8>)> {
        let block = |entries: &[(KeyGroup, Vec<u8>)]| {
            let bytes = entries.iter().flat_map(|(_, bytes)| bytes).copied().collect();
            (entries.len() as u32, bytes)
        };
        self.entries.chunks(per_block).map(block).collect()
    }
}

impl SectionOutput for Section {
    fn entry(
        &mut self,
        group: KeyGroup,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), FormatError>,
    ) -> Result<(), FormatError> {
        let mut bytes = Vec::new();
        fill(&mut bytes)?;
        self.entries.push((group, bytes));
        Ok(())
    }
}

/// Numbers from a seed: the stable hashes of the numbers that follow it.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 += 1;
        stable_hash(&(self.0, "random"))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }
}
