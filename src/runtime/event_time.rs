//! How a source tells event time.

use std::fmt;
use std::time::Duration;

use crate::protocol::watermark::{
    BoundedOutOfOrderness, Monotonic, WatermarkGenerator,
};

type Extract<D> = Box<dyn Fn(&D) -> i64>;
type Generators = Box<dyn Fn() -> Box<dyn WatermarkGenerator>>;

/// The event time of a source's records, and what watermarks follow from it.
///
/// Every split has a watermark generator of its own; the source's watermark is the least of its splits' (of all
/// workers). Late records, those at or before the watermark, are delivered like all others: operators decide.
pub struct EventTime<D> {
    pub(crate) strategy: Option<Strategy<D>>,
}

pub(crate) struct Strategy<D> {
    pub(crate) extract: Extract<D>,
    pub(crate) generators: Generators,
    pub(crate) idle_after: Option<Duration>,
}

impl<D> fmt::Debug for EventTime<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventTime").field("used", &self.strategy.is_some()).finish()
    }
}

impl<D> EventTime<D> {
    /// No event time: the watermark stays at its beginning until the end of the input.
    #[must_use]
    pub fn none() -> Self {
        Self { strategy: None }
    }

    /// Timestamps of a split never decrease. `timestamp` is in milliseconds.
    pub fn monotonic(timestamp: impl Fn(&D) -> i64 + 'static) -> Self {
        Self::custom(|| Box::new(Monotonic::default()), timestamp)
    }

    /// A record may come up to `bound` of event time after a later one of its split.
    pub fn bounded_out_of_orderness(
        bound: Duration,
        timestamp: impl Fn(&D) -> i64 + 'static,
    ) -> Self {
        Self::custom(move || Box::new(BoundedOutOfOrderness::new(bound)), timestamp)
    }

    /// Watermarks by a generator of your own; `generators` makes one for each split.
    pub fn custom(
        generators: impl Fn() -> Box<dyn WatermarkGenerator> + 'static,
        timestamp: impl Fn(&D) -> i64 + 'static,
    ) -> Self {
        let strategy = Strategy {
            extract: Box::new(timestamp),
            generators: Box::new(generators),
            idle_after: None,
        };
        Self { strategy: Some(strategy) }
    }

    /// A split that yields nothing for this long no longer holds the watermark back. If it yields records again that
    /// are behind the watermark, they are late.
    #[must_use]
    pub fn idle_after(mut self, idle_after: Duration) -> Self {
        if let Some(strategy) = &mut self.strategy {
            strategy.idle_after = Some(idle_after);
        }
        self
    }
}
