//! Decides what follows a failure.

use std::time::Duration;

use crate::config::RestartStrategy;

/// What follows a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// All starts again after that time.
    RestartAfter(Duration),
    /// The job ends.
    GiveUp {
        /// Which bound was reached.
        why: String,
    },
}

/// A restart strategy and what has happened under it.
#[derive(Clone, Debug)]
pub struct RestartPolicy {
    strategy: RestartStrategy,
    /// Times of the failures that still count, in order.
    failures: Vec<Duration>,
    next_delay: Duration,
}

impl RestartPolicy {
    /// Nothing has failed yet.
    #[must_use]
    pub fn new(strategy: &RestartStrategy) -> Self {
        Self { strategy: strategy.clone(), failures: Vec::new(), next_delay: Duration::ZERO }
    }

    /// Decides after a failure at `now`, with a `random` number from 0 to 1.
    pub fn on_failure(&mut self, now: Duration, random: f64) -> Decision {
        let last = self.failures.last().copied();
        self.failures.push(now);
        match self.strategy.clone() {
            RestartStrategy::None => {
                Decision::GiveUp { why: "the restart strategy is none".into() }
            }
            RestartStrategy::FixedDelay { attempts, delay } => {
                if self.failures.len() > attempts as usize {
                    let why = format!("all {attempts} restarts are used up");
                    return Decision::GiveUp { why };
                }
                Decision::RestartAfter(delay)
            }
            RestartStrategy::FailureRate { failures, interval, delay } => {
                self.failures.retain(|at| now.saturating_sub(*at) < interval);
                if self.failures.len() > failures as usize {
                    let why = format!("more than {failures} failures within {interval:?}");
                    return Decision::GiveUp { why };
                }
                Decision::RestartAfter(delay)
            }
            RestartStrategy::ExponentialDelay { initial, max, multiplier, jitter, reset_after } => {
                let calm = last.is_none_or(|last| now.saturating_sub(last) >= reset_after);
                let delay = if calm { initial } else { self.next_delay.min(max) };
                self.failures = vec![now];
                self.next_delay = delay.mul_f64(multiplier.max(1.0)).min(max);
                let spread = 1.0 + jitter.clamp(0.0, 1.0) * (2.0 * random - 1.0);
                Decision::RestartAfter(delay.mul_f64(spread.max(0.0)))
            }
        }
    }
}
