//! One column of an instance: the column families that hold the rows of a state.
//!
//! Its name is that of the state, or that of a map state with an ending: see [`row`](super::row).
//!
//! # Partitions
//! The key groups of a job are cut into some ranges of about the same size, whatever its parallelism, and the rows of each
//! are in a column family of their own, as `state/03of16`. A family is rewritten as a whole, so this bounds what is
//! written at once, and a worker drops those that it has no key groups of. Their order is that of the rows.
//!
//! Files that are cut otherwise, and those of version 1, which have one family for a state, with its name, are read, and copied when
//! they are taken over.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use rocksdb::compaction_filter::{CompactionFilter, Decision};
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};

/// A column, as the worker and background threads know it.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) name: String,
    /// The names of its families.
    pub(super) families: Vec<String>,
    /// Whether there may be a row: if not, nothing is looked up.
    pub(super) has_rows: AtomicBool,
    /// Rows that were last written then or earlier have expired. Units: milliseconds since 1970.
    pub(super) expired: AtomicI64,
    max_parallelism: u16,
}

impl Column {
    /// Of a job with so many key groups, cut into so many families.
    pub(super) fn new(name: &str, max_parallelism: u16, partitions: u16) -> Self {
        let families =
            (0..partitions).map(|partition| format!("{name}/{partition:02}of{partitions:02}"));
        Self {
            name: name.to_owned(),
            families: families.collect(),
            has_rows: AtomicBool::new(false),
            expired: AtomicI64::new(i64::MIN),
            max_parallelism,
        }
    }

    /// The partition that a row with this key is in.
    pub(super) fn partition_of(&self, row_key: &[u8]) -> usize {
        let group = row_key.first_chunk().map_or(0, |group| u16::from_be_bytes(*group));
        let partitions = self.families.len();
        let partition = usize::from(group) * partitions / usize::from(self.max_parallelism);
        partition.min(partitions - 1)
    }

    /// The key groups of a partition.
    pub(super) fn groups_of(&self, partition: usize) -> Range<u16> {
        let first = |partition: usize| {
            let groups = partition * usize::from(self.max_parallelism);
            groups.div_ceil(self.families.len()) as u16
        };
        first(partition)..first(partition + 1)
    }
}

/// The column that a family belongs to. `None`: to none.
pub(super) fn column_of(family: &str) -> Option<&str> {
    let is_a_columns = family != rocksdb::DEFAULT_COLUMN_FAMILY_NAME;
    is_a_columns.then(|| family.rsplit_once('/').map_or(family, |(column, _)| column))
}

/// Drops expired rows when files are compacted.
pub(super) struct ExpiryFactory(pub(super) Arc<Column>);

/// As of the beginning of a compaction.
pub(super) struct Expiry(i64);

impl CompactionFilterFactory for ExpiryFactory {
    type Filter = Expiry;

    fn create(&mut self, _: CompactionFilterContext) -> Expiry {
        Expiry(self.0.expired.load(Ordering::Relaxed))
    }
    fn name(&self) -> &std::ffi::CStr {
        c"highwater-expiry"
    }
}

impl CompactionFilter for Expiry {
    fn filter(&mut self, _level: u32, _key: &[u8], value: &[u8]) -> Decision {
        if self.0 == i64::MIN {
            return Decision::Keep;
        }
        // A state that expires keeps the time of the last update in front of the value.
        match postcard::take_from_bytes::<i64>(value) {
            Ok((written, _)) if written <= self.0 => Decision::Remove,
            _ => Decision::Keep,
        }
    }
    fn name(&self) -> &std::ffi::CStr {
        c"highwater-expiry"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_cut_the_key_groups_into_ranges() {
        for max_parallelism in [1, 13, 16, 17, 128, 32_768, u16::MAX] {
            let column = Column::new("counts", max_parallelism, 16);
            let mut next = 0;
            for partition in 0..16 {
                let groups = column.groups_of(partition);
                assert_eq!(groups.start, next);
                next = groups.end;
                for group in groups {
                    assert_eq!(column.partition_of(&group.to_be_bytes()), partition);
                }
            }
            assert_eq!(next, max_parallelism);
        }
    }

    #[test]
    fn families_say_whose_they_are() {
        let column = Column::new("a.b-c", 8, 12);
        assert!(column.families.is_sorted());
        assert_eq!(column_of(&column.families[3]), Some("a.b-c"));
        assert_eq!(column_of("a.b-c"), Some("a.b-c"));
        assert_eq!(column_of("default"), None);
        let column = Column::new("a/entries", 8, 12);
        assert_eq!(column_of(&column.families[3]), Some("a/entries"));
    }
}
