//! Running a whole job in a simulated machine.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::Random;
use super::faults::Faults;
use super::places::Places;
use super::reduce::{self, Fault};
use super::world::World;
use crate::config::{JobConfig, RestartStrategy, RestoreFrom, StateBackendKind};
use crate::format::record::SavepointInfo;
use crate::format::{SectionHeader, SectionKind};
use crate::ids::Name;
use crate::job::execute::builder;
use crate::job::{Job, JobError};
use crate::runtime::attempt::{Build, Environment, Running, run_in_place};
use crate::runtime::clock::Clock;
use crate::runtime::context::Failure;
use crate::runtime::counters::Counters;
use crate::runtime::driver::Turns;
use crate::storage::fault::{FaultAction, FaultPoint, FaultStorage};
use crate::storage::local_copy::RestoredBytes;
use crate::storage::{CheckpointStorage, JobStore, LocalCopies, MemoryStorage};

type Configure = Box<dyn Fn(&mut JobConfig)>;

/// A job in a simulated machine: everything that happens follows from a seed.
///
/// The seed decides the number of workers, which of them takes the next step, how fast time goes, how often
/// checkpoints are taken, when the process is killed, and what else goes wrong. See the [module](super).
pub struct Simulation {
    seed: u64,
    workers: RangeInclusive<usize>,
    crashes: u32,
    panics: u32,
    stops: u32,
    storage_errors: f64,
    commit_errors: f64,
    control_delay: f64,
    control_twice: f64,
    harsh: bool,
    drains: bool,
    varied_state: bool,
    turns_max: u64,
    configure: Option<Configure>,
}

impl std::fmt::Debug for Simulation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Simulation").field("seed", &self.seed).finish_non_exhaustive()
    }
}

impl Simulation {
    /// A machine that breaks in no way yet, with one to four workers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            workers: 1..=4,
            crashes: 0,
            panics: 0,
            stops: 0,
            storage_errors: 0.0,
            commit_errors: 0.0,
            control_delay: 0.0,
            control_twice: 0.0,
            harsh: false,
            drains: false,
            varied_state: false,
            turns_max: 60_000,
            configure: None,
        }
    }

    /// Numbers of workers to draw from, anew after every crash.
    ///
    /// # Panics
    /// If there is none, or zero among them.
    #[must_use]
    pub fn workers(mut self, workers: RangeInclusive<usize>) -> Self {
        assert!(!workers.is_empty() && *workers.start() > 0, "a job has workers");
        self.workers = workers;
        self
    }

    /// Kills the process up to so many times: at any turn, any call to storage, any commit of a
    /// [`FaultSink`](super::FaultSink), while it restores, while it ends.
    #[must_use]
    pub fn crashes(mut self, crashes: u32) -> Self {
        self.crashes = crashes;
        self
    }

    /// Lets a worker panic up to so many times: at any turn, in any task of its I/O threads, at a
    /// [`point`](super::point) of the program. The job restarts in place.
    #[must_use]
    pub fn panics(mut self, panics: u32) -> Self {
        self.panics = panics;
        self
    }

    /// Asks the job to stop up to so many times, with a final checkpoint or at once, and starts it again.
    #[must_use]
    pub fn stops(mut self, stops: u32) -> Self {
        self.stops = stops;
        self
    }

    /// Whether some of the [stops](Self::stops) drain the job: event time moves to its end first. When such a job is
    /// started again, further records with event time are late.
    #[must_use]
    pub fn drains(mut self, drains: bool) -> Self {
        self.drains = drains;
        self
    }

    /// Lets calls to storage fail with this probability while the job runs: a full disk, or an error that leaves in
    /// doubt whether the call had an effect.
    #[must_use]
    pub fn storage_errors(mut self, probability: f64) -> Self {
        self.storage_errors = probability;
        self
    }

    /// Lets commits of a [`FaultSink`](super::FaultSink) fail with this probability, before or after their effect.
    #[must_use]
    pub fn commit_errors(mut self, probability: f64) -> Self {
        self.commit_errors = probability;
        self
    }

    /// Lets control messages between workers be late and come twice, with these probabilities. Those of one worker to
    /// another keep their order, as the transport promises; a late one keeps all behind it waiting.
    #[must_use]
    pub fn control_faults(mut self, delayed: f64, repeated: f64) -> Self {
        (self.control_delay, self.control_twice) = (delayed, repeated);
        self
    }

    /// Whether most [crashes](Self::crashes) strike where it is hard: while the job is built and restored, between the
    /// publication of a checkpoint and its commits, amid several commits, while the job ends.
    #[must_use]
    pub fn harsh(mut self, harsh: bool) -> Self {
        self.harsh = harsh;
        self
    }

    /// Whether the seed draws where state is kept: now and then in RocksDB, if the program was built with it, and on the heap
    /// in another life; with copies on a local disk, which may fail, and whose files may be lost or damaged between
    /// lives. And whether there are further
    /// [stops](Self::stops), most of them by savepoints, from which the next life goes on.
    #[must_use]
    pub fn varied_state(mut self, varied: bool) -> Self {
        self.varied_state = varied;
        self
    }

    /// Whether the seed has drawn that some lives keep their state in RocksDB.
    #[must_use]
    pub fn may_use_rocksdb(&self) -> bool {
        self.places(&Random::new(self.seed)).rocks
    }

    fn places(&self, random: &Random) -> Places {
        let random = random.fork(6);
        if self.varied_state { Places::draw(random) } else { Places::plain(random) }
    }

    /// A job that takes more turns than this is taken for one that never ends.
    #[must_use]
    pub fn turns_max(mut self, turns: u64) -> Self {
        self.turns_max = turns;
        self
    }

    /// Changes the configuration that was drawn. Called at the start of every life.
    #[must_use]
    pub fn config(mut self, configure: impl Fn(&mut JobConfig) + 'static) -> Self {
        self.configure = Some(Box::new(configure));
        self
    }

    /// Runs the job to its end, through all crashes. At last it is started once more, on a sound machine: it finds
    /// that there is nothing left to do, and cleans up.
    pub fn run(
        self,
        build: impl Fn(&Job<'_>) -> Result<(), JobError> + Send + Sync + 'static,
    ) -> Outcome {
        let random = Random::new(self.seed);
        let memory = MemoryStorage::new();
        let counters = Arc::new(Counters::default());
        let places = self.places(&random);
        let faults = Faults::new(random.fork(1))
            .places(places.savepoints, places.local_errors)
            .often(self.crashes, self.panics, self.stops + places.stops)
            .harsh(self.harsh)
            .drains(self.drains)
            .reduced(reduce::current())
            .errors(self.storage_errors, self.commit_errors);
        let world = World::new(
            random.fork(2),
            self.turns_max,
            faults,
            Arc::clone(&counters),
            memory.clone(),
        );
        world.keep_files(places.directory(), places.rocks);
        world.disturb_control(random.fork(5), self.control_delay, self.control_twice);
        let build = builder(build);
        let mut lives = Lives {
            config: draw_config(&mut random.fork(3)),
            random: random.fork(4),
            world,
            memory,
            counters,
            crashes: Vec::new(),
            restores: Vec::new(),
            frozen: Vec::new(),
            places,
            savepoint: None,
            savepoints: 0,
            simulation: self,
        };
        let mut result = lives.run(&build);
        lives.drain();
        if result.is_ok() {
            lives.world.heal();
            result = lives.live(false, &build).unwrap_or_else(|| {
                Err(JobError::refused("the job did not end when it was started once more"))
            });
        }
        lives.outcome(result)
    }
}

struct Lives {
    simulation: Simulation,
    config: JobConfig,
    random: Random,
    world: Arc<World>,
    memory: MemoryStorage,
    counters: Arc<Counters>,
    crashes: Vec<String>,
    restores: Vec<Restore>,
    places: Places,
    /// The last savepoint.
    savepoint: Option<SavepointInfo>,
    savepoints: usize,
    /// Processes that stand still.
    frozen: Vec<JoinHandle<std::thread::Result<Result<(), Failure>>>>,
}

impl Lives {
    fn run(&mut self, build: &Arc<Build>) -> Result<(), JobError> {
        loop {
            let mortal = self.world.mortal();
            if let Some(result) = self.live(mortal, build) {
                return result;
            }
        }
    }

    /// Lives once. `None`: killed, or asked to stop.
    fn live(&mut self, mortal: bool, build: &Arc<Build>) -> Option<Result<(), JobError>> {
        let mut config = self.config.clone();
        let (first, last) = self.simulation.workers.clone().into_inner();
        config.workers = self.random.between(first as u64, last as u64) as usize;
        if let Some(configure) = &self.simulation.configure {
            configure(&mut config);
        }
        self.places.configure(&mut config);
        let begun = self.savepoint().filter(|savepoint| self.places.begins_with(savepoint));
        if let Some(savepoint) = &begun {
            config.restore.from = RestoreFrom::Checkpoint(savepoint.path.display().to_string());
        }
        let restore = self.restore(&config, begun.is_some());
        self.restores.extend(restore);
        self.world.between_lives(|faults| self.places.damage(faults));
        let running = Running::default();
        let life = self.world.live(mortal, config.checkpoints.writer_threads, &running);
        let storage = FaultStorage::new(Arc::new(self.memory.clone()), {
            let life = Arc::clone(&life);
            move |point| life.storage_call(point)
        });
        let local = Arc::clone(&life);
        let copies = self.copies(&storage, move |point| local.local_call(point));
        let storage: Arc<dyn CheckpointStorage> = match &copies {
            Some(copies) => Arc::new(copies.clone()),
            None => Arc::new(storage),
        };
        let env = Environment {
            clock: Arc::clone(&life) as Arc<dyn Clock>,
            storage,
            copies,
            counters: Arc::clone(&self.counters),
            turns: Some(Arc::clone(&life) as Arc<dyn Turns>),
            running,
        };
        let (build, ends) = (Arc::clone(build), Arc::clone(&life));
        let process = std::thread::spawn(move || {
            // The dead unwind.
            let ended = catch_unwind(AssertUnwindSafe(|| run_in_place(&env, &config, &build)));
            ends.end();
            ended
        });
        let (ended, how) = life.wait();
        let stopped = life.stopped();
        self.crashes.extend(how.clone());
        if !ended {
            self.frozen.push(process);
            return None;
        }
        let result = process.join().expect("the panics of a process are caught");
        if how.is_some() {
            let end = || Err(JobError::refused("the simulation was ended"));
            return self.world.has_failed().then(end);
        }
        match result {
            Ok(Ok(())) if stopped => None,
            Ok(result) => Some(result.map_err(JobError::from)),
            Err(panic) => resume_unwind(panic),
        }
    }

    /// The store with its copies on the local disk, if there are any.
    fn copies(
        &self,
        storage: &FaultStorage,
        local: impl Fn(&FaultPoint) -> FaultAction + Send + Sync + 'static,
    ) -> Option<LocalCopies> {
        let copies = FaultStorage::new(Arc::new(self.places.copies.clone()?), local);
        let (storage, counts) = (Arc::new(storage.clone()), self.counters.restore_counts());
        Some(LocalCopies::new(storage, Some(Arc::new(copies)), Arc::clone(counts)))
    }

    /// The last savepoint, if it holds what the newest checkpoint does: then a life may begin with either.
    fn savepoint(&mut self) -> Option<SavepointInfo> {
        for savepoint in self.world.savepoints() {
            self.savepoints += 1;
            self.savepoint = Some(savepoint);
        }
        let savepoint = self.savepoint.clone()?;
        let storage: Arc<dyn CheckpointStorage> = Arc::new(self.memory.clone());
        let newest = JobStore::new(storage, self.config.name.clone()).newest().ok()??;
        (newest == savepoint.epoch).then_some(savepoint)
    }

    /// What a life finds to restore.
    fn restore(&self, config: &JobConfig, savepoint: bool) -> Option<Restore> {
        let workers = config.workers;
        let storage: Arc<dyn CheckpointStorage> = Arc::new(self.memory.clone());
        let store = JobStore::new(storage, self.config.name.clone());
        let manifest = store.load(store.newest().ok()??).ok()?;
        let mut in_flight = BTreeMap::new();
        let sections = manifest.parts.iter().flat_map(|part| &part.sections);
        for section in sections {
            let SectionHeader { operator, state, kind, .. } = &section.header;
            if *kind == SectionKind::ChannelLog && state.as_str() == "in-flight" {
                *in_flight.entry(operator.to_string()).or_default() += section.entries;
            }
        }
        let parts = manifest.parts.iter();
        let layers = parts.clone().map(|part| part.layers.len()).sum();
        let files = parts.flat_map(|part| &part.natives).map(|native| native.files.len()).sum();
        Some(Restore {
            workers_before: manifest.parallelism as usize,
            workers,
            in_flight,
            layers,
            files,
            savepoint,
            backend: config.state.backend,
        })
    }

    /// Lets the frozen lives go on to their end.
    fn drain(&mut self) {
        self.world.drain();
        for process in self.frozen.drain(..) {
            // They may have come to any end.
            drop(process.join());
        }
    }

    fn outcome(self, result: Result<(), JobError>) -> Outcome {
        let told = self.world.tell();
        reduce::happened(&told.faults);
        let memory = self.memory.clone();
        let storage: Arc<dyn CheckpointStorage> = Arc::new(self.memory);
        let store = JobStore::new(storage, self.config.name.clone());
        let mut leftovers = match store.unreachable() {
            Ok(leftovers) => leftovers.iter().map(ToString::to_string).collect(),
            Err(error) => vec![format!("storage cannot be audited: {error}")],
        };
        leftovers.extend(self.places.leftovers(&memory));
        Outcome {
            drawn: format!("{}; {:?}", self.places, self.config.checkpoints),
            savepoints: self.savepoints,
            restored: self.counters.restored_bytes(),
            seed: self.simulation.seed,
            result,
            crashes: self.crashes,
            restarts: self.counters.restarts(),
            checkpoints: self.counters.checkpoints().completed.len(),
            aborted: self.counters.checkpoints().aborted,
            in_flight_records: self.counters.checkpoints().in_flight_records,
            turns: told.turns,
            time: told.now,
            trace: told.trace.digest(),
            unexpected: told.unexpected,
            leftovers,
            store,
            faults: told.faults.iter().map(Fault::to_string).collect(),
            restores: self.restores,
            lines: told.trace.lines().to_vec(),
        }
    }
}

/// Draws what a job can be told, so that everything that is rare in production is common here.
fn draw_config(random: &mut Random) -> JobConfig {
    let micros = Duration::from_micros;
    let mut config = JobConfig::new(Name::new("simulated").expect("a constant name"));
    config.max_parallelism = random.pick(&[8, 16, 128]);
    let checkpoints = &mut config.checkpoints;
    checkpoints.interval = Some(micros(random.scaled(1_000, 50_000)));
    checkpoints.min_pause = micros(random.pick(&[0, 0, 0, 1_000, 5_000]));
    checkpoints.concurrent_max = random.pick(&[1, 1, 2, 3]);
    checkpoints.timeout = Duration::from_millis(random.pick(&[600_000, 600_000, 3_000, 400]));
    checkpoints.retained = random.pick(&[1, 1, 2, 3]);
    checkpoints.writer_threads = random.pick(&[1, 1, 2, 3]);
    checkpoints.inline_bytes_max = random.pick(&[0, 64, 256, 16 << 10]);
    let mut incremental = random.fork(4);
    checkpoints.incremental = incremental.pick(&[true, true, true, false]);
    checkpoints.incremental_bytes_min = incremental.pick(&[0, 0, 0, 1 << 20]);
    config.flow.step_target = micros(random.pick(&[1, 100, 2_000, 5_000]));
    config.flow.in_flight_target = micros(random.pick(&[1_000, 20_000, 200_000]));
    config.flow.in_flight_bytes_max = random.pick(&[64, 512, 32 << 20]);
    let timeouts = [None, Some(0), Some(0), Some(500), Some(5_000), Some(200_000)];
    config.checkpoints.alignment_timeout = random.fork(3).pick(&timeouts).map(micros);
    config.watermark_interval = micros(random.scaled(100, 10_000));
    config.restart = RestartStrategy::ExponentialDelay {
        initial: micros(1_000),
        max: micros(20_000),
        multiplier: 2.0,
        jitter: 0.5,
        reset_after: Duration::from_secs(3600),
    };
    config
}

/// What a life of the simulated process found in storage when it began. Restarts in place are not among them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Restore {
    /// The number of workers that took the checkpoint.
    pub workers_before: usize,
    /// The number of workers that restore it.
    pub workers: usize,
    /// Records that the checkpoint found on their way, by the names of their channels; none are not listed.
    pub in_flight: BTreeMap<String, u64>,
    /// Older parts that those of the checkpoint build on.
    pub layers: usize,
    /// Files of a backend that belong to it.
    pub files: usize,
    /// Whether a savepoint that holds the same was restored instead.
    pub savepoint: bool,
    /// What keeps the state from here on.
    pub backend: StateBackendKind,
}

/// What came of a simulation.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// How the job ended.
    pub result: Result<(), JobError>,
    /// How the process was killed, each time.
    pub crashes: Vec<String>,
    /// Restarts in place.
    pub restarts: u64,
    /// Checkpoints that completed.
    pub checkpoints: usize,
    /// Checkpoints that were aborted.
    pub aborted: u64,
    /// Records that complete checkpoints had found on their way, in channels.
    pub in_flight_records: u64,
    /// Turns of all workers.
    pub turns: u64,
    /// Simulated time.
    pub time: Duration,
    /// A number that stands for everything that happened, in order: two runs of one seed have the same.
    pub trace: u64,
    /// Failures of workers that nobody had injected.
    pub unexpected: Vec<String>,
    /// What is left in storage that no checkpoint needs.
    pub leftovers: Vec<String>,
    /// The job's checkpoints.
    pub store: JobStore,
    /// What went wrong, in order, as the faults are called in a schedule; see [`each_seed`](super::each_seed).
    pub faults: Vec<String>,
    /// What each life of the process found to restore.
    pub restores: Vec<Restore>,
    /// Savepoints that were completed, as far as later lives have heard of them.
    pub savepoints: usize,
    /// What restores have read from copies on the local disk, and from the store.
    pub restored: RestoredBytes,
    /// Where state was kept, and when checkpoints were taken, before the test changed it.
    pub drawn: String,
    /// What happened, for people, if `HIGHWATER_TRACE` is set.
    lines: Vec<String>,
}

impl Outcome {
    /// Checks that the job came to its end, that nothing failed but what was made to, and that storage holds what the
    /// checkpoints need and nothing else.
    ///
    /// # Panics
    /// If not.
    pub fn check(&self) {
        if let Err(error) = &self.result {
            let Self { unexpected, crashes, drawn, .. } = self;
            panic!("the job failed: {error}; {unexpected:?}; crashes: {crashes:?}; drawn: {drawn}");
        }
        let Self { unexpected, leftovers, drawn, .. } = self;
        assert!(unexpected.is_empty(), "unexpected failures: {unexpected:?}; drawn: {drawn}");
        assert!(leftovers.is_empty(), "unreachable in storage: {leftovers:?}; drawn: {drawn}");
    }

    /// Writes down what happened, if `HIGHWATER_TRACE` is set: to the file that it names.
    pub fn write_trace(&self) {
        if let Some(file) = std::env::var_os("HIGHWATER_TRACE") {
            let _ = std::fs::write(file, self.lines.join("\n"));
        }
    }
}
