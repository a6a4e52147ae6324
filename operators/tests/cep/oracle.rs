//! Finds matches by their definition: which event may follow which is looked up in all events, for every beginning of a match,
//! without anything that goes on from event to event.

use highwater::testing::Random;
use highwater_operators::Skip;

use crate::conformance::Event;

/// The number of the pattern; 0 for a match, 1 for what has timed out, 2 for a late event; the events with their stages.
pub type Detection = (usize, u8, Vec<(String, Event)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contiguity {
    Strict,
    Relaxed,
    Any,
}

/// Which events fit: by the remainder of their value by four, a bit each; `rising`: and by the event before.
#[derive(Clone, Copy, Debug)]
pub struct Condition {
    pub remainders: u8,
    pub rising: bool,
}

impl Condition {
    pub fn fits(self, event: &Event) -> bool {
        self.remainders >> (event.value % 4) & 1 == 1
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Guard {
    pub next: bool,
    pub condition: Condition,
}

#[derive(Clone, Debug)]
pub struct Stage {
    pub condition: Condition,
    pub contiguity: Contiguity,
    pub guards: Vec<Guard>,
    pub least: u32,
    pub most: Option<u32>,
    pub optional: bool,
    pub greedy: bool,
    pub inner: Contiguity,
}

#[derive(Clone, Debug)]
pub struct Spec {
    pub stages: Vec<Stage>,
    pub trailing: Vec<Guard>,
    pub within: Option<i64>,
    pub skip: Skip,
}

impl Spec {
    pub fn draw(random: &mut Random) -> Self {
        let stages = random.between(1, 4) as usize;
        let contiguities = [Contiguity::Strict, Contiguity::Relaxed, Contiguity::Any];
        let guard = |random: &mut Random| Guard {
            next: random.chance(0.4),
            condition: Condition { remainders: 1 << random.below(4), rising: false },
        };
        let stage = |random: &mut Random, number: usize| {
            let remainders = random.between(1, 15) as u8;
            let guarded = number > 0 && random.chance(0.25);
            let guards = if guarded { random.between(1, 2) } else { 0 };
            let contiguity = random.pick(if guarded { &contiguities[1..] } else { &contiguities });
            let inner = random.pick(&contiguities);
            let (least, most) = random.pick(&[
                (1, Some(1)),
                (1, Some(1)),
                (1, Some(3)),
                (2, Some(2)),
                (2, Some(3)),
                (1, None),
                (2, None),
            ]);
            // Else there would be too many of them.
            let most = most.or(if inner == Contiguity::Any { Some(least + 1) } else { None });
            Stage {
                condition: Condition { remainders, rising: random.chance(0.2) },
                contiguity,
                guards: (0..guards).map(|_| guard(random)).collect(),
                least,
                most,
                optional: random.chance(0.25),
                greedy: random.chance(0.3),
                inner,
            }
        };
        let stages: Vec<Stage> = (0..stages).map(|number| stage(random, number)).collect();
        let within = random.chance(0.8).then(|| random.between(5, 70) as i64);
        let trails = within.is_some() && random.chance(0.25);
        let trailing = if trails { vec![guard(random)] } else { Vec::new() };
        let name = format!("s{}", random.below(stages.len() as u64));
        let skip = match random.below(8) {
            0 => Skip::ToNext,
            1 => Skip::PastLastEvent,
            2 => Skip::ToFirst(name),
            3 => Skip::ToLast(name),
            _ => Skip::No,
        };
        Self { stages, trailing, within, skip }
    }
}

/// The beginning of a match: places of events, each with the stage that it is in.
type Path = Vec<(usize, usize)>;

struct Search<'a> {
    spec: &'a Spec,
    events: &'a [Event],
}

impl Search<'_> {
    /// The number of events that the last stage of a path has taken.
    fn count(path: &Path) -> u32 {
        let stage = path[path.len() - 1].1;
        path.iter().rev().take_while(|(_, other)| *other == stage).count() as u32
    }

    /// The first place whose time is over for a match that begins as `path` does.
    fn end(&self, path: &Path) -> usize {
        let Some(within) = self.spec.within else { return self.events.len() };
        let deadline = self.events[path[0].0].time + within;
        self.events.partition_point(|event| event.time < deadline)
    }

    /// Whether an event fits a stage behind a path.
    fn fits(&self, path: &Path, stage: usize, place: usize) -> bool {
        let condition = self.spec.stages[stage].condition;
        let event = &self.events[place];
        let rises = path.last().is_none_or(|(before, _)| {
            !condition.rising || self.events[*before].value % 97 <= event.value % 97
        });
        condition.fits(event) && rises
    }

    /// The stages that may come behind a path; the number of stages stands for its end.
    fn later(&self, path: &Path) -> Vec<usize> {
        let (_, stage) = path[path.len() - 1];
        let (spec, count) = (&self.spec.stages[stage], Self::count(path));
        let mut later = Vec::new();
        if spec.most.is_none_or(|most| count < most) {
            later.push(stage);
        }
        if count >= spec.least {
            let skippable =
                |to: &usize| self.spec.stages[stage + 1..*to].iter().all(|s| s.optional);
            later.extend((stage + 1..=self.spec.stages.len()).filter(skippable));
        }
        later
    }

    /// Whether something that must not come before `to` has come behind a path, up to `place`.
    fn is_broken(&self, path: &Path, to: usize, place: usize) -> bool {
        let (last, stage) = path[path.len() - 1];
        let between = (stage + 1..=to).flat_map(|stage| match self.spec.stages.get(stage) {
            Some(stage) => stage.guards.clone(),
            None => self.spec.trailing.clone(),
        });
        let mut behind = last + 1..=place;
        between.into_iter().any(|guard| {
            let bad = |place: usize| guard.condition.fits(&self.events[place]);
            if guard.next { last < place && bad(last + 1) } else { behind.clone().any(bad) }
        }) && behind.next().is_some()
    }

    /// Whether a greedy stage that `to` leaves out or leaves would have taken an event up to `place`.
    fn is_left_out(&self, path: &Path, to: usize, place: usize) -> bool {
        let (last, _) = path[path.len() - 1];
        let earlier = self.later(path).into_iter().filter(|stage| *stage < to);
        let mut greedy = earlier.filter(|stage| self.spec.stages[*stage].greedy);
        greedy.any(|stage| (last + 1..=place).any(|place| self.follows(path, stage, place)))
    }

    /// Whether an event may be the next of a path, in a stage.
    fn follows(&self, path: &Path, to: usize, place: usize) -> bool {
        let (last, stage) = path[path.len() - 1];
        let contiguity = match &self.spec.stages[to] {
            looped if to == stage => looped.inner,
            later => later.contiguity,
        };
        let is_near = match contiguity {
            Contiguity::Strict => place == last + 1,
            Contiguity::Relaxed => !(last + 1..place).any(|place| self.fits(path, to, place)),
            Contiguity::Any => true,
        };
        place > last
            && place < self.end(path)
            && is_near
            && self.later(path).contains(&to)
            && self.fits(path, to, place)
            && !self.is_broken(path, to, place)
            && !self.is_left_out(path, to, place)
    }

    /// Whether a path still waits for `to` when its time is over.
    fn waits(&self, path: &Path, to: usize) -> bool {
        let (last, stage) = path[path.len() - 1];
        let end = self.end(path);
        let met = match self.spec.stages.get(to) {
            None => false,
            Some(spec) => match if to == stage { spec.inner } else { spec.contiguity } {
                Contiguity::Strict => last + 1 < end,
                Contiguity::Relaxed => (last + 1..end).any(|place| self.fits(path, to, place)),
                Contiguity::Any => false,
            },
        };
        !met && !self.is_broken(path, to, end - 1) && !self.is_left_out(path, to, end - 1)
    }

    fn is_complete(&self, path: &Path) -> bool {
        self.spec.trailing.is_empty() && self.later(path).contains(&self.spec.stages.len())
    }

    /// Every beginning of a match.
    fn paths(&self) -> Vec<Path> {
        let mut open: Vec<Path> = Vec::new();
        for place in 0..self.events.len() {
            for stage in 0..self.spec.stages.len() {
                let mut before = self.spec.stages[..stage].iter();
                let skipped = before.all(|stage| stage.optional);
                let greedy = (0..stage).any(|earlier| {
                    self.spec.stages[earlier].greedy && self.fits(&Vec::new(), earlier, place)
                });
                if skipped && !greedy && self.fits(&Vec::new(), stage, place) {
                    open.push(vec![(place, stage)]);
                }
            }
        }
        let mut all = Vec::new();
        while let Some(path) = open.pop() {
            let (last, _) = path[path.len() - 1];
            for to in self.later(&path).into_iter().filter(|to| *to < self.spec.stages.len()) {
                for place in (last + 1..self.end(&path)).filter(|at| self.follows(&path, to, *at)) {
                    let mut longer = path.clone();
                    longer.push((place, to));
                    open.push(longer);
                }
            }
            all.push(path);
        }
        all
    }

    /// The places at which other matches may not have begun, of one that is told.
    fn dropped(&self, path: &Path) -> std::ops::Range<usize> {
        let start = path[0].0;
        let is = |name: &str, stage: usize| name == format!("s{stage}");
        let end = match &self.spec.skip {
            Skip::No => None,
            Skip::ToNext => Some(start + 1),
            Skip::PastLastEvent => path.last().map(|(place, _)| place + 1),
            Skip::ToFirst(name) => path.iter().find(|(_, s)| is(name, *s)).map(|(place, _)| *place),
            Skip::ToLast(name) => path.iter().rfind(|(_, s)| is(name, *s)).map(|(place, _)| *place),
        };
        start..end.unwrap_or(start)
    }
}

pub fn detections(number: usize, spec: &Spec, events: &[Event]) -> Vec<Detection> {
    let search = Search { spec, events };
    // When it is told, in event time, and among what is told then; the path; 0 for a match.
    let mut told = Vec::new();
    for path in search.paths() {
        if search.is_complete(&path) {
            let place = path[path.len() - 1].0;
            told.push(((events[place].time, 1, place), path.clone(), 0));
        }
        let Some(within) = spec.within else { continue };
        let at = (events[path[0].0].time + within, 0, 0);
        let waits: Vec<usize> =
            search.later(&path).into_iter().filter(|to| search.waits(&path, *to)).collect();
        if !spec.trailing.is_empty() && waits.contains(&spec.stages.len()) {
            told.push((at, path, 0));
        } else if waits.iter().any(|to| *to < spec.stages.len()) && !search.is_complete(&path) {
            told.push((at, path, 1));
        }
    }
    told.sort();
    let mut dropped: Vec<std::ops::Range<usize>> = Vec::new();
    let mut detections = Vec::new();
    for (_, path, kind) in told {
        if dropped.iter().any(|places| places.contains(&path[0].0)) {
            continue;
        }
        if kind == 0 {
            dropped.push(search.dropped(&path));
        }
        let events = path.iter().map(|(place, stage)| (format!("s{stage}"), events[*place]));
        detections.push((number, kind, events.collect()));
    }
    detections
}
