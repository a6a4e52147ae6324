//! Lines of a web server's log, in the common log format.

use serde::{Deserialize, Serialize};

/// A request that was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hit {
    /// When it came: milliseconds since 1970.
    pub at: i64,
    /// Who asked.
    pub client: String,
    /// What for.
    pub path: String,
}

impl Hit {
    /// Reads `192.0.2.7 - - [21/Nov/2026:22:04:26 +0000] "GET /index.html HTTP/1.1" 200 2326`. `None`: that is not such a line.
    pub fn parse(line: &str) -> Option<Self> {
        let at = time(line)?;
        let client = line.split(' ').next()?.to_owned();
        let request = line.split('"').nth(1)?;
        let path = request.split(' ').nth(1)?.to_owned();
        Some(Self { at, client, path })
    }
}

/// When a line says that its request came, in milliseconds since 1970.
pub fn time(line: &str) -> Option<i64> {
    let stamp = line.split_once('[')?.1.split_once(']')?.0;
    let (moment, zone) = stamp.split_once(' ')?;
    let mut parts = moment.split(['/', ':']);
    let number = |part: Option<&str>| part?.parse::<i64>().ok();
    let day = number(parts.next())?;
    let month = MONTHS.iter().position(|month| Some(*month) == parts.clone().next())? as i64;
    let mut rest = parts.skip(1);
    let [year, hour, minute, second] =
        [number(rest.next())?, number(rest.next())?, number(rest.next())?, number(rest.next())?];
    let zone: i64 = zone.parse().ok()?;
    let minutes = (days(year, month, day) * 24 + hour - zone / 100) * 60 + minute - zone % 100;
    Some((minutes * 60 + second) * 1000)
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Days from 1970 to a date; months count from 0. Years are taken to begin in March, so that the day of a leap year comes last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month < 2 { year - 1 } else { year };
    let month = (month + 10) % 12;
    let in_year = (153 * month + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + in_year
        - 719_468
}
