//! Operators for Highwater, written against its public API only: one operator a file, each an extension trait.
//!
//! | operator                                        | on            | keeps                                  |
//! |-------------------------------------------------|---------------|----------------------------------------|
//! | [`dedup`](Dedup::dedup)                          | `Stream`      | every key it has seen                  |
//! | [`dedup_within`](Dedup::dedup_within)            | `Stream`      | every key, and when its records were   |
//! | [`aggregate`](RunningAggregate::aggregate)       | `KeyedStream` | one state of the aggregate for each key |
//! | [`aggregate_changes`](RunningAggregate::aggregate_changes) | `KeyedStream` | the same                     |
//! | [`window`](KeyedWindows::window)                 | `KeyedStream` | one state of the aggregate for each key and window that is open |
//! | [`window_join`](WindowJoin::window_join)        | `KeyedStream` | the records of both sides in windows that are open |
//! | [`window_all`](AllWindows::window_all)           | `Stream`      | one state of the aggregate for each window that is open |
//!
//! All of them are stateful, so each takes a name that is unique in the job: a checkpoint finds its state by it.

pub mod aggregate;
pub mod dedup;
mod few;
pub mod window;

pub use aggregate::{Aggregate, Average, Count, Max, Min, RunningAggregate, Sum, Summand};
pub use dedup::Dedup;
#[cfg(feature = "time-zones")]
pub use window::NoSuchZone;
pub use window::{
    AllWindowedStream, AllWindows, KeyedWindows, Trigger, Window, WindowJoin, WindowJoined,
    WindowedStream, Windows,
};
