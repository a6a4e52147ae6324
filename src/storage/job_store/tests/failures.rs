//! Deaths and failures at any call: what was announced stays, and nothing is left for ever.

use super::*;

/// What somebody outside was told.
#[derive(Default)]
struct Told {
    /// The newest checkpoint.
    announced: Option<Epoch>,
    /// The checkpoints whose pin was granted and not taken off since.
    pinned: BTreeSet<Epoch>,
}

/// What an attempt does in its life. Says which checkpoints it announced. A user pins the first, and unpins those of
/// earlier lives.
fn life(store: &JobStore, told: &Mutex<Told>) -> Result<(), JobStoreError> {
    let claim = started(store)?;
    store.sweep(&claim, OLD)?;
    for step in 0..3 {
        let epoch = Epoch(claim.first_epoch().0 + step);
        let manifest = write_checkpoint(store, &claim, epoch)?;
        store.publish(&claim, &manifest)?;
        told.lock().unwrap().announced = Some(epoch);
        match step {
            0 => {
                store.pin(epoch)?;
                told.lock().unwrap().pinned.insert(epoch);
            }
            1 => {
                for old in store.pinned()?.range(..claim.first_epoch()) {
                    told.lock().unwrap().pinned.remove(old);
                    store.unpin(*old)?;
                }
            }
            _ => {}
        }
        store.retire(&claim, &[epoch], &[])?;
    }
    store.extend_epochs(&claim)
}

/// Whatever happened before: a new attempt starts from the newest announced checkpoint or a later one, and cleans up.
fn assert_recovers(storage: &Arc<dyn CheckpointStorage>, told: &Told, context: u64) {
    let Told { announced, pinned } = told;
    let store = store(storage);
    store.prepare(128, 1).unwrap();
    assert_clean(&store);
    let found = store.newest().unwrap();
    assert!(found >= *announced, "call {context}: {announced:?} was announced, {found:?} is there");
    let claim = store.claim().unwrap();
    assert_eq!(store.newest_of(&claim).unwrap(), found);
    store.sweep(&claim, OLD).unwrap();
    if let Some(newest) = found {
        store.load(newest).unwrap();
        store.retire(&claim, &[newest], &[]).unwrap();
    }
    assert_nothing_left_over(&store);
    let mut stays = store.pinned().unwrap();
    assert!(stays.is_superset(pinned), "call {context}: {pinned:?} were pinned, {stays:?} are");
    stays.extend(found);
    assert_eq!(store.valid_epochs().unwrap(), stays, "call {context}");
    checkpoint(&store, &claim, claim.first_epoch()).unwrap();
    for epoch in store.pinned().unwrap() {
        store.unpin(epoch).unwrap();
    }
    store.retire(&claim, &[claim.first_epoch()], &[]).unwrap();
    assert_nothing_left_over(&store);
    assert_eq!(store.valid_epochs().unwrap(), [claim.first_epoch()].into());
    assert_clean(&store);
}

#[test]
fn a_death_at_any_call_loses_no_announced_checkpoint_and_leaves_nothing_for_ever() {
    let mut deaths = 0;
    for index in 0.. {
        let storage = memory();
        let told = Mutex::new(Told::default());
        // The first life is whole, so that the second one also has something to restore and to sweep.
        life(&store(&storage), &told).unwrap();
        let fault: Arc<dyn CheckpointStorage> =
            Arc::new(FaultStorage::dying_at(storage.clone(), index));
        let survived = life(&store(&fault), &told).is_ok();
        assert_recovers(&storage, &told.lock().unwrap(), index);
        if survived {
            break;
        }
        deaths += 1;
    }
    assert!(deaths > 60, "only {deaths} calls could be interrupted");
}

#[test]
fn a_failure_of_any_call_loses_no_announced_checkpoint() {
    let actions = [
        FaultAction::FailDeterminate(ErrorKind::StorageFull),
        FaultAction::FailIndeterminateAfterEffect,
        FaultAction::FailIndeterminateWithoutEffect,
    ];
    for action in actions {
        for index in 0.. {
            let storage = memory();
            let told = Mutex::new(Told::default());
            let fault = FaultStorage::new(storage.clone(), move |point| {
                if point.index == index { action } else { FaultAction::Proceed }
            });
            let calls = fault.clone();
            let fault: Arc<dyn CheckpointStorage> = Arc::new(fault);
            // Another attempt begins in the same process after the failure.
            for _ in 0..2 {
                let _ = life(&store(&fault), &told);
            }
            assert_recovers(&storage, &told.lock().unwrap(), index);
            if calls.calls() <= index {
                break;
            }
        }
    }
}

#[test]
fn a_publication_in_doubt_is_settled_by_reading_back_or_by_publishing_again() {
    for action in
        [FaultAction::FailIndeterminateAfterEffect, FaultAction::FailIndeterminateWithoutEffect]
    {
        let storage = memory();
        let raw = store(&storage);
        let claim = started(&raw).unwrap();
        let manifest = write_checkpoint(&raw, &claim, Epoch(1)).unwrap();
        let first = Mutex::new(true);
        let fault = FaultStorage::new(storage.clone(), move |point| {
            let create = point.op == FaultOp::Create;
            if create && std::mem::take(&mut *first.lock().unwrap()) {
                action
            } else {
                FaultAction::Proceed
            }
        });
        let fault: Arc<dyn CheckpointStorage> = Arc::new(fault);
        let result = store(&fault).publish(&claim, &manifest);
        assert_eq!(result.is_ok(), action == FaultAction::FailIndeterminateAfterEffect);
        for _ in 0..2 {
            store(&fault).publish(&claim, &manifest).unwrap();
        }
        let other = Manifest { triggered_unix_ms: 2, ..manifest };
        let error = raw.publish(&claim, &other).unwrap_err();
        assert!(error.to_string().contains("another manifest"), "{error}");
    }
}
