//! Pattern matching (complex event processing): sequences of events of a key.
//!
//! # Guarantee
//! Events are looked at in the order of their times, and those of one time in the order of arrival: each waits until the
//! watermark has reached it. So matches are a function of the events of the key alone, as long as no two of one time come in
//! another order. Every match is emitted once, when the watermark has reached its last event, or the end of the
//! time in which something must not come; it is not late behind the operator.
//!
//! A late event, whose time the watermark has passed when it arrives, is no part of any match; the function gets it as
//! [`Detected::Late`].
//!
//! # State
//! For each key: the events that the watermark has not reached, and the partial matches, which share their events and
//! their beginnings. Partial matches are bounded by [`within`](Pattern::within), and gone with it; a pattern
//! without it keeps what has begun for ever. Combinations grow fast: a stage that takes any number of events has one partial
//! match for each event that it might have ended with, one with [`allow_combinations`](Pattern::allow_combinations) for each
//! subset.
//!
//! Source: the patterns of Flink's CEP library. Differences: a time that a guard needs is compulsory by the types, a skip
//! strategy never fails the job, and an event that is what must not come ends a match even if it would also go on with it.

mod nfa;
mod pattern;

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use highwater::prelude::*;

pub use nfa::Matched;
use nfa::Partial;
pub use pattern::{Pattern, Skip, Unfinished};

/// What is found in the events of a key.
pub enum Detected<'a, E> {
    /// A match.
    Match(Matched<'a, E>),
    /// What had begun to match and was waiting for more when its time was over.
    TimedOut(Matched<'a, E>),
    /// An event that came late.
    Late(E),
}

impl<E> fmt::Debug for Detected<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Match(_) => "Match",
            Self::TimedOut(_) => "TimedOut",
            Self::Late(_) => "Late",
        })
    }
}

/// Finds patterns in the events of each key.
///
/// # Examples
/// A stolen card is tried with a small payment, and then, within a minute, used for a large one:
/// ```
/// use std::time::Duration;
/// use highwater::config::JobConfig;
/// use highwater::ids::Name;
/// use highwater::job::{JobHandle, execute};
/// use highwater::prelude::*;
/// use highwater_operators::{Detect, Detected, Pattern, Skip};
///
/// /// Time in milliseconds, card, amount.
/// type Payment = (i64, u64, u64);
///
/// let collect = Collect::new();
/// let seen = collect.handle();
/// let config = JobConfig::new(Name::new("fraud")?);
/// execute(config, &JobHandle::default(), move |job| {
///     let payments: Vec<Payment> = vec![
///         (1_000, 7, 1),
///         (2_000, 8, 2),
///         (5_000, 7, 30),
///         (20_000, 7, 900),
///         (90_000, 8, 950), // Too long after.
///     ];
///     let fraud = Pattern::begin("trial", |(_, _, amount): &Payment| *amount < 5)
///         .followed_by("theft", |(_, _, amount)| *amount > 500)
///         .and_where(|(_, _, amount), before| {
///             before.first("trial").is_some_and(|(_, _, trial)| *amount > 100 * trial)
///         })
///         .within(Duration::from_secs(60))
///         .skip(Skip::PastLastEvent);
///     job.source_with("payments", Collection::new(payments), EventTime::monotonic(|p: &Payment| p.0))
///         .key_by(|(_, card, _)| *card)
///         .detect("fraud", fraud, |(time, _, _)| *time, |card, detected| match detected {
///             Detected::Match(fraud) => {
///                 let stolen = fraud.get("theft").iter().map(|(_, _, amount)| amount).sum::<u64>();
///                 Some(format!("card {card}: {stolen} stolen"))
///             }
///             Detected::TimedOut(trial) => {
///                 Some(format!("card {card}: {} small payment", trial.get("trial").len()))
///             }
///             Detected::Late(payment) => Some(format!("card {card}: late, {payment:?}")),
///         })
///         .sink("out", collect.clone());
///     Ok(())
/// })?;
/// let mut seen = seen.committed();
/// seen.sort();
/// assert_eq!(seen, ["card 7: 900 stolen", "card 8: 1 small payment"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "CEP")]
#[doc(alias = "MATCH_RECOGNIZE")]
pub trait Detect<'scope, K: Key, E: Record>: Sized {
    /// Finds `pattern` in the events of each key, and emits what `select` makes of what is found.
    ///
    /// `timestamp` gives an event's time in milliseconds, and should be what the source was given.
    fn detect<O, I>(
        self,
        name: &str,
        pattern: Pattern<E>,
        timestamp: impl Fn(&E) -> i64 + 'static,
        select: impl FnMut(&K, Detected<'_, E>) -> I + 'static,
    ) -> Stream<'scope, O>
    where
        O: Record,
        I: IntoIterator<Item = O>;
}

impl<'scope, K: Key, E: Record> Detect<'scope, K, E> for KeyedStream<'scope, K, E> {
    fn detect<O, I>(
        self,
        name: &str,
        pattern: Pattern<E>,
        timestamp: impl Fn(&E) -> i64 + 'static,
        select: impl FnMut(&K, Detected<'_, E>) -> I + 'static,
    ) -> Stream<'scope, O>
    where
        O: Record,
        I: IntoIterator<Item = O>,
    {
        let select = Rc::new(RefCell::new(select));
        let select_late = Rc::clone(&select);
        self.process_scheduled(
            name,
            Value::<Partial<E>>::new("partial-matches"),
            move |key, event, partial, context| match timestamp(&event) {
                late if late <= context.watermark() => {
                    let selected = (*select_late.borrow_mut())(key, Detected::Late(event));
                    selected.into_iter().for_each(|record| context.emit(record));
                }
                time => partial.add(time, event),
            },
            move |key, _, partial, context| {
                let select = &mut *select.borrow_mut();
                partial.proceed(&pattern, context.watermark(), &mut |detected| {
                    select(key, detected).into_iter().for_each(|record| context.emit(record));
                });
            },
        )
    }
}
