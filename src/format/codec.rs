//! Values as bytes: postcard, which is compact, stable and documented, appended without a second buffer.

use postcard::ser_flavors::Flavor;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::FormatError;

/// Appends the bytes of `value` to `out`. On an error `out` is as before.
///
/// # Errors
/// [`FormatError::Encode`] if the value does not serialize.
pub fn encode<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<(), FormatError> {
    let before = out.len();
    postcard::serialize_with_flavor(value, Append(out)).map_err(|error| {
        out.truncate(before);
        let what = std::any::type_name::<T>().to_owned();
        FormatError::Encode { what, why: error.to_string() }
    })
}

/// Reads a value that is the whole of `bytes`.
///
/// # Errors
/// [`FormatError::Corrupt`]; bytes left over are corruption.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FormatError> {
    let (value, rest) = decode_prefix(bytes)?;
    if rest.is_empty() {
        Ok(value)
    } else {
        let what = std::any::type_name::<T>();
        let why = format!("{} bytes after the end of a {what}", rest.len());
        Err(FormatError::corrupt((bytes.len() - rest.len()) as u64, why))
    }
}

/// Reads a value from the start of `bytes`, and returns what is behind it.
///
/// # Errors
/// [`FormatError::Corrupt`]; the offset is that of the value, because the decoder tells no better one.
#[inline]
pub fn decode_prefix<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, &[u8]), FormatError> {
    postcard::take_from_bytes(bytes).map_err(|error| {
        let what = std::any::type_name::<T>();
        FormatError::corrupt(0, format!("this is not a {what}: {error}"))
    })
}

/// Reads `entries` values that are the whole of `bytes`, one after the other.
///
/// # Errors
/// [`FormatError::Corrupt`]; bytes left over are corruption.
pub fn decode_entries<T: DeserializeOwned>(
    bytes: &[u8],
    entries: u32,
    mut take: impl FnMut(T),
) -> Result<(), FormatError> {
    let mut rest = bytes;
    for _ in 0..entries {
        let (value, after) = decode_prefix(rest)
            .map_err(|error: FormatError| error.moved_by((bytes.len() - rest.len()) as u64))?;
        take(value);
        rest = after;
    }
    if rest.is_empty() {
        Ok(())
    } else {
        let at = (bytes.len() - rest.len()) as u64;
        Err(FormatError::corrupt(at, format!("{} bytes after the last entry", rest.len())))
    }
}

struct Append<'a>(&'a mut Vec<u8>);

impl Flavor for Append<'_> {
    type Output = ();

    #[inline(always)]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    #[inline(always)]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_appended_and_come_back_one_by_one() {
        let mut bytes = vec![1, 2, 3];
        encode(&("key", 7_u64), &mut bytes).unwrap();
        encode(&("other", 300_u64), &mut bytes).unwrap();
        assert_eq!(&bytes[..3], [1, 2, 3]);
        let (first, rest) = decode_prefix::<(String, u64)>(&bytes[3..]).unwrap();
        assert_eq!(first, ("key".to_owned(), 7));
        assert_eq!(decode::<(String, u64)>(rest).unwrap(), ("other".to_owned(), 300));
    }

    #[test]
    fn a_value_that_fails_to_serialize_leaves_nothing_behind() {
        struct Fails;
        impl Serialize for Fails {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("no"))
            }
        }
        let mut bytes = vec![9];
        let error = encode(&(1_u32, Fails), &mut bytes).unwrap_err();
        assert!(matches!(error, FormatError::Encode { .. }));
        assert_eq!(bytes, [9]);
    }

    #[test]
    fn bytes_left_over_are_refused_with_their_place() {
        let error = decode::<u8>(&[1, 2]).unwrap_err();
        assert!(matches!(error, FormatError::Corrupt { offset: 1, .. }));
    }

    #[test]
    fn an_announced_length_that_is_not_there_is_refused_without_allocating_it() {
        // A vector of 2^62 elements in ten bytes.
        let bytes = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, 0];
        assert!(decode::<Vec<u64>>(&bytes).is_err());
        assert!(decode::<String>(&bytes).is_err());
    }
}
