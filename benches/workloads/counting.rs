//! What both sides of the comparison do: the events, the digest, and the digests that are published.

use highwater::connect::workload;
use serde_json::Value;

use crate::Measured;

/// Results of the keyed count that were computed by other programs: records, keys, digest. Nothing is loaded.
const PUBLISHED: [(u64, u64, &str); 13] = [
    (200_000, 1_000, "a4199af83510e391"),
    (2_000_000, 1_000, "9ff1b830f2f59c32"),
    (5_600_000, 1_000, "2fee773a98b8de26"),
    (8_000_000, 1_000, "bcff8807dd3eef0c"),
    (49_000_000, 1_000, "3e44f934753bb1b2"),
    (120_000_000, 1_000, "c432d72a2363b713"),
    (150_000_000, 1_000, "389234992c342cb4"),
    (2_800_000, 1_000_000, "193629d77dc6ae9b"),
    (4_000_000, 1_000_000, "c7e37aaff6d2bc5c"),
    (17_500_000, 1_000_000, "4b8e7295f9109946"),
    (28_000_000, 1_000_000, "710b8bf1d875ef15"),
    (40_000_000, 1_000_000, "396a53e7a6a49ea0"),
    (50_000_000, 1_000_000, "7626096a31d0b46d"),
];

/// The event with that index.
#[inline]
pub fn event(index: u64, keys: u64, load: u64) -> (u64, u64) {
    workload::key_value(index, keys, load)
}

/// What a result adds to the digest. The sum depends on how workers interleave, so it is not in it.
#[inline]
pub fn digest(result: &(u64, u64, u64)) -> u64 {
    workload::fold([result.0, result.1])
}

/// Takes one event into the state of its key.
#[inline]
pub fn count(state: &mut (u64, u64), value: u64) {
    state.0 += 1;
    state.1 = state.1.wrapping_add(value);
}

/// Checks a report against the number of records, and against the published digest if there is one.
pub fn checked(report: Value) -> Measured {
    let parameters = &report["parameters"];
    let number = |field: &str| parameters[field].as_u64().unwrap_or(0);
    let (records, keys) = (number("records"), number("keys"));
    if report["results"].as_u64() != Some(records) {
        return Err(format!("{records} records gave {} results", report["results"]));
    }
    let known =
        PUBLISHED.iter().find(|row| row.0 == records && row.1 == keys && number("load") == 0);
    match known {
        Some((_, _, digest)) if report["digest"] != *digest => Err(format!(
            "{records} records of {keys} keys gave the digest {}, not {digest}",
            report["digest"]
        )),
        _ => Ok(report),
    }
}
