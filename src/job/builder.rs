//! The job while it is built: names are checked, states restored, operators made.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::rc::Rc;

use timely::dataflow::Scope;

use crate::connect::{Committer, ConnectError, Record, Sink, SinkContext, Source};
use crate::format::part::EntryBlock;
use crate::format::{FormatError, SectionHeader, codec};
use crate::ids::{InvalidName, Name};
use crate::job::stream::{Stream, Timely};
use crate::protocol::layers::{Layer, Selection};
use crate::protocol::watermark::event_coordinate;
use crate::runtime::assign::{assign, assigned_header};
use crate::runtime::board::ASSIGNERS;
use crate::runtime::chain::Origin;
use crate::runtime::channel::ChannelSpec;
use crate::runtime::channel_log::{Placement, RestoredLog, log_headers, read_log};
use crate::runtime::context::WorkerContext;
use crate::runtime::event_time::EventTime;
use crate::runtime::keyed::{
    Context, OperatorState, Replay, keyed, owned_groups, watermark_header,
};
use crate::runtime::keyed_timers::{KeyTimers, TimerContext, TimersLogic, timer_headers};
use crate::runtime::kinds::Value;
use crate::runtime::migration::{Fit, Migrations};
use crate::runtime::native_restore::NativeReaders;
#[cfg(feature = "rocksdb")]
use crate::runtime::native_restore::{have_our_rows, take_over};
use crate::runtime::operator::Inputs;
use crate::runtime::operator_state::BroadcastStates;
use crate::runtime::restore::{RestoreError, Restored};
use crate::runtime::scheduled::{Scheduled, ScheduledContext, ScheduledLogic};
use crate::runtime::sink::{COMMIT_ATTEMPTS, SinkEnds, commit_delay, sink, transactions_header};
use crate::runtime::source::{SourceStart, read_start, source, splits_header};
use crate::runtime::states::States;
use crate::runtime::time::Time;
use crate::runtime::timed::{TimedLogic, Timer, held_header, timed};
use crate::state::{Backend, Key};

/// A job cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A name is no name.
    #[error("a name in the job")]
    Name(#[from] InvalidName),
    /// Two participants have one name.
    #[error(
        "the name {0} is used twice; sources, stateful operators and sinks need names unique in the job: state is found again by it"
    )]
    Duplicate(Name),
    /// A setting is for a channel that the job does not have.
    #[error(
        "an alignment timeout is set for channel {name}, which the job does not have; it has: {channels}"
    )]
    NoChannel {
        /// The name in the settings.
        name: Name,
        /// The names in the job.
        channels: String,
    },
    /// The job reads nothing.
    #[error("the job has no source")]
    NoSource,
    /// The migrations of a state do not lead to its current version.
    #[error("state {operator}/{state}: {why}")]
    Migration {
        /// The operator.
        operator: Name,
        /// The state.
        state: Name,
        /// What is wrong.
        why: String,
    },
    /// A checkpoint does not fit the program.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// A source or a sink could not be set up.
    #[error("{operator}")]
    Connect {
        /// The operator.
        operator: Name,
        /// Why.
        source: ConnectError,
    },
}

impl BuildError {
    /// Whether another attempt could go better.
    pub(crate) fn restartable(&self) -> bool {
        matches!(self, Self::Connect { .. })
    }
}

#[derive(Default)]
struct BuildState {
    errors: Vec<BuildError>,
    declared: Vec<SectionHeader>,
    exchanges: usize,
    channels: Vec<Name>,
    sources: u32,
    /// Operators that assign event time.
    assigners: u32,
}

/// Reads a keyed state out of parts, and out of files that are opened to be read. Returns the layers that it may be built on.
fn read_state(
    restored: &Restored,
    operator: &Name,
    state: &Name,
    groups: &Range<u16>,
    readers: Option<&NativeReaders>,
    mut take: impl FnMut(&Selection<'_>, &EntryBlock<'_>) -> Result<(), FormatError>,
) -> Result<Option<Vec<Layer>>, RestoreError> {
    let layers = restored.read_table(operator, state, groups, &mut take)?;
    let Some(readers) = readers else { return Ok(layers) };
    let epoch = restored.manifest().epoch;
    readers
        .for_each_block(state.as_str(), groups, take)
        .map_err(|source| RestoreError::Unreadable { epoch, source })?;
    // What was in files is in no layer.
    Ok(None)
}

/// A stream, and the broadcast one beside it if there is one.
pub(super) type MainAndBroadcast<'scope, D, B> = (Stream<'scope, D>, Option<Stream<'scope, B>>);

/// What comes out of an operator behind both, with the origins that are in front of it.
pub(super) fn behind<'scope, D: Record, B: Record, O: Record>(
    (main, broadcast): MainAndBroadcast<'scope, D, B>,
    build: impl FnOnce(Inputs<'scope, D, B>, Vec<Origin>) -> (Timely<'scope, O>, Vec<Origin>),
) -> Stream<'scope, O> {
    let Stream { inner, job, mut origins, channel } = main;
    let broadcast = broadcast.map(|broadcast| {
        origins.extend(broadcast.origins);
        broadcast.inner
    });
    let (inner, origins) = build((inner, broadcast), origins);
    Stream { inner, job, origins, channel }
}

/// A job that is being built on one worker.
#[derive(Clone)]
pub struct Job<'scope> {
    scope: Scope<'scope, Time>,
    context: Rc<WorkerContext>,
    state: Rc<RefCell<BuildState>>,
}

impl fmt::Debug for Job<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("worker", &self.context.index).finish_non_exhaustive()
    }
}

impl<'scope> Job<'scope> {
    pub(crate) fn new(scope: Scope<'scope, Time>, context: Rc<WorkerContext>) -> Self {
        Self { scope, context, state: Rc::default() }
    }

    /// Index of the worker that this dataflow is built on, and the number of workers.
    #[must_use]
    pub fn worker(&self) -> (usize, usize) {
        (self.context.index, self.context.peers)
    }

    /// Reads a source whose records have no event time. `name` is unique in the job, and identifies the source's
    /// splits in checkpoints.
    pub fn source<S: Source>(&self, name: &str, source: S) -> Stream<'scope, S::Record>
    where
        S::Record: Record,
    {
        self.add_source(name, source, EventTime::none())
    }

    /// Reads a source whose records have an event time; see [`EventTime`].
    pub fn source_with<S: Source>(
        &self,
        name: &str,
        source: S,
        event_time: EventTime<S::Record>,
    ) -> Stream<'scope, S::Record>
    where
        S::Record: Record,
    {
        self.add_source(name, source, event_time)
    }

    pub(crate) fn context(&self) -> &Rc<WorkerContext> {
        &self.context
    }

    /// What a channel is built with: its name, its settings, and what a checkpoint holds of it.
    pub(crate) fn channel_spec<D: Record>(
        &self,
        kind: &str,
        name: Option<&str>,
        placement: &Placement<D>,
    ) -> ChannelSpec<D> {
        let automatic = {
            let mut state = self.state.borrow_mut();
            state.exchanges += 1;
            format!("{kind}-{}", state.exchanges)
        };
        let name = self.name(name.unwrap_or(&automatic));
        let restored = self.restored_log(&name, placement);
        let checkpoints = &self.context.config().checkpoints;
        let own = checkpoints.channel_alignment_timeouts.get(&name);
        let general = match placement {
            // Replicas that a barrier finds at different records cannot be told apart or put together at another
            // parallelism. A program that does not mind says so, by the channel's name.
            Placement::Replica => None,
            _ => checkpoints.alignment_timeout,
        };
        let alignment_timeout = own.copied().unwrap_or(general);
        self.state.borrow_mut().channels.push(name.clone());
        let group_of = match placement {
            Placement::Keyed(group_of) => Some(*group_of),
            _ => None,
        };
        ChannelSpec { name, alignment_timeout, group_of, restored }
    }

    /// What a checkpoint holds of records on their way, in a channel or an operator.
    pub(super) fn restored_log<D: Record>(
        &self,
        name: &Name,
        placement: &Placement<D>,
    ) -> RestoredLog<D> {
        let headers = log_headers::<D>(name);
        let [records, least] = &headers;
        let held = [least, records].map(|header| self.restorable(header));
        let Some(restored) = held[1] else { return RestoredLog::default() };
        read_log(restored, &headers, placement, &self.context).unwrap_or_else(|error| {
            self.error(error);
            RestoredLog::default()
        })
    }

    /// What is wrong with the job, once it is built.
    pub(crate) fn finish(&self) -> Vec<BuildError> {
        let mut state = self.state.borrow_mut();
        let mut errors = std::mem::take(&mut state.errors);
        self.context.declared.borrow_mut().clone_from(&state.declared);
        if state.sources == 0 {
            errors.push(BuildError::NoSource);
        }
        let configured = self.context.config().checkpoints.channel_alignment_timeouts.keys();
        for name in configured.filter(|name| !state.channels.contains(name)) {
            let channels = state.channels.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
            errors.push(BuildError::NoChannel { name: name.clone(), channels });
        }
        if let Some(restored) = &self.context.shared.restored {
            let restore = &self.context.config().restore;
            let checked = restored.check_set(
                &state.declared,
                restore.allow_dropped_state,
                restore.allow_new_state,
            );
            // A state that could not be read is not "new" on top of it.
            if errors.is_empty() {
                errors.extend(checked.err().map(BuildError::from));
            }
        }
        errors
    }

    pub(super) fn error(&self, error: impl Into<BuildError>) {
        self.state.borrow_mut().errors.push(error.into());
    }

    /// Checks a name. A wrong one is an error of the build, which goes on under another to find more.
    pub(super) fn name(&self, name: &str) -> Name {
        match Name::new(name) {
            Ok(name) => {
                if !self.context.claim_name(&name) {
                    self.error(BuildError::Duplicate(name.clone()));
                }
                name
            }
            Err(error) => {
                self.error(error);
                Name::new("_").expect("a constant name")
            }
        }
    }

    fn connect<T>(&self, operator: &Name, result: Result<T, ConnectError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(source) => {
                self.error(BuildError::Connect { operator: operator.clone(), source });
                None
            }
        }
    }

    /// Checks a state against the checkpoint, before it is read. `None`: there is nothing to read.
    pub(super) fn restorable(
        &self,
        header: &SectionHeader,
    ) -> Option<&crate::runtime::restore::Restored> {
        self.restorable_as(header, None).map(|(restored, _)| restored)
    }

    /// As [`Job::restorable`], of a state that may have migrations; says how it is read.
    fn restorable_as(
        &self,
        header: &SectionHeader,
        migrations: Option<&Migrations>,
    ) -> Option<(&crate::runtime::restore::Restored, Fit)> {
        self.state.borrow_mut().declared.push(header.clone());
        if let Some(migrations) = migrations {
            let state = (header.operator.clone(), header.state.clone());
            self.context.migrations.borrow_mut().insert(state, migrations.clone());
        }
        let restored = self.context.shared.restored.as_ref()?;
        match restored.check_type(header, migrations, self.context.config().max_parallelism) {
            Ok(fit) => fit.map(|fit| (restored, fit)),
            Err(error) => {
                self.error(error);
                None
            }
        }
    }

    fn add_source<S: Source>(
        &self,
        name: &str,
        from: S,
        event_time: EventTime<S::Record>,
    ) -> Stream<'scope, S::Record>
    where
        S::Record: Record,
    {
        let name = self.name(name);
        let header = splits_header::<S>(&name);
        let start = match self.restorable(&header) {
            Some(restored) => match read_start::<S>(restored, &header, &self.context) {
                Ok(start) => start,
                Err(error) => {
                    self.error(error);
                    SourceStart::Fresh
                }
            },
            None => SourceStart::Fresh,
        };
        let number = {
            let mut state = self.state.borrow_mut();
            state.sources += 1;
            state.sources - 1
        };
        let (inner, origin) =
            source(self.scope, &self.context, &name, number, from, start, event_time);
        Stream { inner, job: self.clone(), origins: vec![origin], channel: None }
    }

    pub(crate) fn add_keyed<K, V, S, O, F>(
        &self,
        stream: Stream<'scope, (K, V)>,
        name: &str,
        states: S,
        logic: F,
        replay: Option<Replay<S::Tables, O>>,
    ) -> Stream<'scope, O>
    where
        K: Key,
        V: Record,
        S: States<K>,
        O: Record,
        F: FnMut(&K, V, &mut S::Access<'_>, &mut Context<'_, O>) + 'static,
    {
        let name = self.name(name);
        let (taken, shown) = self.restored_watermark(&name);
        let (tables, _) = self.restored_tables(&name, &states, BTreeSet::from([taken]), &[]);
        let Stream { inner, job, origins, channel } = stream;
        let of_state = (states, tables, shown);
        let inner = keyed(inner, origins.clone(), &self.context, &name, of_state, logic, replay);
        Stream { inner, job, origins, channel }
    }

    pub(crate) fn add_keyed_with_timers<K, V, R, S, B, O, F, G, T>(
        &self,
        inputs: MainAndBroadcast<'scope, (K, V), R>,
        name: &str,
        (states, broadcast): (S, B),
        on_record: F,
        on_broadcast: G,
        on_timer: T,
    ) -> Stream<'scope, O>
    where
        K: Key,
        V: Record,
        R: Record,
        S: States<K>,
        B: BroadcastStates,
        O: Record,
        F: FnMut(&K, V, &mut S::Access<'_>, &B::View<'_>, &mut TimerContext<'_, K, O>) + 'static,
        G: FnMut(R, &mut B::Access<'_>, &mut Context<'_, O>) + 'static,
        T: FnMut(&K, Timer, &mut S::Access<'_>, &B::View<'_>, &mut TimerContext<'_, K, O>)
            + 'static,
    {
        let name = self.name(name);
        let headers = timer_headers::<K>(&name);
        let mut taken = self.taken_names(&name, headers.iter().map(|header| header.state.clone()));
        let kept = self.restored_operator_state(&name, &broadcast, &mut taken);
        let (OperatorState { backend, tables }, readers) =
            self.restored_tables(&name, &states, taken, &headers);
        let max_parallelism = self.context.config().max_parallelism;
        let groups = owned_groups(&self.context);
        let mut timers = KeyTimers::new(&backend, max_parallelism, &groups);
        let queues = [&mut timers.event, &mut timers.processing];
        for (header, timers) in headers.iter().zip(queues) {
            let Some(restored) = self.restorable(header) else { continue };
            let take = |selection: &Selection<'_>, block: &EntryBlock<'_>| {
                timers.restore(selection, block.entries, block.bytes)
            };
            match read_state(restored, &name, &header.state, &groups, readers.as_ref(), take) {
                Ok(layers) => timers.restored(layers),
                Err(error) => self.error(error),
            }
        }
        let logic = TimersLogic {
            states,
            backend,
            tables,
            timers,
            kept,
            on_record,
            on_broadcast,
            on_timer,
        };
        self.add_timed(inputs, &name, logic)
    }

    pub(crate) fn add_scheduled<K, V, W, O, F, T>(
        &self,
        stream: Stream<'scope, (K, V)>,
        name: &str,
        state: Value<W>,
        on_record: F,
        on_due: T,
    ) -> Stream<'scope, O>
    where
        K: Key,
        V: Record,
        W: Scheduled,
        O: Record,
        F: FnMut(&K, V, &mut W, &mut ScheduledContext<'_, O>) + 'static,
        T: FnMut(&K, Timer, &mut W, &mut ScheduledContext<'_, O>) + 'static,
    {
        let name = self.name(name);
        let taken = self.taken_names(&name, []);
        let (tables, _) = self.restored_tables(&name, &state, taken, &[]);
        let logic = ScheduledLogic::new(state, tables, on_record, on_due);
        self.add_timed((stream, None), &name, logic)
    }

    /// The names that states of a timed operator may not have.
    fn taken_names(&self, name: &Name, more: impl IntoIterator<Item = Name>) -> BTreeSet<Name> {
        let own = [watermark_header(name).state, held_header(name).state];
        own.into_iter().chain(more).collect()
    }

    fn add_timed<K: Key, V: Record, B: Record, O: Record>(
        &self,
        inputs: MainAndBroadcast<'scope, (K, V), B>,
        name: &Name,
        logic: impl TimedLogic<K, V, B, O>,
    ) -> Stream<'scope, O> {
        let (_, shown) = self.restored_watermark(name);
        let held = self.restored_events(&held_header(name));
        let held_at = held.into_iter().min().unwrap_or(i64::MAX);
        behind(inputs, |inputs, origins| {
            let inner = timed(inputs, origins.clone(), &self.context, name, shown, logic);
            (inner, origins.iter().map(|origin| origin.held_at(held_at)).collect())
        })
    }

    pub(crate) fn add_assigner<D: Record>(
        &self,
        stream: Stream<'scope, D>,
        name: &str,
        event_time: EventTime<D>,
    ) -> Stream<'scope, D> {
        let name = self.name(name);
        let restored = self.restored_events(&assigned_header(&name));
        let restored = restored.into_iter().min().unwrap_or(i64::MIN);
        let number = {
            let mut state = self.state.borrow_mut();
            state.assigners += 1;
            ASSIGNERS + state.assigners - 1
        };
        let Stream { inner, job, origins, channel } = stream;
        let heads = origins.clone();
        let inner = assign(inner, heads, &self.context, &name, number, restored, event_time);
        let event = event_coordinate(restored);
        let origins = origins.iter().map(|origin| origin.reset_to(event)).collect();
        Stream { inner, job, origins, channel }
    }

    /// What event time an operator had shown at any worker when the restored snapshot was taken; and the name under which
    /// that is kept.
    pub(super) fn restored_watermark(&self, name: &Name) -> (Name, i64) {
        let header = watermark_header(name);
        let shown = self.restored_events(&header).into_iter().max().unwrap_or(i64::MIN);
        (header.state, shown)
    }

    /// What a section that keeps one event time holds, of all workers.
    fn restored_events(&self, header: &SectionHeader) -> Vec<i64> {
        let read = self.restorable(header).map(|restored| restored.events(header)).transpose();
        read.map(Option::unwrap_or_default).unwrap_or_else(|error| {
            self.error(error);
            Vec::new()
        })
    }

    /// The files of an operator that a checkpoint holds: its backend takes them over, or they are opened to be read.
    fn restored_files(
        &self,
        name: &Name,
        backend: &Backend,
        headers: &[SectionHeader],
    ) -> Option<NativeReaders> {
        let restored = self.context.shared.restored.as_ref()?;
        let groups = owned_groups(&self.context);
        let held = restored.natives(name, &groups);
        let image = restored.image();
        let opened = match backend {
            // Rows of a state that is of another type now have to be read and converted, and so have those of maps as
            // earlier versions kept them.
            #[cfg(feature = "rocksdb")]
            Backend::Rocks(instance)
                if headers.iter().all(|header| restored.holds_as_declared(header))
                    && have_our_rows(&held, headers) =>
            {
                let states: Vec<&str> =
                    headers.iter().map(|header| header.state.as_str()).collect();
                take_over(image, &held, instance, &groups, &states).map(|taken| {
                    if let Some(taken) = taken
                        && restored.builds_on()
                    {
                        self.context.uploads(name).adopt(&taken.files);
                    }
                    None
                })
            }
            _ => {
                _ = headers;
                NativeReaders::open(image, &held)
            }
        };
        opened.unwrap_or_else(|source| {
            let epoch = restored.manifest().epoch;
            self.error(RestoreError::Unreadable { epoch, source });
            None
        })
    }

    /// The tables of an operator's states, with what a checkpoint holds of them. `seen`: names that states may not have.
    /// `beside`: other states of the operator, which are to be read with the returned readers.
    pub(super) fn restored_tables<K: Key, S: States<K>>(
        &self,
        name: &Name,
        states: &S,
        mut seen: BTreeSet<Name>,
        beside: &[SectionHeader],
    ) -> (OperatorState<S::Tables>, Option<NativeReaders>) {
        let max_parallelism = self.context.config().max_parallelism;
        let groups = owned_groups(&self.context);
        let backend = self.context.shared.backends.of_operator(self.context.index, name);
        let declared = states.declarations();
        let mut headers: Vec<_> = declared.iter().map(|state| state.header(name)).collect();
        headers.extend(beside.iter().cloned());
        let readers = self.restored_files(name, &backend, &headers);
        let mut tables = states.open(&backend, max_parallelism, &groups);
        if S::EXPIRES {
            S::set_now(&mut tables, self.context.unix_ms());
        }
        for (index, declaration) in states.declarations().into_iter().enumerate() {
            let header = declaration.header(name);
            if let Err(error) = declaration.name {
                self.error(error);
                continue;
            }
            if !seen.insert(header.state.clone()) {
                self.error(BuildError::Duplicate(header.state.clone()));
            }
            if let Err(why) = declaration.migrations.check(declaration.type_version) {
                let (operator, state) = (name.clone(), header.state.clone());
                self.error(BuildError::Migration { operator, state, why });
                continue;
            }
            let migrations = Some(&declaration.migrations);
            let Some((restored, fit)) = self.restorable_as(&header, migrations) else { continue };
            // A time to live may have been added since the checkpoint, or taken away.
            let expires = fit.expires;
            let converted = fit.conversion.is_some() || expires != declaration.expires;
            let take = |selection: &Selection<'_>, block: &EntryBlock<'_>| {
                let made;
                let bytes = match &fit.conversion {
                    None => block.bytes,
                    Some(conversion) => {
                        made = conversion.block::<K>(selection.changes, expires, block)?;
                        &made
                    }
                };
                S::restore(&mut tables, index, expires, selection, block.entries, bytes)
            };
            match read_state(restored, name, &header.state, &groups, readers.as_ref(), take) {
                // What was converted has to be written anew.
                Ok(Some(layers)) if !converted => S::restored(&mut tables, index, layers),
                Ok(_) => {}
                Err(error) => self.error(error),
            }
        }
        (OperatorState { backend, tables }, readers)
    }

    pub(crate) fn add_sink<S: Sink>(&self, stream: Stream<'scope, S::Record>, name: &str, mut to: S)
    where
        S::Record: Record,
    {
        let name = self.name(name);
        let shared = &self.context.shared;
        let sink_context = SinkContext {
            job: shared.config.name.clone(),
            operator: name.clone(),
            lineage: shared.lineage,
            attempt: shared.attempt,
            subtask: self.context.index,
            parallelism: self.context.peers,
        };
        let restored = self.restored_transactions::<S>(&name);
        if shared.planning {
            return;
        }
        let Some(mut committer) = self.connect(&name, to.committer(&sink_context)) else { return };
        // What the checkpoint holds is committed before anything of our own is; commit is idempotent. What one worker
        // had pending is committed by one worker, in its order.
        let (index, peers) = (self.context.index, self.context.peers);
        for (_, transaction) in
            restored.iter().filter(|(writer, _)| *writer as usize % peers == index)
        {
            if self.connect(&name, self.commit(&name, &mut committer, transaction)).is_none() {
                return;
            }
        }
        let kept = restored.into_iter().map(|(_, transaction)| transaction).collect();
        let kept = (index == 0).then_some(kept);
        let Some(writer) = self.connect(&name, to.writer(&sink_context)) else { return };
        let ends = SinkEnds { writer, committer, kept };
        sink::<S>(stream.inner, stream.origins, &self.context, &name, ends);
    }

    /// Commits a restored transaction, with as much patience as the running job has.
    fn commit<C: Committer>(
        &self,
        name: &Name,
        committer: &mut C,
        transaction: &C::Transaction,
    ) -> Result<(), ConnectError> {
        let mut failures = 0;
        loop {
            let Err(error) = committer.commit(transaction) else { return Ok(()) };
            failures += 1;
            if failures == COMMIT_ATTEMPTS {
                return Err(error);
            }
            let delay = commit_delay(failures);
            let text = crate::runtime::describe(&error);
            tracing::warn!(operator = %name, failures, "commit failed, again in {delay:?}: {text}");
            self.context.shared.clock.sleep(delay);
        }
    }

    /// All transactions of this sink that the restored checkpoint holds, each with the worker that wrote it.
    fn restored_transactions<S: Sink>(&self, name: &Name) -> Vec<(u32, S::Transaction)> {
        let header = transactions_header::<S>(name);
        let mut transactions = Vec::new();
        let Some(restored) = self.restorable(&header) else { return transactions };
        let read = restored.for_each_block(name, &header.state, 0..u16::MAX, |writer, block| {
            codec::decode_entries(block.bytes, block.entries, |transaction| {
                transactions.push((writer, transaction));
            })
        });
        if let Err(error) = read {
            self.error(error);
        }
        transactions
    }
}
