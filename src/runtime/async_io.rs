//! An operator that asks the outside world about every record, and goes on when it has the answer.
//!
//! ```text
//! records -->[ queue ]--ask, up to the capacity-->[ under way ]--answers--> downstream
//!                                                  ^   |  ^
//!                            retry, after its delay +---+  +-- other threads, by the inbox
//! ```
//! # States of a record
//! | state    | event                     | next     | effect                                              |
//! |----------|---------------------------|----------|-----------------------------------------------------|
//! | queued   | there is room             | asked    | the function is called, the time-out begins         |
//! | asked    | answer                    | answered |                                                     |
//! | asked    | failure, time-out         | failed   | if attempts are left: the delay begins              |
//! | asked    | failure, time-out, no attempt or no time left | answered, or the job fails | the function says which   |
//! | failed   | delay over                | asked    | the function is called, the time-out begins         |
//! | answered | its turn                  | gone     | results are emitted; ordered: when all before it are |
//!
//! An answer to an attempt that has timed out is ignored: answers say which attempt they are for.
//!
//! # Where records wait
//! Requests under way, failed ones that wait and answers that wait for their turn count against the capacity. When it is
//! reached, the origins of the chain are paused (`Gate::pause`): what comes waits in the channel, where flow control sees it
//! and sources stop. What an origin has released in the same step is on its way already and waits in the queue, so that is
//! one quantum of each origin at the most. A barrier that waits behind paused channels overtakes there as ever.
//!
//! # Barriers
//! When the barrier of *n* has passed the input, everything in the operator is logged as a channel logs what was overtaken:
//! the records with the event times that they came at, in the order of arrival. They come back by the same rules, keyed
//! ones to the owner of their key, and are asked again. Results that have been emitted are of *n*, all others of *n+1* (I3).
//! The final checkpoint at the end of the input is taken again until nothing is under way, as for loops; behind its barrier
//! nothing is emitted until that is known.
//!
//! # Capability
//! The operator holds one for each event time at which a record in it came, and emits the record's results there. So
//! the watermark does not pass a record that is under way, and no result is later than its record was.
//!
//! # Threads
//! Answers come by an unbounded channel, bounded by the capacity and by attempts that have timed out. Who answers wakes the
//! worker by timely's activator, unless it was woken since it looked last. Nothing here blocks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, unbounded};
use timely::container::NoopBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::scheduling::SyncActivator;

use crate::connect::{ConnectError, Record};
use crate::ids::{Epoch, Name};
use crate::runtime::async_function::{Answer, AsyncContext, AsyncFunction, AsyncSettings};
use crate::runtime::chain::{Gate, Origin};
use crate::runtime::channel_log::{ChannelLog, GroupOf, RestoredLog, SharedRecords};
use crate::runtime::context::{Alarm, Contribution, WorkerContext};
use crate::runtime::counters::RequestCounters;
use crate::runtime::keyed::Session;
use crate::runtime::outgoing::Outgoing;
use crate::runtime::pool::Pool;
use crate::runtime::scope_name;
use crate::runtime::time::Time;

/// What the operator is made of.
pub(crate) struct AsyncParts<D: Record, F, W> {
    pub(crate) function: F,
    pub(crate) settings: AsyncSettings,
    /// Makes an output record of a record and a result.
    pub(crate) wrap: W,
    /// The key group of a record, if records are where their keys are.
    pub(crate) group_of: Option<GroupOf<D>>,
    pub(crate) restored: RestoredLog<D>,
}

/// An answer, and what to: the number of the request, and of the attempt.
struct Reply<O> {
    request: u64,
    attempt: u32,
    result: Result<Vec<O>, ConnectError>,
}

/// Where answers come in.
struct Inbox<O> {
    sender: Sender<Reply<O>>,
    /// Whether the operator runs, or is going to.
    awake: AtomicBool,
    activator: SyncActivator,
}

impl<O> Inbox<O> {
    fn post(&self, reply: Reply<O>) {
        // Nobody reads it only if the attempt is over.
        let sent = self.sender.send(reply).is_ok();
        if sent && !self.awake.swap(true, Ordering::AcqRel) {
            let _ = self.activator.activate();
        }
    }
}

enum State<O> {
    Asked,
    /// Waits to be asked again.
    Failed(ConnectError),
    Answered(Vec<O>),
}

struct Request<D, O> {
    record: D,
    event: i64,
    attempt: u32,
    state: State<O>,
    /// When it times out, or is asked again.
    deadline: Option<Duration>,
    /// When its last attempt is over.
    end: Option<Duration>,
}

/// The rights to send what is still to come, by event time, and for how many records.
#[derive(Default)]
struct Rights(BTreeMap<i64, (Capability<Time>, usize)>);

impl Rights {
    fn add(&mut self, capability: Capability<Time>, records: usize) {
        let time = *capability.time();
        match self.0.get_mut(&time.event) {
            None => drop(self.0.insert(time.event, (capability, records))),
            Some((held, count)) => {
                // At least once, batches of a later epoch may have come before.
                if time.epoch() < held.time().epoch() {
                    *held = capability;
                }
                *count += records;
            }
        }
    }

    fn at(&self, event: i64) -> &Capability<Time> {
        &self.0.get(&event).expect("a record that waits has its right to send").0
    }

    fn release(&mut self, event: i64, records: usize) {
        let (_, count) = self.0.get_mut(&event).expect("a record that waits has its right to send");
        *count -= records;
        if *count == 0 {
            self.0.remove(&event);
        }
    }

    /// What is emitted from here on is of `open` or later.
    fn move_to(&mut self, open: Epoch) {
        for (event, (capability, _)) in &mut self.0 {
            if capability.time().epoch() < open {
                capability.downgrade(&Time::new(open, *event));
            }
        }
    }
}

/// All records in the operator.
struct Requests<D: Record, F: AsyncFunction<D>, W, R> {
    name: Name,
    context: Rc<WorkerContext>,
    parts: AsyncParts<D, F, W>,
    opened: bool,
    queue: VecDeque<(i64, D)>,
    /// By number: in the order of arrival.
    under_way: BTreeMap<u64, Request<D, F::Output>>,
    next: u64,
    /// Those that have been answered, in the order of their answers. Unused if ordered.
    answered: VecDeque<u64>,
    deadlines: BTreeSet<(Duration, u64)>,
    rights: Rights,
    inbox: Arc<Inbox<F::Output>>,
    replies: Receiver<Reply<F::Output>>,
    counters: Arc<RequestCounters>,
    outgoing: Outgoing<R>,
    inputs: Pool<D>,
}

impl<D, F, W, R> Requests<D, F, W, R>
where
    D: Record,
    F: AsyncFunction<D>,
    W: Fn(&D, F::Output) -> R,
    R: Record,
{
    fn restore(&mut self, capability: Capability<Time>) {
        let epoch = self.context.shared.first_epoch;
        for (event, mut records) in std::mem::take(&mut self.parts.restored.batches) {
            self.take(capability.delayed(&Time::new(epoch, event)), &mut records);
        }
    }

    fn take(&mut self, capability: Capability<Time>, records: &mut Vec<D>) {
        if records.is_empty() {
            return;
        }
        let event = capability.time().event;
        self.rights.add(capability, records.len());
        self.queue.extend(records.drain(..).map(|record| (event, record)));
        self.inputs.give(std::mem::take(records));
    }

    /// Asks about as many records as there is room for. Returns whether there was one.
    fn ask_queued(&mut self, now: Duration) -> bool {
        let mut asked = false;
        while self.under_way.len() < self.parts.settings.capacity && !self.context.failed() {
            let Some((event, record)) = self.queue.pop_front() else { break };
            let (number, state) = (self.next, State::Asked);
            self.next += 1;
            let end = self.parts.settings.total_timeout.map(|total| now.saturating_add(total));
            let request = Request { record, event, attempt: 0, state, deadline: None, end };
            self.under_way.insert(number, request);
            self.ask(number, now);
            asked = true;
        }
        asked
    }

    fn ask(&mut self, number: u64, now: Duration) {
        if !std::mem::replace(&mut self.opened, true)
            && let Err(error) = self.parts.function.open(&AsyncContext::new(&self.context))
        {
            self.context.fail_operator(&self.name, &error);
            return;
        }
        let Some(request) = self.under_way.get_mut(&number) else { return };
        request.attempt += 1;
        request.state = State::Asked;
        let timeout = self.parts.settings.timeout.map(|timeout| now.saturating_add(timeout));
        request.deadline = timeout.into_iter().chain(request.end).min();
        self.deadlines.extend(request.deadline.map(|at| (at, number)));
        let (attempt, inbox) = (request.attempt, Arc::clone(&self.inbox));
        let answer =
            Answer::new(move |result| inbox.post(Reply { request: number, attempt, result }));
        self.parts.function.ask(&request.record, answer);
    }

    /// Takes in what was answered. Returns whether anything was.
    fn collect(&mut self, now: Duration) -> bool {
        let mut any = false;
        while let Ok(Reply { request: number, attempt, result }) = self.replies.try_recv() {
            let Some(request) = self.under_way.get_mut(&number) else { continue };
            if attempt != request.attempt || !matches!(request.state, State::Asked) {
                continue; // It has timed out.
            }
            any = true;
            if let Some(at) = request.deadline.take() {
                self.deadlines.remove(&(at, number));
            }
            let count =
                if result.is_ok() { &self.counters.answered } else { &self.counters.failed };
            count.fetch_add(1, Ordering::Relaxed);
            self.settle(number, result, now);
        }
        any
    }

    /// An attempt is over.
    fn settle(&mut self, number: u64, result: Result<Vec<F::Output>, ConnectError>, now: Duration) {
        let Some(request) = self.under_way.get_mut(&number) else { return };
        let results = match result {
            Ok(results) => results,
            Err(error) => {
                let again = self.parts.settings.delay_after(request.attempt);
                let at = now.saturating_add(again.unwrap_or_default());
                let too_late = request.end.is_some_and(|end| end <= at);
                if let Some(delay) = again.filter(|_| !too_late) {
                    tracing::debug!(
                        operator = %self.name, attempt = request.attempt,
                        "a request has failed, again in {delay:?}: {error}"
                    );
                    request.state = State::Failed(error);
                    request.deadline = Some(at);
                    self.deadlines.insert((at, number));
                    return;
                }
                let error = match self.parts.settings.total_timeout.filter(|_| too_late) {
                    Some(total) => {
                        let attempts = request.attempt;
                        let what = format!("no answer within {total:?}, in {attempts} attempts");
                        ConnectError::caused(what, error)
                    }
                    None => error,
                };
                self.counters.given_up.fetch_add(1, Ordering::Relaxed);
                let Some(results) = self.parts.function.failed(&request.record, &error) else {
                    let attempts = request.attempt;
                    let what = format!("a request has failed {attempts} times, the last time");
                    self.context.fail_operator(&self.name, &ConnectError::caused(what, error));
                    return;
                };
                results
            }
        };
        request.state = State::Answered(results);
        if !self.parts.settings.ordered {
            self.answered.push_back(number);
        }
    }

    /// Lets time-outs and delays end.
    fn expire(&mut self, now: Duration) {
        while let Some((at, number)) = self.deadlines.first().copied()
            && at <= now
        {
            self.deadlines.pop_first();
            let Some(request) = self.under_way.get_mut(&number) else { continue };
            request.deadline = None;
            let over = request.end.is_some_and(|end| end <= now);
            let error = match std::mem::replace(&mut request.state, State::Asked) {
                State::Failed(error) if over => error,
                State::Failed(_) => {
                    self.ask(number, now);
                    continue;
                }
                State::Asked => {
                    self.counters.timed_out.fetch_add(1, Ordering::Relaxed);
                    match self.parts.settings.timeout.filter(|_| request.end != Some(at)) {
                        Some(timeout) => ConnectError::new(format!("no answer within {timeout:?}")),
                        None => ConnectError::new("no answer to the last one by then"),
                    }
                }
                // It has no deadline any more.
                State::Answered(results) => {
                    request.state = State::Answered(results);
                    continue;
                }
            };
            self.settle(number, Err(error), now);
        }
    }

    /// Emits all whose turn it is.
    fn emit(&mut self, output: &mut Session<'_, R>) {
        let Self { under_way, answered, rights, parts, outgoing, .. } = self;
        // Of the next whose turn it is: its number, and its event time.
        let next = |under_way: &BTreeMap<u64, Request<D, F::Output>>, answered: &VecDeque<u64>| {
            let number = match parts.settings.ordered {
                true => *under_way.first_key_value()?.0,
                false => *answered.front()?,
            };
            let request = under_way.get(&number)?;
            matches!(request.state, State::Answered(_)).then_some((number, request.event))
        };
        while let Some((_, event)) = next(under_way, answered) {
            let mut records = 0;
            outgoing.send(output, rights.at(event), |out| {
                let number = match next(under_way, answered) {
                    Some((number, its)) if its == event => number,
                    _ => return false,
                };
                answered.pop_front();
                records += 1;
                if let Some(Request { record, state: State::Answered(results), .. }) =
                    under_way.remove(&number)
                {
                    out.extend(results.into_iter().map(|result| (parts.wrap)(&record, result)));
                }
                true
            });
            rights.release(event, records);
        }
    }

    /// Everything that is in the operator, at a barrier.
    fn snapshot(&self) -> Contribution {
        let start = self.context.now();
        let under_way = self.under_way.values().map(|request| (request.event, &request.record));
        let queued = self.queue.iter().map(|(event, record)| (*event, record));
        let mut batches: Vec<(i64, Vec<D>)> = Vec::new();
        for (event, record) in under_way.chain(queued) {
            match batches.last_mut() {
                Some((last, records)) if *last == event => records.push(record.clone()),
                _ => batches.push((event, vec![record.clone()])),
            }
        }
        let mut log = ChannelLog::default();
        for (event, records) in batches {
            log.add(event, records.len(), &mut SharedRecords::Own(records));
        }
        let in_flight_records = log.records();
        let sections = if self.context.shared.durable {
            let max_parallelism = self.context.config().max_parallelism;
            log.into_sections(&self.name, self.parts.group_of, max_parallelism)
        } else {
            Vec::new()
        };
        let sync = self.context.now().saturating_sub(start);
        Contribution { sections, sync, in_flight_records, native: None }
    }

    fn is_full(&self) -> bool {
        !self.queue.is_empty() || self.under_way.len() >= self.parts.settings.capacity
    }

    /// Lets go of everything.
    fn clear(&mut self) {
        self.queue.clear();
        self.under_way.clear();
        self.answered.clear();
        self.deadlines.clear();
        self.rights = Rights::default();
    }
}

/// Builds the operator.
pub(crate) fn async_io<'scope, D, F, W, R>(
    stream: Stream<'scope, Time, Vec<D>>,
    origins: Vec<Origin>,
    context: &Rc<WorkerContext>,
    name: &Name,
    parts: AsyncParts<D, F, W>,
) -> Stream<'scope, Time, Vec<R>>
where
    D: Record,
    F: AsyncFunction<D>,
    W: Fn(&D, F::Output) -> R + 'static,
    R: Record,
{
    let scope = stream.scope();
    let mut builder = OperatorBuilder::new(name.to_string(), scope);
    let (output, results) = builder.new_output::<Vec<R>>();
    let mut output = OutputBuilder::<_, NoopBuilder<Vec<R>>>::from(output);
    let mut input = builder.new_input(stream, Pipeline);
    let address = builder.operator_info().address;
    let activator = scope.activator_for(Rc::clone(&address));
    let context = Rc::clone(context);
    let participant = context.participant(name.clone());
    // The end of the job may be put off after answers have waited for it.
    context.origin(activator.clone());
    let alarm = Alarm::new(&context, activator.clone());
    let mode = context.config().checkpoints.mode;
    let mut gate = Gate::new(mode, context.shared.first_epoch, origins);
    let (sender, replies) = unbounded();
    let inbox = Inbox {
        sender,
        awake: AtomicBool::new(true),
        activator: scope.worker().sync_activator_for(address.to_vec()),
    };
    let mut requests = Requests {
        name: name.clone(),
        outgoing: Outgoing::new(&context),
        inputs: context.pool(),
        context: Rc::clone(&context),
        parts,
        opened: false,
        queue: VecDeque::new(),
        under_way: BTreeMap::new(),
        next: 0,
        answered: VecDeque::new(),
        deadlines: BTreeSet::new(),
        rights: Rights::default(),
        inbox: Arc::new(inbox),
        replies,
        counters: context.shared.counters.requests_of(name, context.index),
    };
    let operator = scope_name(name.as_str());
    builder.build(move |mut capabilities| {
        if let Some(capability) = capabilities.pop() {
            requests.restore(capability);
        }
        activator.activate();
        move |frontiers| {
            let _scope = operator.enter();
            let frontier = &frontiers[0];
            requests.inbox.awake.store(true, Ordering::Release);
            let mut output = output.activate();
            input.for_each(|capability, records| {
                let time = *capability.time();
                if gate.admits(time.epoch()) {
                    requests.take(capability.retain(0), records);
                } else {
                    gate.hold(time, (capability.retain(0), std::mem::take(records)));
                }
            });
            if context.finishing() || frontier.is_empty() || context.failed() {
                // What waits is in the final checkpoint, or of no checkpoint.
                requests.clear();
                requests.counters.set_under_way(0);
                gate.barrier_passed(&[frontier]);
                alarm.wake_at.set(None);
                return;
            }
            let now = context.now();
            let last = context.final_epoch().unwrap_or(Epoch(u64::MAX));
            requests.collect(now);
            requests.expire(now);
            // What is behind the final barrier is in its checkpoint, as long as the job may end with that.
            if gate.open() <= last {
                requests.emit(&mut output);
            }
            while gate.barrier_passed(&[frontier]) {
                context.hand_in(gate.open(), participant, requests.snapshot());
                gate.advance();
                requests.rights.move_to(gate.open());
                while let Some((capability, mut records)) = gate.next_open() {
                    requests.take(capability, &mut records);
                }
            }
            // What is answered at once makes room for the next.
            while requests.ask_queued(now) | requests.collect(now) {
                if gate.open() <= last {
                    requests.emit(&mut output);
                }
            }
            gate.pause(requests.is_full());
            requests.counters.set_under_way(requests.under_way.len());
            alarm.wake_at.set(requests.deadlines.first().map(|(at, _)| *at));
            requests.inbox.awake.store(false, Ordering::Release);
            // An answer may have come just before.
            if !requests.replies.is_empty() {
                activator.activate();
            }
        }
    });
    results
}
