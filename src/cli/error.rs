//! What is wrong with a command line, an environment or a configuration file.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

/// Why a program could not read its configuration. Nothing has been started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    /// The command line does not parse, or asks for help.
    #[error("{0}")]
    Usage(clap::Error),
    /// One value is wrong.
    #[error("{given}: {problem}")]
    Value {
        /// The setting in the form in which it was given: flag, variable, or file, line and key.
        given: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A configuration file is not what it should be.
    #[error("{path}:{line}: {problem}")]
    ConfigFile {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The file of hosts is not what it should be.
    #[error("{given}: {problem}")]
    Hostfile {
        /// The file, with the line if there is one.
        given: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A file could not be read.
    #[error("{given}: cannot read {path}")]
    Read {
        /// Where the file was named.
        given: String,
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Numbers do not fit together.
    #[error("the settings do not fit together: {problem}")]
    Plan {
        /// What does not fit, and what would.
        problem: String,
    },
    /// The program defines flags that Highwater has.
    #[error(
        "the program defines {flags}, which Highwater defines already: give them other names \
         with `#[arg(long = \"...\")]` or `#[arg(short = '.')]`"
    )]
    Clash {
        /// The flags, separated by commas.
        flags: String,
    },
}

impl CliError {
    /// Shows the error, with its causes, on standard error, or the help that was asked for on
    /// standard output.
    ///
    /// Returns the code to exit with: 0 after help, 2 otherwise, by which a supervisor knows that
    /// no restart can help.
    pub fn report(&self) -> ExitCode {
        match self {
            Self::Usage(error) => {
                // A closed pipe is no reason to fail: nobody is left to read.
                let _ = error.print();
                ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
            }
            other => {
                let _ = writeln!(std::io::stderr(), "error: {}", with_causes(other));
                ExitCode::from(2)
            }
        }
    }

    /// Whether this is no error but the help that was asked for.
    #[must_use]
    pub fn is_help(&self) -> bool {
        matches!(self, Self::Usage(error) if error.exit_code() == 0)
    }
}

/// The error and everything behind it in one line.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
