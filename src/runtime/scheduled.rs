//! Keyed processing of states that say by themselves when they are due: windows, joins, patterns.
//!
//! What an operator with timers keeps twice, in its state and in its timers, is here once. A state of a key answers when it wants
//! to be looked at ([`Scheduled`]), and that is asked whenever it has changed. So there is nothing to register, to delete or to
//! keep in step, a checkpoint holds the state and nothing else, and a record costs one look-up.

use std::fmt;

use crate::connect::Record;
use crate::ids::Name;
use crate::runtime::due::DueQueue;
use crate::runtime::keyed::{OperatorState, frozen_sections};
use crate::runtime::kinds::Value;
use crate::runtime::operator::FrozenOperator;
use crate::runtime::states::States;
use crate::runtime::timed::{Moment, TimeDomain, TimedLogic, Timer, Waits};
use crate::state::hash::stable_hash;
use crate::state::{BackendTable, Key, SnapshotForm, StateValue, ValueTable};

/// A state that says when it is due.
///
/// All functions must depend on the state only: after a restore they are asked again.
pub trait Scheduled: StateValue + Default {
    /// The event time at which the state wants to be looked at: when the watermark has reached it, at the latest at the end of
    /// input. `None` if it waits for no event time.
    ///
    /// Units: milliseconds of event time.
    fn event_due(&self) -> Option<i64>;

    /// The processing time at which it wants to be looked at. `None` if it waits for none. At the end of input it is not looked
    /// at for this any more.
    ///
    /// Units: milliseconds since 1970.
    #[inline]
    fn processing_due(&self) -> Option<i64> {
        None
    }

    /// Whether there is nothing in it, so that it need not be kept: it is as the default one.
    fn is_vacant(&self) -> bool;
}

/// What the functions of an operator with a [`Scheduled`] state see beside the record and the state: where output goes, and what
/// time it is.
pub struct ScheduledContext<'a, O> {
    out: &'a mut Vec<O>,
    at: Moment,
}

impl<O> fmt::Debug for ScheduledContext<'_, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScheduledContext").field("at", &self.at).finish_non_exhaustive()
    }
}

impl<O> ScheduledContext<'_, O> {
    /// Emits a record.
    #[inline]
    pub fn emit(&mut self, record: O) {
        self.out.push(record);
    }

    /// The watermark; see [`Context::watermark`](crate::job::Context::watermark). At the end of input it is `i64::MAX`.
    #[must_use]
    #[inline]
    pub fn watermark(&self) -> i64 {
        self.at.watermark()
    }

    /// Processing time. It is read once for each batch.
    ///
    /// Units: milliseconds since 1970, by the machine's clock, which may be set back.
    #[must_use]
    #[inline]
    pub fn now(&self) -> i64 {
        self.at.now
    }
}

/// When a state is due, in both domains.
type Dues = (Option<i64>, Option<i64>);

fn dues<W: Scheduled>(state: &W) -> Dues {
    (state.event_due(), state.processing_due())
}

/// The tables of the one state.
pub(crate) type ScheduledTables<K, W> = <Value<W> as States<K>>::Tables;

/// An operator with a scheduled state: the state, restored already, and its functions.
pub(crate) struct ScheduledLogic<K: Key, W: Scheduled, F, T> {
    state: Value<W>,
    tables: OperatorState<ScheduledTables<K, W>>,
    event: DueQueue<K>,
    processing: DueQueue<K>,
    /// Of keys that are next.
    hashes: Vec<u64>,
    on_record: F,
    on_due: T,
}

impl<K: Key, W: Scheduled, F, T> ScheduledLogic<K, W, F, T> {
    pub(crate) fn new(
        state: Value<W>,
        mut tables: OperatorState<ScheduledTables<K, W>>,
        on_record: F,
        on_due: T,
    ) -> Self {
        let (mut event, mut processing) = (DueQueue::default(), DueQueue::default());
        tables.tables.entries.for_each(|key, state: &W| {
            let (hash, (at, on)) = (stable_hash(key), dues(state));
            event.moved(hash, key, None, at);
            processing.moved(hash, key, None, on);
        });
        Self { state, tables, event, processing, hashes: Vec::new(), on_record, on_due }
    }

    /// The state of a key has changed. `before`: when it was due.
    #[inline]
    fn changed(&mut self, hash: u64, key: &K, before: Dues, after: Dues, vacant: bool) {
        // What is not kept waits for nothing, whatever it says.
        let after = if vacant { (None, None) } else { after };
        self.event.moved(hash, key, before.0, after.0);
        self.processing.moved(hash, key, before.1, after.1);
        if vacant {
            self.tables.tables.entries.remove(hash, key);
        }
    }
}

fn weed<K: Key, W: Scheduled>(
    queue: &mut DueQueue<K>,
    entries: &mut BackendTable<K, W>,
    due: impl Fn(&W) -> Option<i64>,
) {
    if queue.overgrown() {
        queue.weed(|hash, key| due(entries.get(hash, key)?));
    }
}

impl<K, V, W, O, F, T> TimedLogic<K, V, (), O> for ScheduledLogic<K, W, F, T>
where
    K: Key,
    V: Record,
    W: Scheduled,
    O: Record,
    F: FnMut(&K, V, &mut W, &mut ScheduledContext<'_, O>) + 'static,
    T: FnMut(&K, Timer, &mut W, &mut ScheduledContext<'_, O>) + 'static,
{
    fn set_now(&mut self, _now: i64) {}

    fn prepare(&mut self, hashes: &[u64]) {
        let entries = &mut self.tables.tables.entries;
        entries.prefetch(hashes);
        weed(&mut self.event, entries, W::event_due);
        weed(&mut self.processing, entries, W::processing_due);
    }

    #[inline]
    fn record(&mut self, hash: u64, key: &K, value: V, at: Moment, out: &mut Vec<O>) {
        let entries = &mut self.tables.tables.entries;
        let state = entries.get_or_insert_with(hash, key, &mut W::default);
        let before = dues(state);
        (self.on_record)(key, value, state, &mut ScheduledContext { out, at });
        let (after, vacant) = (dues(state), state.is_vacant());
        self.changed(hash, key, before, after, vacant);
    }

    #[inline]
    fn waits(&self) -> Waits {
        Waits { event: self.event.first(), processing: self.processing.first() }
    }

    fn fire(&mut self, domain: TimeDomain, at: Moment, out: &mut Vec<O>) {
        let entries = &mut self.tables.tables.entries;
        let (queue, until) = match domain {
            TimeDomain::EventTime => (&mut self.event, at.watermark()),
            TimeDomain::ProcessingTime => (&mut self.processing, at.now),
        };
        queue.ahead(&mut self.hashes);
        if !self.hashes.is_empty() {
            entries.prefetch(&self.hashes);
        }
        let Some((time, hash, key)) = queue.take(until) else { return };
        let Some(state) = entries.get_mut(hash, &key) else { return };
        let mut before = dues(state);
        let due = match domain {
            TimeDomain::EventTime => &mut before.0,
            TimeDomain::ProcessingTime => &mut before.1,
        };
        if *due != Some(time) {
            return; // Stale.
        }
        *due = None;
        queue.fired();
        (self.on_due)(&key, Timer { time, domain }, state, &mut ScheduledContext { out, at });
        let (after, vacant) = (dues(state), state.is_vacant());
        self.changed(hash, &key, before, after, vacant);
    }

    fn freeze(&mut self, operator: &Name, form: SnapshotForm) -> FrozenOperator {
        let OperatorState { backend, tables } = &mut self.tables;
        backend.freeze_together(form, || {
            frozen_sections::<K, Value<W>>(&self.state, tables, operator, form)
        })
    }
}
