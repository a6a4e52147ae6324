//! Durations of users, as the whole milliseconds that event time counts in.

use std::time::Duration;

/// Whole milliseconds, rounded up.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// Whole milliseconds, rounded up, from one to `most`.
pub(crate) fn some_milliseconds(duration: Duration, most: i64) -> i64 {
    i64::try_from(milliseconds(duration)).unwrap_or(most).clamp(1, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_millisecond_counts_as_a_whole_one() {
        assert_eq!(milliseconds(Duration::ZERO), 0);
        assert_eq!(milliseconds(Duration::from_nanos(1)), 1);
        assert_eq!(milliseconds(Duration::from_millis(5)), 5);
        assert_eq!(milliseconds(Duration::MAX), u64::MAX);
    }

    #[test]
    fn what_has_to_last_lasts_a_millisecond_at_least() {
        let some = [Duration::ZERO, Duration::from_micros(1500), Duration::MAX];
        assert_eq!(some.map(|duration| some_milliseconds(duration, 1 << 40)), [1, 2, 1 << 40]);
    }
}
