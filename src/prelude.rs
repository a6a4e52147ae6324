//! What a program needs: `use highwater::prelude::*;`.

pub use crate::connect::{
    Collect, Collection, ConnectError, Discard, FileSink, Files, Generator, Record, Sink,
    SocketLines, Source, Stdout,
};
pub use crate::job::{
    Context, EventTime, Job, JobError, KeyedStream, States, Stream, TimeDomain, Timer,
    TimerContext, Value, ValueState,
};
pub use crate::protocol::watermark::{WatermarkGenerator, WatermarkStrategy};
pub use crate::state::Key;
