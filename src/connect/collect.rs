//! A sink that collects records in memory, for tests. Exactly-once, within the process.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::{
    Committer, ConnectError, PreCommit, Record, Sink, SinkContext, TransactionId, TransactionWriter,
};
use crate::ids::Epoch;

/// A sink that collects committed records in memory.
///
/// It behaves like a transactional target: what is pre-committed lives in the checkpoint alone and
/// is visible nowhere; a commit adds it once, however often it is repeated. Clones share one
/// target, and so does the [handle](Collect::handle).
#[derive(Clone)]
pub struct Collect<D> {
    target: Arc<Mutex<Target<D>>>,
}

struct Target<D> {
    committed: Vec<D>,
    ids: BTreeSet<TransactionId>,
    repeated: u64,
}

impl<D> Default for Collect<D> {
    fn default() -> Self {
        let target = Target { committed: Vec::new(), ids: BTreeSet::new(), repeated: 0 };
        Self { target: Arc::new(Mutex::new(target)) }
    }
}

impl<D> fmt::Debug for Collect<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collect").finish_non_exhaustive()
    }
}

impl<D: Record> Collect<D> {
    /// A sink with an empty target.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What sees the target, from any thread, also after the job has ended.
    #[must_use]
    pub fn handle(&self) -> CollectHandle<D> {
        CollectHandle { target: Arc::clone(&self.target) }
    }
}

/// Sees what a [`Collect`] has collected.
#[derive(Clone)]
pub struct CollectHandle<D> {
    target: Arc<Mutex<Target<D>>>,
}

impl<D> fmt::Debug for CollectHandle<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CollectHandle").finish_non_exhaustive()
    }
}

impl<D: Record> CollectHandle<D> {
    /// All committed records: transactions in the order of their commits, in each the order of
    /// writing.
    #[must_use]
    pub fn committed(&self) -> Vec<D> {
        lock(&self.target).committed.clone()
    }

    /// The committed transactions, in ascending order.
    #[must_use]
    pub fn transactions(&self) -> Vec<TransactionId> {
        lock(&self.target).ids.iter().copied().collect()
    }

    /// How many commits were of a transaction that was committed already.
    #[must_use]
    pub fn repeated_commits(&self) -> u64 {
        lock(&self.target).repeated
    }
}

/// The target stays whole when a thread dies: a commit changes it in steps that cannot panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pre-committed transaction: its records are in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CollectTransaction<D> {
    id: TransactionId,
    records: Vec<D>,
}

/// Writes the transactions of a [`Collect`].
#[derive(Debug)]
pub struct CollectWriter<D> {
    context: SinkContext,
    open: Vec<D>,
}

/// Commits the transactions of a [`Collect`].
pub struct CollectCommitter<D> {
    target: Arc<Mutex<Target<D>>>,
}

impl<D> fmt::Debug for CollectCommitter<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CollectCommitter").finish_non_exhaustive()
    }
}

impl<D: Record> Sink for Collect<D> {
    type Record = D;
    type Transaction = CollectTransaction<D>;
    type Writer = CollectWriter<D>;
    type Committer = CollectCommitter<D>;

    fn writer(&mut self, context: &SinkContext) -> Result<CollectWriter<D>, ConnectError> {
        Ok(CollectWriter { context: context.clone(), open: Vec::new() })
    }

    fn committer(&mut self, _: &SinkContext) -> Result<CollectCommitter<D>, ConnectError> {
        Ok(CollectCommitter { target: Arc::clone(&self.target) })
    }
}

impl<D: Record> TransactionWriter for CollectWriter<D> {
    type Record = D;
    type Transaction = CollectTransaction<D>;

    fn write(&mut self, records: &mut Vec<D>) -> Result<(), ConnectError> {
        self.open.append(records);
        Ok(())
    }

    fn pre_commit(
        &mut self,
        epoch: Epoch,
    ) -> Result<Option<PreCommit<CollectTransaction<D>>>, ConnectError> {
        if self.open.is_empty() {
            return Ok(None);
        }
        let records = std::mem::take(&mut self.open);
        let id = TransactionId::new(&self.context, epoch);
        Ok(Some(Box::new(move || Ok(CollectTransaction { id, records }))))
    }
}

impl<D: Record> Committer for CollectCommitter<D> {
    type Transaction = CollectTransaction<D>;

    fn commit(&mut self, transaction: &CollectTransaction<D>) -> Result<(), ConnectError> {
        let records = transaction.records.clone();
        let mut target = lock(&self.target);
        if target.ids.insert(transaction.id) {
            target.committed.extend(records);
        } else {
            target.repeated += 1;
        }
        Ok(())
    }

    /// Nothing to do: what is not committed is in no place but the checkpoint.
    fn abandon_others(&mut self, _: &[CollectTransaction<D>]) -> Result<(), ConnectError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Collect;
    use crate::connect::conformance::{SinkUnderTest, context, exactly_once};
    use crate::connect::{Committer, Sink, TransactionWriter};
    use crate::ids::Epoch;

    impl SinkUnderTest for Collect<u64> {
        type Sink = Self;

        fn sink(&mut self) -> Self {
            self.clone()
        }

        fn record(&self, number: u64) -> u64 {
            number
        }

        fn visible(&mut self) -> Vec<u64> {
            self.handle().committed()
        }
    }

    #[test]
    fn it_is_exactly_once() {
        exactly_once(Collect::new);
    }

    #[test]
    fn repeated_commits_are_counted() {
        let mut sink = Collect::new();
        let handle = sink.handle();
        let context = context(1, 0, 1);
        let mut writer = sink.writer(&context).unwrap();
        writer.write(&mut vec!["a", "b"].into_iter().map(String::from).collect()).unwrap();
        let transaction = writer.pre_commit(Epoch(4)).unwrap().unwrap()().unwrap();
        let mut committer = sink.committer(&context).unwrap();
        for _ in 0..3 {
            committer.commit(&transaction).unwrap();
        }
        assert_eq!(handle.committed(), ["a", "b"]);
        assert_eq!(handle.repeated_commits(), 2);
        assert_eq!(handle.transactions()[0].epoch, Epoch(4));
    }
}
