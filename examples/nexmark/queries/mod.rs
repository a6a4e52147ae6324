//! The queries, and a number for each result: the sum of these numbers tells whether two runs had the same results, in whatever
//! order they came.
//!
//! The documentation of each query says what a result is, and of which fields, in which order, its number is made by
//! [`fold`](highwater::connect::workload::fold). Some queries emit changes: the number of a retraction is the negative of that of
//! the insertion, so that the sum is that of the results that hold in the end, whatever came before.

mod auctions;
mod joins;
mod simple;
mod statistics;
mod windows;

use std::marker::PhantomData;

use highwater::prelude::*;
use highwater_operators::{Aggregate, Change};

use crate::events::Event;

/// The queries that [`digests`] knows.
pub const QUERIES: [&str; 22] = [
    "q0", "q1", "q2", "q3", "q4", "q5", "q6", "q7", "q8", "q9", "q11", "q12", "q13", "q14", "q15",
    "q16", "q17", "q18", "q19", "q20", "q21", "q22",
];

/// The events, as a source of `records`.
pub fn source<'a>(job: &Job<'a>, records: u64) -> Stream<'a, Event> {
    let time = EventTime::monotonic(Event::time);
    job.source_with("events", Generator::new(records, Event::generate), time)
}

/// The results of a query, each as a number. `None` if there is no such query.
pub fn digests<'a>(query: &str, events: Stream<'a, Event>) -> Option<Stream<'a, u64>> {
    match query {
        "q0" | "q1" | "q2" | "q14" | "q21" | "q22" => simple::digests(query, events),
        "q3" | "q13" | "q20" => joins::digests(query, events),
        "q5" | "q7" | "q8" | "q11" | "q12" => windows::digests(query, events),
        "q4" | "q6" | "q9" | "q18" | "q19" => auctions::digests(query, events),
        "q15" | "q16" | "q17" => statistics::digests(query, events),
        _ => None,
    }
}

/// The number of a change, from that of its record.
fn number_of(change: Change<u64>) -> u64 {
    match change {
        Change::Insert(number) => number,
        Change::Retract(number) => number.wrapping_neg(),
    }
}

/// An aggregate of parts that are what they come to themselves: a record makes one, and any two make one.
#[derive(Clone)]
struct Parts<I, S, F, G> {
    /// What a record makes.
    of: F,
    /// Adds another part to one.
    add: G,
    types: PhantomData<fn(I) -> S>,
}

impl<I, S, F: Fn(I) -> S, G: Fn(&mut S, S)> Parts<I, S, F, G> {
    fn new(of: F, add: G) -> Self {
        Self { of, add, types: PhantomData }
    }
}

impl<I, S, F, G> Aggregate for Parts<I, S, F, G>
where
    I: Record,
    S: Record,
    F: Fn(I) -> S + 'static,
    G: Fn(&mut S, S) + 'static,
{
    type Input = I;
    type State = S;
    type Output = S;

    #[inline]
    fn create(&self, first: I) -> S {
        (self.of)(first)
    }

    #[inline]
    fn add(&self, state: &mut S, input: I) {
        (self.add)(state, (self.of)(input));
    }

    fn merge(&self, state: &mut S, other: S) {
        (self.add)(state, other);
    }

    fn result(&self, state: &S) -> S {
        state.clone()
    }
}
