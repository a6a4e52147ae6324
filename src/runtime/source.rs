//! Sources: they read splits, write positions down at a barrier, and move event time on.
//!
//! # Ordering
//! At an activation a source first passes the barriers that its worker has begun: for each it hands in the positions
//! of all its splits, and then lets go of the right to send in that epoch. Only then it reads. So a record read
//! before the positions were written down is of the old epoch, and one read later of the new one.
//!
//! # Failure
//! A source that cannot be read on ends the attempt. A restored one goes on from the positions in the checkpoint.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use timely::container::NoopBuilder;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, Stream};
use timely::scheduling::Activator;

use crate::connect::{ConnectError, ReadStatus, Record, Source, SplitReader, Waker};
use crate::format::shape::EntryShape;
use crate::format::{SectionHeader, SectionKind, codec};
use crate::ids::{Epoch, KeyGroup, Name};
use crate::protocol::watermark::{SplitState, SplitWatermarks, event_coordinate};
use crate::runtime::board::SOURCES;
use crate::runtime::chain::Origin;
use crate::runtime::context::{
    Contribution, SectionPart, SectionTask, SourceControl, WorkerContext,
};
use crate::runtime::control::Control;
use crate::runtime::event_clock::{EventClock, Pressure, Tick};
use crate::runtime::event_time::EventTime;
use crate::runtime::pace::Pace;
use crate::runtime::pool::Pool;
use crate::runtime::restore::{RestoreError, Restored};
use crate::runtime::router::batch_records;
use crate::runtime::scope_name;
use crate::runtime::shapes::shape_of;
use crate::runtime::time::Time;

/// Records that a source reads in one step, at the most.
const READ_RECORDS_MAX: usize = 8192;
/// How long a source waits that flow control has stopped.
const BLOCKED_WAIT: Duration = Duration::from_micros(500);
/// How long a source waits at the most for a gate, or for the end of the job. Both activate it.
const GATED_WAIT: Duration = Duration::from_millis(100);

/// A split as checkpoints keep it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct KeptSplit<T> {
    split: T,
    state: SplitState,
}

/// What a source instance starts with.
pub(crate) enum SourceStart<T> {
    /// Nothing: worker 0 lists the splits and deals them.
    Fresh,
    /// The splits that are this worker's share of a checkpoint.
    Restored {
        splits: Vec<KeptSplit<T>>,
        /// Where the source was in event time, over all workers.
        event: i64,
    },
}

/// The section that holds a source's splits.
pub(crate) fn splits_header<S: Source>(operator: &Name) -> SectionHeader {
    SectionHeader {
        operator: operator.clone(),
        state: Name::new("splits").expect("a constant name"),
        kind: SectionKind::Source,
        type_name: std::any::type_name::<S::Split>().to_owned(),
        type_version: 1,
        shape: EntryShape::of_values(shape_of::<KeptSplit<S::Split>>()),
    }
}

/// Reads all splits of a checkpoint, and deals this worker its share. Every worker deals alike.
pub(crate) fn read_start<S: Source>(
    restored: &Restored,
    header: &SectionHeader,
    context: &WorkerContext,
) -> Result<SourceStart<S::Split>, RestoreError> {
    let mut kept: Vec<KeptSplit<S::Split>> = Vec::new();
    restored.for_each_block(&header.operator, &header.state, 0..u16::MAX, |_, block| {
        codec::decode_entries(block.bytes, block.entries, |split| kept.push(split))
    })?;
    let reached = kept.iter().map(|kept| match kept.state {
        SplitState { finished: true, .. } => i64::MAX,
        SplitState { watermark, .. } => event_coordinate(watermark),
    });
    let event = reached.min().unwrap_or(i64::MIN);
    // Unfinished ones first, so that they are spread evenly.
    let (unfinished, finished): (Vec<_>, Vec<_>) =
        kept.into_iter().partition(|kept| !kept.state.finished);
    let share = |splits: Vec<KeptSplit<S::Split>>| {
        splits.into_iter().skip(context.index).step_by(context.peers)
    };
    let splits = share(unfinished).chain(share(finished)).collect();
    Ok(SourceStart::Restored { splits, event })
}

struct OpenSplit<S: Source> {
    /// Where it ended, if it has; the reader knows better while there is one.
    split: S::Split,
    reader: Option<S::Reader>,
    wait_until: Duration,
}

/// What the driver tells a source instance, and when it is to run again.
#[derive(Default)]
struct Orders {
    /// One moment, not a timer of timely's: that keeps every timer it is given, one more for each activation, and knows
    /// nothing of our clock.
    wake_at: Cell<Option<Duration>>,
    assigned: RefCell<Option<Vec<Vec<u8>>>>,
    drain: Cell<bool>,
    activator: RefCell<Option<Activator>>,
}

impl SourceControl for Orders {
    fn assign(&self, splits: Vec<Vec<u8>>) {
        *self.assigned.borrow_mut() = Some(splits);
        self.activate();
    }
    fn drain(&self) {
        self.drain.set(true);
        self.activate();
    }
    fn tick(&self, now: Duration) {
        if self.wake_at.get().is_some_and(|at| at <= now) {
            self.wake_at.set(None);
            self.activate();
        }
    }
    fn deadline(&self) -> Option<Duration> {
        self.wake_at.get()
    }
}

impl Orders {
    fn activate(&self) {
        if let Some(activator) = &*self.activator.borrow() {
            activator.activate();
        }
    }
}

struct Reading<S: Source> {
    name: Name,
    from: S,
    context: Rc<WorkerContext>,
    participant: usize,
    origin: Origin,
    orders: Rc<Orders>,
    waker: Waker,
    /// A waker was called since the last read.
    woken: Arc<AtomicBool>,
    event_time: EventTime<S::Record>,
    /// `None` until the splits are known.
    splits: Option<(Vec<OpenSplit<S>>, SplitWatermarks)>,
    next: usize,
    epoch: Epoch,
    clock: EventClock,
    finished: bool,
    pace: Pace,
    pool: Pool<S::Record>,
}

/// Builds a source.
pub(crate) fn source<'scope, S: Source>(
    scope: Scope<'scope, Time>,
    context: &Rc<WorkerContext>,
    name: &Name,
    number: u32,
    from: S,
    start: SourceStart<S::Split>,
    event_time: EventTime<S::Record>,
) -> (Stream<'scope, Time, Vec<S::Record>>, Origin)
where
    S::Record: Record,
{
    let mut builder = OperatorBuilder::new(name.to_string(), scope);
    let (output, records) = builder.new_output::<Vec<S::Record>>();
    let mut output = OutputBuilder::<_, NoopBuilder<Vec<S::Record>>>::from(output);
    let address = builder.operator_info().address;
    let activator = scope.activator_for(Rc::clone(&address));
    let (splits, event) = match start {
        SourceStart::Restored { splits, event } => (Some(splits), event),
        SourceStart::Fresh => (None, i64::MIN),
    };
    let origin = Origin::new(activator.clone(), event);
    context.origin(activator.clone());
    let orders = Rc::new(Orders::default());
    *orders.activator.borrow_mut() = Some(activator);
    context.sources.borrow_mut().push(Rc::clone(&orders) as Rc<dyn SourceControl>);
    let sync = scope.worker().sync_activator_for(address.to_vec());
    let woken = Arc::new(AtomicBool::new(false));
    let wake = Arc::clone(&woken);
    let waker: Waker = Arc::new(move || {
        wake.store(true, Ordering::Release);
        // A worker that is gone need not be woken.
        let _ = sync.activate();
    });
    let mut reading = Reading {
        name: name.clone(),
        from,
        context: Rc::clone(context),
        participant: context.participant(name.clone()),
        origin: origin.clone(),
        orders,
        waker,
        woken,
        event_time,
        splits: None,
        next: 0,
        epoch: context.shared.first_epoch,
        clock: EventClock::new(number, SOURCES, event),
        finished: false,
        pace: Pace::new(context, READ_RECORDS_MAX),
        pool: context.pool(),
    };
    let started = match splits {
        Some(kept) => reading.open(kept),
        None if context.shared.planning => Ok(()),
        None if context.index == 0 => deal::<S>(&mut reading.from, number, context),
        None => Ok(()),
    };
    if let Err(error) = started {
        context.fail_operator(name, &error);
    }
    let operator = scope_name(name.as_str());
    builder.build(move |mut capabilities| {
        let mut capability = capabilities.pop();
        move |_frontiers| {
            let _scope = operator.enter();
            if reading.context.finishing() {
                capability = None;
            }
            let Some(capability) = &mut capability else { return };
            let mut output = output.activate();
            let stepped = reading.step(capability, |capability, records| {
                output.session_with_builder(capability).give_container(records);
            });
            if let Err(error) = stepped {
                reading.context.fail_operator(&reading.name, &error);
            }
        }
    });
    (records, origin)
}

/// Lists the splits and deals them, on worker 0 of a job that restores nothing.
fn deal<S: Source>(from: &mut S, number: u32, context: &WorkerContext) -> Result<(), ConnectError> {
    let mut shares = vec![Vec::new(); context.peers];
    for (index, split) in from.splits(context.peers)?.into_iter().enumerate() {
        let kept = KeptSplit { split, state: SplitState::NEW };
        let mut bytes = Vec::new();
        codec::encode(&kept, &mut bytes)
            .map_err(|error| ConnectError::caused("a split cannot be serialized", error))?;
        shares[index % context.peers].push(bytes);
    }
    for (worker, splits) in shares.into_iter().enumerate() {
        context.send(Some(worker), Control::Assign { source: number, splits });
    }
    Ok(())
}

impl<S: Source> Reading<S>
where
    S::Record: Record,
{
    fn open(&mut self, kept: Vec<KeptSplit<S::Split>>) -> Result<(), ConnectError> {
        let mut splits = Vec::with_capacity(kept.len());
        let states: Vec<SplitState> = kept.iter().map(|kept| kept.state).collect();
        for KeptSplit { split, state } in kept {
            let reader = if state.finished {
                None
            } else {
                let mut reader = self.from.open(split.clone())?;
                reader.set_waker(Arc::clone(&self.waker));
                Some(reader)
            };
            splits.push(OpenSplit { split, reader, wait_until: Duration::ZERO });
        }
        let now = self.context.now();
        let watermarks = SplitWatermarks::new(&self.event_time.strategy, &states, now);
        self.splits = Some((splits, watermarks));
        Ok(())
    }

    fn step(
        &mut self,
        capability: &mut Capability<Time>,
        mut give: impl FnMut(&Capability<Time>, &mut Vec<S::Record>),
    ) -> Result<(), ConnectError> {
        let assigned = self.orders.assigned.take();
        if let Some(assigned) = assigned {
            let kept: Result<Vec<_>, _> =
                assigned.iter().map(|bytes| codec::decode(bytes)).collect();
            let kept = kept.map_err(|error| ConnectError::caused("a dealt split", error))?;
            self.open(kept)?;
        }
        // A barrier must not pass before the splits are known: the checkpoint would hold none.
        if self.splits.is_none() || self.context.failed() {
            return Ok(());
        }
        if capability.time().epoch() < self.epoch {
            capability.downgrade(&Time::new(self.epoch, self.clock.event()));
        }
        while self.epoch < self.context.epoch() {
            self.hand_in();
            self.epoch = self.epoch.next();
            capability.downgrade(&Time::new(self.epoch, self.clock.event()));
        }
        let wait = if self.finished { None } else { self.read(capability, &mut give)? };
        let waits = wait.is_some_and(|wait| wait > Duration::ZERO);
        let tick = self.tick(waits, capability);
        match wait {
            None => self.orders.wake_at.set(None),
            Some(Duration::ZERO) => self.origin.activator().activate(),
            Some(wait) => {
                let at = self.context.now().saturating_add(wait);
                self.orders.wake_at.set(Some(tick.map_or(at, |tick| at.min(tick))));
            }
        }
        Ok(())
    }

    /// Reads what may be read. Returns how long to wait before the next read; `None` at the end.
    fn read(
        &mut self,
        capability: &Capability<Time>,
        give: &mut impl FnMut(&Capability<Time>, &mut Vec<S::Record>),
    ) -> Result<Option<Duration>, ConnectError> {
        let context = Rc::clone(&self.context);
        let pool = &self.pool;
        let Some((splits, watermarks)) = &mut self.splits else { return Ok(None) };
        let now = context.now();
        let ending = context.final_epoch().is_some_and(|last| self.epoch > last);
        let gated = ending || self.epoch > self.origin.limit();
        let blocked = gated || context.shared.ledger.blocked(context.index);
        watermarks.set_blocked(blocked, now);
        if blocked {
            return Ok(Some(if gated { GATED_WAIT } else { BLOCKED_WAIT }));
        }
        if self.woken.swap(false, Ordering::Acquire) {
            // Which split it was is not known; asking one in vain is cheap.
            splits.iter_mut().for_each(|open| open.wait_until = Duration::ZERO);
        }
        let mut room = self.pace.quantum(&context);
        let count = splits.len();
        let mut waiting = 0;
        let mut wait = Duration::MAX;
        while room > 0 && waiting < count {
            self.next = (self.next + 1) % count;
            let open = &mut splits[self.next];
            let Some(reader) = &mut open.reader else {
                waiting += 1;
                continue;
            };
            if open.wait_until > now {
                wait = wait.min(open.wait_until - now);
                waiting += 1;
                continue;
            }
            let mut records = pool.take();
            let records_max = room.min(batch_records::<S::Record>());
            let status = reader.read(&mut records, records_max)?;
            let read = records.len();
            // A read without records counts too, or a reader that says `More` for long would keep the worker.
            room = room.saturating_sub(read.max(1));
            if read > 0 {
                self.pace.released(read);
                context.shared.counters.source_records.fetch_add(read as u64, Ordering::Relaxed);
                if let Some(timestamp) = &self.event_time.timestamp {
                    watermarks.observe(self.next, records.iter().map(timestamp), now);
                    self.clock.stir();
                }
                give(capability, &mut records);
            } else {
                pool.give(records);
            }
            match status {
                ReadStatus::More => waiting = 0,
                ReadStatus::Wait(time) => {
                    open.wait_until = now + time;
                    wait = wait.min(time);
                    waiting += 1;
                }
                ReadStatus::Finished => {
                    open.split = reader.split();
                    open.reader = None;
                    watermarks.finish(self.next);
                    self.clock.stir();
                }
            }
        }
        if splits.iter().all(|open| open.reader.is_none()) || self.orders.drain.get() {
            return Ok(None);
        }
        let all_wait = waiting >= count;
        Ok(Some(if all_wait { wait.min(Duration::from_secs(1)) } else { Duration::ZERO }))
    }

    /// Moves event time on. `waits`: no record is read now. Returns when there may be something to move on again, if no record
    /// comes.
    fn tick(&mut self, waits: bool, capability: &mut Capability<Time>) -> Option<Duration> {
        let (_, watermarks) = self.splits.as_mut()?;
        let ended = self.finished || self.orders.drain.get() || watermarks.status().finished;
        // Who may not read has something to read, and too much to do already.
        let pressure = match waits && !watermarks.is_blocked() {
            _ if ended => Pressure::Ended,
            true => Pressure::CaughtUp,
            false => Pressure::Usual,
        };
        let (tick, again) = self.clock.tick(watermarks, pressure, &self.context);
        let Some(Tick { status, moved }) = tick else { return again };
        if moved {
            self.context.shared.counters.set_watermark(status.watermark);
            capability.downgrade(&Time::new(self.epoch, self.clock.event()));
        }
        if status.finished && !self.finished {
            self.finished = true;
            self.context.source_finished();
        }
        again
    }

    /// Writes down where every split stands.
    fn hand_in(&mut self) {
        if !self.context.shared.durable {
            let nothing = Contribution::nothing();
            self.context.hand_in(self.epoch, self.participant, nothing);
            return;
        }
        let start = self.context.now();
        let Some((splits, watermarks)) = &self.splits else { return };
        let kept: Vec<KeptSplit<S::Split>> = splits
            .iter()
            .enumerate()
            .map(|(index, open)| KeptSplit {
                split: open.reader.as_ref().map_or_else(|| open.split.clone(), SplitReader::split),
                state: watermarks.state(index),
            })
            .collect();
        let task: SectionTask = Box::new(move |out| {
            for split in kept {
                out.entry(KeyGroup(0), &mut |bytes| codec::encode(&split, bytes))?;
            }
            Ok(())
        });
        let sections = vec![SectionPart::plain(splits_header::<S>(&self.name), task)];
        let sync = self.context.now().saturating_sub(start);
        self.context.hand_in(self.epoch, self.participant, Contribution::state(sections, sync));
    }
}
