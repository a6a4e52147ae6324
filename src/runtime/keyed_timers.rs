//! Keyed processing with timers: a second function of the user's, called when a time that a key waits for has come.
//!
//! Timers are keyed state of the operator, beside what the user declares. When they fire and in which order, and what the
//! operator may emit then, is that of all [`timed`](crate::runtime::timed) operators.

use std::ops::Range;

use crate::connect::Record;
use crate::format::shape::EntryShape;
use crate::format::{SectionHeader, SectionKind};
use crate::ids::Name;
use crate::runtime::context::SectionPart;
use crate::runtime::keyed::{Context, frozen_sections};
use crate::runtime::operator::{FrozenOperator, Kept};
use crate::runtime::operator_state::BroadcastStates;
use crate::runtime::shapes::shape_of;
use crate::runtime::states::States;
use crate::runtime::timed::{Moment, TimeDomain, TimedLogic, Timer, Waits};
use crate::runtime::timers::Timers;
use crate::state::{Backend, Key, SnapshotForm};

/// What the functions of an operator with timers see beside the record and the state: where output goes, what time it
/// is, and the timers of the key.
pub struct TimerContext<'a, K: Key, O> {
    out: &'a mut Vec<O>,
    at: Moment,
    timers: &'a mut KeyTimers<K>,
    hash: u64,
    key: &'a K,
}

impl<K: Key, O> std::fmt::Debug for TimerContext<'_, K, O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TimerContext").field("at", &self.at).finish_non_exhaustive()
    }
}

impl<K: Key, O> TimerContext<'_, K, O> {
    /// Emits a record.
    #[inline]
    pub fn emit(&mut self, record: O) {
        self.out.push(record);
    }

    /// The watermark; see [`Context::watermark`](crate::job::Context::watermark). At the end of input it is `i64::MAX`.
    #[must_use]
    pub fn watermark(&self) -> i64 {
        self.at.watermark()
    }

    /// Processing time. It is read once for each batch of records or timers.
    ///
    /// Units: milliseconds since 1970, by the machine's clock, which may be set back.
    #[must_use]
    pub fn now(&self) -> i64 {
        self.at.now
    }

    /// Registers a timer of this key that fires when the watermark has reached `time`, or at once, after this function,
    /// if it has already. A key has at most one event-time timer at each time: to register it again changes nothing.
    ///
    /// At the end of input all event-time timers fire, those included that are registered then. A timer that always
    /// registers the next must stop at a watermark of `i64::MAX`, or the job does not end.
    ///
    /// Units: milliseconds of event time.
    pub fn register_event_timer(&mut self, time: i64) {
        self.timers.event.register(self.hash, self.key, time);
    }

    /// Deletes an event-time timer of this key, if there is one at `time`.
    pub fn delete_event_timer(&mut self, time: i64) {
        self.timers.event.delete(self.hash, self.key, time);
    }

    /// Registers a timer of this key that fires when the clock has reached `time`. A key has at most one processing-time
    /// timer at each time.
    ///
    /// Processing-time timers do not keep a job alive: those that have not fired at the end of input do not fire any more.
    /// After a restart those that are overdue fire at once.
    ///
    /// Units: milliseconds since 1970, as [`TimerContext::now`].
    pub fn register_processing_timer(&mut self, time: i64) {
        self.timers.processing.register(self.hash, self.key, time);
    }

    /// Deletes a processing-time timer of this key, if there is one at `time`.
    pub fn delete_processing_timer(&mut self, time: i64) {
        self.timers.processing.delete(self.hash, self.key, time);
    }
}

const EVENT_TIMERS: &str = "event-timers";
const PROCESSING_TIMERS: &str = "processing-timers";

/// The timers of an operator.
pub(crate) struct KeyTimers<K: Key> {
    pub(crate) event: Timers<K>,
    pub(crate) processing: Timers<K>,
}

impl<K: Key> KeyTimers<K> {
    pub(crate) fn new(backend: &Backend, max_parallelism: u16, groups: &Range<u16>) -> Self {
        Self {
            event: Timers::new(backend, EVENT_TIMERS, max_parallelism, groups),
            processing: Timers::new(backend, PROCESSING_TIMERS, max_parallelism, groups),
        }
    }
}

/// The sections that hold an operator's timers: of event time, and of processing time.
pub(crate) fn timer_headers<K: Key>(operator: &Name) -> [SectionHeader; 2] {
    let (key, value) = (shape_of::<K>(), shape_of::<Vec<i64>>());
    let shape = EntryShape { key, value, expires: false };
    let header = |state, kind| SectionHeader {
        operator: operator.clone(),
        state: Name::new(state).expect("a constant name"),
        kind,
        type_name: format!("{} -> timers", std::any::type_name::<K>()),
        type_version: 1,
        shape: shape.clone(),
    };
    [
        header(EVENT_TIMERS, SectionKind::EventTimers),
        header(PROCESSING_TIMERS, SectionKind::ProcessingTimers),
    ]
}

/// An operator with timers: its state, restored already, and its functions. `B`: what it keeps of a broadcast input.
pub(crate) struct TimersLogic<K: Key, S: States<K>, B: BroadcastStates, F, G, T> {
    pub(crate) states: S,
    pub(crate) backend: Backend,
    pub(crate) tables: S::Tables,
    pub(crate) timers: KeyTimers<K>,
    pub(crate) kept: Kept<B>,
    pub(crate) on_record: F,
    pub(crate) on_broadcast: G,
    pub(crate) on_timer: T,
}

impl<K, V, R, S, B, O, F, G, T> TimedLogic<K, V, R, O> for TimersLogic<K, S, B, F, G, T>
where
    K: Key,
    V: Record,
    R: Record,
    S: States<K>,
    B: BroadcastStates,
    O: Record,
    F: FnMut(&K, V, &mut S::Access<'_>, &B::View<'_>, &mut TimerContext<'_, K, O>) + 'static,
    G: FnMut(R, &mut B::Access<'_>, &mut Context<'_, O>) + 'static,
    T: FnMut(&K, Timer, &mut S::Access<'_>, &B::View<'_>, &mut TimerContext<'_, K, O>) + 'static,
{
    fn set_now(&mut self, now: i64) {
        if S::EXPIRES {
            S::set_now(&mut self.tables, now);
        }
    }

    fn prepare(&mut self, hashes: &[u64]) {
        if S::EXPIRES {
            S::sweep(&mut self.tables, hashes.len());
        }
        S::prefetch(&self.tables, hashes);
        self.timers.event.weed();
        self.timers.processing.weed();
    }

    #[inline]
    fn record(&mut self, hash: u64, key: &K, value: V, at: Moment, out: &mut Vec<O>) {
        let mut state = S::access(&mut self.tables, hash, key);
        let mut context = TimerContext { out, at, timers: &mut self.timers, hash, key };
        (self.on_record)(key, value, &mut state, &B::view(&self.kept.held), &mut context);
    }

    fn broadcast(&mut self, record: R, at: Moment, out: &mut Vec<O>) {
        let mut context = Context::new(out, at.event);
        (self.on_broadcast)(record, &mut B::access(&mut self.kept.held), &mut context);
    }

    #[inline]
    fn waits(&self) -> Waits {
        let KeyTimers { event, processing } = &self.timers;
        Waits { event: event.first(), processing: processing.first() }
    }

    fn fire(&mut self, domain: TimeDomain, at: Moment, out: &mut Vec<O>) {
        let (timers, until) = match domain {
            TimeDomain::EventTime => (&mut self.timers.event, at.watermark()),
            TimeDomain::ProcessingTime => (&mut self.timers.processing, at.now),
        };
        let near = |hashes: &[u64]| S::prefetch(&self.tables, hashes);
        let Some((time, hash, key)) = timers.take_due(until, near) else { return };
        let mut state = S::access(&mut self.tables, hash, &key);
        let mut context = TimerContext { out, at, timers: &mut self.timers, hash, key: &key };
        let (timer, view) = (Timer { time, domain }, B::view(&self.kept.held));
        (self.on_timer)(&key, timer, &mut state, &view, &mut context);
    }

    fn freeze(&mut self, operator: &Name, form: SnapshotForm) -> FrozenOperator {
        let Self { states, backend, tables, timers, kept, .. } = self;
        let ((mut sections, frozen), snapshot) = backend.freeze_together(form, || {
            let sections = frozen_sections::<K, S>(states, tables, operator, form);
            (sections, [timers.event.freeze(form), timers.processing.freeze(form)])
        });
        let headers = timer_headers::<K>(operator);
        sections.extend(headers.into_iter().zip(frozen).map(|(h, f)| SectionPart::state(h, f)));
        sections.extend(kept.freeze(operator));
        (sections, snapshot)
    }
}
