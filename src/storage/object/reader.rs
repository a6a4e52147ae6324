//! Reading an object by ranges. Whoever reads in order finds the next range on its way already.

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use bytes::Bytes;
use object_store::path::Path as Key;
use object_store::{GetOptions, GetRange, ObjectStoreExt};

use super::lane::Task;
use super::retry::{Answer, Failure, retried};
use super::{Core, ObjectStorage};
use crate::storage::{BlobPath, BlobReader};

/// Units: bytes of the first range, and of the one after a seek.
const WINDOW_MIN: u64 = 256 << 10;
/// Units: bytes of a range when much was read in order. Two of them are in memory.
const WINDOW_MAX: u64 = 4 << 20;

pub(super) struct ObjectReader {
    storage: ObjectStorage,
    object: Object,
    position: u64,
    /// What was read last, and where it begins.
    window: (u64, Bytes),
    window_bytes: u64,
    ahead: Option<Ahead>,
}

/// An object as it was when it was opened.
#[derive(Clone)]
struct Object {
    core: Arc<Core>,
    key: Key,
    size: u64,
    tag: Option<String>,
}

/// The range that follows the window, on its way.
struct Ahead {
    start: u64,
    bytes: Receiver<Result<Bytes, Failure>>,
    _task: Task,
}

impl Object {
    async fn range(&self, start: u64, bytes: u64) -> Result<Bytes, Failure> {
        let end = start.saturating_add(bytes).min(self.size);
        let call = || async {
            let options = GetOptions {
                range: Some(GetRange::Bounded(start..end)),
                if_match: self.tag.clone(),
                ..GetOptions::default()
            };
            self.core.backend.get_opts(&self.key, options).await?.bytes().await
        };
        retried(self.core.policy, call).await
    }
}

impl ObjectReader {
    /// Opens an object, and reads its first range.
    pub(super) fn open(storage: ObjectStorage, path: &BlobPath) -> Result<Self, Failure> {
        let (core, key) = (storage.core.clone(), storage.key(path));
        let task = async move {
            let first = || async {
                let range = Some(GetRange::Bounded(0..WINDOW_MIN));
                let options = GetOptions { range, ..GetOptions::default() };
                let there = core.backend.get_opts(&key, options).await?;
                let meta = there.meta.clone();
                Ok((meta, there.bytes().await?))
            };
            let (meta, bytes) = match retried(core.policy, first).await {
                Ok(there) => there,
                // An empty object has no range.
                Err(failure) if failure.answer == Answer::Refused => {
                    match retried(core.policy, || core.backend.head(&key)).await {
                        Ok(meta) if meta.size == 0 => (meta, Bytes::new()),
                        _ => return Err(failure),
                    }
                }
                Err(failure) => return Err(failure),
            };
            Ok((Object { core, key, size: meta.size, tag: meta.e_tag }, bytes))
        };
        let opened = storage.lane.run(task).map_err(Failure::of_lane)?;
        let (object, bytes) = opened?;
        let window = (0, bytes);
        Ok(Self { storage, object, position: 0, window, window_bytes: WINDOW_MIN, ahead: None })
    }

    /// Makes the window begin at the position.
    fn fill(&mut self) -> io::Result<()> {
        let (start, bytes) = &self.window;
        let in_order = *start + bytes.len() as u64 == self.position;
        self.window_bytes =
            if in_order { (self.window_bytes * 2).min(WINDOW_MAX) } else { WINDOW_MIN };
        let ahead = self.ahead.take().filter(|ahead| ahead.start == self.position);
        let bytes = match ahead.and_then(|ahead| ahead.bytes.recv().ok()) {
            Some(bytes) => bytes,
            None => {
                let (object, start, bytes) =
                    (self.object.clone(), self.position, self.window_bytes);
                self.storage.lane.run(async move { object.range(start, bytes).await })?
            }
        };
        let bytes = bytes.map_err(|failure| match failure.answer {
            Answer::Condition => {
                let why = format!("{} was replaced while it was read", self.object.key);
                io::Error::other(why)
            }
            _ => failure.into_io(&self.storage.remedy),
        })?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.window = (self.position, bytes);
        if in_order {
            self.look_ahead();
        }
        Ok(())
    }

    fn look_ahead(&mut self) {
        let start = self.window.0 + self.window.1.len() as u64;
        if start >= self.object.size {
            return;
        }
        let (object, bytes) = (self.object.clone(), (self.window_bytes * 2).min(WINDOW_MAX));
        let (sender, receiver) = sync_channel(1);
        let task = self.storage.lane.start(async move {
            let _ = sender.send(object.range(start, bytes).await);
        });
        self.ahead = Some(Ahead { start, bytes: receiver, _task: task });
    }
}

impl Read for ObjectReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() || self.position >= self.object.size {
            return Ok(0);
        }
        let (start, bytes) = &self.window;
        if !(*start..*start + bytes.len() as u64).contains(&self.position) {
            self.fill()?;
        }
        let (start, bytes) = &self.window;
        let from = &bytes[(self.position - start) as usize..];
        let count = from.len().min(out.len());
        out[..count].copy_from_slice(&from[..count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for ObjectReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.object.size.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl BlobReader for ObjectReader {
    fn size_bytes(&self) -> u64 {
        self.object.size
    }
}
