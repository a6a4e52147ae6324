//! A store that fails on request: the decorator by which crashes and bad disks are put at any call.

use std::fmt;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::{
    BlobPath, BlobReader, BlobWriter, CheckpointStorage, Created, StorageError, StorageOp,
};

/// A call that may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultOp {
    /// [`CheckpointStorage::put`].
    Put,
    /// [`CheckpointStorage::create`].
    Create,
    /// [`CheckpointStorage::writer`].
    Writer,
    /// A write to a [`BlobWriter`]. A determinate failure writes half of the bytes first.
    Write,
    /// [`BlobWriter::finish`].
    Finish,
    /// [`CheckpointStorage::open`].
    Open,
    /// A read or a seek of a [`BlobReader`].
    ReadAt,
    /// [`CheckpointStorage::read`].
    Read,
    /// [`CheckpointStorage::list`].
    List,
    /// [`CheckpointStorage::delete`].
    Delete,
    /// [`CheckpointStorage::sweep_temporary`].
    Sweep,
}

/// The call that is about to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultPoint {
    /// Which one.
    pub op: FaultOp,
    /// Of which blob, or prefix; `None`: of the whole store.
    pub path: Option<BlobPath>,
    /// How many calls there were before, of any kind.
    pub index: u64,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultAction {
    /// It is made.
    Proceed,
    /// It fails without effect.
    FailDeterminate(ErrorKind),
    /// It is made, and the caller is told that nobody knows.
    FailIndeterminateAfterEffect,
    /// It is not made, and the caller is told that nobody knows.
    FailIndeterminateWithoutEffect,
    /// The process is dead: neither this call nor any later one, of any handle, has an effect.
    Die,
}

type Hook = dyn Fn(&FaultPoint) -> FaultAction + Send + Sync;

/// A store that asks a hook before every call. Clones share the hook, the counter and the death.
#[derive(Clone)]
pub struct FaultStorage {
    inner: Arc<dyn CheckpointStorage>,
    state: Arc<State>,
}

struct State {
    hook: Box<Hook>,
    calls: AtomicU64,
    dead: AtomicBool,
}

impl State {
    fn decide(&self, op: FaultOp, path: Option<&BlobPath>) -> FaultAction {
        if self.dead.load(Ordering::SeqCst) {
            return FaultAction::Die;
        }
        let index = self.calls.fetch_add(1, Ordering::SeqCst);
        let action = (self.hook)(&FaultPoint { op, path: path.cloned(), index });
        if action == FaultAction::Die {
            self.dead.store(true, Ordering::SeqCst);
        }
        action
    }
}

impl FaultStorage {
    /// Decorates a store. The hook is called from whichever thread makes the call.
    pub fn new(
        inner: Arc<dyn CheckpointStorage>,
        hook: impl Fn(&FaultPoint) -> FaultAction + Send + Sync + 'static,
    ) -> Self {
        let state =
            State { hook: Box::new(hook), calls: AtomicU64::new(0), dead: AtomicBool::new(false) };
        Self { inner, state: Arc::new(state) }
    }

    /// Decorates a store: the process dies at the call with this index.
    pub fn dying_at(inner: Arc<dyn CheckpointStorage>, index: u64) -> Self {
        Self::new(
            inner,
            move |point| {
                if point.index == index { FaultAction::Die } else { FaultAction::Proceed }
            },
        )
    }

    /// Kills the process: no later call, of any handle, has an effect.
    pub fn kill(&self) {
        self.state.dead.store(true, Ordering::SeqCst);
    }

    /// Number of calls so far, those of the dead not counted.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.state.calls.load(Ordering::SeqCst)
    }

    fn run<T>(
        &self,
        op: FaultOp,
        path: Option<&BlobPath>,
        call: impl FnOnce() -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let action = self.state.decide(op, path);
        let address = match path {
            Some(path) => format!("{}/{path}", self.inner.location()),
            None => self.inner.location(),
        };
        carry_out(action, storage_op(op), address, call)
    }
}

/// Makes the call or fails, as decided. Only a call that changes something can be in doubt.
fn carry_out<T>(
    action: FaultAction,
    op: StorageOp,
    path: String,
    call: impl FnOnce() -> Result<T, StorageError>,
) -> Result<T, StorageError> {
    let doubt = |path| match op {
        StorageOp::Read | StorageOp::List => {
            StorageError::Determinate { op, path, source: injected(ErrorKind::Other) }
        }
        _ => StorageError::Indeterminate { op, path, source: injected(ErrorKind::Other) },
    };
    match action {
        FaultAction::Proceed => call(),
        FaultAction::FailDeterminate(kind) => {
            Err(StorageError::Determinate { op, path, source: injected(kind) })
        }
        FaultAction::FailIndeterminateAfterEffect => {
            call()?;
            Err(doubt(path))
        }
        FaultAction::FailIndeterminateWithoutEffect => Err(doubt(path)),
        FaultAction::Die => Err(StorageError::Indeterminate { op, path, source: dead() }),
    }
}

fn storage_op(op: FaultOp) -> StorageOp {
    match op {
        FaultOp::Put | FaultOp::Create | FaultOp::Finish => StorageOp::Publish,
        FaultOp::Writer | FaultOp::Write => StorageOp::Write,
        FaultOp::Open | FaultOp::ReadAt | FaultOp::Read => StorageOp::Read,
        FaultOp::List => StorageOp::List,
        FaultOp::Delete | FaultOp::Sweep => StorageOp::Delete,
    }
}

fn injected(kind: ErrorKind) -> io::Error {
    io::Error::new(kind, "injected fault")
}

fn dead() -> io::Error {
    io::Error::new(ErrorKind::BrokenPipe, "the process is dead")
}

impl fmt::Debug for FaultStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultStorage")
            .field("inner", &self.inner)
            .field("calls", &self.calls())
            .finish_non_exhaustive()
    }
}

impl CheckpointStorage for FaultStorage {
    fn put(&self, path: &BlobPath, bytes: &[u8]) -> Result<(), StorageError> {
        self.run(FaultOp::Put, Some(path), || self.inner.put(path, bytes))
    }

    fn create(&self, path: &BlobPath, bytes: &[u8]) -> Result<Created, StorageError> {
        self.run(FaultOp::Create, Some(path), || self.inner.create(path, bytes))
    }

    fn writer(&self, path: &BlobPath) -> Result<Box<dyn BlobWriter>, StorageError> {
        let inner = self.run(FaultOp::Writer, Some(path), || self.inner.writer(path))?;
        let (path, storage) = (path.clone(), self.clone());
        Ok(Box::new(FaultWriter { inner, path, storage, condemned: false }))
    }

    fn open(&self, path: &BlobPath) -> Result<Box<dyn BlobReader>, StorageError> {
        let inner = self.run(FaultOp::Open, Some(path), || self.inner.open(path))?;
        Ok(Box::new(FaultReader { inner, path: path.clone(), state: self.state.clone() }))
    }

    fn read(&self, path: &BlobPath, limit_bytes: u64) -> Result<Vec<u8>, StorageError> {
        self.run(FaultOp::Read, Some(path), || self.inner.read(path, limit_bytes))
    }

    fn list(&self, prefix: Option<&BlobPath>) -> Result<Vec<(BlobPath, u64)>, StorageError> {
        self.run(FaultOp::List, prefix, || self.inner.list(prefix))
    }

    fn delete(&self, path: &BlobPath) -> Result<(), StorageError> {
        self.run(FaultOp::Delete, Some(path), || self.inner.delete(path))
    }

    fn sweep_temporary(&self, age: Duration) -> Result<u64, StorageError> {
        self.run(FaultOp::Sweep, None, || self.inner.sweep_temporary(age))
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}

struct FaultWriter {
    inner: Box<dyn BlobWriter>,
    path: BlobPath,
    storage: FaultStorage,
    /// A write failed: what is there is not what was meant.
    condemned: bool,
}

impl FaultWriter {
    fn fail<T>(&mut self, error: io::Error) -> io::Result<T> {
        self.condemned = true;
        Err(error)
    }
}

impl Write for FaultWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.condemned {
            return Err(io::Error::other("an earlier write of this blob failed"));
        }
        match self.storage.state.decide(FaultOp::Write, Some(&self.path)) {
            FaultAction::Proceed => self.inner.write(bytes),
            FaultAction::Die => self.fail(dead()),
            FaultAction::FailDeterminate(kind) => {
                // A disk that becomes full takes a part of it.
                self.inner.write_all(&bytes[..bytes.len() / 2])?;
                self.fail(injected(kind))
            }
            FaultAction::FailIndeterminateAfterEffect => {
                self.inner.write_all(bytes)?;
                self.fail(injected(ErrorKind::Other))
            }
            FaultAction::FailIndeterminateWithoutEffect => self.fail(injected(ErrorKind::Other)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.storage.state.dead.load(Ordering::SeqCst) {
            return self.fail(dead());
        }
        self.inner.flush()
    }
}

impl BlobWriter for FaultWriter {
    fn finish(self: Box<Self>) -> Result<(), StorageError> {
        let Self { inner, path, storage, condemned } = *self;
        storage.run(FaultOp::Finish, Some(&path), || {
            if condemned {
                return Err(StorageError::Determinate {
                    op: StorageOp::Publish,
                    path: format!("{}/{path}", storage.inner.location()),
                    source: io::Error::other("an earlier write of this blob failed"),
                });
            }
            inner.finish()
        })
    }
}

struct FaultReader {
    inner: Box<dyn BlobReader>,
    path: BlobPath,
    state: Arc<State>,
}

impl FaultReader {
    fn check(&self) -> io::Result<()> {
        match self.state.decide(FaultOp::ReadAt, Some(&self.path)) {
            FaultAction::Proceed => Ok(()),
            FaultAction::Die => Err(dead()),
            FaultAction::FailDeterminate(kind) => Err(injected(kind)),
            FaultAction::FailIndeterminateAfterEffect
            | FaultAction::FailIndeterminateWithoutEffect => Err(injected(ErrorKind::Other)),
        }
    }
}

impl Read for FaultReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        self.inner.read(out)
    }
}

impl Seek for FaultReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.check()?;
        self.inner.seek(to)
    }
}

impl BlobReader for FaultReader {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{MemoryStorage, conformance};

    fn path(text: &str) -> BlobPath {
        BlobPath::new(text).unwrap()
    }

    #[test]
    fn a_decorated_store_keeps_the_contract() {
        conformance::check(&|| {
            let memory = Arc::new(MemoryStorage::new());
            Arc::new(FaultStorage::new(memory, |_| FaultAction::Proceed))
        });
    }

    #[test]
    fn the_dead_change_nothing_through_any_handle() {
        let memory = MemoryStorage::new();
        let storage = FaultStorage::new(Arc::new(memory.clone()), |_| FaultAction::Proceed);
        let clone = storage.clone();
        storage.put(&path("a"), b"1").unwrap();
        let mut writer = storage.writer(&path("b")).unwrap();
        writer.write_all(b"2").unwrap();
        storage.kill();
        assert!(writer.write_all(b"2").is_err());
        assert!(writer.flush().is_err());
        assert!(writer.finish().is_err());
        assert!(clone.put(&path("a"), b"2").is_err());
        assert!(clone.create(&path("c"), b"2").is_err());
        assert!(clone.delete(&path("a")).is_err());
        assert!(clone.read(&path("a"), 9).is_err());
        assert!(clone.list(None).is_err());
        assert_eq!(memory.list(None).unwrap(), [(path("a"), 1)]);
        assert_eq!(memory.read(&path("a"), 9).unwrap(), b"1");
    }

    #[test]
    fn a_disk_that_becomes_full_in_a_write_condemns_the_blob() {
        let memory = MemoryStorage::new();
        let storage = FaultStorage::new(Arc::new(memory.clone()), |point| match point.op {
            FaultOp::Write => FaultAction::FailDeterminate(ErrorKind::StorageFull),
            _ => FaultAction::Proceed,
        });
        let mut writer = storage.writer(&path("a")).unwrap();
        let error = writer.write_all(&[1; 100]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        assert!(writer.finish().is_err());
        assert_eq!(memory.list(None).unwrap(), []);
    }

    #[test]
    fn a_call_in_doubt_has_its_effect_or_not_as_decided() {
        let memory = MemoryStorage::new();
        let storage = FaultStorage::new(Arc::new(memory.clone()), |point| match point.index {
            0 => FaultAction::FailIndeterminateAfterEffect,
            _ => FaultAction::FailIndeterminateWithoutEffect,
        });
        for blob in ["a", "b"] {
            let error = storage.create(&path(blob), b"x").unwrap_err();
            assert!(matches!(error, StorageError::Indeterminate { .. }));
        }
        assert_eq!(memory.list(None).unwrap(), [(path("a"), 1)]);
    }

    #[test]
    fn a_failed_sync_at_the_end_leaves_no_blob() {
        let memory = MemoryStorage::new();
        let storage = FaultStorage::new(Arc::new(memory.clone()), |point| match point.op {
            FaultOp::Finish => FaultAction::FailDeterminate(ErrorKind::Other),
            _ => FaultAction::Proceed,
        });
        let mut writer = storage.writer(&path("a")).unwrap();
        writer.write_all(b"x").unwrap();
        assert!(matches!(writer.finish(), Err(StorageError::Determinate { .. })));
        assert_eq!(memory.list(None).unwrap(), []);
    }
}
