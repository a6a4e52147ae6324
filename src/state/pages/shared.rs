//! Pages that a table shares with snapshots, a segment of them at a time.
//!
//! ```text
//! table's segment:  pages [page, -, page, ...]   levels [oldest, ..., newest]
//!                                                           |
//! level (lock):     pages [-, page, -, ...]  readers [0, 1, 0, ...] <-- snapshots
//! ```
//! # States
//! A page is in one place for the table: its own, or one level. A freeze moves the pages that the snapshot wants into a new level, a few
//! words for each, and registers the snapshot as a reader of them and of those that are in levels already. The first operation on a page in a level:
//! * without readers: takes it back; with the last reader of the level gone, all that is left there;
//! * with one reader that wants little of it ([`Excerpts`]) and has not looked at it yet: puts a copy of that in its place, and takes it back;
//! * with readers: copies it.
//!
//! It does so if there is memory for what is copied ([`CopyRoom`]), and else waits until the readers are done with the page. What is in the
//! level is then the snapshots' alone, and the last reader drops it.
//!
//! A snapshot takes a page *out* of its level while it looks at it, so that the lock is held for moments only. Who wants that
//! same page waits until it is put back.
//!
//! # Invariants
//! A page in a level does not change, but once and before anybody looks at it to what its only reader wants of it. Levels without readers
//! are given up at the next freeze, so there are at most as many levels as snapshots that are being written, and one.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::page::Page;

/// Pages of a segment: as many as a word has bits.
pub(super) const SEGMENT_PAGES: usize = 64;

/// A page, or where one is not. Not a pointer to one: pages are found by one load less, and are near each other.
pub(super) type Slot<K, V> = Option<Page<K, V>>;

/// Room for levels that are to come, so that a freeze asks the allocator for none: that would be memory which nobody has
/// touched yet, and a fault of each page of it, while the worker waits.
pub(super) type Spare<K, V> = Vec<Vec<Slot<K, V>>>;

/// Who says whether there is memory for copies of pages that snapshots read.
pub(in crate::state) trait CopyRoom: Send + Sync {
    /// Takes the memory for a copy. `false`: there is none, and none was taken. Whoever `must` have it takes it all the same.
    fn take(&self, bytes: usize, must: bool) -> bool;
    /// One of the two that there were is gone.
    fn give_back(&self, bytes: usize);
}

/// What one snapshot wants of the pages that it reads: if that is little, the table need not copy whole pages to change them.
pub(in crate::state) trait Excerpts<K, V>: Send + Sync {
    /// See [`Page::excerpt`].
    fn excerpt(&self, number: usize, page: &Page<K, V>) -> Page<K, V>;
}

/// How copies are limited.
#[derive(Clone)]
pub(in crate::state) struct CopyLimit {
    pub(in crate::state) room: Arc<dyn CopyRoom>,
    /// What each entry of a copy takes. Units: bytes.
    pub(in crate::state) entry_bytes: usize,
    /// Whether the table may wait for the snapshots: they are being read, by threads that do not wait for the table.
    pub(in crate::state) may_wait: bool,
}

impl CopyLimit {
    /// What a copy takes. Units: bytes.
    fn bytes<K, V>(&self, page: &Page<K, V>) -> usize {
        page.entries().len() * self.entry_bytes
    }
}

/// The pages that were frozen together.
struct Cells<K, V> {
    /// `None`: taken back, dropped, or out.
    pages: Vec<Slot<K, V>>,
    /// Those that are the table's. The others are the snapshots' alone, or gone.
    tables: u64,
    /// Those that a snapshot looks at.
    out: u64,
    /// Those that stay as they are: a snapshot has looked at them, or two have them.
    fixed: u64,
    /// What the first snapshot wants of the others, while somebody reads.
    excerpts: Option<Arc<dyn Excerpts<K, V>>>,
    /// Threads that wait for one of them: if there are none, nobody has to be told, which would be a call of the system.
    waiting: u32,
    /// Snapshots that have not let go of a page yet.
    readers: [u16; SEGMENT_PAGES],
    /// Their sum.
    all_readers: u32,
}

struct Level<K, V> {
    cells: Mutex<Cells<K, V>>,
    /// A page was put back, or a snapshot has let go of one.
    put_back: Condvar,
    /// The number of the first page.
    first: usize,
    /// `None`: there may be as many as there are pages.
    copies: Option<CopyLimit>,
}

impl<K, V> Level<K, V> {
    fn lock(&self) -> MutexGuard<'_, Cells<K, V>> {
        // Nothing panics while the lock is held, but for the user's `clone` and `eq`: then the page is where it was.
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks when nobody looks at one of the pages.
    fn lock_for(&self, pages: u64) -> MutexGuard<'_, Cells<K, V>> {
        self.wait_while(self.lock(), |cells| cells.out & pages != 0)
    }

    /// Unlocks, and tells those that wait for a page.
    fn unlock(&self, cells: MutexGuard<'_, Cells<K, V>>) {
        let waited_for = cells.waiting > 0;
        drop(cells);
        if waited_for {
            self.put_back.notify_all();
        }
    }

    fn wait_while<'a>(
        &self,
        mut cells: MutexGuard<'a, Cells<K, V>>,
        mut condition: impl FnMut(&Cells<K, V>) -> bool,
    ) -> MutexGuard<'a, Cells<K, V>> {
        while condition(&cells) {
            cells.waiting += 1;
            cells = self.put_back.wait(cells).unwrap_or_else(PoisonError::into_inner);
            cells.waiting -= 1;
        }
        cells
    }

    /// Gives the table a page that is in this level, or a copy of it.
    fn page_for_table(&self, cells: MutexGuard<'_, Cells<K, V>>, at: usize) -> Slot<K, V>
    where
        K: Clone,
        V: Clone,
    {
        let mut cells = self.wait_while(cells, |cells| cells.out >> at & 1 == 1);
        // Its readers may have gone while the table waited.
        let excerpt = cells.excerpt(self.first, at);
        if cells.readers[at] > 0
            && let Some(copies) = &self.copies
            && let Some(left) = excerpt.as_ref().or(cells.pages[at].as_ref())
            && !copies.room.take(copies.bytes(left), !copies.may_wait)
        {
            cells = self.wait_while(cells, |cells| cells.readers[at] > 0);
        }
        cells.tables &= !(1 << at);
        let is_read = cells.readers[at] > 0;
        let page = &mut cells.pages[at];
        match excerpt {
            _ if !is_read => page.take(),
            Some(excerpt) => page.replace(excerpt),
            None => page.clone(),
        }
    }

    /// A snapshot does not need a page any more. Returns it if nobody does: what it takes to drop it is not done with the lock held.
    fn let_go(&self, mut cells: MutexGuard<'_, Cells<K, V>>, at: usize) -> Slot<K, V> {
        cells.readers[at] -= 1;
        cells.all_readers -= 1;
        let over = cells.readers[at] == 0 && cells.tables >> at & 1 == 0;
        let page = over.then(|| cells.pages[at].take()).flatten();
        let excerpts = (cells.all_readers == 0).then(|| cells.excerpts.take());
        self.unlock(cells);
        drop(excerpts);
        if let (Some(page), Some(copies)) = (&page, &self.copies) {
            copies.room.give_back(copies.bytes(page));
        }
        page
    }
}

/// What all segments share in a freeze.
pub(super) struct Sharing<'a, K, V> {
    /// What the snapshot wants of pages, if not all.
    pub(super) excerpts: Option<&'a Arc<dyn Excerpts<K, V>>>,
    pub(super) copies: Option<&'a CopyLimit>,
    pub(super) spare: &'a mut Spare<K, V>,
    /// What the snapshot gets.
    pub(super) reads: ReadPages<K, V>,
}

/// The table's side of up to [`SEGMENT_PAGES`] pages: those that are not its own. `own`: those that are.
pub(super) struct Levels<K, V>(Vec<Arc<Level<K, V>>>);

impl<K, V> Levels<K, V> {
    pub(super) const fn none() -> Self {
        Self(Vec::new())
    }

    /// Looks at a page that the table does not own.
    pub(super) fn look<T>(&self, at: usize, look: impl FnOnce(&Page<K, V>) -> T) -> T {
        for level in self.0.iter().rev() {
            let cells = level.lock_for(1 << at);
            if cells.tables >> at & 1 == 1
                && let Some(page) = &cells.pages[at]
            {
                return look(page);
            }
        }
        unreachable!("a page is the table's or in a level")
    }

    /// Shares these pages with a snapshot. `first`: the number of the segment's first page.
    pub(super) fn share(
        &mut self,
        own: &mut [Slot<K, V>],
        first: usize,
        wanted: u64,
        sharing: &mut Sharing<'_, K, V>,
    ) {
        self.0.retain(|level| {
            let mut cells = level.lock();
            if cells.all_readers == 0 {
                cells.give_all(own, sharing.spare);
                return false;
            }
            let here = cells.tables & wanted;
            if here != 0 {
                // Whoever reads them already wants something else of them.
                cells.fixed |= here;
                cells.add_reader(here);
                drop(cells);
                sharing.reads.0.push(ReadSegment { level: Arc::clone(level), pages: here });
            }
            true
        });
        let present = |(at, slot): (usize, &Slot<K, V>)| u64::from(slot.is_some()) << at;
        let here = wanted & own.iter().enumerate().map(present).fold(0, |all, page| all | page);
        if here != 0 {
            let mut pages = sharing.spare.pop().unwrap_or_default();
            let moved = own.iter_mut().enumerate();
            pages.extend(moved.map(|(at, slot)| slot.take_if(|_| here >> at & 1 == 1)));
            let mut cells = Cells {
                pages,
                tables: here,
                out: 0,
                fixed: 0,
                excerpts: sharing.excerpts.cloned(),
                waiting: 0,
                readers: [0; SEGMENT_PAGES],
                all_readers: 0,
            };
            cells.add_reader(here);
            let (cells, copies) = (Mutex::new(cells), sharing.copies.cloned());
            let level = Arc::new(Level { cells, put_back: Condvar::new(), first, copies });
            sharing.reads.0.push(ReadSegment { level: Arc::clone(&level), pages: here });
            self.0.push(level);
        }
    }
}

impl<K, V> Cells<K, V> {
    /// What the only reader of a page wants of it, if that is not all.
    fn excerpt(&self, first: usize, at: usize) -> Slot<K, V> {
        let may = self.readers[at] > 0 && self.fixed >> at & 1 == 0;
        let excerpts = self.excerpts.as_ref().filter(|_| may)?;
        Some(excerpts.excerpt(first + at, self.pages[at].as_ref()?))
    }

    /// One more snapshot reads these pages.
    fn add_reader(&mut self, pages: u64) {
        for (at, readers) in self.readers.iter_mut().enumerate() {
            *readers += (pages >> at & 1) as u16;
        }
        self.all_readers += pages.count_ones();
    }

    fn put_back(&mut self, at: usize, page: &mut Slot<K, V>) {
        self.pages[at] = page.take();
        self.out &= !(1 << at);
    }

    /// Gives all pages back to the table. Nobody reads them.
    fn give_all(&mut self, own: &mut [Slot<K, V>], spare: &mut Spare<K, V>) {
        self.tables = 0;
        let mut pages = std::mem::take(&mut self.pages);
        let there = own.iter_mut().zip(&mut pages).filter(|(_, page)| page.is_some());
        there.for_each(|(own, page)| *own = page.take());
        pages.clear();
        spare.push(pages);
    }
}

impl<K: Clone, V: Clone> Levels<K, V> {
    /// Makes the table the owner of a page that is in a level.
    pub(super) fn take_back(&mut self, own: &mut [Slot<K, V>], at: usize, spare: &mut Spare<K, V>) {
        let place = self.0.iter().rposition(|level| level.lock().tables >> at & 1 == 1);
        let place = place.expect("a page is the table's or in a level");
        let mut cells = self.0[place].lock();
        if cells.all_readers == 0 {
            cells.give_all(own, spare);
            drop(cells);
            self.0.remove(place);
            return;
        }
        own[at] = self.0[place].page_for_table(cells, at);
    }
}

/// A snapshot's side of pages. What is dropped lets go of its pages.
pub(in crate::state) struct ReadPages<K, V>(Vec<ReadSegment<K, V>>);

struct ReadSegment<K, V> {
    level: Arc<Level<K, V>>,
    /// Those that have not been let go of.
    pages: u64,
}

/// One of [`ReadPages`]. Dropped, it lets go of the page.
pub(in crate::state) struct ReadPage<K, V> {
    level: Arc<Level<K, V>>,
    at: usize,
    /// While it is looked at.
    out: Slot<K, V>,
}

impl<K, V> Default for ReadPages<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K, V> Iterator for ReadPages<K, V> {
    type Item = ReadPage<K, V>;

    fn next(&mut self) -> Option<ReadPage<K, V>> {
        let segment = self.0.last_mut()?;
        let at = segment.pages.trailing_zeros() as usize;
        segment.pages &= segment.pages - 1;
        let page = segment.page(at);
        if segment.pages == 0 {
            self.0.pop();
        }
        Some(page)
    }
}

impl<K, V> ReadPages<K, V> {
    /// The pages that are not empty, in the order of their hashes, each with the least that belongs there.
    pub(in crate::state) fn in_order(self) -> PagesInOrder<K, V> {
        let mut order = Vec::new();
        for (number, segment) in self.0.iter().enumerate() {
            let cells = segment.level.lock_for(segment.pages);
            for at in (0..SEGMENT_PAGES).filter(|at| segment.pages >> at & 1 == 1) {
                let page = cells.pages[at].as_ref().filter(|page| !page.is_blank());
                order.extend(page.map(|page| (page.prefix(), number as u32, at as u32)));
            }
        }
        order.sort_unstable();
        PagesInOrder { segments: self.0, order: order.into_iter() }
    }
}

/// [`ReadPages`], in the order of their hashes.
pub(in crate::state) struct PagesInOrder<K, V> {
    segments: Vec<ReadSegment<K, V>>,
    /// For each page the least hash, which segment, and where in that.
    order: std::vec::IntoIter<(u64, u32, u32)>,
}

impl<K, V> Iterator for PagesInOrder<K, V> {
    type Item = (u64, ReadPage<K, V>);

    fn next(&mut self) -> Option<(u64, ReadPage<K, V>)> {
        let (prefix, segment, at) = self.order.next()?;
        let segment = &mut self.segments[segment as usize];
        segment.pages &= !(1 << at);
        Some((prefix, segment.page(at as usize)))
    }
}

impl<K, V> ReadSegment<K, V> {
    fn page(&self, at: usize) -> ReadPage<K, V> {
        let level = Arc::clone(&self.level);
        ReadPage { level, at, out: None }
    }
}

impl<K, V> Drop for ReadSegment<K, V> {
    fn drop(&mut self) {
        while self.pages != 0 {
            let at = self.pages.trailing_zeros() as usize;
            self.pages &= self.pages - 1;
            drop(self.level.let_go(self.level.lock(), at));
        }
    }
}

impl<K, V> ReadPage<K, V> {
    /// Its number in the table when it was shared.
    pub(in crate::state) fn number(&self) -> usize {
        self.level.first + self.at
    }

    /// The page, or an excerpt, and the same one each time. The table waits until it is put back if it wants it.
    pub(in crate::state) fn look(&mut self) -> &Page<K, V> {
        if self.out.is_none() {
            let mut cells = self.level.lock_for(1 << self.at);
            cells.out |= 1 << self.at;
            cells.fixed |= 1 << self.at;
            self.out = cells.pages[self.at].take();
        }
        self.out.as_ref().expect("a page that is shared is there")
    }

    /// Puts the page back, to be looked at again later.
    pub(in crate::state) fn put_back(&mut self) {
        if self.out.is_some() {
            let mut cells = self.level.lock();
            cells.put_back(self.at, &mut self.out);
            self.level.unlock(cells);
        }
    }
}

impl<K, V> Drop for ReadPage<K, V> {
    fn drop(&mut self) {
        let mut cells = self.level.lock();
        if self.out.is_some() {
            cells.put_back(self.at, &mut self.out);
        }
        drop(self.level.let_go(cells, self.at));
    }
}
