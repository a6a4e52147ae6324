//! When windows give results.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::window::millis;

/// When windows give results, besides at their end.
///
/// What is allowed to be late gives a result at once, whatever the trigger. An early result is given if a record has come since the
/// last one. Windows with a trigger share nothing: a record is added to each of its windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trigger {
    pub(super) records: Option<NonZeroU64>,
    /// Units: milliseconds.
    pub(super) early: Option<i64>,
    pub(super) early_processing: Option<i64>,
    pub(super) purges: bool,
}

impl Trigger {
    /// At the end of the window.
    #[must_use]
    pub fn at_end() -> Self {
        Self::default()
    }

    /// As soon as `records` have come since the last result, too.
    #[must_use]
    pub fn every_records(mut self, records: NonZeroU64) -> Self {
        self.records = Some(records);
        self
    }

    /// Each time that the watermark passes a multiple of `interval`, too. (In windows of processing time: that the clock does.)
    #[must_use]
    pub fn every(mut self, interval: Duration) -> Self {
        self.early = Some(millis(interval));
        self
    }

    /// Each time that the clock passes a multiple of `interval`, too.
    #[must_use]
    pub fn every_processing_time(mut self, interval: Duration) -> Self {
        self.early_processing = Some(millis(interval));
        self
    }

    /// Forgets the records of a window with each result: the next one is of those that come later. Without this, each result is of
    /// all records so far.
    #[must_use]
    pub fn purging(mut self) -> Self {
        self.purges = true;
        self
    }
}
