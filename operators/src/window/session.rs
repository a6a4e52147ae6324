//! Windows that end with a silence.
//!
//! # States
//! A state holds the sessions of its key in order. A record is a session of its own, as long as the gap, which is merged with all
//! that it meets.
//!
//! # Invariant
//! A session has had its result when all its time has passed, or the state is due at its last millisecond or before. So, called for
//! a time, a state has to give the results of the sessions that end between that and now. A session that grows leaves the state due
//! as early as before: it is looked at then and found open. So a record of a session that goes on moves nothing.

use highwater::prelude::*;
use serde::{Deserialize, Serialize};

use crate::aggregate::Aggregate;
use crate::few::Few;
use crate::window::WindowState;
use crate::window::time::{Moments, Window};

/// How sessions end, and how late their records may be. Units: milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Silence {
    pub(super) gap: i64,
    pub(super) lateness: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Session<S> {
    start: i64,
    end: i64,
    held: S,
}

/// The sessions of one key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Sessions<S> {
    due: i64,
    /// Disjoint, by their starts.
    sessions: Few<Session<S>>,
}

impl<S> Default for Sessions<S> {
    fn default() -> Self {
        Self { due: i64::MAX, sessions: Few::default() }
    }
}

impl<S: Record> WindowState for Sessions<S> {
    type Held = S;
    type Spec = Silence;

    #[inline]
    fn due(&self) -> Option<i64> {
        if self.sessions.is_empty() { None } else { Some(self.due) }
    }

    fn add<A: Aggregate<State = S>>(
        &mut self,
        silence: &Silence,
        aggregate: &A,
        time: i64,
        record: A::Input,
        at: Moments,
        mut result: impl FnMut(Window, A::Output),
    ) -> Result<(), A::Input> {
        let passed = at.passed;
        let Silence { gap, lateness } = *silence;
        let mut end = time.saturating_add(gap);
        let sessions = self.sessions.as_slice();
        // Sessions that only touch are one.
        let first = sessions.partition_point(|session| session.end < time);
        let behind = sessions.partition_point(|session| session.start <= end);
        end = sessions[first..behind].last().map_or(end, |last| last.end.max(end));
        if end.saturating_sub(1).saturating_add(lateness) <= passed {
            return Err(record);
        }
        if first == behind {
            let held = aggregate.create(record);
            self.sessions.insert(first, Session { start: time, end, held });
        } else {
            for _ in first + 1..behind {
                let later = self.sessions.remove(first + 1);
                aggregate.merge(&mut self.sessions.as_mut_slice()[first].held, later.held);
            }
            let session = &mut self.sessions.as_mut_slice()[first];
            aggregate.add(&mut session.held, record);
            session.start = session.start.min(time);
            session.end = end;
        }
        if end - 1 > passed {
            self.due = self.due.min(end - 1);
        } else {
            self.due = self.due.min((end - 1).saturating_add(lateness));
            let session = &self.sessions.as_slice()[first];
            let window = Window { start: session.start, end };
            result(window, aggregate.result(&session.held));
        }
        Ok(())
    }

    fn fire<A: Aggregate<State = S>>(
        &mut self,
        silence: &Silence,
        aggregate: &A,
        at: Moments,
        mut result: impl FnMut(Window, A::Output),
    ) {
        let passed = at.passed;
        let due = std::mem::replace(&mut self.due, i64::MAX);
        let mut at = 0;
        while let Some(session) = self.sessions.as_slice().get(at) {
            let last = session.end - 1;
            if (due..=passed).contains(&last) {
                let window = Window { start: session.start, end: session.end };
                result(window, aggregate.result(&session.held));
            }
            let over_at = last.saturating_add(silence.lateness);
            if over_at <= passed {
                self.sessions.remove(at);
                continue;
            }
            self.due = self.due.min(if last > passed { last } else { over_at });
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::Count;

    const SILENCE: Silence = Silence { gap: 10, lateness: 0 };

    type State = Sessions<<Count<()> as Aggregate>::State>;

    fn add(state: &mut State, silence: Silence, time: i64, passed: i64) -> (bool, Vec<(i64, u64)>) {
        let mut results = Vec::new();
        let late = state.add(
            &silence,
            &Count::<()>::new(),
            time,
            (),
            Moments { passed, now: 0 },
            |w, n| {
                results.push((w.end, n));
            },
        );
        (late.is_err(), results)
    }

    fn fire(state: &mut State, silence: Silence, passed: i64) -> Vec<(i64, i64, u64)> {
        let mut results = Vec::new();
        assert!(state.due().is_some_and(|due| due <= passed), "nothing is due");
        state.fire(&silence, &Count::<()>::new(), Moments { passed, now: 0 }, |w, n| {
            results.push((w.start, w.end, n))
        });
        results
    }

    #[test]
    fn a_record_between_two_sessions_makes_them_one() {
        let mut state = State::default();
        for time in [0, 20, 100] {
            add(&mut state, SILENCE, time, -1);
        }
        assert_eq!(state.sessions.as_slice().len(), 3);
        add(&mut state, SILENCE, 10, -1);
        assert_eq!(state.sessions.as_slice().len(), 2, "sessions that touch are one");
        assert_eq!(fire(&mut state, SILENCE, 9), [], "it has grown, and is open");
        assert_eq!(fire(&mut state, SILENCE, 29), [(0, 30, 3)]);
        assert_eq!(fire(&mut state, SILENCE, 500), [(100, 110, 1)]);
        assert!(state.due().is_none());
    }

    #[test]
    fn a_record_that_is_late_by_itself_counts_in_a_session_that_is_not() {
        let mut state = State::default();
        add(&mut state, SILENCE, 20, 0);
        assert_eq!(add(&mut state, SILENCE, 11, 24), (false, vec![]));
        assert_eq!(add(&mut state, SILENCE, 0, 24), (true, vec![]));
        assert_eq!(fire(&mut state, SILENCE, 29), [(11, 30, 2)]);
    }

    #[test]
    fn a_late_record_that_is_allowed_corrects_its_session_at_once() {
        let silence = Silence { lateness: 15, ..SILENCE };
        let mut state = State::default();
        add(&mut state, silence, 0, -1);
        assert_eq!(fire(&mut state, silence, 9), [(0, 10, 1)]);
        assert_eq!(add(&mut state, silence, 5, 14), (false, vec![(15, 2)]));
        // One more makes it a session that is not over.
        assert_eq!(add(&mut state, silence, 12, 20), (false, vec![]));
        assert_eq!(fire(&mut state, silence, 21), [(0, 22, 3)]);
        assert_eq!(add(&mut state, silence, 0, 36), (true, vec![]));
        assert_eq!(fire(&mut state, silence, 36), []);
        assert!(state.due().is_none());
    }
}
