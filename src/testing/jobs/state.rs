//! Operators of a random job for the kinds of state that the others do not have: what one key has in several of them has
//! to agree.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Node;
use super::build::{Seen, arrive};
use super::item::Item;
use crate::config::CheckpointMode;
use crate::job::{
    AggregateFunction, Aggregating, Job, List, Map, OperatorList, Reducing, Stream, TimeDomain,
    Value,
};
use crate::testing::point;

/// No simulation takes so long.
const FOR_EVER: Duration = Duration::from_secs(3600 * 24 * 365);
/// Some take far longer.
const BRIEF: Duration = Duration::from_millis(20);

/// Mixes paths so that order does not count.
struct Mix;

impl AggregateFunction for Mix {
    type Input = u64;
    type Accumulator = u64;
    type Output = u64;

    fn create(&self) -> u64 {
        0
    }
    fn add(&self, accumulator: &mut u64, input: u64) {
        *accumulator ^= input;
    }
    fn merge(&self, accumulator: &mut u64, other: u64) {
        *accumulator ^= other;
    }
    fn result(&self, accumulator: &u64) -> u64 {
        *accumulator
    }
}

fn is_exact(job: &Job<'_>) -> bool {
    job.context().config().checkpoints.mode == CheckpointMode::ExactlyOnce
}

/// Counts the records of each key in states of several kinds.
pub(super) fn every<'scope>(
    job: &Job<'scope>,
    node: &Node,
    lists: bool,
    input: Stream<'scope, Item>,
) -> Stream<'scope, Item> {
    let (own, exact, name) = (node.clone(), is_exact(job), format!("every-{}", node.id));
    let count = Value::<Seen>::new("count");
    let keyed = input.into_keyed(|item| (item.key, item));
    let begin = move |item| {
        point("every kind of state");
        arrive(&own, 0, item)
    };
    let straight = node.straight;
    let check = move |seen: &mut Seen, item: &Item, watermark| {
        if straight {
            seen.check_time(item, watermark, exact);
        }
    };
    let operator = node.id;
    // At least once a snapshot may hold records from behind its barrier, but in all states.
    if lists {
        let states = (
            count,
            List::<u64>::new("paths"),
            Map::<u64, u64>::new("splits"),
            Value::<u64>::new("lasting").ttl(FOR_EVER),
        );
        return keyed.process(
            &name,
            states,
            move |key, item, (seen, paths, splits, lasting), out| {
                let item = begin(item);
                let seen = seen.or_default();
                check(seen, &item, out.watermark());
                paths.append(item.path);
                let split = splits.get(&item.split).copied().unwrap_or(0) + 1;
                splits.insert(item.split, split);
                *lasting.or_default() += 1;
                let different: BTreeSet<u64> = paths.iter().copied().collect();
                let (listed, different) = (paths.iter().count() as u64, different.len() as u64);
                assert!(
                    !exact || listed == different,
                    "DUP: {key} has {listed} paths, {different} different"
                );
                let counts = (listed, splits.iter().map(|(_, n)| *n).sum(), *lasting.or_default());
                let item = seen.stamp(operator, *key, item);
                let all = (seen.count, seen.count, seen.count);
                assert_eq!(counts, all, "TORN: lists, maps and what expires late, of {key}");
                out.emit(item);
            },
        );
    }
    let states = (
        count,
        Reducing::new("most", |most: &mut (u64, u64), (path, n)| {
            *most = (path.max(most.0), most.1 + n);
        }),
        Aggregating::new("mix", Mix),
        (Value::<(u64, u64)>::new("brief")).ttl(BRIEF),
    );
    keyed.process(&name, states, move |key, item, (seen, most, mix, brief), out| {
        let item = begin(item);
        let seen = seen.or_default();
        check(seen, &item, out.watermark());
        most.add((item.path, 1));
        mix.add(item.path);
        let short = brief.or_default();
        *short = (short.0 + 1, short.1 ^ item.path);
        let (short, mixed) = (*short, mix.get().unwrap_or(0));
        let item = seen.stamp(operator, *key, item);
        let counted = most.get().map(|most| most.1);
        assert_eq!(counted, Some(seen.count), "TORN: what reduces {key}");
        assert!(short.0 <= seen.count, "DUP: {short:?} of {key} in a short time");
        // If nothing has expired yet, they are of the same records.
        assert!(short.0 < seen.count || short.1 == mixed, "TORN: {short:?} of {key}, {mixed}");
        out.emit(item);
    })
}

/// Keeps records back until a timer fires; at the end of input all are let go.
pub(super) fn timers<'scope>(
    node: &Node,
    event: bool,
    delay: u64,
    input: Stream<'scope, Item>,
) -> Stream<'scope, Item> {
    let (own, operator, delay) = (node.clone(), node.id, delay as i64);
    let domain = if event { TimeDomain::EventTime } else { TimeDomain::ProcessingTime };
    let states = (Value::<Seen>::new("count"), Map::<i64, Vec<Item>>::new("waiting"));
    input.into_keyed(|item| (item.key, item)).process_with_timers(
        &format!("timers-{}", node.id),
        states,
        move |_, item: Item, (_, waiting), context| {
            point("a record waits");
            let item = arrive(&own, 0, item);
            let time = if event {
                let time = item.time.max(context.watermark()).saturating_add(delay);
                // Registered and deleted again, unless somebody waits for it.
                let another = time.saturating_add(1);
                if !waiting.contains(&another) {
                    context.register_event_timer(another);
                    context.delete_event_timer(another);
                }
                context.register_event_timer(time);
                time
            } else {
                let time = context.now() + delay;
                context.register_processing_timer(time);
                time
            };
            context.register_event_timer(i64::MAX);
            let mut there = waiting.remove(&time).unwrap_or_default();
            there.push(item);
            waiting.insert(time, there);
        },
        move |key, timer, (seen, waiting), context| {
            point("a timer");
            let end = timer.domain == TimeDomain::EventTime && timer.time == i64::MAX;
            let now = if timer.domain == TimeDomain::EventTime {
                context.watermark()
            } else {
                context.now()
            };
            assert!(timer.time <= now, "EARLY: {timer:?} of {key} at {now}");
            let due = if end {
                let all = waiting.iter().flat_map(|(_, items)| items.into_owned()).collect();
                waiting.clear();
                all
            } else {
                assert!(timer.domain == domain, "{timer:?} of {key} was never registered");
                let due = waiting.remove(&timer.time);
                // The end of input has let all go, those that wait for the clock too.
                assert!(
                    due.is_some() || context.watermark() == i64::MAX,
                    "DUP: {timer:?} of {key} fires, and nothing waits"
                );
                due.unwrap_or_default()
            };
            for item in due {
                let item = seen.or_default().stamp(operator, *key, item);
                context.emit(item);
            }
        },
    )
}

/// Keeps all that it has seen.
pub(super) fn listed<'scope>(
    job: &Job<'scope>,
    node: &Node,
    input: Stream<'scope, Item>,
) -> Stream<'scope, Item> {
    let (own, exact) = (node.clone(), is_exact(job));
    let name = format!("listed-{}", node.id);
    input.rebalance().process(&name, OperatorList::<u64>::new("paths"), move |item, paths, out| {
        point("an operator list");
        let item = arrive(&own, 0, item);
        assert!(!exact || paths.iter().all(|path| *path != item.path), "DUP: {item:?} is listed");
        paths.append(item.path);
        out.emit(item);
    })
}
