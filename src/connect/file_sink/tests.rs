//! Tests of the file sink: kills and power cuts between any two operations on the file system.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::simulated::{Crash, Simulated};
use super::{FileSink, FileTransaction};
use crate::connect::conformance::{SinkUnderTest, context, exactly_once, refused};
use crate::connect::{Committer, ConnectError, Sink, SinkContext, TransactionWriter};
use crate::ids::{Epoch, Name};

struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// The names of the committed files, in ascending order.
    fn names(&self) -> Vec<String> {
        names(self.path()).into_iter().filter(|name| name.starts_with("part-")).collect()
    }
}

impl SinkUnderTest for Directory {
    type Sink = FileSink<u64>;

    fn sink(&mut self) -> FileSink<u64> {
        FileSink::lines(self.path())
    }

    fn record(&self, number: u64) -> u64 {
        number
    }

    fn visible(&mut self) -> Vec<u64> {
        let read = |name: &String| std::fs::read_to_string(self.path().join(name)).unwrap();
        self.names().iter().flat_map(|name| numbers(&read(name))).collect()
    }
}

fn numbers(lines: &str) -> Vec<u64> {
    lines.lines().map(|line| line.parse().unwrap()).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Writes and pre-commits one transaction as an attempt of its own.
fn transaction(
    sink: &mut FileSink<u64>,
    context: &SinkContext,
    records: &[u64],
    epoch: u64,
) -> FileTransaction {
    let mut writer = sink.writer(context).unwrap();
    writer.write(&mut records.to_vec()).unwrap();
    writer.pre_commit(Epoch(epoch)).unwrap().unwrap()().unwrap()
}

#[test]
fn it_is_exactly_once() {
    exactly_once(Directory::new);
}

#[test]
fn files_have_the_names_that_the_documentation_says() {
    let mut target = Directory::new();
    let mut sink = target.sink().roll_bytes(4).extension("csv");
    let transaction = transaction(&mut sink, &context(3, 1, 2), &[10, 11, 12], 5);
    let hidden = target.path().join(".highwater/conformance/out");
    assert_eq!(names(&hidden), ["3-3-1-0.pending", "3-3-1-1.pending"]);
    assert_eq!(transaction.bytes(), 9);
    sink.committer(&context(3, 1, 2)).unwrap().commit(&transaction).unwrap();
    let expected = ["part-conformance~out~3-3-1-5-1.csv", "part-conformance~out~3-3-1-5.csv"];
    assert_eq!(target.names(), expected);
    assert_eq!(target.visible(), [12, 10, 11]);
    assert_eq!(names(&hidden), ["3-3-1.ledger"]);
}

#[test]
fn large_transactions_are_written_as_they_come() {
    let target = Directory::new();
    let format = |record: &u64, bytes: &mut Vec<u8>| {
        bytes.extend_from_slice(&vec![b'0' + *record as u8; 100_000]);
    };
    let mut sink = FileSink::new(target.path(), format).roll_bytes(1_000_000);
    let context = context(1, 0, 1);
    let mut writer = sink.writer(&context).unwrap();
    for _ in 0..4 {
        writer.write(&mut (0..10).collect()).unwrap();
    }
    let hidden = target.path().join(".highwater/conformance/out");
    assert_eq!(names(&hidden).len(), 4, "the files are there before the barrier");
    let transaction = writer.pre_commit(Epoch(1)).unwrap().unwrap()().unwrap();
    sink.committer(&context).unwrap().commit(&transaction).unwrap();
    assert_eq!(transaction.bytes(), 4_000_000);
    for name in target.names() {
        let content = std::fs::read(target.path().join(name)).unwrap();
        let expected: Vec<u8> = (0..10).flat_map(|n| vec![b'0' + n; 100_000]).collect();
        assert!(content == expected);
    }
}

#[test]
fn committed_files_may_be_moved_away_at_once() {
    let mut target = Directory::new();
    let mut sink = target.sink();
    let transaction = transaction(&mut sink, &context(1, 0, 1), &[1], 1);
    let mut committer = sink.committer(&context(1, 0, 1)).unwrap();
    committer.commit(&transaction).unwrap();
    std::fs::remove_file(target.path().join(&target.names()[0])).unwrap();
    committer.commit(&transaction).unwrap();
    let mut later = target.sink().committer(&context(2, 0, 1)).unwrap();
    later.commit(&transaction).unwrap();
    later.abandon_others(&[]).unwrap();
    later.commit(&transaction).unwrap();
    assert!(target.names().is_empty());
}

#[test]
fn a_lost_transaction_is_an_error_that_names_the_file() {
    let mut target = Directory::new();
    let mut sink = target.sink();
    let transaction = transaction(&mut sink, &context(1, 0, 1), &[1], 1);
    let mut committer = sink.committer(&context(1, 0, 1)).unwrap();
    let hidden = target.path().join(".highwater/conformance/out");
    std::fs::rename(hidden.join("1-1-0-0.pending"), target.path().join("away")).unwrap();
    let error = refused(&mut committer, &transaction).to_string();
    assert!(error.contains("1-1-0-0.pending, of epoch 1, is lost"), "{error}");
    std::fs::write(hidden.join("1-1-0-0.pending"), "").unwrap();
    let error = refused(&mut committer, &transaction).to_string();
    assert!(error.contains("has 0 bytes, and had 2"), "{error}");
    std::fs::rename(target.path().join("away"), hidden.join("1-1-0-0.pending")).unwrap();
    committer.commit(&transaction).unwrap();
    assert_eq!(target.visible(), [1]);
}

#[test]
fn the_first_attempt_has_nothing_to_abandon_and_makes_nothing() {
    let directory = Directory::new();
    let mut sink = FileSink::<u64>::lines(directory.path().join("new"));
    sink.committer(&context(1, 0, 1)).unwrap().abandon_others(&[]).unwrap();
    assert!(!directory.path().join("new").exists());
}

#[test]
fn what_was_abandoned_for_an_older_checkpoint_is_lost_to_the_newer() {
    let mut target = Directory::new();
    let mut sink = target.sink();
    let never = transaction(&mut sink, &context(1, 0, 1), &[1], 1);
    sink.committer(&context(2, 0, 1)).unwrap().abandon_others(&[]).unwrap();
    assert!(names(&target.path().join(".highwater/conformance/out")).is_empty());
    refused(&mut sink.committer(&context(3, 0, 1)).unwrap(), &never);
    assert!(target.visible().is_empty());
}

#[test]
fn a_commit_that_was_begun_and_abandoned_is_lost_and_not_done() {
    // Every way to be killed inside of the commit, before an older checkpoint is restored.
    for steps in 0..20 {
        let fs = Simulated::default();
        let mut sink = FileSink::<u64>::lines("/out").roll_bytes(1).on(Arc::new(fs.clone()));
        let transaction = transaction(&mut sink, &context(1, 0, 1), &[1, 2], 1);
        fs.stop_after(steps);
        let mut committer = sink.committer(&context(1, 0, 1)).unwrap();
        let committed = committer.commit(&transaction).is_ok();
        fs.crash(Crash::Kill);
        let all_visible = fs.visible(Path::new("/out")).len() == 2;
        sink.committer(&context(2, 0, 1)).unwrap().abandon_others(&[]).unwrap();
        let again = sink.committer(&context(3, 0, 1)).unwrap().commit(&transaction);
        assert_eq!(again.is_ok(), all_visible, "{steps} steps: {again:?}");
        assert!(all_visible || !committed);
    }
}

#[test]
fn another_file_of_the_same_name_is_never_replaced() {
    let mut target = Directory::new();
    let mut sink = target.sink();
    let transaction = transaction(&mut sink, &context(1, 0, 1), &[1], 1);
    let last = target.path().join("part-conformance~out~1-1-0-1.txt");
    std::fs::write(&last, "7\n").unwrap();
    let mut committer = sink.committer(&context(1, 0, 1)).unwrap();
    let error = refused(&mut committer, &transaction).to_string();
    assert!(error.contains("there is another file of that name"), "{error}");
    assert_eq!(target.visible(), [7]);
    std::fs::remove_file(last).unwrap();
    committer.commit(&transaction).unwrap();
    assert_eq!(target.visible(), [1]);
}

#[test]
fn a_damaged_ledger_is_refused_by_name_and_a_lost_one_is_made_up_for() {
    let mut target = Directory::new();
    let mut sink = target.sink();
    let transaction = transaction(&mut sink, &context(1, 0, 1), &[1], 1);
    let mut committer = sink.committer(&context(1, 0, 1)).unwrap();
    committer.commit(&transaction).unwrap();
    let ledger = target.path().join(".highwater/conformance/out/1-1-0.ledger");
    std::fs::write(&ledger, "?").unwrap();
    let error = refused(&mut committer, &transaction).to_string();
    assert!(error.contains("1-1-0.ledger is damaged"), "{error}");
    std::fs::remove_file(&ledger).unwrap();
    committer.commit(&transaction).unwrap();
    assert!(ledger.exists(), "the final file stands in for the ledger");
    assert_eq!(target.visible(), [1]);
}

#[test]
fn abandoning_spares_other_jobs_other_operators_newer_attempts_and_foreign_files() {
    let target = Directory::new();
    let mut sink = FileSink::<u64>::lines(target.path());
    let (mut other_job, mut other_operator) = (context(1, 0, 1), context(1, 0, 1));
    other_job.job = Name::new("other").unwrap();
    other_operator.operator = Name::new("other").unwrap();
    let foreign = target.path().join(".highwater/conformance/out/notes.pending");
    transaction(&mut sink, &context(1, 0, 1), &[1], 1);
    transaction(&mut sink, &context(2, 0, 1), &[2], 1);
    let mut spared = Vec::new();
    for context in [other_job, other_operator, context(3, 0, 1), context(4, 0, 1)] {
        spared.push((transaction(&mut sink, &context, &[3], 1), context));
    }
    std::fs::write(&foreign, "mine").unwrap();
    let mut committer = sink.committer(&context(3, 0, 1)).unwrap();
    committer.abandon_others(&[]).unwrap();
    let left = names(foreign.parent().unwrap());
    assert_eq!(left, ["3-3-0-0.pending", "4-4-0-0.pending", "notes.pending"]);
    for (transaction, context) in spared {
        sink.committer(&context).unwrap().commit(&transaction).unwrap();
    }
    assert_eq!(target.names().len(), 4);
}

#[test]
fn a_transaction_that_is_pending_in_a_former_directory_is_committed_there() {
    let (mut old, mut new) = (Directory::new(), Directory::new());
    let pending = transaction(&mut old.sink(), &context(1, 0, 1), &[1], 1);
    let error = refused(&mut new.sink().committer(&context(2, 0, 1)).unwrap(), &pending);
    assert!(error.to_string().contains("`formerly`"), "{error}");
    let mut sink = new.sink().formerly(old.path());
    let mut committer = sink.committer(&context(2, 0, 1)).unwrap();
    committer.commit(&pending).unwrap();
    committer.commit(&pending).unwrap();
    let fresh = transaction(&mut sink, &context(2, 0, 1), &[2], 2);
    committer.commit(&fresh).unwrap();
    assert_eq!((old.visible(), new.visible()), (vec![1], vec![2]));
}

#[test]
fn a_directory_with_the_output_of_another_life_of_the_job_is_refused() {
    let mut target = Directory::new();
    let first = transaction(&mut target.sink(), &context(1, 0, 1), &[1], 1);
    target.sink().committer(&context(1, 0, 1)).unwrap().commit(&first).unwrap();
    let error = target.sink().writer(&context(1, 0, 1)).unwrap_err();
    assert!(error.to_string().contains("has output of an earlier attempt 1"), "{error}");
}

#[test]
fn names_without_room_and_bad_extensions_are_refused_before_anything_is_written() {
    let mut target = Directory::new();
    let mut long = context(1, 0, 1);
    long.job = Name::new("j".repeat(100)).unwrap();
    long.operator = Name::new("o".repeat(100)).unwrap();
    let error = target.sink().writer(&long).unwrap_err();
    assert!(error.to_string().contains("shorten one"), "{error}");
    let error = target.sink().extension("../../x").writer(&context(1, 0, 1)).unwrap_err();
    assert!(error.to_string().contains("extension"), "{error}");
    assert!(names(target.path()).is_empty());
}

#[test]
fn a_write_that_fails_names_the_file() {
    let fs = Simulated::default();
    let mut sink = FileSink::<u64>::lines("/out").on(Arc::new(fs.clone()));
    let mut writer = sink.writer(&context(1, 0, 1)).unwrap();
    writer.write(&mut vec![1]).unwrap();
    fs.stop_after(1);
    let error = writer.pre_commit(Epoch(1)).unwrap().unwrap()().unwrap_err();
    assert!(error.to_string().contains("1-1-0-0.pending could not be written"), "{error}");
}

/// A job with one file sink, over a file system that crashes.
struct Job {
    fs: Simulated,
    attempt: u64,
    /// The last complete checkpoint: its epoch, the next record, and the transactions it holds.
    complete: (u64, u64, Vec<FileTransaction>),
    /// The checkpoint of this epoch is aborted.
    aborted: u64,
}

const OUT: &str = "/out";
const EPOCHS: u64 = 3;
const RECORDS_PER_EPOCH: u64 = 2;

impl Job {
    /// Runs one attempt, from the last complete checkpoint to the end, or to the first step that
    /// fails.
    fn run(&mut self) -> Result<(), ConnectError> {
        self.attempt += 1;
        let context = context(self.attempt, 0, 1);
        // Every transaction has two files.
        let mut sink = FileSink::<u64>::lines(OUT).roll_bytes(1).on(Arc::new(self.fs.clone()));
        let mut committer = sink.committer(&context)?;
        let mut writer = sink.writer(&context)?;
        let (epoch, mut next, kept) = self.complete.clone();
        for transaction in &kept {
            committer.commit(transaction)?;
        }
        committer.abandon_others(&kept)?;
        let mut pending = Vec::new();
        for epoch in epoch + 1..=EPOCHS {
            writer.write(&mut (next..next + RECORDS_PER_EPOCH).collect())?;
            next += RECORDS_PER_EPOCH;
            let job = writer.pre_commit(Epoch(epoch))?.expect("records were written");
            pending.push(job()?);
            // A crash may come before the checkpoint is published and after.
            self.step()?;
            if epoch == self.aborted {
                continue;
            }
            self.complete = (epoch, next, pending.clone());
            self.step()?;
            for transaction in pending.drain(..) {
                committer.commit(&transaction)?;
            }
        }
        Ok(())
    }

    fn step(&self) -> Result<(), ConnectError> {
        self.fs.step().map_err(|error| ConnectError::caused("the job was stopped", error))
    }

    /// Runs an attempt that is stopped after so many steps. Returns whether it came to its end
    /// before.
    fn run_and_crash(&mut self, steps: u64, how: Crash) -> bool {
        self.fs.stop_after(steps);
        let ended = self.run().is_ok();
        self.fs.crash(how);
        ended
    }

    /// Checks that every record is visible once, and that nothing is left over.
    fn check(&self, what: &str) {
        let files = self.fs.visible(Path::new(OUT));
        let lines = files.into_iter().map(|bytes| String::from_utf8(bytes).unwrap());
        let mut visible: Vec<u64> = lines.flat_map(|lines| numbers(&lines)).collect();
        visible.sort_unstable();
        let expected: Vec<u64> = (0..EPOCHS * RECORDS_PER_EPOCH).collect();
        assert_eq!(visible, expected, "{what}");
        let hidden = PathBuf::from(OUT).join(".highwater/conformance/out");
        let left = super::Fs::list(&self.fs, &hidden).unwrap();
        assert!(left.iter().all(|name| name.ends_with(".ledger")), "{what}: {left:?}");
    }
}

/// Crashes two attempts at every pair of steps, and checks what the third one leaves.
fn crash_everywhere([first, second]: [Crash; 2], consumer: bool, aborted: u64) {
    let mut first_ended = false;
    let mut first_steps = 0;
    while !first_ended {
        let mut second_ended = false;
        let mut second_steps = 0;
        while !second_ended {
            let complete = (0, 0, Vec::new());
            let mut job = Job { fs: Simulated::default(), attempt: 0, complete, aborted };
            if consumer {
                job.fs.consume(Path::new(OUT));
            }
            first_ended = job.run_and_crash(first_steps, first);
            second_ended = job.run_and_crash(second_steps, second);
            let what = format!("{first:?} after {first_steps}, {second:?} after {second_steps}");
            job.run().unwrap_or_else(|error| panic!("{what}: {error}: {:?}", error.source));
            job.check(&what);
            second_steps += 1;
        }
        assert!(second_steps > 2, "the second attempt does something");
        first_steps += 1;
    }
    assert!(first_steps > 40, "the first attempt has many steps: {first_steps}");
}

#[test]
fn a_kill_at_any_two_steps_loses_and_doubles_nothing() {
    crash_everywhere([Crash::Kill; 2], false, 0);
    crash_everywhere([Crash::Kill; 2], false, 1);
}

#[test]
fn a_kill_at_any_two_steps_loses_and_doubles_nothing_when_files_are_moved_away_at_once() {
    crash_everywhere([Crash::Kill; 2], true, 0);
    crash_everywhere([Crash::Kill; 2], true, 2);
}

#[test]
fn a_power_cut_at_any_two_steps_loses_and_doubles_nothing() {
    crash_everywhere([Crash::Power; 2], false, 0);
    crash_everywhere([Crash::Power; 2], false, 2);
}

#[test]
fn a_power_cut_after_a_kill_loses_nothing_that_was_not_synced_before_the_kill() {
    crash_everywhere([Crash::Kill, Crash::Power], false, 0);
    crash_everywhere([Crash::Power, Crash::Kill], false, 0);
}

#[test]
fn what_a_checkpoint_holds_is_not_abandoned_even_before_its_commit() {
    let mut target = Directory::new();
    let mut sink = target.sink();
    let kept = transaction(&mut sink, &context(1, 0, 1), &[1], 1);
    let mut committer = sink.committer(&context(2, 0, 1)).unwrap();
    committer.abandon_others(std::slice::from_ref(&kept)).unwrap();
    committer.commit(&kept).unwrap();
    assert_eq!(target.visible(), [1]);
}
