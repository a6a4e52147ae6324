//! What scripts cannot say: refused setups, broken promises, time that goes back.
//! The effects are in `tests/protocol_scripts.rs`, the invariants in `tests/coordinator_random/`.

use super::*;

fn setup() -> CoordinatorSetup {
    CoordinatorSetup {
        checkpoints: CheckpointConfig::default(),
        workers: 1,
        first_epoch: Epoch(10),
        reserved_end: Epoch(1000),
        restored: Some(Epoch(7)),
        retained_before: vec![Epoch(5), Epoch(7)],
    }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
#[should_panic(expected = "epochs never repeat")]
fn an_attempt_that_would_repeat_epochs_does_not_start() {
    let _ = Coordinator::<()>::new(CoordinatorSetup { first_epoch: Epoch(7), ..setup() });
}

#[test]
#[should_panic(expected = "I6")]
fn a_worker_that_commits_what_is_not_complete_ends_the_attempt() {
    let mut coordinator = Coordinator::<()>::new(setup());
    let mut effects = Vec::new();
    // What was complete before may be committed (again).
    for epoch in [5, 7] {
        let event = Event::WorkerCommitted { worker: 0, epoch: Epoch(epoch) };
        coordinator.step(at(0), event, &mut effects);
    }
    assert!(effects.is_empty());
    let event = Event::WorkerCommitted { worker: 0, epoch: Epoch(10) };
    coordinator.step(at(0), event, &mut effects);
}

#[test]
fn time_that_goes_back_stands_still() {
    let mut coordinator = Coordinator::<()>::new(setup());
    let mut effects = Vec::new();
    coordinator.step(at(100), Event::Tick, &mut effects);
    coordinator.step(at(110), Event::Tick, &mut effects);
    coordinator.step(at(50), Event::Trigger, &mut effects);
    assert_eq!(effects, [Effect::Begin { epoch: Epoch(10), last: false, savepoint: None }]);
    assert_eq!(coordinator.status().in_progress[0].triggered, at(110));
    assert_eq!(coordinator.next_deadline(), Some(at(710)));
}

#[test]
fn durations_without_end_neither_overflow_nor_come_due() {
    let mut endless = setup();
    endless.checkpoints.interval = Some(Duration::MAX);
    endless.checkpoints.timeout = Duration::MAX;
    let mut coordinator = Coordinator::<()>::new(endless);
    let mut effects = Vec::new();
    coordinator.step(at(1), Event::Trigger, &mut effects);
    assert_eq!(effects.len(), 1);
    assert_eq!(coordinator.next_deadline(), None);
}
