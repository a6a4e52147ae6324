//! Counts words while a process of the job is killed, and checks the result: `cargo run --example demo`.
//!
//! Without arguments it starts itself as a job of two processes under a supervisor, kills one of them
//! half way, waits for the end, and compares what was committed with a count of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use highwater::prelude::*;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value as Json;

const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/paradise-lost.txt");

/// The text is small and the job is fast: without a pause a line it would be over before the kill.
const PAUSE: Duration = Duration::from_micros(800);

/// One process is killed when that many checkpoints are complete.
const CHECKPOINTS_BEFORE_KILL: usize = 4;

#[derive(clap::Args)]
struct Args {
    /// Directory for the counts.
    #[arg(long)]
    output: PathBuf,
}

fn main() -> ExitCode {
    if std::env::args_os().len() > 1 {
        return match count_words() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error.to_string()),
        };
    }
    match demonstrate() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => fail("the committed counts are wrong"),
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(why: &str) -> ExitCode {
    eprintln!("error: {why}");
    ExitCode::FAILURE
}

/// The job. Every word of the text comes out once with each of its running counts.
fn count_words() -> highwater::Result<()> {
    highwater::run_with("wordcount", |job, args: &Args| {
        job.source("lines", Files::lines([TEXT]).split_bytes(256 << 10))
            .inspect(|_| std::thread::sleep(PAUSE))
            .flat_map(|line| {
                let words = line.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty());
                words.map(str::to_lowercase).collect::<Vec<_>>()
            })
            .into_keyed(|word| (word, ()))
            .process("count", Value::<u64>::new("count"), |word, (), count, out| {
                let count = count.or_default();
                *count += 1;
                out.emit(format!("{word} {count}"));
            })
            .sink("counts", FileSink::lines(&args.output));
        Ok(())
    })
}

fn demonstrate() -> Result<bool, Box<dyn Error>> {
    let directory = std::env::temp_dir().join(format!("highwater-demo-{}", std::process::id()));
    let counts = directory.join("counts");
    println!("Counting the words of Paradise Lost: 2 processes, a checkpoint every 500 ms.\n");
    let mut job = Command::new(std::env::current_exe()?)
        .args(["--supervise", "--processes", "2", "--workers", "1"])
        .args(["--checkpoint-interval", "500ms", "--restart-delay", "300ms"])
        .args(["--log", "warn,highwater=info", "--log-format", "json", "--progress", "never"])
        .arg("--checkpoint-dir")
        .arg(directory.join("checkpoints"))
        .arg("--output")
        .arg(&counts)
        .stderr(Stdio::piped())
        .spawn()?;
    let watched = watch(&mut job, &counts);
    if watched.is_err() {
        // It takes its processes along. Both may fail only because it has ended by itself.
        let _ = job.kill();
    }
    let status = job.wait()?;
    watched?;
    if !status.success() {
        return Err(format!("the job ended with {status}").into());
    }
    let right = compare(&read_counts(&counts)?, &std::fs::read_to_string(TEXT)?);
    if right {
        std::fs::remove_dir_all(&directory)?;
    } else {
        println!("everything is left in {}", directory.display());
    }
    Ok(right)
}

/// Tells what the job logs, and kills its second process half way.
fn watch(job: &mut Child, counts: &Path) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let tell = |what: String| println!("{:6.1} s  {what}", started.elapsed().as_secs_f64());
    let log = job.stderr.take().ok_or("the job has no log")?;
    let mut victim = None;
    let (mut checkpoints, mut killed) = (0, false);
    for line in BufReader::new(log).lines() {
        let line = line?;
        let Ok(entry) = serde_json::from_str::<Json>(&line) else {
            println!("{line}");
            continue;
        };
        let fields = &entry["fields"];
        let message = fields["message"].as_str().unwrap_or_default();
        match message {
            "started a process of the job" => {
                tell(format!("process {} runs, with pid {}", fields["process"], fields["pid"]));
                victim = fields["pid"].as_i64();
            }
            "a process of the job failed" => {
                let cause = fields["cause"].as_str().unwrap_or_default();
                tell(format!("the supervisor sees: process {} {cause}", fields["process"]));
            }
            _ if message.starts_with("restoring checkpoint") => {
                let attempt = &fields["attempt"];
                tell(format!("attempt {attempt} goes on from checkpoint {}", fields["epoch"]));
            }
            _ if message.starts_with("checkpoint complete") => {
                checkpoints += 1;
                let committed = read_counts(counts)?.len();
                let epoch = &fields["epoch"];
                tell(format!("checkpoint {epoch} is complete; {committed} lines committed"));
            }
            _ if entry["level"] == "WARN" || entry["level"] == "ERROR" => {
                let others = fields.as_object().into_iter().flatten();
                let others = others.filter(|(name, _)| *name != "message");
                let others: String =
                    others.map(|(name, value)| format!(" {name}={value}")).collect();
                tell(format!("{message}{others}"));
            }
            _ => {}
        }
        if checkpoints == CHECKPOINTS_BEFORE_KILL && !killed {
            // Between two checkpoints, where there is most to lose.
            std::thread::sleep(Duration::from_millis(250));
            let pid =
                victim.and_then(|pid| Pid::from_raw(pid as i32)).ok_or("no pid was logged")?;
            tell(format!("kill -9 {pid}"));
            kill_process(pid, Signal::KILL)?;
            killed = true;
        }
    }
    if killed { Ok(()) } else { Err("the job ended before it could be killed".into()) }
}

/// The committed lines: those in the visible files.
fn read_counts(directory: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let mut lines = Vec::new();
    if !directory.exists() {
        return Ok(lines);
    }
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_file() {
            lines.extend(std::fs::read_to_string(path)?.lines().map(str::to_owned));
        }
    }
    Ok(lines)
}

/// Whether `committed` is, as a multiset, what a count without Highwater gives.
fn compare(committed: &[String], text: &str) -> bool {
    let mut words: BTreeMap<String, u64> = BTreeMap::new();
    let mut difference: BTreeMap<String, i64> = BTreeMap::new();
    let mut word = String::new();
    for c in text.chars().chain([' ']) {
        if c.is_alphanumeric() {
            word.extend(c.to_lowercase());
        } else if !word.is_empty() {
            let count = words.entry(word.clone()).or_default();
            *count += 1;
            *difference.entry(format!("{word} {count}")).or_default() -= 1;
            word.clear();
        }
    }
    let mut highest: BTreeMap<&str, u64> = BTreeMap::new();
    for line in committed {
        *difference.entry(line.clone()).or_default() += 1;
        if let Some((word, count)) = line.split_once(' ') {
            let highest = highest.entry(word).or_default();
            *highest = (*highest).max(count.parse().unwrap_or(0));
        }
    }
    let by_count: BTreeSet<(u64, &str)> = words.iter().map(|(w, n)| (*n, w.as_str())).collect();
    println!("\n{:8}  {:>9}  {:>15}", "word", "committed", "counted apart");
    for (count, word) in by_count.iter().rev().take(5) {
        let committed = highest.get(word).copied().unwrap_or(0);
        println!("{word:8}  {committed:>9}  {count:>15}");
    }
    let lost: i64 = difference.values().filter(|n| **n < 0).map(|n| -n).sum();
    let doubled: i64 = difference.values().filter(|n| **n > 0).sum();
    let total: u64 = words.values().sum();
    println!("\n{} of {total} words, {lost} lost, {doubled} doubled", committed.len());
    lost == 0 && doubled == 0 && total > 0
}
