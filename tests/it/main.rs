//! Whole jobs, in this process: what comes out is compared with what an independent computation says, and after every
//! test the checkpoint directory holds what is reachable and nothing else.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod async_io;
mod at_least_once;
mod bootstrap;
mod build_errors;
mod claim;
mod concurrency;
mod convert;
mod event_time;
mod failure;
mod files;
mod fixture_jobs;
mod fixtures;

mod flow;
mod incremental;
mod lifecycle;
mod local_recovery;
mod matrix;
mod operator_state;
mod operators;
mod rescale;
mod restore;
#[cfg(feature = "rocksdb")]
mod rocks;
mod savepoints;
mod schema;
mod state_kinds;
mod storage_faults;
mod support;
mod timers;
mod unaligned;
mod watchdog;
