//! The writer: one subtask's open transaction.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use super::fs::{Fs, FsFile};
use super::ledger::sync;
use super::names::{Place, Series};
use super::{FileTransaction, PendingFile, failed};
use crate::connect::{
    ConnectError, PreCommit, Record, SinkContext, TransactionId, TransactionWriter,
};
use crate::ids::{Epoch, Name};

/// Bytes are collected up to this size before they are written. Units: bytes.
const BUFFER_BYTES: usize = 256 << 10;

/// Writes the transactions of a [`FileSink`](super::FileSink).
pub struct FileWriter<D, F> {
    fs: Arc<dyn Fs>,
    place: Place,
    context: SinkContext,
    extension: Name,
    roll_bytes: u64,
    format: F,
    /// The number of the next file.
    sequence: u64,
    /// The files of the open transaction; the last one is being written.
    files: Vec<OpenFile>,
    records: PhantomData<fn(D)>,
}

impl<D, F> fmt::Debug for FileWriter<D, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileWriter")
            .field("place", &self.place)
            .field("context", &self.context)
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

/// A file of the open transaction.
struct OpenFile {
    sequence: u64,
    /// `None` as long as everything is in the buffer: then it is created where it is synced.
    file: Option<Box<dyn FsFile>>,
    /// What is in the file.
    written: u64,
    /// What is not yet.
    buffer: Vec<u8>,
}

impl<D: Record, F: Fn(&D, &mut Vec<u8>)> FileWriter<D, F> {
    pub(super) fn new(
        fs: Arc<dyn Fs>,
        place: Place,
        context: &SinkContext,
        extension: Name,
        roll_bytes: u64,
        format: F,
    ) -> Self {
        Self {
            fs,
            place,
            context: context.clone(),
            extension,
            roll_bytes,
            format,
            sequence: 0,
            files: Vec::new(),
            records: PhantomData,
        }
    }
}

impl OpenFile {
    fn new(sequence: u64) -> Self {
        Self { sequence, file: None, written: 0, buffer: Vec::new() }
    }

    fn bytes(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Writes the buffer into the file.
    fn flush(&mut self, fs: &dyn Fs, place: &Place, series: Series) -> Result<(), ConnectError> {
        let path = place.pending(series, self.sequence);
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(fs.create(&path).map_err(failed("created", &path))?),
        };
        file.append(&self.buffer).map_err(failed("written", &path))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Writes and syncs everything.
    fn finish(
        mut self,
        fs: &dyn Fs,
        place: &Place,
        series: Series,
    ) -> Result<PendingFile, ConnectError> {
        self.flush(fs, place, series)?;
        if let Some(mut file) = self.file {
            let path = place.pending(series, self.sequence);
            file.sync().map_err(failed("synced", &path))?;
        }
        Ok(PendingFile { sequence: self.sequence, bytes: self.written })
    }
}

impl<D: Record, F: Fn(&D, &mut Vec<u8>)> TransactionWriter for FileWriter<D, F> {
    type Record = D;
    type Transaction = FileTransaction;

    fn write(&mut self, records: &mut Vec<D>) -> Result<(), ConnectError> {
        let series = Series::of(&self.context);
        for record in records.drain(..) {
            if self.files.last().is_none_or(|file| file.bytes() >= self.roll_bytes) {
                if let Some(full) = self.files.last_mut() {
                    full.flush(&*self.fs, &self.place, series)?;
                }
                self.files.push(OpenFile::new(self.sequence));
                self.sequence += 1;
            }
            let file = self.files.last_mut().expect("a file was pushed if there was none");
            (self.format)(&record, &mut file.buffer);
            if file.buffer.len() >= BUFFER_BYTES {
                file.flush(&*self.fs, &self.place, series)?;
            }
        }
        Ok(())
    }

    fn pre_commit(
        &mut self,
        epoch: Epoch,
    ) -> Result<Option<PreCommit<FileTransaction>>, ConnectError> {
        let mut files = std::mem::take(&mut self.files);
        // Records that are formatted as nothing make no file.
        files.retain(|file| file.bytes() > 0);
        if files.is_empty() {
            return Ok(None);
        }
        let (fs, place) = (Arc::clone(&self.fs), self.place.clone());
        let mut transaction = FileTransaction {
            job: self.context.job.clone(),
            operator: self.context.operator.clone(),
            id: TransactionId::new(&self.context, epoch),
            extension: self.extension.clone(),
            files: Vec::new(),
        };
        Ok(Some(Box::new(move || {
            for file in files {
                transaction.files.push(file.finish(&*fs, &place, transaction.series())?);
            }
            sync(&*fs, &place.hidden)?;
            Ok(transaction)
        })))
    }
}
