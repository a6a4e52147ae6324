//! What crosses an exchange: whole batches, addressed by the sender.
//!
//! Timely's own exchange looks at every record again to find its target. Our router has done that already, so the
//! exchange only hands each batch to the queue of the worker that the batch names.

use std::rc::Rc;

use timely::Accountable;
use timely::bytes::arc::Bytes;
use timely::communication::{Pull, Push};
use timely::dataflow::channels::pact::{LogPuller, ParallelizationContract};
use timely::dataflow::channels::{ContainerBytes, Message};
use timely::logging::TimelyLogger;
use timely::worker::Worker;

use crate::connect::Record;
use crate::runtime::time::Time;

/// Records from one worker to another.
#[derive(Clone, Debug)]
pub(crate) struct Batch<D> {
    pub(crate) records: Vec<D>,
    /// Index of the sending worker.
    pub(crate) from: u32,
    /// Index of the receiving worker.
    pub(crate) target: u32,
    /// What the batch weighs in the ledger; the sender's estimate. Units: bytes.
    pub(crate) weight: u64,
}

impl<D> Default for Batch<D> {
    fn default() -> Self {
        Self { records: Vec::new(), from: 0, target: 0, weight: 0 }
    }
}

impl<D> Accountable for Batch<D> {
    fn record_count(&self) -> i64 {
        self.records.len() as i64
    }
}

impl<D: Record> ContainerBytes for Batch<D> {
    fn from_bytes(mut bytes: Bytes) -> Self {
        let header = bytes.extract_to(16);
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let weight = u64::from(word(8)) | u64::from(word(12)) << 32;
        Self { from: word(0), target: word(4), weight, records: Vec::from_bytes(bytes) }
    }

    fn length_in_bytes(&self) -> usize {
        16 + self.records.length_in_bytes()
    }

    fn into_bytes<W: std::io::Write>(&self, writer: &mut W) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&self.from.to_le_bytes());
        header[4..8].copy_from_slice(&self.target.to_le_bytes());
        header[8..].copy_from_slice(&self.weight.to_le_bytes());
        writer.write_all(&header).expect("timely's writer is memory of the announced length");
        self.records.into_bytes(writer);
    }
}

/// The contract of our exchanges: each batch goes to its `target`.
pub(crate) struct ByTarget;

impl<D: Record> ParallelizationContract<Time, Batch<D>> for ByTarget {
    type Pusher = TargetPusher<D>;
    type Puller = LogPuller<Box<dyn Pull<Message<Time, Batch<D>>>>>;

    fn connect(
        self,
        worker: &Worker,
        identifier: usize,
        address: Rc<[usize]>,
        logging: Option<TimelyLogger>,
    ) -> (Self::Pusher, Self::Puller) {
        let (pushers, puller) = worker.allocate::<Message<Time, Batch<D>>>(identifier, address);
        let targets = pushers.into_iter().map(|pusher| (pusher, false)).collect();
        (TargetPusher { targets }, LogPuller::new(puller, worker.index(), identifier, logging))
    }
}

/// The queue of one worker.
type Queue<D> = Box<dyn Push<Message<Time, Batch<D>>>>;

/// Hands batches to the workers they name.
pub(crate) struct TargetPusher<D> {
    /// For each worker: its queue, and whether something was pushed since the last flush.
    targets: Vec<(Queue<D>, bool)>,
}

impl<D> Push<Message<Time, Batch<D>>> for TargetPusher<D> {
    fn push(&mut self, element: &mut Option<Message<Time, Batch<D>>>) {
        if let Some(message) = element {
            let (pusher, dirty) = &mut self.targets[message.data.target as usize];
            pusher.push(element);
            *dirty = true;
        } else {
            for (pusher, dirty) in &mut self.targets {
                if std::mem::take(dirty) {
                    pusher.done();
                }
            }
        }
    }
}
