//! Identities. Each is a newtype, so that an epoch is never passed where an attempt is meant.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// Returns the number after this one.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }

            /// Returns the number before this one; that of zero is zero.
            #[must_use]
            pub const fn before(self) -> Self {
                Self(self.0.saturating_sub(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// Everything between barrier *n-1* and barrier *n*. Starts at 1; never repeats in a job's life.
    Epoch
}
number! {
    /// One run of a job between restarts. Starts at 1; claimed in storage, so that a later one fences the earlier.
    Attempt
}
number! {
    /// One history of a job: a restore starts a new one. Sink transactions are named by it.
    ///
    /// It is the number of the attempt that did the restore, so it never repeats either.
    Lineage
}

/// A checkpoint is known by the epoch that it closes.
pub type CheckpointId = Epoch;

/// The smallest unit of keyed state that rescaling moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyGroup(pub u16);

impl fmt::Display for KeyGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A name given by the user: of a job, an operator or a state.
///
/// Shape: 1 to 128 characters of `A-Z a-z 0-9 . _ -`, the first one a letter, a digit or `_`. So a name is
/// safe as one path component and as one command-line word.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is not a [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what:?} is not a name: use 1 to 128 letters, digits, '.', '_' or '-', starting with a letter, a digit or '_'"
)]
pub struct InvalidName {
    /// The refused text, shortened to 160 characters.
    pub what: String,
}

impl Name {
    /// Checks `text` and makes it a name.
    ///
    /// # Errors
    /// [`InvalidName`] if the text has another shape than the type's documentation says.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
        let text = text.into();
        let valid_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let valid_first = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let valid = (1..=128).contains(&text.len())
            && text.starts_with(valid_first)
            && text.chars().all(valid_char);
        if valid {
            Ok(Self(text))
        } else {
            Err(InvalidName { what: text.chars().take(160).collect() })
        }
    }

    /// The text of the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        Self::new(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

/// A range of stable hashes of keys: both ends are in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HashRange {
    /// The least hash.
    pub first: u64,
    /// The greatest hash, at least as great as the least.
    pub last: u64,
}

impl HashRange {
    /// All hashes.
    pub const ALL: Self = Self { first: 0, last: u64::MAX };

    /// Whether the hash is in the range.
    #[must_use]
    pub fn contains(&self, hash: u64) -> bool {
        (self.first..=self.last).contains(&hash)
    }
}

#[cfg(test)]
mod tests {
    use super::Name;

    #[test]
    fn names_that_could_leave_their_directory_or_look_like_flags_are_refused() {
        for bad in ["", ".", "..", "-n", ".hidden", "a/b", "a\\b", "a b", "%2e%2e", "é", "a\0b"] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
        assert!(Name::new("x".repeat(129)).is_err());
        for good in ["count", "Word-Count.2", "_x", "7"] {
            assert_eq!(Name::new(good).map(String::from).as_deref(), Ok(good));
        }
    }
}
