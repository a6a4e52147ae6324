//! Durations, sizes and counts as people write and read them.
//!
//! Parsing is exact and total: any text in, a value or a reason out. `format_duration` and
//! `format_size` give a text that parses to the same value; the `short_*` functions round, for
//! tables and progress lines.

use std::time::Duration;

/// Units of time with their nanoseconds, the largest first.
const TIME_UNITS: [(&[&str], u64); 7] = [
    (&["d", "day", "days"], 86_400_000_000_000),
    (&["h", "hr", "hour", "hours"], 3_600_000_000_000),
    (&["m", "min", "mins", "minute", "minutes"], 60_000_000_000),
    (&["s", "sec", "secs", "second", "seconds"], 1_000_000_000),
    (&["ms", "msec", "millis"], 1_000_000),
    (&["us", "µs", "μs", "usec", "micros"], 1_000),
    (&["ns", "nsec", "nanos"], 1),
];

/// Units of size, in lower case, with their bytes. A bare `k` is 1024, as `dd` and `sort` have it.
const SIZE_UNITS: [(&[&str], u64); 9] = [
    (&["", "b"], 1),
    (&["k", "ki", "kib"], 1 << 10),
    (&["m", "mi", "mib"], 1 << 20),
    (&["g", "gi", "gib"], 1 << 30),
    (&["t", "ti", "tib"], 1 << 40),
    (&["kb"], 1_000),
    (&["mb"], 1_000_000),
    (&["gb"], 1_000_000_000),
    (&["tb"], 1_000_000_000_000),
];

/// Reads `200ms`, `1s`, `1.5h`, `1m30s` or `10 min`: numbers with units, the larger units first.
/// `0` needs none.
///
/// # Errors
/// A sentence that quotes the text and says what would be right.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let example = "write for example `200ms`, `10s` or `1m30s`";
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(format!("a duration is missing: {example}"));
    }
    let mut total: u64 = 0;
    let mut larger_units = TIME_UNITS.len();
    let mut first = true;
    while !rest.is_empty() {
        let (number, after) = split_number(rest);
        let after = after.trim_start();
        let unit_end = after.find(|c: char| !c.is_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        rest = after.trim_start();
        if number.is_empty() {
            return Err(format!("`{}` is not a duration: {example}", shorten(text)));
        }
        if unit.is_empty() {
            return Err(format!("`{}` has no unit of time: {example}", shorten(text)));
        }
        let Some(index) = TIME_UNITS.iter().position(|(names, _)| names.contains(&unit)) else {
            let text = shorten(text);
            return Err(format!(
                "`{}` in `{text}` is not a unit of time: {example}",
                shorten(unit)
            ));
        };
        if !first && index <= larger_units {
            let text = shorten(text);
            return Err(format!("`{text}` is not a duration: put larger units first, each once"));
        }
        (first, larger_units) = (false, index);
        let part = scale(number, TIME_UNITS[index].1)
            .ok_or_else(|| format!("`{}` is too long or too fine a duration", shorten(text)))?;
        total = total
            .checked_add(part)
            .ok_or_else(|| format!("`{}` is too long a duration", shorten(text)))?;
    }
    Ok(Duration::from_nanos(total))
}

/// Reads `4096`, `64k`, `32MiB` or `1.5 GB`. `k` and `KiB` are 1024 bytes, `kB` is 1000, in any
/// case of letters.
///
/// # Errors
/// A sentence that quotes the text and says what would be right.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || {
        let text = shorten(text);
        format!("`{text}` is not a size: write for example `4096`, `64KiB` or `32MiB`")
    };
    let (number, unit) = split_number(text.trim());
    if number.is_empty() {
        return Err(wrong());
    }
    let unit = unit.trim().to_ascii_lowercase();
    let known = SIZE_UNITS.iter().find(|(names, _)| names.contains(&unit.as_str()));
    let (_, factor) = known.ok_or_else(wrong)?;
    scale(number, *factor)
        .ok_or_else(|| format!("`{}` is too large or not a whole number of bytes", shorten(text)))
}

/// The duration as [`parse_duration`] reads it, without loss up to 584 years; longer ones are cut
/// to that.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (names, nanos) in TIME_UNITS {
        if rest >= nanos {
            text.push_str(&format!("{}{}", rest / nanos, names[0]));
            rest %= nanos;
        }
    }
    text
}

/// The size as [`parse_size`] reads it, without loss.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    let units = [("TiB", 1_u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let fits = units.iter().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor));
    match fits {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => bytes.to_string(),
    }
}

/// A duration in at most six characters, rounded down: `340us`, `1.2s`, `3h05m`.
#[must_use]
pub fn short_duration(duration: Duration) -> String {
    let (seconds, millis) = (duration.as_secs(), duration.as_millis());
    match seconds {
        0 if millis == 0 => format!("{}us", duration.as_micros()),
        0 => format!("{millis}ms"),
        1..60 => format!("{seconds}.{}s", duration.subsec_millis() / 100),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ if seconds / 86_400 > 99_999 => ">9999d".to_owned(),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A size in at most eight characters, rounded down: `512 B`, `1.2 MiB`.
#[must_use]
pub fn short_size(bytes: u64) -> String {
    let mut shown = format!("{bytes} B");
    for (unit, shift) in
        [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("PiB", 50), ("EiB", 60)]
    {
        if bytes >> shift > 0 {
            let whole = bytes >> shift;
            let tenth = ((u128::from(bytes) * 10) >> shift) % 10;
            shown = if whole < 100 {
                format!("{whole}.{tenth} {unit}")
            } else {
                format!("{whole} {unit}")
            };
        }
    }
    shown
}

/// A count in at most five characters, rounded down: `999`, `12.3k`, `1.23M`.
#[must_use]
pub fn short_count(count: u64) -> String {
    let mut shown = count.to_string();
    let mut factor: u64 = 1;
    for unit in ["k", "M", "G", "T", "P", "E"] {
        factor *= 1_000;
        if count < factor {
            break;
        }
        let (whole, hundredths) = (count / factor, count % factor / (factor / 100).max(1));
        shown = match whole {
            0..10 => format!("{whole}.{hundredths:02}{unit}"),
            10..100 => format!("{whole}.{}{unit}", hundredths / 10),
            _ => format!("{whole}{unit}"),
        };
    }
    shown
}

/// Splits leading digits, with at most one decimal point between digits, from what follows.
fn split_number(text: &str) -> (&str, &str) {
    let digits = |from: usize| {
        let tail = &text[from..];
        from + tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len())
    };
    let whole = digits(0);
    let mut end = whole;
    if whole > 0 && text[whole..].starts_with('.') {
        let fraction = digits(whole + 1);
        if fraction > whole + 1 {
            end = fraction;
        }
    }
    text.split_at(end)
}

/// `number * factor`, if that is whole and fits.
fn scale(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u64 = whole.parse().ok()?;
    let mut total = u128::from(whole) * u128::from(factor);
    let fraction = fraction.trim_end_matches('0');
    if !fraction.is_empty() {
        let one = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let scaled = fraction.parse::<u128>().ok()?.checked_mul(u128::from(factor))?;
        if !scaled.is_multiple_of(one) {
            return None;
        }
        total += scaled / one;
    }
    u64::try_from(total).ok()
}

/// The text, cut to a length that fits an error message.
pub(crate) fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(80).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::test_support::random_text;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, millis) in [
            ("0", 0),
            ("0s", 0),
            ("200ms", 200),
            ("1s", 1_000),
            ("1.5s", 1_500),
            ("1m30s", 90_000),
            ("1m 30s", 90_000),
            (" 10 min ", 600_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
            ("5000us", 5),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_duration_is_refused_with_an_example() {
        for (text, part) in [
            ("", "missing"),
            ("10", "no unit"),
            ("1m30", "no unit"),
            ("s", "not a duration"),
            ("-1s", "not a duration"),
            ("1.s", "no unit"),
            ("10 parsecs", "`parsecs`"),
            ("30s1m", "larger units first"),
            ("1s1s", "larger units first"),
            ("0.5ns", "too fine"),
            ("99999999999999999999s", "too long"),
            ("200000d200000d", "larger units first"),
            ("213503d24h", "too long"),
        ] {
            let error = parse_duration(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_are_read_with_binary_and_decimal_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64k", 65_536),
            ("64KiB", 65_536),
            ("64kB", 64_000),
            ("32MiB", 32 << 20),
            ("1.5 GiB", 3 << 29),
            ("1t", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "k", "-1", "1.5", "1x", "1 k k", "99999999t", "0.0001k"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn no_text_makes_the_parsers_panic_and_what_they_accept_comes_back_the_same() {
        let mut accepted = (0, 0);
        for seed in 0..100_000 {
            let text = random_text(seed);
            if let Ok(duration) = parse_duration(&text) {
                assert_eq!(parse_duration(&format_duration(duration)), Ok(duration), "{text}");
                let _ = short_duration(duration);
                accepted.0 += 1;
            }
            if let Ok(bytes) = parse_size(&text) {
                assert_eq!(parse_size(&format_size(bytes)), Ok(bytes), "{text}");
                let _ = short_size(bytes);
                accepted.1 += 1;
            }
        }
        assert!(accepted.0 > 1_000 && accepted.1 > 1_000, "{accepted:?}");
    }

    #[test]
    fn short_forms_stay_short() {
        for shift in 0..64 {
            for n in [1_u64 << shift, (1_u64 << shift) - 1, u64::MAX >> shift] {
                assert!(short_count(n).len() <= 5, "{}", short_count(n));
                assert!(short_size(n).len() <= 8, "{}", short_size(n));
                for duration in [Duration::from_nanos(n), Duration::from_secs(n)] {
                    let short = short_duration(duration);
                    assert!(short.len() <= 6, "{short}");
                }
            }
        }
        assert_eq!(short_count(1_234_567), "1.23M");
        assert_eq!(short_count(12_345), "12.3k");
        assert_eq!(short_size(1_300_000), "1.2 MiB");
        assert_eq!(short_duration(Duration::from_millis(1_290)), "1.2s");
        assert_eq!(short_duration(Duration::from_secs(11_100)), "3h05m");
    }
}
