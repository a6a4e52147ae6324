//! One instance of RocksDB: the states of one operator on one worker, some column families for each.
//!
//! # States
//! *Unopened*: all is in memory. *Open*: from the first entry that is given up or snapshot that is not small, until the
//! attempt ends.
//! # Ordering
//! While a snapshot is being made the worker does not write: what it gave up then would be in the snapshot. It may read.
//! A snapshot is made by a thread of the instance, which waits for nothing that the worker holds; so a worker that waits
//! for it, because it has used up its reserve, does not wait for ever.
//! # Failure
//! A snapshot whose rows could not be written leaves the worker's entries changed, so the next one holds them; but if elements were to be
//! appended, nobody knows which are there, and the attempt ends. A worker that cannot read or
//! write its state panics, which ends the attempt and names the operator.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::JoinHandle;

use crossbeam::channel::Sender;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::properties::CUR_SIZE_ACTIVE_MEM_TABLE;
use rocksdb::{
    BoundColumnFamily, ColumnFamilyDescriptor, DBWithThreadMode, MultiThreaded, Options,
    WriteBatch, WriteOptions,
};

use super::budget::Budget;
use super::cache::lock;
use super::column::{Column, ExpiryFactory, column_of};
use super::error::RocksError;
use super::merging::Merging;
use super::options::{self, Profile};
use crate::format::FormatError;
use crate::state::pages::CopyRoom;
use crate::state::{LocalFile, NativeFiles, NativeSnapshot};

/// A handle of a column family.
pub(super) type Family<'a> = Arc<BoundColumnFamily<'a>>;

/// A database whose column families may be made by any thread.
pub(super) type Database = DBWithThreadMode<MultiThreaded>;

/// Units: bytes. An unopened instance that takes no more than this is not opened for a snapshot.
const SMALL_BYTES: usize = 1 << 20;

/// Bytes that are written to RocksDB at once, about.
const BATCH_BYTES: usize = 1 << 20;

/// How an instance is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// A directory that only this instance uses. It is made if it is not there, and removed at the end.
    pub directory: PathBuf,
    /// Shared by all instances of the process.
    pub budget: Arc<Budget>,
    /// How RocksDB is tuned.
    pub profile: Profile,
    /// The number of key groups of the job.
    pub max_parallelism: u16,
    /// An instance that takes no more than this is not opened for a snapshot: its entries are written as the heap backend
    /// would write them. Units: bytes.
    pub small_bytes: usize,
}

impl Setup {
    /// The usual setup.
    #[must_use]
    pub fn new(
        directory: PathBuf,
        budget: Arc<Budget>,
        profile: Profile,
        max_parallelism: u16,
    ) -> Self {
        Self { directory, budget, profile, max_parallelism, small_bytes: SMALL_BYTES }
    }
}

/// A directory that is removed when nobody needs it any more.
#[derive(Debug)]
pub(super) struct Directory(pub(super) PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

/// What the worker and the snapshot thread share.
pub(super) struct Core {
    pub(super) setup: Setup,
    // Before the directory, which must not go while the database is open.
    database: OnceLock<Result<Database, String>>,
    directory: Arc<Directory>,
    columns: Mutex<BTreeMap<String, Arc<Column>>>,
    /// Snapshots that are being made.
    underway: AtomicUsize,
    underway_changed: (Mutex<()>, Condvar),
    pub(super) counters: InstanceCounters,
}

/// What an instance has done so far.
#[derive(Debug, Default)]
pub struct InstanceCounters {
    /// Rows that were looked up because they were not among the decoded values.
    pub looked_up: AtomicU64,
    /// Rows of maps that were decoded while iterating.
    pub iterated: AtomicU64,
    /// Operations that found a decoded value.
    pub hits: AtomicU64,
    /// Rows written.
    pub written: AtomicU64,
    /// Elements that were appended to lists without reading them.
    pub appended: AtomicU64,
    /// How often the worker had to wait for a snapshot.
    pub waits: AtomicU64,
    /// Column families that were rewritten as a whole.
    pub rewritten: AtomicU64,
}

impl CopyRoom for Core {
    fn take(&self, bytes: usize, must: bool) -> bool {
        let taken = self.setup.budget.take_copy(bytes, must);
        if !taken {
            self.counters.waits.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    fn give_back(&self, bytes: usize) {
        self.setup.budget.give_back_copy(bytes);
    }
}

impl Core {
    pub(super) fn path(&self) -> PathBuf {
        self.setup.directory.join("db")
    }

    /// The database. It is opened if it is not.
    pub(super) fn database(&self) -> Result<&Database, RocksError> {
        let opened = self.database.get_or_init(|| self.open().map_err(|error| error.text()));
        opened.as_ref().map_err(|text| RocksError::Before(text.clone()))
    }

    fn open(&self) -> Result<Database, RocksError> {
        let path = self.path();
        fs::create_dir_all(&path).map_err(RocksError::io(&path))?;
        let database = options::database(self.setup.profile, &self.setup.budget);
        let there = if path.join("CURRENT").exists() {
            Database::list_cf(&database, &path)
                .map_err(RocksError::database(&path, "list the column families"))?
        } else {
            vec![rocksdb::DEFAULT_COLUMN_FAMILY_NAME.to_owned()]
        };
        let descriptors: Vec<_> = there
            .iter()
            .map(|name| {
                let options = match column_of(name) {
                    Some(column) => {
                        let column = self.column(column);
                        column.has_rows.store(true, Ordering::Relaxed);
                        self.column_options(&column, column.families.iter().position(|f| f == name))
                    }
                    None => Options::default(),
                };
                ColumnFamilyDescriptor::new(name, options)
            })
            .collect();
        Database::open_cf_descriptors(&database, &path, descriptors)
            .map_err(RocksError::database(&path, "open the database"))
    }

    /// Options of the family of a partition, or of one of files that are cut otherwise.
    pub(super) fn column_options(&self, column: &Arc<Column>, partition: Option<usize>) -> Options {
        let Setup { profile, budget, .. } = &self.setup;
        let mut options = options::column(*profile, budget);
        options::stagger(&mut options, partition.unwrap_or(0));
        options.set_compaction_filter_factory(ExpiryFactory(Arc::clone(column)));
        options
    }

    /// The database, if it is open.
    pub(super) fn opened(&self) -> Option<&Database> {
        self.database.get().and_then(|opened| opened.as_ref().ok())
    }

    /// All that is known.
    pub(super) fn columns(&self) -> Vec<Arc<Column>> {
        lock(&self.columns).values().cloned().collect()
    }

    pub(super) fn column(&self, name: &str) -> Arc<Column> {
        let mut columns = lock(&self.columns);
        let column = columns.entry(name.to_owned()).or_insert_with(|| {
            let Setup { max_parallelism, profile, .. } = &self.setup;
            Arc::new(Column::new(name, *max_parallelism, profile.partitions()))
        });
        Arc::clone(column)
    }

    /// A column family. It is made if it is not there.
    pub(super) fn family<'a>(
        &self,
        database: &'a Database,
        column: &Arc<Column>,
        partition: usize,
    ) -> Result<Family<'a>, RocksError> {
        let name = &column.families[partition];
        if let Some(family) = database.cf_handle(name) {
            return Ok(family);
        }
        let options = self.column_options(column, Some(partition));
        database
            .create_cf(name, &options)
            .map_err(RocksError::database(database.path(), "make a column family"))?;
        Ok(database.cf_handle(name).expect("it was just made"))
    }

    /// The row of a key.
    pub(super) fn get<R>(
        &self,
        column: &Column,
        key: &[u8],
        take: impl FnOnce(&[u8]) -> Result<R, RocksError>,
    ) -> Result<Option<R>, RocksError> {
        if !column.has_rows.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let database = self.database()?;
        let name = &column.families[column.partition_of(key)];
        let Some(family) = database.cf_handle(name) else { return Ok(None) };
        let row = database
            .get_pinned_cf(&family, key)
            .map_err(RocksError::database(database.path(), "read a row"))?;
        row.map(|row| take(&row)).transpose()
    }

    /// Flushes the largest of the write buffers, and waits.
    fn flush_largest(&self, database: &Database) -> Result<(), RocksError> {
        let columns = self.columns();
        let names = columns.iter().flat_map(|column| &column.families);
        let families = names.filter_map(|name| database.cf_handle(name));
        let sized = families.map(|family| {
            let bytes = database.property_int_value_cf(&family, CUR_SIZE_ACTIVE_MEM_TABLE);
            (bytes.ok().flatten().unwrap_or(0), family)
        });
        let Some((_, family)) = sized.max_by_key(|(bytes, _)| *bytes) else { return Ok(()) };
        database
            .flush_cf(&family)
            .map_err(RocksError::database(database.path(), "flush a write buffer"))
    }

    /// Whether a snapshot of so many bytes makes no files, but is read from memory when the checkpoint is written. Not while another is
    /// being made: the worker may wait for that, and both may read one page. If not of one table when it is frozen, then not of all
    /// when that is over.
    pub(super) fn stays_in_memory(&self, bytes: usize) -> bool {
        bytes <= self.setup.small_bytes && self.may_write() && self.database.get().is_none()
    }

    /// Whether the worker may write: no snapshot is being made.
    pub(super) fn may_write(&self) -> bool {
        self.underway.load(Ordering::Acquire) == 0
    }

    /// Waits until it may.
    pub(super) fn wait_until_it_may_write(&self) {
        self.counters.waits.fetch_add(1, Ordering::Relaxed);
        let (mutex, changed) = &self.underway_changed;
        let mut guard = lock(mutex);
        while !self.may_write() {
            guard = changed.wait(guard).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    fn snapshot_over(&self) {
        let _guard = lock(&self.underway_changed.0);
        self.underway.fetch_sub(1, Ordering::Release);
        self.underway_changed.1.notify_all();
    }

    /// Makes a snapshot of what is there and of these rows.
    fn snapshot(&self, number: u64, rows: &[Arc<dyn Rows>]) -> Result<LocalSnapshot, RocksError> {
        let database = self.database()?;
        for rows in rows {
            let mut batch = RowBatch::new(self, rows.column())?;
            rows.each_changed(&mut |key, change| batch.add(key, change))?;
            batch.finish()?;
            rows.are_durable();
        }
        let path = self.setup.directory.join(format!("snapshot-{number}"));
        Checkpoint::new(database)
            .and_then(|checkpoint| checkpoint.create_checkpoint(&path))
            .map_err(RocksError::database(&path, "make a snapshot"))?;
        let mut snapshot = LocalSnapshot {
            path: path.clone(),
            files: Vec::new(),
            _directory: Arc::clone(&self.directory),
        };
        snapshot.files = list_files(&path)?;
        Ok(snapshot)
    }
}

/// Files of a database that a copy of it needs, in the order of their names.
pub(super) fn list_files(path: &Path) -> Result<Vec<LocalFile>, RocksError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(RocksError::io(path))? {
        let entry = entry.map_err(RocksError::io(path))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let bytes = entry.metadata().map_err(RocksError::io(path))?.len();
        let is_log = Path::new(&name).extension().is_some_and(|extension| extension == "log");
        if !is_log && !name.starts_with("OPTIONS-") && name != "LOCK" && !name.starts_with("LOG") {
            // RocksDB never writes to a table again, and never gives its number to another.
            let lasts = Path::new(&name).extension().is_some_and(|extension| extension == "sst");
            files.push(LocalFile { name, bytes, lasts });
        }
    }
    files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// Rows on their way into the column families of a state.
pub(super) struct RowBatch<'a> {
    core: &'a Core,
    database: &'a Database,
    column: &'a Arc<Column>,
    families: Vec<Option<Family<'a>>>,
    batch: WriteBatch,
    options: WriteOptions,
}

impl<'a> RowBatch<'a> {
    pub(super) fn new(core: &'a Core, column: &'a Arc<Column>) -> Result<Self, RocksError> {
        let database = core.database()?;
        column.has_rows.store(true, Ordering::Relaxed);
        let mut options = WriteOptions::new();
        options.disable_wal(true);
        let families = vec![None; column.families.len()];
        Ok(Self { core, database, column, families, batch: WriteBatch::default(), options })
    }

    /// Adds what changes a row.
    pub(super) fn add(&mut self, key: &[u8], change: Change<'_>) -> Result<(), RocksError> {
        let partition = self.column.partition_of(key);
        let family = match &mut self.families[partition] {
            Some(family) => family,
            none => none.insert(self.core.family(self.database, self.column, partition)?),
        };
        match change {
            Change::Put(value) => self.batch.put_cf(family, key, value),
            Change::Delete => self.batch.delete_cf(family, key),
            Change::Append(list) => self.batch.merge_cf(family, key, list),
            Change::DeleteUntil(end) => self.batch.delete_range_cf(family, key, end),
        }
        if self.batch.size_in_bytes() >= BATCH_BYTES { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<(), RocksError> {
        // Not left to RocksDB, which would let the writer of one instance wait for flushes that nobody asks of another.
        if self.core.setup.budget.are_write_buffers_full() {
            self.core.flush_largest(self.database)?;
        }
        let batch = std::mem::take(&mut self.batch);
        self.core.counters.written.fetch_add(batch.len() as u64, Ordering::Relaxed);
        self.database
            .write_opt(batch, &self.options)
            .map_err(RocksError::database(self.database.path(), "write rows"))
    }

    pub(super) fn finish(mut self) -> Result<(), RocksError> {
        if self.batch.is_empty() { Ok(()) } else { self.write() }
    }
}

/// What happens to a row.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change<'a> {
    /// It has this value.
    Put(&'a [u8]),
    /// It was removed.
    Delete,
    /// These elements were put behind those of its list.
    Append(&'a [u8]),
    /// It was removed, and so were all behind it up to this key, which is not.
    DeleteUntil(&'a [u8]),
}

/// Takes a row: its key, and what happened to it.
pub(super) type TakeRow<'a> = &'a mut dyn FnMut(&[u8], Change<'_>) -> Result<(), RocksError>;

/// The frozen rows of one table that RocksDB may not have.
pub(super) trait Rows: Send + Sync {
    fn column(&self) -> &Arc<Column>;
    /// Gives each row once, and lets go of the memory.
    fn each_changed(&self, take: TakeRow<'_>) -> Result<(), RocksError>;
    /// RocksDB has all of them.
    fn are_durable(&self);
    /// Lets go of what is left of the memory: the worker may be waiting for that.
    fn let_go(&self);
}

/// A snapshot of an instance on the local disk, of hard links. Dropped, it is removed.
#[derive(Debug)]
pub struct LocalSnapshot {
    path: PathBuf,
    files: Vec<LocalFile>,
    _directory: Arc<Directory>,
}

impl LocalSnapshot {
    /// Where the files are.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that make it up, in the order of their names.
    #[must_use]
    pub fn files(&self) -> &[LocalFile] {
        &self.files
    }
}

impl Drop for LocalSnapshot {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.path);
    }
}

/// What a snapshot came to.
#[derive(Clone, Debug)]
pub(super) enum Made {
    /// Nothing was done: the instance is not open, and the frozen tables have all there is.
    InMemory,
    /// Everything is in these files.
    Local(Arc<LocalSnapshot>),
}

/// A snapshot of an instance that was asked for. Clones are the same one.
#[derive(Clone)]
pub struct Ticket(Arc<Outcome>);

#[derive(Default)]
struct Outcome {
    made: Mutex<Option<Result<Made, String>>>,
    told: Condvar,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket").finish_non_exhaustive()
    }
}

impl Ticket {
    fn new() -> Self {
        Self(Arc::default())
    }

    fn set(&self, made: Result<Made, String>) {
        *lock(&self.0.made) = Some(made);
        self.0.told.notify_all();
    }

    pub(super) fn wait(&self) -> Result<Made, RocksError> {
        let mut made = lock(&self.0.made);
        loop {
            match &*made {
                Some(made) => return made.clone().map_err(RocksError::Before),
                None => {
                    made =
                        self.0.told.wait(made).unwrap_or_else(std::sync::PoisonError::into_inner);
                }
            }
        }
    }

    /// Waits until the snapshot is made. `None`: the instance is small, and its tables are to be written one by one.
    ///
    /// # Errors
    /// [`RocksError`] if it could not be made.
    pub fn local(&self) -> Result<Option<Arc<LocalSnapshot>>, RocksError> {
        Ok(match self.wait()? {
            Made::InMemory => None,
            Made::Local(snapshot) => Some(snapshot),
        })
    }
}

impl NativeSnapshot for Ticket {
    fn wait(self: Box<Self>) -> Result<Option<NativeFiles>, FormatError> {
        let files = |snapshot: Arc<LocalSnapshot>| NativeFiles {
            backend: super::BACKEND,
            version: super::FORMAT_VERSION,
            directory: snapshot.path.clone(),
            files: snapshot.files.clone(),
            keep: snapshot,
        };
        Ok(self.local()?.map(files))
    }
}

/// A snapshot that tables are still joining.
struct Forming {
    ticket: Ticket,
    rows: Vec<Arc<dyn Rows>>,
    bytes: usize,
}

struct Request {
    number: u64,
    rows: Vec<Arc<dyn Rows>>,
    ticket: Ticket,
}

struct Writer {
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

/// The states of one operator on one worker. Clones are the same one.
#[derive(Clone)]
pub struct Instance(Arc<Inner>);

struct Inner {
    // First, so that its thread has ended before the rest goes.
    writer: Mutex<Option<Writer>>,
    forming: Mutex<Option<Forming>>,
    snapshots: AtomicU64,
    unnamed: AtomicU64,
    core: Arc<Core>,
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instance").field("directory", &self.0.core.setup.directory).finish()
    }
}

impl Instance {
    /// An instance without state. Nothing is written before it is needed.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let core = Core {
            directory: Arc::new(Directory(setup.directory.clone())),
            setup,
            database: OnceLock::new(),
            columns: Mutex::default(),
            underway: AtomicUsize::new(0),
            underway_changed: Default::default(),
            counters: InstanceCounters::default(),
        };
        Self(Arc::new(Inner {
            writer: Mutex::new(None),
            forming: Mutex::new(None),
            snapshots: AtomicU64::new(0),
            unnamed: AtomicU64::new(0),
            core: Arc::new(core),
        }))
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> &InstanceCounters {
        &self.0.core.counters
    }

    /// Its own directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.0.core.setup.directory
    }

    pub(super) fn core(&self) -> &Arc<Core> {
        &self.0.core
    }

    /// A name for a table that was given none.
    pub(super) fn unnamed(&self) -> String {
        format!("unnamed-{}", self.0.unnamed.fetch_add(1, Ordering::Relaxed))
    }

    /// Tables that are frozen from now on, until [`Instance::end_snapshot`], are in one snapshot. To be called by the
    /// worker, as that.
    pub fn begin_snapshot(&self) {
        let forming = Forming { ticket: Ticket::new(), rows: Vec::new(), bytes: 0 };
        let before = lock(&self.0.forming).replace(forming);
        assert!(before.is_none(), "one snapshot is formed at a time");
    }

    /// All tables have been frozen: the snapshot is made now, in the background.
    ///
    /// # Panics
    /// If none was begun, or if the operating system makes no thread.
    pub fn end_snapshot(&self) -> Ticket {
        let forming = lock(&self.0.forming).take().expect("a snapshot was begun");
        let Forming { ticket, rows, bytes } = forming;
        let core = &self.0.core;
        if core.stays_in_memory(bytes) {
            ticket.set(Ok(Made::InMemory));
            return ticket;
        }
        core.underway.fetch_add(1, Ordering::AcqRel);
        let number = self.0.snapshots.fetch_add(1, Ordering::Relaxed);
        let mut writer = lock(&self.0.writer);
        let writer = writer.get_or_insert_with(|| start(Arc::clone(core)));
        let request = Request { number, rows, ticket: ticket.clone() };
        let requests = writer.requests.as_ref().expect("it is there until it is dropped");
        requests.send(request).expect("the snapshot thread lives as long as the instance");
        ticket
    }

    /// A table joins the snapshot that is being formed, or makes one of its own.
    pub(super) fn join_snapshot(&self, rows: Arc<dyn Rows>, bytes: usize) -> Ticket {
        let join = |forming: &mut Forming| {
            forming.rows.push(Arc::clone(&rows));
            forming.bytes += bytes;
            forming.ticket.clone()
        };
        if let Some(forming) = &mut *lock(&self.0.forming) {
            return join(forming);
        }
        self.begin_snapshot();
        lock(&self.0.forming).as_mut().map(join);
        self.end_snapshot()
    }
}

fn start(core: Arc<Core>) -> Writer {
    let (sender, requests) = crossbeam::channel::unbounded::<Request>();
    let make = move || {
        let mut merging = None;
        for request in requests {
            let Request { number, rows, ticket } = request;
            let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                core.snapshot(number, &rows)
            }));
            // Before the ticket: whoever waits for it may go on writing. If it failed, there may be pages left.
            _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                rows.iter().for_each(|rows| rows.let_go());
            }));
            drop(rows);
            core.snapshot_over();
            let is_made = matches!(made, Ok(Ok(_)));
            ticket.set(match made {
                Ok(Ok(snapshot)) => Ok(Made::Local(Arc::new(snapshot))),
                Ok(Err(error)) => Err(error.text()),
                Err(_) => Err("a snapshot of RocksDB panicked".to_owned()),
            });
            if is_made && let Err(error) = merge(&core, &mut merging) {
                tracing::warn!("files of RocksDB are not merged: {error}");
            }
        }
        if let Some(merging) = &mut merging {
            merging.end(&core);
        }
    };
    let thread = std::thread::Builder::new().name("rocks-snapshot".to_owned()).spawn(make);
    Writer {
        requests: Some(sender),
        thread: Some(thread.expect("the operating system makes a thread")),
    }
}

/// Sees to it that files are merged at their pace.
fn merge(core: &Arc<Core>, merging: &mut Option<Merging>) -> Result<(), String> {
    let merging = match merging {
        Some(merging) => merging,
        none => none.insert(Merging::start(Arc::clone(core)).map_err(|error| error.to_string())?),
    };
    let database = core.database().map_err(|error| error.text())?;
    merging.snapshot_was_made(database).map_err(|error| error.text())
}
