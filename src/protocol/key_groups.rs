//! Which worker owns which key.
//!
//! A key's stable hash, read as a fraction of 2^64, says its key group: `group = hash * max_parallelism / 2^64`.
//! (Flink and our design notes say `hash % max_parallelism`. The product spreads keys as evenly, and keeps the
//! order: keys sorted by hash are sorted by key group, so a state table that is laid out by hash prefix is
//! already in key-group order when a snapshot is written.)
//!
//! A worker owns consecutive groups, as many as any other or one less: group *g* of *m* belongs to worker `g * p / m` of *p*.

use std::ops::Range;

use crate::ids::{HashRange, KeyGroup};

/// The largest number of key groups of one job.
pub const MAX_PARALLELISM_LIMIT: u16 = 32_768;

/// Returns the key group of a key whose stable hash is `hash`.
///
/// Shape: in `0..max_parallelism`; monotone in `hash`.
#[inline]
#[must_use]
pub fn key_group(hash: u64, max_parallelism: u16) -> KeyGroup {
    KeyGroup(((u128::from(hash) * u128::from(max_parallelism)) >> 64) as u16)
}

/// Returns the key groups that worker `worker` of `parallelism` owns.
///
/// Shape: half-open; over all workers the ranges are disjoint and cover `0..max_parallelism`.
/// Units: key groups, not keys. `max_parallelism` is fixed for the life of the state.
///
/// # Panics
/// If `worker >= parallelism`: a caller bug.
///
/// # Examples
/// ```
/// assert_eq!(highwater::key_groups(128, 3, 1), 43..86);
/// ```
/// Source: the assignment of Flink's `KeyGroupRangeAssignment`; contiguous, so a restore reads in sequence.
#[must_use]
pub fn key_groups(max_parallelism: u16, parallelism: usize, worker: usize) -> Range<u16> {
    assert!(worker < parallelism, "worker {worker} of {parallelism}");
    let first = |w: usize| (w * usize::from(max_parallelism)).div_ceil(parallelism);
    // Both are at most max_parallelism.
    first(worker) as u16..first(worker + 1) as u16
}

/// Returns the hashes of the keys in `groups`. `None` if there are no groups.
#[must_use]
pub fn hashes(groups: &Range<u16>, max_parallelism: u16) -> Option<HashRange> {
    let first = |group: u16| (u128::from(group) << 64).div_ceil(u128::from(max_parallelism));
    // At most 2^64, for the group behind the last one.
    (!groups.is_empty()).then(|| HashRange {
        first: first(groups.start) as u64,
        last: (first(groups.end) - 1) as u64,
    })
}

/// Returns the worker that owns `group`.
#[inline]
#[must_use]
pub fn owner(group: KeyGroup, max_parallelism: u16, parallelism: usize) -> usize {
    usize::from(group.0) * parallelism / usize::from(max_parallelism)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_has_the_owner_whose_range_holds_it() {
        for max_parallelism in [1, 2, 13, 128, 1000, MAX_PARALLELISM_LIMIT] {
            for parallelism in (1..=9).filter(|p| *p <= usize::from(max_parallelism)) {
                let mut next = 0;
                for worker in 0..parallelism {
                    let range = key_groups(max_parallelism, parallelism, worker);
                    assert_eq!(range.start, next);
                    next = range.end;
                    for group in range {
                        assert_eq!(owner(KeyGroup(group), max_parallelism, parallelism), worker);
                    }
                }
                assert_eq!(next, max_parallelism);
            }
        }
    }

    #[test]
    fn the_hashes_of_groups_are_those_of_the_keys_in_them() {
        for max_parallelism in [1, 2, 13, 128, 1000, MAX_PARALLELISM_LIMIT] {
            let last = max_parallelism - 1;
            for groups in [0..1, 0..max_parallelism, last..max_parallelism, last / 2..last / 2 + 1]
            {
                let HashRange { first, last } = hashes(&groups, max_parallelism).unwrap();
                assert_eq!(key_group(first, max_parallelism).0, groups.start);
                assert_eq!(key_group(last, max_parallelism).0, groups.end - 1);
                let before = first.checked_sub(1).map(|hash| key_group(hash, max_parallelism).0);
                assert_eq!(before, groups.start.checked_sub(1));
                let behind = last.checked_add(1).map(|hash| key_group(hash, max_parallelism).0);
                assert_eq!(behind, (groups.end < max_parallelism).then_some(groups.end));
            }
            assert_eq!(hashes(&(3..3), max_parallelism), None);
        }
    }

    #[test]
    fn the_group_grows_with_the_hash_and_stays_below_the_limit() {
        assert_eq!(key_group(0, 128), KeyGroup(0));
        assert_eq!(key_group(u64::MAX, 128), KeyGroup(127));
        assert_eq!(key_group(u64::MAX, MAX_PARALLELISM_LIMIT), KeyGroup(32_767));
        assert_eq!(key_group(1 << 63, 13), KeyGroup(6));
    }
}
