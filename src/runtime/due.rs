//! Which keys wait for which times: a queue beside keyed state, made again when the state is restored.
//!
//! # Invariants
//! For each key that waits there is an entry at exactly the time that it waits for. There may be more entries, at times that
//! it has waited for before: these are *stale*. Whoever takes an entry compares it with the state, which alone is true, and
//! drops a stale one. So nothing has to be found in the middle of the queue when a key waits for another time.
//!
//! Stale entries go when their time comes; [`DueQueue::overgrown`] says when there are too many to wait for that.
//!
//! # Ordering
//! Keys that wait for one time, if they are many, are taken about in the order of their hashes, which is that of the table: one after
//! the other they are near each other in memory. In the order in which they came, a window of many keys takes two to three times as
//! long to end. Keys that begin to wait for a time while it is being taken come next.

use std::collections::BTreeMap;

use crate::state::Key;

/// Stale entries that nobody minds.
const STALE_MIN: usize = 4096;
/// Keys that are brought near the processor together.
const AHEAD: usize = 64;
/// Fewer keys are not put in order: one after the other they are far from each other all the same.
const ORDERED_MIN: usize = 256;
/// Keys are put in order by the part of all hashes that theirs is in, one of so many (a power of two): that much of a table is in the
/// processor's cache.
const PARTS: usize = 2048;

/// Keys by the time that they wait for.
pub(crate) struct DueQueue<K> {
    by_time: BTreeMap<i64, Keys<K>>,
    entries: usize,
    /// Keys that wait.
    waiting: usize,
    /// Entries that may be taken before others have to be brought near.
    near: usize,
    /// Room for the keys of another time.
    spare: Vec<(u64, K)>,
}

/// The keys that wait for one time.
struct Keys<K> {
    /// From the end.
    list: Vec<(u64, K)>,
    /// Whether it is in order, but for what was added since.
    ordered: bool,
}

impl<K> Keys<K> {
    fn order(&mut self) {
        if !self.ordered {
            order(&mut self.list);
            self.ordered = true;
        }
    }
}

/// Moves keys with large hashes to the front, by part: in place, in the time of a few looks at each.
fn order<K>(list: &mut [(u64, K)]) {
    if list.len() < ORDERED_MIN {
        return;
    }
    let hashes = || list.iter().map(|(hash, _)| *hash);
    let (least, most) =
        hashes().fold((u64::MAX, 0), |(least, most), hash| (least.min(hash), most.max(hash)));
    let bits = u64::BITS - (most - least).leading_zeros();
    let shift = bits.saturating_sub(PARTS.ilog2());
    let part = |hash: u64| ((most - hash) >> shift) as usize;
    // Where each part ends, and where the next key of it goes.
    let mut ends = [0; PARTS];
    hashes().for_each(|hash| ends[part(hash)] += 1);
    let (mut next, mut before) = ([0; PARTS], 0);
    for (end, next) in ends.iter_mut().zip(&mut next) {
        *next = before;
        before += *end;
        *end = before;
    }
    for this in 0..PARTS {
        while next[this] < ends[this] {
            let to = part(list[next[this]].0);
            list.swap(next[this], next[to]);
            next[to] += 1;
        }
    }
}

impl<K> Default for DueQueue<K> {
    fn default() -> Self {
        Self { by_time: BTreeMap::new(), entries: 0, waiting: 0, near: 0, spare: Vec::new() }
    }
}

impl<K: Key> DueQueue<K> {
    /// No key waits for an earlier time. (A stale entry may be at this one.)
    #[inline]
    pub(crate) fn first(&self) -> Option<i64> {
        self.by_time.first_key_value().map(|(time, _)| *time)
    }

    /// A key that waited for `before` waits for `after` now.
    #[inline]
    pub(crate) fn moved(&mut self, hash: u64, key: &K, before: Option<i64>, after: Option<i64>) {
        if before == after {
            return;
        }
        self.waiting -= usize::from(before.is_some());
        if let Some(time) = after {
            self.waiting += 1;
            self.entries += 1;
            let spare = &mut self.spare;
            let keys = self.by_time.entry(time);
            let keys = keys.or_insert_with(|| Keys { list: std::mem::take(spare), ordered: false });
            keys.list.push((hash, key.clone()));
        }
    }

    /// Takes the first entry if its time is `until` or earlier. If it is not stale, the key no longer waits for it: then
    /// [`DueQueue::fired`] is to be called, and [`DueQueue::moved`] from `None` when it waits again.
    pub(crate) fn take(&mut self, until: i64) -> Option<(i64, u64, K)> {
        let mut first = self.by_time.first_entry()?;
        let time = *first.key();
        if time > until {
            return None;
        }
        first.get_mut().order();
        let (hash, key) = first.get_mut().list.pop().expect("no time is without entries");
        if first.get().list.is_empty() {
            // The next time may have as many.
            self.spare = first.remove().list;
            self.near = 0;
        }
        self.entries -= 1;
        Some((time, hash, key))
    }

    /// An entry that was taken was not stale.
    pub(crate) fn fired(&mut self) {
        self.waiting -= 1;
    }

    /// The hashes of the entries that come next, up to some, if nobody was told of them yet: so that what they need can be
    /// brought near the processor. To be called before each [`DueQueue::take`].
    pub(crate) fn ahead(&mut self, hashes: &mut Vec<u64>) {
        hashes.clear();
        if self.near > 0 {
            self.near -= 1;
            return;
        }
        if let Some(mut first) = self.by_time.first_entry() {
            first.get_mut().order();
            hashes.extend(first.get().list.iter().rev().take(AHEAD).map(|(hash, _)| *hash));
        }
        self.near = hashes.len().saturating_sub(1);
    }

    /// Whether most entries are stale, and many.
    pub(crate) fn overgrown(&self) -> bool {
        self.entries > 2 * self.waiting + STALE_MIN
    }

    /// Drops stale entries: those whose key does not wait for their time.
    pub(crate) fn weed(&mut self, mut waits_for: impl FnMut(u64, &K) -> Option<i64>) {
        self.by_time.retain(|time, keys| {
            keys.list.retain(|(hash, key)| waits_for(*hash, key) == Some(*time));
            !keys.list.is_empty()
        });
        self.entries = self.by_time.values().map(|keys| keys.list.len()).sum();
        self.near = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::hash::stable_hash;

    #[test]
    fn keys_that_wait_for_ever_other_times_do_not_fill_the_queue() {
        let mut queue = DueQueue::default();
        let mut due = [None; 100];
        for step in 0..1_000_000_i64 {
            let key = stable_hash(&step) % 100;
            let after = (stable_hash(&(step, 1)) % 10 > 0).then_some(step + 1_000_000);
            let before = std::mem::replace(&mut due[key as usize], after);
            queue.moved(key, &key, before, after);
            if queue.overgrown() {
                queue.weed(|_, key| due[*key as usize]);
            }
            assert!(queue.entries <= 2 * 100 + STALE_MIN + 1, "step {step}");
        }
        let mut waiting: Vec<_> = due.iter().flatten().copied().collect();
        waiting.sort_unstable();
        let mut taken = Vec::new();
        while let Some((time, _, key)) = queue.take(i64::MAX) {
            if due[key as usize] == Some(time) {
                queue.fired();
                due[key as usize] = None;
                taken.push(time);
            }
        }
        assert_eq!(taken, waiting);
        assert_eq!((queue.waiting, queue.entries, queue.first()), (0, 0, None));
    }

    #[test]
    fn many_keys_are_taken_in_the_order_of_the_parts_that_their_hashes_are_in() {
        // All hashes, those of one worker of many, few different ones, and one.
        for (from, bits) in
            [(0, 64), (0x5a00_0000_0000_0000, 56), (7, 9), (u64::MAX - 1, 1), (3, 0)]
        {
            let mut queue = DueQueue::default();
            let hash_of = |key: u64| from + stable_hash(&key).checked_shr(64 - bits).unwrap_or(0);
            for key in 0..50_000_u64 {
                queue.moved(hash_of(key), &key, None, Some(9));
            }
            let (mut taken, mut last, mut seen) = (0, 0, std::collections::BTreeSet::new());
            let part = (1_u64 << (bits.saturating_sub(1))) / (PARTS as u64 / 2);
            while let Some((_, hash, key)) = queue.take(9) {
                assert_eq!(hash, hash_of(key));
                assert!(
                    hash.saturating_add(part) >= last,
                    "{bits} bits: {hash:x} comes after {last:x}"
                );
                last = last.max(hash);
                taken += u64::from(seen.insert(key));
            }
            assert_eq!(taken, 50_000, "{bits} bits");
        }
    }

    #[test]
    fn all_keys_that_are_taken_were_brought_near_before() {
        let mut queue = DueQueue::default();
        for key in 0..1000_u64 {
            queue.moved(key, &key, None, Some(key as i64 / 300));
        }
        let mut near = std::collections::BTreeSet::new();
        let mut hashes = Vec::new();
        loop {
            queue.ahead(&mut hashes);
            near.extend(hashes.iter().copied());
            let Some((_, hash, _)) = queue.take(i64::MAX) else { break };
            assert!(near.remove(&hash), "{hash}");
        }
        assert!(near.is_empty());
    }
}
