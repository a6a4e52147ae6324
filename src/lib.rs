//! Stateful dataflow programs on timely dataflow that survive crashes without losing or doubling a record.

pub mod cli;
pub mod config;
pub mod connect;
pub mod format;
pub mod ids;
pub mod job;
pub mod network;
pub mod prelude;
pub mod protocol;
mod runtime;
pub mod state;
pub mod storage;
pub mod supervisor;
#[cfg(feature = "testing")]
pub mod testing;

pub use cli::{run, run_with};
pub use job::JobError as Error;
pub use job::{bootstrap, convert, state_reader};
pub use protocol::key_groups::key_groups;

/// The result of building or running a job.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Compiles the programs of the README, so that they stay true.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Compiles the programs of the guide, and runs those that end by themselves.
#[cfg(doctest)]
mod guide {
    macro_rules! chapters {
        ($($chapter:literal $name:ident;)*) => {
            $(
                #[doc = include_str!(concat!("../docs/guide/src/", $chapter, ".md"))]
                struct $name;
            )*
        };
    }

    chapters! {
        "about" About;
        "concepts" Concepts;
        "first-job" FirstJob;
        "time" Time;
        "state" State;
        "checkpoints" Checkpoints;
        "windows-and-joins" WindowsAndJoins;
        "deploying" Deploying;
        "testing" Testing;
        "connectors" Connectors;
        "from-flink" FromFlink;
    }
}
