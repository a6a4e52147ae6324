//! The timers of one operator on one worker: what a checkpoint holds of them, and which is next.
//!
//! The times of each key are keyed state: frozen, written by key group and restored as any other. Beside it there is a
//! [queue](DueQueue) of the keys by the first of their times.

use std::ops::Range;

use crate::format::FormatError;
use crate::protocol::layers::Layer;
use crate::runtime::due::DueQueue;
use crate::state::hash::stable_hash;
use crate::state::{
    Backend, BackendTable, FrozenState, Key, Selection, SnapshotForm, StateBackend, ValueTable,
};

/// Timers of one domain.
pub(crate) struct Timers<K: Key> {
    /// The times of each key, ascending, each once. A key without timers is not there.
    times: BackendTable<K, Vec<i64>>,
    /// Keys by the first of their times.
    queue: DueQueue<K>,
    /// Those of keys that are next.
    hashes: Vec<u64>,
}

impl<K: Key> Timers<K> {
    pub(crate) fn new(
        backend: &Backend,
        name: &str,
        max_parallelism: u16,
        groups: &Range<u16>,
    ) -> Self {
        let times = backend.named_table(name, max_parallelism, groups);
        Self { times, queue: DueQueue::default(), hashes: Vec::new() }
    }

    /// No timer has an earlier time than this.
    #[inline]
    pub(crate) fn first(&self) -> Option<i64> {
        self.queue.first()
    }

    /// Whether a timer was new: a key has at most one at each time.
    pub(crate) fn register(&mut self, hash: u64, key: &K, time: i64) -> bool {
        let times = self.times.get_or_insert_with(hash, key, &mut Vec::new);
        let Err(place) = times.binary_search(&time) else { return false };
        let before = times.first().copied();
        times.insert(place, time);
        self.queue.moved(hash, key, before, times.first().copied());
        true
    }

    /// Whether there was such a timer.
    pub(crate) fn delete(&mut self, hash: u64, key: &K, time: i64) -> bool {
        let Some(times) = self.times.get_mut(hash, key) else { return false };
        let Ok(place) = times.binary_search(&time) else { return false };
        let before = times.first().copied();
        times.remove(place);
        let after = times.first().copied();
        if after.is_none() {
            self.times.remove(hash, key);
        }
        self.queue.moved(hash, key, before, after);
        true
    }

    /// Takes the first timer if its time is `until` or earlier. `near` gets the hashes of the keys that come next.
    pub(crate) fn take_due(&mut self, until: i64, near: impl Fn(&[u64])) -> Option<(i64, u64, K)> {
        loop {
            self.queue.ahead(&mut self.hashes);
            if !self.hashes.is_empty() {
                self.times.prefetch(&self.hashes);
                near(&self.hashes);
            }
            let (time, hash, key) = self.queue.take(until)?;
            let Some(times) = self.times.get_mut(hash, &key) else { continue };
            if times.first() != Some(&time) {
                continue;
            }
            times.remove(0);
            let next = times.first().copied();
            if next.is_none() {
                self.times.remove(hash, &key);
            }
            self.queue.fired();
            self.queue.moved(hash, &key, None, next);
            return Some((time, hash, key));
        }
    }

    /// Drops what is in the queue for timers that were deleted, if that is a lot.
    pub(crate) fn weed(&mut self) {
        if self.queue.overgrown() {
            let Self { times, queue, .. } = self;
            queue.weed(|hash, key| times.get(hash, key)?.first().copied());
        }
    }

    pub(crate) fn freeze(&mut self, form: SnapshotForm) -> FrozenState {
        self.times.freeze(form)
    }

    /// Adds the timers that a block holds, of keys that count. When all are in, [`Timers::restored`] is to be called.
    ///
    /// # Errors
    /// [`FormatError::Corrupt`] if the block is damaged.
    pub(crate) fn restore(
        &mut self,
        selection: &Selection<'_>,
        entries: u32,
        bytes: &[u8],
    ) -> Result<(), FormatError> {
        let mut disordered = false;
        self.times.restore_block_as(selection, entries, bytes, |times: Vec<i64>| {
            disordered |= times.is_empty() || !times.is_sorted_by(|one, next| one < next);
            Some(times)
        })?;
        if disordered {
            let why = "the times of a key are not ascending".to_owned();
            return Err(FormatError::Corrupt { offset: 0, why });
        }
        Ok(())
    }

    /// All timers of a checkpoint are in. `layers`: those that later snapshots may build on, if they may.
    pub(crate) fn restored(&mut self, layers: Option<Vec<Layer>>) {
        let Self { times, queue, .. } = self;
        times.for_each(|key, times| {
            queue.moved(stable_hash(key), key, None, times.first().copied());
        });
        if let Some(layers) = layers {
            times.restored(layers);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::format::SectionOutput;
    use crate::ids::KeyGroup;
    use crate::protocol::key_groups::key_groups;

    type Model = BTreeSet<(i64, u64, u64)>;

    fn timers() -> Timers<u64> {
        Timers::new(&Backend::default(), "timers", 16, &(0..16))
    }

    #[derive(Default)]
    struct Section(u32, Vec<u8>, Vec<KeyGroup>);

    impl SectionOutput for Section {
        fn entry(
            &mut self,
            group: KeyGroup,
            fill: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), FormatError>,
        ) -> Result<(), FormatError> {
            self.0 += 1;
            self.2.push(group);
            fill(&mut self.1)
        }
    }

    fn written(frozen: FrozenState) -> Section {
        let mut section = Section::default();
        frozen.content.write(&mut section).unwrap();
        section
    }

    fn drained(mut timers: Timers<u64>) -> Vec<(i64, u64, u64)> {
        let mut all = Vec::new();
        while let Some(timer) = timers.take_due(i64::MAX, |_| ()) {
            all.push(timer);
        }
        assert_eq!(
            written(timers.freeze(SnapshotForm::Plain)).0,
            0,
            "what has fired is not in the state"
        );
        all
    }

    fn number(step: u64, salt: u64, below: u64) -> u64 {
        stable_hash(&(step, salt)) % below
    }

    #[test]
    fn timers_are_taken_as_a_sorted_set_would_and_come_back_at_any_parallelism() {
        let mut timers = timers();
        let mut model = Model::new();
        let mut taken = 0;
        for step in 0..20_000 {
            let key = number(step, 1, 200);
            let hash = stable_hash(&key);
            let time = number(step, 2, 50) as i64 - 10;
            match number(step, 3, 8) {
                0..4 => {
                    let new = model.insert((time, hash, key));
                    assert_eq!(timers.register(hash, &key, time), new, "step {step}");
                }
                4..6 => {
                    let there = model.remove(&(time, hash, key));
                    assert_eq!(timers.delete(hash, &key, time), there, "step {step}");
                }
                _ => {
                    // Among those of one time any may be first.
                    let first = model.first().map(|(first, ..)| *first).filter(|f| *f <= time);
                    let fired = timers.take_due(time, |_| ());
                    assert_eq!(fired.map(|(time, ..)| time), first, "step {step}");
                    assert!(fired.is_none_or(|timer| model.remove(&timer)), "step {step}");
                    taken += u64::from(first.is_some());
                }
            }
            let first = model.first().map(|(time, ..)| *time);
            assert!(first.is_none_or(|first| timers.first() <= Some(first)), "step {step}");
        }
        assert!(taken > 1000 && model.len() > 100, "{taken} {}", model.len());
        let Section(entries, bytes, groups) = written(timers.freeze(SnapshotForm::Plain));
        assert!(groups.is_sorted(), "in the order of key groups");
        for parallelism in 1..=4 {
            let mut all = Vec::new();
            for worker in 0..parallelism {
                let groups = key_groups(16, parallelism, worker);
                let mut restored = self::timers();
                restored.restore(&Selection::whole(groups), entries, &bytes).unwrap();
                restored.restored(None);
                all.extend(drained(restored));
            }
            all.sort_unstable();
            assert_eq!(all, model.iter().copied().collect::<Vec<_>>());
        }
    }

    #[test]
    fn keys_with_one_hash_have_timers_of_their_own() {
        let mut timers = timers();
        for key in [1, 2, 3] {
            assert!(timers.register(7, &key, 10));
            assert!(!timers.register(7, &key, 10));
        }
        assert!(timers.delete(7, &2, 10));
        assert!(!timers.delete(7, &2, 10));
        let mut left = drained(timers);
        left.sort_unstable();
        assert_eq!(left, [(10, 7, 1), (10, 7, 3)]);
    }

    #[test]
    fn what_is_frozen_does_not_change_with_the_timers() {
        let mut timers = timers();
        timers.register(stable_hash(&1_u64), &1, 10);
        let frozen = timers.freeze(SnapshotForm::Plain);
        timers.register(stable_hash(&1_u64), &1, 5);
        timers.take_due(10, |_| ());
        let Section(entries, bytes, _) = written(frozen);
        let mut restored = self::timers();
        restored.restore(&Selection::whole(0..16), entries, &bytes).unwrap();
        restored.restored(None);
        assert_eq!(drained(restored), [(10, stable_hash(&1_u64), 1)]);
    }

    #[test]
    fn a_block_that_is_cut_or_holds_a_timer_twice_is_refused() {
        let mut timers = timers();
        for key in 0..5 {
            timers.register(stable_hash(&key), &key, key as i64);
        }
        let Section(entries, bytes, _) = written(timers.freeze(SnapshotForm::Plain));
        for length in 0..bytes.len() {
            let result =
                self::timers().restore(&Selection::whole(0..16), entries, &bytes[..length]);
            assert!(matches!(result, Err(FormatError::Corrupt { .. })), "cut to {length}");
        }
        let twice = [bytes.as_slice(), &bytes].concat();
        assert!(self::timers().restore(&Selection::whole(0..16), 2 * entries, &twice).is_err());
        assert!(self::timers().restore(&Selection::whole(0..16), entries, &bytes).is_ok());
    }
}
