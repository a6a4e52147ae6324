//! Buffers of records that are used again.
//!
//! A batch is filled by one operator and emptied by another of the same worker, or of one beside it. Without a pool
//! each costs an allocation that is too large for the allocator to keep at hand: it returns the memory to the system
//! and takes it again, with a page fault for every page, which was a seventh of a cheap job's time.

use std::cell::RefCell;
use std::rc::Rc;

use crate::runtime::router::batch_records;

/// Buffers that a pool keeps at the most: 1 MiB, and more than one step of a worker fills.
const BUFFERS_MAX: usize = 64;

/// The empty buffers of one worker for one type of record. Clones share them.
pub(crate) struct Pool<D>(Rc<RefCell<Vec<Vec<D>>>>);

impl<D> Clone for Pool<D> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<D> Default for Pool<D> {
    fn default() -> Self {
        Self(Rc::default())
    }
}

impl<D> Pool<D> {
    /// An empty buffer with room for a batch. The one that was given last: it is in the processor's cache.
    pub(crate) fn take(&self) -> Vec<D> {
        let kept = self.0.borrow_mut().pop();
        kept.unwrap_or_else(|| Vec::with_capacity(batch_records::<D>()))
    }

    /// Keeps a buffer, emptied, if it is one of ours and there is need of it.
    pub(crate) fn give(&self, mut buffer: Vec<D>) {
        let size = batch_records::<D>();
        buffer.clear();
        let mut kept = self.0.borrow_mut();
        if (size..=2 * size).contains(&buffer.capacity()) && kept.len() < BUFFERS_MAX {
            kept.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BUFFERS_MAX, Pool};

    #[test]
    fn a_buffer_that_was_given_back_is_taken_again_empty() {
        let pool = Pool::<u64>::default();
        let mut buffer = pool.take();
        let room = buffer.capacity();
        buffer.push(1);
        let address = buffer.as_ptr();
        pool.clone().give(buffer);
        let again = pool.take();
        assert_eq!((again.as_ptr(), again.len(), again.capacity()), (address, 0, room));
    }

    #[test]
    fn a_pool_keeps_a_bounded_number_of_buffers_of_the_size_of_a_batch() {
        let pool = Pool::<u64>::default();
        pool.give(Vec::with_capacity(1));
        pool.give(Vec::with_capacity(1 << 20));
        assert!(pool.0.borrow().is_empty());
        let buffers: Vec<_> = (0..2 * BUFFERS_MAX).map(|_| pool.take()).collect();
        buffers.into_iter().for_each(|buffer| pool.give(buffer));
        assert_eq!(pool.0.borrow().len(), BUFFERS_MAX);
    }
}
