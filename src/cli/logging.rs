//! Logging to standard error.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::EnvFilter;

use super::progress;

/// How lines of the log look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How to log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Levels by target, as `tracing_subscriber::EnvFilter` reads them.
    pub filter: String,
    /// How lines look.
    pub format: LogFormat,
}

/// Begins to log as `config` says. Returns whether it did: if the program has set up `tracing`
/// itself, or this was called before, what is there stays.
pub fn start_logging(config: &LogConfig) -> bool {
    // `resolve` has checked the filter; one from elsewhere that does not parse logs what it can.
    let filter = EnvFilter::new(&config.filter);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(LogWriter::new);
    match config.format {
        LogFormat::Text => {
            let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            builder.with_ansi(!plain && io::stderr().is_terminal()).try_init().is_ok()
        }
        LogFormat::Json => builder.json().try_init().is_ok(),
    }
}

/// Says whether the filter can be understood.
pub(crate) fn check_filter(text: &str) -> Result<(), String> {
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!(
            "`{}` is not a filter ({error}): write for example `info` or `warn,highwater=debug`",
            super::units::shorten(text)
        )),
    }
}

/// Standard error, from which the progress line is cleared first, so that the two do not mix.
#[derive(Debug)]
struct LogWriter;

impl LogWriter {
    fn new() -> Self {
        Self
    }
}

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The subscriber hands over a whole line at once.
        progress::above_the_line(&mut io::stderr().lock(), bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked_before_anything_starts() {
        for good in ["info", "warn,highwater=info", "highwater::network=trace", ""] {
            assert_eq!(check_filter(good), Ok(()), "{good}");
        }
        for bad in ["highwater=loud", "a=b=c", "[[["] {
            let error = check_filter(bad).unwrap_err();
            assert!(error.contains(bad) && error.contains("for example"), "{error}");
        }
    }

    #[test]
    fn a_second_start_leaves_the_first_in_place() {
        let config = LogConfig { filter: "off".to_owned(), format: LogFormat::Json };
        start_logging(&config);
        assert!(!start_logging(&config));
        tracing::error!("filtered");
    }
}
