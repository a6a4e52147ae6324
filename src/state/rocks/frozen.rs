//! A frozen table: the rows for RocksDB, and the canonical entries for savepoints.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::cache::{Cached, lock};
use super::column::Column;
use super::error::RocksError;
use super::instance::{Change, Core, Made, Rows, TakeRow, Ticket};
use super::restore::Reader;
use super::row::{RowKey, WholeRows, state_of_column};
use super::tails::FrozenTails;
use crate::format::{FormatError, SectionOutput};
use crate::ids::KeyGroup;
use crate::state::pages::ReadPages;
use crate::state::{Frozen, StateValue};

/// The pages of a table that held changes when it was frozen.
pub(super) struct FrozenRows<K, V> {
    pages: Mutex<ReadPages<K, Cached<V>>>,
    /// RocksDB had all changes up to this generation when the table was frozen.
    since: u32,
    /// Of the changes in them.
    generation: u32,
    durable: Arc<AtomicU32>,
    column: Arc<Column>,
    max_parallelism: u16,
    tails: FrozenTails,
}

impl<K: RowKey, V: StateValue> FrozenRows<K, V> {
    pub(super) fn new(
        (pages, tails): (ReadPages<K, Cached<V>>, FrozenTails),
        since: u32,
        generation: u32,
        durable: Arc<AtomicU32>,
        column: Arc<Column>,
        max_parallelism: u16,
    ) -> Self {
        let pages = Mutex::new(pages);
        Self { pages, since, generation, durable, column, max_parallelism, tails }
    }
}

impl<K: RowKey, V: StateValue> Rows for FrozenRows<K, V> {
    fn column(&self) -> &Arc<Column> {
        &self.column
    }

    fn each_changed(&self, take: TakeRow<'_>) -> Result<(), RocksError> {
        let pages = std::mem::take(&mut *lock(&self.pages));
        let Some(tails) = self.tails.in_order() else {
            let why =
                "elements that were appended before an earlier snapshot are lost, since it failed";
            return Err(RocksError::Before(why.to_owned()));
        };
        tails.each(|key, list| take(key, Change::Append(list)))?;
        let mut bytes = Vec::new();
        let mut ends: Vec<(usize, Option<usize>)> = Vec::new();
        for mut page in pages {
            bytes.clear();
            ends.clear();
            // Only encoded while it looks at the page: the worker may be waiting for it.
            for entry in page.look().entries() {
                if !entry.value.is_after(self.since) {
                    continue;
                }
                let key = entry.key.by_ref();
                K::encode(entry.hash, key, self.max_parallelism, &mut bytes)?;
                let key_end = bytes.len();
                let value_end = match &entry.value.value {
                    Some(value) => {
                        K::encode_value(key, value, &mut bytes)?;
                        Some(bytes.len())
                    }
                    None => None,
                };
                ends.push((key_end, value_end));
            }
            // So the worker can take it back without copying it.
            drop(page);
            let mut start = 0;
            for (key_end, value_end) in &ends {
                let change =
                    value_end.map_or(Change::Delete, |end| Change::Put(&bytes[*key_end..end]));
                take(&bytes[start..*key_end], change)?;
                start = value_end.unwrap_or(*key_end);
            }
        }
        Ok(())
    }

    fn are_durable(&self) {
        self.durable.fetch_max(self.generation, Ordering::AcqRel);
        self.tails.are_written();
    }

    fn let_go(&self) {
        drop(std::mem::take(&mut *lock(&self.pages)));
    }
}

/// A frozen table, to be written entry by entry.
pub(super) struct FrozenTable {
    ticket: Ticket,
    rows: Arc<dyn Rows>,
    core: Arc<Core>,
    /// Whether nothing is to be written if there are files.
    files_suffice: bool,
}

impl FrozenTable {
    pub(super) fn new(
        ticket: Ticket,
        rows: Arc<dyn Rows>,
        core: Arc<Core>,
        files_suffice: bool,
    ) -> Self {
        Self { ticket, rows, core, files_suffice }
    }
}

impl From<RocksError> for FormatError {
    fn from(error: RocksError) -> Self {
        match error {
            RocksError::Format(error) => error,
            other => Self::Io(std::io::Error::other(other.text())),
        }
    }
}

impl Frozen for FrozenTable {
    fn write(self: Box<Self>, out: &mut dyn SectionOutput) -> Result<(), FormatError> {
        match self.ticket.wait()? {
            Made::InMemory => {
                let mut rows: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
                self.rows.each_changed(&mut |key, change| {
                    // Nothing is appended to rows of a database that was never opened.
                    if let Change::Put(value) | Change::Append(value) = change {
                        rows.push((key.to_vec(), value.to_vec()));
                    }
                    Ok(())
                })?;
                rows.sort_unstable();
                let mut whole = WholeRows::of(&self.rows.column().name);
                let mut take = |key: &[u8], value: &[u8]| write_row(key, value, out);
                rows.iter().try_for_each(|(key, value)| whole.add(key, value, &mut take))?;
                whole.finish(&mut take)
            }
            Made::Local(_) if self.files_suffice => Ok(()),
            Made::Local(snapshot) => {
                write_column(&self.core, snapshot.path(), &self.rows.column().name, out)
            }
        }
    }
}

/// A row is an entry with the key group in front.
fn write_row(key: &[u8], value: &[u8], out: &mut dyn SectionOutput) -> Result<(), FormatError> {
    let Some((group, key)) = key.split_first_chunk() else {
        return Err(FormatError::corrupt(0, "a row has no key group"));
    };
    out.entry(KeyGroup(u16::from_be_bytes(*group)), &mut |bytes| {
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(value);
        Ok(())
    })
}

/// Writes all rows of a column of a snapshot.
fn write_column(
    core: &Core,
    path: &Path,
    name: &str,
    out: &mut dyn SectionOutput,
) -> Result<(), FormatError> {
    let reader = Reader::open(path, core.setup.profile, &core.setup.budget)?;
    // What `out` says is not to be wrapped.
    let mut failed = None;
    reader
        .whole_rows(state_of_column(name), 0..u16::MAX, &mut |key, value| {
            write_row(key, value, out).map_err(|error| {
                failed = Some(error);
                RocksError::Before("the rows could not be written".to_owned())
            })
        })
        .map_err(|error| failed.unwrap_or_else(|| error.into()))
}
