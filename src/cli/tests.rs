//! Tests across the layers: a command line, an environment and a file in, a configuration out.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::settings::{HEADINGS, SETTINGS, Setting, by_flag};
use super::{CliError, LogFormat, NoArgs, ProgressMode, Resolved, parse_with};
use crate::config::{CheckpointMode, ClaimMode, JobConfig, OnCancel, RestartStrategy, RestoreFrom};
use crate::ids::Name;

/// A value for each setting that differs from its default, and the flags that must be there for it
/// to mean anything.
const SAMPLES: [(&str, &str, &[&str]); 52] = [
    ("job-name", "another", &[]),
    ("max-parallelism", "256", &[]),
    ("workers", "3", &[]),
    ("processes", "2", &[]),
    ("process", "1", &["-n", "2"]),
    ("hostfile", "HOSTS", &["-n", "2"]),
    ("secret-file", "secret", &[]),
    ("heartbeat-interval", "100ms", &[]),
    ("heartbeat-timeout", "10s", &[]),
    ("supervise", "true", &[]),
    ("checkpoint-dir", "state dir/\"x\" # y", &[]),
    ("checkpoint-interval", "off", &[]),
    ("checkpoint-mode", "at-least-once", &[]),
    ("alignment-timeout", "none", &[]),
    ("rename-state", "counts=totals,numbers=input", &[]),
    ("channel-alignment-timeouts", "orders=1s,key_by-2=none", &[]),
    ("checkpoint-timeout", "1m30s", &[]),
    ("slow-checkpoint-after", "1m30s", &[]),
    ("min-pause", "1s", &[]),
    ("concurrent-checkpoints", "2", &[]),
    ("tolerable-failures", "3", &[]),
    ("retained-checkpoints", "5", &[]),
    ("on-cancel", "delete", &[]),
    ("checkpoint-threads", "2", &[]),
    ("inline-bytes-max", "64k", &[]),
    ("state-backend", "rocksdb", &[]),
    ("rocksdb-memory", "64MiB", &[]),
    ("rocksdb-profile", "flash-ssd", &[]),
    ("state-dir", "/somewhere", &[]),
    ("incremental", "false", &[]),
    ("incremental-bytes-min", "64k", &[]),
    ("local-recovery", "/copies", &["--checkpoint-dir", "/checkpoints"]),
    ("restore", "fresh", &[]),
    ("claim-mode", "claim", &["--checkpoint-dir", "/checkpoints"]),
    ("allow-dropped-state", "true", &[]),
    ("allow-new-state", "true", &[]),
    ("restart", "none", &[]),
    ("restart-attempts", "7", &["--restart", "fixed-delay"]),
    ("restart-failures", "7", &["--restart", "failure-rate"]),
    ("restart-interval", "7s", &["--restart", "failure-rate"]),
    ("restart-delay", "7s", &[]),
    ("restart-delay-max", "7s", &[]),
    ("restart-multiplier", "2", &[]),
    ("restart-jitter", "0.5", &[]),
    ("restart-reset", "7s", &[]),
    ("in-flight-target", "1s", &[]),
    ("in-flight-bytes-max", "1MiB", &[]),
    ("step-target", "1ms", &[]),
    ("watermark-interval", "1s", &[]),
    ("log", "debug", &[]),
    ("log-format", "json", &[]),
    ("progress", "never", &[]),
];

/// A start of a program, in a directory of its own.
struct Start {
    directory: tempfile::TempDir,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
}

impl Start {
    fn new(flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let arguments = std::iter::once("program").chain(flags.iter().copied());
        Self {
            directory,
            arguments: arguments.map(OsString::from).collect(),
            environment: Vec::new(),
        }
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    fn config(mut self, text: &str) -> Self {
        let path = self.write("hw.toml", text);
        self.arguments.extend(["--config".into(), path.into_os_string()]);
        self
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn resolve(self) -> Result<Resolved, CliError> {
        parse_with::<NoArgs>("test", self.arguments, self.environment).map(|(_, resolved)| resolved)
    }

    /// The error, in which the file is named without its directory.
    fn refused(self) -> String {
        let directory = format!("{}/", self.directory.path().display());
        let error = self.resolve().unwrap_err();
        super::error::with_causes(&error).replace(&directory, "")
    }
}

fn resolve(flags: &[&str]) -> Resolved {
    Start::new(flags).resolve().unwrap()
}

/// The sample of a setting, with a real file where it needs one.
fn sample(setting: &Setting, directory: &Path) -> (String, &'static [&'static str]) {
    let (_, value, context) =
        SAMPLES.iter().find(|(flag, ..)| *flag == setting.flag).expect("each setting has a sample");
    if *value != "HOSTS" {
        return ((*value).to_owned(), context);
    }
    let path = directory.join("hosts");
    std::fs::write(&path, "127.0.0.1:4001\nlocalhost:4002\n").unwrap();
    (path.to_str().unwrap().to_owned(), context)
}

/// A line of a file, and the table before it.
fn as_file(setting: &Setting, value: &str) -> String {
    let value = toml::Value::String(value.to_owned());
    format!("[{}]\n{} = {value}\n", setting.table, setting.key)
}

#[test]
fn without_any_layer_the_defaults_are_those_of_the_configuration() {
    let resolved = resolve(&[]);
    assert_eq!(resolved.config, JobConfig::new(Name::new("test").unwrap()));
    assert_eq!((resolved.supervise, resolved.print_config), (false, None));
    assert_eq!(resolved.log.filter, "warn,highwater=info");
    assert_eq!((resolved.log.format, resolved.progress), (LogFormat::Text, ProgressMode::Auto));
    assert!(resolved.warnings.is_empty());
}

#[test]
fn every_setting_has_a_flag_a_variable_and_a_key_and_all_three_do_the_same() {
    let directory = tempfile::tempdir().unwrap();
    // What was not built in is refused.
    let built_in = |flag| flag != "state-backend" || cfg!(feature = "rocksdb");
    for setting in SETTINGS.iter().filter(|setting| built_in(setting.flag)) {
        let (value, context) = sample(setting, directory.path());
        let before = resolve(context);
        let flag = format!("--{}={value}", setting.flag);
        let by_flag = resolve(&[context, &[flag.as_str()]].concat());
        let by_variable =
            Start::new(context).variable(&setting.variable(), &value).resolve().unwrap();
        let by_file = Start::new(context).config(&as_file(setting, &value)).resolve().unwrap();
        assert_ne!(before, by_flag, "{setting:?}");
        assert_eq!(by_flag, by_variable, "{setting:?}");
        assert_eq!(by_flag, by_file, "{setting:?}");
    }
}

#[test]
fn flags_win_over_the_environment_over_the_file_over_defaults() {
    let file = "[network]\nworkers = 3\n";
    let workers = |start: Start| start.resolve().unwrap().config.workers;
    let variable = |start: Start| start.variable("HIGHWATER_WORKERS", "4");
    assert_eq!(workers(Start::new(&[])), 1);
    assert_eq!(workers(Start::new(&[]).config(file)), 3);
    assert_eq!(workers(variable(Start::new(&[]).config(file))), 4);
    assert_eq!(workers(variable(Start::new(&["-w", "5"]).config(file))), 5);
    assert_eq!(workers(Start::new(&["-w", "5"]).config(file)), 5);
    assert_eq!(workers(variable(Start::new(&["-w5"]))), 5);
    assert_eq!(workers(Start::new(&[]).variable("HIGHWATER_WORKERS", "").config(file)), 3);
    // A wrapper may append a flag.
    assert_eq!(workers(Start::new(&["-w", "5", "--workers", "6"])), 6);
}

#[test]
fn a_switch_set_in_a_file_can_be_unset_by_a_flag() {
    let file = "[restore]\nallow-dropped-state = true\n";
    let dropped = |flags: &[&str]| {
        Start::new(flags).config(file).resolve().unwrap().config.restore.allow_dropped_state
    };
    assert!(dropped(&[]));
    assert!(!dropped(&["--allow-dropped-state=false"]));
    assert!(resolve(&["--allow-new-state", "-w", "2"]).config.restore.allow_new_state);
}

#[test]
fn the_file_may_be_named_by_the_environment_and_a_flag_names_another() {
    let start = Start::new(&[]);
    let path = start.write("a.toml", "[network]\nworkers = 2\n");
    let start = start.variable("HIGHWATER_CONFIG", path.to_str().unwrap());
    let overruled = Start::new(&[])
        .variable("HIGHWATER_CONFIG", "/nowhere/at/all.toml")
        .config("[network]\nworkers = 3\n");
    assert_eq!(overruled.resolve().unwrap().config.workers, 3);
    assert_eq!(start.resolve().unwrap().config.workers, 2);
}

#[test]
fn values_arrive_in_the_configuration() {
    let config = resolve(&[
        "-w",
        "2",
        "-n",
        "3",
        "-p",
        "2",
        "--checkpoint-dir",
        "/c",
        "--checkpoint-interval",
        "2s",
        "--checkpoint-mode",
        "at-least-once",
        "--on-cancel",
        "delete",
        "--restore",
        "17",
        "--claim-mode",
        "claim",
        "--tolerable-failures",
        "unlimited",
        "--restart",
        "failure-rate",
        "--restart-failures",
        "5",
        "--in-flight-bytes-max",
        "64k",
        "--min-pause",
        "off",
    ])
    .config;
    assert_eq!((config.workers, config.processes, config.process), (2, 3, 2));
    assert_eq!(config.checkpoints.directory, Some(PathBuf::from("/c")));
    assert_eq!(config.checkpoints.interval, Some(Duration::from_secs(2)));
    assert_eq!(config.checkpoints.mode, CheckpointMode::AtLeastOnce);
    assert_eq!(config.checkpoints.on_cancel, OnCancel::Delete);
    assert_eq!(config.checkpoints.tolerable_failures, None);
    assert_eq!(config.checkpoints.min_pause, Duration::ZERO);
    assert_eq!(config.restore.from, RestoreFrom::Checkpoint("17".to_owned()));
    assert_eq!(config.restore.claim_mode, ClaimMode::Claim);
    assert_eq!(config.flow.in_flight_bytes_max, 65_536);
    let (interval, delay) = (Duration::from_secs(60), Duration::from_secs(1));
    assert_eq!(config.restart, RestartStrategy::FailureRate { failures: 5, interval, delay });
}

#[test]
fn the_printed_configuration_gives_the_same_configuration_when_fed_back() {
    let directory = tempfile::tempdir().unwrap();
    let mut starts: Vec<Vec<String>> = vec![vec![]];
    for setting in &SETTINGS {
        let (value, context) = sample(setting, directory.path());
        let mut flags: Vec<String> = context.iter().map(|flag| (*flag).to_owned()).collect();
        flags.push(format!("--{}={value}", setting.flag));
        starts.push(flags);
    }
    for odd in ["--log=a=info,b=debug", "--job-name=007", "--checkpoint-dir=a\nb'''\"\"\"\\"] {
        starts.push(vec![odd.to_owned()]);
    }
    for flags in starts {
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let direct = resolve(&flags);
        let printed = resolve(&[&flags[..], &["--print-config"]].concat()).print_config.unwrap();
        let again = Start::new(&[]).config(&printed).resolve();
        assert_eq!(again.unwrap_or_else(|e| panic!("{e}\n{printed}")), direct, "{printed}");
    }
}

#[test]
fn the_printed_configuration_says_where_each_value_comes_from() {
    let start = Start::new(&["-w", "2", "--print-config"])
        .variable("HIGHWATER_STEP_TARGET", "1ms")
        .config("[restart]\nstrategy = \"none\"\n");
    let directory = format!("{}/", start.directory.path().display());
    let printed = start.resolve().unwrap().print_config.unwrap().replace(&directory, "");
    for line in [
        "name = \"test\"  # default of the program",
        "workers = 2  # flag --workers",
        "step-target = \"1ms\"  # environment HIGHWATER_STEP_TARGET",
        "strategy = \"none\"  # file hw.toml:2",
        "interval = \"10s\"  # default",
        "tolerable-failures = \"unlimited\"  # default",
        "# dir: not set",
        "# attempts: means nothing to none",
    ] {
        assert!(printed.lines().any(|printed| printed == line), "{line}\n{printed}");
    }
    let settings = printed.lines().filter(|l| !l.is_empty() && !l.starts_with('[')).count();
    assert_eq!(settings, SETTINGS.len());
}

#[test]
fn wrong_values_are_named_in_the_form_in_which_they_were_given() {
    let cases: [(&[&str], &str); 26] = [
        (&["-w", "0"], "--workers: it must be at least 1"),
        (&["-w", "two"], "--workers: `two` is not a whole number: write for example `4`"),
        (&["-n", "-1"], "--processes: `-1` is not a whole number"),
        (
            &["-n", "2", "-p", "2"],
            "--process: process 2 of 2: processes are counted from 0, so this is at most 1",
        ),
        (
            &["-w", "100", "-n", "2"],
            "--workers: 2 processes of 100 workers are more workers than the 128 key groups",
        ),
        (&["--max-parallelism", "40000"], "--max-parallelism: 40000 is not between 1 and 32768"),
        (&["--max-parallelism", "0"], "--max-parallelism: 0 is not between 1 and 32768"),
        (
            &["--heartbeat-timeout", "1s"],
            "--heartbeat-timeout: the timeout must be more than twice the interval",
        ),
        (
            &["--heartbeat-interval", "1500ms"],
            "--heartbeat-interval: the timeout must be more than twice",
        ),
        (
            &["--checkpoint-interval", "10"],
            "--checkpoint-interval: `10` has no unit of time: write for example `200ms`, `10s` or `1m30s`, or `off`",
        ),
        (
            &["--checkpoint-mode", "atleastonce"],
            "--checkpoint-mode: `atleastonce` is not one of `exactly-once`, `at-least-once`",
        ),
        (
            &["--tolerable-failures", "some"],
            "--tolerable-failures: `some` is not a whole number: write for example `4`, or `unlimited`",
        ),
        (&["--inline-bytes-max", "lots"], "--inline-bytes-max: `lots` is not a size"),
        (&["--in-flight-bytes-max", "0"], "--in-flight-bytes-max: nothing could ever be sent"),
        (&["--step-target", "0s"], "--step-target: it must be longer than 0"),
        (
            &["--restore", "7"],
            "--restore: checkpoint 7 can only be found in a directory: name it with --checkpoint-dir",
        ),
        (
            &["--restore", "/a/savepoint", "--claim-mode", "claim"],
            "--claim-mode: what is claimed is deleted once the job has a checkpoint of its own",
        ),
        (&["--claim-mode", "legacy"], "--claim-mode: `legacy` is not one of `no-claim`, `claim`"),
        (&["--restart", "often"], "--restart: `often` is not one of `none`, `fixed-delay`"),
        (
            &["--restart-attempts", "3"],
            "--restart-attempts: it belongs to the restart strategy fixed-delay, but the strategy is exponential-delay",
        ),
        (
            &["--restart", "none", "--restart-delay", "1s"],
            "--restart-delay: it belongs to the restart strategy fixed-delay or failure-rate or exponential-delay, but the strategy is none",
        ),
        (&["--restart-jitter", "1.5"], "--restart-jitter: `1.5` is not a number from 0 to 1"),
        (
            &["--restart-multiplier", "NaN"],
            "--restart-multiplier: `NaN` is not a number from 1 to 1000",
        ),
        (&["--restart-delay", "2m"], "--restart-delay-max: it is shorter than the first delay"),
        (&["--job-name", "../x"], "--job-name: \"../x\" is not a name"),
        (&["--log", "highwater=loud"], "--log: `highwater=loud` is not a filter"),
    ];
    for (flags, expected) in cases {
        let error = Start::new(flags).refused();
        assert!(error.starts_with(expected), "{flags:?}: {error}");
    }

    let error = Start::new(&[]).variable("HIGHWATER_MIN_PAUSE", "soon").refused();
    assert!(error.starts_with("HIGHWATER_MIN_PAUSE: `soon` is not a duration"), "{error}");
    let error = Start::new(&[]).config("[flow]\n\nstep-target = 5\n").refused();
    assert!(error.starts_with("hw.toml:3: flow.step-target: `5` has no unit of time"), "{error}");
    let error = Start::new(&[]).config("[restore]\nallow-new-state = \"maybe\"\n").refused();
    assert_eq!(error, "hw.toml:2: restore.allow-new-state: `maybe` is neither `true` nor `false`");
    let error = Start::new(&[]).config("[restore]\nallow_new_state = true\n").refused();
    assert!(error.contains("hw.toml:2: there is no key `allow_new_state`"), "{error}");
    let error = Start::new(&["--config", "/nowhere/hw.toml"]).refused();
    assert!(error.starts_with("--config: cannot read /nowhere/hw.toml: No such file"), "{error}");
    let error = Start::new(&["--chekpoint-dir", "x"]).refused();
    assert!(error.contains("'--chekpoint-dir'") && error.contains("'--checkpoint-dir'"), "{error}");
}

#[test]
fn a_strategy_chosen_above_the_options_of_another_overrules_them() {
    let file = "[restart]\nstrategy = \"fixed-delay\"\nattempts = 9\n";
    let restart = |flags: &[&str]| Start::new(flags).config(file).resolve().unwrap().config.restart;
    assert_eq!(restart(&["--restart", "none"]), RestartStrategy::None);
    let delay = Duration::from_secs(1);
    assert_eq!(restart(&[]), RestartStrategy::FixedDelay { attempts: 9, delay });
    let error = Start::new(&[]).config("[restart]\nattempts = 9\n").refused();
    assert!(error.starts_with("hw.toml:2: restart.attempts: it belongs to"), "{error}");
}

#[test]
fn a_process_that_a_supervisor_started_starts_no_supervisor_and_is_who_it_was_told_to_be() {
    assert!(resolve(&["--supervise", "-n", "3"]).supervise);
    let child = Start::new(&["--supervise", "-n", "3", "-w", "2"]);
    let path = child.write("hosts", "127.0.0.1:1\n127.0.0.1:2\n127.0.0.1:3\n127.0.0.1:4\n");
    let child = child
        .variable("HIGHWATER_SUPERVISED", "4711")
        .variable("HIGHWATER_PROCESSES", "4")
        .variable("HIGHWATER_PROCESS", "3")
        .variable("HIGHWATER_HOSTFILE", path.to_str().unwrap());
    let resolved = child.resolve().unwrap();
    assert!(!resolved.supervise);
    assert_eq!((resolved.config.processes, resolved.config.process), (4, 3));
    assert_eq!((resolved.config.workers, resolved.config.addresses.len()), (2, 4));
}

#[test]
fn a_supervisor_is_not_told_what_it_decides_itself() {
    let error = Start::new(&["--supervise", "-n", "2", "-p", "1"]).refused();
    assert!(error.starts_with("--process: a supervisor starts all processes"), "{error}");
}

#[test]
fn short_h_is_the_hostfile_and_help_is_long() {
    let start = Start::new(&["-n", "2", "-p", "1"]);
    let path = start.write("hosts.txt", "# us\n127.0.0.1:4001\n127.0.0.1:4002 # second\n");
    let flags = ["-n", "2", "-p", "1", "-h", path.to_str().unwrap()];
    assert_eq!(resolve(&flags).config.addresses, ["127.0.0.1:4001", "127.0.0.1:4002"]);
    let error = Start::new(&["-n", "3", "-h", path.to_str().unwrap()]).refused();
    assert!(error.contains("2 hosts for 3 processes"), "{error}");

    let help = Start::new(&["--help"]).resolve().unwrap_err();
    assert!(help.is_help());
    let help = help.to_string();
    for (_, heading) in HEADINGS {
        assert!(help.contains(&format!("\n{heading}:\n")), "{heading}\n{help}");
    }
    for setting in &SETTINGS {
        assert!(help.contains(&format!("--{}", setting.flag)), "{setting:?}");
    }
    assert!(help.contains("-h, --hostfile <FILE>"), "{help}");
}

#[test]
fn addresses_that_others_can_reach_need_a_secret() {
    let start = Start::new(&[]);
    let path = start.write("hosts.txt", "127.0.0.1:4001\n10.0.0.2:4001\n");
    let path = path.to_str().unwrap();
    let error = Start::new(&["-n", "2", "-h", path]).refused();
    assert!(error.contains("hosts.txt:2: `10.0.0.2:4001` is not a loopback address"), "{error}");
    assert!(error.contains("--secret-file"), "{error}");
    let config = resolve(&["-n", "2", "-h", path, "--secret-file", "s"]).config;
    assert_eq!(config.secret_file, Some(PathBuf::from("s")));
    assert_eq!(resolve(&["-h", path]).config.addresses, ["127.0.0.1:4001"]);
}

mod program {
    use super::*;

    #[derive(Debug, PartialEq, clap::Args)]
    struct Own {
        /// Where the words are.
        #[arg(long, default_value = "words.txt")]
        input: String,
        /// A field with the name of one of our settings, but another flag.
        #[arg(long = "my-workers")]
        workers: Option<u32>,
        /// What to count.
        what: Vec<String>,
    }

    #[derive(Debug, clap::Args)]
    struct Clashing {
        #[arg(short = 'w', long = "words")]
        words: Option<String>,
        #[arg(long, alias = "log")]
        restore: Option<String>,
    }

    #[derive(Debug, clap::Parser)]
    struct Flattening {
        #[arg(long)]
        input: String,
        #[command(flatten)]
        highwater: crate::cli::Options,
    }

    fn arguments(flags: &[&str]) -> Vec<OsString> {
        std::iter::once("program").chain(flags.iter().copied()).map(OsString::from).collect()
    }

    #[test]
    fn flags_of_the_program_stand_beside_ours_under_a_heading_of_their_own() {
        let flags = arguments(&["--input", "i", "-w", "2", "--my-workers", "9", "a", "b"]);
        let (own, resolved) = parse_with::<Own>("test", flags, []).unwrap();
        let what = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(own, Own { input: "i".to_owned(), workers: Some(9), what });
        assert_eq!(resolved.config.workers, 2);
        let help = parse_with::<Own>("test", arguments(&["--help"]), []).unwrap_err().to_string();
        let [theirs, ours] = ["\nOptions of the program:\n", "\nCheckpoints:\n"]
            .map(|heading| help.find(heading).unwrap_or_else(|| panic!("{heading}\n{help}")));
        let input = help.find("--input").unwrap();
        assert!(theirs < input && input < ours, "{help}");
    }

    #[test]
    fn flags_of_the_program_that_are_ours_are_refused_by_name_before_clap_panics() {
        let error = parse_with::<Clashing>("test", arguments(&[]), []).unwrap_err().to_string();
        let expected = "the program defines --log, --restore, -w, which Highwater defines already";
        assert!(error.starts_with(expected), "{error}");
    }

    #[test]
    fn a_parser_of_the_programs_own_may_flatten_our_options() {
        use clap::Parser;
        let flags = arguments(&["--input", "i", "-h", "hosts", "-n", "2"]);
        let parsed = Flattening::try_parse_from(flags).unwrap();
        assert_eq!(parsed.input, "i");
        let error = parsed.highwater.resolve_with("test", []).unwrap_err().to_string();
        assert!(error.starts_with("--hostfile: cannot read hosts"), "{error}");
    }

    #[test]
    fn samples_name_each_setting_once() {
        let flags: BTreeSet<_> = SAMPLES.iter().map(|(flag, ..)| *flag).collect();
        assert_eq!(flags.len(), SETTINGS.len());
        assert!(flags.iter().all(|flag| by_flag(flag).is_some()));
    }
}
