//! Flow control between pairs of workers: bytes sent less bytes taken out of channels for processing.
//!
//! Only sources stop. A source asks [`Ledger::blocked`] before it produces; nothing else ever waits, so flow
//! control cannot deadlock, loops included. In one process both ends are the same atomics; across processes the
//! control plane carries what was taken out back to the sender.
//!
//! A balance may be negative for a moment, since both ends count on their own.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use crate::runtime::counters::Balance;

/// The balances of all pairs of workers, as far as this process knows them.
#[derive(Debug)]
pub(crate) struct Ledger {
    peers: usize,
    /// `[sender * peers + receiver]`: bytes outstanding.
    outstanding: Vec<AtomicI64>,
    /// `[receiver * peers + sender]`: bytes taken out and not yet reported to a sender in another process.
    unreported: Vec<AtomicI64>,
    /// `[receiver]`: how many bytes may be outstanding towards this worker from each sender.
    budgets: Vec<AtomicU64>,
    /// `[receiver]`: whether a sender had to wait for this worker.
    full: Vec<AtomicBool>,
    /// The workers of this process.
    local: std::ops::Range<usize>,
}

/// Budget of a receiver that has not been measured yet. Units: bytes.
pub(crate) const INITIAL_BUDGET_BYTES: u64 = 1 << 20;

impl Ledger {
    pub(crate) fn new(peers: usize, local: std::ops::Range<usize>) -> Self {
        let zeros = || (0..peers * peers).map(|_| AtomicI64::new(0)).collect();
        let budgets = (0..peers).map(|_| AtomicU64::new(INITIAL_BUDGET_BYTES)).collect();
        let full = (0..peers).map(|_| AtomicBool::new(false)).collect();
        Self { peers, outstanding: zeros(), unreported: zeros(), budgets, full, local }
    }

    /// `from` has sent `bytes` to `to`.
    pub(crate) fn sent(&self, from: usize, to: usize, bytes: u64) {
        self.outstanding[from * self.peers + to].fetch_add(bytes as i64, Ordering::Relaxed);
    }

    /// `to` has taken `bytes` that `from` had sent out of a channel.
    pub(crate) fn taken(&self, from: usize, to: usize, bytes: u64) {
        if self.local.contains(&from) {
            self.outstanding[from * self.peers + to].fetch_sub(bytes as i64, Ordering::Relaxed);
        } else {
            self.unreported[to * self.peers + from].fetch_add(bytes as i64, Ordering::Relaxed);
        }
    }

    /// Takes what worker `to` must report to `from` in another process.
    pub(crate) fn take_unreported(&self, from: usize, to: usize) -> u64 {
        let at = &self.unreported[to * self.peers + from];
        if at.load(Ordering::Relaxed) == 0 { 0 } else { at.swap(0, Ordering::Relaxed) as u64 }
    }

    /// Whether worker `to` has taken something that it has not reported.
    pub(crate) fn has_unreported(&self, to: usize) -> bool {
        let row = &self.unreported[to * self.peers..(to + 1) * self.peers];
        row.iter().any(|bytes| bytes.load(Ordering::Relaxed) > 0)
    }

    /// A report of worker `to` in another process: it has taken `bytes` that `from` had sent, and has room for
    /// `budget` bytes.
    pub(crate) fn reported(&self, from: usize, to: usize, bytes: u64, budget: u64) {
        self.outstanding[from * self.peers + to].fetch_sub(bytes as i64, Ordering::Relaxed);
        self.set_budget(to, budget);
    }

    pub(crate) fn set_budget(&self, to: usize, budget: u64) {
        self.budgets[to].store(budget, Ordering::Relaxed);
    }

    pub(crate) fn budget(&self, to: usize) -> u64 {
        self.budgets[to].load(Ordering::Relaxed)
    }

    /// Whether the sources of worker `from` must wait.
    pub(crate) fn blocked(&self, from: usize) -> bool {
        let mut blocked = false;
        for to in 0..self.peers {
            if self.outstanding(from, to) >= self.budget(to) as i64 {
                self.full[to].store(true, Ordering::Relaxed);
                blocked = true;
            }
        }
        blocked
    }

    /// Whether a sender had to wait for worker `to` since the last call. Those in other processes say so.
    pub(crate) fn was_full(&self, to: usize) -> bool {
        self.full[to].swap(false, Ordering::Relaxed)
    }

    /// A sender in another process had to wait for worker `to`.
    pub(crate) fn set_full(&self, to: usize) {
        self.full[to].store(true, Ordering::Relaxed);
    }

    /// The balances of the workers of this process, as senders.
    pub(crate) fn balances(&self) -> Vec<Balance> {
        let pairs = self.local.clone().flat_map(|from| (0..self.peers).map(move |to| (from, to)));
        let balance = |(from, to)| Balance {
            from,
            to,
            outstanding_bytes: self.outstanding(from, to).max(0) as u64,
            budget_bytes: self.budget(to),
        };
        pairs.map(balance).collect()
    }

    /// Bytes that `from` has sent to `to` and `to` has not taken out.
    pub(crate) fn outstanding(&self, from: usize, to: usize) -> i64 {
        self.outstanding[from * self.peers + to].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_waits_while_any_receiver_is_over_its_budget() {
        let ledger = Ledger::new(2, 0..2);
        ledger.set_budget(1, 100);
        ledger.sent(0, 1, 99);
        assert!(!ledger.blocked(0));
        ledger.sent(0, 1, 1);
        assert!(ledger.blocked(0));
        assert!(!ledger.blocked(1));
        ledger.taken(0, 1, 50);
        assert!(!ledger.blocked(0));
        assert_eq!(ledger.outstanding(0, 1), 50);
    }

    #[test]
    fn what_a_sender_in_another_process_sent_is_reported_to_it_once() {
        let receiver = Ledger::new(2, 1..2);
        let sender = Ledger::new(2, 0..1);
        sender.sent(0, 1, 70);
        receiver.taken(0, 1, 70);
        assert!(receiver.has_unreported(1) && !receiver.has_unreported(0));
        let bytes = receiver.take_unreported(0, 1);
        sender.reported(0, 1, bytes, 500);
        assert_eq!(sender.outstanding(0, 1), 0);
        assert_eq!(sender.budget(1), 500);
        assert_eq!(receiver.take_unreported(0, 1), 0);
        assert!(!receiver.has_unreported(1));
    }
}
