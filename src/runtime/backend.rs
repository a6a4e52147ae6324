//! What keeps the state of operators in one attempt, as the configuration says.
//!
//! # Files
//! Each attempt of each process has a directory of its own for the files of its instances, with a lock on a file in it for
//! as long as the process lives. What is found without such a lock at the beginning of an attempt belongs to a process that
//! is dead, and is removed. Nothing in there is ever read by another attempt: state comes back from checkpoints.

use crate::config::{JobConfig, StateBackendKind};
use crate::ids::{Attempt, Name};
#[cfg(feature = "rocksdb")]
use crate::runtime::instances::Instances;
use crate::state::Backend;

/// Makes the backend of each operator.
pub(crate) struct Backends(Kind);

enum Kind {
    Heap,
    #[cfg(feature = "rocksdb")]
    Rocks(Instances),
}

impl Backends {
    /// All in memory.
    pub(crate) fn heap() -> Self {
        Self(Kind::Heap)
    }

    /// What the configuration says.
    ///
    /// # Errors
    /// If the directory for running state cannot be made, or if the program was built without the backend.
    pub(crate) fn new(config: &JobConfig, attempt: Attempt) -> std::io::Result<Self> {
        Ok(match config.state.backend {
            StateBackendKind::Heap => Self::heap(),
            #[cfg(feature = "rocksdb")]
            StateBackendKind::RocksDb => Self(Kind::Rocks(Instances::new(config, attempt)?)),
            #[cfg(not(feature = "rocksdb"))]
            StateBackendKind::RocksDb => {
                let without = format!("attempt {attempt} needs the feature `rocksdb` of highwater");
                return Err(std::io::Error::other(without));
            }
        })
    }

    /// The budget of memory, if there is one.
    #[cfg(feature = "rocksdb")]
    pub(crate) fn budget(&self) -> Option<std::sync::Arc<crate::state::rocks::Budget>> {
        match &self.0 {
            Kind::Heap => None,
            Kind::Rocks(rocks) => Some(rocks.budget()),
        }
    }

    /// The backend of one operator on one worker.
    pub(crate) fn of_operator(&self, worker: usize, operator: &Name) -> Backend {
        match &self.0 {
            Kind::Heap => {
                _ = (worker, operator);
                Backend::default()
            }
            #[cfg(feature = "rocksdb")]
            Kind::Rocks(rocks) => Backend::Rocks(rocks.instance(worker, operator)),
        }
    }
}
