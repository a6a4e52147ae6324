//! The outside world: the traits that sources and sinks implement, and the ones that come with Highwater.
//!
//! The runtime drives both. Neither trait knows of epochs' protocol, of timely or of threads beyond what is said
//! here, so a user writes a source or a sink by implementing them and nothing else.

pub mod collect;
pub mod collection;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
pub mod discard;
pub mod file_sink;
pub mod files;
pub mod generator;
mod line;
pub mod socket;
pub mod stdout;
mod transaction;
pub mod workload;
mod zst;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ids::{Attempt, Epoch, Lineage, Name};

pub use collect::Collect;
pub use collection::Collection;
pub use discard::Discard;
pub use file_sink::FileSink;
pub use files::Files;
pub use generator::Generator;
pub use socket::SocketLines;
pub use stdout::Stdout;
pub use transaction::TransactionId;

/// Bounds of a record. Implemented for every type that has them.
pub trait Record: Clone + Send + Serialize + DeserializeOwned + 'static {}
impl<T: Clone + Send + Serialize + DeserializeOwned + 'static> Record for T {}

/// A source or a sink failed. The job fails, and is restarted by its restart strategy.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct ConnectError {
    /// What was being done, to what: names the file, address or transaction, and the remedy if there is one.
    pub what: String,
    /// Why it failed.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl ConnectError {
    /// An error without an underlying one.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), source: None }
    }

    /// An error with the one that caused it.
    pub fn caused(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { what: what.into(), source: Some(source.into()) }
    }
}

/// A source: something that is read in *splits*, each at a position that can be kept and returned to.
///
/// The runtime asks worker 0 for the splits when the job starts with nothing to restore, deals them to the
/// workers, puts what [`SplitReader::split`] says into every checkpoint, and deals those again on a restore.
///
/// # What an implementor must guarantee
/// * Opened at a kept position, a split yields the records that it would have yielded from there, in the same
///   order (*replay*). A source that cannot replay is at-most-once, and must say so in its documentation.
/// * Nothing blocks: a split that must wait for the outside reads on a thread of its own.
pub trait Source: Send + 'static {
    /// What it yields.
    type Record: Record;
    /// A split together with a position in it. Its serialized form is in checkpoints.
    type Split: Clone + Send + Serialize + DeserializeOwned + 'static;
    /// What reads one split.
    type Reader: SplitReader<Record = Self::Record, Split = Self::Split> + 'static;

    /// Lists the splits, each at its beginning. Called on worker 0 of a job that restores nothing.
    /// `parallelism` is the number of workers: a hint for sources that can cut at will.
    ///
    /// # Errors
    /// [`ConnectError`] if they cannot be listed.
    fn splits(&mut self, parallelism: usize) -> Result<Vec<Self::Split>, ConnectError>;

    /// Opens a split at its position.
    ///
    /// # Errors
    /// [`ConnectError`] if it is not there, or is another one than it was.
    fn open(&mut self, split: Self::Split) -> Result<Self::Reader, ConnectError>;
}

/// What a split has after a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadStatus {
    /// More, probably at once.
    More,
    /// Nothing now; ask again after this time, or when [`SplitReader::set_waker`]'s waker is called.
    Wait(std::time::Duration),
    /// Nothing, for ever.
    Finished,
}

/// Wakes the worker that reads a split, from any thread.
pub type Waker = std::sync::Arc<dyn Fn() + Send + Sync>;

/// Reads one split. Lives on one worker thread.
pub trait SplitReader {
    /// What it yields.
    type Record;
    /// The split's type.
    type Split;

    /// Appends up to `records_max` records (at least 1) to `batch`, without blocking.
    ///
    /// # Errors
    /// [`ConnectError`] if the split cannot be read on. What was appended before is dropped.
    fn read(
        &mut self,
        batch: &mut Vec<Self::Record>,
        records_max: usize,
    ) -> Result<ReadStatus, ConnectError>;

    /// The split at the position behind the last record that was read.
    fn split(&self) -> Self::Split;

    /// Takes a waker, for readers that learn from another thread that there is something to read.
    fn set_waker(&mut self, waker: Waker) {
        drop(waker);
    }
}

/// Where and when a sink's subtask runs. With the epoch this names a transaction for all time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkContext {
    /// The job.
    pub job: Name,
    /// The sink's operator name.
    pub operator: Name,
    /// The history that this run belongs to: a restore starts a new one.
    pub lineage: Lineage,
    /// This run.
    pub attempt: Attempt,
    /// Index of the worker.
    pub subtask: usize,
    /// Number of workers.
    pub parallelism: usize,
}

/// What is left to do for a pre-commit: runs on a snapshot thread, so it may block on I/O.
pub type PreCommit<T> = Box<dyn FnOnce() -> Result<T, ConnectError> + Send>;

/// A sink that takes part in checkpoints by two-phase commit: output is exactly-once.
///
/// # Life of a transaction
/// 1. Records between two barriers are [written](TransactionWriter::write): they are nowhere visible.
/// 2. At barrier *n* it is [pre-committed](TransactionWriter::pre_commit): made durable, and named by a
///    `Transaction` value that is kept in checkpoint *n*. From here on it can be committed from any process.
/// 3. When checkpoint *n* is complete it is [committed](Committer::commit). If the job dies before, the restore
///    of *n* commits it. If checkpoint *n* is aborted, it stays pending and the next one that completes
///    covers it.
/// 4. Transactions of dead attempts that no checkpoint holds are [abandoned](Committer::abandon_others).
///
/// Sinks that are at-least-once implement the same trait with writes that are visible at once, and a
/// `Transaction` that has nothing to commit.
pub trait Sink: Send + 'static {
    /// What it takes.
    type Record: Record;
    /// The name of a pre-committed transaction: all that a commit needs. Kept in checkpoints.
    type Transaction: Clone + Send + Serialize + DeserializeOwned + 'static;
    /// What writes, on the worker's thread.
    type Writer: TransactionWriter<Record = Self::Record, Transaction = Self::Transaction> + 'static;
    /// What commits, on an I/O thread.
    type Committer: Committer<Transaction = Self::Transaction> + 'static;

    /// Makes the writer of one subtask.
    ///
    /// # Errors
    /// [`ConnectError`] if the target cannot be written to.
    fn writer(&mut self, context: &SinkContext) -> Result<Self::Writer, ConnectError>;

    /// Makes the committer of one subtask. It must not touch the writer's open transaction.
    ///
    /// # Errors
    /// [`ConnectError`] if the target cannot be written to.
    fn committer(&mut self, context: &SinkContext) -> Result<Self::Committer, ConnectError>;
}

/// Writes the transactions of one subtask. Lives on one worker thread.
pub trait TransactionWriter {
    /// What it takes.
    type Record;
    /// The name of a pre-committed transaction.
    type Transaction;

    /// Adds records to the open transaction. Takes them all out of `records`, or as many as it took before it
    /// failed.
    ///
    /// # Errors
    /// [`ConnectError`]: the job fails, and goes on from the last checkpoint.
    fn write(&mut self, records: &mut Vec<Self::Record>) -> Result<(), ConnectError>;

    /// Ends the open transaction at barrier `epoch`, and opens the next. Must be quick: what blocks (flush,
    /// sync) belongs into the returned closure. `None` if nothing was written since the last barrier.
    ///
    /// An error of the closure aborts the checkpoint **and** fails the job, since the records cannot be
    /// written again without going back.
    ///
    /// # Errors
    /// [`ConnectError`]: the job fails, and goes on from the last checkpoint.
    fn pre_commit(
        &mut self,
        epoch: Epoch,
    ) -> Result<Option<PreCommit<Self::Transaction>>, ConnectError>;
}

/// Commits transactions, on an I/O thread.
pub trait Committer: Send {
    /// The name of a pre-committed transaction.
    type Transaction;

    /// Makes a pre-committed transaction visible. Idempotent: it is called again after a crash, for transactions
    /// that were committed already, from any process.
    ///
    /// # Errors
    /// [`ConnectError`] if it is not known to be committed. Unknown is an error, never success. The runtime
    /// retries with a delay, and fails the job after some time; the next attempt commits again.
    fn commit(&mut self, transaction: &Self::Transaction) -> Result<(), ConnectError>;

    /// Undoes what earlier attempts of this job wrote through this operator and no checkpoint holds:
    /// everything of an attempt below the context's that is not in `kept`. Called once an attempt, on one
    /// subtask, after every transaction in `kept` has been committed.
    ///
    /// # Errors
    /// [`ConnectError`]; it is logged, and the job goes on: leftovers are invisible.
    fn abandon_others(&mut self, kept: &[Self::Transaction]) -> Result<(), ConnectError>;
}
