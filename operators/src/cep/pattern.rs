//! Patterns: what is looked for in the events of a key.

use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::time::Duration;

use crate::cep::nfa::Matched;
use crate::duration::some_milliseconds;

/// Whether an event is one that is looked for, given what was matched before it.
pub(super) type Condition<E> = Box<dyn Fn(&E, &Matched<'_, E>) -> bool>;

/// How the events of a match follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contiguity {
    /// The very next event.
    Strict,
    /// The first event from there on that fits.
    Relaxed,
    /// Any event from there on that fits.
    Any,
}

/// What must not come between two stages.
pub(super) struct Guard<E> {
    /// Only right behind the earlier stage; otherwise anywhere up to the later one.
    pub(super) next: bool,
    pub(super) condition: Condition<E>,
}

/// One stage of a pattern.
pub(super) struct Stage<E> {
    pub(super) name: String,
    pub(super) condition: Condition<E>,
    /// How it follows the stage before it.
    pub(super) contiguity: Contiguity,
    /// What must not come before it.
    pub(super) guards: Vec<Guard<E>>,
    /// How many events it takes, unless it takes none.
    pub(super) least: u32,
    pub(super) most: u32,
    pub(super) optional: bool,
    pub(super) greedy: bool,
    /// How its own events follow each other.
    pub(super) inner: Contiguity,
}

/// What becomes of other partial matches when a match is found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Skip {
    /// Nothing: all matches are found.
    #[default]
    No,
    /// Those that began with the same event are dropped.
    ToNext,
    /// Those that began with one of its events, or between them, are dropped.
    PastLastEvent,
    /// Those that began before the match's first event of this stage, and not before the match itself, are dropped. If the
    /// match has no event of the stage, nothing is dropped.
    ToFirst(String),
    /// As `ToFirst`, with the last event of the stage.
    ToLast(String),
}

/// What is looked for in the events of a key: stages that follow each other. Begin with [`Pattern::begin`].
///
/// # Contiguity
/// | method | the stage's first event is |
/// |---|---|
/// | [`next`](Self::next) | the very next event of the key |
/// | [`followed_by`](Self::followed_by) | the first one from there on that fits; others are passed over |
/// | [`followed_by_any`](Self::followed_by_any) | any one from there on that fits; each makes a match of its own |
///
/// Events of one stage that takes several follow each other as by `followed_by`; see [`consecutive`](Self::consecutive)
/// and [`allow_combinations`](Self::allow_combinations). Every event may begin a match.
pub struct Pattern<E> {
    pub(super) stages: Vec<Stage<E>>,
    /// What must not come behind the last stage.
    pub(super) trailing: Vec<Guard<E>>,
    /// Units: milliseconds.
    pub(super) within: Option<i64>,
    pub(super) skip: Skip,
}

impl<E> fmt::Debug for Pattern<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stages: Vec<&str> = self.stages.iter().map(|stage| stage.name.as_str()).collect();
        f.debug_struct("Pattern").field("stages", &stages).finish_non_exhaustive()
    }
}

impl<E: 'static> Pattern<E> {
    /// A pattern of one stage, which takes one event for which `condition` holds.
    ///
    /// Conditions must depend on their arguments only.
    #[must_use]
    pub fn begin(name: &str, condition: impl Fn(&E) -> bool + 'static) -> Self {
        let pattern =
            Self { stages: Vec::new(), trailing: Vec::new(), within: None, skip: Skip::No };
        pattern.stage(name, Contiguity::Any, Vec::new(), condition)
    }

    fn stage(
        mut self,
        name: &str,
        contiguity: Contiguity,
        guards: Vec<Guard<E>>,
        condition: impl Fn(&E) -> bool + 'static,
    ) -> Self {
        self.stages.push(Stage {
            name: name.to_owned(),
            condition: Box::new(move |event, _| condition(event)),
            contiguity,
            guards,
            least: 1,
            most: 1,
            optional: false,
            greedy: false,
            inner: Contiguity::Relaxed,
        });
        self
    }

    fn last(&mut self) -> &mut Stage<E> {
        self.stages.last_mut().expect("a pattern begins with a stage")
    }

    /// A further stage, whose first event is the very next one.
    #[must_use]
    pub fn next(self, name: &str, condition: impl Fn(&E) -> bool + 'static) -> Self {
        self.stage(name, Contiguity::Strict, Vec::new(), condition)
    }

    /// A further stage, whose first event is the first one that fits.
    #[must_use]
    pub fn followed_by(self, name: &str, condition: impl Fn(&E) -> bool + 'static) -> Self {
        self.stage(name, Contiguity::Relaxed, Vec::new(), condition)
    }

    /// A further stage, whose first event is any one that fits.
    #[must_use]
    pub fn followed_by_any(self, name: &str, condition: impl Fn(&E) -> bool + 'static) -> Self {
        self.stage(name, Contiguity::Any, Vec::new(), condition)
    }

    /// The event right behind the last stage must not be one of these.
    pub fn not_next(self, condition: impl Fn(&E) -> bool + 'static) -> Unfinished<E> {
        Unfinished { pattern: self, guards: Vec::new() }.not_next(condition)
    }

    /// None of these may come between the last stage and the next, nor be the event that would begin the next; or, if
    /// [`within`](Unfinished::within) follows, until the time is over.
    pub fn not_followed_by(self, condition: impl Fn(&E) -> bool + 'static) -> Unfinished<E> {
        Unfinished { pattern: self, guards: Vec::new() }.not_followed_by(condition)
    }

    /// A further condition on events of the last stage, which also sees what was matched before them.
    #[must_use]
    pub fn and_where(mut self, condition: impl Fn(&E, &Matched<'_, E>) -> bool + 'static) -> Self {
        let last = self.last();
        let always: Condition<E> = Box::new(|_, _| true);
        let before = std::mem::replace(&mut last.condition, always);
        last.condition =
            Box::new(move |event, matched| before(event, matched) && condition(event, matched));
        self
    }

    /// The last stage takes so many events: `times(3..=3)`, `times(2..5)`, `times(2..)`. A range that begins with 0 makes
    /// the stage [optional](Self::optional) as well. The largest number is taken for the least one if it is less.
    #[must_use]
    pub fn times(mut self, range: impl RangeBounds<u32>) -> Self {
        let least = match range.start_bound() {
            Bound::Included(least) => *least,
            Bound::Excluded(less) => less.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let most = match range.end_bound() {
            Bound::Included(most) => *most,
            Bound::Excluded(more) => more.saturating_sub(1),
            Bound::Unbounded => u32::MAX,
        };
        let last = self.last();
        last.optional |= least == 0;
        last.least = least.max(1);
        last.most = most.max(last.least);
        self
    }

    /// The last stage takes one event or more. Each number of them makes a match of its own.
    #[must_use]
    pub fn one_or_more(self) -> Self {
        self.times(1..)
    }

    /// The last stage may take no event at all.
    #[must_use]
    pub fn optional(mut self) -> Self {
        self.last().optional = true;
        self
    }

    /// The last stage takes as many events as it can: as soon as there is one more for it, matches that would have gone on
    /// to a later stage without that event are dropped. At the end of a pattern it changes nothing: a match is
    /// emitted as soon as it is one.
    #[must_use]
    pub fn greedy(mut self) -> Self {
        self.last().greedy = true;
        self
    }

    /// Events of the last stage follow each other without any other between them.
    #[must_use]
    pub fn consecutive(mut self) -> Self {
        self.last().inner = Contiguity::Strict;
        self
    }

    /// Any events of the last stage's may be left out: every combination makes a match of its own. Their number may be
    /// two to the power of the number of events: bound it by [`within`](Self::within).
    #[must_use]
    pub fn allow_combinations(mut self) -> Self {
        self.last().inner = Contiguity::Any;
        self
    }

    /// All events of a match are less than this apart, in event time. What is unfinished then has timed out. Counts in whole
    /// milliseconds, rounded up. Without it, what has begun is kept for ever.
    #[must_use]
    pub fn within(mut self, within: Duration) -> Self {
        self.within = Some(some_milliseconds(within, i64::MAX));
        self
    }

    /// What becomes of other partial matches when a match is found.
    #[must_use]
    pub fn skip(mut self, skip: Skip) -> Self {
        self.skip = skip;
        self
    }
}

impl<E> Pattern<E> {
    /// Whether nothing has to come behind stage `at` and what it took.
    pub(super) fn may_end_behind(&self, at: usize) -> bool {
        self.stages[at + 1..].iter().all(|stage| stage.optional)
    }
}

/// A pattern with something that must not come, which needs to know until when: the next stage, or the end of the time.
pub struct Unfinished<E> {
    pattern: Pattern<E>,
    guards: Vec<Guard<E>>,
}

impl<E> fmt::Debug for Unfinished<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unfinished").field("pattern", &self.pattern).finish_non_exhaustive()
    }
}

impl<E: 'static> Unfinished<E> {
    fn guard(mut self, next: bool, condition: impl Fn(&E) -> bool + 'static) -> Self {
        let condition: Condition<E> = Box::new(move |event, _| condition(event));
        self.guards.push(Guard { next, condition });
        self
    }

    /// As [`Pattern::not_next`].
    #[must_use]
    pub fn not_next(self, condition: impl Fn(&E) -> bool + 'static) -> Self {
        self.guard(true, condition)
    }

    /// As [`Pattern::not_followed_by`].
    #[must_use]
    pub fn not_followed_by(self, condition: impl Fn(&E) -> bool + 'static) -> Self {
        self.guard(false, condition)
    }

    /// As [`Pattern::followed_by`].
    #[must_use]
    pub fn followed_by(self, name: &str, condition: impl Fn(&E) -> bool + 'static) -> Pattern<E> {
        self.pattern.stage(name, Contiguity::Relaxed, self.guards, condition)
    }

    /// As [`Pattern::followed_by_any`].
    #[must_use]
    pub fn followed_by_any(
        self,
        name: &str,
        condition: impl Fn(&E) -> bool + 'static,
    ) -> Pattern<E> {
        self.pattern.stage(name, Contiguity::Any, self.guards, condition)
    }

    /// The pattern ends here: it matches if none of these has come when the time is over. Counts as [`Pattern::within`].
    #[must_use]
    pub fn within(mut self, within: Duration) -> Pattern<E> {
        self.pattern.trailing = self.guards;
        self.pattern.within(within)
    }
}
