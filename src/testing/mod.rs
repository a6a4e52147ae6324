//! Running jobs in a simulated machine, to see whether they survive everything.

mod faults;
mod random;
mod seeds;
mod simulation;
mod sink;
mod source;
mod trace;
mod world;

pub use random::Random;
pub use seeds::each_seed;
pub use simulation::{Outcome, Simulation};
pub use sink::{FaultCommitter, FaultSink};
pub use source::{Trickle, TrickleReader, TrickleSplit};

/// A place in a program where the simulator may let the worker panic. Outside of a simulation it does nothing.
pub fn point(name: &str) {
    if let Some(seat) = world::current() {
        seat.moment(faults::Moment::Point, name);
    }
}
