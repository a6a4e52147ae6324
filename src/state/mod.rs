//! Keyed state: the backends behind one trait.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::format::{ENTRY_PRESENT, ENTRY_REMOVED, Extent, FormatError, SectionOutput};
use crate::ids::Epoch;
use crate::protocol::key_groups::key_group;
use crate::protocol::layers::Layer;
pub use crate::protocol::layers::Selection;
pub use descending::Descending;

#[cfg(any(test, feature = "testing"))]
pub mod conformance;
mod descending;
mod fields;
pub mod hash;
pub mod heap;
mod pages;
pub(crate) mod replay;
#[cfg(feature = "rocksdb")]
pub mod rocks;

/// Bounds of a key. Implemented for every type that has them.
pub trait Key:
    Clone + Eq + Send + serde::Serialize + serde::de::DeserializeOwned + 'static
{
}
impl<T: Clone + Eq + Send + serde::Serialize + serde::de::DeserializeOwned + 'static> Key for T {}

/// Bounds of a value in state. Implemented for every type that has them.
pub trait StateValue:
    Clone + Send + serde::Serialize + serde::de::DeserializeOwned + 'static
{
}
impl<T: Clone + Send + serde::Serialize + serde::de::DeserializeOwned + 'static> StateValue for T {}

/// Bounds of a key inside a map state. Implemented for every type that has them.
pub trait MapKey: Key + Ord {}
impl<M: Key + Ord> MapKey for M {}

/// A frozen state: the asynchronous part of a snapshot. It may be written on any thread.
pub trait Frozen: Send {
    /// Writes all entries, in ascending key-group order, as they were when the state was frozen.
    ///
    /// # Errors
    /// [`FormatError`] of an entry or of the medium.
    fn write(self: Box<Self>, out: &mut dyn SectionOutput) -> Result<(), FormatError>;
}

/// What a snapshot of a state is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotForm {
    /// Everything, and no later snapshot builds on it.
    Plain,
    /// A layer: what has changed since the last snapshot that is part of a complete checkpoint, or more.
    Layer {
        /// The checkpoint.
        epoch: Epoch,
        /// The newest checkpoint that is complete, of those that this state has been frozen for as a layer.
        confirmed: Option<Epoch>,
        /// Everything; later ones may build on it.
        whole: bool,
        /// A state that is smaller is frozen as [`SnapshotForm::Plain`]. Units: bytes, estimated.
        bytes_min: usize,
    },
}

impl SnapshotForm {
    /// Whether a backend may keep the states in files of its own, which are put beside the part.
    #[must_use]
    pub fn may_be_files(self) -> bool {
        matches!(self, Self::Layer { whole: false, .. })
    }
}

/// A snapshot of what a backend keeps in files of its own.
pub trait NativeSnapshot: Send {
    /// Waits until the files are made. `None`: there are none; the frozen tables write their entries.
    ///
    /// # Errors
    /// [`FormatError`] if they could not be made.
    fn wait(self: Box<Self>) -> Result<Option<NativeFiles>, FormatError>;
}

/// Files of a backend on the local disk.
pub struct NativeFiles {
    /// Whose files they are.
    pub backend: &'static str,
    /// The version of their format.
    pub version: u16,
    /// Where they are.
    pub directory: std::path::PathBuf,
    /// The files.
    pub files: Vec<LocalFile>,
    /// They are there as long as this is.
    pub keep: std::sync::Arc<dyn std::any::Any + Send + Sync>,
}

impl std::fmt::Debug for NativeFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { backend, directory, files, .. } = self;
        f.debug_struct("NativeFiles")
            .field("backend", backend)
            .field("directory", directory)
            .field("files", files)
            .finish_non_exhaustive()
    }
}

/// A file of a [`NativeFiles`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalFile {
    /// Its name in the directory.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Whether a file of this name has the same content in all snapshots of the instance.
    pub lasts: bool,
}

/// A frozen state, and what a snapshot of it needs besides.
pub struct FrozenState {
    /// What is to be written.
    pub content: Box<dyn Frozen>,
    /// How much of the state that is.
    pub extent: Extent,
    /// Checkpoints whose parts hold the rest.
    pub needs: BTreeSet<Epoch>,
    /// Whether snapshots of later checkpoints may need this one.
    pub layer: bool,
}

impl std::fmt::Debug for FrozenState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrozenState")
            .field("extent", &self.extent)
            .field("needs", &self.needs)
            .field("layer", &self.layer)
            .finish_non_exhaustive()
    }
}

/// One value per key: one keyed state of one operator on one worker.
///
/// `hash` is always [`hash::stable_hash`] of the key. Shape of the table: every key belongs to the key groups
/// that this worker owns.
pub trait ValueTable<K: Key, V: StateValue>: 'static {
    /// Brings what the next operations on keys with these hashes need near the processor. Changes nothing.
    fn prefetch(&self, hashes: &[u64]);

    /// The value of a key. (`&mut` because a page that a snapshot shares is unshared before it is read.)
    fn get(&mut self, hash: u64, key: &K) -> Option<&V>;

    /// The value of a key, to be changed.
    fn get_mut(&mut self, hash: u64, key: &K) -> Option<&mut V>;

    /// The value of a key, to be changed, after making it with `value` if the key has none.
    fn get_or_insert_with(&mut self, hash: u64, key: &K, value: &mut dyn FnMut() -> V) -> &mut V;

    /// Sets the value of a key, and returns the one before.
    fn insert(&mut self, hash: u64, key: &K, value: V) -> Option<V>;

    /// Removes a key, and returns its value.
    fn remove(&mut self, hash: u64, key: &K) -> Option<V>;

    /// The number of keys.
    fn len(&self) -> usize;

    /// Whether there is no key.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Freezes the state as it is now. Cost: microseconds to a few milliseconds, whatever the state's size;
    /// entries changed later are copied first, page by page. May be called while an earlier one is being written.
    fn freeze(&mut self, form: SnapshotForm) -> FrozenState;

    /// Gives all keys and values to `visit`, in no order.
    fn for_each(&mut self, visit: impl FnMut(&K, &V));

    /// The state is what these layers of a checkpoint hold, nothing else: later snapshots may build on them.
    fn restored(&mut self, layers: Vec<Layer>);

    /// Looks at the next `entries` entries, from where the last sweep ended, and removes those that are `expired`. Returns
    /// their number. Sweeps that together look at twice as many entries as there are have looked at each that was there
    /// all along, unless a snapshot was being written: what it shares is passed over. A backend that cleans up in its own
    /// time passes over what is not in memory; see [`ValueTable::expired_until`].
    fn sweep(
        &mut self,
        position: &mut SweepPosition,
        entries: usize,
        expired: impl FnMut(&V) -> bool,
    ) -> usize;

    /// Values have expired that were last updated at `written` or earlier: a backend that cleans up in its own time may drop
    /// them. Only of tables whose values begin with the time of their last update. Units: milliseconds since 1970.
    fn expired_until(&mut self, written: i64) {
        _ = written;
    }

    /// Adds the `entries` entries that `bytes` holds, as [`Frozen::write`] wrote them, that `selection` selects. Others
    /// are decoded and dropped. An entry of changes takes the place of one that is there.
    ///
    /// # Errors
    /// [`FormatError::Corrupt`] (offset: in `bytes`) if they do not decode, if bytes are left over, or if a key
    /// is there twice.
    fn restore_block(
        &mut self,
        selection: &Selection<'_>,
        entries: u32,
        bytes: &[u8],
    ) -> Result<(), FormatError> {
        self.restore_block_as(selection, entries, bytes, |value: V| Some(value))
    }

    /// As [`ValueTable::restore_block`], of a table that held values of another type: each is kept as what `convert` makes
    /// of it, or dropped.
    ///
    /// # Errors
    /// As there. A key that is there twice is noticed if it was kept before.
    fn restore_block_as<W: serde::de::DeserializeOwned>(
        &mut self,
        selection: &Selection<'_>,
        entries: u32,
        bytes: &[u8],
        convert: impl FnMut(W) -> Option<V>,
    ) -> Result<(), FormatError>;
}

/// Decodes the entries of a block as [`ValueTable::restore_block_as`] says, and gives each that counts to `put`, with its value, or without
/// one if the key is to be removed. `put` says whether the key was there.
///
/// # Errors
/// As there.
fn restore_entries<K: Key, W: serde::de::DeserializeOwned, V>(
    selection: &Selection<'_>,
    max_parallelism: u16,
    entries: u32,
    bytes: &[u8],
    mut convert: impl FnMut(W) -> Option<V>,
    mut put: impl FnMut(u64, &K, Option<V>) -> bool,
) -> Result<(), FormatError> {
    let corrupt = |rest: &[u8], why| FormatError::corrupt((bytes.len() - rest.len()) as u64, why);
    // At most one key and value can be encoded in no bytes at all, so more entries than this
    // are damage.
    if entries as usize > bytes.len() + 1 {
        let why = format!("{entries} entries cannot be in {} bytes", bytes.len());
        return Err(corrupt(bytes, why));
    }
    let mut rest = bytes;
    for entry in 0..entries {
        rest = restore_entry(selection, max_parallelism, rest, &mut convert, &mut put).map_err(
            |why| corrupt(rest, format!("entry {entry} of {entries} in the block: {why}")),
        )?;
    }
    if !rest.is_empty() {
        let why = format!("{} bytes are left after {entries} entries", rest.len());
        return Err(corrupt(rest, why));
    }
    Ok(())
}

/// Decodes one entry, and returns the bytes behind it.
fn restore_entry<'a, K: Key, W: serde::de::DeserializeOwned, V>(
    selection: &Selection<'_>,
    max_parallelism: u16,
    bytes: &'a [u8],
    convert: &mut impl FnMut(W) -> Option<V>,
    put: &mut impl FnMut(u64, &K, Option<V>) -> bool,
) -> Result<&'a [u8], String> {
    let (tag, bytes) = if selection.changes {
        let (tag, rest) = bytes.split_first().ok_or("it ends before the entry")?;
        (*tag, rest)
    } else {
        (ENTRY_PRESENT, bytes)
    };
    let (key, rest) = postcard::take_from_bytes::<K>(bytes)
        .map_err(|error| format!("the key does not decode: {error}"))?;
    let hash = hash::stable_hash(&key);
    let counts = selection.groups.contains(&key_group(hash, max_parallelism).0)
        && !selection.superseded.contains(hash);
    let (value, rest) = match tag {
        ENTRY_REMOVED => (None, rest),
        ENTRY_PRESENT => {
            let (value, rest) = postcard::take_from_bytes::<W>(rest)
                .map_err(|error| format!("the value does not decode: {error}"))?;
            (counts.then(|| convert(value)).flatten(), rest)
        }
        other => return Err(format!("an entry begins with {other}")),
    };
    if counts && put(hash, &key, value) && !selection.changes {
        return Err("the key is there twice".to_owned());
    }
    Ok(rest)
}

/// Where the next sweep of a table begins; what it means is up to the backend. One for each table.
#[derive(Clone, Copy, Debug, Default)]
pub struct SweepPosition {
    page: usize,
    entry: usize,
}

/// A way to keep keyed state. The choice never touches the program.
pub trait StateBackend {
    /// The table of one value state.
    type Table<K: Key, V: StateValue>: ValueTable<K, V>;

    /// Makes an empty table for one state of one operator on one worker, which owns the key groups `groups`.
    fn value_table<K: Key, V: StateValue>(
        &self,
        max_parallelism: u16,
        groups: &Range<u16>,
    ) -> Self::Table<K, V>;

    /// Makes the table of the state `name` of an operator. A backend that keeps state by its name may have some already.
    fn named_table<K: Key, V: StateValue>(
        &self,
        name: &str,
        max_parallelism: u16,
        groups: &Range<u16>,
    ) -> Self::Table<K, V> {
        _ = name;
        self.value_table(max_parallelism, groups)
    }
}

/// The backend of a job: one of those it was compiled with.
///
/// An enum, and not a trait object, so that the path of a record is compiled as one piece: a virtual call
/// costs as much as a lookup that hits the cache.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Backend {
    /// In memory.
    Heap(heap::HeapBackend),
    /// In an instance of RocksDB.
    #[cfg(feature = "rocksdb")]
    Rocks(rocks::Instance),
}

impl Backend {
    /// Runs `freeze`, which freezes all tables of this backend: they are one snapshot. Of a form that lets the backend keep
    /// them in files of its own, those are returned; then the frozen tables may have nothing to write.
    pub fn freeze_together<R>(
        &self,
        form: SnapshotForm,
        freeze: impl FnOnce() -> R,
    ) -> (R, Option<Box<dyn NativeSnapshot>>) {
        match self {
            Self::Heap(_) => {
                _ = form;
                (freeze(), None)
            }
            #[cfg(feature = "rocksdb")]
            Self::Rocks(instance) => {
                instance.begin_snapshot();
                let frozen = freeze();
                let snapshot = instance.end_snapshot();
                let native: Box<dyn NativeSnapshot> = Box::new(snapshot);
                (frozen, form.may_be_files().then_some(native))
            }
        }
    }
}

impl Default for Backend {
    fn default() -> Self {
        Self::Heap(heap::HeapBackend)
    }
}

impl StateBackend for Backend {
    type Table<K: Key, V: StateValue> = BackendTable<K, V>;

    fn value_table<K: Key, V: StateValue>(
        &self,
        max_parallelism: u16,
        groups: &Range<u16>,
    ) -> BackendTable<K, V> {
        match self {
            Self::Heap(heap) => BackendTable::Heap(heap.value_table(max_parallelism, groups)),
            #[cfg(feature = "rocksdb")]
            Self::Rocks(instance) => {
                BackendTable::Rocks(instance.value_table(max_parallelism, groups))
            }
        }
    }

    fn named_table<K: Key, V: StateValue>(
        &self,
        name: &str,
        max_parallelism: u16,
        groups: &Range<u16>,
    ) -> BackendTable<K, V> {
        match self {
            Self::Heap(heap) => BackendTable::Heap(heap.named_table(name, max_parallelism, groups)),
            #[cfg(feature = "rocksdb")]
            Self::Rocks(instance) => {
                BackendTable::Rocks(instance.named_table(name, max_parallelism, groups))
            }
        }
    }
}

/// A table of the job's [`Backend`].
#[non_exhaustive]
pub enum BackendTable<K: Key, V: StateValue> {
    /// In memory.
    Heap(heap::Table<K, V>),
    /// In RocksDB.
    #[cfg(feature = "rocksdb")]
    Rocks(rocks::Table<K, V>),
}

impl<K: Key, V: StateValue> std::fmt::Debug for BackendTable<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Heap(_) => f.write_str("BackendTable::Heap"),
            #[cfg(feature = "rocksdb")]
            Self::Rocks(_) => f.write_str("BackendTable::Rocks"),
        }
    }
}

impl<K: Key, T: StateValue> BackendTable<K, Vec<T>> {
    /// Adds an element at the end of a key's list, without a look at the list where the backend can do that.
    #[inline]
    pub fn append(&mut self, hash: u64, key: &K, element: T) {
        match self {
            Self::Heap(table) => {
                table.get_or_insert_with(hash, key, &mut || Vec::with_capacity(1)).push(element);
            }
            #[cfg(feature = "rocksdb")]
            Self::Rocks(table) => table.append(hash, key, element),
        }
    }
}

impl<K: Key, V: StateValue> ValueTable<K, V> for BackendTable<K, V> {
    #[inline]
    fn prefetch(&self, hashes: &[u64]) {
        match self {
            Self::Heap(table) => table.prefetch(hashes),
            #[cfg(feature = "rocksdb")]
            Self::Rocks(table) => table.prefetch(hashes),
        }
    }

    #[inline]
    fn get(&mut self, hash: u64, key: &K) -> Option<&V> {
        match self {
            Self::Heap(table) => table.get(hash, key),
            #[cfg(feature = "rocksdb")]
            Self::Rocks(table) => table.get(hash, key),
        }
    }

    #[inline]
    fn get_mut(&mut self, hash: u64, key: &K) -> Option<&mut V> {
        match self {
            Self::Heap(table) => table.get_mut(hash, key),
            #[cfg(feature = "rocksdb")]
            Self::Rocks(table) => table.get_mut(hash, key),
        }
    }

    #[inline]
    fn get_or_insert_with(&mut self, hash: u64, key: &K, value: &mut dyn FnMut() -> V) -> &mut V {
        match self {
            Self::Heap(table) => table.get_or_insert_with(hash, key, value),
            #[cfg(feature = "rocksdb")]
            Self::Rocks(table) => table.get_or_insert_with(hash, key, value),
        }
    }

    #[inline]
    fn insert(&mut self, hash: u64, key: &K, value: V) -> Option<V> {
        match self {
            Self::Heap(table) => table.insert(hash, key, value),
            #[cfg(feature = "rocksdb")]
            Self::Rocks(table) => table.insert(hash, key, value),
        }
    }

    #[inline]
    fn remove(&mut self, hash: u64, key: &K) -> Option<V> {
        match self {
            Self::Heap(table) => table.remove(hash, key),
            #[cfg(feature = "rocksdb")]
            Self::Rocks(table) => table.remove(hash, key),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Heap(table) => table.len(),
            #[cfg(feature = "rocksdb")]
            Self::Rocks(table) => table.len(),
        }
    }

    fn freeze(&mut self, form: SnapshotForm) -> FrozenState {
        match self {
            Self::Heap(table) => table.freeze(form),
            #[cfg(feature = "rocksdb")]
            Self::Rocks(table) => table.freeze(form),
        }
    }

    fn for_each(&mut self, visit: impl FnMut(&K, &V)) {
        match self {
            Self::Heap(table) => table.for_each(visit),
            #[cfg(feature = "rocksdb")]
            Self::Rocks(table) => table.for_each(visit),
        }
    }

    fn restored(&mut self, layers: Vec<Layer>) {
        match self {
            Self::Heap(table) => table.restored(layers),
            #[cfg(feature = "rocksdb")]
            Self::Rocks(table) => table.restored(layers),
        }
    }

    fn sweep(
        &mut self,
        position: &mut SweepPosition,
        entries: usize,
        expired: impl FnMut(&V) -> bool,
    ) -> usize {
        match self {
            Self::Heap(table) => table.sweep(position, entries, expired),
            #[cfg(feature = "rocksdb")]
            Self::Rocks(table) => table.sweep(position, entries, expired),
        }
    }

    fn expired_until(&mut self, written: i64) {
        match self {
            Self::Heap(table) => table.expired_until(written),
            #[cfg(feature = "rocksdb")]
            Self::Rocks(table) => table.expired_until(written),
        }
    }

    fn restore_block_as<W: serde::de::DeserializeOwned>(
        &mut self,
        selection: &Selection<'_>,
        entries: u32,
        bytes: &[u8],
        convert: impl FnMut(W) -> Option<V>,
    ) -> Result<(), FormatError> {
        match self {
            Self::Heap(table) => table.restore_block_as(selection, entries, bytes, convert),
            #[cfg(feature = "rocksdb")]
            Self::Rocks(table) => table.restore_block_as(selection, entries, bytes, convert),
        }
    }
}
