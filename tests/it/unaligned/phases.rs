//! Failures in every phase of a job's life, with records on their way in what it is restored from.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use highwater::config::RestartStrategy;
use highwater::connect::{
    Committer, PreCommit, ReadStatus, Sink, SinkContext, SplitReader, TransactionWriter, Waker,
};
use highwater::format::record::CheckpointOutcome;
use highwater::ids::Epoch;
use highwater::prelude::*;

use super::shapes::Shape;
use super::{Case, Id, KEYS, Numbers, logged, unaligned};
use crate::support::{Background, JOB, Scratch, quiet_panics, store_in, wait_until};

/// Where the next failure is to be. Each happens once for each time it was ordered.
#[derive(Clone, Default)]
struct Orders {
    /// A sink's pre-commit fails, while a part is written.
    snapshot: Arc<AtomicBool>,
    /// The function that builds the job panics.
    build: Arc<AtomicBool>,
    /// The attempt that follows such a panic is to fail as well.
    after_build: Arc<AtomicBool>,
    /// A source cannot be opened where it was.
    open: Arc<AtomicBool>,
    /// A commit panics when everything was read: that behind the final checkpoint, as a rule.
    close: Arc<AtomicBool>,
    happened: Arc<AtomicU64>,
}

impl Orders {
    fn take(&self, order: &AtomicBool) -> bool {
        let taken = order.swap(false, Ordering::SeqCst);
        self.happened.fetch_add(u64::from(taken), Ordering::SeqCst);
        taken
    }
}

/// A source or a sink that fails when it is told to.
#[derive(Clone)]
struct Failing<T> {
    inner: T,
    orders: Orders,
    /// The job's other sources.
    sources: Vec<Numbers>,
}

impl Sink for Failing<Collect<Id>> {
    type Record = Id;
    type Transaction = <Collect<Id> as Sink>::Transaction;
    type Writer = Failing<<Collect<Id> as Sink>::Writer>;
    type Committer = Failing<<Collect<Id> as Sink>::Committer>;

    fn writer(&mut self, context: &SinkContext) -> Result<Self::Writer, ConnectError> {
        Ok(self.with(self.inner.clone().writer(context)?))
    }

    fn committer(&mut self, context: &SinkContext) -> Result<Self::Committer, ConnectError> {
        Ok(self.with(self.inner.clone().committer(context)?))
    }
}

impl<T> Failing<T> {
    fn with<O>(&self, inner: O) -> Failing<O> {
        Failing { inner, orders: self.orders.clone(), sources: self.sources.clone() }
    }
}

impl<W: TransactionWriter<Transaction: 'static>> TransactionWriter for Failing<W> {
    type Record = W::Record;
    type Transaction = W::Transaction;

    fn write(&mut self, records: &mut Vec<W::Record>) -> Result<(), ConnectError> {
        self.inner.write(records)
    }

    fn pre_commit(
        &mut self,
        epoch: Epoch,
    ) -> Result<Option<PreCommit<W::Transaction>>, ConnectError> {
        let pre_commit = self.inner.pre_commit(epoch)?;
        let orders = self.orders.clone();
        Ok(pre_commit.map(|pre_commit| -> PreCommit<W::Transaction> {
            Box::new(move || {
                if orders.take(&orders.snapshot) {
                    return Err(ConnectError::new("planted in a snapshot"));
                }
                pre_commit()
            })
        }))
    }
}

impl<C: Committer> Committer for Failing<C> {
    type Transaction = C::Transaction;

    fn commit(&mut self, transaction: &C::Transaction) -> Result<(), ConnectError> {
        let ended = |source: &Numbers| {
            source.reached.load(Ordering::SeqCst) >= source.end.load(Ordering::SeqCst)
        };
        if self.orders.close.load(Ordering::SeqCst) && self.sources.iter().all(ended) {
            assert!(!self.orders.take(&self.orders.close), "planted on close");
        }
        self.inner.commit(transaction)
    }

    fn abandon_others(&mut self, kept: &[C::Transaction]) -> Result<(), ConnectError> {
        self.inner.abandon_others(kept)
    }
}

/// A source beside the others that has nothing to say until they end, and fails to open.
impl Source for Failing<()> {
    type Record = super::Item;
    type Split = u64;
    type Reader = Self;

    fn splits(&mut self, _: usize) -> Result<Vec<u64>, ConnectError> {
        Ok(vec![0])
    }

    fn open(&mut self, _: u64) -> Result<Self, ConnectError> {
        if self.orders.take(&self.orders.open) {
            return Err(ConnectError::new("planted in a source"));
        }
        Ok(self.clone())
    }
}

impl SplitReader for Failing<()> {
    type Record = super::Item;
    type Split = u64;

    fn read(&mut self, _: &mut Vec<super::Item>, _: usize) -> Result<ReadStatus, ConnectError> {
        Ok(match self.sources[0].end.load(Ordering::SeqCst) {
            u64::MAX => ReadStatus::Wait(Duration::from_millis(5)),
            _ => ReadStatus::Finished,
        })
    }

    fn split(&self) -> u64 {
        0
    }

    fn set_waker(&mut self, _: Waker) {}
}

/// Files where directories of coming checkpoints should be: nothing of those can be written.
struct Obstacles(Vec<PathBuf>);

impl Obstacles {
    fn before(directory: &Path) -> Self {
        let newest = store_in(directory).newest().unwrap().unwrap();
        let chk = directory.join(JOB).join("chk");
        let paths = (newest.0 + 2..newest.0 + 6).map(|epoch| chk.join(epoch.to_string()));
        let put = |path: &PathBuf| fs::File::options().create_new(true).write(true).open(path);
        Self(paths.filter(|path| put(path).is_ok()).collect())
    }
}

impl Drop for Obstacles {
    fn drop(&mut self) {
        for path in &self.0 {
            fs::remove_file(path).unwrap();
        }
    }
}

/// Waits until a checkpoint holds records on their way that began after this was called.
fn wait_for_backlog(job: &Background) {
    let counters = job.handle.counters();
    let before = counters.checkpoints();
    wait_until("another checkpoint holds records on their way", || {
        assert!(!job.is_finished(), "the job has ended");
        let now = counters.checkpoints();
        now.in_flight_records > before.in_flight_records
            && now.completed.len() >= before.completed.len() + 2
    });
}

fn fail_in_every_phase(shape: Shape, workers: usize) {
    quiet_panics();
    let scratch = Scratch::new();
    let directory = scratch.checkpoints();
    let mut config = unaligned(&scratch, workers);
    config.checkpoints.interval = Some(Duration::from_millis(10));
    config.checkpoints.inline_bytes_max = 0;
    config.restart = RestartStrategy::FixedDelay { attempts: 6, delay: Duration::from_millis(1) };
    let case = Case::new(shape.sources(), KEYS, workers);
    let orders = Orders::default();
    let (shared, given) = (case.clone(), orders.clone());
    let (to, checkpoints) = (case.sink.clone(), directory.clone());
    case.slow.set(4);
    let job = Background::start(config, move |job| {
        shared.note_restore(job, &checkpoints);
        // One attempt fails on worker 0 while it is built, and the next one where the source is opened, on worker 0 too.
        if job.worker().0 == 0 {
            let opens = given.after_build.swap(false, Ordering::SeqCst);
            given.open.store(opens, Ordering::SeqCst);
            given.after_build.store(given.build.load(Ordering::SeqCst), Ordering::SeqCst);
            assert!(!given.take(&given.build), "planted while building");
        }
        let failing = Failing { inner: (), orders: given.clone(), sources: shared.sources.clone() };
        let sink = failing.with(to.clone());
        let idle = job.source("failing", failing);
        shape.build_into(job, &shared, |stream| {
            let tally = Arc::clone(&shared.tally);
            let ids = stream.union(idle).map(move |item| {
                tally.look(&item);
                item.id()
            });
            ids.sink("out", sink);
        });
        Ok(())
    });
    let counters = job.handle.counters();
    let wait_for_restarts = |count| {
        wait_until(&format!("it is restarted {count} times"), || {
            assert!(!job.is_finished(), "the job has ended");
            counters.restarts() >= count
        });
    };
    // 1: while records are processed.
    wait_for_backlog(&job);
    case.slow.fail();
    wait_for_restarts(1);
    // 2: while a snapshot is written; 3 and 4: while the next attempts are built.
    wait_for_backlog(&job);
    orders.build.store(true, Ordering::SeqCst);
    orders.snapshot.store(true, Ordering::SeqCst);
    wait_for_restarts(4);
    // 5: storage. That costs checkpoints, and no restart.
    wait_for_backlog(&job);
    let aborted = counters.checkpoints().aborted;
    let obstacles = Obstacles::before(&directory);
    assert!(!obstacles.0.is_empty());
    wait_until("a checkpoint is aborted", || counters.checkpoints().aborted > aborted);
    drop(obstacles);
    wait_for_backlog(&job);
    let histories = store_in(&directory).history().unwrap();
    let reasons = histories.iter().filter_map(|record| match &record.outcome {
        CheckpointOutcome::Aborted { reason } => Some(reason.as_str()),
        _ => None,
    });
    let reasons: Vec<_> = reasons.collect();
    assert!(reasons.iter().any(|reason| reason.contains("Not a directory")), "{reasons:?}");
    assert_eq!(counters.restarts(), 4);
    // 6: when the sources have ended. The line is drawn by the next attempt, which has to be made.
    orders.close.store(true, Ordering::SeqCst);
    case.draw_line(500);
    case.slow.fail();
    wait_for_restarts(5);
    case.slow.set(0);
    let handle = job.handle.clone();
    job.end().unwrap();
    assert_eq!(handle.counters().restarts(), 6);
    assert_eq!(orders.happened.load(Ordering::SeqCst), 4);
    case.assert_exactly_once();
    scratch.assert_directory_is_the_reachable_set();
    // Every attempt was restored from records on their way, that behind the final checkpoint apart.
    let restored = case.restored_records();
    println!("{shape:?} on {workers} workers was restored with {restored:?}");
    assert_eq!(restored.len(), 6);
    assert!(restored[..5].iter().all(|records| *records > 0), "{restored:?}");
    assert_eq!(logged(&directory).values().sum::<u64>(), 0, "nothing is left in the final one");
}

#[test]
fn a_pipeline_survives_failures_in_every_phase() {
    for workers in [1, 2, 3] {
        fail_in_every_phase(Shape::Pipeline, workers);
    }
}

#[test]
fn unions_survive_failures_in_every_phase() {
    for workers in [2, 3] {
        fail_in_every_phase(Shape::Union, workers);
    }
}

#[test]
fn two_inputs_of_a_keyed_operator_survive_failures_in_every_phase() {
    for workers in [2, 3] {
        fail_in_every_phase(Shape::TwoInputs, workers);
    }
}

#[test]
fn three_inputs_of_a_keyed_operator_survive_failures_in_every_phase() {
    for workers in [2, 3] {
        fail_in_every_phase(Shape::ThreeInputs, workers);
    }
}
