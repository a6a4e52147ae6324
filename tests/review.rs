//! What an adversary finds: failures on other threads, readers that misbehave within their contract, stops that
//! coincide with failures, and what remains after the end.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use highwater::config::{JobConfig, RestartStrategy};
use highwater::connect::collect::{CollectCommitter, CollectTransaction, CollectWriter};
use highwater::connect::{
    Committer, PreCommit, ReadStatus, SinkContext, SplitReader, TransactionWriter, Waker,
};
use highwater::ids::{Epoch, Name};
use highwater::job::{JobHandle, execute};
use highwater::prelude::*;
use serde::{Deserialize, Serialize, Serializer};

const PATIENCE: Duration = Duration::from_secs(30);

fn config(workers: usize) -> JobConfig {
    let mut config = JobConfig::new(Name::new("review").unwrap());
    config.workers = workers;
    config.checkpoints.interval = Some(Duration::from_millis(5));
    config.restart = RestartStrategy::FixedDelay { attempts: 2, delay: Duration::ZERO };
    config
}

/// Runs a job that might hang, and fails if it does.
fn run(
    config: JobConfig,
    handle: &JobHandle,
    build: impl Fn(&Job<'_>) -> Result<(), JobError> + Send + Sync + 'static,
) -> Result<(), JobError> {
    let (ended, wait) = std::sync::mpsc::channel();
    let own = handle.clone();
    std::thread::spawn(move || ended.send(execute(config, &own, build)));
    wait.recv_timeout(PATIENCE).expect("the job hangs")
}

/// A sink that collects, and whose committer panics once.
#[derive(Clone)]
struct PanicsOnce(Collect<u64>, Arc<AtomicBool>);

struct PanicsOnceCommitter(CollectCommitter<u64>, Arc<AtomicBool>);

impl Sink for PanicsOnce {
    type Record = u64;
    type Transaction = CollectTransaction<u64>;
    type Writer = CollectWriter<u64>;
    type Committer = PanicsOnceCommitter;

    fn writer(&mut self, context: &SinkContext) -> Result<Self::Writer, ConnectError> {
        self.0.writer(context)
    }

    fn committer(&mut self, context: &SinkContext) -> Result<Self::Committer, ConnectError> {
        Ok(PanicsOnceCommitter(self.0.committer(context)?, Arc::clone(&self.1)))
    }
}

impl Committer for PanicsOnceCommitter {
    type Transaction = CollectTransaction<u64>;

    fn commit(&mut self, transaction: &Self::Transaction) -> Result<(), ConnectError> {
        assert!(self.1.swap(true, Ordering::SeqCst), "the test's own panic");
        self.0.commit(transaction)
    }

    fn abandon_others(&mut self, kept: &[Self::Transaction]) -> Result<(), ConnectError> {
        self.0.abandon_others(kept)
    }
}

#[test]
fn a_panic_of_a_committer_ends_the_attempt_and_nothing_is_lost() {
    let collect = Collect::new();
    let seen = collect.handle();
    let sink = PanicsOnce(collect, Arc::default());
    let handle = JobHandle::default();
    run(config(2), &handle, move |job| {
        job.source("numbers", Generator::new(1000, |i| i)).sink("out", sink.clone());
        Ok(())
    })
    .unwrap();
    assert_eq!(handle.counters().restarts(), 1);
    let mut all = seen.committed();
    all.sort_unstable();
    assert_eq!(all, (0..1000).collect::<Vec<_>>());
}

static GRENADE: AtomicBool = AtomicBool::new(true);

/// A state that panics when it is first written.
#[derive(Clone, Default, Deserialize)]
struct Grenade(u64);

impl Serialize for Grenade {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        assert!(!GRENADE.swap(false, Ordering::SeqCst), "the test's own panic");
        serializer.serialize_newtype_struct("Grenade", &self.0)
    }
}

#[test]
fn a_panic_while_state_is_written_ends_the_attempt() {
    let collect = Collect::new();
    let seen = collect.handle();
    let handle = JobHandle::default();
    run(config(1), &handle, move |job| {
        job.source("numbers", Generator::new(100, |i| i))
            .into_keyed(|i| (i % 3, i))
            .process("count", Value::<Grenade>::new("n"), |key, _, n, out| {
                n.or_default().0 += 1;
                out.emit((*key, n.or_default().0));
            })
            .sink("out", collect.clone());
        Ok(())
    })
    .unwrap();
    assert_eq!(handle.counters().restarts(), 1);
    assert_eq!(seen.committed().len(), 100);
}

type Read = Arc<dyn Fn(u32) -> ReadStatus + Send + Sync>;

/// A source of no records: its one split does what a function of the number of the read says.
#[derive(Clone)]
struct Scripted {
    read: Read,
    waker: Arc<Mutex<Option<Waker>>>,
}

impl Scripted {
    fn new(read: impl Fn(u32) -> ReadStatus + Send + Sync + 'static) -> Self {
        Self { read: Arc::new(read), waker: Arc::default() }
    }
}

impl Source for Scripted {
    type Record = u64;
    type Split = u32;
    type Reader = ScriptedReader;

    fn splits(&mut self, _: usize) -> Result<Vec<u32>, ConnectError> {
        Ok(vec![0])
    }

    fn open(&mut self, split: u32) -> Result<ScriptedReader, ConnectError> {
        Ok(ScriptedReader { source: self.clone(), reads: split })
    }
}

struct ScriptedReader {
    source: Scripted,
    reads: u32,
}

impl SplitReader for ScriptedReader {
    type Record = u64;
    type Split = u32;

    fn read(&mut self, _: &mut Vec<u64>, _: usize) -> Result<ReadStatus, ConnectError> {
        self.reads += 1;
        Ok((self.source.read)(self.reads))
    }

    fn split(&self) -> u32 {
        self.reads
    }

    fn set_waker(&mut self, waker: Waker) {
        *self.source.waker.lock().unwrap() = Some(waker);
    }
}

#[test]
fn a_reader_that_has_more_but_nothing_yet_does_not_keep_its_worker_from_checkpoints() {
    let handle = JobHandle::default();
    let counters = handle.clone();
    let source = Scripted::new(move |_| {
        if counters.counters().checkpoints().completed.is_empty() {
            ReadStatus::More
        } else {
            ReadStatus::Finished
        }
    });
    run(config(1), &handle, move |job| {
        job.source("more", source.clone()).sink("out", Discard::new());
        Ok(())
    })
    .unwrap();
    assert!(!handle.counters().checkpoints().completed.is_empty());
}

#[test]
fn a_waker_is_heard_before_the_wait_is_over() {
    let source = Scripted::new(|read| match read {
        1 => ReadStatus::Wait(Duration::from_secs(3600)),
        _ => ReadStatus::Finished,
    });
    let waker = Arc::clone(&source.waker);
    std::thread::spawn(move || {
        loop {
            if let Some(waker) = &*waker.lock().unwrap() {
                waker();
            }
            std::thread::sleep(Duration::from_millis(1)); // Poll: until the job ends.
        }
    });
    run(config(1), &JobHandle::default(), move |job| {
        job.source("waits", source.clone()).sink("out", Discard::new());
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_stop_is_not_forgotten_when_the_attempt_fails() {
    let handle = JobHandle::default();
    let stopper = handle.clone();
    let fuse = Arc::new(AtomicBool::new(false));
    run(config(2), &handle, move |job| {
        let (stopper, fuse) = (stopper.clone(), Arc::clone(&fuse));
        job.source("numbers", Generator::unbounded(|i| i).paced(0, 10_000))
            .inspect(move |_| {
                if !fuse.swap(true, Ordering::SeqCst) {
                    stopper.stop();
                    panic!("the test's own panic");
                }
            })
            .sink("out", Discard::new());
        Ok(())
    })
    .unwrap();
    assert_eq!(handle.counters().restarts(), 1);
}

/// A sink whose records are visible at once, and whose commits and abandonments are checked.
#[derive(Clone, Default)]
struct Visible {
    records: Arc<Mutex<Vec<u64>>>,
    committed: Arc<Mutex<BTreeSet<(u64, usize)>>>,
    early: Arc<AtomicBool>,
}

struct VisibleWriter(Visible, usize);
struct VisibleCommitter(Visible);

impl Sink for Visible {
    type Record = u64;
    type Transaction = (u64, usize);
    type Writer = VisibleWriter;
    type Committer = VisibleCommitter;

    fn writer(&mut self, context: &SinkContext) -> Result<VisibleWriter, ConnectError> {
        Ok(VisibleWriter(self.clone(), context.subtask))
    }

    fn committer(&mut self, _: &SinkContext) -> Result<VisibleCommitter, ConnectError> {
        Ok(VisibleCommitter(self.clone()))
    }
}

impl TransactionWriter for VisibleWriter {
    type Record = u64;
    type Transaction = (u64, usize);

    fn write(&mut self, records: &mut Vec<u64>) -> Result<(), ConnectError> {
        self.0.records.lock().unwrap().append(records);
        Ok(())
    }

    fn pre_commit(
        &mut self,
        epoch: Epoch,
    ) -> Result<Option<PreCommit<(u64, usize)>>, ConnectError> {
        let transaction = (epoch.0, self.1);
        Ok(Some(Box::new(move || Ok(transaction))))
    }
}

impl Committer for VisibleCommitter {
    type Transaction = (u64, usize);

    fn commit(&mut self, transaction: &(u64, usize)) -> Result<(), ConnectError> {
        self.0.committed.lock().unwrap().insert(*transaction);
        Ok(())
    }

    fn abandon_others(&mut self, kept: &[(u64, usize)]) -> Result<(), ConnectError> {
        let committed = self.0.committed.lock().unwrap();
        if kept.iter().any(|transaction| !committed.contains(transaction)) {
            self.0.early.store(true, Ordering::SeqCst);
        }
        Ok(())
    }
}

#[test]
fn after_the_barrier_of_a_stop_nothing_is_read_and_before_leftovers_go_all_that_is_kept_is_committed()
 {
    const RECORDS: u64 = 60_000;
    let directory = tempfile::tempdir().unwrap();
    let visible = Visible::default();
    for last in [false, true] {
        // What an earlier run committed is committed again.
        visible.committed.lock().unwrap().clear();
        let mut config = config(3);
        config.checkpoints.directory = Some(directory.path().to_owned());
        let handle = JobHandle::default();
        let (stopper, sink) = (handle.clone(), visible.clone());
        run(config, &handle, move |job| {
            let stopper = stopper.clone();
            job.source("numbers", Generator::new(RECORDS, |i| i).paced(0, 200_000))
                .inspect(move |i| {
                    if !last && *i >= RECORDS / 4 {
                        stopper.stop();
                    }
                })
                .sink("out", sink.clone());
            Ok(())
        })
        .unwrap();
        assert!(last || handle.counters().source_records() < RECORDS);
        assert_eq!(checkpoints(directory.path()), 1, "one is retained, and it is so at the end");
    }
    let mut records = visible.records.lock().unwrap().clone();
    records.sort_unstable();
    assert_eq!(records.len() as u64, RECORDS, "each is visible once");
    assert_eq!(records, (0..RECORDS).collect::<Vec<_>>());
    assert!(!visible.early.load(Ordering::SeqCst), "abandoned before all was committed");
}

/// Number of checkpoints in a directory.
fn checkpoints(directory: &Path) -> usize {
    std::fs::read_dir(directory.join("review").join("chk")).unwrap().count()
}

#[test]
fn a_configuration_that_cannot_be_run_is_an_error() {
    type Spoil = fn(&mut JobConfig);
    let spoils: [(Spoil, &str); 5] = [
        (|config| config.workers = 0, "workers"),
        (|config| config.processes = 0, "processes"),
        (|config| config.max_parallelism = 0, "max_parallelism"),
        (|config| config.max_parallelism = u16::MAX, "max_parallelism"),
        (|config| config.checkpoints.retained = 0, "retained"),
    ];
    for (spoil, what) in spoils {
        let mut config = config(1);
        spoil(&mut config);
        let error = run(config, &JobHandle::default(), |job| {
            job.source("none", Collection::<u64>::new(Vec::new())).sink("out", Discard::new());
            Ok(())
        })
        .unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn a_failure_of_one_worker_ends_the_attempt_at_once_and_names_the_operator() {
    let start = Instant::now();
    let mut config = config(3);
    config.restart = RestartStrategy::None;
    let error = run(config, &JobHandle::default(), |job| {
        job.source("numbers", Generator::unbounded(|i| i).paced(0, 1000))
            .into_keyed(|i| (i % 7, i))
            .process("fails", Value::<u64>::new("n"), |_, i, _, out| {
                assert!(i < 20, "the test's own panic");
                out.emit(i);
            })
            .sink("out", Discard::new());
        Ok(())
    })
    .unwrap_err();
    assert!(error.to_string().contains("operator fails on worker"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}
