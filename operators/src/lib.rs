//! Operators for Highwater, written against its public API only: one operator a file, each an extension trait.
//!
//! | operator                                        | on            | keeps                                  |
//! |-------------------------------------------------|---------------|----------------------------------------|
//! | [`dedup`](Dedup::dedup)                          | `Stream`      | every key it has seen                  |
//! | [`dedup_within`](Dedup::dedup_within)            | `Stream`      | when records were, as far as `within` reaches |
//! | [`aggregate`](RunningAggregate::aggregate)       | `KeyedStream` | one state of the aggregate for each key |
//! | [`aggregate_changes`](RunningAggregate::aggregate_changes) | `KeyedStream` | the same                     |
//! | [`window`](KeyedWindows::window)                 | `KeyedStream` | one state of the aggregate for each key and window that is open; sliding: and pane |
//! | [`window_join`](WindowJoin::window_join)        | `KeyedStream` | the records of both sides in windows that are open |
//! | [`window_all`](AllWindows::window_all)           | `Stream`      | one state of the aggregate for each window that is open |
//! | [`join`](JoinByKey::join)                        | `KeyedStream` | all records of both sides, or by TTL   |
//! | [`join_of_changes`](JoinChanges::join_of_changes) | `KeyedStream` | what is not retracted, of both sides  |
//! | [`interval_join`](IntervalJoin::interval_join)   | `KeyedStream` | what an interval behind the watermark holds |
//! | [`temporal_join`](TemporalJoin::temporal_join)   | `KeyedStream` | the versions that may be asked for     |
//! | [`broadcast_join`](BroadcastJoin::broadcast_join) | `Stream`     | a table, on every worker               |
//! | [`aggregate_of_changes`](RetractingAggregate::aggregate_of_changes) | `KeyedStream` | what the aggregate needs to take records back |
//! | [`top`](Top::top), [`top_of_all`](TopOfAll::top_of_all) | `KeyedStream`, `Stream` | the first `n`, of each key or of all |
//! | [`top_of_changes`](TopOfChanges::top_of_changes) | `KeyedStream` | what is not retracted                  |
//! | [`sort_by_time`](SortByTime::sort_by_time)       | `KeyedStream` | what the watermark has not reached     |
//! | [`limit_rate`](LimitRate::limit_rate)            | `KeyedStream` | what it holds back                     |
//! | [`lookup_join`](LookupJoin::lookup_join), [`left_lookup_join`](LookupJoin::left_lookup_join) | `Stream` | the records under way; a cache, in no checkpoint |
//! | [`differential`](#incremental-views)             | `Stream`, `KeyedStream` | the records that are not retracted |
//! | [`detect`](Detect::detect)                       | `KeyedStream` | the partial matches of each key        |
//!
//! What aggregates and the first `n` keep of a key can be given a [time to live](TimeToLive), as that of `join`.
//!
//! All of them are stateful, so each takes a name that is unique in the job: a checkpoint finds its state by it.
//!
//! # Incremental views
//! With the cargo feature `differential`, `Differential::differential` keeps the result of any computation of differential dataflow
//! (joins, reductions, iteration) over the records of a stream of changes, as they come and go.

pub mod aggregate;
pub mod cep;
pub mod change;
pub mod dedup;
#[cfg(feature = "differential")]
pub mod differential;
mod duration;
mod few;
pub mod join;
pub mod lifetime;
pub mod lookup;
pub mod rate_limit;
pub mod retract;
pub mod sort;
pub mod top;
pub mod window;

pub use aggregate::{Aggregate, Average, Count, Max, Min, RunningAggregate, Sum, Summand};
pub use cep::{Detect, Detected, Matched, Pattern, Skip, Unfinished};
pub use change::{Change, net};
pub use dedup::Dedup;
#[cfg(feature = "differential")]
pub use differential::Differential;
pub use join::{BroadcastJoin, IntervalJoin, JoinByKey, JoinChanges, TemporalJoin};
pub use lifetime::{Expiring, TimeToLive};
pub use lookup::{LookupCache, LookupJoin};
pub use rate_limit::{LimitRate, Rate};
pub use retract::{Retract, RetractingAggregate};
pub use sort::SortByTime;
pub use top::{Top, TopOfAll, TopOfChanges};
#[cfg(feature = "time-zones")]
pub use window::NoSuchZone;
pub use window::{
    AllWindowedStream, AllWindows, KeyedWindows, Trigger, Window, WindowJoin, WindowJoined,
    WindowedStream, Windows,
};
