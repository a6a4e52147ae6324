//! `highwater restore-plan`: starts the program with a variable that makes it say what a restore would do, and nothing
//! else.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::checkpoints::{Report, printable, table};
use super::settings::PLAN_VARIABLE;
use super::tool::ToolError;
use crate::config::JobConfig;
use crate::job::JobError;
use crate::runtime::attempt::Build;
use crate::runtime::plan::{Action, RestorePlan, restore_plan};
use crate::storage::Image;

/// The line that the program writes; others are its own.
#[derive(Serialize, Deserialize)]
struct PlanLine {
    restore_plan: RestorePlan,
}

/// The program's side: the line to write.
pub(super) fn plan_line(
    path: &Path,
    config: &JobConfig,
    build: &Arc<Build>,
) -> Result<String, JobError> {
    let image =
        Image::open(path).map_err(|error| JobError::refused(crate::runtime::describe(&error)))?;
    let line = PlanLine { restore_plan: restore_plan(image, config, build)? };
    Ok(serde_json::to_string(&line).expect("texts and numbers, which JSON has"))
}

/// The tool's side: runs the program and reads its line.
pub(super) fn ask(path: &Path, program: &[OsString]) -> Result<RestorePlan, ToolError> {
    let none = |why: String| ToolError::NoPlan { why };
    let path = crate::storage::absolute(path).map_err(|error| none(error.to_string()))?;
    let (program, arguments) = program.split_first().ok_or_else(|| none("no program".into()))?;
    let mut command = Command::new(program);
    command.args(arguments).env(PLAN_VARIABLE, path).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command
        .output()
        .map_err(|error| none(format!("{}: {error}", Path::new(program).display())))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().rev();
    let plan = lines.filter_map(|line| serde_json::from_str::<PlanLine>(line).ok()).next();
    plan.map(|line| line.restore_plan)
        .ok_or_else(|| none(format!("the program ended with {} and has told none", output.status)))
}

impl Report for RestorePlan {
    fn text(&self) -> String {
        let rows = self.states.iter().map(|state| {
            let action = match state.action {
                Action::Map => "map",
                Action::New => "new",
                Action::Drop => "DROP",
                Action::Mismatch => "MISMATCH",
            };
            let from = state.renamed_from.as_ref().map(|from| format!(" (was {from})"));
            [
                action.to_owned(),
                format!("{}{}", state.operator, from.unwrap_or_default()),
                state.state.clone(),
                printable(state.held.as_deref().unwrap_or("-")),
                printable(state.wanted.as_deref().unwrap_or("-")),
            ]
        });
        let table = table(["", "OPERATOR", "STATE", "HELD", "WANTED"], rows);
        let mut text =
            format!("checkpoint {} of job {} in {}\n\n{table}\n", self.id, self.job, self.location);
        for problem in &self.problems {
            text.push_str(&format!("{}\n", printable(problem)));
        }
        text.push_str(if self.problems.is_empty() {
            "the job would start\n"
        } else {
            "the job would NOT start\n"
        });
        text
    }
}
