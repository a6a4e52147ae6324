//! The validated configuration of a job.
//!
//! Flags, environment and files are read by the `cli` room; here are the values, their defaults, and what makes
//! them fit together.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::ids::Name;

/// Everything that a run of a job can be told.
#[derive(Clone, Debug, PartialEq)]
pub struct JobConfig {
    /// The job's name: the directory of its checkpoints.
    pub name: Name,
    /// Worker threads in each process.
    pub workers: usize,
    /// Number of processes.
    pub processes: usize,
    /// Which of them this is.
    pub process: usize,
    /// `host:port` of every process, in order; empty: loopback, from port 2101 on.
    pub addresses: Vec<String>,
    /// A file that holds the secret by which processes know each other.
    pub secret_file: Option<PathBuf>,
    /// When a peer is taken for lost, and how often we say that we live.
    pub heartbeat: HeartbeatConfig,
    /// Number of key groups: the largest number of workers that the job's state can ever be spread over.
    pub max_parallelism: u16,
    /// Where keyed state is kept while the job runs.
    pub state: StateConfig,
    /// Checkpoints.
    pub checkpoints: CheckpointConfig,
    /// What to start from.
    pub restore: RestoreConfig,
    /// What to do after a failure.
    pub restart: RestartStrategy,
    /// Bounds of data in flight.
    pub flow: FlowConfig,
    /// How often event time moves on, at the least.
    pub watermark_interval: Duration,
}

/// Silence and loss of a peer process.
#[derive(Clone, Debug, PartialEq)]
pub struct HeartbeatConfig {
    /// Time between two signs of life.
    pub interval: Duration,
    /// Silence after which a peer is taken for lost.
    pub timeout: Duration,
}

/// Where keyed state is kept while the job runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StateConfig {
    /// What keeps it.
    pub backend: StateBackendKind,
    /// RocksDB.
    pub rocksdb: RocksConfig,
}

/// What keeps keyed state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum StateBackendKind {
    /// Memory: all state must fit.
    #[default]
    Heap,
    /// RocksDB: disk, with what is used most in memory. Only in programs with the feature `rocksdb`.
    RocksDb,
}

/// How RocksDB is used.
#[derive(Clone, Debug, PartialEq)]
pub struct RocksConfig {
    /// What all instances of a process may take of memory, their decoded values included. Units: bytes.
    pub memory_bytes: usize,
    /// How it is tuned.
    pub profile: RocksProfile,
    /// The directory for the files of running jobs. `None`: the system's directory for temporary files.
    pub directory: Option<PathBuf>,
}

impl Default for RocksConfig {
    fn default() -> Self {
        Self { memory_bytes: 512 << 20, profile: RocksProfile::Default, directory: None }
    }
}

/// How RocksDB is tuned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RocksProfile {
    /// For most machines.
    #[default]
    Default,
    /// For disks that turn: few, large reads and writes.
    SpinningDisk,
    /// For flash: small blocks, more compactions at once.
    FlashSsd,
    /// For little memory: small write buffers and files.
    LowMemory,
}

/// How checkpoints hold records back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CheckpointMode {
    /// State reflects each record once.
    ExactlyOnce,
    /// Nothing is held back; a replay may count a record twice.
    AtLeastOnce,
}

/// What happens to checkpoints when a job is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCancel {
    /// They stay.
    Retain,
    /// They are deleted.
    Delete,
}

/// When checkpoints are taken, and what becomes of them.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointConfig {
    /// Directory of all jobs' checkpoints, or the URL of a place in an object store: `s3://bucket/prefix`. `None`: they
    /// are kept in memory, for restarts in place.
    pub directory: Option<PathBuf>,
    /// Time from the trigger of one to the trigger of the next. `None`: only the final one at end of input.
    pub interval: Option<Duration>,
    /// Whether records of a later epoch are held back.
    pub mode: CheckpointMode,
    /// How long a barrier waits in a channel for what is queued before it, until it overtakes that: zero is unaligned
    /// at once, `None` aligned always. Of no effect at least once: nothing waits for barriers there.
    pub alignment_timeout: Option<Duration>,
    /// The same for single channels, by name.
    pub channel_alignment_timeouts: BTreeMap<Name, Option<Duration>>,
    /// A checkpoint that takes longer is aborted.
    pub timeout: Duration,
    /// A phase of a checkpoint that takes longer is reported, with whom it waits for; at the latest when half of the
    /// timeout is over. `None`: none is.
    pub slow_after: Option<Duration>,
    /// Time from the end of one to the trigger of the next.
    pub min_pause: Duration,
    /// Checkpoints in progress at once.
    pub concurrent_max: u32,
    /// Consecutive failed checkpoints after which the job fails. `None`: a failed checkpoint never fails the job.
    pub tolerable_failures: Option<u32>,
    /// Complete checkpoints that are kept.
    pub retained: u32,
    /// What happens to them when the job is cancelled.
    pub on_cancel: OnCancel,
    /// Threads of each process that write snapshots.
    pub writer_threads: usize,
    /// Parts up to this size are kept inside the manifest.
    pub inline_bytes_max: usize,
    /// Whether keyed state is written as what has changed since the last complete checkpoint.
    pub incremental: bool,
    /// State of one operator on one worker that is smaller is written whole all the same, so that small checkpoints stand alone.
    /// Units: bytes, estimated.
    pub incremental_bytes_min: usize,
    /// Directory on a local disk for a second copy of what this process writes for checkpoints, which is read first at
    /// restore. `None`: there is none.
    pub local_recovery: Option<PathBuf>,
}

/// What a job starts from.
#[derive(Clone, Debug, PartialEq)]
pub struct RestoreConfig {
    /// Which checkpoint.
    pub from: RestoreFrom,
    /// To whom a checkpoint belongs that `from` names.
    pub claim_mode: ClaimMode,
    /// Whether state of operators that the program no longer has may be dropped.
    pub allow_dropped_state: bool,
    /// Whether operators that the checkpoint does not know may start empty.
    pub allow_new_state: bool,
    /// Operators that have another name now: the name in the checkpoint, and the program's. No name is both, and no two
    /// become the same.
    pub renamed: BTreeMap<Name, Name>,
}

/// To whom a checkpoint or savepoint belongs that the user has named to be restored. It does not concern what the job goes on
/// from by itself: its own newest checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ClaimMode {
    /// To the user: the first checkpoint after the restore stands alone, and nothing is deleted. (In the job's own directory
    /// the job retires it as any other.)
    #[default]
    NoClaim,
    /// To the job, from the restore on: later checkpoints build on it if it is in the job's own directory; elsewhere it
    /// is deleted once a checkpoint that stems from it is complete. Needs a checkpoint directory.
    Claim,
}

/// Which checkpoint a job starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestoreFrom {
    /// The newest complete one of this job; nothing, if the job's record says that none ever completed.
    Newest,
    /// That one: a number of this job, or a path to a checkpoint.
    Checkpoint(String),
    /// Nothing, whatever there is.
    Fresh,
}

/// What is done after a failure.
#[derive(Clone, Debug, PartialEq)]
pub enum RestartStrategy {
    /// The job ends.
    None,
    /// Up to `attempts` restarts, each after `delay`.
    FixedDelay {
        /// Number of restarts in the job's run.
        attempts: u32,
        /// Time before each.
        delay: Duration,
    },
    /// Restarts after `delay`, as long as there are at most `failures` within `interval`.
    FailureRate {
        /// Number of failures within the interval that are tolerated.
        failures: u32,
        /// The interval.
        interval: Duration,
        /// Time before each restart.
        delay: Duration,
    },
    /// Restarts for ever, after a delay that grows with every failure.
    ExponentialDelay {
        /// The first delay.
        initial: Duration,
        /// The largest delay.
        max: Duration,
        /// How the delay grows.
        multiplier: f64,
        /// Relative part of the delay that is random, 0.0 to 1.0.
        jitter: f64,
        /// Time without a failure after which the delay is the first again.
        reset_after: Duration,
    },
}

/// Bounds of data in flight between workers.
#[derive(Clone, Debug, PartialEq)]
pub struct FlowConfig {
    /// How much work may queue before an operator, in time.
    pub in_flight_target: Duration,
    /// How much may queue between a pair of workers, whatever the time.
    pub in_flight_bytes_max: u64,
    /// How long one step of a worker should take.
    pub step_target: Duration,
}

impl JobConfig {
    /// The defaults, for a job of one worker in one process.
    #[must_use]
    pub fn new(name: Name) -> Self {
        Self {
            name,
            workers: 1,
            processes: 1,
            process: 0,
            addresses: Vec::new(),
            secret_file: None,
            heartbeat: HeartbeatConfig {
                interval: Duration::from_millis(500),
                timeout: Duration::from_secs(3),
            },
            max_parallelism: 128,
            state: StateConfig::default(),
            checkpoints: CheckpointConfig::default(),
            restore: RestoreConfig {
                from: RestoreFrom::Newest,
                claim_mode: ClaimMode::default(),
                allow_dropped_state: false,
                allow_new_state: false,
                renamed: BTreeMap::new(),
            },
            restart: RestartStrategy::default(),
            flow: FlowConfig {
                in_flight_target: Duration::from_millis(200),
                in_flight_bytes_max: 32 << 20,
                step_target: Duration::from_millis(5),
            },
            watermark_interval: Duration::from_millis(5),
        }
    }

    /// Number of workers in all processes.
    #[must_use]
    pub fn parallelism(&self) -> usize {
        self.workers * self.processes
    }
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            directory: None,
            interval: Some(Duration::from_secs(10)),
            mode: CheckpointMode::ExactlyOnce,
            alignment_timeout: Some(Duration::from_millis(200)),
            channel_alignment_timeouts: BTreeMap::new(),
            timeout: Duration::from_secs(600),
            slow_after: Some(Duration::from_secs(10)),
            min_pause: Duration::ZERO,
            concurrent_max: 1,
            tolerable_failures: None,
            retained: 1,
            on_cancel: OnCancel::Retain,
            writer_threads: 1,
            inline_bytes_max: 16 << 10,
            incremental: true,
            incremental_bytes_min: 1 << 20,
            local_recovery: None,
        }
    }
}

impl Default for RestartStrategy {
    fn default() -> Self {
        Self::ExponentialDelay {
            initial: Duration::from_secs(1),
            max: Duration::from_secs(60),
            multiplier: 1.5,
            jitter: 0.1,
            reset_after: Duration::from_secs(3600),
        }
    }
}
