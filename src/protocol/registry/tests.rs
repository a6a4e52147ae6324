//! The decisions one by one, then every interleaving of several attempts over a modelled directory, together with
//! designs that lack one step each: the exploration must find what is wrong with them.

use std::collections::{BTreeMap, HashSet};

use super::*;

fn set(epochs: &[u64]) -> BTreeSet<Epoch> {
    epochs.iter().copied().map(Epoch).collect()
}

#[test]
fn a_checkpoint_counts_if_the_ruling_fence_keeps_it_or_it_is_newer() {
    let fence = Fence { first_epoch: Epoch(1001), kept: set(&[3, 5]) };
    for (epoch, expected) in [(3, true), (4, false), (5, true), (6, false), (1001, true)] {
        assert_eq!(counts(Epoch(epoch), Some(&fence)), expected, "{epoch}");
        assert!(counts(Epoch(epoch), None));
    }
}

#[test]
fn a_new_attempt_starts_above_everything_reserved_or_seen() {
    let facts = AttemptFacts {
        claims: [Attempt(1), Attempt(2)].into(),
        fences: [Attempt(1)].into(),
        reservations: [(Attempt(1), Epoch(1001))].into(),
    };
    assert_eq!(next_attempt(&facts), Attempt(3));
    assert_eq!(fenced_by(&facts, Attempt(1)), Some(Attempt(2)));
    assert_eq!(fenced_by(&facts, Attempt(2)), None);
    assert_eq!(super::ruling(&facts), Some(Attempt(1)));
    let ruling = Fence { first_epoch: Epoch(1), kept: set(&[]) };
    let fence = new_fence(&facts, Some(&ruling), &set(&[7, 9]), &set(&[]));
    assert_eq!(fence, Fence { first_epoch: Epoch(2001), kept: set(&[7, 9]) });
    let fence = new_fence(&facts, Some(&ruling), &set(&[7, 9]), &set(&[2500]));
    assert_eq!(fence.first_epoch, Epoch(2501));
    let first = new_fence(&AttemptFacts::default(), None, &set(&[]), &set(&[]));
    assert_eq!(first, Fence { first_epoch: Epoch(1), kept: set(&[]) });
}

#[test]
fn retention_spares_what_is_kept_busy_or_begun_later() {
    let fence = Fence { first_epoch: Epoch(1001), kept: set(&[5]) };
    let (keep, busy, none) = (set(&[1002]), set(&[1001, 1004]), set(&[]));
    let retention =
        Retention { mine: Attempt(2), fence: &fence, keep: &keep, busy: &busy, pinned: &none };
    let goes = |epoch| retention.manifest_goes(Epoch(epoch));
    assert!(goes(5), "complete and no longer wanted");
    assert!(goes(6), "void");
    assert!(!goes(1001) && !goes(1002) && !goes(1004) && !goes(1005));
    assert!(goes(1003));
    let blob = |attempt, epoch| retention.unreferenced_blob_goes(Attempt(attempt), Epoch(epoch));
    assert!(blob(1, 7) && blob(2, 1003) && blob(2, 1002));
    assert!(!blob(2, 1001) && !blob(2, 1004) && !blob(2, 1005) && !blob(3, 1003));
    let over = Retention { keep: &none, busy: &none, ..retention };
    assert!(
        over.manifest_goes(Epoch(1005)) && over.unreferenced_blob_goes(Attempt(2), Epoch(9999))
    );
    assert!(!over.unreferenced_blob_goes(Attempt(3), Epoch(9999)));
    let pinned = set(&[5, 6, 1003]);
    let pinned = Retention { pinned: &pinned, ..over };
    assert!(!pinned.manifest_goes(Epoch(5)) && !pinned.manifest_goes(Epoch(1003)));
    assert!(pinned.manifest_goes(Epoch(6)), "void");
    assert!(pinned.manifest_goes(Epoch(1004)));
}

#[test]
fn a_pin_holds_only_if_nobody_may_delete_the_checkpoint_without_seeing_it() {
    let there = Publication { manifest: true, retiring: false };
    let fence = Fence { first_epoch: Epoch(1001), kept: set(&[5]) };
    let mut facts = AttemptFacts {
        claims: [Attempt(2)].into(),
        fences: [Attempt(2)].into(),
        reservations: [].into(),
    };
    let judge = |epoch, publication, facts: &AttemptFacts| {
        judge_pin(Epoch(epoch), publication, facts, Some(&fence))
    };
    assert_eq!(judge(5, there, &facts), PinVerdict::Holds);
    assert_eq!(judge(1001, there, &facts), PinVerdict::Holds);
    assert_eq!(judge(6, there, &facts), PinVerdict::Void { by: Attempt(2) });
    let gone = Publication { manifest: false, retiring: true };
    assert_eq!(judge(5, gone, &facts), PinVerdict::Gone);
    let marked = Publication { manifest: true, retiring: true };
    assert_eq!(judge(5, marked, &facts), PinVerdict::Retiring);
    facts.claims.insert(Attempt(3));
    let unsettled = PinVerdict::Unsettled { by: Attempt(3) };
    assert_eq!(judge(5, there, &facts), unsettled);
    facts.fences.clear();
    assert_eq!(judge_pin(Epoch(5), there, &facts, None), unsettled);
}

/// Which steps of the protocol are taken. The product takes all.
#[derive(Clone, Copy)]
struct Design {
    lists_after_publishing: bool,
    lists_manifests_after_claiming: bool,
    lists_after_its_fence: bool,
}

const SOUND: Design = Design {
    lists_after_publishing: true,
    lists_manifests_after_claiming: true,
    lists_after_its_fence: true,
};

#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct Directory {
    claims: BTreeSet<Attempt>,
    fences: BTreeMap<Attempt, Fence>,
    manifests: BTreeSet<Epoch>,
}

impl Directory {
    fn facts(&self) -> AttemptFacts {
        AttemptFacts {
            claims: self.claims.clone(),
            fences: self.fences.keys().copied().collect(),
            reservations: BTreeSet::new(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Step {
    ListManifestsEarly,
    Choose,
    Claim,
    List,
    ReadFences,
    ListManifests,
    Fence,
    ListAgain,
    PruneFences,
    PruneClaims,
    ListBeforePublish,
    Publish,
    ListAfterPublish,
    Over,
}

/// One process that claims an attempt and then takes two checkpoints.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Process {
    step: Step,
    mine: Attempt,
    seen: AttemptFacts,
    ruling: Option<Fence>,
    manifests: BTreeSet<Epoch>,
    fence: Option<Fence>,
    started_from: Option<Epoch>,
    published: u64,
    announced: BTreeSet<Epoch>,
}

impl Process {
    fn new(design: Design) -> Self {
        let first = Step::ListManifestsEarly;
        let later = Step::Choose;
        Self {
            step: if design.lists_manifests_after_claiming { later } else { first },
            mine: Attempt(0),
            seen: AttemptFacts::default(),
            ruling: None,
            manifests: BTreeSet::new(),
            fence: None,
            started_from: None,
            published: 0,
            announced: BTreeSet::new(),
        }
    }

    /// The epoch being taken.
    fn epoch(&self) -> Epoch {
        let fence = self.fence.as_ref().expect("a publisher has a fence");
        Epoch(fence.first_epoch.0 + self.published)
    }

    fn unless_fenced(&self, directory: &Directory, next: Step) -> Step {
        if fenced_by(&directory.facts(), self.mine).is_some() { Step::Over } else { next }
    }

    fn act(&mut self, directory: &mut Directory, design: Design) {
        self.step = match self.step {
            Step::ListManifestsEarly => {
                self.manifests = directory.manifests.clone();
                Step::Choose
            }
            Step::Choose => {
                self.mine = next_attempt(&directory.facts());
                Step::Claim
            }
            Step::Claim if directory.claims.insert(self.mine) => Step::List,
            Step::Claim => Step::Choose,
            Step::List => {
                self.seen = directory.facts();
                self.unless_fenced(directory, Step::ReadFences)
            }
            Step::ReadFences => {
                let ruling = super::ruling(&self.seen);
                // It may have been pruned since by a higher attempt, by which we are fenced then.
                self.ruling = ruling.and_then(|attempt| directory.fences.get(&attempt).cloned());
                Step::ListManifests
            }
            Step::ListManifests => {
                if design.lists_manifests_after_claiming {
                    self.manifests = directory.manifests.clone();
                }
                Step::Fence
            }
            Step::Fence => self.create_fence(directory),
            Step::ListAgain => {
                let next = self.unless_fenced(directory, Step::PruneFences);
                let next = if design.lists_after_its_fence { next } else { Step::PruneFences };
                if next == Step::PruneFences {
                    let fence = self.fence.as_ref().expect("it was just made");
                    self.started_from = fence.kept.last().copied();
                }
                next
            }
            Step::PruneFences => {
                for attempt in obsolete(&self.seen, self.mine) {
                    directory.fences.remove(&attempt);
                }
                Step::PruneClaims
            }
            Step::PruneClaims => {
                for attempt in obsolete(&self.seen, self.mine) {
                    directory.claims.remove(&attempt);
                }
                Step::ListBeforePublish
            }
            Step::ListBeforePublish => self.unless_fenced(directory, Step::Publish),
            Step::Publish => {
                let new = directory.manifests.insert(self.epoch());
                assert!(new, "epoch {} was used twice", self.epoch());
                Step::ListAfterPublish
            }
            Step::ListAfterPublish => self.announce(directory, design),
            Step::Over => Step::Over,
        };
    }

    fn create_fence(&mut self, directory: &mut Directory) -> Step {
        let ruling = self.ruling.as_ref();
        let fence = new_fence(&self.seen, ruling, &self.manifests, &BTreeSet::new());
        directory.fences.insert(self.mine, fence.clone());
        self.fence = Some(fence);
        Step::ListAgain
    }

    fn announce(&mut self, directory: &Directory, design: Design) -> Step {
        if design.lists_after_publishing && fenced_by(&directory.facts(), self.mine).is_some() {
            return Step::Over;
        }
        self.announced.insert(self.epoch());
        self.published += 1;
        if self.published < 2 { Step::ListBeforePublish } else { Step::Over }
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct World {
    directory: Directory,
    processes: Vec<Process>,
}

impl World {
    fn check(&self) -> Result<(), String> {
        let ruling = self.directory.fences.values().next_back();
        let mut ranges = BTreeSet::new();
        for process in &self.processes {
            for epoch in &process.announced {
                if !counts(*epoch, ruling) {
                    return Err(format!("announced checkpoint {epoch} became void"));
                }
            }
            if let Some(epoch) = process.started_from
                && !counts(epoch, ruling)
            {
                return Err(format!("checkpoint {epoch}, started from, became void"));
            }
            let working = process.published > 0 || process.step == Step::ListBeforePublish;
            if let (true, Some(fence)) = (working, &process.fence)
                && !ranges.insert(fence.first_epoch)
            {
                return Err(format!("two attempts have the epochs from {}", fence.first_epoch));
            }
        }
        Ok(())
    }
}

/// Takes every possible step from every reachable world. A process that is never chosen again is a dead one.
fn explore(processes: usize, design: Design) -> Result<usize, String> {
    let directory = Directory::default();
    let first = World { directory, processes: vec![Process::new(design); processes] };
    let mut seen = HashSet::from([first.clone()]);
    let mut pending = vec![first];
    while let Some(world) = pending.pop() {
        let mut over = true;
        for chosen in 0..processes {
            let mut next = world.clone();
            if next.processes[chosen].step == Step::Over {
                continue;
            }
            over = false;
            next.processes[chosen].act(&mut next.directory, design);
            next.check()?;
            if seen.insert(next.clone()) {
                pending.push(next);
            }
        }
        let announced = world.processes.iter().any(|process| process.announced.len() == 2);
        if over && !announced {
            return Err("all attempts fenced each other".into());
        }
    }
    Ok(seen.len())
}

#[test]
fn in_every_interleaving_of_two_attempts_announced_checkpoints_count_for_ever() {
    let states = explore(2, SOUND).unwrap();
    assert!(states > 300, "{states} states are too few to mean anything");
}

#[test]
fn in_every_interleaving_of_three_attempts_announced_checkpoints_count_for_ever() {
    let states = explore(3, SOUND).unwrap();
    assert!(states > 20_000, "{states} states are too few to mean anything");
}

#[test]
fn a_publisher_that_does_not_look_again_announces_a_void_checkpoint() {
    let error = explore(2, Design { lists_after_publishing: false, ..SOUND }).unwrap_err();
    assert!(error.contains("announced checkpoint"), "{error}");
}

#[test]
fn an_attempt_that_looks_for_manifests_before_it_claims_voids_an_announced_checkpoint() {
    let error = explore(2, Design { lists_manifests_after_claiming: false, ..SOUND }).unwrap_err();
    assert!(error.contains("announced checkpoint"), "{error}");
}

#[test]
fn without_the_last_look_two_attempts_take_the_same_epochs() {
    let error = explore(2, Design { lists_after_its_fence: false, ..SOUND }).unwrap_err();
    assert!(error.contains("two attempts have the epochs"), "{error}");
}
