//! What is remembered of checkpoints and restores.

use super::*;

#[test]
fn the_history_keeps_the_last_hundred_and_survives_attempts() {
    let storage = memory();
    let store = store(&storage);
    let claim = started(&store).unwrap();
    for epoch in 1..=130 {
        let record = CheckpointRecord {
            epoch: Epoch(epoch),
            attempt: Attempt(1),
            triggered_unix_ms: epoch,
            outcome: CheckpointOutcome::Complete,
            duration_ms: 1,
            publish_ms: 1,
            workers: Vec::new(),
            bytes: 0,
            waits: Vec::new(),
            in_flight_bytes: 0,
            entries: 0,
        };
        store.record(&record).unwrap();
    }
    drop(claim);
    store.claim().unwrap();
    let epochs: Vec<_> = store.history().unwrap().iter().map(|record| record.epoch.0).collect();
    assert_eq!(epochs, (31..=130).collect::<Vec<_>>());
}

#[test]
fn the_last_hundred_restores_are_kept_in_order_and_nothing_of_them_is_left_over() {
    let storage = memory();
    let store = store(&storage);
    let claim = started(&store).unwrap();
    for attempt in 1..=65 {
        for process in 0..2 {
            let (attempt, epoch, unix_ms) = (Attempt(attempt), Epoch(7), 1);
            let (local_bytes, store_bytes) = (attempt.0, u64::from(process));
            let record =
                RestoreRecord { attempt, process, epoch, unix_ms, local_bytes, store_bytes };
            store.record_restore(&record).unwrap();
        }
    }
    let records = store.restores().unwrap();
    let found: Vec<_> = records.iter().map(|record| (record.attempt.0, record.process)).collect();
    let expected: Vec<_> = (16..=65).flat_map(|attempt| [(attempt, 0), (attempt, 1)]).collect();
    assert_eq!(found, expected);
    assert_eq!(store.history().unwrap(), []);
    store.sweep(&claim, Duration::ZERO).unwrap();
    assert_eq!(store.unreachable().unwrap(), []);
}
