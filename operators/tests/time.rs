//! Operators that wait for time, or set it, held to the suite that all operators are.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use highwater::prelude::*;
use highwater_operators::{LimitRate, Rate, SortByTime};

use conformance::{Event, case, checked_case, same};

mod conformance;

/// Says of each record whether the one before it of its `group` had no greater `place`.
fn ordered<'s, P: Record + PartialOrd>(
    records: Stream<'s, (u64, Event)>,
    group: impl Fn(&Event) -> (u64, u64) + 'static,
    place: impl Fn(&Event) -> P + 'static,
) -> Stream<'s, (Event, bool)> {
    records.map(|(_, event)| event).key_by(group).process(
        "ordered",
        Value::<P>::new("last"),
        move |_, event, last, out| {
            let last = last.set(place(&event));
            out.emit((event, last.is_none_or(|last| last <= place(&event))));
        },
    )
}

fn all_in_order(events: &[Event]) -> Vec<(Event, bool)> {
    events.iter().map(|event| (*event, true)).collect()
}

#[test]
fn sorted_records_of_a_key_leave_in_the_order_of_event_time() {
    case(
        "sorted_records_of_a_key_leave_in_the_order_of_event_time",
        |events| {
            let sorted = events.key_by(|event| event.key).sort_by_time("sort", |event| event.time);
            ordered(sorted, |event| (event.key, 0), |event| event.time)
        },
        all_in_order,
    )
    .out_of_order(90)
    .run();
}

#[test]
fn sorting_loses_no_late_record() {
    case(
        "sorting_loses_no_late_record",
        |events| {
            let sorted = events.key_by(|event| event.key).sort_by_time("sort", |event| event.time);
            sorted.map(|(_, event)| event)
        },
        |events| events.to_vec(),
    )
    .late(150, 20)
    .run();
}

#[test]
fn a_rate_limit_loses_nothing_and_keeps_the_order_of_each_key() {
    case(
        "a_rate_limit_loses_nothing_and_keeps_the_order_of_each_key",
        |events| {
            let rate = Rate::per_second(NonZeroU32::new(200).expect("not 0"));
            let limited = events.key_by(|event| event.key).limit_rate("limit", rate);
            ordered(limited, |event| (event.key, event.split), |event| event.index)
        },
        all_in_order,
    )
    .run();
}

#[test]
fn what_a_rate_limit_still_holds_at_the_end_of_input_leaves() {
    case(
        "what_a_rate_limit_still_holds_at_the_end_of_input_leaves",
        |events| {
            let rate = Rate::new(NonZeroU32::MIN, Duration::from_hours(1000));
            let limited = events.key_by(|event| event.key).limit_rate("limit", rate);
            ordered(limited, |event| (event.key, event.split), |event| event.index)
        },
        all_in_order,
    )
    .run();
}

/// A time of its own, in which the records of the input are out of order by far.
fn other_time(event: &Event) -> i64 {
    (event.value % 5000) as i64
}

#[test]
fn records_are_sorted_by_a_time_that_is_assigned_on_the_way() {
    case(
        "records_are_sorted_by_a_time_that_is_assigned_on_the_way",
        |events| {
            let strategy = WatermarkStrategy::bounded(Duration::from_secs(5));
            let sorted = events
                .assign_timestamps("times", EventTime::new(strategy, other_time))
                .key_by(|event| event.key)
                .sort_by_time("sort", other_time);
            ordered(sorted, |event| (event.key, 0), other_time)
        },
        all_in_order,
    )
    .run();
}

/// Records that met a watermark of the assigned time before the end.
static ON_THE_WAY: AtomicU64 = AtomicU64::new(0);

#[test]
fn an_assigned_watermark_moves_on_and_never_back() {
    checked_case(
        "an_assigned_watermark_moves_on_and_never_back",
        |events| {
            let strategy = WatermarkStrategy::bounded(Duration::from_millis(10))
                .with_idle_timeout(Duration::from_millis(20));
            let time = EventTime::new(strategy, |event: &Event| event.time + 1_000_000);
            events.assign_timestamps("times", time).key_by(|event| event.key).process(
                "watch",
                Value::<i64>::new("last"),
                |_, event, last, out| {
                    let watermark = out.watermark();
                    if watermark > 900_000 && watermark < i64::MAX {
                        ON_THE_WAY.fetch_add(1, Ordering::Relaxed);
                    }
                    let back = last.set(watermark).is_some_and(|last| last > watermark);
                    out.emit((event, back));
                },
            )
        },
        |events, found| {
            if let Some(back) = found.iter().find(|(_, back)| *back) {
                return Err(format!("event time goes back at {back:?}"));
            }
            same(events.to_vec(), found.into_iter().map(|(event, _)| event).collect())
        },
    )
    .run();
    assert!(ON_THE_WAY.load(Ordering::Relaxed) > 100);
}

/// Timers that have fired by the clock, before the input had ended.
static BY_THE_CLOCK: AtomicU64 = AtomicU64::new(0);

#[test]
fn times_of_arrival_move_on_with_the_clock_and_lose_nothing() {
    checked_case(
        "times_of_arrival_move_on_with_the_clock_and_lose_nothing",
        |events| {
            let arrived = events.assign_arrival_times("arrival", Duration::from_millis(3));
            arrived.key_by(|event| event.key).process_with_timers(
                "packages",
                (List::<Event>::new("waiting"), Value::<i64>::new("last")),
                |_, event, (waiting, _), context| {
                    waiting.append(event);
                    context.register_event_timer(context.watermark().saturating_add(1));
                },
                |_, timer, (waiting, last), context| {
                    if context.watermark() < i64::MAX {
                        BY_THE_CLOCK.fetch_add(1, Ordering::Relaxed);
                    }
                    let back = last.set(timer.time).is_some_and(|last| last > timer.time);
                    waiting.take().into_iter().for_each(|event| context.emit((event, back)));
                },
            )
        },
        |events, found| {
            if let Some(back) = found.iter().find(|(_, back)| *back) {
                return Err(format!("event time goes back at {back:?}"));
            }
            same(events.to_vec(), found.into_iter().map(|(event, _)| event).collect())
        },
    )
    .seeds(20)
    .run();
    assert!(BY_THE_CLOCK.load(Ordering::Relaxed) > 100);
}
