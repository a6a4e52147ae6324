//! Making a failure small: the same seed again, with fewer faults and fewer records.
//!
//! Every fault that is due has a kind and a number, which follow from the seed. A *reduction* says which of them do not
//! happen. Whatever a fault was, leaving it out changes what comes behind it; so the result is found by trying: a
//! reduction is kept if the test still fails.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use super::world;

/// Runs that are made to find a smaller failure, at the most.
const RUNS_MAX: u32 = 80;
/// How often the number of records is halved, at the most.
const HALVINGS_MAX: u32 = 8;
/// The variable that reduces every simulation of a process.
pub(super) const VARIABLE: &str = "HIGHWATER_WITHOUT";

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FaultKind {
    /// The process is killed, or frozen.
    Crash,
    /// A worker panics.
    Panic,
    /// The job is asked to stop.
    Stop,
    /// A call to storage fails.
    StorageError,
    /// A commit fails.
    CommitError,
    /// Control frames are late. All of them count as one.
    ControlDelay,
    /// Control frames come twice. All of them count as one.
    ControlTwice,
    /// A call to the local disk fails, or what is on it is damaged.
    LocalDisk,
}

impl FaultKind {
    pub(super) const ALL: [Self; 8] = [
        Self::Crash,
        Self::Panic,
        Self::Stop,
        Self::StorageError,
        Self::CommitError,
        Self::ControlDelay,
        Self::ControlTwice,
        Self::LocalDisk,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Panic => "panic",
            Self::Stop => "stop",
            Self::StorageError => "storage-error",
            Self::CommitError => "commit-error",
            Self::ControlDelay => "late-control",
            Self::ControlTwice => "repeated-control",
            Self::LocalDisk => "local-disk",
        }
    }
}

/// A fault that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) kind: FaultKind,
    /// How many of its kind were due before.
    pub(super) number: u32,
    pub(super) what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} {}", self.kind.name(), self.number, self.what)
    }
}

/// What does not happen, and how many records there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reduction {
    kinds: BTreeSet<FaultKind>,
    faults: BTreeSet<(FaultKind, u32)>,
    /// How often the number of records is halved.
    halvings: u32,
}

impl Reduction {
    /// Whether a fault may happen.
    pub(super) fn allows(&self, kind: FaultKind, number: u32) -> bool {
        !self.kinds.contains(&kind) && !self.faults.contains(&(kind, number))
    }

    /// Reads what [`fmt::Display`] writes.
    fn parse(text: &str) -> Option<Self> {
        let mut reduction = Self::default();
        for word in text.split(',').filter(|word| !word.is_empty()) {
            let (name, number) = word.split_once(':').unwrap_or((word, ""));
            if name == "records" {
                reduction.halvings = number.parse().ok()?;
                continue;
            }
            let kind = FaultKind::ALL.into_iter().find(|kind| kind.name() == name)?;
            if number.is_empty() {
                reduction.kinds.insert(kind);
            } else {
                reduction.faults.insert((kind, number.parse().ok()?));
            }
        }
        Some(reduction)
    }

    /// Smaller ones, the boldest first, given what happens with this one.
    fn smaller(&self, happened: &[Fault]) -> Vec<Self> {
        let mut smaller = Vec::new();
        for kind in FaultKind::ALL {
            if happened.iter().filter(|fault| fault.kind == kind).count() > 0 {
                let mut reduction = self.clone();
                reduction.kinds.insert(kind);
                smaller.push(reduction);
            }
        }
        if self.halvings < HALVINGS_MAX {
            smaller.push(Self { halvings: self.halvings + 1, ..self.clone() });
        }
        for fault in happened.iter().rev() {
            let alone = happened.iter().filter(|other| other.kind == fault.kind).count() == 1;
            if !alone {
                let mut reduction = self.clone();
                reduction.faults.insert((fault.kind, fault.number));
                smaller.push(reduction);
            }
        }
        smaller
    }
}

impl fmt::Display for Reduction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = self.kinds.iter().map(|kind| kind.name().to_owned());
        let faults = self.faults.iter().filter(|(kind, _)| !self.kinds.contains(kind));
        let faults = faults.map(|(kind, number)| format!("{}:{number}", kind.name()));
        let records = (self.halvings > 0).then(|| format!("records:{}", self.halvings));
        let words: Vec<String> = kinds.chain(faults).chain(records).collect();
        f.write_str(&words.join(","))
    }
}

thread_local! {
    /// What the simulations of this thread leave out.
    static REDUCTION: RefCell<Option<Reduction>> = const { RefCell::new(None) };
    /// The faults of the last simulation of this thread.
    static HAPPENED: RefCell<Vec<Fault>> = const { RefCell::new(Vec::new()) };
    /// Whether a number of records was asked for since.
    static ASKED: Cell<bool> = const { Cell::new(false) };
    /// Whether panics are of no interest: somebody looks for a failure, and will tell.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// What simulations that begin on this thread leave out.
pub(super) fn current() -> Reduction {
    REDUCTION.with_borrow(Clone::clone).unwrap_or_else(|| {
        let text = std::env::var(VARIABLE).unwrap_or_default();
        Reduction::parse(&text).unwrap_or_else(|| panic!("{VARIABLE}={text} is no list of faults"))
    })
}

/// The faults of a simulation that has just ended on this thread.
pub(super) fn happened(faults: &[Fault]) {
    HAPPENED.with_borrow_mut(|happened| *happened = faults.to_vec());
}

/// Whether simulations of this thread keep quiet about panics.
pub(super) fn is_quiet() -> bool {
    QUIET.get()
}

/// Runs `f`, quiet about panics on this thread and in its simulations.
pub(super) fn quietly<R>(f: impl FnOnce() -> R) -> R {
    listen_to_panics();
    let before = QUIET.replace(true);
    let result = f();
    QUIET.set(before);
    result
}

/// The number of records that a test is to use where it would use `records`: fewer, while a smaller failure is looked
/// for; at least one, if there was one. Tests need not call this; those that do fail with fewer records.
#[must_use]
pub fn fewer(records: u64) -> u64 {
    ASKED.set(true);
    (records >> current().halvings).max(records.min(1))
}

/// A failure, as small as it could be made.
pub(super) struct Smallest {
    pub(super) reduction: Reduction,
    pub(super) faults: Vec<Fault>,
    pub(super) why: String,
}

/// Looks for the smallest failure of a test that has just failed on this thread for the reason `why`.
pub(super) fn smallest(why: String, test: &dyn Fn()) -> Smallest {
    quietly(|| search(why, test))
}

fn search(why: String, test: &dyn Fn()) -> Smallest {
    let reduction = current();
    let faults = HAPPENED.with_borrow_mut(std::mem::take);
    let mut smallest = Smallest { reduction, faults, why };
    let asked = ASKED.get();
    let mut runs = 0;
    'smaller: loop {
        for reduction in smallest.reduction.smaller(&smallest.faults) {
            if !asked && reduction.halvings > smallest.reduction.halvings {
                continue;
            }
            if runs == RUNS_MAX {
                break 'smaller;
            }
            runs += 1;
            REDUCTION.set(Some(reduction.clone()));
            HAPPENED.take();
            if let Err(why) = outcome_of(test) {
                smallest = Smallest { reduction, faults: HAPPENED.take(), why };
                continue 'smaller;
            }
        }
        break;
    }
    REDUCTION.set(None);
    smallest
}

/// Runs a test. An error says how it panicked.
pub(super) fn outcome_of(test: &dyn Fn()) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(test)).map_err(|panic| {
        let why = panic.downcast_ref::<String>().map(String::as_str);
        let why = why.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("?");
        why.chars().take(2000).collect()
    })
}

/// Puts a panic hook in front of the one that is there, which keeps quiet while smaller failures are looked for.
fn listen_to_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !is_quiet() && !world::current().is_some_and(|seat| seat.is_quiet()) {
                hook(panic);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reduction_reads_what_it_writes() {
        let text = "late-control,crash:0,crash:3,panic:1,records:2";
        let reduction = Reduction::parse(text).unwrap();
        assert_eq!(reduction.to_string(), text);
        assert!(!reduction.allows(FaultKind::Crash, 3) && reduction.allows(FaultKind::Crash, 1));
        assert!(!reduction.allows(FaultKind::ControlDelay, 17));
        assert_eq!(Reduction::parse("crash,tsunami"), None);
        assert_eq!(Reduction::parse(""), Some(Reduction::default()));
    }

    #[test]
    fn the_smallest_failure_has_only_the_faults_that_it_needs() {
        // It fails if the second crash and the first panic happen, and there are five records or more.
        let test = || {
            let reduction = current();
            let due = [(FaultKind::Crash, 0), (FaultKind::Crash, 1), (FaultKind::Crash, 2)];
            let due = due.into_iter().chain([(FaultKind::Panic, 0), (FaultKind::Stop, 0)]);
            let due = due.filter(|(kind, number)| reduction.allows(*kind, *number));
            let fault = |(kind, number)| Fault { kind, number, what: String::new() };
            let faults: Vec<Fault> = due.map(fault).collect();
            happened(&faults);
            let has = |kind, number| {
                faults.iter().any(|fault| fault.kind == kind && fault.number == number)
            };
            let fails = has(FaultKind::Crash, 1) && has(FaultKind::Panic, 0) && fewer(40) >= 5;
            assert!(!fails, "lost");
        };
        let why = outcome_of(&test).unwrap_err();
        let smallest = smallest(why, &test);
        let names: Vec<String> = smallest.faults.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["crash:1 ", "panic:0 "]);
        assert_eq!(smallest.reduction.to_string(), "stop,crash:0,crash:2,records:3");
        assert!(!is_quiet(), "the next test is not reduced");
    }
}
