//! Incremental views: any computation of differential dataflow (joins, reductions, iteration) over a stream of changes.
//!
//! ```text
//! changes --by record--> input (state: record, count) --(record, time, diff)--> the user's dataflow --by record--> cut --> changes
//! ```
//! The *input* is an ordinary keyed operator: it counts how often each record is there, and hands on what changes. The user's
//! dataflow runs in a scope of its own, at times that are those of the job, in their product order ([`ViewTime`]). The *cut*
//! gathers what comes out, and emits what belongs together.
//!
//! # When results come
//! Whenever the watermark has moved on, and at every checkpoint. A stream whose event time does not move has results at checkpoints
//! and at the end of its input only. [`Stream::assign_arrival_times`] in front of the view makes them come by the clock, once a
//! tick, with the time of arrival as the event time of what comes out.
//!
//! What was emitted at a checkpoint comes to exactly the view of all records before it, and what was emitted when the watermark
//! downstream passes a time comes to the view of a part of the input that has all records which were not late for that
//! time. In between each worker emits in rounds. All of a round is of one such part: first what is retracted, then what is
//! inserted, each record as often as its count differs, so that no record is shown more often than the view has it, and none is
//! taken back that was not shown.
//!
//! # States of the cut
//! Updates wait by their times (epoch, event) until a *point* `p` is complete: no time in the frontier is `<= p`. A round is of
//! all updates at times `<= p`, which add up to the difference of two views because points only grow.
//!
//! | the frontier                           | point                      | effect                                             |
//! |----------------------------------------|----------------------------|----------------------------------------------------|
//! | has no epoch `<= n`, and updates of such wait | (n, greatest event of those) | a round; *reached* is the greatest event of all rounds |
//! | begins at epoch `n`, least event `e`      | (n, e - 1) if `>= (n, reached)` | a round                                              |
//! | begins at epoch `n`, least event `e`      | (n, e - 1) otherwise         | wait: one worker was ahead in event time at the barrier |
//!
//! # Invariants
//! * What follows from records of epochs up to *n* is emitted at these epochs, before barrier *n* passes (I3): times carry their
//!   epoch, so that timely itself knows when the user's exchanges have been drained of it.
//! * Points grow in both coordinates, and a round is emitted at the join of the times in it, which no frontier has passed:
//!   nothing is late that was not late before.
//! * At epoch 0, which is before the first, comes what follows from the restored collection. It was emitted before the
//!   checkpoint, and is dropped (I8).
//!
//! # Failure
//! The checkpoint holds the input collection, and nothing of what differential dataflow has made of it, which is computed anew
//! at every start. A checkpoint holds what has changed since the last one. Between a record in the state and its results
//! there is no checkpoint: a barrier is behind both or before both. So the computation has to be a function of
//! its input collection; one that looks at a clock, at random numbers or at the order of its input comes to something else
//! after a restart, and emits the wrong difference.
//!
//! # Bounds
//! Memory: the input collection twice (once in the state, which may be in RocksDB, once in the arrangements), and what the
//! computation arranges. A restart takes as long as computing the view of the whole collection. While it computes it holds up
//! barriers; input of the next epoch waits in channels, that of the same epoch in the computation.
//!
//! # Source
//! McSherry, Murray, Isaacs, Isard: Differential dataflow, CIDR 2013; and the crate `differential-dataflow`.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::Hash;

use differential_dataflow::consolidation::consolidate;
use differential_dataflow::lattice::Lattice;
use differential_dataflow::{AsCollection, Hashable, VecCollection};
use highwater::job::Time;
use highwater::prelude::*;
use serde::{Deserialize, Serialize};
use timely::PartialOrder;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::core::{Enter, Leave};
use timely::dataflow::operators::generic::Operator;
use timely::progress::Timestamp;
use timely::progress::timestamp::{PathSummary, Refines};

use crate::change::Change;

pub use differential_dataflow;

type TimeSummary = <Time as Timestamp>::Summary;

/// The times inside of a view: those of the job, of which differential dataflow needs to know that they are a lattice.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct ViewTime(Time);

impl PartialOrder for ViewTime {
    #[inline]
    fn less_equal(&self, other: &Self) -> bool {
        self.0.less_equal(&other.0)
    }
}

impl Timestamp for ViewTime {
    type Summary = TimeSummary;
    fn minimum() -> Self {
        Self(Time::minimum())
    }
}

impl PathSummary<ViewTime> for TimeSummary {
    #[inline]
    fn results_in(&self, time: &ViewTime) -> Option<ViewTime> {
        self.results_in(&time.0).map(ViewTime)
    }
    fn followed_by(&self, other: &Self) -> Option<Self> {
        PathSummary::<Time>::followed_by(self, other)
    }
}

impl Refines<Time> for ViewTime {
    fn to_inner(time: Time) -> Self {
        Self(time)
    }
    fn to_outer(self) -> Time {
        self.0
    }
    fn summarize(summary: TimeSummary) -> TimeSummary {
        summary
    }
}

impl Lattice for ViewTime {
    #[inline]
    fn join(&self, other: &Self) -> Self {
        Self(join(self.0, other.0))
    }
    #[inline]
    fn meet(&self, other: &Self) -> Self {
        let (one, other) = (self.0, other.0);
        Self(Time { epoch: one.epoch.min(other.epoch), event: one.event.min(other.event) })
    }
}

fn join(one: Time, other: Time) -> Time {
    Time { epoch: one.epoch.max(other.epoch), event: one.event.max(other.event) }
}

/// A collection inside of a view: a multiset of records that changes, which differential dataflow computes with.
pub type Collected<'scope, D> = VecCollection<'scope, ViewTime, D, isize>;

/// Bounds of a record that differential dataflow computes with. Implemented for every type that has them.
pub trait ViewRecord: Record + Ord + Debug + Hash {}
impl<D: Record + Ord + Debug + Hash> ViewRecord for D {}

/// Maintains the result of a differential computation over the records of a stream that are inserted and not retracted.
///
/// # Examples
/// Who can be reached from whom, when ways open and close:
/// ```
/// use highwater::config::JobConfig;
/// use highwater::ids::Name;
/// use highwater::job::{JobHandle, execute};
/// use highwater::prelude::*;
/// use highwater_operators::differential::differential_dataflow::operators::Iterate;
/// use highwater_operators::{Change, Differential, net};
///
/// let collect = Collect::new();
/// let seen = collect.handle();
/// let config = JobConfig::new(Name::new("ways")?);
/// execute(config, &JobHandle::default(), move |job| {
///     let insert = |from: u32, to: u32| Change::Insert((from, to));
///     let ways = vec![insert(1, 2), insert(2, 3), insert(3, 4), Change::Retract((2, 3))];
///     job.source("ways", Collection::new(ways))
///         .differential("reachable", |ways| {
///             ways.clone().iterate(|scope, reachable| {
///                 let ways = ways.enter(scope);
///                 let from_middle = reachable.clone().map(|(from, to)| (to, from));
///                 from_middle.join_map(ways, |_, from, to| (*from, *to)).concat(reachable).distinct()
///             })
///         })
///         .sink("out", collect.clone());
///     Ok(())
/// })?;
/// assert_eq!(net(seen.committed()).into_keys().collect::<Vec<_>>(), [(1, 2), (3, 4)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Differential<'scope, D: ViewRecord>: Sized {
    /// Emits the changes of the collection that `view` makes of the collection of all records. `name` is unique in the job, and
    /// identifies the state in checkpoints.
    ///
    /// Each record is in the collection as often as it was inserted, less how often it was retracted: less than not at all,
    /// for a while, if a retraction comes before its insertion (see [`change`](crate::change) for when it may), which
    /// differential dataflow can compute with, but not all functions of a view may expect. Several inputs are one whose records
    /// are an enum, taken apart inside of the view.
    ///
    /// State: one count for each record.
    fn differential<R: ViewRecord>(
        self,
        name: &str,
        view: impl for<'view> FnOnce(Collected<'view, D>) -> Collected<'view, R>,
    ) -> Stream<'scope, Change<R>>;
}

impl<'scope, D: ViewRecord> Differential<'scope, D> for Stream<'scope, Change<D>> {
    fn differential<R: ViewRecord>(
        self,
        name: &str,
        view: impl for<'view> FnOnce(Collected<'view, D>) -> Collected<'view, R>,
    ) -> Stream<'scope, Change<R>> {
        let scope_name = format!("{name}.view");
        self.into_keyed(|change| {
            let diff = change.diff();
            (change.into_record(), diff)
        })
        .through_stateful_timely(
            name,
            Value::<i64>::new("count"),
            |record, diff, count, out| {
                let now = count.or_default();
                *now += diff;
                if *now == 0 {
                    count.take();
                }
                out.emit((record.clone(), diff));
            },
            |record, count| (record.clone(), *count),
            move |updates| {
                let outer = updates.scope();
                let updates = outer.scoped::<ViewTime, _, _>(&scope_name, |inner| {
                    view(collected(updates.enter(inner))).inner.leave(outer)
                });
                cut(updates)
            },
        )
    }
}

impl<'scope, K: Key + ViewRecord, V: ViewRecord> Differential<'scope, (K, V)>
    for KeyedStream<'scope, K, Change<V>>
{
    fn differential<R: ViewRecord>(
        self,
        name: &str,
        view: impl for<'view> FnOnce(Collected<'view, (K, V)>) -> Collected<'view, R>,
    ) -> Stream<'scope, Change<R>> {
        let changes = self.unkeyed().map(|(key, change)| change.map(|value| (key, value)));
        changes.differential(name, view)
    }
}

/// A collection of updates, each at the time of its batch.
fn collected<D: ViewRecord>(
    updates: timely::dataflow::Stream<'_, ViewTime, Vec<(D, i64)>>,
) -> Collected<'_, D> {
    let timed = updates.unary(Pipeline, "Timed", |_, _| {
        |input, output| {
            input.for_each(|capability, updates: &mut Vec<(D, i64)>| {
                let time = *capability.time();
                let timed = |(record, diff)| (record, time, diff as isize);
                output.session(&capability).give_iterator(updates.drain(..).map(timed));
            });
        }
    });
    timed.as_collection()
}

/// Emits updates in rounds, all of a record at one worker.
fn cut<R: ViewRecord>(
    updates: timely::dataflow::Stream<'_, Time, Vec<(R, ViewTime, isize)>>,
) -> timely::dataflow::Stream<'_, Time, Vec<Change<R>>> {
    let by_record = Exchange::new(|(record, _, _): &(R, ViewTime, isize)| record.hashed());
    updates.unary_frontier(by_record, "Cut", |_, _| {
        let mut cut = Cut::default();
        move |(input, frontier), output| {
            input.for_each(|capability, updates| {
                for update in updates.drain(..) {
                    cut.add(update, |time| capability.delayed(time, 0));
                }
            });
            cut.rounds(&frontier.frontier(), |right: &Capability<Time>, time, changes| {
                let right = right.delayed(&time);
                output.session(&right).give_iterator(changes.into_iter());
            });
        }
    })
}

/// Gathers updates into rounds; see the head of the file. `C` is the right to emit at a time.
struct Cut<R, C> {
    waiting: BTreeMap<Time, (C, Vec<(R, isize)>)>,
    /// The greatest event time of all rounds.
    reached: i64,
}

impl<R, C> Default for Cut<R, C> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), reached: i64::MIN }
    }
}

impl<R: Ord + Clone, C> Cut<R, C> {
    fn add(&mut self, (record, time, diff): (R, ViewTime, isize), right: impl FnOnce(&Time) -> C) {
        let ViewTime(time) = time;
        if time.epoch == Time::minimum().epoch {
            return; // Emitted before the checkpoint that was restored.
        }
        let waiting = self.waiting.entry(time).or_insert_with(|| (right(&time), Vec::new()));
        waiting.1.push((record, diff));
    }

    /// Emits the rounds that the frontier completes: each with the right to emit at a time that is not later than its own.
    fn rounds(&mut self, frontier: &[Time], mut emit: impl FnMut(&C, Time, Vec<Change<R>>)) {
        let first = frontier.iter().map(|time| time.epoch).min();
        // What is before a barrier that has passed.
        while let Some(epoch) = self.waiting.keys().next().map(|time| time.epoch)
            && first.is_none_or(|first| epoch < first)
        {
            self.round(Time { epoch, event: i64::MAX }, &mut emit);
        }
        let Some(epoch) = first else { return };
        let least = frontier.iter().filter(|time| time.epoch == epoch).map(|time| time.event).min();
        let Some(event) = least.and_then(|least| least.checked_sub(1)) else { return };
        if event >= self.reached {
            self.round(Time { epoch, event }, &mut emit);
        }
    }

    /// Emits all at times up to `point`.
    fn round(&mut self, point: Time, emit: &mut impl FnMut(&C, Time, Vec<Change<R>>)) {
        let mut updates = Vec::new();
        let mut last: Option<(C, Time)> = None;
        for (time, (right, more)) in self.waiting.extract_if(.., |time, _| time.less_equal(&point))
        {
            updates.extend(more);
            let end = last.map_or(time, |(_, end)| join(end, time));
            last = Some((right, end));
        }
        let Some((right, time)) = last else { return };
        self.reached = self.reached.max(time.event);
        consolidate(&mut updates);
        let (retracted, inserted): (Vec<_>, Vec<_>) =
            updates.into_iter().partition(|(_, diff)| *diff < 0);
        let changes = retracted.into_iter().chain(inserted).flat_map(|(record, diff)| {
            let change = if diff < 0 { Change::Retract(record) } else { Change::Insert(record) };
            std::iter::repeat_n(change, diff.unsigned_abs())
        });
        let changes: Vec<_> = changes.collect();
        if !changes.is_empty() {
            emit(&right, time, changes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn time(epoch: u64, event: i64) -> Time {
        Time { epoch, event }
    }

    /// What is emitted when the frontier comes to `frontier`: each round with its time.
    fn rounds(cut: &mut Cut<char, Time>, frontier: &[Time]) -> Vec<(Time, Vec<Change<char>>)> {
        let mut all = Vec::new();
        cut.rounds(frontier, |right, time, changes| {
            assert!(right.less_equal(&time));
            assert!(!frontier.iter().any(|at| at.less_equal(&time)), "only what is complete");
            all.push((time, changes));
        });
        all
    }

    fn add(cut: &mut Cut<char, Time>, record: char, time: Time, diff: isize) {
        cut.add((record, ViewTime(time), diff), |time| *time);
    }

    #[test]
    fn a_round_retracts_before_it_inserts_and_leaves_out_what_cancels() {
        let mut cut = Cut::default();
        add(&mut cut, 'a', time(1, 5), 1);
        add(&mut cut, 'b', time(1, 5), -1);
        add(&mut cut, 'c', time(1, 6), 2);
        add(&mut cut, 'a', time(1, 7), 1);
        add(&mut cut, 'd', time(1, 7), 1);
        add(&mut cut, 'd', time(1, 8), -1);
        assert_eq!(rounds(&mut cut, &[time(1, 5)]), []);
        use Change::{Insert, Retract};
        let all = vec![Retract('b'), Insert('a'), Insert('a'), Insert('c'), Insert('c')];
        assert_eq!(rounds(&mut cut, &[time(1, 9)]), [(time(1, 8), all)]);
    }

    #[test]
    fn a_barrier_completes_an_epoch_whatever_the_event_time() {
        // I3
        let mut cut = Cut::default();
        add(&mut cut, 'a', time(1, 100), 1);
        add(&mut cut, 'b', time(2, 50), 1);
        assert_eq!(rounds(&mut cut, &[time(1, 90), time(2, 50)]), []);
        let first = (time(1, 100), vec![Change::Insert('a')]);
        assert_eq!(rounds(&mut cut, &[time(2, 50)]), [first]);
        let last = (time(2, 50), vec![Change::Insert('b')]);
        assert_eq!(rounds(&mut cut, &[]), [last]);
    }

    #[test]
    fn what_is_behind_a_barrier_waits_for_the_event_time_before_it() {
        // The same record from two workers, of which one was ahead at the barrier. It is there once; what says so is at the
        // join of both times.
        let mut cut = Cut::default();
        add(&mut cut, 'a', time(1, 100), 1);
        add(&mut cut, 'a', time(2, 50), 1);
        add(&mut cut, 'a', time(2, 100), -1);
        let once = (time(1, 100), vec![Change::Insert('a')]);
        assert_eq!(rounds(&mut cut, &[time(2, 50)]), [once]);
        assert_eq!(rounds(&mut cut, &[time(2, 60)]), []);
        assert_eq!(rounds(&mut cut, &[time(2, 101)]), []);
        assert_eq!(cut.waiting.len(), 0, "and nothing is left");
    }

    #[test]
    fn what_follows_from_the_restored_collection_is_not_emitted_again() {
        // I8
        let mut cut = Cut::default();
        add(&mut cut, 'a', time(0, i64::MIN), 1);
        add(&mut cut, 'b', time(7, i64::MIN), 1);
        let new = (time(7, i64::MIN), vec![Change::Insert('b')]);
        assert_eq!(rounds(&mut cut, &[time(7, i64::MIN)]), []);
        assert_eq!(rounds(&mut cut, &[time(8, i64::MIN)]), [new]);
    }
}
