//! A second copy, on a local disk, of what a process writes for checkpoints: read first at restore.
//!
//! A decorator. What is written through [`CheckpointStorage::writer`] goes to the store and, beside it, to another one:
//! `<local directory>/<job>/<identity>/<path below the job>`. Manifests, claims and records are never copied, and `open` and
//! `read` never look at a copy: only [`CheckpointStorage::open_checked`] does, whose caller has size and checksum from a
//! manifest of the store.
//!
//! # Invariants
//! * A copy is used only if its name, its size and its CRC-32C are those that the manifest says. The name holds attempt and
//!   epoch, which a job never uses twice. The identity tells apart two jobs of one name: one whose directory was deleted and
//!   which began anew, or the same one in another store. It is made of when the job first ran and where.
//! * A copy becomes visible after the blob that it is a copy of, and is deleted before it. So a copy whose blob is not in
//!   the store belongs to nothing any more, whoever wrote it: [`LocalCopies::sweep`] needs no manifest.
//! * The store decides alone. A copy that cannot be written, read or deleted costs a warning, and time at the next restore.
//!
//! # Which copies go
//! Those whose blobs are deleted through this process go with them. Other processes of the job learn of deletes by sweeping: at
//! the start and the end of an attempt, and when the number of copies has doubled since the last time.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{
    BlobContents, BlobPath, BlobReader, BlobWriter, CheckpointStorage, Created, StorageError,
    describe,
};
use crate::ids::Name;

/// Copies that are written before the first sweep by number. Few files are not worth a listing of the store.
const COPIES_MIN: usize = 64;
/// Units: bytes that are read at once to check a copy.
const CHECK_BYTES: usize = 256 << 10;
/// Temporary files of dead writers are removed when they are older.
const TEMPORARY_AGE: Duration = Duration::from_secs(600);

/// Bytes that restores of this process have read, by where they came from. What is read twice counts twice; manifests, and
/// parts inside them, do not count, and neither does what lies outside of the job's own directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestoredBytes {
    /// From copies on the local disk. Units: bytes.
    pub local: u64,
    /// From the checkpoint store. Units: bytes.
    pub store: u64,
}

/// Checks the directory that a user wants local copies in.
///
/// # Errors
/// What is wrong with it, and what to do.
pub fn check_local(checkpoints: Option<&Path>, copies: &Path) -> Result<(), String> {
    let Some(checkpoints) = checkpoints else {
        return Err(
            "local copies are copies of what is in a checkpoint directory: set --checkpoint-dir"
                .to_owned(),
        );
    };
    if super::is_url(copies) {
        return Err(
            "local copies are for a directory on a local disk, not for an object store".to_owned()
        );
    }
    if super::is_url(checkpoints) {
        return Ok(());
    }
    let absolute = |path: &Path| std::path::absolute(path).map_err(|error| error.to_string());
    let (checkpoints, copies) = (absolute(checkpoints)?, absolute(copies)?);
    if checkpoints.starts_with(&copies) || copies.starts_with(&checkpoints) {
        return Err(format!(
            "{} and the checkpoint directory {} lie in each other: give local copies a directory of their own",
            copies.display(),
            checkpoints.display()
        ));
    }
    Ok(())
}

/// Counts [`RestoredBytes`].
#[derive(Debug, Default)]
pub struct RestoreCounts {
    local: AtomicU64,
    store: AtomicU64,
}

impl RestoreCounts {
    /// What was read so far.
    #[must_use]
    pub fn get(&self) -> RestoredBytes {
        RestoredBytes {
            local: self.local.load(Ordering::Relaxed),
            store: self.store.load(Ordering::Relaxed),
        }
    }
}

/// A store with copies on a local disk. Clones share everything. See the module.
#[derive(Clone, Debug)]
pub struct LocalCopies {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Arc<dyn CheckpointStorage>,
    copies: Option<Arc<dyn CheckpointStorage>>,
    counts: Arc<RestoreCounts>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// `None` before an attempt has begun: then nothing is copied.
    home: Option<Home>,
    /// Copies that were checked in this attempt, with what they hold.
    intact: BTreeMap<BlobPath, BlobContents>,
    /// Copies that the last sweep left.
    kept: usize,
    /// Copies that were written and not deleted since.
    written: usize,
}

/// Where the copies of a job are.
#[derive(Clone, Debug)]
struct Home {
    job: BlobPath,
    directory: String,
}

impl Home {
    /// The copy of a blob. `None`: it has none.
    fn copy_of(&self, path: &BlobPath) -> Option<BlobPath> {
        let below = path.as_str().strip_prefix(self.job.as_str())?.strip_prefix('/')?;
        BlobPath::new(format!("{}/{below}", self.directory)).ok()
    }

    /// The blob that a copy is one of. `None`: of none of this job.
    fn blob_of(&self, copy: &BlobPath) -> Option<BlobPath> {
        let below = copy.as_str().strip_prefix(&self.directory)?.strip_prefix('/')?;
        BlobPath::new(format!("{}/{below}", self.job)).ok()
    }
}

impl LocalCopies {
    /// Decorates a store. `copies`: where the copies are; `None`: there are none, and bytes are only counted.
    #[must_use]
    pub fn new(
        store: Arc<dyn CheckpointStorage>,
        copies: Option<Arc<dyn CheckpointStorage>>,
        counts: Arc<RestoreCounts>,
    ) -> Self {
        Self { shared: Arc::new(Shared { store, copies, counts, state: Mutex::default() }) }
    }

    /// Whether there is a place for copies.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.shared.copies.is_some()
    }

    /// An attempt of a job begins, which first ran at `created_unix_ms` (milliseconds since 1970). From here on what is
    /// written is copied. Every copy is checked anew before it is used.
    pub fn begin(&self, job: &Name, created_unix_ms: u64) {
        let place = crc32c::crc32c(self.shared.store.location().as_bytes());
        let home = Home {
            job: BlobPath::new(job.as_str()).expect("a name is a path of one component"),
            directory: format!("{job}/{created_unix_ms}-{place:08x}"),
        };
        *self.shared.state() = State { home: Some(home), ..State::default() };
    }

    /// Removes the copies of blobs that are not in the store any more, and those of jobs of this name that were here before.
    /// Returns the number of copies that went.
    ///
    /// # Errors
    /// [`StorageError`] of the store or of the local disk; some copies may be gone.
    pub fn sweep(&self) -> Result<u64, StorageError> {
        self.shared.sweep()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the copy of a blob is to be.
    fn place(&self, path: &BlobPath) -> Option<(&dyn CheckpointStorage, BlobPath)> {
        let copies = self.copies.as_deref()?;
        let copy = self.state().home.as_ref()?.copy_of(path)?;
        Some((copies, copy))
    }

    fn sweep(&self) -> Result<u64, StorageError> {
        let home = self.state().home.clone();
        let (Some(copies), Some(home)) = (&self.copies, home) else { return Ok(0) };
        copies.sweep_temporary(TEMPORARY_AGE)?;
        // Copies first: one that becomes visible in between is not looked at, and the blob of any other was there before.
        let found = copies.list(Some(&home.job))?;
        let there: BTreeMap<BlobPath, u64> = if found.is_empty() {
            BTreeMap::new()
        } else {
            self.store.list(Some(&home.job))?.into_iter().collect()
        };
        let stays = |copy: &BlobPath, size: u64| {
            home.blob_of(copy).is_some_and(|blob| there.get(&blob) == Some(&size))
        };
        let goes: Vec<BlobPath> = found
            .iter()
            .filter(|(copy, size)| !stays(copy, *size))
            .map(|(c, _)| c.clone())
            .collect();
        {
            let mut state = self.state();
            goes.iter().for_each(|copy| _ = state.intact.remove(copy));
            (state.kept, state.written) = (found.len() - goes.len(), 0);
        }
        copies.delete_all(&goes)?;
        Ok(goes.len() as u64)
    }

    /// Begins the copy of a blob.
    fn copy(&self, path: &BlobPath) -> Option<Copy> {
        let (copies, copy) = self.place(path)?;
        self.state().intact.remove(&copy);
        match copies.writer(&copy) {
            Ok(writer) => Some(Copy { writer, path: copy }),
            Err(error) => {
                given_up(&copy, &error);
                None
            }
        }
    }

    /// A copy was written.
    fn copied(&self) {
        let crowded = {
            let mut state = self.state();
            state.written += 1;
            state.written > state.kept.max(COPIES_MIN)
        };
        if crowded && let Err(error) = self.sweep() {
            tracing::warn!("local copies that nothing needs may remain: {}", describe(&error));
        }
    }

    fn forget(&self, paths: &[BlobPath]) {
        for path in paths {
            let Some((copies, copy)) = self.place(path) else { continue };
            {
                let mut state = self.state();
                state.intact.remove(&copy);
                state.written = state.written.saturating_sub(1);
            }
            if let Err(error) = copies.delete(&copy) {
                tracing::warn!("local copy {copy} remains for now: {}", describe(&error));
            }
        }
    }

    /// Opens the copy of a blob if it is intact.
    fn open_copy(&self, path: &BlobPath, contents: BlobContents) -> Option<Box<dyn BlobReader>> {
        let (copies, copy) = self.place(path)?;
        let unusable = |why: &str| {
            tracing::warn!("local copy {copy} is not used, the store's is read: {why}");
            None
        };
        // It is of no use to a later restore either.
        let removed = |why: &str| {
            if let Err(error) = copies.delete(&copy) {
                tracing::warn!("local copy {copy} remains for now: {}", describe(&error));
            }
            unusable(why)
        };
        let mut reader = match copies.open(&copy) {
            Ok(reader) => reader,
            // Another process wrote it elsewhere, or it was given up.
            Err(StorageError::NotFound { .. }) => return None,
            Err(error) => return unusable(&describe(&error)),
        };
        if reader.size_bytes() != contents.bytes {
            let (found, BlobContents { bytes, .. }) = (reader.size_bytes(), contents);
            return removed(&format!("it has {found} bytes instead of {bytes}"));
        }
        if self.state().intact.get(&copy) == Some(&contents) {
            return Some(reader);
        }
        match checksum(&mut *reader) {
            Ok(found) if found == contents.crc32c => {
                self.state().intact.insert(copy, contents);
                Some(reader)
            }
            Ok(_) => removed("its checksum is wrong"),
            Err(error) => unusable(&error.to_string()),
        }
    }

    fn counted(self: &Arc<Self>, inner: Box<dyn BlobReader>, local: bool) -> Box<dyn BlobReader> {
        Box::new(CountedReader { inner, local, counts: Arc::clone(&self.counts) })
    }
}

/// The CRC-32C of all of it. Leaves the reader at its beginning.
fn checksum(reader: &mut dyn BlobReader) -> io::Result<u32> {
    let (mut checksum, mut piece) = (0, vec![0; CHECK_BYTES]);
    loop {
        match reader.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => checksum = crc32c::crc32c_append(checksum, &piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    reader.seek(SeekFrom::Start(0))?;
    Ok(checksum)
}

fn given_up(copy: &BlobPath, error: &dyn std::error::Error) {
    tracing::warn!("local copy {copy} is given up, the checkpoint is not: {}", describe(error));
}

impl CheckpointStorage for LocalCopies {
    fn put(&self, path: &BlobPath, bytes: &[u8]) -> Result<(), StorageError> {
        self.shared.store.put(path, bytes)
    }

    fn create(&self, path: &BlobPath, bytes: &[u8]) -> Result<Created, StorageError> {
        self.shared.store.create(path, bytes)
    }

    fn writer(&self, path: &BlobPath) -> Result<Box<dyn BlobWriter>, StorageError> {
        let inner = self.shared.store.writer(path)?;
        let Some(copy) = self.shared.copy(path) else { return Ok(inner) };
        Ok(Box::new(TwoWriters { inner, copy: Some(copy), shared: Arc::clone(&self.shared) }))
    }

    fn open(&self, path: &BlobPath) -> Result<Box<dyn BlobReader>, StorageError> {
        self.shared.store.open(path)
    }

    fn link(&self, path: &BlobPath, size_bytes: u64, to: &Path) -> bool {
        self.shared.store.link(path, size_bytes, to)
    }

    fn open_checked(
        &self,
        path: &BlobPath,
        contents: BlobContents,
    ) -> Result<Box<dyn BlobReader>, StorageError> {
        match self.shared.open_copy(path, contents) {
            Some(copy) => Ok(self.shared.counted(copy, true)),
            None => {
                let reader = self.shared.store.open_checked(path, contents)?;
                Ok(self.shared.counted(reader, false))
            }
        }
    }

    fn read(&self, path: &BlobPath, limit_bytes: u64) -> Result<Vec<u8>, StorageError> {
        self.shared.store.read(path, limit_bytes)
    }

    fn list(&self, prefix: Option<&BlobPath>) -> Result<Vec<(BlobPath, u64)>, StorageError> {
        self.shared.store.list(prefix)
    }

    fn delete(&self, path: &BlobPath) -> Result<(), StorageError> {
        self.shared.forget(std::slice::from_ref(path));
        self.shared.store.delete(path)
    }

    fn delete_all(&self, paths: &[BlobPath]) -> Result<(), StorageError> {
        self.shared.forget(paths);
        self.shared.store.delete_all(paths)
    }

    fn sweep_temporary(&self, age: Duration) -> Result<u64, StorageError> {
        self.shared.store.sweep_temporary(age)
    }

    fn location(&self) -> String {
        self.shared.store.location()
    }
}

/// A copy that is being written.
struct Copy {
    writer: Box<dyn BlobWriter>,
    path: BlobPath,
}

struct TwoWriters {
    inner: Box<dyn BlobWriter>,
    /// `None` once it was given up.
    copy: Option<Copy>,
    shared: Arc<Shared>,
}

impl Write for TwoWriters {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        if let Some(Copy { writer, path }) = &mut self.copy
            && let Err(error) = writer.write_all(&bytes[..count])
        {
            given_up(path, &error);
            self.copy = None;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl BlobWriter for TwoWriters {
    fn finish(self: Box<Self>) -> Result<(), StorageError> {
        let Self { inner, copy, shared } = *self;
        inner.finish()?;
        let Some(Copy { writer, path }) = copy else { return Ok(()) };
        match writer.finish() {
            Ok(()) => shared.copied(),
            Err(error) => given_up(&path, &error),
        }
        Ok(())
    }
}

struct CountedReader {
    inner: Box<dyn BlobReader>,
    local: bool,
    counts: Arc<RestoreCounts>,
}

impl Read for CountedReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(out)?;
        let counter = if self.local { &self.counts.local } else { &self.counts.store };
        counter.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl Seek for CountedReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

impl BlobReader for CountedReader {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }
}

#[cfg(test)]
mod tests;
