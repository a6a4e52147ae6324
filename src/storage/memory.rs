//! A store in memory: for jobs that keep no checkpoints on disk, and for the simulator. It is deterministic, and
//! clones share it.

use std::collections::BTreeMap;
use std::io::{self, Cursor, ErrorKind, Read, Seek, SeekFrom, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::local::too_large;
use super::{
    BlobPath, BlobReader, BlobWriter, CheckpointStorage, Created, StorageError, StorageOp,
};

type Blobs = BTreeMap<BlobPath, Arc<Vec<u8>>>;

/// A store in memory. Clones share its blobs.
#[derive(Clone, Default)]
pub struct MemoryStorage {
    blobs: Arc<Mutex<Blobs>>,
}

impl MemoryStorage {
    /// Makes an empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn blobs(&self) -> MutexGuard<'_, Blobs> {
        // Every change is one insertion or removal: a panic elsewhere leaves the map whole.
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, path: &BlobPath) -> Result<Arc<Vec<u8>>, StorageError> {
        let found = self.blobs().get(path).cloned();
        found.ok_or_else(|| StorageError::NotFound { path: self.address(path) })
    }

    fn address(&self, path: &BlobPath) -> String {
        format!("{}{path}", self.location())
    }
}

impl std::fmt::Debug for MemoryStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryStorage").field("blobs", &self.blobs().len()).finish()
    }
}

impl CheckpointStorage for MemoryStorage {
    fn put(&self, path: &BlobPath, bytes: &[u8]) -> Result<(), StorageError> {
        self.blobs().insert(path.clone(), Arc::new(bytes.to_vec()));
        Ok(())
    }

    fn create(&self, path: &BlobPath, bytes: &[u8]) -> Result<Created, StorageError> {
        match self.blobs().entry(path.clone()) {
            std::collections::btree_map::Entry::Occupied(_) => Ok(Created::AlreadyExists),
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(Arc::new(bytes.to_vec()));
                Ok(Created::New)
            }
        }
    }

    fn writer(&self, path: &BlobPath) -> Result<Box<dyn BlobWriter>, StorageError> {
        let (storage, path) = (self.clone(), path.clone());
        Ok(Box::new(MemoryWriter { storage, path, bytes: Vec::new() }))
    }

    fn open(&self, path: &BlobPath) -> Result<Box<dyn BlobReader>, StorageError> {
        Ok(Box::new(MemoryReader(Cursor::new(Shared(self.get(path)?)))))
    }

    fn read(&self, path: &BlobPath, limit_bytes: u64) -> Result<Vec<u8>, StorageError> {
        let blob = self.get(path)?;
        if blob.len() as u64 > limit_bytes {
            let source = too_large(blob.len() as u64, limit_bytes);
            return Err(StorageError::Determinate {
                op: StorageOp::Read,
                path: self.address(path),
                source,
            });
        }
        Ok(blob.to_vec())
    }

    fn list(&self, prefix: Option<&BlobPath>) -> Result<Vec<(BlobPath, u64)>, StorageError> {
        let below = |path: &BlobPath| match prefix {
            None => true,
            Some(prefix) => path
                .as_str()
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        };
        let blobs = self.blobs();
        let listed = blobs.iter().filter(|(path, _)| below(path));
        Ok(listed.map(|(path, bytes)| (path.clone(), bytes.len() as u64)).collect())
    }

    fn delete(&self, path: &BlobPath) -> Result<(), StorageError> {
        self.blobs().remove(path);
        Ok(())
    }

    fn sweep_temporary(&self, _age: Duration) -> Result<u64, StorageError> {
        // An unfinished writer owns its bytes; they die with it.
        Ok(0)
    }

    fn location(&self) -> String {
        "memory:".to_owned()
    }
}

struct MemoryWriter {
    storage: MemoryStorage,
    path: BlobPath,
    bytes: Vec<u8>,
}

impl Write for MemoryWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.try_reserve(bytes.len()).map_err(|_| ErrorKind::OutOfMemory)?;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BlobWriter for MemoryWriter {
    fn finish(self: Box<Self>) -> Result<(), StorageError> {
        self.storage.blobs().insert(self.path, Arc::new(self.bytes));
        Ok(())
    }
}

struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A blob as it was when it was opened.
struct MemoryReader(Cursor<Shared>);

impl Read for MemoryReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out)
    }
}

impl Seek for MemoryReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

impl BlobReader for MemoryReader {
    fn size_bytes(&self) -> u64 {
        self.0.get_ref().0.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_in_memory_keeps_the_contract() {
        crate::storage::conformance::check(&|| Arc::new(MemoryStorage::new()));
    }
}
