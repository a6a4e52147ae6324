//! Where the tool's reports come from: the checkpoint store and the supervisor.
//!
//! WIRE: the five functions here are the only call sites.

use std::path::Path;
use std::process::ExitCode;

use super::checkpoints::{DeleteReport, ListReport, ShowReport, VerifyReport};
use super::tool::{RunPlan, ToolError};
use crate::ids::{Epoch, Name};

fn absent<T>() -> Result<T, ToolError> {
    Err(ToolError::Failed("this build has no checkpoint store and no supervisor".into()))
}

/// Runs the processes until they succeed, fail for good, or we are told to stop.
pub(crate) fn supervise(_plan: RunPlan) -> Result<ExitCode, ToolError> {
    absent()
}

/// The checkpoints of a job.
pub(crate) fn list(_dir: &Path, _job: Option<&Name>) -> Result<ListReport, ToolError> {
    absent()
}

/// What is in a checkpoint; without an id, in the newest.
pub(crate) fn show(
    _dir: &Path,
    _job: Option<&Name>,
    _id: Option<Epoch>,
) -> Result<ShowReport, ToolError> {
    absent()
}

/// Reads every byte of a checkpoint; without an id, of all.
pub(crate) fn verify(
    _dir: &Path,
    _job: Option<&Name>,
    _id: Option<Epoch>,
) -> Result<VerifyReport, ToolError> {
    absent()
}

/// Deletes a checkpoint.
pub(crate) fn delete(
    _dir: &Path,
    _job: Option<&Name>,
    _id: Epoch,
    _force: bool,
) -> Result<DeleteReport, ToolError> {
    absent()
}
