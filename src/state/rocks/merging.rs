//! When which column family is rewritten as a whole.
//!
//! RocksDB merges files of like sizes by itself, which settled data has no part in. To rewrite that is left to us: every
//! snapshot earns as many bytes of rewriting as it has flushed, and what has been earned is spent on the family that has
//! most to gain, one at a time. So a checkpoint never uploads all again at once, and in the mean
//!
//! * each changed byte is written once by a flush, about once by a merge of like files, and once by a rewriting, and
//! * a family holds about as many bytes that are out of date as settled ones when its turn comes.
//!
//! # Failure
//! A rewriting that fails is tried again after a later snapshot: nothing depends on it. One that is running when the
//! instance ends is given up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Sender, bounded};
use rocksdb::{BottommostLevelCompaction, CompactOptions};

use super::column::column_of;
use super::error::RocksError;
use super::instance::{Core, Database};

/// A family of fewer runs is left alone.
const RUNS_MIN: usize = 4;

/// A family of so many runs is rewritten even if nothing has been earned: every look at a row may look at each.
const RUNS_MAX: usize = 32;

/// The files of a family. Units: bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Files {
    /// Of the lowest level.
    settled_bytes: u64,
    newer_bytes: u64,
    runs: usize,
}

impl Files {
    /// Bytes that rewriting gives: as many if rows were changed, more if they were added.
    fn rewritten_bytes(&self) -> u64 {
        self.settled_bytes.max(self.newer_bytes)
    }

    fn may_gain(&self) -> bool {
        self.runs >= RUNS_MIN && self.newer_bytes.saturating_mul(4) >= self.settled_bytes
    }

    /// What there is to gain, for each settled byte.
    fn gain(&self) -> u64 {
        self.newer_bytes.saturating_mul(1 << 10) / self.settled_bytes.max(1)
    }
}

/// What has been earned and not been spent.
#[derive(Debug, Default)]
struct Pace {
    /// Less than nothing if something has cost more than was thought.
    earned_bytes: i64,
    /// The family that was rewritten last, and how many bytes were spent on it.
    last: Option<(String, u64)>,
    /// The number of the newest file that was seen.
    newest: u64,
}

impl Pace {
    /// A snapshot has flushed so many bytes. Returns the family to be rewritten, if it is time.
    fn next(&mut self, flushed_bytes: u64, families: &BTreeMap<String, Files>) -> Option<String> {
        if let Some((name, spent)) = &mut self.last
            && let Some(files) = families.get(name)
            && files.settled_bytes > *spent
        {
            // It gave more than was thought, since some of what was newer was not there before.
            self.earned_bytes -= signed(files.settled_bytes - *spent);
            *spent = files.settled_bytes;
        }
        let largest = families.values().map(Files::rewritten_bytes).max().unwrap_or(0);
        // What could not be spent is not kept for a burst.
        self.earned_bytes += signed(flushed_bytes);
        self.earned_bytes = self.earned_bytes.min(signed(largest.max(flushed_bytes)));
        let urgent = families.iter().filter(|(_, files)| files.runs >= RUNS_MAX);
        let gainers = families.iter().filter(|(_, files)| files.may_gain());
        let is_earned =
            |(_, files): &(_, &Files)| signed(files.rewritten_bytes()) <= self.earned_bytes;
        let (name, files) = urgent
            .max_by_key(|(_, files)| files.runs)
            .or_else(|| gainers.max_by_key(|(_, files)| files.gain()).filter(is_earned))?;
        self.earned_bytes -= signed(files.rewritten_bytes());
        self.last = Some((name.clone(), files.rewritten_bytes()));
        Some(name.clone())
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX / 4)
}

/// The number in the name of a file.
fn number_of(file: &str) -> u64 {
    let digits = file.trim_start_matches('/').split('.').next().unwrap_or_default();
    digits.parse().unwrap_or(0)
}

/// What there is now, and how many bytes have been flushed since the last time.
fn look(
    database: &Database,
    pace: &mut Pace,
) -> Result<(u64, BTreeMap<String, Files>), RocksError> {
    let files =
        database.live_files().map_err(RocksError::database(database.path(), "list its files"))?;
    let (mut flushed, mut newest) = (0, pace.newest);
    let mut lowest: BTreeMap<&str, i32> = BTreeMap::new();
    for file in &files {
        let level = lowest.entry(&file.column_family_name).or_default();
        *level = file.level.max(*level);
    }
    let mut families: BTreeMap<String, Files> = BTreeMap::new();
    let mut levels = std::collections::BTreeSet::new();
    for file in &files {
        let (name, bytes) = (&file.column_family_name, file.size as u64);
        let number = number_of(&file.name);
        newest = newest.max(number);
        if column_of(name).is_none() {
            continue;
        }
        let family = families.entry(name.clone()).or_default();
        if file.level == 0 {
            family.runs += 1;
            flushed += if number > pace.newest { bytes } else { 0 };
        } else if levels.insert((name, file.level)) {
            family.runs += 1;
        }
        if file.level > 0 && file.level == lowest[name.as_str()] {
            family.settled_bytes += bytes;
        } else {
            family.newer_bytes += bytes;
        }
    }
    pace.newest = newest;
    Ok((flushed, families))
}

/// Rewrites families, one at a time, in a thread of its own.
pub(super) struct Merging {
    pace: Pace,
    requests: Option<Sender<String>>,
    thread: Option<JoinHandle<()>>,
}

impl Merging {
    /// # Errors
    /// If the operating system makes no thread.
    pub(super) fn start(core: Arc<Core>) -> std::io::Result<Self> {
        let (sender, requests) = bounded::<String>(0);
        let rewrite = move || {
            for name in requests {
                let Some(database) = core.opened() else { continue };
                let Some(family) = database.cf_handle(&name) else { continue };
                let mut options = CompactOptions::default();
                options.set_exclusive_manual_compaction(false);
                options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
                database.compact_range_cf_opt(&family, None::<&[u8]>, None::<&[u8]>, &options);
                core.counters.rewritten.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        };
        let thread = std::thread::Builder::new().name("rocks-merge".to_owned()).spawn(rewrite)?;
        Ok(Self { pace: Pace::default(), requests: Some(sender), thread: Some(thread) })
    }

    /// A snapshot was made: begins what has been earned, unless a rewriting is running.
    ///
    /// # Errors
    /// [`RocksError`] if RocksDB does not list its files.
    pub(super) fn snapshot_was_made(&mut self, database: &Database) -> Result<(), RocksError> {
        let (flushed, families) = look(database, &mut self.pace)?;
        let (earned, last) = (self.pace.earned_bytes, self.pace.last.clone());
        let Some(name) = self.pace.next(flushed, &families) else { return Ok(()) };
        let requests = self.requests.as_ref().expect("it is there until it is dropped");
        if requests.try_send(name).is_err() {
            // The one before is still running; what was earned stays.
            self.pace.earned_bytes = earned.saturating_add(signed(flushed));
            self.pace.last = last;
        }
        Ok(())
    }

    /// Ends the thread. A rewriting that runs is given up, and the database does nothing of the kind from then on.
    pub(super) fn end(&mut self, core: &Core) {
        drop(self.requests.take());
        if let Some(database) = core.opened() {
            database.cancel_all_background_work(false);
        }
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hundredth of a family's rows are changed before each snapshot; RocksDB merges nothing by itself.
    #[test]
    fn a_steady_change_is_rewritten_about_once_and_never_much_at_once() {
        let settled = 10_000_u64;
        let mut families: BTreeMap<String, Files> = (0..8)
            .map(|n| (n.to_string(), Files { settled_bytes: settled, newer_bytes: 0, runs: 1 }))
            .collect();
        let mut pace = Pace::default();
        let (mut flushed, mut rewritten, mut most) = (0, 0, 0);
        let mut turns: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..1_000 {
            for files in families.values_mut() {
                files.newer_bytes += settled / 100;
                files.runs = (files.runs + 1).min(20);
                flushed += settled / 100;
            }
            let due = pace.next(8 * settled / 100, &families);
            if let Some(files) = due.as_ref().and_then(|name| families.get_mut(name)) {
                most = most.max(files.newer_bytes);
                rewritten += files.rewritten_bytes();
                *files = Files { settled_bytes: settled, newer_bytes: 0, runs: 1 };
                *turns.entry(due.unwrap()).or_default() += 1;
            }
        }
        assert!(rewritten <= flushed, "{rewritten} rewritten for {flushed}");
        assert!(rewritten > flushed / 2, "only {rewritten} of {flushed}: space is not given back");
        assert!(most <= 3 * settled / 2, "a family had {most} bytes that are newer");
        let (least, most) = (turns.values().min().unwrap(), turns.values().max().unwrap());
        assert!(turns.len() == 8 && most - least <= 2, "{turns:?}");
    }

    #[test]
    fn what_cannot_be_spent_is_not_kept_for_a_burst() {
        let settled = Files { settled_bytes: 1_000, newer_bytes: 10, runs: 2 };
        let mut families = BTreeMap::from([("a".to_owned(), settled), ("b".to_owned(), settled)]);
        let mut pace = Pace::default();
        for _ in 0..100 {
            assert_eq!(pace.next(500, &families), None);
        }
        for files in families.values_mut() {
            *files = Files { settled_bytes: 1_000, newer_bytes: 900, runs: 9 };
        }
        assert!(pace.next(10, &families).is_some());
        assert_eq!(pace.next(10, &families), None);
    }

    #[test]
    fn a_family_of_very_many_runs_is_rewritten_at_once() {
        let many = Files { settled_bytes: 1_000_000, newer_bytes: 10, runs: RUNS_MAX };
        let families = BTreeMap::from([("a".to_owned(), many)]);
        assert_eq!(Pace::default().next(1, &families).as_deref(), Some("a"));
    }
}
