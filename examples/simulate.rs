//! Finds the bugs of a sink in a simulated machine. Three sinks write rows to the same kind of table; two of them work
//! until something goes wrong at the wrong moment.
//!
//! For each, seeds are tried until one makes the job lose or double a row. What is printed is that seed, and the smallest
//! schedule of faults with which the job still fails: what to read first when looking for the cause.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use highwater::connect::{
    Committer, PreCommit, Sink, SinkContext, TransactionId, TransactionWriter,
};
use highwater::ids::Epoch;
use highwater::prelude::*;
use highwater::testing::{FaultSink, SeedFailure, Simulation, Trickle, fewer, first_failure};

/// Seeds that each sink is tried with.
const SEEDS: u64 = 100;

/// How a sink brings rows into its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// At the commit, unless the table knows the transaction already.
    Careful,
    /// At every commit. But a commit is called again if nobody knows whether it took effect.
    Repeating,
    /// When the transaction is pre-committed. But its checkpoint may never become complete.
    Hasty,
}

/// What everybody sees.
#[derive(Clone, Debug, Default)]
struct Table(Arc<Mutex<Rows>>);

#[derive(Debug, Default)]
struct Rows {
    rows: Vec<u64>,
    transactions: BTreeSet<TransactionId>,
}

impl Table {
    fn add(&self, rows: &[u64]) {
        self.0.lock().expect("nothing panics that holds it").rows.extend(rows);
    }

    /// Rows and the name of their transaction, in one step.
    fn add_once(&self, id: TransactionId, rows: &[u64]) {
        let mut table = self.0.lock().expect("nothing panics that holds it");
        if table.transactions.insert(id) {
            table.rows.extend(rows);
        }
    }

    fn sorted(&self) -> Vec<u64> {
        let mut rows = self.0.lock().expect("nothing panics that holds it").rows.clone();
        rows.sort_unstable();
        rows
    }
}

type Transaction = (TransactionId, Vec<u64>);

/// The sink, its writer and its committer.
#[derive(Clone)]
struct TableSink {
    table: Table,
    manner: Manner,
}

struct Writer {
    sink: TableSink,
    context: SinkContext,
    open: Vec<u64>,
}

impl Sink for TableSink {
    type Record = u64;
    type Transaction = Transaction;
    type Writer = Writer;
    type Committer = Self;

    fn writer(&mut self, context: &SinkContext) -> Result<Writer, ConnectError> {
        Ok(Writer { sink: self.clone(), context: context.clone(), open: Vec::new() })
    }

    fn committer(&mut self, _: &SinkContext) -> Result<Self, ConnectError> {
        Ok(self.clone())
    }
}

impl TransactionWriter for Writer {
    type Record = u64;
    type Transaction = Transaction;

    fn write(&mut self, records: &mut Vec<u64>) -> Result<(), ConnectError> {
        self.open.append(records);
        Ok(())
    }

    fn pre_commit(&mut self, epoch: Epoch) -> Result<Option<PreCommit<Transaction>>, ConnectError> {
        let rows = std::mem::take(&mut self.open);
        let (id, sink) = (TransactionId::new(&self.context, epoch), self.sink.clone());
        Ok(Some(Box::new(move || {
            if sink.manner == Manner::Hasty {
                sink.table.add(&rows);
            }
            Ok((id, rows))
        })))
    }
}

impl Committer for TableSink {
    type Transaction = Transaction;

    fn commit(&mut self, (id, rows): &Transaction) -> Result<(), ConnectError> {
        match self.manner {
            Manner::Careful => self.table.add_once(*id, rows),
            Manner::Repeating => self.table.add(rows),
            Manner::Hasty => {}
        }
        Ok(())
    }

    fn abandon_others(&mut self, _: &[Transaction]) -> Result<(), ConnectError> {
        Ok(())
    }
}

/// Runs one job with one seed.
///
/// # Panics
/// If the table does not hold what the job should have written.
fn run(seed: u64, manner: Manner) {
    let records = fewer(100);
    let table = Table::default();
    let sink = TableSink { table: table.clone(), manner };
    let outcome = Simulation::new(seed).crashes(3).panics(1).commit_errors(0.05).run(move |job| {
        job.source("numbers", Trickle::new(1, 2, records, |split, index| split * 1000 + index))
            .key_by(|number| number % 10)
            .process("count", Value::<u64>::new("count"), |_, number, count, out| {
                *count.or_default() += 1;
                out.emit(number);
            })
            .sink("rows", FaultSink::new(sink.clone()));
        Ok(())
    });
    outcome.check();
    let expected: Vec<u64> =
        (0..2).flat_map(|split| (0..records).map(move |index| split * 1000 + index)).collect();
    let rows = table.sorted();
    let unseen = expected.iter().filter(|row| !rows.contains(row)).count();
    assert!(rows == expected, "{} rows of {}, {unseen} missing", rows.len(), expected.len());
}

/// Tries a sink with all seeds, and says what comes of it.
fn failure(manner: Manner) -> Option<SeedFailure> {
    let failure = first_failure(0..SEEDS, |seed| run(seed, manner));
    match &failure {
        None => println!("{manner:?}: passes {SEEDS} seeds\n"),
        Some(failure) => println!("{manner:?}: {failure}\n"),
    }
    failure
}

/// Tries all three sinks.
pub fn main() {
    let repeating = failure(Manner::Repeating);
    assert!(repeating.is_some(), "a commit that is not idempotent was not found");
    let hasty = failure(Manner::Hasty).expect("a sink that shows what it pre-commits is found");
    assert!(hasty.faults.len() <= 2, "one crash is enough: {hasty}");
    assert!(failure(Manner::Careful).is_none(), "the sink that is right should pass");
}
