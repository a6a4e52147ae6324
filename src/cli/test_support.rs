//! Texts for the tests of this room.

/// A text drawn from `seed`: half of them from pieces that durations and sizes are made of, half
/// from anything.
pub(crate) fn random_text(seed: u64) -> String {
    const PIECES: [&str; 24] = [
        "0", "1", "7", "10", "99", "1.5", ".", "-", " ", "s", "ms", "m", "min", "h", "d", "us",
        "ns", "k", "KiB", "MB", "g", "=", "\"", "µs",
    ];
    // SplitMix64, so that the texts are the same on every machine.
    let mut state = seed;
    let mut draw = move |below: u64| {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below
    };
    let length = draw(7);
    let from_pieces = seed.is_multiple_of(2);
    (0..length)
        .map(|_| {
            if from_pieces {
                let index = usize::try_from(draw(PIECES.len() as u64)).unwrap();
                PIECES[index].to_owned()
            } else {
                let code = u32::try_from(draw(0x11_0000)).unwrap();
                char::from_u32(code).unwrap_or('\u{0}').to_string()
            }
        })
        .collect()
}
