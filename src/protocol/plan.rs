//! Whether numbers of the configuration fit together, said before a job starts and with the
//! arithmetic.
//!
//! An **error** is a setting that contradicts another one or cannot work at all. A **warning** is a
//! setting that works, but not as its numbers suggest: the job starts, and the text says what will
//! happen instead.
//!
//! Source: Flink users set pause, interval and timeout against each other and find out in
//! production that their job does nothing but checkpoint, or restarts for ever.

use std::time::Duration;

use crate::config::{CheckpointConfig, RestartStrategy};

/// Checks the checkpoint numbers together. Returns warnings, none if all is well.
///
/// # Errors
/// A message that names the numbers and the remedy:
/// * interval, timeout, `concurrent_max`, `retained` or `writer_threads` of zero;
/// * a pause together with several checkpoints at once.
pub fn validate(config: &CheckpointConfig) -> Result<Vec<String>, String> {
    refuse_zeros(config)?;
    let CheckpointConfig { interval, timeout, min_pause, concurrent_max, .. } = config;
    if !min_pause.is_zero() && *concurrent_max > 1 {
        return Err(format!(
            "min pause {min_pause:?} and {concurrent_max} concurrent checkpoints: a pause lies \
             between the end \
             of one checkpoint and the trigger of the next, so there is never more than one; set \
             the concurrent \
             checkpoints to 1 or the pause to 0"
        ));
    }
    let mut warnings = Vec::new();
    match interval {
        Some(interval) => warn_of_interval(*interval, config, &mut warnings),
        None if !min_pause.is_zero() => warnings.push(format!(
            "min pause {min_pause:?} without an interval: no periodic checkpoint is taken, so \
             the pause has no \
             effect; set an interval or leave the pause out"
        )),
        None => {}
    }
    if config.tolerable_failures == Some(0) {
        warnings.push(format!(
            "0 tolerable failures: the first checkpoint that takes longer than {timeout:?} fails \
             the job, and the \
             replay after the restart makes the next one slower; leave the tolerance out, or \
             allow a few"
        ));
    }
    Ok(warnings)
}

fn refuse_zeros(config: &CheckpointConfig) -> Result<(), String> {
    let zero = [
        (
            config.interval.is_some_and(|interval| interval.is_zero()),
            "checkpoint interval 0: leave the interval out for a job without periodic checkpoints",
        ),
        (
            config.timeout.is_zero(),
            "checkpoint timeout 0: every checkpoint would be aborted as it begins; the default \
             is 10 minutes",
        ),
        (
            config.concurrent_max == 0,
            "0 concurrent checkpoints: none could ever begin; the default is 1",
        ),
        (
            config.retained == 0,
            "0 retained checkpoints: nothing could be restored after a failure; the default is 1",
        ),
        (
            config.writer_threads == 0,
            "0 writer threads: no snapshot could be written; the default is 1",
        ),
    ];
    match zero.into_iter().find(|(refused, _)| *refused) {
        Some((_, message)) => Err(message.to_owned()),
        None => Ok(()),
    }
}

fn warn_of_interval(interval: Duration, config: &CheckpointConfig, warnings: &mut Vec<String>) {
    let CheckpointConfig { timeout, min_pause, concurrent_max, .. } = *config;
    if min_pause > interval {
        warnings.push(format!(
            "min pause {min_pause:?} and interval {interval:?}: with a pause of {min_pause:?} at \
             least \
             {min_pause:?} lie between two triggers, so the interval of {interval:?} is never \
             met; raise the \
             interval to {min_pause:?} or lower the pause"
        ));
    } else if min_pause == interval {
        warnings.push(format!(
            "min pause {min_pause:?} and interval {interval:?}: two triggers lie the pause and \
             the duration of a \
             checkpoint apart, so the interval is only met by checkpoints that take no time; \
             raise the interval \
             or lower the pause"
        ));
    }
    // A checkpoint lives for its timeout at most, so this many fit beside each other.
    let fit = timeout.as_nanos().div_ceil(interval.as_nanos());
    if u128::from(concurrent_max) > fit {
        warnings.push(format!(
            "{concurrent_max} concurrent checkpoints, interval {interval:?} and timeout \
             {timeout:?}: a checkpoint \
             lives {timeout:?} at most and one begins every {interval:?}, so at most {fit} are \
             in progress at \
             once; lower the concurrent checkpoints to {fit}"
        ));
    }
}

/// Checks the numbers of a restart strategy together. Returns warnings, none if all is well.
///
/// # Errors
/// A message that names the numbers and the remedy, for an exponential delay that shrinks, starts
/// at zero or above its maximum, or has a jitter outside of 0.0 to 1.0; and for a failure rate over
/// no time.
pub fn validate_restart(strategy: &RestartStrategy) -> Result<Vec<String>, String> {
    match *strategy {
        RestartStrategy::None | RestartStrategy::FixedDelay { .. } => Ok(Vec::new()),
        RestartStrategy::FailureRate { failures, interval, delay } => {
            if interval.is_zero() {
                return Err("failure rate over an interval of 0: no failure would ever count; \
                give the time \
                            within which failures are counted"
                    .to_owned());
            }
            // Failures lie at least the delay apart, so the first and the last of `failures + 1`
            // lie this far apart.
            let span = delay.saturating_mul(failures);
            if failures > 0 && span > interval {
                return Ok(vec![format!(
                    "at most {failures} failures within {interval:?} with a delay of {delay:?}: \
                     {} failures take \
                     at least {failures} x {delay:?} = {span:?}, so the rate is never exceeded \
                     and the job \
                     restarts for ever; are interval and delay exchanged?",
                    u64::from(failures) + 1
                )]);
            }
            Ok(Vec::new())
        }
        RestartStrategy::ExponentialDelay { initial, max, multiplier, jitter, .. } => {
            if initial.is_zero() {
                return Err("exponential delay from 0: it would stay 0 and the job would restart \
                without a \
                            pause; give a first delay"
                    .to_owned());
            }
            if initial > max {
                return Err(format!(
                    "exponential delay from {initial:?} to {max:?}: the first delay is above the \
                     largest; \
                     exchange them"
                ));
            }
            if !(multiplier >= 1.0 && multiplier.is_finite()) {
                return Err(format!(
                    "exponential delay with multiplier {multiplier}: the delay must not shrink; \
                     give 1.0 or more"
                ));
            }
            if !(0.0..=1.0).contains(&jitter) {
                return Err(format!(
                    "exponential delay with jitter {jitter}: the jitter is a part of the delay; \
                     give 0.0 to 1.0"
                ));
            }
            Ok(Vec::new())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn with(change: impl FnOnce(&mut CheckpointConfig)) -> Result<Vec<String>, String> {
        let mut config = CheckpointConfig::default();
        change(&mut config);
        validate(&config)
    }

    #[test]
    fn the_defaults_raise_no_warning() {
        assert_eq!(with(|_| {}), Ok(vec![]));
        assert_eq!(validate_restart(&RestartStrategy::default()), Ok(vec![]));
    }

    #[test]
    fn numbers_that_cannot_work_are_refused_with_a_remedy() {
        for (refused, word) in [
            (with(|c| c.interval = Some(Duration::ZERO)), "interval"),
            (with(|c| c.timeout = Duration::ZERO), "timeout"),
            (with(|c| c.concurrent_max = 0), "concurrent"),
            (with(|c| c.retained = 0), "retained"),
            (with(|c| c.writer_threads = 0), "writer"),
        ] {
            let message = refused.unwrap_err();
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn a_pause_with_several_checkpoints_at_once_is_refused() {
        let message = with(|c| {
            c.min_pause = SECOND;
            c.concurrent_max = 3;
        })
        .unwrap_err();
        assert!(message.contains("never more than one"), "{message}");
    }

    #[test]
    fn a_pause_that_hides_the_interval_is_said_with_the_arithmetic() {
        let warnings = with(|c| {
            c.min_pause = 10 * SECOND;
            c.interval = Some(5 * SECOND);
        });
        assert_eq!(
            warnings,
            Ok(vec![
                "min pause 10s and interval 5s: with a pause of 10s at least 10s lie between two \
                 triggers, so \
                 the interval of 5s is never met; raise the interval to 10s or lower the pause"
                    .to_owned()
            ])
        );
        let equal = with(|c| c.min_pause = 10 * SECOND).unwrap();
        assert!(equal[0].contains("take no time"), "{equal:?}");
        let no_interval = with(|c| {
            c.min_pause = SECOND;
            c.interval = None;
        });
        assert!(no_interval.unwrap()[0].contains("no effect"));
    }

    #[test]
    fn more_checkpoints_at_once_than_the_timeout_leaves_room_for_are_said() {
        let config = |timeout: u64| {
            with(|c| {
                c.concurrent_max = 3;
                c.timeout = Duration::from_secs(timeout);
            })
        };
        assert_eq!(config(21), Ok(vec![]));
        let warnings = config(20).unwrap();
        assert!(warnings[0].contains("at most 2 are in progress"), "{warnings:?}");
    }

    #[test]
    fn no_tolerance_is_said_to_turn_a_slow_checkpoint_into_a_restart() {
        assert!(with(|c| c.tolerable_failures = Some(0)).unwrap()[0].contains("fails the job"));
        assert_eq!(with(|c| c.tolerable_failures = Some(1)), Ok(vec![]));
    }

    #[test]
    fn a_failure_rate_that_the_delay_makes_unreachable_is_said() {
        let rate = |interval: u64, delay: u64| {
            validate_restart(&RestartStrategy::FailureRate {
                failures: 3,
                interval: Duration::from_secs(interval),
                delay: Duration::from_secs(delay),
            })
        };
        assert_eq!(rate(300, 1), Ok(vec![]));
        let warnings = rate(1, 300).unwrap();
        assert!(warnings[0].contains("3 x 300s = 900s"), "{warnings:?}");
        assert!(rate(0, 1).is_err());
    }

    #[test]
    fn an_exponential_delay_that_does_not_grow_is_refused() {
        let check = |initial: u64, multiplier: f64, jitter: f64| {
            validate_restart(&RestartStrategy::ExponentialDelay {
                initial: Duration::from_secs(initial),
                max: Duration::from_secs(60),
                multiplier,
                jitter,
                reset_after: Duration::from_secs(3600),
            })
        };
        assert_eq!(check(1, 1.5, 0.1), Ok(vec![]));
        for refused in [
            check(0, 1.5, 0.1),
            check(61, 1.5, 0.1),
            check(1, 0.5, 0.1),
            check(1, f64::NAN, 0.1),
            check(1, f64::INFINITY, 0.1),
            check(1, 1.5, 1.5),
            check(1, 1.5, f64::NAN),
        ] {
            assert!(refused.is_err());
        }
    }
}
