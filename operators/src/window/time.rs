//! Which time windows count in.

use std::fmt;

use highwater::prelude::*;

/// A stretch of time, or all of it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Window {
    /// The first millisecond of it.
    pub start: i64,
    /// The first millisecond behind it.
    pub end: i64,
}

/// What time it is for windows: by the watermark or by the clock.
pub(super) trait Domain: Clone + fmt::Debug + Send + 'static {
    /// When a state is due that wants to be looked at as soon as `due` has passed.
    fn event_due(due: i64) -> Option<i64>;
    fn processing_due(due: i64) -> Option<i64>;
    /// The last millisecond that has passed.
    fn passed<O>(context: &ScheduledContext<'_, O>) -> i64;
    /// As [`Domain::passed`], of a state that is due.
    fn passed_at<O>(timer: Timer, context: &ScheduledContext<'_, O>) -> i64;
}

/// Event time.
#[derive(Clone, Debug)]
pub(super) struct ByEvent;

impl Domain for ByEvent {
    #[inline]
    fn event_due(due: i64) -> Option<i64> {
        Some(due)
    }
    #[inline]
    fn processing_due(_due: i64) -> Option<i64> {
        None
    }
    #[inline]
    fn passed<O>(context: &ScheduledContext<'_, O>) -> i64 {
        context.watermark()
    }
    #[inline]
    fn passed_at<O>(_timer: Timer, context: &ScheduledContext<'_, O>) -> i64 {
        context.watermark()
    }
}

/// Processing time. At the end of input all of it has passed: no window is lost.
#[derive(Clone, Debug)]
pub(super) struct ByProcessing;

impl Domain for ByProcessing {
    fn event_due(_due: i64) -> Option<i64> {
        Some(i64::MAX)
    }
    fn processing_due(due: i64) -> Option<i64> {
        Some(due.saturating_add(1))
    }
    fn passed<O>(context: &ScheduledContext<'_, O>) -> i64 {
        context.now() - 1
    }
    fn passed_at<O>(timer: Timer, context: &ScheduledContext<'_, O>) -> i64 {
        match timer.domain {
            TimeDomain::EventTime => i64::MAX,
            TimeDomain::ProcessingTime => context.now() - 1,
        }
    }
}
