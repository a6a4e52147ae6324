//! What a process must know to find the others, and what of it cannot be right.

use std::net::IpAddr;
use std::time::Duration;

use super::error::NetworkError;
use super::handshake::FRAME_BYTES_MAX;
use super::secret::Secret;
use crate::config::HeartbeatConfig;
use crate::ids::{Attempt, Name};

/// Port of process 0 when no addresses are given; process `i` listens on the one `i` above it.
pub const DEFAULT_PORT: u16 = 2101;

/// Largest announcement, in bytes.
pub const ANNOUNCEMENT_BYTES_MAX: usize = FRAME_BYTES_MAX - 1024;

/// What it takes to find the other processes.
#[derive(Clone, Debug)]
pub struct MeshSetup {
    /// The job. Processes of another are refused.
    pub job: Name,
    /// Number of processes.
    pub processes: usize,
    /// Which of them this is.
    pub process: usize,
    /// `host:port` of every process, in order; empty: loopback, from [`DEFAULT_PORT`] on.
    pub addresses: Vec<String>,
    /// The same for all processes.
    pub secret: Secret,
    /// Time for all of it.
    pub connect_timeout: Duration,
    /// How the processes will watch each other; must leave room for a sign of life within the
    /// timeout.
    pub heartbeat: HeartbeatConfig,
}

/// Checks that addresses which others can reach are guarded by a secret that the user gave.
///
/// A host name other than `localhost` counts as reachable: it is not resolved.
///
/// # Errors
/// [`NetworkError::Exposed`] with the first address that is not on loopback, if `secret_given` is
/// false.
pub fn check_exposure(addresses: &[String], secret_given: bool) -> Result<(), NetworkError> {
    let is_loopback = |address: &String| {
        let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    };
    match addresses.iter().find(|address| !is_loopback(address)) {
        Some(address) if !secret_given => Err(NetworkError::Exposed { address: address.clone() }),
        _ => Ok(()),
    }
}

/// Checks a setup, and returns the addresses of all processes.
pub(super) fn check(
    setup: &MeshSetup,
    announce: Option<&(Attempt, Vec<u8>)>,
) -> Result<Vec<String>, NetworkError> {
    let fail = |why: String| Err(NetworkError::Setup { why });
    let MeshSetup { processes, process, heartbeat, .. } = setup;
    if process >= processes {
        return fail(format!("there is no process {process} among {processes}: count from 0"));
    }
    if *processes > usize::from(u16::MAX - DEFAULT_PORT) {
        return fail(format!("{processes} processes are too many"));
    }
    if heartbeat.interval.is_zero() || heartbeat.timeout < heartbeat.interval * 2 {
        return fail(format!(
            "the heartbeat timeout ({:?}) must be at least twice the interval ({:?}), and that \
             not zero",
            heartbeat.timeout, heartbeat.interval
        ));
    }
    match announce {
        Some(_) if *process != 0 => return fail("only process 0 announces the attempt".into()),
        None if *process == 0 => return fail("process 0 must announce the attempt".into()),
        Some((_, blob)) if blob.len() > ANNOUNCEMENT_BYTES_MAX => {
            return fail(format!(
                "the announcement has {} bytes, more than {ANNOUNCEMENT_BYTES_MAX}",
                blob.len()
            ));
        }
        _ => {}
    }
    match setup.addresses.len() {
        0 => Ok((0..*processes)
            .map(|i| format!("127.0.0.1:{}", usize::from(DEFAULT_PORT) + i))
            .collect()),
        n if n == *processes => Ok(setup.addresses.clone()),
        n => fail(format!("{processes} processes need as many addresses, not {n}")),
    }
}

/// A number of processes, or an index, as it is sent.
pub(super) fn as_index(number: usize) -> u32 {
    u32::try_from(number).expect("the number of processes is checked against that of ports")
}
