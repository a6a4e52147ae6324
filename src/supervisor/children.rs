//! One set of processes: started together, ended together.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Sender;
use std::thread;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::error::SupervisorError;
use super::exit::{self, Cause};
use super::{Supervision, environment};

/// What the supervisor hears of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// A process ended, and can be reaped.
    Exited { generation: u64, process: usize },
    /// We were sent a signal.
    Signal(i32),
}

struct Member {
    child: Child,
    pid: Pid,
    ended: Option<Cause>,
}

/// The processes of one set. Dropping it kills those that run.
pub(super) struct Crew {
    members: Vec<Member>,
}

impl Crew {
    /// Starts all processes, or none. Each reports its end as an event.
    ///
    /// SUBTLE: the processes must be started by the thread that supervises: the system counts the
    /// death of the thread that started a process as that of its parent, and would kill it (see
    /// `adopt`).
    pub fn start(
        supervision: &Supervision,
        environment: &[(&'static str, OsString)],
        generation: u64,
        sender: Sender<Event>,
    ) -> Result<Self, SupervisorError> {
        let mut crew = Self { members: Vec::with_capacity(supervision.processes) };
        for process in 0..supervision.processes {
            let mut command = Command::new(&supervision.program);
            command
                .args(&supervision.args)
                .env_remove(environment::WORKERS)
                .envs(environment.iter().map(|(name, value)| (name, value)))
                .env(environment::PROCESS, process.to_string())
                // Input that is read once cannot be read again after a restart.
                .stdin(Stdio::null())
                // A group of its own: Ctrl-C reaches the supervisor alone, which ends the others in
                // order.
                .process_group(0);
            // Dropping the crew on an error kills those that run already.
            crew.add(command, sender.clone(), generation, process).map_err(|source| {
                SupervisorError::Start { process, program: supervision.program.clone(), source }
            })?;
        }
        Ok(crew)
    }

    fn add(
        &mut self,
        mut command: Command,
        sender: Sender<Event>,
        generation: u64,
        process: usize,
    ) -> io::Result<()> {
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        tracing::info!(process, pid = child.id(), "started a process of the job");
        self.members.push(Member { child, pid, ended: None });
        let wait = move || {
            // Only waits. The process stays a zombie until the supervisor reaps it, so that its
            // number, to which signals are sent, cannot become another's.
            let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while matches!(waitid(WaitId::Pid(pid), ended), Err(Errno::INTR)) {}
            // Nobody may be listening any more.
            let _ = sender.send(Event::Exited { generation, process });
        };
        thread::Builder::new().name(format!("hw:wait-{process}")).spawn(wait).map(drop)
    }

    /// Takes note of a process that has ended.
    pub fn reap(&mut self, process: usize) -> Cause {
        self.members[process].reap()
    }

    /// Whether all have ended.
    pub fn is_done(&self) -> bool {
        self.members.iter().all(|member| member.ended.is_some())
    }

    /// Whether all that have ended did so with 0.
    pub fn all_succeeded(&self) -> bool {
        let mut ended = self.members.iter().filter_map(|member| member.ended.as_ref());
        ended.all(|cause| *cause == Cause::Exited(exit::OK))
    }

    /// Asks those that run to end.
    pub fn terminate(&self) {
        self.members.iter().for_each(|member| member.signal(Signal::TERM));
    }

    /// Kills those that run and waits for their end. Returns the ends that were not of our making.
    pub fn kill(&mut self) -> Vec<(usize, Cause)> {
        self.members.iter().for_each(|member| member.signal(Signal::KILL));
        let running = self.members.iter_mut().enumerate().filter(|(_, m)| m.ended.is_none());
        let ends = running.map(|(process, member)| (process, member.reap()));
        ends.filter(|(_, cause)| !cause.is_kill()).collect()
    }
}

impl Member {
    fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            // The whole group: what the process itself has started must not outlive it either. It
            // can only fail if nobody is left.
            let _ = kill_process_group(self.pid, signal);
        }
    }

    /// To be called when the process has ended or is being killed.
    fn reap(&mut self) -> Cause {
        if let Some(cause) = &self.ended {
            return cause.clone();
        }
        // What it has started goes with it.
        self.signal(Signal::KILL);
        let cause = match self.child.wait() {
            Ok(status) => Cause::of(status),
            Err(e) => Cause::Unknown { why: format!("its end could not be learned: {e}") },
        };
        self.ended.insert(cause).clone()
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.kill();
    }
}
