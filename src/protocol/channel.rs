//! One channel: decides which batches to release, hold, log and restamp, and when a barrier has passed.
//!
//! ```text
//! batches (epoch) -------->+---------+--release--> chain
//! frontier, timer -------->| Channel |--log------> snapshot writer
//!                          +---------+--passed---> statistics
//! ```
//!
//! The machine owns the waiting batches, of a type `B` that it never looks into. `open` is the epoch whose
//! barrier the channel waits for: batches of `open` may be released, later ones may not.
//!
//! # States
//! *Open*: no checkpoint is in progress that this channel has not passed. *Aligning*: one has begun.
//! *Overtaking*: a barrier was overtaken, its log is still open.
//!
//! | state      | event                     | next       | effects                                              |
//! |------------|---------------------------|------------|------------------------------------------------------|
//! | Open       | batch of `open`           | Open       | queue it                                             |
//! | Open       | batch of a later epoch    | Aligning   | hold it in `ahead`, start the timer                  |
//! | Open       | checkpoint `open` begins  | Aligning   | start the timer                                      |
//! | Open       | frontier passes `open`    | Open       | barrier passed aligned; `ahead` joins the queue      |
//! | Open       | timer                     | Open       | none: it was late                                    |
//! | Aligning   | batch of `open`           | Aligning   | queue it                                             |
//! | Aligning   | batch of a later epoch    | Aligning   | hold it in `ahead`                                   |
//! | Aligning   | checkpoint begins again   | Aligning   | none                                                 |
//! | Aligning   | frontier passes `open`    | Open       | barrier passed aligned; `ahead` joins the queue      |
//! | Aligning   | timer                     | Overtaking | log and restamp the queue; barrier passed overtaken; `ahead` joins the queue |
//! | Overtaking | batch of the overtaken epoch | Overtaking | queue it as of `open`, log and restamp it: a straggler |
//! | Overtaking | batch of `open`           | Overtaking | queue it                                             |
//! | Overtaking | batch of a later epoch    | Overtaking | hold it in `ahead`                                   |
//! | Overtaking | a later checkpoint begins | Overtaking | none: its timer starts when the log is closed (I4)   |
//! | Overtaking | frontier passes the overtaken epoch | Open or Aligning | close the log                        |
//! | Overtaking | timer                     | Overtaking | none (I4)                                            |
//! | any        | end of input              | Open       | as a frontier that passes everything                 |
//!
//! In at-least-once mode nothing is held: a batch of a later epoch is queued at once, and a barrier is never
//! overtaken, since nothing waits for it.
//!
//! # Ordering
//! Effects are to be carried out in the order given. A batch is logged before it is restamped, since the log
//! says which epoch it was sent in.
//!
//! # Invariants
//! * I1: no batch of a later epoch is released before the barrier has passed or been overtaken. (`ahead` only
//!   ever holds epochs above `open`, the queue never does, exactly-once.)
//! * I2: every batch of epoch *n* is released before the barrier passes, or is in the log of *n*.
//! * I4: a barrier is overtaken at most once, and at most one overtaken barrier is open at a time.
//!
//! # Failure
//! An aborted checkpoint changes nothing here: the barrier is on its way and passes as any other; a log that is
//! no longer wanted is dropped by the one who writes it. A crash loses the machine; what it held is sent again by
//! the restored sources, or comes back out of the log.
//!
//! # Source
//! Chandy and Lamport 1985; Carbone et al. 2015, asynchronous barrier snapshots; Flink FLIP-76. Differences: the
//! barrier is the completion of a timely frontier, not a record in each channel, so there is one decision a channel
//! and not one an input; and overtaking restamps what it overtakes, so operators behind never see two epochs mixed.

use std::collections::VecDeque;

use crate::config::CheckpointMode;
use crate::ids::Epoch;

/// Something happened to the channel.
#[derive(Debug)]
pub enum Event<B> {
    /// A batch arrived from the exchange.
    Batch {
        /// The epoch that it was sent in.
        epoch: Epoch,
        /// The batch.
        batch: B,
    },
    /// The lowest epoch that may still arrive; `None` at end of input.
    Frontier(Option<Epoch>),
    /// The checkpoint that closes this epoch has begun.
    Begun(Epoch),
    /// The alignment timer that was started for this epoch fired.
    Timer(Epoch),
}

/// Something is to be done, or is to be known.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Start the alignment timer of this epoch.
    StartTimer(Epoch),
    /// Write all that is queued now into the log of `epoch`, and restamp it to `to`.
    LogQueue {
        /// The overtaken epoch.
        epoch: Epoch,
        /// The epoch that it is released in.
        to: Epoch,
    },
    /// Write the batch that was queued last into the log of `epoch`, and restamp it to `to`.
    LogStraggler {
        /// The overtaken epoch.
        epoch: Epoch,
        /// The epoch that it is released in.
        to: Epoch,
    },
    /// The log of this epoch is complete.
    CloseLog(Epoch),
    /// The barrier of this epoch has passed.
    Passed {
        /// The epoch.
        epoch: Epoch,
        /// Whether it overtook the queue.
        overtaken: bool,
    },
}

/// The state of one channel. See the module for the contract.
#[derive(Debug)]
pub struct Channel<B> {
    mode: CheckpointMode,
    open: Epoch,
    aligning: bool,
    /// The overtaken epoch whose log is open.
    overtaken: Option<Epoch>,
    /// The highest epoch whose checkpoint is known to have begun.
    begun: Option<Epoch>,
    queue: VecDeque<(Epoch, B)>,
    ahead: VecDeque<(Epoch, B)>,
}

impl<B> Channel<B> {
    /// A channel that waits for the barrier of `open`.
    #[must_use]
    pub fn new(mode: CheckpointMode, open: Epoch) -> Self {
        Self {
            mode,
            open,
            aligning: false,
            overtaken: None,
            begun: None,
            queue: VecDeque::new(),
            ahead: VecDeque::new(),
        }
    }

    /// The epoch whose barrier the channel waits for.
    #[must_use]
    pub fn open(&self) -> Epoch {
        self.open
    }

    /// The batches that may be released, in order, each with the epoch that it is released in.
    pub fn queue(&mut self) -> &mut VecDeque<(Epoch, B)> {
        &mut self.queue
    }

    /// Number of batches that are held until a barrier passes.
    #[must_use]
    pub fn ahead_batches(&self) -> usize {
        self.ahead.len()
    }

    /// Takes one event and appends what follows from it to `effects`.
    ///
    /// # Panics
    /// If a batch arrives of an epoch that the frontier had passed: timely's progress tracking is broken.
    pub fn step(&mut self, event: Event<B>, effects: &mut Vec<Effect>) {
        match event {
            Event::Batch { epoch, batch } => self.batch(epoch, batch, effects),
            Event::Frontier(lowest) => self.frontier(lowest, effects),
            Event::Begun(epoch) => {
                self.begun = self.begun.max(Some(epoch));
                self.start_aligning(effects);
            }
            Event::Timer(epoch) => {
                if self.aligning && self.overtaken.is_none() && epoch == self.open {
                    self.overtake(effects);
                }
            }
        }
    }

    fn batch(&mut self, epoch: Epoch, batch: B, effects: &mut Vec<Effect>) {
        if epoch < self.open {
            // I2: it is no longer in front of our barrier, so it belongs into the log.
            assert_eq!(self.overtaken, Some(epoch), "a batch of a passed epoch");
            self.queue.push_back((self.open, batch));
            effects.push(Effect::LogStraggler { epoch, to: self.open });
        } else if epoch == self.open || self.mode == CheckpointMode::AtLeastOnce {
            self.queue.push_back((epoch, batch));
        } else {
            self.ahead.push_back((epoch, batch)); // I1
            self.begun = self.begun.max(Some(Epoch(epoch.0 - 1)));
            self.start_aligning(effects);
        }
    }

    fn frontier(&mut self, lowest: Option<Epoch>, effects: &mut Vec<Effect>) {
        let passed = |epoch: Epoch| lowest.is_none_or(|lowest| lowest > epoch);
        if let Some(epoch) = self.overtaken.filter(|epoch| passed(*epoch)) {
            self.overtaken = None;
            effects.push(Effect::CloseLog(epoch));
        }
        // At end of input there is no next barrier to wait for: epochs end with what was held.
        let last = lowest.unwrap_or_else(|| {
            let held = self.ahead.iter().map(|(epoch, _)| *epoch).max();
            held.unwrap_or(self.open)
        });
        while self.open < last {
            let epoch = self.open;
            self.open_next();
            effects.push(Effect::Passed { epoch, overtaken: false });
        }
        self.start_aligning(effects);
    }

    fn overtake(&mut self, effects: &mut Vec<Effect>) {
        assert!(self.overtaken.is_none(), "I4: at most one overtaken barrier is open");
        let epoch = self.open;
        let to = epoch.next();
        effects.push(Effect::LogQueue { epoch, to });
        for (stamp, _) in &mut self.queue {
            *stamp = to;
        }
        self.overtaken = Some(epoch);
        effects.push(Effect::Passed { epoch, overtaken: true });
        self.open_next();
    }

    fn open_next(&mut self) {
        self.aligning = false;
        self.open = self.open.next();
        // `ahead` is in the order of arrival, and may hold several later epochs.
        for _ in 0..self.ahead.len() {
            let Some((epoch, batch)) = self.ahead.pop_front() else { break };
            if epoch == self.open {
                self.queue.push_back((epoch, batch));
            } else {
                self.ahead.push_back((epoch, batch));
            }
        }
        debug_assert!(self.ahead.iter().all(|(epoch, _)| *epoch > self.open), "I1");
    }

    fn start_aligning(&mut self, effects: &mut Vec<Effect>) {
        let begun = self.begun.is_some_and(|begun| begun >= self.open);
        if begun && !self.aligning && self.overtaken.is_none() {
            self.aligning = true;
            effects.push(Effect::StartTimer(self.open));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use CheckpointMode::{AtLeastOnce, ExactlyOnce};

    fn run(
        channel: &mut Channel<u32>,
        events: impl IntoIterator<Item = Event<u32>>,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        for event in events {
            channel.step(event, &mut effects);
        }
        effects
    }

    fn batch(epoch: u64, batch: u32) -> Event<u32> {
        Event::Batch { epoch: Epoch(epoch), batch }
    }

    fn queued(channel: &mut Channel<u32>) -> Vec<(u64, u32)> {
        channel.queue().iter().map(|(epoch, batch)| (epoch.0, *batch)).collect()
    }

    #[test]
    fn batches_of_a_later_epoch_wait_until_the_frontier_passes_the_open_one() {
        // I1
        let mut channel = Channel::new(ExactlyOnce, Epoch(1));
        let effects = run(&mut channel, [batch(1, 10), batch(2, 20), batch(1, 11)]);
        assert_eq!(effects, [Effect::StartTimer(Epoch(1))]);
        assert_eq!(queued(&mut channel), [(1, 10), (1, 11)]);
        let effects = run(&mut channel, [Event::Frontier(Some(Epoch(2)))]);
        assert_eq!(effects, [Effect::Passed { epoch: Epoch(1), overtaken: false }]);
        assert_eq!(queued(&mut channel), [(1, 10), (1, 11), (2, 20)]);
    }

    #[test]
    fn epochs_that_wait_together_are_released_one_barrier_at_a_time() {
        let mut channel = Channel::new(ExactlyOnce, Epoch(1));
        run(&mut channel, [batch(3, 30), batch(2, 20), Event::Frontier(Some(Epoch(2)))]);
        assert_eq!(queued(&mut channel), [(2, 20)]);
        assert_eq!(channel.ahead_batches(), 1);
        run(&mut channel, [Event::Frontier(Some(Epoch(3)))]);
        assert_eq!(queued(&mut channel), [(2, 20), (3, 30)]);
    }

    #[test]
    fn at_least_once_holds_nothing_back() {
        let mut channel = Channel::new(AtLeastOnce, Epoch(1));
        let effects = run(&mut channel, [batch(2, 20), batch(1, 10)]);
        assert_eq!(effects, []);
        assert_eq!(queued(&mut channel), [(2, 20), (1, 10)]);
    }

    #[test]
    fn an_overtaken_queue_and_its_stragglers_are_logged_before_they_are_restamped() {
        // I2
        let mut channel = Channel::new(ExactlyOnce, Epoch(4));
        let effects = run(
            &mut channel,
            [batch(4, 1), batch(5, 2), Event::Timer(Epoch(4)), batch(4, 3), batch(5, 4)],
        );
        assert_eq!(
            effects,
            [
                Effect::StartTimer(Epoch(4)),
                Effect::LogQueue { epoch: Epoch(4), to: Epoch(5) },
                Effect::Passed { epoch: Epoch(4), overtaken: true },
                Effect::LogStraggler { epoch: Epoch(4), to: Epoch(5) },
            ]
        );
        assert_eq!(queued(&mut channel), [(5, 1), (5, 2), (5, 3), (5, 4)]);
        let effects = run(&mut channel, [Event::Frontier(Some(Epoch(5)))]);
        assert_eq!(effects, [Effect::CloseLog(Epoch(4))]);
    }

    #[test]
    fn a_second_barrier_is_not_overtaken_while_the_log_of_the_first_is_open() {
        // I4
        let mut channel = Channel::new(ExactlyOnce, Epoch(1));
        run(&mut channel, [Event::Begun(Epoch(1)), Event::Timer(Epoch(1))]);
        let effects =
            run(&mut channel, [batch(3, 9), Event::Begun(Epoch(2)), Event::Timer(Epoch(2))]);
        assert_eq!(effects, []);
        let effects = run(&mut channel, [Event::Frontier(Some(Epoch(2)))]);
        assert_eq!(effects, [Effect::CloseLog(Epoch(1)), Effect::StartTimer(Epoch(2))]);
    }

    #[test]
    fn a_timer_that_fires_after_the_barrier_has_passed_does_nothing() {
        let mut channel = Channel::new(ExactlyOnce, Epoch(1));
        let effects = run(
            &mut channel,
            [Event::Begun(Epoch(1)), Event::Frontier(Some(Epoch(2))), Event::Timer(Epoch(1))],
        );
        let passed = Effect::Passed { epoch: Epoch(1), overtaken: false };
        assert_eq!(effects, [Effect::StartTimer(Epoch(1)), passed]);
    }

    #[test]
    fn end_of_input_releases_everything_that_was_held() {
        let mut channel = Channel::new(ExactlyOnce, Epoch(1));
        run(&mut channel, [batch(1, 1), batch(3, 3), batch(2, 2), Event::Frontier(None)]);
        assert_eq!(queued(&mut channel), [(1, 1), (2, 2), (3, 3)]);
    }

    #[test]
    fn a_channel_without_batches_passes_barriers() {
        let mut channel = Channel::<u32>::new(ExactlyOnce, Epoch(1));
        let effects = run(&mut channel, [Event::Frontier(Some(Epoch(3)))]);
        let passed = |n| Effect::Passed { epoch: Epoch(n), overtaken: false };
        assert_eq!(effects, [passed(1), passed(2)]);
    }
}
