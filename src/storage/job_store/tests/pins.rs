//! Pins: what a user keeps stays, whoever deletes or begins meanwhile.

use super::*;

#[test]
fn a_pinned_checkpoint_and_its_files_stay_until_it_is_unpinned() {
    let storage = memory();
    let store = store(&storage);
    let claim = started(&store).unwrap();
    let shared = |n: u64| BlobPath::new(format!("job/shared/1-{n}-base")).unwrap();
    for epoch in 1..=5 {
        storage.put(&shared(epoch), b"x").unwrap();
        let mut manifest = write_checkpoint(&store, &claim, Epoch(epoch)).unwrap();
        // Each builds on the one before.
        for named in [epoch.saturating_sub(1).max(1), epoch] {
            manifest.parts[0].natives.push(native(shared(named).as_str()));
        }
        store.publish(&claim, &manifest).unwrap();
        if epoch == 2 {
            assert!(store.pin(Epoch(2)).unwrap());
            assert!(!store.pin(Epoch(2)).unwrap(), "it is already");
        }
        store.retire(&claim, &[Epoch(epoch)], &[]).unwrap();
        assert_clean(&store);
        assert_nothing_left_over(&store);
    }
    assert_eq!(store.valid_epochs().unwrap(), [Epoch(2), Epoch(5)].into());
    let there = |n| storage.read(&shared(n), 9).is_ok();
    assert_eq!([1, 2, 3, 4, 5].map(there), [true, true, false, true, true]);
    assert!(matches!(store.delete(Epoch(2)), Err(JobStoreError::Pinned { .. })));
    assert!(matches!(store.pin(Epoch(3)), Err(JobStoreError::NoSuchCheckpoint { .. })));
    // The next attempt keeps it as well.
    let next = store.claim().unwrap();
    store.sweep(&next, OLD).unwrap();
    assert_eq!(store.newest_of(&next).unwrap(), Some(Epoch(5)));
    store.retire(&next, &[Epoch(5)], &[]).unwrap();
    assert_eq!(store.valid_epochs().unwrap(), [Epoch(2), Epoch(5)].into());
    assert!(store.unpin(Epoch(2)).unwrap() && !store.unpin(Epoch(2)).unwrap());
    let released = store.retire(&next, &[Epoch(5)], &[]).unwrap();
    assert_eq!((released.checkpoints, released.blobs), (1, 4), "manifest, part and two files");
    assert_eq!([1, 2, 3, 4, 5].map(there), [false, false, false, true, true]);
    assert_clean(&store);
    assert_nothing_left_over(&store);
}

#[test]
fn what_is_pinned_stays_when_everything_else_is_deleted() {
    let (_, store, _) = with_checkpoints(3);
    store.pin(Epoch(2)).unwrap();
    let over = |store: &JobStore| {
        let claim = store.claim().unwrap();
        store.retire(&claim, &[], &[]).unwrap();
        store.sweep(&claim, OLD).unwrap();
        assert_nothing_left_over(store);
    };
    over(&store);
    assert_eq!(store.newest().unwrap(), Some(Epoch(2)));
    assert_clean(&store);
    store.unpin(Epoch(2)).unwrap();
    over(&store);
    assert_eq!(store.newest().unwrap(), None, "nobody misses it");
}

#[test]
fn a_pin_at_any_step_of_a_retirement_holds_or_is_refused() {
    let (mut held, mut refused) = (0, 0);
    for index in 0.. {
        let (storage, raw, claim) = with_checkpoints(3);
        let granted = Arc::new(Mutex::new(None));
        let (user, slot) = (raw.clone(), granted.clone());
        let other = move || *slot.lock().unwrap() = Some(user.pin(Epoch(2)));
        let keep = [Epoch(3)];
        let (retired, ran) =
            with_interruption(&storage, index, other, |store| store.retire(&claim, &keep, &[]));
        retired.unwrap();
        if !ran {
            break;
        }
        let granted = granted.lock().unwrap().take().unwrap();
        let there = raw.valid_epochs().unwrap().contains(&Epoch(2));
        match granted {
            Ok(_) => {
                assert!(there, "granted and retired at call {index}");
                held += 1;
            }
            Err(JobStoreError::NotPinned { .. } | JobStoreError::NoSuchCheckpoint { .. }) => {
                refused += 1;
            }
            Err(error) => panic!("call {index}: {error}"),
        }
        assert_clean(&raw);
        raw.unpin(Epoch(2)).unwrap();
        raw.retire(&claim, &keep, &[]).unwrap();
        assert_eq!(raw.valid_epochs().unwrap(), [Epoch(3)].into());
        assert_nothing_left_over(&raw);
    }
    assert!(held >= 2 && refused >= 3, "{held} held, {refused} refused");
}

#[test]
fn a_deletion_or_a_new_attempt_at_any_step_of_a_pin_leaves_one_that_holds_or_none() {
    type Act = fn(&JobStore, &Claim) -> Result<(), JobStoreError>;
    let acts: [(&str, Act); 4] = [
        ("retirement", |store, claim| store.retire(claim, &[Epoch(3)], &[]).map(drop)),
        ("deletion", |store, _| store.delete(Epoch(2)).map(drop)),
        ("cancel", |store, _| {
            let claim = store.claim()?;
            store.retire(&claim, &[], &[])?;
            store.sweep(&claim, OLD).map(drop)
        }),
        ("attempt", |store, _| {
            let claim = store.claim()?;
            store.sweep(&claim, OLD)?;
            checkpoint(store, &claim, claim.first_epoch())?;
            store.retire(&claim, &[claim.first_epoch()], &[]).map(drop)
        }),
    ];
    for (what, act) in acts {
        let (mut held, mut refused) = (0, 0);
        for index in 0.. {
            let (storage, raw, claim) = with_checkpoints(3);
            let interrupter = raw.clone();
            let other = move || match act(&interrupter, &claim) {
                Ok(()) | Err(JobStoreError::Pinned { .. }) => {}
                Err(error) => panic!("{what}: {error}"),
            };
            let (granted, ran) =
                with_interruption(&storage, index, other, |store| store.pin(Epoch(2)));
            if !ran {
                break;
            }
            let there = raw.valid_epochs().unwrap().contains(&Epoch(2));
            if granted.is_ok() {
                assert!(there, "{what} at call {index}");
                held += 1;
            } else {
                assert!(!there, "{what} at call {index}");
                refused += 1;
            }
            assert_eq!(raw.pinned().unwrap().contains(&Epoch(2)), there, "{what} at call {index}");
            let next = started(&raw).unwrap();
            raw.sweep(&next, OLD).unwrap();
            assert_nothing_left_over(&raw);
        }
        assert!(held >= 1 && refused >= 1, "{what}: {held} held, {refused} refused");
    }
}

#[test]
fn while_an_attempt_starts_nothing_can_be_pinned_and_what_is_marked_never() {
    let (storage, raw, _) = with_checkpoints(2);
    // An attempt that has claimed and not said yet what it keeps.
    let path = raw.path(&layout::claim(Attempt(2)));
    storage.put(&path, &[]).unwrap();
    let error = raw.pin(Epoch(1)).unwrap_err().to_string();
    assert!(error.contains("attempt 2 is starting"), "{error}");
    assert_eq!(raw.pinned().unwrap(), [].into());
    let next = raw.claim().unwrap();
    raw.sweep(&next, OLD).unwrap();
    raw.pin(Epoch(1)).unwrap();
    raw.unpin(Epoch(1)).unwrap();
    // The slow attempt before may delete it any time from here on.
    storage.put(&raw.path(&layout::retiring(Epoch(1), Attempt(1))), &[]).unwrap();
    let error = raw.pin(Epoch(1)).unwrap_err().to_string();
    assert!(error.contains("it is being deleted"), "{error}");
    assert_nothing_left_over(&raw);
    raw.sweep(&next, OLD).unwrap();
    assert!(raw.pin(Epoch(1)).is_err(), "nobody but its attempt takes a mark away");
    raw.retire(&next, &[Epoch(2)], &[]).unwrap();
    assert_nothing_left_over(&raw);
    assert_eq!(raw.valid_epochs().unwrap(), [Epoch(2)].into());
}
