//! Control frames that are late, or come twice.
//!
//! The transport promises that frames of one worker to another keep their order, and none is lost. So a frame that is
//! late keeps all behind it waiting, and frames of different pairs of workers come in any order.

use std::collections::BTreeMap;

use super::Random;
use super::reduce::FaultKind;
use super::trace::Trace;
use crate::runtime::driver::Delivery;

/// For how long frames wait, at the most. Units: turns of all workers.
const TURNS_MAX: u64 = 80;

/// What becomes of control frames, and what has.
pub(super) struct ControlFaults {
    random: Random,
    delay: f64,
    twice: f64,
    /// For a receiving and a sending seat, the turn up to which the sender's frames wait.
    held: BTreeMap<(usize, usize), u64>,
    delays: u32,
    repeats: u32,
}

impl ControlFaults {
    /// Faults of these probabilities for each frame.
    pub(super) fn new(random: Random, delay: f64, twice: f64) -> Self {
        Self { random, delay, twice, held: BTreeMap::new(), delays: 0, repeats: 0 }
    }

    /// From here on frames come as they are sent.
    pub(super) fn none(&mut self) {
        (self.delay, self.twice) = (0.0, 0.0);
        self.held.clear();
    }

    /// How often each kind of fault has happened.
    pub(super) fn counts(&self) -> [(FaultKind, u32); 2] {
        [(FaultKind::ControlDelay, self.delays), (FaultKind::ControlTwice, self.repeats)]
    }

    /// What becomes of the next frame from one seat to another.
    pub(super) fn deliver(
        &mut self,
        to: usize,
        from: usize,
        turn: u64,
        trace: &mut Trace,
    ) -> Delivery {
        if let Some(until) = self.held.get(&(to, from)) {
            if *until > turn {
                return Delivery::Later;
            }
            // It has waited enough.
            self.held.remove(&(to, from));
        } else if self.random.chance(self.delay) {
            let turns = self.random.scaled(1, TURNS_MAX);
            self.held.insert((to, from), turn + turns);
            self.delays += 1;
            trace.note(|| format!("  frames of {from} for {to} wait for {turns} turns"));
            return Delivery::Later;
        }
        if !self.random.chance(self.twice) {
            return Delivery::Now;
        }
        self.repeats += 1;
        if self.random.chance(0.5) { Delivery::Twice } else { Delivery::Again }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_frame_comes_in_the_end_and_is_counted_once() {
        let mut faults = ControlFaults::new(Random::new(1), 1.0, 0.0);
        let mut trace = Trace::new();
        let late =
            (0..).take_while(|turn| faults.deliver(0, 1, *turn, &mut trace) == Delivery::Later);
        assert!((1..=TURNS_MAX as usize).contains(&late.count()));
        assert_eq!(faults.counts()[0].1, 1);
    }

    #[test]
    fn frames_are_repeated_at_once_or_behind_all_that_wait() {
        let mut faults = ControlFaults::new(Random::new(1), 0.0, 1.0);
        let mut trace = Trace::new();
        let mut deliveries: Vec<Delivery> =
            (0..20).map(|turn| faults.deliver(0, 1, turn, &mut trace)).collect();
        deliveries.dedup();
        assert!(deliveries.contains(&Delivery::Twice) && deliveries.contains(&Delivery::Again));
        faults.none();
        assert_eq!(faults.deliver(0, 1, 30, &mut trace), Delivery::Now);
        assert_eq!(faults.counts()[1].1, 20);
    }
}
