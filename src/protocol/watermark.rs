//! Event time at the sources: what a split's timestamps promise, which splits count, and how far an
//! idle instance may follow the others.
//!
//! ```text
//! timestamps, end of a split -->+-----------------+--watermark--> capability of the source
//! time, blocked                 | SplitWatermarks |--status-----> all instances: `idle_target`
//! event time of the others ---->+-----------------+--state------> checkpoint
//! ```
//!
//! # Watermark and event coordinate
//! A **watermark** *w* says: no more records with a timestamp <= *w* are expected. The **event
//! coordinate** of a capability is the lower bound of the timestamps that may still come. So the
//! coordinate is *w* + 1, and [`event_coordinate`] and [`watermark_at`] are the only places that
//! say so. The ends stay what they are: `i64::MIN` says "nothing is known", `i64::MAX` "nothing
//! comes any more".
//!
//! A split's watermark is its largest timestamp, less the allowed disorder, less 1: another record
//! with the same timestamp may follow.
//!
//! # States of a split
//! | state    | event                           | next     | effect on the combined watermark           |
//! |----------|---------------------------------|----------|--------------------------------------------|
//! | Active   | records                         | Active   | holds back to its own watermark            |
//! | Active   | no records for the idle timeout | Idle     | holds back no more                         |
//! | Active   | end of the split                | Finished | holds back no more                         |
//! | Idle     | records                         | Active   | holds back again; those behind it are late |
//! | Idle     | end of the split                | Finished | none                                       |
//! | Finished | any                             | Finished | none                                       |
//!
//! Combined: the least watermark of the Active splits; without one, what it was; when all are
//! Finished (or there are none), `i64::MAX`. While an instance has neither, it is *idle* and may
//! follow the others. Time in which a source was stopped by flow control is not idle time: there
//! may be any number of records that nobody read, and to go on without them would make all of them
//! late.
//!
//! # Invariants
//!   * The combined watermark never goes back.
//!   * I9. Neither does what a user sees, across a restore: the state of each split is at least the
//!     combined watermark of its instance, so however the splits are dealt again, no instance
//!     starts below what the least of the instances had reached. This loses nothing: without the
//!     restore those records would have been late too.
//!
//! # Failure
//! A crash takes back what was not in the checkpoint, and the replay repeats it. Which split is
//! idle is not kept: all start Active and have the idle timeout to say something.
//!
//! # Source
//! Akidau et al. 2015, the dataflow model; Flink's split-aware watermarks with idleness.
//! Difference: an instance that is idle while all others are at their end stays where it is,
//! instead of jumping to the end of time.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The event coordinate of a capability at watermark `watermark`: the least timestamp that may
/// still come.
///
/// Shape: saturating; `i64::MIN` and `i64::MAX` stay. (`i64::MAX - 1` becomes `i64::MAX` as well:
/// the end.)
#[must_use]
pub const fn event_coordinate(watermark: i64) -> i64 {
    match watermark {
        i64::MIN => i64::MIN,
        _ => watermark.saturating_add(1),
    }
}

/// The watermark of a frontier whose least event coordinate is `event`: the reverse of
/// [`event_coordinate`].
#[must_use]
pub const fn watermark_at(event: i64) -> i64 {
    match event {
        i64::MAX => i64::MAX,
        _ => event.saturating_sub(1),
    }
}

/// The last watermark of a split that is not at its end.
const LAST_WATERMARK: i64 = i64::MAX - 2;

/// Says what the timestamps of one split promise. Lives on one worker thread.
pub trait WatermarkGenerator {
    /// Takes in the timestamp of a record, in milliseconds.
    fn on_event(&mut self, timestamp: i64);

    /// The watermark now. A value below an earlier one is taken as that one.
    fn current(&self) -> i64;
}

/// Makes the generator of one split.
type GeneratorFactory = Arc<dyn Fn() -> Box<dyn WatermarkGenerator> + Send + Sync>;

/// How a source's watermarks come about, and when a split counts as idle.
#[derive(Clone)]
pub struct WatermarkStrategy {
    kind: Kind,
    idle_timeout: Option<Duration>,
}

#[derive(Clone)]
enum Kind {
    /// The largest timestamp less this number of milliseconds, less 1.
    Bounded(i64),
    Custom(GeneratorFactory),
}

impl WatermarkStrategy {
    /// Timestamps never go down within a split: the watermark is the last one less 1.
    #[must_use]
    pub fn monotonic() -> Self {
        Self::bounded(Duration::ZERO)
    }

    /// A timestamp lies below an earlier one by `disorder` at most: the watermark is the largest
    /// one less `disorder`, less 1. Units: whole milliseconds, rounded up.
    #[must_use]
    pub fn bounded(disorder: Duration) -> Self {
        let millis = disorder.as_nanos().div_ceil(1_000_000);
        let millis = i64::try_from(millis).unwrap_or(i64::MAX);
        Self { kind: Kind::Bounded(millis), idle_timeout: None }
    }

    /// A generator of the user's own, made once for each split.
    pub fn custom<G: WatermarkGenerator + 'static>(
        generator: impl Fn() -> G + Send + Sync + 'static,
    ) -> Self {
        let factory: GeneratorFactory = Arc::new(move || Box::new(generator()));
        Self { kind: Kind::Custom(factory), idle_timeout: None }
    }

    /// A split without records for `timeout` holds event time back no more. Without this, it does
    /// for ever.
    #[must_use]
    pub fn with_idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = Some(timeout);
        self
    }

    fn generator(&self) -> Generator {
        match &self.kind {
            Kind::Bounded(disorder) => Generator::Bounded { disorder: *disorder, largest: None },
            Kind::Custom(factory) => Generator::Custom(factory()),
        }
    }
}

impl fmt::Debug for WatermarkStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Bounded(millis) => format!("bounded by {millis} ms"),
            Kind::Custom(_) => "custom".to_owned(),
        };
        f.debug_struct("WatermarkStrategy")
            .field("kind", &kind)
            .field("idle_timeout", &self.idle_timeout)
            .finish()
    }
}

/// The built-in kinds cost no virtual call for each record.
enum Generator {
    Bounded { disorder: i64, largest: Option<i64> },
    Custom(Box<dyn WatermarkGenerator>),
}

impl Generator {
    /// Takes in timestamps; returns whether there was one.
    fn on_events(&mut self, timestamps: impl Iterator<Item = i64>) -> bool {
        match self {
            Self::Bounded { largest, .. } => {
                let newest = timestamps.max();
                *largest = (*largest).max(newest);
                newest.is_some()
            }
            Self::Custom(generator) => {
                timestamps.map(|timestamp| generator.on_event(timestamp)).count() > 0
            }
        }
    }

    fn current(&self) -> i64 {
        match self {
            Self::Bounded { largest: None, .. } => i64::MIN,
            Self::Bounded { disorder, largest: Some(largest) } => {
                largest.saturating_sub(*disorder).saturating_sub(1)
            }
            Self::Custom(generator) => generator.current(),
        }
    }
}

/// The event time of one split, as a checkpoint keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitState {
    /// Where the split's event time goes on from; `i64::MIN` for one that is new.
    pub watermark: i64,
    /// Whether the split is at its end.
    pub finished: bool,
}

impl SplitState {
    /// A split that was never read.
    pub const NEW: Self = Self { watermark: i64::MIN, finished: false };
}

/// What one instance of a source tells the others about its event time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Its combined watermark; `i64::MAX` when it is finished.
    pub watermark: i64,
    /// Whether all its splits are idle or at their end, and not all at their end.
    pub idle: bool,
    /// Whether all its splits are at their end.
    pub finished: bool,
}

/// Returns the watermark that an idle instance may advance to, from the status of all instances of
/// a source: the least one of those that are neither idle nor finished. `None` if there are none:
/// then nobody knows what time it is.
#[must_use]
pub fn idle_target(instances: impl IntoIterator<Item = InstanceStatus>) -> Option<i64> {
    instances
        .into_iter()
        .filter(|instance| !instance.idle && !instance.finished)
        .map(|instance| instance.watermark)
        .min()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activity {
    Active,
    Idle,
    Finished,
}

struct Split {
    generator: Generator,
    /// Its own watermark; never goes back.
    watermark: i64,
    activity: Activity,
    /// When it last had records, on the clock that stands still while the source is blocked.
    heard: Duration,
}

/// The event time of one instance of a source. Splits are known by their index.
pub struct SplitWatermarks {
    splits: Vec<Split>,
    idle_timeout: Option<Duration>,
    combined: i64,
    /// Total of past times in which the source was blocked.
    blocked_total: Duration,
    blocked_since: Option<Duration>,
}

impl SplitWatermarks {
    /// The event time of an instance that was dealt `splits`; new ones and those of a checkpoint
    /// alike.
    ///
    /// All at once: with one split after the other, the first would move event time on before the
    /// second could hold it back.
    #[must_use]
    pub fn new(strategy: &WatermarkStrategy, splits: &[SplitState], now: Duration) -> Self {
        let split = |state: &SplitState| Split {
            generator: strategy.generator(),
            watermark: state.watermark,
            activity: if state.finished { Activity::Finished } else { Activity::Active },
            heard: now,
        };
        let mut watermarks = Self {
            splits: splits.iter().map(split).collect(),
            idle_timeout: strategy.idle_timeout,
            combined: i64::MIN,
            blocked_total: Duration::ZERO,
            blocked_since: None,
        };
        watermarks.advance(now);
        watermarks
    }

    /// Takes in the timestamps of records that were read from `split`. Nothing read is no sign of
    /// life.
    ///
    /// # Panics
    /// If there is no such split.
    pub fn observe(
        &mut self,
        split: usize,
        timestamps: impl IntoIterator<Item = i64>,
        now: Duration,
    ) {
        let heard = self.unblocked(now);
        let split = &mut self.splits[split];
        if split.generator.on_events(timestamps.into_iter()) {
            // Only the end of the input ends event time, whatever a record says.
            let promised = split.generator.current().min(LAST_WATERMARK);
            split.watermark = split.watermark.max(promised);
            split.heard = heard;
            if split.activity == Activity::Idle {
                split.activity = Activity::Active;
            }
        }
    }

    /// `split` is at its end.
    ///
    /// # Panics
    /// If there is no such split.
    pub fn finish(&mut self, split: usize) {
        self.splits[split].activity = Activity::Finished;
    }

    /// Flow control stops the source, or lets it go on. Saying the same again changes nothing.
    pub fn set_blocked(&mut self, blocked: bool, now: Duration) {
        match (self.blocked_since, blocked) {
            (None, true) => self.blocked_since = Some(now),
            (Some(since), false) => {
                self.blocked_total += now.saturating_sub(since);
                self.blocked_since = None;
            }
            (None, false) | (Some(_), true) => {}
        }
    }

    /// Whether the source may not read now.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.blocked_since.is_some()
    }

    /// Recomputes and returns the combined watermark. To be called once a watermark interval at least, and
    /// when [`next_idle`](Self::next_idle) is due.
    pub fn advance(&mut self, now: Duration) -> i64 {
        let clock = self.unblocked(now);
        if let Some(timeout) = self.idle_timeout {
            for split in &mut self.splits {
                let quiet = clock.saturating_sub(split.heard) >= timeout;
                if quiet && split.activity == Activity::Active {
                    split.activity = Activity::Idle;
                }
            }
        }
        let active = self.splits.iter().filter(|split| split.activity == Activity::Active);
        let target = if self.is_finished() {
            Some(i64::MAX)
        } else {
            active.map(|split| split.watermark).min()
        };
        self.combined = target.map_or(self.combined, |target| target.max(self.combined));
        self.combined
    }

    /// Follows the others to `watermark`, which [`idle_target`] gave. Without effect unless the
    /// instance is idle: records may have come since the others were asked.
    pub fn follow(&mut self, watermark: i64) {
        if self.is_idle() {
            self.combined = self.combined.max(watermark);
        }
    }

    /// The combined watermark of the last [`advance`](Self::advance) or [`follow`](Self::follow).
    #[must_use]
    pub fn watermark(&self) -> i64 {
        self.combined
    }

    /// What the other instances need to know.
    #[must_use]
    pub fn status(&self) -> InstanceStatus {
        InstanceStatus {
            watermark: self.combined,
            idle: self.is_idle(),
            finished: self.is_finished(),
        }
    }

    /// When the next split becomes idle if no records come. `None`: never, or not while the source
    /// is blocked.
    #[must_use]
    pub fn next_idle(&self) -> Option<Duration> {
        let timeout = self.idle_timeout.filter(|_| self.blocked_since.is_none())?;
        let active = self.splits.iter().filter(|split| split.activity == Activity::Active);
        let heard = active.map(|split| split.heard).min()?;
        Some(heard.saturating_add(timeout).saturating_add(self.blocked_total))
    }

    /// The event time of a split, for the checkpoint whose barrier is now. (I9)
    ///
    /// # Panics
    /// If there is no such split.
    #[must_use]
    pub fn state(&self, split: usize) -> SplitState {
        let split = &self.splits[split];
        SplitState {
            watermark: split.watermark.max(self.combined),
            finished: split.activity == Activity::Finished,
        }
    }

    fn is_finished(&self) -> bool {
        self.splits.iter().all(|split| split.activity == Activity::Finished)
    }

    fn is_idle(&self) -> bool {
        let mut splits = self.splits.iter();
        !self.is_finished() && splits.all(|split| split.activity != Activity::Active)
    }

    /// `now` on the clock that stands still while the source is blocked.
    fn unblocked(&self, now: Duration) -> Duration {
        let until = self.blocked_since.map_or(now, |since| since.min(now));
        until.saturating_sub(self.blocked_total)
    }
}

impl fmt::Debug for SplitWatermarks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let splits: Vec<_> = self.splits.iter().map(|s| (s.watermark, s.activity)).collect();
        f.debug_struct("SplitWatermarks")
            .field("combined", &self.combined)
            .field("splits", &splits)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
