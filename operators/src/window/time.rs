//! Which time windows count in.

use std::fmt;
use std::marker::PhantomData;

use highwater::prelude::*;
use serde::{Deserialize, Serialize};

use crate::window::WindowState;

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

/// What has passed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moments {
    /// The last millisecond that has passed, in the time that windows count in.
    pub(super) passed: i64,
    /// What the clock says.
    pub(super) now: i64,
}

/// What time it is for windows: by the watermark or by the clock.
pub(super) trait Domain: Clone + fmt::Debug + Send + 'static {
    /// When a state is due that wants to be looked at as soon as `due` has passed.
    fn event_due(due: i64) -> Option<i64>;
    fn processing_due(due: i64) -> Option<i64>;
    /// What has passed. `timer`: what a state is due for, if it is.
    fn at<O>(timer: Option<Timer>, context: &ScheduledContext<'_, O>) -> Moments;
}

/// The windows of one key, in a time.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent, bound(serialize = "W: Serialize", deserialize = "W: Deserialize<'de>"))]
pub(super) struct InTime<W, D>(pub(super) W, #[serde(skip)] PhantomData<fn() -> D>);

impl<W: Default, D> Default for InTime<W, D> {
    fn default() -> Self {
        Self(W::default(), PhantomData)
    }
}

impl<W: WindowState, D: Domain> Scheduled for InTime<W, D> {
    #[inline]
    fn event_due(&self) -> Option<i64> {
        D::event_due(self.0.due()?)
    }

    #[inline]
    fn processing_due(&self) -> Option<i64> {
        let due = D::processing_due(self.0.due()?);
        due.into_iter().chain(self.0.due_by_clock()).min()
    }

    #[inline]
    fn is_vacant(&self) -> bool {
        self.0.due().is_none()
    }
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
    fn at<O>(_timer: Option<Timer>, context: &ScheduledContext<'_, O>) -> Moments {
        Moments { passed: context.watermark(), now: context.now() }
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
    fn at<O>(timer: Option<Timer>, context: &ScheduledContext<'_, O>) -> Moments {
        let now = context.now();
        let ended = timer.is_some_and(|timer| timer.domain == TimeDomain::EventTime);
        Moments { passed: if ended { i64::MAX } else { now - 1 }, now }
    }
}
