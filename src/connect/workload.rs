//! The deterministic workload that benches and tests share: numbers made from an index, and their
//! digest.
//!
//! Everything is a function of a few integers, so that a result can be computed again by any other
//! program and compared. Arithmetic wraps around.

/// The step and finaliser of the splitmix64 generator.
///
/// ```
/// assert_eq!(highwater::connect::workload::mix(0), 0xE220_A839_7B1D_CDAF);
/// ```
#[inline]
#[must_use]
pub const fn mix(x: u64) -> u64 {
    let z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The hash of a result's fields. Their order counts, and so does their number.
///
/// The digest of a set of results is the wrapping sum of their `fold`s: it does not depend on their
/// order.
#[inline]
#[must_use]
pub fn fold<const N: usize>(fields: [u64; N]) -> u64 {
    fields.into_iter().fold(N as u64, |hash, field| mix(hash ^ field))
}

/// The key and the value of the event with index `index`.
///
/// The first `load` indices go through the keys in order, so that each of `keys` keys has state
/// when `load` is at least `keys`; later ones choose a key uniformly. The key is below `keys`, the
/// value below 2^32.
///
/// # Panics
/// If `keys` is zero.
#[inline]
#[must_use]
pub fn key_value(index: u64, keys: u64, load: u64) -> (u64, u64) {
    let hash = mix(index);
    let key = if index < load { index % keys } else { hash % keys };
    (key, mix(hash) >> 32)
}

/// Size of [`payload`]. Units: bytes.
pub const PAYLOAD_BYTES: usize = 84;

/// What makes the event with index `index` a large one: with the key and the value it has 100
/// bytes.
#[must_use]
pub fn payload(index: u64) -> [u8; PAYLOAD_BYTES] {
    let mut bytes = [0; PAYLOAD_BYTES];
    let mut word = mix(index);
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
        word = mix(word);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{fold, key_value, mix, payload};

    #[test]
    fn mix_is_splitmix64() {
        assert_eq!(mix(0), 0xE220_A839_7B1D_CDAF);
    }

    #[test]
    fn the_digest_of_the_keyed_count_is_the_published_one() {
        let mut counts = HashMap::new();
        let mut digest = 0_u64;
        for index in 0..200_000 {
            let (key, _) = key_value(index, 1_000, 0);
            let count = counts.entry(key).or_insert(0_u64);
            *count += 1;
            digest = digest.wrapping_add(fold([key, *count]));
        }
        assert_eq!(format!("{digest:016x}"), "a4199af83510e391");
    }

    #[test]
    fn the_load_goes_through_the_keys_in_order() {
        let keys: Vec<u64> = (0..6).map(|index| key_value(index, 4, 6).0).collect();
        assert_eq!(keys, [0, 1, 2, 3, 0, 1]);
    }

    #[test]
    fn a_payload_is_the_chain_of_hashes_cut_short() {
        let bytes = payload(7);
        assert_eq!(bytes[..8], mix(7).to_le_bytes());
        assert_eq!(bytes[8..16], mix(mix(7)).to_le_bytes());
        let last = (0..10).fold(mix(7), |word, _| mix(word));
        assert_eq!(bytes[80..], last.to_le_bytes()[..4]);
    }
}
