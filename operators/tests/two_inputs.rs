//! What a program writes itself for two inputs, held to the suite that all operators are.

use std::collections::BTreeMap;

use highwater::prelude::*;
use serde::{Deserialize, Serialize};

use conformance::{Event, case};

mod conformance;

/// Units: milliseconds of event time.
const WINDOW: i64 = 100;

fn is_left(event: &Event) -> bool {
    event.value.is_multiple_of(3)
}

/// The events of each key, on two sides.
fn connected<'s>(events: Stream<'s, Event>) -> Connected<'s, u64, Event, Event> {
    let left = events.clone().filter(is_left).key_by(|event| event.key);
    left.connect(events.filter(|event| !is_left(event)).key_by(|event| event.key))
}

/// The last millisecond of the window of an event.
fn end(event: &Event) -> i64 {
    event.time.div_euclid(WINDOW) * WINDOW + WINDOW - 1
}

/// What both sides have in a window: the number of left records, and the greatest index of the right ones.
type Sides = (u64, Option<u64>);

/// A key and a window, and what is there.
type Seen = (u64, i64, Sides);

fn windows(events: &[Event]) -> Vec<Seen> {
    let mut windows: BTreeMap<(u64, i64), Sides> = BTreeMap::new();
    for event in events {
        let sides = windows.entry((event.key, end(event))).or_default();
        if is_left(event) {
            sides.0 += 1;
        } else {
            sides.1 = sides.1.max(Some(event.index));
        }
    }
    windows.into_iter().map(|((key, end), sides)| (key, end, sides)).collect()
}

#[test]
fn both_functions_change_one_state() {
    case(
        "both_functions_change_one_state",
        |events| {
            connected(events).process(
                "turns",
                Value::<u64>::new("turns"),
                |key, _, turns, out| {
                    *turns.or_default() += 1;
                    out.emit((*key, *turns.or_default()));
                },
                |key, _, turns, out| {
                    *turns.or_default() += 1;
                    out.emit((*key, *turns.or_default()));
                },
            )
        },
        |events| {
            let mut turns = BTreeMap::<u64, u64>::new();
            let mut turn = |key| {
                let turn = turns.entry(key).or_default();
                *turn += 1;
                (key, *turn)
            };
            events.iter().map(|event| turn(event.key)).collect()
        },
    )
    .run();
}

#[test]
fn a_timer_of_either_function_fires_once_when_both_sides_have_passed_it() {
    case(
        "a_timer_of_either_function_fires_once_when_both_sides_have_passed_it",
        |events| {
            connected(events).process_with_timers(
                "windows",
                Map::<i64, Sides>::new("windows"),
                |_, left, windows, context| {
                    let (lefts, right) = windows.get(&end(&left)).copied().unwrap_or_default();
                    windows.insert(end(&left), (lefts + 1, right));
                    context.register_event_timer(end(&left));
                },
                |_, right, windows, context| {
                    let (lefts, last) = windows.get(&end(&right)).copied().unwrap_or_default();
                    windows.insert(end(&right), (lefts, last.max(Some(right.index))));
                    context.register_event_timer(end(&right));
                },
                |key, timer, windows, context| {
                    let sides = windows.remove(&timer.time).expect("a timer has a window");
                    context.emit((*key, timer.time, sides));
                },
            )
        },
        windows,
    )
    .out_of_order(50)
    .run();
}

/// Windows that are open.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Open(BTreeMap<i64, Sides>);

impl Scheduled for Open {
    fn event_due(&self) -> Option<i64> {
        self.0.keys().next().copied()
    }

    fn is_vacant(&self) -> bool {
        self.0.is_empty()
    }
}

#[test]
fn a_state_of_two_inputs_is_called_when_it_is_due() {
    case(
        "a_state_of_two_inputs_is_called_when_it_is_due",
        |events| {
            connected(events).process_scheduled(
                "windows",
                Value::<Open>::new("windows"),
                |_, left, open, _| open.0.entry(end(&left)).or_default().0 += 1,
                |_, right, open, _| {
                    let sides = open.0.entry(end(&right)).or_default();
                    sides.1 = sides.1.max(Some(right.index));
                },
                |key, timer, open, out| {
                    let (end, sides) = open.0.pop_first().expect("what is due is there");
                    assert_eq!(end, timer.time);
                    out.emit((*key, end, sides));
                },
            )
        },
        windows,
    )
    .out_of_order(50)
    .run();
}

#[test]
fn two_inputs_united_are_one_stream() {
    case(
        "two_inputs_united_are_one_stream",
        |events| {
            connected(events).united().unkeyed().map(|(key, event)| match event {
                Either::Left(event) => (key, true, event.split, event.index),
                Either::Right(event) => (key, false, event.split, event.index),
            })
        },
        |events| {
            let of = |event: &Event| (event.key, is_left(event), event.split, event.index);
            events.iter().map(of).collect()
        },
    )
    .seeds(10)
    .run();
}

/// A key and a window; how many records of the key are in it, and the sum of what was broadcast by then.
type Counted = (u64, i64, u64, u64);

fn is_rule(event: &Event) -> bool {
    event.value.is_multiple_of(4)
}

fn small(event: &Event) -> u64 {
    event.value % 1000
}

/// Counts in windows, each with what was broadcast until its end.
fn counted(events: Stream<'_, Event>) -> Stream<'_, Counted> {
    let rules = events.clone().filter(is_rule);
    let main = events.filter(|event| !is_rule(event)).key_by(|event| event.key);
    main.connect_broadcast(rules).process_with_timers(
        "windows",
        Map::<i64, u64>::new("counts"),
        Broadcast::<(i64, u64, u64), u64>::new("rules"),
        |_, event, counts, _rules, context| {
            let count = counts.get(&end(&event)).copied().unwrap_or(0);
            counts.insert(end(&event), count + 1);
            context.register_event_timer(end(&event));
        },
        |rule, rules, _| {
            rules.insert((rule.time, rule.split, rule.index), small(&rule));
        },
        |key, timer, counts, rules, context| {
            let count = counts.remove(&timer.time).expect("a timer has a window");
            let ruled = rules.iter().take_while(|((at, ..), _)| *at <= timer.time);
            context.emit((*key, timer.time, count, ruled.map(|(_, rule)| rule).sum()));
        },
    )
}

#[test]
fn a_timer_sees_all_that_was_broadcast_until_its_time() {
    case("a_timer_sees_all_that_was_broadcast_until_its_time", counted, |events| {
        let mut windows = BTreeMap::<(u64, i64), u64>::new();
        for event in events.iter().filter(|event| !is_rule(event)) {
            *windows.entry((event.key, end(event))).or_default() += 1;
        }
        let rules = |end| {
            events.iter().filter(move |event| is_rule(event) && event.time <= end).map(small).sum()
        };
        windows.into_iter().map(|((key, end), count)| (key, end, count, rules(end))).collect()
    })
    .out_of_order(50)
    .run();
}

#[test]
fn a_timer_of_processing_time_beside_a_broadcast_stream_loses_nothing() {
    case(
        "a_timer_of_processing_time_beside_a_broadcast_stream_loses_nothing",
        |events| {
            let rules = events.clone().filter(is_rule);
            events.key_by(|event| event.key).connect_broadcast(rules).process_with_timers(
                "packages",
                List::<(u64, u64)>::new("waiting"),
                Broadcast::<u64, u64>::new("rules"),
                |_, event, waiting, _rules, context| {
                    // By the clock if that is soon enough, by the end of the input otherwise.
                    waiting.append((event.split, event.index));
                    context.register_processing_timer(context.now() + 3);
                    context.register_event_timer(i64::MAX - 1);
                },
                |rule, rules, _| {
                    rules.insert(rule.split, rule.index);
                },
                |_, _, waiting, _rules, context| {
                    waiting.take().into_iter().for_each(|id| context.emit(id));
                },
            )
        },
        |events| events.iter().map(|event| (event.split, event.index)).collect(),
    )
    .run();
}
