//! A store by the text that a user gives: a directory, or the URL of an object store.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{CheckpointStorage, LocalStorage, StorageError, StorageOp};

/// Whether a place is a URL, as `s3://bucket/prefix`, and no path.
#[must_use]
pub fn is_url(place: &Path) -> bool {
    url(place).is_some()
}

pub(super) fn url(place: &Path) -> Option<&str> {
    place.to_str().filter(|text| text.contains("://"))
}

/// Opens the store in a directory, which is made if it is not there, or behind a URL of the form `s3://bucket/prefix`.
///
/// # Errors
/// [`StorageError::Determinate`] if it cannot be used: the message says what to do about it.
pub fn open(place: &Path) -> Result<Arc<dyn CheckpointStorage>, StorageError> {
    match url(place) {
        None => Ok(Arc::new(LocalStorage::open(place)?)),
        Some(url) => remote(url, true),
    }
}

/// Opens the store in a directory that must be there, or behind a URL, to look into it. Writes nothing.
///
/// # Errors
/// As [`open`], and [`StorageError::NotFound`].
pub fn open_existing(place: &Path) -> Result<Arc<dyn CheckpointStorage>, StorageError> {
    match url(place) {
        None => Ok(Arc::new(LocalStorage::open_existing(place)?)),
        Some(url) => remote(url, false),
    }
}

/// A place independent of the current directory.
///
/// # Errors
/// If the path is empty.
pub fn absolute(place: &Path) -> io::Result<PathBuf> {
    if is_url(place) { Ok(place.to_owned()) } else { std::path::absolute(place) }
}

/// Refuses the URL of what no program of this version keeps anything in.
pub(super) fn check(place: &Path) -> Result<(), StorageError> {
    match url(place) {
        Some(url) if !url.starts_with("s3://") => Err(unknown(url)),
        _ => Ok(()),
    }
}

/// Whether two stores are in the same place, as far as their names tell.
pub(crate) fn is_same(
    one: &Arc<dyn CheckpointStorage>,
    other: &Arc<dyn CheckpointStorage>,
) -> bool {
    let name = |storage: &Arc<dyn CheckpointStorage>| {
        let location = PathBuf::from(storage.location());
        if is_url(&location) { location } else { location.canonicalize().unwrap_or(location) }
    };
    name(one) == name(other)
}

#[cfg(feature = "s3")]
fn remote(url: &str, to_write: bool) -> Result<Arc<dyn CheckpointStorage>, StorageError> {
    use super::ObjectStorage;
    if !url.starts_with("s3://") {
        return Err(unknown(url));
    }
    let opened =
        if to_write { ObjectStorage::open(url) } else { ObjectStorage::open_existing(url) };
    Ok(Arc::new(opened?))
}

#[cfg(not(feature = "s3"))]
fn remote(url: &str, _to_write: bool) -> Result<Arc<dyn CheckpointStorage>, StorageError> {
    if !url.starts_with("s3://") {
        return Err(unknown(url));
    }
    let why = "this program is built without object stores: build it with the cargo feature `s3` of highwater \
               (`highwater = { features = [\"s3\"] }`, or `cargo build --features s3`)";
    Err(refused(url, why))
}

fn unknown(url: &str) -> StorageError {
    refused(url, "checkpoints are kept in a directory or in an object store, as s3://bucket/prefix")
}

fn refused(url: &str, why: &str) -> StorageError {
    // Somebody may have put credentials into it.
    let path = match url.split_once('@') {
        Some((before, after)) => {
            let scheme = before.split("://").next().unwrap_or_default();
            format!("{scheme}://***@{after}")
        }
        None => url.to_owned(),
    };
    let source = io::Error::new(ErrorKind::Unsupported, why);
    StorageError::Determinate { op: StorageOp::Read, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_no_path() {
        assert!(is_url(Path::new("s3://bucket/prefix")));
        for path in ["checkpoints", "/s3/x", "s3:/x", "./a:/b"] {
            assert!(!is_url(Path::new(path)), "{path}");
        }
        assert_eq!(absolute(Path::new("s3://bucket/a")).unwrap(), Path::new("s3://bucket/a"));
        assert!(absolute(Path::new("a")).unwrap().is_absolute());
    }

    #[test]
    fn a_store_that_is_not_built_in_is_refused_without_showing_passwords() {
        let mut urls = vec!["gs://me:secret@bucket/a"];
        if cfg!(not(feature = "s3")) {
            urls.push("s3://me:secret@bucket/a");
        }
        for url in urls {
            for opened in [open(Path::new(url)), open_existing(Path::new(url))] {
                let StorageError::Determinate { source, path, .. } = opened.unwrap_err() else {
                    panic!("in doubt")
                };
                assert_eq!(source.kind(), ErrorKind::Unsupported);
                assert!(path.ends_with("://***@bucket/a"), "{path}");
                let says =
                    if url.starts_with("s3") { "feature `s3`" } else { "s3://bucket/prefix" };
                assert!(source.to_string().contains(says), "{source}");
            }
        }
    }
}
