//! The matching of one key: partial matches, and what an event makes of them.
//!
//! # What is kept
//! ```text
//! waiting   events that the watermark has not reached, in the order of their times, then of arrival
//! events    those that partial matches have taken, each once
//! nodes     an event in a stage, behind another node: matches that begin alike share their beginning
//! runs      a node, and the stages that may go on behind it
//! ```
//! After each round what no run leads to is removed; so nodes and events are bounded by the runs, and the runs by the time
//! that a match may take.
//!
//! # An event, for each run
//! The stages that the run waits for are asked in order, its own first if that may take more. A wait ends
//! * because the event is what must not come,
//! * because an earlier stage that is greedy takes the event,
//! * because the event is taken, unless any later one may be as well,
//! * because the event is not taken and would have to be.
//!
//! Each stage that takes the event begins a new run. A run without waits is gone.
//!
//! # Order
//! What ends at one event, or at one time, is told in the order of the positions of its events. The skip strategy is applied
//! after each match, to runs and to matches that have not been told.

use std::collections::VecDeque;

use highwater::prelude::*;
use serde::{Deserialize, Serialize};

use crate::cep::Detected;
use crate::cep::pattern::{Contiguity, Guard, Pattern, Skip};

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept<E> {
    /// Its place among the events of the key.
    position: u64,
    time: i64,
    event: E,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Node {
    before: Option<u32>,
    event: u32,
    stage: u32,
    /// How many events the stage has taken.
    count: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Run {
    node: u32,
    /// The position and the time of its first event.
    start: u64,
    since: i64,
    /// The stages that may take an event, ascending. The number of stages stands for the end of the time.
    waits: Vec<u32>,
    /// Whether no event has come since the last that was taken.
    fresh: bool,
}

/// The partial matches of a key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Partial<E> {
    waiting: Vec<(i64, E)>,
    events: Vec<Kept<E>>,
    nodes: Vec<Node>,
    runs: Vec<Run>,
    next: u64,
    /// The watermark at which the first run is out of time.
    over_at: Option<i64>,
}

impl<E> Default for Partial<E> {
    fn default() -> Self {
        let (waiting, events, nodes, runs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { waiting, events, nodes, runs, next: 0, over_at: None }
    }
}

impl<E: Record> Scheduled for Partial<E> {
    fn event_due(&self) -> Option<i64> {
        let waits_for = self.waiting.first().map(|(time, _)| *time);
        waits_for.into_iter().chain(self.over_at).min()
    }

    fn is_vacant(&self) -> bool {
        self.waiting.is_empty() && self.runs.is_empty()
    }
}

/// The events of a match, or of what may become one, with the stages that they are in.
pub struct Matched<'a, E> {
    pattern: &'a Pattern<E>,
    partial: &'a Partial<E>,
    last: Option<u32>,
}

impl<E> std::fmt::Debug for Matched<'_, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matched").field("pattern", &self.pattern).finish_non_exhaustive()
    }
}

impl<'a, E> Matched<'a, E> {
    /// From the last to the first.
    fn backwards(&self) -> impl Iterator<Item = (&'a Node, &'a Kept<E>)> + use<'a, E> {
        let partial = self.partial;
        let nodes = std::iter::successors(self.last, |node| partial.nodes[*node as usize].before);
        nodes.map(|node| {
            let node = &partial.nodes[node as usize];
            (node, &partial.events[node.event as usize])
        })
    }

    /// All events with the names of their stages, in order.
    #[must_use]
    pub fn events(&self) -> Vec<(&'a str, &'a E)> {
        let name = |node: &Node| self.pattern.stages[node.stage as usize].name.as_str();
        let events = self.backwards().map(|(node, kept)| (name(node), &kept.event));
        let mut events: Vec<_> = events.collect();
        events.reverse();
        events
    }

    /// The events of a stage, in order; none if it has taken none.
    #[must_use]
    pub fn get(&self, stage: &str) -> Vec<&'a E> {
        let events = self.events().into_iter().filter(|(name, _)| *name == stage);
        events.map(|(_, event)| event).collect()
    }

    /// The first event of a stage.
    #[must_use]
    pub fn first(&self, stage: &str) -> Option<&'a E> {
        self.get(stage).into_iter().next()
    }

    /// The last event of a stage.
    #[must_use]
    pub fn last(&self, stage: &str) -> Option<&'a E> {
        let name = |node: &Node| self.pattern.stages[node.stage as usize].name.as_str();
        self.backwards().find(|(node, _)| name(node) == stage).map(|(_, kept)| &kept.event)
    }

    /// The times of the first and the last event. `None` if there is none.
    #[must_use]
    pub fn times(&self) -> Option<(i64, i64)> {
        let (_, last) = self.backwards().next()?;
        let (_, first) = self.backwards().last()?;
        Some((first.time, last.time))
    }
}

type Tell<'a, E> = &'a mut dyn FnMut(Detected<'_, E>);

impl<E> Partial<E> {
    /// Adds an event that the watermark has not reached.
    pub(super) fn add(&mut self, time: i64, event: E) {
        let at = self.waiting.partition_point(|(other, _)| *other <= time);
        self.waiting.insert(at, (time, event));
    }

    /// Takes the events up to the watermark, and ends what has run out of time.
    pub(super) fn proceed(&mut self, pattern: &Pattern<E>, watermark: i64, tell: Tell<'_, E>) {
        let ready = self.waiting.partition_point(|(time, _)| *time <= watermark);
        let ready: Vec<(i64, E)> = self.waiting.drain(..ready).collect();
        for (time, event) in ready {
            self.expire(pattern, time, tell);
            self.take(pattern, time, event, tell);
        }
        self.expire(pattern, watermark.saturating_add(1), tell);
        self.sweep();
        let first = self.runs.iter().map(|run| run.since).min();
        self.over_at =
            first.zip(pattern.within).map(|(since, within)| since.saturating_add(within) - 1);
    }

    fn matched<'a>(&'a self, pattern: &'a Pattern<E>, last: Option<u32>) -> Matched<'a, E> {
        Matched { pattern, partial: self, last }
    }

    fn take(&mut self, pattern: &Pattern<E>, time: i64, event: E, tell: Tell<'_, E>) {
        let position = self.next;
        self.next += 1;
        let at = self.events.len() as u32;
        self.events.push(Kept { position, time, event });
        let mut kept = Vec::with_capacity(self.runs.len());
        let (mut begun, mut done) = (Vec::new(), Vec::new());
        for mut run in std::mem::take(&mut self.runs) {
            for to in self.step(pattern, &mut run, at) {
                let (start, since) = (run.start, run.since);
                self.grow(pattern, (Some(run.node), to, at), (start, since), &mut begun, &mut done);
            }
            if !run.waits.is_empty() {
                kept.push(run);
            }
        }
        for to in self.starts(pattern, at) {
            self.grow(pattern, (None, to, at), (position, time), &mut begun, &mut done);
        }
        self.runs = kept;
        self.runs.append(&mut begun);
        done.sort_by_cached_key(|node| self.path(*node));
        let mut done = VecDeque::from(done);
        while let Some(node) = done.pop_front() {
            tell(Detected::Match(self.matched(pattern, Some(node))));
            let dropped = self.dropped_by(pattern, node);
            self.runs.retain(|run| !dropped.contains(&run.start));
            done.retain(|node| !dropped.contains(&self.start(*node)));
        }
    }

    /// The stages that take an event as the first of a match.
    fn starts(&self, pattern: &Pattern<E>, at: u32) -> Vec<u32> {
        let event = &self.events[at as usize].event;
        let nothing = self.matched(pattern, None);
        let mut starts = Vec::new();
        for (number, stage) in pattern.stages.iter().enumerate() {
            let fits = (stage.condition)(event, &nothing);
            if fits {
                starts.push(number as u32);
            }
            // A later stage would leave out an event that a greedy one takes.
            if fits && stage.greedy || !stage.optional {
                break;
            }
        }
        starts
    }

    /// What an event makes of the waits of a run. Returns the stages that take it.
    fn step(&self, pattern: &Pattern<E>, run: &mut Run, at: u32) -> Vec<u32> {
        let event = &self.events[at as usize].event;
        let matched = self.matched(pattern, Some(run.node));
        let stage = self.nodes[run.node as usize].stage;
        let fresh = std::mem::replace(&mut run.fresh, false);
        let bad = |guard: &Guard<E>| (fresh || !guard.next) && (guard.condition)(event, &matched);
        let end = pattern.stages.len() as u32;
        let mut taken = Vec::new();
        let mut guarded = stage;
        let mut over = false;
        run.waits.retain(|to| {
            while guarded < *to && !over {
                guarded += 1;
                let guards = pattern.stages.get(guarded as usize).map(|stage| &stage.guards);
                over |= guards.unwrap_or(&pattern.trailing).iter().any(bad);
            }
            if over || *to == end {
                return !over;
            }
            let waited = &pattern.stages[*to as usize];
            let contiguity = if *to == stage { waited.inner } else { waited.contiguity };
            if !(waited.condition)(event, &matched) {
                return contiguity != Contiguity::Strict;
            }
            taken.push(*to);
            over = waited.greedy;
            contiguity == Contiguity::Any
        });
        taken
    }

    /// Adds an event in a stage behind a node, and begins the run that goes on from there.
    fn grow(
        &mut self,
        pattern: &Pattern<E>,
        (before, stage, event): (Option<u32>, u32, u32),
        (start, since): (u64, i64),
        begun: &mut Vec<Run>,
        done: &mut Vec<u32>,
    ) {
        let earlier = before.map(|node| self.nodes[node as usize]);
        let same = earlier.filter(|node| node.stage == stage);
        let count = same.map_or(0, |node| node.count).saturating_add(1);
        let node = self.nodes.len() as u32;
        self.nodes.push(Node { before, event, stage, count });
        if self.is_complete(pattern, node) && pattern.trailing.is_empty() {
            done.push(node);
        }
        let waits = waits(pattern, stage, count);
        if !waits.is_empty() {
            begun.push(Run { node, start, since, waits, fresh: true });
        }
    }

    /// Whether a match may end with this node.
    fn is_complete(&self, pattern: &Pattern<E>, node: u32) -> bool {
        let Node { stage, count, .. } = self.nodes[node as usize];
        count >= pattern.stages[stage as usize].least && pattern.may_end_behind(stage as usize)
    }

    /// Ends the runs whose time is over at `now`.
    fn expire(&mut self, pattern: &Pattern<E>, now: i64, tell: Tell<'_, E>) {
        let Some(within) = pattern.within else { return };
        let is_over = |run: &Run| run.since.saturating_add(within) <= now;
        if !self.runs.iter().any(is_over) {
            return;
        }
        let (mut over, kept): (Vec<Run>, Vec<Run>) =
            std::mem::take(&mut self.runs).into_iter().partition(is_over);
        self.runs = kept;
        over.sort_by_cached_key(|run| (run.since, self.path(run.node)));
        let mut over = VecDeque::from(over);
        while let Some(run) = over.pop_front() {
            let matched = self.matched(pattern, Some(run.node));
            if run.waits.last().copied() == Some(pattern.stages.len() as u32) {
                tell(Detected::Match(matched));
                let dropped = self.dropped_by(pattern, run.node);
                self.runs.retain(|run| !dropped.contains(&run.start));
                over.retain(|run| !dropped.contains(&run.start));
            } else if !(self.is_complete(pattern, run.node) && pattern.trailing.is_empty()) {
                // What has matched and could have gone on has not failed.
                tell(Detected::TimedOut(matched));
            }
        }
    }

    /// The positions from which on partial matches are dropped when this one is told.
    fn dropped_by(&self, pattern: &Pattern<E>, node: u32) -> std::ops::Range<u64> {
        let start = self.start(node);
        let path = || self.path(node).into_iter();
        let is = |name: &str, stage: u32| pattern.stages[stage as usize].name == name;
        let end = match &pattern.skip {
            Skip::No => None,
            Skip::ToNext => Some(start + 1),
            Skip::PastLastEvent => path().next_back().map(|(position, _)| position + 1),
            Skip::ToFirst(name) => path().find(|(_, stage)| is(name, *stage)).map(|(at, _)| at),
            Skip::ToLast(name) => path().rfind(|(_, stage)| is(name, *stage)).map(|(at, _)| at),
        };
        start..end.unwrap_or(start)
    }

    /// The positions of the events that lead to a node, and their stages.
    fn path(&self, node: u32) -> Vec<(u64, u32)> {
        let nodes = std::iter::successors(Some(node), |node| self.nodes[*node as usize].before);
        let path = nodes.map(|node| {
            let Node { event, stage, .. } = self.nodes[node as usize];
            (self.events[event as usize].position, stage)
        });
        let mut path: Vec<_> = path.collect();
        path.reverse();
        path
    }

    fn start(&self, node: u32) -> u64 {
        let nodes = std::iter::successors(Some(node), |node| self.nodes[*node as usize].before);
        let first = nodes.last().unwrap_or(node);
        self.events[self.nodes[first as usize].event as usize].position
    }

    /// Removes what no run leads to.
    fn sweep(&mut self) {
        if self.runs.is_empty() {
            self.next = 0;
        }
        let mut nodes_used = vec![false; self.nodes.len()];
        let mut events_used = vec![false; self.events.len()];
        for run in &self.runs {
            let mut at = Some(run.node);
            while let Some(node) = at.filter(|node| !nodes_used[*node as usize]) {
                nodes_used[node as usize] = true;
                events_used[self.nodes[node as usize].event as usize] = true;
                at = self.nodes[node as usize].before;
            }
        }
        let moved = |used: &[bool]| {
            let places = used.iter().scan(0, |next, used| {
                let place = *next;
                *next += u32::from(*used);
                Some(place)
            });
            places.collect::<Vec<u32>>()
        };
        let (node_at, event_at) = (moved(&nodes_used), moved(&events_used));
        retain(&mut self.nodes, &nodes_used);
        retain(&mut self.events, &events_used);
        for node in &mut self.nodes {
            node.event = event_at[node.event as usize];
            node.before = node.before.map(|before| node_at[before as usize]);
        }
        for run in &mut self.runs {
            run.node = node_at[run.node as usize];
        }
    }
}

fn retain<T>(all: &mut Vec<T>, used: &[bool]) {
    let mut used = used.iter();
    all.retain(|_| used.next() == Some(&true));
}

/// The stages that may take an event behind one that `stage` has taken as its `count`th.
fn waits<E>(pattern: &Pattern<E>, stage: u32, count: u32) -> Vec<u32> {
    let taken = &pattern.stages[stage as usize];
    let mut waits = Vec::new();
    if count < taken.most {
        waits.push(stage);
    }
    if count < taken.least {
        return waits;
    }
    for (number, later) in pattern.stages.iter().enumerate().skip(stage as usize + 1) {
        waits.push(number as u32);
        if !later.optional {
            return waits;
        }
    }
    if !pattern.trailing.is_empty() {
        waits.push(pattern.stages.len() as u32);
    }
    waits
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_began_alike_is_kept_once_and_what_is_over_is_removed() {
        let pattern = Pattern::<char>::begin("a", |event| *event == 'a')
            .one_or_more()
            .followed_by("b", |event| *event == 'b')
            .within(Duration::from_millis(100));
        let mut partial = Partial::default();
        let mut matches = Vec::new();
        for time in 0..20 {
            partial.add(time, 'a');
        }
        partial.add(20, 'x');
        let mut tell = |detected: Detected<'_, char>| {
            if let Detected::Match(matched) = detected {
                matches.push(matched.events().len());
            }
        };
        partial.proceed(&pattern, 50, &mut tell);
        // One match may begin at each of 20 events, and has so many prefixes.
        assert_eq!((partial.runs.len(), partial.nodes.len()), (210, 210));
        assert_eq!(partial.events.len(), 20);
        partial.add(60, 'b');
        partial.proceed(&pattern, 60, &mut tell);
        assert_eq!(partial.runs.len(), 20, "only the longest of each may take more");
        assert_eq!(partial.event_due(), Some(99), "that which began at 0 ends first");
        partial.proceed(&pattern, 99, &mut tell);
        assert_eq!((partial.runs.len(), partial.event_due()), (19, Some(100)));
        partial.proceed(&pattern, 119, &mut tell);
        assert_eq!(partial.event_due(), None);
        assert!(partial.is_vacant() && partial.nodes.is_empty() && partial.events.is_empty());
        assert_eq!(matches.len(), 210);
    }
}
