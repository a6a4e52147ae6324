//! Running jobs in a simulated machine, to see whether they survive everything.

mod faults;
pub mod jobs;
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
