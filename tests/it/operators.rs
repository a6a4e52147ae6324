//! Every operator of a stream, on one to three workers, against a computation that knows nothing of Highwater.

use std::collections::BTreeMap;

use highwater::prelude::*;

use crate::support::{Scratch, assert_same, run, running_counts};

const RECORDS: u64 = 20_000;

/// Runs a job that ends in the given sink, on one to three workers, and compares.
fn check<T: Record + Ord + std::fmt::Debug>(
    expected: impl Fn(u64) -> Vec<T>,
    build: impl Fn(&Job<'_>, Collect<T>) + Clone + Send + Sync + 'static,
) {
    for workers in 1..=3 {
        let scratch = Scratch::new();
        let collect = Collect::new();
        let (sink, build) = (collect.clone(), build.clone());
        run(scratch.config(workers), move |job| {
            build(job, sink.clone());
            Ok(())
        })
        .unwrap();
        assert_same(expected(workers as u64), collect.handle().committed());
        assert_eq!(collect.handle().repeated_commits(), 0);
        scratch.assert_directory_is_the_reachable_set();
    }
}

fn numbers<'s>(job: &Job<'s>) -> Stream<'s, u64> {
    job.source("numbers", Generator::new(RECORDS, |index| index))
}

#[test]
fn map_filter_and_flat_map_do_what_iterators_do() {
    check(
        |_| {
            (0..RECORDS)
                .map(|n| n * 3)
                .filter(|n| n % 2 == 0)
                .flat_map(|n| vec![n; (n % 3) as usize + 1])
                .collect()
        },
        |job, sink| {
            numbers(job)
                .map(|n| n * 3)
                .filter(|n| n % 2 == 0)
                .flat_map(|n| vec![n; (n % 3) as usize + 1])
                .sink("out", sink);
        },
    );
}

#[test]
fn inspect_sees_every_record_and_changes_none() {
    check(
        |_| (0..RECORDS).collect(),
        |job, sink| {
            let mut next = job.worker().0 as u64;
            let workers = job.worker().1 as u64;
            // A split of a generator is every so-manieth index.
            numbers(job)
                .inspect(move |n| {
                    assert_eq!(*n, next);
                    next += workers;
                })
                .sink("out", sink);
        },
    );
}

#[test]
fn a_union_holds_the_records_of_both_streams() {
    check(
        |_| (0..RECORDS).chain(1_000_000..1_000_000 + RECORDS / 2).collect(),
        |job, sink| {
            let more = job.source("more", Generator::new(RECORDS / 2, |i| 1_000_000 + i));
            numbers(job).union(more).sink("out", sink);
        },
    );
}

#[test]
fn a_stream_may_be_used_twice() {
    check(
        |_| (0..RECORDS).chain((0..RECORDS).map(|n| n + 1_000_000)).collect(),
        |job, sink| {
            let numbers = numbers(job);
            numbers.clone().map(|n| n + 1_000_000).union(numbers).sink("out", sink);
        },
    );
}

#[test]
fn rebalance_keeps_every_record_once() {
    check(|_| (0..RECORDS).collect(), |job, sink| numbers(job).rebalance().sink("out", sink));
}

#[test]
fn broadcast_gives_every_worker_every_record() {
    check(
        |workers| (0..RECORDS).flat_map(|n| (0..workers).map(move |w| (n, w))).collect(),
        |job, sink| {
            let worker = job.worker().0 as u64;
            numbers(job).broadcast().map(move |n| (n, worker)).sink("out", sink);
        },
    );
}

#[test]
fn route_sends_each_record_where_the_function_says() {
    check(
        |workers| (0..RECORDS).map(|n| (n, (n / 7) % workers)).collect(),
        |job, sink| {
            let worker = job.worker().0 as u64;
            numbers(job)
                .route(|n, _peers| (n / 7) as usize)
                .map(move |n| (n, worker))
                .sink("out", sink);
        },
    );
}

#[test]
fn key_by_keeps_the_record_and_its_key_is_processed_on_one_worker() {
    check(
        |_| running_counts(RECORDS, |n| n % 97),
        |job, sink| {
            numbers(job)
                .key_by(|n| n % 97)
                .process("count", Value::<u64>::new("count"), |key, number, count, out| {
                    assert_eq!(number % 97, *key);
                    *count.or_default() += 1;
                    out.emit((*key, *count.or_default()));
                })
                .sink("out", sink);
        },
    );
}

#[test]
fn the_values_of_a_key_from_one_worker_keep_their_order() {
    // The splits of a generator are as many as the workers; within a split the indices ascend.
    check(
        |_| (0..RECORDS).map(|n| (n, true)).collect(),
        |job, sink| {
            let workers = job.worker().1 as u64;
            numbers(job)
                .into_keyed(|n| (n % 101, n))
                .process(
                    "order",
                    Value::<BTreeMap<u64, u64>>::new("last"),
                    move |_, number, last, out| {
                        let before = last.or_default().insert(number % workers, number);
                        out.emit((number, before < Some(number)));
                    },
                )
                .sink("out", sink);
        },
    );
}

#[test]
fn an_operator_may_keep_two_states_for_each_key() {
    let expected = |_| {
        let mut sums: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        // Sums and counts of prefixes depend on the order, so only what every order gives is emitted.
        for n in 0..RECORDS {
            let (count, sum) = sums.entry(n % 50).or_default();
            *count += 1;
            *sum += n;
        }
        sums.into_iter().map(|(key, (count, sum))| (key, count, sum)).collect()
    };
    check(expected, |job, sink| {
        let states = (Value::<u64>::new("count"), Value::<u64>::new("sum"));
        numbers(job)
            .key_by(|n| n % 50)
            .process("both", states, |key, n, (count, sum), out| {
                *count.or_default() += 1;
                *sum.or_default() += n;
                if *count.or_default() == RECORDS / 50 {
                    out.emit((*key, *count.or_default(), *sum.or_default()));
                }
            })
            .sink("out", sink);
    });
}

#[test]
fn through_timely_goes_through_timelys_own_operators() {
    use timely::dataflow::operators::vec::{Filter, Map};
    check(
        |_| (0..RECORDS).filter(|n| n % 5 != 0).map(|n| format!("<{n}>")).collect(),
        |job, sink| {
            numbers(job)
                .through_timely(|stream| stream.filter(|n| n % 5 != 0).map(|n| format!("<{n}>")))
                .sink("out", sink);
        },
    );
}

#[test]
fn operators_in_a_row_with_exchanges_between_them_give_the_same_on_any_number_of_workers() {
    check(
        |_| {
            let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
            running_counts(RECORDS, |n| n % 97)
                .into_iter()
                .map(|(_, count)| {
                    let seen = counts.entry(count).or_default();
                    *seen += 1;
                    (count, *seen)
                })
                .collect()
        },
        |job, sink| {
            numbers(job)
                .rebalance()
                .key_by(|n| n % 97)
                .process("first", Value::<u64>::new("count"), |_, _, count, out| {
                    *count.or_default() += 1;
                    out.emit(*count.or_default());
                })
                .key_by(|count| *count)
                .process("second", Value::<u64>::new("count"), |key, _, count, out| {
                    *count.or_default() += 1;
                    out.emit((*key, *count.or_default()));
                })
                .sink("out", sink);
        },
    );
}

#[test]
fn several_sinks_all_get_what_they_should() {
    let scratch = Scratch::new();
    let (even, odd) = (Collect::new(), Collect::new());
    let (even_sink, odd_sink) = (even.clone(), odd.clone());
    run(scratch.config(2), move |job| {
        let numbers = numbers(job);
        numbers.clone().filter(|n| n % 2 == 0).sink("even", even_sink.clone());
        numbers.filter(|n| n % 2 == 1).sink("odd", odd_sink.clone());
        Ok(())
    })
    .unwrap();
    assert_same((0..RECORDS).step_by(2), even.handle().committed());
    assert_same((1..RECORDS).step_by(2), odd.handle().committed());
    scratch.assert_directory_is_the_reachable_set();
}
