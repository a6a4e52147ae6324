//! Keyed state in memory, in pages that a snapshot shares until they change (`state::pages`).
//!
//! A page that is still shared has not been touched since the last freeze.
//!
//! # Layers
//! A bit for each entry says whether it was touched since the last freeze (`marks`), and a page keeps the
//! keys that were removed. Freezing adds these marks to those that earlier snapshots hold and no complete checkpoint does; the
//! number of the snapshot says when they are void, so pages without changes are not visited for it. Which marks count, and how much
//! is written beyond them, `protocol::layers` decides.
//!
//! # Bounds
//! Pages never merge: a table that shrinks keeps its pages, underfull, until the state is restored.
//! The directory stays below 2^24 prefixes or 16 a page, whichever is more, even if keys were
//! chosen to have one prefix; then the page grows beyond its capacity and searching the excess is
//! linear.

mod frozen;
mod marks;
mod table;

pub use table::Table;

use std::ops::Range;

use super::{Key, StateBackend, StateValue};

/// Keeps state in memory. State must fit there; snapshots copy no more than what changes while they
/// are written.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeapBackend;

impl StateBackend for HeapBackend {
    type Table<K: Key, V: StateValue> = Table<K, V>;

    fn value_table<K: Key, V: StateValue>(
        &self,
        max_parallelism: u16,
        groups: &Range<u16>,
    ) -> Table<K, V> {
        Table::new(max_parallelism, groups)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::HeapBackend;
    use super::Table;
    use crate::format::{FormatError, SectionOutput};
    use crate::ids::KeyGroup;
    use crate::state::{SnapshotForm, StateBackend, ValueTable, conformance, hash::stable_hash};

    #[test]
    fn the_heap_backend_conforms() {
        conformance::suite(&HeapBackend);
    }

    struct Count(usize);

    impl SectionOutput for Count {
        fn entry(
            &mut self,
            _: KeyGroup,
            _: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), FormatError>,
        ) -> Result<(), FormatError> {
            self.0 += 1;
            Ok(())
        }
    }

    /// Inserts, changes and removes keys under hashes that the test chooses.
    fn check_with_hashes(keys: u64, hash: impl Fn(u64) -> u64) {
        let mut table: Table<u64, u64> = HeapBackend.value_table(128, &(0..128));
        let mut model = BTreeMap::new();
        for step in 0..4 * keys {
            let key = stable_hash(&step) % keys;
            if stable_hash(&(step, 1)) % 3 == 0 {
                assert_eq!(table.remove(hash(key), &key), model.remove(&key), "step {step}");
            } else {
                let before = table.insert(hash(key), &key, step);
                assert_eq!(before, model.insert(key, step), "step {step}");
            }
        }
        assert!(model.len() as u64 > keys / 2);
        assert_eq!(table.len(), model.len());
        for key in 0..keys {
            assert_eq!(table.get(hash(key), &key), model.get(&key), "key {key}");
        }
        let mut count = Count(0);
        table.freeze(SnapshotForm::Plain).content.write(&mut count).unwrap();
        assert_eq!(count.0, model.len());
    }

    #[test]
    fn keys_that_all_have_one_hash_are_kept_apart() {
        check_with_hashes(1_500, |_| 0xdead_beef_0000_0001);
    }

    #[test]
    fn keys_whose_hashes_differ_only_in_low_bits_are_kept_apart() {
        check_with_hashes(2_000, |key| 0xdead_beef_0000_0000 | key << 3);
    }

    #[test]
    fn keys_whose_hashes_share_a_long_prefix_split_pages_again_and_again() {
        check_with_hashes(3_000, |key| key << 44 | 5);
    }

    #[test]
    fn a_value_that_cannot_be_encoded_fails_the_snapshot_and_is_named() {
        #[derive(Clone, serde::Deserialize)]
        struct Stubborn;
        impl serde::Serialize for Stubborn {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("not today"))
            }
        }
        let mut table: Table<u64, Stubborn> = HeapBackend.value_table(128, &(0..128));
        table.insert(stable_hash(&1_u64), &1, Stubborn);
        let frozen = table.freeze(SnapshotForm::Plain).content;
        let error = frozen.write(&mut Count(0)).unwrap_err();
        assert!(error.to_string().contains("Stubborn could not be encoded"), "{error}");
        assert!(table.get(stable_hash(&1_u64), &1).is_some());
    }
}
