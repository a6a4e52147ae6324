//! Tests of sharing: who has which page, and when it is copied.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use super::{CopyLimit, CopyRoom, Excerpts, Page, Pages, ReadPages};

/// A value that counts its clones.
struct Counted(u64, Arc<AtomicUsize>);

impl Clone for Counted {
    fn clone(&self) -> Self {
        self.1.fetch_add(1, Ordering::SeqCst);
        Self(self.0, Arc::clone(&self.1))
    }
}

/// Two pages, with key 1 in the first and key 2 in the second; and the clones of their values.
fn two_pages() -> (Pages<u64, Counted>, Arc<AtomicUsize>) {
    let clones = Arc::<AtomicUsize>::default();
    let mut pages = Pages::new();
    pages.own(0).push(1, 1, Counted(10, Arc::clone(&clones)));
    pages.own(0).push(1 << 63, 2, Counted(20, Arc::clone(&clones)));
    pages.split(0, |_, _, _| ());
    assert_eq!(pages.len(), 2);
    (pages, clones)
}

fn set(pages: &mut Pages<u64, Counted>, number: usize, value: u64) {
    pages.own(number).value_at(0).0 = value;
}

/// The page's number, its key and the value, of each page that is read.
fn read(pages: ReadPages<u64, Counted>) -> Vec<(usize, u64, u64)> {
    let one = |mut page: super::ReadPage<u64, Counted>| {
        let entry = &page.look().entries()[0];
        let (key, value) = (entry.key, entry.value.0);
        (page.number(), key, value)
    };
    let mut all: Vec<_> = pages.map(one).collect();
    all.sort_unstable();
    all
}

#[test]
fn a_snapshot_sees_what_was_there_when_it_was_taken_whatever_changes_after() {
    let (mut pages, clones) = two_pages();
    let first = pages.share([0, 1].into_iter());
    assert!(pages.is_shared(0) && pages.is_shared(1));
    set(&mut pages, 0, 11);
    let second = pages.share([0, 1].into_iter());
    set(&mut pages, 0, 12);
    set(&mut pages, 1, 22);
    assert_eq!(clones.load(Ordering::SeqCst), 3);
    assert_eq!(read(second), [(0, 1, 11), (1, 2, 20)]);
    assert_eq!(read(first), [(0, 1, 10), (1, 2, 20)]);
    let third = pages.share([0, 1].into_iter());
    assert_eq!(read(third), [(0, 1, 12), (1, 2, 22)]);
}

#[test]
fn a_page_that_no_snapshot_wants_or_that_all_are_done_with_is_taken_back_without_a_copy() {
    let (mut pages, clones) = two_pages();
    let reads = pages.share([1].into_iter());
    set(&mut pages, 0, 11);
    assert!(pages.is_shared(1));
    assert_eq!(read(reads), [(1, 2, 20)]);
    set(&mut pages, 1, 21);
    drop(pages.share([0, 1].into_iter()));
    set(&mut pages, 0, 12);
    assert!(!pages.is_shared(1), "with the last reader gone, the others come back with the first");
    assert_eq!(clones.load(Ordering::SeqCst), 0);
    assert_eq!(read(pages.share([0, 1].into_iter())), [(0, 1, 12), (1, 2, 21)]);
}

/// Wants the first entry of each page only.
struct First;

impl Excerpts<u64, Counted> for First {
    fn excerpt(&self, number: usize, page: &Page<u64, Counted>) -> Page<u64, Counted> {
        assert_eq!(page.entries()[0].key, number as u64 + 1, "it is asked for another page");
        page.excerpt(std::iter::once(0), std::iter::empty())
    }
}

fn first() -> Arc<dyn Excerpts<u64, Counted>> {
    Arc::new(First)
}

/// [`two_pages`] with one more entry in the first.
fn three_entries() -> (Pages<u64, Counted>, Arc<AtomicUsize>) {
    let (mut pages, clones) = two_pages();
    pages.own(0).push(2, 3, Counted(30, Arc::clone(&clones)));
    (pages, clones)
}

#[test]
fn of_a_page_that_changes_only_what_the_snapshot_wants_is_copied() {
    let (mut pages, clones) = three_entries();
    let reads = pages.share_for([0, 1].into_iter(), Some(&first()));
    set(&mut pages, 0, 11);
    assert_eq!(clones.load(Ordering::SeqCst), 1);
    assert!(pages.own(0).get(2, &3).is_some_and(|value| value.0 == 30));
    let entries = |mut page: super::ReadPage<u64, Counted>| {
        let page = page.look();
        (page.entries()[0].value.0, page.entries().len(), page.is_excerpt())
    };
    let mut read: Vec<_> = reads.map(entries).collect();
    read.sort_unstable();
    assert_eq!(read, [(10, 1, true), (20, 1, false)]);
}

#[test]
fn a_page_that_a_snapshot_has_looked_at_stays_as_it_is() {
    let (mut pages, clones) = three_entries();
    let mut page = pages.share_for([0].into_iter(), Some(&first())).next().expect("it was shared");
    assert_eq!(page.look().entries().len(), 2);
    page.put_back();
    set(&mut pages, 0, 11);
    assert_eq!(clones.load(Ordering::SeqCst), 2);
    let values: Vec<u64> = page.look().entries().iter().map(|entry| entry.value.0).collect();
    assert_eq!(values, [10, 30]);
}

#[test]
fn a_page_that_two_snapshots_read_is_copied_whole_and_the_next_one_is_not() {
    let (mut pages, clones) = three_entries();
    let one = pages.share_for([0, 1].into_iter(), Some(&first()));
    let other = pages.share([0].into_iter());
    set(&mut pages, 0, 11);
    assert_eq!(clones.load(Ordering::SeqCst), 2);
    for reads in [one, other] {
        let page = reads.into_iter().find(|page| page.number() == 0);
        assert_eq!(page.expect("both have it").look().entries().len(), 2);
    }
    let reads = pages.share_for([0].into_iter(), Some(&first()));
    set(&mut pages, 0, 12);
    assert_eq!(clones.load(Ordering::SeqCst), 3);
    assert_eq!(read(reads), [(0, 1, 11)]);
}

/// Memory for one copy.
#[derive(Default)]
struct RoomForOne {
    copies: AtomicUsize,
    refused: AtomicUsize,
}

impl CopyRoom for RoomForOne {
    fn take(&self, bytes: usize, must: bool) -> bool {
        assert_eq!(bytes, 100);
        let taken = must || self.copies.load(Ordering::SeqCst) == 0;
        let counter = if taken { &self.copies } else { &self.refused };
        counter.fetch_add(1, Ordering::SeqCst);
        taken
    }

    fn give_back(&self, bytes: usize) {
        assert_eq!(bytes, 100);
        self.copies.fetch_sub(1, Ordering::SeqCst);
    }
}

/// [`two_pages`] with such a room.
fn two_pages_with_room(may_wait: bool) -> (Pages<u64, Counted>, Arc<AtomicUsize>, Arc<RoomForOne>) {
    let (mut pages, clones) = two_pages();
    let room = Arc::<RoomForOne>::default();
    pages.copies = Some(CopyLimit { room: room.clone(), entry_bytes: 100, may_wait });
    (pages, clones, room)
}

#[test]
fn a_table_that_has_no_memory_for_a_copy_waits_for_the_snapshot() {
    let (mut pages, clones, room) = two_pages_with_room(true);
    let reads = pages.share([0, 1].into_iter());
    set(&mut pages, 0, 11);
    assert_eq!((clones.load(Ordering::SeqCst), room.copies.load(Ordering::SeqCst)), (1, 1));
    let refusing = room.clone();
    let reading = std::thread::spawn(move || {
        while refusing.refused.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        read(reads)
    });
    set(&mut pages, 1, 21);
    assert_eq!(reading.join().unwrap(), [(0, 1, 10), (1, 2, 20)]);
    assert_eq!(clones.load(Ordering::SeqCst), 1, "the second page was waited for");
    assert_eq!(room.copies.load(Ordering::SeqCst), 0, "the memory of a copy is given back");
}

#[test]
fn a_copy_that_two_snapshots_read_takes_memory_once() {
    let (mut pages, clones, room) = two_pages_with_room(true);
    let (first, second) = (pages.share([0, 1].into_iter()), pages.share([0].into_iter()));
    set(&mut pages, 0, 11);
    assert_eq!((clones.load(Ordering::SeqCst), room.copies.load(Ordering::SeqCst)), (1, 1));
    assert_eq!(read(second), [(0, 1, 10)]);
    assert_eq!(room.copies.load(Ordering::SeqCst), 1, "the other one still reads it");
    assert_eq!(read(first), [(0, 1, 10), (1, 2, 20)]);
    assert_eq!(room.copies.load(Ordering::SeqCst), 0);
}

#[test]
fn a_table_that_may_not_wait_copies_all_the_same() {
    let (mut pages, clones, room) = two_pages_with_room(false);
    let reads = pages.share([0, 1].into_iter());
    set(&mut pages, 0, 11);
    set(&mut pages, 1, 21);
    assert_eq!((clones.load(Ordering::SeqCst), room.copies.load(Ordering::SeqCst)), (2, 2));
    drop(reads);
    assert_eq!(room.copies.load(Ordering::SeqCst), 0);
}

#[test]
fn pages_that_are_added_after_a_freeze_do_not_disturb_it() {
    let (mut pages, _) = two_pages();
    let reads = pages.share([0, 1].into_iter());
    // Far beyond one segment.
    while pages.len() < 200 {
        let hash = (pages.len() as u64) << 56;
        pages.split(hash, |_, _, _| ());
    }
    assert_eq!(read(reads), [(0, 1, 10), (1, 2, 20)]);
    let number = pages.number(1);
    assert!(pages.own(number).get(1, &1).is_some_and(|value| value.0 == 10));
}

#[test]
fn the_table_waits_for_a_page_that_a_snapshot_looks_at() {
    let (mut pages, clones) = two_pages();
    let mut page = pages.share([0].into_iter()).next().expect("it was shared");
    let (looks, looking) = channel();
    let over = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&over);
    let snapshot = std::thread::spawn(move || {
        let locked = page.look();
        looks.send(()).expect("the table listens");
        let seen = locked.entries()[0].value.0;
        ends.store(true, Ordering::SeqCst);
        seen
    });
    looking.recv().expect("the snapshot looks");
    set(&mut pages, 0, 11);
    assert!(over.load(Ordering::SeqCst), "the page was changed while it was looked at");
    assert_eq!(snapshot.join().expect("it does not panic"), 10);
    assert!(clones.load(Ordering::SeqCst) <= 1);
}

#[test]
fn pages_come_in_the_order_of_their_hashes_without_the_empty_ones() {
    let (mut pages, _) = two_pages();
    while pages.len() < 200 {
        let hash = (pages.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        pages.split(hash, |_, _, _| ());
    }
    for key in 0..500_u64 {
        let hash = key.wrapping_mul(0xd6e8_feb8_6659_fd93);
        let number = pages.number(hash);
        pages.own(number).push(hash, key, Counted(key, Arc::default()));
    }
    let numbers: Vec<usize> = (0..200).filter(|number| number % 3 != 0).collect();
    let (mut last, mut seen) = (0, Vec::new());
    for (prefix, mut page) in pages.share(numbers.iter().copied()).in_order() {
        let hashes: Vec<u64> = page.look().entries().iter().map(|entry| entry.hash).collect();
        assert!(prefix >= last && hashes.iter().all(|hash| *hash >= prefix));
        last = *hashes.iter().max().expect("it is not empty");
        seen.push(page.number());
    }
    seen.sort_unstable();
    let filled: Vec<usize> =
        numbers.into_iter().filter(|number| !pages.own(*number).entries().is_empty()).collect();
    assert_eq!(seen, filled);
    assert!(seen.len() > 50);
}
