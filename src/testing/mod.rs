//! Running jobs in a simulated machine, to see whether they survive everything.
//!
//! A [`Simulation`] runs a whole job, its workers, its checkpoint storage and its clock, in one process, one step at a
//! time. Everything that happens follows from a seed: which worker takes the next step, when a checkpoint begins, when
//! the process is killed. A seed that fails, fails again. A few milliseconds are a simulation of a few hundred records
//! with dozens of checkpoints, so that thousands of seeds are tried in minutes.
//!
//! # How to test a sink, a source or a program
//! 1. Build the job as ever, with a [`Trickle`] for a source: it makes records that follow from their place, a few at a time.
//! 2. Put a [`FaultSink`] around the sink under test, so that commits fail, before and after their effect.
//! 3. Compare what is outside, when the job has ended, with what follows from the records; and call [`Outcome::check`].
//! 4. Run that with [`each_seed`], and keep the seeds that ever failed in a file.
//!
//! ```
//! use highwater::prelude::*;
//! use highwater::testing::{FaultSink, Simulation, Trickle, each_seed, fewer};
//!
//! each_seed("every_number_is_committed_once", 10, "", |seed| {
//!     let records = fewer(50);
//!     let sink = Collect::new();
//!     let collected = sink.handle();
//!     let outcome = Simulation::new(seed).crashes(2).commit_errors(0.1).run(move |job| {
//!         job.source("numbers", Trickle::new(7, 2, records, |split, index| (split, index)))
//!             .key_by(|(split, _)| *split)
//!             .process("count", Value::<u64>::new("count"), |split, (_, index), count, out| {
//!                 *count.or_default() += 1;
//!                 out.emit((*split, index, *count.or_default()));
//!             })
//!             .sink("out", FaultSink::new(sink.clone()));
//!         Ok(())
//!     });
//!     outcome.check();
//!     let mut committed = collected.committed();
//!     committed.sort();
//!     // A split is read in order, so that index and count go together.
//!     let records = (0..2).flat_map(|split| (0..records).map(move |index| (split, index, index + 1)));
//!     assert_eq!(committed, records.collect::<Vec<_>>());
//! });
//! ```
//!
//! When a seed fails, the test is run again with fewer faults, and with fewer records where it asks [`fewer`], as long as
//! it fails. The message says with which of them it still does, and how to see that again. `examples/simulate.rs` shows it
//! with two sinks that have bugs.
//!
//! # What goes wrong
//! | fault | call | what |
//! |---|---|---|
//! | crash | [`Simulation::crashes`], [`Simulation::harsh`] | the process is killed at any turn, storage call, task or commit, or frozen there until later, and started again with another number of workers |
//! | panic | [`Simulation::panics`], [`point`] | a worker panics; the job restarts in place |
//! | stop | [`Simulation::stops`] | the job is told to stop or cancelled, and started again |
//! | storage error | [`Simulation::storage_errors`] | the disk is full, or a call fails and may have had its effect |
//! | commit error | [`Simulation::commit_errors`], [`FaultSink`] | a commit fails, before or after its effect |
//! | late, repeated control | [`Simulation::control_faults`] | what workers tell each other about checkpoints comes late or twice |
//! | slowness | [`work`] | an operator takes its time |
//! | state elsewhere | [`Simulation::varied_state`] | state is in RocksDB, on the heap, or now here, now there; copies on a local disk are used, lost and damaged; savepoints are taken and gone on from |
//!
//! Not simulated: sockets, several processes of one attempt, faults of real files.
//!
//! # Async I/O
//! What [`async_map`](crate::job::Stream::async_map) asks for has no threads here: calls that block, and the polling of futures, are tasks
//! that the simulator runs in any order. [`work`] in such a call lets time pass, so that it may time out.
//!
//! # Random jobs
//! [`jobs`] draws the dataflow from the seed as well, and checks it against an oracle.
//!
//! # Environment
//! `HIGHWATER_TRACE=file` writes down what happens ([`Outcome::write_trace`]). For the variables that choose seeds see
//! [`each_seed`].

mod control;
mod faults;
pub mod jobs;
mod places;
mod random;
mod reduce;
mod seeds;
mod simulation;
mod sink;
mod source;
mod trace;
mod world;

pub use random::Random;
pub use reduce::fewer;
pub use seeds::{SeedFailure, each_seed, each_seed_on_all_cores, first_failure};
pub use simulation::{Outcome, Restore, Simulation};
pub use sink::{FaultCommitter, FaultSink};
pub use source::{Trickle, TrickleReader, TrickleSplit};

/// Lets simulated time pass in a program: a slow operator. Outside of a simulation it does nothing.
pub fn work(duration: std::time::Duration) {
    if let Some(seat) = world::current() {
        seat.work(duration);
    }
}

/// A place in a program where the simulator may let the worker panic. Outside of a simulation it does nothing.
pub fn point(name: &str) {
    if let Some(seat) = world::current() {
        seat.moment(faults::Moment::Point, name);
    }
}
