//! Where state is kept besides the simulated storage: the backend, copies on a local disk, savepoints; drawn from the seed.
//!
//! Files that cannot be simulated (those of RocksDB, and savepoints, which are directories) are real, in memory if the machine
//! has such a place. They are not part of the trace: how many files RocksDB makes, and which, depends on its own threads.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::Random;
use super::faults::Faults;
use super::reduce::FaultKind;
use crate::config::{JobConfig, RocksProfile, StateBackendKind};
use crate::format::record::SavepointInfo;
use crate::storage::{CheckpointStorage, MemoryStorage};

/// One job in so many may keep its state in RocksDB, if the program can: opening a database takes as long as a whole job.
const ROCKS_ONE_IN: u64 = 20;

/// A directory of this simulation alone, which is removed at its end.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    fn new() -> std::io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = parent.join(format!("highwater-simulation-{process}-{number}"));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Whatever is left is in nobody's way.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a seed has drawn.
pub(super) struct Places {
    random: Random,
    /// The local disk.
    pub(super) copies: Option<MemoryStorage>,
    /// How likely a call to the local disk fails.
    pub(super) local_errors: f64,
    /// Whether some lives keep their state in RocksDB.
    pub(super) rocks: bool,
    /// Whether stops may be savepoints.
    pub(super) savepoints: bool,
    /// Stops beside those that the test wants, so that there are savepoints.
    pub(super) stops: u32,
    scratch: Option<Scratch>,
}

impl Places {
    /// All state on the heap, and nothing beside the storage.
    pub(super) fn plain(random: Random) -> Self {
        Self {
            random,
            copies: None,
            local_errors: 0.0,
            rocks: false,
            savepoints: false,
            stops: 0,
            scratch: None,
        }
    }

    /// # Panics
    /// If no directory can be made.
    pub(super) fn draw(random: Random) -> Self {
        let mut places = Self::plain(random);
        let random = &mut places.random;
        if random.chance(0.4) {
            places.copies = Some(MemoryStorage::new());
            places.local_errors = random.pick(&[0.0, 0.0, 0.02, 0.2]);
        }
        places.rocks = random.below(ROCKS_ONE_IN) == 0 && cfg!(feature = "rocksdb");
        places.savepoints = random.chance(0.4);
        places.stops = if places.savepoints { random.pick(&[1, 2, 3]) } else { 0 };
        if places.rocks || places.savepoints {
            places.scratch = Some(Scratch::new().expect("a directory for a simulation"));
        }
        places
    }

    pub(super) fn directory(&self) -> Option<PathBuf> {
        self.scratch.as_ref().map(|scratch| scratch.0.clone())
    }

    /// A life begins: the backend of its operators.
    pub(super) fn configure(&mut self, config: &mut JobConfig) {
        let (true, Some(directory)) = (self.rocks, self.directory()) else { return };
        let backends =
            [StateBackendKind::RocksDb, StateBackendKind::RocksDb, StateBackendKind::Heap];
        config.state.backend = self.random.pick(&backends);
        config.state.rocksdb.profile = RocksProfile::LowMemory;
        config.state.rocksdb.memory_bytes = self.random.pick(&[1 << 18, 1 << 20, 16 << 20]);
        config.state.rocksdb.directory = Some(directory.join("running"));
    }

    /// Whether the next life begins with a savepoint that holds the same as the newest checkpoint.
    pub(super) fn begins_with(&mut self, savepoint: &SavepointInfo) -> bool {
        let begins = self.random.chance(0.75);
        begins && savepoint.path.join("manifest").exists()
    }

    /// Between two lives something may happen to the local disk.
    pub(super) fn damage(&mut self, faults: &mut Faults) {
        let Some(copies) = &self.copies else { return };
        let random = &mut self.random;
        if !random.chance(0.3) {
            return;
        }
        let kind = random.below(3);
        let what =
            ["copies are lost", "bytes of copies differ", "copies are cut off"][kind as usize];
        let mut random = random.fork(1);
        if !faults.happens(FaultKind::LocalDisk, what) {
            return;
        }
        let often = random.pick(&[0.2, 1.0]);
        for (path, bytes) in copies.list(None).expect("memory can be listed") {
            if !random.chance(often) {
                continue;
            }
            let at = random.below(bytes) as usize;
            let mut held = copies.read(&path, u64::MAX).expect("it was listed");
            match kind {
                0 => copies.delete(&path).expect("memory can be changed"),
                _ if held.is_empty() => {}
                1 => held[at] ^= 1,
                _ => held.truncate(at),
            }
            if kind > 0 {
                copies.put(&path, &held).expect("memory can be changed");
            }
        }
    }

    /// Copies of blobs that are not in the store.
    pub(super) fn leftovers(&self, store: &MemoryStorage) -> Vec<String> {
        let Some(copies) = &self.copies else { return Vec::new() };
        let listed = |storage: &MemoryStorage| storage.list(None).expect("memory can be listed");
        let stored = listed(store);
        // A copy's name has the identity of the job behind the name of the job.
        let blob = |copy: &str| {
            let mut pieces = copy.splitn(3, '/');
            Some(format!("{}/{}", pieces.next()?, pieces.nth(1)?))
        };
        let left = listed(copies).into_iter().filter(|(copy, _)| {
            let blob = blob(copy.as_str());
            !stored.iter().any(|(stored, _)| Some(stored.as_str()) == blob.as_deref())
        });
        left.map(|(copy, _)| format!("the local copy {copy}")).collect()
    }
}

impl std::fmt::Display for Places {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { copies, local_errors, rocks, savepoints, .. } = self;
        write!(
            f,
            "rocksdb {rocks}, local copies {} with errors {local_errors}, savepoints {savepoints}",
            copies.is_some()
        )
    }
}
