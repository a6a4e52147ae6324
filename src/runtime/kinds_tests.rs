//! The kinds of state against models, with and without a time to live, through snapshots.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::*;
use crate::format::{FormatError, SectionOutput};
use crate::ids::KeyGroup;
use crate::runtime::lifetime::Ttl;
use crate::runtime::states::States;
use crate::state::hash::stable_hash;
use crate::state::{Backend, FrozenState, Selection, SnapshotForm};

const GROUPS: u16 = 16;
const TTL: i64 = 100;

#[derive(Default)]
struct Section(u32, Vec<u8>);

impl SectionOutput for Section {
    fn entry(
        &mut self,
        _: KeyGroup,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), FormatError>,
    ) -> Result<(), FormatError> {
        self.0 += 1;
        fill(&mut self.1)
    }
}

fn written(frozen: FrozenState) -> Section {
    let mut section = Section::default();
    frozen.content.write(&mut section).unwrap();
    section
}

/// Tables of one declaration, with a clock.
struct Tables<S: States<u64>> {
    tables: S::Tables,
    now: i64,
    on: Backends,
}

/// Makes a backend.
type Backends = Rc<dyn Fn() -> Backend>;

fn on_heap() -> Backends {
    Rc::new(Backend::default)
}

/// With so little memory that all is in files but what was used last.
#[cfg(feature = "rocksdb")]
fn in_rocksdb() -> Backends {
    use crate::state::rocks::{Budget, Instance, Profile, Setup};
    let (root, number) = (tempfile::tempdir().unwrap(), std::cell::Cell::new(0));
    Rc::new(move || {
        number.set(number.get() + 1);
        let directory = root.path().join(number.get().to_string());
        let mut setup = Setup::new(directory, Budget::new(0), Profile::LowMemory, GROUPS);
        setup.small_bytes = 0;
        Backend::Rocks(Instance::new(setup))
    })
}

impl<S: States<u64>> Tables<S> {
    fn new(states: S) -> Self {
        Self::on(states, on_heap())
    }

    fn on(states: S, on: Backends) -> Self {
        let tables = states.open(&on(), GROUPS, &(0..GROUPS));
        let mut new = Self { tables, now: 0, on };
        new.at(1_000);
        new
    }

    fn at(&mut self, now: i64) {
        self.now = now;
        S::set_now(&mut self.tables, now);
    }

    fn of<R>(&mut self, key: u64, with: impl FnOnce(&mut S::Access<'_>) -> R) -> R {
        with(&mut S::access(&mut self.tables, stable_hash(&key), &key))
    }

    fn sections(&mut self) -> Vec<Section> {
        S::freeze(&mut self.tables, SnapshotForm::Plain).into_iter().map(written).collect()
    }

    /// The same states, out of a snapshot of these or of others.
    fn restored(&self, states: S, expiring: bool, sections: &[Section]) -> Self {
        let mut new = Self::on(states, Rc::clone(&self.on));
        new.at(self.now);
        for (index, Section(entries, bytes)) in sections.iter().enumerate() {
            S::restore(
                &mut new.tables,
                index,
                expiring,
                &Selection::whole(0..GROUPS),
                *entries,
                bytes,
            )
            .unwrap();
        }
        new
    }
}

fn number(step: u64, salt: u64, below: u64) -> u64 {
    stable_hash(&(step, salt)) % below
}

struct Mean;

impl AggregateFunction for Mean {
    type Input = u64;
    type Accumulator = (u64, u64);
    type Output = u64;

    fn create(&self) -> (u64, u64) {
        (0, 0)
    }
    fn add(&self, accumulator: &mut (u64, u64), input: u64) {
        *accumulator = (accumulator.0 + input, accumulator.1 + 1);
    }
    fn merge(&self, accumulator: &mut (u64, u64), other: (u64, u64)) {
        *accumulator = (accumulator.0 + other.0, accumulator.1 + other.1);
    }
    fn result(&self, accumulator: &(u64, u64)) -> u64 {
        accumulator.0 / accumulator.1
    }
}

/// What a time to live makes of the model of one key: its state, and when it was last updated.
type Aged<T> = BTreeMap<u64, (i64, T)>;

/// The model of one state of one key, if it is alive.
fn alive<T>(model: &mut Aged<T>, key: u64, now: i64, ttl: i64) -> Option<&mut (i64, T)> {
    if model.get(&key).is_some_and(|(written, _)| written.saturating_add(ttl) <= now) {
        model.remove(&key);
    }
    model.get_mut(&key)
}

macro_rules! agrees_with_its_model {
    ($name:ident, $on:expr, $steps:expr, $states:expr, $ttl:expr, $expires:expr) => {
        #[test]
        fn $name() {
            let ttl = $ttl;
            let mut real = Tables::on($states, $on);
            let mut lists: Aged<VecDeque<u64>> = Aged::new();
            let mut maps: Aged<BTreeMap<u64, String>> = Aged::new();
            let mut sums: Aged<u64> = Aged::new();
            let mut means: Aged<(u64, u64)> = Aged::new();
            let mut seen = 0;
            let steps: u64 = $steps;
            for step in 0..steps {
                let now = real.now + number(step, 1, 3) as i64;
                real.at(now);
                let (key, n) = (number(step, 2, 60), number(step, 3, 20));
                match number(step, 4, 16) {
                    0..3 => {
                        real.of(key, |(list, ..)| list.append(n));
                        match alive(&mut lists, key, now, ttl) {
                            Some((at, list)) => {
                                *at = now;
                                list.push_back(n);
                            }
                            None => drop(lists.insert(key, (now, [n].into()))),
                        }
                    }
                    3 => {
                        let elements = 0..n / 5;
                        real.of(key, |(list, ..)| list.replace(elements.clone()));
                        lists.remove(&key);
                        if !elements.is_empty() {
                            lists.insert(key, (now, elements.collect()));
                        }
                    }
                    4 => {
                        let model = alive(&mut lists, key, now, ttl).is_some();
                        let model = if model { lists.remove(&key) } else { None };
                        let model = model.map(|(_, list)| Vec::from(list)).unwrap_or_default();
                        assert_eq!(real.of(key, |(list, ..)| list.take()), model, "step {step}");
                    }
                    5..8 => {
                        let text = format!("{step}");
                        let before = real.of(key, |(_, map, ..)| map.insert(n, text.clone()));
                        let model = alive(&mut maps, key, now, ttl);
                        let model = match model {
                            Some((at, map)) => {
                                *at = now;
                                map.insert(n, text)
                            }
                            None => {
                                maps.insert(key, (now, [(n, text)].into()));
                                None
                            }
                        };
                        assert_eq!(before, model, "step {step}");
                    }
                    8 => {
                        let removed = real.of(key, |(_, map, ..)| map.remove(&n));
                        let model = alive(&mut maps, key, now, ttl).and_then(|(at, map)| {
                            let value = map.remove(&n)?;
                            *at = now;
                            Some(value)
                        });
                        maps.retain(|_, (_, map)| !map.is_empty());
                        assert_eq!(removed, model, "step {step}");
                    }
                    9 => {
                        real.of(key, |(_, map, ..)| {
                            let model = alive(&mut maps, key, now, ttl).map(|(_, map)| &*map);
                            let found = model.and_then(|map| map.get(&n));
                            assert_eq!(map.get(&n), found, "step {step}");
                            assert_eq!(map.contains(&n), found.is_some(), "step {step}");
                        });
                    }
                    10..12 => {
                        real.of(key, |(_, _, sum, _)| sum.add(n));
                        match alive(&mut sums, key, now, ttl) {
                            Some(sum) => *sum = (now, sum.1 + n),
                            None => drop(sums.insert(key, (now, n))),
                        }
                    }
                    12 => {
                        real.of(key, |(.., mean)| mean.add(n));
                        match alive(&mut means, key, now, ttl) {
                            Some(mean) => *mean = (now, (mean.1.0 + n, mean.1.1 + 1)),
                            None => drop(means.insert(key, (now, (n, 1)))),
                        }
                    }
                    13 => {
                        real.of(key, |(.., mean)| mean.merge((10, 2)));
                        match alive(&mut means, key, now, ttl) {
                            Some(mean) => *mean = (now, (mean.1.0 + 10, mean.1.1 + 2)),
                            None => drop(means.insert(key, (now, (10, 2)))),
                        }
                    }
                    14 if n == 0 => {
                        let sections = real.sections();
                        real = real.restored($states, $expires, &sections);
                    }
                    14 => sweep(&mut real, n as usize),
                    _ if n == 0 => {
                        real.of(key, |(list, map, sum, mean)| {
                            (list.clear(), map.clear(), sum.clear(), mean.clear())
                        });
                        (lists.remove(&key), maps.remove(&key));
                        (sums.remove(&key), means.remove(&key));
                    }
                    _ => {}
                }
                real.of(key, |(list, map, sum, mean)| {
                    let model = alive(&mut lists, key, now, ttl).map(|(_, list)| list.iter());
                    assert!(list.iter().eq(model.into_iter().flatten()), "step {step}");
                    let model = alive(&mut maps, key, now, ttl).map(|(_, map)| map.iter());
                    let entries = map.iter().map(|(n, text)| (n.into_owned(), text.into_owned()));
                    let model = model.into_iter().flatten().map(|(n, text)| (*n, text.clone()));
                    assert!(entries.eq(model), "step {step}");
                    assert_eq!(map.is_empty(), !maps.contains_key(&key), "step {step}");
                    let model = alive(&mut sums, key, now, ttl).map(|(_, sum)| &*sum);
                    seen += u64::from(model.is_some());
                    assert_eq!(sum.get(), model, "step {step}");
                    let model = alive(&mut means, key, now, ttl).map(|(_, m)| Mean.result(m));
                    assert_eq!(mean.get(), model, "step {step}");
                });
            }
            assert!((steps / 6..steps - 100).contains(&seen), "{seen} sums were there");
        }
    };
}

fn sweep<S: States<u64>>(tables: &mut Tables<S>, entries: usize) {
    S::sweep(&mut tables.tables, entries);
}

fn sum(sum: &mut u64, n: u64) {
    *sum += n;
}

macro_rules! of_all_kinds {
    () => {
        (
            List::new("list"),
            Map::new("map"),
            Reducing::new("sum", sum),
            Aggregating::new("mean", Mean),
        )
    };
    (expiring) => {
        (
            List::new("list").ttl(Duration::from_millis(100)),
            Map::new("map").ttl(Duration::from_millis(100)),
            Reducing::new("sum", sum).ttl(Duration::from_millis(100)),
            Aggregating::new("mean", Mean).ttl(Duration::from_millis(100)),
        )
    };
}

agrees_with_its_model!(
    all_kinds_agree_with_models_through_snapshots,
    on_heap(),
    30_000,
    of_all_kinds!(),
    i64::MAX,
    false
);

agrees_with_its_model!(
    all_kinds_agree_with_models_that_expire,
    on_heap(),
    30_000,
    of_all_kinds!(expiring),
    TTL,
    true
);

#[cfg(feature = "rocksdb")]
agrees_with_its_model!(
    all_kinds_agree_with_models_in_rocksdb,
    in_rocksdb(),
    2_500,
    of_all_kinds!(),
    i64::MAX,
    false
);

#[cfg(feature = "rocksdb")]
agrees_with_its_model!(
    all_kinds_agree_with_models_that_expire_in_rocksdb,
    in_rocksdb(),
    1_500,
    of_all_kinds!(expiring),
    TTL,
    true
);

fn expiring() -> Value<u64, Ttl> {
    Value::new("value").ttl(Duration::from_millis(TTL as u64))
}

#[test]
fn a_value_expires_just_when_its_time_is_over_and_writing_renews_it() {
    let mut tables = Tables::new(expiring());
    tables.of(1, |value| value.set(7));
    tables.at(1_099);
    assert_eq!(tables.of(1, |value| value.get().copied()), Some(7));
    tables.of(1, |value| *value.get_mut().unwrap() += 1);
    tables.at(1_198);
    assert_eq!(tables.of(1, |value| value.get().copied()), Some(8));
    tables.at(1_199);
    assert_eq!(tables.of(1, |value| value.get().copied()), None, "reading does not renew it");
    assert_eq!(tables.of(1, |value| value.set(9)), None);
    tables.at(1_299);
    assert_eq!(tables.of(1, |value| value.take()), None);
    assert_eq!(tables.of(1, |value| *value.or_default()), 0, "it begins anew");
}

#[test]
fn reading_renews_a_value_if_its_ttl_says_so() {
    let ttl = || Ttl::new(Duration::from_millis(TTL as u64)).update_on_read();
    let mut tables = Tables::new(Value::<u64>::new("value").ttl(ttl()));
    tables.of(1, |value| value.set(7));
    for time in [1_099, 1_198, 1_297] {
        tables.at(time);
        assert_eq!(tables.of(1, |value| value.get().copied()), Some(7));
    }
    tables.at(1_397);
    assert_eq!(tables.of(1, |value| value.get().copied()), None);
}

#[test]
fn what_has_expired_is_swept_with_bounded_work_and_nothing_else_is() {
    let mut tables = Tables::new(expiring());
    for key in 0..10_000 {
        tables.of(key, |value| value.set(key));
    }
    tables.at(1_050);
    for key in (0..10_000).step_by(10) {
        tables.of(key, |value| value.set(key + 1));
    }
    tables.at(1_120);
    let kept = |tables: &mut Tables<_>| tables.sections()[0].0;
    assert_eq!(kept(&mut tables), 10_000);
    sweep(&mut tables, 100);
    // Pages that the last snapshot shared are owned again when they are next touched.
    for key in 0..10_000 {
        tables.of(key + 10_000, |value| value.get().copied());
    }
    sweep(&mut tables, 100);
    let after_one = kept(&mut tables);
    assert!((9_900..10_000).contains(&after_one), "{after_one} after looking at 100");
    for key in 0..10_000 {
        tables.of(key + 10_000, |value| value.get().copied());
    }
    for _ in 0..200 {
        sweep(&mut tables, 100);
    }
    assert_eq!(kept(&mut tables), 1_000);
    for key in 0..10_000 {
        let expected = (key % 10 == 0).then_some(key + 1);
        assert_eq!(tables.of(key, |value| value.get().copied()), expected);
    }
}

#[test]
fn a_restore_drops_what_has_expired_and_takes_another_ttl_for_old_entries() {
    let mut tables = Tables::new(expiring());
    tables.of(1, |value| value.set(1));
    tables.at(1_060);
    tables.of(2, |value| value.set(2));
    let sections = tables.sections();
    tables.at(1_120);
    let mut same = tables.restored(expiring(), true, &sections);
    assert_eq!(same.sections()[0].0, 1, "the expired one is not kept");
    assert_eq!(same.of(2, |value| value.get().copied()), Some(2));
    let longer = || Value::new("value").ttl(Duration::from_millis(1_000));
    let mut longer = tables.restored(longer(), true, &sections);
    assert_eq!(longer.of(1, |value| value.get().copied()), Some(1));
    longer.at(2_000);
    assert_eq!(longer.of(1, |value| value.get().copied()), None);
}

#[test]
fn a_ttl_may_be_added_and_taken_away() {
    let mut plain = Tables::new(Value::<u64>::new("value"));
    plain.of(1, |value| value.set(1));
    let sections = plain.sections();
    let mut with = Tables::new(expiring());
    with.at(5_000);
    let mut with = with.restored(expiring(), false, &sections);
    with.at(5_099);
    assert_eq!(with.of(1, |value| value.get().copied()), Some(1), "it counts from the restore");
    let sections = with.sections();
    with.at(5_100);
    assert_eq!(with.of(1, |value| value.get().copied()), None);
    let mut plain = plain.restored(Value::new("value"), true, &sections);
    assert_eq!(plain.of(1, |value| value.get().copied()), Some(1));
}

#[test]
fn what_is_empty_takes_no_room_in_a_snapshot() {
    let mut tables = Tables::new((List::<u64>::new("list"), Map::<u64, u64>::new("map")));
    tables.of(1, |(list, map)| {
        list.append(1);
        list.replace([]);
        map.insert(1, 1);
        assert_eq!(map.remove(&2), None);
        assert_eq!(map.remove(&1), Some(1));
        assert!(list.is_empty() && map.is_empty());
    });
    assert!(tables.sections().iter().all(|section| section.0 == 0));
}

#[test]
fn checkpoints_tell_the_kinds_and_what_expires_apart() {
    let name = |states: &dyn Fn() -> Vec<crate::runtime::keyed::StateDeclaration>| {
        let header = states().remove(0).header(&crate::ids::Name::new("operator").unwrap());
        (header.kind, header.type_name)
    };
    let declared = |kind, text: &str| (kind, text.to_owned());
    assert_eq!(
        name(&|| States::<u64>::declarations(&Value::<u8>::new("x"))),
        declared(SectionKind::KeyedValue, "u64 -> u8")
    );
    assert_eq!(
        name(&|| States::<u64>::declarations(&Value::<u8>::new("x").ttl(Duration::ZERO))),
        declared(SectionKind::KeyedValue, "u64 -> Expiring<u8>")
    );
    assert_eq!(
        name(&|| States::<u64>::declarations(&Map::<u8, u16>::new("x").ttl(Duration::ZERO))),
        declared(SectionKind::KeyedMap, "u64 -> Expiring<Map<u8, u16>>")
    );
    assert_eq!(
        name(&|| States::<u64>::declarations(&List::<u8>::new("x"))),
        declared(SectionKind::KeyedList, "u64 -> List<u8>")
    );
}
