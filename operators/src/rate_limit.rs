//! Rate limiter: holds records back so that no more of them pass than a given number in a given time.
//!
//! # Guarantee
//! In any span of processing time *t* of one run, at most *t* times the rate, 10 ms worth of records and one more pass: what a
//! busy worker has missed for a moment it makes up for, as far as 10 ms. Records of one key leave in the order in which they
//! came, through restarts too. None is lost: at the end of input, when the clock does not matter any more, all that is
//! held leaves at once.
//!
//! # Event time
//! The watermark does not wait for what is held. Behind the limiter records may be late; limit the rate after the operators that
//! need event time, or assign timestamps anew behind it.
//!
//! # State
//! What is held. An input that is faster than the limit for long makes it grow: a limiter spreads bursts, and does not slow
//! sources down.

use std::num::NonZeroU32;
use std::time::Duration;

use highwater::prelude::*;

/// How far a limiter may make up for what it has missed. Units: nanoseconds.
const CATCH_UP_NS: i64 = 10_000_000;
const NS_PER_MS: i64 = 1_000_000;

/// So many records in so much time.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// From one record to the next.
    interval_ns: i64,
}

impl Rate {
    /// `records` in a second.
    #[must_use]
    pub fn per_second(records: NonZeroU32) -> Self {
        Self::new(records, Duration::from_secs(1))
    }

    /// `records` in `time`.
    #[must_use]
    pub fn new(records: NonZeroU32, time: Duration) -> Self {
        let interval = time.as_nanos().div_ceil(u128::from(records.get()));
        Self { interval_ns: i64::try_from(interval).unwrap_or(i64::MAX) }
    }
}

/// Limits the rate of records.
///
/// # Examples
/// ```
/// use std::num::NonZeroU32;
///
/// use highwater::config::JobConfig;
/// use highwater::ids::Name;
/// use highwater::job::{JobHandle, execute};
/// use highwater::prelude::*;
/// use highwater_operators::{LimitRate, Rate};
///
/// let collect = Collect::new();
/// let seen = collect.handle();
/// let config = JobConfig::new(Name::new("calls")?);
/// execute(config, &JobHandle::default(), move |job| {
///     let rate = Rate::per_second(NonZeroU32::new(100).expect("not 0"));
///     job.source("calls", Collection::new((0..50u64).collect()))
///         .key_by(|call| call % 2)
///         .limit_rate("calm", rate)
///         .sink("out", collect.clone());
///     Ok(())
/// })?;
/// assert_eq!(seen.committed().len(), 50);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait LimitRate<'scope, K: Key, V: Record>: Sized {
    /// Lets the records of each key pass at `rate`, at most. With a key that all records share, `()`, it limits the whole
    /// stream, on one worker. `name` is unique in the job, and identifies the state in checkpoints.
    fn limit_rate(self, name: &str, rate: Rate) -> Stream<'scope, (K, V)>;
}

impl<'scope, K: Key, V: Record> LimitRate<'scope, K, V> for KeyedStream<'scope, K, V> {
    fn limit_rate(self, name: &str, rate: Rate) -> Stream<'scope, (K, V)> {
        // When the next record may pass counts for one interval at the most, and is forgotten then.
        let next = Duration::from_nanos(rate.interval_ns.unsigned_abs());
        let states = (List::<V>::new("waiting"), Value::<i64>::new("next").ttl(next));
        self.process_with_timers(
            name,
            states,
            move |key, value, (waiting, next), context| {
                let at = next.get().copied().unwrap_or(i64::MIN);
                if !waiting.is_empty() {
                    return waiting.append(value);
                }
                match rate.pass(at, context.now()) {
                    Ok(at) => {
                        next.set(at);
                        context.emit((key.clone(), value));
                    }
                    Err(wait_until) => {
                        waiting.append(value);
                        context.register_processing_timer(wait_until);
                        // The end of input is the end of event time. Timers of processing time do not fire then.
                        context.register_event_timer(i64::MAX);
                    }
                }
            },
            move |key, timer, (waiting, next), context| {
                if timer.domain == TimeDomain::EventTime {
                    waiting.take().into_iter().for_each(|v| context.emit((key.clone(), v)));
                    return;
                }
                let mut at = next.get().copied().unwrap_or(i64::MIN);
                let mut wait_until = None;
                let mut held = waiting.take().into_iter();
                while !held.as_slice().is_empty() && wait_until.is_none() {
                    match rate.pass(at, context.now()) {
                        Ok(after) => {
                            at = after;
                            held.next().into_iter().for_each(|v| context.emit((key.clone(), v)));
                        }
                        Err(until) => wait_until = Some(until),
                    }
                }
                next.set(at);
                match wait_until {
                    Some(until) => {
                        waiting.replace(held);
                        context.register_processing_timer(until);
                    }
                    None => context.delete_event_timer(i64::MAX),
                }
            },
        )
    }
}

impl Rate {
    /// When the record after the next may pass, in nanoseconds since 1970, if the next may pass at `now_ms`; otherwise when
    /// the next may, in milliseconds. `next_ns`: when it may by itself.
    fn pass(self, next_ns: i64, now_ms: i64) -> Result<i64, i64> {
        let now = now_ms.saturating_mul(NS_PER_MS);
        // A clock that was set back would hold everything for as long.
        let next = next_ns.min(now.saturating_add(self.interval_ns));
        if next > now {
            let part = i64::from(next.rem_euclid(NS_PER_MS) > 0);
            return Err(next.div_euclid(NS_PER_MS) + part);
        }
        Ok(next.max(now.saturating_sub(CATCH_UP_NS)).saturating_add(self.interval_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(records: u32, time_ms: u64) -> Rate {
        Rate::new(NonZeroU32::new(records).unwrap(), Duration::from_millis(time_ms))
    }

    #[test]
    fn no_span_has_more_records_than_the_rate_allows_and_none_waits_for_nothing() {
        for (records, time_ms) in [(1, 7), (3, 10), (50, 10), (1000, 1)] {
            let rate = rate(records, time_ms);
            let mut next = i64::MIN;
            let mut passed: Vec<i64> = Vec::new();
            let start = 1_000_000;
            let mut now = start;
            // The clock jumps, as that of a busy worker does.
            for step in [1, 1, 3, 1, 9, 1, 1, 2, 8, 1].into_iter().cycle().take(60) {
                now += step;
                while let Ok(after) = rate.pass(next, now) {
                    next = after;
                    passed.push(now);
                }
                assert!(rate.pass(next, now).is_err_and(|until| until > now));
            }
            for first in (0..passed.len()).step_by(61) {
                for last in (first..passed.len()).step_by(13) {
                    let span_ns = (passed[last] - passed[first]) * NS_PER_MS + CATCH_UP_NS;
                    assert!((last - first) as i64 <= span_ns / rate.interval_ns, "{records}");
                }
            }
            let all = (now - start) * i64::from(records) / time_ms as i64;
            assert!(passed.len() as i64 >= all, "{records}: {} of {all}", passed.len());
        }
    }

    #[test]
    fn a_clock_that_is_set_back_delays_one_record_by_one_interval() {
        let rate = rate(10, 1000);
        let next = rate.pass(i64::MIN, 1_000_000).unwrap();
        assert_eq!(rate.pass(next, 5_000), Err(5_100));
        assert!(rate.pass(next.min(5_100 * NS_PER_MS), 5_100).is_ok());
    }
}
