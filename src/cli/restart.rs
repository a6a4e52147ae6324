//! The restart strategy, put together from its options.

use std::time::Duration;

use super::error::CliError;
use super::resolve::{Reader, number};
use super::units::parse_duration;
use crate::config::RestartStrategy;

/// Each strategy with the options that it has.
const STRATEGIES: [(&str, &[&str]); 4] = [
    ("none", &[]),
    ("fixed-delay", &["restart-attempts", "restart-delay"]),
    ("failure-rate", &["restart-failures", "restart-interval", "restart-delay"]),
    (
        "exponential-delay",
        &[
            "restart-delay",
            "restart-delay-max",
            "restart-multiplier",
            "restart-jitter",
            "restart-reset",
        ],
    ),
];

/// Whether the setting with that flag means something under that strategy.
pub(crate) fn applies(flag: &str, strategy: &str) -> bool {
    STRATEGIES.iter().any(|(name, options)| *name == strategy && options.contains(&flag))
}

/// Reads the strategy and its options.
///
/// An option of another strategy is an error, unless the strategy was chosen in a layer above it: a
/// flag `--restart none` may well overrule a file that describes another.
pub(crate) fn read(reader: &Reader<'_>) -> Result<RestartStrategy, CliError> {
    let strategy = reader.choice("restart", &STRATEGIES.map(|(name, _)| (name, name)))?;
    refuse_options_of_others(reader, strategy)?;
    Ok(match strategy {
        "none" => RestartStrategy::None,
        "fixed-delay" => RestartStrategy::FixedDelay {
            attempts: at_least_one(reader, "restart-attempts")?,
            delay: reader.value("restart-delay", parse_duration)?,
        },
        "failure-rate" => RestartStrategy::FailureRate {
            failures: at_least_one(reader, "restart-failures")?,
            interval: reader.positive("restart-interval")?,
            delay: reader.value("restart-delay", parse_duration)?,
        },
        _ => exponential(reader)?,
    })
}

fn exponential(reader: &Reader<'_>) -> Result<RestartStrategy, CliError> {
    let initial = reader.positive("restart-delay")?;
    let max: Duration = reader.value("restart-delay-max", parse_duration)?;
    if max < initial {
        let problem =
            "it is shorter than the first delay (--restart-delay): make it as long or longer";
        return Err(reader.error("restart-delay-max", problem.to_owned()));
    }
    let multiplier = ratio(reader, "restart-multiplier", 1.0, 1000.0)?;
    let jitter = ratio(reader, "restart-jitter", 0.0, 1.0)?;
    let reset_after = reader.positive("restart-reset")?;
    Ok(RestartStrategy::ExponentialDelay { initial, max, multiplier, jitter, reset_after })
}

fn refuse_options_of_others(reader: &Reader<'_>, strategy: &str) -> Result<(), CliError> {
    let chosen = reader.origin("restart");
    for flag in STRATEGIES.iter().flat_map(|(_, options)| *options) {
        let overruled = chosen < reader.origin(flag);
        if applies(flag, strategy) || overruled || !reader.is_given(flag) {
            continue;
        }
        let others: Vec<_> = STRATEGIES
            .iter()
            .filter(|(name, _)| applies(flag, name))
            .map(|(name, _)| *name)
            .collect();
        let problem = format!(
            "it belongs to the restart strategy {}, but the strategy is {strategy}: \
             choose the one with --restart or leave the other out",
            others.join(" or ")
        );
        return Err(reader.error(flag, problem));
    }
    Ok(())
}

fn at_least_one(reader: &Reader<'_>, flag: &str) -> Result<u32, CliError> {
    let count: u32 = reader.value(flag, number)?;
    if count == 0 {
        let problem = "0 would never restart: say so with `--restart none`, or give 1 or more";
        return Err(reader.error(flag, problem.to_owned()));
    }
    Ok(count)
}

fn ratio(reader: &Reader<'_>, flag: &str, min: f64, max: f64) -> Result<f64, CliError> {
    reader.value(flag, |text| {
        let value = text.parse::<f64>().ok().filter(|value| (min..=max).contains(value));
        value.ok_or_else(|| {
            let text = super::units::shorten(text);
            format!(
                "`{text}` is not a number from {min} to {max}: write for example `{}`",
                min.max(0.1)
            )
        })
    })
}
