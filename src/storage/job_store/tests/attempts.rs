//! Attempts against each other: at every step, one of them wins and both know it.

use super::*;

#[test]
fn an_attempt_that_was_replaced_may_do_nothing() {
    let storage = memory();
    let store = store(&storage);
    let first = started(&store).unwrap();
    checkpoint(&store, &first, Epoch(1)).unwrap();
    let manifest = write_checkpoint(&store, &first, Epoch(2)).unwrap();
    let second = store.claim().unwrap();
    let before = storage.list(None).unwrap();
    let results = [
        store.publish(&first, &manifest).map(|_| ()),
        store.retire(&first, &[], &[]).map(|_| ()),
        store.sweep(&first, OLD).map(|_| ()),
        store.extend_epochs(&first),
    ];
    for result in results {
        let by = Attempt(2);
        assert!(
            matches!(result, Err(JobStoreError::Fenced { by: b, .. }) if b == by),
            "{result:?}"
        );
    }
    assert_eq!(first.epochs_end(), Epoch(1001));
    let mut after = storage.list(None).unwrap();
    after.retain(|(path, _)| path.as_str() != "job/attempts/1.epochs-1001");
    assert_eq!(after, before);
    store.sweep(&second, OLD).unwrap();
    assert_nothing_left_over(&store);
}

#[test]
fn epochs_are_never_used_twice_whatever_attempts_did() {
    let storage = memory();
    let store = store(&storage);
    let first = started(&store).unwrap();
    assert_eq!((first.first_epoch(), first.epochs_end()), (Epoch(1), Epoch(1001)));
    store.extend_epochs(&first).unwrap();
    store.extend_epochs(&first).unwrap();
    assert_eq!(first.epochs_end(), Epoch(3001));
    let second = store.claim().unwrap();
    assert_eq!(second.first_epoch(), Epoch(3001));
    store.sweep(&second, OLD).unwrap();
    let third = store.claim().unwrap();
    assert_eq!((third.attempt(), third.first_epoch()), (Attempt(3), Epoch(4001)));
}

#[test]
fn a_manifest_is_refused_if_it_is_not_ours_to_publish_or_its_parts_are_gone() {
    let storage = memory();
    let store = store(&storage);
    let claim = started(&store).unwrap();
    let manifest = write_checkpoint(&store, &claim, Epoch(5)).unwrap();
    let outside = Manifest { epoch: Epoch(1001), ..manifest.clone() };
    let other = Manifest { attempt: Attempt(7), ..manifest.clone() };
    for bad in [outside, other] {
        let error = store.publish(&claim, &bad).unwrap_err();
        assert!(matches!(error, JobStoreError::Refused { .. }), "{error}");
    }
    let mut stray = manifest.clone();
    stray.parts[0].natives.push(native("other/shared/x"));
    assert!(matches!(store.publish(&claim, &stray), Err(JobStoreError::Damaged { .. })));
    storage.delete(&store.part_path(Epoch(5), Attempt(1), 1)).unwrap();
    let error = store.publish(&claim, &manifest).unwrap_err();
    assert!(error.to_string().contains("1-1.part is not there"), "{error}");
    assert_eq!(store.newest().unwrap(), None);
}

#[test]
fn a_new_attempt_at_any_step_of_a_publication_finds_it_or_voids_it() {
    let (mut kept, mut voided) = (0, 0);
    for index in 0.. {
        let storage = memory();
        let raw = store(&storage);
        let first = started(&raw).unwrap();
        checkpoint(&raw, &first, Epoch(1)).unwrap();
        let manifest = write_checkpoint(&raw, &first, Epoch(2)).unwrap();
        let second = Arc::new(Mutex::new(None));
        let (claimer, slot) = (raw.clone(), second.clone());
        let other = move || {
            *slot.lock().unwrap() = Some(claimer.claim().unwrap());
        };
        let (published, ran) =
            with_interruption(&storage, index, other, |store| store.publish(&first, &manifest));
        if !ran {
            published.unwrap();
            break;
        }
        let second = second.lock().unwrap().take().unwrap();
        let newest = raw.newest_of(&second).unwrap();
        if published.is_ok() {
            assert_eq!(newest, Some(Epoch(2)), "announced and lost at call {index}");
        }
        assert_eq!(raw.newest().unwrap(), newest);
        if newest == Some(Epoch(2)) {
            kept += 1;
            raw.load(Epoch(2)).unwrap();
        } else {
            voided += 1;
            assert_eq!(newest, Some(Epoch(1)));
            assert!(raw.load(Epoch(2)).is_err());
        }
        assert_clean(&raw);
        raw.sweep(&second, OLD).unwrap();
        assert_nothing_left_over(&raw);
    }
    assert!(kept >= 1 && voided >= 2, "{kept} kept, {voided} voided");
}

#[test]
fn a_first_checkpoint_that_a_new_attempt_voids_is_not_missed_later() {
    for index in 0.. {
        let storage = memory();
        let raw = store(&storage);
        let first = started(&raw).unwrap();
        let manifest = write_checkpoint(&raw, &first, Epoch(1)).unwrap();
        let second = Arc::new(Mutex::new(None));
        let (claimer, slot) = (raw.clone(), second.clone());
        let other = move || {
            *slot.lock().unwrap() = Some(claimer.claim().unwrap());
        };
        let (published, ran) =
            with_interruption(&storage, index, other, |store| store.publish(&first, &manifest));
        if !ran {
            published.unwrap();
            break;
        }
        // The second attempt dies before its first checkpoint.
        let second = second.lock().unwrap().take().unwrap();
        raw.sweep(&second, OLD).unwrap();
        let third = started(&raw).unwrap();
        assert_eq!(raw.newest_of(&third).unwrap(), second.newest(), "at call {index}");
    }
}

#[test]
fn a_publication_at_any_step_of_a_claim_is_found_or_not_announced() {
    for index in 0.. {
        let storage = memory();
        let raw = store(&storage);
        let first = started(&raw).unwrap();
        checkpoint(&raw, &first, Epoch(1)).unwrap();
        let manifest = write_checkpoint(&raw, &first, Epoch(2)).unwrap();
        let announced = Arc::new(Mutex::new(false));
        let (publisher, note) = (raw.clone(), announced.clone());
        let other = move || {
            *note.lock().unwrap() = publisher.publish(&first, &manifest).is_ok();
        };
        let (second, ran) = with_interruption(&storage, index, other, |store| store.claim());
        let second = second.unwrap();
        if *announced.lock().unwrap() {
            assert_eq!(second.newest(), Some(Epoch(2)), "announced and lost at call {index}");
        }
        assert_clean(&raw);
        raw.sweep(&second, OLD).unwrap();
        assert_nothing_left_over(&raw);
        if !ran {
            break;
        }
    }
}

#[test]
fn a_new_attempt_at_any_step_of_a_retirement_keeps_all_it_needs() {
    for index in 0.. {
        let storage = memory();
        let raw = store(&storage);
        let first = started(&raw).unwrap();
        for epoch in 1..=3 {
            checkpoint(&raw, &first, Epoch(epoch)).unwrap();
        }
        write_part(&raw, &first, Epoch(4), 1).unwrap();
        let other_store = raw.clone();
        let other = move || {
            let second = other_store.claim().unwrap();
            assert_eq!(other_store.newest_of(&second).unwrap(), Some(Epoch(3)));
            checkpoint(&other_store, &second, Epoch(1001)).unwrap();
            write_part(&other_store, &second, Epoch(1002), 1).unwrap();
        };
        let keep = [Epoch(3)];
        let (_, ran) =
            with_interruption(&storage, index, other, |store| store.retire(&first, &keep, &[]));
        if !ran {
            break;
        }
        assert_clean(&raw);
        assert!(raw.valid_epochs().unwrap().is_superset(&[Epoch(3), Epoch(1001)].into()));
        let in_progress = raw.part_path(Epoch(1002), Attempt(2), 1);
        assert!(storage.open(&in_progress).is_ok(), "call {index}");
    }
}
