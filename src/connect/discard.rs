//! A sink that counts and digests records and keeps none, for benches and tests. Exactly-once,
//! within the process.

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::{
    Committer, ConnectError, PreCommit, Record, Sink, SinkContext, TransactionId, TransactionWriter,
};
use crate::ids::Epoch;

/// A sink that adds up how many records were committed, and a number made from each.
///
/// Clones share the totals, and so does the [handle](Discard::handle). The totals remember the name
/// of every committed transaction (32 bytes each), by which a repeated commit is known.
pub struct Discard<D, F> {
    fold: F,
    totals: Arc<Mutex<Totals>>,
    records: PhantomData<fn(D)>,
}

#[derive(Debug, Default)]
struct Totals {
    count: u64,
    digest: u64,
    ids: BTreeSet<TransactionId>,
}

impl<D: Record> Discard<D, fn(&D) -> u64> {
    /// A sink that counts. Its digest stays 0.
    #[must_use]
    pub fn new() -> Self {
        Self::counting(|_| 0)
    }
}

impl<D: Record> Default for Discard<D, fn(&D) -> u64> {
    fn default() -> Self {
        Self::new()
    }
}

impl<D: Record, F: Fn(&D) -> u64 + Clone + Send + 'static> Discard<D, F> {
    /// A sink that counts, and adds up `fold` of the records, wrapping around: a digest that does
    /// not depend on the order.
    #[must_use]
    pub fn counting(fold: F) -> Self {
        Self { fold, totals: Arc::default(), records: PhantomData }
    }

    /// What sees the totals, from any thread, also after the job has ended.
    #[must_use]
    pub fn handle(&self) -> DiscardHandle {
        DiscardHandle { totals: Arc::clone(&self.totals) }
    }
}

impl<D, F: Clone> Clone for Discard<D, F> {
    fn clone(&self) -> Self {
        let totals = Arc::clone(&self.totals);
        Self { fold: self.fold.clone(), totals, records: PhantomData }
    }
}

impl<D, F> fmt::Debug for Discard<D, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discard").field("totals", &self.totals).finish_non_exhaustive()
    }
}

/// Sees the totals of a [`Discard`].
#[derive(Clone, Debug)]
pub struct DiscardHandle {
    totals: Arc<Mutex<Totals>>,
}

impl DiscardHandle {
    /// The number of committed records, and their digest.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        let totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        (totals.count, totals.digest)
    }
}

/// A pre-committed transaction: what it adds to the totals.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiscardTransaction {
    id: TransactionId,
    count: u64,
    digest: u64,
}

/// Writes the transactions of a [`Discard`].
pub struct DiscardWriter<D, F> {
    context: SinkContext,
    fold: F,
    count: u64,
    digest: u64,
    records: PhantomData<fn(D)>,
}

impl<D, F> fmt::Debug for DiscardWriter<D, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiscardWriter")
            .field("context", &self.context)
            .field("count", &self.count)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

/// Commits the transactions of a [`Discard`].
#[derive(Debug)]
pub struct DiscardCommitter {
    totals: Arc<Mutex<Totals>>,
}

impl<D: Record, F: Fn(&D) -> u64 + Clone + Send + 'static> Sink for Discard<D, F> {
    type Record = D;
    type Transaction = DiscardTransaction;
    type Writer = DiscardWriter<D, F>;
    type Committer = DiscardCommitter;

    fn writer(&mut self, context: &SinkContext) -> Result<DiscardWriter<D, F>, ConnectError> {
        let (context, fold) = (context.clone(), self.fold.clone());
        Ok(DiscardWriter { context, fold, count: 0, digest: 0, records: PhantomData })
    }

    fn committer(&mut self, _: &SinkContext) -> Result<DiscardCommitter, ConnectError> {
        Ok(DiscardCommitter { totals: Arc::clone(&self.totals) })
    }
}

impl<D: Record, F: Fn(&D) -> u64> TransactionWriter for DiscardWriter<D, F> {
    type Record = D;
    type Transaction = DiscardTransaction;

    fn write(&mut self, records: &mut Vec<D>) -> Result<(), ConnectError> {
        self.count += records.len() as u64;
        self.digest = records
            .iter()
            .fold(self.digest, |digest, record| digest.wrapping_add((self.fold)(record)));
        records.clear();
        Ok(())
    }

    fn pre_commit(
        &mut self,
        epoch: Epoch,
    ) -> Result<Option<PreCommit<DiscardTransaction>>, ConnectError> {
        let (count, digest) = (std::mem::take(&mut self.count), std::mem::take(&mut self.digest));
        if count == 0 {
            return Ok(None);
        }
        let id = TransactionId::new(&self.context, epoch);
        Ok(Some(Box::new(move || Ok(DiscardTransaction { id, count, digest }))))
    }
}

impl Committer for DiscardCommitter {
    type Transaction = DiscardTransaction;

    fn commit(&mut self, transaction: &DiscardTransaction) -> Result<(), ConnectError> {
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        if totals.ids.insert(transaction.id) {
            totals.count += transaction.count;
            totals.digest = totals.digest.wrapping_add(transaction.digest);
        }
        Ok(())
    }

    /// Nothing to do: what is not committed is in no place but the checkpoint.
    fn abandon_others(&mut self, _: &[DiscardTransaction]) -> Result<(), ConnectError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Discard;
    use crate::connect::conformance::{SinkUnderTest, context, exactly_once};
    use crate::connect::{Committer, Sink, TransactionWriter};
    use crate::ids::Epoch;

    /// Each record adds one to its own digit of the digest, so that the digest tells how often it
    /// is there.
    fn digit(number: &u64) -> u64 {
        1 << (4 * number)
    }

    impl SinkUnderTest for Discard<u64, fn(&u64) -> u64> {
        type Sink = Self;

        fn sink(&mut self) -> Self {
            self.clone()
        }

        fn record(&self, number: u64) -> u64 {
            number
        }

        fn visible(&mut self) -> Vec<u64> {
            let (count, digest) = self.handle().totals();
            let times = |number: u64| (digest >> (4 * number)) as usize & 15;
            let numbers: Vec<u64> =
                (0..16).flat_map(|n| std::iter::repeat_n(n, times(n))).collect();
            assert_eq!(count, numbers.len() as u64);
            numbers
        }
    }

    #[test]
    fn it_is_exactly_once() {
        exactly_once(|| Discard::counting(digit as fn(&u64) -> u64));
    }

    #[test]
    fn without_a_function_it_only_counts() {
        let mut sink: Discard<u64, _> = Discard::new();
        let context = context(1, 0, 1);
        let mut writer = sink.writer(&context).unwrap();
        writer.write(&mut vec![7, 8, 9]).unwrap();
        let transaction = writer.pre_commit(Epoch(1)).unwrap().unwrap()().unwrap();
        assert_eq!(sink.handle().totals(), (0, 0));
        sink.committer(&context).unwrap().commit(&transaction).unwrap();
        assert_eq!(sink.handle().totals(), (3, 0));
    }
}
