//! One channel: decides which batches to release, hold, log and restamp, and when a barrier has passed.
//!
//! ```text
//! batches (epoch) -------->+---------+--release--> chain
//! frontier, timer -------->| Channel |--log------> snapshot writer
//! released, begun -------->|         |--passed---> checkpoint
//!                          +---------+
//! ```
//!
//! The machine owns the waiting batches, of a type `B` that it never looks into. A barrier *n* **arrives** when the
//! frontier of the channel's input passes epoch *n*: nothing of an epoch up to *n* comes any more. It **has passed**
//! when nothing of an epoch up to *n* waits in the queue either: what was there is released, or is in the channel log
//! of *n* and belongs to *n+1* now.
//!
//! `open` is the lowest epoch whose barrier has not arrived, `next` the lowest whose barrier has not passed:
//! `next <= open`.
//!
//! # States of one barrier, in a channel behind an exchange
//! | state    | event                          | next     | effects                                               |
//! |----------|--------------------------------|----------|-------------------------------------------------------|
//! | Expected | batch of `open`                | Expected | queue it                                              |
//! | Expected | batch of a later epoch         | Expected | hold it in `ahead`; start the timer if none runs      |
//! | Expected | checkpoint begins              | Expected | start the timer if none runs                          |
//! | Expected | timer                          | Expected | none yet: the barrier overtakes as soon as it arrives |
//! | Expected | frontier passes, queue empty   | Passed   | passed; `ahead` joins the queue                       |
//! | Expected | frontier passes, timer was     | Passed   | log and restamp the queue; passed, overtaken; `ahead` joins the queue |
//! | Expected | frontier passes, else          | Arrived  | `ahead` joins the queue behind what is there          |
//! | Arrived  | batch                          | Arrived  | of a later epoch: as for the barrier that is Expected |
//! | Arrived  | checkpoint begins              | Arrived  | start the timer if none runs                          |
//! | Arrived  | the last of its epoch released | Passed   | passed                                                |
//! | Arrived  | timer                          | Passed   | log and restamp what is left of it; passed, overtaken |
//! | Passed   | batch of its epoch             | -        | impossible: panics                                    |
//! | Passed   | any other                      | Passed   | none                                                  |
//! | any      | end of input                   | as if the frontier passed everything |                           |
//!
//! Barriers arrive and pass in the order of epochs; a timer that fires for one counts for those before it too. Any
//! number may be Arrived at once, so any number of checkpoints may be in progress: a batch that several barriers
//! overtake is in the log of each.
//!
//! In at-least-once mode nothing is held: a batch of a later epoch is queued at once, a barrier passes as soon as it
//! arrives and never overtakes.
//!
//! # States of one barrier, in a channel behind a feedback edge
//! A loop never lets its own barrier arrive before it has passed: what is in front of the loop waits for what comes out
//! of it. So the barrier passes at the moment the checkpoint begins, and the log stays open until it arrives.
//!
//! | state    | event                       | next   | effects                                                   |
//! |----------|-----------------------------|--------|-----------------------------------------------------------|
//! | Expected | batch of `open`             | Expected | queue it                                                |
//! | Expected | checkpoint begins           | Logging | log and restamp the queue                                |
//! | Logging  | batch of its epoch or below | Logging | a straggler: queue it, log and restamp it                |
//! | Logging  | batch of a later epoch      | Logging | as for the barrier that is Expected                      |
//! | Logging  | frontier passes             | Passed | passed: the log is complete                               |
//! | Passed   | batch of its epoch          | -      | impossible: panics                                        |
//! | any      | timer, released             | same   | none                                                      |
//!
//! The mode makes no difference: what goes round would be lost otherwise. Whoever feeds the machine announces an epoch
//! before the batches of the one behind it.
//!
//! # Ordering
//! Effects are to be carried out in the order given, before the queue is touched. A batch is logged before it is
//! restamped, since the log says which epoch it was sent in.
//!
//! # Invariants
//! * I1: no batch of a later epoch is released before the barrier has arrived. (`ahead` only ever holds epochs above
//!   `open`, the queue never does, exactly-once.)
//! * I2: every batch of an epoch up to *n* is released before the barrier passes, or is in the log of *n*: never both,
//!   never neither.
//! * I4: a barrier passes once, so it is overtaken at most once.
//!
//! # Failure
//! An aborted checkpoint changes nothing here: the barrier is on its way and passes as any other; a log that is
//! no longer wanted is dropped by the one who writes it. A crash loses the machine; what it held is sent again by
//! the restored sources, or comes back out of the log.
//!
//! # Source
//! Chandy and Lamport 1985; Carbone et al. 2015, asynchronous barrier snapshots; Flink FLIP-76. Differences: the
//! barrier is the completion of a timely frontier, not a record in each input, so there is one decision a channel
//! and not one an input. A channel behind an exchange does not overtake before the barrier arrives: what is behind it
//! sees the barrier no earlier anyway, since timely's frontiers do not pass what may still be sent; so it goes on
//! releasing, has no stragglers, and its log is as small as it can be.

use std::collections::VecDeque;
use std::ops::Range;

use crate::config::CheckpointMode;
use crate::ids::Epoch;

/// What a channel stands behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChannelKind {
    /// An exchange: barriers arrive from in front.
    Exchange,
    /// The edge that closes a loop.
    Feedback,
}

/// Something happened to the channel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event<B> {
    /// A batch arrived.
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
    /// Batches were taken out of the queue.
    Released,
}

/// Something is to be done, or is to be known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Start the alignment timer of this epoch.
    StartTimer(Epoch),
    /// Write these batches of the queue into the log of `epoch`.
    Log {
        /// The overtaken epoch.
        epoch: Epoch,
        /// Places in the queue.
        batches: Range<usize>,
    },
    /// These batches of the queue are released in another epoch than they were sent in.
    Restamp {
        /// Places in the queue.
        batches: Range<usize>,
        /// The epoch.
        to: Epoch,
    },
    /// The barrier of this epoch has passed: its log, if there is one, is complete.
    Passed {
        /// The epoch.
        epoch: Epoch,
        /// Whether anything is in the log.
        overtaken: bool,
    },
}

/// The state of one channel. See the module for the contract.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Channel<B> {
    kind: ChannelKind,
    mode: CheckpointMode,
    /// The lowest epoch whose barrier has not passed.
    next: Epoch,
    /// The lowest epoch whose barrier has not arrived. Behind a feedback edge: the epoch that it releases in.
    open: Epoch,
    /// The lowest epoch for which no timer was started.
    untimed: Epoch,
    /// Barriers below this one overtake.
    due: Epoch,
    queue: VecDeque<(Epoch, B)>,
    ahead: VecDeque<(Epoch, B)>,
    /// Behind a feedback edge: the logs that are open, by epoch, and whether anything is in them.
    logs: VecDeque<(Epoch, bool)>,
}

impl<B> Channel<B> {
    /// A channel that waits for the barrier of `open`.
    #[must_use]
    pub fn new(kind: ChannelKind, mode: CheckpointMode, open: Epoch) -> Self {
        Self {
            kind,
            mode,
            next: open,
            open,
            untimed: open,
            due: open,
            queue: VecDeque::new(),
            ahead: VecDeque::new(),
            logs: VecDeque::new(),
        }
    }

    /// Puts back what a restored checkpoint has logged, in front of everything else.
    pub fn restore(&mut self, batch: B) {
        self.queue.push_back((self.open, batch));
    }

    /// The lowest epoch whose barrier has not arrived. Behind a feedback edge: the epoch that it releases in.
    #[must_use]
    pub fn open(&self) -> Epoch {
        self.open
    }

    /// The lowest epoch whose barrier has not passed.
    #[must_use]
    pub fn next(&self) -> Epoch {
        self.next
    }

    /// Whether a barrier is to overtake as soon as it arrives: what is released until then only delays it.
    #[must_use]
    pub fn expects_to_overtake(&self) -> bool {
        self.next < self.due
    }

    /// The batches that may be released, in order, each with the epoch that it is released in.
    pub fn queue(&mut self) -> &mut VecDeque<(Epoch, B)> {
        &mut self.queue
    }

    /// Drops everything that waits, at the end of a job.
    pub fn clear(&mut self) {
        self.queue.clear();
        self.ahead.clear();
    }

    /// Number of batches that are held until a barrier arrives.
    #[must_use]
    pub fn ahead_batches(&self) -> usize {
        self.ahead.len()
    }

    /// Takes one event and appends what follows from it to `effects`.
    ///
    /// # Panics
    /// If a batch arrives of an epoch that the frontier had passed: timely's progress tracking is broken. If a batch
    /// of a feedback edge is of an epoch that was not announced.
    pub fn step(&mut self, event: Event<B>, effects: &mut Vec<Effect>) {
        match (self.kind, event) {
            (ChannelKind::Exchange, Event::Batch { epoch, batch }) => {
                self.batch(epoch, batch, effects);
            }
            (ChannelKind::Exchange, Event::Frontier(lowest)) => self.frontier(lowest, effects),
            (ChannelKind::Exchange, Event::Begun(epoch)) => self.start_timers(epoch, effects),
            (ChannelKind::Exchange, Event::Timer(epoch)) => {
                self.due = self.due.max(epoch.next());
                self.settle(effects);
            }
            (ChannelKind::Exchange, Event::Released) => self.settle(effects),
            (ChannelKind::Feedback, Event::Batch { epoch, batch }) => {
                self.straggle(epoch, batch, effects);
            }
            (ChannelKind::Feedback, Event::Frontier(lowest)) => self.close_logs(lowest, effects),
            (ChannelKind::Feedback, Event::Begun(epoch)) => self.overtake(epoch, effects),
            (ChannelKind::Feedback, Event::Timer(_) | Event::Released) => {}
        }
    }

    fn batch(&mut self, epoch: Epoch, batch: B, effects: &mut Vec<Effect>) {
        assert!(epoch >= self.open, "a batch of epoch {epoch} came behind its barrier");
        if epoch == self.open || self.mode == CheckpointMode::AtLeastOnce {
            self.queue.push_back((epoch, batch));
        } else {
            self.ahead.push_back((epoch, batch)); // I1
            self.start_timers(Epoch(epoch.0 - 1), effects);
        }
    }

    fn frontier(&mut self, lowest: Option<Epoch>, effects: &mut Vec<Effect>) {
        // At end of input there is no next barrier to wait for: epochs end with what was held.
        let last = lowest.unwrap_or_else(|| {
            let held = self.ahead.iter().map(|(epoch, _)| *epoch).max();
            held.unwrap_or(self.open)
        });
        while self.open < last {
            self.open = self.open.next();
            self.open_ahead();
        }
        self.settle(effects);
    }

    /// Moves what was held for the epoch that is open now into the queue.
    fn open_ahead(&mut self) {
        // In the order of arrival, in which several later epochs may be mixed.
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

    /// Lets barriers pass that have arrived.
    fn settle(&mut self, effects: &mut Vec<Effect>) {
        while self.next < self.open {
            let epoch = self.next;
            let waiting = match self.mode {
                // The queue is in the order of epochs: `ahead` sees to it.
                CheckpointMode::ExactlyOnce => {
                    self.queue.iter().take_while(|(stamp, _)| *stamp <= epoch).count()
                }
                CheckpointMode::AtLeastOnce => 0,
            };
            if waiting > 0 {
                if self.due <= epoch {
                    return;
                }
                self.log(epoch, 0..waiting, effects);
            }
            self.next = epoch.next();
            effects.push(Effect::Passed { epoch, overtaken: waiting > 0 }); // I4
        }
    }

    /// I2: what the barrier of `epoch` overtakes belongs into its log, and to the next epoch.
    fn log(&mut self, epoch: Epoch, batches: Range<usize>, effects: &mut Vec<Effect>) {
        effects.push(Effect::Log { epoch, batches: batches.clone() });
        self.restamp(batches, epoch.next(), effects);
    }

    fn restamp(&mut self, batches: Range<usize>, to: Epoch, effects: &mut Vec<Effect>) {
        for (stamp, _) in self.queue.range_mut(batches.clone()) {
            *stamp = to;
        }
        effects.push(Effect::Restamp { batches, to });
    }

    fn start_timers(&mut self, through: Epoch, effects: &mut Vec<Effect>) {
        if self.mode == CheckpointMode::AtLeastOnce {
            return;
        }
        self.untimed = self.untimed.max(self.next);
        while self.untimed <= through {
            effects.push(Effect::StartTimer(self.untimed));
            self.untimed = self.untimed.next();
        }
    }

    fn overtake(&mut self, through: Epoch, effects: &mut Vec<Effect>) {
        while self.open <= through {
            let epoch = self.open;
            let waiting = self.queue.len();
            self.open = epoch.next();
            self.logs.push_back((epoch, waiting > 0));
            if waiting > 0 {
                self.log(epoch, 0..waiting, effects);
            }
        }
    }

    fn straggle(&mut self, epoch: Epoch, batch: B, effects: &mut Vec<Effect>) {
        assert!(epoch <= self.open, "epoch {epoch} was not announced to a feedback edge");
        assert!(epoch >= self.next, "a batch of epoch {epoch} came behind its barrier");
        let at = self.queue.len();
        self.queue.push_back((epoch, batch));
        // It was sent in front of all these barriers, and we have let them pass.
        for (log, logged) in self.logs.iter_mut().filter(|(log, _)| *log >= epoch) {
            *logged = true;
            effects.push(Effect::Log { epoch: *log, batches: at..at + 1 });
        }
        if epoch < self.open {
            self.restamp(at..at + 1, self.open, effects);
        }
    }

    fn close_logs(&mut self, lowest: Option<Epoch>, effects: &mut Vec<Effect>) {
        while let Some((epoch, overtaken)) = self.logs.front().copied() {
            if lowest.is_some_and(|lowest| lowest <= epoch) {
                return;
            }
            self.logs.pop_front();
            self.next = epoch.next();
            effects.push(Effect::Passed { epoch, overtaken });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ChannelKind::{Exchange, Feedback};
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

    fn frontier(lowest: u64) -> Event<u32> {
        Event::Frontier(Some(Epoch(lowest)))
    }

    fn begun(epoch: u64) -> Event<u32> {
        Event::Begun(Epoch(epoch))
    }

    fn timer(epoch: u64) -> Event<u32> {
        Event::Timer(Epoch(epoch))
    }

    fn start(epoch: u64) -> Effect {
        Effect::StartTimer(Epoch(epoch))
    }

    fn passed(epoch: u64, overtaken: bool) -> Effect {
        Effect::Passed { epoch: Epoch(epoch), overtaken }
    }

    fn log(epoch: u64, batches: Range<usize>) -> Effect {
        Effect::Log { epoch: Epoch(epoch), batches }
    }

    fn restamp(batches: Range<usize>, to: u64) -> Effect {
        Effect::Restamp { batches, to: Epoch(to) }
    }

    fn queued(channel: &mut Channel<u32>) -> Vec<(u64, u32)> {
        channel.queue().iter().map(|(epoch, batch)| (epoch.0, *batch)).collect()
    }

    fn release(channel: &mut Channel<u32>, batches: usize) -> Vec<Effect> {
        channel.queue().drain(..batches);
        run(channel, [Event::Released])
    }

    #[test]
    fn batches_of_a_later_epoch_wait_until_the_barrier_arrives() {
        // I1
        let mut channel = Channel::new(Exchange, ExactlyOnce, Epoch(1));
        let effects = run(&mut channel, [batch(1, 10), batch(2, 20), batch(1, 11)]);
        assert_eq!(effects, [start(1)]);
        assert_eq!(queued(&mut channel), [(1, 10), (1, 11)]);
        assert_eq!(run(&mut channel, [frontier(2)]), []);
        assert_eq!(queued(&mut channel), [(1, 10), (1, 11), (2, 20)]);
    }

    #[test]
    fn a_barrier_passes_when_the_last_batch_before_it_is_released() {
        // I2
        let mut channel = Channel::new(Exchange, ExactlyOnce, Epoch(1));
        run(&mut channel, [batch(1, 10), batch(1, 11), batch(2, 20), frontier(2)]);
        assert_eq!(release(&mut channel, 1), []);
        assert_eq!(release(&mut channel, 1), [passed(1, false)]);
        assert_eq!(release(&mut channel, 1), []);
    }

    #[test]
    fn epochs_that_wait_together_are_opened_one_barrier_at_a_time() {
        let mut channel = Channel::new(Exchange, ExactlyOnce, Epoch(1));
        let effects = run(&mut channel, [batch(3, 30), batch(2, 20), frontier(2)]);
        assert_eq!(effects, [start(1), start(2), passed(1, false)]);
        assert_eq!(queued(&mut channel), [(2, 20)]);
        assert_eq!(channel.ahead_batches(), 1);
        run(&mut channel, [frontier(3)]);
        assert_eq!(queued(&mut channel), [(2, 20), (3, 30)]);
    }

    #[test]
    fn at_least_once_holds_nothing_back_and_overtakes_nothing() {
        let mut channel = Channel::new(Exchange, AtLeastOnce, Epoch(1));
        let effects = run(&mut channel, [batch(2, 20), batch(1, 10), begun(1), timer(1)]);
        assert_eq!(effects, []);
        assert_eq!(queued(&mut channel), [(2, 20), (1, 10)]);
        assert_eq!(run(&mut channel, [frontier(2)]), [passed(1, false)]);
        assert_eq!(queued(&mut channel), [(2, 20), (1, 10)]);
    }

    #[test]
    fn a_barrier_that_has_arrived_overtakes_the_queue_when_its_timer_fires() {
        // I2: logged before it is restamped
        let mut channel = Channel::new(Exchange, ExactlyOnce, Epoch(4));
        let effects =
            run(&mut channel, [batch(4, 1), batch(5, 2), batch(4, 3), frontier(5), timer(4)]);
        assert_eq!(effects, [start(4), log(4, 0..2), restamp(0..2, 5), passed(4, true)]);
        assert_eq!(queued(&mut channel), [(5, 1), (5, 3), (5, 2)]);
    }

    #[test]
    fn a_barrier_whose_timer_has_fired_overtakes_as_soon_as_it_arrives() {
        let mut channel = Channel::new(Exchange, ExactlyOnce, Epoch(4));
        let effects = run(&mut channel, [batch(4, 1), begun(4), timer(4), batch(4, 2)]);
        assert_eq!(effects, [start(4)], "until then it goes on releasing");
        channel.queue().pop_front();
        let effects = run(&mut channel, [Event::Released, frontier(5)]);
        assert_eq!(effects, [log(4, 0..1), restamp(0..1, 5), passed(4, true)]);
    }

    #[test]
    fn a_batch_that_two_barriers_overtake_is_in_the_log_of_each() {
        // I2, with several checkpoints in progress
        let mut channel = Channel::new(Exchange, ExactlyOnce, Epoch(1));
        run(&mut channel, [batch(1, 10), frontier(2), batch(2, 20), frontier(3), batch(3, 30)]);
        let effects = run(&mut channel, [begun(2), timer(2)]);
        assert_eq!(
            effects,
            [
                start(1),
                start(2),
                log(1, 0..1),
                restamp(0..1, 2),
                passed(1, true),
                log(2, 0..2),
                restamp(0..2, 3),
                passed(2, true),
            ]
        );
        assert_eq!(queued(&mut channel), [(3, 10), (3, 20), (3, 30)]);
    }

    #[test]
    fn a_timer_that_fires_after_its_barrier_has_passed_does_nothing() {
        // I4
        let mut channel = Channel::new(Exchange, ExactlyOnce, Epoch(1));
        let effects = run(&mut channel, [begun(1), frontier(2), batch(2, 5), timer(1), begun(1)]);
        assert_eq!(effects, [start(1), passed(1, false)]);
        assert_eq!(run(&mut channel, [frontier(3)]), [], "the next has a timer of its own");
    }

    #[test]
    fn end_of_input_opens_everything_that_was_held() {
        let mut channel = Channel::new(Exchange, ExactlyOnce, Epoch(1));
        run(&mut channel, [batch(1, 1), batch(3, 3), batch(2, 2), Event::Frontier(None)]);
        assert_eq!(queued(&mut channel), [(1, 1), (2, 2), (3, 3)]);
    }

    #[test]
    fn a_channel_without_batches_passes_barriers() {
        let mut channel = Channel::<u32>::new(Exchange, ExactlyOnce, Epoch(1));
        let effects = run(&mut channel, [frontier(3)]);
        assert_eq!(effects, [passed(1, false), passed(2, false)]);
    }

    #[test]
    fn what_was_restored_can_be_overtaken_and_logged_again() {
        let mut channel = Channel::new(Exchange, ExactlyOnce, Epoch(7));
        channel.restore(70);
        let effects = run(&mut channel, [begun(7), timer(7), frontier(8)]);
        assert_eq!(effects, [start(7), log(7, 0..1), restamp(0..1, 8), passed(7, true)]);
    }

    #[test]
    #[should_panic(expected = "behind its barrier")]
    fn a_batch_behind_its_barrier_ends_the_attempt() {
        let mut channel = Channel::new(Exchange, ExactlyOnce, Epoch(1));
        run(&mut channel, [frontier(2), batch(1, 1)]);
    }

    #[test]
    fn a_feedback_edge_lets_a_barrier_pass_at_once_and_logs_stragglers_until_it_arrives() {
        // I2
        let mut channel = Channel::new(Feedback, ExactlyOnce, Epoch(4));
        let effects = run(&mut channel, [batch(4, 1), begun(4), batch(4, 2), batch(5, 3)]);
        assert_eq!(effects, [log(4, 0..1), restamp(0..1, 5), log(4, 1..2), restamp(1..2, 5)]);
        assert_eq!(queued(&mut channel), [(5, 1), (5, 2), (5, 3)]);
        assert_eq!(run(&mut channel, [frontier(4), timer(4), Event::Released]), []);
        assert_eq!(run(&mut channel, [frontier(5)]), [passed(4, true)]);
    }

    #[test]
    fn a_straggler_of_two_barriers_is_in_both_logs_and_one_between_them_in_the_later() {
        let mut channel = Channel::new(Feedback, ExactlyOnce, Epoch(1));
        let effects = run(&mut channel, [begun(2), batch(1, 10), batch(2, 20)]);
        assert_eq!(
            effects,
            [log(1, 0..1), log(2, 0..1), restamp(0..1, 3), log(2, 1..2), restamp(1..2, 3)]
        );
        assert_eq!(run(&mut channel, [frontier(2)]), [passed(1, true)]);
        assert_eq!(run(&mut channel, [frontier(3)]), [passed(2, true)]);
    }

    #[test]
    fn a_feedback_edge_that_nothing_went_round_passes_with_an_empty_log() {
        let mut channel = Channel::<u32>::new(Feedback, ExactlyOnce, Epoch(1));
        assert_eq!(run(&mut channel, [begun(1), frontier(2)]), [passed(1, false)]);
    }

    #[test]
    #[should_panic(expected = "not announced")]
    fn a_feedback_edge_must_hear_of_an_epoch_before_its_batches_come() {
        let mut channel = Channel::new(Feedback, ExactlyOnce, Epoch(1));
        run(&mut channel, [batch(2, 1)]);
    }
}
