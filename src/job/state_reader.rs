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

use serde::de::DeserializeOwned;

use crate::format::manifest::{Manifest, PartRef};
use crate::format::shape::EntryShape;
use crate::format::{FormatError, SectionHeader, SectionKind, codec};
use crate::runtime::restore::short;
use crate::runtime::shapes::shape_of;
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

    /// Gives every key and value of a keyed state to `take`; returns their number. The order is that of the workers that
    /// wrote them, and of key groups within. Holds one block (about 1 MiB, or one entry) in memory.
    ///
    /// `K` and `V` must have the shapes of the types that the program declares; what they are called does not count, unless one
    /// cannot be seen through. The version of the type is in the manifest, and not checked.
    ///
    /// # Errors
    /// [`StateError`]. `take` has then been given what was read before.
    pub fn for_each<K: DeserializeOwned + 'static, V: DeserializeOwned + 'static>(
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
        let mut entries = 0;
        for part in &self.manifest().parts {
            if !part.sections.iter().any(|section| is_it(&section.header)) {
                continue;
            }
            let mut reader = self.image.open_part(part)?;
            // `open_part` has checked that the part's sections are those of the manifest.
            let index = reader.sections().iter().position(|section| is_it(&section.header));
            let Some(index) = index else { continue };
            let mut blocks = reader.blocks(index, 0..u16::MAX);
            let failed = |error| self.failed(part, error);
            while let Some(block) = blocks.next().map_err(failed)? {
                codec::decode_entries(block.bytes, block.entries, |(key, value)| take(key, value))
                    .map_err(|error| self.failed(part, error.moved_by(block.offset)))?;
                entries += u64::from(block.entries);
            }
        }
        Ok(entries)
    }

    fn failed(&self, part: &PartRef, error: FormatError) -> StateError {
        StateError::Unreadable(self.image.part_error(part, error))
    }

    fn check<K: DeserializeOwned + 'static, V: DeserializeOwned + 'static>(
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
