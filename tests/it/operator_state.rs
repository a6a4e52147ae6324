//! Operator state: which instance gets what at a restore, and what is refused.

use std::collections::BTreeMap;

use highwater::config::{JobConfig, RestoreFrom};
use highwater::ids::Name;
use highwater::job::OperatorStates;
use highwater::prelude::*;

use crate::support::{Scratch, assert_same, run};

/// Elements of the first run.
const ELEMENTS: u64 = 23;

type Shown = (u64, Vec<u64>);

/// A run of so many workers of a job with one operator, which routes each number to the worker that it names. Every run
/// has sources and sinks of its own, so that nothing but the operator's state goes on.
fn config(scratch: &Scratch, workers: usize) -> JobConfig {
    let mut config = scratch.config(workers);
    config.restore.allow_new_state = true;
    config.restore.allow_dropped_state = true;
    config
}

/// The first run: puts the numbers below [`ELEMENTS`] into a list, each on the worker of its remainder.
fn fill<S: OperatorStates>(
    scratch: &Scratch,
    workers: usize,
    states: impl Fn() -> S + Send + Sync + 'static,
    append: impl for<'a> Fn(&mut S::Access<'a>, u64) + Clone + Send + Sync + 'static,
) {
    run(config(scratch, workers), move |job| {
        let append = append.clone();
        job.source("fill", Collection::new((0..ELEMENTS).collect()))
            .route(|n, _| *n as usize)
            .process("operator", states(), move |n, state, out| {
                append(state, n);
                out.emit(n);
            })
            .sink("filled", Discard::new());
        Ok(())
    })
    .unwrap();
}

/// The second run: what every worker has, each shown by one record.
fn shown<S: OperatorStates>(
    config: JobConfig,
    operator: &'static str,
    states: impl Fn() -> S + Send + Sync + 'static,
    show: impl for<'a> Fn(&mut S::Access<'a>) -> Vec<u64> + Clone + Send + Sync + 'static,
) -> highwater::Result<Vec<Shown>> {
    let collect = Collect::new();
    let sink = collect.clone();
    let workers = config.workers as u64;
    run(config, move |job| {
        let (show, worker) = (show.clone(), job.worker().0 as u64);
        job.source(&format!("show-{operator}"), Collection::new((0..workers).collect()))
            .route(|n: &u64, _| *n as usize)
            .process(operator, states(), move |n, state, out| {
                assert_eq!(n, worker);
                out.emit((n, show(state)));
            })
            .sink(&format!("shown-{operator}"), sink.clone());
        Ok(())
    })?;
    let mut shown = collect.handle().committed();
    shown.sort();
    Ok(shown)
}

fn list() -> OperatorList<u64> {
    OperatorList::new("elements")
}

fn union_list() -> UnionList<u64> {
    UnionList::new("elements")
}

/// What the workers of the first run had, one after the other.
fn in_order(workers: u64) -> impl Iterator<Item = u64> {
    (0..workers).flat_map(move |worker| (worker..ELEMENTS).step_by(workers as usize))
}

#[test]
fn a_list_is_dealt_one_by_one_at_another_parallelism_and_stays_where_it_was_at_the_same() {
    for (before, after) in (1..=4).flat_map(|before| (1..=4).map(move |after| (before, after))) {
        let scratch = Scratch::new();
        fill(&scratch, before, list, |list, n| list.append(n));
        let found =
            shown(config(&scratch, after), "operator", list, |list| list.iter().copied().collect());
        let mut expected = vec![Vec::new(); after];
        for (index, element) in in_order(before as u64).enumerate() {
            let worker = if before == after { element as usize } else { index };
            expected[worker % after].push(element);
        }
        let expected: Vec<Shown> = (0..).zip(expected).collect();
        assert_eq!(found.unwrap(), expected, "{before} to {after} workers");
        scratch.assert_directory_is_the_reachable_set();
    }
}

#[test]
fn every_instance_gets_the_union_list_of_all_in_their_order() {
    for (before, after) in [(1, 1), (3, 3), (1, 4), (4, 1), (3, 2), (2, 3)] {
        let scratch = Scratch::new();
        fill(&scratch, before, union_list, |list, n| list.append(n));
        let found =
            shown(config(&scratch, after), "operator", union_list, |list| list.take()).unwrap();
        let all: Vec<u64> = in_order(before as u64).collect();
        let expected: Vec<Shown> = (0..after as u64).map(|worker| (worker, all.clone())).collect();
        assert_eq!(found, expected, "{before} to {after} workers");
        scratch.assert_directory_is_the_reachable_set();
    }
}

#[test]
fn two_lists_of_an_operator_are_kept_apart() {
    let scratch = Scratch::new();
    let states = || (list(), UnionList::<(u64, String)>::new("texts"));
    fill(&scratch, 2, states, |(list, texts), n| {
        if n % 3 == 0 {
            list.append(n);
        } else {
            texts.append((n, n.to_string()));
        }
    });
    let found = shown(config(&scratch, 3), "operator", states, |(list, texts)| {
        assert!(texts.iter().all(|(n, text)| n.to_string() == *text));
        list.iter().copied().chain(texts.iter().map(|(n, _)| *n)).collect()
    });
    let found = found.unwrap();
    let lists = found.iter().flat_map(|(_, shown)| shown.iter().filter(|n| *n % 3 == 0));
    assert_same(&(0..ELEMENTS).filter(|n| n % 3 == 0).collect::<Vec<_>>(), lists);
    for (_, shown) in &found {
        let texts = shown.iter().filter(|n| *n % 3 > 0);
        assert_same(&(0..ELEMENTS).filter(|n| n % 3 > 0).collect::<Vec<_>>(), texts);
    }
}

/// Counts letters by a broadcast stream; each record of the main stream shows the state of its worker.
fn letters(
    config: JobConfig,
    operator: &'static str,
    run_number: u64,
    texts: &'static [&'static str],
) -> highwater::Result<Vec<(u64, BTreeMap<String, u64>)>> {
    let collect = Collect::new();
    let sink = collect.clone();
    run(config, move |job| {
        let worker = job.worker().0 as u64;
        let texts = texts.iter().map(|text| (*text).to_owned()).collect();
        let texts = job.source(&format!("texts-{run_number}"), Collection::new(texts));
        // What a worker has at last, since a record of the main stream may come before those of the other.
        job.source(&format!("nothing-{run_number}"), Collection::new(Vec::<u64>::new()))
            .connect_broadcast(texts)
            .process(
                operator,
                Broadcast::<String, u64>::new("letters"),
                |_, _, _| (),
                move |text: String, letters, out| {
                    for letter in text.chars().map(String::from) {
                        let count = letters.get(&letter).copied().unwrap_or(0);
                        letters.insert(letter, count + 1);
                    }
                    letters.remove(&" ".to_owned());
                    let all = letters.view().iter().map(|(k, v)| (k.clone(), *v)).collect();
                    out.emit((worker, all));
                },
            )
            .sink(&format!("out-{run_number}"), sink.clone());
        Ok(())
    })?;
    let mut shown = collect.handle().committed();
    shown.sort();
    Ok(shown)
}

#[test]
fn every_instance_goes_on_with_a_copy_of_the_broadcast_state() {
    let counts = |text: &str| {
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for letter in text.chars().filter(|letter| *letter != ' ') {
            *counts.entry(letter.to_string()).or_default() += 1;
        }
        counts
    };
    for (before, after) in [(1, 1), (2, 2), (1, 4), (4, 1), (3, 2), (2, 5)] {
        let scratch = Scratch::new();
        letters(config(&scratch, before), "letters", 1, &["a b c a"]).unwrap();
        let found = letters(config(&scratch, after), "letters", 2, &["c d"]).unwrap();
        let expected = counts("a b c a c d");
        let expected: Vec<_> = (0..after as u64).map(|worker| (worker, expected.clone())).collect();
        assert_eq!(found, expected, "{before} to {after} workers");
        scratch.assert_directory_is_the_reachable_set();
    }
}

#[test]
fn operator_state_of_another_kind_type_or_version_is_refused_by_name() {
    let scratch = Scratch::new();
    fill(&scratch, 2, list, |list, n| list.append(n));
    let refused = |text: String, found: &str, wanted: &str| {
        assert!(text.contains("operator/elements"), "{text}");
        assert!(text.contains(found) && text.contains(wanted), "{text}");
    };
    let text = shown(config(&scratch, 2), "operator", union_list, |list| list.take());
    let text = text.unwrap_err().to_string();
    refused(text, "OperatorList<u64> (version 1)", "UnionList<u64> (version 1)");
    let other = || OperatorList::<String>::new("elements");
    let text = shown(config(&scratch, 2), "operator", other, |_| Vec::new());
    let text = text.unwrap_err().to_string();
    refused(text, "holds u64", "wants String");
    let text = shown(config(&scratch, 2), "operator", || list().version(2), |list| list.take());
    refused(text.unwrap_err().to_string(), "(version 1)", "(version 2)");
}

#[test]
fn operator_state_is_renamed_dropped_and_begun_anew_only_as_the_settings_say() {
    let scratch = Scratch::new();
    fill(&scratch, 2, list, |list, n| list.append(n));
    let take = |list: &mut highwater::job::OperatorListState<'_, u64>| list.take();
    let mut strict = config(&scratch, 3);
    strict.restore.allow_dropped_state = false;
    let text = shown(strict.clone(), "other", list, take).unwrap_err().to_string();
    assert!(text.contains("operator/elements"), "{text}");
    let mut renamed = config(&scratch, 3);
    // The states of the first run, whatever runs come later.
    let epoch = scratch.store().newest().unwrap().unwrap();
    renamed.restore.from = RestoreFrom::Checkpoint(epoch.to_string());
    let name = |text| Name::new(text).unwrap();
    renamed.restore.renamed = BTreeMap::from([(name("operator"), name("other"))]);
    let found = shown(renamed, "other", list, take).unwrap();
    assert_same(0..ELEMENTS, found.into_iter().flat_map(|(_, elements)| elements));
    let mut strict = config(&scratch, 1);
    strict.restore.allow_new_state = false;
    let text = shown(strict, "third", list, take).unwrap_err().to_string();
    assert!(text.contains("third/elements"), "{text}");
    let found = shown(config(&scratch, 1), "third", list, take).unwrap();
    assert_eq!(found, [(0, Vec::new())]);
}

#[test]
fn states_of_one_operator_need_names_of_their_own_whatever_their_kinds() {
    let refused = |build: fn(&Job<'_>) -> highwater::Result<()>| {
        let scratch = Scratch::new();
        run(scratch.config(1), build).unwrap_err().to_string()
    };
    let text = refused(|job| {
        let states = (OperatorList::<u64>::new("twice"), UnionList::<u64>::new("twice"));
        job.source("numbers", Collection::new(vec![1_u64]))
            .process("operator", states, |n, _, out| out.emit(n))
            .sink("out", Discard::new());
        Ok(())
    });
    assert!(text.contains("the name twice is used twice"), "{text}");
    let text = refused(|job| {
        let numbers = job.source("numbers", Collection::new(vec![1_u64]));
        numbers
            .clone()
            .key_by(|n| *n)
            .connect_broadcast(numbers)
            .process(
                "operator",
                Value::<u64>::new("twice"),
                Broadcast::<u64, u64>::new("twice"),
                |_, n, _, _, out| out.emit(n),
                |_, _, _| (),
            )
            .sink("out", Discard::new());
        Ok(())
    });
    assert!(text.contains("the name twice is used twice"), "{text}");
    let text = refused(|job| {
        job.source("numbers", Collection::new(vec![1_u64]))
            .process("operator", OperatorList::<u64>::new("a b"), |n, _, out| out.emit(n))
            .sink("out", Discard::new());
        Ok(())
    });
    assert!(text.contains("a b"), "{text}");
}
