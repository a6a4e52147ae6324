//! The job of the recovery workloads: a keyed count whose sink says when each subtask first had output, and when it
//! had caught up with the schedule.

use std::sync::Arc;

use highwater::connect::{Committer, ConnectError, PreCommit, SinkContext, TransactionWriter};
use highwater::ids::Epoch;
use highwater::job::JobError;
use highwater::prelude::*;

use crate::args::Args;
use crate::counting;
use crate::report::unix_micros;

/// A subtask that is less behind the schedule has caught up.
const CAUGHT_UP_MICROS: u64 = 200_000;

/// What a subtask has reached, the first time in its attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Milestone {
    /// It had a record.
    Output,
    /// It had a record that was due less than 200 ms before.
    CaughtUp,
}

/// Hears of milestones: whose, which, and when in Unix microseconds.
pub type Listener = Arc<dyn Fn(&SinkContext, Milestone, u64) + Send + Sync>;

/// Number of keys, all loaded first, and the rate after that.
pub fn schedule(args: &Args, keys: u64) -> Args {
    let keys = args.keys.unwrap_or(keys);
    Args {
        records: Some(args.records.unwrap_or(u64::MAX)),
        keys: Some(keys),
        load: Some(args.load.unwrap_or(keys)),
        rate: Some(args.rate.unwrap_or(100_000)),
        ..args.clone()
    }
}

/// Builds the job of a [`schedule`]. `trip` is called for every record.
pub fn build(job: &Job<'_>, args: &Args, trip: fn(), listener: &Listener) -> Result<(), JobError> {
    let (records, keys) = (args.keyed_count_records(), args.keys());
    let (load, rate) = (args.load.unwrap_or(0), args.rate.unwrap_or(100_000));
    let event = move |index, due| {
        let (key, value) = counting::event(index, keys, load);
        (key, value, due)
    };
    job.source("events", Generator::scheduled(records, load, rate, event))
        .into_keyed(|(key, value, due)| (key, (value, due)))
        .process(
            "count",
            Value::<(u64, u64)>::new("count"),
            move |key, (value, due), state, out| {
                trip();
                let state = state.or_default();
                counting::count(state, value);
                out.emit((*key, state.0, state.1, due));
            },
        )
        .sink("results", ProgressSink { listener: Arc::clone(listener) });
    Ok(())
}

#[derive(Clone)]
struct ProgressSink {
    listener: Listener,
}

struct ProgressWriter {
    context: SinkContext,
    listener: Listener,
    had_output: bool,
    caught_up: bool,
}

struct NothingToCommit;

impl Sink for ProgressSink {
    type Record = (u64, u64, u64, u64);
    type Transaction = ();
    type Writer = ProgressWriter;
    type Committer = NothingToCommit;

    fn writer(&mut self, context: &SinkContext) -> Result<ProgressWriter, ConnectError> {
        let (context, listener) = (context.clone(), Arc::clone(&self.listener));
        Ok(ProgressWriter { context, listener, had_output: false, caught_up: false })
    }

    fn committer(&mut self, _: &SinkContext) -> Result<NothingToCommit, ConnectError> {
        Ok(NothingToCommit)
    }
}

impl TransactionWriter for ProgressWriter {
    type Record = (u64, u64, u64, u64);
    type Transaction = ();

    fn write(&mut self, records: &mut Vec<Self::Record>) -> Result<(), ConnectError> {
        if let Some((.., due)) = records.last()
            && !self.caught_up
        {
            let now = unix_micros();
            if !std::mem::replace(&mut self.had_output, true) {
                (self.listener)(&self.context, Milestone::Output, now);
            }
            // The load is on no schedule.
            if *due > 0 && now.saturating_sub(*due) < CAUGHT_UP_MICROS {
                self.caught_up = true;
                (self.listener)(&self.context, Milestone::CaughtUp, now);
            }
        }
        records.clear();
        Ok(())
    }

    fn pre_commit(&mut self, _: Epoch) -> Result<Option<PreCommit<()>>, ConnectError> {
        Ok(None)
    }
}

impl Committer for NothingToCommit {
    type Transaction = ();

    fn commit(&mut self, (): &()) -> Result<(), ConnectError> {
        Ok(())
    }

    fn abandon_others(&mut self, _: &[()]) -> Result<(), ConnectError> {
        Ok(())
    }
}
