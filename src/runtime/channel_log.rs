//! The log of one channel for one barrier: what it overtook, on its way into the part of its worker; and back.
//!
//! Two sections a channel, absent if nothing was overtaken: the records, each with the event time of its batch; and the
//! least of these event times, which every worker of a restored job needs to know (nothing behind the channel has seen
//! a later watermark, and none may before these records are released).
//!
//! # Order
//! Records of one key group, or of one worker's log, come back in the order in which they would have been released.
//!
//! # Where records come back
//! | channel     | to                                                                       |
//! |-------------|--------------------------------------------------------------------------|
//! | keyed       | the owner of the key's group                                             |
//! | rebalanced, feedback | the worker that logged them; at another parallelism, that number modulo the new one |
//! | broadcast   | the replica that logged them; a new replica continues as one that was there, with its log |
//! | routed      | the worker that logged them; at another parallelism, where the program's function says |

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use crate::connect::Record;
use crate::format::SectionKind;
use crate::format::{FormatError, SectionHeader, SectionOutput, codec};
use crate::ids::{KeyGroup, Name};
use crate::runtime::context::{SectionPart, SectionTask, WorkerContext, event_section};
use crate::runtime::keyed::owned_groups;
use crate::runtime::restore::{RestoreError, Restored};
use crate::runtime::router::batch_records;

/// The key group of a record, given the number of groups.
pub(crate) type GroupOf<D> = fn(&D, u16) -> KeyGroup;

/// The records of a batch. Those of a logged one are shared with the log until a snapshot thread has written them.
pub(crate) enum SharedRecords<D> {
    /// Ours alone.
    Own(Vec<D>),
    /// Also in a log. User types need `Send` and not `Sync`, hence the lock.
    Shared(Arc<Mutex<Vec<D>>>),
}

impl<D: Clone> SharedRecords<D> {
    /// Takes the first `count` records out.
    pub(crate) fn take_first(&mut self, count: usize) -> Vec<D> {
        let records = self.own();
        if count == records.len() {
            return std::mem::take(records);
        }
        let rest = records.split_off(count);
        std::mem::replace(records, rest)
    }

    fn own(&mut self) -> &mut Vec<D> {
        if let Self::Shared(shared) = self {
            let shared = std::mem::take(shared);
            *self = Self::Own(match Arc::try_unwrap(shared) {
                Ok(records) => records.into_inner().unwrap_or_else(PoisonError::into_inner),
                Err(shared) => shared.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            });
        }
        match self {
            Self::Own(records) => records,
            Self::Shared(_) => unreachable!("just made our own"),
        }
    }

    fn share(&mut self) -> Arc<Mutex<Vec<D>>> {
        if let Self::Own(records) = self {
            *self = Self::Shared(Arc::new(Mutex::new(std::mem::take(records))));
        }
        match self {
            Self::Shared(shared) => Arc::clone(shared),
            Self::Own(_) => unreachable!("just shared"),
        }
    }
}

/// What one barrier has overtaken in one channel.
pub(crate) struct ChannelLog<D> {
    batches: Vec<(i64, Arc<Mutex<Vec<D>>>)>,
    records: u64,
}

impl<D> Default for ChannelLog<D> {
    fn default() -> Self {
        Self { batches: Vec::new(), records: 0 }
    }
}

impl<D: Record> ChannelLog<D> {
    /// Adds a batch with the event time that it was sent at.
    pub(crate) fn add(&mut self, event: i64, len: usize, records: &mut SharedRecords<D>) {
        self.records += len as u64;
        self.batches.push((event, records.share()));
    }

    /// Number of records.
    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    /// What the log adds to its worker's part.
    pub(crate) fn into_sections(
        self,
        channel: &Name,
        group_of: Option<GroupOf<D>>,
        max_parallelism: u16,
    ) -> Vec<SectionPart> {
        let Some(event) = self.batches.iter().map(|(event, _)| *event).min() else {
            return Vec::new();
        };
        let [records, least] = log_headers::<D>(channel);
        let batches = self.batches;
        let write: SectionTask = Box::new(move |out| {
            match group_of {
                Some(group_of) => write_keyed(batches, group_of, max_parallelism, out)?,
                None => write_in_order(batches, out)?,
            }
            Ok(())
        });
        vec![SectionPart::plain(records, write), SectionPart::plain(least, event_section(event))]
    }
}

type Batches<D> = Vec<(i64, Arc<Mutex<Vec<D>>>)>;

fn write_in_order<D: Record>(
    batches: Batches<D>,
    out: &mut dyn SectionOutput,
) -> Result<(), FormatError> {
    // Each batch is let go of as soon as it is written: the worker need not clone it then.
    for (event, records) in batches {
        for record in &*records.lock().unwrap_or_else(PoisonError::into_inner) {
            out.entry(KeyGroup(0), &mut |bytes| codec::encode(&(event, record), bytes))?;
        }
    }
    Ok(())
}

/// Sorted by key group, as parts are; in one group the order stays.
fn write_keyed<D: Record>(
    batches: Batches<D>,
    group_of: GroupOf<D>,
    max_parallelism: u16,
    out: &mut dyn SectionOutput,
) -> Result<(), FormatError> {
    let mut encoded = Vec::new();
    let mut entries = Vec::new();
    for (event, records) in batches {
        for record in &*records.lock().unwrap_or_else(PoisonError::into_inner) {
            let start = encoded.len();
            codec::encode(&(event, record), &mut encoded)?;
            entries.push((group_of(record, max_parallelism), start..encoded.len()));
        }
    }
    entries.sort_by_key(|(group, _)| *group);
    for (group, range) in entries {
        out.entry(group, &mut |bytes| {
            bytes.extend_from_slice(&encoded[range.clone()]);
            Ok(())
        })?;
    }
    Ok(())
}

/// The sections of a channel's log: the records, and the least event time among them.
pub(crate) fn log_headers<D>(channel: &Name) -> [SectionHeader; 2] {
    let header = |state, type_name: &str| SectionHeader {
        operator: channel.clone(),
        state: Name::new(state).expect("a constant name"),
        kind: SectionKind::ChannelLog,
        type_name: type_name.to_owned(),
        type_version: 1,
    };
    [header("in-flight", std::any::type_name::<D>()), header("in-flight-event", "i64")]
}

/// Which worker the records of a log come back to.
pub(crate) enum Placement<D> {
    /// The owner of the key group.
    Keyed(GroupOf<D>),
    /// Any: the one that logged them, if it is there.
    Anywhere,
    /// The replica that logged them.
    Replica,
    /// Where the program's function sends them.
    Routed(RouteBy<D>),
}

/// A program's routing function: a record, and the number of workers.
pub(crate) type RouteBy<D> = Rc<RefCell<dyn FnMut(&D, usize) -> usize>>;

/// What comes back to one worker out of a channel's logs.
pub(crate) struct RestoredLog<D> {
    /// Batches in order, each with the event time that it was sent at.
    pub(crate) batches: Vec<(i64, Vec<D>)>,
    /// The least event time in the logs of all workers; `i64::MAX` if nothing was logged.
    pub(crate) event: i64,
}

impl<D> Default for RestoredLog<D> {
    fn default() -> Self {
        Self { batches: Vec::new(), event: i64::MAX }
    }
}

/// Reads this worker's share of a channel's logs.
///
/// # Errors
/// [`RestoreError::Unreadable`], naming the file.
pub(crate) fn read_log<D: Record>(
    restored: &Restored,
    headers: &[SectionHeader; 2],
    placement: &Placement<D>,
    context: &WorkerContext,
) -> Result<RestoredLog<D>, RestoreError> {
    let mut log = RestoredLog::default();
    let [records, least] = headers;
    log.event = restored.events(least)?.into_iter().min().unwrap_or(i64::MAX);
    let (index, peers) = (context.index, context.peers);
    let before = restored.manifest().parallelism as usize;
    let max_parallelism = context.config().max_parallelism;
    let groups = match placement {
        Placement::Keyed(_) => owned_groups(context),
        _ => 0..u16::MAX,
    };
    let from_part = |part: u32| match placement {
        Placement::Keyed(_) => true,
        Placement::Anywhere => part as usize % peers == index,
        Placement::Replica => part as usize == index % before,
        Placement::Routed(_) => before != peers || part as usize == index,
    };
    let batches = &mut log.batches;
    restored.for_each_block_of(
        &records.operator,
        &records.state,
        groups.clone(),
        from_part,
        |_, block| {
            codec::decode_entries(block.bytes, block.entries, |(event, record): (i64, D)| {
                let ours = match placement {
                    Placement::Keyed(group_of) => {
                        groups.contains(&group_of(&record, max_parallelism).0)
                    }
                    Placement::Routed(route) if before != peers => {
                        (route.borrow_mut())(&record, peers) % peers == index
                    }
                    _ => true,
                };
                if ours {
                    push(batches, event, record);
                }
            })
        },
    )?;
    Ok(log)
}

fn push<D>(batches: &mut Vec<(i64, Vec<D>)>, event: i64, record: D) {
    match batches.last_mut() {
        Some((last, records)) if *last == event && records.len() < batch_records::<D>() => {
            records.push(record);
        }
        _ => batches.push((event, vec![record])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps entries as they come.
    #[derive(Default)]
    struct Entries(Vec<(u16, Vec<u8>)>);

    impl SectionOutput for Entries {
        fn entry(
            &mut self,
            group: KeyGroup,
            fill: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), FormatError>,
        ) -> Result<(), FormatError> {
            let mut bytes = Vec::new();
            fill(&mut bytes)?;
            self.0.push((group.0, bytes));
            Ok(())
        }
    }

    fn written(log: ChannelLog<u64>, group_of: Option<GroupOf<u64>>) -> Vec<(u16, i64, u64)> {
        let mut sections = log.into_sections(&Name::new("c").unwrap(), group_of, 4);
        assert_eq!(sections.len(), 2);
        let mut out = Entries::default();
        (sections.remove(0).task)(&mut out).unwrap();
        let decode = |(group, bytes): (u16, Vec<u8>)| {
            let (event, record) = codec::decode(&bytes).unwrap();
            (group, event, record)
        };
        out.0.into_iter().map(decode).collect()
    }

    #[test]
    fn a_keyed_log_is_sorted_by_key_group_and_keeps_the_order_inside_one() {
        let mut log = ChannelLog::default();
        log.add(5, 3, &mut SharedRecords::Own(vec![3, 1, 7]));
        log.add(2, 2, &mut SharedRecords::Own(vec![5, 2]));
        assert_eq!(log.records(), 5);
        let group_of: GroupOf<u64> =
            |record, groups| KeyGroup((*record % u64::from(groups)) as u16);
        let expected = [(1, 5, 1), (1, 2, 5), (2, 2, 2), (3, 5, 3), (3, 5, 7)];
        assert_eq!(written(log, Some(group_of)), expected);
    }

    #[test]
    fn a_batch_can_be_released_while_its_log_is_not_written_yet() {
        let mut records = SharedRecords::Own(vec![1, 2, 3]);
        let mut log = ChannelLog::default();
        log.add(0, 3, &mut records);
        assert_eq!(records.take_first(2), [1, 2]);
        assert_eq!(records.take_first(1), [3]);
        assert_eq!(written(log, None), [(0, 0, 1), (0, 0, 2), (0, 0, 3)]);
    }

    #[test]
    fn a_log_that_overtook_nothing_adds_nothing_to_the_part() {
        let log = ChannelLog::<u64>::default();
        assert!(log.into_sections(&Name::new("c").unwrap(), None, 4).is_empty());
    }
}
