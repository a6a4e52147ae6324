//! Pattern matching, held to the suite that all operators are, and to an oracle that finds matches by their definition.

use std::collections::BTreeMap;
use std::time::Duration;

use highwater::config::JobConfig;
use highwater::ids::Name;
use highwater::job::{JobHandle, execute};
use highwater::prelude::*;
use highwater::testing::Random;
use highwater_operators::{Detect, Detected, Pattern, Skip};

use conformance::{Event, checked_case, same};
use oracle::{Condition, Contiguity, Detection, Guard, Spec};

mod conformance;
#[path = "cep/oracle.rs"]
mod oracle;

/// The pattern that a specification is of.
fn pattern(spec: &Spec) -> Pattern<Event> {
    let fits = |condition: Condition| move |event: &Event| condition.fits(event);
    let mut built: Option<Pattern<Event>> = None;
    for (number, stage) in spec.stages.iter().enumerate() {
        let (name, condition) = (format!("s{number}"), fits(stage.condition));
        let mut pattern = match built {
            None => Pattern::begin(&name, condition),
            Some(before) if stage.guards.is_empty() => match stage.contiguity {
                Contiguity::Strict => before.next(&name, condition),
                Contiguity::Relaxed => before.followed_by(&name, condition),
                Contiguity::Any => before.followed_by_any(&name, condition),
            },
            Some(before) => {
                let guarded = guarded(before, &stage.guards);
                match stage.contiguity {
                    Contiguity::Any => guarded.followed_by_any(&name, condition),
                    _ => guarded.followed_by(&name, condition),
                }
            }
        };
        if stage.condition.rising {
            pattern = pattern.and_where(|event, matched| {
                let before = matched.events().last().map(|(_, before)| before.value % 97);
                before.is_none_or(|before| before <= event.value % 97)
            });
        }
        pattern = match stage.most {
            None => pattern.times(stage.least..),
            Some(most) => pattern.times(stage.least..=most),
        };
        pattern = match stage.inner {
            Contiguity::Strict => pattern.consecutive(),
            Contiguity::Relaxed => pattern,
            Contiguity::Any => pattern.allow_combinations(),
        };
        pattern = if stage.optional { pattern.optional() } else { pattern };
        built = Some(if stage.greedy { pattern.greedy() } else { pattern });
    }
    let mut built = built.expect("a specification has stages");
    if let Some(within) = spec.within {
        let within = Duration::from_millis(within as u64);
        built = match &spec.trailing[..] {
            [] => built.within(within),
            trailing => guarded(built, trailing).within(within),
        };
    }
    built.skip(spec.skip.clone())
}

fn guarded(pattern: Pattern<Event>, guards: &[Guard]) -> highwater_operators::Unfinished<Event> {
    let fits = |condition: Condition| move |event: &Event| condition.fits(event);
    let (first, others) = guards.split_first().expect("there are guards");
    let begun = match first.next {
        true => pattern.not_next(fits(first.condition)),
        false => pattern.not_followed_by(fits(first.condition)),
    };
    others.iter().fold(begun, |guarded, guard| match guard.next {
        true => guarded.not_next(fits(guard.condition)),
        false => guarded.not_followed_by(fits(guard.condition)),
    })
}

/// Puts all patterns behind the events, whose keys are a split's own: so that arrival has an order.
fn detect<'s>(events: &Stream<'s, Event>, specs: &[Spec]) -> Stream<'s, Detection> {
    let keyed = events.clone().key_by(|event| (event.split, event.key));
    let found = specs.iter().enumerate().map(|(number, spec)| {
        let select = move |_: &(u64, u64), detected: Detected<'_, Event>| {
            let (kind, matched) = match detected {
                Detected::Match(matched) => (0, matched),
                Detected::TimedOut(matched) => (1, matched),
                Detected::Late(late) => return Some((number, 2, vec![("late".to_owned(), late)])),
            };
            let events = matched.events().into_iter();
            let events = events.map(|(stage, event)| (stage.to_owned(), *event)).collect();
            Some((number, kind, events))
        };
        keyed.clone().detect(&format!("detect-{number}"), pattern(spec), |e| e.time, select)
    });
    found.reduce(Stream::union).expect("there are patterns")
}

/// What the oracle finds of all patterns, over the events of each key in the order of their times, then of arrival.
fn expected(specs: &[Spec], events: &[Event]) -> Vec<Detection> {
    let mut by_key: BTreeMap<(u64, u64), Vec<Event>> = BTreeMap::new();
    for event in events {
        by_key.entry((event.split, event.key)).or_default().push(*event);
    }
    let mut all = Vec::new();
    for mut events in by_key.into_values() {
        events.sort_by_key(|event| (event.time, event.index));
        for (number, spec) in specs.iter().enumerate() {
            all.extend(oracle::detections(number, spec, &events));
        }
    }
    all
}

fn drawn(seeds: std::ops::Range<u64>) -> Vec<Spec> {
    seeds.map(|seed| Spec::draw(&mut Random::new(seed).fork(21))).collect()
}

/// Patterns of which there are not too many matches, however long the input.
fn bounded(seeds: std::ops::Range<u64>, count: usize) -> Vec<Spec> {
    let bounded = drawn(seeds).into_iter();
    bounded.filter(|spec| spec.within.is_some() && spec.stages.len() > 1).take(count).collect()
}

#[test]
fn detections_survive_everything() {
    let specs = bounded(0..50, 2);
    let specs_again = specs.clone();
    checked_case(
        "detections_survive_everything",
        move |events| detect(&events, &specs),
        move |events, found| same(expected(&specs_again, events), found),
    )
    .keys(3)
    .records(30)
    .step_ms(7)
    .out_of_order(20)
    .run();
}

#[test]
fn late_events_are_told_and_are_no_part_of_a_match() {
    let specs = bounded(50..100, 2);
    let specs_again = specs.clone();
    checked_case(
        "late_events_are_told_and_are_no_part_of_a_match",
        move |events| detect(&events, &specs),
        move |events, found| {
            // Which events are late depends on the run. Of the others, all is found.
            for (number, spec) in specs_again.iter().enumerate() {
                let of_this = found.iter().filter(|(of, _, _)| *of == number);
                let late: Vec<Event> = of_this
                    .clone()
                    .filter(|(_, kind, _)| *kind == 2)
                    .map(|(_, _, events)| events[0].1)
                    .collect();
                let on_time: Vec<Event> =
                    events.iter().filter(|event| !late.contains(event)).copied().collect();
                if on_time.len() + late.len() != events.len() {
                    return Err("an event was told to be late twice".to_owned());
                }
                let spec = std::slice::from_ref(spec);
                let found = of_this.filter(|(_, kind, _)| *kind < 2);
                let found = found.map(|(_, kind, events)| (0, *kind, events.clone())).collect();
                same(expected(spec, &on_time), found)?;
            }
            Ok(())
        },
    )
    .keys(3)
    .records(30)
    .step_ms(7)
    .late(40, 10)
    .run();
}

/// Runs patterns over events, in the plainest of jobs.
fn run(specs: &[Spec], events: &[Event]) -> Vec<Detection> {
    let collect = Collect::new();
    let found = collect.handle();
    let mut config = JobConfig::new(Name::new("patterns").expect("a constant name"));
    config.workers = 1;
    let (specs, events) = (specs.to_vec(), events.to_vec());
    execute(config, &JobHandle::default(), move |job| {
        let time = EventTime::monotonic(|event: &Event| event.time);
        let events = job.source_with("events", Collection::new(events.clone()), time);
        detect(&events, &specs).sink("out", collect.clone());
        Ok(())
    })
    .expect("nothing goes wrong");
    found.committed()
}

#[test]
fn random_patterns_find_what_their_definition_says() {
    let (mut matches, mut timed_out) = (0, 0);
    for round in 0..12 {
        let specs = drawn(100 * round..100 * round + 25);
        let mut random = Random::new(round).fork(22);
        let mut time = 0;
        let events: Vec<Event> = (0..40)
            .map(|index| {
                time += random.below(12) as i64;
                Event { time, split: 0, index, key: random.below(3), value: random.next() }
            })
            .collect();
        let (expected, found) = (expected(&specs, &events), run(&specs, &events));
        matches += expected.iter().filter(|(_, kind, _)| *kind == 0).count();
        timed_out += expected.iter().filter(|(_, kind, _)| *kind == 1).count();
        for (number, spec) in specs.iter().enumerate() {
            let of_this = |all: &[Detection]| -> Vec<Detection> {
                all.iter().filter(|(of, _, _)| *of == number).cloned().collect()
            };
            same(of_this(&expected), of_this(&found))
                .unwrap_or_else(|why| panic!("round {round}, {spec:?}: {why}"));
        }
    }
    assert!(matches > 1_000 && timed_out > 100, "{matches} matches, {timed_out} timed out");
}

/// The matches of a pattern in letters that come a millisecond apart, each as the places of its letters.
fn places(
    pattern: impl Fn() -> Pattern<(i64, char)> + Send + Sync + 'static,
    text: &str,
) -> Vec<String> {
    let collect = Collect::new();
    let found = collect.handle();
    let config = JobConfig::new(Name::new("letters").expect("a constant name"));
    let letters: Vec<(i64, char)> = (0..).zip(text.chars()).collect();
    execute(config, &JobHandle::default(), move |job| {
        let time = EventTime::monotonic(|letter: &(i64, char)| letter.0);
        job.source_with("letters", Collection::new(letters.clone()), time)
            .key_by(|_| 0)
            .detect(
                "pattern",
                pattern(),
                |letter| letter.0,
                |_, detected| {
                    let Detected::Match(matched) = detected else { return None };
                    let places =
                        matched.events().into_iter().map(|(_, (place, _))| place.to_string());
                    Some(places.collect::<String>())
                },
            )
            .sink("out", collect.clone());
        Ok(())
    })
    .expect("nothing goes wrong");
    found.committed()
}

fn is(letter: char) -> impl Fn(&(i64, char)) -> bool {
    move |(_, other)| *other == letter
}

#[test]
fn the_contiguities_are_those_that_users_of_flink_know() {
    let a = || Pattern::begin("a", is('a'));
    assert!(places(move || a().next("b", is('b')), "acb").is_empty());
    assert_eq!(places(move || a().next("b", is('b')), "ab"), ["01"]);
    assert_eq!(places(move || a().followed_by("b", is('b')), "acbb"), ["02"]);
    assert_eq!(places(move || a().followed_by_any("b", is('b')), "acbb"), ["02", "03"]);
    let some = move || a().one_or_more();
    let loose = ["023", "03", "23"];
    assert_eq!(places(move || some().followed_by("b", is('b')), "acab"), loose);
    let strict = move || some().consecutive().followed_by("b", is('b'));
    assert_eq!(places(strict, "acab"), ["03", "23"]);
    let combined = move || some().allow_combinations().followed_by("b", is('b'));
    assert_eq!(places(combined, "aaab"), ["0123", "013", "023", "03", "123", "13", "23"]);
    let greedy = move || some().greedy().followed_by("b", is('b'));
    assert_eq!(places(greedy, "aab"), ["012", "12"]);
    assert_eq!(places(move || a().times(2..=2).next("b", is('b')), "aaab"), ["123"]);
}

#[test]
fn what_must_not_come_ends_a_match_and_silence_can_be_one() {
    let a = || Pattern::begin("a", is('a'));
    let not_between = move || a().not_followed_by(is('c')).followed_by("b", is('b'));
    assert_eq!(places(not_between, "axbacb"), ["02"]);
    let not_next = move || a().not_next(is('c')).followed_by("b", is('b'));
    assert_eq!(places(not_next, "axcbacb"), ["03"]);
    let silence = move || a().not_followed_by(is('b')).within(Duration::from_millis(3));
    assert_eq!(places(silence, "axxbaxb"), ["0"], "the time of the first is over when b comes");
}

#[test]
fn skip_strategies_drop_what_began_before_the_place_they_skip_to() {
    let some = || Pattern::begin("a", is('a')).one_or_more().followed_by("b", is('b'));
    let with = |skip: Skip| move || some().skip(skip.clone());
    assert_eq!(places(with(Skip::No), "aab"), ["012", "02", "12"]);
    assert_eq!(places(with(Skip::ToNext), "aab"), ["012", "12"]);
    assert_eq!(places(with(Skip::PastLastEvent), "aab"), ["012"]);
    assert_eq!(places(with(Skip::ToFirst("b".to_owned())), "aab"), ["012"]);
    assert_eq!(places(with(Skip::ToLast("a".to_owned())), "aab"), ["012", "12"]);
    assert_eq!(places(with(Skip::ToLast("nothing".to_owned())), "aab"), ["012", "02", "12"]);
}
