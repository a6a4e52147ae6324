//! Tests of the store in a directory.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;

use super::*;
use crate::storage::conformance;

/// A new directory, removed when dropped.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let number = TEMPORARY_COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("highwater-local-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn path(text: &str) -> BlobPath {
    BlobPath::new(text).unwrap()
}

#[test]
fn a_local_store_keeps_the_contract() {
    let directory = Directory::new();
    let number = AtomicU64::new(0);
    conformance::check(&|| {
        let root = directory.0.join(number.fetch_add(1, Ordering::Relaxed).to_string());
        Arc::new(LocalStorage::open(&root).unwrap())
    });
}

#[test]
fn directories_and_files_are_for_their_owner_alone() {
    let directory = Directory::new();
    let root = directory.0.join("a/b");
    let storage = LocalStorage::open(&root).unwrap();
    storage.put(&path("job/chk/1/manifest"), b"x").unwrap();
    storage.create(&path("job/attempts/1"), b"x").unwrap();
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
    for made in [&directory.0.join("a"), &root, &root.join("job"), &root.join("job/chk/1")] {
        assert_eq!(mode(made), 0o700, "{made:?}");
    }
    for made in ["job/chk/1/manifest", "job/attempts/1"] {
        assert_eq!(mode(&root.join(made)), 0o600, "{made}");
    }
}

#[test]
fn links_below_the_root_are_not_followed() {
    let directory = Directory::new();
    let outside = directory.0.join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), b"x").unwrap();
    let root = directory.0.join("root");
    let storage = LocalStorage::open(&root).unwrap();
    symlink(&outside, root.join("job")).unwrap();
    symlink(outside.join("precious"), root.join("link")).unwrap();
    for bad in ["job/precious", "link"] {
        assert!(storage.delete(&path(bad)).is_err());
        assert!(storage.read(&path(bad), 10).is_err());
        assert!(storage.open(&path(bad)).is_err());
        assert!(storage.put(&path(bad), b"y").is_err());
        assert!(storage.create(&path(bad), b"y").is_err());
        assert!(storage.writer(&path(bad)).is_err());
    }
    assert_eq!(storage.list(None).unwrap(), []);
    assert!(storage.list(Some(&path("job"))).is_err());
    assert_eq!(fs::read(outside.join("precious")).unwrap(), b"x");
}

#[test]
fn temporary_files_are_invisible_and_swept_when_they_are_old() {
    let directory = Directory::new();
    let storage = LocalStorage::open(&directory.0).unwrap();
    let mut writer = storage.writer(&path("job/chk/1/a.part")).unwrap();
    writer.write_all(&[7; 1 << 20]).unwrap();
    assert_eq!(storage.list(None).unwrap(), []);
    assert_eq!(storage.sweep_temporary(Duration::from_secs(3600)).unwrap(), 0);
    assert_eq!(storage.sweep_temporary(Duration::ZERO).unwrap(), 1);
    let error = writer.finish().unwrap_err();
    assert!(matches!(error, StorageError::Determinate { .. }), "{error:?}");
    assert_eq!(storage.list(None).unwrap(), []);
    assert!(!directory.0.join("job").exists());
}

#[test]
fn a_store_that_vanished_is_an_error_and_not_an_empty_store() {
    let directory = Directory::new();
    let root = directory.0.join("root");
    let storage = LocalStorage::open(&root).unwrap();
    storage.put(&path("a"), b"x").unwrap();
    fs::remove_dir_all(&root).unwrap();
    assert!(storage.list(None).is_err());
    assert!(storage.list(Some(&path("a"))).is_err());
    assert!(storage.put(&path("a"), b"x").is_err());
    assert!(storage.delete(&path("a")).is_err());
    let error = LocalStorage::open_existing(&root).unwrap_err();
    assert!(matches!(error, StorageError::NotFound { .. }));
    assert!(!root.exists());
}

#[test]
fn errors_name_the_whole_path() {
    let directory = Directory::new();
    let storage = LocalStorage::open(&directory.0).unwrap();
    let error = storage.read(&path("job/chk/9/manifest"), 10).unwrap_err();
    let file = directory.0.join("job/chk/9/manifest");
    assert_eq!(error.to_string(), format!("{} does not exist", file.display()));
    // A file where a directory is needed.
    storage.put(&path("job"), b"x").unwrap();
    let error = storage.put(&path("job/chk/9/manifest"), b"x").unwrap_err();
    assert!(error.to_string().contains(&file.display().to_string()), "{error}");
    assert!(matches!(error, StorageError::Determinate { .. }));
}

#[test]
fn files_that_are_not_ours_are_neither_listed_nor_removed() {
    let directory = Directory::new();
    let storage = LocalStorage::open(&directory.0).unwrap();
    fs::create_dir(directory.0.join("job")).unwrap();
    fs::write(directory.0.join("job/.hidden"), b"x").unwrap();
    fs::write(directory.0.join("job/with space"), b"x").unwrap();
    assert_eq!(storage.list(None).unwrap(), []);
    storage.put(&path("job/a"), b"x").unwrap();
    storage.delete(&path("job/a")).unwrap();
    assert_eq!(storage.sweep_temporary(Duration::ZERO).unwrap(), 0);
    assert!(directory.0.join("job/.hidden").exists());
}

#[test]
fn concurrent_writers_and_deleters_of_one_directory_do_not_trip_over_each_other() {
    let directory = Directory::new();
    let storage = LocalStorage::open(&directory.0).unwrap();
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let storage = &storage;
            scope.spawn(move || {
                let path = path(&format!("job/chk/1/{worker}.part"));
                for _ in 0..50 {
                    storage.put(&path, b"x").unwrap();
                    storage.delete(&path).unwrap();
                }
            });
        }
    });
    assert_eq!(storage.list(None).unwrap(), []);
    assert!(!directory.0.join("job").exists());
}
