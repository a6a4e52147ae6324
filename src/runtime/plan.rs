//! What a restore would do, without starting anything: the dataflow is built once, by one worker that reads, claims and
//! writes nothing, for the sake of the states that it declares.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use crossbeam::channel::bounded;
use serde::{Deserialize, Serialize};
use timely::WorkerConfig;
use timely::communication::allocator::{AllocatorBuilder, ProcessBuilder};
use timely::communication::{Allocator, Hooks, initialize_from};
use timely::worker::Worker;

use crate::config::JobConfig;
use crate::format::SectionHeader;
use crate::ids::{Attempt, Epoch, Lineage, Name};
use crate::runtime::attempt::Build;
use crate::runtime::backend::Backends;
use crate::runtime::board::Board;
use crate::runtime::clock::SystemClock;
use crate::runtime::context::{AttemptShared, Failure, FailureKind};
use crate::runtime::counters::Counters;
use crate::runtime::describe;
use crate::runtime::driver::{AttemptControl, Driver};
use crate::runtime::executor::Executor;
use crate::runtime::ledger::Ledger;
use crate::runtime::migration::{Fit, Migrations};
use crate::runtime::restore::{RestoreError, Restored};
use crate::runtime::time::Time;
use crate::storage::job_store::JobStore;
use crate::storage::{Image, MemoryStorage};

/// What a restore would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RestorePlan {
    /// Where the checkpoint or savepoint is.
    pub(crate) location: String,
    /// Its job.
    pub(crate) job: String,
    /// Its number.
    pub(crate) id: u64,
    /// Sorted by operator and state, as the program names them.
    pub(crate) states: Vec<PlannedState>,
    /// Why the job would not start; none: it would.
    pub(crate) problems: Vec<String>,
}

/// What becomes of a state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct PlannedState {
    pub(crate) operator: String,
    pub(crate) state: String,
    pub(crate) action: Action,
    /// The operator's name in the checkpoint, if that is another.
    pub(crate) renamed_from: Option<String>,
    /// Type and version in the checkpoint.
    pub(crate) held: Option<String>,
    /// Type and version in the program.
    pub(crate) wanted: Option<String>,
}

/// What becomes of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Action {
    /// It is restored.
    Map,
    /// It is converted while it is restored.
    Migrate,
    /// It begins empty.
    New,
    /// It is dropped.
    Drop,
    /// It is of another type or kind.
    Mismatch,
}

/// Compares what is in `image` with what the program declares.
///
/// # Errors
/// [`Failure`] if the job cannot be built.
pub(crate) fn restore_plan(
    image: Image,
    config: &JobConfig,
    build: &Arc<Build>,
) -> Result<RestorePlan, Failure> {
    let (declared, migrations) = declared(config, build)?;
    let manifest = image.manifest();
    let (location, job, id) = (image.location(), manifest.job.to_string(), manifest.epoch.0);
    let mut problems = Vec::new();
    let mut note = |error: RestoreError| problems.push(describe(&error));
    let restored = Restored::new(image.clone(), &config.restore.renamed).unwrap_or_else(|error| {
        note(error);
        Restored::unchanged(image)
    });
    let restore = &config.restore;
    let set = restored.check_set(&declared, restore.allow_dropped_state, restore.allow_new_state);
    set.unwrap_or_else(&mut note);
    let text = |header: &SectionHeader| format!("{} v{}", header.type_name, header.type_version);
    let mut states = BTreeSet::new();
    for wanted in &declared {
        let held = restored.held(wanted);
        let migrations = migrations.get(&(wanted.operator.clone(), wanted.state.clone()));
        let action = match restored.check_type(wanted, migrations, config.max_parallelism) {
            Ok(Some(Fit { conversion: None, .. })) => Action::Map,
            Ok(Some(Fit { conversion: Some(_), .. })) => Action::Migrate,
            // A channel has state only if a barrier has overtaken something.
            Ok(None) if wanted.kind.is_optional() => continue,
            Ok(None) => Action::New,
            Err(error @ (RestoreError::Type { .. } | RestoreError::Shape { .. })) => {
                note(error);
                Action::Mismatch
            }
            Err(_) if held.is_some() => Action::Map,
            Err(_) => continue,
        };
        let renamed = held.filter(|held| held.operator != wanted.operator);
        states.insert(PlannedState {
            operator: wanted.operator.to_string(),
            state: wanted.state.to_string(),
            action,
            renamed_from: renamed.map(|held| held.operator.to_string()),
            held: held.map(text),
            wanted: Some(text(wanted)),
        });
    }
    for held in restored.not_in(&declared) {
        states.insert(PlannedState {
            operator: held.operator.to_string(),
            state: held.state.to_string(),
            action: Action::Drop,
            renamed_from: None,
            held: Some(text(held)),
            wanted: None,
        });
    }
    let (found, wanted) = (restored.manifest().max_parallelism, config.max_parallelism);
    if found != wanted {
        note(RestoreError::MaxParallelism { epoch: Epoch(id), found, wanted });
    }
    Ok(RestorePlan { location, job, id, states: states.into_iter().collect(), problems })
}

/// States, and by operator and state the older versions that are read.
type Declared = (Vec<SectionHeader>, BTreeMap<(Name, Name), Migrations>);

/// The states that a program declares.
///
/// # Errors
/// [`Failure`] if the job cannot be built.
fn declared(config: &JobConfig, build: &Arc<Build>) -> Result<Declared, Failure> {
    let fatal = |what: String| Failure { operator: None, what, kind: FailureKind::Fatal };
    let mut config = config.clone();
    (config.workers, config.processes, config.process) = (1, 1, 0);
    config.checkpoints.directory = None;
    let store = JobStore::new(Arc::new(MemoryStorage::new()), config.name.clone());
    let shared = Arc::new(AttemptShared {
        attempt: Attempt(1),
        lineage: Lineage(1),
        first_epoch: Epoch(1),
        clock: Arc::new(SystemClock::new()),
        executor: Arc::new(Executor::inline()),
        ledger: Arc::new(Ledger::new(1, 0..1)),
        board: Board::default(),
        counters: Arc::new(Counters::default()),
        store,
        durable: false,
        restored: None,
        backends: Backends::heap(),
        planning: true,
        config,
    });
    let builders = ProcessBuilder::new_typed_vector(1, Hooks::default().refill, None);
    let builders = builders.into_iter().map(AllocatorBuilder::Process).collect();
    let (sender, declared) = bounded(1);
    let build = Arc::clone(build);
    let run = move |allocator: Allocator| {
        let mut worker = Worker::new(WorkerConfig::default(), allocator, None);
        let driver = Driver::new(&worker, &shared, &Arc::new(AttemptControl::default()));
        let context = Rc::clone(driver.context());
        let built = worker.dataflow::<Time, _, _>(|scope| build(scope, &context));
        let declared = (context.declared.take(), context.migrations.take());
        context.release();
        // Whoever asked is waiting.
        let _ = sender.send(built.map(|()| declared));
    };
    let guards = initialize_from(builders, Box::new(()), run).map_err(fatal)?;
    let declared = declared.recv();
    drop(guards.join());
    declared.unwrap_or_else(|_| Err(fatal("building the dataflow panicked".to_owned())))
}
