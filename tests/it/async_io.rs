//! Async I/O as a program sees it: what is under way neither stops checkpoints nor grows, and nothing of it is lost.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use highwater::job::{Answer, Blocking, JobHandle, RequestStatus, execute};
use highwater::prelude::*;

use crate::support::{
    Background, Scratch, assert_same, run, running_counts, source_texts, wait_until,
};

const RECORDS: u64 = 60_000;
const KEYS: u64 = 7;
const CAPACITY: usize = 5;

/// Answers nothing before it is told to, and everything at once from then on.
#[derive(Clone, Default)]
struct Withheld(Arc<Mutex<Asked>>);

#[derive(Default)]
struct Asked {
    answers: bool,
    under_way: Vec<(u64, Answer<u64>)>,
}

impl Withheld {
    fn under_way(&self) -> usize {
        self.0.lock().unwrap().under_way.len()
    }

    fn answer(&self) {
        let mut state = self.0.lock().unwrap();
        state.answers = true;
        for (record, answer) in state.under_way.drain(..) {
            answer.complete([record]);
        }
    }
}

impl AsyncFunction<(u64, u64)> for Withheld {
    type Output = u64;

    fn ask(&mut self, (_, record): &(u64, u64), answer: Answer<u64>) {
        let mut state = self.0.lock().unwrap();
        if state.answers {
            answer.complete([*record]);
        } else {
            state.under_way.push((*record, answer));
        }
    }
}

fn start(
    scratch: &Scratch,
    workers: usize,
    records: u64,
    function: &Withheld,
    sink: &Collect<(u64, u64)>,
) -> Background {
    let (function, sink) = (function.clone(), sink.clone());
    let mut config = scratch.config(workers);
    config.flow.in_flight_bytes_max = 64 << 10;
    Background::start(config, move |job| {
        job.source("numbers", Generator::new(records, |n| n))
            .key_by(|n| n % KEYS)
            .async_map_values("ask", function.clone(), AsyncSettings::ordered().capacity(CAPACITY))
            .process("count", Value::<u64>::new("count"), |key, _, count, out| {
                *count.or_default() += 1;
                out.emit((*key, *count.or_default()));
            })
            .sink("out", sink.clone());
        Ok(())
    })
}

#[test]
fn a_full_operator_stops_the_source_and_checkpoints_go_on_while_nothing_is_answered() {
    let (scratch, collect, function) = (Scratch::new(), Collect::new(), Withheld::default());
    let job = start(&scratch, 1, RECORDS, &function, &collect);
    job.wait_for_checkpoints(5);
    wait_until("the operator is full", || function.under_way() == CAPACITY);
    let read = job.handle.counters().source_records();
    job.wait_for_more_checkpoints(5);
    assert_eq!(job.handle.counters().source_records(), read, "the source has stopped");
    assert!(read < RECORDS, "{read} records were read");
    assert_eq!(function.under_way(), CAPACITY);
    let [requests] = &job.handle.counters().requests()[..] else { panic!("one operator asks") };
    assert_eq!((requests.operator.as_str(), requests.worker), ("ask", 0));
    assert_eq!((requests.under_way, requests.answered), (CAPACITY as u64, 0));
    assert!(job.handle.counters().checkpoints().in_flight_records > 0);
    assert!(collect.handle().committed().is_empty());
    function.answer();
    job.end().unwrap();
    assert_same(running_counts(RECORDS, |n| n % KEYS), collect.handle().committed());
    scratch.assert_directory_is_the_reachable_set();
}

#[test]
fn what_is_under_way_when_a_job_stops_is_asked_again_at_any_parallelism() {
    stop_again_and_again(RECORDS, |_| true);
}

#[test]
fn a_job_whose_input_has_ended_stops_with_what_is_under_way_and_asks_again() {
    let records = 40;
    stop_again_and_again(records, |read| read == records);
}

/// Stops a job that gets no answers, at several parallelisms, as soon as `enough` records have been read by all its runs.
fn stop_again_and_again(records: u64, enough: impl Fn(u64) -> bool) {
    let (scratch, collect) = (Scratch::new(), Collect::new());
    let mut read = 0;
    for workers in [2, 3, 1] {
        let function = Withheld::default();
        let job = start(&scratch, workers, records, &function, &collect);
        wait_until("requests are under way", || function.under_way() > 0);
        let handle = job.handle.clone();
        let counters = handle.counters();
        wait_until("enough has been read", || enough(read + counters.source_records()));
        job.wait_for_checkpoints(2);
        job.handle.stop();
        job.end().unwrap();
        read += counters.source_records();
        assert!(collect.handle().committed().is_empty(), "nothing was answered");
        scratch.assert_directory_is_the_reachable_set();
    }
    let function = Withheld::default();
    function.answer();
    start(&scratch, 2, records, &function, &collect).end().unwrap();
    assert_same(running_counts(records, |n| n % KEYS), collect.handle().committed());
    scratch.assert_directory_is_the_reachable_set();
}

#[test]
fn a_request_that_has_failed_for_good_fails_the_job_and_says_why() {
    let scratch = Scratch::new();
    let mut config = scratch.config(1);
    config.restart = highwater::config::RestartStrategy::None;
    let sink = Collect::new();
    let failed = run(config, move |job| {
        let function = Blocking::new(1, |n: u64| match n {
            3 => Err(ConnectError::new("the server does not know 3")),
            _ => Ok(n),
        });
        let settings =
            AsyncSettings::unordered().retries(2, Default::default(), Default::default());
        job.source("numbers", Collection::new((0..10).collect()))
            .async_map("ask", function, settings)
            .sink("out", sink.clone());
        Ok(())
    });
    let text = format!("{:?}", failed.unwrap_err());
    assert!(text.contains("failed 3 times") && text.contains("does not know 3"), "{text}");
    assert!(text.contains("ask"), "it names the operator: {text}");
}

/// What comes of ten records, each asked about by `call`, with the error in the place of an answer that does not come.
fn answers(
    call: impl Fn(u64) -> Result<String, ConnectError> + Clone + Send + Sync + 'static,
    settings: AsyncSettings,
) -> (Vec<String>, RequestStatus) {
    let (scratch, collect) = (Scratch::new(), Collect::new());
    let (sink, handle) = (collect.clone(), JobHandle::default());
    execute(scratch.config(1), &handle, move |job| {
        let function = Blocking::new(1, call.clone());
        let function = function.or_else(|_, error| vec![format!("{error}{}", source_texts(error))]);
        job.source("numbers", Collection::new((0..10).collect()))
            .async_map("ask", function, settings)
            .sink("out", sink.clone());
        Ok(())
    })
    .unwrap();
    let requests = handle.counters().requests().remove(0);
    assert_eq!(requests.under_way, 0, "the job has ended");
    (collect.handle().committed(), requests)
}

#[test]
fn a_request_that_would_be_tried_again_too_late_has_failed_for_good_at_once() {
    let call = |n: u64| match n {
        3 => Err(ConnectError::new("the server does not know 3")),
        _ => Ok(n.to_string()),
    };
    let hour = Duration::from_secs(3600);
    let settings = AsyncSettings::ordered().retries(5, hour, hour);
    let (answers, requests) = answers(call, settings.total_timeout(hour / 2));
    let late = |cause| format!("no answer within 1800s, in 1 attempts: {cause}");
    let expected = (0..10).map(|n| call(n).unwrap_or_else(late));
    assert_eq!(answers, expected.collect::<Vec<_>>());
    assert_eq!((requests.answered, requests.failed, requests.given_up), (9, 1, 1));
    assert_eq!(requests.timed_out, 0);
}

#[test]
fn a_request_is_given_up_when_all_its_attempts_together_have_taken_too_long() {
    let (never, told) = std::sync::mpsc::channel::<()>();
    let told = Arc::new(Mutex::new(told));
    // One thread waits for what nobody says before the job is over; the other requests wait for the thread.
    let silent = move |_: u64| {
        let _ = told.lock().unwrap().recv();
        Err(ConnectError::new("nobody said anything"))
    };
    let ms = Duration::from_millis;
    let settings = AsyncSettings::unordered().timeout(ms(5)).retries(u32::MAX, ms(1), ms(1));
    let (answers, requests) = answers(silent, settings.total_timeout(ms(2000)));
    drop(never);
    assert_eq!(answers.len(), 10);
    for answer in &answers {
        assert!(answer.contains("no answer within 2s, in "), "{answer}");
    }
    assert_eq!((requests.answered, requests.failed, requests.given_up), (0, 0, 10));
    assert!(requests.timed_out > 10, "each was tried more than once: {requests:?}");
}
