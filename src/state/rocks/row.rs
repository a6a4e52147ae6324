//! Rows: what their keys and values are, of a value with its key and of an entry of a map.
//!
//! ```text
//! value        group, 2 bytes | key                                          -> value
//! map's entry  group, 2 bytes | length, 4 bytes | key | entry key, to sort by -> entry key, value
//! ```
//! Numbers have the high byte first. Keys, entry keys and values are as a savepoint has them, but for the entry key *to sort by*,
//! which is as [`sorting`](super::sorting) says.
//!
//! # The head of a map's rows
//! Group, length and key: all rows of a map begin with its head, and no row of another does, since two keys of one length
//! differ within it. So a map is one range, in the order of its entries, and its rows' values, one behind the other with
//! their number in front, are the map as a savepoint has it. [`WholeRows`] puts them together like that.
//!
//! # Columns
//! A state with a row for each entry is in a column of its own, so that files say themselves what their rows are: those
//! of [`FORMAT_VERSION`](super::FORMAT_VERSION) 2 and earlier, and those of maps that expire, hold maps whole.

use std::collections::{BTreeMap, btree_map};
use std::ops::Bound::{Excluded, Included};

use crate::format::{FormatError, codec};
use crate::protocol::key_groups::key_group;
use crate::state::hash::stable_hash;
use crate::state::{Key, MapKey, StateValue};

use super::sorting;
use super::weigh::owned_bytes;

/// What ends the name of a column that has a row for each entry of a map.
const ENTRIES: &str = "/entries";

/// What an entry takes in the index of sorted keys, beside its keys, and its share of what is known of its map. Units: bytes.
const SORTED_BYTES: usize = 96;

/// The name of the column that has a row for each entry of a map state.
pub(super) fn column_of_entries(state: &str) -> String {
    format!("{state}{ENTRIES}")
}

/// The state that a column belongs to.
pub(super) fn state_of_column(column: &str) -> &str {
    column.strip_suffix(ENTRIES).unwrap_or(column)
}

/// What a table has one row for: a key, or a key with an entry of its map.
pub trait RowKey: Clone + Send + 'static {
    /// What it is looked up by.
    type Ref<'a>: Copy
    where
        Self: 'a;
    /// What a table keeps of it in the order of rows.
    type Mark: 'static;
    /// Whether a table is to find what it has in memory in the order of rows.
    const SORTED: bool;

    /// Itself, to look it up by.
    fn by_ref(&self) -> Self::Ref<'_>;
    /// Whether it is this one.
    fn is(&self, key: Self::Ref<'_>) -> bool;
    /// Makes it.
    fn of(key: Self::Ref<'_>) -> Self;
    /// What is kept of it in the order of rows.
    fn mark(key: Self::Ref<'_>) -> Self::Mark;
    /// Appends the key of its row. `hash`: what it has in the table.
    ///
    /// # Errors
    /// [`FormatError::Encode`].
    fn encode(
        hash: u64,
        key: Self::Ref<'_>,
        max_parallelism: u16,
        out: &mut Vec<u8>,
    ) -> Result<(), FormatError>;
    /// Appends the value of its row.
    ///
    /// # Errors
    /// [`FormatError::Encode`].
    fn encode_value<V: StateValue>(
        key: Self::Ref<'_>,
        value: &V,
        out: &mut Vec<u8>,
    ) -> Result<(), FormatError>;
    /// The value in the value of a row.
    ///
    /// # Errors
    /// [`FormatError::Corrupt`].
    fn decode_value<V: StateValue>(row: &[u8]) -> Result<V, FormatError>;
    /// The memory that it owns, about. Units: bytes.
    fn owned_bytes(key: Self::Ref<'_>) -> usize;
}

impl<K: Key> RowKey for K {
    type Ref<'a> = &'a K;
    type Mark = ();
    const SORTED: bool = false;

    #[inline]
    fn by_ref(&self) -> &K {
        self
    }
    #[inline]
    fn is(&self, key: &K) -> bool {
        self == key
    }
    #[inline]
    fn of(key: &K) -> K {
        key.clone()
    }
    fn mark(_: &K) {}
    fn encode(
        hash: u64,
        key: &K,
        max_parallelism: u16,
        out: &mut Vec<u8>,
    ) -> Result<(), FormatError> {
        out.extend_from_slice(&key_group(hash, max_parallelism).0.to_be_bytes());
        codec::encode(key, out)
    }
    fn encode_value<V: StateValue>(_: &K, value: &V, out: &mut Vec<u8>) -> Result<(), FormatError> {
        codec::encode(value, out)
    }
    fn decode_value<V: StateValue>(row: &[u8]) -> Result<V, FormatError> {
        codec::decode(row)
    }
    fn owned_bytes(key: &K) -> usize {
        owned_bytes(key)
    }
}

/// A key, and the key of an entry of its map.
#[derive(Clone, Debug)]
pub struct EntryKey<K, M> {
    key: K,
    entry: M,
}

/// What an [`EntryKey`] is looked up by.
#[derive(Debug)]
pub struct EntryRef<'a, K, M> {
    /// The hash of the key.
    pub(super) hash: u64,
    pub(super) key: &'a K,
    pub(super) entry: &'a M,
}

impl<K, M> Clone for EntryRef<'_, K, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, M> Copy for EntryRef<'_, K, M> {}

impl<K: Key, M: MapKey> EntryRef<'_, K, M> {
    /// What it has in a table: entries of one map are spread like those of many, whatever they have in common.
    #[inline]
    pub(super) fn table_hash(&self) -> u64 {
        stable_hash(&(self.hash, self.entry))
    }
}

impl<K: Key, M: MapKey> RowKey for EntryKey<K, M> {
    type Ref<'a> = EntryRef<'a, K, M>;
    type Mark = M;
    const SORTED: bool = true;

    fn by_ref(&self) -> EntryRef<'_, K, M> {
        let Self { key, entry } = self;
        EntryRef { hash: stable_hash(key), key, entry }
    }
    #[inline]
    fn is(&self, other: EntryRef<'_, K, M>) -> bool {
        self.entry == *other.entry && self.key == *other.key
    }
    fn of(EntryRef { key, entry, .. }: EntryRef<'_, K, M>) -> Self {
        Self { key: key.clone(), entry: entry.clone() }
    }
    fn mark(key: EntryRef<'_, K, M>) -> M {
        key.entry.clone()
    }
    fn encode(
        _: u64,
        EntryRef { hash, key, entry }: EntryRef<'_, K, M>,
        max_parallelism: u16,
        out: &mut Vec<u8>,
    ) -> Result<(), FormatError> {
        encode_head(hash, key, max_parallelism, out)?;
        sorting::encode(entry, out)
    }
    fn encode_value<V: StateValue>(
        key: EntryRef<'_, K, M>,
        value: &V,
        out: &mut Vec<u8>,
    ) -> Result<(), FormatError> {
        codec::encode(key.entry, out)?;
        codec::encode(value, out)
    }
    fn decode_value<V: StateValue>(row: &[u8]) -> Result<V, FormatError> {
        decode_entry::<M, V>(row).map(|(_, value)| value)
    }
    fn owned_bytes(EntryRef { key, entry, .. }: EntryRef<'_, K, M>) -> usize {
        // Both are in the index of sorted keys once more: as bytes, and the entry's as itself too.
        let keys = owned_bytes(key) + 2 * owned_bytes(entry);
        2 * keys + size_of::<K>() + 2 * size_of::<M>() + SORTED_BYTES
    }
}

/// Appends the head of a map's rows.
pub(super) fn encode_head<K: Key>(
    hash: u64,
    key: &K,
    max_parallelism: u16,
    out: &mut Vec<u8>,
) -> Result<(), FormatError> {
    out.extend_from_slice(&key_group(hash, max_parallelism).0.to_be_bytes());
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    codec::encode(key, out)?;
    let len = u32::try_from(out.len() - at - 4).map_err(|_| FormatError::Encode {
        what: std::any::type_name::<K>().to_owned(),
        why: "it is longer than 4 GiB".to_owned(),
    })?;
    out[at..at + 4].copy_from_slice(&len.to_be_bytes());
    Ok(())
}

/// What the value of a map's row holds.
pub(super) fn decode_entry<M: MapKey, V: StateValue>(row: &[u8]) -> Result<(M, V), FormatError> {
    let (entry, value) = codec::decode_prefix(row)?;
    Ok((entry, codec::decode(value)?))
}

/// What of an index by row keys begins with `head`.
pub(super) fn between<'a, M>(
    sorted: &'a BTreeMap<Box<[u8]>, M>,
    head: &[u8],
) -> btree_map::Range<'a, Box<[u8]>, M> {
    sorted.range::<[u8], _>((Included(head), Excluded(behind(head).as_slice())))
}

/// The first row key that is behind all that begin with `head`.
pub(super) fn behind(head: &[u8]) -> Vec<u8> {
    let mut behind = head.to_vec();
    while let Some(last) = behind.pop() {
        if last < u8::MAX {
            behind.push(last + 1);
            break;
        }
    }
    behind
}

/// The head that a map's row key begins with.
pub(super) fn head_of(row_key: &[u8]) -> Result<&[u8], FormatError> {
    let len = row_key.get(2..).and_then(|rest| rest.first_chunk());
    let end = len.map(|len| (u32::from_be_bytes(*len) as usize).saturating_add(6));
    end.and_then(|end| row_key.get(..end))
        .ok_or_else(|| FormatError::corrupt(0, "a row of a map has no whole key"))
}

/// Makes of rows those that a state would have with one for each key: of the entries of a map one.
pub(super) struct WholeRows {
    of_entries: bool,
    head: Vec<u8>,
    len: u64,
    entries: Vec<u8>,
}

impl WholeRows {
    /// Of rows in a column of this name.
    pub(super) fn of(column: &str) -> Self {
        let of_entries = column.ends_with(ENTRIES);
        Self { of_entries, head: Vec::new(), len: 0, entries: Vec::new() }
    }

    /// Adds a row, of which the key is greater than those before.
    pub(super) fn add<E: From<FormatError>>(
        &mut self,
        key: &[u8],
        value: &[u8],
        mut take: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.of_entries {
            return take(key, value);
        }
        let head = head_of(key)?;
        if head != self.head {
            self.finish(&mut take)?;
            self.head.extend_from_slice(head);
        }
        self.len += 1;
        self.entries.extend_from_slice(value);
        Ok(())
    }

    /// There are no more.
    pub(super) fn finish<E: From<FormatError>>(
        &mut self,
        mut take: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let head = std::mem::take(&mut self.head);
        let entries = std::mem::take(&mut self.entries);
        let len = std::mem::take(&mut self.len);
        if len == 0 {
            return Ok(());
        }
        let key = [&head[..2], &head[6..]].concat();
        let mut map = Vec::with_capacity(entries.len() + 10);
        codec::encode(&len, &mut map)?;
        map.extend_from_slice(&entries);
        take(&key, &map)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn row(key: &str, entry: u64) -> Vec<u8> {
        let key = key.to_owned();
        let by = EntryRef { hash: stable_hash(&key), key: &key, entry: &entry };
        let mut row = Vec::new();
        EntryKey::encode(by.table_hash(), by, 1, &mut row).unwrap();
        row
    }

    #[test]
    fn rows_of_a_map_are_one_range_that_no_row_of_another_is_in() {
        let keys = ["", "a", "aa", "ab", "\0", "\u{ff}", "a\0", "\0\0\0\u{1}a", "b"];
        for key in keys {
            let mut head = Vec::new();
            encode_head(stable_hash(key), &key.to_owned(), 1, &mut head).unwrap();
            let range = head.clone()..behind(&head);
            for other in keys {
                for entry in [0, 1, 0x61, 256, u64::MAX] {
                    let row = row(other, entry);
                    assert_eq!(
                        range.contains(&row),
                        key == other,
                        "{entry} of {other:?} in {key:?}"
                    );
                    assert_eq!(head_of(&row).unwrap() == head, key == other);
                }
            }
        }
        assert_eq!(behind(&[1, 0xff, 0xff]), [2]);
    }

    #[test]
    fn rows_are_put_together_to_what_a_savepoint_has() {
        let mut maps: BTreeMap<String, BTreeMap<u64, String>> = BTreeMap::new();
        let mut rows = BTreeMap::new();
        for n in 0..3_000_u64 {
            let (key, value) = (format!("key {}", n % 40), format!("value {n}"));
            let mut bytes = Vec::new();
            let by = EntryRef { hash: stable_hash(&key), key: &key, entry: &n };
            EntryKey::encode_value(by, &value, &mut bytes).unwrap();
            rows.insert(row(&key, n), bytes);
            maps.entry(key).or_default().insert(n, value);
        }
        let mut whole = WholeRows::of(&column_of_entries("state"));
        let mut found = BTreeMap::new();
        let mut take = |key: &[u8], value: &[u8]| {
            let key: String = codec::decode(&key[2..])?;
            let mut expected = Vec::new();
            codec::encode(&maps[&key], &mut expected)?;
            assert_eq!(value, expected, "{key}");
            assert!(found.insert(key, ()).is_none());
            Ok::<_, FormatError>(())
        };
        for (key, value) in &rows {
            whole.add(key, value, &mut take).unwrap();
        }
        whole.finish(&mut take).unwrap();
        assert_eq!(found.len(), maps.len());
        let none = |_: &[u8], _: &[u8]| Ok::<_, FormatError>(());
        let cut = whole.add(&[0, 0, 0, 0, 0, 9, 1], &[], none);
        assert!(matches!(cut, Err(FormatError::Corrupt { .. })), "{cut:?}");
    }
}
