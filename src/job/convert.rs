//! Another number of key groups, offline: rewrites a savepoint or a checkpoint into a new savepoint.
//!
//! The number of key groups is fixed for the life of a state, because every file of it is sorted by key group. This reads all
//! of it, computes the group of every key anew, and writes a savepoint that a job with another `max_parallelism` restores.
//!
//! # How a group is found
//! A key's group is a function of its hash, and the hash one of the calls that its `Serialize` makes
//! ([`stable_hash`]). So the key has to be read: by its types, if they are given, else by the shapes that the savepoint records.
//!
//! Of every key it is checked that its hash leads to the group that it was in: a wrong type is an error that says so, not a key
//! that nobody finds any more. (The more groups there were the sooner it is noticed; with one there is nothing to compare.)
//!
//! # Order and memory
//! Groups are in the order of hashes whatever their number, so entries stay nearly where they are. A section is read in
//! slices of the range of hashes, each of about so many bytes as a conversion may keep in memory, and each slice is sorted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::format::manifest::{ManifestKind, PartPlace, PartRef};
use crate::format::part::{PartHeader, PartReader, PartWriter, Section, SectionIndex};
use crate::format::record::SavepointInfo;
use crate::format::{Extent, FormatError, SectionHeader, SectionKind, SectionOutput, codec};
use crate::ids::KeyGroup;
use crate::protocol::key_groups::{MAX_PARALLELISM_LIMIT, key_group};
use crate::runtime::restore::short;
use crate::state::Key;
use crate::state::hash::stable_hash;
use crate::state::replay::{hash_of_entry, is_readable};
use crate::storage::Image;
use crate::storage::job_store::{JobStoreError, PartBytes};
use crate::storage::savepoint::{Draft, SavepointError};

/// Units: bytes of entries that a conversion keeps in memory, unless told otherwise.
const SLICE_BYTES: u64 = 64 << 20;

/// A savepoint cannot be converted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// A file is damaged, is another one, or is not there.
    #[error(transparent)]
    Unreadable(#[from] JobStoreError),
    /// The number is none that a job can have.
    #[error("{0} key groups: there are 1 to {MAX_PARALLELISM_LIMIT}")]
    MaxParallelism(u16),
    /// It holds what cannot be converted.
    #[error("{location} cannot be converted: {}", .problems.join("; "))]
    Refused {
        /// The checkpoint or savepoint.
        location: String,
        /// What, why, and what helps.
        problems: Vec<String>,
    },
    /// Keys are in other groups than their hashes say: the types are not those of the program.
    #[error(
        "a key of {state} is in key group {found} of {max_parallelism}, its hash leads to {computed}: \
         the types are not those that wrote it"
    )]
    Misplaced {
        /// The state, as `operator/state`.
        state: String,
        /// The group that its block says, or the nearest one.
        found: u16,
        /// The group that follows from the hash.
        computed: u16,
        /// Number of key groups.
        max_parallelism: u16,
    },
    /// The new savepoint could not be written.
    #[error(transparent)]
    Savepoint(#[from] SavepointError),
    /// A part of the new savepoint could not be written.
    #[error("a part could not be written")]
    Part(#[source] FormatError),
}

/// What is to be known of an entry at the start of some bytes: the hash of its key, and its length.
type Read = Result<(u64, usize), FormatError>;
type EntryReader<'a> = Box<dyn Fn(&[u8]) -> Read + 'a>;

/// Types that were given for a keyed state.
#[derive(Clone, Copy, Debug)]
struct Typed {
    key_type: &'static str,
    read: fn(&[u8], bool) -> Read,
}

/// Rewrites savepoints to another number of key groups.
///
/// # Examples
/// ```
/// use highwater::config::{JobConfig, RestoreFrom};
/// use highwater::convert::Conversion;
/// use highwater::ids::Name;
/// use highwater::job::{Job, JobHandle, execute};
/// use highwater::prelude::*;
///
/// fn build(job: &Job<'_>, numbers: u64, sums: Collect<(String, u64)>) -> highwater::Result<()> {
///     job.source("numbers", Generator::new(numbers, |n| n))
///         .key_by(|n| format!("ends in {}", n % 10))
///         .process("sums", Value::<u64>::new("sum"), |key, n, sum, out| {
///             *sum.or_default() += n;
///             out.emit((key.clone(), *sum.or_default()));
///         })
///         .sink("out", sums);
///     Ok(())
/// }
///
/// let scratch = tempfile::tempdir()?;
/// let mut config = JobConfig::new(Name::new("sums")?);
/// config.checkpoints.directory = Some(scratch.path().join("checkpoints"));
/// execute(config.clone(), &JobHandle::default(), |job| build(job, 1_000, Collect::new()))?;
///
/// // A checkpoint will do as well as a savepoint, if no records were on their way.
/// let from = std::fs::read_dir(scratch.path().join("checkpoints/sums/chk"))?.next().unwrap()?;
/// let to = scratch.path().join("converted");
/// Conversion::new().convert(&from.path(), &to, 13)?;
///
/// // In a directory of its own: the old one is of a job with as many groups as before.
/// config.max_parallelism = 13;
/// config.checkpoints.directory = Some(scratch.path().join("more checkpoints"));
/// config.restore.from = RestoreFrom::Checkpoint(to.display().to_string());
/// execute(config, &JobHandle::default(), |job| build(job, 1_000, Collect::new()))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Conversion {
    typed: BTreeMap<(String, String), Typed>,
    slice_bytes: u64,
}

impl Default for Conversion {
    fn default() -> Self {
        Self::new()
    }
}

impl Conversion {
    /// A conversion that knows no types, but those whose shapes are recorded.
    #[must_use]
    pub fn new() -> Self {
        Self { typed: BTreeMap::new(), slice_bytes: SLICE_BYTES }
    }

    /// Says what a keyed state is made of, whose shape is not known: keys `K`, and for each a `V`. That is the value, what was reduced, or the accumulator;
    /// of a list state a `Vec` of its elements, of a map state a `BTreeMap`.
    #[must_use]
    pub fn keyed<K: Key, V: DeserializeOwned>(mut self, operator: &str, state: &str) -> Self {
        let typed = Typed { key_type: std::any::type_name::<K>(), read: read_entry::<K, V> };
        self.typed.insert((operator.to_owned(), state.to_owned()), typed);
        self
    }

    /// Says what the keys of an operator with timers are, if their shape is not known.
    #[must_use]
    pub fn timers<K: Key>(self, operator: &str) -> Self {
        self.keyed::<K, Vec<i64>>(operator, "event-timers")
            .keyed::<K, Vec<i64>>(operator, "processing-timers")
    }

    /// How many bytes of entries it may keep in memory, besides the longest entry; 64 MiB unless set. Less means more reading.
    #[must_use]
    pub fn memory_bytes(mut self, bytes: u64) -> Self {
        self.slice_bytes = bytes.max(1);
        self
    }

    /// Rewrites what is in the directory `from`, a savepoint or a checkpoint, into a savepoint in the new directory `to`, with
    /// `max_parallelism` key groups. `from` stays as it is.
    ///
    /// # Errors
    /// [`ConvertError`]. Then there is no savepoint in `to`.
    pub fn convert(
        &self,
        from: &Path,
        to: &Path,
        max_parallelism: u16,
    ) -> Result<SavepointInfo, ConvertError> {
        if !(1..=MAX_PARALLELISM_LIMIT).contains(&max_parallelism) {
            return Err(ConvertError::MaxParallelism(max_parallelism));
        }
        let image = Image::open(from)?;
        self.check(&image)?;
        let mut draft = Draft::create(to)?;
        let mut manifest = image.manifest().clone();
        manifest.kind = ManifestKind::Savepoint;
        manifest.max_parallelism = max_parallelism;
        for part in &mut manifest.parts {
            *part = self.convert_part(&image, part, &mut draft, max_parallelism)?;
        }
        Ok(draft.finish(&manifest)?)
    }

    /// Everything that stands in the way, before anything is written.
    fn check(&self, image: &Image) -> Result<(), ConvertError> {
        let manifest = image.manifest();
        let mut problems = BTreeSet::new();
        let alone = |part: &PartRef| part.layers.is_empty() && part.natives.is_empty();
        let sections = || manifest.parts.iter().flat_map(|part| &part.sections);
        if !manifest.parts.iter().all(alone) || sections().any(|s| s.extent != Extent::Whole) {
            problems.insert(
                "it is in layers or in the files of a backend; take a canonical savepoint and convert that"
                    .to_owned(),
            );
        }
        for section in sections() {
            let header = &section.header;
            let name = format!("{}/{}", header.operator, header.state);
            // Those of an operator that asks the outside world are in savepoints as well.
            if header.kind == SectionKind::ChannelLog && section.entries > 0 {
                let remedy = match manifest.kind {
                    ManifestKind::Checkpoint => "take a savepoint, and convert that",
                    ManifestKind::Savepoint => "take one with --drain, and convert that",
                };
                problems.insert(format!("{name} holds records on their way; {remedy}"));
            }
            if !is_keyed(header) {
                continue;
            }
            let held = key_type(header);
            match self.typed.get(&(header.operator.to_string(), header.state.to_string())) {
                Some(typed) if short(typed.key_type) != short(held) => {
                    let given = typed.key_type;
                    problems.insert(format!("the keys of {name} are {held}, not {given}"));
                }
                None if self.reader(header).is_none() => {
                    problems.insert(format!(
                        "{name} has keys that only the program can read ({held}): a program of yours that calls \
                         `highwater::convert::Conversion` with their types can convert it"
                    ));
                }
                _ => {}
            }
        }
        if problems.is_empty() {
            return Ok(());
        }
        let problems = problems.into_iter().collect();
        Err(ConvertError::Refused { location: image.location(), problems })
    }

    /// How entries of a keyed state are read.
    fn reader<'a>(&'a self, header: &'a SectionHeader) -> Option<EntryReader<'a>> {
        let name = (header.operator.to_string(), header.state.to_string());
        let expires = expires(header);
        if let Some(typed) = self.typed.get(&name) {
            return Some(Box::new(move |bytes| (typed.read)(bytes, expires)));
        }
        let shape = &header.shape;
        is_readable(shape).then(|| Box::new(|bytes: &[u8]| hash_of_entry(shape, bytes)) as _)
    }

    fn convert_part(
        &self,
        image: &Image,
        part: &PartRef,
        draft: &mut Draft,
        max_parallelism: u16,
    ) -> Result<PartRef, ConvertError> {
        let mut reader = image.open_part(part)?;
        let header = PartHeader { max_parallelism, ..reader.header().clone() };
        let sections = reader.sections().to_vec();
        let job = Job {
            conversion: self,
            image,
            part,
            from: image.manifest().max_parallelism,
            to: max_parallelism,
        };
        let (place, summary) = match &part.place {
            PartPlace::Inline(_) => {
                let mut writer =
                    PartWriter::new(Vec::new(), &header).map_err(ConvertError::Part)?;
                job.sections(&mut reader, &sections, &mut writer)?;
                let (bytes, summary) = writer.finish().map_err(ConvertError::Part)?;
                (PartPlace::Inline(bytes), summary)
            }
            PartPlace::Blob { .. } => {
                let path = format!("{}-{}.part", image.manifest().attempt, part.worker);
                let output = draft.part(&path)?;
                let mut writer = PartWriter::new(output, &header).map_err(ConvertError::Part)?;
                job.sections(&mut reader, &sections, &mut writer)?;
                let (output, summary) = writer.finish().map_err(ConvertError::Part)?;
                output.finish().map_err(SavepointError::Target)?;
                let (bytes, crc32c) = (summary.bytes, summary.crc32c);
                (PartPlace::Blob { path, bytes, crc32c }, summary)
            }
        };
        let sections = summary.sections.iter().map(SectionIndex::summary).collect();
        Ok(PartRef {
            worker: part.worker,
            place,
            sections,
            layers: Vec::new(),
            natives: Vec::new(),
        })
    }
}

/// The conversion of one part.
struct Job<'a> {
    conversion: &'a Conversion,
    image: &'a Image,
    part: &'a PartRef,
    /// Number of key groups before.
    from: u16,
    /// And after.
    to: u16,
}

impl Job<'_> {
    fn sections<W: std::io::Write>(
        &self,
        reader: &mut PartReader<PartBytes>,
        sections: &[SectionIndex],
        writer: &mut PartWriter<W>,
    ) -> Result<(), ConvertError> {
        for (index, section) in sections.iter().enumerate() {
            let mut out = writer.section(&section.header).map_err(ConvertError::Part)?;
            if is_keyed(&section.header) {
                let slices = section.bytes.div_ceil(self.conversion.slice_bytes).max(1);
                for slice in 0..slices {
                    self.slice(reader, index, &section.header, (slice, slices), &mut out)?;
                }
                continue;
            }
            let mut blocks = reader.blocks(index, 0..u16::MAX);
            while let Some(block) = blocks.next().map_err(|error| self.damaged(error))? {
                out.block(&block).map_err(ConvertError::Part)?;
            }
        }
        Ok(())
    }

    /// Converts the entries whose hashes are in one of so many slices of the range of hashes.
    fn slice<W: std::io::Write>(
        &self,
        reader: &mut PartReader<PartBytes>,
        index: usize,
        header: &SectionHeader,
        (slice, slices): (u64, u64),
        out: &mut Section<'_, W>,
    ) -> Result<(), ConvertError> {
        let read = self.conversion.reader(header).expect("checked before anything was written");
        // The least hash of a slice: slices are to hashes what key groups are.
        let least = |slice: u64| {
            let hash = (u128::from(slice) << 64).div_ceil(u128::from(slices));
            u64::try_from(hash).ok()
        };
        let (first, end) = (least(slice).unwrap_or(u64::MAX), least(slice + 1));
        let last = end.map_or(u64::MAX, |end| end - 1);
        let groups = key_group(first, self.from).0..key_group(last, self.from).0 + 1;
        let mut bytes: Vec<u8> = Vec::new();
        let mut entries: Vec<(u64, std::ops::Range<usize>)> = Vec::new();
        let mut blocks = reader.blocks(index, groups);
        while let Some(block) = blocks.next().map_err(|error| self.damaged(error))? {
            let mut rest = block.bytes;
            let mut group = block.first_group;
            for entry in 0..block.entries {
                let at = block.offset + (block.bytes.len() - rest.len()) as u64;
                let (hash, length) =
                    read(rest).map_err(|error| self.damaged(error.moved_by(at)))?;
                let computed = key_group(hash, self.from).0;
                let is_first = entry == 0 && computed != block.first_group;
                let is_last = entry + 1 == block.entries && computed != block.last_group;
                if computed < group || computed > block.last_group || is_first || is_last {
                    return Err(ConvertError::Misplaced {
                        state: format!("{}/{}", header.operator, header.state),
                        found: if is_last { block.last_group } else { group },
                        computed,
                        max_parallelism: self.from,
                    });
                }
                group = computed;
                let (own, after) = rest.split_at(length);
                rest = after;
                if (first..=last).contains(&hash) {
                    let start = bytes.len();
                    bytes.extend_from_slice(own);
                    entries.push((hash, start..bytes.len()));
                }
            }
            if !rest.is_empty() {
                let at = block.offset + (block.bytes.len() - rest.len()) as u64;
                let why = format!("{} bytes after the last entry", rest.len());
                return Err(self.damaged(FormatError::Corrupt { offset: at, why }));
            }
        }
        entries.sort_by_key(|(hash, _)| *hash);
        for (hash, range) in entries {
            out.entry(KeyGroup(key_group(hash, self.to).0), &mut |out| {
                out.extend_from_slice(&bytes[range.clone()]);
                Ok(())
            })
            .map_err(ConvertError::Part)?;
        }
        Ok(())
    }

    fn damaged(&self, error: FormatError) -> ConvertError {
        ConvertError::Unreadable(self.image.part_error(self.part, error))
    }
}

/// Whether a section is sorted by the groups of keys.
fn is_keyed(header: &SectionHeader) -> bool {
    match header.kind {
        SectionKind::KeyedValue
        | SectionKind::KeyedList
        | SectionKind::KeyedMap
        | SectionKind::KeyedReducing
        | SectionKind::KeyedAggregating
        | SectionKind::ProcessingTimers => true,
        // Beside its timers an operator keeps an event time, which has no key.
        SectionKind::EventTimers => header.state.as_str() == "event-timers",
        SectionKind::Source
        | SectionKind::SinkTransactions
        | SectionKind::ChannelLog
        | SectionKind::Watermark
        | SectionKind::OperatorList
        | SectionKind::UnionList
        | SectionKind::Broadcast => false,
    }
}

/// The type of the keys, as the section names it.
fn key_type(header: &SectionHeader) -> &str {
    header.type_name.rsplit_once(" -> ").map_or("", |(key, _)| key)
}

/// Whether the time of the last update is between key and value.
fn expires(header: &SectionHeader) -> bool {
    header.type_name.rsplit_once(" -> ").is_some_and(|(_, kept)| kept.starts_with("Expiring<"))
}

fn read_entry<K: Key, V: DeserializeOwned>(bytes: &[u8], expires: bool) -> Read {
    let (key, mut rest) = codec::decode_prefix::<K>(bytes)?;
    if expires {
        rest = codec::decode_prefix::<i64>(rest)?.1;
    }
    let (_, rest) = codec::decode_prefix::<V>(rest)?;
    Ok((stable_hash(&key), bytes.len() - rest.len()))
}
