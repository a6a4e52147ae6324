//! States that a backend keeps in files of its own: those files on their way to storage and back.
//!
//! A file that lasts (a name means the same bytes for as long as the backend's instance lives) is uploaded once: what the
//! newest complete checkpoint of the attempt has is referenced again, and so is what the one that it was restored from has, if later
//! ones may build on that ([`start`](crate::runtime::start)). Names repeat
//! between attempts, so in storage a file's name tells the attempt and the checkpoint that it was uploaded for.
//!
//! # Ordering
//! A checkpoint is complete before its files are reused: files of one that is aborted are swept, and uploaded again for
//! the next.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::format::FormatError;
use crate::format::manifest::{NativeFile, NativeImage};
use crate::format::record::FileTransfers;
use crate::ids::{Attempt, Epoch, Name};
use crate::state::{NativeFiles, NativeSnapshot};
use crate::storage::BlobPath;
use crate::storage::job_store::JobStore;

/// Files that are uploaded or fetched at once.
const TRANSFERS_MAX: usize = 4;

/// Units: bytes that are copied at once.
const COPY_BYTES: usize = 256 << 10;

/// What one instance has in storage.
#[derive(Debug)]
pub(crate) struct Uploads {
    /// Its place among the worker's instances: part of the names of its files in storage.
    index: usize,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// The files of the newest complete checkpoint, by their names in the instance.
    complete: BTreeMap<String, NativeFile>,
    /// Those of checkpoints that are not complete.
    written: BTreeMap<Epoch, Vec<NativeFile>>,
}

impl Uploads {
    pub(crate) fn new(index: usize) -> Self {
        Self { index, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The instance was opened with these files of a checkpoint of the job's own.
    #[cfg(feature = "rocksdb")]
    pub(crate) fn adopt(&self, files: &[NativeFile]) {
        let files = files.iter().map(|file| (file.name.clone(), file.clone()));
        self.known().complete = files.collect();
    }

    /// A checkpoint is complete. If it holds nothing of the instance, nothing is known to stay.
    pub(crate) fn complete(&self, epoch: Epoch) {
        let mut known = self.known();
        let files = known.written.remove(&epoch).unwrap_or_default();
        known.complete = files.into_iter().map(|file| (file.name.clone(), file)).collect();
        known.written.retain(|other, _| *other > epoch);
    }

    /// A checkpoint was aborted.
    pub(crate) fn aborted(&self, epoch: Epoch) {
        self.known().written.remove(&epoch);
    }
}

/// What an operator hands in whose states may be in files.
pub(crate) struct NativePart {
    pub(crate) operator: Name,
    pub(crate) snapshot: Box<dyn NativeSnapshot>,
    pub(crate) uploads: std::sync::Arc<Uploads>,
}

/// Waits for the files of a snapshot and uploads those that storage does not have. `None`: there are none; the states are
/// in sections.
///
/// # Errors
/// [`FormatError`] of the backend, or of storage.
pub(crate) fn upload(
    store: &JobStore,
    part: NativePart,
    (epoch, attempt, worker): (Epoch, Attempt, usize),
) -> Result<Option<(NativeImage, FileTransfers)>, FormatError> {
    let NativePart { operator, snapshot, uploads } = part;
    let Some(NativeFiles { backend, version, directory, files, keep }) = snapshot.wait()? else {
        return Ok(None);
    };
    let reusable = uploads.known().complete.clone();
    let mut moved = FileTransfers::default();
    let mut all = Vec::new();
    let mut new = VecDeque::new();
    for file in files {
        match reusable.get(&file.name) {
            Some(known) if file.lasts && known.bytes == file.bytes => {
                moved.reused += 1;
                moved.reused_bytes += known.bytes;
                all.push(known.clone());
            }
            _ => new.push_back(file.name),
        }
    }
    let uploaded = in_parallel(new, |name| {
        let path = store.native_path(epoch, attempt, worker, uploads.index, &name)?;
        let (bytes, crc32c) = upload_file(store, &directory.join(&name), &path)?;
        Ok::<_, FormatError>(NativeFile { name, path: path.into(), bytes, crc32c })
    })?;
    drop(keep);
    moved.uploaded = uploaded.len() as u32;
    moved.uploaded_bytes = uploaded.iter().map(|file| file.bytes).sum();
    all.extend(uploaded);
    all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    uploads.known().written.insert(epoch, all.clone());
    let backend = backend.to_owned();
    Ok(Some((NativeImage { operator, backend, version, files: all }, moved)))
}

fn upload_file(store: &JobStore, from: &Path, to: &BlobPath) -> Result<(u64, u32), FormatError> {
    let mut source = File::open(from)?;
    let mut writer = store.storage().writer(to).map_err(io::Error::other)?;
    let copied = copy(&mut source, &mut writer)?;
    writer.finish().map_err(io::Error::other)?;
    Ok(copied)
}

/// Copies all that there is. Returns how much, and its checksum.
pub(crate) fn copy(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<(u64, u32)> {
    let (mut bytes, mut checksum, mut piece) = (0, 0, vec![0; COPY_BYTES]);
    loop {
        let count = match from.read(&mut piece) {
            Ok(0) => return Ok((bytes, checksum)),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(&piece[..count])?;
        checksum = crc32c::crc32c_append(checksum, &piece[..count]);
        bytes += count as u64;
    }
}

/// Does something with each item, several at once; the first error ends it.
pub(crate) fn in_parallel<T: Send, R: Send, E: Send>(
    items: VecDeque<T>,
    work: impl Fn(T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let threads = items.len().min(TRANSFERS_MAX);
    let (items, results) = (Mutex::new(items), Mutex::new(Ok(Vec::new())));
    let lock = |items: &Mutex<VecDeque<T>>| {
        items.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    };
    let run = || {
        while let Some(item) = lock(&items) {
            let result = work(item);
            let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
            match (&mut *results, result) {
                (Ok(done), Ok(result)) => done.push(result),
                (Ok(_), Err(error)) => *results = Err(error),
                (Err(_), _) => {}
            }
            if results.is_err() {
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::format::manifest::{Manifest, ManifestKind, PartPlace, PartRef};
    use crate::state::LocalFile;
    use crate::storage::job_store::Claim;
    use crate::storage::{CheckpointStorage, MemoryStorage};

    #[test]
    fn everything_is_done_once_and_the_first_error_is_told() {
        let mut done = in_parallel((0..100).collect(), Ok::<u32, u32>).unwrap();
        done.sort_unstable();
        assert_eq!(done, (0..100).collect::<Vec<_>>());
        let failing = |n: u32| if n == 40 { Err(n) } else { Ok(n) };
        assert_eq!(in_parallel((0..100).collect(), failing), Err(40));
        assert_eq!(in_parallel(VecDeque::new(), Ok::<u32, u32>), Ok(Vec::new()));
    }

    fn file(name: &str, path: &str) -> NativeFile {
        NativeFile { name: name.to_owned(), path: path.to_owned(), bytes: 1, crc32c: 2 }
    }

    #[test]
    fn only_files_of_complete_checkpoints_are_reused() {
        let uploads = Uploads::new(0);
        let complete = || uploads.known().complete.keys().cloned().collect::<Vec<_>>();
        uploads.known().written.insert(Epoch(1), vec![file("1.sst", "a")]);
        uploads.known().written.insert(Epoch(2), vec![file("2.sst", "b")]);
        uploads.known().written.insert(Epoch(3), vec![file("3.sst", "c")]);
        assert!(complete().is_empty());
        uploads.aborted(Epoch(2));
        uploads.complete(Epoch(1));
        assert_eq!(complete(), ["1.sst"]);
        uploads.complete(Epoch(3));
        assert_eq!(complete(), ["3.sst"]);
        uploads.complete(Epoch(4));
        assert!(complete().is_empty(), "it may be deleted with what was complete before");
    }

    /// A snapshot of files in a directory.
    struct Snapshot(NativeFiles);

    impl NativeSnapshot for Snapshot {
        fn wait(self: Box<Self>) -> Result<Option<NativeFiles>, FormatError> {
            Ok(Some(self.0))
        }
    }

    /// An instance whose snapshots are what the test says.
    struct Instance {
        root: tempfile::TempDir,
        store: JobStore,
        claim: Claim,
        uploads: Arc<Uploads>,
        complete: Vec<Epoch>,
    }

    impl Instance {
        fn new() -> Self {
            let storage: Arc<dyn CheckpointStorage> = Arc::new(MemoryStorage::new());
            let store = JobStore::new(storage, Name::new("job").unwrap());
            store.prepare(128, 1).unwrap();
            let claim = store.claim().unwrap();
            let root = tempfile::tempdir().unwrap();
            Self { root, store, claim, uploads: Arc::new(Uploads::new(0)), complete: Vec::new() }
        }

        /// Uploads a snapshot of tables with these names. Returns its image, and what was uploaded.
        fn write(&self, epoch: Epoch, tables: &[&str]) -> (NativeImage, FileTransfers) {
            let files = tables.iter().map(|name| LocalFile {
                name: format!("{name}.sst"),
                bytes: name.len() as u64,
                lasts: true,
            });
            let manifest = LocalFile { name: "MANIFEST-1".into(), bytes: 4, lasts: false };
            let files: Vec<LocalFile> = files.chain([manifest]).collect();
            for LocalFile { name, bytes, .. } in &files {
                std::fs::write(self.root.path().join(name), &name.as_bytes()[..*bytes as usize])
                    .unwrap();
            }
            let snapshot = Snapshot(NativeFiles {
                backend: "rocksdb",
                version: 1,
                directory: self.root.path().to_owned(),
                files,
                keep: Arc::new(()),
            });
            let part = NativePart {
                operator: Name::new("count").unwrap(),
                snapshot: Box::new(snapshot),
                uploads: Arc::clone(&self.uploads),
            };
            upload(&self.store, part, (epoch, self.claim.attempt(), 0)).unwrap().unwrap()
        }

        /// Takes a checkpoint, completes it, and deletes what is not among the last two. Returns what was uploaded.
        fn checkpoint(&mut self, epoch: Epoch, tables: &[&str]) -> FileTransfers {
            let (image, moved) = self.write(epoch, tables);
            let manifest = Manifest {
                job: Name::new("job").unwrap(),
                epoch,
                attempt: self.claim.attempt(),
                lineage: self.claim.lineage(),
                parallelism: 1,
                max_parallelism: 128,
                kind: ManifestKind::Checkpoint,
                last: false,
                triggered_unix_ms: 1,
                parts: vec![PartRef {
                    worker: 0,
                    place: PartPlace::Inline(Vec::new()),
                    sections: Vec::new(),
                    layers: Vec::new(),
                    natives: vec![image],
                }],
            };
            self.store.publish(&self.claim, &manifest).unwrap();
            self.uploads.complete(epoch);
            self.complete.push(epoch);
            let keep = &self.complete[self.complete.len().saturating_sub(2)..];
            self.store.retire(&self.claim, keep, &[]).unwrap();
            moved
        }

        /// The names of the tables in storage, in their order.
        fn stored(&self) -> Vec<String> {
            let blobs = self.store.storage().list(None).unwrap();
            let tables = blobs.iter().filter_map(|(path, _)| path.as_str().strip_suffix(".sst"));
            let mut names: Vec<String> =
                tables.filter_map(|path| Some(path.rsplit_once('-')?.1.to_owned())).collect();
            names.sort();
            names
        }
    }

    /// The walk-through of Flink's registry of shared state, with two checkpoints retained.
    #[test]
    fn files_are_uploaded_once_and_deleted_when_no_retained_checkpoint_needs_them() {
        let mut instance = Instance::new();
        let counts = |moved: FileTransfers| (moved.uploaded, moved.reused);
        // The file that does not last is uploaded each time.
        assert_eq!(counts(instance.checkpoint(Epoch(11), &["a", "b"])), (3, 0));
        assert_eq!(instance.stored(), ["a", "b"]);
        assert_eq!(counts(instance.checkpoint(Epoch(12), &["a", "b", "c", "d"])), (3, 2));
        // Compacted: a, b and c are one now.
        assert_eq!(counts(instance.checkpoint(Epoch(13), &["abc", "d", "e"])), (3, 1));
        assert_eq!(instance.stored(), ["a", "abc", "b", "c", "d", "e"]);
        assert_eq!(counts(instance.checkpoint(Epoch(14), &["abc", "def"])), (2, 1));
        assert_eq!(instance.stored(), ["abc", "d", "def", "e"]);
        assert!(instance.store.unreachable().unwrap().is_empty());
    }

    #[test]
    fn what_an_aborted_checkpoint_has_uploaded_is_uploaded_again() {
        let mut instance = Instance::new();
        instance.checkpoint(Epoch(11), &["a"]);
        let (_, moved) = instance.write(Epoch(12), &["a", "b"]);
        assert_eq!((moved.uploaded, moved.reused), (2, 1));
        instance.uploads.aborted(Epoch(12));
        let moved = instance.checkpoint(Epoch(13), &["a", "b"]);
        assert_eq!((moved.uploaded, moved.reused), (2, 1));
        assert!(instance.store.unreachable().unwrap().is_empty());
    }
}
