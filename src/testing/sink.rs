//! A sink at whose commits something may go wrong.

use std::fmt;

use super::faults::Moment;
use super::world::{self, INJECTED};
use crate::connect::{Committer, ConnectError, Sink, SinkContext};

/// A sink that lets the simulator fail its commits, or kill the process just before or just after one. Outside of a
/// simulation it is the sink it was made of.
#[derive(Clone, Debug)]
pub struct FaultSink<S>(S);

impl<S: Sink> FaultSink<S> {
    /// Decorates a sink.
    pub fn new(sink: S) -> Self {
        Self(sink)
    }
}

/// Commits for a [`FaultSink`].
pub struct FaultCommitter<C> {
    inner: C,
}

impl<C> fmt::Debug for FaultCommitter<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultCommitter").finish_non_exhaustive()
    }
}

impl<S: Sink> Sink for FaultSink<S> {
    type Record = S::Record;
    type Transaction = S::Transaction;
    type Writer = S::Writer;
    type Committer = FaultCommitter<S::Committer>;

    fn writer(&mut self, context: &SinkContext) -> Result<S::Writer, ConnectError> {
        self.0.writer(context)
    }

    fn committer(&mut self, context: &SinkContext) -> Result<Self::Committer, ConnectError> {
        Ok(FaultCommitter { inner: self.0.committer(context)? })
    }
}

impl<C: Committer> Committer for FaultCommitter<C> {
    type Transaction = C::Transaction;

    fn commit(&mut self, transaction: &C::Transaction) -> Result<(), ConnectError> {
        // Not that of whom the committer was made for: tasks run on any worker's thread.
        let Some(seat) = world::current() else { return self.inner.commit(transaction) };
        seat.moment(Moment::Commit, "before a commit");
        if seat.commit_fails() {
            return Err(ConnectError::new(format!("a commit without effect, {INJECTED}")));
        }
        self.inner.commit(transaction)?;
        seat.moment(Moment::Commit, "after a commit");
        if seat.commit_fails() {
            return Err(ConnectError::new(format!("a commit with effect, {INJECTED}")));
        }
        Ok(())
    }

    fn abandon_others(&mut self, kept: &[C::Transaction]) -> Result<(), ConnectError> {
        self.inner.abandon_others(kept)
    }
}
