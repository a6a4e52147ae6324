//! A store in a directory of a local (or POSIX-like network) filesystem.
//!
//! # How a blob becomes visible
//! 1. A temporary file `.tmp-<pid>-<counter>` is created exclusively in the blob's own directory, and written.
//! 2. It is fsynced. If that fails, the file is removed and the write has failed: a failed fsync may have dropped
//!    the dirty pages, so that a second one would succeed without anything on disk.
//! 3. It is renamed over the blob's name, or (create-if-absent) linked to it, which fails if the name is taken.
//! 4. The directory is fsynced, and all above it up to the root, because one of them may be new. If that fails, the
//!    blob is visible but may not survive a power cut: the error is `Indeterminate`.
//!
//! A kill leaves at most temporary files; [`CheckpointStorage::sweep_temporary`] removes them.
//!
//! # Access
//! Directories are made with mode 0700, files with 0600. Symbolic links below the root are never followed: every
//! component is looked at first, and a link is an error. (Somebody who may write into the directory can still
//! exchange a component between the look and the use; the modes say who that is.)

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use super::{
    BlobPath, BlobReader, BlobWriter, CheckpointStorage, Created, StorageError, StorageOp,
};

const TEMPORARY_PREFIX: &str = ".tmp-";
/// Units: bytes.
const WRITE_BUFFER_BYTES: usize = 256 << 10;
/// A directory that was just made may be removed by a concurrent delete of its last blob; then it is made again.
const DIRECTORY_TRIES: usize = 100;

/// Numbers the temporary files of this process, whichever store they belong to.
static TEMPORARY_COUNTER: AtomicU64 = AtomicU64::new(0);

/// A store in a directory. See the module.
#[derive(Clone, Debug)]
pub struct LocalStorage {
    root: PathBuf,
    durable: bool,
}

impl LocalStorage {
    /// Opens the store in `root`, and makes the directory if it is not there.
    ///
    /// # Errors
    /// [`StorageError::Determinate`] if it can not be made, or is no directory.
    pub fn open(root: &Path) -> Result<Self, StorageError> {
        let failed = |source| determinate(StorageOp::Write, root, source);
        let root = std::path::absolute(root).map_err(failed)?;
        let mut missing = Vec::new();
        let mut existing = root.as_path();
        while !existing.exists() {
            missing.push(existing);
            let Some(parent) = existing.parent() else { break };
            existing = parent;
        }
        for directory in missing.iter().rev() {
            make_directory(directory).map_err(failed)?;
            sync_directory(directory.parent().unwrap_or(directory)).map_err(failed)?;
        }
        if !root.is_dir() {
            return Err(failed(io::Error::from(ErrorKind::NotADirectory)));
        }
        Ok(Self { root, durable: true })
    }

    /// Makes the directory `root`, which must not be there, and opens the store in it. Of any number of concurrent
    /// calls one succeeds.
    ///
    /// # Errors
    /// [`StorageError::Determinate`]: of kind `AlreadyExists` if something of that name is there.
    pub fn create_new(root: &Path) -> Result<Self, StorageError> {
        let failed = |source| determinate(StorageOp::Write, root, source);
        let root = std::path::absolute(root).map_err(failed)?;
        let Some(parent) = root.parent() else {
            return Err(failed(io::Error::from(ErrorKind::AlreadyExists)));
        };
        Self::open(parent)?;
        DirBuilder::new().mode(0o700).create(&root).map_err(failed)?;
        sync_directory(parent).map_err(failed)?;
        Ok(Self { root, durable: true })
    }

    /// Without fsync: what was written may be lost or torn by a power cut, though not by a kill. For what somebody checks
    /// before use and can do without.
    #[must_use]
    pub fn volatile(self) -> Self {
        Self { durable: false, ..self }
    }

    /// The directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Opens the store in `root`, which must be there.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] or [`StorageError::Determinate`].
    pub fn open_existing(root: &Path) -> Result<Self, StorageError> {
        let failed = |source| read_error(StorageOp::Read, root, source);
        let root = std::path::absolute(root).map_err(failed)?;
        if fs::metadata(&root).map_err(failed)?.is_dir() {
            Ok(Self { root, durable: true })
        } else {
            Err(failed(io::Error::from(ErrorKind::NotADirectory)))
        }
    }

    /// The file of a blob. No component of it is a symbolic link.
    fn resolve(&self, op: StorageOp, path: &BlobPath) -> Result<PathBuf, StorageError> {
        let target = self.root.join(path.as_str());
        let mut file = self.root.clone();
        for component in path.as_str().split('/') {
            file.push(component);
            match fs::symlink_metadata(&file) {
                Ok(metadata) if metadata.is_symlink() => {
                    let why = format!("{} is a symbolic link", file.display());
                    return Err(determinate(op, &target, io::Error::other(why)));
                }
                Ok(_) => {}
                // What is missing is not a link, and neither is anything below it.
                Err(error) if is_missing(&error) => break,
                Err(error) => return Err(determinate(op, &target, error)),
            }
        }
        Ok(target)
    }

    fn temporary(&self, target: PathBuf) -> Result<Temporary, StorageError> {
        let directory = target.parent().unwrap_or(&self.root).to_owned();
        let mut tries = 0;
        loop {
            let number = TEMPORARY_COUNTER.fetch_add(1, Ordering::Relaxed);
            let name = format!("{TEMPORARY_PREFIX}{}-{number}", std::process::id());
            let path = directory.join(name);
            let create = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            match self.make_directories(&directory).and_then(|()| create()) {
                Ok(file) => return Ok(Temporary { file, path: Some(path), directory, target }),
                // A dead process that had our number left it behind: take the next name.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error)
                    if error.kind() == ErrorKind::NotFound
                        && tries < DIRECTORY_TRIES
                        && self.root.exists() =>
                {
                    tries += 1;
                }
                Err(error) => return Err(determinate(StorageOp::Write, &target, error)),
            }
        }
    }

    fn make_directories(&self, directory: &Path) -> io::Result<()> {
        // The root itself is not made again: a store that vanished is an error.
        let below = directory.strip_prefix(&self.root).unwrap_or(directory);
        let mut path = self.root.clone();
        for component in below.components() {
            path.push(component);
            make_directory(&path)?;
        }
        Ok(())
    }

    /// Makes the names of `directory` durable, and its own, up to the root.
    fn sync_up(&self, directory: &Path) -> io::Result<()> {
        if !self.durable {
            return Ok(());
        }
        for ancestor in directory.ancestors() {
            sync_directory(ancestor)?;
            if ancestor == self.root {
                break;
            }
        }
        Ok(())
    }

    fn walk(&self, top: &Path, visit: &mut dyn FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
        let mut pending = vec![top.to_owned()];
        while let Some(directory) = pending.pop() {
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                // It went away meanwhile, or never was there; only the root must be.
                Err(error) if is_missing(&error) && directory != self.root => continue,
                Err(error) => return Err(error),
            };
            for entry in entries {
                let entry = entry?;
                let kind = match entry.file_type() {
                    Ok(kind) => kind,
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
                if kind.is_dir() {
                    pending.push(entry.path());
                } else if kind.is_file() {
                    visit(&entry.path())?;
                }
            }
        }
        Ok(())
    }

    fn blob_path(&self, file: &Path) -> Option<BlobPath> {
        BlobPath::new(file.strip_prefix(&self.root).ok()?.to_str()?).ok()
    }
}

impl CheckpointStorage for LocalStorage {
    fn put(&self, path: &BlobPath, bytes: &[u8]) -> Result<(), StorageError> {
        let mut temporary = self.temporary(self.resolve(StorageOp::Write, path)?)?;
        temporary.write_all(bytes)?;
        temporary.publish(self)
    }

    fn create(&self, path: &BlobPath, bytes: &[u8]) -> Result<Created, StorageError> {
        let target = self.resolve(StorageOp::Write, path)?;
        if fs::symlink_metadata(&target).is_ok() {
            return Ok(Created::AlreadyExists);
        }
        let mut temporary = self.temporary(target)?;
        temporary.write_all(bytes)?;
        temporary.publish_new(self)
    }

    fn writer(&self, path: &BlobPath) -> Result<Box<dyn BlobWriter>, StorageError> {
        let temporary = self.temporary(self.resolve(StorageOp::Write, path)?)?;
        let out = BufWriter::with_capacity(WRITE_BUFFER_BYTES, temporary);
        Ok(Box::new(LocalWriter { out, failed: None, storage: self.clone() }))
    }

    fn open(&self, path: &BlobPath) -> Result<Box<dyn BlobReader>, StorageError> {
        let target = self.resolve(StorageOp::Read, path)?;
        let (file, size_bytes) =
            open_file(&target).map_err(|e| read_error(StorageOp::Read, &target, e))?;
        Ok(Box::new(LocalReader { file, size_bytes }))
    }

    fn read(&self, path: &BlobPath, limit_bytes: u64) -> Result<Vec<u8>, StorageError> {
        let target = self.resolve(StorageOp::Read, path)?;
        let read = || {
            let (file, size_bytes) = open_file(&target)?;
            if size_bytes > limit_bytes {
                return Err(too_large(size_bytes, limit_bytes));
            }
            let mut bytes = Vec::with_capacity(size_bytes as usize);
            // The limit holds also when the file grows meanwhile.
            file.take(limit_bytes + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > limit_bytes {
                return Err(too_large(bytes.len() as u64, limit_bytes));
            }
            // Its writer may have died between the rename and the sync of the directory.
            self.sync_up(target.parent().unwrap_or(&self.root))?;
            Ok(bytes)
        };
        read().map_err(|e| read_error(StorageOp::Read, &target, e))
    }

    fn list(&self, prefix: Option<&BlobPath>) -> Result<Vec<(BlobPath, u64)>, StorageError> {
        let top = match prefix {
            Some(prefix) => self.resolve(StorageOp::List, prefix)?,
            None => self.root.clone(),
        };
        let failed = |e| determinate(StorageOp::List, &top, e);
        fs::metadata(&self.root).map_err(|e| determinate(StorageOp::List, &self.root, e))?;
        let mut blobs = Vec::new();
        let mut visit = |file: &Path| {
            // Temporary files and files that are not ours have no blob path.
            let Some(path) = self.blob_path(file) else { return Ok(()) };
            match fs::symlink_metadata(file) {
                Ok(metadata) => blobs.push((path, metadata.len())),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            Ok(())
        };
        if top.is_file() {
            visit(&top).map_err(failed)?;
        } else {
            self.walk(&top, &mut visit).map_err(failed)?;
        }
        blobs.sort();
        Ok(blobs)
    }

    fn delete(&self, path: &BlobPath) -> Result<(), StorageError> {
        let target = self.resolve(StorageOp::Delete, path)?;
        let failed = |e| determinate(StorageOp::Delete, &target, e);
        match fs::remove_file(&target) {
            Ok(()) => {}
            Err(error) if is_missing(&error) => {
                fs::metadata(&self.root).map_err(failed)?;
                return Ok(());
            }
            Err(error) => return Err(failed(error)),
        }
        for directory in target.ancestors().skip(1) {
            // A directory that is not empty stays, and is the one whose names changed.
            if directory == self.root || fs::remove_dir(directory).is_err() {
                if !self.durable {
                    return Ok(());
                }
                return match sync_directory(directory) {
                    Ok(()) => Ok(()),
                    // Somebody else removed it when it became empty; the next one up is theirs to sync.
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                    Err(source) => Err(indeterminate(StorageOp::Delete, &target, source)),
                };
            }
        }
        Ok(())
    }

    fn link(&self, path: &BlobPath, size_bytes: u64, to: &Path) -> bool {
        // Whatever fails, a copy is made then, and says why that fails.
        self.resolve(StorageOp::Read, path).is_ok_and(|from| {
            let sized = fs::metadata(&from).is_ok_and(|metadata| metadata.len() == size_bytes);
            sized && fs::hard_link(from, to).is_ok()
        })
    }

    fn sweep_temporary(&self, age: Duration) -> Result<u64, StorageError> {
        let now = SystemTime::now();
        let mut removed = 0;
        let mut visit = |file: &Path| {
            let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !name.starts_with(TEMPORARY_PREFIX) {
                return Ok(());
            }
            let old = match fs::symlink_metadata(file).and_then(|metadata| metadata.modified()) {
                // A file from the future has no age we know.
                Ok(modified) => now.duration_since(modified).is_ok_and(|passed| passed >= age),
                Err(error) if error.kind() == ErrorKind::NotFound => false,
                Err(error) => return Err(error),
            };
            if old && ignore_missing(fs::remove_file(file))? {
                removed += 1;
                for directory in file.ancestors().skip(1) {
                    if directory == self.root || fs::remove_dir(directory).is_err() {
                        break;
                    }
                }
            }
            Ok(())
        };
        let result = self.walk(&self.root, &mut visit);
        result.map_err(|e| determinate(StorageOp::Delete, &self.root, e))?;
        Ok(removed)
    }

    fn location(&self) -> String {
        self.root.display().to_string()
    }
}

/// A file that nobody sees yet. Dropping it removes it.
#[derive(Debug)]
struct Temporary {
    file: File,
    /// `None` once it has become the blob.
    path: Option<PathBuf>,
    directory: PathBuf,
    target: PathBuf,
}

impl Temporary {
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        self.file.write_all(bytes).map_err(|e| determinate(StorageOp::Write, &self.target, e))
    }

    fn sync(&self, durable: bool) -> Result<&Path, StorageError> {
        let path = self.path.as_deref().expect("a temporary file is published once");
        let synced = if durable { self.file.sync_all() } else { Ok(()) };
        synced.map(|()| path).map_err(|e| determinate(StorageOp::Publish, &self.target, e))
    }

    fn publish(mut self, storage: &LocalStorage) -> Result<(), StorageError> {
        let renamed = fs::rename(self.sync(storage.durable)?, &self.target);
        renamed.map_err(|e| determinate(StorageOp::Publish, &self.target, e))?;
        self.path = None;
        storage
            .sync_up(&self.directory)
            .map_err(|e| indeterminate(StorageOp::Publish, &self.target, e))
    }

    fn publish_new(self, storage: &LocalStorage) -> Result<Created, StorageError> {
        // Unlike rename, link fails if the name is taken, in one step.
        match fs::hard_link(self.sync(storage.durable)?, &self.target) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Ok(Created::AlreadyExists);
            }
            Err(error) => return Err(determinate(StorageOp::Publish, &self.target, error)),
        }
        let (directory, target) = (self.directory.clone(), self.target.clone());
        drop(self);
        storage
            .sync_up(&directory)
            .map(|()| Created::New)
            .map_err(|e| indeterminate(StorageOp::Publish, &target, e))
    }
}

impl Write for Temporary {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // If this fails the file is swept later; it is not visible anyway.
            let _ = fs::remove_file(path);
        }
    }
}

#[derive(Debug)]
struct LocalWriter {
    out: BufWriter<Temporary>,
    /// The kind of the first error: what was written after it would not be where it should.
    failed: Option<ErrorKind>,
    storage: LocalStorage,
}

impl LocalWriter {
    fn guarded<T>(
        &mut self,
        act: impl FnOnce(&mut BufWriter<Temporary>) -> io::Result<T>,
    ) -> io::Result<T> {
        if let Some(kind) = self.failed {
            return Err(io::Error::new(kind, "an earlier write of this blob failed"));
        }
        let result = act(&mut self.out);
        if let Err(error) = &result
            && error.kind() != ErrorKind::Interrupted
        {
            self.failed = Some(error.kind());
        }
        result
    }
}

impl Write for LocalWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.guarded(|out| out.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.guarded(|out| out.flush())
    }
}

impl BlobWriter for LocalWriter {
    fn finish(mut self: Box<Self>) -> Result<(), StorageError> {
        let flushed = self.guarded(|out| out.flush());
        let Self { out, storage, .. } = *self;
        // What is still buffered after a failed flush is dropped with the file.
        let (temporary, _) = out.into_parts();
        flushed.map_err(|e| determinate(StorageOp::Write, &temporary.target, e))?;
        temporary.publish(&storage)
    }
}

#[derive(Debug)]
struct LocalReader {
    file: File,
    size_bytes: u64,
}

impl Read for LocalReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.file.read(out)
    }
}

impl Seek for LocalReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl BlobReader for LocalReader {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

fn open_file(path: &Path) -> io::Result<(File, u64)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() {
        Ok((file, metadata.len()))
    } else {
        // A directory is no blob.
        Err(io::Error::from(ErrorKind::NotFound))
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// A file where a directory should be means as much as nothing there.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn ignore_missing(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) fn too_large(bytes: u64, limit: u64) -> io::Error {
    io::Error::new(ErrorKind::FileTooLarge, format!("{bytes} bytes, the limit is {limit}"))
}

fn determinate(op: StorageOp, path: &Path, source: io::Error) -> StorageError {
    StorageError::Determinate { op, path: path.display().to_string(), source }
}

fn indeterminate(op: StorageOp, path: &Path, source: io::Error) -> StorageError {
    StorageError::Indeterminate { op, path: path.display().to_string(), source }
}

fn read_error(op: StorageOp, path: &Path, source: io::Error) -> StorageError {
    if is_missing(&source) {
        StorageError::NotFound { path: path.display().to_string() }
    } else {
        determinate(op, path, source)
    }
}

#[cfg(test)]
mod tests;
