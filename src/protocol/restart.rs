//! Whether a failed job is started again, and when.
//!
//! ```text
//! failure (now, random) -->+---------------+--> restart after a delay
//!                          | RestartPolicy |--> give up, with the reason
//!                          +---------------+
//! ```
//! # States and events: the only event is a failure
//! | strategy          | failure                                   | decision                                    |
//! |-------------------|-------------------------------------------|---------------------------------------------|
//! | none              | any                                       | give up                                     |
//! | fixed delay       | number 1 to `attempts`                    | restart after `delay`                       |
//! | fixed delay       | later                                     | give up                                     |
//! | failure rate      | at most `failures` in the last `interval` | restart after `delay`                       |
//! | failure rate      | more                                      | give up                                     |
//! | exponential delay | first, or `reset_after` without failure   | restart after `initial`, with jitter        |
//! | exponential delay | next                                      | after the last one x `multiplier`, the same |
//!
//! # Invariants
//!   * An exponential delay, jitter included, lies between `initial` and `max`.
//!   * The time without failure counts from the restart, that is, from the last failure plus its
//!     delay: a job that waits is not healthy.
//!   * A policy that has given up gives up again.
//!
//! # Failure
//! The policy lives in the supervisor and dies with it: a new supervisor begins with no failures
//! counted.
//!
//! # Source
//! Flink's restart back-off strategies. Failures within the interval are counted as there: one that
//! is exactly an interval old still counts.

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::RestartStrategy;

/// What to do after a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Start the next attempt after this time.
    RestartAfter(Duration),
    /// End the job.
    GiveUp {
        /// Which bound was reached.
        why: String,
    },
}

/// Counts failures and decides. See the module's documentation.
#[derive(Clone, Debug)]
pub struct RestartPolicy {
    strategy: RestartStrategy,
    /// Number of failures so far.
    failures: u32,
    /// Times of failures within the interval of a failure rate, ascending; at most one more than
    /// tolerated.
    recent: VecDeque<Duration>,
    /// The exponential delay without jitter, and when the restart after it was due.
    last: Option<(Duration, Duration)>,
}

impl RestartPolicy {
    /// A policy that has seen no failure. Numbers that
    /// [`validate_restart`](super::plan::validate_restart) refuses do no harm: delays stay between
    /// `initial` and the larger of `initial` and `max`.
    #[must_use]
    pub fn new(strategy: &RestartStrategy) -> Self {
        Self { strategy: strategy.clone(), failures: 0, recent: VecDeque::new(), last: None }
    }

    /// Takes in a failure at `now` and decides.
    ///
    /// Units: `now` counts from an arbitrary origin and never goes back. `random` lies in 0.0 to
    /// 1.0 and spreads the restarts of jobs that failed together.
    pub fn on_failure(&mut self, now: Duration, random: f64) -> Decision {
        self.failures = self.failures.saturating_add(1);
        match self.strategy {
            RestartStrategy::None => {
                Decision::GiveUp { why: "the restart strategy is none".to_owned() }
            }
            RestartStrategy::FixedDelay { attempts, delay } if self.failures <= attempts => {
                Decision::RestartAfter(delay)
            }
            RestartStrategy::FixedDelay { attempts, .. } => Decision::GiveUp {
                why: format!("the {attempts} restarts of the fixed-delay strategy are used up"),
            },
            RestartStrategy::FailureRate { failures, interval, delay } => {
                self.failure_rate(now, failures, interval, delay)
            }
            RestartStrategy::ExponentialDelay { initial, max, multiplier, jitter, reset_after } => {
                let max = max.max(initial);
                let healthy_since = |due: Duration| now.saturating_sub(due);
                let delay = match self.last {
                    Some((delay, due)) if healthy_since(due) < reset_after => {
                        scaled(delay, multiplier, initial, max)
                    }
                    _ => initial,
                };
                let offset = (2.0 * random - 1.0) * jitter;
                let jittered = scaled(delay, 1.0 + offset, initial, max);
                self.last = Some((delay, now.saturating_add(jittered)));
                Decision::RestartAfter(jittered)
            }
        }
    }

    fn failure_rate(
        &mut self,
        now: Duration,
        failures: u32,
        interval: Duration,
        delay: Duration,
    ) -> Decision {
        // Once exceeded, time does not make it good again: the job has ended.
        if self.recent.len() <= failures as usize {
            while self.recent.front().is_some_and(|time| now.saturating_sub(*time) > interval) {
                self.recent.pop_front();
            }
            self.recent.push_back(now);
        }
        if self.recent.len() <= failures as usize {
            Decision::RestartAfter(delay)
        } else {
            Decision::GiveUp {
                why: format!(
                    "more than {failures} failures within {interval:?}, the bound of the \
                     failure-rate strategy"
                ),
            }
        }
    }
}

/// `delay` times `factor`, between `min` and `max`; a factor that is no number changes nothing.
fn scaled(delay: Duration, factor: f64, min: Duration, max: Duration) -> Duration {
    if factor.is_nan() {
        return delay.clamp(min, max);
    }
    let seconds = delay.as_secs_f64() * factor;
    // Infinity and what no Duration can hold are beyond every maximum.
    let product = if seconds <= 0.0 {
        Duration::ZERO
    } else {
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    };
    product.clamp(min, max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn delay(decision: Decision) -> f64 {
        match decision {
            Decision::RestartAfter(delay) => delay.as_secs_f64(),
            Decision::GiveUp { why } => panic!("gave up: {why}"),
        }
    }

    fn gives_up(decision: &Decision) -> bool {
        matches!(decision, Decision::GiveUp { .. })
    }

    fn exponential(jitter: f64) -> RestartPolicy {
        RestartPolicy::new(&RestartStrategy::ExponentialDelay {
            initial: seconds(1.0),
            max: seconds(5.0),
            multiplier: 2.0,
            jitter,
            reset_after: seconds(100.0),
        })
    }

    #[test]
    fn no_strategy_never_restarts() {
        let mut policy = RestartPolicy::new(&RestartStrategy::None);
        assert!(gives_up(&policy.on_failure(Duration::ZERO, 0.5)));
    }

    #[test]
    fn a_fixed_delay_restarts_as_often_as_it_says() {
        let strategy = RestartStrategy::FixedDelay { attempts: 2, delay: seconds(3.0) };
        let mut policy = RestartPolicy::new(&strategy);
        assert_eq!(delay(policy.on_failure(seconds(0.0), 0.5)), 3.0);
        assert_eq!(delay(policy.on_failure(seconds(9999.0), 0.5)), 3.0);
        let last = policy.on_failure(seconds(99999.0), 0.5);
        assert!(matches!(last, Decision::GiveUp { why } if why.contains("2 restarts")));
    }

    #[test]
    fn a_failure_rate_counts_failures_within_the_interval_only() {
        let strategy = RestartStrategy::FailureRate {
            failures: 2,
            interval: seconds(10.0),
            delay: seconds(1.0),
        };
        let mut policy = RestartPolicy::new(&strategy);
        for now in [0.0, 5.0, 11.0, 16.0, 22.0] {
            assert_eq!(delay(policy.on_failure(seconds(now), 0.5)), 1.0, "at {now}");
        }
        // 16, 22 and 26 lie within 10 seconds: one that is exactly the interval old counts.
        assert!(gives_up(&policy.on_failure(seconds(26.0), 0.5)));
        assert!(gives_up(&policy.on_failure(seconds(9999.0), 0.5)));
    }

    #[test]
    fn an_exponential_delay_grows_to_its_maximum() {
        let mut policy = exponential(0.0);
        let delays: Vec<f64> =
            (0..5).map(|now| delay(policy.on_failure(seconds(f64::from(now)), 0.9))).collect();
        assert_eq!(delays, [1.0, 2.0, 4.0, 5.0, 5.0]);
    }

    #[test]
    fn an_exponential_delay_starts_again_after_a_healthy_time() {
        let mut policy = exponential(0.0);
        assert_eq!(delay(policy.on_failure(seconds(0.0), 0.5)), 1.0);
        // Due again at 1, so healthy for 99 s only.
        assert_eq!(delay(policy.on_failure(seconds(100.0), 0.5)), 2.0);
        assert_eq!(delay(policy.on_failure(seconds(202.0), 0.5)), 1.0);
    }

    #[test]
    fn jitter_spreads_the_delay_within_its_bounds_and_does_not_build_up() {
        let mut policy = exponential(0.5);
        assert_eq!(delay(policy.on_failure(seconds(0.0), 0.0)), 1.0, "not below the first delay");
        assert_eq!(delay(policy.on_failure(seconds(1.0), 1.0)), 3.0);
        assert_eq!(delay(policy.on_failure(seconds(2.0), 0.0)), 2.0);
        assert_eq!(delay(policy.on_failure(seconds(3.0), 1.0)), 5.0, "not above the largest delay");
    }

    #[test]
    fn senseless_numbers_do_no_harm() {
        let mut policy = RestartPolicy::new(&RestartStrategy::ExponentialDelay {
            initial: seconds(2.0),
            max: seconds(1.0),
            multiplier: f64::INFINITY,
            jitter: f64::NAN,
            reset_after: Duration::MAX,
        });
        for _ in 0..3 {
            assert_eq!(delay(policy.on_failure(Duration::MAX, f64::NAN)), 2.0);
        }
    }
}
