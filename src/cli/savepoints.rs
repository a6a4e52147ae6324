//! `highwater savepoint`: asks a running job, through files in its directory, and waits for the answer.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::checkpoints::Report;
use super::sources::open;
use super::tool::ToolError;
use super::units::{short_duration, short_size};
use crate::format::record::{SavepointFormat, SavepointRequest};
use crate::ids::Name;
use crate::job::convert::Conversion;
use crate::storage::JobStore;
use crate::storage::savepoint::absolute;

/// How long a running job may take to see a request. It looks twice a second.
const TAKEN_TIME_MAX: Duration = Duration::from_secs(30);
/// How often it is looked for the answer.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct SavepointReport {
    pub job: String,
    pub path: String,
    /// The checkpoint that it is a copy of.
    pub id: u64,
    pub parallelism: u32,
    pub entries: u64,
    pub size_bytes: u64,
    /// Whether that of a backend was wished for.
    #[serde(skip)]
    pub format: SavepointFormat,
    /// Number of files of backends in it.
    pub native_files: u64,
    /// Whether the job ends with it.
    pub stops: bool,
}

impl Report for SavepointReport {
    fn text(&self) -> String {
        let then = if self.stops { "; the job ends when its sinks have committed" } else { "" };
        let files = match (self.format, self.native_files) {
            (SavepointFormat::Native, 0) => {
                ", no files of a backend: it has none, so these are the entries as checkpoints have them"
            }
            (SavepointFormat::Canonical, 0) => "",
            (_, 1..) => ", in files of its backend",
        };
        format!(
            "savepoint {} of job {}: checkpoint {}, {} entries, {}{files}{then}\n",
            self.path,
            self.job,
            self.id,
            self.entries,
            short_size(self.size_bytes)
        )
    }
}

/// What was written of another savepoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ConvertReport {
    pub job: String,
    pub path: String,
    pub id: u64,
    pub max_parallelism: u16,
    pub entries: u64,
    pub size_bytes: u64,
}

impl Report for ConvertReport {
    fn text(&self) -> String {
        format!(
            "savepoint {} of job {}: checkpoint {} in {} key groups, {} entries, {}; restore it into a checkpoint \
             directory of its own, with --max-parallelism {}\n",
            self.path,
            self.job,
            self.id,
            self.max_parallelism,
            self.entries,
            short_size(self.size_bytes),
            self.max_parallelism
        )
    }
}

/// Rewrites what is in `from` to another number of key groups.
pub(crate) fn convert(
    from: &Path,
    max_parallelism: u16,
    to: &Path,
) -> Result<ConvertReport, ToolError> {
    let converted = Conversion::new().convert(from, to, max_parallelism);
    let info = converted.map_err(|error| ToolError::Failed(error.into()))?;
    Ok(ConvertReport {
        job: info.job.to_string(),
        path: info.path.display().to_string(),
        id: info.epoch.0,
        max_parallelism,
        entries: info.entries,
        size_bytes: info.bytes,
    })
}

/// Asks the job for a savepoint and waits for it. `stop`: the job ends with it; `true`: after it has drained.
pub(crate) fn savepoint(
    dir: &Path,
    job: Option<&Name>,
    to: &Path,
    stop: Option<bool>,
    format: SavepointFormat,
    timeout: Duration,
) -> Result<SavepointReport, ToolError> {
    let store = open(dir, job)?;
    let to = absolute(to).map_err(|error| ToolError::Failed(error.into()))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let expires_unix_ms = u64::try_from((now + timeout).as_millis()).unwrap_or(u64::MAX);
    let id = store.ask(&SavepointRequest { to, stop, format, expires_unix_ms })?;
    let answered = wait(&store, id, timeout);
    // Whatever came of it: what stays is removed by the job.
    let withdrawn = store.withdraw(id);
    let info = answered?;
    withdrawn?;
    Ok(SavepointReport {
        job: info.job.to_string(),
        path: info.path.display().to_string(),
        id: info.epoch.0,
        parallelism: info.parallelism,
        entries: info.entries,
        size_bytes: info.bytes,
        format,
        native_files: info.native_files,
        stops: stop.is_some(),
    })
}

fn wait(
    store: &JobStore,
    id: u64,
    timeout: Duration,
) -> Result<crate::format::record::SavepointInfo, ToolError> {
    let start = Instant::now();
    let mut taken = false;
    loop {
        if let Some(answer) = store.answer_of(id)? {
            return answer.result.map_err(|why| ToolError::NoSavepoint { why });
        }
        taken = taken || store.is_taken(id)?;
        let waited = start.elapsed();
        let job = store.job().clone();
        if !taken && waited >= timeout.min(TAKEN_TIME_MAX) {
            let location = store.storage().location();
            return Err(ToolError::NotRunning { job, location, waited: short_duration(waited) });
        }
        if waited >= timeout {
            return Err(ToolError::NoAnswer { job, waited: short_duration(waited) });
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::storage::LocalStorage;
    use crate::storage::job_store::JobStore;

    #[test]
    fn a_job_that_does_not_run_is_named_and_the_request_is_withdrawn() {
        let directory = tempfile::tempdir().unwrap();
        let storage = Arc::new(LocalStorage::open(directory.path()).unwrap());
        let store = JobStore::new(storage, Name::new("count").unwrap());
        store.prepare(128, 1).unwrap();
        let to = directory.path().join("to");
        let error = savepoint(
            directory.path(),
            None,
            &to,
            None,
            SavepointFormat::Canonical,
            Duration::from_millis(1),
        );
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("job count has not taken the request"), "{error}");
        assert!(error.contains("is it running"), "{error}");
        assert!(!directory.path().join("count/requests").exists());
        assert!(!to.exists());
    }
}
