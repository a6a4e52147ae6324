//! From layers of texts to one validated configuration: the only place where settings get their
//! meaning.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::error::CliError;
use super::hostfile;
use super::layers::{Layers, Origin};
use super::logging::{LogConfig, LogFormat, check_filter};
use super::print::print_config;
use super::progress::ProgressMode;
use super::restart;
use super::settings::{Setting, by_flag};
use super::units::{parse_duration, parse_size, shorten};
use crate::config::{
    CheckpointConfig, CheckpointMode, ClaimMode, FlowConfig, HeartbeatConfig, JobConfig, OnCancel,
    RestartStrategy, RestoreConfig, RestoreFrom, RocksConfig, RocksProfile, StateBackendKind,
    StateConfig,
};
use crate::ids::Name;
use crate::protocol::plan;
use crate::storage::local_copy::check_local;

/// Key groups are 16-bit numbers, half of which are kept for later.
const MAX_PARALLELISM_MAX: u16 = 32_768;

/// Units: bytes. RocksDB with less is of no use.
const ROCKSDB_MEMORY_MIN: u64 = 256 << 10;

/// What a program was told, validated.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    /// The job.
    pub config: JobConfig,
    /// Whether this process is to start the processes of the job and watch them, instead of running
    /// it. Never set in a process that a supervisor started, though its command line may say so.
    pub supervise: bool,
    /// The text to print instead of running, if that was asked for.
    pub print_config: Option<String>,
    /// How to log.
    pub log: LogConfig,
    /// Whether to show a line of progress.
    pub progress: ProgressMode,
    /// What is no error but probably a mistake; to be logged once logging is set up.
    pub warnings: Vec<String>,
}

/// Reads settings through the layers.
pub(crate) struct Reader<'a> {
    layers: &'a Layers,
}

/// Gives all settings their meaning, for a program whose job has that name unless a setting says
/// otherwise.
pub(crate) fn resolve(job_name: &str, layers: &Layers, print: bool) -> Result<Resolved, CliError> {
    let reader = Reader { layers };
    let mut config = JobConfig::new(name(&reader, job_name)?);
    parallelism(&reader, &mut config)?;
    network(&reader, &mut config)?;
    config.state = state(&reader)?;
    config.checkpoints = checkpoints(&reader)?;
    config.restore = restore(&reader, &config.checkpoints)?;
    config.restart = restart::read(&reader)?;
    config.flow = flow(&reader)?;
    config.watermark_interval = reader.positive("watermark-interval")?;

    let mut warnings = layers.warnings.clone();
    let fit = validate_plan(&config);
    warnings.extend(fit.map_err(|problem| CliError::Plan { problem })?);
    let supervise = supervise(&reader, layers.supervised, &config)?;
    let log = log(&reader)?;
    let progress = reader.choice(
        "progress",
        &[
            ("auto", ProgressMode::Auto),
            ("always", ProgressMode::Always),
            ("never", ProgressMode::Never),
        ],
    )?;
    let print_config = print.then(|| print_config(job_name, layers));
    Ok(Resolved { config, supervise, print_config, log, progress, warnings })
}

/// Reads what a supervisor needs that does not run a job itself.
pub(crate) fn resolve_supervisor(
    layers: &Layers,
) -> Result<(RestartStrategy, LogConfig), CliError> {
    let reader = Reader { layers };
    Ok((restart::read(&reader)?, log(&reader)?))
}

/// The one call site of the rules by which numbers fit together. `Ok` holds warnings.
fn validate_plan(config: &JobConfig) -> Result<Vec<String>, String> {
    let mut warnings = plan::validate(&config.checkpoints)?;
    warnings.extend(plan::validate_restart(&config.restart)?);
    Ok(warnings)
}

/// Whether this process is to be a supervisor. One that is chooses the addresses of its processes
/// itself.
fn supervise(reader: &Reader<'_>, supervised: bool, config: &JobConfig) -> Result<bool, CliError> {
    let supervise = reader.value("supervise", boolean)? && !supervised;
    for (flag, given) in
        [("process", config.process > 0), ("hostfile", reader.is_given("hostfile"))]
    {
        if supervise && given {
            let problem = "a supervisor starts all processes of the job on this machine and numbers them \
                           itself: leave this out, or --supervise";
            return Err(reader.error(flag, problem.to_owned()));
        }
    }
    Ok(supervise)
}

fn name(reader: &Reader<'_>, job_name: &str) -> Result<Name, CliError> {
    match reader.optional("job-name", |text| Name::new(text).map_err(|e| e.to_string()))? {
        Some(name) => Ok(name),
        None => Name::new(job_name).map_err(|error| CliError::Value {
            given: "the job's name in the program".to_owned(),
            problem: error.to_string(),
        }),
    }
}

fn parallelism(reader: &Reader<'_>, config: &mut JobConfig) -> Result<(), CliError> {
    config.workers = reader.at_least_one("workers")?;
    config.processes = reader.at_least_one("processes")?;
    config.process = reader.value("process", number)?;
    if config.process >= config.processes {
        let (process, processes) = (config.process, config.processes);
        let problem = format!(
            "process {process} of {processes}: processes are counted from 0, so this is at most {}",
            processes - 1
        );
        return Err(reader.error("process", problem));
    }
    config.max_parallelism = reader.value("max-parallelism", |text| {
        let groups = number::<u32>(text)?;
        let valid = u16::try_from(groups).ok().filter(|n| (1..=MAX_PARALLELISM_MAX).contains(n));
        valid.ok_or_else(|| format!("{groups} is not between 1 and {MAX_PARALLELISM_MAX}"))
    })?;
    let parallelism = config.workers.saturating_mul(config.processes);
    if parallelism > usize::from(config.max_parallelism) {
        let many = if reader.is_given("workers") { "workers" } else { "processes" };
        let problem = format!(
            "{} processes of {} workers are more workers than the {} key groups: \
             start fewer, or raise --max-parallelism (up to {MAX_PARALLELISM_MAX}, and only for a new job)",
            config.processes, config.workers, config.max_parallelism
        );
        return Err(reader.error(many, problem));
    }
    Ok(())
}

fn network(reader: &Reader<'_>, config: &mut JobConfig) -> Result<(), CliError> {
    config.secret_file = reader.optional("secret-file", path)?;
    if let Some(file) = reader.optional("hostfile", path)? {
        let hosts = hostfile::read(&file, &reader.form("hostfile"), config.processes)?;
        // Whoever reaches the ports could take part in the job, so a secret is not optional there.
        if let (Some((given, address)), true, None) =
            (&hosts.reachable, config.processes > 1, &config.secret_file)
        {
            let problem = format!(
                "`{address}` is not a loopback address, so others may reach it: name a file with a \
                 secret, the same for every process, with --secret-file"
            );
            return Err(CliError::Hostfile { given: given.clone(), problem });
        }
        config.addresses = hosts.addresses;
    }
    config.heartbeat = HeartbeatConfig {
        interval: reader.positive("heartbeat-interval")?,
        timeout: reader.positive("heartbeat-timeout")?,
    };
    if config.heartbeat.timeout <= config.heartbeat.interval.saturating_mul(2) {
        let late = if reader.is_given("heartbeat-timeout") {
            "heartbeat-timeout"
        } else {
            "heartbeat-interval"
        };
        let problem = "the timeout must be more than twice the interval, or one late sign of life \
                       would end the attempt: raise --heartbeat-timeout or lower --heartbeat-interval";
        return Err(reader.error(late, problem.to_owned()));
    }
    Ok(())
}

fn state(reader: &Reader<'_>) -> Result<StateConfig, CliError> {
    let backends = [("heap", StateBackendKind::Heap), ("rocksdb", StateBackendKind::RocksDb)];
    let backend = reader.choice("state-backend", &backends)?;
    if backend == StateBackendKind::RocksDb && !cfg!(feature = "rocksdb") {
        let problem = "this program was built without RocksDB: build it with the feature `rocksdb` of highwater";
        return Err(reader.error("state-backend", problem.to_owned()));
    }
    let profiles = [
        ("default", RocksProfile::Default),
        ("spinning-disk", RocksProfile::SpinningDisk),
        ("flash-ssd", RocksProfile::FlashSsd),
        ("low-memory", RocksProfile::LowMemory),
    ];
    Ok(StateConfig {
        backend,
        rocksdb: RocksConfig {
            memory_bytes: reader.value("rocksdb-memory", |text| match parse_size(text)? {
                bytes if bytes < ROCKSDB_MEMORY_MIN => {
                    Err(format!("`{text}` is too little: give at least 256KiB"))
                }
                bytes => usize::try_from(bytes)
                    .map_err(|_| format!("`{text}` is too large for this machine")),
            })?,
            profile: reader.choice("rocksdb-profile", &profiles)?,
            directory: reader.optional("state-dir", path)?,
        },
    })
}

fn checkpoints(reader: &Reader<'_>) -> Result<CheckpointConfig, CliError> {
    let config = checkpoint_values(reader)?;
    if let Some(copies) = &config.local_recovery {
        check_local(config.directory.as_deref(), copies)
            .map_err(|problem| reader.error("local-recovery", problem))?;
    }
    Ok(config)
}

fn checkpoint_values(reader: &Reader<'_>) -> Result<CheckpointConfig, CliError> {
    let modes = [
        ("exactly-once", CheckpointMode::ExactlyOnce),
        ("at-least-once", CheckpointMode::AtLeastOnce),
    ];
    Ok(CheckpointConfig {
        directory: reader.optional("checkpoint-dir", path)?,
        interval: reader.value("checkpoint-interval", duration_or_off)?,
        mode: reader.choice("checkpoint-mode", &modes)?,
        alignment_timeout: reader.value("alignment-timeout", duration_or_none)?,
        channel_alignment_timeouts: reader
            .optional("channel-alignment-timeouts", channel_timeouts)?
            .unwrap_or_default(),
        timeout: reader.value("checkpoint-timeout", parse_duration)?,
        slow_after: reader.value("slow-checkpoint-after", duration_or_off)?,
        min_pause: reader.value("min-pause", duration_or_off)?.unwrap_or(Duration::ZERO),
        concurrent_max: reader.value("concurrent-checkpoints", number)?,
        tolerable_failures: reader.value("tolerable-failures", |text| match text {
            "unlimited" => Ok(None),
            _ => number(text).map(Some).map_err(|error| format!("{error}, or `unlimited`")),
        })?,
        retained: reader.value("retained-checkpoints", number)?,
        on_cancel: reader
            .choice("on-cancel", &[("retain", OnCancel::Retain), ("delete", OnCancel::Delete)])?,
        writer_threads: reader.at_least_one("checkpoint-threads")?,
        inline_bytes_max: reader.value("inline-bytes-max", |text| {
            let bytes = parse_size(text)?;
            usize::try_from(bytes).map_err(|_| format!("`{text}` is too large for this machine"))
        })?,
        incremental: reader.value("incremental", boolean)?,
        incremental_bytes_min: reader.value("incremental-bytes-min", |text| {
            let bytes = parse_size(text)?;
            usize::try_from(bytes).map_err(|_| format!("`{text}` is too large for this machine"))
        })?,
        local_recovery: reader.optional("local-recovery", path)?,
    })
}

fn duration_or_none(text: &str) -> Result<Option<Duration>, String> {
    if text == "none" {
        return Ok(None);
    }
    parse_duration(text).map(Some).map_err(|error| format!("{error}, or `none`"))
}

/// `name=time` or `name=none`, separated by commas.
fn channel_timeouts(text: &str) -> Result<BTreeMap<Name, Option<Duration>>, String> {
    let mut timeouts = BTreeMap::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let Some((name, timeout)) = pair.split_once('=') else {
            return Err(format!("`{pair}` should be a channel and a time: `orders=1s`"));
        };
        let name = Name::new(name.trim()).map_err(|error| error.to_string())?;
        let timeout = duration_or_none(timeout.trim())?;
        if timeouts.insert(name.clone(), timeout).is_some() {
            return Err(format!("channel {name} is given twice"));
        }
    }
    Ok(timeouts)
}

/// `old=new,...`. No name is on both sides: then the renames mean the same when they are applied again.
fn renames(text: &str) -> Result<BTreeMap<Name, Name>, String> {
    let mut renames = BTreeMap::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let Some((old, new)) = pair.split_once('=') else {
            return Err(format!("`{pair}` should be two names of an operator: `old=new`"));
        };
        let name = |text: &str| Name::new(text.trim()).map_err(|error| error.to_string());
        let (old, new) = (name(old)?, name(new)?);
        if renames.values().any(|other| *other == new) {
            return Err(format!("two operators are to be called {new}"));
        }
        if renames.insert(old.clone(), new).is_some() {
            return Err(format!("operator {old} is renamed twice"));
        }
    }
    if let Some(both) = renames.values().find(|new| renames.contains_key(*new)) {
        return Err(format!("{both} is an old and a new name: rename in two runs"));
    }
    Ok(renames)
}

fn restore(reader: &Reader<'_>, checkpoints: &CheckpointConfig) -> Result<RestoreConfig, CliError> {
    let from = reader.value("restore", |text| match text {
        "newest" => Ok(RestoreFrom::Newest),
        "fresh" => Ok(RestoreFrom::Fresh),
        "" => Err("say `newest`, `fresh`, a checkpoint's number or its path".to_owned()),
        checkpoint => Ok(RestoreFrom::Checkpoint(checkpoint.to_owned())),
    })?;
    if let RestoreFrom::Checkpoint(text) = &from
        && text.parse::<u64>().is_ok()
        && checkpoints.directory.is_none()
    {
        let problem = format!(
            "checkpoint {text} can only be found in a directory: name it with --checkpoint-dir, \
             or give the checkpoint's path"
        );
        return Err(reader.error("restore", problem));
    }
    let modes = [("no-claim", ClaimMode::NoClaim), ("claim", ClaimMode::Claim)];
    let claim_mode = reader.choice("claim-mode", &modes)?;
    if claim_mode == ClaimMode::Claim && checkpoints.directory.is_none() {
        let problem = "what is claimed is deleted once the job has a checkpoint of its own, and without --checkpoint-dir \
                       that would be lost with the process: name a directory";
        return Err(reader.error("claim-mode", problem.to_owned()));
    }
    Ok(RestoreConfig {
        from,
        claim_mode,
        allow_dropped_state: reader.value("allow-dropped-state", boolean)?,
        allow_new_state: reader.value("allow-new-state", boolean)?,
        renamed: reader.optional("rename-state", renames)?.unwrap_or_default(),
    })
}

fn flow(reader: &Reader<'_>) -> Result<FlowConfig, CliError> {
    Ok(FlowConfig {
        in_flight_target: reader.positive("in-flight-target")?,
        in_flight_bytes_max: reader.value("in-flight-bytes-max", |text| {
            match parse_size(text)? {
                0 => {
                    Err("nothing could ever be sent with 0 bytes in flight: give at least 1"
                        .to_owned())
                }
                bytes => Ok(bytes),
            }
        })?,
        step_target: reader.positive("step-target")?,
    })
}

fn log(reader: &Reader<'_>) -> Result<LogConfig, CliError> {
    Ok(LogConfig {
        filter: reader.value("log", |text| check_filter(text).map(|()| text.to_owned()))?,
        format: reader
            .choice("log-format", &[("text", LogFormat::Text), ("json", LogFormat::Json)])?,
    })
}

impl Reader<'_> {
    fn setting(flag: &str) -> &'static Setting {
        by_flag(flag).expect("only flags of the table are read, as a test over all of them shows")
    }

    /// The value of a setting that has a default.
    pub fn value<T>(
        &self,
        flag: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, CliError> {
        self.optional(flag, parse).map(|value| value.expect("the table has a default for it"))
    }

    /// The value of a setting that may be unset.
    pub fn optional<T>(
        &self,
        flag: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, CliError> {
        let given = self.layers.get(Self::setting(flag));
        let value = given.map(|given| parse(&given.text)).transpose();
        value.map_err(|problem| self.error(flag, problem))
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&self, flag: &str, words: &[(&str, T)]) -> Result<T, CliError> {
        self.value(flag, |text| {
            let known = words.iter().find(|(word, _)| *word == text);
            known.map(|(_, value)| *value).ok_or_else(|| {
                let known: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
                format!("`{}` is not one of {}", shorten(text), known.join(", "))
            })
        })
    }

    /// A duration that is not zero.
    pub fn positive(&self, flag: &str) -> Result<Duration, CliError> {
        self.value(flag, |text| match parse_duration(text)? {
            Duration::ZERO => Err("it must be longer than 0: write for example `10ms`".to_owned()),
            duration => Ok(duration),
        })
    }

    fn at_least_one(&self, flag: &str) -> Result<usize, CliError> {
        self.value(flag, |text| match number(text)? {
            0 => Err("it must be at least 1".to_owned()),
            count => Ok(count),
        })
    }

    /// Where the setting's value comes from; of an unset one, the default.
    pub fn origin(&self, flag: &str) -> u8 {
        let given = self.layers.get(Self::setting(flag));
        given.map_or(Origin::Default, |given| given.origin).layer()
    }

    /// Whether any layer but the defaults has it.
    pub fn is_given(&self, flag: &str) -> bool {
        self.origin(flag) < Origin::Default.layer()
    }

    /// The setting in the form in which it was given.
    fn form(&self, flag: &str) -> String {
        let setting = Self::setting(flag);
        let origin = self.layers.get(setting).map_or(Origin::Default, |given| given.origin);
        self.layers.form(setting, origin)
    }

    /// The error that this setting's value is.
    pub fn error(&self, flag: &str, problem: String) -> CliError {
        CliError::Value { given: self.form(flag), problem }
    }
}

/// A whole number that fits its type.
pub(crate) fn number<T: FromStr>(text: &str) -> Result<T, String> {
    // `parse` would take a leading plus; a file would not.
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits {
        return Err(format!("`{}` is not a whole number: write for example `4`", shorten(text)));
    }
    text.parse().map_err(|_| format!("`{}` is too large a number", shorten(text)))
}

fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(format!("`{}` is neither `true` nor `false`", shorten(text))),
    }
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("the path is empty".to_owned()) } else { Ok(PathBuf::from(text)) }
}

fn duration_or_off(text: &str) -> Result<Option<Duration>, String> {
    match text {
        "off" | "none" => Ok(None),
        _ => parse_duration(text).map(Some).map_err(|error| format!("{error}, or `off`")),
    }
}
