//! The committer: makes pending files final ones, and removes those that no checkpoint holds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::fs::Fs;
use super::ledger::{Ledger, sync};
use super::names::{Hidden, Place, Series, parse};
use super::{FileTransaction, failed};
use crate::connect::{Committer, ConnectError, SinkContext};

/// Commits the transactions of a [`FileSink`](super::FileSink), of any subtask and attempt.
#[derive(Debug)]
pub struct FileCommitter {
    pub(super) fs: Arc<dyn Fs>,
    pub(super) directory: PathBuf,
    pub(super) formerly: Vec<PathBuf>,
    pub(super) context: SinkContext,
    pub(super) ledgers: Arc<Mutex<()>>,
}

/// A file of a transaction, as it was found.
struct Found {
    pending: PathBuf,
    last: PathBuf,
    /// The size that the transaction says.
    bytes: u64,
    sequence: u64,
    pending_bytes: Option<u64>,
    last_bytes: Option<u64>,
}

/// What dead attempts left.
#[derive(Default)]
struct Leftovers {
    /// The sequence numbers of the pending files that no checkpoint holds.
    pending: BTreeMap<Series, BTreeSet<u64>>,
    /// Ledgers that were being written.
    temporary: Vec<PathBuf>,
}

impl FileCommitter {
    fn size(&self, path: &Path) -> Result<Option<u64>, ConnectError> {
        self.fs.size(path).map_err(failed("looked at", path))
    }

    /// Makes renames and ledgers durable. The new names come first: if the power fails in between,
    /// a file has two names, and not none.
    fn sync(&self, place: &Place) -> Result<(), ConnectError> {
        sync(&*self.fs, &place.directory)?;
        sync(&*self.fs, &place.hidden)
    }

    /// Where a transaction is: in the sink's directory, unless only a former one has a trace of it.
    fn place(&self, transaction: &FileTransaction) -> Result<Place, ConnectError> {
        let place =
            |directory: &PathBuf| Place::new(directory, &transaction.job, &transaction.operator);
        for place in std::iter::once(&self.directory).chain(&self.formerly).map(place) {
            let mut traces = vec![place.ledger(transaction.series())];
            traces.extend(place.files(transaction).map(|(pending, _, _)| pending));
            for trace in traces {
                if self.size(&trace)?.is_some() {
                    return Ok(place);
                }
            }
        }
        Ok(place(&self.directory))
    }

    fn find(
        &self,
        place: &Place,
        transaction: &FileTransaction,
    ) -> Result<Vec<Found>, ConnectError> {
        let find = |(pending, last, file): (PathBuf, PathBuf, &super::PendingFile)| {
            let (pending_bytes, last_bytes) = (self.size(&pending)?, self.size(&last)?);
            let (bytes, sequence) = (file.bytes, file.sequence);
            Ok(Found { pending, last, bytes, sequence, pending_bytes, last_bytes })
        };
        place.files(transaction).map(find).collect()
    }

    /// Makes one file final. Its commit is known to the ledger.
    fn rename(&self, file: &Found) -> Result<(), ConnectError> {
        match (file.pending_bytes, file.last_bytes) {
            (None, _) => Ok(()),
            (Some(_), None) => {
                self.fs.rename(&file.pending, &file.last).map_err(failed("renamed", &file.pending))
            }
            // SUBTLE: a power cut may keep the new name and bring the old one back, if directories
            // are synced apart. The final file is ours, because there was none when the ledger was
            // written.
            (Some(_), Some(bytes)) if bytes == file.bytes => {
                self.fs.remove(&file.pending).map_err(failed("removed", &file.pending))
            }
            (Some(_), Some(_)) => Err(file.taken()),
        }
    }

    /// Finds what is to be removed.
    fn leftovers(
        &self,
        place: &Place,
        kept: &[FileTransaction],
    ) -> Result<Leftovers, ConnectError> {
        let kept: BTreeSet<PathBuf> = kept
            .iter()
            .flat_map(|transaction| {
                let place = Place::new(&self.directory, &transaction.job, &transaction.operator);
                place.files(transaction).map(|(pending, _, _)| pending).collect::<Vec<_>>()
            })
            .collect();
        let names = self.fs.list(&place.hidden).map_err(failed("listed", &place.hidden))?;
        let mut leftovers = Leftovers::default();
        for name in names {
            let path = place.hidden.join(&name);
            match parse(&name) {
                Some(Hidden::Pending { series, sequence })
                    if series.attempt < self.context.attempt && !kept.contains(&path) =>
                {
                    leftovers.pending.entry(series).or_default().insert(sequence);
                }
                Some(Hidden::LedgerTemporary(by)) if by < self.context.attempt => {
                    leftovers.temporary.push(path);
                }
                _ => {}
            }
        }
        Ok(leftovers)
    }
}

impl Found {
    /// Whether the file can be committed for the first time; or, though the ledger does not know
    /// it, was committed.
    fn check(&self, transaction: &FileTransaction) -> Result<(), ConnectError> {
        let bytes = Some(self.bytes);
        match (self.pending_bytes, self.last_bytes) {
            (found, None) if found == bytes => Ok(()),
            (None, found) if found == bytes => Ok(()),
            (Some(_), Some(_)) => Err(self.taken()),
            (Some(found), None) => Err(ConnectError::new(format!(
                "{} has {found} bytes, and had {} when it was pre-committed",
                self.pending.display(),
                self.bytes
            ))),
            (None, _) => Err(ConnectError::new(format!(
                "{}, of epoch {}, is lost: it is not there, and was not committed. If the job wrote to \
                 another directory before, name it with `formerly`",
                self.pending.display(),
                transaction.id.epoch
            ))),
        }
    }

    fn taken(&self) -> ConnectError {
        ConnectError::new(format!(
            "{} is to become {}, and there is another file of that name: move it away",
            self.pending.display(),
            self.last.display()
        ))
    }
}

impl Committer for FileCommitter {
    type Transaction = FileTransaction;

    fn commit(&mut self, transaction: &FileTransaction) -> Result<(), ConnectError> {
        let ledgers = Arc::clone(&self.ledgers);
        let _guard = ledgers.lock().unwrap_or_else(PoisonError::into_inner);
        let fs = &*self.fs;
        let (series, epoch) = (transaction.series(), transaction.id.epoch);
        let place = self.place(transaction)?;
        let mut ledger = Ledger::read(fs, &place, series)?;
        let files = self.find(&place, transaction)?;
        if ledger.is_done(epoch) && files.iter().all(|file| file.pending_bytes.is_none()) {
            return Ok(());
        }
        if ledger.knows(epoch) {
            // SUBTLE: a process that was killed may have replaced the ledger and not synced the
            // directory. A power cut after our rename would bring the ledger before it back, which
            // knows nothing of it.
            self.sync(&place)?;
        } else {
            files.iter().try_for_each(|file| file.check(transaction))?;
            ledger.settle(fs, &place, series)?;
            ledger.begin(epoch, files.iter().map(|file| file.sequence).collect());
            ledger.write(fs, &place, series, &self.context)?;
        }
        files.iter().try_for_each(|file| self.rename(file))?;
        self.sync(&place)
    }

    fn abandon_others(&mut self, kept: &[FileTransaction]) -> Result<(), ConnectError> {
        let ledgers = Arc::clone(&self.ledgers);
        let _guard = ledgers.lock().unwrap_or_else(PoisonError::into_inner);
        let fs = &*self.fs;
        let place = Place::new(&self.directory, &self.context.job, &self.context.operator);
        let Leftovers { pending: abandoned, temporary } = self.leftovers(&place, kept)?;
        if abandoned.is_empty() && temporary.is_empty() {
            return Ok(()); // The first attempt does not even find a directory.
        }
        for (series, sequences) in &abandoned {
            let mut ledger = Ledger::read(fs, &place, *series)?;
            if ledger.forget(|sequence| sequences.contains(&sequence)) {
                ledger.write(fs, &place, *series, &self.context)?;
            }
        }
        // A ledger that was read may not be durable either: see `commit`.
        self.sync(&place)?;
        let pending = abandoned.iter().flat_map(|(series, sequences)| {
            sequences.iter().map(|sequence| place.pending(*series, *sequence))
        });
        for path in pending.chain(temporary) {
            fs.remove(&path).map_err(failed("removed", &path))?;
        }
        sync(fs, &place.hidden)
    }
}
