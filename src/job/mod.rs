//! The API that users write against: a job, its streams, and how a program is run.
//!
//! A program calls [`run`](crate::run) with a name and a function that builds its dataflow from a [`Job`]:
//!
//! ```no_run
//! use highwater::prelude::*;
//!
//! fn main() -> highwater::Result<()> {
//!     highwater::run("count-to-ten", |job| {
//!         job.source("numbers", Collection::new((0..10u64).collect()))
//!             .key_by(|number| number % 2)
//!             .process("sum", Value::<u64>::new("sum"), |parity, number, sum, out| {
//!                 *sum.or_default() += number;
//!                 out.emit((*parity, *sum.or_default()));
//!             })
//!             .map(|(parity, sum)| format!("{parity} {sum}"))
//!             .sink("out", Stdout::lines());
//!         Ok(())
//!     })
//! }
//! ```
//!
//! The function is called once for each worker and attempt, and must build the same dataflow each time.

mod async_io;
pub mod bootstrap;
mod builder;
mod connected;
pub mod convert;
pub(crate) mod execute;
mod operators;
pub(crate) mod state_entries;
pub mod state_reader;
mod stream;

pub use builder::{BuildError, Job};
pub use connected::Connected;
pub use execute::{JobError, JobHandle, SavepointFailed, execute};

pub use crate::format::record::SavepointInfo;
pub use operators::{BroadcastConnected, KeyedBroadcastConnected};
pub use stream::{KeyedStream, Stream};

pub use crate::runtime::async_function::{
    Answer, AsyncContext, AsyncFunction, AsyncSettings, Blocking, Futures, OrElse, RequestFuture,
    RequestThreads,
};
pub use crate::runtime::counters::{
    Balance, ChannelStatus, Checkpoints, CompletedCheckpoint, Counters, RequestStatus, StateMemory,
};
pub use crate::runtime::either::Either;
pub use crate::runtime::event_time::EventTime;
pub use crate::runtime::keyed::Context;
pub use crate::runtime::keyed_timers::TimerContext;
pub use crate::runtime::kinds::{
    AggregateFunction, Aggregating, AggregatingState, List, ListState, Map, MapState, Reducing,
    ReducingState, Value, ValueState,
};
pub use crate::runtime::lifetime::{Forever, Lifetime, Ttl};
pub use crate::runtime::operator_state::{
    Broadcast, BroadcastState, BroadcastStates, BroadcastView, OperatorList, OperatorListState,
    OperatorStates, UnionList,
};
pub use crate::runtime::scheduled::{Scheduled, ScheduledContext};
pub use crate::runtime::states::{Descriptor, States};
pub use crate::runtime::time::Time;
pub use crate::runtime::timed::{TimeDomain, Timer};
pub use crate::state::{Descending, MapKey};
