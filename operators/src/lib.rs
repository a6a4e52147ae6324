//! Operators for Highwater, written against its public API only: one operator a file, each an extension trait.
//!
//! | operator                                        | on            | keeps                                  |
//! |-------------------------------------------------|---------------|----------------------------------------|
//! | [`dedup`](Dedup::dedup)                          | `Stream`      | every key it has seen                  |
//! | [`dedup_within`](Dedup::dedup_within)            | `Stream`      | every key, and when its records were   |
//! | [`aggregate`](RunningAggregate::aggregate)       | `KeyedStream` | one state of the aggregate for each key |
//! | [`aggregate_changes`](RunningAggregate::aggregate_changes) | `KeyedStream` | the same                     |
//! | [`lookup_join`](LookupJoin::lookup_join), [`left_lookup_join`](LookupJoin::left_lookup_join) | `Stream` | the records under way; a cache, in no checkpoint |
//! | [`detect`](Detect::detect)                       | `KeyedStream` | the partial matches of each key        |
//!
//! All of them are stateful, so each takes a name that is unique in the job: a checkpoint finds its state by it.

pub mod aggregate;
pub mod cep;
pub mod dedup;
pub mod lookup;

pub use aggregate::{Aggregate, Average, Count, Max, Min, RunningAggregate, Sum, Summand};
pub use cep::{Detect, Detected, Matched, Pattern, Skip, Unfinished};
pub use dedup::Dedup;
pub use lookup::{LookupCache, LookupJoin};
