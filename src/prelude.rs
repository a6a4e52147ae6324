//! What a program needs: `use highwater::prelude::*;`.

pub use crate::connect::{
    Collect, Collection, ConnectError, Discard, FileSink, Files, Generator, Record, Sink,
    SocketLines, Source, Stdout,
};
pub use crate::job::{
    AggregateFunction, Aggregating, AggregatingState, AsyncFunction, AsyncSettings, Broadcast,
    BroadcastState, BroadcastView, Connected, Context, Either, EventTime, Job, JobError,
    KeyedStream, List, ListState, Map, MapState, OperatorList, OperatorListState, Reducing,
    ReducingState, Scheduled, ScheduledContext, States, Stream, TimeDomain, Timer, TimerContext,
    Ttl, UnionList, Value, ValueState,
};
pub use crate::protocol::watermark::{WatermarkGenerator, WatermarkStrategy};
pub use crate::state::{Descending, Key};
