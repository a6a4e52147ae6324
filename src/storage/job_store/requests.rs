//! What a user asks a running job for: a file in the job's directory, and another one for the answer.
//!
//! Several processes need no ports for it, and who may ask is who may write the directory. A request has a random
//! number, so that a late answer to an old one is never taken for that to a new one.
//!
//! | file          | written by                          | removed by                                          |
//! |---------------|-------------------------------------|-----------------------------------------------------|
//! | `<id>`        | the asker, create-if-absent         | the asker; the running attempt, when it has expired |
//! | `<id>.taken`  | the attempt that will answer        | the same                                            |
//! | `<id>.answer` | that attempt, or a later one, create-if-absent | the same                                 |
//!
//! A request that a dead attempt has taken is answered by the next one: it has failed. Nobody takes a request twice, so
//! what it asks for is done at most once.

use std::collections::{BTreeMap, BTreeSet};

use super::layout::Place;
use super::{JobStore, JobStoreError, RECORD_BYTES_MAX, layout};
use crate::format::record::{SavepointAnswer, SavepointRequest};
use crate::ids::Attempt;
use crate::storage::{Created, StorageError};

/// Units: milliseconds. An answer that nobody has fetched is removed when it is older.
pub const REQUEST_AGE_MAX: u64 = 600_000;

/// A request that this attempt is to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenRequest {
    /// Its number.
    pub id: u64,
    /// What is asked for.
    pub request: SavepointRequest,
}

#[derive(Default)]
struct Found {
    request: bool,
    taken: bool,
    answer: bool,
}

impl JobStore {
    /// Asks the running job for a savepoint; returns the number of the request.
    ///
    /// # Errors
    /// [`JobStoreError`].
    pub fn ask(&self, request: &SavepointRequest) -> Result<u64, JobStoreError> {
        let bytes = {
            let path = self.path(layout::REQUESTS);
            request.encode().map_err(|e| self.encode_error(&path, e))?
        };
        loop {
            let mut random = [0; 8];
            getrandom::fill(&mut random).map_err(|error| {
                let path = self.address(&self.path(layout::REQUESTS));
                let op = crate::storage::StorageOp::Write;
                StorageError::Determinate { op, path, source: std::io::Error::other(error) }
            })?;
            // Neither zero nor the last number, which are no numbers of requests.
            let id = (u64::from_le_bytes(random) >> 1) | 1;
            if self.storage.create(&self.path(&layout::request(id)), &bytes)? == Created::New {
                return Ok(id);
            }
        }
    }

    /// Whether an attempt has taken the request.
    ///
    /// # Errors
    /// [`JobStoreError`].
    pub fn is_taken(&self, id: u64) -> Result<bool, JobStoreError> {
        Ok(!self.storage.list(Some(&self.path(&layout::taken(id))))?.is_empty())
    }

    /// The answer to a request, if there is one.
    ///
    /// # Errors
    /// [`JobStoreError`].
    pub fn answer_of(&self, id: u64) -> Result<Option<SavepointAnswer>, JobStoreError> {
        let path = self.path(&layout::answer(id));
        match self.storage.read(&path, RECORD_BYTES_MAX) {
            Err(StorageError::NotFound { .. }) => Ok(None),
            read => SavepointAnswer::decode(&read?)
                .map(Some)
                .map_err(|e| self.damaged(path.as_str(), e)),
        }
    }

    /// Removes a request and what belongs to it. Nobody waits for the answer any more.
    ///
    /// # Errors
    /// [`JobStoreError`].
    pub fn withdraw(&self, id: u64) -> Result<(), JobStoreError> {
        for file in [layout::request(id), layout::taken(id), layout::answer(id)] {
            self.storage.delete(&self.path(&file))?;
        }
        Ok(())
    }

    /// Answers a request. The first answer counts.
    ///
    /// # Errors
    /// [`JobStoreError`].
    pub fn answer(&self, id: u64, answer: &SavepointAnswer) -> Result<(), JobStoreError> {
        let path = self.path(&layout::answer(id));
        let bytes = answer.encode().map_err(|e| self.encode_error(&path, e))?;
        self.storage.create(&path, &bytes)?;
        Ok(())
    }

    /// Takes the requests that wait, and removes those that nobody waits for. `open` are those that the attempt has taken
    /// and not answered.
    ///
    /// # Errors
    /// [`JobStoreError::Fenced`] if a newer attempt has claimed: none is taken. After others call again.
    pub fn take_requests(
        &self,
        attempt: Attempt,
        open: &BTreeSet<u64>,
        now_unix_ms: u64,
    ) -> Result<Vec<TakenRequest>, JobStoreError> {
        let blobs = self.storage.list(Some(&self.path(layout::REQUESTS)))?;
        if blobs.is_empty() {
            return Ok(Vec::new());
        }
        self.check_unfenced(attempt)?;
        let mut found: BTreeMap<u64, Found> = BTreeMap::new();
        for (path, _) in &blobs {
            match self.place(path) {
                Place::Request(id) => found.entry(id).or_default().request = true,
                Place::Taken(id) => found.entry(id).or_default().taken = true,
                Place::Answer(id) => found.entry(id).or_default().answer = true,
                _ => {}
            }
        }
        let mut taken = Vec::new();
        for (id, found) in found {
            if open.contains(&id) && !found.answer {
                continue;
            }
            match found {
                Found { request: false, .. } => self.withdraw(id)?,
                Found { answer: true, .. } => {
                    let old = |answer: SavepointAnswer| {
                        now_unix_ms.saturating_sub(answer.unix_ms) > REQUEST_AGE_MAX
                    };
                    if self.answer_of(id)?.is_some_and(old) {
                        self.withdraw(id)?;
                    }
                }
                Found { taken: true, .. } => {
                    let why = "the attempt that had begun it has ended before it was complete";
                    let result = Err(why.to_owned());
                    self.answer(id, &SavepointAnswer { unix_ms: now_unix_ms, result })?;
                }
                Found { .. } => taken.extend(self.take(id, attempt, now_unix_ms)?),
            }
        }
        Ok(taken)
    }

    fn take(
        &self,
        id: u64,
        attempt: Attempt,
        now_unix_ms: u64,
    ) -> Result<Option<TakenRequest>, JobStoreError> {
        let path = self.path(&layout::request(id));
        let request = match self.storage.read(&path, RECORD_BYTES_MAX) {
            Err(StorageError::NotFound { .. }) => return Ok(None), // Withdrawn meanwhile.
            read => SavepointRequest::decode(&read?),
        };
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                // Another version of the tool, or damage: an error of this poll would hide the other requests.
                let result = Err(format!("the request can not be read: {error}"));
                self.answer(id, &SavepointAnswer { unix_ms: now_unix_ms, result })?;
                return Ok(None);
            }
        };
        if request.expires_unix_ms < now_unix_ms {
            self.withdraw(id)?;
            return Ok(None);
        }
        let mark = self.path(&layout::taken(id));
        let created = self.storage.create(&mark, attempt.to_string().as_bytes())?;
        Ok((created == Created::New).then_some(TakenRequest { id, request }))
    }
}
