//! The timestamp of every record: which epoch, which event time.

use serde::{Deserialize, Serialize};
use timely::PartialOrder;
use timely::progress::timestamp::{PathSummary, Refines};

use crate::ids::Epoch;

/// The timestamp that everything in a job travels at.
///
/// Order: the product of both coordinates, `(e1, t1) <= (e2, t2)` iff `e1 <= e2` and `t1 <= t2`. Not the
/// lexicographic one, which is wrong for watermarks: with one source in epoch *e* at event time 100 and another
/// already in *e+1* at 50, time 50 can still come.
///
/// The derived total order (`Ord`) is lexicographic. It extends the product order, as timely asks, and is used
/// for sorting only.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Time {
    /// The epoch: records before barrier *n* and after barrier *n-1* are of epoch *n*.
    pub epoch: u64,
    /// Units: milliseconds of event time. No record with a smaller event time is expected any more.
    pub event: i64,
}

impl Time {
    /// A time.
    #[must_use]
    pub const fn new(epoch: Epoch, event: i64) -> Self {
        Self { epoch: epoch.0, event }
    }

    /// The epoch, as an identity.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        Epoch(self.epoch)
    }
}

impl PartialOrder for Time {
    #[inline]
    fn less_equal(&self, other: &Self) -> bool {
        self.epoch <= other.epoch && self.event <= other.event
    }
}

impl timely::progress::Timestamp for Time {
    type Summary = TimeSummary;
    fn minimum() -> Self {
        Self { epoch: 0, event: i64::MIN }
    }
}

/// How a path through the dataflow moves a [`Time`] on. Ours do not; the type exists because timely asks for it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct TimeSummary {
    /// Added to the epoch.
    pub epochs: u64,
    /// Added to the event time.
    pub milliseconds: u64,
}

impl PartialOrder for TimeSummary {
    fn less_equal(&self, other: &Self) -> bool {
        self.epochs <= other.epochs && self.milliseconds <= other.milliseconds
    }
}

impl PathSummary<Time> for TimeSummary {
    #[inline]
    fn results_in(&self, time: &Time) -> Option<Time> {
        Some(Time {
            epoch: time.epoch.checked_add(self.epochs)?,
            event: time.event.checked_add_unsigned(self.milliseconds)?,
        })
    }

    fn followed_by(&self, other: &Self) -> Option<Self> {
        Some(Self {
            epochs: self.epochs.checked_add(other.epochs)?,
            milliseconds: self.milliseconds.checked_add(other.milliseconds)?,
        })
    }
}

// A root dataflow's timestamp must refine `()`; timely's own product type does not, which is one reason for ours.
impl Refines<()> for Time {
    fn to_inner((): ()) -> Self {
        <Self as timely::progress::Timestamp>::minimum()
    }
    fn to_outer(self) {}
    fn summarize(_: TimeSummary) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use timely::progress::Timestamp;

    #[test]
    fn times_of_a_later_epoch_and_an_earlier_event_time_are_not_ordered() {
        let early_epoch = Time { epoch: 1, event: 100 };
        let late_epoch = Time { epoch: 2, event: 50 };
        assert!(!early_epoch.less_equal(&late_epoch));
        assert!(!late_epoch.less_equal(&early_epoch));
        assert!(Time::minimum().less_equal(&late_epoch));
    }

    #[test]
    fn the_total_order_extends_the_partial_one() {
        let times: Vec<Time> =
            (0..3).flat_map(|epoch| (-1..2).map(move |event| Time { epoch, event })).collect();
        for a in &times {
            for b in &times {
                assert!(!a.less_equal(b) || a <= b);
            }
        }
    }

    #[test]
    fn the_default_summary_changes_nothing_and_the_last_event_time_stays() {
        let end = Time { epoch: 7, event: i64::MAX };
        assert_eq!(TimeSummary::default().results_in(&end), Some(end));
        assert_eq!(TimeSummary { epochs: 0, milliseconds: 1 }.results_in(&end), None);
    }
}
