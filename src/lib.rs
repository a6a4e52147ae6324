//! Stateful dataflow programs on timely dataflow that survive crashes without losing or doubling a record.

pub mod cli;
pub mod config;
pub mod connect;
pub mod format;
pub mod ids;
pub mod protocol;
pub mod state;
pub mod storage;

pub use protocol::key_groups::key_groups;
