//! The control plane: small frames between workers, over raw timely channels.
//!
//! A raw channel is ordered and reliable for each pair of workers for as long as both live, and has no progress
//! tracking. No second set of ports is needed, and a frame wakes a parked worker as data does.

use serde::{Deserialize, Serialize};
use timely::bytes::arc::Bytes;
use timely::communication::{Bytesable, Pull, Push};
use timely::worker::Worker;

use crate::format::manifest::PartRef;
use crate::format::record::{CheckpointWait, SavepointFormat, WorkerTimings};
use crate::ids::Epoch;
use crate::protocol::watermark::InstanceStatus;

/// What workers tell each other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Control {
    /// Coordinator to all: the checkpoint that closes this epoch begins. `last`: it is the final one.
    /// `savepoint`: it is to be one of that format, and nothing overtakes.
    Begin { epoch: Epoch, last: bool, savepoint: Option<SavepointFormat> },
    /// Worker to coordinator: all participants of this worker have taken their snapshot, and it is durable.
    Ack { epoch: Epoch, part: PartRef, timings: WorkerTimings },
    /// Worker to coordinator: this worker's part could not be made.
    Decline { epoch: Epoch, operator: Option<String>, why: String },
    /// Worker to coordinator: a phase takes long here.
    Slow { epoch: Epoch, wait: CheckpointWait },
    /// Coordinator to all: the manifest is published.
    Complete { epoch: Epoch, last: bool },
    /// Coordinator to all: the checkpoint is given up.
    Abort { epoch: Epoch },
    /// Worker to coordinator: its sources are at the end of their input.
    SourcesFinished,
    /// Worker to coordinator: its sinks have committed everything up to this epoch.
    Committed { epoch: Epoch },
    /// Coordinator to all: stop reading, move event time to its end.
    Drain,
    /// Coordinator to all: the job is over.
    Finish,
    /// Worker 0 to one worker: the splits of a source that begins, serialized.
    Assign { source: u32, splits: Vec<Vec<u8>> },
    /// To a receiver in another process: a source here waits until it has taken more.
    Full,
    /// To a sender in another process: what was taken out of channels, and how much may be outstanding.
    Ledger { bytes: u64, budget: u64 },
    /// To all in other processes: where a source instance is in event time.
    Watermark { source: u32, worker: u32, status: InstanceStatus },
}

/// A frame as it travels. Encoded by the sender, so that a frame to a worker in the same process and one to another
/// process take the same path.
#[derive(Clone)]
pub(crate) struct Frame {
    from: u32,
    bytes: Vec<u8>,
}

impl Bytesable for Frame {
    fn from_bytes(bytes: Bytes) -> Self {
        let from = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let length = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
        Self { from, bytes: bytes[8..8 + length].to_vec() }
    }

    fn length_in_bytes(&self) -> usize {
        8 + self.bytes.len().next_multiple_of(8)
    }

    fn into_bytes<W: std::io::Write>(&self, writer: &mut W) {
        let padding = self.bytes.len().next_multiple_of(8) - self.bytes.len();
        let mut header = [0; 8];
        header[..4].copy_from_slice(&self.from.to_le_bytes());
        header[4..].copy_from_slice(&(self.bytes.len() as u32).to_le_bytes());
        let pieces: [&[u8]; 3] = [&header, &self.bytes, &[0; 8][..padding]];
        for piece in pieces {
            writer.write_all(piece).expect("timely's writer is memory of the announced length");
        }
    }
}

/// One worker's end of the control plane.
pub(crate) struct ControlPlane {
    index: u32,
    pushers: Vec<Box<dyn Push<Frame>>>,
    puller: Box<dyn Pull<Frame>>,
}

impl ControlPlane {
    /// Every worker must make its end before it builds its dataflow.
    pub(crate) fn new(worker: &Worker) -> Self {
        // The address wakes the worker when a frame arrives, and names no dataflow.
        let (pushers, puller) = worker.allocate(worker.new_identifier(), [usize::MAX].into());
        Self { index: worker.index() as u32, pushers, puller }
    }

    pub(crate) fn send(&mut self, to: usize, control: &Control) {
        let bytes = postcard::to_stdvec(control).expect("control frames always encode");
        let pusher = &mut self.pushers[to];
        pusher.send(Frame { from: self.index, bytes });
        pusher.done();
    }

    pub(crate) fn broadcast(&mut self, control: &Control) {
        for to in 0..self.pushers.len() {
            self.send(to, control);
        }
    }

    /// The next frame that has arrived, and who sent it. A frame that does not decode ends the attempt: the peer is
    /// authenticated and runs the same build, so it means damage on the way.
    pub(crate) fn receive(&mut self) -> Option<Result<(usize, Control), String>> {
        let frame = self.puller.recv()?;
        let from = frame.from as usize;
        Some(match postcard::from_bytes(&frame.bytes) {
            Ok(control) => Ok((from, control)),
            Err(error) => Err(format!("a control frame of worker {from} does not decode: {error}")),
        })
    }
}
