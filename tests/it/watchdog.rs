//! A checkpoint that takes long says whom it waits for, in each phase.

use std::time::Duration;

use highwater::connect::{Committer, ConnectError, PreCommit, SinkContext, TransactionWriter};
use highwater::format::record::{CheckpointPhase, CheckpointWait};
use highwater::ids::Epoch;
use highwater::prelude::*;

use crate::support::{Scratch, history, run};

const SLOW_AFTER: Duration = Duration::from_millis(40);

/// A sink that takes its time.
#[derive(Clone, Copy, Default)]
struct Slow {
    end: Duration,
    pre_commit: Duration,
    commit: Duration,
}

impl Sink for Slow {
    type Record = u64;
    type Transaction = ();
    type Writer = Self;
    type Committer = Self;

    fn writer(&mut self, _: &SinkContext) -> Result<Self, ConnectError> {
        Ok(*self)
    }

    fn committer(&mut self, _: &SinkContext) -> Result<Self, ConnectError> {
        Ok(*self)
    }
}

impl TransactionWriter for Slow {
    type Record = u64;
    type Transaction = ();

    fn write(&mut self, records: &mut Vec<u64>) -> Result<(), ConnectError> {
        records.clear();
        Ok(())
    }

    fn pre_commit(&mut self, _: Epoch) -> Result<Option<PreCommit<()>>, ConnectError> {
        std::thread::sleep(self.end); // Fault: a slow sink, on the worker's own thread.
        let time = self.pre_commit;
        Ok(Some(Box::new(move || {
            std::thread::sleep(time); // Fault: a slow sink.
            Ok(())
        })))
    }
}

impl Committer for Slow {
    type Transaction = ();

    fn commit(&mut self, (): &()) -> Result<(), ConnectError> {
        std::thread::sleep(self.commit); // Fault: a slow sink.
        Ok(())
    }

    fn abandon_others(&mut self, _: &[()]) -> Result<(), ConnectError> {
        Ok(())
    }
}

/// What was waited for in a job of two workers, whose operator needs `record` for each record.
fn waits(records: u64, record: Duration, sink: Slow) -> Vec<CheckpointWait> {
    let scratch = Scratch::new();
    let mut config = scratch.config(2);
    config.checkpoints.interval = Some(Duration::from_millis(100));
    config.checkpoints.alignment_timeout = None;
    config.checkpoints.slow_after = Some(SLOW_AFTER);
    let ran = run(config, move |job| {
        job.source("numbers", Generator::new(records, |i| i))
            .channel_name("busy")
            .key_by(|n| n % 7)
            .process("count", Value::<u64>::new("count"), move |_, n, count, out| {
                std::thread::sleep(record); // Fault: a slow operator.
                *count.or_default() += 1;
                out.emit(n);
            })
            .sink("out", sink);
        Ok(())
    });
    ran.unwrap();
    let waits = history(&scratch).into_iter().flat_map(|record| record.waits).collect();
    scratch.assert_directory_is_the_reachable_set();
    waits
}

/// The waits of one phase, all of which must have been long.
fn of(waits: &[CheckpointWait], phase: CheckpointPhase) -> Vec<&CheckpointWait> {
    let waits: Vec<_> = waits.iter().filter(|wait| wait.phase == phase).collect();
    for wait in &waits {
        assert!(wait.waited_ms >= SLOW_AFTER.as_millis() as u64, "{wait:?}");
    }
    waits
}

#[test]
fn a_barrier_that_waits_for_a_backlog_names_the_channel_and_the_operators_behind_it() {
    let waits = waits(1_500, Duration::from_millis(1), Slow::default());
    let aligning = of(&waits, CheckpointPhase::Align);
    assert!(
        aligning.iter().any(|wait| wait.operators == ["busy", "count", "out"]),
        "what has not handed in, in the order of the dataflow: {waits:?}"
    );
    assert!(aligning.iter().all(|wait| wait.worker < 2), "{waits:?}");
}

#[test]
fn an_operator_that_stops_its_worker_at_the_barrier_is_named() {
    let slow = Slow { end: Duration::from_millis(100), ..Slow::default() };
    let waits = waits(100, Duration::ZERO, slow);
    let freezing = of(&waits, CheckpointPhase::Sync);
    assert!(freezing.iter().any(|wait| wait.operators == ["out"]), "{waits:?}");
}

#[test]
fn a_part_that_takes_long_names_the_operator_whose_section_is_being_written() {
    let slow = Slow { pre_commit: Duration::from_millis(400), ..Slow::default() };
    let waits = waits(100, Duration::ZERO, slow);
    let writing = of(&waits, CheckpointPhase::Async);
    assert!(writing.iter().any(|wait| wait.operators == ["out"]), "{waits:?}");
}

#[test]
fn a_commit_that_takes_long_names_the_sink_though_the_checkpoint_is_complete() {
    let slow = Slow { commit: Duration::from_millis(400), ..Slow::default() };
    let waits = waits(100, Duration::ZERO, slow);
    let committing = of(&waits, CheckpointPhase::Commit);
    assert!(committing.iter().any(|wait| wait.operators == ["out"]), "{waits:?}");
}

#[test]
fn a_worker_that_does_not_answer_because_it_is_inside_user_code_is_named() {
    // Few records, each longer than a worker has to answer: it cannot say what it is busy with.
    let waits = waits(12, Duration::from_millis(900), Slow::default());
    assert!(!of(&waits, CheckpointPhase::Trigger).is_empty(), "{waits:?}");
}
