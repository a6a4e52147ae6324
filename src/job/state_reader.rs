//! Reads the state of a checkpoint or a savepoint by its types, without the job.
//!
//! ```no_run
//! use highwater::state_reader::StateReader;
//!
//! let reader = StateReader::open("savepoints/monday")?;
//! let mut total = 0;
//! reader.for_each("count", "count", |_key: u64, count: u64| total += count)?;
//! # Ok::<(), highwater::state_reader::StateError>(())
//! ```

use std::any::type_name;
use std::path::Path;

use crate::format::manifest::{Manifest, PartRef};
use crate::format::shape::EntryShape;
use crate::format::{SectionHeader, SectionKind, codec};
use crate::runtime::native_restore::{NativeReaders, held_natives};
use crate::runtime::restore::short;
use crate::runtime::shapes::shape_of;
use crate::state::heap::HeapBackend;
use crate::state::{Key, StateBackend, StateValue, ValueTable};
use crate::storage::Image;
use crate::storage::job_store::JobStoreError;

/// State cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// A file is damaged, is another one, or is not there.
    #[error(transparent)]
    Unreadable(#[from] JobStoreError),
    /// There is no such keyed state.
    #[error("{location} holds no keyed state {state}; it holds: {held}")]
    NoSuchState {
        /// The checkpoint or savepoint.
        location: String,
        /// The state, as `operator/state`.
        state: String,
        /// The keyed states that are there.
        held: String,
    },
    /// The state is of other types.
    #[error("state {state} holds {found}, not {wanted}")]
    Type {
        /// The state, as `operator/state`.
        state: String,
        /// The types of its keys and values.
        found: String,
        /// Those asked for.
        wanted: String,
    },
}

/// A checkpoint or a savepoint whose state is read.
#[derive(Clone, Debug)]
pub struct StateReader {
    image: Image,
}

impl StateReader {
    /// Opens the directory of a checkpoint, of a copy of one, or of a savepoint. Reads its manifest.
    ///
    /// # Errors
    /// [`StateError::Unreadable`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StateError> {
        Ok(Self { image: Image::open(path.as_ref())? })
    }

    /// What it is made of: its parts, and their sections with operators, states, types, entries and bytes.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        self.image.manifest()
    }

    /// Gives every key and value of a keyed state to `take`; returns their number. The order is that of key groups,
    /// about. Holds one block (about 1 MiB, or one entry) in memory; of a checkpoint in layers some key groups, about 16 MiB or
    /// one.
    ///
    /// `K` and `V` must have the shapes of the types that the program declares; what they are called does not count, unless one
    /// cannot be seen through. The version of the type is in the manifest, and not checked.
    ///
    /// # Errors
    /// [`StateError`]. `take` has then been given what was read before.
    pub fn for_each<K: Key, V: StateValue>(
        &self,
        operator: &str,
        state: &str,
        mut take: impl FnMut(K, V),
    ) -> Result<u64, StateError> {
        let is_it = |header: &SectionHeader| {
            header.kind == SectionKind::KeyedValue
                && header.operator.as_str() == operator
                && header.state.as_str() == state
        };
        self.check::<K, V>(&format!("{operator}/{state}"), is_it)?;
        let max_parallelism = self.manifest().max_parallelism;
        let groups = 0..max_parallelism;
        let layered = |part: &PartRef| {
            !part.layers.is_empty() && part.sections.iter().any(|section| is_it(&section.header))
        };
        let mut entries = 0;
        let held = held_natives(&self.image, &groups, |held| held.as_str() == operator);
        if let Some(files) = NativeReaders::open(&self.image, &held)? {
            files.for_each_block(state, &groups, |_, block| {
                entries += u64::from(block.entries);
                codec::decode_entries(block.bytes, block.entries, |(key, value)| take(key, value))
            })?;
        }
        if !self.manifest().parts.iter().any(layered) {
            self.image.read_table(is_it, &groups, |_, block| {
                entries += u64::from(block.entries);
                codec::decode_entries(block.bytes, block.entries, |(key, value)| take(key, value))
            })?;
            return Ok(entries);
        }
        // A later layer may say something else of a key: so some key groups at a time are put together in memory.
        let at_once = self.groups_at_once();
        for first in groups.clone().step_by(usize::from(at_once)) {
            let groups = first..first.saturating_add(at_once).min(groups.end);
            let mut table = HeapBackend.value_table::<K, V>(max_parallelism, &groups);
            self.image.read_table(is_it, &groups, |selection, block| {
                table.restore_block(selection, block.entries, block.bytes)
            })?;
            entries += table.len() as u64;
            table.for_each(|key: &K, value: &V| take(key.clone(), value.clone()));
        }
        Ok(entries)
    }

    /// How many key groups hold about sixteen MiB.
    fn groups_at_once(&self) -> u16 {
        let parts = self.manifest().parts.iter();
        let layers = parts.flat_map(|part| &part.layers).map(|layer| layer.bytes).sum::<u64>();
        let groups = self.manifest().max_parallelism;
        let at_once = u64::from(groups) * (16 << 20) / layers.max(1);
        at_once.clamp(1, u64::from(groups)) as u16
    }

    fn check<K: Key, V: StateValue>(
        &self,
        name: &str,
        is_it: impl Fn(&SectionHeader) -> bool,
    ) -> Result<(), StateError> {
        let headers = || {
            let sections = self.manifest().parts.iter().flat_map(|part| &part.sections);
            sections.map(|section| &section.header)
        };
        let state = name.to_owned();
        let Some(header) = headers().find(|header| is_it(header)) else {
            let keyed = headers().filter(|header| header.kind == SectionKind::KeyedValue);
            let held: std::collections::BTreeSet<String> =
                keyed.map(|header| format!("{}/{}", header.operator, header.state)).collect();
            let held = held.into_iter().collect::<Vec<_>>().join(", ");
            return Err(StateError::NoSuchState { location: self.image.location(), state, held });
        };
        let wanted = format!("{} -> {}", type_name::<K>(), type_name::<V>());
        let shape = EntryShape { key: shape_of::<K>(), value: shape_of::<V>(), expires: false };
        let is_same = match (shape.fingerprint(), header.shape.fingerprint()) {
            (Some(wanted), Some(found)) => wanted == found && !header.shape.expires,
            // Types that cannot be seen through go by their names.
            _ => short(&wanted) == short(&header.type_name),
        };
        if !is_same {
            return Err(StateError::Type { state, found: header.type_name.clone(), wanted });
        }
        Ok(())
    }
}
