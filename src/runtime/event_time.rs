//! How a source tells event time.

use std::fmt;
use std::time::Duration;

use crate::protocol::watermark::WatermarkStrategy;

/// The event time of a source's records, and what watermarks follow from it.
///
/// Every split has a watermark generator of its own; the source's watermark is the least of its splits' (of all
/// workers). Late records, those at or before the watermark, are delivered like all others: operators decide.
pub struct EventTime<D> {
    pub(crate) strategy: WatermarkStrategy,
    /// Units: milliseconds. `None` if records have no event time.
    pub(crate) timestamp: Option<Timestamp<D>>,
    /// How often an operator that assigns event time moves it on by the clock. `None` if it does not.
    pub(crate) tick: Option<Duration>,
}

pub(crate) type Timestamp<D> = Box<dyn Fn(&D) -> i64>;

impl<D> fmt::Debug for EventTime<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventTime").field("strategy", &self.strategy).finish_non_exhaustive()
    }
}

impl<D> EventTime<D> {
    /// No event time: the watermark stays at its beginning until the end of the input.
    #[must_use]
    pub fn none() -> Self {
        Self { strategy: WatermarkStrategy::monotonic(), timestamp: None, tick: None }
    }

    /// Event time by `timestamp`, in milliseconds, with watermarks by `strategy`.
    pub fn new(strategy: WatermarkStrategy, timestamp: impl Fn(&D) -> i64 + 'static) -> Self {
        Self { strategy, timestamp: Some(Box::new(timestamp)), tick: None }
    }

    /// Event time by `timestamp`, in milliseconds, which never decreases within a split.
    pub fn monotonic(timestamp: impl Fn(&D) -> i64 + 'static) -> Self {
        Self::new(WatermarkStrategy::monotonic(), timestamp)
    }
}
