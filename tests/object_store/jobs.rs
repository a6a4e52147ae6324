//! Whole jobs whose checkpoints are in the bucket.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use highwater::config::{JobConfig, RestartStrategy, RestoreFrom};
use highwater::format::record::CheckpointOutcome;
use highwater::ids::Name;
use highwater::job::{JobHandle, execute};
use highwater::prelude::*;
use highwater::storage::{Image, JobStore, open_existing};

use crate::Test;
use crate::program::{ASK, JOB};
use crate::server::{SECRET_KEY, Server};

pub const TESTS: &[Test] = &[
    ("a_panic_costs_and_doubles_no_record_and_the_tool_reads_the_bucket", panics),
    ("a_checkpoint_is_restored_by_its_url", restored_by_url),
    ("a_killed_job_of_two_processes_goes_on_from_the_bucket", killed),
    ("a_server_that_is_killed_costs_checkpoints_and_nothing_else", server_is_killed),
];

/// A wait that takes longer than this is a failure.
const WAIT_MAX: Duration = Duration::from_secs(60);

#[track_caller]
pub fn wait_until(what: &str, mut met: impl FnMut() -> bool) {
    let start = Instant::now();
    while !met() {
        assert!(start.elapsed() < WAIT_MAX, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(5)); // Poll: until the condition holds.
    }
}

pub fn store(url: &str) -> JobStore {
    JobStore::new(open_existing(Path::new(url)).unwrap(), Name::new(JOB).unwrap())
}

/// Everything in the bucket is needed, and every byte of it is sound.
pub fn assert_only_what_is_reachable(url: &str) {
    let store = store(url);
    let unreachable = store.unreachable().unwrap();
    assert!(unreachable.is_empty(), "left over: {unreachable:?}");
    let report = store.verify(None).unwrap();
    assert!(report.is_clean(), "{:?}", report.problems);
    assert!(!report.checkpoints.is_empty());
    assert!(report.unreferenced.is_empty(), "{:?}", report.unreferenced);
}

/// Every key with each of its counts.
pub fn expected(records: u64, keys: u64) -> Vec<String> {
    let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
    (0..records)
        .map(|number| {
            let count = counts.entry(number % keys).or_default();
            *count += 1;
            format!("{} {count}", number % keys)
        })
        .collect()
}

pub fn assert_exactly_once(expected: Vec<String>, found: impl IntoIterator<Item = String>) {
    let mut balance: BTreeMap<String, i64> = BTreeMap::new();
    for line in expected {
        *balance.entry(line).or_default() += 1;
    }
    for line in found {
        *balance.entry(line).or_default() -= 1;
    }
    let loss: i64 = balance.values().filter(|count| **count > 0).sum();
    let dup: i64 = -balance.values().filter(|count| **count < 0).sum::<i64>();
    assert_eq!((loss, dup), (0, 0), "LOSS {loss} DUP {dup}");
}

/// Each key has each of its counts once, and all together are as many as were read. (Where a job that is stopped ends, each of
/// its workers decides for itself.)
fn assert_counts_are_whole(records: u64, found: Vec<String>) {
    let mut counts: BTreeMap<String, BTreeMap<u64, u64>> = BTreeMap::new();
    for line in &found {
        let (key, count) = line.split_once(' ').unwrap();
        *counts.entry(key.to_owned()).or_default().entry(count.parse().unwrap()).or_default() += 1;
    }
    let dup: u64 = counts.values().flat_map(|of| of.values()).map(|times| times - 1).sum();
    let greatest: u64 = counts.values().filter_map(|of| of.keys().last()).sum();
    let distinct: u64 = counts.values().map(|of| of.len() as u64).sum();
    let loss = greatest.max(records) - distinct;
    assert_eq!((loss, dup), (0, 0), "LOSS {loss} DUP {dup}");
    assert!(records > 0 && greatest == records, "{greatest} were counted, {records} read");
}

/// The lines of the files that are committed.
fn committed(output: &Path) -> Vec<String> {
    let files = fs::read_dir(output).unwrap().map(|entry| entry.unwrap().path());
    let texts = files.filter(|path| path.is_file()).map(|path| fs::read_to_string(path).unwrap());
    texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

pub fn config(url: &str, workers: usize) -> JobConfig {
    let mut config = JobConfig::new(Name::new(JOB).unwrap());
    config.workers = workers;
    config.checkpoints.directory = Some(PathBuf::from(url));
    config.checkpoints.interval = Some(Duration::from_millis(100));
    // So that parts are objects of their own.
    config.checkpoints.inline_bytes_max = 0;
    config.restart = RestartStrategy::FixedDelay { attempts: 100, delay: Duration::from_millis(1) };
    config
}

pub fn tool(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_highwater")).args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert!(!said.contains(SECRET_KEY), "{said}");
    (output.status.success(), said)
}

fn panics(server: &Server) {
    const RECORDS: u64 = 60_000;
    const KEYS: u64 = 997;
    let url = server.url("panics");
    let collect = Collect::new();
    let (sink, passed) = (collect.clone(), Arc::new(AtomicU64::new(0)));
    let handle = JobHandle::default();
    let counters = handle.clone();
    execute(config(&url, 2), &handle, move |job| {
        let (passed, handle) = (passed.clone(), counters.clone());
        job.source("numbers", Generator::new(RECORDS, |i| i).paced(0, 20_000))
            .key_by(|n| n % KEYS)
            .process("count", Value::<u64>::new("count"), move |key, _, count, out| {
                // Midway, and not before there is something to go on from.
                if passed.fetch_add(1, Ordering::SeqCst) >= RECORDS / 2
                    && handle.counters().restarts() == 0
                    && !handle.counters().checkpoints().completed.is_empty()
                {
                    panic!("planted");
                }
                *count.or_default() += 1;
                out.emit(format!("{key} {}", *count.or_default()));
            })
            .sink("out", sink.clone());
        Ok(())
    })
    .unwrap();
    assert_eq!(handle.counters().restarts(), 1);
    assert_exactly_once(expected(RECORDS, KEYS), collect.handle().committed());
    assert_only_what_is_reachable(&url);
    let store = store(&url);
    assert_eq!(store.storage().sweep_temporary(Duration::ZERO).unwrap(), 0, "an upload is left");

    // What the tool says of it.
    let newest = store.newest().unwrap().unwrap();
    let (ok, said) = tool(&["checkpoints", "list", "--dir", &url]);
    assert!(ok && said.contains(&url) && said.contains(&newest.to_string()), "{said}");
    let (ok, said) = tool(&["checkpoints", "verify", "--dir", &url]);
    assert!(ok, "{said}");
    let checkpoint = format!("{url}/{JOB}/chk/{newest}");
    for place in [checkpoint.clone(), format!("{checkpoint}/"), format!("{checkpoint}/manifest")] {
        let (ok, said) = tool(&["state", "ls", &place]);
        assert!(ok && said.contains("count") && said.contains(&checkpoint), "{place}: {said}");
    }
    let (ok, said) = tool(&["state", "ls", &format!("{url}/{JOB}/chk/{}", newest.0 + 1)]);
    assert!(!ok, "{said}");

    // A copy of a checkpoint, elsewhere in the bucket, stands for itself.
    let image = Image::open(Path::new(&checkpoint)).unwrap();
    let copies = open_existing(Path::new(&server.url("copies"))).unwrap();
    let directory = highwater::storage::BlobPath::new(format!("{JOB}/chk/{newest}")).unwrap();
    for (path, size) in store.storage().list(Some(&directory)).unwrap() {
        let name = path.as_str().rsplit('/').next().unwrap();
        let bytes = store.storage().read(&path, size).unwrap();
        copies
            .put(&highwater::storage::BlobPath::new(format!("monday/{name}")).unwrap(), &bytes)
            .unwrap();
    }
    let copy = Image::open(Path::new(&server.url("copies/monday"))).unwrap();
    assert_eq!(copy.manifest(), image.manifest());
    for part in &copy.manifest().parts {
        copy.open_part(part).unwrap();
    }
}

fn restored_by_url(server: &Server) {
    const RECORDS: u64 = 30_000;
    const KEYS: u64 = 97;
    let run = |config: JobConfig, stop_after: Option<usize>| {
        let (collect, handle) = (Collect::new(), JobHandle::default());
        let (sink, of_job) = (collect.clone(), handle.clone());
        let job = std::thread::spawn(move || {
            execute(config, &of_job, move |job| {
                job.source("numbers", Generator::new(RECORDS, |i| i).paced(0, 20_000))
                    .key_by(|n| n % KEYS)
                    .process("count", Value::<u64>::new("count"), |key, _, count, out| {
                        *count.or_default() += 1;
                        out.emit(format!("{key} {}", *count.or_default()));
                    })
                    .sink("out", sink.clone());
                Ok(())
            })
        });
        if let Some(checkpoints) = stop_after {
            let completed = || handle.counters().checkpoints().completed.len();
            wait_until("checkpoints are complete", || completed() >= checkpoints);
            handle.stop();
        }
        job.join().unwrap().unwrap();
        collect.handle().committed()
    };
    let (from, to) = (server.url("from"), server.url("to"));
    let first = run(config(&from, 2), Some(2));
    let newest = store(&from).newest().unwrap().unwrap();
    // Another directory, and another number of workers.
    let mut config = config(&to, 1);
    config.restore.from = RestoreFrom::Checkpoint(format!("{from}/{JOB}/chk/{newest}"));
    let second = run(config, None);
    // What the first was about to commit with its last checkpoint, the other sink commits as well: it cannot know better.
    let lines = |of: &[String]| of.iter().cloned().collect::<BTreeSet<String>>();
    assert_eq!(lines(&second).len(), second.len(), "DUP");
    assert!(second.len() < RECORDS as usize, "it did not start anew");
    let both: BTreeSet<String> = &lines(&first) | &lines(&second);
    assert_exactly_once(expected(RECORDS, KEYS), both);
    assert_only_what_is_reachable(&to);
}

/// A job in processes of its own. They are killed when it is dropped.
struct Processes {
    child: Child,
    log: PathBuf,
}

impl Processes {
    fn start(server: &Server, url: &str, output: &Path) -> Self {
        let log = server.path("killed-log");
        let to = File::options().create(true).append(true).open(&log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_highwater"));
        command.args(["run", "--restart", "fixed-delay", "--restart-attempts", "100"]);
        command.args(["--restart-delay", "5ms", "-n", "2", "-w", "1", "--runtime-dir"]);
        command.arg(server.path("runtime")).arg("--").arg(std::env::current_exe().unwrap());
        command.args(["--records", "60000", "--per-second", "15000", "--keys", "500"]);
        command.args(["--checkpoint-interval", "100ms", "--inline-bytes-max", "1KiB"]);
        command.args(["--checkpoint-dir", url, "--log", "warn,highwater=info", "--output"]);
        command.arg(output).env(ASK, "1");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(to);
        Self { child: command.spawn().unwrap(), log }
    }

    /// The processes of the job.
    fn workers(&self) -> Vec<u32> {
        let mut children = Vec::new();
        let tasks = format!("/proc/{}/task", self.child.id());
        for task in fs::read_dir(tasks).into_iter().flatten().flatten() {
            let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            children.extend(text.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
        }
        children
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn killed(server: &Server) {
    let (url, output) = (server.url("killed"), server.path("killed-output"));
    let mut processes = Processes::start(server, &url, &output);
    let newest = |store: &JobStore| store.valid_epochs().ok().and_then(|e| e.last().copied());
    let store = store(&url);
    for victim in 0..2 {
        let before = newest(&store);
        wait_until("a checkpoint is complete", || newest(&store) > before);
        let workers = processes.workers();
        assert_eq!(workers.len(), 2, "{}", processes.said());
        let pid = rustix::process::Pid::from_raw(workers[victim].cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        wait_until("both run again", || {
            let now = processes.workers();
            now.len() == 2 && !now.iter().any(|pid| workers.contains(pid))
        });
    }
    let status = processes.child.wait().unwrap();
    assert!(status.success(), "{status}\n{}", processes.said());
    assert!(!processes.said().contains(SECRET_KEY));
    assert_exactly_once(expected(60_000, 500), committed(&output));
    assert_only_what_is_reachable(&url);
}

fn server_is_killed(server: &Server) {
    // More than are ever read: the job is stopped.
    const RECORDS: u64 = 100_000_000;
    const KEYS: u64 = 997;
    let url = server.url("server");
    let mut config = config(&url, 2);
    config.checkpoints.timeout = Duration::from_millis(500);
    config.checkpoints.interval = Some(Duration::from_millis(200));
    let collect = Collect::new();
    let sink = collect.clone();
    let handle = JobHandle::default();
    let of_job = handle.clone();
    let job = std::thread::spawn(move || {
        execute(config, &of_job, move |job| {
            job.source("numbers", Generator::new(RECORDS, |i| i).paced(0, 10_000))
                .key_by(|n| n % KEYS)
                .process("count", Value::<u64>::new("count"), |key, _, count, out| {
                    *count.or_default() += 1;
                    out.emit(format!("{key} {}", *count.or_default()));
                })
                .sink("out", sink.clone());
            Ok(())
        })
    });
    let counters = handle.counters();
    let complete = || counters.checkpoints().completed.len();
    wait_until("checkpoints are complete", || complete() >= 2);
    server.kill();
    let (aborted, read) = (counters.checkpoints().aborted, counters.source_records());
    wait_until("checkpoints are aborted", || counters.checkpoints().aborted >= aborted + 2);
    assert!(!job.is_finished());
    wait_until("the job has gone on", || counters.source_records() > read);
    let start = Instant::now();
    server.start_again();
    println!("the server runs again ({:.1?})", start.elapsed());
    let before = complete();
    wait_until("checkpoints are complete again", || complete() >= before + 2);
    handle.stop();
    job.join().unwrap().unwrap();
    assert_eq!(counters.restarts(), 0, "the job never failed");
    assert_counts_are_whole(counters.source_records(), collect.handle().committed());
    let history = store(&url).history().unwrap();
    let reasons = history.iter().filter_map(|record| match &record.outcome {
        CheckpointOutcome::Aborted { reason } => Some(reason),
        _ => None,
    });
    assert!(reasons.count() > 0, "the history has what was aborted");
    assert_only_what_is_reachable(&url);
}
