//! Starts the processes of a job on one machine, and starts them again when one dies.
//!
//! # States
//! | state    | event                               | next     | effects                                  |
//! |----------|-------------------------------------|----------|------------------------------------------|
//! | running  | a process ends with 0               | running  |                                          |
//! | running  | the last one ends with 0            | finished |                                          |
//! | running  | a process ends with [`exit::FATAL`] | finished | kill the others                          |
//! | running  | a process ends in any other way     | waiting  | kill the others, ask the restart policy  |
//! | running  | SIGINT, SIGTERM or SIGHUP           | stopping | SIGTERM to all                           |
//! | waiting  | the delay is over                   | running  | new ports, start all                     |
//! | waiting  | the policy gives up, or a signal    | finished |                                          |
//! | stopping | all ended                           | finished |                                          |
//! | stopping | ten seconds, or another signal      | finished | kill all                                 |
//!
//! # Invariants
//! * At most one set of processes runs: a new one starts after every process of the last was
//!   reaped.
//! * A signal is sent only to a process that is not reaped yet, so never to a stranger who got its
//!   number.
//! * No process outlives the supervisor: they ask for that themselves, by [`adopt`].
//! * Nothing secret is in an argument or in the environment: only the path of the file that holds
//!   it.
//!
//! # Failure
//! A supervisor that is killed takes the processes along; its runtime directory stays behind and is
//! worthless, because the secret in it dies with the job's processes. Correctness never depends on
//! any of this: attempts fence each other in storage.

mod adopt;
mod children;
pub mod environment;
mod error;
pub mod exit;
mod runtime_dir;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use crate::config::RestartStrategy;
use crate::protocol::restart::{Decision, RestartPolicy};

pub use adopt::adopt;
use children::{Crew, Event};
pub use error::SupervisorError;
pub use exit::Cause;
use runtime_dir::RuntimeDir;

/// How long processes may take to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long we look for the cause of an end that looks like the consequence of another.
const CAUSE_GRACE: Duration = Duration::from_millis(50);

/// Failures that the outcome holds: the newest ones.
const FAILURES_MAX: usize = 100;

/// What to run, and what to do when it fails.
#[derive(Clone, Debug)]
pub struct Supervision {
    /// The program of every process.
    pub program: PathBuf,
    /// Its arguments, the same for every process.
    pub args: Vec<OsString>,
    /// Number of processes.
    pub processes: usize,
    /// Worker threads of each; `None`: what the program decides.
    pub workers: Option<usize>,
    /// What to do after a failure.
    pub restart: RestartStrategy,
    /// Where to make the private directory of this run; `None`: the system's directory of temporary
    /// files.
    pub runtime_dir: Option<PathBuf>,
}

/// One end of a process that was not planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Index of the process that failed first.
    pub process: usize,
    /// How it ended.
    pub cause: Cause,
    /// When, counted from the start of the supervision.
    pub at: Duration,
}

/// How it all ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// All processes ended with 0.
    Succeeded,
    /// A process said that no restart can help.
    Fatal {
        /// Index of that process.
        process: usize,
    },
    /// The restart strategy allows no more restarts.
    GaveUp {
        /// Which bound was reached.
        why: String,
    },
    /// The supervisor was told to stop.
    Stopped {
        /// The signal that told it.
        signal: i32,
        /// Whether all processes ended with 0.
        clean: bool,
    },
}

/// What a supervision came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SupervisorOutcome {
    /// How it ended.
    pub end: End,
    /// How often all processes were started again.
    pub restarts: u32,
    /// The newest failures, the oldest of them first; at most 100.
    pub failures: Vec<Failure>,
}

impl SupervisorOutcome {
    /// The code with which the supervisor should exit.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self.end {
            End::Succeeded | End::Stopped { clean: true, .. } => exit::OK,
            End::Fatal { .. } | End::GaveUp { .. } => exit::FATAL,
            End::Stopped { signal, .. } => 128 + signal,
        }
    }
}

/// Runs the processes until they succeed, fail for good, or we are told to stop.
///
/// Threads: blocks; must be called on a thread that lives as long as the program should, best the
/// main one. While it runs SIGINT, SIGTERM and SIGHUP are taken; afterwards they do nothing.
///
/// # Errors
/// [`SupervisorError`] if the processes could not be started the first time, or the files they need
/// not be made. No process runs any more when it returns.
pub fn supervise(supervision: Supervision) -> Result<SupervisorOutcome, SupervisorError> {
    if supervision.processes == 0 {
        return Err(SupervisorError::NoProcesses);
    }
    let directory = RuntimeDir::create(supervision.runtime_dir.as_deref())?;
    let (sender, events) = channel();
    let _signals = SignalWatch::start(sender.clone())?;
    let policy = RestartPolicy::new(&supervision.restart);
    let supervisor = Supervisor {
        supervision,
        directory,
        sender,
        events,
        policy,
        started: Instant::now(),
        generation: 0,
        failures: Vec::new(),
        signal: None,
    };
    supervisor.run()
}

struct Supervisor {
    supervision: Supervision,
    directory: RuntimeDir,
    sender: Sender<Event>,
    events: Receiver<Event>,
    policy: RestartPolicy,
    started: Instant,
    /// Counts the sets of processes; events of earlier ones are old news.
    generation: u64,
    failures: Vec<Failure>,
    /// A signal that came while we were busy.
    signal: Option<i32>,
}

/// How one set of processes ended.
enum SetEnd {
    Final(End),
    Failed { process: usize, cause: Cause },
}

impl Supervisor {
    fn run(mut self) -> Result<SupervisorOutcome, SupervisorError> {
        let mut restarts = 0;
        let end = loop {
            let (process, cause) = match self.run_set()? {
                SetEnd::Final(end) => break end,
                SetEnd::Failed { process, cause } => (process, cause),
            };
            let at = self.started.elapsed();
            let decision = self.policy.on_failure(at, random_fraction());
            tracing::warn!(process, %cause, ?decision, restarts, "a process of the job failed");
            if self.failures.len() == FAILURES_MAX {
                self.failures.remove(0);
            }
            self.failures.push(Failure { process, cause, at });
            match decision {
                Decision::GiveUp { why } => break End::GaveUp { why },
                Decision::RestartAfter(delay) => {
                    if let Some(signal) = self.wait(delay) {
                        break End::Stopped { signal, clean: false };
                    }
                }
            }
            restarts += 1;
        };
        tracing::info!(?end, restarts, "the job's processes have ended");
        Ok(SupervisorOutcome { end, restarts, failures: self.failures })
    }

    /// Starts all processes and sees them end.
    fn run_set(&mut self) -> Result<SetEnd, SupervisorError> {
        self.generation += 1;
        let hostfile = self.directory.new_hostfile(self.generation, self.supervision.processes)?;
        let environment = self.directory.environment(&hostfile, &self.supervision);
        let started =
            Crew::start(&self.supervision, &environment, self.generation, self.sender.clone());
        let mut crew = match started {
            Ok(crew) => crew,
            Err(error) if self.generation == 1 => return Err(error),
            // It has worked before: the system may be short of something for now.
            Err(SupervisorError::Start { process, source, .. }) => {
                let cause = Cause::Unknown { why: format!("it could not be started: {source}") };
                return Ok(SetEnd::Failed { process, cause });
            }
            Err(error) => return Err(error),
        };
        loop {
            match self.next_event(None) {
                Some(Event::Exited { process, .. }) => match crew.reap(process) {
                    Cause::Exited(exit::OK) if crew.is_done() => {
                        return Ok(SetEnd::Final(End::Succeeded));
                    }
                    Cause::Exited(exit::OK) => {}
                    cause => return Ok(self.conclude(crew, process, cause)),
                },
                Some(Event::Signal(signal)) => return Ok(SetEnd::Final(self.stop(crew, signal))),
                None => unreachable!("without a timeout there is an event"),
            }
        }
    }

    /// Ends the others after one has failed, and finds out which failure was the first.
    ///
    /// SUBTLE: 1. Process 0 finds that the restore is refused, and exits with FATAL. 2. Process 1
    /// notices the closed socket and exits with PEER_LOST, or timely aborts it. 3. We hear of
    /// process 1 first. Taken at its word, the job would restart for ever. So every end that may be
    /// a consequence waits a moment for its cause, and the ends of those that we were about to kill
    /// count too.
    fn conclude(&mut self, mut crew: Crew, process: usize, cause: Cause) -> SetEnd {
        let is_cause = |(_, cause): &(usize, Cause)| {
            !cause.may_be_consequence() && *cause != Cause::Exited(exit::OK)
        };
        let noticed = Instant::now();
        let mut ends = vec![(process, cause)];
        while !ends.iter().any(is_cause) && !crew.is_done() {
            let Some(left) = CAUSE_GRACE.checked_sub(noticed.elapsed()) else { break };
            match self.next_event(Some(left)) {
                Some(Event::Exited { process, .. }) => ends.push((process, crew.reap(process))),
                Some(Event::Signal(signal)) => self.signal = Some(signal),
                None => break,
            }
        }
        ends.extend(crew.kill());
        if let Some((process, _)) = ends.iter().find(|(_, cause)| cause.is_fatal()) {
            return SetEnd::Final(End::Fatal { process: *process });
        }
        let first = ends.iter().position(is_cause).unwrap_or(0);
        let (process, cause) = ends.swap_remove(first);
        SetEnd::Failed { process, cause }
    }

    /// Asks all processes to end, and makes them after a while.
    fn stop(&mut self, mut crew: Crew, signal: i32) -> End {
        tracing::info!(signal, "told to stop: ending the job's processes");
        crew.terminate();
        let asked = Instant::now();
        let mut clean = crew.all_succeeded();
        while !crew.is_done() {
            let left = STOP_TIMEOUT.saturating_sub(asked.elapsed());
            match self.next_event(Some(left)) {
                Some(Event::Exited { process, .. }) => {
                    clean &= crew.reap(process) == Cause::Exited(exit::OK);
                }
                Some(Event::Signal(_)) | None => {
                    tracing::warn!("killing the processes that have not ended");
                    clean = false;
                    break;
                }
            }
        }
        crew.kill();
        End::Stopped { signal, clean }
    }

    /// Waits until `delay` is over or a signal comes.
    fn wait(&mut self, delay: Duration) -> Option<i32> {
        let started = Instant::now();
        loop {
            if self.signal.is_some() {
                return self.signal;
            }
            let left = delay.saturating_sub(started.elapsed());
            match self.next_event(Some(left)) {
                Some(Event::Signal(signal)) => return Some(signal),
                Some(Event::Exited { .. }) => {}
                None => return None,
            }
        }
    }

    /// The next event that concerns the processes of now; `None` after `timeout`.
    fn next_event(&mut self, timeout: Option<Duration>) -> Option<Event> {
        let started = Instant::now();
        loop {
            let event = match timeout {
                None => self.events.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(timeout) => {
                    self.events.recv_timeout(timeout.saturating_sub(started.elapsed()))
                }
            };
            match event {
                Ok(Event::Exited { generation, .. }) if generation != self.generation => {}
                Ok(event) => return Some(event),
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => {
                    unreachable!("the supervisor holds a sender itself")
                }
            }
        }
    }
}

/// Passes signals on as events until it is dropped.
struct SignalWatch {
    handle: Handle,
    thread: Option<thread::JoinHandle<()>>,
}

impl SignalWatch {
    fn start(sender: Sender<Event>) -> Result<Self, SupervisorError> {
        let signals = Signals::new([SIGINT, SIGTERM, SIGHUP]);
        let mut signals = signals.map_err(SupervisorError::system("taking signals"))?;
        let handle = signals.handle();
        let run = move || {
            for signal in signals.forever() {
                if sender.send(Event::Signal(signal)).is_err() {
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name("hw:signals".into()).spawn(run);
        let thread = thread.map_err(SupervisorError::system("starting a thread"))?;
        Ok(Self { handle, thread: Some(thread) })
    }
}

impl Drop for SignalWatch {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            // It does nothing that could panic.
            let _ = thread.join();
        }
    }
}

/// A random number from 0 to 1. Without random bytes, the middle: only the spread of restarts
/// depends on it.
fn random_fraction() -> f64 {
    getrandom::u32().map_or(0.5, |random| f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests;
