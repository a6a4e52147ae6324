//! `highwater state`: what a checkpoint or a savepoint holds, without knowing the program's types.

use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

use serde::Serialize;

use super::checkpoints::{Report, StateRow, state_table};
use super::sources::state_rows;
use super::tool::ToolError;
use crate::ids::Name;
use crate::storage::Image;

/// `ls`: the states of a checkpoint or a savepoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct StatesReport {
    pub job: String,
    pub location: String,
    pub id: u64,
    pub savepoint: bool,
    pub parallelism: u32,
    pub max_parallelism: u16,
    /// Sorted by operator and state.
    pub states: Vec<StateRow>,
}

impl Report for StatesReport {
    fn text(&self) -> String {
        let kind = if self.savepoint { "savepoint" } else { "checkpoint" };
        format!(
            "{kind} {} of job {} in {}, {} workers, {} key groups\n\n{}",
            self.id,
            self.job,
            self.location,
            self.parallelism,
            self.max_parallelism,
            state_table(&self.states)
        )
    }
}

/// What to dump.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub operator: Option<Name>,
    pub state: Option<Name>,
    pub key_group: Option<u16>,
}

/// A line of a dump: one block of entries. Where an entry ends only its type knows.
#[derive(Serialize)]
struct DumpLine<'a> {
    operator: &'a str,
    state: &'a str,
    worker: u32,
    first_key_group: u16,
    last_key_group: u16,
    entries: u32,
    /// Where the entries begin in the worker's part.
    offset_bytes: u64,
    hex: &'a str,
}

/// The states of what is in `path`.
pub(crate) fn states(path: &Path) -> Result<StatesReport, ToolError> {
    let image = Image::open(path)?;
    let manifest = image.manifest();
    Ok(StatesReport {
        job: manifest.job.to_string(),
        location: image.location(),
        id: manifest.epoch.0,
        savepoint: manifest.kind == crate::format::manifest::ManifestKind::Savepoint,
        parallelism: manifest.parallelism,
        max_parallelism: manifest.max_parallelism,
        states: state_rows(manifest),
    })
}

/// Writes the entries of what is in `path`, a block a line, as JSON. Holds one block in memory.
pub(crate) fn dump(path: &Path, wanted: &Wanted, out: &mut dyn Write) -> Result<(), ToolError> {
    let image = Image::open(path)?;
    let manifest = image.manifest();
    let sections = || manifest.parts.iter().flat_map(|part| &part.sections);
    let chosen = |header: &crate::format::SectionHeader| {
        wanted.operator.as_ref().is_none_or(|name| *name == header.operator)
            && wanted.state.as_ref().is_none_or(|name| *name == header.state)
    };
    if !sections().any(|section| chosen(&section.header)) {
        let location = image.location();
        return Err(ToolError::NoSuchState { location });
    }
    let groups = wanted.key_group.map_or(0..u16::MAX, |group| group..group.saturating_add(1));
    let mut hex = String::new();
    for part in &manifest.parts {
        let mut reader = image.open_part(part)?;
        let failed = |error| image.part_error(part, error);
        for index in 0..reader.sections().len() {
            let header = reader.sections()[index].header.clone();
            if !chosen(&header) {
                continue;
            }
            let mut blocks = reader.blocks(index, groups.clone());
            while let Some(block) = blocks.next().map_err(failed)? {
                hex.clear();
                for byte in block.bytes {
                    let _ = write!(hex, "{byte:02x}");
                }
                let line = DumpLine {
                    operator: header.operator.as_str(),
                    state: header.state.as_str(),
                    worker: part.worker,
                    first_key_group: block.first_group,
                    last_key_group: block.last_group,
                    entries: block.entries,
                    offset_bytes: block.offset,
                    hex: &hex,
                };
                let json = serde_json::to_string(&line).expect("texts and numbers, which JSON has");
                if writeln!(out, "{json}").is_err() {
                    return Ok(()); // The reader has seen enough.
                }
            }
        }
    }
    Ok(())
}
