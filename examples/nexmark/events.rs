//! The events of Nexmark, an auction house: people who register, what they put up for auction, and bids.
//!
//! Everything follows from the index of an event, so that results can be compared between runs and between systems. Strings are
//! indices into small tables, so that every field is a number. Times are in milliseconds of event time, ten events each.

use highwater::connect::workload::mix;
use serde::{Deserialize, Serialize};

/// Somebody registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Person {
    pub id: u64,
    /// First and last name.
    pub name: u64,
    pub email: u64,
    pub card: u64,
    pub city: u64,
    /// 0 AZ, 1 CA, 2 ID, 3 OR, 4 WA, 5 WY.
    pub state: u64,
    pub time: i64,
}

/// Something is put up for auction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Auction {
    pub id: u64,
    pub seller: u64,
    /// From 10 to 14.
    pub category: u64,
    /// The first price, and the least that it is sold for. Units: cents.
    pub initial: u64,
    pub reserve: u64,
    /// When it ends.
    pub expires: i64,
    pub time: i64,
}

/// Somebody bids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bid {
    pub auction: u64,
    pub bidder: u64,
    /// Units: cents.
    pub price: u64,
    pub channel: u64,
    pub url: u64,
    pub time: i64,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// One of fifty.
    Person(Person),
    /// Three of fifty.
    Auction(Auction),
    /// All others.
    Bid(Bid),
}

/// The event time of the event with that index. Units: milliseconds.
pub fn time_of(n: u64) -> i64 {
    (n / 10) as i64
}

impl Event {
    /// When it happens.
    pub fn time(&self) -> i64 {
        match self {
            Self::Person(person) => person.time,
            Self::Auction(auction) => auction.time,
            Self::Bid(bid) => bid.time,
        }
    }

    /// The event with that index.
    #[inline]
    pub fn generate(n: u64) -> Self {
        match n % 50 {
            0 => Self::Person(person(n)),
            1..=3 => Self::Auction(auction(n)),
            _ => Self::Bid(bid(n)),
        }
    }

    pub fn bid(self) -> Option<Bid> {
        if let Self::Bid(bid) = self { Some(bid) } else { None }
    }
}

/// The first identity of people and auctions.
const FIRST_ID: u64 = 1000;

#[inline]
fn random(n: u64, field: u64) -> u64 {
    mix(n.wrapping_mul(16).wrapping_add(field))
}

#[inline]
fn price(random: u64) -> u64 {
    const POWERS: [u64; 6] = [1, 10, 100, 1_000, 10_000, 100_000];
    (100_000 + random % 900_000) * POWERS[((random >> 32) % 6) as usize] / 1000
}

#[inline]
fn last_person(n: u64) -> u64 {
    n / 50
}

/// The last auction so far; less than 0 before the first.
#[inline]
fn last_auction(n: u64) -> i64 {
    let (fifty, place) = ((n / 50) as i64, (n % 50) as i64);
    match place {
        0 => (fifty - 1) * 3 + 2,
        1..=3 => fifty * 3 + (place - 1),
        _ => fifty * 3 + 2,
    }
}

#[inline]
fn any_person(n: u64, random: u64) -> u64 {
    let people = last_person(n) + 1;
    let active = people.min(1000);
    people - active + random % (active + 10)
}

#[inline]
fn any_auction(n: u64, random: u64) -> u64 {
    let last = last_auction(n);
    let first = (last - 100).max(0);
    first as u64 + random % (last - first + 1 + 10) as u64
}

fn person(n: u64) -> Person {
    Person {
        id: FIRST_ID + last_person(n),
        name: random(n, 0) % 11 * 9 + random(n, 1) % 9,
        email: random(n, 2),
        card: random(n, 3),
        city: random(n, 4) % 10,
        state: random(n, 5) % 6,
        time: time_of(n),
    }
}

fn auction(n: u64) -> Auction {
    let initial = price(random(n, 3));
    let seller = match random(n, 0) % 4 {
        0 => any_person(n, random(n, 1)),
        _ => last_person(n) / 100 * 100,
    };
    Auction {
        id: FIRST_ID.wrapping_add_signed(last_auction(n)),
        seller: FIRST_ID + seller,
        category: 10 + random(n, 2) % 5,
        initial,
        reserve: initial + price(random(n, 4)),
        expires: time_of(n) + 1 + (random(n, 5) % 20_000) as i64,
        time: time_of(n),
    }
}

#[inline]
fn bid(n: u64) -> Bid {
    let auction = match random(n, 0) % 2 {
        0 => any_auction(n, random(n, 1)),
        _ => (last_auction(n) / 100 * 100) as u64,
    };
    let bidder = match random(n, 2) % 4 {
        0 => any_person(n, random(n, 3)),
        _ => last_person(n) / 100 * 100 + 1,
    };
    Bid {
        auction: FIRST_ID + auction,
        bidder: FIRST_ID + bidder,
        price: price(random(n, 4)),
        channel: random(n, 5) % 10_000,
        url: random(n, 6),
        time: time_of(n),
    }
}
