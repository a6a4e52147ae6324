//! The instances of RocksDB of one attempt in this process, and their directory.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{JobConfig, RocksProfile};
use crate::ids::{Attempt, Name};
use crate::state::rocks::{Budget, Instance, Profile, Setup};

const PREFIX: &str = "highwater-state-";
const LOCK: &str = "lock";

/// The instances of one attempt in this process.
pub(crate) struct Instances {
    budget: Arc<Budget>,
    profile: Profile,
    small_bytes: usize,
    max_parallelism: u16,
    directory: Directory,
}

impl Instances {
    pub(crate) fn new(config: &JobConfig, attempt: Attempt) -> io::Result<Self> {
        let rocks = &config.state.rocksdb;
        let profile = match rocks.profile {
            RocksProfile::Default => Profile::Default,
            RocksProfile::SpinningDisk => Profile::SpinningDisk,
            RocksProfile::FlashSsd => Profile::FlashSsd,
            RocksProfile::LowMemory => Profile::LowMemory,
        };
        let parent = rocks.directory.clone().unwrap_or_else(std::env::temp_dir);
        fs::create_dir_all(&parent)?;
        remove_left_behind(&parent)?;
        let name = format!("{}-{attempt}-{}", config.name, config.process);
        let directory = Directory::create(&parent, &name)?;
        Ok(Self {
            budget: Budget::new(rocks.memory_bytes),
            profile,
            // What is small stands alone on every backend.
            small_bytes: config.checkpoints.incremental_bytes_min,
            max_parallelism: config.max_parallelism,
            directory,
        })
    }

    pub(crate) fn budget(&self) -> Arc<Budget> {
        Arc::clone(&self.budget)
    }

    pub(crate) fn instance(&self, worker: usize, operator: &Name) -> Instance {
        let directory = self.directory.path.join(format!("{worker}-{operator}"));
        let budget = Arc::clone(&self.budget);
        let mut setup = Setup::new(directory, budget, self.profile, self.max_parallelism);
        setup.small_bytes = self.small_bytes;
        Instance::new(setup)
    }
}

/// A directory that is locked as long as its process lives, and removed at the end.
pub(crate) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn create(parent: &Path, name: &str) -> io::Result<Self> {
        let random = getrandom::u64().map_err(|error| io::Error::other(error.to_string()))?;
        let path = parent.join(format!("{PREFIX}{name}-{random:016x}"));
        // Locked before it has the name that others look for.
        let making = parent.join(format!(".{PREFIX}{random:016x}"));
        fs::create_dir(&making)?;
        let lock = File::create(making.join(LOCK))?;
        lock.lock()?;
        fs::rename(&making, &path)?;
        Ok(Self { path, _lock: lock })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Instances that an upload still needs remove theirs when it is over; the rest goes now, or with the next
        // attempt that begins.
        _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes directories whose processes are dead.
fn remove_left_behind(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        let is_ours =
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        if !is_ours {
            continue;
        }
        // What cannot be opened is somebody else's, or just being removed.
        let Ok(lock) = File::open(path.join(LOCK)) else { continue };
        if lock.try_lock().is_ok() {
            tracing::info!("removing {}, left behind by a dead process", path.display());
            _ = fs::remove_dir_all(&path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_directories_of_the_dead_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let alive = Directory::create(parent.path(), "alive").unwrap();
        let dead = Directory::create(parent.path(), "dead").unwrap();
        // As a process that is killed: the lock goes, the directory stays.
        let path = dead.path.clone();
        let Directory { _lock: lock, .. } = &dead;
        lock.unlock().unwrap();
        std::mem::forget(dead);
        fs::create_dir(parent.path().join("another")).unwrap();
        remove_left_behind(parent.path()).unwrap();
        assert!(alive.path.exists() && !path.exists());
        assert!(parent.path().join("another").exists());
        let path = alive.path.clone();
        drop(alive);
        assert!(!path.exists());
    }
}
