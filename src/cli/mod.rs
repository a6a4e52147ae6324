//! What a program is told, by flags, environment and file; what it says of itself; and the
//! `highwater` tool.
//!
//! Every setting has a flag (`--checkpoint-interval 10s`), a variable
//! (`HIGHWATER_CHECKPOINT_INTERVAL`) and a key in a TOML file (`[checkpoints]`, `interval = "10s"`)
//! that `--config` or `HIGHWATER_CONFIG` names. The first of them that is given wins: flag over
//! environment over file over default. `--print-config` shows the outcome.

mod checkpoints;
mod error;
mod file;
mod hostfile;
mod layers;
mod logging;
mod options;
#[cfg(feature = "parquet")]
mod parquet;
mod plan;
mod print;
mod program;
mod progress;
mod resolve;
mod restart;
mod rows;
mod savepoints;
mod settings;
mod sources;
mod states;
#[cfg(test)]
mod test_support;
#[cfg(test)]
mod tests;
mod tool;
mod units;

pub use error::CliError;
pub use logging::{LogConfig, LogFormat, start_logging};
pub use options::{NoArgs, Options, parse, parse_with};
pub use program::{run, run_with};
pub use progress::{ProgressMode, ProgressPrinter, ProgressSample, format_progress};
pub use resolve::Resolved;
pub use tool::run_tool;
pub use units::{
    format_duration, format_size, parse_duration, parse_size, short_count, short_duration,
    short_size,
};
