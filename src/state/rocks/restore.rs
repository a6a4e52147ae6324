//! Back from files: an instance is opened with those of one or several others; and rows are read off files alone.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rocksdb::{
    ColumnFamilyDescriptor, Direction, IngestExternalFileOptions, IteratorMode, ReadOptions,
    SstFileWriter, WriteOptions,
};

use super::budget::Budget;
use super::column::{Column, column_of};
use super::error::RocksError;
use super::instance::{Core, Database, Instance};
use super::options::{self, Profile};
use super::row::{WholeRows, column_of_entries, state_of_column};

/// The files of a snapshot, in a directory of their own.
#[derive(Clone, Debug)]
pub struct Source {
    /// The directory. Its files are used up.
    pub directory: PathBuf,
    /// The key groups that it has rows of.
    pub groups: Range<u16>,
}

impl Source {
    /// Whether its states are cut into families as ours are.
    fn is_partitioned(&self, core: &Core) -> Result<bool, RocksError> {
        let options = options::database(core.setup.profile, &core.setup.budget);
        let families = Database::list_cf(&options, &self.directory)
            .map_err(RocksError::database(&self.directory, "list the column families"))?;
        let is_ours = |name: &String| {
            column_of(name).is_none_or(|column| core.column(column).families.contains(name))
        };
        Ok(families.iter().all(is_ours))
    }
}

/// How many key groups two ranges share.
fn overlap(a: &Range<u16>, b: &Range<u16>) -> u16 {
    a.end.min(b.end).saturating_sub(a.start.max(b.start))
}

impl Source {
    /// Of some sources, the one to take over whole for a worker with these key groups: that with most of them.
    #[must_use]
    pub fn fullest<'a>(
        ranges: impl IntoIterator<Item = &'a Range<u16>>,
        groups: &Range<u16>,
    ) -> Option<usize> {
        let shared = ranges.into_iter().map(|range| overlap(range, groups)).enumerate();
        // Of equal ones the first.
        let fullest = shared.max_by_key(|(index, shared)| (*shared, std::cmp::Reverse(*index)));
        fullest.filter(|(_, shared)| *shared > 0).map(|(index, _)| index)
    }
}

impl Instance {
    /// Takes over the rows of `groups` that the sources have. The first one's files become the instance's own and keep their
    /// names, unless its states are cut otherwise; those of the others are only read. To be called before anything else, once. Returns
    /// whether the first one's became its own.
    ///
    /// # Errors
    /// [`RocksError`] if files are missing or damaged, or if the disk fails.
    pub fn take_over(&self, sources: &[Source], groups: &Range<u16>) -> Result<bool, RocksError> {
        let core = self.core();
        let Some(first) = sources.first() else { return Ok(false) };
        let is_ours = first.is_partitioned(core)?;
        if is_ours {
            let own = core.path();
            if let Some(parent) = own.parent() {
                fs::create_dir_all(parent).map_err(RocksError::io(parent))?;
            }
            fs::rename(&first.directory, &own).map_err(RocksError::io(&first.directory))?;
            let database = core.database()?;
            if first.groups.start < groups.start || first.groups.end > groups.end {
                self.clip(database, groups)?;
            }
        }
        let database = core.database()?;
        for (number, source) in sources.iter().enumerate().skip(usize::from(is_ours)) {
            self.copy(database, source, groups, number)?;
        }
        Ok(is_ours)
    }

    /// Deletes the rows of all other key groups.
    fn clip(&self, database: &Database, groups: &Range<u16>) -> Result<(), RocksError> {
        let path = database.path();
        let mut options = WriteOptions::new();
        options.disable_wal(true);
        let [start, end] = [groups.start, groups.end].map(u16::to_be_bytes);
        for (column, partition) in self.core().families()? {
            let name = &column.families[partition];
            let there = column.groups_of(partition);
            if overlap(&there, groups) == there.len() as u16 {
                continue;
            }
            if overlap(&there, groups) == 0 {
                database
                    .drop_cf(name)
                    .map_err(RocksError::database(path, "drop a column family"))?;
                continue;
            }
            let Some(family) = database.cf_handle(name) else { continue };
            for (from, to) in [([0; 2], start), (end, [0xff; 2])] {
                if from < to {
                    database
                        .delete_range_cf_opt(&family, from, to, &options)
                        .map_err(RocksError::database(path, "delete a range of rows"))?;
                }
            }
        }
        Ok(())
    }

    /// Copies the rows of some key groups out of another instance's files.
    fn copy(
        &self,
        database: &Database,
        source: &Source,
        groups: &Range<u16>,
        number: usize,
    ) -> Result<(), RocksError> {
        let core = self.core();
        let reader = Reader::open(&source.directory, core.setup.profile, &core.setup.budget)?;
        for (index, name) in reader.columns().into_iter().enumerate() {
            let column = core.column(name);
            let options = core.column_options(&column, None);
            for partition in 0..column.families.len() {
                let there = column.groups_of(partition);
                let wanted = there.start.max(groups.start)..there.end.min(groups.end);
                if wanted.is_empty() {
                    continue;
                }
                let file = format!("copied-{number}-{index}-{partition}.sst");
                let file = core.setup.directory.join(file);
                let mut writer = None;
                reader.rows(name, wanted, &mut |key, value| {
                    let writer = match &mut writer {
                        Some(writer) => writer,
                        none => {
                            let new = SstFileWriter::create(&options);
                            new.open(&file).map_err(RocksError::database(&file, "begin a file"))?;
                            none.insert(new)
                        }
                    };
                    writer.put(key, value).map_err(RocksError::database(&file, "copy a row"))
                })?;
                let Some(mut writer) = writer else { continue };
                writer.finish().map_err(RocksError::database(&file, "finish a file"))?;
                let family = core.family(database, &column, partition)?;
                let mut ingest = IngestExternalFileOptions::default();
                ingest.set_move_files(true);
                database
                    .ingest_external_file_cf_opts(&family, &ingest, vec![&file])
                    .map_err(RocksError::database(&file, "take a file in"))?;
                column.has_rows.store(true, Ordering::Relaxed);
            }
        }
        drop(reader);
        _ = fs::remove_dir_all(&source.directory);
        Ok(())
    }

    /// Drops all column families but those of these states.
    ///
    /// # Errors
    /// [`RocksError`] of RocksDB.
    pub fn keep_only(&self, states: &[&str]) -> Result<(), RocksError> {
        let Some(database) = self.core().opened() else { return Ok(()) };
        for (column, partition) in self.core().families()? {
            if !states.contains(&state_of_column(&column.name)) {
                database
                    .drop_cf(&column.families[partition])
                    .map_err(RocksError::database(database.path(), "drop a column family"))?;
            }
        }
        Ok(())
    }
}

impl Core {
    /// The column families that may have rows, by their states and partitions.
    fn families(&self) -> Result<Vec<(Arc<Column>, usize)>, RocksError> {
        let database = self.database()?;
        let columns = self.columns();
        let all = columns.iter().flat_map(|column| {
            (0..column.families.len()).map(move |partition| (Arc::clone(column), partition))
        });
        Ok(all.filter(|(column, at)| database.cf_handle(&column.families[*at]).is_some()).collect())
    }
}

/// Takes a row: its key, key group included, and its value.
type TakeValue<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<(), RocksError>;

/// The files of a snapshot, to be read.
pub struct Reader {
    database: Database,
    families: Vec<String>,
    path: PathBuf,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Reader {
    /// Opens the files in a directory that nobody writes to.
    ///
    /// # Errors
    /// [`RocksError`] if they are not a whole snapshot.
    pub fn open(path: &Path, profile: Profile, budget: &Arc<Budget>) -> Result<Self, RocksError> {
        let options = options::database(profile, budget);
        let mut families = Database::list_cf(&options, path)
            .map_err(RocksError::database(path, "list the column families"))?;
        families.sort_unstable();
        let descriptors = families
            .iter()
            .map(|name| ColumnFamilyDescriptor::new(name, options::column(profile, budget)));
        let database = Database::open_cf_descriptors_read_only(&options, path, descriptors, false)
            .map_err(RocksError::database(path, "open a snapshot"))?;
        Ok(Self { database, families, path: path.to_owned() })
    }

    /// The columns that have families.
    fn columns(&self) -> BTreeSet<&str> {
        self.families.iter().filter_map(|name| column_of(name)).collect()
    }

    /// Gives one row for each key of one state and some key groups, in the order of the key groups: a map is put together.
    ///
    /// # Errors
    /// [`RocksError`] of RocksDB, or of `take`.
    pub fn whole_rows(
        &self,
        state: &str,
        groups: Range<u16>,
        take: TakeValue<'_>,
    ) -> Result<(), RocksError> {
        for column in [state, &column_of_entries(state)] {
            let mut whole = WholeRows::of(column);
            self.rows(column, groups.clone(), &mut |key, value| whole.add(key, value, &mut *take))?;
            whole.finish(&mut *take)?;
        }
        Ok(())
    }

    /// Gives the rows of one column and some key groups, as they are, in their order.
    fn rows(
        &self,
        column: &str,
        groups: Range<u16>,
        take: TakeValue<'_>,
    ) -> Result<(), RocksError> {
        let is_its = |name: &&String| column_of(name) == Some(column);
        // Their order is that of their key groups.
        for name in self.families.iter().filter(is_its) {
            let Some(family) = self.database.cf_handle(name) else { continue };
            let mut reading = ReadOptions::default();
            reading.fill_cache(false);
            reading.set_readahead_size(2 << 20);
            reading.set_iterate_upper_bound(groups.end.to_be_bytes());
            let start = groups.start.to_be_bytes();
            let from = IteratorMode::From(&start, Direction::Forward);
            for row in self.database.iterator_cf_opt(&family, reading, from) {
                let (key, value) =
                    row.map_err(RocksError::database(&self.path, "read a snapshot"))?;
                take(&key, &value)?;
            }
        }
        Ok(())
    }

    /// Gives the entries of one state and some key groups in blocks, as a section has them: how many, and their bytes.
    ///
    /// # Errors
    /// As [`Reader::whole_rows`].
    pub fn blocks<E: From<RocksError>>(
        &self,
        state: &str,
        groups: Range<u16>,
        mut take: impl FnMut(u32, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut entries, mut bytes) = (0, Vec::new());
        let mut failed = None;
        let read = self.whole_rows(state, groups, &mut |key, value| {
            bytes.extend_from_slice(key.get(2..).unwrap_or_default());
            bytes.extend_from_slice(value);
            entries += 1;
            if bytes.len() < BLOCK_BYTES {
                return Ok(());
            }
            let taken = take(entries, &bytes);
            entries = 0;
            bytes.clear();
            taken.map_err(|error| {
                failed = Some(error);
                RocksError::Before("the rows were not taken".to_owned())
            })
        });
        match (read, failed) {
            (Err(_), Some(error)) => Err(error),
            (Err(error), None) => Err(error.into()),
            (Ok(()), _) if entries > 0 => take(entries, &bytes),
            (Ok(()), _) => Ok(()),
        }
    }
}

/// Bytes of a block of entries, about.
const BLOCK_BYTES: usize = 64 << 10;
