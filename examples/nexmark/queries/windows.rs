//! Queries of windows of some seconds.

use std::time::Duration;

use highwater::connect::workload::fold;
use highwater::prelude::*;
use highwater_operators::{Aggregate, AllWindows, Count, KeyedWindows, Window, Windows};

use super::Parts;
use crate::events::{Bid, Event};

const TEN_SECONDS: Duration = Duration::from_secs(10);
const TWO_SECONDS: Duration = Duration::from_secs(2);

/// The results of a query of this module, each as a number.
pub(super) fn digests<'a>(query: &str, events: Stream<'a, Event>) -> Option<Stream<'a, u64>> {
    Some(match query {
        "q5" => hot_items(events)
            .map(|(window, auction, count)| fold([window.start as u64, auction, count])),
        "q7" => highest_bids(events).map(|(window, (auction, bidder, price))| {
            fold([window.start as u64, auction, bidder, price])
        }),
        "q8" => new_sellers(events).map(|(window, id, name)| fold([window.start as u64, id, name])),
        "q11" => sessions(events).map(|(bidder, session, bids)| {
            fold([bidder, session.start as u64, session.end as u64, bids])
        }),
        "q12" => {
            bids_by_the_clock(events).map(|(bidder, _, bids)| fold([bidder]).wrapping_mul(bids))
        }
        _ => return None,
    })
}

/// The records with the greatest number, all of them if there are several.
#[derive(Clone, Copy)]
struct Greatest;

/// Numbers, and what has them.
type Numbered<T> = (Window, u64, T);

impl Aggregate for Greatest {
    type Input = Numbered<u64>;
    type State = (u64, Vec<u64>);
    type Output = (u64, Vec<u64>);

    fn create(&self, (_, number, what): Self::Input) -> Self::State {
        (number, vec![what])
    }

    fn add(&self, state: &mut Self::State, (_, number, what): Self::Input) {
        if number >= state.0 {
            if number > state.0 {
                *state = (number, Vec::new());
            }
            state.1.push(what);
        }
    }

    fn merge(&self, state: &mut Self::State, other: Self::State) {
        match other.0.cmp(&state.0) {
            std::cmp::Ordering::Greater => *state = other,
            std::cmp::Ordering::Equal => state.1.extend(other.1),
            std::cmp::Ordering::Less => {}
        }
    }

    fn result(&self, state: &Self::State) -> Self::Output {
        state.clone()
    }
}

/// q5: the auctions with the most bids of the last ten seconds, every two; all of them if there are several.
///
/// Result: window, auction, bids. Number: the start of the window, and the others.
fn hot_items(events: Stream<'_, Event>) -> Stream<'_, (Window, u64, u64)> {
    events
        .flat_map(|event| event.bid().map(|bid| (bid.auction, bid.time)))
        .into_keyed(|bid| bid)
        .window(Windows::sliding(TEN_SECONDS, TWO_SECONDS), |time| *time)
        .aggregate("bids", Count::new())
        .map(|(auction, window, bids)| (window, bids, auction))
        // All results of a window end with it, in the last slide.
        .window_all(Windows::tumbling(TWO_SECONDS), |(window, ..)| window.end - 1)
        .aggregate("hottest", Greatest)
        .flat_map(|(slide, (bids, auctions))| {
            let window = Window { start: slide.end - 10_000, end: slide.end };
            auctions.into_iter().map(move |auction| (window, auction, bids))
        })
}

/// The bids with the highest price: auction, bidder, price.
#[derive(Clone, Copy)]
struct Highest;

impl Aggregate for Highest {
    type Input = Bid;
    type State = Vec<(u64, u64, u64)>;
    type Output = Vec<(u64, u64, u64)>;

    fn create(&self, bid: Bid) -> Self::State {
        vec![(bid.auction, bid.bidder, bid.price)]
    }

    fn add(&self, state: &mut Self::State, bid: Bid) {
        if bid.price >= state[0].2 {
            if bid.price > state[0].2 {
                state.clear();
            }
            state.push((bid.auction, bid.bidder, bid.price));
        }
    }

    fn merge(&self, state: &mut Self::State, other: Self::State) {
        match other[0].2.cmp(&state[0].2) {
            std::cmp::Ordering::Greater => *state = other,
            std::cmp::Ordering::Equal => state.extend(other),
            std::cmp::Ordering::Less => {}
        }
    }

    fn result(&self, state: &Self::State) -> Self::Output {
        state.clone()
    }
}

/// q7: the highest bids of every ten seconds; all of them if there are several.
///
/// Result: window; auction, bidder, price. Number: the start of the window, and the others.
fn highest_bids(events: Stream<'_, Event>) -> Stream<'_, (Window, (u64, u64, u64))> {
    events
        .flat_map(Event::bid)
        .window_all(Windows::tumbling(TEN_SECONDS), |bid| bid.time)
        .aggregate("highest", Highest)
        .flat_map(|(window, bids)| bids.into_iter().map(move |bid| (window, bid)))
}

/// q8: who has registered and put something up for auction in the same ten seconds.
///
/// Result: window, identity, name. Number: the start of the window, and the others.
fn new_sellers(events: Stream<'_, Event>) -> Stream<'_, (Window, u64, u64)> {
    // The name of who has registered, and whether something was put up for auction.
    let seller = Parts::new(
        |(_, name): (i64, Option<u64>)| (name, name.is_none()),
        |seller: &mut (Option<u64>, bool), other| {
            seller.0 = seller.0.or(other.0);
            seller.1 |= other.1;
        },
    );
    events
        .flat_map(|event| match event {
            // A name, if it is a registration.
            Event::Person(person) => Some((person.id, (person.time, Some(person.name)))),
            Event::Auction(auction) => Some((auction.seller, (auction.time, None))),
            Event::Bid(_) => None,
        })
        .into_keyed(|happened| happened)
        .window(Windows::tumbling(TEN_SECONDS), |(time, _)| *time)
        .aggregate_with("new-sellers", seller, |id, window, (name, sells), out| {
            if let (Some(name), true) = (name, sells) {
                out.emit((window, *id, name));
            }
        })
}

/// The bids, by bidder.
fn by_bidder(events: Stream<'_, Event>) -> KeyedStream<'_, u64, i64> {
    events.flat_map(|event| event.bid().map(|bid| (bid.bidder, bid.time))).into_keyed(|bid| bid)
}

/// q11: how often each bidder bids in a session, which ends when the bidder has not bid for ten seconds. Bids exactly ten seconds
/// apart are in one session. It is as long as from the first bid until ten seconds after the last.
///
/// Result: bidder, session, bids. Number: bidder, start and end of the session, bids.
fn sessions(events: Stream<'_, Event>) -> Stream<'_, (u64, Window, u64)> {
    by_bidder(events)
        .window(Windows::session(TEN_SECONDS), |time| *time)
        .aggregate("sessions", Count::new())
}

/// q12: how often each bidder bids in ten seconds of processing time. Which bids are in one window is up to the clock; what the bids of a
/// bidder come to in all windows is not.
///
/// Result: bidder, window, bids. Number: that of the bidder, times the bids; so the sum of the numbers is up to the events only.
fn bids_by_the_clock(events: Stream<'_, Event>) -> Stream<'_, (u64, Window, u64)> {
    by_bidder(events)
        .window_by_processing_time(Windows::tumbling(TEN_SECONDS))
        .aggregate("bids-by-the-clock", Count::new())
}
