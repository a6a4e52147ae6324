//! The queries, and a number for each result: the sum of these numbers tells whether two runs had the same results, in whatever
//! order they came.

use std::time::Duration;

use highwater::connect::workload::fold;
use highwater::prelude::*;
use highwater_operators::{
    Aggregate, AllWindows, Count, KeyedWindows, Window, WindowJoin, Windows,
};
use serde::{Deserialize, Serialize};

use super::events::{Auction, Bid, Event, Person};

/// The queries that [`digests`] knows.
pub const QUERIES: [&str; 7] = ["q0", "q1", "q2", "q3", "q5", "q7", "q8"];

const TEN_SECONDS: Duration = Duration::from_secs(10);
const TWO_SECONDS: Duration = Duration::from_secs(2);

/// The events, as a source of `records`.
pub fn source<'a>(job: &Job<'a>, records: u64) -> Stream<'a, Event> {
    let time = EventTime::monotonic(Event::time);
    job.source_with("events", Generator::new(records, Event::generate), time)
}

/// The results of a query, each as a number. `None` if there is no such query.
pub fn digests<'a>(query: &str, events: Stream<'a, Event>) -> Option<Stream<'a, u64>> {
    Some(match query {
        "q0" => pass_through(events).map(|event| event_digest(&event)),
        "q1" => in_euros(events)
            .map(|(auction, bidder, price, time)| fold([auction, bidder, price, time as u64])),
        "q2" => some_auctions(events).map(|(auction, price)| fold([auction, price])),
        "q3" => local_items(events).map(|(seller, auction)| {
            fold([seller.id, seller.name, seller.city, seller.state, auction])
        }),
        "q5" => hot_items(events)
            .map(|(window, auction, count)| fold([window.start as u64, auction, count])),
        "q7" => highest_bids(events).map(|(window, (auction, bidder, price))| {
            fold([window.start as u64, auction, bidder, price])
        }),
        "q8" => new_sellers(events).map(|(window, id, name)| fold([window.start as u64, id, name])),
        _ => return None,
    })
}

fn event_digest(event: &Event) -> u64 {
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
fn pass_through(events: Stream<'_, Event>) -> Stream<'_, Event> {
    events
}

/// q1: what was bid, in euros. Auction, bidder, price, time.
fn in_euros(events: Stream<'_, Event>) -> Stream<'_, (u64, u64, u64, i64)> {
    events.flat_map(|event| {
        event.bid().map(|bid| (bid.auction, bid.bidder, bid.price * 908 / 1000, bid.time))
    })
}

/// q2: the bids for some auctions. Auction, price.
fn some_auctions(events: Stream<'_, Event>) -> Stream<'_, (u64, u64)> {
    events.flat_map(|event| {
        let bid = event.bid().filter(|bid| bid.auction % 123 == 0);
        bid.map(|bid| (bid.auction, bid.price))
    })
}

/// A person or the auctions of a person who is not known yet.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Seller {
    person: Option<Person>,
    waiting: Vec<u64>,
}

/// q3: who sells things of category 10 in California, Idaho and Oregon. The seller, and the auction.
fn local_items(events: Stream<'_, Event>) -> Stream<'_, (Person, u64)> {
    events
        .flat_map(|event| match event {
            Event::Person(person) if (1..=3).contains(&person.state) => {
                Some((person.id, Either::Left(person)))
            }
            Event::Auction(auction) if auction.category == 10 => {
                Some((auction.seller, Either::Right(auction.id)))
            }
            _ => None,
        })
        .into_keyed(|side| side)
        .process("local-items", Value::<Seller>::new("seller"), |_, side, seller, out| {
            let seller = seller.or_default();
            match (side, seller.person) {
                (Either::Left(person), _) => {
                    seller.person = Some(person);
                    seller.waiting.drain(..).for_each(|auction| out.emit((person, auction)));
                }
                (Either::Right(auction), Some(person)) => out.emit((person, auction)),
                (Either::Right(auction), None) => seller.waiting.push(auction),
            }
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

/// q5: the auctions with the most bids of the last ten seconds, every two. Window, auction, bids.
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

/// q7: the highest bids of every ten seconds. Window; auction, bidder, price.
fn highest_bids(events: Stream<'_, Event>) -> Stream<'_, (Window, (u64, u64, u64))> {
    events
        .flat_map(Event::bid)
        .window_all(Windows::tumbling(TEN_SECONDS), |bid| bid.time)
        .aggregate("highest", Highest)
        .flat_map(|(window, bids)| bids.into_iter().map(move |bid| (window, bid)))
}

/// q8: who has registered and put something up for auction in the same ten seconds. Window, identity, name.
fn new_sellers(events: Stream<'_, Event>) -> Stream<'_, (Window, u64, u64)> {
    let (people, auctions) = events
        .flat_map(|event| match event {
            Event::Person(person) => Some(Either::Left((person.id, (person.time, person.name)))),
            Event::Auction(auction) => Some(Either::Right((auction.seller, auction.time))),
            Event::Bid(_) => None,
        })
        .split(|event| event);
    people
        .into_keyed(|person| person)
        .window_join(
            auctions.into_keyed(|auction| auction),
            Windows::tumbling(TEN_SECONDS),
            |(time, _)| *time,
            |time| *time,
        )
        .co_group("new-sellers", |id, window, people, auctions, out| {
            if !auctions.is_empty() {
                people.into_iter().for_each(|(_, name)| out.emit((window, *id, name)));
            }
        })
}
