//! What can go wrong around processes, apart from their own failures.

use std::io;
use std::path::PathBuf;

use crate::network::NetworkError;

/// Why a supervisor, or a process under one, cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SupervisorError {
    /// There is nothing to run.
    #[error("a job needs at least one process")]
    NoProcesses,
    /// A file or directory of the run could not be made.
    #[error("{} could not be created", path.display())]
    RuntimeFile {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The secret of the run could not be made.
    #[error("the secret of the processes could not be made")]
    Secret {
        /// Why.
        #[from]
        source: NetworkError,
    },
    /// A process could not be started.
    #[error("process {process} could not be started from {}", program.display())]
    Start {
        /// Its index.
        process: usize,
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The supervisor of this process is gone.
    #[error("the supervisor of this process (process id {supervisor}) is gone")]
    Orphaned {
        /// What the environment says is its id.
        supervisor: String,
    },
    /// The system refused something.
    #[error("{what} failed")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl SupervisorError {
    /// Shapes an error of the system, for `map_err`.
    pub(super) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}
