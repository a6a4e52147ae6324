//! Operators for Highwater, written against its public API only.
