//! A sink that writes files. Exactly-once.
//!
//! ```text
//! <dir>/part-<job>~<operator>~<lineage>-<attempt>-<subtask>-<epoch>[-<n>].<extension>   committed
//! <dir>/.highwater/<job>/<operator>/<lineage>-<attempt>-<subtask>-<sequence>.pending   pending
//! <dir>/.highwater/<job>/<operator>/<lineage>-<attempt>-<subtask>.ledger   what is committed
//! ```
//! (`~` is in no name, so no two transactions of any jobs have one file name.) A file appears in
//! the directory whole, and is not touched again: it may be read, moved or deleted at once. Several
//! jobs and operators may share a directory.
//!
//! # Life of a transaction
//!
//! | step | on disk |
//! |---|---|
//! | write | bytes go to `.pending` files, each up to `roll_bytes` |
//! | pre-commit | `.pending` files synced, then their directory |
//! | commit, 1 | all `.pending` files seen and no final one; ledger says *begun*, durably |
//! | commit, 2 | `.pending` renamed to the final name, both directories synced |
//! | next commit | ledger says *done* |
//! | abandon | ledger forgets what has `.pending` files left, durably; these are removed |
//!
//! # Why a repeated commit can tell
//! Only a commit and an abandon take a `.pending` file away. So if it is absent and the ledger says
//! *begun* or *done*, it was committed, whatever became of the final file since; if the ledger says
//! nothing, it is lost, and the commit is an error. The ledger must be written *before* the first
//! rename, since the final file may be moved away at once; and an abandon must take *begun* back
//! first, or a later restore of the checkpoint that holds the transaction would find it committed.
//! Should the ledger itself be lost, final files of the right size stand in for it.
//!
//! # What the runtime guarantees
//! Transactions of one subtask of one attempt are committed in the order of their epochs, in one
//! process at a time (the copies of a sink in a process share a lock). A process that was thought
//! dead and wakes up may repeat a commit that was made for it: both find the same answer.
//!
//! # What the file system must do
//! Renaming within the directory is atomic, and a synced file or directory survives a power cut. A
//! file that a foreign program creates under exactly the name of a transaction, between the look
//! and the rename, would be replaced.
//!
//! # Failure
//! A file that cannot be written or synced fails the job, which goes on from its last checkpoint;
//! the file is removed by the next attempt. If the power fails between a file's appearing and its
//! sync, it appears again, under the same name and with the same content. Source of the idea: the
//! two-phase commit of file sinks in stream processors; the difference is the ledger.

mod committer;
mod fs;
mod ledger;
mod names;
#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt::{self, Display};
use std::io::{self, Write as _};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

pub use committer::FileCommitter;
pub use writer::FileWriter;

use self::fs::{Disk, Fs};
use self::names::{NAMES_BYTES_MAX, Place, Series};
use super::{ConnectError, Record, Sink, SinkContext, TransactionId};
use crate::ids::Name;

const ROLL_BYTES: u64 = 128 << 20;

/// A sink that writes records into files of a directory, exactly-once. See the module for names and
/// guarantees.
///
/// Files are written on the worker's thread up to the page cache, which counts as not blocking;
/// they are synced on a snapshot thread.
pub struct FileSink<D, F = fn(&D, &mut Vec<u8>)> {
    directory: PathBuf,
    formerly: Vec<PathBuf>,
    format: F,
    extension: String,
    roll_bytes: u64,
    fs: Arc<dyn Fs>,
    /// Taken while a ledger is read and written.
    ledgers: Arc<Mutex<()>>,
    records: PhantomData<fn(D)>,
}

impl<D: Record + Display> FileSink<D> {
    /// Writes each record as a line into files of `directory`, which is created if it is not there.
    #[must_use]
    pub fn lines(directory: impl Into<PathBuf>) -> Self {
        Self::new(directory, display_line)
    }
}

impl<D: Record, F: Fn(&D, &mut Vec<u8>) + Clone + Send + 'static> FileSink<D, F> {
    /// Writes what `format` appends for each record into files of `directory`, which is created if
    /// it is not there. `format` must append what separates records (the line's end) too. A record
    /// is never cut.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>, format: F) -> Self {
        Self {
            directory: directory.into(),
            formerly: Vec::new(),
            format,
            extension: "txt".to_owned(),
            roll_bytes: ROLL_BYTES,
            fs: Arc::new(Disk),
            ledgers: Arc::default(),
            records: PhantomData,
        }
    }

    /// Sets the end of the files' names, without the dot: letters, digits, `.`, `_` and `-`.
    /// Default: `txt`.
    #[must_use]
    pub fn extension(mut self, extension: impl Into<String>) -> Self {
        self.extension = extension.into();
        self
    }

    /// Begins a new file when one has reached this size. Default: 128 MiB. Every checkpoint begins
    /// new files as well.
    #[must_use]
    pub fn roll_bytes(mut self, bytes: u64) -> Self {
        self.roll_bytes = bytes.max(1);
        self
    }

    /// Names a directory that an earlier run of the job wrote to: a restored checkpoint may hold
    /// transactions that are still pending there. They are committed there.
    #[must_use]
    pub fn formerly(mut self, directory: impl Into<PathBuf>) -> Self {
        self.formerly.push(directory.into());
        self
    }

    #[cfg(test)]
    fn on(mut self, fs: Arc<dyn Fs>) -> Self {
        self.fs = fs;
        self
    }
}

impl<D, F: Clone> Clone for FileSink<D, F> {
    fn clone(&self) -> Self {
        Self {
            directory: self.directory.clone(),
            formerly: self.formerly.clone(),
            format: self.format.clone(),
            extension: self.extension.clone(),
            roll_bytes: self.roll_bytes,
            fs: Arc::clone(&self.fs),
            ledgers: Arc::clone(&self.ledgers),
            records: PhantomData,
        }
    }
}

impl<D, F> fmt::Debug for FileSink<D, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSink")
            .field("directory", &self.directory)
            .field("formerly", &self.formerly)
            .field("extension", &self.extension)
            .field("roll_bytes", &self.roll_bytes)
            .finish_non_exhaustive()
    }
}

/// A pre-committed transaction of a [`FileSink`]. It holds no path: names are made from names that
/// are checked when a checkpoint is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileTransaction {
    job: Name,
    operator: Name,
    id: TransactionId,
    extension: Name,
    /// In the order in which they were written.
    files: Vec<PendingFile>,
}

impl FileTransaction {
    /// The transaction's name.
    #[must_use]
    pub fn id(&self) -> TransactionId {
        self.id
    }

    /// Size of the transaction's files. Units: bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// A file that is complete and synced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PendingFile {
    /// The number in its name: counts up in the life of a writer.
    sequence: u64,
    /// Its size.
    bytes: u64,
}

impl<D: Record, F: Fn(&D, &mut Vec<u8>) + Clone + Send + 'static> Sink for FileSink<D, F> {
    type Record = D;
    type Transaction = FileTransaction;
    type Writer = FileWriter<D, F>;
    type Committer = FileCommitter;

    fn writer(&mut self, context: &SinkContext) -> Result<FileWriter<D, F>, ConnectError> {
        let extension = Name::new(self.extension.as_str())
            .map_err(|error| ConnectError::caused("the extension of a file sink is bad", error))?;
        let names = [&context.job, &context.operator, &extension];
        if names.iter().map(|name| name.as_str().len()).sum::<usize>() > NAMES_BYTES_MAX {
            return Err(ConnectError::new(format!(
                "the names of job {}, operator {} and extension {extension} are together longer \
                 than {NAMES_BYTES_MAX} bytes, which a file name has no room for: shorten one",
                context.job, context.operator
            )));
        }
        let place = Place::new(&self.directory, &context.job, &context.operator);
        self.fs.make_directories(&place.hidden).map_err(failed("created", &place.hidden))?;
        let series = Series::of(context);
        let ledger = place.ledger(series);
        if self.fs.size(&ledger).map_err(failed("looked at", &ledger))?.is_some() {
            return Err(ConnectError::new(format!(
                "{} has output of an earlier attempt {} of a job named {}: give this job an empty \
                 directory or another name, or let it go on from its checkpoints",
                self.directory.display(),
                context.attempt,
                context.job
            )));
        }
        let fs = Arc::clone(&self.fs);
        Ok(FileWriter::new(fs, place, context, extension, self.roll_bytes, self.format.clone()))
    }

    fn committer(&mut self, context: &SinkContext) -> Result<FileCommitter, ConnectError> {
        Ok(FileCommitter {
            fs: Arc::clone(&self.fs),
            directory: self.directory.clone(),
            formerly: self.formerly.clone(),
            context: context.clone(),
            ledgers: Arc::clone(&self.ledgers),
        })
    }
}

/// Appends a record as its [`Display`] writes it, and a line's end.
pub(super) fn display_line<D: Display>(record: &D, bytes: &mut Vec<u8>) {
    // Writing into a `Vec` cannot fail; a `Display` that fails leaves a shorter line.
    let _ = writeln!(bytes, "{record}");
}

/// Makes the error of a file operation: `done` to `path`.
fn failed(done: &str, path: &Path) -> impl FnOnce(io::Error) -> ConnectError {
    let what = format!("{} could not be {done}", path.display());
    move |error| ConnectError::caused(what, error)
}
