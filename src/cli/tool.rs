//! The `highwater` tool: supervises a program, looks into checkpoints and their state, asks for savepoints.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use super::checkpoints::Report;
use super::error::{CliError, with_causes};
use super::logging::start_logging;
use super::options::SupervisorOptions;
use super::rows::Format;
use super::savepoints::{convert, savepoint};
use super::{sources, states};
use crate::config::RestartStrategy;
use crate::format::record::SavepointFormat;
use crate::ids::{Epoch, Name};

/// Runs highwater programs, looks into their checkpoints, and asks them for savepoints.
#[derive(Debug, Parser)]
#[command(name = "highwater", version)]
struct Tool {
    #[command(subcommand)]
    command: ToolCommand,
}

#[derive(Debug, Subcommand)]
enum ToolCommand {
    /// Start the processes of a program on this machine, and start them again when they die
    Run(RunArgs),
    /// List, show, verify, delete or pin the checkpoints of a job
    #[command(subcommand)]
    Checkpoints(CheckpointsCommand),
    /// Ask a running job for a savepoint
    #[command(subcommand)]
    Savepoint(SavepointCommand),
    /// Show what a program would restore from a checkpoint or a savepoint, without starting the job; exit with 1 if it
    /// would not start
    RestorePlan {
        /// Directory of a checkpoint or a savepoint
        path: PathBuf,
        /// Write JSON
        #[arg(long)]
        json: bool,
        /// The program and its arguments
        #[arg(required = true, last = true, value_name = "PROGRAM")]
        program: Vec<OsString>,
    },
    /// Look into the state of a checkpoint or a savepoint
    #[command(subcommand)]
    State(StateCommand),
}

#[derive(Debug, Subcommand)]
enum SavepointCommand {
    /// Write a savepoint; the job goes on
    Trigger {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        savepoint: SavepointArgs,
    },
    /// Write a savepoint and end the job with it; if it cannot be written, the job goes on
    Stop {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        savepoint: SavepointArgs,
        /// Move event time to its end first, so that all windows fire: the job is over for good
        #[arg(long)]
        drain: bool,
    },
    /// Rewrite a savepoint or a checkpoint to another number of key groups, into a new savepoint; needs no job
    Convert {
        /// Directory of a checkpoint or a savepoint; it stays as it is
        path: PathBuf,
        /// Number of key groups of the new one
        #[arg(long, value_name = "N")]
        max_parallelism: u16,
        /// The directory to write; it must not exist
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct SavepointArgs {
    /// The directory to write, as the job's process of worker 0 sees it, or s3://bucket/prefix; it must not exist
    #[arg(long, value_name = "DIR|URL")]
    to: PathBuf,
    /// What keyed state is written as: entries that every program reads, or the files of its backend, which is faster
    #[arg(long, value_name = "FORMAT", default_value = "canonical", value_parser = savepoint_format)]
    format: SavepointFormat,
    /// How long to wait
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = super::parse_duration)]
    timeout: std::time::Duration,
}

fn savepoint_format(text: &str) -> Result<SavepointFormat, String> {
    match text {
        "canonical" => Ok(SavepointFormat::Canonical),
        "native" => Ok(SavepointFormat::Native),
        _ => Err("say `canonical` or `native`".to_owned()),
    }
}

#[derive(Debug, Subcommand)]
enum StateCommand {
    /// List operators, states, types, entries and bytes
    Ls {
        /// Directory of a checkpoint or a savepoint
        path: PathBuf,
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Write entries, one a row; of state whose shape is not known, bytes
    Dump {
        /// Directory of a checkpoint or a savepoint
        path: PathBuf,
        /// Only of this operator
        #[arg(long, value_name = "NAME", value_parser = name)]
        operator: Option<Name>,
        /// Only of this state
        #[arg(long, value_name = "NAME", value_parser = name)]
        state: Option<Name>,
        /// Only of this key group
        #[arg(long, value_name = "N")]
        key_group: Option<u16>,
        /// What to write
        #[arg(long, value_enum, default_value = "jsonl")]
        format: Format,
        /// The file to write [default: standard output]
        #[arg(long, short = 'o', value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Write what states hold for a key, as JSON; exit with 1 if that is nothing
    Get {
        /// Directory of a checkpoint or a savepoint
        path: PathBuf,
        /// Only of this operator
        #[arg(long, value_name = "NAME", value_parser = name)]
        operator: Option<Name>,
        /// Only of this state
        #[arg(long, value_name = "NAME", value_parser = name)]
        state: Option<Name>,
        /// The key, as `dump` writes it; what is not JSON is a text
        #[arg(long, value_name = "JSON")]
        key: String,
    },
    /// Write what was added, removed and changed, one key a line, as JSON; exit with 1 if anything was
    Diff {
        /// Directory of a checkpoint or a savepoint
        from: PathBuf,
        /// Directory of another one
        to: PathBuf,
        /// Only of this operator
        #[arg(long, value_name = "NAME", value_parser = name)]
        operator: Option<Name>,
        /// Only of this state
        #[arg(long, value_name = "NAME", value_parser = name)]
        state: Option<Name>,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Number of processes
    #[arg(short = 'n', long, value_name = "N", env = "HIGHWATER_PROCESSES", default_value = "1")]
    #[arg(value_parser = at_least_one)]
    processes: usize,
    /// Worker threads in each process [default: what the program says]
    #[arg(short = 'w', long, value_name = "N", env = "HIGHWATER_WORKERS")]
    #[arg(value_parser = at_least_one)]
    workers: Option<usize>,
    /// Where to put the private files of the run [default: the system's directory of temporary
    /// files]
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
    #[command(flatten)]
    options: SupervisorOptions,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true)]
    #[arg(value_name = "PROGRAM")]
    program: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
enum CheckpointsCommand {
    /// List the complete checkpoints, and what became of the last ones
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Show what is in a checkpoint, and what it cost
    Show {
        #[command(flatten)]
        place: Place,
        /// The checkpoint [default: the newest]
        id: Option<u64>,
    },
    /// Read every byte, and exit with 1 if something is damaged
    Verify {
        #[command(flatten)]
        place: Place,
        /// The checkpoint [default: all]
        id: Option<u64>,
    },
    /// Delete a checkpoint
    Delete {
        #[command(flatten)]
        place: Place,
        /// The checkpoint
        id: u64,
        /// Delete it even if it is the newest
        #[arg(long)]
        force: bool,
    },
    /// Keep a checkpoint, whatever the job would delete
    Pin {
        #[command(flatten)]
        place: Place,
        /// The checkpoint
        id: u64,
    },
    /// Let the job delete a checkpoint again when it wants to
    Unpin {
        #[command(flatten)]
        place: Place,
        /// The checkpoint
        id: u64,
    },
}

#[derive(Debug, Args)]
struct Place {
    /// Directory of all jobs' checkpoints, or s3://bucket/prefix
    #[arg(long, value_name = "DIR", env = "HIGHWATER_CHECKPOINT_DIR")]
    dir: PathBuf,
    /// Name of the job [default: the only one]
    #[arg(long, value_name = "NAME", env = "HIGHWATER_JOB_NAME")]
    #[arg(value_parser = name)]
    job: Option<Name>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// What `run` is to supervise.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RunPlan {
    pub program: PathBuf,
    pub args: Vec<OsString>,
    pub processes: usize,
    pub workers: Option<usize>,
    pub restart: RestartStrategy,
    pub runtime_dir: Option<PathBuf>,
}

/// Why the tool could not do what it was told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolError {
    #[error(transparent)]
    Cli(#[from] CliError),
    #[error("there is no checkpoint of any job in {location}")]
    NoJobs { location: String },
    #[error("{location} holds several jobs, say which one with --job: {jobs}")]
    SeveralJobs { location: String, jobs: String },
    #[error("there is no job {job} in {location}; {others}")]
    NoSuchJob { job: Name, location: String, others: String },
    #[error("job {job} has no complete checkpoint in {location}")]
    NoCheckpoint { job: Name, location: String },
    #[error(
        "checkpoint {id} is the newest of job {job}: without it the job goes back to an older one or does not \
         start; if that is what you want, say --force"
    )]
    Newest { job: Name, id: Epoch },
    #[error("there is no plan: {why}")]
    NoPlan { why: String },
    #[error("there is no savepoint: {why}")]
    NoSavepoint { why: String },
    #[error(
        "job {job} has not taken the request within {waited}: is it running, with {location} as its checkpoint directory?"
    )]
    NotRunning { job: Name, location: String, waited: String },
    #[error(
        "job {job} has taken the request and not answered within {waited}: it may still write the savepoint"
    )]
    NoAnswer { job: Name, waited: String },
    #[error("{location} holds no such state: `highwater state ls` lists what there is")]
    NoSuchState { location: String },
    #[error("{one} and {other} key groups: keys are not in the same groups")]
    KeyGroups { one: u16, other: u16 },
    #[error("{file} could not be written")]
    Output { file: String, source: std::io::Error },
    #[cfg(not(feature = "parquet"))]
    #[error(
        "this tool was built without Parquet: build it with `cargo build --release --features parquet --bin highwater`"
    )]
    NoParquet,
    /// The store or the supervisor failed.
    #[error(transparent)]
    Failed(#[from] Box<dyn std::error::Error + Send + Sync>),
}

/// Runs the tool with these arguments, the first of which is its own name.
///
/// Returns the code to exit with: 0 if all is well, 1 if `verify` found damage, 2 if the tool could
/// not do what it was told; of `run`, what the supervision came to.
pub fn run_tool(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match Tool::try_parse_from(arguments) {
        Err(error) => CliError::Usage(error).report(),
        Ok(tool) => match execute(tool.command) {
            Ok(code) => code,
            Err(ToolError::Cli(error)) => error.report(),
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "error: {}", with_causes(&error));
                ExitCode::from(2)
            }
        },
    }
}

fn execute(command: ToolCommand) -> Result<ExitCode, ToolError> {
    match command {
        ToolCommand::Run(arguments) => {
            let (plan, log) = plan(arguments, std::env::vars_os())?;
            start_logging(&log);
            sources::supervise(plan)
        }
        ToolCommand::Checkpoints(command) => checkpoints(command),
        ToolCommand::Savepoint(SavepointCommand::Convert { path, max_parallelism, to, json }) => {
            show(json, &convert(&path, max_parallelism, &to)?);
            Ok(ExitCode::SUCCESS)
        }
        ToolCommand::Savepoint(command) => {
            let (place, SavepointArgs { to, format, timeout }, stop) = match command {
                SavepointCommand::Trigger { place, savepoint } => (place, savepoint, None),
                SavepointCommand::Stop { place, savepoint, drain } => {
                    (place, savepoint, Some(drain))
                }
                SavepointCommand::Convert { .. } => unreachable!("the arm before has it"),
            };
            let report = savepoint(&place.dir, place.job.as_ref(), &to, stop, format, timeout)?;
            show(place.json, &report);
            Ok(ExitCode::SUCCESS)
        }
        ToolCommand::RestorePlan { path, json, program } => {
            let plan = super::plan::ask(&path, &program)?;
            show(json, &plan);
            let starts = plan.problems.is_empty();
            Ok(if starts { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        ToolCommand::State(StateCommand::Ls { path, json }) => {
            show(json, &states::states(&path)?);
            Ok(ExitCode::SUCCESS)
        }
        ToolCommand::State(StateCommand::Dump {
            path,
            operator,
            state,
            key_group,
            format,
            output,
        }) => {
            let wanted = states::Wanted { operator, state, key_group };
            let out: Box<dyn Write + Send> = match output {
                Some(file) => Box::new(std::fs::File::create(&file).map_err(|error| {
                    ToolError::Output { file: file.display().to_string(), source: error }
                })?),
                None => Box::new(std::io::stdout()),
            };
            states::dump(&path, &wanted, format, out)?;
            Ok(ExitCode::SUCCESS)
        }
        ToolCommand::State(StateCommand::Get { path, operator, state, key }) => {
            let wanted = states::Wanted { operator, state, key_group: None };
            let found = states::get(&path, &wanted, &key, Box::new(std::io::stdout()))?;
            Ok(if found { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        ToolCommand::State(StateCommand::Diff { from, to, operator, state }) => {
            let wanted = states::Wanted { operator, state, key_group: None };
            let differs = states::diff([&from, &to], &wanted, Box::new(std::io::stdout()))?;
            Ok(if differs { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
    }
}

/// What to supervise, and how to log meanwhile.
fn plan(
    arguments: RunArgs,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<(RunPlan, super::LogConfig), CliError> {
    let (restart, log) = arguments.options.resolve_with(environment)?;
    let mut words = arguments.program.into_iter();
    let program = words.next().map(PathBuf::from).unwrap_or_default();
    let plan = RunPlan {
        program,
        args: words.collect(),
        processes: arguments.processes,
        workers: arguments.workers,
        restart,
        runtime_dir: arguments.runtime_dir,
    };
    Ok((plan, log))
}

fn checkpoints(command: CheckpointsCommand) -> Result<ExitCode, ToolError> {
    match command {
        CheckpointsCommand::List { place } => {
            show(place.json, &sources::list(&place.dir, place.job.as_ref())?);
        }
        CheckpointsCommand::Show { place, id } => {
            show(place.json, &sources::show(&place.dir, place.job.as_ref(), id.map(Epoch))?);
        }
        CheckpointsCommand::Verify { place, id } => {
            let report = sources::verify(&place.dir, place.job.as_ref(), id.map(Epoch))?;
            show(place.json, &report);
            if !report.is_clean() {
                return Ok(ExitCode::FAILURE);
            }
        }
        CheckpointsCommand::Delete { place, id, force } => {
            show(place.json, &sources::delete(&place.dir, place.job.as_ref(), Epoch(id), force)?);
        }
        CheckpointsCommand::Pin { place, id } => {
            show(place.json, &sources::pin(&place.dir, place.job.as_ref(), Epoch(id))?);
        }
        CheckpointsCommand::Unpin { place, id } => {
            show(place.json, &sources::unpin(&place.dir, place.job.as_ref(), Epoch(id))?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(json: bool, report: &impl Report) {
    let text = if json { report.json() + "\n" } else { report.text() };
    // A closed pipe is no reason to fail: the reader has seen enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// The job that was asked for, or the only one there is.
pub(crate) fn choose_job(
    wanted: Option<&Name>,
    jobs: &[Name],
    location: &str,
) -> Result<Name, ToolError> {
    let location = location.to_owned();
    let names = || jobs.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
    match (wanted, jobs) {
        (Some(job), _) if jobs.contains(job) => Ok(job.clone()),
        (_, []) => Err(ToolError::NoJobs { location }),
        (Some(job), _) => {
            let others = format!("there is {}", names());
            Err(ToolError::NoSuchJob { job: job.clone(), location, others })
        }
        (None, [only]) => Ok(only.clone()),
        (None, _) => Err(ToolError::SeveralJobs { location, jobs: names() }),
    }
}

/// Refuses to delete the newest checkpoint by mistake.
pub(crate) fn refuse_newest(
    job: &Name,
    id: Epoch,
    newest: Option<Epoch>,
    force: bool,
) -> Result<(), ToolError> {
    if newest == Some(id) && !force {
        return Err(ToolError::Newest { job: job.clone(), id });
    }
    Ok(())
}

fn name(text: &str) -> Result<Name, String> {
    Name::new(text).map_err(|error| error.to_string())
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match super::resolve::number(text)? {
        0 => Err("it must be at least 1".to_owned()),
        count => Ok(count),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn parsed(words: &[&str]) -> Result<ToolCommand, String> {
        let words = std::iter::once("highwater").chain(words.iter().copied());
        Tool::try_parse_from(words).map(|tool| tool.command).map_err(|error| error.to_string())
    }

    fn planned(words: &[&str]) -> Result<RunPlan, String> {
        let ToolCommand::Run(arguments) = parsed(words)? else { panic!("not a run") };
        plan(arguments, []).map(|(plan, _)| plan).map_err(|error| error.to_string())
    }

    #[test]
    fn run_takes_its_own_options_and_leaves_the_programs_alone() {
        let expected = RunPlan {
            program: PathBuf::from("./count"),
            args: ["--input", "words", "-n", "9"].map(OsString::from).to_vec(),
            processes: 3,
            workers: Some(2),
            restart: RestartStrategy::FixedDelay { attempts: 4, delay: Duration::from_secs(2) },
            runtime_dir: None,
        };
        let options = ["--restart", "fixed-delay", "--restart-attempts=4", "--restart-delay=2s"];
        let words = [&["run", "-n", "3", "-w2"][..], &options].concat();
        for dashes in [&["--"][..], &[]] {
            let program = ["./count", "--input", "words", "-n", "9"];
            assert_eq!(planned(&[&words, dashes, &program[..]].concat()), Ok(expected.clone()));
        }
        let plain = planned(&["run", "./count"]).unwrap();
        assert_eq!((plain.processes, plain.workers, plain.args.len()), (1, None, 0));
        assert_eq!(plain.restart, RestartStrategy::default());
    }

    #[test]
    fn run_refuses_what_can_not_run() {
        assert!(planned(&["run", "-n", "3"]).unwrap_err().contains("<PROGRAM>"));
        assert!(planned(&["run", "-n", "0", "./x"]).unwrap_err().contains("at least 1"));
        let error = planned(&["run", "--restart-attempts", "3", "./x"]).unwrap_err();
        assert!(error.starts_with("--restart-attempts: it belongs to"), "{error}");
    }

    #[test]
    fn the_only_job_is_taken_and_otherwise_the_jobs_are_named() {
        let names = ["a", "b"].map(|name| Name::new(name).unwrap());
        let choose = |wanted: Option<&Name>, jobs: &[Name]| {
            choose_job(wanted, jobs, "/state").map_err(|error| error.to_string())
        };
        assert_eq!(choose(None, &names[..1]), Ok(names[0].clone()));
        assert_eq!(choose(Some(&names[1]), &names), Ok(names[1].clone()));
        assert_eq!(
            choose(None, &names).unwrap_err(),
            "/state holds several jobs, say which one with --job: a, b"
        );
        assert_eq!(
            choose(Some(&names[1]), &names[..1]).unwrap_err(),
            "there is no job b in /state; there is a"
        );
        assert_eq!(choose(None, &[]).unwrap_err(), "there is no checkpoint of any job in /state");
    }

    #[test]
    fn the_newest_checkpoint_is_only_deleted_by_force() {
        let job = Name::new("a").unwrap();
        let newest = Some(Epoch(7));
        assert!(refuse_newest(&job, Epoch(6), newest, false).is_ok());
        assert!(refuse_newest(&job, Epoch(7), newest, true).is_ok());
        let error = refuse_newest(&job, Epoch(7), newest, false).unwrap_err().to_string();
        assert!(error.contains("checkpoint 7 is the newest of job a") && error.contains("--force"));
    }

    #[test]
    fn checkpoint_commands_need_a_directory_and_take_a_number() {
        let delete = ["checkpoints", "delete", "--dir", "d", "--job", "j", "7", "--force"];
        let Ok(ToolCommand::Checkpoints(CheckpointsCommand::Delete { place, id, force })) =
            parsed(&delete)
        else {
            panic!("not parsed");
        };
        assert_eq!((place.dir, id, force), (PathBuf::from("d"), 7, true));
        assert!(parsed(&["checkpoints", "delete", "--dir", "d"]).unwrap_err().contains("<ID>"));
        let pin = parsed(&["checkpoints", "pin", "--dir", "d", "7"]);
        assert!(
            matches!(pin, Ok(ToolCommand::Checkpoints(CheckpointsCommand::Pin { id: 7, .. }))),
            "{pin:?}"
        );
        assert!(parsed(&["checkpoints", "unpin", "--dir", "d"]).unwrap_err().contains("<ID>"));
        let bad = parsed(&["checkpoints", "list", "--dir", "d", "--job", "../x"]).unwrap_err();
        assert!(bad.contains("is not a name"), "{bad}");
        let help = parsed(&["checkpoints", "--help"]).unwrap_err();
        for command in ["list", "show", "verify", "delete", "pin", "unpin"] {
            assert!(help.contains(&format!("\n  {command} ")), "{help}");
        }
    }
}
