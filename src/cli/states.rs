//! `highwater state`: what a checkpoint or a savepoint holds, without the program: its types' shapes are beside the state.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value as Json, json};

use super::checkpoints::{Report, StateRow, printable, state_table};
use super::rows::{Columns, Format, Row, Rows, to_json};
use super::sources::state_rows;
use super::tool::ToolError;
use crate::format::part::EntryBlock;
use crate::format::shape::{Shape, decode_value};
use crate::format::{SectionHeader, SectionKind};
use crate::ids::Name;
use crate::job::state_entries::{RawEntry, StateEntries, is_same};
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
        let mut text = format!(
            "{kind} {} of job {} in {}, {} workers, {} key groups\n\n{}\nshapes, with their fingerprints\n\n",
            self.id,
            self.job,
            self.location,
            self.parallelism,
            self.max_parallelism,
            state_table(&self.states)
        );
        for StateRow { operator, state, shape, fingerprint, .. } in &self.states {
            let (shape, hash) = match (shape, fingerprint) {
                (Some(shape), Some(hash)) => (shape.as_str(), hash.as_str()),
                _ => ("only its type knows", "-"),
            };
            let _ = writeln!(text, "{hash:16}  {operator}/{state}: {}", printable(shape));
        }
        text
    }
}

/// What to dump.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub operator: Option<Name>,
    pub state: Option<Name>,
    pub key_group: Option<u16>,
}

impl Wanted {
    fn groups(&self) -> std::ops::Range<u16> {
        self.key_group.map_or(0..u16::MAX, |group| group..group.saturating_add(1))
    }

    fn takes(&self, header: &SectionHeader) -> bool {
        self.operator.as_ref().is_none_or(|name| *name == header.operator)
            && self.state.as_ref().is_none_or(|name| *name == header.state)
    }

    fn takes_group(&self, header: &SectionHeader, group: u16) -> bool {
        !header.kind.is_keyed() || self.key_group.is_none_or(|wanted| wanted == group)
    }
}

/// A line of a dump of what only its type knows: one block of entries.
#[derive(Serialize)]
struct BlockLine<'a> {
    operator: &'a str,
    state: &'a str,
    first_key_group: u16,
    last_key_group: u16,
    entries: u32,
    /// Whether each entry has a byte in front that says whether the key is there. A later block counts.
    changes: bool,
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

/// The states of an image that are wanted, sorted.
///
/// # Errors
/// [`ToolError::NoSuchState`] if there are none.
fn chosen(image: &Image, wanted: &Wanted) -> Result<Vec<SectionHeader>, ToolError> {
    let sections = image.manifest().parts.iter().flat_map(|part| &part.sections);
    let headers: BTreeSet<&SectionHeader> =
        sections.map(|section| &section.header).filter(|header| wanted.takes(header)).collect();
    if headers.is_empty() {
        return Err(ToolError::NoSuchState { location: image.location() });
    }
    Ok(headers.into_iter().cloned().collect())
}

fn is_known(header: &SectionHeader) -> bool {
    !header.shape.key.is_opaque() && !header.shape.value.is_opaque()
}

/// A value as JSON. It was decoded by its shape before.
fn json_of(shape: &Shape, bytes: &[u8]) -> Json {
    decode_value(shape, bytes).map_or(Json::Null, |(value, _)| to_json(&value))
}

/// The row of an entry.
fn row(header: &SectionHeader, group: u16, entry: &RawEntry) -> Row {
    let is_keyed = header.kind.is_keyed();
    Row {
        operator: header.operator.to_string(),
        state: header.state.to_string(),
        key_group: is_keyed.then_some(group),
        last_update: entry.written,
        key: is_keyed.then(|| json_of(&header.shape.key, &entry.key)),
        value: json_of(&header.shape.value, &entry.value),
    }
}

/// Writes the entries of what is in `path`, one a row. Holds about 16 MiB of them in memory, or one key group.
pub(crate) fn dump(
    path: &Path,
    wanted: &Wanted,
    format: Format,
    out: Box<dyn Write + Send>,
) -> Result<(), ToolError> {
    let image = Image::open(path)?;
    let headers = chosen(&image, wanted)?;
    // The fields of one state are columns; several states have none in common.
    let columns = match &headers[..] {
        [only] => Columns::of(&only.shape, only.kind.is_keyed()),
        _ => Columns::any(),
    };
    let mut rows = Rows::new(format, columns, out)?;
    for header in &headers {
        if !is_known(header) {
            if format == Format::Jsonl {
                dump_blocks(&image, header, wanted, &mut rows)?;
            } else {
                warn_of_opaque(header);
            }
            continue;
        }
        let mut entries = StateEntries::new(&image, header, wanted.groups());
        while let Some((group, entries)) = entries.next_group()? {
            if !wanted.takes_group(header, group) {
                continue;
            }
            for entry in &entries {
                rows.write(row(header, group, entry))?;
            }
        }
    }
    rows.finish()
}

fn warn_of_opaque(header: &SectionHeader) {
    let SectionHeader { operator, state, .. } = header;
    let _ = writeln!(
        std::io::stderr(),
        "warning: {operator}/{state} is left out: only its type knows what is in it; `--format jsonl` writes its bytes"
    );
}

fn dump_blocks(
    image: &Image,
    header: &SectionHeader,
    wanted: &Wanted,
    rows: &mut Rows,
) -> Result<(), ToolError> {
    let mut lines = |changes: bool, block: &EntryBlock<'_>| {
        let mut hex = String::with_capacity(2 * block.bytes.len());
        for byte in block.bytes {
            let _ = write!(hex, "{byte:02x}");
        }
        let line = BlockLine {
            operator: header.operator.as_str(),
            state: header.state.as_str(),
            first_key_group: block.first_group,
            last_key_group: block.last_group,
            entries: block.entries,
            changes,
            hex: &hex,
        };
        rows.line(&serde_json::to_string(&line).expect("texts and numbers, which JSON has"))
    };
    let mut written = Ok(());
    if header.kind.is_keyed() {
        let groups = wanted.groups();
        let groups = groups.start..groups.end.min(image.manifest().max_parallelism);
        let _ = image.read_table(
            |other| is_same(other, header),
            &groups,
            |selection, block| {
                if written.is_ok() {
                    written = lines(selection.changes, block);
                }
                Ok(())
            },
        )?;
        return written;
    }
    for part in &image.manifest().parts {
        if !part.sections.iter().any(|section| section.header == *header) {
            continue;
        }
        let mut reader = image.open_part(part)?;
        let failed = |error| image.part_error(part, error);
        let index = reader.sections().iter().position(|section| section.header == *header);
        let Some(index) = index else { continue };
        let mut blocks = reader.blocks(index, 0..u16::MAX);
        while let Some(block) = blocks.next().map_err(failed)? {
            lines(false, &block)?;
        }
    }
    Ok(())
}

/// Writes what the states that are wanted hold for a key, as JSON. Returns whether there was anything.
pub(crate) fn get(
    path: &Path,
    wanted: &Wanted,
    key: &str,
    out: Box<dyn Write + Send>,
) -> Result<bool, ToolError> {
    // What is not JSON is a text: so that words need no quotes within quotes.
    let key: Json = serde_json::from_str(key).unwrap_or_else(|_| Json::String(key.to_owned()));
    let image = Image::open(path)?;
    let mut rows = Rows::new(Format::Jsonl, Columns::any(), out)?;
    let mut found = false;
    for header in chosen(&image, wanted)?.iter().filter(|header| header.kind.is_keyed()) {
        if !is_known(header) {
            warn_of_opaque(header);
            continue;
        }
        let mut entries = StateEntries::new(&image, header, wanted.groups());
        while let Some((group, entries)) = entries.next_group()? {
            for entry in &entries {
                if json_of(&header.shape.key, &entry.key) == key {
                    rows.write(row(header, group, entry))?;
                    found = true;
                }
            }
        }
    }
    rows.finish()?;
    Ok(found)
}

/// The entries of one key group, by their keys; of a section without keys, by what they are.
fn by_key(header: &SectionHeader, entries: Vec<RawEntry>) -> BTreeMap<(Vec<u8>, usize), RawEntry> {
    let mut keyed = BTreeMap::new();
    for entry in entries {
        let key = if header.kind.is_keyed() { entry.key.clone() } else { entry.value.clone() };
        // Of a section without keys, one may be there several times.
        let mut again = 0;
        while keyed.contains_key(&(key.clone(), again)) {
            again += 1;
        }
        keyed.insert((key, again), entry);
    }
    keyed
}

/// A state of one side, group by group.
struct Side {
    header: SectionHeader,
    entries: StateEntries,
    next: Option<(u16, Vec<RawEntry>)>,
}

impl Side {
    fn open(image: &Image, header: &SectionHeader) -> Result<Self, ToolError> {
        let mut entries = StateEntries::new(image, header, 0..u16::MAX);
        let mut next = entries.next_group()?;
        if !header.kind.is_keyed() {
            // Blocks of several parts: few and small.
            while let Some((_, more)) = entries.next_group()? {
                next.get_or_insert_default().1.extend(more);
            }
        }
        Ok(Self { header: header.clone(), entries, next })
    }

    /// Its entries, if the next ones are of this group.
    fn take(&mut self, group: u16) -> Result<Vec<RawEntry>, ToolError> {
        match self.next.take() {
            Some((next, entries)) if next == group => {
                self.next = self.entries.next_group()?;
                Ok(entries)
            }
            other => {
                self.next = other;
                Ok(Vec::new())
            }
        }
    }
}

/// Writes what differs between two images, one key a line, as JSON. Holds one key group of both. Returns whether anything does.
pub(crate) fn diff(
    paths: [&Path; 2],
    wanted: &Wanted,
    out: Box<dyn Write + Send>,
) -> Result<bool, ToolError> {
    let images = [Image::open(paths[0])?, Image::open(paths[1])?];
    let groups = images.each_ref().map(|image| image.manifest().max_parallelism);
    if groups[0] != groups[1] {
        return Err(ToolError::KeyGroups { one: groups[0], other: groups[1] });
    }
    let headers = [chosen(&images[0], wanted), chosen(&images[1], wanted)];
    if let [Err(_), Err(_)] = &headers {
        return Err(ToolError::NoSuchState { location: images[0].location() });
    }
    let headers = headers.map(Result::unwrap_or_default);
    let identity = |header: &SectionHeader| (header.operator.clone(), header.state.clone());
    let names: BTreeSet<_> = headers.iter().flatten().map(identity).collect();
    let mut rows = Rows::new(Format::Jsonl, Columns::any(), out)?;
    let mut differs = false;
    for name in names {
        // What is on its way is of no interest, and may be large.
        let mut both = headers.iter().flatten().filter(|header| identity(header) == name);
        if both.any(|header| header.kind == SectionKind::ChannelLog) {
            continue;
        }
        let mut sides = [None, None];
        let mut is_left_out = false;
        for (side, (image, headers)) in sides.iter_mut().zip(images.iter().zip(&headers)) {
            let Some(header) = headers.iter().find(|header| identity(header) == name) else {
                continue;
            };
            if is_known(header) {
                *side = Some(Side::open(image, header)?);
            } else if !is_left_out {
                warn_of_opaque(header);
                is_left_out = true;
            }
        }
        if is_left_out {
            continue;
        }
        loop {
            let next = sides.iter().flatten().filter_map(|side| side.next.as_ref());
            let Some(group) = next.map(|(group, _)| *group).min() else { break };
            let mut held = [BTreeMap::new(), BTreeMap::new()];
            for (held, side) in held.iter_mut().zip(&mut sides) {
                if let Some(side) = side {
                    let entries = side.take(group)?;
                    *held = by_key(&side.header, entries);
                }
            }
            let keys: BTreeSet<_> = held.iter().flat_map(BTreeMap::keys).collect();
            for key in keys {
                let [before, after] = held.each_ref().map(|held| held.get(key));
                let shapes = sides
                    .each_ref()
                    .map(|side| side.as_ref().map(|side| (&side.header, &side.header.shape.value)));
                let is_same_shape = shapes[0].map(|(_, s)| s) == shapes[1].map(|(_, s)| s);
                let change = match (before, after) {
                    (Some(before), Some(after)) => {
                        if before.value == after.value && is_same_shape {
                            continue;
                        }
                        "changed"
                    }
                    (Some(_), None) => "removed",
                    _ => "added",
                };
                let [before, after] = [(before, shapes[0]), (after, shapes[1])].map(|pair| {
                    let (Some(entry), Some((header, _))) = pair else { return None };
                    Some(row(header, group, entry))
                });
                let Some(either) = before.as_ref().or(after.as_ref()) else { continue };
                differs = true;
                let value = |row: &Option<Row>| row.as_ref().map(|row| row.value.clone());
                let line = json!({
                    "change": change,
                    "operator": either.operator,
                    "state": either.state,
                    "key_group": either.key_group,
                    "key": either.key,
                    "before": value(&before),
                    "after": value(&after),
                });
                rows.line(&line.to_string())?;
            }
        }
    }
    rows.finish()?;
    Ok(differs)
}
