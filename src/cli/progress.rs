//! One line on a terminal that says how a job is doing.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::units::{short_count, short_duration};
use crate::ids::Epoch;

/// When to show the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressMode {
    /// If standard error is a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How a job is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgressSample {
    /// Records read from sources so far.
    pub records: u64,
    /// The same, in the last second or so.
    pub records_per_second: u64,
    /// How far event time is behind the clock. `None`: there is no event time yet.
    pub watermark_lag: Option<Duration>,
    /// The newest complete checkpoint, and how long it took.
    pub last_checkpoint: Option<(Epoch, Duration)>,
    /// Number of checkpoints in progress.
    pub in_progress: u32,
    /// Number of restarts of the job in this run.
    pub restarts: u32,
}

/// A line that reaches the last column makes some terminals wrap, and a wrapped line can not be
/// rewritten.
const COLUMNS_MAX: usize = 79;

/// The sample in one line of at most 79 ASCII characters; what does not fit is left out, the least
/// important first.
#[must_use]
pub fn format_progress(sample: &ProgressSample) -> String {
    let mut line = format!(
        "{} records  {}/s",
        short_count(sample.records),
        short_count(sample.records_per_second)
    );
    let mut parts = Vec::new();
    if let Some(lag) = sample.watermark_lag {
        parts.push(format!("lag {}", short_duration(lag)));
    }
    match sample.last_checkpoint {
        Some((epoch, took)) => {
            parts.push(format!("checkpoint {epoch} took {}", short_duration(took)));
        }
        None => parts.push("no checkpoint yet".to_owned()),
    }
    match sample.restarts {
        0 => {}
        1 => parts.push("1 restart".to_owned()),
        restarts => parts.push(format!("{} restarts", short_count(restarts.into()))),
    }
    if sample.in_progress > 0 {
        parts.push(format!("{} in progress", short_count(sample.in_progress.into())));
    }
    for part in parts {
        if line.len() + 2 + part.len() <= COLUMNS_MAX {
            line.push_str("  ");
            line.push_str(&part);
        }
    }
    line
}

/// Whether standard error ends in a progress line now. Whoever writes there holds the lock.
static LINE_SHOWN: Mutex<bool> = Mutex::new(false);

/// Return to the first column and clear to the end of the line.
const CLEAR: &[u8] = b"\r\x1b[K";

fn line_shown() -> MutexGuard<'static, bool> {
    // The flag is valid whoever panicked while holding it.
    LINE_SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes whole lines to standard error, in the place of the progress line, which comes back with
/// the next sample.
pub(crate) fn above_the_line(stderr: &mut dyn Write, lines: &[u8]) -> io::Result<()> {
    let mut shown = line_shown();
    if std::mem::take(&mut *shown) {
        stderr.write_all(CLEAR)?;
    }
    stderr.write_all(lines)
}

/// Rewrites one line with each sample, and clears it when dropped.
#[derive(Debug)]
pub struct ProgressPrinter<W: Write = io::Stderr> {
    /// `None`: silent.
    out: Option<W>,
}

impl ProgressPrinter {
    /// A printer to standard error; silent if `mode` says so, or is `Auto` and standard error is no
    /// terminal.
    #[must_use]
    pub fn new(mode: ProgressMode) -> Self {
        let out = io::stderr();
        let terminal = out.is_terminal();
        Self::to(out, mode, terminal)
    }
}

impl<W: Write> ProgressPrinter<W> {
    fn to(out: W, mode: ProgressMode, terminal: bool) -> Self {
        let wanted = match mode {
            ProgressMode::Auto => terminal,
            ProgressMode::Always => true,
            ProgressMode::Never => false,
        };
        Self { out: wanted.then_some(out) }
    }

    /// Whether samples are shown at all: if not, there is no need to take them.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.out.is_some()
    }

    /// Shows the sample in the place of the last one.
    pub fn show(&mut self, sample: &ProgressSample) {
        self.rewrite(&format_progress(sample));
    }

    /// Clears the line.
    pub fn clear(&mut self) {
        self.rewrite("");
    }

    fn rewrite(&mut self, line: &str) {
        let Some(out) = &mut self.out else { return };
        let mut shown = line_shown();
        if line.is_empty() && !*shown {
            return;
        }
        let written = out.write_all(&[CLEAR, line.as_bytes()].concat()).and_then(|()| out.flush());
        *shown = !line.is_empty();
        drop(shown);
        if written.is_err() {
            // Standard error is gone; a job does not end for want of a spectator.
            self.out = None;
        }
    }
}

impl<W: Write> Drop for ProgressPrinter<W> {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> ProgressSample {
        ProgressSample {
            records: 1_234_567,
            records_per_second: 120_400,
            watermark_lag: Some(Duration::from_millis(1_200)),
            last_checkpoint: Some((Epoch(12), Duration::from_millis(340))),
            in_progress: 1,
            restarts: 2,
        }
    }

    #[test]
    fn a_sample_is_one_line() {
        // The checkpoint in progress does not fit any more.
        assert_eq!(
            format_progress(&sample()),
            "1.23M records  120k/s  lag 1.2s  checkpoint 12 took 340ms  2 restarts"
        );
        assert_eq!(
            format_progress(&ProgressSample { restarts: 0, ..sample() }),
            "1.23M records  120k/s  lag 1.2s  checkpoint 12 took 340ms  1 in progress"
        );
        assert_eq!(
            format_progress(&ProgressSample::default()),
            "0 records  0/s  no checkpoint yet"
        );
    }

    #[test]
    fn the_largest_numbers_fit_in_eighty_columns() {
        for restarts in [0, 1, u32::MAX] {
            for duration in [Duration::ZERO, Duration::from_millis(59_999), Duration::MAX] {
                let line = format_progress(&ProgressSample {
                    records: u64::MAX,
                    records_per_second: u64::MAX,
                    watermark_lag: Some(duration),
                    last_checkpoint: Some((Epoch(u64::MAX), duration)),
                    in_progress: u32::MAX,
                    restarts,
                });
                assert!(line.len() < 80 && line.is_ascii(), "{line}");
            }
        }
    }

    #[test]
    fn the_line_is_rewritten_and_cleared_and_the_log_is_written_in_its_place() {
        let mut written = Vec::new();
        let mut printer = ProgressPrinter::to(&mut written, ProgressMode::Auto, true);
        assert!(printer.is_active());
        printer.show(&sample());
        printer.show(&ProgressSample::default());
        drop(printer);
        let text = String::from_utf8(written).unwrap();
        let lines: Vec<_> = text.split("\r\x1b[K").collect();
        assert_eq!(lines[1], format_progress(&sample()));
        assert_eq!(&lines[2..], ["0 records  0/s  no checkpoint yet", ""]);

        // Nothing is shown now, so the log clears nothing; then a line is, and it is cleared once.
        let mut log = Vec::new();
        above_the_line(&mut log, b"a\n").unwrap();
        let mut printer = ProgressPrinter::to(io::sink(), ProgressMode::Always, false);
        printer.show(&sample());
        above_the_line(&mut log, b"b\n").unwrap();
        above_the_line(&mut log, b"c\n").unwrap();
        assert_eq!(log, b"a\n\r\x1b[Kb\nc\n");
    }

    #[test]
    fn without_a_terminal_or_on_demand_nothing_is_written() {
        for (mode, terminal) in
            [(ProgressMode::Auto, false), (ProgressMode::Never, true), (ProgressMode::Never, false)]
        {
            let mut written = Vec::new();
            let mut printer = ProgressPrinter::to(&mut written, mode, terminal);
            assert!(!printer.is_active());
            printer.show(&sample());
            drop(printer);
            assert!(written.is_empty());
        }
    }
}
