//! Decisions: alignment, coordination, retention, rescaling, restarting.
//!
//! Everything here is a pure state machine: events in, effects out, no I/O, no clock, no threads,
//! no randomness and no timely. The rooms below carry out the effects.

pub mod abort;
pub mod channel;
pub mod coordinator;
pub mod flow;
pub mod key_groups;
pub mod layers;
pub mod plan;
pub mod registry;
pub mod restart;
pub mod watchdog;
pub mod watermark;
