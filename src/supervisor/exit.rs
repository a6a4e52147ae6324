//! Exit codes of a process, and what the supervisor makes of them.

use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

/// The job is done.
pub const OK: i32 = 0;
/// The attempt failed; another may succeed.
pub const FAILED: i32 = 1;
/// No restart can help: wrong flags, a refused restore, a restart strategy that gave up.
pub const FATAL: i32 = 2;
/// Another process of the job was lost.
pub const PEER_LOST: i32 = 75;
/// A newer attempt of the job has taken over.
pub const FENCED: i32 = 76;
/// A panic that nobody caught: Rust's own code.
pub const PANIC: i32 = 101;

/// What timely makes of a lost peer when it aborts.
const SIGABRT: i32 = 6;
const SIGKILL: i32 = 9;

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// By itself, with that code.
    Exited(i32),
    /// By that signal.
    Signalled(i32),
    /// In a way that the system does not tell, or it never started.
    Unknown {
        /// What is known.
        why: String,
    },
}

impl Cause {
    pub(super) fn of(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exited(code),
            (None, Some(signal)) => Self::Signalled(signal),
            (None, None) => Self::Unknown { why: status.to_string() },
        }
    }

    /// Whether it says that no restart can help.
    pub(super) fn is_fatal(&self) -> bool {
        *self == Self::Exited(FATAL)
    }

    /// Whether the failure of another process may have led to it.
    pub(super) fn may_be_consequence(&self) -> bool {
        matches!(self, Self::Exited(PEER_LOST | PANIC) | Self::Signalled(SIGABRT))
    }

    /// Whether it looks like what the supervisor does to the others.
    pub(super) fn is_kill(&self) -> bool {
        *self == Self::Signalled(SIGKILL)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => {
                let meaning = match *code {
                    OK => " (done)",
                    FAILED => " (failed)",
                    FATAL => " (no restart can help)",
                    PEER_LOST => " (lost another process)",
                    FENCED => " (a newer attempt has taken over)",
                    PANIC => " (panicked)",
                    _ => "",
                };
                write!(f, "exited with code {code}{meaning}")
            }
            Self::Signalled(signal) => match signal_hook::low_level::signal_name(*signal) {
                Some(name) => write!(f, "killed by signal {signal} ({name})"),
                None => write!(f, "killed by signal {signal}"),
            },
            Self::Unknown { why } => f.write_str(why),
        }
    }
}
