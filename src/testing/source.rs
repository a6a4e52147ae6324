//! A source that gives a few records at a time.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Random;
use crate::connect::{ConnectError, ReadStatus, Record, Source, SplitReader};

type Make<D> = Arc<dyn Fn(u64, u64) -> D + Send + Sync>;

/// A source of records that follow from their split and their index, a few at a time with pauses between: so a
/// simulated job of a few hundred records takes many checkpoints. Exactly-once.
#[derive(Clone)]
pub struct Trickle<D> {
    seed: u64,
    splits: u64,
    records: u64,
    pause_us: u64,
    make: Make<D>,
}

impl<D> fmt::Debug for Trickle<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trickle")
            .field("splits", &self.splits)
            .field("records", &self.records)
            .finish_non_exhaustive()
    }
}

impl<D: Record> Trickle<D> {
    /// A source of `splits` splits with `records` records each, made by `make(split, index)`. How many it gives at a
    /// time follows from `seed`, from one to eight, and so do the pauses: up to 4 ms of simulated time.
    pub fn new(
        seed: u64,
        splits: u64,
        records: u64,
        make: impl Fn(u64, u64) -> D + Send + Sync + 'static,
    ) -> Self {
        let pause_us = Random::new(seed).fork(9).scaled(100, 4000);
        Self { seed, splits, records, pause_us, make: Arc::new(make) }
    }
}

/// A split of a [`Trickle`], with its position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrickleSplit {
    split: u64,
    next: u64,
}

/// Reads a split of a [`Trickle`].
#[derive(Debug)]
pub struct TrickleReader<D> {
    from: Trickle<D>,
    at: TrickleSplit,
}

impl<D: Record> Source for Trickle<D> {
    type Record = D;
    type Split = TrickleSplit;
    type Reader = TrickleReader<D>;

    fn splits(&mut self, _parallelism: usize) -> Result<Vec<TrickleSplit>, ConnectError> {
        Ok((0..self.splits).map(|split| TrickleSplit { split, next: 0 }).collect())
    }

    fn open(&mut self, at: TrickleSplit) -> Result<TrickleReader<D>, ConnectError> {
        Ok(TrickleReader { from: self.clone(), at })
    }
}

impl<D: Record> SplitReader for TrickleReader<D> {
    type Record = D;
    type Split = TrickleSplit;

    fn read(&mut self, batch: &mut Vec<D>, records_max: usize) -> Result<ReadStatus, ConnectError> {
        let TrickleSplit { split, next } = self.at;
        let mut random = Random::new(self.from.seed).fork(split << 32 | next);
        let most = random.between(1, 8).min(records_max as u64).min(self.from.records - next);
        batch.extend((next..next + most).map(|index| (self.from.make)(split, index)));
        self.at.next += most;
        Ok(if self.at.next == self.from.records {
            ReadStatus::Finished
        } else if random.chance(0.2) {
            ReadStatus::More
        } else {
            ReadStatus::Wait(Duration::from_micros(random.below(self.from.pause_us)))
        })
    }

    fn split(&self) -> TrickleSplit {
        self.at.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::Trickle;
    use crate::connect::conformance::replays;

    #[test]
    fn every_record_is_given_once_and_replays_from_every_position() {
        let mut read = replays(|| Trickle::new(3, 2, 50, |split, index| split * 50 + index), 2);
        read.sort_unstable();
        assert_eq!(read, (0..100).collect::<Vec<u64>>());
    }
}
