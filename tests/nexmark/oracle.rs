//! What the queries come to that nobody has published results of, computed by going through a list of all events, as often as it takes.
//! It has nothing in common with the queries but the events and the function that makes a number of fields.

use std::collections::{BTreeMap, BTreeSet};

use highwater::connect::workload::{fold, mix};

use crate::events::{Auction, Bid, Event};

const DAY: i64 = 86_400_000;

/// The number of each result of a query.
pub fn results(query: &str, events: &[Event]) -> Vec<u64> {
    let mut bids: Vec<Bid> = events.iter().filter_map(|event| event.bid()).collect();
    bids.sort_by_key(|bid| bid.time);
    let auctions: Vec<Auction> = events
        .iter()
        .filter_map(|event| if let Event::Auction(auction) = event { Some(*auction) } else { None })
        .collect();
    match query {
        "q4" => categories(&sales(&auctions, &bids)),
        "q6" => sellers(&sales(&auctions, &bids)),
        "q9" => sales(&auctions, &bids)
            .iter()
            .map(|(a, b)| {
                let (ended, at) = (a.expires as u64, b.time as u64);
                fold([a.id, a.seller, a.category, b.bidder, b.price, at, ended])
            })
            .collect(),
        "q11" => sessions(&bids),
        "q12" => bids.iter().map(|bid| fold([bid.bidder])).collect(),
        "q13" => bids.iter().filter_map(side_input).collect(),
        "q14" => bids.iter().filter_map(calculated).collect(),
        "q15" => days(&bids),
        "q16" => channel_days(&bids),
        "q17" => auction_days(&bids),
        "q18" => last(&bids),
        "q19" => ten_highest(&bids),
        "q20" => of_category_10(&auctions, &bids),
        "q21" => bids.iter().filter_map(channel).collect(),
        "q22" => bids.iter().map(directories).collect(),
        other => panic!("there is no query {other}"),
    }
}

/// Groups, in the order in which their elements are.
fn groups<K: Ord, T: Copy>(all: &[T], key: impl Fn(&T) -> K) -> BTreeMap<K, Vec<T>> {
    let mut groups = BTreeMap::<K, Vec<T>>::new();
    for one in all {
        groups.entry(key(one)).or_default().push(*one);
    }
    groups
}

/// Whether one bid goes before another of another price or time, or of the same.
fn better(one: &Bid, other: &Bid) -> bool {
    if one.price != other.price {
        return one.price > other.price;
    }
    let rest = |bid: &Bid| [bid.time as u64, bid.bidder, bid.channel, bid.url];
    rest(one) < rest(other)
}

fn sales(auctions: &[Auction], bids: &[Bid]) -> Vec<(Auction, Bid)> {
    let bids = groups(bids, |bid| bid.auction);
    let mut sales = Vec::new();
    for auction in auctions {
        let mut winner: Option<Bid> = None;
        for bid in bids.get(&auction.id).into_iter().flatten() {
            if bid.time < auction.time || bid.time > auction.expires || bid.price < auction.reserve
            {
                continue;
            }
            if winner.is_none_or(|winner| better(bid, &winner)) {
                winner = Some(*bid);
            }
        }
        sales.extend(winner.map(|bid| (*auction, bid)));
    }
    sales
}

fn categories(sales: &[(Auction, Bid)]) -> Vec<u64> {
    let average = |sales: Vec<(Auction, Bid)>| {
        let sum: u128 = sales.iter().map(|(_, bid)| u128::from(bid.price)).sum();
        sum as f64 / sales.len() as f64
    };
    let categories = groups(sales, |(auction, _)| auction.category);
    categories
        .into_iter()
        .map(|(category, sales)| fold([category, average(sales).to_bits()]))
        .collect()
}

fn sellers(sales: &[(Auction, Bid)]) -> Vec<u64> {
    let mut numbers = Vec::new();
    for (seller, mut sales) in groups(sales, |(auction, _)| auction.seller) {
        sales.sort_by_key(|(auction, _)| std::cmp::Reverse((auction.expires, auction.id)));
        sales.truncate(10);
        let sum: u64 = sales.iter().map(|(_, bid)| bid.price).sum();
        numbers.push(fold([seller, sum / sales.len() as u64]));
    }
    numbers
}

fn sessions(bids: &[Bid]) -> Vec<u64> {
    let mut numbers = Vec::new();
    for (bidder, bids) in groups(bids, |bid| bid.bidder) {
        for session in bids.chunk_by(|one, next| next.time - one.time <= 10_000) {
            let (first, last) = (session[0].time, session[session.len() - 1].time);
            let end = last + 10_000;
            numbers.push(fold([bidder, first as u64, end as u64, session.len() as u64]));
        }
    }
    numbers
}

fn side_input(bid: &Bid) -> Option<u64> {
    let key = bid.auction % 10_000;
    let number = fold([bid.auction, bid.bidder, bid.price, bid.time as u64, mix(key)]);
    (!key.is_multiple_of(3)).then_some(number)
}

fn calculated(bid: &Bid) -> Option<u64> {
    let price = bid.price * 908 / 1000;
    let hour = bid.time % DAY / 3_600_000;
    let time_of_day = match hour {
        8..19 => 0,
        7 | 19 => 2,
        _ => 1,
    };
    let digits = format!("{:x}", bid.url).matches('c').count() as u64;
    let number = fold([bid.auction, bid.bidder, price, time_of_day, bid.time as u64, digits]);
    (price > 1_000_000 && price < 50_000_000).then_some(number)
}

/// Whether a bid is of a rank. Rank 0 is all of them.
fn is_of(bid: &Bid, rank: usize) -> bool {
    match rank {
        0 => true,
        1 => bid.price < 10_000,
        2 => bid.price >= 10_000 && bid.price < 1_000_000,
        _ => bid.price >= 1_000_000,
    }
}

fn bids_and_different_ones(bids: &[Bid]) -> [u64; 3] {
    let different = |what: fn(&Bid) -> u64| {
        fold([0, 1, 2, 3].map(|rank| {
            let of_rank = bids.iter().filter(|bid| is_of(bid, rank));
            of_rank.map(what).collect::<BTreeSet<u64>>().len() as u64
        }))
    };
    let bidders = different(|bid| bid.bidder);
    let auctions = different(|bid| bid.auction);
    [counts(bids), bidders, auctions]
}

fn counts(bids: &[Bid]) -> u64 {
    fold([0, 1, 2, 3].map(|rank| bids.iter().filter(|bid| is_of(bid, rank)).count() as u64))
}

fn days(bids: &[Bid]) -> Vec<u64> {
    let mut numbers = Vec::new();
    for (day, bids) in groups(bids, |bid| bid.time / DAY) {
        let [bids, bidders, auctions] = bids_and_different_ones(&bids);
        numbers.push(fold([(day * DAY) as u64, bids, bidders, auctions]));
    }
    numbers
}

fn channel_days(bids: &[Bid]) -> Vec<u64> {
    let mut numbers = Vec::new();
    for ((channel, day), bids) in groups(bids, |bid| (bid.channel, bid.time / DAY)) {
        let last = bids.iter().map(|bid| bid.time % DAY / 60_000).max().unwrap();
        let [bids, bidders, auctions] = bids_and_different_ones(&bids);
        numbers.push(fold([channel, (day * DAY) as u64, bids, bidders, auctions, last as u64]));
    }
    numbers
}

fn auction_days(bids: &[Bid]) -> Vec<u64> {
    let mut numbers = Vec::new();
    for ((auction, day), bids) in groups(bids, |bid| (bid.auction, bid.time / DAY)) {
        let prices: BTreeSet<u64> = bids.iter().map(|bid| bid.price).collect();
        let (least, greatest) = (*prices.first().unwrap(), *prices.last().unwrap());
        let sum: u64 = bids.iter().map(|bid| bid.price).sum();
        let average = sum / bids.len() as u64;
        let counts = counts(&bids);
        numbers.push(fold([auction, day as u64, counts, least, greatest, average, sum]));
    }
    numbers
}

fn bid_number(bid: &Bid) -> u64 {
    fold([bid.auction, bid.bidder, bid.price, bid.channel, bid.url, bid.time as u64])
}

fn last(bids: &[Bid]) -> Vec<u64> {
    let mut last = BTreeMap::new();
    let mut bids = bids.to_vec();
    bids.sort_by_key(|bid| (bid.time, bid.price, bid.channel, bid.url));
    for bid in &bids {
        last.insert((bid.bidder, bid.auction), bid_number(bid));
    }
    last.into_values().collect()
}

fn ten_highest(bids: &[Bid]) -> Vec<u64> {
    let mut numbers = Vec::new();
    for bids in groups(bids, |bid| bid.auction).into_values() {
        for bid in &bids {
            if bids.iter().filter(|other| better(other, bid)).count() < 10 {
                numbers.push(bid_number(bid));
            }
        }
    }
    numbers
}

fn of_category_10(auctions: &[Auction], bids: &[Bid]) -> Vec<u64> {
    let bids = groups(bids, |bid| bid.auction);
    let mut numbers = Vec::new();
    for auction in auctions.iter().filter(|auction| auction.category == 10) {
        for bid in bids.get(&auction.id).into_iter().flatten() {
            let (at, ended) = (bid.time as u64, auction.expires as u64);
            let Auction { id, seller, reserve, .. } = *auction;
            numbers.push(fold([id, bid.bidder, bid.price, at, seller, reserve, ended]));
        }
    }
    numbers
}

fn channel(bid: &Bid) -> Option<u64> {
    let identity = match (bid.channel, bid.url % 2) {
        (0..=3, _) => bid.channel,
        (_, 1) => bid.url / 2 % (1 << 32),
        _ => return None,
    };
    Some(fold([bid.auction, bid.bidder, bid.price, bid.channel, identity]))
}

fn directories(bid: &Bid) -> u64 {
    let bytes = bid.url.to_be_bytes();
    let part = |at: usize| u64::from(bytes[at]) * 256 + u64::from(bytes[at + 1]);
    fold([bid.auction, bid.bidder, bid.price, bid.channel, part(2), part(4), part(6)])
}
