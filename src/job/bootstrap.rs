//! Bootstrap: a savepoint from iterators, for jobs that begin with state that was computed elsewhere.
//!
//! A savepoint that is written here holds keyed state and nothing else. So it says nothing of sources and sinks, and the job
//! that starts from it has to be told that these are new: `--allow-new-state`, or
//! [`allow_new_state`](crate::config::RestoreConfig::allow_new_state). A state that is named wrong is found all the same: the
//! savepoint then holds one that the program does not have, which is refused unless that is allowed too.
//!
//! # Order and memory
//! A section is sorted by key group, and iterators are in any order. Entries are encoded, sorted by the hashes of their keys
//! and, when there are more than may be in memory, written to a *run*, a file in a directory beside the target. At the end
//! runs are merged, so many at once that they do not take too many files. Entries of one key meet there: that is how a key
//! that comes twice is found.
//!
//! # Failure
//! A writer that is dropped, after an error or without [`SavepointWriter::finish`], removes what it has written. A kill leaves
//! a directory without a manifest, and perhaps one of runs beside it: the user's to remove.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::convert::Infallible;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use crate::format::manifest::{Manifest, ManifestKind, PartPlace, PartRef};
use crate::format::part::{PartHeader, PartWriter, Section, SectionIndex};
use crate::format::record::SavepointInfo;
use crate::format::{FormatError, SectionOutput, codec};
use crate::ids::{Attempt, Epoch, InvalidName, KeyGroup, Lineage, Name};
use crate::protocol::key_groups::{MAX_PARALLELISM_LIMIT, key_group};
use crate::runtime::kinds::Kind;
use crate::runtime::states::{Descriptor, States};
use crate::state::Key;
use crate::state::hash::stable_hash;
use crate::storage::BlobWriter;
use crate::storage::savepoint::{Draft, SavepointError, absolute};

/// Units: bytes of entries that a writer keeps in memory, unless told otherwise.
const MEMORY_BYTES: usize = 64 << 20;
/// How many runs are merged at once: that many files are open.
const MERGED_MAX: usize = 64;
/// The name of the only part.
const PART: &str = "1-0.part";

/// A savepoint cannot be written from iterators. There is none then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootstrapError {
    /// A job, an operator or a state cannot have this name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The number is none that a job can have.
    #[error("{0} key groups: there are 1 to {MAX_PARALLELISM_LIMIT}")]
    MaxParallelism(u16),
    /// A state is written twice.
    #[error("{state} is written already: one iterator has all entries of a state")]
    DuplicateState {
        /// The state, as `operator/state`.
        state: String,
    },
    /// A key comes twice.
    #[error("{state}: the key {key} comes twice")]
    DuplicateKey {
        /// The state, as `operator/state`.
        state: String,
        /// The key: as JSON, or its encoded bytes if it cannot be that.
        key: String,
    },
    /// The iterator has failed.
    #[error("{state}: entry {index} could not be had")]
    Entry {
        /// The state, as `operator/state`.
        state: String,
        /// How many entries came before.
        index: u64,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// What does not fit into memory could not be kept on disk.
    #[error("{} could not be written or read back", path.display())]
    Run {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The savepoint could not be written.
    #[error(transparent)]
    Savepoint(#[from] SavepointError),
    /// The part of the savepoint could not be written.
    #[error("a part could not be written")]
    Part(#[source] FormatError),
}

/// Writes a savepoint from iterators.
///
/// # Examples
/// ```
/// use highwater::bootstrap::SavepointWriter;
/// use highwater::config::{JobConfig, RestoreFrom};
/// use highwater::ids::Name;
/// use highwater::job::{JobHandle, execute};
/// use highwater::prelude::*;
///
/// let scratch = tempfile::tempdir()?;
/// let to = scratch.path().join("bootstrap");
/// let mut config = JobConfig::new(Name::new("visits")?);
/// let visits = [("ann", 41_u64), ("bob", 7)].map(|(who, count)| (who.to_owned(), count));
/// SavepointWriter::create(&to, "visits", config.max_parallelism)?
///     .keyed("count", &Value::<u64>::new("count"), visits)?
///     .finish()?;
///
/// config.restore.from = RestoreFrom::Checkpoint(to.display().to_string());
/// // Its sources and sinks are not in the savepoint.
/// config.restore.allow_new_state = true;
/// let collect = Collect::new();
/// let seen = collect.handle();
/// execute(config, &JobHandle::default(), move |job| {
///     job.source("visits", Collection::new(vec!["ann".to_owned(), "eve".to_owned()]))
///         .key_by(|who: &String| who.clone())
///         .process("count", Value::<u64>::new("count"), |who, _, count, out| {
///             *count.or_default() += 1;
///             out.emit((who.clone(), *count.or_default()));
///         })
///         .sink("out", collect.clone());
///     Ok(())
/// })?;
/// let mut seen = seen.committed();
/// seen.sort();
/// assert_eq!(seen, [("ann".to_owned(), 42), ("eve".to_owned(), 1)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SavepointWriter {
    // Before the draft, which removes the directory that the part's temporary file is in.
    part: PartWriter<Box<dyn BlobWriter>>,
    draft: Draft,
    header: PartHeader,
    written: BTreeSet<(Name, Name)>,
    memory_bytes: usize,
}

impl std::fmt::Debug for SavepointWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SavepointWriter").field("draft", &self.draft).finish_non_exhaustive()
    }
}

impl SavepointWriter {
    /// Begins a savepoint in the new directory `to`, for a job of this name with `max_parallelism` key groups.
    ///
    /// # Errors
    /// [`BootstrapError`]: the directory is there or cannot be made, or a name or number is none.
    pub fn create(to: &Path, job: &str, max_parallelism: u16) -> Result<Self, BootstrapError> {
        if !(1..=MAX_PARALLELISM_LIMIT).contains(&max_parallelism) {
            return Err(BootstrapError::MaxParallelism(max_parallelism));
        }
        let job = Name::new(job)?;
        let (epoch, attempt) = (Epoch(1), Attempt(1));
        let header = PartHeader { job, epoch, attempt, worker: 0, parallelism: 1, max_parallelism };
        let mut draft = Draft::create(&absolute(to)?)?;
        let output = draft.part(PART)?;
        let part = PartWriter::new(output, &header).map_err(BootstrapError::Part)?;
        let (written, memory_bytes) = (BTreeSet::new(), MEMORY_BYTES);
        Ok(Self { part, draft, header, written, memory_bytes })
    }

    /// How many bytes of entries it may keep in memory, besides the longest entry; 64 MiB unless set. What is more goes to
    /// files in a directory beside the target, which is removed.
    #[must_use]
    pub fn memory_bytes(mut self, bytes: usize) -> Self {
        self.memory_bytes = bytes.max(1);
        self
    }

    /// Writes a state of an operator: `descriptor` is the one that the program declares, `entries` are all its keys, in any
    /// order, each once, with what is kept for it. That is the value, what was reduced, or the accumulator; of a list state a
    /// `Vec` of its elements, of a map state a `BTreeMap`.
    ///
    /// Here a state is declared without a time to live. A program that declares it with one counts from the restore.
    ///
    /// # Errors
    /// [`BootstrapError`]: a key comes twice, or something cannot be written.
    pub fn keyed<K: Key, D: Kind>(
        self,
        operator: &str,
        descriptor: &Descriptor<D>,
        entries: impl IntoIterator<Item = (K, D::Held)>,
    ) -> Result<Self, BootstrapError> {
        self.try_keyed(operator, descriptor, entries.into_iter().map(Ok::<_, Infallible>))
    }

    /// As [`SavepointWriter::keyed`], of an iterator that may fail.
    ///
    /// # Errors
    /// As there, and [`BootstrapError::Entry`] with the first error of the iterator.
    pub fn try_keyed<K: Key, D: Kind, E: Into<Box<dyn Error + Send + Sync>>>(
        mut self,
        operator: &str,
        descriptor: &Descriptor<D>,
        entries: impl IntoIterator<Item = Result<(K, D::Held), E>>,
    ) -> Result<Self, BootstrapError> {
        let operator = Name::new(operator)?;
        let declaration = States::<K>::declarations(descriptor).remove(0);
        let name = declaration.name.clone()?;
        let state = format!("{operator}/{name}");
        if !self.written.insert((operator.clone(), name)) {
            return Err(BootstrapError::DuplicateState { state });
        }
        let directory = beside(self.draft.path());
        let mut sorter = Sorter::new(directory, self.memory_bytes);
        for (index, entry) in entries.into_iter().enumerate() {
            let (key, held) = entry.map_err(|error| BootstrapError::Entry {
                state: state.clone(),
                index: index as u64,
                source: error.into(),
            })?;
            sorter.add(&key, &held)?;
        }
        let header = declaration.header(&operator);
        let section = self.part.section(&header).map_err(BootstrapError::Part)?;
        let max_parallelism = self.header.max_parallelism;
        let mut output = Output { section, max_parallelism, last: None };
        let sorted = sorter.finish(&mut |hash, key_bytes, bytes| {
            let is_new = output.entry(hash, key_bytes, bytes)?;
            if is_new {
                return Ok(());
            }
            let key = text::<K>(&bytes[..key_bytes]);
            Err(BootstrapError::DuplicateKey { state: state.clone(), key })
        });
        sorted.map(|()| self)
    }

    /// Ends the savepoint: from here on it is one.
    ///
    /// # Errors
    /// [`BootstrapError`].
    pub fn finish(self) -> Result<SavepointInfo, BootstrapError> {
        let Self { part, draft, header, .. } = self;
        let (output, summary) = part.finish().map_err(BootstrapError::Part)?;
        output.finish().map_err(SavepointError::Target)?;
        let path = PART.to_owned();
        let place = PartPlace::Blob { path, bytes: summary.bytes, crc32c: summary.crc32c };
        let sections = summary.sections.iter().map(SectionIndex::summary).collect();
        let part = PartRef { worker: 0, place, sections, layers: Vec::new(), natives: Vec::new() };
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        let manifest = Manifest {
            job: header.job,
            epoch: header.epoch,
            attempt: header.attempt,
            // A restore from another directory begins a lineage of its own.
            lineage: Lineage(1),
            parallelism: header.parallelism,
            max_parallelism: header.max_parallelism,
            kind: ManifestKind::Savepoint,
            last: false,
            triggered_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            parts: vec![part],
        };
        Ok(draft.finish(&manifest)?)
    }
}

/// The directory of the runs: beside the target, which is ours alone, so this is too; on the local disk, if that is elsewhere.
fn beside(target: &Path) -> PathBuf {
    if crate::storage::is_url(target) {
        let name = crc32c::crc32c(target.as_os_str().as_encoded_bytes());
        let name = format!("highwater-runs-{}-{name:08x}", std::process::id());
        return std::env::temp_dir().join(name);
    }
    let mut path = target.as_os_str().to_owned();
    path.push(format!(".runs-{}", std::process::id()));
    path.into()
}

/// A key, for people.
fn text<K: Key>(bytes: &[u8]) -> String {
    let key = codec::decode::<K>(bytes).ok();
    let json = key.and_then(|key| serde_json::to_string(&key).ok());
    json.unwrap_or_else(|| format!("{bytes:02x?}"))
}

/// Takes sorted entries into a section.
struct Output<'a> {
    section: Section<'a, Box<dyn BlobWriter>>,
    max_parallelism: u16,
    /// The hash and the key of the entry before.
    last: Option<(u64, Vec<u8>)>,
}

impl Output<'_> {
    /// Takes an entry, unless it has the key of the one before. Says which.
    fn entry(&mut self, hash: u64, key_bytes: usize, bytes: &[u8]) -> Result<bool, BootstrapError> {
        let key = &bytes[..key_bytes];
        match &mut self.last {
            Some((last_hash, last)) => {
                if (*last_hash, last.as_slice()) == (hash, key) {
                    return Ok(false);
                }
                *last_hash = hash;
                last.clear();
                last.extend_from_slice(key);
            }
            None => self.last = Some((hash, key.to_vec())),
        }
        let group = KeyGroup(key_group(hash, self.max_parallelism).0);
        let written = self.section.entry(group, &mut |out| {
            out.extend_from_slice(bytes);
            Ok(())
        });
        written.map(|()| true).map_err(BootstrapError::Part)
    }
}

/// Takes an entry: the hash of its key, how many of its bytes are the key, and all of them.
type Take<'a> = dyn FnMut(u64, usize, &[u8]) -> Result<(), BootstrapError> + 'a;

/// An entry in memory.
struct Kept {
    hash: u64,
    start: usize,
    key_bytes: usize,
    end: usize,
}

/// Sorts entries by the hashes of their keys, then by their keys.
struct Sorter {
    directory: PathBuf,
    memory_bytes: usize,
    bytes: Vec<u8>,
    kept: Vec<Kept>,
    runs: Vec<PathBuf>,
    /// Runs that were ever begun.
    begun: u64,
}

impl Sorter {
    fn new(directory: PathBuf, memory_bytes: usize) -> Self {
        let (bytes, kept, runs) = (Vec::new(), Vec::new(), Vec::new());
        Self { directory, memory_bytes, bytes, kept, runs, begun: 0 }
    }

    fn add<K: Key, V: serde::Serialize>(
        &mut self,
        key: &K,
        held: &V,
    ) -> Result<(), BootstrapError> {
        let start = self.bytes.len();
        codec::encode(key, &mut self.bytes).map_err(BootstrapError::Part)?;
        let key_bytes = self.bytes.len() - start;
        codec::encode(held, &mut self.bytes).map_err(BootstrapError::Part)?;
        let end = self.bytes.len();
        self.kept.push(Kept { hash: stable_hash(key), start, key_bytes, end });
        if end + self.kept.len() * size_of::<Kept>() >= self.memory_bytes {
            self.spill()?;
        }
        Ok(())
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        let key = |kept: &Kept| (kept.hash, &bytes[kept.start..kept.start + kept.key_bytes]);
        self.kept.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
    }

    /// Writes what is in memory to a run.
    fn spill(&mut self) -> Result<(), BootstrapError> {
        self.sort();
        let (path, file) = self.begin()?;
        let mut run = BufWriter::new(file);
        for kept in &self.kept {
            let bytes = &self.bytes[kept.start..kept.end];
            write_entry(&mut run, kept.hash, kept.key_bytes, bytes)
                .map_err(|source| self.failed(source))?;
        }
        run.flush().map_err(|source| self.failed(source))?;
        self.runs.push(path);
        self.bytes.clear();
        self.kept.clear();
        Ok(())
    }

    /// Begins a run.
    fn begin(&mut self) -> Result<(PathBuf, File), BootstrapError> {
        if self.begun == 0 {
            fs::create_dir(&self.directory).map_err(|source| self.failed(source))?;
        }
        let path = self.directory.join(self.begun.to_string());
        self.begun += 1;
        let file = File::create_new(&path).map_err(|source| self.failed(source))?;
        Ok((path, file))
    }

    /// Gives out all entries, in order.
    fn finish(mut self, take: &mut Take<'_>) -> Result<(), BootstrapError> {
        if self.runs.is_empty() {
            self.sort();
            return self
                .kept
                .iter()
                .try_for_each(|k| take(k.hash, k.key_bytes, &self.bytes[k.start..k.end]));
        }
        if !self.kept.is_empty() {
            self.spill()?;
        }
        self.bytes = Vec::new();
        self.kept = Vec::new();
        while self.runs.len() > MERGED_MAX {
            let merged: Vec<PathBuf> = self.runs.drain(..MERGED_MAX).collect();
            let (path, file) = self.begin()?;
            let mut run = BufWriter::new(file);
            self.merge(&merged, &mut |hash, key_bytes, bytes| {
                write_entry(&mut run, hash, key_bytes, bytes).map_err(|source| self.failed(source))
            })?;
            run.flush().map_err(|source| self.failed(source))?;
            for path in merged {
                fs::remove_file(path).map_err(|source| self.failed(source))?;
            }
            self.runs.push(path);
        }
        self.merge(&self.runs, take)
    }

    /// Gives out the entries of some runs, in order.
    fn merge(&self, runs: &[PathBuf], take: &mut Take<'_>) -> Result<(), BootstrapError> {
        let mut readers = Vec::new();
        let mut next = BinaryHeap::new();
        for (index, path) in runs.iter().enumerate() {
            let file = File::open(path).map_err(|source| self.failed(source))?;
            let mut reader = BufReader::new(file);
            if let Some(entry) = Entry::read(&mut reader).map_err(|source| self.failed(source))? {
                next.push(Reverse((entry, index)));
            }
            readers.push(reader);
        }
        while let Some(Reverse((entry, index))) = next.pop() {
            take(entry.hash, entry.key.len(), &entry.joined())?;
            let entry = Entry::read(&mut readers[index]).map_err(|source| self.failed(source))?;
            next.extend(entry.map(|entry| Reverse((entry, index))));
        }
        Ok(())
    }

    fn failed(&self, source: io::Error) -> BootstrapError {
        BootstrapError::Run { path: self.directory.clone(), source }
    }
}

impl Drop for Sorter {
    fn drop(&mut self) {
        if self.begun > 0 {
            // Best effort: nothing reads what stays.
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// An entry of a run, in the order of runs.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    hash: u64,
    key: Vec<u8>,
    held: Vec<u8>,
}

impl Entry {
    /// The next entry of a run, if there is one.
    fn read(run: &mut impl Read) -> io::Result<Option<Self>> {
        let mut front = [0; 24];
        // A run ends between two entries.
        let mut hash = run.take(8);
        let mut read = Vec::with_capacity(8);
        if hash.read_to_end(&mut read)? == 0 {
            return Ok(None);
        }
        front[..read.len()].copy_from_slice(&read);
        run.read_exact(&mut front[read.len()..])?;
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&front[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let mut exactly = |length: u64| {
            let mut bytes = Vec::new();
            if run.take(length).read_to_end(&mut bytes)? as u64 == length {
                Ok(bytes)
            } else {
                Err(io::Error::from(io::ErrorKind::UnexpectedEof))
            }
        };
        let (key, held) = (exactly(number(8))?, exactly(number(16))?);
        Ok(Some(Self { hash: number(0), key, held }))
    }

    fn joined(&self) -> Vec<u8> {
        [self.key.as_slice(), &self.held].concat()
    }
}

/// Writes what [`Entry::read`] reads: the hash, the length of the key and of the rest, and the bytes.
fn write_entry(run: &mut impl Write, hash: u64, key_bytes: usize, bytes: &[u8]) -> io::Result<()> {
    run.write_all(&hash.to_le_bytes())?;
    run.write_all(&(key_bytes as u64).to_le_bytes())?;
    run.write_all(&((bytes.len() - key_bytes) as u64).to_le_bytes())?;
    run.write_all(bytes)
}
