//! Queries of what a day comes to. Days are those of UTC, and time 0 is midnight.

use std::time::Duration;

use highwater::connect::workload::fold;
use highwater::prelude::*;
use highwater_operators::{AllWindows, Change, KeyedWindows, RunningAggregate, Window, Windows};
use serde::{Deserialize, Serialize};

use super::{Parts, number_of};
use crate::events::{Bid, Event};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const MILLIS_OF_DAY: i64 = 24 * 60 * 60 * 1000;
const MILLIS_OF_MINUTE: i64 = 60 * 1000;

/// The results of a query of this module, each as a number.
pub(super) fn digests<'a>(query: &str, events: Stream<'a, Event>) -> Option<Stream<'a, u64>> {
    Some(match query {
        "q15" => days(events).map(|(day, statistics)| {
            let [bids, bidders, auctions] = statistics.numbers();
            fold([day.start as u64, bids, bidders, auctions])
        }),
        "q16" => channel_days(events).map(|(channel, day, statistics)| {
            let [bids, bidders, auctions] = statistics.numbers();
            let minute = statistics.minute() as u64;
            fold([channel, day.start as u64, bids, bidders, auctions, minute])
        }),
        "q17" => auction_days(events).map(|change| {
            number_of(change.map(|((auction, day), prices)| {
                let Prices { bids, least, greatest, sum } = prices;
                let average = prices.average();
                fold([auction, day as u64, bids.number(), least, greatest, average, sum])
            }))
        }),
        _ => return None,
    })
}

/// The rank of a price: 0 below 10,000 cents, 1 below 1,000,000, otherwise 2.
fn rank(price: u64) -> usize {
    match price {
        ..10_000 => 0,
        10_000..1_000_000 => 1,
        _ => 2,
    }
}

/// A number for all bids, and one for the bids of each rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Ranked {
    all: u64,
    of_rank: [u64; 3],
}

impl Ranked {
    fn add(&mut self, other: Self) {
        self.all += other.all;
        self.of_rank.iter_mut().zip(other.of_rank).for_each(|(to, from)| *to += from);
    }

    fn number(&self) -> u64 {
        let [low, middle, high] = self.of_rank;
        fold([self.all, low, middle, high])
    }

    /// Counts what bids come from or go to: once, if there are any.
    fn once(self) -> Self {
        Self { all: self.all.min(1), of_rank: self.of_rank.map(|count| count.min(1)) }
    }
}

/// Some bids: how many, and when the last was.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Bids {
    count: Ranked,
    last: i64,
}

impl Bids {
    fn one(price: u64, time: i64) -> Self {
        let mut count = Ranked { all: 1, of_rank: [0; 3] };
        count.of_rank[rank(price)] = 1;
        Self { count, last: time }
    }

    fn add(&mut self, other: Self) {
        self.count.add(other.count);
        self.last = self.last.max(other.last);
    }
}

/// Who has bid, or what for.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Which {
    Bidder(u64),
    Auction(u64),
}

/// What the bids of a day come to.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Statistics {
    /// How many bids, bidders and auctions.
    bids: Ranked,
    bidders: Ranked,
    auctions: Ranked,
    /// When the last bid was.
    last: i64,
}

impl Statistics {
    /// Those of one bidder or auction. Each is to be added once, so that counting them is counting different ones.
    fn of((_, which, bids): OfWhich) -> Self {
        let none = Ranked::default();
        let (last, once) = (bids.last, bids.count.once());
        match which {
            Which::Bidder(_) => Self { bids: bids.count, bidders: once, auctions: none, last },
            // Its bids come with their bidders.
            Which::Auction(_) => Self { bids: none, bidders: none, auctions: once, last },
        }
    }

    fn add(&mut self, other: Self) {
        self.bids.add(other.bids);
        self.bidders.add(other.bidders);
        self.auctions.add(other.auctions);
        self.last = self.last.max(other.last);
    }

    fn numbers(&self) -> [u64; 3] {
        [self.bids, self.bidders, self.auctions].map(|ranked| ranked.number())
    }

    /// The minute of the day in which the last bid was.
    fn minute(&self) -> i64 {
        self.last.rem_euclid(MILLIS_OF_DAY) / MILLIS_OF_MINUTE
    }
}

/// The bids of one bidder, or for one auction, in a day.
type OfWhich = (Window, Which, Bids);

/// For each day and group, the bids of each bidder and those for each auction, at the end of the day. So to count different ones takes a
/// small state for each of them, on any worker, instead of a large set in one place.
fn of_each<'a, G: Key>(
    events: Stream<'a, Event>,
    name: &str,
    group: impl Fn(&Bid) -> G + 'static,
) -> Stream<'a, (G, OfWhich)> {
    events
        .flat_map(Event::bid)
        .flat_map(move |bid| {
            let bids = Bids::one(bid.price, bid.time);
            let which = [Which::Bidder(bid.bidder), Which::Auction(bid.auction)];
            which.map(|which| ((group(&bid), which), bids))
        })
        .into_keyed(|bids| bids)
        .window(Windows::tumbling(DAY), |bids| bids.last)
        .aggregate(name, Parts::new(|bids| bids, Bids::add))
        .map(|((group, which), window, bids)| (group, (window, which, bids)))
}

/// q15: for each day, how many bids there are, how many different bidders and how many different auctions; of each, all and those of
/// bids of each [rank]. At the end of the day.
///
/// Result: the window of the day, and the statistics, without the minute. Number: the start of the day; bids, bidders and auctions,
/// each as one number, made of how many in all and of the ranks 0, 1 and 2.
///
/// State: an entry for each bidder and each auction of the day.
fn days(events: Stream<'_, Event>) -> Stream<'_, (Window, Statistics)> {
    of_each(events, "bids-of-days", |_| ())
        .map(|((), of_which)| of_which)
        // All results of a window end with it.
        .window_all(Windows::tumbling(DAY), |(window, ..)| window.end - 1)
        .aggregate("days", Parts::new(Statistics::of, Statistics::add))
}

/// q16: as q15, for each channel and day, with the minute of the day in which the last bid was. At the end of the day.
///
/// Result: channel, the window of the day, and the statistics. Number: channel and start of the day, then as q15, and the minute.
///
/// State: an entry for each channel and bidder, and each channel and auction, of the day.
fn channel_days(events: Stream<'_, Event>) -> Stream<'_, (u64, Window, Statistics)> {
    of_each(events, "bids-of-channel-days", |bid| bid.channel)
        .into_keyed(|of_which| of_which)
        .window(Windows::tumbling(DAY), |(window, ..)| window.end - 1)
        .aggregate("channel-days", Parts::new(Statistics::of, Statistics::add))
}

/// What the bids for an auction come to in a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Prices {
    bids: Ranked,
    least: u64,
    greatest: u64,
    sum: u64,
}

impl Prices {
    fn of(price: u64) -> Self {
        let bids = Bids::one(price, 0).count;
        Self { bids, least: price, greatest: price, sum: price }
    }

    fn add(&mut self, other: Self) {
        self.bids.add(other.bids);
        self.least = self.least.min(other.least);
        self.greatest = self.greatest.max(other.greatest);
        self.sum += other.sum;
    }

    /// Rounded down.
    fn average(&self) -> u64 {
        self.sum / self.bids.all
    }
}

/// q17: for each auction and day, what the bids come to so far: how many there are, all and of each [rank], and the least, the greatest,
/// the average and the sum of the prices.
///
/// Result: changes of auction, day (the number of days since time 0), and prices. Number: auction, day; one number, made of how many
/// bids in all and of the ranks 0, 1 and 2; least, greatest, average (rounded down) and sum.
///
/// State: an entry for each auction and day, for ever.
fn auction_days(events: Stream<'_, Event>) -> Stream<'_, Change<((u64, i64), Prices)>> {
    events
        .flat_map(Event::bid)
        .into_keyed(|bid| ((bid.auction, bid.time.div_euclid(MILLIS_OF_DAY)), bid.price))
        .aggregate_changes("auction-days", Parts::new(Prices::of, Prices::add))
}
