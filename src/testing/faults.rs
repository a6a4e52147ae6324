//! What goes wrong in a simulation, and when: drawn from the seed.

use super::Random;
use super::reduce::{Fault, FaultKind, Reduction};

/// Calls to storage that fail in a run, at the most.
const STORAGE_ERRORS_MAX: u32 = 20;
/// Commits that fail in a run, at the most.
const COMMIT_ERRORS_MAX: u32 = 40;

/// Calls to the local disk that fail in a run, at the most.
const LOCAL_ERRORS_MAX: u32 = 60;

/// A kind of moment at which something may go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// A worker gets the baton.
    Turn,
    /// A call to storage is about to be made.
    StorageCall,
    /// A manifest is about to be published.
    Manifest,
    /// A task of the executor is about to run, or has just run.
    Task,
    /// A sink is about to commit, or has just committed.
    Commit,
    /// The program is at a [`point`](super::point) of its own.
    Point,
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Death {
    /// With the job.
    Never,
    /// At this moment, when there were so many of its kind before in this life.
    At(Moment, u64),
    /// So many turns after the final checkpoint was published, at the most.
    AfterLast {
        /// Units: turns.
        within: u64,
    },
    /// So many turns after a manifest was published, when there were so many before in this life.
    AfterManifest {
        /// Units: manifests.
        count: u64,
        /// Units: turns.
        within: u64,
    },
}

/// What a job is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Stop {
        drain: bool,
    },
    Cancel,
    /// `stop`: as for a stop, whether it drains; `None`: the job goes on.
    Savepoint {
        stop: Option<bool>,
    },
}

impl Asked {
    /// Whether the job ends by it.
    pub(super) fn ends(self) -> bool {
        self != Self::Savepoint { stop: None }
    }
}

/// What may go wrong, and what is planned to.
#[derive(Clone, Debug)]
pub(super) struct Faults {
    random: Random,
    panics: u32,
    storage_errors: f64,
    commit_errors: f64,
    /// Bounded, since a checkpoint makes dozens of calls, all of which have to succeed.
    storage_errors_left: u32,
    /// Bounded, since a restore has to commit everything that was pending without a single error.
    commit_errors_left: u32,
    death: Death,
    /// Whether the life is frozen when it should die, and for how many turns.
    freeze: Option<u64>,
    panic: Option<(Moment, u64)>,
    /// How many times the job is still to be stopped, and after how many turns the next time.
    stops: u32,
    stop: Option<u64>,
    /// What was planned to happen, and did unless it is left out.
    crashes_max: u32,
    /// Whether a job that is stopped may be drained.
    drains: bool,
    /// Whether it may be asked for a savepoint instead.
    savepoints: bool,
    local_errors: f64,
    local_errors_left: u32,
    /// Draws the deaths that are cruel on purpose.
    harsh: Option<Random>,
    reduction: Reduction,
    counts: [u32; FaultKind::ALL.len()],
    happened: Vec<Fault>,
}

impl Faults {
    /// None.
    pub(super) fn new(random: Random) -> Self {
        Self {
            random,
            panics: 0,
            storage_errors: 0.0,
            commit_errors: 0.0,
            storage_errors_left: STORAGE_ERRORS_MAX,
            commit_errors_left: COMMIT_ERRORS_MAX,
            death: Death::Never,
            freeze: None,
            panic: None,
            stops: 0,
            stop: None,
            crashes_max: 0,
            drains: false,
            savepoints: false,
            local_errors: 0.0,
            local_errors_left: LOCAL_ERRORS_MAX,
            harsh: None,
            reduction: Reduction::default(),
            counts: [0; FaultKind::ALL.len()],
            happened: Vec::new(),
        }
    }

    /// So many crashes, panics and stops.
    pub(super) fn often(mut self, crashes: u32, panics: u32, stops: u32) -> Self {
        (self.crashes_max, self.panics, self.stops) = (crashes, panics, stops);
        self
    }

    /// Whether half of the deaths are at moments that are known to be hard.
    pub(super) fn harsh(mut self, harsh: bool) -> Self {
        self.harsh = harsh.then(|| self.random.fork(7));
        self
    }

    /// Whether a job that is stopped may be drained.
    pub(super) fn drains(mut self, drains: bool) -> Self {
        self.drains = drains;
        self
    }

    /// Whether stops may be savepoints, and how likely a call to the local disk fails.
    pub(super) fn places(mut self, savepoints: bool, local_errors: f64) -> Self {
        (self.savepoints, self.local_errors) = (savepoints, local_errors);
        self
    }

    /// Leaves out what is not to happen.
    pub(super) fn reduced(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }

    /// A fault is due. Whether it happens, or is left out.
    pub(super) fn happens(&mut self, kind: FaultKind, what: &str) -> bool {
        let number = self.counts[kind as usize];
        self.counts[kind as usize] += 1;
        let happens = self.reduction.allows(kind, number);
        if happens {
            self.happened.push(Fault { kind, number, what: what.to_owned() });
        }
        happens
    }

    /// Whether anything of a kind may happen.
    pub(super) fn allows(&self, kind: FaultKind) -> bool {
        self.reduction.allows(kind, u32::MAX)
    }

    /// What has happened so far.
    pub(super) fn happened(&self) -> &[Fault] {
        &self.happened
    }

    /// Whether a further crash may be planned.
    pub(super) fn mortal(&self) -> bool {
        self.counts[FaultKind::Crash as usize] < self.crashes_max
    }

    /// Errors of storage and of commits, by their probabilities.
    pub(super) fn errors(mut self, storage: f64, commit: f64) -> Self {
        (self.storage_errors, self.commit_errors) = (storage, commit);
        self
    }

    /// Plans a life. What is drawn covers the start, the middle and the end of a job: small numbers are as likely as
    /// large ones.
    pub(super) fn live(&mut self, mortal: bool) {
        self.plan_death(mortal);
        let random = &mut self.random;
        self.freeze = random.chance(0.3).then(|| random.scaled(1, 1000));
        self.stop = (self.stops > 0).then(|| random.scaled(1, 1500));
        self.plan_panic();
    }

    fn plan_death(&mut self, mortal: bool) {
        let random = &mut self.random;
        self.death = match random.below(8) {
            _ if !mortal => Death::Never,
            0 | 1 => Death::At(Moment::Turn, random.scaled(1, 2000)),
            2 | 3 => Death::At(Moment::StorageCall, random.scaled(1, 400)),
            4 => Death::At(Moment::Manifest, random.scaled(1, 16)),
            5 => Death::At(Moment::Commit, random.scaled(1, 30)),
            6 => Death::At(Moment::Task, random.scaled(1, 200)),
            _ => Death::AfterLast { within: random.scaled(1, 60) },
        };
        if let Some(random) = self.harsh.as_mut().filter(|_| mortal)
            && random.chance(0.6)
        {
            self.death = match random.below(8) {
                // While it is built.
                0 | 1 => Death::At(Moment::Turn, random.between(1, 8)),
                // While it claims its attempt and restores.
                2 => Death::At(Moment::StorageCall, random.scaled(1, 60)),
                // Between publication and commit.
                3 | 4 => {
                    let count = random.scaled(1, 8);
                    Death::AfterManifest { count, within: random.scaled(1, 30) }
                }
                // Amid several commits.
                5 | 6 => Death::At(Moment::Commit, random.scaled(1, 12)),
                // While it ends.
                _ => Death::AfterLast { within: random.scaled(1, 30) },
            };
        }
    }

    /// A turn begins. What the job is asked for in it.
    pub(super) fn stops(&mut self) -> Option<Asked> {
        let left = self.stop.as_mut()?;
        *left -= 1;
        if *left > 0 {
            return None;
        }
        self.stop = None;
        self.stops -= 1;
        let cancel = self.random.chance(0.3);
        let drain = self.drains && self.random.fork(8).chance(0.5);
        let mut asked = if cancel { Asked::Cancel } else { Asked::Stop { drain } };
        let mut savepoint = self.random.fork(9);
        if self.savepoints && savepoint.chance(0.7) {
            let stop = savepoint.chance(0.7).then_some(drain);
            asked = Asked::Savepoint { stop };
        }
        if !asked.ends() && self.stops > 0 {
            self.stop = Some(savepoint.scaled(1, 1500));
        }
        self.happens(FaultKind::Stop, &format!("{asked:?}")).then_some(asked)
    }

    /// Nothing goes wrong any more.
    pub(super) fn none(&mut self) {
        self.death = Death::Never;
        (self.panic, self.stop, self.freeze) = (None, None, None);
        (self.crashes_max, self.panics, self.stops) = (0, 0, 0);
        (self.storage_errors, self.commit_errors, self.local_errors) = (0.0, 0.0, 0.0);
    }

    fn plan_panic(&mut self) {
        let random = &mut self.random;
        self.panic = (self.panics > 0).then(|| match random.below(4) {
            0 => (Moment::Turn, random.scaled(1, 1500)),
            1 => (Moment::Task, random.scaled(1, 100)),
            _ => (Moment::Point, random.scaled(1, 300)),
        });
    }

    pub(super) fn death(&self) -> Death {
        self.death
    }

    /// Whether the process dies at this moment.
    pub(super) fn dies(&mut self, moment: Moment, what: &str) -> bool {
        let Death::At(kind, count) = &mut self.death else { return false };
        // A manifest is published by a call to storage.
        let counts =
            *kind == moment || (*kind == Moment::StorageCall && moment == Moment::Manifest);
        if !counts {
            return false;
        }
        *count -= 1;
        if *count > 0 {
            return false;
        }
        self.death = Death::Never;
        if self.happens(FaultKind::Crash, what) {
            return true;
        }
        self.plan_death(self.mortal());
        false
    }

    /// A manifest is published.
    pub(super) fn published(&mut self) {
        if let Death::AfterManifest { count, within } = &mut self.death {
            *count -= 1;
            if *count == 0 {
                self.death = Death::At(Moment::Turn, *within);
            }
        }
    }

    /// Whether the life that should die is only frozen, and for how many turns.
    pub(super) fn freezes(&mut self) -> Option<u64> {
        self.freeze.take()
    }

    /// The final checkpoint is published.
    pub(super) fn last_published(&mut self) {
        if let Death::AfterLast { within } = self.death {
            self.death = Death::At(Moment::Turn, self.random.between(1, within));
        }
    }

    /// Whether the thread panics at this moment.
    pub(super) fn panics(&mut self, moment: Moment, what: &str) -> bool {
        let Some((kind, count)) = &mut self.panic else { return false };
        if *kind != moment {
            return false;
        }
        *count -= 1;
        let panics = *count == 0;
        if panics {
            self.panics -= 1;
            self.plan_panic();
        }
        panics && self.happens(FaultKind::Panic, what)
    }

    pub(super) fn storage_fails(&mut self, what: &str) -> bool {
        let fails = self.storage_errors_left > 0
            && self.storage_errors > 0.0
            && self.random.chance(self.storage_errors);
        self.storage_errors_left -= u32::from(fails);
        fails && self.happens(FaultKind::StorageError, what)
    }

    pub(super) fn local_disk_fails(&mut self, what: &str) -> bool {
        let fails = self.local_errors_left > 0
            && self.local_errors > 0.0
            && self.random.chance(self.local_errors);
        self.local_errors_left -= u32::from(fails);
        fails && self.happens(FaultKind::LocalDisk, what)
    }

    pub(super) fn commit_fails(&mut self) -> bool {
        let fails = self.commit_errors_left > 0
            && self.commit_errors > 0.0
            && self.random.chance(self.commit_errors);
        self.commit_errors_left -= u32::from(fails);
        fails && self.happens(FaultKind::CommitError, "a commit fails")
    }
}
