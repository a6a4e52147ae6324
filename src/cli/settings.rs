//! The table of all settings: one row is the flag, the environment variable and the key in the
//! file.
//!
//! Help texts, unknown names, `--print-config` and the tests go by this table, so a setting cannot
//! have one form and lack another. What a text means, and how the values fit together, is decided
//! in `resolve`.

/// What a setting's text is made of. Decides how it is shown in a file and whether a flag needs a
/// value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `true` or `false`; the flag alone means `true`.
    Switch,
    /// A number, or a word that takes its place; needs no quotes in a file.
    Number,
    /// Anything else.
    Text,
}

/// One setting, in all its forms.
#[derive(Debug)]
pub(crate) struct Setting {
    /// The long flag without its dashes. The environment variable is derived from it.
    pub flag: &'static str,
    /// The short flag.
    pub short: Option<char>,
    /// The table in the file.
    pub table: &'static str,
    /// The key in that table.
    pub key: &'static str,
    /// What its text is made of.
    pub kind: Kind,
    /// The value as help shows it.
    pub value: &'static str,
    /// The default as text; empty: there is none.
    pub default: &'static str,
    /// One sentence of help.
    pub help: &'static str,
}

impl Setting {
    /// The environment variable.
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.flag.to_ascii_uppercase().replace('-', "_"))
    }

    /// The key with its table.
    pub fn path(&self) -> String {
        format!("{}.{}", self.table, self.key)
    }

    /// The heading in help.
    pub fn heading(&self) -> &'static str {
        let known = HEADINGS.iter().find(|(table, _)| *table == self.table);
        known.map_or("Options", |(_, heading)| heading)
    }
}

/// How the names of all our environment variables begin.
pub(crate) const VARIABLE_PREFIX: &str = "HIGHWATER_";

/// The variable that names a configuration file.
pub(crate) const CONFIG_VARIABLE: &str = "HIGHWATER_CONFIG";

/// Set by the supervisor for the processes that it starts: they are not to start a supervisor of
/// their own.
pub(crate) const SUPERVISED_VARIABLE: &str = "HIGHWATER_SUPERVISED";

/// Set by `highwater restore-plan`: the program only says what a restore of the checkpoint at this path would do.
pub(crate) const PLAN_VARIABLE: &str = "HIGHWATER_RESTORE_PLAN";

/// Variables that are ours, but no settings.
pub(crate) const OTHER_VARIABLES: [&str; 3] = [CONFIG_VARIABLE, SUPERVISED_VARIABLE, PLAN_VARIABLE];

/// What a supervisor tells the processes that it starts, by variables that win over their flags.
pub(crate) const SUPERVISOR_DECIDES: [&str; 5] =
    ["processes", "process", "workers", "hostfile", "secret-file"];

/// The tables of the file, in the order in which they are printed, with their headings in help.
pub(crate) const HEADINGS: [(&str, &str); 9] = [
    ("job", "Job"),
    ("network", "Workers and processes"),
    ("state", "State"),
    ("checkpoints", "Checkpoints"),
    ("restore", "Restore"),
    ("restart", "Restart"),
    ("flow", "Flow"),
    ("time", "Time"),
    ("log", "Output"),
];

/// The setting with that long flag.
pub(crate) fn by_flag(flag: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.flag == flag)
}

const fn row(
    [flag, table, key]: [&'static str; 3],
    kind: Kind,
    [value, default]: [&'static str; 2],
    help: &'static str,
) -> Setting {
    Setting { flag, short: None, table, key, kind, value, default, help }
}

const fn short(short: char, setting: Setting) -> Setting {
    Setting { short: Some(short), ..setting }
}

use Kind::{Number, Switch, Text};

/// All settings, in the order of help and of printed files.
pub(crate) static SETTINGS: [Setting; 52] = [
    row(
        ["job-name", "job", "name"],
        Text,
        ["NAME", ""],
        "Name of the job: the directory of its checkpoints [default: given by the program]",
    ),
    row(
        ["max-parallelism", "job", "max-parallelism"],
        Number,
        ["N", "128"],
        "Number of key groups: no run of the job can ever have more workers. Fixed for the life of its state",
    ),
    short(
        'w',
        row(
            ["workers", "network", "workers"],
            Number,
            ["N", "1"],
            "Worker threads in each process",
        ),
    ),
    short(
        'n',
        row(["processes", "network", "processes"], Number, ["N", "1"], "Number of processes"),
    ),
    short(
        'p',
        row(
            ["process", "network", "process"],
            Number,
            ["I", "0"],
            "Which of the processes this is, from 0",
        ),
    ),
    short(
        'h',
        row(
            ["hostfile", "network", "hostfile"],
            Text,
            ["FILE", ""],
            "File with the `host:port` of each process, one a line [default: loopback, ports from 2101]",
        ),
    ),
    row(
        ["secret-file", "network", "secret-file"],
        Text,
        ["FILE", ""],
        "File with the secret by which processes know each other",
    ),
    row(
        ["heartbeat-interval", "network", "heartbeat-interval"],
        Text,
        ["TIME", "500ms"],
        "Time between two signs of life to the other processes",
    ),
    row(
        ["heartbeat-timeout", "network", "heartbeat-timeout"],
        Text,
        ["TIME", "3s"],
        "Silence after which another process is taken for lost",
    ),
    row(
        ["supervise", "network", "supervise"],
        Switch,
        ["BOOL", "false"],
        "Start all processes on this machine, and start them again when they die",
    ),
    row(
        ["state-backend", "state", "backend"],
        Text,
        ["heap|rocksdb", "heap"],
        "What keeps keyed state while the job runs: memory, or RocksDB for state that is larger. Any checkpoint can be restored on both",
    ),
    row(
        ["rocksdb-memory", "state", "rocksdb-memory"],
        Text,
        ["SIZE", "512MiB"],
        "Memory that RocksDB may take in each process, for all operators together",
    ),
    row(
        ["rocksdb-profile", "state", "rocksdb-profile"],
        Text,
        ["default|spinning-disk|flash-ssd|low-memory", "default"],
        "How RocksDB is tuned",
    ),
    row(
        ["state-dir", "state", "dir"],
        Text,
        ["DIR", ""],
        "Directory for RocksDB's files while the job runs [default: the system's for temporary files]",
    ),
    row(
        ["checkpoint-dir", "checkpoints", "dir"],
        Text,
        ["DIR", ""],
        "Directory of all jobs' checkpoints, or s3://bucket/prefix [default: in memory, for restarts within the run]",
    ),
    row(
        ["checkpoint-interval", "checkpoints", "interval"],
        Text,
        ["TIME|off", "10s"],
        "Time from one checkpoint to the next; off: only the final one, at the end of input",
    ),
    row(
        ["checkpoint-mode", "checkpoints", "mode"],
        Text,
        ["exactly-once|at-least-once", "exactly-once"],
        "Whether records behind a barrier wait; if they do not, a recovery may count some twice",
    ),
    row(
        ["alignment-timeout", "checkpoints", "alignment-timeout"],
        Text,
        ["TIME|none", "200ms"],
        "How long a barrier waits for the records queued before it until it overtakes them, which are then saved with the checkpoint; 0s: at once; none: for ever",
    ),
    row(
        ["channel-alignment-timeouts", "checkpoints", "channel-alignment-timeouts"],
        Text,
        ["CHANNEL=TIME|none,...", ""],
        "The same for single channels, by name",
    ),
    row(
        ["checkpoint-timeout", "checkpoints", "timeout"],
        Text,
        ["TIME", "10m"],
        "A checkpoint that takes longer is aborted; the job runs on",
    ),
    row(
        ["slow-checkpoint-after", "checkpoints", "slow-after"],
        Text,
        ["TIME|off", "10s"],
        "A phase of a checkpoint that takes longer is reported, with the operators that it waits for",
    ),
    row(
        ["min-pause", "checkpoints", "min-pause"],
        Text,
        ["TIME", "0s"],
        "Least time from the end of one checkpoint to the start of the next",
    ),
    row(
        ["concurrent-checkpoints", "checkpoints", "concurrent"],
        Number,
        ["N", "1"],
        "Checkpoints in progress at once",
    ),
    row(
        ["tolerable-failures", "checkpoints", "tolerable-failures"],
        Number,
        ["N|unlimited", "unlimited"],
        "Failed checkpoints in a row that the job survives",
    ),
    row(
        ["retained-checkpoints", "checkpoints", "retained"],
        Number,
        ["N", "1"],
        "Complete checkpoints that are kept",
    ),
    row(
        ["on-cancel", "checkpoints", "on-cancel"],
        Text,
        ["retain|delete", "retain"],
        "What happens to the checkpoints when the job is cancelled",
    ),
    row(
        ["checkpoint-threads", "checkpoints", "threads"],
        Number,
        ["N", "1"],
        "Threads of each process that write checkpoints",
    ),
    row(
        ["inline-bytes-max", "checkpoints", "inline-bytes-max"],
        Text,
        ["SIZE", "16KiB"],
        "Parts of a checkpoint up to this size are kept inside its manifest",
    ),
    row(
        ["incremental", "checkpoints", "incremental"],
        Switch,
        ["BOOL", "true"],
        "Write what has changed in keyed state since the last checkpoint, not all of it",
    ),
    row(
        ["incremental-bytes-min", "checkpoints", "incremental-bytes-min"],
        Text,
        ["SIZE", "1MiB"],
        "State of one operator on one worker that is smaller is written whole all the same",
    ),
    row(
        ["local-recovery", "checkpoints", "local-recovery"],
        Text,
        ["DIR", ""],
        "Directory on a local disk for a second copy of what each process writes, which is read first at restore [default: none]",
    ),
    row(
        ["restore", "restore", "from"],
        Text,
        ["newest|fresh|NUMBER|PATH", "newest"],
        "The checkpoint or savepoint to start from",
    ),
    row(
        ["claim-mode", "restore", "claim-mode"],
        Text,
        ["no-claim|claim", "no-claim"],
        "To whom a checkpoint belongs that --restore names: to you, so that the first own checkpoint stands alone; or to the job, which deletes it then",
    ),
    row(
        ["allow-dropped-state", "restore", "allow-dropped-state"],
        Switch,
        ["BOOL", "false"],
        "Start even if that drops state of operators that the program no longer has",
    ),
    row(
        ["allow-new-state", "restore", "allow-new-state"],
        Switch,
        ["BOOL", "false"],
        "Start even if operators that the checkpoint does not know begin empty",
    ),
    row(
        ["rename-state", "restore", "rename-state"],
        Text,
        ["OLD=NEW,...", ""],
        "Operators (sources, sinks and channels too) that had another name when the checkpoint was taken",
    ),
    row(
        ["restart", "restart", "strategy"],
        Text,
        ["none|fixed-delay|failure-rate|exponential-delay", "exponential-delay"],
        "What to do after a failure",
    ),
    row(
        ["restart-attempts", "restart", "attempts"],
        Number,
        ["N", "1"],
        "Restarts before the job fails (fixed-delay)",
    ),
    row(
        ["restart-failures", "restart", "failures"],
        Number,
        ["N", "1"],
        "Failures within the restart interval that the job survives (failure-rate)",
    ),
    row(
        ["restart-interval", "restart", "interval"],
        Text,
        ["TIME", "1m"],
        "The time over which failures are counted (failure-rate)",
    ),
    row(
        ["restart-delay", "restart", "delay"],
        Text,
        ["TIME", "1s"],
        "Time before a restart; before the first one, if it grows",
    ),
    row(
        ["restart-delay-max", "restart", "delay-max"],
        Text,
        ["TIME", "1m"],
        "Longest time before a restart (exponential-delay)",
    ),
    row(
        ["restart-multiplier", "restart", "multiplier"],
        Number,
        ["X", "1.5"],
        "How the time grows with every failure (exponential-delay)",
    ),
    row(
        ["restart-jitter", "restart", "jitter"],
        Number,
        ["X", "0.1"],
        "Part of the time that is drawn at random, 0 to 1 (exponential-delay)",
    ),
    row(
        ["restart-reset", "restart", "reset"],
        Text,
        ["TIME", "1h"],
        "Time without a failure after which the first delay holds again (exponential-delay)",
    ),
    row(
        ["in-flight-target", "flow", "in-flight-target"],
        Text,
        ["TIME", "200ms"],
        "How much work may queue before an operator",
    ),
    row(
        ["in-flight-bytes-max", "flow", "in-flight-bytes-max"],
        Text,
        ["SIZE", "32MiB"],
        "How much may queue between two workers, whatever the target",
    ),
    row(
        ["step-target", "flow", "step-target"],
        Text,
        ["TIME", "5ms"],
        "How long one step of a worker should take",
    ),
    row(
        ["watermark-interval", "time", "watermark-interval"],
        Text,
        ["TIME", "5ms"],
        "How often event time moves on, at the least",
    ),
    row(
        ["log", "log", "filter"],
        Text,
        ["FILTER", "warn,highwater=info"],
        "What is logged: `level` or `target=level`, separated by commas",
    ),
    row(["log-format", "log", "format"], Text, ["text|json", "text"], "How the log is written"),
    row(
        ["progress", "log", "progress"],
        Text,
        ["auto|always|never", "auto"],
        "Whether to show a line of progress; auto: if standard error is a terminal",
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_form_of_a_setting_belongs_to_that_setting_alone() {
        let unique = |texts: Vec<String>| {
            assert_eq!(texts.iter().collect::<BTreeSet<_>>().len(), texts.len(), "{texts:?}");
        };
        unique(SETTINGS.iter().map(|setting| setting.flag.to_owned()).collect());
        unique(SETTINGS.iter().map(Setting::variable).collect());
        unique(SETTINGS.iter().map(Setting::path).collect());
        unique(SETTINGS.iter().filter_map(|s| s.short).map(String::from).collect());
        for setting in &SETTINGS {
            assert!(HEADINGS.iter().any(|(table, _)| *table == setting.table), "{setting:?}");
            assert!(!OTHER_VARIABLES.contains(&setting.variable().as_str()), "{setting:?}");
        }
    }
}
