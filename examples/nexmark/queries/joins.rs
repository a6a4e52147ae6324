//! Queries that put events beside others.

use highwater::connect::workload::{fold, mix};
use highwater::job::Blocking;
use highwater::prelude::*;
use highwater_operators::{LookupCache, LookupJoin};
use serde::{Deserialize, Serialize};

use crate::events::{Auction, Bid, Event, Person};

/// The results of a query of this module, each as a number.
pub(super) fn digests<'a>(query: &str, events: Stream<'a, Event>) -> Option<Stream<'a, u64>> {
    Some(match query {
        "q3" => local_items(events).map(|(seller, auction)| {
            fold([seller.id, seller.name, seller.city, seller.state, auction])
        }),
        "q13" => with_side_input(events)
            .map(|(bid, value)| fold([bid.auction, bid.bidder, bid.price, bid.time as u64, value])),
        "q20" => bids_with_auctions(events).map(|(bid, auction)| {
            let Bid { bidder, price, time, .. } = bid;
            let Auction { id, seller, reserve, expires, .. } = auction;
            fold([id, bidder, price, time as u64, seller, reserve, expires as u64])
        }),
        _ => return None,
    })
}

/// What is known of a key: the one record of it that all others belong to, or those that have come before it.
#[derive(Clone, Serialize, Deserialize)]
enum Known<L, R> {
    Waiting(Vec<R>),
    Here(L),
}

impl<L, R> Default for Known<L, R> {
    fn default() -> Self {
        Self::Waiting(Vec::new())
    }
}

/// Joins the left record of each key, of which there is one at the most, with all right ones. Less is kept than by the join of two
/// lists: a right record is kept only until the left one is there.
fn join_with_one<'a, L: Record, R: Record, O: Record>(
    name: &str,
    sides: KeyedStream<'a, u64, Either<L, R>>,
    pair: impl Fn(&L, R) -> Option<O> + 'static,
) -> Stream<'a, O> {
    let state = Value::<Known<L, R>>::new("known");
    sides.process(name, state, move |_, side, known, out| {
        let known = known.or_default();
        match (side, &mut *known) {
            (Either::Left(left), Known::Waiting(waiting)) => {
                let paired = waiting.drain(..).filter_map(|right| pair(&left, right));
                paired.for_each(|paired| out.emit(paired));
                *known = Known::Here(left);
            }
            (Either::Left(left), Known::Here(here)) => *here = left,
            (Either::Right(right), Known::Here(left)) => {
                pair(left, right).into_iter().for_each(|paired| out.emit(paired));
            }
            (Either::Right(right), Known::Waiting(waiting)) => waiting.push(right),
        }
    })
}

/// q3: who sells things of category 10 in California, Idaho and Oregon, whichever of the two comes first.
///
/// Result: the seller, and the auction. Number: identity, name, city and state of the seller, and the auction.
///
/// State: such people, and such auctions whose seller is none of these so far, for ever.
fn local_items(events: Stream<'_, Event>) -> Stream<'_, (Person, u64)> {
    let sides = events.flat_map(|event| match event {
        Event::Person(person) if (1..=3).contains(&person.state) => {
            Some((person.id, Either::Left(person)))
        }
        Event::Auction(auction) if auction.category == 10 => {
            Some((auction.seller, Either::Right(auction.id)))
        }
        _ => None,
    });
    join_with_one("local-items", sides.into_keyed(|side| side), |person: &Person, auction| {
        Some((*person, auction))
    })
}

/// The keys of the side input are below this.
const SIDE_INPUT: u64 = 10_000;

/// The side input of q13, a table that does not change: the value for a key, which is its hash. Multiples of three have none.
fn side_input(key: u64) -> Option<u64> {
    (!key.is_multiple_of(3)).then(|| mix(key))
}

/// q13: the bids, each with the value of the [`side_input`] for the last four digits of the auction. Those without a value are left
/// out.
///
/// Result: the bid, and the value. Number: auction, bidder, price, time and value.
///
/// State: the bids that are being looked up.
fn with_side_input(events: Stream<'_, Event>) -> Stream<'_, (Bid, u64)> {
    // As if it were elsewhere: calls that may block, on threads of their own.
    let table = Blocking::new(2, |key| Ok(side_input(key)));
    events
        .flat_map(Event::bid)
        .lookup_join(
            "side-input",
            |bid| bid.auction % SIDE_INPUT,
            table,
            LookupCache::entries(SIDE_INPUT as usize),
            AsyncSettings::unordered(),
        )
        .flat_map(|(bid, value)| value.map(|value| (bid, value)))
}

/// q20: the bids for auctions of category 10, with these, whichever of the two comes first.
///
/// Result: the bid, and the auction. Number: auction, bidder, price and time of the bid; seller and reserve of the auction, and when
/// it ends.
///
/// State: all auctions, and bids whose auction has not come yet, for ever.
fn bids_with_auctions(events: Stream<'_, Event>) -> Stream<'_, (Bid, Auction)> {
    let sides = events.flat_map(|event| match event {
        Event::Person(_) => None,
        // Those of other categories as well: otherwise their bids would wait for ever.
        Event::Auction(auction) => Some((auction.id, Either::Left(auction))),
        Event::Bid(bid) => Some((bid.auction, Either::Right(bid))),
    });
    join_with_one("bids-with-auctions", sides.into_keyed(|side| side), |auction: &Auction, bid| {
        (auction.category == 10).then_some((bid, *auction))
    })
}
