//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use highwater::cli::{parse_duration, parse_size};
use highwater::config::{JobConfig, RocksConfig, StateBackendKind, StateConfig};
use highwater::ids::Name;
use serde_json::Value;

use crate::Measured;

/// Measures whole jobs.
#[derive(Clone, Debug, Parser)]
#[command(name = "workloads")]
pub struct Args {
    /// What to run.
    pub workload: Option<Workload>,
    /// Number of records; a number that makes the run last some seconds if not given.
    #[arg(long)]
    pub records: Option<u64>,
    /// Number of keys.
    #[arg(long)]
    pub keys: Option<u64>,
    /// Worker threads of each process.
    #[arg(long)]
    pub workers: Option<usize>,
    /// Number of processes.
    #[arg(long, default_value_t = 1)]
    pub processes: usize,
    /// Time between checkpoints, or `off`.
    #[arg(long, default_value = "1s")]
    pub checkpoint_interval: Interval,
    /// What keeps state: `heap`, or `rocksdb` if built with that feature.
    #[arg(long, default_value = "heap")]
    pub state_backend: String,
    /// Memory of RocksDB.
    #[arg(long, default_value = "512MiB")]
    pub rocksdb_memory: String,
    /// Threads that write checkpoints.
    #[arg(long, default_value_t = 1)]
    pub checkpoint_threads: usize,
    /// Records that go through the keys in order, at full speed.
    #[arg(long)]
    pub load: Option<u64>,
    /// Records a second after the load.
    #[arg(long)]
    pub rate: Option<u64>,
    /// Print the JSON object alone.
    #[arg(long)]
    pub json: bool,
    /// Compare with bare timely, in one run.
    #[arg(long)]
    pub compare: bool,
    /// How often each side of a comparison is run.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// The slide of windows of a second, in milliseconds: a second if not given.
    #[arg(long)]
    pub slide: Option<u64>,
    /// How long to measure, in seconds.
    #[arg(long)]
    pub seconds: Option<u64>,
    /// How a job is made to fail.
    #[arg(long, value_enum, default_value = "panic")]
    pub mode: Mode,
    /// Keep a second copy of checkpoints, which is read first.
    #[arg(long)]
    pub local_copy: bool,
    /// Time before a restart.
    #[arg(long, default_value = "0", value_parser = parse_duration)]
    pub restart_delay: Duration,
    /// How long barriers wait for what is queued: a time or `none`. Each of `none`, 0, the default and checkpoints off if
    /// not given.
    #[arg(long)]
    pub alignment_timeout: Option<String>,
    /// What a record costs an operator that is too slow.
    #[arg(long, default_value = "100us", value_parser = parse_duration)]
    pub work: Duration,
    /// Where a process that the bench has started leaves its report.
    #[arg(long, hide = true)]
    pub report_dir: Option<PathBuf>,
    /// Addresses of the processes of a bare timely run.
    #[arg(long, hide = true, value_delimiter = ',')]
    pub addresses: Vec<String>,
    /// Index of this process of a bare timely run.
    #[arg(long, hide = true, default_value_t = 0)]
    pub process: usize,
}

/// What to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// A count and a sum for each key.
    KeyedCount,
    /// The same work without Highwater.
    RawTimelyKeyedCount,
    /// Latency of every record, at a rate.
    Latency,
    /// Latency of the results of windows, at a rate.
    WindowLatency,
    /// The time from a failure to output again.
    Recovery,
    /// Checkpoints before an operator that is too slow, by alignment timeout.
    Backpressure,
    /// Incremental checkpoints of a large state.
    LargeState,
    /// The longest pause of a worker while keys are added.
    Growth,
    /// The time from a failure to output again, by size of the state and source of its bytes.
    Restore,
    /// What a job without input costs.
    Idle,
    /// Whether memory stays bounded before a slow sink.
    Memory,
    /// A count and a sum for each key and second of event time.
    Window,
    /// All events of an auction house.
    NexmarkQ0,
    /// Its bids in another currency.
    NexmarkQ1,
    /// Its bids for some auctions.
    NexmarkQ2,
    /// Sellers joined with their auctions.
    NexmarkQ3,
    /// Auctions with the most bids, in sliding windows.
    NexmarkQ5,
    /// The highest bids, in tumbling windows.
    NexmarkQ7,
    /// New sellers: a join of windows.
    NexmarkQ8,
    /// Whether memory stays within the budget of RocksDB when state is five times that.
    MemoryCeiling,
}

/// How a job is made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// A user's function panics, in one process.
    Panic,
    /// One of several processes is killed.
    Kill,
}

impl Workload {
    /// Its name on the command line.
    pub fn name(self) -> String {
        let value = self.to_possible_value().expect("no workload is skipped");
        value.get_name().to_owned()
    }
}

/// Time between checkpoints; `None`: there are none but the final one.
#[derive(Clone, Copy, Debug)]
pub struct Interval(pub Option<Duration>);

impl std::str::FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            Ok(Self(None))
        } else {
            parse_duration(text).map(|time| Self(Some(time)))
        }
    }
}

impl std::fmt::Display for Interval {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(interval) => write!(f, "{}ms", interval.as_millis()),
            None => f.write_str("off"),
        }
    }
}

impl Args {
    /// Number of keys, 1,000 unless given.
    pub fn keys(&self) -> u64 {
        self.keys.unwrap_or(1_000).max(1)
    }

    /// Number of records, or one that lasts some seconds.
    pub fn keyed_count_records(&self) -> u64 {
        let lasting = if self.keys() <= 100_000 { 400_000_000 } else { 200_000_000 };
        self.records.unwrap_or(lasting)
    }

    /// Time between checkpoints of a large state: 5 s unless another than the default is given.
    pub fn large_state_interval(&self) -> Duration {
        let given = self.checkpoint_interval.0.unwrap_or_default();
        if given.is_zero() || given == Duration::from_secs(1) {
            Duration::from_secs(5)
        } else {
            given
        }
    }

    /// What keeps state.
    pub fn state(&self) -> Result<StateConfig, String> {
        let backend = match self.state_backend.as_str() {
            "heap" => StateBackendKind::Heap,
            "rocksdb" if cfg!(feature = "rocksdb") => StateBackendKind::RocksDb,
            other => return Err(format!("no state backend {other:?} is built in")),
        };
        let memory_bytes = parse_size(&self.rocksdb_memory)? as usize;
        Ok(StateConfig { backend, rocksdb: RocksConfig { memory_bytes, ..Default::default() } })
    }

    /// A job with workers, state and checkpoints as these say. Where checkpoints are kept is up to the workload.
    pub fn job(&self, name: &str) -> Result<JobConfig, String> {
        let mut config = JobConfig::new(Name::new(name).map_err(|error| error.to_string())?);
        config.workers = self.workers();
        config.state = self.state()?;
        config.checkpoints.interval = self.checkpoint_interval.0;
        config.checkpoints.writer_threads = self.checkpoint_threads.max(1);
        Ok(config)
    }

    /// Workers of each process: 2 of one process, 1 of several, unless given.
    pub fn workers(&self) -> usize {
        self.workers.unwrap_or(if self.processes > 1 { 1 } else { 2 }).max(1)
    }

    /// The arguments by which another process does the same.
    pub fn to_arguments(&self) -> Vec<OsString> {
        let workload = self.workload.expect("only workloads start processes");
        let mut arguments = vec![OsString::from(workload.name())];
        let mut add = |flag: &str, value: OsString| {
            arguments.extend([OsString::from(flag), value]);
        };
        let numbers = [
            ("--records", self.records),
            ("--keys", self.keys),
            ("--load", self.load),
            ("--rate", self.rate),
            ("--slide", self.slide),
            ("--seconds", self.seconds),
            ("--workers", self.workers.map(|workers| workers as u64)),
            ("--processes", Some(self.processes as u64)),
            ("--process", Some(self.process as u64)),
        ];
        for (flag, number) in numbers {
            if let Some(number) = number {
                add(flag, number.to_string().into());
            }
        }
        add("--work", format!("{}us", self.work.as_micros()).into());
        if let Some(timeout) = &self.alignment_timeout {
            add("--alignment-timeout", timeout.into());
        }
        add("--state-backend", self.state_backend.clone().into());
        add("--rocksdb-memory", self.rocksdb_memory.clone().into());
        add("--checkpoint-threads", self.checkpoint_threads.to_string().into());
        let mode = self.mode.to_possible_value().expect("no mode is skipped");
        add("--mode", mode.get_name().into());
        add("--checkpoint-interval", self.checkpoint_interval.to_string().into());
        if let Some(directory) = &self.report_dir {
            add("--report-dir", directory.into());
        }
        if !self.addresses.is_empty() {
            add("--addresses", self.addresses.join(",").into());
        }
        if self.local_copy {
            arguments.push("--local-copy".into());
        }
        arguments
    }

    /// Runs these arguments in a fresh process and takes what it reports.
    pub fn run_in_process(&self) -> Measured {
        let program = std::env::current_exe().map_err(|error| format!("own program: {error}"))?;
        let mut command = Command::new(program);
        command.args(self.to_arguments()).stdin(Stdio::null()).stderr(Stdio::inherit());
        let output = command.output().map_err(|error| format!("starting a run: {error}"))?;
        if !output.status.success() {
            return Err(format!("a run ended with {}", output.status));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.lines().last().unwrap_or_default();
        serde_json::from_str::<Value>(last).map_err(|error| format!("report of a run: {error}"))
    }
}
