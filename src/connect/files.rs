//! A source of the lines of files. Exactly-once.
//!
//! # Splits
//! Every file is a split, in the order of their paths; large plain files can be
//! [cut](Files::split_bytes). The position is the offset of the next line in the *uncompressed*
//! content. Plain files go on there; `.gz` and `.zst` files are decompressed and skipped up to
//! there, which costs as much as reading them did.
//!
//! # Files must stay as they are
//! A position keeps the size of the file that was seen and a hash of its first 4 KiB. A file that
//! became shorter or has another beginning is refused by name. A file that was read to its end is
//! not opened again, so it may be moved away once a checkpoint is complete.
//!
//! # Blocking
//! Files are read on the worker's thread, 256 KiB at a time: a local disk counts as not blocking
//! here. Files on a medium that can hang make the worker hang.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use serde::{Deserialize, Serialize};

use super::line::{self, Encoding};
use super::zst::ZstFrames;
use super::{ConnectError, ReadStatus, Source, SplitReader};

/// How much is read from a file at once, and skipped or given out in one call of `read`. Units:
/// bytes.
const CHUNK_BYTES: usize = 256 << 10;

/// How much of a file's beginning its identity covers. Units: bytes.
const HEAD_BYTES: u64 = 4 << 10;

const LINE_BYTES_MAX: u64 = 64 << 20;

/// A source of the lines of files, without their ends (`\n` or `\r\n`). A last line without an end
/// counts.
#[derive(Clone, Debug)]
pub struct Files {
    which: Which,
    encoding: Encoding,
    line_bytes_max: u64,
    split_bytes: Option<u64>,
}

#[derive(Clone, Debug)]
enum Which {
    Paths(Vec<PathBuf>),
    Pattern(String),
}

impl Files {
    /// The lines of these files. A path that is given twice is read once.
    #[must_use]
    pub fn lines<P: Into<PathBuf>>(paths: impl IntoIterator<Item = P>) -> Self {
        Self::of(Which::Paths(paths.into_iter().map(Into::into).collect()))
    }

    /// The lines of the files that match a pattern (`*`, `?`, `[...]`, and `**` for directories)
    /// when the job starts with nothing to restore. A job that restores reads the files of its
    /// checkpoint. A name that begins with a dot matches only a pattern that says the dot.
    #[must_use]
    pub fn glob(pattern: impl Into<String>) -> Self {
        Self::of(Which::Pattern(pattern.into()))
    }

    fn of(which: Which) -> Self {
        let encoding = Encoding::Strict;
        Self { which, encoding, line_bytes_max: LINE_BYTES_MAX, split_bytes: None }
    }

    /// Puts U+FFFD in the place of bytes that are not UTF-8. Without this they are an error that
    /// names the file and the offset.
    #[must_use]
    pub fn lossy(mut self) -> Self {
        self.encoding = Encoding::Lossy;
        self
    }

    /// Sets the length of the longest line that is accepted, without its end: a longer one is an
    /// error. Default: 64 MiB.
    #[must_use]
    pub fn line_bytes_max(mut self, bytes: u64) -> Self {
        self.line_bytes_max = bytes;
        self
    }

    /// Cuts plain files into splits of about so many bytes, so that several workers share a file. A
    /// line is in the split that holds its first byte. Compressed files are never cut.
    #[must_use]
    pub fn split_bytes(mut self, bytes: u64) -> Self {
        self.split_bytes = Some(bytes.max(1));
        self
    }

    /// The paths, in ascending order, each once.
    fn paths(&self) -> Result<Vec<PathBuf>, ConnectError> {
        let mut paths = match &self.which {
            Which::Paths(paths) => paths.clone(),
            Which::Pattern(pattern) => matching(pattern)?,
        };
        paths.sort();
        paths.dedup();
        Ok(paths)
    }
}

/// The files that match a pattern: at least one.
fn matching(pattern: &str) -> Result<Vec<PathBuf>, ConnectError> {
    let options = glob::MatchOptions {
        require_literal_separator: true,
        require_literal_leading_dot: true,
        ..glob::MatchOptions::default()
    };
    let found = glob::glob_with(pattern, options)
        .map_err(|error| ConnectError::caused(format!("{pattern:?} is not a pattern"), error))?;
    let mut paths = Vec::new();
    for path in found {
        let path = path.map_err(|error| {
            ConnectError::caused(
                format!("the files that match {pattern:?} cannot be listed"),
                error,
            )
        })?;
        if path.is_file() {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        return Err(ConnectError::new(format!("no file matches {pattern:?}")));
    }
    Ok(paths)
}

/// A split of [`Files`], with its position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSplit {
    path: String,
    /// Offset of the next line in the uncompressed content; before the split is first opened, of
    /// the cut.
    offset: u64,
    /// Offset of the next split of this file, if there is one.
    end: Option<u64>,
    progress: Progress,
}

impl FileSplit {
    /// The file's path.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where the next line begins, in the uncompressed content. Units: bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Progress {
    /// The split was never opened: the cut may be inside of a line that is another split's.
    New,
    /// The offset is the beginning of a line.
    Begun(Identity),
    /// All lines have been given out.
    Done,
}

/// By what a file is known again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    size: u64,
    head_bytes: u64,
    head_hash: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstandard,
}

impl Compression {
    fn of(path: &Path) -> Self {
        let is =
            |extension: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension));
        if is("gz") {
            Self::Gzip
        } else if is("zst") {
            Self::Zstandard
        } else {
            Self::None
        }
    }
}

impl Source for Files {
    type Record = String;
    type Split = FileSplit;
    type Reader = FileReader;

    fn splits(&mut self, _: usize) -> Result<Vec<FileSplit>, ConnectError> {
        let mut splits = Vec::new();
        for path in self.paths()? {
            let text = path.to_str().ok_or_else(|| {
                ConnectError::new(format!("the path {} is not UTF-8", path.display()))
            })?;
            let (_, size) = open(text)?;
            let mut cuts = vec![0];
            if let (Some(step), Compression::None) = (self.split_bytes, Compression::of(&path)) {
                cuts.extend((1..size.div_ceil(step)).map(|n| n * step));
            }
            for (index, offset) in cuts.iter().enumerate() {
                let end = cuts.get(index + 1).copied();
                let path = text.to_owned();
                splits.push(FileSplit { path, offset: *offset, end, progress: Progress::New });
            }
        }
        Ok(splits)
    }

    fn open(&mut self, split: FileSplit) -> Result<FileReader, ConnectError> {
        FileReader::open(split, self.encoding, self.line_bytes_max)
    }
}

/// Opens a regular file, and says its size.
fn open(path: &str) -> Result<(File, u64), ConnectError> {
    let failed = |error| ConnectError::caused(format!("{path} cannot be opened"), error);
    // Asked first: opening a named pipe waits for its writer.
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(ConnectError::new(format!("{path} is not a regular file")));
    }
    Ok((File::open(path).map_err(failed)?, metadata.len()))
}

/// Reads a split of [`Files`].
pub struct FileReader {
    split: FileSplit,
    encoding: Encoding,
    line_bytes_max: u64,
    /// `None` once everything has been read.
    input: Option<BufReader<Box<dyn Read>>>,
    /// What is still to be skipped, up to the position. Units: bytes.
    skip: u64,
}

impl std::fmt::Debug for FileReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileReader").field("split", &self.split).finish_non_exhaustive()
    }
}

impl FileReader {
    fn open(
        mut split: FileSplit,
        encoding: Encoding,
        line_bytes_max: u64,
    ) -> Result<Self, ConnectError> {
        if split.progress == Progress::Done {
            return Ok(Self { split, encoding, line_bytes_max, input: None, skip: 0 });
        }
        let path = &split.path;
        let failed = |error| ConnectError::caused(format!("{path} cannot be read"), error);
        let (mut file, size) = open(path)?;
        let kept =
            if let Progress::Begun(identity) = &split.progress { Some(identity) } else { None };
        if let Some(kept) = kept
            && size < kept.size
        {
            return Err(ConnectError::new(format!(
                "{path} has {size} bytes, and had at least {} when the checkpoint was taken: put the \
                 same file there",
                kept.size
            )));
        }
        let head_bytes = kept.map_or(size.min(HEAD_BYTES), |kept| kept.head_bytes);
        let head_hash = hash_head(&mut file, head_bytes).map_err(failed)?;
        if kept.is_some_and(|kept| kept.head_hash != head_hash) {
            return Err(ConnectError::new(format!(
                "{path} is another file than when the checkpoint was taken: its first {head_bytes} \
                 bytes differ. Put the same file there"
            )));
        }
        // A fresh split looks at the byte before its cut: if that ends a line, the cut begins one.
        let fresh_cut = kept.is_none() && split.offset > 0;
        let from = split.offset - u64::from(fresh_cut);
        let compression = Compression::of(Path::new(path));
        let start = if compression == Compression::None { from } else { 0 };
        file.seek(SeekFrom::Start(start)).map_err(failed)?;
        let input: Box<dyn Read> = match compression {
            Compression::None => Box::new(file),
            Compression::Gzip => {
                Box::new(MultiGzDecoder::new(BufReader::with_capacity(CHUNK_BYTES, file)))
            }
            Compression::Zstandard => {
                Box::new(ZstFrames::new(BufReader::with_capacity(CHUNK_BYTES, file)))
            }
        };
        split.progress = Progress::Begun(Identity { size, head_bytes, head_hash });
        split.offset = from;
        let input = Some(BufReader::with_capacity(CHUNK_BYTES, input));
        let mut reader = Self { split, encoding, line_bytes_max, input, skip: from - start };
        if fresh_cut {
            // The rest of this line is the split's before.
            reader.next_line()?;
            reader.end_at_the_cut();
        }
        Ok(reader)
    }

    /// Skips up to `CHUNK_BYTES` of what is left to skip.
    fn skip_some(&mut self) -> Result<(), ConnectError> {
        let Some(input) = &mut self.input else { return Ok(()) };
        let chunk = self.skip.min(CHUNK_BYTES as u64);
        let skipped = std::io::copy(&mut input.by_ref().take(chunk), &mut std::io::sink())
            .map_err(|error| self.unreadable(error))?;
        if skipped < chunk {
            return Err(ConnectError::new(format!(
                "{} ends before byte {} of its content, where the checkpoint was taken: put the same \
                 file there",
                self.split.path, self.split.offset
            )));
        }
        self.skip -= skipped;
        Ok(())
    }

    /// Reads the next line, and moves behind it. `None` at the end of the file.
    fn next_line(&mut self) -> Result<Option<Vec<u8>>, ConnectError> {
        let Some(input) = &mut self.input else { return Ok(None) };
        let mut bytes = Vec::new();
        // Two bytes more than a line may have: its end.
        let mut limited = input.by_ref().take(self.line_bytes_max.saturating_add(2));
        let read = limited.read_until(b'\n', &mut bytes).map_err(|error| self.unreadable(error))?;
        if read == 0 {
            self.finish();
            return Ok(None);
        }
        line::strip_end(&mut bytes);
        if bytes.len() as u64 > self.line_bytes_max {
            return Err(line::too_long(&self.split.path, self.split.offset, self.line_bytes_max));
        }
        self.split.offset += read as u64;
        Ok(Some(bytes))
    }

    /// Ends the split if the next line is the next split's.
    fn end_at_the_cut(&mut self) {
        if self.split.end.is_some_and(|end| self.split.offset >= end) {
            self.finish();
        }
    }

    fn finish(&mut self) {
        self.input = None;
        self.split.progress = Progress::Done;
    }

    fn unreadable(&self, error: std::io::Error) -> ConnectError {
        let FileSplit { path, offset, .. } = &self.split;
        ConnectError::caused(
            format!("{path} cannot be read behind byte {offset} of its content"),
            error,
        )
    }
}

impl SplitReader for FileReader {
    type Record = String;
    type Split = FileSplit;

    fn read(
        &mut self,
        batch: &mut Vec<String>,
        records_max: usize,
    ) -> Result<ReadStatus, ConnectError> {
        if self.skip > 0 {
            self.skip_some()?;
            return Ok(ReadStatus::More);
        }
        let begin = self.split.offset;
        for _ in 0..records_max {
            let start = self.split.offset;
            let Some(bytes) = self.next_line()? else { break };
            batch.push(line::decode(bytes, self.encoding, &self.split.path, start)?);
            self.end_at_the_cut();
            if self.split.offset - begin >= CHUNK_BYTES as u64 {
                break;
            }
        }
        Ok(if self.input.is_none() { ReadStatus::Finished } else { ReadStatus::More })
    }

    fn split(&self) -> FileSplit {
        self.split.clone()
    }
}

/// The hash of a file's first bytes. A file that has fewer hashes to something else.
fn hash_head(file: &mut File, head_bytes: u64) -> std::io::Result<u64> {
    let mut head = Vec::new();
    file.take(head_bytes.min(HEAD_BYTES)).read_to_end(&mut head)?;
    Ok(xxhash_rust::xxh3::xxh3_64(&head))
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
