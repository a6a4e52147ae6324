//! One line of text: how its bytes become a `String`, for every source that reads lines.

use super::ConnectError;

/// What to do with bytes that are not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// Refuse them.
    Strict,
    /// Put U+FFFD in their place.
    Lossy,
}

/// Cuts the line's end off, if there is one: `\n` or `\r\n`. A `\r` elsewhere belongs to the line.
pub(super) fn strip_end(line: &mut Vec<u8>) {
    if line.last() == Some(&b'\n') {
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
    }
}

/// Makes a line's bytes text. `start` is the offset of its first byte in `place`.
pub(super) fn decode(
    line: Vec<u8>,
    encoding: Encoding,
    place: &str,
    start: u64,
) -> Result<String, ConnectError> {
    match (String::from_utf8(line), encoding) {
        (Ok(text), _) => Ok(text),
        (Err(error), Encoding::Lossy) => Ok(String::from_utf8_lossy(error.as_bytes()).into_owned()),
        (Err(error), Encoding::Strict) => {
            let offset = start + error.utf8_error().valid_up_to() as u64;
            Err(ConnectError::caused(
                format!("{place} is not UTF-8 at byte {offset}: read it with `.lossy()`"),
                error.utf8_error(),
            ))
        }
    }
}

/// The error of a line that is longer than it may be.
pub(super) fn too_long(place: &str, start: u64, line_bytes_max: u64) -> ConnectError {
    ConnectError::new(format!(
        "the line at byte {start} of {place} is longer than {line_bytes_max} bytes: raise \
         `line_bytes_max`"
    ))
}
