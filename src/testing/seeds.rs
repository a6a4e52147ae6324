//! Running a test for many seeds, and one of them again.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::reduce::{self, Smallest, VARIABLE};

/// Failing seeds after which no further ones are tried.
const FAILURES_MAX: usize = 5;

/// Runs `test` for every seed that failed before, then for `count` seeds from 0 on.
///
/// `past` has one line for each seed that ever failed: the name of the test, and the seed; what follows a `#` is a
/// comment. Environment: `HIGHWATER_SEED` runs that seed only, `HIGHWATER_SEEDS` another number of seeds,
/// `HIGHWATER_FIRST_SEED` begins elsewhere. `HIGHWATER_WITHOUT` leaves faults out, as the message of a failure says.
///
/// # Panics
/// If the test panics for a seed. The message says which, and how to run it again; and the smallest schedule of faults
/// with which it still fails, which is looked for by running the test again without some of them.
pub fn each_seed(name: &str, count: u64, past: &str, test: impl Fn(u64)) {
    let seeds = seeds(name, count, past);
    let mut failures = Vec::new();
    for (done, seed) in seeds.iter().enumerate() {
        if done > 0 && done % 500 == 0 {
            eprintln!("{name}: {done} seeds");
        }
        failures.extend(failure(*seed, &test));
        if failures.len() >= FAILURES_MAX {
            break;
        }
    }
    report(name, &failures);
}

/// Like [`each_seed`], with a thread for every core of the machine; `HIGHWATER_THREADS` says another number. What a seed
/// gives does not depend on it.
///
/// # Panics
/// As [`each_seed`] does.
pub fn each_seed_on_all_cores(name: &str, count: u64, past: &str, test: impl Fn(u64) + Sync) {
    let seeds = seeds(name, count, past);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = number("HIGHWATER_THREADS").map_or(cores, |threads| threads.max(1) as usize);
    let next = AtomicUsize::new(0);
    let failures: Mutex<Vec<SeedFailure>> = Mutex::default();
    let found = || failures.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(seeds.len()) {
            scope.spawn(|| {
                while found().len() < FAILURES_MAX {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(seed) = seeds.get(at) else { return };
                    if at > 0 && at.is_multiple_of(500) {
                        eprintln!("{name}: {at} seeds");
                    }
                    if let Some(failure) = failure(*seed, &test) {
                        found().push(failure);
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    failures.sort_by_key(|failure| failure.seed);
    report(name, &failures);
}

/// Runs `test` for `seeds` until it panics for one. `None`: it never does.
pub fn first_failure(
    seeds: impl IntoIterator<Item = u64>,
    test: impl Fn(u64),
) -> Option<SeedFailure> {
    reduce::quietly(|| seeds.into_iter().find_map(|seed| failure(seed, &test)))
}

/// A seed for which a test panics, and the smallest schedule with which it still does.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SeedFailure {
    /// The seed.
    pub seed: u64,
    /// What the test said.
    pub why: String,
    /// What it said with the smallest schedule.
    pub smallest_why: String,
    /// The faults that are left in the smallest schedule, in order.
    pub faults: Vec<String>,
    /// What was left out, as `HIGHWATER_WITHOUT` takes it.
    pub without: String,
}

impl fmt::Display for SeedFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, why, smallest_why, faults, without } = self;
        write!(f, "seed {seed} fails: {why}\n  the smallest schedule that still fails:")?;
        if faults.is_empty() {
            write!(f, " no fault at all; a simulated job is always started once more at its end")?;
        }
        for fault in faults {
            write!(f, "\n    {fault}")?;
        }
        if !without.is_empty() {
            write!(f, "\n  with {VARIABLE}={without} it says: {smallest_why}")?;
        }
        Ok(())
    }
}

fn failure(seed: u64, test: &dyn Fn(u64)) -> Option<SeedFailure> {
    let test = || test(seed);
    let why = reduce::outcome_of(&test).err()?;
    if !reduce::is_quiet() {
        // Looking for a smaller failure may take long.
        eprintln!("seed {seed} fails; looking for a smaller schedule");
    }
    let Smallest { reduction, faults, why: smallest_why } = reduce::smallest(why.clone(), &test);
    let faults = faults.iter().map(ToString::to_string).collect();
    Some(SeedFailure { seed, why, smallest_why, faults, without: reduction.to_string() })
}

fn report(name: &str, failures: &[SeedFailure]) {
    let text: Vec<String> = failures
        .iter()
        .map(|failure| {
            let seed = failure.seed;
            let again = format!("HIGHWATER_SEED={seed} cargo test {name}");
            format!("{failure}\n  again: {again}\n  to be kept among the seeds that failed: {name} {seed}")
        })
        .collect();
    assert!(failures.is_empty(), "{name}\n{}", text.join("\n"));
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

fn seeds(name: &str, count: u64, past: &str) -> Vec<u64> {
    if let Some(seed) = number("HIGHWATER_SEED") {
        return vec![seed];
    }
    let first = number("HIGHWATER_FIRST_SEED").unwrap_or(0);
    let count = number("HIGHWATER_SEEDS").unwrap_or(count);
    past_seeds(name, past).into_iter().chain(first..first + count).collect()
}

fn past_seeds(name: &str, past: &str) -> Vec<u64> {
    let lines = past.lines().map(|line| line.split('#').next().unwrap_or_default());
    let mut seeds = Vec::new();
    for line in lines.filter(|line| !line.trim().is_empty()) {
        let mut words = line.split_whitespace();
        let (Some(test), Some(Ok(seed))) = (words.next(), words.next().map(str::parse)) else {
            panic!("{line:?} is not the name of a test and a seed");
        };
        if test == name {
            seeds.push(seed);
        }
    }
    seeds
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn seeds_that_failed_before_are_of_one_test_each() {
        assert_eq!(past_seeds("a", "# why\na 1 # loss\nb 2\n\na 3\n"), [1, 3]);
    }

    #[test]
    fn a_failing_seed_is_named_with_the_command_that_runs_it_again() {
        let panic =
            catch_unwind(|| each_seed("x", 3, "x 7", |seed| assert_ne!(seed, 7))).unwrap_err();
        let text = panic.downcast_ref::<String>().unwrap();
        assert!(text.contains("HIGHWATER_SEED=7 cargo test x"), "{text}");
    }

    #[test]
    fn seeds_on_all_cores_are_each_run_once_and_the_failing_ones_named() {
        let runs = Mutex::new(Vec::new());
        let panic = catch_unwind(std::panic::AssertUnwindSafe(|| {
            each_seed_on_all_cores("x", 50, "", |seed| {
                if !reduce::is_quiet() {
                    runs.lock().unwrap().push(seed);
                }
                assert!(seed != 17 && seed != 31, "odd");
            });
        }));
        let text = panic.unwrap_err().downcast_ref::<String>().unwrap().clone();
        assert!(text.contains("seed 17 fails: odd") && text.contains("seed 31 fails"), "{text}");
        let mut runs = runs.into_inner().unwrap();
        runs.sort_unstable();
        assert_eq!(runs, (0..50).collect::<Vec<u64>>());
    }
}
