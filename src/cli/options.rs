//! Our flags as clap knows them, beside the flags of the program.
//!
//! The short flags are those of timely: `-w`, `-n`, `-p`, and `-h` for the file of hosts. So help
//! is `--help` only. Every flag takes the last value if it is given twice, so that a wrapper may
//! append one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::error::CliError;
use super::layers::Layers;
use super::logging::LogConfig;
use super::resolve::{Resolved, resolve, resolve_supervisor};
use super::settings::{CONFIG_VARIABLE, Kind, SETTINGS, Setting};
use crate::config::RestartStrategy;

/// Highwater's options as given on a command line.
///
/// To be flattened (`#[command(flatten)]`) into a parser of the program's own; [`parse`] does that
/// for programs that only have flags to add. It replaces clap's help flag, because `-h` is the file
/// of hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Text by setting's flag, of those that were given.
    given: BTreeMap<&'static str, String>,
    config: Option<PathBuf>,
    print_config: bool,
}

/// The options of restarts and of the log alone, for the tool that supervises a program.
#[derive(Clone, Debug, Default)]
pub(crate) struct SupervisorOptions(Options);

impl SupervisorOptions {
    /// Joins these flags with an environment.
    pub fn resolve_with(
        self,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<(RestartStrategy, LogConfig), CliError> {
        resolve_supervisor(&Layers::gather(self.0.given, None, environment)?)
    }
}

/// Before our ids, so that a field of the program's own may have the same name as one of our
/// settings.
const ID_PREFIX: &str = "highwater::";

impl Options {
    /// Joins these flags with the environment of this process and the configuration file, for a job
    /// of that name.
    ///
    /// # Errors
    /// [`CliError`], when a value is wrong or values do not fit together, whichever layer they come
    /// from.
    pub fn resolve(self, job_name: &str) -> Result<Resolved, CliError> {
        self.resolve_with(job_name, std::env::vars_os())
    }

    pub(crate) fn resolve_with(
        self,
        job_name: &str,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Resolved, CliError> {
        let layers = Layers::gather(self.given, self.config, environment)?;
        resolve(job_name, &layers, self.print_config)
    }
}

/// Reads a program's command line, the environment and the configuration file.
///
/// `A` is the program's own flags, shown in help under a heading of their own; use [`NoArgs`] if
/// there are none. `arguments` begins with the program's name, as `std::env::args_os()` does.
/// `job_name` names the job unless `--job-name` does.
///
/// # Errors
/// [`CliError`]; asking for `--help` is one too: [`CliError::report`] shows either and knows the
/// exit code. Flags of `A` that are also ours are [`CliError::Clash`], found before anything is
/// parsed, in release builds too. (Two equal flags within `A` are clap's own assertion, which
/// panics in debug builds.)
pub fn parse<A: Args>(
    job_name: &str,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<(A, Resolved), CliError> {
    parse_with(job_name, arguments, std::env::vars_os())
}

/// As [`parse`], with an environment that is not the process's own.
///
/// # Errors
/// As [`parse`].
pub fn parse_with<A: Args>(
    job_name: &str,
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<(A, Resolved), CliError> {
    let theirs = A::augment_args(
        Command::new(job_name.to_owned()).next_help_heading("Options of the program"),
    );
    refuse_clashes(&theirs)?;
    let mut command = Options::augment_args(theirs);
    let matches = command.try_get_matches_from_mut(arguments).map_err(CliError::Usage)?;
    let usage = |error: clap::Error| CliError::Usage(error.format(&mut command.clone()));
    let own = A::from_arg_matches(&matches).map_err(usage)?;
    let options = Options::from_arg_matches(&matches).map_err(usage)?;
    Ok((own, options.resolve_with(job_name, environment)?))
}

/// For programs without flags of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct NoArgs {}

/// Says which flags of the program are ours. Clap would panic in a debug build, and pick one in a
/// release build.
fn refuse_clashes(theirs: &Command) -> Result<(), CliError> {
    let ours = Options::augment_args(Command::new("highwater"));
    let longs: Vec<&str> = ours.get_arguments().filter_map(Arg::get_long).collect();
    let shorts: Vec<char> = ours.get_arguments().filter_map(Arg::get_short).collect();
    let mut flags = Vec::new();
    for arg in theirs.get_arguments() {
        let their_longs = arg.get_long_and_visible_aliases().unwrap_or_default();
        let hidden = arg.get_all_aliases().unwrap_or_default();
        flags.extend(
            their_longs
                .into_iter()
                .chain(hidden)
                .filter(|l| longs.contains(l))
                .map(|l| format!("--{l}")),
        );
        let their_shorts = arg.get_short_and_visible_aliases().unwrap_or_default();
        flags.extend(
            their_shorts.into_iter().filter(|s| shorts.contains(s)).map(|s| format!("-{s}")),
        );
    }
    flags.sort();
    flags.dedup();
    if flags.is_empty() { Ok(()) } else { Err(CliError::Clash { flags: flags.join(", ") }) }
}

impl Args for Options {
    fn augment_args(command: Command) -> Command {
        let heading = "Output";
        let arg = |name: &'static str| {
            Arg::new(format!("{ID_PREFIX}{name}")).long(name).help_heading(heading)
        };
        with_help_flag(augment(command, |_| true))
            .arg(
                arg("config")
                    .value_name("FILE")
                    .value_parser(ValueParser::path_buf())
                    .overrides_with(format!("{ID_PREFIX}config"))
                    .help(format!("Read settings from a TOML file [env: {CONFIG_VARIABLE}]")),
            )
            .arg(
                arg("print-config")
                    .action(ArgAction::SetTrue)
                    .overrides_with(format!("{ID_PREFIX}print-config"))
                    .help("Print all settings and where they come from, for --config, and exit"),
            )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Options {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut options = extract(matches);
        options.config = matches.get_one::<PathBuf>(&format!("{ID_PREFIX}config")).cloned();
        options.print_config = matches.get_flag(&format!("{ID_PREFIX}print-config"));
        Ok(options)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let update = Self::from_arg_matches(matches)?;
        self.given.extend(update.given);
        self.config = update.config.or(self.config.take());
        self.print_config |= update.print_config;
        Ok(())
    }
}

impl Args for SupervisorOptions {
    fn augment_args(command: Command) -> Command {
        augment(command, |setting| {
            setting.table == "restart" || ["log", "log-format"].contains(&setting.flag)
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SupervisorOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(extract(matches)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.given.extend(extract(matches).given);
        Ok(())
    }
}

/// Adds `--help` and takes `-h` away from it.
pub(crate) fn with_help_flag(command: Command) -> Command {
    command.disable_help_flag(true).arg(
        Arg::new(format!("{ID_PREFIX}help"))
            .long("help")
            .action(ArgAction::HelpShort)
            .help_heading("Output")
            .help("Print this help"),
    )
}

fn augment(command: Command, wanted: impl Fn(&Setting) -> bool) -> Command {
    SETTINGS.iter().filter(|setting| wanted(setting)).fold(command, |command, setting| {
        let id = format!("{ID_PREFIX}{}", setting.flag);
        let default = match setting.default {
            "" => String::new(),
            default => format!(" [default: {default}]"),
        };
        let mut arg = Arg::new(id.clone())
            .long(setting.flag)
            .value_name(setting.value)
            .help(format!("{}{default}", setting.help))
            .help_heading(setting.heading())
            .overrides_with(id)
            .allow_negative_numbers(true);
        if let Some(short) = setting.short {
            arg = arg.short(short);
        }
        if setting.kind == Kind::Switch {
            arg = arg.num_args(0..=1).require_equals(true).default_missing_value("true");
        }
        command.arg(arg)
    })
}

fn extract(matches: &ArgMatches) -> Options {
    let text = |setting: &Setting| {
        // A part of the settings may be defined, as by `SupervisorOptions`.
        matches
            .try_get_one::<String>(&format!("{ID_PREFIX}{}", setting.flag))
            .ok()
            .flatten()
            .cloned()
    };
    let given = SETTINGS.iter().filter_map(|s| text(s).map(|text| (s.flag, text))).collect();
    Options { given, config: None, print_config: false }
}
