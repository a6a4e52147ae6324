//! The parts of complete checkpoints that later parts of the same worker may need.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::format::manifest::{LayerRef, PartPlace, PartRef};
use crate::ids::{Attempt, Epoch};

/// Complete checkpoints whose layers are remembered: a part that is being put together builds on one of the last few.
const REMEMBERED: usize = 16;
/// Aborted checkpoints after which the next does not build on earlier ones.
const ABORTED_MAX: u32 = 5;

/// What one worker's snapshots may build on.
#[derive(Debug, Default)]
pub(crate) struct WorkerLayers {
    /// By the checkpoint that they were written for; of a restored checkpoint perhaps by several workers.
    known: BTreeMap<Epoch, Vec<LayerRef>>,
    /// Parts whose checkpoints are not complete yet, and the checkpoints that each needs.
    written: BTreeMap<Epoch, (LayerRef, BTreeSet<Epoch>)>,
    /// What the last complete checkpoints need.
    chains: VecDeque<BTreeSet<Epoch>>,
    confirmed: Option<Epoch>,
    /// Checkpoints that were aborted since one was complete.
    aborted: u32,
}

impl WorkerLayers {
    /// The newest complete checkpoint whose part of ours can be built on.
    pub(crate) fn confirmed(&self) -> Option<Epoch> {
        self.confirmed
    }

    /// Remembers the layers of a restored checkpoint.
    pub(crate) fn adopt(&mut self, layers: impl IntoIterator<Item = LayerRef>) {
        for layer in layers {
            let known = self.known.entry(layer.epoch).or_default();
            if !known.contains(&layer) {
                known.push(layer);
            }
        }
        self.chains.push_back(self.known.keys().copied().collect());
    }

    /// The layers of these checkpoints, in ascending order.
    pub(crate) fn of(&self, epochs: &BTreeSet<Epoch>) -> Vec<LayerRef> {
        let known = |epoch| self.known.get(epoch).expect("a layer is known until no part needs it");
        epochs.iter().flat_map(known).cloned().collect()
    }

    /// A part is durable.
    pub(crate) fn written(&mut self, epoch: Epoch, attempt: Attempt, part: &PartRef) {
        let PartPlace::Blob { path, bytes, crc32c } = &part.place else { return };
        let (worker, path, bytes, crc32c) = (part.worker, path.clone(), *bytes, *crc32c);
        let layer = LayerRef { epoch, worker, attempt, path, bytes, crc32c };
        let needs = part.layers.iter().map(|layer| layer.epoch).collect();
        self.written.insert(epoch, (layer, needs));
    }

    /// A checkpoint is complete: its part can be built on.
    pub(crate) fn complete(&mut self, epoch: Epoch) {
        let Some((layer, mut needs)) = self.written.remove(&epoch) else { return };
        self.written.retain(|other, _| *other > epoch);
        self.known.insert(epoch, vec![layer]);
        needs.insert(epoch);
        self.chains.push_back(needs);
        if self.chains.len() > REMEMBERED {
            self.chains.pop_front();
        }
        let chains = &self.chains;
        self.known.retain(|epoch, _| chains.iter().any(|chain| chain.contains(epoch)));
        self.confirmed = Some(epoch);
        self.aborted = 0;
    }

    /// A checkpoint was aborted.
    pub(crate) fn aborted(&mut self, epoch: Epoch) {
        self.written.remove(&epoch);
        self.aborted += 1;
    }

    /// Whether to write everything, because what earlier checkpoints hold may be what fails: somebody may have deleted it.
    pub(crate) fn in_doubt(&self) -> bool {
        self.aborted >= ABORTED_MAX
    }
}
