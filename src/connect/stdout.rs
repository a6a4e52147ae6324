//! A sink that writes lines to standard output. At-least-once.
//!
//! Lines are visible at once: after a failure the job goes on from its last checkpoint, and writes
//! again what came after it. Writing blocks the worker for as long as the reader of the output
//! does.

use std::fmt::{self, Display};
use std::io;
use std::marker::PhantomData;

use super::{
    Committer, ConnectError, PreCommit, Record, Sink, SinkContext, TransactionWriter, file_sink,
};
use crate::ids::Epoch;

/// A sink that writes records to standard output, at-least-once. A closed pipe is an error, not a
/// panic.
pub struct Stdout<D, F = fn(&D, &mut Vec<u8>)> {
    format: F,
    records: PhantomData<fn(D)>,
}

impl<D: Record + Display> Stdout<D> {
    /// Writes each record as a line.
    #[must_use]
    pub fn lines() -> Self {
        Self::new(file_sink::display_line)
    }
}

impl<D: Record, F: Fn(&D, &mut Vec<u8>) + Clone + Send + 'static> Stdout<D, F> {
    /// Writes what `format` appends for each record. It must append the line's end too.
    #[must_use]
    pub fn new(format: F) -> Self {
        Self { format, records: PhantomData }
    }
}

impl<D, F: Clone> Clone for Stdout<D, F> {
    fn clone(&self) -> Self {
        Self { format: self.format.clone(), records: PhantomData }
    }
}

impl<D, F> fmt::Debug for Stdout<D, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stdout").finish_non_exhaustive()
    }
}

impl<D: Record, F: Fn(&D, &mut Vec<u8>) + Clone + Send + 'static> Sink for Stdout<D, F> {
    type Record = D;
    type Transaction = ();
    type Writer = StdoutWriter<D, F>;
    type Committer = StdoutCommitter;

    fn writer(&mut self, _: &SinkContext) -> Result<StdoutWriter<D, F>, ConnectError> {
        let format = self.format.clone();
        Ok(StdoutWriter { format, bytes: Vec::new(), records: PhantomData })
    }

    fn committer(&mut self, _: &SinkContext) -> Result<StdoutCommitter, ConnectError> {
        Ok(StdoutCommitter)
    }
}

/// Writes to standard output.
pub struct StdoutWriter<D, F> {
    format: F,
    bytes: Vec<u8>,
    records: PhantomData<fn(D)>,
}

impl<D, F> fmt::Debug for StdoutWriter<D, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StdoutWriter").finish_non_exhaustive()
    }
}

impl<D, F: Fn(&D, &mut Vec<u8>)> StdoutWriter<D, F> {
    /// Writes a batch with one call, so that the lines of other workers do not get in between.
    fn write_to(
        &mut self,
        records: &mut Vec<D>,
        out: &mut impl io::Write,
    ) -> Result<(), ConnectError> {
        self.bytes.clear();
        for record in records.drain(..) {
            (self.format)(&record, &mut self.bytes);
        }
        out.write_all(&self.bytes)
            .and_then(|()| out.flush())
            .map_err(|error| ConnectError::caused("standard output could not be written", error))
    }
}

impl<D: Record, F: Fn(&D, &mut Vec<u8>)> TransactionWriter for StdoutWriter<D, F> {
    type Record = D;
    type Transaction = ();

    fn write(&mut self, records: &mut Vec<D>) -> Result<(), ConnectError> {
        self.write_to(records, &mut io::stdout().lock())
    }

    /// Nothing to do: every write has flushed.
    fn pre_commit(&mut self, _: Epoch) -> Result<Option<PreCommit<()>>, ConnectError> {
        Ok(None)
    }
}

/// Commits nothing: what is written is visible at once.
#[derive(Clone, Copy, Debug)]
pub struct StdoutCommitter;

impl Committer for StdoutCommitter {
    type Transaction = ();

    fn commit(&mut self, (): &()) -> Result<(), ConnectError> {
        Ok(())
    }

    fn abandon_others(&mut self, _: &[()]) -> Result<(), ConnectError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::Stdout;
    use crate::connect::conformance::context;
    use crate::connect::{Sink, TransactionWriter};
    use crate::ids::Epoch;

    #[test]
    fn a_batch_is_written_as_lines_at_once() {
        let mut writer = Stdout::<u32>::lines().writer(&context(1, 0, 1)).unwrap();
        let mut out = Vec::new();
        writer.write_to(&mut vec![7, 8], &mut out).unwrap();
        writer.write_to(&mut vec![9], &mut out).unwrap();
        assert_eq!(out, b"7\n8\n9\n");
        assert!(writer.pre_commit(Epoch(1)).unwrap().is_none());
    }

    #[test]
    fn a_closed_pipe_is_an_error() {
        let (reader, mut pipe) = io::pipe().unwrap();
        drop(reader);
        let mut writer = Stdout::<u32>::lines().writer(&context(1, 0, 1)).unwrap();
        let error = writer.write_to(&mut vec![7], &mut pipe).unwrap_err();
        assert!(error.to_string().contains("standard output"), "{error}");
        assert!(error.source.unwrap().to_string().contains("pipe"));
    }
}
