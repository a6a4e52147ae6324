//! Windows that begin at the same moments for all keys: tumbling and sliding ones.
//!
//! # States
//! Time is cut into *panes*, of the greatest length that divides both the size and the slide of the windows. A record is added to
//! its pane, once, however many windows share that. A state holds the panes of its key that a window still needs (and for a while
//! some that none does any more), in order, and the time at which it is due.
//!
//! # Invariant
//! A window with a record has had its result when all its time has passed, or the state is due at its last millisecond or
//! before. So, called for a time, a state has to give the results of the windows that end between that and now, and of no
//! other: nothing is kept about what has been done.
//!
//! # Cost
//! A window is the merger of its panes. When these are many, mergers are kept and used again (*two stacks*): for each of the older
//! panes what all from there on come to, and what the newer ones come to; so a window costs about two mergers, however many
//! panes it has. They are not in checkpoints, and a record for an older pane, which comes out of order, forgets them.
//!
//! # Source
//! Li et al. 2005, No Pane, No Gain; Tangwongsan, Hirzel, Schneider 2015 for the two stacks.

use std::cell::Cell;
use std::ops::Range;

use highwater::prelude::*;
use serde::{Deserialize, Serialize};

use crate::aggregate::Aggregate;
use crate::few::Few;
use crate::window::WindowState;
use crate::window::time::{Moments, Window};

/// Panes of a window that are merged anew each time.
const FEW_PANES: usize = 4;
/// Panes are forgotten when they are this part of all, one in so many.
const KEPT_PART: usize = 8;

/// Where windows begin and end. All of it in milliseconds; `pane` divides `size` and `slide`.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    pub(super) size: i64,
    pub(super) slide: i64,
    pub(super) offset: i64,
    pub(super) pane: i64,
    pub(super) lateness: i64,
    /// A pane, by its start, and the end of the last window that holds it: that of most records that come next, so that neither
    /// has to be found by a division.
    current: Cell<(i64, i64)>,
    /// The end of a window: those asked for next are mostly this one and the next, for all keys.
    near: Cell<i64>,
}

impl Grid {
    pub(super) fn new(size: i64, slide: i64, offset: i64, lateness: i64) -> Self {
        let (mut pane, mut rest) = (size, slide);
        while rest != 0 {
            (pane, rest) = (rest, pane % rest);
        }
        let near = Cell::new(offset.saturating_add(size));
        let grid = Self { size, slide, offset, pane, lateness, current: Cell::default(), near };
        grid.current.set((offset, grid.last_end(offset)));
        grid
    }

    /// The pane of a time, by its start, and the end of the last window that holds it.
    #[inline]
    pub(super) fn pane_of(&self, time: i64) -> (i64, i64) {
        let current = self.current.get();
        if (0..self.pane).contains(&time.wrapping_sub(current.0)) {
            return current;
        }
        let start = time.saturating_sub(time.wrapping_sub(self.offset).rem_euclid(self.pane));
        let current = (start, self.last_end(start));
        self.current.set(current);
        current
    }

    /// The end of the first window that ends behind `time`.
    #[inline]
    fn end_behind(&self, time: i64) -> i64 {
        let near = self.near.get();
        let ahead = time.saturating_sub(near);
        if -self.slide <= ahead && ahead < self.slide {
            return if ahead < 0 { near } else { near.saturating_add(self.slide) };
        }
        let into = time.wrapping_sub(self.offset).wrapping_sub(self.size).rem_euclid(self.slide);
        let end = time.saturating_add(self.slide - into);
        self.near.set(end);
        end
    }

    /// The ends of the windows that hold a time, in order.
    pub(super) fn ends_of(&self, time: i64) -> impl Iterator<Item = i64> + use<> {
        let (last, slide) = (time.saturating_add(self.size), self.slide);
        let ends =
            std::iter::successors(Some(self.end_behind(time)), move |end| end.checked_add(slide));
        ends.take_while(move |end| *end <= last)
    }

    /// The end of the last window that holds a pane.
    #[inline]
    fn last_end(&self, pane: i64) -> i64 {
        if self.slide == self.size {
            return pane.saturating_add(self.size);
        }
        let end = pane.saturating_add(self.size);
        end - end.wrapping_sub(self.offset).wrapping_sub(self.size).rem_euclid(self.slide)
    }

    /// When nothing that is in a pane is needed any more, by the end of the last window that holds it.
    #[inline]
    fn over_at(&self, last_end: i64) -> i64 {
        (last_end - 1).saturating_add(self.lateness)
    }

    /// The start of the first pane that is needed when all until `passed` has passed. `None`: no pane is, for time has ended.
    fn needed_from(&self, passed: i64) -> Option<i64> {
        let behind = passed.saturating_sub(self.lateness).saturating_add(1);
        (passed < i64::MAX).then(|| self.end_behind(behind).saturating_sub(self.size))
    }

    /// The number of `panes` that begin before `time`. All of them begin before `newest`.
    #[inline]
    fn before<S>(&self, panes: &[(i64, S)], newest: i64, time: i64) -> usize {
        if panes.is_empty() {
            return 0;
        }
        // Between the two times there are so many at the most, and of a busy key just as many.
        let between = newest.saturating_sub(time).max(0) as u64 / self.pane as u64;
        let from = panes.len().saturating_sub(between as usize);
        if panes.get(from).is_some_and(|(pane, _)| *pane == time) {
            return from;
        }
        match from.checked_sub(1) {
            // Panes of a state that was restored may be of other lengths.
            Some(last) if panes[last].0 >= time => gallop(panes, time),
            _ => from + gallop(&panes[from..], time),
        }
    }

    /// The end of the first window that holds a pane and has not passed.
    #[inline]
    fn next_end(&self, pane: i64, passed: i64) -> i64 {
        let end = pane.saturating_add(self.size);
        if self.slide == self.size && end - 1 > passed {
            return end;
        }
        self.end_behind(pane.max(passed.saturating_add(1)))
    }
}

/// The number of panes that begin before `time`.
#[inline]
fn gallop<S>(panes: &[(i64, S)], time: i64) -> usize {
    let mut step = 1;
    while panes.get(step - 1).is_some_and(|(pane, _)| *pane < time) {
        step *= 2;
    }
    let (from, to) = (step / 2, panes.len().min(step - 1));
    from + panes[from..to].partition_point(|(pane, _)| *pane < time)
}

/// Mergers that are used again: see the head of this file.
#[derive(Clone, Debug)]
struct Mergers<S> {
    /// What the panes from this one up to `turn` come to, the first last.
    older: Vec<(i64, S)>,
    /// What those from `turn` to `end` come to.
    newer: Option<S>,
    end: i64,
}

/// The windows of one key. Most records are of the last pane, which is in place.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(bound(serialize = "S: Serialize", deserialize = "S: Deserialize<'de>"))]
pub(super) struct Panes<S> {
    due: i64,
    /// With its start. `None`: there is no pane.
    last: Option<(i64, S)>,
    before: Option<Box<Before<S>>>,
}

/// The panes before the last one.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(bound(serialize = "S: Serialize", deserialize = "S: Deserialize<'de>"))]
struct Before<S> {
    /// By their starts.
    panes: Few<(i64, S)>,
    #[serde(skip)]
    mergers: Option<Box<Mergers<S>>>,
}

impl<S> Default for Panes<S> {
    fn default() -> Self {
        Self { due: i64::MAX, last: None, before: None }
    }
}

impl<S> Default for Before<S> {
    fn default() -> Self {
        Self { panes: Few::default(), mergers: None }
    }
}

impl<S: Record> WindowState for Panes<S> {
    type Held = S;
    type Spec = Grid;

    #[inline]
    fn due(&self) -> Option<i64> {
        self.last.as_ref().map(|_| self.due)
    }

    #[inline]
    fn add<A: Aggregate<State = S>>(
        &mut self,
        grid: &Grid,
        aggregate: &A,
        time: i64,
        record: A::Input,
        at: Moments,
        mut result: impl FnMut(Window, A::Output),
    ) -> Result<(), A::Input> {
        let passed = at.passed;
        let (pane, last_end) = grid.pane_of(time);
        // Windows with gaps between them do not hold every record.
        if last_end <= pane || grid.over_at(last_end) <= passed {
            return Err(record);
        }
        // A pane that is there has been seen to.
        if self.add_to_pane(grid, aggregate, pane, record) {
            let next = grid.next_end(pane, passed);
            if next <= last_end {
                self.due = self.due.min(next - 1);
            }
        }
        if grid.lateness > 0 {
            self.due = self.due.min(grid.over_at(last_end));
            let mut end = grid.end_behind(pane.max(passed.saturating_sub(grid.lateness) + 1));
            while end <= last_end && end - 1 <= passed {
                self.give(grid, aggregate, end, &mut result);
                end += grid.slide;
            }
        }
        Ok(())
    }

    fn fire<A: Aggregate<State = S>>(
        &mut self,
        grid: &Grid,
        aggregate: &A,
        at: Moments,
        mut result: impl FnMut(Window, A::Output),
    ) {
        let passed = at.passed;
        if self.before.is_none()
            && grid.slide == grid.size
            && let Some((start, state)) = &self.last
            && let Some(end) = start.checked_add(grid.size)
            && self.due == end - 1
            && grid.over_at(end) <= passed
            // Else it is of a state that was restored, and the windows are others now.
            && grid.end_behind(*start) == end
        {
            // Tumbling windows mostly come one at a time.
            result(Window { start: *start, end }, aggregate.result(state));
            *self = Self::default();
            return;
        }
        let mut behind = self.due;
        // Windows without panes between two others are passed over.
        let next = loop {
            let start = grid.end_behind(behind).saturating_sub(grid.size);
            let Some((_, pane)) = self.first_from(grid, start) else { break None };
            let end = grid.end_behind(behind.max(pane));
            if end - 1 > passed {
                break Some(end);
            }
            if end <= behind {
                break None; // Time has an end.
            }
            self.give(grid, aggregate, end, &mut result);
            behind = end;
        };
        self.due = next.map_or(i64::MAX, |end| end - 1);
        match grid.needed_from(passed).and_then(|start| self.forget_before(grid, start)) {
            None => (self.last, self.before) = (None, None),
            Some(pane) if grid.lateness > 0 => {
                self.due = self.due.min(grid.over_at(grid.last_end(pane)));
            }
            Some(_) => {}
        }
    }
}

impl<S: Record> Panes<S> {
    /// Whether the pane is new.
    #[inline]
    fn add_to_pane<A: Aggregate<State = S>>(
        &mut self,
        grid: &Grid,
        aggregate: &A,
        pane: i64,
        record: A::Input,
    ) -> bool {
        // What is merged ends with a window that has passed, so a slide before the end of the first that has not: most records are
        // behind that, and need no look at it.
        if pane.saturating_add(grid.slide) <= self.due
            && let Some(before) = &mut self.before
        {
            before.mergers.take_if(|mergers| pane < mergers.end);
        }
        let last = match &mut self.last {
            None => {
                self.last = Some((pane, aggregate.create(record)));
                return true;
            }
            Some(last) => last,
        };
        if last.0 == pane {
            aggregate.add(&mut last.1, record);
            return false;
        }
        let panes = &mut self.before.get_or_insert_default().panes;
        if last.0 < pane {
            let before = std::mem::replace(last, (pane, aggregate.create(record)));
            panes.insert(panes.as_slice().len(), before);
            return true;
        }
        let place = grid.before(panes.as_slice(), last.0, pane);
        match panes.as_mut_slice().get_mut(place) {
            Some((start, state)) if *start == pane => {
                aggregate.add(state, record);
                false
            }
            _ => {
                panes.insert(place, (pane, aggregate.create(record)));
                true
            }
        }
    }

    /// The panes before the last one.
    #[inline]
    fn before(&self) -> &[(i64, S)] {
        self.before.as_ref().map_or(&[], |before| before.panes.as_slice())
    }

    /// The number of panes before the last one that begin before `time`, and the start of the first pane that does not.
    fn first_from(&self, grid: &Grid, time: i64) -> Option<(usize, i64)> {
        let before = self.before();
        let (newest, _) = self.last.as_ref()?;
        let place = grid.before(before, *newest, time);
        let (pane, _) = before.get(place).or(self.last.as_ref())?;
        (*pane >= time).then_some((place, *pane))
    }

    /// Forgets the panes that begin before `start`. Returns the first that does not; `None`: they all do. Those before the last one are
    /// not forgotten each time, because that moves all others.
    fn forget_before(&mut self, grid: &Grid, start: i64) -> Option<i64> {
        let (over, first) = self.first_from(grid, start)?;
        if let Some(before) = &mut self.before {
            let panes = before.panes.as_slice().len();
            if over == panes {
                self.before = None;
            } else if over >= panes.div_ceil(KEPT_PART) {
                before.panes.remove_first(over);
            }
        }
        Some(first)
    }

    fn give<A: Aggregate<State = S>>(
        &mut self,
        grid: &Grid,
        aggregate: &A,
        end: i64,
        result: &mut impl FnMut(Window, A::Output),
    ) {
        let window = Window { start: end - grid.size, end };
        let Some((newest, _)) = self.last else { return };
        let last = self.last.as_ref().filter(|(pane, _)| (window.start..end).contains(pane));
        let before = self.before();
        let [first, behind] = [window.start, end].map(|time| grid.before(before, newest, time));
        let before = &before[first..behind];
        let merged = match (before, last) {
            ([], None) => return,
            ([], Some((_, one))) | ([(_, one)], None) => {
                return result(window, aggregate.result(one));
            }
            (few, last) if few.len() <= FEW_PANES || grid.lateness > 0 => {
                merge_all(aggregate, few.iter().chain(last))
            }
            _ => self.merged(aggregate, window, first..behind),
        };
        result(window, aggregate.result(&merged));
    }

    /// Merges the panes of a window, of which there is at least one before the last, with the help of what was merged before.
    /// `inside`: those before the last that it has.
    fn merged<A: Aggregate<State = S>>(
        &mut self,
        aggregate: &A,
        window: Window,
        inside: Range<usize>,
    ) -> S {
        let Before { panes, mergers } = &mut **self.before.get_or_insert_default();
        let inside = &panes.as_slice()[inside];
        let last = self.last.as_ref().filter(|(pane, _)| *pane < window.end);
        mergers.take_if(|mergers| mergers.end > window.end);
        if let Some(mergers) = mergers {
            let Mergers { older, newer, end } = &mut **mergers;
            let old = inside.iter().rposition(|(pane, _)| *pane < *end).map_or(0, |at| at + 1);
            for (_, pane) in inside[old..].iter().chain(last.filter(|(pane, _)| *pane >= *end)) {
                match newer {
                    Some(newer) => aggregate.merge(newer, pane.clone()),
                    None => *newer = Some(pane.clone()),
                }
            }
            *end = window.end;
            while older.last().is_some_and(|(pane, _)| *pane < window.start) {
                older.pop();
            }
        }
        // When the older ones are used up, what was new is old.
        let mergers = match mergers {
            Some(mergers) if !mergers.older.is_empty() => mergers,
            used_up => {
                let mut older: Vec<(i64, S)> = Vec::new();
                for (start, pane) in inside.iter().chain(last).rev() {
                    let mut merged = pane.clone();
                    if let Some((_, later)) = older.last() {
                        aggregate.merge(&mut merged, later.clone());
                    }
                    older.push((*start, merged));
                }
                used_up.insert(Box::new(Mergers { older, newer: None, end: window.end }))
            }
        };
        let (_, older) = mergers.older.last().expect("there is a pane");
        let mut merged = older.clone();
        if let Some(newer) = &mergers.newer {
            aggregate.merge(&mut merged, newer.clone());
        }
        merged
    }
}

/// Merges panes, of which there is at least one.
fn merge_all<'a, A: Aggregate>(
    aggregate: &A,
    mut panes: impl Iterator<Item = &'a (i64, A::State)>,
) -> A::State
where
    A::State: 'a,
{
    let mut merged = panes.next().expect("there is a pane").1.clone();
    for (_, pane) in panes {
        aggregate.merge(&mut merged, pane.clone());
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The records in order, so that a merger in the wrong order shows. Counts what it does.
    struct Lists;

    impl Aggregate for Lists {
        type Input = u32;
        type State = Vec<u32>;
        type Output = Vec<u32>;
        fn create(&self, first: u32) -> Vec<u32> {
            vec![first]
        }
        fn add(&self, state: &mut Vec<u32>, input: u32) {
            state.push(input);
        }
        fn merge(&self, state: &mut Vec<u32>, other: Vec<u32>) {
            state.extend(other);
        }
        fn result(&self, state: &Vec<u32>) -> Vec<u32> {
            state.clone()
        }
    }

    fn at(passed: i64) -> Moments {
        Moments { passed, now: 0 }
    }

    fn random(state: &mut u64) -> u64 {
        *state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *state >> 33
    }

    /// Windows by definition: each is a list of its own. The watermark is that when the record came.
    fn naive(grid: &Grid, records: &[(i64, u32, i64)]) -> Vec<(Window, Vec<u32>)> {
        let mut found = Vec::new();
        let times = records.iter().map(|(time, ..)| *time);
        let (Some(first), Some(last)) = (times.clone().min(), times.max()) else { return found };
        for start in first - grid.size..=last {
            if (start - grid.offset).rem_euclid(grid.slide) != 0 {
                continue;
            }
            let window = Window { start, end: start + grid.size };
            let mut inside: Vec<(i64, u32)> = records
                .iter()
                .filter(|(time, _, passed)| {
                    (window.start..window.end).contains(time) && window.end - 1 > *passed
                })
                .map(|(time, n, _)| (grid.pane_of(*time).0, *n))
                .collect();
            inside.sort_by_key(|(pane, _)| *pane);
            if !inside.is_empty() {
                found.push((window, inside.into_iter().map(|(_, n)| n).collect()));
            }
        }
        found
    }

    #[test]
    fn windows_hold_what_their_definition_says_however_late_and_out_of_order_records_come() {
        for seed in 0..400_u64 {
            let mut state = seed;
            let size = 1 + random(&mut state) as i64 % 40;
            let slide = 1 + random(&mut state) as i64 % 20;
            let grid = Grid::new(size, slide, random(&mut state) as i64 % 20 - 10, 0);
            let mut panes = Panes::<Vec<u32>>::default();
            let mut passed = i64::MIN;
            let (mut records, mut found) = (Vec::new(), Vec::new());
            let mut clock = -50;
            for n in 0..200 {
                clock += random(&mut state) as i64 % 4;
                let time = clock - random(&mut state) as i64 % 10;
                let given = panes.add(&grid, &Lists, time, n, at(passed), |_, _| unreachable!());
                let naive_one = naive(&grid, &[(time, n, passed)]);
                assert_eq!(given.is_err(), naive_one.is_empty(), "seed {seed}, record {n}");
                records.push((time, n, passed));
                if random(&mut state).is_multiple_of(4) {
                    // Nothing is called before it is due, and then with what has passed since.
                    passed = passed.max(clock - random(&mut state) as i64 % 12);
                    if panes.due().is_some_and(|due| due <= passed) {
                        panes.fire(&grid, &Lists, at(passed), |w, r| found.push((w, r)));
                    }
                }
                if random(&mut state).is_multiple_of(50) {
                    // As restored.
                    panes.before.iter_mut().for_each(|before| before.mergers = None);
                }
            }
            while panes.due().is_some() {
                panes.fire(&grid, &Lists, at(i64::MAX), |w, r| found.push((w, r)));
            }
            found.sort_by_key(|(window, _)| *window);
            let expected = naive(&grid, &records);
            assert_eq!(found, expected, "seed {seed}: {grid:?}");
        }
    }

    /// The windows that are given when all until `passed` has passed, each by its end.
    fn fired(panes: &mut Panes<Vec<u32>>, grid: &Grid, passed: i64) -> Vec<(i64, Vec<u32>)> {
        let mut found = Vec::new();
        panes.fire(grid, &Lists, at(passed), |window, result| found.push((window.end, result)));
        found
    }

    /// A record at 7, and the window that ends at 10 has passed.
    fn one_of_the_first_ten(grid: &Grid) -> Panes<Vec<u32>> {
        let mut panes = Panes::default();
        panes.add(grid, &Lists, 7, 1, at(0), |_, _| unreachable!()).unwrap();
        assert_eq!(fired(&mut panes, grid, 9), [(10, vec![1])]);
        assert_eq!(panes.due(), Some(14));
        panes
    }

    #[test]
    fn a_state_of_other_windows_gives_no_result_that_is_none_of_these() {
        let mut panes = one_of_the_first_ten(&Grid::new(10, 5, 0, 0));
        // Restored as tumbling ones, of which none begins at 5.
        let now = Grid::new(10, 10, 0, 0);
        assert_eq!(fired(&mut panes, &now, 14), []);
        assert_eq!(fired(&mut panes, &now, i64::MAX), []);
        assert!(panes.due().is_none());
    }

    #[test]
    fn a_lone_window_is_kept_until_its_lateness_is_over() {
        let late = Grid::new(10, 10, 0, 5);
        let mut panes = one_of_the_first_ten(&late);
        assert_eq!(fired(&mut panes, &late, 14), []);
        assert!(panes.due().is_none());
    }

    #[test]
    fn panes_are_found_whether_there_are_all_or_some_or_they_are_of_another_length() {
        let mut state = 7;
        for round in 0..2_000_u64 {
            let grid = Grid::new(100, 10, 0, 0);
            // Of the grid, with gaps, or of a finer one.
            let step = if round % 3 == 0 { 3 } else { 10 };
            let count = random(&mut state) as i64 % 40;
            let starts = (0..count).map(|pane| (pane * step, ()));
            let kept = |_: &(i64, ())| round % 3 < 2 || random(&mut state).is_multiple_of(2);
            let panes: Vec<(i64, ())> = starts.filter(kept).collect();
            let newest = count * step + 10 * (round as i64 % 5);
            for time in -25..newest + 25 {
                let expected = panes.iter().filter(|(pane, ())| *pane < time).count();
                assert_eq!(
                    grid.before(&panes, newest, time),
                    expected,
                    "{panes:?} {newest} {time}"
                );
            }
        }
    }

    #[test]
    fn a_window_of_many_panes_costs_few_mergers() {
        struct Counting(std::cell::Cell<u64>);
        impl Aggregate for Counting {
            type Input = u64;
            type State = u64;
            type Output = u64;
            fn create(&self, first: u64) -> u64 {
                first
            }
            fn add(&self, state: &mut u64, input: u64) {
                *state += input;
            }
            fn merge(&self, state: &mut u64, other: u64) {
                self.0.set(self.0.get() + 1);
                *state += other;
            }
            fn result(&self, state: &u64) -> u64 {
                *state
            }
        }
        let grid = Grid::new(1000, 10, 0, 0);
        let counting = Counting(std::cell::Cell::new(0));
        let mut panes = Panes::<u64>::default();
        let mut results = 0_u64;
        for time in 0..100_000 {
            panes.add(&grid, &counting, time, 1, at(time - 1), |_, _| unreachable!()).unwrap();
            if panes.due().is_some_and(|due| due <= time) {
                panes.fire(&grid, &counting, at(time), |window, count| {
                    assert_eq!(count as i64, window.end.min(1000), "{window:?}");
                    results += 1;
                });
            }
        }
        assert_eq!(results, 10_000);
        let mergers = counting.0.get();
        assert!(mergers < 4 * results, "{mergers} for {results} windows of 100 panes");
    }

    #[test]
    fn a_late_record_that_is_allowed_corrects_its_windows_at_once_until_it_is_too_late() {
        let grid = Grid::new(10, 5, 0, 20);
        let mut panes = Panes::<Vec<u32>>::default();
        let add = |panes: &mut Panes<_>, time, n, passed| {
            let mut results = Vec::new();
            let late =
                panes.add(&grid, &Lists, time, n, at(passed), |w, r| results.push((w.end, r)));
            (late.is_err(), results)
        };
        assert_eq!(add(&mut panes, 7, 1, 0), (false, vec![]));
        assert_eq!(panes.due(), Some(9));
        let found = fired(&mut panes, &grid, 12);
        assert_eq!(found, [(10, vec![1])], "the other window has not passed");
        // Two windows hold it, one of which has passed.
        assert_eq!(add(&mut panes, 8, 2, 12), (false, vec![(10, vec![1, 2])]));
        assert_eq!(panes.due(), Some(14));
        assert_eq!(fired(&mut panes, &grid, 28), [(15, vec![1, 2])]);
        // Nine is still allowed in the first window, that ended at 10: until 29.
        assert_eq!(add(&mut panes, 9, 3, 28).1, [(10, vec![1, 2, 3]), (15, vec![1, 2, 3])]);
        assert_eq!(add(&mut panes, 9, 4, 29).1, [(15, vec![1, 2, 3, 4])]);
        assert_eq!(add(&mut panes, 9, 5, 34), (true, vec![]));
        assert_eq!(panes.due(), Some(34));
        assert_eq!(fired(&mut panes, &grid, 34), [], "nothing is left to say");
        assert!(panes.due().is_none());
    }
}
