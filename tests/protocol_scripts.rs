//! Runs the scripts in `tests/scripts/coordinator/`: commands, `----`, and the effects that must
//! follow.
//!
//! A script is a sequence of blocks separated by blank lines. A block holds commands, one a line,
//! then `----`, then the expected answer: the effects of all its commands in order, one a line, or
//! `(nothing)`. Lines that begin with `#` are comments. Commands:
//!
//! ```text
//! setup KEY=VALUE ...                 a new coordinator; keys as in `setup` below
//! TIME tick | trigger | cancel | stop | drain
//! TIME savepoint REQUEST | stop-savepoint REQUEST | drain-savepoint REQUEST
//! TIME ack EPOCH WORKER | published EPOCH | reserved END
//! TIME finished WORKER | committed WORKER EPOCH
//! TIME decline EPOCH WORKER REASON | publish-failed EPOCH REASON | reserve-failed REASON
//! deadline                            when the next step is due
//! status                              what a progress line would show
//! ```
//! A REASON is `superseded EPOCH`, `fenced ATTEMPT`, `not-ready`, or any other text: an I/O error.
//!
//! With `HIGHWATER_REWRITE=1` in the environment the expected answers are written anew; read the
//! difference.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use highwater::config::CheckpointConfig;
use highwater::ids::{Attempt, Epoch};
use highwater::protocol::abort::AbortReason;
use highwater::protocol::coordinator::{Coordinator, CoordinatorSetup, Effect, Event, InProgress};

#[test]
fn coordinator_scripts_have_the_effects_that_they_say() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/coordinator");
    let mut scripts: Vec<_> =
        std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.sort();
    assert!(scripts.len() >= 12, "only {} scripts in {}", scripts.len(), directory.display());
    let rewrite = std::env::var_os("HIGHWATER_REWRITE").is_some();
    let mut wrong = String::new();
    for path in scripts {
        let script = std::fs::read_to_string(&path).unwrap();
        let actual = run(&path, &script);
        if actual != script {
            if rewrite {
                std::fs::write(&path, &actual).unwrap();
            }
            let name = path.file_name().unwrap().to_string_lossy();
            writeln!(wrong, "{name} gave:\n{actual}").unwrap();
        }
    }
    assert!(rewrite || wrong.is_empty(), "{wrong}");
}

/// Returns the script with its expected answers replaced by the actual ones.
fn run(path: &Path, script: &str) -> String {
    let mut machine = None;
    let mut blocks = Vec::new();
    for block in script.trim_end().split("\n\n") {
        let commands = block.split("\n----").next().unwrap_or(block);
        let mut answer = String::new();
        let mut steps = 0;
        for line in commands.lines().filter(|line| !line.starts_with('#')) {
            command(&mut machine, line, &mut answer)
                .unwrap_or_else(|| panic!("{}: cannot read {line:?}", path.display()));
            steps += 1;
        }
        let answer = match (steps, answer.trim_end()) {
            (0, _) => String::new(), // A comment of its own.
            (_, "") => "\n----\n(nothing)".to_owned(),
            (_, answer) => format!("\n----\n{answer}"),
        };
        blocks.push(format!("{commands}{answer}"));
    }
    blocks.join("\n\n") + "\n"
}

fn command(
    machine: &mut Option<Coordinator<String>>,
    line: &str,
    answer: &mut String,
) -> Option<()> {
    let (head, rest) = line.split_once(' ').unwrap_or((line, ""));
    match head {
        "setup" => *machine = Some(Coordinator::new(setup(rest)?)),
        "deadline" => match machine.as_ref()?.next_deadline() {
            Some(due) => writeln!(answer, "deadline {due:?}").ok()?,
            None => writeln!(answer, "deadline none").ok()?,
        },
        "status" => show_status(machine.as_ref()?, answer),
        _ => {
            let now = duration(head)?;
            let mut effects = Vec::new();
            machine.as_mut()?.step(now, event(rest)?, &mut effects);
            effects.iter().for_each(|effect| show(effect, answer));
        }
    }
    Some(())
}

fn setup(text: &str) -> Option<CoordinatorSetup> {
    let keys: BTreeMap<&str, &str> =
        text.split_whitespace().map(|word| word.split_once('=')).collect::<Option<_>>()?;
    let mut setup = CoordinatorSetup {
        checkpoints: CheckpointConfig {
            timeout: Duration::from_secs(60),
            ..CheckpointConfig::default()
        },
        workers: 2,
        first_epoch: Epoch(1),
        reserved_end: Epoch(1001),
        restored: None,
        retained_before: Vec::new(),
    };
    for (key, value) in keys {
        let checkpoints = &mut setup.checkpoints;
        match key {
            "workers" => setup.workers = value.parse().ok()?,
            "first" => setup.first_epoch = epoch(value)?,
            "reserved_end" => setup.reserved_end = epoch(value)?,
            "restored" => setup.restored = Some(epoch(value)?),
            "before" => {
                setup.retained_before = value.split(',').map(epoch).collect::<Option<_>>()?;
            }
            "interval" if value == "none" => checkpoints.interval = None,
            "interval" => checkpoints.interval = Some(duration(value)?),
            "timeout" => checkpoints.timeout = duration(value)?,
            "pause" => checkpoints.min_pause = duration(value)?,
            "concurrent" => checkpoints.concurrent_max = value.parse().ok()?,
            "retained" => checkpoints.retained = value.parse().ok()?,
            "tolerable" => checkpoints.tolerable_failures = Some(value.parse().ok()?),
            _ => return None,
        }
    }
    Some(setup)
}

fn event(text: &str) -> Option<Event<String>> {
    let words: Vec<&str> = text.split(' ').collect();
    Some(match words[..] {
        ["tick"] => Event::Tick,
        ["trigger"] => Event::Trigger,
        ["ack", n, worker] | ["ack", n, worker, "in-flight"] => Event::Ack {
            epoch: epoch(n)?,
            worker: worker.parse().ok()?,
            part: format!("{n}.{worker}"),
            in_flight: words.len() > 3,
        },
        ["decline", n, worker, ref why @ ..] => {
            let worker = worker.parse().ok()?;
            Event::Decline { epoch: epoch(n)?, worker, reason: reason(why, Some(worker))? }
        }
        ["published", n] => Event::Published { epoch: epoch(n)? },
        ["publish-failed", n, ref why @ ..] => {
            Event::PublishFailed { epoch: epoch(n)?, reason: reason(why, None)? }
        }
        ["reserved", end] => Event::Reserved { end: epoch(end)? },
        ["reserve-failed", ref why @ ..] => Event::ReserveFailed { reason: reason(why, None)? },
        ["finished", worker] => Event::WorkerFinished { worker: worker.parse().ok()? },
        ["committed", worker, n] => {
            Event::WorkerCommitted { worker: worker.parse().ok()?, epoch: epoch(n)? }
        }
        ["stop"] => Event::Stop { drain: false },
        ["drain"] => Event::Stop { drain: true },
        ["savepoint", request] => Event::Savepoint { request: request.parse().ok()? },
        ["stop-savepoint", request] => {
            Event::StopWithSavepoint { request: request.parse().ok()?, drain: false }
        }
        ["drain-savepoint", request] => {
            Event::StopWithSavepoint { request: request.parse().ok()?, drain: true }
        }
        ["cancel"] => Event::Cancel,
        _ => return None,
    })
}

fn reason(words: &[&str], worker: Option<usize>) -> Option<AbortReason> {
    let why = words.join(" ");
    Some(match (words, worker) {
        (["superseded", by], _) => AbortReason::Superseded { by: epoch(by)? },
        (["fenced", by], _) => AbortReason::Fenced { by: Attempt(by.parse().ok()?) },
        (["savepoint", why @ ..], None) => AbortReason::Savepoint { why: why.join(" ") },
        (["not-ready"], Some(worker)) => {
            AbortReason::NotReady { worker, why: "starting".to_owned() }
        }
        (_, Some(worker)) => {
            AbortReason::Declined { worker, operator: Some("count".to_owned()), why }
        }
        (_, None) => AbortReason::Storage { why },
    })
}

fn epoch(text: &str) -> Option<Epoch> {
    text.parse().ok().map(Epoch)
}

fn duration(text: &str) -> Option<Duration> {
    match text.strip_suffix("ms") {
        Some(millis) => millis.parse().ok().map(Duration::from_millis),
        None => text.strip_suffix('s')?.parse().ok().map(Duration::from_secs),
    }
}

fn show(effect: &Effect<String>, answer: &mut String) {
    let list = |epochs: &[Epoch]| {
        let texts: Vec<String> = epochs.iter().map(Epoch::to_string).collect();
        format!("[{}]", texts.join(" "))
    };
    let last = |last: &bool| if *last { " last" } else { "" };
    match effect {
        Effect::Begin { epoch, last: l, savepoint } => {
            let savepoint = if savepoint.is_some() { " savepoint" } else { "" };
            writeln!(answer, "begin {epoch}{}{savepoint}", last(l))
        }
        Effect::SavepointFailed { request, reason } => {
            writeln!(answer, "savepoint {request} failed: {reason}")
        }
        Effect::Publish { epoch, last: l, savepoint, parts } => {
            let parts: Vec<String> = parts.iter().map(|(w, part)| format!("{w}:{part}")).collect();
            let savepoint = savepoint.map_or(String::new(), |it| format!(" savepoint {it}"));
            writeln!(answer, "publish {epoch}{}{savepoint} parts {}", last(l), parts.join(" "))
        }
        Effect::Complete { epoch, last: l } => writeln!(answer, "complete {epoch}{}", last(l)),
        Effect::Abort { epoch, reason } => writeln!(answer, "abort {epoch}: {reason}"),
        Effect::Reserve { from } => writeln!(answer, "reserve from {from}"),
        Effect::Retire { keep, in_progress, before } => writeln!(
            answer,
            "retire before {before}, keep {}, in progress {}",
            list(keep),
            list(in_progress)
        ),
        Effect::DrainSources => writeln!(answer, "drain sources"),
        Effect::Record(outcome) => writeln!(
            answer,
            "record {outcome} ({:?}, last ack {:?}, waited for {:?})",
            outcome.cause, outcome.last_ack, outcome.waited_for
        ),
        Effect::Finish => writeln!(answer, "finish"),
        Effect::Fail { reason } => writeln!(answer, "fail: {reason}"),
    }
    .expect("writing to a string does not fail");
}

fn show_status(machine: &Coordinator<String>, answer: &mut String) {
    let status = machine.status();
    let mut line = format!("status {:?}", status.phase);
    for one in &status.in_progress {
        let publishing = if one.publishing { " publishing" } else { "" };
        let InProgress { epoch, triggered, waiting_for, .. } = one;
        write!(line, ", {epoch} since {triggered:?} waits for {waiting_for:?}{publishing}")
            .expect("writing to a string does not fail");
    }
    writeln!(
        answer,
        "{line}; last {:?}, {} complete, {} failed, {} in a row; reading {:?}, committing {:?}",
        status.last_completed.map(|epoch| epoch.0),
        status.completed,
        status.failed,
        status.consecutive_failures,
        status.reading,
        status.committing
    )
    .expect("writing to a string does not fail");
}
