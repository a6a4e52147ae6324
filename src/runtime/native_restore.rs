//! Restoring states that a checkpoint holds as files of a backend: the same backend opens them, any other reads the rows.

use std::ops::Range;

use crate::format::FormatError;
use crate::format::manifest::{Manifest, NativeImage};
use crate::format::part::EntryBlock;
use crate::ids::Name;
use crate::protocol::key_groups::key_groups;
use crate::protocol::layers::Selection;
use crate::storage::Image;
use crate::storage::job_store::JobStoreError;

/// The files of an operator that a checkpoint holds, of one of the workers that took it.
#[derive(Clone, Debug)]
pub(crate) struct HeldNative<'a> {
    /// The key groups that the worker had.
    pub(crate) groups: Range<u16>,
    pub(crate) image: &'a NativeImage,
}

/// The files of an operator that hold rows of `groups`.
pub(crate) fn held_natives<'a>(
    image: &'a Image,
    groups: &Range<u16>,
    is_it: impl Fn(&Name) -> bool,
) -> Vec<HeldNative<'a>> {
    let Manifest { parts, parallelism, max_parallelism, .. } = image.manifest();
    let mut held = Vec::new();
    for part in parts {
        if image.overlap(part.worker, groups).is_empty() {
            continue;
        }
        let groups = key_groups(*max_parallelism, *parallelism as usize, part.worker as usize);
        let images = part.natives.iter().filter(|native| is_it(&native.operator));
        held.extend(images.map(|image| HeldNative { groups: groups.clone(), image }));
    }
    held
}

/// Files could not be read.
pub(crate) fn unreadable(native: &NativeImage, image: &Image, why: String) -> JobStoreError {
    let path = native.files.first().map_or("", |file| file.path.as_str());
    let why = format!("the files of operator {} cannot be opened: {why}", native.operator);
    image.file_error(path, FormatError::corrupt(0, why))
}

#[cfg(not(feature = "rocksdb"))]
pub(crate) use without::NativeReaders;

#[cfg(not(feature = "rocksdb"))]
mod without {
    use super::*;

    /// The files of an operator, opened to be read.
    pub(crate) enum NativeReaders {}

    impl NativeReaders {
        /// Says that these cannot be opened.
        pub(crate) fn open(
            image: &Image,
            held: &[HeldNative<'_>],
        ) -> Result<Option<Self>, JobStoreError> {
            match held.first() {
                None => Ok(None),
                Some(HeldNative { image: native, groups }) => {
                    let feature = &native.backend;
                    let why = format!(
                        "key groups {} to {} need a program with the feature `{feature}`",
                        groups.start,
                        groups.end - 1
                    );
                    Err(unreadable(native, image, why))
                }
            }
        }

        /// Gives nothing.
        pub(crate) fn for_each_block(
            &self,
            _state: &str,
            _groups: &Range<u16>,
            _take: impl FnMut(&Selection<'_>, &EntryBlock<'_>) -> Result<(), FormatError>,
        ) -> Result<(), JobStoreError> {
            match *self {}
        }
    }
}

#[cfg(feature = "rocksdb")]
pub(crate) use with::{NativeReaders, have_our_rows, take_over};

#[cfg(feature = "rocksdb")]
mod with {
    use std::fs::File;
    use std::path::Path;

    use super::*;
    use crate::format::manifest::NativeFile;
    use crate::format::{SectionHeader, SectionKind};
    use crate::runtime::instances::Directory;
    use crate::runtime::natives::{copy, in_parallel};
    use crate::state::rocks::{
        BACKEND, Budget, ENTRIES_SINCE, FORMAT_VERSION, Instance, Profile, Reader, RocksError,
        Source,
    };
    use crate::storage::BlobContents;

    /// What reading takes of memory. Units: bytes.
    const READER_BYTES: usize = 16 << 20;

    /// Fetches the files of an image into a directory of their own, and checks each.
    ///
    /// # Errors
    /// [`JobStoreError`], naming the file.
    fn fetch(image: &Image, native: &NativeImage, to: &Path) -> Result<(), JobStoreError> {
        let local = |source| JobStoreError::Damaged {
            path: to.display().to_string(),
            source: FormatError::Io(source),
        };
        std::fs::create_dir_all(to).map_err(local)?;
        let files = native.files.iter().collect();
        in_parallel(files, |file: &NativeFile| {
            let NativeFile { name, path, bytes, crc32c } = file;
            let damaged = |source| image.file_error(path, source);
            if Name::new(name.as_str()).is_err() {
                let why = format!("the manifest says that it is called {name:?}");
                return Err(damaged(FormatError::corrupt(0, why)));
            }
            let contents = BlobContents { bytes: *bytes, crc32c: *crc32c };
            let mut reader = image.open_blob(path, contents)?;
            let mut writer = File::create(to.join(name)).map_err(local)?;
            let copied = copy(&mut reader, &mut writer).map_err(|error| damaged(error.into()))?;
            if copied != (*bytes, *crc32c) {
                let why = format!(
                    "{} bytes with checksum {:08x} are there, the manifest says {bytes} with {crc32c:08x}",
                    copied.0, copied.1
                );
                return Err(damaged(FormatError::corrupt(0, why)));
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Refuses what is not ours.
    fn check(image: &Image, native: &NativeImage) -> Result<(), JobStoreError> {
        let NativeImage { backend, version, .. } = native;
        if backend == BACKEND && *version <= FORMAT_VERSION {
            return Ok(());
        }
        let why = format!("they are of backend {backend}, format {version}");
        Err(unreadable(native, image, why))
    }

    /// The files of an operator, opened to be read.
    pub(crate) struct NativeReaders {
        readers: Vec<(Range<u16>, Reader)>,
        _directory: Directory,
    }

    impl NativeReaders {
        /// Fetches the files and opens them.
        pub(crate) fn open(
            image: &Image,
            held: &[HeldNative<'_>],
        ) -> Result<Option<Self>, JobStoreError> {
            let Some(HeldNative { image: first, .. }) = held.first() else { return Ok(None) };
            let failed = |why: std::io::Error| unreadable(first, image, why.to_string());
            let directory = Directory::create(&std::env::temp_dir(), "read").map_err(failed)?;
            let budget = Budget::new(READER_BYTES);
            let mut readers = Vec::new();
            for (number, HeldNative { groups, image: native }) in held.iter().enumerate() {
                check(image, native)?;
                let path = directory.path().join(number.to_string());
                fetch(image, native, &path)?;
                let reader = Reader::open(&path, Profile::LowMemory, &budget)
                    .map_err(|error| unreadable(native, image, error.text()))?;
                readers.push((groups.clone(), reader));
            }
            Ok(Some(Self { readers, _directory: directory }))
        }

        /// Gives the entries of one state and some key groups. An error of `take` is taken for damage.
        pub(crate) fn for_each_block(
            &self,
            state: &str,
            groups: &Range<u16>,
            mut take: impl FnMut(&Selection<'_>, &EntryBlock<'_>) -> Result<(), FormatError>,
        ) -> Result<(), JobStoreError> {
            for (held, reader) in &self.readers {
                let groups = held.start.max(groups.start)..held.end.min(groups.end);
                if groups.is_empty() {
                    continue;
                }
                let selection = Selection::whole(groups.clone());
                let read = reader.blocks(state, groups.clone(), |entries, bytes| {
                    let (first_group, last_group) = (groups.start, groups.end - 1);
                    let block = EntryBlock { first_group, last_group, entries, bytes, offset: 0 };
                    take(&selection, &block)
                });
                read.map_err(|source| JobStoreError::Damaged {
                    path: format!("the files of state {state}"),
                    source,
                })?;
            }
            Ok(())
        }
    }

    /// Whether files hold the rows of these states as an instance does now.
    pub(crate) fn have_our_rows(held: &[HeldNative<'_>], states: &[SectionHeader]) -> bool {
        let has_entries =
            |header: &SectionHeader| header.kind == SectionKind::KeyedMap && !header.shape.expires;
        let are_new = held.iter().all(|held| held.image.version >= ENTRIES_SINCE);
        are_new || !states.iter().any(has_entries)
    }

    /// Opens an instance with the rows of `groups` that the checkpoint holds, and drops all states but `states`. Returns the
    /// image whose files the instance has now, if there was any.
    pub(crate) fn take_over<'a>(
        image: &Image,
        held: &[HeldNative<'a>],
        instance: &Instance,
        groups: &Range<u16>,
        states: &[&str],
    ) -> Result<Option<&'a NativeImage>, JobStoreError> {
        let ranges = held.iter().map(|held| &held.groups);
        let Some(fullest) = Source::fullest(ranges, groups) else { return Ok(None) };
        let mut held = held.to_vec();
        held.swap(0, fullest);
        let mut sources = Vec::new();
        for (number, HeldNative { groups, image: native }) in held.iter().enumerate() {
            check(image, native)?;
            let directory = instance.directory().join(format!("fetched-{number}"));
            fetch(image, native, &directory)?;
            sources.push(Source { directory, groups: groups.clone() });
        }
        let first = held[0].image;
        let failed = |error: RocksError| unreadable(first, image, error.text());
        let is_its_own = instance.take_over(&sources, groups).map_err(failed)?;
        instance.keep_only(states).map_err(failed)?;
        Ok(is_its_own.then_some(first))
    }
}
