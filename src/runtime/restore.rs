//! What an attempt starts from: one manifest, read by every worker for itself, and of all parts that it names the blocks of the key
//! groups that the worker owns.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::format::manifest::{LayerRef, Manifest, PartPlace, Piece};
use crate::format::part::EntryBlock;
use crate::format::{FormatError, SectionHeader, codec};
use crate::ids::{Epoch, Name};
use crate::protocol::layers::{Layer, Selection};
use crate::runtime::migration::{self, Fit, Migrations, Misfit};
use crate::runtime::native_restore::{HeldNative, held_natives};
use crate::storage::Image;
use crate::storage::job_store::JobStoreError;

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
    /// A state is of another shape than the program's.
    #[error("checkpoint {epoch} does not fit: {state}: {}; {advice}", differences.join("; "))]
    Shape {
        /// The checkpoint.
        epoch: Epoch,
        /// The state, as `operator/state`.
        state: String,
        /// How they differ, each with the path of fields that leads there.
        differences: Vec<String>,
        /// What to do.
        advice: String,
    },
    /// A state is to be renamed that is not there, or to what is there already.
    #[error("the renames do not fit checkpoint {epoch}: {}", list(.problems))]
    Rename {
        /// The checkpoint.
        epoch: Epoch,
        /// What is wrong with each.
        problems: Vec<String>,
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

fn declared_identity(header: &SectionHeader) -> Identity<'_> {
    (&header.operator, &header.state)
}

fn text((operator, state): &Identity<'_>) -> String {
    format!("{operator}/{state}")
}

/// The checkpoint that an attempt starts from.
#[derive(Debug, Clone)]
pub(crate) struct Restored {
    image: Image,
    /// Whether later checkpoints may need files of this one: it is the job's own, and the job calls its states the same.
    builds_on: bool,
    /// Names of operators in the checkpoint, and what the program calls them.
    renamed: BTreeMap<Name, Name>,
}

impl Restored {
    /// The checkpoint, with the names that the program has for its operators. A rename that the checkpoint has seen
    /// already (the old name is not there, the new one is) changes nothing, so that a job can be started again by the same
    /// command.
    ///
    /// # Errors
    /// [`RestoreError::Rename`], with all that does not fit.
    pub(crate) fn new(image: Image, renamed: &BTreeMap<Name, Name>) -> Result<Self, RestoreError> {
        let parts = image.manifest().parts.iter();
        let sections = parts.flat_map(|part| &part.sections);
        let held: BTreeSet<&Name> = sections.map(|section| &section.header.operator).collect();
        let names = || held.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
        let problem = |(old, new): (&Name, &Name)| match (held.contains(old), held.contains(new)) {
            (true, true) => Some(format!("{old}={new}: it holds state of both")),
            (false, false) => {
                Some(format!("{old}={new}: it holds state of neither, but of {}", names()))
            }
            (true, false) | (false, true) => None,
        };
        let problems: Vec<String> = renamed.iter().filter_map(problem).collect();
        if problems.is_empty() {
            return Ok(Self { renamed: renamed.clone(), image, builds_on: false });
        }
        Err(RestoreError::Rename { epoch: image.manifest().epoch, problems })
    }

    /// The checkpoint as it is.
    pub(crate) fn unchanged(image: Image) -> Self {
        Self { image, renamed: BTreeMap::new(), builds_on: false }
    }

    /// Says that it is one of the job's own checkpoints, whose files later ones may need.
    pub(crate) fn owned(mut self) -> Self {
        self.builds_on = self.renamed.is_empty();
        self
    }

    /// The layers that parts of a worker that owns `groups` may build on.
    pub(crate) fn layers_of(&self, groups: &Range<u16>) -> Vec<LayerRef> {
        let Manifest { epoch, attempt, .. } = *self.manifest();
        let mut all = Vec::new();
        for part in self.manifest().parts.iter().filter(|_| self.builds_on) {
            if self.image.overlap(part.worker, groups).is_empty() {
                continue;
            }
            all.extend(part.layers.iter().cloned());
            if let PartPlace::Blob { path, bytes, crc32c } = &part.place
                && self.image.is_shared(Piece::Part(part))
            {
                let (worker, path, bytes, crc32c) = (part.worker, path.clone(), *bytes, *crc32c);
                all.push(LayerRef { epoch, worker, attempt, path, bytes, crc32c });
            }
        }
        all
    }

    /// As [`Image::read_table`], by the names that the program has. Layers may be built on if the checkpoint is the job's own.
    ///
    /// # Errors
    /// [`RestoreError::Unreadable`], naming the file; an error of `take` is taken for damage.
    pub(crate) fn read_table(
        &self,
        operator: &Name,
        state: &Name,
        groups: &Range<u16>,
        take: impl FnMut(&Selection<'_>, &EntryBlock<'_>) -> Result<(), FormatError>,
    ) -> Result<Option<Vec<Layer>>, RestoreError> {
        let wanted = |header: &SectionHeader| self.identity(header) == (operator, state);
        let epoch = self.manifest().epoch;
        let layers = self
            .image
            .read_table(wanted, groups, take)
            .map_err(|source| RestoreError::Unreadable { epoch, source })?;
        Ok(layers.filter(|_| self.builds_on))
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        self.image.manifest()
    }

    /// The operator's name in the program, and the state's.
    fn identity<'a>(&'a self, header: &'a SectionHeader) -> Identity<'a> {
        (self.renamed.get(&header.operator).unwrap_or(&header.operator), &header.state)
    }

    fn sections(&self) -> impl Iterator<Item = &SectionHeader> {
        let parts = self.manifest().parts.iter();
        parts.flat_map(|part| part.sections.iter().map(|section| &section.header))
    }

    /// What the checkpoint holds of a state that the program declares.
    pub(crate) fn held(&self, wanted: &SectionHeader) -> Option<&SectionHeader> {
        self.sections().find(|header| self.identity(header) == declared_identity(wanted))
    }

    /// What the checkpoint holds that the program does not declare.
    pub(crate) fn not_in<'a>(
        &'a self,
        declared: &'a [SectionHeader],
    ) -> impl Iterator<Item = &'a SectionHeader> {
        let wanted: BTreeSet<Identity<'_>> = declared.iter().map(declared_identity).collect();
        self.sections().filter(move |header| !wanted.contains(&self.identity(header)))
    }

    /// Checks that the checkpoint holds the same kind of state as the program declares, of a shape that it can read; says
    /// how. `None`: it does not hold the state.
    ///
    /// # Errors
    /// [`RestoreError::Type`], [`RestoreError::Shape`] or [`RestoreError::MaxParallelism`].
    pub(crate) fn check_type(
        &self,
        wanted: &SectionHeader,
        migrations: Option<&Migrations>,
        max_parallelism: u16,
    ) -> Result<Option<Fit>, RestoreError> {
        let epoch = self.manifest().epoch;
        let found = self.manifest().max_parallelism;
        if found != max_parallelism {
            return Err(RestoreError::MaxParallelism { epoch, found, wanted: max_parallelism });
        }
        let name = (&wanted.operator, &wanted.state);
        let same = |header: &&SectionHeader| self.identity(header) == name;
        let Some(found) = self.sections().find(same) else { return Ok(None) };
        let describe = |header: &SectionHeader| {
            format!("{} (version {})", header.type_name, header.type_version)
        };
        let fit = if found.kind == wanted.kind {
            migration::fit(found, wanted, migrations)
        } else {
            Err(Misfit::Names)
        };
        let state = text(&name);
        fit.map(Some).map_err(|misfit| match misfit {
            Misfit::Shape { differences, advice } => {
                RestoreError::Shape { epoch, state, differences, advice }
            }
            Misfit::Names => {
                let (found, wanted) = (describe(found), describe(wanted));
                RestoreError::Type { epoch, state, found, wanted }
            }
        })
    }

    /// The files of an operator that hold rows of `groups`.
    pub(crate) fn natives<'a>(
        &'a self,
        operator: &Name,
        groups: &Range<u16>,
    ) -> Vec<HeldNative<'a>> {
        held_natives(&self.image, groups, |held| self.renamed.get(held).unwrap_or(held) == operator)
    }

    /// Where it is.
    pub(crate) fn image(&self) -> &Image {
        &self.image
    }

    /// Whether later checkpoints may need files of this one.
    #[cfg(feature = "rocksdb")]
    pub(crate) fn builds_on(&self) -> bool {
        self.builds_on
    }

    /// Whether the checkpoint holds nothing of a state, or the state just as the program declares it.
    #[cfg(feature = "rocksdb")]
    pub(crate) fn holds_as_declared(&self, wanted: &SectionHeader) -> bool {
        self.held(wanted).is_none_or(|held| {
            let fit = migration::fit(held, wanted, None).ok().filter(|_| held.kind == wanted.kind);
            fit.is_some_and(|fit| fit.conversion.is_none() && fit.expires == wanted.shape.expires)
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
        let epoch = self.manifest().epoch;
        let held: BTreeSet<Identity<'_>> =
            self.sections().map(|header| self.identity(header)).collect();
        let wanted: BTreeSet<Identity<'_>> = declared.iter().map(declared_identity).collect();
        let states: Vec<String> = held.difference(&wanted).map(text).collect();
        if !states.is_empty() && !allow_dropped {
            return Err(RestoreError::Dropped { epoch, states });
        }
        let lasting = declared.iter().filter(|header| !header.kind.is_optional());
        let wanted: BTreeSet<Identity<'_>> = lasting.map(declared_identity).collect();
        let states: Vec<String> = wanted.difference(&held).map(text).collect();
        if !states.is_empty() && !allow_new {
            return Err(RestoreError::New { epoch, states });
        }
        Ok(())
    }

    /// Reads a section that keeps one event time, of every worker that has kept one.
    ///
    /// # Errors
    /// [`RestoreError::Unreadable`], naming the file.
    pub(crate) fn events(&self, header: &SectionHeader) -> Result<Vec<i64>, RestoreError> {
        let mut events = Vec::new();
        self.for_each_block(&header.operator, &header.state, 0..u16::MAX, |_, block| {
            codec::decode_entries(block.bytes, block.entries, |event| events.push(event))
        })?;
        Ok(events)
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
        let manifest = self.manifest();
        let epoch = manifest.epoch;
        let unreadable = |source| RestoreError::Unreadable { epoch, source };
        for part in manifest.parts.iter().filter(|part| from_part(part.worker)) {
            let wanted = (operator, state);
            if !part.sections.iter().any(|section| self.identity(&section.header) == wanted) {
                continue;
            }
            let mut reader = self.image.open_part(part).map_err(unreadable)?;
            let damaged = |error| unreadable(self.image.part_error(part, error));
            // `open_part` has checked that the part's sections are those of the manifest.
            let index = reader.sections().iter().position(|s| self.identity(&s.header) == wanted);
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
pub(crate) fn short(type_name: &str) -> String {
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
