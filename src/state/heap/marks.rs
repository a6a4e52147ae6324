//! Which entries of a table have changed, page by page: since the last freeze, and since snapshots that are complete.
//!
//! Kept apart from the pages and densely, so that freezing looks at a few bytes of each page, one after the other.
//! Positions beyond the capacity of a page count as changed always.

/// The marks of all pages of a table.
#[derive(Debug)]
pub(super) struct Marks {
    /// Words of each page in each of the sets.
    words: usize,
    /// What has changed since the last freeze.
    changed: Vec<u64>,
    /// What had changed when the page was last frozen with changes, since the snapshot that was then the last confirmed one.
    small: Vec<u64>,
    /// And since the last confirmed top one.
    top: Vec<u64>,
    pages: Vec<PageMarks>,
}

#[derive(Clone, Copy, Debug, Default)]
struct PageMarks {
    /// The number of the snapshot that it was last frozen for with changes; 0 if it never was.
    folded: u32,
    /// Whether there were ever more entries than a page is meant to hold.
    beyond: bool,
    /// How many positions are marked in `small` and `top`, at most.
    small: u16,
    top: u16,
    /// Number of removed keys that it remembers.
    removed: u32,
    /// The number of snapshots before the last of these.
    last_removed: u32,
}

/// How many entries of a page have changed, at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ChangedEntries {
    pub(super) small: u64,
    pub(super) top: u64,
}

/// How many positions are marked. They are in one page.
#[inline]
fn count(words: &[u64]) -> u16 {
    words.iter().map(|word| word.count_ones() as u16).sum()
}

/// Whether a position is marked.
#[inline]
fn is_marked(words: &[u64], position: usize) -> bool {
    words.get(position / 64).is_none_or(|word| word >> (position % 64) & 1 == 1)
}

/// The positions below `entries` that are marked, ascending.
pub(super) fn marked_positions(
    words: &[u64],
    entries: usize,
) -> impl Iterator<Item = usize> + Clone {
    let known = words.iter().enumerate().flat_map(|(at, word)| {
        let mut left = *word;
        std::iter::from_fn(move || {
            let position = 64 * at + left.trailing_zeros() as usize;
            (left != 0).then(|| {
                left &= left - 1;
                position
            })
        })
    });
    known.take_while(move |position| *position < entries).chain(64 * words.len()..entries)
}

impl Marks {
    /// Marks of one page.
    pub(super) fn new(capacity: usize) -> Self {
        let words = capacity.div_ceil(64);
        let mut marks = Self {
            words,
            changed: Vec::new(),
            small: Vec::new(),
            top: Vec::new(),
            pages: Vec::new(),
        };
        marks.add_page();
        marks
    }

    fn add_page(&mut self) {
        for set in [&mut self.changed, &mut self.small, &mut self.top] {
            set.resize(set.len() + self.words, 0);
        }
        self.pages.push(PageMarks::default());
    }

    /// The entry at `position` has changed.
    #[inline]
    pub(super) fn set(&mut self, page: usize, position: usize) {
        if position < 64 * self.words {
            self.changed[page * self.words + position / 64] |= 1 << (position % 64);
        } else {
            self.pages[page].beyond = true;
        }
    }

    /// The last entry of a page takes the place of another, or goes itself.
    pub(super) fn relocate(&mut self, page: usize, last: usize, to: usize) {
        let at = page * self.words..(page + 1) * self.words;
        for set in [&mut self.changed, &mut self.small, &mut self.top] {
            let words = &mut set[at.clone()];
            let marked = is_marked(words, last);
            for (position, marked) in [(to, marked), (last, false)] {
                if let Some(word) = words.get_mut(position / 64) {
                    *word = *word & !(1 << (position % 64)) | u64::from(marked) << (position % 64);
                }
            }
        }
    }

    /// A page was split: `moves` says of each entry where it was, whether it is in the new page, and where it is there or
    /// here. The new page comes last.
    pub(super) fn split(
        &mut self,
        page: usize,
        moves: impl IntoIterator<Item = (usize, bool, usize)>,
    ) {
        let new = self.pages.len();
        self.add_page();
        self.pages[new].folded = self.pages[page].folded;
        self.pages[new].beyond = self.pages[page].beyond;
        let (words, at) = (self.words, page * self.words);
        let sets = [&mut self.changed, &mut self.small, &mut self.top];
        let before = sets.map(|set| {
            let before = set[at..at + words].to_vec();
            set[at..at + words].fill(0);
            (set, before)
        });
        let mut sets = before;
        for (from, upper, to) in moves {
            let page = if upper { new } else { page };
            if to < 64 * words {
                for (set, before) in &mut sets {
                    let marked = u64::from(is_marked(before, from));
                    set[page * words + to / 64] |= marked << (to % 64);
                }
            }
        }
        for page in [page, new] {
            let at = page * words..(page + 1) * words;
            let marks = &mut self.pages[page];
            (marks.small, marks.top) = (count(&self.small[at.clone()]), count(&self.top[at]));
        }
    }

    /// What a page remembers of removed keys.
    pub(super) fn set_removed(&mut self, page: usize, removed: usize, last_removed: u32) {
        let marks = &mut self.pages[page];
        (marks.removed, marks.last_removed) = (removed as u32, last_removed);
    }

    /// Whether all removed keys that a page remembers are in complete top snapshots.
    pub(super) fn removed_are_over(&self, page: usize, confirmed_top: u32) -> bool {
        let marks = &self.pages[page];
        marks.removed > 0 && marks.last_removed < confirmed_top
    }

    /// What has changed in a page becomes part of what `snapshot` holds, with what earlier ones hold that no complete one does. Says
    /// how much that is.
    #[inline]
    pub(super) fn fold(
        &mut self,
        page: usize,
        snapshot: u32,
        confirmed: u32,
        confirmed_top: u32,
    ) -> ChangedEntries {
        let at = page * self.words..(page + 1) * self.words;
        let marks = &mut self.pages[page];
        let changed = &mut self.changed[at.clone()];
        if marks.beyond {
            changed.fill(u64::MAX);
        }
        if changed.iter().any(|word| *word != 0) {
            let number = count(changed);
            let add = |set: &mut [u64], keep, marked: &mut u16| {
                if keep {
                    set.iter_mut().zip(&*changed).for_each(|(word, changed)| *word |= changed);
                    *marked = count(set);
                } else {
                    set.copy_from_slice(changed);
                    *marked = number;
                }
            };
            add(&mut self.small[at.clone()], marks.folded > confirmed, &mut marks.small);
            add(&mut self.top[at], marks.folded > confirmed_top, &mut marks.top);
            changed.fill(0);
            marks.folded = snapshot;
        }
        let entries = |since, marked| {
            let removed = if marks.last_removed >= since { marks.removed } else { 0 };
            u64::from(removed) + if marks.folded > since { u64::from(marked) } else { 0 }
        };
        ChangedEntries {
            small: entries(confirmed, marks.small),
            top: entries(confirmed_top, marks.top),
        }
    }

    /// Adds what a page has to write: its marks since the last confirmed snapshot or, `top`, the last confirmed top one.
    pub(super) fn copy_folded(&self, page: usize, since: u32, top: bool, to: &mut Vec<u64>) {
        let set = if top { &self.top } else { &self.small };
        if self.pages[page].folded > since {
            to.extend_from_slice(&set[page * self.words..(page + 1) * self.words]);
        } else {
            to.resize(to.len() + self.words, 0);
        }
    }

    /// Number of words of a page.
    pub(super) fn words(&self) -> usize {
        self.words
    }

    /// Nothing has changed: what is there is what checkpoints hold.
    pub(super) fn forget(&mut self) {
        for set in [&mut self.changed, &mut self.small, &mut self.top] {
            set.fill(0);
        }
        self.pages.fill(PageMarks::default());
    }
}

#[cfg(test)]
mod tests {
    use super::{is_marked, marked_positions};

    #[test]
    fn marked_positions_are_those_below_the_end_that_are_marked_and_all_beyond_the_marks() {
        for words in [&[][..], &[0], &[u64::MAX, 0, 1 << 63 | 1], &[0x8000_0000_0000_0001, 6]] {
            for entries in [0, 1, 2, 63, 64, 65, 127, 128, 192, 200] {
                let expected = (0..entries).filter(|position| is_marked(words, *position));
                let found: Vec<usize> = marked_positions(words, entries).collect();
                assert_eq!(found, expected.collect::<Vec<_>>(), "{words:x?}, {entries} entries");
            }
        }
    }
}
