//! What the tests share: a job's directories, its processes, and what must be true in the end.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use highwater::format::{SectionHeader, SectionKind};
use highwater::ids::Name;
use highwater::network::Secret;
use highwater::storage::{JobStore, LocalStorage};
use rustix::process::{Pid, Signal, kill_process};

use crate::program::{ASK, Args, JOB, Shape};

/// A wait that takes longer than this is a failure.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// The tool.
pub const TOOL: &str = env!("CARGO_BIN_EXE_highwater");

/// A job: what its program does, and where everything is.
pub struct Bench {
    root: tempfile::TempDir,
    pub args: Args,
    /// Flags beside those of the program.
    pub flags: Vec<OsString>,
}

impl Bench {
    /// A job that takes about `seconds`, with a checkpoint every 50 ms.
    pub fn new(seconds: u64) -> Self {
        let root = tempfile::tempdir().unwrap();
        let per_second = 20_000;
        let output = root.path().join("output");
        let shape = Shape::default();
        let args =
            Args { records: per_second * seconds, per_second, keys: 500, output, shape, bits: 64 };
        let flags = ["--checkpoint-interval", "50ms", "--log", "warn,highwater=info"];
        let mut flags: Vec<OsString> = flags.map(OsString::from).to_vec();
        flags.extend(["--checkpoint-dir".into(), root.path().join("checkpoints").into()]);
        // So that parts are files of their own.
        flags.extend(["--inline-bytes-max".into(), "1KiB".into()]);
        Self { root, args, flags }
    }

    /// A job whose operators are slow, so that barriers overtake what waits in its channels. How long it takes depends on
    /// how many workers share the work.
    pub fn unaligned(shape: Shape, records: u64) -> Self {
        let mut bench = Self::new(1);
        bench.args = Args { records, keys: 50, shape, ..bench.args };
        bench.flag("--alignment-timeout", "0s").flag("--in-flight-bytes-max", "32KiB")
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.root.path().join(below)
    }

    pub fn checkpoints(&self) -> PathBuf {
        self.path("checkpoints")
    }

    pub fn flag(mut self, name: &str, value: &str) -> Self {
        self.flags.extend([name.into(), value.into()]);
        self
    }

    /// The program with all its flags and the given ones.
    pub fn program(&self, more: &[&str]) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(self.args.to_arguments()).args(&self.flags).args(more).env(ASK, "1");
        command
    }

    /// The program under the tool's supervision.
    pub fn supervised(&self, processes: usize, workers: usize, more: &[&str]) -> Command {
        let mut command = Command::new(TOOL);
        command
            .args(["run", "--restart", "fixed-delay", "--restart-attempts", "1000"])
            .args(["--restart-delay", "5ms", "--runtime-dir"])
            .arg(self.path("runtime"))
            .args(["-n", &processes.to_string(), "-w", &workers.to_string(), "--"])
            .arg(std::env::current_exe().unwrap())
            .args(self.args.to_arguments())
            .args(&self.flags)
            .args(more)
            .env(ASK, "1");
        command
    }

    /// Starts a command whose output goes to a file of that name.
    pub fn start(&self, mut command: Command, log: &str) -> Running {
        let log = self.path(log);
        let file = fs::File::options().create(true).append(true).open(&log).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let child = command.spawn().unwrap();
        Running { child, log }
    }

    /// The job's checkpoints; `None` as long as there is no directory.
    pub fn store(&self) -> Option<JobStore> {
        let storage = LocalStorage::open_existing(&self.checkpoints()).ok()?;
        Some(JobStore::new(Arc::new(storage), Name::new(JOB).unwrap()))
    }

    /// The number of the newest complete checkpoint; 0 if there is none.
    pub fn newest(&self) -> u64 {
        let newest = self.store().and_then(|store| store.valid_epochs().ok()?.last().copied());
        newest.map_or(0, |epoch| epoch.0)
    }

    /// Waits until a checkpoint is complete that was not when this was called.
    pub fn wait_for_a_checkpoint(&self) {
        let before = self.newest();
        wait_until("a checkpoint is complete", || self.newest() > before);
    }

    /// What the newest complete checkpoint holds of each channel. Units: records.
    pub fn logged(&self) -> BTreeMap<String, u64> {
        let mut logs = BTreeMap::new();
        let Some(store) = self.store() else { return logs };
        // It may be deleted while we look: then there is a newer one, and it is somebody else's turn to look.
        let Some(manifest) = store.newest().ok().flatten().and_then(|epoch| store.load(epoch).ok())
        else {
            return logs;
        };
        for section in manifest.parts.into_iter().flat_map(|part| part.sections) {
            let SectionHeader { operator, state, kind, .. } = section.header;
            if kind == SectionKind::ChannelLog && state.as_str() == "in-flight" {
                *logs.entry(operator.to_string()).or_default() += section.entries;
            }
        }
        logs
    }

    /// How many attempts were claimed.
    pub fn attempts(&self) -> u64 {
        let claims = fs::read_dir(self.checkpoints().join(JOB).join("attempts"));
        let names = claims.into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.filter_map(|name| name.to_str()?.parse().ok()).max().unwrap_or(0)
    }

    /// Writes a file of addresses of this machine that are free now.
    pub fn hostfile(&self, processes: usize) -> PathBuf {
        let held: Vec<_> =
            (0..processes).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let lines: Vec<String> =
            held.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
        let path = self.path(&format!("hosts-{}", lines.concat()));
        fs::write(&path, lines.join("\n")).unwrap();
        path
    }

    pub fn secret(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        if !path.exists() {
            Secret::generate_file(&path).unwrap();
        }
        path
    }

    /// Number of lines that are committed.
    pub fn lines(&self) -> u64 {
        let files = fs::read_dir(&self.args.output).unwrap().map(|entry| entry.unwrap().path());
        let texts = files.filter(|path| path.is_file()).map(|path| read(&path));
        texts.map(|text| text.lines().count() as u64).sum()
    }

    /// Everything that must be true of a job that has come to its end.
    pub fn assert_exactly_once(&self) {
        let mut balance: BTreeMap<String, i64> = BTreeMap::new();
        for line in self.args.expected() {
            *balance.entry(line).or_default() += 1;
        }
        let mut files = 0;
        for entry in fs::read_dir(&self.args.output).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                files += 1;
                for line in fs::read_to_string(path).unwrap().lines() {
                    *balance.entry(line.to_owned()).or_default() -= 1;
                }
            }
        }
        let loss: i64 = balance.values().filter(|count| **count > 0).sum();
        let dup: i64 = -balance.values().filter(|count| **count < 0).sum::<i64>();
        assert_eq!((loss, dup), (0, 0), "LOSS {loss} DUP {dup}");
        assert!(files > 0);
        let hidden = files_below(&self.args.output.join(".highwater"));
        let is_ledger = |path: &PathBuf| path.extension().is_some_and(|it| it == "ledger");
        let left: Vec<_> = hidden.iter().filter(|path| !is_ledger(path)).collect();
        assert!(left.is_empty(), "not committed and not abandoned: {left:?}");
        self.assert_directory_is_the_reachable_set();
    }

    pub fn assert_directory_is_the_reachable_set(&self) {
        let store = self.store().unwrap();
        let unreachable = store.unreachable().unwrap();
        assert!(unreachable.is_empty(), "left over: {unreachable:?}");
        let report = store.verify(None).unwrap();
        assert!(report.is_clean(), "{:?}", report.problems);
        assert!(report.unreferenced.is_empty(), "{:?}", report.unreferenced);
        let reachable = store.reachable().unwrap();
        for file in files_below(&self.checkpoints()) {
            let name = file.strip_prefix(self.checkpoints()).unwrap().to_str().unwrap().to_owned();
            // What a process was writing when it was killed is removed when it is ten minutes old: a writer that
            // was only thought dead may still be at it.
            let temporary = file.file_name().unwrap().to_str().unwrap().starts_with(".tmp-");
            let known = reachable.iter().any(|path| path.as_str() == name);
            assert!(known || temporary, "{name} is left over");
        }
    }
}

/// All files below a directory.
pub fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else { return files };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}

/// A process that was started, and what it says. Killed when dropped.
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Kills it; says whether it was running.
    pub fn kill(&mut self) -> bool {
        let running = self.is_running();
        if running {
            self.child.kill().unwrap();
        }
        self.child.wait().unwrap();
        running
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let pid = self.pid();
        let mut status = None;
        let log = self.log.clone();
        wait_or(
            || {
                status = self.child.try_wait().unwrap();
                status.is_some()
            },
            || format!("process {pid} ends; it said:\n{}", read(&log)),
        );
        status.unwrap()
    }

    /// Waits for its end, which must be success.
    pub fn succeeds(&mut self) {
        let status = self.wait();
        assert!(status.success(), "{status}\n{}", self.said());
    }

    /// What it and its children have said so far.
    pub fn said(&self) -> String {
        read(&self.log)
    }

    /// The processes that it has started.
    pub fn children(&self) -> Vec<u32> {
        let pid = self.pid();
        let mut children = Vec::new();
        // Every thread has its own.
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            children.extend(text.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
        }
        children.sort_unstable();
        children
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may be stopped; a kill reaches it all the same.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(path: &Path) -> String {
    let mut text = Vec::new();
    fs::File::open(path).unwrap().read_to_end(&mut text).unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

/// Sends a signal. Nothing happens if the process is gone.
pub fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let _ = kill_process(pid, signal);
}

pub fn wait_until(what: &str, met: impl FnMut() -> bool) {
    wait_or(met, || what.to_owned());
}

fn wait_or(mut met: impl FnMut() -> bool, what: impl FnOnce() -> String) {
    let start = Instant::now();
    while !met() {
        if start.elapsed() > WAIT_MAX {
            panic!("waited too long until {}", what());
        }
        // Poll: the condition is looked at again.
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A generator of numbers that needs no dependency: the same seed gives the same numbers.
pub struct Random(u64);

impl Random {
    /// Seeded by `PROCESS_TEST_SEED`, or by something else each time. The seed is printed.
    pub fn new() -> Self {
        use std::hash::{BuildHasher, Hasher};
        let given = std::env::var("PROCESS_TEST_SEED").ok().map(|text| text.parse().unwrap());
        let seed = given.unwrap_or_else(|| std::hash::RandomState::new().build_hasher().finish());
        println!("PROCESS_TEST_SEED={seed}");
        Self(seed)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    /// Lets a random time pass: what happens next is the fault that is tested, so it waits for nothing.
    pub fn pause(&mut self, max: Duration) {
        let micros = u64::try_from(max.as_micros()).unwrap();
        // Fault: the moment of a kill is random.
        std::thread::sleep(Duration::from_micros(self.below(micros)));
    }
}
