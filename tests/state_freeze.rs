//! How long a snapshot of heap state holds up its worker.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use highwater::format::{FormatError, SectionOutput};
use highwater::ids::KeyGroup;
use highwater::state::hash::stable_hash;
use highwater::state::heap::HeapBackend;
use highwater::state::{SnapshotForm, StateBackend, ValueTable};

type Table = <HeapBackend as StateBackend>::Table<u64, (u64, u64)>;

fn filled(entries: u64) -> Table {
    let mut table: Table = HeapBackend.value_table(128, &(0..128));
    for key in 0..entries {
        table.insert(stable_hash(&key), &key, (key, 0));
    }
    table
}

#[test]
fn freeze_of_ten_million_entries_takes_under_ten_milliseconds() {
    const ENTRIES: u64 = 10_000_000;
    let mut table = filled(ENTRIES);
    let mut freezes = Vec::new();
    for _ in 0..5 {
        // Changes keys in nearly all pages, so that the table owns them again.
        for key in (0..ENTRIES).step_by(25) {
            let value = table.get_mut(stable_hash(&key), &key).expect("it was inserted");
            value.1 += 1;
        }
        let start = Instant::now();
        let frozen = table.freeze(SnapshotForm::Plain).content;
        freezes.push(start.elapsed());
        drop(frozen);
    }
    println!("freezes of {ENTRIES} entries took {freezes:?}");
    // Other processes can only make it longer, so the shortest one tells what the work takes.
    let shortest = freezes.iter().min().expect("there were five");
    assert!(*shortest < Duration::from_millis(10), "{freezes:?}");
}

/// Takes an entry only when it is permitted, a thousand at a time.
struct Slow {
    permits: Receiver<()>,
    stuck: SyncSender<()>,
    entries: u64,
    changed: u64,
}

impl SectionOutput for Slow {
    fn entry(
        &mut self,
        _: KeyGroup,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), FormatError>,
    ) -> Result<(), FormatError> {
        if self.entries.is_multiple_of(1_000) {
            // The test has stopped listening when it has seen enough.
            let _ = self.stuck.send(());
            let _ = self.permits.recv();
        }
        let mut bytes = Vec::new();
        fill(&mut bytes)?;
        let (_, rest) = postcard::take_from_bytes::<u64>(&bytes).expect("the key");
        let (value, _) = postcard::take_from_bytes::<(u64, u64)>(rest).expect("the value");
        self.changed += value.1;
        self.entries += 1;
        Ok(())
    }
}

#[test]
fn processing_goes_on_while_a_slow_snapshot_is_written() {
    const ENTRIES: u64 = 300_000;
    const BATCH: u64 = 512;
    let mut table = filled(ENTRIES);
    let frozen = table.freeze(SnapshotForm::Plain).content;
    let (permit, permits) = sync_channel(0);
    let (stuck, is_stuck) = sync_channel(0);
    let writer = std::thread::spawn(move || {
        let mut out = Slow { permits, stuck, entries: 0, changed: 0 };
        frozen.write(&mut out).expect("the output does not fail");
        (out.entries, out.changed)
    });

    let mut longest = Duration::ZERO;
    let mut batches = 0_u64;
    // Each batch is processed while the writer is stuck within a page: if it held the page's lock,
    // this would never end.
    while is_stuck.recv().is_ok() {
        let start = Instant::now();
        for n in 0..BATCH {
            let key = (batches * BATCH + n) * 7_919 % ENTRIES;
            table.get_or_insert_with(stable_hash(&key), &key, &mut || (0, 0)).1 += 1;
        }
        longest = longest.max(start.elapsed());
        batches += 1;
        permit.send(()).expect("the writer waits for it");
    }
    let (written, changed) = writer.join().expect("the writer does not panic");

    assert_eq!(batches, ENTRIES / 1_000);
    assert_eq!(written, ENTRIES);
    assert_eq!(changed, 0, "the snapshot holds changes that were made after it was frozen");
    let mut sum = 0;
    for key in 0..ENTRIES {
        sum += table.get(stable_hash(&key), &key).expect("it was inserted").1;
    }
    assert_eq!(sum, batches * BATCH);
    println!("the longest of {batches} batches took {longest:?}");
    assert!(longest < Duration::from_millis(500), "a batch took {longest:?}");
}
