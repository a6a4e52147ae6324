//! Mistakes in a program are errors that say what is wrong, and never panics or restarts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use highwater::Error;
use highwater::prelude::*;

use crate::support::{Scratch, run};

/// What is said of a wrong program. It must be said once: no restart helps.
fn refused(build: impl Fn(&Job<'_>) -> Result<(), Error> + Send + Sync + 'static) -> String {
    let scratch = Scratch::new();
    let attempts = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&attempts);
    let error = run(scratch.config(1), move |job| {
        counted.fetch_add(1, Ordering::SeqCst);
        build(job)
    })
    .unwrap_err();
    assert!(!error.restartable(), "{error}");
    assert_eq!(attempts.load(Ordering::SeqCst), 1, "{error}");
    error.to_string()
}

fn numbers<'s>(job: &Job<'s>, name: &str) -> Stream<'s, u64> {
    job.source(name, Generator::new(10, |i| i))
}

#[test]
fn two_participants_of_one_name_are_refused() {
    let text = refused(|job| {
        numbers(job, "same").sink("same", Collect::new());
        Ok(())
    });
    assert!(text.contains("the name same is used twice"), "{text}");
}

#[test]
fn two_states_of_one_name_in_an_operator_are_refused() {
    let text = refused(|job| {
        let states = (Value::<u64>::new("twice"), Value::<u64>::new("twice"));
        numbers(job, "numbers")
            .key_by(|n| *n)
            .process("count", states, |_, n, _, out| out.emit(n))
            .sink("out", Collect::new());
        Ok(())
    });
    assert!(text.contains("the name twice is used twice"), "{text}");
}

#[test]
fn names_that_are_none_are_refused_for_every_kind_of_participant() {
    for bad in ["", "a b", "../up", ".hidden", "-flag", "ü"] {
        let source = refused(move |job| {
            numbers(job, bad).sink("out", Collect::new());
            Ok(())
        });
        let operator = refused(move |job| {
            numbers(job, "numbers")
                .key_by(|n| *n)
                .process(bad, Value::<u64>::new("count"), |_, n, _, out| out.emit(n))
                .sink("out", Collect::new());
            Ok(())
        });
        let state = refused(move |job| {
            numbers(job, "numbers")
                .key_by(|n| *n)
                .process("count", Value::<u64>::new(bad), |_, n, _, out| out.emit(n))
                .sink("out", Collect::new());
            Ok(())
        });
        let sink = refused(move |job| {
            numbers(job, "numbers").sink(bad, Collect::new());
            Ok(())
        });
        for text in [source, operator, state, sink] {
            assert!(text.contains(&format!("{bad:?} is not a name")), "{text}");
        }
    }
}

#[test]
fn a_job_without_a_source_is_refused() {
    assert!(refused(|_| Ok(())).contains("the job has no source"));
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text = refused(|job| {
        numbers(job, "a").union(numbers(job, "a")).sink("b b", Collect::new());
        Ok(())
    });
    assert!(text.contains("the name a is used twice") && text.contains("\"b b\""), "{text}");
}

#[test]
fn a_source_that_is_not_there_is_named_with_its_operator() {
    let scratch = Scratch::new();
    let pattern = scratch.path("none/*.txt").display().to_string();
    let mut config = scratch.config(1);
    config.restart = highwater::config::RestartStrategy::None;
    let text = run(config, move |job| {
        job.source("lines", Files::glob(&pattern)).sink("out", Collect::new());
        Ok(())
    })
    .unwrap_err()
    .to_string();
    assert!(text.contains("lines") && text.contains("none/*.txt"), "{text}");
}

#[test]
fn a_program_that_panics_while_it_builds_the_job_for_the_first_time_is_not_restarted() {
    crate::support::quiet_panics();
    let text = refused(|_| panic!("no such table"));
    assert!(text.contains("the building of the job") && text.contains("no such table"), "{text}");
}
