//! Async I/O, held to the suite that all operators are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use highwater::config::JobConfig;
use highwater::ids::Name;
use highwater::job::{Answer, AsyncContext, Blocking, Futures, JobHandle, execute};
use highwater::prelude::*;
use highwater::testing::work;
use highwater_operators::{LookupCache, LookupJoin};

use conformance::{Event, case, checked_case, same};

mod conformance;

/// Answers with the event, after as long as it says.
fn echo() -> Blocking<Event, Event> {
    Blocking::new(3, |event: Event| {
        work(Duration::from_micros(event.value % 3_000));
        Ok(event)
    })
}

#[test]
fn every_record_is_answered_once_in_any_order() {
    case(
        "every_record_is_answered_once_in_any_order",
        |events| events.async_map("echo", echo(), AsyncSettings::unordered().capacity(7)),
        <[Event]>::to_vec,
    )
    .run();
}

#[test]
fn ordered_answers_of_a_key_keep_the_order_of_its_records() {
    checked_case(
        "ordered_answers_of_a_key_keep_the_order_of_its_records",
        |events| {
            let echo = Blocking::new(3, |(_, event): (u64, Event)| {
                work(Duration::from_micros(event.value % 3_000));
                Ok(event)
            });
            events
                .key_by(|event| event.key)
                .async_map_values("echo", echo, AsyncSettings::ordered().capacity(5))
                .process("count", Value::<u64>::new("count"), |_, event, count, out| {
                    *count.or_default() += 1;
                    out.emit((event, *count.or_default()));
                })
        },
        |events, mut answers| {
            answers.sort_by_key(|(event, count)| (event.key, *count));
            let mut last: BTreeMap<(u64, u64), u64> = BTreeMap::new();
            for (event, count) in &answers {
                let before = last.insert((event.key, event.split), event.index);
                if before.is_some_and(|before| before > event.index) {
                    return Err(format!("{event:?}, number {count} of its key, was overtaken"));
                }
            }
            same(events.to_vec(), answers.into_iter().map(|(event, _)| event).collect())
        },
    )
    .run();
}

#[test]
fn no_answer_is_late_that_was_not_late_as_a_record() {
    checked_case(
        "no_answer_is_late_that_was_not_late_as_a_record",
        |events| {
            events
                .async_map("echo", echo(), AsyncSettings::unordered().capacity(9))
                .key_by(|event| event.key)
                .process("watch", Value::<()>::new("nothing"), |_, event, _, out| {
                    out.emit((event, event.time <= out.watermark()));
                })
        },
        |events, answers| {
            if let Some((late, _)) = answers.iter().find(|(_, late)| *late) {
                return Err(format!("{late:?} is late"));
            }
            same(events.to_vec(), answers.into_iter().map(|(event, _)| event).collect())
        },
    )
    .out_of_order(70)
    .run();
}

/// Fails at a third of the records once, and at a ninth always; takes longer than it may at another third, once.
fn shaky() -> impl AsyncFunction<Event, Output = (Event, bool)> {
    let asked = Arc::new(Mutex::new(BTreeMap::<Event, u32>::new()));
    let call = move |event: Event| {
        let mut asked = asked.lock().expect("no call panics");
        let times = asked.entry(event).or_default();
        *times += 1;
        match (event.value % 9, *times) {
            (0, _) => Err(ConnectError::new("always")),
            (1 | 2, 1) => Err(ConnectError::new("at first")),
            (3..6, 1) => {
                work(Duration::from_millis(30));
                Ok((event, true))
            }
            _ => Ok((event, true)),
        }
    };
    Blocking::new(2, call).or_else(|event, _| vec![(*event, false)])
}

#[test]
fn failures_and_time_outs_are_tried_again_and_end_in_a_stand_in() {
    checked_case(
        "failures_and_time_outs_are_tried_again_and_end_in_a_stand_in",
        |events| {
            let ms = Duration::from_millis;
            let settings = AsyncSettings::ordered().capacity(4).timeout(ms(20));
            let settings = settings.retries(2, ms(1), ms(2)).total_timeout(ms(60));
            events.async_map("shaky", shaky(), settings)
        },
        |events, answers| {
            // Under the simulator time passes between any two steps, so that any request may time out.
            if let Some(wrong) = answers.iter().find(|(event, ok)| *ok && event.value % 9 == 0) {
                return Err(format!("{wrong:?} was answered"));
            }
            same(events.to_vec(), answers.into_iter().map(|(event, _)| event).collect())
        },
    )
    .run();
}

/// Ready when it is polled for the third time.
struct Third(u8);

impl Future for Third {
    type Output = ();

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<()> {
        self.0 += 1;
        if self.0 == 3 {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    }
}

struct Unpark(std::thread::Thread);

impl std::task::Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// An async runtime in as few lines as one can be: a thread for each future.
fn spawn(mut future: highwater::job::RequestFuture) {
    std::thread::spawn(move || {
        let waker = std::task::Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = std::task::Context::from_waker(&waker);
        while future.as_mut().poll(&mut context).is_pending() {
            std::thread::park();
        }
    });
}

#[test]
fn futures_answer_as_calls_do() {
    case(
        "futures_answer_as_calls_do",
        |events| {
            let answers = Futures::new(spawn, |event: Event| async move {
                Third(0).await;
                Ok(event)
            });
            events.async_map("futures", answers, AsyncSettings::unordered().capacity(8))
        },
        <[Event]>::to_vec,
    )
    .run();
}

#[test]
fn a_lookup_join_gives_every_record_what_is_known_of_its_key() {
    let known = |key: u64| (0..key % 3).map(move |n| key * 10 + n);
    case(
        "a_lookup_join_gives_every_record_what_is_known_of_its_key",
        move |events| {
            let rows = Blocking::new(2, move |key: u64| {
                work(Duration::from_micros(key * 300));
                Ok(known(key).collect::<Vec<_>>())
            });
            let cache = LookupCache::entries(3).time_to_live(Duration::from_millis(40));
            let settings = AsyncSettings::unordered().capacity(6);
            events.left_lookup_join("rows", |event| event.key, Rows(rows), cache, settings)
        },
        move |events| {
            let joined = events.iter().flat_map(|event| {
                let rows: Vec<Option<u64>> = known(event.key).map(Some).collect();
                let rows = if rows.is_empty() { vec![None] } else { rows };
                rows.into_iter().map(|row| (*event, row))
            });
            joined.collect()
        },
    )
    .run();
}

/// All rows of one answer apart.
struct Rows(Blocking<u64, Vec<u64>>);

impl AsyncFunction<u64> for Rows {
    type Output = u64;

    fn open(&mut self, context: &AsyncContext) -> Result<(), ConnectError> {
        self.0.open(context)
    }

    fn ask(&mut self, key: &u64, answer: Answer<u64>) {
        self.0.ask(key, answer.map(|rows| Ok(rows?.concat())));
    }
}

#[test]
fn a_key_that_is_in_the_cache_is_not_asked_about() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (collect, keys) = (Collect::new(), Arc::clone(&asked));
    let joined = collect.handle();
    let mut config = JobConfig::new(Name::new("cache").expect("a constant name"));
    config.workers = 1;
    execute(config, &JobHandle::default(), move |job| {
        let keys = Arc::clone(&keys);
        let rows = Blocking::new(1, move |key: u64| {
            keys.lock().expect("no call panics").push(key);
            Ok(key + 100)
        });
        let settings = AsyncSettings::ordered().capacity(1);
        job.source("numbers", Collection::new((0..60_u64).collect()))
            .lookup_join("rows", |n| n % 4, rows, LookupCache::entries(4), settings)
            .sink("out", collect.clone());
        Ok(())
    })
    .expect("nothing goes wrong");
    assert_eq!(*asked.lock().expect("no call panics"), [0, 1, 2, 3]);
    assert_eq!(joined.committed(), (0..60).map(|n| (n, n % 4 + 100)).collect::<Vec<_>>());
}
