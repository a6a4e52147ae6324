//! Ranges, plans, and what the needed layers restore to whatever becomes of checkpoints.

use std::collections::BTreeMap;

use super::*;

const OWNED: HashRange = HashRange { first: 1000, last: 1999 };

fn range(first: u64, last: u64) -> HashRange {
    HashRange { first, last }
}

#[test]
fn ranges_that_touch_or_overlap_become_one() {
    let ranges: HashRanges = [range(10, 19), range(30, 39), range(20, 24)].into_iter().collect();
    assert_eq!(ranges.as_slice(), [range(10, 24), range(30, 39)]);
    assert!(ranges.covers(range(12, 24)) && !ranges.covers(range(20, 30)));
    let hits: Vec<u64> = (0..50).filter(|hash| ranges.contains(*hash)).collect();
    assert_eq!(hits, (10..25).chain(30..40).collect::<Vec<_>>());
    let all: HashRanges = [range(5, u64::MAX), HashRange::ALL, range(0, 3)].into_iter().collect();
    assert_eq!(all.as_slice(), [HashRange::ALL]);
}

#[test]
fn a_snapshot_is_whole_until_one_is_confirmed_and_if_half_has_changed() {
    let mut layers = Layers::new(OWNED);
    layers.begin();
    assert_eq!(layers.plan(100, 0, 0), Plan::Whole);
    assert!(layers.taken(Epoch(1), Plan::Whole, None, false).is_empty());
    layers.begin();
    assert_eq!(layers.plan(100, 1, 1), Plan::Whole, "the first is not complete");
    layers.taken(Epoch(2), Plan::Whole, None, false);
    layers.confirm(Epoch(1));
    assert_eq!(layers.plan(1000, 7, 7), Plan::Small);
    assert_eq!(layers.plan(1000, 20, 20), Plan::Top { window: 16 });
    assert_eq!(layers.plan(1000, 500, 500), Plan::Whole);
    assert_eq!(layers.plan(0, 0, 0), Plan::Small, "nothing is there and nothing has changed");
}

#[test]
fn an_empty_snapshot_is_no_layer() {
    let mut layers = Layers::new(OWNED);
    layers.begin();
    layers.taken(Epoch(1), Plan::Whole, None, false);
    layers.confirm(Epoch(1));
    for epoch in 2..500 {
        layers.begin();
        let needs = layers.taken(Epoch(epoch), Plan::Small, None, true);
        assert_eq!(needs, BTreeSet::from([Epoch(1)]));
        layers.confirm(Epoch(epoch));
    }
}

/// The numbers of a small generator (xorshift, Marsaglia 2003).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What storage holds of a checkpoint: the hashes with the version that each had when it was written.
#[derive(Clone)]
struct Stored {
    whole: HashRanges,
    versions: BTreeMap<u64, Option<u64>>,
}

/// Restores from layers by the rule that readers follow.
fn restore(stored: &BTreeMap<Epoch, Stored>, needs: &BTreeSet<Epoch>) -> BTreeMap<u64, u64> {
    let mut state = BTreeMap::new();
    let mut superseded = HashRanges::default();
    let mut rules = Vec::new();
    for epoch in needs.iter().rev() {
        rules.push((epoch, superseded.clone()));
        stored[epoch].whole.as_slice().iter().for_each(|range| superseded.insert(*range));
    }
    for (epoch, superseded) in rules.into_iter().rev() {
        for (hash, version) in &stored[epoch].versions {
            if !superseded.contains(*hash) {
                match version {
                    Some(version) => _ = state.insert(*hash, *version),
                    None => _ = state.remove(hash),
                }
            }
        }
    }
    state
}

/// A state of one version a hash, snapshotted by the plans, with aborted and overlapping checkpoints.
#[test]
fn what_the_needed_layers_hold_is_the_state_whatever_is_aborted_or_late() {
    for seed in 1..16 {
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let mut layers = Layers::new(OWNED);
        let mut state: BTreeMap<u64, u64> = OWNED.into_iter_all().map(|hash| (hash, 0)).collect();
        // When each hash was last changed: the number of snapshots before.
        let mut changed_at: BTreeMap<u64, u32> = BTreeMap::new();
        let mut stored: BTreeMap<Epoch, Stored> = BTreeMap::new();
        let mut taken = Vec::new();
        let mut longest = 0;
        for epoch in (1..300).map(Epoch) {
            let changes = match numbers.below(3) {
                0 => 0,
                1 => numbers.below(8),
                _ => numbers.below(40),
            };
            for _ in 0..changes {
                let hash = OWNED.first + numbers.below(1000);
                match numbers.below(4) {
                    0 => _ = state.remove(&hash),
                    _ => _ = state.insert(hash, epoch.0),
                }
                changed_at.insert(hash, layers.snapshot());
            }
            layers.begin();
            let since = |snapshot: u32| {
                let changed = changed_at.iter().filter(move |(_, at)| **at >= snapshot);
                changed.map(|(hash, _)| *hash).collect::<Vec<u64>>()
            };
            let (small, top) = (since(layers.confirmed_snapshot()), since(layers.confirmed_top()));
            let plan = layers.plan(state.len() as u64, small.len() as u64, top.len() as u64);
            let window = match plan {
                Plan::Top { window } => {
                    let first = layers.window_at();
                    Some(range(first, (first + window - 1).min(OWNED.last)))
                }
                _ => None,
            };
            let mut hashes: BTreeSet<u64> = match plan {
                Plan::Whole => state.keys().copied().collect(),
                Plan::Top { .. } => top.into_iter().collect(),
                Plan::Small => small.into_iter().collect(),
            };
            if let Some(window) = window {
                hashes.extend(window.into_iter_all());
            }
            let whole = match plan {
                Plan::Whole => [OWNED].into_iter().collect(),
                _ => window.into_iter().collect(),
            };
            let versions: BTreeMap<_, _> =
                hashes.into_iter().map(|hash| (hash, state.get(&hash).copied())).collect();
            let needs = layers.taken(epoch, plan, window, versions.is_empty());
            longest = longest.max(needs.len());
            stored.insert(epoch, Stored { whole, versions });
            let all = needs.iter().copied().chain([epoch]).collect();
            assert_eq!(restore(&stored, &all), state, "seed {seed}, checkpoint {epoch}, {plan:?}");
            taken.push(epoch);
            // Complete, aborted, or still on its way.
            match numbers.below(6) {
                0 => _ = taken.pop(),
                1 => {}
                _ => {
                    layers.confirm(epoch);
                    taken.clear();
                }
            }
            if let Some(late) = taken.first().copied().filter(|_| numbers.below(3) == 0) {
                layers.confirm(late);
                taken.remove(0);
            }
            if numbers.below(60) == 0 {
                let mut restored = Layers::new(OWNED);
                restored.snapshot = layers.snapshot;
                restored.confirmed_snapshot = layers.snapshot;
                restored.confirmed_top = layers.snapshot;
                if let Some(newest) = layers.confirmed.last().map(|layer| layer.epoch) {
                    let needs = layers.confirmed.iter().map(|layer| layer.epoch).collect();
                    state = restore(&stored, &needs);
                    assert!(newest <= epoch);
                    restored.adopt(layers.confirmed.clone());
                } else {
                    state.clear();
                }
                layers = restored;
                taken.clear();
            }
        }
        assert!(longest > 8, "seed {seed}: nothing was ever layered");
    }
}

impl HashRange {
    fn into_iter_all(self) -> impl Iterator<Item = u64> {
        self.first..=self.last
    }
}

#[test]
fn layers_stay_few_and_writing_stays_near_what_has_changed() {
    // (entries changed a checkpoint, of 128,000; most entries written for each)
    for (changed, most) in [(10, 10.0), (100, 3.0), (700, 3.0), (1280, 1.9), (20_000, 1.9)] {
        let entries = 128_000_u64;
        let owned = range(0, entries - 1);
        let mut layers = Layers::new(owned);
        layers.begin();
        layers.taken(Epoch(0), Plan::Whole, None, false);
        layers.confirm(Epoch(0));
        let (mut since_top, mut written, mut longest) = (0, 0, 0);
        let checkpoints = 4000;
        for epoch in 1..=checkpoints {
            layers.begin();
            since_top += changed;
            let plan = layers.plan(entries, changed, since_top);
            let window = match plan {
                Plan::Whole => panic!("{changed}: everything was written"),
                Plan::Top { window } => {
                    written += since_top + window;
                    since_top = 0;
                    let first = layers.window_at();
                    Some(range(first, (first + window - 1).min(owned.last)))
                }
                Plan::Small => {
                    written += changed;
                    None
                }
            };
            let needs = layers.taken(Epoch(epoch), plan, window, false);
            longest = longest.max(needs.len());
            layers.confirm(Epoch(epoch));
        }
        let amplification = written as f64 / (checkpoints * changed) as f64;
        assert!(amplification < most, "{changed} changed: {amplification}");
        assert!(
            longest <= SMALL_MAX + 5 * WINDOWS as usize / 4 + 2,
            "{changed} changed: {longest} layers"
        );
    }
}
