//! Chains: what stands between one exchange and the next, and how barriers keep order in it.
//!
//! The head of a chain (a source or a channel) is its *origin*; stateful operators in it are *gates*. A gate holds
//! batches of a later epoch than its own back until the frontier of all its inputs passes its epoch and it has
//! taken its snapshot (I1, I3). So that what a gate holds stays small, an origin does not produce in an epoch that
//! some gate behind it has not opened: waiting data waits in the channel, where flow control sees it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use timely::progress::frontier::MutableAntichain;
use timely::scheduling::Activator;

use crate::config::CheckpointMode;
use crate::ids::Epoch;
use crate::runtime::time::Time;

/// The head of a chain.
#[derive(Clone)]
pub(crate) struct Origin {
    /// Where the chain was in event time in the checkpoint that was restored.
    restored_event: i64,
    gates: Rc<RefCell<Vec<Rc<Cell<Epoch>>>>>,
    activator: Activator,
}

impl Origin {
    pub(crate) fn new(activator: Activator, restored_event: i64) -> Self {
        Self { restored_event, gates: Rc::default(), activator }
    }

    /// Where chains behind all of `origins` were in event time in the checkpoint that was restored.
    pub(crate) fn restored_event(origins: &[Self]) -> i64 {
        origins.iter().map(|origin| origin.restored_event).min().unwrap_or(i64::MIN)
    }

    /// The same head, for what is behind an operator that could still emit at `event` in the checkpoint.
    pub(crate) fn held_at(&self, event: i64) -> Self {
        Self { restored_event: self.restored_event.min(event), ..self.clone() }
    }

    /// The same head, for what is behind an operator whose event time is its own and was `event` in the checkpoint.
    pub(crate) fn reset_to(&self, event: i64) -> Self {
        Self { restored_event: event, ..self.clone() }
    }

    /// The last epoch that every gate behind this origin has opened.
    pub(crate) fn limit(&self) -> Epoch {
        self.gates.borrow().iter().map(|gate| gate.get()).min().unwrap_or(Epoch(u64::MAX))
    }

    pub(crate) fn activator(&self) -> &Activator {
        &self.activator
    }
}

/// Holds batches back until the operator has taken its snapshot.
pub(crate) struct Gate<B> {
    mode: CheckpointMode,
    open: Rc<Cell<Epoch>>,
    waiting: VecDeque<(Time, B)>,
    origins: Vec<Origin>,
    restored_event: i64,
    /// What was shown last before the barrier of the open epoch had passed.
    shown: Cell<i64>,
    /// One more limit of the origins, for operators that may pause them.
    paused: Option<Rc<Cell<Epoch>>>,
}

impl<B> Gate<B> {
    /// A gate behind `origins`, open for `epoch`.
    pub(crate) fn new(mode: CheckpointMode, epoch: Epoch, origins: Vec<Origin>) -> Self {
        let open = Rc::new(Cell::new(epoch));
        if mode == CheckpointMode::ExactlyOnce {
            for origin in &origins {
                origin.gates.borrow_mut().push(Rc::clone(&open));
            }
        }
        let restored_event = Origin::restored_event(&origins);
        Self {
            mode,
            open,
            waiting: VecDeque::new(),
            origins,
            restored_event,
            shown: Cell::new(restored_event),
            paused: None,
        }
    }

    /// Holds later epochs back, even if the job counts records at least once.
    ///
    /// SUBTLE: its origins go on then, as they do in that mode. One that waited for this gate might have a batch of a later epoch
    /// at the head of its queue, and behind it one of the epoch that the gate waits for.
    pub(crate) fn hold_in_every_mode(&mut self) {
        self.mode = CheckpointMode::ExactlyOnce;
    }

    /// Stops the origins, whatever the epoch, or lets them go on. So that what an operator has no time for waits in the
    /// channel, where flow control sees it.
    pub(crate) fn pause(&mut self, pause: bool) {
        let limit = if pause { Epoch(0) } else { Epoch(u64::MAX) };
        if self.paused.is_none() && !pause {
            return;
        }
        let paused = self.paused.get_or_insert_with(|| {
            let paused = Rc::new(Cell::new(Epoch(u64::MAX)));
            for origin in &self.origins {
                origin.gates.borrow_mut().push(Rc::clone(&paused));
            }
            paused
        });
        if paused.replace(limit) != limit && !pause {
            for origin in &self.origins {
                origin.activator.activate();
            }
        }
    }

    /// The epoch whose barrier the operator waits for.
    pub(crate) fn open(&self) -> Epoch {
        self.open.get()
    }

    /// The least event time that may still come; `i64::MAX` at end of input. Right after a restore a frontier begins
    /// at the beginning of time; what users see of it does not go back (I9). What is held has left the frontier
    /// behind and is still to come: its records would be late otherwise.
    ///
    /// The snapshot keeps what was shown last before the barrier had come through, and a restored gate shows no less. The
    /// sources' positions are not enough for that: one that was behind its barrier already may have moved event time
    /// on, and the gate may have seen it. What the barrier itself brings does not count: other workers may have taken
    /// records since whose event time it has passed.
    pub(crate) fn event(&self, frontier: &MutableAntichain<Time>) -> i64 {
        self.event_of(&[frontier])
    }

    /// As [`Gate::event`], of an operator with several inputs: the least of all.
    pub(crate) fn event_of(&self, frontiers: &[&MutableAntichain<Time>]) -> i64 {
        let open = self.open.get();
        let held = self.waiting.iter().map(|(time, _)| time.event);
        let mut least = held.min().unwrap_or(i64::MAX);
        let mut before_barrier = false;
        for frontier in frontiers {
            for time in frontier.frontier().iter() {
                least = least.min(time.event);
                before_barrier |= time.epoch() <= open;
            }
        }
        let event = least.max(self.restored_event);
        if before_barrier {
            self.shown.set(event);
        }
        event
    }

    /// What was shown last, for the snapshot. `None` if it says nothing. At least once it does not: records of the next
    /// epoch may have been taken before the barrier came through, which will come again.
    pub(crate) fn shown(&self) -> Option<i64> {
        let exactly_once = self.mode == CheckpointMode::ExactlyOnce;
        let shown = Some(self.shown.get()).filter(|_| exactly_once);
        shown.filter(|event| *event != i64::MIN && *event != i64::MAX)
    }

    /// Shows no less than what a restored snapshot says was shown.
    pub(crate) fn resume_at(&mut self, event: i64) {
        self.restored_event = self.restored_event.max(event);
        self.shown.set(self.restored_event);
    }

    /// Whether a batch of `epoch` may be processed now.
    ///
    /// # Panics
    /// If the barrier of `epoch` has passed (I3): what came before us has sent behind its own barrier.
    pub(crate) fn admits(&self, epoch: Epoch) -> bool {
        let open = self.open.get();
        assert!(epoch >= open, "I3: a batch of epoch {epoch} came when {open} was open");
        epoch <= open || self.mode == CheckpointMode::AtLeastOnce
    }

    /// As [`Gate::admits`], and holds the batch back that may not be.
    pub(crate) fn admits_or_holds(&mut self, time: Time, batch: impl FnOnce() -> B) -> bool {
        let admitted = self.admits(time.epoch());
        if !admitted {
            self.hold(time, batch());
        }
        admitted
    }

    /// Holds a batch back.
    pub(crate) fn hold(&mut self, time: Time, batch: B) {
        self.waiting.push_back((time, batch));
    }

    /// Whether anything is held back.
    pub(crate) fn holds(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether the barrier of the open epoch has passed all inputs. At end of input it never does: there is no
    /// checkpoint any more, and what is still held is of no checkpoint either. It is dropped, since with it goes the
    /// right to send, which would keep a cancelled job from its end.
    pub(crate) fn barrier_passed(&mut self, frontiers: &[&MutableAntichain<Time>]) -> bool {
        let open = self.open.get();
        let mut ended = true;
        for frontier in frontiers {
            for time in frontier.frontier().iter() {
                ended = false;
                if time.epoch() <= open {
                    return false;
                }
            }
        }
        if ended {
            self.waiting.clear();
        }
        !ended
    }

    /// Opens the next epoch, after the snapshot.
    pub(crate) fn advance(&mut self) {
        self.open.set(self.open.get().next());
        for origin in &self.origins {
            origin.activator.activate();
        }
    }

    /// The next batch that was held back and may be processed now, in the order of arrival.
    pub(crate) fn next_open(&mut self) -> Option<B> {
        let open = self.open.get();
        let at = self.waiting.iter().position(|(time, _)| time.epoch() <= open)?;
        self.waiting.remove(at).map(|(_, batch)| batch)
    }
}

/// The lowest epoch in a frontier; `None` at end of input.
pub(crate) fn lowest_epoch(frontier: &MutableAntichain<Time>) -> Option<Epoch> {
    frontier.frontier().iter().map(Time::epoch).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(times: &[(u64, i64)]) -> MutableAntichain<Time> {
        let mut frontier = MutableAntichain::new();
        frontier.update_iter(
            times.iter().map(|(epoch, event)| (Time { epoch: *epoch, event: *event }, 1)),
        );
        frontier
    }

    fn frontier(epochs: &[u64]) -> MutableAntichain<Time> {
        let mut frontier = MutableAntichain::new();
        frontier.update_iter(epochs.iter().map(|epoch| (Time { epoch: *epoch, event: 0 }, 1)));
        frontier
    }

    #[test]
    fn a_gate_opens_only_when_every_input_has_passed_its_epoch() {
        // I1
        let mut gate = Gate::<()>::new(CheckpointMode::ExactlyOnce, Epoch(1), Vec::new());
        assert!(!gate.admits(Epoch(2)));
        assert!(!gate.barrier_passed(&[&frontier(&[2]), &frontier(&[1])]));
        assert!(gate.barrier_passed(&[&frontier(&[2]), &frontier(&[2])]));
        assert!(gate.barrier_passed(&[&frontier(&[2]), &frontier(&[])]));
        assert!(!gate.barrier_passed(&[&frontier(&[]), &frontier(&[])]));
    }

    #[test]
    #[should_panic(expected = "I3")]
    fn a_batch_from_behind_its_barrier_ends_the_attempt() {
        let mut gate = Gate::<()>::new(CheckpointMode::ExactlyOnce, Epoch(1), Vec::new());
        gate.advance();
        gate.admits(Epoch(1));
    }

    #[test]
    fn what_a_gate_held_comes_out_in_the_order_of_arrival_and_of_epochs() {
        let mut gate = Gate::new(CheckpointMode::ExactlyOnce, Epoch(1), Vec::new());
        gate.hold(Time::new(Epoch(3), 0), 'c');
        gate.hold(Time::new(Epoch(2), 0), 'a');
        gate.hold(Time::new(Epoch(2), 0), 'b');
        assert_eq!(gate.next_open(), None);
        gate.advance();
        assert_eq!(
            [gate.next_open(), gate.next_open(), gate.next_open()],
            [Some('a'), Some('b'), None]
        );
        gate.advance();
        assert_eq!(gate.next_open(), Some('c'));
    }

    #[test]
    fn event_time_does_not_pass_what_a_gate_holds() {
        let mut gate = Gate::new(CheckpointMode::ExactlyOnce, Epoch(1), Vec::new());
        gate.hold(Time::new(Epoch(2), 100), ());
        let later = times(&[(2, 500)]);
        gate.advance();
        assert_eq!(gate.event(&later), 100);
        assert_eq!(gate.next_open(), Some(()));
        assert_eq!(gate.event(&later), 500);
    }

    #[test]
    fn event_time_that_was_shown_is_kept_and_does_not_go_back_in_a_restored_gate() {
        // I9
        let gate = Gate::<()>::new(CheckpointMode::ExactlyOnce, Epoch(1), Vec::new());
        assert_eq!(gate.shown(), None);
        // One source has passed its barrier at 79 and has moved on since: positions do not tell.
        assert_eq!(gate.event(&times(&[(1, 79)])), 79);
        assert_eq!(gate.event(&times(&[(1, 94), (2, 94)])), 94);
        assert_eq!(gate.event(&times(&[(2, 99)])), 99);
        assert_eq!(gate.shown(), Some(94), "of the epoch that ends");
        let mut restored = Gate::<()>::new(CheckpointMode::ExactlyOnce, Epoch(2), Vec::new());
        restored.resume_at(94);
        assert_eq!(restored.shown(), Some(94), "a checkpoint may come before any record");
        assert_eq!(restored.event(&times(&[(2, 79)])), 94);
        assert_eq!(restored.event(&times(&[(2, 95)])), 95);
        gate.event(&times(&[(1, i64::MAX)]));
        assert_eq!(gate.shown(), None, "the end of the input is where it was");
    }

    #[test]
    fn what_a_gate_holds_at_the_end_of_input_does_not_keep_the_job_from_its_end() {
        let capability = Rc::new(());
        let mut gate = Gate::new(CheckpointMode::ExactlyOnce, Epoch(1), Vec::new());
        gate.hold(Time::new(Epoch(2), 0), Rc::clone(&capability));
        assert!(!gate.barrier_passed(&[&frontier(&[])]));
        assert_eq!(Rc::strong_count(&capability), 1);
    }
}
