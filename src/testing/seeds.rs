//! Running a test for many seeds, and one of them again.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Failing seeds after which no further ones are tried.
const FAILURES_MAX: usize = 5;

/// Runs `test` for every seed that failed before, then for `count` seeds from 0 on.
///
/// `past` has one line for each seed that ever failed: the name of the test, and the seed; what follows a `#` is a
/// comment. Environment: `HIGHWATER_SEED` runs that seed only, `HIGHWATER_SEEDS` another number of seeds,
/// `HIGHWATER_FIRST_SEED` begins elsewhere.
///
/// # Panics
/// If the test panics for a seed. The message says which, and how to run it again.
pub fn each_seed(name: &str, count: u64, past: &str, test: impl Fn(u64)) {
    let number = |variable: &str| -> Option<u64> {
        let text = std::env::var(variable).ok()?;
        Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
    };
    let seeds: Vec<u64> = match number("HIGHWATER_SEED") {
        Some(seed) => vec![seed],
        None => {
            let first = number("HIGHWATER_FIRST_SEED").unwrap_or(0);
            let count = number("HIGHWATER_SEEDS").unwrap_or(count);
            past_seeds(name, past).into_iter().chain(first..first + count).collect()
        }
    };
    let mut failures = Vec::new();
    for (done, seed) in seeds.iter().enumerate() {
        if done > 0 && done % 500 == 0 {
            eprintln!("{name}: {done} seeds");
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(*seed))) {
            let why = panic.downcast_ref::<String>().map(String::as_str);
            let why = why.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("?");
            let why: String = why.chars().take(2000).collect();
            let again = format!("HIGHWATER_SEED={seed} cargo test {name}");
            failures.push(format!("seed {seed} fails: {why}\n  again: {again}"));
            if failures.len() >= FAILURES_MAX {
                break;
            }
        }
    }
    assert!(failures.is_empty(), "{name}\n{}", failures.join("\n"));
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
}
