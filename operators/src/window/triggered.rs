//! Windows that give results at other times than their end, or that are of any length.
//!
//! # States
//! A state holds the windows of its key, each with what its records come to; nothing is shared between them.
//! ```text
//!            record                         all time has passed                lateness is over
//! (nothing) -------> open: early results ---------------------> done: late results ---------> (nothing)
//! ```
//! # Invariant
//! The state is due no later than the first thing that time alone brings about: the end of an open window, an early result that
//! was promised for a time, the end of what is kept.

use std::fmt;
use std::sync::Arc;

use highwater::prelude::*;
use serde::{Deserialize, Serialize};

use crate::aggregate::Aggregate;
use crate::few::Few;
use crate::window::WindowState;
use crate::window::aligned::Grid;
use crate::window::time::{Moments, Window};
use crate::window::trigger::Trigger;

/// Gives the window of a time.
pub(super) type Calendar = Arc<dyn Fn(i64) -> Window + Send + Sync>;

/// Which windows a record is in.
#[derive(Clone)]
pub(super) enum Assigner {
    Aligned(Grid),
    /// Units: milliseconds.
    Session(i64),
    Global,
    Calendar(Calendar),
}

impl fmt::Debug for Assigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aligned(_) => "Aligned",
            Self::Session(_) => "Session",
            Self::Global => "Global",
            Self::Calendar(_) => "Calendar",
        })
    }
}

/// Which windows there are, when they give results, and how late their records may be.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) assigner: Assigner,
    pub(super) trigger: Trigger,
    /// Units: milliseconds.
    pub(super) lateness: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Open<S> {
    window: Window,
    /// `None` after a purge.
    held: Option<S>,
    /// Records since the last result.
    fresh: u64,
    /// Whether all of its time has passed, and the result for that was given.
    done: bool,
    /// When the next early result is due, if one is: in the time of the windows, and in processing time.
    early: i64,
    early_processing: i64,
}

/// The windows of one key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Triggered<S> {
    due: i64,
    due_processing: i64,
    /// By their starts. Sessions are disjoint.
    windows: Few<Open<S>>,
}

impl<S> Default for Triggered<S> {
    fn default() -> Self {
        Self { due: i64::MAX, due_processing: i64::MAX, windows: Few::default() }
    }
}

impl<S: Record> WindowState for Triggered<S> {
    type Held = S;
    type Spec = Plan;

    #[inline]
    fn due(&self) -> Option<i64> {
        if self.windows.is_empty() { None } else { Some(self.due) }
    }

    fn due_by_clock(&self) -> Option<i64> {
        Some(self.due_processing).filter(|due| *due < i64::MAX)
    }

    fn add<A: Aggregate<State = S>>(
        &mut self,
        plan: &Plan,
        aggregate: &A,
        time: i64,
        record: A::Input,
        at: Moments,
        mut result: impl FnMut(Window, A::Output),
    ) -> Result<(), A::Input> {
        let mut add = |window: Window, record: A::Input| {
            if self.over_at(plan, window) <= at.passed {
                return Err(record);
            }
            let place = self.open(plan, aggregate, window, time, record, at);
            let open = &mut self.windows.as_mut_slice()[place];
            let counted = plan.trigger.records.is_some_and(|most| open.fresh >= most.get());
            if open.done || counted {
                open.give(plan, aggregate, &mut result);
            }
            Ok(())
        };
        let added = match &plan.assigner {
            Assigner::Global => add(Window { start: i64::MIN, end: i64::MAX }, record),
            Assigner::Calendar(calendar) => add(calendar(time), record),
            Assigner::Session(gap) => {
                add(Window { start: time, end: time.saturating_add(*gap) }, record)
            }
            Assigner::Aligned(grid) => {
                let mut ends = grid.ends_of(time);
                let Some(mut end) = ends.next() else { return Err(record) };
                let mut kept = Err(());
                for next in ends {
                    let window = Window { start: end - grid.size, end };
                    kept = kept.or(add(window, record.clone()).map_err(|_| ()));
                    end = next;
                }
                let last = add(Window { start: end - grid.size, end }, record);
                last.or_else(|record| kept.map_err(|()| record))
            }
        };
        self.due_at_last(plan);
        added
    }

    fn fire<A: Aggregate<State = S>>(
        &mut self,
        plan: &Plan,
        aggregate: &A,
        at: Moments,
        mut result: impl FnMut(Window, A::Output),
    ) {
        let mut place = 0;
        while let Some(open) = self.windows.as_mut_slice().get_mut(place) {
            let ends = !open.done && open.window.end - 1 <= at.passed;
            let early = open.early <= at.passed || open.early_processing <= at.now;
            if ends || early && open.fresh > 0 {
                open.give(plan, aggregate, &mut result);
            }
            open.done |= ends;
            let after = |every: Option<i64>, due: i64, now: i64| match every {
                Some(every) if due <= now && now < i64::MAX => now + every - now.rem_euclid(every),
                _ => due,
            };
            open.early = after(plan.trigger.early, open.early, at.passed);
            open.early_processing =
                after(plan.trigger.early_processing, open.early_processing, at.now);
            if plan.over_at(open.window) <= at.passed {
                self.windows.remove(place);
            } else {
                place += 1;
            }
        }
        self.due_at_last(plan);
    }
}

impl<S: Record> Triggered<S> {
    /// When a window, or the session that it becomes a part of, is needed no more.
    fn over_at(&self, plan: &Plan, mut window: Window) -> i64 {
        if matches!(plan.assigner, Assigner::Session(_)) {
            let before = |open: &&Open<S>| open.window.start <= window.end;
            let last = self.windows.as_slice().iter().take_while(before).last();
            window.end = last.map_or(window.end, |open| open.window.end.max(window.end));
        }
        plan.over_at(window)
    }

    /// Adds a record to its window. Returns the place of that.
    fn open<A: Aggregate<State = S>>(
        &mut self,
        plan: &Plan,
        aggregate: &A,
        mut window: Window,
        time: i64,
        record: A::Input,
        at: Moments,
    ) -> usize {
        let windows = self.windows.as_slice();
        let session = matches!(plan.assigner, Assigner::Session(_));
        let (first, behind) = if session {
            // Sessions that only touch are one.
            let first = windows.partition_point(|open| open.window.end < window.start);
            (first, windows.partition_point(|open| open.window.start <= window.end))
        } else {
            let first = windows.partition_point(|open| open.window.start < window.start);
            let there = windows.get(first).is_some_and(|open| open.window == window);
            (first, first + usize::from(there))
        };
        if first == behind {
            let (held, fresh) = (Some(aggregate.create(record)), 1);
            let Trigger { early, early_processing, .. } = &plan.trigger;
            let next = |every: &Option<i64>, from: i64| {
                every.map_or(i64::MAX, |every| from.saturating_add(every - from.rem_euclid(every)))
            };
            let early = next(early, time.max(at.passed.saturating_add(1)));
            let early_processing = next(early_processing, at.now);
            let done = window.end - 1 <= at.passed;
            let open = Open { window, held, fresh, done, early, early_processing };
            self.windows.insert(first, open);
            return first;
        }
        for _ in first + 1..behind {
            let later = self.windows.remove(first + 1);
            self.windows.as_mut_slice()[first].join(aggregate, later);
        }
        let open = &mut self.windows.as_mut_slice()[first];
        if session {
            window.start = window.start.min(open.window.start);
            window.end = window.end.max(open.window.end);
            open.window = window;
            open.done = window.end - 1 <= at.passed;
        }
        match &mut open.held {
            Some(held) => aggregate.add(held, record),
            None => open.held = Some(aggregate.create(record)),
        }
        open.fresh += 1;
        first
    }

    /// Finds out when the state is due next.
    fn due_at_last(&mut self, plan: &Plan) {
        (self.due, self.due_processing) = (i64::MAX, i64::MAX);
        for open in self.windows.as_slice() {
            let end = if open.done { plan.over_at(open.window) } else { open.window.end - 1 };
            self.due = self.due.min(end);
            if !open.done {
                self.due = self.due.min(open.early);
                self.due_processing = self.due_processing.min(open.early_processing);
            }
        }
    }
}

impl Plan {
    /// When nothing that is in a window is needed any more.
    fn over_at(&self, window: Window) -> i64 {
        (window.end - 1).saturating_add(self.lateness)
    }
}

impl<S: Record> Open<S> {
    fn give<A: Aggregate<State = S>>(
        &mut self,
        plan: &Plan,
        aggregate: &A,
        result: &mut impl FnMut(Window, A::Output),
    ) {
        self.fresh = 0;
        if let Some(held) = &mut self.held {
            result(self.window, aggregate.result_and_trim(held));
            if plan.trigger.purges {
                self.held = None;
            }
        }
    }

    /// Another session of the key turns out to be this one.
    fn join<A: Aggregate<State = S>>(&mut self, aggregate: &A, later: Self) {
        self.window.end = self.window.end.max(later.window.end);
        self.fresh += later.fresh;
        self.early = self.early.min(later.early);
        self.early_processing = self.early_processing.min(later.early_processing);
        match (&mut self.held, later.held) {
            (Some(held), Some(other)) => aggregate.merge(held, other),
            (None, other) => self.held = other,
            (_, None) => {}
        }
    }
}
