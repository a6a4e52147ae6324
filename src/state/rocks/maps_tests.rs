//! Tests of maps with a row for each entry.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::tests::{Apart, Entries, copied, source};
use super::{MapTable, Source};
use crate::protocol::key_groups::{key_group, key_groups};
use crate::protocol::layers::Selection;
use crate::state::hash::stable_hash;
use crate::state::heap::HeapBackend;
use crate::state::{
    Frozen, FrozenState, Key, MapKey, SnapshotForm, StateBackend, StateValue, ValueTable,
};

type Maps<K> = BTreeMap<K, BTreeMap<i64, String>>;

/// Entries as they are written, with their key groups, sorted.
type Sorted = Vec<(u16, Vec<u8>)>;

fn written(frozen: Box<dyn Frozen>) -> Entries {
    let mut entries = Entries::default();
    frozen.write(&mut entries).unwrap();
    entries
}

fn frozen<K: Key, M: MapKey, V: StateValue>(table: &mut MapTable<K, M, V>) -> Box<dyn Frozen> {
    let FrozenState { content, .. } = table.freeze(SnapshotForm::Plain);
    content
}

/// What the heap writes of these maps, sorted: rows of a key group are in another order.
fn on_heap<K: Key + Ord>(maps: &Maps<K>, groups: u16) -> Sorted {
    let mut table = HeapBackend.value_table(groups, &(0..groups));
    for (key, map) in maps {
        table.insert(stable_hash(key), key, map.clone());
    }
    sorted(written(table.freeze(SnapshotForm::Plain).content))
}

fn sorted(entries: Entries) -> Sorted {
    assert!(entries.0.is_sorted_by_key(|(group, _)| *group));
    let mut entries: Vec<_> = entries.0.into_iter().map(|(group, e)| (group.0, e)).collect();
    entries.sort_unstable();
    entries
}

/// The entries of one map.
fn entries_of<K: Key, V: StateValue>(table: &mut MapTable<K, i64, V>, key: &K) -> Vec<(i64, V)> {
    table.map(stable_hash(key), key).iter().collect()
}

/// Random operations on the maps of a few keys, of which one is large, answer as `BTreeMap`s do, in one order; and each snapshot,
/// written at some later time, has the bytes that the heap writes for what was there.
fn agrees_with_a_model<K: Key + Ord + std::fmt::Debug>(
    backend: &Apart,
    groups: u16,
    seed: u64,
    nth: impl Fn(u64) -> K,
) {
    let mut table: MapTable<K, i64, String> = backend.instance_of(groups).map_table("maps", groups);
    let mut model: Maps<K> = BTreeMap::new();
    let mut snapshots: Vec<(Box<dyn Frozen>, Sorted)> = Vec::new();
    let (mut random, mut checked, mut reopened) = (seed * 7_919, 0, 0);
    let mut looked_up = 0;
    for step in 0..4_000_u64 {
        random = stable_hash(&(random, step));
        let what = format!("seed {seed}, step {step}");
        // Many entries belong to one key.
        let n = if random & 3 == 0 { 0 } else { random >> 8 & 31 };
        let (key, most) = (nth(n), if n < 8 { 255 } else { 15 });
        let hash = stable_hash(&key);
        let entry = (random >> 16 & most) as i64 - 9;
        let mut map = table.map(hash, &key);
        match random >> 32 & 31 {
            0..=15 => {
                let value = format!("value {step}");
                let before = map.insert(entry, value.clone());
                let its = model.entry(key).or_default();
                assert_eq!(before, its.insert(entry, value), "{what}: insert");
            }
            16..=20 => {
                let expected = model.get_mut(&key).and_then(|its| its.remove(&entry));
                assert_eq!(map.remove(&entry), expected, "{what}: remove {entry}");
                model.retain(|_, its| !its.is_empty());
            }
            21..=26 => {
                let expected = model.get(&key).and_then(|its| its.get(&entry));
                assert_eq!(map.get(&entry), expected, "{what}: get {entry}");
            }
            27 | 28 => {
                let expected = model.get(&key).into_iter().flatten();
                let expected: Vec<_> = expected.map(|(n, text)| (*n, text.clone())).collect();
                assert_eq!(map.iter().collect::<Vec<_>>(), expected, "{what}: iterate");
            }
            // As from a queue: what comes first is removed.
            29 if random >> 40 & 7 == 1 => {
                let its = model.entry(key.clone()).or_default();
                for taken in 0..random >> 44 & 63 {
                    let first = map.iter().next();
                    assert_eq!(first, its.pop_first(), "{what}: the first but {taken}");
                    if let Some((entry, value)) = first {
                        assert_eq!(map.remove(&entry), Some(value), "{what}: take {entry}");
                    }
                }
                model.retain(|_, its| !its.is_empty());
            }
            29 if random >> 40 & 7 == 0 => {
                map.clear();
                model.remove(&key);
                assert_eq!(map.iter().next(), None, "{what}: clear");
            }
            30 if random >> 40 & 15 == 0 && snapshots.len() < 3 => {
                snapshots.push((frozen(&mut table), on_heap(&model, groups)));
            }
            30 if random >> 40 & 15 == 1 && !snapshots.is_empty() => {
                let (snapshot, expected) = snapshots.swap_remove(0);
                assert!(sorted(written(snapshot)) == expected, "{what}: snapshot");
                checked += 1;
            }
            // A snapshot that is given up leaves no trace.
            30 if random >> 40 & 15 == 2 => drop(snapshots.pop()),
            31 if random >> 40 & 63 == 0 => {
                looked_up += table.table().instance().counters().looked_up.load(Ordering::Relaxed);
                let next = backend.instance_of(groups);
                let files = source(backend, table.table(), 0..groups);
                assert!(next.take_over(&[files], &(0..groups)).unwrap());
                snapshots.clear();
                table = next.map_table("maps", groups);
                reopened += 1;
            }
            _ => {}
        }
    }
    for (key, its) in &model {
        let expected: Vec<_> = its.iter().map(|(n, text)| (*n, text.clone())).collect();
        assert_eq!(entries_of(&mut table, key), expected, "seed {seed}, end: {key:?}");
    }
    assert!(sorted(written(frozen(&mut table))) == on_heap(&model, groups), "seed {seed}, end");
    assert!(checked > 0 && reopened > 0, "seed {seed}: {checked} snapshots, {reopened} reopened");
    let is_tiny = backend.budget.total_bytes() < 64 << 20;
    assert!(looked_up > 500 || !is_tiny, "seed {seed}: only {looked_up} were not in memory");
}

#[test]
fn maps_agree_with_models_whatever_is_in_memory() {
    let backend = Apart::new(0, 0);
    agrees_with_a_model(&backend, 13, 1, |n| n);
    let text = |n: u64| "x".repeat(n as usize % 5) + &n.to_string();
    agrees_with_a_model(&backend, 32_768, 2, text);
    agrees_with_a_model(&Apart::new(64 << 20, 0), 13, 3, |n| n);
}

#[test]
fn maps_of_an_instance_that_is_never_opened_are_written_as_the_heap_writes_them() {
    let backend = Apart::new(64 << 20, usize::MAX);
    let instance = backend.instance();
    let mut table: MapTable<u64, i64, String> = instance.map_table("maps", 128);
    let mut model: Maps<u64> = BTreeMap::new();
    for n in 0..5_000_i64 {
        let (key, value) = (n as u64 % 300, format!("value {n}"));
        table.map(stable_hash(&key), &key).insert(-n, value.clone());
        model.entry(key).or_default().insert(-n, value);
    }
    for key in (0..300).step_by(7) {
        table.map(stable_hash(&key), &key).clear();
        model.remove(&key);
    }
    assert!(sorted(written(frozen(&mut table))) == on_heap(&model, 128));
    assert!(!instance.directory().exists(), "it was opened");
}

/// A map of 60 000 entries, of one key among others, with much less memory than it takes; and the memory's bound.
fn much_larger_than_memory(backend: &Apart) -> (MapTable<u64, i64, u64>, i64) {
    let mut table: MapTable<u64, i64, u64> = backend.instance().map_table("maps", 128);
    let entries = 60_000;
    for n in 0..entries {
        table.map(stable_hash(&1_u64), &1).insert(n, n as u64);
        if n % 100 == 0 {
            for key in [0_u64, 2, 3] {
                table.map(stable_hash(&key), &key).insert(n, n as u64);
            }
        }
        if n == entries / 2 {
            drop(frozen(&mut table));
        }
    }
    (table, entries)
}

#[test]
fn a_map_much_larger_than_memory_is_iterated_within_the_budget_and_read_row_by_row() {
    let backend = Apart::new(1 << 20, 0);
    let (mut table, entries) = much_larger_than_memory(&backend);
    let budget = backend.budget.accounted_bytes();
    let in_memory = table.table().bytes_in_memory();
    assert!(in_memory <= budget, "{in_memory} bytes are in memory, of {budget}");
    let instance = table.table().instance().clone();
    let counters = instance.counters();
    let (hash, key) = (stable_hash(&1_u64), 1);
    let (mut most, mut seen) = (0, 0);
    for (n, value) in table.map(hash, &key).iter() {
        assert_eq!((n, value), (seen, seen as u64));
        seen += 1;
        if n % 1_000 == 0 {
            most = most.max(backend.budget.used_bytes());
        }
    }
    assert_eq!(seen, entries);
    assert!(most <= budget / 100 * 115, "{most} bytes were used of {budget}");
    let iterated = counters.iterated.load(Ordering::Relaxed);
    assert!(iterated > entries as u64 / 2, "only {iterated} rows were read: the test says nothing");
    assert!(table.table().bytes_in_memory() <= in_memory, "iteration has put something there");
    // One entry is one row.
    let count = || {
        let [looked_up, iterated] = [&counters.looked_up, &counters.iterated];
        (looked_up.load(Ordering::Relaxed), iterated.load(Ordering::Relaxed))
    };
    let before = count();
    let mut read = 0;
    for n in (0..entries).step_by(1_009) {
        let first = count().0;
        assert_eq!(table.map(hash, &key).get(&n), Some(&(n as u64)));
        let then = count().0;
        assert!(then - first <= 1);
        read += then - first;
        assert_eq!(table.map(hash, &key).get(&n), Some(&(n as u64)));
        assert_eq!(count().0, then, "it was read once more");
    }
    assert!(read > 30, "only {read} of them were not in memory");
    assert_eq!(count().1, before.1, "nothing was iterated over");
    // Ten entries are ten rows.
    assert_eq!(table.map(hash, &key).iter().take(10).count(), 10);
    assert!(count().1 - before.1 <= 10);
}

#[test]
fn hot_entries_are_neither_read_nor_written_for_each_record() {
    let backend = Apart::new(1 << 20, 0);
    let (mut table, _) = much_larger_than_memory(&backend);
    let instance = table.table().instance().clone();
    let hash = stable_hash(&1_u64);
    for n in 0..50 {
        table.map(hash, &1).insert(n, 0);
    }
    let counters = instance.counters();
    let count = || {
        let [looked_up, written] = [&counters.looked_up, &counters.written];
        (looked_up.load(Ordering::Relaxed), written.load(Ordering::Relaxed))
    };
    let before = count();
    for step in 0..20_000 {
        let (n, mut map) = (step % 50, table.map(hash, &1));
        let value = *map.get(&n).unwrap();
        assert_eq!(map.insert(n, value + 1), Some(value));
    }
    let after = count();
    // A few pages may still be given up, since what was added before is weighed late.
    let (read, wrote) = (after.0 - before.0, after.1 - before.1);
    assert!(read < 400 && wrote < 2_000, "{read} were read and {wrote} written");
    assert!(table.map(hash, &1).iter().take(50).all(|(_, value)| value == 400));
}

/// Number of entries in memory, with those that were removed.
fn in_memory(table: &mut MapTable<u64, i64, u64>) -> usize {
    table.table().parts().sorted.len()
}

fn rows_written(table: &mut MapTable<u64, i64, u64>) -> u64 {
    table.table().instance().counters().written.load(Ordering::Relaxed)
}

#[test]
fn what_was_added_since_the_last_snapshot_and_is_removed_is_forgotten_at_once() {
    let backend = Apart::new(1 << 20, 0);
    let mut table: MapTable<u64, i64, u64> = backend.instance().map_table("maps", 128);
    let (hash, key) = (stable_hash(&1_u64), 1);
    for n in 0..10_000 {
        table.map(hash, &key).insert(n, 1);
        assert_eq!(table.map(hash, &key).remove(&n), Some(1));
        assert_eq!(table.map(hash, &key).remove(&n), None);
        assert_eq!(in_memory(&mut table), 0);
    }
    assert!(written(frozen(&mut table)).0.is_empty());
    // What a snapshot has is remembered as removed, for the next one.
    table.map(hash, &key).insert(7, 1);
    let before = frozen(&mut table);
    assert_eq!(table.map(hash, &key).remove(&7), Some(1));
    assert_eq!((in_memory(&mut table), entries_of(&mut table, &key).len()), (1, 0));
    assert_eq!(written(before).0.len(), 1);
    assert_eq!((in_memory(&mut table), entries_of(&mut table, &key).len()), (1, 0));
    assert!(written(frozen(&mut table)).0.is_empty());
}

#[test]
fn a_map_that_is_a_queue_does_not_remember_what_was_taken_from_it() {
    let backend = Apart::new(4 << 20, 0);
    let mut table: MapTable<u64, i64, u64> = backend.instance().map_table("maps", 128);
    let (hash, key) = (stable_hash(&1_u64), 1);
    let entries = 5_000;
    for n in 0..entries {
        table.map(hash, &key).insert(n, n as u64);
    }
    let take = |table: &mut MapTable<u64, i64, u64>, expected: i64| {
        let first = table.map(hash, &key).iter().next();
        assert_eq!(first, Some((expected, expected as u64)));
        table.map(hash, &key).remove(&expected);
    };
    let snapshot = frozen(&mut table);
    (0..2_000).for_each(|n| take(&mut table, n));
    assert_eq!(written(snapshot).0.len(), 1, "one map");
    // Nothing is written while a snapshot is made. Behind it they are forgotten in lots.
    (2_000..2_100).for_each(|n| take(&mut table, n));
    let left = in_memory(&mut table);
    assert!(left <= entries as usize - 2_100 + 20, "{left} are in memory");
    // What a snapshot has told RocksDB is forgotten without another word, also while the next one is made.
    for n in 2_100..2_400 {
        table.map(hash, &key).remove(&n);
    }
    assert_eq!(written(frozen(&mut table)).0.len(), 1);
    let (before, rows) = (in_memory(&mut table), rows_written(&mut table));
    take(&mut table, 2_400);
    let left = in_memory(&mut table);
    assert!(left <= before - 300, "{left} are in memory, of {before}");
    assert_eq!(rows_written(&mut table), rows);
    let rest: Vec<_> = (2_401..entries).map(|n| (n, n as u64)).collect();
    assert_eq!(entries_of(&mut table, &key), rest);
    (2_401..entries).for_each(|n| take(&mut table, n));
    assert!(entries_of(&mut table, &key).is_empty());
    assert!(in_memory(&mut table) < 20, "{}", in_memory(&mut table));
    assert!(written(frozen(&mut table)).0.is_empty());
}

#[test]
fn a_small_map_that_is_a_queue_makes_no_files() {
    let backend = Apart::new(1 << 20, usize::MAX);
    let mut table: MapTable<u64, i64, u64> = backend.instance().map_table("maps", 128);
    let instance = table.table().instance().clone();
    let (hash, key) = (stable_hash(&1_u64), 1);
    for n in 0..1_000 {
        table.map(hash, &key).insert(n, 1);
        if n % 100 == 0 {
            assert_eq!(written(frozen(&mut table)).0.len(), 1);
        }
        if n >= 50 {
            assert_eq!(table.map(hash, &key).iter().next(), Some((n - 50, 1)));
            table.map(hash, &key).remove(&(n - 50));
        }
        assert!(in_memory(&mut table) < 52, "nothing has to be remembered as removed");
    }
    assert!(!instance.directory().exists(), "it was opened");
}

#[test]
fn a_small_map_is_read_once_to_be_iterated_over_and_again_when_it_was_given_up() {
    let backend = Apart::new(1 << 20, 0);
    let mut table: MapTable<u64, i64, u64> = backend.instance().map_table("maps", 128);
    let keys = 4_000_u64;
    for key in 0..keys {
        let mut map = table.map(stable_hash(&key), &key);
        for n in 0..20 {
            map.insert(n, key);
        }
    }
    let instance = table.table().instance().clone();
    let iterated = || instance.counters().iterated.load(Ordering::Relaxed);
    let expected = |key: u64| (0..20).map(move |n| (n, key));
    for round in 1..=2 {
        for key in 0..keys {
            assert!(entries_of(&mut table, &key).into_iter().eq(expected(key)), "{key}");
        }
        assert!(iterated() > round * 60_000, "{} in round {round}", iterated());
    }
    let before = iterated();
    for step in 0..1_000_u64 {
        let key = keys - 1 - step % 10;
        let mut map = table.map(stable_hash(&key), &key);
        map.insert(step as i64 % 20, key);
        assert!(map.iter().eq(expected(key)), "{key}");
    }
    assert!(iterated() - before < 400, "{} rows were read once more", iterated() - before);
}

#[test]
fn nothing_of_a_cleared_map_comes_back_and_a_snapshot_before_has_all_of_it() {
    let backend = Apart::new(1 << 20, 0);
    let (mut table, entries) = much_larger_than_memory(&backend);
    let (hash, key) = (stable_hash(&1_u64), 1_u64);
    let snapshot = frozen(&mut table);
    // While it is being made.
    table.map(hash, &key).insert(-1, 7);
    table.map(hash, &key).clear();
    assert_eq!(table.map(hash, &key).iter().next(), None);
    for n in (0..entries).step_by(5_003) {
        assert_eq!(table.map(hash, &key).get(&n), None);
    }
    table.map(hash, &key).insert(5, 50);
    let maps = |entries: Entries| -> BTreeMap<u64, BTreeMap<i64, u64>> {
        let decode = |(_, bytes): &(_, Vec<u8>)| {
            postcard::from_bytes::<(u64, BTreeMap<i64, u64>)>(bytes).unwrap()
        };
        entries.0.iter().map(decode).collect()
    };
    let lens = |entries: Entries| maps(entries).into_values().map(|map| map.len()).collect();
    let found: Vec<usize> = lens(written(snapshot));
    assert_eq!(found, [600, entries as usize, 600, 600]);
    let found: Vec<usize> = lens(written(frozen(&mut table)));
    assert_eq!(found, [600, 1, 600, 600]);
    // Nor elsewhere, nor after all rows were rewritten.
    let files = source(&backend, table.table(), 0..128);
    let next = backend.instance();
    next.take_over(&[files], &(0..128)).unwrap();
    let database = next.core().database().unwrap();
    for family in next.core().columns().iter().flat_map(|column| column.families.clone()) {
        if let Some(family) = database.cf_handle(&family) {
            database.compact_range_cf(&family, None::<&[u8]>, None::<&[u8]>);
        }
    }
    let mut table: MapTable<u64, i64, u64> = next.map_table("maps", 128);
    assert_eq!(entries_of(&mut table, &1), [(5, 50)]);
    assert_eq!(entries_of(&mut table, &2).len(), 600);
}

#[test]
fn maps_are_taken_over_at_any_parallelism() {
    let backend = Apart::new(1 << 20, 0);
    let (groups, keys) = (128, 400_u64);
    let fill = |parallelism: usize| -> Vec<Source> {
        let filled = (0..parallelism).map(|worker| {
            let its = key_groups(groups, parallelism, worker);
            let mut table = backend.instance().map_table::<u64, i64, u64>("maps", groups);
            for key in 0..keys {
                let hash = stable_hash(&key);
                if its.contains(&key_group(hash, groups).0) {
                    for n in 0..20 {
                        table.map(hash, &key).insert(n, key);
                    }
                }
            }
            source(&backend, table.table(), its)
        });
        filled.collect()
    };
    for (from, to) in [(1, 3), (4, 1), (3, 5)] {
        let (filled, mut found) = (fill(from), 0);
        for worker in 0..to {
            let its = key_groups(groups, to, worker);
            let mut sources: Vec<Source> = filled.iter().map(|s| copied(&backend, s)).collect();
            sources.retain(|s| s.groups.start < its.end && its.start < s.groups.end);
            let fullest = Source::fullest(sources.iter().map(|s| &s.groups), &its);
            sources.swap(0, fullest.unwrap());
            let instance = backend.instance();
            assert!(instance.take_over(&sources, &its).unwrap());
            instance.keep_only(&["maps"]).unwrap();
            let mut table = instance.map_table::<u64, i64, u64>("maps", groups);
            for key in 0..keys {
                let ours = its.contains(&key_group(stable_hash(&key), groups).0);
                let expected = if ours { 20 } else { 0 };
                assert_eq!(entries_of(&mut table, &key).len(), expected, "{key} {from}->{to}");
            }
            found += written(frozen(&mut table)).0.len() as u64;
        }
        assert_eq!(found, keys, "{from}->{to}");
    }
}

#[test]
fn a_map_in_changes_takes_the_place_of_the_one_that_was_there() {
    let backend = Apart::new(0, 0);
    let mut table: MapTable<u64, i64, u64> = backend.instance().map_table("maps", 8);
    for n in 0..500 {
        table.map(stable_hash(&7_u64), &7).insert(n, 1);
    }
    drop(frozen(&mut table));
    type Changed<'a> = (u64, Option<&'a [(i64, u64)]>);
    let of = |entries: &[Changed<'_>]| {
        let mut bytes = Vec::new();
        for (key, map) in entries {
            bytes.push(map.map_or(crate::format::ENTRY_REMOVED, |_| crate::format::ENTRY_PRESENT));
            bytes.extend(postcard::to_allocvec(key).unwrap());
            if let Some(map) = map {
                let map: BTreeMap<i64, u64> = map.iter().copied().collect();
                bytes.extend(postcard::to_allocvec(&map).unwrap());
            }
        }
        bytes
    };
    let mut selection = Selection::whole(0..8);
    selection.changes = true;
    let mut restore = |entries: &[Changed<'_>]| {
        let convert = |map: BTreeMap<i64, u64>| Some(map);
        table.restore_block_as(&selection, entries.len() as u32, &of(entries), convert).unwrap();
        (entries_of(&mut table, &7), entries_of(&mut table, &8))
    };
    let found = restore(&[(7, Some(&[(3, 30)])), (8, Some(&[(4, 40)]))]);
    assert_eq!(found, (vec![(3, 30)], vec![(4, 40)]));
    assert_eq!(restore(&[(7, None)]), (vec![], vec![(4, 40)]));
}
