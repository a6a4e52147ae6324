//! Where every source instance is in event time, so that an idle one does not hold the watermark back.
//!
//! Timely only knows that an idle source still has the right to send at its time. An idle instance therefore moves
//! on with the others: to the least event time that any instance, of any source, that is not idle may still send
//! at. If it wakes up with earlier records they are late, as they would be in Flink.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// Where one source instance is in event time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Status {
    /// It may still send at this event time.
    Active(i64),
    /// It has not sent for a while, and follows the others.
    Idle,
    /// It will not send again.
    Finished,
}

/// All source instances, as far as this process knows.
#[derive(Debug, Default)]
pub(crate) struct Board {
    instances: Mutex<BTreeMap<(u32, usize), Status>>,
}

impl Board {
    /// Sets the status of the instance of `source` on `worker`; says whether it was another.
    pub(crate) fn set(&self, source: u32, worker: usize, status: Status) -> bool {
        let mut instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        instances.insert((source, worker), status) != Some(status)
    }

    /// The event time that an idle instance may move on to; `None` if it must stay.
    pub(crate) fn idle_event(&self) -> Option<i64> {
        let instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        let active = instances.values().filter_map(|status| match status {
            Status::Active(event) => Some(*event),
            Status::Idle | Status::Finished => None,
        });
        active.min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_instance_follows_the_slowest_active_one_and_stays_if_there_is_none() {
        let board = Board::default();
        board.set(0, 0, Status::Active(10));
        board.set(0, 1, Status::Active(7));
        board.set(1, 0, Status::Idle);
        assert_eq!(board.idle_event(), Some(7));
        board.set(0, 1, Status::Finished);
        assert_eq!(board.idle_event(), Some(10));
        board.set(0, 0, Status::Idle);
        assert_eq!(board.idle_event(), None);
    }
}
