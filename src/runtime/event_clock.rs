//! How an instance moves event time on: that of a source, or of an operator that assigns event time.
//!
//! Once a watermark interval it looks at its watermarks and tells the others where it is; more often where there is nothing else to do.
//! An idle one follows the others: closely while they move, and else only to see whether they do.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::protocol::watermark::{InstanceStatus, SplitWatermarks, event_coordinate};
use crate::runtime::context::WorkerContext;

/// An idle instance looks at the others this much less often while they do not move either. Units: watermark intervals.
const IDLE_INTERVALS: u32 = 10;

/// An instance that has caught up looks at its watermarks this much more often: what waits for them is late by as much as they are.
const CAUGHT_UP_PART: u32 = 4;

/// The event time of one instance.
pub(crate) struct EventClock {
    number: u32,
    /// The numbers of those that it follows.
    among: RangeInclusive<u32>,
    /// The least event time that its output may still have.
    event: i64,
    /// When the last tick was.
    ticked_at: Option<Duration>,
    /// Something came since the last tick.
    unticked: bool,
}

/// When event time is moved on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pressure {
    /// Once an interval.
    Usual,
    /// More often: the instance has nothing else to do, for now.
    CaughtUp,
    /// At once, and to its end: there is nothing more to come.
    Ended,
}

/// What a tick found.
pub(crate) struct Tick {
    pub(crate) status: InstanceStatus,
    /// Whether event time has moved on.
    pub(crate) moved: bool,
}

impl EventClock {
    /// The clock of the instances `number` at this worker, at `event`. `among`: the numbers of those that it follows when idle.
    pub(crate) fn new(number: u32, among: RangeInclusive<u32>, event: i64) -> Self {
        Self { number, among, event, ticked_at: None, unticked: false }
    }

    /// The least event time that the output may still have.
    pub(crate) fn event(&self) -> i64 {
        self.event
    }

    /// Something came that may move event time on.
    pub(crate) fn stir(&mut self) {
        self.unticked = true;
    }

    /// Moves event time on if it is time to. Returns what was found, if it was time, and when there may be something to move on again,
    /// if no record comes.
    pub(crate) fn tick(
        &mut self,
        watermarks: &mut SplitWatermarks,
        pressure: Pressure,
        context: &WorkerContext,
    ) -> (Option<Tick>, Option<Duration>) {
        let now = context.now();
        let interval = context.config().watermark_interval;
        let wait = match pressure {
            Pressure::Usual => interval,
            Pressure::CaughtUp => interval / CAUGHT_UP_PART,
            Pressure::Ended => Duration::ZERO,
        };
        let tick_at = self.ticked_at.map_or(Duration::ZERO, |ticked| ticked + wait);
        if now < tick_at {
            let due = self.unticked || watermarks.status().idle;
            let idle = watermarks.next_idle().map(|idle| idle.max(tick_at));
            return (None, if due { Some(tick_at) } else { idle });
        }
        self.unticked = false;
        self.ticked_at = Some(now);
        watermarks.advance(now);
        let mut status = watermarks.status();
        if status.idle
            && let Some(watermark) = context.shared.board.idle_target(self.among.clone())
        {
            watermarks.follow(watermark);
            status = watermarks.status();
        }
        let mut reached = event_coordinate(status.watermark);
        if pressure == Pressure::Ended {
            status.finished = true;
            reached = i64::MAX;
        }
        context.set_status(self.number, status);
        let moved = reached > self.event;
        self.event = self.event.max(reached);
        let again = if status.idle {
            Some(now + if moved { wait } else { interval * IDLE_INTERVALS })
        } else {
            watermarks.next_idle().map(|idle| idle.max(now + wait))
        };
        (Some(Tick { status, moved }), again)
    }
}
