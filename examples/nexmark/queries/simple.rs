//! Queries that look at one event at a time.

use highwater::connect::workload::fold;
use highwater::prelude::*;
use serde::{Deserialize, Serialize};

use crate::events::{Auction, Bid, Event, Person};

/// The results of a query of this module, each as a number.
pub(super) fn digests<'a>(query: &str, events: Stream<'a, Event>) -> Option<Stream<'a, u64>> {
    Some(match query {
        "q0" => pass_through(events).map(|event| event_number(&event)),
        "q1" => in_euros(events)
            .map(|(auction, bidder, price, time)| fold([auction, bidder, price, time as u64])),
        "q2" => some_auctions(events).map(|(auction, price)| fold([auction, price])),
        "q14" => calculated(events).map(|(auction, bidder, price, time_of_day, time, digits)| {
            fold([auction, bidder, price, time_of_day as u64, time as u64, digits])
        }),
        "q21" => channels(events).map(|(auction, bidder, price, channel, identity)| {
            fold([auction, bidder, price, channel, identity])
        }),
        "q22" => directories(events).map(|(auction, bidder, price, channel, [one, two, three])| {
            fold([auction, bidder, price, channel, one, two, three])
        }),
        _ => return None,
    })
}

fn event_number(event: &Event) -> u64 {
    match *event {
        Event::Person(Person { id, name, email, card, city, state, time }) => {
            fold([id, name, email ^ card, city * 6 + state, time as u64])
        }
        Event::Auction(Auction { id, seller, category, initial, reserve, expires, time }) => {
            fold([
                id,
                seller,
                category,
                initial ^ (reserve << 32),
                expires as u64 ^ ((time as u64) << 32),
            ])
        }
        Event::Bid(Bid { auction, bidder, price, channel, url, time }) => {
            fold([auction, bidder, price, channel ^ url, time as u64])
        }
    }
}

/// q0: the events themselves.
///
/// Number: that of [`event_number`].
fn pass_through(events: Stream<'_, Event>) -> Stream<'_, Event> {
    events
}

/// What a price is in euros.
const fn euros(price: u64) -> u64 {
    price * 908 / 1000
}

/// q1: what was bid, in euros.
///
/// Result: auction, bidder, price in euros, time. Number: all of these.
fn in_euros(events: Stream<'_, Event>) -> Stream<'_, (u64, u64, u64, i64)> {
    events.flat_map(|event| {
        event.bid().map(|bid| (bid.auction, bid.bidder, euros(bid.price), bid.time))
    })
}

/// q2: the bids for auctions whose number is a multiple of 123.
///
/// Result: auction, price. Number: both.
fn some_auctions(events: Stream<'_, Event>) -> Stream<'_, (u64, u64)> {
    events.flat_map(|event| {
        let bid = event.bid().filter(|bid| bid.auction % 123 == 0);
        bid.map(|bid| (bid.auction, bid.price))
    })
}

/// When in the day something happens. Days and hours are those of UTC, and time 0 is midnight.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum TimeOfDay {
    /// From 8:00 to 18:59.
    Day,
    /// Until 6:59, and from 20:00.
    Night,
    Other,
}

impl TimeOfDay {
    fn of(time: i64) -> Self {
        match time.div_euclid(3_600_000).rem_euclid(24) {
            8..=18 => Self::Day,
            ..=6 | 20.. => Self::Night,
            _ => Self::Other,
        }
    }
}

/// q14: the bids of more than 1,000,000 and less than 50,000,000 cents in euros, each with the [`TimeOfDay`] and how many of the
/// 16 hexadecimal digits of the URL are a c.
///
/// Result: auction, bidder, price in euros, time of day, time, digits. Number: all of these, the time of day as 0, 1 or 2.
fn calculated(events: Stream<'_, Event>) -> Stream<'_, (u64, u64, u64, TimeOfDay, i64, u64)> {
    events.flat_map(|event| {
        let Bid { auction, bidder, price, url, time, .. } = event.bid()?;
        let price = euros(price);
        (1_000_001..50_000_000).contains(&price).then(|| {
            let digits = (0..16).filter(|digit| url >> (4 * digit) & 0xf == 0xc).count();
            (auction, bidder, price, TimeOfDay::of(time), time, digits as u64)
        })
    })
}

/// q21: the bids whose channel has an identity. The channels 0 to 3 are well known, and their own identity. For the others, an
/// odd URL names it: it is the 32 bits above the lowest one. An even URL names none.
///
/// Result: auction, bidder, price, channel, identity. Number: all of these.
fn channels(events: Stream<'_, Event>) -> Stream<'_, (u64, u64, u64, u64, u64)> {
    events.flat_map(|event| {
        let Bid { auction, bidder, price, channel, url, .. } = event.bid()?;
        let named = (url % 2 == 1).then_some(url >> 1 & 0xffff_ffff);
        let identity = if channel < 4 { Some(channel) } else { named };
        identity.map(|identity| (auction, bidder, price, channel, identity))
    })
}

/// q22: the bids, with the three directories of the URL. A URL is four parts of 16 bits, from the highest: the host, and three
/// directories.
///
/// Result: auction, bidder, price, channel, directories. Number: all of these.
fn directories(events: Stream<'_, Event>) -> Stream<'_, (u64, u64, u64, u64, [u64; 3])> {
    events.flat_map(|event| {
        let Bid { auction, bidder, price, channel, url, .. } = event.bid()?;
        let directories = [url >> 32, url >> 16, url].map(|part| part & 0xffff);
        Some((auction, bidder, price, channel, directories))
    })
}
