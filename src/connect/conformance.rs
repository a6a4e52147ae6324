//! What every source that replays and every exactly-once sink must pass: run it against your own.
//!
//! The functions panic with a message that names the broken promise. They drive an implementation
//! as the runtime does, through the traits alone, and send splits and transactions through their
//! serialized form, as a checkpoint does.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{
    Committer, ConnectError, ReadStatus, Sink, SinkContext, Source, SplitReader, TransactionWriter,
};
use crate::ids::{Attempt, Epoch, Lineage, Name};

/// Sends a value through its serialized form.
///
/// # Panics
/// If it cannot be encoded or decoded.
pub fn through_a_checkpoint<T: Serialize + DeserializeOwned>(value: &T) -> T {
    let bytes = ok(postcard::to_stdvec(value), "encoding what goes into a checkpoint");
    ok(postcard::from_bytes(&bytes), "decoding what comes out of a checkpoint")
}

/// Reads a reader to its end, `records_max` at a time.
///
/// # Panics
/// If reading fails, gives more than was asked for, or goes on for ever with nothing.
pub fn read_all<R: SplitReader>(reader: &mut R, records_max: usize) -> Vec<R::Record> {
    let mut all = Vec::new();
    let mut empty_reads = 0;
    loop {
        let before = all.len();
        let status = ok(reader.read(&mut all, records_max), "reading");
        assert!(all.len() - before <= records_max, "a read gave more records than it may");
        empty_reads = if all.len() == before { empty_reads + 1 } else { 0 };
        assert!(empty_reads < 100_000, "the split neither gives a record nor ends");
        if status == ReadStatus::Finished {
            return all;
        }
    }
}

/// Checks that a source yields the same records from every position that it ever has, and returns
/// all records, split by split. `make` makes the source as every new process would.
///
/// # Panics
/// If it does not.
pub fn replays<S>(mut make: impl FnMut() -> S, parallelism: usize) -> Vec<S::Record>
where
    S: Source,
    S::Record: PartialEq + Debug,
{
    let mut everything = Vec::new();
    for split in ok(make().splits(parallelism), "listing the splits") {
        let split = through_a_checkpoint(&split);
        let all = read_all(&mut ok(make().open(split.clone()), "opening a split"), 1_000);
        let mut reader = ok(make().open(split), "opening a split");
        let mut batch = Vec::new();
        loop {
            let position = through_a_checkpoint(&reader.split());
            let mut restored = ok(make().open(position), "opening a split at a kept position");
            let rest = read_all(&mut restored, 3);
            assert_eq!(rest, all[batch.len()..], "replay from behind {} records", batch.len());
            let before = batch.len();
            let status = ok(reader.read(&mut batch, 1), "reading one record");
            if status == ReadStatus::Finished && batch.len() == before {
                break;
            }
        }
        assert_eq!(batch, all, "records read one by one");
        everything.extend(all);
    }
    everything
}

/// A sink to be checked by [`exactly_once`], with the means to see what arrived.
pub trait SinkUnderTest {
    /// The sink.
    type Sink: Sink;

    /// The sink, as a newly started process would make it, over the same target.
    fn sink(&mut self) -> Self::Sink;

    /// The record with this number. Numbers are below 16.
    fn record(&self, number: u64) -> <Self::Sink as Sink>::Record;

    /// The numbers of the records that are visible in the target, each as often as it is there, in
    /// any order.
    fn visible(&mut self) -> Vec<u64>;
}

/// Checks that a sink keeps the promises of an exactly-once sink. `make` makes an empty target each
/// time.
///
/// # Panics
/// If it does not.
pub fn exactly_once<T: SinkUnderTest>(mut make: impl FnMut() -> T) {
    nothing_is_visible_before_its_commit(&mut make());
    nothing_written_is_no_transaction(&mut make());
    a_commit_that_is_repeated_changes_nothing(&mut make());
    a_transaction_is_committed_by_a_later_attempt(&mut make());
    an_aborted_checkpoint_leaves_its_transaction_to_the_next(&mut make());
    what_no_checkpoint_holds_is_abandoned(&mut make());
    subtasks_do_not_disturb_each_other(&mut make());
    transactions_are_committed_at_another_parallelism(&mut make());
}

type Transaction<T> = <<T as SinkUnderTest>::Sink as Sink>::Transaction;

/// The context of a subtask of an attempt. Each attempt is a lineage of its own, as after a
/// restore.
#[must_use]
pub fn context(attempt: u64, subtask: usize, parallelism: usize) -> SinkContext {
    SinkContext {
        job: ok(Name::new("conformance"), "naming the job"),
        operator: ok(Name::new("out"), "naming the operator"),
        lineage: Lineage(attempt),
        attempt: Attempt(attempt),
        subtask,
        parallelism,
    }
}

/// One subtask of one attempt, as the runtime would run it.
struct Subtask<S: Sink> {
    writer: S::Writer,
    committer: S::Committer,
}

impl<S: Sink> Subtask<S> {
    fn start<T: SinkUnderTest<Sink = S>>(target: &mut T, context: &SinkContext) -> Self {
        let mut sink = target.sink();
        let committer = ok(sink.committer(context), "making a committer");
        Self { writer: ok(sink.writer(context), "making a writer"), committer }
    }

    fn write<T: SinkUnderTest<Sink = S>>(&mut self, target: &T, numbers: &[u64]) {
        let mut records: Vec<_> = numbers.iter().map(|number| target.record(*number)).collect();
        ok(self.writer.write(&mut records), "writing");
        assert!(records.is_empty(), "a write that succeeds takes all records");
    }

    fn pre_commit(&mut self, epoch: u64) -> Option<S::Transaction> {
        let job = ok(self.writer.pre_commit(Epoch(epoch)), "ending a transaction")?;
        let transaction = std::thread::scope(|scope| scope.spawn(job).join());
        let transaction = transaction.unwrap_or_else(|_| panic!("the pre-commit panicked"));
        Some(through_a_checkpoint(&ok(transaction, "pre-committing")))
    }

    fn commit(&mut self, transaction: &S::Transaction) {
        ok(self.committer.commit(transaction), "committing");
    }
}

fn start<T: SinkUnderTest>(target: &mut T, attempt: u64) -> Subtask<T::Sink> {
    Subtask::start(target, &context(attempt, 0, 1))
}

fn visible<T: SinkUnderTest>(target: &mut T) -> Vec<u64> {
    let mut numbers = target.visible();
    numbers.sort_unstable();
    numbers
}

fn some<T>(transaction: Option<T>) -> T {
    transaction.unwrap_or_else(|| panic!("records were written, and there is no transaction"))
}

fn nothing_is_visible_before_its_commit<T: SinkUnderTest>(target: &mut T) {
    let mut subtask = start(target, 1);
    subtask.write(target, &[1, 2]);
    assert_eq!(visible(target), [0; 0], "written records are visible");
    let first = some(subtask.pre_commit(1));
    subtask.write(target, &[3]);
    assert_eq!(visible(target), [0; 0], "pre-committed records are visible");
    subtask.commit(&first);
    assert_eq!(visible(target), [1, 2], "after the first commit");
    let second = some(subtask.pre_commit(2));
    subtask.commit(&second);
    assert_eq!(visible(target), [1, 2, 3], "after the second commit");
}

fn nothing_written_is_no_transaction<T: SinkUnderTest>(target: &mut T) {
    let mut subtask = start(target, 1);
    assert!(subtask.pre_commit(1).is_none(), "a transaction without records");
    subtask.write(target, &[1]);
    let transaction = some(subtask.pre_commit(2));
    assert!(subtask.pre_commit(3).is_none(), "a transaction without records");
    subtask.commit(&transaction);
    assert_eq!(visible(target), [1]);
}

fn a_commit_that_is_repeated_changes_nothing<T: SinkUnderTest>(target: &mut T) {
    let mut subtask = start(target, 1);
    subtask.write(target, &[1]);
    let first = some(subtask.pre_commit(1));
    subtask.write(target, &[2]);
    let second = some(subtask.pre_commit(2));
    for transaction in [&first, &first, &second, &first, &second] {
        subtask.commit(transaction);
    }
    assert_eq!(visible(target), [1, 2], "repeated by the same committer");
    let mut later = start(target, 2);
    later.commit(&first);
    later.commit(&second);
    assert_eq!(visible(target), [1, 2], "repeated by a later attempt");
}

fn a_transaction_is_committed_by_a_later_attempt<T: SinkUnderTest>(target: &mut T) {
    let mut subtask = start(target, 1);
    subtask.write(target, &[1, 2]);
    let transaction = some(subtask.pre_commit(1));
    drop(subtask);
    let mut later = start(target, 2);
    later.commit(&transaction);
    abandon(&mut later, std::slice::from_ref(&transaction));
    assert_eq!(visible(target), [1, 2], "committed after a crash");
    later.write(target, &[3]);
    let next = some(later.pre_commit(2));
    later.commit(&transaction);
    later.commit(&next);
    assert_eq!(visible(target), [1, 2, 3], "the run after the crash");
}

fn an_aborted_checkpoint_leaves_its_transaction_to_the_next<T: SinkUnderTest>(target: &mut T) {
    let mut subtask = start(target, 1);
    subtask.write(target, &[1]);
    let first = some(subtask.pre_commit(1));
    subtask.write(target, &[2]);
    let second = some(subtask.pre_commit(2));
    assert_eq!(visible(target), [0; 0], "checkpoint 1 was aborted");
    drop(subtask);
    let mut later = start(target, 2);
    later.commit(&first);
    later.commit(&second);
    abandon(&mut later, &[first, second]);
    assert_eq!(visible(target), [1, 2], "checkpoint 2 holds both");
}

fn what_no_checkpoint_holds_is_abandoned<T: SinkUnderTest>(target: &mut T) {
    let mut subtask = start(target, 1);
    subtask.write(target, &[1]);
    let kept = some(subtask.pre_commit(1));
    subtask.write(target, &[2]);
    let lost = some(subtask.pre_commit(2));
    subtask.write(target, &[3]);
    drop(subtask);

    let mut later = start(target, 2);
    later.write(target, &[2]);
    later.commit(&kept);
    abandon(&mut later, std::slice::from_ref(&kept));
    drop(lost);
    assert_eq!(visible(target), [1], "only what the checkpoint holds");
    later.write(target, &[3]);
    let replayed = some(later.pre_commit(3));
    abandon(&mut later, &[kept]);
    later.commit(&replayed);
    assert_eq!(visible(target), [1, 2, 3], "abandoning spares this attempt's own transaction");
}

fn subtasks_do_not_disturb_each_other<T: SinkUnderTest>(target: &mut T) {
    let mut zero = Subtask::start(target, &context(1, 0, 2));
    let mut one = Subtask::start(target, &context(1, 1, 2));
    zero.write(target, &[1]);
    one.write(target, &[2]);
    let from_one = some(one.pre_commit(1));
    let from_zero = some(zero.pre_commit(1));
    one.commit(&from_one);
    assert_eq!(visible(target), [2], "subtask 1 commits alone");
    zero.commit(&from_zero);
    assert_eq!(visible(target), [1, 2]);
}

fn transactions_are_committed_at_another_parallelism<T: SinkUnderTest>(target: &mut T) {
    let mut kept: Vec<Transaction<T>> = Vec::new();
    for subtask in 0..3 {
        let mut running = Subtask::start(target, &context(1, subtask, 3));
        running.write(target, &[subtask as u64]);
        kept.push(some(running.pre_commit(1)));
        running.write(target, &[10 + subtask as u64]);
        kept.push(some(running.pre_commit(2)));
    }
    let mut only = start(target, 2);
    for transaction in &kept {
        only.commit(transaction);
    }
    abandon(&mut only, &kept);
    assert_eq!(visible(target), [0, 1, 2, 10, 11, 12], "three subtasks' output, by one");

    only.write(target, &[3]);
    let next = some(only.pre_commit(3));
    let mut fourth = Subtask::start(target, &context(3, 3, 4));
    fourth.commit(&next);
    fourth.commit(&kept[5]);
    assert_eq!(visible(target), [0, 1, 2, 3, 10, 11, 12], "one subtask's output, by a fourth");
}

fn abandon<S: Sink>(subtask: &mut Subtask<S>, kept: &[S::Transaction]) {
    ok(subtask.committer.abandon_others(kept), "abandoning");
}

/// Takes the value, or panics with the whole chain of the error.
fn ok<T, E: std::error::Error>(result: Result<T, E>, doing: &str) -> T {
    result.unwrap_or_else(|error| {
        let mut text = format!("{doing} failed: {error}");
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        panic!("{text}")
    })
}

/// The error of a commit that must be refused.
///
/// # Panics
/// If the commit succeeds.
pub fn refused<C: Committer>(committer: &mut C, transaction: &C::Transaction) -> ConnectError {
    match committer.commit(transaction) {
        Ok(()) => panic!("the commit of an unknown transaction succeeded"),
        Err(error) => error,
    }
}
