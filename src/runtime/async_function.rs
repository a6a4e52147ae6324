//! What a program writes to ask the outside world: functions that answer later, from any thread.
//!
//! A function is called on the worker's thread and must not block; it gets an [`Answer`] to be completed by whoever knows
//! it. [`Blocking`] calls a function that does block, on threads of its own; [`Futures`] hands a future to whatever runs
//! futures. Anything else implements [`AsyncFunction`].
//!
//! # Under the simulator
//! There are no threads. What [`AsyncContext::threads`] gives puts its tasks into a lane of the simulator, which runs them in
//! an order that follows from the seed; so do [`Blocking`], and [`Futures`], whose futures are polled by such tasks.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crossbeam::channel::{Sender, unbounded};

use crate::connect::{ConnectError, Record};
use crate::runtime::clock::Clock;
use crate::runtime::context::WorkerContext;
use crate::runtime::executor::{Executor, Lane, Task};

/// What asks the outside world about a record.
///
/// # What an implementor must guarantee
/// * Nothing here blocks: it runs on the worker's thread.
/// * A record may be asked about several times: after a restart, and after a failure or a time-out if the settings say so.
///   What a request changes outside must bear that.
pub trait AsyncFunction<D: Record>: 'static {
    /// What answers are made of: any number of these for each record.
    type Output: Record;

    /// Called once on each worker, before the first request.
    ///
    /// # Errors
    /// [`ConnectError`] if nothing can be asked: the job fails.
    fn open(&mut self, _context: &AsyncContext) -> Result<(), ConnectError> {
        Ok(())
    }

    /// Asks. The answer may be given at once or later, from any thread.
    fn ask(&mut self, record: &D, answer: Answer<Self::Output>);

    /// What stands for the answer of a record whose last attempt has failed. `None`: the job fails.
    fn failed(&mut self, _record: &D, _error: &ConnectError) -> Option<Vec<Self::Output>> {
        None
    }

    /// The same function, with `stand_in` for the answer of a record whose last attempt has failed.
    fn or_else<G>(self, stand_in: G) -> OrElse<Self, G>
    where
        Self: Sized,
        G: FnMut(&D, &ConnectError) -> Vec<Self::Output> + 'static,
    {
        OrElse { function: self, stand_in }
    }
}

/// A function with a stand-in for answers that do not come; see [`AsyncFunction::or_else`].
#[derive(Clone, Copy)]
pub struct OrElse<F, G> {
    function: F,
    stand_in: G,
}

impl<F: fmt::Debug, G> fmt::Debug for OrElse<F, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrElse").field("function", &self.function).finish_non_exhaustive()
    }
}

impl<D, F, G> AsyncFunction<D> for OrElse<F, G>
where
    D: Record,
    F: AsyncFunction<D>,
    G: FnMut(&D, &ConnectError) -> Vec<F::Output> + 'static,
{
    type Output = F::Output;

    fn open(&mut self, context: &AsyncContext) -> Result<(), ConnectError> {
        self.function.open(context)
    }

    fn ask(&mut self, record: &D, answer: Answer<F::Output>) {
        self.function.ask(record, answer);
    }

    fn failed(&mut self, record: &D, error: &ConnectError) -> Option<Vec<F::Output>> {
        Some((self.stand_in)(record, error))
    }
}

type Complete<O> = Box<dyn FnOnce(Result<Vec<O>, ConnectError>) + Send>;

/// The right to answer one request, once, from any thread. Dropped without an answer, the request has failed.
pub struct Answer<O>(Option<Complete<O>>);

impl<O> fmt::Debug for Answer<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").finish_non_exhaustive()
    }
}

impl<O> Answer<O> {
    pub(crate) fn new(
        complete: impl FnOnce(Result<Vec<O>, ConnectError>) + Send + 'static,
    ) -> Self {
        Self(Some(Box::new(complete)))
    }

    /// Answers: one result, an `Option` or a `Vec` of them, or anything else that gives results.
    pub fn complete(self, results: impl IntoIterator<Item = O>) {
        self.settle(Ok(results.into_iter().collect()));
    }

    /// The request has failed. It is tried again if the settings say so.
    pub fn fail(self, error: ConnectError) {
        self.settle(Err(error));
    }

    /// Answers either way.
    pub fn settle(mut self, result: Result<Vec<O>, ConnectError>) {
        if let Some(complete) = self.0.take() {
            complete(result);
        }
    }

    /// The right to give an answer that `f` makes this one of, on the thread that gives it.
    pub fn map<P>(
        mut self,
        f: impl FnOnce(Result<Vec<P>, ConnectError>) -> Result<Vec<O>, ConnectError> + Send + 'static,
    ) -> Answer<P>
    where
        O: 'static,
    {
        let complete = self.0.take();
        Answer::new(move |result| {
            if let Some(complete) = complete {
                complete(f(result));
            }
        })
    }
}

impl<O> Drop for Answer<O> {
    fn drop(&mut self) {
        if let Some(complete) = self.0.take() {
            complete(Err(ConnectError::new("the request was dropped without an answer")));
        }
    }
}

/// How an operator asks: how much at once, in which order answers leave it, and what it does about failures.
#[derive(Clone, Copy, Debug)]
pub struct AsyncSettings {
    pub(crate) ordered: bool,
    pub(crate) capacity: usize,
    pub(crate) timeout: Option<Duration>,
    pub(crate) total_timeout: Option<Duration>,
    pub(crate) attempts: u32,
    pub(crate) delay: Duration,
    pub(crate) delay_max: Duration,
}

/// Requests at once, unless set.
const CAPACITY: usize = 100;

impl AsyncSettings {
    fn new(ordered: bool) -> Self {
        Self {
            ordered,
            capacity: CAPACITY,
            timeout: None,
            total_timeout: None,
            attempts: 1,
            delay: Duration::ZERO,
            delay_max: Duration::ZERO,
        }
    }

    /// Answers leave in the order in which the records came. One that takes long keeps those behind it.
    #[doc(alias = "orderedWait")]
    #[must_use]
    pub fn ordered() -> Self {
        Self::new(true)
    }

    /// Answers leave as they come. They may overtake each other, but not event time: what is not late before the operator
    /// is not late behind it.
    #[doc(alias = "unorderedWait")]
    #[must_use]
    pub fn unordered() -> Self {
        Self::new(false)
    }

    /// How many requests of each worker may be under way at once; 100 unless set, and at least one.
    #[must_use]
    pub fn capacity(mut self, requests: usize) -> Self {
        self.capacity = requests.max(1);
        self
    }

    /// How long an attempt may take. It has failed then, and an answer that comes later is ignored. Unless set, any time.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long a request may take, from its first attempt to its answer, with all attempts and the delays between them. It has
    /// failed for good then. What would be tried again only after that has failed for good at once. Unless set, any time.
    ///
    /// A request that is under way when the job restarts begins anew, as its attempts do.
    #[must_use]
    pub fn total_timeout(mut self, timeout: Duration) -> Self {
        self.total_timeout = Some(timeout);
        self
    }

    /// How many times a request that has failed is tried again: the first time after `delay`, then each time after twice
    /// as long, `delay_max` at the most. Unless set, never.
    #[must_use]
    pub fn retries(mut self, retries: u32, delay: Duration, delay_max: Duration) -> Self {
        self.attempts = retries.saturating_add(1);
        (self.delay, self.delay_max) = (delay, delay_max.max(delay));
        self
    }

    /// How long to wait after so many attempts have failed; `None`: that was the last one.
    pub(crate) fn delay_after(&self, attempts: u32) -> Option<Duration> {
        let doubled = 1_u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
        let delay = self.delay.saturating_mul(doubled).min(self.delay_max);
        (attempts < self.attempts).then_some(delay)
    }
}

/// Where a function runs, and what it may use there. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct AsyncContext {
    worker: usize,
    workers: usize,
    clock: Arc<dyn Clock>,
    simulated: Option<Arc<Executor>>,
}

impl fmt::Debug for AsyncContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncContext").field("worker", &self.worker).finish_non_exhaustive()
    }
}

impl AsyncContext {
    pub(crate) fn new(context: &WorkerContext) -> Self {
        let executor = &context.shared.executor;
        Self {
            worker: context.index,
            workers: context.peers,
            clock: Arc::clone(&context.shared.clock),
            simulated: executor.is_simulated().then(|| Arc::clone(executor)),
        }
    }

    /// Index of the worker, and the number of workers.
    #[must_use]
    pub fn worker(&self) -> (usize, usize) {
        (self.worker, self.workers)
    }

    /// Time since an origin of its own; it never goes back. Under the simulator it is simulated.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.clock.now()
    }

    /// Starts threads, `count` at least one, for what blocks.
    ///
    /// # Errors
    /// [`ConnectError`] if the system refuses a thread.
    pub fn threads(&self, count: usize) -> Result<RequestThreads, ConnectError> {
        if let Some(executor) = &self.simulated {
            return Ok(RequestThreads(Arc::new(Threads::Simulated(Arc::clone(executor)))));
        }
        let (sender, receiver) = unbounded::<Task>();
        let closed = Arc::new(AtomicBool::new(false));
        for index in 0..count.max(1) {
            let (receiver, closed) = (receiver.clone(), Arc::clone(&closed));
            let run = move || {
                for task in receiver {
                    if !closed.load(Ordering::Relaxed) {
                        // It has reported itself, and it has dropped the answer that it owed.
                        drop(catch_unwind(AssertUnwindSafe(task)));
                    }
                }
            };
            let thread = std::thread::Builder::new().name(format!("hw-request-{index}"));
            thread.spawn(run).map_err(|error| {
                ConnectError::caused("a thread for requests could not be started", error)
            })?;
        }
        Ok(RequestThreads(Arc::new(Threads::Real { sender, closed })))
    }
}

/// Threads for what blocks. Clones share them; they end with the last one.
#[derive(Clone)]
pub struct RequestThreads(Arc<Threads>);

enum Threads {
    Real { sender: Sender<Task>, closed: Arc<AtomicBool> },
    Simulated(Arc<Executor>),
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Self::Real { closed, .. } = self {
            closed.store(true, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for RequestThreads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestThreads").finish_non_exhaustive()
    }
}

impl RequestThreads {
    /// Runs a task on one of the threads, as soon as one has nothing else to do. If it panics, what it should have answered
    /// has failed.
    pub fn run(&self, task: impl FnOnce() + Send + 'static) {
        match &*self.0 {
            // Nobody is left only if the attempt is over.
            Threads::Real { sender, .. } => drop(sender.send(Box::new(task))),
            Threads::Simulated(executor) => {
                drop(executor.submit(Lane::Requests, Box::new(task)));
            }
        }
    }
}

type Call<D, O> = Arc<dyn Fn(D) -> Result<O, ConnectError> + Send + Sync>;

/// Asks by calling a function that blocks, on threads of its own.
///
/// A call that has timed out goes on to occupy its thread until it returns: so the client should have time-outs as well. A
/// panic of the call is a failure of the request.
pub struct Blocking<D, O> {
    count: usize,
    call: Call<D, O>,
    threads: Option<RequestThreads>,
}

impl<D, O> fmt::Debug for Blocking<D, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blocking").field("threads", &self.count).finish_non_exhaustive()
    }
}

impl<D, O> Blocking<D, O> {
    /// Calls `call` on `threads` threads of each worker.
    pub fn new(
        threads: usize,
        call: impl Fn(D) -> Result<O, ConnectError> + Send + Sync + 'static,
    ) -> Self {
        Self { count: threads, call: Arc::new(call), threads: None }
    }

    /// Calls `call` on `threads` threads of each worker, each with a client that `connect` makes when there is need of one.
    /// A client whose call has failed is dropped, and the next request connects anew.
    pub fn with_client<C: Send + 'static>(
        threads: usize,
        connect: impl Fn() -> Result<C, ConnectError> + Send + Sync + 'static,
        call: impl Fn(&mut C, D) -> Result<O, ConnectError> + Send + Sync + 'static,
    ) -> Self {
        let idle = Mutex::new(Vec::<C>::new());
        Self::new(threads, move |record| {
            let client = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut client = client.map_or_else(&connect, Ok)?;
            let result = call(&mut client, record)?;
            idle.lock().unwrap_or_else(PoisonError::into_inner).push(client);
            Ok(result)
        })
    }
}

impl<D: Record, O: Record> AsyncFunction<D> for Blocking<D, O> {
    type Output = O;

    fn open(&mut self, context: &AsyncContext) -> Result<(), ConnectError> {
        self.threads = Some(context.threads(self.count)?);
        Ok(())
    }

    fn ask(&mut self, record: &D, answer: Answer<O>) {
        let threads = self.threads.as_ref().expect("opened before it is asked");
        let (record, call) = (record.clone(), Arc::clone(&self.call));
        threads.run(move || answer.settle(call(record).map(|result| vec![result])));
    }
}

/// A request on its way, for whatever runs futures.
pub type RequestFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

type CallFuture<O> = Pin<Box<dyn Future<Output = Result<O, ConnectError>> + Send>>;

/// Asks by a future, which an async runtime of the program's choice runs: the `spawn` of its handle is all that is needed.
/// A future that panics or is dropped is a failure of the request.
///
/// Under the simulator futures are polled by its tasks, and what they wait for must not be an async runtime.
pub struct Futures<D, O> {
    spawn: Box<dyn Fn(RequestFuture)>,
    call: Box<dyn Fn(D) -> CallFuture<O>>,
    simulated: Option<RequestThreads>,
}

impl<D, O> fmt::Debug for Futures<D, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Futures").finish_non_exhaustive()
    }
}

impl<D, O> Futures<D, O> {
    /// Makes a future of each record with `call`, and has it run by `spawn`, which must not wait for it.
    pub fn new<F>(spawn: impl Fn(RequestFuture) + 'static, call: impl Fn(D) -> F + 'static) -> Self
    where
        F: Future<Output = Result<O, ConnectError>> + Send + 'static,
    {
        let call = Box::new(move |record| Box::pin(call(record)) as CallFuture<O>);
        Self { spawn: Box::new(spawn), call, simulated: None }
    }
}

impl<D: Record, O: Record> AsyncFunction<D> for Futures<D, O> {
    type Output = O;

    fn open(&mut self, context: &AsyncContext) -> Result<(), ConnectError> {
        if context.simulated.is_some() {
            self.simulated = Some(context.threads(1)?);
        }
        Ok(())
    }

    fn ask(&mut self, record: &D, answer: Answer<O>) {
        let call = (self.call)(record.clone());
        let future: RequestFuture =
            Box::pin(async move { answer.settle(call.await.map(|result| vec![result])) });
        match &self.simulated {
            None => (self.spawn)(future),
            Some(tasks) => {
                let polled = Polled { future: Mutex::new(Some(future)), tasks: tasks.clone() };
                Arc::new(polled).wake();
            }
        }
    }
}

/// A future that is polled by tasks.
struct Polled {
    future: Mutex<Option<RequestFuture>>,
    tasks: RequestThreads,
}

impl Wake for Polled {
    fn wake(self: Arc<Self>) {
        let polled = Arc::clone(&self);
        self.tasks.run(move || {
            let waker = Waker::from(Arc::clone(&polled));
            let mut future = polled.future.lock().unwrap_or_else(PoisonError::into_inner);
            let done = future.as_mut().is_none_or(|future| {
                future.as_mut().poll(&mut Context::from_waker(&waker)) == Poll::Ready(())
            });
            if done {
                *future = None;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> (Answer<u64>, crossbeam::channel::Receiver<Result<Vec<u64>, String>>) {
        let (sender, receiver) = unbounded();
        let send = move |result: Result<Vec<u64>, ConnectError>| {
            let result = result.map_err(|error| error.what);
            drop(sender.send(result));
        };
        (Answer::new(send), receiver)
    }

    #[test]
    fn an_answer_that_is_dropped_is_a_failure_and_a_given_one_is_given_once() {
        let (dropped, result) = answer();
        drop(dropped.map(|result: Result<Vec<u8>, _>| result.map(|_| vec![1])));
        assert!(result.recv().unwrap().unwrap_err().contains("without an answer"));
        assert!(result.recv().is_err(), "once");
        let (given, result) = answer();
        given.map(|words: Result<Vec<&str>, _>| Ok(vec![words?.len() as u64])).complete(["a", "b"]);
        assert_eq!(result.recv().unwrap(), Ok(vec![2]));
        assert!(result.recv().is_err(), "once");
    }

    #[test]
    fn delays_double_up_to_their_limit_and_end() {
        let ms = Duration::from_millis;
        let settings = AsyncSettings::ordered().retries(4, ms(10), ms(35));
        let delays: Vec<_> = (1..=5).map(|attempts| settings.delay_after(attempts)).collect();
        assert_eq!(delays, [Some(ms(10)), Some(ms(20)), Some(ms(35)), Some(ms(35)), None]);
        assert_eq!(AsyncSettings::unordered().delay_after(1), None);
        let forever = AsyncSettings::ordered().retries(u32::MAX, ms(1), ms(7));
        assert_eq!(forever.delay_after(u32::MAX - 1), Some(ms(7)));
    }

    #[test]
    fn a_client_is_kept_until_a_call_of_it_fails() {
        let made = Arc::new(Mutex::new(0));
        let counter = Arc::clone(&made);
        let function = Blocking::with_client(
            1,
            move || {
                *counter.lock().unwrap() += 1;
                Ok(())
            },
            |(), n: u64| if n == 0 { Err(ConnectError::new("zero")) } else { Ok(n) },
        );
        let results: Vec<bool> = [1, 2, 0, 3].iter().map(|n| (function.call)(*n).is_ok()).collect();
        assert_eq!(results, [true, true, false, true]);
        assert_eq!(*made.lock().unwrap(), 2);
    }
}
