//! The entry point of a program: flags in, job run, result out.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli::plan::plan_line;
use crate::cli::settings::PLAN_VARIABLE;
use crate::cli::{CliError, NoArgs, ProgressMode, ProgressPrinter, ProgressSample, Resolved};
use crate::ids::Attempt;
use crate::job::execute::{RunRecord, builder, execute_in_run};
use crate::job::{Job, JobError, JobHandle};
use crate::runtime::context::FailureKind;
use crate::runtime::describe;
use crate::supervisor::{self, Supervision, environment, exit};

/// How often the progress line is drawn.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Runs a program that has no flags of its own. See [`run_with`].
///
/// # Errors
/// As [`run_with`].
pub fn run(
    name: &str,
    build: impl Fn(&Job<'_>) -> Result<(), JobError> + Send + Sync + 'static,
) -> Result<(), JobError> {
    run_with::<NoArgs>(name, move |job, _| build(job))
}

/// Runs a program: parses the command line (the program's own flags `A` beside ours), then builds and runs the job
/// `name`, with as many workers, processes, checkpoints and restarts as flags, environment and file say.
///
/// `build` is called once for each worker and attempt, and must build the same dataflow each time.
///
/// `--help`, `--print-config`, wrong flags, and `--supervise` end the process here. So does a failure in one of several
/// processes: the exit code tells whoever started it whether a restart can help
/// ([`exit`](crate::supervisor::exit)).
///
/// # Errors
/// [`JobError`] if the job cannot be built or restored, or has failed and is not restarted.
pub fn run_with<A: clap::Args + Send + Sync + 'static>(
    name: &str,
    build: impl Fn(&Job<'_>, &A) -> Result<(), JobError> + Send + Sync + 'static,
) -> Result<(), JobError> {
    // On the main thread and before all else: the signal that ends us with our supervisor belongs to this thread.
    let supervised = supervisor::adopt().unwrap_or_else(|error| {
        eprintln!("error: {}", describe(&error));
        std::process::exit(exit::FATAL)
    });
    let parsed = super::parse::<A>(name, std::env::args_os());
    let (args, resolved) = parsed.unwrap_or_else(|error| leave(&error));
    if let Some(config) = &resolved.print_config {
        use std::io::Write;
        // A reader that has seen enough may close the pipe.
        let _ = std::io::stdout().write_all(config.as_bytes());
        std::process::exit(exit::OK);
    }
    super::start_logging(&resolved.log);
    for warning in &resolved.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(path) = std::env::var_os(PLAN_VARIABLE) {
        let build = builder(move |job| build(job, &args));
        match plan_line(path.as_ref(), &resolved.config, &build) {
            Ok(line) => {
                println!("{line}");
                std::process::exit(exit::OK)
            }
            Err(error) => {
                eprintln!("error: {error}");
                std::process::exit(exit::FATAL)
            }
        }
    }
    if resolved.supervise {
        std::process::exit(supervise_self(&resolved));
    }
    name_panics();
    let handle = JobHandle::default();
    end_on_signals(&handle);
    let record = supervised.then(SupervisedRun::of_environment).flatten();
    let record = record.as_ref().map(|record| record as &dyn RunRecord);
    let progress = Progress::start(resolved.progress, &handle, resolved.config.process);
    let several = resolved.config.processes > 1;
    let ran = execute_in_run(resolved.config, &handle, record, move |job| build(job, &args));
    drop(progress);
    let Err(error) = ran else { return Ok(()) };
    if supervised || several {
        // Whatever is logged: this is the last word.
        eprintln!("error: {error}");
        std::process::exit(match error.kind() {
            FailureKind::Fatal => exit::FATAL,
            FailureKind::Transient => exit::FAILED,
            FailureKind::PeerLost => exit::PEER_LOST,
            FailureKind::Fenced => exit::FENCED,
        });
    }
    Err(error)
}

fn leave(error: &CliError) -> ! {
    let code = if error.is_help() { exit::OK } else { exit::FATAL };
    let _ = error.report();
    std::process::exit(code)
}

fn supervise_self(resolved: &Resolved) -> i32 {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            eprintln!("error: this program's own file is not known: {error}");
            return exit::FATAL;
        }
    };
    let supervision = Supervision {
        program,
        args: std::env::args_os().skip(1).collect(),
        processes: resolved.config.processes,
        workers: Some(resolved.config.workers),
        restart: resolved.config.restart.clone(),
        runtime_dir: None,
    };
    match supervisor::supervise(supervision) {
        Ok(outcome) => outcome.exit_code(),
        Err(error) => {
            eprintln!("error: {}", describe(&error));
            exit::FATAL
        }
    }
}

/// Panics become one line that names the operator. Timely's own, when a peer is lost, are no news: the heartbeat
/// tells it better.
fn name_panics() {
    std::panic::set_hook(Box::new(|info| {
        let message = info
            .payload_as_str()
            .map_or_else(|| "with a value that is no text".to_owned(), str::to_owned);
        if crate::runtime::attempt::says_connection_lost(&message) {
            tracing::debug!("{message}");
            return;
        }
        let at = info.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("a thread");
        match crate::runtime::current_operator() {
            Some(operator) => {
                tracing::error!(
                    operator,
                    thread,
                    "operator {operator} panicked at {at}: {message}"
                );
            }
            None => tracing::error!(thread, "panic at {at}: {message}"),
        }
    }));
}

/// The first SIGINT or SIGTERM cancels the job: it can go on from its last checkpoint. The second ends the process.
fn end_on_signals(handle: &JobHandle) {
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else { return };
    let handle = handle.clone();
    let watch = move || {
        for (count, signal) in signals.forever().enumerate() {
            if count > 0 {
                std::process::exit(128 + signal);
            }
            tracing::warn!("ending the job on signal {signal}; again to end it at once");
            handle.cancel();
        }
    };
    // Without the thread a signal ends the process at once, which is safe too.
    let _ = std::thread::Builder::new().name("hw-signals".to_owned()).spawn(watch);
}

/// Keeps the first attempt of a supervised run in the supervisor's private directory, so that a process that is
/// started again goes on with the run instead of beginning it again.
struct SupervisedRun {
    file: PathBuf,
}

impl SupervisedRun {
    fn of_environment() -> Option<Self> {
        let secret = PathBuf::from(std::env::var_os(environment::SECRET_FILE)?);
        Some(Self { file: secret.with_file_name("first-attempt") })
    }
}

impl RunRecord for SupervisedRun {
    fn began(&self) -> Option<Attempt> {
        std::fs::read_to_string(&self.file).ok()?.trim().parse().ok().map(Attempt)
    }

    fn begin(&self, attempt: Attempt) {
        if self.began().is_none()
            && let Err(error) = std::fs::write(&self.file, attempt.to_string())
        {
            tracing::warn!("{} cannot be written: {error}", self.file.display());
        }
    }
}

/// Draws the progress line until it is dropped.
struct Progress {
    ended: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Progress {
    fn start(mode: ProgressMode, handle: &JobHandle, process: usize) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let mut printer = ProgressPrinter::new(mode);
        if process > 0 || !printer.is_active() {
            return Self { ended, thread: None };
        }
        let (handle, stop) = (handle.clone(), Arc::clone(&ended));
        let draw = move || {
            let mut before = (Instant::now(), 0);
            while !stop.load(Ordering::Relaxed) {
                std::thread::park_timeout(PROGRESS_INTERVAL);
                printer.show(&sample(&handle, &mut before));
            }
            printer.clear();
        };
        let thread = std::thread::Builder::new().name("hw-progress".to_owned()).spawn(draw);
        Self { ended, thread: thread.ok() }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic of the drawing thread is no concern of the job's.
            let _ = thread.join();
        }
    }
}

fn sample(handle: &JobHandle, before: &mut (Instant, u64)) -> ProgressSample {
    let counters = handle.counters();
    let records = counters.source_records();
    let elapsed = before.0.elapsed().as_secs_f64().max(1e-3);
    let records_per_second = (records.saturating_sub(before.1) as f64 / elapsed) as u64;
    *before = (Instant::now(), records);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let lag = counters.watermark().map(|watermark| {
        let behind = i128::try_from(now.as_millis()).unwrap_or(i128::MAX) - i128::from(watermark);
        Duration::from_millis(u64::try_from(behind.max(0)).unwrap_or(u64::MAX))
    });
    let (last_checkpoint, in_progress) = counters.checkpoint_status();
    ProgressSample {
        records,
        records_per_second,
        watermark_lag: lag,
        last_checkpoint,
        in_progress,
        restarts: u32::try_from(counters.restarts()).unwrap_or(u32::MAX),
    }
}
