//! The file operations that the sink is made of, so that tests can stop it between any two of them.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

/// A file system. No operation is retried, and none does more than it says.
pub(super) trait Fs: Debug + Send + Sync {
    /// Creates a file that must not be there.
    fn create(&self, path: &Path) -> io::Result<Box<dyn FsFile>>;
    /// The size of a file, if there is one (or of anything else that has the name).
    fn size(&self, path: &Path) -> io::Result<Option<u64>>;
    /// The content of a small file, if there is one.
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>>;
    /// The names in a directory that can be names of ours: those that are UTF-8. None if it is not
    /// there.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;
    /// Renames a file, replacing what has the name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file if it is there.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Creates a directory and those above it, durably.
    fn make_directories(&self, directory: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;
}

/// A file that is being written.
pub(super) trait FsFile: Send {
    /// Appends all bytes, or some if it fails.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes the content durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// The machine's file system.
#[derive(Debug)]
pub(super) struct Disk;

impl Fs for Disk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn FsFile>> {
        Ok(Box::new(OpenOptions::new().write(true).create_new(true).open(path)?))
    }

    fn size(&self, path: &Path) -> io::Result<Option<u64>> {
        present(fs::symlink_metadata(path).map(|metadata| metadata.len()))
    }

    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        present(fs::read(path))
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in present(fs::read_dir(directory))?.into_iter().flatten() {
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        present(fs::remove_file(path)).map(|_| ())
    }

    fn make_directories(&self, directory: &Path) -> io::Result<()> {
        if directory.as_os_str().is_empty() || directory.is_dir() {
            return Ok(());
        }
        let parent = directory.parent().unwrap_or(Path::new("/"));
        self.make_directories(parent)?;
        match fs::create_dir(directory) {
            // Another subtask was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
            made => made?,
        }
        self.sync_directory(parent)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        let here = directory.as_os_str().is_empty();
        File::open(if here { Path::new(".") } else { directory })?.sync_all()
    }
}

impl FsFile for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

/// Makes "not found" a `None`.
fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
