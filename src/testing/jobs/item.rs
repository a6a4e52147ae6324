//! The records of a random job: each says where it comes from and which way it has taken, and can tell whether it is
//! whole.

use std::fmt;
use std::hash::Hasher;

use rustc_hash::FxHasher;
use serde::{Deserialize, Serialize};

use crate::testing::Random;

/// The numbers of a chain of steps, mixed into one.
pub(super) fn mix(first: u64, second: u64, third: u64) -> u64 {
    let mut random = Random::new(first ^ second.rotate_left(23) ^ third.rotate_left(47));
    random.next() ^ second.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ third
}

/// What a keyed operator has noted on a record that it processed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Stamp {
    /// The operator.
    pub(super) operator: u64,
    /// The key, as the operator knew it.
    pub(super) key: u64,
    /// How many records of that key it had seen, this one included.
    pub(super) count: u64,
    /// All of them, in the order in which it saw them, mixed into one number.
    pub(super) digest: u64,
    /// The path of the record there.
    pub(super) path: u64,
    /// The lane of the record there.
    pub(super) lane: u64,
}

/// A record of a random job. Its header is checked wherever it goes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Item {
    pub(super) source: u64,
    pub(super) split: u64,
    pub(super) index: u64,
    /// The way that it took, operator by operator: of one input record, each copy has another.
    pub(super) path: u64,
    /// What it shares with the records of its split that must not overtake it.
    pub(super) lane: u64,
    /// The node that it left last.
    pub(super) at: u64,
    pub(super) key: u64,
    /// Event time.
    pub(super) time: i64,
    /// How often it is still to go round, in every loop that it is in.
    pub(super) rounds: Vec<u8>,
    pub(super) stamps: Vec<Stamp>,
    /// A weight that it carries about.
    payload: Vec<u8>,
    checksum: u64,
}

/// What identifies a record wherever it is: source, split, index and path.
pub(super) type Identity = (u64, u64, u64, u64);

impl Item {
    /// A record as its source gives it, with `payload` bytes that follow from the rest.
    pub(super) fn new(node: u64, place: (u64, u64, u64), key: u64, payload: usize) -> Self {
        let (source, split, index) = place;
        let path = mix(source, split, index);
        let payload = (0..payload).map(|byte| (path as usize).wrapping_add(byte) as u8).collect();
        let mut item = Self {
            source,
            split,
            index,
            path,
            lane: 0,
            at: node,
            key,
            // Within a split event time grows.
            time: (index * 10 + path % 10) as i64,
            rounds: Vec::new(),
            stamps: Vec::new(),
            payload,
            checksum: 0,
        };
        item.seal();
        item
    }

    pub(super) fn identity(&self) -> Identity {
        (self.source, self.split, self.index, self.path)
    }

    /// A number below `end` that follows from the record, its way, and a purpose.
    pub(super) fn draw(&self, purpose: u64, end: u64) -> u64 {
        Random::new(mix(self.path, self.index, purpose)).below(end)
    }

    /// The record has passed a node: its output of this number.
    pub(super) fn pass(&mut self, node: u64, output: u64) {
        self.path = mix(self.path, node, output);
        self.at = node;
    }

    /// Records of another `lane` may overtake it from here on.
    pub(super) fn part(&mut self, node: u64, lane: u64) {
        self.lane = mix(self.lane, node, lane);
    }

    /// Takes a new checksum, after a change.
    pub(super) fn seal(&mut self) {
        self.checksum = self.sum();
    }

    /// Checks that the record is whole, and where it should be.
    ///
    /// # Panics
    /// If not.
    pub(super) fn check(&self, node: u64, from: &[u64]) {
        assert!(self.sum() == self.checksum, "TORN: {self:?} at node {node}");
        assert!(
            from.contains(&self.at),
            "MISROUTED: {self:?} at node {node}, which reads {from:?}"
        );
    }

    fn sum(&self) -> u64 {
        let mut hasher = FxHasher::default();
        let numbers =
            [self.source, self.split, self.index, self.path, self.lane, self.at, self.key];
        for number in numbers {
            hasher.write_u64(number);
        }
        hasher.write_i64(self.time);
        hasher.write(&self.rounds);
        for stamp in &self.stamps {
            for number in [stamp.operator, stamp.key, stamp.count, stamp.digest, stamp.path] {
                hasher.write_u64(number);
            }
        }
        hasher.write(&self.payload);
        hasher.finish()
    }
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, split, index, path, at, key, rounds, payload, .. } = self;
        write!(
            f,
            "record {source}/{split}/{index} of key {key} behind node {at}, path {path:016x}, rounds {rounds:?}, {} bytes",
            payload.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::Item;

    #[test]
    fn a_torn_or_misrouted_record_is_noticed() {
        let item = Item::new(7, (1, 2, 3), 4, 100);
        item.check(8, &[6, 7]);
        let text = |item: Item| {
            let panic = catch_unwind(move || item.check(8, &[7])).unwrap_err();
            panic.downcast_ref::<String>().unwrap().clone()
        };
        let mut torn = item.clone();
        torn.payload[50] ^= 1;
        assert!(text(torn).starts_with("TORN"));
        let mut misrouted = item;
        misrouted.at = 9;
        misrouted.seal();
        assert!(text(misrouted).starts_with("MISROUTED"));
    }
}
