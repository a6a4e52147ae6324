//! Queries of how auctions go: who wins, what for, and who else has bid.

use std::cmp::Reverse;

use highwater::connect::workload::fold;
use highwater::prelude::*;
use highwater_operators::{Aggregate, Average, Change, RunningAggregate, Top};
use serde::{Deserialize, Serialize};

use super::number_of;
use crate::events::{Auction, Bid, Event};

/// The results of a query of this module, each as a number.
pub(super) fn digests<'a>(query: &str, events: Stream<'a, Event>) -> Option<Stream<'a, u64>> {
    Some(match query {
        "q4" => averages_of_categories(events).map(|change| {
            number_of(change.map(|(category, average)| fold([category, average.to_bits()])))
        }),
        "q6" => averages_of_sellers(events)
            .map(|change| number_of(change.map(|(seller, average)| fold([seller, average])))),
        "q9" => winning_bids(events).map(|(auction, bid)| {
            let Auction { id, seller, category, expires, .. } = auction;
            fold([id, seller, category, bid.bidder, bid.price, bid.time as u64, expires as u64])
        }),
        "q18" => last_bids(events).map(|change| number_of(change.map(bid_number))),
        "q19" => highest_of_auctions(events).map(|change| number_of(change.map(bid_number))),
        _ => return None,
    })
}

fn bid_number(Bid { auction, bidder, price, channel, url, time }: Bid) -> u64 {
    fold([auction, bidder, price, channel, url, time as u64])
}

/// The order of bids: the greatest is the highest; of one price, the earliest; of one time, that of the least bidder, channel and URL.
type BidRank = (u64, Reverse<(i64, u64, u64, u64)>);

fn rank(bid: &Bid) -> BidRank {
    (bid.price, Reverse((bid.time, bid.bidder, bid.channel, bid.url)))
}

/// What is known of an auction until it has ended.
#[derive(Clone, Default, Serialize, Deserialize)]
enum Lot {
    #[default]
    Nothing,
    /// Bids that have come before it. There is one at least.
    Announced(Vec<Bid>),
    /// The auction, and the bid that would win.
    Open(Auction, Option<Bid>),
}

impl Lot {
    fn offer(auction: &Auction, best: &mut Option<Bid>, bid: Bid) {
        let counts =
            (auction.time..=auction.expires).contains(&bid.time) && bid.price >= auction.reserve;
        if counts && best.as_ref().is_none_or(|best| rank(best) < rank(&bid)) {
            *best = Some(bid);
        }
    }

    fn bid(&mut self, bid: Bid, watermark: i64) {
        match self {
            Self::Open(auction, best) => Self::offer(auction, best, bid),
            // An auction of that time or before would be here: it is over, or begins later.
            _ if bid.time <= watermark => {}
            Self::Announced(bids) => bids.push(bid),
            Self::Nothing => *self = Self::Announced(vec![bid]),
        }
    }

    fn open(&mut self, auction: Auction) {
        let mut best = None;
        if let Self::Announced(bids) = std::mem::take(self) {
            bids.into_iter().for_each(|bid| Self::offer(&auction, &mut best, bid));
        }
        *self = Self::Open(auction, best);
    }

    /// Returns the auction if it has ended and was won.
    fn pass(&mut self, watermark: i64) -> Option<(Auction, Bid)> {
        match self {
            Self::Nothing => None,
            Self::Announced(bids) => {
                bids.retain(|bid| bid.time > watermark);
                if bids.is_empty() {
                    *self = Self::Nothing;
                }
                None
            }
            Self::Open(auction, _) if auction.expires > watermark => None,
            Self::Open(auction, best) => {
                let won = best.map(|bid| (*auction, bid));
                *self = Self::Nothing;
                won
            }
        }
    }
}

impl Scheduled for Lot {
    fn event_due(&self) -> Option<i64> {
        match self {
            Self::Nothing => None,
            Self::Announced(bids) => bids.iter().map(|bid| bid.time).min(),
            Self::Open(auction, _) => Some(auction.expires),
        }
    }

    fn is_vacant(&self) -> bool {
        matches!(self, Self::Nothing)
    }
}

/// q9: the auctions that are sold, and to whom: to the highest bid from the auction's beginning to its end, both included, that is
/// at least the reserve. Of bids of one price the earliest wins; of those of one time, that of the least bidder, channel and URL.
/// An auction ends when the watermark reaches its end, at the end of the input at the latest; without such a bid it is not sold. A late
/// bid counts if its auction has not ended yet.
///
/// Result: the auction, and the bid. Number: auction, seller, category, bidder, price, time of the bid, end of the auction.
///
/// State: auctions that have not ended, each with one bid. A bid for an auction that has not come is kept until the watermark reaches
/// the time of the bid: an auction that comes after that has begun after it.
fn winning_bids(events: Stream<'_, Event>) -> Stream<'_, (Auction, Bid)> {
    events
        .flat_map(|event| match event {
            Event::Person(_) => None,
            Event::Auction(auction) => Some((auction.id, Either::Left(auction))),
            Event::Bid(bid) => Some((bid.auction, Either::Right(bid))),
        })
        .into_keyed(|event| event)
        .process_scheduled(
            "winning-bids",
            Value::<Lot>::new("lot"),
            |_, event, lot, out| match event {
                Either::Left(auction) => lot.open(auction),
                Either::Right(bid) => lot.bid(bid, out.watermark()),
            },
            |_, _, lot, out| {
                let won = lot.pass(out.watermark());
                won.into_iter().for_each(|won| out.emit(won));
            },
        )
}

/// q4: the average price of each category, over the [winning bids](winning_bids) so far.
///
/// Result: changes of category and average. Number: the category, and the bits of the average. The average is the exact sum divided
/// by the count, as a 64-bit floating-point number, so it does not depend on the order of the sales.
///
/// State: as q9, and a sum for each category.
fn averages_of_categories(events: Stream<'_, Event>) -> Stream<'_, Change<(u64, f64)>> {
    winning_bids(events)
        .into_keyed(|(auction, bid)| (auction.category, bid.price))
        .aggregate_changes("averages-of-categories", Average::new())
}

/// The average of the last ten prices, rounded down.
#[derive(Clone, Copy)]
struct LastTen;

/// When an auction has ended, its number, and its price.
type Sold = (i64, u64, u64);

impl LastTen {
    const COUNT: usize = 10;
}

impl Aggregate for LastTen {
    type Input = Sold;
    /// In order, ten at the most.
    type State = Vec<Sold>;
    type Output = u64;

    fn create(&self, first: Sold) -> Vec<Sold> {
        vec![first]
    }

    fn add(&self, last: &mut Vec<Sold>, sold: Sold) {
        last.insert(last.partition_point(|other| *other < sold), sold);
        if last.len() > Self::COUNT {
            last.remove(0);
        }
    }

    fn merge(&self, last: &mut Vec<Sold>, other: Vec<Sold>) {
        other.into_iter().for_each(|sold| self.add(last, sold));
    }

    fn result(&self, last: &Vec<Sold>) -> u64 {
        last.iter().map(|(.., price)| price).sum::<u64>() / last.len() as u64
    }
}

/// q6: the average price of the last ten auctions that each seller has [sold](winning_bids), or of all if there are fewer. The last are
/// those that end last; of those that end at one time, those with the greatest numbers.
///
/// Result: changes of seller and average, rounded down. Number: both.
///
/// State: as q9, and ten sales for each seller, for ever.
fn averages_of_sellers(events: Stream<'_, Event>) -> Stream<'_, Change<(u64, u64)>> {
    winning_bids(events)
        .into_keyed(|(auction, bid)| (auction.seller, (auction.expires, auction.id, bid.price)))
        .aggregate_changes("averages-of-sellers", LastTen)
}

/// q18: the last bid of each bidder for each auction. Of bids of one time, the last is the one of the greatest price, channel and URL.
///
/// Result: changes of bids. Number: auction, bidder, price, channel, URL, time.
///
/// State: these bids, for ever.
fn last_bids(events: Stream<'_, Event>) -> Stream<'_, Change<Bid>> {
    events
        .flat_map(Event::bid)
        .key_by(|bid| (bid.bidder, bid.auction))
        .top("last-bids", 1, |bid| (bid.time, bid.price, bid.channel, bid.url))
        .map(|change| change.map(|(_, bid)| bid))
}

/// q19: the ten highest bids for each auction, or all if there are fewer. Of bids of one price, the earliest are the highest; of those
/// of one time, those of the least bidder, channel and URL. Whether the auction has begun or ended does not matter.
///
/// Result: changes of bids. Number: auction, bidder, price, channel, URL, time.
///
/// State: these bids, for ever.
fn highest_of_auctions(events: Stream<'_, Event>) -> Stream<'_, Change<Bid>> {
    events
        .flat_map(Event::bid)
        .key_by(|bid| bid.auction)
        .top("highest-of-auctions", 10, rank)
        .map(|change| change.map(|(_, bid)| bid))
}
