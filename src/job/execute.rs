//! Running a job from a configuration, without a command line.

use std::fmt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use crossbeam::channel::bounded;
use timely::dataflow::Scope;

use crate::config::JobConfig;
use crate::format::record::{SavepointFormat, SavepointInfo};
use crate::ids::Attempt;
use crate::job::{BuildError, Job};
use crate::network::{self, MeshSetup, Secret};
use crate::protocol::key_groups::MAX_PARALLELISM_LIMIT;
use crate::protocol::plan;
use crate::runtime::attempt::{
    Build, Environment, Running, delete_if_cancelled, run_attempt, run_in_place,
};
use crate::runtime::clock::SystemClock;
use crate::runtime::context::{Failure, FailureKind, WorkerContext};
use crate::runtime::counters::Counters;
use crate::runtime::describe;
use crate::runtime::driver::Request;
use crate::runtime::savepoint::{AskedSavepoint, Asker};
use crate::runtime::start::{Start, announce, claim, follow};
use crate::runtime::time::Time;
use crate::storage::local_copy::check_local;
use crate::storage::memory::MemoryStorage;
use crate::storage::savepoint::absolute;
use crate::storage::{CheckpointStorage, LocalCopies, LocalStorage};

/// A job ended with a failure.
pub struct JobError {
    what: String,
    kind: FailureKind,
}

impl JobError {
    pub(crate) fn refused(what: impl Into<String>) -> Self {
        Self { what: what.into(), kind: FailureKind::Fatal }
    }

    /// Whether another attempt could go better: the failure was not one of configuration or of restoring.
    #[must_use]
    pub fn restartable(&self) -> bool {
        matches!(self.kind, FailureKind::Transient | FailureKind::PeerLost)
    }

    pub(crate) fn kind(&self) -> FailureKind {
        self.kind
    }
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

// `main` shows a returned error by its `Debug` form, so that form is for people too.
impl fmt::Debug for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for JobError {}

impl From<Failure> for JobError {
    fn from(failure: Failure) -> Self {
        let what = match &failure.operator {
            Some(operator) => format!("operator {operator}: {}", failure.what),
            None => failure.what,
        };
        Self { what, kind: failure.kind }
    }
}

impl From<BuildError> for JobError {
    fn from(error: BuildError) -> Self {
        Self::refused(describe(&error))
    }
}

/// There is no savepoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct SavepointFailed {
    why: String,
}

/// A handle on a running job, usable from any thread.
#[derive(Clone)]
pub struct JobHandle {
    running: Running,
    counters: Arc<Counters>,
}

impl fmt::Debug for JobHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobHandle").finish_non_exhaustive()
    }
}

impl Default for JobHandle {
    fn default() -> Self {
        Self { running: Running::default(), counters: Arc::new(Counters::default()) }
    }
}

impl JobHandle {
    /// Ends the job with a final checkpoint: what was read is committed, and the job can go on from there. If
    /// the attempt fails before, or none runs now, the next one does so at once. What goes round in a loop or waits for an answer from
    /// outside stays in that checkpoint, also if the input has ended. Only the process of worker 0 can.
    pub fn stop(&self) {
        self.running.request(Request::Stop { drain: false });
    }

    /// As [`stop`](Self::stop), after event time has moved to its end on what was read: an irrevocable end.
    pub fn drain(&self) {
        self.running.request(Request::Stop { drain: true });
    }

    /// Writes a savepoint to the directory `to`, which must not be there yet, and waits for it. Only the process of
    /// worker 0 can; it must not be called on a worker's thread.
    ///
    /// # Errors
    /// [`SavepointFailed`]: no attempt runs now, or it failed meanwhile, or the savepoint could not be written. The job
    /// goes on.
    pub fn savepoint(&self, to: impl AsRef<Path>) -> Result<SavepointInfo, SavepointFailed> {
        self.savepoint_as(to, SavepointFormat::Canonical)
    }

    /// Ends the job with a final checkpoint that is a savepoint as well, and waits for that. `drain`: after event time has
    /// moved to its end. Who runs the job sees it end with success when sinks have committed.
    ///
    /// # Errors
    /// As [`savepoint`](Self::savepoint). The job goes on; a drained one ends without a savepoint.
    pub fn stop_with_savepoint(
        &self,
        to: impl AsRef<Path>,
        drain: bool,
    ) -> Result<SavepointInfo, SavepointFailed> {
        self.stop_with_savepoint_as(to, drain, SavepointFormat::Canonical)
    }

    /// As [`savepoint`](Self::savepoint), in a format.
    ///
    /// # Errors
    /// As there.
    pub fn savepoint_as(
        &self,
        to: impl AsRef<Path>,
        format: SavepointFormat,
    ) -> Result<SavepointInfo, SavepointFailed> {
        self.ask_for_savepoint(to.as_ref(), None, format)
    }

    /// As [`stop_with_savepoint`](Self::stop_with_savepoint), in a format.
    ///
    /// # Errors
    /// As there.
    pub fn stop_with_savepoint_as(
        &self,
        to: impl AsRef<Path>,
        drain: bool,
        format: SavepointFormat,
    ) -> Result<SavepointInfo, SavepointFailed> {
        self.ask_for_savepoint(to.as_ref(), Some(drain), format)
    }

    fn ask_for_savepoint(
        &self,
        to: &Path,
        stop: Option<bool>,
        format: SavepointFormat,
    ) -> Result<SavepointInfo, SavepointFailed> {
        let to = absolute(to).map_err(|error| SavepointFailed { why: describe(&error) })?;
        let (sender, answer) = bounded(1);
        let asker = Asker::Thread(sender);
        self.running.request(Request::Savepoint(AskedSavepoint { to, stop, format, asker }));
        let ended = "no attempt of the job runs now, or it ended before the savepoint was complete";
        let answer = answer.recv().unwrap_or_else(|_| Err(ended.to_owned()));
        answer.map_err(|why| SavepointFailed { why })
    }

    /// Ends the job at once. It can go on from its last checkpoint.
    pub fn cancel(&self) {
        self.running.request(Request::Cancel);
    }

    /// What the job has done so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// Runs a job to its end: all attempts of it if this is its only process, else this process's share of one attempt.
///
/// # Errors
/// [`JobError`] if the job cannot be built or restored, or if it failed and is not restarted from here.
pub fn execute(
    config: JobConfig,
    handle: &JobHandle,
    build: impl Fn(&Job<'_>) -> Result<(), JobError> + Send + Sync + 'static,
) -> Result<(), JobError> {
    execute_in_run(config, handle, None, build)
}

/// Where a supervisor keeps which attempt its run began with.
pub(crate) trait RunRecord {
    /// The first attempt of the run, if there was one.
    fn began(&self) -> Option<Attempt>;
    /// Writes it down, the first time.
    fn begin(&self, attempt: Attempt);
}

pub(crate) fn execute_in_run(
    mut config: JobConfig,
    handle: &JobHandle,
    run: Option<&dyn RunRecord>,
    build: impl Fn(&Job<'_>) -> Result<(), JobError> + Send + Sync + 'static,
) -> Result<(), JobError> {
    check(&config).map_err(JobError::refused)?;
    let storage: Arc<dyn CheckpointStorage> = match &config.checkpoints.directory {
        Some(directory) => {
            let opened = crate::storage::open(directory);
            opened.map_err(|error| {
                let kind = match error.is_unreachable() {
                    true => FailureKind::Transient,
                    false => FailureKind::Fatal,
                };
                JobError { what: describe(&error), kind }
            })?
        }
        None if config.processes > 1 && config.checkpoints.interval.is_some() => {
            return Err(JobError::refused(
                "checkpoints of a job with several processes need a directory that all of them see: \
                 set --checkpoint-dir, or --checkpoint-interval off",
            ));
        }
        None => Arc::new(MemoryStorage::new()),
    };
    let copies = LocalCopies::new(
        storage,
        config.checkpoints.local_recovery.as_deref().and_then(open_local),
        Arc::clone(handle.counters.restore_counts()),
    );
    if config.addresses.is_empty() && config.processes > 1 {
        config.addresses =
            (0..config.processes).map(|index| format!("127.0.0.1:{}", 2101 + index)).collect();
    }
    let env = Environment {
        clock: Arc::new(SystemClock::new()),
        storage: Arc::new(copies.clone()),
        copies: Some(copies),
        counters: Arc::clone(&handle.counters),
        turns: None,
        running: handle.running.clone(),
    };
    let build = builder(build);
    if config.processes == 1 {
        Ok(run_in_place(&env, &config, &build)?)
    } else {
        Ok(run_process(&env, &config, run, &build)?)
    }
}

/// The place for local copies. A disk that is broken costs the copies, not the job.
fn open_local(directory: &Path) -> Option<Arc<dyn CheckpointStorage>> {
    match LocalStorage::open(directory) {
        // They are checked before use, and the store has what a power cut takes.
        Ok(local) => Some(Arc::new(local.volatile())),
        Err(error) => {
            tracing::warn!("there are no local copies of checkpoints: {}", describe(&error));
            None
        }
    }
}

/// Checks what a program may have put into its configuration; the command line lets nothing else through.
fn check(config: &JobConfig) -> Result<(), String> {
    let JobConfig { workers, processes, process, max_parallelism, .. } = config;
    if *workers == 0 || *processes == 0 {
        return Err(format!(
            "{workers} workers in {processes} processes: set workers and processes to 1 or more"
        ));
    }
    if process >= processes {
        return Err(format!("process {process} of {processes}: they are numbered from 0"));
    }
    if !(1..=MAX_PARALLELISM_LIMIT).contains(max_parallelism) {
        return Err(format!(
            "max_parallelism {max_parallelism}: set it to 1 to {MAX_PARALLELISM_LIMIT}"
        ));
    }
    if workers.saturating_mul(*processes) > usize::from(*max_parallelism) {
        return Err(format!(
            "{processes} processes of {workers} workers are more workers than the {max_parallelism} key groups: \
             start fewer, or raise max_parallelism (up to {MAX_PARALLELISM_LIMIT}, and only for a new job)"
        ));
    }
    plan::validate(&config.checkpoints)?;
    if let Some(copies) = &config.checkpoints.local_recovery {
        check_local(config.checkpoints.directory.as_deref(), copies)?;
    }
    plan::validate_restart(&config.restart)?;
    Ok(())
}

/// Wraps what a user's function builds into what the runtime asks for.
pub(crate) fn builder(
    build: impl Fn(&Job<'_>) -> Result<(), JobError> + Send + Sync + 'static,
) -> Arc<Build> {
    Arc::new(move |scope: Scope<'_, Time>, context: &Rc<WorkerContext>| {
        let job = Job::new(scope, Rc::clone(context));
        let built = build(&job);
        let mut errors: Vec<String> = Vec::new();
        errors.extend(built.err().map(|error| error.to_string()));
        let found = job.finish();
        let restartable = errors.is_empty() && found.iter().all(BuildError::restartable);
        errors.extend(found.iter().map(|error| describe(error)));
        if errors.is_empty() {
            return Ok(());
        }
        let kind = if restartable { FailureKind::Transient } else { FailureKind::Fatal };
        Err(Failure { operator: None, what: errors.join("; "), kind })
    })
}

/// Runs this process's share of one attempt.
fn run_process(
    env: &Environment,
    config: &JobConfig,
    run: Option<&dyn RunRecord>,
    build: &Arc<Build>,
) -> Result<(), Failure> {
    let fatal = |what: String| Failure { operator: None, what, kind: FailureKind::Fatal };
    let network = |error: network::NetworkError| Failure {
        operator: None,
        what: describe(&error),
        kind: if error.is_configuration() { FailureKind::Fatal } else { FailureKind::PeerLost },
    };
    let secret = match &config.secret_file {
        Some(file) => Secret::load(file).map_err(network)?,
        None => {
            return Err(fatal(
                "processes know each other by a shared secret: give all of them the same --secret-file, \
                 or start them with `highwater run`, which makes one"
                    .to_owned(),
            ));
        }
    };
    let setup = MeshSetup {
        job: config.name.clone(),
        processes: config.processes,
        process: config.process,
        addresses: config.addresses.clone(),
        secret,
        connect_timeout: std::time::Duration::from_secs(60),
        heartbeat: config.heartbeat.clone(),
    };
    if config.process == 0 {
        let (start, claim, restored) = claim(env, config, run.and_then(RunRecord::began))?;
        if let Some(run) = run {
            run.begin(start.attempt);
        }
        announce(&start, restored.as_ref());
        let announcement = postcard::to_stdvec(&start).expect("numbers always encode");
        let mesh = network::connect(setup, Some((start.attempt, announcement))).map_err(network)?;
        run_attempt(env, config, &start, Some(claim), restored, Some(mesh), build)?;
        delete_if_cancelled(env, config);
        Ok(())
    } else {
        let mesh = network::connect(setup, None).map_err(network)?;
        let start: Start = postcard::from_bytes(&mesh.announcement)
            .map_err(|error| fatal(format!("process 0 runs another version: {error}")))?;
        let restored = follow(env, config, &start)?;
        run_attempt(env, config, &start, None, restored, Some(mesh), build)
    }
}
