//! A source of the items of a `Vec`, for examples and tests. Exactly-once.

use serde::{Deserialize, Serialize};

use super::{ConnectError, ReadStatus, Record, Source, SplitReader};

/// A source that yields the items of a collection.
///
/// With S workers there are S splits, and item *i* is in split *i* mod S; within a split items keep
/// their order. Every copy of the source holds all items, so this is for collections that fit into
/// memory a few times over.
#[derive(Clone, Debug)]
pub struct Collection<D> {
    items: Vec<D>,
}

impl<D: Record> Collection<D> {
    /// A source of `items`.
    ///
    /// A job that goes on from a checkpoint must be given the same items in the same order; another
    /// number of items is refused.
    #[must_use]
    pub fn new(items: Vec<D>) -> Self {
        Self { items }
    }
}

/// A split of a [`Collection`], with its position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectionSplit {
    /// Index of the next item, in the collection.
    next: u64,
    /// How far apart the split's items are.
    stride: u64,
    /// The number of items in the collection: by it another collection is told from this one.
    items: u64,
}

impl<D: Record> Source for Collection<D> {
    type Record = D;
    type Split = CollectionSplit;
    type Reader = CollectionReader<D>;

    fn splits(&mut self, parallelism: usize) -> Result<Vec<CollectionSplit>, ConnectError> {
        let stride = parallelism.max(1) as u64;
        let items = self.items.len() as u64;
        Ok((0..stride).map(|next| CollectionSplit { next, stride, items }).collect())
    }

    fn open(&mut self, split: CollectionSplit) -> Result<CollectionReader<D>, ConnectError> {
        if split.items != self.items.len() as u64 {
            return Err(ConnectError::new(format!(
                "the checkpoint was taken with a collection of {} items, and this one has {}: go \
                 on with the same collection, or start without the checkpoint",
                split.items,
                self.items.len()
            )));
        }
        if split.stride == 0 {
            return Err(ConnectError::new("the split of a collection has stride 0: it is damaged"));
        }
        let skip = usize::try_from(split.next).unwrap_or(usize::MAX);
        let stride = usize::try_from(split.stride).unwrap_or(usize::MAX);
        let items: Vec<D> = self.items.iter().skip(skip).step_by(stride).cloned().collect();
        Ok(CollectionReader { items: items.into_iter(), split })
    }
}

/// Reads a split of a [`Collection`].
#[derive(Debug)]
pub struct CollectionReader<D> {
    items: std::vec::IntoIter<D>,
    split: CollectionSplit,
}

impl<D: Record> SplitReader for CollectionReader<D> {
    type Record = D;
    type Split = CollectionSplit;

    fn read(&mut self, batch: &mut Vec<D>, records_max: usize) -> Result<ReadStatus, ConnectError> {
        let before = batch.len();
        batch.extend(self.items.by_ref().take(records_max));
        let taken = (batch.len() - before) as u64;
        self.split.next = self.split.next.saturating_add(taken.saturating_mul(self.split.stride));
        Ok(if self.items.len() == 0 { ReadStatus::Finished } else { ReadStatus::More })
    }

    fn split(&self) -> CollectionSplit {
        self.split.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::Collection;
    use crate::connect::conformance::{read_all, replays};
    use crate::connect::{Source, SplitReader};

    #[test]
    fn every_item_is_in_one_split_and_replays_from_every_position() {
        for (items, parallelism) in [(0, 1), (1, 3), (10, 1), (10, 3), (12, 3)] {
            let all: Vec<u32> = (0..items).collect();
            let mut read = replays(|| Collection::new(all.clone()), parallelism);
            read.sort_unstable();
            assert_eq!(read, all, "{items} items over {parallelism}");
        }
    }

    #[test]
    fn a_split_holds_every_nth_item_in_order() {
        let mut source = Collection::new((0..7).collect::<Vec<u32>>());
        let splits = source.splits(3).unwrap();
        let mut reader = source.open(splits[1].clone()).unwrap();
        assert_eq!(read_all(&mut reader, 2), [1, 4]);
        assert_eq!(reader.split().next, 7);
    }

    #[test]
    fn a_collection_of_another_length_is_refused_with_both_lengths() {
        let split = Collection::new(vec![1, 2, 3]).splits(1).unwrap().remove(0);
        let error = Collection::new(vec![1, 2]).open(split).unwrap_err();
        assert!(error.to_string().contains("of 3 items, and this one has 2"), "{error}");
    }
}
