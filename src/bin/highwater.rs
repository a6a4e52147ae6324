//! The `highwater` tool.

use std::process::ExitCode;

fn main() -> ExitCode {
    highwater::cli::run_tool(std::env::args_os())
}
