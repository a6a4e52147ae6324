//! What an attempt starts from: one manifest, read by every worker for itself.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::format::manifest::Manifest;
use crate::format::part::EntryBlock;
use crate::format::{FormatError, SectionHeader, SectionKind};
use crate::ids::{Epoch, Name};
use crate::storage::job_store::{JobStore, JobStoreError};

/// A checkpoint cannot be restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// A file is damaged, is another one, or cannot be read.
    #[error(
        "checkpoint {epoch} cannot be restored; `highwater checkpoints verify` shows the extent, \
         `--restore <number>` takes an older one that is retained"
    )]
    Unreadable {
        /// The checkpoint.
        epoch: Epoch,
        /// Which file, where and how.
        source: JobStoreError,
    },
    /// The checkpoint holds state that the program has no operator for.
    #[error("checkpoint {epoch} holds state that this program does not have: {}; `--allow-dropped-state` drops it", list(.states))]
    Dropped {
        /// The checkpoint.
        epoch: Epoch,
        /// The states, as `operator/state`.
        states: Vec<String>,
    },
    /// The program has operators that the checkpoint knows nothing of.
    #[error("this program has state that checkpoint {epoch} does not hold: {}; `--allow-new-state` starts it empty", list(.states))]
    New {
        /// The checkpoint.
        epoch: Epoch,
        /// The states, as `operator/state`.
        states: Vec<String>,
    },
    /// A state is of another type than the program's.
    #[error(
        "state {state} of checkpoint {epoch} is of another type: it holds {found}, the program wants {wanted}"
    )]
    Type {
        /// The checkpoint.
        epoch: Epoch,
        /// The state, as `operator/state`.
        state: String,
        /// What the checkpoint holds.
        found: String,
        /// What the program declares.
        wanted: String,
    },
    /// The number of key groups differs.
    #[error(
        "checkpoint {epoch} has {found} key groups and the job is set to {wanted}; set --max-parallelism {found}: it is fixed for the life of the state"
    )]
    MaxParallelism {
        /// The checkpoint.
        epoch: Epoch,
        /// Its number.
        found: u16,
        /// The program's.
        wanted: u16,
    },
}

fn list(states: &[String]) -> String {
    states.join(", ")
}

/// The operator's name and the state's.
type Identity<'a> = (&'a Name, &'a Name);

fn identity(header: &SectionHeader) -> Identity<'_> {
    (&header.operator, &header.state)
}

fn text((operator, state): &Identity<'_>) -> String {
    format!("{operator}/{state}")
}

/// The checkpoint that an attempt starts from.
#[derive(Debug, Clone)]
pub(crate) struct Restored {
    pub(crate) manifest: Manifest,
    /// Where its parts are: the job's own store, or that of the path the user gave.
    pub(crate) store: JobStore,
}

impl Restored {
    fn sections(&self) -> impl Iterator<Item = &SectionHeader> {
        let parts = self.manifest.parts.iter();
        parts.flat_map(|part| part.sections.iter().map(|section| &section.header))
    }

    /// Checks that the checkpoint holds the same kind of state as the program declares; says whether it holds it.
    ///
    /// # Errors
    /// [`RestoreError::Type`] or [`RestoreError::MaxParallelism`].
    pub(crate) fn check_type(
        &self,
        wanted: &SectionHeader,
        max_parallelism: u16,
    ) -> Result<bool, RestoreError> {
        let epoch = self.manifest.epoch;
        let found = self.manifest.max_parallelism;
        if found != max_parallelism {
            return Err(RestoreError::MaxParallelism { epoch, found, wanted: max_parallelism });
        }
        let same = |header: &&SectionHeader| identity(header) == identity(wanted);
        let Some(found) = self.sections().find(same) else { return Ok(false) };
        let describe = |header: &SectionHeader| {
            format!("{} (version {})", header.type_name, header.type_version)
        };
        if short(&found.type_name) != short(&wanted.type_name)
            || found.type_version != wanted.type_version
            || found.kind != wanted.kind
        {
            return Err(RestoreError::Type {
                epoch,
                state: text(&identity(wanted)),
                found: describe(found),
                wanted: describe(wanted),
            });
        }
        Ok(true)
    }

    /// Whether the checkpoint holds a state of just this kind and these types.
    pub(crate) fn holds(&self, wanted: &SectionHeader) -> bool {
        self.sections().any(|header| {
            identity(header) == identity(wanted)
                && header.kind == wanted.kind
                && short(&header.type_name) == short(&wanted.type_name)
        })
    }

    /// Checks that the checkpoint holds what the program declares and nothing else, unless that is allowed.
    ///
    /// # Errors
    /// [`RestoreError::Dropped`] or [`RestoreError::New`], with the list.
    pub(crate) fn check_set(
        &self,
        declared: &[SectionHeader],
        allow_dropped: bool,
        allow_new: bool,
    ) -> Result<(), RestoreError> {
        let epoch = self.manifest.epoch;
        let held: BTreeSet<Identity<'_>> = self.sections().map(identity).collect();
        let wanted: BTreeSet<Identity<'_>> = declared.iter().map(identity).collect();
        let states: Vec<String> = held.difference(&wanted).map(text).collect();
        if !states.is_empty() && !allow_dropped {
            return Err(RestoreError::Dropped { epoch, states });
        }
        // A channel has state only if a barrier has overtaken something.
        let lasting = declared.iter().filter(|header| header.kind != SectionKind::ChannelLog);
        let wanted: BTreeSet<Identity<'_>> = lasting.map(identity).collect();
        let states: Vec<String> = wanted.difference(&held).map(text).collect();
        if !states.is_empty() && !allow_new {
            return Err(RestoreError::New { epoch, states });
        }
        Ok(())
    }

    /// Reads every block of one state that holds entries of `groups`, over all parts, in the order of the parts. `take`
    /// gets the worker that wrote the part.
    ///
    /// # Errors
    /// [`RestoreError::Unreadable`], naming the file; an error of `take` is taken for damage.
    pub(crate) fn for_each_block(
        &self,
        operator: &Name,
        state: &Name,
        groups: Range<u16>,
        take: impl FnMut(u32, &EntryBlock<'_>) -> Result<(), FormatError>,
    ) -> Result<(), RestoreError> {
        self.for_each_block_of(operator, state, groups, |_| true, take)
    }

    /// As [`Restored::for_each_block`], of the parts of some workers only.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn for_each_block_of(
        &self,
        operator: &Name,
        state: &Name,
        groups: Range<u16>,
        from_part: impl Fn(u32) -> bool,
        mut take: impl FnMut(u32, &EntryBlock<'_>) -> Result<(), FormatError>,
    ) -> Result<(), RestoreError> {
        let epoch = self.manifest.epoch;
        let unreadable = |source| RestoreError::Unreadable { epoch, source };
        for part in self.manifest.parts.iter().filter(|part| from_part(part.worker)) {
            let wanted = (operator, state);
            if !part.sections.iter().any(|section| identity(&section.header) == wanted) {
                continue;
            }
            let mut reader = self.store.open_part(&self.manifest, part).map_err(unreadable)?;
            let damaged = |error| unreadable(self.store.part_error(epoch, part, error));
            // `open_part` has checked that the part's sections are those of the manifest.
            let index = reader.sections().iter().position(|s| identity(&s.header) == wanted);
            let Some(index) = index else { continue };
            let mut blocks = reader.blocks(index, groups.clone());
            while let Some(block) = blocks.next().map_err(damaged)? {
                take(part.worker, &block).map_err(|error| damaged(error.moved_by(block.offset)))?;
            }
        }
        Ok(())
    }
}

/// A type's name without module paths: those change when a program is tidied up.
fn short(type_name: &str) -> String {
    let mut out = String::new();
    let mut word_start = 0;
    for c in type_name.chars() {
        if c == ':' {
            out.truncate(word_start);
        } else {
            out.push(c);
            if !(c.is_alphanumeric() || c == '_') {
                word_start = out.len();
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn moving_a_type_to_another_module_does_not_change_its_name() {
        assert_eq!(short("alloc::string::String -> a::b::Count<c::D>"), "String -> Count<D>");
        assert_eq!(short("(u64, my_mod::X)"), "(u64, X)");
    }
}
