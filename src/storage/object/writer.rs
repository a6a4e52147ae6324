//! Writing an object: one put while it is small, else a multipart upload whose parts travel side by side.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bytes::Bytes;
use object_store::multipart::PartId;
use object_store::path::Path as Key;
use object_store::{MultipartId, PutMultipartOptions, PutPayload};

use super::lane::Task;
use super::retry::{Failure, RetryPolicy, retried};
use super::{ObjectStorage, mark, marked};
use crate::storage::{BlobPath, BlobWriter, StorageError, StorageOp};

/// Units: bytes of a part. All but the last must have 5 MiB at least.
const PART_BYTES: usize = 8 << 20;
/// Parts of that size; then they are larger, because an upload has ten thousand at the most.
const PARTS_SMALL: usize = 1000;
/// Units: bytes of a later part.
const PART_BYTES_LATER: usize = 64 << 20;
/// Parts of one upload that are on their way at once. That many are in memory, and one more.
const PARTS_AT_ONCE: usize = 4;
/// How long a dropped writer tries to remove what it has uploaded. What stays is swept.
const ABORT_TIME_MAX: Duration = Duration::from_secs(5);

pub(super) struct ObjectWriter {
    storage: ObjectStorage,
    key: Key,
    address: String,
    buffer: Vec<u8>,
    upload: Option<Upload>,
    /// Whether a write has failed: the parts are not whole.
    failed: bool,
}

/// A multipart upload. It is aborted unless it is completed.
struct Upload {
    id: MultipartId,
    mark: String,
    /// By number; `None` while one is on its way.
    parts: Vec<Option<PartId>>,
    on_their_way: usize,
    tasks: Vec<Task>,
    sender: Sender<(usize, Result<PartId, Failure>)>,
    uploaded: Receiver<(usize, Result<PartId, Failure>)>,
}

impl ObjectWriter {
    pub(super) fn new(storage: ObjectStorage, path: &BlobPath) -> Self {
        let (key, address) = (storage.key(path), storage.address(path));
        Self { storage, key, address, buffer: Vec::new(), upload: None, failed: false }
    }

    fn part_bytes(&self) -> usize {
        let parts = self.upload.as_ref().map_or(0, |upload| upload.parts.len());
        if parts < PARTS_SMALL { PART_BYTES } else { PART_BYTES_LATER }
    }

    fn io(&self, failure: Failure) -> io::Error {
        failure.into_io(&self.storage.remedy)
    }

    fn begin(&self) -> io::Result<Upload> {
        let (core, key, mark) = (self.storage.core.clone(), self.key.clone(), mark());
        let attributes = marked(&mark);
        let task = async move {
            let options =
                || PutMultipartOptions { attributes: attributes.clone(), ..Default::default() };
            retried(core.policy, || core.backend.create_multipart_opts(&key, options())).await
        };
        let id = self.storage.lane.run(task)?.map_err(|failure| self.io(failure))?;
        let (sender, uploaded) = channel();
        let (parts, tasks) = (Vec::new(), Vec::new());
        Ok(Upload { id, mark, parts, on_their_way: 0, tasks, sender, uploaded })
    }

    /// Sends what is in the buffer on its way, when there is room.
    fn send_part(&mut self) -> io::Result<()> {
        if self.upload.is_none() {
            self.upload = Some(self.begin()?);
        }
        self.wait_for_parts(PARTS_AT_ONCE - 1)?;
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        let upload = self.upload.as_mut().expect("the upload was just begun");
        let index = upload.parts.len();
        upload.parts.push(None);
        upload.on_their_way += 1;
        let (core, key, id) = (self.storage.core.clone(), self.key.clone(), upload.id.clone());
        let sender = upload.sender.clone();
        let task = self.storage.lane.start(async move {
            let payload = || PutPayload::from_bytes(bytes.clone());
            let put = || core.backend.put_part(&key, &id, index, payload());
            // The writer may be gone: then nobody wants to know.
            let _ = sender.send((index, retried(core.policy, put).await));
        });
        upload.tasks.push(task);
        Ok(())
    }

    /// Waits until no more than `rest` parts are on their way.
    fn wait_for_parts(&mut self, rest: usize) -> io::Result<()> {
        let Some(upload) = &mut self.upload else { return Ok(()) };
        while upload.on_their_way > rest {
            // We hold a sender ourselves; a part whose task panicked would never be heard of, and none can.
            let (index, part) = upload.uploaded.recv().map_err(io::Error::other)?;
            upload.on_their_way -= 1;
            match part {
                Ok(part) => upload.parts[index] = Some(part),
                Err(failure) => return Err(failure.into_io(&self.storage.remedy)),
            }
        }
        Ok(())
    }

    fn guarded<T>(&mut self, act: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        if self.failed {
            return Err(io::Error::other("an earlier write of this blob failed"));
        }
        let result = act(self);
        self.failed = result.is_err();
        result
    }

    fn finish_upload(&mut self) -> Result<(), StorageError> {
        let op = StorageOp::Publish;
        self.guarded(|writer| {
            if !writer.buffer.is_empty() {
                writer.send_part()?;
            }
            writer.wait_for_parts(0)
        })
        .map_err(|source| {
            let path = self.address.clone();
            StorageError::Determinate { op: StorageOp::Write, path, source }
        })?;
        let Some(upload) = &self.upload else { return Ok(()) };
        let parts: Vec<PartId> = upload.parts.iter().flatten().cloned().collect();
        debug_assert_eq!(parts.len(), upload.parts.len(), "every part has come");
        let (core, key) = (self.storage.core.clone(), self.key.clone());
        let (id, mark) = (upload.id.clone(), upload.mark.clone());
        let task = async move {
            let complete = || core.backend.complete_multipart(&key, &id, parts.clone());
            let completed = retried(core.policy, complete).await.map(drop);
            // Completing again what was completed is refused, but the object is ours.
            core.settle(&key, &mark, completed).await
        };
        let completed = self.storage.run(op, &self.address, task)?;
        let completed =
            completed.map_err(|failure| self.storage.failed(op, &self.address, failure));
        if completed.is_ok() {
            self.upload = None;
        }
        completed
    }
}

impl Write for ObjectWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.guarded(|writer| {
            let room = writer.part_bytes() - writer.buffer.len();
            let count = bytes.len().min(room);
            writer.buffer.extend_from_slice(&bytes[..count]);
            if count == room {
                writer.send_part()?;
            }
            Ok(count)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        // A part must have a size; nobody sees it before the end anyway.
        Ok(())
    }
}

impl BlobWriter for ObjectWriter {
    fn finish(mut self: Box<Self>) -> Result<(), StorageError> {
        if self.upload.is_some() || self.failed {
            return self.finish_upload();
        }
        let (core, key) = (self.storage.core.clone(), self.key.clone());
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        let op = StorageOp::Publish;
        let put =
            self.storage.run(op, &self.address, async move { core.put(&key, bytes).await })?;
        put.map_err(|failure| self.storage.failed(op, &self.address, failure))
    }
}

impl Drop for ObjectWriter {
    fn drop(&mut self) {
        let Some(upload) = self.upload.take() else { return };
        // A part that arrived after the abort would stay.
        drop(upload.tasks);
        let (core, key) = (self.storage.core.clone(), self.key.clone());
        let policy = RetryPolicy { give_up_after: ABORT_TIME_MAX, ..core.policy };
        let _ = self.storage.lane.run(async move {
            let abort = retried(policy, || core.backend.abort_multipart(&key, &upload.id));
            tokio::time::timeout(ABORT_TIME_MAX, abort).await.is_ok()
        });
    }
}
