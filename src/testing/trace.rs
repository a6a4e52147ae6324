//! What happened in a simulation, as a number by which two runs are compared, and as text for people.

use std::hash::Hasher;

use rustc_hash::FxHasher;

/// Lines of text that are kept: the last ones.
const LINES_MAX: usize = 40_000;

/// Everything that happened, in order.
#[derive(Clone)]
pub(super) struct Trace {
    hasher: FxHasher,
    /// `None` unless somebody wants to read it.
    lines: Option<Vec<String>>,
}

impl Trace {
    pub(super) fn new() -> Self {
        let wanted = std::env::var_os("HIGHWATER_TRACE").is_some();
        Self { hasher: FxHasher::default(), lines: wanted.then(Vec::new) }
    }

    /// Adds numbers.
    pub(super) fn event(&mut self, kind: u64, numbers: &[u64]) {
        self.hasher.write_u64(kind);
        for number in numbers {
            self.hasher.write_u64(*number);
        }
    }

    /// Adds a text.
    pub(super) fn text(&mut self, text: &str) {
        self.hasher.write(text.as_bytes());
    }

    /// Adds a line for people.
    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            if lines.len() >= 2 * LINES_MAX {
                lines.drain(..LINES_MAX);
            }
            lines.push(line());
        }
    }

    /// The number that stands for all events.
    pub(super) fn digest(&self) -> u64 {
        self.hasher.finish()
    }

    pub(super) fn lines(&self) -> &[String] {
        self.lines.as_deref().unwrap_or_default()
    }
}
