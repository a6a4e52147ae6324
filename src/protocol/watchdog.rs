//! Says when a phase of a checkpoint takes so long that somebody should hear of it.
//!
//! # Contract
//! It is told, again and again, what is being waited for and since when. Whatever has been waited for longer than
//! `slow_after` is reported, and reported again each time the wait has doubled. What is not waited for any more is
//! forgotten: the same wait later is a new one. It never ends anything; the checkpoint's timeout does.

use std::collections::BTreeMap;
use std::time::Duration;

/// Reports waits of kind `K` that are too long.
#[derive(Debug)]
pub struct Watchdog<K> {
    slow_after: Option<Duration>,
    /// When a wait is reported next, counted from its beginning.
    next: BTreeMap<K, Duration>,
}

impl<K: Ord + Clone> Watchdog<K> {
    /// A watchdog that finds waits long from `slow_after` on; `None`: never.
    #[must_use]
    pub fn new(slow_after: Option<Duration>) -> Self {
        Self { slow_after, next: BTreeMap::new() }
    }

    /// Takes in everything that is being waited for, each with the time since when. Returns what is to be reported
    /// now, with how long it has been waited for.
    pub fn check(
        &mut self,
        now: Duration,
        waits: impl IntoIterator<Item = (K, Duration)>,
    ) -> Vec<(K, Duration)> {
        let Some(slow_after) = self.slow_after else { return Vec::new() };
        let mut before = std::mem::take(&mut self.next);
        let mut reports = Vec::new();
        for (wait, since) in waits {
            let waited = now.saturating_sub(since);
            let mut due = before.remove(&wait).unwrap_or(slow_after);
            if waited >= due {
                while waited >= due {
                    due = due.saturating_mul(2).max(Duration::from_nanos(1));
                }
                reports.push((wait.clone(), waited));
            }
            self.next.insert(wait, due);
        }
        reports
    }
}

#[cfg(test)]
mod tests {
    use super::Watchdog;
    use std::time::Duration;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_wait_is_reported_when_it_is_long_and_each_time_it_has_doubled() {
        let mut watchdog = Watchdog::new(Some(seconds(10)));
        let reported: Vec<u64> = (100..200)
            .filter(|now| !watchdog.check(seconds(*now), [("a", seconds(100))]).is_empty())
            .collect();
        assert_eq!(reported, [110, 120, 140, 180]);
    }

    #[test]
    fn a_wait_that_was_over_begins_anew() {
        let mut watchdog = Watchdog::new(Some(seconds(10)));
        assert_eq!(watchdog.check(seconds(10), [("a", seconds(0))]), [("a", seconds(10))]);
        assert_eq!(watchdog.check(seconds(11), [("b", seconds(0))]), [("b", seconds(11))]);
        assert_eq!(watchdog.check(seconds(30), [("a", seconds(25))]), []);
        assert_eq!(watchdog.check(seconds(35), [("a", seconds(25))]), [("a", seconds(10))]);
    }

    #[test]
    fn no_wait_is_long_if_none_is_to_be() {
        assert_eq!(Watchdog::new(None).check(seconds(1 << 40), [("a", seconds(0))]), []);
    }
}
