//! Tests of the backend by itself.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Budget, Instance, Profile, RowKey, Setup, Source, Table};
use crate::format::{FormatError, SectionOutput};
use crate::ids::KeyGroup;
use crate::protocol::key_groups::{key_group, key_groups};
use crate::state::hash::stable_hash;
use crate::state::{
    Key, LocalFile, SnapshotForm, StateBackend, StateValue, ValueTable, conformance,
};

/// A backend whose every table has an instance of its own.
pub(super) struct Apart {
    root: tempfile::TempDir,
    pub(super) budget: Arc<Budget>,
    small_bytes: usize,
    instances: AtomicU64,
}

impl Apart {
    pub(super) fn new(budget_bytes: usize, small_bytes: usize) -> Self {
        Self {
            root: tempfile::tempdir().unwrap(),
            budget: Budget::new(budget_bytes),
            small_bytes,
            instances: AtomicU64::new(0),
        }
    }

    pub(super) fn instance(&self) -> Instance {
        self.instance_of(128)
    }

    pub(super) fn instance_of(&self, max_parallelism: u16) -> Instance {
        let number = self.instances.fetch_add(1, Ordering::Relaxed);
        let directory = self.root.path().join(number.to_string());
        let budget = Arc::clone(&self.budget);
        let mut setup = Setup::new(directory, budget, Profile::LowMemory, max_parallelism);
        setup.small_bytes = self.small_bytes;
        Instance::new(setup)
    }
}

impl StateBackend for Apart {
    type Table<K: Key, V: StateValue> = Table<K, V>;

    fn value_table<K: Key, V: StateValue>(
        &self,
        max_parallelism: u16,
        groups: &Range<u16>,
    ) -> Table<K, V> {
        self.instance_of(max_parallelism).value_table(max_parallelism, groups)
    }
}

#[test]
fn the_backend_conforms_while_all_is_in_memory() {
    let backend = Apart::new(64 << 20, usize::MAX);
    for (seed, groups) in (1..).zip([1, 13, 128, 32_768]) {
        conformance::operations_and_snapshots_agree_with_a_model::<_, u64>(&backend, groups, seed);
        conformance::operations_and_snapshots_agree_with_a_model::<_, String>(
            &backend, groups, seed,
        );
        conformance::restoring_gives_each_owner_exactly_its_keys::<_, u64>(&backend, groups, seed);
        conformance::restoring_gives_each_owner_exactly_its_keys::<_, String>(
            &backend, groups, seed,
        );
    }
    conformance::sweeps_remove_what_has_expired_and_nothing_else::<_, u64>(&backend, 7);
    conformance::sweeps_remove_what_has_expired_and_nothing_else::<_, String>(&backend, 8);
    conformance::values_are_restored_as_what_they_are_converted_to::<_, u64>(&backend, 9);
    conformance::damaged_blocks_are_refused::<_, u64>(&backend);
    conformance::damaged_blocks_are_refused::<_, String>(&backend);
    conformance::random_damage_does_no_harm::<_, u64>(&backend, 5_000, 1);
    conformance::random_damage_does_no_harm::<_, String>(&backend, 5_000, 2);
}

#[test]
fn the_backend_conforms_when_every_snapshot_is_made_of_files() {
    let backend = Apart::new(64 << 20, 0);
    for (seed, groups) in (20..).zip([1, 128, 32_768]) {
        conformance::operations_and_snapshots_agree_with_a_model::<_, u64>(&backend, groups, seed);
        conformance::restoring_gives_each_owner_exactly_its_keys::<_, String>(
            &backend, groups, seed,
        );
    }
    conformance::sweeps_remove_what_has_expired_and_nothing_else::<_, u64>(&backend, 24);
    conformance::values_are_restored_as_what_they_are_converted_to::<_, String>(&backend, 25);
    conformance::damaged_blocks_are_refused::<_, u64>(&backend);
}

#[test]
fn the_backend_conforms_with_a_cache_that_is_much_too_small() {
    let backend = Apart::new(0, 0);
    for (seed, groups) in (30..).zip([13, 128, 32_768]) {
        conformance::operations_and_snapshots_agree_with_a_model::<_, u64>(&backend, groups, seed);
        conformance::operations_and_snapshots_agree_with_a_model::<_, String>(
            &backend, groups, seed,
        );
        conformance::restoring_gives_each_owner_exactly_its_keys::<_, u64>(&backend, groups, seed);
    }
    conformance::values_are_restored_as_what_they_are_converted_to::<_, u64>(&backend, 35);
}

/// The entries of a section, and their key groups.
#[derive(Default)]
pub(super) struct Entries(pub(super) Vec<(KeyGroup, Vec<u8>)>);

impl SectionOutput for Entries {
    fn entry(
        &mut self,
        group: KeyGroup,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), FormatError>,
    ) -> Result<(), FormatError> {
        let mut bytes = Vec::new();
        fill(&mut bytes)?;
        self.0.push((group, bytes));
        Ok(())
    }
}

fn content(table: &mut Table<u64, u64>) -> BTreeMap<u64, u64> {
    let mut entries = Entries::default();
    table.freeze(SnapshotForm::Plain).content.write(&mut entries).unwrap();
    entries.0.iter().map(|(_, bytes)| postcard::from_bytes::<(u64, u64)>(bytes).unwrap()).collect()
}

fn add(table: &mut Table<u64, u64>, keys: std::ops::Range<u64>, value: u64) {
    for key in keys {
        table.insert(stable_hash(&key), &key, value);
    }
}

#[test]
fn state_many_times_the_budget_stays_within_it() {
    let backend = Apart::new(2 << 20, 0);
    let instance = backend.instance();
    let mut table: Table<u64, u64> = instance.named_table("counts", 128, &(0..128));
    let keys = 200_000;
    let (mut most, mut most_decoded) = (0, 0);
    for round in 0..2 {
        for key in 0..keys {
            let value = table.get_or_insert_with(stable_hash(&key), &key, &mut || 0);
            assert_eq!(*value, round * (key + 1));
            *value += key + 1;
            if key % 1_000 == 0 {
                most = most.max(backend.budget.used_bytes());
                most_decoded = most_decoded.max(backend.budget.decoded_used());
            }
            if key % 50_000 == 0 {
                drop(table.freeze(SnapshotForm::Plain));
            }
        }
    }
    assert_eq!(table.len(), keys as usize);
    let budget = backend.budget.accounted_bytes();
    assert!(most > budget / 2, "only {most} of {budget} were used: the test says nothing");
    assert!(most <= budget / 100 * 115, "{most} were used of {budget}");
    assert!(most_decoded <= budget / 2, "{most_decoded} bytes of decoded values and copies");
    assert!(instance.counters().waits.load(Ordering::Relaxed) > 0, "nothing had to wait");
    assert!(instance.counters().written.load(Ordering::Relaxed) >= keys);
}

#[test]
fn a_worker_does_not_wait_for_what_a_snapshot_that_failed_has_not_read() {
    let (done, finished) = std::sync::mpsc::channel();
    let changing = std::thread::spawn(move || {
        change_all_beside_a_snapshot_that_fails();
        _ = done.send(());
    });
    let waited = finished.recv_timeout(std::time::Duration::from_mins(1));
    assert_ne!(waited, Err(std::sync::mpsc::RecvTimeoutError::Timeout), "it waits for ever");
    changing.join().unwrap();
}

fn change_all_beside_a_snapshot_that_fails() {
    // A mebibyte for decoded values.
    let backend = Apart::new((2 << 20) / 3 * 4, 0);
    let instance = backend.instance();
    let mut table: Table<u64, u64> = instance.named_table("counts", 128, &(0..128));
    let keys = 14_000;
    add(&mut table, 0..keys, 1);
    let decoded = backend.budget.decoded_used();
    assert!(decoded > 600 << 10, "{decoded} bytes: there would be memory to copy all");
    assert_eq!(instance.counters().written.load(Ordering::Relaxed), 0, "the database is open");
    // No database can be made there.
    std::fs::create_dir_all(instance.directory()).unwrap();
    std::fs::write(instance.directory().join("db"), "").unwrap();
    let frozen = table.freeze(SnapshotForm::Plain);
    for key in 0..keys {
        assert_eq!(table.insert(stable_hash(&key), &key, 2), Some(1));
    }
    assert!(backend.budget.decoded_used() <= backend.budget.accounted_bytes() / 2);
    frozen.content.write(&mut Entries::default()).unwrap_err();
    drop(table);
    drop(instance);
    assert_eq!(backend.budget.decoded_used(), 0, "copies that are gone count");
}

#[test]
fn large_values_count_in_the_budget() {
    let backend = Apart::new(8 << 20, 0);
    let instance = backend.instance();
    let mut table: Table<u64, Vec<u64>> = instance.named_table("lists", 128, &(0..128));
    // Small numbers: a byte each when written, eight in memory.
    let mut held = 0;
    for step in 0..4_000_u64 {
        let list = table.get_or_insert_with(stable_hash(&step), &step, &mut Vec::new);
        list.extend(0..1_000);
        let used = backend.budget.decoded_used();
        held = held.max(used);
    }
    assert!(held > 2 << 20, "{held}: the test says nothing");
    assert!(held <= 4 << 20, "{held} bytes of decoded values");
    let in_memory = table.bytes_in_memory();
    assert!(in_memory <= 5 << 20, "{in_memory} bytes are really there");
}

#[test]
fn a_hot_key_is_neither_decoded_nor_encoded_again() {
    let backend = Apart::new(1 << 20, 0);
    let instance = backend.instance();
    let mut table: Table<u64, u64> = instance.named_table("counts", 128, &(0..128));
    add(&mut table, 0..100_000, 1);
    let looked_up = || instance.counters().looked_up.load(Ordering::Relaxed);
    let before = looked_up();
    for key in 0..50_000_u64 {
        // One cold key to a hot one.
        table.get(stable_hash(&key), &key);
        let hot = 7_000_000 + key % 50;
        *table.get_or_insert_with(stable_hash(&hot), &hot, &mut || 0) += 1;
    }
    let hot = looked_up() - before - 50_000;
    assert!(hot < 2_000, "hot keys were looked up {hot} times");
    drop(table.freeze(SnapshotForm::Plain));
    assert!(instance.counters().hits.load(Ordering::Relaxed) > 45_000);
}

#[test]
fn what_has_expired_goes_when_files_are_compacted() {
    let backend = Apart::new(1 << 20, 0);
    let instance = backend.instance();
    let mut table: Table<u64, u64> = instance.named_table("counts", 128, &(0..128));
    // As a state with a time to live is stored: the time, and then the value.
    let mut with_time: Table<u64, (i64, u64)> = instance.named_table("timed", 128, &(0..128));
    add(&mut table, 0..1_000, 1);
    for key in 0..1_000_u64 {
        with_time.insert(stable_hash(&key), &key, (key as i64, 0));
    }
    drop(with_time.freeze(SnapshotForm::Plain));
    instance.begin_snapshot();
    drop((table.freeze(SnapshotForm::Plain), with_time.freeze(SnapshotForm::Plain)));
    instance.end_snapshot().local().unwrap().expect("files were made");
    with_time.expired_until(699);
    let database = instance.core().database().unwrap();
    let columns = instance.core().columns();
    for family in columns.iter().flat_map(|column| &column.families) {
        let family = database.cf_handle(family).unwrap();
        database.compact_range_cf(&family, None::<&[u8]>, None::<&[u8]>);
    }
    let mut entries = Entries::default();
    with_time.freeze(SnapshotForm::Plain).content.write(&mut entries).unwrap();
    assert_eq!(entries.0.len(), 300);
    assert_eq!(content(&mut table).len(), 1_000);
}

#[test]
fn tables_of_one_snapshot_are_frozen_together_and_the_worker_goes_on() {
    let backend = Apart::new(1 << 20, 0);
    let instance = backend.instance();
    let mut counts: Table<u64, u64> = instance.named_table("counts", 128, &(0..128));
    let mut sums: Table<u64, u64> = instance.named_table("sums", 128, &(0..128));
    add(&mut counts, 0..30_000, 1);
    add(&mut sums, 0..30_000, 10);
    instance.begin_snapshot();
    let frozen = [counts.freeze(SnapshotForm::Plain), sums.freeze(SnapshotForm::Plain)];
    let ticket = instance.end_snapshot();
    add(&mut counts, 0..60_000, 2);
    add(&mut sums, 0..60_000, 20);
    let snapshot = ticket.local().unwrap().expect("files were made");
    assert!(snapshot.files().iter().any(|file| file.name.ends_with(".sst")));
    for (frozen, value) in frozen.into_iter().zip([1, 10]) {
        let mut entries = Entries::default();
        frozen.content.write(&mut entries).unwrap();
        assert_eq!(entries.0.len(), 30_000);
        assert!(entries.0.is_sorted_by_key(|(group, _)| *group));
        for (group, bytes) in &entries.0 {
            let (key, found) = postcard::from_bytes::<(u64, u64)>(bytes).unwrap();
            assert_eq!(found, value);
            assert_eq!(*group, key_group(stable_hash(&key), 128));
        }
    }
    assert_eq!(content(&mut counts).values().filter(|value| **value == 2).count(), 60_000);
}

/// The same files once more.
pub(super) fn copied(backend: &Apart, source: &Source) -> Source {
    let number = backend.instances.fetch_add(1, Ordering::Relaxed);
    let directory = backend.root.path().join(format!("copy-{number}"));
    std::fs::create_dir(&directory).unwrap();
    for file in std::fs::read_dir(&source.directory).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), directory.join(file.file_name())).unwrap();
    }
    Source { directory, groups: source.groups.clone() }
}

/// Freezes a table and copies the files of the snapshot, as storage would give them back.
pub(super) fn source<K: RowKey, V: StateValue>(
    backend: &Apart,
    table: &mut Table<K, V>,
    groups: Range<u16>,
) -> Source {
    let instance = table.instance().clone();
    instance.begin_snapshot();
    drop(table.freeze(SnapshotForm::Plain));
    let snapshot = instance.end_snapshot().local().unwrap().expect("files were made");
    let number = backend.instances.fetch_add(1, Ordering::Relaxed);
    let directory = backend.root.path().join(format!("copy-{number}"));
    std::fs::create_dir(&directory).unwrap();
    for LocalFile { name, bytes, .. } in snapshot.files() {
        let copied = std::fs::copy(snapshot.path().join(name), directory.join(name)).unwrap();
        assert_eq!(copied, *bytes);
    }
    Source { directory, groups }
}

#[test]
fn files_are_taken_over_at_any_parallelism() {
    let rescales: [(u16, &[(usize, usize)]); 3] =
        [(13, &[(1, 3)]), (128, &[(1, 1), (4, 1), (3, 8)]), (32_768, &[(8, 5)])];
    for (max_parallelism, rescales) in rescales {
        let backend = Apart::new(1 << 20, 0);
        let keys = 5_000;
        let fill = |parallelism: usize| -> Vec<Source> {
            let filled =
                (0..parallelism).map(|worker| {
                    let groups = key_groups(max_parallelism, parallelism, worker);
                    let mut table: Table<u64, u64> = backend
                        .instance_of(max_parallelism)
                        .named_table("counts", max_parallelism, &groups);
                    for key in 0..keys {
                        let hash = stable_hash(&key);
                        if groups.contains(&key_group(hash, max_parallelism).0) {
                            table.insert(hash, &key, key + 1);
                            // Some rows are deleted in a later file.
                            if key % 7 == 0 {
                                drop(table.freeze(SnapshotForm::Plain));
                                table.remove(hash, &key);
                            }
                        }
                        if key == 20 {
                            break;
                        }
                    }
                    for key in 21..keys {
                        let hash = stable_hash(&key);
                        if groups.contains(&key_group(hash, max_parallelism).0) {
                            table.insert(hash, &key, key + 1);
                        }
                    }
                    source(&backend, &mut table, groups)
                });
            filled.collect()
        };
        for &(from, to) in rescales {
            let mut all = BTreeMap::new();
            let filled = fill(from);
            for worker in 0..to {
                let groups = key_groups(max_parallelism, to, worker);
                // What is taken over is used up.
                let mut sources: Vec<Source> =
                    filled.iter().map(|source| copied(&backend, source)).collect();
                sources.retain(|source| {
                    source.groups.start < groups.end && groups.start < source.groups.end
                });
                let fullest = Source::fullest(sources.iter().map(|s| &s.groups), &groups);
                sources.swap(0, fullest.expect("somebody has its key groups"));
                let instance = backend.instance_of(max_parallelism);
                assert!(instance.take_over(&sources, &groups).unwrap());
                let mut table: Table<u64, u64> =
                    instance.named_table("counts", max_parallelism, &groups);
                for key in 0..keys {
                    let hash = stable_hash(&key);
                    let ours = groups.contains(&key_group(hash, max_parallelism).0);
                    let there = ours && (key > 20 || key % 7 > 0);
                    let expected = there.then_some(key + 1);
                    assert_eq!(table.get(hash, &key).copied(), expected, "{key} {from}->{to}");
                }
                let part = content(&mut table);
                assert!(part.keys().all(|key| {
                    groups.contains(&key_group(stable_hash(key), max_parallelism).0)
                }));
                all.extend(part);
            }
            assert_eq!(all.len() as u64, keys - 3, "{from}->{to}");
        }
    }
}

#[test]
fn a_missing_or_cut_file_is_refused_by_its_name() {
    let backend = Apart::new(1 << 20, 0);
    let mut table: Table<u64, u64> = backend.instance().named_table("counts", 128, &(0..128));
    add(&mut table, 0..1_000, 1);
    for cut in [false, true] {
        let source = source(&backend, &mut table, 0..128);
        let file = std::fs::read_dir(&source.directory).unwrap();
        let mut names = file.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let name = names.find(|name| name.ends_with(".sst")).unwrap();
        let path = source.directory.join(&name);
        if cut {
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        } else {
            std::fs::remove_file(&path).unwrap();
        }
        let refused = backend.instance().take_over(&[source], &(0..128)).unwrap_err().text();
        assert!(refused.contains(&name), "{refused}");
    }
}

#[test]
fn column_families_of_states_that_are_gone_are_dropped() {
    let backend = Apart::new(1 << 20, 0);
    let mut table: Table<u64, u64> = backend.instance().named_table("counts", 128, &(0..128));
    add(&mut table, 0..1_000, 1);
    let files = source(&backend, &mut table, 0..128);
    let instance = backend.instance();
    instance.take_over(&[files], &(0..128)).unwrap();
    instance.keep_only(&["other"]).unwrap();
    let mut other: Table<u64, u64> = instance.named_table("other", 128, &(0..128));
    add(&mut other, 0..10, 2);
    assert_eq!(content(&mut other).len(), 10);
    let mut counts: Table<u64, u64> = instance.named_table("counts", 128, &(0..128));
    assert_eq!(content(&mut counts).len(), 0);
}

#[test]
fn the_directory_is_removed_with_the_last_that_needs_it() {
    let backend = Apart::new(1 << 20, 0);
    let instance = backend.instance();
    let mut table: Table<u64, u64> = instance.named_table("counts", 128, &(0..128));
    add(&mut table, 0..10, 1);
    instance.begin_snapshot();
    drop(table.freeze(SnapshotForm::Plain));
    let snapshot = instance.end_snapshot().local().unwrap().expect("files were made");
    drop((table, instance));
    assert!(snapshot.path().join("CURRENT").exists());
    drop(snapshot);
    assert_eq!(std::fs::read_dir(backend.root.path()).unwrap().count(), 0);
}

type Lists = Table<u64, Vec<u64>>;

fn lists_of(table: &mut Lists) -> BTreeMap<u64, Vec<u64>> {
    let mut entries = Entries::default();
    table.freeze(SnapshotForm::Plain).content.write(&mut entries).unwrap();
    let decoded = entries.0.iter().map(|(_, bytes)| postcard::from_bytes(bytes).unwrap());
    decoded.collect()
}

#[test]
fn lists_that_are_appended_to_unread_agree_with_a_model() {
    for seed in 1..=3 {
        let backend = Apart::new(0, 0);
        let instance = backend.instance();
        let mut table: Lists = instance.named_table("lists", 128, &(0..128));
        let mut model: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        let mut random = seed * 7_919;
        let mut tickets = Vec::new();
        for step in 0..20_000_u64 {
            random = stable_hash(&(random + step));
            let key = random % 3_000;
            let hash = stable_hash(&key);
            match random >> 32 & 31 {
                0 => assert_eq!(table.get(hash, &key), model.get(&key), "step {step}"),
                1 => assert_eq!(table.remove(hash, &key), model.remove(&key), "step {step}"),
                2 => {
                    let before = table.insert(hash, &key, vec![step]);
                    assert_eq!(before, model.insert(key, vec![step]), "step {step}");
                }
                3 if step % 40 == 0 => tickets.push(table.freeze(SnapshotForm::Plain)),
                _ => {
                    table.append(hash, &key, step);
                    model.entry(key).or_default().push(step);
                }
            }
        }
        assert_eq!(lists_of(&mut table), model);
        let mut seen = BTreeMap::new();
        table.for_each(|key, list| drop(seen.insert(*key, list.clone())));
        assert_eq!(seen, model);
        let appended = instance.counters().appended.load(Ordering::Relaxed);
        assert!(appended > 5_000, "only {appended} were appended unread: the test says nothing");
        // And what is in files goes on elsewhere.
        let source = source(&backend, &mut table, 0..128);
        let next = backend.instance();
        next.take_over(&[source], &(0..128)).unwrap();
        let mut table: Lists = next.named_table("lists", 128, &(0..128));
        assert_eq!(lists_of(&mut table), model);
    }
}

#[test]
fn appending_to_a_long_list_neither_reads_nor_rewrites_it() {
    let backend = Apart::new(1 << 20, 0);
    let instance = backend.instance();
    let mut table: Lists = instance.named_table("lists", 128, &(0..128));
    for key in 0..40_u64 {
        table.insert(stable_hash(&key), &key, (0..10_000).collect());
        drop(table.freeze(SnapshotForm::Plain));
    }
    // Lists that are not in memory any more.
    for key in 100..30_000_u64 {
        table.insert(stable_hash(&key), &key, vec![key]);
    }
    lists_of(&mut table);
    let counters = instance.counters();
    let before = counters.looked_up.load(Ordering::Relaxed);
    for step in 0..1_000_u64 {
        let key = step % 20;
        table.append(stable_hash(&key), &key, step);
    }
    assert_eq!(counters.looked_up.load(Ordering::Relaxed), before);
    assert!(counters.appended.load(Ordering::Relaxed) >= 900);
    let lists = lists_of(&mut table);
    for key in 0..20 {
        let expected = (0..10_000).chain((0..1_000).filter(|step| step % 20 == key));
        assert!(lists[&key].iter().copied().eq(expected), "the list of {key}");
    }
}
