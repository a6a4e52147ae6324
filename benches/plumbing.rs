//! Measures the parts: hashing and heap state. Run with `cargo bench --bench plumbing`.
//!
//! Each line is one workload: median, least and most of five runs. Started by `cargo test`, it only
//! runs the workloads once on small tables, to see that they still work.

use std::hint::black_box;
use std::time::{Duration, Instant};

use highwater::format::{FormatError, SectionOutput, codec};
use highwater::ids::{Epoch, KeyGroup};
use highwater::protocol::key_groups::key_group;
use highwater::state::hash::stable_hash;
use highwater::state::heap::HeapBackend;
use highwater::state::{Key, Selection, SnapshotForm, StateBackend, StateValue, ValueTable};
use rustc_hash::FxHashMap;
use rustix::time::{ClockId, clock_gettime};

/// Records come in batches of this many.
const BATCH: usize = 512;
const MAX_PARALLELISM: u16 = 128;

type Value = (u64, u64);
type Table<K, V> = <HeapBackend as StateBackend>::Table<K, V>;

/// How much to do: all of it under `cargo bench`, little under `cargo test`.
#[derive(Clone, Copy)]
struct Scale {
    runs: usize,
    updates: usize,
    entries_max: usize,
}

fn main() {
    let measure = std::env::args().any(|argument| argument == "--bench");
    let scale = if measure {
        Scale { runs: 5, updates: 4_000_000, entries_max: 10_000_000 }
    } else {
        Scale { runs: 1, updates: 4_096, entries_max: 10_000 }
    };
    println!("{:<58} {:>10} {:>10} {:>10}", "workload", "median", "least", "most");
    hashing(scale);
    for entries in [1_000, 1_000_000, 10_000_000].map(|n| scale.entries_max.min(n)) {
        updates(scale, entries);
    }
    freezing(scale);
    freezing_changes(scale);
    snapshots(scale);
    codecs(scale);
    strings(scale);
}

fn hashing(scale: Scale) {
    let per_hash = |n: usize| move |time: Duration| time.as_nanos() as f64 / n as f64;
    let n = scale.updates;
    report("stable_hash of a u64, ns", scale, per_hash(n), || {
        time(|| (0..n as u64).fold(0, |sum, key| sum ^ stable_hash(&black_box(key))))
    });
    report("stable_hash of a (u64, u32), ns", scale, per_hash(n), || {
        time(|| (0..n as u64).fold(0, |sum, key| sum ^ stable_hash(&black_box((key, 7_u32)))))
    });
    let words: Vec<String> = (0..1024).map(|n| format!("word number {n}")).collect();
    report("stable_hash of a String of 16 bytes, ns", scale, per_hash(n), || {
        time(|| (0..n).fold(0, |sum, i| sum ^ stable_hash(black_box(&words[i & 1023]))))
    });
}

fn updates(scale: Scale, entries: usize) {
    let keys = random_keys(entries, scale.updates);
    let ns_per_update = |time: Duration| time.as_nanos() as f64 / keys.len() as f64;
    {
        let mut map: FxHashMap<u64, Value> = FxHashMap::default();
        map.extend((0..entries as u64).map(|n| (key(n), (0, 0))));
        report(&format!("update of {entries} keys, FxHashMap, ns"), scale, ns_per_update, || {
            time(|| {
                for key in &keys {
                    let value = map.entry(*key).or_insert((0, 0));
                    value.0 += 1;
                    value.1 ^= key;
                }
            })
        });
    }
    let mut table = filled(entries);
    for prefetch in [false, true] {
        let how = if prefetch { "with prefetch" } else { "without prefetch" };
        let title = format!("update of {entries} keys, heap, {how}, ns");
        report(&title, scale, ns_per_update, || {
            time(|| {
                for batch in keys.chunks(BATCH) {
                    update(&mut table, batch, prefetch);
                }
            })
        });
    }
}

fn freezing(scale: Scale) {
    let entries = scale.entries_max;
    let mut table = filled(entries);
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    report(&format!("freeze of {entries} owned entries, ms"), scale, milliseconds, || {
        let (elapsed, frozen) = timed(|| table.freeze(SnapshotForm::Plain).content);
        drop(frozen);
        own_all(&mut table, entries);
        elapsed
    });
    let keys = random_keys(entries, BATCH * 40);
    let mut worst = Vec::new();
    report(&format!("first batch after freeze of {entries}, ms"), scale, milliseconds, || {
        let frozen = table.freeze(SnapshotForm::Plain).content;
        let stalls: Vec<_> =
            keys.chunks(BATCH).map(|batch| time(|| update(&mut table, batch, true))).collect();
        drop(frozen);
        own_all(&mut table, entries);
        worst.push(*stalls.iter().max().expect("there are batches"));
        stalls[0]
    });
    report(
        &format!("worst of 40 batches after freeze of {entries}, ms"),
        scale,
        milliseconds,
        || worst.pop().expect("as many as runs"),
    );
    report(&format!("batch on {entries} given-back pages, ms"), scale, milliseconds, || {
        drop(table.freeze(SnapshotForm::Plain).content);
        let elapsed = time(|| update(&mut table, &keys[..BATCH], true));
        own_all(&mut table, entries);
        elapsed
    });
}

/// One entry in a hundred changes between two layers, of entries as large as those of `large-state`; the table is a
/// worker's half of them. Times are of the processor: other programs do not count.
fn freezing_changes(scale: Scale) {
    type Large = [u64; 12];
    let entries = scale.entries_max as u64;
    let mut table = HeapBackend.value_table::<u64, Large>(MAX_PARALLELISM, &(0..MAX_PARALLELISM));
    for n in 0..entries {
        table.insert(stable_hash(&key(n)), &key(n), [n; 12]);
    }
    let form = |epoch: u64| SnapshotForm::Layer {
        epoch: Epoch(epoch),
        confirmed: epoch.checked_sub(1).filter(|before| *before > 0).map(Epoch),
        whole: false,
        bytes_min: 0,
    };
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let mut epoch = 1;
    let frozen = cpu_time(|| drop(table.freeze(form(epoch))));
    println!("{:<58} {:>10.2}", "freeze of all large entries, CPU ms", milliseconds(frozen));
    let mut after = Vec::new();
    report("freeze of 1 % changed large entries, CPU ms", scale, milliseconds, || {
        let keys = random_keys(entries as usize, entries as usize / 100 * epoch as usize);
        let changed = &keys[keys.len() - entries as usize / 100..];
        let update =
            |key: &u64| _ = table.get_mut(stable_hash(key), key).map(|value| value[0] += 1);
        after.push(cpu_time(|| changed.iter().for_each(update)));
        epoch += 1;
        let mut frozen = None;
        let elapsed = cpu_time(|| frozen = Some(table.freeze(form(epoch))));
        let content = frozen.expect("it was frozen").content;
        content.write(&mut Blocks::default()).expect("memory does not fail");
        elapsed
    });
    let per_update = |time: Duration| time.as_nanos() as f64 / (entries / 100) as f64;
    report("update after a snapshot was written, CPU ns", scale, per_update, || {
        after.pop().expect("as many as runs")
    });
}

fn snapshots(scale: Scale) {
    let entries = scale.entries_max / 2;
    let mut table = filled(entries);
    let per_entry = |time: Duration| time.as_nanos() as f64 / entries as f64;
    report(&format!("snapshot of {entries}, ns an entry"), scale, per_entry, || {
        let frozen = table.freeze(SnapshotForm::Plain).content;
        time(|| frozen.write(&mut Blocks::default()).expect("memory does not fail"))
    });
    let mut out = Blocks::default();
    table.freeze(SnapshotForm::Plain).content.write(&mut out).expect("memory does not fail");
    drop(table);
    report(&format!("restore of {entries}, ns an entry"), scale, per_entry, || {
        let mut table =
            HeapBackend.value_table::<u64, Value>(MAX_PARALLELISM, &(0..MAX_PARALLELISM));
        let selection = Selection::whole(0..MAX_PARALLELISM);
        let elapsed = time(|| {
            for (count, bytes) in &out.blocks {
                table.restore_block(&selection, *count, bytes).expect("undamaged");
            }
        });
        assert_eq!(table.len(), entries);
        elapsed
    });
}

/// What a restore would gain if records without padding were kept as they are in memory: the local copies are the place where
/// that could be done. Fixed rows of little-endian numbers are that image, taken apart safely.
fn codecs(scale: Scale) {
    const ROW: usize = 24;
    let entries = scale.entries_max;
    let mut table = filled(entries);
    let per_entry = |time: Duration| time.as_nanos() as f64 / entries as f64;
    let mut out = Blocks::default();
    table.freeze(SnapshotForm::Plain).content.write(&mut out).expect("memory does not fail");
    drop(table);
    let mut rows = Vec::with_capacity(entries * ROW);
    for (count, bytes) in &out.blocks {
        let add = |(key, value): (u64, Value)| {
            for number in [key, value.0, value.1] {
                rows.extend_from_slice(&number.to_le_bytes());
            }
        };
        codec::decode_entries(bytes, *count, add).expect("undamaged");
    }
    let bytes: usize = out.blocks.iter().map(|(_, bytes)| bytes.len()).sum();
    let each = |total: usize| total as f64 / entries as f64;
    println!("{:.1} bytes an entry in blocks, {:.1} in fixed rows", each(bytes), each(rows.len()));
    let row = |row: &[u8; ROW]| {
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| row[8 * at + byte]));
        (number(0), (number(1), number(2)))
    };
    report(&format!("checksum of blocks of {entries}, ns an entry"), scale, per_entry, || {
        time(|| out.blocks.iter().fold(0, |sum, (_, bytes)| sum ^ crc32c::crc32c(bytes)))
    });
    report(&format!("checksum of fixed rows of {entries}, ns an entry"), scale, per_entry, || {
        time(|| crc32c::crc32c(&rows))
    });
    report(&format!("decoding of blocks of {entries}, ns an entry"), scale, per_entry, || {
        time(|| {
            let mut sum = 0;
            for (count, bytes) in &out.blocks {
                let add = |(key, value): (u64, Value)| sum ^= key ^ value.0 ^ value.1;
                codec::decode_entries(bytes, *count, add).expect("undamaged");
            }
            sum
        })
    });
    report(&format!("decoding of fixed rows of {entries}, ns an entry"), scale, per_entry, || {
        time(|| {
            rows.as_chunks()
                .0
                .iter()
                .map(row)
                .fold(0, |sum, (key, value)| sum ^ key ^ value.0 ^ value.1)
        })
    });
    let restore = |what: &str, fill: &mut dyn FnMut(&mut Table<u64, Value>)| {
        report(&format!("restore of {entries} from {what}, ns an entry"), scale, per_entry, || {
            let mut table =
                HeapBackend.value_table::<u64, Value>(MAX_PARALLELISM, &(0..MAX_PARALLELISM));
            let elapsed = time(|| fill(&mut table));
            assert_eq!(table.len(), entries);
            elapsed
        });
    };
    let selection = Selection::whole(0..MAX_PARALLELISM);
    restore("blocks", &mut |table| {
        for (count, bytes) in &out.blocks {
            table.restore_block(&selection, *count, bytes).expect("undamaged");
        }
    });
    restore("fixed rows", &mut |table| {
        for (key, value) in rows.as_chunks().0.iter().map(row) {
            let hash = stable_hash(&key);
            assert!(selection.groups.contains(&key_group(hash, MAX_PARALLELISM).0));
            assert!(table.insert(hash, &key, value).is_none());
        }
    });
}

fn strings(scale: Scale) {
    let entries = scale.entries_max / 10;
    let keys: Vec<String> = (0..entries as u64).map(|n| format!("user-{:016x}", key(n))).collect();
    let mut table = HeapBackend.value_table::<String, u64>(MAX_PARALLELISM, &(0..MAX_PARALLELISM));
    for key in &keys {
        table.insert(stable_hash(key), key, 0);
    }
    let batches: Vec<_> = random_keys(entries, BATCH * 40);
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    report(
        &format!("worst batch after freeze of {entries} String keys, ms"),
        scale,
        milliseconds,
        || {
            let frozen = table.freeze(SnapshotForm::Plain).content;
            let stalls = batches.chunks(BATCH).map(|batch| {
                time(|| {
                    for n in batch {
                        let key = &keys[*n as usize % entries];
                        *table.get_or_insert_with(stable_hash(key), key, &mut || 0) += 1;
                    }
                })
            });
            let worst = stalls.max().expect("there are batches");
            drop(frozen);
            worst
        },
    );
}

/// The `n`th key: any two differ, and none tells of its neighbours.
fn key(n: u64) -> u64 {
    stable_hash(&(n ^ 0x5555_0000_0000))
}

fn random_keys(entries: usize, count: usize) -> Vec<u64> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        key(((u128::from(state) * entries as u128) >> 64) as u64)
    };
    (0..count).map(|_| next()).collect()
}

fn filled(entries: usize) -> Table<u64, Value> {
    let mut table = HeapBackend.value_table(MAX_PARALLELISM, &(0..MAX_PARALLELISM));
    for n in 0..entries as u64 {
        let key = key(n);
        table.insert(stable_hash(&key), &key, (n, 0));
    }
    table
}

fn update(table: &mut Table<u64, Value>, keys: &[u64], prefetch: bool) {
    let mut hashes = [0; BATCH];
    for (hash, key) in hashes.iter_mut().zip(keys) {
        *hash = stable_hash(key);
    }
    if prefetch {
        table.prefetch(&hashes[..keys.len()]);
    }
    for (hash, key) in hashes.iter().zip(keys) {
        let value = table.get_or_insert_with(*hash, key, &mut || (0, 0));
        value.0 += 1;
        value.1 ^= key;
    }
}

/// Touches every page, so that none is shared any more.
fn own_all<V: StateValue>(table: &mut Table<u64, V>, entries: usize)
where
    u64: Key,
{
    for n in 0..entries as u64 {
        let key = key(n);
        black_box(table.get(stable_hash(&key), &key).is_some());
    }
}

/// Blocks of 256 KiB in memory.
#[derive(Default)]
struct Blocks {
    blocks: Vec<(u32, Vec<u8>)>,
}

impl SectionOutput for Blocks {
    fn entry(
        &mut self,
        _group: KeyGroup,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), FormatError>,
    ) -> Result<(), FormatError> {
        if self.blocks.last().is_none_or(|(_, bytes)| bytes.len() >= 256 * 1024) {
            self.blocks.push((0, Vec::with_capacity(257 * 1024)));
        }
        let (count, bytes) = self.blocks.last_mut().expect("one was just added");
        *count += 1;
        fill(bytes)
    }
}

/// The processor time of this thread.
fn cpu_time(work: impl FnOnce()) -> Duration {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let start = now();
    work();
    now() - start
}

fn time<T>(work: impl FnOnce() -> T) -> Duration {
    timed(work).0
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = black_box(work());
    (start.elapsed(), result)
}

fn report(
    title: &str,
    scale: Scale,
    number: impl Fn(Duration) -> f64,
    mut run: impl FnMut() -> Duration,
) {
    let mut numbers: Vec<f64> = (0..scale.runs).map(|_| number(run())).collect();
    numbers.sort_unstable_by(f64::total_cmp);
    let (least, most) = (numbers[0], numbers[numbers.len() - 1]);
    let median = numbers[numbers.len() / 2];
    println!("{title:<58} {median:>10.2} {least:>10.2} {most:>10.2}");
}
