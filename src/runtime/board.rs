//! Where every source instance is in event time, so that an idle one does not hold the watermark back.
//!
//! Timely only knows that an idle source still has the right to send at its time. An idle instance therefore moves
//! on with the others: to the least event time that any instance, of any source, that is not idle may still send
//! at. If it wakes up with earlier records they are late, as they would be in Flink. An operator that assigns event time
//! does the same, with its own instances on other workers.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};

use crate::protocol::watermark::{InstanceStatus, idle_target};

/// Sources have numbers below this one, and operators that assign event time from it on.
pub(crate) const ASSIGNERS: u32 = 1 << 31;

/// The numbers of all sources.
pub(crate) const SOURCES: RangeInclusive<u32> = 0..=ASSIGNERS - 1;

/// All instances of sources, and of operators that assign event time, as far as this process knows.
#[derive(Debug, Default)]
pub(crate) struct Board {
    instances: Mutex<BTreeMap<(u32, usize), InstanceStatus>>,
}

impl Board {
    /// Sets the status of the instance of `source` on `worker`; says whether it was another.
    pub(crate) fn set(&self, source: u32, worker: usize, status: InstanceStatus) -> bool {
        let mut instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        instances.insert((source, worker), status) != Some(status)
    }

    /// The watermark that an idle instance may move on to with those numbered `among`; `None` if it must stay.
    pub(crate) fn idle_target(&self, among: RangeInclusive<u32>) -> Option<i64> {
        let instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        let among = (*among.start(), 0)..=(*among.end(), usize::MAX);
        idle_target(instances.range(among).map(|(_, status)| *status))
    }
}
