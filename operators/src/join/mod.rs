//! Joins of two streams.
//!
//! | join                                                  | pairs                                             | emits             | keeps                         |
//! |-------------------------------------------------------|---------------------------------------------------|-------------------|-------------------------------|
//! | [`join`](JoinByKey::join)                              | all records of a key                               | at once           | all of both sides, or by TTL  |
//! | [`join_of_changes`](JoinChanges::join_of_changes)      | the same, of records that may be retracted         | at once           | what is not retracted         |
//! | [`interval_join`](IntervalJoin::interval_join)         | records of a key that are near in event time       | at once           | as far as the interval reaches |
//! | [`temporal_join`](TemporalJoin::temporal_join)         | a record and the version that was valid at its time | at the watermark | the versions that may be asked for |
//! | [`broadcast_join`](BroadcastJoin::broadcast_join)      | a record and the newest entry of a small table     | at once           | the table, on every worker    |
//!
//! The two sides of a keyed join are keyed streams of one key type; each has a channel of its own, and neither waits for the
//! other. The functions that make a result of a pair get references, so that nothing is cloned but what they take.

pub mod broadcast;
pub mod by_key;
pub mod interval;
pub mod temporal;

pub use broadcast::{BroadcastJoin, BroadcastJoined};
pub use by_key::{Join, JoinByKey, JoinChanges, JoinOfChanges};
pub use interval::{IntervalJoin, IntervalJoined};
pub use temporal::{TemporalJoin, TemporalJoined};

use highwater::prelude::*;

/// A late record that is not to be joined, beside results.
fn aside<K: Key, V: Record, O: Record>(key: &K, record: V) -> Either<O, (K, V)> {
    Either::Right((key.clone(), record))
}
