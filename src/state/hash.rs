//! The stable hash of keys.
