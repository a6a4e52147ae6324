//! The side of a process that runs under a supervisor.

use super::environment::SUPERVISED;
use super::error::SupervisorError;

/// Ties this process to its supervisor, if it has one: from now on it is killed when the supervisor
/// dies.
///
/// Returns whether there is a supervisor. Threads: to be called first thing on the main thread,
/// because the tie belongs to the thread that asks for it. Where the system knows no such tie
/// (other than Linux), it only checks that the supervisor is there.
///
/// # Errors
/// [`SupervisorError::Orphaned`] if the supervisor is gone already: exit then, with
/// [`exit::FAILED`](super::exit::FAILED).
pub fn adopt() -> Result<bool, SupervisorError> {
    let Some(supervisor) = std::env::var_os(SUPERVISED) else { return Ok(false) };
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|e| SupervisorError::system("asking to die with the supervisor")(e.into()))?;
    // Asked afterwards: a supervisor that died before the tie was made sends no signal any more.
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    let named = supervisor.to_str().and_then(|text| text.parse().ok());
    if parent.is_none() || parent != named {
        let supervisor = supervisor.to_string_lossy().into_owned();
        return Err(SupervisorError::Orphaned { supervisor });
    }
    Ok(true)
}
