//! Days where people live.

use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Timestamp, ToSpan};

use crate::window::{Window, Windows};

/// There is no such time zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoSuchZone(String);

impl std::fmt::Display for NoSuchZone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "there is no time zone {:?}; zones are named like Europe/Berlin", self.0)
    }
}

impl std::error::Error for NoSuchZone {}

impl Windows {
    /// Days from midnight to midnight in a time zone, such as `Europe/Berlin`: of 23 and of 25 hours where clocks are set. Only with
    /// the cargo feature `time-zones`.
    ///
    /// Zones are those of the table that this program was built with, so that windows are the same on every machine. A later
    /// version may know other rules: a job that goes on with it has its windows by those.
    ///
    /// # Errors
    /// [`NoSuchZone`] if the name is of none.
    pub fn days(zone: &str) -> Result<Self, NoSuchZone> {
        let known = TimeZoneDatabase::bundled().get(zone);
        let known = known.map_err(|_| NoSuchZone(zone.to_owned()))?;
        Ok(Self::calendar(move |time| day(&known, time)))
    }
}

const DAY_MS: i64 = 86_400_000;

/// The day of a time. Times that are in no calendar have days of 24 hours.
fn day(zone: &TimeZone, time: i64) -> Window {
    let known = || {
        let now = Timestamp::from_millisecond(time).ok()?.to_zoned(zone.clone());
        let start = now.start_of_day().ok()?;
        let end = start.checked_add(1.day()).ok()?.start_of_day().ok()?;
        let [start, end] = [start, end].map(|at| at.timestamp().as_millisecond());
        Some(Window { start, end })
    };
    known().unwrap_or_else(|| {
        let start = time.saturating_sub(time.rem_euclid(DAY_MS));
        Window { start, end: start.saturating_add(DAY_MS) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_as_many_hours_as_where_clocks_are_set() {
        let zone = TimeZoneDatabase::bundled().get("Europe/Berlin").unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap().as_millisecond();
        let hours = |text| {
            let time = at(text);
            let window = day(&zone, time);
            assert!((window.start..window.end).contains(&time));
            // Days are one behind the other.
            assert_eq!(day(&zone, window.end).start, window.end);
            assert_eq!(day(&zone, window.start - 1).end, window.start);
            (window.end - window.start) / 3_600_000
        };
        assert_eq!(hours("2026-03-29T10:00:00Z"), 23);
        assert_eq!(hours("2026-07-01T22:30:00Z"), 24);
        assert_eq!(hours("2026-10-25T00:30:00Z"), 25);
        assert_eq!(day(&zone, at("2026-07-01T22:30:00Z")).start, at("2026-07-01T22:00:00Z"));
    }

    #[test]
    fn times_beyond_all_calendars_have_days_too() {
        let zone = TimeZoneDatabase::bundled().get("Asia/Tokyo").unwrap();
        for time in [i64::MIN + DAY_MS, i64::MAX - 2 * DAY_MS] {
            let window = day(&zone, time);
            assert!((window.start..window.end).contains(&time), "{time}: {window:?}");
        }
    }

    #[test]
    fn a_zone_that_is_none_is_refused_by_name() {
        let refused = Windows::days("Middle-earth/Shire").unwrap_err();
        assert!(refused.to_string().contains("Middle-earth/Shire"), "{refused}");
    }
}
